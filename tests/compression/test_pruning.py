"""Pruning of random networks whose batch norm is not as it was made, as if they were trained."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from raydistal.compression import counting, pruning
from raydistal.detector import checkpoint
from raydistal.detector.examples import Batch
from raydistal.detector.zoo import create
from raydistal.errors import UserError

pytestmark = pytest.mark.slow

TINY = "timm:test_efficientnet"


def detector_of(architecture, seed=0, input_px=64):
    detector = create(architecture, "random", seed, input_px)
    generator = torch.Generator().manual_seed(seed)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator)
    return detector.eval()


def faces(num=4, size_px=64, seed=0):
    rng = np.random.default_rng(seed)
    crops_NHWC = rng.integers(0, 256, (num, size_px, size_px, 3), dtype=np.uint8)
    return Batch(crops_NHWC, np.arange(num) % 2)


def logits(detector):
    with torch.inference_mode():
        return detector.eval()(torch.from_numpy(faces(seed=1).crops_NHWC))


@pytest.fixture(scope="module")
def tiny():
    return detector_of(TINY)


def test_counts():
    """3,372,289 parameters with one logit, and 0.3839 G MACs at 224 pixels, counted by hand from the layers' shapes."""
    with torch.device("meta"):
        detector = create("efficientnet_lite0", "random").eval()
    macs = []
    for module in detector.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda layer, _, output: macs.append(layer.weight[0].numel() * output[0].numel())
            )
    detector(torch.empty(1, 224, 224, 3, device="meta"))
    by_hand, counts = sum(macs), pruning.count(detector)
    assert counts["params"] == 3_372_289
    assert counts["macs"] == by_hand == pytest.approx(0.3839e9, abs=0.00005e9)
    assert counts["channels"] == sum(pruning.layer_widths(detector).values())


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
@pytest.mark.parametrize(("of", "ratio"), [("params", 0.35), ("params", 0.9), ("macs", 0.5), ("channels", 0.2)])
def test_the_ratio_is_met(tiny, of, ratio, scope):
    detector, before = copy.deepcopy(tiny), pruning.count(tiny)
    done = pruning.prune(detector, [faces()], ratio=ratio, of=of, scope=scope)
    after = pruning.count(detector)
    assert (done["before"], done["after"]) == (before, after)
    assert done["reached"] == 1 - after[of] / before[of] == pytest.approx(ratio, abs=0.01)
    assert after["params"] == sum(value.numel() for value in detector.parameters())
    assert all(after[name] < before[name] for name in before)
    layers = pruning.layer_widths(tiny)
    assert done["widths"] == {name: [layers[name], width] for name, width in pruning.layer_widths(detector).items()}
    step = done["round_to"]
    assert all(now % step == 0 or now == was for was, now in done["widths"].values())
    assert all(now >= min(step, was) for was, now in done["widths"].values())  # no layer is cut off
    assert all(value.requires_grad and value.grad is None for value in detector.parameters())
    assert torch.isfinite(logits(detector)).all()
    embedding_ND = detector.embed(torch.from_numpy(faces().crops_NHWC))
    assert embedding_ND.shape[1] == detector.network.get_classifier().in_features < 256


def test_a_pruned_detector_is_saved_trained_and_pruned_again(tiny, tmp_path):
    detector, reference = copy.deepcopy(tiny), counting.count_params(tiny)
    pruning.prune(detector, [faces()], ratio=0.2)
    checkpoint.save(str(tmp_path), detector, {})
    loaded = checkpoint.load(str(tmp_path))[0]
    assert torch.equal(logits(loaded), logits(detector))

    child = create(TINY, str(tmp_path))
    before = copy.deepcopy(child.state_dict())
    optimizer = torch.optim.Adam(child.parameters())
    bce(child(torch.from_numpy(faces().crops_NHWC)), torch.tensor([0.0, 1, 0, 1])).backward()
    optimizer.step()
    assert not any(torch.equal(value, before[name]) for name, value in child.named_parameters())

    done = pruning.prune(child, [faces()], ratio=0.6, reference=reference)
    assert counting.count_params(child) / reference == pytest.approx(0.4, abs=0.01)
    assert done["reached"] == pytest.approx(0.6, abs=0.01)
    message = f"{done['reached']:.1%} of the params are gone already: raise --ratio above 0.6"
    with pytest.raises(UserError, match=re.escape(message)):
        pruning.prune(child, [faces()], ratio=0.6, reference=reference)


