"""The epochs of a training, in this process or in workers of Ray Train.

    faces of train -> windows -> decode, augment (threads, or Ray Data) -> gradients, exchanged between the workers
    faces of val   -> windows -> decode          (threads, or Ray Data) -> loss, whether the epoch is the best so far
          -> OUT/checkpoint.pt after each epoch

Both ways give the same result. A run that was stopped or killed goes on from its last finished epoch.
"""

import contextlib
import copy
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from raydistal import storage, tables
from raydistal.compression.teaching import Teacher, Teaching
from raydistal.detector.recipes import Recipe
from raydistal.errors import UserError
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import tell_wait
from raydistal.pipelines.streaming import use_gpu
from raydistal.progress import Progress

if TYPE_CHECKING:
    import ray

    from raydistal.detector.examples import Batch, Ints, Source
    from raydistal.detector.training import TeacherLoss, Training
    from raydistal.detector.zoo import Detector

CHECKPOINT = "checkpoint.pt"
RAY_FOLDER = "ray-train"
CHUNKS_AHEAD = 4
ATTEMPTS = 4  # starts without a finished epoch: a worker that always dies ends the run, lost nodes do not
CPUS_PER_TASK = 0.5  # a worker and a task that loads faces fit on one CPU; with fewer slots both would wait for ever

Split = Literal["train", "val"]
Tell = Callable[[int, str], None]  # gets the number of faces learnt since the last call, and a note for the user
OnEpoch = Callable[[dict[str, Any]], None]  # gets each row of the history once its checkpoint is written
Feed = Callable[[Split, list["Ints"], int | None], Iterator["Batch"]]  # chunks of the faces of these windows, in order


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where the training runs."""

    num_workers: int = 0
    """Ray Train workers that share each batch, each on a GPU if there are any. 0: train in this process without Ray."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where available."""
    faces_at_once: int = 0
    """Faces per forward pass; gradients are accumulated over a batch. 0: the whole batch of a worker."""

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.faces_at_once < 0:
            raise UserError("need --num-workers and --faces-at-once of 0 or more")


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """The teachers of a training: either all run on every face, or the outputs of all are read from tables."""

    known: Sequence[Teacher] = ()
    embedding_dims: Sequence[int] = ()
    """Numbers in an embedding of each."""
    live: Sequence["Detector"] = ()
    """The teachers that run; () if their outputs are read."""
    tables: Sequence[str] = ()
    """Where the outputs of each are read from; () if they run."""


