"""Fixtures of the browser tests: one real service for all of them, one chromium per module."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest

MISSING = [
    name
    for name, found in {
        "chromium": browsing.CHROMIUM,
        "playwright": importlib.util.find_spec("playwright"),
    }.items()
    if not found
]


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if MISSING:
        pytest.skip(f"needs {' and '.join(MISSING)}")
    root = tmp_path_factory.mktemp("page")
    sets = ("--label-sets", str(root / "label-sets"))
    with browsing.service(browsing.build_indexes(root), root / "log", *sets) as url:
        yield url


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    # not for the session: Playwright keeps an event loop running in this thread meanwhile
    with browsing.chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open the page at an address fragment; what went wrong in it fails the test.

    A refusal or a lost connection is logged by the browser itself: tests that provoke one say so
    with `complains=True`.
    """
    contexts, complaints, asked = [], [], []
    quiet = True

    def open_page(fragment: str = "", *, complains: bool = False, **options: Any) -> Any:
        nonlocal quiet
        quiet = quiet and not complains
        settings = {"viewport": {"width": 1200, "height": 860}, "locale": "en-US", **options}
        context = browser.new_context(base_url=address, reduced_motion="reduce", **settings)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto("/" + fragment)
        page.wait_for_function("() => document.getElementById('about').textContent !== ''")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked, "requests are seen"
    foreign = [url for url in asked if not url.startswith((address, "blob:", "data:"))]
    assert foreign == [], "nobody else is asked"
    uncaught = [text for text in complaints if text.startswith("uncaught") or "Policy" in text]
    assert (complaints if quiet else uncaught) == [], "the console stays clean"


@pytest.fixture(scope="session")
def photographs(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as files, for dropping and choosing."""
    return browsing.write_photographs(tmp_path_factory.mktemp("files"), swatches=0).parent
