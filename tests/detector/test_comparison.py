"""Subsets against sorting in plain Python; verdicts on scores whose answer is known; the bootstrap against loops."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas
from raydistal.detector import comparison, subsets
from raydistal.detector.comparison import Draws, Tried
from raydistal.errors import UserError
from raydistal.selection.draws import sample_key

NUM_VIDEOS = 60


@pytest.fixture(scope="module")
def videos():
    """A third real."""
    names = [f"v{number:02}" for number in range(NUM_VIDEOS)]
    labels = pa.array([int(number % 3 > 0) for number in range(NUM_VIDEOS)], pa.int8())
    table = {"video_id": names, "dataset": ["d"] * NUM_VIDEOS, "uri": names, "label": labels}
    table |= {"group_id": names, "split": ["train"] * NUM_VIDEOS}
    return schemas.conform(pa.table(table), schemas.VIDEOS)


@pytest.fixture(scope="module")
def num_faces_V():
    return np.random.default_rng(0).integers(0, 6, NUM_VIDEOS)


def take(videos, num_real, num_fake):
    labels = videos["label"].to_pylist()
    reals, fakes = ([row for row, label in enumerate(labels) if label == of] for of in (0, 1))
    kept = videos.take(reals[:num_real] + fakes[:num_fake])
    return schemas.conform(kept.append_column("rank", pa.array(range(len(kept)))), schemas.DISTILLED)


@pytest.mark.parametrize("kind", ["random", "frame_count"])
@pytest.mark.parametrize("seed", [0, 3])
def test_controls(videos, num_faces_V, kind, seed):
    found = subsets.control(videos, num_faces_V, take(videos, 5, 12), kind, seed)
    key_of = dict(zip(videos["video_id"].to_pylist(), sample_key(videos["video_id"], np.full(60, -1), 0), strict=True))
    if kind == "random":
        key_of = dict(zip(key_of, sample_key(videos["video_id"], np.full(60, -1), seed), strict=True))
    rows = list(zip(videos["video_id"].to_pylist(), videos["label"].to_pylist(), num_faces_V, strict=True))
    rows.sort(key=lambda row: (-row[2] if kind == "frame_count" else row[2] == 0, key_of[row[0]]))
    seen, expected = Counter(), []
    for video_id, label, _ in rows:
        seen[label] += 1
        if seen[label] <= (5, 12)[label]:
            expected.append({"video_id": video_id, "label": label, "rank": len(expected)})
    assert found.schema.equals(schemas.DISTILLED)
    assert found.select(["video_id", "label", "rank"]).to_pylist() == expected


def test_random_controls_differ_by_seed_and_nest_by_size(videos, num_faces_V):
    for seed in range(5):
        small, large = (
            set(
                subsets.control(videos, num_faces_V, take(videos, num, 2 * num), "random", seed)["video_id"].to_pylist()
            )
            for num in (3, 9)
        )
        assert small < large
    drawn = {
        frozenset(subsets.control(videos, num_faces_V, take(videos, 5, 10), "random", seed)["video_id"].to_pylist())
        for seed in range(5)
    }
    assert len(drawn) == 5


def test_random_controls_take_every_video_with_faces_equally_often(videos, num_faces_V):
    num_seeds = 600
    drawn = Counter()
    for seed in range(num_seeds):
        drawn.update(subsets.control(videos, num_faces_V, take(videos, 6, 12), "random", seed)["video_id"].to_pylist())
    labels = videos["label"].to_numpy()
    for video_id, label, num in zip(videos["video_id"].to_pylist(), labels, num_faces_V, strict=True):
        chance = (6, 12)[label] / np.count_nonzero((labels == label) & (num_faces_V > 0)) if num else 0
        assert abs(drawn[video_id] / num_seeds - chance) < 4 * (chance * (1 - chance) / num_seeds) ** 0.5 + 1e-9


def test_faces_are_counted_by_video(videos):
    lists = schemas.list_column(np.arange(5, dtype=np.int32), [2, 0, 3])
    faces = pa.table({"video_id": ["v07", "other", "v01"], "frame_index": lists})
    expected = np.zeros(NUM_VIDEOS, int)
    expected[[7, 1]] = 2, 3
    assert subsets.count_faces(videos, faces).tolist() == expected.tolist()


def test_sets_without_faces_of_a_class(videos):
    num_faces_V = np.ones(NUM_VIDEOS, int)
    subsets.check("good", take(videos, 2, 2), videos, num_faces_V, 2)
    with pytest.raises(UserError, match=r"set small has 2 faces of real videos, at least 3 .*--arrange balanced"):
        subsets.check("small", take(videos, 2, 9), videos, num_faces_V, 3)
    with pytest.raises(UserError, match="0 faces of fake videos"):
        subsets.check("fakes", take(videos, 2, 2), videos, num_faces_V * (videos["label"].to_numpy() == 0))


# ---- verdicts

LABELS = np.tile([0, 1, 1, 1], 60)  # a real video and three fakes per group
GROUPS = np.repeat([f"g{number:02}" for number in range(60)], 4).astype(object)


def tried(name, kind, accuracies, of="", seed=0, labels=LABELS):
    """A detector per accuracy; the videos it gets wrong are spread over the groups, others for every seed and set."""
    made = []
    for number, accuracy in enumerate(accuracies):
        rng = np.random.default_rng([seed, number])
        is_wrong_V = np.zeros(len(labels), bool)
        is_wrong_V[rng.permutation(len(labels))[: round((1 - accuracy) * len(labels))]] = True
        probability_V = np.where((labels == 1) != is_wrong_V, 0.9, 0.2) + rng.uniform(-0.05, 0.05, len(labels))
        row = {"architecture": "net", "set": name, "kind": kind, "share": 0.5, "num_videos": 10, "num_faces": 100}
        row |= {"seed": number, "precision": None, "recall": accuracy, "f1": None, "images": 300, "seconds": 1.5}
        row |= {"gpu_seconds": 0.0, "accuracy": accuracy, "auc": None}
        made.append(Tried(row=row, of=of, threshold=0.5, probability_V=probability_V))
    return made


def compare(full, distilled, random, frame_count, **changes):
    """By what the distilled set is held against; each argument lists the accuracies of the seeds."""
    runs = tried("full", "full", full, seed=1) + tried("half", "distilled", distilled, seed=2)
    runs += tried("half-random", "random", random, "half", seed=3)
    runs += tried("half-frame_count", "frame_count", frame_count, "half", seed=4)
    options = {"label_V": LABELS, "group_id_V": GROUPS, "metric": "accuracy", "margin": 0.05} | changes
    return comparison.compare(runs, **options)


def words(found):
    return {one["versus"]: one["verdict"] for one in found["verdicts"]}


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["accuracy", "auc"])
@pytest.mark.parametrize(
    ("full", "distilled", "random", "frame_count", "expected"),
    [
        (0.97, 0.97, 0.80, 0.97, ("non-inferior", "better", "cannot tell")),
        (0.97, 0.75, 0.90, 0.75, ("inferior", "worse", "cannot tell")),
        (0.93, 0.89, 0.88, 0.76, ("cannot tell", "cannot tell", "better")),
    ],
)
def test_verdicts(metric, full, distilled, random, frame_count, expected):
    found = compare([full] * 3, [distilled] * 3, [random] * 3, [frame_count] * 3, metric=metric)
    assert words(found) == dict(zip(("full", "random", "frame_count"), expected, strict=True))


@pytest.mark.slow
def test_seeds_that_disagree_cannot_tell():
    steady = compare([0.90] * 3, [0.90] * 3, [0.80] * 3, [0.80] * 3, margin=0.07)
    assert words(steady) == {"full": "non-inferior", "random": "better", "frame_count": "better"}
    unsteady = compare([0.90] * 3, [0.98, 0.90, 0.82], [0.70] * 3, [0.62, 0.98, 0.80], margin=0.07)
    assert words(unsteady) == {"full": "cannot tell", "random": "better", "frame_count": "cannot tell"}


def test_what_is_told():
    found = compare([0.97] * 2, [0.97] * 2, [0.80] * 2, [0.97] * 2)
    full, random, frame_count = found["verdicts"]
    assert full["text"] == "net: half is non-inferior to the full set."
    assert random["text"] == "net: half is better than a random set of the same size."
    assert frame_count["text"] == (
        "net: it cannot be told whether half is better than as many videos chosen by their number of faces."
    )
    assert (full["margin"], random["margin"]) == (0.05, None)
    assert random["difference"] == pytest.approx(0.17, abs=0.005)
    assert random["low"] < random["difference"] < random["high"]
    (_, row, _, _) = found["summary"]
    assert row | {"accuracy_low": 0, "accuracy_high": 0, "auc_mean": 0, "auc_low": 0, "auc_high": 0} == {
        "architecture": "net",
        "set": "half",
        "kind": "distilled",
        "share": 0.5,
        "num_videos": 10,
        "num_faces": 100,
        "num_seeds": 2,
        "accuracy_mean": pytest.approx(0.97, abs=0.003),
        "accuracy_low": 0,
        "accuracy_high": 0,
        "auc_mean": 0,
        "auc_low": 0,
        "auc_high": 0,
        "precision": None,
        "recall": 0.97,
        "f1": None,
        "images": 300,
        "seconds": 1.5,
        "gpu_seconds": 0.0,
    }
    assert row["accuracy_low"] < row["accuracy_mean"] < row["accuracy_high"]
    assert found["curve"] == []


def test_one_seed_is_said():
    found = compare([0.97], [0.97], [0.80], [0.97])
    assert all(
        one["text"].endswith("With one seed, the variation from training to training is not covered.")
        for one in found["verdicts"]
    )
    assert words(found)["random"] == "better"


def test_few_groups_cannot_tell():
    groups = np.repeat([f"g{number}" for number in range(5)], 48).astype(object)
    found = compare([0.97] * 3, [0.97] * 3, [0.60] * 3, [0.60] * 3, group_id_V=groups)
    assert set(words(found).values()) == {"cannot tell"}
    assert "The test split has 5 groups, at least 6 are needed." in found["verdicts"][0]["text"]


@pytest.mark.slow
def test_an_auc_rests_on_the_groups_of_the_smaller_class():
    groups = GROUPS.copy()
    groups[(LABELS == 0) & (np.arange(len(groups)) >= 20)] = "g00"
    for metric, is_told in (("accuracy", True), ("auc", False)):
        found = compare([0.97] * 3, [0.97] * 3, [0.60] * 3, [0.60] * 3, group_id_V=groups, metric=metric)
        assert (words(found)["random"] == "better") == is_told
    assert "The test split has 5 groups of one class, at least 6 are needed." in found["verdicts"][0]["text"]


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["accuracy", "auc"])
def test_sets_that_teach_nothing_are_not_called_equal(metric):
    """Half of the videos wrong, whatever they learnt from: the same, and of no use."""
    found = compare([0.5] * 3, [0.5] * 3, [0.95] * 3, [0.5] * 3, margin=0.3, metric=metric)
    assert words(found) == {"full": "cannot tell", "random": "worse", "frame_count": "cannot tell"}
    told = [
        one["text"].endswith("neither set does it tell real from fake better than chance.") for one in found["verdicts"]
    ]
    assert told == [True, False, True]


@pytest.mark.slow
def test_a_test_that_is_too_easy_tells_only_what_its_size_allows():
    """60 groups without an error: up to 3 / 60 may be wrong elsewhere."""
    for margin, expected in ((0.04, "cannot tell"), (0.06, "non-inferior")):
        found = compare([1.0] * 3, [1.0] * 3, [1.0] * 3, [1.0] * 3, margin=margin)
        assert words(found) == {"full": expected, "random": "cannot tell", "frame_count": "cannot tell"}
    assert (found["verdicts"][0]["low"], found["verdicts"][0]["high"]) == (-0.05, 0.05)
    assert (found["summary"][0]["accuracy_low"], found["summary"][0]["accuracy_high"]) == (0.95, 1.0)


def test_the_curve_is_of_faces_and_of_the_full_set():
    runs = tried("full", "full", [0.95] * 2) + tried("faces-100", "faces", [0.8] * 2)
    found = comparison.compare(runs, LABELS, GROUPS, "accuracy", 0.02)
    assert found["verdicts"] == []
    assert [(row["num_faces"], round(row["accuracy_mean"], 2)) for row in found["curve"]] == [(100, 0.95), (100, 0.8)]
    assert set(found["curve"][0]) == {"architecture", "num_faces", "accuracy_mean", "accuracy_low", "accuracy_high"}


def test_hierarchical_bootstrap_against_loops():
    """Seeds and groups drawn one by one, the metric counted by hand: the same distribution. It has steps of 1 / 96."""
    rng = np.random.default_rng(0)
    labels, groups = LABELS[:48], GROUPS[:48]
    runs = tried("half", "distilled", [0.95, 0.80, 0.65], labels=labels)
    is_right_SV = np.stack([(one.probability_V > one.threshold) == (labels == 1) for one in runs])
    names = np.unique(groups)
    by_hand = []
    for _ in range(4000):
        videos = np.concatenate([np.flatnonzero(groups == name) for name in rng.choice(names, len(names))])
        by_hand.append(np.mean([is_right_SV[seed][videos].mean() for seed in rng.choice(3, 2)]))
    weight_BV = comparison.resampled_weights(groups, 4000)
    value_SB = comparison.measure("accuracy", labels, runs, weight_BV)
    assert value_SB[:, 0] == pytest.approx(is_right_SV.mean(axis=1))
    found = comparison.mean_over_seeds(value_SB, len(names), "half")
    assert found.value == pytest.approx(is_right_SV.mean())
    assert found.interval(0, 1) == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])), abs=2 / 96)
    assert found.value_B.std() == pytest.approx(np.std(by_hand), rel=0.05)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_the_variance_of_a_mean_of_few_seeds_is_not_too_small(num_seeds):
    """Without any uncertainty of the test videos it is s^2 / S."""
    value_S = np.random.default_rng(num_seeds).normal(0.9, 0.02, num_seeds)
    found = comparison.mean_over_seeds(np.tile(value_S[:, None], 200_001), 50, "half")
    assert found.value_B.var() == pytest.approx(value_S.var(ddof=1) / num_seeds, rel=0.02)


def test_differences_are_paired_on_groups():
    """Two detectors with the same mistakes differ by nothing, whichever groups are drawn."""
    one = tried("half", "distilled", [0.7])
    weight_BV = comparison.resampled_weights(GROUPS, 200)
    drawn = comparison.mean_over_seeds(comparison.measure("accuracy", LABELS, one, weight_BV), 60, "half")
    assert drawn.value_B.std() > 0.01
    assert not drawn.minus(drawn).value_B.any()


def test_undefined_resamples_are_left_out():
    value_B = np.array([np.nan, 0.5, 0.7, np.nan])
    assert Draws(0.6, value_B, 2, 9).interval(0, 1) == pytest.approx((0.505, 0.695))
    assert Draws(np.nan, np.full(3, np.nan), 2, 9).interval(-1, 1) == (-1, 1)
