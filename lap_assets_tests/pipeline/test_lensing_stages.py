"""From final stacks to a mass: the four stages on a small simulated field, through a real repository.

The field is drawn by GalSim: a strong lens (2e15 Msun) behind which 40 galaxies per arcmin^2 lie, sharp deep images, so
that 5' suffice. Two skycells; band i is missing in the second.
"""

import dataclasses

import galsim
import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS

from lap_assets.errors import NoWork, UnprocessableData
from lap_assets.model.ids import DataId, join_key
from lap_assets.model.image import MaskedImage
from lap_assets.model.objects import Extendedness
from lap_assets.model.survey import Run, Survey
from lap_assets.model.tessellation import load_tessellation
from lap_assets.pipeline import mass_fits, mass_maps, object_catalogs, shear_catalogs
from lap_assets.qa.metrics import match_positions, measure_separation
from lap_assets.science.shear import calibrate_shears
from lap_assets.settings import parse_settings
from lap_assets.store.repo import Repo
from lap_assets_tests.science.lensing_fields import Z_SOURCE, galsim_halo

pytestmark = pytest.mark.slow

SCALE, COLLECTION, CELL_NAME = 0.4, "main", "t.0"
CELL = load_tessellation(
    {"kind": "local", "name": "t", "ra_deg": 150.0, "dec_deg": 30.0, "pixel_scale_arcsec": SCALE, "skycell_px": 480,
     "grid": [2, 1], "overlap_px": 30}
).cell(CELL_NAME)  # fmt: skip
LENS = (8.0, -5.0)  # arcsec east and north of the cell's centre
SETTINGS = parse_settings(
    {
        "shear_catalogs": {"bright_mag": 18.0, "psf_star_min_snr": 30.0},
        "mass_maps": {"radii_arcmin": [2.0], "map_radius_arcmin": 2.0, "peak_snr": 3.0},
        "mass_fits": {"min_radius_mpc": 0.1, "max_radius_mpc": 0.6, "n_rings": 5},
    },
    "test",
)
STAGES = {m.__name__.rpartition(".")[2]: m for m in (object_catalogs, shear_catalogs, mass_maps, mass_fits)}


