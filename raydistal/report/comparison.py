"""The page of a comparison: detectors trained on the full set, on distilled ones, and on others of the same size."""

import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any

from raydistal import storage
from raydistal.report import figures, page
from raydistal.report.figures import Bars, Line, Panel, Picture, picture
from raydistal.report.page import SIGNS, Cell, Row, Table, Tile, count, decimal, duration, percent

KINDS = {"full": "full", "distilled": "distilled", "random": "random", "frame_count": "most faces"}


@dataclass(frozen=True)
class Comparison:
    """What compare found."""

    info: dict[str, Any]
    """`_table.json` of `comparison`."""
    rows: list[Row]
    """One per trained detector."""

    @property
    def sets(self) -> list[Row]:
        """The summary, set by set and within that by architecture as in table 1 of DeepDistAL, without kind `faces`."""
        rows = [row for row in self.info["summary"] if row["kind"] in KINDS]
        names = [row["set"] for row in rows]
        return sorted(rows, key=lambda row: names.index(row["set"]))


def write(location: str) -> str:
    """Writes LOCATION/report from LOCATION/comparison and returns the path of the page.

    Raises:
        UserError: there is no such table, or it is unfinished.
    """
    info, rows = page.read(location, "comparison", "compare")
    found = Comparison(info, rows)
    pictures = [accuracies(found)] + ([quantity(found)] if info["curve"] else [])
    return page.write(
        location,
        "comparison.html.j2",
        pictures,
        is_synthetic=info["synthetic"],
        protocol=info["protocol"],
        test=info["test"],
        tiles=tiles(found),
        notices=notices(found),
        verdicts=verdicts(found),
        performance=performance(found),
        faces=by_faces(found),
        trained=trained(found),
        commands=commands(location, info["config"]),
        evaluation=storage.join(location, "evaluation", "report", "index.html"),
        configs={"compare": info["config"]},
        versions=info["versions"],
    )


def tiles(found: Comparison) -> list[Tile]:
    """The headline numbers."""
    test, made = found.info["test"], [Tile("Detectors trained", len(found.rows), [_variety(found)])]
    made.append(Tile("Test videos", test["num_videos"], ["the same for all"], (test["num_real"], test["num_fake"])))
    for title, versus, verdict in (
        ("As good as full", "full", "non-inferior"),
        ("Better than random", "random", "better"),
    ):
        passed = [one["verdict"] == verdict for one in found.info["verdicts"] if one["versus"] == versus]
        made.append(Tile(title, f"{sum(passed)} of {len(passed)}", [f"distilled sets are {verdict}"]))
    return made


def notices(found: Comparison) -> list[str]:
    """What a reader must know before believing the numbers."""
    num_seeds = min((row["num_seeds"] for row in found.sets), default=0)
    return page.caveats(num_seeds, found.info["test"]["num_videos"])


def verdicts(found: Comparison) -> list[Row]:
    """The verdicts with a sign, the difference and its interval in points (hundredths)."""
    return [one | {"sign": SIGNS[one["verdict"]], "numbers": page.points(one)} for one in found.info["verdicts"]]


def performance(found: Comparison) -> Table:
    """Table 1 of DeepDistAL, with AUC, intervals and cost. Means over seeds; shares in percent."""
    full = {row["architecture"]: row for row in found.sets if row["kind"] == "full"}
    rows: list[list[Cell]] = []
    for row in found.sets:
        share = row["images"] / max(1, full[row["architecture"]]["images"])
        on_gpu = f"GPU {duration(row['gpu_seconds'])}" if row["gpu_seconds"] else ""
        rows.append(
            [
                Cell(row["set"], row["architecture"]),
                *(percent(row[name]) for name in ("precision", "recall", "f1")),
                percent(row["accuracy_mean"], row["accuracy_low"], row["accuracy_high"]),
                decimal(row["auc_mean"], row["auc_low"], row["auc_high"]),
                Cell(f"{row['num_videos']:,.0f}"),
                Cell(f"{row['images']:,.0f}", f"{100 * share:.3g} % of full"),
                Cell(duration(row["seconds"]), on_gpu),
            ]
        )
    measures = ["precision %", "recall %", "F1 %", "accuracy %", "AUC"]
    columns = ["set, model", *measures, "videos learnt from", "images seen", "training time"]
    return Table(f"Performance on {_test(found)}, and cost of one training", columns, rows)


def by_faces(found: Comparison) -> Table:
    """The points of the data-quantity curve."""
    rows: list[list[Cell]] = [
        [
            Cell(f"{row['num_faces']:,}", row["architecture"]),
            percent(row["accuracy_mean"], row["accuracy_low"], row["accuracy_high"]),
        ]
        for row in found.info["curve"]
    ]
    return Table("Accuracy by number of faces", ["faces, model", "accuracy %"], rows)


