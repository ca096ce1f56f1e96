"""Draws are the published generator's, even, and do not depend on order."""

from hashlib import blake2b

import numpy as np
import pyarrow as pa

from raydistal.selection.draws import sample_key, uniform


def splitmix64(state, number):
    """The reference (Steele, Lea and Flood 2014), in Python integers: item `number` of the sequence from `state`."""
    mask = 2**64 - 1
    z = (state + (number + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_sample_keys():
    # The first numbers of splitmix64 from state 1234567, as published with many implementations of it.
    assert [splitmix64(1234567, number) for number in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    video_id_N = ["a", "b", "a", "c", "b"]
    frame_index_N = np.array([0, 0, 7, 2**31 - 1, 0], np.int32)
    keys = sample_key(pa.chunked_array([video_id_N]), frame_index_N, seed=3)
    starts = {name: int.from_bytes(blake2b(f"3\0{name}".encode(), digest_size=8).digest(), "little") for name in "abc"}
    assert keys.tolist() == [
        splitmix64(starts[name], int(i)) for name, i in zip(video_id_N, frame_index_N, strict=True)
    ]
    np.testing.assert_array_equal(sample_key(video_id_N[2:], frame_index_N[2:], seed=3), keys[2:])
    assert not np.any(keys == sample_key(video_id_N, frame_index_N, seed=4))


def test_keys_sample_evenly():
    video_id_N = np.repeat([f"v{number}" for number in range(1000)], 100)
    number_N = uniform(sample_key(pa.array(video_id_N), np.tile(np.arange(100), 1000), seed=0))
    assert len(np.unique(number_N)) == 100_000
    counts = np.histogram(number_N, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000)
    per_video = (number_N < 0.1).reshape(1000, 100).sum(axis=1)
    assert 7.5 < per_video.var() < 10.5  # binomial: 100 * 0.1 * 0.9
    assert uniform(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0, 1 - 2.0**-53]
