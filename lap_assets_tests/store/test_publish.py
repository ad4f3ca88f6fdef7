import numpy as np
import pandas as pd
import pytest

from lap_assets.errors import Conflict, IntegrityError, PermanentFailure
from lap_assets.model.ids import Pin
from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck
from lap_assets_tests.store.samples import FINAL, STACK, TWIN, WARP, check_stack, make_image, make_stack, publish

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def repo(tmp_path):
    return Repo(tmp_path)


def list_files(repo):
    return sorted(str(path.relative_to(repo.root)) for path in repo.root.rglob("*") if path.is_file())


def test_what_is_published_is_read_back_with_its_facts(repo):
    pin = Pin(WARP, "0" * 64)
    published = publish(
        repo,
        STACK,
        make_stack(3),
        inputs=[pin],
        metrics={"depth_mag": np.float32(24.5)},
        fence=4,
        run_id="run",
        seconds=1.5,
    )
    manifest = repo.manifest(STACK)
    assert manifest == published
    assert (manifest.state, manifest.inputs, manifest.fence, manifest.run_id) == ("done", (pin,), 4, "run")
    assert manifest.metrics == {"depth_mag": 24.5}
    assert manifest.fingerprint["id"]
    assert repo.pin(STACK) == Pin(STACK, manifest.content_sha256)
    assert repo.has_files(STACK)
    check_stack(repo, STACK, {3})
    assert repo.read_table(STACK, "inputs.parquet").attrs["units"] == {"fwhm_arcsec": "arcsec"}


def test_the_same_content_is_one_directory_and_is_not_written_again(repo):
    first = publish(repo, STACK, make_stack(3))
    inode = repo.path(STACK, "image.fits").stat().st_ino
    second = publish(repo, STACK, make_stack(3), recipe="another")
    assert second.directory == first.directory
    assert repo.path(STACK, "image.fits").stat().st_ino == inode
    assert repo.manifest(STACK).recipe == "another"
    assert len(list(repo.layout.find_versions(STACK))) == 1


def test_content_does_not_depend_on_place_run_or_preview(tmp_path):
    """Same inputs, same pixels: the content hash knows neither folder, collection, run nor thumbnail."""
    one = publish(Repo(tmp_path / "a"), STACK, make_stack(3), run_id="1", seconds=1.0)
    members = make_stack(3) | {"preview.png": PNG + b"2"}
    other = publish(Repo(tmp_path / "b"), STACK, members, run_id="2", seconds=2.0)
    assert one.content_sha256 == other.content_sha256
    assert publish(Repo(tmp_path / "b"), STACK, make_stack(4)).content_sha256 != one.content_sha256


def test_a_damaged_copy_of_the_same_content_is_not_taken_up_again(repo):
    first = publish(repo, STACK, make_stack(3))
    path = repo.path(STACK, "image.fits")
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(bytes(data))
    second = publish(repo, STACK, make_stack(3))
    assert second.content_sha256 == first.content_sha256 and second.directory != first.directory
    check_stack(repo, STACK, {3})


def without(members, name):
    return {key: value for key, value in members.items() if key != name}


def stack_with(**changes):
    members = make_stack()
    for name, value in changes.items():
        setattr(members["image.fits"], name, value)
    return members


def not_finite():
    sci = make_image().sci
    sci[4, 7] = np.nan
    return sci


BAD = {
    "image.fits is missing": without(make_stack(), "image.fits"),
    "other.txt is not in the product table": make_stack() | {"other.txt": b"x"},
    "plane NINPUT is missing": make_stack() | {"image.fits": make_image()},
    "differ in shape": stack_with(var=np.ones((3, 3), np.float32)),
    r"plane SCI is not finite in 1 pixels, first \[4, 7\]": stack_with(sci=not_finite()),
    "plane MASK: cannot store type complex64": stack_with(mask=np.ones((12, 10), np.complex64)),
    "column weight is missing": make_stack()
    | {"inputs.parquet": pd.DataFrame({"exposure": ["a"], "fwhm_arcsec": [1.0]})},
    "no PNG picture": make_stack() | {"preview.png": b"GIF89a"},
    "cannot be written from int": make_stack() | {"image.fits": 3},
}


