"""The journal: one JSON object per line, appended and fsynced, from which the ledger's definitions can be rebuilt.

What the entries mean is the ledger's; here they are only kept.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lap_assets.errors import IntegrityError
from lap_assets.store.fits_format import MalformedFile
from lap_assets.store.publish import sync_folder
from lap_assets.store.table_format import decode_json, simplify

TORN = b" #torn"  # ends a line that a killed writer left incomplete


def append_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one entry and fsync; a line that a killed writer left incomplete is closed off and marked first."""
    line = json.dumps(simplify(entry, "journal entry"), sort_keys=True, allow_nan=False).encode("ascii") + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(path, flags, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size == 0:
            sync_folder(path.parent)
        elif os.pread(handle, 1, size - 1) != b"\n":
            line = _close_line(path) + line
        # one write: entries of two processes cannot interleave
        if os.write(handle, line) != len(line):
            raise OSError(f"{path}: the disk took only part of a journal entry; make room and repeat the command")
        os.fsync(handle)
    finally:
        os.close(handle)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries in order; lines torn by a kill are left out, any other damage raises `IntegrityError`."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            text = line.rstrip(b"\n")
            if text.endswith(TORN) or not text:
                continue
            try:
                entry = decode_json(text)
            except MalformedFile as error:
                if text == line:  # the last line, without its end
                    return
                raise IntegrityError(f"{path}: line {number}: {error}; restore the journal from a backup") from None
            yield entry


def _close_line(path: Path) -> bytes:
    """What ends the incomplete last line of the journal: nothing more where only its end is missing."""
    last = path.read_bytes().rsplit(b"\n", 1)[-1]
    try:
        decode_json(last)
    except MalformedFile:
        return TORN + b"\n"
    return b"\n"
