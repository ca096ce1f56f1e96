import copy
import json

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from raydistal import storage
from raydistal.detector import adapters, checkpoint, shapes
from raydistal.detector.zoo import create
from raydistal.errors import UserError

TINY = "timm:test_efficientnet"
NARROW = {  # the last block has 40 channels instead of 48, the head 80 instead of 256
    "blocks.3.0.conv_pwl": {"out_channels": 40},
    "blocks.3.0.bn3": {"num_features": 40},
    "blocks.4.0.conv_pw": {"in_channels": 40},
    "conv_head": {"out_channels": 80},
    "bn2": {"num_features": 80},
    "classifier": {"in_features": 80},
}


@pytest.fixture(scope="module")
def detector():
    """Not as it was made: other running statistics, another memory format."""
    detector = create(TINY, "random", seed=3, input_px=64)
    torch.manual_seed(0)
    for _ in range(2):
        detector(torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8))
    return detector.to(memory_format=torch.channels_last).eval()


@pytest.fixture
def saved(tmp_path, detector):
    checkpoint.save(str(tmp_path / "d"), detector, {"technique": "train", "threshold": {"video": 0.5}})
    return tmp_path / "d"


def test_it_comes_back_to_the_bit(saved, detector):
    before = torch.random.get_rng_state()
    loaded, about = checkpoint.load(str(saved))
    assert torch.equal(before, torch.random.get_rng_state())
    assert sorted(path.name for path in saved.iterdir()) == ["detector.json", "weights.safetensors"]
    assert len(about["digest"]) == 16
    assert about == {
        "format": "detector/1",
        "runtime": "torch",
        "architecture": TINY,
        "shapes": {},
        "adapter": "",
        "input_px": 64,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_params": 99_453,
        "digest": about["digest"],
        "technique": "train",
        "threshold": {"video": 0.5},
    }
    assert not loaded.training
    crops_NHWC = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    with torch.inference_mode():
        logit_N = loaded.to(memory_format=torch.channels_last)(crops_NHWC)
        assert torch.equal(logit_N, detector(crops_NHWC))
    assert logit_N[0] != logit_N[1]


def test_the_weights_are_a_state_dict_of_timm(saved, detector):
    network = timm.create_model("test_efficientnet", num_classes=1)
    network.load_state_dict(safetensors.torch.load_file(saved / "weights.safetensors"), strict=True)
    assert torch.equal(network.classifier.weight, detector.network.classifier.weight)


def logits(detector, seed=0):
    crops_NHWC = np.random.default_rng(seed).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        return detector.eval()(torch.from_numpy(crops_NHWC))


@pytest.fixture
def changed():
    """Pruned, then given adapters and more training."""
    changed = create(TINY, "random", seed=3, input_px=64)
    shapes.apply(changed.network, NARROW)
    torch.manual_seed(0)
    for parameter in changed.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for module in changed.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    adapters.fit(changed, "bottleneck:3", 0)
    torch.nn.init.normal_(changed.network.blocks[3][0].adapter[2].weight)
    return changed.eval()


