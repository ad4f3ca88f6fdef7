"""Benchmarks of exposures: cosmic rays, detection, PSF and photometry of a CCD, beside the field's own tools.

The data are those of `../shared/bench/make_bench.py`, in the folder that LAP_BENCH_DATA names. Peers run in the same
session where they are installed; else their recorded seconds, carried over by the yardstick, stand in (`recorded`).
Ours are CPU seconds in a warm process, on one core, peers' those of their process: the machine may be busy. Whole
exposures through the pipeline are `exposure_process.py`'s.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import label
from scipy.spatial import cKDTree

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.background import evaluate_background, measure_background
from lap_assets.science.chip_catalog import ChipCatalog, catalog_chip
from lap_assets.science.cosmic_rays import find_cosmic_rays, flag_cosmic_rays
from lap_assets.science.detection import detect_sources, measure_sources, recenter_sources
from lap_assets_tests.benchmarks.exposure_process import prepare_repository
from lap_assets_tests.benchmarks.results import Row

SHARED = Path(__file__).parents[3] / "shared" / "bench"
READ_NOISE_E, ZERO_POINT, GAIN, FULL_ADU = 6.0, 30.0, 1.5, 64000.0
EXPOSURES, CHIPS = range(6), range(8)
TIMED = (0, 1)  # exposure and chip on which the peers were recorded
STARS_MAG = (15.0, 16.5)
MATCH_PX = 1.5


@cache
def find_data() -> Path:
    """The folder of the benchmark data."""
    folder = Path(os.environ.get("LAP_BENCH_DATA", "/tmp/bench4"))
    if not (folder / "truth" / "truth.fits").exists():
        sys.exit(
            f"no benchmark data in {folder}: make them with {SHARED / 'make_bench.py'} DIR, set LAP_BENCH_DATA=DIR"
        )
    return folder


def read_chip(exposure: int, chip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detrended electrons with sky, saturated and defective pixels of a chip."""
    place = find_data() / "cal" / f"e{exposure}_c{chip}.fits"
    electrons = fits.getdata(place).astype(np.float32)
    lost = fits.getdata(place.with_suffix(".weight.fits")) == 0
    saturated = lost & (electrons > 0.9 * GAIN * FULL_ADU)
    return electrons, saturated, lost & ~saturated


def open_chip(exposure: int, chip: int) -> MaskedImage:
    """A chip as the pipeline hands it to the catalogue: with mask, cosmic rays in it, and variance."""
    electrons, saturated, broken = read_chip(exposure, chip)
    mask = np.where(saturated, np.int16(Mask.SATURATED), np.int16(0)) | np.where(
        broken, np.int16(Mask.BAD), np.int16(0)
    )
    mask = flag_cosmic_rays(mask, find_cosmic_rays(electrons, broken, saturated, READ_NOISE_E))
    return MaskedImage(electrons, mask, np.maximum(electrons, 1.0) + np.float32(READ_NOISE_E**2))


def time_cpu(work: Callable[[], object], repeat: int = 3) -> float:
    """Least CPU seconds of a call, after a warm-up."""
    work()
    seconds = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def time_peer(command: list[str], repeat: int = 3) -> float:
    """Least CPU seconds of a peer's process, after a warm-up."""
    seconds = []
    for _ in range(repeat + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, cwd=SHARED, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds[1:])


def recall_peer(name: str) -> float:
    """Recorded seconds of a peer, times what this machine takes for the yardstick over what that one took."""
    recorded = json.loads((SHARED / "peers.json").read_text())
    told = subprocess.run([sys.executable, SHARED / "yardstick.py"], check=True, capture_output=True, text=True).stdout
    now, then = json.loads(told), recorded["yardstick"]
    ratio = np.mean([now[key] / then[key] for key in ("rfft2_4096_float32_s", "sort_4M_float32_s")])
    return float(recorded["peers"][name] * ratio)


# ---- cosmic rays


