"""What the page says, as plain values; tests/pipelines/test_report.py reads the page itself."""

import dataclasses

import pyarrow as pa
import pytest

from raydistal import schemas
from raydistal.report import distillation
from raydistal.report.contents import FACES, Contents
from raydistal.report.distillation import Failure, Share, Speed, Step
from raydistal.report.page import Tile

COUNTS = [3, 3, 1, 1, 0]  # representative frames of v0 ... v4; real, fake, real, fake, fake


def table(schema, **columns):
    """`columns` as a table of `schema`; what is required and not given is empty."""
    num_rows = len(next(iter(columns.values())))
    defaults = {pa.string(): "", pa.int8(): 0, pa.int32(): 0, pa.int64(): 0, pa.float64(): 0.5}
    for field in schema:
        if not field.nullable:
            columns.setdefault(field.name, [defaults[field.type]] * num_rows)
    return schemas.conform(pa.table(columns), schema)


@pytest.fixture
def contents():
    """A run of 6 videos: 5 of split train, which were ranked, 2 of those kept, and an unlabelled one."""
    ids, labels = [f"v{number}" for number in range(6)], [0, 1, 0, 1, 1, None]
    infos = {name: {"config": {}} for name in ("videos", "faces", "uncertainty", "ranking", "coverage")}
    infos["representative"] = {
        "config": {"strategy": "entropy"},
        "num_per_class": 4,
        "shortage": {"real": 0, "fake": 0},
    }
    infos["distilled"] = {"config": {"frames": 8, "strategy": "entropy", "ratio": 0.4}}
    video_of = [number for number, count in enumerate(COUNTS) for _ in range(count)]
    return Contents(
        location="/runs/one two",
        infos=infos,
        videos=table(
            schemas.VIDEOS,
            video_id=ids,
            label=labels,
            uri=[f"/data/{name}.mp4" for name in ids],
            split=["train"] * 5 + ["pool"],
        ),
        faces=table(
            FACES,
            video_id=ids,
            status=["ok", "ok", "ok", "ok", "no_face", "decode_error"],
            error=[None, None, None, None, "no face in 4 frames", "line one\n  line two"],
            num_faces=[4, 4, 4, 1000, 0, 0],
        ),
        representative=table(
            schemas.REPRESENTATIVE,
            video_id=[ids[number] for number in video_of],
            label=[labels[number] for number in video_of],
            uncertainty=[0.6, 0.5, 0.4, 0.7, 0.6, 0.3, 0.2, 0.1],
        ),
        ranking=table(
            schemas.RANKING, video_id=ids[:5], label=labels[:5], num_representative=COUNTS, rank=list(range(5))
        ),
        distilled=table(schemas.DISTILLED, video_id=ids[:2], label=labels[:2], rank=[0, 1], split=["train", "train"]),
        coverage=schemas.COVERAGE.empty_table(),
        most_uncertain=[],
        least_uncertain=[],
    )


def without(contents, *names):
    """`contents` of a run that has not come so far."""
    infos = {name: info for name, info in contents.infos.items() if name not in names}
    emptied = {name: getattr(contents, name)[:0] for name in names if hasattr(contents, name)}
    return dataclasses.replace(contents, infos=infos, **emptied)


SELECTED = ("uncertainty", "representative", "ranking", "distilled", "coverage")


def test_tiles(contents):
    assert distillation.tiles(contents) == [
        Tile("Videos", 6, ["5 train · 1 pool · 1 unlabelled"], (2, 3)),
        Tile("Faces", 1012, ["in 4 videos, 2 without"]),
        Tile("Representative frames", 8, [], (4, 4)),
        Tile("Distilled videos", 2, ["40 % of 5 ranked"], (1, 1)),
    ]


def test_tiles_of_a_run_that_was_only_indexed(contents):
    assert [tile.value for tile in distillation.tiles(without(contents, "faces", *SELECTED))] == [6, None, None, None]


def test_steps(contents):
    infos = {name: info for name, info in contents.infos.items() if name in ("videos", "faces")} | {"uncertainty": {}}
    assert distillation.steps(dataclasses.replace(contents, infos=infos)) == [
        Step("index", "done", "6 videos listed"),
        Step("extract", "done", "6 videos looked at"),
        Step("score", "unfinished", "faces scored, unfinished"),
        Step("select", "open", "not yet"),
        Step("rank", "open", "not yet"),
        Step("distil", "open", "not yet"),
    ]


def test_no_notices_when_all_is_well(contents):
    assert distillation.notices(contents) == []


def test_notices(contents):
    contents.infos["faces"]["config"]["weights"] = "random"
    contents.infos["uncertainty"].clear()
    contents.infos["representative"]["config"]["strategy"] = "random"
    contents.infos["representative"]["shortage"]["fake"] = 3
    all_kept = dataclasses.replace(contents, distilled=contents.ranking)
    assert distillation.notices(all_kept) == [
        "The table uncertainty is unfinished: this page shows what is in it so far.",
        "The features come from random weights: uncertainty, and what is selected by it, mean little.",
        "Frames were selected at random: a baseline to compare other strategies with.",
        "Only 1 of 4 fake frames were there to select.",
        "1 of the 5 distilled videos have no representative frame and rank by their mean uncertainty alone. "
        "More --frames would tell more videos apart.",
    ]
    contents.infos["ranking"]["config"]["arrange"] = "groups"  # some of a group have none, as was asked for
    assert len(distillation.notices(all_kept)) == 4


