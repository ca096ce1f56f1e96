"""detectors, runs -> scores, metrics, report: how good each detector is on a split of each run.

    faces -> decode crops (CPU tasks) -> probabilities by all detectors (actors, GPU if there is one), written there
          -> scores, a table per detector and run -> metrics at frame and video level -> report

What is in a `scores` table is done: a rerun scores what is missing. Scores do not depend on --aggregate, --no-face or
--bootstrap: asking for others measures again, without a second look at the faces.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import Budget, Growth
from raydistal.pipelines.streaming import crops_of, look_at_faces, start_torch, use_gpu, with_parts
from raydistal.pipelines.telemetry import measured
from raydistal.progress import Progress

if TYPE_CHECKING:
    import ray

    from raydistal.detector.runtime import Exported
    from raydistal.detector.zoo import Detector

VIDEOS_PER_PART = 16  # what a crash can lose at most, per actor; 512 faces of 299 pixels are 140 MB
NUM_WORST = 12  # mistakes kept for the report, per detector and run
NUM_NAMED = 3  # offenders in a message


@dataclass(frozen=True, kw_only=True)
class Config:
    """Evaluate detectors on the faces of runs."""

    detectors: tuple[str, ...]
    """Detector directories, trained or exported, local or s3://..."""
    data: tuple[str, ...]
    """Run folders with the tables videos and faces. Every detector is evaluated on every run."""
    out: str
    """Folder to write: OUT/scores, OUT/metrics, OUT/report."""
    split: schemas.Split = "test"
    """Split to evaluate on. Refused if a detector was trained or validated on some of its videos or groups."""
    aggregate: Literal["mean", "max", "confident"] = "mean"
    """How the probabilities of frames become that of a video; confident: as the winner of the DFDC did it."""
    no_face: Literal["unsure", "skip"] = "unsure"
    """Videos without a usable face. unsure: probability 0.5, an error at any threshold; skip: leave them out."""
    bootstrap: int = 1000
    """Bootstrap resamples of groups, for 95 % intervals. 0: no intervals."""
    seed: int = 0
    """Seed of the resamples."""
    num_workers: int = 0
    """Processes that run the detectors. 0: one per GPU, or without GPUs one per node."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs if the cluster has any now; cuda: GPUs, even if their nodes have yet to start."""
    batch_size: int = 64
    """Faces per forward pass."""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if not self.detectors or not self.data:
            raise UserError("need at least one of --detectors and one of --data")
        if min(self.bootstrap, self.seed, self.num_workers) < 0 or self.batch_size < 1:
            raise UserError("need --bootstrap, --seed and --num-workers of 0 or more, and --batch-size of 1 or more")


class Known(NamedTuple):
    """A detector without its weights."""

    name: str
    location: str
    about: dict[str, Any]
    model_id: str


class Data(NamedTuple):
    """The videos of the split in one run."""

    name: str
    location: str
    videos: pa.Table
    """video_id, dataset, label, method, group_id, and part: the file of `faces` that holds it; sorted by video_id."""
    faces: dict[str, Any]
    """`_table.json` of its faces."""

    @property
    def digest(self) -> str:
        """Changes with the videos, their labels and their groups."""
        return _digest(*(self.videos[name].to_pylist() for name in ("video_id", "label", "group_id")))


class Scores(NamedTuple):
    """The table of one detector and one run."""

    detector: Known
    location: str
    settings: dict[str, Any]


def run(config: Config) -> dict[str, Any]:
    """Scores what is not scored yet, on Ray; measures; returns the job's summary.

    Raises:
        UserError: no such detector, no crops, unfinished faces, an empty split or one of a single class, a detector
            that was trained on what it is to be tested on, scores made with other settings, another writer.
    """
    from raydistal.report import evaluation

    began = time.monotonic()
    detectors, datasets = _inputs(config)
    out = storage.absolute(config.out)
    with tables.sole_writer(out) as claim:
        for data in datasets:
            _score(config, data, _scores(config, detectors, data), claim)
        claim.check()
        _measure(config, detectors, datasets)
        page = evaluation.write(out)
    return {"results": _results(out), "seconds": round(time.monotonic() - began, 1), "report": page}


def _inputs(config: Config) -> tuple[list[Known], list[Data]]:
    from raydistal.detector import checkpoint

    storage.refuse_input(config.out, (*config.detectors, *config.data))
    detectors = []
    for location, name in zip(config.detectors, storage.distinct_names("--detectors", config.detectors), strict=True):
        about = checkpoint.read_about(location)  # its weights are read once, by those that work with them
        if lacking := {"threshold", "cost", "data"} - set(about):
            raise UserError(
                f"{location} does not say its {' and '.join(sorted(lacking))} in {checkpoint.INFO}: train it by "
                "raydistal train"
            )
        detectors.append(Known(name, storage.absolute(location), about, checkpoint.model_id(about)))
    datasets = [
        _data(config, location, name)
        for location, name in zip(config.data, storage.distinct_names("--data", config.data), strict=True)
    ]
    for detector in detectors:
        for data in datasets:
            _refuse_leaks(detector, data, config.split)
    return detectors, datasets


