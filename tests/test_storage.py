import os
from pathlib import Path

import pytest

from raydistal import storage
from raydistal.errors import UserError


def test_join_and_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.join("a/b", "c", "d.txt") == "a/b/c/d.txt"
    assert storage.join("s3://bucket/a", "b") == "s3://bucket/a/b"
    assert storage.join("s3://bucket", "b") == "s3://bucket/b"
    assert storage.join("s3://bucket/a?scheme=http", "b") == "s3://bucket/a/b?scheme=http"
    assert storage.join("s3://bucket/what?", "b?.mp4") == "s3://bucket/what?/b?.mp4"
    assert storage.absolute("a") == str(tmp_path / "a")
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"


def test_unknown_scheme_and_folder():
    with pytest.raises(UserError, match="s3:// or gs://"):
        storage.resolve("gopher://host/path")
    assert storage.list_files("/no/such/folder") == []


def test_a_name_that_is_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.mp4", "wb"):
        pass
    with pytest.raises(UserError, match="not UTF-8"):
        storage.list_files(str(tmp_path))


def exercise(root: str) -> None:
    """The same calls, whatever the store."""
    name = storage.join(root, "deep", "name with spaces? é%20.bin")
    assert not storage.exists(name)
    storage.write_bytes(name, b"one")
    storage.write_bytes(name, b"two")
    storage.write_bytes(storage.join(root, "b.bin"), bytes(3_000_000))
    assert storage.read_bytes(name) == b"two"
    assert storage.list_files(root) == ["b.bin", "deep/name with spaces? é%20.bin"]
    with storage.local_copy(name) as path:
        assert Path(path).read_bytes() == b"two"
        assert path.endswith(".bin")
    storage.delete(name)
    storage.delete(name)
    assert storage.list_files(root) == ["b.bin"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(name)
    with pytest.raises(FileNotFoundError), storage.local_copy(name) as path:
        Path(path).read_bytes()


def test_local(tmp_path):
    exercise(str(tmp_path))


def test_s3(s3):
    exercise(f"{s3}/folder")


def test_a_local_copy_of_s3_is_removed(s3):
    storage.write_bytes(f"{s3}/a.mp4", b"content")
    with storage.local_copy(f"{s3}/a.mp4") as path:
        assert Path(path).exists()
    assert not Path(path).exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = str(tmp_path / "file")
    storage.write_bytes(target, b"old")

    def full_disk(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        storage.write_bytes(target, b"new")
    assert storage.read_bytes(target) == b"old"
    assert os.listdir(tmp_path) == ["file"]
