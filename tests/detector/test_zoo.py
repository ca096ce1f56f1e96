import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision

from raydistal.detector import adapters, checkpoint, shapes
from raydistal.detector.zoo import ARCHITECTURES, Detector, create, parse_architecture, train_only
from raydistal.errors import UserError
from raydistal.features.backbones import state_digest

pytestmark = pytest.mark.slow

TINY = "timm:test_resnet"
TINIES = [TINY, "timm:test_efficientnet", "timm:test_convnext"]

# embedding dim, parameters with one logit, coarse groups + 1 where timm puts the classifier with the layer before
GOLDEN = {
    "xception": (2048, 20_809_001, 15),
    "densenet121": (1024, 6_954_881, 7),
    "efficientnet_b0": (1280, 4_008_829, 9),
    "efficientnet_b1": (1280, 6_514_465, 9),
    "efficientnet_b2": (1408, 7_702_403, 9),
    "efficientnet_b3": (1536, 10_697_769, 9),
    "efficientnet_lite0": (1280, 3_372_289, 9),
    "efficientnet_lite2": (1280, 4_812_353, 9),
    "efficientnetv2_s": (1280, 20_178_769, 8),
    "mobilenetv2": (1280, 2_225_153, 9),
    "mobilenetv3_large": (1280, 4_203_313, 10),
    "mobilenetv3_small": (1024, 1_518_881, 9),
    "resnet50": (2048, 23_510_081, 6),
    "vgg16": (4096, 134_264_641, 15),
}


@pytest.fixture(scope="module")
def crops_NHWC():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))


def digest(detector):
    return state_digest(detector.network.state_dict())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name):
    assert set(GOLDEN) == set(ARCHITECTURES)
    embedding_dim, num_params, num_groups = GOLDEN[name]
    with torch.device("meta"), torch.inference_mode():
        detector = Detector(name).eval()
        crops_NHWC = torch.empty(2, detector.input_px, detector.input_px, 3)
        assert detector(crops_NHWC).shape == (2,)
        assert detector.embed(crops_NHWC).shape == (2, embedding_dim)
    assert sum(parameter.numel() for parameter in detector.parameters()) == num_params

    assert ARCHITECTURES[name].timm_name in timm.list_pretrained()
    config = timm.get_pretrained_cfg(ARCHITECTURES[name].timm_name)
    assert (3, detector.input_px, detector.input_px) == config.input_size
    assert (detector.mean, detector.std) == (config.mean, config.std)

    groups = detector.groups()
    names = [name for name, _ in detector.named_parameters()]
    assert len(groups) == num_groups
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert groups[0][0] == names[0]
    assert groups[-1] == names[-2:] == [f"network.{detector.classifier_name}.{end}" for end in ("weight", "bias")]


