"""After Sphinx: make every page pass a strict content policy, and forget the machine it was built on."""

import hashlib
import re
import sys
from pathlib import Path

from safebook import paths

# Inline styles stay allowed: without them MathJax gets the sizes wrong.
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; object-src 'none'; base-uri 'none'"
)
META = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
SCRIPT = re.compile(r"<script\b([^>]*)>(.*?)</script>[ \t]*\n?", re.S | re.I)
# MathJax weighs more than a page; the theme asks for it everywhere. Outputs of cells may hold formulas that Sphinx did not see.
MATHJAX = re.compile(r"<script\b[^>]*\bsrc=[^>]*mathjax[^>]*></script>[ \t]*\n?", re.I)
FORMULA = re.compile(r'class="[^"]*\b(?:math|cell_output)\b')
THEBE_STYLE = re.compile(r"<link\b[^>]*sphinx-thebe[^>]*>[ \t]*\n?", re.I)
# Docutils puts entries of a deprecated role into a list, which must have items.
BIBLIOGRAPHY = ('role="doc-biblioentry"', 'role="listitem"')
TYPE = re.compile(r"""\btype\s*=\s*["']?([^"'\s>]+)""", re.I)
JAVASCRIPT = {"", "text/javascript", "application/javascript", "module"}
TEXT = {".html", ".js", ".json", ".css", ".ipynb", ".csv", ".svg", ".txt", ".inv", ""}


def finish(html: Path) -> int:
    """Rewrite the pages of a freshly built book in place. Returns how many inline scripts became files."""
    inline = html / "_static" / "inline"
    inline.mkdir(parents=True, exist_ok=True)
    moved: set[str] = set()
    for page in sorted(html.rglob("*.html")):
        up = "../" * (len(page.relative_to(html).parts) - 1)
        text, bodies = strict(page.read_text(encoding="utf-8"), up)
        for name, body in bodies.items():
            (inline / name).write_text(body, encoding="utf-8")
        moved |= bodies.keys()
        page.write_text(text, encoding="utf-8")
    forget_machine(html)
    return len(moved)


def strict(page: str, up: str) -> tuple[str, dict[str, str]]:
    """One page without inline scripts, with the policy in its head; and the scripts' bodies by file name.

    up: the way from the page to the book's root, "" or "../" repeated.
    """
    bodies: dict[str, str] = {}

    def replace(match: re.Match) -> str:
        attributes, body = match.group(1), match.group(2)
        kind = TYPE.search(attributes)
        kind = kind.group(1).lower() if kind else ""
        # Live code (thebe) is never used: it would ask another site, and its constants are declared twice.
        if "thebe" in attributes.lower() or "THEBE_JS_URL" in body:
            return ""
        if re.search(r"\bsrc\s*=", attributes) or kind not in JAVASCRIPT or not body.strip():
            return match.group(0)
        name = hashlib.sha256(body.encode()).hexdigest()[:16] + ".js"
        bodies[name] = body
        return f'<script{attributes} src="{up}_static/inline/{name}"></script>\n'

    if not FORMULA.search(page):
        page = MATHJAX.sub("", page)
    page = THEBE_STYLE.sub("", SCRIPT.sub(replace, page))
    page = page.replace(*BIBLIOGRAPHY)
    if META not in page:
        page = re.sub(r"(<head\b[^>]*>)", lambda m: f"{m.group(1)}\n    {META}", page, count=1)
    return page, bodies


def forget_machine(folder: Path) -> None:
    """Replace this machine's absolute paths in every text file of the folder."""
    known = {
        str(paths.ROOT) + "/": "",
        str(paths.ROOT): ".",
        sys.prefix: "<venv>",
        sys.base_prefix: "<python>",
    }
    home = str(Path.home())
    if home.count("/") > 0 and len(home) > 1:
        known[home] = "~"
    # Longest first: the environment usually lies inside the checkout.
    order = sorted((path for path in known if len(path) > 4), key=len, reverse=True)
    for path in folder.rglob("*"):
        if not path.is_file() or path.suffix not in TEXT:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        new = text
        for absolute in order:
            new = new.replace(absolute, known[absolute])
        if new != text:
            path.write_text(new, encoding="utf-8")
