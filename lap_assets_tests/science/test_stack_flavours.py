"""Flavours of a stack: the sky put back, and inputs of one PSF."""

import numpy as np
import pytest

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.moffat import MoffatPsf
from lap_assets.science.psf_grid import PsfGrid, lay_nodes
from lap_assets.science.psf_matching import choose_target
from lap_assets.science.stack_flavours import combine_matched, restore_sky

SHAPE, BLOCK = (200, 330), 64


@pytest.mark.parametrize(("n", "kind"), [(3, np.uint8), (40, np.int32)])
def test_sky_comes_back_by_the_inputs_used(n, kind):
    """LV-17: planes of sky at block centres, any bits: SCI + Σ w b S / Σ w b to 1e-4 of the sky, in the middle of the
    blocks' grid (beyond the last centres the sky is that of the edge).
    """
    rng = np.random.default_rng(n)
    rows, columns = -(-SHAPE[0] // BLOCK), -(-SHAPE[1] // BLOCK)
    slope = rng.normal(0, 1, (n, 3))
    v, u = np.indices((rows, columns))
    skies = slope[:, :1, None] * 5 + slope[:, 1:2, None] * u + slope[:, 2:, None] * v
    used = np.zeros((-(-n // 31), *SHAPE), kind)
    bits = rng.random((n, *SHAPE)) < 0.8
    bits[:, :50] = True
    bits[:, 90, 90] = False
    for k in range(n):
        used[k // 31] |= (bits[k].astype(np.int64) << (k % 31)).astype(kind)
    weights = rng.uniform(0.1, 1, n)
    sci = rng.normal(0, 1, SHAPE).astype(np.float32)
    result = restore_sky(sci, used, weights, skies, BLOCK)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    u = np.clip((x - 31.5) / BLOCK, 0, columns - 1)
    v = np.clip((y - 31.5) / BLOCK, 0, rows - 1)
    full = slope[:, :1, None] * 5 + slope[:, 1:2, None] * u + slope[:, 2:, None] * v
    share = weights[:, None, None] * bits
    expected = sci + (share * full).sum(axis=0) / np.maximum(share.sum(axis=0), 1e-9)
    assert np.abs(result - expected).max() < 1e-4 * np.abs(full).max()
    assert result[90, 90] == sci[90, 90]


def make_star(fwhm, seed):
    rng = np.random.default_rng(seed)
    truth = np.zeros((120, 120))
    psf = MoffatPsf(fwhm)
    stamp = psf.evaluate()
    half = len(stamp) // 2
    truth[60 - half : 61 + half, 60 - half : 61 + half] = 1e5 * stamp
    var = 100 + 0.2 * truth
    sci = (truth + rng.normal(size=truth.shape) * np.sqrt(var)).astype(np.float32)
    grid = PsfGrid(*lay_nodes(truth.shape), np.tile(stamp.astype(np.float32), (2, 2, 1, 1)))
    return MaskedImage(sci, np.zeros(sci.shape, np.int16), var.astype(np.float32)), grid


def test_matched_stack_has_the_target_psf():
    """LV-16: inputs of 0.9, 1.1 and 1.2″: the star has the target's profile to 2 % of its peak, a rejected pixel leaves
    no trace, and where no input was used there is no data.
    """
    inputs = [make_star(fwhm, k) for k, fwhm in enumerate((3.4, 4.2, 4.6))]
    target = choose_target([grid for _, grid in inputs])
    used = np.full((1, 120, 120), 7, np.uint8)
    inputs[1][0].sci[62:64, 62:64] += 3e5
    used[0, 61:65, 61:65] = 5
    used[0, :, 115:] = 0
    images = ((k, image, grid) for k, (image, grid) in enumerate(inputs))
    result = combine_matched(images, used, np.array([0.4, 0.3, 0.3]), target)
    half = len(target) // 2
    inner = np.s_[60 - half : 61 + half, 60 - half : 61 + half]
    assert np.abs(result.sci[inner] - 1e5 * target).max() < 0.02 * 1e5 * target.max()
    assert (result.mask[:, 115:] & int(Mask.NO_DATA)).all()
    assert not result.var[:, 115:].any()
    assert np.isfinite(result.sci).all()
