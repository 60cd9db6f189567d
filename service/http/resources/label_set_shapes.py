"""The HTTP shapes of stored label sets and template sets, and how they are filled.

As in `service.http.resources.schemas`, only shapes; what a value means is
`service.engine.label_sets`'s business.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from models.errors import DiptychError
from models.labels.prompts import TEMPLATE_SETS
from service.engine.label_sets import MAX_EXAMPLES, LabelSet
from service.http.middleware import problems
from service.http.resources.answers import PictureError
from service.http.resources.schemas import (
    EXAMPLE_PNG,
    Abstain,
    Alpha,
    Base64Image,
    Beta,
    Strict,
    Temperature,
)

EXAMPLE_NAME = "colours"


class LabelSetRequest(Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"labels": ["red", "green", "blue"]},
                {
                    "labels": ["warm/red", "warm/yellow", "cold/blue"],
                    "templates": ["a photo of a {c} thing"],
                    "abstain": True,
                    "temperature": 1.4,
                    "examples": {"warm/red": [EXAMPLE_PNG]},
                },
            ]
        }
    )
    labels: Annotated[list[str], Field(max_length=2_000)]
    templates: Annotated[list[str] | None, Field(max_length=200)] = None
    template_set: Annotated[str | None, Field(max_length=64)] = None
    multi_label: bool = False
    hierarchy: bool | None = None
    abstain: Abstain = None
    temperature: Temperature = None
    examples: Annotated[
        dict[str, list[Base64Image]],
        Field(
            default_factory=dict,
            max_length=1000,
            description=f"A few pictures per label, {MAX_EXAMPLES} in all.",
        ),
    ]
    alpha: Alpha = None
    beta: Beta = None


class LabelSetResponse(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": EXAMPLE_NAME,
                    "labels": ["red", "green", "blue"],
                    "templates": None,
                    "template_set": None,
                    "multi_label": False,
                    "hierarchy": False,
                    "abstain": None,
                    "temperature": None,
                    "examples": {"red": 4},
                    "alpha": None,
                    "beta": None,
                    "model": "starter",
                    "updated": "2026-01-31T12:00:00Z",
                }
            ]
        }
    )
    name: str
    labels: list[str]
    templates: list[str] | None
    template_set: str | None
    multi_label: bool
    hierarchy: bool
    abstain: float | bool | None
    temperature: float | None
    examples: Annotated[dict[str, int], Field(description="Kept pictures per label.")]
    alpha: float | None
    beta: float | None
    model: Annotated[str, Field(description="What embedded the examples.")]
    updated: Annotated[str, Field(description="ISO 8601.")]


class LabelSetSummary(BaseModel):
    name: str
    classes: int | None
    examples: int | None
    multi_label: bool | None
    hierarchy: bool | None
    abstain: float | bool | None
    temperature: float | None
    template_set: str | None
    updated: str | None
    error: Annotated[PictureError | None, Field(description="Why it cannot be used.")]


class LabelSetList(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "label_sets": [
                        {
                            "name": EXAMPLE_NAME,
                            "classes": 3,
                            "examples": 4,
                            "multi_label": False,
                            "hierarchy": False,
                            "abstain": None,
                            "temperature": None,
                            "template_set": None,
                            "updated": "2026-01-31T12:00:00Z",
                            "error": None,
                        }
                    ],
                    "writable": True,
                }
            ]
        }
    )
    label_sets: list[LabelSetSummary]
    writable: Annotated[bool, Field(description="Whether label sets can be stored here.")]


class TemplateSet(BaseModel):
    name: str
    templates: list[str]


class TemplateSetList(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "template_sets": [
                        {"name": "pets", "templates": ["a photo of a {c}, a type of pet."]}
                    ]
                }
            ]
        }
    )
    template_sets: list[TemplateSet]


def response(name: str, found: LabelSet) -> LabelSetResponse:
    return LabelSetResponse(
        name=name,
        labels=list(found.labels),
        templates=None if found.templates is None else list(found.templates),
        template_set=found.template_set,
        multi_label=found.multi_label,
        hierarchy=found.tree is not None,
        abstain=found.abstain,
        temperature=found.temperature,
        examples=found.example_counts(),
        alpha=found.alpha,
        beta=found.beta,
        model=found.model,
        updated=found.updated,
    )


def summary(name: str, found: LabelSet | DiptychError) -> LabelSetSummary:
    if isinstance(found, DiptychError):
        problem = problems.of_domain(found)
        error = PictureError(code=problem.code, title=problem.title, detail=problem.detail)
        unknown = dict.fromkeys(LabelSetSummary.model_fields)
        return LabelSetSummary.model_validate(unknown | {"name": name, "error": error})
    return LabelSetSummary(
        name=name,
        classes=len(found.labels),
        examples=len(found.examples.targets),
        multi_label=found.multi_label,
        hierarchy=found.tree is not None,
        abstain=found.abstain,
        temperature=found.temperature,
        template_set=found.template_set,
        updated=found.updated,
        error=None,
    )


def template_sets() -> TemplateSetList:
    return TemplateSetList(
        template_sets=[
            TemplateSet(name=name, templates=list(templates))
            for name, templates in TEMPLATE_SETS.items()
        ]
    )
