"""HTML for the generated parts of the book. What comes from a record, claim or error goes through `esc`."""

import html
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

NONE = "\u2013"  # stands for a value that is not there
VERDICT_CLASS = {
    "matches": "good",
    "same direction": "good",
    "not distinguishable from control": "warn",
    "differs": "bad",
    "not run at this size": "none",
    "not meaningful at this size": "none",
}
# A second mark beside colour, for readers who do not see the colours apart.
VERDICT_SIGN = {
    "matches": "=",
    "same direction": "↑",
    "not distinguishable from control": "≈",
    "differs": "≠",
    "not run at this size": "·",
    "not meaningful at this size": "·",
}
# Of reproduction.WORDS: what this machine measured beside the committed record.
AGREEMENT = {
    "bit-identical": ("good", "="),
    "within the interval": ("good", "≈"),
    "outside the interval": ("bad", "≠"),
    "no interval": ("none", "·"),
    "no committed record": ("none", "·"),
    "is the committed record": ("none", "·"),
}
STATE_CLASS = {"ok": "good", "stale": "warn", "failed": "bad", "not run": "none"}
STATE_SIGN = {"ok": "✓", "stale": "!", "failed": "✕", "not run": "·"}


def esc(value: object) -> str:
    """Text for HTML, on one line: a blank line would end the HTML block, and Markdown would go on."""
    return html.escape("" if value is None else str(value)).replace("\r", "").replace("\n", "&#10;")


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], label: str, css: str = "") -> str:
    """A table that scrolls inside its own box. Cells are HTML already; the headers and the label are text."""
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in headers)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="sb-scroll" role="region" aria-label="{esc(label)}" tabindex="0">'
        f'<table class="table sb-table {css}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def verdict(word: str, reason: str = "") -> str:
    badge = _badge(word, VERDICT_CLASS.get(word, "none"), VERDICT_SIGN.get(word, "·"))
    return badge + (f'<span class="sb-reason">{esc(reason)}</span>' if reason else "")


def implemented(yes: bool) -> str:
    return _badge("yes", "good", "✓") if yes else _badge("no", "none", "·")


def size(word: str | None) -> str:
    """The size at which something was measured."""
    return _badge(word, "good", "✓") if word else _badge("not measured", "none", "·")


def state(word: str) -> str:
    return _badge(word, STATE_CLASS.get(word, "none"), STATE_SIGN.get(word, "·"))


def agreement(word: str, reason: str = "") -> str:
    return _badge(word, *AGREEMENT.get(word, ("none", "·"))) + (
        f'<span class="sb-reason">{esc(reason)}</span>' if reason else ""
    )


def _badge(word: str, kind: str, sign: str) -> str:
    return f'<span class="sb-badge sb-{kind}"><span aria-hidden="true">{sign}</span> {esc(word)}</span>'


def link(href: str, text: str, download: bool = False) -> str:
    return f'<a href="{esc(href)}"{" download" if download else ""}>{esc(text)}</a>'


def number(value: object, digits: int = 3) -> str:
    """A number for reading: `digits` significant digits, thousands grouped; a dash for nothing."""
    if value is None or isinstance(value, bool):
        return NONE if value is None else str(value)
    if isinstance(value, str):
        return value
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if value == int(value) and abs(value) < 10**7:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e7:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:.{digits - 1}e}"


def duration(seconds: object) -> str:
    if seconds is None:
        return NONE
    seconds = float(seconds)
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(count: object) -> str:
    if count is None:
        return NONE
    return f"{float(count) / 2**30:.2f} GiB" if float(count) >= 2**30 else f"{float(count) / 2**20:.0f} MiB"


def date(value: object) -> str:
    """An ISO date or a Unix time as `2026-11-21 00:36 UTC`; anything else as it is."""
    if value is None:
        return NONE
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = str(value)
    return f"{text[:10]} {text[11:16]} UTC" if len(text) >= 16 and text[10] in "T " else text


def commit(facts: dict) -> str:
    """The source commit, short, with a mark when the working tree had changes that no commit holds."""
    name = facts.get("commit")
    if not name:
        return "no commit"
    return str(name)[:10] + (" + uncommitted changes" if facts.get("dirty") else "")
