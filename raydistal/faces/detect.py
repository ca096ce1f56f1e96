"""Where the faces of a frame are.

Each detector takes a `Frame` and gives boxes_N4 (float32, xyxy in source pixels of the upright frame) and score_N
(float32; its meaning is the detector's), in no particular order.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from raydistal.errors import UserError
from raydistal.video.decode import Frame

Boxes = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]

SEARCH_WIDTH_PX = 640  # full passes look at a frame scaled down to this: 1/8 of the cost of 1080p, and IoU as good
NEAR_SIZE_PX = 240  # passes near a known face


class Haar:
    """OpenCV's frontal-face cascade alt2 (far fewer false faces than "default"). Score: number of agreeing windows.

    A frame in which the quick search finds nothing is searched again, more finely and with its local contrast
    equalised: that finds faces in the dark and at odd exposures.

    Args:
        scale_factor: step between the sizes searched, above 1; larger is faster and finds less.
        min_neighbors: agreeing windows that make a face; larger finds fewer false ones.
        min_face: smallest face, as a fraction of the frame's height.
    """

    def __init__(self, scale_factor: float = 1.2, min_neighbors: int = 5, min_face: float = 0.1) -> None:
        self.scale_factor, self.min_neighbors, self.min_face = scale_factor, min_neighbors, min_face
        self._cascade = cv2.CascadeClassifier(
            str(Path(cv2.__file__).with_name("data") / "haarcascade_frontalface_alt2.xml")
        )
        self._equalise = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(4, 4))
        cv2.setNumThreads(1)

    def __call__(self, frame: Frame) -> tuple[Boxes, Scores]:
        """All faces of the frame."""
        luma_HW = frame.luma()
        scale = min(1.0, SEARCH_WIDTH_PX / luma_HW.shape[1])
        smallest = round(self.min_face * luma_HW.shape[0] * scale)
        boxes_N4, score_N = self._search(luma_HW, scale, self.scale_factor, self.min_neighbors, smallest, 0)
        if len(boxes_N4):
            return boxes_N4, score_N
        factor = 1 + (self.scale_factor - 1) / 2
        return self._search(luma_HW, scale, factor, self.min_neighbors, smallest, 0, equalise=True)

    def near(self, frame: Frame, box_4: Boxes) -> tuple[Boxes, Scores]:
        """Faces of 0.6 to 1.6 times the size of a known one, at most one face width away: a third of a full pass."""
        luma_HW = frame.luma()
        x0, y0, x1, y1 = box_4
        side = x1 - x0
        left, top = max(0, int(x0 - side)), max(0, int(y0 - side))
        part_HW = luma_HW[top : int(y1 + side), left : int(x1 + side)]
        if not part_HW.size:  # the video changed its size
            return _no_faces()
        scale = min(1.0, NEAR_SIZE_PX / max(part_HW.shape))
        smallest, largest = round(0.6 * side * scale), round(1.6 * side * scale)
        boxes_N4, score_N = self._search(part_HW, scale, 1.1, 3, smallest, largest)
        return boxes_N4 + np.array([left, top, left, top], np.float32), score_N

    def _search(
        self,
        luma_HW: npt.NDArray[np.uint8],
        scale: float,
        factor: float,
        neighbors: int,
        smallest: int,
        largest: int,
        equalise: bool = False,
    ) -> tuple[Boxes, Scores]:
        size = (max(1, round(luma_HW.shape[1] * scale)), max(1, round(luma_HW.shape[0] * scale)))
        small_HW = cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA) if scale < 1 else luma_HW
        if equalise:
            small_HW = self._equalise.apply(small_HW)
        found_N4, score_N = self._cascade.detectMultiScale2(
            np.ascontiguousarray(small_HW), factor, neighbors, minSize=(smallest, smallest), maxSize=(largest, largest)
        )
        if not len(found_N4):
            return _no_faces()
        xywh_N4 = np.asarray(found_N4, np.float32) / np.float32(scale)
        boxes_N4 = np.hstack([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]])
        return boxes_N4, np.asarray(score_N, np.float32).reshape(-1)


class YuNet:
    """OpenCV's YuNet network from a user's ONNX file (face_detection_yunet_*.onnx). Score: its confidence.

    Raises:
        UserError: the file is not there or is not a YuNet model.
    """

    def __init__(self, onnx_path: str, min_face: float = 0.1) -> None:
        self.min_face = min_face
        if not Path(onnx_path).is_file():
            raise UserError(f"no YuNet model at {onnx_path}: give the path of an ONNX file that every node can read")
        try:
            self._network = cv2.FaceDetectorYN.create(onnx_path, "", (SEARCH_WIDTH_PX, SEARCH_WIDTH_PX))
        except cv2.error as error:
            raise UserError(f"{onnx_path} is not a YuNet model: {error}") from error
        cv2.setNumThreads(1)

    def __call__(self, frame: Frame) -> tuple[Boxes, Scores]:
        """All faces of the frame that are at least `min_face` of its height."""
        height_px, width_px = frame.shape
        scale = min(1.0, SEARCH_WIDTH_PX / width_px)
        size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
        self._network.setInputSize(size)
        small_HWC = cv2.resize(frame.rgb(), size, interpolation=cv2.INTER_AREA)
        _, found_N15 = self._network.detect(cv2.cvtColor(small_HWC, cv2.COLOR_RGB2BGR))
        if found_N15 is None:
            return _no_faces()
        xywh_N4 = found_N15[:, :4] / scale
        boxes_N4 = np.hstack([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]])
        large = boxes_N4[:, 3] - boxes_N4[:, 1] >= self.min_face * height_px
        return boxes_N4[large].astype(np.float32), found_N15[large, 14].astype(np.float32)


def whole_frame(frame: Frame) -> tuple[Boxes, Scores]:
    """No detection: the frame is the face (datasets of cropped faces; the paper's frames as they are). Score 1."""
    height_px, width_px = frame.shape
    return np.array([[0, 0, width_px, height_px]], np.float32), np.ones(1, np.float32)


class LargestFace:
    """The largest face of each of a video's frames, one frame after the other.

    With `Haar`, looks near the previous face first and searches the whole frame when that fails, and on every
    `full_every`-th frame in any case, so that a larger face that appears is not missed for long.
    """

    def __init__(self, detect: Callable[[Frame], tuple[Boxes, Scores]], full_every: int = 5) -> None:
        self._detect, self._full_every = detect, full_every
        self._num_seen = 0
        self._last_4: Boxes | None = None
        self.searched: tuple[Boxes, Scores] | None = None
        """All faces of the last frame, if all of it was searched."""

    def __call__(self, frame: Frame) -> tuple[Boxes, float] | None:
        """box_4 and score of the frame's largest face, None if it shows none."""
        self.searched = None
        boxes_N4, score_N = _no_faces()
        if self._last_4 is not None and isinstance(self._detect, Haar) and self._num_seen % self._full_every:
            boxes_N4, score_N = self._detect.near(frame, self._last_4)
        if not len(boxes_N4):
            boxes_N4, score_N = self.searched = self._detect(frame)
        self._num_seen += 1
        if not len(boxes_N4):
            self._last_4 = None
            return None
        largest = int(np.argmax((boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])))
        self._last_4 = boxes_N4[largest]
        return boxes_N4[largest], float(score_N[largest])


def _no_faces() -> tuple[Boxes, Scores]:
    return np.empty((0, 4), np.float32), np.empty(0, np.float32)
