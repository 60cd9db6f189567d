"""`diptych classify`: pictures into labels you name. Needs no index.

Three ways in: classify (and perhaps sort) pictures, `--calibrate` on labelled ones, and `--undo` a
sorting. The options are checked here, before a model is loaded; the work is in `classify_run` and
`classify_calibrate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.output import json_option, model_options

if TYPE_CHECKING:
    from service.engine.label_sets import LabelSet

_FILE = click.Path(dir_okay=False, path_type=Path)


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
@click.argument("images", metavar="[SOURCE]...", nargs=-1)
@click.option("--labels", help="The labels, separated by commas.")
@click.option(
    "--labels-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The labels, one a line (UTF-8).",
)
@click.option(
    "--head",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `diptych train --tune linear|adapter|prompts` left, with its labels.",
)
@click.option(
    "--label-set", "set_name", metavar="NAME", help="A stored label set; see --label-sets."
)
@click.option(
    "--label-sets",
    "sets_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where label sets are stored, as for `diptych serve`.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    help="A prompt in which {c} or {} stands for the label, or the name of a set; repeatable.",
)
@click.option("--template-set", help="A named list of prompts: default, food, pets, zh, ...")
@click.option("--multi-label", is_flag=True, help="Score each label on its own.")
@click.option("--hierarchy", is_flag=True, help="Labels are paths; the default if all hold a /.")
@click.option("--level", type=click.IntRange(min=1), help="Of paths: answer at this depth.")
@click.option("--abstain", is_flag=True, help="Say when a picture is none of the labels.")
@click.option(
    "--abstain-at",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="The same, from this probability of none of these. [default: 0.5]",
)
@click.option("--temperature", type=float, help="Divides the logits, as --calibrate finds it.")
@click.option(
    "--examples",
    multiple=True,
    metavar="SOURCE",
    help="Labelled pictures blended in; a picture without a label has its folder's name.",
)
@click.option("--shots", type=click.IntRange(min=1), help="At most so many examples a label.")
@click.option("--alpha", type=float, help="How much examples count. [default: 20]")
@click.option("--beta", type=float, help="How alike a picture must be to one. [default: 5.5]")
@click.option("--label-field", help="Where a source keeps its labels, e.g. label or names.0.")
@click.option("--top-k", type=click.IntRange(min=1), help="Show only the most likely labels.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["text", "json", "jsonl", "csv"]),
    help="For people, one document, a line or rows per picture. [default: text]",
)
@click.option(
    "--explain",
    type=click.Path(file_okay=False, path_type=Path),
    help="Draw into this folder where each picture shows its top label, as PNG.",
)
@click.option("--out", type=_FILE, help="Write the results to a file instead.")
@click.option(
    "--sort-into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Put every picture into a folder per label here; none of these goes to _none.",
)
@click.option(
    "--by",
    type=click.Choice(["copy", "link", "move"]),
    help="How to sort: copies, symbolic links or the pictures themselves. [default: copy]",
)
@click.option("--dry-run", is_flag=True, help="Only say where pictures would go.")
@click.option("--undo-file", type=_FILE, help="What to call the undo file. [default: in DIR]")
@click.option("--undo", "undo_path", type=_FILE, help="Take back a sorting, from its undo file.")
@click.option("--calibrate", metavar="SOURCE", help="Find the temperature from labelled pictures.")
@click.option("--plot", type=_FILE, help="With --calibrate: a reliability diagram, PNG.")
@click.option("--save", "save_as", metavar="NAME", help="Store labels and what was learnt.")
@model_options
@json_option
def classify(
    images: tuple[str, ...],
    undo_path: Path | None,
    calibrate: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Sort each picture of every SOURCE into labels, most likely first.

    A SOURCE is a picture, a folder, .tar shards or a .jsonl manifest. Exits with 3 when some
    pictures could not be read or sorted; the others are answered.
    """
    if as_json:
        if options["kind"] not in (None, "json"):
            raise click.UsageError("--json and --format contradict each other")
        options["kind"] = "json"
    ways = [bool(images), calibrate is not None, undo_path is not None]
    if sum(ways) != 1:
        raise click.UsageError("give pictures to classify, or --calibrate, or --undo")
    if undo_path is not None:
        from service.cli.classify.run import take_back

        return take_back(undo_path, as_json=as_json)
    _check(options, calibrating=calibrate is not None)
    if calibrate is not None:
        from service.cli.classify.calibrate import run_calibration

        return run_calibration(calibrate, options, _spelt_out)
    from service.cli.classify.run import run

    return run(images, options, _spelt_out(options, None))


