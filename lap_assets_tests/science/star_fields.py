"""Images with stars, cosmic rays and chips for tests of exposures, by numpy alone (none of the code under test)."""

import numpy as np

from lap_assets.model.camera import Amplifier, Chip


def moffat_stamp(dx: float, dy: float, fwhm_px: float, beta: float = 3.0, half: int = 20) -> np.ndarray:
    """Moffat profile of flux 1 integrated over pixels (7×7 samples each), centred (dx, dy) off the middle pixel."""
    alpha = fwhm_px / 2.0 / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
    fine = (np.arange(7) - 3) / 7.0
    axis = (np.arange(-half, half + 1)[:, None] + fine[None, :]).ravel()
    profile = (1.0 + ((axis[None, :] - dx) ** 2 + (axis[:, None] - dy) ** 2) / alpha**2) ** -beta
    side = 2 * half + 1
    stamp = profile.reshape(side, 7, side, 7).sum(axis=(1, 3))
    return stamp * (beta - 1.0) / (np.pi * alpha**2) / 49.0


def add_star(
    image: np.ndarray, x: float, y: float, flux: float, fwhm_px: float, beta: float = 3.0, half: int = 20
) -> None:
    """Add a star to an image in place; its stamp is cut at the borders."""
    ix, iy = round(x), round(y)
    stamp = flux * moffat_stamp(x - ix, y - iy, fwhm_px, beta, half)
    y0, y1 = max(0, iy - half), min(image.shape[0], iy + half + 1)
    x0, x1 = max(0, ix - half), min(image.shape[1], ix + half + 1)
    image[y0:y1, x0:x1] += stamp[y0 - iy + half : y1 - iy + half, x0 - ix + half : x1 - ix + half]


def star_field(
    rng: np.random.Generator,
    shape: tuple[int, int],
    n_stars: int,
    fwhm_px: float,
    flux: tuple[float, float] = (3e3, 2e5),
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Noiseless image of stars on a jittered grid (no two closer than 24 px), with their x, y and fluxes."""
    step = 32
    cells = [(i, j) for j in range(1, shape[0] // step - 1) for i in range(1, shape[1] // step - 1)]
    chosen = rng.permutation(len(cells))[:n_stars]
    image = np.zeros(shape)
    x = np.array([cells[k][0] * step for k in chosen]) + rng.uniform(-4, 4, len(chosen))
    y = np.array([cells[k][1] * step for k in chosen]) + rng.uniform(-4, 4, len(chosen))
    fluxes = 10 ** rng.uniform(*np.log10(flux), len(chosen))
    for one in zip(x, y, fluxes, strict=True):
        add_star(image, *one, fwhm_px)
    return image, x, y, fluxes


def observe(rng: np.random.Generator, image: np.ndarray, sky: float, read_noise: float = 5.0) -> np.ndarray:
    """Photon and read noise on image + sky, electrons, sky included, float32."""
    return (rng.poisson(image + sky) + rng.normal(0.0, read_noise, image.shape)).astype(np.float32)


def add_cosmic_rays(rng: np.random.Generator, image: np.ndarray, number: int, threshold: float) -> np.ndarray:
    """Add straight tracks to an image in place; returns which pixels got more than `threshold`."""
    deposit = np.zeros(image.shape)
    for _ in range(number):
        length, angle = 1.0 + rng.exponential(6.0), rng.uniform(0, np.pi)
        along = np.arange(0.0, length, 0.1)
        x = np.rint(rng.uniform(5, image.shape[1] - 6) + along * np.cos(angle)).astype(int)
        y = np.rint(rng.uniform(5, image.shape[0] - 6) + along * np.sin(angle)).astype(int)
        inside = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
        np.add.at(deposit, (y[inside], x[inside]), 0.1 * (300.0 + rng.exponential(900.0)))
    image += deposit.astype(image.dtype)
    return deposit > threshold


def two_amplifier_chip(n: int = 128, overscan: int = 16, gains: tuple[float, float] = (1.5, 1.6)) -> Chip:
    """A square chip: overscan, amplifier A, amplifier B, overscan, side by side."""
    half = n // 2
    left = Amplifier(
        name="A", overscan=(0, overscan, 0, n), data=(overscan, overscan + half, 0, n), target=(0, half, 0, n),
        gain=gains[0], read_noise_e=5.0, saturation_adu=50000.0,
    )  # fmt: skip
    right = Amplifier(
        name="B", overscan=(overscan + n, 2 * overscan + n, 0, n), data=(overscan + half, overscan + n, 0, n),
        target=(half, n, 0, n), gain=gains[1], read_noise_e=6.0, saturation_adu=50000.0,
    )  # fmt: skip
    return Chip(
        name="c0", hdu="c0", nx=n, ny=n, raw_nx=n + 2 * overscan, raw_ny=n, crpix=(n / 2, n / 2),
        cd_deg=((-1e-4, 0.0), (0.0, 1e-4)), amplifiers=(left, right),
    )  # fmt: skip
