"""Real DECam frames of two epochs: upstream's stacks and difference, and what our own matching finds in the same data.

The frames, PSF-matching kernels, stacks and difference are those of sfft's test of noise decorrelation (MIT).
"""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from lap_assets.model.image import MaskedImage
from lap_assets.science.diff import DiffLimits, subtract_images
from lap_assets.science.diff_sources import detect_sources
from lap_assets.science.measured_psf import measure_psf

DECAM = Path(__file__).parents[3] / "shared" / "data" / "decam_stack_diff"
pytestmark = pytest.mark.skipif(not DECAM.is_dir(), reason="no DECam frames: ../shared/data/decam_stack_diff is absent")
EPOCHS = {"OBS04": "abcde", "OBS18": "abcde"}  # the first frame of each is the one the others are matched to
PLACE, GAIN = (128.6, 127.6), 4.0


def read(name):
    return fits.getdata(DECAM / f"{name}.fits").astype(np.float64)


def wrap(sci, n=1):
    """An image with variance from its sky and Poisson noise of n frames."""
    sigma = 1.4826 * np.median(np.abs(sci - np.median(sci)))
    variance = sigma**2 + np.clip(sci, 0, None) / (GAIN * n)
    return MaskedImage(sci.astype(np.float32), np.zeros(sci.shape, np.int16), variance.astype(np.float32))


def plain_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cd = np.diag([-0.263, 0.263]) / 3600
    wcs.wcs.set()
    return wcs


def match_frames(epoch):
    """The frames of an epoch with our own kernels, brought to the first one, and their median."""
    first, *rest = (wrap(read(f"input_data/DEC-{epoch}{letter}.mini")) for letter in EPOCHS[epoch])
    limits = DiffLimits(decorrelate=False, convolve="template")
    matched = [first.sci]
    for one in rest:
        difference = subtract_images(first, one, measure_psf(first, 4.5), measure_psf(one, 4.5), limits)
        matched.append(first.sci - difference.image.sci)
    return wrap(np.median(matched, axis=0).astype(float), len(matched))


def filter_upstream(psf):
    """PSF flux at each pixel of upstream's difference, and the flux's signal to noise by its own scatter."""
    stamp = psf.evaluate(*PLACE)
    flux = ndimage.correlate(read("4check/FinalDifference"), stamp / np.sum(stamp**2), mode="constant")
    return flux, flux / (1.4826 * np.median(np.abs(flux)))


@pytest.mark.parametrize("epoch", EPOCHS)
def test_upstream_stacks_are_the_medians_of_matched_frames(epoch):
    """From frames and kernels to 1e-10 over the whole image: border pixels repeat outwards in its convolutions."""
    first, *rest = (read(f"input_data/DEC-{epoch}{letter}.mini") for letter in EPOCHS[epoch])
    kernels = [read(f"input_data/DEC-{epoch}{letter}.MatchKernel") for letter in EPOCHS[epoch][1:]]
    matched = [ndimage.convolve(one, kernel, mode="nearest") for one, kernel in zip(rest, kernels, strict=True)]
    assert np.abs(np.median([first, *matched], axis=0) - read(f"4check/Stack-DEC-{epoch}")).max() < 1e-10


def test_upstream_difference_is_that_of_its_stacks():
    """To 1e-10: the sign of the difference, and which stack is convolved."""
    kernel = read("input_data/FinalMatchKernel")
    convolved = ndimage.convolve(read("4check/Stack-DEC-OBS18"), kernel, mode="nearest")
    off = read("4check/Stack-DEC-OBS04") - convolved - read("4check/FinalDifference")
    assert np.abs(off).max() < 1e-10


@pytest.fixture(scope="module")
def pairs():
    """Old and new image: upstream's stacks, and the medians of frames that we matched."""
    return {
        "stacks": [wrap(read(f"4check/Stack-DEC-{epoch}"), 5) for epoch in EPOCHS],
        "frames": [match_frames(epoch) for epoch in EPOCHS],
    }


def find_sources(pair, method):
    """What is found, and upstream's flux and signal to noise under the same PSF."""
    psfs = measure_psf(pair[0], 4.5), measure_psf(pair[1], 4.0)
    difference = subtract_images(*pair, *psfs, DiffLimits(method=method))
    return detect_sources(difference, pair[1], plain_wcs()), psfs[0].fwhm_px, *filter_upstream(psfs[0])


@pytest.mark.parametrize("source", ["stacks", "frames"])
@pytest.mark.parametrize("method", ["alard_lupton", "zogy"])
def test_the_real_residual_is_found(pairs, source, method):
    """No kernels given: over 5 sigma, unflagged, upstream's sign, flux within 10 % of that on upstream's difference."""
    sources, _, flux, _ = find_sources(pairs[source], method)
    (one,) = sources[np.hypot(sources["x"] - PLACE[0], sources["y"] - PLACE[1]) < 0.5].itertuples()
    assert one.flags == 0 and one.snr > 10
    assert one.flux == pytest.approx(flux[125:131, 126:132].max(), rel=0.1)


@pytest.mark.parametrize("source", ["stacks", "frames"])
def test_nothing_is_found_that_upstream_has_not(pairs, source):
    """All others over 5 sigma lie within 2 FWHM of upstream's (dipoles at bright stars), and are flagged."""
    sources, fwhm, _, snr = find_sources(pairs[source], "alard_lupton")
    peaks = np.argwhere((np.abs(snr) == ndimage.maximum_filter(np.abs(snr), 5)) & (np.abs(snr) > 5))
    x, y = sources["x"].to_numpy(), sources["y"].to_numpy()
    away = np.hypot(x[:, None] - peaks[:, 1], y[:, None] - peaks[:, 0]).min(axis=1)
    assert away.max() < 2.0 * fwhm
    assert (sources["flags"] == 0).sum() == 1


@pytest.mark.parametrize("source", ["stacks", "frames"])
def test_zogy_leaves_no_other_unflagged_residual(pairs, source):
    """All others over 5 sigma are flagged, most at bright stars; the rest of the field is noise as stated."""
    sources, *_ = find_sources(pairs[source], "zogy")
    assert (np.abs(sources["snr"]) >= 5.0).all()
    (one,) = sources[sources["flags"] == 0].itertuples()
    assert np.hypot(one.x - PLACE[0], one.y - PLACE[1]) < 0.5
