"""scores of an evaluation -> EVALUATION/difference/BEFORE--AFTER: what changed from one detector to another.

For every run, on all its videos and on each method: paired differences with intervals, decisions that flip, a verdict,
and whether either detector learnt from it. The worst comes first. Needs no Ray.
"""

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raydistal import schemas, storage, tables
from raydistal.errors import UserError

if TYPE_CHECKING:
    from raydistal.detector.lineage import Learnt

NUM_SHOWN = 12  # rows in the terminal
ORDER = ("inferior", "cannot tell", "non-inferior")
REMARK = (
    "Differences are after minus before, on the same videos; intervals come from {num} resamples of whole groups, the "
    "same for both. With so many rows, some rise or fall by chance. What a detector learnt from is read from "
    "detector.json, its own and those of its ancestors and teachers: datasets and methods by name."
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show what changed from one detector to another, so that no loss is hidden."""

    evaluation: str
    """Folder that raydistal evaluate wrote, with both detectors."""
    before: str
    """Name of the reference detector, as in the evaluation."""
    after: str
    """Name of the detector to compare with it."""
    margin: float = 0.02
    """Non-inferiority margin: what may be lost in AUC or accuracy; 0.02 is 2 points."""

    def __post_init__(self) -> None:
        if self.before == self.after:
            raise UserError(f"--before and --after are both {self.before}: name two detectors")
        if not 0 < self.margin < 1:
            raise UserError(f"--margin must be between 0 and 1, not {self.margin}")


def run(config: Config) -> dict[str, Any]:
    """Writes the table and its page, and returns the summary.

    Raises:
        UserError: no finished evaluation, or it has no detector of that name.
    """
    from raydistal.detector import checkpoint, evaluated
    from raydistal.detector.comparison import NUM_RESAMPLES
    from raydistal.detector.difference import differences
    from raydistal.detector.lineage import learnt_from
    from raydistal.report import difference as report

    began = time.monotonic()
    evaluation = evaluated.read(storage.absolute(config.evaluation))
    places = {name: location for location, name in evaluation.names.items()}
    for name in (config.before, config.after):
        if name not in places:
            raise UserError(f"{config.evaluation} has no detector {name}. It has: {', '.join(places)}")
    pair = {name: learnt_from(checkpoint.read_about(places[name])) for name in (config.before, config.after)}
    rows = []
    for data in evaluation.info["data"]:
        before, after = (evaluation.results(name, data["name"]) for name in pair)
        for row in differences(before, after, config.margin):
            rows.append(row | {"dataset": data["name"]} | _seen(row["slice"], data["datasets"], *pair.values()))
    rows.sort(key=lambda row: (ORDER.index(row["verdict"]), row["difference"]))
    out = storage.join(evaluation.location, "difference", f"{config.before}--{config.after}")
    protocol = evaluation.info["protocol"]
    remark = REMARK.format(num=NUM_RESAMPLES)
    detectors = [one for name in pair for one in evaluation.info["detectors"] if one["name"] == name]
    tables.write_table(
        storage.join(out, "difference"),
        pa.Table.from_pylist(rows, schemas.DIFFERENCE),
        dataclasses.asdict(config),
        detectors=[one | _learnt(pair[one["name"]]) for one in detectors],
        data=evaluation.info["data"],
        protocol=protocol | {"text": f"{protocol['text']} {remark}"},
    )
    page = report.write(out)
    _print(config, rows)
    return _summary(rows) | {"seconds": round(time.monotonic() - began, 1), "report": page}


def _seen(slice_: str, datasets: list[str], before: "Learnt", after: "Learnt") -> dict[str, bool | None]:
    method = None if slice_ in ("all", "real") else slice_
    return {"seen_before": before.has_seen(datasets, method), "seen_after": after.has_seen(datasets, method)}


def _learnt(learnt: "Learnt") -> dict[str, Any]:
    sets = {"datasets": sorted(learnt.datasets), "methods": sorted(learnt.methods)}
    return {"learnt": sets | {"is_all": learnt.is_all}}


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of verdicts, and the worst row: of all, and of what neither detector learnt from."""
    from raydistal.report.difference import is_unseen

    found = {}
    for name, some in (("all", rows), ("unseen", [row for row in rows if is_unseen(row)])):
        counts = {verdict: sum(row["verdict"] == verdict for row in some) for verdict in ORDER}
        keys = ("dataset", "slice", "metric", "difference", "low", "high", "verdict")
        found[name] = counts | {"worst": {key: some[0][key] for key in keys} if some else None}
    return found


def _print(config: Config, rows: list[dict[str, Any]]) -> None:
    """The worst rows, on stderr, for 80 columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from raydistal.report.difference import is_unseen

    title = f"{config.after} against {config.before}, margin {100 * config.margin:g} points"
    table = Table("of", "", title=escape(title), title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("before", "after", "points", "95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows[:NUM_SHOWN]:
        names = (escape(f"{row['slice']} of {row['dataset']}{', unseen' if is_unseen(row) else ''}"), row["metric"][:3])
        values = (f"{row['before']:.3f}", f"{row['after']:.3f}", f"{100 * row['difference']:+.1f}")
        table.add_row(*names, *values, f"{100 * row['low']:+.1f} {100 * row['high']:+.1f}", row["verdict"])
    console = Console(stderr=True, highlight=False)
    console.print(table)
    if len(rows) > NUM_SHOWN:
        console.print(f"{len(rows) - NUM_SHOWN} more rows in the report")
