"""The page of a run: what index, extract and select found."""

import math
import shlex
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.report import figures
from raydistal.report.contents import MADE_BY, Contents, file_name, rows_by_id
from raydistal.report.figures import Picture, picture
from raydistal.report.page import Tile, count

NUM_EXAMPLES = 5
NUM_RANKED = 10
NUM_WARNINGS = 20
MAX_MESSAGE = 300  # characters
DIMENSIONS = {
    "label": "Class",
    "method": "Method",
    "compression": "Compression",
    "face_size": "Face size (px)",
    "num_faces": "Faces per video",
    "status": "Extraction",
}
REASONS = {
    "no_face": "no face was found in the frames looked at",
    "decode_error": "the file cannot be read as a video",
    "crashed": "the decoder died or ran out of the memory allowed",
    "timeout": "the video took longer than allowed",
    "missing": "the file is not in this copy of the dataset",
    "other_file": "the file is not the one that was shared",
}


class Step(NamedTuple):
    """A verb of the pipeline and what it has made so far."""

    verb: str
    state: str  # done | unfinished | open
    result: str


class Share(NamedTuple):
    """A row of the coverage table; shares are fractions of the full and of the distilled set."""

    value: str
    num_full: int
    num_distilled: int
    share_full: float
    share_distilled: float


class Failure(NamedTuple):
    """Videos without faces for one reason, and the first few of them: (uri, message)."""

    status: str
    reason: str
    num_videos: int
    examples: list[tuple[str, str]]


class Speed(NamedTuple):
    """A row of the throughput table."""

    stage: str
    work: str
    seconds: float
    rates: list[str]


def draw(contents: Contents) -> list[Picture]:
    """The figures that can be drawn from the tables that exist."""
    pictures = []
    if len(contents.ranking):
        ranked: dict[str, Any] = {
            "count_K": contents.ranking["num_representative"].to_numpy(),
            "label_K": contents.ranking["label"].to_numpy(),
            "num_kept": len(contents.distilled),
        }
        alt = f"Bar chart of the representative frames of each video, by rank. {concentration(contents)}"
        pictures.append(picture("frequency", alt, partial(figures.frequency, **ranked)))
        alt = "The same bar chart for real and for fake videos apart."
        pictures.append(picture("frequency_real_fake", alt, partial(figures.frequency_by_class, **ranked)))
    info = contents.infos.get("representative", {})
    if "histogram" in info:
        thresholds = [_threshold(contents, label) for label in (0, 1)]
        texts = ["no single threshold" if value is None else f"selected from {value:.3g}" for value in thresholds]
        alt = f"Histograms of the uncertainty of all faces. Real: {texts[0]}. Fake: {texts[1]}."
        edges, counts = info["histogram"]["edges"], {name: info["histogram"][name] for name in figures.CLASSES}
        drawn = partial(figures.uncertainty, edges=edges, counts=counts, thresholds=thresholds)
        pictures.append(picture("uncertainty", alt, drawn))
    return pictures


def values(contents: Contents) -> dict[str, Any]:
    """What `distillation.html.j2` shows, besides the figures."""
    infos, videos = contents.infos, contents.videos
    ranked = contents.ranking[:NUM_RANKED].to_pylist()
    found = rows_by_id(videos, [row["video_id"] for row in ranked])
    datasets = sorted(pc.unique(videos["dataset"]).to_pylist())
    return {
        "datasets": datasets,
        "layout": infos["videos"].get("layout"),
        "is_synthetic": schemas.SYNTHETIC in datasets,
        "tiles": tiles(contents),
        "steps": steps(contents),
        "notices": notices(contents) + warnings(infos["videos"].get("warnings", [])),
        "concentration": concentration(contents),
        "ranked": [
            row | {"name": file_name(video.get("uri"), row["video_id"]), "method": video.get("method") or ""}
            for row in ranked
            for video in [found.get(row["video_id"], {})]
        ],
        "strategy": _setting(contents, "strategy"),
        "rounds": _setting(contents, "rounds") or 1,
        "is_by_uncertainty": _is_by_uncertainty(contents),
        "sheets": {"most": contents.most_uncertain, "least": contents.least_uncertain},
        "coverage": coverage(contents.coverage),
        "groups": _groups(contents.coverage),
        "failures": failures(contents),
        "num_in_faces": len(contents.faces) if "faces" in infos else None,
        "speeds": speeds(infos.get("faces", {})),
        "commands": commands(contents),
        # Each table of select adds its settings to those of the one before, so distilled has them all.
        "configs": {
            MADE_BY[name]: infos[name]["config"] for name in ("videos", "faces", "distilled") if infos.get(name)
        },
        "versions": _versions(infos),
    }


