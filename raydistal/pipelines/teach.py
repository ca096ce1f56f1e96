"""detectors, faces -> teaching: the outputs of teachers for every face, computed once for all students.

    faces -> decode crops (CPU tasks) -> logits and embeddings by all teachers (actors, GPU if there is one)
          -> a table per teacher, RUN/teaching/MODEL_ID, in parts and rows as those of the faces

A part that is there is done: a rerun does what is missing, and parts that belong to other faces than those there now.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.compression.teaching import Teacher, find_teachers
from raydistal.errors import UserError
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import Budget, Growth
from raydistal.pipelines.streaming import crops_of, look_at_faces, start_torch, use_gpu
from raydistal.pipelines.telemetry import measured
from raydistal.progress import Progress

if TYPE_CHECKING:
    import ray

    from raydistal.detector.zoo import Detector

VIDEOS_PER_CALL = 16  # 512 decoded faces of 299 pixels are 140 MB

Frames = dict[str, list[int]]  # of each video of a part, by its video_id, in the order of the rows


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compute the outputs of teachers for a run's faces, once for all students."""

    teachers: tuple[str, ...]
    """Detector directories, local or s3://..."""
    data: str
    """Run folder with the tables videos and faces; RUN/teaching is written."""
    split: schemas.Split = "train"
    """Split to process; what was stored of other splits before is kept."""
    num_workers: int = 0
    """Processes that run the teachers. 0: one per GPU, or without GPUs one per node."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs if the cluster has any now; cuda: GPUs, even if their nodes have yet to start."""
    batch_size: int = 64
    """Faces per forward pass."""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if not self.teachers:
            raise UserError("need at least one of --teachers")
        if self.num_workers < 0 or self.batch_size < 1:
            raise UserError("need --num-workers of 0 or more and --batch-size of 1 or more")


class TeacherTable(NamedTuple):
    """The table of one teacher."""

    teacher: Teacher
    location: str
    settings: dict[str, Any]
    there: dict[str, Frames]
    """What it holds already, by the name of the part of the faces; {} where that is of no use."""


class Work(NamedTuple):
    """What there is to do."""

    teachings: list[TeacherTable]
    due: dict[str, Frames]
    """What every table is to hold in the end, part by part; no frames for videos that nobody looks at."""

    def missing(self, teaching: TeacherTable) -> list[str]:
        """Parts that do not hold that yet."""
        return [name for name in self.due if teaching.there[name] != self.due[name]]


def run(config: Config) -> dict[str, Any]:
    """Fills the tables, on Ray if anything is missing, and returns the job's summary.

    Raises:
        UserError: no such detector, an exported one, no crops, unfinished faces, an empty split, a crop that is no
            image, another writer.
    """
    began = time.monotonic()
    with tables.sole_writer(storage.absolute(storage.join(config.data, "teaching"))) as claim:
        work = _work(config)
        pending = [teaching for teaching in work.teachings if work.missing(teaching)]
        for teaching in pending:
            storage.delete(storage.join(teaching.location, tables.INFO))
        if pending:
            _teach(config, pending, work, claim)
        claim.check()
        summaries = [_finish(teaching, work) for teaching in work.teachings]
    return {"teachings": summaries, "seconds": round(time.monotonic() - began, 1)}


def _work(config: Config) -> Work:
    teachers = find_teachers(config.teachers)
    info = tables.faces_info(config.data, with_crops=True)
    videos = tables.read_table(storage.join(config.data, "videos"), "index", ["video_id", "split"])
    wanted = set(videos["video_id"].filter(pc.equal(videos["split"], config.split)).to_pylist())
    faces = storage.join(config.data, "faces")
    names = tables.part_names(faces)
    read = tables.read_parts(faces, names, ["video_id", "frame_index"])
    layout = {name: _frames(rows) for name, rows in zip(names, read, strict=True)}
    if not any(frames for part in layout.values() for video_id, frames in part.items() if video_id in wanted):
        raise UserError(f"{config.data} has no faces in split {config.split!r}. See --split.")
    teachings = []
    for teacher in teachers:
        location, settings = teacher.table(storage.absolute(config.data)), teacher.settings(info)
        with ThreadPoolExecutor(tables.READERS) as pool:  # many small reads: the wait is the store's latency
            there = dict(zip(names, pool.map(partial(_read, location, settings), names), strict=True))
        teachings.append(TeacherTable(teacher, location, settings, there))

    def is_due(name: str, video_id: str) -> bool:
        return video_id in wanted or any(teaching.there[name].get(video_id) for teaching in teachings)

    due = {
        name: {video_id: frames if is_due(name, video_id) else [] for video_id, frames in part.items()}
        for name, part in layout.items()
    }
    return Work(teachings, due)


