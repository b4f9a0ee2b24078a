"""The generated parts of the book that look at all runs: scorecard, status page, the front page's summary."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from safebook import book_html as h
from safebook import claims
from safebook.book_pages import download_name
from safebook.book_state import RunView

PAPERS = {
    "pcfg": "Part 1: what makes and breaks safety fine-tuning",
    "llama": "Llama: the testbed, and part 1 on it",
    "safetylock": "Part 2: SafetyLock",
    "spf": "Part 3: SPF",
    "synthesis": "Part 4: synthesis",
}
VERDICTS = tuple(h.VERDICT_CLASS)
# Pages of wide tables do without the list of headings on the right.
WIDE = "---\nhtml_theme.sidebar_secondary.remove: true\n---"
UNJUDGED = ("not run at this size", "not meaningful at this size")


def scorecard(
    best: Sequence[dict],
    here: Sequence[dict],
    size: str,
    yours: Mapping[str, dict] | None = None,
    code: Mapping[str, str] | None = None,
) -> str:
    """The scorecard page. best: each claim at its largest size with a record; here: at this size.

    yours: `reproduction.column(size)`, what this machine measured beside the committed records of this size.
    code: `book_code.links`, where each claim's number enters the record.
    """
    yours, code = yours or {}, code or {}
    larger = any(row.get("size") not in (None, size) for row in best)
    own = {row["id"]: row for row in here} if larger or yours else None
    beside = f" The last column shows what your run at size `{size}` gives." if own is not None else ""
    parts = [
        WIDE,
        "# Scorecard",
        "Every claim of the papers that this book tests, with what was reported and what was measured. Three marks each: is it "
        "implemented, how did it come out, at which size was it measured. "
        f"The verdict belongs to the largest size with a record.{beside} "
        "[How to read it](../how-to-read.md) explains the words.",
    ]
    if not best:
        parts.append("No claim is registered yet.")
    elif yours:
        parts.append(_reproduced(yours, size))
    head = ["Claim", "Implemented", "Verdict", "Measured", "Control", "Reported", "Size and seeds"]
    head += [f"Yours ({size})"] if own is not None else []
    for paper in _papers(best):
        rows = [_claim_row(row, own, yours, code) for row in best if row["paper"] == paper]
        name = PAPERS.get(paper, paper)
        parts += [f"## {name}", h.table(head, rows, f"Claims of {name}", "sb-claims sb-wide")]
    return "\n\n".join(parts) + "\n"


def _reproduced(yours: Mapping[str, dict], size: str) -> str:
    """Does the reproduction reproduce here? In one sentence."""
    count = Counter(found["agreement"] for found in yours.values())
    words = ", ".join(f"{count[word]} *{word}*" for word in h.AGREEMENT if count[word])
    return (
        f"**Does it reproduce here?** Your run has measured {len(yours)} claims at size `{size}`. "
        f"Beside the committed records of that size: {words}."
    )


def _papers(rows: Sequence[dict]) -> list[str]:
    """The parts that have claims, in the order of the book."""
    found, known = list(dict.fromkeys(row["paper"] for row in rows)), list(PAPERS)
    return sorted(found, key=lambda paper: known.index(paper) if paper in known else len(known))


def _claim_row(
    row: dict, own: dict[str, dict] | None, yours: Mapping[str, dict], code: Mapping[str, str]
) -> list[str]:
    notes = [h.esc(row["id"]), *([h.esc(row["source"])] if row.get("source") else []), *_links(row, code)]
    source = f'<span class="sb-source">{" · ".join(notes)}</span>'
    statistic = f'<span class="sb-reason">{h.esc(row["statistic"])}</span>' if row.get("statistic") else ""
    cells = [
        f"{h.esc(row['statement'])}{statistic}{source}",
        h.implemented(row.get("implemented", True)),
        _verdict(row),
        measured(row),
        control(row),
        reported(row),
        f"{h.size(row.get('size'))}<br>{_seeds(row)}",
    ]
    return cells if own is None else [*cells, _yours(row, own.get(row["id"]), yours.get(row["id"]))]


def _yours(row: dict, own: dict | None, found: dict | None) -> str:
    """What this machine measured: beside the committed record of its size, and beside a larger one's verdict."""
    parts = []
    if found is None:
        parts.append("not run here")
    elif own is not None:
        parts.append(measured(row | {"value": found["value"], "interval": found["spread"]}))
        parts.append(h.agreement(found["agreement"], _expected(found, row)))
    if some := found and found["some_seeds"]:
        words = f"seed{'s' if len(some) > 1 else ''} {', '.join(map(str, some))} alone"
        parts.append(
            f'<span class="sb-reason">{words}, which judge{"" if len(some) > 1 else "s"} no claim</span>'
        )
    elif own is not None and own.get("size") != row.get("size") and own["value"] is not None:
        parts += [measured(own) + " (committed)"] if found is None else []
        parts.append(_verdict(own))
        if own["verdict"] not in UNJUDGED and row["verdict"] not in UNJUDGED:
            same = "agrees" if own["verdict"] == row["verdict"] else "does not agree"
            parts.append(f'<span class="sb-reason">{same} with the {h.esc(row["size"])} size</span>')
    return "<br>".join(parts)


