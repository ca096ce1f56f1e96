from raydistal.report import page
from raydistal.report.page import Cell, Table


def test_visible():
    assert page.visible("ä 日本 <b>.mp4") == "ä 日本 <b>.mp4"
    assert page.visible("a\u202egpj.mp4\n\x00") == "a\\u202egpj.mp4\\u000a\\u0000"


def test_numbers():
    assert page.decimal(0.91249) == Cell("0.912")
    assert page.decimal(0.9, 0.85, 1.0) == Cell("0.900", "0.850 to 1.000")
    assert page.percent(0.91249, 0.5, 1.0) == Cell("91.2", "50.0 to 100.0")
    assert page.decimal(None) == page.percent(float("nan"), 0.1, 0.2) == Cell("\N{EN DASH}")
    assert [page.count(number, "video") for number in (0, 1, 2000)] == ["0 videos", "1 video", "2,000 videos"]
    assert [page.duration(seconds) for seconds in (0.25, 119, 120, 7199, 9000)] == [
        "0.25 s",
        "119 s",
        "2 min",
        "120 min",
        "2.5 h",
    ]


def test_millions():
    assert [page.millions(number) for number in (99_453, 4_008_829, 138_357_544)] == ["99,453", "4.01 M", "138 M"]


def test_transposed():
    table = Table(
        "caption", ["metric", "a", "b"], [[Cell("auc"), Cell("1"), Cell("2")], [Cell("f1"), Cell("3"), Cell("4")]]
    )
    rows = [[Cell("a"), Cell("1"), Cell("3")], [Cell("b"), Cell("2"), Cell("4")]]
    assert table.transposed() == Table("caption", ["metric", "auc", "f1"], rows)


def test_base_name():
    places = ("/runs/one two/", "s3://bucket/a/b?endpoint_override=host:1", "/")
    assert [page.base_name(place) for place in places] == ["one two", "b", "/"]