def videos_to_test(videos: pa.Table, split: str, location: str) -> pa.Table:
    """The labelled videos of the split. Raises UserError, which names their run's `location`, if a class is missing."""
    chosen = videos.filter(pc.and_(pc.equal(videos["split"], split), pc.is_valid(videos["label"])))
    num_real, num_fake = tables.count_classes(chosen["label"])
    if not num_real or not num_fake:
        raise UserError(
            f"split {split!r} of {location} has {num_real} real and {num_fake} fake videos; both are needed. "
            f"Videos per split: {tables.count_values(videos['split'])}. See --split."
        )
    return chosen


def _data(config: Config, location: str, name: str) -> Data:
    columns = ["video_id", "dataset", "label", "method", "group_id", "split"]
    videos = tables.read_table(storage.join(location, "videos"), "index", columns)
    videos = videos_to_test(videos, config.split, location).drop_columns(["split"])
    info = tables.faces_info(location, with_crops=True)
    videos = with_parts(location, videos, f"split {config.split!r}").sort_by("video_id").combine_chunks()
    return Data(name, storage.absolute(location), videos, info)


def _refuse_leaks(detector: Known, data: Data, split: str) -> None:
    """A detector is not tested on what it was fitted to, or its epoch and threshold chosen by, nor on their groups."""
    place = storage.join(detector.location, "trained_on")
    if not tables.read_info(place):
        print(
            f"evaluate: {detector.name} does not say what it was trained on, so leaks cannot be found", file=sys.stderr
        )
        return
    learnt = tables.read_table(place, "train")
    for column, what in (("video_id", "videos"), ("group_id", "groups (people, or sources of fakes)")):
        shared = pc.unique(data.videos[column].filter(pc.is_in(data.videos[column], learnt[column]))).to_pylist()
        if shared:
            used = learnt.filter(pc.is_in(learnt[column], pa.array(shared)))
            raise UserError(
                f"{len(shared)} {what} of split {split!r} of {data.location} were used to train or validate "
                f"{detector.location} (there in split {' and '.join(sorted(set(used['split'].to_pylist())))}), such as "
                f"{', '.join(sorted(shared)[:NUM_NAMED])}. Its results would mean nothing: choose another --split or "
                "--data, or train without them."
            )


def _scores(config: Config, detectors: list[Known], data: Data) -> list[Scores]:
    made = []
    for detector in detectors:
        settings = {
            "model_id": detector.model_id,
            "input_px": detector.about["input_px"],
            "faces": data.faces["fingerprint"],
            "split": config.split,
        }
        place = storage.join(storage.absolute(config.out), "scores", f"{detector.name}--{data.name}")
        made.append(Scores(detector, place, settings))
    return made


def _is_done(data: Data, scores: Scores) -> bool:
    info = tables.read_info(scores.location)
    if not info:
        return False
    tables.refuse_other_config(scores.location, tables.INFO, info["config"], scores.settings)
    scored = tables.read_table(scores.location, "evaluate", ["video_id"])["video_id"]
    is_there = pc.is_in(data.videos["video_id"], scored)
    return bool(info["faces_counts"] == data.faces["counts"] and pc.all(is_there).as_py())


def _score(config: Config, data: Data, tables_: list[Scores], claim: tables.Claim) -> None:
    """Writes what is missing of the tables of one run; all detectors look at a face when it is decoded once."""
    pending: list[tuple[Scores, pa.Array]] = []
    for scores in tables_:
        if not _is_done(data, scores):
            storage.delete(storage.join(scores.location, tables.INFO))
            ledger = tables.read_ledger(scores.location, scores.settings)
            if tables.drop_failed(scores.location, scores.settings):  # they may have faces by now
                ledger = ledger.filter(pc.is_in(ledger["status"], pa.array(tables.FINAL)))
            is_missing = pc.invert(pc.is_in(data.videos["video_id"], ledger["video_id"]))
            pending.append((scores, data.videos["video_id"].filter(is_missing).combine_chunks()))
    began = time.monotonic()
    waiting = pa.concat_arrays([missing for _, missing in pending] or [pa.array([], pa.string())])
    videos = data.videos.filter(pc.is_in(data.videos["video_id"], waiting))
    if len(videos):
        connect()
        num_faces = 0
        with Progress(f"evaluate {data.name}", len(videos), unit="videos") as progress:
            for batch in _stream(config, data, videos, pending, claim):
                num_faces += pc.sum(batch["num_faces"]).as_py()
                progress.advance(len(batch["num_faces"]), f"{num_faces} faces")
    for scores, missing in pending:
        ledger = tables.read_ledger(scores.location, scores.settings)
        if not set(missing.to_pylist()) <= set(ledger["video_id"].to_pylist()):
            raise RuntimeError(f"{scores.location} lacks videos that were scored; run the same command again")
        claim.check()
        counts = tables.count_values(ledger["status"])
        seconds = round(time.monotonic() - began, 1)
        info = {"num_rows": len(ledger), "num_new": len(missing), "counts": counts, "seconds": seconds}
        tables.write_info(scores.location, scores.settings, faces_counts=data.faces["counts"], **info)


