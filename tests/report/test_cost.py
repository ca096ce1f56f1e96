"""The page of a measurement of cost, from a table on disk."""

import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.report import cost

SIZES = {"base": (20_809_000, 4_550_800_000, 83.4), "small": (1_519_000, 56_000_000, 6.1)}
INFO = {
    "cpu": "AMD EPYC",
    "num_cpus": 8,
    "gpu": "NVIDIA H100",
    "system": "Linux",
    "load_average": 0.1,
    "load_average_after": 1.0,
    "packages": {"onnxruntime": "1.31.1"},
    "runs": {"single": 10, "batch": 3},
    "locations": {"base": "/d/base", "small": "/d/my small"},
}


def row(detector, device, batch_size, median_ms, ratio, **changes):
    num_params, macs, size_mb = SIZES[detector.split()[0]]
    found = {"detector": detector, "model_id": "0123456789ab", "architecture": f"a {detector}", "runtime": "onnx"}
    found |= {"precision": "float32", "input_px": 224, "num_params": num_params, "macs": macs, "size_mb": size_mb}
    found |= {"device": device, "batch_size": batch_size, "median_ms": median_ms, "ratio": ratio}
    found |= {"p10_ms": 0.9 * median_ms, "p90_ms": 1.2 * median_ms, "ratio_low": 0.8 * ratio, "ratio_high": 1.5 * ratio}
    return found | changes


ROWS = [
    row("base", "cpu", 1, 120.0, 1.0, ratio_low=1.0, ratio_high=1.0),
    row("base", "cpu", 32, 4000.0, 1.0, ratio_low=1.0, ratio_high=1.0),
    row("small", "cpu", 1, 6.0, 0.05),
    row("small", "cpu", 32, 100.0, 0.025),
]


def write(location, rows, **changes):
    config = {"threads": 1, "rounds": 10}
    table = pa.Table.from_pylist(rows, schemas.COST)
    tables.write_table(f"{location}/cost", table, config, **(INFO | changes))
    return cost.write(str(location))


@pytest.fixture(scope="module")
def page(tmp_path_factory, read_page, hostile):
    """With detectors of hostile names."""
    location = tmp_path_factory.mktemp("pages") / "cost <b>"
    others = [
        row(f"small {hostile}$x^{{2\u202e {n}", "cpu", size, 9.0 * size, 0.07 * n) for n in (1, 20) for size in (1, 32)
    ]
    path = write(location, ROWS + others)
    return location, path, read_page(location)


def test_says_what_was_measured(page, hostile):
    location, path, page = page
    assert storage.list_files(f"{location}/report") == ["comparison.png", "index.html"]
    assert path == f"{location}/report/index.html"
    for said in (
        "cost report cost <b> baseline base ·",
        "Detectors 4 baseline base",
        "Smallest file 6.1 MB small 7.3 % of the baseline",
        "Fewest MACs 56 M small 1.2 % of the baseline",
        "Fastest, 1 face on CPU 6 ms small 5.0 % of the baseline",
        "base a base onnx float32 224 px 20.8 M 4.55 G 83.4 MB",
        "small a small onnx float32 224 px 1.52 M 7.3 % 56 M 1.2 % 6.1 MB 7.3 %",
        "small onnx 6 5.4 to 7.2 5.0 4.0 to 7.5 100 90 to 120 2.5 2.0 to 3.8",
        "CPU AMD EPYC",
        "threads of a detector 1",
        "load average 0.10 before, 1.00 after",
        "runs in a round 10 of one face, 3 of a batch",
        "raydistal evaluate --detectors /d/base '/d/my small' --data RUN",
        "onnxruntime 1.31.1",
        hostile,
    ):
        assert said in page.words
    (alt,) = page.attributes("alt")
    assert alt.startswith(
        "Bars, as shares of base. small: parameters 7.3 %, MACs 1.2 %, size on disk 7.3 %, time, 1 face"
    )
    assert "time, 32 faces on CPU 2.5 %" in alt
    assert "Notices" not in page.words


def test_notices():
    assert cost.notices(ROWS, INFO) == []
    other = row("small", "cpu", 1, 1.0, 1.0, runtime="torch", input_px=299)
    assert cost.notices([ROWS[0], other], INFO | {"load_average": 2.5}) == [
        "The runtimes differ (onnx, torch), which explains part of the differences in time. Export all detectors for "
        "one runtime to compare the detectors alone.",
        "The machine was busy before the measurement began: load average 2.5 on 8 CPUs. This affects ratios "
        "less than milliseconds.",
        "Their input sizes differ: 224, 299 pixels a side.",
    ]


def test_a_device_that_not_all_run_on(monkeypatch):
    drawn = []
    monkeypatch.setattr(cost, "picture", lambda name, alt, draw: drawn.append(draw.keywords))
    rows = [*ROWS, row("small", "cuda", 1, 0.5, 0.004)]
    table = cost.times(rows)
    assert table.columns == ["detector"] + [
        text
        for case in ("1 face on CPU", "32 faces on CPU", "1 face on GPU")
        for text in (f"{case}: ms", "share of the baseline")
    ]
    assert [cell.text for cell in table.rows[0][-2:]] == ["\N{EN DASH}"] * 2
    assert [cell.text for cell in table.rows[1][-2:]] == ["0.5", "0.4"]
    cost.comparison(rows)
    (keywords,) = drawn
    assert keywords["groups"] == ["parameters", "MACs", "size on disk", "time, 1 face on CPU", "time, 32 faces on CPU"]
    (bars,) = keywords["bars"]
    shares = [small / base for base, small in zip(SIZES["base"], SIZES["small"], strict=True)]
    np.testing.assert_allclose(bars.value_G, [*shares, 0.05, 0.025])
    np.testing.assert_allclose(bars.high_G, [*shares, 0.075, 0.0375])


def test_a_detector_alone(tmp_path, read_page):
    write(tmp_path, ROWS[:2])
    assert read_page(tmp_path).attributes("alt") == []


@pytest.mark.browser
def test_in_a_browser(page, look):
    assert look(page[1]) == 1
