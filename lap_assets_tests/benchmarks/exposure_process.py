"""One exposure of the benchmark data, from raw files to its solution, in a process of its own.

`python -m lap_assets_tests.benchmarks.exposure_process ROOT RAW CHIPS` ingests the first CHIPS raw files of exposure 0,
makes and publishes chips and solution by the pipeline's own stages, and prints what it took as JSON. ROOT holds the
masters and the reference catalogue, put there by `prepare_repository`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.model.camera import load_camera
from lap_assets.model.ids import DataId
from lap_assets.model.image import MaskedImage
from lap_assets.model.products import CALIBRATION_COLLECTION
from lap_assets.model.survey import Exposure, Survey
from lap_assets.pipeline.engine import make_unit
from lap_assets.pipeline.ingest import inspect_raw
from lap_assets.pipeline.stages import STAGES
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo
from lap_assets_tests.memory import read_peak_mib

CAMERA = Path(__file__).with_name("bench.yaml")
MASTERS = {"master_biases": "bench|bias|all|2023-02-25", "master_flats": "bench|flat|r|2023-02-25"}
EPOCH_YR, REFERENCE_ERR_MAS = 2023.15, 20.0


def prepare_repository(data: Path, root: Path) -> None:
    """Put camera, true masters and reference catalogue of the benchmark data into a new repository."""
    repo = Repo(root)
    repo.cameras.mkdir(parents=True)
    (repo.cameras / CAMERA.name).write_bytes(CAMERA.read_bytes())
    for kind, (product, key) in zip(("bias", "flat"), MASTERS.items(), strict=True):
        for chip in load_camera("bench", repo.cameras).good_chips:
            values = fits.getdata(data / "calib" / f"{kind}_{chip}.fits").astype(np.float32)
            header = fits.Header({"BUNIT": "adu" if kind == "bias" else ""})
            noise = np.full(values.shape, 1e-6, np.float32)
            master = MaskedImage(values, np.zeros(values.shape, np.int16), noise, header)
            repo.publish(
                DataId(CALIBRATION_COLLECTION, product, key, chip), {"image.fits": master}, inputs=(), recipe="truth",
                config_sha256="truth", code=1, metrics={},
            )  # fmt: skip
    truth = fits.getdata(data / "truth" / "refcat.fits")
    columns = {name: truth[column].astype(float) for name, column in (("ra", "ra"), ("dec", "dec"), ("mag_r", "mag"))}
    constants = {"pmra": 0.0, "pmdec": 0.0, "ref_epoch_yr": EPOCH_YR}
    errors = {"ra_err_mas": REFERENCE_ERR_MAS, "dec_err_mas": REFERENCE_ERR_MAS}
    stars = pd.DataFrame({"source_id": np.arange(len(truth)), **columns}).assign(**constants, **errors)
    repo.write_refcat("truth", stars)


def run_exposure(root: Path, raw: Path, chips: int) -> dict:
    """Seconds of each part, the states of the units and the metrics of the solution."""
    repo, settings = Repo(root), Settings()
    camera = load_camera("bench", repo.cameras)
    marks = {"start": time.process_time()}
    exposures, rejected = inspect_raw([raw / f"e0_c{chip}.fits.fz" for chip in range(chips)], camera, given="object")
    marks["ingest"] = time.process_time()
    survey = describe_survey(exposures)
    states, metrics = {}, {}
    for product in ("chips", "solutions"):
        for task in STAGES[product].plan(survey, repo, settings, "main", exposures[0].id):
            report = make_unit(product, task, root, 0, "bench")
            states[str(task.data_id)] = f"{report.state} {report.reason}".strip()
            metrics = report.metrics
        marks[product] = time.process_time()
    times = list(marks.values())
    parts = {name: late - early for name, early, late in zip(list(marks)[1:], times, times[1:], strict=False)}
    peak_mb = read_peak_mib()
    return {
        "cpu": time.process_time(), "parts": parts, "states": states, "metrics": metrics, "rejected": len(rejected),
        "peak_mb": peak_mb,
    }  # fmt: skip


def describe_survey(exposures: list[Exposure]) -> Survey:
    """The exposures, associated with the true masters and the reference catalogue."""
    masters = tuple(MASTERS.items())
    return Survey(
        "main", {one.id: one for one in exposures}, associations={one.id: masters for one in exposures},
        reference_catalogs={"*": "truth"},
    )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(run_exposure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])), default=str))
