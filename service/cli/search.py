"""`diptych search`: one query against an index, by text or by picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import unquote, urlsplit

import click

from indexer.search.options import (
    DEFAULTS,
    HYBRID,
    MAX_K,
    MAX_OFFSET,
    NEAR_DUPLICATE,
    SearchOptions,
    SortKey,
    Target,
    parse_sort,
)
from models.errors import InputError, InvalidFilterError
from service.cli.exits import OK
from service.cli.options import (
    OLD_FILE,
    ModelOptions,
    argument,
    group,
    index_option,
    json_option,
    option,
    takes,
)
from service.cli.output import emit_json, note

if TYPE_CHECKING:
    from indexer.filters.language import Filter
    from indexer.search.reader import Item
    from service.engine.queries import SearchAnswer, SearchQuery

_TEXT_WIDTH = 80


class Share(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.4
    """A number from 0 to 1 that may be left out, which makes the next word look like it."""

    name = "share"

    def __init__(self, option: str) -> None:
        self._option = option

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(
                f"{value!r} is not a number; put the text before --{self._option}, or write "
                f"--{self._option}=NUMBER",
                param,
                ctx,
            )
        if not 0.0 <= number <= 1.0:
            self.fail(f"{value} is not between 0 and 1", param, ctx)
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryArguments:
    """What is looked for."""

    text: str | None = argument()
    image: Path | None = option(
        "--image",
        type=OLD_FILE,
        help="Search by this picture, instead of a text or together with it.",
    )
    plus: tuple[str, ...] = option(
        "--plus", multiple=True, metavar="TEXT", help="Also this; repeatable."
    )
    minus: tuple[str, ...] = option(
        "--minus", multiple=True, metavar="TEXT", help="Less of this; repeatable."
    )
    like: tuple[str, ...] = option(
        "--like", multiple=True, metavar="ID", help="Like this item; repeatable."
    )

    def query(self) -> SearchQuery:
        """What the engine is asked for. Raises InvalidTextError, InputError, UsageError."""
        from service.engine.queries import (
            ComposedQuery,
            ImageQuery,
            ItemQuery,
            TextQuery,
            Weighted,
            check_parts,
            check_text,
        )

        texts = [*([] if self.text is None else [self.text]), *self.plus]
        parts = [Weighted(TextQuery(check_text(one))) for one in texts]
        parts += [] if self.image is None else [Weighted(ImageQuery(_read(self.image)))]
        parts += [Weighted(ItemQuery(one)) for one in self.like]
        if not parts:
            raise click.UsageError("give either a text or --image FILE, or --plus or --like")
        parts += [Weighted(TextQuery(check_text(one)), -1.0) for one in self.minus]
        check_parts(ComposedQuery(tuple(parts)))
        return parts[0].part if len(parts) == 1 else ComposedQuery(tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingArguments:
    """How it is looked for: the fields of `SearchOptions`."""

    filter_json: str | None = option(
        "--filter",
        metavar="JSON",
        help="Only items that meet this; `diptych index info` lists the fields.",
    )
    target: Target = option(
        "--target",
        type=click.Choice(get_args(Target)),
        default=DEFAULTS.target,
        show_default=True,
        help="What to look for.",
    )
    k: int = option(
        "-k",
        default=DEFAULTS.k,
        show_default=True,
        type=click.IntRange(1, MAX_K),
        help="How many hits.",
    )
    offset: int = option(
        "--offset",
        default=DEFAULTS.offset,
        show_default=True,
        type=click.IntRange(0, MAX_OFFSET),
        help="How many of the best to skip.",
    )
    min_score: float | None = option(
        "--min-score",
        type=click.FloatRange(-1, 1),
        help="Leave out what has a lower cosine.",
    )
    sort: tuple[str, ...] = option(
        "--sort",
        multiple=True,
        metavar="FIELD[:desc]",
        help="Sort by this field instead of by closeness, smallest first, or largest with :desc; "
        "repeatable, the first decides first. All that --filter and --min-score let through is "
        "sorted, and missing values come last.",
    )
    hybrid: float | None = option(
        "--hybrid",
        metavar="[W]",
        type=Share("hybrid"),
        is_flag=False,
        flag_value=str(HYBRID),
        help="Also search by words, in captions, texts and file names: W from 0 (none) to 1 (words "
        f"alone) is their weight. [{HYBRID} if W is left out]",
    )
    deduplicate: float | None = option(
        "--deduplicate",
        metavar="[T]",
        type=Share("deduplicate"),
        is_flag=False,
        flag_value=str(NEAR_DUPLICATE),
        help="Leave out hits whose cosine to a better one reaches T; the better one names them. "
        f"[{NEAR_DUPLICATE} if T is left out]",
    )
    exact: bool = option(
        "--exact", is_flag=True, help="Compare with every item, whatever was optimized."
    )
    effort: int | None = option(
        "--effort",
        type=click.IntRange(min=1),
        help="How hard an optimized index looks (efSearch or nprobe). "
        "[default: what optimize chose]",
    )

    def options(self) -> SearchOptions:
        """The same, for the engine. Raises InputError, UsageError."""
        return SearchOptions(
            k=self.k,
            offset=self.offset,
            target=self.target,
            filter=None if self.filter_json is None else _filter(self.filter_json),
            hybrid=self.hybrid or DEFAULTS.hybrid,
            deduplicate=self.deduplicate,
            exact=self.exact,
            effort=self.effort,
            min_score=self.min_score,
            sort=_sort_keys(self.sort),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchArguments:
    index: Path = index_option("The index directory.")
    wanted: QueryArguments = group(QueryArguments)
    ranking: RankingArguments = group(RankingArguments)
    pair: ModelOptions = group(ModelOptions)
    as_json: bool = json_option()


@click.command(
    epilog='\b\nExamples:\n  diptych search --index photos.index "a dog on the beach"\n'
    "  diptych search --index photos.index --image cat.jpg -k 5\n"
    "  diptych search --index photos.index --image cat.jpg --target texts --json\n"
    "  diptych search --index photos.index beach --plus sunset --minus people --like IMG_7.jpg\n"
    "  diptych search --index photos.index bag --filter '"
    '{"field": "year", "gte": 2020}\'\n'
    "  diptych search --index photos.index beach --min-score 0.2 --sort taken:desc\n"
    '  diptych search --index photos.index "IMG_2041 harbour" --hybrid --deduplicate\n'
    "  diptych search --index photos.index harbour --hybrid=0.7 --exact"
)
@takes(SearchArguments)
def search(given: SearchArguments) -> int:
    """Search an index by TEXT, by a picture with --image, or by several things at once.

    Prints rank, score (the cosine), path and text, best first; with --hybrid the best by cosine and
    words together, with --sort in the order of a field, so that the cosines do not fall.
    """
    from indexer.search.snapshot import open_snapshot

    # what is wrong with the query is said before a model is loaded for it
    query, options = given.wanted.query(), given.ranking.options()
    with open_snapshot(given.index, fingerprint=None) as snapshot:
        if options.filter is not None:
            with _pointing_into_the_filter():
                snapshot.check_filter(options.filter)
        with _about_the_sort():
            snapshot.check_sort(options.sort)
        from service.engine.engine import Engine

        encoder = given.pair.load(given.pair.model or snapshot.fingerprint.model)
        answer = Engine(encoder, snapshot).search(query, options)
    if given.as_json:
        emit_json(_document(answer))
    else:
        _print(answer)
    if answer.truncated:
        note("The text is longer than the model reads; its end was left out.")
    return OK


def _filter(text: str) -> Filter:
    from indexer.filters.language import parse_filter

    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise click.UsageError("--filter is not JSON") from None
    with _pointing_into_the_filter():
        return parse_filter(document)


@contextmanager
def _pointing_into_the_filter() -> Iterator[None]:
    try:
        yield
    except InvalidFilterError as error:
        where = f" at {error.where}" if error.where else ""
        raise click.UsageError(f"--filter{where}: {error.message}") from None


def _sort_keys(given: Sequence[str]) -> tuple[SortKey, ...]:
    with _about_the_sort():
        return parse_sort(given)


@contextmanager
def _about_the_sort() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise click.UsageError(f"--sort: {error.message}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None


def _document(answer: SearchAnswer) -> dict[str, Any]:
    return {
        "hits": [
            {
                "rank": answer.options.offset + rank,
                "score": round(hit.score, 6),
                "relevance": _relevance(answer, rank - 1),
                **({} if hit.fused is None else {"fused": round(hit.fused, 6)}),
                **({"duplicates": list(hit.duplicates)} if hit.duplicates else {}),
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
        "k": answer.options.k,
        "offset": answer.options.offset,
        "target": answer.options.target,
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
        # sorted otherwise they are the first, and what fits is for --min-score to say
        closest = "" if answer.options.sort else "; these are the closest"
        note(f"Nothing here fits well{closest}.")
    elif answer.options.sort and not (answer.options.filter or answer.options.min_score):
        note("Every item is sorted, however far from the query; --min-score N leaves out the rest.")
    for rank, hit in enumerate(answer.hits, start=answer.options.offset + 1):
        line = f"{rank:3d}  {hit.score:6.3f}  {_where(hit.item)}"
        if hit.item.text:
            line += f"  {_one_line(hit.item.text)}"
        if hit.duplicates:
            line += f"  (+{len(hit.duplicates)} alike)"
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
