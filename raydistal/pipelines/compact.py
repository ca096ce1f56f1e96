"""Many small parts of a table -> few large ones: reading a part costs three requests to an object store.

    a note: which parts become which -> for each: the new part, then the old ones are deleted -> the note is deleted

Readers see the old parts until the new one is there, and only the new one from then on: a run that is killed at any
moment neither loses nor doubles a row.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydistal import storage, tables
from raydistal.errors import UserError
from raydistal.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """Merge the small parts of a table. Nothing else may use it meanwhile."""

    table: str
    """A `faces` table (RUN/faces) or one of `scores`, finished or not; local or s3://..."""
    part_mib: int = 64
    """Size of the new parts, in MiB. Training reads a part for every 1024 faces, so a larger part several times."""

    def __post_init__(self) -> None:
        if not 1 <= self.part_mib <= 1024:
            raise UserError(f"--part-mib must be from 1 to 1024, not {self.part_mib}")


def run(config: Config) -> dict[str, Any]:
    """Merges small parts and returns a summary. A table without small parts stays as it is.

    Raises:
        UserError: no table of faces or scores, one that `teach` has outputs for, parts made with different settings,
            another writer.
    """
    began = time.monotonic()
    location = storage.absolute(config.table)
    made_with = _made_with(location)
    with tables.sole_writer(location) as claim:
        tables.read_ledger(location, made_with)  # removes what killed writers left
        names = tables.part_names(location)
        merges = {_merged_name(old): old for old in _small_ones(location, names, config.part_mib << 20)}
        if merges:
            storage.write_bytes(storage.join(location, tables.MERGES), json.dumps(merges).encode())
        with Progress("compact", sum(map(len, merges.values())), unit="parts") as progress:
            for new, old in merges.items():
                claim.check()
                merged = pa.concat_tables(tables.read_parts(location, old))
                storage.write_bytes(storage.join(location, new), tables.to_parquet(merged, made_with))
                progress.advance(len(old))
                tables.delete_parts(location, old)
        tables.settle(location)
    num_parts = len(tables.part_names(location))
    seconds = round(time.monotonic() - began, 1)
    return {"table": location, "parts_before": len(names), "parts": num_parts, "seconds": seconds}


def _made_with(location: str) -> tables.Config:
    """The settings of the table. Raises UserError if its parts cannot be merged."""
    found = ((name, _schema(location, name)) for name in tables.part_names(location))
    name, schema = next((one for one in found if one[1]), ("", None))
    if schema is None:
        raise UserError(f"no table at {location}: give one such as RUN/faces")
    made_with = tables.made_with(location, name, schema)
    if not {"video_id", "status"} <= set(schema.names):
        raise UserError(f"{location} is not a table of faces or scores: other tables have few parts anyway")
    teaching = storage.join(storage.parent(location), "teaching")
    if "feature" in schema.names and storage.list_files(teaching):
        raise UserError(
            f"{teaching} says part by part what teachers said of {location}. Compact before raydistal teach; or delete "
            "it, compact, and run teach again."
        )
    return made_with


def _schema(location: str, name: str) -> pa.Schema | None:
    """None of a part that is cut off, which `tables.read_ledger` removes."""
    filesystem, path = storage.resolve(storage.join(location, name))
    try:
        return pq.read_schema(path, filesystem=filesystem)
    except pa.ArrowInvalid:
        return None


def _small_ones(location: str, names: list[str], part_bytes: int) -> Iterator[list[str]]:
    """Parts to merge, some at a time."""
    held: list[str] = []
    num_bytes = 0
    for name, size in zip(names, storage.sizes(location, names), strict=True):
        if size >= part_bytes / 2:
            continue
        held.append(name)
        num_bytes += size
        if num_bytes >= part_bytes:
            yield held
            held, num_bytes = [], 0
    if len(held) > 1:
        yield held


def _merged_name(old: list[str]) -> str:
    return f"part-{hashlib.blake2b(json.dumps(old).encode(), digest_size=12).hexdigest()}.parquet"
