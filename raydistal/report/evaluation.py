"""The page of an evaluation: how well each detector does on each dataset."""

import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from raydistal.report import figures, page
from raydistal.report.contents import CARD, Face, read_cards
from raydistal.report.figures import Bars, Line, Panel, Picture, picture
from raydistal.report.page import Cell, Row, Table, Tile, count, decimal, duration, millions, percent

LABELS = {
    "auc": "AUC",
    "ap": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "eer": "equal error rate",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}
LEVELS = ("video", "frame")
NUM_FACES = 8  # of a contact sheet: one row on a wide screen
MAX_COLUMNS = 6  # detectors side by side; more are listed one below the other
MAX_SHOWN = 8  # detectors in a figure; more cannot be told apart


class Result(NamedTuple):
    """What the page shows of one dataset."""

    name: str
    metrics: dict[str, Table]
    """By level: a row per metric, a column per detector."""
    categories: dict[str, Table]
    """By level: a row per category."""
    confusions: list[Table]
    """One per detector, of videos."""
    sheets: list[tuple[str, list[Face]]]
    """Contact sheets with their titles."""
    number: int
    """Names of this dataset's pictures end in it."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The table `metrics` and its `_table.json`."""

    info: dict[str, Any]
    rows: dict[tuple[str, str, str, str, str], Row]
    """By detector, dataset, level, slice and metric; in the order of the table."""

    @property
    def detectors(self) -> list[str]:
        """Names."""
        return [detector["name"] for detector in self.info["detectors"]]

    @property
    def datasets(self) -> list[str]:
        """Names of the runs measured on."""
        return [data["name"] for data in self.info["data"]]

    def row(self, detector: str, dataset: str, metric: str, level: str = "video", slice_: str = "all") -> Row:
        """One of `metrics`; without a value if it was not measured."""
        return self.rows.get(
            (detector, dataset, level, slice_, metric), {"value": None, "low": None, "high": None, "num": 0}
        )

    def cell(self, *key: str) -> Cell:
        """The value of `row`, to be shown."""
        return decimal(*_numbers(self.row(*key)))

    def leading(self, dataset: str) -> list[str]:
        """The detectors in figures and contact sheets: those of the highest video AUC, in the usual order."""
        by_auc = sorted(self.detectors, key=lambda name: -(self.row(name, dataset, "auc")["value"] or 0))
        return [name for name in self.detectors if name in by_auc[:MAX_SHOWN]]

    def categories(self, dataset: str) -> list[str]:
        """The categories, real and the methods, of a dataset."""
        return list(dict.fromkeys(key[3] for key in self.rows if key[1] == dataset and key[3] != "all"))


def write(location: str) -> str:
    """Writes LOCATION/report from LOCATION/metrics and returns the path of the page.

    Raises:
        UserError: there is no such table, or it is unfinished; a run whose faces are shown is gone.
    """
    results = read(location)
    info, datasets = results.info, results.datasets
    pictures = [
        drawn
        for number, dataset in enumerate(datasets)
        for drawn in [
            *(curves(results, dataset, level, f"curves_{level}_{number}") for level in LEVELS),
            categories(results, dataset, f"categories_{number}"),
        ]
        if drawn
    ]
    return page.write(
        location,
        "evaluation.html.j2",
        pictures,
        is_synthetic=any(one["synthetic"] for one in (*info["detectors"], *info["data"])),
        protocol=info["protocol"],
        tiles=tiles(results),
        notices=notices(results),
        matrix=matrix(results),
        results=[result(results, number) for number in range(len(datasets))],
        detectors=detectors(results),
        commands=commands(location, results),
        configs={"evaluate": info["config"]},
        versions=info["versions"],
    )


def read(location: str) -> Results:
    """Raises UserError as `write`."""
    info, rows = page.read(location, "metrics", "evaluate")
    names = ("detector", "dataset", "level", "slice", "metric")
    return Results(info=info, rows={tuple(row[name] for name in names): row for row in rows})


