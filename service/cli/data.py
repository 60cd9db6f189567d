"""`diptych data report`: a data set looked over before anything is trained on it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from indexer.search.options import NEAR_DUPLICATE
from service.cli.exits import OK, PARTIAL
from service.cli.inspection import inspected, refuse_unusable
from service.cli.options import (
    FOLDER,
    NEW_FILE,
    ModelOptions,
    argument,
    group,
    json_option,
    option,
    takes,
)
from service.cli.output import count_all, emit_json, progress_bar
from service.cli.sources import SOURCES, Reading

if TYPE_CHECKING:
    from models.encoder import Encoder
    from models.evaluation.captions.alignment import Scored
    from models.evaluation.captions.quality import NearGroup, QualityReport
    from models.sources import Source

_SHOWN_GROUPS = 20


@click.group(short_help="Look a data set over before training on it.")
def data() -> None:
    """Look a data set over before training on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReportArguments:
    specs: tuple[str, ...] = argument(metavar="SOURCE...", nargs=-1, required=True)
    reading: Reading = group(Reading)
    against: tuple[str, ...] = option(
        "--against",
        multiple=True,
        metavar="SOURCE",
        help="Another set, such as the one to validate on: tell which pictures are in both.",
    )
    no_scores: bool = option(
        "--no-scores", is_flag=True, help="Only count: no picture goes through the model."
    )
    worst: int = option(
        "--worst",
        type=click.IntRange(min=0),
        default=20,
        show_default=True,
        help="List so many of the captions that fit their pictures least.",
    )
    duplicates_at: float | None = option(
        "--duplicates-at",
        type=click.FloatRange(0.0, 1.0, min_open=True),
        help=f"Cosine from which two pictures are near-duplicates. [default: {NEAR_DUPLICATE}]",
    )
    no_duplicates: bool = option(
        "--no-duplicates",
        is_flag=True,
        help="Compare no pictures: every pair of them takes a while.",
    )
    out: Path | None = option(
        "--out",
        type=NEW_FILE,
        help="Write every caption's score here, one JSON object a line.",
    )
    plot: Path | None = option("--plot", type=NEW_FILE, help="Draw the scores' histograms, PNG.")
    cache: Path | None = option(
        "--cache",
        type=FOLDER,
        help="Remember scores in this folder; `diptych train --filter-below` finds them there.",
    )
    pair: ModelOptions = group(ModelOptions)
    as_json: bool = json_option()

    @property
    def compared_at(self) -> float | None:
        """The cosine of near-duplicates; None where no pictures are compared."""
        if self.no_duplicates or self.no_scores:
            return None
        return self.duplicates_at or NEAR_DUPLICATE

    def check(self) -> None:
        """Refuse options that do not go together, before anything is loaded."""
        needy = self.out or self.plot or self.cache or self.duplicates_at is not None
        if self.no_scores and needy:
            raise click.UsageError("--out, --plot, --cache and --duplicates-at need the scores")
        if self.no_duplicates and self.duplicates_at is not None:
            raise click.UsageError("give either --duplicates-at or --no-duplicates")
        if self.plot is not None:
            from service.cli.plots import require_matplotlib

            require_matplotlib()


@data.command(
    epilog="\b\nExamples:\n"
    "  diptych data report my-pictures/\n"
    "  diptych data report 'shards/{00000..00009}.tar' --text-field captions.en --no-scores\n"
    "  diptych data report train.jsonl --against val.jsonl --worst 50 --out scores.jsonl\n"
    "  diptych data report web.parquet --model local-dir:my-pair --cache scores --plot scores.png\n"
    "\n" + SOURCES
)
@takes(DataReportArguments)
def report(given: DataReportArguments) -> int:
    """Tell what a set of captioned pictures holds, and how well the captions fit.

    Counted are pictures and captions by language, copies, caption lengths and what the model's
    context cuts off, damaged pictures, records that lack one half. Then each caption is scored by
    its cosine to its picture and compared with the scores of captions beside other pictures, which
    tells about how many are wrong. A set nothing can be learned from is refused with exit code 2.

    Score with a model that was not trained on these very captions: what it learned by heart fits.
    """
    from models.errors import SourceError
    from models.sources.report.checks import report_lines

    given.check()
    sources = given.reading.open(given.specs)
    others = given.reading.open(given.against)
    if not given.no_scores and not all(source.rereadable for source in sources):
        raise click.UsageError("standard input can be read once; save it, or give --no-scores")
    encoder = given.pair.load()

    def reopen(fields: Sequence[str]) -> list[Source]:
        return given.reading.with_text_fields(fields).open(given.specs)

    counted = inspected(sources, reopen, prepare_text=encoder.prepare_text, checked=False)
    document: dict[str, Any] = {"data": counted.to_dict()}
    lines = report_lines(counted)
    if others:
        known = inspected(others, reopen, prepare_text=None, against=counted, checked=False)
        document["against"] = known.to_dict()
        theirs = ", ".join(given.against)
        lines += [f"{known.known_pictures} pictures of {theirs} are in this set too"]
    refusal: SourceError | None = None
    try:
        refuse_unusable(counted, reopen)
    except SourceError as error:
        refusal = error
    if not given.no_scores and refusal is None:
        quality, groups = _score(sources, encoder, given)
        document["model"] = encoder.fingerprint.model
        document["quality"] = quality.to_dict()
        lines += ["", f"how well captions fit, by {encoder.fingerprint.model}", *quality.lines()]
        if groups is not None:
            document["near_duplicates"] = [one.to_dict() for one in groups]
            lines += _group_lines(groups, given.compared_at or 0.0)
        if given.plot is not None:
            from service.cli.plots import draw_scores

            draw_scores(quality.languages(), given.plot)
    if given.as_json:
        emit_json(document)
    else:
        click.echo("\n".join(lines))
    if refusal is not None:
        raise refusal  # after the report, which says what is wrong
    return PARTIAL if counted.rejects else OK


def _score(
    sources: Sequence[Source], encoder: Encoder, given: DataReportArguments
) -> tuple[QualityReport, list[NearGroup] | None]:
    from models.evaluation.captions.alignment import Scored, ScoreMemory, score_pairs
    from models.evaluation.captions.quality import NearDuplicates, QualityReport

    memory = ScoreMemory(encoder.fingerprint, given.cache)
    quality = QualityReport(given.worst)
    compare = given.compared_at is not None
    with (
        NearDuplicates(encoder.dim) as near,
        _written(given.out) as file,
        progress_bar("scores", "picture", count_all(sources)) as bar,
    ):
        for source in sources:
            for row in score_pairs(source, encoder, memory, vectors=compare, on_picture=bar.by):
                quality.add(row)
                if not isinstance(row, Scored):
                    continue
                if row.vector_D is not None:
                    near.add(row.key, row.sha256, row.vector_D)
                    row.vector_D = None
                if file is not None:
                    file.writelines(_score_lines(row))
        groups = None
        if given.compared_at is not None:
            with progress_bar("near-duplicates", "picture", quality.pictures) as bar:
                groups = list(near.groups(given.compared_at, on_progress=bar.to))
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
    pictures = sum(len(one.others) for one in groups)
    lines = [
        f"near-duplicates, cosine {threshold} and more: {pictures} pictures in {len(groups)} groups"
    ]
    for one in groups[:_SHOWN_GROUPS]:
        others = ", ".join(
            f"{key} ({'same file' if same else f'{cosine:.3f}'})"
            for key, cosine, same in one.others
        )
        lines.append(f"  {one.keep}: {others}")
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
    scratch = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        file = scratch.open("x", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error
    with file:
        try:
            yield file
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    scratch.replace(out)