def _expected(found: dict, row: dict) -> str:
    """The committed mean and where yours was to be expected, in words."""

    def number(value: float) -> str:
        return h.number(claims.plain(value, row.get("unit", "")))

    words = [] if found["committed"] is None else [f"committed {number(found['committed'])}"]
    if found["interval"]:
        words.append("expected {} to {}".format(*map(number, found["interval"])))
    if found["stale"]:
        words.append(f"stale: {' and '.join(found['stale'])}")
    return ", ".join(words)


def _verdict(row: dict) -> str:
    mark = f" {h.state('stale')}" if row.get("stale") else ""
    return h.verdict(row["verdict"], row.get("reason") or "") + mark


def measured(row: dict) -> str:
    """Mean and interval, as HTML."""
    if row.get("value") is None:
        return h.NONE
    unit = claims.plain_unit(row.get("unit", ""))
    return (
        _number(row["value"], row) + _interval(row.get("interval"), row) + (f" {h.esc(unit)}" if unit else "")
    )


def _number(value: float | None, row: dict) -> str:
    return h.esc(h.number(claims.plain(value, row.get("unit", ""))))


def _interval(interval: Sequence[float] | None, row: dict) -> str:
    if not interval:
        return ""
    low, high = (_number(end, row) for end in interval)
    return f' <span class="sb-interval">[{low}, {high}]</span>'


def reported(row: dict) -> str:
    """The paper's number with its source and trust, as HTML."""
    value = row.get("reported")
    if isinstance(value, dict):
        number, source, trust = value.get("value"), value.get("source"), value.get("trust")
    else:
        number, source, trust = value, None, row.get("trust")
    text = "no number found" if number is None else _number(number, row)
    notes = [str(part) for part in (source, f"trust: {trust}" if trust else None) if part]
    return text + (f'<span class="sb-reason">{h.esc(", ".join(notes))}</span>' if notes else "")


def control(row: dict) -> str:
    """What the effect must beat, and by how much the control falls short, as HTML."""
    value = row.get("control")
    if value is None:
        return "none"
    if not isinstance(value, dict):
        return _number(value, row)
    number = value.get("value")
    text = "" if number is None else _number(number, row) + _interval(value.get("interval"), row)
    return text + f'<span class="sb-reason">{h.esc(value.get("description") or "")}</span>'


def _seeds(row: dict) -> str:
    seeds = row.get("seeds") or []
    if not seeds:
        return "no seeds"
    return (
        f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
        if isinstance(seeds, list)
        else h.esc(f"{seeds} seeds")
    )


def _links(row: dict, code: Mapping[str, str], up: str = "../") -> list[str]:
    links = [h.link(f"{up}{page_path(row['page'])}.html", "page")] if row.get("page") else []
    if row.get("size") and row["verdict"] != "not run at this size":
        links.append(h.link(f"{up}records/{row['size']}/{row['run']}/results.json", "record", True))
    if row["id"] in code:
        links.append(h.link(f"{up}{code[row['id']]}", "code"))
    return links


def page_path(page: str) -> str:
    """A claim's page from the book's root, without suffix; also for `pcfg/04_feature_space`."""
    page = page.removesuffix(".html").removesuffix(".ipynb").removesuffix(".md")
    return page if page.startswith("executed/") or "/" not in page else f"executed/{page}"


def on_page(rows: Sequence[dict], run_id: str) -> str:
    """The claims that one run decides, as a table for the foot of its page; empty if there are none."""
    rows = [row for row in rows if row.get("run") == run_id]
    if not rows:
        return ""
    body = [
        (h.esc(row["statement"]), _verdict(row), measured(row), control(row),
         reported(row), f"{h.esc(row.get('size') or h.NONE)}, {_seeds(row)}")
        for row in rows
    ]  # fmt: skip
    return h.table(
        ("Claim", "Verdict", "Measured", "Control", "Reported", "Size"),
        body,
        "Claims judged on this page",
        "sb-judged",
    )


