"""Draws boxes, labels and heat on frames. Verdicts differ by line, sign and word, never by colour alone.

A frame is three planes (YUV 4:2:0), as it comes from the decoder and goes into the encoder. Only the part around the
faces is unpacked, drawn on and packed again, in the frame's own colours: the rest keeps its bits.
"""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.ft2font import FT2Font

from raydistal.faces.crop import Image, square_around

Planes = tuple[Image, Image, Image]
Box = npt.NDArray[np.float64]  # x0, y0, x1, y1 in pixels
Rect = tuple[int, int, int, int]
Rgb = tuple[int, int, int]

MAX_GAP_S = 1.0  # in gaps longer than this and 1.5 steps, a face is taken to be out of sight
UNKNOWN_STEP_S = 1.0  # between sightings, if there is only one
DARK, PALE, LIGHT = (16, 20, 26), (200, 208, 216), (255, 255, 255)
HEAT_OPACITY = 0.62
NOTE = "score: 0 real \N{EN DASH} 1 fake"
SUBPIXEL_BITS = 4
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")


class Style(NamedTuple):
    """How a verdict looks."""

    word: str
    sign: str
    fill: Rgb
    text: Rgb


STYLES = {
    "fake": Style("FAKE", "\N{BLACK UP-POINTING TRIANGLE}", (208, 49, 45), LIGHT),
    "real": Style("REAL", "\N{HEAVY CHECK MARK}", (52, 199, 123), DARK),
    "unsure": Style("UNSURE", "?", (255, 179, 26), DARK),
}


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnTrack:
    """One person: where and when seen (K sightings)."""

    number: int
    verdict: str
    probability: float
    pts_s_K: npt.NDArray[np.float64]
    boxes_K4: npt.NDArray[np.float64]  # in pixels of the upright source
    heat_Khw: Image | None
    margin: float | None  # of the square around the box that the heat covers; None: it covers the box

    @classmethod
    def read(cls, track: Mapping[str, Any]) -> "DrawnTrack":
        """From the JSON-able form that `annotate` takes."""
        heat = track.get("heat")
        pts_s_K = np.array(track["pts_s"], np.float64)
        order_K = np.argsort(pts_s_K, kind="stable")
        heat_Khw = None
        if heat:
            maps = [np.frombuffer(base64.b64decode(values), np.uint8) for values in heat]
            heat_Khw = np.stack(maps).reshape(-1, *track["heat_shape"])[order_K]
        boxes_K4 = np.array(track["box_xyxy_px"], np.float64).reshape(-1, 4)[order_K]
        about = track["track"], track["verdict"], float(track["probability"])
        return cls(*about, pts_s_K[order_K], boxes_K4, heat_Khw, track.get("margin"))

    def at(self, now_s: float, step_s: float) -> tuple[Box, int] | None:
        """The box at this time and the number of the sighting nearest to it; None while the face is out of sight.

        Between sightings the box moves evenly. Before the first and after the last one, and at both ends of a gap, it
        stays for half a step, the usual time between sightings.
        """
        if not len(self.pts_s_K):
            return None
        after = int(np.searchsorted(self.pts_s_K, now_s))
        around = range(max(after - 1, 0), min(after + 1, len(self.pts_s_K)))
        nearest = min(around, key=lambda k: abs(self.pts_s_K[k] - now_s))
        if len(around) == 2:
            gap_s = self.pts_s_K[after] - self.pts_s_K[after - 1]
            if gap_s <= max(MAX_GAP_S, 1.5 * step_s):
                share = (now_s - self.pts_s_K[after - 1]) / gap_s
                return (1 - share) * self.boxes_K4[after - 1] + share * self.boxes_K4[after], nearest
        return (self.boxes_K4[nearest], nearest) if abs(self.pts_s_K[nearest] - now_s) <= step_s / 2 else None

    def area_of_heat(self, box_4: Box, source_size: tuple[int, int]) -> Box:
        """The square that the heat covers, in pixels of a source of this width and height."""
        if self.margin is None:
            return box_4
        width_px, height_px = source_size
        return np.array(square_around(box_4.astype(np.float32), self.margin, height_px, width_px), np.float64)


def step_between(tracks: Sequence[DrawnTrack]) -> float:
    """Usual time between sightings, in seconds."""
    looks_s = np.unique([now_s for track in tracks for now_s in track.pts_s_K.tolist()])
    return float(np.median(np.diff(looks_s))) if len(looks_s) > 1 else UNKNOWN_STEP_S


