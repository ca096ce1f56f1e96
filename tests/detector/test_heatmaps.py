import shutil

import numpy as np
import pytest
import torch
from torch import nn

from raydistal.compression import pruning
from raydistal.detector import adapters, checkpoint, heatmaps, lineage, runtime
from raydistal.detector.examples import Batch
from raydistal.detector.heatmaps import Heatmaps, grad_cam_pp
from raydistal.detector.zoo import ARCHITECTURES, create
from raydistal.errors import UserError

pytestmark = pytest.mark.slow

TINIES = ["timm:test_resnet", "timm:test_efficientnet", "timm:test_convnext"]
CELLS = dict.fromkeys(ARCHITECTURES, 7) | {"xception": 10, "efficientnet_b1": 8, "efficientnet_b2": 8}
CELLS |= {"efficientnet_b3": 9, "efficientnet_lite2": 9, "efficientnetv2_s": 10}


class Sketch(nn.Module):
    """Stands in for a detector: its last maps are the crop's colours, pooled, and weighted by `weight_C`."""

    architecture, input_px = "sketch", 2
    network = property(lambda self: self)

    def __init__(self, *weight_C):
        super().__init__()
        self.weight_C = torch.tensor(weight_C)

    def _normalise(self, crops_NHWC):
        return crops_NHWC.float().permute(0, 3, 1, 2)

    def forward_features(self, maps_NCHW):
        return maps_NCHW

    def forward_head(self, maps_NCHW):
        return (maps_NCHW.mean((2, 3)) @ self.weight_C)[:, None]


def crops(num, size_px):
    return np.random.default_rng(0).integers(0, 256, (num, size_px, size_px, 3), dtype=np.uint8)


def tiny(architecture, size_px=96):
    detector = create(architecture, "random", 0, size_px).eval()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if trained: no branch is silent
            nn.init.uniform_(module.weight, 0.5, 1.5, torch.Generator().manual_seed(0))
    return detector


def test_by_hand():
    # z = 0.4 mean(R) + 2 mean(G) - 4 mean(B) = 1 + 2 - 9, so g is 0.1, 0.5 and -1 in each of the four cells.
    # alpha: 1 / (2 + 0.1 * 10) = 1/3 and 1 / (2 + 0.5 * 4) = 1/4; w: 4/3 * 0.1 = 2/15 and 4/4 * 0.5 = 1/2; blue: 0.
    crops_1HWC = np.array([[[[1, 4, 0], [2, 0, 9]], [[3, 0, 0], [4, 0, 0]]]], np.uint8)
    probability_1, heat_1hw = Heatmaps(Sketch(0.4, 2.0, -4.0)).explain(crops_1HWC)
    assert probability_1 == pytest.approx(1 / (1 + np.exp(6)), rel=1e-5)
    expected_hw = np.array([[2 / 15 + 2, 4 / 15], [6 / 15, 8 / 15]]) / (2 / 15 + 2)
    np.testing.assert_allclose(heat_1hw[0], expected_hw, rtol=1e-6)
    assert heat_1hw.dtype == np.float32


