"""What all report pages share: values that the templates' macros show, and how a page is written.

A page is one HTML file that fetches nothing. File names are hostile: the templates escape everything.
"""

import base64
import dataclasses
import json
import math
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from raydistal import storage, tables
from raydistal.errors import UserError
from raydistal.report import figures
from raydistal.report.figures import Picture

# How a verdict reads at a glance, the worst first.
SIGNS = {"inferior": "bad", "worse": "bad", "cannot tell": "open", "non-inferior": "good", "better": "good"}
MIN_SEEDS, MIN_VIDEOS = 3, 200  # below, a page says so

Row = dict[str, Any]


class Tile(NamedTuple):
    """A headline number. `split` is the number of real and fake ones."""

    title: str
    value: int | str | None
    notes: list[str]
    split: tuple[int, int] | None = None


class Cell(NamedTuple):
    """A table cell: a number, below it a note such as its interval, behind it a shade from 0 to 1."""

    text: str
    note: str = ""
    shade: float | None = None


class Table(NamedTuple):
    """The first column is the heading of its row."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]

    def transposed(self) -> "Table":
        """Columns as rows."""
        columns = [self.columns[0], *(row[0].text for row in self.rows)]
        cells = zip(*(row[1:] for row in self.rows), strict=True)
        rows = [[Cell(name), *row] for name, row in zip(self.columns[1:], cells, strict=True)]
        return Table(self.caption, columns, rows)


def read(location: str, table: str, verb: str) -> tuple[Row, list[Row]]:
    """`_table.json` and the rows of the table LOCATION/`table`.

    Raises:
        UserError: it is not there or unfinished; the message says which verb makes it.
    """
    place = storage.join(location, table)
    info = tables.read_info(place)
    if not info:
        raise UserError(f"no finished table {place}. Make it first: raydistal {verb}")
    return info, tables.read_table(place, verb).to_pylist()


def write(location: str, template: str, pictures: Sequence[Picture], **values: Any) -> str:
    """Writes LOCATION/report: index.html, and the figures as PNG beside it. Returns the path of the page.

    Args:
        location: what the page is about; its last part is the title.
        template: file name.
        pictures: the template refers to them by name.
        values: what the template shows.
    """
    folder = storage.join(location, "report")
    for picture in pictures:
        storage.write_bytes(storage.join(folder, f"{picture.name}.png"), picture.light)
    path = storage.join(folder, "index.html")
    html = (
        _environment()
        .get_template(template)
        .render(
            light=dataclasses.asdict(figures.LIGHT),
            dark=dataclasses.asdict(figures.DARK),
            classes=figures.CLASSES,
            location=storage.absolute(location),
            title=base_name(storage.absolute(location)),
            written_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            pictures={picture.name: picture for picture in pictures},
            **values,
        )
    )
    storage.write_bytes(path, html.encode())
    return path


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raydistal.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "base64": lambda content: base64.b64encode(content).decode(),
        "visible": visible,
        "setting": lambda value: value if isinstance(value, str) else json.dumps(value),
    }
    return environment


def visible(text: str) -> str:
    """`text` with control and invisible characters spelled out, such as those that reverse a name's direction."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)


def base_name(location: str) -> str:
    """The last part of a path or URI."""
    return posixpath.basename(location.partition("?")[0].rstrip("/")) or location


def count(number: int, unit: str) -> str:
    """2 videos, 1 video."""
    return f"{number:,} {unit}{'s' * (number != 1)}"


def decimal(value: float | None, low: float | None = None, high: float | None = None) -> Cell:
    """0.912, with its interval if there is one."""
    return _cell("{:.3f}", value, low, high)


def percent(value: float | None, low: float | None = None, high: float | None = None) -> Cell:
    """The share 0.912 as 91.2, with its interval if there is one."""
    return _cell("{:.1f}", *(None if share is None else 100 * share for share in (value, low, high)))


def _cell(form: str, value: float | None, low: float | None, high: float | None) -> Cell:
    if value is None or math.isnan(value):
        return Cell("\N{EN DASH}")
    is_interval = low is not None and high is not None and not math.isnan(low + high)
    return Cell(form.format(value), f"{form.format(low)} to {form.format(high)}" if is_interval else "")


def points(row: Mapping[str, Any]) -> list[str]:
    """A difference of shares and the ends of its interval in points (hundredths): +1.5, -0.2, +3.1."""
    return [f"{100 * row[name]:+.1f}" for name in ("difference", "low", "high")]


def caveats(num_seeds: int, num_videos: int, split: str = "test") -> list[str]:
    """Warnings about few trainings, and about few videos that they were measured on."""
    warnings = []
    if num_seeds < MIN_SEEDS:
        warnings.append(f"Only {count(num_seeds, 'seed')}: the variation between trainings is poorly known.")
    if num_videos < MIN_VIDEOS:
        warnings.append(f"Only {count(num_videos, f'{split} video')}: small differences cannot be detected.")
    return warnings


def options(settings: Mapping[str, Any]) -> str:
    """The command line's options for these settings; 0 and empty ones, the defaults, are left out."""
    shown = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        if values and values != [0]:
            shown.append(f"--{name.replace('_', '-')} {shlex.join(map(str, values))}")
    return " ".join(shown)


def duration(seconds: float) -> str:
    """42 s, 3.1 min, 2.5 h."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def millions(number: int) -> str:
    """4.01 M; in full below a million."""
    return f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number:,}"
