"""What has changed from one detector to another: on all test videos, on the real ones, on the fakes of each method.

Both judge the same videos, so differences are paired: each resample draws the same groups for both. Detectors are taken
as they are; what another training would have given is not covered, see `comparison` for that.

V test videos, N of them in a slice, B resamples; number 0 of B + 1 is what was measured, not resampled.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from raydistal.detector.comparison import MIN_GROUPS, Draws, conclude, count_groups, resampled_weights
from raydistal.detector.evaluated import Results
from raydistal.detector.metrics import Weights, weighted_accuracy, weighted_auc

Row = dict[str, Any]
Bools = npt.NDArray[np.bool_]


def differences(before: Results, after: Results, margin: float) -> list[Row]:
    """Rows of `schemas.DIFFERENCE`, without dataset and seen_*: accuracy and, with both classes, AUC.

    The AUC of a method is that of its fakes against all real videos. A verdict needs 6 groups and a detector that beats
    chance: two that do not are equally good, which says nothing.
    """
    weight_BV = resampled_weights(before.group_id_V)
    is_real_V = before.label_V == 0
    methods = sorted(set(before.method_V[~is_real_V]))
    slices = {"all": np.ones_like(is_real_V), "real": is_real_V}
    slices |= {method: before.method_V == method for method in methods}
    rows: list[Row] = []
    beats_chance = {}
    for name, is_in_V in slices.items():
        if not is_in_V.any():  # real: all of them were skipped for want of a face
            continue
        if name != "real":
            auc, beats_chance[name] = _auc(before, after, is_in_V | is_real_V, weight_BV)
            if auc[0].num_groups:
                rows.append(_row(name, "auc", int(is_in_V.sum()), auc, margin, beats_chance[name]))
        accuracy, flips = _accuracy(before, after, is_in_V, weight_BV)
        is_meant = beats_chance["all" if name == "real" else name]
        rows.append(_row(name, "accuracy", int(is_in_V.sum()), accuracy, margin, is_meant) | flips)
    return rows


def _auc(before: Results, after: Results, is_in_V: Bools, weight_BV: Weights) -> tuple[tuple[Draws, Draws], bool]:
    """The AUC of both detectors, and whether at least one of them beats chance."""
    label_N, weight_BN = before.label_V[is_in_V], weight_BV[:, is_in_V]
    num_groups = count_groups("auc", label_N, before.group_id_V[is_in_V])
    one, other = (
        _draws(weighted_auc(label_N, results.probability_V[is_in_V], weight_BN), num_groups)
        for results in (before, after)
    )
    return (one, other), any(draws.interval(0.0, 1.0)[0] > 0.5 for draws in (one, other))


def _accuracy(before: Results, after: Results, is_in_V: Bools, weight_BV: Weights) -> tuple[tuple[Draws, Draws], Row]:
    """The accuracy of both detectors, and the shares of decisions that became right and wrong."""
    label_N, weight_BN = before.label_V[is_in_V], weight_BV[:, is_in_V]
    num_groups = count_groups("accuracy", label_N, before.group_id_V[is_in_V])
    one, other = (
        _draws(weighted_accuracy(label_N, results.probability_V[is_in_V], results.threshold, weight_BN), num_groups)
        for results in (before, after)
    )
    was_right_N, is_right_N = (_is_right(results)[is_in_V] for results in (before, after))
    flips = {"mended": float((~was_right_N & is_right_N).mean()), "broken": float((was_right_N & ~is_right_N).mean())}
    return (one, other), flips


def _draws(value_B: npt.NDArray[np.float64], num_groups: int) -> Draws:
    return Draws(float(value_B[0]), value_B[1:], 1, num_groups)


def _is_right(results: Results) -> Bools:
    """A video without a face is called wrong, as in `metrics`."""
    is_called_fake_V = results.probability_V > results.threshold
    return np.asarray(~np.isnan(results.probability_V) & (is_called_fake_V == (results.label_V == 1)))


def _row(name: str, metric: str, num: int, drawn: tuple[Draws, Draws], margin: float, beats_chance: bool) -> Row:
    before, after = drawn
    difference = after.minus(before)
    low, high = difference.interval(-1.0, 1.0)
    can_tell = difference.num_groups >= MIN_GROUPS and beats_chance
    return {
        "slice": name,
        "metric": metric,
        "num": num,
        "num_groups": difference.num_groups,
        "before": before.value,
        "after": after.value,
        "difference": difference.value,
        "low": low,
        "high": high,
        "beats_chance": beats_chance,
        "verdict": conclude("full", low, high, margin) if can_tell else "cannot tell",
    }