def test_what_matters_least_goes_first(tiny):
    """Taylor importance (Molchanov et al. 2019): |weight x gradient|; silenced channels are the first to go."""
    detector = copy.deepcopy(tiny)
    block = detector.network.blocks[1][0]
    silent = [3, 10, 11, 12, 20, 40, 41, 63]
    with torch.no_grad():
        block.conv_exp.weight[silent] *= 1e-4
        block.bn1.weight[silent] = 1e-4
        block.bn1.bias[silent] = 0
        block.conv_pwl.weight[:, silent] *= 1e-4
    kept = [number for number in range(64) if number not in silent]
    expected = block.bn1.weight[kept].clone()
    ratio = 1 - (before := counting.count_channels(detector) - 8) / counting.count_channels(detector)
    done = pruning.prune(detector, [faces(), faces(seed=2)], ratio=max(ratio, 0.008), of="channels")
    assert done["widths"]["blocks.1.0.conv_exp"] == [64, 56]
    assert torch.equal(detector.network.blocks[1][0].bn1.weight, expected)
    assert counting.count_channels(detector) <= before


def test_gradients_are_summed_over_the_batches(tiny):
    whole, halves = copy.deepcopy(tiny), copy.deepcopy(tiny)
    batch = faces(8)
    first, second = (Batch(batch.crops_NHWC[some], batch.label_N[some]) for some in (slice(4), slice(4, 8)))
    done = [pruning.prune(whole, [batch], ratio=0.5), pruning.prune(halves, [first, second], ratio=0.5)]
    assert done[0] == done[1]
    torch.testing.assert_close(logits(whole), logits(halves))


def test_frozen_layers_are_pruned_too(tiny):
    frozen = copy.deepcopy(tiny).requires_grad_(False)
    assert pruning.prune(frozen, [faces()], ratio=0.5) == pruning.prune(copy.deepcopy(tiny), [faces()], ratio=0.5)


def test_layers_without_influence_are_named():
    """As timm makes it, the last norm of each block is zero: no channel matters, Torch-Pruning would keep them all."""
    detector = create("timm:test_resnet", "random", input_px=64)
    with torch.no_grad():
        detector.network.layer1[0].conv1.weight.zero_()
        detector.network.layer1[0].bn1.weight.zero_()
        detector.network.layer1[0].conv2.weight.zero_()
    with pytest.raises(UserError, match=r"layer1\.0\.conv1.*have no finite influence .*train it first"):
        pruning.prune(detector, [faces()], ratio=0.5)


def test_a_loss_that_is_no_number(tiny):
    detector = copy.deepcopy(tiny)
    with torch.no_grad():
        detector.network.classifier.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="no finite influence"):
        pruning.prune(detector, [faces()], ratio=0.5)


def test_what_cannot_be_met_is_said(tiny, monkeypatch):
    monkeypatch.setattr(pruning, "TOLERANCE", 1e-6)  # less than a channel
    detector = copy.deepcopy(tiny)
    with pytest.raises(
        UserError, match=r"cannot remove 35\.0% of the params: the nearest is 35\.0%, 64,6\d\d left of 99,453"
    ):
        pruning.prune(detector, [faces()], ratio=0.35)
    assert torch.equal(logits(detector), logits(tiny))


@pytest.mark.parametrize("ratio", [0, 1, -0.5, float("nan")])
def test_ratios_out_of_range(tiny, ratio):
    with pytest.raises(UserError, match="--ratio must be above 0 and below 1"):
        pruning.prune(tiny, [faces()], ratio=ratio)


@pytest.mark.parametrize(
    ("architecture", "what"),
    [("timm:test_convnext", "LayerNorm2d"), ("timm:test_vit", "VisionTransformer"), ("timm:regnetx_002", "Conv2d")],
)
def test_other_kinds_of_layers_are_refused(architecture, what):
    detector = create(architecture, "random")
    with pytest.raises(UserError, match=rf"cannot be pruned: .*, not its {what}\. Choose another --architecture"):
        pruning.prune(detector, [faces(2, detector.input_px)], ratio=0.5)
