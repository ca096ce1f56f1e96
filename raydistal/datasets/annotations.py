"""Small annotation files beside the videos: text, JSON, CSV, and how they write labels. Faults name the file."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from raydistal import storage
from raydistal.errors import UserError

LABELS = {"real": 0, "0": 0, "0.0": 0, "fake": 1, "1": 1, "1.0": 1, "": None}  # 1.0: integers beside empty cells


def parse_label(value: object, where: str) -> int | None:
    """1 for fake (or 1), 0 for real (or 0), None for an empty cell; `where` names the file and row in the UserError."""
    try:
        return LABELS["" if value is None else str(value).strip().casefold()]
    except KeyError:
        raise UserError(f"{where}: unknown label {value!r}; write real or 0, fake or 1, or nothing") from None


def read_text(location: str) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises UserError when it cannot be read."""
    try:
        return storage.read_bytes(location).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {location}: {error}") from error


def read_json(location: str) -> Any:
    """The content of a JSON file. Raises UserError when it is not JSON."""
    try:
        return json.loads(read_text(location))
    except json.JSONDecodeError as error:
        raise UserError(f"{location} is not valid JSON: {error}. Download it again or correct it.") from error


def read_csv(location: str) -> list[dict[str, str]]:
    """The rows of a comma-separated file by its header, in lower case. Raises UserError when it is malformed."""
    header, rows = read_csv_rows(location)
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_csv_rows(location: str) -> tuple[list[str], Iterator[list[str]]]:
    """The header of a comma-separated file, in lower case, and its rows. UserError as soon as one is malformed."""
    lines = csv.reader(io.StringIO(read_text(location), newline=""), strict=True)

    def filled() -> Iterator[list[str]]:
        try:
            yield from (line for line in lines if line)
        except csv.Error as error:
            raise UserError(f"{location}, line {lines.line_num}: {error}") from error

    found = filled()
    first = next(found, None)
    if first is None:
        raise UserError(f"{location} is empty: it needs a header and one row per video")
    header = [name.strip().lower() for name in first]

    def checked() -> Iterator[list[str]]:
        for number, row in enumerate(found, 1):
            if len(row) != len(header):
                num = f"{len(row)} fields, but the header {header} has {len(header)}"
                raise UserError(f"{location}, row {number}: {num}")
            yield row

    return header, checked()
