"""Runs the stages of a pipeline with Ray Data: all CPUs are busy, and no stage runs far ahead of the next.

Also holds a stage that several pipelines share: from encoded to decoded crops.
"""

import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines.scaling import Growth, demand
from raydistal.pipelines.telemetry import add_seconds, log_failure

VIDEOS_PER_READ = 4  # their encoded crops are in memory at once; decoded ones are passed on video by video
PARTS_PER_TASK = 64  # few, so that losing a task with its node costs little
ONE_PER_NODE = "node:__internal_implicit_resource_raydistal_"  # each node has 1 of any such name; Ray Serve's trick
ATTEMPTS = 4  # finite, so that a task that always dies stops the job; several, as a lost node uses one up


def bound_queues(growth: Growth) -> None:
    """Configures the datasets that this process makes from now on, for a cluster that may grow as `growth` says.

    With Ray Data's reservations, two CPUs decode only one video at a time; without them, decoded crops pile up without
    end. So we use no reservations, and a bound of our own.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.op_resource_reservation_enabled = False
    context.set_config("backpressure_policies.enabled", [policy(growth)])
    # Ray Data asks for more nodes too. It must not if there is a limit, which it does not know.
    limits = {"cpu": max(1, growth.cpus)} if growth.max_nodes else {}
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(**limits)
    context.raise_original_map_exception = True  # else a UserError in an actor would become an exception of Ray's
    # There is no other way yet to set retries; Ray 2.64, which our range excludes, will require one.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")


def network_actors(num_workers: int, num_videos: int, growth: Growth) -> dict[str, Any]:
    """Options of `map_batches` for a stage whose actors hold networks.

    With `num_workers` 0 there is one per GPU, or without GPUs one per node, and more are started while videos wait for
    them, as far as they are of use. Actors that wait for resources make a cluster grow.
    """
    import ray
    import ray.data

    min_size, max_size = growth.actors_for(num_videos)
    options: dict[str, Any] = {
        "compute": ray.data.ActorPoolStrategy(min_size=num_workers or min_size, max_size=num_workers or max_size),
        # On CPUs the networks share the cores with decoding: reserved cores would idle half of the time.
        "num_cpus": 0,
        "num_gpus": int(growth.on_gpu),
        "max_restarts": ATTEMPTS,
        "max_task_retries": -1,  # retries fail fast until Ray notices a lost node; max_restarts is the limit
    }
    if not growth.on_gpu and not num_workers:
        options["resources"] = {ONE_PER_NODE + uuid.uuid4().hex: 1}  # unique to this stage: jobs may share nodes
    if idle := [node["NodeID"] for node in ray.nodes() if node["Alive"] and not node["Resources"].get("CPU")]:
        options["label_selector"] = {"ray.io/node-id": f"!in({','.join(idle)})"}  # not on a head without CPUs
    return options


def use_gpu(device: str) -> bool:
    """Whether trainings on the connected cluster get GPUs; `device` is auto, cpu or cuda."""
    import ray

    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)


def look_at_faces(
    videos: pa.Table,
    faces: str,
    sizes_px: Sequence[int],
    stage: type,
    stage_arguments: tuple[Any, ...],
    videos_per_call: int,
    num_workers: int,
    growth: Growth,
) -> Iterator[pa.Table]:
    """`videos` (video_id, part and others) -> `decode_stage` on all CPUs -> the actors `stage` -> their output.

    Args:
        videos: as `decode_stage` takes them.
        faces: location of the table that holds the crops.
        sizes_px: sizes of the crops that the stage needs.
        stage: class of an actor that holds networks; called with some rows of `decode_stage`.
        stage_arguments: for its constructor.
        videos_per_call: rows that the stage gets at once.
        num_workers: as for `network_actors`.
        growth: of the cluster.

    Raises:
        UserError: as the stage raises it.
    """
    decode = partial(decode_stage, faces=faces, sizes_px=sizes_px, verb=stage.__module__.rpartition(".")[2])
    blocks = by_parts(videos, growth.cpus_for(len(videos)))
    return through_actors(blocks, decode, stage, stage_arguments, videos_per_call, num_workers, growth)


def through_actors(
    blocks: list[pa.Table],
    look: Callable[[pa.Table], Iterator[pa.Table]],
    stage: type,
    stage_arguments: tuple[Any, ...],
    videos_per_call: int,
    num_workers: int,
    growth: Growth,
) -> Iterator[pa.Table]:
    """`blocks` of videos -> a task `look` for each, on all CPUs -> the actors `stage` -> their output.

    Args:
        blocks: rows of videos.
        look: gives a row for each row of a block.
        stage: class of an actor that holds networks; called with some rows of `look`.
        stage_arguments: as for `look_at_faces`, with the next three.
        videos_per_call: rows that the stage gets at once.
        num_workers: as for `network_actors`.
        growth: of the cluster.

    Raises:
        UserError: as the stage raises it.
    """
    import ray.data

    bound_queues(growth)
    num_videos = sum(map(len, blocks))
    dataset = (
        # from_arrow would first run a task for each block, for which the cluster would grow.
        ray.data.from_blocks(blocks)
        .map_batches(
            look,
            batch_format="pyarrow",
            batch_size=None,  # the block: rows leave one by one as they are done
            num_cpus=1,
            max_retries=ATTEMPTS,
        )
        .map_batches(
            stage,
            fn_constructor_args=stage_arguments,
            batch_format="pyarrow",
            batch_size=videos_per_call,
            **network_actors(num_workers, num_videos, growth),
        )
    )
    try:
        with demand(growth, num_videos):
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except UserError as error:
        raise as_raised(error) from None


def as_raised(error: UserError) -> UserError:
    """The error of a worker, less Ray's traceback and Ray Data's hint at retries."""
    return UserError(str(getattr(error, "cause", error)).partition("\nFailed to apply UDF transform")[0])


def start_torch() -> str:
    """Loads torch in such an actor; returns its device. Call it before anything else imports torch."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads would spin on CPUs that decode
    import ray
    import torch

    node = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    torch.set_num_threads(max(1, int(node["Resources"].get("CPU", 1))))  # Ray sets 1 for an actor without CPUs
    return "cuda" if ray.get_gpu_ids() else "cpu"


