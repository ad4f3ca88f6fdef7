"""Benchmarks of warps: seconds beside SWarp and reproject, where they are spent, and what resampling does to stars.

Chips and the true WCS of the kernel's rows are those SWarp is given (`cal/`, `truth/`); the other rows go through the
stage, from published chips to published warps. Stacks and differences are the other modules'.
"""

import hashlib
import os
from collections.abc import Callable
from functools import cache

import numpy as np
import sep
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import maximum_filter

from lap_assets.model.ids import join_key
from lap_assets.model.image import UNUSABLE, Mask, MaskedImage
from lap_assets.pipeline.engine import Session
from lap_assets.pipeline.stages import STAGES
from lap_assets.pipeline.task import Task
from lap_assets.science.background import evaluate_background
from lap_assets.science.pixel_map import PixelMap, map_pixels
from lap_assets.science.warp import make_empty_warp, warp_chip
from lap_assets_tests.benchmarks import engine_data
from lap_assets_tests.benchmarks.engine_peers import (
    find_work,
    has_swarp,
    list_chips,
    time_resampling,
    time_swarp,
    time_work,
)
from lap_assets_tests.benchmarks.exposures import (
    CHIPS,
    READ_NOISE_E,
    TIMED,
    locate_truth,
    read_chip,
)
from lap_assets_tests.benchmarks.results import Row

PART, COMMAND = "engine.warp", "make bench ONLY=engine.warp"
STAR_MAG, RADIUS_PX = (15.0, 18.0), 5.0
CUT_PX = 700  # side of the piece on which white noise is resampled, too


def bench_warp() -> list[Row]:
    """Warps: kernel and published warp per CCD beside SWarp and reproject, star fluxes, what the time is spent on."""
    return [*judge_speed(), *judge_published(), *judge_stars(), *compare_reproject()]


# ---- the kernel


@cache
def open_cal_chip(exposure: int, chip: int) -> MaskedImage:
    """A chip as SWarp is given it, with mask and variance."""
    electrons, saturated, broken = read_chip(exposure, chip)
    mask = np.where(saturated, np.int16(Mask.SATURATED), np.int16(0)) | np.where(
        broken, np.int16(Mask.BAD), np.int16(0)
    )
    return MaskedImage(electrons, mask, np.maximum(electrons, 1.0) + np.float32(READ_NOISE_E**2))


@cache
def find_target() -> tuple[WCS, tuple[int, int]]:
    """WCS and shape of SWarp's output."""
    header = next(iter(engine_data.CELLS[engine_data.ONE].skycells.values())).header()
    return WCS(header), (header["NAXIS2"], header["NAXIS1"])


def map_chip(exposure: int, chip: int) -> PixelMap:
    target, shape = find_target()
    found = map_pixels(engine_data.find_true_wcs(exposure, chip), (4096, 2048), target, shape)
    assert found is not None, "every chip reaches the skycell"
    return found


def judge_speed() -> list[Row]:
    """CPU seconds of the kernel per CCD: the mean over the eight CCDs of an exposure, as SWarp's."""
    warp = make_empty_warp(find_target()[1])
    kernel, mapping = [], []
    for chip in CHIPS:
        image, pixel_map = open_cal_chip(0, chip), map_chip(0, chip)

        def clear() -> None:
            warp.mask[:] = int(Mask.NO_DATA)

        kernel.append(time_work(lambda i=image, m=pixel_map: warp_chip(warp, i.sci, i.mask, i.var, m), clear).cpu)
        mapping.append(time_work(lambda c=chip: map_chip(0, c)).cpu)
    theirs, ours = time_resampling(), float(np.mean(kernel))
    return [
        Row(
            f"{PART}.kernel_cpu", ours, "s", "<= 0.118", f"mean of 8 CCDs; {theirs.cpu:.2f} s {theirs.source}", COMMAND
        ),
        Row(f"{PART}.kernel_speed", theirs.cpu / ours, "x", ">= 7", f"CPU of a CCD within 8; {theirs.source}", COMMAND),
        Row(f"{PART}.map_cpu", float(np.mean(mapping)), "s", "", "pixel map of a CCD, its check included", COMMAND),
    ]


# ---- file to published


