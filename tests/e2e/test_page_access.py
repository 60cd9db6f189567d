"""The page for everyone: by keyboard alone, on a phone, with a screen reader (axe-core's rules)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(240)
Visit = Callable[..., Any]

FIRST_IS = "(id) => document.querySelector('#results button.card')?.dataset.id === id"
FOCUSED = "document.activeElement.id || document.activeElement.dataset.id"


@pytest.fixture(scope="module")
def axe() -> str:
    found = pytest.importorskip("axe_core_python")
    return (Path(found.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def faults(page: Any, axe: str) -> list[str]:
    """What axe-core finds to be serious or critical, as `rule: element`."""
    # through the debugger, which the page's content security policy does not bind
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": axe})
    session.detach()
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{rule['id']}: {node['html'][:120]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def focus_is(page: Any, expected: str | None) -> None:
    """Focus moves a moment after the key, when the page has drawn."""
    page.wait_for_function(f"(expected) => ({FOCUSED}) === expected", arg=expected)


def test_by_keyboard_alone(visit: Visit) -> None:
    page = visit()
    keys = page.keyboard
    keys.press("Tab")
    focus_is(page, "skip")
    keys.press("/")
    focus_is(page, "query")
    keys.type("a cat")
    page.wait_for_function(FIRST_IS, arg="chelsea")
    keys.press("ArrowDown")
    focus_is(page, "chelsea")
    keys.press("ArrowRight")
    second = page.locator("#results button.card").nth(1).get_attribute("data-id")
    focus_is(page, second)
    keys.press("ArrowLeft")
    keys.press("Enter")
    page.get_by_role("dialog").wait_for()
    keys.press("Tab")
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    keys.press("Escape")
    # focus returns to where it was
    page.wait_for_function("() => document.activeElement.dataset.id === 'chelsea'")
    keys.press("+")
    assert page.locator("#pictures-parts .part").count() == 1
    focus_is(page, "query")
    keys.press("Escape")
    page.evaluate("document.activeElement.blur()")
    keys.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    page.get_by_label("Single keys act").uncheck()
    keys.press("Escape")
    page.locator("h1, footer").last.click()
    keys.press("/")
    assert page.evaluate(FOCUSED) != "query", "single keys can be turned off"


def test_one_card_is_in_the_tab_order(visit: Visit) -> None:
    page = visit("#search?q=a+cat")
    page.wait_for_function(FIRST_IS, arg="chelsea")
    assert page.locator("#results [tabindex='0']").count() == 1
    page.locator("#results button.card").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowUp")
    assert page.locator("#results [tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    focus_is(page, "query")


@pytest.mark.parametrize("view", ["#", "#search?q=a+cat", "#compare?q=red", "#classify", "#index"])
def test_nothing_spills_over_on_a_phone(visit: Visit, view: str) -> None:
    page = visit(view, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if "q=a+cat" not in view:
        return
    page.locator("#results button.card").first.tap()
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert page.evaluate("document.querySelector('#detail').scrollWidth") <= 360
    box = dialog.get_by_role("button", name="More like this").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_fault(
    visit: Visit, axe: str, scheme: str, photographs: Path
) -> None:
    page = visit(color_scheme=scheme)
    assert faults(page, axe) == [], "at rest"
    page.fill("#query", "a cat")
    page.wait_for_function(FIRST_IS, arg="chelsea")
    page.keyboard.press("Enter")
    page.fill("#query", "-a dog")
    page.keyboard.press("Enter")
    page.set_input_files("#picture", photographs / "coffee.png")
    page.wait_for_function(FIRST_IS, arg="coffee")
    page.wait_for_load_state("networkidle")
    assert faults(page, axe) == [], "results of a composed query"
    page.locator("#filters button").first.click()
    assert faults(page, axe) == [], "a filter's choices"
    page.keyboard.press("Escape")
    page.locator("#results button.card").first.click()
    page.locator("#detail-said li").first.wait_for()
    assert faults(page, axe) == [], "an open picture"
    page.keyboard.press("Escape")
    page.goto("/#compare?q=red")
    page.locator("#compare-right li.hit").first.wait_for()
    assert faults(page, axe) == [], "compare"
    page.goto("/#classify")
    assert faults(page, axe) == [], "classify, empty"
    page.fill("#labels", "a cat, a dog")
    page.set_input_files("#classify-picture", photographs / "chelsea.png")
    page.locator("#bars li.first").wait_for()
    assert faults(page, axe) == [], "classify, answered"
    page.get_by_role("button", name="Save as a set").click()
    assert faults(page, axe) == [], "saving a label set"
    page.keyboard.press("Escape")
    page.goto("/#index")
    page.locator(".index-card").first.wait_for()
    assert faults(page, axe) == [], "index"
    page.keyboard.press("?")
    assert faults(page, axe) == [], "keys"


def test_axe_sees_a_fault(visit: Visit, axe: str) -> None:
    page = visit()
    page.evaluate("document.querySelector('#query').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('#query').removeAttribute('placeholder')")
    page.evaluate("document.querySelector('#query').removeAttribute('aria-describedby')")
    assert any(fault.startswith("label:") for fault in faults(page, axe))


def test_refusals_are_announced(visit: Visit, axe: str, tmp_path: Path) -> None:
    page = visit(complains=True)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nope")
    page.set_input_files("#picture", broken)
    page.get_by_role("alert").get_by_text("cannot be decoded").wait_for()
    assert faults(page, axe) == []
