"""Benchmarks of stacks: seconds beside SWarp CLIPPED, memory, and how good the stack of 48 CCDs is, by the truth.

The warps hold cosmic rays and the satellite's trail, as SWarp's inputs do: what is gone from the stack, the stack has
rejected. Warps themselves and differences are the other modules'.
"""

from functools import cache

import numpy as np
import pandas as pd
from astropy.io import fits
from scipy.ndimage import binary_dilation, uniform_filter

from lap_assets.model.ids import DataId, join_key
from lap_assets.model.image import NO_WEIGHT, MaskedImage
from lap_assets.pipeline.stages import STAGES
from lap_assets_tests.benchmarks import engine_data, engine_truth
from lap_assets_tests.benchmarks.engine_peers import combine_clipped, time_everything
from lap_assets_tests.benchmarks.engine_process import run_process
from lap_assets_tests.benchmarks.results import Row

PART, COMMAND = "engine.stack", "make bench ONLY=engine.stack"
APERTURE_PX, STAR_PX, RING_PX = 4.6, 13.0, (24.0, 48.0)
LEFT_SIGMA = 2.0  # of the stack: what a pixel of one exposure may leave, its own noise included
STARS_MAG, CORES_MAG = (15.0, 16.5), (13.0, 21.0)
CELL_BAND = join_key(engine_data.ONE, engine_data.BAND)


def bench_stack() -> list[Row]:
    """Stack of 48 published CCDs: time beside SWarp CLIPPED, memory, noise, stars, cores, cosmic rays, the trail."""
    return [*judge_time(), *judge_noise(), *judge_photometry(), *judge_cores(), *judge_rejection()]


def bench_everything() -> list[Row]:
    """48 CCDs to a published stack on two processes beside SWarp on two threads: wall seconds."""
    part, command = "engine.everything", "make bench ONLY=engine.everything"
    engine_data.prepare()
    root = engine_data.copy_repository("everything")
    ours = run_process("products", root, "main", engine_data.ONE, "2", "warps", "stacks")
    theirs, wall = time_everything(), sum(ours["wall"].values())
    spent = ", ".join(f"{name} {seconds:.2f}" for name, seconds in ours["wall"].items())
    return [
        Row(f"{part}.wall", wall, "s", "", f"2 processes, their start included: {spent}", command),
        Row(f"{part}.whole", ours["whole"], "s", "", "start of the first process and its imports included", command),
        Row(f"{part}.speed", theirs.wall / ours["whole"], "x", ">= 5",
            f"wall; {theirs.wall:.1f} s (CPU {theirs.cpu:.1f}), {theirs.source}", command),
    ]  # fmt: skip


# ---- time and memory


def judge_time() -> list[Row]:
    """CPU seconds of published warps to the published stack in a warm process, and the peak memory of a fresh one."""
    session = engine_data.prepare_warps(engine_data.ONE, "hits")
    (task,) = STAGES["stacks"].plan(session.survey, session.repo, session.settings, "hits", CELL_BAND)
    ours = engine_data.time_unit(session, "stacks", task, repeat=2)
    engine_data.forget(session, task.data_id)
    alone = run_process("products", session.repo.root, "hits", engine_data.ONE, "0", "stacks")
    theirs, _ = combine_clipped()
    cpu, wall = (f"{seconds:.1f} s, {theirs.source}" for seconds in (theirs.cpu, theirs.wall))
    cpu += f" (user {theirs.user:.1f})" if theirs.user else ""
    return [
        Row(f"{PART}.cpu", ours.cpu, "s", "", f"6 warps of 8 CCDs, read, combined, published; {cpu}", COMMAND),
        Row(f"{PART}.speed", theirs.cpu / ours.cpu, "x", ">= 5", f"CPU; {cpu}", COMMAND),
        Row(f"{PART}.wall", ours.wall, "s", "", wall, COMMAND),
        Row(f"{PART}.wall_speed", theirs.wall / ours.wall, "x", "", f"wall; {wall}", COMMAND),
        Row(f"{PART}.peak_memory", alone["peak_mib"], "MiB", "<= 1536", "a process of its own", COMMAND),
    ]


# ---- what comes out


