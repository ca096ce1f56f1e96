import hashlib
import os

import numpy as np
import pyarrow as pa
import pytest

from raydistal import storage
from raydistal.errors import MissingError, OtherFileError, UserError
from raydistal.faces.crop import encode
from raydistal.sharing import sources


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sources.file_digest(str(tmp_path / "a")) == (3, digest)
    sources.check(str(tmp_path / "a"), 3, digest)
    with pytest.raises(OtherFileError, match=digest):
        sources.check(str(tmp_path / "a"), 3, "0" * 64)
    image_HWC = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    pixels = hashlib.sha256(image_HWC.tobytes()).hexdigest()
    assert sources.crop_digest(encode(image_HWC, "png"), 32) == pixels
    assert sources.crop_digest(encode(image_HWC, "jpeg:50"), 32) != pixels
    assert sources.crop_digest(b"none", 32) == ""


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(MissingError, match="cannot be read"):
        sources.with_copy(str(tmp_path / "absent"), sources.file_digest)


def test_list_sizes(tmp_path):
    (tmp_path / "copy" / "deep").mkdir(parents=True)
    (tmp_path / "copy" / "deep" / "b c.mp4").write_bytes(b"123")
    (tmp_path / "copy" / "empty").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.mp4").write_bytes(b"4")
    (tmp_path / "copy" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "copy")
    (tmp_path / "copy" / "lost").symlink_to(tmp_path / "absent")
    assert sources.list_sizes(str(tmp_path / "copy")) == {"deep/b c.mp4": 3, "empty": 0, "link/d.mp4": 1}
    (tmp_path / "nothing").mkdir()
    for name in ("nothing", "absent"):
        with pytest.raises(UserError, match="--videos"):
            sources.list_sizes(str(tmp_path / name))
    with open(os.fsencode(tmp_path) + b"/\xff.mp4", "wb"):
        pass
    with pytest.raises(UserError, match="not UTF-8"):
        sources.list_sizes(str(tmp_path))


def test_files_are_found_by_path_or_by_content():
    rows = [("here", 1, "A"), ("renamed", 2, "B"), ("replaced", 3, "C"), ("gone", 4, "D")]
    videos = pa.table(dict(zip(("path", "num_bytes", "sha256"), zip(*rows, strict=True), strict=True)))
    sizes = {"here": 1, "other": 2, "another": 2, "replaced": 9, "C moved here": 3, "also 1": 1}
    assert sources.candidates(videos, sizes) == ["C moved here", "another", "other"]
    found = sources.locate(videos, sizes, {"other": "B", "another": "B", "C moved here": "C"})
    assert found == ["here", "another", "C moved here", "gone"]
    assert sources.locate(videos, sizes, {}) == ["here", "renamed", "replaced", "gone"]


def test_on_s3(s3):
    storage.write_bytes(f"{s3}/copy/deep/b c.mp4", b"abc")
    assert sources.list_sizes(f"{s3}/copy") == {"deep/b c.mp4": 3}
    assert sources.with_copy(f"{s3}/copy/deep/b c.mp4", sources.file_digest)[0] == 3
    with pytest.raises(UserError, match="--videos"):
        sources.list_sizes(f"{s3}/absent")
