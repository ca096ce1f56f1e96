"""One video to its faces: decode the sampled frames, find the largest face of each, crop it."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistal.errors import DecodeError
from raydistal.faces.crop import Image, encode, resize, square_around
from raydistal.faces.detect import Haar, LargestFace, YuNet, whole_frame
from raydistal.faces.equalize import Equalizer
from raydistal.schemas import list_column
from raydistal.video.decode import Frame, decode_frames, read_index
from raydistal.video.sampling import Sampling


def look(
    path: str,
    video_id: str,
    sample: str,
    *,
    detector: str,
    scale_factor: float,
    min_neighbors: int,
    min_face: float,
    margin: float,
    size_px: int,
    crops: str,
    equalize: str = "",
) -> pa.Table:
    """The faces of one local file: a row as `row` makes it, its status ok or no_face.

    With detector "none" the whole frame is resized, as in DeepDistAL section 3; otherwise the square around the face.
    With `equalize`, as `Equalizer.parse` reads it, this is done on the equalized frame; boxes stay in source pixels.

    Raises:
        DecodeError: not a video, none of the sampled frames could be decoded, or one is too small to equalize.
    """
    index = read_index(path)
    wanted_K = Sampling.parse(sample).pick(index.pts_s_N, video_id)
    largest_face = LargestFace(make_detector(detector, scale_factor, min_neighbors, min_face))
    equalizer = Equalizer.parse(equalize) if equalize else None
    found, num_frames_seen = [], 0
    for source in decode_frames(path, index, wanted_K):
        num_frames_seen += 1
        frame = equalizer(source) if equalizer else source
        if face := largest_face(frame):
            box_4, score = face
            image_HWC = cut(frame.rgb(), box_4, detector, margin, size_px)
            if equalizer:
                box_4 = equalizer.to_source(box_4, *source.shape)
            found.append(Face(frame.index, frame.pts_s, box_4, score, image_HWC))
    if not num_frames_seen:
        raise DecodeError(f"none of the {len(wanted_K)} sampled frames could be decoded")
    status, error = ("ok", None) if found else ("no_face", f"no face in {num_frames_seen} frames")
    return row(video_id, status, error, size_px, crops, num_frames_seen, found)


def cut(rgb_HWC: Image, box_4: npt.NDArray[np.float32], detector: str, margin: float, size_px: int) -> Image:
    """The (size_px, size_px, 3) crop of a face from its frame; with the detector none, the whole frame."""
    if detector != "none":
        x0, y0, x1, y1 = square_around(box_4, margin, *rgb_HWC.shape[:2])
        rgb_HWC = rgb_HWC[y0:y1, x0:x1]
    return resize(rgb_HWC, size_px)


class Face(NamedTuple):
    """One face of one frame."""

    frame_index: int
    pts_s: float
    box_4: npt.NDArray[np.float32]
    score: float
    crop_HWC: npt.NDArray[np.uint8]


def row(
    video_id: str,
    status: str,
    error: str | None,
    size_px: int,
    crops: str,
    num_frames_seen: int = 0,
    found: Sequence[Face] = (),
) -> pa.Table:
    """One row of the `faces` table with `pixels` in place of `feature`.

    `pixels` is list<fixed_size_list<uint8>[size_px * size_px * 3]>: the crops as RGB HWC.
    """
    count = [len(found)]
    boxes_N4 = np.array([face.box_4 for face in found], np.float32).reshape(-1, 4)
    pixels_NP = np.array([face.crop_HWC for face in found], np.uint8).reshape(-1, size_px * size_px * 3)
    encoded = None if crops == "none" else [encode(face.crop_HWC, crops) for face in found]
    return pa.table(
        {
            "video_id": [video_id],
            "status": [status],
            "error": pa.array([error], pa.string()),
            "num_frames_seen": pa.array([num_frames_seen], pa.int32()),
            "frame_index": list_column(np.array([face.frame_index for face in found], np.int32), count),
            "pts_s": list_column(np.array([face.pts_s for face in found], np.float64), count),
            "box_xyxy_px": list_column(boxes_N4, count),
            "detection_score": list_column(np.array([face.score for face in found], np.float32), count),
            "crop": pa.array([encoded], pa.list_(pa.binary())),
            "pixels": list_column(pixels_NP, count),
        }
    )


@lru_cache(maxsize=1)
def make_detector(detector: str, scale_factor: float, min_neighbors: int, min_face: float) -> Callable[[Frame], Any]:
    """haar, none, or the path of a YuNet ONNX file. Raises UserError if that file is missing or is something else."""
    if detector == "haar":
        return Haar(scale_factor, min_neighbors, min_face)
    return whole_frame if detector == "none" else YuNet(detector, min_face)
