import json

import pyarrow as pa
import pytest

from raydistal import schemas, tables
from raydistal.detector import lineage
from raydistal.detector.lineage import Learnt, learnt_from


def write(folder, name, methods, digest="0" * 16, dataset="ffpp", **more):
    about = {"format": "detector/1", "architecture": "a", "input_px": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}
    about |= {"digest": digest, "data": {"dataset": [dataset], "methods": methods}, "parent": None, **more}
    (folder / name).mkdir()
    (folder / name / "detector.json").write_text(json.dumps(about))
    return about


def ancestor(folder, name, digest="0" * 16):
    return {"location": str(folder / name), "model_id": digest[:12]}


def test_ancestors_and_teachers_are_followed(tmp_path):
    write(tmp_path, "first", ["a"], dataset="old")
    write(tmp_path, "parent", ["b"], digest="1" * 16, parent=ancestor(tmp_path, "first"))
    write(tmp_path, "teacher", ["c"], digest="2" * 16)
    teaching = {"teachers": [ancestor(tmp_path, "teacher", "2" * 16)]}
    about = write(tmp_path, "one", ["d"], parent=ancestor(tmp_path, "parent", "1" * 16), teaching=teaching)
    assert learnt_from(about) == Learnt(frozenset({"old", "ffpp"}), frozenset("abcd"), True)


@pytest.mark.parametrize("place", ["gone", "replaced"])
def test_an_ancestor_that_is_gone_or_another_now(tmp_path, place):
    write(tmp_path, "replaced", ["a"], digest="9" * 16)
    about = write(tmp_path, "one", ["b"], parent=ancestor(tmp_path, place))
    assert learnt_from(about) == Learnt(frozenset({"ffpp"}), frozenset("b"), False)


def test_ancestors_in_a_circle(tmp_path):
    about = write(tmp_path, "one", ["a"], parent=ancestor(tmp_path, "other"))
    write(tmp_path, "other", ["b"], parent=ancestor(tmp_path, "one"))
    assert learnt_from(about) == Learnt(frozenset({"ffpp"}), frozenset("ab"), False)


def test_a_detector_that_tells_nothing_of_methods(tmp_path):
    assert learnt_from({"data": {"dataset": ["ffpp"]}}) == Learnt(frozenset({"ffpp"}), frozenset(), False)


def test_what_was_seen():
    learnt = Learnt(frozenset({"ffpp"}), frozenset({"swap"}), True)
    asked = [(["ffpp"], None), (["ffpp", "dfdc"], "swap"), (["ffpp"], "warp"), (["dfdc"], "swap"), (["dfdc"], None)]
    assert [learnt.has_seen(*one) for one in asked] == [True, True, False, False, False]
    unsure = learnt._replace(is_all=False)
    assert [unsure.has_seen(*one) for one in asked] == [True, True, None, None, None]


def test_what_ancestors_were_trained_on_stays_known(tmp_path):
    def table(*video_ids: str, split: str) -> pa.Table:
        rows = [{"video_id": name, "group_id": f"group {name}", "split": split} for name in video_ids]
        return pa.Table.from_pylist(rows, schemas.TRAINED_ON)

    tables.write_table(f"{tmp_path}/teacher/trained_on", table("a", "b", split="train"), {})
    tables.write_table(f"{tmp_path}/parent/trained_on", table("b", "c", split="val"), {})
    ancestors = [f"{tmp_path}/{name}" for name in ("teacher", "without a table", "parent")]
    own = table("a", "d", split="val")
    assert [tuple(row.values()) for row in lineage.trained_on(own, ancestors).to_pylist()] == [
        ("a", "group a", "val"),
        ("d", "group d", "val"),
        ("b", "group b", "train"),
        ("c", "group c", "val"),
    ]
