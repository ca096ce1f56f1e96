"""A head drawn from numbers: a relief lit from one side, with eyes and a mouth that move.

Face units: x to the right and y down from the point between the eyes; 1 is half the width of the face, so the brows
are near y = -0.3, the mouth is near 0.9 and the chin near 1.4. Light that falls on a relief gives by itself what
Haar cascades look for: dark eye sockets, a bright bridge of the nose, a shadow below it.
"""

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Map = npt.NDArray[np.floating[Any]]  # (H, W) or (H, W, C); float32 where it matters for speed

LEFT, RIGHT, TOP, BOTTOM = -1.5, 1.5, -1.85, 2.35  # what a head's picture shows, in face units

RANGES = {
    "jaw": (1.9, 2.7),  # exponent of the outline: larger is squarer
    "chin_y": (1.35, 1.5),
    "skull_y": (1.38, 1.52),
    "jaw_width": (-0.06, 0.02),
    "brow_ridge": (0.03, 0.08),
    "socket": (0.14, 0.2),
    "eye_x": (0.4, 0.45),
    "eye_half_width": (0.185, 0.225),
    "eye_height": (0.085, 0.115),
    "eye_tilt": (-0.06, 0.08),
    "brow_y": (-0.33, -0.26),
    "brow_arch": (0.03, 0.08),
    "brow_slant": (-0.02, 0.05),
    "brow_thickness": (0.035, 0.07),
    "brow_darkness": (0.6, 0.9),
    "nose_y": (0.56, 0.64),
    "nose_height": (0.26, 0.36),
    "nose_width": (0.13, 0.19),
    "mouth_y": (0.88, 0.96),
    "mouth_half_width": (0.31, 0.39),
    "mouth_curve": (-0.005, 0.04),
    "upper_lip": (0.05, 0.08),
    "lower_lip": (0.08, 0.115),
    "lip_red": (0.5, 0.62),
    "cheek": (0.04, 0.09),
    "tone": (0.0, 1.0),  # 0 the lightest skin, 1 the darkest
    "hair_tone": (0.0, 1.0),
    "hair_style": (0.0, 1.0),
    "hair_grow": (0.05, 0.16),
    "hairline_y": (-1.02, -0.84),
    "hairline_curve": (0.15, 0.5),
    "hair_length": (1.0, 2.2),
    "beard": (-0.75, 0.34),  # below 0: none
    "glasses": (-2.4, 1.0),  # below 0: none
}
SKINS = np.array([[0.86, 0.7, 0.6], [0.8, 0.61, 0.49], [0.7, 0.5, 0.38], [0.54, 0.37, 0.27], [0.37, 0.25, 0.19]])
HAIRS = np.array(
    [[0.08, 0.06, 0.05], [0.2, 0.12, 0.07], [0.4, 0.27, 0.15], [0.62, 0.49, 0.31], [0.5, 0.5, 0.49], [0.34, 0.15, 0.07]]
)
IRISES = np.array([[0.24, 0.14, 0.07], [0.32, 0.23, 0.12], [0.28, 0.38, 0.48], [0.3, 0.4, 0.26]])


def draw_traits(identity: int) -> SimpleNamespace:
    """The features of a person, the same for the same number: RANGES, and `iris`, `hair`, `skin` as RGB in [0, 1]."""
    rng = np.random.default_rng(identity)
    traits = SimpleNamespace(**{name: float(rng.uniform(*bounds)) for name, bounds in RANGES.items()})
    num = len(HAIRS) if traits.tone < 0.5 else 2  # dark skin goes with dark hair and eyes
    hair, iris = HAIRS[min(int(traits.hair_tone * num), num - 1)], IRISES[rng.integers(min(num, len(IRISES)))]
    traits.hair, traits.iris = (hair * rng.uniform(0.85, 1.15)).astype(np.float32), iris.astype(np.float32)
    traits.skin = skin_colour(traits.tone) + rng.uniform(-0.02, 0.02, 3).astype(np.float32)
    return traits