def bench_cosmic_rays() -> list[Row]:
    """Cosmic rays: time on one CCD beside astroscrappy, completeness and false objects on 16 chips."""
    electrons, saturated, broken = read_chip(*TIMED)
    ours = time_cpu(lambda: find_cosmic_rays(electrons, broken, saturated, READ_NOISE_E))
    theirs, peer = time_astroscrappy(electrons, saturated | broken)
    scores = np.array([score_hits(exposure, chip) for exposure in (0, 3) for chip in CHIPS])
    part, command = "exposures.cosmic_rays", "make bench ONLY=exposures.cosmic_rays"
    found, false = float(scores[:, 0].min()), float(scores[:, 1].max())
    return [
        Row(f"{part}.cpu", ours, "s", "<= 1.1", f"{theirs:.2f} s, {peer}", command),
        Row(f"{part}.speed", theirs / ours, "x", ">= 10", peer, command),
        Row(f"{part}.completeness", found, "", ">= 0.96", "truth, worst of 16 chips; astroscrappy 0.960", command),
        Row(f"{part}.false_objects", false, "", "<= 176", "truth, worst of 16 chips; astroscrappy 176", command),
    ]  # fmt: skip


def time_astroscrappy(electrons: np.ndarray, masked: np.ndarray) -> tuple[float, str]:
    """CPU seconds of astroscrappy, and where they come from."""
    try:
        import astroscrappy
    except ImportError:
        return recall_peer("astroscrappy 1.3.0 sepmed niter 4, one CCD in memory, 1 core"), "astroscrappy, recorded"
    start = time.process_time()
    astroscrappy.detect_cosmics(
        electrons, inmask=masked, gain=1.0, readnoise=READ_NOISE_E, satlevel=0.93 * GAIN * FULL_ADU, sigclip=4.5,
        sigfrac=0.3, objlim=5.0, niter=4, sepmed=True,
    )  # fmt: skip
    return time.process_time() - start, "astroscrappy, this session"


def score_hits(exposure: int, chip: int) -> tuple[float, int]:
    """Part of the true pixels found, and flagged objects that touch none."""
    electrons, saturated, broken = read_chip(exposure, chip)
    packed = np.load(find_data() / "truth" / "cr" / f"e{exposure}_c{chip}.npz")["cr"]
    truth = np.unpackbits(packed).reshape(electrons.shape).astype(bool)
    found = find_cosmic_rays(electrons, broken, saturated, READ_NOISE_E)
    objects, n = label(found, np.ones((3, 3)))
    touching = np.unique(objects[truth & found])
    return float(found[truth].mean()), n - len(touching)


# ---- detection and photometry against SExtractor


def write_catalog(place: Path, out: Path, mesh_px: int = 64, threshold: float = 4.0) -> pd.DataFrame:
    """What SExtractor does in one run: read, sky, detection, centroids, apertures, sizes, catalogue written."""
    electrons = fits.getdata(place).astype(np.float32)
    var = fits.getdata(place.with_suffix(".weight.fits")).astype(np.float32)  # its inverse, until next but one line
    usable = var > 0
    np.divide(np.float32(1.0), var, out=var, where=usable)
    mask = np.where(usable, np.int16(0), np.int16(Mask.BAD))
    electrons -= evaluate_background(measure_background(electrons, usable, mesh_px).mesh, electrons.shape)
    sources, _ = detect_sources(electrons, var, mask, threshold, 5, 3.0)
    sources = recenter_sources(electrons, var, mask, sources, 3.5)
    sources = measure_sources(electrons, var, mask, sources, 9.0)
    sources.to_parquet(out)
    return sources


def bench_detection() -> list[Row]:
    """Detection and photometry of one CCD, file to file, beside SExtractor, and the two catalogues matched."""
    place = find_data() / "cal" / f"e{TIMED[0]}_c{TIMED[1]}.fits"
    part, command = "exposures.detection", "make bench ONLY=exposures.detection"
    with tempfile.TemporaryDirectory() as folder:
        ours = time_cpu(lambda: write_catalog(place, Path(folder) / "ours.parquet"))
        sources = pd.read_parquet(Path(folder) / "ours.parquet")
        if not shutil.which("source-extractor"):
            theirs = recall_peer("source-extractor 2.25.0, one CCD, 1 core")
            return [Row(f"{part}.speed", theirs / ours, "x", ">= 1.5", "SExtractor, recorded", command)]
        out = Path(folder) / "peer.cat"
        theirs = time_peer(["bash", "cfg/sex.sh", str(place), str(out), "scamp.param"])
        peer = pd.DataFrame({name: np.asarray(column) for name, column in zip_columns(out)})
    rows = [
        Row(f"{part}.cpu", ours, "s", "", f"{theirs:.2f} s, SExtractor, this session", command),
        Row(f"{part}.speed", theirs / ours, "x", ">= 1.5", "SExtractor, this session", command),
    ]
    return rows + [Row(f"{part}.{name}", *figure, command) for name, figure in compare_catalogs(sources, peer).items()]


