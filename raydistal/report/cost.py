"""The page of a measurement of cost: how large detectors are and how long they take, compared with the first one."""

import shlex
from functools import partial
from operator import itemgetter

from raydistal.report import figures, page
from raydistal.report.figures import Bars, Picture, picture
from raydistal.report.page import Cell, Row, Table, Tile, count, millions, percent

SIZES = {"num_params": "parameters", "macs": "MACs", "size_mb": "size on disk"}
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
MAX_SHOWN = 8  # detectors in the figure
BUSY = 0.25  # load average per CPU before the measurement, above which the page says so


def write(location: str) -> str:
    """Writes LOCATION/report from LOCATION/cost and returns the path of the page.

    Raises:
        UserError: nothing was measured.
    """
    info, rows = page.read(location, "cost", "cost")
    return page.write(
        location,
        "cost.html.j2",
        [comparison(rows)] if len(_detectors(rows)) > 1 else [],
        is_synthetic=False,
        baseline=rows[0]["detector"],
        tiles=tiles(rows),
        notices=notices(rows, info),
        sizes=sizes(rows),
        times=times(rows),
        conditions=conditions(info),
        commands=commands(info),
        configs={"cost": info["config"]},
        versions=info["versions"] | info["packages"],
    )


def tiles(rows: list[Row]) -> list[Tile]:
    """The headline numbers: the least of each."""
    detectors = _detectors(rows)
    (device, batch_size), *_ = _cases(rows)
    timed = [row for row in rows if (row["device"], row["batch_size"]) == (device, batch_size)]
    small, light = (min(detectors, key=itemgetter(name)) for name in ("size_mb", "macs"))
    fast = min(timed, key=itemgetter("median_ms"))

    def notes(row: Row, name: str) -> list[str]:
        return [row["detector"], f"{percent(row[name] / detectors[0][name]).text} % of the baseline"]

    ratio = f"{percent(fast['ratio']).text} % of the baseline"
    return [
        Tile("Detectors", len(detectors), [f"baseline {detectors[0]['detector']}"]),
        Tile("Smallest file", f"{small['size_mb']:.3g} MB", notes(small, "size_mb")),
        Tile("Fewest MACs", _number(light["macs"]), notes(light, "macs")),
        Tile(f"Fastest, {_case(device, batch_size)}", f"{fast['median_ms']:.3g} ms", [fast["detector"], ratio]),
    ]


def notices(rows: list[Row], info: Row) -> list[str]:
    """What a reader must know before believing the numbers."""
    found, detectors = [], _detectors(rows)
    if len(runtimes := sorted({row["runtime"] for row in detectors})) > 1:
        found.append(
            f"The runtimes differ ({', '.join(runtimes)}), which explains part of the differences in time. Export all "
            "detectors for one runtime to compare the detectors alone."
        )
    if info["load_average"] > BUSY * info["num_cpus"]:
        found.append(
            f"The machine was busy before the measurement began: load average {info['load_average']:.1f} on "
            f"{count(info['num_cpus'], 'CPU')}. This affects ratios less than milliseconds."
        )
    if len(sides := sorted({row["input_px"] for row in detectors})) > 1:
        found.append(f"Their input sizes differ: {', '.join(map(str, sides))} pixels a side.")
    return found


def sizes(rows: list[Row]) -> Table:
    """A row per detector; below each number its share of the baseline's."""
    detectors = _detectors(rows)

    def cell(row: Row, name: str) -> Cell:
        text = f"{row[name]:.3g} MB" if name == "size_mb" else _number(row[name])
        return Cell(text, "" if row is detectors[0] else f"{percent(row[name] / detectors[0][name]).text} %")

    found = [
        [
            Cell(row["detector"], row["architecture"]),
            Cell(row["runtime"], row["precision"]),
            Cell(f"{row['input_px']} px"),
            *(cell(row, name) for name in SIZES),
        ]
        for row in detectors
    ]
    return Table("Size; below, share of the baseline", ["detector", "runtime", "input", *SIZES.values()], found)


