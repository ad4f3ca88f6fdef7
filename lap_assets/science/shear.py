"""Shapes of galaxies corrected for the PSF, their weights and response, and which galaxies lie behind the lens.

Here: HSM re-Gaussianisation on stamps, quality cuts, weights and responsivity, the red sequence that foreground members
are recognised by, and the calibrated shear of a catalogue. Frames are `plane.py`'s, maps `massmap.py`'s.

Shapes are distortions, e = (a^2 - b^2) / (a^2 + b^2), and a galaxy's shear estimate is e / (2 R (1 + m)) with the mean
responsivity R (Bernstein & Jarvis 2002, section 5; Hirata & Seljak 2003; Mandelbaum et al. 2018, eq. 7).
"""

from dataclasses import dataclass

import galsim
import numpy as np
import pandas as pd

from lap_assets.errors import NoWork
from lap_assets.science.forced import PsfAt, cut_stamps
from lap_assets.science.massmap import ShearSample
from lap_assets.science.plane import project_positions, turn_to_plane

# HSM's error is that of a Gaussian under fixed weights; against the scatter of simulated galaxies (exponential and
# Sersic 2.5, 0.3-0.8", S/N 12-60) it is too small by 2.0-3.1 and 2.6-3.6, whatever the size and S/N
_HSM_ERROR_SCALE = 2.6
# what a red sequence must stand out by; the highest of many fluctuations reaches 4
_RED_SEQUENCE_SIGMA = 5.0
_FEWEST_MEMBERS = 10
_WIDEST_SEQUENCE = 0.065  # mag; an even distribution within 0.1 mag has 0.074


def measure_shapes(
    sci: np.ndarray,
    var: np.ndarray,
    empty: np.ndarray,
    segments: np.ndarray,
    objects: pd.DataFrame,
    psf: PsfAt,
    stamp_px: int,
    noise_factor: float = 1.0,
) -> pd.DataFrame:
    """PSF-corrected shapes of objects by re-Gaussianisation (Hirata & Seljak 2003; GalSim's HSM), in the pixel frame.

    Neighbours and missing pixels are replaced by their mirror image through the galaxy's centre, which keeps the shape
    of anything symmetric.

    Parameters
    ----------
    objects : columns x, y (0-based), segment
    noise_factor : float
        True over nominal variance of sums of pixels; scales the errors of the shapes.

    Returns
    -------
    DataFrame in the order of `objects`: e1, e2 (distortion), e_err (per component), resolution (0 unresolved .. 1),
    size_px (sigma of the adaptive moments), filled (fraction of the inner stamp that was replaced); NaN where the
    algorithm failed.
    """
    x, y, ids = (objects[k].to_numpy() for k in ("x", "y", "segment"))
    flux, variance, kind = cut_stamps(sci, var, empty, segments, ids.astype(np.int64), x, y, stamp_px)
    half = stamp_px // 2
    inner = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1]) <= half / 2.0
    psfs = psf.evaluate_many(x, y)
    rows = np.full((len(objects), 6), np.nan)
    for k in range(len(objects)):
        rows[k, 5] = np.mean(kind[k][inner] > 0)
        noise = float(np.median(variance[k])) * noise_factor
        centre = galsim.PositionD(half + 1 + x[k] - np.round(x[k]), half + 1 + y[k] - np.round(y[k]))
        shape = galsim.hsm.EstimateShear(
            galsim.Image(flux[k]),
            galsim.Image(np.ascontiguousarray(psfs[k])),
            weight=galsim.Image((kind[k] < 2).astype(np.int32)),
            sky_var=noise,
            shear_est="REGAUSS",
            guess_centroid=centre,
            strict=False,
        )
        if shape.error_message == "" and shape.correction_status == 0:
            e1, e2 = shape.corrected_e1, shape.corrected_e2
            error = _HSM_ERROR_SCALE * shape.corrected_shape_err
            rows[k, :5] = e1, e2, error, shape.resolution_factor, shape.moments_sigma
    return pd.DataFrame(rows, columns=["e1", "e2", "e_err", "resolution", "size_px", "filled"])


def select_shapes(
    shapes: pd.DataFrame, min_resolution: float, max_ellipticity: float, max_error: float, max_filled: float
) -> np.ndarray:
    """(n,) bool: well-measured shapes. Cuts on resolution, |e|, its error and the replaced part of the stamp."""
    e = np.hypot(shapes["e1"], shapes["e2"])
    good = (shapes["resolution"] > min_resolution) & (e < max_ellipticity)
    return (good & (shapes["e_err"] < max_error) & (shapes["filled"] <= max_filled)).to_numpy()


