"""Searching on the page, in a real browser: words, pictures, both, filters; real photographs."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.timeout(240)
Visit = Callable[..., Any]

CARDS = "#results button.card"


def ids(page: Any) -> list[str]:
    return list(page.locator(CARDS).evaluate_all("cards => cards.map((card) => card.dataset.id)"))


def first_is(page: Any, item: str) -> None:
    page.wait_for_function(
        f"(id) => document.querySelector('{CARDS}')?.dataset.id === id", arg=item
    )


def settled(page: Any, action: Callable[[], Any]) -> Any:
    """Do something that searches, and wait until its answer is drawn; the answer."""
    with page.expect_response(lambda response: "/v1/search" in response.url) as answered:
        action()
    answer = answered.value.json()
    page.wait_for_function("() => !document.querySelector('#view-search[aria-busy]')")
    return answer


def drop(page: Any, picture: Path, kind: str = "image/png") -> None:
    page.evaluate(
        """([name, kind, encoded]) => {
          const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, { type: kind }));
          window.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
        }""",
        [picture.name, kind, base64.b64encode(picture.read_bytes()).decode()],
    )


@pytest.mark.parametrize("words", ["a cat", "一只猫"])
def test_typing_searches_by_itself(visit: Visit, words: str) -> None:
    page = visit()
    page.get_by_role("heading", name="Say it, or show it.").wait_for()
    page.fill("#query", words)
    first_is(page, "chelsea")
    card = page.locator(CARDS).first
    assert "A tabby cat." in card.inner_text()
    page.wait_for_function("() => document.querySelector('#results img').naturalWidth > 0")
    assert re.search(r"36 nearest · \d+ ms", page.inner_text("#status"))
    assert page.evaluate("decodeURIComponent(location.hash)").replace("+", " ").endswith(words)


def test_the_address_can_be_shared_and_gone_back_to(visit: Visit) -> None:
    page = visit("#search?q=a+rocket+on+the+launch+pad")
    first_is(page, "rocket")
    assert page.input_value("#query") == "a rocket on the launch pad"
    page.fill("#query", "a cat")
    first_is(page, "chelsea")
    page.go_back()
    first_is(page, "rocket")
    page.get_by_role("radio", name="Captions").check()
    page.wait_for_selector("#results .card.text")
    assert "target=texts" in page.url


def test_a_dropped_picture_finds_itself_and_captions(visit: Visit, photographs: Path) -> None:
    page = visit()
    drop(page, photographs / "coffee.png")
    first_is(page, "coffee")
    page.locator(".part.pictured img").wait_for()
    answer = settled(page, lambda: page.get_by_role("radio", name="Captions").check())
    assert {hit["modality"] for hit in answer["hits"]} == {"text"}
    page.get_by_role("button", name="Remove your picture").click()
    page.get_by_role("heading", name="Say it, or show it.").wait_for()
    assert ids(page) == []


def test_a_chosen_picture_joins_the_words(visit: Visit, photographs: Path) -> None:
    page = visit("#search?q=a+cat")
    first_is(page, "chelsea")
    with page.expect_request("**/v1/search") as asked:
        page.set_input_files("#picture", photographs / "coffee.png")
    parts = json.loads(asked.value.post_data)["query"]
    assert [sorted(part) for part in parts] == [["image"], ["text"]]
    page.wait_for_function(f"() => document.querySelector('{CARDS}')?.dataset.id === 'coffee'")
    both = ids(page).index("chelsea")
    settled(page, lambda: page.fill("#query", ""))
    assert both < [*ids(page), "chelsea"].index("chelsea"), "the words pull their picture up"


def test_parts_are_kept_turned_and_removed(visit: Visit) -> None:
    page = visit()
    page.fill("#query", "a drink")
    page.keyboard.press("Enter")
    assert page.input_value("#query") == ""
    page.fill("#query", "+a cup of coffee")
    page.keyboard.press("Enter")
    first_is(page, "coffee")
    with page.expect_request("**/v1/search") as asked:
        settled(page, page.get_by_role("button", name="a cup of coffee. Counts for").click)
    assert json.loads(asked.value.post_data)["query"] == [
        {"text": "a drink"},
        {"text": "a cup of coffee", "weight": -0.5},
    ]
    assert "coffee" not in ids(page)[:1], "it was taken away"
    assert "less=a+cup+of+coffee" in page.url
    settled(page, page.get_by_role("button", name="Remove a drink").click)
    page.fill("#query", "")
    page.keyboard.press("Backspace")
    assert page.input_value("#query") == "a cup of coffee", "the last words come back for editing"


def test_filters_come_from_the_declared_fields(visit: Visit) -> None:
    page = visit("#search?q=a+round+thing")
    page.wait_for_selector(CARDS)
    page.locator("#filters").get_by_role("button", name="kind", exact=True).click()
    choice = page.locator("#choices-kind label", has_text="space")
    assert choice.locator(".count").inner_text() == "3"
    settled(page, choice.click)
    assert sorted(ids(page)) == ["hubble_deep_field", "moon", "rocket"]
    settled(page, page.locator("#choices-kind label", has_text="people").click)
    assert len(ids(page)) == 5
    page.keyboard.press("Escape")
    page.locator("#filters").get_by_role("button", name="year", exact=True).click()
    settled(page, lambda: page.get_by_label("From").fill("1999"))
    assert sorted(ids(page)) == ["astronaut", "camera", "rocket"]
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_function(f"() => document.querySelectorAll('{CARDS}').length === 3")
    settled(page, page.get_by_role("button", name="Clear: kind").click)
    assert "year ≥ 1999" in page.inner_text("#filters")
    assert {"coffee", "coins"} <= set(ids(page))


def test_a_filter_that_fits_nothing_or_is_not_declared(visit: Visit) -> None:
    nothing = json.dumps({"year": {"gte": 2050}})
    page = visit(f"#search?q=cat&filter={nothing}")
    page.get_by_text("No item passes these filters.").wait_for()
    page.get_by_role("button", name="Clear the filters").click()
    first_is(page, "chelsea")
    page = visit(f"#search?q=cat&filter={json.dumps({'colour': {'in': ['red']}})}", complains=True)
    notice = page.locator("#notice")
    notice.get_by_text("kind").wait_for()
    page.get_by_role("button", name="Clear: colour").click()
    first_is(page, "chelsea")
    assert not notice.is_visible()


def test_more_like_this_and_less(visit: Visit) -> None:
    page = visit("#search?q=a+cat")
    first_is(page, "chelsea")
    page.locator(CARDS).first.click()
    page.get_by_role("button", name="More like this").click()
    page.wait_for_function(f"() => document.querySelector('{CARDS}')?.dataset.id !== 'chelsea'")
    assert "chelsea" not in ids(page), "an item is left out of what is like it"
    assert "like=chelsea" in page.url
    other = ids(page)[1]
    card = page.locator("li.hit", has=page.locator(f'[data-id="{other}"]'))
    card.hover()
    settled(page, card.get_by_role("button", name="Less like this").click)
    assert page.locator("#pictures-parts .part.less").count() == 1
    assert other not in ids(page), "nor is one that was taken away"


def test_the_open_picture(visit: Visit) -> None:
    page = visit("#search?q=a+cup+of+coffee")
    first_is(page, "coffee")
    page.locator(CARDS).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("heading", name="A cup of coffee with a spoon.").wait_for()
    dialog.get_by_text("一杯咖啡和勺子。").first.wait_for()
    facts = dialog.locator("#detail-facts")
    assert "things" in facts.inner_text()
    assert "2012" in facts.inner_text()
    said = dialog.locator("#detail-said li")
    said.first.wait_for()
    assert "its own" in said.first.inner_text(), "the model finds a caption of this picture first"
    # where: the picture is covered by one with its warm places
    dialog.get_by_role("button", name="Show where").click()
    page.wait_for_function("() => document.querySelector('#detail-heat').naturalWidth > 0")
    assert page.locator("#detail-heat").get_attribute("alt") == "what speaks for “a cup of coffee”"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('#detail-rank').textContent.endsWith('2')")
    assert not page.locator("#detail-heat").is_visible(), "the next one starts cool"
    page.keyboard.press("Escape")
    page.wait_for_function("(id) => document.activeElement.dataset.id === id", arg=ids(page)[1])


def test_the_grid_grows_as_it_is_scrolled(visit: Visit) -> None:
    page = visit("#search?q=a+cat")
    page.wait_for_function(f"() => document.querySelectorAll('{CARDS}').length === 36")
    page.mouse.wheel(0, 20_000)
    page.wait_for_function(f"() => document.querySelectorAll('{CARDS}').length > 36")
    page.get_by_text("That is all.").wait_for()
    found = ids(page)
    assert len(found) == len(set(found)) == 41


def test_what_fits_badly_is_said_kindly(visit: Visit) -> None:
    page = visit()
    verdict = {"no_good_match": True}

    def judged(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | verdict)

    page.route("**/v1/search", judged)
    page.fill("#query", "a cat")
    page.get_by_text("Nothing here fits well.").wait_for()
    assert ids(page), "the nearest are shown all the same"
    verdict["no_good_match"] = False
    settled(page, lambda: page.fill("#query", "a cat on a chair"))
    assert not page.locator("#no-match").is_visible()


def test_relevance_fills_the_bars(visit: Visit) -> None:
    page = visit()
    answer = settled(page, lambda: page.fill("#query", "a cat"))
    relevances = [hit["relevance"] for hit in answer["hits"]]
    assert relevances[0] is not None
    shares = page.locator(f"{CARDS} .meter").evaluate_all(
        "bars => bars.map((bar) => Number(bar.style.getPropertyValue('--share')))"
    )
    assert shares == pytest.approx(relevances)


def test_a_refused_picture_says_why(visit: Visit, tmp_path: Path) -> None:
    page = visit(complains=True)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nope")
    page.set_input_files("#picture", broken)
    page.locator("#notice").get_by_text("cannot be decoded").wait_for()
    drop(page, broken, kind="text/plain")
    page.locator("#notice").get_by_text("That is not a picture").wait_for()
    page.get_by_role("button", name="Remove your picture").click()
    page.fill("#query", "a cat")
    first_is(page, "chelsea")
    assert not page.locator("#notice").is_visible()


def test_a_service_that_does_not_answer(visit: Visit) -> None:
    page = visit(complains=True)
    page.context.set_offline(True)
    page.fill("#query", "a cat")
    page.locator("#notice").get_by_text("The service does not answer").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    first_is(page, "chelsea")


def test_an_index_without_captions(visit: Visit) -> None:
    page = visit("#search?q=red&target=texts&index=plain")
    page.get_by_text("This index holds no captions.").wait_for()
    settled(page, page.get_by_role("button", name="Search the pictures instead").click)
    assert any(item.startswith("swatch") for item in ids(page))
    settled(page, lambda: page.select_option("#index-name", "photos"))
    assert len(ids(page)) == 36
    assert "index=" not in page.url, "the default needs no name"


def test_text_is_never_markup(visit: Visit) -> None:
    page = visit("#search?q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&with=%3Cb%3Ebold%3C%2Fb%3E")
    page.wait_for_selector(CARDS)
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("#words-parts").inner_text().strip() == "<b>bold</b>"


def test_words_too_and_no_near_duplicates(visit: Visit) -> None:
    page = visit("#search?q=cat")
    page.locator(CARDS).first.wait_for()
    assert not page.is_checked("#hybrid")
    for box, name, answer_has in (
        ("Words too", "hybrid", "fused"),
        ("Hide near-duplicates", "distinct", ""),
    ):
        answer = settled(page, lambda box=box: page.get_by_label(box).check())
        assert f"{name}=1" in page.url
        assert not answer_has or answer_has in answer["hits"][0]
    with page.expect_request(lambda request: "/v1/search" in request.url) as sent:
        page.reload()
    body = json.loads(sent.value.post_data)
    assert (body["hybrid"], body["deduplicate"]) == (True, True)
    assert page.is_checked("#hybrid")
    assert page.is_checked("#distinct")
    settled(page, lambda: page.get_by_label("Words too").uncheck())
    assert "hybrid" not in page.url


def sent_picture(request: Any) -> Image.Image:
    query = json.loads(request.post_data)["query"]
    part = next(one for one in (query if isinstance(query, list) else [query]) if "image" in one)
    return Image.open(BytesIO(base64.b64decode(part["image"].split(",")[1])))


def test_a_phones_picture_is_made_smaller_before_it_is_sent(
    visit: Visit, photographs: Path, tmp_path: Path
) -> None:
    page = visit()
    phone = tmp_path / "phone.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    with Image.open(photographs / "coffee.png") as coffee:
        large = coffee.convert("RGB").resize((8000, 6000)).rotate(90, expand=True)
        large.save(phone, quality=60, exif=turned)
    with page.expect_request("**/v1/search") as asked:
        page.set_input_files("#picture", phone)
    sent = sent_picture(asked.value)
    assert (max(sent.size), sent.size[0] > sent.size[1]) == (1600, True)
    first_is(page, "coffee")
    # and a small one is sent as it is
    with page.expect_request("**/v1/search") as asked:
        drop(page, photographs / "chelsea.png")
    encoded = json.loads(asked.value.post_data)["query"]["image"].split(",")[1]
    assert base64.b64decode(encoded) == (photographs / "chelsea.png").read_bytes()


def test_a_search_with_a_picture_is_gone_back_to_and_reloaded(
    visit: Visit, photographs: Path
) -> None:
    page = visit("#search?q=a+cat")
    first_is(page, "chelsea")
    settled(page, lambda: drop(page, photographs / "coffee.png"))
    first_is(page, "coffee")
    found = ids(page)
    page.reload()
    first_is(page, "coffee")
    assert ids(page) == found
    assert page.input_value("#query") == "a cat"
    page.locator(".part.pictured img").wait_for()
    page.go_back()
    first_is(page, "chelsea")
    assert page.locator(".part.pictured").count() == 0
    page.go_forward()
    first_is(page, "coffee")
    # the address means less in another tab, which says so
    other = visit(page.url[page.url.index("#") :])
    first_is(other, "chelsea")
    assert "show it again" in other.inner_text("#status")
    settled(other, lambda: other.fill("#query", "a cat on a bed"))
    assert "show it again" in other.inner_text("#status")
    settled(other, lambda: drop(other, photographs / "coffee.png"))
    assert "show it again" not in other.inner_text("#status")