@pytest.mark.parametrize("architecture", [*TINIES, "timm:test_vit"])
def test_logits_are_those_of_timm_on_normalised_images(architecture):
    detector = create(architecture, "random").eval()
    size_px = detector.input_px
    crops_NHWC = torch.randint(0, 256, (3, size_px, size_px, 3), dtype=torch.uint8)
    reference = timm.create_model(architecture.removeprefix("timm:"), num_classes=1).eval()
    reference.load_state_dict(detector.network.state_dict())
    normalise = torchvision.transforms.Normalize(reference.pretrained_cfg["mean"], reference.pretrained_cfg["std"])
    with torch.inference_mode():
        expected_N = reference(normalise(crops_NHWC.permute(0, 3, 1, 2) / 255)).squeeze(1)
        torch.testing.assert_close(detector(crops_NHWC), expected_N, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(detector(crops_NHWC.float()), detector(crops_NHWC), rtol=0, atol=0)
        classifier = detector.network.get_classifier()
        torch.testing.assert_close(classifier(detector.embed(crops_NHWC))[:, 0], expected_N, rtol=1e-3, atol=1e-5)


def test_channels_last_autocast_and_export(crops_NHWC):
    detector = create(TINY, "random", input_px=64).eval()
    with torch.inference_mode():
        expected_N = detector(crops_NHWC)
        with torch.autocast("cpu", torch.bfloat16):
            rough_N = detector(crops_NHWC).float()
    torch.testing.assert_close(rough_N, expected_N, rtol=0.05, atol=0.05)
    exported = torch.export.export(detector, (crops_NHWC,)).module()
    torch.testing.assert_close(exported(crops_NHWC), expected_N, rtol=1e-5, atol=1e-6)
    detector.to(memory_format=torch.channels_last)
    torch.testing.assert_close(detector(crops_NHWC), expected_N, rtol=1e-3, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    digests = [digest(create(TINY, "random", seed)) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.fixture
def imagenet(tmp_path):
    """A stand-in for downloaded weights: timm's network with its 1000 classes, and the file that it is in."""
    torch.manual_seed(5)
    network = timm.create_model("test_resnet")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    return network.state_dict(), str(tmp_path / "model.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_take_the_new_classifier_from_the_seed(tmp_path, imagenet, suffix):
    state, location = imagenet
    if suffix == ".pth":
        location = str(tmp_path / "model.pth")
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, location)
    for seed in (0, 1):
        given = create(TINY, location, seed).network.state_dict()
        new = create(TINY, "random", seed).network.state_dict()
        expected = state | {key: new[key] for key in ("fc.weight", "fc.bias")}
        assert all(torch.equal(given[key], expected[key]) for key in expected)
        assert given.keys() == expected.keys()


def test_imagenet_weights_come_by_timms_own_loader(monkeypatch, imagenet):
    state, location = imagenet
    build = timm.create_model

    def from_file(name, pretrained=False, **options):
        return build(name, pretrained=pretrained, pretrained_cfg_overlay={"file": location}, **options)

    monkeypatch.setattr(timm, "create_model", from_file)
    assert digest(create(TINY, "imagenet")) == digest(create(TINY, location))
    assert torch.equal(create(TINY).network.conv1[0].weight, state["conv1.0.weight"])


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("broken download")])
def test_imagenet_weights_that_cannot_be_had_name_the_ways_out(monkeypatch, error):
    build = timm.create_model

    def no_network(name, pretrained=False, **options):
        if pretrained:
            raise error
        return build(name, **options)

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(UserError, match=rf"{error}.*--weights FILE.*--weights random"):
        create(TINY)


def test_a_network_without_imagenet_weights():
    with pytest.raises(UserError, match=r"No pretrained weights exist.*--weights random"):
        create("timm:test_mambaout")


def test_weights_that_do_not_fit(tmp_path, imagenet):
    wrong = dict(imagenet[0])
    wrong.pop("bn1.weight")
    wrong["bn1.bias"] = torch.zeros(3)
    wrong |= {"surprise": torch.zeros(3), "module.fc.weight": torch.zeros(3)}
    safetensors.torch.save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(
        UserError, match=r"1 tensors missing, 1 of another shape, 2 unknown, such as bn1\.weight, bn1\.bias"
    ):
        create(TINY, str(tmp_path / "w.safetensors"))


def test_weights_under_a_prefix_are_not_taken_for_nothing(tmp_path, imagenet):
    """timm loads no tensor of such a file and only logs it."""
    safetensors.torch.save_file({f"backbone.{key}": v for key, v in imagenet[0].items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"do not fit.*such as"):
        create(TINY, str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["nothing.safetensors", "."])
def test_weights_that_are_not_there(tmp_path, name):
    with pytest.raises(UserError, match=r"cannot read weights.*--weights"):
        create(TINY, str(tmp_path / name))


def test_a_detector_is_continued_with_its_classifier(tmp_path):
    parent = Detector(TINY, 64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    checkpoint.save(str(tmp_path), parent, {})
    child = create(TINY, str(tmp_path), seed=9)
    assert digest(child) == digest(parent)
    assert (child.input_px, child.mean, child.std, child.training) == (64, parent.mean, parent.std, True)
    assert create(TINY, str(tmp_path), input_px=96).input_px == 96
    with pytest.raises(UserError, match=rf"of the architecture {TINY}, not resnet50"):
        create("resnet50", str(tmp_path))


def test_a_pruned_and_adapted_detector_is_continued(tmp_path):
    parent = create(TINY, "random", input_px=64)
    narrow = {"layer1.0.conv1": {"out_channels": 8}, "layer1.0.bn1": {"num_features": 8}}
    shapes.apply(parent.network, narrow | {"layer1.0.conv2": {"in_channels": 8}})
    for parameter in parent.parameters():
        torch.nn.init.normal_(parameter)
    adapters.fit(parent, "bottleneck:2", 0)
    checkpoint.save(str(tmp_path), parent, {})
    child = create(TINY, str(tmp_path), input_px=96)
    assert digest(child) == digest(parent)
    assert (child.adapter, child.input_px) == ("bottleneck:2", 96)
    assert sorted(name for group in child.groups() for name in group) == sorted(n for n, _ in child.named_parameters())
    assert any("adapter" in name for name in child.groups()[1])  # trained with their blocks
    with pytest.raises(UserError, match=rf"of the architecture {TINY}, not timm:test_efficientnet"):
        create("timm:test_efficientnet", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", "unknown architecture 'resnet51': use xception"),
        ("", "unknown architecture"),
        ("timm:resnet51", "timm knows no model 'resnet51'; near it: "),
        ("timm:resnet50.nothing", "no weights 'resnet50.nothing'; it knows: .*resnet50.a1_in1k"),
        ("timm:efficientformer_l1", "several classifiers"),
    ],
)
def test_networks_that_cannot_be_used(name, message):
    with pytest.raises(UserError, match=message):
        create(name, "random")


def test_any_network_of_timm():
    assert parse_architecture("timm:resnet18.a1_in1k").input_px == 224
    assert parse_architecture("timm:test_resnet").timm_name == "test_resnet"


@pytest.mark.parametrize("input_px", [-1, 31, 1025])
def test_sizes_out_of_range(input_px):
    with pytest.raises(UserError, match="--input-px must be from 32 to 1024"):
        create(TINY, "random", input_px=input_px)


def test_a_size_that_the_network_cannot_take():
    with pytest.raises(UserError, match=r"timm:vit_tiny_patch16_224 cannot take crops of 96 pixels.*--input-px"):
        create("timm:vit_tiny_patch16_224", "random", input_px=96)


def test_a_network_whose_layers_have_no_groups():
    with torch.device("meta"):
        detector = Detector("timm:csatv2")
    with pytest.raises(UserError, match="cannot be trained layer by layer"):
        detector.groups()


@pytest.mark.parametrize("architecture", TINIES)
def test_only_what_is_named_is_trained_and_frozen_statistics_stay(architecture, crops_NHWC):
    detector = create(architecture, "random", input_px=64)
    groups = detector.groups()
    chosen = {*groups[1], *groups[-1]}
    train_only(detector, chosen)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    optimizer = torch.optim.SGD(detector.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        detector(crops_NHWC).sum().backward()
        optimizer.step()
    changed = {key for key, value in detector.state_dict().items() if not torch.equal(value, before[key])}
    owners = {name.rpartition(".")[0] for name in chosen}
    assert {key for key in changed if key in dict(detector.named_parameters())} == chosen
    assert all(key.rpartition(".")[0] in owners for key in changed)  # running statistics
    if architecture != "timm:test_convnext":
        assert any(key.endswith("running_mean") for key in changed)

    train_only(detector)
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert all(module.training for module in detector.modules())
    with pytest.raises(ValueError, match="no such parameters"):
        train_only(detector, {"conv1.weight"})
