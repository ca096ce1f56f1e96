"""Random choices that depend on the items, not on their order: the same on every node and rerun.

N frames of V videos.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Strings: TypeAlias = "Sequence[str] | pa.Array | pa.ChunkedArray"


def sample_key(video_id_N: Strings, frame_index_N: npt.NDArray[np.integer], seed: int) -> npt.NDArray[np.uint64]:
    """(N,) well-mixed 64-bit hashes of (seed, video_id, frame_index): the same for a frame wherever it is computed.

    Frames with a key below p * 2**64 are a random sample of a share p. The frames of a video are the splitmix64
    sequence (Steele, Lea and Flood 2014) that starts at the hash of the video.
    """
    video_V = pc.unique(video_id_N)
    digests = (hashlib.blake2b(f"{seed}\0{video_id}".encode(), digest_size=8).digest() for video_id in video_V)
    start_V = np.frombuffer(b"".join(digests), "<u8")
    key_N: npt.NDArray[np.uint64] = start_V[pc.index_in(video_id_N, value_set=video_V).to_numpy()]
    key_N += (frame_index_N.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    key_N = (key_N ^ (key_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key_N = (key_N ^ (key_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key_N ^ (key_N >> np.uint64(31))


def uniform(key_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) from the upper 53 bits of each key."""
    return (key_N >> np.uint64(11)).astype(np.float64) * 2.0**-53
