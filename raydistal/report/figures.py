"""The figures of a report, as PNG. K videos in the order of the ranking; B bins of a histogram; G groups of bars."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ints = npt.NDArray[np.int64]

CLASSES = ("real", "fake")  # by label


@dataclass(frozen=True)
class Theme:
    """Colours of the page and of the figures on it. Text on `panel` has a contrast of at least 4.5."""

    ground: str
    panel: str
    ink: str
    muted: str
    line: str
    accent: str
    pale: str
    real: str
    fake: str


LIGHT = Theme("#f3f5f7", "#ffffff", "#16202a", "#566370", "#dce2e8", "#2d5080", "#b9c4d0", "#0b6e82", "#b5430f")
DARK = Theme("#0e1318", "#161d24", "#e3e9ef", "#9aa8b6", "#2b3642", "#8cb4e8", "#4a5866", "#56c2d6", "#ff9463")

WIDE_IN, NARROW_IN = 10.6, 4.0  # at 96 px per inch: the width of the page's column on a wide screen and on a phone
DPI = 192
MAX_STRIP_COLUMNS = 600
MAX_NAME = (34, 20)  # characters of a name in a wide and in a narrow figure
# Lines and bars differ by colour and by dash, marker or hatch, whose numbers share no factor.
SERIES_COLOURS = ("accent", "fake", "real", "muted")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.2)))
MARKERS = ("o", "^", "s", "D", "v")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx")

Draw = Callable[[Theme, float], "Figure"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure as PNG files for bright and dark, wide and narrow displays."""

    name: str
    alt: str
    light: bytes
    dark: bytes
    light_narrow: bytes
    dark_narrow: bytes


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Axes with points on them, of which some are marked; `joins_marked`: by a line, from left to right."""

    xlabel: str
    ylabel: str
    x_N: Sequence[float]
    y_N: Sequence[float]
    is_marked_N: Sequence[bool]
    joins_marked: bool = False


Values = Sequence[float | None]  # None where there is no value


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. With `low` and `high`, each point has an error bar."""

    name: str
    x: Sequence[float]
    y: Values
    low: Values = ()
    high: Values = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Axes with lines on them. `unit_square`: both axes go from 0 to 1, with the diagonal drawn."""

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    ylim: tuple[float, float] | None = None
    is_log_x: bool = False
    unit_square: bool = False
    mark: tuple[float, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Bars:
    """The bars of one series, one per group, with error bars where `low` and `high` are given."""

    name: str
    value_G: Values
    low_G: Values = ()
    high_G: Values = ()


def picture(name: str, alt: str, draw: Draw) -> Picture:
    """Draws a figure four times. `alt` says in words what it shows."""
    return Picture(
        name=name,
        alt=alt,
        light=_png(draw(LIGHT, WIDE_IN)),
        dark=_png(draw(DARK, WIDE_IN)),
        light_narrow=_png(draw(LIGHT, NARROW_IN)),
        dark_narrow=_png(draw(DARK, NARROW_IN)),
    )


def frequency(theme: Theme, width_in: float, *, count_K: Ints, label_K: Ints, num_kept: int) -> "Figure":
    """Representative frames per video, the first `num_kept` videos marked: figures 2 and 3 of the paper.

    A strip below shows the class of each video, or the share of each class where videos lie too dense to be told apart.
    """
    figure = _figure(theme, width_in, 3.6)
    axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
    num_videos = len(count_K)
    _stems(axes, count_K, num_kept, theme.accent, theme.pale, width_in)
    _style(axes, theme, ylabel="representative frames")
    if 0 < num_kept < num_videos:
        _mark(axes, theme, num_kept + 0.5, f"distilled: first {num_kept:,} of {num_videos:,}")
    strip.imshow(_class_strip(label_K, theme), extent=(0.5, num_videos + 0.5, 2, 0), aspect="auto")
    strip.axhline(1, color=theme.panel, linewidth=2)
    _style(strip, theme, xlabel="videos, by rank")
    strip.grid(False)
    strip.set_yticks([0.5, 1.5], CLASSES)
    return figure


def frequency_by_class(theme: Theme, width_in: float, *, count_K: Ints, label_K: Ints, num_kept: int) -> "Figure":
    """The same for real and fake videos apart: figures 4 and 5 of the paper."""
    figure, panels = _two_panels(theme, width_in, sharey=True)
    for label, (name, axes) in enumerate(zip(CLASSES, panels, strict=True)):
        count_C = count_K[label_K == label]
        num_kept_C = int(np.count_nonzero(label_K[:num_kept] == label))
        _stems(axes, count_C, num_kept_C, getattr(theme, name), theme.pale, min(width_in, WIDE_IN / 2))
        title = f"{name}: {count_C.sum():,} frames in {len(count_C):,} videos"
        _style(axes, theme, title=title, xlabel=f"{name} videos, by rank", ylabel="representative frames")
        if 0 < num_kept_C < len(count_C):
            _mark(axes, theme, num_kept_C + 0.5, f"distilled: {num_kept_C:,}")
    return figure


def uncertainty(
    theme: Theme, width_in: float, *, edges: list[float], counts: dict[str, list[int]], thresholds: list[float | None]
) -> "Figure":
    """Histograms (B + 1 edges, B counts per class), each with the lowest uncertainty selected, if it is one value."""
    figure, panels = _two_panels(theme, width_in, sharey=False)
    for name, threshold, axes in zip(CLASSES, thresholds, panels, strict=True):
        colour, count_B = getattr(theme, name), np.asarray(counts[name])
        axes.stairs(count_B, edges, fill=True, color=colour if threshold is None else theme.pale)
        _style(axes, theme, title=f"{name}: {count_B.sum():,} faces", xlabel="uncertainty", ylabel="faces")
        axes.set_xlim(edges[0], edges[-1])
        if count_B.max() > 500:  # few are selected out of many: a linear axis would hide them
            axes.set(yscale="log", ylim=(0.5, 4 * count_B.max()), ylabel="faces (log scale)")
        else:
            axes.set_ylim(0, 1.15 * max(1, count_B.max()))
            axes.locator_params(axis="y", integer=True)
        if threshold is not None:
            selected = axes.stairs(count_B, edges, fill=True, color=colour)
            selected.set_clip_path(axes.axvspan(threshold, edges[-1], visible=False))
            _mark(axes, theme, threshold, f"selected from {threshold:.3g}")
    return figure


def curves(theme: Theme, width_in: float, *, panels: Sequence[Panel]) -> "Figure":
    """Panels of lines; a line of the same name looks the same on all of them, and is named once, below."""
    is_wide = width_in >= WIDE_IN
    rows, columns = (1, len(panels)) if is_wide else (len(panels), 1)
    height_in = 0.45 + (3.9 if any(panel.unit_square for panel in panels) else 2.9) * (rows if not is_wide else 1)
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    figure = _figure(theme, width_in, height_in)
    for panel, axes in zip(panels, figure.subplots(rows, columns, squeeze=False).flat, strict=True):
        _style(axes, theme, title=_text(panel.title, width_in), xlabel=panel.xlabel, ylabel=panel.ylabel)
        if panel.unit_square:
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, linestyle=":")
        for line in panel.lines:
            _draw_line(axes, theme, line, names.index(line.name), panel.is_log_x)
        if panel.is_log_x:
            _log_axis(axes, sorted({x for line in panel.lines for x in line.x}))
        elif not panel.unit_square:
            axes.locator_params(axis="x", integer=True)
        if panel.ylim:
            axes.set_ylim(*panel.ylim)
        if panel.mark:
            _mark(axes, theme, *panel.mark)
    _legend(figure, theme, names, [_look(theme, number) | {"markersize": 5} for number in range(len(names))])
    return figure


def grouped_bars(
    theme: Theme,
    width_in: float,
    *,
    groups: Sequence[str],
    bars: Sequence[Bars],
    xlabel: str,
    line: tuple[float, str] | None = None,
) -> "Figure":
    """Shares as bars from 0 to 100 % or more, side by side within each group; `line`: a value to compare with.

    They are horizontal, so that long names and many bars fit on a phone.
    """
    from matplotlib.ticker import PercentFormatter

    is_there_SG = np.array([[value is not None for value in series.value_G] for series in bars])
    num_bars = max(1, is_there_SG.sum(axis=0).max(initial=0))
    thickness = 0.8 / num_bars
    figure = _figure(theme, width_in, 1.2 + len(groups) * max(0.38, 0.19 * num_bars))
    axes = figure.subplots()
    _style(axes, theme, xlabel=xlabel)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=theme.line, linewidth=0.8)
    place_SG = (np.cumsum(is_there_SG, axis=0) - 1) - (is_there_SG.sum(axis=0) - 1) / 2  # no gap where one is missing
    for number, series in enumerate(bars):
        value_G = np.array(series.value_G, float)
        y_G = np.arange(len(groups)) + place_SG[number] * thickness
        axes.barh(y_G, value_G, 0.92 * thickness, **_fill(theme, number))
        if series.low_G and series.high_G:
            reach_2G = np.abs(np.array([series.low_G, series.high_G], float) - value_G)
            for colour, linewidth in ((theme.panel, 2.4), (theme.ink, 1.2)):  # visible on the bar and beside it
                axes.errorbar(
                    value_G, y_G, xerr=reach_2G, fmt="none", ecolor=colour, elinewidth=linewidth, capsize=linewidth
                )
    longest = max(value or 0 for series in bars for value in (*series.value_G, *series.high_G))
    axes.set(xlim=(0, 1.04 * max(1, longest)), ylim=(len(groups) - 0.5, -0.5))
    axes.set_yticks(range(len(groups)), [_text(group, width_in) for group in groups], color=theme.ink)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    if line:
        axes.set_ylim(len(groups) - 0.5, -0.9)
        _mark(axes, theme, *line)
    _legend(figure, theme, [series.name for series in bars], [_fill(theme, number) for number in range(len(bars))])
    return figure


def intervals(
    theme: Theme,
    width_in: float,
    *,
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    xlabel: str,
    margin: float,
) -> "Figure":
    """N differences with their intervals, one below the other, in points (hundredths): against 0, and the margin.

    Of `rows`, difference, low and high are read.
    """
    figure = _figure(theme, width_in, 1.0 + 0.42 * len(names))
    axes = figure.subplots()
    _style(axes, theme, xlabel=xlabel)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=theme.line, linewidth=0.8)
    value_N, low_N, high_N = (
        100 * np.array([row[name] for row in rows], float) for name in ("difference", "low", "high")
    )
    y_N = np.arange(len(names))
    axes.axvspan(-100 * margin, 0, color=theme.pale, alpha=0.35, linewidth=0)
    axes.axvline(0, color=theme.ink, linewidth=1)
    for is_worse, colour in ((True, theme.fake), (False, theme.accent)):
        some = (high_N < 0) == is_worse
        reach_2N = np.abs(np.array([low_N, high_N])[:, some] - value_N[some])
        marker = MARKERS[1 if is_worse else 0]
        axes.errorbar(
            value_N[some], y_N[some], xerr=reach_2N, fmt=marker, color=colour, markersize=5, elinewidth=1.4, capsize=3
        )
    low, high = min(low_N.min(initial=0), -100 * margin), max(high_N.max(initial=0), 1.0)
    axes.set(xlim=(low - 0.05 * (high - low), high + 0.05 * (high - low)), ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks(y_N, [_text(name, width_in) for name in names], color=theme.ink)
    return figure


def clouds(theme: Theme, width_in: float, *, clouds: Sequence[Cloud], marked: str, others: str) -> "Figure":
    """Points, three clouds to a row; the marked ones stand out and are called `marked`."""
    columns = min(3, len(clouds)) if width_in >= WIDE_IN else 1
    rows = -(-len(clouds) // columns)
    figure = _figure(theme, width_in, 0.45 + 2.9 * rows)
    looks: list[dict[str, Any]] = [
        {"color": theme.accent, "marker": "D", "linestyle": "none"},
        {"color": theme.muted, "marker": "o", "linestyle": "none", "markerfacecolor": "none"},
    ]
    every_axes = figure.subplots(rows, columns, squeeze=False).flat
    for cloud, axes in zip(clouds, every_axes, strict=False):
        _style(axes, theme, xlabel=cloud.xlabel, ylabel=cloud.ylabel)
        x_N, y_N, is_marked_N = (np.array(values) for values in (cloud.x_N, cloud.y_N, cloud.is_marked_N))
        axes.plot(x_N[~is_marked_N], y_N[~is_marked_N], **looks[1], markersize=4.5)
        front = np.flatnonzero(is_marked_N)[np.argsort(x_N[is_marked_N], kind="stable")]
        look = looks[0] | ({"linestyle": "-", "linewidth": 1.2} if cloud.joins_marked else {})
        axes.plot(x_N[front], y_N[front], **look, markersize=5.5)
        axes.margins(0.08)
        if max(cloud.y_N, default=2) <= 1:  # values are shares
            axes.set_ylim(top=min(1.005, axes.get_ylim()[1]))
        texts = {value: f"{value:g}" for value in sorted(set(cloud.x_N))}
        if len(texts) <= 6 and max(map(len, texts.values()), default=0) <= 4:  # few values, chosen by a person
            axes.set_xticks(list(texts), list(texts.values()))
    for axes in every_axes:  # unused ones
        axes.set_axis_off()
    _legend(figure, theme, [marked, others], [look | {"markersize": 5} for look in looks])
    return figure


def _draw_line(axes: "Axes", theme: Theme, line: Line, number: int, is_log_x: bool) -> None:
    look = _look(theme, number)
    x_N, y_N = np.array(line.x, float), np.array(line.y, float)
    if line.low and is_log_x:
        x_N *= 1.03**number  # beside those of other lines, not on them
    every = max(1, -(-len(x_N) // 12))
    axes.plot(x_N, y_N, **look, markersize=4, markevery=(number % every, every), clip_on=False, zorder=3)
    if line.low and line.high:
        reach_2N = np.abs(np.array([line.low, line.high], float) - y_N)
        axes.errorbar(x_N, y_N, yerr=reach_2N, fmt="none", ecolor=look["color"], elinewidth=1.2, capsize=3)


def _log_axis(axes: "Axes", values: list[float]) -> None:
    """A logarithmic x axis with a tick at each of these values that has room."""
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = values[:1]
    for value in values[1:]:
        if value > 1.6 * ticks[-1]:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{value:,.0f}" for value in ticks])


def _look(theme: Theme, number: int) -> dict[str, Any]:
    """How the line of a series is drawn."""
    return {
        "color": getattr(theme, SERIES_COLOURS[number % len(SERIES_COLOURS)]),
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "linewidth": 1.6,
    }


def _fill(theme: Theme, number: int) -> dict[str, Any]:
    """How the bars of a series are filled."""
    return {
        "facecolor": getattr(theme, SERIES_COLOURS[number % len(SERIES_COLOURS)]),
        "edgecolor": theme.panel,  # colour of the hatching
        "hatch": HATCHES[number % len(HATCHES)],
        "linewidth": 0,
    }


def _legend(figure: "Figure", theme: Theme, names: Sequence[str], looks: list[dict[str, Any]]) -> None:
    """The series below the figure, in as many columns as fit; nothing if there is one only."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if len(names) < 2:
        return
    handles = [Patch(**look) if "hatch" in look else Line2D([], [], **look) for look in looks]
    width_in = figure.get_figwidth()
    texts = [_text(name, width_in) for name in names]
    columns = max(1, int(width_in / (0.7 + 0.075 * max(map(len, texts)))))
    figure.legend(
        handles,
        texts,
        loc="outside lower left",
        ncols=min(columns, len(names)),
        fontsize=9,
        labelcolor=theme.ink,
        frameon=False,
        handlelength=2.6,
        borderpad=0.2,
    )


