"""From the engine's answers to the HTTP schemas, and where an item's thumbnail is found."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from models.errors import NotFoundError
from service.engine.engine import DEFAULT_NAME, Engine
from service.engine.queries import ClassifyAnswer, Prediction, SearchAnswer
from service.http.middleware import problems
from service.http.resources import answers, index_shapes

if TYPE_CHECKING:
    from indexer.search.reader import Facet, Item


def thumbnail_url(engine: Engine, item: Item) -> str | None:
    """The picture's thumbnail, or that of the picture a text belongs to."""
    image_id = item.id if item.modality == "image" else item.image_id
    if image_id is None:
        return None
    # an id may hold slashes, '#' and '?': all of it is one path segment
    url = f"/v1/items/{quote(image_id, safe='')}/thumbnail"
    return url if engine.name == DEFAULT_NAME else f"{url}?index={quote(engine.name, safe='')}"


def _common(engine: Engine, item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "modality": item.modality,
        "uri": item.uri or None,
        "text": item.text,
        "language": item.language,
        "image_id": item.image_id,
        "label": item.label,
        "thumbnail_url": thumbnail_url(engine, item),
    }


def item(engine: Engine, item_id: str) -> answers.Item:
    found = engine.item(item_id)
    captions = [
        answers.Caption(id=text.id, text=text.text or "", language=text.language)
        for text in engine.captions(found)
    ]
    return answers.Item(
        **_common(engine, found),
        attributes=dict(found.attributes),
        content_hash=found.content_hash,
        captions=captions,
    )


def index_info(engine: Engine) -> index_shapes.IndexResponse:
    # without the sources: they name the operator's folders
    info = engine.index_info().to_dict()
    known = {name: info[name] for name in index_shapes.IndexResponse.model_fields if name in info}
    fields = [_field(facet) for facet in engine.facets()]
    more = {
        "name": engine.name,
        "structures": [_structure(one) for one in info["structures"]],
        "fields": fields,
        "explains": engine.explanations.possible,
        "writable": engine.writer is not None,
    }
    return index_shapes.IndexResponse(**known | more)


def _structure(about: Mapping[str, Any]) -> index_shapes.SearchStructure:
    modality = about["target"].removesuffix("s")
    return index_shapes.SearchStructure(
        modality=modality, rows=about["rows"], structure=about["structure"], **about["operating"]
    )


def _field(facet: Facet) -> index_shapes.FieldSummary:
    values = None
    if facet.values is not None:
        values = [
            index_shapes.FieldValue(value=one.value, count=one.images, texts=one.texts)
            for one in facet.values
        ]
    return index_shapes.FieldSummary(
        name=facet.name,
        type=facet.type,
        present=facet.images,
        distinct=facet.distinct,
        values=values,
        min=facet.low,
        max=facet.high,
    )


def indexes(engines: Mapping[str, Engine]) -> index_shapes.IndexesResponse:
    first = next(iter(engines))
    listed = []
    for name, engine in engines.items():
        with engine.pin() as pinned:
            info = pinned.index_info().to_dict()
        fields = {key: info[key] for key in index_shapes.IndexSummary.model_fields if key in info}
        listed.append(index_shapes.IndexSummary(**fields, name=name, default=name == first))
    return index_shapes.IndexesResponse(indexes=listed)


def search(
    engine: Engine, answer: SearchAnswer, include: Collection[str]
) -> answers.SearchResponse:
    hits = []
    for rank, hit in enumerate(answer.hits):
        fields = _common(engine, hit.item)
        if "attributes" in include:
            fields["attributes"] = dict(hit.item.attributes)
        if "embedding" in include and answer.vectors_KD is not None:
            fields["embedding"] = answer.vectors_KD[rank].tolist()
        if "thumbnail" in include:
            fields["thumbnail"] = _inline(engine, hit.item)
        if answer.relevance_K is not None:
            fields["relevance"] = round(answer.relevance_K[rank], 4)
        if hit.fused is not None:
            fields["fused"] = hit.fused
        if hit.duplicates:
            fields["duplicates"] = list(hit.duplicates)
        hits.append(answers.Hit(**{"relevance": None} | fields, score=float(hit.score)))
    return answers.SearchResponse(
        hits=hits,
        no_good_match=answer.no_good_match,
        k=answer.options.k,
        offset=answer.options.offset,
        target=answer.options.target,
        truncated=answer.truncated,
        index_version=answer.index_version,
        model=answer.model,
        took_ms=answer.timings["total"],
        timings=dict(answer.timings),
    )


def _inline(engine: Engine, found: Item) -> str | None:
    image_id = found.id if found.modality == "image" else found.image_id
    if image_id is None:
        return None
    try:
        jpeg = engine.thumbnail(image_id)
    except NotFoundError:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def classification(answer: ClassifyAnswer) -> answers.ClassifyResponse:
    results = []
    for index, result in enumerate(answer.results):
        error = None
        if result.error is not None:
            problem = problems.of_domain(result.error)
            error = answers.PictureError(
                code=problem.code, title=problem.title, detail=problem.detail
            )
        parents = None if result.parents is None else _predictions(result.parents)
        results.append(
            answers.ClassifyResult(
                index=index,
                predictions=_predictions(result.predictions),
                parents=parents,
                abstained=result.abstained,
                background=result.background,
                error=error,
            )
        )
    return answers.ClassifyResponse(
        results=results,
        multi_label=answer.multi_label,
        label_set=answer.label_set,
        temperature=answer.temperature,
        abstain=answer.abstain,
        model=answer.model,
        took_ms=answer.timings["total"],
        timings=dict(answer.timings),
    )


def _predictions(found: Sequence[Prediction]) -> list[answers.Prediction]:
    return [
        answers.Prediction(
            label=p.label, probability=p.probability, path=None if p.path is None else list(p.path)
        )
        for p in found
    ]