@pytest.mark.parametrize(
    ("counts", "half", "none"), [([3, 3, 1, 1, 0], 2, 1), ([8, 0, 0], 1, 2), ([1, 2, 2], 2, 0), ([0, 0], 0, 2)]
)
def test_concentration(contents, counts, half, none):
    names = [f"v{number}" for number in range(len(counts))]
    contents = dataclasses.replace(
        contents, ranking=table(schemas.RANKING, num_representative=counts, video_id=names, label=[0] * len(names))
    )
    assert distillation.concentration(contents) == (
        f"Half of the {sum(counts)} representative frames lie in {half} of {len(counts)} videos; "
        f"{none} videos have none."
    )


def test_thresholds(contents):
    assert [distillation._threshold(contents, label) for label in (0, 1)] == [0.2, 0.1]
    contents.infos["representative"]["config"]["rounds"] = 3  # uncertainties of different probes
    assert distillation._threshold(contents, 0) is None
    assert distillation._threshold(without(contents, *SELECTED), 0) is None


def test_coverage():
    rows = [
        ("label", "fake", 3, 1),
        ("label", "real", 1, 1),
        ("compression", "unknown", 4, 2),
        ("group", "g0", 2, 2),
        ("group", "g1", 1, 0),
        ("group", "g2", 1, 1),
        ("lighting", "dim", 4, 0),
    ]
    names = schemas.COVERAGE.names
    covered = table(schemas.COVERAGE, **dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    assert distillation.coverage(covered) == {
        "Class": [Share("fake", 3, 1, 0.75, 0.5), Share("real", 1, 1, 0.25, 0.5)],
        "lighting": [Share("dim", 4, 0, 1.0, 0.0)],
    }
    assert distillation._groups(covered) == (2, 3)


def test_failures(contents):
    assert distillation.failures(contents) == [
        Failure("no_face", distillation.REASONS["no_face"], 1, [("/data/v4.mp4", "no face in 4 frames")]),
        Failure("decode_error", distillation.REASONS["decode_error"], 1, [("/data/v5.mp4", "line one line two")]),
    ]


def test_failures_are_many_messages_long_and_videos_gone(contents):
    ids = [f"w{number}" for number in range(9)]
    faces = table(FACES, video_id=ids, status=["crashed"] * 9, error=["x" * 1000] * 9)
    (failure,) = distillation.failures(dataclasses.replace(contents, faces=faces))
    assert failure[2:] == (9, [(name, "x" * 300) for name in ids[:5]])


def test_every_status_has_a_reason():
    assert {*distillation.REASONS} == {*schemas.STATUSES} - {"ok"}


def test_speeds():
    stages = {"num_frames_seen": 600.0, "num_faces": 500.0, "look_s": 50.0, "feature_s": 20.0}
    assert distillation.speeds({"num_rows": 70, "num_new": 60, "seconds": 40.0, "stages": stages}) == [
        Speed("extract, from start to end", "60 videos, 500 faces", 40.0, ["1.5 videos/s", "12.5 faces/s"]),
        Speed("decode, detect, crop", "60 videos, 600 frames", 50.0, ["1.2 videos/s", "12 frames/s"]),
        Speed("features", "500 faces", 20.0, ["25 faces/s"]),
    ]
    assert distillation.speeds({"num_rows": 60, "seconds": 40.0}) == [
        Speed("extract, from start to end", "60 videos", 40.0, ["1.5 videos/s"])
    ]


def test_a_run_that_added_nothing_has_no_speed():
    assert distillation.speeds({}) == distillation.speeds({"num_rows": 60, "num_new": 0, "seconds": 0.1}) == []


def test_commands(contents):
    out = "--out '/runs/one two'"
    retry = f"raydistal extract {out} --retry-failed"
    cases = {
        ("faces", *SELECTED): [f"raydistal extract {out}"],
        SELECTED: [retry, f"raydistal select {out} --ratio 0.2 --frames 500"],
        (): [
            retry,
            f"raydistal select {out} --ratio 0.1 \\\n  --frames 8 --strategy entropy --split train",
            "raydistal extract --manifest '/runs/one two/distilled' --out NEW_RUN",
        ],
    }
    for missing, expected in cases.items():
        assert [command for _, command in distillation.commands(without(contents, *missing))] == expected


def test_versions_that_differ_between_tables_are_all_told():
    infos = {
        "videos": {"versions": {"ray": "2.60.0", "av": "18.1.0"}},
        "faces": {"versions": {"ray": "2.60.1"}},
        "x": {},
    }
    assert distillation._versions(infos) == {"ray": "2.60.0, 2.60.1", "av": "18.1.0"}
