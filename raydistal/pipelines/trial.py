"""One trial of a search: a set to learn from -> trained -> pruned -> exported as int8 -> measured on val -> a row.

Needs no Ray. Every step goes on where it was stopped, and is shared with the trials whose points agree up to there.
"""

import dataclasses
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.compression.teaching import Teaching
from raydistal.errors import UserError
from raydistal.pipelines import epochs, export, prune, train
from raydistal.pipelines.trainings import Training
from raydistal.search.agenda import Row, Trial
from raydistal.search.space import Point

Report = Callable[[dict[str, Any]], None]

REACHED = ("accuracy", "auc", "loss", "images", "seconds", "cpu_seconds", "gpu_seconds")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Pruning in trials; the fine-tuning has the same teachers as the training."""

    prune_of: Literal["params", "channels", "macs"] = "params"
    """What the prune ratio counts: parameters, channels or multiply-accumulates."""
    prune_scope: Literal["global", "local", "isomorphic"] = "global"
    """Which channels compete: all; none, as every layer loses the same share; those of layers of the same kind."""
    prune_steps: int = 5
    """Steps of pruning, each followed by fine-tuning."""
    finetune_recipe: str = "finetune"
    """Training recipe of the fine-tuning."""
    finetune_epochs: int = 0
    """Epochs of fine-tuning after each step. 0: the recipe's."""
    finetune_rate: float = 0.0
    """Highest learning rate of the fine-tuning. 0: the recipe's."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all trials have in common; places are absolute."""

    data: str
    out: str
    architecture: str
    training: Training
    teaching: Teaching
    pruning: Pruning
    metric: Literal["accuracy", "auc"]
    gpus: float
    device: Literal["cpu", "cuda"]
    val: pa.Table
    """video_id, label, method and group_id."""

    def place(self, stage: str) -> str:
        """The folder of a detector."""
        return storage.join(self.out, "detectors", stage)


def attempt(job: Job, trial: Trial, report: Report) -> Row:
    """Runs a trial, or what is left of it, and returns its row; whatever goes wrong is in the row.

    `report` gets epoch, score of the metric and `REACHED` after each epoch of training that is not finished yet.
    """
    began, cpu_began = time.monotonic(), time.process_time()

    def spent() -> dict[str, float]:
        seconds = time.monotonic() - began
        gpu_seconds = seconds * job.gpus if job.device == "cuda" else 0.0
        return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu_began, "gpu_seconds": gpu_seconds}

    def on_epoch(row: dict[str, Any]) -> None:
        epoch = row["epoch"] + 1
        reached = {name: row[f"val_{name}"] for name in ("accuracy", "auc", "loss")}
        reached |= {"score": reached[job.metric], "images": epoch * row["images"]}
        report({"epoch": epoch, **reached, **spent()})

    row: dict[str, Any] = {"trial": trial.id, "seed": trial.seed, "error": None, **trial.point}
    try:
        row |= {"status": "ok", **_make(job, trial, on_epoch)}
    except UserError as error:
        row |= failed(str(error))
    except Exception as error:
        traceback.print_exc()  # to the logs of Ray
        row |= failed(f"{type(error).__name__}: {error}")
    return row | spent()


def failed(error: str) -> dict[str, Any]:
    """What the row of a trial says that came to nothing."""
    nothing = {"seconds": 0.0, "cpu_seconds": 0.0, "gpu_seconds": 0.0}
    return {"status": "failed", "error": error, "epochs": 0, "images": 0} | nothing


