"""What a folder holds and how far the job on it is, from its tables alone, while they are written and afterwards.

Needs no cluster and nothing but the job's folder, so it also works on another machine, and when the job is dead.
"""

import json
import pickle
import re
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from raydistal import storage, tables
from raydistal.errors import UserError

Floats = npt.NDArray[np.float64]
State = dict[str, Any]

WINDOW_S = 600  # for the rate
NUM_REASONS = 5
STALE_S = tables.BEAT_S * tables.BEATS_UNTIL_STALE
DETECTOR, CHECKPOINT = "detector.json", "checkpoint.pt"
MANY = ("teaching", "scores")  # folders of tables that a job fills side by side
POINT = ("set", "data", "prune", "alpha", "temperature", "kd_weight", "tau", "negatives", "bits", "seed")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show how far a job is, from its folder alone, while it runs and afterwards."""

    out: str
    """The --out of a verb, local or s3://...: a run, a detector, a search, an evaluation, a comparison, verdicts."""


def run(config: Config) -> State:
    """Prints a table on stderr and returns what it says.

    Raises:
        UserError: the folder holds no table and no detector, or files of other programs by their names, or cannot be
            listed.
    """
    out = storage.absolute(config.out)
    names = storage.list_files(out)
    tops = {name.partition("/")[0] for name in names}
    found: State = {"location": out}
    if writers := _writers(out, names):
        found["writers"] = writers
    if "videos" in tops:
        found["videos"] = _videos(storage.join(out, "videos"))
    if "faces" in tops:
        is_alive = any(writer["alive"] for writer in writers if writer["table"] == "faces")
        found["faces"] = _faces(storage.join(out, "faces"), found.get("videos", {}).get("num"), is_alive)
    if "trials" in tops:
        found["trials"] = _trials(storage.join(out, "trials"))
    if "verdicts" in tops:
        found["verdicts"] = _verdicts(storage.join(out, "verdicts"))
    for name in MANY:
        if begun := {path.split("/")[1] for path in names if path.startswith(f"{name}/") and path.count("/") == 2}:
            complete = begun & {path.split("/")[1] for path in names if path.endswith(f"/{tables.INFO}")}
            found[name] = {"begun": len(begun), "complete": len(complete)}
    for name in sorted(tops - found.keys()):
        if f"{name}/{tables.INFO}" in names and (info := tables.read_info(storage.join(out, name))):
            found[name] = {"rows": info["num_rows"]}  # a table that is written in one go
    if {DETECTOR, CHECKPOINT} & tops:
        name, read = (DETECTOR, _finished) if DETECTOR in tops else (CHECKPOINT, _under_way)
        with _ours(storage.join(out, name)):
            found["detector"] = read(out)
    finished, begun = (
        {name.rpartition("/")[0] for name in names if name.endswith(f"/{end}")} for end in (DETECTOR, CHECKPOINT)
    )
    if finished | begun:
        found["detectors"] = {"finished": len(finished), "under_way": len(begun - finished)}
    if len(found) == 1:
        raise UserError(f"{config.out} holds no table and no detector. Give what was --out of a verb.")
    _print(found)
    return found


