"""The networks of detectors: any timm model, with a classifier of one logit.

N crops, S = input_px, D numbers per embedding.
"""

import copy
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from raydistal.errors import UserError
from raydistal.features.backbones import WAYS_OUT, find_misfit, imagenet_state, read_state, timm_config
from raydistal.features.libraries import timm

MIN_PX, MAX_PX = 32, 1024


@dataclass(frozen=True)
class Architecture:
    """A network by timm's name, tag included (default tags change, and mean and deviation with them)."""

    timm_name: str
    input_px: int  # the size at which its ImageNet weights were trained


ARCHITECTURES = {
    "xception": Architecture("legacy_xception.tf_in1k", 299),
    "densenet121": Architecture("densenet121.ra_in1k", 224),
    "efficientnet_b0": Architecture("efficientnet_b0.ra_in1k", 224),
    "efficientnet_b1": Architecture("efficientnet_b1.ra4_e3600_r240_in1k", 240),
    "efficientnet_b2": Architecture("efficientnet_b2.ra_in1k", 256),
    "efficientnet_b3": Architecture("efficientnet_b3.ra2_in1k", 288),
    "efficientnet_lite0": Architecture("efficientnet_lite0.ra_in1k", 224),
    "efficientnet_lite2": Architecture("tf_efficientnet_lite2.in1k", 260),  # efficientnet_lite2 itself has no weights
    "efficientnetv2_s": Architecture("tf_efficientnetv2_s.in21k_ft_in1k", 300),  # nor has efficientnetv2_s
    "mobilenetv2": Architecture("mobilenetv2_100.ra_in1k", 224),
    "mobilenetv3_large": Architecture("mobilenetv3_large_100.ra_in1k", 224),
    "mobilenetv3_small": Architecture("mobilenetv3_small_100.lamb_in1k", 224),
    "resnet50": Architecture("resnet50.a1_in1k", 224),
    "vgg16": Architecture("vgg16.tv_in1k", 224),
}


def parse_architecture(name: str) -> Architecture:
    """A name of ARCHITECTURES, or timm:NAME for any other model of timm.

    Raises:
        UserError: there is no such network.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if not name.startswith("timm:"):
        raise UserError(f"unknown architecture {name!r}: use {', '.join(ARCHITECTURES)} or timm:NAME")
    return Architecture(name.removeprefix("timm:"), timm_config(name).input_size[-1])


class Detector(nn.Module):
    """(N, S, S, 3) crops, RGB from 0 to 255, to (N,) logits of fake; normalisation included.

    `network` is timm's own, so its state dict loads into a plain `timm.create_model(..., num_classes=1)`.

    Args:
        architecture: as for `parse_architecture`. The weights are random.
        input_px: S; 0: the architecture's.
        mean: of R, G and B on a scale from 0 to 1; empty: as the architecture's ImageNet weights were trained.
        std: likewise.

    Raises:
        UserError: no such network, one without a single classifier, or a size out of range.
    """

    network: Any
    _mean_C: torch.Tensor
    _std_C: torch.Tensor

    def __init__(
        self, architecture: str, input_px: int = 0, mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> None:
        super().__init__()
        found = parse_architecture(architecture)
        config = timm_config(found.timm_name)
        self.architecture = architecture
        self.adapter = ""  # bottleneck:R, see `adapters`
        self.input_px = input_px or found.input_px
        if not MIN_PX <= self.input_px <= MAX_PX:
            raise UserError(f"--input-px must be from {MIN_PX} to {MAX_PX}, not {self.input_px}")
        self.mean, self.std = tuple(mean or config.mean), tuple(std or config.std)
        # Left out of the state dict: they are settings, not weights.
        self.register_buffer("_mean_C", torch.tensor(self.mean) * 255, persistent=False)
        self.register_buffer("_std_C", torch.tensor(self.std) * 255, persistent=False)
        self.network = timm.create_model(found.timm_name, pretrained=False, num_classes=1)
        classifier = self.network.get_classifier()
        if not isinstance(classifier, nn.Module):
            raise UserError(f"{architecture} has several classifiers, a detector needs one: choose another")
        self.classifier_name = next(name for name, module in self.network.named_modules() if module is classifier)

    def forward(self, crops_NHWC: torch.Tensor) -> torch.Tensor:
        """Logits of fake, (N,): their sigmoid is P(fake)."""
        logit_N1: torch.Tensor = self.network(self._normalise(crops_NHWC))
        return logit_N1[:, 0]

    def embed(self, crops_NHWC: torch.Tensor) -> torch.Tensor:
        """Pooled features, (N, D): what the classifier sees."""
        maps_NCHW = self.network.forward_features(self._normalise(crops_NHWC))
        embedding_ND: torch.Tensor = self.network.forward_head(maps_NCHW, pre_logits=True)
        return embedding_ND

    def groups(self, coarse: bool = True) -> list[list[str]]:
        """Names of the parameters, as in `named_parameters`, layer by layer from the input; the classifier is last.

        Args:
            coarse: by stage, where the network has stages; else by block.

        Raises:
            UserError: timm does not say how this network's layers are grouped (four of its families).
        """
        try:
            matcher = self.network.group_matcher(coarse=coarse)
        except (AttributeError, AssertionError) as error:
            raise UserError(
                f"{self.architecture} cannot be trained layer by layer, as timm does not group its layers: choose "
                f"another --architecture or --recipe"
            ) from error
        found = list(timm.models.group_parameters(self.network, matcher).values())
        prefix = f"{self.classifier_name}."
        body = [[f"network.{name}" for name in group if not name.startswith(prefix)] for group in found]
        head = [f"network.{name}" for group in found for name in group if name.startswith(prefix)]
        return [*(group for group in body if group), head]

    def _normalise(self, crops_NHWC: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S), channels last in memory: no copy."""
        crops_NHWC = crops_NHWC.to(self._mean_C.device)
        return ((crops_NHWC - self._mean_C) / self._std_C).permute(0, 3, 1, 2)


