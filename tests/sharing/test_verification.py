import numpy as np
import pyarrow as pa
import pytest

from raydistal.faces.crop import encode
from raydistal.sharing.sources import crop_digest
from raydistal.sharing.verification import differing, verdict

IMAGES = [encode(np.full((32, 32, 3), value, np.uint8), "png") for value in (10, 11)]
FACES = {"status": "ok", "error": None, "frame_index": [0, 9], "pts_s": [0.0, 0.3]}
FACES |= {"box_xyxy_px": [[0, 0, 9, 9], [1, 1, 9, 9]], "detection_score": [1.0, 0.5], "crop": IMAGES}
SHARED = {
    "video_id": "v",
    "path": "v.mp4",
    "differing": "",
    **FACES,
    "crop_sha256": [crop_digest(i, 32) for i in IMAGES],
}


@pytest.mark.parametrize(
    ("shared", "faces", "expected"),
    [
        ({}, {}, ("exact", None, 2)),
        ({}, None, ("missing", "no row of it in the run", 0)),
        ({"differing": None}, {}, ("missing", "no row of it in the run", 0)),
        ({"differing": "label, split"}, {}, ("row_differs", "label, split not as shared", 2)),
        ({}, {"crop": IMAGES[::-1]}, ("faces_differ", "2 of 2 faces not as shared", 0)),
        ({}, {"crop": [IMAGES[0], b"none"]}, ("faces_differ", "1 of 2 faces not as shared", 1)),
        ({"crop_sha256": ["", ""]}, {"crop": [b"none"] * 2}, ("faces_differ", "2 of 2 faces not as shared", 0)),
        ({}, {"pts_s": [0.0, 0.4]}, ("faces_differ", "1 of 2 faces not as shared", 1)),
        ({}, {"frame_index": [0, 10]}, ("faces_differ", "1 of 2 faces not as shared; 1 faces more than shared", 1)),
        ({}, {"status": "other_file", "error": "not it"}, ("other_file", "other_file: not it", 0)),
        ({}, {"status": "decode_error", "error": "broken"}, ("failed", "decode_error: broken", 0)),
    ],
)
def test_verdict(shared, faces, expected):
    told = verdict(SHARED | shared, faces if faces is None else FACES | faces, 32)
    assert (told["status"], told["detail"], told["num_exact"]) == expected
    assert told["num_faces"] == 2


def test_rows_that_differ():
    names = ("dataset", "label", "method", "compression", "original_id", "group_id", "split")
    shared = pa.table({"video_id": ["a", "b", "c"]} | {name: ["x", "y", "z"] for name in names})
    videos = pa.table({"video_id": ["b", "a"]} | {name: ["y", "w" if name == "label" else "x"] for name in names})
    assert differing(shared, videos).to_pylist() == ["label", "", None]
