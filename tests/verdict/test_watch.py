"""Every face of a video; and that the largest of the sampled frames are those of `extract`, to the bit."""

import av
import numpy as np
import pyarrow as pa
import pytest

from raydistal.errors import DecodeError
from raydistal.faces.crop import decode
from raydistal.faces.look import look
from raydistal.verdict.watch import MAX_BYTES, MAX_ROWS, _all_faces, start_of, watch


def pixels_of(table: pa.Table) -> np.ndarray:
    crops = table["pixels"].combine_chunks().flatten()
    return crops.flatten().to_numpy().reshape(-1, crops.type.list_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"detector": "none"},
        {"equalize": "96:90"},
        {"crops": "jpeg:70"},
        {"crops": "jpeg:70", "detector": "none", "equalize": "96:90"},
    ],
    ids=lambda changes: "-".join(changes.values()) or "haar",
)
@pytest.mark.parametrize("sample", ["every:1", "random:9"])
def test_the_largest_faces_are_those_of_extract(clips, faces, changes, sample):
    options = faces | changes
    path = clips["one" if "equalize" in changes else "two"]  # between the two, in the centre square, is nobody
    looked = look(path, "v", sample, **options).to_pylist()[0]
    watched = pa.concat_tables(watch(path, "v", sample, "fps:4", **options))
    rows, crops_NP = watched.drop_columns(["pixels"]).to_pylist(), pixels_of(watched)
    first_N = np.cumsum([0, *(len(row["detection_score"]) for row in rows)])
    taken = [(row, int(first)) for row, first in zip(rows, first_N, strict=False) if row["largest"] is not None]
    assert looked["num_frames_seen"] == sum(row["is_sampled"] for row in rows)
    assert len(taken) == len(looked["frame_index"]) > 3
    for name in ("frame_index", "pts_s"):
        assert [row[name] for row, _ in taken] == looked[name]
    for name in ("box_xyxy_px", "detection_score"):
        assert [row[name][row["largest"]] for row, _ in taken] == looked[name]
    kept_NP = [decode(image, 64).reshape(-1) for image in looked["crop"]]  # what training and evaluate see of them
    np.testing.assert_array_equal([crops_NP[first + row["largest"]] for row, first in taken], kept_NP)


def test_rows_tell_of_the_video_and_of_all_faces(clips, faces):
    tables = list(watch(clips["two"], "v", "even:2", "fps:6", **faces))
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["frame_index"] for row in rows] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 23]
    assert [row["is_sampled"] for row in rows] == [True] + [False] * 11 + [True]
    assert [row["largest"] is not None for row in rows] == [row["is_sampled"] for row in rows]
    size = {"width_px": 384, "height_px": 144, "num_frames": 24, "num_wanted": 13, "start_s": 0.0}
    assert all(row | size == row for row in rows)
    assert rows[0]["duration_s"] == pytest.approx(2.0)
    assert sum(len(row["box_xyxy_px"]) == 2 for row in rows) > 10
    for row in rows:  # one to the left, one to the right, none twice
        assert len({box[0] > 192 for box in row["box_xyxy_px"]}) == len(row["box_xyxy_px"]) == len(row["pixels"])
    assert [len(table) for table in tables] == [MAX_ROWS, 13 - MAX_ROWS]


def test_tables_leave_when_they_are_large(clips, faces):
    options = faces | {"detector": "none", "size_px": 1024}
    tables = watch(clips["one"], "v", "every:5", "every:5", **options)
    assert [len(table) for table in tables] == [MAX_BYTES // (3 << 20) + 1, 2]


def test_a_picture_is_a_video_of_one_frame(clips, faces):
    (table,) = watch(clips["picture"], "v", "even:10", "fps:4", **faces)
    (row,) = table.to_pylist()
    assert (row["num_frames"], row["duration_s"], row["largest"], len(row["pixels"])) == (1, 0, 0, 2)


def test_no_face(clips, faces):
    (table,) = watch(clips["wall"], "v", "even:2", "even:3", **faces)
    assert [(row["largest"], row["pixels"]) for row in table.to_pylist()] == [(None, [])] * 3


def test_too_small_to_equalize(clips, faces):
    with pytest.raises(DecodeError, match="shorter side"):
        list(watch(clips["one"], "v", "even:2", "even:2", **faces | {"equalize": "256:90"}))


def test_a_face_is_there_once():
    found = [[0, 0, 100, 100], [30, 30, 90, 90], [200, 0, 250, 50], [220, 0, 270, 50], [230, 0, 280, 50]]
    boxes_N4, score_N = np.array(found, np.float32), np.arange(5, dtype=np.float32)
    near_4 = np.array([205, 2, 252, 49], np.float32)
    kept_N4, kept_N = _all_faces((near_4, 9.0), (boxes_N4, score_N))
    assert kept_N.tolist() == [9, 0, 4]  # the one that is given, then by size
    np.testing.assert_array_equal(kept_N4, [near_4, boxes_N4[0], boxes_N4[4]])
    assert _all_faces((near_4, 9.0), (near_4[None], score_N[:1]))[1].tolist() == [9]
    wallpaper_N4 = np.array([[100 * i, 0, 100 * i + 50 + i, 50] for i in range(60)], np.float32)
    kept_N4, _ = _all_faces(None, (wallpaper_N4, np.ones(60, np.float32)))
    assert kept_N4[:, 0].tolist() == [100 * i for i in range(59, 35, -1)]


@pytest.mark.parametrize(("first_s", "start_s"), [(0, 0), (0.85, 0), (10, 0), (95443.7, 95443.7), (-0.04, -0.04)])
def test_where_time_starts(first_s, start_s):
    assert start_of(np.array([first_s, first_s + 1])) == start_s


def test_a_video_that_starts_late_lasts_until_its_end(make_clip, faces):
    path = make_clip("clip.mkv", "ffv1", pix_fmt="bgr0", num_frames=4)
    with av.open(str(path)) as source, av.open(str(path.with_name("late.mkv")), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts += 500
                packet.dts, packet.stream = packet.pts, stream
                container.mux(packet)
    (table,) = watch(str(path.with_name("late.mkv")), "v", "even:2", "even:2", **faces | {"detector": "none"})
    assert table["pts_s"].to_pylist() == pytest.approx([0.5, 0.62])
    assert table["duration_s"][0].as_py() == pytest.approx(0.66)
