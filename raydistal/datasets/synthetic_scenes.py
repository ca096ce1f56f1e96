"""A clip of a talking head: a `Head` that moves before a room, in changing light, seen by a camera."""

import dataclasses
from types import SimpleNamespace

import cv2
import numpy as np
import numpy.typing as npt

from raydistal.datasets.synthetic_faces import BOTTOM, LEFT, RIGHT, TOP, Head, Map, bump, draw_traits, mottle, ramp

Image = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Performance:
    """What the head does in each of T frames; places in face units, angles in radians."""

    x_T: Map
    y_T: Map
    size_T: Map
    roll_T: Map
    yaw_T: Map
    pitch_T: Map
    mouth_T: Map
    smile_T: Map
    blink_T: Map
    gaze_T: Map
    light_T3: Map
    brightness_T: Map


def perform(rng: np.random.Generator, num_frames: int, fps: float) -> Performance:
    """A few seconds of talk: drifting, nodding, blinking, syllables with pauses, light that changes slowly."""
    time_s = np.arange(num_frames, dtype=np.float32) / fps

    def sway(amplitude: float, period_s: float) -> Map:
        """A smooth wandering within about +-amplitude."""
        phases = rng.uniform(0, 2 * np.pi, 3)
        speeds = np.array([1, 1.7, 2.9])
        waves_T3 = np.sin(2 * np.pi / period_s * time_s[:, None] * speeds + phases) / speeds
        return np.asarray(amplitude / 1.4 * waves_T3.sum(1), np.float32)

    blinks_s = np.cumsum(rng.uniform(1.2, 4, 1 + int(time_s[-1]))) - 1
    blink_T = np.exp(-(((time_s[:, None] - blinks_s) / 0.07) ** 2)).max(1)
    talk_T = np.abs(sway(1, rng.uniform(0.45, 0.7))) * ramp(-0.5, 0.1, sway(1, 3))
    light_x, light_y = rng.uniform(-0.6, 0.6) + sway(0.15, 6), rng.uniform(-0.75, -0.35) + sway(0.05, 5)
    light_T3 = np.stack([light_x, light_y, np.full_like(time_s, 0.8)], -1)
    return Performance(
        x_T=sway(0.18, rng.uniform(3, 6)),
        y_T=sway(0.1, rng.uniform(2, 5)),
        size_T=1 + sway(0.03, 5),
        roll_T=sway(0.07, rng.uniform(2, 5)) + np.float32(rng.uniform(-0.04, 0.04)),
        yaw_T=sway(0.16, rng.uniform(2, 4)) + np.float32(rng.uniform(-0.05, 0.05)),
        pitch_T=sway(0.08, rng.uniform(1.5, 3)),
        mouth_T=np.clip(talk_T, 0, 1),
        smile_T=sway(0.8, 2),
        blink_T=np.clip(blink_T, 0, 1).astype(np.float32),
        gaze_T=sway(0.6, 3),
        light_T3=light_T3 / np.linalg.norm(light_T3, axis=-1, keepdims=True),
        brightness_T=1 + sway(0.04, 4),
    )


@dataclasses.dataclass(frozen=True)
class View:
    """Where a head appears in a frame: a part of it, and for each of its pixels the face units shown there."""

    part: tuple[slice, slice]
    x_HW: Map
    y_HW: Map


