"""videos, faces -> a detector directory.

    faces of train -> windows -> decode, augment (Ray Data) -> workers (Ray Train, gradients exchanged) -> checkpoint
    faces of val   -> windows -> decode          (Ray Data) -> loss after each epoch: which epoch is kept, when to stop

With no workers the same happens in this process, without Ray, with the same result. A run that was stopped or killed
goes on from its last finished epoch. Teachers look at the faces in each worker, or are heard from a table that they
filled before (raydistal teach).
"""

import contextlib
import copy
import dataclasses
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.compression.teaching import Teacher, Teaching, find_teachers
from raydistal.detector import adapters
from raydistal.detector.examples import Limits
from raydistal.detector.recipes import RECIPES, Recipe
from raydistal.errors import UserError
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import Budget, tell_wait
from raydistal.pipelines.streaming import use_gpu
from raydistal.progress import Progress

if TYPE_CHECKING:
    import ray

    from raydistal.detector.examples import Batch, Ints, Source
    from raydistal.detector.training import Floats, Lesson, Training
    from raydistal.detector.zoo import Detector

CHECKPOINT = "checkpoint.pt"
RAY_FOLDER = "ray-train"
CHUNKS_AHEAD = 4
ATTEMPTS = 4  # starts without a finished epoch: a worker that always dies ends the run, lost nodes do not
CPUS_PER_TASK = 0.5  # so that a worker and a task that loads faces fit on one CPU: fewer slots would wait for ever

Split = Literal["train", "val"]
Tell = Callable[[int, str], None]  # so many faces more were learnt; a remark
OnEpoch = Callable[[dict[str, Any]], None]  # gets each row of the history once its checkpoint is there
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
class Config:
    """Train a detector on the faces of a run."""

    data: str
    """Run folder with the tables videos and faces, local or s3://..."""
    out: str
    """Detector directory to write."""
    manifest: str = ""
    """Train only on the training videos of this table, such as RUN/distilled; val is always that of the run."""
    architecture: str = "efficientnet_b0"
    """Network, such as xception, densenet121, efficientnet_b0, efficientnet_lite0, mobilenetv3_small, or timm:NAME."""
    weights: str = "imagenet"
    """Initial weights: imagenet, random, a file or URI, or another detector directory."""
    recipe: str = "thesis"
    """Training recipe: thesis, finetune, deepdistal or ckd-vanilla."""
    epochs: int = 0
    """Number of epochs. 0: the recipe's."""
    batch_size: int = 0
    """Faces per step, over all workers. 0: the recipe's."""
    learning_rate: float = 0.0
    """Highest learning rate of the schedule. 0: the recipe's."""
    input_px: int = 0
    """Side of the network's input, in pixels. 0: the architecture's."""
    robust: bool = False
    """Also augment with blur, rescaling and recompression."""
    limits: Limits = field(default_factory=Limits)
    teaching: Teaching = field(default_factory=Teaching)
    trainable: str = "all"
    """Parameters to train: all, head, last:K (groups of layers), or an adapter: lora:R or bottleneck:R."""
    compute: Compute = field(default_factory=Compute)
    seed: int = 0
    """Seed of the new layer, the order of faces, the augmentation and the choice of faces."""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UserError(f"unknown --recipe {self.recipe!r}: use one of {', '.join(RECIPES)}")
        if min(self.epochs, self.batch_size, self.learning_rate, self.seed) < 0:
            raise UserError("need --epochs, --batch-size, --learning-rate and --seed of 0 or more")
        adapters.check(self.trainable)
        if self.trainable != "all" and self.full_recipe().greedy:
            raise UserError(
                f"--recipe {self.recipe} has a schedule of its own for which layers are trained: use --trainable all"
            )
        if self.compute.num_workers and (num_left := self.full_recipe().batch_size % self.compute.num_workers):
            raise UserError(
                f"{self.compute.num_workers} workers cannot share a batch of {self.full_recipe().batch_size} evenly "
                f"({num_left} left over). Choose another --num-workers or --batch-size."
            )

    def full_recipe(self) -> Recipe:
        """The recipe with the values asked for instead of its own."""
        names = ("epochs", "batch_size", "learning_rate")
        return dataclasses.replace(RECIPES[self.recipe], **{n: getattr(self, n) for n in names if getattr(self, n)})

    @property
    def augments(self) -> bool:
        """Whether training faces are varied."""
        return self.full_recipe().augment or self.robust


