"""Tables on disk: a folder of Parquet parts plus `_table.json`, which is written last.

Each part holds the config that made it, so the table of an interrupted job can be read, checked and continued: the
parts are the job's ledger.
"""

import dataclasses
import hashlib
import json
import os
import platform
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistal import storage
from raydistal.errors import UserError

if TYPE_CHECKING:
    import pyarrow.dataset as pads

Config = Mapping[str, Any]

INFO = "_table.json"
LOCK = "_lock.json"
MERGES = "_merges.json"  # written by `raydistal compact` while it works: {merged part: [its original parts]}
OF_FEATURES = ("backbone", "weights", "precision", "weights_digest")  # settings of `faces` that do not affect its crops
FINAL = ("ok", "no_face")  # statuses that a retry would not change
READERS = 32  # of small files at once: the wait is the store's latency
BEAT_S = 5.0
BEATS_UNTIL_STALE = 4


def fingerprint(config: Config) -> str:
    """16 hexadecimal digits that change when the config does."""
    return hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=8).hexdigest()


def to_parquet(table: pa.Table, config: Config) -> pa.Buffer:
    """`table` as a Parquet file that carries `config`."""
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({b"raydistal": json.dumps(config, sort_keys=True)})
    # Dictionaries never help vectors and images, and cost half of the write time.
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    return sink.getvalue()


def write_part(location: str, table: pa.Table, config: Config) -> None:
    """Adds one part, named after its video_ids: writing the same rows again replaces them instead of doubling them."""
    name = hashlib.blake2b("\n".join(table["video_id"].to_pylist()).encode(), digest_size=12).hexdigest()
    storage.write_bytes(storage.join(location, f"part-{name}.parquet"), to_parquet(table, config))


def write_table(location: str, table: pa.Table, config: Config, **info: Any) -> None:
    """Writes a whole small table, replacing the one that was there. `info` joins `_table.json`."""
    storage.delete(storage.join(location, INFO))  # written last, so its presence says that the table is complete
    storage.write_bytes(storage.join(location, "part-0.parquet"), to_parquet(table, config))
    write_info(location, config, num_rows=table.num_rows, **info)


def write_info(location: str, config: Config, **info: Any) -> None:
    """Writes `_table.json`: the sign that the table is complete."""
    content: dict[str, Any] = {
        "table": storage.resolve(location)[1].rsplit("/", 1)[-1] + "/1",
        "fingerprint": fingerprint(config),
    }
    content |= {"config": dict(config), **info, "versions": versions()}
    storage.write_bytes(storage.join(location, INFO), json.dumps(content, indent=1).encode())


def read_info(location: str) -> dict[str, Any]:
    """`_table.json`, or {} while the table is incomplete or absent. Raises UserError if it is of something else."""
    place = storage.join(location, INFO)
    try:
        return dict(json.loads(storage.read_bytes(place)))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:  # not JSON, no object
        raise UserError(
            f"{place} was not written by raydistal, or is damaged: {error}. Remove it and run the command that writes "
            "this table again: it keeps what is done."
        ) from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what is in a table."""
    names = ("raydistal", "ray", "torch", "torchvision", "timm", "av", "opencv-python-headless", "numpy", "pyarrow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def part_names(location: str) -> list[str]:
    """File names of the parts of a table, sorted; [] if there is no table."""
    files = storage.list_files(location)
    names = [name for name in files if name.startswith("part-") and name.endswith(".parquet")]
    if MERGES not in files:
        return names
    try:
        merges = _read_merges(location)
    except FileNotFoundError:  # compacting has ended since, and old parts may be gone
        return part_names(location)
    # As soon as a merged part is there, it replaces its original parts.
    hidden = {old for new in names for old in merges.get(new, ())}
    return [name for name in names if name not in hidden]


def settle(location: str) -> None:
    """Completes a `raydistal compact`, even one that was killed: deletes the parts that were merged."""
    files = set(storage.list_files(location))
    if MERGES in files:
        merges = _read_merges(location)
        delete_parts(location, [old for new in merges.keys() & files for old in merges[new] if old in files])
        storage.delete(storage.join(location, MERGES))


def delete_parts(location: str, names: Iterable[str]) -> None:
    """Removes some parts of a table; those that are not there are no error."""
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda name: storage.delete(storage.join(location, name)), names))


def _read_merges(location: str) -> dict[str, list[str]]:
    return dict(json.loads(storage.read_bytes(storage.join(location, MERGES))))


def open_table(location: str, made_by: str) -> "pads.Dataset":
    """The parts as a pyarrow dataset, for reading by column and in batches.

    Raises:
        UserError: there is no table; the message names the command that makes it.
    """
    import pyarrow.dataset as pads  # it loads pandas

    names = _existing_parts(location, made_by)
    filesystem, path = storage.resolve(location)
    return pads.dataset([f"{path}/{name}" for name in names], filesystem=filesystem, format="parquet")


def read_table(location: str, made_by: str, columns: list[str] | None = None) -> pa.Table:
    """The table in memory, or some of its columns. Raises UserError like `open_table`."""
    return pa.concat_tables(read_parts(location, _existing_parts(location, made_by), columns))


def scan(location: str, made_by: str, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Name and rows of each part, some read ahead. Raises UserError like `open_table`, which holds 50 kB per part."""
    waiting: deque[tuple[str, Future[pa.Table]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for name in _existing_parts(location, made_by):
            waiting.append((name, pool.submit(read_part, location, name, columns)))
            if len(waiting) > 2 * READERS:
                first, read = waiting.popleft()
                yield first, read.result()
        yield from ((name, read.result()) for name, read in waiting)


def _existing_parts(location: str, made_by: str) -> list[str]:
    names = part_names(location)
    if not names:
        raise UserError(f"no table at {location}. Make it first: raydistal {made_by}")
    return names


def read_parts(location: str, names: Iterable[str], columns: list[str] | None = None) -> list[pa.Table]:
    """Each of these parts of a table, or some of its columns."""
    names = list(names)
    read = partial(read_part, location, columns=columns, use_threads=len(names) == 1)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, names))


