import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as peer

from raydistal.detector import metrics
from raydistal.detector.metrics import Measured, aggregate, choose_threshold, measure

NAN = float("nan")
PROBABILITY = st.integers(0, 20).map(lambda number: number / 20) | st.floats(0, 1, width=32)
ROWS = st.lists(st.tuples(st.integers(0, 1), PROBABILITY, st.integers(0, 3)), min_size=1, max_size=40)
BOTH = ROWS.filter(lambda rows: {label for label, _, weight in rows if weight} == {0, 1})


def columns(rows):
    label_N, probability_N, weight_N = zip(*rows, strict=True)
    return np.array(label_N), np.array(probability_N, np.float64), np.array([weight_N], np.float64)


def one(label_N, probability_N, threshold=0.5):
    """The metrics of equally weighted rows."""
    label_N, probability_N = np.asarray(label_N), np.asarray(probability_N, np.float64)
    found = measure(label_N, probability_N, threshold, np.ones((1, len(label_N))))
    return {name: float(value_B[0]) for name, value_B in found.items()}


@pytest.mark.slow
@given(BOTH, PROBABILITY)
def test_every_metric_is_that_of_scikit_learn(rows, threshold):
    label_N, probability_N, weight_1N = columns(rows)
    found = {name: value_B[0] for name, value_B in measure(label_N, probability_N, threshold, weight_1N).items()}
    called_N, weights = (probability_N > threshold).astype(int), {"sample_weight": weight_1N[0]}
    tn, fp, fn, tp = peer.confusion_matrix(label_N, called_N, labels=[0, 1], **weights).ravel()
    assert (found["tn"], found["fp"], found["fn"], found["tp"]) == (tn, fp, fn, tp)
    clipped_N = np.clip(probability_N, 1e-7, 1 - 1e-7)
    expected = {
        "accuracy": peer.accuracy_score(label_N, called_N, **weights),
        "balanced_accuracy": peer.balanced_accuracy_score(label_N, called_N, **weights),
        "precision": peer.precision_score(label_N, called_N, zero_division=np.nan, **weights),
        "recall": peer.recall_score(label_N, called_N, **weights),
        "f1": peer.f1_score(label_N, called_N, **weights),
        "auc": peer.roc_auc_score(label_N, probability_N, **weights),
        "ap": peer.average_precision_score(label_N, probability_N, **weights),
        "eer": equal_error(*peer.roc_curve(label_N, probability_N, drop_intermediate=False, **weights)[:2]),
        "log_loss": peer.log_loss(label_N, clipped_N, **weights),
        "brier": peer.brier_score_loss(label_N, probability_N, **weights),
        "ece": calibration_error(label_N, probability_N, weight_1N[0]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9, nan_ok=True)


def equal_error(fpr_P, tpr_P):
    """The usual recipe: the root of 1 - x = tpr(x), from the curve with x and y turned so that it is a function."""
    s_P = fpr_P + tpr_P  # grows along the curve
    gap = interp1d(s_P, 1 - tpr_P - fpr_P)
    return float(interp1d(s_P, fpr_P)(brentq(gap, 0, 2, xtol=1e-14)))


def calibration_error(label_N, probability_N, weight_N):
    """Guo et al. 2017, equation 3, bin by bin."""
    total = 0.0
    for number in range(15):
        is_in_N = (probability_N >= number / 15) & ((probability_N < (number + 1) / 15) | (number == 14))
        total += abs((weight_N * (probability_N - label_N))[is_in_N].sum())
    return total / weight_N.sum()


def test_equal_error_rate_by_hand():
    # Points of the curve (fpr, fnr): (0, 1) (0, 2/3) (1/3, 2/3) (1/3, 1/3) ...
    assert one([1, 0, 1, 0, 1, 0], [0.9, 0.8, 0.7, 0.4, 0.3, 0.1])["eer"] == pytest.approx(1 / 3)
    assert one([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])["eer"] == 0
    assert one([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9])["eer"] == 1
    assert one([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5])["eer"] == 0.5
    # From (0, 1) straight to (1/2, 0) through fpr = fnr = 1/3: a fake and one of two real rows tie.
    assert one([1, 0, 0], [0.9, 0.9, 0.1])["eer"] == pytest.approx(1 / 3)


def test_a_table_by_hand():
    found = one([0, 0, 1, 1, 1], [0.1, 0.7, 0.4, 0.6, 1.0], threshold=0.5)
    assert found == pytest.approx(
        {
            "accuracy": 3 / 5,
            "balanced_accuracy": (1 / 2 + 2 / 3) / 2,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "f1": 2 / 3,
            "tn": 1,
            "fp": 1,
            "fn": 1,
            "tp": 2,
            "auc": 4 / 6,  # of the six pairs, 0.7 stands above 0.4 and above 0.6
            "ap": (1 + 2 / 3 + 3 / 4) / 3,
            "eer": 1 / 2,  # the curve goes up at fpr = 1/2, from tpr = 1/3 to 1
            "log_loss": -(np.log(0.9) + np.log(0.3) + np.log(0.4) + np.log(0.6) + np.log(1 - 1e-7)) / 5,
            "brier": (0.01 + 0.49 + 0.36 + 0.16) / 5,
            "ece": (0.1 + 0.7 + 0.6 + 0.4) / 5,
        }
    )


def test_what_is_not_defined_is_nan():
    of_fakes = one([1, 1], [0.2, 0.9])
    undefined = ("balanced_accuracy", "auc", "ap", "eer")
    assert {name for name, value in of_fakes.items() if math.isnan(value)} == set(undefined)
    assert (of_fakes["recall"], of_fakes["precision"], of_fakes["accuracy"]) == (0.5, 1, 0.5)
    of_reals = one([0, 0], [0.2, 0.4])
    assert {name for name, value in of_reals.items() if math.isnan(value)} == {*undefined, "precision", "recall", "f1"}
    of_none = one([], [])
    assert {name for name, value in of_none.items() if math.isnan(value)} == set(of_none) - {"tn", "fp", "fn", "tp"}


def test_unsure_is_half_where_measured_and_wrong_where_decided():
    label_N, unsure_N, half_N = [0, 1, 0, 1], [0.1, 0.9, NAN, NAN], [0.1, 0.9, 0.5, 0.5]
    found, half = one(label_N, unsure_N, 0.3), one(label_N, half_N, 0.3)
    assert {name: found[name] for name in ("tn", "fp", "fn", "tp", "accuracy")} == {
        "tn": 1,
        "fp": 1,
        "fn": 1,
        "tp": 1,
        "accuracy": 0.5,
    }
    for name in ("auc", "ap", "eer", "log_loss", "brier", "ece"):
        assert found[name] == half[name]
    weight_1N = np.ones((1, 4))
    label_N, unsure_N = np.array(label_N), np.array(unsure_N)
    assert metrics.weighted_accuracy(label_N, unsure_N, 0.7, weight_1N) == [0.5]
    assert metrics.weighted_auc(label_N, unsure_N, weight_1N) == [0.875]


def test_a_threshold_between_neighbours_of_float32_is_not_rounded():
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    probability_N = np.array([low, high], np.float32)
    assert one([0, 1], probability_N, choose_threshold(np.array([0, 1]), probability_N))["accuracy"] == 1


def confident(frames):
    """As told in words, one video at a time."""
    frames = np.array(frames)
    fake, real = frames[frames > 0.8], frames[frames < 0.2]
    if len(fake) >= 2 and len(fake) / len(frames) > 0.4:
        return fake.mean()
    return real.mean() if len(real) / len(frames) > 0.9 else frames.mean()


@given(st.lists(st.lists(PROBABILITY, max_size=12), max_size=8), st.randoms())
def test_aggregation(videos, random):
    frames = [(probability, number) for number, frames in enumerate(videos) for probability in frames]
    random.shuffle(frames)  # the order of frames does not matter
    probability_N, video_N = np.array(frames).reshape(-1, 2).T
    ways = {"mean": np.mean, "max": np.max, "confident": confident}
    for how, way in ways.items():
        expected = [way(frames) if frames else NAN for frames in videos]
        found = aggregate(probability_N, video_N.astype(int), len(videos), how)
        np.testing.assert_allclose(found, np.array(expected, float), rtol=1e-12)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([0.9, 0.1], 0.5),  # one frame of two does not speak alone
        ([0.9], 0.9),
        ([0.9, 0.9, 0.1, 0.1, 0.1], 0.42),  # 40 % is not more than 40 %
        ([0.9, 0.9, 0.1, 0.1], 0.9),
        ([0.1] * 9 + [0.5], 0.14),  # 90 % is not more than 90 %
        ([0.1] * 19 + [0.5], 0.1),
        ([0.8, 0.8, 0.8], 0.8),
    ],
)
def test_confident_aggregation_by_hand(frames, expected):
    found = aggregate(np.array(frames), np.zeros(len(frames), int), 1, "confident")
    assert found == pytest.approx([expected])


