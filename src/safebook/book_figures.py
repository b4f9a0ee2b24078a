"""The one figure of each part on the page "In short", drawn from the best record that is committed."""

from pydantic import BaseModel, ConfigDict, Field

from safebook import book_html as h
from safebook import data_rows, results

FILE = "in_short.yaml"


class Row(BaseModel):
    """One line of a figure: the name on its left, the labels of the recorded numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    of: dict[str, str | int | float]
    control: bool = False


class Picture(BaseModel):
    """What one part's figure shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    paper: data_rows.Part
    run: str
    metric: str
    axis: str
    none: float  # where the dotted line stands
    none_is: str = "no effect"  # and what it means
    alt: str
    caption: str
    rows: list[Row] = Field(min_length=2)


def read() -> list[Picture]:
    """The pictures of data/in_short.yaml. Raises InputError, naming the field, for a file that is not as it should be."""
    return data_rows.read(FILE, Picture)


def pages() -> tuple[dict[str, bytes], dict[str, str]]:
    """(file in book/executed -> PNG, paper -> the figure's Markdown), for parts whose run has a committed record."""
    images, texts = {}, {}
    for picture in read():
        record = results.committed(picture.run)
        if record is None:
            continue
        name = f"in_short_{picture.paper}.png"
        images[name] = _png(picture, record)
        texts[picture.paper] = _directive(picture, record, name)
    return images, texts


def _directive(picture: Picture, record: results.Record, name: str) -> str:
    from safebook import registry

    page = f"executed/{registry.get(picture.run).template.removesuffix('.ipynb')}"
    seeds = ", ".join(map(str, record.seeds))
    about = f"{picture.caption} {record.size.capitalize()} size, seeds {seeds}; [where it is from]({page})."
    return f":::{{figure}} executed/{name}\n:alt: {h.esc(picture.alt)}\n:class: sb-figure\n\n{about}\n:::"


def _png(picture: Picture, record: results.Record) -> bytes:
    from safebook import plots, widgets
    from safebook.plots import in_short

    plots.style()
    return widgets.png(in_short.rows(record, picture))
