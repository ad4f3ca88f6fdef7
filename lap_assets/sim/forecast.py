"""What to expect from the truth: which galaxies can be measured, and the aperture-mass S/N at the lens they give.

Computed from true shears and shapes alone; no image is measured here.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from lap_assets.sim.design import BANDS, NOMINAL_READ_NOISE_E, PIXEL_SCALE_ARCSEC, SurveyDesign
from lap_assets.sim.lens import predict_snr, project_tangent
from lap_assets.sim.sky import Sky
from lap_assets.sim.stamps import draw_stamps, tabulate_profile

RADII_ARCMIN = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
SNR_CUT = 10.0
_FWHM_ARCSEC = 1.0
_APERTURE_PX = 1.4 / PIXEL_SCALE_ARCSEC
_TYPICAL_TRANSPARENCY = 0.93
_BLEND_ARCSEC = 2.0


def estimate_stack_snr(design: SurveyDesign, galaxies: pd.DataFrame) -> np.ndarray:
    """(n,) S/N in the r-band stack of the light of galaxies within 1.4", for exponential disks in 1.0" seeing."""
    band = BANDS["r"]
    exposures = sum(design.visits)
    flux = 10.0 ** (0.4 * (band.zero_point_mag - galaxies["mag_r"].to_numpy())) * _TYPICAL_TRANSPARENCY
    flux *= _enclosed_light(galaxies["re_arcsec"].to_numpy())
    variance = np.pi * _APERTURE_PX**2 * (band.sky_e + NOMINAL_READ_NOISE_E**2) + flux
    return flux * np.sqrt(exposures) / np.sqrt(variance)


def _enclosed_light(re_arcsec: np.ndarray) -> np.ndarray:
    """(n,) fraction of a galaxy's light within the aperture."""
    grid = np.linspace(0.1, 4.0, 40)
    maps = np.eye(2)[None] / PIXEL_SCALE_ARCSEC
    zero, size = np.zeros(len(grid)), 128
    stamps = draw_stamps(
        size, zero, zero, zero + 1.0, tabulate_profile("moffat", 3.3), maps * np.full((len(grid), 1, 1), _FWHM_ARCSEC),
        tabulate_profile("sersic", 1.0), maps * grid[:, None, None],
    )  # fmt: skip
    offset = np.arange(size) - size // 2
    inside = np.hypot(offset[None, :], offset[:, None]) < _APERTURE_PX
    return np.interp(re_arcsec, grid, stamps[:, inside].sum(axis=1))


def select_measurable(design: SurveyDesign, sky: Sky) -> np.ndarray:
    """(n,) bool over `sky.galaxies`: background, in the mosaic, S/N > 10 in r, not blended with a brighter object."""
    galaxies, lens = sky.galaxies, sky.lens
    everything = pd.concat([galaxies[["ra", "dec", "mag_r"]], sky.stars[["ra", "dec", "mag_r"]]], ignore_index=True)
    east, north = project_tangent(
        everything["ra"].to_numpy(), everything["dec"].to_numpy(), design.ra_deg, design.dec_deg
    )
    tree = cKDTree(np.stack([east, north], axis=1) * 3600.0)
    pairs = tree.query_pairs(_BLEND_ARCSEC, output_type="ndarray")
    mag = everything["mag_r"].to_numpy()
    blended = np.zeros(len(everything), bool)
    fainter = np.where(mag[pairs[:, 0]] > mag[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    blended[fainter] = True
    half = design.half_field_px * PIXEL_SCALE_ARCSEC / 3600.0
    inside = np.zeros(len(galaxies), bool)
    for centre_east, centre_north in design.pointings_arcmin:
        dx, dy = east[: len(galaxies)] - centre_east / 60.0, north[: len(galaxies)] - centre_north / 60.0
        inside |= np.maximum(np.abs(dx), np.abs(dy)) < half
    background = galaxies["z"].to_numpy() > lens.design.z + 0.1
    return inside & background & ~blended[: len(galaxies)] & (estimate_stack_snr(design, galaxies) > SNR_CUT)


def summarize_lens(design: SurveyDesign, sky: Sky) -> dict[str, Any]:
    """The truth about the lens for `truth/lens.json`; see `select_measurable` for the galaxies that count."""
    lens = sky.lens
    chosen = sky.galaxies[select_measurable(design, sky)]
    west, north = lens.measure_offsets(chosen["ra"].to_numpy(), chosen["dec"].to_numpy())
    radius = np.hypot(west, north)
    cos2, sin2 = (west**2 - north**2) / radius**2, 2.0 * west * north / radius**2
    tangential = -(chosen["g1"].to_numpy() * cos2 + chosen["g2"].to_numpy() * sin2)
    sigma_e = float(np.sqrt(0.5 * np.mean(chosen["e1"] ** 2 + chosen["e2"] ** 2)))
    # the source redshift whose D_ls/D_s is the mean over the sample
    grid = np.linspace(lens.design.z + 0.05, 2.0, 400)
    mean_efficiency = lens.compute_efficiency(chosen["z"].to_numpy()).mean()
    z_source = float(np.interp(mean_efficiency, lens.compute_efficiency(grid), grid))
    side = 2.0 * design.half_field_px * PIXEL_SCALE_ARCSEC / 60.0
    width = max(x for x, _ in design.pointings_arcmin) - min(x for x, _ in design.pointings_arcmin)
    return {
        "ra": lens.ra_deg, "dec": lens.dec_deg, "z": lens.design.z, "m200c_msun": lens.design.m200c_msun,
        "c200c": lens.design.c200c, "z_source": z_source, "sigma_e": sigma_e,
        "n_measurable": len(chosen), "n_measurable_per_arcmin2": len(chosen) / (side * (side + width)),
        "measurable": f"z > z_lens + 0.1, r-stack S/N > {SNR_CUT:g} in 1.4\", brighter ones beyond {_BLEND_ARCSEC:g}\"",
        "expected_snr": {f"{r:g}": predict_snr(radius, tangential, sigma_e, 60.0 * r) for r in RADII_ARCMIN},
    }  # fmt: skip
