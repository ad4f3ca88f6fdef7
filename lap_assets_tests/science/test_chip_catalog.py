"""Catalogue of a chip (LV-12): PSF judged by reserved stars, fluxes right over the chip, useless chips refused."""

import galsim
import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.chip_catalog import catalog_chip, reserve_stars
from lap_assets_tests.science.star_fields import observe

SKY, SHAPE, BETA = 500.0, (1024, 1024), 3.5


def make_chip(seed=1, n=260, fwhm=3.3, growth=0.0, shear=(0.02, -0.01), flux=(2e4, 4e5)):
    """A chip of stars whose FWHM grows to the right; with their x, y and fluxes."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(30 * 30)[:n]
    x, y = 40.0 + 32.0 * (cells % 30) + rng.uniform(-4, 4, n), 40.0 + 32.0 * (cells // 30) + rng.uniform(-4, 4, n)
    fluxes = 10 ** rng.uniform(*np.log10(flux), n)
    image = np.zeros(SHAPE)
    for a, b, f in zip(x, y, fluxes, strict=True):
        profile = galsim.Moffat(beta=BETA, fwhm=fwhm * (1.0 + growth * (a / SHAPE[1] - 0.5))).shear(
            g1=shear[0], g2=shear[1]
        )
        ix, iy = round(a), round(b)
        stamp = profile.withFlux(f).drawImage(nx=33, ny=33, scale=1.0, offset=(a - ix, b - iy), method="no_pixel").array
        image[iy - 16 : iy + 17, ix - 16 : ix + 17] += stamp
    sci = observe(rng, image, SKY)
    var = (image + SKY + 25.0).astype(np.float32)
    return MaskedImage(sci, np.zeros(SHAPE, np.int16), var), x, y, fluxes


@pytest.fixture(scope="module")
def chip():
    return make_chip(growth=0.1)


@pytest.fixture(scope="module")
def catalog(chip):
    return catalog_chip(chip[0])


def pair(catalog, x, y):
    sources = catalog.sources
    distance = np.hypot(sources.x.to_numpy() - x[:, None], sources.y.to_numpy() - y[:, None])
    assert (distance.min(axis=1) < 0.5).all()
    return sources.iloc[distance.argmin(axis=1)]


def test_fwhm_and_beta_are_those_of_the_moffat_profile(catalog):
    """LV-12: FWHM to 1 per cent, beta to 5."""
    assert catalog.fwhm_moffat_px == pytest.approx(3.3, rel=0.01)
    assert catalog.moffat_beta == pytest.approx(BETA, rel=0.05)


def test_reserved_stars_agree_with_the_model(catalog):
    """LV-12: 15 per cent of the stars; ellipticity to 3e-3 and size to 6e-3, within the noise of 40 stars."""
    seen = catalog.psf_residuals
    assert 20 <= seen.n <= 60
    assert catalog.psf.n_stars + seen.n <= len(catalog.sources)
    assert max(abs(seen.e1), abs(seen.e2)) < 3e-3
    assert abs(seen.size) < 6e-3


def test_a_model_that_may_not_vary_is_found_out_by_the_reserved_stars(chip, catalog):
    """LV-12: with the size growing by 10 per cent over the chip, a constant model leaves 4 times the scatter."""
    constant = catalog_chip(chip[0], degree=0).psf_residuals
    assert constant.size_scatter > 0.03
    assert catalog.psf_residuals.size_scatter < 0.25 * constant.size_scatter


def test_fluxes_do_not_follow_the_seeing_over_the_chip(chip, catalog):
    """LV-11: left and right half agree to 2 mmag, where a constant aperture correction leaves 10."""
    image, x, y, flux = chip
    bright = flux > 1e5
    found = pair(catalog, x[bright], y[bright])
    constant = pair(catalog_chip(image, degree=0), x[bright], y[bright])
    left = x[bright] < SHAPE[1] / 2

    def step(table):
        mag = -2.5 * np.log10(table.flux.to_numpy() / flux[bright])
        return 1e3 * abs(np.mean(mag[left]) - np.mean(mag[~left]))

    assert step(found) < 2.0
    assert step(constant) > 5.0


def test_reserved_stars_are_the_same_whatever_else_is_there():
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, 2048, 2000), rng.uniform(0, 4096, 2000)
    chosen = reserve_stars(x, y)
    assert 0.12 < chosen.mean() < 0.18
    assert np.array_equal(reserve_stars(x[:500], y[:500]), chosen[:500])
    # another centroid moves few of them to another pixel
    assert np.mean(reserve_stars(x + 0.01, y) != chosen) < 0.02
    assert not reserve_stars(x[:19], y[:19]).any()


def test_saturated_stars_are_counted_and_left_out(chip):
    image, x, y, flux = chip
    mask = image.mask.copy()
    brightest = np.argsort(flux)[-12:]
    for k in brightest:
        mask[round(y[k]) - 1 : round(y[k]) + 2, round(x[k]) - 1 : round(x[k]) + 2] = int(Mask.SATURATED)
    seen = catalog_chip(MaskedImage(image.sci, mask, image.var))
    assert seen.n_saturated == 12
    assert not pair(seen, x[brightest], y[brightest]).is_star.any()


def test_all_stars_saturated_is_told(chip):
    """LV-12: the chip fails with the reason."""
    image, x, y, _ = chip
    mask = image.mask.copy()
    for a, b in zip(x, y, strict=True):
        mask[round(b) - 1 : round(b) + 2, round(a) - 1 : round(a) + 2] = int(Mask.SATURATED)
    with pytest.raises(UnprocessableData, match=r"all 2[0-9][0-9] stars are saturated"):
        catalog_chip(MaskedImage(image.sci, mask, image.var))


def test_a_trailed_exposure_is_told():
    """LV-12: stars drawn out in one direction; as round ones the same stars pass."""
    trailed, *_ = make_chip(seed=2, n=80, shear=(0.3, 0.2))
    with pytest.raises(
        UnprocessableData, match=r"trailed exposure: [0-9]+ bright sources have an ellipticity of 0.[56]"
    ):
        catalog_chip(trailed)
    round_ones, *_ = make_chip(seed=2, n=80, shear=(0.0, 0.0))
    assert catalog_chip(round_ones).shape.ellipticity < 0.02


def test_an_empty_sky_is_told():
    rng = np.random.default_rng(4)
    sci = observe(rng, np.zeros((256, 256)), SKY)
    image = MaskedImage(sci, np.zeros(sci.shape, np.int16), np.full(sci.shape, SKY + 25.0, np.float32))
    with pytest.raises(
        UnprocessableData, match=r"no source detected|no star for a PSF model.*\(\d+ sources, 0 saturated"
    ):
        catalog_chip(image)
