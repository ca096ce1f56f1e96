"""Results of a search's trials, in numbers and in words: which points hold, and which are worth having."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import storage, tables
from raydistal.detector import checkpoint
from raydistal.detector.comparison import (
    Draws,
    Metric,
    Tried,
    Versus,
    count_groups,
    mean_over_seeds,
    measure,
    resampled_weights,
    verdict,
)
from raydistal.search import pareto
from raydistal.search.agenda import Row, Trial
from raydistal.search.space import Point, key
from raydistal.search.strategies import Bisection

MEASURED = ("accuracy", "auc", "loss", "num_params", "macs", "size_mb", "images", "seconds")
FAILED = {"holds": False, "verdict": "failed", "text": "A trial of it failed."}

Finding = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """Decides for a bisection whether a point holds."""

    out: str
    """Folder of the search."""
    architecture: str
    rows: Mapping[str, Row]
    """Of `schemas.TRIALS`, by trial; may grow."""
    num_seeds: int
    val: pa.Table
    """video_id, label and group_id."""
    metric: Metric
    floor: float
    margin: float
    _tried: dict[str, list[Tried]] = field(default_factory=dict, init=False)
    """By `key(point)`, as their scores are files."""

    def by_floor(self, point: Point) -> Finding:
        """Whether the mean over seeds, on the faces of val, is at least the floor."""
        rows = self._rows(point)
        if any(row["status"] != "ok" for row in rows):
            return {"value": point["prune"], "mean": None} | FAILED
        mean = float(np.mean([row[self.metric] for row in rows]))
        holds = mean >= self.floor
        text = f"{self.metric} {mean:.3f} is {'at least' if holds else 'below'} {self.floor:g}."
        return {
            "value": point["prune"],
            "mean": mean,
            "holds": holds,
            "verdict": "ok" if holds else "low",
            "text": text,
        }

    def by_test(self, point: Point, other: Point, versus: Versus) -> Finding:
        """Whether a share of the data does as well as all of it, or better than a random one.

        By `comparison.verdict`, on the videos of val.
        """
        finding = {"value": point["data"], "mean": None}
        if any(row["status"] != "ok" for row in self._rows(point) + self._rows(other)):
            return finding | FAILED
        this, that = (self._draws(one, self.metric) for one in (point, other))
        learnt = any(self._draws(one, "auc").interval(0.0, 1.0)[0] > 0.5 for one in (point, other))
        name = f"{point['data']:g} of the data"
        found = verdict(self.architecture, name, self.metric, versus, this.minus(that), self.margin, learnt)
        return finding | found | {"mean": this.value, "holds": found["verdict"] in ("non-inferior", "better")}

    def _rows(self, point: Point) -> list[Row]:
        return [self.rows[Trial(point, seed).id] for seed in range(self.num_seeds)]

    def _draws(self, point: Point, metric: Metric) -> Draws:
        if (id := key(point)) not in self._tried:
            self._tried[id] = self._read(point)
        label_V, group_V = self.val["label"].to_numpy(), self.val["group_id"].to_numpy()
        value_SB = measure(metric, label_V, self._tried[id], resampled_weights(group_V))
        return mean_over_seeds(value_SB, count_groups(metric, label_V, group_V), id)

    def _read(self, point: Point) -> list[Tried]:
        tried = []
        for row in self._rows(point):
            scores = tables.read_table(storage.join(self.out, "scores", row["trial"]), "search")
            place_V = pc.index_in(self.val["video_id"], value_set=scores["video_id"])
            threshold = checkpoint.read_about(row["detector"])["threshold"]["video"]
            probability_V = scores["probability"].take(place_V).to_numpy()
            tried.append(Tried(row=dict(row), threshold=threshold, probability_V=probability_V))
        return tried


def summarize(rows: Sequence[Row], metric: Metric, objectives: Mapping[str, bool]) -> Finding:
    """The points with their means over finished seeds, the best one, and the Pareto front.

    Args:
        rows: of `schemas.TRIALS`.
        metric: decides which point is the best; of equals, the smallest.
        objectives: column: whether more of it is better.
    """
    by_point: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            by_point.setdefault(key(Trial.of(row).point), []).append(row)
    points: list[Finding] = [
        {"id": name, **Trial.of(some[0]).point, "num_seeds": len(some)}
        | {column: float(np.mean([row[column] for row in some])) for column in MEASURED}
        for name, some in by_point.items()
    ]
    ranked = [point for point in points if point["set"] == "ranking"]
    loss_PD = np.array(
        [[-point[name] if more else point[name] for name, more in objectives.items()] for point in ranked]
    )
    return {
        "counts": {status: sum(row["status"] == status for row in rows) for status in ("ok", "stopped", "failed")},
        "points": points,
        "objectives": list(objectives),
        "best": max(ranked, key=lambda point: (point[metric], -point["size_mb"]), default={}).get("id"),
        "front": [ranked[number]["id"] for number in pareto.front(loss_PD)] if ranked else [],
    }


def answer(bisection: Bisection, criteria: Criteria, varied: str) -> Finding:
    """The answer of a bisection, in numbers and in words, and its evidence."""
    step, references = bisection.step, bisection.references
    value = {number: float(bisection.points[number][varied]) for number in bisection.judged}
    is_prune = varied == "prune"
    evidence = [
        criteria.by_floor(bisection.points[number])
        if is_prune
        else criteria.by_test(bisection.points[number], references[0], "full")
        for number in sorted(value, key=value.__getitem__)
    ]
    floor = f"keeps {criteria.metric} at {criteria.floor:g} or more"
    what = floor if is_prune else "is non-inferior to all of the data"
    kind = "prune ratio" if is_prune else "share of the data"
    sentences = [f"No {kind} that was tried {what}."]
    if any(one["verdict"] == "cannot tell" for one in evidence):
        sentences.append("For some it cannot be told: more val videos or --seeds would tell.")
    versus_random = None
    if step.answer is not None:
        sentences[0] = f"{value[step.answer]:g} is the {'largest' if is_prune else 'smallest'} {kind} that {what}."
        if references:
            found = bisection.points[step.answer]
            versus_random = criteria.by_test(found, found | {"set": "random"}, "random")
            sentences.append(versus_random["text"])
    for number in step.contradictions:
        sentences.append(
            f"But {value[number]:g} does so too, though a milder one does not: that is chance. Use more --seeds."
        )
    return {
        "varied": varied,
        "answer": None if step.answer is None else value[step.answer],
        "text": " ".join(sentences),
        "evidence": evidence,
        "versus_random": versus_random,
        "contradictions": [value[number] for number in step.contradictions],
    }
