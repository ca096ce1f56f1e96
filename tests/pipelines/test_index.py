import json
from collections import defaultdict

import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.datasets.layout import video_id
from raydistal.errors import UserError
from raydistal.pipelines import index

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")


def folders():
    files = [f"real/{number} ü.mp4" for number in range(40)]
    return dict.fromkeys(files + [f"fake/m{number % 2}/{number}.png" for number in range(40)], "")


def manifest():
    rows = [f"{number}.mp4,{number % 2},person {number % 9}" for number in range(50)]
    return {"manifest.csv": "\n".join(["path,label,identity", *rows])} | {f"{number}.mp4": "" for number in range(50)}


def faceforensics(official=True):
    pairs = [(f"{number:03}", f"{number + 1:03}") for number in range(0, 40, 2)]
    ids = [id for pair in pairs for id in pair]
    both = [f"{a}_{b}" for a, b in [*pairs, *((b, a) for a, b in pairs)]]
    files = [f"original_sequences/youtube/c23/videos/{id}.mp4" for id in ids]
    files += [f"manipulated_sequences/{method}/c23/videos/{name}.mp4" for method in METHODS for name in both]
    files += [f"original_sequences/actors/c23/videos/{actor:02}__walk.mp4" for actor in range(12)]
    fakes = "manipulated_sequences/DeepFakeDetection/c23/videos"
    files += [f"{fakes}/{actor:02}_{(actor + 3) % 12:02}__walk__ABC.mp4" for actor in range(12)]
    split = {"train": pairs[:14], "val": pairs[14:17], "test": pairs[17:]} if official else {}
    return dict.fromkeys(files, "") | {f"splits/{name}.json": json.dumps(part) for name, part in split.items()}


def celebdf():
    reals = [f"Celeb-real/id{person}_{number:04}.mp4" for person in range(12) for number in range(4)]
    fakes = [
        f"Celeb-synthesis/id{person}_id{(person + step) % 12}_{number:04}.mp4"
        for person in range(12)
        for step in (1, 5)
        for number in range(4)
    ]
    youtube = [f"YouTube-real/{number:05}.mp4" for number in range(20)]
    lines = [f"1 {path}" for path in reals[::5] + youtube[:4]] + [f"0 {path}" for path in fakes[::5]]
    return dict.fromkeys(reals + fakes + youtube, "") | {"List_of_testing_videos.txt": "\n".join(lines)}


def dfdc():
    files = {}
    for part in range(3):
        names = [f"{part}{number:02}" for number in range(30)]
        records = {f"{name}.mp4": {"label": "FAKE", "original": f"{name[:2]}0.mp4"} for name in names}
        records |= {f"{part}{tens}0.mp4": {"label": "REAL", "original": None} for tens in range(3)}
        folder = f"dfdc_train_part_{part}"
        files |= {f"{folder}/{name}": "" for name in records} | {f"{folder}/metadata.json": json.dumps(records)}
    return files


LAYOUTS = {
    "folders": folders(),
    "manifest": manifest(),
    "faceforensics": faceforensics(),
    "faceforensics without lists": faceforensics(official=False),
    "celebdf": celebdf(),
    "dfdc": dfdc(),
}


