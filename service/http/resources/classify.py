"""POST /v1/classify."""

from __future__ import annotations

from time import perf_counter
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from models.errors import InvalidLabelsError
from service.engine.engine import Engine
from service.engine.explanations import direction_of
from service.engine.label_sets import LabelSet, check_label_set
from service.http.middleware import problems
from service.http.middleware.endpoints import Endpoint, RequestBody
from service.http.resources import answers, presenting
from service.http.resources.explain import data_uri
from service.http.resources.schemas import (
    MAX_EXPLAINED,
    MAX_IMAGES,
    ClassifyForm,
    ClassifyRequest,
)
from service.http.resources.state import EngineOf
from service.http.resources.uploads import PictureClasses, picture_classes
from service.operations import timing

router = APIRouter(prefix="/v1/classify", tags=["classify"])
_BODY = RequestBody(
    content={"application/json": ClassifyRequest, "multipart/form-data": ClassifyForm}
)


@router.post("", summary="Sort pictures into labels you name")
@Endpoint(access="read", lane="long", cost="body", idempotency_key=False, body=_BODY)
def classify(
    upload: Annotated[PictureClasses, Depends(picture_classes)],
    engine: EngineOf,
    request: Request,
) -> answers.ClassifyResponse:
    """Probabilities of every label for every picture, most likely first.

    A picture that cannot be read carries its own `error` and the others answer; only when none can
    be read is the whole answer a problem.
    """
    options = upload.options
    if options.explain:
        if len(upload.images) > MAX_EXPLAINED:
            raise problems.refuse(
                "invalid-request", f"With `explain` at most {MAX_EXPLAINED} pictures."
            )
        engine.explanations.require()
    label_set = _label_set(upload, engine)
    answer = engine.classifier.classify(
        upload.images,
        label_set,
        top_k=options.top_k,
        level=options.level,
        abstain=options.abstain,
        name=options.label_set,
    )
    refused = [result.error for result in answer.results if result.error is not None]
    if len(refused) == len(answer.results):
        raise problems.ProblemError(problems.of_pictures(refused))
    found = presenting.classification(answer)
    stages = dict(answer.timings)
    if options.explain:
        began = perf_counter()
        class_CD = engine.classifier.class_directions(label_set)
        for image, result, shown in zip(upload.images, answer.results, found.results, strict=True):
            if result.predictions:
                direction_D = direction_of(result.predictions[0], label_set, class_CD)
                drawn = engine.explanations.explain_direction(image, direction_D)
                shown.heatmap = data_uri(drawn.png)
        stages["explain"] = round((perf_counter() - began) * 1000, 3)
    timing.report(request.scope, stages)
    return found


def _label_set(upload: PictureClasses, engine: Engine) -> LabelSet:
    """The stored label set a request names, or the one it spells out."""
    options = upload.options
    if options.label_set is not None:
        return engine.classifier.stored(options.label_set)
    assert options.labels is not None, "the schema asks for one of the two"
    wanted = check_label_set(
        options.labels,
        templates=options.templates,
        template_set=options.template_set,
        multi_label=options.multi_label,
        hierarchy=options.hierarchy,
        temperature=options.temperature,
        alpha=options.alpha,
        beta=options.beta,
    )
    if sum(map(len, upload.examples.values())) > MAX_IMAGES:
        raise InvalidLabelsError(f"at most {MAX_IMAGES} example pictures are possible here")
    return engine.classifier.with_examples(wanted, upload.examples)
