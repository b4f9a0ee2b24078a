"""axe-core on every page: no barrier of level serious or worse, in light and dark mode."""

import pytest

pytestmark = pytest.mark.xdist_group("accessible")

WORSE = ("serious", "critical")
SETTLED = """() => document.readyState === 'complete' && [...document.querySelectorAll('[role="slider"]')].every(
    handle => handle.ariaLabel)"""
# One stylesheet colours all code: a block with no kind of token that has not been looked at becomes plain text, since
# contrast is found token by token, and most of a page is code.
PLAIN = """known => {
    const found = new Set(known);
    for (const block of document.querySelectorAll('.highlight pre')) {
        const ground = getComputedStyle(block).backgroundColor;
        const kinds = [...block.querySelectorAll('[class]')].map(token => `${token.className} on ${ground}`);
        if (kinds.every(kind => found.has(kind))) block.textContent = block.textContent;
        else kinds.forEach(kind => found.add(kind));
    }
    return [...found];
}"""
# Both modes share all but their colours; these pages, and one of a run, hold every kind of badge, table, link, figure and code.
DARK = ("index.html", "executed/scorecard.html", "executed/status.html")


# The real book first: another worker builds the toy meanwhile.
@pytest.mark.parametrize("site", ["real", "toy"], indirect=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_barrier(browser, site, scheme):
    from axe_playwright_python.sync_playwright import Axe

    axe, barriers, tokens = Axe(), {}, []
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    pages = site.own_pages
    if scheme == "dark":
        pages = [
            *(site.html / page for page in DARK),
            next(p for p in pages if p.parent.parent.name == "executed"),
        ]
    for path in pages:
        tab = context.new_page()
        tab.goto(path.as_uri())
        tab.wait_for_function(SETTLED)
        tokens = tab.evaluate(PLAIN, tokens)
        found = axe.run(tab, options={"resultTypes": ["violations"]}).response
        assert found["passes"], path  # it did look
        for rule in (rule for rule in found["violations"] if rule["impact"] in WORSE):
            where = [node["html"][:150] for node in rule["nodes"][:3]]
            barriers[f"{path.relative_to(site.html)}: {rule['help']}"] = where
        tab.close()
    context.close()
    assert not barriers
    assert tokens


def test_a_barrier_is_found(browser):
    """The tool itself: grey on grey, and a slider without a name."""
    from axe_playwright_python.sync_playwright import Axe

    tab = browser.new_page()
    tab.set_content(
        '<html lang="en"><title>t</title><main><h1>h</h1><p style="color:#bbb;background:#ddd">pale</p>'
        '<div role="slider" tabindex="0" aria-valuenow="1">x</div></main>'
    )
    found = {rule["id"]: rule["impact"] for rule in Axe().run(tab).response["violations"]}
    tab.close()
    assert {"color-contrast", "aria-input-field-name"} <= found.keys()
    assert found["color-contrast"] in WORSE