@contextmanager
def _ours(location: str) -> Iterator[None]:
    """Refuses a file whose content is not what raydistal writes under that name."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # not JSON, no archive, no pickle, other keys
        raise UserError(
            f"{location} was not written by raydistal, or is damaged ({error!r}). Give the --out of a verb."
        ) from error


def _writers(out: str, names: list[str]) -> list[State]:
    """The processes that claim the folder or a table in it, and the time since their last sign of life."""
    found = []
    for name in names:
        table, _, last = name.rpartition("/")
        if last != tables.LOCK or "/" in table:
            continue
        filesystem, path = storage.resolve(storage.join(out, name))
        try:
            with _ours(storage.join(out, name)):
                held = json.loads(storage.read_bytes(storage.join(out, name)))
                writer = {"table": table, "host": held["host"], "pid": held["pid"]}
        except FileNotFoundError:  # the claim was just released
            continue
        silent_s = max(0.0, time.time() - (filesystem.get_file_info(path).mtime_ns or 0) * 1e-9)
        found.append(writer | {"silent_s": round(silent_s, 1), "alive": silent_s < STALE_S})
    return found


def _videos(location: str) -> State:
    videos = tables.read_table(location, "index", ["split", "label"])
    counts = videos.group_by(["split", "label"]).aggregate([([], "count_all")]).to_pylist()
    names = {0: "real", 1: "fake", None: "unlabelled"}
    splits: dict[str, dict[str, int]] = {}
    for row in sorted(counts, key=lambda row: (row["split"], str(row["label"]))):
        splits.setdefault(row["split"], {})[names[row["label"]]] = row["count_all"]
    return {"num": len(videos), "splits": splits}


def _faces(location: str, num_videos: int | None, is_alive: bool) -> State:
    """Counts, reasons for failures, and the rate in the minutes before the last part."""
    written_s = _written_s(location)
    with ThreadPoolExecutor(tables.READERS) as pool:  # many small reads: the wait is the store's latency
        parts = list(pool.map(partial(_read, location, columns=["status", "error", "frame_index"]), written_s))
    read = [(at, part) for at, part in zip(written_s.values(), parts, strict=True) if part is not None]
    state: State = {
        "done": sum(len(part) for _, part in read),
        "videos": num_videos,
        "unreadable": len(parts) - len(read),
    }
    state["complete"] = bool(tables.read_info(location))
    if not read:
        return state
    rows = pa.concat_tables([part for _, part in read])
    state["counts"] = tables.count_values(rows["status"])
    state["faces"] = pc.sum(pc.list_value_length(rows["frame_index"])).as_py()
    state["failures"] = _reasons(rows)
    at_s, num = np.array([at for at, _ in read]), np.array([len(part) for _, part in read])
    state["last_part_s"] = round(max(0.0, time.time() - float(at_s.max())), 1)
    if rate := _rate(at_s, num):
        state["videos_per_s"] = round(rate, 3)
        if is_alive and num_videos is not None:
            state["left_s"] = round(max(0, num_videos - state["done"]) / rate)
    return state


def _written_s(location: str) -> dict[str, float]:
    """When each part of a table was written, in seconds since 1970 by the clock of the store."""
    infos = storage.infos(location, tables.part_names(location))
    return {info.base_name: info.mtime_ns * 1e-9 for info in infos if info.type == fs.FileType.File}


def _read(location: str, name: str, columns: list[str] | None = None) -> pa.Table | None:
    """Columns of a part; None if it has just been removed, is not Parquet to its end, or was written by others."""
    try:
        part = tables.read_part(location, name, columns)
        tables.made_with(location, name, part.schema)
    except (FileNotFoundError, pa.ArrowInvalid, UserError):
        return None
    return part.replace_schema_metadata(None)


def _rate(at_s: Floats, num: npt.NDArray[np.int64]) -> float:
    """Rows per second in the WINDOW_S before the last part; 0.0: too few parts to tell.

    The first part only marks the beginning of the window: how long its rows took is not known.
    """
    at_s, num = at_s[order := np.argsort(at_s)], num[order]
    is_in = at_s >= at_s[-1] - WINDOW_S
    span_s = float(at_s[is_in][-1] - at_s[is_in][0])
    return float(num[is_in][1:].sum() / span_s) if span_s > 1 else 0.0


def _reasons(rows: pa.Table) -> list[State]:
    """The most frequent errors, each shown by one example, as they differ in paths, names and numbers."""
    failed = rows.filter(pc.invert(pc.is_in(rows["status"], pa.array(tables.FINAL)))).select(["status", "error"])
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for row in failed.to_pylist():
        kind = row["status"], re.sub(r"'[^']*'|\S*/\S*|\d+", "*", row["error"] or "")
        counts[kind] += 1
        first.setdefault(kind, row["error"] or "")
    return [{"num": num, "status": kind[0], "error": first[kind]} for kind, num in counts.most_common(NUM_REASONS)]


def _trials(location: str) -> State:
    """The state of a search: a row is written when its trial has ended."""
    parts = [_read(location, name) for name in tables.part_names(location)]
    rows = [row for part in parts if part is not None for row in part.to_pylist()]
    state: State = {"done": len(rows), "complete": bool(tables.read_info(location))}
    state["counts"] = tables.count_values([row["status"] for row in rows]) if rows else {}
    if ok := [row for row in rows if row["status"] == "ok" and row["accuracy"] is not None]:
        best = max(ok, key=lambda row: (row["accuracy"], -row["size_mb"]))
        names = ("trial", "accuracy", "auc", "size_mb", "num_params")
        point = {name: best[name] for name in POINT if best[name] is not None}
        state["best"] = {name: best[name] for name in names} | {"point": point}
    return state


def _verdicts(location: str) -> State:
    """The state of `detect`: a row is written when its video is done."""
    parts = [_read(location, name, ["status", "verdict"]) for name in tables.part_names(location)]
    kinds = [
        kind for part in parts if part is not None for kind in pc.coalesce(part["verdict"], part["status"]).to_pylist()
    ]
    state: State = {"done": len(kinds), "complete": bool(tables.read_info(location))}
    return state | {"counts": tables.count_values(kinds) if kinds else {}}


def _finished(location: str) -> State:
    about = json.loads(storage.read_bytes(storage.join(location, DETECTOR)))
    state: State = {"finished": True, "architecture": about["architecture"], "num_params": about["num_params"]}
    state["technique"] = about.get("technique")
    if history := about.get("history"):
        state |= {"epochs": len(history)} | _measured(history[about["best_epoch"]])
    return state


def _under_way(location: str) -> State:
    """The state of a training, from its checkpoint without the weights: a few small reads of a large file."""
    filesystem, path = storage.resolve(storage.join(location, CHECKPOINT))
    with filesystem.open_input_file(path) as stream, zipfile.ZipFile(stream) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(name) as content:
            state = _Skim(content).load()
    progress: State = {"finished": False, "architecture": state["settings"]["architecture"]}
    progress |= {"epoch": state["epoch"], "epochs": state["settings"]["epochs"]}
    return progress | (_measured(state["history"][-1]) if state["history"] else {})


def _measured(row: State) -> State:
    return {name: row.get(name) for name in ("train_loss", "val_loss", "val_accuracy", "val_auc")}


class _Skim(pickle.Unpickler):
    """Reads what torch.save wrote, with None in place of tensors. Runs no code that the file names."""

    def find_class(self, _module: str, name: str) -> Any:
        return OrderedDict if name == "OrderedDict" else lambda *_: None

    def persistent_load(self, _pid: Any) -> None:
        return None


# --- the table


def _print(found: State) -> None:
    """Prints the state on stderr, for 80 columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(found["location"]), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, lines in _lines(found):
        for number, line in enumerate(lines):
            table.add_row("" if number else name, escape(line))
    Console(stderr=True, highlight=False).print(table)


