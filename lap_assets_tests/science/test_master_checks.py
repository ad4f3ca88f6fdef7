"""Comparing a master with the one before (PHX-02): noise and slow drifts pass; dust, a failing amplifier and new
defects do not."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.master_checks import MasterLimits, compare_masters, require_sound

N = 200
FLAT = MasterLimits(stability=0.005, max_level_change=0.05, max_fraction_beyond=0.01, max_new_defects=0.002)
BIAS = MasterLimits(stability=0.5, max_level_change=5.0, max_fraction_beyond=0.01, max_new_defects=0.002)
FRINGE = MasterLimits(stability=0.3, max_level_change=0.3, max_fraction_beyond=0.01, max_new_defects=0.002)


def master(truth, noise, seed):
    rng = np.random.default_rng(seed)
    sci = (truth + rng.normal(0, noise, (N, N))).astype(np.float32)
    return MaskedImage(sci, np.zeros((N, N), np.int16), np.full((N, N), noise**2, np.float32))


def flats(change=1.0):
    _, x = np.mgrid[:N, :N] / N
    truth = 1.0 - 0.2 * (x - 0.5) ** 2
    return master(truth * change, 0.003, 1), master(truth, 0.003, 2)


def test_a_flat_that_is_the_same_but_for_noise_and_the_lamp_passes():
    y, _ = np.mgrid[:N, :N] / N
    one = compare_masters(*flats(1.02 * (1.0 + 0.004 * np.sin(6 * y))), "flat", FLAT)
    assert one.ok and one.reasons == ()
    assert one.level_ratio == pytest.approx(1.02, abs=1e-3) and one.level_change == pytest.approx(0.02, abs=1e-3)
    assert one.fraction_beyond_6sigma < 1e-3 and one.new_defects == 0


def test_without_the_natural_change_a_drift_would_be_held_against_it():
    y, _ = np.mgrid[:N, :N] / N
    strict = MasterLimits(0.0, 0.05, 0.01, 0.002)
    drifted = flats(1.0 + 0.04 * np.sin(6 * y))
    assert compare_masters(*drifted, "flat", strict).fraction_beyond_6sigma > 0.3


@pytest.mark.parametrize(
    ("kind", "limits", "harm", "reason"),
    [
        ("flat", FLAT, "dust", "beyond 6 sigma"),
        ("flat", FLAT, "amplifier", "beyond 6 sigma"),
        ("flat", FLAT, "level", "level changed by 10"),
        ("flat", FLAT, "defects", "new defects 1.000%"),
        ("bias", BIAS, "level", "adu"),
    ],
)
def test_what_is_not_natural_is_named_with_its_limit(kind, limits, harm, reason):
    new, old = flats() if kind == "flat" else (master(0.0, 0.5, 1), master(0.0, 0.5, 2))
    y, x = np.mgrid[:N, :N]
    if harm == "dust":
        new.sci[np.hypot(x - 100, y - 90) < 20] *= 0.93  # 3 % of the pixels
    elif harm == "amplifier":
        new.sci[:, N // 2 :] *= 1.10
    elif harm == "level":
        new.sci *= 1.10
        new.sci += 20.0 if kind == "bias" else 0.0
    else:
        new.mask[:2] |= int(Mask.BAD)
    one = compare_masters(new, old, kind, limits)
    assert not one.ok and any(reason in text for text in one.reasons), one.reasons
    assert all("\n" not in text for text in one.reasons)


def test_defects_that_were_there_before_are_not_new_and_do_not_count_as_changes():
    new, old = flats()
    for one in (new, old):
        one.mask[:20] |= int(Mask.BAD)
    new.sci[:20] = 0.1
    found = compare_masters(new, old, "flat", FLAT)
    assert found.ok and found.new_defects == 0


def test_a_fringe_pattern_is_compared_by_its_amplitude_whatever_the_noise():
    _, x = np.mgrid[:N, :N]
    waves = 1.4 * np.sin(x / 5.0)
    same = compare_masters(master(waves, 0.5, 1), master(waves, 0.5, 2), "fringe", FRINGE)
    assert same.ok and same.level_ratio == pytest.approx(1.0, abs=0.02)  # not low by the noise of the older one
    other = compare_masters(master(1.4 * np.sin(x / 7.0), 0.5, 1), master(waves, 0.5, 2), "fringe", FRINGE)
    assert not other.ok and other.level_ratio < 0.5


def test_masters_that_calibrate_nothing_are_refused_by_name():
    for sci, kind, text in (
        (np.full((8, 8), np.nan), "bias", "holds no number"),
        (np.full((8, 8), -0.5), "flat", "above zero"),
        (np.zeros((8, 8)), "sky", "above zero"),
        (np.full((8, 8), 3.0), "dark", "3 everywhere"),
    ):
        with pytest.raises(UnprocessableData, match=f"chip c3: the master {kind}.*{text}"):
            require_sound(sci.astype(np.float32), kind, f"chip c3: the master {kind}")
    assert require_sound(np.ones((8, 8), np.float32), "sky", "x") == 1.0
    new, old = flats()
    with pytest.raises(UnprocessableData, match="shape"):
        compare_masters(MaskedImage(new.sci[:9], new.mask[:9], new.var[:9]), old, "flat", FLAT)
    old.mask |= int(Mask.BAD)
    assert compare_masters(new, old, "flat", FLAT).reasons == (
        "no pixel is good in both this master and the one before",
    )
