"""One file, whole: what is written, that `evaluate` agrees, and that hostile files harm nobody."""

import csv
import json
import os
import signal
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from raydistal.datasets.synthetic import _write_absurd_size
from raydistal.detector import checkpoint, metrics, scoring, zoo
from raydistal.errors import CrashedError, DecodeError, OverLimitError, TimeLimitError, UserError
from raydistal.faces.look import look
from raydistal.verdict import examine
from raydistal.verdict.examine import Judge, Settings

INPUT_PX = 48
PLAIN = Settings(draw=False)


def brightness(crops_NHWC):
    assert crops_NHWC.shape[1:] == (INPUT_PX, INPUT_PX, 3)
    return (crops_NHWC.mean(axis=(1, 2, 3)) / 255).astype(np.float32)


def green(crops_NHWC):
    return np.stack([cv2.resize(crop_HWC[..., 1], (4, 3)) for crop_HWC in crops_NHWC]).astype(np.float32) / 255


@pytest.fixture
def judge(faces):
    faces = faces | {"sample": "even:6", "sample_fake": "even:1"}
    about = {"architecture": "vgg16", "digest": "0123456789abcdef", "input_px": INPUT_PX, "technique": "train"}
    about["runtime"] = "torch"
    data = {"dataset": ["made up"], "synthetic": True, "faces": faces}
    return Judge("small", about | {"data": data, "threshold": {"video": 0.4, "frame": 0.6}}, brightness)


def finish(steps):
    """The steps, and what they return."""
    made = []
    while True:
        try:
            made.append(next(steps))
        except StopIteration as end:
            return made, end.value


@pytest.mark.slow
def test_two_people_in_a_video(clips, judge, tmp_path):
    steps, found = finish(examine.examine(clips["two"], "a clip.mp4", str(tmp_path), judge, PLAIN))
    assert [(step.stage, step.total) for step in steps] == [("faces", 11)] * 2
    assert [step.done for step in steps] == [8, 11]
    assert found == json.loads((tmp_path / "verdict.json").read_text())
    assert found["video"] == {"name": "a clip.mp4", "width_px": 384, "height_px": 144, "num_frames": 24} | {
        "duration_s": pytest.approx(2),
        "is_picture": False,
    }
    assert [track["num_frames"] > 8 for track in found["tracks"]] == [True, True]
    left, right = ([one for one in found["timeline"] if one["track"] == track["track"]] for track in found["tracks"])
    assert (
        len({one["box_xyxy_px"][0] > 192 for one in left}) == len({one["box_xyxy_px"][0] > 192 for one in right}) == 1
    )
    sampled = [one["probability"] for one in found["timeline"] if one["is_sampled"]]
    assert len(sampled) == 6
    assert found["probability"] == pytest.approx(np.mean(sampled), abs=1e-6)
    for track in found["tracks"]:
        ours = [one for one in found["timeline"] if one["track"] == track["track"]]
        assert track["probability"] == pytest.approx(np.mean([one["probability"] for one in ours]), abs=1e-6)
        assert (track["first_s"], track["last_s"]) == pytest.approx((ours[0]["pts_s"], ours[-1]["pts_s"]), abs=1e-6)
        thumbnail_HWC = cv2.imread(str(tmp_path / track["thumbnail"]))
        assert thumbnail_HWC.shape == (160, 160, 3)
    assert sorted(os.listdir(tmp_path)) == ["face-1.jpg", "face-2.jpg", "timeline.csv", "verdict.json"]
    assert len(list(csv.reader((tmp_path / "timeline.csv").open()))) == 1 + len(found["timeline"])
    model_id = checkpoint.model_id(judge.about)
    assert found["detector"] == {"name": "small", "model_id": model_id, "architecture": "vgg16"} | {
        "technique": "train",
        "runtime": "torch",
        "precision": "float32",
        "trained_on": ["made up"],
        "synthetic": True,
        "threshold": 0.4,
        "low": pytest.approx(0.3),
        "high": pytest.approx(0.5),
    }
    told = {key: value for key, value in judge.about["data"]["faces"].items() if not key.startswith("sample")}
    assert found["protocol"] == {"sample": "even:6", "timeline": "fps:4", "aggregate": "mean", "faces": told}


def test_after_a_cut_there_is_another_person(clips, judge, tmp_path):
    _, found = finish(examine.examine(clips["cut"], "cut", str(tmp_path), judge, PLAIN))
    tracks = sorted((track["first_s"], track["last_s"]) for track in found["tracks"])
    assert len(tracks) == 2
    assert tracks[0][1] < 1 <= tracks[1][0]


@pytest.mark.parametrize("changes", [{}, {"crops": "jpeg:60"}, {"detector": "none"}])
def test_the_probability_is_what_evaluate_gives(clips, judge, faces, tmp_path, changes):
    model = zoo.create("timm:test_resnet", "random", 0, 32)
    data = {"faces": faces | changes | {"sample": "random:7"}}
    about, scorer = {**judge.about, "input_px": 32, "data": data}, scoring.Scorer(model)
    _, found = finish(examine.examine(clips["one"], "x", str(tmp_path), Judge("d", about, scorer), PLAIN, "an id"))
    row = look(clips["one"], "an id", "random:7", **faces | changes).to_pylist()[0]
    crops, _ = scoring.decode_crops(row["crop"], [model.input_px])
    probability_N = scorer(crops[model.input_px])
    (expected,) = metrics.aggregate(probability_N, np.zeros(len(probability_N), int), 1, "mean")
    assert found["probability"] == pytest.approx(expected, abs=1e-6)
    assert np.std(probability_N) > 1e-4  # had it taken other frames, it would show
    sampled = [one["probability"] for one in found["timeline"] if one["is_sampled"]]
    assert sampled == pytest.approx(probability_N.tolist(), abs=2e-6)


