"""Benchmarks of astrometry: six exposures of eight CCDs against the truth beside SCAMP, and a real HSC visit.

Data and conventions are those of `exposures.py`. SCAMP is timed where it is installed and `run_peers.sh DIR sex` has
left its catalogues in DIR/work; else its recorded seconds stand in.
"""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

from lap_assets.science.astrometry import ChipStars, solve_exposure
from lap_assets.science.chip_catalog import catalog_chip
from lap_assets.science.joint_astrometry import JointAstrometry, fit_joint_astrometry
from lap_assets.science.tan_sip import grid_points
from lap_assets_tests.benchmarks.exposures import (
    CHIPS,
    EXPOSURES,
    find_data,
    open_chip,
    recall_peer,
    time_cpu,
    time_peer,
)
from lap_assets_tests.benchmarks.results import Row
from lap_assets_tests.science.hsc_visit import EPOCH_YR, hold_out, mad_sigma, read_gaia, read_visit

EPOCH, REF_ERR_MAS, MIN_SNR, SHAPE = 2023.15, 20.0, 10.0, (4096, 2048)
HSC = Path(__file__).parents[3] / "shared" / "data" / "hsc_astrometry"
HSC_EPOCH_YR = EPOCH_YR + 0.96  # that the positions in its catalogue speak for; see test_hsc.py
SCAMP = (
    "-c /dev/null -ASTREF_CATALOG FILE -ASTREFCENT_KEYS X_WORLD,Y_WORLD "
    "-ASTREFERR_KEYS ERRA_WORLD,ERRB_WORLD,ERRTHETA_WORLD -ASTREFMAG_KEY MAG -ASTREFMAGERR_KEY MAGERR "
    "-ASTREFOBSDATE_KEY OBSDATE -MOSAIC_TYPE LOOSE -STABILITY_TYPE EXPOSURE -DISTORT_DEGREES 3 -POSITION_MAXERR 0.5 "
    "-PIXSCALE_MAXERR 1.02 -POSANGLE_MAXERR 1 -CROSSID_RADIUS 1.5 -SN_THRESHOLDS 10,100 -ASTREF_WEIGHT 1.0 "
    "-CENTROID_KEYS XWIN_IMAGE,YWIN_IMAGE -CENTROIDERR_KEYS ERRAWIN_IMAGE,ERRBWIN_IMAGE,ERRTHETAWIN_IMAGE "
    "-PHOTINSTRU_KEY FILTER -MAGZERO_KEY PHOT_ZP -PROJECTION_TYPE TPV -CHECKPLOT_DEV NULL -CHECKPLOT_TYPE NONE "
    "-WRITE_XML N -VERBOSE_TYPE QUIET -NTHREADS 1 -SAVE_REFCATALOG N"
)


def bench_solve() -> list[Row]:
    """Astrometry of 6 exposures of 8 CCDs, search, solutions and joint fit, against truth and beside SCAMP."""
    exposures = {f"e{number}": read_exposure(number) for number in EXPOSURES}
    catalog = read_references()
    headers, joint = solve(exposures, catalog)
    alone, together = judge(headers), judge(joint.headers)
    ours = time_cpu(lambda: solve(exposures, catalog))
    theirs, peer = time_scamp()
    part, command = "exposures.astrometry", "make bench ONLY=exposures.astrometry"
    against = "truth, 48 chips; SCAMP 4.5 / 3.8, recorded"
    return [
        Row(f"{part}.rms_ra", together[0], "mas", "<= 2.5", against, command),
        Row(f"{part}.rms_dec", together[1], "mas", "<= 2.5", against, command),
        Row(f"{part}.rms_ra_alone", alone[0], "mas", "", "truth; each exposure for itself", command),
        Row(f"{part}.rms_dec_alone", alone[1], "mas", "", "truth; each exposure for itself", command),
        Row(f"{part}.repeatability", float(np.mean(joint.repeatability_mas)), "mas", "", "", command),
        Row(f"{part}.cpu", ours, "s", f"<= {theirs:.2f}", f"{theirs:.2f} s, {peer}", command),
    ]


