"""The PSF of a warp: the models of its chips, carried through the resampling, at the nodes of a grid.

Here: what the resampling makes of a PSF. The models are `psf.py`'s, the grid `psf_grid.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lap_assets.science.moffat import MoffatPsf, stamp_size
from lap_assets.science.pixel_map import PixelMap
from lap_assets.science.psf import PsfModel, shift_stamps
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.science.warp import resample_stamps

# phases at which stars are drawn and resampled: half a pixel apart, the odd terms of the aliasing cancel; what the
# lower kernels do depends on the phase more strongly
_PHASES = {"lanczos3": (-0.25, 0.25), "spline": (-0.25, 0.25)}
_MANY_PHASES = (-0.375, -0.125, 0.125, 0.375)
_RING = 0.75  # of a stamp's half-width, from which on the wings are taken from it


@dataclass(frozen=True)
class ChipPsf:
    """What is known of the PSF of a chip on a skycell.

    Attributes
    ----------
    pixel_map : PixelMap
    shape : (ny, nx)
        Of the chip.
    model : PsfModel
    moffat : MoffatPsf
        Its profile, in chip pixels: it continues the wings beyond the model's stamp.
    """

    pixel_map: PixelMap
    shape: tuple[int, int]
    model: PsfModel
    moffat: MoffatPsf


def warp_psf(chips: Sequence[ChipPsf], x: np.ndarray, y: np.ndarray, kernel: str, reach_px: float) -> PsfGrid:
    """PSF of the resampled image at nodes; each from the chip on which it lies, or that is the nearest.

    Stars are drawn on the chip at several sub-pixel phases, resampled as the chip is, and averaged: what the kernel
    does to the PSF is in it. Stamps hold 4 FWHM to each side, the radius to which fluxes are corrected, and have sum 1.

    Parameters
    ----------
    chips : sequence of ChipPsf
        At least one.
    x, y : (nx,), (ny,)
        Nodes, px of the skycell.
    kernel : str
        One of `warp_kernels.KERNELS`.
    reach_px : float
        Distance from a chip beyond which the PSF is not known.
    """
    gx, gy = (nodes.ravel() for nodes in np.meshgrid(x, y))
    places = [chip.pixel_map.locate(gx, gy, chip.shape) for chip in chips]
    away = np.array([place[2] for place in places])
    nearest = np.argmin(away, axis=0)
    scales = [np.sqrt(np.nanmean(chip.pixel_map.jacobian)) for chip in chips]
    size = max(stamp_size(chip.moffat.fwhm_px / scale) for chip, scale in zip(chips, scales, strict=True))
    stamps = np.zeros((gx.size, size, size), np.float32)
    for number, chip in enumerate(chips):
        mine = np.nonzero((nearest == number) & (away[number] <= reach_px))[0]
        if not mine.size:
            continue
        cx, cy = places[number][0][mine], places[number][1][mine]
        drawn = _extend_wings(chip.model.evaluate_many(cx, cy), chip.moffat)
        matrices = chip.pixel_map.derivatives(gx[mine], gy[mine])
        total = np.zeros((mine.size, size, size))
        for dx, dy in product(_PHASES.get(kernel, _MANY_PHASES), repeat=2):
            offset = np.full(mine.size, dx), np.full(mine.size, dy)
            total += resample_stamps(shift_stamps(drawn, *offset), matrices, (dx, dy), size, kernel)
        stamps[mine] = total / total.sum(axis=(1, 2), keepdims=True)
    return PsfGrid(np.asarray(x, float), np.asarray(y, float), stamps.reshape(len(y), len(x), size, size))


def _extend_wings(stamps: np.ndarray, moffat: MoffatPsf) -> np.ndarray:
    """Stamps (n, s, s) in larger ones that hold 4 FWHM to each side, wings continued by the Moffat profile."""
    n, small, _ = stamps.shape
    wings = moffat.evaluate()
    size = max(len(wings), small)
    edge = (size - small) // 2
    out = np.broadcast_to(np.pad(wings, (size - len(wings)) // 2), (n, size, size)).copy()
    inner = np.s_[:, edge : edge + small, edge : edge + small]
    offset = np.arange(small) - small // 2
    ring = np.hypot(*np.meshgrid(offset, offset))
    ring = (ring > _RING * (small // 2)) & (ring <= small // 2)
    level = np.median(stamps[:, ring] / out[inner][:, ring], axis=1)
    out *= np.clip(level, 0.0, None)[:, None, None]
    out[inner] = stamps
    return out / out.sum(axis=(1, 2), keepdims=True)