class Painter:
    """Draws the tracks on the frames of one video.

    Args:
        tracks: the faces.
        width_px: of the frames drawn on, even.
        height_px: likewise.
        is_bt709: whether the frames use the matrix of BT.709, else that of BT.601. Limited range.
    """

    def __init__(self, tracks: Sequence[DrawnTrack], width_px: int, height_px: int, is_bt709: bool) -> None:
        self.tracks, self.size = tracks, (width_px, height_px)
        self.step_s = step_between(tracks)
        self.yuv = Yuv(is_bt709)
        shorter_px = min(self.size)
        self.line_px = max(2, round(shorter_px / 270))
        self.outline_px = max(1, round(shorter_px / 720))
        self.font_px = max(9.0, 4.5 + 0.0315 * shorter_px)  # 16 at 360p, 39 at 1080p, 73 at 4K
        self._labels: dict[DrawnTrack, list[Tile]] = {}  # of tracks in sight only: each takes a megabyte at 1080p
        note = Tile.of([(NOTE, DARK, PALE)], 0.62 * self.font_px, self.outline_px, self.yuv)
        self._note = note if tracks and note.width_px < 0.6 * width_px else None
        self._last_choice: dict[DrawnTrack, int] = {}
        self._heat_tables = self.yuv.heat()
        cv2.setNumThreads(1)

    def draw(self, planes: Planes, now_s: float, source_size: tuple[int, int]) -> None:
        """Draws on the planes, in place.

        Args:
            planes: Y (H, W), U and V (H / 2, W / 2).
            now_s: the frame's time, in the time of the tracks.
            source_size: width and height of the upright source frame, whose pixels the boxes are in.
        """
        width_px, height_px = self.size
        scale_4 = np.array([width_px / source_size[0], height_px / source_size[1]] * 2)
        boxes, heats = {}, []
        for track in self.tracks:
            if found := track.at(now_s, self.step_s):
                box_4, nearest = found
                if track.heat_Khw is not None:
                    heats.append((track.heat_Khw[nearest], _whole(track.area_of_heat(box_4, source_size) * scale_4)))
                shown_4 = self._inside(box_4 * scale_4)
                if shown_4 is not None:
                    boxes[track] = shown_4
        labels = self._places(boxes)
        pad_px = self.line_px + self.outline_px
        frames = {track: _whole(box_4 + pad_px * np.array([-1, -1, 1, 1])) for track, box_4 in boxes.items()}
        for rect in _apart([*(place for _, place in heats + labels), *frames.values()], self.size):
            left, top = rect[:2]
            patch_HWC = _unpack(planes, rect)
            for heat_hw, square in heats:
                self._warm(patch_HWC, heat_hw, _moved(square, left, top))
            for track, box_4 in boxes.items():
                if _shared(rect, frames[track]):
                    self._outline(patch_HWC, track.verdict, box_4 - [left, top, left, top])
            for tile, place in labels:
                tile.put(patch_HWC, place[0] - left, place[1] - top)
            _pack(patch_HWC, planes, rect)

    def _inside(self, box_4: Box) -> Box | None:
        """The part of the box, its line included, that is inside the frame; None if hardly any is."""
        edge = self.line_px / 2 + self.outline_px
        width_px, height_px = self.size
        inside_4 = np.clip(box_4, edge, np.array([width_px, height_px] * 2) - 1 - edge)
        return inside_4 if (inside_4[2:] - inside_4[:2] >= 2 * self.line_px).all() else None

    def _outline(self, image_HWC: Image, verdict: str, box_4: Box) -> None:
        x0, y0, x1, y1 = box_4
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        side = min(x1 - x0, y1 - y0)
        if verdict == "fake":
            lines = [np.vstack([corners, corners[:1]])]
        elif verdict == "real":
            lines = _brackets(corners, max(0.24 * side, 2.0 * self.line_px))
        else:
            lines = _dashes(corners, max(0.11 * side, 3.0 * self.line_px))
        points = [np.round(line * (1 << SUBPIXEL_BITS)).astype(np.int32) for line in lines]
        colour = self.yuv(STYLES[verdict].fill)
        for thickness, yuv in ((self.line_px + 2 * self.outline_px, self.yuv(DARK)), (self.line_px, colour)):
            cv2.polylines(image_HWC, points, False, yuv, thickness, cv2.LINE_AA, SUBPIXEL_BITS)

    def _warm(self, image_HWC: Image, heat_hw: Image, square: Rect) -> None:
        """Blends the colours of the heat into a square, more opaque where it is hotter."""
        x0, y0, x1, y1 = square
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, image_HWC.shape[1]), min(y1, image_HWC.shape[0])
        if right <= left or bottom <= top:
            return
        smooth_HW = cv2.resize(heat_hw, (x1 - x0, y1 - y0), interpolation=cv2.INTER_CUBIC)
        smooth_HW = cv2.multiply(smooth_HW, _soft_edged(x1 - x0, y1 - y0), scale=1 / 255)
        heat_HW = smooth_HW[top - y0 : bottom - y0, left - x0 : right - x0]
        heat_HWC = cv2.merge([heat_HW] * 3)
        clear, colour = self._heat_tables
        part_HWC = image_HWC[top:bottom, left:right]
        faded_HWC = cv2.multiply(part_HWC, cv2.LUT(heat_HWC, clear), scale=1 / 255)
        cv2.add(faded_HWC, cv2.LUT(heat_HWC, colour), dst=faded_HWC)
        part_HWC[:] = faded_HWC

    def _tiles(self, track: DrawnTrack) -> list["Tile"]:
        """Its label, and a shorter one for a crowd. An unsure one shows no score, as people would rely on it."""
        style = STYLES[track.verdict]
        score = "" if track.verdict == "unsure" else f" {track.probability:.2f}"
        words = f"{style.sign} {style.word}{score}"
        names = (f"Face {track.number}", str(track.number)) if len(self.tracks) > 1 else ("",)
        texts = [[(words, style.fill, style.text), (name, DARK, LIGHT)][: 2 if name else 1] for name in names]
        tiles = [Tile.of(parts, self.font_px, self.outline_px, self.yuv) for parts in texts]
        return [tile for tile in tiles if tile.width_px <= self.size[0]]

    def _places(self, boxes: Mapping[DrawnTrack, Box]) -> list[tuple["Tile", Rect]]:
        """Where the labels go: at the box, inside the frame, and clear of other labels and faces if possible."""
        self._labels = {track: self._labels[track] if track in self._labels else self._tiles(track) for track in boxes}
        placed = [] if self._note is None else [(self._note, self._in_the_corner(self._note))]
        for track, box_4 in boxes.items():
            others = [_whole(other_4) for other, other_4 in boxes.items() if other is not track]
            choices = [(tile, rect) for tile in self._labels[track] for rect in self._choices(tile, box_4)]
            costs = [
                0.02 * choice
                - 0.1 * (choice == self._last_choice.get(track))  # so that it does not jump to and fro
                + sum(0.5 + 3 * shared / tile.area for _, taken in placed if (shared := _shared(rect, taken)))
                + sum(_shared(rect, other) for other in others) / tile.area
                + 0.3 * _shared(rect, _whole(box_4)) / tile.area
                for choice, (tile, rect) in enumerate(choices)
            ]
            if choices:
                best = int(np.argmin(costs))
                self._last_choice[track] = best
                placed.append(choices[best])
        return placed

    def _in_the_corner(self, tile: "Tile") -> Rect:
        away = 2 * self.line_px
        return tile.rect(self.size[0] - tile.width_px - away, self.size[1] - tile.height_px - away)

    def _choices(self, tile: "Tile", box_4: Box) -> list[Rect]:
        """Above and below the box, at its left and right end, beside it; then inside it."""
        x0, y0, x1, y1 = box_4
        away = self.line_px / 2 + self.outline_px
        lefts = x0 - away, x1 + away - tile.width_px
        above, below = y0 - away - tile.height_px, y1 + away
        places = [(left, top) for top in (above, below) for left in lefts]
        places += [(x1 + away, y0 - away), (x0 - away - tile.width_px, y0 - away)]
        places += [(x0 + away, y0 + away), (x0 + away, y1 - away - tile.height_px)]
        most_left, most_top = max(self.size[0] - tile.width_px, 0), max(self.size[1] - tile.height_px, 0)
        return [
            tile.rect(round(min(max(left, 0), most_left)), round(min(max(top, 0), most_top))) for left, top in places
        ]


