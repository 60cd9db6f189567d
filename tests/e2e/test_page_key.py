"""The page where the service asks for a key: typed once, kept for the tab, sent as a header."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import browsing
import pytest

pytestmark = pytest.mark.timeout(240)
FIRST_IS = "(id) => document.querySelector('#results button.card')?.dataset.id === id"
DRAWN = "document.querySelector('#results .picture img.loaded')?.src ?? ''"


@pytest.fixture(scope="module")
def keyed(
    address: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, list[str]]]:
    """A second service over the same index, with keys: its address, a key, what was seen."""
    from service.http.middleware.keys import KeyFile, mint

    root = tmp_path_factory.mktemp("keyed")
    key, stored = mint("browser")
    KeyFile(root / "keys.json").add(stored)
    index = next(tmp_path_factory.getbasetemp().glob("page*/photos.index"))
    names = [f"photos={index}"]
    with browsing.service(names, root / "log", "--keys", str(root / "keys.json")) as url:
        yield url, key, []


@pytest.fixture
def page(browser: Any, keyed: tuple[str, str, list[str]]) -> Iterator[Any]:
    context = browser.new_context(base_url=keyed[0], reduced_motion="reduce", locale="en-US")
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.on("console", lambda message: keyed[2].append(message.text))
    page.on("pageerror", lambda error: keyed[2].append(f"uncaught: {error}"))
    page.on("request", lambda request: keyed[2].append(request.url))
    yield page
    context.close()
    seen = list(keyed[2])
    keyed[2].clear()  # what one test caused is not the next one's
    assert [line for line in seen if "Policy" in line or line.startswith("uncaught")] == []
    assert not any(keyed[1][:20] in line for line in seen), "the key is in no address"


def enter(page: Any, key: str) -> None:
    page.get_by_role("dialog", name="A key, please").wait_for()
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use it").click()


def test_the_page_asks_for_the_key_and_works_with_it(
    page: Any, keyed: tuple[str, str, list[str]]
) -> None:
    _, key, _ = keyed
    page.goto("/#search?q=a+cat")
    enter(page, "dpk_wrong")
    page.get_by_role("alert").get_by_text("not accepted").wait_for()
    enter(page, key)
    page.wait_for_function(FIRST_IS, arg="chelsea")
    page.wait_for_function(f"() => {DRAWN}.startsWith('blob:')")
    assert page.locator("#access").is_hidden()
    assert page.locator("#docs-link").is_hidden()
    assert page.evaluate("localStorage.length + document.cookie.length") <= 2
    assert key not in page.evaluate("JSON.stringify({ ...localStorage })")
    page.locator("#results button.card").first.click()
    page.wait_for_function("() => document.querySelector('#detail-image').src.startsWith('blob:')")
    page.wait_for_function("() => document.querySelector('#detail-image').naturalWidth > 0")
    page.get_by_role("button", name="Add to the search").last.click()
    page.wait_for_function("() => document.querySelector('.part img')?.naturalWidth > 0")
    page.goto("/#index")
    page.locator(".index-card").first.wait_for()
    page.get_by_role("button", name="Forget the key").click()
    page.get_by_role("dialog", name="A key, please").wait_for()


def test_the_key_is_this_tabs_alone(
    page: Any, keyed: tuple[str, str, list[str]], browser: Any
) -> None:
    page.goto("/")
    enter(page, keyed[1])
    # the page may be on its way in again
    page.wait_for_function("() => (document.getElementById('about')?.textContent ?? '') !== ''")
    other = page.context.new_page()
    other.goto("/")
    other.get_by_role("dialog", name="A key, please").wait_for()


def test_it_asks_also_where_too_many_came_without_a_key(
    page: Any, keyed: tuple[str, str, list[str]]
) -> None:
    # every visit without a key makes some requests too many: after a few, all of them get this
    for _ in range(200):
        with pytest.raises(HTTPError) as refusal:
            urlopen(keyed[0] + "/v1/index")
        status, body = refusal.value.code, refusal.value.read()
        if status == 429:
            break
    assert json.loads(body)["code"] == "too-many-attempts"
    page.route(
        "**/v1/**",
        lambda route: route.fulfill(
            status=status, body=body, content_type="application/problem+json"
        ),
    )
    page.goto("/")
    page.get_by_role("dialog", name="A key, please").wait_for()
    page.unroute_all()
    enter(page, keyed[1])
    page.wait_for_function("() => (document.getElementById('about')?.textContent ?? '') !== ''")


def test_without_keys_nobody_is_asked(visit: Callable[..., Any]) -> None:
    page = visit("#search?q=a+cat")
    page.wait_for_function(FIRST_IS, arg="chelsea")
    page.wait_for_function(f"() => {DRAWN}.includes('/thumbnail')")
    assert page.locator("#access").is_hidden()
    assert page.locator("#access-forget").is_hidden()
    assert page.locator("#docs-link").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_dialog_is_accessible(
    page: Any, keyed: tuple[str, str, list[str]], scheme: str
) -> None:
    found = pytest.importorskip("axe_core_python")
    axe = (Path(found.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page.emulate_media(color_scheme=scheme)
    page.goto("/")
    page.get_by_role("dialog", name="A key, please").wait_for()
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": axe})
    session.detach()
    seen = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    bad = [rule["id"] for rule in seen["violations"] if rule["impact"] in ("serious", "critical")]
    assert bad == []
