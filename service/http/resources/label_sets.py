"""/v1/label-sets: named label sets, stored durably; /v1/template-sets: the built-in prompts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response, status

from service.engine.label_sets import check_label_set
from service.http.middleware.endpoints import LOOKUP, Endpoint, json_of
from service.http.resources import bodies, label_set_shapes
from service.http.resources.label_set_shapes import (
    EXAMPLE_NAME,
    LabelSetList,
    LabelSetRequest,
    LabelSetResponse,
    TemplateSetList,
)
from service.http.resources.state import EngineOf

router = APIRouter(prefix="/v1", tags=["classify"])

Name = Annotated[
    str,
    Path(description="1 to 64 of a-z, 0-9, - and _.", examples=[EXAMPLE_NAME]),
]
_Body = Annotated[LabelSetRequest, Depends(bodies.json_body(LabelSetRequest))]


@router.get("/label-sets", summary="The stored label sets")
@LOOKUP
def list_label_sets(engine: EngineOf) -> LabelSetList:
    """Every stored label set by name; a damaged one carries its `error`."""
    store = engine.classifier.store
    entries = () if store is None else store.entries()
    return LabelSetList(
        label_sets=[label_set_shapes.summary(name, found) for name, found in entries],
        writable=store is not None and store.writable,
    )


@router.get("/label-sets/{name}", summary="One label set")
@LOOKUP
def get_label_set(name: Name, engine: EngineOf) -> LabelSetResponse:
    return label_set_shapes.response(name, engine.classifier.stored(name))


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
        alpha=body.alpha,
        beta=body.beta,
    )
    engine.classifier.check_storable(name)
    examples = {label: bodies.decode_pictures(texts) for label, texts in body.examples.items()}
    wanted = engine.classifier.with_examples(wanted, examples)
    stored, created = engine.classifier.keep(name, wanted)
    response.status_code = status.HTTP_201_CREATED if created else status.HTTP_200_OK
    return label_set_shapes.response(name, stored)


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
    return label_set_shapes.template_sets()