class Yuv:
    """Colours as a frame has them: 8 bits, limited range."""

    def __init__(self, is_bt709: bool) -> None:
        red, blue = (0.2126, 0.0722) if is_bt709 else (0.299, 0.114)
        luma_3 = np.array([red, 1 - red - blue, blue])
        blueness_3, redness_3 = np.array([0, 0, 1]) - luma_3, np.array([1, 0, 0]) - luma_3
        self._matrix_33 = np.stack([219 * luma_3, 112 * blueness_3 / (1 - blue), 112 * redness_3 / (1 - red)]) / 255

    def __call__(self, rgb: Rgb) -> tuple[int, int, int]:
        """Y, U and V of an RGB colour, all from 0 to 255."""
        y, u, v = (round(value) for value in self.of(np.array([rgb]))[0].tolist())
        return y, u, v

    def of(self, rgb_N3: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(N, 3) Y, U and V of (N, 3) RGB colours, not rounded."""
        return rgb_N3 @ self._matrix_33.T + [16, 128, 128]

    def heat(self) -> tuple[Image, Image]:
        """(256, 1, 3) each, by heat from 0 to 255: the share (of 255) of the picture to keep, and the colour to add.

        The colour map is inferno, whose lightness rises with the heat, unlike a rainbow's: it can be read in grey and
        with any colour vision. Cold places stay clear.
        """
        levels = np.arange(256, dtype=np.uint8)
        bgr_N3 = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_INFERNO)[:, 0]
        share = np.clip((levels / 255 - 0.15) / 0.5, 0, 1)[:, None]
        opacity = HEAT_OPACITY * share * share * (3 - 2 * share)
        colour = np.round(self.of(bgr_N3[:, ::-1]) * opacity)
        clear = np.broadcast_to(np.round(255 * (1 - opacity)), (256, 3))
        return clear.astype(np.uint8)[:, None].copy(), colour.astype(np.uint8)[:, None].copy()


@dataclasses.dataclass(frozen=True)
class Tile:
    """A label, ready to be put onto a frame."""

    yuv_HWC: npt.NDArray[np.float32]
    opacity_HW1: npt.NDArray[np.float32]

    @classmethod
    def of(cls, parts: Sequence[tuple[str, Rgb, Rgb]], font_px: float, outline_px: int, yuv: Yuv) -> "Tile":
        """Pieces of text side by side, each with its own background and colour, within a dark rim."""
        height_px = round(1.55 * font_px)
        pieces = []
        for text, fill, colour in parts:
            ink_HW = _text(text, font_px, height_px, round(0.42 * font_px))[..., None]
            pieces.append((1 - ink_HW) * yuv(fill) + ink_HW * yuv(colour))
        rim = ((outline_px, outline_px), (outline_px, outline_px))
        inner_HWC = np.hstack(pieces)
        channels = [
            np.pad(inner_HWC[..., channel], rim, constant_values=value) for channel, value in enumerate(yuv(DARK))
        ]
        shape_HW = _rounded(channels[0].shape, 0.28 * font_px)
        return cls(np.dstack(channels).astype(np.float32), shape_HW[..., None].astype(np.float32))

    @property
    def width_px(self) -> int:
        return len(self.yuv_HWC[0])

    @property
    def height_px(self) -> int:
        return len(self.yuv_HWC)

    @property
    def area(self) -> int:
        return self.width_px * self.height_px

    def rect(self, left: int, top: int) -> Rect:
        """The area it covers with its top left corner there."""
        return left, top, left + self.width_px, top + self.height_px

    def put(self, image_HWC: Image, left: int, top: int) -> None:
        """Blends it into an image; parts outside are cut off."""
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + self.width_px, image_HWC.shape[1]), min(top + self.height_px, image_HWC.shape[0])
        if x1 <= x0 or y1 <= y0:
            return
        mine = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        part_HWC = image_HWC[y0:y1, x0:x1]
        part_HWC[:] = np.rint(part_HWC + self.opacity_HW1[mine] * (self.yuv_HWC[mine] - part_HWC))


def _text(text: str, font_px: float, height_px: int, space_px: int) -> npt.NDArray[np.float64]:
    """Ink from 0 to 1, (height_px, width): capitals in the middle of the height, `space_px` at either end."""
    font = FT2Font(str(FONT))
    font.set_size(font_px, 72)
    font.set_text(text)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink_hw = np.asarray(font.get_image()) / 255
    baseline = ink_hw.shape[0] - round(font.get_descent() / 64)
    top = round((height_px + 0.73 * font_px) / 2) - baseline  # 0.73: height of a capital
    out_HW = np.zeros((height_px, ink_hw.shape[1] + 2 * space_px))
    rows = slice(max(top, 0), min(top + ink_hw.shape[0], height_px))
    out_HW[rows, space_px : space_px + ink_hw.shape[1]] = ink_hw[rows.start - top : rows.stop - top]
    return out_HW


def _rounded(shape: tuple[int, int], radius: float) -> npt.NDArray[np.float64]:
    """1 inside a rectangle with round corners, 0 outside."""
    height_px, width_px = shape
    y_H1, x_1W = np.arange(height_px)[:, None] + 0.5, np.arange(width_px)[None] + 0.5
    beyond_x = np.maximum(np.abs(x_1W - width_px / 2) - (width_px / 2 - radius), 0)
    beyond_y = np.maximum(np.abs(y_H1 - height_px / 2) - (height_px / 2 - radius), 0)
    return np.asarray(np.clip(radius + 0.5 - np.hypot(beyond_x, beyond_y), 0, 1))


def _soft_edged(width_px: int, height_px: int) -> Image:
    """255 inside, falling to 0 along the edges, so that a square of heat does not look like a box."""
    sides = [np.minimum(np.arange(px), np.arange(px)[::-1]) / (0.08 * px) for px in (height_px, width_px)]
    rows_H, columns_W = (np.minimum(side, 1) for side in sides)
    return np.asarray(255 * rows_H[:, None] * columns_W, np.uint8)


def _brackets(corners_42: npt.NDArray[np.float64], length_px: float) -> list[npt.NDArray[np.float64]]:
    """A right angle at each corner."""
    lines = []
    for before, corner, after in zip(np.roll(corners_42, 1, 0), corners_42, np.roll(corners_42, -1, 0), strict=True):
        ends = [corner + (other - corner) / np.abs(other - corner).max() * length_px for other in (before, after)]
        lines.append(np.array([ends[0], corner, ends[1]]))
    return lines


def _dashes(corners_42: npt.NDArray[np.float64], length_px: float) -> list[npt.NDArray[np.float64]]:
    """Dashes along the sides, gaps as long between them, a whole dash at either end of each side."""
    lines = []
    for start, end in zip(corners_42, np.roll(corners_42, -1, 0), strict=True):
        num = max(2, round((np.abs(end - start).max() / length_px + 1) / 2))
        for dash in range(num):
            lines.append(start + (end - start) * np.array([[2 * dash], [2 * dash + 1]]) / (2 * num - 1))
    return lines


def _whole(box_4: npt.NDArray[Any]) -> Rect:
    x0, y0, x1, y1 = (int(value) for value in [*np.floor(box_4[:2]), *np.ceil(box_4[2:])])
    return x0, y0, x1, y1


def _moved(rect: Rect, left: int, top: int) -> Rect:
    return rect[0] - left, rect[1] - top, rect[2] - left, rect[3] - top


def _shared(one: Rect, other: Rect) -> int:
    """Area of what two rectangles share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _apart(rects: Sequence[Rect], size: tuple[int, int]) -> list[Rect]:
    """Rectangles of even coordinates inside the frame that cover these and do not overlap each other."""
    found: list[Rect] = []
    for rect in rects:
        x0, y0 = max(rect[0], 0) & ~1, max(rect[1], 0) & ~1
        x1, y1 = min(rect[2] + 1, size[0]) & ~1, min(rect[3] + 1, size[1]) & ~1
        if x1 <= x0 or y1 <= y0:
            continue
        merged = x0, y0, x1, y1
        while touching := [other for other in found if _shared(merged, other)]:
            found = [other for other in found if other not in touching]
            lows, highs = np.min([merged, *touching], 0), np.max([merged, *touching], 0)
            merged = int(lows[0]), int(lows[1]), int(highs[2]), int(highs[3])
        found.append(merged)
    return found


def _unpack(planes: Planes, rect: Rect) -> Image:
    """A part of the frame as (H, W, 3); four pixels share one colour."""
    x0, y0, x1, y1 = rect
    luma, *chroma = (plane[y0 // part : y1 // part, x0 // part : x1 // part] for plane, part in _parts(planes))
    grown = [cv2.resize(plane, luma.shape[::-1], interpolation=cv2.INTER_NEAREST) for plane in chroma]
    return np.asarray(cv2.merge([luma, *grown]), np.uint8)


def _pack(patch_HWC: Image, planes: Planes, rect: Rect) -> None:
    """The inverse of `_unpack`: pixels that were not drawn on keep their values."""
    x0, y0, x1, y1 = rect
    for channel, (plane, part) in zip(cv2.split(patch_HWC), _parts(planes), strict=True):
        size = (x1 - x0) // part, (y1 - y0) // part
        plane[y0 // part : y1 // part, x0 // part : x1 // part] = cv2.resize(
            channel, size, interpolation=cv2.INTER_AREA
        )


def _parts(planes: Planes) -> list[tuple[Image, int]]:
    return list(zip(planes, (1, 2, 2), strict=True))