def times(rows: list[Row]) -> Table:
    """A row per detector, two columns per device and batch: milliseconds, and the ratio to the baseline."""
    columns, found = ["detector"], [[Cell(row["detector"], row["runtime"])] for row in _detectors(rows)]
    for device, batch_size in _cases(rows):
        columns += [f"{_case(device, batch_size)}: ms", "share of the baseline"]
        for cells in found:
            key = (cells[0].text, device, batch_size)
            row = next((row for row in rows if (row["detector"], row["device"], row["batch_size"]) == key), None)
            if row is None:
                cells += [Cell("\N{EN DASH}"), Cell("\N{EN DASH}")]
            else:
                cells.append(Cell(f"{row['median_ms']:.3g}", f"{row['p10_ms']:.3g} to {row['p90_ms']:.3g}"))
                cells.append(percent(row["ratio"], row["ratio_low"], row["ratio_high"]))
    caption = "Time of a batch: median, below 10th to 90th percentile; share in %, below lowest to highest round"
    return Table(caption, columns, found)


def comparison(rows: list[Row]) -> Picture:
    """Bars of every detector's numbers as shares of the baseline's."""
    baseline, *others = _detectors(rows)
    cases = [
        case for case in _cases(rows) if case in {(row["device"], row["batch_size"]) for row in _of(rows, baseline)}
    ]
    groups = [*SIZES.values(), *(f"time, {_case(*case)}" for case in cases)]
    bars, alt_parts = [], []
    for one in others[:MAX_SHOWN]:
        timed = {(row["device"], row["batch_size"]): row for row in _of(rows, one)}
        shares = [one[name] / baseline[name] for name in SIZES]
        values, lows, highs = (
            [*shares, *(timed[case][name] if case in timed else None for case in cases)]
            for name in ("ratio", "ratio_low", "ratio_high")
        )
        bars.append(Bars(name=one["detector"], value_G=values, low_G=lows, high_G=highs))
        shown = (f"{group} {percent(value).text} %" for group, value in zip(groups, values, strict=True))
        alt_parts.append(f"{one['detector']}: {', '.join(shown)}")
    name = baseline["detector"]
    draw = partial(
        figures.grouped_bars, groups=groups, bars=bars, xlabel="share of the baseline", line=(1.0, "baseline")
    )
    return picture("comparison", page.visible(f"Bars, as shares of {name}. {'; '.join(alt_parts)}."), draw)


def conditions(info: Row) -> Row:
    """How it was measured."""
    return {
        "CPU": info["cpu"],
        "CPUs": str(info["num_cpus"]),
        "threads of a detector": str(info["config"]["threads"]),
        "GPU": info["gpu"],
        "load average": f"{info['load_average']:.2f} before, {info['load_average_after']:.2f} after",
        "rounds": f"{info['config']['rounds']}, in random order",
        "runs in a round": f"{info['runs']['single']} of one face, {info['runs']['batch']} of a batch",
        "what is timed": "crops in memory to logits in memory, normalisation included",
        "system": info["system"],
    }


def commands(info: Row) -> list[tuple[str, str]]:
    """What to type next, each with its purpose."""
    places = list(info["locations"].values())
    detectors = " ".join(map(shlex.quote, places))
    return [
        (
            "See how good they are",
            f"raydistal evaluate --detectors {detectors} --data RUN --out EVALUATION",
        ),
        (
            "Make one smaller",
            f"raydistal export --detector {shlex.quote(places[0])} --precision int8 --out EXPORTED",
        ),
        (
            "Measure again, elsewhere",
            f"raydistal cost --detectors {detectors} --threads {info['config']['threads']} --out OTHER_FOLDER",
        ),
    ]


def _detectors(rows: list[Row]) -> list[Row]:
    """The first row of each, the baseline first."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["detector"], row)
    return list(found.values())


def _of(rows: list[Row], detector: Row) -> list[Row]:
    return [row for row in rows if row["detector"] == detector["detector"]]


def _cases(rows: list[Row]) -> list[tuple[str, int]]:
    """Devices and batch sizes, in the order of measurement."""
    return list(dict.fromkeys((row["device"], row["batch_size"]) for row in rows))


def _number(number: int) -> str:
    return f"{number / 1e9:.3g} G" if number >= 1e9 else millions(number)


def _case(device: str, batch_size: int) -> str:
    return f"{count(batch_size, 'face')} on {DEVICES[device]}"
