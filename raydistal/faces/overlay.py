"""A heatmap laid over its face.

The face shows through in grey, so that all colour is heat. The colours are inferno's, at the same opacity everywhere:
hotter is brighter anywhere on any face, for every kind of colour vision and on paper.
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from raydistal.faces.crop import Image

OPACITY = 0.6


def overlay(face_HWC: Image, heat_hw: npt.NDArray[np.floating[Any]]) -> Image:
    """The (H, W, 3) RGB face with heat from 0 to 1, (h, w) of any resolution, drawn smoothly over all of it."""
    height, width = face_HWC.shape[:2]
    smooth_HW = cv2.resize(heat_hw.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    levels_HW = (255 * np.clip(smooth_HW, 0, 1)).round().astype(np.uint8)
    rgb_HWC = cv2.applyColorMap(levels_HW, cv2.COLORMAP_INFERNO)[..., ::-1]
    grey_HW1 = cv2.cvtColor(face_HWC, cv2.COLOR_RGB2GRAY)[..., None]
    return np.asarray((OPACITY * rgb_HWC + (1 - OPACITY) * grey_HW1).round(), np.uint8)
