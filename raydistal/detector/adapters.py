"""Which parameters of a detector are trained, and the few new ones that can be trained in their place.

all           every parameter
head          the classifier
last:K        the classifier and the last K layer groups of `Detector.groups`
lora:R        the classifier and an update of rank R to every convolution and linear layer (Hu et al. 2021), which
              `merge` adds to the weights. Depthwise and other grouped convolutions stay frozen.
bottleneck:R  the classifier and a bottleneck of R channels behind every block (Houlsby et al. 2019): these stay

Both kinds of adapters start as the identity, so they do not change the detector's outputs at first.
"""

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from raydistal.errors import UserError

if TYPE_CHECKING:  # settings are checked without loading torch
    import torch
    from torch import nn

    from raydistal.detector.zoo import Detector

FORMS = re.compile(r"all|head|(last|lora|bottleneck):[1-9][0-9]{0,3}")
ALPHA = 16  # of LoRA: its updates are scaled by ALPHA / R, so that the learning rate need not change with R


def check(trainable: str) -> None:
    """Raises UserError unless it is of one of the forms above."""
    if not FORMS.fullmatch(trainable):
        raise UserError(
            f"unknown --trainable {trainable!r}: use all, head, last:K, lora:R or bottleneck:R, such as lora:8"
        )


def is_bottleneck(text: str) -> bool:
    """True for bottleneck:R, the only kind of adapter that a finished detector has."""
    return text.startswith("bottleneck:") and FORMS.fullmatch(text) is not None


def fit(detector: "Detector", trainable: str, seed: int) -> set[str] | None:
    """Adds the adapters that `trainable` asks for, if any.

    Args:
        detector: changed in place; may be a pruned one.
        trainable: as in the module's list.
        seed: of the new parameters.

    Returns:
        The names of the parameters to train, for `zoo.train_only`; None: all.

    Raises:
        UserError: the form is unknown, or the network cannot take it; the message says what to do.
    """
    import torch

    check(trainable)
    kind, _, number = trainable.partition(":")
    if kind == "all":
        return None
    prefix = f"network.{detector.classifier_name}."
    head = {name for name, _ in detector.named_parameters() if name.startswith(prefix)}
    if kind == "head":
        return head
    if kind == "last":
        groups = detector.groups()
        if int(number) >= len(groups):
            raise UserError(f"--trainable {trainable}: {detector.architecture} has {len(groups) - 1} layer groups")
        return head.union(*groups[-1 - int(number) :])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if kind == "lora":
            _add_lora(detector, int(number))
        elif detector.adapter != trainable:
            add_bottlenecks(detector, trainable)
    part = {"lora": "lora", "bottleneck": "adapter"}[kind]
    return head | {name for name, _ in detector.named_parameters() if part in name.split(".")}


def merge(detector: "Detector") -> None:
    """Adds LoRA's updates to the weights and removes its layers; bottlenecks stay, as they are not linear."""
    import torch

    for module in list(detector.network.modules()):
        if "lora" in module._modules:
            down, up = module.lora
            with torch.no_grad():
                update = up.weight.flatten(1) @ down.weight.flatten(1)
                module.weight += _scale(up) * update.view_as(module.weight)
            del module.lora
            for key in [key for key, hook in module._forward_hooks.items() if hook is _through_lora]:
                del module._forward_hooks[key]


