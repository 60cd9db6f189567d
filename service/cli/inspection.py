"""A training set looked over before anything is done with it, with a bar; refusals name fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from service.cli.output import count_all, progress_bar

if TYPE_CHECKING:
    from models.encoder import PreparedText
    from models.sources import Source
    from models.sources.report.counts import DataReport


def inspected(
    sources: Sequence[Source],
    reopen: Callable[[Sequence[str]], Sequence[Source]],
    *,
    prepare_text: Callable[[str], PreparedText] | None,
    one_in: int | None = None,
    against: DataReport | None = None,
    checked: bool = True,
) -> DataReport:
    """The report of the sources.

    Args:
        sources: as they will be trained on.
        reopen: the same sources with other text fields, to name those that exist in a refusal.
        prepare_text: the model's tokenizer; None checks no caption's length in tokens.
        one_in: decode one picture in so many; None takes what checks about 10,000.
        against: the training set's report, for a validation set.
        checked: refuse a set that cannot be trained on.

    Raises:
        SourceError: see `models.sources.report.checks.check`.
    """
    from models.sources.report.counts import inspect, sampling

    with progress_bar("data", "record", count_all(sources)) as bar:
        report = inspect(
            sources,
            prepare_text=prepare_text,
            one_in=sampling(sources) if one_in is None else one_in,
            against=against,
            on_row=bar.by,
        )
    if checked:
        refuse_unusable(report, reopen)
    return report


def refuse_unusable(
    report: DataReport, reopen: Callable[[Sequence[str]], Sequence[Source]]
) -> None:
    """Raises SourceError: see `models.sources.report.checks.check`; names the fields there are."""
    from models.sources.report.checks import check

    unusable = not report.pictures or max(report.distinct_captions.values(), default=0) == 1
    check(report, fields=fields_with_text(reopen) if unusable else [])


def fields_with_text(reopen: Callable[[Sequence[str]], Sequence[Source]]) -> list[str]:
    """What captions could have been called; `reopen` opens the sources with other text fields."""
    from models.sources.report.checks import PROBE_FIELDS, named_fields

    fields: list[str] = []
    for source in reopen(PROBE_FIELDS):
        # standard input was read to its end and cannot be looked into again
        fields += named_fields(source) if source.rereadable else []
    return list(dict.fromkeys(fields))
