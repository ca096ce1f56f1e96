"""A trained detector on disk or in an object store: a directory with weights.safetensors and detector.json.

weights.safetensors  the state dict of timm's network, by timm's names
detector.json        what it is (architecture, shapes if pruned, adapter, input_px, mean, std, digest of the weights)
                     and how it came about; written last, so its presence says that the detector is complete

No pickle: nothing that is loaded can run code.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from raydistal import storage
from raydistal.detector import adapters, shapes
from raydistal.detector.zoo import Detector, dry_run
from raydistal.errors import UserError
from raydistal.features.backbones import find_misfit, state_digest

FORMAT = "detector/1"
INFO, WEIGHTS = "detector.json", "weights.safetensors"
AGAIN = "Copy the detector again from where it came, or train it again: raydistal train --out"


def save(location: str, detector: Detector, about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a detector directory, replacing the detector that was there.

    Args:
        location: a path or URI.
        detector: on any device, in any memory format.
        about: how it came about, as JSON; what follows from the detector itself is added.

    Returns:
        The content of detector.json.
    """
    state = {name: tensor.cpu().contiguous() for name, tensor in detector.network.state_dict().items()}
    itself = {
        "format": FORMAT,
        "runtime": "torch",
        "architecture": detector.architecture,
        "shapes": shapes.read(detector.network, fresh(detector).network),
        "adapter": detector.adapter,
        "input_px": detector.input_px,
        "mean": list(detector.mean),
        "std": list(detector.std),
        "num_params": sum(parameter.numel() for parameter in detector.parameters()),
        "digest": state_digest(state),
    }
    content = itself | dict(about) | itself  # these keys come first, and `about` cannot change them
    storage.delete(storage.join(location, INFO))
    storage.write_bytes(storage.join(location, WEIGHTS), safetensors.torch.save(state))
    storage.write_bytes(storage.join(location, INFO), json.dumps(content, indent=1).encode())
    return content


def fresh(detector: Detector) -> Detector:
    """The detector as it was before pruning, on the meta device: shapes only."""
    with torch.device("meta"):
        found = Detector(detector.architecture, detector.input_px)
        if detector.adapter:
            adapters.add_bottlenecks(found, detector.adapter)
    return found


def load(location: str) -> tuple[Detector, dict[str, Any]]:
    """The detector, in evaluation mode on the CPU, and the content of its detector.json.

    Raises:
        UserError: a file is missing, damaged, of another format or not written with the other one, or the detector
            was exported for another runtime; the message names it and says what to do.
    """
    about = read_about(location)
    if about["runtime"] != "torch":
        parent = (about.get("parent") or {}).get("location", "of --detector when it was exported")
        raise UserError(
            f"{location} was exported for {about['runtime']} and cannot be changed any more: use the detector {parent}"
        )
    weights = storage.join(location, WEIGHTS)
    try:
        with storage.local_copy(weights) as path:
            state = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {weights}: {error}. {AGAIN} {location}") from error
    detector = _build(location, about)
    if misfit := find_misfit(state, detector.network.state_dict()):
        raise UserError(f"{weights} does not fit {about['architecture']}: {misfit}. {AGAIN} {location}")
    if state_digest(state) != about["digest"]:
        raise UserError(f"{weights} is not what {INFO} beside it was written for. {AGAIN} {location}")
    detector.network.load_state_dict(state)
    return detector, about


def _build(location: str, about: Mapping[str, Any]) -> Detector:
    """The detector without its weights."""
    with torch.random.fork_rng(devices=[]):
        detector = Detector(about["architecture"], about["input_px"], about["mean"], about["std"]).eval()
        if about.get("adapter"):
            adapters.add_bottlenecks(detector, about["adapter"])
    if about.get("shapes"):
        try:
            shapes.apply(detector.network, about["shapes"])
            dry_run(detector)  # raises if the layers do not fit each other
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{storage.join(location, INFO)} is damaged: {error}. {AGAIN} {location}") from error
    return detector


def exists(location: str) -> bool:
    """True if a finished detector is there."""
    return storage.exists(storage.join(location, INFO))


def model_id(about: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that name the weights, whatever the directory is called."""
    return str(about["digest"])[:12]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


IS_VALID: dict[str, Callable[[Any], bool]] = {
    "architecture": lambda value: isinstance(value, str),
    "input_px": lambda value: isinstance(value, int) and value > 0,
    "mean": lambda value: isinstance(value, list) and len(value) == 3 and all(map(_is_number, value)),
    "std": lambda value: isinstance(value, list) and len(value) == 3 and all(_is_number(v) and v > 0 for v in value),
    "digest": lambda value: isinstance(value, str),
    "parent": lambda value: not value or (isinstance(value, dict) and {"location", "model_id"} <= value.keys()),
    "adapter": lambda value: not value or (isinstance(value, str) and adapters.is_bottleneck(value)),
}


def read_about(location: str) -> dict[str, Any]:
    """The content of detector.json; the weights are not read. Raises UserError as `load`."""
    place = storage.join(location, INFO)
    try:
        about = json.loads(storage.read_bytes(place))
    except OSError as error:
        raise UserError(f"no finished detector: cannot read {place}: {error}. Give a detector's folder.") from error
    except ValueError as error:  # not JSON, not UTF-8
        raise UserError(f"{place} is damaged: {error}. {AGAIN} FOLDER") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{place} is of the format {found!r}; this raydistal reads {FORMAT!r}: use the one that wrote it"
        )
    for key, is_valid in IS_VALID.items():
        if not is_valid(about.get(key)):
            raise UserError(f"{place} is damaged: {key} is {about.get(key)!r}. {AGAIN} FOLDER")
    return {"runtime": "torch"} | dict(about)
