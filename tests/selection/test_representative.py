import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistal.schemas import REPRESENTATIVE
from raydistal.selection import representative
from raydistal.selection.representative import FRAMES, MostUncertain, numbered, round_sizes, shortage, without


def algorithm_1(frames, num_frames):
    """Algorithm 1 as printed. `frames`: (video_id, frame_index, label, uncertainty); the result: S_real, S_fake."""
    frames = sorted(frames)  # np.argmax takes the first of equals: the lowest video_id, then frame_index
    u = np.array([frame[3] for frame in frames], float)
    s_real, s_fake = [], []
    n = num_frames // 2
    while np.any(u > -np.inf):
        i_max = int(np.argmax(u))
        if frames[i_max][2] == 0 and len(s_real) < n:
            s_real.append(frames[i_max])
        if frames[i_max][2] == 1 and len(s_fake) < n:
            s_fake.append(frames[i_max])
        u[i_max] = -np.inf
    return s_real, s_fake


def table(frames):
    video_ids, frame_indices, labels, uncertainties = zip(*frames, strict=True) if frames else ([], [], [], [])
    columns = [video_ids, frame_indices, labels, [label + 0.25 for label in labels], uncertainties]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, FRAMES, strict=True)], FRAMES)


def rows(selected):
    assert selected.schema == REPRESENTATIVE
    return [
        (row["video_id"], row["frame_index"], row["label"], row["uncertainty"], row["order"])
        for row in selected.to_pylist()
    ]


def with_order(s_real, s_fake):
    return [(*frame, order) for frames in (s_real, s_fake) for order, frame in enumerate(frames)]


UNCERTAINTY = st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(allow_nan=False, allow_infinity=False))
FRAMES_OF_VIDEOS = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b", "B", "aa", "é"]), st.integers(0, 8)),
    st.tuples(st.integers(0, 1), UNCERTAINTY),
    max_size=40,
).map(lambda frames: [(*key, *value) for key, value in frames.items()])


@given(FRAMES_OF_VIDEOS, st.integers(0, 25))
def test_equals_the_papers_loop(frames, num_frames):
    top = MostUncertain(num_frames // 2)
    top.add(table(frames))
    s_real, s_fake = algorithm_1(frames, num_frames)
    assert rows(top.table()) == with_order(s_real, s_fake)
    missing = shortage(top.table(), num_frames // 2)
    assert missing == {0: num_frames // 2 - len(s_real), 1: num_frames // 2 - len(s_fake)}


@pytest.mark.slow
@given(FRAMES_OF_VIDEOS, st.integers(1, 6), st.data())
def test_any_order_batching_and_merging_gives_the_same(frames, num_per_class, data):
    whole = MostUncertain(num_per_class)
    whole.add(table(frames))
    shuffled = data.draw(st.permutations(frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(frames)), max_size=5)))
    tops = [MostUncertain(num_per_class) for _ in range(3)]
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(frames)], strict=True)):
        tops[number % 3].add(table(shuffled[start:end]))
        tops[number % 3].table()  # may be asked for in between
    tops[2].add(tops[0].table())
    tops[1].add(tops[2].table())
    assert rows(tops[1].table()) == rows(whole.table())


def test_memory_stays_bounded(monkeypatch):
    monkeypatch.setattr(representative, "BUFFERED_ROWS", 10)
    frames = [(f"v{number % 50:02}", number // 50, number % 2, float(number * 37 % 101)) for number in range(1000)]
    top = MostUncertain(3)
    for start in range(0, 1000, 4):
        top.add(table(frames[start : start + 4]))
        assert sum(part.num_rows for part in top._parts) <= 4 * 3 + 10
    assert rows(top.table()) == with_order(*algorithm_1(frames, 6))


def test_many_frames():
    frames = [
        (f"v{number % 50:02}", number // 50, number * 7 % 3 % 2, float(number * 37 % 101)) for number in range(1000)
    ]
    top = MostUncertain(400)
    top.add(table(frames))
    assert rows(top.table()) == with_order(*algorithm_1(frames, 800))
    assert shortage(top.table(), 400) == {0: 0, 1: 67}


def test_nan_and_minus_infinity_come_last():
    uncertainties = [math.nan, -math.inf, -1e300, math.inf, math.nan, 0.0]
    frames = [("v", number, 1, uncertainty) for number, uncertainty in enumerate(uncertainties)]
    top = MostUncertain(6)
    top.add(table(frames))
    assert [row[1] for row in rows(top.table())] == [3, 5, 2, 0, 1, 4]
    assert shortage(top.table(), 6) == {0: 6, 1: 0}


def test_takes_the_tables_of_other_stages_as_they_are():
    frames = table([("v", 3, 1, 0.5), ("w", 1, 0, 0.25)])
    frames = frames.append_column("group_id", pa.array(["g", "h"])).select(["group_id", *frames.column_names[::-1]])
    top = MostUncertain(1)
    top.add(frames)
    assert top.table().to_pylist() == [
        {"video_id": "w", "frame_index": 1, "label": 0, "probability": 0.25, "uncertainty": 0.25, "order": 0},
        {"video_id": "v", "frame_index": 3, "label": 1, "probability": 1.25, "uncertainty": 0.5, "order": 0},
    ]


@given(FRAMES_OF_VIDEOS, st.integers(0, 9), st.integers(1, 4))
def test_rounds_without_retraining_select_what_one_round_does(frames, num_per_class, num_rounds):
    rounds = []
    for size in round_sizes(num_per_class, num_rounds):
        top = MostUncertain(size)
        top.add(without(table(frames), numbered([*rounds, FRAMES.empty_table()])))
        rounds.append(top.table())
    assert rows(numbered(rounds)) == with_order(*algorithm_1(frames, 2 * num_per_class))


@pytest.mark.parametrize(
    ("num_per_class", "num_rounds", "expected"),
    [(10, 1, [10]), (10, 3, [4, 3, 3]), (2, 4, [1, 1, 0, 0]), (0, 2, [0, 0])],
)
def test_round_sizes(num_per_class, num_rounds, expected):
    assert round_sizes(num_per_class, num_rounds) == expected