def test_a_pruned_and_adapted_one_comes_back_to_the_bit(tmp_path, changed):
    about = checkpoint.save(str(tmp_path), changed, {"shapes": {"conv_stem": {}}, "adapter": "lora:1"})
    assert about["shapes"] == NARROW | {
        "blocks.3.0.adapter.0": {"in_channels": 40},
        "blocks.3.0.adapter.2": {"out_channels": 40},
    }
    assert about["adapter"] == "bottleneck:3"
    assert about["num_params"] == sum(value.numel() for value in changed.parameters()) < 99_453
    loaded, again = checkpoint.load(str(tmp_path))
    assert again == about
    assert torch.equal(logits(loaded), logits(changed))
    assert checkpoint.save(str(tmp_path / "again"), copy.deepcopy(loaded), {}) == about
    loaded.train()(torch.zeros(2, 64, 64, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


DAMAGED_SHAPES = {
    "a layer more": (lambda shapes: shapes.update(nothing={}), "shapes of 'nothing' are"),
    "too wide": (
        lambda shapes: shapes["conv_head"].update(out_channels=10**12),
        r"shapes: out_channels of 'conv_head' is 1000000000000, not from 1 to 256",
    ),
    "layers that do not fit": (
        lambda shapes: shapes["conv_head"].update(out_channels=99),
        "(running_mean|weight|Given groups)",
    ),
    "a layer less": (lambda shapes: shapes.pop("conv_head"), "(running_mean|weight|Given groups)"),
}


@pytest.mark.parametrize("damage", DAMAGED_SHAPES)
def test_damaged_shapes_are_refused(tmp_path, changed, damage):
    about = checkpoint.save(str(tmp_path), changed, {})
    inflict, message = DAMAGED_SHAPES[damage]
    inflict(about["shapes"])
    rewrite(tmp_path / "detector.json", shapes=about["shapes"])
    with pytest.raises(UserError, match=rf"detector\.json is damaged: {message}"):
        checkpoint.load(str(tmp_path))


def test_shapes_of_another_detector_do_not_fit_the_weights(saved):
    rewrite(saved / "detector.json", shapes=NARROW)
    with pytest.raises(UserError, match=r"weights\.safetensors does not fit .* of another shape"):
        checkpoint.load(str(saved))


@pytest.mark.parametrize("adapter", ["lora:4", "bottleneck:0", "bottleneck:", 4, ["bottleneck:4"]])
def test_other_adapters_are_refused(saved, adapter):
    rewrite(saved / "detector.json", adapter=adapter)
    with pytest.raises(UserError, match="is damaged: adapter is"):
        checkpoint.load(str(saved))


def test_one_from_before_there_were_shapes(saved, detector):
    about = json.loads((saved / "detector.json").read_text())
    (saved / "detector.json").write_text(json.dumps({k: v for k, v in about.items() if k not in ("shapes", "adapter")}))
    assert torch.equal(logits(checkpoint.load(str(saved))[0]), logits(detector))


def test_an_exported_one_is_read_but_not_loaded(saved):
    (saved / "weights.safetensors").unlink()
    rewrite(saved / "detector.json", runtime="onnx", parent={"location": "/detectors/b0", "model_id": "0" * 12})
    assert checkpoint.read_about(str(saved))["runtime"] == "onnx"
    with pytest.raises(UserError, match=r"was exported for onnx .*: use the detector /detectors/b0"):
        checkpoint.load(str(saved))


def test_the_id_names_the_weights(saved, tmp_path, detector):
    about = checkpoint.load(str(saved))[1]
    again = checkpoint.save(str(tmp_path / "other"), detector, {"technique": "copy", "digest": "no", "mean": [9, 9, 9]})
    assert again | {"technique": "train", "threshold": {"video": 0.5}} == about
    assert checkpoint.model_id(again) == checkpoint.model_id(about) == about["digest"][:12]
    other = checkpoint.save(str(tmp_path / "other"), create(TINY, "random", seed=4), {})
    assert checkpoint.model_id(other) != checkpoint.model_id(about)


def test_a_detector_is_there_only_when_all_of_it_is(saved, detector, monkeypatch):
    assert checkpoint.exists(str(saved))
    write = storage.write_bytes

    def disk_full(location, content):
        if location.endswith("weights.safetensors"):
            raise OSError("no space left on device")
        write(location, content)

    monkeypatch.setattr(storage, "write_bytes", disk_full)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(str(saved), detector, {})
    assert not checkpoint.exists(str(saved))


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def resave(path, change):
    state = safetensors.torch.load_file(path)
    change(state)
    safetensors.torch.save_file(state, path)


DAMAGES = {
    "no manifest": (lambda d: (d / "detector.json").unlink(), r"no finished detector: cannot read .*detector\.json"),
    "no weights": (lambda d: (d / "weights.safetensors").unlink(), r"cannot read .*weights\.safetensors"),
    "truncated weights": (
        lambda d: (d / "weights.safetensors").write_bytes((d / "weights.safetensors").read_bytes()[:-100]),
        r"cannot read .*weights\.safetensors",
    ),
    "weights cut in the header": (
        lambda d: (d / "weights.safetensors").write_bytes((d / "weights.safetensors").read_bytes()[:50]),
        r"cannot read .*weights\.safetensors",
    ),
    "no weights at all": (
        lambda d: (d / "weights.safetensors").write_bytes(b""),
        r"cannot read .*weights\.safetensors",
    ),
    "flipped bits": (
        lambda d: (d / "weights.safetensors").write_bytes((d / "weights.safetensors").read_bytes()[:-4] + b"\0\0\0\1"),
        r"weights\.safetensors is not what detector\.json beside it was written for",
    ),
    "a tensor less": (
        lambda d: resave(d / "weights.safetensors", lambda state: state.pop("classifier.bias")),
        r"weights\.safetensors does not fit .*1 tensors missing.*classifier\.bias",
    ),
    "a tensor more": (
        lambda d: resave(d / "weights.safetensors", lambda state: state.update(more=torch.zeros(1))),
        r"weights\.safetensors does not fit .*1 unknown, such as more",
    ),
    "a tensor of another shape": (
        lambda d: resave(d / "weights.safetensors", lambda state: state.update({"classifier.bias": torch.zeros(2)})),
        r"weights\.safetensors does not fit .*1 of another shape",
    ),
    "another architecture": (
        lambda d: rewrite(d / "detector.json", architecture="timm:test_resnet"),
        r"weights\.safetensors does not fit timm:test_resnet",
    ),
    "an unknown architecture": (
        lambda d: rewrite(d / "detector.json", architecture="efficientnet_b9"),
        "unknown architecture 'efficientnet_b9'",
    ),
    "another format": (
        lambda d: rewrite(d / "detector.json", format="detector/2"),
        r"detector\.json is of the format 'detector/2'; this raydistal reads 'detector/1'",
    ),
    "half a manifest": (
        lambda d: (d / "detector.json").write_bytes((d / "detector.json").read_bytes()[:40]),
        r"detector\.json is damaged",
    ),
    "bytes for a manifest": (lambda d: (d / "detector.json").write_bytes(b"\xff\xfe\0"), r"detector\.json is damaged"),
    "a list for a manifest": (
        lambda d: (d / "detector.json").write_text("[1]"),
        r"detector\.json is of the format None",
    ),
    "no size": (lambda d: rewrite(d / "detector.json", input_px=None), r"detector\.json is damaged: input_px is None"),
    "size 0": (lambda d: rewrite(d / "detector.json", input_px=0), r"detector\.json is damaged: input_px is 0"),
    "a size for giants": (lambda d: rewrite(d / "detector.json", input_px=10**6), "must be from 32 to 1024"),
    "no parent": (lambda d: rewrite(d / "detector.json", parent="there"), r"detector\.json is damaged: parent is"),
    "two means": (lambda d: rewrite(d / "detector.json", mean=[0.5, 0.5]), r"detector\.json is damaged: mean"),
    "no deviation": (lambda d: rewrite(d / "detector.json", std=[0.5, 0, 0.5]), r"detector\.json is damaged: std"),
    "no number": (
        lambda d: rewrite(d / "detector.json", mean=[0.5, float("nan"), 1]),
        r"detector\.json is damaged: mean",
    ),
    "no digest": (lambda d: rewrite(d / "detector.json", digest=None), r"detector\.json is damaged: digest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused(saved, damage):
    inflict, message = DAMAGES[damage]
    inflict(saved)
    with pytest.raises(UserError, match=message):
        checkpoint.load(str(saved))


@pytest.mark.parametrize("location", ["nowhere", "file"])
def test_no_detector(tmp_path, location):
    (tmp_path / "file").write_text("")
    assert not checkpoint.exists(str(tmp_path / location))
    with pytest.raises(UserError, match="no finished detector"):
        checkpoint.load(str(tmp_path / location))
