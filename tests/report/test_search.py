"""The page of a search, from its table on disk. All numbers are drawn from a random generator."""

import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.report import figures, search
from raydistal.report.page import Cell, Tile
from raydistal.search.agenda import Trial
from raydistal.search.findings import summarize

HOSTILE = "<script>alert(1)</script>"
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
CONFIG = {
    "data": "/runs/one two",
    "architecture": "efficientnet_lite0 <b>",
    "space": ["alpha=0,0.25,0.5,0.75,1", "prune=0,0.4", "bits=32,8"],
    "strategy": "grid",
    "seeds": 2,
    "metric": "accuracy",
    "margin": 0.02,
}
SETTINGS = {"architecture": "efficientnet_lite0", "input_px": 224, "val_faces": "0123456789abcdef"}


def row(alpha, prune, bits, seed, rng, **changes):
    point = {"set": "ranking", "data": 1.0, "prune": prune, "alpha": alpha, "temperature": 1.0, "bits": bits}
    accuracy = 0.93 - 0.1 * (alpha - 0.4) ** 2 - 0.08 * prune - 0.004 * (bits == 8) + rng.normal() / 150
    num_params = round(3_372_289 * (1 - prune))
    measured = {"accuracy": accuracy, "auc": accuracy + 0.04, "loss": 0.5 - accuracy / 3, "num_params": num_params}
    measured |= {"macs": round(4e8 * (1 - 0.8 * prune)), "size_mb": num_params * bits / 8e6}
    measured |= {"detector": f"/runs/out/detectors/{alpha:g}-{prune:g}-{bits}-{seed}", "images": 60000}
    spent = {"epochs": 30, "seconds": 600.0, "cpu_seconds": 1100.0, "gpu_seconds": 0.0}
    return {"trial": Trial(point, seed).id, "status": "ok", "seed": seed, **point, **measured, **spent, **changes}


def make_rows():
    rng = np.random.default_rng(0)
    rows = [
        row(alpha, prune, bits, seed, rng)
        for alpha in ALPHAS
        for prune in (0.0, 0.4)
        for bits in (32, 8)
        for seed in (0, 1)
    ]
    none = dict.fromkeys(("accuracy", "auc", "loss", "num_params", "macs", "size_mb", "detector"))
    error = f"a ratio of 0.4 cannot be met {HOSTILE}"
    rows[-1] |= none | {"status": "failed", "error": error, "epochs": 0, "images": 0, "cpu_seconds": 1.0}
    gone = dict.fromkeys(("num_params", "macs", "size_mb", "detector"))
    rows[-2] |= gone | {"status": "stopped", "accuracy": 0.55, "epochs": 3}
    return rows


def bisected():
    tried = ((0.2, 0.912, True), (0.35, 0.903, True), (0.4, 0.785, False), (0.6, 0.61, False))
    evidence = [
        {"value": value, "mean": mean, "holds": holds, "verdict": "ok", "text": ""} for value, mean, holds in tried
    ]
    text = f"0.35 is the largest prune ratio that keeps accuracy at 0.9 or more. {HOSTILE}"
    return {"varied": "prune", "answer": 0.35, "text": text, "evidence": evidence, "contradictions": []}


def save(location, rows, **changes):
    other = {"trial": "of another search", "status": "ok", "seed": 7, "set": "ranking", "data": 0.5, "prune": 0.0}
    other |= {"bits": 32, "epochs": 1, "images": 1, "seconds": 1.0, "cpu_seconds": 1.0, "gpu_seconds": 0.0}
    info = summarize(rows, "accuracy", {"accuracy": True, "size_mb": False}) | {
        "search": CONFIG,
        "varied": ["alpha", "prune", "bits"],
        "trials": [one["trial"] for one in rows],
        "bisect": None,
        "dataset": ["synthetic"],
        "synthetic": True,
        "val": {"num_real": 30, "num_fake": 60},
        "cost": {name: sum(one[name] for one in rows) for name in ("seconds", "cpu_seconds", "gpu_seconds")},
    }
    table = pa.Table.from_pylist([*rows, other], schemas.TRIALS)
    tables.write_table(f"{location}/trials", table, SETTINGS, **info | changes)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, read_page):
    location = str(tmp_path_factory.mktemp("searches") / "all <b>")
    save(location, make_rows(), bisect=bisected())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        return location, search.write(location), read_page(location)


@pytest.fixture(scope="module")
def found(searched):
    info = tables.read_info(f"{searched[0]}/trials")
    return search.Search(info, make_rows())


def mean_of(rows, name, **point):
    some = [one[name] for one in rows if point.items() <= one.items() and one["status"] == "ok"]
    return float(np.mean(some))


def test_files(searched):
    location, path, _ = searched
    assert path == f"{location}/report/index.html"
    assert storage.list_files(f"{location}/report") == ["dimensions.png", "index.html", "trade_offs.png"]


def test_by_alpha_is_table_6_2_5_1_1(found):
    table = search.by_alpha(found)
    assert table.columns == ["accuracy %", "0", "0.25", "0.5", "0.75", "1"]
    assert [row[0].text for row in table.rows] == [
        f"prune={prune} bits={bits}" for prune in (0, 0.4) for bits in (8, 32)
    ]
    by_hand = [mean_of(found.rows, "accuracy", alpha=alpha, prune=0.0, bits=8) for alpha in ALPHAS]
    assert table.rows[0][1:] == [Cell(f"{100 * value:.1f}") for value in by_hand]
    assert table.rows[2][-1] == Cell("\N{EN DASH}")  # one of its trials failed, the other was stopped


