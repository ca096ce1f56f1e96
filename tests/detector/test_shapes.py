import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistal.detector import shapes
from raydistal.detector.zoo import Detector, dry_run

TINY = "timm:test_efficientnet"
BLOCK = "blocks.3.0"
NARROW = {  # an inverted residual with 56 instead of 128 channels inside, 3 instead of 8 in its squeeze
    f"{BLOCK}.conv_pw": {"out_channels": 56},
    f"{BLOCK}.bn1": {"num_features": 56},
    f"{BLOCK}.conv_dw": {"in_channels": 56, "out_channels": 56, "groups": 56},
    f"{BLOCK}.bn2": {"num_features": 56},
    f"{BLOCK}.se.conv_reduce": {"in_channels": 56, "out_channels": 3},
    f"{BLOCK}.se.conv_expand": {"in_channels": 3, "out_channels": 56},
    f"{BLOCK}.conv_pwl": {"in_channels": 56},
}


def fresh():
    with torch.device("meta"):
        return Detector(TINY, 64)


def test_what_was_read_is_applied():
    detector = fresh()
    assert shapes.read(detector.network, fresh().network) == {}
    shapes.apply(detector.network, NARROW)
    dry_run(detector)
    assert shapes.read(detector.network, fresh().network) == NARROW
    block = detector.network.get_submodule(BLOCK)
    assert block.conv_dw.weight.shape == (56, 1, 3, 3)
    assert block.se.conv_expand.weight.shape == (56, 3, 1, 1)
    assert block.se.conv_expand.bias.shape == block.bn2.running_var.shape == (56,)
    assert block.conv_pwl.weight.shape == (48, 56, 1, 1)


HOSTILE = {
    "no object": [1],
    "no layer": {"nothing": {"out_channels": 8}},
    "the whole network": {"": {"out_channels": 8}},
    "no sizes": {"conv_stem": 8},
    "another attribute": {"conv_stem": {"weight": 8}},
    "another kind's attribute": {"conv_stem": {"num_features": 8}},
    "dunder": {"conv_stem": {"__class__": 8}},
    "none": {"conv_stem": {"out_channels": 0}},
    "negative": {"conv_stem": {"out_channels": -8}},
    "huge": {"conv_stem": {"out_channels": 2**60}},
    "more than there were": {"conv_stem": {"out_channels": 25}},
    "a fraction": {"conv_stem": {"out_channels": 8.0}},
    "a truth": {"conv_stem": {"out_channels": True}},
    "a text": {"conv_stem": {"out_channels": "8"}},
    "groups of unequal size": {f"{BLOCK}.conv_dw": {"groups": 127}},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nonsense_is_refused(case):
    with pytest.raises(ValueError, match="shapes"):
        shapes.apply(fresh().network, HOSTILE[case])


NAMES = st.sampled_from(["conv_stem", "bn1", f"{BLOCK}.conv_dw", "classifier", "out_channels", "groups"]) | st.text(
    max_size=5
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
FRESH = fresh()


@pytest.mark.slow
@settings(max_examples=30)
@given(JSON)
def test_any_json_is_applied_or_refused(given_json):
    network = copy.deepcopy(FRESH.network)
    try:
        shapes.apply(network, given_json)
    except ValueError as error:
        assert "shapes" in str(error)  # noqa: PT017
    assert all(
        parameter.numel() <= old.numel()
        for parameter, old in zip(network.parameters(), FRESH.network.parameters(), strict=True)
    )
