"""Figures for the book: with alternative text, and with a slider that works in a static page.

A slider is possible there because its figures are drawn beforehand and the browser links it to their stack.
Use `figure` for one figure, `slider_figures` for a family of figures along one axis (a layer, a step), `live` for what
an open notebook can draw anew at once.
"""

import base64
import html
import io
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from safebook.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110  # readable on a page, some 30 kB per figure: a page may weigh 1.5 MB


def figure(fig: "Figure", alt: str, dpi: int = DPI) -> None:
    """Display a figure once, with `alt` (a sentence: what is seen) for who does not see it, and close it."""
    from IPython.display import display

    _check_alt("alt", alt)
    data = base64.b64encode(png(fig, dpi)).decode()
    # The book takes the alternative text from the output's metadata.
    display({"image/png": data, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


def slider_figures(
    figures: Sequence["Figure"],
    labels: Sequence[str],
    description: str,
    alt: Sequence[str],
    default: int = 0,
    dpi: int = DPI,
) -> None:
    """Display a slider over at least two `figures`, named `description`; a label and alt text for each.

    `default` is the index shown first, in print, and where scripts do not run. The figures are closed.
    Raises InputError if the lengths differ or the default is not one of the figures.
    """
    import ipywidgets as widgets
    from IPython.display import display

    if len(figures) < 2:
        raise InputError("figures", len(figures), "at least 2 figures")
    for name, values in (("labels", labels), ("alt", alt)):
        if len(values) != len(figures):
            raise InputError(name, f"{len(values)} values", f"one per figure ({len(figures)})")
    if not 0 <= default < len(figures):
        raise InputError("default", default, f"0 .. {len(figures) - 1}")
    if len(set(labels)) != len(labels):
        raise InputError("labels", list(labels), "all different")
    for text in alt:
        _check_alt("alt", text)

    images = [_img(png(fig, dpi), text) for fig, text in zip(figures, alt, strict=True)]
    slider = widgets.SelectionSlider(
        options=list(labels), index=default, description=description,
        style={"description_width": "initial"}, layout=widgets.Layout(width="min(100%, 30em)"),
    )  # fmt: skip
    stack = widgets.Stack([widgets.HTML(image) for image in images], selected_index=default,
                          layout=widgets.Layout(width="100%"))  # fmt: skip
    # One control, one target: several controls linked to each other get out of step.
    widgets.jslink((slider, "index"), (stack, "selected_index"))
    box = widgets.VBox([slider, stack], layout=widgets.Layout(width="100%"))
    note = f"{description}: {labels[default]}. Other values need scripts in the page."
    fallback = (
        # Jupyter shows the widget itself; the style hides the default figure there.
        "<style>body[data-jp-theme-name] .sb-fallback{display:none}</style>"
        f'<figure class="sb-fallback" data-widget="{html.escape(box.model_id)}">{images[default]}'
        f"<figcaption>{html.escape(note)}</figcaption></figure>"
    )
    display({"text/html": fallback, "text/plain": alt[default]}, raw=True)
    display(box)


def live(draw: Callable[..., "Figure"], alt: str, **choices: Sequence):
    """In an open notebook: a slider for each of `choices`, and `draw(**chosen)`, drawn anew at every change.

    An executed page has no kernel to answer, so there nothing is displayed; the figures beside it are those of `figure` and
    `slider_figures`. Returns the widget, or None on such a page. Raises InputError for a choice without a value.
    """
    for name, values in choices.items():
        if not len(values):
            raise InputError(name, list(values), "at least one value")
    if os.environ.get("SAFEBOOK_RECORD_DIR"):  # set wherever a notebook is executed for a record
        return None
    import ipywidgets as widgets
    from IPython.display import display

    sliders = {
        name: widgets.SelectionSlider(options=list(values), description=name)
        for name, values in choices.items()
    }
    box = widgets.interactive(lambda **chosen: figure(draw(**chosen), alt), **sliders)
    display(box)
    return box


def png(fig: "Figure", dpi: int = DPI) -> bytes:
    """Draw the figure, on white also for dark pages, and close it. No metadata: same figure, same bytes."""
    import matplotlib.pyplot as plt
    from PIL import Image

    buffer = io.BytesIO()
    fig.savefig(
        buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white", metadata={"Software": None}
    )
    plt.close(fig)  # else the notebook shows it a second time
    # A palette of 255 colours looks the same in a chart and weighs a third: a page may weigh 1.5 MB.
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(
        small, "png", optimize=True
    )
    return small.getvalue()


def _img(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="sb-figure" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _check_alt(name: str, text: str) -> None:
    if not isinstance(text, str) or len(text.strip()) < 10:
        raise InputError(name, text, "a sentence that says what the figure shows")
