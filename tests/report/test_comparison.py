"""The page of a comparison, from its table on disk. All numbers are drawn from a random generator."""

import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.report import comparison, figures
from raydistal.report.page import SIGNS, Cell, Tile

ARCHITECTURES = ("xception", "densenet121 <b>")
SETS = [("full", "full", 1.0)] + [
    (f"distill-{100 * share:.0f}{suffix}", kind, share)
    for share in (0.5, 0.2, 0.05)
    for kind, suffix in (("distilled", ""), ("random", "-random"), ("frame_count", "-frame_count"))
]
FACES = (100, 300, 1000, 3000)
NUM_SEEDS = 3
HOSTILE = "<script>alert(1)</script>"
CONFIG = {
    "data": "/runs/one two",
    "architectures": ["xception", "densenet121"],
    "sets": ["0.5", "0.2", "0.05"],
    "faces": [100, 300],
    "seeds": NUM_SEEDS,
    "split": "test",
    "metric": "accuracy",
    "margin": 0.05,
    "training": {"weights": "imagenet", "recipe": "thesis", "epochs": 0, "device": "auto", "cpus": 1},
}


def row(architecture, name, kind, share, num_faces, seed, accuracy):
    return {
        "architecture": architecture,
        "set": name,
        "kind": kind,
        "share": share,
        "num_videos": round(500 * share),
        "num_faces": num_faces,
        "seed": seed,
        "precision": accuracy - 0.02,
        "recall": accuracy + 0.03,
        "f1": accuracy + 0.005,
        "accuracy": accuracy,
        "auc": min(1.0, accuracy + 0.04),
        "images": 20 * num_faces,
        "seconds": 0.01 * 20 * num_faces,
        "gpu_seconds": 0.0,
    }


def make_rows():
    rng = np.random.default_rng(0)
    rows = []
    for number, architecture in enumerate(ARCHITECTURES):
        for name, kind, share in SETS:
            accuracy = 0.93 - 0.04 * number + 0.03 * np.log(share) * (1.4 if kind == "random" else 1)
            for seed in range(NUM_SEEDS):
                rows.append(
                    row(architecture, name, kind, share, round(5000 * share), seed, accuracy + rng.normal() / 200)
                )
        for num in FACES:
            accuracy = 0.95 - 0.04 * number - 1.5 / num**0.5
            rows += [row(architecture, f"faces-{num}", "faces", 0.0, num, seed, accuracy) for seed in range(NUM_SEEDS)]
    return rows


def summarize(rows):
    made = []
    for key in dict.fromkeys((one["architecture"], one["set"]) for one in rows):
        some = [one for one in rows if (one["architecture"], one["set"]) == key]
        mean = {
            name: float(np.mean([one[name] for one in some]))
            for name in some[0]
            if name not in ("set", "kind", "architecture")
        }
        kept = ("share", "precision", "recall", "f1", "images", "seconds", "gpu_seconds")
        made.append({name: some[0][name] for name in ("architecture", "set", "kind", "num_videos")})
        made[-1] |= {name: mean[name] for name in kept} | {"num_seeds": len(some)}
        for name in ("accuracy", "auc"):
            made[-1] |= {
                f"{name}_mean": mean[name],
                f"{name}_low": mean[name] - 0.03,
                f"{name}_high": min(1.0, mean[name] + 0.025),
            }
    return made


def make_verdicts(summary):
    by_key = {(one["architecture"], one["set"]): one for one in summary}
    made = []
    for (architecture, name), one in by_key.items():
        if one["kind"] != "distilled":
            continue
        for versus, other in (("full", "full"), ("random", f"{name}-random"), ("frame_count", f"{name}-frame_count")):
            difference = one["accuracy_mean"] - by_key[architecture, other]["accuracy_mean"]
            low, high = difference - 0.025, difference + 0.025
            if versus == "full":
                verdict = "non-inferior" if low > -0.05 else "inferior" if high < -0.05 else "cannot tell"
            else:
                verdict = "better" if low > 0 else "worse" if high < 0 else "cannot tell"
            text = f"{architecture} on {name} against {other}: {verdict}. {HOSTILE}"
            margin = 0.05 if versus == "full" else None
            made.append({"architecture": architecture, "set": name, "metric": "accuracy", "versus": versus})
            made[-1] |= {
                "difference": difference,
                "low": low,
                "high": high,
                "margin": margin,
                "verdict": verdict,
                "text": text,
            }
    return made