def create(architecture: str, weights: str = "imagenet", seed: int = 0, input_px: int = 0) -> Detector:
    """A detector to be trained. Leaves PyTorch's generators as they were.

    Args:
        architecture: as for `parse_architecture`.
        weights: "imagenet" (downloaded by timm, or from its cache; offline, Hugging Face gives up only after most of a
            minute, with HF_HUB_OFFLINE=1 at once); "random"; the path or URI of a state dict of timm's network
            (.safetensors or PyTorch), whose classifier is dropped; or a detector directory of the same architecture,
            to start from with its classifier, mean and deviation.
        seed: of all random weights, at least those of a new classifier: the same seed gives the same bits.
        input_px: 0: the architecture's, or that of the detector directory.

    Raises:
        UserError: no such network, the network cannot take the size, or the weights are not available or do not fit it
            tensor by tensor; the message says what to do.
    """
    from raydistal.detector import checkpoint  # it imports this module

    _try_out(architecture, input_px)
    if weights not in ("imagenet", "random") and checkpoint.exists(weights):
        detector, _ = checkpoint.load(weights)
        if detector.architecture != architecture:
            raise UserError(
                f"{weights} is a detector of the architecture {detector.architecture}, not {architecture}: give "
                f"--architecture {detector.architecture}, or other --weights"
            )
        detector.input_px = input_px or detector.input_px
        return detector.train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        detector = Detector(architecture, input_px)
    if weights != "random":
        _load_body(detector, weights)
    return detector


def train_only(detector: Detector, names: Set[str] | None = None) -> None:
    """Puts the detector into training mode, with only the parameters `names` trainable; None: all.

    BatchNorm layers whose parameters are all frozen keep their running statistics too. Call it in place of
    `detector.train()`, which would let them drift.
    """
    if unknown := (names or set()) - {name for name, _ in detector.named_parameters()}:
        raise ValueError(f"no such parameters: {sorted(unknown)[:3]}")
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(names is None or name in names)
    detector.train()
    for module in detector.modules():
        if isinstance(module, _BatchNorm) and module.affine and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def dry_run(detector: Detector) -> None:
    """Passes one face through a copy on the meta device, where hooks and counters see shapes; costs no computation.

    Raises:
        RuntimeError, AssertionError, ValueError: the layers do not fit each other or the face.
    """
    size_px = detector.input_px
    with torch.no_grad():
        copy.deepcopy(detector).to("meta").eval()(torch.empty(1, size_px, size_px, 3, device="meta"))


def _try_out(architecture: str, input_px: int) -> None:
    """Raises UserError unless the network takes crops of the size; costs no memory."""
    with torch.device("meta"):
        detector = Detector(architecture, input_px)
    try:
        dry_run(detector)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"{architecture} cannot take crops of {detector.input_px} pixels: {error}. Choose another --input-px."
        ) from error


def _load_body(detector: Detector, weights: str) -> None:
    """Everything but the classifier from timm's ImageNet weights or a file."""
    name = parse_architecture(detector.architecture).timm_name
    given = imagenet_state(f"timm:{name}") if weights == "imagenet" else read_state(weights)
    prefix = f"{detector.classifier_name}."
    body = {key: value for key, value in given.items() if not key.startswith(prefix)}
    needed = {key: value for key, value in detector.network.state_dict().items() if not key.startswith(prefix)}
    if misfit := find_misfit(body, needed):
        raise UserError(f"the weights {weights} do not fit {detector.architecture}: {misfit}. {WAYS_OUT}")
    detector.network.load_state_dict(body, strict=False)  # the classifier alone is missing
