"""Pictures of a survey, drawn from its products: the field in colour, the mass map over it, depth, transients.

Reading and arranging only; stretches and colours are `qa/pictures.py`'s.
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lap_assets.errors import NotFound
from lap_assets.model.cells import ProjectionCell
from lap_assets.model.ids import DataId, join_key
from lap_assets.model.image import MaskedImage
from lap_assets.model.survey import Survey
from lap_assets.operations.workspace import Workspace
from lap_assets.qa.pictures import compose_lupton
from lap_assets.store.repo import Repo

MAX_SIDE_PX = 1600
STAMP_ARCSEC = 16.0
MAX_TRANSIENTS = 10


def cut_stack(
    repo: Repo, collection: str, cell: ProjectionCell, band: str, ra_deg: float, dec_deg: float, size_arcsec: float
) -> MaskedImage:
    """A square of the final stacks of one band, put together over skycells; raises `NotFound` where there is none."""
    side = max(3, round(size_arcsec / cell.pixel_scale_arcsec))
    x, y = cell.sky_to_pixel(ra_deg, dec_deg)
    x0, y0 = round(float(x)) - side // 2, round(float(y)) - side // 2
    header = cell.header()
    header["CRPIX1"] -= x0
    header["CRPIX2"] -= y0
    header["NAXIS1"] = header["NAXIS2"] = side
    cut = MaskedImage(
        np.zeros((side, side), np.float32), np.zeros((side, side), np.int16), np.zeros((side, side), np.float32), header
    )
    found = False
    for data_id in repo.units(collection, "final_stacks", join_key(cell.name, band)):
        if repo.pin(data_id) is not None:
            found |= paste(cut, repo, data_id, cell.skycells[data_id.unit], x0, y0)
    if not found:
        raise NotFound(
            f"no final stack of {cell.name} in band {band} covers RA {ra_deg} Dec {dec_deg}; "
            "`lap ls final_stacks` shows what there is"
        )
    return cut


def paste(cut: MaskedImage, repo: Repo, data_id: DataId, skycell, x0: int, y0: int) -> bool:
    """Copy the part of a skycell's stack that falls into the cutout; whether there was any."""
    side = cut.shape[0]
    left, bottom = skycell.x0 - x0, skycell.y0 - y0
    xa, xb, ya, yb = max(0, left), min(side, left + skycell.nx), max(0, bottom), min(side, bottom + skycell.ny)
    if xa >= xb or ya >= yb:
        return False
    image = repo.read_image(data_id)
    there = np.s_[ya - bottom : yb - bottom, xa - left : xb - left]
    here = np.s_[ya:yb, xa:xb]
    fresh = (image.var[there] > 0) & (cut.var[here] <= 0)
    for target, source in ((cut.sci, image.sci), (cut.mask, image.mask), (cut.var, image.var)):
        target[here][fresh] = source[there][fresh]
    return True


