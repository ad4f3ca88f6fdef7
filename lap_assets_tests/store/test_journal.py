import multiprocessing

import pytest

from lap_assets.errors import IntegrityError, PermanentFailure
from lap_assets.store.journal import append_entry, read_entries


def test_entries_come_back_in_order(tmp_path):
    path = tmp_path / "store" / "journal.jsonl"
    assert list(read_entries(path)) == []
    entries = [{"kind": "sequence", "name": "3pi", "n": n} for n in range(5)]
    for entry in entries:
        append_entry(path, entry)
    assert list(read_entries(path)) == entries


def test_a_torn_last_line_is_left_out_and_the_next_entry_survives(tmp_path):
    path = tmp_path / "journal.jsonl"
    append_entry(path, {"n": 1, "text": "long enough to be torn"})
    whole = path.read_bytes()
    append_entry(path, {"n": 2, "text": "long enough to be torn", "a": {"b": {"c": [{}]}}})
    line = path.read_bytes()[len(whole) :]
    for length in range(1, len(line)):
        path.write_bytes(whole + line[:length])
        complete = length == len(line) - 1  # only the line's end is missing
        expected = [1, 2] if complete else [1]
        assert [entry["n"] for entry in read_entries(path)] == expected
        append_entry(path, {"n": 3})
        assert [entry["n"] for entry in read_entries(path)] == [*expected, 3]


def test_other_damage_is_not_passed_over(tmp_path):
    path = tmp_path / "journal.jsonl"
    for n in range(3):
        append_entry(path, {"n": n})
    path.write_bytes(path.read_bytes().replace(b'{"n": 1}', b'{"n"; 1}'))
    with pytest.raises(IntegrityError, match="line 2"):
        list(read_entries(path))


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    with pytest.raises(PermanentFailure):
        append_entry(path, {"x": float("inf")})
    assert not path.exists()


def test_the_journal_is_no_link(tmp_path):
    (tmp_path / "journal.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        append_entry(tmp_path / "journal.jsonl", {"n": 1})


def append_many(path, writer):
    for n in range(100):
        append_entry(path, {"writer": writer, "n": n, "text": "x" * 200})


def test_entries_of_two_processes_do_not_mix(tmp_path):
    path = tmp_path / "journal.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_many, args=(path, writer)) for writer in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    entries = list(read_entries(path))
    for writer in "ab":
        assert [entry["n"] for entry in entries if entry["writer"] == writer] == list(range(100))
