"""python -m benchmarks.scale: how time and memory of the driver grow with the number of videos.

    index    a Parquet manifest of N videos -> OUT/videos
    ledger   what is left to do of N videos, 99 % of which are in the ledger: parts of 4,096 rows
    select   N videos with 2 faces each that were scored before -> representative, ranking, distilled, coverage
    score    N videos with 10 faces of 4096 numbers each -> the same, with the scoring on Ray; only if it is asked for

Every measurement is a process of its own. The videos, their faces and scores are made up: none of it is a file.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
from rich.console import Console
from rich.table import Table

from raydistal import schemas, storage, tables
from raydistal.pipelines import index, select

GROWING = ("index", "ledger", "select")
SIZES = (10_000, 100_000, 1_000_000)
FAKES_PER_REAL = 4
REALS_PER_IDENTITY = 10
FACES_PER_VIDEO = 2
SCORED_FACES, FEATURE_DIM, VIDEOS_PER_PART = 10, 4096, 8  # of `score`: as `extract` with VGG16 writes them
ROWS_PER_PART = 4096
SETTINGS = {"sample": "even:10", "crops": "none"}


class Growth(NamedTuple):
    """What one stage took for one number of videos."""

    stage: str
    num_videos: int
    wall_s: float
    cpu_s: float
    peak_mb: float  # above what the process took before, 1e6 bytes


def main(stages: tuple[str, ...] = GROWING, sizes: tuple[int, ...] = SIZES, folder: str = "") -> None:
    """Measures and prints the growth of each stage.

    Args:
        stages: index, ledger, select, score; the last takes 80 kB of disk per video.
        sizes: numbers of videos.
        folder: where the made-up tables go, some 400 bytes per video; default: a temporary one, removed after.
    """
    place = Path(folder or tempfile.mkdtemp(prefix="raydistal-scale-"))
    console, found = Console(), []
    try:
        for num_videos in sizes:
            for stage in stages:
                found.append(measure(stage, num_videos, place / str(num_videos)))
                console.print(found[-1], highlight=False)
    finally:
        if not folder:
            shutil.rmtree(place)
    console.print(growth_table(found))


def measure(stage: str, num_videos: int, folder: Path) -> Growth:
    """Makes what the stage reads, if it is not there yet, and runs the stage in a process of its own."""
    prepare, _ = STAGES[stage]
    if not (folder / f"{stage}.done").exists():
        prepare(folder, num_videos)
        (folder / f"{stage}.done").touch()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--child", stage, str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Growth(stage, num_videos, **json.loads(done.stdout.splitlines()[-1]))


def growth_table(found: list[Growth]) -> Table:
    """By stage and size; times and memory also as multiples of those of the size before."""
    table = Table("stage", "videos", "wall s", "CPU s", "peak MB", "CPU x", "memory x")
    before: dict[str, Growth] = {}
    for row in found:
        last = before.get(row.stage)
        factors = [f"{row.cpu_s / last.cpu_s:.1f}", f"{row.peak_mb / last.peak_mb:.1f}"] if last else ["", ""]
        table.add_row(
            row.stage, f"{row.num_videos:,}", f"{row.wall_s:.2f}", f"{row.cpu_s:.2f}", f"{row.peak_mb:.0f}", *factors
        )
        before[row.stage] = row
    return table


def run_child(stage: str, folder: Path) -> None:
    """The process that is measured."""
    _, run = STAGES[stage]
    out, sys.stdout = sys.stdout, sys.stderr
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    memory_mb, cpu_s, began = _memory_mb("VmRSS"), time.process_time(), time.monotonic()
    run(folder)
    cost = {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - cpu_s}
    print(json.dumps(cost | {"peak_mb": _memory_mb("VmHWM") - memory_mb}), file=out)


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def _numbered(form: str, number_N: np.ndarray) -> pa.Array:
    """`form` with each number, of ten digits, instead of its #."""
    digits = pc.utf8_lpad(pa.array(number_N).cast(pa.string()), 10, "0")
    head, tail = form.split("#")
    return pc.binary_join_element_wise(head, digits, tail, "")


