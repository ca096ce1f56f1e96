"""Baselines for a distilled set: subsets with as many real and as many fake videos, chosen by simple rules.

V training videos.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistal.errors import UserError
from raydistal.schemas import DISTILLED, conform
from raydistal.selection.draws import sample_key

Kind = Literal["full", "distilled", "random", "frame_count", "faces"]
Control = Literal["random", "frame_count"]
CLASSES = ("real", "fake")

Ints = npt.NDArray[np.integer]


def control(videos: pa.Table, num_faces_V: Ints, like: pa.Table, kind: Control, seed: int = 0) -> pa.Table:
    """A subset of `videos` with as many real and fake ones as `like`, so that the two differ by the choice alone.

    Smaller controls are subsets of larger ones. Videos without a face come last in both orders: they would make the
    control smaller than it says.

    Args:
        videos: `schemas.VIDEOS` of training; label is 0 or 1.
        num_faces_V: faces found in each.
        like: the distilled set; label is 0 or 1.
        kind: "random": in a new order for every seed; "frame_count": those with most faces first, which any ranking by
            frequency tends to favour; ties in an order by hash.
        seed: of the random order.

    Returns:
        A `schemas.DISTILLED` table; rank is the place in the order, from 0.
    """
    num_L = np.bincount(like["label"].to_numpy(), minlength=2)
    seed = seed if kind == "random" else 0
    key_V = sample_key(videos["video_id"], np.full(len(videos), -1), seed)  # no frame has number -1
    first_V = num_faces_V == 0 if kind == "random" else -num_faces_V
    order_V = np.lexsort((key_V, first_V))
    label_V = videos["label"].to_numpy()[order_V]
    place_V = np.where(label_V == 1, np.cumsum(label_V == 1), np.cumsum(label_V == 0)) - 1  # within its class
    kept = videos.take(order_V[place_V < num_L[label_V]])
    return conform(kept.append_column("rank", pa.array(np.arange(len(kept)))), DISTILLED)


def count_faces(videos: pa.Table, faces: pa.Table) -> Ints:
    """(V,) faces found in each of `videos`; `faces` has video_id and frame_index, as in the table of that name."""
    num = pc.list_value_length(faces["frame_index"])
    found = num.take(pc.index_in(videos["video_id"], value_set=faces["video_id"]))
    return np.asarray(found.fill_null(0).to_numpy())


def check(name: str, subset: pa.Table, videos: pa.Table, num_faces_V: Ints, num_needed: int = 1) -> None:
    """Raises UserError unless `subset`, some of `videos`, has `num_needed` faces of each class."""
    row_N = pc.index_in(subset["video_id"], value_set=videos["video_id"]).to_numpy()
    num_L = np.bincount(subset["label"].to_numpy(), num_faces_V[row_N], minlength=2)
    for label, what in enumerate(CLASSES):
        if num_L[label] < num_needed:
            raise UserError(
                f"the set {name} has {num_L[label]:.0f} faces of {what} videos, at least {num_needed} are needed. Ask "
                "for a larger share or fewer faces, or rank both in turn: raydistal select --arrange balanced."
            )