def test_many_videos_are_aggregated_at_once():
    rng = np.random.default_rng(0)
    probability_N, video_N = rng.random(1_000_000), rng.integers(0, 100_000, 1_000_000)
    found = aggregate(probability_N, video_N, 100_000, "max")
    assert found[7] == probability_N[video_N == 7].max()


@pytest.mark.slow
@given(BOTH)
def test_the_threshold_has_the_best_balanced_accuracy(rows):
    label_N, probability_N, _ = columns([(label, probability, 1) for label, probability, _ in rows])
    threshold = choose_threshold(label_N, probability_N)

    def balanced(threshold):
        return peer.balanced_accuracy_score(label_N, probability_N > threshold)

    assert 0 <= threshold <= 1
    edges = np.unique([0, 1, *probability_N])
    middles = (edges[:-1] + edges[1:]) / 2
    scores = [balanced(middle) for middle in middles]
    assert balanced(threshold) == pytest.approx(max(scores))
    best = middles[np.isclose(scores, max(scores), atol=1e-12)]
    assert abs(threshold - 0.5) == pytest.approx(np.abs(best - 0.5).min(), abs=1e-9)


@pytest.mark.parametrize(
    ("label", "probability", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9], 0.25),
        ([0, 1, 0, 1], [0.1, 0.2, 0.6, 0.9], 0.75),  # as good as 0.15, and nearer to 0.5
        ([0, 1], [0.0, 1.0], 0.5),
        ([1, 0], [0.4, 0.8], 0.2),  # upside down: all are called fake
        ([0, 1, 1], [0.2, 0.8, NAN], 0.5),
    ],
)
def test_thresholds_by_hand(label, probability, expected):
    assert choose_threshold(np.array(label), np.array(probability)) == pytest.approx(expected)