def _lines(found: State) -> list[tuple[str, list[str]]]:
    """The lines to print about each thing that was found."""
    sections: list[tuple[str, list[str]]] = []
    if videos := found.get("videos"):
        splits = [
            f"{split}: {', '.join(f'{num} {label}' for label, num in labels.items())}"
            for split, labels in videos["splits"].items()
        ]
        sections.append(("videos", [f"{videos['num']}", *splits]))
    if faces := found.get("faces"):
        sections.append(("faces", _of_faces(faces)))
    if trials := found.get("trials"):
        sections.append(("trials", _of_trials(trials)))
    if verdicts := found.get("verdicts"):
        counts = ", ".join(f"{num} {kind}" for kind, num in verdicts["counts"].items())
        complete = "complete" if verdicts["complete"] else "not complete"
        sections.append(("verdicts", [f"{verdicts['done']} videos done, {complete}", *filter(None, [counts])]))
    if detector := found.get("detector"):
        sections.append(("detector", [_of_detector(detector)]))
    if detectors := found.get("detectors"):
        sections.append(("detectors", [f"{detectors['finished']} finished, {detectors['under_way']} under way"]))
    for name in MANY:
        if many := found.get(name):
            sections.append((name, [f"{many['complete']} of {many['begun']} tables complete"]))
    sections += [
        (name, [f"complete, {state['rows']} rows"])
        for name, state in found.items()
        if isinstance(state, dict) and "rows" in state
    ]
    return [*sections, *(("job", [_of_writer(writer)]) for writer in found.get("writers", []))]


def _of_faces(faces: State) -> list[str]:
    of = "" if faces["videos"] is None else f" of {faces['videos']}"
    lines = [f"{faces['done']}{of} videos done, {'complete' if faces['complete'] else 'not complete'}"]
    if "counts" in faces:
        counts = ", ".join(f"{num} {status}" for status, num in faces["counts"].items())
        lines.append(f"{counts}; {faces['faces']} faces")
    if "videos_per_s" in faces:
        left = f", {_duration(faces['left_s'])} left" if "left_s" in faces else ""
        last = f"the last part was written {_duration(faces['last_part_s'])} ago"
        lines.append(f"{faces['videos_per_s']:.2f} videos/s{left}; {last}")
    if faces["unreadable"]:
        lines.append(f"{faces['unreadable']} parts cannot be read: the next run says why, or does their videos again")
    return lines + [f"{reason['num']} x {reason['status']}: {reason['error']}" for reason in faces.get("failures", [])]


def _of_trials(trials: State) -> list[str]:
    counts = ", ".join(f"{num} {status}" for status, num in trials["counts"].items())
    lines = [
        f"{trials['done']} ended{f' ({counts})' if counts else ''}, {'' if trials['complete'] else 'not '}complete"
    ]
    if best := trials.get("best"):
        point = " ".join(f"{name}={value:g}" if name != "set" else str(value) for name, value in best["point"].items())
        lines.append(f"best: accuracy {best['accuracy']:.3f}, {best['size_mb']:.2f} MB: {point}")
    return lines


def _of_detector(detector: State) -> str:
    if detector["finished"]:
        summary = f"{detector['architecture']}, finished ({detector['technique']}), {detector['num_params']} parameters"
    else:
        summary = f"{detector['architecture']}, epoch {detector['epoch']} of at most {detector['epochs']} done"
    measured = {"loss": detector.get("train_loss"), "val loss": detector.get("val_loss")}
    measured |= {"accuracy": detector.get("val_accuracy"), "AUC": detector.get("val_auc")}
    return ", ".join([summary, *(f"{name} {value:.3f}" for name, value in measured.items() if value is not None)])


def _of_writer(writer: State) -> str:
    who = f"process {writer['pid']} on {writer['host']}" + (f" ({writer['table']})" if writer["table"] else "")
    if writer["alive"]:
        return f"{who}: alive"
    silent = _duration(writer["silent_s"])
    return f"{who}: silent for {silent}. Killed or disconnected; the same command goes on with the rest"


def _duration(seconds: float) -> str:
    for unit, length_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.1f} {unit}"
    return f"{seconds:.0f} s"
