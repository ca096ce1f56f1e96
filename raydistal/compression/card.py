"""The model card of an exported detector, for people who do not know it, and an example that runs it.

card.json, MODEL_CARD.md   use, data, how it came about, measurements, limits
example.py                 scores pictures with the runtime alone
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydistal import storage, tables
from raydistal.detector import checkpoint
from raydistal.detector.runtime import FILES
from raydistal.errors import UserError

JSON, MARKDOWN, EXAMPLE = "card.json", "MODEL_CARD.md", "example.py"
MEASURED = ("auc", "accuracy", "eer")  # of an evaluation, at video and frame level
OF_VAL = ("val_loss", "val_accuracy", "val_auc")
# Keys of detector.json that say how the detector came about; all others of an exported detector are its parent's.
OF_EXPORT = ("technique", "architecture", "num_params", "runtime", "precision")
OF_TRAINING = ("technique", "architecture", "num_params", "recipe", "trainable", "teaching", "pruning", "cost")
USE = (
    "To rank pictures of single faces, or videos by the mean over their faces, by how likely they are to be fakes "
    "of the kinds it has learnt from, so that people can review them. It is no proof, and must not decide about people "
    "by itself."
)
PROTOCOL = "Epoch and threshold were chosen on the split val, which shares no group (person, source) with train."
NO_PROTOCOL = "There was no val split: the last epoch was kept, and the threshold was not chosen."
LIMITS = (
    "It knows the manipulations, people, cameras and compression of its training data; on others it can be "
    "confidently wrong.",
    "It looks at one face in one picture: not at motion, sound or context.",
    "Its probability is not calibrated for other data: choose a threshold on your own.",
    "Faces must be found and cropped as for its training: square, with the same margin.",
)
LIMIT_INT8 = "8 bits: on x86 without VNNI sums may saturate, which changes results. Measure on the machine it is for."
LIMIT_SYNTHETIC = "It learnt from synthetic videos, drawn by a program: it knows nothing of real ones."


def write(location: str, about: Mapping[str, Any], evaluation: str = "") -> dict[str, Any]:
    """Writes the card and the example beside the model; returns the content of card.json.

    Args:
        location: directory of an exported detector.
        about: the content of its detector.json.
        evaluation: folder of `raydistal evaluate`; empty: none.

    Raises:
        UserError: the evaluation is not finished, or is of other detectors.
    """
    content = card(location, about, evaluation)
    example = Path(__file__).with_name(f"example_{about['runtime']}.py").read_bytes()
    storage.write_bytes(storage.join(location, EXAMPLE), example)
    storage.write_bytes(storage.join(location, JSON), json.dumps(content, indent=1).encode())
    storage.write_bytes(storage.join(location, MARKDOWN), markdown(content).encode())
    return content


def card(location: str, about: Mapping[str, Any], evaluation: str = "") -> dict[str, Any]:
    """The content of card.json, see `write`."""
    data = about.get("data", {})
    is_synthetic = bool(data.get("synthetic"))
    history = about.get("history", [])
    best: Mapping[str, Any] = next((row for row in history if row["epoch"] == about.get("best_epoch")), {})
    limits = [LIMIT_SYNTHETIC] * is_synthetic + list(LIMITS) + [LIMIT_INT8] * (about["precision"] != "float32")
    return {
        "name": Path(location.partition("?")[0]).name,
        "licence": "",  # of the weights: for its owner to say
        "intended use": USE,
        "model": {
            "model_id": checkpoint.model_id(about),
            "architecture": about["architecture"],
            "file": FILES[about["runtime"]],
            **{name: about[name] for name in ("runtime", "precision", "num_params", "macs", "size_mb", "input_px")},
            "input": about["input"],
            "output": about["output"],
            "threshold": about.get("threshold"),
        },
        "data": dict(data),
        "protocol": PROTOCOL if about.get("threshold", {}).get("from") == "val" else NO_PROTOCOL,
        "how it came about": ancestors(location, about),
        "measured on val, before export": {name: best[name] for name in OF_VAL if name in best},
        "evaluation": _evaluation(about, evaluation) if evaluation else [],
        "export": {"parity": about["parity"], "quantization": about["quantization"]},
        "limits": limits,
        "versions": about["versions"],
    }


def ancestors(location: str, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The detector, what it was made from, and so on to the first, or as far as their directories can still be read."""
    found: list[dict[str, Any]] = []
    while True:
        step = {"location": location, "model_id": checkpoint.model_id(about)}
        names = OF_EXPORT if about["runtime"] != "torch" else OF_TRAINING
        found.append(step | {name: about[name] for name in names if about.get(name)})
        parent = about.get("parent")
        if not parent:
            return found
        location = parent["location"]
        if location in {one["location"] for one in found}:
            return [*found, {**parent, "note": "its own descendant"}]
        try:
            about = checkpoint.read_about(location)
        except UserError:
            return [*found, {**parent, "note": "not there any more"}]
        if checkpoint.model_id(about) != parent["model_id"]:
            return [*found, {**parent, "note": "replaced by another detector since"}]


def _evaluation(about: Mapping[str, Any], evaluation: str) -> list[dict[str, Any]]:
    """Rows of the metrics of the model or of what it was made from."""
    place = storage.join(evaluation, "metrics")
    rows = tables.read_table(place, "evaluate").to_pylist()
    models = {checkpoint.model_id(about): "this model", about["parent"]["model_id"]: "before export"}
    protocols = {one["name"]: one["protocol"] for one in tables.read_info(place)["data"]}
    found = [
        {"of": models[row["model_id"]], "protocol": protocols[row["dataset"]]}
        | {name: row[name] for name in ("dataset", "split", "level", "metric", "value", "low", "high", "num")}
        for row in rows
        if row["model_id"] in models and row["slice"] == "all" and row["metric"] in MEASURED
    ]
    if not found:
        raise UserError(
            f"{evaluation} measured other detectors. Run: raydistal evaluate --detectors {about['parent']['location']}"
        )
    return found


def markdown(content: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    lines = [f"# {_text(content['name'])}", ""]
    for title, value in content.items():
        if title != "name":
            lines += [f"## {title.capitalize()}", "", *_block(value), ""]
    return "\n".join(lines)


def _block(value: Any) -> list[str]:
    if not value:
        return ["Not given."]
    if isinstance(value, Mapping):
        rows = [f"| {_text(name)} | {_text(one)} |" for name, one in value.items()]
        return ["| | |", "|---|---|", *rows]
    if isinstance(value, list) and isinstance(value[0], Mapping):
        names = list(dict.fromkeys(name for one in value for name in one))
        rows = [f"| {' | '.join(_text(one.get(name)) for name in names)} |" for one in value]
        return [f"| {' | '.join(map(_text, names))} |", f"|{'---|' * len(names)}", *rows]
    if isinstance(value, list):
        return [f"- {_text(one)}" for one in value]
    return [_text(value)]


def _text(value: Any) -> str:
    """A value as one line of plain text: whatever is in a name, Markdown does not interpret it."""
    if value in (None, "", [], {}):
        return "\N{EN DASH}"
    if isinstance(value, Mapping):
        return "; ".join(f"{_text(name)}: {_text(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "".join(char if char.isprintable() else " " for char in str(value))
    for char, stands_for in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\["), ("*", "\\*")):
        text = text.replace(char, stands_for)
    return text
