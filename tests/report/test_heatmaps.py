"""The page of heatmaps, from a table on disk and a run of noise."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.report import heatmaps
from raydistal.report.page import Cell

HOSTILE = "<script>alert(1)</script>"
DETECTORS = ("xception", HOSTILE)


def told(name, **changes):
    told = {"name": name, "location": f"/d/{name}", "model_id": "0123456789ab", "architecture": "xception"}
    told |= {"input_px": 96, "cells": [3, 3], "explained_by": f"/d/{name}", "is_exported": False, "num_known": 0}
    return told | {"synthetic": False} | changes


def write(folder, write_run, detectors=None, synthetic=False, **changes):
    """A run, and the maps of three of its faces: hottest at the top left, and for the second detector at the right."""
    write_run(folder / "run", splits=("test",) * 3)
    videos = tables.read_table(f"{folder}/run/videos", "index").to_pylist()
    videos[1] |= {"method": HOSTILE, "uri": f"/x/{HOSTILE}\u202egpj.mp4"}
    tables.write_table(f"{folder}/run/videos", pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    grey = cv2.imencode(".jpg", np.full((192, 192, 3), 90, np.uint8))[1].tobytes()
    rows = []
    for number, name in enumerate(DETECTORS):
        heat = [[1.0, 0.5, *[0.0] * 7], [*[0.0] * 5, 0.8, *[0.0] * 3]][number]
        for slice_, video_id, label in (("real", "g00-0", 0), (HOSTILE, "g00-1", 1), ("talk", "g01-1", 1)):
            fixed = {"detector": name, "slice": slice_, "label": label, "heat": heat, "height": 3}
            rows.append(fixed | {"num_faces": 6, "probability": 0.4, "face": grey})
            rows.append(
                fixed | {"num_faces": 1, "probability": 0.91 - label / 2, "video_id": video_id, "frame_index": 10}
            )
        rows.append({"detector": name, "slice": "none", "label": 1, "num_faces": 0, "heat": [], "height": 3})
    data = {"location": str(folder / "run"), "datasets": ["made up"], "synthetic": synthetic, "num_videos": 6}
    detectors = detectors or [told(name) for name in DETECTORS]
    settings = {"split": "test", "faces": 3, "seed": 0, "data": data["location"]} | changes
    table = pa.Table.from_pylist(rows, schemas.HEATMAPS)
    tables.write_table(f"{folder}/out/heatmaps", table, settings, detectors=detectors, data=data)
    return str(folder / "out")


@pytest.fixture(scope="module")
def out(tmp_path_factory, write_run):
    out = write(tmp_path_factory.mktemp("heatmaps"), write_run)
    heatmaps.write(out)
    return out


def test_the_page(out, read_page):
    page = read_page(out)
    assert "Synthetic data" not in page.words
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert "Face in frame 10 of g00-0.mp4" in alts
    assert "Heatmap of xception for frame 10 of g00-0.mp4; strongest: top left" in alts
    assert f"Heatmap of {HOSTILE} for frame 10 of g01-1.mp4; strongest: right" in alts
    assert "Mean heatmap of xception over the mean of 6 faces, fakes by talk; strongest: top left" in alts
    for words in ("P(fake) 0.91", "P(fake) 0.41", "P(fake) 0.40", "6 real", "12 fake", "No proof.", "most: right"):
        assert words in page.words
    assert "No none video of the split has a face." in page.words
    assert page.words.count("nothing to show") == 3  # that slice: no face, no map


def test_each_map_is_drawn_where_it_is_hot(out):
    found = heatmaps.read(out)
    for number, (row, column) in enumerate([(0, 0), (1, 2)]):
        line = heatmaps.mean_line(found, found.of_first(is_mean=True)[0])
        drawn_HWC = cv2.imdecode(np.frombuffer(line.maps[number].image, np.uint8), cv2.IMREAD_COLOR).astype(int)
        red_33 = (drawn_HWC[32::64, 32::64, 2] - drawn_HWC[32::64, 32::64, 0]).round()
        assert np.unravel_index(red_33.argmax(), (3, 3)) == (row, column)


def test_what_must_be_known_first(tmp_path, write_run, read_page):
    detectors = [told("xception", is_exported=True, explained_by="/d/float", num_known=4)]
    detectors += [told(HOSTILE, num_known=None, cells=[1, 1])]
    out = write(tmp_path, write_run, detectors, synthetic=True)
    heatmaps.write(out)
    page = read_page(out)
    for words in (
        "Synthetic data",
        "xception was exported and gives no gradients: maps and P(fake) are those of the detector that it was",
        "/d/float",
        "xception learnt from 4 of the 6 videos",
        "does not record what it learnt from",
        "has 1 by 1 cells only",
    ):
        assert words in page.words
    table = heatmaps.detectors(heatmaps.read(out))
    assert [row[4] for row in table.rows] == [Cell("float"), Cell("itself")]


@pytest.mark.parametrize(
    ("place", "words"),
    [((0, 0), "top left"), ((0, 3), "top"), ((3, 3), "centre"), ((3, 6), "right"), ((6, 0), "bottom left")],
)
def test_where_it_is_strongest(place, words):
    heat_hw = np.zeros((7, 7), np.float32)
    assert heatmaps.strongest(heat_hw) == "nowhere"
    heat_hw[place] = 0.1
    assert heatmaps.strongest(heat_hw) == words


def test_missing_tables(tmp_path, write_run):
    with pytest.raises(UserError, match="raydistal heatmaps"):
        heatmaps.write(str(tmp_path))
    out = write(tmp_path, write_run)
    storage.delete(f"{tmp_path}/run/videos/part-0.parquet")
    with pytest.raises(UserError, match="raydistal index"):
        heatmaps.write(out)


@pytest.mark.parametrize(("scheme", "width_px", "ground"), [("light", 1200, "#f3f5f7"), ("dark", 390, "#0e1318")])
def test_in_a_browser(out, browser, scheme, width_px, ground):
    place = Path(f"{out}/report/index.html").as_uri()
    page = browser.new_page(color_scheme=scheme, viewport={"width": width_px, "height": 800})
    trouble = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("request", lambda request: trouble.append(request.url))
    page.goto(place)
    assert [text for text in trouble if not text.startswith("data:")] == [place]
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
    sizes = page.evaluate("[...document.images].map(one => [one.naturalWidth, one.clientWidth])")
    assert len(sizes) == 2 + 3 * 3 + 3 * 3  # scales, means, faces
    assert min(min(size) for size in sizes) > 90
    red, green, blue = (int(ground[place : place + 2], 16) for place in (1, 3, 5))
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == f"rgb({red}, {green}, {blue})"
    page.close()
