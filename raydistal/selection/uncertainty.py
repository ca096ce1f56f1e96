"""How uncertain a probe, or a committee of probes, is about a frame. Higher is always more uncertain; float64.

With two classes and one probe, entropy, margin and least confidence are increasing functions of each other, so they
select the same frames in the same order. Boundary distance differs from them only between folds, whose probes have
weights of different length. References: Settles, Active Learning Literature Survey (2009), sections 3.1 and 3.2.

N frames, M members of a committee.
"""

from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from raydistal.selection.probe import Probes

ProbeStrategy = Literal["entropy", "margin", "least_confidence", "boundary_distance", "committee"]
Strategy = Literal[ProbeStrategy, "random", "k_center"]  # see draws.sample_key and diversity

Float64s = npt.NDArray[np.float64]

COMMITTEE_SIZE = 5


def sigmoid(logit_N: Float64s) -> Float64s:
    """The probability; accurate to the last digits also where it is tiny."""
    return np.exp(-np.logaddexp(0, -logit_N))


def entropy(logit_N: Float64s) -> Float64s:
    """Entropy of the two classes in nats, from 0 to ln 2."""
    size_N = np.abs(logit_N)
    return np.logaddexp(0, -size_N) + size_N * sigmoid(-size_N)


def margin(logit_N: Float64s) -> Float64s:
    """One minus the difference between the probabilities of the two classes, from 0 to 1."""
    return 2 * least_confidence(logit_N)


def least_confidence(logit_N: Float64s) -> Float64s:
    """Probability of the less likely class, from 0 to 0.5."""
    return sigmoid(-np.abs(logit_N))


def boundary_distance(logit_N: Float64s, norm_N: Float64s) -> Float64s:
    """Minus the Euclidean distance, in feature space, to the hyperplane of a probe with weights of norm `norm_N`."""
    return -np.abs(logit_N) / norm_N


def committee_disagreement(logit_MN: Float64s) -> Float64s:
    """(N,): mean Kullback-Leibler divergence of the members from their consensus (McCallum and Nigam 1998), in nats.

    It is the entropy of the mean probability less the mean entropy, from 0 to ln 2 (the Jensen-Shannon divergence).
    """
    consensus_2N = np.stack([sigmoid(logit_MN).mean(axis=0), sigmoid(-logit_MN).mean(axis=0)])
    log_2N = np.log(np.maximum(consensus_2N, np.finfo(np.float64).tiny))  # 0 log 0 = 0
    return np.asarray(np.maximum(-(consensus_2N * log_2N).sum(axis=0) - entropy(logit_MN).mean(axis=0), 0))


def score(
    strategy: ProbeStrategy, probes: "Probes", feature_ND: npt.NDArray[np.floating], fold_N: npt.NDArray[np.integer]
) -> tuple[Float64s, Float64s]:
    """P(fake), (N,), the mean over members; and the uncertainty, (N,), by the strategy.

    `committee` wants probes of `COMMITTEE_SIZE` members, the others of one.
    """
    logit_MN = probes.logit(feature_ND, fold_N)
    match strategy:
        case "entropy":
            uncertainty_N = entropy(logit_MN[0])
        case "margin":
            uncertainty_N = margin(logit_MN[0])
        case "least_confidence":
            uncertainty_N = least_confidence(logit_MN[0])
        case "boundary_distance":
            uncertainty_N = boundary_distance(logit_MN[0], probes.norm(fold_N)[0])
        case "committee":
            uncertainty_N = committee_disagreement(logit_MN)
        case _:
            assert_never(strategy)
    return sigmoid(logit_MN).mean(axis=0), uncertainty_N
