import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lap_assets.store.plane_passes import choose_turn, copy_turned, measure_plane, sum_pixels, turn_and_sum

dtypes = st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8"]).map(np.dtype)
planes = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, st.integers(1, 50)))


def add_words(array):
    """The sum as FITS says it: of the big-endian bytes, zeros behind them."""
    data = array.astype(array.dtype.newbyteorder(">")).tobytes()
    return int(np.frombuffer(data + bytes(-len(data) % 4), ">u4").sum(dtype=np.uint64))


@given(planes, st.data())
@settings(deadline=None)
def test_sum_is_that_of_the_words_and_of_any_two_parts(array, data):
    cut = data.draw(st.integers(0, array.size))
    assert sum_pixels(array) == measure_plane(array)[0] == add_words(array)
    assert sum_pixels(array[:cut]) + sum_pixels(array[cut:], cut) == add_words(array)
    assert measure_plane(array[:cut])[0] + measure_plane(array[cut:], cut)[0] == add_words(array)


@given(planes, st.data())
@settings(deadline=None)
def test_bytes_are_turned_round_in_place_and_into_another(array, data):
    """In place they are summed as well, also where the plane is cut within a word of the sum."""
    swapped, target, total = array.byteswap(), np.empty_like(array), add_words(array)
    copy_turned(array, target)
    assert target.tobytes() == swapped.tobytes()
    cut = data.draw(st.integers(0, array.size))
    assert turn_and_sum(target[:cut]) + turn_and_sum(target[cut:], cut) == total
    assert target.tobytes() == array.tobytes()


@given(planes, st.integers(0, 5), st.sampled_from([4, 8, 12]))
@settings(deadline=None)
def test_stretches_are_turned_round_as_the_whole(array, first, step):
    whole, pieces = array.copy(), array.copy()
    total, turn = turn_and_sum(whole, first), choose_turn(pieces, first)
    assert sum(turn(begin, begin + step) for begin in range(0, array.size, step)) == total
    assert pieces.tobytes() == whole.tobytes() == array.byteswap().tobytes()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_is_not_finite_is_counted(dtype):
    largest = np.finfo(dtype).max
    array = np.array([0, -0.0, 1, largest, -largest, np.finfo(dtype).tiny, np.nan, -np.nan, np.inf, -np.inf], dtype)
    assert measure_plane(array)[1] == 4
    assert measure_plane(array.view(f"i{array.itemsize}"))[1] == 0
