"""Finding the objects of a skycell on all its bands together, and giving them their ids.

Here: the combined detection image, detection, centroids, Kron ellipses, which skycell owns an object, and names. What
an object's flux is in each band is `forced.py`'s, whether it is a star is `star_galaxy.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sep
from scipy import ndimage

from lap_assets.model.image import NO_WEIGHT, UNUSABLE, Mask, MaskedImage
from lap_assets.model.objects import ObjectFlag
from lap_assets.science.forced import sum_ellipses

_FLAG_MERGED = 1  # SExtractor's OBJ_MERGED: was deblended
_SKY_SMOOTHING_PX = 2.0
_KRON_SCAN = 6.0  # isophotal radii over which the Kron radius is measured (SExtractor's value)


@dataclass(frozen=True)
class BandImage:
    """One band of a skycell, ready to be measured.

    Attributes
    ----------
    band : str
    sci : (ny, nx) float32
        nJy, local background removed; 0 where there are no data.
    var : (ny, nx) float32
        nJy^2; 0 where there are no data.
    mask : (ny, nx) int16
    empty : (ny, nx) bool
        No information here (`NO_WEIGHT`, or no variance).
    noise_factor : float
        Ratio of the true variance of sums over many pixels to what the variance plane says (correlated noise).
    """

    band: str
    sci: np.ndarray
    var: np.ndarray
    mask: np.ndarray
    empty: np.ndarray
    noise_factor: float = 1.0

    @property
    def saturated(self) -> np.ndarray:
        return (self.mask & int(Mask.SATURATED | Mask.BLEED)) != 0

    @property
    def unusable(self) -> np.ndarray:
        return self.empty | ((self.mask & int(UNUSABLE)) != 0)


def prepare_band(image: MaskedImage, band: str, mesh_px: int, noise_factor: float = 1.0) -> BandImage:
    """Take the residual background off a stack and find its empty pixels.

    The background is that of meshes of `mesh_px` (0: none is taken off), objects and their surroundings left out:
    their wings would otherwise be taken off every object.
    """
    empty = ((image.mask & int(NO_WEIGHT)) != 0) | ~(image.var > 0)
    sci = np.where(empty, np.float32(0), image.sci).astype(np.float32)
    var = np.where(empty, np.float32(0), image.var).astype(np.float32)
    if mesh_px and not empty.all():
        hidden = empty | ((image.mask & int(UNUSABLE)) != 0)
        hidden |= find_bright(sci, var, hidden)
        if not hidden.all():
            mesh = min(mesh_px, *sci.shape)
            sky = sep.Background(sci, mask=hidden, bw=mesh, bh=mesh, fw=3, fh=3).back()
            sci = np.where(empty, np.float32(0), sci - sky).astype(np.float32)
    return BandImage(band, sci, var, image.mask, empty, noise_factor)


def find_bright(sci: np.ndarray, var: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """(ny, nx) bool: pixels of objects, by smoothed S/N, and what lies within six pixels of them."""
    snr = np.where(hidden, 0, sci / np.sqrt(np.where(hidden, 1, np.maximum(var, 1e-30))))
    smooth = ndimage.gaussian_filter(snr, _SKY_SMOOTHING_PX)
    level = np.median(smooth)
    noise = 1.4826 * np.median(np.abs(smooth - level))
    return ndimage.uniform_filter((smooth > level + 3.0 * noise).astype(np.float32), 13) > 1e-3


def combine_bands(bands: Sequence[BandImage]) -> tuple[np.ndarray, np.ndarray]:
    """The detection image: sum of the bands' S/N over the root of their number, and where no band has data.

    Linear in the pixels, so its noise is Gaussian of unit variance; best for objects of equal S/N in every band.
    Pixels, not whole images, drop out where a band has no data.
    """
    total = np.zeros(bands[0].sci.shape, np.float32)
    count = np.zeros(bands[0].sci.shape, np.float32)
    for one in bands:
        total += np.where(one.empty, 0, one.sci / np.sqrt(np.where(one.empty, 1, one.var)))
        count += ~one.empty
    return total / np.sqrt(np.maximum(count, 1)), count == 0


def detect_objects(
    snr: np.ndarray,
    empty: np.ndarray,
    fwhm_px: float,
    threshold_sigma: float,
    min_area_px: int,
    deblend_contrast: float,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Objects on a detection image of unit noise, and their segments.

    The image is smoothed by a Gaussian of the seeing's FWHM; the threshold is in units of the unsmoothed noise.

    Returns
    -------
    objects : DataFrame
        x, y (windowed centroid, 0-based), a_px, b_px, theta_rad (isophotal ellipse), kron (Kron radius in units of
        that ellipse, 0 where it is degenerate), snr_peak, npix, flags; sorted as found, from the bottom up.
    segments : (ny, nx) int32
        Number of the object (row + 1) each pixel belongs to, 0 for none.
    """
    sep.set_extract_pixstack(max(300_000, snr.size // 2))
    sep.set_sub_object_limit(8192)
    found, segments = sep.extract(
        snr,
        threshold_sigma,
        mask=empty,
        minarea=min_area_px,
        filter_kernel=_smoothing_kernel(fwhm_px),
        filter_type="conv",
        deblend_cont=deblend_contrast,
        segmentation_map=True,
    )
    if not len(found):
        columns = ["x", "y", "a_px", "b_px", "theta_rad", "kron", "snr_peak"]
        integers = {name: np.zeros(0, np.int32) for name in ("npix", "flags")}
        return pd.DataFrame({name: np.zeros(0) for name in columns} | integers), segments
    ids = np.arange(1, len(found) + 1, dtype=np.int32)
    x, y, failed = _centre_objects(snr, empty, found, segments, ids)
    a, b = np.maximum(found["a"], 0.5), np.maximum(found["b"], 0.5)
    theta = np.clip(found["theta"], -np.pi / 2, np.pi / 2)
    kron, _ = sep.kron_radius(snr, x, y, a, b, theta, _KRON_SCAN, mask=empty, seg_id=ids, segmap=segments)
    flags = np.where(found["flag"] & _FLAG_MERGED, int(ObjectFlag.BLENDED), 0)
    flags |= np.where(failed, int(ObjectFlag.NO_CENTROID), 0)
    columns = {"x": x, "y": y, "a_px": a, "b_px": b, "theta_rad": theta, "kron": np.nan_to_num(kron)}
    more = {"snr_peak": found["cpeak"].astype(float), "npix": found["npix"].astype(np.int32)}
    return pd.DataFrame({**columns, **more, "flags": flags.astype(np.int32)}), segments


def _smoothing_kernel(fwhm_px: float) -> np.ndarray:
    sigma = fwhm_px / 2.3548
    reach = max(1, int(np.ceil(2.0 * sigma)))
    offset = np.arange(-reach, reach + 1)
    profile = np.exp(-0.5 * (offset / sigma) ** 2)
    kernel = np.outer(profile, profile)
    return (kernel / kernel.sum()).astype(np.float32)


def _centre_objects(
    snr: np.ndarray, empty: np.ndarray, found: np.ndarray, segments: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windowed centroids; where they fail or run away by more than a half-light radius, the isophotal ones."""
    reach = 3.0 * np.maximum(found["a"], 1.0)
    half_light, _ = sep.flux_radius(snr, found["x"], found["y"], reach, 0.5, mask=empty, seg_id=ids, segmap=segments)
    half_light = np.clip(np.nan_to_num(half_light, nan=1.0), 0.5, None)
    x, y, flag = sep.winpos(snr, found["x"], found["y"], half_light * 2.0 / 2.3548, mask=empty)
    moved = np.hypot(x - found["x"], y - found["y"])
    failed = (flag != 0) | ~np.isfinite(moved) | (moved > np.maximum(half_light, 1.0))
    return np.where(failed, found["x"], x), np.where(failed, found["y"], y), failed


def measure_kron_radii(objects: pd.DataFrame, factor: float, min_radius_px: float) -> np.ndarray:
    """Size of each object's auto aperture in units of its ellipse: `factor` Kron radii, never below a circle's area.

    Kron (1980); the lower limit keeps faint objects, whose Kron radius is noise, within a sensible circle.
    """
    mean_radius = np.sqrt(objects["a_px"] * objects["b_px"]).to_numpy()
    scale = factor * np.clip(objects["kron"].to_numpy(), 0.0, _KRON_SCAN)
    return np.maximum(scale, min_radius_px / mean_radius)


def measure_flags(
    objects: pd.DataFrame, band: BandImage, segments: np.ndarray, scale: np.ndarray, fwhm_px: float
) -> np.ndarray:
    """(n,) int32 `ObjectFlag` bits of one band for ellipses of `scale` times the object's own."""
    ids = objects["segment"].to_numpy()
    x, y = objects["x"].to_numpy(), objects["y"].to_numpy()
    shape = (objects["a_px"] * scale).to_numpy(), (objects["b_px"] * scale).to_numpy(), objects["theta_rad"].to_numpy()
    sums = sum_ellipses(band.sci, band.var, band.empty, segments, ids, x, y, *shape)
    circle = np.full(len(objects), fwhm_px / 2.0)
    centre = sum_ellipses(band.sci, band.var, band.unusable, segments, ids, x, y, circle, circle, np.zeros(len(x)))
    touched = np.zeros(int(segments.max()) + 1, bool)
    touched[np.unique(segments[band.saturated])] = True
    flags = np.where(sums.foreign_area > 0.1 * sums.area, int(ObjectFlag.NEIGHBOUR), 0)
    flags |= np.where(sums.empty_area > 0.1 * sums.area, int(ObjectFlag.INCOMPLETE), 0)
    flags |= np.where(centre.empty_area > 0, int(ObjectFlag.BAD_CENTRE), 0)
    flags |= np.where(touched[ids], int(ObjectFlag.SATURATED), 0)
    return flags.astype(np.int32)


def select_owned(x: np.ndarray, y: np.ndarray, inner: tuple[int, int, int, int]) -> np.ndarray:
    """(n,) bool: centres inside the half-open region (x0, x1, y0, y1) that no other skycell owns."""
    x0, x1, y0, y1 = inner
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def name_objects(cell: str, skycell: str, numbers: np.ndarray) -> list[str]:
    """Ids unique over the whole sky: cell, skycell and the number of the detection, e.g. `demo.0-03-000017`."""
    return [f"{cell}-{skycell}-{number:06d}" for number in numbers]