def tiles(results: Results) -> list[Tile]:
    """The headline numbers."""
    data = results.info["data"]
    num_videos, num_without = (sum(one[name] for one in data) for name in ("num_videos", "num_without_faces"))
    split = (sum(one["num_real"] for one in data), sum(one["num_fake"] for one in data))
    rows = [results.row(detector, dataset, "auc") for detector in results.detectors for dataset in results.datasets]
    best = max(rows, key=lambda row: -1 if row["value"] is None else row["value"])
    shown = decimal(*_numbers(best))
    notes = [shown.note] if shown.note else []
    if len(rows) > 1 and best["value"] is not None:
        notes.append(f"{best['detector']} on {best['dataset']}")
    return [
        Tile("Detectors", len(results.detectors), [f"on {count(len(data), 'dataset')}"]),
        Tile("Videos", num_videos, [], split),
        Tile("Without faces", num_without, [f"{100 * num_without / max(1, num_videos):.3g} % of the videos"]),
        Tile("Video AUC" if len(rows) == 1 else "Best video AUC", shown.text, notes),
    ]


def notices(results: Results) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    for data in results.info["data"]:
        num_without, num_videos = data["num_without_faces"], data["num_videos"]
        if num_without > 0.05 * num_videos:
            found.append(f"{num_without:,} of the {num_videos:,} videos of {data['name']} have no face to judge.")
        if min(data["num_real"], data["num_fake"]) < 30:
            found.append(
                f"{data['name']} has only {data['num_real']:,} real and {data['num_fake']:,} fake videos: "
                "look at the intervals before comparing."
            )
        if num_skipped := max(data["num_resamples_skipped"].values(), default=0):
            found.append(f"Intervals on {data['name']} leave out {count(num_skipped, 'resample')} of one class only.")
    if len(results.detectors) > MAX_SHOWN:
        found.append(
            f"Figures and faces are those of the {MAX_SHOWN} detectors of the highest video AUC, tables of all."
        )
    return found


def matrix(results: Results) -> Table:
    """Video AUC of every detector on every dataset."""

    def shaded(cell: Cell, value: float | None) -> Cell:
        return cell._replace(shade=max(0.0, 2 * value - 1)) if value is not None else cell

    rows: list[list[Cell]] = []
    for detector in results.detectors:
        found = [(detector, dataset, "auc") for dataset in results.datasets]
        rows.append([Cell(detector), *(shaded(results.cell(*key), results.row(*key)["value"]) for key in found)])
    return Table(f"Video AUC, protocol {results.info['protocol']['id']}", ["detector", *results.datasets], rows)


def result(results: Results, number: int) -> Result:
    """All that the page shows of one dataset, besides its figures."""
    data = results.info["data"][number]
    shown = results.leading(data["name"])
    worst = [one for one in results.info["worst"] if one["data"] == data["name"] and one["detector"] in shown]
    frames = [{name: one.get(name) for name in CARD} for one in worst]  # a card's uncertainty: none
    faces = list(zip(worst, read_cards(data["location"], frames) if frames else [], strict=True))
    sheets = []
    for detector in results.info["detectors"]:
        of_detector = [face for one, face in faces if one["detector"] == detector["name"]]
        if of_detector:
            title = f"Worst mistakes of {detector['name']}, which calls fake above {detector['threshold']['video']:.4g}"
            sheets.append((title, of_detector[:NUM_FACES]))
    return Result(
        name=data["name"],
        metrics={level: metric_table(results, data, level) for level in LEVELS},
        categories={level: category_table(results, data["name"], level) for level in LEVELS},
        confusions=[confusion(results, detector, data["name"]) for detector in shown],
        sheets=sheets,
        number=number,
    )


def metric_table(results: Results, data: Row, level: str) -> Table:
    """A row per metric, a column per detector."""
    rows: list[list[Cell]] = [
        [Cell(label), *(results.cell(detector, data["name"], metric, level) for detector in results.detectors)]
        for metric, label in LABELS.items()
    ]
    num = results.row(results.detectors[0], data["name"], "auc", level)["num"]
    caption = f"{data['name']}, {count(num, level)}, protocol {data['protocol']}"
    return _fitted(Table(caption, [f"{level} level", *results.detectors], rows))


def category_table(results: Results, dataset: str, level: str) -> Table:
    """Accuracy by category as the thesis lists it (6.2.1), with the number of rows."""
    rows: list[list[Cell]] = []
    for category in results.categories(dataset):
        found = [results.row(detector, dataset, "accuracy", level, category) for detector in results.detectors]
        rows.append([Cell(category, count(found[0]["num"], level)), *(decimal(*_numbers(row)) for row in found)])
    columns = ["category", *results.detectors]
    return _fitted(Table(f"Accuracy by category, {dataset}, {level} level", columns, rows))


