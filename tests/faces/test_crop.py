import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistal.errors import UserError
from raydistal.faces.crop import check_format, encode, resize, square_around


def test_golden_squares():
    assert square_around(np.array([40, 40, 60, 60], np.float32), 0.5, 100, 100) == (30, 30, 70, 70)
    assert square_around(np.array([0, 0, 20, 20], np.float32), 0.5, 100, 100) == (0, 0, 40, 40)  # moved inside
    assert square_around(np.array([90, 10, 110, 30], np.float32), 0, 100, 100) == (80, 10, 100, 30)
    assert square_around(np.array([0, 0, 200, 80], np.float32), 1, 80, 200) == (60, 0, 140, 80)  # as large as fits


@given(st.lists(st.floats(-50, 400), min_size=4, max_size=4), st.floats(0, 2), st.integers(1, 300), st.integers(1, 300))
def test_square_lies_in_the_frame(box, margin, height_px, width_px):
    x0, y0, x1, y1 = square_around(np.array(box, np.float32), margin, height_px, width_px)
    assert 0 <= x0 < x1 <= width_px
    assert 0 <= y0 < y1 <= height_px
    assert x1 - x0 == y1 - y0


def test_resize_averages_when_it_shrinks():
    checker_HWC = np.indices((80, 80)).sum(0)[..., None].repeat(3, 2) % 2 * 255
    assert np.ptp(resize(checker_HWC.astype(np.uint8), 20)) == 0  # every pixel the mean of black and white: no moire
    assert resize(np.full((10, 10, 3), 7, np.uint8), 20).tolist() == np.full((20, 20, 3), 7).tolist()


def test_png_keeps_every_pixel_and_jpeg_nearly():
    crop_HWC = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), (9, 9), 3)
    decode = lambda content: cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), 1), cv2.COLOR_BGR2RGB)  # noqa: E731
    np.testing.assert_array_equal(decode(encode(crop_HWC, "png")), crop_HWC)
    jpeg = encode(crop_HWC, "jpeg:95")
    assert jpeg[:2] == b"\xff\xd8"
    assert 0 < np.abs(decode(jpeg).astype(int) - crop_HWC).mean() < 3


@pytest.mark.parametrize("crops", ["", "PNG", "jpeg", "jpeg:0", "jpeg:101", "jpeg:x", "webp", "95"])
def test_unknown_formats(crops):
    with pytest.raises(UserError, match="png, jpeg:QUALITY"):
        check_format(crops)