def test_a_threshold_needs_both_classes():
    with pytest.raises(ValueError, match="real and fake"):
        choose_threshold(np.array([0, 1]), np.array([0.3, NAN]))


def drawn(*arguments, **options):
    """(B, V) weights, all at once."""
    return np.concatenate(list(metrics.bootstrap_weights(*arguments, **options).chunks()))


def test_resamples_are_of_whole_groups():
    groups = np.array(["b", "a", "c", "a", "b", "a"], object)
    weight_BV = drawn(groups, 500, 1)
    assert weight_BV.shape == (500, 6)
    for group in "abc":
        assert (weight_BV[:, groups == group] == weight_BV[:, groups == group][:, :1]).all()
    per_group_BG = weight_BV[:, [1, 0, 2]]
    assert (per_group_BG.sum(axis=1) == 3).all()
    # 3 draws of 3: a group is out of it with probability (2/3)^3 = 0.296
    assert (per_group_BG == 0).mean() == pytest.approx(8 / 27, abs=0.03)
    order = np.random.default_rng(0).permutation(6)
    np.testing.assert_array_equal(drawn(groups[order], 500, 1), weight_BV[:, order])
    assert (drawn(groups, 500, 2) != weight_BV).any()


def test_resamples_are_never_all_in_memory(monkeypatch):
    groups = np.array(["b", "a", "c", "a", "b", "a"], object)
    whole_BV = drawn(groups, 20, 1)
    first = np.bincount(np.random.default_rng(1).integers(3, size=3), minlength=3)  # of a, b and c
    assert whole_BV[0].tolist() == first[[1, 0, 2, 0, 1, 0]].tolist()
    monkeypatch.setattr(metrics, "CHUNK", 42)
    weights = metrics.bootstrap_weights(groups, 20, 1, after_original=True)
    assert [len(chunk_CV) for chunk_CV in weights.chunks()] == [1, 7, 7, 6]
    np.testing.assert_array_equal(np.concatenate(list(weights.chunks())), [np.ones(6), *whole_BV])
    mask = groups == "a"
    for rows in (mask, np.array([5, 0, 0, 2])):
        np.testing.assert_array_equal(np.concatenate(list(weights[:, rows].chunks()))[1:], whole_BV[:, rows])