@dataclass(frozen=True, kw_only=True)
class Staff:
    """The teachers of a training. Either all of them run on every face, or the outputs of all are read from tables."""

    teachers: Sequence[Teacher] = ()
    embedding_dims: Sequence[int] = ()
    """Numbers in an embedding of each."""
    live: Sequence["Detector"] = ()
    """The teachers that run; () if their outputs are read."""
    tables: Sequence[str] = ()
    """Where the outputs of each are read from; () if they run."""


NO_TEACHERS = Staff()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker needs to know."""

    config: Config
    settings: dict[str, Any]
    claim: tables.Claim
    detector: "Detector"
    trainable: set[str] | None
    staff: Staff
    source: "Source"
    train: pa.Table
    val: pa.Table


def run(config: Config) -> dict[str, Any]:
    """Trains what is not trained yet, draws the report and returns the job's summary. Arguments and errors as `fit`."""
    from raydistal.report import training as report

    return fit(config) | {"report": report.write(storage.absolute(config.out))}


def fit(config: Config, on_epoch: OnEpoch | None = None) -> dict[str, Any]:
    """Trains what is not trained yet and returns a summary. Needs Ray only if there are workers.

    Args:
        config: what is asked for.
        on_epoch: called after each epoch, with its row of the history; only without workers.

    Raises:
        UserError: no tables or crops, too few faces of a class, weights that do not fit, teachers that cannot teach or
            have not spoken yet, a detector made with other settings, CUDA asked for and absent, out of memory; where it
            can be known, before any work.
    """
    from raydistal.detector import checkpoint, zoo

    if on_epoch and config.compute.num_workers:
        raise ValueError("on_epoch is for training without workers")
    began = time.monotonic()
    _check_device(config.compute)
    out = storage.absolute(config.out)
    videos = _videos(config)
    examples = _examples(config, videos)
    staff = _staff(config, examples["train"])
    detector = zoo.create(config.architecture, config.weights, config.seed, config.input_px)
    settings = result_settings(config, examples, detector, staff)
    trainable = adapters.fit(detector, config.trainable, config.seed)
    with tables.sole_writer(out) as claim:
        if checkpoint.exists(out):
            about = checkpoint.load(out)[1]
            tables.refuse_other_config(out, checkpoint.INFO, about["settings"], settings)
            return _summary(out, about, began)
        job = _job(config, settings, claim, detector, examples, trainable, staff)
        if config.compute.num_workers:
            _in_workers(job)
        else:
            _here(job, on_epoch)
        about = _finish(job, videos)
        storage.delete(storage.join(out, CHECKPOINT))
    return _summary(out, about, began)


def _check_device(compute: Compute) -> None:
    import torch

    if compute.device == "cuda" and not compute.num_workers and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here. Use --device cpu, or --num-workers on a cluster with GPUs.")


