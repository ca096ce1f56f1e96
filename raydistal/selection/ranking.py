"""Videos ranked by their representative frames, and the distilled set: Algorithm 2 of DeepDistAL, step 6."""

from decimal import ROUND_HALF_UP, Decimal
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistal.schemas import DISTILLED, RANKING, conform

Arrange = Literal["frequency", "balanced", "groups"]

MOST_FREQUENT_FIRST = [
    ("num_representative", "descending"),
    ("mean_uncertainty", "descending"),  # nulls come last, whatever the direction
]


def mean_uncertainty(scored: pa.Table) -> pa.Table:
    """video_id and mean_uncertainty of the videos with a face, from a `schemas.UNCERTAINTY` table or a batch."""
    scored = scored.filter(pc.greater(pc.list_value_length(scored["uncertainty"]), 0))
    num_N = pc.list_value_length(scored["uncertainty"]).to_numpy()
    value_F = pc.list_flatten(scored["uncertainty"]).to_numpy()
    # One sum per row: in pyarrow's group_by the last digits would depend on the number of threads.
    sum_N = np.add.reduceat(value_F, np.cumsum(num_N) - num_N) if len(num_N) else np.empty(0)
    return pa.table({"video_id": scored["video_id"], "mean_uncertainty": sum_N / num_N})


def rank_videos(
    videos: pa.Table, representative: pa.Table, uncertainty: pa.Table, arrange: Arrange = "frequency"
) -> pa.Table:
    """All videos, from the most to the least significant: a `schemas.RANKING` table.

    Args:
        videos: video_id, label (0 or 1) and group_id; in any order, each video once.
        representative: `schemas.REPRESENTATIVE`; the frames of a video are counted (Hist_X, step 6b).
        uncertainty: video_id and mean_uncertainty of the videos with a face, as from `mean_uncertainty`.
        arrange: "frequency" is the paper's: by the number of representative frames; equals by mean uncertainty, then
            video_id; videos without a face come last. "balanced" takes real and fake ones in turns, each by frequency,
            until one class is used up. "groups" keeps the videos of a group together: groups by the mean frequency of
            their videos, then mean uncertainty, then group_id; within a group by frequency.
    """
    frequency = representative.group_by("video_id").aggregate([([], "count_all")])
    videos = videos.select(["video_id", "label", "group_id"])
    num = _look_up(frequency, "count_all", videos["video_id"]).fill_null(0)
    mean = _look_up(uncertainty, "mean_uncertainty", videos["video_id"])
    mean = pc.if_else(pc.is_nan(mean), None, mean)
    videos = videos.append_column("num_representative", num).append_column("mean_uncertainty", mean)
    ranked = videos.take(pc.sort_indices(videos, [*MOST_FREQUENT_FIRST, ("video_id", "ascending")]))
    match arrange:
        case "frequency":
            pass
        case "balanced":
            ranked = ranked.take(_in_turns(ranked["label"].to_numpy()))
        case "groups":
            ranked = ranked.take(_by_group(ranked))
        case _:
            assert_never(arrange)
    return conform(ranked.append_column("rank", pa.array(np.arange(len(ranked)))), RANKING)


def num_kept(num_videos: int, ratio: float) -> int:
    """K_dist of step 6a: `ratio` of the videos, halves rounded up (as decimals: 0.29 of 50 is 14.5), at least 1."""
    exact = Decimal(str(ratio)) * num_videos
    return max(1, int(exact.to_integral_value(ROUND_HALF_UP)))


def cut(ranking: pa.Table, videos: pa.Table, ratio: float, arrange: Arrange = "frequency") -> pa.Table:
    """The distilled set (step 6c): the rows of `videos` that rank first, with their rank, as `schemas.DISTILLED`.

    Of a ranking by "groups" only whole groups are kept: the first one, and those after it until one would exceed
    `num_kept`. A smaller ratio gives a subset of a larger one.
    """
    ranking = ranking.sort_by("rank")
    position_N = pc.index_in(ranking["video_id"], value_set=videos["video_id"])
    num = num_kept(len(ranking), ratio)
    if arrange == "groups":
        group = videos["group_id"].take(position_N).combine_chunks()
        ends = [*np.flatnonzero(pc.not_equal(group[1:], group[:-1]).to_numpy(zero_copy_only=False)) + 1, len(group)]
        num = max([end for end in ends if end <= num], default=ends[0])
    kept = videos.take(position_N[:num])
    return conform(kept.append_column("rank", ranking["rank"][:num]), DISTILLED)


def _look_up(table: pa.Table, column: str, video_id_N: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` of the row of each video_id, null where there is none."""
    return table[column].take(pc.index_in(video_id_N, value_set=table["video_id"]))


def _in_turns(label_N: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Positions of the first of each class, the second of each ... : every even prefix has as many real as fake."""
    turn_N = np.empty(len(label_N), np.int64)
    for label in (0, 1):
        turn_N[label_N == label] = np.arange(np.count_nonzero(label_N == label))
    return np.argsort(turn_N, kind="stable")


def _by_group(ranked: pa.Table) -> pa.Array:
    """Positions that bring the videos of each group together, in the order that `rank_videos` documents."""
    name_G = pc.unique(ranked["group_id"])
    group_N = pc.index_in(ranked["group_id"], value_set=name_G).to_numpy()
    has_face_N = ranked["mean_uncertainty"].is_valid().to_numpy()
    keys: dict[str, object] = {"group_id": ranked["group_id"], "rank": np.arange(len(ranked))}
    for name, counted_N in (("num_representative", np.full(len(ranked), True)), ("mean_uncertainty", has_face_N)):
        sum_G = np.bincount(group_N[counted_N], ranked[name].to_numpy()[counted_N], minlength=len(name_G))
        num_G = np.bincount(group_N[counted_N], minlength=len(name_G))
        mean_G = np.divide(sum_G, num_G, out=np.full(len(num_G), np.nan), where=num_G > 0)
        keys[name] = pa.array(mean_G[group_N], from_pandas=True)  # NaN (no faces in the group) becomes null: last
    order = [*MOST_FREQUENT_FIRST, ("group_id", "ascending"), ("rank", "ascending")]
    return pc.sort_indices(pa.table(keys), order)
