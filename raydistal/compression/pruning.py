"""Structured pruning: removes the channels that a detector can best do without, by Taylor importance.

C channels of a group: channels of several layers that can only be removed together, as additions and concatenations
couple them. Torch-Pruning finds the groups (Fang et al. 2023, DepGraph).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from raydistal.compression.counting import count_channels, count_macs, count_params
from raydistal.detector import shapes
from raydistal.detector.examples import Batch
from raydistal.detector.zoo import Detector, dry_run
from raydistal.errors import UserError

Of = Literal["params", "channels", "macs"]
Scope = Literal["global", "local", "isomorphic"]
Ints = npt.NDArray[np.int64]

COUNTS: dict[str, Callable[[Detector], int]] = {"params": count_params, "channels": count_channels, "macs": count_macs}
ROUND_TO = (8, 4, 2, 1)  # channels are a multiple of the first with which the target can be met
TOLERANCE = 0.01  # of the reference


@dataclass(frozen=True)
class Group:
    """C sets of channels over several layers; a set can only be removed as a whole."""

    root: nn.Module
    prune: Any  # Torch-Pruning's function for the root
    importance_C: npt.NDArray[np.float64]
    members: list[tuple[nn.Module, str, Ints]]  # layer, "in" or "out", and for each of its channels which of C


def prune(
    detector: Detector,
    batches: Iterable[Batch],
    *,
    ratio: float,
    of: Of = "params",
    scope: Scope = "global",
    reference: int = 0,
) -> dict[str, Any]:
    """Removes channels from every layer but the classifier's output until `ratio` of the reference is gone.

    Args:
        detector: changed in place: in evaluation mode, all parameters trainable, on its device.
        batches: real faces with their labels, from which the importance of the channels is estimated.
        ratio: share to be gone, of `reference`, above 0 and below 1.
        of: what is counted: parameters, channels (as the thesis, it seems: figure 6.2.4.3.1), or multiply-accumulates.
        scope: global: channels compete with all others (thesis 5.7.3); local: each layer loses the same share;
            isomorphic: they compete with those of layers of the same kind (Fang et al. 2024).
        reference: what the unpruned detector counts, if this one has been pruned before. 0: what it counts now.

    Returns:
        What was done: ratio, reached, of, scope, round_to, `before` and `after` (params, channels, macs), and `widths`
        by layer (output channels before and after).

    Raises:
        UserError: the ratio cannot be met within 1 %, the network cannot be pruned, or its gradients are not finite;
            the message says what was reached and what to change.
    """
    if not 0 < ratio < 1:
        raise UserError(f"--ratio must be above 0 and below 1, not {ratio}")
    before, widths = count(detector), layer_widths(detector)
    reference = reference or before[of]
    target = (1 - ratio) * reference
    if before[of] <= target + TOLERANCE * reference / 2:
        raise UserError(f"{1 - before[of] / reference:.1%} of the {of} are gone already: raise --ratio above {ratio}")
    _accumulate_gradients(detector, batches)
    graph, groups = _find_groups(detector)
    round_to, removed = _meet(detector, groups, before, target, reference, of, scope)
    for group, channels in zip(groups, removed, strict=True):
        if len(channels):
            graph.get_pruning_group(group.root, group.prune, channels.tolist()).prune()
    detector.zero_grad(set_to_none=True)
    try:
        dry_run(detector)
    except RuntimeError as error:  # its code relies on its numbers of channels, not only its layers
        raise UserError(f"{detector.architecture} cannot be pruned: {error}. Choose another --architecture.") from error
    after = count(detector)
    if after["params"] >= before["params"] or abs(after[of] - target) > TOLERANCE * reference:
        raise RuntimeError(f"pruning {of} from {before} to {target:.0f} gave {after}")
    return {
        "ratio": ratio,
        "reached": 1 - after[of] / reference,
        "of": of,
        "scope": scope,
        "round_to": round_to,
        "before": before,
        "after": after,
        "widths": {name: [widths[name], width] for name, width in layer_widths(detector).items()},
    }


def count(detector: Detector) -> dict[str, int]:
    """params, channels and macs."""
    return {name: counted(detector) for name, counted in COUNTS.items()}


def layer_widths(detector: Detector) -> dict[str, int]:
    """Output channels by layer, from the input on; the classifier left out."""
    layers = (item for item in detector.network.named_modules() if isinstance(item[1], nn.Conv2d | nn.Linear))
    return {name: len(layer.weight) for name, layer in layers if name != detector.classifier_name}


def _accumulate_gradients(detector: Detector, batches: Iterable[Batch]) -> None:
    """Gradients of the loss on the labels, summed over the faces; batch norm uses its running statistics."""
    detector.eval().requires_grad_(True)  # layers without gradients would be skipped
    detector.zero_grad(set_to_none=True)
    device = detector.get_buffer("_mean_C").device
    for batch in batches:
        logit_N = detector(torch.from_numpy(batch.crops_NHWC))
        label_N = torch.from_numpy(batch.label_N).to(device, torch.float32)
        bce(logit_N, label_N, reduction="sum").backward()  # type: ignore[no-untyped-call]


def _find_groups(detector: Detector) -> tuple[Any, list[Group]]:
    """Torch-Pruning's graph, and the groups with their importance.

    Importance (of first order, after Molchanov et al. 2019): |weight x gradient|, summed over the weights of a channel,
    averaged over the layers that share it, and divided by the mean of the group.
    """
    import torch_pruning as tp

    network, size_px = detector.network, detector.input_px
    if odd := [module for module in network.modules() if not _is_prunable(module)]:
        raise UserError(
            f"{detector.architecture} cannot be pruned: only plain and depthwise convolutions, linear layers and batch "
            f"norm can, not its {type(odd[0]).__name__}. Choose another --architecture."
        )
    face_1CHW = torch.zeros(1, 3, size_px, size_px, device=detector.get_buffer("_mean_C").device)
    graph = tp.DependencyGraph().build_dependency(network, face_1CHW)
    importance = tp.importance.GroupTaylorImportance()
    groups = []
    for group in graph.get_all_groups([network.get_classifier()], [nn.Conv2d, nn.Linear]):
        members = [
            (dep.target.module, "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in", np.array(roots))
            for (dep, _), roots in zip(group, (item.root_idxs for item in group), strict=True)
            if shapes.sizes(dep.target.module)
        ]
        importance_C = importance(group).double().cpu().numpy()
        groups.append(Group(group[0].dep.target.module, group[0].dep.handler, importance_C, members))
    names = {module: name for name, module in network.named_modules()}
    dead = [names[group.root] for group in groups if not np.isfinite(group.importance_C).all()]
    if dead:
        raise UserError(
            f"{len(dead)} layers, such as {dead[0]}, have no finite influence on the detector's logits: "
            "train it first, or prune another"
        )
    if not groups:
        raise UserError(f"{detector.architecture} has no channels that can be pruned. Choose another --architecture.")
    return graph, groups


def _is_prunable(module: nn.Module) -> bool:
    """True if a shape manifest can describe it in full, or it has no weights."""
    num_groups = getattr(module, "groups", 1)
    is_grouped = isinstance(module, nn.Conv2d) and num_groups > 1 and num_groups != module.in_channels
    return not is_grouped and bool(shapes.sizes(module) or not list(module.parameters(recurse=False)))


def _meet(
    detector: Detector,
    groups: Sequence[Group],
    before: dict[str, int],
    target: float,
    reference: int,
    of: Of,
    scope: Scope,
) -> tuple[int, list[Ints]]:
    """The multiple that channels are rounded to, and the channels of each group to remove to meet the target."""
    measure = _measure(detector, groups, before, of)
    reached = []
    for round_to in ROUND_TO:
        low, high = 0.0, 1.0  # bisection: the share of the channels to remove lies between these
        for _ in range(30):
            middle = (low + high) / 2
            is_above = measure(_lowest(groups, middle, scope, round_to)) > target
            low, high = (middle, high) if is_above else (low, middle)
        options = [_lowest(groups, share, scope, round_to) for share in (low, high)]
        nearest = min(options, key=lambda removed: abs(measure(removed) - target))
        reached.append(measure(nearest))
        if abs(reached[-1] - target) <= TOLERANCE * reference:
            return round_to, nearest
    best = min(reached, key=lambda num: abs(num - target))
    raise UserError(
        f"cannot remove {1 - target / reference:.1%} of the {of}: the nearest is {1 - best / reference:.1%}, "
        f"{best:,} left of {reference:,}. Change --ratio or --scope, or count another --of."
    )


def _lowest(groups: Sequence[Group], share: float, scope: Scope, round_to: int) -> list[Ints]:
    """The channels of each group that are among the lowest `share` of their scope, rounded so that some are left."""
    together = defaultdict(list)
    for number, group in enumerate(groups):
        kinds = tuple((type(module), side) for module, side, _ in group.members)
        together[{"global": (), "local": number, "isomorphic": kinds}[scope]].append(number)
    removed = [np.empty(0, np.int64)] * len(groups)
    for numbers in together.values():
        owner_C = np.repeat(numbers, [len(groups[number].importance_C) for number in numbers])
        order_C = np.argsort(np.concatenate([groups[number].importance_C for number in numbers]), kind="stable")
        lowest = owner_C[order_C[: round(share * len(order_C))]]
        for number in numbers:
            importance_C = groups[number].importance_C
            if num_lowest := int((lowest == number).sum()):
                num_kept = (len(importance_C) - num_lowest + round_to // 2) // round_to * round_to
                num_removed = max(0, len(importance_C) - max(round_to, num_kept))
                removed[number] = np.argsort(importance_C, kind="stable")[:num_removed]
    return removed


def _measure(
    detector: Detector, groups: Sequence[Group], before: dict[str, int], of: Of
) -> Callable[[Sequence[Ints]], int]:
    """A function that says what the detector would count without these channels of the groups, pruning nothing."""
    layers = [module for module in detector.network.modules() if shapes.sizes(module)]
    positions = _positions(detector)
    classifier = detector.network.get_classifier()

    def count_layer(layer: nn.Module, num_in: int, num_out: int) -> int:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            num_groups = getattr(layer, "groups", 1)
            is_depthwise = num_groups > 1 and num_groups == layer.weight.shape[0]
            num_weights = num_out * (1 if is_depthwise else num_in // num_groups) * layer.weight[0, 0].numel()
            num_bias = num_out if layer.bias is not None else 0
            num_channels = 0 if layer is classifier else num_out
            counts = {
                "params": num_weights + num_bias,
                "macs": num_weights * positions[layer],
                "channels": num_channels,
            }
        else:
            counts = {"params": num_out * len(list(layer.parameters())), "macs": 0, "channels": 0}
        return counts[of]

    def total(removed: Sequence[Ints]) -> int:
        gone: dict[tuple[nn.Module, str], int] = defaultdict(int)
        for group, channels in zip(groups, removed, strict=True):
            is_gone_C = np.zeros(len(group.importance_C), bool)
            is_gone_C[channels] = True
            for layer, side, root_K in group.members:
                gone[layer, side] += int(is_gone_C[root_K].sum())
        return sum(count_layer(layer, *(size - gone[layer, side] for side, size in _ends(layer))) for layer in layers)

    rest = before[of] - total([np.empty(0, np.int64)] * len(groups))  # what pruning does not change
    return lambda removed: rest + total(removed)


def _ends(layer: nn.Module) -> list[tuple[str, int]]:
    sizes = shapes.sizes(layer)
    num_out = sizes.get("out_channels", sizes.get("out_features", sizes.get("num_features", 0)))
    return [("in", sizes.get("in_channels", sizes.get("in_features", 0))), ("out", num_out)]


def _positions(detector: Detector) -> dict[nn.Module, int]:
    """By layer, how often its weights are applied to one face: height x width of its output."""
    found: dict[nn.Module, int] = defaultdict(int)

    def note(layer: Any, _: Any, output: torch.Tensor) -> None:
        found[layer] += output.numel() // len(layer.weight)

    layers = [module for module in detector.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    size_px = detector.input_px
    with torch.no_grad():
        detector(torch.zeros(1, size_px, size_px, 3))
    for handle in handles:
        handle.remove()
    return found
