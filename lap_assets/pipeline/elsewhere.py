"""Templates of another collection or repository: which of its images overlap a skycell, and those on its pixels.

Here: looking for them (planning) and bringing them onto our grid (`science/warp.py` does the resampling). What is a
template of this run is `templates.py`'s.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.errors import BadInput, NotFound
from lap_assets.model.ids import JOIN, DataId, Pin, join_key
from lap_assets.model.image import MaskedImage
from lap_assets.model.states import DONE
from lap_assets.science.pixel_map import map_pixels
from lap_assets.science.warp import covariance_factor, make_empty_warp, warp_chip
from lap_assets.settings import DiffSettings
from lap_assets.store.repo import Repo

STACKS = ("final_stacks", "stacks")  # the first of them that has an image for a skycell
_GRID_CARDS = ("NAXIS1", "NAXIS2", "CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2",
               "CD2_1", "CD2_2")  # fmt: skip
_FAR_DEG = 10.0  # between the reference points of two grids, beyond which no skycells overlap

Image = tuple[Pin, fits.Header, WCS]


@dataclass(frozen=True)
class Elsewhere:
    """Where templates are looked for.

    Attributes
    ----------
    repo : Repo
    collection : str
    wanted : str
        Exposure whose warps are wanted; empty: stacks of `band`.
    band : str
    """

    repo: Repo
    collection: str
    wanted: str
    band: str

    @property
    def products(self) -> tuple[str, ...]:
        return ("warps",) if self.wanted else STACKS

    @property
    def description(self) -> str:
        """What is looked for, in words; no path, as it is kept with the product."""
        what = f"a warp of {self.wanted}" if self.wanted else f"a stack in band {self.band}"
        return f"{what} in collection {self.collection}"

    def find(self, cell: str, skycell: str, header: fits.Header) -> list[Pin]:
        """Images that show part of a skycell: the one of the same name and grid, else all that overlap it, sorted."""
        partition = f"{self.wanted}{JOIN}{cell}" if self.wanted else f"{cell}{JOIN}{self.band}"
        for product in self.products:
            data_id = DataId(self.collection, product, partition, skycell)
            manifest = self.repo.manifest(data_id)
            there = manifest is not None and manifest.state == DONE
            if there and is_same_grid(self.repo.read_header(data_id, "image.fits"), header):
                return [manifest.pin]
        ours = WCS(header)
        return sorted(pin for pin, theirs, wcs in self._find_near(ours) if overlaps(ours, header, wcs, theirs))

    def find_night(self, stack: Pin, night: str) -> list[DataId]:
        """Warps of a night that are in a stack, as its table of inputs says; sorted."""
        try:
            inputs = self.repo.read_table(stack, "inputs.parquet", ["exposure", "night", "weight"])
        except NotFound:
            return []
        where = stack.data_id
        mine = inputs.loc[(inputs["night"] == night) & (inputs["weight"] > 0), "exposure"]
        return [DataId(self.collection, "warps", join_key(one, where.parts[0]), where.unit) for one in sorted(mine)]

    @cached_property
    def _partitions(self) -> dict[str, list[DataId]]:
        """Units that might serve by partition, the first product's before the next one's; no manifest is read."""
        found: dict[str, list[DataId]] = {}
        for product in self.products:
            for data_id in self.repo.all_units(self.collection, product):
                if (data_id.parts[0] == self.wanted) if self.wanted else (data_id.parts[1] == self.band):
                    found.setdefault(data_id.partition, []).append(data_id)
        return found

    @cached_property
    def _known(self) -> dict[DataId, Image | None]:
        """Images read so far: all skycells of a partition ask for the same ones."""
        return {}

    def _read(self, data_id: DataId) -> Image | None:
        if data_id not in self._known:
            manifest = self.repo.manifest(data_id)
            there = manifest is not None and manifest.state == DONE
            header = self.repo.read_header(data_id, "image.fits") if there else None
            self._known[data_id] = (manifest.pin, header, WCS(header)) if there else None
        return self._known[data_id]

    def _find_near(self, ours: WCS) -> Iterator[Image]:
        """Finished images of the partitions near ours, one for each skycell.

        All images of a partition share their reference point: the first one tells whether to read the others.
        """
        for data_ids in self._partitions.values():
            seen: set[str] = set()
            for data_id in data_ids:
                image = self._read(data_id) if data_id.unit not in seen else None
                if image is None:
                    continue
                seen.add(data_id.unit)
                if is_far(ours, image[2]):
                    break
                yield image


def open_elsewhere(repo: Repo, settings: DiffSettings, collection: str, wanted: str, band: str) -> Elsewhere:
    """Where the settings say that templates are; raises `BadInput` where there is no such repository or collection."""
    root = Path(repo.root / settings.template_repository)
    place = Elsewhere(Repo(root), settings.template_collection or collection, wanted, band)
    known = place.repo.layout.collections() if root.is_dir() else []
    if settings.template_repository and not known:
        raise BadInput(
            f"diffs.template_repository: {root} is no repository with products: name the folder with lap.yaml in it, "
            "or leave the setting out"
        )
    if place.collection not in known:
        there = ", ".join(known) or "none"
        raise BadInput(f"diffs.template_collection: no collection {place.collection!r} in {root}; there are: {there}")
    return place


def is_same_grid(one: fits.Header, other: fits.Header) -> bool:
    """Whether two images have the same pixels on the sky."""
    values = ((one.get(card, 0.0), other.get(card, 0.0)) for card in _GRID_CARDS)
    return all(a == b if isinstance(a, str) else abs(float(a) - float(b)) < 1e-9 for a, b in values)


def is_far(ours: WCS, theirs: WCS) -> bool:
    """Whether the reference points of two grids lie too far apart for any of their images to overlap."""
    (ra, dec), (ra0, dec0) = np.radians(ours.wcs.crval), np.radians(theirs.wcs.crval)
    cosine = np.sin(dec) * np.sin(dec0) + np.cos(dec) * np.cos(dec0) * np.cos(ra - ra0)
    return bool(cosine < np.cos(np.radians(_FAR_DEG)))


def overlaps(ours: WCS, our_header: fits.Header, theirs: WCS, their_header: fits.Header) -> bool:
    """Whether the outline of one image reaches into the other's box of pixels."""
    nx, ny = our_header["NAXIS1"], our_header["NAXIS2"]
    x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, 9), np.linspace(-0.5, ny - 0.5, 9))
    tx, ty = theirs.all_world2pix(*ours.all_pix2world(x.ravel(), y.ravel(), 0), 0)
    inside = tx.max() > -0.5 and tx.min() < their_header["NAXIS1"] - 0.5
    return bool(inside and ty.max() > -0.5 and ty.min() < their_header["NAXIS2"] - 0.5)


