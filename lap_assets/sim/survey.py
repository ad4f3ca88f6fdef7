"""The whole simulated survey on disk: frames, reference catalogue, truth.

One task per frame, seeded by (seed, frame, chip), so that bytes do not depend on the number of workers.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any

import galsim
import numpy as np
import pandas as pd

from lap_assets.errors import BadInput
from lap_assets.sim.design import CHIPS, SurveyDesign, make_design
from lap_assets.sim.detector import make_detectors
from lap_assets.sim.forecast import summarize_lens
from lap_assets.sim.optics import place_chips
from lap_assets.sim.scene import make_chip_frame, make_wcs
from lap_assets.sim.schedule import Frame, frame_id, plan_frames
from lap_assets.sim.sky import Sky, draw_sky, draw_transients
from lap_assets.sim.writer import write_bits, write_cards, write_frame, write_json, write_table

Progress = Callable[[int, int], None]
_COVER_MARGIN_PX = 20.0
_TRUTH = "truth"


def simulate_survey(
    out: Path, seed: int, size: str, workers: int = 2, progress: Progress | None = None,
    executor: Executor | None = None,
) -> None:  # fmt: skip
    """Simulate a survey into the folder `out`.

    Parameters
    ----------
    out : Path
        New or empty folder.
    seed : int
        The same seed gives the same bytes, whatever `workers`.
    size : {"tiny", "demo", "field"}
    workers : int
        Processes; 1 works in this one.
    progress : callable
        Called with (frames done, frames in all).
    executor : concurrent.futures.Executor
        Where to work instead of processes of its own.

    Raises
    ------
    BadInput
        Unknown size, impossible seed, or a folder that is not empty.
    """
    write_survey(Path(out), make_design(size, seed), workers, progress, executor)


def write_survey(
    out: Path, design: SurveyDesign, workers: int = 2, progress: Progress | None = None,
    executor: Executor | None = None,
) -> None:  # fmt: skip
    """Simulate the survey of a design; see `simulate_survey`."""
    if workers < 1:
        raise BadInput(f"workers must be at least 1, not {workers}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is not an empty folder: choose another one for the simulated survey")
    for folder in ("raw", "calibration", "refcat", "truth/wcs", "truth/cosmic_rays", "truth/defects"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    frames = plan_frames(design)
    rows: dict[int, list[dict[str, Any]]] = {}
    for done, (number, described) in enumerate(_simulate_frames(out, design, frames, workers, executor), start=1):
        rows[number] = described
        if progress is not None:
            progress(done, len(frames))
    _write_truth(out / _TRUTH, design, frames, [row for number in sorted(rows) for row in rows[number]])
    write_table(out / "refcat" / "gaia.parquet", _make_sky(design)[0].refcat)
    # last, so that its presence says the survey is complete
    write_json(out / "field.json", _describe_field(design))


def _simulate_frames(
    out: Path, design: SurveyDesign, frames: list[Frame], workers: int, executor: Executor | None
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Numbers of frames as they are done, with their rows of truth."""
    if executor is not None:
        yield from _spread_frames(out, design, frames, executor)
    elif workers == 1:
        for frame in frames:
            yield frame.number, simulate_frame(out, design, frame)
    else:
        # spawn: a forkserver of ours would be the one other pools of this process then get
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from _spread_frames(out, design, frames, pool)


