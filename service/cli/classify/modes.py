"""`diptych classify`: pictures into labels you name. Needs no index.

Three modes: classify (and perhaps sort) pictures, `--calibrate` on labelled ones, and `--undo` a
sorting. What is done is `service.engine.source_classifier`'s and `service.engine.sorter`'s; this
asks for it and says what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models.errors import ImageError
from service.cli.classify.arguments import ClassifyArguments
from service.cli.classify.formats import Line, opened
from service.cli.exits import OK, PARTIAL
from service.cli.options import takes
from service.cli.output import count_all, emit_json, note, progress_bar

if TYPE_CHECKING:
    from models.labels.calibration import Calibration
    from models.sources import Source
    from service.engine.explanations import HeatMaps
    from service.engine.label_sets import LabelSet
    from service.engine.queries import ImageResult
    from service.engine.sorter import Placer, Sorter
    from service.engine.source_classifier import EmbeddedPicture, SourceClassifier


@click.command(
    epilog="\b\nExamples:\n  diptych classify holiday.jpg --labels beach,mountain,city\n"
    "  diptych classify photos --labels-file breeds.txt --top-k 1 --format csv --out breeds.csv\n"
    '  diptych classify a.jpg --labels cat,dog --template "a photo of a {c}, a kind of pet"\n'
    "  diptych classify photos --labels animal/cat,animal/dog,car --hierarchy --level 1\n"
    "  diptych classify photos --labels cat,dog --abstain --sort-into sorted --by move\n"
    "  diptych classify --undo sorted/undo-20260131-120000.jsonl\n"
    "  diptych classify --calibrate labelled.tar --label-field label --plot reliability.png\n"
    "  diptych classify new --labels cat,dog --examples sorted --shots 4"
)
@takes(ClassifyArguments)
def classify(given: ClassifyArguments) -> int:
    """Sort each picture of every SOURCE into labels, most likely first.

    A SOURCE is a picture, a folder, .tar shards or a .jsonl manifest. Exits with 3 when some
    pictures could not be read or sorted; the others are answered.
    """
    given.check_mode()
    if given.undo is not None:
        return _undo(given.undo, as_json=given.as_json)
    given.check()
    return _classify(given) if given.calibrate is None else _calibrate(given, given.calibrate)


def _classify(given: ClassifyArguments) -> int:
    """Every picture; the exit code says whether all of them could be."""
    from service.engine.explanations import HeatMaps
    from service.engine.sorter import Placer, Sorter
    from service.engine.source_classifier import SourceClassifier, open_pictures

    # wrong labels are said before a model is loaded
    label_set = given.label_set()
    sources = open_pictures(given.images, given.label_field)
    examples = open_pictures(given.examples, given.label_field)
    by = given.by or "copy"
    archived = any(source.in_archives for source in sources)
    if given.sort_into is not None and by != "copy" and archived:
        raise click.UsageError(
            f"pictures inside an archive can be copied, but --by {by} cannot work"
        )
    run = SourceClassifier(given.pair.load(), given.store)
    run.classifier.check(label_set, given.level)
    for warning in run.classifier.warnings(label_set):
        note(warning)
    if examples:
        label_set = _with_examples(run, label_set, examples, given.shots)
    if given.save_as:
        run.classifier.keep(given.save_as, label_set)
    about = {"multi_label": label_set.multi_label, "model": run.encoder.fingerprint.model}
    seen = failed = 0
    with ExitStack() as closing:
        writer = closing.enter_context(opened(given.out, given.kind, about))
        heat = None
        if given.explain is not None:
            class_CD = run.classifier.class_directions(label_set)
            heat = HeatMaps(given.explain, run.encoder, label_set, class_CD)
        placer = None
        if given.sort_into is not None:
            sorter = None
            if not given.dry_run:
                sorter = closing.enter_context(Sorter(given.sort_into, by, given.undo_file))
                closing.callback(_tell, sorter)  # said however the run ends
            placer = Placer(given.sort_into, label_set, given.level, sorter)
        bar = closing.enter_context(progress_bar("", "picture", count_all(sources)))
        for picture, result in run.classify(
            sources, label_set, top_k=given.top_k, level=given.level, advance=bar.by
        ):
            seen += 1
            line = _line(picture, result, placer, heat)
            if line is not None:
                failed += line.result.error is not None
                writer.write(line)
    if failed and given.kind != "text":
        note(f"{failed} pictures failed; their rows say why")
    if not seen:
        note(f"No picture was found in {', '.join(given.images)}.")
    return PARTIAL if failed or not seen else OK


def _line(
    picture: EmbeddedPicture, result: ImageResult, placer: Placer | None, heat: HeatMaps | None
) -> Line | None:
    """A picture's answer, once it is sorted and drawn; None where it was sorted before."""
    line = Line(picture.name, result)
    if picture.record is None:
        return line
    if placer is not None:
        if placer.holds(picture.record):
            return None
        try:
            line = replace(line, sorted_to=str(placer.place(picture.record, result)))
        except ImageError as error:
            line = replace(line, result=replace(result, error=error))
    if heat is not None and result.predictions:
        line = replace(line, heatmap=str(heat.draw(picture.record, result)))
    return line


