"""Detectors in 8-bit integers.

    int8          ONNX Runtime: activations u8, weights s8 per channel, ranges from calibration faces (MinMax).
    int8-dynamic  ONNX Runtime: ranges measured at each call. As small, but slower than float32: a baseline of size.
    int8-qat      First fine-tuned with simulated rounding (torchao PT2E), towards the float detector's probabilities.
    For ExecuTorch, int8 and int8-qat by the symmetric scheme of XNNPACK.

N faces, S = input_px.
"""

import copy
import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from raydistal.compression.export import MAX_CROPS, quiet, to_executorch, to_onnx
from raydistal.detector.runtime import INPUT, NO_EXECUTORCH, Crops, Exported, Runtime
from raydistal.detector.zoo import Detector
from raydistal.errors import UserError

Precision = Literal["float32", "int8", "int8-dynamic", "int8-qat"]
Floats = npt.NDArray[np.floating[Any]]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # where nearly all of the work is
MIN_CORRELATION = 0.5  # of logits, below which a conversion has failed
SMALL_CHANGE = 0.02  # of P(fake)


def quantize(
    detector: Detector,
    runtime: Runtime,
    precision: Precision,
    calibration: Iterable[Crops],
    training: Iterable[Crops],
    learning_rate: float,
) -> Exported:
    """The detector in 8-bit integers, as a file.

    Args:
        detector: in evaluation mode, on the CPU; left as it is.
        runtime: executorch has no int8-dynamic.
        precision: one of the int8 ones.
        calibration: batches of faces that the ranges of activations come from, at least one; not for int8-dynamic.
        training: for int8-qat, the batches to train on, in turn.
        learning_rate: of int8-qat.

    Raises:
        UserError: the runtime is not installed, or the loss of int8-qat is not finite.
    """
    if precision == "int8-dynamic":
        return Exported(runtime, quantize_dynamic(to_onnx(detector)), detector.input_px)
    trained = None
    if precision == "int8-qat":
        trained = simulate(detector, _xnnpack(is_qat=True) if runtime == "executorch" else _x86())
        train(trained, detector, training, learning_rate)
    if runtime == "executorch":
        graph = _convert(trained or _observe(detector, _xnnpack(is_qat=False), calibration))
        return Exported(runtime, to_executorch(graph, detector.input_px), detector.input_px)
    if trained:
        # The trained weights are put into the float network, which is quantized as for int8: it is as close to the
        # float detector as the simulation (measured), and faster than the graph that torchao converts to.
        detector, state = copy.deepcopy(detector), trained.state_dict()
        detector.load_state_dict({name: state[name] for name in detector.state_dict()})
    return Exported(runtime, quantize_static(to_onnx(detector), calibration), detector.input_px)


def quantize_static(model: bytes, batches: Iterable[Crops]) -> bytes:
    """An ONNX file with the ranges of its activations fixed from `batches`."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Crops] | None:
            crops_NHWC = next(self.batches, None)
            return None if crops_NHWC is None else {INPUT: crops_NHWC}

    with _prepared(model) as (prepared, made):
        # u8 activations: on x86, s8 ones are several times slower.
        kinds = {"activation_type": ort.QuantType.QUInt8, "weight_type": ort.QuantType.QInt8}
        ort.quantize_static(prepared, made, Reader(), quant_format=ort.QuantFormat.QDQ, per_channel=True, **kinds)
        return made.read_bytes()


def quantize_dynamic(model: bytes) -> bytes:
    """An ONNX file that measures the ranges of its activations each time it runs."""
    from onnxruntime import quantization as ort

    with _prepared(model) as (prepared, made):
        kind = ort.QuantType.QUInt8  # ONNX Runtime has no ConvInteger for s8 weights
        ort.quantize_dynamic(prepared, made, weight_type=kind)
        return made.read_bytes()


@contextmanager
def _prepared(model: bytes) -> Iterator[tuple[Path, Path]]:
    """The model with its shapes inferred and its constants folded, in a file; and a path for the quantized model."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with quiet(), tempfile.TemporaryDirectory() as folder:
        given, prepared, made = (Path(folder, f"{name}.onnx") for name in ("given", "prepared", "made"))
        given.write_bytes(model)
        quant_pre_process(given, prepared)
        yield prepared, made


def find_float_layers(model: bytes) -> list[str]:
    """Names of the convolutions and matrix products that an ONNX file still computes in float32."""
    import onnx

    graph = onnx.load_from_string(model).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    is_float = {
        node.name: any(made_by.get(name) != "DequantizeLinear" for name in node.input[:2])
        for node in graph.node
        if node.op_type in LAYERS
    }
    return [name for name, is_so in is_float.items() if is_so]


