import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from raydistal.detector import adapters, shapes
from raydistal.detector.zoo import create, train_only
from raydistal.errors import UserError

pytestmark = pytest.mark.slow

CNNS = ["timm:test_efficientnet", "timm:test_resnet"]
BLOCKS = {
    "timm:test_efficientnet": [f"blocks.{number}.0" for number in range(4)],
    "timm:test_resnet": [f"layer{number}.0" for number in range(1, 5)],
    "timm:test_vit": [f"blocks.{number}" for number in range(5)],
}


@pytest.fixture(scope="module")
def crops_NHWC():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))


def detector_of(architecture, seed=0):
    detector = create(architecture, "random", seed, input_px=64 if architecture in CNNS else 0).eval()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if trained: no branch is silent
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return detector


def say(detector, crops_NHWC):
    size_px = detector.input_px
    crops_NHWC = crops_NHWC.repeat(1, 3, 3, 1)[:, :size_px, :size_px]
    with torch.inference_mode():
        return detector.eval()(crops_NHWC)


def learn(detector, names, crops_NHWC, num_steps=2):
    train_only(detector, names)
    size_px = detector.input_px
    crops_NHWC = crops_NHWC.repeat(1, 3, 3, 1)[:, :size_px, :size_px]
    optimizer = torch.optim.SGD(detector.parameters(), 0.1, momentum=0.9)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (detector(crops_NHWC) - torch.tensor([0.0, 1.0, 2.0])).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("text", ["all", "head", "last:1", "lora:8", "bottleneck:64"])
def test_forms(text):
    adapters.check(text)
    assert adapters.is_bottleneck(text) == (text == "bottleneck:64")


@pytest.mark.parametrize("text", ["", "none", "last", "last:0", "lora:-1", "lora:x", "lora:8 ", "bottleneck:99999"])
def test_other_forms(text):
    with pytest.raises(UserError, match="unknown --trainable"):
        adapters.check(text)


def test_parts_of_the_network():
    detector = detector_of("timm:test_resnet")
    keys = list(detector.state_dict())
    groups = detector.groups()
    assert adapters.fit(detector, "all", 0) is None
    assert adapters.fit(detector, "head", 0) == {"network.fc.weight", "network.fc.bias"}
    assert adapters.fit(detector, "last:2", 0) == {*groups[-3], *groups[-2], *groups[-1]}
    assert adapters.fit(detector, "last:5", 0) == {name for name, _ in detector.named_parameters()}
    with pytest.raises(UserError, match="has 5 layer groups"):
        adapters.fit(detector, "last:6", 0)
    assert list(detector.state_dict()) == keys


@pytest.mark.parametrize("architecture", [*CNNS, "timm:test_vit"])
@pytest.mark.parametrize("trainable", ["lora:4", "bottleneck:4"])
def test_adapters_start_as_nothing_learn_alone_and_are_merged_or_stay(architecture, trainable, crops_NHWC):
    detector = detector_of(architecture)
    before, original = say(detector, crops_NHWC), copy.deepcopy(detector.state_dict())
    torch.manual_seed(7)
    generator = torch.random.get_rng_state()
    names = adapters.fit(detector, trainable, 0)
    assert torch.equal(generator, torch.random.get_rng_state())
    assert torch.equal(say(detector, crops_NHWC), before)
    detector = pickle.loads(pickle.dumps(copy.deepcopy(detector)))  # Ray sends it to workers

    learn(detector, names, crops_NHWC)
    state = detector.state_dict()
    head = {f"network.{detector.classifier_name}.{end}" for end in ("weight", "bias")}
    assert names == head | (state.keys() - original.keys())
    assert all(torch.equal(state[name], value) for name, value in original.items() if name not in head)
    assert all(torch.any(state[name] != 0) for name in names)  # what began at zero has learnt

    learnt = say(detector, crops_NHWC)
    assert not torch.allclose(learnt, before, atol=1e-3)
    adapters.merge(detector)
    if trainable == "lora:4":
        assert detector.state_dict().keys() == original.keys()
        assert not any(module._forward_hooks for module in detector.modules())
        torch.testing.assert_close(say(detector, crops_NHWC), learnt, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(say(detector, crops_NHWC), learnt)
        assert detector.adapter == trainable


def test_lora_is_a_low_rank_update_of_plain_convolutions():
    """Hu et al. 2021, section 4.1: W + alpha / r * B A."""
    detector = detector_of("timm:test_efficientnet")
    before = {name: value.clone() for name, value in detector.network.state_dict().items()}
    adapters.fit(detector, "lora:2", 0)
    expected = dict(before)
    for name, module in detector.network.named_modules():
        if "lora" in module._modules:
            down, up = module.lora
            nn.init.normal_(up.weight)
            product = torch.einsum("or,rihw->oihw", up.weight[:, :, 0, 0], down.weight)
            expected[f"{name}.weight"] = before[f"{name}.weight"] + 16 / 2 * product
    adapters.merge(detector)
    changed = {name for name, value in detector.network.state_dict().items() if not torch.equal(value, before[name])}
    layers = dict(detector.network.named_modules())
    plain = {f"{name}.weight" for name, one in layers.items() if isinstance(one, nn.Conv2d) and one.groups == 1}
    assert changed == plain
    for name in plain:
        torch.testing.assert_close(detector.network.state_dict()[name], expected[name], rtol=1e-5, atol=1e-5)
        update_OI = (detector.network.state_dict()[name] - before[name]).flatten(1)
        assert torch.linalg.matrix_rank(update_OI, rtol=1e-3) <= 2


@pytest.mark.parametrize("architecture", BLOCKS)
def test_bottlenecks_are_behind_the_blocks(architecture):
    detector = detector_of(architecture)
    adapters.fit(detector, "bottleneck:3", 0)
    found = [name for name, module in detector.network.named_modules() if "adapter" in module._modules]
    assert found == BLOCKS[architecture]
    for name in found:
        down, activation, up = detector.network.get_submodule(name).adapter
        assert len(down.weight) == 3
        assert isinstance(activation, nn.ReLU)
        assert up.weight.shape[:2] == down.weight.shape[1::-1]
    assert adapters.fit(detector, "bottleneck:3", 1) > adapters.fit(detector, "head", 0)  # goes on with them
    with pytest.raises(UserError, match="has adapters already: use --trainable bottleneck:3"):
        adapters.fit(detector, "bottleneck:4", 0)


def test_the_seed_decides_and_pruned_networks_are_taken(crops_NHWC):
    fitted = []
    for seed in (0, 0, 1):
        detector = detector_of("timm:test_resnet")
        shapes.apply(
            detector.network,
            {
                "layer1.0.conv1": {"out_channels": 9},
                "layer1.0.bn1": {"num_features": 9},
                "layer1.0.conv2": {"in_channels": 9},
            },
        )
        torch.manual_seed(0)
        for name in ("conv1", "conv2"):
            nn.init.normal_(getattr(detector.network.layer1[0], name).weight, std=0.1)
        detector.network.layer1[0].bn1.reset_parameters()
        adapters.fit(detector, "lora:4", seed)
        fitted.append(detector.network.layer1[0].conv2.lora[0].weight.detach().clone())
        assert torch.isfinite(say(detector, crops_NHWC)).all()
    assert fitted[0].shape == (4, 9, 3, 3)
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])
