import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raydistal import schemas, storage, tables
from raydistal.detector import examples as ex
from raydistal.errors import UserError
from raydistal.faces import crop

SIZE_PX = 16


def picture(video: int, place: int) -> np.ndarray:
    """One flat colour per face, so that a face is known by its pixels."""
    return np.full((SIZE_PX, SIZE_PX, 3), (video, place, 7), np.uint8)


@pytest.fixture
def dataset(tmp_path):
    """12 videos in parts of 5: 0 to 4 faces each; every third is real, the others of two methods."""
    rows = [
        {
            "video_id": f"v{video:02d}",
            "status": "ok" if video % 5 else "no_face",
            "frame_index": [10 * place for place in range(video % 5)],
            "crop": [crop.encode(picture(video, place), "png") for place in range(video % 5)],
        }
        for video in range(12)
    ]
    schema = pa.schema(
        [
            ("video_id", pa.string()),
            ("status", pa.string()),
            ("frame_index", pa.list_(pa.int32())),
            ("crop", pa.list_(pa.binary())),
        ]
    )
    for start in range(0, 12, 5):
        tables.write_part(str(tmp_path), pa.Table.from_pylist(rows[start : start + 5], schema), {})
    videos = {
        "video_id": [row["video_id"] for row in rows],
        "label": pa.array([int(video % 3 > 0) for video in range(12)], pa.int8()),
        "method": [(None, "swap", "talk")[video % 3] for video in range(12)],
    }
    parts = tables.part_names(str(tmp_path))
    return str(tmp_path), parts, pa.table(videos)


@pytest.fixture
def source(dataset):
    return ex.Source(location=dataset[0], parts=dataset[1], size_px=SIZE_PX, seed=3, augments=False, robust=False)


