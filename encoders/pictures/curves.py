"""Curves of numbers over steps, and bars of numbers side by side, as pictures."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from PIL import Image

from vision_core.errors import UserError


def curve_picture(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    ylabel: str,
    references: Mapping[str, float] | None = None,
) -> Image.Image:
    """A picture of curves `{name: (steps, values)}` and of dashed horizontal references. Raises
    UserError where matplotlib is missing."""
    figure, axes = _figure_and_axes()
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name, marker="o" if len(steps) < 30 else None, markersize=4)
    for number, (name, value) in enumerate((references or {}).items(), start=len(curves)):
        label = f"{name} ({value:.1f})"
        axes.axhline(value, label=label, linestyle="--", linewidth=1, color=f"C{number}")
    axes.set(title=title, xlabel="step", ylabel=ylabel)
    return _draw(figure, axes, legend=bool(curves or references))


def bar_picture(groups: Mapping[str, Mapping[str, float]], title: str, ylabel: str) -> Image.Image:
    """A picture of groups of bars `{group: {name: value}}`; a name has the same colour in every
    group. Raises UserError where matplotlib is missing."""
    figure, axes = _figure_and_axes()
    names = list(dict.fromkeys(chain.from_iterable(groups.values())))
    width = 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        offset = (number - (len(names) - 1) / 2) * width
        places = []
        heights = []
        for place, values in enumerate(groups.values()):
            if name in values:
                places.append(place + offset)
                heights.append(values[name])
        axes.bar(places, heights, width, label=name, color=f"C{number}")
    axes.set(title=title, ylabel=ylabel, xticks=range(len(groups)), xticklabels=groups)
    return _draw(figure, axes, legend=bool(names))


def _figure_and_axes() -> tuple[Any, Any]:
    """An empty figure of matplotlib and its axes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("curves need matplotlib; pip install 'vision-encoder-fusion[pretrain]'") from None
    figure = Figure(figsize=(8, 4), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _draw(figure: Any, axes: Any, legend: bool) -> Image.Image:
    """The finished figure as a picture."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.canvas.draw()
    size = figure.canvas.get_width_height()
    return Image.frombuffer("RGBA", size, figure.canvas.buffer_rgba()).convert("RGB")
