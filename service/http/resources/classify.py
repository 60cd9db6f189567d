"""POST /v1/classify: pictures sorted into labels that a request names, or a stored label set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Annotated, Self

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from models.errors import DiptychError, InvalidLabelsError
from models.labels.calibration import MAX_OFFSET, MAX_TEMPERATURE, MIN_TEMPERATURE
from models.labels.hierarchy import MAX_DEPTH
from models.labels.prompts import TEMPLATE_SETS
from service.engine.engine import Engine
from service.engine.explanations import direction_of
from service.engine.label_sets import MAX_ALPHA, MAX_BETA, LabelSet, check_label_set
from service.engine.queries import ClassifyAnswer
from service.engine.queries import Prediction as Judged
from service.http.middleware import problems
from service.http.middleware.admission import charge
from service.http.middleware.endpoints import Endpoint, RequestBody
from service.http.middleware.lanes import Price
from service.http.middleware.problems import ProblemError, refuse
from service.http.requests import bodies
from service.http.requests.fields import EXAMPLE_PNG, MAX_IMAGES, Base64Image, examples
from service.http.requests.state import EngineOf
from service.http.resources.explain import data_uri
from service.operations import timing

router = APIRouter(prefix="/v1/classify", tags=["classify"])
MAX_EXPLAINED = 16
_PREDICTION_BYTES = 80
_HEAT_MAP_BYTES = 200 << 10
_SPLIT = re.compile(r"[,\n，、]")

Abstain = Annotated[
    float | bool | None,
    Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Judge whether a picture is none of these: the share of the background from "
        "which it is, or true for the default.",
    ),
]
Temperature = Annotated[
    float | None,
    Field(
        ge=MIN_TEMPERATURE,
        le=MAX_TEMPERATURE,
        allow_inf_nan=False,
        description="Divides the logits; as `diptych classify --calibrate` finds it.",
    ),
]
Offset = Annotated[
    float | None,
    Field(
        ge=-MAX_OFFSET,
        le=MAX_OFFSET,
        allow_inf_nan=False,
        description="With `multi_label`: logits above its zero at which a label is as likely as "
        "not; `diptych classify --calibrate --multi-label` finds it.",
    ),
]
Alpha = Annotated[
    float | None,
    Field(ge=0, le=MAX_ALPHA, allow_inf_nan=False, description="How much the examples count."),
]
Beta = Annotated[
    float | None,
    Field(
        ge=0,
        le=MAX_BETA,
        allow_inf_nan=False,
        description="How alike a picture must be to an example for it to count.",
    ),
]
OF_A_LABEL_SET = frozenset(
    {"templates", "template_set", "multi_label", "hierarchy", "temperature", "offset"}
    | {"alpha", "beta", "examples"}
)


class ClassifyOptions(BaseModel):
    """What both forms of a classification share; values of a multipart form arrive as text."""

    model_config = ConfigDict(extra="forbid")
    labels: Annotated[
        list[str] | None,
        Field(
            max_length=2_000,
            description="2 to 1000 (1 with `multi_label`); `animal/cat` is a path in a tree.",
        ),
    ] = None
    label_set: Annotated[
        str | None,
        Field(max_length=64, description="A stored label set instead of labels and their options."),
    ] = None
    templates: Annotated[
        list[str] | None,
        Field(max_length=200, description="Prompts; `{}` or `{c}` stands for the label."),
    ] = None
    template_set: Annotated[
        str | None, Field(max_length=64, description="A named list of prompts instead.")
    ] = None
    multi_label: Annotated[
        bool, Field(description="Score each label on its own instead of sharing out 1.")
    ] = False
    top_k: Annotated[int | None, Field(ge=1, le=1000)] = None
    abstain: Abstain = None
    explain: Annotated[
        bool,
        Field(description=f"Add a heat map for the top label; at most {MAX_EXPLAINED} pictures."),
    ] = False
    hierarchy: Annotated[
        bool | None,
        Field(description="Whether labels are paths; without it if every label holds a `/`."),
    ] = None
    level: Annotated[
        int | None,
        Field(ge=1, le=MAX_DEPTH, description="Of paths: answer at this depth, 1 being the top."),
    ] = None
    temperature: Temperature = None
    offset: Offset = None
    alpha: Alpha = None
    beta: Beta = None

    @model_validator(mode="after")
    def _labels_or_a_set(self) -> ClassifyOptions:
        if (self.labels is None) == (self.label_set is None):
            raise PydanticCustomError("invalid-request", "Give either labels or a label_set.")
        if self.label_set is not None and self.model_fields_set & OF_A_LABEL_SET:
            raise PydanticCustomError(
                "invalid-request", "A label_set brings its own templates, examples and temperature."
            )
        return self


class ClassifyRequest(ClassifyOptions):
    model_config = examples(
        {"images": [EXAMPLE_PNG], "labels": ["red", "green", "blue"]},
        {
            "images": ["data:image/png;base64," + EXAMPLE_PNG],
            "labels": ["red", "blue"],
            "templates": ["a photo of a {} thing"],
            "multi_label": True,
            "top_k": 1,
        },
        {"images": [EXAMPLE_PNG], "labels": ["red", "green"], "abstain": True},
        {"images": [EXAMPLE_PNG], "labels": ["warm/red", "warm/yellow", "cold/blue"], "level": 1},
        {
            "images": [EXAMPLE_PNG],
            "labels": ["apple", "leaf"],
            "examples": {"apple": [EXAMPLE_PNG]},
        },
        strict=True,
    )
    images: Annotated[list[Base64Image], Field(min_length=1, max_length=MAX_IMAGES)]
    examples: Annotated[
        dict[str, list[Base64Image]] | None,
        Field(max_length=1000, description=f"A few pictures per label, {MAX_IMAGES} in all."),
    ] = None


class ClassifyForm(ClassifyOptions):
    """Multipart: repeat `image` and `labels`; a lone `labels` may be a comma-separated list."""

    image: Annotated[
        list[Annotated[bytes, Field(json_schema_extra={"format": "binary"})]],
        Field(min_length=1, max_length=MAX_IMAGES),
    ]


class Prediction(BaseModel):
    label: str
    probability: float
    path: Annotated[list[str] | None, Field(description="Of a label in a tree.")] = None


class PictureError(BaseModel):
    code: str
    title: str
    detail: str

    @classmethod
    def of(cls, error: DiptychError) -> Self:
        problem = problems.of_domain(error)
        return cls(code=problem.code, title=problem.title, detail=problem.detail)


class ClassifyResult(BaseModel):
    index: Annotated[int, Field(description="Position of the picture in the request.")]
    predictions: list[Prediction]
    parents: Annotated[
        list[Prediction] | None,
        Field(description="The inner nodes of a tree of labels: sums over their leaves."),
    ] = None
    abstained: Annotated[
        bool, Field(description="None of these: `background` reached the threshold.")
    ] = False
    background: Annotated[
        float | None,
        Field(description="How probable none of these is, against the best label alone."),
    ] = None
    heatmap: Annotated[
        str | None,
        Field(description="With `explain`: where the top label is seen, PNG as a data URI."),
    ] = None
    error: Annotated[PictureError | None, Field(description="Why this picture was refused.")] = None


class ClassifyResponse(BaseModel):
    model_config = examples(
        {
            "results": [
                {
                    "index": 0,
                    "predictions": [
                        {"label": "red", "probability": 0.97, "path": None},
                        {"label": "blue", "probability": 0.03, "path": None},
                    ],
                    "parents": None,
                    "abstained": False,
                    "background": 0.08,
                    "heatmap": None,
                    "error": None,
                }
            ],
            "multi_label": False,
            "label_set": None,
            "temperature": 1.0,
            "offset": 0.0,
            "abstain": 0.5,
            "warnings": [],
            "model": "starter",
            "took_ms": 31.0,
            "timings": {"prepare": 2.0, "classes": 9.0, "embed": 19.0, "total": 31.0},
        }
    )
    results: list[ClassifyResult]
    multi_label: bool
    label_set: Annotated[str | None, Field(description="The stored label set used.")]
    temperature: float
    offset: float
    abstain: Annotated[float | None, Field(description="The threshold on `background`.")]
    warnings: Annotated[
        list[str], Field(description="What makes the labels hard to answer by, such as codes.")
    ]
    model: str
    took_ms: float
    timings: dict[str, float]


@dataclass(frozen=True, slots=True)
class PictureClasses:
    images: list[bytes]
    options: ClassifyOptions
    examples: Mapping[str, Sequence[bytes]] = field(default_factory=dict)


async def picture_classes(request: Request) -> PictureClasses:
    """A FastAPI dependency: pictures and labels, from JSON or a form, charged by their number."""
    upload = await _upload(request)
    options = upload.options
    labels, images = options.labels or (), len(upload.images)
    answers = images * min(len(labels), options.top_k or len(labels))
    price = Price(
        texts=prompts_of(labels, options.templates, options.template_set),
        # a heat map is as much work again
        pictures=images * (1 + options.explain) + sum(map(len, upload.examples.values())),
        answer_bytes=answers * _PREDICTION_BYTES + images * options.explain * _HEAT_MAP_BYTES,
    )
    await charge(request.scope, price)
    return upload


def prompts_of(
    labels: Sequence[str], templates: Sequence[str] | None, template_set: str | None
) -> int:
    """How many texts are embedded for labels, unless they are known."""
    written = templates or TEMPLATE_SETS.get(template_set or "default", ())
    return len(labels) * max(1, len(written))


async def _upload(request: Request) -> PictureClasses:
    kind = bodies.media_type(request)
    if kind == "application/json":
        document = bodies.parse_json(await request.body())
        body = bodies.validated(ClassifyRequest, document)
        # a picture whose base64 is broken fails alone, as an undecodable one does
        images = bodies.decode_pictures(body.images)
        examples = {
            label: bodies.decode_pictures(texts) for label, texts in (body.examples or {}).items()
        }
        return PictureClasses(images, body, examples)
    if kind != "multipart/form-data":
        raise refuse("unsupported-media-type", "Send multipart/form-data or application/json.")
    form = await bodies.read_form(request)
    values = form.single_fields(lists=frozenset({"labels", "templates"}))
    if len(values.get("labels", [])) == 1:
        values["labels"] = [part.strip() for part in _SPLIT.split(values["labels"][0])]
    options = bodies.validated(ClassifyOptions, values)
    pictures = bodies.picture_fields(form.files)
    if not pictures:
        raise refuse("invalid-request", "Send at least one picture in the field `image`.")
    return PictureClasses(pictures, options)


_BODY = RequestBody(
    content={"application/json": ClassifyRequest, "multipart/form-data": ClassifyForm}
)


@router.post("", summary="Sort pictures into labels you name")
@Endpoint(access="read", lane="long", cost="body", idempotency_key=False, body=_BODY)
def classify(
    upload: Annotated[PictureClasses, Depends(picture_classes)], engine: EngineOf, request: Request
) -> ClassifyResponse:
    """Probabilities of every label for every picture, most likely first.

    A picture that cannot be read carries its own `error` and the others answer; only when none can
    be read is the whole answer a problem.
    """
    options = upload.options
    if options.explain:
        if len(upload.images) > MAX_EXPLAINED:
            raise refuse("invalid-request", f"With `explain` at most {MAX_EXPLAINED} pictures.")
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
        raise ProblemError(problems.of_pictures(refused))
    found = _document(answer)
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
        offset=options.offset,
        alpha=options.alpha,
        beta=options.beta,
    )
    if sum(map(len, upload.examples.values())) > MAX_IMAGES:
        raise InvalidLabelsError(f"at most {MAX_IMAGES} example pictures are possible here")
    return engine.classifier.with_examples(wanted, upload.examples)


def _document(answer: ClassifyAnswer) -> ClassifyResponse:
    results = []
    for index, result in enumerate(answer.results):
        error = None if result.error is None else PictureError.of(result.error)
        parents = None if result.parents is None else _predictions(result.parents)
        results.append(
            ClassifyResult(
                index=index,
                predictions=_predictions(result.predictions),
                parents=parents,
                abstained=result.abstained,
                background=result.background,
                error=error,
            )
        )
    return ClassifyResponse(
        results=results,
        multi_label=answer.multi_label,
        label_set=answer.label_set,
        temperature=answer.temperature,
        offset=answer.offset,
        abstain=answer.abstain,
        warnings=list(answer.warnings),
        model=answer.model,
        took_ms=answer.timings["total"],
        timings=dict(answer.timings),
    )


def _predictions(found: Sequence[Judged]) -> list[Prediction]:
    return [
        Prediction(
            label=p.label, probability=p.probability, path=None if p.path is None else list(p.path)
        )
        for p in found
    ]