def confusion(results: Results, detector: str, dataset: str) -> Table:
    """Videos by what they are and what they were called, shaded by their share of the class."""
    rows: list[list[Cell]] = []
    for name, metrics in (("real", ("tn", "fp")), ("fake", ("fn", "tp"))):
        numbers = [results.row(detector, dataset, metric)["value"] or 0 for metric in metrics]
        shares = [number / max(1, sum(numbers)) for number in numbers]
        cells = zip(numbers, shares, strict=True)
        rows.append([Cell(name), *(Cell(f"{num:,.0f}", f"{percent(share).text} %", share) for num, share in cells)])
    return Table(detector, ["is", "called real", "called fake"], rows)


def curves(results: Results, dataset: str, level: str, name: str) -> Picture | None:
    """ROC curves and reliability diagrams of all detectors on a dataset; None if there are none of this level."""
    found = [
        one
        for one in results.info["curves"]
        if (one["data"], one["level"]) == (dataset, level) and one["detector"] in results.leading(dataset)
    ]
    if not found:
        return None
    rocs = [Line(name=one["detector"], x=one["roc"]["fpr"], y=one["roc"]["tpr"]) for one in found]
    bins = [
        Line(name=one["detector"], x=one["reliability"]["probability"], y=one["reliability"]["share_fake"])
        for one in found
    ]
    panels = [
        Panel(
            title="ROC",
            xlabel="real ones called fake (false positive rate)",
            ylabel="fakes found (true positive rate)",
            lines=rocs,
            unit_square=True,
        ),
        Panel(title="reliability", xlabel="P(fake)", ylabel="share that is fake", lines=bins, unit_square=True),
    ]
    areas = ", ".join(f"{one['detector']} {results.cell(one['detector'], dataset, 'auc', level).text}" for one in found)
    alt = f"ROC curves and reliability diagrams of {dataset}, {level} level. Area under the ROC curve: {areas}."
    return picture(name, page.visible(alt), partial(figures.curves, panels=panels))


def categories(results: Results, dataset: str, name: str) -> Picture | None:
    """Bars of the accuracy by category, video level; None if there are no categories."""
    groups = results.categories(dataset)
    if not groups:
        return None
    bars, alt_parts = [], []
    for detector in results.leading(dataset):
        rows = [results.row(detector, dataset, "accuracy", "video", group) for group in groups]
        values, lows, highs = ([row[part] for row in rows] for part in ("value", "low", "high"))
        bars.append(Bars(name=detector, value_G=values, low_G=lows, high_G=highs))
        shown = (f"{group} {percent(value).text} %" for group, value in zip(groups, values, strict=True))
        alt_parts.append(f"{detector}: {', '.join(shown)}")
    alt = f"Bars of the accuracy by category, video level, {dataset}. {'; '.join(alt_parts)}."
    xlabel = "accuracy, video level"
    return picture(name, page.visible(alt), partial(figures.grouped_bars, groups=groups, bars=bars, xlabel=xlabel))


def detectors(results: Results) -> Table:
    """The detectors that were measured."""
    rows: list[list[Cell]] = [
        [
            Cell(one["name"], one["architecture"]),
            Cell(one["model_id"]),
            Cell(millions(one["num_params"])),
            Cell(f"{one['input_px']} px"),
            Cell(f"{one['threshold']['video']:.4g}"),
            Cell(f"{one['cost']['images']:,}", duration(one["cost"]["seconds"])),
        ]
        for one in results.info["detectors"]
    ]
    columns = ["detector", "model", "parameters", "input", "threshold", "images learnt from"]
    return Table("Detectors", columns, rows)


def commands(location: str, results: Results) -> list[tuple[str, str]]:
    """What to type next, each with its purpose."""
    data, detectors = results.info["data"], results.info["detectors"]
    places = " ".join(shlex.quote(one["location"]) for one in detectors)
    runs = " ".join(shlex.quote(one["location"]) for one in data)
    settings = {name: results.info["config"][name] for name in ("split", "aggregate", "no_face")}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in settings.items()]
    return [
        (
            "Add a detector or a dataset; what was scored is not scored again",
            f"raydistal evaluate --out {shlex.quote(location)} {' '.join(options)} \\\n"
            f"  --detectors {places} NEW_DETECTOR \\\n  --data {runs} NEW_RUN",
        )
    ]


def _fitted(table: Table) -> Table:
    """Detectors as columns if they are few, otherwise as rows."""
    return table if len(table.columns) <= 1 + MAX_COLUMNS else table.transposed()


def _numbers(row: Row) -> tuple[float | None, float | None, float | None]:
    return row["value"], row["low"], row["high"]
