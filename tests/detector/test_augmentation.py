import cv2
import numpy as np
import pytest

from raydistal.detector import augmentation
from raydistal.detector.augmentation import augment, degrade, recolour, turn


def textured(size_px=64):
    """Low and high frequencies, far from black and white."""
    rng = np.random.default_rng(0)
    coarse_HWC = cv2.resize(rng.integers(70, 180, (8, 8, 3), dtype=np.uint8), (size_px, size_px))
    return (coarse_HWC + rng.integers(-15, 16, coarse_HWC.shape)).astype(np.uint8)


def test_turn_by_right_angles_is_exact():
    for size_px in (32, 33):
        crop_HWC = textured(size_px)
        np.testing.assert_array_equal(turn(crop_HWC, 0, False), crop_HWC)
        np.testing.assert_array_equal(turn(crop_HWC, 0, True), crop_HWC[:, ::-1])
        np.testing.assert_array_equal(turn(crop_HWC, 90, False), np.rot90(crop_HWC))
        np.testing.assert_array_equal(turn(crop_HWC, 90, True), np.rot90(crop_HWC[:, ::-1]))


def test_turn_moves_a_point_where_it_belongs_and_leaves_no_empty_corner():
    crop_HWC = np.full((101, 101, 3), 10, np.uint8)
    crop_HWC[49:52, 89:92] = 250  # 40 right of the centre
    turned_HWC = turn(crop_HWC, 10, False)
    y, x = (index.mean() for index in np.nonzero(turned_HWC[:, :, 0] > 100))
    angle = np.radians(10)
    assert (x, y) == pytest.approx((50 + 40 * np.cos(angle), 50 - 40 * np.sin(angle)), abs=0.6)
    assert turned_HWC.min() == 10


@pytest.mark.parametrize(
    ("brightness", "contrast", "saturation"), [(1, 1, 1), (1.2, 1, 1), (1, 0.8, 1), (1, 1, 0.8), (0.9, 1.15, 1.2)]
)
def test_recolour_without_hue_against_the_formulas(brightness, contrast, saturation):
    """torchvision's: blends with grey (saturation), the mean grey (contrast) and black (brightness)."""
    crop_HWC = textured().astype(float)
    grey_HW1 = crop_HWC @ [[0.299], [0.587], [0.114]]
    expected_HWC = saturation * crop_HWC + (1 - saturation) * grey_HW1
    expected_HWC = brightness * (contrast * expected_HWC + (1 - contrast) * grey_HW1.mean())
    given_HWC = recolour(crop_HWC.astype(np.uint8), brightness, contrast, saturation, 0)
    assert np.abs(given_HWC - np.clip(expected_HWC, 0, 255)).max() <= 1


def test_hue_turns_the_chroma_and_keeps_luma_and_grey():
    crop_HWC = textured()
    luma_HW1 = crop_HWC @ [[0.299], [0.587], [0.114]]
    assert np.abs(recolour(crop_HWC, 1, 1, 1, 0.5) - (2 * luma_HW1 - crop_HWC)).max() <= 1  # half a turn: negated
    turned_HWC = recolour(crop_HWC, 1, 1, 1, 0.05)
    assert np.abs(turned_HWC @ [[0.299], [0.587], [0.114]] - luma_HW1).max() <= 1
    assert np.abs(turned_HWC.astype(int) - crop_HWC).mean() > 1
    for _ in range(19):  # and a whole turn brings it back
        turned_HWC = recolour(turned_HWC, 1, 1, 1, 0.05)
    assert np.abs(turned_HWC.astype(int) - crop_HWC).mean() < 2
    grey_HWC = np.full((4, 4, 3), 77, np.uint8)
    np.testing.assert_array_equal(recolour(grey_HWC, 1, 1, 1.2, 0.05), grey_HWC)


def test_recolour_clips():
    assert recolour(np.full((4, 4, 3), 250, np.uint8), 1.2, 1, 1, 0).min() == 255


@pytest.mark.parametrize("robust", [False, True])
def test_augment_depends_on_crop_and_generator_alone(robust):
    crop_HWC = textured()
    before = crop_HWC.copy()
    first = [augment(crop_HWC, np.random.default_rng([seed, 7]), robust) for seed in range(20)]
    again = [augment(crop_HWC, np.random.default_rng([seed, 7]), robust) for seed in range(20)]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(crop_HWC, before)
    assert all(varied.shape == crop_HWC.shape and varied.dtype == np.uint8 for varied in first)
    assert len({varied.tobytes() for varied in first}) == 20


def test_augment_draws_as_documented(monkeypatch):
    turns, colours = [], []
    monkeypatch.setattr(augmentation, "turn", lambda crop_HWC, *drawn: turns.append(drawn) or crop_HWC)
    monkeypatch.setattr(augmentation, "recolour", lambda crop_HWC, *drawn: colours.append(drawn) or crop_HWC)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        augment(textured(8), rng)
    (angle_N, mirrored_N), colour_4N = np.array(turns).T, np.array(colours).T
    assert 0.45 < mirrored_N.mean() < 0.55
    for drawn_N, low, high in [
        (angle_N, -10, 10),
        *((row, 0.8, 1.2) for row in colour_4N[:3]),
        (colour_4N[3], -0.05, 0.05),
    ]:
        margin = 0.02 * (high - low)
        assert low <= drawn_N.min() < low + margin < high - margin < drawn_N.max() <= high


def test_degrade_takes_detail_away_from_as_many_crops_as_it_says(monkeypatch):
    crop_HWC = textured()
    degraded = [degrade(crop_HWC, np.random.default_rng(seed)) for seed in range(1000)]
    assert 0.3 < np.mean([np.array_equal(one, crop_HWC) for one in degraded]) < 0.39  # 0.7 ** 3 = 0.343

    def detail(image_HWC):
        return cv2.Laplacian(image_HWC, cv2.CV_64F).var()

    monkeypatch.setattr(augmentation, "DEGRADE_PROBABILITY", 1.0)
    for seed in range(50):
        one = degrade(crop_HWC, np.random.default_rng(seed))
        assert detail(one) < 0.7 * detail(crop_HWC)
        assert np.abs(one.mean((0, 1)) - crop_HWC.mean((0, 1))).max() < 4  # the same picture, in the same colours


def test_the_generator_advances_by_as_many_numbers_each_time():
    states = set()
    for crop_HWC in (textured(8), textured(64)):
        for robust in (False, True):
            rng = np.random.default_rng(3)
            augment(crop_HWC, rng, robust)
            states.add((robust, rng.bit_generator.state["state"]["state"]))
    assert len(states) == 2
