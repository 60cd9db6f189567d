"""PUT and DELETE /v1/items/{id}, POST /v1/items; only where the service was started writable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response, status

from indexer.ingest.prepare import text_ids
from models.errors import ImageError
from models.sources.records import Record, Reject
from service.engine.engine import Engine
from service.engine.item_writer import ItemWriter, outcome
from service.http.middleware.endpoints import Endpoint, json_of, picture_of
from service.http.middleware.problems import CATALOGUE, ProblemError, of_domain, refuse
from service.http.resources import bodies
from service.http.resources.fetching import FetchOf
from service.http.resources.item_bodies import item_body, record_of
from service.http.resources.item_shapes import (
    BulkRequest,
    BulkWritten,
    ItemOptions,
    ItemRequest,
    ItemWritten,
    RefusedItem,
)
from service.http.resources.items import ItemId
from service.http.resources.state import EngineOf

router = APIRouter(prefix="/v1", tags=["index"])
# said of something else than the item that has the id
_STORED = frozenset({"invalid-field", "duplicate-id"})
_ITEM_BODY = picture_of(ItemOptions, json=ItemRequest)
_UNSUITABLE = frozenset({"unusable-record", "duplicate-id", "embedding-invalid"})


def _writer(engine: Engine) -> ItemWriter:
    if engine.writer is None:
        raise refuse(
            "read-only",
            "This service only reads its indexes.",
            hint="diptych serve --writable lets items be written.",
        )
    return engine.writer


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
    fetch: FetchOf,
    response: Response,
) -> ItemWritten:
    """A picture, texts, or both, under this id; what the index had there is replaced.

    It is on disk and found by searches before this answers. An id that was deleted may be used
    again. With an `Idempotency-Key` a repetition gets the first answer.
    """
    writer = _writer(engine)
    record = record_of(id, sent, fetch)
    report = writer.put([record])
    did = outcome(report)
    if did == "refused":
        raise _refusal(report.refused)
    response.headers["Index-Version"] = str(report.version)
    response.status_code = status.HTTP_201_CREATED if did == "added" else status.HTTP_200_OK
    refused = _refused(report.refused)
    without = {one.id for one in refused}
    return ItemWritten(
        id=id,
        outcome=did,
        texts=[one for one in text_ids(record.key, record.texts) if one not in without],
        refused=refused,
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
    body: Annotated[BulkRequest, Depends(bodies.json_body(BulkRequest))],
    engine: EngineOf,
    fetch: FetchOf,
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
            records.append(record_of(item.id, item, fetch, f"#/items/{number}"))
        except ProblemError as error:
            problem = error.problem
            refused.append(RefusedItem(id=item.id, code=problem.code, detail=problem.detail))
    report = writer.put(records)
    response.headers["Index-Version"] = str(report.version)
    refused += _refused(report.refused)
    without = {one.id for one in refused if one.code not in _STORED}
    # of an id sent twice, the first was stored
    stored = dict.fromkeys(one.key for one in records if one.key not in without)
    return BulkWritten(
        ids=list(stored),
        added=report.added,
        updated=report.updated + report.moved,
        unchanged=report.unchanged,
        refused=refused,
        index_version=report.version,
    )


def _refused(rejects: Sequence[Reject]) -> list[RefusedItem]:
    return [RefusedItem(id=one.key, code=one.code, detail=one.detail) for one in rejects]


def _refusal(rejects: Sequence[Reject]) -> ProblemError:
    """Why the only item of a request was not stored."""
    why = rejects[0]
    if why.code in CATALOGUE and why.code not in _UNSUITABLE:
        return ProblemError(of_domain(ImageError(why.detail, code=why.code)))
    return refuse("invalid-request", "The item cannot be stored.")