def skin_colour(tone: float) -> Map:
    """RGB in [0, 1] of skin from light (0) to dark (1)."""
    place = tone * (len(SKINS) - 1)
    return np.array([np.interp(place, range(len(SKINS)), channel) for channel in SKINS.T], np.float32)


def bump(x: Map, y: Map, x0: float, y0: float, rx: float, ry: float) -> Map:
    """A soft hill of height 1 at (x0, y0)."""
    return np.asarray(np.exp(-(((x - x0) / rx) ** 2) - ((y - y0) / ry) ** 2), np.float32)


def ramp(start: float | Map, end: float | Map, value: Map) -> Map:
    """0 before `start`, 1 after `end`, smooth between them; also downwards when `end` is smaller."""
    t = np.clip((value - start) / (end - start), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def paint(image: Map, colour: Map, alpha: Map) -> None:
    """Lays `colour` (3,) or (H, W, 3) over `image` (H, W, 3), in place, where alpha (H, W) is not 0."""
    image += (colour - image) * alpha[..., None]


def mottle(rng: np.random.Generator, shape: tuple[int, int], grain_px: float, stretch_y: float = 1) -> Map:
    """Smooth random numbers of variance near 1 with blobs of `grain_px` pixels, drawn out vertically."""
    height, width = shape
    coarse = (max(2, int(height / grain_px / stretch_y) + 1), max(2, int(width / grain_px) + 1))
    spots = rng.standard_normal(coarse, np.float32)
    return np.asarray(cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


class Head:
    """The picture of one head at `scale_px` pixels per face unit; everything that does not move is drawn once."""

    def __init__(self, traits: SimpleNamespace, scale_px: float, rng: np.random.Generator) -> None:
        self.traits, self.scale_px = traits, scale_px
        self.shape = (round((BOTTOM - TOP) * scale_px), round((RIGHT - LEFT) * scale_px))
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32) / np.float32(scale_px)
        self.x, self.y = x + np.float32(LEFT), y + np.float32(TOP)
        relief, self._face = self._relief()
        self._light_from(relief)
        self._albedo = self._skin(rng)
        self._hair, self._hair_alpha, hair_relief = self._draw_hair(rng)
        self.relief = np.maximum(cv2.GaussianBlur(relief, (0, 0), 0.05 * scale_px), hair_relief)

    def draw(self, *, mouth: float, smile: float, blink: float, gaze: float, light_3: Map) -> Map:
        """RGBA (H, W, 4) in [0, 1], colours multiplied by alpha.

        Args:
            mouth: how far it is open; 0 closed, 1 wide open.
            smile: -1 narrows the mouth, 1 widens it.
            blink: 0 eyes open, 1 closed.
            gaze: -1 looks to the left of the picture, 1 to the right.
            light_3: unit vector towards the light (x right, y down, z to the viewer).
        """
        albedo = self._albedo.copy()
        self._draw_eyes(albedo, blink, gaze)
        self._draw_mouth(albedo, mouth, smile)
        facing = np.clip(self._normal @ light_3 + 0.15, 0, None)
        shade = (0.36 + 0.6 * facing) * self._hollow
        shine = 0.1 * np.clip(facing - 0.1, 0, 1) ** 16
        rgba = np.empty((*self.shape, 4), np.float32)
        face, hair = self._face[..., None], self._hair_alpha[..., None]
        lit_hair = self._hair * (0.6 + 0.5 * facing.mean())
        rgba[..., :3] = (albedo * shade[..., None] + shine[..., None]) * face * (1 - hair) + lit_hair * hair
        rgba[..., 3] = 1 - (1 - self._face) * (1 - self._hair_alpha)
        return rgba

    def _relief(self) -> tuple[Map, Map]:
        """Height of the face above its outline, in face units, and its alpha."""
        t, x, y = self.traits, self.x, self.y
        half_width = 1 - 0.06 * ramp(-0.2, -1.2, y) + t.jaw_width * ramp(0.1, 0.8, y)
        power_x, power_y = np.where(y > 0, 2.1 + 0.5 * (t.jaw - 1.9), 2.2), np.where(y > 0, t.jaw, 2.1)
        radius = np.abs(x / half_width) ** power_x + np.abs(y / np.where(y > 0, t.chin_y, t.skull_y)) ** power_y
        relief = 0.95 * np.sqrt(np.clip(1 - radius, 0, None))
        side = np.abs(x)
        relief += t.brow_ridge * bump(x, y, 0, t.brow_y, 0.75, 0.13)
        relief += 0.05 * bump(side, y, t.eye_x, 0.03, 0.17, 0.1) - t.socket * bump(side, y, t.eye_x, 0.02, 0.27, 0.17)
        down_nose = np.clip((y + 0.15) / (t.nose_y + 0.15), 0, 1)
        ridge = np.exp(-((x / (0.1 + 0.07 * down_nose)) ** 2)) * down_nose**1.3
        ridge *= ramp(t.nose_y + 0.12, t.nose_y - 0.04, y)
        relief += t.nose_height * ridge + 0.1 * bump(x, y, 0, t.nose_y - 0.06, 0.13, 0.11)
        relief += 0.09 * bump(side, y, t.nose_width, t.nose_y, 0.09, 0.08)
        relief += t.cheek * bump(side, y, 0.58, 0.42, 0.28, 0.25) - 0.03 * bump(side, y, 0.38, 0.72, 0.08, 0.2)
        relief += 0.05 * bump(x, y, 0, t.mouth_y, 0.35, 0.12) - 0.06 * bump(x, y, 0, t.mouth_y + 0.22, 0.25, 0.06)
        relief += 0.08 * bump(x, y, 0, t.chin_y - 0.13, 0.25, 0.15) - 0.02 * bump(x, y, 0, t.mouth_y - 0.17, 0.04, 0.08)
        ear = bump(side, y, 1.0, 0.18, 0.09, 0.3)
        alpha = np.maximum(ramp(1.05, 0.96, radius), ramp(0.35, 0.6, ear))
        return np.asarray(relief, np.float32), alpha

    def _light_from(self, relief: Map) -> None:
        """Normals, and how much less of the light from all around reaches hollows."""
        smooth = cv2.GaussianBlur(relief, (0, 0), 0.02 * self.scale_px + 0.3)
        slope_y, slope_x = (np.clip(slope * self.scale_px, -2.5, 2.5) for slope in np.gradient(smooth))
        normal = np.stack([-slope_x, -slope_y, np.ones_like(slope_x)], -1)
        self._normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
        around = cv2.GaussianBlur(relief, (0, 0), 0.16 * self.scale_px)
        self._hollow = np.clip(1 + 2.2 * (relief - around), 0.45, 1.15)

    def _skin(self, rng: np.random.Generator) -> Map:
        """Colour of the skin with brows, beard and the lines around the eyes; eyes and mouth come later."""
        t, x, y, side = self.traits, self.x, self.y, np.abs(self.x)
        albedo: Map = np.ones((*self.shape, 3), np.float32) * t.skin
        red = 0.5 * bump(side, y, 0.55, 0.42, 0.25, 0.22) + 0.45 * bump(x, y, 0, t.nose_y, 0.16, 0.14)
        red += 0.25 * bump(x, y, 0, t.chin_y, 0.3, 0.15) + 0.3 * bump(side, y, t.eye_x, 0.05, 0.3, 0.2)
        albedo *= 1 - red[..., None] * np.array([0.02, 0.13, 0.13], np.float32)
        grain = 0.02 * mottle(rng, self.shape, 0.4 * self.scale_px)
        grain += 0.015 * mottle(rng, self.shape, 0.05 * self.scale_px)
        nostrils_y = t.nose_y + 0.075
        dark = 0.22 * bump(side, y, t.eye_x, 0.16, 0.2, 0.06) + 0.45 * bump(side, y, 0.095, nostrils_y, 0.055, 0.035)
        dark += 0.18 * bump(x, y, 0, t.nose_y + 0.14, 0.2, 0.06) + 0.25 * ramp(0.93, 1.02, side)
        albedo *= ((1 + grain) * (1 - np.clip(dark, 0, 0.8)))[..., None]
        along = (side - t.eye_x) / 0.3
        arch_y = t.brow_y - t.brow_arch * (1 - (along - 0.2) ** 2) + t.brow_slant * along
        thickness = t.brow_thickness * (1 - 0.5 * ramp(0.2, 1, along))
        brow = t.brow_darkness * ramp(1, 0.55, np.abs(y - arch_y) / thickness) * ramp(1.05, 0.85, np.abs(along))
        beard = max(t.beard, 0) * ramp(t.mouth_y - 0.35, t.mouth_y, y + 0.5 * side**3)
        for alpha in (brow * (0.85 + 0.15 * mottle(rng, self.shape, 0.03 * self.scale_px)), beard):
            paint(albedo, np.minimum(t.hair * 0.7, 0.22), np.clip(alpha, 0, 1))
        return albedo

    def _draw_hair(self, rng: np.random.Generator) -> tuple[Map, Map, Map]:
        """Colour, alpha and height of the hair: cropped, short or long by the trait `hair_style`."""
        t, x, y, side = self.traits, self.x, self.y, np.abs(self.x)
        is_long, is_cropped = t.hair_style > 0.6, t.hair_style < 0.15
        grow = 0.02 if is_cropped else t.hair_grow + 0.1 * is_long
        radius = (side / (1 + 0.8 * grow)) ** 2.2 + np.abs(y / (t.skull_y + grow)) ** 2.2
        strands = mottle(rng, self.shape, 0.035 * self.scale_px, 10) + mottle(rng, self.shape, 0.1 * self.scale_px, 6)
        edge_y = t.hairline_y + t.hairline_curve * x * x + 0.02 * strands
        temples = ramp(0.84, 0.92, side + 0.008 * strands) * ramp(0.25, -0.1, y)
        alpha = np.clip(ramp(edge_y + 0.07, edge_y - 0.07, y) + temples, 0, 1)
        alpha *= ramp(1.04, 0.95, radius) * ramp(0.3, 0.2, y)
        if is_long:
            strand = side + 0.015 * strands
            before, behind = ramp(0.86, 0.96, strand), ramp(0.5, 0.6, strand) * (1 - self._face)
            outer = 1.03 + 0.8 * grow + 0.05 * np.sin(2.5 * y)
            fall = np.maximum(before * ramp(1.2, 0.9, y), behind) * ramp(outer, outer - 0.08, strand)
            fall *= ramp(-0.4, -0.2, y) * ramp(t.hair_length, t.hair_length - 0.25, y + 0.06 * strands)
            alpha = np.maximum(alpha, fall)
        relief = np.sqrt(np.clip(1 - radius, 0, None)) * ramp(0.3, -0.4, y)
        sheen = 0.35 * np.exp(-(((y + 1.05 + 0.25 * x * x) / 0.22) ** 2))
        brightness = 0.6 + 0.35 * np.maximum(relief, 0.3 * ramp(-0.4, 0.3, y)) + sheen + 0.11 * strands
        alpha *= 0.7 if is_cropped else 1.0
        colour = np.clip(brightness, 0.1, 2)[..., None] * t.hair
        return np.asarray(colour, np.float32), np.asarray(alpha, np.float32), np.asarray(relief, np.float32)

    def _part(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
        """Rows and columns of a box in face units."""
        rows = slice(int((top - TOP) * self.scale_px), int((bottom - TOP) * self.scale_px) + 1)
        return rows, slice(int((left - LEFT) * self.scale_px), int((right - LEFT) * self.scale_px) + 1)

    def _draw_eyes(self, albedo: Map, blink: float, gaze: float) -> None:
        t = self.traits
        part = self._part(-t.eye_x - 0.33, -0.28, t.eye_x + 0.33, 0.3)
        x, y, image = self.x[part], self.y[part], albedo[part]
        across = (np.abs(x) - t.eye_x) / t.eye_half_width
        y = y + t.eye_tilt * across * t.eye_half_width
        arc = t.eye_height * (1 - across**2)
        upper, lower = y - arc * (1.5 * blink - 1), 0.62 * arc - y  # both positive within the opening
        soft = 0.6 / self.scale_px
        opening = ramp(-soft, soft, upper) * ramp(-soft, soft, lower) * (np.abs(across) < 1)
        radius = np.hypot(np.abs(x) - t.eye_x - 0.06 * gaze * np.sign(x), y + 0.01) / 0.105
        white = np.array([0.84, 0.81, 0.79], np.float32) * (1 - 0.35 * ramp(0.08, 0.01, upper))[..., None]
        iris = t.iris * ((0.55 + 0.5 * radius) * (1 - 0.5 * ramp(0.75, 1, radius)))[..., None]
        eye = white + (iris - white) * ramp(1.08, 0.92, radius)[..., None]
        eye *= (1 - 0.97 * ramp(0.5, 0.38, radius))[..., None]
        eye += 2 * bump(np.abs(x) - t.eye_x - 0.06 * gaze * np.sign(x), y, 0, -0.04, 0.022, 0.022)[..., None]
        paint(image, eye, opening)
        within = ramp(1.1, 0.9, np.abs(across))
        lines = 0.85 * np.exp(-(((upper + 0.008) / 0.022) ** 2)) + 0.35 * np.exp(-(((lower + 0.005) / 0.014) ** 2))
        lines += 0.3 * np.exp(-(((upper + 0.05) / 0.02) ** 2))
        image *= (1 - np.clip(lines * within, 0, 0.95))[..., None]
        if t.glasses > 0:
            rim = np.abs((across / 1.4) ** 4 + (y / 0.21) ** 4 - 1) / 4
            bridge = np.abs(y + 0.08 - 0.3 * x * x) + ramp(0.15, 0.2, np.abs(x))
            image *= (1 - (0.4 + 0.35 * t.glasses) * ramp(0.12, 0.05, np.minimum(rim, 3 * bridge)))[..., None]

    def _draw_mouth(self, albedo: Map, mouth: float, smile: float) -> None:
        t = self.traits
        part = self._part(-0.55, t.mouth_y - 0.25, 0.55, t.mouth_y + 0.4)
        x, y, image = self.x[part], self.y[part], albedo[part]
        half_width = t.mouth_half_width * (1 + 0.1 * smile - 0.08 * mouth)
        across, gap = x / half_width, 0.22 * mouth
        core = np.clip(1 - across**2, 0, 1)
        middle_y = t.mouth_y - (t.mouth_curve + 0.025 * smile) * across**2
        inner_top, inner_bottom = middle_y - 0.3 * gap * core, middle_y + 0.7 * gap * core
        top = inner_top - t.upper_lip * core**0.6 * (1 - 0.25 * np.exp(-((across / 0.12) ** 2)))
        bottom, soft = inner_bottom + t.lower_lip * core**0.7, 0.9 / self.scale_px
        inside_width = ramp(1.02, 0.95, np.abs(across))
        lips = ramp(-soft, soft, y - top) * ramp(-soft, soft, bottom - y) * inside_width
        gloss = 0.1 * bump(x, y, 0, t.mouth_y + 0.07 + 0.7 * gap, 0.2, 0.03) - 0.2 * ramp(0.02, -0.02, y - middle_y)
        lip = (t.skin * [0.9, t.lip_red, t.lip_red]).astype(np.float32) * (1 + gloss)[..., None]
        paint(image, lip, 0.85 * lips)
        inside = ramp(-soft, soft, y - inner_top) * ramp(-soft, soft, inner_bottom - y) * inside_width
        teeth = ramp(0.05, 0.03, y - inner_top) * (1 - 0.4 * across**2)
        depth = np.array([0.16, 0.05, 0.05], np.float32) + np.array([0.62, 0.6, 0.54], np.float32) * teeth[..., None]
        paint(image, depth, inside)
        line = (
            0.55 * max(0, 1 - 4 * mouth) * np.exp(-(((y - middle_y) / 0.014) ** 2)) * ramp(1.05, 0.85, np.abs(across))
        )
        image *= (1 - line - 0.3 * bump(np.abs(x), y, 1.02 * half_width, t.mouth_y, 0.035, 0.03))[..., None]