def _check(options: dict[str, Any], *, calibrating: bool) -> None:
    """Refuse options that do not go together, before anything is loaded."""
    given = [options["labels"], options["labels_file"], options["set_name"]]
    given.append(options["head"])
    count = sum(value is not None for value in given)
    # calibration can take its labels from the labelled pictures
    if count > 1 or (count == 0 and not calibrating):
        raise click.UsageError("give either --labels or --labels-file (or a --label-set)")
    brings = ("templates", "template_set", "multi_label", "hierarchy", "examples")
    beside_a_head = (*brings, "abstain", "abstain_at", "level", "save_as")
    if options["head"] and any(options[name] not in (None, False, ()) for name in beside_a_head):
        raise click.UsageError("a --head is one choice among its labels: it takes --temperature")
    if (options["set_name"] or options["save_as"]) and options["sets_dir"] is None:
        raise click.UsageError("--label-set and --save need the folder: --label-sets DIR")
    if options["set_name"] and any(options[name] for name in brings):
        raise click.UsageError("a --label-set brings its own templates, examples and mode")
    if options["sort_into"] is None and (
        options["by"] or options["dry_run"] or options["undo_file"]
    ):
        raise click.UsageError("--by, --dry-run and --undo-file belong to --sort-into DIR")
    if options["plot"] is not None:
        if not calibrating:
            raise click.UsageError("--plot belongs to --calibrate")
        from service.cli.plots import require_matplotlib

        require_matplotlib()
    if calibrating and options["explain"]:
        raise click.UsageError("--explain does not go with --calibrate")
    if calibrating and (options["sort_into"] or options["multi_label"] or options["level"]):
        raise click.UsageError(
            "--calibrate finds the temperature of a choice among labels; "
            "it does not go with --sort-into, --multi-label or --level"
        )


def _spelt_out(options: dict[str, Any], labels: list[str] | None) -> LabelSet:
    """The label set the options name or spell out; `labels` where they give none."""
    from models.labels.class_head import load_head
    from models.labels.prompts import resolve_templates
    from service.cli.classify.inputs import read_labels
    from service.engine.label_set_store import LabelSetStore
    from service.engine.label_sets import LabelSet, check_label_set

    if options["head"]:
        head = load_head(options["head"])
        temperature = check_label_set(
            head.labels, hierarchy=False, temperature=options["temperature"]
        ).temperature
        return LabelSet(
            head.labels, temperature=temperature, head=head, model=head.model, encoder=head.encoder
        )
    if options["set_name"]:
        return LabelSetStore(options["sets_dir"]).get(options["set_name"])
    if labels is None or options["labels"] is not None or options["labels_file"] is not None:
        labels = read_labels(options["labels"], options["labels_file"])
    templates = resolve_templates(options["templates"]) if options["templates"] else None
    return check_label_set(
        labels,
        templates=templates,
        template_set=options["template_set"],
        multi_label=options["multi_label"],
        hierarchy=options["hierarchy"] or None,
        abstain=options["abstain_at"] if options["abstain_at"] is not None else options["abstain"],
        temperature=options["temperature"],
        alpha=options["alpha"],
        beta=options["beta"],
    )
