"""The work behind `diptych classify`: read, embed, judge, write, and sort into folders."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from tqdm import tqdm

from indexer.files.fs import storage_error
from models.encoder import Encoder, PreparedImage
from models.environment import default_model
from models.errors import ImageError, InvalidLabelsError
from models.sources.embedded import prepare_rows
from models.sources.records import Record, Reject, Source
from models.vectors import Vectors
from service.cli.classify.heat_maps import HeatMaps
from service.cli.classify.inputs import display, label_of, member_name, open_inputs, own_file
from service.cli.classify.output import Format, Line, opened
from service.cli.exits import OK, PARTIAL
from service.cli.output import emit_json, interactive, note
from service.engine.classifier import Classifier
from service.engine.label_set_store import LabelSetStore
from service.engine.label_sets import LabelSet
from service.engine.queries import ImageResult
from service.engine.sorter import NONE, By, Sorter, folder_names, numbered, safe_name
from service.engine.undo import undo

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH = 32


def load(options: dict[str, Any]) -> Encoder:
    """The encoder pair the options name."""
    from models.encoders.registry import load_encoder

    return load_encoder(
        options["model"] or default_model(),
        device=options["device"],
        precision=options["precision"],
        threads=options["threads"],
    )


def classifier_of(encoder: Encoder, options: dict[str, Any]) -> Classifier:
    sets_dir = options["sets_dir"]
    store = None if sets_dir is None else LabelSetStore(sets_dir)
    return Classifier(encoder, lambda data, _=None: encoder.prepare_image(_decode(data)), store)


def _decode(data: bytes) -> Image:
    from models.images.decode import decode_image

    return decode_image(data)


def run(images: Sequence[str], options: dict[str, Any], label_set: LabelSet) -> int:
    """Classify every picture; the exit code says whether all of them could be."""
    label_field = options["label_field"]
    sources = open_inputs(images, label_field)
    examples = open_inputs(options["examples"], label_field)
    sort_into = options["sort_into"]
    by: By = options["by"] or "copy"
    if sort_into is not None and by != "copy" and any(s.in_archives for s in sources):
        raise click.UsageError(
            f"pictures inside an archive can be copied, but --by {by} cannot work"
        )
    encoder = load(options)
    classifier = classifier_of(encoder, options)
    label_set = override(label_set, options)
    classifier.check(label_set, options["level"])
    if examples:
        label_set = with_examples(classifier, encoder, label_set, examples, options["shots"])
    if options["save_as"]:
        classifier.keep(options["save_as"], label_set)
    about: dict[str, Any] = {
        "multi_label": label_set.multi_label,
        "model": encoder.fingerprint.model,
    }
    kind: Format = options["kind"] or "text"
    failed = 0
    with ExitStack() as closing:
        writer = closing.enter_context(opened(options["out"], kind, about))
        heat = None
        if options["explain"] is not None:
            heat = HeatMaps(options["explain"], encoder, classifier, label_set)
        placer = None
        if sort_into is not None:
            placer = Placer(sort_into, label_set, options["level"])
            if not options["dry_run"]:
                placer.sorter = closing.enter_context(Sorter(sort_into, by, options["undo_file"]))
                # said however the run ends
                closing.callback(_tell, placer.sorter)
        for batch in embedded(sources, encoder):
            for picture, result in _judged(batch, classifier, label_set, options):
                line = Line(picture.name, result)
                if placer is not None and picture.record is not None:
                    if placer.holds(picture.record):
                        continue
                    line = placer.place(line, picture.record)
                if heat is not None and picture.record is not None and result.predictions:
                    line = replace(line, heatmap=heat.draw(picture.record, result))
                failed += line.result.error is not None
                writer.write(line)
    if failed and kind != "text":
        note(f"{failed} pictures failed; their rows say why")
    return PARTIAL if failed else OK


def _tell(sorter: Sorter) -> None:
    note(f"{sorter.placed} pictures sorted; diptych classify --undo {sorter.undo_file}")


def override(label_set: LabelSet, options: dict[str, Any]) -> LabelSet:
    """A stored label set with the options that may be given beside it."""
    if not options["set_name"]:
        return label_set
    if options["abstain"] or options["abstain_at"] is not None:
        at = options["abstain_at"]
        label_set = replace(label_set, abstain=True if at is None else at)
    return label_set


def with_examples(
    classifier: Classifier,
    encoder: Encoder,
    label_set: LabelSet,
    sources: Sequence[Source],
    shots: int | None,
) -> LabelSet:
    """The label set with the first `shots` pictures of each label in the sources.

    Raises:
        InvalidLabelsError: not one picture has one of the labels.
    """
    position = {label: at for at, label in enumerate(label_set.labels)}
    rows: list[Vectors] = []
    targets: list[int] = []
    taken = np.zeros(len(position), dtype=int)
    for batch in embedded(sources, encoder):
        for picture in batch:
            at = None if picture.record is None else position.get(label_of(picture.record) or "")
            if at is None or picture.vector_D is None:
                continue
            if shots is None or taken[at] < shots:
                taken[at] += 1
                targets.append(at)
                rows.append(picture.vector_D)
    if not rows:
        raise InvalidLabelsError(
            "no example picture has one of the labels",
            hint="name the field they are in with --label-field, or put them in folders",
        )
    note(f"{len(rows)} examples of {int((taken > 0).sum())} labels")
    return classifier.with_vectors(label_set, np.stack(rows), targets)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a source, embedded, or the error that refused it."""

    name: str
    record: Record | None = None
    vector_D: Vectors | None = None
    error: ImageError | None = None


