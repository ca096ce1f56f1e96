"""What a detector has learnt from: its own data, that of what it started from, and that of its teachers."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raydistal import storage, tables
from raydistal.detector import checkpoint
from raydistal.errors import UserError


class Learnt(NamedTuple):
    """Names, as detectors tell them."""

    datasets: frozenset[str]
    methods: frozenset[str]
    """Of the fakes."""
    is_all: bool
    """False if some of it cannot be known: an ancestor is gone or tells nothing, so what is not named may be known."""

    def has_seen(self, datasets: Sequence[str], method: str | None = None) -> bool | None:
        """Whether it learnt from one of the datasets, and from fakes of the method there; None: cannot be known."""
        is_named = bool(self.datasets & set(datasets)) and (method is None or method in self.methods)
        return True if is_named else False if self.is_all else None


def ancestor(location: str, about: dict[str, Any]) -> dict[str, str]:
    """How detector.json names what a detector was made from; `about` is what the ancestor says of itself."""
    return {"location": storage.absolute(location), "model_id": checkpoint.model_id(about)}


def learnt_from(about: dict[str, Any], descendants: frozenset[str] = frozenset()) -> Learnt:
    """From the content of detector.json, and of those of its ancestors, which are read.

    `descendants`: locations on the way to it. One that names itself as its ancestor is not followed in circles.
    """
    data = about.get("data", {})
    is_all = {"dataset", "methods"} <= data.keys() and "parent" in about
    own = Learnt(frozenset(data.get("dataset", ())), frozenset(data.get("methods", ())), is_all)
    parents = [about["parent"]] if about.get("parent") else []
    teachers = (about.get("teaching") or {}).get("teachers", [])
    known = [own, *(_learnt_by(earlier, descendants) for earlier in (*parents, *teachers))]
    datasets, methods = (frozenset().union(*sets) for sets in list(zip(*known, strict=True))[:2])
    return Learnt(datasets, methods, all(one.is_all for one in known))


def trained_on(own: pa.Table, ancestors: Iterable[str]) -> pa.Table:
    """`own` (TRAINED_ON), and the other videos that these detectors, parent or teachers, had learnt from before.

    A student is not to be tested on them either: what its teacher knows by heart it hands on.
    """
    for location in ancestors:
        place = storage.join(location, "trained_on")
        if tables.read_info(place):
            before = tables.read_table(place, "train", own.column_names)
            is_known = pc.is_in(before["video_id"], value_set=own["video_id"].combine_chunks())
            own = pa.concat_tables([own, before.filter(pc.invert(is_known))])
    return own


def _learnt_by(earlier: dict[str, str], descendants: frozenset[str]) -> Learnt:
    """Nothing is known of one that is gone, or was replaced by another."""
    location = earlier["location"]
    try:
        about = {} if location in descendants else checkpoint.read_about(location)
    except UserError:
        about = {}
    is_it = bool(about) and checkpoint.model_id(about) == earlier["model_id"]
    return learnt_from(about, descendants | {location}) if is_it else Learnt(frozenset(), frozenset(), False)