def judge_published() -> list[Row]:
    """Seconds per CCD from published chips to a published warp in a warm process, and what they are spent on."""
    session = engine_data.prepare()
    partition = join_key(engine_data.read_exposures()[0].id, engine_data.ONE)
    (task,) = STAGES["warps"].plan(session.survey, session.repo, session.settings, "main", partition)
    published = engine_data.time_unit(session, "warps", task)
    made = time_work(lambda: STAGES["warps"].make(task, session.repo), repeat=2)
    theirs, n = time_resampling(), len(CHIPS)
    parts = {name: work() / n for name, work in list_parts(session, task).items()}
    parts["rest of make"] = made.cpu / n - sum(parts[name] for name in ("read", "sky", "map", "resample"))
    parts["publish"] = (published.cpu - made.cpu) / n
    spent = "CPU: " + ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items())
    ours = published.cpu / n
    cpu, wall = (f"{seconds:.2f} s, {theirs.source}" for seconds in (theirs.cpu, theirs.wall))
    return [
        Row(f"{PART}.published_cpu", ours, "s", "<= 0.277", spent, COMMAND),
        Row(f"{PART}.published_speed", theirs.cpu / ours, "x", ">= 3", f"CPU; {cpu}", COMMAND),
        Row(f"{PART}.published_wall", published.wall / n, "s", "", wall, COMMAND),
        Row(f"{PART}.published_wall_speed", theirs.wall * n / published.wall, "x", "", f"wall; {wall}", COMMAND),
    ]  # fmt: skip


