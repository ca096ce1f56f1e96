"""From probabilities to words: golden verdicts, and that chance finds of a face detector decide nothing."""

import csv
import io
import json

import pytest

from raydistal.verdict import result
from raydistal.verdict.result import Band, Face, judge_tracks, judge_video, number_tracks

BAND = Band.around(0.6, 0.1)


def faces(track: int, probabilities: list[float], sampled: int = 0, side: float = 50.0, start_s: float = 0.0):
    """A face every 0.25 s, the first `sampled` of them sampled."""
    return [
        Face(track, 6 * i, start_s + 0.25 * i, (0.0, 0.0, side, side), i < sampled, probability)
        for i, probability in enumerate(probabilities)
    ]


def judged(seen: list[Face], num_frames: int = 20, band: Band = BAND) -> tuple[dict, list[dict]]:
    tracks = judge_tracks(seen, num_frames, band)
    return judge_video(seen, tracks, num_frames, band), tracks


@pytest.mark.parametrize(
    ("probability", "verdict"), [(0.7, "fake"), (0.699, "unsure"), (0.6, "unsure"), (0.501, "unsure"), (0.5, "real")]
)
def test_between_low_and_high_there_is_no_verdict(probability, verdict):
    assert Band.around(0.6, 0.1) == pytest.approx((0.6, 0.5, 0.7))
    assert Band(0.6, 0.5, 0.7).verdict(probability) == verdict


def test_every_verdict_stays_possible_at_an_extreme_threshold():
    assert Band.around(0.98, 0.1) == pytest.approx((0.98, 0.88, 0.99))
    assert Band.around(0.04, 0.1) == pytest.approx((0.04, 0.02, 0.14))


def test_without_a_band_the_threshold_decides_as_in_evaluate():
    assert [Band.around(0.6, 0).verdict(value) for value in (0.6, 0.6000001)] == ["real", "fake"]


def test_tracks_are_numbered_by_time_on_screen_and_size():
    seen = faces(7, [0.1] * 4, side=50) + faces(3, [0.1] * 3, side=80) + faces(5, [0.1] * 2, side=90)
    assert number_tracks(seen) == {3: 1, 7: 2, 5: 3}


def test_a_track():
    _, tracks = judged(faces(1, [0.9, 0.8, 0.7], start_s=2))
    assert tracks[0].pop("probability") == pytest.approx(0.8)
    assert tracks == [
        {"track": 1, "verdict": "fake", "is_judged": True, "first_s": 2.0, "last_s": 2.5, "num_frames": 3}
        | {"thumbnail": "face-1.jpg", "heatmap": None}
    ]


def test_the_sampled_faces_give_the_video_its_probability():
    video, _ = judged(faces(1, [0.2, 0.4, 0.9, 0.9], sampled=2))
    assert video["probability"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("seen", "verdict", "reason"),
    [
        (
            faces(1, [0.8] * 4, sampled=2),
            "fake",
            "The largest faces of 2 sampled frames score on average 0.80; 0.70 or more is called fake.",
        ),
        (
            faces(1, [0.1] * 4, sampled=2) + faces(2, [0.9] * 3, start_s=1),
            "fake",
            "Face 2 from 1.0 s to 1.5 s scores on average 0.90; 0.70 or more is called fake.",
        ),
        (
            faces(1, [0.1] * 4, sampled=2) + faces(2, [0.55] * 3),
            "unsure",
            "Face 2 from 0.0 s to 0.5 s scores on average 0.55; between 0.50 and 0.70 it is too close to call.",
        ),
        (
            faces(1, [0.1] * 4, sampled=1) + faces(2, [0.9] * 2),
            "real",
            "The largest face of the sampled frame scores 0.10; 0.50 or less is called real, and no other face was "
            "judged otherwise.",
        ),
        (
            faces(1, [0.49996] * 4, sampled=2),
            "real",
            "The largest faces of 2 sampled frames score on average 0.5000; 0.5000 or less is called real, and no "
            "other face was judged otherwise.",
        ),
    ],
)
def test_the_most_alarming_decides(seen, verdict, reason):
    video, _ = judged(seen)
    assert (video["status"], video["error"], video["verdict"]) == ("ok", None, verdict)
    assert video["reason"] == reason


def test_a_false_face_of_a_moment_decides_nothing():
    seen = faces(1, [0.1] * 5, sampled=2) + faces(2, [0.99, 0.99], sampled=1)
    video, tracks = judged(seen)
    assert [(track["verdict"], track["is_judged"]) for track in tracks] == [("real", True), ("unsure", False)]
    assert video["verdict"] == "real"
    video, _ = judged(faces(1, [0.1] * 5, sampled=1) + faces(2, [0.99, 0.99], sampled=2))
    assert video["probability"] == pytest.approx(2.08 / 3)  # two of three sampled faces are such: it does not count
    assert video["verdict"] == "real"
    video, _ = judged(faces(2, [0.99, 0.99], sampled=2))
    assert (video["verdict"], video["probability"]) == ("unsure", pytest.approx(0.99))
    assert video["reason"] == "No face was seen in 3 frames or more: too little to judge by."


def test_a_picture_has_one_frame_to_judge_by():
    video, tracks = judged(faces(1, [0.9], sampled=1) + faces(2, [0.2]), num_frames=1)
    assert [track["verdict"] for track in tracks] == ["fake", "real"]
    assert video["reason"] == "The largest face of the picture scores 0.90; 0.70 or more is called fake."
    video, _ = judged(faces(1, [0.1], sampled=1) + faces(2, [0.9]), num_frames=1)
    assert video["reason"] == "Face 2 scores 0.90; 0.70 or more is called fake."


def test_faces_only_where_no_frame_was_sampled():
    video, _ = judged(faces(1, [0.9] * 3))
    assert (video["status"], video["verdict"], video["probability"]) == ("ok", "fake", None)


@pytest.mark.parametrize(("num_frames", "where"), [(1, "the picture"), (20, "any of the 20 frames looked at")])
def test_no_face(num_frames, where):
    assert judged([], num_frames) == (
        {"status": "no_face", "error": None, "verdict": None, "probability": None}
        | {"reason": f"No face was found in {where}."},
        [],
    )


def test_the_timeline_is_sorted_and_comes_as_csv_too():
    seen = [*faces(2, [0.25, 1 / 3]), *faces(1, [0.5], sampled=1)]
    timeline = result.timeline(seen)
    assert [(one["pts_s"], one["track"]) for one in timeline] == [(0, 1), (0, 2), (0.25, 2)]
    assert timeline[2] == {"track": 2, "frame_index": 6, "pts_s": 0.25, "probability": 0.333333} | {
        "box_xyxy_px": [0, 0, 50, 50],
        "is_sampled": False,
    }
    rows = list(csv.DictReader(io.StringIO(result.to_csv(timeline).decode())))
    assert tuple(rows[0]) == result.TIMELINE
    assert rows[0] | {"pts_s": 0} == dict(
        zip(result.TIMELINE, ("1", "0", 0, "0.5", "0.0", "0.0", "50.0", "50.0", "1"), strict=True)
    )
    assert len(rows) == 3


def test_json_is_strict():
    assert json.loads(result.to_json({"a": [1.5, None]})) == {"a": [1.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        result.to_json({"a": float("nan")})