def zip_columns(place: Path) -> list[tuple[str, np.ndarray]]:
    """Columns of an LDAC catalogue, in the machine's own byte order."""
    table = fits.getdata(place, 2)
    return [(name, table[name].astype(table[name].dtype.newbyteorder("="))) for name in table.names]


def compare_catalogs(ours: pd.DataFrame, peer: pd.DataFrame) -> dict[str, tuple[float, str, str, str]]:
    """How far the catalogues are the same, and what each has of the truth: value, unit, target, peer's value."""
    peer_xy = peer[["XWIN_IMAGE", "YWIN_IMAGE"]].to_numpy() - 1.0
    distance, nearest = cKDTree(ours[["x", "y"]].to_numpy()).query(peer_xy)
    matched = distance < MATCH_PX
    x, y, mag, _ = locate_truth(*TIMED)
    truth, bright = np.column_stack([x, y]), mag < 22.0
    # cosmic rays, which neither was told of, are no sources to be missed
    real = cKDTree(truth).query(peer_xy)[0] < MATCH_PX
    sure = real & (peer.FLUX_APER > 10 * peer.FLUXERR_APER).to_numpy() & (peer.FLAGS < 4).to_numpy()
    both = ours[["x", "y"]].to_numpy(), peer_xy
    purity = [float((cKDTree(truth).query(one)[0] < MATCH_PX).mean()) for one in both]
    complete = [float((cKDTree(one).query(truth[bright])[0] < MATCH_PX).mean()) for one in both]
    clean = matched & sure & (peer.FLAGS == 0).to_numpy()
    pairs = ours.iloc[nearest[clean]]
    ratio = pairs.flux.to_numpy() / peer.FLUX_APER.to_numpy()[clean]
    strong = (peer.FLUX_APER > 200 * peer.FLUXERR_APER).to_numpy()[clean]
    shift = np.hypot(*(pairs[["x", "y"]].to_numpy() - peer_xy[clean])[strong].T)
    mmag = 1085.7 * float(np.median(np.abs(ratio[strong] - 1.0)))
    return {
        "n_sources": (len(ours), "", "", f"SExtractor {len(peer)}"),
        "matched_10_sigma": (float(matched[sure].mean()), "", ">= 0.99", "SExtractor's sources of S/N > 10"),
        "completeness_22_mag": (complete[0], "", "", f"truth; SExtractor {complete[1]:.4f}"),
        "purity": (purity[0], "", "", f"truth; SExtractor {purity[1]:.4f}"),
        "magnitude_difference": (mmag, "mmag", "<= 3", "SExtractor's MAG_APER"),
        "centroid_difference": (1e3 * float(np.median(shift)), "mpx", "<= 10", "SExtractor's XWIN"),
    }  # fmt: skip


