"""The note of a running webserver, and how quiet all is where none runs."""

import json
import os

import pytest

from lap_assets.operations.webserver import (
    find_note,
    find_webserver,
    forget_webserver,
    is_broken,
    note_webserver,
    reload_definitions,
)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "dagster").mkdir()
    return tmp_path


def test_the_note_is_there_while_the_server_runs(root):
    """Written, read, and taken away by whom it is of."""
    assert find_webserver(root) == ""
    note_webserver(root, "http://127.0.0.1:3000")
    assert find_webserver(root) == "http://127.0.0.1:3000"
    find_note(root).write_text(json.dumps({"url": "http://127.0.0.1:3001", "pid": os.getpid() + 1}))
    forget_webserver(root)
    assert find_webserver(root) == "http://127.0.0.1:3001"
    note_webserver(root, "http://127.0.0.1:3000")
    forget_webserver(root)
    assert find_webserver(root) == ""


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"url": "http://127.0.0.1:9"}', '{"url": "no address"}'])
def test_without_a_webserver_a_reload_is_nothing(root, text):
    """No note, a broken one, or one of a server that is gone: quiet."""
    find_note(root).write_text(text)
    assert reload_definitions(root) is False
    assert is_broken("http://127.0.0.1:9") is None