def simulate(detector: Detector, quantizer: Any) -> Any:
    """The detector as a graph that rounds as integers would, with gradients (torchao PT2E); parameters by their names.

    It is traced in training mode, where batch norm is still separate from the convolutions, then put into evaluation
    mode: the statistics of a few steps would spoil those of the whole training.
    """
    with quiet():
        from torchao.quantization import pt2e
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        graph = _trace(copy.deepcopy(detector).train(), min_crops=2)
        return pt2e.move_exported_model_to_eval(prepare_qat_pt2e(graph, quantizer))


def train(simulated: Any, detector: Detector, batches: Iterable[Crops], learning_rate: float) -> None:
    """Trains the parameters of what `simulate` made towards the probabilities of the detector, by Adam.

    Raises:
        UserError: the loss is not finite.
    """
    optimizer = torch.optim.Adam(simulated.parameters(), learning_rate)
    for crops_NHWC in batches:
        crops = torch.from_numpy(crops_NHWC)
        with torch.no_grad():
            target_N = torch.sigmoid(detector(crops))
        loss = bce(simulated(crops), target_N)
        if not math.isfinite(loss.item()):
            raise UserError(f"the loss became {loss.item()} in training for 8 bits. Lower --learning-rate.")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _x86() -> Any:
    with quiet():
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))


def _xnnpack(is_qat: bool) -> Any:
    with quiet():
        try:
            from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
        except ImportError as error:
            raise UserError(NO_EXECUTORCH) from error

    scheme = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=is_qat)
    return xnnpack.XNNPACKQuantizer().set_global(scheme)


def _observe(detector: Detector, quantizer: Any, calibration: Iterable[Crops]) -> Any:
    """The detector as a graph that has seen the ranges of its activations."""
    with quiet(), torch.no_grad():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        prepared = prepare_pt2e(_trace(detector, min_crops=1), quantizer)
        for crops_NHWC in calibration:
            prepared(torch.from_numpy(crops_NHWC))
    return prepared


def _convert(prepared: Any) -> Any:
    """The calibrated graph, converted to integer arithmetic."""
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        converted = convert_pt2e(prepared)
    for node in list(converted.graph.nodes):  # counters of batch norm: they would keep the graph from XNNPACK
        if node.target is torch.ops.aten.add_.Tensor and not node.users:
            converted.graph.erase_node(node)
    converted.graph.eliminate_dead_code()
    converted.recompile()
    return converted


def _trace(detector: Detector, min_crops: int) -> Any:
    """The detector as a graph for any number of crops."""
    crops = torch.zeros(4, detector.input_px, detector.input_px, 3, dtype=torch.uint8)
    num = torch.export.Dim("N", min=min_crops, max=MAX_CROPS)
    # Without guards, a graph that was traced in training mode, where batch norm needs two crops, also runs on one.
    return torch.export.export(detector, (crops,), dynamic_shapes=({0: num},)).module(check_guards=False)


def drift(
    float_logit_N: Floats, int8_logit_N: Floats, label_N: npt.NDArray[np.int64], threshold: float
) -> dict[str, Any]:
    """What changed from the float detector to the integer one, on faces used for neither calibration nor training.

    Returns:
        num_faces; correlation, of the logits (None if either side is constant); max_change and mean_change,
        of P(fake); flips, the share of faces on the other side of `threshold`; auc_before, auc_after (None of a single
        class).

    Raises:
        UserError: the conversion failed: the logits are not finite, or hardly correlate.
    """
    is_varied = float_logit_N.std() > 0 and int8_logit_N.std() > 0
    correlation = float(np.corrcoef(float_logit_N, int8_logit_N)[0, 1]) if is_varied else None
    before_N, after_N = (np.exp(-np.logaddexp(0, -logit_N)) for logit_N in (float_logit_N, int8_logit_N))
    change_N = np.abs(after_N - before_N)
    # Logits of a detector that has learnt little may not correlate though hardly anything changed: that is no failure.
    if not change_N.max() <= SMALL_CHANGE and not (correlation or 0) >= MIN_CORRELATION:
        why = "it says the same of all faces" if correlation is None else f"its logits correlate by {correlation:.2f}"
        if not np.isfinite(int8_logit_N).all():
            why = "it gives no numbers"
        raise UserError(
            f"quantization failed: {why}, compared with the float detector. It was not kept. Use more --calibration "
            "faces, or --precision int8-qat."
        )
    has_both = len(np.unique(label_N)) == 2
    aucs = [float(roc_auc_score(label_N, logit_N)) if has_both else None for logit_N in (float_logit_N, int8_logit_N)]
    return {
        "num_faces": len(label_N),
        "correlation": correlation,
        "max_change": float(change_N.max()),
        "mean_change": float(change_N.mean()),
        "flips": float(np.mean((before_N > threshold) != (after_N > threshold))),
        "auc_before": aucs[0],
        "auc_after": aucs[1],
    }