@pytest.mark.parametrize("message", BAD, ids=list(BAD))
def test_what_the_product_table_does_not_allow_is_refused_and_leaves_nothing(repo, message):
    publish(repo, STACK, make_stack(3))
    before = list_files(repo)
    with pytest.raises(PermanentFailure, match=message) as caught:
        publish(repo, STACK, BAD[message])
    assert str(STACK) in str(caught.value) and "\n" not in str(caught.value)
    assert list_files(repo) == before
    check_stack(repo, STACK, {3})


def test_results_without_members_need_a_reason(repo):
    manifest = publish(repo, STACK, {}, state="no_work", reason="only 2 inputs")
    assert (manifest.state, manifest.reason, dict(manifest.members)) == ("no_work", "only 2 inputs", {})
    assert repo.manifest(STACK) == manifest
    assert repo.pin(STACK) is None and repo.has_files(STACK)
    for state, reason, members in (("no_work", "", {}), ("dropped", "x", make_stack()), ("failed", "x", {})):
        with pytest.raises(PermanentFailure):
            publish(repo, STACK, members, state=state, reason=reason)


def test_a_writer_that_lost_its_lease_is_refused_whatever_it_brings(repo):
    publish(repo, STACK, make_stack(3), fence=7)
    for state, reason, members in (("done", "", make_stack(4)), ("dropped", "given up", {})):
        with pytest.raises(Conflict, match="fence 7"):
            publish(repo, STACK, members, fence=6, state=state, reason=reason)
    check_stack(repo, STACK, {3})
    publish(repo, STACK, make_stack(5), fence=7)
    check_stack(repo, STACK, {5})


def test_a_unit_may_refer_to_the_members_of_another(repo):
    """By hash and without a copy."""
    source = publish(repo, STACK, make_stack(3))
    manifest = publish(repo, TWIN, {}, refers_to=repo.pin(STACK), metrics={"n_inputs": 6})
    assert manifest.refers_to == source.pin
    assert manifest.content_sha256 == source.content_sha256
    assert repo.path(TWIN, "image.fits").stat().st_ino == repo.path(STACK, "image.fits").stat().st_ino
    repo.layout.manifest(STACK).unlink()
    for path in repo.layout.content_dir(STACK, source.directory).iterdir():
        path.unlink()
    check_stack(repo, TWIN, {3})
    assert not fsck(repo, full=True).broken


def test_a_compressed_product_that_refers_is_what_publishing_the_same_planes_gives(repo):
    """LAP-31: a final stack without trails is the first-pass stack, named by its hash and compressed."""
    source = publish(repo, STACK, make_stack(3))
    manifest = publish(repo, FINAL, {}, refers_to=source.pin)
    assert manifest.refers_to == source.pin and manifest.content_sha256 != source.content_sha256
    assert repo.path(FINAL, "inputs.parquet").samefile(repo.path(STACK, "inputs.parquet"))
    assert not repo.path(FINAL, "image.fits").samefile(repo.path(STACK, "image.fits"))
    members = dict(manifest.members)
    repo.clean(STACK)
    check_stack(repo, FINAL, {3})
    assert publish(repo, FINAL, make_stack(3)).members == members
    assert not fsck(repo, full=True).broken


def test_a_damaged_source_is_named_and_nothing_is_published(repo):
    publish(repo, STACK, make_stack(3))
    path = repo.path(STACK, "image.fits")
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"main/stacks.*image\.fits: .* differs? from .*; run `lap fsck") as caught:
        publish(repo, FINAL, {}, refers_to=repo.pin(STACK))
    assert "\n" not in str(caught.value) and repo.manifest(FINAL) is None


def test_reference_to_something_replaced_is_a_conflict(repo):
    publish(repo, STACK, make_stack(3))
    old = repo.pin(STACK)
    publish(repo, STACK, make_stack(4))
    with pytest.raises(Conflict, match="replaced"):
        publish(repo, FINAL, {}, refers_to=old)
    assert repo.manifest(FINAL) is None


def test_metrics_that_are_no_numbers_are_refused_by_name(repo):
    with pytest.raises(PermanentFailure, match=r"metrics\.depth_mag"):
        publish(repo, STACK, make_stack(), metrics={"depth_mag": float("nan")})


def test_links_planted_in_the_store_lead_nowhere(repo, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    folder = repo.layout.unit_dir(STACK)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(outside)
    with pytest.raises(Exception, match="symbolic link"):
        publish(repo, STACK, make_stack())
    assert list(outside.iterdir()) == []