def _videos(config: Config) -> pa.Table:
    """video_id, label, method, group_id, split (train or val) and dataset of the videos to use."""
    columns = ["video_id", "dataset", "label", "method", "group_id", "split"]
    all_ = tables.read_table(storage.join(config.data, "videos"), "index", columns)
    methods, leave_out = sorted(set(all_["method"].to_pylist()) - {None}), config.limits.leave_out
    if unknown := sorted(set(leave_out) - set(methods)):
        raise UserError(f"--leave-out: there are no fakes of {unknown[0]!r}. Methods: {', '.join(methods) or 'none'}")
    train = tables.read_table(config.manifest, "select", columns) if config.manifest else all_
    train, val = (table.filter(pc.equal(table["split"], split)) for table, split in ((train, "train"), (all_, "val")))
    videos = without_fakes(pa.concat_tables([train, val]).filter(pc.field("label").is_valid()), leave_out)
    shared = set(train["group_id"].to_pylist()) & set(val["group_id"].to_pylist())
    if shared:
        raise UserError(
            f"{len(shared)} groups are in both train and val, such as {min(shared)}: the detector would be measured on "
            "people it learnt from. Make the splits with raydistal index, or correct the manifest."
        )
    return videos.combine_chunks()


def without_fakes(videos: pa.Table, methods: Sequence[str]) -> pa.Table:
    """`videos` (label, method and others), all labelled, without the fakes of these methods."""
    is_out = pc.is_in(videos["method"], value_set=pa.array(methods, pa.string()))
    return videos.filter(pc.or_(pc.invert(is_out), pc.equal(videos["label"], 0)))


def _examples(config: Config, videos: pa.Table) -> dict[str, pa.Table]:
    """The faces of each split."""
    from raydistal.detector.examples import choose, list_faces

    found = list_faces(config.data, videos)
    split = pc.take(videos["split"], pc.index_in(found["video_id"], value_set=videos["video_id"]))
    train, val = (found.filter(pc.equal(split, name)) for name in ("train", "val"))
    train = choose(train, config.limits, config.seed)
    num_real, num_fake = tables.count_classes(train["label"])
    if not num_real or not num_fake:
        raise UserError(
            f"training needs faces of both classes, not {num_real} real and {num_fake} fake ones as in split train"
            f"{' of ' + config.manifest if config.manifest else ''}. Look at raydistal report --out {config.data}."
        )
    if len(train) < 2 * max(1, config.compute.num_workers):
        raise UserError(f"{len(train)} faces are too few for {config.compute.num_workers} workers")
    if len(set(val["label"].to_pylist())) < 2:
        print(
            "train: val has not faces of both classes: the last epoch is kept, and the threshold is 0.5",
            file=sys.stderr,
        )
        val = val[:0]
    return {"train": train, "val": val}


def _staff(config: Config, train: pa.Table) -> Staff:
    """Finds the teachers, and the tables with their outputs on all of the faces `train`, if these may be used.

    Raises:
        UserError: a teacher cannot teach, too few faces for --negatives, or --outputs cached without complete tables.
    """
    from raydistal.compression.distillation import embedding_dim
    from raydistal.detector import checkpoint

    teaching = config.teaching
    teachers = find_teachers(teaching.teachers)
    num_faces = len(train)
    if teachers and teaching.kd == "contrastive" and num_faces < teaching.negatives:  # CKD 4.A: 10 with 10 faces
        raise UserError(
            f"--negatives {teaching.negatives}: there are {num_faces} faces to learn from. Use --negatives {num_faces} "
            "or fewer, or more faces."
        )
    if teaching.outputs == "cached" or (teaching.outputs == "auto" and not config.augments):
        lacking = {teacher.location: lack for teacher in teachers if (lack := _lack(config, teacher, train))}
        if not lacking:
            dims = [tables.read_info(teacher.table(config.data))["embedding_dim"] for teacher in teachers]
            places = [teacher.table(storage.absolute(config.data)) for teacher in teachers]
            return Staff(teachers=teachers, embedding_dims=dims, tables=places)
        if teaching.outputs == "cached":
            raise UserError(
                f"--outputs cached: what {' and '.join(f'{name} says {lack}' for name, lack in lacking.items())}. "
                f"Run: raydistal teach --teachers {' '.join(teaching.teachers)} --data {config.data}"
            )
    live = [checkpoint.load(teacher.location)[0] for teacher in teachers]
    return Staff(teachers=teachers, embedding_dims=[embedding_dim(detector) for detector in live], live=live)


