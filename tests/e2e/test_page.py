"""The page in a real browser (the system's chromium): what a person sees, over a known index.

Skipped, visibly, where no chromium and chromedriver are installed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import solid
from services import APPLE, LEAF, SKY, build_colours
from serving import server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
    pytest.mark.timeout(120),
]
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1200,900", "--lang=en-US",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("page")
    with server(build_colours(root / "colours.index"), root / "log") as (_, url):
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page, in the words of its user."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self, fragment: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/{fragment}")

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def until(self, condition: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import (
            NoSuchElementException,
            StaleElementReferenceException,
        )
        from selenium.webdriver.support.ui import WebDriverWait

        missing = (NoSuchElementException, StaleElementReferenceException)
        wait = WebDriverWait(self.driver, 15, poll_frequency=0.05, ignored_exceptions=missing)
        return wait.until(lambda _: condition())

    def results(self) -> list[str]:
        return [card.get_attribute("data-id") for card in self.all("#results button.card")]

    def first_is(self, item: str) -> None:
        self.until(lambda: self.results()[:1] == [item])

    def entries(self, kind: str) -> list[dict[str, Any]]:
        return list(self.driver.get_log(kind))


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    page = Page(browser, address)
    page.entries("browser")
    page.entries("performance")
    page.open()
    yield page
    complaints = [entry["message"] for entry in page.entries("browser")]
    assert complaints == [], "the console stays clean"
    asked = [json.loads(entry["message"])["message"] for entry in page.entries("performance")]
    urls = [
        m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"
    ]
    assert urls, "requests are seen"
    foreign = [url for url in urls if not url.startswith((address, "blob:", "data:", "about:"))]
    assert foreign == [], "nobody else is asked"


def test_typing_searches_by_itself(page: Page) -> None:
    page.until(lambda: page.one("#empty-title").is_displayed())
    page.until(lambda: "4 pictures" in page.one("#about").text)
    page.one("#query").send_keys("green")
    page.first_is(LEAF)
    card = page.one("#results button.card")
    assert "a green leaf" in card.text
    assert "1.000" in card.text
    image = page.one("#results img")
    page.until(lambda: image.get_property("naturalWidth") > 0)
    assert "q=green" in page.driver.current_url
    page.one("input[value=texts]").find_element("xpath", "..").click()
    page.until(lambda: page.all("#results button.card.text"))
    assert "a green leaf" in page.one("#results button.card").text


def test_the_address_can_be_shared(page: Page) -> None:
    page.open("#q=blue&target=texts")
    page.until(lambda: "the blue sky" in page.one("#results button.card").text)
    assert page.one("#query").get_property("value") == "blue"
    page.one("#query").clear()
    page.one("#query").send_keys("red")
    page.until(lambda: "red apple" in page.one("#results button.card").text)
    page.driver.back()
    page.until(lambda: "the blue sky" in page.one("#results button.card").text)


def test_a_picture_finds_its_like(page: Page, tmp_path: Path) -> None:
    picture = tmp_path / "mine.png"
    picture.write_bytes(solid("blue"))
    page.one("#picture").send_keys(str(picture))
    page.first_is(SKY)
    assert page.one("#chip").is_displayed()
    page.one("#chip-clear").click()
    page.until(lambda: page.one("#empty-title").is_displayed() and not page.results())


def test_a_dropped_picture_finds_its_like(page: Page) -> None:
    page.driver.execute_async_script(
        """
        const done = arguments[0];
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 16;
        const brush = canvas.getContext("2d");
        brush.fillStyle = "#ff0000";
        brush.fillRect(0, 0, 16, 16);
        canvas.toBlob((blob) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([blob], "red.png", { type: "image/png" }));
          window.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
          done();
        });
        """
    )
    page.first_is(APPLE)


def test_details_and_more_like_this(page: Page) -> None:
    page.one("#query").send_keys("red")
    page.first_is(APPLE)
    page.one("#results button.card").click()
    page.until(lambda: page.one("#detail").is_displayed())
    assert page.one("#detail-title").text == "a red apple"
    page.until(lambda: "一个红苹果" in page.one("#detail-captions").text)
    assert "2024" in page.one("#detail-facts").text
    page.one("#detail-similar").click()
    page.until(lambda: page.results() and APPLE not in page.results())
    assert "id=fruit" in page.driver.current_url


def test_keys(page: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    def focused() -> Any:
        return page.driver.switch_to.active_element

    press("/")
    page.until(lambda: focused().get_attribute("id") == "query")
    press("red")
    page.first_is(APPLE)
    press(Keys.ARROW_DOWN)
    assert focused().get_attribute("data-id") == APPLE
    press(Keys.ARROW_RIGHT)
    assert focused().get_attribute("data-id") == page.results()[1]
    press(Keys.ENTER)
    page.until(lambda: page.one("#detail").is_displayed())
    press(Keys.ESCAPE)
    page.until(lambda: not page.one("#detail").is_displayed())
    press(Keys.ESCAPE)
    page.until(lambda: focused().get_attribute("id") == "query")


def test_classify(page: Page, tmp_path: Path) -> None:
    picture = tmp_path / "mine.png"
    picture.write_bytes(solid("green"))
    page.one("#tab-classify").click()
    page.one("#labels").send_keys("red, green, blue")
    page.one("#classify-picture").send_keys(str(picture))
    page.until(lambda: len(page.all("#bars li")) == 3)
    assert page.one("#bars li").text.split() == ["green", "100.0%"]
    page.open("#classify")
    assert page.one("#labels").get_property("value") == "red, green, blue", "labels are remembered"


def test_chinese(page: Page) -> None:
    page.one("#language").click()
    assert page.one("#tab-search").text == "搜索"
    assert page.one("html").get_attribute("lang") == "zh-CN"
    page.one("#query").send_keys("绿")
    page.first_is(LEAF)
    page.one("#language").click()
    assert page.one("#tab-search").text == "Search"


def test_text_is_never_markup(page: Page) -> None:
    page.open("#q=" + "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    page.until(lambda: page.results())
    assert page.all("img[src=x]") == []


def test_documentation_is_drawn_offline(page: Page) -> None:
    page.driver.get(page.url + "/docs")
    page.until(lambda: len(page.all(".opblock")) >= 9)


def test_a_refused_picture_says_why(browser: Any, address: str, tmp_path: Path) -> None:
    page = Page(browser, address)  # a refusal is logged to the console by the browser itself
    page.open()
    picture = tmp_path / "broken.png"
    picture.write_bytes(b"nope")
    page.one("#picture").send_keys(str(picture))
    page.until(lambda: "cannot be decoded" in page.one("#notice").text)
    page.open("#id=nobody")
    page.until(lambda: "Not found" in page.one("#notice").text)


def test_what_is_no_picture_is_said_to_be_none(page: Page) -> None:
    page.driver.execute_script(
        """
        const transfer = new DataTransfer();
        transfer.items.add(new File(["hello"], "notes.txt", { type: "text/plain" }));
        window.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
        """
    )
    page.until(lambda: "not a picture" in page.one("#notice").text)
    page.one("#query").send_keys("red")
    page.first_is(APPLE)
    assert not page.one("#notice").is_displayed()