class TalkingHead:
    """A clip of `num_frames` frames that is drawn frame by frame, in any order.

    The same numbers give the same person, motion and room at any size. `noise` is the standard deviation of the
    camera's noise in grey levels of 255.
    """

    def __init__(
        self, identity: int, clip: int, width_px: int, height_px: int, num_frames: int, fps: float, noise: float
    ) -> None:
        rng = np.random.default_rng([identity, clip])
        self.traits = draw_traits(identity)
        self.performance = perform(rng, num_frames, fps)
        self.scale_px = float(rng.uniform(0.165, 0.205)) * min(height_px, width_px)
        self._centre_px = np.array([width_px * rng.uniform(0.4, 0.6), height_px * 0.44 + 0.1 * self.scale_px])
        self._blur_px = float(rng.uniform(0.35, 0.7)) * max(1, height_px / 480)
        self._tint_3 = rng.uniform(0.94, 1.06, 3).astype(np.float32) * np.float32(rng.uniform(0.85, 1.1))
        self._offsets_T2 = rng.integers(0, 64, (num_frames, 2))
        shape = (height_px, width_px)
        y, x = np.mgrid[:height_px, :width_px].astype(np.float32)
        x, y = (x - self._centre_px[0]) / self.scale_px, (y - self._centre_px[1]) / self.scale_px
        room_rng, body_rng = rng.spawn(2)
        self._room = draw_room(room_rng, shape)
        self._body_top = max(0, int(self._centre_px[1]))  # the head hides what is above
        below = slice(self._body_top, None)
        self._body = draw_body(body_rng, self.traits.skin, x[below].astype(np.float32), y[below].astype(np.float32))
        self.head = self.make_head(self.traits, clip)
        grain = rng.standard_normal((height_px + 64, width_px + 64, 3), np.float32)
        self._noise = np.float32(0.8 * noise) * (grain + grain.mean(-1, keepdims=True))

    def make_head(self, traits: SimpleNamespace, seed: int) -> Head:
        """Another person's head at this clip's size."""
        # Above 140 pixels per unit (a 720p frame) there is no more to see, only more to compute.
        return Head(traits, min(1.15 * self.scale_px, 140), np.random.default_rng(seed))

    def view(self, index: int) -> View:
        """Where frame `index` shows the head."""
        p, unit = self.performance, self.scale_px * float(self.performance.size_T[index])
        cos, sin = unit * np.cos(p.roll_T[index]), unit * np.sin(p.roll_T[index])
        centre = self._centre_px + self.scale_px * np.array([p.x_T[index], p.y_T[index]])
        corners_42 = np.array([(x, y) for x in (LEFT, RIGHT) for y in (TOP, BOTTOM)]) @ [[cos, sin], [-sin, cos]]
        corners_42 += centre
        height, width = self._room.shape[:2]
        (x0, y0), (x1, y1) = corners_42.min(0), corners_42.max(0)
        part = (slice(max(0, int(y0)), min(height, int(y1) + 2)), slice(max(0, int(x0)), min(width, int(x1) + 2)))
        dy, dx = np.mgrid[part].astype(np.float32)
        dx, dy = (dx - np.float32(centre[0])) / unit**2, (dy - np.float32(centre[1])) / unit**2
        x, y = cos * dx + sin * dy, cos * dy - sin * dx
        relief = self._sample(self.head.relief, x, y)  # what stands out moves more as the head turns
        x = x - p.yaw_T[index] * relief
        y = y - p.pitch_T[index] * relief
        jaw = 0.1 * p.mouth_T[index] * ramp(0.85, 1.35, y)
        return View(part, x, y - jaw)

    def _sample(self, picture: Map, x: Map, y: Map) -> Map:
        """`picture` of a head at places in face units; 0 outside it."""
        unit = self.head.scale_px
        x_px, y_px = (x - LEFT) * unit, (y - TOP) * unit
        return np.asarray(cv2.remap(picture, x_px, y_px, cv2.INTER_LINEAR), np.float32)

    def frame(self, index: int, head: Head | None = None, mouth: float | None = None, noise: float = 1) -> Image:
        """RGB (H, W, 3). Another person's `head`, another opening of the `mouth`, or `noise` times as much noise."""
        p, view = self.performance, self.view(index)
        image = self._background(index)
        rgba = (head or self.head).draw(
            mouth=float(p.mouth_T[index]) if mouth is None else mouth,
            smile=float(p.smile_T[index]),
            blink=float(p.blink_T[index]),
            gaze=float(p.gaze_T[index]),
            light_3=p.light_T3[index],
        )
        rgba = self._sample(rgba, view.x_HW, view.y_HW)
        shown = image[view.part]
        shown[...] = shown * (1 - rgba[..., 3:]) + rgba[..., :3]
        return self._expose(image, index, noise)

    def empty_frame(self, index: int) -> Image:
        """RGB (H, W, 3): the room without anybody."""
        return self._expose(self._room, index, 1)

    def _background(self, index: int) -> Map:
        """The room and a body that follows the head's movements by a third."""
        p = self.performance
        dx, dy = (0.35 * self.scale_px * float(place_T[index]) for place_T in (p.x_T, p.y_T))
        shift, size = np.array([[1, 0, dx], [0, 1, dy]]), self._body.shape[1::-1]
        body = cv2.warpAffine(self._body, shift, size, borderMode=cv2.BORDER_REPLICATE)
        image = self._room.copy()
        below = image[self._body_top :]
        below *= 1 - body[..., 3:]
        below += body[..., :3]
        return image

    def _expose(self, image: Map, index: int, noise: float) -> Image:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), self._blur_px), np.float32)
        image *= self._tint_3 * (255 * self.performance.brightness_T[index])
        top, left = self._offsets_T2[index]
        grain = self._noise[top : top + image.shape[0], left : left + image.shape[1]]
        return np.asarray(cv2.addWeighted(image, 1, grain, noise, 0, dtype=cv2.CV_8U), np.uint8)