def _lack(config: Config, teacher: Teacher, train: pa.Table) -> str:
    """What is wrong with the table of a teacher; "" if it has every face in its place."""
    from raydistal.detector.examples import list_examples

    place, faces = teacher.table(config.data), storage.join(config.data, "faces")
    info, parts = tables.read_info(place), tables.part_names(faces)
    if not info:
        return "is missing or unfinished"
    is_same = info["config"] == teacher.settings(tables.faces_info(config.data))
    if not is_same or not set(parts) <= set(tables.part_names(place)):
        return "is of other faces"
    there = list_examples(place, parts, train.select(["video_id", "label", "method"]))
    names = ["part", "row", "place", "video_id", "frame_index"]
    missing = train.select(names).join(there.select(names), names, join_type="left anti")
    return f"lacks {len(missing)} of {len(train)} faces" if len(missing) else ""


def result_settings(
    config: Config, examples: dict[str, pa.Table], detector: "Detector", staff: Staff = NO_TEACHERS
) -> dict[str, Any]:
    """What decides the result of a training, to be compared with that of an earlier start.

    The device and the number of workers are no part of it: they affect rounding and batch norm only.
    """
    from raydistal.detector.examples import fingerprint
    from raydistal.features.backbones import state_digest

    return {
        "architecture": config.architecture,
        "input_px": detector.input_px,
        "weights_digest": state_digest(detector.state_dict()),
        **config.full_recipe().settings(),
        "robust": config.robust,
        "seed": config.seed,
        "trainable": None if config.trainable == "all" else config.trainable,  # as in detectors from before there was
        "teaching": _teaching_settings(config.teaching, staff) if staff.teachers else None,
        "train_faces": fingerprint(examples["train"]),
        "val_faces": fingerprint(examples["val"]),
    }


def _teaching_settings(teaching: Teaching, staff: Staff) -> dict[str, Any]:
    """`outputs` as asked for: with auto, a table may appear between two starts, which affects rounding only."""
    teachers = [teacher.model_id for teacher in staff.teachers]
    return dataclasses.asdict(teaching) | {"kd_weight": teaching.weight, "teachers": teachers}


def _job(
    config: Config,
    settings: dict[str, Any],
    claim: tables.Claim,
    detector: "Detector",
    examples: dict[str, pa.Table],
    trainable: set[str] | None = None,
    staff: Staff = NO_TEACHERS,
) -> Job:
    from raydistal.detector.examples import Source

    faces = storage.absolute(storage.join(config.data, "faces"))
    source = Source(
        location=faces,
        parts=tables.part_names(faces),
        size_px=detector.input_px,
        seed=config.seed,
        augments=config.augments,
        robust=config.robust,
        teacher_sizes_px=[detector.input_px for detector in staff.live],
        teachings=staff.tables,
        with_embeddings=config.teaching.kd != "soft",
    )
    if config.teaching.bank_mb:
        told = f"up to {config.teaching.bank} fakes for each of {len(staff.teachers)} teachers"
        print(f"train: remembers {told}: {config.teaching.bank_mb:.1f} MB in each process", file=sys.stderr)
    return Job(
        config=config,
        settings=settings,
        claim=claim,
        detector=detector,
        trainable=trainable,
        staff=staff,
        source=source,
        **examples,
    )


def _go_on(job: Job) -> dict[str, Any] | None:
    """The state after the last finished epoch; None before the first.

    Raises:
        UserError: it was made with other settings.
    """
    from raydistal.detector.training import read_state

    try:
        content = storage.read_bytes(storage.join(job.claim.location, CHECKPOINT))
    except FileNotFoundError:
        return None
    state = read_state(content)
    tables.refuse_other_config(job.claim.location, CHECKPOINT, state["settings"], job.settings)
    return state


