"""The figure of each part on "In short": every part has one, drawn from what is recorded, as many marks as numbers."""

import re

import pytest
import yaml

from safebook import book_figures, book_tables, paths, registry, results
from safebook.errors import InputError
from safebook.plots import in_short

PICTURES = book_figures.read()


def test_every_part_has_one_picture_of_its_own_run():
    assert [p.paper for p in PICTURES] == list(book_tables.PAPERS)
    assert all(registry.get(p.run).paper == p.paper for p in PICTURES)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.paper)
def test_marks_are_the_recorded_numbers(picture):
    record = results.committed(picture.run)
    figure = in_short.rows(record, picture)
    axis = figure.axes[0]
    drawn = [line for line in axis.lines if line.get_marker() in ("o", "|") and len(line.get_xdata())]
    for i, row in enumerate(picture.rows):
        seeds, mean = drawn[2 * i], drawn[2 * i + 1]
        values = [
            s.value
            for s in record._scalars.values()
            if s.metric == picture.metric and row.of.items() <= s.labels.items()
        ]
        assert sorted(seeds.get_xdata()) == sorted(values) and len(values) == len(record.seeds)
        assert list(mean.get_xdata()) == [pytest.approx(sum(values) / len(values))]
        assert (seeds.get_markerfacecolor() == "white") == row.control
    assert [tick.get_text() for tick in axis.get_yticklabels()] == [row.name for row in picture.rows]
    assert any(row.control for row in picture.rows)
    assert axis.get_xlabel() == picture.axis
    low, high = axis.get_xlim()
    assert all(low <= x <= high for line in drawn for x in line.get_xdata())
    # nothing runs over the edge of the picture
    figure.canvas.draw()
    box = axis.xaxis.label.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_the_page_shows_them_with_alternative_text_and_where_they_are_from():
    images, texts = book_figures.pages()
    assert set(texts) == set(book_tables.PAPERS)
    for picture in PICTURES:
        text, name = texts[picture.paper], f"in_short_{picture.paper}.png"
        assert images[name].startswith(b"\x89PNG") and len(images[name]) < 100_000
        assert f"executed/{name}" in text and f":alt: {picture.alt[:20]}" in text
        target = re.search(r"\]\(executed/(.+)\)", text)[1]
        assert (paths.NOTEBOOKS / f"{target}.ipynb").exists()
        size = results.committed(picture.run).size
        assert f"{size.capitalize()} size" in text
    assert book_figures.pages()[0] == images  # the same bytes again: an unchanged book is not built again


def test_a_part_without_a_record_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    assert book_figures.pages() == ({}, {})


@pytest.mark.parametrize(("change", "where"), [({"rows": []}, "0.rows"), ({"axes": "x"}, "0.axes")])
def test_a_wrong_file_names_the_field(monkeypatch, tmp_path, change, where):
    row = PICTURES[0].model_dump() | change
    (tmp_path / book_figures.FILE).write_text(yaml.safe_dump([row]))
    monkeypatch.setattr(paths, "DATA", tmp_path)
    with pytest.raises(InputError, match=re.escape(where)):
        book_figures.read()
