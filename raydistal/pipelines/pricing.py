"""Hours and cost of a job on other clusters, computed from a measured sample of videos and a price list.

With GPUs, finding faces (on CPUs) and features (on GPUs) run side by side, so the slower of the two counts. Without
GPUs both share the CPUs, so their sum counts. Start-up is added once; the boot of machines is not counted.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raydistal import storage
from raydistal.errors import UserError

Floats = npt.NDArray[np.float64]

NUM_RESAMPLES = 1000
INTERVAL = (0.025, 0.975)
NODE_KEYS = {"cpus", "gpus", "price_per_hour", "spot_price_per_hour"}


class Node(NamedTuple):
    """A kind of machine."""

    name: str
    cpus: int
    gpus: int = 0
    price: float | None = None
    """Per hour, in the currency of the list."""
    spot_price: float | None = None
    """The same for a spot machine, which may be taken back at any time."""


class Prices(NamedTuple):
    """What machines and storage cost."""

    nodes: tuple[Node, ...]
    currency: str = ""
    head_price: float = 0.0
    """Per hour of the head node, which processes no videos."""
    storage_price: float | None = None
    """Per 1e9 bytes and month."""

    @property
    def cpu_node(self) -> Node | None:
        """The node without GPUs whose CPUs are the cheapest."""
        return min(
            (one for one in self.nodes if not one.gpus), key=lambda one: (one.price or 0) / one.cpus, default=None
        )

    @property
    def gpu_node(self) -> Node | None:
        """The node whose GPUs are the cheapest."""
        return min((one for one in self.nodes if one.gpus), key=lambda one: (one.price or 0) / one.gpus, default=None)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Measured times of V videos, one value each."""

    look_s_V: Floats
    """Seconds of one CPU to decode it and find faces."""
    cpu_feature_s_V: Floats | None
    """Seconds of one CPU to compute its features; None: not known."""
    gpu_feature_s_V: Floats | None
    """Seconds of one GPU to do so; None: not known."""
    startup_s: float
    """Seconds until workers run and the network is loaded."""
    overhead: float = 1.0
    """Time of a video when all stages run together, relative to the stages run alone."""


class Offer(NamedTuple):
    """A cluster, and time and cost of the job on it."""

    nodes: str
    """Such as 2 cpu-16 + 1 gpu-1; without the head."""
    cpus: int
    gpus: int
    hours: float
    hours_low: float
    hours_high: float
    price: float | None
    price_low: float | None
    price_high: float | None
    spot_price: float | None
    """With spot workers and an on-demand head."""


def read_prices(location: str) -> Prices:
    """The price list in a TOML file, as cluster/prices.toml.

    Raises:
        UserError: it cannot be read, or has unknown or invalid entries.
    """
    try:
        found = tomllib.loads(storage.read_bytes(location).decode())
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the price list {location}: {error}. cluster/prices.toml is an example."
        ) from error
    keys = {"currency", "head_price_per_hour", "storage_price_per_gb_month", "nodes"}
    try:
        nodes = tuple(_node(location, name, entry) for name, entry in found["nodes"].items())
        unknown = sorted(set(found) - keys)
        currency, head = str(found["currency"]), float(found.get("head_price_per_hour", 0))
        price = found.get("storage_price_per_gb_month")
        prices = Prices(nodes, currency, head, None if price is None else float(price))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{location} is not a price list like cluster/prices.toml: {error}") from error
    if unknown or prices.cpu_node is None:
        what = f"unknown {', '.join(unknown)}" if unknown else "no node without GPUs"
        raise UserError(f"{location}: {what}. See cluster/prices.toml.")
    return prices


