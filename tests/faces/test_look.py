"""One video to its row: whole rows, without Ray and without the sandbox."""

import av
import numpy as np
import pytest

from raydistal.errors import DecodeError, UserError
from raydistal.faces.crop import resize
from raydistal.faces.detect import Haar, LargestFace, YuNet
from raydistal.faces.look import look
from raydistal.video.decode import Frame

OPTIONS = {
    "detector": "none",
    "scale_factor": 1.2,
    "min_neighbors": 5,
    "min_face": 0.1,
    "margin": 0.3,
    "size_px": 32,
    "crops": "png",
}


def test_whole_frames(make_clip):
    path = make_clip("clip.mkv", "ffv1", pix_fmt="bgr0", num_frames=5)
    row = look(str(path), "v", "even:2", **OPTIONS)
    assert row.drop_columns(["crop", "pixels"]).to_pylist() == [
        {
            "video_id": "v",
            "status": "ok",
            "error": None,
            "num_frames_seen": 2,
            "frame_index": [0, 4],
            "pts_s": [0.0, 0.16],
            "box_xyxy_px": [[0, 0, 96, 64]] * 2,
            "detection_score": [1, 1],
        }
    ]
    pixels = row["pixels"].combine_chunks().flatten().flatten().to_numpy().reshape(2, 32, 32, 3)
    with av.open(str(path)) as container:
        first, *_, last = (picture.to_ndarray(format="rgb24") for picture in container.decode(video=0))
    np.testing.assert_array_equal(pixels, [resize(first, 32), resize(last, 32)])
    assert all(crop.startswith(b"\x89PNG") for crop in row["crop"][0].as_py())


def test_no_face_and_no_crops(make_clip):
    path = make_clip("clip.mp4", num_frames=8)
    row = look(str(path), "v", "every:3", **OPTIONS | {"detector": "haar", "crops": "none"})
    assert row.to_pylist() == [
        {
            "video_id": "v",
            "status": "no_face",
            "error": "no face in 3 frames",
            "num_frames_seen": 3,
            "frame_index": [],
            "pts_s": [],
            "box_xyxy_px": [],
            "detection_score": [],
            "crop": None,
            "pixels": [],
        }
    ]


def test_not_a_video(tmp_path):
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(DecodeError):
        look(str(tmp_path / "text.mp4"), "v", "even:2", **OPTIONS)


class Scripted(Haar):
    """A Haar whose answers are given; counts full and near passes."""

    def __init__(self, full, near):
        self.full, self.nearby, self.passes = iter(full), iter(near), []

    def __call__(self, frame):
        self.passes.append("full")
        return boxes(next(self.full))

    def near(self, frame, box_4):
        self.passes.append(f"near {box_4[0]:.0f}")
        return boxes(next(self.nearby))


def boxes(left_and_side):
    array = np.array([[left, 0, left + side, side] for left, side in left_and_side], np.float32).reshape(-1, 4)
    return array, np.arange(len(array), dtype=np.float32)


def test_largest_face_looks_near_the_last_one_and_now_and_then_everywhere():
    detect = Scripted(full=[[(0, 10), (50, 20)], [], [(7, 30)], [(9, 5)]], near=[[(52, 20)], [], [(8, 5)]])
    largest = LargestFace(detect, full_every=4)
    found = [largest(None) for _ in range(5)]
    assert [face and (float(face[0][0]), face[1]) for face in found] == [(50, 1), (52, 0), None, (7, 0), (9, 0)]
    assert detect.passes == ["full", "near 50", "near 52", "full", "full", "full"]


def test_haar_finds_nothing_in_flat_and_tiny_frames():
    for shape in ((40, 60), (2, 2), (480, 640)):
        picture = av.VideoFrame.from_ndarray(np.full((*shape, 3), 90, np.uint8), format="rgb24")
        boxes_N4, score_N = Haar()(Frame(0, 0.0, picture))
        assert boxes_N4.shape == (0, 4)
        assert score_N.shape == (0,)


def test_yunet_needs_its_model(tmp_path):
    with pytest.raises(UserError, match="no YuNet model"):
        YuNet(str(tmp_path / "absent.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    with pytest.raises(UserError, match="not a YuNet model"):
        YuNet(str(tmp_path / "bad.onnx"))
