"""The page of a difference: what changed from one detector to another, the worst first."""

import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any

from raydistal.report import figures, page
from raydistal.report.figures import Picture, picture
from raydistal.report.page import SIGNS, Cell, Row, Table, Tile, count, decimal, millions, percent

NAMES = {"auc": "AUC", "accuracy": "accuracy"}
MAX_DRAWN = 40  # rows of the figure, those that come first
MIN_GROUPS = 30  # below, the page says so


@dataclass(frozen=True)
class Difference:
    """What the pipeline found."""

    info: dict[str, Any]
    """`_table.json`."""
    rows: list[Row]
    """Of `schemas.DIFFERENCE`, the worst first."""

    @property
    def names(self) -> tuple[str, str]:
        """The names of the detectors before and after."""
        return self.info["config"]["before"], self.info["config"]["after"]

    @property
    def unseen(self) -> list[Row]:
        """Rows of what neither detector learnt from."""
        return [row for row in self.rows if is_unseen(row)]


def is_unseen(row: Row) -> bool:
    """True if neither detector learnt from the row's dataset and method."""
    return row["seen_before"] is False and row["seen_after"] is False


def write(location: str) -> str:
    """Writes LOCATION/report from LOCATION/difference and returns the path of the page.

    Raises:
        UserError: there is no such table, or it is unfinished.
    """
    info, rows = page.read(location, "difference", "difference")
    found = Difference(info, rows)
    return page.write(
        location,
        "difference.html.j2",
        [drawing(found)],
        is_synthetic=any(one["synthetic"] for one in (*info["detectors"], *info["data"])),
        names=found.names,
        margin=info["config"]["margin"],
        protocol=info["protocol"],
        tiles=tiles(found),
        notices=notices(found),
        verdicts=verdicts(found),
        differences=differences(found),
        detectors=detectors(found),
        commands=commands(info),
        configs={"difference": info["config"]},
        versions=info["versions"],
    )


def tiles(found: Difference) -> list[Tile]:
    """The headline numbers."""
    data = found.info["data"]
    whole = [row for row in found.rows if (row["slice"], row["metric"]) == ("all", "accuracy")]
    num_videos = sum(row["num"] for row in whole)
    flipped = {name: sum(row["num"] * row[name] for row in whole) for name in ("mended", "broken")}
    split = (sum(one["num_real"] for one in data), sum(one["num_fake"] for one in data))
    return [
        Tile("Videos", num_videos, [f"of {count(len(data), 'dataset')}, the same for both"], split),
        Tile("Losses", _share(found.rows), ["differences that exceed the margin"]),
        Tile("Losses on the unseen", _share(found.unseen), ["what neither learnt from"]),
        Tile(
            "Decisions changed",
            f"{100 * sum(flipped.values()) / max(1, num_videos):.3g} %",
            [f"{flipped['broken']:.0f} turned wrong, {flipped['mended']:.0f} turned right"],
        ),
    ]


def _share(rows: list[Row]) -> str:
    return f"{sum(row['verdict'] == 'inferior' for row in rows)} of {len(rows)}"


def notices(found: Difference) -> list[str]:
    """What a reader must know before believing the numbers."""
    warnings = []
    for one in found.info["detectors"]:
        if not one["learnt"]["is_all"]:
            warnings.append(
                f"The training data of {one['name']} is not fully known: an ancestor or teacher is missing or does not "
                "record it. What it may have seen is not counted as unseen."
            )
    if not found.unseen:
        warnings.append(
            "Nothing here is known to be unseen by both detectors: how they do on new fakes is not measured."
        )
    for row in found.rows:
        if (row["slice"], row["metric"]) == ("all", "auc") and row["num_groups"] < MIN_GROUPS:
            warnings.append(
                f"{row['dataset']} has only {row['num_groups']} groups of one class: small losses cannot be detected."
            )
    return warnings


