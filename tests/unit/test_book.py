"""The book's generated parts, without Sphinx and without a browser."""

import json
import re

import matplotlib

matplotlib.use("Agg")

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from safebook import (
    book,
    book_html,
    book_notebook,
    book_pages,
    book_post,
    book_tables,
    paths,
    registry,
    widgets,
)
from safebook.book_state import RunView
from safebook.errors import InputError
from safebook.registry import Run

EVIL = "</p></div><script>alert(1)</script>\n\n# not a heading {x}`y` [a](b)"
RUN = Run(id="pcfg-99-toy", template="pcfg/99_toy.ipynb", title="A *toy*", paper="pcfg")
RECORD = {
    "run": RUN.id,
    "size": "laptop",
    "seeds": [0, 1, 2],
    "scalars": [
        {"metric": "S", "value": 1.0 + s, "unit": "", "seed": s, "n": 10, "labels": {"model": EVIL}}
        for s in range(3)
    ],
    "tables": {"tau": {}},
    "provenance": {
        "commit": "0123456789abcdef",
        "dirty": True,
        "date": "2026-11-21T00:36:00+00:00",
        "duration_s": 75.2,
        "peak_memory_bytes": 3 * 2**30,
        "device": EVIL,
        "threads": 2,
        "cpu": "a processor",
        "versions": {"torch": "2.13.0"},
        "python": "3.11",
        "platform": "Linux",
    },
}
ROW = {
    "id": "pcfg-1",
    "paper": "pcfg",
    "source": "Figure 3",
    "statement": EVIL,
    "statistic": "S in layer 6",
    "size": "laptop",
    "seeds": [0, 1, 2],
    "stale": False,
    "unit": "",
    "value": 35.25,
    "interval": [30.0, 40.5],
    "control": {"description": EVIL, "value": 1.25, "interval": [1.0, 1.5]},
    "reported": {"value": 95.9, "source": "Figure 3, measured from the picture", "trust": "high"},
    "verdict": "same direction",
    "reason": None,
    "run": "pcfg-04-feature-space",
    "page": "executed/pcfg/04_feature_space",
    "implemented": True,
}


# --- the book and the registry agree ---


def test_contents_name_the_runs():
    book.check_toc()


def test_contents_that_miss_a_run_are_an_error(monkeypatch):
    monkeypatch.setattr(registry, "RUNS", registry.RUNS[:-1])
    with pytest.raises(book.BookError, match="04_feature_space"):
        book.check_toc()


def test_every_page_in_the_contents_exists():
    contents = yaml.safe_load((paths.BOOK / "_toc.yml").read_text())
    named = [name for name in book._files(contents) if not name.startswith("executed/")] + [contents["root"]]
    assert all((paths.BOOK / f"{name}.md").is_file() for name in named)
    assert {f"{name}.md" for name in named} == {path.name for path in paths.BOOK.glob("*.md")}


def test_every_part_has_a_name_a_chapter_and_its_place_on_the_scorecard():
    for paper in {run.paper for run in registry.RUNS}:
        chapter = (paths.BOOK / f"{paper}.md").read_text()
        assert all(f"```{{include}} executed/{what}_{paper}.md" in chapter for what in ("short", "findings"))
        assert paper in book_tables.PAPERS
    rows = [ROW | {"paper": paper} for paper in ("spf", "pcfg", "llama")]  # as a file of claims may have them
    wanted = [book_tables.PAPERS[paper] for paper in ("pcfg", "llama", "spf")]
    assert re.findall("^## (.+)$", book_tables.scorecard(rows, rows, "laptop"), re.M) == wanted
    page = book_tables.summary(rows, "laptop")
    assert sorted(wanted, key=page.index) == wanted