def embedded(sources: Sequence[Source], encoder: Encoder) -> Iterator[list[Picture]]:
    """Every picture of the sources in order, a batch at a time; text-only records are left out."""
    counts = [source.count() for source in sources]
    total = None if None in counts else sum(count or 0 for count in counts)
    with tqdm(total=total, unit="picture", disable=not interactive()) as bar:
        waiting: list[tuple[Picture, PreparedImage | None]] = []
        for source in sources:
            for ready in prepare_rows(source, encoder.prepare_image, source=source.name):
                if isinstance(ready, Reject):
                    name = display(source, ready.key)
                    error = ImageError(ready.detail, code=ready.code)
                    waiting.append((Picture(name, error=error), None))
                elif ready[1] is not None:
                    name = display(source, ready[0].key)
                    waiting.append((Picture(name, ready[0]), ready[1]))
                if len(waiting) == _BATCH:
                    yield _embed(waiting, encoder)
                    bar.update(len(waiting))
                    waiting = []
        if waiting:
            yield _embed(waiting, encoder)
            bar.update(len(waiting))


def _embed(
    waiting: Sequence[tuple[Picture, PreparedImage | None]], encoder: Encoder
) -> list[Picture]:
    prepared = [image for _, image in waiting if image is not None]
    rows = iter(encoder.embed_images(prepared))
    return [
        picture if image is None else replace(picture, vector_D=next(rows))
        for picture, image in waiting
    ]


def _judged(
    batch: Sequence[Picture], classifier: Classifier, label_set: LabelSet, options: dict[str, Any]
) -> Iterator[tuple[Picture, ImageResult]]:
    vectors = [picture.vector_D for picture in batch if picture.vector_D is not None]
    results: Iterator[ImageResult] = iter(())
    if vectors:
        results = iter(
            classifier.results(
                np.stack(vectors), label_set, top_k=options["top_k"], level=options["level"]
            )
        )
    for picture in batch:
        yield picture, next(results) if picture.error is None else ImageResult(error=picture.error)


class Placer:
    """Where each picture goes: the folder of its most likely label, or of none of these."""

    def __init__(self, root: Path, label_set: LabelSet, level: int | None) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100  # without following links
        self._folders = folder_names(_paths(label_set, level))
        self._planned: set[Path] = set()
        self.sorter: Sorter | None = None

    def holds(self, record: Record) -> bool:
        """Whether a picture is inside already: sorting a folder into itself must come to an end."""
        own = own_file(record)
        return own is not None and own.is_relative_to(self._root)

    def place(self, line: Line, record: Record) -> Line:
        """The line with where the picture went, or with the error that kept it."""
        assert record.image is not None, "only pictures are classified"
        best = line.result.predictions[0]
        path = (best.label,) if best.path is None else best.path
        folder = (NONE,) if line.result.abstained else self._folders[path]
        own = own_file(record)
        name = safe_name(member_name(record)) if own is None else own.name
        try:
            if self.sorter is None:
                target = self._plan(folder, name)
            else:
                if own is not None and own.is_symlink():
                    raise OSError(errno.ELOOP, "a symbolic link is not sorted")
                target = self.sorter.place(own, record.image, name, folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise storage_error(error, "sort into", self._root) from error
            why = ImageError(f"not sorted: {error.strerror}", code="not-sorted")
            return Line(line.image, replace(line.result, error=why))
        return Line(line.image, line.result, str(target))

    def _plan(self, folder: Sequence[str], name: str) -> Path:
        number = 1
        while True:
            target = self._root.joinpath(*folder, numbered(name, number))
            number += 1
            if target not in self._planned and not os.path.lexists(target):
                self._planned.add(target)
                return target


def _paths(label_set: LabelSet, level: int | None) -> list[tuple[str, ...]]:
    if label_set.tree is None:
        return [(label,) for label in label_set.labels]
    tree = label_set.tree
    return list(tree.leaves if level is None else tree.at_level(level))


def take_back(path: Path, *, as_json: bool) -> int:
    """`--undo`: everything the undo file names, back to where it was."""
    report = undo(path)
    if as_json:
        kept = [{"path": where, "why": why} for where, why in report.kept]
        emit_json({"restored": report.restored, "kept": kept})
    else:
        click.echo(f"{report.restored} actions taken back")
        for where, why in report.kept:
            note(f"{where}: {why}")
    return PARTIAL if report.kept else OK
