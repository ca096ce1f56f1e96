"""How large a network is."""

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raydistal.detector.zoo import Detector, dry_run


def count_params(detector: Detector) -> int:
    """Number of its parameters, trainable or not."""
    return sum(parameter.numel() for parameter in detector.parameters())


def count_channels(detector: Detector) -> int:
    """Output channels of its convolutions and linear layers, the classifier left out."""
    classifier = detector.network.get_classifier()
    layers = (module for module in detector.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    return sum(len(layer.weight) for layer in layers if layer is not classifier)


def count_macs(detector: Detector) -> int:
    """Multiply-accumulates of its convolutions and matrix products for one face of `input_px`; costs no computation."""
    with FlopCounterMode(display=False) as counter:
        dry_run(detector)
    return int(counter.get_total_flops()) // 2