def problem(num_groups=30, seed=0, frames=(2, 5)):
    """Videos: a real one and two fakes per group; frames of each."""
    rng = np.random.default_rng(seed)
    label_V = np.tile([0, 1, 1], num_groups)
    group_V = np.repeat([f"g{number:02}" for number in range(num_groups)], 3).astype(object)
    method_V = np.tile(np.array([None, "swap", None], object), num_groups)
    video_N = np.repeat(np.arange(len(label_V)), rng.integers(*frames, len(label_V)))
    shift_V = rng.normal(0, 0.1, num_groups).repeat(3)
    probability_N = np.clip(rng.normal(0.4 + 0.2 * label_V[video_N] + shift_V[video_N], 0.2), 0, 1).round(2)
    return label_V, group_V, method_V, video_N, probability_N


def test_intervals_are_those_of_copies():
    label_V, group_V, method_V, video_N, probability_N = problem()
    weight_BV = metrics.bootstrap_weights(group_V, 40, 3)
    made, num_skipped = metrics.measure_slices(
        label_V[video_N], probability_N, method_V[video_N], 0.45, video_N, weight_BV
    )
    draws = []
    for weight_V in drawn(group_V, 40, 3).astype(int):
        copied_N = np.repeat(np.arange(len(video_N)), weight_V[video_N])  # rows as often as their group was drawn
        label_M, probability_M, method_M = (
            label_V[video_N][copied_N],
            probability_N[copied_N],
            method_V[video_N][copied_N],
        )
        draw = {("all", name): value for name, value in one(label_M, probability_M, 0.45).items()}
        draw["real", "accuracy"] = one(label_M[label_M == 0], probability_M[label_M == 0], 0.45)["accuracy"]
        for name, method in (("swap", "swap"), ("unknown", None)):
            is_in_M = (label_M == 1) & (method_M == method)
            draw[name, "accuracy"] = one(label_M[is_in_M], probability_M[is_in_M], 0.45)["accuracy"]
            is_in_M |= label_M == 0
            draw[name, "auc"] = peer.roc_auc_score(label_M[is_in_M], probability_M[is_in_M])
        draws.append(draw)
    assert num_skipped == 0
    assert {(row.slice, row.metric) for row in made} == set(draws[0])
    for row in made:
        values = [draw[row.slice, row.metric] for draw in draws]
        assert (row.low, row.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-9), row
        assert row.low <= row.value <= row.high or row.metric == "ece"
    counts = {row.slice: row.num for row in made}
    label_N = label_V[video_N]
    assert counts["all"] == len(video_N)
    assert counts["real"] == (label_N == 0).sum()
    assert counts["swap"] + counts["unknown"] == (label_N == 1).sum()


