"""The one figure of each part on the page "In short", drawn from the best record that is committed."""

from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from safebook import book_html as h
from safebook import paths, results
from safebook.errors import InputError

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
    paper: Literal["pcfg", "llama", "safetylock", "spf", "synthesis"]
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
    path = paths.DATA / FILE
    if not path.is_file():
        return []
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8")) or []
        return TypeAdapter(list[Picture]).validate_python(rows)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{FILE}: {where}", first["input"], first["msg"]) from None


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