def _read(location: str, settings: dict[str, Any], name: str) -> Frames:
    """What a part holds; {} if it is not there, not readable to the end, or made with other settings."""
    try:
        rows = tables.read_part(location, name, ["video_id", "frame_index"])
    except (FileNotFoundError, pa.ArrowInvalid):
        return {}
    return _frames(rows) if tables.made_with(location, name, rows.schema) == settings else {}


def _frames(rows: pa.Table) -> Frames:
    return dict(zip(rows["video_id"].to_pylist(), rows["frame_index"].to_pylist(), strict=True))


def _teach(config: Config, teachings: list[TeacherTable], work: Work, claim: tables.Claim) -> None:
    """Writes what is missing of these tables; all teachers look at a face when it is decoded once."""
    from raydistal.compression.distillation import embedding_dim
    from raydistal.detector import checkpoint

    detectors = [checkpoint.load(teaching.teacher.location)[0] for teaching in teachings]
    dims = [embedding_dim(detector) for detector in detectors]
    names = sorted(set().union(*(work.missing(teaching) for teaching in teachings)))
    part_of = {video_id: name for name in names for video_id, frames in work.due[name].items() if frames}
    num_faces = [len(work.due[name][video_id]) for video_id, name in part_of.items()]
    videos = pa.table({"video_id": list(part_of), "part": list(part_of.values()), "num_faces": num_faces})
    outputs_of: dict[str, list[pa.Table]] = {name: [] for name in names}

    def write_complete(some: Iterable[str]) -> None:
        for name in some:
            due = work.due[name]
            if sum(map(len, outputs_of[name])) == sum(map(bool, due.values())):
                claim.check()
                for number, (teaching, dim) in enumerate(zip(teachings, dims, strict=True)):
                    part = _part(due, outputs_of[name], number, dim)
                    storage.write_bytes(
                        storage.join(teaching.location, name), tables.to_parquet(part, teaching.settings)
                    )
                del outputs_of[name]

    write_complete(names)  # those that nobody looks at
    if not len(videos):
        return
    connect()
    with Progress("teach", len(videos), unit="videos") as progress:
        total = 0
        for rows in _stream(config, videos, detectors):
            parts = [part_of[video_id] for video_id in rows["video_id"].to_pylist()]
            for name in set(parts):
                outputs_of[name].append(rows.filter(pc.equal(pa.array(parts), name)))
            write_complete(set(parts))
            total += len(rows["frame_index"].combine_chunks().flatten())
            progress.advance(len(rows), f"{total} faces")
    if outputs_of:
        raise RuntimeError(f"{len(outputs_of)} parts of the faces came back incomplete; run the same command again")


def _part(due: Frames, outputs: list[pa.Table], number: int, dim: int) -> pa.Table:
    """A part of the table of the teacher with this number, rows as in `due`."""
    schema = schemas.teaching_schema(dim)
    columns = {"video_id": "video_id", "frame_index": "frame_index"}
    columns |= {f"logit_{number}": "logit", f"embedding_{number}": "embedding"}
    teaching_rows = [schemas.conform(rows.select(list(columns)).rename_columns(columns), schema) for rows in outputs]
    nothing: dict[str, Any] = {"frame_index": [], "logit": [], "embedding": []}
    silent = [{"video_id": video_id, **nothing} for video_id, frames in due.items() if not frames]
    whole = pa.concat_tables([*teaching_rows, pa.Table.from_pylist(silent, schema)]).combine_chunks()
    return whole.take(pc.index_in(pa.array(list(due)), value_set=whole["video_id"].combine_chunks()))


