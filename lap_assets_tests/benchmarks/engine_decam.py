"""Benchmark of stacks and differences on real DECam frames of two epochs, against upstream's stacks and difference.

How the frames are read and matched is `science/test_decam_differences.py`'s, which asserts what stands here as figures.
"""

import numpy as np
from scipy import ndimage

from lap_assets_tests.benchmarks.results import Row
from lap_assets_tests.science import test_decam_differences as decam

PART, COMMAND = "engine.decam", "make bench ONLY=engine.decam"


def bench_decam() -> list[Row]:
    """Ten real DECam frames: upstream's stacks from its kernels, and its residual with our own matching."""
    if not decam.DECAM.is_dir():
        return [Row(f"{PART}.flux_ratio", None, "", "", f"no data in {decam.DECAM}", COMMAND)]
    off = max(compare_stacks(epoch) for epoch in decam.EPOCHS)
    rows = [Row(f"{PART}.stacks", off, "", "<= 1e-10", "upstream's, from its kernels; largest of both", COMMAND)]
    pairs = {
        "stacks": [decam.wrap(decam.read(f"4check/Stack-DEC-{epoch}"), 5) for epoch in decam.EPOCHS],
        "frames": [decam.match_frames(epoch) for epoch in decam.EPOCHS],
    }
    for source, pair in pairs.items():
        for method in ("alard_lupton", "zogy"):
            rows += judge_residual(pair, method, f"{PART}.{source}.{method}")
    return rows


def compare_stacks(epoch: str) -> float:
    """Largest difference of upstream's stack from the median of its frames under its kernels."""
    first, *rest = (decam.read(f"input_data/DEC-{epoch}{letter}.mini") for letter in decam.EPOCHS[epoch])
    kernels = [decam.read(f"input_data/DEC-{epoch}{letter}.MatchKernel") for letter in decam.EPOCHS[epoch][1:]]
    matched = [ndimage.convolve(one, kernel, mode="nearest") for one, kernel in zip(rest, kernels, strict=True)]
    return float(np.abs(np.median([first, *matched], axis=0) - decam.read(f"4check/Stack-DEC-{epoch}")).max())


def judge_residual(pair: list, method: str, part: str) -> list[Row]:
    """Signal to noise of the real residual, its flux over upstream's, and other sources over 5 sigma without a flag."""
    sources, _, flux, _ = decam.find_sources(pair, method)
    clean = sources[sources["flags"] == 0]
    near = np.hypot(clean["x"] - decam.PLACE[0], clean["y"] - decam.PLACE[1]) < 0.5
    if not near.any():
        return [Row(f"{part}.snr", 0.0, "sigma", ">= 5", "not found", COMMAND)]
    one, there = clean[near].iloc[0], float(flux[125:131, 126:132].max())
    return [
        Row(f"{part}.snr", float(one.snr), "sigma", ">= 5", "the residual at (128.6, 127.6)", COMMAND),
        Row(f"{part}.flux_off", abs(float(one.flux) / there - 1.0), "", "<= 0.1", "of upstream's difference", COMMAND),
        Row(f"{part}.others", int((~near).sum()), "", "<= 0", "without a flag; upstream: 3 dipoles", COMMAND),
    ]


BENCHMARKS = {"engine.decam": bench_decam}
