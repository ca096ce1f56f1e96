"""Reads back what `evaluate` wrote: the results of each detector on the videos of a run."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raydistal import storage, tables
from raydistal.detector.outcome import outcome_of
from raydistal.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Strings = npt.NDArray[np.object_]


class Results(NamedTuple):
    """A detector's results on V test videos by video_id; all detectors of an evaluation have the same videos."""

    label_V: Ints
    method_V: Strings
    """None when real; "unknown" where a fake has none."""
    group_id_V: Strings
    probability_V: Floats
    """NaN without a face, as in `metrics`; such videos are absent if the evaluation skipped them."""
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation that is finished."""

    location: str
    info: dict[str, Any]
    """`_table.json` of its metrics."""

    @property
    def names(self) -> dict[str, str]:
        """The name of each detector, by its location."""
        return {detector["location"]: detector["name"] for detector in self.info["detectors"]}

    def results(self, detector: str, data: str) -> Results:
        """The results of a detector on a run, both given by name; videos are judged by the evaluation's settings."""
        place = storage.join(self.location, "scores", f"{detector}--{data}")
        scores = tables.read_table(place, "evaluate").sort_by("video_id").combine_chunks()
        config = self.info["config"]
        threshold = config["detectors"][detector][2]
        outcome = outcome_of(scores, scores, config["aggregate"], threshold, config["no_face"] == "skip")
        level = outcome.levels["video"]
        methods = [(m or "unknown") if label else None for m, label in zip(level.method_N, level.label_N, strict=True)]
        return Results(
            np.asarray(level.label_N, np.int64),
            np.array(methods, object),
            scores["group_id"].to_numpy()[level.video_N],
            np.asarray(level.probability_N, np.float64),
            level.threshold,
        )


def read(location: str) -> Evaluation:
    """The evaluation in the folder `location`. Raises UserError if there is none, or it is unfinished."""
    info = tables.read_info(storage.join(location, "metrics"))
    if not info:
        raise UserError(f"no finished evaluation at {location}. Make it first: raydistal evaluate --out {location}")
    return Evaluation(location=location, info=info)