def resample_images(images: Sequence[MaskedImage], header: fits.Header) -> MaskedImage:
    """Images on the grid of `header`, which keeps FWHM and NOISECOV; of two that overlap the first one counts."""
    shape = (header["NAXIS2"], header["NAXIS1"])
    onto, target = make_empty_warp(shape, header.copy()), WCS(header)
    areas, widths, factors = [], [], []
    for image in images:
        pixel_map = map_pixels(image.wcs, image.shape, target, shape)
        written = 0 if pixel_map is None else warp_chip(onto, image.sci, image.mask, image.var, pixel_map)
        if written:
            areas.append(written)
            widths.append(float(image.header["FWHM"]))
            factors.append(float(image.header.get("NOISECOV", 1.0)) * covariance_factor(pixel_map))
    if areas:
        onto.header["FWHM"] = (round(float(np.average(widths, weights=areas)), 4), "arcsec")
        onto.header["NOISECOV"] = (round(float(np.average(factors, weights=areas)), 5), "variance of large sums / VAR")
    return onto


def split_pins(pins: Sequence[Pin]) -> list[list[str]]:
    """Pins as JSON-able pairs, for the facts of a task."""
    return [[str(pin.data_id), pin.content] for pin in pins]


def join_pins(facts: Sequence[Sequence[str]]) -> list[Pin]:
    """Back from `split_pins`."""
    return [Pin(DataId.parse(name), content) for name, content in facts]