def _text(name: str, width_in: float) -> str:
    """A name from outside as safe text: short, no formula, nothing invisible, not hidden by a leading underscore."""
    longest = MAX_NAME[0 if width_in >= WIDE_IN else 1]
    lines = []
    for line in name.split("\n"):
        shown = "".join(char if char.isprintable() else "?" for char in line)
        if len(shown) > longest:  # in the middle: names may differ only at the end, by a seed
            shown = f"{shown[: longest // 2]}…{shown[1 + longest // 2 - longest :]}"
        lines.append(("\u200a" if shown.startswith("_") else "") + shown.replace("$", r"\$"))
    return "\n".join(lines)


def _figure(theme: Theme, width_in: float, height_in: float) -> "Figure":
    from matplotlib.figure import Figure  # no pyplot: nothing is shared between threads

    return Figure(figsize=(width_in, height_in), dpi=DPI, facecolor=theme.panel, layout="constrained")


def _two_panels(theme: Theme, width_in: float, sharey: bool) -> tuple["Figure", "list[Axes]"]:
    """Real and fake, side by side if there is room."""
    if width_in < WIDE_IN:
        figure = _figure(theme, width_in, 5.0)
        return figure, list(figure.subplots(2, 1, sharey=sharey))
    figure = _figure(theme, width_in, 2.9)
    return figure, list(figure.subplots(1, 2, sharey=sharey))