def _tell(sorter: Sorter) -> None:
    note(f"{sorter.placed} pictures sorted; diptych classify --undo {sorter.undo_file}")


def _with_examples(
    run: SourceClassifier, label_set: LabelSet, sources: Sequence[Source], shots: int | None
) -> LabelSet:
    with progress_bar("", "picture", count_all(sources)) as bar:
        label_set = run.with_examples(label_set, sources, shots, advance=bar.by)
    targets = label_set.examples.targets
    note(f"{len(targets)} examples of {len(set(targets))} labels")
    return label_set


def _calibrate(given: ClassifyArguments, spec: str) -> int:
    """Fit, report, plot and store; pictures of no known label are named and left out."""
    from service.engine.source_classifier import SourceClassifier, open_pictures

    sources = open_pictures([spec], given.label_field)
    # wrong labels are said before a model is loaded; without any, the pictures' own are taken
    label_set = given.label_set() if given.names_labels else None
    run = SourceClassifier(given.pair.load(), given.store)
    with progress_bar("", "picture", count_all(sources)) as bar:
        pictures = run.labelled(sources, advance=bar.by)
    for name, why in pictures.refused:
        note(f"{name}: {why}")
    pictures.require()
    label_set = label_set or given.label_set(sorted(set(pictures.labels)))
    for warning in run.classifier.warnings(label_set):
        note(warning)
    if given.examples:
        label_set = replace(label_set, temperature=None, offset=None)
        examples = open_pictures(given.examples, given.label_field)
        label_set = _with_examples(run, label_set, examples, given.shots)
    before = label_set.temperature or 1.0
    result, label_set, left_out = run.calibrate(label_set, pictures)
    if result.nll_after == result.nll_before:
        note(f"these pictures are told no better with another temperature: it stays {before:g}")
    if left_out:
        note(f"{left_out} pictures have a label that is none of the given ones")
    if given.plot is not None:
        from service.cli.plots import draw_reliabilities

        draw_reliabilities([("", result)], given.plot)
    if given.save_as:
        run.classifier.keep(given.save_as, label_set)
    _report(result, run.encoder.fingerprint.model, len(label_set.labels), given.kind == "json")
    return PARTIAL if pictures.refused or left_out else OK


def _report(result: Calibration, model: str, classes: int, as_json: bool) -> None:
    from models.labels.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE

    if as_json:
        numbers = {name: round(value, 6) for name, value in result.to_dict().items()}
        emit_json({**numbers, "classes": classes, "model": model})
        return
    offset = "" if result.offset is None else f", offset {result.offset:.3f}"
    click.echo(
        f"temperature {result.temperature:.3f}{offset}  ({result.pictures} pictures, "
        f"{classes} labels, {result.accuracy:.1%} right)\n"
        f"  expected calibration error  {result.ece_before:.3f} -> {result.ece_after:.3f}\n"
        f"  negative log-likelihood     {result.nll_before:.3f} -> {result.nll_after:.3f}\n"
        "  measured on pictures it was not fitted on, in five folds"
    )
    if not MIN_TEMPERATURE * 1.01 < result.temperature < MAX_TEMPERATURE * 0.99:
        note("the temperature is at its bound: these pictures are too few, or too easy, to tell")


def _undo(path: Path, *, as_json: bool) -> int:
    """Everything the undo file names, back to where it was."""
    from service.engine.undo import undo

    report = undo(path)
    if as_json:
        kept = [{"path": where, "why": why} for where, why in report.kept]
        emit_json({"restored": report.restored, "kept": kept})
    else:
        click.echo(f"{report.restored} actions taken back")
        for where, why in report.kept:
            note(f"{where}: {why}")
    return PARTIAL if report.kept else OK
