"""Progress of a search on stderr: a live table on a terminal, otherwise a line for every trial that ends."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live as Display
from rich.markup import escape
from rich.table import Table

from raydistal.progress import LINE_EVERY_S, sign

if TYPE_CHECKING:
    from raydistal.search.agenda import Agenda, Trial

MAX_DONE = 12  # trials that are done, best first
MAX_RUNNING = 8
SHORT = {"temperature": "temp.", "kd_weight": "weight", "negatives": "K"}

Row = Mapping[str, Any]


class Live:
    """The display of a search. Use as a context manager.

    Args:
        varied: names of the quantities that the trials differ in.
        metric: by which they are sorted.
        num_trials: total number; 0: not known in advance.
    """

    def __init__(self, varied: Sequence[str], metric: str, num_trials: int) -> None:
        self.varied, self.metric, self.num_trials = varied, metric, num_trials
        self.reached: dict[str, Row] = {}
        self.line_at = time.monotonic()
        console = Console(stderr=True)
        self.display = Display(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.display:
            self.display.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.display:
            self.display.stop()

    def show(self, agenda: "Agenda") -> None:
        """A trial was started."""
        if self.display:
            self.display.update(self._table(agenda), refresh=True)

    def tell(self, agenda: "Agenda", trial: "Trial", reached: Row) -> None:
        """An epoch of a trial is over."""
        if "epoch" in reached:
            sign(f"search: {self._count(agenda)}, an epoch of another")
            self.reached[trial.id] = reached
            self.show(agenda)
            if not self.display and time.monotonic() - self.line_at >= LINE_EVERY_S:
                self._line(agenda, trial, _so_far(reached))

    def finish(self, agenda: "Agenda", trial: "Trial", row: Row) -> None:
        """A trial has ended."""
        sign(f"search: {self._count(agenda)}")
        self.show(agenda)
        if not self.display:
            error = (row.get("error") or "").split("\n")[0]
            found = f"{self.metric} {row[self.metric]:.3f}" if row.get(self.metric) is not None else ""
            size = f"{row['size_mb']:.2f} MB" if row["status"] == "ok" else row["status"]
            self._line(agenda, trial, ", ".join(one for one in (found, size, error) if one))

    def _line(self, agenda: "Agenda", trial: "Trial", message: str) -> None:
        self.line_at = time.monotonic()
        point = " ".join(f"{name}={_short(trial.point[name])}" for name in self.varied)
        print(f"search: {self._count(agenda)}: {point} seed {trial.seed}: {message}", file=sys.stderr, flush=True)

    def _count(self, agenda: "Agenda") -> str:
        of = f"/{self.num_trials}" if self.num_trials else ""
        return f"{len(agenda.rows)}{of} trials"

    def _table(self, agenda: "Agenda") -> Table:
        rows = [
            trial.point | {"seed": trial.seed, "state": _so_far(self.reached.get(trial.id, {}))}
            for trial in list(agenda.running.values())[:MAX_RUNNING]
        ]
        done = sorted(agenda.rows.values(), key=lambda row: -(row.get(self.metric) or 0.0))
        rows += [{"state": row["status"], **row} for row in done[:MAX_DONE]]
        num_failed = sum(row["status"] == "failed" for row in done)
        title = f"search: {self._count(agenda)}, {len(agenda.running)} running, {num_failed} failed"
        return grid(self.varied, rows, self.metric, title)


def grid(varied: Sequence[str], rows: Sequence[Row], metric: str, title: str = "") -> Table:
    """Trials or points with what was measured, for 80 columns."""
    table = Table(title=title or None, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in (*varied, *(["seed"] if any("seed" in row for row in rows) else [])):
        table.add_column(SHORT.get(name, name), justify="right", no_wrap=True)
    measured: dict[str, Callable[[float], str]] = {
        metric: "{:.3f}".format,
        "num_params": _millions,
        "size_mb": "{:.2f}".format,
    }
    for name in ("accuracy" if metric == "accuracy" else "AUC", "params", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True)
    for row in rows:
        cells = [_short(row[name]) for name in varied]
        cells += [str(row["seed"])] if "seed" in row else []
        cells += ["-" if row.get(name) is None else to_text(row[name]) for name, to_text in measured.items()]
        table.add_row(*cells, escape(str(row.get("state", ""))))
    return table


def _millions(number: float) -> str:
    return f"{number / 1e6:.3g} M"


def _so_far(reached: Row) -> str:
    return f"epoch {reached['epoch']}: {reached['score']:.3f}" if reached else "begins"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
