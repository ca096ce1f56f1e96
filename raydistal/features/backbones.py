"""Frozen networks that turn a face crop into a feature vector.

vgg16       512 numbers: the last convolution (relu5_3, pooled) averaged over the picture. The default: an eighth of the
            size on disk of vgg16-fc and none of its 120 million extra weights.
vgg16-fc    4096 numbers: the second fully connected layer after ReLU ("fc7"). DeepDistAL names VGG16 and no layer.
resnet50    2048 numbers: global average pool.
timm:NAME   any timm model, its pooled features before the classifier.

Crops go in at the size at which they were cut (299 in the paper); every network here pools to a fixed length.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from raydistal import storage
from raydistal.errors import UserError
from raydistal.features.libraries import timm, torchvision

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WAYS_OUT = (
    "Give --weights FILE (a .safetensors or .pth state dict, local or s3://), or --weights random to try things out."
)

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Network:
    """One of torchvision's, without what comes after the features."""

    build: Callable[[], Any]
    weights: str  # torchvision's name of those for ImageNet


def _vgg16() -> Any:
    network = _vgg16_fc()
    network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Sequential()
    return network


def _vgg16_fc() -> Any:
    network = torchvision.models.vgg16()
    network.classifier = network.classifier[:5]
    return network


def _resnet50() -> Any:
    network = torchvision.models.resnet50()
    network.fc = nn.Sequential()
    return network


BACKBONES = {
    "vgg16": Network(_vgg16, "VGG16_Weights.IMAGENET1K_V1"),
    "vgg16-fc": Network(_vgg16_fc, "VGG16_Weights.IMAGENET1K_V1"),
    "resnet50": Network(_resnet50, "ResNet50_Weights.IMAGENET1K_V1"),
}


class Backbone(nn.Module):
    """(N, S, S, 3) uint8 crops to (N, D) features; normalisation included. Always in evaluation mode.

    Raises:
        UserError: the name is unknown.
    """

    network: Any

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        if name in BACKBONES:
            self.network = BACKBONES[name].build()
            self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        elif name.startswith("timm:"):
            self.network = _timm(name, pretrained=False, num_classes=0)
            self.mean, self.std = (self.network.pretrained_cfg[key] for key in ("mean", "std"))
        else:
            raise UserError(f"unknown backbone {name!r}: use {', '.join(BACKBONES)} or timm:NAME")
        self.eval()

    def forward(self, crops_NHWC: torch.Tensor) -> torch.Tensor:
        """Features in the precision of the weights."""
        weight = next(self.network.parameters())
        mean = torch.tensor(self.mean, device=weight.device) * 255
        std = torch.tensor(self.std, device=weight.device) * 255
        pixels_NHWC = ((crops_NHWC.to(weight.device) - mean) / std).to(weight.dtype)
        features: torch.Tensor = self.network(pixels_NHWC.permute(0, 3, 1, 2))  # channels last in memory: no copy
        return features


def load(name: str, weights: str) -> Backbone:
    """The backbone with these weights, on the CPU.

    Args:
        name: as in the module's list.
        weights: "imagenet" (downloaded by torchvision or timm, or from their cache), "random" (the same each time), or
            the path or URI of a state dict, .safetensors or PyTorch, of the network with or without its classifier.

    Raises:
        UserError: they are not available, or do not fit the network tensor by tensor; the message says what to do.
    """
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Backbone(name)
    with torch.device("meta"):  # no memory or time for initial values that are replaced at once
        backbone = Backbone(name)
    needed = backbone.network.state_dict()
    given = imagenet_state(name) if weights == "imagenet" else read_state(weights)
    heads = {key for key in given if key not in needed and key.startswith(("classifier.", "fc.", "head"))}
    if misfit := find_misfit({key: given[key] for key in given if key not in heads}, needed):
        raise UserError(f"the weights {weights} do not fit {name}: {misfit}. {WAYS_OUT}")
    state = {key: given[key] for key in needed}
    backbone.network.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers())):
        backbone = Backbone(name)  # with real tensors, as it has constants that no state dict holds
        backbone.network.load_state_dict(state)
    return backbone


def find_misfit(given: State, needed: State) -> str:
    """Why `given` cannot be loaded in place of `needed`, tensor by tensor, in words; "" if it can."""
    missing = [key for key in needed if key not in given]
    reshaped = [key for key in needed if key in given and given[key].shape != needed[key].shape]
    unknown = [key for key in given if key not in needed]
    if not (examples := (missing + reshaped + unknown)[:3]):
        return ""
    return (
        f"{len(missing)} tensors missing, {len(reshaped)} of another shape, {len(unknown)} unknown, "
        f"such as {', '.join(examples)}"
    )


