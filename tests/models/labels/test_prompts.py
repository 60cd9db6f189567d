"""Labels and templates: what is accepted, what is refused, and that nothing is evaluated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidLabelsError
from models.labels.prompts import (
    DEFAULT_TEMPLATES,
    TEMPLATE_SETS,
    build_prompts,
    check_labels,
    codes,
    resolve_templates,
)


def test_prompts_are_labels_times_templates() -> None:
    assert build_prompts(["cat", " dog "], ["a {c}.", "the {}!"]) == [
        ["a cat.", "the cat!"],
        ["a dog.", "the dog!"],
    ]


def test_the_imagenet_sets_are_clips_own() -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    for name, oracle in (
        ("imagenet", OPENAI_IMAGENET_TEMPLATES),
        ("imagenet7", SIMPLE_IMAGENET_TEMPLATES),
    ):
        (ours,) = build_prompts(["zebra"], TEMPLATE_SETS[name])
        assert ours == [template("zebra") for template in oracle]


def test_every_named_set_is_valid_and_without_repetition() -> None:
    for templates in TEMPLATE_SETS.values():
        (prompts,) = build_prompts(["猫"], templates)
        assert len(set(prompts)) == len(templates)


def test_the_domain_sets_are_as_long_as_clips() -> None:
    """Counted in openai/CLIP's data/prompts.md, where they are named after datasets."""
    clip = {
        "general": 18, "food": 1, "pets": 1, "birds": 1, "flowers": 1, "aircraft": 2, "cars": 8,
        "textures": 8, "scenes": 2, "satellite": 18, "actions": 48, "countries": 5, "emotions": 6,
        "traffic-signs": 3,
    }  # fmt: skip
    assert {name: len(TEMPLATE_SETS[name]) for name in clip} == clip
    assert "a demonstration of the person practicing {c}." in TEMPLATE_SETS["actions"]
    assert "aerial view of the {c}." in TEMPLATE_SETS["satellite"]
    assert "a photo of the big {c}." in TEMPLATE_SETS["general"]
    assert {name for name in TEMPLATE_SETS if name.startswith("zh-")} >= {
        f"zh-{name}" for name in ("food", "pets", "flowers", "aircraft", "textures", "scenes",
                                  "satellite", "cars", "actions")
    }  # fmt: skip


@pytest.mark.parametrize(
    "template",
    ["{c} {0.__class__}", "{c}{0.__init__.__globals__}", "{c} %s {c!r} {c:>9999999999}", "{c} {{}"],
)
def test_other_braces_are_only_characters(template: str) -> None:
    (((prompt,)),) = build_prompts(["cat"], [template])
    assert prompt == template.replace("{}", "{c}").replace("{c}", "cat")


@pytest.mark.parametrize("template", ["{0.__class__}", "{0}", "{C}", "%s", "photo", "", "  "])
def test_a_template_needs_a_place_for_the_label(template: str) -> None:
    with pytest.raises(InvalidLabelsError):
        build_prompts(["cat"], [template])


def test_a_label_is_never_expanded() -> None:
    assert build_prompts(["{c}", "{}"], ["a {c} {c}"]) == [["a {c} {c}"], ["a {} {}"]]


@pytest.mark.parametrize(
    "labels",
    [
        [],
        "cat",
        ["cat", ""],
        ["cat", " \t"],
        ["cat", "cat"],
        ["cat", " cat "],
        ["cat", 3],
        ["cat", None],
        ["x" * 1001],
        ["\ud800"],
        [f"label {number}" for number in range(1001)],
    ],
)
def test_unusable_labels(labels: object) -> None:
    with pytest.raises(InvalidLabelsError) as caught:
        build_prompts(labels, ["{c}"])  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("templates", [[], "a {c}", [None], ["{c}" + "x" * 1000], ["{c}"] * 201])
def test_unusable_templates(templates: object) -> None:
    with pytest.raises(InvalidLabelsError):
        build_prompts(["cat"], templates)  # type: ignore[arg-type]


def test_bounds_are_inclusive() -> None:
    labels = [f"label {number}" for number in range(1000)]
    assert check_labels(labels) == labels
    assert check_labels(["x" * 1000])
    assert check_labels(["one"], multi_label=True) == ["one"]
    with pytest.raises(InvalidLabelsError):
        check_labels(["one"], multi_label=False)


def test_set_names_expand_among_templates() -> None:
    assert resolve_templates([]) == DEFAULT_TEMPLATES
    assert resolve_templates(["plain", "my {}", "{c}"]) == ("{c}", "my {c}")
    assert resolve_templates(["imagenet"]) == TEMPLATE_SETS["imagenet"]
    with pytest.raises(InvalidLabelsError, match="imagnet") as caught:
        resolve_templates(["imagnet"])
    assert "imagenet" in str(caught.value.hint)


@given(st.text(min_size=1, max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_any_text_round_trips(label: str, before: str, after: str) -> None:
    template = f"{before}{{c}}{after}"
    try:
        ((prompt,),) = build_prompts([label], [template])
    except InvalidLabelsError:
        return
    assert label.strip() in prompt
    assert len(prompt) >= len(label.strip())


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["n02084071", "n01443537"], ["n02084071", "n01443537"]),
        (["cat", "dog", "bird", "12"], ["12"]),
        (["cat", "dog", "bird", "N02084071"], ["N02084071"]),
        (["0", "1", "2"], ["0", "1", "2"]),
        (["class_0", "Class 1", "label-7"], ["class_0", "Class 1", "label-7"]),
        (["c1", "c2"], ["c1", "c2"]),
        (["d41d8cd98f00b204", "cat"], ["d41d8cd98f00b204"]),
        (["A4", "letter", "photo"], []),
        (["cat", "dog"], []),
        (["F16 fighter", "Boeing 747"], []),
        (["猫", "狗", "12月"], []),
        (["decade", "facade"], []),
    ],
)
def test_labels_that_are_codes_are_known(labels: list[str], found: list[str]) -> None:
    assert codes(labels) == found
