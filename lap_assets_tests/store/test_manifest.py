import json
from dataclasses import replace

import pytest

from lap_assets.model.ids import Pin
from lap_assets.store.files import MemberRecord
from lap_assets.store.fits_format import MalformedFile
from lap_assets.store.manifest import SEAL, Manifest, _seal, decode_manifest, encode_manifest
from lap_assets_tests.store.samples import FINAL, STACK, WARP

RECORD = MemberRecord("image.fits", 10, "a" * 64, "b" * 64)
MANIFEST = Manifest(
    STACK,
    "done",
    directory="c" * 32,
    content_sha256="c" * 64,
    members={"image.fits": RECORD},
    inputs=(Pin(WARP, "d" * 64),),
    recipe="e",
    config_sha256="f",
    code=2,
    fingerprint={"id": "x"},
    run_id="r",
    metrics={"depth_mag": 24.5},
    fence=3,
    seconds=1.25,
    refers_to=Pin(FINAL, "0" * 64),
)


def document() -> dict:
    plain = json.loads(encode_manifest(MANIFEST))
    del plain[SEAL]
    return plain


def test_manifests_come_back():
    cleaned = replace(MANIFEST, state="cleaned", directory="", reason="nothing needs it")
    for manifest in (MANIFEST, replace(MANIFEST, refers_to=None), cleaned, Manifest(STACK, "no_work", "too few")):
        assert decode_manifest(encode_manifest(manifest), STACK) == manifest


def test_any_changed_byte_of_a_manifest_is_noticed():
    data = encode_manifest(MANIFEST)
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 4
        with pytest.raises(MalformedFile):
            decode_manifest(bytes(bad), STACK)
    for end in range(len(data)):
        with pytest.raises(MalformedFile):
            decode_manifest(data[:end], STACK)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"format": 3},
        {"state": "finished"},
        {"state": "cleaned"},
        {"state": "goto_cleaned"},
        {"state": "no_work", "directory": ""},
        {"members": {}},
        {"directory": "../../x"},
        {"directory": ""},
        {"members": {"../x": {"bytes": 1, "parts_sha256": "", "content_sha256": ""}}},
        {"members": {"image.fits": {"bytes": 1, "sha256": "", "content_sha256": ""}}},
        {"members": {"image.fits": {"bytes": "1", "parts_sha256": "", "content_sha256": ""}}},
        {"inputs": [["main/warps", "x"]]},
        {"surplus": 1},
        {"fence": "3"},
        {"metrics": [1]},
    ],
    ids=str,
)
def test_manifests_are_read_strictly(change):
    with pytest.raises(MalformedFile):
        decode_manifest(_seal(document() | change), STACK)


def test_an_unchanged_document_is_accepted_so_that_the_test_above_means_something():
    assert decode_manifest(_seal(document()), STACK) == MANIFEST


@pytest.mark.parametrize("key", sorted(document()))
def test_every_key_is_needed(key):
    short = document()
    del short[key]
    with pytest.raises(MalformedFile):
        decode_manifest(_seal(short), STACK)


def test_a_manifest_of_another_unit_is_refused():
    with pytest.raises(MalformedFile, match="is that of main/stacks"):
        decode_manifest(encode_manifest(MANIFEST), WARP)
