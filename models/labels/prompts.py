"""Prompt ensembles: labels and templates -> the sentences a text tower is asked about.

A bare class name is an unlikely caption; "a photo of a {c}." is a likely one, and averaging over
several templates is worth 3.5 points of ImageNet accuracy (Radford et al. 2021, arXiv:2103.00020,
section 3.1.4). It knows nothing of encoders and never evaluates what it is given: `{c}` is
replaced as text, so no label or template can reach an attribute or a format specification.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from models.errors import InvalidLabelsError
from models.labels.template_sets import TEMPLATE_SETS as TEMPLATE_SETS  # re-exported

MAX_LABELS = 1000
MAX_TEMPLATES = 200
MAX_CHARACTERS = 1000

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


_CODE: Final = re.compile(
    r"n\d{8}"  # WordNet's, as ImageNet's folders are called
    r"|[a-z]{0,3}[-_ ]?\d[\d_.-]*"
    r"|(?:class|label|category|cat|cls|id|object|type)[-_ ]*\d+"
    r"|(?=[a-f]*\d)[0-9a-f]{8,}|[0-9a-f]{8}-[0-9a-f-]{27}",
    re.IGNORECASE,
)
_CERTAIN: Final = re.compile(r"n\d{8}|[\d_.-]+", re.IGNORECASE)


def codes(labels: Sequence[str]) -> list[str]:
    """The labels that look like codes (`n02084071`, `12`, `class_3`), of which no tower knows what
    they mean.

    What may also be a name (`A4`, `F16`) counts only where half of the labels look so.
    """
    looking = [label for label in labels if _CODE.fullmatch(label.strip())]
    if 2 * len(looking) >= len(labels):
        return looking
    return [label for label in looking if _CERTAIN.fullmatch(label.strip())]


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
