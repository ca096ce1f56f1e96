"""Runs detectors: in PyTorch, or without it from the single file that `raydistal export` writes.

    model.onnx | model.pte   (N, S, S, 3) crops to (N,) logits of fake, normalisation included; .pte takes N = 1
    detector.json            as of a trained detector, with `runtime` and `precision`; its digest is that of the file

N crops, RGB from 0 to 255; S = input_px.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from raydistal import storage
from raydistal.detector import checkpoint
from raydistal.detector.zoo import Detector
from raydistal.errors import UserError

Runtime = Literal["onnx", "executorch"]
Crops = npt.NDArray[np.uint8]
Logits = Callable[[Crops], npt.NDArray[np.float32]]

FILES = {"torch": checkpoint.WEIGHTS, "onnx": "model.onnx", "executorch": "model.pte"}
INPUT, OUTPUT = "crops", "logit"
NO_EXECUTORCH = "the runtime executorch is not installed here. Run: pip install 'raydistal[executorch]'"


@dataclass(frozen=True)
class Exported:
    """A detector that needs no PyTorch, as the bytes of its file, which can be sent to other processes."""

    runtime: Runtime
    content: bytes
    input_px: int


def save(location: str, model: Exported, about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the model, then detector.json, as `checkpoint.save` does; returns the content of detector.json."""
    content = {"format": checkpoint.FORMAT} | dict(about)
    content |= {"input_px": model.input_px, "runtime": model.runtime, "digest": _digest(model.content)}
    storage.delete(storage.join(location, checkpoint.INFO))
    storage.write_bytes(storage.join(location, FILES[model.runtime]), model.content)
    storage.write_bytes(storage.join(location, checkpoint.INFO), json.dumps(content, indent=1).encode())
    return content


def load(location: str) -> tuple[Detector | Exported, dict[str, Any]]:
    """A trained or an exported detector, and the content of its detector.json.

    Raises:
        UserError: as `checkpoint.load`.
    """
    about = checkpoint.read_about(location)
    if about["runtime"] == "torch":
        return checkpoint.load(location)
    if about["runtime"] not in FILES:
        raise UserError(f"{location} is for the runtime {about['runtime']!r}; this raydistal knows {', '.join(FILES)}")
    place = storage.join(location, FILES[about["runtime"]])
    try:
        content = storage.read_bytes(place)
    except OSError as error:
        raise UserError(f"cannot read {place}: {error}. {checkpoint.AGAIN} {location}") from error
    if _digest(content) != about["digest"]:
        raise UserError(f"{place} is not what {checkpoint.INFO} beside it was written for. Export the detector again.")
    return Exported(about["runtime"], content, about["input_px"]), about


def size_mb(location: str, about: Mapping[str, Any]) -> float:
    """Of the file with the weights of a finished detector, 1e6 bytes; `about` is its detector.json."""
    filesystem, path = storage.resolve(storage.join(location, FILES[about["runtime"]]))
    return float(filesystem.get_file_info(path).size) / 1e6


def start(model: Detector | Exported, device: str = "cpu") -> Logits:
    """The model, ready to run; on CPUs with as many threads as PyTorch has (`torch.set_num_threads`).

    Args:
        model: a Detector is moved to the device and put into evaluation mode.
        device: on "cuda", a Detector computes in bfloat16 where it is native, else in float16; on "cpu" in float32. An
            exported model runs on CUDA where its runtime can.

    Raises:
        UserError: its runtime is not installed.
    """
    if isinstance(model, Detector):
        return _start_torch(model, device)
    return _start_onnx(model, device) if model.runtime == "onnx" else _start_executorch(model)


def mixed_precision(device: torch.device) -> tuple[contextlib.AbstractContextManager[object], torch.dtype]:
    """A context in which networks compute in bfloat16 where it is native, else in float16; on the CPU no change."""
    if device.type != "cuda":
        return contextlib.nullcontext(), torch.float32
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.autocast("cuda", dtype), dtype


def _start_torch(detector: Detector, device: str) -> Logits:
    detector = detector.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    autocast, _ = mixed_precision(torch.device(device))

    @torch.inference_mode()
    def logits(crops_NHWC: Crops) -> npt.NDArray[np.float32]:
        with autocast:
            logit_N = detector(torch.tensor(crops_NHWC).to(device))
        return np.asarray(logit_N.float().cpu().numpy())

    return logits


def _start_onnx(model: Exported, device: str) -> Logits:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads would spin on CPUs that decode
    wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
    providers = [name for name in [*wanted, "CPUExecutionProvider"] if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(model.content, options, providers=providers)
    return lambda crops_NHWC: np.asarray(session.run([OUTPUT], {INPUT: crops_NHWC})[0])


def _start_executorch(model: Exported) -> Logits:
    try:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime as Executorch
    except ImportError as error:
        raise UserError(NO_EXECUTORCH) from error
    if portable_lib._threadpool_get_thread_count() != torch.get_num_threads():
        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
    return _Executorch(Executorch.get().load_program(model.content), model.content)


class _Executorch:
    """Crops go through one after another."""

    def __init__(self, program: Any, content: bytes) -> None:
        self._method = program.load_method("forward")
        self._kept = program, content  # the method reads from the program, and that from the bytes: no copy is made

    def __call__(self, crops_NHWC: Crops) -> npt.NDArray[np.float32]:
        crops = torch.tensor(crops_NHWC)
        return np.array([self._method.execute([crop[None]])[0].item() for crop in crops], np.float32)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