def test_no_static_folder_and_exact_pins():
    assert not (paths.BOOK / "_static").exists()  # jupyter-book would add every script in it to every page
    package = json.loads((paths.ROOT / "package.json").read_text())
    lock = json.loads((paths.ROOT / "package-lock.json").read_text())
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["dependencies"].values())
    assert lock["packages"][""]["dependencies"] == package["dependencies"]
    assert not any(
        "resolved" in entry for entry in lock["packages"].values()
    )  # versions and checksums, no hosts
    assert all("integrity" in entry for name, entry in lock["packages"].items() if name)


# --- text from elsewhere ---


def test_escaped_text_is_one_line_without_markup():
    text = book_html.esc(EVIL)
    assert "<" not in text and "\n" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\u2013"),
        (0.0, "0"),
        (12345, "12,345"),
        (0.123456, "0.123"),
        (95.94, "95.9"),
        (1e-9, "1.00e-09"),
    ],
)
def test_numbers(value, text):
    assert book_html.number(value) == text


def test_durations_and_sizes():
    assert [book_html.duration(s) for s in (None, 2.04, 75, 3720)] == [
        "\u2013",
        "2.0 s",
        "1 min 15 s",
        "1 h 02 min",
    ]
    assert book_html.memory(3 * 2**30) == "3.00 GiB" and book_html.memory(5 * 2**20) == "5 MiB"
    assert book_html.date("2026-11-21T00:36:00+00:00") == "2026-11-21 00:36 UTC"


def _blocks(text: str) -> list[str]:
    """Lines of generated Markdown outside HTML, fences and directives."""
    return [line for line in text.splitlines() if not line.startswith(("<", ":::", "```"))]


def test_scorecard_escapes_and_shows_all():
    text = book_tables.scorecard([ROW], [ROW | {"size": "smoke", "verdict": "not meaningful at this size",
                                                "reason": "1 seed, a verdict needs 3"}], "smoke")  # fmt: skip
    for part in (
        "same direction",
        "35.2",
        "[30, 40.5]",
        "1.25",
        "95.9",
        "3 seeds",
        "laptop",
        "1 seed, a verdict",
    ):
        assert part in text, part
    assert 'href="../executed/pcfg/04_feature_space.html"' in text
    assert 'href="../records/laptop/pcfg-04-feature-space/results.json"' in text
    assert "<script" not in text and "# not a heading" not in "\n".join(_blocks(text))


def test_scorecard_says_whether_this_build_agrees():
    own, found = ROW | {"verdict": "differs"}, {"agreement": "within the interval", "committed": 35.5,
                                                "interval": [30.5, 40.25], "stale": [], "value": 36.25,
                                                "spread": [31.0, 41.5], "some_seeds": None}  # fmt: skip
    text = book_tables.scorecard([ROW | {"size": "paper"}], [own], "laptop", {ROW["id"]: found})
    for part in (
        "Yours (laptop)",
        "does not agree with the paper size",
        "committed 35.5, expected 30.5 to 40.2",
        '36.2 <span class="sb-interval">[31, 41.5]</span>',
    ):
        assert part in text, part
    assert "measured 1 claims" in text and "1 *within the interval*" in text
    # one seed says whether it repeats, and no more
    some = found | {"spread": None, "some_seeds": [0]}
    text = book_tables.scorecard([ROW | {"size": "paper"}], [own], "laptop", {ROW["id"]: some})
    assert "seed 0 alone, which judges no claim" in text and "does not agree with" not in text
    # run nowhere here: the committed record of this size is said to be that
    text = book_tables.scorecard([ROW | {"size": "paper"}], [own], "laptop")
    assert "not run here" in text and "(committed)" in text and "Does it reproduce here?" not in text
    assert "Yours" not in book_tables.scorecard([ROW], [ROW], "laptop")


def test_yours_escapes_and_says_what_is_stale():
    found = {"agreement": EVIL, "committed": 1.0, "interval": None, "stale": ["yours"], "value": 1.0}
    found |= {"spread": None, "some_seeds": None}
    text = book_tables.scorecard([ROW], [ROW], "laptop", {ROW["id"]: found})
    assert "<script" not in text and "stale: yours" in text


