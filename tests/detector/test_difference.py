"""Differences between two detectors, against what pairs of videos and decisions say by hand."""

import numpy as np
import pytest

from raydistal.detector.comparison import resampled_weights
from raydistal.detector.difference import differences
from raydistal.detector.evaluated import Results
from raydistal.detector.metrics import weighted_auc

NUM = 40  # groups of a real video and two fakes


def said(shift, seed, threshold=0.5, num_groups=NUM):
    """A detector that gives fakes of "old" 0.6 more, and those of "new" `shift` more."""
    rng = np.random.default_rng(seed)
    method_V = np.array([None, "old", "new"] * num_groups, object)
    more_V = np.array([0.0, 0.6, shift] * num_groups)
    return Results(
        label_V=np.array([0, 1, 1] * num_groups),
        method_V=method_V,
        group_id_V=np.repeat(np.array([f"g{number}" for number in range(num_groups)], object), 3),
        probability_V=np.clip(0.2 + more_V + rng.normal(scale=0.15, size=len(more_V)), 0, 1),
        threshold=threshold,
    )


def auc_by_pairs(one, is_fake_V):
    reals, fakes = one.probability_V[one.label_V == 0], one.probability_V[is_fake_V]
    return np.mean([(fake > real) + (fake == real) / 2 for fake in fakes for real in reals])


def test_every_slice_and_metric_by_hand():
    before, after = said(0.6, 0), said(0.2, 1)
    rows = {(row["slice"], row["metric"]): row for row in differences(before, after, 0.02)}
    assert list(rows) == [
        ("all", "auc"),
        ("all", "accuracy"),
        ("real", "accuracy"),
        ("new", "auc"),
        ("new", "accuracy"),
        ("old", "auc"),
        ("old", "accuracy"),
    ]
    label_V, method_V = before.label_V, before.method_V
    is_in = {"all": label_V >= 0, "real": label_V == 0, "new": method_V == "new", "old": method_V == "old"}
    for (name, metric), row in rows.items():
        is_in_V = is_in[name]
        if metric == "auc":
            values = [auc_by_pairs(one, is_in_V & (label_V == 1)) for one in (before, after)]
            assert "broken" not in row
        else:
            right_2V = np.array([(one.probability_V > 0.5) == label_V for one in (before, after)])[:, is_in_V]
            values = right_2V.mean(axis=1)
            assert row["broken"] == (right_2V[0] & ~right_2V[1]).mean()
            assert row["mended"] == (~right_2V[0] & right_2V[1]).mean()
        assert (row["before"], row["after"]) == pytest.approx(tuple(values))
        assert row["difference"] == pytest.approx(values[1] - values[0])
        assert row["low"] <= row["difference"] <= row["high"]
        assert (row["num"], row["num_groups"], row["beats_chance"]) == (is_in_V.sum(), NUM, True)
    assert rows["new", "auc"]["verdict"] == "inferior"
    assert rows["new", "accuracy"]["verdict"] == "inferior"


def test_intervals_are_paired():
    """A detector that is a little worse on every video: the difference is known far better than either value."""
    before = said(0.2, 0)
    after = before._replace(probability_V=before.probability_V - 0.05 * before.label_V)
    row = differences(before, after, 0.1)[0]
    assert row["low"] < row["high"] < 0
    assert row["verdict"] == "non-inferior"
    assert differences(before, after, 0.0001)[0]["verdict"] == "inferior"
    alone = weighted_auc(before.label_V, before.probability_V, resampled_weights(before.group_id_V))
    assert row["high"] - row["low"] < 0.5 * np.ptp(np.quantile(alone, [0.025, 0.975]))


def test_what_never_happened_may_still_happen():
    """No difference in 40 groups: up to 3 of 40 are still possible (rule of three)."""
    row = differences(said(0.6, 0), said(0.6, 0), 0.02)[0]
    assert (row["difference"], row["low"], row["high"]) == (0, -3 / NUM, 3 / NUM)
    assert row["verdict"] == "cannot tell"


def test_no_verdict_from_five_groups_or_below_chance():
    few = differences(said(0.6, 0, num_groups=5), said(0.0, 1, num_groups=5), 0.02)
    assert {row["verdict"] for row in few} == {"cannot tell"}
    blind = differences(said(-0.05, 0), said(-0.05, 1), 0.5)
    rows = {(row["slice"], row["metric"]): (row["beats_chance"], row["verdict"]) for row in blind}
    assert rows["new", "auc"] == rows["new", "accuracy"] == (False, "cannot tell")
    assert rows["old", "auc"] == rows["real", "accuracy"] == (True, "non-inferior")


def test_a_video_without_a_face_is_called_wrong():
    before = said(0.6, 0)
    after = before._replace(probability_V=np.where(np.arange(3 * NUM) < 3, np.nan, before.probability_V))
    rows = {(row["slice"], row["metric"]): row for row in differences(before, after, 0.02)}
    was_right = (before.probability_V[:3] > 0.5) == (before.label_V[:3] == 1)
    assert rows["all", "accuracy"]["broken"] == was_right.sum() / (3 * NUM)
    assert rows["all", "accuracy"]["mended"] == 0


@pytest.mark.parametrize(("label", "slices"), [(0, ("all", "real")), (1, ("all", "new", "old"))])
def test_a_class_that_was_left_out_has_no_rows(label, slices):
    def kept(one):
        columns = {name: values[one.label_V == label] for name, values in zip(one._fields, one[:4], strict=False)}
        return one._replace(**columns)

    rows = differences(kept(said(0.6, 0)), kept(said(0.2, 1)), 0.02)
    found = [(row["slice"], row["metric"], row["verdict"]) for row in rows]
    assert found == [(name, "accuracy", "cannot tell") for name in slices]
