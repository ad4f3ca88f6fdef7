"""A camera with all the effects that master calibrations are for, its frames written to disk, and the masters made.

What is put into the frames is kept as truth; nothing of `science/` is used to make them. Tests and the benchmark of
masters share it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from astropy.io import fits

from lap_assets.model import camera as camera_model
from lap_assets.model.survey import CalibrationSet, ChipFile, Survey
from lap_assets.pipeline import calibrations
from lap_assets.pipeline.task import Output
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo

GAIN, READ_NOISE_E, OVERSCAN, SATURATION = 1.5, 6.0, 16, 60000.0
STAGES = ["saturation", "overscan", "bias", "linearity", "gain", "dark", "flat", "sky", "fringe", "defects"]
SUFFIXES = {"bias": "biases", "dark": "darks", "flat": "flats", "sky": "skies", "fringe": "fringes"}
NIGHT = "2024-01-01"


def describe_camera(ny: int, nx: int, chips: tuple[str, ...], overscan: int = OVERSCAN, **more) -> dict:
    """A camera of two amplifiers a chip, their overscans outside, as its YAML file says it."""
    half, scale = nx // 2, 0.26 / 3600
    amplifiers = [
        {"name": "A", "overscan": [0, overscan, 0, ny], "data": [overscan, overscan + half, 0, ny],
         "target": [0, half, 0, ny]},
        {"name": "B", "overscan": [overscan + nx, 2 * overscan + nx, 0, ny],
         "data": [overscan + half, overscan + nx, 0, ny], "target": [half, nx, 0, ny]},
    ]  # fmt: skip
    for amp in amplifiers:
        amp |= {"gain": GAIN, "read_noise_e": READ_NOISE_E, "saturation_adu": SATURATION}
    shared = {"nx": nx, "ny": ny, "raw_nx": nx + 2 * overscan, "raw_ny": ny, "amplifiers": amplifiers}
    shared["cd_deg"] = [[-scale, 0.0], [0.0, scale]]
    places = {name: {"crpix": [-float(k * (nx + 20)), ny / 2.0]} for k, name in enumerate(chips)}
    base = {"name": "cal", "pixel_scale_arcsec": 0.26, "filters": {"r": "r", "z": "z"}, "stages": STAGES}
    return base | {"chip_defaults": shared, "chips": places} | more


class Detector:
    """The truth about one chip: bias pattern, dark current with hot pixels, response, illumination, fringes."""

    def __init__(self, ny: int, nx: int, seed: int, level: float = 1.0) -> None:
        rng = np.random.default_rng([7, seed])
        y, x = np.mgrid[:ny, :nx]
        self.shape = (ny, nx)
        self.bias = 5.0 * np.exp(-x / 30.0) + rng.normal(0, 1.0, nx)[None, :] + 0.5 * np.sin(y / 9.0)
        self.dark = 0.02 + 0.01 * y / ny
        self.hot = np.zeros((ny, nx), bool)
        self.hot.reshape(-1)[rng.permutation(ny * nx)[: ny * nx // 4000 + 1]] = True
        self.dark[self.hot] += 4.0
        u, v = x / nx - 0.5, y / ny - 0.5
        self.response = level * (1.0 - 0.2 * (u**2 + v**2)) * np.where(x < nx // 2, 1.0, 1.03)
        self.response *= 1.0 + rng.normal(0, 0.01, (ny, nx))
        # what a screen lights otherwise than the sky does
        self.illumination = 1.0 + 0.04 * u - 0.03 * v**2
        self.fringe = np.sin(x / 6.0 + 2.0 * np.sin(y / 25.0)) * np.cos(y / 11.0)


class World:
    """Frames of every kind on disk, one file per exposure or one per chip, and the masters that are made of them.

    Parameters
    ----------
    root : Path
    ny, nx : int
        Of the trimmed chips.
    chips : tuple of str
    one_file : bool
        Whether the chips of an exposure lie in one file.
    compressed : bool
        Whether files are Rice-compressed.
    more
        Fields of the camera file that differ.
    """

    def __init__(
        self, root: Path, ny: int = 192, nx: int = 160, chips: tuple[str, ...] = ("c0", "c1"), one_file: bool = True,
        compressed: bool = False, **more,
    ) -> None:  # fmt: skip
        self.folder, self.chips, self.one_file, self.compressed = root / "raw", chips, one_file, compressed
        self.folder.mkdir(parents=True)
        self.repo, self.settings = Repo(root / "repo"), Settings()
        self.repo.cameras.mkdir(parents=True)
        (self.repo.cameras / "cal.yaml").write_text(yaml.safe_dump(describe_camera(ny, nx, chips, **more)))
        self.camera = camera_model.load_camera("cal", self.repo.cameras)
        self.detectors = {name: Detector(ny, nx, k, 1.0 - 0.07 * k) for k, name in enumerate(chips)}
        self.survey = Survey("main")
        self.exposure = 100

    # ---- frames

    def to_raw(self, chip: str, light_e: np.ndarray, exptime_s: float, rng: np.random.Generator) -> np.ndarray:
        """Electrons that light makes to a raw frame: dark current, noise, gain, bias pattern, drifting overscan."""
        one = self.detectors[chip]
        ny, nx = one.shape
        electrons = rng.poisson(np.maximum(light_e + one.dark * exptime_s, 0.0)) + rng.normal(
            0, READ_NOISE_E, one.shape
        )
        raw = rng.normal(0, READ_NOISE_E / GAIN, (ny, nx + 2 * OVERSCAN))
        raw[:, OVERSCAN:-OVERSCAN] = electrons / GAIN + one.bias
        raw += 900.0 + 4.0 * np.sin(np.arange(ny) / 40.0 + self.exposure)[:, None]
        return np.clip(np.rint(raw), 0, 65535).astype(np.uint16)

    def write(self, frames: dict[str, np.ndarray], exptime_s: float, **cards) -> dict[str, ChipFile]:
        """An exposure on disk, by chip."""
        self.exposure += 1
        head = fits.Header({"EXPNUM": self.exposure, "EXPTIME": exptime_s, **cards})
        make = fits.CompImageHDU if self.compressed else fits.ImageHDU
        hdus = {name: make(raw, name=name) for name, raw in frames.items()}
        groups = [list(frames)] if self.one_file else [[name] for name in frames]
        files = {}
        for group in groups:
            # with one file per chip the order of the names is not that of the exposures for all chips
            tag = "" if self.one_file else f"-{group[0]}-{(self.exposure * 7) % 11:02d}"
            path = self.folder / f"f{self.exposure}{tag}.fits"
            fits.HDUList([fits.PrimaryHDU(header=head), *(hdus[name] for name in group)]).writeto(path)
            files |= {name: ChipFile(name, str(path), name, ()) for name in group}
        return files

    def expose(self, light, exptime_s: float, seed: int, **cards) -> list[ChipFile]:
        """One exposure of all chips; `light(chip, detector, rng)` in electrons."""
        frames = {}
        for k, name in enumerate(self.chips):
            rng = np.random.default_rng([11, seed, k])
            frames[name] = self.to_raw(name, light(name, self.detectors[name], rng), exptime_s, rng)
        return list(self.write(frames, exptime_s, **cards).values())

    def add_set(self, kind: str, frames: list[ChipFile], band="all", night=NIGHT) -> str:
        """A calibration set of these frames; its key."""
        key = f"cal|{kind}|{band}|{night}"
        one = CalibrationSet(key, "cal", kind, band, night, tuple(frames))
        self.survey = replace(self.survey, calibrations={**self.survey.calibrations, key: one})
        return key

    def add_biases(self, n=7, **more) -> str:
        """Zero-second frames."""
        return self.add_set("bias", [f for k in range(n) for f in self.expose(dark_light, 0.0, k)], **more)

    def add_darks(self, exptimes_s=(300.0, 300.0, 600.0, 600.0, 600.0), **more) -> str:
        """Long frames without light, with cosmic rays."""
        frames = [f for k, t in enumerate(exptimes_s) for f in self.expose(cosmic_light, t, 100 + k)]
        return self.add_set("dark", frames, **more)

    def add_flats(self, levels_e=(20000.0, 22000.0, 18000.0, 25000.0, 21000.0), band="r", **more) -> str:
        """Evenly lit frames."""
        frames = [f for k, e in enumerate(levels_e) for f in self.expose(flat_light(e), 5.0, 200 + k)]
        return self.add_set("flat", frames, band, **more)

    def add_objects(self, kind: str, skies_e, band="r", fringes_e=0.0, seed=300, **more) -> str:
        """Exposures of the sky, each of another field."""
        frames = []
        for k, sky in enumerate(skies_e):
            frames += self.expose(sky_light(sky, fringes_e * sky), 60.0, seed + k)
        return self.add_set(kind, frames, band, **more)

    # ---- masters

    def make(self, key: str, settings: Settings | None = None) -> dict[str, Output]:
        """Plan, make and publish the masters of a set, by chip."""
        kind = key.split("|")[1]
        plan, make = (getattr(calibrations, f"{verb}_{SUFFIXES[kind]}") for verb in ("plan", "make"))
        outputs = {}
        for task in plan(self.survey, self.repo, settings or self.settings, "calib", key):
            output = make(task, self.repo)
            self.repo.publish(
                task.data_id, output.members, inputs=task.inputs, recipe="r", config_sha256="c", code=1,
                metrics=output.metrics,
            )  # fmt: skip
            outputs[task.data_id.unit] = output
        return outputs


def dark_light(_name: str, one: Detector, _rng: np.random.Generator) -> np.ndarray:
    return np.zeros(one.shape)


def cosmic_light(_name: str, one: Detector, rng: np.random.Generator) -> np.ndarray:
    """No light, and one pixel in five hundred hit by a cosmic ray."""
    light = np.zeros(one.shape)
    light.reshape(-1)[rng.permutation(light.size)[: light.size // 500]] = 4000.0
    return light


def flat_light(level_e: float):
    """A screen of this level."""
    return lambda _name, one, _rng: level_e * one.response


def sky_light(sky_e: float, fringe_e: float):
    """Sky with its own illumination, fringes, and stars that differ from exposure to exposure."""

    def light(_name: str, one: Detector, rng: np.random.Generator) -> np.ndarray:
        ny, nx = one.shape
        image = sky_e * one.illumination + fringe_e * one.fringe
        for _ in range(ny * nx // 1500):
            x, y, flux = rng.uniform(0, nx), rng.uniform(0, ny), 300.0 * 10 ** rng.uniform(0, 2.5)
            i, j = (
                np.arange(max(0, int(x) - 12), min(nx, int(x) + 13)),
                np.arange(max(0, int(y) - 12), min(ny, int(y) + 13)),
            )
            star = np.exp(-((i[None, :] - x) ** 2 + (j[:, None] - y) ** 2) / 8.0)
            image[j[0] : j[-1] + 1, i[0] : i[-1] + 1] += flux / 25.0 * star
        return image * one.response

    return light
