"""The work behind `diptych evaluate`: every model on every data set, then one answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.evaluate.output import Document, document, table
from service.cli.exits import OK, PARTIAL
from service.cli.inspection import fields_with_text
from service.cli.output import emit_json, interactive, note
from service.cli.sources import Reading

if TYPE_CHECKING:
    from models.encoder import Encoder
    from models.labels.calibration import Calibration
    from models.labels.class_head import ClassHead
    from models.sources import Reject, Source
    from models.sources.embedded import Collected

_SHOWN_REJECTS = 10


@dataclass(frozen=True, slots=True)
class Run:
    """What the options said, checked."""

    task: str
    data: tuple[str, ...]
    train: tuple[str, ...]
    shots: int | None
    seed: int
    reading: Reading
    class_names: dict[str, str] | None
    head: Path | None
    templates: tuple[str, ...]
    holdout: int | None
    plot: Path | None
    out: Path | None
    as_json: bool


def run(wanted: Run, models: Sequence[str], **loading: Any) -> int:
    """Measure and say. Rejected records are named once, however many models read them."""
    from models.atomic import replace_file
    from models.encoders.registry import load_encoder
    from models.environment import default_model
    from models.errors import InputError

    names = list(dict.fromkeys(models)) or [default_model()]
    if len(names) > 1 and "-" in (*wanted.data, *wanted.train):
        raise click.UsageError("standard input can be read once, so one --model at a time")
    sources = [_held_out(wanted.reading.open([spec]), wanted.holdout) for spec in wanted.data]
    training = wanted.reading.open(wanted.train)
    documents: list[Document] = []
    diagrams: list[tuple[str, Calibration]] = []
    rejects: dict[tuple[str, str], Reject] = {}
    for name in names:
        encoder = load_encoder(name, **loading)
        head = _head(wanted.head, encoder)
        trained = None
        if training:
            trained = _collect(training, encoder, f"{name} train", rejects)
        for spec, parts in zip(wanted.data, sources, strict=True):
            collected = _collect(parts, encoder, f"{name} {spec}", rejects)
            if wanted.task == "retrieval" and not collected.captions:
                _refuse_without_captions(wanted.reading, spec)
            for language, metrics, calibration in _measure(
                wanted, encoder, collected, trained, head
            ):
                documents.append(document(spec, name, wanted.task, language, metrics))
                if calibration is not None:
                    diagrams.append((f"{name}, {spec}", calibration))
    if wanted.plot is not None:
        from service.cli.plots.reliability_plot import draw_reliabilities

        if not diagrams:
            raise InputError("a reliability plot needs at least ten labelled pictures, two classes")
        draw_reliabilities(diagrams, wanted.plot)
    answer = documents[0] if len(documents) == 1 else documents
    if wanted.out is not None:
        text = json.dumps(answer, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        try:
            replace_file(wanted.out, text.encode())
        except OSError as error:
            raise InputError(f"cannot write {wanted.out}: {error.strerror}") from error
    if wanted.as_json:
        emit_json(answer)
    else:
        click.echo("\n".join(table(documents)))
    for reject in list(rejects.values())[:_SHOWN_REJECTS]:
        note(f"rejected {reject.source} {reject.key}: {reject.code}: {reject.detail}")
    if rejects:
        note(f"{len(rejects)} records were rejected")
    return PARTIAL if rejects else OK


def _refuse_without_captions(reading: Reading, spec: str) -> None:
    from models.errors import SourceError

    def reopen(fields: Sequence[str]) -> list[Source]:
        return replace(reading, text_fields=tuple(fields)).open([spec])

    fields = fields_with_text(reopen)
    raise SourceError(
        f"{spec} holds no captions to retrieve with",
        code="no-captions",
        hint=f"fields that hold text: {', '.join(fields)} (--text-field {fields[0]})"
        if fields
        else "put cat.txt beside cat.jpg, or name the field they are in (--text-field)",
    )


def _held_out(sources: list[Source], one_in: int | None) -> list[Source]:
    from models.sources.records import HoldOut

    if one_in is None:
        return sources
    return [HoldOut(source, one_in, held_out=True) for source in sources]


def _head(path: Path | None, encoder: Encoder) -> ClassHead | None:
    """Raises LabelSetError: the file is none, or was made with another pair."""
    from models.labels.class_head import load_head

    if path is None:
        return None
    head = load_head(path)
    head.check_encoder(encoder.fingerprint.digest)
    return head


def _measure(
    wanted: Run,
    encoder: Encoder,
    collected: Collected,
    trained: Collected | None,
    head: ClassHead | None,
) -> Iterator[tuple[str, dict[str, float], Calibration | None]]:
    """(language, metrics, calibration) of each result."""
    if wanted.task == "retrieval":
        from models.evaluation.retrieval import evaluate_retrieval

        for language, metrics in evaluate_retrieval(encoder, collected).items():
            yield language, metrics, None
        return
    if trained is not None:
        from models.evaluation.linear_probe import evaluate_linear_probe

        yield (
            "",
            evaluate_linear_probe(trained, collected, shots=wanted.shots, seed=wanted.seed),
            None,
        )
        return
    from models.evaluation.accuracy import head_logits, zero_shot_logits, zero_shot_metrics
    from models.labels.calibration import FEWEST_EXAMPLES, calibrate

    if head is not None:
        found = head_logits(head, collected)
        metrics = zero_shot_metrics(found)
    else:
        found = zero_shot_logits(
            encoder, collected, templates=wanted.templates, class_names=wanted.class_names
        )
        metrics = zero_shot_metrics(found, logit_bias=encoder.logit_bias)
    calibration = None
    if found.classes > 1 and len(found.target_B) >= FEWEST_EXAMPLES:
        calibration = calibrate(found.logits_BC, found.target_B)
        metrics["ece_calibrated"] = calibration.ece_after
        metrics["temperature"] = calibration.temperature
    yield "", metrics, calibration


def _collect(
    sources: Sequence[Source],
    encoder: Encoder,
    title: str,
    rejects: dict[tuple[str, str], Reject],
) -> Collected:
    from tqdm import tqdm

    from models.sources.embedded import collect

    counts = [source.count() for source in sources]
    total = None if None in counts else sum(count or 0 for count in counts)
    with tqdm(total=total, unit="picture", desc=title, disable=not interactive()) as bar:
        collected = collect(sources, encoder, on_picture=bar.update)
    for reject in collected.rejects:
        rejects.setdefault((reject.source, reject.key), reject)
    return collected


def read_class_names(path: Path) -> dict[str, str]:
    """{label: name}; a line without a tab names its class by itself.

    Raises:
        InvalidLabelsError: the file cannot be read, or names a label twice.
    """
    from models.errors import InvalidLabelsError

    names: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidLabelsError(f"cannot read {path}: {error}") from error
    for line in lines:
        label, tab, name = line.partition("\t")
        if not label.strip():
            continue
        if label.strip() in names:
            raise InvalidLabelsError(f"{path} names {label.strip()!r} twice")
        names[label.strip()] = name.strip() if tab else label.strip()
    return names