def _stream(
    config: Config, data: Data, videos: pa.Table, pending: list[tuple[Scores, pa.Array]], claim: tables.Claim
) -> Iterator[pa.Table]:
    """Runs the stages on `videos`; yields what `ScoreStage` gives."""
    import ray

    from raydistal.detector import runtime

    pending = [(scores, missing) for scores, missing in pending if len(missing)]
    detectors = [runtime.load(scores.detector.location)[0] for scores, _ in pending]
    work = ray.put((detectors, pending))  # read once, handed to every actor by the object store
    return look_at_faces(
        videos,
        storage.join(data.location, "faces"),
        sorted({detector.input_px for detector in detectors}),
        ScoreStage,
        (work, config.batch_size, claim),
        VIDEOS_PER_PART,
        config.num_workers,
        Growth(config.budget.max_nodes, use_gpu(config.device)),
    )


@measured("evaluate", "scores")
class ScoreStage:
    """Actor: holds all detectors, and writes the rows that each still lacks as one part of its table.

    Returns what the driver counts: the column num_faces.
    """

    def __init__(
        self,
        work: "ray.ObjectRef[tuple[list[Detector | Exported], list[tuple[Scores, pa.Array]]]]",
        batch_size: int,
        claim: tables.Claim,
    ) -> None:
        import ray

        device = start_torch()
        from raydistal.detector.scoring import Scorer

        detectors, self.pending = ray.get(work)
        self.scorers = [Scorer(detector, device, batch_size) for detector in detectors]
        self.claim = claim

    def __call__(self, rows: pa.Table) -> pa.Table:
        from raydistal.detector.metrics import aggregate

        num_faces = pc.list_value_length(rows["frame_index"]).to_numpy()
        for scorer, (scores, missing) in zip(self.scorers, self.pending, strict=True):
            # The few of these rows among all that are missing, not the other way round, which would hash all each time.
            due = missing.filter(pc.is_in(missing, rows["video_id"].combine_chunks()))
            is_missing = pc.is_in(rows["video_id"], due).to_numpy()
            if not is_missing.any():
                continue
            some, num_V = rows.filter(pa.array(is_missing)), num_faces[is_missing]
            probability_N = scorer(crops_of(some[f"pixels_{scorer.input_px}"], scorer.input_px))
            probability_V = aggregate(probability_N, np.repeat(np.arange(len(some)), num_V), len(some), "mean")
            some = some.append_column("model_id", pa.array([scores.detector.model_id] * len(some)))
            some = some.append_column("probability", pa.array(probability_V, from_pandas=True))  # NaN becomes null
            some = some.append_column("frame_probability", schemas.list_column(probability_N, num_V))
            self.claim.check()  # here, as the workers of a job that was paused or killed may still be at it
            tables.write_part(scores.location, schemas.conform(some, schemas.SCORES), scores.settings)
        return pa.table({"num_faces": num_faces})


