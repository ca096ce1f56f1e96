"""Streams all faces of the frames of one video that are looked at. Runs in the child process of a `Sandbox`.

One pass serves two samplings. `sample` is the protocol of the detector's training: its frames alone go, in order,
through `LargestFace`, so that the largest faces, their boxes and pixels are exactly those of `raydistal extract`.
`timeline` shows what happens in between: its frames, and those of `sample` for further faces, are searched in full.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistal.errors import DecodeError
from raydistal.faces.crop import Image, check_format, decode, encode
from raydistal.faces.detect import Boxes, LargestFace, Scores
from raydistal.faces.equalize import Equalizer
from raydistal.faces.look import cut, make_detector
from raydistal.schemas import list_column
from raydistal.video.decode import decode_frames, read_index
from raydistal.video.sampling import Sampling

MAX_FACES = 24  # the largest of a frame: bounds a row, whatever a detector sees in a wallpaper
MAX_OVERLAP = 0.5  # share of the smaller of two boxes that lies in the other, above which they are one face
SCENE_PX = (16, 9)
MAX_START_S = 10.0
SCHEMA = pa.schema(
    [
        ("frame_index", pa.int32()),
        ("pts_s", pa.float64()),
        ("is_sampled", pa.bool_()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("num_frames", pa.int32()),
        ("num_wanted", pa.int32()),
        ("duration_s", pa.float64()),
        ("start_s", pa.float64()),
        ("scene", pa.binary(SCENE_PX[0] * SCENE_PX[1])),
        ("largest", pa.int32()),
    ]
)

MAX_ROWS, MAX_BYTES = 8, 8 << 20  # of frames, and of their crops: what a table holds before it leaves


def watch(
    path: str,
    video_id: str,
    sample: str,
    timeline: str,
    *,
    detector: str,
    scale_factor: float,
    min_neighbors: int,
    min_face: float,
    margin: float,
    size_px: int,
    crops: str,
    equalize: str = "",
) -> Iterator[pa.Table]:
    """The faces of one local file: a row per frame looked at, in order, a few rows per table.

    Arguments as of `faces.look.look`. Columns:

        frame_index int32, pts_s double
        is_sampled bool: `sample` picks this frame
        largest int32: which of its faces is the one that `extract` takes; null where it takes none
        width_px, height_px int32: of the upright frame
        num_frames int32, duration_s, start_s double: of the video; see `start_of`
        num_wanted int32: frames to look at
        scene fixed_size_binary: the frame as SCENE_PX grey pixels
        box_xyxy_px, detection_score: lists over the N faces of the frame
        pixels: list of N crops, each size_px * size_px * 3 bytes, RGB, compressed as `crops` has it

    With the detector "none", the whole frame is the one face.

    Raises:
        DecodeError: not a video, none of the frames could be decoded, or one is too small to equalize.
    """
    check_format(crops)
    index = read_index(path)
    sampled_K, between_K = (Sampling.parse(text).pick(index.pts_s_N, video_id) for text in (sample, timeline))
    wanted_K, sampled = np.union1d(sampled_K, between_K), set(sampled_K.tolist())
    about = _about(index.pts_s_N) | {"num_wanted": len(wanted_K)}
    search = make_detector(detector, scale_factor, min_neighbors, min_face)
    largest_face = LargestFace(search)
    equalizer = Equalizer.parse(equalize) if equalize else None
    rows: list[dict[str, Any]] = []
    num_seen = num_faces = 0
    for source in decode_frames(path, index, wanted_K):
        num_seen += 1
        frame = equalizer(source) if equalizer else source
        is_sampled = source.index in sampled
        taken = largest_face(frame) if is_sampled else None
        searched = largest_face.searched if is_sampled else None
        boxes_N4, score_N = _all_faces(taken, search(frame) if searched is None else searched)
        rgb_HWC = frame.rgb() if len(boxes_N4) else np.empty(0, np.uint8)
        pixels_NHWC = [_as_kept(cut(rgb_HWC, box_4, detector, margin, size_px), crops) for box_4 in boxes_N4]
        height_px, width_px = source.shape
        if equalizer:
            boxes_N4 = np.array([equalizer.to_source(box_4, height_px, width_px) for box_4 in boxes_N4], np.float32)
        rows.append(
            about
            | {"frame_index": source.index, "pts_s": source.pts_s, "is_sampled": is_sampled}
            | {"width_px": width_px, "height_px": height_px, "largest": 0 if taken else None}
            | {"scene": cv2.resize(source.luma(), SCENE_PX, interpolation=cv2.INTER_AREA).tobytes()}
            | {"boxes_N4": boxes_N4, "score_N": score_N, "pixels_NHWC": pixels_NHWC}
        )
        num_faces += len(boxes_N4)
        if len(rows) == MAX_ROWS or num_faces * 3 * size_px**2 >= MAX_BYTES:
            yield _table(rows, size_px)
            rows, num_faces = [], 0
    if not num_seen:
        raise DecodeError("none of the frames to look at could be decoded")
    if rows:
        yield _table(rows, size_px)


def _all_faces(taken: tuple[Boxes, float] | None, found: tuple[Boxes, Scores]) -> tuple[Boxes, Scores]:
    """Boxes and scores of at most MAX_FACES: the face taken already, then those found by size, each face once."""
    first_N4, first_N = (taken[0][None], np.array([taken[1]], np.float32)) if taken else (np.empty((0, 4)), np.empty(0))
    more_N4, more_N = found
    by_size = np.argsort(-(more_N4[:, 2] - more_N4[:, 0]) * (more_N4[:, 3] - more_N4[:, 1]), kind="stable")
    boxes_N4 = np.concatenate([first_N4, more_N4[by_size]]).astype(np.float32)
    score_N = np.concatenate([first_N, more_N[by_size]]).astype(np.float32)
    kept: list[int] = []
    for place, box_4 in enumerate(boxes_N4):
        if len(kept) < MAX_FACES and not any(_overlap(box_4, boxes_N4[other]) > MAX_OVERLAP for other in kept):
            kept.append(place)
    return boxes_N4[kept], score_N[kept]


def _overlap(one_4: Boxes, other_4: Boxes) -> float:
    """Share of the smaller box that lies in the other."""
    width, height = np.minimum(one_4[2:], other_4[2:]) - np.maximum(one_4[:2], other_4[:2])
    smaller = min(float(np.prod(box_4[2:] - box_4[:2])) for box_4 in (one_4, other_4))
    return float(max(width, 0) * max(height, 0)) / max(smaller, 1e-9)


def _as_kept(crop_HWC: Image, crops: str) -> Image:
    """The crop as it would come back from the `faces` table."""
    return decode(encode(crop_HWC, crops), len(crop_HWC)) if crops.startswith("jpeg:") else crop_HWC


def start_of(pts_s_N: npt.NDArray[np.float64]) -> float:
    """The time in the source that becomes 0 in the result: 0, or the first frame's time if that is negative, or so late
    that the video must be a part of a broadcast.
    """
    start_s = float(pts_s_N[0]) if len(pts_s_N) else 0.0
    return 0.0 if 0 <= start_s <= MAX_START_S else start_s


def _about(pts_s_N: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Number of frames, `start_of`, and the time from there to the end of the last frame; 0 of a picture."""
    start_s, num_frames = start_of(pts_s_N), len(pts_s_N)
    step_s = np.median(np.diff(pts_s_N)) if num_frames > 1 else 0.0  # the last frame counts as long as most
    duration_s = float(pts_s_N[-1] + step_s) - start_s if num_frames > 1 else 0.0
    return {"num_frames": num_frames, "start_s": start_s, "duration_s": duration_s}


def _table(rows: list[dict[str, Any]], size_px: int) -> pa.Table:
    num_N = [len(row["score_N"]) for row in rows]
    pixels_NP = np.array([crop for row in rows for crop in row["pixels_NHWC"]], np.uint8).reshape(-1, 3 * size_px**2)
    plain = pa.Table.from_pylist([{name: row[name] for name in SCHEMA.names} for row in rows], SCHEMA)
    lists = {
        "box_xyxy_px": np.concatenate([row["boxes_N4"] for row in rows]),
        "detection_score": np.concatenate([row["score_N"] for row in rows]),
        "pixels": pixels_NP,
    }
    for name, values in lists.items():
        plain = plain.append_column(name, list_column(values, num_N))
    return plain
