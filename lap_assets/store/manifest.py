"""The manifest of a unit: what was published, from what, by which code, in which environment. JSON, read strictly.

The manifest is the fact about a unit; where it lies is `layout.py`'s, how it is replaced `publish.py`'s.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lap_assets.errors import LapError
from lap_assets.model.ids import DataId, Pin, check_name
from lap_assets.model.states import CLEANED, DONE, RESULTS
from lap_assets.store.files import MemberRecord
from lap_assets.store.fits_format import MalformedFile
from lap_assets.store.layout import is_content_name
from lap_assets.store.table_format import decode_json, encode_json

FORMAT = 2
SEAL = "manifest_sha256"
_SEALED = re.compile(rb'(\n "' + SEAL.encode() + rb'": ")([0-9a-f]{64})(",?\n)')


class OtherFormat(MalformedFile):
    """A sound manifest of another version of this package: nothing is damaged, and nothing can be said of the unit."""


@dataclass(frozen=True)
class Manifest:
    """What is known of one unit.

    Attributes
    ----------
    data_id : DataId
    state : str
        `done`; `cleaned`, whose files were removed on purpose; or a result without members: `no_work`,
        `unprocessable`, `dropped`.
    reason : str
        Why there are no files; empty for `done`.
    directory : str
        Name of the content directory the members lie in; empty without files.
    content_sha256 : str
        Over the decoded content of all members; empty without members.
    members : mapping of member name to MemberRecord
        Of a cleaned unit those it had.
    inputs : tuple of Pin
        What it was made from, pinned by content.
    recipe, config_sha256, code
        Hash of everything that decides the content; hash of the settings; product code number.
    fingerprint : mapping
        The environment it was made in; `fingerprint["id"]` is its short hash.
    metrics : mapping
        Numbers with units in their names.
    refers_to : Pin or None
        The unit whose members these are.
    """

    data_id: DataId
    state: str
    reason: str = ""
    directory: str = ""
    content_sha256: str = ""
    members: Mapping[str, MemberRecord] = field(default_factory=dict)
    inputs: tuple[Pin, ...] = ()
    recipe: str = ""
    config_sha256: str = ""
    code: int = 1
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    fence: int = 0
    seconds: float = 0.0
    refers_to: Pin | None = None

    @property
    def bytes(self) -> int:
        """Size of all members on disk."""
        return 0 if self.state == CLEANED else sum(record.bytes for record in self.members.values())

    @property
    def has_content(self) -> bool:
        """Whether it can be pinned: its files are there, or were until they were cleaned."""
        return self.state in (DONE, CLEANED)

    @property
    def pin(self) -> Pin:
        return Pin(self.data_id, self.content_sha256)


def encode_manifest(manifest: Manifest) -> bytes:
    """Bytes of a manifest; raises `PermanentFailure` if a metric is not finite or no JSON type."""
    refers_to = manifest.refers_to
    return _seal(
        {
            "format": FORMAT,
            "data_id": str(manifest.data_id),
            "state": manifest.state,
            "reason": manifest.reason,
            "directory": manifest.directory,
            "content_sha256": manifest.content_sha256,
            "members": {
                name: {"bytes": r.bytes, "parts_sha256": r.parts_sha256, "content_sha256": r.content_sha256}
                for name, r in manifest.members.items()
            },
            "inputs": [[str(pin.data_id), pin.content] for pin in manifest.inputs],
            "recipe": manifest.recipe,
            "config_sha256": manifest.config_sha256,
            "code": manifest.code,
            "fingerprint": manifest.fingerprint,
            "run_id": manifest.run_id,
            "metrics": manifest.metrics,
            "fence": manifest.fence,
            "seconds": manifest.seconds,
            "refers_to": [str(refers_to.data_id), refers_to.content] if refers_to else None,
        }
    )


def _seal(document: dict[str, Any]) -> bytes:
    """The document with a hash of its own bytes, so that one flipped bit of a manifest shows."""
    blank = encode_json(document | {SEAL: "0" * 64})
    return _SEALED.sub(rb"\g<1>" + hashlib.sha256(blank).hexdigest().encode() + rb"\g<3>", blank)


def _is_sealed(data: bytes) -> bool:
    match = _SEALED.search(data)
    blank = _SEALED.sub(rb"\g<1>" + b"0" * 64 + rb"\g<3>", data)
    return match is not None and hashlib.sha256(blank).hexdigest().encode() == match[2]


def decode_manifest(data: bytes, expected: DataId) -> Manifest:
    """Read a manifest; raises `MalformedFile` unless it is complete and that of `expected`, `OtherFormat` for one of
    another version.
    """
    if not _is_sealed(data):
        raise MalformedFile("the manifest differs from its own sha256")
    document = decode_json(data)
    del document[SEAL]
    try:
        if (number := document.pop("format")) != FORMAT:
            raise OtherFormat(
                f"published by another version of lap_assets (manifest format {number}, this one's is {FORMAT}): "
                "use that version, or remove this folder and run again"
            )
        manifest = _build_manifest(document)
    except (KeyError, TypeError, ValueError, AttributeError, LapError) as error:
        raise MalformedFile(f"not a manifest: {type(error).__name__} {error}") from None
    if manifest.data_id != expected:
        raise MalformedFile(f"the manifest is that of {manifest.data_id}")
    expected_parts = {DONE: (True, True), CLEANED: (False, True)}.get(manifest.state, (False, False))
    if (bool(manifest.directory), bool(manifest.members)) != expected_parts:
        raise MalformedFile(f"a manifest of state {manifest.state} with {len(manifest.members)} members")
    return manifest


def _build_manifest(document: dict[str, Any]) -> Manifest:
    kinds = {"state": str, "reason": str, "directory": str, "content_sha256": str, "recipe": str, "config_sha256": str}
    kinds |= {"code": int, "run_id": str, "fence": int, "seconds": int | float, "fingerprint": dict, "metrics": dict}
    for name, kind in kinds.items():
        if not isinstance(document[name], kind):
            raise TypeError(f"{name} is no {kind}")
    directory = document["directory"]
    if document["state"] not in RESULTS | {CLEANED} or (directory and not is_content_name(directory)):
        raise ValueError("state or directory")
    members = {name: _read_record(name, record) for name, record in document["members"].items()}
    inputs = tuple(_read_pin(pair) for pair in document["inputs"])
    refers_to = _read_pin(document["refers_to"]) if document["refers_to"] else None
    plain = {name: document[name] for name in kinds}
    extra = set(document) - set(plain) - {"data_id", "members", "inputs", "refers_to"}
    if extra:
        raise ValueError(f"unknown keys {sorted(extra)}")
    return Manifest(DataId.parse(document["data_id"]), members=members, inputs=inputs, refers_to=refers_to, **plain)


def _read_pin(pair: list[str]) -> Pin:
    text, content = pair
    return Pin(DataId.parse(text), str(content))


def _read_record(name: str, record: dict[str, Any]) -> MemberRecord:
    if not (isinstance(record["bytes"], int) and isinstance(record["parts_sha256"], str)):
        raise TypeError(f"member {name}")
    hashes = record["parts_sha256"], str(record["content_sha256"])
    return MemberRecord(check_name(name, "member"), record["bytes"], *hashes)
