import pytest

from raydistal.datasets.annotations import parse_label, read_csv, read_json
from raydistal.errors import UserError


@pytest.mark.parametrize(
    ("value", "label"),
    [("REAL", 0), ("real ", 0), (0, 0), ("0", 0), ("0.0", 0), ("Fake", 1), (1, 1), (1.0, 1), ("", None), (None, None)],
)
def test_labels(value, label):
    assert parse_label(value, "here") == label


@pytest.mark.parametrize("value", ["2", -1, "genuine", "nan", True, [0]])
def test_unknown_labels(value):
    with pytest.raises(UserError, match=r"^labels\.csv, row 7: unknown label"):
        parse_label(value, "labels.csv, row 7")


def test_csv(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes('\ufeff Path ,Label\r\n"a, b.mp4",0\r\n\r\n"two\u2028lines\n.mp4",1\r\n'.encode())
    assert read_csv(str(file)) == [{"path": "a, b.mp4", "label": "0"}, {"path": "two\u2028lines\n.mp4", "label": "1"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "rows.csv is empty"),
        (b"path,label\na,0,1\n", "rows.csv, row 1: 3 fields"),
        (b"path,label\na,0\nb\n", "rows.csv, row 2: 1 fields"),
        (b'path,label\n"a,0\n', "rows.csv, line 2: unexpected end of data"),
        (b"path\n\xff\n", "cannot read .*rows.csv.*utf-8"),
    ],
)
def test_malformed_csv(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_csv(str(tmp_path / "rows.csv"))


def test_json(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('{"a": 1')
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        read_json(str(file))
    with pytest.raises(UserError, match=r"cannot read .*y\.json"):
        read_json(str(tmp_path / "y.json"))