def draw_sky(seed=1):
    """Noise-free images (nJy) by band and the truth table (x, y in cell pixels, r magnitude, is_star)."""
    rng = np.random.default_rng(seed)
    halo = galsim_halo(2e15, x_arcsec=LENS[0], y_arcsec=LENS[1])
    psfs = {"g": galsim.Moffat(beta=3, fwhm=0.8), "r": galsim.Moffat(beta=3, fwhm=0.7).shear(e1=0.03)}
    images = {band: np.zeros((CELL.ny, CELL.nx)) for band in "gri"}
    truth = []
    n_galaxies = int(40 * CELL.nx * CELL.ny * (SCALE / 60) ** 2)
    for k in range(n_galaxies + 45):
        x, y = rng.uniform(4, CELL.nx - 4), rng.uniform(4, CELL.ny - 4)
        star = k >= n_galaxies
        mag = rng.uniform(19.0, 22.0) if star else 21.0 + 2.7 * rng.power(2.0)
        colour = 0.5 if star else rng.normal(0.6, 0.35)
        profile = None
        if not star:
            east, north = -(x - CELL.crpix[0] + 1) * SCALE, (y - CELL.crpix[1] + 1) * SCALE
            if np.hypot(east - LENS[0], north - LENS[1]) < 25:
                continue
            g1, g2 = halo.getShear(galsim.PositionD(east, north), Z_SOURCE)
            e = np.clip(rng.normal(0, 0.2, 2), -0.4, 0.4)
            galaxy = galsim.Exponential(half_light_radius=rng.uniform(0.35, 0.8)).shear(g1=e[0], g2=e[1])
            profile = galaxy.shear(g1=g1, g2=g2).transform(-1, 0, 0, 1)  # pixels run to the west
        i, j = round(x), round(y)
        box = np.s_[max(j - 24, 0) : j + 25, max(i - 24, 0) : i + 25]
        cut = np.s_[max(24 - j, 0) : 24 - j + CELL.ny, max(24 - i, 0) : 24 - i + CELL.nx]
        for band, psf in psfs.items():
            seen = galsim.Convolve(profile, psf) if profile else psf
            stamp = seen.drawImage(nx=49, ny=49, scale=SCALE, offset=(x - i, y - j)).array[cut]
            images[band][box] += 10 ** (0.4 * (31.4 - mag - colour * (band == "g"))) * stamp
        truth.append((x, y, mag, star))
    images["i"] = 1.3 * images["r"]
    return images, np.array(truth)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A repository with final stacks, everything made from them, and the truth."""
    repo = Repo(tmp_path_factory.mktemp("repo"), collections=(COLLECTION,))
    runs = tuple(Run(k, CELL_NAME, band, ()) for k, band in enumerate("gri"))
    survey = Survey(COLLECTION, cells={CELL_NAME: CELL}, runs=runs)
    images, truth = draw_sky()
    rng = np.random.default_rng(2)
    for band, perfect in images.items():
        noisy = (perfect + rng.normal(0, 8.0, perfect.shape)).astype(np.float32)
        for name, skycell in CELL.skycells.items():
            if (band, name) != ("i", "01"):
                publish_stack(repo, band, skycell, noisy)
    outputs = {stage: run_stage(repo, survey, stage) for stage in STAGES}
    return repo, survey, truth, outputs


def publish_stack(repo, band, skycell, noisy):
    box = np.s_[skycell.y0 : skycell.y0 + skycell.ny, skycell.x0 : skycell.x0 + skycell.nx]
    shape = (skycell.ny, skycell.nx)
    image = MaskedImage(
        noisy[box].copy(), np.zeros(shape, np.int16), np.full(shape, 64.0, np.float32), skycell.header()
    )
    image.planes["NINPUT"] = np.full(shape, 6, np.int16)
    inputs = pd.DataFrame({"exposure": ["a"], "weight": [1.0], "fwhm_arcsec": [0.85]})
    publish(repo, DataId(COLLECTION, "final_stacks", join_key(CELL_NAME, band), skycell.name), {
        "image.fits": image, "inputs.parquet": inputs,
    })  # fmt: skip


def publish(repo, data_id, members, inputs=(), metrics=None):
    repo.publish(data_id, members, inputs=inputs, recipe="x", config_sha256="x", code=1, metrics=metrics or {})


def run_stage(repo, survey, stage):
    outputs = {}
    for task in STAGES[stage].plan(survey, repo, SETTINGS, COLLECTION, CELL_NAME):
        output = STAGES[stage].make(task, repo)
        publish(repo, task.data_id, output.members, task.inputs, output.metrics)
        outputs[task.data_id.unit] = (task, output)
    return outputs


def read_objects(world):
    repo = world[0]
    units = repo.units(COLLECTION, "object_catalogs", CELL_NAME)
    return pd.concat([repo.read_table(unit, "objects.parquet") for unit in units], ignore_index=True)


def test_objects_of_the_cell_are_unique_and_where_they_are(world):
    """Over the seam of two skycells: ids unique, no object twice, bright stars found to 10 mas."""
    objects, truth = read_objects(world), world[2]
    assert objects["object_id"].is_unique
    stars = truth[truth[:, 3] == 1]
    ra, dec = CELL.pixel_to_sky(stars[:, 0], stars[:, 1])
    found, there = match_positions(ra, dec, objects["ra"].to_numpy(), objects["dec"].to_numpy(), 0.5)
    assert len(found) >= 0.9 * len(stars)
    offset = measure_separation(
        ra[found], dec[found], objects["ra"].to_numpy()[there], objects["dec"].to_numpy()[there]
    )
    assert np.median(offset) < 0.010
    place = objects[["x", "y"]].to_numpy() + np.array(
        [[CELL.skycells[name.split("-")[1]].x0, 0] for name in objects["object_id"]]
    )
    close = np.hypot(*(place[:, None] - place[None]).transpose(2, 0, 1)) < 1.0
    assert close.sum() == len(objects)


def test_magnitudes_and_classes_of_bright_stars_are_right(world):
    """Total magnitudes in r to 10 mmag, g - r to 10 mmag; at least 90 % of stars are called so."""
    objects, truth = read_objects(world), world[2]
    stars = truth[(truth[:, 3] == 1) & (truth[:, 2] < 21.5)]
    ra, dec = CELL.pixel_to_sky(stars[:, 0], stars[:, 1])
    found, there = match_positions(ra, dec, objects["ra"].to_numpy(), objects["dec"].to_numpy(), 0.5)
    own = objects.iloc[there]
    clean = (own["flags_r"] == 0).to_numpy()
    mag = 31.4 - 2.5 * np.log10(own["flux_psf_r"].to_numpy())
    assert abs(np.median((mag - stars[found, 2])[clean])) < 0.010
    colour = -2.5 * np.log10(own["flux_gauss_g"].to_numpy() / own["flux_gauss_r"].to_numpy())
    assert abs(np.median(colour[clean]) - 0.5) < 0.010
    assert np.mean(own["extendedness"].to_numpy()[clean] <= Extendedness.LIKELY_STAR) >= 0.9


def test_a_band_missing_in_one_skycell_is_nan_there(world):
    objects = read_objects(world)
    second = objects["object_id"].str.split("-").str[1] == "01"
    assert second.any() and not second.all()
    assert objects.loc[second, "flux_psf_i"].isna().all()
    assert objects.loc[~second, "flux_psf_i"].notna().mean() > 0.9
    assert objects["flux_psf_r"].notna().mean() > 0.9


def test_shapes_are_of_galaxies_only(world):
    _, _, truth, outputs = world
    table = pd.concat([output.members["shear.parquet"] for _, output in outputs["shear_catalogs"].values()])
    ra, dec = CELL.pixel_to_sky(truth[:, 0], truth[:, 1])
    _, there = match_positions(table["ra"].to_numpy(), table["dec"].to_numpy(), ra, dec, 1.0)
    assert np.mean(truth[there, 3] == 1) < 0.02
    assert len(table) > 300
    assert {"object_id", "e1", "e2", "e_err", "weight", "response"} <= set(table.columns)
    assert (table["weight"] > 0).all()


def test_map_peaks_at_the_lens_with_a_header_that_says_where(world):
    """LV-22: highest peak above 4 sigma within 0.5' of the lens, at the same place by table and by FITS header."""
    repo, _, _, outputs = world
    _, output = outputs["mass_maps"][""]
    planes = repo.read_planes(DataId(COLLECTION, "mass_maps", CELL_NAME), "map.fits")
    peak = output.members["peaks.parquet"].iloc[0]
    lens_ra, lens_dec = 150.0 + LENS[0] / 3600 / np.cos(np.radians(30.0)), 30.0 + LENS[1] / 3600
    lens = np.array([lens_ra]), np.array([lens_dec])
    assert peak["snr"] > 4
    assert measure_separation(np.array([peak["ra"]]), np.array([peak["dec"]]), *lens)[0] < 30
    snr, header = planes["SNR"]
    j, i = np.unravel_index(snr.argmax(), snr.shape)
    ra, dec = WCS(header).all_pix2world([i], [j], 0)
    assert measure_separation(ra, dec, np.array([peak["ra"]]), np.array([peak["dec"]]))[0] < 6  # one pixel of 0.1'
    assert output.metrics["b_mode_max_sigma"] < 4
    assert all(np.isfinite(plane).all() for plane, _ in planes.values())