def state_digest(state: State) -> str:
    """16 hexadecimal digits: a digest of the weights themselves, whatever file they came from."""
    digest = hashlib.blake2b(digest_size=8)
    for key in sorted(state):
        digest.update(key.encode())
        # Cloned: tensors in channels-last order can count as contiguous with strides that cannot be viewed as bytes.
        plain = state[key].detach().clone(memory_format=torch.contiguous_format)
        digest.update(plain.view(torch.uint8).numpy().data if plain.ndim else key.encode())
    return digest.hexdigest()


class FeatureExtractor:
    """Runs a backbone on one device.

    Args:
        backbone: from `load`; it is converted in place.
        precision: float32, bfloat16, or auto: bfloat16 where the device computes it natively (2 to 3 times faster;
            features differ by less than 1 %).
        device: "cpu" or "cuda".
    """

    def __init__(self, backbone: Backbone, precision: str = "auto", device: str = "cpu") -> None:
        dtype = (
            torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and _has_bf16(device)) else torch.float
        )
        # Weights are converted once: autocast does it again for every batch.
        self.backbone = backbone.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batch_size = 64 if device == "cuda" else 8  # larger gains nothing and costs memory

    @torch.inference_mode()
    def __call__(self, crops_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        """(N, S, S, 3) uint8 RGB to (N, D) float16."""
        starts = range(0, len(crops_NHWC), self.batch_size)
        batches = (torch.tensor(crops_NHWC[start : start + self.batch_size]) for start in starts)
        features = [self.backbone(batch).float().cpu() for batch in batches]
        limit = torch.finfo(torch.float16).max
        return torch.cat(features).clamp(-limit, limit).numpy().astype(np.float16)


def feature_dim(backbone: Backbone, size_px: int) -> int:
    """D of a backbone for crops of size_px, found with one crop. Raises UserError if it cannot take that size."""
    try:
        with torch.inference_mode():
            return int(backbone(torch.zeros(1, size_px, size_px, 3)).shape[1])
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"{backbone.name} cannot take crops of {size_px} pixels: {error}. Choose another --size-px."
        ) from error


def timm_config(name: str) -> Any:
    """What timm knows of a model (NAME or timm:NAME) and its weights: mean, std, input_size ...

    Raises:
        UserError: timm has no such model, or no such weights for it.
    """
    name = name.removeprefix("timm:")
    if not timm.is_model(name):
        close = timm.list_models(f"*{name[:5]}*")[:5]
        raise UserError(f"timm knows no model {name!r}; near it: {', '.join(close) or 'none'}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_pretrained(name.partition(".")[0])
        raise UserError(f"timm knows no weights {name!r}; it knows: {', '.join(known) or 'none'}") from error


def _timm(name: str, **options: Any) -> nn.Module:
    timm_config(name)  # says what is wrong with the name
    model: nn.Module = timm.create_model(name.removeprefix("timm:"), **options)
    return model


def imagenet_state(name: str) -> State:
    """The weights that torchvision or, for timm:NAME, timm has for a network, downloaded or from their cache.

    Offline, timm's hub (Hugging Face) gives up only after most of a minute; HF_HUB_OFFLINE=1 avoids the wait.

    Raises:
        UserError: they are not available; the message says what to do.
    """
    try:
        if name.startswith("timm:"):
            return dict(_timm(name, pretrained=True).state_dict())
        weights = torchvision.models.get_weight(BACKBONES[name].weights)
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except UserError:
        raise
    except Exception as error:  # each loader has its own errors for no network, no such weights, a broken download
        raise UserError(f"cannot get ImageNet weights for {name}: {error}. {WAYS_OUT}") from error


def read_state(weights: str) -> State:
    """The tensors of a .safetensors or PyTorch file at a path or URI, by name; no code in it is run.

    Raises:
        UserError: it cannot be read or holds something else; the message says what to do.
    """
    try:
        with storage.local_copy(weights) as path:
            if path.endswith(".safetensors"):
                return safetensors.torch.load_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # as many kinds as there are broken files
        raise UserError(f"cannot read weights from {weights}: {error}. {WAYS_OUT}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{weights} holds no state dict (names to tensors). {WAYS_OUT}")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _has_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("arm_bf16"))
