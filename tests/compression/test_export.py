import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from raydistal.compression import export
from raydistal.compression.pruning import prune
from raydistal.detector import adapters, checkpoint, runtime, zoo
from raydistal.detector.examples import Batch
from raydistal.errors import UserError

pytestmark = pytest.mark.slow


def test_the_file_is_complete_in_itself(exported):
    model = onnx.load(exported / "onnx/model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import if one.domain == ""] == [("", export.OPSET)]
    assert not [one for one in model.graph.initializer if one.external_data]
    session = onnxruntime.InferenceSession(exported / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("crops", "tensor(uint8)", ["N", 32, 32, 3])
    assert (made.name, made.type, made.shape) == ("logit", "tensor(float)", ["N"])


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A pruned detector with adapters that say something."""
    detector = zoo.create("timm:test_efficientnet", "random", 0, 32).eval()
    crops_NHWC = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    prune(detector, [Batch(crops_NHWC, np.arange(4) % 2)], ratio=0.3, of="channels", scope="local")
    new = adapters.fit(detector, "bottleneck:2", seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in detector.named_parameters():
        if name in new:
            nn.init.normal_(parameter, 0, 0.5, generator)
    location = str(tmp_path_factory.mktemp("odd"))
    checkpoint.save(location, detector, {})
    return checkpoint.load(location)[0]


def test_pruned_and_adapted_detectors(odd):
    model = export.export(odd, "onnx")
    parity = export.check_parity(odd, model)
    assert parity["batch_sizes"] == [1, 3, 8]
    assert 0 < parity["max_relative"] <= parity["max_abs"] + 1e-9 < 1e-4
    noise_NHWC = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert runtime.start(model)(noise_NHWC).std() > 100 * parity["max_abs"]


def test_another_network_is_not_taken_for_it(exported, odd):
    model, _ = runtime.load(str(exported / "onnx"))
    with pytest.raises(UserError, match=r"does not say what timm:test_efficientnet says: logits differ by .* 1 crops"):
        export.check_parity(odd, model)


def test_no_number_is_no_parity(exported, monkeypatch):
    detector, _ = checkpoint.load(str(exported / "detector"))
    model, _ = runtime.load(str(exported / "onnx"))
    given = runtime.start(detector)
    starts = {model: lambda crops: np.full(len(crops), np.nan, np.float32), detector: given}
    monkeypatch.setattr(export, "start", starts.__getitem__)
    with pytest.raises(UserError, match="differ by nan"):
        export.check_parity(detector, model)


def test_what_onnx_does_not_know(monkeypatch):
    def fail(*_, **__):
        raise torch.onnx.OnnxExporterError("no such operation\nat length")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match=r"test_resnet cannot be exported to ONNX: no such operation\. Use another"):
        export.export(zoo.create("timm:test_resnet", "random", 0, 32).eval(), "onnx")


def test_executorch_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.partition.xnnpack_partitioner", None)
    with pytest.raises(UserError, match=r"pip install 'raydistal\[executorch\]'"):
        export.export(zoo.create("timm:test_resnet", "random", 0, 32).eval(), "executorch")
