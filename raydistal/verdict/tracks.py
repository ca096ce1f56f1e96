"""Which faces of a video are one person: each is linked to a face of an earlier frame, by place, size and look.

Faces come a few times per second, and now and then one is missed or false. So place alone is not enough: after a cut
another person may be where the last one was, and two people who cross change places. The look is the whole crop in a
few pixels: hair, clothes and background identify a person better than a face that talks.

N faces of a frame, P numbers of a look, C of a scene.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from raydistal.faces.crop import Image

Floats = npt.NDArray[np.float64]
Scene = npt.NDArray[np.uint8]

LOOK_PX = 12
MAX_GAP_S = 1.5  # a person not seen for longer is taken for another one
SIZE_RATIO = 1.8  # change of a face's size between frames that costs 1
SETTLING_S = 0.3  # over which a speed is averaged: boxes tremble
COASTING_S = 0.5  # for which a speed is trusted
LIKENESS_IN_SHOT, LIKENESS_OVER_CUT = 0.35, 0.85  # least correlation of two looks
SCENE_LIKENESS, SCENE_STEP = 0.4, 8.0  # a cut: less correlation and more change in grey levels, from frame to frame
MAX_COST = 1.6  # of a link; a face that has neither moved nor changed costs 0
MAX_ALIVE = 100  # most tracks that may go on, those seen last: bounds the work on a video full of false faces


def look_of(crop_HWC: Image) -> Floats:
    """(P,) of mean 0 and length 1, so that the dot product of two is their correlation; zeros if of one colour."""
    look = cv2.resize(crop_HWC, (LOOK_PX, LOOK_PX), interpolation=cv2.INTER_AREA).astype(np.float64).reshape(-1)
    look -= look.mean()
    return np.asarray(look / max(float(np.linalg.norm(look)), 1e-9))


@dataclass(eq=False)
class Track:
    """A person, as far as seen."""

    number: int
    seen_s: float
    centre_2: Floats
    size: float
    look_P: Floats
    scene_C: Scene
    speed_2: Floats
    """Of the centre, in pixels per second."""

    def go_on(self, seen_s: float, centre_2: Floats, size: float, look_P: Floats, scene_C: Scene) -> None:
        """Takes in the next sighting."""
        step_s = seen_s - self.seen_s
        weight = step_s / (step_s + SETTLING_S)
        self.speed_2 = (1 - weight) * self.speed_2 + weight * (centre_2 - self.centre_2) / max(step_s, 1e-3)
        self.seen_s, self.centre_2, self.size, self.look_P, self.scene_C = seen_s, centre_2, size, look_P, scene_C

    def cost(self, now_s: float, centre_N2: Floats, size_N: Floats, look_NP: Floats, scene_C: Scene) -> Floats:
        """(N,) costs of going on with each face: its distance from where this one should be, relative to the largest
        allowed, plus change of size and of look; infinite where it cannot be this person.
        """
        away_s = now_s - self.seen_s
        expected_2 = self.centre_2 + self.speed_2 * min(away_s, COASTING_S)
        distance_N = np.linalg.norm(centre_N2 - expected_2, axis=1) / np.maximum(size_N, self.size)
        growth_N = np.abs(np.log(size_N / self.size)) / np.log(SIZE_RATIO)
        likeness_N = look_NP @ self.look_P
        cost_N = distance_N / (0.6 + 0.8 * min(away_s, MAX_GAP_S)) + growth_N + 2 * (1 - likeness_N)
        enough = LIKENESS_OVER_CUT if is_cut(self.scene_C, scene_C) else LIKENESS_IN_SHOT
        return np.where((likeness_N >= enough) & (cost_N <= MAX_COST), cost_N, np.inf)


class Linker:
    """Gives each face the number of its track, frame by frame.

    Args:
        step_s: usual time from one frame to the next.
    """

    def __init__(self, step_s: float) -> None:
        self._gap_s = max(MAX_GAP_S, 2 * step_s)
        self._alive: list[Track] = []
        self._num = 0

    def add(self, now_s: float, scene_C: Scene, boxes_N4: npt.NDArray[np.float32], look_NP: Floats) -> list[int]:
        """Number, from 0, of the track of each face of the next frame; a new one where none fits.

        Args:
            now_s: time of the frame, after that of the one before.
            scene_C: the whole frame in a few pixels.
            boxes_N4: as everywhere.
            look_NP: of `look_of`.
        """
        self._alive = [track for track in self._alive if now_s - track.seen_s <= self._gap_s]
        if not len(boxes_N4):
            return []
        boxes_N4 = boxes_N4.astype(np.float64)
        centre_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
        size_N = np.maximum(boxes_N4[:, 2:] - boxes_N4[:, :2], 1).max(axis=1)
        cost_TN = np.array([track.cost(now_s, centre_N2, size_N, look_NP, scene_C) for track in self._alive])
        found = {face: self._alive[place] for place, face in _pairs(cost_TN)}
        for face in range(len(boxes_N4)):
            seen = now_s, centre_N2[face], float(size_N[face]), look_NP[face], scene_C
            if face in found:
                found[face].go_on(*seen)
            else:
                found[face] = Track(self._num, *seen, speed_2=np.zeros(2))
                self._num += 1
        others = [track for track in self._alive if track not in found.values()]
        self._alive = [*others, *found.values()][-MAX_ALIVE:]
        return [found[face].number for face in range(len(boxes_N4))]


def is_cut(before_C: Scene, after_C: npt.NDArray[np.uint8]) -> bool:
    """True if two frames, in a few pixels each, are of different shots or views."""
    before_C, after_C = before_C.astype(np.float64), after_C.astype(np.float64)
    if np.abs(after_C - before_C).mean() < SCENE_STEP:
        return False
    before_C, after_C = before_C - before_C.mean(), after_C - after_C.mean()
    lengths = float(np.linalg.norm(before_C) * np.linalg.norm(after_C))
    return bool(before_C @ after_C < SCENE_LIKENESS * lengths) or lengths == 0


def _pairs(cost_TN: Floats) -> list[tuple[int, int]]:
    """As many pairs as possible, of the least total cost."""
    if not len(cost_TN):
        return []
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    never = 1e3  # more than all pairs of a frame can cost
    pairs = zip(*linear_sum_assignment(np.minimum(cost_TN, never)), strict=True)
    return [(int(row), int(column)) for row, column in pairs if cost_TN[row, column] < never]
