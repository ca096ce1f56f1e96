"""Whether a distilled set does as well as the full one, and better than others of its size.

Detectors are trained on each set with several seeds and measured on the same test videos. The uncertainty of a mean
over seeds comes from a hierarchical bootstrap: of the trainings (seeds) and of the test videos (whole groups). All sets
share the draws of groups, so that differences are paired.

S seeds, V test videos, B resamples; number 0 of B + 1 is what was measured, not resampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from raydistal.detector.metrics import SAME, Weights, bootstrap_weights, weighted_accuracy, weighted_auc

Metric = Literal["accuracy", "auc"]
Versus = Literal["full", "random", "frame_count"]
Verdict = Literal["non-inferior", "inferior", "better", "worse", "cannot tell"]
Row = dict[str, Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]

METRICS: tuple[Metric, ...] = get_args(Metric)
NUM_RESAMPLES = 2000
MIN_GROUPS = 6  # of 5, no paired test can reach 5 %: even if all point the same way, chance does it in 2 of 32 cases
NAMES = {
    "full": "the full set",
    "random": "a random set of the same size",
    "frame_count": "as many videos chosen by their number of faces",
}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A trained detector and its results on the test videos."""

    row: Row
    """Of `schemas.COMPARISON`."""
    of: str = ""
    """The distilled set that its set is a control of."""
    threshold: float
    probability_V: Floats
    """NaN without a face, as in `metrics`."""


class Draws(NamedTuple):
    """A mean over seeds, or a difference of two, with its resamples."""

    value: float
    value_B: Floats
    """NaN where it is not defined: a resample without one of the classes has no AUC."""
    num_seeds: int
    num_groups: int
    """For AUC, those of the class that has fewer: see `count_groups`."""

    def minus(self, other: "Draws") -> "Draws":
        """The difference, resample by resample."""
        num_seeds, num_groups = min(self.num_seeds, other.num_seeds), min(self.num_groups, other.num_groups)
        return Draws(self.value - other.value, self.value_B - other.value_B, num_seeds, num_groups)

    @classmethod
    def mean(cls, some: Sequence["Draws"]) -> "Draws":
        """The mean of several, resample by resample."""
        num_seeds, num_groups = (min(getattr(one, name) for one in some) for name in ("num_seeds", "num_groups"))
        value, value_B = (np.mean([getattr(one, name) for one in some], axis=0) for name in ("value", "value_B"))
        return cls(float(value), value_B, num_seeds, num_groups)

    def interval(self, lowest: float, highest: float) -> tuple[float, float]:
        """Ends of the 95 % percentile interval, clipped to [lowest, highest].

        If all resamples agree, they say nothing about events that the test videos do not show. What happens in none
        of G groups may still happen in up to 3 / G of all (rule of three; Hanley and Lippman-Hand 1983).
        """
        value_B = self.value_B[~np.isnan(self.value_B)]
        if not len(value_B):
            return lowest, highest
        low, high = np.quantile(value_B, [0.025, 0.975])
        if np.ptp(value_B) <= SAME:
            low, high = low - 3 / self.num_groups, high + 3 / self.num_groups
        return max(lowest, float(low)), min(highest, float(high))


def compare(
    tried: Sequence[Tried], label_V: Ints, group_id_V: npt.NDArray[np.object_], metric: Metric, margin: float
) -> dict[str, list[Row]]:
    """The results over all detectors, as `comparison/_table.json` holds them.

    Returns:
        summary: a row per architecture and set: means over seeds, those of accuracy and AUC with 95 % intervals.
        verdicts: each distilled set against the full one and against its controls, by `metric`.
        curve: accuracy by number of training faces; empty unless some were trained on a given number.
    """
    weight_BV = resampled_weights(group_id_V)
    num_groups = {name: count_groups(name, label_V, group_id_V) for name in METRICS}
    sets: dict[tuple[str, str], list[Tried]] = {}
    for one in tried:
        sets.setdefault((one.row["architecture"], one.row["set"]), []).append(one)
    draws = {
        (*key, name): mean_over_seeds(measure(name, label_V, some, weight_BV), num_groups[name], "/".join(key))
        for key, some in sets.items()
        for name in METRICS
    }
    summary = [_summary(some, {name: draws[*key, name] for name in METRICS}) for key, some in sets.items()]
    learnt = {key for key in sets if draws[*key, "auc"].interval(0.0, 1.0)[0] > 0.5}
    verdicts = [
        verdict(*key, metric, others[0].row["kind"], difference, margin, bool(learnt & {key, other}))
        for key, some in sets.items()
        if some[0].row["kind"] == "distilled"
        for other, others in sets.items()
        if other[0] == key[0] and (others[0].row["kind"] == "full" or others[0].of == key[1])
        for difference in [draws[*key, metric].minus(draws[*other, metric])]
    ]
    points = ("architecture", "num_faces", "accuracy_mean", "accuracy_low", "accuracy_high")
    has_curve = any(row["kind"] == "faces" for row in summary)
    on_curve = [row for row in summary if has_curve and row["kind"] in ("full", "faces")]
    curve = [{name: row[name] for name in points} for row in on_curve]
    return {"summary": summary, "verdicts": verdicts, "curve": curve}