def write(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_a_valid_table(tmp_path, name):
    write(tmp_path / "set", LAYOUTS[name])
    out = str(tmp_path / "run")
    summary = index.run(index.Config(videos=str(tmp_path / "set"), out=out))
    rows = tables.read_table(f"{out}/videos", "index").cast(schemas.VIDEOS).to_pylist()
    assert summary["layout"] == name.split()[0]
    assert len({row["video_id"] for row in rows}) == len(rows) == summary["videos"]
    assert {row["uri"] for row in rows} == {
        f"{tmp_path}/set/{path}" for path in LAYOUTS[name] if path.endswith((".mp4", ".png"))
    }
    row_of = {row["video_id"]: row for row in rows}
    splits_of, labels_of = defaultdict(set), defaultdict(set)
    for row in rows:
        splits_of[row["group_id"]].add(row["split"])
        labels_of[row["split"]].add(row["label"])
        if row["original_id"]:
            assert row["label"] == 1
            assert row_of[row["original_id"]]["label"] == 0
            assert row_of[row["original_id"]]["group_id"].split("@")[0] == row["group_id"].split("@")[0]
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert labels_of == {"train": {0, 1}, "val": {0, 1}, "test": {0, 1}}
    num_fakes_of_known = sum(row["original_id"] is not None for row in rows)
    assert num_fakes_of_known == (0 if name in ("folders", "manifest") else summary["fake"])


def test_whole_rows_summary_and_warnings(tmp_path, capsys):
    root = tmp_path / "my set"
    rows = "real/a.mp4,0,,train\nfake/a.mp4,1,real/a.mp4,\nb.mp4,,,\ngone.mp4,0,,\n"
    write(root, {"list.csv": "path,label,original,split\n" + rows, "real/a.mp4": "", "fake/a.mp4": "", "b.mp4": ""})
    config = index.Config(videos=str(root / "list.csv"), out=str(tmp_path / "run"))
    warnings = [
        "1 videos of list.csv are absent and are left out: gone.mp4",
        "no real videos in val, test",
        "no fake videos in val, test",
    ]
    expected = {
        "videos": 3,
        "real": 1,
        "fake": 1,
        "unlabelled": 1,
        "splits": {"train": 2, "pool": 1},
        "layout": "manifest",
        "warnings": warnings,
    }
    assert index.run(config) == expected | {"table": f"{tmp_path}/run/videos"}
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"warning: {warning}" for warning in warnings]
    assert captured.out == ""
    info = tables.read_info(f"{tmp_path}/run/videos")
    assert {key: info[key] for key in expected} == expected
    ids = {path: video_id("my set", path) for path in ("real/a.mp4", "fake/a.mp4", "b.mp4")}

    def row(path, label, group, split, original=None):
        fixed = {"dataset": "my set", "uri": f"{root}/{path}", "method": None, "compression": None}
        changing = {"label": label, "original_id": original, "group_id": f"my set/{group}", "split": split}
        return {"video_id": ids[path]} | fixed | changing

    table = tables.read_table(f"{tmp_path}/run/videos", "index")
    assert {row["video_id"]: row for row in table.to_pylist()} == {
        row["video_id"]: row
        for row in (
            row("real/a.mp4", 0, "fake/a.mp4", "train"),
            row("fake/a.mp4", 1, "fake/a.mp4", "train", ids["real/a.mp4"]),
            row("b.mp4", None, "b.mp4", "pool"),
        )
    }


def test_the_same_input_gives_the_same_table_and_the_seed_changes_it(tmp_path):
    write(tmp_path / "set", LAYOUTS["dfdc"])

    def table(**options) -> pa.Table:
        index.run(index.Config(videos=str(tmp_path / "set"), out=str(tmp_path / "run"), **options))
        return tables.read_table(str(tmp_path / "run/videos"), "index")

    first = table()
    assert table() == first
    assert table(seed=1)["split"] != first["split"]
    assert table(seed=1)["video_id"] == first["video_id"]
    named = table(dataset="other")
    assert set(named["dataset"].to_pylist()) == {"other"}
    assert not set(named["video_id"].to_pylist()) & set(first["video_id"].to_pylist())
    (tmp_path / "set").rename(tmp_path / "moved")
    index.run(index.Config(videos=str(tmp_path / "moved"), out=str(tmp_path / "run"), dataset="set"))
    assert tables.read_table(str(tmp_path / "run/videos"), "index").drop("uri") == first.drop("uri")


@pytest.mark.slow
def test_on_s3(tmp_path, s3):
    files = celebdf() | {"YouTube-real/ü 100% #1.mp4": ""}
    for path, text in files.items():
        storage.write_bytes(f"{s3}/set/{path}", text.encode())
    summary = index.run(index.Config(videos=f"{s3}/set", out=f"{s3}/run"))
    write(tmp_path / "set", files)
    local = index.run(index.Config(videos=str(tmp_path / "set"), out=str(tmp_path)))
    assert summary | {"table": ""} == local | {"table": ""}
    table = tables.read_table(f"{s3}/run/videos", "index")
    assert table.drop("uri") == tables.read_table(f"{tmp_path}/videos", "index").drop("uri")
    assert all(uri.startswith(f"{s3}/set/") for uri in table["uri"].to_pylist())
    assert all(storage.exists(uri) for uri in table["uri"].to_pylist() if "YouTube" in uri)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"videos": ""}, "must not be empty"),
        ({"dataset": "a/b"}, "must not contain a slash"),
        ({"split": (0.7, 0.2, 0.2)}, "that sum to 1"),
        ({"split": (1.2, -0.1, -0.1)}, "none negative"),
        ({"videos": "s3://key:secret@bucket/x"}, "holds credentials"),
        ({"videos": "/nowhere"}, "no dataset found at /nowhere"),
    ],
)
def test_bad_requests(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        index.run(index.Config(**({"videos": str(tmp_path), "out": str(tmp_path / "run")} | options)))
    assert not (tmp_path / "run").exists()
