"""Train, val and test: official splits are kept, all else is split by group. No group is in two splits."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from raydistal.datasets.layout import counted
from raydistal.schemas import SPLITS

Category = tuple[int, str]  # label, method


def assign(videos: pa.Table, ratios: tuple[float, float, float], seed: int) -> tuple[pa.Table, list[str]]:
    """`videos` with a split in every row, and warnings. `ratios` are the shares of train, val and test.

    Unlabelled videos go to pool. A video without an official split joins the others of its group, and groups without
    one are distributed over train, val and test. Where the official splits are train and test only, a part of train
    becomes val. Where an official split cuts a group, each part becomes a group of its own.
    The result depends on the set of rows and the seed, not on the order of the rows.
    """
    shares: dict[str, float] = {split: ratio for split, ratio in zip(SPLITS, ratios, strict=False) if ratio > 0}
    rows = pa.table({"group": videos["group_id"], "label": videos["label"], "method": videos["method"].fill_null("")})
    rows = rows.append_column("split", _official(rows, videos["split"]))
    warnings = []
    there = set(pc.unique(rows["split"]).to_pylist())
    if {"train", "test"} <= there and "val" not in there and {"train", "val"} <= shares.keys():
        rows = _distribute_rows(rows, "train", {split: shares[split] for split in ("train", "val")}, seed)
        num_val = pc.sum(pc.equal(rows["split"], "val")).as_py()
        warnings.append(f"there is no official val split: {num_val} videos of train became val")
    rows = _distribute_rows(rows, None, shares, seed)

    pairs = rows.group_by(["group", "split"]).aggregate([])
    num_splits = pairs.group_by("group").aggregate([([], "count_all")])
    cut = num_splits.filter(pc.greater(num_splits["count_all"], 1))["group"]
    warnings += counted(cut.to_pylist(), "groups are cut by the official split; each part is now a group of its own")
    part = pc.binary_join_element_wise(rows["group"], rows["split"], "@")
    group = pc.if_else(pc.is_in(rows["group"], cut), part, rows["group"])
    videos = videos.set_column(videos.column_names.index("group_id"), "group_id", group)
    videos = videos.set_column(videos.column_names.index("split"), "split", rows["split"])
    return videos, warnings + _lacking(rows, shares)


def _distribute_rows(rows: pa.Table, current: str | None, shares: Mapping[str, float], seed: int) -> pa.Table:
    """`rows`, with a new split for those that are in the split `current`, or with None for those that are in none."""
    is_due = pc.equal(rows["split"], current) if current else pc.is_null(rows["split"])
    found = rows.filter(is_due).group_by(["group", "label", "method"]).aggregate([([], "count_all")])
    counts: dict[str, Counter[Category]] = defaultdict(Counter)
    for group, label, method, num in zip(*(column.to_pylist() for column in found.columns), strict=True):
        counts[group][label, method] = num
    split_of = distribute(counts, shares, seed)
    place = pc.index_in(rows["group"], value_set=pa.array(list(split_of), pa.string()))
    other = pa.array(list(split_of.values()), pa.string()).take(place)
    split = pc.if_else(is_due, other, rows["split"])
    return rows.set_column(rows.column_names.index("split"), "split", split)


def distribute(counts: Mapping[str, Counter[Category]], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for each group, so that every category is divided as `shares` says, in the sense of least squares.

    Greedy: large groups first, equal ones in an order that the seed decides; each goes where its categories fall
    shortest of their share. The last groups of a category go to the splits that have none of it yet, so that few
    groups also reach every split.

    Args:
        counts: videos per category of each group.
        shares: the wanted share of each split, positive; they need not sum to 1.
        seed: any integer.
    """
    share_sum = sum(shares.values())
    num_videos: Counter[Category] = Counter()
    num_groups_left: Counter[Category] = Counter()
    for group_counts in counts.values():
        num_videos.update(group_counts)
        num_groups_left.update(group_counts.keys())
    placed: dict[str, Counter[Category]] = {split: Counter() for split in shares}

    def rank(group: str) -> tuple[int, bytes]:
        return -counts[group].total(), hashlib.blake2b(f"{seed}\0{group}".encode(), digest_size=16).digest()

    split_of = {}
    for group in sorted(counts, key=rank):
        items = sorted(counts[group].items())  # sorted: a float sum depends on its order
        needy = set()
        for category, _ in items:
            empty = [split for split in shares if not placed[split][category]]
            if num_groups_left[category] <= len(empty):
                needy.update(empty)
        shortfall = {
            split: sum(
                n * (shares[split] / share_sum - placed[split][category] / num_videos[category]) / num_videos[category]
                for category, n in items
            )
            for split in shares
            if split in needy or not needy
        }
        split_of[group] = max(shortfall, key=lambda split: shortfall[split])
        placed[split_of[group]].update(counts[group])
        num_groups_left.subtract(counts[group].keys())
    return split_of


def _official(rows: pa.Table, split: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each row's official split, or that of its group where the row has none; pool for the unlabelled."""
    ranked = rows.select(["group"]).append_column("rank", pc.index_in(split, value_set=pa.array(SPLITS)))
    counts = pc.and_(pc.and_(pc.is_valid(split), pc.not_equal(split, "pool")), pc.is_valid(rows["label"]))
    of_group = ranked.filter(counts).group_by("group").aggregate([("rank", "min")])
    rank = of_group["rank_min"].take(pc.index_in(rows["group"], value_set=of_group["group"]))
    return pc.if_else(pc.is_null(rows["label"]), "pool", pc.coalesce(split, pa.array(SPLITS).take(rank)))


def _lacking(rows: pa.Table, shares: Mapping[str, float]) -> list[str]:
    """One warning per class that some split should have and does not."""
    pairs = rows.group_by(["label", "split"]).aggregate([])
    there = set(zip(pairs["label"].to_pylist(), pairs["split"].to_pylist(), strict=True))
    warnings = []
    for label, name in ((0, "real"), (1, "fake")):
        lacking = [split for split in shares if (label, split) not in there]
        if lacking:
            warnings.append(f"no {name} videos in {', '.join(lacking)}")
    return warnings
