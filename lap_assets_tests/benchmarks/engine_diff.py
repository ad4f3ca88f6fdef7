"""Benchmarks of differences: exposure 5, which has the transients, minus the template of the other nights, nine tiles.

Both methods go through the stage, from published warps and stacks to the published difference with its sources.
HOTPANTS is in no registry: its seconds are recorded. Warps and stacks themselves are the other modules'.
"""

import cProfile
import json
import pstats
import time
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from lap_assets.model.ids import DataId, join_key
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.pipeline.engine import Session, make_unit
from lap_assets.pipeline.stages import STAGES
from lap_assets.pipeline.task import Task
from lap_assets.settings import DiffSettings
from lap_assets_tests.benchmarks import engine_data, engine_truth
from lap_assets_tests.benchmarks.engine_peers import has_swarp, time_resampling
from lap_assets_tests.benchmarks.exposures import CHIPS, SHARED, recall_peer
from lap_assets_tests.benchmarks.results import Row

COMMAND = "make bench ONLY=engine.diff"
METHODS = {"alard_lupton": 5, "zogy": 8}  # times faster than HOTPANTS
SCIENCE, TRAILED = 5, engine_truth.TRAIL_EXPOSURE
CELL_BAND = join_key(engine_data.TILES, engine_data.BAND)
HOTPANTS_S = 2.96  # of a tile, recorded, process and files included
TILE_PX, MATCH_PX = engine_data.SIDE_PX // 3, 4.0
APERTURE_PX = 10.0  # NOISECOV is that of large sums
INJECTED, SNR, APART_PX, EDGE_PX = 60, (6.0, 20.0), 40.0, 80.0  # per tile
BENCH_SEED, BENCH_FWHM_ARCSEC, BETA = 20260101, (0.90, 1.00, 1.10, 0.85, 1.05, 1.20), 3.5  # of make_bench.py


def bench_diff() -> list[Row]:
    """Differences by both methods: time beside HOTPANTS, transients found, false ones, sky, injected sources."""
    hotpants = recall_peer("hotpants 5.1.11, one 2000x2000 tile")
    rows = []
    for method, times in METHODS.items():
        session = prepare(method)
        rows += [
            *judge_time(session, method, hotpants, times),
            *judge_transients(session, method),
            *judge_sky(session, method),
            *judge_injected(session, method),
        ]
    return rows


@cache
def prepare(method: str, collection: str = "main") -> Session:
    """A session of the method with warps and stacks of the nine tiles."""
    root = engine_data.prepare_warps(engine_data.TILES).repo.root
    session = engine_data.open_session(root, collection, diffs=DiffSettings(method=method))
    if collection == "main":
        engine_data.make(session, "stacks", [CELL_BAND])
    return session


def name_partition(number: int) -> str:
    return join_key(engine_data.read_exposures()[number].id, engine_data.TILES)


def plan_tiles(session: Session, number: int) -> list[Task]:
    """The tasks of the nine differences of an exposure."""
    collection = session.survey.collection
    return STAGES["diffs"].plan(session.survey, session.repo, session.settings, collection, name_partition(number))


# ---- time


def judge_time(session: Session, method: str, hotpants: float, times: int) -> list[Row]:
    """CPU seconds per tile in a warm process, published warps to the published difference with its sources."""
    tasks = plan_tiles(session, SCIENCE)
    taken = [engine_data.time_unit(session, "diffs", task, repeat=2) for task in tasks]
    ours, wall = (float(np.mean([getattr(one, name) for one in taken])) for name in ("cpu", "wall"))
    parts = profile_units(session, tasks, ("subtract_images", "detect_sources", "publish_unit", "read_planes"))
    spent = ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items())
    inner = parts["subtract_images"] + parts["detect_sources"]
    part, command = f"engine.diff.{method}", COMMAND
    recorded = f"CPU; HOTPANTS {HOTPANTS_S} s as recorded; {carry_over()}"
    yardstick = f"CPU; HOTPANTS {hotpants:.2f} s by the yardstick, whose np.sort depends on the processor's AVX-512"
    return [
        Row(f"{part}.tile_cpu", ours, "s", "", f"mean of 9 tiles, published; under the profiler: {spent}", command),
        Row(f"{part}.tile_wall", wall, "s", "", "", command),
        Row(
            f"{part}.speed",
            HOTPANTS_S / ours,
            "x",
            f">= {times}",
            f"template, sources, publishing; {recorded}",
            command,
        ),
        Row(f"{part}.yardstick_speed", hotpants / ours, "x", "", f"the same; {yardstick}", command),
        Row(f"{part}.inner_speed", HOTPANTS_S / inner, "x", "", f"subtraction and sources alone; {recorded}", command),
    ]


