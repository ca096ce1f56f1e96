"""Gaps and their verdicts, on made-up probabilities."""

import numpy as np
import pytest

from raydistal.detector.evaluated import Results
from raydistal.detector.generalisation import Tried, generalise

METHODS = ("swap", "warp")


def said(seed, num_groups=30, **lift):
    """A detector that gives the fakes of each method so much more."""
    rng = np.random.default_rng(seed)
    method_V = np.array([None, *METHODS] * num_groups, object)
    more_V = np.array([0.0, *(lift[method] for method in METHODS)] * num_groups)
    return Results(
        label_V=np.array([0, 1, 1] * num_groups),
        method_V=method_V,
        group_id_V=np.repeat(np.array([f"g{number}" for number in range(num_groups)], object), 3),
        probability_V=0.2 + more_V + rng.normal(scale=0.1, size=len(more_V)),
        threshold=0.5,
    )


def tried(num_groups=30, seeds=3, unseen_warp=0.05):
    """Without fakes of swap they are found as well, without those of warp hardly."""
    lifts = {None: (0.5, 0.5), "swap": (0.5, 0.5), "warp": (0.5, unseen_warp)}
    return [
        Tried("net", left_out, said([seed, number], num_groups, swap=swap, warp=warp))
        for number, (left_out, (swap, warp)) in enumerate(lifts.items())
        for seed in range(seeds)
    ]


def auc_by_pairs(one, method):
    reals, fakes = one.probability_V[one.label_V == 0], one.probability_V[one.method_V == method]
    return np.mean(fakes[:, None] > reals)


def test_matrix_and_gaps():
    some = tried()
    found = generalise(some, 0.11)
    mean = {
        (left_out, tested): np.mean([auc_by_pairs(one.results, tested) for one in some if one.left_out == left_out])
        for left_out in (None, *METHODS)
        for tested in METHODS
    }
    matrix = {(row["left_out"], row["tested"]): row for row in found["matrix"]}
    assert {key: row["auc"] for key, row in matrix.items()} == pytest.approx(mean)
    assert all(row["low"] <= row["auc"] <= row["high"] for row in matrix.values())
    swap, warp, all_ = found["gaps"]
    assert [row["method"] for row in found["gaps"]] == ["swap", "warp", None]
    for row, method in ((swap, "swap"), (warp, "warp")):
        assert (row["seen"], row["unseen"]) == pytest.approx((mean[None, method], mean[method, method]))
        assert row["difference"] == pytest.approx(row["unseen"] - row["seen"])
    assert all_["difference"] == pytest.approx((swap["difference"] + warp["difference"]) / 2)
    assert [row["verdict"] for row in found["gaps"]] == ["non-inferior", "inferior", "inferior"]
    assert swap["text"] == "net: fakes of swap are found as well by detectors that never learnt from them."
    assert warp["text"].startswith("net: fakes of warp are found less well by detectors that never")
    assert all_["text"].startswith("net: fakes, in the mean of the methods, are found less well")


def test_what_cannot_be_told_is_said():
    swap, *_ = generalise(tried(num_groups=5, seeds=1), 0.02)["gaps"]
    assert swap["verdict"] == "cannot tell"
    assert swap["text"] == (
        "net: it cannot be told whether fakes of swap are found as well without learning from them. The test split has "
        "5 groups of one class, at least 6 are needed. With one seed, the variation from training to training is not "
        "covered."
    )
    _, warp, _ = generalise(tried(unseen_warp=-0.1), 0.02)["gaps"]
    assert warp["verdict"] == "inferior"
    assert warp["text"].endswith("Detectors trained without them are not shown to beat chance on them.")


def test_one_method_has_no_mean():
    some = [one for one in tried() if one.left_out != "warp"]
    assert [row["method"] for row in generalise(some, 0.02)["gaps"]] == ["swap"]
