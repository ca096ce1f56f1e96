"""The benchmarks run, on clips of a second or a few; what they measure does not matter here.

naive and plan take minutes, compress an hour; serve starts an app of its own, as tests/serving/test_app.py does.
"""

import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from raydistal import tables

pytestmark = pytest.mark.slow

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks are run from the repository, not installed
clips, decode, detect, extract, extractors, scale, train, verdicts = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("clips", "decode", "detect", "extract", "extractors", "scale", "train", "verdicts")
)

SMALL_NETWORK = "timm:test_byobnet"


@pytest.fixture(autouse=True)
def small_clips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clips, "FOLDER", tmp_path)
    monkeypatch.setitem(clips.SIZES, "small", (320, 240))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with extractors.cluster():
        yield


def check(ratios: list, num_ratios: int) -> None:
    assert len(ratios) == num_ratios
    assert all(math.isfinite(ratio.value) and ratio.value > 0 for ratio in ratios)


def test_decode() -> None:
    console = Console(record=True, width=120)
    check(decode.run(console, sizes=("small",), seconds=1, rounds=1), 1)
    lines = [line for line in console.export_text().splitlines() if "raydistal" in line]
    assert len(lines) == 4
    assert all("10/10" in line for line in lines)


def test_detect() -> None:
    time, least_iou, share = detect.run(Console(), size="small", num_clips=1, seconds=1, rounds=1)
    check([time], 1)
    assert 0 <= least_iou.value <= 1
    assert 0 <= share.value <= 1


def test_verdicts() -> None:
    # 4 s, as CPU times come in hundredths of a second: to decode a second may take none.
    check(verdicts.run(Console(), size="small", num_clips=1, seconds=4, rounds=1, architecture="timm:test_resnet"), 2)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_extract() -> None:
    ratios = extract.run(
        Console(), sizes=("small",), num_clips=1, num_videos=2, seconds=1, rounds=1, backbone=SMALL_NETWORK
    )
    check(ratios, 3 if importlib.util.find_spec("daft") else 2)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_train() -> None:
    ratios = train.run(
        Console(), size="small", num_clips=2, num_faces=12, seconds=1, rounds=1, architecture="timm:test_resnet"
    )
    check(ratios, 1)


def test_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [scale.measure("ledger", num_videos, tmp_path / str(num_videos)) for num_videos in (100, 200)]
    for stage in ("index", "select"):
        prepare, run = scale.STAGES[stage]
        prepare(tmp_path, 100)
        run(tmp_path)
    assert tables.read_info(f"{tmp_path}/indexed/videos")["real"] == 20
    assert tables.read_table(f"{tmp_path}/select/distilled", "select").num_rows == 20
    assert all(row.wall_s > 0 and row.cpu_s >= 0 for row in found)
    Console().print(scale.growth_table([found[0], found[0]._replace(num_videos=200, cpu_s=2 * found[0].cpu_s)]))
    assert "2.0" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_select(tmp_path: Path) -> None:
    prepare, run = scale.STAGES["score"]
    prepare(tmp_path, 100)
    run(tmp_path)
    assert tables.read_table(f"{tmp_path}/score/distilled", "select").num_rows == 20
