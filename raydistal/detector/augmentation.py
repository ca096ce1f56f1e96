"""Random variants of a face crop for training (thesis 5.1.3.4): mirrored, turned, recoloured; robust: degraded too.

OpenCV on uint8, one warp and one colour matrix per crop: with one core per feeder, every pass over the pixels counts.
"""

import math

import cv2
import numpy as np

from raydistal.faces import crop

MAX_TURN_DEG = 10.0  # the thesis's
# The thesis names brightness, contrast, saturation and hue, but no strengths: these are ours.
JITTER = 0.2  # brightness, contrast and saturation are scaled by 1 +- this
MAX_HUE_TURNS = 0.05

# Also ours: what a video may suffer between its maker and its viewer.
DEGRADE_PROBABILITY = 0.3  # of each kind, independently
MIN_SCALE = 0.4  # of the side of the crop
BLUR_SIGMA_PX = (0.4, 2.0)
JPEG_QUALITY = (30, 95)

YIQ_FROM_RGB = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
RGB_FROM_YIQ = np.linalg.inv(YIQ_FROM_RGB)


def augment(crop_HWC: crop.Image, rng: np.random.Generator, robust: bool = False) -> crop.Image:
    """A random variant of a crop, of its size. The same crop and state of `rng` give the same variant.

    Args:
        crop_HWC: RGB.
        rng: each call draws the same number of values from it.
        robust: also lowers the resolution, blurs and compresses some crops, in this order.
    """
    is_mirrored = rng.random() < 0.5
    angle_deg = rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG)
    brightness, contrast, saturation = rng.uniform(1 - JITTER, 1 + JITTER, 3)
    hue_turns = rng.uniform(-MAX_HUE_TURNS, MAX_HUE_TURNS)
    varied_HWC = recolour(turn(crop_HWC, angle_deg, is_mirrored), brightness, contrast, saturation, hue_turns)
    return degrade(varied_HWC, rng) if robust else varied_HWC


def turn(crop_HWC: crop.Image, angle_deg: float, is_mirrored: bool) -> crop.Image:
    """Mirrored left to right, then turned about its centre, counterclockwise; the corners are filled by reflection."""
    height_px, width_px = crop_HWC.shape[:2]
    matrix_23 = cv2.getRotationMatrix2D(((width_px - 1) / 2, (height_px - 1) / 2), angle_deg, 1.0)
    if is_mirrored:  # x becomes width - 1 - x first
        matrix_23[:, 2] += matrix_23[:, 0] * (width_px - 1)
        matrix_23[:, 0] *= -1
    turned_HWC = cv2.warpAffine(
        crop_HWC, matrix_23, (width_px, height_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(turned_HWC, np.uint8)


def recolour(
    crop_HWC: crop.Image, brightness: float, contrast: float, saturation: float, hue_turns: float
) -> crop.Image:
    """Colour jitter as one affine map of RGB, clipped once.

    Saturation scales and hue turns the chroma plane of YIQ, which leaves luma and grey as they are; contrast scales
    the distance from the mean luma; brightness scales everything.
    """
    angle = 2 * math.pi * hue_turns
    cosine, sine = saturation * math.cos(angle), saturation * math.sin(angle)
    chroma_33 = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    mean_luma = YIQ_FROM_RGB[0] @ cv2.mean(crop_HWC)[:3]
    matrix_34 = np.empty((3, 4))
    matrix_34[:, :3] = brightness * contrast * (RGB_FROM_YIQ @ chroma_33 @ YIQ_FROM_RGB)
    matrix_34[:, 3] = brightness * (1 - contrast) * mean_luma
    return np.asarray(cv2.transform(crop_HWC, matrix_34), np.uint8)


def degrade(crop_HWC: crop.Image, rng: np.random.Generator) -> crop.Image:
    """Lower resolution, blur and JPEG compression, each at random and independent of the others."""
    is_shrunk, is_blurred, is_compressed = rng.random(3) < DEGRADE_PROBABILITY
    scale, sigma_px = rng.uniform(MIN_SCALE, 1), rng.uniform(*BLUR_SIGMA_PX)
    quality = int(rng.integers(*JPEG_QUALITY, endpoint=True))
    height_px, width_px = crop_HWC.shape[:2]
    if is_shrunk:
        small_px = max(1, round(scale * width_px)), max(1, round(scale * height_px))
        small_HWC = cv2.resize(crop_HWC, small_px, interpolation=cv2.INTER_AREA)
        crop_HWC = np.asarray(cv2.resize(small_HWC, (width_px, height_px), interpolation=cv2.INTER_LINEAR), np.uint8)
    if is_blurred:
        crop_HWC = np.asarray(cv2.GaussianBlur(crop_HWC, (0, 0), sigma_px), np.uint8)
    if is_compressed:
        crop_HWC = crop.decode(crop.encode(crop_HWC, f"jpeg:{quality}"), width_px)
    return crop_HWC
