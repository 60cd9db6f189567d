"""Prompt ensembles: labels and templates -> the sentences a text tower is asked about.

A bare class name is an unlikely caption; "a photo of a {c}." is a likely one, and averaging over
several templates is worth 3.5 points of ImageNet accuracy (Radford et al. 2021, arXiv:2103.00020,
section 3.1.4). It knows nothing of encoders and never evaluates what it is given: `{c}` is
replaced as text, so no label or template can reach an attribute or a format specification.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.errors import InvalidLabelsError

MAX_LABELS = 1000
MAX_TEMPLATES = 200
MAX_CHARACTERS = 1000

_DEFAULT = (
    "a photo of a {c}.",
    "a photo of the {c}.",
    "a picture of {c}.",
    "a close-up photo of a {c}.",
    "{c}",
)
"""Plain captions that suit any collection of photographs and any text tower."""

_IMAGENET_7 = (
    "itap of a {c}.",
    "a bad photo of the {c}.",
    "a origami {c}.",
    "a photo of the large {c}.",
    "a {c} in a video game.",
    "art of the {c}.",
    "a photo of the small {c}.",
)
"""What CLIP's authors picked from the eighty by sequential forward selection on ImageNet
(openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb)."""

_IMAGENET = (
    "a bad photo of a {c}.",
    "a photo of many {c}.",
    "a sculpture of a {c}.",
    "a photo of the hard to see {c}.",
    "a low resolution photo of the {c}.",
    "a rendering of a {c}.",
    "graffiti of a {c}.",
    "a bad photo of the {c}.",
    "a cropped photo of the {c}.",
    "a tattoo of a {c}.",
    "the embroidered {c}.",
    "a photo of a hard to see {c}.",
    "a bright photo of a {c}.",
    "a photo of a clean {c}.",
    "a photo of a dirty {c}.",
    "a dark photo of the {c}.",
    "a drawing of a {c}.",
    "a photo of my {c}.",
    "the plastic {c}.",
    "a photo of the cool {c}.",
    "a close-up photo of a {c}.",
    "a black and white photo of the {c}.",
    "a painting of the {c}.",
    "a painting of a {c}.",
    "a pixelated photo of the {c}.",
    "a sculpture of the {c}.",
    "a bright photo of the {c}.",
    "a cropped photo of a {c}.",
    "a plastic {c}.",
    "a photo of the dirty {c}.",
    "a jpeg corrupted photo of a {c}.",
    "a blurry photo of the {c}.",
    "a photo of the {c}.",
    "a good photo of the {c}.",
    "a rendering of the {c}.",
    "a {c} in a video game.",
    "a photo of one {c}.",
    "a doodle of a {c}.",
    "a close-up photo of the {c}.",
    "a photo of a {c}.",
    "the origami {c}.",
    "the {c} in a video game.",
    "a sketch of a {c}.",
    "a doodle of the {c}.",
    "a origami {c}.",
    "a low resolution photo of a {c}.",
    "the toy {c}.",
    "a rendition of the {c}.",
    "a photo of the clean {c}.",
    "a photo of a large {c}.",
    "a rendition of a {c}.",
    "a photo of a nice {c}.",
    "a photo of a weird {c}.",
    "a blurry photo of a {c}.",
    "a cartoon {c}.",
    "art of a {c}.",
    "a sketch of the {c}.",
    "a embroidered {c}.",
    "a pixelated photo of a {c}.",
    "itap of the {c}.",
    "a jpeg corrupted photo of the {c}.",
    "a good photo of a {c}.",
    "a plushie {c}.",
    "a photo of the nice {c}.",
    "a photo of the small {c}.",
    "a photo of the weird {c}.",
    "the cartoon {c}.",
    "art of the {c}.",
    "a drawing of the {c}.",
    "a photo of the large {c}.",
    "a black and white photo of a {c}.",
    "the plushie {c}.",
    "a dark photo of a {c}.",
    "itap of a {c}.",
    "graffiti of the {c}.",
    "a toy {c}.",
    "itap of my {c}.",
    "a photo of a cool {c}.",
    "a photo of a small {c}.",
    "a tattoo of the {c}.",
)
"""The eighty of CLIP's ImageNet evaluation, in its order."""