def _make(job: Job, trial: Trial, on_epoch: Report) -> dict[str, Any]:
    """Makes and measures the detector of a trial."""
    from raydistal.compression import counting
    from raydistal.detector import checkpoint, runtime

    point, manifest = trial.point, _cut_set(job, trial.point, trial.seed)
    settings: dict[str, Any] = {name: point[name] for name in schemas.KD_SETTINGS[job.teaching.kd] if name in point}
    teaching = dataclasses.replace(job.teaching, **settings)
    compute = epochs.Compute(device=job.device)
    stages = [job.place(stage) for stage in trial.stages]
    student = job.training.to_train(job.data, stages[0], job.architecture, trial.seed, manifest)
    train.fit(dataclasses.replace(student, teaching=teaching, compute=compute), on_epoch)
    made = stages[:1]
    if point["prune"]:
        made = stages[:2]
        how = job.pruning
        options: dict[str, Any] = {"of": how.prune_of, "scope": how.prune_scope, "steps": how.prune_steps}
        options |= {"recipe": how.finetune_recipe, "epochs": how.finetune_epochs}
        options |= {"learning_rate": how.finetune_rate}
        options |= {"manifest": manifest, "teaching": teaching, "compute": compute, "seed": trial.seed}
        ratio = float(point["prune"])
        prune.fit(prune.Config(detector=stages[0], data=job.data, out=made[-1], ratio=ratio, **options))
    if point["bits"] == 8:
        export.run(export.Config(detector=made[-1], out=stages[-1], runtime="onnx", precision="int8", data=job.data))
    abouts = [checkpoint.read_about(place) for place in made]
    steps = abouts[-1]["pruning"]["steps"] if point["prune"] else []
    return {
        "detector": stages[-1],
        **_measure(job, stages[-1], trial.id),
        "num_params": abouts[-1]["num_params"],
        "macs": counting.count_macs(checkpoint.load(made[-1])[0]),
        "size_mb": runtime.size_mb(stages[-1], checkpoint.read_about(stages[-1])),
        "epochs": len(abouts[0]["history"]) + sum(step["epochs"] for step in steps),
        "images": sum(about["cost"]["images"] for about in abouts),
    }


def _cut_set(job: Job, point: Point, seed: int) -> str:
    """Writes the set that a trial learns from, unless it is there, and returns where; "": all videos."""
    from raydistal.detector.subsets import check, control, count_faces
    from raydistal.selection.ranking import cut

    if point["data"] == 1:
        return ""
    name = f"{point['data']:g}" + (f"-random-seed{seed}" if point["set"] == "random" else "")
    manifest, kept = storage.join(job.out, "sets", name), storage.join(job.out, "sets", "ranking")
    if tables.read_info(manifest):
        return manifest
    videos = tables.read_table(storage.join(job.data, "videos"), "index")
    videos = videos.filter(pc.and_(pc.is_valid(videos["label"]), pc.equal(videos["split"], "train")))
    columns = ["video_id", "frame_index"]
    num_faces_V = count_faces(videos, tables.read_table(storage.join(job.data, "faces"), "extract", columns))
    arrange = tables.read_info(kept)["config"]["arrange"]
    subset = cut(tables.read_table(kept, "search"), videos, float(point["data"]), arrange)
    if point["set"] == "random":
        subset = control(videos, num_faces_V, subset, "random", seed)
    check(name, subset, videos, num_faces_V)
    tables.write_table(manifest, subset, {"data": point["data"], "set": point["set"], "seed": seed})
    return manifest


def _measure(job: Job, location: str, trial: str) -> dict[str, float | None]:
    """Measures a detector on the faces of val: accuracy, at P(fake) = 0.5, auc and loss.

    Writes OUT/scores/TRIAL: the mean probability of each video.
    """
    from raydistal.detector.examples import list_faces
    from raydistal.detector.training import validation_metrics

    faces = list_faces(job.data, job.val)
    logit_N = _logits(job, location, faces)
    label_N = faces["label"].to_numpy()
    scores = pa.table({"video_id": faces["video_id"], "probability": 1 / (1 + np.exp(-logit_N))})
    scores = scores.group_by("video_id").aggregate([("probability", "mean")])
    scores = scores.rename_columns({"probability_mean": "probability"})
    tables.write_table(storage.join(job.out, "scores", trial), scores, {"detector": location})
    return validation_metrics(label_N, logit_N)


def _logits(job: Job, location: str, faces: pa.Table) -> npt.NDArray[np.float64]:
    from raydistal.detector import runtime
    from raydistal.detector.examples import every_face, plain_source

    model, _ = runtime.load(location)
    logits = runtime.start(model, job.device)
    chunks = every_face(plain_source(job.data, model.input_px), faces)
    return np.concatenate([logits(chunk.crops_NHWC) for chunk in chunks]).astype(np.float64)
