"""How numba keeps compiled kernels on disk: one file for each signature, so that processes may save at the same moment.

Numba 0.68 keeps an index for each function, which says which numbered file holds which signature. It reads the index,
takes the next number and writes both, without a lock: of two processes that compile one function for two signatures at
the same moment, one overwrites the other's index or its code, and who comes later has to compile again or is given the
code of another signature. Here the name of a file says the signature, and there is no index to disagree with it.

Holds only this. Numba imports it by itself, with the first function that is cached, because `kernel_folder.py` names
`KernelLocator` in NUMBA_CACHE_LOCATOR_CLASSES; a numba that does not know this variable, or keeps its files in another
way, goes on as it did. Which folder the files are in is `kernel_folder.py`'s.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numba
from numba.core import caching, serialize

from lap_assets.pipeline.kernel_folder import note_compiled

_SEAL_BYTES = hashlib.sha256().digest_size


class KernelLocator:
    """Finds the folder of a function's files as numba does without it; to be imported is what it is for."""

    @classmethod
    def from_function(cls, function: Any, path: str) -> Any:
        """The first of numba's own locators that serves a function.

        Where its folder is looked at again, before each kernel is kept, that this cannot be written is no error.
        """
        made = (locator.from_function(function, path) for locator in caching.CacheImpl._locator_classes)
        found = next((locator for locator in made if locator is not None), None)
        if found is not None:
            found.ensure_cache_path = partial(_look_at, found.ensure_cache_path)
        return found


def _look_at(ensure: Callable[[], None]) -> None:
    with suppress(OSError):
        ensure()


class SignatureFiles:
    """The compiled forms of one function: what numba asks of its `IndexDataCacheFile`.

    A file is put in its place as a whole, and begins with a hash over the version of numba, the source and the rest.
    One that is damaged, or of another version or source, counts as none, and is replaced. Nothing that fails here
    hinders: a kernel that cannot be read is compiled, one that cannot be written is compiled again elsewhere.
    """

    def __init__(self, cache_path: str, filename_base: str, source_stamp: Any) -> None:
        self._folder, self._base = Path(cache_path), filename_base
        self._made_from = repr((numba.__version__, source_stamp)).encode()

    def flush(self) -> None:
        """Forget all signatures."""
        for path in self._folder.glob("*.nbc"):
            if path.name.startswith(f"{self._base}."):
                path.unlink(missing_ok=True)

    def save(self, key: Any, data: Any) -> None:
        """Keep what was compiled for a key: signature, processor and code of the function."""
        note_compiled()
        payload = serialize.dumps((key, data))
        path = self._path(key)
        own = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
        try:
            own.write_bytes(self._seal(payload) + payload)
            own.replace(path)
        except OSError:
            with suppress(OSError):
                own.unlink(missing_ok=True)

    def load(self, key: Any) -> Any:
        """What was compiled for a key, by any process; None where there is nothing."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        seal, payload = content[:_SEAL_BYTES], content[_SEAL_BYTES:]
        if seal != self._seal(payload):
            return None
        saved_key, data = serialize.loads(payload)
        return data if saved_key == key else None

    def _path(self, key: Any) -> Path:
        # equal keys read alike; should others do so too, they overwrite one another, and `load` tells them apart
        return self._folder / f"{self._base}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def _seal(self, payload: bytes) -> bytes:
        return hashlib.sha256(self._made_from + payload).digest()


def replace_index(module: Any) -> bool:
    """Have numba keep its files as `SignatureFiles` does; False where its own way has other functions than known here.

    Parameters
    ----------
    module : module
        `numba.core.caching`.
    """
    known = getattr(module, "IndexDataCacheFile", None)
    offered = {name for name in vars(known or object) if not name.startswith("_")}
    if offered != {"flush", "save", "load"}:
        return False
    module.IndexDataCacheFile = SignatureFiles
    return True


replace_index(caching)
