"""The order of trials: every point with every seed, and no detector made twice.

A trial makes a chain of detectors: a trained one, from it a pruned one, from that an exported one. Trials whose points
differ only in later steps share the earlier detectors: one trial makes them while the others wait.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydistal.search.space import QUANTITIES, Point, key

if TYPE_CHECKING:  # it loads optuna, which the command line must not
    from raydistal.search.strategies import Strategy

POINT = ("set", *QUANTITIES)  # columns of `schemas.TRIALS`

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A point and a seed: all in which one detector of a search differs from the others."""

    point: Point
    seed: int

    @classmethod
    def of(cls, row: Row) -> "Trial":
        """The trial of a row of `schemas.TRIALS`."""
        return cls({name: row[name] for name in POINT if row.get(name) is not None}, row["seed"])

    @property
    def id(self) -> str:
        """12 hexadecimal digits."""
        return key(self.point, self.seed)

    @property
    def stages(self) -> tuple[str, ...]:
        """The folders of its detectors, each made from the one before; the last is the result."""
        student = {name: value for name, value in self.point.items() if name not in ("prune", "bits")}
        names = [f"train-{key(student, self.seed)}"]
        if self.point["prune"]:
            names.append(f"prune-{key(student | {'prune': self.point['prune']}, self.seed)}")
        if self.point["bits"] == 8:
            names.append(f"int8-{self.id}")
        return tuple(names)


class Agenda:
    """Keeps track of waiting, running and finished trials.

    Args:
        strategy: proposes points; is told of those that are done already.
        num_seeds: trials of each point, seeds from 0.
        rows: finished trials, `schemas.TRIALS`; new ones are added.
        judge: from the rows of a point's seeds to the values that the strategy is told; None: the point failed.
        is_made: whether a stage's folder holds a finished detector.
        first: points to try before the strategy is asked, as an earlier run began them.
    """

    def __init__(
        self,
        strategy: "Strategy",
        num_seeds: int,
        rows: dict[str, Row],
        judge: Callable[[Sequence[Row]], Sequence[float] | None],
        is_made: Callable[[str], bool],
        first: Iterable[Point] = (),
    ) -> None:
        self.strategy, self.num_seeds, self.rows, self.judge, self.is_made = strategy, num_seeds, rows, judge, is_made
        self.waiting: dict[str, Trial] = {}
        self.running: dict[str, Trial] = {}
        self._made: set[str] = set()
        done = [Trial.of(row).point for row in rows.values()]
        for point in {key(point): point for point in done}.values():
            self._tell_if_complete(point)
        for point in first:
            if len(self.rows_of(point)) < num_seeds:
                self._plan(point)

    def next(self) -> Trial | None:
        """A trial to start now; None: wait for a running one, or all are done."""
        while True:
            for trial in self.waiting.values():
                if not self._is_blocked(trial):
                    self.running[trial.id] = self.waiting.pop(trial.id)
                    return trial
            point = self.strategy.ask()
            if point is None:
                return None
            self._plan(point)

    def finish(self, trial: Trial, row: Row) -> None:
        """Records the result of a trial that ran."""
        del self.running[trial.id]
        self.rows[trial.id] = row
        self._tell_if_complete(trial.point)

    @property
    def is_finished(self) -> bool:
        """True if nothing runs and nothing is left to do."""
        return not self.running and not self.waiting and self.strategy.is_finished

    def rows_of(self, point: Point) -> list[Row]:
        """The rows of a point's finished trials, by seed."""
        ids = (Trial(point, seed).id for seed in range(self.num_seeds))
        return [self.rows[id] for id in ids if id in self.rows]

    def _plan(self, point: Point) -> None:
        trials = (Trial(point, seed) for seed in range(self.num_seeds))
        self.waiting |= {trial.id: trial for trial in trials if trial.id not in {*self.rows, *self.running}}

    def _tell_if_complete(self, point: Point) -> None:
        rows = self.rows_of(point)
        if len(rows) == self.num_seeds:
            stopped_at = [int(row["epochs"]) for row in rows if row["status"] == "stopped"]
            self.strategy.tell(point, self.judge(rows), max(stopped_at, default=0))

    def _is_blocked(self, trial: Trial) -> bool:
        """True if a running trial is making a detector that this one needs too."""
        in_hand = {stage for other in self.running.values() for stage in other.stages}
        for stage in in_hand.intersection(trial.stages) - self._made:
            if not self.is_made(stage):
                return True
            self._made.add(stage)
        return False
