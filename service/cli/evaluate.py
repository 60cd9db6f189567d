"""`diptych evaluate`: measure encoder pairs on your pictures, as CLIP_benchmark reports it.

What a task measures is `models.evaluation.tasks`'; this asks for every pair and every set, and says
the answer as CLIP_benchmark's documents and as a table to read them by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from service.cli.exits import OK, PARTIAL
from service.cli.inspection import fields_with_text
from service.cli.options import (
    NEW_FILE,
    OLD_FILE,
    ModelsOptions,
    group,
    json_option,
    option,
    takes,
)
from service.cli.output import count_all, emit_json, note, progress_bar
from service.cli.sources import SOURCES, Reading

if TYPE_CHECKING:
    from models.encoder import Encoder
    from models.evaluation.tasks import Measured, Task
    from models.labels.calibration import Calibration
    from models.labels.class_head import ClassHead
    from models.sources import Reject, Source
    from models.sources.embedded import Collected

_SHOWN_REJECTS = 10

Document = dict[str, Any]

TASKS: Final = {
    "retrieval": "zeroshot_retrieval",
    "zero-shot": "zeroshot_classification",
    "linear-probe": "linear_probe",
}
_COUNTS: Final = ("pictures", "texts", "classes", "train_pictures")
_ALWAYS: Final = {"zero-shot": ("acc5",), "linear-probe": ("lp_acc5",)}
"""Metrics CLIP_benchmark always prints, as NaN where they mean nothing; here null, for JSON."""

_PERCENT: Final = {
    "image_retrieval_recall@1": "text -> image  R@1",
    "image_retrieval_recall@5": "               R@5",
    "image_retrieval_recall@10": "               R@10",
    "text_retrieval_recall@1": "image -> text  R@1",
    "text_retrieval_recall@5": "               R@5",
    "text_retrieval_recall@10": "               R@10",
    "acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class_recall": "mean per-class recall",
    "lp_acc1": "top-1",
    "lp_acc5": "top-5",
    "lp_mean_per_class_recall": "mean per-class recall",
}
_PLAIN: Final = {
    "ece": "calibration error (ECE)",
    "ece_sigmoid": "  of the sigmoid",
    "ece_calibrated": "  at the fitted temperature",
    "temperature": "fitted temperature",
    "weight_decay": "penalty",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateArguments:
    task: Task = option(
        "--task",
        type=click.Choice(["retrieval", "zero-shot", "linear-probe"]),
        required=True,
        help="Recall@1/5/10 both ways; top-1, top-5, mean per-class recall and calibration of the "
        "labels put into prompts; the same of a linear classifier trained on --train.",
    )
    data: tuple[str, ...] = option(
        "--data",
        multiple=True,
        required=True,
        metavar="SOURCE",
        help="What to measure on; repeat for several sets, join parts of one by ::.",
    )
    train: tuple[str, ...] = option(
        "--train",
        multiple=True,
        metavar="SOURCE",
        help="Of a linear probe: labelled pictures to train on, with the fields of --data; "
        "repeatable.",
    )
    shots: int | None = option(
        "--shots",
        type=click.IntRange(min=1),
        metavar="K",
        help="Of a linear probe: train on at most K pictures a class.",
    )
    seed: int = option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Of drawing the --shots.",
    )
    reading: Reading = group(Reading)
    classnames: Path | None = option(
        "--classnames",
        type=OLD_FILE,
        help="Names of the classes, one a line: NAME, or LABEL, a tab, NAME. Labels that are "
        "numbers count the lines from 0.",
    )
    templates: tuple[str, ...] = option(
        "--template",
        multiple=True,
        help="Prompt with {c} for the class; may be repeated. [default: the default set]",
    )
    template_sets: tuple[str, ...] = option(
        "--template-set",
        multiple=True,
        metavar="NAME",
        help="A named list of prompts: default, imagenet, food, pets, zh, ...; repeatable.",
    )
    head: Path | None = option(
        "--head",
        type=OLD_FILE,
        help="Judge by what `diptych train --tune linear|adapter|prompts` left, not by prompts.",
    )
    holdout: int | None = option(
        "--holdout",
        type=click.IntRange(min=2),
        metavar="N",
        help="Measure only the one record in N that `diptych train --holdout N` leaves out.",
    )
    plot: Path | None = option(
        "--plot",
        type=NEW_FILE,
        help="Of zero-shot: draw how sure the pair is against how often it is right, PNG.",
    )
    out: Path | None = option("--out", type=NEW_FILE, help="Write the JSON documents here as well.")
    pairs: ModelsOptions = group(ModelsOptions)
    as_json: bool = json_option()

    def check(self) -> None:
        """Refuse options that do not go together, before anything is loaded."""
        worded = self.classnames or self.templates or self.template_sets
        if (self.task == "linear-probe") != bool(self.train):
            raise click.UsageError("--train SOURCE and --task linear-probe go together")
        if self.shots is not None and self.task != "linear-probe":
            raise click.UsageError("--shots belongs to --task linear-probe")
        if self.task != "zero-shot" and (worded or self.plot):
            raise click.UsageError(
                "--classnames, --template, --template-set and --plot belong to --task zero-shot"
            )
        if self.head is not None:
            if self.task != "zero-shot" or worded:
                raise click.UsageError(
                    "--head goes with --task zero-shot, and brings its own labels"
                )
            if len(self.pairs.names) > 1:
                raise click.UsageError("a --head belongs to one --model")
        if self.plot is not None:
            from service.cli.plots import require_matplotlib

            require_matplotlib()


@click.command(
    short_help="Measure retrieval, zero-shot or linear-probe accuracy.",
    epilog="\b\nExamples:\n"
    "  diptych evaluate --task retrieval --data 'val-{00000..00001}.tar' "
    "--text-field captions.en\n"
    "  diptych evaluate --task retrieval --data val.tar --model starter --model local-dir:mine\n"
    "  diptych evaluate --task zero-shot --data shelf.tar --label-field label "
    "--plot reliability.png\n"
    '  diptych evaluate --task zero-shot --data tiny.tar --label-field names.0 --template "a {c}"\n'
    "  diptych evaluate --task linear-probe --train train.tar --data test.tar "
    "--label-field label\n\n" + SOURCES,
)
@takes(EvaluateArguments)
def evaluate(given: EvaluateArguments) -> int:
    """Measure encoder pairs on your own pictures.

    A set without any label has its folders' names for labels, where there are two or more.
    Retrieval is measured for each language of the captions. `image_retrieval_recall@k` is text to
    image, `text_retrieval_recall@k` image to text. With --json, CLIP_benchmark's shape: one
    document, or a list of them when there are several sets, languages or models.
    """
    from models.errors import InputError

    given.check()
    if len(given.pairs.names) > 1 and "-" in (*given.data, *given.train):
        raise click.UsageError("standard input can be read once, so one --model at a time")
    documents: list[Document] = []
    diagrams: list[tuple[str, Calibration]] = []
    # named once, however many models read them
    rejects: dict[tuple[str, str], Reject] = {}
    for name, spec, found in _measured(given, rejects):
        documents.append(document(spec, name, given.task, found.language, found.metrics))
        if found.calibration is not None:
            diagrams.append((f"{name}, {spec}", found.calibration))
    if given.plot is not None:
        from service.cli.plots import draw_reliabilities

        if not diagrams:
            raise InputError("a reliability plot needs at least ten labelled pictures, two classes")
        draw_reliabilities(diagrams, given.plot)
    answer = documents[0] if len(documents) == 1 else documents
    if given.out is not None:
        _write(answer, given.out)
    if given.as_json:
        emit_json(answer)
    else:
        click.echo("\n".join(table(documents)))
    for reject in list(rejects.values())[:_SHOWN_REJECTS]:
        note(f"rejected {reject.source} {reject.key}: {reject.code}: {reject.detail}")
    if rejects:
        note(f"{len(rejects)} records were rejected")
    return PARTIAL if rejects else OK


def _measured(
    given: EvaluateArguments, rejects: dict[tuple[str, str], Reject]
) -> Iterator[tuple[str, str, Measured]]:
    """(pair, set, figures) of every pair on every set."""
    from models.evaluation.tasks import (
        measure_linear_probe,
        measure_retrieval,
        measure_zero_shot,
        read_class_names,
    )
    from models.labels.prompts import resolve_templates

    class_names = read_class_names(given.classnames) if given.classnames else None
    templates = resolve_templates([*given.template_sets, *given.templates])
    sets = {spec: _held_out(given.reading.open([spec]), given.holdout) for spec in given.data}
    training = given.reading.open(given.train)
    # a field that was named and is nowhere is a mistake, not a set of class folders
    folders = given.reading.label_field is None
    for name in given.pairs.names:
        encoder = given.pairs.machine.load(name)
        head = _head(given.head, encoder)
        trained = None
        if training:
            trained = _collect(training, encoder, f"{name} train", rejects, folders)
        for spec in given.data:
            collected = _collect(sets[spec], encoder, f"{name} {spec}", rejects, folders)
            if given.task == "retrieval":
                if not collected.captions:
                    _refuse_without_captions(given.reading, spec)
                results = measure_retrieval(encoder, collected)
            elif trained is not None:
                results = measure_linear_probe(
                    trained, collected, shots=given.shots, seed=given.seed
                )
            else:
                results = measure_zero_shot(
                    encoder, collected, templates=templates, class_names=class_names, head=head
                )
            for found in results:
                yield name, spec, found


def _write(answer: Document | list[Document], out: Path) -> None:
    from models.atomic import replace_file
    from models.errors import InputError

    text = json.dumps(answer, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    try:
        replace_file(out, text.encode())
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error


def _refuse_without_captions(reading: Reading, spec: str) -> None:
    from models.errors import SourceError

    fields = fields_with_text(lambda names: reading.with_text_fields(names).open([spec]))
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


def _collect(
    sources: Sequence[Source],
    encoder: Encoder,
    title: str,
    rejects: dict[tuple[str, str], Reject],
    class_folders: bool,
) -> Collected:
    from models.sources.embedded import collect

    with progress_bar(title, "picture", count_all(sources)) as bar:
        collected = collect(sources, encoder, on_picture=bar.by, class_folders=class_folders)
    for reject in collected.rejects:
        rejects.setdefault((reject.source, reject.key), reject)
    return collected


def document(
    dataset: str, model: str, task: str, language: str, metrics: Mapping[str, float]
) -> Document:
    """One result in CLIP_benchmark's shape; counts go beside the metrics, not among them."""
    counts = {key: metrics[key] for key in _COUNTS if key in metrics}
    name, _, tag = model.partition("/")
    is_tagged = bool(tag) and ":" not in model
    return {
        "dataset": dataset,
        "model": name if is_tagged else model,
        "pretrained": tag if is_tagged else "",
        "task": TASKS[task],
        "metrics": {
            **{key: value for key, value in metrics.items() if key not in counts},
            **{key: None for key in _ALWAYS.get(task, ()) if key not in metrics},
        },
        "language": language,
        "counts": counts,
    }


