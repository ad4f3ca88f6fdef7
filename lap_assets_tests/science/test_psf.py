"""PSF models: size and shape of a varying PSF are recovered, neighbours and flaws do not enter, models round-trip."""

import galsim
import numpy as np
import pytest

from lap_assets.errors import NoWork
from lap_assets.science.psf import PsfModel, fit_psf, measure_shape, shift_stamps
from lap_assets_tests.science.star_fields import moffat_stamp, observe

SHAPE, SKY = (512, 512), 600.0


def true_psf(x, y):
    """Moffat that grows to the right and turns elliptical upwards (GalSim)."""
    u, v = (x - 256) / 256, (y - 256) / 256
    return galsim.Moffat(beta=3.0, fwhm=2.7 * (1 + 0.06 * u)).shear(g1=0.02 + 0.02 * v, g2=-0.01 * u)


def draw_true(x, y, size=25):
    stamp = true_psf(x, y).drawImage(nx=size, ny=size, scale=1.0).array.astype(float)
    return stamp / stamp.sum()


@pytest.fixture(scope="module")
def field():
    rng = np.random.default_rng(5)
    image, x, y, flux = np.zeros(SHAPE), [], [], []
    for j in range(1, 13):
        for i in range(1, 13):
            px, py = 38 * i + rng.uniform(-3, 3), 38 * j + rng.uniform(-3, 3)
            f = 10 ** rng.uniform(4.3, 5.5)
            ix, iy = round(px), round(py)
            stamp = true_psf(px, py).withFlux(f).drawImage(nx=31, ny=31, scale=1.0, offset=(px - ix, py - iy)).array
            image[iy - 15 : iy + 16, ix - 15 : ix + 16] += stamp
            x.append(px), y.append(py), flux.append(f)
    var = (image + SKY + 25.0).astype(np.float32)
    data = observe(rng, image, SKY) - np.float32(SKY)
    return data, var, np.zeros(SHAPE, bool), np.array(x), np.array(y), np.array(flux)


def residual_shapes(model, places):
    rows = []
    for x, y in places:
        truth, found = measure_shape(draw_true(x, y)), measure_shape(model.evaluate(x, y))
        rows.append((found.fwhm_px / truth.fwhm_px - 1.0, found.e1 - truth.e1, found.e2 - truth.e2))
    return np.sqrt(np.mean(np.square(rows), axis=0))


PLACES = [(a, b) for a in (90.5, 256.2, 420.1) for b in (90.3, 256.0, 420.7)]


def test_size_to_one_per_cent_and_shape_to_3e3_all_over_the_image(field):
    model = fit_psf(*field)
    assert model.degree == 2 and model.n_stars > 130
    size, e1, e2 = residual_shapes(model, PLACES)
    assert size < 0.01
    assert max(e1, e2) < 3e-3
    # a constant PSF cannot follow: the test sees the difference
    size0, e10, _ = residual_shapes(fit_psf(*field, degree=0), PLACES)
    assert size0 > 0.02 and e10 > 0.01


def test_pixels_of_the_model_agree_with_the_truth(field):
    model = fit_psf(*field)
    for x, y in PLACES[::4]:
        truth = draw_true(x, y)
        assert np.abs(model.evaluate(x, y) - truth).max() < 0.015 * truth.max()
        assert model.evaluate(x, y).sum() == pytest.approx(1.0, abs=1e-9)
    assert model.residual < 0.03


def test_galaxies_among_the_stars_are_dropped(field):
    data, var, bad, x, y, flux = (one.copy() for one in field)
    rng = np.random.default_rng(6)
    for k in range(8):
        ix, iy = round(x[k]), round(y[k])
        stamp = moffat_stamp(x[k] - ix, y[k] - iy, 6.0, half=15)
        data[iy - 15 : iy + 16, ix - 15 : ix + 16] = flux[k] * stamp + rng.normal(0, 25, stamp.shape)
    clean, spoiled = fit_psf(*field), fit_psf(data, var, bad, x, y, flux)
    assert spoiled.n_stars <= len(x) - 8
    assert residual_shapes(spoiled, PLACES)[0] < 1.5 * residual_shapes(clean, PLACES)[0] + 0.002


def test_degree_falls_with_the_number_of_stars_and_no_star_is_no_work(field):
    data, var, bad, x, y, flux = field
    assert fit_psf(data, var, bad, x[:10], y[:10], flux[:10]).degree == 1
    assert fit_psf(data, var, bad, x[:2], y[:2], flux[:2]).degree == 0
    with pytest.raises(NoWork):
        fit_psf(data, var, bad, x[:0], y[:0], flux[:0])
    with pytest.raises(NoWork):
        fit_psf(data, var, np.ones(SHAPE, bool), x, y, flux)


def test_models_survive_publishing(field):
    model = fit_psf(*field)
    planes = model.to_planes()
    back = PsfModel.from_planes({name: (array.copy(), None) for name, array in planes.items()})
    assert np.array_equal(back.evaluate(100.3, 200.7), model.evaluate(100.3, 200.7))
    assert (back.degree, back.n_stars, back.frame) == (model.degree, model.n_stars, model.frame)


@pytest.mark.parametrize(("fwhm", "g1", "g2"), [(2.2, 0.0, 0.0), (3.0, 0.05, 0.0), (4.5, -0.03, 0.06)])
def test_measured_fwhm_and_distortion_of_a_known_profile(fwhm, g1, g2):
    """Against GalSim's own adaptive moments, and its FWHM of the pixel-convolved profile."""
    profile = galsim.Gaussian(fwhm=fwhm).shear(g1=g1, g2=g2)
    image = profile.drawImage(nx=41, ny=41, scale=1.0)
    shape = measure_shape(image.array.astype(float))
    moments = galsim.hsm.FindAdaptiveMom(image)
    assert shape.e1 == pytest.approx(moments.observed_e1, abs=5e-4)
    assert shape.e2 == pytest.approx(moments.observed_e2, abs=5e-4)
    drawn = galsim.Convolve(galsim.Gaussian(fwhm=fwhm), galsim.Pixel(1.0))
    assert shape.fwhm_px == pytest.approx(drawn.calculateFWHM(), rel=0.01)


def test_drawing_at_a_position_moves_the_centre(field):
    x, y = 200.3, 300.6
    stamp = fit_psf(*field).draw(x, y)
    truth = true_psf(x, y).drawImage(nx=25, ny=25, scale=1.0, offset=(x - 200, y - 301)).array.astype(float)
    truth /= truth.sum()
    assert np.abs(stamp - truth).max() < 0.02 * truth.max()
    assert np.abs(fit_psf(*field).evaluate(x, y) - truth).max() > 0.1 * truth.max()


@pytest.mark.parametrize(("fwhm", "error"), [(2.2, 0.025), (3.2, 0.005)])
def test_shifting_is_as_good_as_the_sampling_allows(fwhm, error):
    """A Moffat profile of 2.2 px FWHM has power beyond the Nyquist frequency, one of 3.2 px hardly any."""
    stamp = moffat_stamp(0.0, 0.0, fwhm)[None]
    there = shift_stamps(stamp, np.array([0.4]), np.array([-0.3]))
    assert np.abs(there - moffat_stamp(0.4, -0.3, fwhm)[None]).max() < error * stamp.max()
    assert np.abs(shift_stamps(there, np.array([-0.4]), np.array([0.3])) - stamp).max() < error * stamp.max()
