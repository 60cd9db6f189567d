"""The work behind `diptych data report`: count, score, compare, say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from service.cli.exits import OK, PARTIAL
from service.cli.inspection import inspected, refuse_unusable
from service.cli.output import emit_json, interactive
from service.cli.sources import Reading

if TYPE_CHECKING:
    from models.encoder import Encoder
    from models.evaluation.captions.alignment import Scored
    from models.evaluation.captions.near import NearGroup
    from models.evaluation.captions.quality import QualityReport
    from models.sources import Source

_SHOWN_GROUPS = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options asked for; `duplicates_at` None compares no pictures."""

    scores: bool
    worst: int
    duplicates_at: float | None
    out: Path | None
    plot: Path | None
    cache: Path | None
    as_json: bool


def run(
    specs: Sequence[str],
    reading: Reading,
    against: Sequence[str],
    wanted: Wanted,
    **loading: Any,
) -> int:
    """Report on the sources; a set that cannot be trained on is refused after its report."""
    from models.encoders.registry import load_encoder
    from models.environment import default_model
    from models.errors import SourceError
    from models.sources.report.checks import report_lines

    sources = reading.open(specs)
    others = reading.open(against)
    if wanted.scores and not all(source.rereadable for source in sources):
        raise click.UsageError("standard input can be read once; save it, or give --no-scores")
    encoder = load_encoder(loading.pop("model") or default_model(), **loading)
    prepare_text = encoder.prepare_text

    def reopen(fields: Sequence[str]) -> list[Source]:
        return replace(reading, text_fields=tuple(fields)).open(specs)

    counted = inspected(sources, reopen, prepare_text=prepare_text, checked=False)
    known = (
        inspected(others, reopen, prepare_text=None, against=counted, checked=False)
        if others
        else None
    )
    document: dict[str, Any] = {"data": counted.to_dict()}
    lines = report_lines(counted)
    if known is not None:
        document["against"] = known.to_dict()
        lines += [f"{known.known_pictures} pictures of {', '.join(against)} are in this set too"]
    refusal: SourceError | None = None
    try:
        refuse_unusable(counted, reopen)
    except SourceError as error:
        refusal = error
    if wanted.scores and refusal is None:
        quality, groups = _score(sources, encoder, wanted)
        document["model"] = encoder.fingerprint.model
        document["quality"] = quality.to_dict()
        lines += ["", f"how well captions fit, by {encoder.fingerprint.model}", *quality.lines()]
        if groups is not None:
            document["near_duplicates"] = [group.to_dict() for group in groups]
            lines += _group_lines(groups, wanted.duplicates_at or 0.0)
        if wanted.plot is not None:
            from service.cli.plots.score_plot import draw_scores

            draw_scores(quality.languages(), wanted.plot)
    if wanted.as_json:
        emit_json(document)
    else:
        click.echo("\n".join(lines))
    if refusal is not None:
        raise refusal
    return PARTIAL if counted.rejects else OK


def _score(
    sources: Sequence[Source], encoder: Encoder, wanted: Wanted
) -> tuple[QualityReport, list[NearGroup] | None]:
    from models.evaluation.captions.alignment import Scored, score_pairs
    from models.evaluation.captions.near import NearDuplicates
    from models.evaluation.captions.quality import QualityReport
    from models.evaluation.captions.score_memory import ScoreMemory

    memory = ScoreMemory(encoder.fingerprint, wanted.cache)
    quality = QualityReport(wanted.worst)
    compare = wanted.duplicates_at is not None
    with (
        NearDuplicates(encoder.dim) as near,
        _written(wanted.out) as file,
        _bar("scores", _total(sources)) as advance,
    ):
        for source in sources:
            for row in score_pairs(
                source, encoder, memory, vectors=compare, on_picture=lambda: advance(1)
            ):
                quality.add(row)
                if not isinstance(row, Scored):
                    continue
                if row.vector_D is not None:
                    near.add(row.key, row.sha256, row.vector_D)
                    row.vector_D = None
                if file is not None:
                    file.writelines(_score_lines(row))
        groups = None
        if wanted.duplicates_at is not None:
            with _bar("near-duplicates", quality.pictures) as advance_to:
                before = 0

                def on_progress(done: int, _: int) -> None:
                    nonlocal before
                    advance_to(done - before)
                    before = done

                groups = list(near.groups(wanted.duplicates_at, on_progress=on_progress))
    return quality, groups


def _score_lines(row: Scored) -> Iterator[str]:
    for caption in row.captions:
        line = {
            "key": row.key,
            "uri": row.uri,
            "language": caption.language,
            "text": caption.text,
            "score": caption.score,
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _group_lines(groups: list[NearGroup], threshold: float) -> list[str]:
    pictures = sum(len(group.others) for group in groups)
    lines = [
        f"near-duplicates, cosine {threshold} and more: {pictures} pictures in {len(groups)} groups"
    ]
    for group in groups[:_SHOWN_GROUPS]:
        others = ", ".join(
            f"{key} ({'same file' if same else f'{cosine:.3f}'})"
            for key, cosine, same in group.others
        )
        lines.append(f"  {group.keep}: {others}")
    if len(groups) > _SHOWN_GROUPS:
        lines.append(f"  and {len(groups) - _SHOWN_GROUPS} groups more; --json lists them all")
    return lines


@contextmanager
def _written(out: Path | None) -> Iterator[IO[str] | None]:
    """A file that takes its place when all is written, or none."""
    from models.errors import InputError

    if out is None:
        yield None
        return
    scratch = out.with_name(f".{out.name}.partial")
    try:
        file = scratch.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error
    with file:
        try:
            yield file
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    scratch.replace(out)


def _total(sources: Sequence[Source]) -> int | None:
    counts = [source.count() for source in sources]
    return None if None in counts else sum(count or 0 for count in counts)


@contextmanager
def _bar(name: str, total: int | None) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=total, unit="picture", desc=name, disable=not interactive()) as bar:
        yield bar.update
