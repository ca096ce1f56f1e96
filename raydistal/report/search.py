"""The page of a search: what was tried, which points are best, how the result depends on what was varied."""

import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any

from raydistal.report import figures, page
from raydistal.report.figures import Cloud, Picture, picture
from raydistal.report.page import Cell, Row, Table, Tile, count, decimal, duration, millions, percent

NAMES = {
    "data": "share of the data",
    "prune": "share pruned",
    "kd_weight": "weight of the teacher",
    "negatives": "negatives K",
    "accuracy": "accuracy",
    "auc": "AUC",
    "size_mb": "MB",
    "macs": "MACs",
    "num_params": "parameters",
}


@dataclass(frozen=True)
class Search:
    """What search found."""

    info: dict[str, Any]
    """`_table.json` of `trials`."""
    rows: list[Row]
    """The trials of this search; the table may hold those of other searches too."""

    @property
    def config(self) -> dict[str, Any]:
        """The search's own config."""
        return dict(self.info["search"])

    @property
    def points(self) -> list[Row]:
        """Points that learnt from the ranking, the best first."""
        points = [point for point in self.info["points"] if point["set"] == "ranking"]
        return sorted(points, key=lambda point: -float(point[self.config["metric"]]))


def write(location: str) -> str:
    """Writes LOCATION/report from LOCATION/trials and returns the path of the page.

    Raises:
        UserError: there is no such table, or it is unfinished.
    """
    info, rows = page.read(location, "trials", "search")
    by_id = {row["trial"]: row for row in rows}
    found = Search(info, [by_id[name] for name in info["trials"]])
    return page.write(
        location,
        "search.html.j2",
        [trade_offs(found), dimensions(found)],
        is_synthetic=info["synthetic"],
        config=found.config,
        dataset=", ".join(info["dataset"]),
        tiles=tiles(found),
        notices=notices(found),
        bisect=info["bisect"],
        evidence=evidence(found) if info["bisect"] else None,
        alphas=by_alpha(found) if "alpha" in info["varied"] else None,
        front=of_points(found, [point for point in found.points if point["id"] in info["front"]]),
        trials=trials(found),
        failures=[(told_point(found, row), row["error"]) for row in found.rows if row["status"] == "failed"],
        commands=commands(location, found),
        configs={"search": found.config, "settings of every trial": info["config"]},
        versions=info["versions"],
    )


def tiles(found: Search) -> list[Tile]:
    """The headline numbers."""
    counts, metric = found.info["counts"], found.config["metric"]
    best = next(point for point in found.points if point["id"] == found.info["best"])
    small = min((point for point in found.points if point["id"] in found.info["front"]), key=lambda one: one["size_mb"])
    ended = [
        f"{counts[name]} {word}" for name, word in (("stopped", "stopped early"), ("failed", "failed")) if counts[name]
    ]
    spent = found.info["cost"]
    on_gpu = [f"GPU {duration(spent['gpu_seconds'])}"] if spent["gpu_seconds"] else []
    return [
        Tile("Trials", len(found.rows), [count(len(found.points), "point"), *ended]),
        Tile(f"Highest {NAMES[metric]}", _score(metric, best[metric]), [told_point(found, best), _size(best)]),
        Tile("Smallest on the front", _size(small), [told_point(found, small), _score(metric, small[metric])]),
        Tile("CPU time", duration(spent["cpu_seconds"]), [f"{duration(spent['seconds'])} of trials", *on_gpu]),
    ]


def notices(found: Search) -> list[str]:
    """What a reader must know before believing the numbers."""
    num_trials, num_videos = len(found.rows), sum(found.info["val"].values())
    warnings = [
        f"The best of {count(num_trials, 'trial')} was chosen on the same {count(num_videos, 'video')} that it is "
        "measured on, so its number is optimistic. Measure it on a test split, see below."
    ]
    if num_failed := found.info["counts"]["failed"]:
        warnings.append(f"{count(num_failed, 'trial')} failed, see below. The same command tries them again.")
    return warnings + page.caveats(found.config["seeds"], num_videos, "val")


def trade_offs(found: Search) -> Picture:
    """The metric against what it costs: size, multiply-accumulates and, if it was varied, the share of the data."""
    objectives = found.info["objectives"]
    costs = ["size_mb", "macs"] + [
        name for name in objectives if name not in ("size_mb", "macs", found.config["metric"])
    ]
    made = [_cloud(found, name, joins_marked=objectives[1:] == [name]) for name in costs]
    names = ", ".join(NAMES[name] for name in objectives)
    alt = [f"Points by {names}. On the Pareto front:"]
    alt += [
        f"{told_point(found, point)}: {', '.join(_value(name, point[name]) for name in objectives)};"
        for point in found.points
        if point["id"] in found.info["front"]
    ]
    drawn = partial(figures.clouds, clouds=made, marked="Pareto front", others="other points")
    return picture("trade_offs", page.visible(" ".join(alt)), drawn)


def dimensions(found: Search) -> Picture:
    """The metric against each quantity that was varied."""
    names = found.info["varied"]
    drawn = partial(
        figures.clouds,
        clouds=[_cloud(found, name) for name in names],
        marked="Pareto front",
        others="other points",
    )
    alt = (
        f"{NAMES[found.config['metric']]} against {', '.join(map(_name, names))}, point by point; all are in the table."
    )
    return picture("dimensions", page.visible(alt), drawn)


