"""POST /v1/classify."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from service import answers, presenting, problems
from service.openapi import body_classify
from service.state import EngineOf
from service.uploads import PictureClasses, picture_classes

router = APIRouter(prefix="/v1/classify", tags=["classify"])


@router.post("", summary="Sort pictures into labels you name", openapi_extra=body_classify())
def classify(
    upload: Annotated[PictureClasses, Depends(picture_classes)], engine: EngineOf
) -> answers.ClassifyResponse:
    """Probabilities of every label for every picture, most likely first.

    A picture that cannot be read carries its own `error` and the others answer; only when none can
    be read is the whole answer a problem.
    """
    options = upload.options
    answer = engine.classify(
        upload.images,
        options.labels,
        templates=options.templates,
        template_set=options.template_set,
        multi_label=options.multi_label,
        top_k=options.top_k,
    )
    refused = [result.error for result in answer.results if result.error is not None]
    if len(refused) == len(answer.results):
        raise problems.ProblemError(problems.of_pictures(refused))
    return presenting.classification(answer)