def test_equations_of_the_paper_by_automatic_differentiation():
    generator = torch.Generator().manual_seed(0)
    maps_CP, weight_CP = torch.rand(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    maps_CP, weight_CP = maps_CP.double().requires_grad_(), weight_CP.double()
    score = torch.exp((weight_CP * maps_CP).sum())
    (first_CP,) = torch.autograd.grad(score, maps_CP, create_graph=True)
    weight_C = torch.zeros(3, dtype=torch.double)
    for channel, total in enumerate(maps_CP.sum(1)):
        for place in range(4):
            (second,) = torch.autograd.grad(first_CP[channel, place], maps_CP, create_graph=True)
            (third,) = torch.autograd.grad(second[channel, place], maps_CP, retain_graph=True)
            alpha = second[channel, place] / (2 * second[channel, place] + total * third[channel, place])
            weight_C[channel] += (alpha * first_CP[channel, place].relu()).detach()
    expected_P = (weight_C @ maps_CP.detach()).relu()
    found_hw = grad_cam_pp(maps_CP.detach().reshape(1, 3, 2, 2), weight_CP.reshape(1, 3, 2, 2))[0]
    torch.testing.assert_close(found_hw.flatten(), expected_P / expected_P.max())


def test_where_nothing_speaks_for_fake_there_is_no_heat():
    assert Heatmaps(Sketch(-1.0, -2.0, 0.0))(crops(2, 2)).tolist() == np.zeros((2, 2, 2)).tolist()


def test_maps_that_turn_negative_are_not_turned_around():
    heat_1hw = grad_cam_pp(torch.tensor([[[[1.0, -30.0]]]]), torch.full((1, 1, 1, 2), 0.1))  # 2 + 0.1 * -29 < 0
    assert heat_1hw.tolist() == [[[1, 0]]]


@pytest.mark.parametrize("name", [*ARCHITECTURES, "timm:swin_tiny_patch4_window7_224"])
def test_every_architecture(name):
    size_px = ARCHITECTURES[name].input_px if name in ARCHITECTURES else 224
    num = CELLS.get(name, 7)
    assert heatmaps.shape({"architecture": name, "input_px": size_px}) == (num, num)


@pytest.mark.parametrize("architecture", ["timm:test_vit", "timm:mixer_s32_224"])
def test_networks_without_maps_are_refused(architecture):
    with pytest.raises(UserError, match="convolutional"):
        heatmaps.shape({"architecture": architecture, "input_px": 0})


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        *((name, "none") for name in TINIES),
        *((TINIES[1], change) for change in ("frozen", "bottleneck:4", "lora:2", "pruned")),
    ],
)
def test_what_it_explains_is_what_the_detector_says(architecture, change):
    detector = tiny(architecture)
    if ":" in change:
        adapters.fit(detector, change, 0)
    if change == "frozen":
        detector.requires_grad_(False)
    if change == "pruned":
        pruning.prune(detector, [Batch(crops(4, 96), np.arange(4) % 2)], ratio=0.3)
    crops_NHWC = crops(3, 96)
    with torch.inference_mode():
        expected_N = torch.sigmoid(detector.eval()(torch.from_numpy(crops_NHWC))).numpy()
        probability_N, heat_Nhw = Heatmaps(detector).explain(crops_NHWC)
    np.testing.assert_allclose(probability_N, expected_N, atol=1e-6)
    assert heat_Nhw.shape == (3, 3, 3)
    assert heat_Nhw.min() >= 0
    assert set(heat_Nhw.max((1, 2))) == {1}
    assert len({heat_hw.tobytes() for heat_hw in heat_Nhw}) == 3
    assert [parameter.grad for parameter in detector.parameters() if parameter.grad is not None] == []


def test_the_bias_and_the_company_change_nothing():
    detector, crops_NHWC = tiny(TINIES[0]), crops(5, 96)
    probability_N, heat_Nhw = Heatmaps(detector).explain(crops_NHWC)
    with torch.no_grad():
        detector.network.get_classifier().bias += 3
    moved_N, same_Nhw = Heatmaps(detector, batch_size=2).explain(crops_NHWC)
    np.testing.assert_allclose(same_Nhw, heat_Nhw, atol=1e-5)
    np.testing.assert_allclose(
        np.log(moved_N / (1 - moved_N)), np.log(probability_N / (1 - probability_N)) + 3, rtol=1e-3
    )
    assert Heatmaps(detector)(crops_NHWC[:0]).shape == (0, 3, 3)


def test_exported_detectors_are_explained_by_what_they_were_made_from(tmp_path):
    place, exported = str(tmp_path / "detector"), str(tmp_path / "onnx")
    about = checkpoint.save(place, tiny(TINIES[0]), {})
    assert heatmaps.explainer(place) == place
    about |= {"parent": lineage.ancestor(place, about)}
    runtime.save(exported, runtime.Exported("onnx", b"never opened", 96), about)
    assert heatmaps.explainer(exported) == place
    np.testing.assert_array_equal(heatmaps.of(exported)(crops(2, 96)), Heatmaps(tiny(TINIES[0]))(crops(2, 96)))

    checkpoint.save(place, tiny(TINIES[1]), {})  # another one in its place
    with pytest.raises(UserError, match="Give a trained detector"):
        heatmaps.of(exported)
    shutil.rmtree(place)
    with pytest.raises(UserError, match="Give a trained detector"):
        heatmaps.of(exported)
