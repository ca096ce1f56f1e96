import json

import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.datasets.layout import video_id
from raydistal.errors import UserError
from raydistal.sharing import manifest

FACES = {"detector": "haar", "crops": "png", "size_px": 64, "margin": 0.3}
ABOUT = {"format": manifest.FORMAT, "versions": {}, "faces": FACES}


def row(number=0, **changes):
    told = {"video_id": f"v{number}", "dataset": "d", "path": f"real/{number}.mp4", "num_bytes": 5, "sha256": "0" * 64}
    told |= {"label": 0, "group_id": "d/g", "split": "train", "rank": number, "status": "ok", "num_frames_seen": 4}
    told |= {"frame_index": [0, 9], "pts_s": [0.0, 0.3], "box_xyxy_px": [[0, 0, 9, 9], [1, 1, 9, 9]]}
    return told | {"detection_score": [1.0, 0.5], "crop_sha256": ["a" * 64, "b" * 64]} | changes


def write(path, *rows, about=ABOUT):
    storage.write_bytes(str(path), manifest.to_bytes(pa.Table.from_pylist(list(rows), schemas.SHARED), about))
    return str(path)


def test_the_order_of_rows_and_settings_does_not_change_the_bytes(tmp_path):
    backwards = dict(reversed(ABOUT.items()))
    first, second = write(tmp_path / "1", row(0), row(1)), write(tmp_path / "2", row(1), row(0), about=backwards)
    assert storage.read_bytes(first) == storage.read_bytes(second)
    assert manifest.read(first).videos.to_pylist() == [
        row(n, method=None, compression=None, original_id=None) for n in (0, 1)
    ]
    assert manifest.read(first).about == ABOUT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "../../etc/passwd"}, "leads out"),
        ({"path": "/etc/passwd"}, "leads out"),
        ({"path": "s3://other/secret"}, "leads out"),
        ({"split": "all"}, "unknown split"),
        ({"status": "fine"}, "unknown status"),
        ({"frame_index": [9, 0]}, "ascending"),
        ({"frame_index": [-1, 0]}, "ascending"),
        ({"pts_s": [0.0]}, "one length"),
        ({"video_id": "v1"}, "twice"),
    ],
)
def test_what_others_send_is_checked(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        manifest.read(write(tmp_path / "set.parquet", row(0, **changes), row(1)))


@pytest.mark.parametrize(
    "about",
    [
        {},
        ABOUT | {"format": "later"},
        ABOUT | {"faces": {}},
        ABOUT | {"faces": FACES | {"crops": "none"}},
        ABOUT | {"faces": FACES | {"size_px": "64"}},
        ABOUT | {"faces": FACES | {"detector": None}},
        {name: value for name, value in ABOUT.items() if name != "versions"},
    ],
)
def test_other_files_are_refused(tmp_path, about):
    with pytest.raises(UserError, match=r"set\.parquet"):
        manifest.read(write(tmp_path / "set.parquet", row(), about=about))
    (tmp_path / "text").write_text("text")
    for name in ("text", "absent"):
        with pytest.raises(UserError, match="raydistal share makes one"):
            manifest.read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("uri", "known_as", "expected"),
    [
        ("/home/me/ffpp/real/c23/a.mp4", video_id("ffpp", "real/c23/a.mp4"), "real/c23/a.mp4"),
        ("s3://bucket/mine/a.mp4", video_id("ffpp", "a.mp4"), "a.mp4"),
        ("s3://bucket/mine/b/a.mp4?scheme=http&endpoint_override=host:90", video_id("ffpp", "b/a.mp4"), "b/a.mp4"),
        ("s3://bucket/mine/a.mp4?scheme=http&endpoint_override=host:90", "other", "a.mp4"),
        ("s3://bucket/mine/b/what?.mp4", video_id("ffpp", "b/what?.mp4"), "b/what?.mp4"),
        ("/home/me/a.mp4", video_id("ffpp", "/home/me/a.mp4"), "a.mp4"),
        ("/home/me/../you/a.mp4", video_id("ffpp", "../you/a.mp4"), "a.mp4"),
    ],
)
def test_a_path_tells_nothing_of_where_the_dataset_lies(uri, known_as, expected):
    assert manifest.relative_path(uri, "ffpp", known_as) == expected


def test_nor_does_a_group_or_the_settings():
    assert manifest.public_group("ffpp/id7") == "ffpp/id7"
    for path in ("/home/me/a.mp4", "s3://mine/a.mp4"):
        hidden = manifest.public_group(f"ffpp/{path}")
        assert hidden == manifest.public_group(f"ffpp/{path}") != manifest.public_group("ffpp//home/me/b.mp4")
        assert hidden.startswith("ffpp/")
        assert "me" not in hidden
    config = {"detector": "/home/me/yunet.onnx", "weights": "/home/me/vgg.pt", "backbone": "vgg16", "sample": "even:4"}
    about = manifest.describe({"config": config, "versions": tables.versions()}, {"frames": 9, "faces": "abc"})
    assert (about["faces"]["detector"], about["features"]["weights"]) == ("yunet.onnx", "vgg.pt")
    assert about["selection"] == {"frames": 9}
    assert "/home" not in json.dumps(about)