def test_every_face_of_the_videos_is_listed_where_it_lies(dataset, source):
    location, parts, videos = dataset
    found = ex.list_examples(location, parts, videos[2:])
    named = {(row["video_id"], row["frame_index"], row["label"], row["method"]) for row in found.to_pylist()}
    assert named == {
        (f"v{video:02d}", 10 * place, int(video % 3 > 0), (None, "swap", "talk")[video % 3])
        for video in range(2, 12)
        for place in range(video % 5)
    }
    assert len(named) == len(found)
    order = np.random.default_rng(0).permutation(len(found))
    crops_NHWC = np.concatenate([batch.crops_NHWC for batch in ex.load_window(source, found, order, None)])
    rows = found.take(pa.array(order)).to_pylist()
    for crop_HWC, row in zip(crops_NHWC, rows, strict=True):
        np.testing.assert_array_equal(crop_HWC, picture(int(row["video_id"][1:]), row["frame_index"] // 10))


def test_batches_carry_the_labels_of_their_faces(dataset, source):
    found = ex.list_examples(*dataset)
    window = np.arange(len(found))[::-1].copy()
    batches = list(ex.rebatch(ex.load_window(source, found, window, None), 4))
    assert [len(batch.label_N) for batch in batches] == [4] * (len(found) // 4) + [len(found) % 4] * (
        len(found) % 4 > 0
    )
    assert np.concatenate([batch.label_N for batch in batches]).tolist() == found["label"].to_pylist()[::-1]


@pytest.mark.parametrize(("min_last", "sizes"), [(1, [3, 3, 1]), (2, [3, 3])])
def test_rebatch(min_last, sizes):
    chunks = [ex.Batch(np.full((n, 1, 1, 3), n, np.uint8), np.arange(n)) for n in (1, 5, 1)]
    found = list(ex.rebatch(iter(chunks), 3, min_last))
    assert [len(batch.label_N) for batch in found] == sizes
    assert np.concatenate([batch.label_N for batch in found]).tolist() == [0, 0, 1, 2, 3, 4, 0][: sum(sizes)]


def many(num_real, **num_fake):
    """Examples without pixels."""
    rows = [("real", 0, None)] * num_real + [(name, 1, name) for name, num in num_fake.items() for _ in range(num)]
    return pa.table(
        {
            "part": pa.array([number // 10 for number in range(len(rows))], pa.int32()),
            "row": pa.array([number % 10 for number in range(len(rows))], pa.int32()),
            "place": pa.array([0] * len(rows), pa.int32()),
            "video_id": [f"{name}-{number}" for number, (name, _, _) in enumerate(rows)],
            "frame_index": pa.array(range(len(rows)), pa.int32()),
            "label": pa.array([label for _, label, _ in rows], pa.int8()),
            "method": pa.array([method for _, _, method in rows], pa.string()),
        },
        schema=ex.EXAMPLES,
    )


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, {None: 50, "a": 40, "b": 6}),
        ({"max_real": 10, "max_per_method": 8}, {None: 10, "a": 8, "b": 6}),
        ({"max_faces": 20}, {None: 10, "a": 5, "b": 5}),
        ({"max_faces": 40}, {None: 20, "a": 14, "b": 6}),
        ({"max_faces": 40, "max_per_method": 4}, {None: 20, "a": 4, "b": 4}),
        ({"max_faces": 1000}, {None: 50, "a": 40, "b": 6}),
    ],
)
def test_limits(limits, expected):
    chosen = ex.choose(many(50, a=40, b=6), ex.Limits(**limits), seed=1)
    counts = {item["values"]: item["counts"] for item in pc.value_counts(chosen["method"]).to_pylist()}
    assert counts == expected


def test_choices_are_nested_and_depend_on_the_seed_alone():
    examples = many(50, a=40, b=6)
    ids = [set(ex.choose(examples, ex.Limits(max_faces=num), 1)["video_id"].to_pylist()) for num in (10, 20, 40)]
    assert ids[0] < ids[1] < ids[2]
    turned = examples.take(pa.array(np.random.default_rng(0).permutation(len(examples))))
    assert set(ex.choose(turned, ex.Limits(max_faces=10), 1)["video_id"].to_pylist()) == ids[0]
    assert set(ex.choose(examples, ex.Limits(max_faces=10), 2)["video_id"].to_pylist()) != ids[0]
    assert ex.fingerprint(turned) == ex.fingerprint(examples) != ex.fingerprint(examples[1:])


@pytest.mark.parametrize("wrong", [{"max_faces": 1}, {"max_faces": -2}, {"max_real": -1}, {"max_per_method": -1}])
def test_wrong_limits(wrong):
    with pytest.raises(UserError, match="--max-faces"):
        ex.Limits(**wrong)


@pytest.mark.parametrize("num_shares", [1, 2, 3])
def test_an_epoch_shows_every_face_once_in_another_order(monkeypatch, num_shares):
    monkeypatch.setattr(ex, "FACES_PER_WINDOW", 7)
    part_N = np.repeat(np.arange(6, dtype=np.int32), 10)[:56]
    epochs = [ex.shuffled_shares(part_N, num_shares, seed=5, epoch=epoch) for epoch in (0, 1)]
    for shares in epochs:
        sizes = [sum(map(len, share)) for share in shares]
        assert sizes == [56 // num_shares] * num_shares
        shown = np.concatenate([window for share in shares for window in share])
        assert len(set(shown.tolist())) == len(shown)
        for share in shares:
            assert all(len(window) <= 7 for window in share)
            for window in share:  # read in a few parts
                assert len(set(part_N[window].tolist())) <= 2
    assert [w.tolist() for w in epochs[0][0]] != [w.tolist() for w in epochs[1][0]]
    again = ex.shuffled_shares(part_N, num_shares, seed=5, epoch=1)
    assert [w.tolist() for s in again for w in s] == [w.tolist() for s in epochs[1] for w in s]


def test_measuring_shows_every_face_once_in_order(monkeypatch):
    monkeypatch.setattr(ex, "FACES_PER_WINDOW", 4)
    shares = ex.plain_shares(11, 2)
    assert [[window.tolist() for window in share] for share in shares] == [
        [[0, 1, 2, 3], [4, 5]],
        [[6, 7, 8, 9], [10]],
    ]


def test_what_a_face_looks_like_depends_on_itself_and_the_epoch(dataset):
    source = ex.Source(location=dataset[0], parts=dataset[1], size_px=SIZE_PX, seed=3, augments=True, robust=True)
    found = ex.list_examples(*dataset)

    def show(window, epoch):
        batches = ex.load_window(source, found, np.array(window), epoch)
        return dict(zip(window, np.concatenate([batch.crops_NHWC for batch in batches]), strict=True))

    first, again, next_ = show([0, 5, 9], 1), show([9, 3, 5], 1), show([5, 9], 2)
    for number in (5, 9):
        np.testing.assert_array_equal(first[number], again[number])
        assert not np.array_equal(first[number], next_[number])


def test_teachers_see_the_same_picture_at_their_size(dataset):
    """Varied at the larger size; for measuring there are no teachers."""
    sizes_px = {"size_px": SIZE_PX, "teacher_sizes_px": (24, SIZE_PX)}
    source = ex.Source(location=dataset[0], parts=dataset[1], seed=3, augments=True, robust=False, **sizes_px)
    found = ex.list_examples(*dataset)
    (batch,) = ex.load_window(source, found, np.arange(5), 0)
    assert list(batch.teaching) == ["crops_24"]
    for small_HWC, large_HWC in zip(batch.crops_NHWC, batch.teaching["crops_24"], strict=True):
        np.testing.assert_array_equal(crop.resize(large_HWC, SIZE_PX), small_HWC)
    assert not np.array_equal(batch.crops_NHWC[1], picture(1, 0))
    (measured,) = ex.load_window(source, found, np.arange(5), None)
    assert not measured.teaching


def test_what_teachers_said_comes_with_its_face(dataset, source, tmp_path):
    """Videos of every second number were not looked at; all logits are 100 * video + place."""
    location, parts, videos = dataset
    table = tmp_path / "teaching"
    for name, faces in zip(parts, tables.read_parts(location, parts, ["video_id", "frame_index"]), strict=True):
        rows = [
            {
                "video_id": video_id,
                "frame_index": frames,
                "logit": [100 * int(video_id[1:]) + place for place in range(len(frames))],
                "embedding": [[int(video_id[1:]), place, 0.5] for place in range(len(frames))],
            }
            for video_id, frames in zip(faces["video_id"].to_pylist(), faces["frame_index"].to_pylist(), strict=True)
        ]
        silent = {"frame_index": [], "logit": [], "embedding": []}
        rows = [row | silent if int(row["video_id"][1:]) % 2 else row for row in rows]
        part = pa.Table.from_pylist(rows, schemas.teaching_schema(3))
        storage.write_bytes(f"{table}/{name}", tables.to_parquet(part, {}))
    known = videos.filter(pa.array([number % 2 == 0 for number in range(len(videos))]))
    found = ex.list_examples(location, parts, known)
    told = dataclasses.replace(source, teachings=(str(table),), with_embeddings=True)
    order = np.random.default_rng(1).permutation(len(found))
    (batch,) = ex.rebatch(ex.load_window(told, found, order, 0), len(found))
    number_N, place_N = batch.crops_NHWC[:, 0, 0, 0], batch.crops_NHWC[:, 0, 0, 1]
    assert batch.teaching["logit_0"].tolist() == (100 * number_N.astype(int) + place_N).tolist()
    expected_ND = np.stack([number_N, place_N, np.full(len(found), 0.5)], 1)
    np.testing.assert_array_equal(batch.teaching["embedding_0"], expected_ND.astype(np.float16))
    assert ex.Batch.from_columns(batch.columns()) == batch
    (alone,) = ex.load_window(dataclasses.replace(told, with_embeddings=False), found, order, 0)
    assert list(alone.teaching) == ["logit_0"]
