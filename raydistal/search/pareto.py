"""Which results of many trials are worth having, and where to look next.

P points, D objectives; smaller is better in all of them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def front(loss_PD: Floats) -> list[int]:
    """Rows that no other row dominates: none is as good in all objectives and better in one. Equals are all kept."""
    return [row for row, loss_D in enumerate(loss_PD) if not np.any(dominates(loss_PD, loss_D))]


def dominates(loss_PD: Floats, loss_D: Floats) -> npt.NDArray[np.bool_]:
    """(P,): true for the rows that are as good as `loss_D` in all objectives and better in one."""
    return np.asarray(np.all(loss_PD <= loss_D, axis=1) & np.any(loss_PD < loss_D, axis=1))


class Step(NamedTuple):
    """Where a bisection stands."""

    todo: list[int]
    """Candidates to be tried now; none: it is finished."""
    answer: int | None
    """The last candidate that holds; None: not even the first does, or it is not known yet."""
    contradictions: list[int]
    """Candidates that hold although one before them does not."""


def bisect(holds: Mapping[int, bool], num: int) -> Step:
    """Looks for the last of `num` candidates that holds, where a first few hold and the others do not.

    It keeps no state beside `holds`, so it can be stopped and resumed anywhere. Both ends are tried first; then the
    middle of the open range, log2(num) times. Contradictions of the order are reported; the first failure decides.
    """
    fails = min((number for number, held in holds.items() if not held), default=num)
    answer = max((number for number, held in holds.items() if held and number < fails), default=-1)
    contradictions = sorted(number for number, held in holds.items() if held and number > fails)
    if ends := sorted({0, num - 1} - set(holds)):
        return Step(ends, None, contradictions)
    if fails - answer > 1:
        return Step([(answer + fails) // 2], None, contradictions)
    return Step([], answer if answer >= 0 else None, contradictions)