def make_manifest(folder: Path, num_videos: int) -> None:
    """Real videos of people, and fakes of each."""
    number_V = np.arange(num_videos)
    real_V = number_V // (FAKES_PER_REAL + 1)
    is_real = pa.array(number_V % (FAKES_PER_REAL + 1) == 0)
    original = _numbered("s3://videos/real/#.mp4", real_V)
    columns = {
        "path": pc.if_else(is_real, original, _numbered("s3://videos/fake/#.mp4", number_V)),
        "label": pc.if_else(is_real, "real", "fake"),
        "method": pc.if_else(is_real, None, _numbered("method-#", number_V % (FAKES_PER_REAL + 1))),
        "original": pc.if_else(is_real, None, original),
        "identity": _numbered("person-#", real_V // REALS_PER_IDENTITY),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "manifest.parquet")


def run_index(folder: Path) -> None:
    index.run(index.Config(videos=str(folder / "manifest.parquet"), out=str(folder / "indexed"), dataset="made-up"))


def make_ledger(folder: Path, num_videos: int) -> None:
    """The parts of a job that is nearly done."""
    _write_videos(folder / "ledger", num_videos)
    done = pa.table({"video_id": _numbered("video-#", np.arange(num_videos * 99 // 100))})
    done = done.append_column("status", pa.array(np.full(len(done), "ok")))
    for start in range(0, len(done), ROWS_PER_PART):
        tables.write_part(str(folder / "ledger" / "faces"), done[start : start + ROWS_PER_PART], SETTINGS)


def run_ledger(folder: Path) -> None:
    """As at the start of extract."""
    videos = tables.read_table(str(folder / "ledger" / "videos"), "index")
    ledger = tables.read_ledger(str(folder / "ledger" / "faces"), SETTINGS)
    pending = videos.filter(pc.invert(pc.is_in(videos["video_id"], ledger["video_id"])))
    assert tables.count_values(ledger["status"]) == {"ok": len(videos) - len(pending)}


def make_scores(folder: Path, num_videos: int) -> None:
    """A run whose faces were scored: with that, select needs no cluster."""
    run = folder / "select"
    _write_videos(run, num_videos)
    tables.write_info(str(run / "faces"), SETTINGS, counts={"ok": num_videos})
    config = _to_select(folder)
    settings = select._settings(config, select._videos(config))["uncertainty"]
    rng = np.random.default_rng(0)
    for start in range(0, num_videos, ROWS_PER_PART):
        number_V = np.arange(start, min(start + ROWS_PER_PART, num_videos))
        num_V = np.full(len(number_V), FACES_PER_VIDEO)
        num_faces = int(num_V.sum())
        scored = _places(number_V, FACES_PER_VIDEO) | {"label": pa.array(_is_fake(number_V).astype(np.int8))}
        scored |= {name: schemas.list_column(rng.random(num_faces), num_V) for name in ("probability", "uncertainty")}
        part = schemas.conform(pa.table(scored), schemas.UNCERTAINTY)
        tables.write_part(str(run / "uncertainty"), part, settings)
        _write_faces(run, number_V, np.ones((num_faces, 1), np.float16))
    tables.write_info(str(run / "uncertainty"), settings, num_rows=num_videos)


def _to_select(folder: Path) -> select.Config:
    return select.Config(out=str(folder / "select"), ratio=0.2, frames=10_000)


def run_select(folder: Path) -> None:
    """All that the driver does but scoring."""
    for name in ("representative", "ranking", "distilled", "coverage"):
        storage.delete_folder(str(folder / "select" / name))
    select.run(_to_select(folder))


def make_features(folder: Path, num_videos: int) -> None:
    """A run as `extract` leaves it; noise, that of fakes a little off."""
    run, rng = folder / "score", np.random.default_rng(0)
    _write_videos(run, num_videos)
    for start in range(0, num_videos, VIDEOS_PER_PART):
        number_V = np.arange(start, min(start + VIDEOS_PER_PART, num_videos))
        label_N = np.repeat(_is_fake(number_V), SCORED_FACES)
        _write_faces(run, number_V, rng.normal(0.05 * label_N[:, None], 1, (len(label_N), FEATURE_DIM)))
    tables.write_info(str(run / "faces"), SETTINGS, counts={"ok": num_videos})


def run_score(folder: Path) -> None:
    """All of select, from features on."""
    for name in ("uncertainty", "representative", "ranking", "distilled", "coverage"):
        storage.delete_folder(str(folder / "score" / name))
    select.run(select.Config(out=str(folder / "score"), ratio=0.2, frames=500))


def _is_fake(number_V: np.ndarray) -> np.ndarray:
    return number_V % (FAKES_PER_REAL + 1) > 0


def _places(number_V: np.ndarray, num_faces: int) -> dict[str, pa.Array]:
    """video_id and frame_index of videos with so many faces each."""
    frames = schemas.list_column(np.tile(9 * np.arange(num_faces), len(number_V)), np.full(len(number_V), num_faces))
    return {"video_id": _numbered("video-#", number_V), "frame_index": frames}


def _write_faces(run: Path, number_V: np.ndarray, feature_ND: np.ndarray) -> None:
    """A part of RUN/faces: these videos, with as many faces each."""
    num_faces, dim = feature_ND.shape
    num_V = np.full(len(number_V), num_faces // len(number_V))
    faces = _places(number_V, int(num_V[0]))
    faces |= {"status": pa.array(np.full(len(num_V), "ok")), "num_frames_seen": num_V}
    faces |= {name: schemas.list_column(np.ones(num_faces), num_V) for name in ("pts_s", "detection_score")}
    faces |= {"box_xyxy_px": schemas.list_column(np.tile([[0.0, 0, 99, 99]], (num_faces, 1)), num_V)}
    faces |= {"feature": schemas.list_column(feature_ND.astype(np.float16), num_V)}
    tables.write_part(str(run / "faces"), schemas.conform(pa.table(faces), schemas.faces_schema(dim)), SETTINGS)


def _write_videos(run: Path, num_videos: int) -> None:
    number_V = np.arange(num_videos)
    label_V = _is_fake(number_V).astype(np.int8)
    group = _numbered("person-#", number_V // (FAKES_PER_REAL + 1) // REALS_PER_IDENTITY)
    columns = {
        "video_id": _numbered("video-#", number_V),
        "dataset": pa.array(np.full(num_videos, "made-up")),
        "uri": _numbered("s3://videos/#.mp4", number_V),
        "label": pa.array(label_V),
        "method": pc.if_else(pa.array(label_V == 0), None, "swap"),
        "group_id": group,
        "split": pa.array(np.full(num_videos, "train")),
    }
    tables.write_table(str(run / "videos"), schemas.conform(pa.table(columns), schemas.VIDEOS), {})


Step = Callable[[Path], None]
STAGES: dict[str, tuple[Callable[[Path, int], None], Step]] = {
    "index": (make_manifest, run_index),
    "ledger": (make_ledger, run_ledger),
    "select": (make_scores, run_select),
    "score": (make_features, run_score),
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], Path(sys.argv[3]))
    else:
        tyro.cli(main)