def _spread_frames(
    out: Path, design: SurveyDesign, frames: list[Frame], executor: Executor
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    # frames of the sky first: they take longest
    ordered = sorted(frames, key=lambda frame: (frame.kind != "object", frame.number))
    pending = {executor.submit(simulate_frame, out, design, frame): frame.number for frame in ordered}
    try:
        for future in as_completed(pending):
            yield pending[future], future.result()
    finally:
        for future in pending:
            future.cancel()


@lru_cache(maxsize=1)
def _make_sky(design: SurveyDesign) -> tuple[Sky, pd.DataFrame]:
    """The sky and its transients, once per process."""
    sky = draw_sky(design)
    frames = [frame for frame in plan_frames(design) if frame.kind == "object"]

    def is_covered(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        # in every exposure of a pointing
        names = sorted({frame.object for frame in frames})
        groups = [[frame for frame in frames if frame.object == name] for name in names]
        return np.any([_is_on_chips(design, group, ra, dec) for group in groups], axis=0)

    return sky, draw_transients(design, sky, is_covered)


def _is_on_chips(design: SurveyDesign, frames: list[Frame], ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """(n,) bool: on some chip in each of the frames; stops at the first that has none."""
    found = np.ones(len(ra), bool)
    for frame in frames:
        if found.any():
            found &= _is_on_chip(design, frame, ra, dec)
    return found


def _is_on_chip(design: SurveyDesign, frame: Frame, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """(n,) bool: on some chip of the frame, clear of its edges."""
    found = np.zeros(len(ra), bool)
    for chip in CHIPS:
        x, y = make_wcs(design, frame, chip).sky_to_pixel(ra, dec)
        last = design.chip_px - 1 - _COVER_MARGIN_PX
        found |= (x > _COVER_MARGIN_PX) & (x < last) & (y > _COVER_MARGIN_PX) & (y < last)
    return found


def simulate_frame(out: Path, design: SurveyDesign, frame: Frame) -> list[dict[str, Any]]:
    """Simulate one frame, write its file and its truth; rows of truth, one per chip of an object frame."""
    galsim.utilities.set_omp_threads(1)
    sky, transients = _make_sky(design)
    chips, rows = {}, []
    for chip in CHIPS:
        made = make_chip_frame(design, frame, chip, sky, transients)
        chips[chip] = made.raw
        if frame.kind != "object":
            continue
        name = f"{frame_id(design, frame)}_{chip}"
        write_cards(out / _TRUTH / "wcs" / f"{name}.hdr", make_wcs(design, frame, chip).header())
        write_bits(out / _TRUTH / "cosmic_rays" / f"{name}.npz", made.cosmic_rays)
        rows.append({
            "exposure": frame_id(design, frame), "chip": chip, "band": frame.band, "night": frame.night,
            "transparency": frame.transparency, "fwhm_arcsec": made.fwhm_arcsec, "psf_e1": made.psf_e1,
            "psf_e2": made.psf_e2, "psf_beta": frame.seeing.beta, "sky_e": made.sky_e,
            "read_noise_e": made.read_noise_e, "throughput": made.throughput, "zero_point_mag": frame.zero_point_mag,
        })  # fmt: skip
    write_frame(out, design, frame, chips)
    return rows


def _write_truth(truth: Path, design: SurveyDesign, frames: list[Frame], rows: list[dict[str, Any]]) -> None:
    sky, transients = _make_sky(design)
    write_table(truth / "stars.parquet", sky.stars)
    write_table(truth / "galaxies.parquet", sky.galaxies)
    write_table(truth / "transients.parquet", transients)
    write_table(truth / "exposures.parquet", pd.DataFrame(rows))
    places = place_chips(design)
    streaks = []
    for frame in frames:
        for chip in CHIPS if frame.trail is not None else ():
            ends = frame.trail.cross(places[chip].origin, (design.chip_px, design.chip_px))
            if ends is not None:
                streaks.append((frame_id(design, frame), chip, *ends))
    write_table(truth / "streaks.parquet", pd.DataFrame(streaks, columns=["exposure", "chip", "x0", "y0", "x1", "y1"]))
    for chip, detector in make_detectors(design).items():
        write_bits(truth / "defects" / f"{chip}.npz", detector.defects)
    write_json(truth / "lens.json", summarize_lens(design, sky))


def _describe_field(design: SurveyDesign) -> dict[str, Any]:
    return {
        "camera": design.camera,
        "tessellation": {
            "kind": "local", "name": design.name, "ra_deg": design.ra_deg, "dec_deg": design.dec_deg,
            "pixel_scale_arcsec": 0.4, "skycell_px": design.skycell_px, "grid": list(design.grid),
            "overlap_px": design.overlap_px,
        },
        "refcat": "gaia", "bands": list(design.bands), "seed": design.seed, "size": design.name,
    }  # fmt: skip
