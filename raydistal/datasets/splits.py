"""Train, val and test: official splits are kept, all else is split by group. No group is in two splits."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

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
    shares = {split: ratio for split, ratio in zip(SPLITS, ratios, strict=False) if ratio > 0}
    groups, labels = videos["group_id"].to_pylist(), videos["label"].to_pylist()
    categories = [(label, method or "") for label, method in zip(labels, videos["method"].to_pylist(), strict=True)]
    splits = _official(groups, labels, videos["split"].to_pylist())
    warnings = []

    def distribute_rows(current: str | None, shares: Mapping[str, float]) -> list[str | None]:
        counts: dict[str, Counter[Category]] = defaultdict(Counter)
        for group, category, split in zip(groups, categories, splits, strict=True):
            if split == current:
                counts[group][category] += 1
        split_of = distribute(counts, shares, seed)
        return [split_of[group] if split == current else split for group, split in zip(groups, splits, strict=True)]

    if {"train", "test"} <= set(splits) and "val" not in splits and {"train", "val"} <= shares.keys():
        splits = distribute_rows("train", {split: shares[split] for split in ("train", "val")})
        warnings.append(f"there is no official val split: {splits.count('val')} videos of train became val")
    splits = distribute_rows(None, shares)

    splits_of = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        splits_of[group].add(split)
    cut = {group for group, its_splits in splits_of.items() if len(its_splits) > 1}
    warnings += counted(cut, "groups are cut by the official split; each part is now a group of its own")
    groups = [f"{group}@{split}" if group in cut else group for group, split in zip(groups, splits, strict=True)]
    videos = videos.set_column(videos.column_names.index("group_id"), "group_id", pa.array(groups, pa.string()))
    videos = videos.set_column(videos.column_names.index("split"), "split", pa.array(splits, pa.string()))
    return videos, warnings + _lacking(labels, splits, shares)


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


def _official(groups: Sequence[str], labels: Sequence[int | None], splits: Sequence[str | None]) -> list[str | None]:
    """The official split of each row, where there is none that of its group; pool for the unlabelled."""
    split_of: dict[str, str] = {}
    for group, label, split in zip(groups, labels, splits, strict=True):
        if split and split != "pool" and label is not None:
            split_of[group] = min(split_of.get(group, split), split, key=SPLITS.index)
    return [
        "pool" if label is None else split or split_of.get(group)
        for group, label, split in zip(groups, labels, splits, strict=True)
    ]


def _lacking(labels: Sequence[int | None], splits: Sequence[str | None], shares: Mapping[str, float]) -> list[str]:
    """One warning per class that some split should have and does not."""
    there = set(zip(labels, splits, strict=True))
    warnings = []
    for label, name in ((0, "real"), (1, "fake")):
        lacking = [split for split in shares if (label, split) not in there]
        if lacking:
            warnings.append(f"no {name} videos in {', '.join(lacking)}")
    return warnings
