"""A detector as one file that runs without PyTorch: ONNX, or ExecuTorch for mobile devices.

The file takes uint8 crops as they come from a picture and normalises them itself, so that no preprocessing can be
forgotten. N crops, S = input_px.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from raydistal.detector.runtime import INPUT, NO_EXECUTORCH, OUTPUT, Exported, Runtime, start
from raydistal.detector.zoo import Detector
from raydistal.errors import UserError

OPSET = 20
MAX_CROPS = 1 << 16  # of one call; ONNX has no such bound, torch.export wants one
BATCH_SIZES: dict[Runtime, Sequence[int]] = {"onnx": (1, 3, 8), "executorch": (3,)}  # .pte: one after another
TOLERANCE = 1e-3  # of the largest logit, or of 1 if that is larger: other kernels sum in another order


def export(detector: Detector, runtime: Runtime) -> Exported:
    """The detector in float32 for another runtime.

    Args:
        detector: in evaluation mode, on the CPU.
        runtime: onnx takes any number of crops at once, executorch (XNNPACK) one.

    Raises:
        UserError: the runtime is not installed, or does not know an operation of the network.
    """
    try:
        content = to_onnx(detector) if runtime == "onnx" else to_executorch(detector, detector.input_px)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"{detector.architecture} cannot be exported to ONNX: {str(error).splitlines()[0]}. Use another --runtime, "
            "or another architecture."
        ) from error
    return Exported(runtime, content, detector.input_px)


def to_onnx(detector: Detector) -> bytes:
    """An ONNX file: input `crops` uint8 (N, S, S, 3), output `logit` float32 (N,), N chosen at each call."""
    num = torch.export.Dim("N", min=1, max=MAX_CROPS)
    # Two: with a single crop, N would be fixed at 1.
    example = torch.zeros(2, detector.input_px, detector.input_px, 3, dtype=torch.uint8)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        torch.onnx.export(
            detector,
            (example,),
            path,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: num},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        return path.read_bytes()


def to_executorch(network: torch.nn.Module, input_px: int) -> bytes:
    """An ExecuTorch file for XNNPACK: input uint8 (1, S, S, 3), output float32 (1,).

    A batch of varying size would make it reserve memory for the largest one.
    """
    network = network.to(memory_format=torch.contiguous_format)  # the only one it takes
    example = torch.zeros(1, input_px, input_px, 3, dtype=torch.uint8)
    with quiet(), torch.no_grad():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as error:
            raise UserError(NO_EXECUTORCH) from error
        program = torch.export.export(network, (example,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)


def check_parity(detector: Detector, model: Exported, seed: int = 0) -> dict[str, Any]:
    """How far the logits of the model are from those of the detector, for several numbers of crops at once.

    The crops are blurred noise. On sharp noise a trained network may give logits of thousands, of which float32 itself
    gets no more than three digits right.

    Raises:
        UserError: they differ by more than rounding explains, or are not finite.
    """
    rng = np.random.default_rng(seed)
    logits, expected = start(model), start(detector)
    parity: dict[str, Any] = {"batch_sizes": list(BATCH_SIZES[model.runtime]), "max_abs": 0.0, "max_relative": 0.0}
    for num_crops in BATCH_SIZES[model.runtime]:
        coarse = rng.integers(0, 256, (num_crops, 8, 8, 3), dtype=np.uint8)
        size_px = (model.input_px, model.input_px)
        crops_NHWC = np.stack([cv2.resize(blocks_HWC, size_px) for blocks_HWC in coarse])
        logit_N = expected(crops_NHWC)
        error_N = np.abs(logits(crops_NHWC) - logit_N)
        relative = float(error_N.max() / max(1.0, np.abs(logit_N).max()))
        if not relative <= TOLERANCE:  # true of NaN as well
            raise UserError(
                f"the exported model does not say what {detector.architecture} says: logits differ by "
                f"{error_N.max():.3g} for {num_crops} crops. It was not kept; use another --runtime or architecture."
            )
        parity["max_abs"] = max(parity["max_abs"], float(error_N.max()))
        parity["max_relative"] = max(parity["max_relative"], relative)
    return parity


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what exporters say of themselves; errors are raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
