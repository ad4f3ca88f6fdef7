"""Objects on a skycell: found once, where they are, owned by one skycell only, named for ever."""

import galsim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.model.objects import ObjectFlag
from lap_assets.model.tessellation import load_tessellation
from lap_assets.science.band_photometry import PhotometryPlan, measure_band, missing_band
from lap_assets.science.catalog import (
    combine_bands,
    detect_objects,
    measure_kron_radii,
    name_objects,
    prepare_band,
    select_owned,
)

SCALE, SIZE, FWHM = 0.4, 600, 1.0
TESSELLATION = load_tessellation(
    {"kind": "local", "name": "t", "ra_deg": 10.0, "dec_deg": 5.0, "pixel_scale_arcsec": SCALE, "skycell_px": 330,
     "grid": [2, 2], "overlap_px": 30}
)  # fmt: skip


def simulate(seed=1, n_stars=60, n_galaxies=120, sky=0.0, noise=1.0, bands=2):
    """Images of stars and galaxies in bands (fluxes 1 : 2 : …), each with noise; truth as x, y, flux, is_star."""
    rng = np.random.default_rng(seed)
    psf = galsim.Moffat(beta=3, fwhm=FWHM)
    perfect = np.zeros((SIZE, SIZE))
    truth = []
    grid = rng.permutation(14 * 14)[: n_stars + n_galaxies]
    for k, place in enumerate(grid):  # one per cell of a jittered grid, so that truth is not blended
        x, y = (40 * (place % 14) + rng.uniform(30, 50), 40 * (place // 14) + rng.uniform(30, 50))
        star = k < n_stars
        flux = 10 ** rng.uniform(2.5, 4.0)
        profile = psf
        if not star:
            radius, e = rng.uniform(0.4, 1.0), rng.uniform(-0.3, 0.3)
            profile = galsim.Convolve(galsim.Exponential(half_light_radius=radius).shear(g1=e), psf)
        i, j = round(x), round(y)
        stamp = profile.drawImage(nx=51, ny=51, scale=SCALE, offset=(x - i, y - j)).array * flux
        lo, hi = (max(0, 25 - i), max(0, 25 - j)), (min(51, SIZE + 25 - i), min(51, SIZE + 25 - j))
        box = np.s_[j - 25 + lo[1] : j - 25 + hi[1], i - 25 + lo[0] : i - 25 + hi[0]]
        perfect[box] += stamp[lo[1] : hi[1], lo[0] : hi[0]]
        truth.append((x, y, flux, star))
    images = []
    for b in range(bands):
        data = perfect * (b + 1) + sky + rng.normal(0, noise, perfect.shape)
        var = np.full(perfect.shape, noise**2, np.float32)
        images.append(MaskedImage(data.astype(np.float32), np.zeros(data.shape, np.int16), var))
    return images, np.array(truth)


def detect(images, mesh=0):
    bands = [prepare_band(image, str(k), mesh) for k, image in enumerate(images)]
    snr, empty = combine_bands(bands)
    objects, segments = detect_objects(snr, empty, FWHM / SCALE, 1.5, 5, 0.005)
    objects["segment"] = np.arange(1, len(objects) + 1, dtype=np.int32)
    objects["auto_scale"] = measure_kron_radii(objects, 2.5, 3.5)
    return bands, objects, segments


def match(objects, truth):
    """Index of the nearest object within 2 px of each truth, -1 if none."""
    d = np.hypot(objects["x"].to_numpy() - truth[:, [0]], objects["y"].to_numpy() - truth[:, [1]])
    return np.where(d.min(axis=1) < 2.0, d.argmin(axis=1), -1)


@pytest.fixture(scope="module")
def field():
    images, truth = simulate()
    return images, truth, *detect(images)


def test_objects_are_found_once_and_in_place(field):
    """All 180, positions of bright stars to 20 mas; of noise no more than 2 % besides."""
    _, truth, _, objects, _ = field
    index = match(objects, truth)
    assert (index >= 0).all()
    assert len(set(index)) == len(truth)
    assert len(objects) <= 1.05 * len(truth)
    bright = (truth[:, 3] == 1) & (truth[:, 2] > 2000)
    dx = (objects["x"].to_numpy()[index] - truth[:, 0])[bright] * SCALE * 1e3
    assert abs(dx.mean()) < 3
    assert dx.std() < 20


def test_two_bands_go_deeper_than_one():
    """Objects at half the threshold of one band are found on the sum of S/N of four."""
    images, truth = simulate(n_stars=80, n_galaxies=0, noise=45.0, bands=1)
    rng = np.random.default_rng(9)
    more = [
        MaskedImage(
            (images[0].sci + rng.normal(0, 45.0, images[0].sci.shape)).astype("f4"), images[0].mask, images[0].var * 2
        )
        for _ in range(3)
    ]
    found = [np.sum(match(detect(stack)[1], truth) >= 0) for stack in ([more[0]], more)]
    assert found[1] > found[0]


def test_noise_of_the_detection_image_is_one_wherever_a_band_is_missing():
    rng = np.random.default_rng(4)
    images = []
    for sigma in (3.0, 0.5, 10.0):
        sci = rng.normal(0, sigma, (300, 300)).astype("f4")
        images.append(MaskedImage(sci, np.zeros((300, 300), np.int16), np.full((300, 300), sigma**2, "f4")))
    images[0].mask[:150] |= int(Mask.NO_DATA)
    images[1].mask[:, :50] |= int(Mask.NO_DATA)
    images[2].mask[:150, :50] |= int(Mask.NO_DATA)
    snr, empty = combine_bands([prepare_band(image, "r", 0) for image in images])
    assert snr[:150, 60:].std() == pytest.approx(1.0, abs=0.02)
    assert snr[150:, 60:].std() == pytest.approx(1.0, abs=0.02)
    assert empty[:150, :50].all() and not empty[150:].any()


def test_residual_background_is_removed_and_objects_are_not_eaten():
    """Sky of a third of sigma changes total fluxes by 0.5 % and more if left in, by a third of that if taken off."""
    clean, truth = simulate()
    dirty, _ = simulate(sky=0.33)
    _, objects, segments = detect(clean)
    index, flux = match(objects, truth), {}
    for name, images, mesh in (("clean", clean, 0), ("left", dirty, 0), ("taken", dirty, 128)):
        band = prepare_band(images[0], "r", mesh)
        table, _ = measure_band(objects, band, segments, FWHM / SCALE, PhotometryPlan((5.0,), 5.0, 50.0))
        flux[name] = table["flux_auto"].to_numpy()[index]
    good = truth[:, 2] > 2000
    left, taken = (np.median(flux[k][good] / flux["clean"][good]) - 1.0 for k in ("left", "taken"))
    assert left > 0.005
    assert abs(taken) < left / 3


def test_forced_photometry_of_stars_is_right_to_5_mmag(field):
    """Flux ratio of the two bands, and total fluxes of bright stars, whatever the aperture; errors honest."""
    _, truth, bands, objects, segments = field
    plan = PhotometryPlan((2.5, 5.0), 2.0 / SCALE, 50.0)
    tables = [measure_band(objects, band, segments, FWHM / SCALE, plan)[0] for band in bands]
    index = match(objects, truth)
    star = (truth[:, 3] == 1) & (truth[:, 2] > 1000)
    for k, table in enumerate(tables):
        for name in ("flux_psf", "flux_gauss", "flux_auto", "flux_aper1", "flux_aper2"):
            ratio = table[name].to_numpy()[index][star] / ((k + 1) * truth[star, 2])
            assert 1e3 * abs(np.median(2.5 * np.log10(ratio))) < 5
    faint = (truth[:, 3] == 1) & (truth[:, 2] < 1500)
    pulls = ((tables[0]["flux_psf"].to_numpy()[index] - truth[:, 2]) / tables[0]["flux_psf_err"].to_numpy()[index])[
        faint
    ]
    assert abs(np.median(pulls)) < 0.5
    assert 1.4826 * np.median(np.abs(pulls - np.median(pulls))) == pytest.approx(1.0, abs=0.4)


def test_correlated_noise_widens_the_errors(field):
    images, _, _, objects, segments = field
    plan = PhotometryPlan((2.5,), 2.0 / SCALE, 50.0)
    plain, wide = (
        measure_band(objects, prepare_band(images[0], "r", 0, factor), segments, FWHM / SCALE, plan)[0]
        for factor in (1.0, 1.44)
    )
    for name in ("flux_psf_err", "flux_gauss_err", "flux_auto_err", "flux_aper1_err", "spread_model_err"):
        assert wide[name].to_numpy() == pytest.approx(1.2 * plain[name].to_numpy(), rel=2e-3)


def test_flags_name_what_is_wrong_with_an_object(field):
    images, truth, _, objects, segments = field
    index = match(objects, truth)
    one, two = (index[np.flatnonzero(truth[:, 3] == 1)[k]] for k in (0, 1))
    image = MaskedImage(images[0].sci.copy(), images[0].mask.copy(), images[0].var)
    for k, bit in ((one, Mask.SATURATED), (two, Mask.NO_DATA)):
        x, y = (round(float(objects[c][k])) for c in ("x", "y"))
        image.mask[y : y + 3, x : x + 3] |= int(bit)
    table, psf = measure_band(
        objects, prepare_band(image, "r", 0), segments, FWHM / SCALE, PhotometryPlan((2.5,), 5.0, 50.0)
    )
    flags = table["flags"].to_numpy()
    assert flags[one] & ObjectFlag.SATURATED and flags[one] & ObjectFlag.BAD_CENTRE
    assert not flags[one] & ObjectFlag.INCOMPLETE
    assert flags[two] & ObjectFlag.INCOMPLETE and flags[two] & ObjectFlag.BAD_CENTRE
    assert np.mean(flags == 0) > 0.8
    assert psf.degree >= 0 and psf.n_stars >= 25


def test_without_stars_a_moffat_stands_in_and_says_so():
    images, truth = simulate(n_stars=2, n_galaxies=3)
    bands, objects, segments = detect(images)
    table, psf = measure_band(objects, bands[0], segments, FWHM / SCALE, PhotometryPlan((2.5,), 5.0, 50.0))
    assert psf.degree == -1
    assert (table["flags"].to_numpy() & ObjectFlag.ROUGH_PSF).all()
    index = match(objects, truth)[:2]
    # the pixel widens the PSF a little beyond the stand-in: fluxes to 5 % only
    assert table["flux_psf"].to_numpy()[index] == pytest.approx(truth[:2, 2], rel=0.05)


def test_an_empty_image_gives_an_empty_table():
    blank = MaskedImage(np.zeros((50, 50), "f4"), np.zeros((50, 50), np.int16), np.ones((50, 50), "f4"))
    bands, objects, segments = detect([blank])
    table, _ = measure_band(objects, bands[0], segments, 2.5, PhotometryPlan((2.5,), 5.0, 50.0))
    assert len(objects) == len(table) == 0
    assert {"flux_psf", "flux_gauss", "flux_auto", "mag_auto", "flux_aper1", "spread_model", "flags"} <= set(table)


def test_a_missing_band_is_nan_and_flagged():
    table = missing_band(3, ["flux_psf", "mag_auto"])
    assert table[["flux_psf", "mag_auto"]].isna().all().all()
    assert (table["flags"] == int(ObjectFlag.INCOMPLETE)).all()


def test_every_object_of_the_overlaps_is_owned_once():
    """The same sky cut into four overlapping skycells: the union of the owned objects has each object once."""
    images, truth = simulate()
    cell = TESSELLATION.cell("t.0")
    assert (cell.nx, cell.ny) == (SIZE, SIZE)
    places, ids = [], []
    for skycell in cell.skycells.values():
        box = np.s_[skycell.y0 : skycell.y0 + skycell.ny, skycell.x0 : skycell.x0 + skycell.nx]
        cut = [MaskedImage(i.sci[box].copy(), i.mask[box].copy(), i.var[box].copy()) for i in images]
        _, objects, _ = detect(cut)
        own = objects[select_owned(objects["x"], objects["y"], skycell.inner)]
        places.append(own[["x", "y"]].to_numpy() + np.array([skycell.x0, skycell.y0]))
        ids += name_objects("t.0", skycell.name, own["segment"].to_numpy())
    places = np.concatenate(places)
    assert len(set(ids)) == len(ids) == len(places)
    distance = np.hypot(places[:, 0] - truth[:, [0]], places[:, 1] - truth[:, [1]])
    assert ((distance < 2.0).sum(axis=1) == 1).all()


@settings(deadline=None)
@given(x=st.floats(0, 599.99), y=st.floats(0, 599.99))
def test_every_point_has_exactly_one_owner(x, y):
    cell = TESSELLATION.cell("t.0")
    owners = [
        name
        for name, s in cell.skycells.items()
        if select_owned(np.array([x - s.x0]), np.array([y - s.y0]), s.inner)[0]
    ]
    assert len(owners) == 1


def test_ids_are_those_of_the_example():
    assert name_objects("demo.0", "03", np.array([17])) == ["demo.0-03-000017"]
