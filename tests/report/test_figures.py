from functools import partial

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from raydistal.report import figures
from raydistal.report.figures import DARK, LIGHT, NARROW_IN, WIDE_IN, Bars, Cloud, Line, Panel

COUNT_K = np.array([7, 5, 5, 2, 0, 0])
LABEL_K = np.array([1, 0, 1, 1, 0, 1])
RANKED = {"count_K": COUNT_K, "label_K": LABEL_K, "num_kept": 2}


def pixels(png):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def bars(axes):
    """(rank, height, colour) of each bar, kept ones first."""
    return [
        (segment[1][0], segment[1][1], to_hex(lines.get_color()[0]))
        for lines in axes.collections
        for segment in lines.get_segments()
    ]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_frequency_shows_every_video_by_rank_and_where_the_distilled_set_ends():
    main, strip = figures.frequency(LIGHT, WIDE_IN, **RANKED).axes
    colours = [LIGHT.accent] * 2 + [LIGHT.pale] * 4
    assert bars(main) == [(rank + 1, COUNT_K[rank], colours[rank]) for rank in range(6)]
    assert texts(main) == ["distilled: first 2 of 6"]
    assert main.lines[0].get_xdata()[0] == 2.5
    (classes,) = strip.images
    real, fake = classes.get_array()
    np.testing.assert_allclose(real[:, 3], LABEL_K == 0)
    np.testing.assert_allclose(fake[:, 3], LABEL_K == 1)
    np.testing.assert_allclose(real[0, :3], to_rgb(LIGHT.real))
    np.testing.assert_allclose(fake[0, :3], to_rgb(LIGHT.fake))


def test_a_strip_of_more_videos_than_columns_shows_shares():
    label_K = np.repeat([0, 1, 0, 1], [600, 600, 300, 300])
    rgba = figures._class_strip(label_K, LIGHT)
    assert rgba.shape == (2, 600, 4)
    np.testing.assert_allclose(rgba[0, :, 3] + rgba[1, :, 3], 1)
    assert rgba[1, :, 3].mean() == pytest.approx(0.5)
    assert (rgba[1, :200, 3] == 0).all()
    assert (rgba[1, 200:400, 3] == 1).all()


@pytest.mark.parametrize("num_kept", [0, 6])
def test_nothing_is_marked_when_none_or_all_are_distilled(num_kept):
    main, _ = figures.frequency(LIGHT, WIDE_IN, **RANKED | {"num_kept": num_kept}).axes
    assert texts(main) == []
    assert {colour for *_, colour in bars(main)} == {LIGHT.accent if num_kept else LIGHT.pale}


def test_frequency_by_class():
    real, fake = figures.frequency_by_class(DARK, WIDE_IN, **RANKED).axes
    assert bars(real) == [(1, 5, DARK.real), (2, 0, DARK.pale)]
    assert bars(fake) == [(1, 7, DARK.fake), (2, 5, DARK.pale), (3, 2, DARK.pale), (4, 0, DARK.pale)]
    assert [real.get_title("left"), fake.get_title("left")] == [
        "real: 5 frames in 2 videos",
        "fake: 14 frames in 4 videos",
    ]
    assert texts(real) + texts(fake) == ["distilled: 1", "distilled: 1"]


def test_panels_show_their_highest_bars_on_one_scale():
    for highest in (0, 1):
        count_K = np.where(np.equal(LABEL_K, highest), 9, 1)
        panels = figures.frequency_by_class(DARK, NARROW_IN, count_K=count_K, label_K=LABEL_K, num_kept=2).axes
        assert [axes.get_ylim() for axes in panels] == [pytest.approx((0, 1.12 * 9))] * 2


def test_uncertainty_marks_what_was_selected():
    counts = {"real": [3, 1, 2], "fake": [0, 900, 1]}
    figure = figures.uncertainty(LIGHT, WIDE_IN, edges=[0.0, 0.2, 0.4, 0.6], counts=counts, thresholds=[0.3, None])
    real, fake = figure.axes
    every, selected = (patch for patch in real.patches if hasattr(patch, "get_data"))
    assert every.get_data().values.tolist() == selected.get_data().values.tolist() == [3, 1, 2]
    assert texts(real) == ["selected from 0.3"]
    assert [real.get_yscale(), fake.get_yscale()] == ["linear", "log"]
    assert texts(fake) == []
    image = pixels(figures._png(figure))
    columns = np.flatnonzero((np.abs(image - 255 * np.array(to_rgb(LIGHT.real))).max(axis=2) < 3).any(axis=0))
    left = real.transData.transform((0.3, 0))[0]
    right = real.transData.transform((0.6, 0))[0]
    assert columns.min() == pytest.approx(left, abs=2)  # the colour of what was selected starts at the threshold
    assert columns.max() == pytest.approx(right, abs=2)


def test_a_class_without_videos_or_faces_is_an_empty_panel():
    real, fake = figures.frequency_by_class(
        LIGHT, NARROW_IN, count_K=np.array([2, 1]), label_K=np.array([1, 1]), num_kept=1
    ).axes
    assert bars(real) == []
    assert len(bars(fake)) == 2
    counts = {"real": [0, 0], "fake": [1, 2]}
    figures._png(figures.uncertainty(LIGHT, WIDE_IN, edges=[0.0, 0.5, 1.0], counts=counts, thresholds=[None, 0.0]))


