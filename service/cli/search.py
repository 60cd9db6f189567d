"""`diptych search`: one query against an index, by text or by picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click

from service.cli.exits import OK
from service.cli.output import emit_json, json_option, model_options, note

if TYPE_CHECKING:
    from indexer.snapshot import Item
    from service.queries import SearchAnswer, SearchQuery, Target

_TEXT_WIDTH = 80


@click.command(
    epilog='\b\nExamples:\n  diptych search --index photos.index "a dog on the beach"\n'
    "  diptych search --index photos.index --image cat.jpg -k 5\n"
    "  diptych search --index photos.index --image cat.jpg --target texts --json"
)
@click.option(
    "--index",
    "index_dir",
    required=True,
    type=click.Path(path_type=Path),
    help="The index directory.",
)
@click.argument("text", required=False)
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Search by this picture instead of a text.",
)
@click.option(
    "--target",
    type=click.Choice(["images", "texts"]),
    default="images",
    show_default=True,
    help="What to look for.",
)
@click.option(
    "-k",
    default=10,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="How many hits.",
)
@click.option(
    "--offset",
    default=0,
    show_default=True,
    type=click.IntRange(0, 10_000),
    help="How many of the best to skip.",
)
@model_options
@json_option
def search(
    index_dir: Path,
    text: str | None,
    image: Path | None,
    target: Target,
    k: int,
    offset: int,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Search an index by TEXT, or by a picture with --image.

    Prints rank, score (the cosine), path and text, best first.
    """
    from indexer.snapshot import open_snapshot
    from service.queries import ImageQuery, TextQuery, check_text

    if (text is None) == (image is None):
        raise click.UsageError("give either a text or --image FILE")
    query: SearchQuery
    # what is wrong with the query is said before a model is loaded for it
    query = TextQuery(check_text(text)) if text is not None else ImageQuery(_read(image))
    with open_snapshot(index_dir, fingerprint=None) as snapshot:
        from models.registry import load_encoder
        from service.engine import Engine

        encoder = load_encoder(
            model or snapshot.fingerprint.model,
            device=device,
            precision=precision,
            threads=threads,
        )
        answer = Engine(encoder, snapshot).search(query, target=target, k=k, offset=offset)
    if as_json:
        emit_json(_document(answer))
    else:
        _print(answer)
    if answer.truncated:
        note("The text is longer than the model reads; its end was left out.")
    return OK


def _read(path: Path | None) -> bytes:
    assert path is not None, "one of text and image is given"
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None


def _document(answer: SearchAnswer) -> dict[str, Any]:
    return {
        "hits": [
            {
                "rank": answer.offset + rank,
                "score": round(hit.score, 6),
                "relevance": _relevance(answer, rank - 1),
                "id": hit.item.id,
                "modality": hit.item.modality,
                "uri": hit.item.uri,
                "text": hit.item.text,
                "language": hit.item.language,
                "image_id": hit.item.image_id,
                "label": hit.item.label,
                "attributes": dict(hit.item.attributes),
            }
            for rank, hit in enumerate(answer.hits, start=1)
        ],
        "no_good_match": answer.no_good_match,
        "k": answer.k,
        "offset": answer.offset,
        "target": answer.target,
        "truncated": answer.truncated,
        "index_version": answer.index_version,
        "model": answer.model,
        "took_ms": answer.timings["total"],
    }


def _relevance(answer: SearchAnswer, position: int) -> float | None:
    return None if answer.relevance_K is None else round(answer.relevance_K[position], 4)


def _print(answer: SearchAnswer) -> None:
    if not answer.hits:
        note("Nothing found.")
    elif answer.no_good_match:
        note("Nothing here fits well; these are the closest.")
    for rank, hit in enumerate(answer.hits, start=answer.offset + 1):
        line = f"{rank:3d}  {hit.score:6.3f}  {_where(hit.item)}"
        if hit.item.text:
            line += f"  {_one_line(hit.item.text)}"
        click.echo(line)


def _where(item: Item) -> str:
    """The path of a `file:` URI; anything else as it is, or the id."""
    parts = urlsplit(item.uri)
    if parts.scheme != "file":
        return _one_line(item.uri or item.id)
    member = f"#{unquote(parts.fragment)}" if parts.fragment else ""
    return _one_line(unquote(parts.path) + member)


def _one_line(text: str) -> str:
    """Printable, on one line: an indexed caption must not steer the terminal."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= _TEXT_WIDTH else flat[: _TEXT_WIDTH - 1] + "…"
