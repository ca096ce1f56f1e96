"""What the scores of a detector amount to: metrics of frames and videos, curves, the worst mistakes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistal.detector import metrics
from raydistal.detector.metrics import Aggregate, Floats, Ints, Measured, Weights


class Level(NamedTuple):
    """N rows, videos or frames, as `metrics` takes them."""

    label_N: Ints
    probability_N: Floats
    method_N: npt.NDArray[np.object_]
    threshold: float
    video_N: Ints

    def measure(self, weight_BV: Weights) -> tuple[list[Measured], int]:
        """As `metrics.measure_slices`."""
        return metrics.measure_slices(*self, weight_BV)

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """The ROC curve and the reliability diagram, as JSON."""
        fpr_P, tpr_P = metrics.roc(self.label_N, self.probability_N)
        mean_K, share_K, num_K = metrics.reliability(self.label_N, self.probability_N)
        return {
            "roc": {"fpr": fpr_P.tolist(), "tpr": tpr_P.tolist()},
            "reliability": {"probability": mean_K.tolist(), "share_fake": share_K.tolist(), "num": num_K.tolist()},
        }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A detector's results on V videos."""

    levels: dict[str, Level]
    """By name: video and frame."""
    video_id_V: pa.ChunkedArray
    label_V: Ints
    probability_V: Floats
    """NaN without a face."""
    frame_index_N: npt.NDArray[np.int32]
    """Of the rows of the level frame."""

    @property
    def num_without_faces(self) -> int:
        """Number of videos without a face."""
        return int(np.isnan(self.probability_V).sum())

    def worst(self, num: int) -> list[dict[str, Any]]:
        """The worst frames of up to `num` misclassified videos: video_id, frame_index, label, probability."""
        frame, threshold = self.levels["frame"], self.levels["video"].threshold
        rows = metrics.worst_frames(
            self.label_V, self.probability_V, threshold, frame.probability_N, frame.video_N, num
        )
        return [
            {
                "video_id": self.video_id_V[frame.video_N[row]].as_py(),
                "frame_index": int(self.frame_index_N[row]),
                "label": int(frame.label_N[row]),
                "probability": float(frame.probability_N[row]),
            }
            for row in rows
        ]


def outcome_of(
    videos: pa.Table, scores: pa.Table, aggregate: Aggregate, threshold: Mapping[str, Any], skips_no_face: bool
) -> Outcome:
    """Both levels: the frames of all videos, and the videos, of which those without a face may be left out.

    Args:
        videos: video_id, label, method.
        scores: video_id, frame_index, frame_probability; of all videos, in any order.
        aggregate: how the probability of a video comes from those of its frames.
        threshold: by level.
        skips_no_face: leave out videos without a face.
    """
    scores = scores.take(pc.index_in(videos["video_id"], value_set=scores["video_id"])).combine_chunks()
    label_V, method_V = videos["label"].to_numpy().astype(np.int64), videos["method"].to_numpy()
    probability_N = pc.list_flatten(scores["frame_probability"]).to_numpy()
    video_N = pc.list_parent_indices(scores["frame_probability"]).to_numpy()
    probability_V = metrics.aggregate(probability_N, video_N, len(videos), aggregate)
    kept = np.flatnonzero(~np.isnan(probability_V)) if skips_no_face else np.arange(len(videos))
    return Outcome(
        levels={
            "video": Level(label_V[kept], probability_V[kept], method_V[kept], threshold["video"], kept),
            "frame": Level(label_V[video_N], probability_N, method_V[video_N], threshold["frame"], video_N),
        },
        video_id_V=videos["video_id"],
        label_V=label_V,
        probability_V=probability_V,
        frame_index_N=pc.list_flatten(scores["frame_index"]).to_numpy(),
    )
