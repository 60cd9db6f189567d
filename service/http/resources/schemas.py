"""The shapes of HTTP requests. Strict: no coercion, no unknown fields.

Only shapes and their examples; what a value means is the engine's business. The examples are shown
in the documentation, and the tests run them. Answers are in `service.http.resources.answers`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from indexer.search.options import (
    DEFAULTS,
    HYBRID,
    MAX_K,
    MAX_OFFSET,
    NEAR_DUPLICATE,
    Include,
    Target,
)
from models.errors import InputError
from models.labels.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE
from models.labels.hierarchy import MAX_DEPTH
from service.engine.label_sets import MAX_ALPHA, MAX_BETA
from service.engine.queries import (
    MAX_PARTS,
    MAX_TEXT_CHARS,
    MAX_WEIGHT,
    check_text,
)

EXAMPLE_ID = "fruit/red apple.png"
# an 8 x 8 red picture, as a caller would send it
EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP8z4AdMDEMKQkAzUEBD7t4NqoAAAAA"
    "SUVORK5CYII="
)
MAX_IMAGES = 64
MAX_EXPLAINED = 16


def _searchable(text: str) -> str:
    try:
        return check_text(text)
    except InputError as error:
        # the type is a code of the problem catalogue; see middleware.problems.of_validation
        raise PydanticCustomError("invalid-text", "{why}", {"why": error.message}) from None


def _not_zero(weight: float) -> float:
    if weight == 0:
        raise PydanticCustomError(
            "invalid-request", "A weight of zero has no effect; leave it out."
        )
    return weight


SearchText = Annotated[
    str,
    AfterValidator(_searchable),
    Field(
        description=f"1 to {MAX_TEXT_CHARS} characters, in any language the model knows. Text over "
        "the model's context is cut, and the answer says `truncated`."
    ),
]
Base64Image = Annotated[
    str, Field(min_length=1, description="A picture in base64, bare or as a `data:` URI.")
]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Query(Strict):
    """Exactly one of text, image, image_url, id and embedding; the weight counts among several."""

    text: SearchText | None = None
    image: Base64Image | None = None
    image_url: Annotated[
        str | None,
        Field(
            max_length=2048,
            description="A picture's address, http or https; only where the service was started "
            "with --allow-urls.",
        ),
    ] = None
    id: Annotated[
        str | None, Field(description="More like this item; it is left out of the hits.")
    ] = None
    embedding: Annotated[
        list[float] | None,
        Field(max_length=16_384, description="A vector of the index's dimension, any length."),
    ] = None
    weight: Annotated[
        float,
        AfterValidator(_not_zero),
        Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, description="Not zero; negative asks for less of it."),
    ] = 1.0

    @model_validator(mode="after")
    def _exactly_one(self) -> Query:
        given = [self.text, self.image, self.image_url, self.id, self.embedding]
        if sum(value is not None for value in given) != 1:
            raise PydanticCustomError(
                "invalid-request", "Give exactly one of text, image, image_url, id and embedding."
            )
        return self


_Parts = Annotated[list[Query], Field(min_length=1, max_length=MAX_PARTS)]
_PARTS: TypeAdapter[list[Query]] = TypeAdapter(_Parts)


def _one_or_several(value: object, _: ValidatorFunctionWrapHandler) -> Query | list[Query]:
    # decided by hand: the complaints of a union name its branches in their pointers
    return _PARTS.validate_python(value) if isinstance(value, list) else Query.model_validate(value)


Queries = Annotated[
    Query | _Parts,
    WrapValidator(_one_or_several),
    Field(description="One part, or several: the sum of weight times unit vector, normalised."),
]


FILTER_WORDS = (
    "Which items may be found: `{field, ...tests}`, or `all`, `any` and `not` around such. The "
    "tests are eq, in, gt, gte, lt, lte, contains and exists, as the field's type takes them; "
    "/v1/index lists the fields. A missing value satisfies no test, and `not` is the complement."
)


_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Cosine = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Hybrid = Annotated[
    _Share | bool,
    Field(
        description="Search by words too, in captions and texts: their weight from 0 (none) to 1 "
        f"(words alone), or true for {HYBRID}. The order is then that of `fused`, and cosines do "
        "not fall."
    ),
]
Deduplicate = Annotated[
    _Cosine | bool,
    Field(
        description="Leave out hits whose cosine to a better one reaches this, or true for "
        f"{NEAR_DUPLICATE}; the better one names them in `duplicates`."
    ),
]
Exact = Annotated[bool, Field(description="Compare with every item, whatever was optimized.")]
Effort = Annotated[
    int | None,
    Field(
        ge=1,
        le=100_000,
        description="How hard an optimized index looks (efSearch or nprobe); null for what it "
        "was optimized for.",
    ),
]


K = Annotated[int, Field(ge=1, le=MAX_K, description="How many hits.")]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET, description="How many to skip.")]


class Page(Strict):
    k: K = DEFAULTS.k
    offset: Offset = DEFAULTS.offset
    min_score: Annotated[
        float | None, Field(ge=-1, le=1, description="Leave out hits with a lower cosine.")
    ] = None
    filter: Annotated[
        # read by indexer.filters.language, whose complaints are better than a recursive schema's
        Any,
        WithJsonSchema({"type": ["object", "null"], "description": FILTER_WORDS}),
    ] = None
    include: Annotated[
        list[Include],
        Field(max_length=3, description="Optional parts of each hit; `thumbnail` as a data URI."),
    ] = list(DEFAULTS.include)
    hybrid: Hybrid = False
    deduplicate: Deduplicate = False
    exact: Exact = False
    effort: Effort = None


class SearchRequest(Page):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": {"text": "a red apple"}, "k": 3},
                {"query": {"text": "一个红苹果"}, "target": "texts", "k": 3},
                {"query": {"text": "a red apple"}, "hybrid": True, "deduplicate": 0.97, "k": 3},
                {"query": {"id": EXAMPLE_ID}, "k": 5},
                {"query": {"image": EXAMPLE_PNG}, "k": 5, "include": ["embedding"]},
                {
                    "query": [
                        {"text": "a red apple"},
                        {"text": "a green leaf", "weight": -0.5},
                        {"id": EXAMPLE_ID, "weight": 2.0},
                    ]
                },
                {
                    "query": {"text": "fruit"},
                    "filter": {
                        "all": [{"field": "year", "gte": 2020, "lt": 2030}],
                        "not": {"field": "label", "in": ["plant", "animal"]},
                    },
                },
            ]
        }
    )
    query: Queries
    target: Target = DEFAULTS.target


class TextToImageRequest(Page):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "a red apple", "k": 3},
                {"text": "a red apple", "hybrid": 0.6, "deduplicate": True, "exact": True},
                {"text": "红苹果", "filter": {"field": "year", "eq": 2024}},
            ]
        }
    )
    text: SearchText


class ImageSearchOptions(BaseModel):
    """Options beside an uploaded picture, as query parameters or form fields: text, so coerced.

    Without `hybrid`: a picture alone has no words.
    """

    model_config = ConfigDict(extra="forbid")
    k: K = DEFAULTS.k
    offset: Offset = DEFAULTS.offset
    min_score: Annotated[
        float | None,
        Field(ge=-1, le=1, allow_inf_nan=False, description="Leave out lower cosines."),
    ] = None
    target: Annotated[Target, Field(description="What to look for.")] = "texts"
    filter: Annotated[
        str | None, Field(max_length=1 << 20, description="A filter, as JSON. " + FILTER_WORDS)
    ] = None
    deduplicate: Deduplicate = False
    exact: Exact = False
    effort: Effort = None


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
    {"templates", "template_set", "multi_label", "hierarchy", "temperature"}
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
    alpha: Alpha = None
    beta: Beta = None

    @model_validator(mode="after")
    def _labels_or_a_set(self) -> ClassifyOptions:
        if (self.labels is None) == (self.label_set is None):
            raise PydanticCustomError("invalid-request", "Give either labels or a label_set.")
        if self.label_set is not None and self.model_fields_set & OF_A_LABEL_SET:
            raise PydanticCustomError(
                "invalid-request",
                "A label_set brings its own templates, examples and temperature.",
            )
        return self


class ClassifyRequest(ClassifyOptions):
    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "examples": [
                {"images": [EXAMPLE_PNG], "labels": ["red", "green", "blue"]},
                {
                    "images": ["data:image/png;base64," + EXAMPLE_PNG],
                    "labels": ["red", "blue"],
                    "templates": ["a photo of a {} thing"],
                    "multi_label": True,
                    "top_k": 1,
                },
                {"images": [EXAMPLE_PNG], "labels": ["red", "green"], "abstain": True},
                {
                    "images": [EXAMPLE_PNG],
                    "labels": ["warm/red", "warm/yellow", "cold/blue"],
                    "level": 1,
                },
                {
                    "images": [EXAMPLE_PNG],
                    "labels": ["apple", "leaf"],
                    "examples": {"apple": [EXAMPLE_PNG]},
                },
            ]
        },
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
