"""Pairs of images with truth for the tests of differences: stars in two PSFs, correlated noise, injected changes."""

import numpy as np

from lap_assets.model.image import Mask, MaskedImage


def draw_moffat(n, x, y, flux, fwhm, beta=3.5, e=0.0, half=22):
    """(n, n) stars; `e` stretches along y."""
    image = np.zeros((n, n))
    alpha = 0.5 * fwhm / np.sqrt(2 ** (1 / beta) - 1)
    for px, py, one in zip(x, y, flux, strict=True):
        ix, iy = round(float(px)), round(float(py))
        rows, columns = (slice(max(c - half, 0), min(c + half + 1, n)) for c in (iy, ix))
        v, u = np.mgrid[rows, columns]
        r2 = ((u - px) ** 2 * (1 + e) + (v - py) ** 2 * (1 - e)) / alpha**2
        image[rows, columns] += one * (beta - 1) / (np.pi * alpha**2) * (1 + r2) ** -beta
    return image


def smooth_noise(rng, variance, phase):
    """Noise of the given variance per pixel, correlated as a shift by `phase` px with a windowed sinc leaves it.

    Drawn independently of `science.warp`: white noise on a twice finer step, convolved by the Lanczos-3 weights of
    the phase.
    """
    offset = phase - np.arange(-2, 4)
    weights = np.sinc(offset) * np.sinc(offset / 3)
    weights /= np.sqrt(np.sum(weights**2))
    white = rng.normal(size=np.add(variance.shape, 5))
    rows = sum(w * white[k : k + variance.shape[0]] for k, w in enumerate(weights))
    both = sum(w * rows[:, k : k + variance.shape[1]] for k, w in enumerate(weights))
    return both * np.sqrt(variance)


def make_pair(
    fwhm_science, fwhm_template, n=400, n_stars=90, seed=1, changes=(), e=(0.05, -0.04), noise=(20.0, 8.0), scale=1.02,
    sky=3.0,
):  # fmt: skip
    """Science and template images of one field; `changes` are (x, y, flux) that only the science image has."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(5, n - 5, (2, n_stars))
    flux = 10 ** rng.uniform(3, 5.3, n_stars)
    science = scale * draw_moffat(n, x, y, flux, fwhm_science, e=e[0])
    if len(changes):
        science += draw_moffat(n, *np.array(changes, float).T, fwhm_science, e=e[0])
    template = draw_moffat(n, x, y, flux, fwhm_template, e=e[1])
    images = []
    for truth, sigma, level, gain in ((science, noise[0], sky, 1.0), (template, noise[1], 0.0, 0.2)):
        variance = sigma**2 + gain * np.abs(truth)
        sci = truth + smooth_noise(rng, variance, rng.uniform(0.2, 0.8)) + level
        images.append(MaskedImage(sci.astype(np.float32), np.zeros((n, n), np.int16), variance.astype(np.float32)))
    return *images, (x, y, flux)


def add_cosmic_rays(image, seed=9, n=60, masked=True):
    """Hits of 3000 on three pixels each, masked or not."""
    rng = np.random.default_rng(seed)
    for x, y in rng.integers(20, image.shape[0] - 20, (n, 2)):
        image.sci[y, x : x + 3] += 3000
        if masked:
            image.mask[y, x : x + 3] |= int(Mask.COSMIC_RAY)
