"""The whole page, from tables on disk."""

import base64
import subprocess
import sys

import cv2
import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines import report
from raydistal.report import contents

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script>"
NAMES = [
    "<script>alert(1)<svg onload=x>.mp4",
    "b 'quoted' \"twice\".mp4",
    "c&amp;.mp4",
    "d\u202egpj.mp4",
    "e.mp4",
    "broken.mp4",
]
IDS = ["a" * 16, "b" * 16, "c" * 16, "d" * 16, "e" * 16, "f" * 16]
LABELS = [0, 1, 0, 1, 0, 1]
NUM_FACES = [2, 2, 2, 2, 0, 0]
COLOURS = [40, 80, 120, 160]  # of the crops, by video


def crop(grey):
    image_HWC = np.full((299, 299, 3), grey, np.uint8)
    return cv2.imencode(".png", image_HWC)[1].tobytes()


def write_videos(run, dataset="set", **info):
    videos = {"video_id": IDS, "uri": [f"/data/{name}" for name in NAMES], "label": LABELS}
    videos |= {"dataset": [dataset] * 6, "group_id": IDS, "split": ["train"] * 6, "method": [None, "<swap>"] * 3}
    tables.write_table(f"{run}/videos", schemas.conform(pa.table(videos), schemas.VIDEOS), {"seed": 7}, **info)


def write_faces(run, keep_crops=True):
    rows = [
        {
            "video_id": IDS[number],
            "status": "ok" if num else "decode_error" if NAMES[number] == "broken.mp4" else "no_face",
            "error": None if num else f"cannot be read: <img src=x onerror=alert(2)> {NAMES[number]}",
            "num_frames_seen": 4,
            "frame_index": [0, 9][:num],
            "pts_s": [0.0, 0.3][:num],
            "box_xyxy_px": [[0.0, 0.0, 9.0, 9.0]] * num,
            "detection_score": [1.0] * num,
            "crop": [crop(COLOURS[number]), b"not an image"] if num and keep_crops else None,
            "feature": [[0.0, 0.0]] * num,
        }
        for number, num in enumerate(NUM_FACES)
    ]
    table = pa.Table.from_pylist(rows, schemas.faces_schema(2))
    config = {"backbone": "vgg16", "weights": "imagenet"}
    for start in (0, 2, 4):
        tables.write_part(f"{run}/faces", table[start : start + 2], config)
    stages = {"num_frames_seen": 24.0, "num_faces": 8.0, "look_s": 4.0, "feature_s": 2.0}
    tables.write_info(f"{run}/faces", config, num_rows=6, num_new=6, seconds=3.0, stages=stages)


def write_selection(run, strategy="entropy"):
    config = {"strategy": strategy, "rounds": 1, "frames": 4}
    probability = float("nan") if strategy == "random" else 0.25
    scored = {
        "video_id": IDS[:4],
        "label": LABELS[:4],
        "frame_index": [[0, 9]] * 4,
        "probability": [[probability] * 2] * 4,
        "uncertainty": [[0.6, 0.5], [0.4, 0.3], [0.2, 0.1], [0.05, 0.04]],
    }
    tables.write_table(f"{run}/uncertainty", schemas.conform(pa.table(scored), schemas.UNCERTAINTY), config)
    selected = {
        "video_id": [IDS[0], IDS[0], IDS[1], IDS[1]],
        "frame_index": [0, 9, 0, 9],
        "label": [0, 0, 1, 1],
        "probability": [probability] * 4,
        "uncertainty": [0.6, 0.5, 0.4, 0.3],
        "order": [0, 1, 0, 1],
    }
    tables.write_table(
        f"{run}/representative",
        schemas.conform(pa.table(selected), schemas.REPRESENTATIVE),
        config,
        num_per_class=2,
        shortage={"real": 0, "fake": 0},
        histogram={"edges": [0.0, 0.3, 0.6], "real": [2, 2], "fake": [2, 2]},
        least_uncertain=[{"video_id": IDS[2], "frame_index": 9}, {"video_id": IDS[3], "frame_index": 9}],
    )
    ranking = {
        "video_id": [IDS[number] for number in (0, 1, 2, 3, 4, 5)],
        "label": LABELS,
        "num_representative": [2, 2, 0, 0, 0, 0],
        "mean_uncertainty": [0.55, 0.35, 0.15, 0.045, None, None],
        "rank": list(range(6)),
    }
    tables.write_table(f"{run}/ranking", schemas.conform(pa.table(ranking), schemas.RANKING), config)
    distilled = tables.read_table(f"{run}/videos", "index")[:2].append_column("rank", pa.array([0, 1]))
    tables.write_table(f"{run}/distilled", schemas.conform(distilled, schemas.DISTILLED), config | {"ratio": 0.33})
    covered = {"dimension": ["method", "group"], "value": [HOSTILE, "g"], "num_full": [6, 6], "num_distilled": [2, 0]}
    tables.write_table(f"{run}/coverage", schemas.conform(pa.table(covered), schemas.COVERAGE), config)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, read_page):
    """A run with all tables, reported; the folder is named after its dataset's hostile name."""
    run = str(tmp_path_factory.mktemp("runs") / "run <b>")
    write_videos(run, layout="folders", warnings=[f"{HOSTILE} has no label"] * 25, dataset="synthetic")
    write_faces(run)
    write_selection(run)
    summary = report.run(report.Config(out=run))
    return run, summary, read_page(run)


