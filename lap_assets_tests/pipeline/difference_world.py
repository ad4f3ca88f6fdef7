"""A repository of published warps of one skycell with truth, for the tests of templates and differences.

Stars in several seeings over three nights, noise correlated as resampling leaves it, PSFs published with the warps.
"""

import numpy as np
import pandas as pd

from lap_assets.model.ids import DataId, join_key
from lap_assets.model.image import MaskedImage
from lap_assets.model.survey import Exposure, Run, Survey
from lap_assets.model.tessellation import load_tessellation
from lap_assets.pipeline.engine import Session, make_partitions
from lap_assets.pipeline.psf_members import planes_of_grid
from lap_assets.science.psf_grid import PsfGrid, lay_nodes
from lap_assets.settings import parse_settings
from lap_assets.store.repo import Repo
from lap_assets_tests.science.difference_fields import draw_moffat, smooth_noise

SCALE, SIZE, SKY = 0.3, 420, "00"
NIGHTS = {"e1": "n1", "e2": "n1", "e3": "n2", "e4": "n2", "e5": "n3", "e6": "n3", "e7": "n3"}
SEEING = dict(zip(NIGHTS, (3.0, 3.2, 2.8, 3.4, 3.1, 2.9, 3.3), strict=True))  # px
SIGMA = 10.0


def make_cell(name="t", ra_deg=150.0, dec_deg=2.0, size=SIZE):
    """A cell of one skycell."""
    return load_tessellation(
        {"kind": "local", "name": name, "ra_deg": ra_deg, "dec_deg": dec_deg, "pixel_scale_arcsec": SCALE,
         "skycell_px": size, "grid": [1, 1], "overlap_px": 0}
    ).cell(f"{name}.0")  # fmt: skip


def make_exposure(name, night="n1", band="r"):
    return Exposure(name, "sim", band, band, night, 60000.0 + int(name[1:]), 60.0, 150.0, 2.0)


class World:
    """One cell, one band; `stars` are x, y [px] and flux [nJy] on its skycell."""

    def __init__(self, root, members=tuple(NIGHTS), n_stars=70, seed=5, collection="main", cell=None):
        self.repo, self.collection = Repo(root, (collection,)), collection
        self.cell = make_cell() if cell is None else cell
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(8, SIZE - 8, (2, n_stars))
        self.stars = np.column_stack([x, y, 10 ** rng.uniform(3.2, 5.2, n_stars)])
        exposures = {name: make_exposure(name, NIGHTS[name]) for name in members}
        run = Run(1, self.cell.name, "r", tuple(members))
        self.survey = Survey(collection, exposures, {self.cell.name: self.cell}, (run,))

    def draw(self, name, changes=(), shift=(0.0, 0.0), seeing=None, stars=None, seed=None):
        """Image (nJy) and PSF stamp of an exposure; `changes` are further (x, y, flux) that it alone has."""
        fwhm = SEEING[name] if seeing is None else seeing
        rng = np.random.default_rng(int(name[1:]) if seed is None else seed)
        stars = self.stars if stars is None else stars
        every = np.vstack([stars, np.array(changes, float).reshape(-1, 3)])
        light = draw_moffat(SIZE, every[:, 0] + shift[0], every[:, 1] + shift[1], every[:, 2], fwhm)
        variance = SIGMA**2 + 0.05 * light
        noise, covariance = smooth_noise(rng, variance, rng.uniform(0.2, 0.8))
        sci = light + noise
        header = self.cell.skycells[SKY].header()
        header["BUNIT"], header["EXPOSURE"], header["BAND"] = "nJy", name, "r"
        header["NIGHT"], header["MJD"] = NIGHTS[name], 60000.0 + int(name[1:])
        header["FWHM"], header["NOISECOV"] = fwhm * SCALE, covariance
        image = MaskedImage(sci.astype(np.float32), np.zeros(sci.shape, np.int16), variance.astype(np.float32), header)
        stamp = draw_moffat(51, [25], [25], [1.0], fwhm, half=25)
        return image, stamp / stamp.sum()

    def publish_warp(self, name, image, stamp):
        x, y = lay_nodes(image.shape)
        stamps = np.tile(stamp.astype(np.float32), (len(y), len(x), 1, 1))
        bright = self.stars[self.stars[:, 2] > 2e4]
        table = pd.DataFrame(bright, columns=["x", "y", "flux_njy"]).assign(snr=bright[:, 2] / (SIGMA * 10))
        members = {"image.fits": image, "psf.fits": planes_of_grid(PsfGrid(x, y, stamps)), "stars.parquet": table}
        return self.publish("warps", join_key(name, self.cell.name), members)

    def publish(self, product, partition, members, inputs=()):
        data_id = DataId(self.collection, product, partition, SKY)
        return self.repo.publish(
            data_id, members, inputs=inputs, recipe="x", config_sha256="x", code=1, metrics={}
        ).pin  # fmt: skip

    def fill(self, **changes):
        """Publish a warp of every exposure of the run; `changes` by exposure are keywords of `draw`."""
        for name in self.survey.exposures:
            self.publish_warp(name, *self.draw(name, **changes.get(name, {})))
        return self

    def run(self, product, *names, **sections):
        """Make partitions (exposures of a diff, else the cell's) through the engine; their one unit's report each."""
        settings = parse_settings({"compute": {"executor": "serial"}} | sections, "test")
        key = self.cell.name
        partitions = [join_key(name, key) for name in names] if names else [join_key(key, "r")]
        session = Session(self.survey, self.repo, settings)
        found = {report.partition: report.units for report in make_partitions(session, product, partitions)}
        return [found[partition][0] for partition in partitions]

    def read(self, product, name):
        """Image and sources of a difference."""
        data_id = DataId(self.collection, product, join_key(name, self.cell.name), SKY)
        return self.repo.read_image(data_id), self.repo.read_table(data_id, "sources.parquet")
