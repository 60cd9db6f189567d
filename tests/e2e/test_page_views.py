"""The page's other views in a real browser: classify, index, compare, language, documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(240)
Visit = Callable[..., Any]


def classify(page: Any, labels: str, picture: Path) -> None:
    page.fill("#labels", labels)
    page.set_input_files("#classify-picture", picture)
    page.locator("#bars li.first").wait_for()


def test_classify(visit: Visit, photographs: Path) -> None:
    page = visit("#classify")
    page.get_by_text("Name at least two labels.").wait_for()
    classify(page, "a cat, a rocket, a cup of coffee", photographs / "chelsea.png")
    rows = page.locator("#bars li")
    assert rows.count() == 3
    assert rows.first.locator(".label").inner_text() == "a cat"
    percents = [
        float(text.rstrip("%")) for text in page.locator("#bars .percent").all_inner_texts()
    ]
    assert sum(percents) == pytest.approx(100, abs=0.2)
    assert percents == sorted(percents, reverse=True)
    page.reload()
    assert page.input_value("#labels") == "a cat, a rocket, a cup of coffee", (
        "labels are remembered"
    )


def test_none_of_these_is_an_answer(visit: Visit, photographs: Path) -> None:
    page = visit("#classify")
    page.get_by_label("Allow “none of these”").check()
    # the background's prompts are embedded at their first use
    page.context.set_default_timeout(180_000)
    with page.expect_response("**/v1/classify") as answered:
        classify(page, "a cat, a rocket", photographs / "chelsea.png")
    asked = json.loads(answered.value.request.post_data)
    assert asked["abstain"] is True
    result = answered.value.json()["results"][0]
    background = page.locator("#bars li.background")
    assert f"{result['background']:.1%}" in background.inner_text()
    assert page.locator("#abstained").is_visible() == result["abstained"]

    def abstaining(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        body["results"][0]["abstained"] = True
        route.fulfill(response=answer, json=body)

    page.route("**/v1/classify", abstaining)
    page.fill("#labels", "a violin, a trumpet")
    page.get_by_text("None of these.").wait_for()


def test_label_sets_are_saved_chosen_and_deleted(visit: Visit, photographs: Path) -> None:
    page = visit("#classify")
    classify(page, "a cat, a rocket", photographs / "rocket.jpg")
    page.get_by_role("button", name="Save as a set").click()
    page.get_by_label("Name: lower-case").fill("two things")
    page.get_by_role("button", name="Save", exact=True).click()
    assert page.locator("#save-name:invalid").is_visible(), "asked to mend the name"
    page.get_by_label("Name: lower-case").fill("two-things")
    page.get_by_role("button", name="Save", exact=True).click()
    page.wait_for_function("() => document.querySelector('#set').value === 'two-things'")
    page.get_by_label("Label set").select_option("")
    page.fill("#labels", "a dog, a horse")
    page.wait_for_function("() => document.querySelector('#bars').textContent.includes('a horse')")
    with page.expect_request("**/v1/classify") as asked:
        page.get_by_label("Label set").select_option("two-things")
    sent = json.loads(asked.value.post_data)
    assert sent["label_set"] == "two-things"
    assert "labels" not in sent
    page.wait_for_function("() => document.querySelector('#bars').textContent.includes('a rocket')")
    page.get_by_role("button", name="Delete").click()
    page.wait_for_function("() => document.querySelector('#sets').hidden")
    assert page.evaluate("fetch('/v1/label-sets').then((got) => got.json())")["label_sets"] == []


def test_where_the_label_is_seen(visit: Visit, photographs: Path) -> None:
    page = visit("#classify")
    classify(page, "a cat, a rocket", photographs / "chelsea.png")
    assert page.locator("#preview").get_attribute("src").startswith("blob:")
    page.get_by_label("Show where").check()
    page.wait_for_function(
        "() => document.querySelector('#preview').src.startsWith('data:image/png')"
    )
    page.get_by_text("what speaks for “a cat”").wait_for()
    assert page.evaluate("document.querySelector('#preview').naturalWidth") > 100
    page.get_by_label("Show where").uncheck()
    page.wait_for_function("() => document.querySelector('#preview').src.startsWith('blob:')")


def test_a_broken_picture_and_bad_labels(visit: Visit, tmp_path: Path) -> None:
    page = visit("#classify", complains=True)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nope")
    page.fill("#labels", "a, b")
    page.set_input_files("#classify-picture", broken)
    page.locator("#classify-notice").get_by_text("cannot be decoded").wait_for()


def test_the_index_view(visit: Visit) -> None:
    page = visit("#index")
    card = page.locator(".index-card").first
    card.wait_for()
    text = card.inner_text()
    for expected in (
        "photos",
        "41",
        "pictures",
        "captions",
        "starter",
        "exact",
        "kind",
        "swatches",
    ):
        assert expected in text
    assert "1990 to 2015" in text
    known = page.evaluate("fetch('/v1/index').then((got) => got.json())")
    assert page.get_by_title(known["fingerprint"]).count() >= 1
    plain = page.locator(".index-card").nth(1).inner_text()
    assert "No field was declared." in plain


def test_the_index_view_tells_what_was_measured_and_of_what(visit: Visit) -> None:
    structure = {
        "structure": "hnsw", "recipe": "HNSW32,SQ8", "effort": 4, "refine": 1, "latency_ms": 0.1,
        "bytes_per_vector": 900.0, "kind": "texts",
    }  # fmt: skip

    def optimized(route: Any) -> None:
        known = route.fetch().json()
        known["structures"] = [
            {**structure, "modality": "image", "rows": 30, "recall": 0.401, "queries": 200},
            {**structure, "modality": "image", "rows": 5, "recall": 1.0, "queries": 0},
        ]
        known["degraded"] = ["segments/a/ann.faiss: its sum is wrong"]
        known["fields"][0]["values"] = [
            {"value": "both", "count": 2, "texts": 3}, {"value": "said", "count": 0, "texts": 1},
        ]  # fmt: skip
        route.fulfill(json=known)

    page = visit()
    page.route("**/v1/index?index=photos", optimized)
    page.get_by_role("link", name="Index").click()
    card = page.locator(".index-card").first
    card.get_by_text("0.401, measured with 200 queries at effort 4 over 30 rows").wait_for()
    text = card.inner_text()
    assert "not measured" in text
    assert "approximate (HNSW32,SQ8) over 35 rows, exact over 6" in text
    captions = text.lower().split("recall@10: captions")[1]
    assert "by construction" in captions.split("relevance")[0]
    assert "search structures: 1" in text
    chips = card.locator(".values").first.inner_text()
    assert re.findall(r"both\s*2 pictures, 3 captions", chips)
    assert re.findall(r"said\s*1 caption$", chips)


def test_two_indexes_side_by_side(visit: Visit) -> None:
    page = visit("#compare")
    page.get_by_text("Ask something above").wait_for()
    page.fill("#query", "something red")
    page.locator("#compare-right li.hit").first.wait_for()
    page.wait_for_function("() => /share \\d+ of their first 10/.test(document.body.innerText)")
    left, right = (
        page.locator(f"#compare-{side} button.card").evaluate_all(
            "cards => cards.map((card) => card.dataset.id)"
        )
        for side in ("left", "right")
    )
    shared = len(set(left[:10]) & set(right[:10]))
    assert f"share {shared} of their first 10" in page.inner_text("#agreement")
    common = next(item for item in left if item in right)
    page.locator("#compare-left li.hit", has=page.locator(f'[data-id="{common}"]')).hover()
    assert page.locator("#compare-right li.twin button.card").get_attribute("data-id") == common
    page.get_by_label("Index on the right").select_option("photos")
    page.wait_for_function("() => document.body.innerText.includes('share 10 of their first 10')")
    page.locator("#compare-left button.card").first.click()
    assert page.get_by_role("dialog").is_visible()


def test_chinese(visit: Visit) -> None:
    page = visit(locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.get_by_role("heading", name="说出来，或拿出来。").wait_for()
    page.get_by_role("link", name="分类").click()
    page.get_by_text("请至少写两个标签。").wait_for()
    page.get_by_role("button", name="English").click()
    page.get_by_text("Name at least two labels.").wait_for()
    page.reload()
    page.get_by_role("link", name="Classify").wait_for()


def test_every_word_is_said_in_both_languages() -> None:
    import re

    from browsing import ROOT

    words = [
        (ROOT / "service/page" / f"words-{code}.js").read_text(encoding="utf-8")
        for code in ("en", "zh")
    ]
    keys = [set(re.findall(r"(?:^  |, )([a-zA-Z]+): ", text, re.MULTILINE)) for text in words]
    assert keys[0] == keys[1]
    assert len(keys[0]) > 90
    markup = (ROOT / "service/page/index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'data-i18n(?:-[a-z]+)?="([a-zA-Z]+)"', markup)) <= keys[0]


def test_the_theme_is_chosen_and_kept(visit: Visit) -> None:
    page = visit(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Theme: as the system").click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate(ground) == dark


def test_documentation_is_drawn_offline(visit: Visit) -> None:
    page = visit()
    page.goto("/docs")
    page.locator(".opblock").nth(8).wait_for()