def _summary(some: list[Tried], draws: dict[Metric, Draws]) -> Row:
    rows = [one.row for one in some]
    found: Row = {name: rows[0][name] for name in ("architecture", "set", "kind", "share")} | {"num_seeds": len(rows)}
    for metric, drawn in draws.items():
        low, high = drawn.interval(0.0, 1.0)
        found |= {f"{metric}_mean": drawn.value, f"{metric}_low": low, f"{metric}_high": high}
    for name in ("num_videos", "num_faces", "images", "precision", "recall", "f1", "seconds", "gpu_seconds"):
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = float(np.mean(values)) if values else None
    return found | {name: round(found[name]) for name in ("num_videos", "num_faces", "images")}


def resampled_weights(group_id_V: npt.NDArray[np.object_], num: int = NUM_RESAMPLES) -> Weights:
    """(B + 1, V): how often each test video counts; the same for all sets."""
    return bootstrap_weights(group_id_V, num, seed=0, after_original=True)


def count_groups(metric: Metric, label_N: Ints, group_id_N: npt.NDArray[np.object_]) -> int:
    """Number of groups that a metric rests on; for AUC, which needs both classes, that of the class with fewer."""
    if metric == "auc":
        return min(len(set(group_id_N[label_N == label])) for label in (0, 1))
    return len(set(group_id_N))


def measure(metric: Metric, label_V: Ints, some: Sequence[Tried], weight_BV: Weights) -> Floats:
    """(S, B + 1): the metric of each training under each resample of the test videos."""
    if metric == "auc":
        return np.stack([weighted_auc(label_V, one.probability_V, weight_BV) for one in some])
    return np.stack([weighted_accuracy(label_V, one.probability_V, one.threshold, weight_BV) for one in some])


def mean_over_seeds(value_SB: Floats, num_groups: int, name: str) -> Draws:
    """The mean over all trainings, and for each resample of the videos that over a new draw of trainings.

    S - 1 of the S are drawn, with replacement: that makes the variance of the mean unbiased (Rao and Wu 1988). With S
    drawn it would be too small by 1 / S, a third with 3 seeds. A single training is all that can be drawn.

    Args:
        value_SB: from `measure`.
        num_groups: from `count_groups`.
        name: of the set; it seeds the draws, so that those of different sets are independent.
    """
    num_seeds, num_columns = value_SB.shape
    rng = np.random.default_rng(list(name.encode()))
    drawn = rng.integers(num_seeds, size=(max(1, num_seeds - 1), num_columns - 1))
    value_B = np.take_along_axis(value_SB[:, 1:], drawn, axis=0).mean(axis=0)
    return Draws(float(value_SB[:, 0].mean()), value_B, num_seeds, num_groups)


def conclude(versus: Versus, low: float, high: float, margin: float) -> Verdict:
    """The verdict for an interval of a difference (distilled minus other); against "full", `margin` may be lost."""
    if versus == "full":
        return "non-inferior" if low > -margin else "inferior" if high < -margin else "cannot tell"
    return "better" if low > 0 else "worse" if high < 0 else "cannot tell"


def verdict(
    architecture: str, name: str, metric: Metric, versus: Versus, difference: Draws, margin: float, beats_chance: bool
) -> Row:
    """The verdict on one distilled set against one other: numbers, a word and a sentence.

    `beats_chance`: detectors trained on at least one of the two sets beat chance. If neither set teaches anything, they
    are equally good, which says nothing about how they were chosen.
    """
    low, high = difference.interval(-1.0, 1.0)
    enough = difference.num_groups >= MIN_GROUPS
    word = conclude(versus, low, high, margin) if enough and beats_chance else "cannot tell"
    if word == "cannot tell":
        question = "as good as" if versus == "full" else "better than"
        sentences = [f"{architecture}: it cannot be told whether {name} is {question} {NAMES[versus]}."]
    else:
        sentences = [f"{architecture}: {name} is {word} {'to' if versus == 'full' else 'than'} {NAMES[versus]}."]
    if not enough:
        of_class = " of one class" if metric == "auc" else ""
        sentences.append(
            f"The test split has {difference.num_groups} groups{of_class}, at least {MIN_GROUPS} are needed."
        )
    if not beats_chance:
        sentences.append("Trained on neither set does it tell real from fake better than chance.")
    if difference.num_seeds == 1:
        sentences.append("With one seed, the variation from training to training is not covered.")
    return {
        "architecture": architecture,
        "set": name,
        "metric": metric,
        "versus": versus,
        "difference": difference.value,
        "low": low,
        "high": high,
        "margin": margin if versus == "full" else None,
        "verdict": word,
        "text": " ".join(sentences),
    }