def test_summary_and_files(whole_run):
    run, summary, _ = whole_run
    assert summary == {"report": f"{run}/report/index.html", "figures": 3, "tables": list(contents.MADE_BY)}
    assert storage.list_files(f"{run}/report") == [
        "frequency.png",
        "frequency_real_fake.png",
        "index.html",
        "uncertainty.png",
    ]
    for name in storage.list_files(f"{run}/report"):
        if name.endswith(".png"):
            image = cv2.imdecode(np.frombuffer(storage.read_bytes(f"{run}/report/{name}"), np.uint8), cv2.IMREAD_COLOR)
            assert image.shape[1] == 2035
            assert image.std() > 5


def test_numbers_are_those_of_the_tables(whole_run):
    _, _, page = whole_run
    for said in (
        "Videos 6 3 real 3 fake 6 train",
        "Faces 8 in 4 videos, 2 without",
        "Representative frames 4 2 real 2 fake",
        "Distilled videos 2 1 real 1 fake 33.3 % of 6 ranked",
        "Half of the 4 representative frames lie in 1 of 6 videos; 4 videos have none.",
        f"1 real {NAMES[0]} 2 0.55 2 fake {NAMES[1]} <swap> 2 0.35 3 real {NAMES[2]} 0 0.15",
        "real frame 0 " + NAMES[0] + " P(fake) 0.25 uncertainty 0.6",
        f"{HOSTILE} 6 2",
        "It has videos of 0 of 1 groups",
        "no_face · 1 of 6 videos",
        "decode_error · 1 of 6 videos",
        "extract, from start to end 6 videos, 8 faces 3.0 2 videos/s · 2.67 faces/s",
        "decode, detect, crop 6 videos, 24 frames 4.0 1.5 videos/s · 6 frames/s",
        "Synthetic data",
        "backbone vgg16",
    ):
        assert said in page.words


def test_contact_sheets_show_the_right_faces(whole_run):
    """Of each video the crop of frame 0 is an image of its own grey, that of frame 9 is damaged."""
    _, _, page = whole_run
    shown = [attrs for tag, attrs in page.tags if tag == "img" and attrs["src"].startswith("data:image/jpeg")]
    assert [attrs["alt"] for attrs in shown] == [f"Face in frame 0 of {name}" for name in NAMES[:2]]
    for attrs, grey in zip(shown, COLOURS, strict=False):
        content = np.frombuffer(base64.b64decode(attrs["src"].partition(",")[2]), np.uint8)
        thumbnail_HWC = cv2.imdecode(content, cv2.IMREAD_COLOR)
        assert thumbnail_HWC.shape == (192, 192, 3)
        assert np.abs(thumbnail_HWC.astype(int) - grey).max() <= 2
    assert page.words.count("no crop kept") == 4  # two of the most, two of the least uncertain faces


def test_hostile_names_stay_text(whole_run):
    _, _, page = whole_run
    assert HOSTILE in page.words
    assert "<img src=x onerror=alert(2)>" in page.words
    assert "d\\u202egpj.mp4" in page.words