def summary(rows: Sequence[dict], size: str) -> str:
    """For the front page: verdicts per paper."""
    if not rows:
        return "No claim is registered yet.\n"
    words = [word for word in VERDICTS if any(row["verdict"] == word for row in rows)]
    body = []
    for paper in _papers(rows):
        counts = Counter(row["verdict"] for row in rows if row["paper"] == paper)
        body.append([h.esc(PAPERS.get(paper, paper)), *(h.esc(counts[word] or h.NONE) for word in words)])
    head = ("Claims", *(word.capitalize() for word in words))
    parts = [h.table(head, body, "Verdicts per paper", "sb-counts")]
    if all(row["verdict"] in UNJUDGED for row in rows):
        parts.append(
            "No claim has been judged yet: that takes at least three seeds, `make book SIZE=laptop`."
        )
    return "\n\n".join(parts) + "\n"


def _page_link(row: dict) -> str:
    return ", " + h.link(f"{page_path(row['page'])}.html", "page") if row.get("page") else ""


def status(views: Sequence[RunView], recorded: Sequence[RunView], size: str) -> str:
    """The status page: every run of the size just built, then all other records."""
    head = ("Run", "State", "Duration", "Peak memory", "Device", "Threads", "Date", "Commit", "Seeds")
    count = Counter(view.state for view in views)
    words = ", ".join(f"{count[word]} {word}" for word in h.STATE_CLASS if count[word])
    parts = [
        WIDE,
        "# Status",
        f"This book was built at size `{size}`: {words or 'no runs'}. A run is *stale* when its sources have "
        "changed since it was measured, and *failed* when it did not get to the end or left no valid record.",
        h.table(head, [_status_row(view) for view in views], f"Runs at size {size}", "sb-wide"),
    ]
    failures = [view for view in views if view.state == "failed"]
    if failures:
        items = "".join(
            f"<li>{h.link(_page(view), view.run.title)}: <code>{h.esc(error.get('name'))}</code> "
            f"{h.esc(error.get('message'))}</li>"
            for view in failures
            for error in (view.error or {},)
        )
        parts += ["## Failures", f"<ul>{items}</ul>"]
    if recorded:
        rows = [[h.esc(view.size), *_status_row(view)] for view in recorded]
        parts += ["## Other records", h.table(("Size", *head), rows, "Other records")]
    machines = _machines([*views, *recorded])
    if machines:
        parts += ["## Machines and versions", machines]
    return "\n\n".join(parts) + "\n"


def _page(view: RunView) -> str:
    return view.run.template.removesuffix(".ipynb") + ".html"


def _status_row(view: RunView) -> list[str]:
    facts = view.facts
    known = view.record is not None
    name = h.link(_page(view), view.run.title)
    if known and view.folder is not None:
        record = h.link("../" + download_name(view, view.folder / "results.json"), "record", True)
        name += f'<br><span class="sb-source">{record}{"" if view.local else ", committed"}</span>'
    return [
        name,
        h.state(view.state),
        h.esc(h.duration(facts.get("duration_s"))),
        h.esc(h.memory(facts.get("peak_memory_bytes"))),
        h.esc(facts.get("device") or h.NONE),
        h.esc(facts.get("threads") or h.NONE),
        h.esc(h.date(facts.get("date") or facts.get("started"))),
        h.esc(h.commit(facts)) if known else h.NONE,
        h.esc(", ".join(str(seed) for seed in facts.get("seeds") or []) or h.NONE),
    ]


def _machines(views: Sequence[RunView]) -> str:
    """Processor, platform and package versions: once for all runs that share them."""
    groups: dict[str, list[RunView]] = {}
    for view in views:
        if view.record is None:
            continue
        facts = view.facts
        about = {"Device": facts.get("device"), "Processor": facts.get("cpu"),
                 "Platform": facts.get("platform"), "Python": facts.get("python"),
                 **(facts.get("versions") or {})}  # fmt: skip
        groups.setdefault(json.dumps(about, default=str), []).append(view)
    items = []
    for text, members in groups.items():
        about = {key: value for key, value in json.loads(text).items() if value}
        who = ", ".join(f"{view.run.id} ({view.size})" for view in members)
        what = " · ".join(f"{h.esc(key)} <strong>{h.esc(value)}</strong>" for key, value in about.items())
        items.append(f'<li>{what}<br><span class="sb-source">Runs: {h.esc(who)}</span></li>')
    return f"<ul>{''.join(items)}</ul>" if items else ""


def checkpoints(runs: Sequence[tuple[str, str, str]]) -> str:
    """What every page does with a checkpoint: (title, path of the page in the book, text of its template's first cell)."""
    rows = []
    for title, page, text in runs:
        said = [" ".join(part.split()) for part in text.split("\n\n") if "`model`" in part]
        words = re.sub(r"`([^`]+)`", r"<code>\1</code>", h.esc(said[-1])) if said else ""
        rows.append((h.link(f"{page}.html", title), words))
    return h.table(("Page", "With a checkpoint"), rows, "What every page does with a checkpoint") + "\n"