ROWS_PER_TASK = 8  # few, so that all CPUs stay busy to the end
MAX_TASKS = 20_000  # the driver holds a reference to each


def num_cpus() -> int:
    """Number of CPUs of the connected cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def on_all_cpus(blocks: list[pa.Table], stage: Callable[[pa.Table], Any], max_nodes: int = 0) -> Iterator[pa.Table]:
    """Yields the tables that `stage` returns for each block, as they come; `max_nodes` as in a Budget."""
    import ray.data

    if not blocks:
        return
    growth = Growth(max_nodes)
    bound_queues(growth)
    dataset = ray.data.from_blocks(blocks).map_batches(
        stage,
        batch_format="pyarrow",
        batch_size=None,  # the block
        num_cpus=1,
        max_retries=ATTEMPTS,
    )
    with demand(growth, sum(map(len, blocks))):
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def in_blocks(rows: pa.Table, num_cpus: int) -> list[pa.Table]:
    """`rows` in blocks small enough to keep all CPUs busy to the end, and large enough for cheap scheduling."""
    num = max(1, min(ROWS_PER_TASK, len(rows) // (8 * num_cpus)), len(rows) // MAX_TASKS)
    return [rows[start : start + num] for start in range(0, len(rows), num)]


def parts_of(location: str, video_id_V: pa.ChunkedArray) -> pa.ChunkedArray:
    """The name of the part of a table that holds each video; null where there is none."""
    names = tables.part_names(location)
    found = tables.read_parts(location, names, ["video_id"])
    rows = pa.concat_tables(
        part.append_column("part", pa.array([name] * len(part))) for name, part in zip(names, found, strict=True)
    )
    return rows["part"].take(pc.index_in(video_id_V, value_set=rows["video_id"]))


def with_parts(run: str, videos: pa.Table, chosen: str) -> pa.Table:
    """`videos` with the column part: the name of the part of RUN/faces that holds each; `chosen` says which they are.

    Raises:
        UserError: a video has no row there.
    """
    faces = storage.absolute(storage.join(run, "faces"))
    part_V = parts_of(faces, videos["video_id"])
    if part_V.null_count:
        raise UserError(
            f"{part_V.null_count} videos of {chosen} have no row in {faces}. Run: raydistal extract --out {run}"
        )
    return videos.append_column("part", part_V)


def by_parts(videos: pa.Table, num_cpus: int) -> list[pa.Table]:
    """`videos` (part and others) in a table per task. No part is split; there are enough tasks for all CPUs."""
    videos = videos.sort_by("part")
    first = np.unique(videos["part"].to_numpy(), return_index=True)[1]
    num_tasks = min(len(first), max(8 * num_cpus, len(first) // PARTS_PER_TASK))
    starts = [int(parts[0]) for parts in np.array_split(first, num_tasks)]
    return [videos[start:stop] for start, stop in zip(starts, [*starts[1:], len(videos)], strict=True)]


def by_batches(
    rows: pa.Table, location: str, columns: list[str], num_at_once: int
) -> Iterator[tuple[pa.Table, pa.RecordBatch]]:
    """For each part named in `rows` (video_id, part and others), yields its `rows` with a batch of the table's rows.

    Args:
        rows: the videos to read.
        location: of the table.
        columns: of the table; video_id among them.
        num_at_once: rows that are read together; those of other videos are left out.
    """
    for name in pc.unique(rows["part"]).to_pylist():
        of_part = rows.filter(pc.equal(rows["part"], name))
        wanted = of_part["video_id"].combine_chunks()
        filesystem, path = storage.resolve(storage.join(location, name))
        with pq.ParquetFile(path, filesystem=filesystem) as part:
            for batch in part.iter_batches(num_at_once, columns=columns):
                yield of_part, batch.filter(pc.is_in(batch["video_id"], value_set=wanted))


def decode_stage(videos: pa.Table, faces: str, sizes_px: Sequence[int], verb: str) -> Iterator[pa.Table]:
    """Rows of `videos` (video_id, part and others) -> the same rows with status, frame_index and crops, without part.

    The crops are decoded for each size S, as lists of S * S * 3 bytes in the column pixels_S. A crop that is not an
    image is left out with its frame; a video without any image gets the status decode_error. `verb` is the name of the
    job in metrics and the log.
    """
    from raydistal.detector.scoring import decode_crops

    columns = ["video_id", "status", "frame_index", "crop"]
    for of_part, batch in by_batches(videos, faces, columns, VIDEOS_PER_READ):
        for found in batch.to_pylist():
            began = time.monotonic()
            crops, places = decode_crops(found["crop"] or [], sizes_px)
            add_seconds(verb, "decode", time.monotonic() - began)
            status = "decode_error" if found["status"] == "ok" and not places else found["status"]
            if status != found["status"]:
                log_failure(verb, found["video_id"], status, "none of its crops is an image")
            frame_index = np.array(found["frame_index"], np.int32)[places]
            row = of_part.drop_columns(["part"]).filter(pc.equal(of_part["video_id"], found["video_id"]))
            row = row.append_column("status", pa.array([status]))
            row = row.append_column("frame_index", schemas.list_column(frame_index, [len(places)]))
            for size_px, crops_NHWC in crops.items():
                pixels_NP = crops_NHWC.reshape(len(places), 3 * size_px**2)
                row = row.append_column(f"pixels_{size_px}", schemas.list_column(pixels_NP, [len(places)]))
            yield row


def crops_of(pixels: pa.ChunkedArray, size_px: int) -> npt.NDArray[np.uint8]:
    """A column pixels_S of `decode_stage`, (N, S, S, 3)."""
    flat = pixels.combine_chunks().flatten().flatten()
    return np.asarray(flat.to_numpy()).reshape(-1, size_px, size_px, 3)


def policy(growth: Growth) -> type:
    """A Ray Data backpressure policy: how far a stage may run ahead of the next one.

    A stage submits at most two tasks per CPU, and none while its output fills a quarter of the object store, unless the
    next stage is idle (it may be waiting for a whole batch). Two, not one, as unmet demand makes a cluster grow.
    """
    from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
    from ray.data._internal.execution.interfaces import PhysicalOperator

    class BoundQueues(BackpressurePolicy):
        def can_add_input(self, op: PhysicalOperator) -> bool:
            is_pool = bool(op.get_autoscaling_actor_pools())  # bounded by its actors, which grow on demand
            if not is_pool and op.num_active_tasks() >= max(1, min(2 * growth.cpus, growth.max_cpus)):
                return False
            limits = self._resource_manager.get_global_limits()  # its object_store_memory is a quarter of the store
            is_full = self._resource_manager.get_mem_op_outputs(op) >= limits.object_store_memory > 0
            return not (is_full and any(following.num_active_tasks() for following in op.output_dependencies))

    return BoundQueues