def add_bottlenecks(detector: "Detector", adapter: str) -> None:
    """Adds a residual bottleneck (1x1 down, ReLU, 1x1 up) to the output of every block; up starts at zero.

    Args:
        detector: without adapters; on any device, meta too.
        adapter: bottleneck:R.

    Raises:
        UserError: it has adapters already, or no blocks that can take them.
    """
    import torch
    from torch import nn

    if detector.adapter:
        raise UserError(f"the detector has adapters already: use --trainable {detector.adapter}")
    rank, found = int(adapter.partition(":")[2]), _outputs(detector)
    for module, output in found.items():
        is_map = output.ndim == 4
        num_channels = output.shape[1 if is_map else -1]
        make: Any = partial(nn.Conv2d, kernel_size=1) if is_map else nn.Linear
        with torch.device(output.device):
            down, up = make(num_channels, rank), make(rank, num_channels)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        module.adapter = nn.Sequential(down, nn.ReLU(), up)
        module.register_forward_hook(_through_adapter)
    if not found:
        raise UserError(f"{detector.architecture} has no blocks that could take adapters: use --trainable lora:{rank}")
    detector.adapter = adapter


def _add_lora(detector: "Detector", rank: int) -> None:
    import copy
    import math

    from timm.layers.conv2d_same import Conv2dSame
    from torch import nn

    kinds = (nn.Conv2d, nn.Linear, Conv2dSame)  # no subclasses: some transform their weights in forward
    classifier = detector.network.get_classifier()
    for module in list(detector.network.modules()):
        if type(module) not in kinds or getattr(module, "groups", 1) > 1 or module is classifier:
            continue
        down, weight = copy.deepcopy(module), module.weight  # with its kernel, stride and padding
        down.weight = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
        down.bias = None
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        like = {"bias": False, "device": weight.device, "dtype": weight.dtype}
        is_linear = isinstance(module, nn.Linear)
        up = nn.Linear(rank, len(weight), **like) if is_linear else nn.Conv2d(rank, len(weight), 1, **like)
        setattr(down, "out_features" if is_linear else "out_channels", rank)
        nn.init.zeros_(up.weight)
        module.lora = nn.Sequential(down, up)
        module.register_forward_hook(_through_lora)


# Hooks are functions of this module, so that detectors with adapters can be copied and sent to other processes.


def _through_lora(module: Any, inputs: tuple["torch.Tensor"], output: "torch.Tensor") -> Any:
    return output + _scale(module.lora[1]) * module.lora(inputs[0])


def _through_adapter(module: Any, _: tuple["torch.Tensor"], output: "torch.Tensor") -> Any:
    return output + module.adapter(output)


def _scale(up: Any) -> float:
    return ALPHA / int(up.weight.shape[1])


def _outputs(detector: "Detector") -> dict[Any, "torch.Tensor"]:
    """The output of each block for one black face: (1, C, H, W) maps or (1, T, C) tokens."""
    import torch
    from torch import nn

    all_names = [name for name, _ in detector.named_parameters()]
    paths = [_path(names, all_names) for names in detector.groups(coarse=False)[:-1]]
    blocks = [detector.get_submodule(path) for path in paths if path]
    found: dict[Any, torch.Tensor] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim in (3, 4):
            found[module] = output

    handles = [_last(block).register_forward_hook(note) for block in blocks if _is_layered(block)]
    was_training = detector.training
    size_px, device = detector.input_px, detector.get_buffer("_mean_C").device
    with torch.no_grad():
        detector.eval()(torch.zeros(1, size_px, size_px, 3, device=device))
    detector.train(was_training)
    for handle in handles:
        handle.remove()
    return found


def _path(names: list[str], all_names: list[str]) -> str:
    """Path of the largest module with exactly these parameters; "" if there is none, as for most stems."""
    parents = names[0].split(".")[:-1]
    paths = (".".join(parents[:depth]) for depth in range(1, len(parents) + 1))
    return next((path for path in paths if {n for n in all_names if n.startswith(f"{path}.")} == set(names)), "")


def _last(module: Any) -> Any:
    """The last layer of a Sequential, to hold an adapter: in the Sequential itself it would run as one more layer."""
    from torch import nn

    return _last(module[-1]) if isinstance(module, nn.Sequential) else module


def _is_layered(block: "nn.Module") -> bool:
    """False for a block that is only a norm."""
    from torch import nn

    return any(isinstance(layer, nn.Conv2d | nn.Linear) for layer in block.modules())
