import os
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lap_assets.errors import IntegrityError, NotFound
from lap_assets.store.manifest import SEAL, _seal, encode_manifest
from lap_assets.store.repo import Repo
from lap_assets.store.table_format import decode_json
from lap_assets.store.verify import NOTE, fsck, sweep
from lap_assets_tests.store.samples import FINAL, STACK, WARP, check_stack, make_image, make_stack, publish
from lap_assets_tests.store.test_refcat import make_refcat

HOUR = 3600.0


@pytest.fixture
def repo(tmp_path):
    repo = Repo(tmp_path)
    publish(repo, STACK, make_stack(3))
    publish(repo, WARP, {"image.fits": make_image(2)})
    publish(repo, FINAL, {}, state="no_work", reason="too few inputs")
    return repo


def flip(path, position=-3000):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_a_sound_store_is_found_sound(repo):
    for full in (False, True):
        report = fsck(repo, full=full)
        assert (report.units, report.broken, report.orphans, report.removed) == (3, {}, [], [])
        assert report.bytes == repo.manifest(STACK).bytes + repo.manifest(WARP).bytes
        assert "3 units" in report.lines[-1]


def damage_image(repo):
    flip(repo.path(STACK, "image.fits"))


def damage_table(repo):
    flip(repo.path(STACK, "inputs.parquet"), 200)


def cut_image(repo):
    path = repo.path(STACK, "image.fits")
    path.write_bytes(path.read_bytes()[:-2880])


def remove_member(repo):
    repo.path(STACK, "inputs.parquet").unlink()


def damage_manifest(repo):
    flip(repo.layout.manifest(STACK), 100)


def replace_by_another_product(repo):
    repo.path(WARP, "image.fits").replace(repo.path(STACK, "image.fits"))


def link_elsewhere(repo):
    path = repo.path(STACK, "image.fits")
    path.unlink()
    path.symlink_to(repo.path(WARP, "image.fits"))


SEEN_AT_ONCE = [cut_image, remove_member, damage_manifest, replace_by_another_product, link_elsewhere]


@pytest.mark.parametrize("damage", [*SEEN_AT_ONCE, damage_image, damage_table])
def test_what_is_broken_is_named_quarantined_and_missing_until_made_again(repo, damage):
    damage(repo)
    report = fsck(repo, full=damage not in SEEN_AT_ONCE)
    assert STACK in report.broken
    assert report.lines[0].startswith(f"{STACK}: ")
    assert repo.manifest(STACK) is None and repo.pin(STACK) is None and not repo.has_files(STACK)
    with pytest.raises(NotFound, match=r"lap run --select 'cell=demo\.0 band=r' --to stacks"):
        repo.read_image(STACK)
    place = repo.layout.quarantine_dir(STACK) / "1"
    note = decode_json((place / NOTE).read_bytes())
    assert (note["data_id"], note["state"]) == (str(STACK), "corrupt")
    assert (place / "manifest.json").is_file()
    publish(repo, STACK, make_stack(3))
    check_stack(repo, STACK, {3})
    assert STACK not in fsck(repo, full=True).broken


