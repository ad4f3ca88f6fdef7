"""Pairs of images with truth for the tests of differences: stars in two PSFs, correlated noise, injected changes."""

from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve

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


@dataclass(frozen=True)
class DrawnPsf:
    """The PSF of `draw_moffat` as the subtraction takes it; `slope` is how much wider it is per px of x."""

    fwhm_px: float
    e: float = 0.0
    slope: float = 0.0

    def evaluate(self, x, y):
        return self.evaluate_many(np.array([x]), np.array([y]))[0]

    def evaluate_many(self, x, y):
        widths = self.fwhm_px * (1 + self.slope * np.asarray(x, float))
        return np.array([draw_moffat(45, [22], [22], [1.0], width, e=self.e) for width in widths])


def draw_psfs(fwhm_science, fwhm_template, e=(0.05, -0.04)):
    """PSFs of the images of `make_pair`."""
    return DrawnPsf(fwhm_science, e[0]), DrawnPsf(fwhm_template, e[1])


def read_covariances(science, template):
    return science.header["NOISECOV"], template.header["NOISECOV"]


def force_fluxes(difference, x, y):
    """PSF-weighted fluxes and their errors at whole pixels, straight from the definition."""
    image, reach = difference.image, difference.correlation.shape[0] // 2
    flux, error = np.empty(len(x)), np.empty(len(x))
    for k, (px, py) in enumerate(zip(x, y, strict=True)):
        stamp = difference.psf.evaluate(px, py)
        half = min(stamp.shape[0] // 2, 12)
        middle = stamp.shape[0] // 2
        stamp = stamp[middle - half : middle + half + 1, middle - half : middle + half + 1]
        cut = np.s_[py - half : py + half + 1, px - half : px + half + 1]
        good = image.usable[cut]
        weight = np.where(good, stamp, 0.0)
        flux[k] = np.sum(weight * image.sci[cut]) / np.sum(weight**2)
        noisy = weight * np.sqrt(np.where(good, image.var[cut], 0.0))
        wide = np.pad(noisy, reach)
        spread = fftconvolve(wide, difference.correlation, mode="same")
        error[k] = np.sqrt(np.sum(wide * spread)) / np.sum(weight**2)
    return flux, error


def smooth_noise(rng, variance, phase):
    """Noise of the given variance per pixel, correlated as a shift by `phase` px with a windowed sinc leaves it, and
    its covariance factor.

    Drawn independently of `science.warp`: white noise on a twice finer step, convolved by the Lanczos-3 weights of
    the phase.
    """
    offset = phase - np.arange(-2, 4)
    weights = np.sinc(offset) * np.sinc(offset / 3)
    weights /= np.sqrt(np.sum(weights**2))
    white = rng.normal(size=np.add(variance.shape, 5))
    rows = sum(w * white[k : k + variance.shape[0]] for k, w in enumerate(weights))
    both = sum(w * rows[:, k : k + variance.shape[1]] for k, w in enumerate(weights))
    return both * np.sqrt(variance), float(weights.sum() ** 4)


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
        drawn, factor = smooth_noise(rng, variance, rng.uniform(0.2, 0.8))
        sci = (truth + drawn + level).astype(np.float32)
        images.append(MaskedImage(sci, np.zeros((n, n), np.int16), variance.astype(np.float32)))
        images[-1].header["NOISECOV"] = factor
    return *images, (x, y, flux)


def add_cosmic_rays(image, seed=9, n=60, masked=True):
    """Hits of 3000 on three pixels each, masked or not."""
    rng = np.random.default_rng(seed)
    for x, y in rng.integers(20, image.shape[0] - 20, (n, 2)):
        image.sci[y, x : x + 3] += 3000
        if masked:
            image.mask[y, x : x + 3] |= int(Mask.COSMIC_RAY)