def save(location, **changes):
    rows = make_rows()
    summary = summarize(rows)
    faces = [one for one in rows if one["kind"] == "faces" and one["seed"] == 0]
    info = {
        "summary": summary,
        "verdicts": make_verdicts(summary),
        "curve": [
            {
                "architecture": one["architecture"],
                "num_faces": one["num_faces"],
                "accuracy_mean": one["accuracy"],
                "accuracy_low": one["accuracy"] - 3 / one["num_faces"] ** 0.6,
                "accuracy_high": one["accuracy"] + 2 / one["num_faces"] ** 0.6,
            }
            for one in faces
        ],
        "test": {"dataset": "synthetic", "num_videos": 240, "num_real": 80, "num_fake": 160},
        "protocol": {"id": "test-mean-1a2b3c4d", "text": "Videos of split test."},
        "synthetic": True,
    }
    tables.write_table(
        f"{location}/comparison", pa.Table.from_pylist(rows, schemas.COMPARISON), CONFIG, **info | changes
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory, read_page):
    location = str(tmp_path_factory.mktemp("comparisons") / "all <b>")
    save(location)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        return location, comparison.write(location), read_page(location)


@pytest.fixture(scope="module")
def found(compared):
    place = f"{compared[0]}/comparison"
    return comparison.Comparison(tables.read_info(place), tables.read_table(place, "compare").to_pylist())


def test_files(compared):
    location, path, _ = compared
    assert path == f"{location}/report/index.html"
    assert storage.list_files(f"{location}/report") == ["accuracy.png", "index.html", "quantity.png"]


def test_performance_is_table_1(found):
    table = comparison.performance(found)
    assert [(row[0].text, row[0].note) for row in table.rows] == [
        (name, architecture) for name, _, _ in SETS for architecture in ARCHITECTURES
    ]
    (summary,) = (one for one in found.sets if (one["set"], one["architecture"]) == ("distill-20", ARCHITECTURES[1]))
    (row,) = (row for row in table.rows if (row[0].text, row[0].note) == ("distill-20", ARCHITECTURES[1]))
    mean, low, high = (100 * summary[f"accuracy_{part}"] for part in ("mean", "low", "high"))
    auc, auc_low, auc_high = (summary[f"auc_{part}"] for part in ("mean", "low", "high"))
    assert row[1:] == [
        *(Cell(f"{100 * summary[name]:.1f}") for name in ("precision", "recall", "f1")),
        Cell(f"{mean:.1f}", f"{low:.1f} to {high:.1f}"),
        Cell(f"{auc:.3f}", f"{auc_low:.3f} to {auc_high:.3f}"),
        Cell("100"),
        Cell("20,000", "20 % of full"),
        Cell("3.33 min"),
    ]


def test_time_on_gpus_is_told(found):
    rows = [row | {"gpu_seconds": 2 * row["seconds"]} for row in found.info["summary"]]
    table = comparison.performance(comparison.Comparison(found.info | {"summary": rows}, found.rows))
    assert table.rows[0][-1] == Cell("16.7 min", "GPU 33.3 min")


def test_accuracies_are_figure_6(found, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "picture", lambda name, alt, draw: drawn.append((alt, draw.keywords)))
    comparison.accuracies(found)
    ((alt, shown),) = drawn
    names = [name for name, kind, _ in SETS if kind in ("full", "distilled")]
    assert shown["groups"] == [f"{name}\n{architecture}" for name in names for architecture in ARCHITECTURES]
    accuracy = {(one["set"], one["architecture"]): one["accuracy_mean"] for one in found.sets}
    assert [bars.name for bars in shown["bars"]] == list(comparison.KINDS.values())
    for bars, suffix in zip(shown["bars"], (None, "", "-random", "-frame_count"), strict=True):
        expected = [
            accuracy.get((name if suffix is None else name + suffix, architecture))
            if (suffix is None) == (name == "full")
            else None
            for name in names
            for architecture in ARCHITECTURES
        ]
        assert bars.value_G == expected
    assert shown["line"] == (160 / 240, "always the larger class: 66.7 %")
    assert f"distill-50 xception, random: {100 * accuracy['distill-50-random', 'xception']:.1f} %" in alt