def test_mass_of_the_lens_is_right_within_its_errors(world):
    """LV-23: within 2 sigma of 2e15 Msun."""
    _, output = world[3]["mass_fits"][""]
    fit = output.members["fit.json"]
    low, high = fit["m200c_msun"] - 2 * fit["m200c_minus_msun"], fit["m200c_msun"] + 2 * fit["m200c_plus_msun"]
    assert low < 2e15 < high
    assert fit["snr"] > 4
    assert output.metrics["chi2"] < 15


def test_previews_are_small(world):
    for outputs in world[3].values():
        for _, output in outputs.values():
            assert 0 < len(output.members["preview.png"]) <= 10_000


def test_making_twice_gives_the_same_content(world):
    repo, _, _, outputs = world
    for stage, units in outputs.items():
        task, _ = units[max(units)]
        before = repo.manifest(task.data_id).content_sha256
        publish(repo, task.data_id, STAGES[stage].make(task, repo).members, task.inputs)
        assert repo.manifest(task.data_id).content_sha256 == before


def test_nothing_to_work_on_is_said_plainly(tmp_path):
    """A cell whose stacks are all without work: every stage gives a reason, none raises anything else."""
    repo = Repo(tmp_path, collections=(COLLECTION,))
    survey = Survey(COLLECTION, cells={CELL_NAME: CELL}, runs=(Run(1, CELL_NAME, "r", ()),))
    stack = DataId(COLLECTION, "final_stacks", join_key(CELL_NAME, "r"), "00")
    repo.publish(
        stack, {}, inputs=(), recipe="x", config_sha256="x", code=1, metrics={}, state="no_work", reason="no exposure"
    )
    for stage, reason in (
        ("object_catalogs", "no usable final stack of skycell 00 in r"),
        ("shear_catalogs", "no objects in skycell 00"),
        ("mass_maps", "no shear catalogue"),
        ("mass_fits", "no mass map"),
    ):
        (task,) = STAGES[stage].plan(survey, repo, SETTINGS, COLLECTION, CELL_NAME)
        with pytest.raises(NoWork, match=reason):
            STAGES[stage].make(task, repo)
        repo.publish(
            task.data_id,
            {},
            inputs=(),
            recipe="x",
            config_sha256="x",
            code=1,
            metrics={},
            state="no_work",
            reason=reason,
        )