def weigh_shapes(e_err: np.ndarray, shape_noise: float) -> np.ndarray:
    """Weights 1 / (shape noise^2 + measurement error^2), distortion per component; at most 1/shape_noise^2.

    They do not depend on the shape itself, which would bias the mean.
    """
    return 1.0 / (shape_noise**2 + np.asarray(e_err) ** 2)


def measure_response(e1: np.ndarray, e2: np.ndarray, e_err: np.ndarray, calibration_m: float) -> np.ndarray:
    """Each galaxy's term of the shear response, 2 (1 - e_rms^2)(1 + m) with e_rms^2 = |e|^2 / 2 - e_err^2.

    Only its weighted mean over many galaxies means something: shear = sum(w e) / sum(w response).
    """
    rms2 = (np.asarray(e1) ** 2 + np.asarray(e2) ** 2) / 2.0 - np.asarray(e_err) ** 2
    return 2.0 * (1.0 - rms2) * (1.0 + calibration_m)


@dataclass(frozen=True)
class RedSequence:
    """The colour of a cluster's passive members: bluer minus redder band, a line in the redder magnitude."""

    colour: float  # at `pivot_mag`
    slope: float
    width: float  # standard deviation
    pivot_mag: float
    significance: float  # of the overdensity in colour, sigma

    def distance(self, colour: np.ndarray, mag: np.ndarray) -> np.ndarray:
        """How far colours lie from the sequence, mag."""
        return colour - self.colour - self.slope * (mag - self.pivot_mag)


def find_red_sequence(
    colour: np.ndarray, mag: np.ndarray, mag_range: tuple[float, float], slope: float = -0.02
) -> RedSequence | None:
    """A narrow crowd in colour of bright galaxies, or None where none stands out.

    Slope-corrected colours are scanned in steps of 0.02 mag for windows of +-0.06 mag whose count exceeds the density
    to their sides (0.12 to 0.3 mag away), which cancels the broad distribution of the field. Of the crowds at least
    half as significant as the best one the reddest is taken: passive members are redder than the field. A crowd that
    fills its window evenly is no sequence.
    """
    pivot = float(np.mean(mag_range))
    use = np.isfinite(colour) & (mag > mag_range[0]) & (mag < mag_range[1])
    flat = np.sort((colour - slope * (mag - pivot))[use])
    if len(flat) < _FEWEST_MEMBERS:
        return None
    nodes = np.arange(np.floor(flat[0] * 50.0), np.ceil(flat[-1] * 50.0) + 1) / 50.0

    def count_within(reach: float) -> np.ndarray:
        return np.searchsorted(flat, nodes + reach, "right") - np.searchsorted(flat, nodes - reach)

    crowd, sides = count_within(0.06), (count_within(0.3) - count_within(0.12)) / 3.0
    significance = np.where(crowd >= _FEWEST_MEMBERS, (crowd - sides) / np.sqrt(np.maximum(sides, 1.0)), 0.0)
    if significance.max() < _RED_SEQUENCE_SIGMA:
        return None
    last = int(np.flatnonzero(significance >= 0.5 * significance.max())[-1])
    nearby = np.abs(nodes - nodes[last]) < 0.12
    best = int(np.argmax(np.where(nearby, significance, 0.0)))
    centre = float(nodes[best])
    for _ in range(3):
        centre = float(np.median(flat[np.abs(flat - centre) < 0.08]))
    width = 1.4826 * float(np.median(np.abs(flat - centre)[np.abs(flat - centre) < 0.1]))
    if width > _WIDEST_SEQUENCE:
        return None
    return RedSequence(centre, slope, max(width, 0.01), pivot, float(significance[best]))


def calibrate_shears(table: pd.DataFrame, ra0_deg: float, dec0_deg: float) -> ShearSample:
    """Calibrated shears of a catalogue on the tangent plane about (ra0, dec0).

    Parameters
    ----------
    table : columns ra, dec [deg], e1, e2 (distortion, local east-north frame), weight, response

    Raises
    ------
    NoWork
        If there is no galaxy.
    """
    if not len(table):
        raise NoWork("no background galaxy with a measured shape; see the cuts of shear_catalogs")
    x, y, north = project_positions(table["ra"].to_numpy(), table["dec"].to_numpy(), ra0_deg, dec0_deg)
    weight = table["weight"].to_numpy(float)
    response = float(np.sum(weight * table["response"].to_numpy()) / np.sum(weight))
    e1, e2 = turn_to_plane(table["e1"].to_numpy(), table["e2"].to_numpy(), north)
    return ShearSample(x, y, e1 / response, e2 / response, weight)
