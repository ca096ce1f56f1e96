"""What a search varies: a space of dimensions, and the points in it.

A point has a value for every quantity of a trial, also for those that the space does not vary. So points identify
trials across searches: equal points are the same trial.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from raydistal.errors import UserError

Value = int | float | str
Point = dict[str, Value]

MAX_POINTS = 100_000  # of a space of values, which are held in memory
HOW = "Write NAME=VALUE,VALUE... or NAME=LOW..HIGH, or LOW..HIGH:STEP"


class Quantity(NamedTuple):
    """A quantity that a dimension may vary, and its valid values."""

    is_valid: Callable[[float], bool]
    range: str
    is_whole: bool = False
    is_log: bool = False  # factors count, not differences


QUANTITIES = {
    "data": Quantity(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "prune": Quantity(lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "alpha": Quantity(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "temperature": Quantity(lambda value: value > 0, "above 0", is_log=True),
    "kd_weight": Quantity(lambda value: value > 0, "above 0", is_log=True),
    "tau": Quantity(lambda value: value > 0, "above 0", is_log=True),
    "negatives": Quantity(lambda value: value >= 1, "whole and at least 1", is_whole=True, is_log=True),
    "bits": Quantity(lambda value: value in (8, 32), "8 or 32", is_whole=True),
}


@dataclass(frozen=True)
class Dimension:
    """Some values of a quantity, or, without `values`, all from `low` to `high`."""

    name: str
    low: float
    high: float
    values: tuple[float, ...] = ()
    """Ascending."""

    def contains(self, value: Value | None) -> bool:
        """True for one of the values, or one of the range."""
        if not isinstance(value, int | float):
            return False
        return value in self.values if self.values else self.low <= value <= self.high

    def steps(self, num: int) -> tuple[float, ...]:
        """The values; for a range, the `num` + 1 points that divide it into equal steps."""
        return self.values or tuple(
            sorted({self.rounded(self.low + (self.high - self.low) * number / num) for number in range(num + 1)})
        )

    def rounded(self, exact: float) -> float:
        """A short number of the range near `exact`: of 4 digits, or whole if the quantity is."""
        short = round(exact) if QUANTITIES[self.name].is_whole else float(f"{exact:.4g}")
        return min(max(short, self.low), self.high)


Space = tuple[Dimension, ...]


def parse(texts: Sequence[str]) -> Space:
    """`alpha=0,0.25,1 prune=0.2..0.6 data=0.2..1:0.2`, one text per dimension.

    Raises:
        UserError: nothing to vary, an unknown dimension or one that is named twice, values that it cannot have, or more
            than MAX_POINTS points.
    """
    if not texts:
        raise UserError(f"name what to vary: --space alpha=0,0.25,0.5 prune=0.2..0.6. {HOW}.")
    space = tuple(_dimension(text) for text in texts)
    names = [dimension.name for dimension in space]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--space names {min(doubled)} twice")
    _check_number(math.prod(len(dimension.values) or 1 for dimension in space), " ".join(texts))
    return space


def _dimension(text: str) -> Dimension:
    name, _, given = text.partition("=")
    name = name.replace("-", "_")
    if name not in QUANTITIES:
        raise UserError(f"--space cannot vary {name!r}: use {', '.join(QUANTITIES)}")
    try:
        if match := re.fullmatch(r"([^:]+?)\.\.([^:]+)(?::(.+))?", given):
            low, high = (_number(name, end) for end in match.groups()[:2])
            values = _stepped(name, low, high, match[3]) if match[3] else ()
        else:
            values = tuple(sorted({_number(name, one) for one in given.split(",")}))
            low, high = values[0], values[-1]
    except (ValueError, ArithmeticError):
        raise UserError(f"--space does not understand {text!r}. {HOW}.") from None
    for value in (low, high, *values):
        is_kind = isinstance(value, int) or not QUANTITIES[name].is_whole
        if not math.isfinite(value) or not is_kind or not QUANTITIES[name].is_valid(value):
            raise UserError(f"--space {text}: {name} must be {QUANTITIES[name].range}, not {value:g}")
    if not values and (low >= high or name == "bits"):
        raise UserError(f"--space {text} is not a range: the first end must be below the second, and bits are 8 or 32")
    return Dimension(name, low, high, values)


def _stepped(name: str, low: float, high: float, step: str) -> tuple[float, ...]:
    low_, high_, step_ = (Decimal(str(one)) for one in (low, high, step))  # as decimals: 0.2 + 0.1 is 0.3
    if not 0 < step_ <= high_ - low_:
        raise ValueError
    num = int((high_ - low_) / step_) + 1
    _check_number(num, f"{name}={low:g}..{high:g}:{step}")
    return tuple(_number(name, str(low_ + number * step_)) for number in range(num))


def _check_number(num_points: int, text: str) -> None:
    if num_points > MAX_POINTS:
        raise UserError(f"--space {text} has more than {MAX_POINTS} points: use larger steps")


def _number(name: str, text: str) -> float:
    value = float(text)
    return int(value) if QUANTITIES[name].is_whole and value.is_integer() else value


def points(space: Space, fixed: Mapping[str, Value]) -> list[Point]:
    """Every point of a space of values, the last dimension varying fastest; `fixed` are the other quantities.

    Raises:
        UserError: a dimension is a range.
    """
    for dimension in space:
        if not dimension.values:
            raise UserError(
                f"{dimension.name} is a range, which has endless points. Give values or a step: "
                f"--space {dimension.name}={dimension.low:g}..{dimension.high:g}:{dimension.high - dimension.low:g}"
            )
    names = [dimension.name for dimension in space]
    every = itertools.product(*(dimension.values for dimension in space))
    return [dict(fixed) | dict(zip(names, values, strict=True)) for values in every]


def contains(space: Space, fixed: Mapping[str, Value], point: Mapping[str, Value | None]) -> bool:
    """True if the point is in the space."""
    varied = {dimension.name for dimension in space}
    return all(dimension.contains(point.get(dimension.name)) for dimension in space) and all(
        point.get(name) == value for name, value in fixed.items() if name not in varied
    )


def key(*parts: object) -> str:
    """12 hexadecimal digits of values that JSON knows."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=6).hexdigest()
