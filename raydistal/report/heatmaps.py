"""The page of heatmaps: where in a face each detector finds evidence for fake. CKD (Li et al. 2022), figure 3.

h, w cells of a map.
"""

import shlex
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raydistal.faces import crop
from raydistal.faces.overlay import overlay
from raydistal.report import contents, page
from raydistal.report.contents import JPEG_QUALITY, THUMBNAIL_PX, Face
from raydistal.report.page import Cell, Row, Table, Tile, count

PLACES = (("top left", "top", "top right"), ("left", "centre", "right"), ("bottom left", "bottom", "bottom right"))


class Picture(NamedTuple):
    """The content of a cell; no image if there is nothing to show."""

    image: bytes | None
    """JPEG."""
    alt: str
    lines: list[str]
    """Below it."""


class Line(NamedTuple):
    """One face, or the mean of many, and each detector's map of it."""

    label: int
    face: Picture
    maps: list[Picture]
    """One per detector."""


@dataclass(frozen=True)
class Heatmaps:
    """What the pipeline found."""

    info: dict[str, Any]
    """`_table.json`."""
    rows: dict[tuple[str, str, str | None], Row]
    """Of `schemas.HEATMAPS`, by detector, slice and video; in the order of the table."""

    @property
    def detectors(self) -> list[Row]:
        """What the table holds about each."""
        return list(self.info["detectors"])

    def of_first(self, is_mean: bool) -> list[Row]:
        """The means, or the faces, of the first detector; all detectors have the same ones."""
        name = self.detectors[0]["name"]
        return [row for key, row in self.rows.items() if key[0] == name and (key[2] is None) == is_mean]

    def of_all(self, row: Row) -> list[Row]:
        """The rows of all detectors for the same face or mean as this row."""
        return [self.rows[one["name"], row["slice"], row["video_id"]] for one in self.detectors]


def write(location: str) -> str:
    """Writes LOCATION/report from LOCATION/heatmaps and returns the path of the page.

    Raises:
        UserError: there is no such table, or it is unfinished; the run that the faces are from is gone.
    """
    found = read(location)
    info = found.info
    faces = found.of_first(is_mean=False)
    frames = [{"uncertainty": None, **row} for row in faces]
    cards = contents.read_cards(info["data"]["location"], frames)
    return page.write(
        location,
        "heatmaps.html.j2",
        [],
        is_synthetic=any(one["synthetic"] for one in (*info["detectors"], info["data"])),
        tiles=tiles(found),
        notices=notices(found),
        means=[mean_line(found, row) for row in found.of_first(is_mean=True)],
        faces=[face_line(found, row, card) for row, card in zip(faces, cards, strict=True)],
        legend=legend(),
        detectors=detectors(found),
        commands=commands(location, info),
        configs={"heatmaps": info["config"]},
        versions=info["versions"],
    )


def read(location: str) -> Heatmaps:
    """Raises UserError as `write`."""
    info, rows = page.read(location, "heatmaps", "heatmaps")
    return Heatmaps(info, {(row["detector"], row["slice"], row["video_id"]): row for row in rows})


def tiles(found: Heatmaps) -> list[Tile]:
    """The headline numbers."""
    means, num_shown = found.of_first(is_mean=True), len(found.of_first(is_mean=False))
    num_real, num_fake = (sum(row["num_faces"] for row in means if row["label"] == label) for label in (0, 1))
    cells = sorted({max(one["cells"]) for one in found.detectors})
    return [
        Tile("Detectors", len(found.detectors), []),
        Tile("Faces in the means", num_real + num_fake, [], (num_real, num_fake)),
        Tile("Faces shown", num_shown, ["at most one of a video"]),
        Tile("Cells a side", " to ".join(map(str, cells[:1] + cells[1:][-1:])), ["of a map, drawn smoothly"]),
    ]


def notices(found: Heatmaps) -> list[str]:
    """What a reader must know before believing the maps."""
    warnings = []
    for one in found.detectors:
        name = one["name"]
        if one["is_exported"]:
            warnings.append(
                f"{name} was exported and gives no gradients: maps and P(fake) are those of the detector that it was "
                f"made from, {one['explained_by']}. Its own numbers may differ a little."
            )
        if one["num_known"]:
            warnings.append(
                f"{name} learnt from {one['num_known']:,} of the {found.info['data']['num_videos']:,} videos, or from "
                "others of their groups: its P(fake) on them says nothing about new ones."
            )
        if one["num_known"] is None:
            warnings.append(f"{name} does not record what it learnt from: it may know these faces.")
        if min(one["cells"]) < 3:
            warnings.append(
                f"A map of {name} has {_cells(one)} cells only: it says next to nothing. See --input-px of train."
            )
    warnings += [f"No {row['slice']} video of the split has a face." for row in _empty(found)]
    return warnings