@pytest.mark.slow
def test_heat_comes_as_a_picture_per_track(clips, judge, tmp_path):
    judge = judge._replace(heat=green)
    _, found = finish(examine.examine(clips["picture"], "two.png", str(tmp_path), judge, Settings()))
    assert found["video"]["is_picture"]
    assert [track["heatmap"] for track in found["tracks"]] == ["heatmap-1.jpg", "heatmap-2.jpg"]
    assert cv2.imread(str(tmp_path / "heatmap-2.jpg")).shape == (320, 320, 3)
    assert found["annotated"] == "annotated.jpg"
    assert cv2.imread(str(tmp_path / "annotated.jpg")).shape == (144, 384, 3)


def test_the_video_is_drawn_again(clips, judge, tmp_path):
    steps, found = finish(examine.examine(clips["one"], "x", str(tmp_path), judge, Settings()))
    assert [step.stage for step in steps][-1] == "drawing"
    assert steps[-1].done == steps[-1].total == 24
    assert found["annotated"] == "annotated.mp4"
    with av.open(str(tmp_path / "annotated.mp4")) as drawn:
        assert sum(1 for _ in drawn.decode(video=0)) == 24


def test_a_verdict_is_not_lost_when_drawing_fails(clips, judge, tmp_path, monkeypatch):
    def garbage(*_):
        (tmp_path / "annotated.mp4.part").write_bytes(b"what a child that was killed leaves")
        return [{}]

    monkeypatch.setattr(examine, "_to_draw", garbage)
    _, found = finish(examine.examine(clips["one"], "x", str(tmp_path), judge, Settings()))
    assert found["annotated"] is None
    assert found["error"].startswith("the video could be examined, but not drawn on: unforeseen KeyError")
    assert found["status"] == "ok"
    assert sorted(os.listdir(tmp_path)) == ["face-1.jpg", "timeline.csv", "verdict.json"]


def test_nobody_to_judge(clips, judge, tmp_path):
    (tmp_path / "face-7.jpg").write_bytes(b"of an earlier call")
    _, found = finish(examine.examine(clips["wall"], "x", str(tmp_path), judge, Settings()))
    assert (found["status"], found["verdict"], found["probability"], found["tracks"]) == ("no_face", None, None, [])
    assert found["annotated"] is None
    assert sorted(os.listdir(tmp_path)) == ["timeline.csv", "verdict.json"]


def write_bad(kind, path, good):
    content = Path(good).read_bytes()
    if kind == "bomb":
        _write_absurd_size(path)
    else:
        path.write_bytes({"text": b"This is no video.", "empty": b"", "truncated": content[: len(content) // 8]}[kind])


@pytest.mark.parametrize("kind", ["text", "empty", "bomb", "truncated", "absent"])
def test_a_bad_file_is_an_error_and_nothing_is_written(clips, judge, tmp_path, kind):
    if kind != "absent":
        write_bad(kind, tmp_path / "bad", clips["one"])
    with pytest.raises(DecodeError):
        finish(examine.examine(str(tmp_path / "bad"), "bad", str(tmp_path / "out"), judge, PLAIN))
    assert not (tmp_path / "out").exists()


def test_a_child_that_dies_and_one_that_takes_too_long(clips, judge, tmp_path):
    steps = examine.examine(clips["one"], "x", str(tmp_path), judge, Settings(draw=False, timeline="every:1"))
    next(steps)
    os.kill(examine._sandbox("watch", PLAIN).pid, signal.SIGSEGV)
    with pytest.raises(CrashedError, match="SIGSEGV"):
        finish(steps)
    with pytest.raises(TimeLimitError):
        finish(examine.examine(clips["one"], "x", str(tmp_path), judge, Settings(draw=False, timeout_s=1e-3)))
    assert not os.listdir(tmp_path)


def test_a_detector_must_say_how_its_faces_were_cut(judge):
    examine.check(judge.about, "D")
    for lacking in ({"data": {"dataset": []}}, {"threshold": None}):
        about = {key: value for key, value in {**judge.about, **lacking}.items() if value}
        with pytest.raises(UserError, match=r"D does not say .* raydistal train"):
            examine.check(about, "D")
    about = {**judge.about, "data": {"faces": {"detector": "/no/such/yunet.onnx"}}}
    with pytest.raises(UserError, match=r"/no/such/yunet\.onnx"):
        examine.check(about, "D")


@pytest.mark.parametrize(
    "bad",
    [{"sample": "all"}, {"timeline": "fps:0"}, {"band": 0.5}, {"band": -0.1}, {"timeout_s": 0}, {"memory_mib": 9}],
)
def test_settings_are_checked(bad):
    with pytest.raises(UserError):
        Settings(**bad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_seconds": 1.5}, r"2\.0 s long; at most 1\.5 s"),
        ({"max_pixels": 384 * 144 - 1}, "384 x 144 pixels; at most 55295"),
    ],
)
def test_what_is_too_large_is_refused(clips, judge, tmp_path, limits, message):
    with pytest.raises(OverLimitError, match=message):
        finish(examine.examine(clips["two"], "x", str(tmp_path), judge, Settings(draw=False, **limits)))
    assert not os.listdir(tmp_path)
