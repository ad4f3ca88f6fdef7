"""Plots with axes, as PNG bytes: the focal plane, zero points, transients, shear whiskers, mass maps, shear profiles.

Numbers in, bytes out, drawn by matplotlib's Agg without any window or global state; the bytes carry no clock and no
software name. Pictures of images are `pictures.py`'s. With `thumbnail=True` a plot is drawn small, without labels at
its axes, in at most 10 kB, for manifests.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from lap_assets.qa.pictures import MAX_THUMBNAIL_BYTES, encode_picture
from lap_assets.science.massmap import MapGrid

_SIZES = {False: (5.0, 4.4, 110), True: (2.2, 1.9, 100)}  # width, height [inch], dots per inch


def plot_mass_map(
    snr: np.ndarray, grid: MapGrid, peaks: pd.DataFrame, title: str = "aperture mass", thumbnail: bool = False
) -> bytes:
    """A S/N map with contours at 3, 5, 7 … sigma and its peaks (columns x_arcmin, y_arcmin); east to the left."""
    figure, axes = _new_figure(thumbnail)
    x1, y1 = grid.x0 + (grid.nx - 1) * grid.step, grid.y0 + (grid.ny - 1) * grid.step
    limit = max(4.0, float(np.abs(snr).max()) if snr.size else 0.0)
    edges = (grid.x0 - grid.step / 2, x1 + grid.step / 2, grid.y0 - grid.step / 2, y1 + grid.step / 2)
    shown = axes.imshow(snr, origin="lower", extent=edges, cmap="RdBu_r", vmin=-limit, vmax=limit)
    if snr.size and snr.max() > 3 and min(snr.shape) > 1:
        x, y = (a + grid.step * np.arange(n) for a, n in ((grid.x0, grid.nx), (grid.y0, grid.ny)))
        axes.contour(x, y, snr, levels=np.arange(3, max(snr.max(), 4), 2), colors="black", linewidths=0.6)
    axes.plot(peaks["x_arcmin"], peaks["y_arcmin"], "x", color="black", ms=4 if thumbnail else 7)
    axes.invert_xaxis()
    _label(axes, "east [arcmin]", "north [arcmin]", title, thumbnail)
    if not thumbnail:
        figure.colorbar(shown, ax=axes, label="S/N")
    return _save_figure(figure, thumbnail)


def plot_shears(table: pd.DataFrame, title: str = "mean shape", thumbnail: bool = False) -> bytes:
    """Whiskers of the weighted mean shape (columns ra, dec, e1, e2, weight) in bins of about 20; east to the left."""
    figure, axes = _new_figure(thumbnail)
    n_bins = int(np.clip(np.sqrt(len(table) / 20.0), 3, 20))
    if len(table):
        ra0, dec0 = float(table["ra"].mean()), float(table["dec"].mean())
        x = (table["ra"].to_numpy() - ra0) * np.cos(np.radians(dec0)) * 60.0
        y = (table["dec"].to_numpy() - dec0) * 60.0
        half = max(np.abs(x).max(), np.abs(y).max()) * 1.001 + 1e-6
        edges = np.linspace(-half, half, n_bins + 1)
        w = table["weight"].to_numpy()
        total, _, _ = np.histogram2d(x, y, edges, weights=w)
        e1, e2 = (np.histogram2d(x, y, edges, weights=w * table[k])[0] / np.maximum(total, 1e-30) for k in ("e1", "e2"))
        middle = (edges[1:] + edges[:-1]) / 2.0
        mx, my = np.meshgrid(middle, middle, indexing="ij")
        size, angle = np.hypot(e1, e2), np.arctan2(e2, e1) / 2.0
        some = total > 0
        stick = (v[some] for v in (mx, my, size * np.cos(angle), size * np.sin(angle)))
        axes.quiver(*stick, angles="xy", pivot="mid", headwidth=1, headlength=0, headaxislength=0, scale=n_bins * 0.2)
        axes.set(xlim=(half, -half), ylim=(-half, half), aspect="equal")
    _label(axes, "east [arcmin]", "north [arcmin]", title, thumbnail)
    return _save_figure(figure, thumbnail)


def plot_profile(profile: pd.DataFrame, model: np.ndarray, title: str = "", thumbnail: bool = False) -> bytes:
    """Tangential and cross shear (columns radius_mpc, gamma_t, gamma_x, gamma_err) with the model at the radii."""
    figure, axes = _new_figure(thumbnail)
    r = profile["radius_mpc"].to_numpy()
    axes.axhline(0.0, color="0.6", lw=0.8)
    axes.errorbar(r, profile["gamma_t"], profile["gamma_err"], fmt="o", ms=4, color="C0", label="tangential")
    axes.errorbar(r * 1.03, profile["gamma_x"], profile["gamma_err"], fmt="s", ms=3, color="0.6", label="cross")
    axes.plot(r, model, color="C3", label="NFW")
    axes.set_xscale("log")
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if len(r) and 0.8 * r.min() <= t <= 1.25 * r.max()]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    _label(axes, "radius [Mpc]", "reduced shear", title, thumbnail)
    if not thumbnail:
        axes.legend(frameon=False)
    return _save_figure(figure, thumbnail)


def plot_focal_plane(
    footprints: Mapping[str, Sequence[tuple[float, float]]],
    values: Mapping[str, float],
    label: str,
    failed: Sequence[str] = (),
    thumbnail: bool = False,
) -> bytes:
    """Chips at their places on the sky, coloured by a number each; chips in `failed` are outlined in red."""
    figure, axes = _new_figure(thumbnail)
    known = [v for v in values.values() if np.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    first_ra = next((corners[0][0] for _, corners in sorted(footprints.items())), 0.0)
    colours = colormaps["viridis"]
    for chip, corners in sorted(footprints.items()):
        ra, dec = np.array(corners).T
        ra = _unwrap_ra(ra, first_ra)
        value = values.get(chip, np.nan)
        face = colours((value - low) / (high - low or 1.0)) if np.isfinite(value) else "0.85"
        axes.fill(
            ra, dec, facecolor=face, edgecolor="red" if chip in failed else "0.3", lw=2 if chip in failed else 0.6
        )
        if not thumbnail:
            # viridis is dark at its lower end
            ink = "white" if np.isfinite(value) and value < low + 0.5 * (high - low) else "black"
            axes.text(ra.mean(), dec.mean(), chip, ha="center", va="center", fontsize=7, color=ink)
    axes.invert_xaxis()
    axes.ticklabel_format(useOffset=False)
    if footprints:
        middle = np.mean([d for corners in footprints.values() for _, d in corners])
        axes.set_aspect(1.0 / max(np.cos(np.radians(middle)), 0.05))
    spread = f"{low:.3g} to {high:.3g}" if known else "unknown"
    _label(axes, "RA [deg]", "Dec [deg]", f"{label}: {spread}", thumbnail, keep_title=True)
    return _save_figure(figure, thumbnail)


def plot_zero_points(table: pd.DataFrame, title: str = "relative zero points", thumbnail: bool = False) -> bytes:
    """Relative zero points with their errors, in the order of the exposures.

    Parameters
    ----------
    table : DataFrame
        exposure, dzp_mag, dzp_err_mag, n_stars; an exposure with n_stars 0 has no correction: a red cross at 0.
    """
    figure, axes = _new_figure(thumbnail)
    table = table.sort_values("exposure", ignore_index=True)
    place, tied = np.arange(len(table)), table["n_stars"].to_numpy() > 0
    dzp, error = (1000.0 * table[name].to_numpy(float) for name in ("dzp_mag", "dzp_err_mag"))
    axes.axhline(0.0, color="0.6", lw=0.8)
    axes.errorbar(place[tied], dzp[tied], error[tied], fmt="o", ms=3 if thumbnail else 5, lw=1, capsize=2, color="C0")
    axes.plot(place[~tied], np.zeros(np.sum(~tied)), "x", color="red", ms=4 if thumbnail else 7)
    # at least ±5 mmag: smaller corrections are noise and shall look so
    limit = max(5.0, 1.15 * float(np.max(np.abs(dzp[tied]) + error[tied], initial=0.0)))
    axes.set(xlim=(-0.6, max(len(table), 1) - 0.4), ylim=(-limit, limit))
    shown = place[:: max(1, -(-len(table) // 12))]
    if thumbnail:
        # only what tells the exposures apart fits
        axes.set_xticks(shown, [name[-4:] for name in table["exposure"].iloc[shown]], rotation=90)
    else:
        axes.set_xticks(shown, table["exposure"].iloc[shown], rotation=90, fontsize=7)
    _label(axes, "", "zero point correction [mmag]", f"{title} [mmag]" if thumbnail else title, thumbnail, True)
    return _save_figure(figure, thumbnail)


def plot_transients(
    transients: pd.DataFrame, sources: pd.DataFrame, title: str = "transients", thumbnail: bool = False
) -> bytes:
    """Transients on the sky, the larger the higher their S/N, coloured by date, on all sources; east to the left.

    Parameters
    ----------
    transients : DataFrame
        ra, dec [deg], snr_max, first_mjd [d].
    sources : DataFrame
        ra, dec [deg] of the sources they were made from: grey points, which show the field and where artefacts gather.
    """
    figure, axes = _new_figure(thumbnail)
    dec, snr, first = (transients[name].to_numpy(float) for name in ("dec", "snr_max", "first_mjd"))
    first_ra = next(iter([*sources["ra"], *transients["ra"]]), 0.0)
    ra, grey_ra = (_unwrap_ra(table["ra"].to_numpy(float), first_ra) for table in (transients, sources))
    dots = 3 if thumbnail else 10
    axes.scatter(grey_ra, sources["dec"].to_numpy(float), s=dots, color="0.6", linewidths=0)
    size = dots * (3.0 + 8.0 * np.log10(np.clip(snr / 5.0, 1.0, 1000.0)))
    day = np.floor(first.min()) if len(first) else 0.0
    dates = {"vmin": day, "vmax": np.max(first, initial=day + 1.0)}
    shown = axes.scatter(ra, dec, s=size, c=first, **dates, alpha=0.8, edgecolors="black", linewidths=0.5)
    if len(sources) + len(transients):
        middle = np.mean([*sources["dec"], *dec])
        axes.set_aspect(1.0 / max(np.cos(np.radians(middle)), 0.05), adjustable="datalim")
        axes.ticklabel_format(useOffset=False)
    else:
        axes.set(xticks=[], yticks=[])
    axes.invert_xaxis()
    spread = f", S/N {snr.min():.0f} to {snr.max():.0f}" if len(snr) else ""
    _label(axes, "RA [deg]", "Dec [deg]", f"{title}: {len(snr)}{spread}", thumbnail, keep_title=True)
    if not thumbnail and len(snr):
        figure.colorbar(shown, ax=axes, label="first seen [MJD]", format="%.1f")
    return _save_figure(figure, thumbnail)


def _unwrap_ra(ra: np.ndarray, near: float) -> np.ndarray:
    """Right ascensions within 180 degrees of `near`, so that a field at RA 0 stays together."""
    return near + (ra - near + 180.0) % 360.0 - 180.0


def _new_figure(thumbnail: bool) -> tuple[Figure, Axes]:
    width, height, dpi = _SIZES[thumbnail]
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _label(axes: Axes, x: str, y: str, title: str, thumbnail: bool, keep_title: bool = False) -> None:
    if thumbnail:
        axes.tick_params(labelsize=5, length=2)
        if keep_title:
            axes.set_title(title, fontsize=6)
        return
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=10 if len(title) < 50 else 8)


def _save_figure(figure: Figure, thumbnail: bool) -> bytes:
    buffer = BytesIO()
    # matplotlib would write its version into the file
    figure.savefig(buffer, format="png", metadata={"Software": None})
    if not thumbnail:
        return buffer.getvalue()
    buffer.seek(0)
    return encode_picture(Image.open(buffer).convert("RGB"), MAX_THUMBNAIL_BYTES)