NO_TEACHERS = Teachers()


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to take part in a training."""

    compute: Compute
    recipe: Recipe
    seed: int
    teaching: Teaching
    settings: dict[str, Any]
    claim: tables.Claim
    detector: "Detector"
    trainable: set[str] | None
    teachers: Teachers
    source: "Source"
    train: pa.Table
    val: pa.Table


def run(job: Job, on_epoch: OnEpoch | None = None) -> None:
    """Trains until the last epoch is in the checkpoint; `on_epoch` is called only without workers.

    Raises:
        UserError: a checkpoint made with other settings, out of memory.
        RuntimeError: the workers died too often.
    """
    if job.compute.num_workers:
        _run_in_workers(job)
    else:
        _run_here(job, on_epoch)


def read_state(job: Job) -> dict[str, Any] | None:
    """The state of the training after its last finished epoch; None before the first.

    Raises:
        UserError: it was made with other settings.
    """
    from raydistal.detector import training

    try:
        content = storage.read_bytes(storage.join(job.claim.location, CHECKPOINT))
    except FileNotFoundError:
        return None
    state = training.read_state(content)
    tables.refuse_other_config(job.claim.location, CHECKPOINT, state["settings"], job.settings)
    return state


def _run_here(job: Job, on_epoch: OnEpoch | None) -> None:
    import torch

    from raydistal.detector.examples import load_window

    device = job.compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    state = read_state(job)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads, _progress(job, state) as progress:

        def feed(split: Split, windows: list["Ints"], epoch: int | None) -> Iterator["Batch"]:
            for window in windows:
                yield from load_window(job.source, getattr(job, split), window, epoch, threads)

        _work(job, state, lambda *given: _ahead(feed(*given)), progress.advance, device, on_epoch)


def _ahead(chunks: Iterator["Batch"]) -> Iterator["Batch"]:
    """The same chunks, loaded by a thread while the network trains."""
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, chunks, None) for _ in range(CHUNKS_AHEAD))
        while (chunk := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, chunks, None))
            yield chunk


def _progress(job: Job, state: dict[str, Any] | None) -> Progress:
    num_left = job.recipe.epochs - (state["epoch"] if state else 0)
    return Progress("train", max(0, num_left) * len(job.train), unit="faces")


def _run_in_workers(job: Job) -> None:
    """Trains in processes of Ray Train, which starts them again when some are lost; a `Board` has what they tell."""
    connect()
    import ray
    from ray.data._internal.stats import get_or_create_stats_actor

    # Ray Data keeps this actor for ever on the node that first uses it: a worker's node could never be given back.
    get_or_create_stats_actor()
    storage.delete_folder(storage.join(job.claim.location, RAY_FOLDER))  # what is left of a killed run misleads Ray
    # Workers that find no board would fail and start again for ever. A restarted board has only lost its counts.
    board: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board).remote()
    with _progress(job, read_state(job)) as progress, _showing(board, progress):
        _run_workers(job, board)
    if trouble := ray.get(board.trouble.remote()):
        raise trouble
    storage.delete_folder(storage.join(job.claim.location, RAY_FOLDER))


@contextlib.contextmanager
def _showing(board: Any, progress: Progress) -> Iterator[None]:
    """Shows what the workers tell the board."""
    import ray

    stop = threading.Event()

    def watch() -> None:
        is_last = False
        while not is_last:
            is_last = stop.wait(1.0)
            for num, note in ray.get(board.take.remote()):
                progress.advance(num, note)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _run_workers(job: Job, board: Any) -> None:
    """Runs `_worker` in every process until all are done, or Ctrl-C."""
    import ray
    import ray.train
    from ray.exceptions import RayError
    from ray.train.torch import TorchTrainer

    controllers: list[Any] = []

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Keeps Ctrl-C for us: Ray Train's own handler would end this process as if it had succeeded."""
            controllers.append(controller)

    compute = job.compute
    on_gpu = use_gpu(compute.device)
    tell_wait("train", {"GPU": compute.num_workers} if on_gpu else {"CPU": CPUS_PER_TASK * (compute.num_workers + 1)})
    filesystem, path = storage.resolve(job.claim.location)
    trainer = Trainer(
        _worker,
        train_loop_config={"job": ray.put(job), "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.num_workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": CPUS_PER_TASK} | ({"GPU": 1} if on_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=RAY_FOLDER,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=-1),  # the board decides when to give up
        ),
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        with contextlib.suppress(RayError):  # so that the controller withdraws its request to the autoscaler
            ray.get([controller.abort.remote() for controller in controllers], timeout=5)
        raise


class Board:
    """Actor between the workers and the driver: what they tell it, and whether they should give up."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, str]] = []
        self._trouble: Exception | None = None
        self._starts: dict[int, int] = {}

    def begin(self, epoch: int) -> None:
        """Counts a start after `epoch` finished epochs; too many without another finished one are trouble."""
        self._starts[epoch] = self._starts.get(epoch, 0) + 1
        if self._starts[epoch] > ATTEMPTS and self._trouble is None:
            self._trouble = RuntimeError(f"the workers died {ATTEMPTS} times in epoch {epoch}. See the logs of Ray.")

    def tell(self, num: int, note: str) -> None:
        """Of a worker: see `Tell`."""
        self._reports.append((num, note))

    def take(self) -> list[tuple[int, str]]:
        """Everything told since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def stop(self, trouble: Exception) -> None:
        """Ends the training: another start would fail in the same way."""
        self._trouble = trouble

    def trouble(self) -> Exception | None:
        """Why the workers should give up; None: they should not."""
        return self._trouble


def _worker(given: dict[str, Any]) -> None:
    """One process of Ray Train."""
    import ray
    import ray.data
    import ray.train
    import ray.train.torch
    import torch

    context, board, job = ray.train.get_context(), given["board"], ray.get(given["job"])
    state = read_state(job)
    if context.get_world_rank() == 0:
        ray.get(board.begin.remote(state["epoch"] if state else 0))
    torch.distributed.barrier()
    if ray.get(board.trouble.remote()):
        return  # an exception would make Ray start all workers again
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    options = ray.data.DataContext.get_current()
    options.execution_options.preserve_order = True  # the order of the faces decides the result
    options.enable_progress_bars = False
    try:
        feed = partial(_feed, job=given["job"])
        _work(job, state, feed, lambda *report: board.tell.remote(*report), ray.train.torch.get_device().type)
    except UserError as error:
        ray.get(board.stop.remote(error))
        raise