def draw_survey(space: Workspace, survey: Survey, folder: Path) -> list[Path]:
    """Draw what there is of the first cell; returns the files written."""
    cell = next(iter(survey.bands_of))
    drawn = []
    for name, draw in (
        ("field", draw_field),
        ("mass_map", draw_mass_map),
        ("transients", draw_transients),
        ("coverage", draw_coverage),
    ):
        try:
            figure = draw(space, survey, cell)
        except NotFound:
            continue
        path = folder / f"{name}.png"
        save_figure(figure, path)
        drawn.append(path)
    return drawn


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without a clock in it."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def read_colour(space: Workspace, survey: Survey, cell_name: str) -> np.ndarray:
    """(ny, nx, 3) colour picture of a whole cell from its three reddest bands, reduced to a size for screens."""
    bands = sorted(survey.bands_of[cell_name], key="ugrizy".find, reverse=True)[:3]
    bands = (bands + [bands[-1]] * 3)[:3]
    planes = []
    for band in bands:
        image = space.repo.get("final_stacks", collection=survey.collection, cell=cell_name, band=band)
        step = max(1, -(-max(image.shape) // MAX_SIDE_PX))
        planes.append(bin_image(image.sci, step))
    valid = np.logical_and.reduce([plane != 0 for plane in planes])
    return compose_lupton(planes, valid)


def bin_image(image: np.ndarray, step: int) -> np.ndarray:
    """Mean over squares of `step` pixels."""
    ny, nx = (side // step * step for side in image.shape)
    return image[:ny, :nx].reshape(ny // step, step, nx // step, step).mean(axis=(1, 3))


def draw_field(space: Workspace, survey: Survey, cell: str) -> Figure:
    """The cell in colour."""
    figure = Figure(figsize=(9, 9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(read_colour(space, survey, cell), origin="lower", interpolation="nearest")
    axes.set_axis_off()
    return figure


def draw_mass_map(space: Workspace, survey: Survey, cell: str) -> Figure:
    """Contours of the aperture mass (S/N) over the field in colour, the B-mode beside it."""
    planes = space.repo.get("mass_maps", collection=survey.collection, cell=cell)
    peaks = space.repo.get("mass_maps", member="peaks.parquet", collection=survey.collection, cell=cell)
    side = survey.cells[cell].nx * survey.cells[cell].pixel_scale_arcsec / 60.0
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    extent = (side / 2, -side / 2, -side / 2, side / 2)
    left.imshow(read_colour(space, survey, cell), origin="lower", extent=extent, interpolation="nearest")
    snr = planes["SNR"][0]
    levels = np.arange(2, max(4, np.ceil(snr.max())), 1)
    grid_x, grid_y = np.linspace(extent[0], extent[1], snr.shape[1]), np.linspace(extent[2], extent[3], snr.shape[0])
    left.contour(grid_x, grid_y, snr, levels=levels, cmap="autumn", linewidths=1.4)
    left.set_title("aperture mass, E-mode, contours at 2, 3, … sigma")
    shown = right.imshow(planes["SNR_B"][0], origin="lower", extent=extent, cmap="RdBu_r", vmin=-5, vmax=5)
    right.set_title("B-mode (must be noise)")
    figure.colorbar(shown, ax=right, label="S/N", shrink=0.8)
    if len(peaks):
        best = peaks.loc[peaks["snr"].idxmax()]
        left.set_xlabel(
            f"arcmin; highest peak {best['snr']:.1f} sigma at RA {best['ra']:.4f} Dec {best['dec']:.4f}, "
            f"aperture {best['radius_arcmin']:g}'"
        )
    right.set_xlabel("arcmin")
    return figure


def draw_transients(space: Workspace, survey: Survey, cell: str) -> Figure:
    """Each transient's difference stamp at its brightest and its light curve per band."""
    found = space.repo.get("transients", collection=survey.collection, cell=cell).head(MAX_TRANSIENTS)
    curves = space.repo.get("transients", member="lightcurves.parquet", collection=survey.collection, cell=cell)
    if not len(found):
        raise NotFound("no transients to draw")
    figure = Figure(figsize=(9, 1.5 * len(found)), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(found), 2, width_ratios=(1, 4)))
    for (stamp_axes, curve_axes), one in zip(axes, found.itertuples(), strict=True):
        mine = curves[curves["transient_id"] == one.transient_id]
        brightest = mine.loc[(mine["flux"] / mine["flux_err"]).idxmax()]
        stamp_axes.imshow(
            cut_diff(space, survey, cell, brightest["exposure"], one.ra, one.dec), origin="lower", cmap="gray"
        )
        stamp_axes.set_axis_off()
        for band, points in mine.groupby("band"):
            curve_axes.errorbar(
                points["mjd"], points["flux"] / 1e3, points["flux_err"] / 1e3, fmt="o", ms=3, label=band
            )
        curve_axes.axhline(0, lw=0.5, color="k")
        curve_axes.set_ylabel("µJy")
    axes[0, 1].legend(ncols=5, fontsize=7)
    axes[-1, 1].set_xlabel("MJD, d")
    return figure


def cut_diff(space: Workspace, survey: Survey, cell: str, exposure: str, ra: float, dec: float) -> np.ndarray:
    """A stamp of the difference image of an exposure around a position."""
    x, y = (float(v) for v in survey.cells[cell].sky_to_pixel(ra, dec))
    half = round(STAMP_ARCSEC / 2 / survey.cells[cell].pixel_scale_arcsec)
    for data_id in space.repo.units(survey.collection, "diffs", join_key(exposure, cell)):
        skycell = survey.cells[cell].skycells[data_id.unit]
        column, row = round(x) - skycell.x0, round(y) - skycell.y0
        if half <= column < skycell.nx - half and half <= row < skycell.ny - half and space.repo.has_files(data_id):
            sci = space.repo.read_image(data_id, planes=("SCI",)).sci
            return sci[row - half : row + half + 1, column - half : column + half + 1]
    return np.zeros((2 * half + 1, 2 * half + 1), np.float32)


def draw_coverage(space: Workspace, survey: Survey, cell: str) -> Figure:
    """Footprints of the chips of all exposures over the skycells of a cell."""
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    projection = survey.cells[cell]
    for exposure, name in survey.pairs:
        if name != cell:
            continue
        for chip in survey.exposures[exposure].chips:
            x, y = projection.sky_to_pixel(*np.transpose([*chip.footprint, chip.footprint[0]]))
            axes.fill(x, y, color="tab:blue", alpha=0.05)
            axes.plot(x, y, color="tab:blue", lw=0.3)
    for skycell in projection.skycells.values():
        xs = skycell.x0 + np.array([0, skycell.nx, skycell.nx, 0, 0])
        ys = skycell.y0 + np.array([0, 0, skycell.ny, skycell.ny, 0])
        axes.plot(xs, ys, color="tab:red", lw=1.2)
        axes.text(skycell.x0 + skycell.nx / 2, skycell.y0 + skycell.ny / 2, skycell.name, color="tab:red")
    axes.set(
        aspect="equal", xlabel="x, pixels of the cell", ylabel="y", title=f"{cell}: chips (blue) and skycells (red)"
    )
    return figure