@cache
def read_stack() -> tuple[MaskedImage, pd.DataFrame]:
    """The published stack of the warps that hold cosmic rays and the trail, and the table of its inputs."""
    session = engine_data.prepare_warps(engine_data.ONE, "hits")
    engine_data.make(session, "stacks", [CELL_BAND])
    (data_id,) = session.repo.units("hits", "stacks", CELL_BAND)
    return session.repo.read_image(data_id), session.repo.read_table(data_id, "inputs.parquet")


@cache
def read_warp(number: int) -> MaskedImage:
    """The warp of an exposure that holds cosmic rays."""
    session = engine_data.prepare_warps(engine_data.ONE, "hits")
    partition = join_key(engine_data.read_exposures()[number].id, engine_data.ONE)
    return session.repo.read_image(DataId("hits", "warps", partition, "00"), planes=("SCI", "MASK", "VAR"))


def find_good(image: MaskedImage) -> np.ndarray:
    return ((image.mask & int(NO_WEIGHT)) == 0) & (image.var > 0)


@cache
def count_good() -> np.ndarray:
    """(ny, nx) number of warps with a good pixel."""
    return sum(find_good(read_warp(number)).astype(np.int16) for number in range(6))


@cache
def read_swarp() -> tuple[np.ndarray, str] | None:
    """SWarp's CLIPPED image on our flux scale, by the stars of both, and what is said of it."""
    _, place = combine_clipped()
    if place is None:
        return None
    theirs = fits.getdata(place).astype(np.float32)
    places = engine_truth.choose_stars(*STARS_MAG, STAR_PX)[["x", "y"]].to_numpy()
    ours, peer = (
        engine_truth.measure_stars(plane, places, STAR_PX, RING_PX) for plane in (read_stack()[0].sci, theirs)
    )
    known = (ours > 0) & (peer > 0)
    return theirs * np.float32(np.median(ours[known] / peer[known])), "SWarp CLIPPED, this session"


def judge_noise() -> list[Row]:
    """Scatter of apertures on empty sky over that of the best weighted mean of the warps, ours and SWarp's."""
    places = engine_truth.find_empty_sky(APERTURE_PX)
    ivar, complete = np.zeros(len(places)), np.ones(len(places), bool)
    for number in range(6):
        warp = read_warp(number)
        lost = engine_truth.sum_apertures(~find_good(warp), places, APERTURE_PX)
        var = engine_truth.sum_apertures(warp.var, places, APERTURE_PX) * warp.header["NOISECOV"]
        whole = lost == 0
        ivar[whole] += 1.0 / var[whole]
        complete &= whole
    ours = compare_noise(read_stack()[0].sci, places[complete], ivar[complete])
    found, told = read_swarp(), f"{complete.sum()} apertures of {2 * APERTURE_PX * 0.26:.1f} arcsec"
    if found is None:
        return [Row(f"{PART}.aperture_rms", ours, "x ideal", "<= 1.18", f"{told}; SWarp 1.18, recorded", COMMAND)]
    theirs = compare_noise(found[0], places[complete], ivar[complete])
    return [
        Row(f"{PART}.aperture_rms", ours, "x ideal", f"<= {theirs:.4f}", f"{told}; {found[1]} {theirs:.3f}", COMMAND),
        Row(f"{PART}.aperture_rms_swarp", theirs, "x ideal", "", f"{found[1]}; recorded 1.18", COMMAND),
    ]


def compare_noise(plane: np.ndarray, places: np.ndarray, ivar: np.ndarray) -> float:
    """Rms of aperture sums over the ideal, those beyond 5 sigma left out."""
    pull = engine_truth.sum_apertures(plane, places, APERTURE_PX) * np.sqrt(ivar)
    away = pull - np.median(pull)
    return float(np.std(away[np.abs(away) < 5 * 1.4826 * np.median(np.abs(away))]))


