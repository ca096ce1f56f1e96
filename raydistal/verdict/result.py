"""From the faces of a video, their tracks and probabilities, to a verdict in words, as JSON and as CSV.

There are two kinds of evidence. The video's `probability` is the mean over the largest faces of the sampled frames, as
in the detector's evaluation. A track's is the mean over all its faces. A probability of `high` or more is fake, of
`low` or less real, and unsure in between. The most alarming one decides: so one face of many can be the reason, and
videos of many faces are called fake more readily than the metrics, which know the first kind alone, suggest.

Face detectors see faces where there are none, mostly for a moment. So a track of fewer than MIN_FACES faces is unsure
and decides nothing, and the video's probability decides only if it rests mostly on faces of longer tracks.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MIN_FACES = 3  # of a track that is judged; fewer in a video of which fewer frames were looked at
ALARMING = ("real", "unsure", "fake")  # in rising order
TIMELINE = ("track", "frame_index", "pts_s", "probability", "x0_px", "y0_px", "x1_px", "y1_px", "is_sampled")


class Face(NamedTuple):
    """One face of one frame."""

    track: int
    """From 1 on as in the result; before `number_tracks`, the number that `Linker` gave."""
    frame_index: int
    pts_s: float
    """Seconds since the video's first frame."""
    box_xyxy_px: tuple[float, float, float, float]
    is_sampled: bool
    """It counts towards the video's probability: the largest face of a frame that `sample` picks."""
    probability: float


class Band(NamedTuple):
    """Between `low` and `high` there is no verdict."""

    threshold: float
    low: float
    high: float

    @classmethod
    def around(cls, threshold: float, width: float) -> "Band":
        """`width` to either side, but at most half of the room there, so that each verdict stays possible."""
        low = max(threshold - width, threshold / 2)
        return cls(threshold, low, min(threshold + width, (1 + threshold) / 2))

    def verdict(self, probability: float) -> str:
        """Either fake, real or unsure. Without width: fake above the threshold, as `raydistal evaluate` has it."""
        if probability > self.threshold and probability >= self.high:
            return "fake"
        return "real" if probability <= self.low else "unsure"


def number_tracks(faces: Sequence[Face]) -> dict[int, int]:
    """The number of each track in the result, from 1: those with more and larger faces come first."""
    weight: dict[int, float] = {}
    for face in faces:
        x0, y0, x1, y1 = face.box_xyxy_px
        weight[face.track] = weight.get(face.track, 0.0) + max(x1 - x0, y1 - y0)
    return {track: number for number, track in enumerate(sorted(weight, key=lambda track: -weight[track]), 1)}


def judge_tracks(faces: Sequence[Face], num_frames: int, band: Band) -> list[dict[str, Any]]:
    """The tracks of the result, in order, without pictures.

    Args:
        faces: of numbered tracks.
        num_frames: frames looked at.
        band: the limits of the verdicts.
    """
    of_track: dict[int, list[Face]] = {}
    for face in faces:
        of_track.setdefault(face.track, []).append(face)
    judged = []
    for track, seen in sorted(of_track.items()):
        probability = _mean(seen)
        is_judged = len(seen) >= min(MIN_FACES, num_frames)
        judged.append(
            {"track": track, "verdict": band.verdict(probability) if is_judged else "unsure"}
            | {"is_judged": is_judged, "probability": probability}
            | {"first_s": min(face.pts_s for face in seen), "last_s": max(face.pts_s for face in seen)}
            | {"num_frames": len(seen), "thumbnail": f"face-{track}.jpg", "heatmap": None}
        )
    return judged


def judge_video(
    faces: Sequence[Face], tracks: Sequence[Mapping[str, Any]], num_frames: int, band: Band
) -> dict[str, Any]:
    """status, error, verdict, probability and reason of a video that was looked at; arguments as `judge_tracks`."""
    if not faces:
        seen = "the picture" if num_frames == 1 else f"any of the {num_frames} frames looked at"
        return _judgement("no_face", None, None, f"No face was found in {seen}.")
    judged = [track for track in tracks if track["is_judged"]]
    numbers = {track["track"] for track in judged}
    sampled = [face for face in faces if face.is_sampled]
    probability = _mean(sampled) if sampled else None
    counts = 2 * sum(face.track in numbers for face in sampled) >= max(1, len(sampled))
    candidates = [(track["verdict"], _of_track(track, num_frames), track["probability"]) for track in judged]
    if probability is not None and counts:
        candidates.insert(0, (band.verdict(probability), _of_video(len(sampled), num_frames), probability))
    if not candidates:
        return _judgement(
            "ok", "unsure", probability, f"No face was seen in {MIN_FACES} frames or more: too little to judge by."
        )
    # Of equals the first: the video itself.
    verdict, who, decisive = max(candidates, key=lambda one: ALARMING.index(one[0]))
    return _judgement("ok", verdict, probability, _reason(verdict, who, decisive, band))


def _reason(verdict: str, who: str, probability: float, band: Band) -> str:
    shown = [f"{value:.2f}" for value in (probability, band.low, band.high)]
    if shown[0] in shown[1:]:
        shown = [f"{value:.4f}" for value in (probability, band.low, band.high)]
    score, low, high = shown
    rule = {
        "fake": f"{high} or more is called fake",
        "unsure": f"between {low} and {high} it is too close to call",
        "real": f"{low} or less is called real, and no other face was judged otherwise",
    }
    return f"{who} {score}; {rule[verdict]}."


def _of_video(num_sampled: int, num_frames: int) -> str:
    if num_frames == 1:
        return "The largest face of the picture scores"
    if num_sampled == 1:
        return "The largest face of the sampled frame scores"
    return f"The largest faces of {num_sampled} sampled frames score on average"


def _of_track(track: Mapping[str, Any], num_frames: int) -> str:
    when = "" if num_frames == 1 else f" from {track['first_s']:.1f} s to {track['last_s']:.1f} s"
    return f"Face {track['track']}{when} scores" + (" on average" if track["num_frames"] > 1 else "")


def _mean(faces: Sequence[Face]) -> float:
    """Mean probability, computed as in `raydistal evaluate`."""
    from raydistal.detector.metrics import aggregate

    probability_N = np.array([face.probability for face in faces], np.float32)
    return float(aggregate(probability_N, np.zeros(len(faces), np.int64), 1, "mean")[0])


def _judgement(status: str, verdict: str | None, probability: float | None, reason: str) -> dict[str, Any]:
    return {"status": status, "error": None, "verdict": verdict, "probability": probability, "reason": reason}


def timeline(faces: Sequence[Face]) -> list[dict[str, Any]]:
    """The timeline of the result: all faces by time and track."""
    return [
        {"track": face.track, "frame_index": face.frame_index, "pts_s": round(face.pts_s, 6)}
        | {"probability": round(face.probability, 6)}
        | {"box_xyxy_px": [round(value, 2) for value in face.box_xyxy_px], "is_sampled": face.is_sampled}
        for face in sorted(faces, key=lambda face: (face.pts_s, face.track))
    ]


def to_csv(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """A `timeline` as CSV: a line per face, columns TIMELINE, is_sampled as 0 or 1."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(TIMELINE)
    for one in entries:
        start = (one[name] for name in TIMELINE[:4])
        table.writerow([*start, *one["box_xyxy_px"], int(one["is_sampled"])])
    return text.getvalue().encode()


def to_json(result: Mapping[str, Any]) -> bytes:
    """Strict JSON. Raises ValueError for NaN and infinity, which JSON lacks."""
    return json.dumps(result, allow_nan=False, indent=1).encode()