def test_lines_differ_by_more_than_colour_and_look_the_same_on_all_panels():
    def line(name):
        return Line(name=name, x=[0.0, 0.5, 1.0], y=[0.0, None, 1.0])

    names = [f"detector {number}" for number in range(8)]
    panels = [
        Panel(title="ROC", xlabel="x", ylabel="y", lines=[line(name) for name in names], unit_square=True),
        Panel(title="", xlabel="x", ylabel="y", lines=[line(names[7]), line(names[2])], mark=(0.5, "here")),
    ]
    figure = figures.curves(LIGHT, WIDE_IN, panels=panels)
    roc, other = figure.axes
    diagonal, *curves = roc.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert curves[3].get_xydata()[[0, 2]].tolist() == [[0, 0], [1, 1]]
    assert np.isnan(curves[3].get_ydata()[1])
    looks = [(one.get_color(), one.get_marker()) for one in curves]
    assert [(one.get_color(), one.get_marker()) for one in other.lines[:2]] == [looks[7], looks[2]]
    dashes_and_markers = [(look["linestyle"], look["marker"]) for look in (figures._look(LIGHT, n) for n in range(8))]
    assert len(set(looks)) == len(set(dashes_and_markers)) == 8
    assert texts(other) == ["here"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names


def test_error_bars_and_a_logarithmic_axis():
    line = Line(name="a", x=[100, 120, 1000], y=[0.5, 0.6, 0.8], low=[0.4, None, 0.7], high=[0.7, None, 0.85])
    panel = Panel(title="", xlabel="faces", ylabel="accuracy", lines=[line], is_log_x=True)
    (axes,) = figures.curves(DARK, NARROW_IN, panels=[panel]).axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["100", "1,000"]  # no room for 120
    reach = [segment[:, 1].tolist() for segment in axes.collections[0].get_segments() if len(segment)]
    assert reach == [pytest.approx([0.4, 0.7]), pytest.approx([0.7, 0.85])]


def test_bars_of_a_group_stand_together():
    bars = [
        Bars(name="full", value_G=[0.9, None]),
        Bars(name="b", value_G=[None, 0.7]),
        Bars(name="c", value_G=[None, 0.6]),
    ]
    figure = figures.grouped_bars(LIGHT, WIDE_IN, groups=["g", "h"], bars=bars, xlabel="accuracy", line=(0.5, "chance"))
    (axes,) = figure.axes
    drawn = [(bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in axes.patches if bar.get_width() > 0]
    assert drawn == [(0.9, pytest.approx(0)), (0.7, pytest.approx(0.8)), (0.6, pytest.approx(1.2))]
    assert len({bar.get_hatch() for bar in axes.patches}) == 3
    assert texts(axes) == ["chance"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["g", "h"]


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no Chinese
@pytest.mark.parametrize("name", [r"$\frac{", "$x^{2}$", "_hidden", "\u202egpj", "a" * 99, "日本", "a\\$b$"])
def test_hostile_names_are_drawn_as_they_are(name):
    lines = [Line(name=each, x=[0.0, 1.0], y=[0.0, 1.0]) for each in (name, "other")]
    figure = figures.curves(LIGHT, NARROW_IN, panels=[Panel(title=name, xlabel="", ylabel="", lines=lines)])
    figures._png(figure)
    (legend,) = figure.legends
    shown, _ = legend.get_texts()
    assert not shown.get_window_extent().width > figures.NARROW_IN * figures.DPI
    assert len(legend.get_texts()) == 2
    bars = [Bars(name=name, value_G=[0.5]), Bars(name="other", value_G=[0.5])]
    figures._png(figures.grouped_bars(LIGHT, NARROW_IN, groups=[name], bars=bars, xlabel=""))


def test_names_in_figures():
    assert figures._text("$x^{2}$", WIDE_IN) == r"\$x^{2}\$"
    assert figures._text("_a\u202e\nb", WIDE_IN) == "\u200a_a?\nb"
    assert figures._text("a" * 30, WIDE_IN) == "a" * 30
    assert figures._text("a" * 15 + "b" * 15, NARROW_IN) == "a" * 10 + "…" + "b" * 9


@pytest.mark.slow
def test_picture_is_drawn_for_bright_and_dark_wide_and_narrow():
    picture = figures.picture("frequency", "bars", partial(figures.frequency, **RANKED))
    images = [pixels(png) for png in (picture.light, picture.dark, picture.light_narrow, picture.dark_narrow)]
    widths = [round(width_in * figures.DPI) for width_in in (WIDE_IN, WIDE_IN, NARROW_IN, NARROW_IN)]
    assert [image.shape[1] for image in images] == widths
    corners = ["#{:02x}{:02x}{:02x}".format(*image[0, 0]) for image in images]
    assert corners == [LIGHT.panel, DARK.panel] * 2


def luminance(colour):
    channels = np.array(to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "accent", "real", "fake"])
def test_text_has_enough_contrast(theme, name):
    """WCAG 2.2, 1.4.3."""
    for background in (theme.panel, theme.ground):
        dark, bright = sorted([luminance(getattr(theme, name)), luminance(background)])
        assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_places_without_a_cloud_are_empty():
    cloud = Cloud(xlabel="x", ylabel="y", x_N=[1, 2], y_N=[0.5, 0.6], is_marked_N=[True, False])
    figure = figures.clouds(LIGHT, WIDE_IN, clouds=[cloud] * 4, marked="front", others="other")
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2
