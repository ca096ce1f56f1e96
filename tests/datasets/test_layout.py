import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistal import schemas
from raydistal.datasets.layout import Entry, components, counted, is_media, to_table, video_id
from raydistal.errors import UserError


def test_video_id_is_the_documented_hash():
    assert video_id("demo", "fake/a b.mp4") == hashlib.blake2b(b"demo\0fake/a b.mp4", digest_size=16).hexdigest()
    assert video_id("demo", "x") == "2fc0d3080597eb0fde86d764d479b5a5"  # printf 'demo\0x' | b2sum -l 128


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.mp4", True),
        ("b/A.MOV", True),
        ("photo.JPeG", True),
        ("a.mp4.part", False),
        ("a.txt", False),
        ("mp4", False),
        ("real/._a.mp4", False),
        (".cache/a.mp4", False),
    ],
)
def test_is_media(path, expected):
    assert is_media(path) is expected


def test_counted_names_five():
    assert counted([], "are odd") == []
    assert counted({"b", "a"}, "are odd") == ["2 are odd: a, b"]
    assert counted([*"gfedcba"], "are odd") == ["7 are odd: a, b, c, d, e, ..."]


@given(st.lists(st.tuples(*[st.sampled_from("abcdefgh")] * 2), max_size=12))
def test_components_equal_a_brute_force_closure(links):
    near = {name: {name} for link in links for name in link}
    for _ in near:
        for one, other in links:
            near[one] |= near[other]
            near[other] |= near[one]
    assert components(links) == {name: min(connected) for name, connected in near.items()}


def test_a_long_chain_of_links():
    names = [f"{number:06}" for number in range(50_000)]
    assert set(components(zip(names[1:], names, strict=False)).values()) == {"000000"}


def test_rows():
    entries = [
        Entry(path="real/ü 1.mp4", label=0, group="ü", split="train"),
        Entry(path="fake/ü 1.mp4", label=1, group="ü", method="swap", compression="c23", original="real/ü 1.mp4"),
        Entry(path="s3://bucket/x.mp4", label=None, group="x", dataset="other", original="gone.mp4"),
    ]
    table, warnings = to_table("/data/set", "demo", entries)
    real, fake = video_id("demo", "real/ü 1.mp4"), video_id("demo", "fake/ü 1.mp4")
    columns = ("dataset", "uri", "label", "method", "compression", "original_id", "group_id", "split")
    rows = {row.pop("video_id"): row for row in table.to_pylist()}
    assert {id: tuple(row[column] for column in columns) for id, row in rows.items()} == {
        real: ("demo", "/data/set/real/ü 1.mp4", 0, None, None, None, "demo/ü", "train"),
        fake: ("demo", "/data/set/fake/ü 1.mp4", 1, "swap", "c23", real, "demo/ü", None),
        video_id("other", "s3://bucket/x.mp4"): ("other", "s3://bucket/x.mp4", None, *[None] * 3, "demo/x", None),
    }
    assert table.column_names == schemas.VIDEOS.names
    assert table["video_id"].to_pylist() == sorted(rows)
    assert warnings == ["1 originals of fakes are not among the videos: gone.mp4"]


def test_a_video_listed_twice_is_named():
    entries = [Entry(path=path, label=0, group="g") for path in ("a.mp4", "b.mp4", "b.mp4")]
    with pytest.raises(UserError, match=r"1 videos are listed more than once.*: b\.mp4$"):
        to_table("/data", "demo", entries)