def table(documents: Sequence[Document]) -> list[str]:
    """Lines for people: one block a data set and language, one column a model."""
    blocks: dict[tuple[str, str], list[Document]] = {}
    for entry in documents:
        blocks.setdefault((entry["dataset"], entry["language"]), []).append(entry)
    lines: list[str] = []
    for (dataset, language), entries in blocks.items():
        counts = ", ".join(f"{value} {key}" for key, value in entries[0]["counts"].items())
        tag = f" [{language}]" if language else ""
        lines += ["", f"{dataset}{tag}: {counts.replace('_', ' ')}"]
        names = [model_name(entry) for entry in entries]
        widths = [max(8, len(name)) for name in names]
        if len(entries) > 1:
            lines.append(_row("", names, widths))
        for key, label in {**_PERCENT, **_PLAIN}.items():
            values = [entry["metrics"].get(key) for entry in entries]
            if any(value is not None for value in values):
                lines.append(_row(label, [_cell(key, value) for value in values], widths))
    return lines[1:]


def model_name(entry: Document) -> str:
    """As it was typed."""
    return "/".join(part for part in (entry["model"], entry["pretrained"]) if part)


def _row(label: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"  {label:<28}" + "  ".join(padded).rstrip()


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key in _PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.1e}" if key == "weight_decay" else f"{value:.3f}"
