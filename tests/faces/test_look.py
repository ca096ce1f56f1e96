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


def write_green_detector(path):
    """A model with YuNet's inputs and outputs that scores each cell by how green it is and gives boxes of cell size."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes, outputs, weights = [], [], []
    channels = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
    for name, num_channels in channels.items():
        kernel = np.zeros((num_channels, 3, 1, 1), np.float32)
        kernel[:, 1] = 1 / 255 if num_channels == 1 else 0
        shape = np.array([1, -1, num_channels], np.int64)
        weights += [numpy_helper.from_array(kernel, f"{name}_w"), numpy_helper.from_array(shape, f"{name}_shape")]
    for stride in (8, 16, 32):
        nodes.append(
            helper.make_node(
                "AveragePool", ["input"], [f"pool{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        for name, num_channels in channels.items():
            parts = [f"{name}{stride}{step}" for step in "ab"]
            nodes.append(helper.make_node("Conv", [f"pool{stride}", f"{name}_w"], [parts[0]]))
            nodes.append(helper.make_node("Transpose", [parts[0]], [parts[1]], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [parts[1], f"{name}_shape"], [f"{name}_{stride}"]))
            shape = [1, (640 // stride) ** 2, num_channels]
            outputs.append(helper.make_tensor_value_info(f"{name}_{stride}", TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "green", [image], outputs, weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


def test_yunet_boxes_are_in_source_pixels(tmp_path):
    write_green_detector(tmp_path / "green.onnx")
    image_HWC = np.zeros((512, 1280, 3), np.uint8)
    image_HWC[128:256, 640:768, 1] = 255  # 2 x 2 cells of stride 32 once the frame is half as large
    frame = Frame(0, 0.0, av.VideoFrame.from_ndarray(image_HWC, format="rgb24"))
    boxes_N4, score_N = YuNet(str(tmp_path / "green.onnx"), min_face=0.1)(frame)
    assert sorted(map(tuple, boxes_N4.tolist())) == [
        (left, top, left + 64, top + 64) for left in (608, 672) for top in (96, 160)
    ]
    assert (score_N > 0.9).all()
    assert len(YuNet(str(tmp_path / "green.onnx"), min_face=0.2)(frame)[0]) == 0


def test_yunet_needs_its_model(tmp_path):
    with pytest.raises(UserError, match="no YuNet model"):
        YuNet(str(tmp_path / "absent.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    with pytest.raises(UserError, match="not a YuNet model"):
        YuNet(str(tmp_path / "bad.onnx"))
