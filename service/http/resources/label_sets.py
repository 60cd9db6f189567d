"""/v1/label-sets: named label sets, stored durably; /v1/template-sets: the built-in prompts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response, status
from pydantic import BaseModel, Field

from models.errors import DiptychError
from models.labels.prompts import TEMPLATE_SETS
from service.engine.label_sets import MAX_EXAMPLES, LabelSet, check_label_set
from service.http.middleware.admission import charge
from service.http.middleware.endpoints import LOOKUP, Endpoint, json_of
from service.http.middleware.lanes import Price
from service.http.requests import bodies
from service.http.requests.fields import EXAMPLE_PNG, Base64Image, StrictModel, examples
from service.http.requests.state import EngineOf
from service.http.resources.classify import (
    Abstain,
    Alpha,
    Beta,
    Offset,
    PictureError,
    Temperature,
    prompts_of,
)

router = APIRouter(prefix="/v1", tags=["classify"])
EXAMPLE_NAME = "colours"


class LabelSetRequest(StrictModel):
    model_config = examples(
        {"labels": ["red", "green", "blue"]},
        {
            "labels": ["warm/red", "warm/yellow", "cold/blue"],
            "templates": ["a photo of a {c} thing"],
            "abstain": True,
            "temperature": 1.4,
            "examples": {"warm/red": [EXAMPLE_PNG]},
        },
    )
    labels: Annotated[list[str], Field(max_length=2_000)]
    templates: Annotated[list[str] | None, Field(max_length=200)] = None
    template_set: Annotated[str | None, Field(max_length=64)] = None
    multi_label: bool = False
    hierarchy: bool | None = None
    abstain: Abstain = None
    temperature: Temperature = None
    offset: Offset = None
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
    model_config = examples(
        {
            "name": EXAMPLE_NAME,
            "labels": ["red", "green", "blue"],
            "templates": None,
            "template_set": None,
            "multi_label": False,
            "hierarchy": False,
            "abstain": None,
            "temperature": None,
            "offset": None,
            "examples": {"red": 4},
            "alpha": None,
            "beta": None,
            "model": "starter",
            "updated": "2026-01-31T12:00:00Z",
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
    offset: float | None
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
    model_config = examples(
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
    )
    label_sets: list[LabelSetSummary]
    writable: Annotated[bool, Field(description="Whether label sets can be stored here.")]


class TemplateSet(BaseModel):
    name: str
    templates: list[str]


class TemplateSetList(BaseModel):
    model_config = examples(
        {"template_sets": [{"name": "pets", "templates": ["a photo of a {c}, a type of pet."]}]}
    )
    template_sets: list[TemplateSet]


Name = Annotated[str, Path(description="1 to 64 of a-z, 0-9, - and _.", examples=[EXAMPLE_NAME])]
_read = bodies.json_body(LabelSetRequest)


async def _priced(request: Request) -> LabelSetRequest:
    body = await _read(request)
    texts = prompts_of(body.labels, body.templates, body.template_set)
    pictures = sum(map(len, body.examples.values()))
    await charge(request.scope, Price(texts, pictures))
    return body


_Body = Annotated[LabelSetRequest, Depends(_priced)]


@router.get("/label-sets", summary="The stored label sets")
@LOOKUP
def list_label_sets(engine: EngineOf) -> LabelSetList:
    """Every stored label set by name; a damaged one carries its `error`."""
    store = engine.classifier.store
    entries = () if store is None else store.entries()
    return LabelSetList(
        label_sets=[_summary(name, found) for name, found in entries],
        writable=store is not None and store.writable,
    )


@router.get("/label-sets/{name}", summary="One label set")
@LOOKUP
def get_label_set(name: Name, engine: EngineOf) -> LabelSetResponse:
    return _response(name, engine.classifier.stored(name))


@router.put(
    "/label-sets/{name}",
    summary="Store a label set",
    responses={201: {"model": LabelSetResponse, "description": "The name is new."}},
)
@Endpoint(
    access="write", lane="long", cost="body", idempotency_key=True, body=json_of(LabelSetRequest)
)
def put_label_set(
    name: Name, body: _Body, engine: EngineOf, response: Response
) -> LabelSetResponse:
    """Embed the labels and the example pictures once and keep them under a name.

    The whole set is replaced. It is on disk before this answers, and survives a restart.
    """
    wanted = check_label_set(
        body.labels,
        templates=body.templates,
        template_set=body.template_set,
        multi_label=body.multi_label,
        hierarchy=body.hierarchy,
        abstain=body.abstain,
        temperature=body.temperature,
        offset=body.offset,
        alpha=body.alpha,
        beta=body.beta,
    )
    engine.classifier.check_storable(name)
    examples = {label: bodies.decode_pictures(texts) for label, texts in body.examples.items()}
    wanted = engine.classifier.with_examples(wanted, examples)
    stored, created = engine.classifier.keep(name, wanted)
    response.status_code = status.HTTP_201_CREATED if created else status.HTTP_200_OK
    return _response(name, stored)


@router.delete(
    "/label-sets/{name}", summary="Forget a label set", status_code=status.HTTP_204_NO_CONTENT
)
@Endpoint(access="write", lane="long", cost="one", idempotency_key=True, body=None)
def delete_label_set(name: Name, engine: EngineOf) -> None:
    engine.classifier.forget(name)


@router.get("/template-sets", summary="The built-in prompt templates")
@LOOKUP
def list_template_sets() -> TemplateSetList:
    """Prompts by domain, as `template_set` names them; `{c}` stands for the label."""
    return TemplateSetList(
        template_sets=[
            TemplateSet(name=name, templates=list(templates))
            for name, templates in TEMPLATE_SETS.items()
        ]
    )


def _response(name: str, found: LabelSet) -> LabelSetResponse:
    return LabelSetResponse(
        name=name,
        labels=list(found.labels),
        templates=None if found.templates is None else list(found.templates),
        template_set=found.template_set,
        multi_label=found.multi_label,
        hierarchy=found.tree is not None,
        abstain=found.abstain,
        temperature=found.temperature,
        offset=found.offset,
        examples=found.example_counts(),
        alpha=found.alpha,
        beta=found.beta,
        model=found.model,
        updated=found.updated,
    )


def _summary(name: str, found: LabelSet | DiptychError) -> LabelSetSummary:
    if isinstance(found, DiptychError):
        error = PictureError.of(found)
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
