"""Calibrated chips of an exposure: raw frames through the steps its camera lists, or calibrated files read as they are.

The steps themselves are `pipeline/signature.py`'s; `calibrate_frame` takes one frame through them without a repository,
for a notebook. Sky, sources and astrometry come later (`pipeline/solutions.py`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from astropy.io import fits

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import Camera, Chip, load_camera
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.model.products import CALIBRATION_COLLECTION, MASTERS
from lap_assets.model.survey import ChipFile, Exposure, Survey
from lap_assets.pipeline.raw_files import read_frame
from lap_assets.pipeline.signature import Frame, SourceReader, list_steps, run_steps
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.pictures import thumbnail
from lap_assets.science import crosstalk, foreign_images, overscan
from lap_assets.settings import ChipSettings, Settings
from lap_assets.store.repo import Repo

_SAMPLE = 4  # every so many rows and columns tell the sky of a chip


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per working chip of the exposure, with its masters pinned."""
    exposure = survey.exposures[partition]
    camera = load_camera(exposure.camera, repo.cameras)
    factors = crosstalk.invert_couplings(camera.crosstalk) if exposure.kind == "raw" else {}
    files = {file.chip: file for file in exposure.chips}
    tasks = []
    for name, file in sorted(files.items()):
        if camera.chip(name).broken:
            continue
        params = _tell_exposure(exposure, camera, file)
        places = {"image": file.path, "variance": file.variance_path, "mask": file.mask_path}
        for source in crosstalk.list_source_chips(factors, name):
            if source != name and source in files:
                params.setdefault("sources", {})[source] = {"hdu": files[source].hdu, "sha256": files[source].sha256}
                places[f"source/{source}"] = files[source].path
        inputs = []
        masters = survey.upstream("chips", partition) if exposure.kind == "raw" else ()
        for product, key in masters:
            data_id = DataId(CALIBRATION_COLLECTION, product, key, name)
            pin = repo.pin(data_id)
            if pin is None:
                params["missing"] = f"no {data_id}"
            else:
                inputs.append(pin)
        data_id = DataId(collection, "chips", partition, name)
        tasks.append(Task(data_id, tuple(sorted(inputs)), settings, params, places))
    return tasks


def _tell_exposure(exposure: Exposure, camera: Camera, file: ChipFile) -> dict[str, Any]:
    """What a task must know of the exposure and of the file of its chip."""
    return {
        "camera": camera.name, "camera_sha256": camera.sha256, "kind": exposure.kind, "band": exposure.band,
        "night": exposure.night,
        "mjd": exposure.mjd, "exptime_s": exposure.exptime_s,
        "ra_deg": exposure.ra_deg, "dec_deg": exposure.dec_deg,
        "hdu": file.hdu, "sha256": file.sha256,
    }  # fmt: skip


def make(task: Task, repo: Repo) -> Output:
    """One calibrated chip: electrons (raw) or the unit of the file (calibrated), sky included."""
    if "missing" in task.params:
        raise UnprocessableData(f"chip {task.data_id.unit}: {task.params['missing']}")
    if task.params["kind"] == "calibrated":
        image = _read_calibrated(task, repo)
        metrics = measure_chip(image, task.data_id.unit, task.settings.chips)
    else:
        image, metrics = _calibrate_raw(task, repo)
    return Output({"image.fits": image, "preview.png": thumbnail(image.sci, image.mask)}, metrics)


