import math
from collections import Counter
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistal.schemas import DISTILLED, RANKING, REPRESENTATIVE, UNCERTAINTY, VIDEOS
from raydistal.selection.ranking import cut, mean_uncertainty, num_kept, rank_videos

ARRANGES = ["frequency", "balanced", "groups"]


def dataset(rows):
    """Rows of (label, group, number of representative frames, mean uncertainty or None): the three input tables.

    Video number i of the list is called v<i>.
    """
    names = [f"v{number:02}" for number in range(len(rows))]
    videos = pa.table(
        {
            "video_id": pa.array(names, pa.string()),
            "dataset": pa.repeat("d", len(rows)),
            "uri": pa.array([f"{name}.mp4" for name in names], pa.string()),
            "label": pa.array([row[0] for row in rows], pa.int8()),
            "method": pa.nulls(len(rows), pa.string()),
            "compression": pa.nulls(len(rows), pa.string()),
            "original_id": pa.nulls(len(rows), pa.string()),
            "group_id": pa.array([row[1] for row in rows], pa.string()),
            "split": pa.repeat("train", len(rows)),
        },
        schema=VIDEOS,
    )
    frames = [
        {"video_id": name, "frame_index": index, "label": row[0], "probability": 0.5, "uncertainty": 0.5, "order": 0}
        for name, row in zip(names, rows, strict=True)
        for index in range(row[2])
    ]
    known = [(name, row[3]) for name, row in zip(names, rows, strict=True) if row[3] is not None]
    uncertainty = pa.table(
        {
            "video_id": pa.array([name for name, _ in known], pa.string()),
            "mean_uncertainty": pa.array([mean for _, mean in known], pa.float64()),
        }
    )
    return videos, pa.Table.from_pylist(frames, REPRESENTATIVE), uncertainty


ROW = st.tuples(
    st.integers(0, 1),
    st.sampled_from("ABCDE"),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.25, 0.5, 0.5]),
).flatmap(lambda row: st.just(row) if row[2] else st.sampled_from([row, (*row[:3], None)]))
ROWS = st.lists(ROW, min_size=1, max_size=25)


def rank(rows, arrange):
    ranking = rank_videos(*dataset(rows), arrange)
    assert ranking.schema == RANKING
    assert ranking["rank"].to_pylist() == list(range(len(rows)))
    return [int(name[1:]) for name in ranking["video_id"].to_pylist()]


def minus(mean):
    return math.inf if mean is None else -mean


@pytest.mark.slow
@given(ROWS, st.integers(1, 100))
def test_equals_algorithm_2(rows, percent):
    videos, representative, uncertainty = dataset(rows)
    hist_x = Counter(representative["video_id"].to_pylist())
    u = dict(zip(*uncertainty.to_pydict().values(), strict=True))
    ranked = sorted(
        videos.to_pylist(),
        key=lambda video: (-hist_x[video["video_id"]], minus(u.get(video["video_id"])), video["video_id"]),
    )
    k_dist = max(1, math.floor(Fraction(percent * len(rows), 100) + Fraction(1, 2)))

    ranking = rank_videos(videos, representative, uncertainty)
    assert ranking.to_pylist() == [
        {
            "video_id": video["video_id"],
            "label": video["label"],
            "num_representative": hist_x[video["video_id"]],
            "mean_uncertainty": u.get(video["video_id"]),
            "rank": number,
        }
        for number, video in enumerate(ranked)
    ]
    distilled = cut(ranking, videos, percent / 100)
    assert distilled.schema == DISTILLED
    assert distilled.to_pylist() == [video | {"rank": number} for number, video in enumerate(ranked[:k_dist])]


@pytest.mark.slow
@given(ROWS)
def test_balanced(rows):
    order = rank(rows, "balanced")
    by_frequency = rank(rows, "frequency")
    for label in (0, 1):  # within a class nothing changes
        assert [number for number in order if rows[number][0] == label] == [
            number for number in by_frequency if rows[number][0] == label
        ]
    fewer = min(sum(row[0] == label for row in rows) for label in (0, 1))
    for length in range(len(rows) + 1):
        num_fake = sum(rows[number][0] for number in order[:length])
        num_real = length - num_fake
        if length <= 2 * fewer:
            assert abs(num_fake - num_real) == length % 2
        else:
            assert min(num_fake, num_real) == fewer


def test_balanced_starts_each_pair_with_the_more_frequent():
    rows = [(1, "A", 9, 0.5), (1, "B", 8, 0.5), (0, "C", 7, 0.5), (0, "D", 8, 0.6), (1, "E", 0, None)]
    assert rank(rows, "frequency") == [0, 3, 1, 2, 4]
    assert rank(rows, "balanced") == [0, 3, 1, 2, 4]
    rows[0] = (1, "A", 1, 0.5)
    assert rank(rows, "frequency") == [3, 1, 2, 0, 4]
    assert rank(rows, "balanced") == [3, 1, 2, 0, 4]
    rows[1] = (1, "B", 0, 0.5)
    assert rank(rows, "balanced") == [3, 0, 2, 1, 4]