def _measure(config: Config, detectors: list[Known], datasets: list[Data]) -> None:
    """Writes OUT/metrics, unless it is there from the same scores and settings."""
    from raydistal.detector.metrics import bootstrap_weights
    from raydistal.detector.outcome import outcome_of

    place = storage.join(storage.absolute(config.out), "metrics")
    settings = {
        "split": config.split,
        "aggregate": config.aggregate,
        "no_face": config.no_face,
        "bootstrap": config.bootstrap,
        "seed": config.seed,
        "detectors": {one.name: [one.location, one.model_id, one.about["threshold"]] for one in detectors},
        "data": {data.name: [data.location, _protocol_id(config, data), data.faces["counts"]] for data in datasets},
    }
    if tables.read_info(place).get("fingerprint") == tables.fingerprint(settings):
        return
    rows: list[dict[str, Any]] = []
    info: dict[str, Any] = {"detectors": [_about(detector) for detector in detectors], "data": []}
    info |= {"protocol": _protocol(config, datasets), "curves": [], "worst": []}
    for data in datasets:
        weight_BV = bootstrap_weights(data.videos["group_id"].to_numpy(), config.bootstrap, config.seed)
        about_data = _about_data(config, data)
        for scores in _scores(config, detectors, data):
            name, model_id = scores.detector.name, scores.detector.model_id
            found = tables.read_table(scores.location, "evaluate", ["video_id", "frame_index", "frame_probability"])
            threshold = scores.detector.about["threshold"]
            outcome = outcome_of(data.videos, found, config.aggregate, threshold, config.no_face == "skip")
            for level, of_level in outcome.levels.items():
                measured, num_skipped = of_level.measure(weight_BV)
                fixed = {"model_id": model_id, "detector": name, "dataset": data.name}
                fixed |= {"split": config.split, "level": level}
                rows += [fixed | one._asdict() for one in measured]
                info["curves"].append({"detector": name, "data": data.name, "level": level} | of_level.curves())
                about_data["num_resamples_skipped"][level] = num_skipped
            info["worst"] += [{"detector": name, "data": data.name} | frame for frame in outcome.worst(NUM_WORST)]
            about_data["num_without_faces"] = outcome.num_without_faces
        info["data"].append(about_data)
    table = schemas.conform(pa.Table.from_pylist(rows), schemas.METRICS)
    tables.write_table(place, table, settings, **info)


def _about(detector: Known) -> dict[str, Any]:
    names = ("architecture", "num_params", "input_px", "threshold", "cost")
    about = {"name": detector.name, "location": detector.location, "model_id": detector.model_id}
    return about | {name: detector.about[name] for name in names} | {"synthetic": detector.about["data"]["synthetic"]}


def _about_data(config: Config, data: Data) -> dict[str, Any]:
    datasets = sorted(set(data.videos["dataset"].to_pylist()))
    num_real, num_fake = tables.count_classes(data.videos["label"])
    return {
        "name": data.name,
        "location": data.location,
        "datasets": datasets,
        "synthetic": schemas.SYNTHETIC in datasets,
        "num_videos": len(data.videos),
        "num_real": num_real,
        "num_fake": num_fake,
        "protocol": _protocol_id(config, data),
        "num_resamples_skipped": {},  # they had one class only
    }


def _protocol_id(config: Config, data: Data) -> str:
    """The same for two numbers only if they were measured in the same way on the same videos."""
    return _digest(tables.crop_settings(data.faces), data.digest, config.split, config.aggregate, config.no_face)[:8]


def _protocol(config: Config, datasets: list[Data]) -> dict[str, str]:
    """Of all runs together, and in words."""
    ids = [_protocol_id(config, data) for data in datasets]
    faces = []
    for data in datasets:
        settings = ", ".join(f"{name} {value}" for name, value in sorted(tables.crop_settings(data.faces).items()))
        faces.append(f"Faces of {data.name}: {settings}.")
    no_face = {
        "unsure": "A video without a usable face counts with the probability 0.5, and as an error where it is decided.",
        "skip": "Videos without a usable face are left out.",
    }
    text = (
        f"Videos of split {config.split}, told apart by video_id. {' '.join(faces)} A video's probability is made from "
        f"those of its frames by: {config.aggregate}. {no_face[config.no_face]} Thresholds come from detector.json: "
        "chosen on validation videos by the mean of their frames, never on these. Fake is the positive class. "
        f"Intervals: 95 %, {config.bootstrap} resamples of whole groups, the same for all detectors."
    )
    return {"id": ids[0] if len(ids) == 1 else _digest(sorted(ids))[:8], "text": text}


def _digest(*parts: Any) -> str:
    return tables.fingerprint({"parts": parts})


def _results(out: str) -> list[dict[str, Any]]:
    """The headline numbers of each detector on each run, at video level."""
    place = storage.join(out, "metrics")
    protocols = {data["name"]: data["protocol"] for data in tables.read_info(place)["data"]}
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for row in tables.read_table(place, "evaluate").to_pylist():
        if (row["level"], row["slice"]) == ("video", "all") and row["metric"] in ("auc", "accuracy", "eer"):
            names = {"detector": row["detector"], "data": row["dataset"]}
            one = results.setdefault((row["detector"], row["dataset"]), names)
            one |= {row["metric"]: row["value"], "num_videos": row["num"], "protocol": protocols[row["dataset"]]}
            if row["metric"] == "auc":
                one["auc_interval"] = [row["low"], row["high"]]
    return list(results.values())
