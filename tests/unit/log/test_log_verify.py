"""Verification of a whole log: every defect is found, and the file at fault is named."""

import pytest

from eastwest.log.checkpoint import Checkpoint, sign_checkpoint
from eastwest.log.note import NoteKey
from eastwest.log.tiles import CHECKPOINT_PATH, WITNESSED_PATH, bundle_path, decode_bundle, encode_bundle
from eastwest.log.tree import leaf_hash, root_of
from eastwest.log.verify import MAX_PROBLEMS, verify_log
from eastwest.testing.log import TestSigner, build_files

SIGNER = TestSigner()
KEY = NoteKey.of("a.example/log", SIGNER)


def log_of(size, start=0):
    return build_files([b"%d" % i for i in range(start, start + size)], KEY.name, SIGNER)


def check(files):
    """The places of all defects."""
    report = verify_log(files, KEY, files)
    assert report.ok == (not report.problems)
    assert all(str(problem).startswith(problem.where + ": ") for problem in report.problems)
    return sorted({problem.where for problem in report.problems})


def change_entry(files, index, entry=b"other"):
    path = next(p for p in files if p.startswith(bundle_path(index // 256)))
    entries = decode_bundle(files[path])
    entries[index % 256] = entry
    files[path] = encode_bundle(entries)
    return path


def flip(files, path, at=0):
    raw = bytearray(files[path])
    raw[at] ^= 1
    files[path] = bytes(raw)


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 512, 70_000])
def test_a_log_that_is_right_is_right(size):
    files = log_of(size)
    report = verify_log(files, KEY, files)
    assert report.ok
    assert report.checkpoint.size == size


def test_every_single_byte_of_a_small_log_counts():
    for path, content in log_of(3).items():
        for at in range(len(content)):
            files = log_of(3)
            flip(files, path, at)
            assert check(files) == [path], at


def test_every_missing_file_is_named():
    for path in log_of(600):
        files = log_of(600)
        del files[path]
        assert check(files) == [path]


def test_every_shortened_file_is_named():
    for path, content in log_of(600).items():
        for cut in (b"", content[:-1], content[:-32], content + b"\x00"):
            files = log_of(600)
            files[path] = cut
            assert check(files) == [path]


@pytest.mark.parametrize("index", [0, 255, 256, 511, 512, 599])
def test_a_changed_entry_is_named_by_its_index(index):
    files = log_of(600)
    path = change_entry(files, index)
    report = verify_log(files, KEY)
    assert [(p.where, p.entry) for p in report.problems] == [(path, index)]


@pytest.mark.parametrize("size", [600, 70_000])
def test_several_defects_are_told_apart(size):
    files = log_of(size)
    bundle = change_entry(files, 7)
    flip(files, "tile/0/001", 32 * 5)
    del files["tile/entries/002.p/88" if size == 600 else "tile/entries/002"]
    assert check(files) == ["tile/0/001", bundle, "tile/entries/002.p/88" if size == 600 else "tile/entries/002"]


def test_a_changed_upper_tile_is_told_from_what_lies_under_it():
    files = log_of(70_000)
    flip(files, "tile/1/000", 32 * 9)
    assert check(files) == ["tile/1/000"]
    bundle = change_entry(files, 5)
    assert check(files) == sorted(["tile/1/000", bundle])
    files = log_of(70_000)
    flip(files, "tile/2/000.p/1")
    assert check(files) == ["tile/2/000.p/1"]


def test_an_entry_changed_together_with_its_tile_is_found_by_the_tile_above():
    files = log_of(600)
    change_entry(files, 7)
    hashes = [leaf_hash(b"%d" % i) for i in range(256)]
    hashes[7] = leaf_hash(b"other")
    files["tile/0/000"] = b"".join(hashes)
    report = verify_log(files, KEY)
    assert [p.where for p in report.problems] == ["tile/0/000"]
    assert "changed together" in report.problems[0].message


def test_a_whole_other_log_under_the_checkpoint_is_found():
    files = log_of(600, start=1)
    files["checkpoint"] = log_of(600)["checkpoint"]
    report = verify_log(files, KEY)
    assert [p.where for p in report.problems] == ["checkpoint"]
    assert "agree among themselves" in report.problems[0].message


def test_a_checkpoint_for_more_than_there_is():
    files = log_of(600)
    root = root_of(leaf_hash(b"%d" % i) for i in range(601))
    files["checkpoint"] = sign_checkpoint(Checkpoint(KEY.name, 601, root), SIGNER).encode()
    assert check(files) == ["tile/0/002.p/89", "tile/entries/002.p/89"]


def test_older_partials_are_compared_with_what_continues_them():
    files = log_of(600)
    older = log_of(550)
    names = ["tile/0/002.p/38", "tile/entries/002.p/38"]
    files.update({name: older[name] for name in names})
    assert check(files) == []
    for name in names:
        changed = type(files)(files)
        flip(changed, name, 5)
        assert check(changed) == [name]
        newest = name.replace("38", "88")
        changed = type(files)(files)
        flip(changed, newest, 5)
        assert check(changed) == [newest]
        changed = type(files)(files)
        changed[name] = files[name][:-1]
        assert check(changed) == [name]


def test_files_beyond_the_checkpoint_are_passed_over_but_must_begin_alike():
    files = log_of(600)
    newer = log_of(900)
    for name in ("tile/0/002", "tile/0/003.p/132", "tile/entries/002", "tile/entries/003.p/132"):
        files[name] = newer[name]
    assert check(files) == []
    flip(files, "tile/0/002", 3)
    assert check(files) == ["tile/0/002"]


def test_a_reader_that_is_late_takes_the_full_tile_for_the_partial_one():
    files = log_of(900)
    files["checkpoint"] = log_of(600)["checkpoint"]
    files["tile/1/000.p/2"] = log_of(600)["tile/1/000.p/2"]
    assert "tile/0/002.p/88" not in files
    assert check(files) == []


@pytest.mark.parametrize(
    "path", ["tile/0/0", "tile/0/000.p/0", "tile/0/000.p/256", "tile/x/000", "notes.txt", "tile/00/000"]
)
def test_files_that_belong_to_no_log_are_named(path):
    files = log_of(3)
    files[path] = b""
    assert check(files) == [path]


def test_the_number_of_defects_told_is_bounded():
    files = log_of(5000)
    for path in list(files):
        if path.startswith("tile/entries/"):
            files[path] = encode_bundle(b"x" for _ in decode_bundle(files[path]))
    assert len(verify_log(files, KEY).problems) == MAX_PROBLEMS


def test_the_witnessed_checkpoint_is_of_the_same_history():
    files = log_of(300)
    files[WITNESSED_PATH] = log_of(270)[CHECKPOINT_PATH]
    assert check(files) == []
    files[WITNESSED_PATH] = log_of(270, start=1)[CHECKPOINT_PATH]
    assert check(files) == [WITNESSED_PATH]
    files[WITNESSED_PATH] = files[CHECKPOINT_PATH].replace(b"300", b"299")
    assert check(files) == [WITNESSED_PATH]


def test_every_key_that_is_given_must_have_signed():
    files = log_of(3)
    second = NoteKey.of(KEY.name, TestSigner(bytes(31) + b"2"))
    report = verify_log(files, KEY, files, [second])
    assert [problem.where for problem in report.problems] == [CHECKPOINT_PATH]
