from collections import Counter, defaultdict

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistal.datasets.splits import assign, distribute

RATIOS = (0.7, 0.15, 0.15)
SHARES = dict(zip(("train", "val", "test"), RATIOS, strict=True))


def videos(rows):
    """Rows of (group, label, method, split)."""
    groups, labels, methods, splits = zip(*rows, strict=True) if rows else ([], [], [], [])
    return pa.table(
        {
            "video_id": [f"{number:05}" for number in range(len(rows))],
            "label": pa.array(labels, pa.int8()),
            "method": pa.array(methods, pa.string()),
            "group_id": pa.array(groups, pa.string()),
            "split": pa.array(splits, pa.string()),
        }
    )


def placed(table):
    return list(zip(table["group_id"].to_pylist(), table["split"].to_pylist(), strict=True))


ROW = st.tuples(
    st.sampled_from([f"g{number}" for number in range(8)]),
    st.sampled_from([0, 1, None]),
    st.sampled_from([None, "swap", "warp"]),
    st.sampled_from(["train", "val", "test", "pool", None]),
)


@pytest.mark.slow
@given(st.lists(ROW, max_size=40), st.integers(), st.randoms())
def test_invariants(rows, seed, random):
    table, _ = assign(videos(rows), RATIOS, seed)
    splits_of = defaultdict(set)
    for group, split in placed(table):
        splits_of[group].add(split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    carved = {"train", "test"} <= {row[3] for row in rows if row[1] is not None}
    for (group, label, _, official), (new_group, split) in zip(rows, placed(table), strict=True):
        assert new_group in (group, f"{group}@{split}")
        if label is None:
            assert split == "pool"
        elif official:
            assert split == official or (carved and (official, split) == ("train", "val"))
        else:
            assert split in ("train", "val", "test", "pool")
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled, _ = assign(videos(rows).take(pa.array(order, pa.int64())), RATIOS, seed)
    assert shuffled.sort_by("video_id") == table


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9))), st.integers())
def test_every_split_gets_every_category_that_has_enough_groups(groups, seed):
    counts = {f"g{number}": Counter({(1, method): size}) for number, (method, size) in enumerate(groups)}
    split_of = distribute(counts, SHARES, seed)
    assert split_of.keys() == counts.keys()
    splits_of = defaultdict(list)
    for name, count in counts.items():
        splits_of[next(iter(count))].append(split_of[name])
    for splits in splits_of.values():
        assert len(set(splits)) == min(3, len(splits))


@given(st.integers(7, 300), st.integers())
def test_equal_groups_are_shared_to_within_one(num_groups, seed):
    split_of = distribute({f"g{number}": Counter({(0, ""): 5}) for number in range(num_groups)}, SHARES, seed)
    num = Counter(split_of.values())
    assert all(abs(num[split] - share * num_groups) <= 1 for split, share in SHARES.items())


@given(
    st.lists(
        st.dictionaries(st.sampled_from([(0, ""), (1, "swap"), (1, "warp")]), st.integers(1, 4), min_size=1),
        min_size=60,
        max_size=90,
    ),
    st.integers(),
)
@pytest.mark.slow
def test_mixed_groups_come_near_the_shares(groups, seed):
    counts = {f"g{number}": Counter(group) for number, group in enumerate(groups)}
    split_of = distribute(counts, SHARES, seed)
    total, num = Counter(), defaultdict(Counter)
    for name, count in counts.items():
        total.update(count)
        num[split_of[name]].update(count)
    for category, size in total.items():
        for split, share in SHARES.items():
            assert abs(num[split][category] - share * size) <= max(2 * 4, 0.05 * size)


def test_one_large_group_goes_to_train_and_the_seed_decides_among_equals():
    counts = {"large": Counter({(0, ""): 70})} | {f"g{number:02}": Counter({(0, ""): 1}) for number in range(30)}
    splits = [distribute(counts, SHARES, seed) for seed in range(5)]
    assert [split["large"] for split in splits] == ["train"] * 5
    assert [Counter(split.values()) for split in splits] == [{"train": 1, "val": 15, "test": 15}] * 5
    assert len({tuple(sorted(split.items())) for split in splits}) == 5
    assert distribute(counts, {"train": 3.0}, 0) == dict.fromkeys(counts, "train")


def test_official_splits_are_kept_and_the_rest_joins_its_group():
    rows = [("a", 0, None, "train"), ("a", 1, "swap", None), ("b", 0, None, "val"), ("b", 1, "swap", "val")]
    rows += [("c", 0, None, "test"), ("c", 1, "swap", None), ("d", None, None, None), ("e", None, None, "train")]
    table, warnings = assign(videos(rows), RATIOS, 0)
    assert placed(table) == [*zip("aabbccde", ["train"] * 2 + ["val"] * 2 + ["test"] * 2 + ["pool"] * 2, strict=True)]
    assert warnings == []


def test_val_is_carved_out_of_train_by_group_and_cut_groups_are_renamed():
    people = [f"id{number}" for number in range(20)]
    rows = [(person, label, "swap" if label else None, "train") for person in people for label in (0, 1, 1)]
    rows += [("id3", 0, None, "test"), ("id3", 1, "swap", "test")]
    table, warnings = assign(videos(rows), RATIOS, 0)
    split_of = dict(placed(table))
    assert len(set(placed(table))) == len(split_of) == 21
    assert Counter(split_of.values()) == {"train": 16, "val": 4, "test": 1}  # 0.15 / 0.85 of 20 is 3.5
    assert split_of["id3@test"] == "test"
    assert {group for group in split_of if group.startswith("id3@")} == {"id3@test", f"id3@{split_of_part(table)}"}
    assert warnings == [
        "there is no official val split: 12 videos of train became val",
        "1 groups are cut by the official split; each part is now a group of its own: id3",
    ]
    assert assign(videos(rows), (0.8, 0.0, 0.2), 0)[0]["split"].to_pylist() == [row[3] for row in rows]


def split_of_part(table):
    return next(split for group, split in placed(table) if group.startswith("id3@") and split != "test")


def test_a_class_that_a_split_lacks_is_told():
    assert assign(videos([("a", 1, "swap", None), ("b", 1, "swap", None)]), RATIOS, 0)[1] == [
        "no real videos in train, val, test",
        "no fake videos in test",
    ]
    assert assign(videos([]), (0.5, 0.0, 0.5), 0)[1] == [
        "no real videos in train, test",
        "no fake videos in train, test",
    ]
