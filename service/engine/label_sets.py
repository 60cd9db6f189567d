"""What a classification asks for: labels, how to prompt them, and what was learnt about them.

One frozen type serves a request's own labels and a stored label set, so that both are checked and
used alike. Knows no encoder, no file and no HTTP.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from models.errors import InputError, InvalidLabelsError
from models.labels.calibration import MAX_OFFSET, MAX_TEMPERATURE, MIN_TEMPERATURE
from models.labels.class_head import ClassHead
from models.labels.hierarchy import SEPARATOR, Hierarchy, looks_hierarchical
from models.labels.prompts import DEFAULT_TEMPLATES, TEMPLATE_SETS, check_labels, check_templates
from models.labels.zeroshot import DEFAULT_ALPHA, DEFAULT_BETA
from models.vectors import Vectors

# a thousand labels in the eighty templates of ImageNet; more is a mistake or an attack
MAX_PROMPTS = 80_000
MAX_EXAMPLES = 256
MAX_ALPHA = 1000.0
MAX_BETA = 100.0


@dataclass(frozen=True, slots=True)
class Examples:
    """Embedded few-shot pictures: `targets[n]` is the position of row n's label."""

    vectors_ND: Vectors
    targets: tuple[int, ...]


NO_EXAMPLES = Examples(np.zeros((0, 0), dtype=np.float32), ())


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Checked labels and everything that decides their probabilities.

    Attributes:
        labels: as named by the caller, stripped.
        templates: own prompts, or None for `template_set` or the default ones.
        tree: the labels read as paths, or None.
        abstain: the background's probability from which a picture is none of these; True for the
            measured default, None for never.
        temperature: what logits are divided by; None where nobody calibrated.
        offset: of labels judged one by one, how many logits above its zero a label is as likely as
            not; None where nobody calibrated.
        head: what was trained on labelled pictures, in the place of prompts; never stored.
        encoder: digest of the pair that made `examples`, `temperature` and `offset`; empty without
            them.
    """

    labels: tuple[str, ...]
    templates: tuple[str, ...] | None = None
    template_set: str | None = None
    multi_label: bool = False
    tree: Hierarchy | None = None
    abstain: float | bool | None = None
    temperature: float | None = None
    offset: float | None = None
    alpha: float | None = None
    beta: float | None = None
    examples: Examples = field(default=NO_EXAMPLES)
    model: str = ""
    encoder: str = ""
    updated: str = ""
    head: ClassHead | None = None

    @classmethod
    def of_head(cls, head: ClassHead, temperature: float | None = None) -> LabelSet:
        """The labels of a trained head. Raises as `check_label_set`."""
        checked = check_label_set(head.labels, hierarchy=False, temperature=temperature)
        return replace(
            checked, labels=head.labels, head=head, model=head.model, encoder=head.encoder
        )

    @property
    def prompts(self) -> tuple[str, ...]:
        """The templates to use."""
        if self.templates is not None:
            return self.templates
        return TEMPLATE_SETS[self.template_set] if self.template_set else DEFAULT_TEMPLATES

    @property
    def prompt_names(self) -> list[str]:
        """What each label is called in prompts: itself, or the end of its path."""
        return list(self.labels) if self.tree is None else self.tree.prompt_names()

    @property
    def mix(self) -> tuple[float, float]:
        """(alpha, beta) of `models.labels.zeroshot`."""
        return (
            DEFAULT_ALPHA if self.alpha is None else self.alpha,
            DEFAULT_BETA if self.beta is None else self.beta,
        )

    def paths(self, level: int | None = None) -> list[tuple[str, ...]]:
        """What a picture can be found to be: the labels, or the tree's nodes at a level."""
        if self.tree is None:
            return [(label,) for label in self.labels]
        return list(self.tree.leaves if level is None else self.tree.at_level(level))

    def positions(self) -> dict[str, int]:
        """Labels by what a source may call them: the label, a path's spelling, and the last part of
        a path if only one path ends so."""
        position = {label: at for at, label in enumerate(self.labels)}
        if self.tree is not None:
            ends = [leaf[-1] for leaf in self.tree.leaves]
            position |= {SEPARATOR.join(leaf): at for at, leaf in enumerate(self.tree.leaves)}
            position |= {
                end: at
                for at, end in enumerate(ends)
                if ends.count(end) == 1 and end not in position
            }
        return position

    def example_counts(self) -> dict[str, int]:
        counts = Counter(self.labels[target] for target in self.examples.targets)
        return {label: counts[label] for label in self.labels if counts[label]}


def matrix_key(names: Sequence[str], prompts: Sequence[str], encoder: str) -> str:
    """sha256 (hex) of all a class matrix is made of: names, templates and the encoder's digest."""
    content = json.dumps([list(names), list(prompts), encoder], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


def check_label_set(
    labels: Sequence[str],
    *,
    templates: Sequence[str] | None = None,
    template_set: str | None = None,
    multi_label: bool = False,
    hierarchy: bool | None = None,
    abstain: float | bool | None = None,
    temperature: float | None = None,
    offset: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
) -> LabelSet:
    """A label set without examples, once every part of it is known to be usable.

    Args:
        hierarchy: whether labels are paths; None decides by `looks_hierarchical`.

    Raises:
        InvalidLabelsError: labels, templates, both kinds of templates, an unknown set, a path.
        InputError: a number out of its range, or an offset of labels that share out one.
    """
    if templates is not None and template_set is not None:
        raise InvalidLabelsError("give templates or a template set, not both")
    if template_set is not None and template_set not in TEMPLATE_SETS:
        raise InvalidLabelsError(f"unknown template set; there are {', '.join(TEMPLATE_SETS)}")
    if offset is not None and not multi_label:
        raise InputError(
            "an offset belongs to labels that are judged one by one", hint="set multi_label"
        )
    names = check_labels(labels, multi_label=multi_label)
    if hierarchy is None:
        hierarchy = looks_hierarchical(names)
    checked = LabelSet(
        labels=tuple(names),
        templates=None if templates is None else tuple(check_templates(templates)),
        template_set=template_set,
        multi_label=multi_label,
        tree=Hierarchy.of(names) if hierarchy else None,
        abstain=check_abstain(abstain),
        temperature=_within("temperature", temperature, MIN_TEMPERATURE, MAX_TEMPERATURE),
        offset=_within("offset", offset, -MAX_OFFSET, MAX_OFFSET),
        alpha=_within("alpha", alpha, 0.0, MAX_ALPHA),
        beta=_within("beta", beta, 0.0, MAX_BETA),
    )
    if len(names) * len(checked.prompts) > MAX_PROMPTS:
        raise InvalidLabelsError(f"labels x templates may be at most {MAX_PROMPTS:,} prompts")
    return checked


def check_abstain(abstain: float | bool | None) -> float | bool | None:
    """True, a threshold in 0..1, or None; False means None.

    Raises:
        InputError: a number outside 0..1.
    """
    if abstain is None or abstain is False:
        return None
    return True if abstain is True else _within("abstain", float(abstain), 0.0, 1.0)


def _within(name: str, value: float | None, low: float, high: float) -> float | None:
    # written so that NaN is refused
    if value is not None and not low <= value <= high:
        raise InputError(f"{name} must be between {low:g} and {high:g}")
    return value