def tiles(contents: Contents) -> list[Tile]:
    """The headline numbers."""
    videos, faces, ranking = contents.videos, contents.faces, contents.ranking
    real, fake = tables.count_classes(videos["label"])
    num_unlabelled = len(videos) - real - fake
    by_split = tables.count_values(videos["split"])
    notes = [f"{by_split[split]:,} {split}" for split in schemas.SPLITS if split in by_split]
    notes += [f"{num_unlabelled:,} unlabelled"] if num_unlabelled else []
    made = [Tile("Videos", len(videos), [" · ".join(notes)], (real, fake))]
    if "faces" in contents.infos:
        num_ok = pc.sum(pc.equal(faces["status"], "ok")).as_py() or 0
        notes = [f"in {count(num_ok, 'video')}, {len(faces) - num_ok:,} without"]
        made.append(Tile("Faces", pc.sum(faces["num_faces"]).as_py() or 0, notes))
    else:
        made.append(Tile("Faces", None, []))
    for title, table, name, note in (
        ("Representative frames", contents.representative, "representative", []),
        ("Distilled videos", contents.distilled, "distilled", [f"{_percent(contents)} of {len(ranking):,} ranked"]),
    ):
        is_there = name in contents.infos
        made.append(
            Tile(
                title, len(table) if is_there else None, note if is_there else [], tables.count_classes(table["label"])
            )
        )
    return made


def steps(contents: Contents) -> list[Step]:
    """The pipeline, verb by verb."""
    results = {
        "videos": ("index", count(len(contents.videos), "video") + " listed"),
        "faces": ("extract", count(len(contents.faces), "video") + " looked at"),
        "uncertainty": ("score", "faces scored"),
        "representative": ("select", count(len(contents.representative), "frame") + " selected"),
        "ranking": ("rank", count(len(contents.ranking), "video") + " ranked"),
        "distilled": ("distil", count(len(contents.distilled), "video") + " kept"),
    }
    made = []
    for table, (verb, result) in results.items():
        if table not in contents.infos:
            made.append(Step(verb, "open", "not yet"))
        elif not contents.infos[table]:
            made.append(Step(verb, "unfinished", f"{result}, unfinished"))
        else:
            made.append(Step(verb, "done", result))
    return made


def notices(contents: Contents) -> list[str]:
    """What a reader must know before believing the numbers."""
    infos, found = contents.infos, []
    for name in ("faces", "uncertainty"):  # written part by part, by many workers
        if name in infos and not infos[name]:
            found.append(f"The table {name} is unfinished: this page shows what is in it so far.")
    if infos.get("faces", {}).get("config", {}).get("weights") == "random":
        found.append("The features come from random weights: uncertainty, and what is selected by it, mean little.")
    if _setting(contents, "strategy") == "random":
        found.append("Frames were selected at random: a baseline to compare other strategies with.")
    info = infos.get("representative", {})
    for name, num_missing in info.get("shortage", {}).items():
        if num_missing > 0:
            wanted = info["num_per_class"]
            found.append(f"Only {wanted - num_missing:,} of {wanted:,} {name} frames were there to select.")
    kept = contents.ranking[: len(contents.distilled)]
    num_without = pc.sum(pc.equal(kept["num_representative"], 0)).as_py() or 0
    if num_without and infos.get("ranking", {}).get("config", {}).get("arrange") != "groups":
        found.append(
            f"{num_without:,} of the {len(kept):,} distilled videos have no representative frame and rank by their "
            "mean uncertainty alone. More --frames would tell more videos apart."
        )
    return found


def warnings(lines: list[str]) -> list[str]:
    """The warnings of index, up to a maximum."""
    shown = [f"index: {line}" for line in lines[:NUM_WARNINGS]]
    num_more = len(lines) - len(shown)
    return [*shown, f"index: and {num_more} more, in videos/_table.json"] if num_more else shown


def concentration(contents: Contents) -> str:
    """How unevenly the representative frames are spread over the videos, in words."""
    count_K = np.sort(contents.ranking["num_representative"].to_numpy())[::-1]
    total = int(count_K.sum())
    num_half = int(np.searchsorted(np.cumsum(count_K), total / 2)) + 1 if total else 0
    return (
        f"Half of the {total:,} representative frames lie in {num_half:,} of {len(count_K):,} videos; "
        f"{np.count_nonzero(count_K == 0):,} videos have none."
    )


def coverage(table: pa.Table) -> dict[str, list[Share]]:
    """Rows by dimension. Left out are groups, which are too many, and dimensions without any known value."""
    made: dict[str, list[Share]] = {}
    for dimension in pc.unique(table["dimension"]).to_pylist():
        rows = table.filter(pc.equal(table["dimension"], dimension)).to_pylist()
        if dimension == "group" or [row["value"] for row in rows] == ["unknown"]:
            continue
        full, distilled = (max(1, sum(row[name] for row in rows)) for name in ("num_full", "num_distilled"))
        made[DIMENSIONS.get(dimension, dimension)] = [
            Share(
                row["value"],
                row["num_full"],
                row["num_distilled"],
                row["num_full"] / full,
                row["num_distilled"] / distilled,
            )
            for row in rows
        ]
    return made


