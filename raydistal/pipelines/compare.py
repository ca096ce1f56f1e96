"""videos, faces, ranking -> detectors, evaluation, comparison: DeepDistAL's Table 1 and figure 6 with baselines.

    full, distilled, and for each distilled set a random one and one of those with most faces, of the same size -> sets
          -> a training per architecture, set and seed (Ray tasks) -> detectors
          -> all on one test split (evaluate) -> means, intervals, verdicts -> comparison, report

A finished training costs nothing on a rerun, so more sets, seeds or architectures can be added later.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.pipelines import train
from raydistal.pipelines.scaling import Budget
from raydistal.pipelines.trainings import Training, check_asked, evaluate_all, train_all, videos_to_test

if TYPE_CHECKING:
    from raydistal.detector.comparison import Tried
    from raydistal.detector.evaluated import Evaluation
    from raydistal.detector.subsets import Control, Kind

CONTROLS: "tuple[Control, ...]" = ("random", "frame_count")
PROTOCOL = (
    "Every detector learnt from the training faces of its set only; epoch and threshold were chosen on all of val. "
    "A random set and the videos with most faces have as many real and as many fake videos as the distilled set. Means "
    "are over seeds; their intervals come from {num} resamples of groups, the same for all sets, and of seeds."
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train detectors on the full and on distilled sets, and compare them."""

    data: str
    """Run folder with the tables videos, faces and ranking, local or s3://..."""
    out: str
    """Folder for the detectors, their evaluation and the comparison."""
    architectures: tuple[str, ...]
    """Networks, such as xception, densenet121, efficientnet_b0, or timm:NAME."""
    sets: tuple[str, ...] = ("0.5", "0.2")
    """Distilled sets: shares of the ranking of --data, or locations of distilled tables."""
    faces: tuple[int, ...] = ()
    """Also train on so many faces, half of each class, to show accuracy against the amount of data."""
    seeds: int = 3
    """Trainings of each architecture on each set; random sets are drawn anew for each."""
    split: schemas.Split = "test"
    """Split on which all detectors are evaluated."""
    metric: Literal["accuracy", "auc"] = "accuracy"
    """Video-level metric of the verdicts."""
    margin: float = 0.02
    """Non-inferiority margin: what a distilled set may lose against the full one; 0.02 is 2 points."""
    training: Training = field(default_factory=Training)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_asked(self.split, architectures=self.architectures, sets=self.sets, faces=self.faces)
        if any(not 0 < ratio < 1 for ratio in map(_ratio, self.sets) if ratio is not None):
            raise UserError(f"shares in --sets must be above 0 and below 1, not {' '.join(self.sets)}")
        if min(self.faces, default=2) < 2 or self.seeds < 1 or not 0 < self.margin < 1:
            raise UserError("need --faces of at least 2, --seeds of at least 1, and a --margin between 0 and 1")
        self.to_train(self.architectures[0], "", "")  # refuses a bad recipe

    def to_train(self, architecture: str, out: str, manifest: str, seed: int = 0, max_faces: int = 0) -> train.Config:
        """The config of one training."""
        return self.training.to_train(self.data, out, architecture, seed, manifest, Limits(max_faces=max_faces))


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A set of videos that detectors are trained on."""

    name: str
    kind: "Kind"
    of: str = ""
    """The distilled set that a control belongs to."""
    videos: list[pa.Table]
    """The videos of the set for each seed."""
    share: float
    max_faces: int = 0


def run(config: Config) -> dict[str, Any]:
    """Trains and measures what is missing, writes OUT/comparison and OUT/report, and returns the job's summary.

    Raises:
        UserError: before any work: no tables, no ranking, a set without one class or from elsewhere, a test split that
            is empty or shares people with training, an unknown architecture or recipe, no weights. Later: an existing
            detector has other settings, or a training fails; finished work stays.
    """
    from raydistal.detector.comparison import NUM_RESAMPLES, compare
    from raydistal.report import comparison as report

    began = time.monotonic()
    out = storage.absolute(config.out)
    videos = tables.read_table(storage.join(config.data, "videos"), "index")
    videos = videos.filter(pc.is_valid(videos["label"]))
    videos_to_test(videos, config.split, config.data)
    subsets = _subsets(config, videos.filter(pc.equal(videos["split"], "train")))
    config.training.check(config.architectures)
    with tables.sole_writer(storage.join(out, "comparison")):
        trainings = _trainings(config, out, subsets)
        configs = [one for _, one in trainings]
        train_all("compare", configs, config.training, config.budget)
        remark = PROTOCOL.format(num=NUM_RESAMPLES)
        evaluation, info = evaluate_all(
            configs, config.data, storage.join(out, "evaluation"), config.split, remark, config.budget
        )
        tried, label_V, group_id_V = _measured(evaluation, info["test"].pop("name"), trainings)
        found = compare(tried, label_V, group_id_V, config.metric, config.margin)
        rows = schemas.conform(pa.Table.from_pylist([one.row for one in tried]), schemas.COMPARISON)
        tables.write_table(storage.join(out, "comparison"), rows, dataclasses.asdict(config), **info, **found)
        page = report.write(out)
    _print(found["summary"], found["verdicts"])
    seconds = round(time.monotonic() - began, 1)
    return {"detectors": len(tried), "verdicts": found["verdicts"], "seconds": seconds, "report": page}


def _ratio(text: str) -> float | None:
    """A share in --sets as a number; None if it is a location."""
    try:
        return float(text)
    except ValueError:
        return None


def _subsets(config: Config, videos: pa.Table) -> list[Subset]:
    """The sets to compare, full first; `videos` are all of training."""
    from raydistal.detector.subsets import check, control, count_faces

    tables.faces_info(config.data)
    faces = storage.join(config.data, "faces")
    num_faces_V = count_faces(videos, tables.read_table(faces, "extract", ["video_id", "frame_index"]))
    check("full", videos, videos, num_faces_V, max([1, *(num // 2 for num in config.faces)]))
    subsets = [Subset(name="full", kind="full", videos=[videos] * config.seeds, share=1.0)]
    for share_or_location in config.sets:
        name, distilled = _distilled(config, share_or_location, videos)
        check(name, distilled, videos, num_faces_V)
        share = len(distilled) / len(videos)
        subsets.append(Subset(name=name, kind="distilled", videos=[distilled] * config.seeds, share=share))
        for kind in CONTROLS:
            drawn = [control(videos, num_faces_V, distilled, kind, seed) for seed in range(config.seeds)]
            for table in drawn:
                check(f"{name}-{kind}", table, videos, num_faces_V)
            subsets.append(Subset(name=f"{name}-{kind}", kind=kind, of=name, videos=drawn, share=share))
    for num in config.faces:
        everything = [videos] * config.seeds
        share = num / float(num_faces_V.sum())
        subsets.append(Subset(name=f"faces-{num}", kind="faces", videos=everything, share=share, max_faces=num))
    names = [subset.name for subset in subsets]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two of --sets are called {min(doubled)}: rename a folder, results are kept by that name")
    return subsets


def _distilled(config: Config, share_or_location: str, videos: pa.Table) -> tuple[str, pa.Table]:
    """Name and videos of a distilled set."""
    from raydistal.selection.ranking import cut

    ratio = _ratio(share_or_location)
    location = storage.join(config.data, "ranking") if ratio is not None else share_or_location
    found = tables.read_table(location, "select").sort_by("rank")
    row_N = pc.index_in(found["video_id"], value_set=videos["video_id"])
    if row_N.null_count:
        raise UserError(
            f"{row_N.null_count} of the {len(found)} videos of {location} are not labelled training videos of "
            f"{config.data}, whose full set they are to be compared with. Distil its split train: raydistal select"
        )
    if ratio is not None:
        return f"distill-{100 * ratio:g}", cut(found, videos, ratio, tables.read_info(location)["config"]["arrange"])
    parts = storage.resolve(share_or_location)[1].split("/")
    name = parts[-2] if parts[-1] == "distilled" and len(parts) > 1 else parts[-1]
    return name, schemas.conform(videos.take(row_N).append_column("rank", found["rank"]), schemas.DISTILLED)


def _trainings(config: Config, out: str, subsets: list[Subset]) -> list[tuple[Subset, train.Config]]:
    """All trainings to do, seed by seed. Writes the manifests that they read."""
    for subset in subsets:
        for seed, videos in enumerate(subset.videos):
            if subset.kind != "faces" and (seed == 0 or subset.kind == "random"):
                about = {"kind": subset.kind, "of": subset.of, "seed": seed}
                tables.write_table(_manifest(out, subset, seed), videos, about)
    return [
        (
            subset,
            config.to_train(
                architecture,
                storage.join(out, "detectors", architecture.replace(":", "-"), subset.name, f"seed-{seed}"),
                _manifest(out, subset, seed),
                seed,
                subset.max_faces,
            ),
        )
        for seed in range(config.seeds)
        for architecture in config.architectures
        for subset in subsets
    ]


def _manifest(out: str, subset: Subset, seed: int) -> str:
    name = "full" if subset.kind == "faces" else subset.name
    return storage.join(out, "sets", f"{name}-seed{seed}" if subset.kind == "random" else name)


def _measured(
    evaluation: "Evaluation", data: str, trainings: list[tuple[Subset, train.Config]]
) -> tuple[list["Tried"], npt.NDArray[np.int64], npt.NDArray[np.object_]]:
    """The detectors with their results; label and group of the test videos."""
    values: dict[str, dict[str, float | None]] = {name: {} for name in evaluation.names.values()}
    for row in tables.read_table(storage.join(evaluation.location, "metrics"), "evaluate").to_pylist():
        if (row["level"], row["slice"]) == ("video", "all"):
            values[row["detector"]][row["metric"]] = row["value"]
    tried = []
    for subset, one in trainings:
        name = evaluation.names[one.out]
        results = evaluation.results(name, data)
        tried.append(_tried(subset, one, values[name], results.probability_V))
    return tried, results.label_V, results.group_id_V


def _tried(
    subset: Subset, one: train.Config, values: dict[str, float | None], probability_V: npt.NDArray[np.float64]
) -> "Tried":
    """A trained detector with its metrics and probabilities; null became NaN."""
    from raydistal.detector import checkpoint
    from raydistal.detector.comparison import Tried

    about = checkpoint.read_about(one.out)
    learnt = about["data"]
    row = {
        "architecture": one.architecture,
        "set": subset.name,
        "kind": subset.kind,
        "share": subset.share,
        "num_videos": learnt["num_videos"]["train"] if subset.max_faces else len(subset.videos[one.seed]),
        "num_faces": sum(learnt["num_faces"]["train"].values()),
        "seed": one.seed,
        **{metric: values[metric] for metric in ("precision", "recall", "f1", "accuracy", "auc")},
        **{key: about["cost"][key] for key in ("images", "seconds", "gpu_seconds")},
    }
    return Tried(row=row, of=subset.of, threshold=about["threshold"]["video"], probability_V=probability_V)


def _print(summary: list[dict[str, Any]], verdicts: list[dict[str, Any]]) -> None:
    """DeepDistAL's Table 1 and the verdicts, on stderr, for 80 columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(stderr=True, highlight=False)
    for architecture in dict.fromkeys(row["architecture"] for row in summary):
        table = Table("set", title=escape(architecture), title_justify="left", box=None, padding=(0, 1, 0, 0))
        for column in ("videos", "prec.", "recall", "F1", "acc. %", "95 %", "AUC"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in summary:
            if row["architecture"] == architecture:
                shown = [_percent(row[name]) for name in ("precision", "recall", "f1", "accuracy_mean")]
                interval = f"{_percent(row['accuracy_low'])}-{_percent(row['accuracy_high'])}"
                auc = f"{row['auc_mean']:.3f}"
                table.add_row(escape(row["set"]), str(row["num_videos"]), *shown, interval, auc)
        console.print(table, "")
    for one in verdicts:
        difference, low, high = (f"{100 * one[name]:+.1f}" for name in ("difference", "low", "high"))
        margin = f", margin {100 * one['margin']:g}" if one["margin"] else ""
        console.print(f"{escape(one['text'])}\n    {one['metric']} {difference} points ({low} to {high}{margin})")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
