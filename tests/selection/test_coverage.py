from collections import Counter
from statistics import median

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raydistal.schemas import COVERAGE, faces_schema
from raydistal.selection.coverage import coverage, summarize_faces


def faces_table(videos):
    """Rows of (video_id, status, boxes)."""
    rows = [
        {
            "video_id": video_id,
            "status": status,
            "num_frames_seen": 10,
            "frame_index": list(range(len(boxes))),
            "pts_s": [0.0] * len(boxes),
            "box_xyxy_px": boxes,
            "detection_score": [1.0] * len(boxes),
            "feature": [[0.0, 0.0]] * len(boxes),
        }
        for video_id, status, boxes in videos
    ]
    return pa.Table.from_pylist(rows, faces_schema(2))


def test_summarize_faces():
    faces = faces_table(
        [
            ("bad", "decode_error", []),
            ("wide", "ok", [[10, 10, 110, 60]]),
            ("three", "ok", [[0, 0, 5, 500], [0, 0, 90, 9], [1, 1, 8, 12]]),
            ("none", "no_face", []),
            ("four", "ok", [[0, 0, 40, 1], [0, 0, 10, 1], [0, 0, 20, 1], [0, 0, 30, 1]]),
        ]
    )
    expected = {
        "video_id": ["bad", "wide", "three", "none", "four"],
        "status": ["decode_error", "ok", "ok", "no_face", "ok"],
        "num_faces": [0, 1, 3, 0, 4],
        "face_size_px": [None, 100, 90, None, 25],
    }
    assert summarize_faces(faces).to_pydict() == expected
    assert summarize_faces(faces[2:]).to_pydict() == {name: values[2:] for name, values in expected.items()}
    assert summarize_faces(faces[3:4])["face_size_px"].to_pylist() == [None]
    chunked = pa.concat_tables([faces[:1], faces[1:3], faces[3:]])
    assert summarize_faces(chunked).to_pydict() == expected


@given(st.lists(st.lists(st.integers(1, 900), max_size=6), min_size=1, max_size=6))
def test_the_size_of_a_video_is_the_median_of_its_boxes(sides):
    faces = faces_table([(str(number), "ok", [[0, 0, side, 1] for side in row]) for number, row in enumerate(sides)])
    assert summarize_faces(faces)["face_size_px"].to_pylist() == [median(row) if row else None for row in sides]


def test_coverage():
    #   video  label  method  compression group  distilled  status  faces  face size
    rows = [
        ("v0", 0, None, "c23", "10", True, "ok", 10, 63.5),
        ("v1", 0, None, None, "9", False, "ok", 4, 64.0),
        ("v2", 1, "swap", "c23", "10", True, "ok", 5, 256.0),
        ("v3", 1, "swap", "c40", "10", False, "no_face", 0, None),
        ("v4", 1, "gan", "c23", "10", False, "timeout", 0, None),
        ("v5", 1, None, "c23", "11", True, "ok", 25, 1000.0),
        ("v6", None, None, "c23", "11", False, None, None, None),  # pool; not extracted
    ]
    names = ["video_id", "label", "method", "compression", "group_id"]
    videos = pa.table(dict(zip(names, list(zip(*rows, strict=True))[:5], strict=True)))
    summary = {"video_id": 0, "status": 6, "num_faces": 7, "face_size_px": 8}
    faces = pa.table({name: [row[column] for row in rows[5::-1]] for name, column in summary.items()})
    result = coverage(videos, faces, pa.array([row[0] for row in rows if row[5]]))
    assert result.schema == COVERAGE
    assert [tuple(row.values()) for row in result.to_pylist()] == [
        ("label", "fake", 4, 2),
        ("label", "real", 2, 1),
        ("label", "unknown", 1, 0),
        ("method", "gan", 1, 0),
        ("method", "real", 2, 1),
        ("method", "swap", 2, 1),
        ("method", "unknown", 2, 1),
        ("compression", "c23", 5, 3),
        ("compression", "c40", 1, 0),
        ("compression", "unknown", 1, 0),
        ("group", "10", 4, 2),
        ("group", "11", 2, 1),
        ("group", "9", 1, 0),
        ("face_size", "<64", 1, 1),
        ("face_size", "64-128", 1, 0),
        ("face_size", ">=256", 2, 2),
        ("face_size", "no face", 2, 0),
        ("face_size", "unknown", 1, 0),
        ("num_faces", "0", 2, 0),
        ("num_faces", "1-4", 1, 0),
        ("num_faces", "5-9", 1, 1),
        ("num_faces", "10-19", 1, 1),
        ("num_faces", ">=20", 1, 1),
        ("num_faces", "unknown", 1, 0),
        ("status", "no_face", 1, 0),
        ("status", "ok", 4, 3),
        ("status", "timeout", 1, 0),
        ("status", "unknown", 1, 0),
    ]


def test_every_dimension_counts_every_video_once():
    rng = np.random.default_rng(0)
    num = 500
    video_ids = [f"{number:x}" for number in rng.permutation(num)]
    label_N = rng.integers(0, 2, num)
    videos = pa.table(
        {
            "video_id": video_ids,
            "label": pa.array(label_N, pa.int8()),
            "method": [f"m{number}" if number else None for number in label_N * rng.integers(0, 4, num)],
            "compression": pa.nulls(num, pa.string()),
            "group_id": [f"g{number}" for number in rng.integers(0, 90, num)],
        }
    )
    faces = pa.table(
        {
            "video_id": video_ids[::-1],
            "status": pa.repeat("ok", num),
            "num_faces": rng.integers(0, 30, num),
            "face_size_px": rng.uniform(10, 500, num),
        }
    )
    kept = set(video_ids[::7])
    result = [tuple(row.values()) for row in coverage(videos, faces, pa.array(sorted(kept))).to_pylist()]
    num_full, num_distilled = Counter(), Counter()
    for dimension, _, full, distilled in result:
        num_full[dimension] += full
        num_distilled[dimension] += distilled
    assert len(num_full) == 7
    assert set(num_full.values()) == {num}
    assert set(num_distilled.values()) == {len(kept)}
    in_full = Counter(videos["group_id"].to_pylist())
    in_distilled = Counter(videos.filter(pa.array([name in kept for name in video_ids]))["group_id"].to_pylist())
    assert [row[1:] for row in result if row[0] == "group"] == [
        (group, in_full[group], in_distilled[group]) for group in sorted(in_full)
    ]
    assert [row[1] for row in result if row[0] == "num_faces"] == ["0", "1-4", "5-9", "10-19", ">=20"]
