import copy

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from raydistal.errors import UserError
from raydistal.features.backbones import Backbone, FeatureExtractor, feature_dim, load, state_digest


@pytest.fixture(scope="module")
def crops_NHWC():
    return np.random.default_rng(0).integers(0, 255, (3, 96, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def resnet():
    return load("resnet50", "random")


def digest(backbone):
    return state_digest(backbone.network.state_dict())


@pytest.mark.slow
def test_vgg16_features_are_those_of_torchvision(crops_NHWC):
    """relu5_3 after max pooling, averaged; and fc7 after ReLU, from torchvision's own network and transforms."""
    torch.manual_seed(1)
    reference = torchvision.models.vgg16().eval()
    state = reference.state_dict()
    transform = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = transform(torch.from_numpy(crops_NHWC).permute(0, 3, 1, 2).float() / 255)
    with torch.inference_mode():
        maps = reference.features(images)
        pooled = maps.mean((2, 3)).numpy()
        fc7 = reference.classifier[:5](reference.avgpool(maps).flatten(1)).numpy()
    for name, expected in (("vgg16", pooled), ("vgg16-fc", fc7)):
        backbone = Backbone(name)
        backbone.network.load_state_dict({key: state[key] for key in backbone.network.state_dict()})
        features_ND = FeatureExtractor(backbone, "float32")(crops_NHWC)
        assert features_ND.dtype == np.float16
        np.testing.assert_allclose(features_ND, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "dim"), [("vgg16", 512), ("vgg16-fc", 4096), ("resnet50", 2048), ("timm:mobilenetv3_small_100", 1024)]
)
def test_feature_dim(name, dim):
    with torch.device("meta"):  # shapes only
        assert feature_dim(Backbone(name), 299) == dim


def test_timm_backbone_and_batching(crops_NHWC):
    extract = FeatureExtractor(load("timm:resnet18", "random"), "float32")
    together = extract(crops_NHWC)
    extract.batch_size = 1
    assert together.shape == (3, 512)
    np.testing.assert_allclose(extract(crops_NHWC), together, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_bfloat16_is_near_float32(crops_NHWC, resnet):
    exact = FeatureExtractor(copy.deepcopy(resnet), "float32")(crops_NHWC).astype(float)
    rough = FeatureExtractor(copy.deepcopy(resnet), "bfloat16")(crops_NHWC).astype(float)
    assert 0 < np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 0.03


def test_random_weights_are_the_same_each_time(resnet):
    before = torch.random.get_rng_state()
    again = load("resnet50", "random")
    assert digest(again) == digest(resnet)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.no_grad():
        again.network.conv1.weight += 1e-6
    assert digest(again) != digest(resnet)


def test_the_digest_does_not_depend_on_the_memory_format():
    state = {"a": torch.arange(24.0).reshape(2, 3, 2, 2), "b": torch.arange(64.0).reshape(8, 8, 1, 1)}
    changed = {key: value.to(memory_format=torch.channels_last) for key, value in state.items()}
    assert state_digest(changed) == state_digest(state)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_with_or_without_classifier(tmp_path, resnet, suffix):
    path = tmp_path / f"weights{suffix}"
    state = resnet.network.state_dict()
    content = {key: value.contiguous() for key, value in state.items()} | {"fc.weight": torch.zeros(2, 2048)}
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in content.items()}}, path)
    else:
        safetensors.torch.save_file(content, path)
    backbone = load("resnet50", str(path))
    assert digest(backbone) == digest(resnet)
    assert not any(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers()))


def test_weights_that_do_not_fit(tmp_path, resnet):
    wrong = dict(resnet.network.state_dict())
    wrong.pop("conv1.weight")
    wrong["bn1.bias"] = torch.zeros(3)
    wrong["surprise"] = torch.zeros(3)
    safetensors.torch.save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="1 tensors missing, 1 of another shape, 1 unknown") as error:
        load("resnet50", str(tmp_path / "w.safetensors"))
    assert "--weights random" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04."])
def test_unreadable_weights(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match="cannot read weights"):
        load("resnet50", str(tmp_path / "w.pth"))


def test_a_pickle_with_code_is_not_run(tmp_path):
    torch.save({"state_dict": print}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot read weights"):
        load("resnet50", str(tmp_path / "w.pth"))


def test_imagenet_weights_that_cannot_be_had_name_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"no route to host.*--weights FILE.*--weights random"):
        load("vgg16", "imagenet")


@pytest.mark.parametrize("name", ["vgg19", "timm:no_such_model", "timm:resnet18.no_such_tag", ""])
def test_unknown_backbone(name):
    with pytest.raises(UserError, match=r"unknown backbone|timm knows no (model|weights)"):
        load(name, "random")


def test_a_size_that_the_network_cannot_take():
    with pytest.raises(UserError, match="--size-px"):
        feature_dim(load("timm:vit_tiny_patch16_224", "random"), 299)
