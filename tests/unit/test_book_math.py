"""Formulas of the built pages: drawn once, readable by screen readers, and no page is touched where that fails."""

import re

import pytest

from safebook import book_math, book_node, paths
from safebook.errors import InputError

PAGE = """<p>The share <span class="math notranslate nohighlight">\\(a &lt; \\frac{1}{2}\\)</span>, twice:
<span class="math notranslate nohighlight">\\(a &lt; \\frac{1}{2}\\)</span></p>
<div class="math notranslate nohighlight" id="equation-sum">
<span class="eqno">(1)<a class="headerlink" href="#equation-sum">#</a></span>\\[\\sum_{i=1}^n x_i\\]</div>
<pre>re.compile(r"\\(x\\)")</pre>
"""
needs_mathjax = pytest.mark.skipif(
    book_node.tools() is None or not (paths.ROOT / "node_modules" / "mathjax").exists(),
    reason="MathJax is not installed; building the book does it",
)


@pytest.fixture
def built(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "custom.css").write_text("p { color: red }\n")
    (tmp_path / "page.html").write_text(PAGE)
    (tmp_path / "plain.html").write_text("<p>no formula</p>")
    return tmp_path


@needs_mathjax
def test_every_formula_is_drawn_once_and_keeps_its_place(built):
    assert book_math.typeset(built) == 2
    page = (built / "page.html").read_text()
    drawn = re.findall(r"<mjx-container.*?</mjx-container>", page, re.S)
    assert len(drawn) == 3 and drawn[0] == drawn[1] and 'display="true"' in drawn[2]
    assert "<mo>&lt;</mo>" in drawn[0] and "<mfrac>" in drawn[0]  # MathML, for screen readers
    assert "\\(a" not in page and "\\[" not in page
    # what is no formula, and what stands beside one, stays; two drawings of one formula share no id
    assert 're.compile(r"\\(x\\)")' in page and 'href="#equation-sum"' in page
    assert not re.search(r'\bid="(?!equation-sum)', page)
    assert (built / "plain.html").read_text() == "<p>no formula</p>"
    styles = (built / "_static" / "custom.css").read_text()
    assert styles.startswith("p { color: red }\n") and "mjx-assistive-mml" in styles
    assert book_math.typeset(built) == 0 and (built / "page.html").read_text() == page


@needs_mathjax
@pytest.mark.parametrize("tex", [r"\undefined x", r"\frac{1}"])
def test_a_formula_that_is_none_is_named(tex):
    with pytest.raises(InputError, match=re.escape(tex)):
        book_math.draw([("x", False), (tex, True)])


def test_without_node_pages_keep_the_source_and_the_build_says_why(built, monkeypatch):
    monkeypatch.setattr(book_node, "tools", lambda: None)
    said = []
    assert book_math.typeset(built, said.append) == 0
    assert (built / "page.html").read_text() == PAGE and "node" in said[0] and len(said) == 1