@given(ROWS)
def test_groups(rows):
    members = {group: [number for number, row in enumerate(rows) if row[1] == group] for _, group, *_ in rows}

    def key(group):
        means = [rows[number][3] for number in members[group] if rows[number][3] is not None]
        frequency = Fraction(sum(rows[number][2] for number in members[group]), len(members[group]))
        return -frequency, -Fraction(sum(means)) / len(means) if means else math.inf, group

    by_frequency = rank(rows, "frequency")
    expected = [number for group in sorted(members, key=key) for number in by_frequency if number in members[group]]
    assert rank(rows, "groups") == expected


@pytest.mark.slow
@given(ROWS, st.sampled_from(ARRANGES), st.randoms())
def test_covers_all_and_does_not_depend_on_the_order_of_rows(rows, arrange, random):
    tables = dataset(rows)
    ranking = rank_videos(*tables, arrange)
    assert sorted(ranking["video_id"].to_pylist()) == tables[0]["video_id"].to_pylist()

    def shuffled(table):
        order = list(range(len(table)))
        random.shuffle(order)
        return table.take(pa.array(order, pa.int64()))

    assert rank_videos(*map(shuffled, tables), arrange) == ranking
    assert cut(shuffled(ranking), shuffled(tables[0]), 0.5, arrange) == cut(ranking, tables[0], 0.5, arrange)


@given(ROWS, st.sampled_from(ARRANGES))
def test_smaller_ratios_are_prefixes_of_larger_ones(rows, arrange):
    videos, *others = dataset(rows)
    ranking = rank_videos(videos, *others, arrange)
    before = 1
    for percent in (1, 10, 33, 50, 51, 99, 100):
        distilled = cut(ranking, videos, percent / 100, arrange)
        assert distilled["video_id"].to_pylist() == ranking["video_id"].to_pylist()[: len(distilled)]
        assert len(distilled) >= before
        before = len(distilled)
        if arrange == "groups":
            kept, num = set(distilled["group_id"].to_pylist()), num_kept(len(rows), percent / 100)
            assert len(distilled) == sum(row[1] in kept for row in rows)
            assert len(distilled) <= num or len(kept) == 1
            if len(distilled) < len(rows):
                next_group = rows[int(ranking["video_id"][len(distilled)].as_py()[1:])][1]
                assert len(distilled) + sum(row[1] == next_group for row in rows) > num
        else:
            assert len(distilled) == num_kept(len(rows), percent / 100)
    assert before == len(rows)


@pytest.mark.parametrize(
    ("num_videos", "ratio", "expected"),
    [(400, 0.5, 200), (400, 0.2, 80), (50, 0.29, 15), (5, 0.3, 2), (5, 0.1, 1), (3, 0.01, 1), (7, 1, 7), (7, 1.0, 7)],
)
def test_num_kept(num_videos, ratio, expected):
    assert num_kept(num_videos, ratio) == expected


def test_a_video_that_is_not_in_the_manifest_is_a_bug():
    videos, *others = dataset([(0, "A", 1, 0.5), (1, "B", 2, 0.5)])
    ranking = rank_videos(videos, *others)
    with pytest.raises(ValueError, match="'video_id' is required"):
        cut(ranking, videos[:1], 1)


def test_mean_uncertainty():
    scored = pa.table(
        {
            "video_id": ["none", "a", "b", "nothing", "c"],
            "label": pa.array([0, 0, 1, 1, 1], pa.int8()),
            "frame_index": [[], [0, 3], [5], [], [1, 2, 3]],
            "probability": [[], [0.5, 0.5], [0.5], [], [0.5, 0.5, 0.5]],
            "uncertainty": [[], [0.25, 0.5], [1.0], [], [0.0, math.nan, 1.0]],
        },
        schema=UNCERTAINTY,
    )
    result = mean_uncertainty(scored).to_pydict()
    assert result["video_id"] == ["a", "b", "c"]
    assert result["mean_uncertainty"][:2] == [0.375, 1.0]
    assert math.isnan(result["mean_uncertainty"][2])
    assert mean_uncertainty(scored[1:4]).to_pydict() == {"video_id": ["a", "b"], "mean_uncertainty": [0.375, 1.0]}
    assert mean_uncertainty(scored[:1]).to_pydict() == {"video_id": [], "mean_uncertainty": []}


def test_a_mean_that_is_not_a_number_ranks_like_none():
    rows = [(0, "A", 0, math.nan), (0, "B", 0, -math.inf), (1, "C", 1, math.nan), (1, "D", 1, math.inf)]
    assert rank(rows, "frequency") == [3, 2, 1, 0]
    assert rank(rows, "groups") == [3, 2, 1, 0]
    assert rank_videos(*dataset(rows))["mean_uncertainty"].to_pylist() == [math.inf, None, -math.inf, None]
