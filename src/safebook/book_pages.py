"""The page of one run: its executed notebook with the run's facts on top, or an honest page in its place."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat

from safebook import book_code, book_launch, paths
from safebook import book_html as h
from safebook.book_notebook import ANSI, clean, unglue
from safebook.book_state import RunView, files

MAX_ROWS = 80


def page(
    view: RunView,
    others: Sequence[RunView] = (),
    claims_html: str = "",
    metrics: Iterable[str] = (),
    answer: str = "",
) -> tuple[str, str]:
    """Returns (suffix, text) of the run's source page: a notebook if one was executed, else Markdown.

    others: the run's other records, smallest size first; claims_html: the claims it decides;
    metrics: the numbers that decide them, each of which gets an anchor at the cell that records it;
    answer: what was found, which follows the question that the page opens with.
    """
    if view.notebook is None:
        return ".md", _without_notebook(view, others, claims_html, answer)
    notebook = nbformat.read(view.notebook, as_version=4)
    clean(notebook, failed=view.state == "failed")
    book_code.mark(notebook, metrics)
    cells = notebook.cells
    title, rest = f"# {_plain(view.run.title)}", ""
    if cells and cells[0].cell_type == "markdown" and cells[0].source.lstrip().startswith("# "):
        title, _, rest = cells.pop(0).source.strip().partition("\n")
    question, _, rest = rest.strip().partition("\n\n")
    first = (title, question, answer, _top(view, others), rest.strip())
    cells[:0] = [nbformat.v4.new_markdown_cell(text) for text in first if text]
    for part in _bottom(view, others, claims_html):
        cells.append(nbformat.v4.new_markdown_cell(part))
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"  # stable: the same run gives the same page
    return ".ipynb", nbformat.writes(notebook)


def download_name(view: RunView, path: Path) -> str:
    """Where a file lies in the built book, relative to its root; a record of some seeds leaves the place to the whole one."""
    some = f"seed-{'-'.join(map(str, view.some_seeds))}/" if view.some_seeds else ""
    return f"records/{view.size}/{view.run.id}/{some}{path.name}"


def _top(view: RunView, others: Sequence[RunView]) -> str:
    """The block below the title: what run this is, what went wrong if something did, the downloads."""
    parts = [_facts(view)]
    if view.state == "failed":
        parts.append(_failure(view))
    if view.state == "stale":
        parts.append(
            ":::{admonition} Stale\n:class: warning\nThe sources of this page have changed since it was "
            f"measured. `make book SIZE={view.size}` measures it again.\n:::"
        )
    if view.record is not None and view.size == "smoke":
        parts.append(_smoke_note(others))
    return "\n\n".join(parts)


def _smoke_note(others: Sequence[RunView]) -> str:
    best = others[-1] if others else None
    more = "No larger run is recorded yet." if best is None else (
        f"The largest recorded run is of size **{best.size}** ({h.date(best.facts.get('date'))}); "
        "where a page draws it too, the figure says so."
    )  # fmt: skip
    return (
        ":::{note}\nThis page was built at **smoke** size, which proves that everything runs, "
        f"and nothing more. {more}\n:::"
    )


def _facts(view: RunView) -> str:
    facts = view.facts
    items = [("size", view.size), ("state", None)]
    if view.record is not None:
        seeds = facts.get("seeds") or []
        items += [
            ("seeds", ", ".join(str(seed) for seed in seeds) or "none"),
            ("duration", h.duration(facts.get("duration_s"))),
            ("peak memory", h.memory(facts.get("peak_memory_bytes"))),
            ("device", f"{facts['device']}, {facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"),
            ("date", h.date(facts.get("date"))),
            ("commit", h.commit(facts)),
        ]  # fmt: skip
    elif view.state == "failed":
        items += [
            ("started", h.date(facts.get("started"))),
            ("stopped after", h.duration(facts.get("duration_s"))),
        ]
    cells = "".join(
        f"<div><dt>{h.esc(name)}</dt><dd>{h.state(view.state) if value is None else h.esc(value)}</dd></div>"
        for name, value in items
    )
    if view.record is not None and not view.local:
        cells += "<div><dt>from</dt><dd>a committed record</dd></div>"
    start = '<div class="sb-facts" role="note" aria-label="About this run">'
    again = book_launch.block(view.run.id, view.run.template, view.size, view.some_seeds)
    return f"{start}<dl>{cells}</dl>{_downloads(view)}{again}</div>"


def _downloads(view: RunView) -> str:
    up = "../" * (1 + _depth(view))
    links = [h.link(up + download_name(view, path), path.name, True) for path in files(view)]
    if view.notebook is not None:
        links.append(h.link(up + download_name(view, view.notebook), "executed notebook", True))
    return f'<p class="sb-downloads">Numbers and sources: {" · ".join(links)}</p>' if links else ""


def _depth(view: RunView) -> int:
    return len(Path(view.run.template).parts) - 1


def _failure(view: RunView) -> str:
    error = view.error or {}
    cell = error.get("cell")
    where = f" In code cell {h.esc(cell)}." if cell is not None else ""
    trace = ANSI.sub("", str(error.get("traceback") or ""))
    details = (
        '<details><summary>Traceback</summary><div class="sb-scroll" tabindex="0">'
        f"<pre>{h.esc(trace)}</pre></div></details>"
        if trace
        else ""
    )
    return (
        ":::{admonition} This run failed\n:class: error\n"
        f"<p><code>{h.esc(error.get('name', 'error'))}</code>: {h.esc(error.get('message', ''))}.{where}</p>"
        f"{details}\n\nThere is no result record. What was executed before the failure is shown below, "
        "as far as there is any.\n:::"
    )


def _without_notebook(view: RunView, others: Sequence[RunView], claims_html: str, answer: str) -> str:
    run = view.run
    question, _, rest = _question(run).partition("\n\n")
    parts = [f"# {_plain(run.title)}", question, answer, _top(view, others)]
    if view.state == "not run":
        parts.append(
            ":::{admonition} Not run at this size\n:class: note\n"
            f"This book was built at size `{view.size}`, at which this notebook was not run here. "
            f"To run it:\n\n```bash\nmake book SIZE={view.size}\n```\n:::"
        )
    elif view.record is not None:
        parts.append(
            "The numbers below are a committed record. The notebook itself was not executed where this "
            f"book was built; `make book SIZE={view.size}` runs it and draws its figures."
        )
    parts.append(rest)
    if view.record is not None:
        parts += ["## Recorded numbers", record_table(view.record)]
    return "\n\n".join(filter(None, [*parts, *_bottom(view, others, claims_html)])) + "\n"


def _bottom(view: RunView, others: Sequence[RunView], claims_html: str) -> list[str]:
    """What follows the run's own page: the best other record where it has none, and the claims it decides."""
    parts = []
    if view.record is None and others:
        best = others[-1]
        parts.append(f"## Recorded at size {best.size}\n\n{_facts(best)}\n\n{record_table(best.record)}")
    if claims_html:
        parts.append(f"## Judged on this page\n\n{claims_html}")
    return parts


