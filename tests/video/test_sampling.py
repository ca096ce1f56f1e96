import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistal.errors import UserError
from raydistal.video.sampling import Sampling


def pick(text, num_frames, fps=25.0, video_id="v"):
    return Sampling.parse(text).pick(np.arange(num_frames) / fps, video_id).tolist()


def test_golden_values():
    assert pick("every:30", 91) == [0, 30, 60, 90]
    assert pick("even:4", 10) == [0, 3, 6, 9]  # both ends
    assert pick("even:1", 11) == [5]
    assert pick("even:10", 3) == [0, 1, 2]
    assert pick("fps:1", 100) == [0, 25, 50, 75]
    assert pick("fps:50", 3) == [0, 1, 2]
    assert pick("even:5", 0) == pick("every:5", 0) == pick("fps:1", 0) == pick("random:5", 0) == []


def test_a_long_video_is_thinned_evenly():
    indices = pick("every:2", 10_000)
    assert len(indices) == 1000
    assert indices[0] == 0
    assert indices[-1] == 9998
    assert set(np.diff(indices)) == {10, 12}
    assert len(pick("even:5000", 10_000)) == 1000


def test_fps_takes_the_frame_on_show():
    pts_s = np.array([10.0, 10.9, 11.5, 13.2])  # variable rate, not from zero: 11.0 s shows frame 1, 13.0 s frame 2
    assert Sampling.parse("fps:1").pick(pts_s, "v").tolist() == [0, 1, 2]


def test_fps_takes_no_memory_for_a_time_that_is_far_off():
    assert Sampling.parse("fps:100").pick(np.array([0.0, 0.5, 0.501, 1e12]), "v").tolist() == [0, 1, 2, 3]
    assert Sampling.parse("fps:1").pick(np.array([0.0, 0.5, 0.501, 1e12]), "v").tolist() == [0, 2, 3]


def test_random_depends_on_the_video_alone():
    assert pick("random:10", 300, video_id="a") == pick("random:10", 300, video_id="a")
    assert pick("random:10", 300, video_id="a") != pick("random:10", 300, video_id="b")


@given(st.sampled_from(["even", "every", "random", "fps"]), st.integers(1, 40), st.integers(0, 200))
def test_indices_are_valid(kind, amount, num_frames):
    indices = pick(f"{kind}:{amount}", num_frames)
    assert indices == sorted(set(indices))
    assert all(0 <= index < num_frames for index in indices)
    if kind in ("even", "random"):
        assert len(indices) == min(amount, num_frames)
    if kind == "even" and amount > 1 and num_frames > 1:
        assert indices[0] == 0
        assert indices[-1] == num_frames - 1


@pytest.mark.parametrize(
    "text", ["", "even", "even:0", "even:-3", "even:1.5", "odd:3", "fps:0", "random:x", "even:10 "]
)
def test_refuses(text):
    with pytest.raises(UserError, match="even:N, every:N, random:N or fps:R"):
        Sampling.parse(text)
