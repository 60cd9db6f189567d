"""The work behind `diptych classify --calibrate`: a temperature from labelled pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import numpy as np

from models.errors import InvalidLabelsError
from models.labels.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration, calibrate
from models.labels.hierarchy import SEPARATOR
from models.vectors import Vectors
from service.cli.classify.inputs import label_of, open_inputs
from service.cli.classify.run import classifier_of, embedded, load, override, with_examples
from service.cli.exits import OK, PARTIAL
from service.cli.output import emit_json, note
from service.engine.label_sets import LabelSet

Spelt = Callable[[dict[str, Any], list[str] | None], LabelSet]


def run_calibration(spec: str, options: dict[str, Any], spelt_out: Spelt) -> int:
    """Fit, report, plot and store; pictures of no known label are named and left out."""
    sources = open_inputs([spec], options["label_field"])
    # wrong labels are said before a model is loaded; without any, the pictures' own are taken
    named = options["labels"] or options["labels_file"] or options["set_name"]
    label_set = spelt_out(options, None) if named else None
    encoder = load(options)
    rows: list[Vectors] = []
    found: list[str] = []
    rejected = 0
    for batch in embedded(sources, encoder):
        for picture in batch:
            label = None if picture.record is None else label_of(picture.record)
            if picture.vector_D is None or label is None:
                rejected += 1
                why = picture.error.message if picture.error else "no label; see --label-field"
                note(f"{picture.name}: {why}")
            else:
                rows.append(picture.vector_D)
                found.append(label)
    if not rows:
        raise InvalidLabelsError("the source has no labelled pictures")
    if label_set is None:
        label_set = spelt_out(options, sorted(set(found)))
    classifier = classifier_of(encoder, options)
    label_set = replace(override(label_set, options), temperature=None)
    if options["examples"]:
        examples = open_inputs(options["examples"], options["label_field"])
        label_set = with_examples(classifier, encoder, label_set, examples, options["shots"])
    classifier.check(label_set)
    position = _positions(label_set)
    known = [at for at, label in enumerate(found) if label in position]
    if len(known) < len(found):
        rejected += len(found) - len(known)
        note(f"{len(found) - len(known)} pictures have a label that is none of the given ones")
    logits_BC = classifier.logits(np.stack(rows)[known], label_set)
    result = calibrate(logits_BC, [position[found[at]] for at in known])
    if options["plot"] is not None:
        from service.cli.plots import draw_reliabilities

        draw_reliabilities([("", result)], options["plot"])
    if options["save_as"]:
        classifier.keep(options["save_as"], replace(label_set, temperature=result.temperature))
    _report(result, encoder.fingerprint.model, len(label_set.labels), options)
    return PARTIAL if rejected else OK


def _positions(label_set: LabelSet) -> dict[str, int]:
    """Labels by what a source may call them: the label, and the last part of a path if only one
    path ends so."""
    position = {label: at for at, label in enumerate(label_set.labels)}
    if label_set.tree is not None:
        ends = [leaf[-1] for leaf in label_set.tree.leaves]
        position |= {SEPARATOR.join(leaf): at for at, leaf in enumerate(label_set.tree.leaves)}
        position |= {
            end: at for at, end in enumerate(ends) if ends.count(end) == 1 and end not in position
        }
    return position


def _report(result: Calibration, model: str, classes: int, options: dict[str, Any]) -> None:
    if options["kind"] == "json":
        numbers = {name: round(value, 6) for name, value in result.to_dict().items()}
        emit_json({**numbers, "classes": classes, "model": model})
        return
    click.echo(
        f"temperature {result.temperature:.3f}  ({result.pictures} pictures, {classes} labels, "
        f"{result.accuracy:.1%} right)\n"
        f"  expected calibration error  {result.ece_before:.3f} -> {result.ece_after:.3f}\n"
        f"  negative log-likelihood     {result.nll_before:.3f} -> {result.nll_after:.3f}\n"
        "  measured on pictures the temperature was not fitted on, in five folds"
    )
    if not MIN_TEMPERATURE * 1.01 < result.temperature < MAX_TEMPERATURE * 0.99:
        note("the temperature is at its bound: these pictures are too few, or too easy, to tell")