def _feed(split: Split, windows: list["Ints"], epoch: int | None, job: "ray.ObjectRef[Job]") -> Iterator["Batch"]:
    """As `Feed`; tasks of Ray Data on all nodes load the faces."""
    import ray.data

    from raydistal.detector.examples import Batch

    if not windows:
        return
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # retries have no other way in
    rows = ray.data.from_items([{"window": window} for window in windows], override_num_blocks=len(windows))
    load = partial(_load, split=split, epoch=epoch, job=job)
    dataset = rows.map_batches(load, batch_size=1, num_cpus=CPUS_PER_TASK, max_retries=ATTEMPTS)
    for chunk in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=CHUNKS_AHEAD):
        yield Batch.from_columns(chunk)


def _load(rows: dict[str, Any], split: Split, epoch: int | None, job: "ray.ObjectRef[Job]") -> Iterator[dict[str, Any]]:
    import ray

    from raydistal.detector.examples import load_window

    known = ray.get(job)
    for window in rows["window"]:
        for chunk in load_window(known.source, getattr(known, split), window, epoch):
            yield chunk.columns()


def _work(
    job: Job, state: dict[str, Any] | None, feed: Feed, tell: Tell, device: str, on_epoch: OnEpoch | None = None
) -> None:
    """Trains from `state` to the end, as the only process or as one of several, each with its share of every batch."""
    import torch

    from raydistal.detector.examples import plain_shares, rebatch, shuffled_shares
    from raydistal.detector.training import Training

    num_workers = max(1, job.compute.num_workers)
    part_N = job.train["part"].to_numpy()
    batch_size = job.recipe.batch_size // num_workers
    num_batches = -(-(len(part_N) // num_workers) // batch_size)
    detector = copy.deepcopy(job.detector)  # what Ray hands over cannot be written to
    options: dict[str, Any] = {"trainable": job.trainable, "teacher_loss": _teacher_loss(job, detector, device)}
    training = Training(detector, job.recipe, num_batches, device, job.compute.faces_at_once, job.seed, **options)
    if state:
        training.restore(state)
    while not training.is_finished:
        began = time.monotonic()
        windows = shuffled_shares(part_N, num_workers, job.seed, training.epoch)[training.rank]
        chunks = feed("train", windows, training.epoch)
        fitted = training.fit(_reporting(rebatch(chunks, batch_size, min_last=2), tell, training))
        windows = plain_shares(len(job.val), num_workers)[training.rank]
        measured = training.measure(rebatch(feed("val", windows, None), batch_size))
        spent = {"seconds": time.monotonic() - began, "num_workers": num_workers}
        training.finish_epoch(fitted | spent, *measured)
        if training.rank == 0:
            job.claim.check()
            location = storage.join(job.claim.location, CHECKPOINT)
            storage.write_bytes(location, training.state({"settings": job.settings, "device": _device_name(device)}))
            tell(0, _note(training))
        if training.world_size > 1:
            torch.distributed.barrier()  # an epoch is finished when its checkpoint is there
        if on_epoch:
            on_epoch(training.history[-1])


def _teacher_loss(job: Job, student: "Detector", device: str) -> "TeacherLoss | None":
    from raydistal.compression.distillation import Distillation, Panel, embedding_dim

    if not job.teachers.known:
        return None
    return Distillation(
        job.teaching,
        student_dim=embedding_dim(student),
        teacher_dims=job.teachers.embedding_dims,
        num_faces=len(job.train),
        panel=Panel(job.teachers.live, device) if job.teachers.live else None,
        device=device,
        seed=job.seed,
    )


def _reporting(batches: Iterator["Batch"], tell: Tell, training: "Training") -> Iterator["Batch"]:
    for batch in batches:
        yield batch
        if training.rank == 0:  # all processes are in step
            tell(training.world_size * len(batch.label_N), _note(training))


def _note(training: "Training") -> str:
    """One line on the last finished epoch; "" before the first."""
    if not training.history:
        return ""
    row = training.history[-1]
    val = "" if row["val_loss"] is None else f", val {row['val_loss']:.3f}, accuracy {row['val_accuracy']:.3f}"
    return f"epoch {row['epoch'] + 1}: loss {row['train_loss']:.3f}{val}"


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
