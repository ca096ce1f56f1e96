"""Linking, on made-up faces: people are vectors, and boxes go where the script says."""

import numpy as np
import pytest

from raydistal.verdict.tracks import LOOK_PX, Linker, is_cut, look_of

rng = np.random.default_rng(0)
BASE_P, *PEOPLE_P = rng.normal(size=(4, 3 * LOOK_PX**2))
ROOM_C, OTHER_ROOM_C = rng.integers(0, 256, (2, 3 * 16 * 9), dtype=np.uint8)


def look(person: int, likeness: float = 0.5, noise: float = 0.3) -> np.ndarray:
    """Looks of two people have about this likeness; two of one person about 0.9."""
    look_P = likeness**0.5 * BASE_P + (1 - likeness) ** 0.5 * PEOPLE_P[person] + noise * rng.normal(size=BASE_P.shape)
    return look_P / np.linalg.norm(look_P)


def link(script, step_s: float = 0.25) -> list[list[int]]:
    """Of frames (time, scene, faces), each face (person, left, side): the track of each face."""
    linker = Linker(step_s)
    return [
        linker.add(
            now_s,
            scene_C,
            np.array([[left, 0, left + side, side] for _, left, side in faces], np.float32).reshape(-1, 4),
            np.array([look(person) for person, _, _ in faces]).reshape(-1, BASE_P.size),
        )
        for now_s, scene_C, faces in script
    ]


def test_two_people_keep_their_tracks():
    script = [(0.25 * i, ROOM_C, [(0, 10 + i, 100), (1, 150 - i, 90)][:: 1 - 2 * (i % 2)]) for i in range(6)]
    assert link(script) == [[0, 1], [1, 0]] * 3  # whichever comes first


@pytest.mark.parametrize("hidden", [False, True])
def test_people_who_cross_keep_their_tracks(hidden):
    script = []
    for i in range(11):
        left, right = (0, 60 * i, 100), (1, 600 - 60 * i, 100)
        script.append((0.25 * i, ROOM_C, [right] if hidden and i in (4, 5, 6) else [left, right]))
    found = link(script)
    assert found[0] == found[-1] == [0, 1]
    assert all(tracks == ([1] if len(tracks) == 1 else [0, 1]) for tracks in found)


def test_after_a_cut_another_person_in_the_same_place_is_another_track():
    likeness = float(look(0) @ look(1))
    assert 0.4 < likeness < 0.6
    script = [(0.25 * i, ROOM_C if i < 4 else OTHER_ROOM_C, [(int(i >= 4), 50, 100)]) for i in range(8)]
    assert link(script) == [[0]] * 4 + [[1]] * 4
    one = [(now_s, scene_C, [(0, 50, 100)]) for now_s, scene_C, _ in script]
    assert link(one) == [[0]] * 8  # another shot of one person, who looks the same in it


def test_another_person_in_one_shot_is_another_track():
    assert link([(0, ROOM_C, [(0, 50, 100)]), (0.25, ROOM_C, [(1, 150, 100)])]) == [[0], [1]]


@pytest.mark.parametrize(("gap_s", "tracks"), [(1.25, [0, 0, 0]), (2.0, [0, 0, 1])])
def test_a_short_gap_does_not_split_a_track(gap_s, tracks):
    script = [(0.0, ROOM_C, [(0, 50, 100)]), (0.25, ROOM_C, [(0, 52, 100)])]
    script += [(0.5, ROOM_C, []), (0.25 + gap_s, ROOM_C, [(0, 60, 105)])]
    assert [number for numbers in link(script) for number in numbers] == tracks


def test_a_long_video_of_which_few_frames_are_looked_at():
    assert link([(7.0 * i, ROOM_C, [(0, 50 + 20 * i, 100), (1, 400, 100)]) for i in range(4)], step_s=7) == [[0, 1]] * 4


def test_a_false_face_of_one_frame_is_a_track_of_its_own():
    script = [(0.25 * i, ROOM_C, [(0, 50, 100)]) for i in range(5)]
    script[2][2].insert(0, (2, 80, 60))
    assert link(script) == [[0], [0], [1, 0], [0], [0]]
    assert link([(0.0, ROOM_C, [(0, 50, 100)]), (0.25, ROOM_C, [(0, 50, 200)])]) == [[0], [1]]  # twice the size


def test_the_work_is_bounded_on_a_video_full_of_false_faces():
    linker = Linker(0.01)
    for i in range(12):
        lefts = rng.permutation(24) * 1000 + 300 * (i % 3)
        boxes_N4 = np.array([[left, 0, left + 50, 50] for left in lefts], np.float32)
        linker.add(0.01 * i, ROOM_C, boxes_N4, np.eye(24, BASE_P.size, i * 30))
    assert len(linker._alive) == 100


def test_looks_are_of_contrast_not_of_brightness():
    crop_HWC = rng.integers(60, 120, (96, 96, 3), dtype=np.uint8).repeat(1, 0)
    look_P, brighter_P = look_of(crop_HWC), look_of(crop_HWC + 80)
    assert look_P @ look_P == pytest.approx(1)
    assert look_P @ brighter_P == pytest.approx(1, abs=1e-3)
    assert not look_of(np.full((40, 40, 3), 90, np.uint8)).any()


def test_cuts():
    noise_C = rng.integers(-9, 9, ROOM_C.shape)
    assert is_cut(ROOM_C, OTHER_ROOM_C)
    assert not is_cut(ROOM_C, np.clip(ROOM_C + noise_C, 0, 255).astype(np.uint8))
    dark_C = (ROOM_C // 20).astype(np.uint8)
    assert not is_cut(dark_C, (OTHER_ROOM_C // 20).astype(np.uint8))  # in the dark all that changes is noise
    assert is_cut(np.zeros_like(ROOM_C), ROOM_C)