def work(
    job: Job, state: dict[str, Any] | None, feed: Feed, tell: Tell, device: str, on_epoch: OnEpoch | None = None
) -> None:
    """Trains to the end, from `state` on. One process of one or several, each with its share."""
    import torch

    from raydistal.detector.examples import plain_shares, rebatch, shuffled_shares
    from raydistal.detector.training import Training

    config, recipe = job.config, job.config.full_recipe()
    num_workers = max(1, config.compute.num_workers)
    part_N = job.train["part"].to_numpy()
    batch_size = recipe.batch_size // num_workers
    num_batches = -(-(len(part_N) // num_workers) // batch_size)
    detector = copy.deepcopy(job.detector)  # what Ray hands over cannot be written to
    options: dict[str, Any] = {"trainable": job.trainable, "lesson": _lesson(job, detector, device)}
    training = Training(detector, recipe, num_batches, device, config.compute.faces_at_once, config.seed, **options)
    if state:
        training.restore(state)
    while not training.is_finished:
        began = time.monotonic()
        windows = shuffled_shares(part_N, num_workers, config.seed, training.epoch)[training.rank]
        chunks = feed("train", windows, training.epoch)
        fitted = training.fit(_told(rebatch(chunks, batch_size, min_last=2), tell, training))
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


def _lesson(job: Job, student: "Detector", device: str) -> "Lesson | None":
    from raydistal.compression.distillation import Distillation, Panel, embedding_dim

    if not job.staff.teachers:
        return None
    return Distillation(
        job.config.teaching,
        student_dim=embedding_dim(student),
        teacher_dims=job.staff.embedding_dims,
        num_faces=len(job.train),
        panel=Panel(job.staff.live, device) if job.staff.live else None,
        device=device,
        seed=job.config.seed,
    )


def _told(batches: Iterator["Batch"], tell: Tell, training: "Training") -> Iterator["Batch"]:
    for batch in batches:
        yield batch
        if training.rank == 0:  # all processes are in step
            tell(training.world_size * len(batch.label_N), _note(training))


def _note(training: "Training") -> str:
    """On the last finished epoch."""
    if not training.history:
        return ""
    row = training.history[-1]
    val = "" if row["val_loss"] is None else f", val {row['val_loss']:.3f}, accuracy {row['val_accuracy']:.3f}"
    return f"epoch {row['epoch'] + 1}: loss {row['train_loss']:.3f}{val}"


def _progress(job: Job, state: dict[str, Any] | None) -> Progress:
    num_left = job.config.full_recipe().epochs - (state["epoch"] if state else 0)
    return Progress("train", max(0, num_left) * len(job.train), unit="faces")


def _here(job: Job, on_epoch: OnEpoch | None) -> None:
    import torch

    from raydistal.detector.examples import load_window

    device = job.config.compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    state = _go_on(job)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads, _progress(job, state) as progress:

        def feed(split: Split, windows: list["Ints"], epoch: int | None) -> Iterator["Batch"]:
            for window in windows:
                yield from load_window(job.source, getattr(job, split), window, epoch, threads)

        work(job, state, lambda *given: _ahead(feed(*given)), progress.advance, device, on_epoch)


def _ahead(chunks: Iterator["Batch"]) -> Iterator["Batch"]:
    """The same, loaded by a thread while the network works."""
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, chunks, None) for _ in range(CHUNKS_AHEAD))
        while (chunk := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, chunks, None))
            yield chunk


def _in_workers(job: Job) -> None:
    """In processes that Ray Train starts, again when some are lost; what they tell comes through an actor."""
    connect()
    import ray
    from ray.data._internal.stats import get_or_create_stats_actor

    # One per cluster, for ever, on the node where Ray Data was first used: a worker's would never be given back.
    get_or_create_stats_actor()
    storage.delete_folder(storage.join(job.claim.location, RAY_FOLDER))  # what Ray knows of a killed run misleads it
    # Without it workers would start again for ever: it comes back, and only forgets how often they started.
    board: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board).remote()
    with _progress(job, _go_on(job)) as progress, _showing(board, progress):
        _run_workers(job, board)
    if trouble := ray.get(board.trouble.remote()):
        raise trouble
    storage.delete_folder(storage.join(job.claim.location, RAY_FOLDER))