def _empty(found: Heatmaps) -> list[Row]:
    return [row for row in found.of_first(is_mean=True) if not row["num_faces"]]


def mean_line(found: Heatmaps, row: Row) -> Line:
    """The mean face of a slice, and the mean map of each detector over it."""
    num, face_HWC = count(row["num_faces"], "face"), _decode(row["face"])
    what = f"the mean of {num}, {_category(row)}"
    lines = [row["slice"]] * row["label"] + [f"mean of {num}"]
    maps = []
    for detector, one in zip(found.detectors, found.of_all(row), strict=True):
        place, mean = strongest(_heat(one)), _probability(one)
        alt = f"Mean heatmap of {detector['name']} over {what}; strongest: {place}"
        maps.append(Picture(_draw(face_HWC, one), alt, [detector["name"], f"P(fake) {mean}", f"most: {place}"]))
    return Line(row["label"], Picture(row["face"], what.capitalize(), lines), maps)


def face_line(found: Heatmaps, row: Row, card: Face) -> Line:
    """A face, and the map of each detector over it."""
    what, face_HWC = f"frame {card.frame_index} of {card.name}", _decode(card.thumbnail)
    lines = [row["slice"]] * row["label"] + [card.name, f"frame {card.frame_index}"]
    maps = []
    for detector, one in zip(found.detectors, found.of_all(row), strict=True):
        alt = f"Heatmap of {detector['name']} for {what}; strongest: {strongest(_heat(one))}"
        maps.append(Picture(_draw(face_HWC, one), alt, [detector["name"], f"P(fake) {_probability(one)}"]))
    return Line(row["label"], Picture(card.thumbnail, f"Face in {what}", lines), maps)


def strongest(heat_hw: npt.NDArray[np.float32]) -> str:
    """Which ninth of the picture holds the strongest cell, in words."""
    if not heat_hw.any():
        return "nowhere"
    row, column = np.unravel_index(int(heat_hw.argmax()), heat_hw.shape)
    thirds = [min(2, int(3 * (place + 0.5) / num)) for place, num in zip((row, column), heat_hw.shape, strict=True)]
    return PLACES[thirds[0]][thirds[1]]


def legend() -> bytes:
    """The colours from 0 to 1, as they lie over a face of medium grey."""
    ramp_hw = np.linspace(0, 1, 256, dtype=np.float32)[None]
    return crop.encode(overlay(np.full((12, 256, 3), 150, np.uint8), ramp_hw), "png")


def detectors(found: Heatmaps) -> Table:
    """The detectors, and which detector's gradients explain each."""
    rows: list[list[Cell]] = [
        [
            Cell(one["name"], one["architecture"]),
            Cell(one["model_id"]),
            Cell(f"{one['input_px']} px"),
            Cell(_cells(one), f"{one['input_px'] / one['cells'][0]:.0f} px each"),
            Cell("itself" if not one["is_exported"] else page.base_name(one["explained_by"])),
        ]
        for one in found.detectors
    ]
    return Table("Detectors", ["detector", "model", "input", "cells", "explained by"], rows)


def commands(location: str, info: dict[str, Any]) -> list[tuple[str, str]]:
    """What to type next, each with its purpose."""
    config = info["config"]
    places = " ".join(shlex.quote(one["location"]) for one in info["detectors"])
    run, split = shlex.quote(info["data"]["location"]), config["split"]
    other = f"{location.rstrip('/')}-{config['seed'] + 1}"
    return [
        (
            "Other faces",
            f"raydistal heatmaps --detectors {places} \\\n  --data {run} --split {split} --faces {config['faces']} "
            f"--seed {config['seed'] + 1} --out {shlex.quote(other)}",
        ),
        (
            "How good the detectors are",
            f"raydistal evaluate --detectors {places} \\\n  --data {run} --split {split} --out OUT",
        ),
    ]


def _cells(detector: Row) -> str:
    return " by ".join(map(str, detector["cells"]))


def _category(row: Row) -> str:
    return f"fakes by {row['slice']}" if row["label"] else "real"


def _probability(row: Row) -> str:
    return "\N{EN DASH}" if row["probability"] is None else f"{row['probability']:.2f}"


def _heat(row: Row) -> npt.NDArray[np.float32]:
    return np.array(row["heat"] or [0.0], np.float32).reshape(row["height"] if row["heat"] else 1, -1)


def _decode(image: bytes | None) -> crop.Image | None:
    return crop.decode(image, THUMBNAIL_PX) if image else None


def _draw(face_HWC: crop.Image | None, row: Row) -> bytes | None:
    return None if face_HWC is None else crop.encode(overlay(face_HWC, _heat(row)), f"jpeg:{JPEG_QUALITY}")