@given(st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_of_an_image_is_found_by_the_full_check(repo, data):
    """Pixels, headers and padding; plain and compressed."""
    publish(repo, data_id := data.draw(st.sampled_from([STACK, FINAL])), make_stack(3))
    path = repo.path(data_id, "image.fits")
    good = path.read_bytes()
    position, flipped = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(good[:position] + bytes([good[position] ^ flipped]) + good[position + 1 :])
    report = fsck(repo, full=True)
    assert list(report.broken) == [data_id]
    assert report.broken[data_id].startswith(f"{path}: ")


def test_units_of_another_version_are_named_and_stay_where_they_are(repo):
    path = repo.layout.manifest(STACK)
    document = decode_json(path.read_bytes())
    del document[SEAL]
    path.write_bytes(_seal(document | {"format": 1}))
    kept = path.read_bytes()
    with pytest.raises(
        IntegrityError, match=rf"{STACK}.*{path}: published by another version .*format 1.*remove"
    ) as told:
        repo.read_image(STACK)
    assert "\n" not in str(told.value) and "damaged" not in str(told.value)
    for full in (False, True):
        report = fsck(repo, full=full)
        assert not report.broken and not report.orphans and report.units == 3
        assert [line.startswith(f"{STACK}: {path}: published by another version") for line in report.damaged] == [True]
    assert path.read_bytes() == kept
    assert sweep(repo, now=time.time() + 2 * HOUR) == []
    publish(repo, STACK, make_stack(4))
    check_stack(repo, STACK, {4})


def test_flipped_bits_are_found_by_the_full_check_only(repo):
    damage_image(repo)
    assert not fsck(repo).broken
    assert list(fsck(repo, full=True).broken) == [STACK]


def test_planes_must_be_those_of_the_product_even_where_every_hash_is_right(repo):
    manifest = repo.manifest(WARP)
    forged = replace(manifest, data_id=STACK)
    repo.layout.content_dir(WARP, manifest.directory).rename(repo.layout.content_dir(STACK, manifest.directory))
    repo.layout.manifest(STACK).write_bytes(encode_manifest(forged))
    with pytest.raises(IntegrityError, match="no HDU NINPUT"):
        repo.read_image(STACK)
    assert "NINPUT" in fsck(repo, full=True).broken[STACK]


def test_bytes_are_kept_in_quarantine_each_time(repo):
    for n in (1, 2):
        damage_image(repo)
        bad = repo.path(STACK, "image.fits").read_bytes()
        directory = repo.manifest(STACK).directory
        fsck(repo, full=True)
        assert (repo.layout.quarantine_dir(STACK) / str(n) / directory / "image.fits").read_bytes() == bad
        publish(repo, STACK, make_stack(3))


def test_other_units_are_left_alone(repo):
    before = repo.manifest(WARP)
    damage_image(repo)
    fsck(repo, full=True)
    assert repo.manifest(WARP) == before and repo.has_files(WARP)
    assert repo.manifest(FINAL).state == "no_work"


def test_a_good_version_under_a_damaged_manifest_is_taken_up_again(repo):
    inode = repo.path(STACK, "image.fits").stat().st_ino
    damage_manifest(repo)
    report = fsck(repo)
    assert STACK in report.broken and len(report.orphans) == 1
    publish(repo, STACK, make_stack(3))
    assert repo.path(STACK, "image.fits").stat().st_ino == inode


def test_what_killed_writers_left_is_removed_but_not_what_is_being_written(repo):
    folder = repo.layout.unit_dir(STACK)
    (folder / ".tmp-0123").mkdir()
    (folder / ".tmp-0123" / "image.fits").write_bytes(b"half")
    (folder / ".tmp-4567").write_bytes(b"{")
    assert fsck(repo).removed == []
    report = fsck(repo, now=time.time() + 2 * HOUR)
    assert [path.name for path in report.removed] == [".tmp-0123", ".tmp-4567"]
    assert not list(folder.glob(".tmp*"))
    check_stack(repo, STACK, {3})


def test_replaced_versions_stay_an_hour_and_go_then(repo):
    publish(repo, STACK, make_stack(4))
    now = time.time()
    assert len(fsck(repo).orphans) == 1
    assert sweep(repo, now=now + 0.9 * HOUR) == []
    assert sweep(repo, now=now + 1.1 * HOUR, leased=frozenset({STACK})) == []
    removed = sweep(repo, now=now + 1.1 * HOUR)
    assert len(removed) == 1 and not removed[0].exists()
    check_stack(repo, STACK, {4})
    assert sweep(repo, now=now + 100 * HOUR) == []


def test_a_version_counts_from_its_replacement_not_from_its_making(repo):
    old = repo.path(STACK, "image.fits").parent
    os.utime(old, (1, 1))
    os.utime(repo.layout.manifest(STACK), (1, 1))
    publish(repo, STACK, make_stack(4))
    assert sweep(repo) == []


def test_a_version_that_comes_back_is_not_swept(repo):
    publish(repo, STACK, make_stack(4))
    publish(repo, STACK, make_stack(3))
    now = time.time()
    removed = sweep(repo, now=now + 1.1 * HOUR)
    assert len(removed) == 1
    check_stack(repo, STACK, {3})


def test_under_a_damaged_manifest_nothing_is_swept(repo):
    publish(repo, STACK, make_stack(4))
    damage_manifest(repo)
    assert sweep(repo, now=time.time() + 100 * HOUR) == []


def test_catalogues_and_journal_are_checked_too(repo):
    repo.write_refcat("gaia", make_refcat([10.0], [0.0]))
    repo.append_journal({"n": 1})
    repo.append_journal({"n": 2})
    assert fsck(repo, full=True).damaged == []
    shard = next((repo.layout.refcat_dir("gaia")).rglob("*.parquet"))
    flip(shard, 100)
    flip(repo.layout.journal, 1)
    report = fsck(repo, full=True)
    assert [text for text in report.damaged if "gaia" in text and "ingest it again" in text]
    assert [text for text in report.damaged if "line 1" in text and "backup" in text]
    assert set(report.damaged) <= set(report.lines)


def test_replaced_catalogues_go_after_an_hour(repo):
    repo.write_refcat("gaia", make_refcat([10.0], [0.0]))
    repo.write_refcat("gaia", make_refcat([10.0, 11.0], [0.0, 0.0]))
    now = time.time()
    assert sweep(repo, now=now + 0.9 * HOUR) == []
    assert len(sweep(repo, now=now + 1.1 * HOUR)) == 1
    assert len(repo.read_refcat("gaia", 10.5, 0.0, 2.0)) == 2
