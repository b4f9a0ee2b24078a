"""The built files, without a browser: links, weight, policy, no trace of the machine, a page per run."""

import csv
import gzip
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safebook import book_post, claims, paths, registry

MAX_BYTES = 1_500_000


class Page(HTMLParser):
    """Links, ids, images and inline scripts of one page."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.path = path
        self.links: list[str] = []
        self.loads: list[str] = []  # what the browser fetches by itself
        self.ids: set[str] = set()
        self.images: list[dict] = []
        self.handlers: list[str] = []
        self.inline: list[str] = []
        self._script: list[str] | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = {name: value or "" for name, value in attributes}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        self.handlers += [f"{tag} {name}" for name in found if name.startswith("on")]
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("link", "script", "img", "source", "iframe", "video", "audio", "object", "embed"):
            self.loads += [found[name] for name in ("src", "href", "data") if name in found]
        if tag == "img":
            self.images.append(found)
        if tag == "script" and "src" not in found and found.get("type", "") in book_post.JAVASCRIPT:
            self._script = []

    def handle_data(self, data):
        if self._script is not None:
            self._script.append(data)

    def handle_endtag(self, tag):
        if tag == "script" and self._script is not None:
            self.inline.append("".join(self._script))
            self._script = None


def _pages(site) -> dict[Path, Page]:
    return {path.resolve(): Page(path) for path in site.pages}


def test_every_link_inside_the_book_resolves(site):
    pages = _pages(site)
    broken = []
    for path, page in pages.items():
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{path.name}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                broken.append(f"{path.name}: {link} (no such place)")
    assert not broken, broken


def test_nothing_is_loaded_from_outside(site):
    for path, page in _pages(site).items():
        outside = [
            load for load in page.loads if urlsplit(load).scheme not in ("", "data") or load.startswith("//")
        ]
        assert not outside, (path.name, outside)


def test_every_image_has_alternative_text(site):
    for path, page in _pages(site).items():
        bad = [
            image
            for image in page.images
            if len(image.get("alt", "").strip()) < 8 or "_images/" in image["alt"]
        ]
        assert not bad, (path.name, [image.get("src", "")[:80] for image in bad])


def test_pages_carry_the_policy_and_no_inline_script(site):
    for path, page in _pages(site).items():
        text = path.read_text(encoding="utf-8")
        assert text.count(book_post.META) == 1, path.name
        assert not page.inline and not page.handlers, (path.name, page.inline, page.handlers)
        assert "javascript:" not in text and "thebe" not in text, path.name


def _sent(path: Path) -> int:
    """Bytes that a server sends: text compressed, as GitHub Pages and most others do."""
    body = path.read_bytes()
    return len(gzip.compress(body) if path.suffix in (".html", ".js", ".css", ".svg") else body)


def test_page_weight_with_all_that_it_loads(site):
    sent = {}
    for path, page in _pages(site).items():
        loads = {load for load in page.loads if not load.startswith("data:")}
        files = {(path.parent / unquote(urlsplit(load).path)).resolve() for load in loads}
        files = {file for file in files if file.is_file() and file.suffix != ".html"}  # others are links
        sent |= {file: _sent(file) for file in (path, *files) if file not in sent}
        weight = sum(sent[file] for file in (path, *files))
        assert weight <= MAX_BYTES, (path.name, weight)


def test_the_icons_that_are_used_are_there_and_no_others(site):
    script = (site.html / book_post.ICONS).read_text(encoding="utf-8")
    found = {match[1] or match[2] for match in book_post.ICON.finditer(script)}
    shown = {
        icon
        for path in site.pages
        for icon in re.findall(r'class="fa-solid fa-([a-z-]+)', path.read_text(encoding="utf-8"))
    }
    assert len(shown) > 5 and shown <= found and len(found) < 40
    assert len(script) < 150_000


def test_no_path_of_this_machine(site):
    roots = {str(site.html.parents[1]), sys.prefix, str(Path.home())} - {"/"}
    pattern = re.compile("|".join(re.escape(root) for root in sorted(roots, key=len, reverse=True)))
    for path in site.html.rglob("*"):
        if path.suffix in (".html", ".json", ".ipynb", ".js", ".csv", ".txt"):
            found = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, (path.relative_to(site.html), found.group(0))


def test_every_run_has_a_page_and_a_row(site):
    status = (site.html / "executed" / "status.html").read_text(encoding="utf-8")
    for run in registry.RUNS:
        name = run.template.removesuffix(".ipynb") + ".html"
        assert (site.html / "executed" / name).is_file()
        assert f'href="{name}"' in status


def _kind(toy, kind: str):
    run = next(run for run in registry.RUNS if toy.kinds[run.id] == kind)
    return run, (toy.html / "executed" / run.template).with_suffix(".html").read_text(encoding="utf-8")


def test_a_failed_run_says_so(toy):
    run, page = _kind(toy, "failed")
    assert "This run failed" in page and "ValueError" in page
    assert "<script>document.title" not in page and "&lt;script&gt;document.title" in page
    assert "(not measured)" in page  # numbers in the text that the run never reached
    assert "rises from 0 to 1" in page  # what was executed before it
    assert f"records/smoke/{run.id}/results.json" not in page
    assert not (toy.html / "records" / "smoke" / run.id / "results.json").exists()
    assert (
        run.title in (toy.html / "executed" / "status.html").read_text(encoding="utf-8").split("Failures")[-1]
    )


def test_a_good_run_shows_its_facts_and_offers_its_numbers(toy):
    run, page = _kind(toy, "good")
    for fact in ("smoke", "peak memory", "device", "duration", "commit"):
        assert fact in page
    folder = toy.html / "records" / "smoke" / run.id
    assert {path.name for path in folder.iterdir()} == {"results.json", "tau_per_layer.csv", "notebook.ipynb"}
    assert ">3.14</span>" in page
    assert "3 of 3" not in page and "2 of 3" in page and "0 of 3" not in page  # a bar's last state only
    assert "\x1b" not in page and "http://run.py" not in page
    assert "Show the default parameters" in page


def test_a_run_with_a_record_only(toy):
    _, page = _kind(toy, "recorded")
    assert "Not run at this size" in page and "A toy question?" in page
    assert "Recorded at size laptop" in page and "committed record" in page
    assert "&lt;script&gt;alert(1)" in page and "<script>alert(1)" not in page


def test_a_stale_run_is_marked(toy):
    run, page = _kind(toy, "slider")
    assert "Stale" in page and "sb-warn" in page
    assert (toy.html / "records" / "smoke" / run.id / "results.json").is_file()


def test_every_claim_is_on_the_scorecard_with_three_marks(real):
    """Is it implemented, how did it come out, at which size."""
    page = (real.html / "executed" / "scorecard.html").read_text(encoding="utf-8")
    found = {}
    for row in re.findall("<tr>.*?</tr>", page, re.S):
        if name := re.search(r'class="sb-source">([a-z]+-\w+)', row):
            found[name[1]] = row.count("sb-badge")
    assert set(found) == {claim.id for claim in claims.read()}
    assert min(found.values()) >= 3, {name: count for name, count in found.items() if count < 3}


def test_every_page_of_a_run_opens_with_its_question_and_what_was_found(real):
    rows = {claim.run for claim in claims.read()}
    for run in registry.RUNS:
        page = (real.html / "executed" / run.template).with_suffix(".html").read_text(encoding="utf-8")
        start = page[: page.index('class="sb-facts"')]
        assert re.search(r"<em>[^<]*\?", start), f"{run.id}: no question"
        assert ("sb-answer" in start) == (run.id in rows), run.id


def test_heavy_scripts_are_loaded_where_they_are_used_alone(real):
    for path in real.pages:
        page = path.read_text(encoding="utf-8")
        assert ("vendor/widgets.js" in page) <= ("widget-view+json" in page), path.name


def test_formulas_are_drawn_and_readable_without_a_script(real):
    pages = {path.name: path.read_text(encoding="utf-8") for path in real.pages}
    assert not [name for name, page in pages.items() if "mathjax.js" in page.lower()]
    with_some = [name for name, page in pages.items() if 'class="math ' in page]
    assert len(with_some) > 10 and "running-on-real-llama.html" in with_some
    for name in with_some:
        page = pages[name]
        drawn = page.count("<mjx-container")
        assert drawn == len(re.findall(r'class="math notranslate nohighlight"', page)), name
        assert page.count("</math></mjx-assistive-mml>") == drawn, name
    assert "mjx-assistive-mml" in (real.html / "_static" / "custom.css").read_text(encoding="utf-8")


def test_units_of_tables_from_files_are_shown(real):
    """A cell that begins with a per cent sign was once taken for a comment, and with it went the units."""
    found = 0
    for chapter in sorted(paths.BOOK.glob("*.md")):
        tables = re.findall(r"```\{csv-table\}.*?\n:file: (\S+)\n", chapter.read_text(encoding="utf-8"))
        units = 0
        for name in tables:
            with (chapter.parent / name).open(newline="", encoding="utf-8") as file:
                units += sum(cell.strip().startswith("%") for row in csv.reader(file) for cell in row)
        if not units:
            continue
        html = (real.html / f"{chapter.stem}.html").read_text(encoding="utf-8")
        cells = re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", html, re.S)
        shown = sum(re.sub(r"<[^>]*>", "", cell).strip().startswith("%") for cell in cells)
        assert shown == units, (chapter.name, shown, units)
        found += units
    assert found