@contextlib.contextmanager
def _showing(board: Any, progress: Progress) -> Iterator[None]:
    """Passes on to the progress what the workers tell the board."""
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
    """Runs `_worker` in all processes to the end. Ctrl-C ends them."""
    import ray
    import ray.train
    from ray.exceptions import RayError
    from ray.train.torch import TorchTrainer

    controllers: list[Any] = []

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Else Ctrl-C is taken by Ray Train from here on, which ends this process as if it had succeeded."""
            controllers.append(controller)

    compute = job.config.compute
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
            failure_config=ray.train.FailureConfig(max_failures=-1),  # the board ends what is hopeless
        ),
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        with contextlib.suppress(RayError):  # it ends at that, and gives back what it asked the autoscaler for
            ray.get([controller.abort.remote() for controller in controllers], timeout=5)
        raise


class Board:
    """Actor: what the workers tell the driver, and why they should not go on."""

    def __init__(self) -> None:
        self._told: list[tuple[int, str]] = []
        self._trouble: Exception | None = None
        self._starts: dict[int, int] = {}

    def begin(self, epoch: int) -> None:
        """A start after `epoch` finished epochs. Notes trouble when there were too many without another."""
        self._starts[epoch] = self._starts.get(epoch, 0) + 1
        if self._starts[epoch] > ATTEMPTS and self._trouble is None:
            self._trouble = RuntimeError(f"the workers died {ATTEMPTS} times in epoch {epoch}. See the logs of Ray.")

    def tell(self, num: int, note: str) -> None:
        """As `Tell`."""
        self._told.append((num, note))

    def take(self) -> list[tuple[int, str]]:
        """What was told since the last call."""
        told, self._told = self._told, []
        return told

    def stop(self, trouble: Exception) -> None:
        """Another try would end the same way."""
        self._trouble = trouble

    def trouble(self) -> Exception | None:
        """Why the workers should end, if they should."""
        return self._trouble


def _worker(given: dict[str, Any]) -> None:
    """One process of Ray Train."""
    import ray
    import ray.data
    import ray.train
    import ray.train.torch
    import torch

    context, board, job = ray.train.get_context(), given["board"], ray.get(given["job"])
    state = _go_on(job)
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
        work(job, state, feed, lambda *told: board.tell.remote(*told), ray.train.torch.get_device().type)
    except UserError as error:
        ray.get(board.stop.remote(error))
        raise


def _feed(split: Split, windows: list["Ints"], epoch: int | None, job: "ray.ObjectRef[Job]") -> Iterator["Batch"]:
    """Loaded by Ray Data on all nodes."""
    import ray.data

    from raydistal.detector.examples import Batch

    if not windows:
        return
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # as in streaming
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


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _finish(job: Job, videos: pa.Table) -> dict[str, Any]:
    """Writes the detector directory from the best epoch; returns what detector.json says."""
    from raydistal.detector import checkpoint, lineage

    config, recipe, out = job.config, job.config.full_recipe(), job.claim.location
    state = _go_on(job)
    assert state is not None
    history, best = state["history"], state["best"]
    job.detector.load_state_dict(best["weights"])
    adapters.merge(job.detector)
    used = pa.concat_tables([job.train, job.val])["video_id"]
    videos = videos.filter(pc.is_in(videos["video_id"], pc.unique(used)))
    datasets = sorted(set(videos["dataset"].to_pylist()))
    worker_seconds = sum(row["seconds"] * row["num_workers"] for row in history)
    num_faces = {"train": tables.count_classes(job.train["label"]), "val": tables.count_classes(job.val["label"])}
    about: dict[str, Any] = {
        "technique": "train",
        "weights": config.weights,
        "parent": _parent(config),
        "trainable": config.trainable,
        "teaching": _about_teaching(job),
        "recipe": {"name": config.recipe, **dataclasses.asdict(recipe)},
        "settings": job.settings,
        "data": {
            "location": storage.absolute(config.data),
            "manifest": config.manifest,
            "dataset": datasets,
            "methods": sorted(set(job.train["method"].to_pylist()) - {None}),
            "synthetic": schemas.SYNTHETIC in datasets,
            "faces": tables.crop_settings(tables.faces_info(config.data)),
            "fingerprint": job.settings["train_faces"],
            "num_videos": {"train": 0, "val": 0} | tables.count_values(videos["split"]),
            "num_faces": {split: dict(zip(("real", "fake"), num, strict=True)) for split, num in num_faces.items()},
        },
        "cost": {
            "images": sum(row["images"] for row in history),
            "seconds": sum(row["seconds"] for row in history),
            "gpu_seconds": 0.0 if state["device"] == "cpu" else worker_seconds,
            "device": state["device"],
            "num_workers": history[-1]["num_workers"],
        },
        "history": history,
        "best_epoch": best["epoch"],
        "threshold": _thresholds(job.val, best["val_logit"].numpy()),
    }
    ancestors = [teacher.location for teacher in job.staff.teachers]
    if about["parent"]:
        ancestors.append(about["parent"]["location"])
    trained_on = lineage.trained_on(schemas.conform(videos, schemas.TRAINED_ON), ancestors)
    tables.write_table(storage.join(out, "trained_on"), trained_on, job.settings)
    return checkpoint.save(out, job.detector, about | {"versions": tables.versions()})


def _parent(config: Config) -> dict[str, str] | None:
    from raydistal.detector import checkpoint, lineage

    if config.weights in ("imagenet", "random") or not checkpoint.exists(config.weights):
        return None
    return lineage.ancestor(config.weights, checkpoint.read_about(config.weights))


def _about_teaching(job: Job) -> dict[str, Any] | None:
    if not job.staff.teachers:
        return None
    teachers = [{"location": teacher.location, "model_id": teacher.model_id} for teacher in job.staff.teachers]
    settings: dict[str, Any] = job.settings["teaching"]
    outputs = "live" if job.staff.live else "cached"
    return settings | {"teachers": teachers, "outputs": outputs, "bank_mb": job.config.teaching.bank_mb}


def _thresholds(val: pa.Table, logit_N: "Floats") -> dict[str, Any]:
    """The probabilities from which faces and videos are called fake: those that divide val best, or 0.5 without val."""
    from raydistal.detector.metrics import choose_threshold

    if not len(val):
        return {"video": 0.5, "frame": 0.5, "from": "default"}
    frames = val.select(["video_id", "label"]).append_column("probability", pa.array(1 / (1 + np.exp(-logit_N))))
    by_video = frames.group_by(["video_id", "label"]).aggregate([("probability", "mean")])
    video, frame = (
        choose_threshold(table["label"].to_numpy(), table[name].to_numpy())
        for table, name in ((by_video, "probability_mean"), (frames, "probability"))
    )
    return {"video": video, "frame": frame, "from": "val"}


def _summary(out: str, about: dict[str, Any], began: float) -> dict[str, Any]:
    best = about["history"][about["best_epoch"]]
    faces = about["data"]["num_faces"]["train"]
    return {
        "detector": out,
        "epochs": len(about["history"]),
        "best_epoch": about["best_epoch"],
        **{name: best[name] for name in ("val_loss", "val_accuracy", "val_auc")},
        "faces": sum(faces.values()),
        "device": about["cost"]["device"],
        "seconds": round(time.monotonic() - began, 1),
    }
