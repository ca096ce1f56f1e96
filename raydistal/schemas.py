"""The contract between stages: one pyarrow schema per Parquet table.

Everywhere: label 1 = fake, 0 = real, null = unknown; probability = P(fake); boxes are (x0, y0, x1, y1) in source
pixels of the upright frame; times are seconds; images are RGB uint8 HWC. In `faces`, and in `uncertainty`, a row is one
video, and all lists of a row have one length. Fields that are not nullable are required.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

STATUSES = ("ok", "no_face", "decode_error", "crashed", "timeout", "missing", "other_file")
Split = Literal["train", "val", "test", "pool"]  # pool: unlabelled
SPLITS: tuple[Split, ...] = get_args(Split)
SYNTHETIC = "synthetic"  # dataset of the videos that `raydistal demo` draws: nothing measured on it is about the world
# settings of `Teaching` that each kind of distillation reads
KD_SETTINGS = {
    "soft": ("alpha", "temperature"),
    "rkd": ("kd_weight",),
    "contrastive": ("kd_weight", "tau", "negatives", "bank"),
}

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
        _required("set", pa.string()),  # ranking | random (as large, chosen blindly); from here to bits: the point
        _required("data", pa.float64()),  # share of the ranking that it learnt from
        _required("prune", pa.float64()),  # share of the parameters that were removed
        pa.field("alpha", pa.float64()),  # settings of Teaching are null where they do not apply
        pa.field("temperature", pa.float64()),
        pa.field("kd_weight", pa.float64()),
        pa.field("tau", pa.float64()),
        pa.field("negatives", pa.int64()),
        _required("bits", pa.int64()),
        pa.field("detector", pa.string()),  # its directory; null if there is none
        pa.field("accuracy", pa.float64()),  # these three on the faces of val
        pa.field("auc", pa.float64()),
        pa.field("loss", pa.float64()),
        pa.field("num_params", pa.int64()),
        pa.field("macs", pa.int64()),  # of one face, multiply-accumulates of the float network
        pa.field("size_mb", pa.float64()),  # file, 1e6 bytes
        _required("epochs", pa.int64()),  # with those of fine-tuning
        _required("images", pa.int64()),  # faces shown to the student, epochs counted, with what it shares with others
        _required("seconds", pa.float64()),  # these three of this trial alone; what it shares counts where it was made
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

VERDICTS = pa.schema(
    [
        _required("video_id", pa.string()),  # a hash of its path or URI
        _required("uri", pa.string()),
        _required("num_bytes", pa.int64()),  # these two of the file that was examined
        pa.field("modified_ns", pa.int64()),  # since 1970, by the clock of the store
        _required("model_id", pa.string()),
        _required("status", pa.string()),  # one of STATUSES, or over_limit
        pa.field("error", pa.string()),  # with status ok: why it was not drawn
        pa.field("verdict", pa.string()),  # fake | real | unsure; null unless status is ok
        pa.field("probability", pa.float64()),  # P(fake) of the video, as in SCORES; from here on null if it failed
        pa.field("reason", pa.string()),  # of the verdict, in words
        pa.field("max_track_probability", pa.float64()),  # of the tracks that are judged; null without one
        pa.field("num_tracks", pa.int64()),  # people, as far as they can be told apart
        pa.field("num_judged_tracks", pa.int64()),  # those that were seen long enough; these two are of them
        pa.field("num_fake_tracks", pa.int64()),
        pa.field("num_unsure_tracks", pa.int64()),
        pa.field("num_faces", pa.int64()),  # looked at, in all frames
        pa.field("is_picture", pa.bool_()),
        pa.field("width_px", pa.int64()),  # upright
        pa.field("height_px", pa.int64()),
        pa.field("num_frames", pa.int64()),
        pa.field("duration_s", pa.float64()),
        pa.field("folder", pa.string()),  # below OUT: its verdict.json, timeline.csv, annotated video
        _required("seconds", pa.float64()),  # that it took
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

HEATMAPS = pa.schema(
    [
        _required("detector", pa.string()),  # name of its directory
        _required("slice", pa.string()),  # real | a method
        _required("label", pa.int8()),
        pa.field("video_id", pa.string()),  # of a face that is shown; null: the mean over all faces of the slice
        pa.field("frame_index", pa.int32()),
        _required("num_faces", pa.int64()),  # that the next two are means of
        pa.field("probability", pa.float64()),  # null for a slice without faces
        _required("heat", pa.list_(pa.float32())),  # h * w cells from 0 to 1, row by row; empty without faces
        _required("height", pa.int32()),
        pa.field("face", pa.binary()),  # JPEG: the mean of the faces of the slice; null for a single one
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

COST = pa.schema(
    [
        _required("detector", pa.string()),  # name of its directory; the first one is the baseline
        _required("model_id", pa.string()),
        _required("architecture", pa.string()),
        _required("runtime", pa.string()),  # torch | onnx | executorch
        _required("precision", pa.string()),
        _required("input_px", pa.int64()),
        _required("num_params", pa.int64()),
        _required("macs", pa.int64()),  # of one face, multiply-accumulates of the float network
        _required("size_mb", pa.float64()),  # file, 1e6 bytes
        _required("device", pa.string()),  # cpu | cuda
        _required("batch_size", pa.int64()),
        _required("median_ms", pa.float64()),  # of all runs, for the whole batch
        _required("p10_ms", pa.float64()),
        _required("p90_ms", pa.float64()),
        _required("ratio", pa.float64()),  # of the time to that of the baseline, by round: median, lowest, highest
        _required("ratio_low", pa.float64()),
        _required("ratio_high", pa.float64()),
    ]
)

GENERALISATION = pa.schema(
    [
        _required("architecture", pa.string()),
        pa.field("left_out", pa.string()),  # the method whose fakes it did not learn from; null: none
        _required("seed", pa.int64()),
        _required("tested", pa.string()),  # the method whose fakes it was tested on, with all real test videos
        _required("num_fake", pa.int64()),  # test videos of that method
        _required("auc", pa.float64()),
        _required("recall", pa.float64()),  # share of the fakes called fake
        _required("num_faces", pa.int64()),  # these on its training
        _required("images", pa.int64()),  # faces shown to the network, epochs counted
        _required("seconds", pa.float64()),
        _required("gpu_seconds", pa.float64()),
    ]
)

DIFFERENCE = pa.schema(
    [
        _required("dataset", pa.string()),  # name of the run
        _required("slice", pa.string()),  # all | real | a method
        _required("metric", pa.string()),  # auc (of a method: against all real videos) | accuracy
        _required("num", pa.int64()),  # videos of the slice
        _required("num_groups", pa.int64()),  # of auc: of the class with fewer
        _required("before", pa.float64()),
        _required("after", pa.float64()),
        _required("difference", pa.float64()),  # after - before
        _required("low", pa.float64()),  # ends of its 95 % interval, clustered by group_id
        _required("high", pa.float64()),
        pa.field("mended", pa.float64()),  # share of the videos called wrong before and right after; null for auc
        pa.field("broken", pa.float64()),  # share of those called right before and wrong after
        pa.field("seen_before", pa.bool_()),  # whether the first detector learnt from this dataset and method, also by
        pa.field("seen_after", pa.bool_()),  # its ancestors and teachers; the second one; null: cannot be known
        _required("beats_chance", pa.bool_()),  # whether one of the two does so on the fakes of the slice
        _required("verdict", pa.string()),  # non-inferior | inferior | cannot tell
    ]
)

SOURCES = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("status", pa.string()),  # ok | missing
        pa.field("error", pa.string()),  # null exactly when status is ok
        pa.field("num_bytes", pa.int64()),  # these two of the file; null unless status is ok
        pa.field("sha256", pa.string()),
    ]
)

SHARED = pa.schema(  # what is passed on to others: no image, no absolute path
    [
        _required("video_id", pa.string()),
        _required("dataset", pa.string()),
        _required("path", pa.string()),  # below the dataset's folder
        _required("num_bytes", pa.int64()),  # these two of the file
        _required("sha256", pa.string()),
        pa.field("label", pa.int8()),  # from here to rank: as in DISTILLED; rank is null for --also
        pa.field("method", pa.string()),
        pa.field("compression", pa.string()),
        pa.field("original_id", pa.string()),
        _required("group_id", pa.string()),
        _required("split", pa.string()),
        pa.field("rank", pa.int64()),
        _required("status", pa.string()),  # from here on: as in `faces`
        _required("num_frames_seen", pa.int32()),
        _required("frame_index", pa.list_(pa.int32())),
        _required("pts_s", pa.list_(pa.float64())),
        _required("box_xyxy_px", pa.list_(BOX)),
        _required("detection_score", pa.list_(pa.float32())),
        _required("crop_sha256", pa.list_(pa.string())),  # of the crop's pixels, RGB HWC
    ]
)

VERIFICATION = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("path", pa.string()),
        _required("status", pa.string()),  # exact | missing | other_file | failed | row_differs | faces_differ
        pa.field("detail", pa.string()),  # null exactly when status is exact
        _required("num_faces", pa.int64()),  # of the shared set
        _required("num_exact", pa.int64()),  # of these, those that are equal to the bit
    ]
)

PLAN = pa.schema(
    [
        _required("nodes", pa.string()),  # such as 2 cpu-16 + 1 gpu-1, kinds of the price list; without the head
        _required("cpus", pa.int64()),
        _required("gpus", pa.int64()),
        _required("hours", pa.float64()),  # wall time, without the boot of machines
        _required("hours_low", pa.float64()),  # ends of the 95 % interval, from resamples of the videos tried
        _required("hours_high", pa.float64()),
        pa.field("price", pa.float64()),  # in the currency of the list, with the head; null without a list
        pa.field("price_low", pa.float64()),
        pa.field("price_high", pa.float64()),
        pa.field("spot_price", pa.float64()),  # with workers that may be taken back at any time; null: not in the list
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
    """A teacher's outputs for every face; parts, rows and lists as in the `faces` table that it was run on.

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