def _stream(config: Config, videos: pa.Table, detectors: list["Detector"]) -> Iterator[pa.Table]:
    """Runs the stages on `videos` (video_id, part, num_faces); yields what `TeachStage` gives."""
    import ray

    return look_at_faces(
        videos,
        storage.absolute(storage.join(config.data, "faces")),
        sorted({detector.input_px for detector in detectors}),
        TeachStage,
        (ray.put(detectors), config.batch_size),  # read once, handed to every actor
        VIDEOS_PER_CALL,
        config.num_workers,
        Growth(config.budget.max_nodes, use_gpu(config.device)),
    )


@measured("teach", "teachers")
class TeachStage:
    """Actor: holds all teachers. Rows of `decode_stage` -> video_id, frame_index; logit_0, embedding_0, logit_1 ..."""

    def __init__(self, detectors: "ray.ObjectRef[Sequence[Detector]]", batch_size: int) -> None:
        import ray

        device = start_torch()
        from raydistal.compression.distillation import Panel

        self.panel, self.batch_size = Panel(ray.get(detectors), device), batch_size

    def __call__(self, rows: pa.Table) -> pa.Table:
        num_V = pc.list_value_length(rows["frame_index"]).to_numpy()
        if len(lost := rows.filter(pa.array(num_V != rows["num_faces"].to_numpy()))):
            raise UserError(
                f"crops of {lost['video_id'][0]} are not images, so nothing can be learnt from them. Run raydistal "
                "extract with another --out, or leave the video out of the run's videos."
            )
        columns = {"video_id": rows["video_id"], "frame_index": rows["frame_index"]}
        for number, (logit_N, embedding_ND) in enumerate(self._look(rows, int(num_V.sum()))):
            columns[f"logit_{number}"] = schemas.list_column(logit_N, num_V)
            columns[f"embedding_{number}"] = schemas.list_column(embedding_ND, num_V)
        return pa.table(columns)

    def _look(self, rows: pa.Table, num_faces: int) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]]:
        """Logits and embeddings of all faces by each teacher."""
        import torch

        from raydistal.detector.scoring import enough_memory

        sizes_px = {detector.input_px for detector in self.panel.detectors}
        crops = {size_px: crops_of(rows[f"pixels_{size_px}"], size_px) for size_px in sizes_px}
        with enough_memory(self.batch_size):
            outputs = [
                self.panel(
                    {size_px: crops_NHWC[start : start + self.batch_size] for size_px, crops_NHWC in crops.items()}
                )
                for start in range(0, num_faces, self.batch_size)
            ]
        found = []
        for of_teacher in zip(*outputs, strict=True):
            logit_N, embedding_ND = (torch.cat(values).cpu() for values in zip(*of_teacher, strict=True))
            if not torch.isfinite(half_ND := embedding_ND.half()).all():
                raise UserError("a teacher's embeddings exceed 65504, which the table cannot hold. Use --outputs live.")
            found.append((logit_N.numpy(), half_ND.numpy()))
        return found


def _finish(teaching: TeacherTable, work: Work) -> dict[str, Any]:
    """Removes parts that the faces have no longer, says that the table is complete, and what it has."""
    for name in tables.part_names(teaching.location):
        if name not in work.due:
            storage.delete(storage.join(teaching.location, name))
    frames = [frames for part in work.due.values() for frames in part.values()]
    missing = set(work.missing(teaching))
    if missing or not tables.read_info(teaching.location):
        embedding = tables.open_table(teaching.location, "teach").schema.field("embedding").type
        info = {"num_rows": len(frames), "embedding_dim": embedding.value_type.list_size}
        tables.write_info(teaching.location, teaching.settings, **info)
    return {
        "teacher": teaching.teacher.location,
        "table": teaching.location,
        "videos": sum(map(bool, frames)),
        "faces": sum(map(len, frames)),
        "parts_done_now": len(missing),
    }
