import pytest

from raydistal.errors import UserError
from raydistal.search import space
from raydistal.search.space import Dimension

FIXED = {"set": "ranking", "data": 1.0, "prune": 0.0, "bits": 32}


def test_what_is_understood():
    assert space.parse(["alpha=1,0,0.25", "prune=0.2..0.6", "data=0.2..0.9:0.2", "bits=32,8", "kd-weight=2"]) == (
        Dimension("alpha", 0.0, 1.0, (0.0, 0.25, 1.0)),
        Dimension("prune", 0.2, 0.6),
        Dimension("data", 0.2, 0.9, (0.2, 0.4, 0.6, 0.8)),
        Dimension("bits", 8, 32, (8, 32)),
        Dimension("kd_weight", 2.0, 2.0, (2.0,)),
    )


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], "name what to vary"),
        (["alpha=0", "alpha=1"], "names alpha twice"),
        (["width=1"], "cannot vary 'width': use data, prune"),
        (["alpha=much"], "does not understand 'alpha=much'"),
        (["alpha="], "does not understand 'alpha='"),
        (["alpha=0..1:2"], "does not understand"),
        (["alpha=0..1:0"], "does not understand"),
        (["alpha=0,2"], "alpha must be from 0 to 1, not 2"),
        (["prune=1"], "prune must be at least 0 and below 1, not 1"),
        (["data=nan"], "data must be above 0 and at most 1, not nan"),
        (["tau=0.1..inf"], "tau must be above 0, not inf"),
        (["negatives=2.5"], "negatives must be whole and at least 1, not 2.5"),
        (["bits=16"], "bits must be 8 or 32, not 16"),
        (["bits=8..32"], "is not a range"),
        (["prune=0.6..0.2"], "is not a range"),
        (["data=0.1..1:1e-12"], "data=0.1..1:1e-12 has more than 100000 points"),
        (["alpha=0..1:0.001", "prune=0.1..0.5:0.001"], "prune=0.1..0.5:0.001 has more than 100000 points"),
    ],
)
def test_what_is_refused(texts, told):
    with pytest.raises(UserError, match=told):
        space.parse(texts)


def test_every_point_in_order():
    made = space.points(space.parse(["prune=0,0.5", "bits=32,8"]), FIXED)
    assert made == [FIXED | {"prune": prune, "bits": bits} for prune in (0.0, 0.5) for bits in (8, 32)]
    with pytest.raises(UserError, match="prune is a range"):
        space.points(space.parse(["prune=0..0.5"]), FIXED)


def test_steps_divide_a_range():
    (prune, negatives, data) = space.parse(["prune=0.2..0.6", "negatives=1..3", "data=0.5,1"])
    assert prune.steps(4) == (0.2, 0.3, 0.4, 0.5, 0.6)
    assert negatives.steps(16) == (1, 2, 3)
    assert data.steps(4) == (0.5, 1.0)
    assert (prune.rounded(0.31415926), prune.rounded(0.59999999), negatives.rounded(1.7)) == (0.3142, 0.6, 2)


def test_points_of_a_space():
    found = space.parse(["prune=0.2..0.6", "bits=8"])
    inside = FIXED | {"prune": 0.3, "bits": 8}
    assert space.contains(found, FIXED, inside)
    for other in ({"prune": 0.7}, {"bits": 32}, {"data": 0.5}, {"prune": None}, {"set": "random"}):
        assert not space.contains(found, FIXED, inside | other)


def test_keys_tell_values_apart():
    assert space.key({"a": 0.1, "b": 8}, 0) == space.key({"b": 8, "a": 0.1}, 0) == "91fdef30c58b"
    assert space.key({"a": 0.1, "b": 8}, 1) != space.key({"a": 0.1, "b": 8}, 0)
