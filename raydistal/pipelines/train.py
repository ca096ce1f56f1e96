"""videos, faces -> a detector directory.

    videos, faces of train and val, network, teachers -> epochs -> best epoch, thresholds, what it learnt from

Everything that can be refused is refused before the first epoch. Teachers run in each worker, or their outputs are read
from the tables of `raydistal teach`. What happens in an epoch is in epochs.py.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.compression.teaching import Teacher, Teaching, find_teachers
from raydistal.detector import adapters
from raydistal.detector.examples import Limits
from raydistal.detector.recipes import RECIPES, Recipe
from raydistal.errors import UserError
from raydistal.pipelines import epochs
from raydistal.pipelines.epochs import NO_TEACHERS, Compute, Job, OnEpoch, Teachers
from raydistal.pipelines.scaling import Budget

if TYPE_CHECKING:
    from raydistal.detector.training import Floats
    from raydistal.detector.zoo import Detector


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
            whose outputs are missing, a detector made with other settings, CUDA asked for and absent; all before any
            work. Later: out of memory.
    """
    from raydistal.detector import checkpoint, zoo

    if on_epoch and config.compute.num_workers:
        raise ValueError("on_epoch is for training without workers")
    began = time.monotonic()
    check_device(config.compute)
    out = storage.absolute(config.out)
    videos = videos_of(config)
    examples = examples_of(config, videos)
    teachers = prepare_teachers(config, examples["train"])
    detector = zoo.create(config.architecture, config.weights, config.seed, config.input_px)
    settings = result_settings(config, examples, detector, teachers)
    trainable = adapters.fit(detector, config.trainable, config.seed)
    with tables.sole_writer(out) as claim:
        if checkpoint.exists(out):
            about = checkpoint.load(out)[1]
            tables.refuse_other_config(out, checkpoint.INFO, about["settings"], settings)
            return _summary(out, about, began)
        job = _job(config, settings, claim, detector, examples, trainable, teachers)
        epochs.run(job, on_epoch)
        about = _finish(config, job, videos)
        storage.delete(storage.join(out, epochs.CHECKPOINT))
    return _summary(out, about, began)


def check_device(compute: Compute) -> None:
    """Raises UserError if this process is to train on a GPU and has none."""
    import torch

    if compute.device == "cuda" and not compute.num_workers and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here. Use --device cpu, or --num-workers on a cluster with GPUs.")


def videos_of(config: Config) -> pa.Table:
    """video_id, label, method, group_id, split (train or val) and dataset of the videos to use.

    Raises:
        UserError: no tables, a method to leave out that is not there, groups in both train and val.
    """
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


def examples_of(config: Config, videos: pa.Table) -> dict[str, pa.Table]:
    """The faces of these videos in train and in val, as `examples.list_faces` gives them.

    Raises:
        UserError: no crops, too few training faces of a class.
    """
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


def prepare_teachers(config: Config, train: pa.Table) -> Teachers:
    """Finds the teachers, and the tables with their outputs on all of the faces `train`, if these may be used.

    Raises:
        UserError: a teacher cannot teach, too few faces for --negatives, or --outputs cached without complete tables.
    """
    from raydistal.compression.distillation import embedding_dim
    from raydistal.detector import checkpoint

    teaching = config.teaching
    known = find_teachers(teaching.teachers)
    num_faces = len(train)
    if known and teaching.kd == "contrastive" and num_faces < teaching.negatives:  # CKD 4.A: 10 with 10 faces
        raise UserError(
            f"--negatives {teaching.negatives}: there are {num_faces} faces to learn from. Use --negatives {num_faces} "
            "or fewer, or more faces."
        )
    if teaching.outputs == "cached" or (teaching.outputs == "auto" and not config.augments):
        lacking = {teacher.location: lack for teacher in known if (lack := _lack(config, teacher, train))}
        if not lacking:
            dims = [tables.read_info(teacher.table(config.data))["embedding_dim"] for teacher in known]
            places = [teacher.table(storage.absolute(config.data)) for teacher in known]
            return Teachers(known=known, embedding_dims=dims, tables=places)
        if teaching.outputs == "cached":
            raise UserError(
                f"--outputs cached: what {' and '.join(f'{name} says {lack}' for name, lack in lacking.items())}. "
                f"Run: raydistal teach --teachers {' '.join(teaching.teachers)} --data {config.data}"
            )
    live = [checkpoint.load(teacher.location)[0] for teacher in known]
    return Teachers(known=known, embedding_dims=[embedding_dim(detector) for detector in live], live=live)


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
    config: Config, examples: dict[str, pa.Table], detector: "Detector", teachers: Teachers = NO_TEACHERS
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
        "teaching": _teaching_settings(config.teaching, teachers) if teachers.known else None,
        "train_faces": fingerprint(examples["train"]),
        "val_faces": fingerprint(examples["val"]),
    }


def _teaching_settings(teaching: Teaching, teachers: Teachers) -> dict[str, Any]:
    """`outputs` as asked for: with auto, a table may appear between two starts, which affects rounding only."""
    model_ids = [teacher.model_id for teacher in teachers.known]
    return dataclasses.asdict(teaching) | {"kd_weight": teaching.weight, "teachers": model_ids}


def _job(
    config: Config,
    settings: dict[str, Any],
    claim: tables.Claim,
    detector: "Detector",
    examples: dict[str, pa.Table],
    trainable: set[str] | None = None,
    teachers: Teachers = NO_TEACHERS,
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
        teacher_sizes_px=[detector.input_px for detector in teachers.live],
        teachings=teachers.tables,
        with_embeddings=config.teaching.kd != "soft",
    )
    if config.teaching.bank_mb:
        bank = f"up to {config.teaching.bank} fakes for each of {len(teachers.known)} teachers"
        print(f"train: remembers {bank}: {config.teaching.bank_mb:.1f} MB in each process", file=sys.stderr)
    return Job(
        compute=config.compute,
        recipe=config.full_recipe(),
        seed=config.seed,
        teaching=config.teaching,
        settings=settings,
        claim=claim,
        detector=detector,
        trainable=trainable,
        teachers=teachers,
        source=source,
        **examples,
    )


def _finish(config: Config, job: Job, videos: pa.Table) -> dict[str, Any]:
    """Writes the detector directory from the best epoch; returns what detector.json says."""
    from raydistal.detector import checkpoint, lineage

    out = job.claim.location
    state = epochs.read_state(job)
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
        "recipe": {"name": config.recipe, **dataclasses.asdict(job.recipe)},
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
    ancestors = [teacher.location for teacher in job.teachers.known]
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
    if not job.teachers.known:
        return None
    teachers = [{"location": teacher.location, "model_id": teacher.model_id} for teacher in job.teachers.known]
    settings: dict[str, Any] = job.settings["teaching"]
    outputs = "live" if job.teachers.live else "cached"
    return settings | {"teachers": teachers, "outputs": outputs, "bank_mb": job.teaching.bank_mb}


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
