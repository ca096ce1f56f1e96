"""timm and torchvision, imported without torch._dynamo: that saves a third of what a process needs to get going.

Both load it, with all else that torch.compile needs, only to define functions that few ever call: torchvision one that
asks what torch.compile can do here, timm one that it must leave alone. They get the same, loaded when first called.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch._compile import _disable_dynamo

NAME = "torch._dynamo.utils"


def _is_compile_supported(device: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device))


def _disable(function: Any = None, recursive: Any = True, *, reason: Any = None) -> Any:  # noqa: ARG001
    return _disable_dynamo(function, recursive)


@contextmanager
def _on_demand() -> Iterator[None]:
    if NAME in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(NAME)
    stand_in.is_compile_supported = _is_compile_supported
    sys.modules[NAME], torch.compiler.disable, disable = stand_in, _disable, torch.compiler.disable
    try:
        yield
    finally:
        torch.compiler.disable = disable
        del sys.modules[NAME]


with _on_demand():
    import timm
    import torchvision

__all__ = ["timm", "torchvision"]