def read_exposure(exposure: int) -> dict[str, ChipStars]:
    """Sources of all chips as the pipeline takes them for astrometry, with the headers as they came."""
    chips = {}
    for chip in CHIPS:
        table = catalog_chip(open_chip(exposure, chip)).sources
        table = table[table.usable & (table.flux > MIN_SNR * table.flux_err)]
        header = fits.getheader(find_data() / "cal" / f"e{exposure}_c{chip}.fits")
        columns = (table[name].to_numpy(float) for name in ("x", "y", "xy_err", "flux"))
        chips[f"c{chip}"] = ChipStars(*columns, header, SHAPE)
    return chips


def read_references() -> pd.DataFrame:
    table = fits.getdata(find_data() / "truth" / "refcat.fits")
    place = {name: np.asarray(table[name], float) for name in ("ra", "dec")}
    motion = {"pmra": 0.0, "pmdec": 0.0, "ref_epoch_yr": EPOCH}
    return pd.DataFrame(place).assign(**motion, ra_err_mas=REF_ERR_MAS, dec_err_mas=REF_ERR_MAS)


def solve(
    exposures: dict[str, dict[str, ChipStars]], catalog: pd.DataFrame
) -> tuple[dict[str, dict[str, fits.Header]], JointAstrometry]:
    """Each exposure's own solution from its rough headers, and the joint one."""
    headers = {
        name: {chip: one.header for chip, one in solve_exposure(chips, catalog, EPOCH, trusted=False).items()}
        for name, chips in exposures.items()
    }
    return headers, fit_joint_astrometry(exposures, headers, catalog, dict.fromkeys(exposures, EPOCH))


def judge(headers: dict[str, dict[str, fits.Header]]) -> np.ndarray:
    """Rms per axis against the true WCS over grids that span all chips, mas."""
    x, y = grid_points(SHAPE, 15)
    offsets = []
    for exposure, chips in headers.items():
        for chip, header in chips.items():
            text = (find_data() / "truth" / f"{exposure}_{chip}.sip.hdr").read_text()
            true_ra, true_dec = WCS(fits.Header.fromstring(text, sep="\n")).all_pix2world(x, y, 0)
            ra, dec = WCS(header).all_pix2world(x, y, 0)
            offsets.append(np.stack([(ra - true_ra) * np.cos(np.radians(dec)), dec - true_dec]) * 3.6e6)
    return np.sqrt(np.mean(np.square(offsets), axis=(0, 2)))


def time_scamp() -> tuple[float, str]:
    """CPU seconds of SCAMP on one thread, and where they come from."""
    work = find_data() / "work"
    catalogs = [str(work / f"exp{number}.ldac") for number in EXPOSURES]
    reference = work / "refcat.ldac"
    if not shutil.which("scamp") or not all(Path(one).exists() for one in (*catalogs, reference)):
        return recall_peer("scamp 2.10.0, 6 x 8 CCDs, 1 thread"), "SCAMP, recorded"
    return time_peer(["scamp", *catalogs, "-ASTREFCAT_NAME", str(reference), *SCAMP.split()]), "SCAMP, this session"


def bench_hsc() -> list[Row]:
    """A real HSC visit of 102 CCDs from rough headers to Gaia, cross-validated in ten folds."""
    part, command = "exposures.astrometry_hsc", "make bench ONLY=exposures.astrometry_hsc"
    before = "held-out stars; before: 20 / 13 with 92 chips"
    cases = {
        "": ((0.0, 0.0), 0.0, EPOCH_YR),
        "_displaced": ((48.0, 36.0), 1.0, EPOCH_YR),
        "_epoch": ((0.0, 0.0), 0.0, HSC_EPOCH_YR),
    }
    rows = []
    for case, (shift, turn, epoch) in cases.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            offsets, n_solved = hold_out(read_visit(HSC, shift, turn), read_gaia(HSC), 10, epoch)
        ra, dec = (float(one) for one in mad_sigma(offsets))
        rows += [
            Row(f"{part}{case}.ra", ra, "mas", "<= 15", before, command),
            Row(f"{part}{case}.dec", dec, "mas", "<= 10", before, command),
            Row(f"{part}{case}.chips", n_solved, "", ">= 102", "worst fold", command),
            Row(f"{part}{case}.stars", len(offsets), "", "", "", command),
        ]
    return rows


BENCHMARKS = {"exposures.astrometry": bench_solve, "exposures.astrometry_hsc": bench_hsc}