def _question(run) -> str:
    """What the notebook asks, from its template's first cell, without the title."""
    template = paths.NOTEBOOKS / run.template
    if not template.exists():
        return ""
    cells = nbformat.read(template, as_version=4).cells
    if not cells or cells[0].cell_type != "markdown":
        return ""
    return unglue(re.sub(r"^\s*# .*\n?", "", cells[0].source), set()).strip()


def record_table(record: dict) -> str:
    """Every metric of a record as mean over seeds and range; the single values are in the download."""
    groups: dict[tuple, list[dict]] = {}
    for row in record["scalars"]:
        labels = tuple(sorted(row["labels"].items()))
        groups.setdefault((row["metric"], labels, row["unit"]), []).append(row)
    rows = []
    for (metric, labels, unit), members in list(groups.items())[:MAX_ROWS]:
        values = [float(row["value"]) for row in members]
        spread = "" if len(values) == 1 else f"{h.number(min(values))} to {h.number(max(values))}"
        rows.append(
            (
                h.esc(metric),
                h.esc(", ".join(f"{name} {value}" for name, value in labels)),
                h.esc(h.number(sum(values) / len(values))),
                h.esc(spread),
                h.esc(len({row["seed"] for row in members})),
                h.esc(unit),
            )
        )
    text = h.table(
        ("Metric", "Of what", "Mean", "Range over seeds", "Seeds", "Unit"), rows, "Recorded numbers"
    )
    left = len(groups) - len(rows)
    return text + (f"\n\n{left} more in the download." if left > 0 else "")


def _plain(text: str) -> str:
    """Text inside Markdown: every character stands for itself."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(str(text).split()))
