"""Metrics of a detector from its probabilities, with intervals that take account of groups of videos.

N rows (videos or frames), V videos, B resamples, U distinct probabilities. label 1 = fake, the positive class; a row is
called fake when its probability is above the threshold.

A probability of NaN stands for a video without a usable face: it counts as 0.5 where a probability is measured (AUC,
log-loss ..., as in SelfBlendedImages), and as an error where a decision is, whatever its class. So a detector gains
nothing from videos that it cannot judge. Leave such rows out to measure the others alone.

Every measure takes weights and gives one value per set of weights: the cluster bootstrap (Field and Welsh 2007), which
draws whole groups with replacement, is nothing but weighting each row by how often its group was drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

Aggregate: TypeAlias = Literal["mean", "max", "confident"]
Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]
Float64s = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.number]
Weights: TypeAlias = "npt.NDArray[np.number] | Resamples"

CLIP = 1e-7  # log-loss: probabilities stay this far from 0 and 1, so one certain error costs 16 and not infinity
NUM_BINS = 15  # ECE, as Guo et al. 2017
NUM_POINTS = 200  # of a curve
SAME = 1e-9  # values of resamples that differ by no more are the same, but for rounding
CHUNK = 1 << 20  # weights at a time: 8 MB, which fit into the cache


class Measured(NamedTuple):
    """A number on a slice of the rows: all, real, or the fakes of a method. None where it is not defined."""

    slice: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    num: int  # rows of the slice


def aggregate(frame_probability_N: Floats, video_N: Ints, num_videos: int, how: Aggregate) -> Float64s:
    """(V,) probability of each video from those of its frames; NaN for a video without frames.

    mean, max, or confident, after the winner of the DFDC (selimsef): if more than 40 % of the frames have p > 0.8, the
    mean of those; else if more than 90 % have p < 0.2, the mean of those; else the mean. The winner, with 32 frames,
    also requires 12 with p > 0.8; here it is two, so that one of several frames never decides alone.

    Args:
        frame_probability_N: frames of all videos.
        video_N: the video of each, from 0.
        num_videos: V.
        how: see above.
    """
    probability_N = frame_probability_N.astype(np.float64)

    def count_and_mean(chosen_N: npt.NDArray[np.bool_] | slice) -> tuple[Ints, Float64s]:
        num_V = np.bincount(video_N[chosen_N], minlength=num_videos)
        total_V = np.bincount(video_N[chosen_N], probability_N[chosen_N], minlength=num_videos)
        return num_V, np.divide(total_V, num_V, out=np.full(num_videos, np.nan), where=num_V > 0)

    num_V, mean_V = count_and_mean(slice(None))
    if how == "mean":
        return mean_V
    if how == "max":
        max_V = np.full(num_videos, -np.inf)
        np.maximum.at(max_V, video_N, probability_N)
        return np.where(num_V > 0, max_V, np.nan)
    num_fake_V, fake_V = count_and_mean(probability_N > 0.8)
    num_real_V, real_V = count_and_mean(probability_N < 0.2)
    is_fake_V, is_real_V = (5 * num_fake_V > 2 * num_V) & (num_fake_V >= 2), 10 * num_real_V > 9 * num_V
    return np.select([is_fake_V, is_real_V], [fake_V, real_V], mean_V)


def choose_threshold(label_N: Ints, probability_N: Floats) -> float:
    """The threshold of the best balanced accuracy (the largest Youden's J); of equals, the one nearest to 0.5.

    It lies halfway between neighbouring probabilities, among which 0 and 1 always count. Rows of NaN are left out.

    Raises:
        ValueError: one of the classes is missing.
    """
    is_known_N = ~np.isnan(probability_N)
    label_N, probability_N = label_N[is_known_N], probability_N[is_known_N].astype(np.float64)
    if len(np.unique(label_N)) < 2:
        raise ValueError("a threshold needs real and fake rows")
    edge_E = np.unique(np.append(probability_N, [0.0, 1.0]))
    middle_T = edge_E[:-1] + np.diff(edge_E) / 2
    threshold_T = np.where(middle_T < edge_E[1:], middle_T, edge_E[:-1])  # neighbours in float64 have no middle
    num_real_T, num_fake_T = (
        np.searchsorted(np.sort(probability_N[label_N == label]), threshold_T, side="right") for label in (0, 1)
    )
    num_real, num_fake = np.bincount(label_N)
    score_T = num_real_T * num_fake - num_fake_T * num_real  # J scaled to whole numbers: ties are exact
    best_T = threshold_T[score_T == score_T.max()]
    return float(best_T[np.argmin(np.abs(best_T - 0.5))])


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """(B, N) weights: how often each row is in each resample of whole groups with replacement.

    Drawn anew whenever they are read, some resamples at a time: 2000 of 100,000 videos would take 400 MB. `weights[:,
    rows]` are those of other rows, by number or as a mask, as of an array.
    """

    group_N: Ints
    """The group of each row, from 0."""
    num_groups: int
    num: int
    seed: int
    after_original: bool = False
    """Number 0 is no resample: each row once."""

    def __getitem__(self, index: tuple[slice, Ints | npt.NDArray[np.bool_]]) -> "Resamples":
        every, rows = index
        if every != slice(None):
            raise IndexError("resamples are read in order, all of them")
        return replace(self, group_N=self.group_N[rows])

    def chunks(self) -> Iterator[Float64s]:
        """(C, N) at a time, in order."""
        if self.after_original:
            yield np.ones((1, len(self.group_N)))
        rng, num_groups = np.random.default_rng(self.seed), self.num_groups
        size = max(1, CHUNK // max(1, num_groups, len(self.group_N)))
        for start in range(0, self.num, size):
            drawn_CG = rng.integers(num_groups, size=(min(size, self.num - start), num_groups))
            drawn_CG += num_groups * np.arange(len(drawn_CG))[:, None]  # of each resample its own numbers, to count all
            count_CG = np.bincount(drawn_CG.ravel(), minlength=drawn_CG.size).reshape(drawn_CG.shape)
            yield count_CG[:, self.group_N].astype(np.float64)


def bootstrap_weights(
    group_id_V: Sequence[str] | npt.NDArray[np.object_], num: int, seed: int, after_original: bool = False
) -> Resamples:
    """`num` resamples of the videos, by whole groups; with `after_original`, after the videos as they are.

    Depends on the seed and the names of the groups, not on the order of the videos: detectors measured on the same
    videos get the same draws, so their differences are paired.
    """
    name_G, group_V = np.unique(np.asarray(group_id_V, object), return_inverse=True)
    return Resamples(group_N=group_V, num_groups=len(name_G), num=num, seed=seed, after_original=after_original)


def weighted_auc(label_N: Ints, probability_N: Floats, weight_BN: Weights) -> Float64s:
    """(B,) area under the ROC curve: share of (real, fake) pairs in order, ties half. NaN without both classes."""
    is_fake_N1 = label_N[:, None] == 1
    chunks = _chunks(weight_BN)
    return np.concatenate([_auc(_rank(label_N, probability_N, chunk), chunk, is_fake_N1)[:, 0] for chunk in chunks])


def weighted_accuracy(label_N: Ints, probability_N: Floats, threshold: float, weight_BN: Weights) -> Float64s:
    """(B,) share of the rows called right; NaN without rows."""
    is_right_N = _is_called_fake(label_N, probability_N, threshold) == (label_N == 1)
    return np.concatenate([_mean(is_right_N, weight_CN) for weight_CN in _chunks(weight_BN)])


def measure(label_N: Ints, probability_N: Floats, threshold: float, weight_BN: Numbers) -> dict[str, Float64s]:
    """Every metric, (B,) values each, NaN where it is not defined. Takes some ten times the memory of the weights.

    At the threshold: accuracy, balanced_accuracy, precision, recall, f1, and the confusion counts tn, fp, fn, tp.
    Of the ranking, with both classes: auc; ap (average precision, no interpolation); eer (where the straight lines
    between the points of the ROC curve cross fpr = fnr). Of the probabilities: log_loss (clipped to [1e-7, 1 - 1e-7]);
    brier; ece (15 bins of equal width, as `reliability`).
    """
    is_called_fake_N = _is_called_fake(label_N, probability_N, threshold)
    tn, fp, fn, tp = (
        weight_BN @ ((label_N == label) & (is_called_fake_N == called)).astype(np.float64)
        for label in (0, 1)
        for called in (False, True)
    )
    certainty_N = _unsure_as_half(probability_N)
    error_N = certainty_N - label_N
    ranked = _rank(label_N, probability_N, weight_BN)
    excess_NK = np.where(_bin(certainty_N, NUM_BINS)[:, None] == np.arange(NUM_BINS), error_N[:, None], 0.0)
    loss_N = -np.log(np.clip(np.where(label_N == 1, certainty_N, 1 - certainty_N), CLIP, 1 - CLIP))
    return {
        "accuracy": _divide(tn + tp, tn + fp + fn + tp),
        "balanced_accuracy": (_divide(tn, tn + fp) + _divide(tp, tp + fn)) / 2,
        "precision": _divide(tp, tp + fp),
        "recall": _divide(tp, tp + fn),
        "f1": _divide(2 * tp, 2 * tp + fp + fn),
        **{"tn": tn, "fp": fp, "fn": fn, "tp": tp},
        "auc": _auc(ranked, weight_BN, label_N[:, None] == 1)[:, 0],
        "ap": _average_precision(ranked),
        "eer": _equal_error(ranked),
        "log_loss": _mean(loss_N, weight_BN),
        "brier": _mean(error_N**2, weight_BN),
        "ece": _divide(np.abs(weight_BN @ excess_NK).sum(axis=1), weight_BN.sum(axis=1)),
    }


def measure_slices(
    label_N: Ints,
    probability_N: Floats,
    method_N: npt.NDArray[np.object_],
    threshold: float,
    video_N: Ints,
    weight_BV: Weights,
) -> tuple[list[Measured], int]:
    """Every metric on all rows; the accuracy of the real rows, and that of the fakes of each method (as in the thesis,
    6.2.1); the AUC of each method against all real rows.

    With 95 % percentile intervals over the resamples in which the metric is defined; none where all resamples agree, as
    with one group or without a mistake: what never happened in them may still happen. The interval of ECE lies high: by
    chance alone, a resample looks worse calibrated.

    Args:
        label_N: 0 or 1.
        probability_N: NaN where unsure, see above.
        method_N: of each fake; None becomes "unknown".
        threshold: chosen on other videos.
        video_N: the video of each row, from 0.
        weight_BV: from `bootstrap_weights`; the same for videos and for their frames.

    Returns:
        The metrics, and the number of resamples without both classes, in which what needs both is not defined.
    """
    order = np.argsort(-_unsure_as_half(probability_N), kind="stable")  # once, as sorting sorted rows again is quick
    label_N, probability_N, video_N = label_N[order], probability_N[order], video_N[order]
    method_N = np.array([method or "unknown" for method in method_N[order]], object)
    methods = np.unique(method_N[label_N == 1])
    slice_NS = np.column_stack([label_N == 0, (label_N[:, None] == 1) & (method_N[:, None] == methods)])
    names = ["real", *map(str, methods)]
    num = {"all": len(label_N), **dict(zip(names, slice_NS.sum(axis=0).tolist(), strict=True))}
    is_right_N = _is_called_fake(label_N, probability_N, threshold) == (label_N == 1)

    def measure_all(weight_BN: Float64s) -> dict[tuple[str, str], Float64s]:
        of_all = measure(label_N, probability_N, threshold, weight_BN)
        accuracy_BS = _divide(weight_BN @ (slice_NS * is_right_N[:, None]), weight_BN @ slice_NS)
        auc_BM = _auc(_rank(label_N, probability_N, weight_BN), weight_BN, slice_NS[:, 1:])
        return (
            {("all", metric): value_B for metric, value_B in of_all.items()}
            | {(name, "accuracy"): value_B for name, value_B in zip(names, accuracy_BS.T, strict=True)}
            | {(name, "auc"): value_B for name, value_B in zip(names[1:], auc_BM.T, strict=True)}
        )

    drawn = [measure_all(weight_CN) for weight_CN in _chunks(weight_BV[:, video_N])]
    made = []
    for (name, metric), (value,) in measure_all(np.ones((1, len(label_N)))).items():
        value_B = np.concatenate([np.empty(0), *(part[name, metric] for part in drawn)])
        value_B = value_B[~np.isnan(value_B)]
        has_spread = len(value_B) > 0 and np.ptp(value_B) > SAME
        low, high = np.quantile(value_B, [0.025, 0.975]) if has_spread else (np.nan, np.nan)
        made.append(Measured(name, metric, _or_none(value), _or_none(low), _or_none(high), num[name]))
    return made, sum(int(np.isnan(part["all", "auc"]).sum()) for part in drawn)


def worst_frames(
    label_V: Ints, probability_V: Floats, threshold: float, frame_probability_N: Floats, video_N: Ints, num: int
) -> Ints:
    """Rows of up to `num` frames: the worst one of each misclassified video, largest error of the video first.

    Videos and frames are ranked by |probability - label|.
    """
    is_wrong_V = ~np.isnan(probability_V) & (_is_called_fake(label_V, probability_V, threshold) != (label_V == 1))
    error_V, error_N = np.abs(probability_V - label_V), np.abs(frame_probability_N - label_V[video_N])
    rows = np.flatnonzero(is_wrong_V[video_N])
    rows = rows[np.lexsort((-error_N[rows], video_N[rows], -error_V[video_N[rows]]))]
    first = np.unique(video_N[rows], return_index=True)[1]
    return np.asarray(rows[np.sort(first)[:num]])


def roc(label_N: Ints, probability_N: Floats) -> tuple[Float64s, Float64s]:
    """False and true positive rates from (0, 0) to (1, 1), at most 200 along the curve; none without both classes."""
    if len(np.unique(label_N)) < 2:
        return np.empty(0), np.empty(0)
    fpr_P, tpr_P, _ = roc_curve(label_N, _unsure_as_half(probability_N))
    kept = np.unique(np.searchsorted(fpr_P + tpr_P, np.linspace(0, 2, NUM_POINTS)).clip(max=len(fpr_P) - 1))
    return fpr_P[kept], tpr_P[kept]


def reliability(label_N: Ints, probability_N: Floats, num_bins: int = NUM_BINS) -> tuple[Float64s, Float64s, Ints]:
    """Mean probability, share of fakes and number of rows of each bin of equal width that is not empty, in order."""
    certainty_N = _unsure_as_half(probability_N)
    bin_N = _bin(certainty_N, num_bins)
    num_K = np.bincount(bin_N, minlength=num_bins)
    is_there_K = num_K > 0
    mean_K, share_K = (np.bincount(bin_N, of_N, num_bins)[is_there_K] for of_N in (certainty_N, label_N))
    return mean_K / num_K[is_there_K], share_K / num_K[is_there_K], num_K[is_there_K]


class _Ranked(NamedTuple):
    """Rows by falling probability, and cumulative weights by distinct probability, preceded by a column of zeros."""

    order_N: Ints
    rank_N: Ints  # number of the distinct probability of each row, in that order
    real_BU: Float64s
    fake_BU: Float64s


def _rank(label_N: Ints, probability_N: Floats, weight_BN: Numbers) -> _Ranked:
    certainty_N = _unsure_as_half(probability_N)
    order_N = np.argsort(-certainty_N, kind="stable")
    is_last_N = np.diff(certainty_N[order_N], append=np.nan) != 0
    sorted_BN, is_fake_N = weight_BN[:, order_N], label_N[order_N] == 1
    start_B1 = np.zeros((len(weight_BN), 1))
    real_BU, fake_BU = (
        np.hstack([start_B1, np.cumsum(sorted_BN * is_in_N, axis=1)[:, is_last_N]])
        for is_in_N in (~is_fake_N, is_fake_N)
    )
    return _Ranked(order_N, np.cumsum(is_last_N) - is_last_N, real_BU, fake_BU)


def _auc(ranked: _Ranked, weight_BN: Numbers, fake_NS: npt.NDArray[np.bool_]) -> Float64s:
    """(B, S) for subsets of the fake rows, each against all real rows."""
    real_above_BU = (ranked.real_BU[:, :-1] + ranked.real_BU[:, 1:]) / 2
    above_BN = real_above_BU[:, ranked.rank_N] * weight_BN[:, ranked.order_N]
    num_pairs_BS = (weight_BN @ fake_NS.astype(np.float64)) * ranked.real_BU[:, -1:]
    return 1 - _divide(above_BN @ fake_NS[ranked.order_N].astype(np.float64), num_pairs_BS)


def _average_precision(ranked: _Ranked) -> Float64s:
    all_BU = ranked.real_BU + ranked.fake_BU
    precision_BU = np.divide(ranked.fake_BU, all_BU, out=np.zeros_like(all_BU), where=all_BU > 0)
    area_B = (np.diff(ranked.fake_BU) * precision_BU[:, 1:]).sum(axis=1)
    return np.where(ranked.real_BU[:, -1] > 0, _divide(area_B, ranked.fake_BU[:, -1]), np.nan)


def _equal_error(ranked: _Ranked) -> Float64s:
    fpr_BU, tpr_BU = (_divide(above_BU, above_BU[:, -1:]) for above_BU in (ranked.real_BU, ranked.fake_BU))
    gap_BU = 1 - tpr_BU - fpr_BU  # from 1 down to -1; NaN without both classes
    at_B1 = np.argmax(gap_BU <= 0, axis=1)[:, None]
    (gap_B, next_gap_B), (fpr_B, next_fpr_B) = (
        [np.take_along_axis(of_BU, at_B1 - back, axis=1)[:, 0] for back in (1, 0)] for of_BU in (gap_BU, fpr_BU)
    )
    return np.asarray(fpr_B + gap_B / (gap_B - next_gap_B) * (next_fpr_B - fpr_B))


def _chunks(weight_BN: Weights) -> Iterator[Float64s]:
    """(C, N) weights of some resamples at a time."""
    if isinstance(weight_BN, Resamples):
        yield from weight_BN.chunks()
        return
    size = max(1, CHUNK // max(1, weight_BN.shape[1]))
    for start in range(0, len(weight_BN), size):
        yield weight_BN[start : start + size].astype(np.float64)


def _is_called_fake(label_N: Ints, probability_N: Floats, threshold: float) -> npt.NDArray[np.bool_]:
    probability_N = probability_N.astype(np.float64)  # in float32, a threshold between neighbours would be lost
    return np.asarray(np.where(np.isnan(probability_N), label_N == 0, probability_N > threshold))


def _unsure_as_half(probability_N: Floats) -> Float64s:
    return np.where(np.isnan(probability_N), 0.5, probability_N.astype(np.float64))


def _bin(probability_N: Float64s, num_bins: int) -> Ints:
    return np.minimum((probability_N * num_bins).astype(np.int64), num_bins - 1)


def _mean(value_N: npt.NDArray[np.generic], weight_BN: Numbers) -> Float64s:
    return _divide(weight_BN @ value_N.astype(np.float64), weight_BN.sum(axis=1))


def _divide(part: Numbers, whole: Numbers) -> Float64s:
    """NaN where there is nothing to divide by."""
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