def test_progress_bars_of_the_run_are_left_out():
    view = new_output("display_data", data={book_notebook.WIDGET_VIEW: {"model_id": "box"}})
    bar = {"box": {"model_name": "HBoxModel", "state": {"children": ["IPY_MODEL_bar"]}}}
    state = {"state": bar | {"bar": {"model_name": "FloatProgressModel", "state": {}}}}
    cell = new_code_cell("x", outputs=[view])
    notebook = new_notebook(cells=[cell], metadata={"widgets": {book_notebook.WIDGET_STATE: state}})
    book_notebook.clean(notebook, failed=False)
    assert cell.outputs == []


def test_summary_counts_verdicts():
    rows = [
        ROW,
        ROW | {"id": "b", "verdict": "differs"},
        ROW | {"id": "c", "verdict": "not run at this size"},
    ]
    text = book_tables.summary(rows, "laptop")
    assert "Differs" in text and "Matches" not in text and "<script" not in text
    assert "No claim has been judged yet" in book_tables.summary(rows[2:], "smoke")
    assert "No claim is registered" in book_tables.summary([], "smoke")


def test_every_verdict_has_a_colour_and_a_sign():
    from safebook import claims, reproduction

    assert set(claims.VERDICTS) == set(book_html.VERDICT_CLASS) == set(book_html.VERDICT_SIGN)
    assert tuple(book_html.AGREEMENT) == reproduction.WORDS
    page = (paths.BOOK / "how-to-read.md").read_text(encoding="utf-8")
    assert all(f"| **{word}** |" in page for word in (*claims.VERDICTS, *reproduction.WORDS))


# --- pages of runs ---


def _view(tmp_path, cells, **more) -> RunView:
    path = tmp_path / "notebook.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return RunView(
        RUN, "laptop", **({"state": "ok", "folder": tmp_path, "record": RECORD, "notebook": path} | more)
    )


def test_page_of_a_run(tmp_path):
    cells = [
        new_markdown_cell("# Title\n\nA question?\n\nText.\n\nMore."),
        new_code_cell("a = 1", metadata={"tags": ["injected-parameters"]}),
    ]
    suffix, text = book_pages.page(_view(tmp_path, cells), (), "<p>claims</p>", (), "The answer.")
    page = nbformat.reads(text, as_version=4)
    sources = [cell.source for cell in page.cells]
    assert suffix == ".ipynb" and sources[:3] == ["# Title", "A question?", "The answer."]
    facts = sources[3]
    for part in (
        "laptop",
        "0, 1, 2",
        "1 min 15 s",
        "3.00 GiB",
        "2 threads",
        "0123456789 + uncommitted changes",
    ):
        assert part in facts, part
    assert 'href="../../records/laptop/pcfg-99-toy/tau.csv" download' in facts
    assert "<script" not in facts
    assert sources[4] == "Text.\n\nMore." and "hide-input" in page.cells[5].metadata["tags"]
    assert page.cells[-1].source.endswith("<p>claims</p>")


def test_page_of_a_stale_run(tmp_path):
    _, text = book_pages.page(_view(tmp_path, [], state="stale"))
    assert "{admonition} Stale" in text and "A \\\\*toy\\\\*" in text