_CHINESE = (
    "一张{c}的照片。",
    "一张{c}的图片。",
    "{c}的照片。",
    "一张好看的{c}照片。",
    "一张{c}的特写照片。",
    "照片里有{c}。",
    "图中是{c}。",
)

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    "imagenet": _IMAGENET,
    "imagenet7": _IMAGENET_7,
    "plain": ("{c}",),
    "zh": _CHINESE,
}
"""Named sets; `{c}` stands for the label, as in CLIP_benchmark."""

DEFAULT_TEMPLATES = TEMPLATE_SETS["default"]


def build_prompts(labels: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Every label in every template -> prompts [C][T], labels stripped of outer blanks.

    `{}` in a template means the same as `{c}`; other braces are ordinary characters.

    Raises:
        InvalidLabelsError: see `check_labels` and `check_templates`.
    """
    names = check_labels(labels)
    patterns = check_templates(templates)
    return [[pattern.replace("{c}", name) for pattern in patterns] for name in names]


def check_labels(labels: Sequence[str], *, multi_label: bool = True) -> list[str]:
    """Strip and validate a label set; without `multi_label` a choice needs two labels.

    Raises:
        InvalidLabelsError: too few or more than 1000; not text; empty; longer than
            1000 characters; the same label twice.
    """
    if isinstance(labels, str):
        raise InvalidLabelsError("labels must be a list, not one text")
    fewest = 1 if multi_label else 2
    if not fewest <= len(labels) <= MAX_LABELS:
        raise InvalidLabelsError(
            f"{len(labels)} labels; between {fewest} and {MAX_LABELS} are possible",
            hint=None if multi_label else "one label alone can be judged as multi-label",
        )
    names = [_checked(label, "label") for label in labels]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidLabelsError(f"the label {name!r} appears twice")
        seen.add(name)
    return names


def check_templates(templates: Sequence[str]) -> list[str]:
    """Validate templates and spell their placeholder `{c}`.

    Raises:
        InvalidLabelsError: none or more than 200; not text; empty; too long; without
            a placeholder.
    """
    if isinstance(templates, str):
        raise InvalidLabelsError("templates must be a list, not one text")
    if not 1 <= len(templates) <= MAX_TEMPLATES:
        raise InvalidLabelsError(
            f"{len(templates)} templates; between 1 and {MAX_TEMPLATES} are possible"
        )
    patterns = [_checked(template, "template").replace("{}", "{c}") for template in templates]
    for pattern in patterns:
        if "{c}" not in pattern:
            raise InvalidLabelsError(
                f"the template {pattern[:60]!r} has no place for the label",
                hint="write {c} where the label goes, as in 'a photo of a {c}.'",
            )
    return patterns


def resolve_templates(values: Sequence[str]) -> tuple[str, ...]:
    """Expand names of `TEMPLATE_SETS` among templates; nothing at all means the default set.

    Raises:
        InvalidLabelsError: a value is neither a set's name nor a template.
    """
    if not values:
        return DEFAULT_TEMPLATES
    expanded: list[str] = []
    for value in values:
        if value in TEMPLATE_SETS:
            expanded += TEMPLATE_SETS[value]
        elif "{c}" in value or "{}" in value:
            expanded.append(value)
        else:
            raise InvalidLabelsError(
                f"{value[:60]!r} is neither a template nor a template set",
                hint=f"sets: {', '.join(TEMPLATE_SETS)}; templates contain {{c}}",
            )
    return tuple(dict.fromkeys(check_templates(expanded)))


def _checked(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidLabelsError(f"a {what} must be text, not {type(value).__name__}")
    text = value.strip()
    if not text:
        raise InvalidLabelsError(f"a {what} is empty")
    if len(text) > MAX_CHARACTERS:
        raise InvalidLabelsError(
            f"a {what} has {len(text):,} characters; at most {MAX_CHARACTERS} are possible"
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidLabelsError(f"a {what} is not valid Unicode")
    return text
