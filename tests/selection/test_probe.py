import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from raydistal.errors import UserError
from raydistal.selection.probe import Probes, assign_folds, fit_probes, group_weights

ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1)), max_size=40)


@given(ROWS, st.integers(3, 6), st.randoms())
def test_folds(rows, num_folds, random):
    groups = [f"g{number}" for number, _ in rows]
    labels = np.array([label for _, label in rows], np.int8)
    num_groups = [len({group for group, of in zip(groups, labels, strict=True) if of == label}) for label in (0, 1)]
    if min(num_groups) < 2:
        with pytest.raises(UserError, match=f"Real videos are in {num_groups[0]} groups, fake ones in {num_groups[1]}"):
            assign_folds(pa.array(groups, pa.string()), labels, num_folds)
        return
    folds = assign_folds(groups, labels, num_folds)
    assert len(set(zip(groups, folds.tolist(), strict=True))) == len(set(groups))
    for fold in range(num_folds):
        assert set(labels[folds != fold]) == {0, 1}
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = assign_folds(pa.chunked_array([[groups[number] for number in order]]), labels[order], num_folds)
    np.testing.assert_array_equal(shuffled, folds[order])


def test_folds_are_balanced():
    groups, labels = [], []
    for number in range(100):  # a real video and its four fakes; a lone real one; two lone fakes; one large group
        groups += [f"pair{number}"] * 5 + [f"real{number}", f"fake{number}", f"gan{number}"]
        labels += [0, 1, 1, 1, 1, 0, 1, 1]
    groups += ["studio"] * 30
    labels += [0] * 10 + [1] * 20
    folds = assign_folds(groups, np.array(labels))
    counts = np.bincount(2 * folds + labels, minlength=10).reshape(5, 2)
    assert counts.sum(axis=0).tolist() == [210, 620]
    assert np.ptp(counts[:, 0]) <= 2
    assert np.ptp(counts[:, 1]) <= 5


def test_a_fold_never_takes_the_last_of_a_class():
    # By balance alone b, with the only other real video, would join a, whose fold has the fewest fakes.
    videos = {"a": (99, 1), "c": (0, 30), "d": (0, 30), "b": (1, 20)} | {f"e{number}": (0, 1) for number in range(19)}
    groups = [group for group, (num_real, num_fake) in videos.items() for _ in range(num_real + num_fake)]
    labels = [label for counts in videos.values() for label in (0, 1) for _ in range(counts[label])]
    folds = dict(zip(groups, assign_folds(groups, np.array(labels), 3).tolist(), strict=True))
    assert len({folds[group] for group in "acd"}) == 3
    assert folds["b"] != folds["a"]


def problem(num_groups=12, num_frames=6, num_dims=7, seed=0):
    """Features of groups with one real and one fake video each; they differ along one direction."""
    rng = np.random.default_rng(seed)
    label_N = np.tile(np.repeat([0, 1], num_frames), num_groups)
    group_N = [f"g{number:02}" for number in np.repeat(np.arange(num_groups), 2 * num_frames)]
    feature_ND = rng.normal(3, 2, (len(label_N), num_dims)) + rng.normal(0, 2, num_dims) * label_N[:, None]
    feature_ND[:, 0] = 7.7  # a dead unit
    return feature_ND.astype(np.float32), label_N, group_N


