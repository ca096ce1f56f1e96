import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistal.datasets import manifest
from raydistal.datasets.layout import Entry, components
from raydistal.errors import UserError


def read(root, name):
    table, warnings = manifest.read(root, name)
    return [Entry(**row) for row in table.to_pylist()], warnings


def test_every_column(tree):
    text = """Path, LABEL, method, compression, original, identity, split, dataset, fps
real/ü a.mp4, real, , c23, , anna, Train, , 25
./fake//b.mp4, FAKE, swap, , real/ü a.mp4, , , , 25
"fake/c, d.mp4", 1, , , real/lost.mp4, , Validation, , 25
real/e.mp4, 0, , , , anna, , other, 25
f.mp4, , , , , , pool, , 25
gone.mp4, 0, , , , , , , 25
/elsewhere/g.mp4, 0.0, , , , , test, , 25
s3://bucket/h i.mp4, 1, , , /elsewhere/g.mp4, , , , 25
"""
    root = tree(["real/ü a.mp4", "fake/b.mp4", "fake/c, d.mp4", "real/e.mp4", "f.mp4"], {"list.csv": text})
    assert read(root, "list.csv") == (
        [
            Entry(path="real/ü a.mp4", label=0, compression="c23", group="anna", split="train"),
            Entry(path="fake/b.mp4", label=1, method="swap", original="real/ü a.mp4", group="anna"),
            Entry(path="fake/c, d.mp4", label=1, original="real/lost.mp4", group="fake/c, d.mp4", split="val"),
            Entry(path="real/e.mp4", label=0, group="other/anna", dataset="other"),
            Entry(path="f.mp4", label=None, group="f.mp4", split="pool"),
            Entry(path="/elsewhere/g.mp4", label=0, group="/elsewhere/g.mp4", split="test"),
            Entry(path="s3://bucket/h i.mp4", label=1, original="/elsewhere/g.mp4", group="/elsewhere/g.mp4"),
        ],
        [
            "1 videos of list.csv are absent and are left out: gone.mp4",
            "1 columns of list.csv are not used: fps",
        ],
    )


def test_parquet_and_typed_columns(tree, tmp_path):
    root = tree(["a.mp4", "b.mp4"])
    table = pa.table({"video": ["a.mp4", "b.mp4"], "label": pa.array([1.0, None]), "group": pa.array([7, 7])})
    pq.write_table(table, tmp_path / "manifest.parquet")
    assert manifest.find(root) == (root, "manifest.parquet")
    assert read(root, "manifest.parquet") == (
        [Entry(path="a.mp4", label=1, group="7"), Entry(path="b.mp4", label=None, group="7")],
        [],
    )


def test_a_file_has_one_name_however_it_is_written(tree, tmp_path):
    rows = ["a b.mp4", f"{tmp_path}/set/a b.mp4", f"{tmp_path}/set/../set/a b.mp4", "../set/a b.mp4", "../c.mp4"]
    root = tree(["set/a b.mp4"], {"set/m.csv": "\n".join(["path", *rows])}) + "/set"
    entries, warnings = read(root, "m.csv")
    assert [entry.path for entry in entries] == [*["a b.mp4"] * 4, f"{tmp_path}/c.mp4"]
    assert warnings == []
    assert read(f"{tmp_path}/set/../set", "m.csv") == (entries, [])
    uri = f"file://{tmp_path}/set"
    (tmp_path / "set/m.csv").write_text(f"path\n{uri}/a b.mp4\na b.mp4\n")
    assert [entry.path for entry in read(uri, "m.csv")[0]] == ["a b.mp4"] * 2


def test_find(tree, tmp_path):
    root = tree(["real/a.mp4"])
    assert manifest.find(root) is None
    assert manifest.find(f"{root}/x.CSV") == (root, "x.CSV")
    assert manifest.find("x.csv") == ("", "x.csv")
    assert manifest.find("s3://bucket/a/x.parquet?scheme=http") == ("s3://bucket/a?scheme=http", "x.parquet")
    (tmp_path / "manifest.csv").touch()
    assert manifest.find(root) == (root, "manifest.csv")
    (tmp_path / "manifest.parquet").touch()
    with pytest.raises(UserError, match=r"holds manifest\.csv and manifest\.parquet"):
        manifest.find(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"m\.csv is empty"),
        ("path,label\n", "needs rows and a column path"),
        ("path;label\na.mp4;1\n", r"needs rows and a column path; its columns are \['path;label'\]"),
        ("path,label\na.mp4,1\na.mp4,maybe\n", r"m\.csv, row 2: unknown label 'maybe'"),
        ("path,label\n,1\n", r"m\.csv, row 1: the path is empty"),
        ("path,split\na.mp4,dev\n", r"m\.csv, row 1: unknown split 'dev'"),
        (
            "path,label,original\na.mp4,1,b.mp4\nb.mp4,0,a.mp4\n",
            r"m\.csv, row 2: b\.mp4 is labelled real and has the original a\.mp4: leave that empty, or correct",
        ),
        ("path,uri\na.mp4,b\n", r"several columns mean the same: \['path', 'uri'\]"),
    ],
)
def test_bad_rows(tree, text, message):
    with pytest.raises(UserError, match=message):
        manifest.read(tree(["a.mp4"], {"m.csv": text}), "m.csv")


def test_a_file_that_is_no_parquet(tree):
    with pytest.raises(UserError, match=r"cannot read .*m\.parquet as Parquet"):
        manifest.read(tree([], {"m.parquet": "path\na.mp4\n"}), "m.parquet")


NAME = st.sampled_from("abcdefgh")


@given(st.lists(st.tuples(NAME, st.none() | NAME, st.none() | NAME), min_size=1))
def test_groups_are_those_of_the_links_one_by_one(rows):
    path, *others = (pa.chunked_array([column], pa.string()) for column in zip(*rows, strict=True))
    links = [(path, other) for path, *names in rows for other in names if other]
    group_of = components(links)
    found = manifest._smallest_connected(path, others).to_pylist()
    assert found == [group_of.get(path, path) for path, *_ in rows]


def test_a_long_chain_is_one_group():
    names = [f"{number:06}" for number in np.random.default_rng(0).permutation(50_000)]
    path, other = pa.chunked_array([names[1:]]), pa.chunked_array([names[:-1]])
    assert set(manifest._smallest_connected(path, [other]).to_pylist()) == {"000000"}
