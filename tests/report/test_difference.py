"""The page of a difference, from its table on disk."""

import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.report import difference, figures
from raydistal.report.page import Cell, Tile

HOSTILE = "<script>alert(1)</script>"
NAMES = ("big", "small <b>")


def row(slice_, metric, points, low, high, verdict, seen=(True, True), **more):
    made = {"dataset": "wild", "slice": slice_, "metric": metric, "num": 120, "num_groups": 40, "before": 0.9}
    made |= {"after": 0.9 + points / 100, "difference": points / 100, "low": low / 100, "high": high / 100}
    made |= {"seen_before": seen[0], "seen_after": seen[1], "beats_chance": True, "verdict": verdict}
    return made | ({"broken": 0.1, "mended": 0.025} if metric == "accuracy" else {}) | more


ROWS = [
    row(HOSTILE, "auc", -9.04, -12, -6, "inferior", (False, False)),
    row("all", "accuracy", -3, -8, 1, "cannot tell"),
    row("warp", "auc", -1, -9, 7, "cannot tell", (None, True), beats_chance=False),
    row("all", "auc", -1, -3, 1, "cannot tell", (True, False), num_groups=20),
    row("real", "accuracy", 0.5, -1, 2, "non-inferior"),
]


def save(location, rows=ROWS, is_all=True):
    learnt = {"datasets": ["ffpp"], "methods": ["swap", "warp"], "is_all": is_all}
    told = {"architecture": "xception", "model_id": "0123", "num_params": 20_800_000, "synthetic": True}
    detectors = [{"name": name, "learnt": learnt} | told for name in NAMES]
    data = [{"name": "wild", "num_real": 40, "num_fake": 80, "synthetic": False}]
    config = {"evaluation": "/runs/one two", "before": NAMES[0], "after": NAMES[1], "margin": 0.02}
    info = {"detectors": detectors, "data": data, "protocol": {"id": "1a2b3c4d", "text": "Videos of split test."}}
    table = pa.Table.from_pylist(rows, schemas.DIFFERENCE)
    tables.write_table(f"{location}/difference", table, config, **info)


@pytest.fixture(scope="module")
def shown(tmp_path_factory, read_page):
    location = str(tmp_path_factory.mktemp("differences") / "big--small <b>")
    save(location)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        return location, difference.write(location), read_page(location)


@pytest.fixture(scope="module")
def found(shown):
    place = f"{shown[0]}/difference"
    return difference.Difference(tables.read_info(place), tables.read_table(place, "difference").to_pylist())


def test_page(shown):
    location, path, page = shown
    assert path == f"{location}/report/index.html"
    assert storage.list_files(f"{location}/report") == ["differences.png", "index.html"]
    for said in (
        "raydistal · difference report big--small <b> small <b> against big · protocol 1a2b3c4d",
        "Synthetic data",
        f"On what neither learnt from: 1 inferior. Worst: AUC on {HOSTILE} of wild: from 0.900 to 0.810, -9.0 points "
        "(-12.0 to -6.0), inferior.",
        "On all else: 3 cannot tell, 1 non-inferior. Worst: accuracy on all of wild",
        "lies above minus 2.0 points",
        "Videos of split test.",
        "--evaluation '/runs/one two' --before 'small <b>' --after big --margin 0.02",
    ):
        assert said in page.words


def test_rows(found):
    table = difference.differences(found)
    assert table.rows[1] == [
        Cell("all", "wild · accuracy"),
        Cell("cannot tell"),
        Cell("-3.0", "-8.0 to +1.0"),
        Cell("0.900"),
        Cell("0.870"),
        Cell("both"),
        Cell("10.0"),
        Cell("2.5"),
        Cell("120", "40 groups"),
    ]
    assert [row[5].text for row in table.rows] == ["unseen", "both", "not known", "big", "both"]
    assert table.rows[2][1] == Cell("cannot tell", "no better than chance")


def test_tiles_and_notices(found, tmp_path):
    assert difference.tiles(found) == [
        Tile("Videos", 120, ["of 1 dataset, the same for both"], (40, 80)),
        Tile("Losses", "1 of 5", ["differences that exceed the margin"]),
        Tile("Losses on the unseen", "1 of 1", ["what neither learnt from"]),
        Tile("Decisions changed", "12.5 %", ["12 turned wrong, 3 turned right"]),
    ]
    assert difference.notices(found) == ["wild has only 20 groups of one class: small losses cannot be detected."]
    save(tmp_path, ROWS[1:3], is_all=False)
    info = tables.read_info(str(tmp_path / "difference"))
    told = difference.notices(difference.Difference(info, ROWS[1:3]))
    assert [text.split(" ")[0] for text in told] == ["The", "The", "Nothing"]


def test_no_difference(tmp_path):
    with pytest.raises(UserError, match="raydistal difference"):
        difference.write(str(tmp_path))


@pytest.mark.browser
def test_in_a_browser(shown, look):
    assert look(shown[1]) == 1