def locate_truth(exposure: int, chip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """True x, y, magnitude and kind (0: star) of the sources on a chip, 40 px inside its edges."""
    text = (find_data() / "truth" / f"e{exposure}_c{chip}.sip.hdr").read_text()
    wcs = WCS(fits.Header.fromstring(text, sep="\n"))
    truth = fits.getdata(find_data() / "truth" / "truth.fits")
    truth = truth[truth["kind"] < 2]
    x, y = wcs.all_world2pix(truth["ra"], truth["dec"], 0, tolerance=1e-6, maxiter=40, quiet=True)
    inside = (x > 40) & (x < 2007) & (y > 40) & (y < 4055)
    return x[inside], y[inside], truth["mag"][inside].astype(float), truth["kind"][inside]


# ---- PSF and photometry


def bench_psf() -> list[Row]:
    """PSF models of all 48 chips on their reserved stars, stars' magnitudes and centroids, time beside PSFEx."""
    catalogs = {(exposure, chip): catalog_chip(open_chip(exposure, chip)) for exposure in EXPOSURES for chip in CHIPS}
    return [*time_psf(), *judge_psfs(catalogs), *judge_stars(catalogs)]


def time_psf() -> list[Row]:
    """CPU seconds of selecting the stars, fitting the PSF and judging it, and of everything measured on the chip."""
    from lap_assets.science import chip_catalog

    image = open_chip(*TIMED)
    seen = catalog_chip(image)
    sky_free = image.sci - evaluate_background(seen.background.mesh, image.shape)
    ours = time_cpu(lambda: chip_catalog.fit_stars(image, sky_free, seen.sources, 25, 2, 250))
    part, command = "exposures.psf", "make bench ONLY=exposures.psf"
    if shutil.which("psfex"):
        with tempfile.TemporaryDirectory() as folder:
            catalog, place = f"{folder}/stars.cat", str(find_data() / "cal" / f"e{TIMED[0]}_c{TIMED[1]}.fits")
            subprocess.run(["bash", "cfg/sex.sh", place, catalog, "psfex.param"], check=True, cwd=SHARED)
            theirs = time_peer([
                "psfex", catalog, "-c", "/dev/null", "-PSFVAR_DEGREES", "2", "-PSF_SIZE", "25,25", "-PSF_DIR", folder,
                "-CHECKPLOT_DEV", "NULL", "-CHECKPLOT_TYPE", "NONE", "-CHECKIMAGE_TYPE", "NONE", "-WRITE_XML", "N",
                "-VERBOSE_TYPE", "QUIET", "-NTHREADS", "1",
            ])  # fmt: skip
        peer = "PSFEx, this session"
    else:
        theirs, peer = recall_peer("psfex 3.21.1, one CCD, 25x25 degree 2"), "PSFEx, recorded"
    return [
        Row(f"{part}.cpu", ours, "s", f"<= {theirs:.3f}", f"{theirs:.2f} s, {peer}", command),
        Row(f"{part}.chip_catalog_cpu", time_cpu(lambda: catalog_chip(image)), "s", "", "", command),
    ]


def judge_psfs(catalogs: dict[tuple[int, int], ChipCatalog]) -> list[Row]:
    """Mean residuals of the reserved stars of all chips, and of the worst exposure."""
    frame = pd.DataFrame(
        [{"exposure": key[0], **vars(one.psf_residuals)} for key, one in sorted(catalogs.items())]
    ).dropna()
    part, command = "exposures.psf", "make bench ONLY=exposures.psf"

    def mean(rows: pd.DataFrame, name: str) -> float:
        return float((rows[name] * rows.n).sum() / rows.n.sum())

    worst = [
        (np.hypot(mean(rows, "e1"), mean(rows, "e2")), mean(rows, "size")) for _, rows in frame.groupby("exposure")
    ]
    shape, size = float(np.hypot(mean(frame, "e1"), mean(frame, "e2"))), abs(mean(frame, "size"))
    scatter = "median chip, beyond the stars' noise"
    return [
        Row(f"{part}.n_reserved", float(frame.n.sum()), "stars", "", "48 chips", command),
        Row(f"{part}.residual_e", shape, "", "<= 1e-3", "reserved stars of 48 chips", command),
        Row(f"{part}.residual_size", size, "", "<= 3e-3", "reserved stars of 48 chips, dT/T", command),
        Row(f"{part}.residual_e_worst", float(max(e for e, _ in worst)), "", "", "worst exposure", command),
        Row(f"{part}.residual_size_worst", float(max(abs(t) for _, t in worst)), "", "", "worst exposure", command),
        Row(f"{part}.scatter_e", float(frame.e_scatter.median()), "", "", scatter, command),
        Row(f"{part}.scatter_size", float(frame.size_scatter.median()), "", "", scatter, command),
    ]


def judge_stars(catalogs: dict[tuple[int, int], ChipCatalog]) -> list[Row]:
    """Magnitudes of stars of 15–16.5 mag and their centroids against the truth; one constant per exposure is free."""
    tables, n_true = [], 0
    for (exposure, chip), one in sorted(catalogs.items()):
        x, y, mag, kind = locate_truth(exposure, chip)
        wanted = (kind == 0) & (mag > STARS_MAG[0]) & (mag < STARS_MAG[1])
        n_true += int(wanted.sum())
        usable = one.sources[one.sources.usable]
        distance, nearest = cKDTree(usable[["x", "y"]].to_numpy()).query(np.column_stack([x, y])[wanted])
        found = usable.iloc[nearest[distance < 1.0]]
        near = np.nonzero(wanted)[0][distance < 1.0]
        offset = ZERO_POINT - 2.5 * np.log10(found.flux.to_numpy()) - mag[near]
        table = {"exposure": exposure, "offset": offset, "err": found.xy_err.to_numpy()}
        table |= {"dx": found.x.to_numpy() - x[near], "dy": found.y.to_numpy() - y[near]}
        tables.append(pd.DataFrame(table))
    stars = pd.concat(tables, ignore_index=True)
    offset = stars.offset - stars.groupby("exposure").offset.transform("median")
    kept = offset.abs() < 0.02
    pull = np.concatenate([stars.dx / stars.err, stars.dy / stars.err])
    part, command = "exposures.photometry", "make bench ONLY=exposures.psf"
    rms, robust = 1e3 * float(offset[kept].std()), 1482.6 * float(offset.abs().median())
    centroid = 1482.6 * float(np.median(np.abs(np.concatenate([stars.dx, stars.dy]))))
    counts = f"of {len(stars)} usable, {n_true} there are"
    return [
        Row(f"{part}.rms", rms, "mmag", "<= 2.5", "truth; SExtractor MAG_AUTO 2.3, recorded", command),
        Row(f"{part}.robust_rms", robust, "mmag", "", "truth", command),
        Row(f"{part}.beyond_20_mmag", float((~kept).sum()), "stars", "", counts, command),
        Row(f"{part}.centroid", centroid, "mpx", "", "truth, per axis", command),
        Row(f"{part}.centroid_pull", 1.4826 * float(np.median(np.abs(pull))), "", "", "1: errors are right", command),
    ]


# ---- a whole exposure


def bench_pipeline() -> list[Row]:
    """Raw files to the published solution in one process on one core: 1 chip, 8 chips, and what one more costs."""
    part, command = "exposures.pipeline", "make bench ONLY=exposures.pipeline"
    with tempfile.TemporaryDirectory() as folder:
        prepare_repository(find_data(), Path(folder) / "masters")
        run_pipeline(Path(folder), 1)  # compiles what is not compiled yet
        one, eight = (run_pipeline(Path(folder), chips) for chips in (1, 8))
    done = sum(state == "done" for state in eight["states"].values())
    metrics = eight["metrics"]
    marginal = {name: (eight["parts"][name] - one["parts"][name]) / 7.0 for name in eight["parts"]}
    spent = "LSST 257 (published); " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in marginal.items())
    return [
        Row(f"{part}.one_chip_cpu", one["cpu"], "s", "", "start of the process included", command),
        Row(f"{part}.eight_chips_cpu", eight["cpu"], "s", "", "start of the process included", command),
        Row(f"{part}.per_chip_cpu", (eight["cpu"] - one["cpu"]) / 7.0, "s", "<= 15", spent, command),
        Row(f"{part}.peak_memory", eight["peak_mb"], "MB", "", "", command),
        Row(f"{part}.units_done", done, "", ">= 9", "8 chips and 1 solution", command),
        *[
            Row(f"{part}.{name}", metrics.get(name), "mas", "", "against reference stars of 20 mas", command)
            for name in ("astrometry_rms_ra_mas", "astrometry_rms_dec_mas")
        ],
    ]  # fmt: skip


def run_pipeline(folder: Path, chips: int) -> dict:
    """Figures of one process that makes an exposure of so many chips, in a repository of its own."""
    root = folder / f"chips{chips}"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(folder / "masters", root)
    command = [sys.executable, "-m", "lap_assets_tests.benchmarks.exposure_process"]
    environment = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
    told = subprocess.run(
        [*command, str(root), str(find_data() / "raw"), str(chips)], check=True, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    return json.loads(told.stdout.splitlines()[-1])


BENCHMARKS = {
    "exposures.cosmic_rays": bench_cosmic_rays,
    "exposures.detection": bench_detection,
    "exposures.psf": bench_psf,
    "exposures.pipeline": bench_pipeline,
}
