"""Three ways from the same videos to the same table: raydistal, plain processes without a framework, and Daft."""

import dataclasses
import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import save_file

from benchmarks import clips
from benchmarks.measure import Cost, clock
from raydistal import schemas, tables
from raydistal.faces.look import look
from raydistal.features.backbones import FeatureExtractor, feature_dim, load
from raydistal.pipelines import extract
from raydistal.pipelines.connection import connect

FACES = extract.Faces()  # the default: Haar, 299 pixels, PNG crops
SAMPLE = "even:10"
NUM_PROCESSES = len(os.sched_getaffinity(0))

Video = tuple[str, str]  # video_id and path


def videos_of(paths: Sequence[Path], num_videos: int) -> list[Video]:
    """The files, taking turns, as so many videos."""
    return [(f"{number:04d}", str(paths[number % len(paths)].absolute())) for number in range(num_videos)]


def features_by(backbone: str) -> extract.Features:
    """The network with random weights in a file: as fast as trained ones, and nothing to download."""
    path = clips.FOLDER / f"{backbone.replace(':', '-')}.safetensors"
    if not path.exists():
        save_file(load(backbone, "random").network.state_dict(), path)
    return extract.Features(backbone=backbone, weights=str(path.absolute()))


def write_videos(videos: list[Video], run: str) -> None:
    """The `videos` table of a run folder, as `raydistal index` would write it for unlabelled videos."""
    video_ids, paths = zip(*videos, strict=True)
    columns = {"video_id": video_ids, "uri": paths, "group_id": video_ids}
    columns |= {"dataset": ("synthetic",) * len(videos), "split": ("pool",) * len(videos)}
    tables.write_table(f"{run}/videos", schemas.conform(pa.table(columns), schemas.VIDEOS), {})


def by_raydistal(videos: list[Video], features: extract.Features) -> Cost:
    """The product on a fresh cluster, whose start is not counted; that of Ray's workers is."""
    with tempfile.TemporaryDirectory() as out, cluster():
        write_videos(videos, out)
        with clock() as cost:
            summary = extract.run(extract.Config(out=out, sample=SAMPLE, faces=FACES, features=features))
    _check(summary["ok"], videos)
    return cost


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray cluster on this machine, as the command line starts it; nothing if there is one already."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    connect()
    import ray  # not earlier: connect() sets what it reads then

    try:
        yield
    finally:
        ray.shutdown()


def by_plain_processes(videos: list[Video], features: extract.Features, num_processes: int) -> Cost:
    """The bound: each process does its share, one video after the other. Their start is not counted."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(num_processes + 1, timeout=1800)
    with tempfile.TemporaryDirectory() as out:
        shares = [videos[number::num_processes] for number in range(num_processes)]
        processes = [spawn.Process(target=_do_share, args=(share, features, out, barrier)) for share in shares]
        for process in processes:
            process.start()
        barrier.wait()
        with clock() as cost:
            barrier.wait()
        for process in processes:
            process.join()
        _check(tables.open_table(out, "").count_rows(), videos)
    return cost


def _do_share(videos: list[Video], features: extract.Features, out: str, barrier: Barrier) -> None:
    extractor = _extractor(features)
    schema = schemas.faces_schema(feature_dim(extractor.backbone, FACES.size_px))
    barrier.wait()
    for start in range(0, len(videos), extract.VIDEOS_PER_PART):
        rows = []
        for video in videos[start : start + extract.VIDEOS_PER_PART]:
            found = _look(*video)
            rows.append(found.append_column("feature", _run(extractor, found["pixels"].combine_chunks())))
        tables.write_part(out, schemas.conform(pa.concat_tables(rows), schema), {})
    barrier.wait()


def by_daft(videos: list[Video], features: extract.Features) -> Cost:
    """Daft's native runner: a user-defined function for each stage, the first in one process per core."""
    os.environ["DAFT_RUNNER"] = "native"  # not Ray, which is there too; set_runner_native() works once only
    daft: Any = importlib.import_module("daft")  # not everybody has it
    schema = schemas.faces_schema(feature_dim(load(features.backbone, features.weights), FACES.size_px))
    pixels = pa.field("pixels", pa.list_(pa.list_(pa.uint8(), 3 * FACES.size_px**2)))
    looked = pa.struct([*(field for field in schema if field.name not in ("video_id", "feature")), pixels])
    looked_type, feature_type = map(daft.DataType.from_arrow_type, (looked, schema.field("feature").type))

    @daft.cls(use_process=True, max_concurrency=NUM_PROCESSES)
    class Look:
        @daft.method.batch(return_dtype=looked_type, unnest=True, batch_size=1)  # type: ignore[untyped-decorator]
        def __call__(self, video_id: Any, path: Any) -> pa.Array:
            row = _look(video_id.to_pylist()[0], path.to_pylist()[0])
            columns = [row[field.name].cast(field.type).combine_chunks() for field in looked]
            return pa.StructArray.from_arrays(columns, fields=list(looked))

    @daft.cls(use_process=False, max_concurrency=1)
    class Features:
        def __init__(self) -> None:
            self.extractor = _extractor(features)

        @daft.method.batch(return_dtype=feature_type, batch_size=extract.VIDEOS_PER_PART)  # type: ignore[untyped-decorator]
        def __call__(self, pixels: Any) -> pa.Array:
            return _run(self.extractor, pixels.to_arrow())

    video_ids, paths = zip(*videos, strict=True)
    frame = daft.from_pydict({"video_id": list(video_ids), "path": list(paths)})
    frame = frame.select("video_id", Look()(frame["video_id"], frame["path"]))
    frame = frame.with_column("feature", Features()(frame["pixels"])).exclude("pixels")
    with tempfile.TemporaryDirectory() as out:
        with clock() as cost:
            frame.write_parquet(out, compression="zstd")
        _check(daft.read_parquet(f"{out}/*.parquet").count_rows(), videos)
    return cost


def _extractor(features: extract.Features) -> FeatureExtractor:
    torch.set_num_threads(1)
    return FeatureExtractor(load(features.backbone, features.weights), features.precision)


def _look(video_id: str, path: str) -> pa.Table:
    return look(path, video_id, SAMPLE, **dataclasses.asdict(FACES))


def _run(extractor: FeatureExtractor, pixels: pa.Array) -> pa.Array:
    crops_NHWC = pixels.flatten().flatten().to_numpy().reshape(-1, FACES.size_px, FACES.size_px, 3)
    return schemas.list_column(extractor(crops_NHWC), pc.list_value_length(pixels))


def _check(num_done: int, videos: list[Video]) -> None:
    if num_done != len(videos):
        raise RuntimeError(f"{num_done} of {len(videos)} videos done: the costs mean nothing")