def _stems(axes: "Axes", count_K: Ints, num_kept: int, kept: str, dropped: str, width_in: float) -> None:
    """A bar per video. Lines, not rectangles: those take minutes for 100,000 videos."""
    num_videos = max(1, len(count_K))
    rank_K = np.arange(1, len(count_K) + 1)
    pitch = 72 * 0.88 * width_in / num_videos  # points
    linewidth = max(0.5, min(48, 0.7 * pitch if pitch > 4 else 1.5 * pitch))  # gaps only where they can be seen
    for part, colour in ((slice(num_kept), kept), (slice(num_kept, None), dropped)):
        axes.vlines(rank_K[part], 0, count_K[part], colors=colour, linewidth=linewidth, capstyle="butt")
    axes.set_xlim(0.5, num_videos + 0.5)
    top = 1.12 * max(1, count_K.max(initial=0))
    axes.set_ylim(0, max(top, axes.get_ylim()[1]))  # panels share the axis
    axes.locator_params(axis="both", integer=True)
    if not len(count_K):
        axes.set_xticks([])


def _class_strip(label_K: Ints, theme: Theme) -> npt.NDArray[np.float64]:
    """(2, columns, RGBA): in row 0 the share of real videos as opacity, in row 1 that of fake ones."""
    from matplotlib.colors import to_rgb

    num_columns = min(len(label_K), MAX_STRIP_COLUMNS)
    column_K = np.arange(len(label_K)) * num_columns // len(label_K)
    num_fake = np.bincount(column_K, label_K, num_columns) / np.bincount(column_K, minlength=num_columns)
    return np.stack(
        [
            np.column_stack([np.tile(to_rgb(colour), (num_columns, 1)), share])
            for colour, share in ((theme.real, 1 - num_fake), (theme.fake, num_fake))
        ]
    )


def _mark(axes: "Axes", theme: Theme, x: float, text: str) -> None:
    """A dashed vertical line with its meaning beside it, on the side that has room."""
    low, high = axes.get_xlim()
    is_right = x > (low + high) / 2
    axes.axvline(x, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        text,
        (x, 1),
        (-6 if is_right else 6, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="top",
        color=theme.ink,
        fontsize=9,
        bbox={"facecolor": theme.panel, "edgecolor": "none", "pad": 1},
    )


def _style(axes: "Axes", theme: Theme, title: str = "", **labels: str) -> None:
    axes.set(**labels)
    axes.set_title(title, loc="left", color=theme.ink, fontsize=10)
    axes.set_facecolor(theme.panel)
    axes.grid(axis="y", color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=theme.muted, labelsize=9, length=0)
    axes.xaxis.label.set(color=theme.muted, fontsize=9)
    axes.yaxis.label.set(color=theme.muted, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.line)


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