def judge_photometry() -> list[Row]:
    """Scatter of the magnitudes of bright stars against the truth."""
    stars = engine_truth.choose_stars(*STARS_MAG, 1.4 * STAR_PX)
    whole = uniform_filter((count_good() == 6).astype(np.float32), 2 * int(STAR_PX) + 1) > 0.9999
    stars = stars[whole[stars.y.round().astype(int), stars.x.round().astype(int)]]
    rows, places = [], stars[["x", "y"]].to_numpy()
    found = read_swarp()
    for name, plane in (("", read_stack()[0].sci), *([("_swarp", found[0])] if found else [])):
        flux = engine_truth.measure_stars(plane, places, STAR_PX, RING_PX)
        offset = -2.5 * np.log10(flux) - stars.mag.to_numpy()
        offset -= np.median(offset)
        kept = np.abs(offset) < 0.02
        told = f"{kept.sum()} of {len(stars)} stars of 15-16.5 mag, truth" + (f"; {found[1]}" if name else "")
        target = "" if name else "<= 2.5"
        rows.append(Row(f"{PART}.star_scatter{name}", 1e3 * float(offset[kept].std()), "mmag", target, told, COMMAND))
    return rows


def judge_cores() -> list[Row]:
    """Stars with an input missing in their core (3 × 3 px) that had good pixels there and was not hit."""
    stack, _ = read_stack()
    stars = engine_truth.choose_stars(*CORES_MAG)
    hit = np.zeros(stack.shape, bool)
    for number in range(6):
        mark(hit, engine_truth.locate_hits(number))
    mark(hit, engine_truth.locate_trail())
    hit = binary_dilation(hit, iterations=6)
    x, y = stars.x.round().astype(int).to_numpy(), stars.y.round().astype(int).to_numpy()
    lost, seen, mags = 0, 0, []
    for u, v, mag in zip(x, y, stars.mag, strict=True):
        core = np.s_[v - 1 : v + 2, u - 1 : u + 2]
        if hit[core].any() or not count_good()[core].all():
            continue
        seen += 1
        if (stack.planes["NINPUT"][core] < count_good()[core]).any():
            lost += 1
            mags.append(float(mag))
    told = f"of {seen} stars of 13-21 mag" + (f"; brightest {min(mags):.1f} mag" if mags else "")
    return [Row(f"{PART}.cores_clipped", lost, "stars", "<= 0", f"{told}; seeing 0.85-1.2 arcsec", COMMAND)]


def mark(plane: np.ndarray, places: np.ndarray) -> None:
    """Set the pixels nearest to some places."""
    plane[places[:, 1].round().astype(int), places[:, 0].round().astype(int)] = True


def judge_rejection() -> list[Row]:
    """True pixels of cosmic rays and of the trail: how many are gone from the stack, and what they leave there."""
    hits = np.sum([judge_pixels(number, engine_truth.locate_hits(number)) for number in range(6)], axis=0).tolist()
    trail = judge_pixels(engine_truth.TRAIL_EXPOSURE, engine_truth.locate_trail())
    rows = []
    for name, (gone, rejected, left, total) in (("hits", hits), ("trail", trail)):
        told = f"{total:.0f} true pixels on good ones; rejected, or leaving less than {LEFT_SIGMA:g} sigma of the stack"
        rows += [
            Row(f"{PART}.{name}_gone", gone / total, "", ">= 0.99", told, COMMAND),
            Row(f"{PART}.{name}_rejected", rejected / total, "", "", "of these rejected", COMMAND),
            Row(
                f"{PART}.{name}_left", left / total, "sigma", "", "mean of what is left, of the stack's noise", COMMAND
            ),
        ]
    return rows


def judge_pixels(number: int, places: np.ndarray) -> tuple[float, float, float, float]:
    """Pixels of an exposure that are gone, of these rejected; the sum of what is left in sigma; and all of them."""
    stack, inputs = read_stack()
    warp, mine = read_warp(number), inputs.exposure == engine_data.read_exposures()[number].id
    x, y = np.unique(places.round().astype(int), axis=0).T
    good = find_good(warp)[y, x] & (count_good()[y, x] >= 3)
    x, y = x[good], y[good]
    rejected = stack.planes["NINPUT"][y, x] < count_good()[y, x]
    weight = inputs.weight.to_numpy(float)
    share = float(weight[mine].sum() / weight[~mine].sum())
    left = share * (warp.sci[y, x] - stack.sci[y, x]) / np.sqrt(stack.var[y, x])
    left[rejected] = 0.0
    return float((np.abs(left) < LEFT_SIGMA).sum()), float(rejected.sum()), float(left.sum()), float(len(x))


BENCHMARKS = {"engine.stack": bench_stack, "engine.everything": bench_everything}
