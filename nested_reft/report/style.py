"""The style of all figures, and how they are written."""

import textwrap
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a cluster
import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442"]  # Okabe and Ito's
BASELINE = "#444444"
# The width of a figure in inches. A page shows it 830 pixels wide or wider, so that no text is below 8 points.
WIDTH = 8.6
SMALL = 8  # points, the smallest text
# The lines of the two bounds of a speed-up: wide below narrow, because they nearly coincide.
BOUND: dict[str, Any] = {"color": "#999999", "linewidth": 4, "alpha": 0.6}
LM_HEAD_BOUND: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": "--"}

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    # The text of an SVG is text: a reader without the first font sees the next.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "nested-reft",  # the same figure gives the same file
    "svg.fonttype": "none",
    "figure.dpi": 150,
}


def add_note(figure: Figure, note: str) -> None:
    """Write a note in small print above the panels; the figure grows by the height of the note."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(note, int(width / 0.068), break_on_hyphens=False)  # a letter of 8 points: 0.068 inches
    figure.set_size_inches(width, height + 0.16 * len(lines))
    figure.suptitle("\n".join(lines), fontsize=SMALL, color=BASELINE)


def as_svg(figure: Figure, note: str = "") -> str:
    """Return the text of the figure's SVG file, with a note above its panels; the layout is final then."""
    text = StringIO()
    with plt.rc_context(STYLE):  # matplotlib reads a part of the style when a figure is written
        if note:
            add_note(figure, note)
        if layout := figure.get_layout_engine():
            layout.execute(figure)
        figure.set_layout_engine("none")  # other files of the figure get the same layout
        # `figure.savefig` would draw the figure once more, because of the layout engine.
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def save(figure: Figure, path: Path, note: str = "") -> str:
    """Write the figure as SVG and PNG, with a note above its panels; return the text of the SVG file."""
    svg = as_svg(figure, note)
    path.with_suffix(".svg").write_text(svg)
    with plt.rc_context(STYLE):
        FigureCanvasAgg(figure).print_png(path.with_suffix(".png"))
    return svg
