"""Representative frames: Algorithm 1 of DeepDistAL as a top-N that takes frames in any order and batching.

The algorithm repeatedly takes the most uncertain frame that is left, until each class has its N = E / 2. The result is
the N most uncertain frames of each class, which can be merged from batches, processes and nodes.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistal.schemas import REPRESENTATIVE, conform

FRAMES = pa.schema([field for field in REPRESENTATIVE if field.name != "order"])
FRAME_ID = ["video_id", "frame_index"]
MOST_UNCERTAIN_FIRST = [("uncertainty", "descending"), ("video_id", "ascending"), ("frame_index", "ascending")]
BUFFERED_ROWS = 1 << 16


class MostUncertain:
    """The most uncertain frames of each class, out of all that were added.

    Equally uncertain frames are taken by ascending video_id, then frame_index. NaN counts as -inf. The result is the
    same whatever the order and batching of what is added, and `a.add(b.table())` merges b into a. Holds at most
    4 * num_per_class + 65,536 rows and the last batch. For the least uncertain frames, negate what is added.
    """

    def __init__(self, num_per_class: int) -> None:
        self.num_per_class = num_per_class
        self._parts = [FRAMES.empty_table()]

    def add(self, frames: pa.Table) -> None:
        """Takes a table with the columns of `FRAMES`, one row per frame; other columns are ignored."""
        self._parts.append(conform(frames, FRAMES))
        if sum(part.num_rows for part in self._parts) > 4 * self.num_per_class + BUFFERED_ROWS:
            self._parts = [_top(self._parts, self.num_per_class)]

    def table(self) -> pa.Table:
        """`schemas.REPRESENTATIVE`: the real frames in order of selection, then the fake ones. Never padded."""
        self._parts = [_top(self._parts, self.num_per_class)]
        return numbered(self._parts)


def numbered(rounds: list[pa.Table]) -> pa.Table:
    """`schemas.REPRESENTATIVE` of frames that were selected round after round, each round in order of selection.

    `order` counts on from round to round within each class; real frames come first.
    """
    frames = pa.concat_tables([conform(frames, FRAMES) for frames in rounds])
    frames = frames.take(np.argsort(frames["label"].to_numpy(), kind="stable"))
    return conform(frames.append_column("order", pa.array(_position_in_class(frames))), REPRESENTATIVE)


def without(frames: pa.Table, selected: pa.Table) -> pa.Table:
    """`frames` less those that are in `selected`, in any order."""
    frames = conform(frames, FRAMES)
    return frames.join(conform(selected, FRAMES).select(FRAME_ID), FRAME_ID, join_type="left anti")


def round_sizes(num_per_class: int, num_rounds: int) -> list[int]:
    """How many frames of each class each round selects: equal or one more in the first ones, `num_per_class` in all."""
    quotient, remainder = divmod(num_per_class, num_rounds)
    return [quotient + (number < remainder) for number in range(num_rounds)]


def shortage(representative: pa.Table, num_per_class: int) -> dict[int, int]:
    """How many frames of each label are missing because the dataset has no more: {0: ..., 1: ...}."""
    num_L = np.bincount(representative["label"].to_numpy(), minlength=2)
    return {label: num_per_class - int(num_L[label]) for label in (0, 1)}


def _top(parts: list[pa.Table], num_per_class: int) -> pa.Table:
    """The most uncertain frames of each class, real ones first, in order of selection."""
    frames = pa.concat_tables(parts).combine_chunks()  # sorting chunks and merging them takes twice as long
    uncertainty = pc.if_else(pc.is_nan(frames["uncertainty"]), -np.inf, frames["uncertainty"])
    frames = frames.set_column(frames.column_names.index("uncertainty"), FRAMES.field("uncertainty"), uncertainty)
    frames = frames.take(pc.sort_indices(frames, [("label", "ascending"), *MOST_UNCERTAIN_FIRST]))
    return frames.filter(pa.array(_position_in_class(frames) < num_per_class))


def _position_in_class(frames: pa.Table) -> npt.NDArray[np.int64]:
    """0, 1, 2 ... within each label; `frames` are sorted by label."""
    label_N: npt.NDArray[np.int8] = frames["label"].to_numpy()
    return np.arange(len(label_N)) - np.searchsorted(label_N, label_N)