def test_chunks_do_not_show(monkeypatch):
    label_V, group_V, method_V, video_N, probability_N = problem()
    weight_BV = metrics.bootstrap_weights(group_V, 50, 0)
    arguments = label_V[video_N], probability_N, method_V[video_N], 0.5, video_N, weight_BV
    whole, _ = metrics.measure_slices(*arguments)
    auc_B = metrics.weighted_auc(label_V[video_N], probability_N, weight_BV[:, video_N])
    monkeypatch.setattr(metrics, "CHUNK", 7 * len(video_N))
    for row, same in zip(metrics.measure_slices(*arguments)[0], whole, strict=True):
        assert row[:2] == same[:2]
        assert row[2:] == pytest.approx(same[2:], rel=1e-12)  # sums of another order
    chunked_B = metrics.weighted_auc(label_V[video_N], probability_N, weight_BV[:, video_N])
    np.testing.assert_allclose(chunked_B, auc_B, rtol=1e-12)
    expected = measure(label_V[video_N], probability_N, 0.5, drawn(group_V, 50, 0)[:, video_N])
    np.testing.assert_allclose(auc_B, expected["auc"], rtol=1e-12)
    accuracy_B = metrics.weighted_accuracy(label_V[video_N], probability_N, 0.5, weight_BV[:, video_N])
    np.testing.assert_allclose(accuracy_B, expected["accuracy"], rtol=1e-12)


def test_resamples_without_a_class_are_counted_and_left_out():
    label_N, probability_N, video_N = np.array([0, 1, 1]), np.array([0.2, 0.9, 0.4]), np.arange(3)
    weight_BV = np.array([[1, 1, 1], [3, 0, 0], [0, 1, 2], [2, 0, 1]], np.int16)
    made, num_skipped = metrics.measure_slices(label_N, probability_N, np.array([None] * 3), 0.5, video_N, weight_BV)
    found = {(row.slice, row.metric): row for row in made}
    assert num_skipped == 2
    low, high = np.quantile([2 / 3, 1, 1 / 3, 2 / 3], [0.025, 0.975])
    assert found["all", "accuracy"] == Measured("all", "accuracy", 2 / 3, pytest.approx(low), pytest.approx(high), 3)
    assert found["all", "auc"] == Measured("all", "auc", 1.0, None, None, 3)  # never less


def test_a_slice_of_one_group_has_no_interval():
    label_V, group_V = np.tile([0, 1], 10), np.repeat([f"g{number}" for number in range(10)], 2)
    method_V = np.array([None, "swap"] * 9 + [None, "rare"], object)
    probability_V = np.random.default_rng(0).random(20)
    weight_BV = metrics.bootstrap_weights(group_V, 100, 0)
    made, _ = metrics.measure_slices(label_V, probability_V, method_V, 0.5, np.arange(20), weight_BV)
    assert [row.low is None for row in made if row.metric == "accuracy"] == [False, False, True, False]
    assert [row.slice for row in made if row.metric == "accuracy"] == ["all", "real", "rare", "swap"]


def test_one_group_has_no_interval_and_one_class_no_value():
    label_N, probability_N, video_N = np.array([1, 1]), np.array([0.2, 0.9]), np.arange(2)
    weight_BV = metrics.bootstrap_weights(["a", "a"], 100, 0)
    made, num_skipped = metrics.measure_slices(label_N, probability_N, np.array(["x", "x"]), 0.5, video_N, weight_BV)
    found = {(row.slice, row.metric): row for row in made}
    assert num_skipped == 100
    assert found["all", "auc"] == Measured("all", "auc", None, None, None, 2)
    assert found["all", "accuracy"] == Measured("all", "accuracy", 0.5, None, None, 2)
    assert found["real", "accuracy"] == Measured("real", "accuracy", None, None, None, 0)
    assert found["x", "accuracy"] == Measured("x", "accuracy", 0.5, None, None, 2)


