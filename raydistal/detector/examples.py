"""What a detector learns from: which faces, in which order, as which pixels.

N faces. A face is identified by its place: the number of its part of the `faces` table, its row, its index in the
lists. Faces are read a window at a time: first the parts are shuffled, then the faces of each window. Reading single
faces at random would read every part a hundred times.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistal import storage, tables
from raydistal.detector.augmentation import augment
from raydistal.errors import UserError
from raydistal.faces import crop
from raydistal.selection.draws import sample_key, uniform

EXAMPLES = pa.schema(
    [
        ("part", pa.int32()),
        ("row", pa.int32()),
        ("place", pa.int32()),
        ("video_id", pa.string()),
        ("frame_index", pa.int32()),
        ("label", pa.int8()),
        ("method", pa.string()),
    ]
)
FACES_PER_WINDOW = 1024  # encoded crops in memory, some 100 MB as PNG
FACES_PER_CHUNK = 32  # decoded at once

Ints = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Faces with their labels, as the network takes them."""

    crops_NHWC: npt.NDArray[np.uint8]
    label_N: npt.NDArray[np.int64]
    teaching: Mapping[str, npt.NDArray[Any]] = {}
    """For live teachers: crops_S, the same pictures with S pixels a side. From cached ones, numbered from 0: logit_0
    (N,) and embedding_0 (N, D)."""

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays by name, see `from_columns`."""
        return {"crops_NHWC": self.crops_NHWC, "label_N": self.label_N, **self.teaching}

    @classmethod
    def from_columns(cls, columns: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The inverse of `columns`."""
        rest = dict(columns)
        return cls(rest.pop("crops_NHWC"), rest.pop("label_N"), rest)

    def some(self, rows: slice) -> Self:
        """Some of the faces."""
        return self.from_columns({name: values[rows] for name, values in self.columns().items()})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many training faces are used. The choice is random and nested: a smaller limit chooses a subset."""

    max_faces: int = 0
    """In all, half of each class, fakes evenly from all methods (CKD section IV: 10, 100, 1000). 0: no limit."""
    max_real: int = 0
    """Real faces (thesis, table 5.1.3.3.1: 7,000). 0: no limit."""
    max_per_method: int = 0
    """Fake faces of each method (thesis, table 5.1.3.3.1: 2,100). 0: no limit."""
    leave_out: tuple[str, ...] = ()
    """Methods whose fakes are neither learnt from nor measured on in val."""

    def __post_init__(self) -> None:
        if min(self.max_faces, self.max_real, self.max_per_method) < 0 or self.max_faces == 1:
            raise UserError("need --max-faces of 0 or at least 2, --max-real and --max-per-method of 0 or more")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the faces lie, and how they are shown to a network."""

    location: str
    parts: Sequence[str]
    size_px: int
    seed: int
    augments: bool
    robust: bool
    teacher_sizes_px: Sequence[int] = ()
    """Input sizes of live teachers, which see the very same pictures."""
    teachings: Sequence[str] = ()
    """Tables of cached teacher outputs, see `schemas.teaching_schema`."""
    with_embeddings: bool = False
    """Read the teachers' embeddings as well as their logits."""


def list_examples(location: str, parts: Sequence[str], videos: pa.Table) -> pa.Table:
    """All faces of `videos` (video_id, label, method) in these parts of the table `location`: `EXAMPLES`."""
    if not parts:
        return EXAMPLES.empty_table()
    read = tables.read_parts(location, parts, ["video_id", "frame_index"])
    faces, num_P = pa.concat_tables(read), np.array([len(part) for part in read])
    of_video_V = pc.index_in(faces["video_id"], value_set=videos["video_id"])  # once: each call hashes all `videos`
    part_V = np.repeat(np.arange(len(parts)), num_P)
    row_V = np.arange(len(faces)) - np.repeat(np.cumsum(num_P) - num_P, num_P)
    faces = faces.append_column("part", pa.array(part_V)).append_column("row", pa.array(row_V))
    faces = faces.append_column("of_video", of_video_V)
    return _one_row_per_face(faces.filter(of_video_V.is_valid()), videos)


def list_faces(run: str, videos: pa.Table) -> pa.Table:
    """All faces of `videos` (video_id, label, method) in a run: `EXAMPLES`. UserError if it keeps no crops."""
    tables.faces_info(run, with_crops=True)
    location = storage.join(run, "faces")
    return list_examples(location, tables.part_names(location), videos)


