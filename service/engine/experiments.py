"""Measuring and training a pair from Python: what `diptych evaluate` and `diptych train` do.

Takes sources by name or opened, as `service.engine.library` does. Nothing here prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from models.environment import default_model
from models.errors import InputError
from service.engine.library import SourceLike, load_pair, opened_sources

if TYPE_CHECKING:
    from models.encoder import Encoder
    from models.evaluation.tasks import Measured, Task
    from models.sources.records import Reject
    from models.training.record import Result as TrainingResult
    from models.training.record import Step


def evaluate(
    data: SourceLike | Iterable[SourceLike],
    *,
    task: Task = "retrieval",
    encoder: Encoder | None = None,
    model: str | None = None,
    train: SourceLike | Iterable[SourceLike] = (),
    templates: Sequence[str] = (),
    class_names: Mapping[str, str] | None = None,
    shots: int | None = None,
    seed: int = 0,
    reading: Mapping[str, Any] | None = None,
    on_picture: Callable[[], object] | None = None,
    loading: Mapping[str, Any] | None = None,
) -> list[Measured]:
    """Measure an encoder pair on captioned or labelled pictures, as `diptych evaluate` does.

    Args:
        data: sources to measure on, taken together; see `open_source`.
        task: `retrieval` (captions), `zero-shot` (labels put into prompts) or `linear-probe` (a
            linear classifier of `train`'s labels).
        encoder: a loaded pair; or name one with `model` (and `loading`, as `load_encoder` takes).
        train: of a linear probe: sources to learn from, `shots` pictures a class, drawn by `seed`.
        templates: of zero-shot: prompts with `{c}` for the class, or names of template sets.
        class_names: of zero-shot: {label: what prompts call it}.
        reading: fields of `ReadOptions`, such as `{"label_field": "category"}`.
        on_picture: called before each picture, for a bar.

    Returns:
        `retrieval`: one result per language; the others: one. `metrics` has CLIP_benchmark's names.

    Raises:
        InputError: an unknown task, or a linear probe without `train`.
        InvalidLabelsError, SourceError, ModelError: what is measured cannot be used.
    """
    from models.evaluation.tasks import (
        Task,
        measure_linear_probe,
        measure_retrieval,
        measure_zero_shot,
    )
    from models.labels.prompts import resolve_templates
    from models.sources.embedded import collect

    if task not in get_args(Task):
        known = ", ".join(get_args(Task))
        raise InputError(f"there is no task {task!r}", hint=f"one of {known}")
    read = dict(reading or {})
    learnt_from = opened_sources(train, **read)
    if bool(learnt_from) != (task == "linear-probe"):
        raise InputError("train= and task='linear-probe' go together")
    pair = encoder or load_pair(model, loading)
    folders = read.get("label_field") is None
    collected = collect(
        opened_sources(data, **read), pair, on_picture=on_picture, class_folders=folders
    )
    if task == "retrieval":
        if not collected.captions:
            raise InputError(
                "the data hold no captions to retrieve with",
                hint='name their field: reading={"text_fields": ("caption",)}',
            )
        return list(measure_retrieval(pair, collected))
    if task == "linear-probe":
        trained = collect(learnt_from, pair, on_picture=on_picture, class_folders=folders)
        return list(measure_linear_probe(trained, collected, shots=shots, seed=seed))
    prompts = resolve_templates(templates)
    return list(measure_zero_shot(pair, collected, templates=prompts, class_names=class_names))


def train(
    data: SourceLike | Iterable[SourceLike],
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    validation: SourceLike | Iterable[SourceLike] | None = None,
    fresh: bool = False,
    restart: bool = False,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    reading: Mapping[str, Any] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_reject: Callable[[Reject], None] | None = None,
    **settings: Any,
) -> TrainingResult:
    """Train an encoder pair on captioned pictures, as `diptych train` does.

    `load_encoder(f"local-dir:{out}")` loads what it leaves. A run that was cut off goes on when it
    is called again with the same arguments.

    Args:
        data: what epochs go over; see `open_source`.
        out: a directory for the pair, its settings, its figures and its curves.
        model: what to start from: the default pair's heads, or any open_clip pair.
        validation: what to measure on; None holds part of `data` back where there is enough, an
            empty list measures nothing.
        fresh: start from random weights.
        restart: drop a run that `out` holds, finished or not.
        reading: fields of `ReadOptions`, such as `{"text_fields": ("caption",)}`.
        on_step, on_reject: told of every step, and of every refused record.
        settings: fields of `TrainConfig`; docs/training.md has their table. What is left out is
            what is safe for the pair and the amount of data.

    Returns:
        Steps, what was kept, recall before and after (None where nothing was measured).

    Raises:
        InputError: an unknown setting or one out of range.
        SourceError: nothing can be learned from the data.
        TrainingError: `run-finished`, a run of other settings, or training that diverged.
        ModelError: the pair, the device or the precision cannot be used.
    """
    from models.devices import import_torch, set_threads

    import_torch("training")
    from models.sources.report.checks import check
    from models.sources.report.counts import inspect, sampling
    from models.training.config import Circumstances, asked_for, refuse_foreign, resolved
    from models.training.data import Surveyed, one_in_for, refuse_streams
    from models.training.distributed import join_world
    from models.training.pair import PairRequest, Watching, feeds_of, load_trainable
    from models.training.run import refuse_finished, run_training

    wanted = asked_for(settings)
    path = Path(out).expanduser()
    read = dict(reading or {})
    sources = [Surveyed(source) for source in opened_sources(data, **read)]
    measured = [] if validation is None else opened_sources(validation, **read)
    refuse_streams([*sources, *measured])
    if not restart:
        refuse_finished(path)
    set_threads(threads)
    world = join_world(device)
    name = model or default_model()
    pair = load_trainable(
        PairRequest(
            model=name,
            device=world.device,
            fresh=fresh,
            seed=wanted["seed"],
            precision=precision,
        )
    )
    report = inspect(sources, prepare_text=pair.prepare_text, one_in=sampling(sources))
    check(report)
    holds_back = validation is None and pair.holds_back
    one_in = one_in_for(sum(source.pairs for source in sources)) if holds_back else None
    feeds, held_back, _ = feeds_of([("main", sources)], one_in)
    measured = measured or held_back
    if wanted["objective"] == "auto":
        wanted["objective"] = "clip" if pair.bias is None else "siglip"
    refuse_foreign(wanted, pair.kind)
    wanted["precision"] = pair.arithmetic(precision, world.device)
    pairs = feeds[0].pairs
    at = Circumstances(pairs=pairs, pictures=pairs, measured=bool(measured), tune=wanted["tune"])
    watching = Watching()
    result = run_training(
        pair,
        feeds,
        resolved(wanted, pair.kind, at),
        world,
        path,
        identity={
            "model": name,
            "weights_sha256": pair.weights_sha256,
            "data": [source.name for source in sources],
            "val": [source.name for source in measured],
            "data_digest": "-".join(source.digest for source in sources),
        },
        report={"train": report.to_dict()},
        validation_sources=measured,
        restart=restart,
        watching=replace(
            watching,
            on_step=on_step or watching.on_step,
            on_reject=on_reject or watching.on_reject,
        ),
    )
    assert result is not None, "one process is rank 0"
    return result