def carry_over() -> str:
    """How much slower than the machine of the records this one is, by what SWarp takes on both."""
    then = json.loads((SHARED / "peers.json").read_text())["peers"]["swarp 2.41.5 resample, 8 CCDs, 1 thread"]
    if not has_swarp():
        return ""
    return f"SWarp's seconds here over recorded {time_resampling().cpu * len(CHIPS) / then:.2f}"


def profile_units(session: Session, tasks: Sequence[Task], names: Sequence[str]) -> dict[str, float]:
    """CPU seconds per unit within functions of these names, what they call included."""
    profile = cProfile.Profile(time.process_time)
    for task in tasks:
        engine_data.forget(session, task.data_id)
        profile.runcall(make_unit, "diffs", task, session.repo.root, 0, "bench")
    found = dict.fromkeys(names, 0.0)
    for (_, _, name), figures in pstats.Stats(profile).stats.items():
        if name in found:
            found[name] += figures[3] / len(tasks)
    return found


# ---- what is found


@cache
def read_sources(session_key: tuple[str, str], number: int) -> pd.DataFrame:
    """Sources of the nine differences of an exposure, with places on the whole skycell."""
    session = prepare(*session_key)
    engine_data.make(session, "diffs", [name_partition(number)])
    tables = []
    for data_id in session.repo.units(session.survey.collection, "diffs", name_partition(number)):
        table = session.repo.read_table(data_id, "sources.parquet")
        column, row = find_tile(data_id.unit)
        shifted = {"x": table.x + TILE_PX * column, "y": table.y + TILE_PX * row, "tile": data_id.unit}
        tables.append(table.assign(**shifted))
    return pd.concat(tables, ignore_index=True)


def find_tile(unit: str) -> tuple[int, int]:
    """Column and row of a tile."""
    return int(unit) % 3, int(unit) // 3


def read_difference(session: Session, data_id: DataId) -> MaskedImage:
    return session.repo.read_image(data_id, planes=("SCI", "MASK", "VAR"))


def judge_transients(session: Session, method: str) -> list[Row]:
    """Transients found, and clean sources over 5 sigma that are none."""
    part = f"engine.diff.{method}"
    table = engine_truth.locate_sources()
    side = engine_data.SIDE_PX
    real = table[(table.kind == engine_truth.TRANSIENT) & table.x.between(0, side - 1) & table.y.between(0, side - 1)]
    real = real[[lies_on_data(session, x, y) for x, y in zip(real.x, real.y, strict=True)]]
    sources = read_sources((method, "main"), SCIENCE)
    clean = sources[sources["flags"] == 0]
    tree = cKDTree(clean[["x", "y"]].to_numpy())
    found = tree.query(real[["x", "y"]].to_numpy())[0] < MATCH_PX
    false = cKDTree(real[["x", "y"]].to_numpy()).query(clean[["x", "y"]].to_numpy())[0] >= 1.5 * MATCH_PX
    missed = ", ".join(f"{mag:.1f}" for mag in sorted(real.mag[~found]))
    trailed = read_sources((method, "main"), TRAILED)
    told = f"of {len(clean)} clean of {len(sources)} sources; HOTPANTS 125, recorded"
    return [
        Row(f"{part}.transients", int(found.sum()), "", ">= 21",
            f"of {len(real)} (S/N < 5: > 22.5 mag), missed {missed}; HOTPANTS 21 of 26, recorded", COMMAND),
        Row(f"{part}.false", int(false.sum()), "", "<= 60", told, COMMAND),
        Row(f"{part}.false_trailed", int((trailed["flags"] == 0).sum()), "", "<= 60",
            "the exposure with the trail, which has no transients", COMMAND),
    ]  # fmt: skip