def test_a_probe_is_sklearns_on_standardised_features_of_the_other_folds():
    feature_ND, label_N, group_N = problem()
    feature_ND, label_N, group_N = feature_ND[:-4], label_N[:-4], group_N[:-4]  # not balanced
    fold_N = assign_folds(group_N, label_N, 3)
    weight_MN = np.concatenate([np.ones((1, len(label_N))), group_weights(group_N, 2, seed=1)])
    probes = fit_probes(feature_ND, label_N, fold_N, 3, weight_MN)
    logit_MN = probes.logit(feature_ND, fold_N)
    for fold in range(3):
        train_N, test_N = fold_N != fold, fold_N == fold
        mean_D, std_D = feature_ND[train_N].mean(axis=0), feature_ND[train_N].std(axis=0)
        std_D[0] = 1
        for weight_N, logit_N in zip(weight_MN, logit_MN, strict=True):
            weight_T, label_T = weight_N[train_N], label_N[train_N]
            balance_L = weight_T.sum() / 2 / np.bincount(label_T, weight_T)
            model = LogisticRegression(C=0.01, tol=1e-8)
            model.fit((feature_ND[train_N] - mean_D) / std_D, label_T, sample_weight=weight_T * balance_L[label_T])
            expected = model.decision_function((feature_ND[test_N] - mean_D) / std_D)
            np.testing.assert_allclose(logit_N[test_N], expected, rtol=0, atol=1e-3)
            assert np.ptp(expected) > 0.3
    assert probes.weight_MKD.shape == (3, 3, 7)
    assert probes.weight_MKD.dtype == probes.bias_MK.dtype == np.float32
    assert logit_MN.dtype == np.float64
    assert np.mean((logit_MN[0] > 0) == label_N) > 0.7
    plain = fit_probes(feature_ND, label_N, fold_N, 3)
    np.testing.assert_allclose(plain.logit(feature_ND, fold_N), logit_MN[:1], atol=1e-6)
    assert np.abs(np.diff(logit_MN, axis=0)).mean() > 0.02


def test_the_probe_of_a_group_never_saw_it():
    feature_ND, label_N, group_N = problem()
    fold_N = assign_folds(group_N, label_N)
    before = fit_probes(feature_ND, label_N, fold_N, weight_MN=group_weights(group_N, 2))
    rows = np.array(group_N) == "g05"
    feature_ND[rows], label_N[rows] = 1e3, 1 - label_N[rows]
    after = fit_probes(feature_ND, label_N, fold_N, weight_MN=group_weights(group_N, 2))
    own = fold_N[rows][0]
    for fold in range(5):
        same = np.array_equal(before.weight_MKD[:, fold], after.weight_MKD[:, fold])
        assert same == (fold == own)
    np.testing.assert_array_equal(before.bias_MK[:, own], after.bias_MK[:, own])


def test_logits_are_the_same_bits_in_any_batch():
    rng = np.random.default_rng(0)
    probes = Probes(rng.normal(size=(2, 5, 333)).astype(np.float32), rng.normal(size=(2, 5)).astype(np.float32))
    feature_ND, fold_N = rng.normal(size=(100, 333)).astype(np.float16), rng.integers(0, 5, 100)
    whole_MN = probes.logit(feature_ND, fold_N)
    for size in (1, 7, 64):
        parts = [probes.logit(feature_ND[i : i + size], fold_N[i : i + size]) for i in range(0, 100, size)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole_MN)
    exact = np.einsum("mnd,nd->mn", probes.weight_MKD[:, fold_N].astype(float), feature_ND.astype(float))
    np.testing.assert_allclose(whole_MN, exact + probes.bias_MK[:, fold_N], atol=1e-4)
    norm = [[np.sqrt(np.sum(np.square(row))) for row in member[fold_N]] for member in probes.weight_MKD.astype(float)]
    np.testing.assert_allclose(probes.norm(fold_N), norm, rtol=1e-6)


def test_a_class_missing_from_the_sample_is_told():
    feature_ND, label_N, group_N = problem()
    fold_N = assign_folds(group_N, label_N)
    keep = (label_N == 0) | (fold_N == 2)
    with pytest.raises(UserError, match="the probe of fold 2 is to be trained on are all"):
        fit_probes(feature_ND[keep], label_N[keep], fold_N[keep])


def test_group_weights_are_exponential_and_equal_within_a_group():
    group_N = [f"g{number}" for number in range(4000)] * 2
    weight_MN = group_weights(group_N, 2)
    np.testing.assert_array_equal(weight_MN[:, :4000], weight_MN[:, 4000:])
    assert np.all(weight_MN > 0)
    np.testing.assert_allclose(weight_MN.mean(axis=1), 1, atol=0.08)
    np.testing.assert_allclose(weight_MN.var(axis=1), 1, atol=0.2)
    assert abs(np.corrcoef(weight_MN)[0, 1]) < 0.1