def test_an_empty_sky_goes_through_the_stages_that_can_take_it(tmp_path):
    """Pure noise, no star, no galaxy: a catalogue (nearly) without objects, then a plain reason, never a traceback."""
    repo = Repo(tmp_path, collections=(COLLECTION,))
    survey = Survey(COLLECTION, cells={CELL_NAME: CELL}, runs=(Run(1, CELL_NAME, "r", ()),))
    rng = np.random.default_rng(3)
    publish_stack(repo, "r", CELL.skycells["00"], rng.normal(0, 0.01, (CELL.ny, CELL.nx)).astype(np.float32))
    outputs = run_stage(repo, survey, "object_catalogs")
    _, output = outputs["00"]
    assert len(output.members["objects.parquet"]) == output.metrics["n_objects"] == 0
    (task,) = shear_catalogs.plan(survey, repo, SETTINGS, COLLECTION, CELL_NAME)
    with pytest.raises(UnprocessableData, match="too few stars for a PSF model in r"):
        shear_catalogs.make(task, repo)


def test_a_skycell_without_background_galaxies_has_an_empty_table(world):
    """All galaxies cut away by magnitude: the table is empty, the map's stage says that nothing is left."""
    repo, _, _, outputs = world
    task, _ = outputs["shear_catalogs"]["00"]
    strict = parse_settings({"shear_catalogs": {"bright_mag": 40.0, "psf_star_min_snr": 30.0}}, "test")
    output = shear_catalogs.make(dataclasses.replace(task, settings=strict), repo)
    table = output.members["shear.parquet"]
    assert len(table) == 0
    assert {"object_id", "ra", "dec", "e1", "e2", "weight", "response"} <= set(table.columns)
    with pytest.raises(NoWork, match="no background galaxy"):
        calibrate_shears(table, 150.0, 30.0)