def plain_source(run: str, size_px: int) -> Source:
    """The faces of a run folder, not augmented, by an absolute path for any node."""
    location = storage.absolute(storage.join(run, "faces"))
    parts = tables.part_names(location)
    return Source(location=location, parts=parts, size_px=size_px, seed=0, augments=False, robust=False)


def _one_row_per_face(faces: pa.Table, videos: pa.Table) -> pa.Table:
    frames = faces["frame_index"].combine_chunks()
    parent_N = pc.list_parent_indices(frames).to_numpy()
    num_V = pc.list_value_length(frames).fill_null(0).to_numpy()
    first_V = np.cumsum(num_V) - num_V
    columns = {name: pc.take(faces[name], parent_N) for name in ("part", "row", "video_id")}
    columns |= {"place": np.arange(len(parent_N)) - first_V[parent_N], "frame_index": pc.list_flatten(frames)}
    of_video_N = pc.take(faces["of_video"], parent_N)
    columns |= {name: pc.take(videos[name], of_video_N) for name in ("label", "method")}
    return pa.table(columns).select(EXAMPLES.names).cast(EXAMPLES).combine_chunks()


def choose(examples: pa.Table, limits: Limits, seed: int) -> pa.Table:
    """The faces that `limits` allow, in the order of `examples`."""
    if examples.num_rows == 0:
        return examples
    key_N = uniform(sample_key(examples["video_id"], examples["frame_index"].to_numpy(), seed))
    label_N = examples["label"].to_numpy()
    method_N = pc.dictionary_encode(examples["method"].fill_null("")).combine_chunks().indices.to_numpy()
    keep_N = np.ones(len(key_N), bool)
    category_N = np.where(label_N == 1, method_N + 1, 0)
    rank_N = _rank_within(category_N, key_N)
    if limits.max_real:
        keep_N &= (label_N == 1) | (rank_N < limits.max_real)
    if limits.max_per_method:
        keep_N &= (label_N == 0) | (rank_N < limits.max_per_method)
    if limits.max_faces:
        for label in (0, 1):
            of_class = np.flatnonzero(keep_N & (label_N == label))
            # By rank within the category: the methods take turns.
            order = of_class[np.lexsort((key_N[of_class], rank_N[of_class]))]
            keep_N[order[limits.max_faces // 2 :]] = False
    return examples.filter(pa.array(keep_N))


def _rank_within(category_N: Ints, key_N: npt.NDArray[np.float64]) -> Ints:
    """Position of each row, by its key, among those of its category."""
    order = np.lexsort((key_N, category_N))
    sorted_N = category_N[order]
    first = np.searchsorted(sorted_N, sorted_N)
    rank_N = np.empty(len(order), np.int64)
    rank_N[order] = np.arange(len(order)) - first
    return rank_N


def shuffled_shares(part_N: npt.NDArray[np.int32], num_shares: int, seed: int, epoch: int) -> list[list[Ints]]:
    """The windows of an epoch for each worker: row numbers of faces, in training order.

    All workers get the same number of faces, as they step together: up to num_shares - 1 faces are left out.
    """
    rng = np.random.default_rng([seed, epoch])
    part_order = rng.permutation(int(part_N.max()) + 1)
    order_N = np.argsort(part_order[part_N], kind="stable")
    per_share = len(order_N) // num_shares
    shares = [order_N[number * per_share : (number + 1) * per_share] for number in range(num_shares)]
    return [[rng.permutation(window) for window in _windows(share)] for share in shares]


def plain_shares(num_faces: int, num_shares: int) -> list[list[Ints]]:
    """The windows for measuring, for each worker: every face once, in order."""
    return [_windows(share) for share in np.array_split(np.arange(num_faces), num_shares)]


def _windows(share: Ints) -> list[Ints]:
    return [share[start : start + FACES_PER_WINDOW] for start in range(0, len(share), FACES_PER_WINDOW)]


def load_window(
    source: Source, examples: pa.Table, window: Ints, epoch: int | None, threads: ThreadPoolExecutor | None = None
) -> Iterator[Batch]:
    """Yields the faces `window` of `examples` in order, some at a time; `epoch` is None when not training.

    What a face looks like depends on the seed, the epoch and the face alone, not on who loads it. Training faces may be
    augmented, and come with what teachers need; if teachers take other sizes than the student, faces are augmented at
    the largest size and then resized.
    """
    is_training = epoch is not None
    rows = examples.take(pa.array(window))
    image_N = np.empty(len(rows), object)
    for here, images in _read(source.location, source.parts, rows, "crop"):
        image_N[here] = images.to_numpy(zero_copy_only=False)
    found = _read_teachings(source, rows) if is_training else {}
    key_N = sample_key(rows["video_id"], rows["frame_index"].to_numpy(), source.seed)
    label_N = rows["label"].to_numpy().astype(np.int64)
    sizes_px = list(dict.fromkeys([source.size_px, *(source.teacher_sizes_px if is_training else ())]))

    def show(number: int) -> list[crop.Image]:
        if epoch is None or not source.augments:
            return crop.decode_sizes(image_N[number], sizes_px)
        rng = np.random.default_rng([epoch, int(key_N[number])])
        varied_HWC = augment(crop.decode(image_N[number], max(sizes_px)), rng, source.robust)
        return [varied_HWC if size_px == max(sizes_px) else crop.resize(varied_HWC, size_px) for size_px in sizes_px]

    for start in range(0, len(rows), FACES_PER_CHUNK):
        chunk = range(start, min(start + FACES_PER_CHUNK, len(rows)))
        some = slice(chunk.start, chunk.stop)
        shown = (threads.map if threads else map)(show, chunk)
        crops_NHWC, *further = (np.stack(crops) for crops in zip(*shown, strict=True))
        pictures = {f"crops_{size_px}": crops for size_px, crops in zip(sizes_px[1:], further, strict=True)}
        yield Batch(crops_NHWC, label_N[some], pictures | {name: values[some] for name, values in found.items()})


def every_face(source: Source, examples: pa.Table, threads: ThreadPoolExecutor | None = None) -> Iterator[Batch]:
    """All of `examples` once and in order, some at a time, for measuring."""
    for window in _windows(np.arange(len(examples))):
        yield from load_window(source, examples, window, None, threads)


def _read(location: str, parts: Sequence[str], rows: pa.Table, column: str) -> Iterator[tuple[Ints, pa.Array]]:
    """For each part, the indices of the `rows` that lie in it, and their items of the list column."""
    part_N, row_N, place_N = (rows[name].to_numpy() for name in ("part", "row", "place"))
    for number in np.unique(part_N):
        here = np.flatnonzero(part_N == number)
        filesystem, path = storage.resolve(storage.join(location, parts[number]))
        lists = pq.read_table(path, columns=[column], filesystem=filesystem)[column].combine_chunks()
        yield here, lists.values.take(pa.array(lists.offsets.to_numpy()[row_N[here]] + place_N[here]))


def _read_teachings(source: Source, rows: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """`Batch.teaching` with cached teacher outputs."""
    found: dict[str, npt.NDArray[Any]] = {}
    for number, location in enumerate(source.teachings):
        for name in ("logit", "embedding")[: 1 + source.with_embeddings]:
            for here, items in _read(location, source.parts, rows, name):
                is_vector = pa.types.is_fixed_size_list(items.type)
                values = items.flatten().to_numpy().reshape(len(here), -1) if is_vector else items.to_numpy()
                if (key := f"{name}_{number}") not in found:
                    found[key] = np.empty((len(rows), *values.shape[1:]), values.dtype)
                found[key][here] = values
    return found


def rebatch(chunks: Iterable[Batch], batch_size: int, min_last: int = 1) -> Iterator[Batch]:
    """The same faces in batches of `batch_size`; a last one of fewer than `min_last` is left out."""
    held: list[Batch] = []
    for chunk in chunks:
        held.append(chunk)
        while sum(len(batch.label_N) for batch in held) >= batch_size:
            whole = _join(held)
            yield whole.some(slice(batch_size))
            held = [whole.some(slice(batch_size, None))]
    if sum(len(batch.label_N) for batch in held) >= min_last:
        yield _join(held)


def _join(batches: list[Batch]) -> Batch:
    columns = [batch.columns() for batch in batches]
    return Batch.from_columns({name: np.concatenate([of[name] for of in columns]) for name in columns[0]})


def fingerprint(examples: pa.Table) -> str:
    """16 hexadecimal digits that depend on the faces and their labels, not on their order or place."""
    digest_N = sample_key(examples["video_id"], examples["frame_index"].to_numpy(), 0)
    order = np.argsort(digest_N)
    content = digest_N[order].tobytes() + examples["label"].to_numpy()[order].tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()