def test_page_of_a_failed_run_keeps_what_there_is(tmp_path):
    cells = [
        new_markdown_cell("# Title"),
        new_markdown_cell("papermill's own words", metadata={"tags": ["papermill-error-cell-tag"]}),
        new_code_cell(
            "x", outputs=[new_output("error", ename="E", evalue="v", traceback=["\x1b[31mE\x1b[0m: v"])]
        ),
        new_markdown_cell("It is {glue:text}`missing:.2f`."),
    ]
    error = {"name": "ValueError", "message": EVIL, "cell": 1, "traceback": EVIL}
    view = _view(tmp_path, cells, state="failed", record=None, error=error, status={"duration_s": 3.0})
    page = nbformat.reads(book_pages.page(view)[1], as_version=4)
    top = page.cells[1].source
    assert (
        "This run failed" in top
        and "ValueError" in top
        and "<script" not in top
        and 'results.json" download' not in top
    )
    assert "# not a heading" not in "\n".join(_blocks(top))
    assert page.cells[2].outputs[0].output_type == "stream" and page.cells[2].outputs[0].text == "E: v"
    assert page.cells[3].source == "It is *(not measured)*." and len(page.cells) == 4


def test_page_of_a_run_that_never_was():
    suffix, text = book_pages.page(RunView(RUN, "paper", "not run"))
    assert suffix == ".md" and "Not run at this size" in text and "make book SIZE=paper" in text
    other = RunView(RUN, "laptop", "ok", local=False, record=RECORD)
    text = book_pages.page(RunView(RUN, "paper", "not run"), [other])[1]
    assert "Recorded at size laptop" in text and "1 to 3" in text and "<script" not in text


def test_outputs_are_made_fit():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "gone"}, "text/plain": "Box()"}
    image = {"image/png": "aGk="}
    cell = new_code_cell(
        "x",
        outputs=[
            new_output("stream", text="\r 10%|#\r100%|##\n\x1b[1mdone\x1b[0m\n"),
            new_output("display_data", data=view),
            new_output("display_data", data={"application/unknown": "x"}),
            new_output("display_data", data=image, metadata={"image/png": {"alt": "Two bars."}}),
        ],
    )
    bare = new_code_cell("y", outputs=[new_output("display_data", data=image)])
    notebook = new_notebook(
        cells=[new_markdown_cell("## Layers"), cell, bare], metadata={"papermill": {"x": 1}}
    )
    book_notebook.clean(notebook, failed=False)
    assert [output.output_type for output in cell.outputs] == ["stream", "display_data"]
    assert cell.outputs[0].text == "100%|##\ndone\n"
    assert cell.metadata["mystnb"]["image"]["alt"] == "Two bars."
    assert bare.metadata["mystnb"]["image"]["alt"] == "Figure: Layers"
    assert "papermill" not in notebook.metadata


def test_status_lists_runs_failures_and_machines(tmp_path):
    failed = RunView(RUN, "smoke", "failed", error={"name": "E", "message": EVIL}, status={"duration_s": 3})
    other = RunView(RUN, "laptop", "stale", tmp_path, False, RECORD)
    text = book_tables.status([failed], [other], "smoke")
    for part in ("1 failed", "## Failures", "## Other records", "stale", "3.00 GiB", "torch", "a processor"):
        assert part in text, part
    assert "<script" not in text


# --- after Sphinx ---

PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8"><script>const THEBE_JS_URL = 1</script>
<script>const a = 1</script><script src="x.js"></script><script type="application/json">{"b": 2}</script>
<link rel="stylesheet" href="_static/sphinx-thebe.css?v=1" /></head>
<body><script>const a = 1</script></body></html>"""


def test_strict_moves_inline_scripts():
    page, bodies = book_post.strict(PAGE, "../")
    assert list(bodies.values()) == ["const a = 1"]
    assert page.count(f'src="../_static/inline/{next(iter(bodies))}"') == 2
    assert '<script src="x.js">' in page and '{"b": 2}' in page and "thebe" not in page.lower()
    assert page.index(book_post.META) < page.index("<script")
    assert book_post.strict(page, "../") == (page, {})


def test_the_machine_is_forgotten(tmp_path):
    (tmp_path / "a.html").write_text(f"in {paths.ROOT}/src/x.py and {paths.ROOT}")
    book_post.forget_machine(tmp_path)
    assert str(paths.ROOT) not in (tmp_path / "a.html").read_text()


# --- widgets ---


def _figures(count: int):
    import matplotlib.pyplot as plt

    return [plt.figure(figsize=(1, 1)) for _ in range(count)]


def test_slider_shows_default_and_links(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda *what, **_: shown.extend(what))
    alt = [f'Figure "{i}" <of> three.' for i in range(3)]
    widgets.slider_figures(_figures(3), ["a", "b", "c"], "Layer", alt, default=1)
    fallback, box = shown[0]["text/html"], shown[1]
    slider, stack = box.children
    assert (
        f'data-widget="{box.model_id}"' in fallback and "Figure &quot;1&quot; &lt;of&gt; three." in fallback
    )
    assert slider.index == stack.selected_index == 1 and len(stack.children) == 3


def test_live_sliders_draw_anew_at_every_change(monkeypatch):
    import IPython.display

    monkeypatch.delenv("SAFEBOOK_RECORD_DIR", raising=False)
    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: None)
    drawn = []

    def draw(layer, seed):
        drawn.append((layer, seed))
        return _figures(1)[0]

    box = widgets.live(draw, "A figure of what was chosen.", layer=[1, 2], seed=[0, 5])
    box.update()
    layer, seed = (child for child in box.children if hasattr(child, "options"))
    seed.value = 5
    layer.value = 2
    assert drawn[-3:] == [(1, 0), (1, 5), (2, 5)]
    with pytest.raises(InputError, match="seed"):
        widgets.live(draw, "A figure of what was chosen.", layer=[1], seed=[])


def test_an_executed_page_has_no_live_sliders(monkeypatch):
    monkeypatch.setenv("SAFEBOOK_RECORD_DIR", "somewhere")
    assert widgets.live(None, "A figure of what was chosen.", seed=[0]) is None


def test_what_is_live_can_be_drawn_for_every_seed_of_the_committed_record():
    from safebook import results
    from safebook.plots import features, lock_ablations, parameters, spf_ablations, spf_deep

    def heads(r):
        return lock_ablations.over_strength(r, int(r.tables["curves"].query("kind == 'grid'")["count"].max()))

    pages = [
        ("pcfg-04-feature-space", features.tau_by_layer),
        ("pcfg-05-column-space", lambda r: parameters.column_profiles(r, r.tables["profiles"]["part"].max())),
        ("safetylock-07-ablations", heads),
        ("spf-05-deep-finetuning", lambda r: spf_deep.at_depth(r, int(r.tables["epochs"]["epochs"].max()))),
        ("spf-07-ablations", lambda r: spf_ablations.at_rank(r, float(r.tables["ranks"]["share"].max()))),
    ]
    for run, draw in pages:
        record = results.committed(run)
        pictures = [widgets.png(draw(results.of_seed(record, seed)), 40) for seed in record.seeds]
        assert len(set(pictures)) == len(record.seeds) > 1, run  # every seed looks different


@pytest.mark.parametrize(
    ("labels", "alt", "default", "name"),
    [
        (["a"], ["Long enough text."] * 2, 0, "labels"),
        (["a", "a"], ["Long enough text."] * 2, 0, "labels"),
        (["a", "b"], ["Long enough text."], 0, "alt"),
        (["a", "b"], ["short", "Long enough text."], 0, "alt"),
        (["a", "b"], ["Long enough text."] * 2, 2, "default"),
    ],
)
def test_slider_refuses_bad_input(labels, alt, default, name):
    with pytest.raises(InputError, match=name):
        widgets.slider_figures(_figures(2), labels, "Layer", alt, default)


def test_figure_needs_a_text(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda what, **more: shown.append((what, more)))
    widgets.figure(_figures(1)[0], "One empty figure.")
    assert shown[0][1]["metadata"]["image/png"]["alt"] == "One empty figure."
    with pytest.raises(InputError, match="alt"):
        widgets.figure(_figures(1)[0], "")
