"""The options of `diptych classify`: which go together, and the label set they spell out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from models.errors import InvalidLabelsError
from service.cli.options import (
    FOLDER,
    NEW_FILE,
    OLD_FILE,
    ModelOptions,
    argument,
    group,
    json_option,
    option,
)

if TYPE_CHECKING:
    from service.cli.classify.formats import Format
    from service.engine.label_set_store import LabelSetStore
    from service.engine.label_sets import LabelSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyArguments:
    images: tuple[str, ...] = argument(metavar="[SOURCE]...", nargs=-1)
    labels: str | None = option("--labels", help="The labels, separated by commas.")
    labels_file: Path | None = option(
        "--labels-file", type=OLD_FILE, help="The labels, one a line (UTF-8)."
    )
    head: Path | None = option(
        "--head",
        type=OLD_FILE,
        help="What `diptych train --tune linear|adapter|prompts` left, with its labels.",
    )
    set_name: str | None = option(
        "--label-set", metavar="NAME", help="A stored label set; see --label-sets."
    )
    sets_dir: Path | None = option(
        "--label-sets",
        type=FOLDER,
        help="Where label sets are stored, as for `diptych serve`.",
    )
    templates: tuple[str, ...] = option(
        "--template",
        multiple=True,
        help="A prompt in which {c} or {} stands for the label, or the name of a set; repeatable.",
    )
    template_set: str | None = option(
        "--template-set", help="A named list of prompts: default, food, pets, zh, ..."
    )
    multi_label: bool = option(
        "--multi-label",
        is_flag=True,
        help="Score each label on its own: likely where it stands out of ordinary things.",
    )
    hierarchy: bool = option(
        "--hierarchy", is_flag=True, help="Labels are paths; the default if all hold a /."
    )
    level: int | None = option(
        "--level", type=click.IntRange(min=1), help="Of paths: answer at this depth."
    )
    abstain: bool = option(
        "--abstain", is_flag=True, help="Say when a picture is none of the labels."
    )
    abstain_at: float | None = option(
        "--abstain-at",
        type=click.FloatRange(0, 1),
        metavar="P",
        help="The same, from this probability of none of these. [default: 0.5]",
    )
    temperature: float | None = option(
        "--temperature", type=float, help="Divides the logits, as --calibrate finds it."
    )
    offset: float | None = option(
        "--offset",
        type=float,
        help="With --multi-label: raises the line from which a label is likely, as --calibrate "
        "finds it.",
    )
    examples: tuple[str, ...] = option(
        "--examples",
        multiple=True,
        metavar="SOURCE",
        help="Labelled pictures blended in; a picture without a label has its folder's name.",
    )
    shots: int | None = option(
        "--shots", type=click.IntRange(min=1), help="At most so many examples a label."
    )
    alpha: float | None = option(
        "--alpha", type=float, help="How much examples count. [default: 20]"
    )
    beta: float | None = option(
        "--beta", type=float, help="How alike a picture must be to one. [default: 5.5]"
    )
    label_field: str | None = option(
        "--label-field", help="Where a source keeps its labels, e.g. label or names.0."
    )
    top_k: int | None = option(
        "--top-k", type=click.IntRange(min=1), help="Show only the most likely labels."
    )
    format: Format | None = option(
        "--format",
        type=click.Choice(["text", "json", "jsonl", "csv"]),
        help="For people, one document, a line or rows per picture. [default: text]",
    )
    explain: Path | None = option(
        "--explain",
        type=FOLDER,
        help="Draw into this folder where each picture shows its top label, as PNG.",
    )
    out: Path | None = option("--out", type=NEW_FILE, help="Write the results to a file instead.")
    sort_into: Path | None = option(
        "--sort-into",
        type=FOLDER,
        help="Put every picture into a folder per label here; none of these goes to _none.",
    )
    by: Literal["copy", "link", "move"] | None = option(
        "--by",
        type=click.Choice(["copy", "link", "move"]),
        help="How to sort: copies, symbolic links or the pictures themselves. [default: copy]",
    )
    dry_run: bool = option("--dry-run", is_flag=True, help="Only say where pictures would go.")
    undo_file: Path | None = option(
        "--undo-file", type=NEW_FILE, help="What to call the undo file. [default: in DIR]"
    )
    undo: Path | None = option(
        "--undo", type=NEW_FILE, help="Take back a sorting, from its undo file."
    )
    calibrate: str | None = option(
        "--calibrate",
        metavar="SOURCE",
        help="Find the temperature, with --multi-label also the offset, from labelled pictures.",
    )
    plot: Path | None = option(
        "--plot", type=NEW_FILE, help="With --calibrate: a reliability diagram, PNG."
    )
    save_as: str | None = option("--save", metavar="NAME", help="Store labels and what was learnt.")
    pair: ModelOptions = group(ModelOptions)
    as_json: bool = json_option()

    @property
    def kind(self) -> Format:
        """The format of the answers."""
        return "json" if self.as_json else self.format or "text"

    @property
    def store(self) -> LabelSetStore | None:
        """The stored label sets, where their folder is named."""
        from service.engine.label_set_store import LabelSetStore

        return None if self.sets_dir is None else LabelSetStore(self.sets_dir)

    @property
    def names_labels(self) -> bool:
        return bool(self.labels or self.labels_file or self.set_name)

    def check_mode(self) -> None:
        """Refuse more than one thing to do, or none."""
        if self.as_json and self.format not in (None, "json"):
            raise click.UsageError("--json and --format contradict each other")
        modes = [bool(self.images), self.calibrate is not None, self.undo is not None]
        if sum(modes) != 1:
            raise click.UsageError("give pictures to classify, or --calibrate, or --undo")

    def check(self) -> None:
        """Refuse options that do not go together, before anything is loaded."""
        calibrating = self.calibrate is not None
        given = [self.labels, self.labels_file, self.set_name, self.head]
        count = sum(value is not None for value in given)
        # calibration can take its labels from the labelled pictures
        if count > 1 or (count == 0 and not calibrating):
            raise click.UsageError("give either --labels or --labels-file (or a --label-set)")
        brought = (
            self.templates or self.template_set or self.multi_label or self.hierarchy
            or self.examples
        )  # fmt: skip
        beside_a_head = (
            brought or self.abstain or self.abstain_at is not None or self.level or self.save_as
        )
        if self.head and beside_a_head:
            raise click.UsageError(
                "a --head is one choice among its labels: it takes --temperature"
            )
        if (self.set_name or self.save_as) and self.sets_dir is None:
            raise click.UsageError("--label-set and --save need the folder: --label-sets DIR")
        if self.set_name and brought:
            raise click.UsageError("a --label-set brings its own templates, examples and mode")
        if self.sort_into is None and (self.by or self.dry_run or self.undo_file):
            raise click.UsageError("--by, --dry-run and --undo-file belong to --sort-into DIR")
        if self.plot is not None:
            if not calibrating:
                raise click.UsageError("--plot belongs to --calibrate")
            from service.cli.plots import require_matplotlib

            require_matplotlib()
        if calibrating and self.explain:
            raise click.UsageError("--explain does not go with --calibrate")
        if calibrating and (self.sort_into or self.level):
            raise click.UsageError("--calibrate does not go with --sort-into or --level")
        if self.offset is not None and (self.set_name or not self.multi_label):
            raise click.UsageError("--offset belongs to --multi-label and its own labels")

    def label_set(self, found: Sequence[str] = ()) -> LabelSet:
        """The label set that is named or spelt out; of the labels `found` where none are given.

        Raises:
            InvalidLabelsError, InputError: see `check_label_set`.
            LabelSetNotFoundError, LabelSetError: a stored one cannot be had, or a head be read.
        """
        from models.labels.class_head import load_head
        from models.labels.prompts import resolve_templates
        from service.engine.label_sets import LabelSet, check_label_set

        if self.head:
            return LabelSet.of_head(load_head(self.head), self.temperature)
        abstain = self.abstain if self.abstain_at is None else self.abstain_at
        if self.set_name:
            assert self.store is not None, "checked to be named"
            stored = self.store.get(self.set_name)
            # all else that may be given beside a stored one is no part of it
            asked = self.abstain or self.abstain_at is not None
            return replace(stored, abstain=abstain) if asked else stored
        if self.labels is not None:
            labels = [label.strip() for label in self.labels.split(",")]
        elif self.labels_file is not None:
            labels = _read_labels(self.labels_file)
        else:
            labels = [*found]
        return check_label_set(
            labels,
            templates=resolve_templates(self.templates) if self.templates else None,
            template_set=self.template_set,
            multi_label=self.multi_label,
            hierarchy=self.hierarchy or None,
            abstain=abstain,
            temperature=self.temperature,
            offset=self.offset,
            alpha=self.alpha,
            beta=self.beta,
        )


def _read_labels(path: Path) -> list[str]:
    """Raises InvalidLabelsError: the file is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidLabelsError(f"{path} is not UTF-8") from None
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
