"""The page of an evaluation, from its tables on disk. All scores are drawn from a random generator."""

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.report import evaluation, figures
from raydistal.report.page import Cell

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script>$x^{"
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", HOSTILE)
NUM_REAL, NUM_FAKE = 40, 160  # videos
# How far apart real and fake are for each detector on each dataset, in deviations.
SKILLS = {
    ("xception", "ff++"): 3.0,
    ("xception", "celeb-df"): 1.2,
    ("efficientnet_b0 <b>", "ff++"): 2.4,
    ("efficientnet_b0 <b>", "celeb-df"): 0.8,
    ("_mobile", "ff++"): 1.8,
    ("_mobile", "celeb-df"): 0.1,
}
DETECTORS = list(dict.fromkeys(detector for detector, _ in SKILLS))
DATASETS = list(dict.fromkeys(dataset for _, dataset in SKILLS))


def draw(detector, dataset, level):
    """Labels, methods and probabilities of all videos or frames of a dataset."""
    rng = np.random.default_rng([*map(ord, detector + dataset + level)])
    per_video = 10 if level == "frame" else 1
    label_N = np.repeat([0, 1], [NUM_REAL * per_video, NUM_FAKE * per_video])
    method_N = np.array([METHODS[number % 4] if label else "real" for number, label in enumerate(label_N)])
    skill = SKILLS[detector, dataset] * (0.7 if level == "frame" else 1)
    logit_N = rng.normal(size=len(label_N)) + (label_N - 0.5) * skill - 0.3 * (method_N == "FaceSwap") * skill
    return label_N, method_N, 1 / (1 + np.exp(-1.5 * logit_N))


def measure(label_N, probability_N):
    """By metric."""
    called_N = probability_N > 0.5
    tn, fp, fn, tp = (int(np.sum((label_N == is_) & (called_N == called))) for is_ in (0, 1) for called in (0, 1))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    fpr, tpr, _ = roc_curve(label_N, probability_N)
    return {
        "accuracy": (tn + tp) / len(label_N),
        "balanced_accuracy": (recall + tn / (tn + fp)) / 2,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        **{"tn": tn, "fp": fp, "fn": fn, "tp": tp},
        "auc": roc_auc_score(label_N, probability_N),
        "ap": average_precision_score(label_N, probability_N),
        "eer": fpr[np.argmin(np.abs(fpr - (1 - tpr)))],
        "log_loss": -np.mean(np.log(np.where(label_N == 1, probability_N, 1 - probability_N))),
        "brier": np.mean((probability_N - label_N) ** 2),
        "ece": None,
    }


def metric_rows(detector, dataset, level):
    label_N, method_N, probability_N = draw(detector, dataset, level)
    found = [("all", metric, value, len(label_N)) for metric, value in measure(label_N, probability_N).items()]
    for category in ("real", *METHODS):
        of_N = method_N == category
        found.append((category, "accuracy", np.mean((probability_N > 0.5)[of_N] == label_N[of_N]), int(of_N.sum())))
    fixed = {"model_id": "m", "detector": detector, "dataset": dataset, "split": "test", "level": level}
    rows = []
    for slice_, metric, value, num in found:
        reach = None if value is None or value > 1 else 1 / num**0.5
        low, high = (None, None) if reach is None else (max(0, value - reach), min(1, value + reach))
        rows.append(fixed | {"slice": slice_, "metric": metric, "value": value, "low": low, "high": high, "num": num})
    return rows


def curve(detector, dataset, level):
    label_N, _, probability_N = draw(detector, dataset, level)
    fpr, tpr, _ = roc_curve(label_N, probability_N)
    bin_N = np.minimum((probability_N * 10).astype(int), 9)
    bins = [bin_ for bin_ in range(10) if (bin_N == bin_).any()]
    reliability = {
        "probability": [float(probability_N[bin_N == bin_].mean()) for bin_ in bins],
        "share_fake": [float(label_N[bin_N == bin_].mean()) for bin_ in bins],
        "num": [int((bin_N == bin_).sum()) for bin_ in bins],
    }
    roc = {"fpr": fpr.tolist(), "tpr": tpr.tolist()}
    return {"detector": detector, "data": dataset, "level": level, "roc": roc, "reliability": reliability}


def save_run(location):
    """Five videos, the last one's crop not kept."""
    ids = [f"v{number}" for number in range(5)]
    videos = {"video_id": ids, "uri": [f"/data/{name} <i>.mp4" for name in ids], "label": [0, 1] * 2 + [0]}
    videos |= {
        "dataset": ["synthetic"] * 5,
        "group_id": ids,
        "split": ["test"] * 5,
        "method": [None, "<swap>"] * 2 + [None],
    }
    tables.write_table(f"{location}/videos", schemas.conform(pa.table(videos), schemas.VIDEOS), {})
    faces = []
    for number, video_id in enumerate(ids):
        image = cv2.imencode(".png", np.full((64, 64, 3), 40 + 40 * number, np.uint8))[1].tobytes()
        faces.append({"video_id": video_id, "status": "ok", "num_frames_seen": 2, "frame_index": [0, 7]})
        faces[-1] |= {"pts_s": [0.0, 0.3], "box_xyxy_px": [[0.0, 0.0, 9.0, 9.0]] * 2, "detection_score": [1.0] * 2}
        faces[-1] |= {"crop": [image, image] if number < 4 else None, "feature": [[0.0]] * 2}
    for some in (faces[:2], faces[2:]):
        tables.write_part(f"{location}/faces", pa.Table.from_pylist(some, schemas.faces_schema(1)), {})
    return [
        {"video_id": video_id, "frame_index": 7, "label": number % 2, "probability": (0.99, 0.02)[number % 2]}
        for number, video_id in enumerate(ids)
    ]


def info(run, worst):
    cost = {"images": 48_000, "seconds": 740.0, "gpu_seconds": 0.0, "device": "cpu"}
    return {
        "detectors": [
            {
                "name": name,
                "location": f"/detectors/{name}",
                "model_id": f"{number:012x}",
                "architecture": name.split()[0],
                "num_params": 4_008_829 * (number + 1),
                "input_px": 224,
                "threshold": {"video": 0.5, "frame": 0.4, "from": "val"},
                "cost": cost,
                "synthetic": True,
            }
            for number, name in enumerate(DETECTORS)
        ],
        "data": [
            {
                "name": name,
                "location": run,
                "datasets": ["synthetic"],
                "num_videos": NUM_REAL + NUM_FAKE,
                "num_real": NUM_REAL,
                "num_fake": NUM_FAKE,
                "num_without_faces": 3 + number,
                "protocol": f"protocol{number}",
                "num_resamples_skipped": {"video": 0, "frame": 0},
                "synthetic": True,
            }
            for number, name in enumerate(DATASETS)
        ],
        "protocol": {
            "id": "test-mean-1a2b3c4d",
            "text": f"Videos of split test. Those without a face count. {HOSTILE}",
        },
        "curves": [curve(*key, level) for level in ("frame", "video") for key in SKILLS],
        "worst": [{"detector": key[0], "data": key[1], **frame} for key in SKILLS for frame in worst],
    }


def save(location, run="", worst=None, **changes):
    run = run or f"{location}/run"
    content = info(run, save_run(run) if worst is None else worst) | changes
    rows = [row for key in SKILLS for level in ("frame", "video") for row in metric_rows(*key, level)]
    table = pa.Table.from_pylist(rows, schemas.METRICS)
    tables.write_table(
        f"{location}/metrics", table, {"split": "test", "aggregate": "mean", "no_face": "skip"}, **content
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, read_page):
    location = str(tmp_path_factory.mktemp("evaluations") / "all <b>")
    save(location)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        return location, evaluation.write(location), read_page(location)


@pytest.fixture(scope="module")
def results(evaluated):
    return evaluation.read(evaluated[0])


def shown(value):
    return f"{value:.3f}"


def test_files(evaluated):
    location, path, _ = evaluated
    assert path == f"{location}/report/index.html"
    names = [f"{name}_{number}.png" for name in ("categories", "curves_frame", "curves_video") for number in (0, 1)]
    assert storage.list_files(f"{location}/report") == [*names, "index.html"]


def test_matrix_of_detectors_and_datasets(results):
    table = evaluation.matrix(results)
    assert table.columns == ["detector", *DATASETS]
    assert [row[0].text for row in table.rows] == DETECTORS
    for row in table.rows:
        for dataset, cell in zip(DATASETS, row[1:], strict=True):
            label_N, _, probability_N = draw(row[0].text, dataset, "video")
            auc = roc_auc_score(label_N, probability_N)
            reach = 1 / (NUM_REAL + NUM_FAKE) ** 0.5
            interval = f"{shown(max(0, auc - reach))} to {shown(min(1, auc + reach))}"
            assert cell == Cell(shown(auc), interval, pytest.approx(max(0, 2 * auc - 1)))


def test_metrics_confusion_and_categories_are_those_of_the_table(results):
    for level in ("video", "frame"):
        table = evaluation.metric_table(results, results.info["data"][1], level)
        assert table.columns == [f"{level} level", *DETECTORS]
        for number, detector in enumerate(DETECTORS):
            label_N, method_N, probability_N = draw(detector, "celeb-df", level)
            measured = measure(label_N, probability_N)
            texts = {row[0].text: row[1 + number].text for row in table.rows}
            assert texts == {
                label: "\N{EN DASH}" if metric == "ece" else shown(measured[metric])
                for metric, label in evaluation.LABELS.items()
            }
            for row in evaluation.category_table(results, "celeb-df", level).rows:
                of_N = method_N == row[0].text
                right = np.mean((probability_N > 0.5)[of_N] == label_N[of_N])
                assert row[0].note == f"{of_N.sum():,} {level}s"
                assert row[1 + number].text == shown(right)
    label_N, _, probability_N = draw("xception", "ff++", "video")
    counts = measure(label_N, probability_N)
    assert evaluation.confusion(results, "xception", "ff++").rows == [
        [
            Cell("real"),
            *(Cell(str(counts[name]), f"{100 * counts[name] / 40:.1f} %", counts[name] / 40) for name in ("tn", "fp")),
        ],
        [
            Cell("fake"),
            *(
                Cell(str(counts[name]), f"{100 * counts[name] / 160:.1f} %", counts[name] / 160)
                for name in ("fn", "tp")
            ),
        ],
    ]


def test_tiles_and_notices(results):
    detectors, videos, without, best = evaluation.tiles(results)
    assert detectors[1:3] == (3, ["on 2 datasets"])
    assert videos[1:] == (400, [], (80, 320))
    assert without[1:3] == (7, ["1.75 % of the videos"])
    assert best.title == "Best video AUC"
    assert best.notes[1] == "xception on ff++"
    assert evaluation.notices(results) == []
    few = [
        data | {"num_without_faces": 20, "num_real": 4, "num_resamples_skipped": {"video": 2}}
        for data in results.info["data"][:1]
    ]
    assert evaluation.notices(evaluation.Results(info=results.info | {"data": few}, rows={})) == [
        "20 of the 200 videos of ff++ have no face to judge.",
        "ff++ has only 4 real and 160 fake videos: look at the intervals before comparing.",
        "Intervals on ff++ leave out 2 resamples of one class only.",
    ]


def test_many_detectors_are_rows_and_figures_show_the_leading_ones(results, monkeypatch):
    names = [f"d{number}" for number in range(10)]
    rows = {}
    for number, name in enumerate(names):
        row = {"detector": name, "value": number / 10, "low": None, "high": None, "num": 5}
        rows |= {(name, "ff++", "video", "all", "auc"): row, (name, "ff++", "video", "real", "accuracy"): row}
    told = {"detectors": [{"name": name} for name in names], "data": results.info["data"][:1]}
    curves = [results.info["curves"][0] | {"detector": name, "data": "ff++", "level": "video"} for name in names]
    many = evaluation.Results(info=results.info | told | {"curves": curves}, rows=rows)
    assert many.leading("ff++") == names[2:]
    table = evaluation.metric_table(many, told["data"][0], "video")
    assert table.columns == ["video level", *evaluation.LABELS.values()]
    assert [row[:2] for row in table.rows] == [[Cell(name), Cell(f"0.{n}00")] for n, name in enumerate(names)]
    drawn = []
    monkeypatch.setattr(evaluation, "picture", lambda name, alt, draw: drawn.append(draw.keywords))
    evaluation.curves(many, "ff++", "video", "name")
    evaluation.categories(many, "ff++", "name")
    assert [line.name for line in drawn[0]["panels"][0].lines] == names[2:]
    assert [bars.name for bars in drawn[1]["bars"]] == names[2:]
    assert evaluation.notices(many) == [
        "Figures and faces are those of the 8 detectors of the highest video AUC, tables of all."
    ]


def test_page(evaluated):
    location, _, page = evaluated
    for said in (
        "raydistal · evaluation report all <b> protocol test-mean-1a2b3c4d",
        "Synthetic data",
        "Videos 400 80 real 320 fake",
        "On ff++ ff++, 200 videos, protocol protocol0",
        "celeb-df, 2,000 frames, protocol protocol1",
        "Worst mistakes of efficientnet_b0 <b>, which calls fake above 0.5",
        f"Videos of split test. Those without a face count. {HOSTILE}",
        "real frame 7 v0 <i>.mp4 P(fake) 0.99 fake frame 7 v1 <i>.mp4 <swap> P(fake) 0.02",
        f"raydistal evaluate --out '{location}' --split test --aggregate mean --no-face skip \\ "
        "--detectors /detectors/xception '/detectors/efficientnet_b0 <b>' "
        f"/detectors/_mobile NEW_DETECTOR \\ --data '{location}/run' '{location}/run' NEW_RUN",
        "aggregate mean",
    ):
        assert said in page.words
    assert page.words.count("no crop kept") == 6  # the last video, for each detector and dataset
    assert "uncertainty" not in page.words
    faces = [place for place in page.attributes("src") if place.startswith("data:image/jpeg")]
    assert len(faces) == 6 * 4
    assert len(set(faces)) == 4


def test_without_curves_mistakes_or_methods(tmp_path, read_page, coarse):
    save(tmp_path, curves=[], worst=[])
    table = tables.read_table(f"{tmp_path}/metrics", "evaluate")
    table = table.filter(pc.equal(table["slice"], "all"))
    content = tables.read_info(f"{tmp_path}/metrics")
    for name in ("table", "fingerprint", "num_rows", "versions"):
        del content[name]
    tables.write_table(f"{tmp_path}/metrics", table, content.pop("config"), **content)
    evaluation.write(str(tmp_path))
    page = read_page(tmp_path)
    assert "On celeb-df" in page.words
    assert "Worst mistakes" not in page.words
    assert storage.list_files(f"{tmp_path}/report") == ["index.html"]


def test_no_evaluation(tmp_path):
    with pytest.raises(UserError, match="raydistal evaluate"):
        evaluation.write(str(tmp_path))


@pytest.mark.browser
def test_in_a_browser(evaluated, look):
    _, path, _ = evaluated
    assert look(path) == 6