def _cloud(found: Search, name: str, joins_marked: bool = False) -> Cloud:
    metric, scale = found.config["metric"], 1e6 if name in ("macs", "num_params") else 1.0
    return Cloud(
        xlabel=_name(name) + (", millions" if scale > 1 else ""),
        ylabel=f"{NAMES[metric]}, val",
        x_N=[point[name] / scale for point in found.points],
        y_N=[point[metric] for point in found.points],
        is_marked_N=[point["id"] in found.info["front"] for point in found.points],
        joins_marked=joins_marked,
    )


def by_alpha(found: Search) -> Table:
    """Table 6.2.5.1.1 of the thesis: the metric by alpha; a row for each combination of what else was varied."""
    metric, others = found.config["metric"], [name for name in found.info["varied"] if name != "alpha"]
    alphas = sorted({float(point["alpha"]) for point in found.points})
    value = {(point["alpha"], *(point[name] for name in others)): point[metric] for point in found.points}
    rows: list[list[Cell]] = []
    for rest in sorted({key[1:] for key in value}):
        setting = " ".join(f"{name}={_short(one)}" for name, one in zip(others, rest, strict=True))
        rows.append([Cell(setting or f"{NAMES[metric]} %"), *(percent(value.get((alpha, *rest))) for alpha in alphas)])
    columns = [f"{NAMES[metric]} %" if others else "alpha", *map(_short, alphas)]
    return Table("By alpha, the weight of the teachers against that of the labels", columns, rows)


def evidence(found: Search) -> Table:
    """What a bisection tried, from the smallest to the largest."""
    bisection, metric = found.info["bisect"], found.config["metric"]
    rows: list[list[Cell]] = []
    for one in bisection["evidence"]:
        cells = [Cell(_short(one["value"])), percent(one["mean"])]
        if bisection["varied"] == "data":
            points = {name: None if "low" not in one else one[name] for name in ("difference", "low", "high")}
            cells.append(percent(*points.values()))
        rows.append([*cells, Cell("yes" if one["holds"] else "no", one["verdict"] if "low" in one else "")])
    columns = [_name(bisection["varied"]), f"{NAMES[metric]} %"]
    columns += ["against all of the data, points"] * (bisection["varied"] == "data")
    return Table("What was tried", [*columns, "holds"], rows)


def of_points(found: Search, points: list[Row]) -> Table:
    """Points with what was measured, means over seeds."""
    rows: list[list[Cell]] = [
        [
            Cell(told_point(found, point), count(point["num_seeds"], "seed") if found.config["seeds"] > 1 else ""),
            *_measured(point),
            Cell(f"{point['images']:,.0f}"),
        ]
        for point in points
    ]
    return Table("On the Pareto front", ["point", *MEASURED, "images seen"], rows)


def trials(found: Search) -> Table:
    """Every trial."""
    ordered = sorted(found.rows, key=lambda row: -(row[found.config["metric"]] or 0.0))
    rows: list[list[Cell]] = [
        [
            Cell(told_point(found, row), row["set"] if row["set"] != "ranking" else ""),
            Cell(str(row["seed"])),
            Cell(row["status"], f"after epoch {row['epochs']}" if row["status"] == "stopped" else ""),
            *_measured(row),
            Cell(f"{row['images']:,}"),
            Cell(duration(row["seconds"])),
            Cell(row["trial"]),
        ]
        for row in ordered
    ]
    return Table("Every trial", ["point", "seed", "status", *MEASURED, "images seen", "time", "trial"], rows)


MEASURED = ["accuracy %", "AUC", "loss", "parameters", "MACs", "MB"]


def _measured(row: Row) -> list[Cell]:
    large = [
        Cell("\N{EN DASH}") if row[name] is None else Cell(millions(round(row[name])))
        for name in ("num_params", "macs")
    ]
    size = Cell("\N{EN DASH}" if row["size_mb"] is None else f"{row['size_mb']:.3g}")
    return [percent(row["accuracy"]), decimal(row["auc"]), decimal(row["loss"]), *large, size]


def commands(location: str, found: Search) -> list[tuple[str, str]]:
    """What to type next, each with its purpose."""
    best = next(point for point in found.points if point["id"] == found.info["best"])
    names = ["set", *found.info["varied"]]
    detector = next(
        row["detector"] for row in found.rows if row["detector"] and all(row[name] == best[name] for name in names)
    )
    data, place = shlex.quote(found.config["data"]), shlex.quote(detector)
    space = shlex.join(found.config["space"])
    return [
        (
            "Measure the best one on videos that it was not chosen by",
            f"raydistal evaluate --detectors {place} --data {data} --out EVALUATION",
        ),
        (
            "Go on with it: what was tried is not tried again. More --seeds tell luck from merit",
            f"raydistal search --data {data} --out {shlex.quote(location)} \\\n"
            f"  --architecture {shlex.quote(found.config['architecture'])} --space {space} \\\n"
            f"  --strategy {found.config['strategy']} --seeds {found.config['seeds'] + 2} ...",
        ),
    ]


def told_point(found: Search, row: Row) -> str:
    """alpha=0.25 prune=0.4."""
    return " ".join(f"{name}={_short(row[name])}" for name in found.info["varied"])


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _short(value: float) -> str:
    return f"{value:g}"


def _score(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.3f}"


def _size(point: Row) -> str:
    return f"{point['size_mb']:.3g} MB"


def _value(name: str, value: float) -> str:
    if name in ("accuracy", "auc"):
        return f"{NAMES[name]} {_score(name, value)}"
    return f"{NAMES[name]} {millions(round(value)) if name in ('macs', 'num_params') else f'{value:.3g}'}"
