"""Which point to try next. A strategy is asked for points and told how each one did; it does not run them.

All can be told of points that were tried before they were created: that is how a search resumes.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from raydistal.search.pareto import Step, bisect
from raydistal.search.space import QUANTITIES, Dimension, Point, Space, Value, key

DOUBLES = 20  # known points that the sampler may propose in a row before it is given an untried one
ATTEMPTS = 200  # known points in a row after which a range counts as exhausted: its numbers are whole or rounded

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Strategy(Protocol):
    """The interface of all strategies."""

    def ask(self) -> Point | None:
        """A point that was not asked for yet; None: none now, nor ever when `is_finished`."""

    def tell(self, point: Point, values: Sequence[float] | None, stopped_at: int = 0) -> None:
        """How a point did: the value of each objective.

        None: it failed. `stopped_at`: the epoch after which early stopping ended it; 0: it ran to the end.
        """

    @property
    def is_finished(self) -> bool:
        """True when no point will be asked for any more."""


class Grid:
    """Given points, in order."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._open = {key(point): point for point in points}

    def ask(self) -> Point | None:
        return self._open.pop(next(iter(self._open))) if self._open else None

    def tell(self, point: Point, values: Sequence[float] | None, stopped_at: int = 0) -> None:  # noqa: ARG002
        self._open.pop(key(point), None)

    @property
    def is_finished(self) -> bool:
        return not self._open


class Sampled:
    """Points that promise most, given the results so far: Optuna's TPE sampler (Bergstra et al. 2011).

    For several objectives it looks for the whole Pareto front (Ozaki et al. 2020).

    Args:
        space: at least one dimension with more than one value.
        fixed: the other quantities.
        are_more: whether more is better, for each objective.
        num: results after which it is finished; fewer if the space has fewer points, or no new one is found.
        num_open: most points that may await their result at once.
        seed: of the sampler.
    """

    def __init__(
        self,
        space: Space,
        fixed: Mapping[str, Value],
        are_more: Sequence[bool],
        num: int,
        num_open: int = 1,
        seed: int = 0,
    ) -> None:
        self.space, self.fixed, self.num, self.num_open = space, dict(fixed), num, num_open
        is_finite = all(dimension.values for dimension in space)
        self._left = _choices(space) if is_finite else None  # of a finite space, what is not tried yet
        self._is_exhausted = False
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(1, num // 3)), constant_liar=True)
        self._study = optuna.create_study(
            directions=["maximize" if is_more else "minimize" for is_more in are_more], sampler=sampler
        )
        self._distributions = {dimension.name: _distribution(dimension) for dimension in space}
        self._open: dict[str, optuna.Trial] = {}
        self._done: set[str] = set()

    def ask(self) -> Point | None:
        num_known = len(self._done) + len(self._open)
        if self._is_exhausted or num_known >= self.num or len(self._open) >= self.num_open:
            return None
        if self._left is not None:
            self._left = [choice for choice in self._left if key(self._point(choice)) not in self._known()]
            if not self._left:
                return None
        for attempt in range(ATTEMPTS):
            if self._left and attempt >= DOUBLES:
                self._study.enqueue_trial(self._left[0])
            trial = self._study.ask(self._distributions)
            point = self._point(trial.params)
            if key(point) not in self._known():
                self._open[key(point)] = trial
                return point
            self._study.tell(trial, state=TrialState.FAIL)
        self._is_exhausted = True
        return None

    def tell(self, point: Point, values: Sequence[float] | None, stopped_at: int = 0) -> None:
        self._done.add(key(point))
        trial = self._open.pop(key(point), None)
        state = TrialState.FAIL if values is None else TrialState.PRUNED if stopped_at else TrialState.COMPLETE
        reached = {stopped_at: values[0]} if values and stopped_at else {}
        if trial is None:
            params = {dimension.name: _param(dimension, point[dimension.name]) for dimension in self.space}
            given = values if state == TrialState.COMPLETE else None
            self._study.add_trial(
                create_trial(
                    state=state,
                    params=params,
                    distributions=self._distributions,
                    values=given,
                    intermediate_values=reached,
                )
            )
            return
        for epoch, value in reached.items():
            trial.report(value, epoch)
        self._study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)

    @property
    def is_finished(self) -> bool:
        is_empty = self._left is not None and all(key(self._point(choice)) in self._done for choice in self._left)
        return len(self._done) >= self.num or is_empty or (self._is_exhausted and not self._open)

    def _known(self) -> set[str]:
        return self._done | set(self._open)

    def _point(self, params: Mapping[str, Any]) -> Point:
        found = {}
        for dimension in self.space:
            param = params[dimension.name]
            found[dimension.name] = dimension.values[param] if dimension.values else dimension.rounded(param)
        return self.fixed | found


def _choices(space: Space) -> list[dict[str, int]]:
    """All combinations of the values, by their numbers."""
    names = [dimension.name for dimension in space]
    every = itertools.product(*(range(len(dimension.values)) for dimension in space))
    return [dict(zip(names, numbers, strict=True)) for numbers in every]


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.values:  # by number, as neighbouring values do alike
        return IntDistribution(0, len(dimension.values) - 1)
    quantity = QUANTITIES[dimension.name]
    if quantity.is_whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=quantity.is_log)
    return FloatDistribution(dimension.low, dimension.high, log=quantity.is_log)


def _param(dimension: Dimension, value: Value) -> float:
    assert not isinstance(value, str)
    return dimension.values.index(value) if dimension.values else value


class Bisection:
    """The last of some points that holds, where the first few hold and the others do not, by `pareto.bisect`.

    Args:
        points: from the one most likely to hold to the least likely.
        judge: whether a point holds; called once the point and the references have results.
        references: points that the judge needs.
        controls: for the answer, the points to try once it is known.
    """

    def __init__(
        self,
        points: Sequence[Point],
        judge: Callable[[Point], bool],
        references: Sequence[Point] = (),
        controls: Callable[[Point], Sequence[Point]] = lambda _: (),
    ) -> None:
        self.points, self.judge, self.references, self.controls = points, judge, references, controls
        self._asked: set[str] = set()
        self._done: set[str] = set()
        self._holds: dict[int, bool] = {}

    def ask(self) -> Point | None:
        for point in self._wanted():
            if key(point) not in self._asked | self._done:
                self._asked.add(key(point))
                return point
        return None

    def tell(self, point: Point, values: Sequence[float] | None, stopped_at: int = 0) -> None:  # noqa: ARG002
        self._done.add(key(point))

    @property
    def is_finished(self) -> bool:
        return not self._wanted()

    @property
    def judged(self) -> dict[int, bool]:
        """Which points hold, by their numbers, of those that were tried."""
        return self._holds

    @property
    def step(self) -> Step:
        """Where it stands; no answer while a reference is missing."""
        if all(key(point) in self._done for point in self.references):
            for number, point in enumerate(self.points):
                if key(point) in self._done and number not in self._holds:
                    self._holds[number] = self.judge(point)
        return bisect(self._holds, len(self.points))

    def _wanted(self) -> list[Point]:
        """Points to try that have no result yet."""
        step = self.step
        wanted = [*self.references, *(self.points[number] for number in step.todo)]
        if not step.todo and step.answer is not None:
            wanted += self.controls(self.points[step.answer])
        return [point for point in wanted if key(point) not in self._done]