def read_part(location: str, name: str, columns: list[str] | None = None, use_threads: bool = False) -> pa.Table:
    """A part of a table, or some of its columns. Raises FileNotFoundError, or ArrowInvalid if it is cut off."""
    filesystem, path = storage.resolve(storage.join(location, name))
    # pq.read_table takes twice the time, which matters for 100,000 parts.
    with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True) as part:
        return part.read(columns=columns, use_threads=use_threads)


def faces_info(run: str, with_crops: bool = False) -> dict[str, Any]:
    """`_table.json` of the faces of a run folder.

    Raises:
        UserError: the table is missing or unfinished, or has no crops where they are needed.
    """
    location = storage.join(run, "faces")
    info = read_info(location)
    if not info:
        raise UserError(f"the faces table of {run} is missing or unfinished. Run: raydistal extract --out {run}")
    if with_crops and info["config"]["crops"] == "none":
        raise UserError(f"{location} keeps no crops. Run: raydistal extract --crops png with another --out")
    return info


def crop_settings(info: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a faces table (`faces_info`) that decide its crops."""
    return {name: value for name, value in info["config"].items() if name not in OF_FEATURES}


def read_ledger(location: str, config: Config) -> pa.Table:
    """The columns video_id and status of every row that earlier runs finished.

    Removes what a killed writer left behind (unreadable and merged parts, temporary files); call it only as the table's
    writer.

    Raises:
        UserError: the rows were made with another config (the message says what differs), or a part is not ours.
    """
    files = storage.list_files(location)
    delete_parts(location, [name for name in files if name.startswith(".tmp-")])
    if MERGES in files:
        settle(location)

    def read(name: str) -> tuple[str, pa.Table] | None:
        try:
            return name, read_part(location, name, ["video_id", "status"])
        except pa.ArrowInvalid as error:  # incomplete; a failing store raises OSError instead, which stops the job
            print(f"removed an unreadable part, its videos are done again: {name} ({error})", file=sys.stderr)
            storage.delete(storage.join(location, name))
            return None

    empty = pa.schema([("video_id", pa.string()), ("status", pa.string())])
    with ThreadPoolExecutor(READERS) as pool:
        parts = [part for part in pool.map(read, part_names(location)) if part]
    distinct = {(rows.schema.metadata or {}).get(b"raydistal"): (name, rows.schema) for name, rows in parts}
    for name, schema in distinct.values():
        refuse_other_config(location, name, made_with(location, name, schema), config)
    return pa.concat_tables([rows.cast(empty) for _, rows in parts] or [empty.empty_table()])


def made_with(location: str, name: str, schema: pa.Schema) -> dict[str, Any]:
    """The config that a part carries. Raises UserError if it carries none, so that raydistal did not write it."""
    try:
        return dict(json.loads((schema.metadata or {})[b"raydistal"]))
    except KeyError:
        raise UserError(f"{storage.join(location, name)} was not written by raydistal. Move it elsewhere.") from None


def refuse_other_config(location: str, name: str, old: Config, new: Config) -> None:
    """Raises UserError, naming each setting that differs, unless both configs are the same."""
    new = json.loads(json.dumps(new))  # as it comes back from a file, with lists for tuples
    differing = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if differing:
        raise UserError(
            f"{location} was made with other settings ({name}):\n  " + "\n  ".join(differing) + "\n"
            "Use the same settings to go on with it, or another --out to start afresh."
        )


def drop_failed(location: str, config: Config) -> int:
    """Removes every row whose status is not ok or no_face, so that a run redoes those videos; returns how many."""
    final, num_dropped = pa.array(FINAL), 0
    names = part_names(location)
    for name, statuses in zip(names, read_parts(location, names, ["status"]), strict=True):
        if not (num := pc.sum(pc.invert(pc.is_in(statuses["status"], final))).as_py()):
            continue  # not read in full: its crops are megabytes
        num_dropped += num
        table, part = read_part(location, name), storage.join(location, name)
        keep = table.filter(pc.is_in(table["status"], final))
        if keep.num_rows:
            storage.write_bytes(part, to_parquet(keep, config))
        else:
            storage.delete(part)
    return num_dropped


def explode_faces(faces: pa.Table) -> pa.Table:
    """One row per face instead of one per video: list columns give their items, the others are repeated.

    Videos without a face vanish. A feature stays a list of D numbers.
    """
    lists = [field.name for field in faces.schema if pa.types.is_list(field.type)]
    columns = {}
    rows = pc.list_parent_indices(faces[lists[0]].combine_chunks())
    for name in faces.column_names:
        if name not in lists:
            columns[name] = faces[name].take(rows)
        elif not len(faces) or faces[name].null_count < len(faces):  # nulls (crops not kept) have no items
            columns[name] = pc.list_flatten(faces[name].combine_chunks())
    return pa.table(columns)


@dataclasses.dataclass(frozen=True)
class Claim:
    """The right to write a table; any process of the job can check it."""

    location: str
    owner: str

    def check(self) -> None:
        """Raises RuntimeError if the job was paused for so long that another one took the table."""
        if _read_lock(self.location).get("owner") != self.owner:
            raise RuntimeError(f"another process took over {self.location}; this one stops")


@contextmanager
def sole_writer(location: str) -> Iterator[Claim]:
    """Claims the table for one writer by a file that is rewritten every 5 s.

    A claim is taken over if its file has not changed for 20 s, or its process on this host is gone, so a killed job can
    be continued. The clocks of hosts need not agree.

    Raises:
        UserError: another process is writing the table, or it cannot be written at all.
    """
    claim = Claim(location, uuid.uuid4().hex)
    owner = {"owner": claim.owner, "host": socket.gethostname(), "pid": os.getpid()}

    def beat(number: int) -> None:
        storage.write_bytes(storage.join(location, LOCK), json.dumps(owner | {"beat": number}).encode())

    try:
        if (held := _read_lock(location)) and not _is_abandoned(held, location):
            raise UserError(
                f"{location} is being written by process {held.get('pid')} on {held.get('host')}. "
                "Wait for it, stop it, or use another --out."
            )
        beat(0)
    except OSError as error:
        raise UserError(f"cannot write to {location}: {error}. Give an --out that you may write to.") from error
    time.sleep(0.2)  # if two start at the same moment, the one whose file was replaced gives way
    if _read_lock(location).get("owner") != claim.owner:
        raise UserError(f"{location} was claimed by another process at the same moment. Use another --out.")
    stop = threading.Event()

    def keep_claim() -> None:
        number = 0
        while not stop.wait(BEAT_S):
            try:
                if _read_lock(location).get("owner") != claim.owner:
                    return
                beat(number := number + 1)
            except OSError as error:  # the store may be away for a moment: try again at the next beat
                print(f"raydistal: could not renew the claim on {location}: {error}", file=sys.stderr)

    thread = threading.Thread(target=keep_claim, daemon=True, name="sole_writer")
    thread.start()
    try:
        yield claim
    finally:
        stop.set()
        thread.join()
        if _read_lock(location).get("owner") == claim.owner:
            storage.delete(storage.join(location, LOCK))


def _read_lock(location: str) -> dict[str, Any]:
    try:
        return dict(json.loads(storage.read_bytes(storage.join(location, LOCK))))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _is_abandoned(held: Mapping[str, Any], location: str) -> bool:
    if held.get("host") == socket.gethostname() and not _is_alive(held["pid"]):
        return True
    deadline = time.monotonic() + BEAT_S * BEATS_UNTIL_STALE
    print(f"raydistal: waiting for a sign of life of process {held.get('pid')} on {held.get('host')}", file=sys.stderr)
    while time.monotonic() < deadline:
        time.sleep(min(1.0, BEAT_S / 2))
        if (now := _read_lock(location)) != held:
            return not now  # it is alive, or it has finished in the meantime
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def count_classes(labels: pa.ChunkedArray) -> tuple[int, int]:
    """Number of real (0) and of fake (1) ones."""
    real, fake = (pc.sum(pc.equal(labels, label)).as_py() or 0 for label in (0, 1))
    return real, fake


def count_values(values: Iterable[Any] | pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, most frequent first."""
    counts = pc.value_counts(values if isinstance(values, pa.ChunkedArray) else pa.array(values)).to_pylist()
    return {str(item["values"]): item["counts"] for item in sorted(counts, key=lambda item: -item["counts"])}
