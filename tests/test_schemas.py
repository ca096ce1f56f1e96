"""docs/tables.md names every table and every column of the contract."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from raydistal import schemas

DOC = (Path(__file__).parents[1] / "docs/tables.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", DOC, re.MULTILINE)
TABLES = {name.lower(): schema for name, schema in vars(schemas).items() if isinstance(schema, pa.Schema)}
TABLES |= {"faces": schemas.faces_schema(2), "teaching": schemas.teaching_schema(2)}


def test_every_table_is_there():
    assert sorted(name for name, _ in ROWS) == sorted(TABLES)


@pytest.mark.parametrize(("table", "columns"), ROWS)
def test_every_column_is_there(table, columns):
    named = re.findall(r"\w+", columns)
    wanted = TABLES[table].names if table != "distilled" else ["rank"]  # and those of videos
    assert [name for name in named if name in wanted] == wanted
