"""The contract between stages: one pyarrow schema per Parquet table.

Everywhere: label 1 = fake, 0 = real, null = unknown; probability = P(fake); boxes are (x0, y0, x1, y1) in source
pixels of the upright frame; times are seconds; images are RGB uint8 HWC. In `faces`, and in `uncertainty`, a row is one
video, and all lists of a row have one length. Fields that are not nullable are required.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

STATUSES = ("ok", "no_face", "decode_error", "crashed", "timeout")
SPLITS = ("train", "val", "test", "pool")  # pool: unlabelled
SYNTHETIC = "synthetic"  # dataset of the videos that `raydistal demo` draws: nothing measured on it is about the world

BOX = pa.list_(pa.float32(), 4)


def _required(name: str, type: pa.DataType) -> pa.Field:
    return pa.field(name, type, nullable=False)


VIDEOS = pa.schema(
    [
        _required("video_id", pa.string()),  # see datasets.layout.video_id
        _required("dataset", pa.string()),
        _required("uri", pa.string()),
        pa.field("label", pa.int8()),
        pa.field("method", pa.string()),  # manipulation or generator; null when real or unknown
        pa.field("compression", pa.string()),
        pa.field("original_id", pa.string()),  # video_id of the real video that a fake was made from
        _required("group_id", pa.string()),  # everything that shares a source or identity; never crosses splits
        _required("split", pa.string()),  # one of SPLITS
    ]
)

DISTILLED = VIDEOS.append(_required("rank", pa.int64()))  # a `videos` table: everything that reads one reads the other

UNCERTAINTY = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("label", pa.int8()),
        _required("frame_index", pa.list_(pa.int32())),
        _required("probability", pa.list_(pa.float32())),  # NaN where the strategy has none (random, k_center)
        _required("uncertainty", pa.list_(pa.float64())),
    ]
)

REPRESENTATIVE = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("frame_index", pa.int32()),
        _required("label", pa.int8()),
        pa.field("probability", pa.float32()),
        _required("uncertainty", pa.float64()),
        _required("order", pa.int64()),  # order of selection within its class, from 0
    ]
)

RANKING = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("label", pa.int8()),
        _required("num_representative", pa.int64()),  # the frame frequency of Algorithm 2
        pa.field("mean_uncertainty", pa.float64()),  # null for a video without faces
        _required("rank", pa.int64()),  # from 0; every prefix is a valid distilled set
    ]
)

COVERAGE = pa.schema(
    [
        _required("dimension", pa.string()),  # label | method | compression | group | face_size ...
        _required("value", pa.string()),
        _required("num_full", pa.int64()),  # videos
        _required("num_distilled", pa.int64()),
    ]
)


TRAINED_ON = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("group_id", pa.string()),
        _required("split", pa.string()),  # train: fitted to; val: chose the epoch and the threshold
    ]
)

TRIALS = pa.schema(
    [
        _required("trial", pa.string()),  # 12 hexadecimal digits of the point and the seed
        _required("status", pa.string()),  # ok | stopped (early, by the scheduler) | failed
        pa.field("error", pa.string()),  # null unless failed
        _required("seed", pa.int64()),
        pa.field("data", pa.float64()),  # share of the ranking that it learnt from; these columns are the point,
        pa.field("prune", pa.float64()),  # null where the search has no such dimension
        pa.field("alpha", pa.float64()),
        pa.field("temperature", pa.float64()),
        pa.field("kd_weight", pa.float64()),
        pa.field("tau", pa.float64()),
        pa.field("negatives", pa.int64()),
        pa.field("bits", pa.int64()),
        pa.field("detector", pa.string()),  # its directory; null if there is none
        pa.field("accuracy", pa.float64()),  # these three on the faces of val
        pa.field("auc", pa.float64()),
        pa.field("loss", pa.float64()),
        pa.field("num_params", pa.int64()),
        pa.field("macs", pa.int64()),  # of one face, multiply-accumulates of the float network
        pa.field("size_mb", pa.float64()),  # file, 1e6 bytes
        _required("epochs", pa.int64()),
        _required("images", pa.int64()),  # faces shown to the student, epochs counted
        _required("seconds", pa.float64()),
        _required("cpu_seconds", pa.float64()),
        _required("gpu_seconds", pa.float64()),
    ]
)

SCORES = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("model_id", pa.string()),
        _required("status", pa.string()),  # that of the faces table
        _required("label", pa.int8()),
        pa.field("method", pa.string()),
        _required("group_id", pa.string()),
        pa.field("probability", pa.float64()),  # P(fake) of the video; null without a face
        _required("frame_index", pa.list_(pa.int32())),
        _required("frame_probability", pa.list_(pa.float32())),
    ]
)

METRICS = pa.schema(
    [
        _required("model_id", pa.string()),
        _required("detector", pa.string()),  # name of its directory
        _required("dataset", pa.string()),
        _required("split", pa.string()),
        _required("level", pa.string()),  # frame | video
        _required("slice", pa.string()),  # all | real | a method
        _required("metric", pa.string()),
        pa.field("value", pa.float64()),  # null where it is not defined
        pa.field("low", pa.float64()),  # ends of the confidence interval, clustered by group_id
        pa.field("high", pa.float64()),
        _required("num", pa.int64()),  # videos or frames
    ]
)


COMPARISON = pa.schema(
    [
        _required("architecture", pa.string()),
        _required("set", pa.string()),
        _required("kind", pa.string()),  # full | distilled | random | frame_count | faces
        _required("share", pa.float64()),  # of the training videos; for kind faces of the training faces
        _required("num_videos", pa.int64()),  # in the set; of faces: those that the faces are from
        _required("num_faces", pa.int64()),
        _required("seed", pa.int64()),
        pa.field("precision", pa.float64()),  # these five on test videos; null where they are not defined
        pa.field("recall", pa.float64()),
        pa.field("f1", pa.float64()),
        pa.field("accuracy", pa.float64()),
        pa.field("auc", pa.float64()),
        _required("images", pa.int64()),  # faces shown to the network, epochs counted
        _required("seconds", pa.float64()),
        _required("gpu_seconds", pa.float64()),
    ]
)


def faces_schema(feature_dim: int) -> pa.Schema:
    """The `faces` table for features of `feature_dim` numbers. One row per video, failures included."""
    return pa.schema(
        [
            _required("video_id", pa.string()),
            _required("status", pa.string()),  # one of STATUSES
            pa.field("error", pa.string()),  # null exactly when status is ok
            _required("num_frames_seen", pa.int32()),  # sampled frames that were decoded and searched for a face
            _required("frame_index", pa.list_(pa.int32())),  # position in presentation order, ascending
            _required("pts_s", pa.list_(pa.float64())),
            _required("box_xyxy_px", pa.list_(BOX)),
            _required("detection_score", pa.list_(pa.float32())),
            pa.field("crop", pa.list_(pa.binary())),  # encoded image; null when crops are not kept
            _required("feature", pa.list_(pa.list_(pa.float16(), feature_dim))),
        ]
    )


def teaching_schema(embedding_dim: int) -> pa.Schema:
    """What a teacher says of every face; parts, rows and lists as in the `faces` table that it looked at.

    The lists of a video that nobody learns from are empty.
    """
    return pa.schema(
        [
            _required("video_id", pa.string()),
            _required("frame_index", pa.list_(pa.int32())),
            _required("logit", pa.list_(pa.float32())),
            _required("embedding", pa.list_(pa.list_(pa.float16(), embedding_dim))),
        ]
    )


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns of `schema`, in its order and types; nullable columns that are absent become null.

    Raises:
        ValueError: a required column is absent or holds a null (the message names it).
    """
    columns = []
    for field in schema:
        if field.name in table.column_names:
            column = table[field.name]
        elif field.nullable:
            column = pa.nulls(table.num_rows, field.type)
        else:
            raise ValueError(f"column {field.name!r} is missing; the table has {table.column_names}")
        if not field.nullable and column.null_count:
            raise ValueError(f"column {field.name!r} is required but has {column.null_count} nulls")
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=schema)


def list_column(values_N: npt.NDArray[np.generic] | pa.Array, num_per_row: npt.ArrayLike) -> pa.ListArray:
    """Values of all rows end to end, (N,) or (N, K), as one list per row; `num_per_row` sums to N.

    (N, K) values become lists of fixed-size lists. No Python object is made per value.
    """
    if isinstance(values_N, np.ndarray):
        flat = pa.array(np.ascontiguousarray(values_N).reshape(-1))
        values_N = flat if values_N.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values_N.shape[1])
    offsets = np.concatenate([[0], np.cumsum(num_per_row)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values_N)