@pytest.mark.slow
def test_intervals_by_group_are_honest_and_those_by_frame_are_not():
    """Frames of a video are alike: of 100 data sets, about 95 intervals should hold the truth."""
    truth, held = 0.5, {"group": 0, "frame": 0}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        label_V = np.tile([0, 1], 40)
        video_N = np.repeat(np.arange(80), 10)
        probability_N = rng.random(80)[video_N] + rng.normal(0, 0.01, 800)  # no detector: the AUC is 0.5
        for unit, group_V in (("group", np.arange(80) // 2), ("frame", None)):
            rows = np.arange(800) if group_V is None else group_V[video_N]
            weight_BN = metrics.bootstrap_weights(rows, 200, seed)
            auc_B = metrics.weighted_auc(label_V[video_N], probability_N, weight_BN)
            low, high = np.quantile(auc_B, [0.025, 0.975])
            held[unit] += low <= truth <= high
    assert held["group"] >= 88
    assert held["frame"] <= 70


def test_worst_frames():
    label_V, probability_V = np.array([0, 1, 0, 1, 1]), np.array([0.7, 0.2, 0.9, 0.8, NAN])
    video_N = np.array([0, 0, 1, 1, 2, 3, 3])
    frame_N = np.array([0.6, 0.8, 0.3, 0.1, 0.9, 0.6, 1.0])
    # Wrong by 0.9 (video 2), 0.8 (video 1) and 0.7 (video 0); video 3 is right, 4 has no face.
    assert metrics.worst_frames(label_V, probability_V, 0.5, frame_N, video_N, 12).tolist() == [4, 3, 1]
    assert metrics.worst_frames(label_V, probability_V, 0.5, frame_N, video_N, 2).tolist() == [4, 3]
    assert metrics.worst_frames(label_V, probability_V, 0.15, frame_N, video_N, 12).tolist() == [4, 1]


def test_roc_is_thinned_and_keeps_its_area():
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 2, 20_000)
    probability_N = rng.normal(label_N, 1)
    probability_N = (probability_N - probability_N.min()) / np.ptp(probability_N)
    fpr_P, tpr_P = metrics.roc(label_N, probability_N)
    assert 100 < len(fpr_P) <= 200
    assert (fpr_P[0], tpr_P[0], fpr_P[-1], tpr_P[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr_P) >= 0).all()
    assert (np.diff(tpr_P) >= 0).all()
    assert np.trapezoid(tpr_P, fpr_P) == pytest.approx(one(label_N, probability_N)["auc"], abs=1e-3)
    assert [len(part) for part in metrics.roc(np.ones(3, int), np.zeros(3))] == [0, 0]
    fpr_P, tpr_P = metrics.roc(np.array([0, 1]), np.array([0.1, NAN]))
    assert (fpr_P.tolist(), tpr_P.tolist()) == ([0, 0, 1], [0, 1, 1])


@given(ROWS)
def test_reliability_sums_to_the_calibration_error(rows):
    label_N, probability_N, _ = columns(rows)
    mean_K, share_K, num_K = metrics.reliability(label_N, probability_N)
    assert num_K.sum() == len(label_N)
    assert (num_K > 0).all()
    error = (num_K * np.abs(mean_K - share_K)).sum() / num_K.sum()
    assert error == pytest.approx(one(label_N, probability_N)["ece"], abs=1e-9)


def test_reliability_by_hand():
    mean_K, share_K, num_K = metrics.reliability(np.array([0, 1, 1, 1]), np.array([0.1, 0.3, 1.0, 0.8]), num_bins=2)
    np.testing.assert_allclose(mean_K, [0.2, 0.9])
    assert (share_K.tolist(), num_K.tolist()) == ([0.5, 1.0], [2, 2])
