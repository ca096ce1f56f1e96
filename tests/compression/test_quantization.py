import copy
import math

import numpy as np
import onnx
import pytest
import torch

from raydistal.compression import quantization
from raydistal.detector import checkpoint, runtime
from raydistal.errors import UserError

pytestmark = pytest.mark.slow


def crops(num, seed=0, size_px=32):
    """Fakes brighter, as in the run."""
    rng = np.random.default_rng(seed)
    label_N = np.arange(num) % 2
    return (rng.integers(0, 160, (num, size_px, size_px, 3)) + 60 * label_N[:, None, None, None]).astype(np.uint8)


@pytest.fixture(scope="module")
def float_model(exported):
    return runtime.load(str(exported / "onnx"))[0]


def test_static_weights_are_integers_per_channel(exported, float_model):
    model = onnx.load(exported / "int8/model.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    scales = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(
        node.op_type == "Conv" for node in onnx.load(exported / "onnx/model.onnx").graph.node
    )
    for node in convolutions:
        activation, weight = (made_by[name] for name in node.input[:2])
        assert kinds[weight.input[0]] == onnx.TensorProto.INT8
        assert scales[weight.input[1]][0] > 1  # one per output channel
        assert kinds[activation.input[2]] == onnx.TensorProto.UINT8  # its zero point
    assert len((exported / "int8/model.onnx").read_bytes()) < 0.35 * len(float_model.content)


def test_layers_that_stay_float_are_listed(exported, float_model):
    names = quantization.find_float_layers(float_model.content)
    convolutions = [
        node.name for node in onnx.load_from_string(float_model.content).graph.node if node.op_type == "Conv"
    ]
    assert set(convolutions) < set(names)
    assert quantization.find_float_layers((exported / "int8/model.onnx").read_bytes()) == []
    assert quantization.find_float_layers(quantization.quantize_dynamic(float_model.content)) == []
    mixed = onnx.load(exported / "int8/model.onnx")
    first = next(node for node in mixed.graph.node if node.op_type == "Conv")
    first.input[1] = next(tensor.name for tensor in mixed.graph.initializer)
    assert quantization.find_float_layers(mixed.SerializeToString()) == [first.name]


def test_dynamic_says_nearly_the_same(float_model):
    content = quantization.quantize_dynamic(float_model.content)
    assert len(content) < 0.35 * len(float_model.content)
    expected, found = (runtime.start(runtime.Exported("onnx", one, 32)) for one in (float_model.content, content))
    told = quantization.drift(expected(crops(40)), found(crops(40)), np.arange(40) % 2, 0.5)
    assert told["correlation"] > 0.99


def test_training_leads_to_what_the_detector_says(exported):
    detector, _ = checkpoint.load(str(exported / "detector"))
    other = copy.deepcopy(detector)
    other.network.fc.bias.data += 1

    def distance():
        with torch.inference_mode():
            found, expected = (torch.sigmoid(one(torch.from_numpy(crops(32, seed=9)))) for one in (other, detector))
        return (found - expected).abs().mean().item()

    before = distance()
    quantization.train(other, detector, [crops(16, seed) for seed in range(25)], 0.01)
    assert distance() < 0.3 * before


def test_what_training_changed_reaches_the_file(exported, monkeypatch):
    """The rest is as without training; the detector itself is left as it was."""
    detector, _ = checkpoint.load(str(exported / "detector"))
    taken = []

    def train(simulated, parent, batches, learning_rate):
        taken.append((parent, list(batches), learning_rate))
        with torch.no_grad():
            assert simulated(torch.from_numpy(crops(1))).shape == (1,)
            dict(simulated.named_parameters())["network.fc.bias"] += 3

    monkeypatch.setattr(quantization, "train", train)
    model = quantization.quantize(detector, "onnx", "int8-qat", [crops(16)], ["batch"], 1e-4)
    assert taken == [(detector, ["batch"], 1e-4)]
    assert quantization.find_float_layers(model.content) == []
    before, after = (runtime.start(one)(crops(8, seed=9)) for one in (detector, model))
    np.testing.assert_allclose(after, before + 3, atol=0.2)


def test_a_loss_that_is_no_number(exported):
    detector, _ = checkpoint.load(str(exported / "detector"))
    simulated = torch.nn.Linear(1, 1)
    simulated.forward = lambda crops: torch.full((len(crops),), math.nan, requires_grad=True)
    with pytest.raises(UserError, match=r"Lower --learning-rate"):
        quantization.train(simulated, detector, [crops(2)], 1e-3)


def test_drift_by_hand():
    before_N, after_N = np.array([-2.0, -0.1, 0.1, 3.0]), np.array([-2.0, 0.2, -0.3, 3.0])
    told = quantization.drift(before_N, after_N, np.array([0, 0, 1, 1]), 0.5)
    change_N = abs(1 / (1 + np.exp(-after_N)) - 1 / (1 + np.exp(-before_N)))
    assert told == {
        "num_faces": 4,
        "correlation": pytest.approx(np.corrcoef(before_N, after_N)[0, 1]),
        "max_change": pytest.approx(change_N.max()),
        "mean_change": pytest.approx(change_N.mean()),
        "flips": 0.5,
        "auc_before": 1.0,
        "auc_after": 0.75,
    }
    assert quantization.drift(before_N, after_N, np.zeros(4, np.int64), 0.9)["auc_after"] is None


def test_a_detector_that_knows_little_is_no_failure():
    told = quantization.drift(np.array([0.0, 1e-3]), np.array([1e-3, 0.0]), np.array([0, 1]), 0.9)
    assert told["correlation"] == pytest.approx(-1)
    assert quantization.drift(np.array([0.0, 1e-3]), np.zeros(2), np.array([0, 1]), 0.9)["correlation"] is None


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ([1.0, 1.0, 1.0, 1.0], "says the same of all faces"),
        ([1.0, math.nan, 2.0, 3.0], "it gives no numbers"),
        ([math.nan] * 4, "it gives no numbers"),
        ([3.0, 0.0, -1.0, -2.0], "correlate by -0.9"),
        ([0.0, 2.0, -1.0, 1.0], "more --calibration faces, or --precision int8-qat"),
    ],
)
def test_a_failed_conversion(after, message):
    with pytest.raises(UserError, match=message):
        quantization.drift(np.array([-2.0, -0.1, 0.1, 3.0]), np.array(after), np.array([0, 0, 1, 1]), 0.5)