def draw_room(rng: np.random.Generator, shape: tuple[int, int]) -> Map:
    """RGB (H, W, 3): a wall with light from one side and things on it, out of focus."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x / width, y / height
    wall = np.ones((*shape, 3), np.float32) * rng.uniform(0.3, 0.75) * rng.uniform(0.92, 1.06, 3).astype(np.float32)
    for _ in range(rng.integers(2, 7)):
        left, top = rng.uniform(-0.1, 0.95) * width, rng.uniform(-0.1, 0.8) * height
        right, bottom = left + rng.uniform(0.06, 0.35) * width, top + rng.uniform(0.1, 0.7) * height
        colour = rng.uniform(0.1, 0.85) * rng.uniform(0.8, 1.15, 3)
        corners = ((int(left), int(top)), (int(right), int(bottom)))
        cv2.rectangle(wall, *corners, colour.tolist(), -1)
        cv2.rectangle(wall, *corners, (0.6 * colour).tolist(), max(1, height // 80))
    for _ in range(rng.integers(0, 3)):
        lamp = bump(x * width / height, y, rng.uniform(0, 1.3), rng.uniform(0, 0.5), *rng.uniform(0.05, 0.2, 2))
        wall += 0.3 * lamp[..., None] * np.array([1, 0.9, 0.7], np.float32)
    wall = np.asarray(cv2.GaussianBlur(wall, (0, 0), rng.uniform(0.006, 0.02) * height), np.float32)
    slope = rng.uniform(-0.3, 0.3) * (x - 0.5) + rng.uniform(-0.25, 0.1) * (y - 0.5)
    grain = 0.04 * mottle(rng, shape, height / 4) + 0.02 * mottle(rng, shape, height / 40)
    return np.asarray(np.clip(wall * (1 + grain + slope)[..., None], 0.02, 1), np.float32)


def draw_body(rng: np.random.Generator, skin_3: Map, x: Map, y: Map) -> Map:
    """Neck and shoulders at places in face units: RGBA (H, W, 4), colours multiplied by alpha."""
    side = np.abs(x)
    neck_half = 0.58 + 0.25 * ramp(1.5, 2.0, y)
    neck_alpha = ramp(neck_half + 0.03, neck_half - 0.03, side) * ramp(0.2, 0.4, y)
    shade = (1 - 0.3 * (side / 0.65) ** 2) * (0.42 + 0.4 * ramp(1.25, 1.9, y))
    neck = np.clip(shade, 0.15, 1)[..., None] * skin_3
    shoulder_y = 1.78 + 0.16 * side**1.5 + (2 * np.clip(side - 1.9, 0, None)) ** 2
    collar = np.clip(1 - side / 0.62, 0, 1) ** rng.choice([0.5, 1])  # round or pointed
    collar_y = 1.7 + rng.uniform(0.1, 0.6) * collar
    alpha = ramp(shoulder_y - 0.03, shoulder_y + 0.03, y) * ramp(collar_y - 0.02, collar_y + 0.02, y)
    colour = rng.uniform(0.08, 0.75) * rng.uniform(0.6, 1.3, 3)
    stripes = max(0, rng.uniform(-0.3, 0.13)) * np.sin(rng.uniform(12, 25) * y)
    folds = 0.05 * mottle(rng, (x.shape[0], x.shape[1]), max(2, x.shape[0] / 12), 2)
    light = 0.85 - 0.1 * (side / 2) ** 2 - 0.25 * np.exp(-(((y - collar_y) / 0.06) ** 2)) * (side < 0.75)
    light += folds + stripes
    cloth = np.clip(light, 0.1, 1.2)[..., None] * colour.astype(np.float32)
    rgba = np.empty((*x.shape, 4), np.float32)
    rgba[..., :3] = neck * (neck_alpha * (1 - alpha))[..., None] + cloth * alpha[..., None]
    rgba[..., 3] = 1 - (1 - neck_alpha) * (1 - alpha)
    return rgba
