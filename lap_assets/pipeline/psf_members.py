"""The members that hold PSFs: `psfs.fits` of solutions (one model per chip), `psf.fits` of warps and stacks (a grid).

Only how they lie in FITS planes. The models are `science/psf.py`'s, the grid is `science/psf_grid.py`'s; which PSF
belongs where the stages say.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy.io import fits

from lap_assets.errors import NotFound
from lap_assets.model.ids import Pin
from lap_assets.science.psf import PsfModel
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.store.repo import Repo

PSF_MODELS, PSF_MEMBER = "psfs.fits", "psf.fits"
_FRAME = ("PSFX0", "PSFY0", "PSFSX", "PSFSY")


def planes_of_models(models: Mapping[str, PsfModel]) -> dict[str, Any]:
    """Content of `psfs.fits`: a plane per chip, (terms, s, s); HDU names are capitals."""
    planes = {}
    for name, model in sorted(models.items()):
        header = fits.Header()
        header["PSFDEG"] = (model.degree, "of the polynomial in (x - X0)/SX, (y - Y0)/SY")
        for card, value in zip(_FRAME, model.frame, strict=True):
            header[card] = (float(value), "px")
        header["PSFNSTAR"] = (model.n_stars, "stars fitted")
        header["PSFRES"] = (round(float(model.residual), 7), "rms of star - model in the cores, of the peak")
        planes[name.upper()] = (np.ascontiguousarray(model.basis, np.float32), header)
    return planes


def read_psf_models(repo: Repo, pin: Pin) -> dict[str, PsfModel]:
    """The models of a solution by HDU name (the chip's in capitals); none where it has no such member."""
    try:
        planes = repo.read_planes(pin, PSF_MODELS)
    except NotFound:
        return {}
    return {name: _model_of_plane(*plane) for name, plane in planes.items()}


def _model_of_plane(basis: np.ndarray, header: fits.Header) -> PsfModel:
    frame = tuple(float(header[card]) for card in _FRAME)
    return PsfModel(basis, int(header["PSFDEG"]), frame, int(header["PSFNSTAR"]), float(header["PSFRES"]))


def planes_of_grid(grid: PsfGrid) -> dict[str, Any]:
    """Content of `psf.fits`: `{"PSF": (stamps, header)}`."""
    header = fits.Header()
    for axis, nodes in (("X", grid.x), ("Y", grid.y)):
        step = float(nodes[1] - nodes[0]) if len(nodes) > 1 else 1.0
        header[f"PSF{axis}0"] = (float(nodes[0]), "px, 0-based, of the first node")
        header[f"PSFD{axis}"] = (step, "px from node to node")
    return {"PSF": (np.ascontiguousarray(grid.stamps, np.float32), header)}


def read_psf_grid(repo: Repo, pin: Pin) -> PsfGrid | None:
    """The PSF of a warp or stack; None where it has none or it is known nowhere (a missing unit has none either)."""
    try:
        stamps, header = repo.read_planes(pin, PSF_MEMBER)["PSF"]
    except NotFound:
        return None
    ny, nx = stamps.shape[:2]
    x = float(header["PSFX0"]) + float(header["PSFDX"]) * np.arange(nx)
    y = float(header["PSFY0"]) + float(header["PSFDY"]) * np.arange(ny)
    grid = PsfGrid(x, y, stamps)
    return grid if grid.known.any() else None
