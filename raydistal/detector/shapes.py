"""How the layers of a pruned network differ from those of a fresh one, as JSON: its shape manifest.

With it and the weights a pruned network can be rebuilt, without the pruning library and without pickle.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Shapes = dict[str, dict[str, int]]

SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    _BatchNorm: ("num_features",),
}


def sizes(module: nn.Module) -> dict[str, int]:
    """The numbers that pruning changes; {} for modules of which it changes none."""
    names = next((names for kind, names in SIZES.items() if isinstance(module, kind)), ())
    return {name: getattr(module, name) for name in names}


def read(network: nn.Module, fresh: nn.Module) -> Shapes:
    """By module, the sizes of `network` that differ from those of `fresh`, a network of the same architecture."""
    differing = {}
    for name, module in fresh.named_modules():
        now = sizes(network.get_submodule(name))
        if changed := {key: now[key] for key, value in sizes(module).items() if now[key] != value}:
            differing[name] = changed
    return differing


def apply(network: nn.Module, shapes: Any) -> None:
    """Gives a fresh network these shapes; the tensors concerned become uninitialised.

    Raises:
        ValueError: they are not what `read` gives for the network, or larger than the fresh network; the message says
            where.
    """
    modules = dict(network.named_modules())
    if not isinstance(shapes, dict):
        raise ValueError("shapes are not an object")
    for name, changed in shapes.items():
        module = modules.get(name, nn.Identity())
        old = sizes(module)
        if not isinstance(changed, dict) or not changed or not changed.keys() <= old.keys():
            raise ValueError(f"shapes of {name!r} are {changed!r}, it has {list(old) or 'none'}")
        for key, value in changed.items():
            if type(value) is not int or not 1 <= value <= old[key]:
                raise ValueError(f"shapes: {key} of {name!r} is {value!r}, not from 1 to {old[key]}")
            setattr(module, key, value)
        _resize(module)


def _resize(module: nn.Module) -> None:
    """Gives the module empty tensors of its present sizes."""
    if isinstance(module, nn.Conv2d):
        if module.in_channels % module.groups or module.out_channels % module.groups:
            raise ValueError(f"shapes: {module} has groups of unequal size")
        weight_size = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    else:
        weight_size = tuple(reversed(sizes(module).values()))  # out before in
    for name, parameter in list(module.named_parameters(recurse=False)):
        size = weight_size if name == "weight" else weight_size[:1]
        setattr(module, name, nn.Parameter(parameter.detach().new_empty(size)))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.ndim:  # the running statistics, not the count of batches
            setattr(module, name, buffer.new_empty(weight_size))
