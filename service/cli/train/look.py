"""The data report before the starter's training: its own run decodes every picture later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from service.cli.inspection import inspected
from service.cli.output import note
from service.cli.train.options import TrainOptions

if TYPE_CHECKING:
    from models.encoder import PreparedText
    from models.sources import Source

_GLANCED = 500
"""Pictures decoded for the report: all of them are before the first step, and each is told of."""


def looked_over(
    options: TrainOptions,
    prepare_text: Callable[[str], PreparedText],
    train: list[Source],
    measured: list[Source],
) -> dict[str, Any]:
    """Tell what the sets hold -> both reports, JSON-compatible.

    Raises:
        SourceError: nothing can be learned from `train`, see `models.sources.report.checks.check`.
    """
    from models.sources.report.checks import report_lines
    from models.sources.report.counts import sampling

    def reopen(fields: Sequence[str]) -> list[Source]:
        reading = dataclasses.replace(options.reading, text_fields=tuple(fields))
        return reading.open(options.data + options.extra_data)

    if not train:
        return {}
    report = inspected(train, reopen, prepare_text=prepare_text, one_in=sampling(train, _GLANCED))
    lines = report_lines(report)
    found = {"train": report.to_dict()}
    if measured:
        validation = inspected(
            measured,
            reopen,
            prepare_text=prepare_text,
            one_in=sampling(measured, _GLANCED),
            against=report,
            checked=False,
        )
        lines += report_lines(validation, "validation")
        found["validation"] = validation.to_dict()
    for line in lines:
        note(line)
    return found
