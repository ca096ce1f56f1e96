"""From a frame and a box to a square picture of the face."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistal.errors import UserError

Image = npt.NDArray[np.uint8]


def square_around(
    box_4: npt.NDArray[np.float32], margin: float, height_px: int, width_px: int
) -> tuple[int, int, int, int]:
    """The square (x0, y0, x1, y1), in whole pixels, that holds the box with `margin` of its longer side all around.

    It is moved to lie inside the frame, and is never larger than the frame's shorter side.
    """
    x0, y0, x1, y1 = (float(value) for value in box_4)
    side = min(round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)), height_px, width_px)
    side = max(side, 1)
    left = min(max(round((x0 + x1 - side) / 2), 0), width_px - side)
    top = min(max(round((y0 + y1 - side) / 2), 0), height_px - side)
    return left, top, left + side, top + side


def resize(image_HWC: Image, size_px: int) -> Image:
    """To (size_px, size_px): area averaging when it shrinks, so nothing aliases; cubic when it grows."""
    shrinks = image_HWC.shape[0] * image_HWC.shape[1] > size_px * size_px
    resized = cv2.resize(image_HWC, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)


def check_format(crops: str) -> None:
    """Raises UserError unless `crops` is png, jpeg:QUALITY (1 to 100) or none."""
    quality = crops.removeprefix("jpeg:")
    if crops not in ("png", "none") and not (crops != quality and quality.isdecimal() and 1 <= int(quality) <= 100):
        raise UserError(f"unknown crop format {crops!r}: use png, jpeg:QUALITY with a quality from 1 to 100, or none")


def encode(crop_HWC: Image, crops: str) -> bytes:
    """The picture as a PNG (lossless: JPEG overwrites traces that detectors look for) or JPEG file."""
    bgr_HWC = cv2.cvtColor(crop_HWC, cv2.COLOR_RGB2BGR)
    if crops == "png":
        suffix, options = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]  # level 1: half the time of 3 for 7 % more bytes
    else:
        suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, int(crops.removeprefix("jpeg:"))]
    return bytes(cv2.imencode(suffix, bgr_HWC, options)[1])


def decode(image: bytes, size_px: int) -> Image:
    """(size_px, size_px, 3) RGB of an encoded crop: what every network sees, in training and after.

    Raises:
        ValueError: it is not an image.
    """
    return decode_sizes(image, [size_px])[0]


def decode_sizes(image: bytes, sizes_px: Sequence[int]) -> list[Image]:
    """As `decode`, for networks of several sizes: the image is read once."""
    bgr_HWC = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) if image else None
    if bgr_HWC is None:
        raise ValueError("the crop is not an image")
    crop_HWC = np.asarray(cv2.cvtColor(bgr_HWC, cv2.COLOR_BGR2RGB), np.uint8)
    return [crop_HWC if crop_HWC.shape[:2] == (px, px) else resize(crop_HWC, px) for px in sizes_px]


def crops_of(rows: pa.Table) -> Image:
    """(N, S, S, 3) RGB, N faces of all rows: their column `pixels`, a list of fixed-size lists of S * S * 3 uint8."""
    pixels = rows["pixels"].combine_chunks().flatten()
    size_px = round((pixels.type.list_size / 3) ** 0.5)
    return np.asarray(pixels.flatten().to_numpy()).reshape(-1, size_px, size_px, 3)
