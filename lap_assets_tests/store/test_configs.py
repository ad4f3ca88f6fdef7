import hashlib

import pytest

from lap_assets.errors import BadInput, IntegrityError
from lap_assets.store.configs import find_configs
from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck

DOCUMENT = b'{"stacks": {"min_inputs": 6}}'


def test_settings_are_kept_once_by_their_hash(tmp_path):
    repo = Repo(tmp_path)
    assert find_configs(repo.layout) == []
    name = repo.keep_config(DOCUMENT)
    assert name == hashlib.sha256(DOCUMENT).hexdigest()
    written = repo.layout.config(name).stat().st_mtime_ns
    assert repo.keep_config(DOCUMENT) == name and repo.layout.config(name).stat().st_mtime_ns == written
    assert repo.read_config(name) == DOCUMENT
    assert find_configs(repo.layout) == [name]
    assert repo.read_config("0" * 64) is None


def test_damaged_settings_are_refused_named_by_the_check_and_written_again(tmp_path):
    repo = Repo(tmp_path)
    name = repo.keep_config(DOCUMENT)
    path = repo.layout.config(name)
    path.write_bytes(DOCUMENT.replace(b"6", b"5"))
    with pytest.raises(IntegrityError, match=name[:12]):
        repo.read_config(name)
    (line,) = fsck(repo).damaged
    assert str(path) in line
    repo.keep_config(DOCUMENT)
    assert repo.read_config(name) == DOCUMENT and fsck(repo).damaged == []


def test_a_hash_is_no_path(tmp_path):
    with pytest.raises(BadInput):
        Repo(tmp_path).read_config("../journal")
