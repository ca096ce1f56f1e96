import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raydistal.selection.probe import Probes
from raydistal.selection.uncertainty import (
    ProbeStrategy,
    boundary_distance,
    committee_disagreement,
    entropy,
    least_confidence,
    margin,
    score,
    sigmoid,
)

LOG_3 = math.log(3)  # the logit of 3/4
FOUR = np.array([0.0, LOG_3, -LOG_3, math.log(9)])  # P(fake) = 1/2, 3/4, 1/4, 9/10


def test_golden_values():
    np.testing.assert_allclose(sigmoid(FOUR), [0.5, 0.75, 0.25, 0.9], rtol=1e-14)
    # -(3/4) ln(3/4) - (1/4) ln(1/4) = 0.562335...; -(9/10) ln(9/10) - (1/10) ln(1/10) = 0.325083...
    expected = [0.6931471805599453, 0.5623351446188083, 0.5623351446188083, 0.3250829733914482]
    np.testing.assert_allclose(entropy(FOUR), expected, rtol=1e-14)
    np.testing.assert_allclose(margin(FOUR), [1, 0.5, 0.5, 0.2], rtol=1e-14)
    np.testing.assert_allclose(least_confidence(FOUR), [0.5, 0.25, 0.25, 0.1], rtol=1e-14)
    np.testing.assert_allclose(boundary_distance(np.array([-6.0, 0, 1]), np.array([2.0, 5, 4])), [-3, 0, -0.25])


def test_committee_golden_values():
    sure, half = 1000.0, 0.0
    logit_MN = np.array([[sure, sure, half, LOG_3, 5], [-sure, sure, half, -LOG_3, 5]])
    # Opposite certain members: ln 2. Equal members: 0. 3/4 against 1/4: ln 2 - 0.562335...
    expected = [math.log(2), 0, 0, 0.13081203594113697, 0]
    np.testing.assert_allclose(committee_disagreement(logit_MN), expected, atol=1e-15)


@given(st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=5))
def test_committee_is_the_mean_divergence_from_the_consensus(rows):
    logit_MN = np.array(rows)
    fake_MN = 1 / (1 + np.exp(-logit_MN))
    p_MNC = np.stack([fake_MN, 1 - fake_MN], axis=2)
    divergence_MN = stats.entropy(p_MNC, p_MNC.mean(axis=0)[None], axis=2)
    np.testing.assert_allclose(committee_disagreement(logit_MN), divergence_MN.mean(axis=0), atol=1e-12)
    assert np.all(committee_disagreement(logit_MN) >= 0)


@given(st.lists(st.integers(-3000, 3000), min_size=2, unique_by=abs))
def test_two_classes_and_one_probe_give_one_order(hundredths):
    logit_N = np.array(hundredths) / 100
    expected = np.argsort(np.abs(logit_N))[::-1]
    for uncertainty in (entropy, margin, least_confidence, lambda logit_N: boundary_distance(logit_N, 3.0)):
        np.testing.assert_array_equal(np.argsort(uncertainty(logit_N)), expected)


@pytest.mark.parametrize("uncertainty", [entropy, margin, least_confidence])
def test_stable_where_the_probability_rounds_to_one(uncertainty):
    extreme_N = np.array([1000.0, -1000, 700, -40, 40])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        result_N = uncertainty(extreme_N)
        assert committee_disagreement(np.stack([extreme_N, -extreme_N])).max() <= math.log(2)
    assert np.all(np.isfinite(result_N))
    assert result_N[0] == result_N[1] == 0
    assert 0 < result_N[2] < result_N[3] == result_N[4] < 1e-15


def test_score():
    rng = np.random.default_rng(0)
    probes = Probes(rng.normal(size=(3, 2, 4)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32))
    feature_ND, fold_N = rng.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 1, 0, 0, 1])
    logit_MN, norm_MN = probes.logit(feature_ND, fold_N), probes.norm(fold_N)
    expected = {
        "entropy": entropy(logit_MN[0]),
        "margin": margin(logit_MN[0]),
        "least_confidence": least_confidence(logit_MN[0]),
        "boundary_distance": -np.abs(logit_MN[0]) / norm_MN[0],
        "committee": committee_disagreement(logit_MN),
    }
    assert set(get_args(ProbeStrategy)) == set(expected)
    for strategy, uncertainty_N in expected.items():
        probability_N, result_N = score(strategy, probes, feature_ND, fold_N)
        np.testing.assert_array_equal(result_N, uncertainty_N)
        np.testing.assert_allclose(probability_N, (1 / (1 + np.exp(-logit_MN))).mean(axis=0))
