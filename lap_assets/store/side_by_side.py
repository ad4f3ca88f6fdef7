"""Work on the planes of one file by two threads: turning, hashing, coding and reading pixels wait for no other plane.

The kernels, SHA-256 and the calls that read and write all run without Python's lock. What comes out does not depend on
it. What the work is, is the callers'.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

One = TypeVar("One")
Made = TypeVar("Made")

N_THREADS = 2
LARGE = 1 << 22  # bytes in all, below which threads cost more than they save


def map_planes(work: Callable[[One], Made], items: Sequence[One], sizes: Sequence[int]) -> list[Made]:
    """What `work` makes of each item, in order, side by side where they are many bytes together.

    The first error, in this order, is raised once all work has ended.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each item.
    """
    if sum(size > 0 for size in sizes) < 2 or sum(sizes) < LARGE:
        return [work(item) for item in items]
    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(work, items))
