"""Which frames of a video are looked at."""

import dataclasses
import hashlib
import re

import numpy as np
import numpy.typing as npt

from raydistal.errors import UserError

MAX_FRAMES = 1000  # of one video: bounds a row, however long the video is


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A rule that picks frames.

    `even:N` N frames spread over the video, first and last included; `every:N` frames 0, N, 2N ...;
    `random:N` N frames without replacement, the same ones for the same video_id; `fps:R` the frames on show at
    0, 1/R, 2/R ... seconds after the first. Of more than MAX_FRAMES frames, MAX_FRAMES spread evenly are taken.
    """

    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Sampling":
        """Reads even:10, every:30, random:10 or fps:1.5. Raises UserError for anything else."""
        match = re.fullmatch(r"(?:(even|every|random):(\d{1,9})|(fps):(\d{1,6}(?:\.\d{1,6})?))", text)
        if not match or float(match[2] or match[4]) <= 0:
            raise UserError(f"unknown sampling {text!r}: use even:N, every:N, random:N or fps:R with a positive number")
        return cls(match[1] or match[3], float(match[2] or match[4]))

    def pick(self, pts_s_N: npt.NDArray[np.float64], video_id: str) -> npt.NDArray[np.int64]:
        """Ascending frame indices, out of the N frames shown at `pts_s_N` seconds (ascending, in presentation order).

        A video with fewer frames than asked gives all of them; one without frames gives none.
        """
        indices = self._pick(pts_s_N, video_id)
        return indices if len(indices) <= MAX_FRAMES else indices[_spread(len(indices), MAX_FRAMES)]

    def _pick(self, pts_s_N: npt.NDArray[np.float64], video_id: str) -> npt.NDArray[np.int64]:
        num_frames, amount = len(pts_s_N), int(self.amount)
        if num_frames == 0:
            return np.empty(0, np.int64)
        if self.kind == "every":
            return np.arange(0, num_frames, amount)
        if self.kind == "fps":
            shown_s_N, tick_s = pts_s_N - pts_s_N[0], 1e-6  # times are rounded: 0.999... s is 1 s
            first_N = np.ceil((shown_s_N - tick_s) * self.amount)  # of the times, by number, not before each frame
            last = np.floor((shown_s_N[-1] + tick_s) * self.amount)
            return np.flatnonzero(first_N < np.append(first_N[1:], last + 1))
        if amount >= num_frames:
            return np.arange(num_frames)
        if self.kind == "even":
            return _spread(num_frames, amount)
        seed = int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest(), "big")
        return np.sort(np.random.default_rng(seed).choice(num_frames, amount, replace=False))


def _spread(num_frames: int, num_wanted: int) -> npt.NDArray[np.int64]:
    if num_wanted == 1:
        return np.array([num_frames // 2])
    return np.linspace(0, num_frames - 1, num_wanted).round().astype(np.int64)