def trained(found: Comparison) -> Table:
    """Every detector that was trained."""
    names = ("precision", "recall", "f1", "accuracy")
    rows: list[list[Cell]] = [
        [
            Cell(row["set"], row["architecture"]),
            *(Cell(f"{row[name]:,}") for name in ("seed", "num_videos", "num_faces")),
            *(percent(row[name]) for name in names),
            decimal(row["auc"]),
            Cell(duration(row["seconds"])),
        ]
        for row in found.rows
    ]
    columns = ["set, model", "seed", "videos", "faces", *(f"{name} %" for name in names), "AUC", "time"]
    return Table("Every detector", columns, rows)


def accuracies(found: Comparison) -> Picture:
    """Figure 6 of DeepDistAL: accuracy by set and architecture; beside the distilled set others of its size."""
    row_of = {(row["set"].removesuffix(f"-{row['kind']}"), row["architecture"], row["kind"]): row for row in found.sets}
    keys = list(dict.fromkeys(key[:2] for key in row_of))
    groups = [f"{name}\n{architecture}" for name, architecture in keys]
    bars, alt_parts = [], []
    for kind, name in KINDS.items():
        rows = [row_of.get((*key, kind), {}) for key in keys]
        if not any(rows):
            continue
        values, lows, highs = ([row.get(f"accuracy_{part}") for row in rows] for part in ("mean", "low", "high"))
        bars.append(Bars(name=name, value_G=values, low_G=lows, high_G=highs))
        pairs = zip(groups, values, strict=True)
        alt_parts += [
            f"{' '.join(group.split())}, {name}: {percent(value).text} %" for group, value in pairs if value is not None
        ]
    test = found.info["test"]
    larger = max(test["num_real"], test["num_fake"]) / max(1, test["num_videos"])
    drawn = partial(
        figures.grouped_bars,
        groups=groups,
        bars=bars,
        xlabel="accuracy, video level",
        line=(larger, f"always the larger class: {percent(larger).text} %"),
    )
    return picture(
        "accuracy", page.visible(f"Bars of the accuracy by training set and model. {'; '.join(alt_parts)}."), drawn
    )


def quantity(found: Comparison) -> Picture:
    """Figure 2 of CKD: accuracy by number of training faces, which grows by factors."""
    lines, alt_parts = [], []
    for architecture in dict.fromkeys(row["architecture"] for row in found.info["curve"]):
        rows = sorted(
            (row for row in found.info["curve"] if row["architecture"] == architecture),
            key=lambda row: int(row["num_faces"]),
        )
        values, lows, highs = ([row[f"accuracy_{part}"] for row in rows] for part in ("mean", "low", "high"))
        faces = [row["num_faces"] for row in rows]
        lines.append(Line(name=architecture, x=faces, y=values, low=lows, high=highs))
        shown = (f"{percent(value).text} % with {num:,}" for num, value in zip(faces, values, strict=True))
        alt_parts.append(f"{architecture}: {', '.join(shown)}")
    panel = Panel(title="", xlabel="training faces (log scale)", ylabel="accuracy", lines=lines, is_log_x=True)
    alt = f"Accuracy by number of training faces. {'; '.join(alt_parts)}."
    return picture("quantity", page.visible(alt), partial(figures.curves, panels=[panel]))


def commands(location: str, config: dict[str, Any]) -> list[tuple[str, str]]:
    """What to type next, each with its purpose."""
    settings = {name: config[name] for name in ("architectures", "sets", "faces", "split", "metric", "margin")}
    settings |= {name: value for name, value in config["training"].items() if name not in ("device", "cpus")}
    places = f"--data {shlex.quote(config['data'])} --out {shlex.quote(location)}"
    return [
        (
            "More seeds, for narrower intervals; what is trained is not trained again",
            f"raydistal compare {places} --seeds {config['seeds'] + 2} \\\n  {page.options(settings)}",
        ),
    ]


def _variety(found: Comparison) -> str:
    summary = found.info["summary"]
    parts = ((len({row[name] for row in summary}), unit) for name, unit in (("architecture", "model"), ("set", "set")))
    return " · ".join([*(count(*part) for part in parts), count(len({row["seed"] for row in found.rows}), "seed")])


def _test(found: Comparison) -> str:
    test = found.info["test"]
    return f"{count(test['num_videos'], 'test video')} of {test['dataset']}, protocol {found.info['protocol']['id']}"
