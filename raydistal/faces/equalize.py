"""All frames in one size and one encoding, so that the format of a file does not give its class away.

Where the real pictures are large TIFF files and the fakes small PNG or JPEG files, a detector that knows nothing of
faces tells them apart by size and by traces of compression. So each frame is cut to its centre square, scaled down to
one size, and compressed and decompressed as JPEG of one quality, before anything looks at it. What a file has already
lost stays lost: choose a quality no higher than that of the worst files. Smaller frames are refused, as enlarging
leaves a trace.
"""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from raydistal.errors import DecodeError, UserError
from raydistal.faces.crop import decode, encode, resize
from raydistal.video.decode import Frame


class Equalizer(NamedTuple):
    """The size and the JPEG quality that all frames are brought to."""

    size_px: int
    quality: int

    @classmethod
    def parse(cls, text: str) -> "Equalizer":
        """From SIZE:QUALITY, such as 512:90. Raises UserError."""
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if not match or not 32 <= int(match[1]) <= 8192 or not 1 <= int(match[2]) <= 100:
            raise UserError(
                f"--equalize {text!r} must be SIZE:QUALITY, such as 512:90: from 32 to 8192 pixels, JPEG quality from "
                "1 to 100"
            )
        return cls(int(match[1]), int(match[2]))

    def __call__(self, frame: Frame) -> Frame:
        """The frame as a square of `size_px`. Raises DecodeError if it is smaller."""
        rgb_HWC = frame.rgb()
        left, top, side = _centre(rgb_HWC.shape[0], rgb_HWC.shape[1])
        if side < self.size_px:
            raise DecodeError(
                f"its shorter side of {side} pixels is less than --equalize {self.size_px}: enlarging it would show"
            )
        square_HWC = resize(rgb_HWC[top : top + side, left : left + side], self.size_px)
        square_HWC = decode(encode(square_HWC, f"jpeg:{self.quality}"), self.size_px)
        return Frame(frame.index, frame.pts_s, VideoFrame.from_ndarray(square_HWC, format="rgb24"))

    def to_source(self, box_4: npt.NDArray[np.float32], height_px: int, width_px: int) -> npt.NDArray[np.float32]:
        """A box in the square as one in the source frame of this size."""
        left, top, side = _centre(height_px, width_px)
        return box_4 * np.float32(side / self.size_px) + np.array([left, top, left, top], np.float32)

    def to_square(self, box_4: npt.NDArray[np.float32], height_px: int, width_px: int) -> npt.NDArray[np.float32]:
        """What `to_source` made from a box, back: whole pixels exactly, fractions to within rounding."""
        left, top, side = _centre(height_px, width_px)
        square_4 = (box_4.astype(np.float64) - [left, top, left, top]) / np.float32(side / self.size_px)
        whole_4 = square_4.round().astype(np.float32)
        is_whole = np.array_equal(self.to_source(whole_4, height_px, width_px), box_4)
        return whole_4 if is_whole else square_4.astype(np.float32)


def _centre(height_px: int, width_px: int) -> tuple[int, int, int]:
    """Left, top and side of the centre square."""
    side = min(height_px, width_px)
    return (width_px - side) // 2, (height_px - side) // 2, side
