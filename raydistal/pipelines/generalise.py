"""videos, faces -> detectors, evaluation, generalisation: how well detectors find fakes of methods unseen in training.

    all methods, and for each method all but it -> a training per architecture and seed (Ray tasks) -> detectors
          -> all on one test split (evaluate) -> AUC of each method's fakes, gaps, verdicts -> generalisation, report

A finished training costs nothing on a rerun, so more methods, seeds or architectures can be added later.
"""

import dataclasses
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.pipelines import train
from raydistal.pipelines.scaling import Budget
from raydistal.pipelines.trainings import Training, check_asked, evaluate_all, train_all, videos_to_test

if TYPE_CHECKING:
    from raydistal.detector.evaluated import Evaluation, Results

PROTOCOL = (
    "Each detector learnt from the fakes of all methods, or of all but one, which it saw neither in train nor in val; "
    "in that case from fewer fakes, as nothing replaces them. The AUC of a method is that of its fakes against all "
    "real videos. Means are over seeds; their intervals come from {num} resamples of groups, the same for all, and of "
    "seeds."
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train without one method's fakes; measure how well detectors find them."""

    data: str
    """Run folder with the tables videos and faces, local or s3://..."""
    out: str
    """Folder for the detectors, their evaluation and the table."""
    architectures: tuple[str, ...]
    """Networks, such as xception, densenet121, efficientnet_b0, or timm:NAME."""
    methods: tuple[str, ...] = ()
    """Methods to leave out, one at a time; default: every method with fakes in train."""
    seeds: int = 3
    """Trainings of each architecture with and without each method."""
    split: schemas.Split = "test"
    """Split on which all detectors are evaluated."""
    margin: float = 0.02
    """Non-inferiority margin: what the AUC of a method may lose when it is left out; 0.02 is 2 points."""
    limits: Limits = field(default_factory=Limits)
    training: Training = field(default_factory=Training)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_asked(self.split, architectures=self.architectures, methods=self.methods)
        if self.seeds < 1 or not 0 < self.margin < 1:
            raise UserError("need --seeds of at least 1, and a --margin between 0 and 1")
        self.to_train(self.architectures[0], None, 0)  # refuses a bad recipe

    def to_train(self, architecture: str, left_out: str | None, seed: int) -> train.Config:
        """The config of one training."""
        name = f"without-{_folder(left_out)}" if left_out else "all"
        out = storage.join(
            storage.absolute(self.out), "detectors", architecture.replace(":", "-"), name, f"seed-{seed}"
        )
        leave_out = (*self.limits.leave_out, *([left_out] if left_out else []))
        limits = dataclasses.replace(self.limits, leave_out=leave_out)
        return self.training.to_train(self.data, out, architecture, seed, limits=limits)


class Trained(NamedTuple):
    """One detector."""

    left_out: str | None
    config: train.Config


def run(config: Config) -> dict[str, Any]:
    """Trains and measures what is missing, writes OUT/generalisation and OUT/report, and returns the job's summary.

    Raises:
        UserError: before any work: no tables, fewer than two methods, an unknown method, a test split that is empty,
            shares people with training or lacks a method, an unknown architecture or recipe, no weights. Later: an
            existing detector has other settings, or a training fails; finished work stays.
    """
    from raydistal.detector.comparison import NUM_RESAMPLES
    from raydistal.detector.generalisation import Tried, generalise
    from raydistal.report import generalisation as report

    began = time.monotonic()
    out = storage.absolute(config.out)
    videos = tables.read_table(storage.join(config.data, "videos"), "index")
    videos = videos.filter(pc.is_valid(videos["label"]))
    test = videos_to_test(videos, config.split, config.data)
    learnt = _fakes_of(videos.filter(pc.equal(videos["split"], "train"))) - set(config.limits.leave_out)
    methods = _methods(config, learnt, _fakes_of(test))
    tables.faces_info(config.data, with_crops=True)
    config.training.check(config.architectures)
    trained = [
        Trained(left_out, config.to_train(architecture, left_out, seed))
        for seed in range(config.seeds)
        for architecture in config.architectures
        for left_out in (None, *methods)
    ]
    with tables.sole_writer(storage.join(out, "generalisation")):
        configs = [one.config for one in trained]
        train_all("generalise", configs, config.training, config.budget)
        remark = PROTOCOL.format(num=NUM_RESAMPLES)
        evaluation, info = evaluate_all(
            configs, config.data, storage.join(out, "evaluation"), config.split, remark, config.budget
        )
        results = _results(evaluation, info["test"]["name"], trained)
        tried = [Tried(one.config.architecture, one.left_out, its) for one, its in zip(trained, results, strict=True)]
        found = generalise(tried, config.margin)
        rows = [row for one, its in zip(trained, results, strict=True) for row in _rows(one, its)]
        table = pa.Table.from_pylist(rows, schemas.GENERALISATION)
        info |= found | {"learnt": sorted(learnt)}
        tables.write_table(storage.join(out, "generalisation"), table, dataclasses.asdict(config), **info)
        page = report.write(out)
    _print(found["gaps"])
    seconds = round(time.monotonic() - began, 1)
    return {"detectors": len(trained), "gaps": found["gaps"], "seconds": seconds, "report": page}


def _folder(method: str) -> str:
    return re.sub(r"[^\w.+-]", "-", method)


def _fakes_of(videos: pa.Table) -> set[str]:
    """Methods of the fakes; "unknown" is one of them if some fake has none."""
    return set(videos["method"].filter(pc.equal(videos["label"], 1)).fill_null("unknown").to_pylist())


def _methods(config: Config, learnt: set[str], tested: set[str]) -> list[str]:
    """The methods to leave out, sorted."""
    there = sorted(learnt - {"unknown"})
    methods = sorted(config.methods or there)
    if unknown := sorted(set(methods) - set(there)):
        raise UserError(f"--methods: no fakes of {unknown[0]!r} in train. Methods: {', '.join(there) or 'none'}")
    if len(learnt) < 2:
        raise UserError(
            f"leaving one method out needs fakes of two in train of {config.data}, which has those of "
            f"{', '.join(learnt) or 'none'}. Name them in a manifest, or index a dataset that has several."
        )
    if untested := sorted(set(methods) - tested):
        raise UserError(
            f"no fakes of {untested[0]!r} in split {config.split}: what leaving it out does cannot be measured. Choose "
            "others with --methods, or another --split."
        )
    if len({_folder(method) for method in methods}) < len(methods):
        raise UserError(f"methods differ by special characters only: {', '.join(methods)}. Rename one.")
    return methods


def _results(evaluation: "Evaluation", data: str, trained: list[Trained]) -> "list[Results]":
    return [evaluation.results(evaluation.names[one.config.out], data) for one in trained]


def _rows(one: Trained, results: "Results") -> list[dict[str, Any]]:
    """Rows of `schemas.GENERALISATION`: one detector on each method."""
    from raydistal.detector import checkpoint
    from raydistal.detector.metrics import weighted_accuracy, weighted_auc

    about = checkpoint.read_about(one.config.out)
    cost = {key: about["cost"][key] for key in ("images", "seconds", "gpu_seconds")}
    fixed = {"architecture": one.config.architecture, "left_out": one.left_out, "seed": one.config.seed}
    fixed |= cost | {"num_faces": sum(about["data"]["num_faces"]["train"].values())}
    rows = []
    for method in sorted(set(results.method_V[results.label_V == 1])):
        is_fake_V = results.method_V == method
        is_in_V = is_fake_V | (results.label_V == 0)
        one_1N, one_1M = np.ones((1, is_in_V.sum())), np.ones((1, is_fake_V.sum()))
        auc = weighted_auc(results.label_V[is_in_V], results.probability_V[is_in_V], one_1N)
        recall = weighted_accuracy(
            results.label_V[is_fake_V], results.probability_V[is_fake_V], results.threshold, one_1M
        )
        row = {"tested": method, "num_fake": int(is_fake_V.sum()), "auc": float(auc[0]), "recall": float(recall[0])}
        rows.append(fixed | row)
    return rows


def _print(gaps: list[dict[str, Any]]) -> None:
    """Prints the effect of leaving out each method on stderr, for 80 columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(stderr=True, highlight=False)
    for architecture in dict.fromkeys(row["architecture"] for row in gaps):
        table = Table("AUC of", title=escape(architecture), title_justify="left", box=None, padding=(0, 1, 0, 0))
        for column in ("learnt", "left out", "points", "95 %"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for row in gaps:
            if row["architecture"] == architecture:
                points, low, high = (f"{100 * row[name]:+.1f}" for name in ("difference", "low", "high"))
                values = (f"{row['seen']:.3f}", f"{row['unseen']:.3f}", points, f"{low} {high}", row["verdict"])
                table.add_row(escape(row["method"] or "mean"), *values)
        console.print(table, "")