def measure_chip(image: MaskedImage, name: str, chosen: ChipSettings) -> dict[str, Any]:
    """Sky level, its scatter and counts of flagged pixels of a calibrated chip.

    Raises
    ------
    UnprocessableData
        Fewer pixels than `min_good_fraction` are usable.
    """
    good = image.usable
    fraction = np.count_nonzero(good) / good.size
    if fraction < chosen.min_good_fraction:
        raise UnprocessableData(f"chip {name}: {fraction:.1%} usable pixels, {chosen.min_good_fraction:.0%} are needed")
    step = _SAMPLE if min(image.shape) >= 256 * _SAMPLE else 1
    values = image.sci[::step, ::step][good[::step, ::step]]
    sky = float(np.median(values)) if values.size else 0.0
    return {
        "sky": round(sky, 3),
        "sky_rms": round(float(1.4826 * np.median(np.abs(values - sky))) if values.size else 0.0, 4),
        "n_saturated_px": _count(image.mask, Mask.SATURATED),
        "n_cosmic_ray_px": _count(image.mask, Mask.COSMIC_RAY),
        "n_bad_px": _count(image.mask, Mask.BAD | Mask.NO_DATA),
        "n_streak_px": _count(image.mask, Mask.STREAK),
    }


def _count(mask: np.ndarray, bits: Mask) -> int:
    return int(np.count_nonzero(mask & np.int16(bits)))


# ---- raw frames


def calibrate_frame(
    raw: np.ndarray,
    chip: Chip,
    camera: Camera,
    masters: Mapping[str, MaskedImage],
    settings: ChipSettings,
    *,
    exptime_s: float = 0.0,
    header: Mapping[str, Any] | None = None,
    read_source: SourceReader | None = None,
) -> tuple[MaskedImage, dict[str, Any]]:
    """One raw frame through all steps of its camera; needs no repository.

    Parameters
    ----------
    raw : (raw_ny, raw_nx) array
        ADU, overscan included.
    chip : Chip
    camera : Camera
        Gives the order of the steps, crosstalk and the brighter-fatter kernel.
    masters : mapping of kind (bias, dark, flat, sky, fringe) to MaskedImage
        Of this chip and band.
    settings : ChipSettings
    exptime_s : float
        Scales the dark.
    header : mapping, optional
        The chip's own header, for cameras whose sections or gains stand there.
    read_source : callable, optional
        Chip (resolved) and raw frame by the name of another chip that crosstalk comes from; None: not there.

    Returns
    -------
    image : MaskedImage
        Electrons; ADU if the step `gain` is left out. Its header has BUNIT and no WCS.
    metrics : dict

    Raises
    ------
    UnprocessableData
        The frame or a master cannot be used; the text names the chip and what is wrong with it.
    BadInput
        The order of the steps makes no sense.
    """
    steps = list_steps(camera, settings)
    chip = chip.resolve({} if header is None else header)
    trimmed = overscan.assemble_chip(raw, chip)
    finite = np.isfinite(trimmed)
    values = trimmed if finite.all() else trimmed[finite]
    if values.size == 0 or values.min() == values.max():
        raise UnprocessableData(f"chip {chip.name}: the raw frame holds no data; fetch it again and ingest it")
    mask = np.where(finite, np.int16(0), np.int16(Mask.NO_DATA))
    if not finite.all():
        trimmed[~finite] = 0.0
    del finite, values
    frame = Frame(raw, trimmed, mask, chip, camera, masters, settings, exptime_s, read_source or _know_no_source)
    del trimmed, mask  # the steps replace them: two copies at a time are enough
    run_steps(frame, steps)
    empty = (frame.mask & np.int16(Mask.NO_DATA)) != 0
    if empty.any():
        frame.image[empty] = frame.var[empty] = 0.0
    told = fits.Header([("BUNIT", "electron" if "gain" in steps else "adu")])
    image = MaskedImage(frame.image, frame.mask, frame.var, told)
    return image, measure_chip(image, chip.name, settings) | frame.metrics


def _know_no_source(_name: str) -> None:
    return None


