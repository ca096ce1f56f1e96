"""The page of a generalisation: detectors that learnt from all methods but one, tested on the fakes of each."""

import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any

from raydistal import storage
from raydistal.report import figures, page
from raydistal.report.figures import Picture, picture
from raydistal.report.page import SIGNS, Cell, Row, Table, Tile, count, decimal, duration, percent


@dataclass(frozen=True)
class Generalisation:
    """What generalise found."""

    info: dict[str, Any]
    """`_table.json` of `generalisation`."""
    rows: list[Row]
    """One per trained detector and method tested."""

    @property
    def architectures(self) -> list[str]:
        """In the order asked for."""
        return list(dict.fromkeys(row["architecture"] for row in self.info["matrix"]))

    @property
    def tested(self) -> list[str]:
        """Methods of the test videos."""
        return list(dict.fromkeys(row["tested"] for row in self.info["matrix"]))


def write(location: str) -> str:
    """Writes LOCATION/report from LOCATION/generalisation and returns the path of the page.

    Raises:
        UserError: there is no such table, or it is unfinished.
    """
    info, rows = page.read(location, "generalisation", "generalise")
    found = Generalisation(info, rows)
    return page.write(
        location,
        "generalisation.html.j2",
        [gaps(found)],
        is_synthetic=info["synthetic"],
        protocol=info["protocol"],
        test=info["test"],
        tiles=tiles(found),
        notices=notices(found),
        verdicts=verdicts(found),
        matrices=[matrix(found, architecture) for architecture in found.architectures],
        trained=trained(found),
        commands=commands(location, info["config"]),
        evaluation=storage.join(location, "evaluation", "report", "index.html"),
        configs={"generalise": info["config"]},
        versions=info["versions"],
    )


def tiles(found: Generalisation) -> list[Tile]:
    """The headline numbers."""
    test, of_methods = found.info["test"], [row for row in found.info["gaps"] if row["method"]]
    num_detectors = len({(row["architecture"], row["left_out"], row["seed"]) for row in found.rows})
    variety = [count(len(found.architectures), "model"), count(len({row["seed"] for row in found.rows}), "seed")]
    worst = min(of_methods, key=lambda row: row["difference"])
    lost = sum(row["verdict"] == "inferior" for row in of_methods)
    return [
        Tile("Detectors trained", num_detectors, [" \N{MIDDLE DOT} ".join(variety)]),
        Tile("Test videos", test["num_videos"], ["the same for all"], (test["num_real"], test["num_fake"])),
        Tile("Found less well unseen", f"{lost} of {len(of_methods)}", ["methods left out, by model"]),
        Tile("Largest gap", page.points(worst)[0], [f"points of AUC: {worst['method']}, {worst['architecture']}"]),
    ]


def notices(found: Generalisation) -> list[str]:
    """What a reader must know before believing the numbers."""
    num_seeds = min(row["num_seeds"] for row in found.info["matrix"])
    return page.caveats(num_seeds, found.info["test"]["num_videos"])


def verdicts(found: Generalisation) -> list[Row]:
    """The gaps with a sign, the difference and its interval in points (hundredths)."""
    return [row | {"sign": SIGNS[row["verdict"]], "numbers": page.points(row)} for row in found.info["gaps"]]


def matrix(found: Generalisation, architecture: str) -> Table:
    """AUC by method left out and method tested; cells of the method left out are marked."""
    row_of = {
        (row["left_out"], row["tested"]): row for row in found.info["matrix"] if row["architecture"] == architecture
    }
    rows: list[list[Cell]] = []
    for left_out in dict.fromkeys(key[0] for key in row_of):
        cells = []
        for tested in found.tested:
            row = row_of[left_out, tested]
            cell = decimal(row["auc"], row["low"], row["high"])
            is_unseen = tested == left_out or tested not in found.info["learnt"]
            note = f"unseen \N{MIDDLE DOT} {cell.note}" if is_unseen else cell.note
            cells.append(Cell(cell.text, note, max(0.0, 2 * row["auc"] - 1)))
        rows.append([Cell(f"all but {left_out}" if left_out else "all"), *cells])
    caption = f"AUC of {architecture} by method tested, {found.info['test']['dataset']}"
    return Table(caption, ["learnt from", *found.tested], rows)


def gaps(found: Generalisation) -> Picture:
    """What leaving out a method does to its AUC, by architecture."""
    rows = found.info["gaps"]
    names = [f"{row['method'] or 'mean of the methods'}\n{row['architecture']}" for row in rows]
    alt_parts = [
        f"{', '.join(name.splitlines())}: {' '.join(page.points(row))}" for name, row in zip(names, rows, strict=True)
    ]
    drawn = partial(
        figures.intervals,
        names=names,
        rows=rows,
        xlabel="points of AUC; shaded: the margin",
        margin=found.info["config"]["margin"],
    )
    alt = f"What leaving out a method changes in points of AUC, with the ends of the interval. {'; '.join(alt_parts)}."
    return picture("gaps", page.visible(alt), drawn)


def trained(found: Generalisation) -> Table:
    """Every detector on every method."""
    rows: list[list[Cell]] = [
        [
            Cell(f"all but {row['left_out']}" if row["left_out"] else "all", row["architecture"]),
            Cell(str(row["seed"])),
            Cell(row["tested"], count(row["num_fake"], "fake")),
            decimal(row["auc"]),
            percent(row["recall"]),
            Cell(f"{row['num_faces']:,}"),
            Cell(duration(row["seconds"])),
        ]
        for row in found.rows
    ]
    columns = ["learnt from", "seed", "tested on", "AUC", "fakes found %", "faces learnt from", "time"]
    return Table("Every detector on every method", columns, rows)


def commands(location: str, config: dict[str, Any]) -> list[tuple[str, str]]:
    """What to type next, each with its purpose."""
    settings = {name: config[name] for name in ("architectures", "methods", "split", "margin")}
    settings |= config["limits"]
    settings |= {name: value for name, value in config["training"].items() if name not in ("device", "cpus")}
    places = f"--data {shlex.quote(config['data'])} --out {shlex.quote(location)}"
    return [
        (
            "More seeds, for narrower intervals; what is trained is not trained again",
            f"raydistal generalise {places} --seeds {config['seeds'] + 2} \\\n  {page.options(settings)}",
        ),
    ]
