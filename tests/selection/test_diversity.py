import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raydistal.selection.diversity import k_center_greedy, random_projection
from raydistal.selection.representative import MostUncertain

# Small integers: float32 arithmetic is exact, so ties are real ties.
POINTS = hnp.arrays(np.float32, st.tuples(st.integers(0, 15), st.integers(1, 3)), elements=st.integers(-4, 4))


def naive(points, num_centers):
    """Sener and Savarese's Algorithm 1 with every distance computed anew."""
    centers, distances = [], []
    while len(centers) < min(num_centers, len(points)):
        rest = [number for number in range(len(points)) if number not in centers]
        to = points[centers] if centers else np.zeros_like(points[:1])
        nearest = {number: np.linalg.norm(to - points[number], axis=1).min() for number in rest}
        best = max(rest, key=lambda number: nearest[number])
        distances.append(nearest[best] if centers else np.inf)
        centers.append(best)
    return centers, distances


@given(POINTS, st.integers(0, 20))
def test_equals_the_naive_algorithm(points, num_centers):
    index_K, distance_N = k_center_greedy(points, num_centers)
    centers, distances = naive(points.astype(float), num_centers)
    assert index_K.tolist() == centers
    np.testing.assert_allclose(distance_N[index_K], distances, rtol=1e-6)
    for other in set(range(len(points))) - set(centers) if centers else ():
        nearest = np.linalg.norm(points[centers] - points[other], axis=1).min()
        np.testing.assert_allclose(distance_N[other], nearest, rtol=1e-6)


def test_near_copies_of_a_frame_come_last():
    rng = np.random.default_rng(0)  # their squared distances, a difference of large numbers, would round below zero
    feature_ND = np.repeat(rng.normal(50, 1, (4, 333)), 50, axis=0) + rng.normal(0, 1e-5, (200, 333))
    index_K, distance_N = k_center_greedy(feature_ND.astype(np.float32), 100)
    assert sorted(index_K[:4] // 50) == [0, 1, 2, 3]
    assert len(set(index_K.tolist())) == 100
    assert distance_N[index_K[:4]].min() > 10
    copies_N = np.delete(distance_N, index_K[:4])
    assert 0 <= copies_N.min() <= copies_N.max() < 1


@given(POINTS, st.integers(0, 6))
def test_as_uncertainty_it_makes_algorithm_1_select_the_centres(points, num_centers):
    index_K, distance_N = k_center_greedy(points, num_centers)
    top = MostUncertain(num_centers)
    columns = {"video_id": pa.repeat("v", len(points)), "label": pa.repeat(1, len(points))}
    top.add(pa.table(columns | {"frame_index": np.arange(len(points)), "uncertainty": distance_N}))
    assert top.table()["frame_index"].to_pylist() == index_K.tolist()


def test_random_projection_keeps_distances():
    rng = np.random.default_rng(0)
    feature_ND = np.maximum(rng.normal(size=(60, 4096)), 0).astype(np.float16)
    small_ND = random_projection(feature_ND)
    assert small_ND.shape == (60, 64)
    assert small_ND.dtype == np.float32
    wide_ND = feature_ND.astype(np.float32)
    pairs = np.triu_indices(60, 1)
    ratio = np.linalg.norm(small_ND[pairs[0]] - small_ND[pairs[1]], axis=1)
    ratio /= np.linalg.norm(wide_ND[pairs[0]] - wide_ND[pairs[1]], axis=1)
    assert ratio.mean() == pytest.approx(1, abs=0.03)
    assert ratio.std() == pytest.approx(1 / np.sqrt(2 * 64), abs=0.02)  # a chi variable with 64 degrees of freedom
    np.testing.assert_allclose(random_projection(feature_ND[7:9]), small_ND[7:9], rtol=1e-4, atol=1e-4)
    assert not np.allclose(random_projection(feature_ND, seed=1), small_ND)
    np.testing.assert_array_equal(random_projection(feature_ND[:, :64]), wide_ND[:, :64])
