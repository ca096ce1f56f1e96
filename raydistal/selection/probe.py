"""Linear probes on frozen features, out of fold: no frame is scored by a probe that saw its group.

N frames, D numbers per feature, K folds, M members of a committee (1 for a plain probe).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from sklearn.linear_model import LogisticRegression

from raydistal.errors import UserError
from raydistal.selection.draws import Strings, sample_key, uniform

Ints = npt.NDArray[np.integer]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

INVERSE_L2 = 0.01  # sklearn's C: near the lowest log loss on unseen groups, from 300 to 13,000 synthetic frames
WAYS_OUT = "Index more videos, or select with the strategy random or k_center, which need no probe."


@dataclass(frozen=True)
class Probes:
    """Logistic regressions on raw features, one per fold and member; the standardisation is inside the weights."""

    weight_MKD: Float32s
    bias_MK: Float32s

    def logit(self, feature_ND: npt.NDArray[np.floating], fold_N: Ints) -> Float64s:
        """(M, N): log odds of fake by the probes of each frame's own fold, which never saw its group.

        A frame's logit has the same bits whatever batch it comes in: one dot product per frame, no matrix product.
        """
        feature_ND = np.asarray(feature_ND, np.float32)
        logit_MKN = np.vecdot(self.weight_MKD[:, :, None], feature_ND) + self.bias_MK[:, :, None]
        return np.take_along_axis(logit_MKN, fold_N[None, None], axis=1)[:, 0].astype(np.float64)

    def norm(self, fold_N: Ints) -> Float64s:
        """(M, N): length of the weights that score each frame: |logit| / norm is its distance to the boundary."""
        return np.asarray(np.linalg.norm(self.weight_MKD, axis=2)[:, fold_N], np.float64)


def assign_folds(group_N: Strings, label_N: Ints, num_folds: int = 5) -> Ints:
    """(N,) fold of each row. No group is in two folds, both labels (0 and 1) are spread evenly over them.

    Greedy: groups that hold much of a label first, each to the fold that has least of its labels. The result depends
    on the set of rows, not on their order.

    Raises:
        UserError: without some fold, one of the labels would be missing from what a probe is trained on.
    """
    name_G = pc.unique(group_N)
    name_G = name_G.take(pc.sort_indices(name_G))
    group_code_N = pc.index_in(group_N, value_set=name_G).to_numpy()
    count_GL = np.bincount(2 * group_code_N + label_N, minlength=2 * len(name_G)).reshape(-1, 2)
    num_L = count_GL.sum(axis=0)
    share_GL = count_GL / np.maximum(num_L, 1)
    placed_KL = np.zeros((num_folds, 2), np.int64)
    fold_G: Ints = np.empty(len(name_G), np.int64)
    for group in np.argsort(-share_GL.max(axis=1), kind="stable"):
        cost_K = placed_KL @ (share_GL[group] / np.maximum(num_L, 1))
        takes_all_K = (placed_KL + count_GL[group] == num_L).any(axis=1)  # would leave none for the other folds
        fold_G[group] = np.argmin(np.where(takes_all_K, np.inf, cost_K))
        placed_KL[fold_G[group]] += count_GL[group]
    if (placed_KL == num_L).any():
        num_real, num_fake = np.count_nonzero(count_GL, axis=0)
        raise UserError(
            f"a probe needs real videos in at least 2 groups and fake videos in at least 2 groups, so that each group "
            f"can be scored by a probe trained on others. Real videos are in {num_real} groups, fake ones in "
            f"{num_fake}. {WAYS_OUT}"
        )
    return np.asarray(fold_G[group_code_N])


def fit_probes(
    feature_ND: Float32s, label_N: Ints, fold_N: Ints, num_folds: int = 5, weight_MN: Float64s | None = None
) -> Probes:
    """One L2-regularised, class-balanced logistic regression per fold and member, on the frames of the other folds.

    Features are standardised by the mean and deviation of the same frames. Takes as much memory again as the features.

    Args:
        feature_ND: a sample that fits in memory; in a fixed order, if the same result is wanted to the last bit.
        label_N: 0 or 1.
        fold_N: from `assign_folds`.
        num_folds: K.
        weight_MN: weight of each frame for each member, as from `group_weights`; default: one member, all equal.

    Raises:
        UserError: the frames outside some fold are all of one class.
    """
    num_members = 1 if weight_MN is None else len(weight_MN)
    weight_MKD = np.empty((num_members, num_folds, feature_ND.shape[1]), np.float32)
    bias_MK = np.empty((num_members, num_folds), np.float32)
    for fold in range(num_folds):
        train_N = fold_N != fold
        if len(np.unique(label_N[train_N])) < 2:
            raise UserError(
                f"the faces that the probe of fold {fold} is to be trained on are all of real or all of fake videos. "
                f"Select more frames per round, if in rounds. {WAYS_OUT}"
            )
        standard_TD = feature_ND[train_N]
        mean_D = standard_TD.mean(axis=0, dtype=np.float64).astype(np.float32)
        standard_TD -= mean_D
        deviation_D = np.sqrt(np.einsum("td,td->d", standard_TD, standard_TD) / len(standard_TD))
        deviation_D[deviation_D == 0] = 1
        standard_TD /= deviation_D
        for member in range(num_members):
            model = LogisticRegression(C=INVERSE_L2, class_weight="balanced", max_iter=1000)
            model.fit(standard_TD, label_N[train_N], None if weight_MN is None else weight_MN[member, train_N])
            weight_MKD[member, fold] = model.coef_[0] / deviation_D
            bias_MK[member, fold] = model.intercept_[0] - mean_D @ weight_MKD[member, fold]
    return Probes(weight_MKD, bias_MK)


def group_weights(group_N: Strings, num_members: int = 5, seed: int = 0) -> Float64s:
    """(M, N) weights that make a committee: the Bayesian bootstrap (Rubin 1981) over groups.

    Each member weighs each group by an exponential variate of mean 1. Like a resample of groups with replacement, but
    no group, and so no class, ever drops out.
    """
    keys = [sample_key(group_N, np.full(len(group_N), member), seed) for member in range(num_members)]
    return -np.log1p(-uniform(np.stack(keys)))