def test_by_alpha_alone(found):
    info = found.info | {
        "varied": ["alpha"],
        "points": [one for one in found.points if (one["prune"], one["bits"]) == (0, 8)],
    }
    table = search.by_alpha(search.Search(info, []))
    assert table.columns == ["alpha", "0", "0.25", "0.5", "0.75", "1"]
    assert [[cell.text for cell in row][:1] for row in table.rows] == [["accuracy %"]]


def test_front_and_trials(found):
    table = search.of_points(found, [one for one in found.points if one["id"] in found.info["front"]])
    shown = [(float(row[1].text), float(row[6].text)) for row in table.rows]
    assert shown == sorted(shown, reverse=True)  # of less accuracy each is smaller
    every = search.trials(found)
    assert len(every.rows) == len(found.rows) == 40
    (stopped,) = (row for row in every.rows if row[2].text == "stopped")
    none = Cell("\N{EN DASH}")
    assert stopped[:4] == [Cell("alpha=1 prune=0.4 bits=8"), Cell("0"), Cell("stopped", "after epoch 3"), Cell("55.0")]
    assert stopped[6:9] == [none, none, none]


def test_clouds(found, monkeypatch):
    drawn = {}
    monkeypatch.setattr(search, "picture", lambda name, alt, draw: drawn.update({name: (alt, draw.keywords["clouds"])}))
    search.trade_offs(found)
    search.dimensions(found)
    alt, (by_size, by_macs) = drawn["trade_offs"]
    assert (by_size.xlabel, by_size.joins_marked, by_macs.joins_marked) == ("MB", True, False)
    assert by_size.x_N == [one["size_mb"] for one in found.points]
    assert by_macs.x_N == [one["macs"] / 1e6 for one in found.points]
    assert [one["id"] for one, is_on in zip(found.points, by_size.is_marked_N, strict=True) if is_on] == [
        one["id"] for one in found.points if one["id"] in found.info["front"]
    ]
    best = found.points[0]
    assert f"alpha={best['alpha']:g} prune={best['prune']:g} bits={best['bits']}: accuracy" in alt
    assert [cloud.xlabel for cloud in drawn["dimensions"][1]] == ["alpha", "share pruned", "bits"]
    assert [cloud.y_N for cloud in drawn["dimensions"][1]] == [[one["accuracy"] for one in found.points]] * 3


def test_tiles_and_notices(found):
    made = search.tiles(found)
    assert made[0] == Tile("Trials", 40, ["19 points", "1 stopped early", "1 failed"])
    assert made[1].value == f"{100 * found.points[0]['accuracy']:.1f} %"
    assert made[2].value == "2.02 MB"
    assert made[3] == Tile("CPU time", "11.9 h", ["6.67 h of trials"])
    assert [told.split(":")[0] for told in search.notices(found)] == [
        "The best of 40 trials was chosen on the same 90 videos that it is measured on, so its number is optimistic. "
        "Measure it on a test split, see below.",
        "1 trial failed, see below. The same command tries them again.",
        "Only 2 seeds",
        "Only 90 val videos",
    ]


def test_page(searched, found):
    location, _, page = searched
    for said in (
        "raydistal · search report all <b> efficientnet_lite0 <b> · grid over alpha=0,0.25,0.5,0.75,1 prune=0,0.4 "
        "bits=32,8 · measured on val of synthetic",
        "Synthetic data",
        "0.35 is the largest prune ratio that keeps accuracy at 0.9 or more. " + HOSTILE,
        "share pruned accuracy % holds 0.2 91.2 yes 0.35 90.3 yes 0.4 78.5 no",
        "alpha=1 prune=0.4 bits=8 a ratio of 0.4 cannot be met " + HOSTILE,
        f"raydistal search --data '/runs/one two' --out '{location}' \\ --architecture 'efficientnet_lite0 <b>' "
        "--space alpha=0,0.25,0.5,0.75,1 prune=0,0.4 bits=32,8 \\ --strategy grid --seeds 4",
    ):
        assert said in page.words
    best = found.points[0]
    place = f"/runs/out/detectors/{best['alpha']:g}-{best['prune']:g}-{best['bits']}-0"
    assert f"raydistal evaluate --detectors {place} --data '/runs/one two'" in page.words
    assert "of another search" not in page.words


def test_evidence_of_a_share_of_the_data(found):
    tested = {"value": 0.5, "mean": 0.9, "holds": False, "verdict": "cannot tell", "difference": -0.01}
    told = bisected() | {"varied": "data", "evidence": [tested | {"low": -0.03, "high": 0.01}]}
    table = search.evidence(search.Search(found.info | {"bisect": told}, []))
    assert table.columns == ["share of the data", "accuracy %", "against all of the data, points", "holds"]
    assert table.rows == [[Cell("0.5"), Cell("90.0"), Cell("-1.0", "-3.0 to 1.0"), Cell("no", "cannot tell")]]


def test_no_search(tmp_path):
    with pytest.raises(UserError, match="raydistal search"):
        search.write(str(tmp_path))


@pytest.mark.browser
def test_in_a_browser(searched, look):
    _, path, _ = searched
    assert look(path) == 2