def test_images_are_in_the_page(whole_run):
    _, _, page = whole_run
    assert len(page.attributes("src", "srcset")) == 3 * 4 + 2


def test_warnings_of_index_are_shown_up_to_a_number(whole_run):
    _, _, page = whole_run
    assert page.words.count("has no label") == 20
    assert "and 5 more, in videos/_table.json" in page.words


def test_only_indexed(tmp_path, read_page):
    write_videos(str(tmp_path))
    summary = report.run(report.Config(out=str(tmp_path)))
    assert (summary["figures"], summary["tables"]) == (0, ["videos"])
    page = read_page(tmp_path)
    assert "Faces \N{EN DASH} not yet" in page.words
    assert f"raydistal extract --out {tmp_path}" in page.words
    assert "Synthetic data" not in page.words
    assert not page.attributes("src")


def test_extracting(tmp_path, read_page):
    """Parts without _table.json: the job is running, or was killed."""
    write_videos(str(tmp_path))
    write_faces(str(tmp_path))
    storage.delete(str(tmp_path / "faces" / tables.INFO))
    report.run(report.Config(out=str(tmp_path)))
    page = read_page(tmp_path)
    assert "Faces 8 in 4 videos, 2 without" in page.words
    assert "The table faces is unfinished" in page.words
    assert "Throughput" not in page.words


def test_crops_not_kept_and_frames_chosen_at_random(tmp_path, coarse, read_page):
    write_videos(str(tmp_path))
    write_faces(str(tmp_path), keep_crops=False)
    write_selection(str(tmp_path), strategy="random")
    report.run(report.Config(out=str(tmp_path)))
    page = read_page(tmp_path)
    assert page.words.count("no crop kept") == 6
    assert "Faces selected first" in page.words
    assert "P(fake)" not in page.words


def test_number_of_faces(tmp_path):
    write_videos(str(tmp_path))
    write_faces(str(tmp_path))
    write_selection(str(tmp_path))
    found = contents.read(str(tmp_path), num_faces=2)
    cards = [(face.video_id, face.frame_index, face.label, face.uncertainty) for face in found.most_uncertain]
    assert cards == [(IDS[0], 0, 0, 0.6), (IDS[1], 0, 1, 0.4)]
    cards = [(face.video_id, face.frame_index, face.label, face.uncertainty) for face in found.least_uncertain]
    assert cards == [(IDS[2], 9, 0, 0.1), (IDS[3], 9, 1, 0.04)]


def test_s3(s3, coarse, read_page):
    run = f"{s3}/run"
    write_videos(run)
    write_faces(run)
    write_selection(run)
    assert report.run(report.Config(out=run))["report"] == f"{run}/report/index.html"
    page = read_page(run)
    assert "Faces 8 in 4 videos" in page.words
    assert sum(place.startswith("data:image/jpeg") for place in page.attributes("src")) == 2


def test_only_parts_with_faces_of_the_sheets_are_opened(tmp_path):
    write_videos(str(tmp_path))
    write_faces(str(tmp_path))
    write_selection(str(tmp_path))
    third = sorted(tmp_path.glob("faces/part-*.parquet"), key=lambda path: path.stat().st_size)[0]  # no faces in it
    found = contents.read(str(tmp_path), num_faces=24)
    parts = set(found.faces["part"].to_pylist())
    assert str(third) in parts
    third.unlink()
    frames = [(face.video_id, face.frame_index) for face in found.most_uncertain]
    thumbnails = contents._read_crops(f"{tmp_path}/faces", found.faces, frames)
    assert thumbnails.keys() == {(IDS[0], 0), (IDS[1], 0)}


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="raydistal index"):
        report.run(report.Config(out=str(tmp_path / "absent")))


@pytest.mark.parametrize("num_faces", [1, 201])
def test_wrong_use(num_faces):
    with pytest.raises(UserError, match="--num-faces"):
        report.Config(out="run", num_faces=num_faces)


def test_is_cheap_to_import():
    code = (
        "import sys, raydistal.pipelines.report; assert not {'matplotlib', 'jinja2', 'cv2', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.browser
def test_in_a_browser(whole_run, look):
    _, summary, _ = whole_run
    assert look(summary["report"]) == 3
