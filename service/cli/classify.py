"""`diptych classify`: pictures into labels you name. Needs no index."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.errors import ImageError, InvalidLabelsError
from service.cli.exits import OK, PARTIAL, one_line
from service.cli.output import emit_json, json_option, model_options, note

if TYPE_CHECKING:
    from service.queries import ImageResult

_BATCH = 32
_BAR = 24


@click.command(
    epilog="\b\nExamples:\n  diptych classify holiday.jpg --labels beach,mountain,city\n"
    "  diptych classify *.jpg --labels-file breeds.txt --top-k 3 --json\n"
    '  diptych classify a.jpg --labels cat,dog --template "a photo of a {c}, a kind of pet"'
)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path())
@click.option("--labels", help="The labels, separated by commas.")
@click.option(
    "--labels-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The labels, one a line (UTF-8).",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    help="A prompt in which {c} or {} stands for the label, or the name of a set; repeatable.",
)
@click.option("--template-set", help="A named list of prompts: default, imagenet, plain or zh.")
@click.option("--multi-label", is_flag=True, help="Score each label on its own.")
@click.option("--top-k", type=click.IntRange(min=1), help="Show only the most likely labels.")
@model_options
@json_option
def classify(
    images: tuple[str, ...],
    labels: str | None,
    labels_file: Path | None,
    templates: tuple[str, ...],
    template_set: str | None,
    multi_label: bool,
    top_k: int | None,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Sort each IMAGE into labels, most likely first.

    Exits with 3 when some pictures could not be read; the others are answered.
    """
    names = _labels(labels, labels_file)
    from models.environment import default_model
    from models.prompts import resolve_templates
    from service.engine import Engine
    from service.label_sets import check_label_set

    # a wrong label is said before a model is loaded for it
    prompts = resolve_templates(templates) if templates else None
    check_label_set(names, templates=prompts, template_set=template_set, multi_label=multi_label)
    from models.registry import load_encoder

    encoder = load_encoder(
        model or default_model(), device=device, precision=precision, threads=threads
    )
    engine = Engine(encoder)
    documents: list[dict[str, Any]] = []
    failed = 0
    for batch in _batches(images):
        answer = engine.classify(
            [data for _, data in batch if isinstance(data, bytes)],
            names,
            templates=prompts,
            template_set=template_set,
            multi_label=multi_label,
            top_k=top_k,
        )
        results = iter(answer.results)
        for path, data in batch:
            # a file that could not be read has its error; the others take the next result
            result = next(results) if isinstance(data, bytes) else _refused(data)
            failed += result.error is not None
            if as_json:
                documents.append(_document(path, result))
            else:
                _print(path, result)
    if as_json:
        emit_json(
            {
                "results": documents,
                "multi_label": multi_label,
                "model": encoder.fingerprint.model,
            }
        )
    return PARTIAL if failed else OK


def _labels(labels: str | None, labels_file: Path | None) -> list[str]:
    if (labels is None) == (labels_file is None):
        raise click.UsageError("give either --labels or --labels-file")
    if labels is not None:
        return [label.strip() for label in labels.split(",")]
    assert labels_file is not None, "one of the two is given"
    try:
        text = labels_file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidLabelsError(f"{labels_file} is not UTF-8") from None
    except OSError as error:
        raise click.UsageError(f"cannot read {labels_file}: {error.strerror}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _batches(paths: tuple[str, ...]) -> Iterator[list[tuple[str, bytes | ImageError]]]:
    """Files read a batch at a time, so that thousands of them need no memory."""
    rest = iter(paths)
    while batch := list(islice(rest, _BATCH)):
        yield [(path, _read(path)) for path in batch]


def _read(path: str) -> bytes | ImageError:
    from models.images import ImageLimits

    # one byte more than allowed is enough for the decoder to refuse it
    limit = ImageLimits().max_bytes + 1
    try:
        if not Path(path).is_file():
            # a FIFO would block for ever
            return ImageError("not a file", code="image-unreadable")
        with Path(path).open("rb") as file:
            return file.read(limit)
    except OSError as error:
        return ImageError(f"cannot be read: {error.strerror}", code="image-unreadable")


def _refused(error: bytes | ImageError) -> ImageResult:
    from service.queries import ImageResult

    assert isinstance(error, ImageError)
    return ImageResult(error=error)


def _document(path: str, result: ImageResult) -> dict[str, Any]:
    error = result.error
    return {
        "image": path,
        "predictions": [
            {"label": p.label, "probability": round(p.probability, 6)} for p in result.predictions
        ],
        "error": None if error is None else {"code": error.code, "message": error.message},
    }


def _print(path: str, result: ImageResult) -> None:
    if result.error is not None:
        note(f"{path}: {one_line(result.error).removeprefix('diptych: ')}")
        return
    click.echo(path)
    for prediction in result.predictions:
        bar = "█" * round(prediction.probability * _BAR)
        click.echo(f"  {prediction.probability:7.2%}  {prediction.label}  {bar}".rstrip())