class _PinnedMasters(Mapping[str, MaskedImage]):
    """The masters of a task by kind, read when asked for: all at once would be most of the memory of a chip."""

    def __init__(self, task: Task, repo: Repo) -> None:
        self._pins = {kind: pin for kind, product in MASTERS.items() for pin in task.pins(product)}
        self._band, self._chip, self._repo = task.params["band"], task.data_id.unit, repo

    def __getitem__(self, kind: str) -> MaskedImage:
        pin: Pin = self._pins[kind]
        band = pin.data_id.parts[2]
        if kind not in ("bias", "dark") and band != self._band:
            raise UnprocessableData(
                f"chip {self._chip}: the master {pin.data_id} is of band {band}, the exposure of {self._band}; "
                "correct the association (lap calibration)"
            )
        return self._repo.read_image(pin)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pins)

    def __len__(self) -> int:
        return len(self._pins)


def _calibrate_raw(task: Task, repo: Repo) -> tuple[MaskedImage, dict[str, Any]]:
    camera = load_camera(task.params["camera"], repo.cameras)
    chip = camera.chip(task.data_id.unit)
    raw, header = read_frame(task.places["image"], task.params["hdu"])

    def read_source(name: str) -> tuple[Chip, np.ndarray] | None:
        if name not in task.params.get("sources", {}):
            return None
        try:
            pixels, own = read_frame(task.places[f"source/{name}"], task.params["sources"][name]["hdu"])
            source = camera.chip(name).resolve(own)
            overscan.check_raw_shape(pixels, source)
        except UnprocessableData:
            return None  # a damaged neighbour must not cost this chip, too; the metrics name it
        return source, pixels

    image, metrics = calibrate_frame(
        raw, chip, camera, _PinnedMasters(task, repo), task.settings.chips,
        exptime_s=task.params["exptime_s"], header=header, read_source=read_source,
    )  # fmt: skip
    told = camera.nominal_wcs(chip.name, task.params["ra_deg"], task.params["dec_deg"])
    _describe(told, task, image.header["BUNIT"])
    image.header = told
    return image, metrics


# ---- calibrated files


def _read_calibrated(task: Task, repo: Repo) -> MaskedImage:
    camera = load_camera(task.params["camera"], repo.cameras)
    if camera.calibrated is None:
        raise UnprocessableData(f"camera {camera.name} has no section `calibrated`, which calibrated exposures need")
    sci, header = read_frame(task.places["image"], task.params["hdu"])
    ivar, _ = read_frame(task.places["variance"], task.params["hdu"])
    codes, _ = read_frame(task.places["mask"], task.params["hdu"])
    if not sci.shape == ivar.shape == codes.shape:
        raise UnprocessableData(
            f"chip {task.data_id.unit}: shapes differ: image {sci.shape}, inverse variance {ivar.shape}, "
            f"mask {codes.shape}; fetch the files again and ingest them"
        )
    if not np.isfinite(sci).any():
        raise UnprocessableData(f"chip {task.data_id.unit}: {task.places['image']} holds no finite pixel")
    mask = foreign_images.translate_mask(codes, camera.calibrated.mask_codes, camera.calibrated.mask_is_bits)
    sci, mask, var = foreign_images.complete_variance(sci, ivar, mask)
    kept = _wcs_cards(header)
    _describe(kept, task, str(header.get("BUNIT", "adu")).strip() or "adu")
    return MaskedImage(sci, mask, var, kept)


def _wcs_cards(header: fits.Header) -> fits.Header:
    """NAXISn and the cards of the celestial WCS, TPV included."""
    wanted = ("CTYPE", "CRVAL", "CRPIX", "CUNIT", "CD1_", "CD2_", "CDELT", "PC1_", "PC2_", "PV1_", "PV2_", "RADESYS",
              "EQUINOX", "A_", "B_", "AP_", "BP_", "LONPOLE", "LATPOLE", "NAXIS")  # fmt: skip
    kept = fits.Header([card for card in header.cards if card.keyword.startswith(wanted)])
    return kept


def _describe(header: fits.Header, task: Task, unit: str) -> None:
    header["BUNIT"] = unit
    header["EXPOSURE"], header["CHIP"] = task.data_id.partition, task.data_id.unit
    header["BAND"], header["EXPTIME"], header["MJD"] = (task.params[key] for key in ("band", "exptime_s", "mjd"))
