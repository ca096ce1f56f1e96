import numpy as np
import pytest

from raydistal.faces.overlay import OPACITY, overlay

LUMA = [0.299, 0.587, 0.114]


def test_without_heat_it_is_the_face_in_grey():
    face_HWC = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    drawn_HWC = overlay(face_HWC, np.zeros((3, 3), np.float32)).astype(int)
    assert drawn_HWC.shape == (20, 30, 3)
    assert np.ptp(drawn_HWC, axis=2).max() <= 3
    np.testing.assert_allclose(drawn_HWC[..., 0], (1 - OPACITY) * (face_HWC @ LUMA), atol=2)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_the_hotter_the_brighter(grey):
    drawn_HWC = overlay(np.full((8, 256, 3), grey, np.uint8), np.linspace(0, 1, 64)[None]).astype(int)
    luminance_W = drawn_HWC[0] @ LUMA
    assert np.diff(luminance_W[::8]).min() > 0
    assert luminance_W[-1] > luminance_W[0] + 100
    red, _, blue = drawn_HWC[0, 190]
    assert red > blue + 60  # RGB, not BGR


def test_it_lies_where_the_heat_is():
    heat_hw = np.zeros((7, 7), np.float32)
    heat_hw[1, 5] = 1
    drawn_HWC = overlay(np.zeros((224, 224, 3), np.uint8), heat_hw)
    row, column = np.unravel_index(drawn_HWC.sum(axis=2).argmax(), (224, 224))
    assert (row // 32, column // 32) == (1, 5)
    assert drawn_HWC[112:].max() <= 3
