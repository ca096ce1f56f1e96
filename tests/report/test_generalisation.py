"""The page of a generalisation, from its table on disk."""

import itertools

import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.report import figures, generalisation
from raydistal.report.page import Cell, Tile

HOSTILE = "<script>alert(1)</script>"
ARCHITECTURES, METHODS, TESTED = ("xception", "net <b>"), ("swap", HOSTILE), (HOSTILE, "fresh", "swap")
CONFIG = {
    "data": "/runs/one two",
    "architectures": list(ARCHITECTURES),
    "methods": [],
    "seeds": 2,
    "split": "test",
    "margin": 0.02,
    "limits": {"max_faces": 0, "max_real": 0, "max_per_method": 40, "leave_out": []},
    "training": {"weights": "imagenet", "recipe": "thesis", "epochs": 0, "device": "auto", "cpus": 1},
}


def auc(left_out, tested):
    return 0.7 if tested in (left_out, "fresh") else 0.9


def gap(architecture, method, points, verdict):
    row = {"architecture": architecture, "method": method, "seen": 0.9, "unseen": 0.9 + points / 100, "margin": 0.02}
    row |= {"difference": points / 100, "low": points / 100 - 0.05, "high": points / 100 + 0.05, "verdict": verdict}
    return row | {"text": f"{architecture}: {method}, {verdict}."}


def save(location):
    keys = list(itertools.product(ARCHITECTURES, (None, *METHODS), TESTED))
    cost = {"num_faces": 1000, "images": 9000, "seconds": 90.0, "gpu_seconds": 0.0}
    rows = [
        {"architecture": architecture, "left_out": left_out, "seed": seed, "tested": tested, "num_fake": 80}
        | {"auc": auc(left_out, tested), "recall": 0.85, **cost}
        for seed in (0, 1)
        for architecture, left_out, tested in keys
    ]
    matrix = [
        {"architecture": architecture, "left_out": left_out, "tested": tested, "num_seeds": 2}
        | {"auc": auc(left_out, tested), "low": auc(left_out, tested) - 0.05, "high": auc(left_out, tested) + 0.05}
        for architecture, left_out, tested in keys
    ]
    gaps = [gap(one, method, -20, "inferior") for one in ARCHITECTURES for method in METHODS]
    gaps += [gap("xception", None, -1, "cannot tell"), gap("net <b>", None, 4, "non-inferior")]
    info = {"matrix": matrix, "gaps": gaps, "learnt": sorted(METHODS), "synthetic": True}
    info |= {"test": {"dataset": "synthetic", "name": "run", "num_videos": 240, "num_real": 80, "num_fake": 160}}
    info |= {"protocol": {"id": "1a2b3c4d", "text": "Videos of split test."}}
    table = pa.Table.from_pylist(rows, schemas.GENERALISATION)
    tables.write_table(f"{location}/generalisation", table, CONFIG, **info)


@pytest.fixture(scope="module")
def shown(tmp_path_factory, read_page):
    location = str(tmp_path_factory.mktemp("generalisations") / "all <b>")
    save(location)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        return location, generalisation.write(location), read_page(location)


@pytest.fixture(scope="module")
def found(shown):
    place = f"{shown[0]}/generalisation"
    return generalisation.Generalisation(tables.read_info(place), tables.read_table(place, "generalise").to_pylist())


def test_page(shown):
    location, path, page = shown
    assert path == f"{location}/report/index.html"
    assert storage.list_files(f"{location}/report") == ["gaps.png", "index.html"]
    for said in (
        "raydistal · generalisation report all <b> tested on synthetic · protocol 1a2b3c4d",
        "Synthetic data",
        f"xception: {HOSTILE}, inferior. AUC 0.900 after learning from them, 0.700 without: -20.0 points "
        "(-25.0 to -15.0); margin 2.0 points",
        f"all but {HOSTILE}",
        "Videos of split test.",
        f"{location}/evaluation/report/index.html",
        f"raydistal generalise --data '/runs/one two' --out '{location}' --seeds 4 \\ --architectures xception "
        "'net <b>' --split test --margin 0.02 --max-per-method 40 --weights imagenet --recipe thesis",
    ):
        assert said in page.words


def test_what_was_not_learnt_is_marked(found):
    table = generalisation.matrix(found, "xception")
    assert table.columns == ["learnt from", *TESTED]
    seen, unseen = ("0.850 to 0.950", "unseen · 0.650 to 0.750")
    marks = [[cell.note for cell in row[1:]] for row in table.rows]
    assert marks == [[seen, unseen, seen], [seen, unseen, unseen], [unseen, unseen, seen]]
    assert table.rows[1][0] == Cell("all but swap")
    assert table.rows[0][1] == Cell("0.900", seen, pytest.approx(0.8))


def test_tiles_notices_and_rows(found):
    assert generalisation.tiles(found) == [
        Tile("Detectors trained", 12, ["2 models · 2 seeds"]),
        Tile("Test videos", 240, ["the same for all"], (80, 160)),
        Tile("Found less well unseen", "4 of 4", ["methods left out, by model"]),
        Tile("Largest gap", "-20.0", ["points of AUC: swap, xception"]),
    ]
    assert generalisation.notices(found) == ["Only 2 seeds: the variation between trainings is poorly known."]
    assert generalisation.trained(found).rows[5] == [
        Cell("all but swap", "xception"),
        Cell("0"),
        Cell("swap", "80 fakes"),
        Cell("0.700"),
        Cell("85.0"),
        Cell("1,000"),
        Cell("90 s"),
    ]


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="raydistal generalise"):
        generalisation.write(str(tmp_path))


@pytest.mark.browser
def test_in_a_browser(shown, look):
    assert look(shown[1]) == 1
