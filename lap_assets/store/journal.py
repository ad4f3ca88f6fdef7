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
from lap_assets.store.table_format import decode_json, simplify


def append_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one entry and fsync; a torn last line left by a killed writer is closed off first."""
    line = json.dumps(simplify(entry, "journal entry"), sort_keys=True, allow_nan=False).encode("ascii") + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        # one write: entries of two processes cannot interleave
        if os.write(handle, line) != len(line):
            raise OSError(f"{path}: the disk took only part of a journal entry; make room and repeat the command")
        os.fsync(handle)
    finally:
        os.close(handle)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries in order; lines torn by a kill are left out, any other damage raises `IntegrityError`.

    A torn line is a beginning of an entry: it starts with `{` and does not end with `}`.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            text = line.strip()
            if not text:
                continue
            try:
                yield decode_json(text)
            except MalformedFile as error:
                if text.startswith(b"{") and not text.endswith(b"}"):
                    continue
                raise IntegrityError(f"{path}: line {number}: {error}; restore the journal from a backup") from None
