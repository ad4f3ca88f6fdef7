"""What was taken when, and in which conditions: the frames of the survey, calibration frames included.

Drawn once from the seed; nothing here touches pixels.
"""

from dataclasses import dataclass

import numpy as np
from astropy.time import Time

from lap_assets.sim.artifacts import Trail
from lap_assets.sim.design import BANDS, SurveyDesign, make_rng
from lap_assets.sim.lens import deproject_tangent
from lap_assets.sim.optics import Pointing, Seeing

FIRST_BIAS, FIRST_FLAT, FIRST_OBJECT = 1, 21, 101
_POINTING_ERROR_ARCSEC = 3.0


@dataclass(frozen=True)
class Frame:
    """One frame; `ra_deg`, `dec_deg` are what the telescope believed, `pointing` is the truth (object frames only).

    `light_e` is the sky per pixel on the axis, or the lamp's; `sky_slope` its relative change per half field.
    """

    number: int
    kind: str
    band: str
    night: str
    mjd: float
    exptime_s: float
    ra_deg: float
    dec_deg: float
    airmass: float = 1.0
    object: str = ""
    comment: str = ""
    light_e: float = 0.0
    sky_slope: tuple[float, float] = (0.0, 0.0)
    transparency: float = 1.0
    pointing: Pointing | None = None
    seeing: Seeing | None = None
    trail: Trail | None = None
    transients: bool = False

    @property
    def zero_point_mag(self) -> float:
        """Mag of 1 flat-fielded electron."""
        return BANDS[self.band].zero_point_mag + 2.5 * np.log10(self.transparency)


def frame_id(design: SurveyDesign, frame: Frame) -> str:
    """Exposure id, e.g. `simcam-000101`."""
    return f"{design.camera}-{frame.number:06d}"


def plan_frames(design: SurveyDesign) -> list[Frame]:
    """All frames in order of their numbers: biases, flats, then night by night."""
    return [*_plan_calibrations(design), *_plan_objects(design)]


def _plan_calibrations(design: SurveyDesign) -> list[Frame]:
    night = design.nights[0]
    start = Time(night).mjd + 0.85  # the afternoon before the first night
    rng = make_rng(design.seed, "lamp")
    frames = [
        Frame(FIRST_BIAS + i, "bias", "", night, start + i / 1440.0, 0.0, design.ra_deg, design.dec_deg, object="bias")
        for i in range(design.bias_frames)
    ]
    count = design.flat_frames
    for i, band in enumerate(np.repeat(np.array(design.bands), count)):
        lamp = BANDS[str(band)].flat_e * rng.uniform(0.97, 1.03)
        frames.append(
            Frame(
                FIRST_FLAT + i, "flat", str(band), night, start + 0.01 + i / 1440.0, 8.0, design.ra_deg, design.dec_deg,
                object=f"flat {band}", light_e=lamp,
            )
        )  # fmt: skip
    return frames


def _plan_objects(design: SurveyDesign) -> list[Frame]:
    dithers = _draw_dithers(design)
    streaked = _choose_streaked(design)
    frames: list[Frame] = []
    counts = dict.fromkeys(range(len(design.pointings_arcmin)), 0)
    for night, visits in zip(design.nights, design.visits, strict=True):
        mjd = Time(night).mjd + 1.0 + 2.0 / 24.0
        for visit in range(visits):
            for field, centre in enumerate(design.pointings_arcmin):
                # the bands share the dither of a visit
                dither = dithers[field][counts[field]]
                counts[field] += 1
                for band in design.bands:
                    number = FIRST_OBJECT + len(frames)
                    comment = f"visit {visit + 1} of {visits}"
                    name = f"sim{design.name}-{field}"
                    frames.append(
                        _draw_conditions(design, number, band, night, mjd, centre, dither, name, comment, streaked)
                    )
                    mjd += (BANDS[band].exptime_s + 40.0) / 86400.0
    return frames


def _draw_dithers(design: SurveyDesign) -> list[list[tuple[float, float]]]:
    """(east, north) [arcsec] of each visit of each pointing: around a ring, so that no gap stays at one place."""
    rng = make_rng(design.seed, "dithers")
    total = sum(design.visits)
    fields = []
    for _ in design.pointings_arcmin:
        start = rng.uniform(0.0, 2.0 * np.pi)
        # steps of a golden-angle kind keep the two visits of a night apart
        angle = start + 2.0 * np.pi * np.arange(total) * 2.0 / (2 * (total // 2) + 1)
        radius = design.dither_arcsec * rng.uniform(0.75, 1.0, total)
        fields.append([(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radius, angle, strict=True)])
    return fields


def _choose_streaked(design: SurveyDesign) -> int:
    """Number of the one exposure with a satellite trail: in r, not in the last night; -1 for none."""
    if not design.streak:
        return -1
    before = sum(design.visits[:-1]) * len(design.pointings_arcmin)
    visit = int(make_rng(design.seed, "streak").integers(before))
    return FIRST_OBJECT + visit * len(design.bands) + design.bands.index("r")


def _draw_conditions(
    design: SurveyDesign, number: int, band: str, night: str, mjd: float, centre: tuple[float, float],
    dither: tuple[float, float], name: str, comment: str, streaked: int,
) -> Frame:  # fmt: skip
    rng = make_rng(design.seed, "conditions", number)
    east, north = centre[0] / 60.0 + dither[0] / 3600.0, centre[1] / 60.0 + dither[1] / 3600.0
    ra, dec = (float(v) for v in deproject_tangent(east, north, design.ra_deg, design.dec_deg))
    error = np.clip(rng.normal(0.0, _POINTING_ERROR_ARCSEC, 2), -8.0, 8.0) / 3600.0
    true_ra, true_dec = deproject_tangent(error[0], error[1], ra, dec)
    pointing = Pointing(
        float(true_ra), float(true_dec), float(np.radians(rng.uniform(-0.06, 0.06))), float(rng.normal(0.0, 2e-5))
    )
    seeing = Seeing(
        beta=float(rng.uniform(3.0, 3.6)), fwhm_arcsec=float(rng.uniform(0.85, 1.17)),
        e=tuple(float(v) for v in rng.normal(0.0, 0.018, 2)),
        fwhm_gradient=tuple(float(v) for v in (rng.normal(0.0, 0.01), rng.normal(0.0, 0.01), rng.uniform(0.0, 0.02))),
        e_gradient=tuple(float(v) for v in rng.normal(0.0, 0.007, 4)),
    )  # fmt: skip
    return Frame(
        number, "object", band, night, mjd, BANDS[band].exptime_s, ra, dec, airmass=float(rng.uniform(1.05, 1.4)),
        object=name, comment=comment, light_e=BANDS[band].sky_e * float(rng.uniform(0.9, 1.1)),
        sky_slope=tuple(float(v) for v in rng.normal(0.0, 0.008, 2)), transparency=float(rng.uniform(0.85, 1.0)),
        pointing=pointing, seeing=seeing, trail=_draw_trail(design) if number == streaked else None,
        transients=night == design.nights[-1],
    )  # fmt: skip


def _draw_trail(design: SurveyDesign) -> Trail:
    """A trail that passes the axis at a distance, slanted, so that it crosses three chips."""
    rng = make_rng(design.seed, "trail")
    angle = float(np.radians(rng.uniform(30.0, 60.0)) + 0.5 * np.pi * rng.integers(2))
    distance = float(rng.uniform(0.15, 0.35) * design.half_field_px * rng.choice([-1.0, 1.0]))
    return Trail(-distance * float(np.sin(angle)), distance * float(np.cos(angle)), angle, float(rng.uniform(400, 800)))
