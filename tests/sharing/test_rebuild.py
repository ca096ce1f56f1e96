import pytest

from raydistal.datasets.synthetic import write_video
from raydistal.errors import DecodeError
from raydistal.faces.look import look
from raydistal.sharing.rebuild import rebuild

FINDING = {"scale_factor": 1.2, "min_neighbors": 5, "min_face": 0.1}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "head.mp4"
    write_video(path, seconds=1, gop=12)
    return str(path)


@pytest.mark.parametrize("crops", ["png", "jpeg:80"])
@pytest.mark.parametrize(("detector", "equalize"), [("none", ""), ("haar", ""), ("haar", "180:90"), ("haar", "231:90")])
def test_crops_are_those_that_were_shared(video, detector, equalize, crops):
    """Also where boxes were found in a frame that was scaled first."""
    settings = {"detector": detector, "margin": 0.3, "size_px": 64, "crops": crops, "equalize": equalize}
    seen = look(video, "v", "every:3", **settings, **FINDING)
    assert len(seen["frame_index"][0]) > 5
    rebuilt = rebuild(video, seen.to_pylist()[0], settings)
    assert rebuilt.drop_columns(["feature"]).equals(seen.drop_columns(["pixels"]))
    assert str(rebuilt["feature"][0][0].as_py()) == "[nan]"


def test_frames_that_are_not_there(video):
    settings = {"detector": "none", "margin": 0.3, "size_px": 64, "crops": "png"}
    shared = {"video_id": "v", "status": "ok", "num_frames_seen": 3, "frame_index": [3, 25, 9999]}
    shared |= {"box_xyxy_px": [[0, 0, 9, 9]] * 3, "detection_score": [1.0] * 3}
    with pytest.raises(DecodeError, match="2 of its 3 frames"):
        rebuild(video, shared, settings)


def test_no_faces_before_are_no_faces_now():
    shared = {"video_id": "v", "status": "no_face", "num_frames_seen": 3, "frame_index": []}
    shared |= {"box_xyxy_px": [], "detection_score": []}
    (row,) = rebuild("/is/not/opened", shared, {"size_px": 64, "crops": "png"}).to_pylist()
    assert (row["status"], row["error"], row["feature"]) == ("no_face", "no_face where it was shared", [])