def list_parts(session: Session, task: Task) -> dict[str, Callable[[], float]]:
    """What is done to the chips of an exposure, each part alone: CPU seconds by name."""
    repo, pins = session.repo, task.pins("chips")
    solution = task.pins("solutions")[0]
    meshes = {name: mesh for name, (mesh, _) in repo.read_planes(solution, "backgrounds.fits").items()}
    image = repo.read_image(pins[0])
    warp = make_empty_warp(find_target()[1])
    cell = np.zeros(warp.shape, np.float32)
    raw = memoryview(cell).cast("B")
    maps = {chip: map_chip(0, chip) for chip in CHIPS}
    place = session.repo.root / "written"

    def write() -> None:
        with place.open("wb", buffering=0) as stream:
            for _ in range(2):
                stream.write(raw)
            stream.write(raw[: len(raw) // 2])
            os.fsync(stream.fileno())

    def resample() -> None:
        warp.mask[:] = int(Mask.NO_DATA)
        for pixel_map in maps.values():
            warp_chip(warp, image.sci, image.mask, image.var, pixel_map)

    return {
        "read": lambda: time_work(lambda: [repo.read_image(pin) for pin in pins]).cpu,
        "sky": lambda: time_work(lambda: [evaluate_background(m, image.shape) for m in meshes.values()]).cpu,
        "map": lambda: time_work(lambda: [map_chip(0, chip) for chip in CHIPS]).cpu,
        "resample": lambda: time_work(resample).cpu,
        "one SHA-256 of it": lambda: time_work(lambda: [hashlib.sha256(raw) for _ in range(5)]).cpu / 2.0,
        "write+fsync of it": lambda: time_work(write).cpu,
    }


# ---- stars


def judge_stars() -> list[Row]:
    """Scatter of star fluxes on the warp over those on the chip, ours and SWarp's, one chip."""
    target, _ = find_target()
    ours = make_empty_warp(find_target()[1])
    image = open_cal_chip(*TIMED)
    warp_chip(ours, image.sci, image.mask, image.var, map_chip(*TIMED))
    median, scatter, n = compare_fluxes(image, ours.sci, target)
    told = f"{n} stars of 15-18 mag, warp over chip, r = 5 px; SWarp 0.56e-3, recorded"
    rows = [
        Row(f"{PART}.star_scatter", scatter, "", "<= 0.6e-3", told, COMMAND),
        Row(f"{PART}.star_offset", abs(median - 1.0), "", "<= 1e-3", "flux conserved", COMMAND),
    ]
    if has_swarp():
        place = list_chips(TIMED[0])[TIMED[1]]
        time_swarp("-COMBINE N -SUBTRACT_BACK N -NTHREADS 1", [place], 1, warm_up=False)
        told = find_work() / f"{place.stem}.resamp.fits"
        theirs, header = fits.getdata(told).astype(np.float32), fits.getheader(told)
        median, scatter, n = compare_fluxes(image, theirs, WCS(header))
        rows.append(Row(f"{PART}.star_scatter_swarp", scatter, "", "", f"SWarp, this session, {n} stars", COMMAND))
    return rows


def compare_fluxes(image: MaskedImage, warped: np.ndarray, target: WCS) -> tuple[float, float, int]:
    """Median and robust scatter of aperture fluxes of bright stars on a warp over those on the chip."""
    x, y, mag, kind = locate_truth(*TIMED)
    stars = (kind == 0) & (mag > STAR_MAG[0]) & (mag < STAR_MAG[1])
    x, y = x[stars], y[stars]
    u, v = target.all_world2pix(*engine_data.find_true_wcs(*TIMED).all_pix2world(x, y, 0), 0)
    ny, nx = warped.shape
    edge = 3 * RADIUS_PX
    touched = maximum_filter(((image.mask & int(UNUSABLE)) != 0).astype(np.uint8), size=int(2 * RADIUS_PX + 8))
    inside = (u > edge) & (v > edge) & (u < nx - edge) & (v < ny - edge) & (x > edge) & (x < 2048 - edge)
    inside &= touched[y.astype(int), x.astype(int)] == 0
    fluxes = []
    for plane, px, py in ((image.sci, x[inside], y[inside]), (warped, u[inside], v[inside])):
        pixels = np.ascontiguousarray(plane)
        annulus = RADIUS_PX + 4, RADIUS_PX + 12
        ring, _, _ = sep.sum_circann(pixels, px, py, *annulus, subpix=0)
        sky = ring / (np.pi * (annulus[1] ** 2 - annulus[0] ** 2))
        fluxes.append(sep.sum_circle(pixels, px, py, RADIUS_PX, subpix=0)[0] - sky * np.pi * RADIUS_PX**2)
    ratio = fluxes[1] / fluxes[0]
    median = float(np.median(ratio))
    return median, 1.4826 * float(np.median(np.abs(ratio - median))), len(ratio)


# ---- reproject


def compare_reproject() -> list[Row]:
    """One CCD in process beside reproject_interp bicubic, in time and in what comes out."""
    from reproject import reproject_interp

    target, _ = find_target()
    image, pixel_map = open_cal_chip(*TIMED), map_chip(*TIMED)
    box = np.s_[pixel_map.y0 : pixel_map.y1, pixel_map.x0 : pixel_map.x1]
    warp = make_empty_warp(find_target()[1])

    def work() -> None:
        warp.mask[:] = int(Mask.NO_DATA)
        warp_chip(warp, image.sci, image.mask, image.var, map_chip(*TIMED))

    ours = time_work(work).cpu
    source, part = engine_data.find_true_wcs(*TIMED), target[box]
    size = (pixel_map.y1 - pixel_map.y0, pixel_map.x1 - pixel_map.x0)
    theirs = time_work(
        lambda: reproject_interp((image.sci, source), part, shape_out=size, order="bicubic", return_footprint=False),
        repeat=1,
    ).cpu
    spread, expected = compare_pixels(image, pixel_map)
    peer = f"{theirs:.2f} s, reproject_interp bicubic, in process, this session"
    return [
        Row(f"{PART}.reproject_speed", theirs / ours, "x", ">= 25", f"CPU; {peer}", COMMAND),
        Row(f"{PART}.reproject_difference", spread, "sigma", "", "sky pixels, ours - reproject's", COMMAND),
        Row(f"{PART}.reproject_excess", spread / expected, "", "<= 1.05",
            f"over that of the kernels on white noise, {expected:.3f} sigma", COMMAND),
    ]  # fmt: skip


def compare_pixels(image: MaskedImage, pixel_map: PixelMap) -> tuple[float, float]:
    """Robust scatter of ours minus reproject's over the sky noise, on the chip and on white noise in its place."""
    from reproject import reproject_interp

    target, shape = find_target()
    source = engine_data.find_true_wcs(*TIMED)
    x0, y0 = (pixel_map.x0 + pixel_map.x1 - CUT_PX) // 2, (pixel_map.y0 + pixel_map.y1 - CUT_PX) // 2
    box = np.s_[y0 : y0 + CUT_PX, x0 : x0 + CUT_PX]
    noise = np.random.default_rng(1).standard_normal(image.shape, dtype=np.float32)
    white = MaskedImage(noise, np.zeros_like(image.mask), np.ones_like(noise))
    spreads = []
    for one in (image, white):
        warp = make_empty_warp(shape)
        warp_chip(warp, one.sci, one.mask, one.var, pixel_map)
        peer = reproject_interp(
            (one.sci, source), target[box], shape_out=(CUT_PX, CUT_PX), order="bicubic", return_footprint=False
        )
        good = (warp.mask[box] == 0) & np.isfinite(peer)
        # reproject interpolates, ours conserves flux: the ratio is the local area
        area = np.median(warp.sci[box][good] / peer[good]) if one is image else np.float32(1.0)
        away = (warp.sci[box] / area - peer)[good]
        level = np.median(one.sci)
        sigma = 1.4826 * np.median(np.abs(one.sci[::7, ::7] - level))
        spreads.append(1.4826 * float(np.median(np.abs(away - np.median(away)))) / float(sigma))
    return spreads[0], spreads[1]


BENCHMARKS = {"engine.warp": bench_warp}
