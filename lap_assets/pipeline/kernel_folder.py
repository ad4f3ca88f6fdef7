"""Where compiled kernels are kept: a folder for each version of the code, and what becomes of those of older versions.

How many this process had to compile is counted here, too. What the file of a kernel holds is numba's and
`kernel_files.py`'s. No numba is imported here: each command begins with this.
"""

import atexit
import hashlib
import logging
import os
import re
import shutil
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp

log = logging.getLogger(__name__)

FOLDER_VARIABLE, LOCATOR_VARIABLE = "NUMBA_CACHE_DIR", "NUMBA_CACHE_LOCATOR_CLASSES"
LOCATOR = "lap_assets.pipeline.kernel_files.KernelLocator"
KEEP_DAYS = 30.0
_NAME = re.compile(r"numba-[0-9a-f]{16}")
_compiled = {"kernels": 0}  # by this process


def prepare_kernel_folder() -> None:
    """Have numba keep compiled kernels in the folder NUMBA_CACHE_DIR names, else in that of this version.

    Where that cannot be written it is a temporary one, with a warning, for this process and those it starts; they find
    it in their environment. Folders of other versions that were not used for `KEEP_DAYS` are removed.
    What is named counts as nothing where it is a folder of our own: of a process that started this one, and before the
    code was edited, perhaps. A Python without lap_assets that inherits the environment cannot keep its own kernels.
    """
    os.environ.setdefault(LOCATOR_VARIABLE, LOCATOR)
    given = os.environ.get(FOLDER_VARIABLE)
    try:
        if given and _NAME.fullmatch(Path(given).name) and Path(given).parent == find_kernel_folder().parent:
            given = None
        folder = Path(given) if given else find_kernel_folder()
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
        os.utime(folder)  # by this it is known when it was used
        if not given:
            with suppress(OSError):  # a place that cannot be listed does no harm
                remove_old_folders(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        try:
            folder = Path(mkdtemp(prefix="lap-numba-"))
        except OSError:  # neither can that: most commands need no kernel, and numba looks for a place itself
            log.warning("compiled kernels cannot be kept (%s)", error)
            return
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        log.warning(
            "compiled kernels cannot be kept (%s): they are compiled anew each time; set %s to a folder to write to",
            error, FOLDER_VARIABLE,
        )  # fmt: skip
    os.environ[FOLDER_VARIABLE] = str(folder)
    if "numba.core.config" in sys.modules:  # as in a notebook: it has read the environment already
        with suppress(RuntimeError):  # its threads run already, more than we allow
            sys.modules["numba.core.config"].reload_config()


def find_kernel_folder() -> Path:
    """Folder of compiled kernels, named by a hash of the rooms that have any and of what they are compiled with.

    Raises
    ------
    RuntimeError
        This user has no home, and XDG_CACHE_HOME names no other place.
    """
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(path for room in ("science", "sim", "store") for path in (package / room).rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    for library in ("numba", "llvmlite", "numpy"):
        digest.update(f"{library}{version(library)}".encode())
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = given if given.is_absolute() else Path.home() / ".cache"  # as its specification says
    return base / "lap_assets" / f"numba-{digest.hexdigest()[:16]}"


def remove_old_folders(current: Path) -> None:
    """Remove the folders beside the current one that are named like it and were not used for `KEEP_DAYS`.

    One that is used again at this moment loses nothing but time: numba compiles what it does not find, and makes the
    folder again. Of two processes that remove the same one, either may be the one that does.
    """
    oldest = time.time() - KEEP_DAYS * 86400.0
    for path in current.parent.iterdir():
        if path == current or not _NAME.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        try:
            used = path.stat().st_mtime
        except FileNotFoundError:
            continue
        if used < oldest:
            shutil.rmtree(path, ignore_errors=True)


def note_compiled() -> None:
    """This process had to compile a kernel."""
    _compiled["kernels"] += 1


def count_compiled() -> int:
    """How many kernels this process had to compile; the memory that took is not given back."""
    return _compiled["kernels"]
