"""What the distilled set covers of the full one: number of videos by label, method, group, face size and so on."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistal.schemas import COVERAGE, conform

FACE_SIZE_PX = ("<64", "64-128", "128-256", ">=256")
FACE_SIZE_EDGES_PX = (64, 128, 256)
NUM_FACES = ("0", "1-4", "5-9", "10-19", ">=20")
NUM_FACES_EDGES = (1, 5, 10, 20)


def summarize_faces(faces: pa.Table) -> pa.Table:
    """video_id, status, num_faces and face_size_px of each row of a `faces` table, or of a batch of one.

    The size of a face is the longer side of its box; the size of a video's the median, null without a face.
    """
    num_N = pc.list_value_length(faces["box_xyxy_px"]).to_numpy()
    corner_F4 = pc.list_flatten(pc.list_flatten(faces["box_xyxy_px"])).to_numpy().reshape(-1, 4)
    size_F = (corner_F4[:, 2:] - corner_F4[:, :2]).max(axis=1)
    size_F = size_F[np.lexsort((size_F, np.repeat(np.arange(len(num_N)), num_N)))]  # ascending within each video
    start_N = np.cumsum(num_N) - num_N
    median_N = np.full(len(num_N), np.nan)
    some = num_N > 0
    low, high = (start_N + (num_N - 1) // 2)[some], (start_N + num_N // 2)[some]
    median_N[some] = (size_F[low].astype(np.float64) + size_F[high]) / 2
    summary = faces.select(["video_id", "status"]).append_column("num_faces", pa.array(num_N, pa.int32()))
    return summary.append_column("face_size_px", pa.array(median_N, from_pandas=True))


def coverage(videos: pa.Table, faces: pa.Table, distilled_ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """A `schemas.COVERAGE` table: for each value of each dimension, the number of videos in the full and distilled set.

    Args:
        videos: a `videos` table.
        faces: as from `summarize_faces`; videos that are not in it count as unknown.
        distilled_ids: video_ids of the distilled set.
    """
    rows = pc.index_in(videos["video_id"], value_set=faces["video_id"])
    status, num_faces, size_px = (faces[name].take(rows) for name in ("status", "num_faces", "face_size_px"))
    real = pc.equal(videos["label"], 0)
    dimensions = {
        "label": pc.if_else(real, "real", "fake"),
        "method": pc.if_else(pc.fill_null(real, False), "real", videos["method"]),
        "compression": videos["compression"],
        "group": videos["group_id"],
        "face_size": pc.if_else(pc.equal(num_faces, 0), "no face", _binned(size_px, FACE_SIZE_EDGES_PX, FACE_SIZE_PX)),
        "num_faces": _binned(num_faces, NUM_FACES_EDGES, NUM_FACES),
        "status": status,
    }
    kept_N = pc.is_in(videos["video_id"], value_set=distilled_ids).to_numpy()
    counts = [_count(name, pc.fill_null(value_N, "unknown"), kept_N) for name, value_N in dimensions.items()]
    return pa.concat_tables(counts)


def _binned(value_N: pa.ChunkedArray, edges: tuple[int, ...], names: tuple[str, ...]) -> pa.ChunkedArray:
    """The name of the bin of each value, a lower edge being part of its bin; null stays null."""
    bin_N = np.digitize(value_N.fill_null(0).to_numpy(), edges)
    return pc.if_else(value_N.is_valid(), pa.array(names).take(pa.array(bin_N)), None)


def _count(dimension: str, value_N: pa.ChunkedArray, kept_N: npt.NDArray[np.bool_]) -> pa.Table:
    """Rows of one dimension: bins in their order, then other values in alphabetical order."""
    values = pa.table({"value": pc.unique(value_N)})
    values = values.append_column("bin", pc.index_in(values["value"], value_set=pa.array(FACE_SIZE_PX + NUM_FACES)))
    values = values.sort_by([("bin", "ascending"), ("value", "ascending")])
    code_N = pc.index_in(value_N, value_set=values["value"]).to_numpy()
    columns = {
        "dimension": pa.repeat(dimension, len(values)),
        "value": values["value"],
        "num_full": np.bincount(code_N, minlength=len(values)),
        "num_distilled": np.bincount(code_N[kept_N], minlength=len(values)),
    }
    return conform(pa.table(columns), COVERAGE)
