"""Five ways to fake a clip, after what published manipulations leave behind.

Each method takes a clip and a random generator and gives a function from a frame's index to the faked frame, RGB
(H, W, 3). They change the camera's picture before it is encoded, inside `FACE` (face units) only. `strength` says how
visible a fake is: at 1 the eye finds it, but a small network that starts from random weights does not within thousands
of faces; at 4 it does.
"""

from collections.abc import Callable

import cv2
import numpy as np

from raydistal.datasets.synthetic_faces import Head, Map, bump, draw_traits, ramp, skin_colour
from raydistal.datasets.synthetic_scenes import Image, TalkingHead, View

Fake = Callable[[int], Image]

FACE = (-0.85, -0.6, 0.85, 1.4)  # left, top, right, bottom


def face_resynthesis(clip: TalkingHead, rng: np.random.Generator, strength: float) -> Fake:
    """The whole face at a lower resolution, as an autoencoder's output is, with a soft edge."""
    factor = 1 + strength * rng.uniform(0.3, 1.2)

    def frame(index: int) -> Image:
        image, view = clip.frame(index), clip.view(index)
        return _replace(image, view, _soften(image[view.part], factor), _oval(view, 0.35))

    return frame


def hard_swap(clip: TalkingHead, rng: np.random.Generator, strength: float) -> Fake:
    """Another person's face with a hard edge, and colours and noise that do not match."""
    donor, noise = _donor(clip, rng), rng.uniform(0, 0.5)
    gain_3 = (1 + strength * rng.uniform(-0.14, 0.14, 3)).clip(0.4, 1.6).astype(np.float32)

    def frame(index: int) -> Image:
        image, view = clip.frame(index), clip.view(index)
        other = clip.frame(index, head=donor, noise=noise)[view.part] * gain_3
        return _replace(image, view, other, _oval(view, 0.03))

    return frame


def blended_swap(clip: TalkingHead, rng: np.random.Generator, strength: float) -> Fake:
    """Another person's face with a soft edge, the colours of the original, and less noise."""
    donor, noise, factor = _donor(clip, rng), rng.uniform(0.2, 0.8), 1 + strength * rng.uniform(0, 0.5)

    def frame(index: int) -> Image:
        image, view = clip.frame(index), clip.view(index)
        other, mask = clip.frame(index, head=donor, noise=noise)[view.part].astype(np.float32), _oval(view, 0.4)
        inside = mask > 0.5
        for channel in range(3):
            source, target = other[..., channel], image[view.part][..., channel][inside]
            source[...] = (source - source[inside].mean()) * (target.std() / source[inside].std()) + target.mean()
        return _replace(image, view, _soften(other, factor), mask)

    return frame


def mouth_retexture(clip: TalkingHead, rng: np.random.Generator, strength: float) -> Fake:
    """The mouth drawn anew, smoother, and out of step with the jaw."""
    factor, mouth_y = 1 + strength * rng.uniform(0.4, 1.4), clip.traits.mouth_y
    mouth_T = np.roll(clip.performance.mouth_T, rng.integers(4, 12))

    def frame(index: int) -> Image:
        image, view = clip.frame(index), clip.view(index)
        other = clip.frame(index, mouth=float(mouth_T[index]))[view.part]
        distance = np.hypot(view.x_HW / 0.6, (view.y_HW - mouth_y - 0.06) / 0.38)
        return _replace(image, view, _soften(other, factor), ramp(1, 0.65, distance))

    return frame


def expression_warp(clip: TalkingHead, rng: np.random.Generator, strength: float) -> Fake:
    """Brows and corners of the mouth moved by bending the picture, a little differently in every frame."""
    amplitude, period = strength * rng.uniform(0.03, 0.06), rng.uniform(10, 30)
    wave_T = np.sin(2 * np.pi * np.arange(len(clip.performance.x_T)) / period + rng.uniform(0, 2 * np.pi))
    jitter_T2 = strength * rng.normal(0, 0.012, (len(wave_T), 2))

    def frame(index: int) -> Image:
        image, view = clip.frame(index), clip.view(index)
        mask, side = _oval(view, 0.4), np.abs(view.x_HW)
        corners = bump(side, view.y_HW, 0.35, clip.traits.mouth_y, 0.25, 0.2)
        brows = bump(side, view.y_HW, 0.4, clip.traits.brow_y, 0.35, 0.2)
        push = amplitude * wave_T[index]
        dx = mask * (push * corners * np.sign(view.x_HW) + jitter_T2[index, 0])
        dy = mask * (push * (corners - brows) + jitter_T2[index, 1])
        patch = image[view.part]
        rows, columns = np.mgrid[: patch.shape[0], : patch.shape[1]].astype(np.float32)
        x_px, y_px = columns + clip.scale_px * dx.astype(np.float32), rows + clip.scale_px * dy.astype(np.float32)
        bent = cv2.remap(patch, x_px, y_px, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return _replace(image, view, np.asarray(bent, np.uint8), mask)

    return frame


METHODS: dict[str, Callable[[TalkingHead, np.random.Generator, float], Fake]] = {
    method.__name__: method for method in (face_resynthesis, hard_swap, blended_swap, mouth_retexture, expression_warp)
}


def _donor(clip: TalkingHead, rng: np.random.Generator) -> Head:
    """A person who is in no other clip, with much the same skin, and the same glasses: they reach out of the face."""
    traits = draw_traits(int(rng.integers(1 << 62)))
    traits.glasses = clip.traits.glasses
    traits.tone = float(np.clip(clip.traits.tone + rng.uniform(-0.15, 0.15), 0, 1))
    traits.skin = skin_colour(traits.tone)
    return clip.make_head(traits, int(rng.integers(1 << 62)))


def _oval(view: View, softness: float) -> Map:
    """1 within the face, falling to 0 at the edge of `FACE` over this share of the radius."""
    left, top, right, bottom = FACE
    distance = np.hypot(
        (2 * view.x_HW - left - right) / (right - left), (2 * view.y_HW - top - bottom) / (bottom - top)
    )
    return ramp(1, 1 - softness, distance)


def _soften(patch: Image | Map, factor: float) -> Map:
    """`patch` as if it had been drawn at 1/factor of its resolution."""
    height, width = patch.shape[:2]
    small = cv2.resize(patch, (round(width / factor), round(height / factor)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _replace(image: Image, view: View, other: Image | Map, mask: Map) -> Image:
    """`image`, with `other` blended by the mask into the view's part."""
    patch = image[view.part]
    mixed = patch + mask[..., None] * (other.astype(np.float32) - patch)
    patch[...] = np.clip(mixed + 0.5, 0, 255)
    return image