def verdicts(found: Difference) -> list[Row]:
    """How many differences are losses, and the worst one: on what is unseen by both detectors, and on the rest."""
    groups = [("what neither learnt from", found.unseen)]
    groups.append(("all else", [row for row in found.rows if not is_unseen(row)]))
    made = []
    for name, rows in groups:
        if not rows:
            continue
        counts = [(sum(row["verdict"] == verdict for row in rows), verdict) for verdict in SIGNS]
        sign = next(SIGNS[verdict] for num, verdict in counts if num)
        tally = ", ".join(f"{num} {verdict}" for num, verdict in counts if num)
        made.append({"sign": sign, "text": f"On {name}: {tally}.", "below": f"Worst: {_sentence(rows[0])}"})
    return made


def _sentence(row: Row) -> str:
    numbers = " to ".join(f"{row[name]:.3f}" for name in ("before", "after"))
    points, low, high = page.points(row)
    return f"{NAMES[row['metric']]} on {_of(row)}: from {numbers}, {points} points ({low} to {high}), {row['verdict']}."


def _of(row: Row) -> str:
    return f"{row['slice']} of {row['dataset']}"


def differences(found: Difference) -> Table:
    """Every row, the worst first."""
    rows: list[list[Cell]] = []
    for row in found.rows:
        points, low, high = page.points(row)
        rows.append(
            [
                Cell(row["slice"], f"{row['dataset']} \N{MIDDLE DOT} {NAMES[row['metric']]}"),
                Cell(row["verdict"], "" if row["beats_chance"] else "no better than chance"),
                Cell(points, f"{low} to {high}"),
                *(decimal(row[name]) for name in ("before", "after")),
                Cell(seen(row, *found.names)),
                *(percent(row[name]) for name in ("broken", "mended")),
                Cell(f"{row['num']:,}", count(row["num_groups"], "group")),
            ]
        )
    columns = ["of", "verdict", "points", "before", "after", "learnt from", "turned wrong %", "turned right %"]
    columns += ["videos"]
    return Table("Every difference", columns, rows)


def seen(row: Row, before: str, after: str) -> str:
    """Which of the two learnt from it."""
    if None in (row["seen_before"], row["seen_after"]):
        return "not known"
    by = [name for name, has_seen in ((before, row["seen_before"]), (after, row["seen_after"])) if has_seen]
    return {0: "unseen", 2: "both"}.get(len(by), "".join(by))


def drawing(found: Difference) -> Picture:
    """Differences with their intervals, in the order of the table."""
    rows, names, alt_parts = found.rows[:MAX_DRAWN], [], []
    for row in rows:
        names.append(f"{row['slice']}, {NAMES[row['metric']]}\n{row['dataset']}{' (unseen)' if is_unseen(row) else ''}")
        alt_parts.append(f"{names[-1].replace(chr(10), ', ')}: {' '.join(page.points(row))}")
    drawn = partial(
        figures.intervals,
        names=names,
        rows=rows,
        xlabel="points; shaded: the margin",
        margin=found.info["config"]["margin"],
    )
    alt = f"Differences in points, each with the ends of its interval, the worst first. {'; '.join(alt_parts)}."
    return picture("differences", page.visible(alt), drawn)


def detectors(found: Difference) -> Table:
    """The two detectors, and what they have learnt from."""
    rows: list[list[Cell]] = []
    for one in found.info["detectors"]:
        names = [", ".join(one["learnt"][key]) or "\N{EN DASH}" for key in ("datasets", "methods")]
        shown = (Cell(one["name"], one["architecture"]), Cell(one["model_id"]), Cell(millions(one["num_params"])))
        rows.append([*shown, *map(Cell, names), Cell("yes" if one["learnt"]["is_all"] else "no")])
    columns = ["detector", "model", "parameters", "datasets learnt from", "methods learnt from", "known in full"]
    return Table("Detectors", columns, rows).transposed()


def commands(info: dict[str, Any]) -> list[tuple[str, str]]:
    """What to type next, each with its purpose."""
    config = info["config"]
    place = f"--evaluation {shlex.quote(config['evaluation'])}"
    names = f"--before {shlex.quote(config['after'])} --after {shlex.quote(config['before'])}"
    return [("The other way round", f"raydistal difference {place} {names} --margin {config['margin']}")]
