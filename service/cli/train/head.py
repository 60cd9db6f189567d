"""`diptych train --tune linear|adapter|prompts`: a class head from labelled pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from models.training.config import foreign
from service.cli.exits import OK, PARTIAL
from service.cli.output import count_all, emit_json, note, progress_bar
from service.cli.train.options import TrainOptions

if TYPE_CHECKING:
    from pathlib import Path

    from models.encoder import Encoder
    from models.labels.class_head import Kind
    from models.sources.embedded import Collected
    from models.training.class_heads import Tuned
    from models.training.open_clip import OpenClipPair
    from service.cli.sources import Reading

_RESULT_NAME = "head.json"


def train_head(options: TrainOptions) -> int:
    """Train, measure and report; returns the exit code."""
    from models.atomic import alone_in
    from models.errors import TrainingError
    from models.labels.class_head import HEAD_NAME

    _refuse(options)
    path = options.run.out / HEAD_NAME
    if path.exists() and not options.run.restart:
        raise TrainingError(
            f"{path} exists",
            code="run-finished",
            hint="name another --out, or --restart to replace it",
        )
    with alone_in(options.run.out):
        return _train_head(options, path)


def _train_head(options: TrainOptions, path: Path) -> int:
    from models.atomic import replace_file
    from models.devices import resolve_device
    from models.labels.class_head import save_head
    from models.labels.prompts import DEFAULT_TEMPLATES
    from models.training.class_heads import KINDS, fit_head

    kind: Kind = next(kind for kind in KINDS if kind == options.keeping.tune)
    encoder = options.machine.pair.load()
    training = _embedded(options.sets.reading, options.sets.data, encoder)
    started = time.perf_counter()
    tuned = fit_head(
        kind,
        encoder,
        training,
        templates=DEFAULT_TEMPLATES,
        pair=_module(options.model, resolve_device(options.machine.pair.machine.device)),
        epochs=options.optimisation.epochs,
        seed=options.run.seed,
    )
    seconds = time.perf_counter() - started
    save_head(tuned.head, path)
    validation = None
    if names := options.sets.measured:
        validation = _embedded(options.sets.reading, names, encoder)
    result = _result(tuned, seconds, encoder, validation)
    text = json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    replace_file(options.run.out / _RESULT_NAME, text.encode())
    if options.machine.as_json:
        emit_json({"head": str(path), **result})
    else:
        click.echo("\n".join([*_lines(result), f"saved to {path}"]))
    rejects = training.rejects + (validation.rejects if validation is not None else [])
    for reject in rejects[:5]:
        note(f"rejected {reject.source} {reject.key}: {reject.code}: {reject.detail}")
    return PARTIAL if rejects else OK


def _refuse(options: TrainOptions) -> None:
    from models.encoders.registry import is_starter
    from models.environment import torchrun_place

    tune = options.keeping.tune
    if not options.sets.data:
        raise click.UsageError("nothing to train on: name at least one --data")
    if options.sets.extra_data or options.sets.class_data:
        raise click.UsageError(f"--tune {tune} takes labelled pictures from --data alone")
    wrong = [one.flag for one in foreign(options.asked(), tune)]
    wrong += ["--cache"] if options.starter.cache is not None else []
    if wrong:
        raise click.UsageError(f"{', '.join(wrong)}: --tune {tune} knows nothing of it")
    if options.run.fresh:
        raise click.UsageError(f"--tune {tune} needs a pair that has learned something")
    if tune == "prompts" and is_starter(options.model):
        raise click.UsageError(
            "the starter's text tower takes no gradients: use --tune linear or adapter"
        )
    place = torchrun_place()
    if place is not None and place[2] > 1:
        raise click.UsageError(f"--tune {tune} runs in one process")


def _module(model: str, device: Any) -> Callable[[], OpenClipPair]:
    def load() -> OpenClipPair:
        from models.encoders.base.model_id import parse_model_id
        from models.training.open_clip import load_pair

        pair = load_pair(parse_model_id(model))
        pair.module.to(device)
        return pair

    return load


def _embedded(reading: Reading, specs: Sequence[str], encoder: Encoder) -> Collected:
    from models.sources.embedded import collect

    sources = reading.open(specs)
    folders = reading.label_field is None
    with progress_bar("", "picture", count_all(sources)) as bar:
        return collect(sources, encoder, on_picture=bar.by, class_folders=folders)


def _result(
    tuned: Tuned, seconds: float, encoder: Encoder, validation: Collected | None
) -> dict[str, Any]:
    from models.evaluation.measures import evaluate_head, evaluate_zero_shot
    from models.labels.prompts import DEFAULT_TEMPLATES

    result: dict[str, Any] = {
        "kind": tuned.head.kind,
        "model": tuned.head.model,
        "classes": len(tuned.head.labels),
        "pictures": tuned.pictures,
        "held_back": tuned.held_back,
        "parameters": tuned.parameters,
        "chosen": tuned.chosen,
        "tried": tuned.tried,
        "seconds": round(seconds, 2),
        "before": None,
        "after": None,
    }
    if validation is not None:
        names = {label: label for label in tuned.head.labels}
        result["after"] = evaluate_head(tuned.head, validation)
        result["before"] = evaluate_zero_shot(
            encoder, validation, templates=DEFAULT_TEMPLATES, class_names=names
        )
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    what = "strength of the penalty" if result["kind"] == "linear" else "epochs"
    chosen = f"{what} {result['chosen']:g}"
    if result["held_back"]:
        chosen += f", chosen on {result['held_back']} pictures held back"
    lines = [
        f"{result['kind']}: {result['classes']} labels, {result['pictures']} pictures, "
        f"{result['parameters']} numbers learned in {result['seconds']:.1f} s",
        chosen,
    ]
    if result["before"] is None:
        return [*lines, "no validation, nothing measured"]
    lines.append(f"{'':22}{'zero-shot':>12}{'after':>12}")
    for name, key in (
        ("top-1", "acc1"),
        ("top-5", "acc5"),
        ("mean per-class recall", "mean_per_class_recall"),
    ):
        if key not in result["after"]:  # fewer than five labels have no top five
            continue
        before, after = (100 * result[when][key] for when in ("before", "after"))
        lines.append(f"{name:22}{before:12.1f}{after:12.1f}")
    return lines
