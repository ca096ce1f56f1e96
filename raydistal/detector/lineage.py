"""What a detector has learnt from: its own data, and that of its ancestors and teachers."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raydistal import storage, tables
from raydistal.detector import checkpoint
from raydistal.errors import UserError


class Learnt(NamedTuple):
    """The names of what a detector learnt from, as detector.json records them."""

    datasets: frozenset[str]
    methods: frozenset[str]
    """Those of the fakes."""
    is_all: bool
    """False if an ancestor is gone or records nothing: the detector may have learnt from more than is named."""

    def has_seen(self, datasets: Sequence[str], method: str | None = None) -> bool | None:
        """Whether it learnt from one of the datasets, and from fakes of the method there; None: cannot be known."""
        is_named = bool(self.datasets & set(datasets)) and (method is None or method in self.methods)
        return True if is_named else False if self.is_all else None


def ancestor(location: str, about: dict[str, Any]) -> dict[str, str]:
    """The entry for an ancestor in a detector.json; `about` is the content of the ancestor's own detector.json."""
    return {"location": storage.absolute(location), "model_id": checkpoint.model_id(about)}


def learnt_from(about: dict[str, Any], descendants: frozenset[str] = frozenset()) -> Learnt:
    """What a detector learnt from, by the content of its detector.json and by those of its ancestors, which are read.

    `descendants`: locations of the detectors that led here, so that circular ancestry is not followed for ever.
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
    """`own` (TRAINED_ON), and the other videos that the ancestors, parent or teachers, had learnt from.

    A student must not be tested on them either: a teacher hands on what it has memorised.
    """
    for location in ancestors:
        place = storage.join(location, "trained_on")
        if tables.read_info(place):
            before = tables.read_table(place, "train", own.column_names)
            is_known = pc.is_in(before["video_id"], value_set=own["video_id"].combine_chunks())
            own = pa.concat_tables([own, before.filter(pc.invert(is_known))])
    return own


def _learnt_by(earlier: dict[str, str], descendants: frozenset[str]) -> Learnt:
    """What an ancestor learnt from; unknown if it is gone or was replaced by another detector."""
    location = earlier["location"]
    try:
        about = {} if location in descendants else checkpoint.read_about(location)
    except UserError:
        about = {}
    is_it = bool(about) and checkpoint.model_id(about) == earlier["model_id"]
    return learnt_from(about, descendants | {location}) if is_it else Learnt(frozenset(), frozenset(), False)