def lies_on_data(session: Session, x: float, y: float) -> bool:
    """Whether the exposure has data at a place of the skycell: no gap between chips."""
    column, row = (min(int(one // TILE_PX), 2) for one in (x, y))
    data_id = DataId("main", "diffs", name_partition(SCIENCE), f"{3 * row + column:02d}")
    at = min(round(y) - TILE_PX * row, TILE_PX - 1), min(round(x) - TILE_PX * column, TILE_PX - 1)
    return not read_difference(session, data_id).mask[at] & int(Mask.NO_DATA | Mask.EDGE)


def judge_sky(session: Session, method: str) -> list[Row]:
    """Scatter of the sky over the noise the difference says it has: of pixels, and of apertures after covariance."""
    places, pulls, pixels = engine_truth.find_empty_sky(APERTURE_PX), [], []
    for data_id in session.repo.units("main", "diffs", name_partition(SCIENCE)):
        image = read_difference(session, data_id)
        column, row = find_tile(data_id.unit)
        mine = places - TILE_PX * np.array([column, row])
        mine = mine[((mine > 10) & (mine < TILE_PX - 11)).all(axis=1)]
        mine = mine[engine_truth.sum_apertures(~image.usable, mine, APERTURE_PX + 2.0) == 0]
        noise = np.sqrt(engine_truth.sum_apertures(image.var, mine, APERTURE_PX) * image.header["NOISECOV"])
        pulls.append(spread(engine_truth.sum_apertures(image.sci, mine, APERTURE_PX) / noise))
        at = np.s_[mine[:, 1].round().astype(int), mine[:, 0].round().astype(int)]
        pixels.append(spread(image.sci[at] / np.sqrt(image.var[at])))
    part, middle = f"engine.diff.{method}", float(np.mean(pixels))
    return [
        Row(f"{part}.sky_chi", middle, "", "", f"pixels of 9 tiles: {min(pixels):.3f}-{max(pixels):.3f}", COMMAND),
        Row(f"{part}.sky_chi_away", abs(middle - 1.0), "", "<= 0.03", "from 1, pixels", COMMAND),
        Row(f"{part}.aperture_chi_away", abs(float(np.mean(pulls)) - 1.0), "", "<= 0.03",
            f"from 1, apertures of {2 * APERTURE_PX * 0.26:.1f} arcsec, NOISECOV: {np.mean(pulls):.3f}", COMMAND),
    ]  # fmt: skip


def spread(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


# ---- injected sources


def judge_injected(session: Session, method: str) -> list[Row]:
    """Stars of the true PSF put into the warps of exposure 5: how many are found, and with what flux."""
    placed = inject_stars(session, method)
    sources = read_sources((method, "injected"), SCIENCE)
    distance, nearest = cKDTree(sources[["x", "y"]].to_numpy()).query(placed[["x", "y"]].to_numpy())
    found = distance < MATCH_PX
    clean = found & (sources["flags"].to_numpy()[nearest] == 0)
    strong = clean & (placed.snr > 10).to_numpy()
    ratio = sources.flux.to_numpy()[nearest[strong]] / placed.flux.to_numpy()[strong]
    part, told = f"engine.diff.{method}", f"{len(placed)} of S/N {SNR[0]:g}-{SNR[1]:g} in 9 tiles"
    lost = placed[~found]
    edge = np.minimum(lost[["x", "y"]] % TILE_PX, TILE_PX - 1 - lost[["x", "y"]] % TILE_PX).min(axis=1)
    missed = f"; missed: median S/N {lost.snr.median():.1f}, {(edge < EDGE_PX).sum()} of {len(lost)} near a tile's edge"
    return [
        Row(f"{part}.injected_complete", float(found.mean()), "", ">= 0.95", told + missed, COMMAND),
        Row(f"{part}.injected_clean", float(clean.mean()), "", "", f"{told}; without a flag", COMMAND),
        Row(
            f"{part}.injected_flux", float(np.median(ratio)), "", "", "median of measured over true, S/N > 10", COMMAND
        ),
    ]


@cache
def place_stars(method: str) -> pd.DataFrame:
    """Where stars are put, whole pixels of the skycell, on usable pixels; fluxes by the noise of the plain run."""
    session, rng, rows = prepare(method), np.random.default_rng(9), []
    sources = read_sources((method, "main"), SCIENCE)
    for data_id in session.repo.units("main", "diffs", name_partition(SCIENCE)):
        image, (column, row) = read_difference(session, data_id), find_tile(data_id.unit)
        clean = (sources.tile == data_id.unit) & (sources["flags"] == 0)  # errors at the edge of a mask are others
        noise = float(np.median(sources.flux_err[clean]))
        tried = rng.integers(40, TILE_PX - 40, (20 * INJECTED, 2))
        lost = engine_truth.sum_apertures(~image.usable, tried.astype(float), 3.0)
        kept: list[np.ndarray] = []
        for place in tried[lost == 0]:
            if all(np.hypot(*(place - other)) > APART_PX for other in kept) and len(kept) < INJECTED:
                kept.append(place)
        for x, y in kept:
            snr = rng.uniform(*SNR)
            rows.append((data_id.unit, x + TILE_PX * column, y + TILE_PX * row, snr, snr * noise))
    return pd.DataFrame(rows, columns=["tile", "x", "y", "snr", "flux"])


def inject_stars(session: Session, method: str) -> pd.DataFrame:
    """Publish the warps of exposure 5 with stars in them, in a collection of its own."""
    placed, repo, other = place_stars(method), session.repo, prepare(method, "injected")
    for number in range(len(engine_data.read_exposures())):
        if number != SCIENCE:
            engine_data.lend(other, "warps", name_partition(number))
    for source in repo.units("main", "warps", name_partition(SCIENCE)):
        members = {name: read_member(session, source, name) for name in repo.manifest(source).members}
        image, (column, row) = repo.read_image(source), find_tile(source.unit)
        for star in placed[placed.tile == source.unit].itertuples():
            add_star(image.sci, star.x - TILE_PX * column, star.y - TILE_PX * row, star.flux, draw_psf(star.x, star.y))
        members["image.fits"] = image
        mine = DataId("injected", "warps", source.partition, source.unit)
        repo.publish(mine, members, **engine_data.KEPT)
    engine_data.make(other, "stacks", [CELL_BAND])
    return placed


def read_member(session: Session, data_id: DataId, name: str) -> object:
    """A member as `publish` takes it."""
    if name.endswith(".fits"):
        return session.repo.read_planes(data_id, name)
    reads = session.repo.read_table if name.endswith(".parquet") else session.repo.read_bytes
    return reads(data_id, name)


def draw_psf(x: float, y: float, half: int = 15) -> np.ndarray:
    """True PSF of exposure 5 at a place of the skycell: the elliptical Moffat of make_bench.py, sum 1."""
    q = np.random.default_rng([BENCH_SEED, 5, SCIENCE]).normal(0, 0.02, 6)
    u, v = (x - engine_data.SIDE_PX / 2) / 4096, (y - engine_data.SIDE_PX / 2) / 4096
    width = BENCH_FWHM_ARCSEC[SCIENCE] / engine_data.SCALE_ARCSEC * (1 + 0.04 * (u**2 + v**2) + q[0] * u)
    e1, e2 = 0.6 * q[1] + q[2] * u, q[3] + q[4] * v
    inverse = np.linalg.inv(width**2 * np.array([[1 + e1, e2], [e2, 1 - e1]]))
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
    radius2 = inverse[0, 0] * dx**2 + 2 * inverse[0, 1] * dx * dy + inverse[1, 1] * dy**2
    stamp = (1 + 4 * (2 ** (1 / BETA) - 1) * radius2) ** -BETA
    return stamp / stamp.sum()


def add_star(plane: np.ndarray, x: int, y: int, flux: float, stamp: np.ndarray) -> None:
    half = stamp.shape[0] // 2
    plane[y - half : y + half + 1, x - half : x + half + 1] += (flux * stamp).astype(np.float32)


BENCHMARKS = {"engine.diff": bench_diff}