def test_quantity_is_figure_2_of_ckd(found, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "picture", lambda name, alt, draw: drawn.append(draw.keywords["panels"]))
    comparison.quantity(comparison.Comparison(found.info | {"curve": found.info["curve"][::-1]}, found.rows))
    (panel,) = drawn[0]
    assert panel.is_log_x
    assert [line.name for line in panel.lines] == list(ARCHITECTURES[::-1])
    for line in panel.lines:
        rows = [row for row in found.info["curve"] if row["architecture"] == line.name]
        assert line.x == list(FACES)
        assert line.y == [row["accuracy_mean"] for row in rows]
        assert line.low == [row["accuracy_low"] for row in rows]


def test_verdicts_have_signs_and_points(found):
    given = [{"difference": -0.0151, "low": -0.04, "high": 0.01, "verdict": word} for word in SIGNS]
    told = comparison.verdicts(comparison.Comparison(found.info | {"verdicts": given}, []))
    assert [one["sign"] for one in told] == ["bad", "bad", "open", "good", "good"]
    assert told[0]["numbers"] == ["-1.5", "-4.0", "+1.0"]


def test_tiles_and_notices(found):
    verdicts = [(one["versus"], one["verdict"]) for one in found.info["verdicts"]]
    assert comparison.tiles(found) == [
        Tile("Detectors trained", 84, ["2 models · 14 sets · 3 seeds"]),
        Tile("Test videos", 240, ["the same for all"], (80, 160)),
        Tile(
            "As good as full", f"{verdicts.count(('full', 'non-inferior'))} of 6", ["distilled sets are non-inferior"]
        ),
        Tile("Better than random", f"{verdicts.count(('random', 'better'))} of 6", ["distilled sets are better"]),
    ]
    assert comparison.notices(found) == []
    few = {
        "summary": [row | {"num_seeds": 1} for row in found.info["summary"]],
        "test": found.info["test"] | {"num_videos": 30},
    }
    assert comparison.notices(comparison.Comparison(found.info | few, found.rows)) == [
        "Only 1 seed: the variation between trainings is poorly known.",
        "Only 30 test videos: small differences cannot be detected.",
    ]


def test_page(compared, found):
    location, _, page = compared
    for said in (
        "raydistal · comparison report all <b> tested on synthetic · protocol test-mean-1a2b3c4d",
        "Synthetic data",
        "xception on distill-5 against full: inferior. " + HOSTILE + " accuracy -8.9 points (-11.4 to -6.4); "
        "margin 5.0 points",
        "Performance on 240 test videos of synthetic, protocol test-mean-1a2b3c4d",
        "Videos of split test.",
        f"{location}/evaluation/report/index.html",
        f"raydistal compare --data '/runs/one two' --out '{location}' --seeds 5 \\ --architectures "
        "xception densenet121 --sets 0.5 0.2 0.05 --faces 100 300 --split test --metric accuracy --margin 0.05 "
        "--weights imagenet --recipe thesis",
    ):
        assert said in page.words
    assert page.words.index("Verdicts") < page.words.index("Performance")
    assert page.words.count("faces-100 ") == NUM_SEEDS * len(ARCHITECTURES)


def test_without_a_curve(tmp_path, read_page, coarse):
    save(tmp_path, curve=[])
    comparison.write(str(tmp_path))
    assert "How many faces it takes" not in read_page(tmp_path).words


def test_no_comparison(tmp_path):
    with pytest.raises(UserError, match="raydistal compare"):
        comparison.write(str(tmp_path))


@pytest.mark.browser
def test_in_a_browser(compared, look):
    _, path, _ = compared
    assert look(path) == 2