def _node(location: str, name: str, entry: dict[str, Any]) -> Node:
    if unknown := sorted(set(entry) - NODE_KEYS):
        raise UserError(f"{location}: unknown {', '.join(unknown)} of node {name}. See cluster/prices.toml.")
    node = Node(name, int(entry["cpus"]), int(entry.get("gpus", 0)), float(entry["price_per_hour"]))
    if node.cpus < 1 or node.gpus < 0:
        raise ValueError(f"node {name} needs cpus of at least 1 and gpus of 0 or more")
    spot = entry.get("spot_price_per_hour")
    return node._replace(spot_price=None if spot is None else float(spot))


def offers(prices: Prices, sample: Sample, num_videos: int, counts: Sequence[int]) -> list[Offer]:
    """Clusters of `counts` CPU nodes, and of `counts` GPU nodes with the CPU nodes that keep them busy.

    Each kind of node is that with the cheapest CPUs or GPUs. Intervals: 95 %, from resamples of the videos.
    """
    cpu_node, gpu_node = prices.cpu_node, prices.gpu_node
    shapes: list[list[tuple[int, Node]]] = []
    if sample.cpu_feature_s_V is not None and cpu_node:
        shapes += [[(num, cpu_node)] for num in counts]
    if sample.gpu_feature_s_V is not None and gpu_node:
        helpers = cpu_nodes_per_gpu_node(prices, sample)
        shapes += [[*([(math.ceil(num * helpers), cpu_node)] if cpu_node else []), (num, gpu_node)] for num in counts]
    return [_offer(prices, sample, num_videos, shape) for shape in shapes]


def cpu_nodes_per_gpu_node(prices: Prices, sample: Sample) -> float:
    """CPU nodes that keep a GPU node busy, beside its own CPUs; 0.0 without such nodes or measurements."""
    cpu_node, gpu_node = prices.cpu_node, prices.gpu_node
    if not (cpu_node and gpu_node and sample.gpu_feature_s_V is not None and sample.gpu_feature_s_V.any()):
        return 0.0
    needed_cpus = gpu_node.gpus * sample.look_s_V.mean() / sample.gpu_feature_s_V.mean()
    return float(max(0.0, needed_cpus - gpu_node.cpus) / cpu_node.cpus)


def _offer(prices: Prices, sample: Sample, num_videos: int, shape: list[tuple[int, Node]]) -> Offer:
    cpus, gpus = sum(num * node.cpus for num, node in shape), sum(num * node.gpus for num, node in shape)
    hours, low, high = (value / 3600 for value in seconds(sample, num_videos, cpus, gpus))

    def price_of(hours: float, of_node: str) -> float | None:
        each = [num * getattr(node, of_node) for num, node in shape if num and getattr(node, of_node) is not None]
        return hours * (prices.head_price + sum(each)) if len(each) == sum(num > 0 for num, _ in shape) else None

    return Offer(
        nodes=" + ".join(f"{num} {node.name}" for num, node in shape if num),
        cpus=cpus,
        gpus=gpus,
        hours=hours,
        hours_low=low,
        hours_high=high,
        price=price_of(hours, "price"),
        price_low=price_of(low, "price"),
        price_high=price_of(high, "price"),
        spot_price=price_of(hours, "spot_price"),
    )


def seconds(sample: Sample, num_videos: int, cpus: int, gpus: int) -> tuple[float, float, float]:
    """Wall time of the job on these numbers of CPUs and GPUs, and the ends of its interval."""
    num = len(sample.look_s_V)
    draws_BV = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES) / num
    weight_BV = np.concatenate([np.full((1, num), 1 / num), draws_BV])
    look_s_B = weight_BV @ sample.look_s_V
    if gpus:
        assert sample.gpu_feature_s_V is not None
        video_s_B = np.maximum(look_s_B / cpus, weight_BV @ sample.gpu_feature_s_V / gpus)
    else:
        assert sample.cpu_feature_s_V is not None
        video_s_B = (look_s_B + weight_BV @ sample.cpu_feature_s_V) / cpus
    wall_s_B = sample.startup_s + num_videos * sample.overhead * video_s_B
    low, high = np.quantile(wall_s_B[1:], INTERVAL)
    return float(wall_s_B[0]), float(low), float(high)
