"""PUT and DELETE /v1/items/{id}, POST /v1/items; only where the service was started writable."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from indexer.filters.declared import BUILT_IN
from indexer.ingest.arrivals import check_record, text_ids
from models.errors import ImageError
from models.sources.records import UNDETERMINED, Record, Reject
from service.engine.engine import Engine
from service.engine.item_writer import ItemWriter, outcome
from service.http.middleware.admission import charge
from service.http.middleware.endpoints import Endpoint, json_of, picture_of
from service.http.middleware.lanes import Price
from service.http.middleware.problems import CATALOGUE, ProblemError, of_domain, refuse
from service.http.requests import bodies
from service.http.requests.fields import (
    EXAMPLE_ID,
    EXAMPLE_PNG,
    Base64Image,
    SearchText,
    StrictModel,
    examples,
)
from service.http.requests.state import EngineOf, Fetch, StateOf
from service.http.resources.items import ItemId

router = APIRouter(prefix="/v1", tags=["index"])
# said of items that are stored nevertheless
_STORED = frozenset({"invalid-field"})
# path segments that clients and proxies take away or resolve, in whatever spelling
_DOTS = frozenset({".", ".."})
_UNSUITABLE = frozenset({"unusable-record", "duplicate-id", "embedding-invalid"})
_LISTS = frozenset({"text"})
_BUILT_IN = frozenset(field.name for field in BUILT_IN)
MAX_BULK = 100
_NAMED = 8
MAX_ID_BYTES = 2048

Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,8}(-[A-Za-z0-9]{1,8}){0,8}$")]
NewId = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)]
Texts = Annotated[
    dict[Language, Annotated[list[SearchText], Field(max_length=64)]],
    Field(max_length=32, description="Captions by language tag; each becomes an item of its own."),
]
Uri = Annotated[
    str,
    Field(
        max_length=2048,
        pattern=r"^https?://[\x21-\x7e]+$",
        description="Where the picture can be found, http or https; told with every hit.",
    ),
]
Label = Annotated[str, Field(min_length=1, max_length=1000, description="Its class.")]
Attributes = Annotated[
    dict[str, Any],
    Field(max_length=256, description="Any JSON; declared fields among it can be filtered by."),
]


class ItemOptions(BaseModel):
    """Beside an uploaded picture: query parameters or form fields, so text."""

    model_config = ConfigDict(extra="forbid")
    text: Annotated[list[SearchText], Field(max_length=64, default_factory=list)]
    language: Language = UNDETERMINED
    label: Label | None = None
    attributes: Annotated[str, Field(max_length=1 << 20, description="JSON, an object.")] = "{}"
    uri: Uri | None = None


class ItemRequest(StrictModel):
    """A picture, texts, or both; all of an item, for a put replaces all of it."""

    model_config = examples(
        {
            "image": EXAMPLE_PNG,
            "texts": {"en": ["a red apple"], "zh": ["一个红苹果"]},
            "label": "fruit",
            "attributes": {"year": 2024},
        },
        {"text": "a note without a picture"},
    )
    image: Base64Image | None = None
    image_url: Annotated[
        str | None, Field(max_length=2048, description="Only where started with --allow-urls.")
    ] = None
    text: Annotated[
        SearchText | None, Field(description="One caption, in `language`; or `texts`.")
    ] = None
    language: Annotated[Language, Field(description="Of `text`.")] = UNDETERMINED
    texts: Texts = Field(default_factory=dict)
    label: Label | None = None
    attributes: Attributes = Field(default_factory=dict)
    uri: Uri | None = None

    @model_validator(mode="after")
    def _something(self) -> ItemRequest:
        if self.image is not None and self.image_url is not None:
            raise PydanticCustomError("invalid-request", "Give either image or image_url.")
        if self.text is not None and self.texts:
            raise PydanticCustomError("invalid-request", "Give either text or texts.")
        if "language" in self.model_fields_set and self.texts:
            raise PydanticCustomError("invalid-request", "texts name their own languages.")
        picture = self.image is not None or self.image_url is not None
        if not picture and self.text is None and not any(self.texts.values()):
            raise PydanticCustomError("invalid-request", "Give a picture, a text, or both.")
        return self


class BulkItem(ItemRequest):
    model_config = examples({"id": "a", "text": "a note"})
    id: NewId


class BulkRequest(StrictModel):
    model_config = examples(
        {
            "items": [
                {"id": "new/apple.png", "image": EXAMPLE_PNG, "text": "a red apple"},
                {"id": "new/note", "text": "a note without a picture"},
            ]
        }
    )
    items: Annotated[list[BulkItem], Field(min_length=1, max_length=MAX_BULK)]


class RefusedItem(BaseModel):
    id: Annotated[str, Field(description="Of the item, or of one text of it.")]
    code: str
    detail: str


class ItemWarning(BaseModel):
    id: Annotated[str | None, Field(description="Of an item; null where it is said of several.")]
    code: Literal["invalid-field", "not-filterable"]
    detail: str


Warnings = Annotated[
    list[ItemWarning],
    Field(
        description="Said of what is stored: `invalid-field`, a declared field's value is of "
        "another type and cannot be filtered by; `not-filterable`, attributes that are no "
        "declared field cannot."
    ),
]


class ItemWritten(BaseModel):
    model_config = examples(
        {
            "id": EXAMPLE_ID,
            "outcome": "updated",
            "texts": [EXAMPLE_ID + "#en/0"],
            "refused": [],
            "warnings": [],
            "index_version": 4,
        }
    )
    id: str
    outcome: Annotated[
        Literal["added", "updated", "unchanged"],
        Field(description="`unchanged`: it was there as it is, and nothing was written."),
    ]
    texts: Annotated[list[str], Field(description="Ids of its texts, which are items as well.")]
    refused: Annotated[list[RefusedItem], Field(description="Texts that were not stored.")]
    warnings: Warnings
    index_version: Annotated[int, Field(description="The first version that has it.")]


class BulkWritten(BaseModel):
    model_config = examples(
        {
            "ids": ["new/apple.png", "new/note"],
            "added": 2,
            "updated": 0,
            "unchanged": 0,
            "refused": [],
            "warnings": [],
            "index_version": 5,
        }
    )
    ids: Annotated[list[str], Field(description="What the index has now, as it was sent.")]
    added: int
    updated: int
    unchanged: int
    refused: Annotated[list[RefusedItem], Field(description="Not stored, and why; the rest is.")]
    warnings: Warnings
    index_version: int


async def item_body(request: Request) -> ItemRequest | tuple[ItemOptions, bytes | None]:
    """A FastAPI dependency: what was sent, as its media type says, decoded no further; charged."""
    sent = await _item_body(request)
    if isinstance(sent, ItemRequest):
        price = _price(sent)
    else:
        options, image = sent
        price = Price(len(options.text), int(image is not None))
    await charge(request.scope, price)
    return sent


_read_bulk = bodies.json_body(BulkRequest)


async def bulk_body(request: Request) -> BulkRequest:
    """A FastAPI dependency: several items, charged together."""
    body = await _read_bulk(request)
    await charge(request.scope, sum(map(_price, body.items), Price()))
    return body


def _price(item: ItemRequest) -> Price:
    texts = int(item.text is not None) + sum(map(len, item.texts.values()))
    return Price(texts, int(item.image is not None or item.image_url is not None))


async def _item_body(request: Request) -> ItemRequest | tuple[ItemOptions, bytes | None]:
    options = bodies.query_options(request, lists=_LISTS)
    if bodies.media_type(request) == "application/json":
        if options:  # silently ignored, an option would be believed to have been taken
            raise refuse("invalid-request", "With JSON the options stand in the body.")
        return bodies.validated(ItemRequest, bodies.parse_json(await request.body()))
    upload = await bodies.read_upload(request, options, lists=_LISTS)
    if upload is None:
        raise refuse(
            "unsupported-media-type",
            "Send application/json, multipart/form-data or an image/* body.",
        )
    if len(upload.pictures) > 1 or any(name != "image" for name, _ in upload.pictures):
        raise refuse("invalid-request", "Send one picture, in the field `image`.")
    picture = upload.pictures[0][1] if upload.pictures else None
    place = "body" if upload.form else "query"
    return bodies.validated(ItemOptions, upload.options, place=place), picture


def record_of(
    item_id: str, sent: ItemRequest | tuple[ItemOptions, bytes | None], fetch: Fetch, at: str = "#"
) -> Record:
    """A record to store; blocks where an address is fetched.

    Raises:
        ProblemError: an id or attributes that no item can have, base64 that is none.
        UrlError: as `fetch`.
    """
    if isinstance(sent, ItemRequest):
        texts = {sent.language: [sent.text]} if sent.text is not None else sent.texts
        attributes: Any = sent.attributes
        image = None
        if sent.image_url is not None:
            image = fetch(sent.image_url)
        elif sent.image is not None:
            image = bodies.picture(sent.image, f"{at}/image")
    else:
        options, image = sent
        sent = ItemRequest.model_construct(label=options.label, uri=options.uri)
        texts = {options.language: options.text} if options.text else {}
        attributes = _attributes(options.attributes)
    record = Record(
        key=item_id,
        uri=sent.uri or "",
        image=image,
        texts={language: tuple(ones) for language, ones in texts.items() if ones},
        label=sent.label,
        attributes=attributes,
    )
    why = check_record(record) or _unlinkable(item_id)
    if why is not None:
        raise refuse("invalid-request", f"It cannot be stored: {why}.")
    return record


def _unlinkable(item_id: str) -> str | None:
    """Why an id could not be asked for again; whoever follows its link would get elsewhere."""
    if item_id.startswith("/") or not _DOTS.isdisjoint(item_id.split("/")):
        return "an id does not begin with a slash, and no part of it between slashes is . or .."
    if any(unicodedata.category(one) in ("Cc", "Zl", "Zp") for one in item_id):
        return "an id has no control characters and line breaks"
    return None


def _attributes(text: str) -> dict[str, Any]:
    """Attributes that came as text."""
    try:
        found = bodies.parse_json(text.encode("utf-8", "surrogatepass"))
    except ProblemError as error:
        raise refuse("invalid-request", f"attributes, as JSON: {error.detail}") from None
    if not isinstance(found, dict):
        raise refuse("invalid-request", "attributes is a JSON object.")
    return found


_ITEM_BODY = picture_of(ItemOptions, json=ItemRequest)


@router.put(
    "/items/{id:path}",
    summary="Store an item",
    responses={201: {"model": ItemWritten, "description": "The id is new."}},
)
@Endpoint(access="write", lane="write", cost="body", idempotency_key=True, body=_ITEM_BODY)
def put_item(
    id: ItemId,
    sent: Annotated[Any, Depends(item_body)],
    engine: EngineOf,
    state: StateOf,
    response: Response,
) -> ItemWritten:
    """A picture, texts, or both, under this id; what the index had there is replaced.

    It is on disk and found by searches before this answers. An id that was deleted may be used
    again. With an `Idempotency-Key` a repetition gets the first answer.
    """
    writer = _writer(engine)
    record = record_of(id, sent, state.fetch)
    report = writer.put([record])
    did = outcome(report)
    if did == "refused":
        raise _refusal(report.refused)
    response.headers["Index-Version"] = str(report.version)
    response.status_code = status.HTTP_201_CREATED if did == "added" else status.HTTP_200_OK
    refused = _refused(report.refused)
    without = {one.id for one in refused}
    warnings = _warnings(report.refused, [record], engine)
    return ItemWritten(
        id=id,
        outcome=did,
        texts=[one for one in text_ids(record.key, record.texts) if one not in without],
        refused=refused,
        warnings=warnings,
        index_version=report.version,
    )


@router.delete("/items/{id:path}", summary="Delete an item", status_code=status.HTTP_204_NO_CONTENT)
@Endpoint(access="write", lane="write", cost="one", idempotency_key=True, body=None)
def delete_item(id: ItemId, engine: EngineOf) -> Response:
    """A picture goes with its texts, a text goes alone. No search finds it after this answers.

    Indexing its source again does not bring it back; a PUT of its id does. Its bytes are on disk
    until `diptych index purge`.
    """
    deleted = _writer(engine).delete(id)
    return Response(
        status_code=status.HTTP_204_NO_CONTENT, headers={"Index-Version": str(deleted.version)}
    )


@router.post("/items", summary="Store several items")
@Endpoint(
    access="write", lane="write", cost="body", idempotency_key=True, body=json_of(BulkRequest)
)
def post_items(
    body: Annotated[BulkRequest, Depends(bulk_body)],
    engine: EngineOf,
    state: StateOf,
    response: Response,
) -> BulkWritten:
    """Up to 100 items in one commit, which costs little more than one of them alone.

    An item that cannot be stored is listed in `refused`, and the others are stored.
    """
    writer = _writer(engine)
    records: list[Record] = []
    refused: list[RefusedItem] = []
    for number, item in enumerate(body.items):
        try:
            records.append(record_of(item.id, item, state.fetch, f"#/items/{number}"))
        except ProblemError as error:
            problem = error.problem
            refused.append(RefusedItem(id=item.id, code=problem.code, detail=problem.detail))
    report = writer.put(records)
    response.headers["Index-Version"] = str(report.version)
    refused += _refused(report.refused)
    # of an id sent twice, the first was stored
    without = {one.id for one in refused if one.code != "duplicate-id"}
    stored = dict.fromkeys(one.key for one in records if one.key not in without)
    return BulkWritten(
        ids=list(stored),
        added=report.added,
        updated=report.updated + report.moved,
        unchanged=report.unchanged,
        refused=refused,
        warnings=_warnings(report.refused, records, engine),
        index_version=report.version,
    )


def _writer(engine: Engine) -> ItemWriter:
    if engine.writer is None:
        raise refuse(
            "read-only",
            "This service only reads its indexes.",
            hint="diptych serve --writable lets items be written.",
        )
    return engine.writer


def _refused(rejects: Sequence[Reject]) -> list[RefusedItem]:
    return [
        RefusedItem(id=one.key, code=one.code, detail=one.detail)
        for one in rejects
        if one.code not in _STORED
    ]


def _warnings(
    rejects: Sequence[Reject], records: Sequence[Record], engine: Engine
) -> list[ItemWarning]:
    """What is to be said of records that are stored; of any that are not, nothing."""
    refused = {one.key for one in rejects if one.code not in _STORED | {"duplicate-id"}}
    warnings = [
        ItemWarning(id=one.key, code="invalid-field", detail=one.detail)
        for one in rejects
        if one.code in _STORED
    ]
    fields = engine.index_info().fields
    paths = [field["path"] for field in fields if field["name"] not in _BUILT_IN]
    given = {
        name: record.key
        for record in records
        if record.key not in refused
        for name in record.attributes
        if not any(path == name or path.startswith(name + ".") for path in paths)
    }
    if given:
        names = ", ".join(sorted(given)[:_NAMED]) + (", ..." if len(given) > _NAMED else "")
        owners = set(given.values())
        warnings.append(
            ItemWarning(
                id=owners.pop() if len(records) == 1 else None,
                code="not-filterable",
                detail=f"{names}: stored and told with hits, but no filter can ask for it. Fields "
                "are declared when an index is made: diptych index build --filterable NAME:TYPE.",
            )
        )
    return warnings


def _refusal(rejects: Sequence[Reject]) -> ProblemError:
    """Why the only item of a request was not stored."""
    why = rejects[0]
    if why.code in CATALOGUE and why.code not in _UNSUITABLE:
        return ProblemError(of_domain(ImageError(why.detail, code=why.code)))
    return refuse("invalid-request", "The item cannot be stored.")
