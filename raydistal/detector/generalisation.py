"""How well the fakes of a method are found by detectors that did not learn from it.

For each architecture, some detectors learnt from all methods and others from all but one, with several seeds. Measured
is the AUC of the fakes of each method against all real test videos. The gap of a method is the change in its AUC when
it is left out; its interval is paired and hierarchical, as in `comparison`.

S seeds, V test videos, N of them real or of the method tested.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from raydistal.detector.comparison import (
    MIN_GROUPS,
    Draws,
    Verdict,
    conclude,
    count_groups,
    mean_over_seeds,
    resampled_weights,
)
from raydistal.detector.evaluated import Results
from raydistal.detector.metrics import weighted_auc

Row = dict[str, Any]
Key = tuple[str, str | None, str]  # architecture, method left out, method tested


class Tried(NamedTuple):
    """A trained detector and its results on the test videos."""

    architecture: str
    left_out: str | None
    """None: it learnt from all methods."""
    results: Results


def generalise(tried: Sequence[Tried], margin: float) -> dict[str, list[Row]]:
    """The results over all detectors, as `generalisation/_table.json` holds them.

    Returns:
        matrix: a row per architecture, method left out (None: none) and method tested: mean AUC over seeds, interval.
        gaps: a row per architecture and method left out, and one of their mean: AUC with and without it, verdict.
    """
    draws = dict(_draws(tried))
    matrix = [
        {"architecture": architecture, "left_out": left_out, "tested": tested, "num_seeds": one.num_seeds}
        | {"auc": one.value}
        | dict(zip(("low", "high"), one.interval(0.0, 1.0), strict=True))
        for (architecture, left_out, tested), one in draws.items()
    ]
    gaps = []
    for architecture in dict.fromkeys(one.architecture for one in tried):
        pairs = {
            left_out: (draws[architecture, None, left_out], one)
            for (name, left_out, tested), one in draws.items()
            if name == architecture and left_out == tested and left_out is not None
        }
        gaps += [_gap(architecture, method, *pair, margin) for method, pair in pairs.items()]
        if len(pairs) > 1:
            seen, unseen = (Draws.mean(some) for some in zip(*pairs.values(), strict=True))
            gaps.append(_gap(architecture, None, seen, unseen, margin))
    return {"matrix": matrix, "gaps": gaps}


def _draws(tried: Sequence[Tried]) -> Iterator[tuple[Key, Draws]]:
    """The mean AUC over seeds of each architecture, method left out and method tested."""
    test = tried[0].results
    is_real_V = test.label_V == 0
    weight_BV = resampled_weights(test.group_id_V)
    for tested in sorted(set(test.method_V[~is_real_V])):
        is_in_V = is_real_V | (test.method_V == tested)
        label_N, weight_BN = test.label_V[is_in_V], weight_BV[:, is_in_V]
        num_groups = count_groups("auc", label_N, test.group_id_V[is_in_V])
        for architecture, left_out in dict.fromkeys((one.architecture, one.left_out) for one in tried):
            some = [one for one in tried if (one.architecture, one.left_out) == (architecture, left_out)]
            value_SB = np.stack([weighted_auc(label_N, one.results.probability_V[is_in_V], weight_BN) for one in some])
            yield (architecture, left_out, tested), mean_over_seeds(value_SB, num_groups, f"{architecture}/{left_out}")


def _gap(architecture: str, method: str | None, seen: Draws, unseen: Draws, margin: float) -> Row:
    """The verdict on leaving out one method, or on the mean of them: numbers, a word and a sentence."""
    difference = unseen.minus(seen)
    low, high = difference.interval(-1.0, 1.0)
    seen_low, unseen_low = (one.interval(0.0, 1.0)[0] for one in (seen, unseen))
    can_tell = difference.num_groups >= MIN_GROUPS and max(seen_low, unseen_low) > 0.5
    word = conclude("full", low, high, margin) if can_tell else "cannot tell"
    row = {"architecture": architecture, "method": method, "seen": seen.value, "unseen": unseen.value}
    row |= {"difference": difference.value, "low": low, "high": high, "margin": margin, "verdict": word}
    return row | {"text": _sentence(architecture, method, word, difference, seen_low > 0.5, unseen_low > 0.5)}


def _sentence(
    architecture: str, method: str | None, word: Verdict, difference: Draws, is_seen_found: bool, is_unseen_found: bool
) -> str:
    fakes = f"fakes of {method}" if method else "fakes, in the mean of the methods,"
    how = {"non-inferior": "are found as well", "inferior": "are found less well"}
    if word in how:
        sentences = [f"{architecture}: {fakes} {how[word]} by detectors that never learnt from them."]
    else:
        sentences = [f"{architecture}: it cannot be told whether {fakes} are found as well without learning from them."]
    if difference.num_groups < MIN_GROUPS:
        sentences.append(
            f"The test split has {difference.num_groups} groups of one class, at least {MIN_GROUPS} are needed."
        )
    elif not is_unseen_found:
        who = "Detectors trained without them" if is_seen_found else "Even detectors trained on them"
        sentences.append(f"{who} are not shown to beat chance on them.")
    if difference.num_seeds == 1:
        sentences.append("With one seed, the variation from training to training is not covered.")
    return " ".join(sentences)
