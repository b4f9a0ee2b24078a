"""After Sphinx: make every page pass a strict content policy, and forget the machine it was built on."""

import hashlib
import re
import sys
from pathlib import Path

from safebook import paths

# Inline styles stay allowed: formulas and figures have their sizes there.
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; object-src 'none'; base-uri 'none'"
)
META = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
SCRIPT = re.compile(r"<script\b([^>]*)>(.*?)</script>[ \t]*\n?", re.S | re.I)
# Sphinx asks for it on every page; the formulas are drawn already (`book_math`).
MATHJAX = re.compile(r"<script\b[^>]*\bsrc=[^>]*mathjax[^>]*></script>[ \t]*\n?", re.I)
THEBE_STYLE = re.compile(r"<link\b[^>]*sphinx-thebe[^>]*>[ \t]*\n?", re.I)
# Docutils puts entries of a deprecated role into a list, which must have items.
BIBLIOGRAPHY = ('role="doc-biblioentry"', 'role="listitem"')
# The theme's script brings two thousand icons, more bytes than all else on most pages; a dozen are used.
ICONS = Path("_static/scripts/fontawesome.js")
ICON = re.compile(
    r'(?:"([a-z0-9-]+)"|\b([a-z][a-z0-9]*)):\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?'
)
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
    drop_icons(html)
    forget_machine(html)
    return len(moved)


def drop_icons(html: Path) -> None:
    """Keep, of the theme's icons, those that a page or the theme's other scripts name. Without the script: nothing."""
    script = html / ICONS
    if not script.is_file():
        return
    naming = [*html.rglob("*.html"), *(path for path in script.parent.glob("*.js") if path != script)]
    used = {name for path in naming for name in re.findall(r"\bfa-([a-z0-9-]+)", path.read_text("utf-8"))}

    def keep(match: re.Match) -> str:
        names = {match[1] or match[2], *re.findall(r'"([a-z0-9-]+)"', match[3])}
        return match[0] if names & used else ""

    text = ICON.sub(keep, script.read_text("utf-8"))
    script.write_text(re.sub(r"\n//# sourceMappingURL=.*\s*$", "\n", text), "utf-8")
    script.with_suffix(".js.map").unlink(missing_ok=True)  # it maps the script as it was


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
        # MathJax's settings: seeing them, widgets believe that MathJax is there, in an old version.
        if body.lstrip().startswith("window.MathJax"):
            return ""
        if re.search(r"\bsrc\s*=", attributes) or kind not in JAVASCRIPT or not body.strip():
            return match.group(0)
        name = hashlib.sha256(body.encode()).hexdigest()[:16] + ".js"
        bodies[name] = body
        return f'<script{attributes} src="{up}_static/inline/{name}"></script>\n'

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
