import base64

import numpy as np
import pytest

from raydistal.verdict.drawing import STYLES, DrawnTrack, Painter, Yuv, step_between

WIDTH_PX, HEIGHT_PX = 640, 360


def track(number=1, verdict="fake", box=(200, 100, 320, 220), pts_s=(0.0, 0.25, 0.5), **more):
    boxes = more.pop("boxes", [box] * len(pts_s))
    about = {"track": number, "verdict": verdict, "probability": 0.93, "pts_s": list(pts_s), "box_xyxy_px": boxes}
    return DrawnTrack.read(about | more)


def grey(width_px=WIDTH_PX, height_px=HEIGHT_PX, luma=110):
    chroma = (height_px // 2, width_px // 2)
    return (
        np.full((height_px, width_px), luma, np.uint8),
        np.full(chroma, 128, np.uint8),
        np.full(chroma, 128, np.uint8),
    )


def drawn(*tracks, now_s=0.0, **frame):
    planes = grey(**frame)
    size = planes[0].shape[1], planes[0].shape[0]
    Painter(tracks, *size, is_bt709=True).draw(planes, now_s, size)
    return planes


def test_a_box_moves_evenly_between_looks_and_stays_for_half_a_step():
    moving = track(pts_s=[1.0, 1.25, 1.5], boxes=[[0, 0, 10, 10], [20, 0, 30, 10], [20, 40, 30, 50]])
    assert step_between([moving]) == 0.25
    at = {now_s: moving.at(now_s, 0.25) for now_s in (0.9, 1.0, 1.05, 1.2, 1.25, 1.375, 1.6)}
    assert [found[0].tolist() for found in at.values()] == [
        pytest.approx(box)
        for box in (
            [0, 0, 10, 10], [0, 0, 10, 10], [4, 0, 14, 10], [16, 0, 26, 10], [20, 0, 30, 10], [20, 20, 30, 30],
            [20, 40, 30, 50],
        )
    ]  # fmt: skip
    assert [found[1] for found in at.values()][:5] == [0, 0, 0, 1, 1]
    assert moving.at(0.87, 0.25) is None
    assert moving.at(1.63, 0.25) is None


def test_a_face_is_not_assumed_to_be_there_in_a_gap_unless_all_looks_are_far_apart():
    gone = track(pts_s=[0.0, 0.25, 0.5, 2.0, 2.25])
    assert [gone.at(now_s, step_between([gone])) is not None for now_s in (0.6, 0.7, 1.2, 1.8, 1.9)] == [1, 0, 0, 0, 1]
    short = track(pts_s=[0.0, 0.25, 1.2])
    assert short.at(0.7, 0.25) is not None
    sparse = track(pts_s=[0, 4, 8, 14])
    assert sparse.at(11, step_between([sparse])) is not None  # 6 s is 1.5 steps
    assert step_between([track(pts_s=[3.0])]) == 1.0


def test_sightings_may_come_in_any_order_and_bring_their_heat():
    heat = [base64.b64encode(bytes([value] * 4)).decode() for value in (9, 200)]
    mixed = track(pts_s=[1.0, 0.5], boxes=[[9, 9, 20, 20], [0, 0, 5, 5]], heat=heat, heat_shape=[2, 2], margin=0.3)
    assert mixed.pts_s_K.tolist() == [0.5, 1.0]
    assert mixed.boxes_K4[0].tolist() == [0, 0, 5, 5]
    assert mixed.heat_Khw[:, 0, 0].tolist() == [200, 9]


@pytest.mark.parametrize(
    ("is_bt709", "rgb", "yuv"),  # ITU-R BT.709 and BT.601, full-scale primaries
    [
        (True, (255, 0, 0), (63, 102, 240)),
        (True, (0, 255, 0), (173, 42, 26)),
        (False, (255, 0, 0), (81, 90, 240)),
        (False, (0, 0, 255), (41, 240, 110)),
        (True, (255, 255, 255), (235, 128, 128)),
    ],
)
def test_colours_are_those_of_the_standards(is_bt709, rgb, yuv):
    assert Yuv(is_bt709)(rgb) == yuv


def luminance(rgb):
    """WCAG 2.2."""
    parts = [value / 255 for value in rgb]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_labels_have_the_contrast_that_small_text_needs():
    for style in STYLES.values():
        dark, light = sorted([luminance(style.fill), luminance(style.text)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_verdicts_differ_in_their_lines_not_only_in_colour():
    pattern = {}
    for verdict in STYLES:
        luma = drawn(track(verdict=verdict))[0]
        edge = luma[219:221, 200:321].astype(int)  # the lower one: no label
        pattern[verdict] = (np.abs(edge - 110) > 12).any(0)
    assert pattern["fake"].all()
    for verdict in ("real", "unsure"):
        assert pattern[verdict][[0, 5, -6, -1]].all(), verdict
    changes = {verdict: int(np.count_nonzero(np.diff(marked.astype(int)))) for verdict, marked in pattern.items()}
    assert changes["real"] == 2, "two ends of corners"
    assert changes["unsure"] >= 6, "dashes"


def test_the_rest_of_the_frame_stays_to_the_bit():
    rng = np.random.default_rng(0)
    before = tuple(rng.integers(16, 235, plane.shape, dtype=np.uint8) for plane in grey())
    after = tuple(plane.copy() for plane in before)
    Painter([track()], WIDTH_PX, HEIGHT_PX, is_bt709=True).draw(after, 0.0, (WIDTH_PX, HEIGHT_PX))
    for old, new, part in zip(before, after, (1, 2, 2), strict=True):
        changed_y, changed_x = np.nonzero(old != new)
        in_note = changed_y > 330 / part
        assert part * changed_y.size >= 300
        assert changed_x[~in_note].min() * part >= 194
        assert changed_y[~in_note].min() * part >= 60
        inside = np.s_[110 // part : 210 // part, 210 // part : 310 // part]
        np.testing.assert_array_equal(old[inside], new[inside])
        np.testing.assert_array_equal(old[: 50 // part], new[: 50 // part])


def test_a_frame_without_a_face_in_sight_shows_the_note_only():
    planes = drawn(track(), now_s=9.0)
    assert (planes[0][:320] == 110).all()
    assert (planes[0][320:, 400:] != 110).any()


@pytest.mark.parametrize("size", [(640, 360), (360, 640), (3840, 2160), (96, 64)])
def test_labels_lie_inside_the_frame_wherever_the_face_is(size):
    width_px, height_px = size
    for x in (-0.2, 0, 0.4, 0.9):
        for y in (-0.2, 0, 0.4, 0.9):
            box = (x * width_px, y * height_px, (x + 0.25) * width_px, (y + 0.25) * height_px)
            painter = Painter([track(box=box)], width_px, height_px, is_bt709=True)
            inside_4 = painter._inside(painter.tracks[0].boxes_K4[0])
            places = painter._places({} if inside_4 is None else {painter.tracks[0]: inside_4})
            for _, (x0, y0, x1, y1) in places:
                assert 0 <= x0 < x1 <= width_px
                assert 0 <= y0 < y1 <= height_px


def test_labels_of_neighbours_do_not_hide_each_other():
    crowd = [track(number, "fake", (60 + 100 * number, 100, 150 + 100 * number, 190)) for number in (1, 2, 3, 4)]
    painter = Painter(crowd, WIDTH_PX, HEIGHT_PX, is_bt709=True)
    rects = [rect for _, rect in painter._places({one: painter._inside(one.boxes_K4[0]) for one in crowd})]
    assert len(rects) == 5, "four and the note"
    for place, (x0, y0, x1, y1) in enumerate(rects):
        for a0, b0, a1, b1 in rects[:place]:
            assert min(x1, a1) <= max(x0, a0) or min(y1, b1) <= max(y0, b0)


def test_labels_are_made_when_a_face_comes_into_sight_and_dropped_after():
    """A long video may have thousands of faces, most of them false ones."""
    first, second = track(1, pts_s=[0.0, 0.25, 0.5]), track(2, pts_s=[2.0, 2.25, 2.5])
    painter = Painter([first, second], WIDTH_PX, HEIGHT_PX, is_bt709=True)
    held = []
    for now_s in (0.1, 1.5, 2.1):
        painter.draw(grey(), now_s, (WIDTH_PX, HEIGHT_PX))
        held.append(list(painter._labels))
    assert held == [[first], [], [second]]


def test_a_box_that_leaves_the_frame_is_clipped_and_one_outside_is_not_drawn():
    partly = drawn(track(box=(-60, 100, 60, 220)))[0]
    assert (np.abs(partly[120:200, 1:4].mean(1) - 110) > 12).all(), "its edge is drawn at the frame's"
    assert (drawn(track(box=(-90, 100, -10, 220)))[0][:320] == 110).all()


def test_boxes_are_in_pixels_of_the_source_also_where_the_frame_is_scaled():
    planes = grey()
    Painter([track(box=(400, 200, 640, 440))], WIDTH_PX, HEIGHT_PX, is_bt709=True).draw(planes, 0.0, (1280, 720))
    same = drawn(track())
    for plane, other in zip(planes, same, strict=True):
        np.testing.assert_array_equal(plane, other)


def test_heat_colours_what_is_hot_and_leaves_the_cold_clear():
    values = np.zeros((8, 8), np.uint8)
    values[3:5, 3:5] = 255
    more = {"heat": [base64.b64encode(values.tobytes()).decode()] * 3, "heat_shape": [8, 8], "margin": 0.3}
    luma, _, redness = drawn(track(**more))
    without = drawn(track())
    centre = np.s_[150:170, 250:270]
    assert (luma[centre] > 130).all()
    assert (redness[75:85, 125:135] != 128).any()
    np.testing.assert_array_equal(luma[206:215, 205:315], without[0][206:215, 205:315])
    clear, colour = Yuv(True).heat()
    assert (np.diff((110.0 * clear[:, 0, 0] / 255 + colour[:, 0, 0])[160:]) >= -1).all(), "hotter is lighter"
    assert clear[30, 0, 0] == 255
    assert colour[30, 0, 0] == 0


def test_heat_covers_the_square_that_was_cut_out_or_the_box():
    box = np.array([200.0, 100, 320, 180])
    assert track(margin=0.5).area_of_heat(box, (640, 360)).tolist() == [140, 20, 380, 260]
    assert track(margin=None).area_of_heat(box, (640, 360)).tolist() == box.tolist()
