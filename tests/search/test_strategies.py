import pytest

from raydistal.search import space
from raydistal.search.strategies import Bisection, Grid, Sampled

FIXED = {"set": "ranking", "data": 1.0, "prune": 0.0, "bits": 32}


def explore(strategy, judge):
    """Asks and tells until it is finished; the points in their order."""
    asked = []
    while not strategy.is_finished:
        if (point := strategy.ask()) is not None:
            asked.append(point)
            strategy.tell(point, judge(point))
    assert strategy.ask() is None
    return asked


def test_grid_leaves_out_what_is_known():
    points = [{"prune": value} for value in (0.0, 0.1, 0.2)]
    grid = Grid(points)
    grid.tell(points[1], [0.5])
    assert explore(grid, lambda point: [0.0]) == [points[0], points[2]]


def test_sampler_comes_closer_to_the_best():
    varied = space.parse(["prune=0..0.9", "data=0.1..1"])
    strategy = Sampled(varied, FIXED, [True], num=40)
    asked = explore(strategy, lambda point: [-((point["prune"] - 0.3) ** 2) - (point["data"] - 0.8) ** 2])
    assert len(asked) == len({space.key(point) for point in asked}) == 40
    miss = [abs(point["prune"] - 0.3) + abs(point["data"] - 0.8) for point in asked]
    assert min(miss) < 0.1
    assert sum(miss[-10:]) < 0.6 * sum(miss[:10])


def test_sampler_tries_every_point_of_a_small_space_once():
    varied = space.parse(["prune=0,0.25,0.5", "bits=32,8"])
    strategy = Sampled(varied, FIXED, [True, False], num=50)
    asked = explore(strategy, lambda point: [point["prune"], point["bits"]] if point["bits"] == 8 else None)
    assert {(point["prune"], point["bits"]) for point in asked} == {
        (prune, bits) for prune in (0.0, 0.25, 0.5) for bits in (8, 32)
    }
    assert len(asked) == 6


def test_sampler_goes_on_from_what_is_known():
    varied = space.parse(["tau=0.01..1", "negatives=1..100"])
    known = [{"set": "ranking", "tau": 0.01 * 1.5**number, "negatives": 3 + number} for number in range(8)]
    strategy = Sampled(varied, {"set": "ranking"}, [True], num=10, num_open=3)
    for number, point in enumerate(known):
        strategy.tell(point, [float(number)], stopped_at=2 if number == 3 else 0)
    first, second = strategy.ask(), strategy.ask()
    assert strategy.ask() is None  # 10 in all
    assert not strategy.is_finished
    strategy.tell(first, None)
    strategy.tell(second, [1.0], stopped_at=1)
    assert strategy.is_finished


@pytest.mark.parametrize(("text", "most"), [("negatives=1..3", 3), ("alpha=0.5..0.5003", 4)])
def test_a_range_with_fewer_points_than_asked_for_comes_to_an_end(text, most):
    asked = explore(Sampled(space.parse([text]), FIXED, [True], num=10), lambda point: [0.0])
    assert len(asked) == len({space.key(point) for point in asked}) == most


def test_bisection_asks_for_references_first_and_for_controls_last():
    points = [{"data": value, "set": "ranking"} for value in (0.8, 0.6, 0.4, 0.2)]
    full = {"data": 1.0, "set": "ranking"}
    told = []

    def judge(point):
        assert full in told
        return point["data"] >= 0.4

    strategy = Bisection(points, judge, references=[full], controls=lambda point: [point | {"set": "random"}])
    while not strategy.is_finished:
        while (point := strategy.ask()) is not None:
            told.append(point)
        for point in told:
            strategy.tell(point, [0.0])
    assert told == [full, points[0], points[3], points[1], points[2], {"data": 0.4, "set": "random"}]
    assert (strategy.step.answer, strategy.judged) == (2, {0: True, 1: True, 2: True, 3: False})