def failures(contents: Contents) -> list[Failure]:
    """Reasons in the order of `schemas.STATUSES`."""
    made = []
    for status in schemas.STATUSES[1:]:
        rows = contents.faces.filter(pc.equal(contents.faces["status"], status)).sort_by("video_id")
        if len(rows):
            chosen = rows[:NUM_EXAMPLES]
            found = pc.index_in(chosen["video_id"], value_set=contents.videos["video_id"])
            uris = pc.coalesce(contents.videos["uri"].take(found), chosen["video_id"]).to_pylist()
            messages = [" ".join((error or "").split())[:MAX_MESSAGE] for error in chosen["error"].to_pylist()]
            made.append(Failure(status, REASONS[status], len(rows), list(zip(uris, messages, strict=True))))
    return made


def speeds(info: dict[str, Any]) -> list[Speed]:
    """Throughput of the run that finished the `faces` table, from its `_table.json`; [] if it had nothing to do."""
    num_videos = info.get("num_new", info.get("num_rows", 0))
    if not num_videos or not info.get("seconds"):
        return []
    stages = info.get("stages", {})
    num_faces, num_frames = int(stages.get("num_faces", 0)), int(stages.get("num_frames_seen", 0))

    def speed(stage: str, seconds: float, **counts: int) -> Speed:
        counts = {unit: number for unit, number in counts.items() if number}
        work = ", ".join(f"{number:,} {unit}" for unit, number in counts.items())
        return Speed(stage, work, seconds, [f"{number / seconds:,.3g} {unit}/s" for unit, number in counts.items()])

    made = [speed("extract, from start to end", info["seconds"], videos=num_videos, faces=num_faces)]
    if stages.get("look_s"):
        made.append(speed("decode, detect, crop", stages["look_s"], videos=num_videos, frames=num_frames))
    if stages.get("feature_s"):
        made.append(speed("features", stages["feature_s"], faces=num_faces))
    return made


def commands(contents: Contents) -> list[tuple[str, str]]:
    """What to type next, each with its purpose."""
    out, infos = f"--out {shlex.quote(contents.location)}", contents.infos
    if not infos.get("faces"):
        return [("Look at the videos; goes on where it stopped", f"raydistal extract {out}")]
    made = []
    if any(failure.status != "no_face" for failure in failures(contents)):
        made.append(
            ("Try failed videos again, with the options of the first time", f"raydistal extract {out} --retry-failed")
        )
    if not infos.get("distilled"):
        return [*made, ("Choose the videos to keep", f"raydistal select {out} --ratio 0.2 --frames 500")]
    config = infos["distilled"].get("config", {})
    names = [name for name in ("frames", "strategy", "arrange", "rounds", "folds", "seed") if name in config]
    settings = [f"--{name} {shlex.quote(str(config[name]))}" for name in names]
    settings += [f"--split {split}" for split in pc.unique(contents.distilled["split"]).to_pylist()]
    manifest = shlex.quote(storage.join(contents.location, "distilled"))
    return [
        *made,
        (
            "Another ratio, from the same ranking: takes a moment",
            f"raydistal select {out} --ratio 0.1 \\\n  {' '.join(settings)}",
        ),
        ("Use the distilled set", f"raydistal extract --manifest {manifest} --out NEW_RUN"),
    ]


def _setting(contents: Contents, name: str) -> Any:
    """A setting of the selection; None if nothing was selected yet."""
    return contents.infos.get("representative", {}).get("config", {}).get(name)


def _is_by_uncertainty(contents: Contents) -> bool:
    """True if the frames selected are the most uncertain ones of all, as in Algorithm 1."""
    return _setting(contents, "strategy") not in ("random", "k_center") and (_setting(contents, "rounds") or 1) == 1


def _threshold(contents: Contents, label: int) -> float | None:
    """The lowest uncertainty selected of a class; None if frames of different rounds, or none, were selected."""
    table = contents.representative
    lowest = pc.min(table["uncertainty"].filter(pc.equal(table["label"], label))).as_py()
    is_one_value = lowest is not None and math.isfinite(lowest) and (_setting(contents, "rounds") or 1) == 1
    return lowest if is_one_value else None


def _percent(contents: Contents) -> str:
    return f"{100 * len(contents.distilled) / max(1, len(contents.ranking)):.3g} %"


def _groups(table: pa.Table) -> tuple[int, int] | None:
    """Groups with a distilled video, and all groups."""
    groups = table.filter(pc.equal(table["dimension"], "group"))
    return (pc.sum(pc.greater(groups["num_distilled"], 0)).as_py(), len(groups)) if len(groups) else None


def _versions(infos: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Versions by package; several where tables were made with different ones."""
    found: dict[str, set[str]] = {}
    for info in infos.values():
        for package, version in info.get("versions", {}).items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(versions)) for package, versions in found.items()}
