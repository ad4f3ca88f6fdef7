"""One log per unit of work, found by its data id and apart from the scheduler's own log.

Only where log lines go is decided here; what is said, and how loud a terminal is, is the callers'.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator

from lap_assets.errors import NotFound
from lap_assets.model.ids import DataId
from lap_assets.store.layout import Layout

PACKAGE = "lap_assets"
_FORMAT = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


@contextlib.contextmanager
def keep_log(layout: Layout, data_id: DataId) -> Iterator[None]:
    """Keep what this thread logs within the package, from INFO up, as the unit's log while the block runs."""
    path = layout.log(data_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    logger, thread = logging.getLogger(PACKAGE), threading.get_ident()
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setLevel(logging.INFO)
    handler.setFormatter(_FORMAT)
    handler.addFilter(lambda record: record.thread == thread)
    level = logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


def read_log(layout: Layout, data_id: DataId) -> str:
    """The log of the last attempt at a unit; raises `NotFound` if it was never tried here."""
    try:
        return layout.log(data_id).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise NotFound(f"no log of {data_id}: it was never tried in this repository") from None
