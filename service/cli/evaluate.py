"""`diptych evaluate`: measure an encoder pair on your pictures, as CLIP_benchmark reports it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.exits import OK, PARTIAL
from service.cli.output import emit_json, interactive, json_option, model_options, note
from service.cli.sources import Reading, reading_options

if TYPE_CHECKING:
    from tqdm import tqdm

    from models.evaluation.collect import Collected


@click.command(short_help="Measure retrieval or zero-shot accuracy.")
@click.option(
    "--task",
    type=click.Choice(["retrieval", "zero-shot"]),
    required=True,
    help="Recall@1/5/10 both ways, or top-1, top-5 and mean per-class recall.",
)
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    metavar="SOURCE",
    help="A folder, webdataset shards or a manifest (JSONL, CSV, Parquet, COCO ...); repeatable.",
)
@reading_options
@click.option(
    "--classnames",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Names of the classes, one a line: NAME, or LABEL, a tab, NAME.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    help="Prompt with {c} for the class; may be repeated. [default: the default set]",
)
@click.option(
    "--head",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Judge by what `diptych train --tune linear|adapter|prompts` left, not by prompts.",
)
@click.option(
    "--holdout",
    type=click.IntRange(min=2),
    metavar="N",
    help="Measure only the one record in N that `diptych train --holdout N` leaves out.",
)
@model_options
@json_option
def evaluate(
    task: str,
    data: tuple[str, ...],
    reading: Reading,
    classnames: Path | None,
    templates: tuple[str, ...],
    head: Path | None,
    holdout: int | None,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Measure an encoder pair on your own pictures.

    \b
    diptych evaluate --task retrieval --data 'val-{00000..00001}.tar' --text-field captions.en
    diptych evaluate --task zero-shot --data shelf.tar --label-field label
    diptych evaluate --task zero-shot --data tiny.tar --label-field names.0 --template "a {c}"

    Retrieval is measured for each language of the captions. `image_retrieval_recall@k` is text to
    image, `text_retrieval_recall@k` image to text. With --json, CLIP_benchmark's shape: one
    document, or a list of them when there are several languages.
    """
    from models.data.holdout import HoldOut
    from models.data.records import Source
    from models.environment import default_model
    from models.registry import load_encoder

    if head is not None and (task != "zero-shot" or classnames or templates):
        raise click.UsageError("--head goes with --task zero-shot, and brings its own labels")
    sources: list[Source] = reading.open(data)
    if holdout is not None:
        sources = [HoldOut(source, holdout, held_out=True) for source in sources]
    name = model or default_model()
    names = _read_class_names(classnames) if classnames else None
    encoder = load_encoder(name, device=device, precision=precision, threads=threads)
    trained = None
    if head is not None:
        from models.tuning.head import load_head

        trained = load_head(head)
        trained.check_encoder(encoder.fingerprint.digest)
    collected = _collect(sources, encoder)
    if task == "retrieval":
        from models.evaluation.retrieval import evaluate_retrieval

        by_language = evaluate_retrieval(encoder, collected)
    elif trained is not None:
        from models.evaluation.zeroshot import evaluate_head

        by_language = {"": evaluate_head(trained, collected)}
    else:
        from models.evaluation.zeroshot import evaluate_zero_shot
        from models.prompts import DEFAULT_TEMPLATES

        metrics = evaluate_zero_shot(
            encoder, collected, templates=templates or DEFAULT_TEMPLATES, class_names=names
        )
        by_language = {"": metrics}
    dataset = ",".join(data)
    documents = [
        document(dataset, name, task, language, metrics)
        for language, metrics in by_language.items()
    ]
    if as_json:
        emit_json(documents[0] if len(documents) == 1 else documents)
    else:
        click.echo("\n".join(table(documents)))
    for reject in collected.rejects[:10]:
        note(f"rejected {reject.source} {reject.key}: {reject.code}: {reject.detail}")
    if collected.rejects:
        note(f"{len(collected.rejects)} records were rejected")
    return PARTIAL if collected.rejects else OK


def document(
    dataset: str, model: str, task: str, language: str, metrics: dict[str, float]
) -> dict[str, Any]:
    """One result in CLIP_benchmark's shape; counts go beside the metrics, not among them."""
    counts = {key: metrics[key] for key in ("pictures", "texts", "classes") if key in metrics}
    name, _, tag = model.partition("/")
    return {
        "dataset": dataset,
        "model": name if tag and ":" not in model else model,
        "pretrained": tag if tag and ":" not in model else "",
        "task": "zeroshot_retrieval" if task == "retrieval" else "zeroshot_classification",
        "metrics": {key: value for key, value in metrics.items() if key not in counts},
        "language": language,
        "counts": counts,
    }


def table(documents: list[dict[str, Any]]) -> list[str]:
    """Lines for people: percentages, one block a language."""
    lines = []
    for entry in documents:
        counts = ", ".join(f"{value} {key}" for key, value in entry["counts"].items())
        language = f" [{entry['language']}]" if entry["language"] else ""
        lines.append(f"{entry['dataset']}{language}: {counts}")
        metrics = entry["metrics"]
        if entry["task"] == "zeroshot_retrieval":
            for way, prefix in (("text -> image", "image"), ("image -> text", "text")):
                cells = "  ".join(
                    f"R@{k} {100 * metrics[f'{prefix}_retrieval_recall@{k}']:5.1f}"
                    for k in (1, 5, 10)
                )
                lines.append(f"  {way}  {cells}")
        else:
            lines.append(
                f"  top-1 {100 * metrics['acc1']:.1f}  top-5 {100 * metrics['acc5']:.1f}"
                f"  mean per-class recall {100 * metrics['mean_per_class_recall']:.1f}"
            )
    return lines


def _collect(sources: list[Any], encoder: Any) -> Collected:
    from tqdm import tqdm

    from models.evaluation.collect import collect

    counts = [source.count() for source in sources]
    total = None if None in counts else sum(count or 0 for count in counts)
    with tqdm(total=total, unit="picture", disable=not interactive()) as bar:
        return collect(sources, encoder, on_picture=lambda: _advance(bar))


def _advance(bar: tqdm[Any]) -> None:
    bar.update()


def _read_class_names(path: Path) -> dict[str, str]:
    """{label: name}; a line without a tab names its class by itself."""
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
