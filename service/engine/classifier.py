"""Zero-shot classification: pictures against labels named by the caller. Needs no index.

`Engine` calls it for requests, `service.engine.source_classifier` for whole folders.

The class matrix of a label set costs labels x templates text embeddings, so it is kept: in memory
by content for any labels, and on disk for stored label sets. The numbers come from
`models.labels.zeroshot` and `models.labels.hierarchy`; this joins them.

Legend: B pictures, C labels, P nodes of a tree of labels, D embedding.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from models.encoder import Encoder, PreparedImage
from models.errors import (
    DiptychError,
    ImageError,
    InputError,
    InvalidLabelsError,
    LabelSetError,
    LabelSetNotFoundError,
)
from models.labels.hierarchy import MAX_DEPTH, SEPARATOR, Path
from models.labels.prompts import codes
from models.labels.zeroshot import (
    DEFAULT_ABSTAIN,
    ONE_IN_TWENTY,
    background_logits,
    background_matrix,
    best_of,
    cache_logits,
    chances,
    class_logits,
    class_matrix,
    none_of_these,
)
from models.vectors import Vectors, unit_rows
from service.engine.label_set_store import LabelSetStore, check_name
from service.engine.label_sets import MAX_EXAMPLES, Examples, LabelSet, check_abstain, matrix_key
from service.engine.queries import ClassifyAnswer, ImageResult, Prediction
from service.operations.timing import Prepare, Stopwatch

Chances: TypeAlias = npt.NDArray[np.float64]

_CACHE_BYTES: Final = 64 << 20
_SURELY_READ: Final = 30
"""Characters that every tower's context holds."""


class Classifier:
    """Classify encoded pictures; `prepare` turns bytes into the encoder's input.

    Attributes:
        store: where named label sets are kept, or None.
    """

    def __init__(
        self,
        encoder: Encoder,
        prepare: Prepare,
        store: LabelSetStore | None = None,
    ) -> None:
        self._encoder = encoder
        self._prepare = prepare
        self.store = store
        self._cache = ClassMatrixCache()

    def classify(
        self,
        images: Sequence[bytes],
        label_set: LabelSet,
        *,
        top_k: int | None = None,
        level: int | None = None,
        abstain: float | bool | None = None,
        name: str | None = None,
    ) -> ClassifyAnswer:
        """Score every picture against every label.

        A picture that cannot be decoded carries its error in its own result; the others answer.

        Args:
            top_k: keep only the most likely labels, and the most likely parents.
            level: of labels that are paths, answer at this depth instead of the leaves.
            abstain: instead of the label set's own; False never abstains.
            name: the stored label set this is, if any; its class matrix is then kept on disk.

        Raises:
            InputError: a level without paths, or `abstain` out of range.
            LabelSetError: examples or temperature were made with another encoder pair.
        """
        self.check(label_set, level)
        threshold = self._threshold(label_set, abstain)
        watch = Stopwatch()
        prepared: list[PreparedImage] = []
        errors: dict[int, DiptychError] = {}
        for index, data in enumerate(images):
            try:
                prepared.append(self._prepare(data, watch))
            except DiptychError as error:
                errors[index] = error
            watch.lap("prepare")
        self.class_directions(label_set, keep=name is not None)
        watch.lap("classes")
        image_BD = self._encoder.embed_images(prepared)
        watch.lap("embed")
        rows = iter(self.results(image_BD, label_set, top_k=top_k, level=level, abstain=abstain))
        results = tuple(
            ImageResult(error=errors[index]) if index in errors else next(rows)
            for index in range(len(images))
        )
        watch.lap("judge")
        return ClassifyAnswer(
            results=results,
            multi_label=label_set.multi_label,
            model=self._encoder.fingerprint.model,
            label_set=name,
            temperature=label_set.temperature or 1.0,
            offset=label_set.offset or 0.0,
            abstain=threshold,
            warnings=self.warnings(label_set),
            timings=watch.stop(),
        )

    def results(
        self,
        image_BD: Vectors,
        label_set: LabelSet,
        *,
        top_k: int | None = None,
        level: int | None = None,
        abstain: float | bool | None = None,
    ) -> list[ImageResult]:
        """As `classify`, of pictures already embedded -> one result per row."""
        self.check(label_set, level)
        threshold = self._threshold(label_set, abstain)
        class_CD = self.class_directions(label_set)
        chance_BC, background_B = self._judge(
            image_BD, class_CD, label_set, abstains=threshold is not None
        )
        found = []
        for row in range(len(image_BD)):
            nothing = None if background_B is None else float(background_B[row])
            found.append(
                ImageResult(
                    predictions=predictions(chance_BC[row], label_set, level, top_k),
                    parents=parents(chance_BC[row], label_set, top_k),
                    background=nothing,
                    abstained=threshold is not None
                    and nothing is not None
                    and nothing >= threshold,
                )
            )
        return found

    def warnings(self, label_set: LabelSet) -> tuple[str, ...]:
        """What makes labels hard to answer by: codes, and what is longer than the model reads."""
        if label_set.head is not None:
            return ()
        names, found = label_set.prompt_names, []
        if unread := codes(names):
            found.append(
                f"{len(unread)} of {len(names)} labels look like codes ({_some(unread)}): the "
                "model reads labels as words, so name what the pictures show"
            )
        # tokenising a thousand labels takes as long as a picture
        cut = [
            name
            for name in names
            if len(name) > _SURELY_READ and self._encoder.prepare_text(name).truncated
        ]
        if cut:
            found.append(
                f"{len(cut)} labels are longer than the model reads and were cut ({_some(cut)})"
            )
        return tuple(found)

    def check(self, label_set: LabelSet, level: int | None = None) -> None:
        """Refuse what cannot be answered, before anything is decoded.

        Raises:
            InputError: a level without paths.
            LabelSetError: examples or temperature were made with another encoder pair.
        """
        if level is not None and (label_set.tree is None or not 1 <= level <= MAX_DEPTH):
            raise InputError(f"a level is 1 to {MAX_DEPTH}, of labels that are paths")
        if label_set.head is not None:
            label_set.head.check_encoder(self._encoder.fingerprint.digest)
        calibrated = label_set.temperature is not None or label_set.offset is not None
        learnt = label_set.examples.targets or calibrated
        if learnt and label_set.encoder not in ("", self._encoder.fingerprint.digest):
            raise LabelSetError(
                "the examples or the temperature of the label set were made with another model",
                code="label-set-mismatch",
                hint="store the label set again with the model in use",
            )

    def logits(self, image_BD: Vectors, label_set: LabelSet) -> Chances:
        """Zero-shot logits and what the examples add, before any temperature -> [B, C].

        With a trained head, the head's own instead.
        """
        if label_set.head is not None:
            return label_set.head.logits(image_BD)
        return class_logits(
            image_BD, self.class_directions(label_set), logit_scale=self._encoder.logit_scale
        ) + self._added(image_BD, label_set)

    def margins(self, image_BD: Vectors, label_set: LabelSet) -> Chances:
        """How far each label stands above the zero it is judged by alone, before any temperature
        and offset -> logits [B, C]."""
        logits_BC = self.logits(image_BD, label_set)
        bias = self._encoder.logit_bias
        if bias is not None:
            return logits_BC + bias
        return logits_BC - self._zeros(image_BD, label_set)[:, None]

    def _judge(
        self, image_BD: Vectors, class_CD: Vectors, label_set: LabelSet, *, abstains: bool
    ) -> tuple[Chances, Chances | None]:
        """Probabilities [B, C], and those of none of these [B] where it may be."""
        scale = self._encoder.logit_scale
        temperature, offset = label_set.temperature or 1.0, label_set.offset or 0.0
        if label_set.head is not None:
            return chances(label_set.head.logits(image_BD), temperature=temperature), None
        added_BC = self._added(image_BD, label_set)
        logits_BC = class_logits(image_BD, class_CD, logit_scale=scale) + added_BC
        zero_B = None
        if abstains or (label_set.multi_label and self._encoder.logit_bias is None):
            zero_B = self._zeros(image_BD, label_set)
        chance_BC = chances(
            logits_BC,
            logit_bias=self._encoder.logit_bias,
            multi_label=label_set.multi_label,
            background_B=zero_B,
            temperature=temperature,
            offset=offset,
        )
        if not abstains:
            return chance_BC, None
        assert zero_B is not None, "made above, as the picture may be none of these"
        if not label_set.multi_label:
            # examples lift every label a little; what they lift on average must not hide the zero
            zero_B = zero_B + added_BC.mean(axis=1)
        elif self._encoder.logit_bias is None:
            # the same zero and offset as each label's: none of these is then that none is likely
            zero_B = zero_B + offset
        return chance_BC, none_of_these(logits_BC, zero_B, temperature=temperature)

    def _zeros(self, image_BD: Vectors, label_set: LabelSet) -> Chances:
        """From which logit on a label fits -> [B]."""
        word_WD = self._background(label_set)
        deviations = ONE_IN_TWENTY if label_set.multi_label else best_of(len(label_set.labels))
        return background_logits(
            image_BD, word_WD, logit_scale=self._encoder.logit_scale, deviations=deviations
        )

    def class_directions(self, label_set: LabelSet, *, keep: bool = False) -> Vectors:
        """The class matrix [C, D]; with `keep` from and to the store's disk as well."""
        if label_set.head is not None:
            return unit_rows(label_set.head.weight_CD)
        names, prompts = label_set.prompt_names, label_set.prompts
        key = self._key(label_set)

        def make() -> Vectors:
            store = self.store if keep else None
            kept_CD = None if store is None else store.matrix(key, len(names), self._encoder.dim)
            if kept_CD is not None:
                return kept_CD
            class_CD = class_matrix(self._encoder, names, prompts)
            if store is not None:
                store.keep_matrix(key, class_CD)
            return class_CD

        return self._cache.get_or_make(key, make)

    def with_examples(
        self, label_set: LabelSet, examples: Mapping[str, Sequence[bytes]]
    ) -> LabelSet:
        """The label set with few-shot pictures embedded into it.

        Raises:
            InvalidLabelsError: an unknown label, too many pictures, or one that cannot be read.
        """
        position = {label: at for at, label in enumerate(label_set.labels)}
        if sum(map(len, examples.values())) > MAX_EXAMPLES:
            raise InvalidLabelsError(f"at most {MAX_EXAMPLES} example pictures are possible")
        prepared: list[PreparedImage] = []
        targets: list[int] = []
        for label, pictures in examples.items():
            at = position.get(label.strip())
            if at is None:
                raise InvalidLabelsError("an example's label is not among the labels")
            for number, data in enumerate(pictures):
                try:
                    prepared.append(self._prepare(data))
                except ImageError as error:
                    raise InvalidLabelsError(
                        f"example {number + 1} of label {at + 1} is no usable picture",
                        hint=error.code,
                    ) from error
                targets.append(at)
        if not targets:
            return label_set
        return self.with_vectors(label_set, self._encoder.embed_images(prepared), targets)

    def with_vectors(
        self, label_set: LabelSet, example_ND: Vectors, targets: Sequence[int]
    ) -> LabelSet:
        """The label set with few-shot pictures that are embedded already."""
        return self.own(replace(label_set, examples=Examples(example_ND, tuple(targets))))

    def own(self, label_set: LabelSet) -> LabelSet:
        """Mark a label set as made with this encoder pair, now."""
        return replace(
            label_set,
            model=self._encoder.fingerprint.model,
            encoder=self._encoder.fingerprint.digest,
            updated=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def stored(self, name: str) -> LabelSet:
        """A stored label set.

        Raises:
            LabelSetNotFoundError: also where the service keeps none.
            InvalidLabelsError, LabelSetError: see `LabelSetStore.get`.
        """
        if self.store is None:
            raise LabelSetNotFoundError("no label set has this name")
        return self.store.get(name)

    def keep(self, name: str, label_set: LabelSet) -> tuple[LabelSet, bool]:
        """Embed a label set and store it durably -> (as stored, whether the name is new).

        Raises:
            InvalidLabelsError: the name, or labels whose prompts cancel out.
            LabelSetError: see `LabelSetStore.put`.
        """
        store = self.check_storable(name)
        owned = self.own(label_set)
        # first: labels that cannot be embedded are never stored
        class_CD = self.class_directions(owned)
        created = store.put(name, owned)
        store.keep_matrix(self._key(owned), class_CD)
        return owned, created

    def forget(self, name: str) -> None:
        """Delete a stored label set. Raises as `LabelSetStore.delete`."""
        self.check_storable(name).delete(name)

    def check_storable(self, name: str) -> LabelSetStore:
        """The store, before anything is embedded for it.

        Raises:
            InvalidLabelsError: no possible name.
            LabelSetError: the service keeps no label sets.
        """
        check_name(name)
        if self.store is None:
            raise LabelSetError(
                "the label sets of this service cannot be changed", code="label-sets-read-only"
            )
        return self.store

    def _key(self, label_set: LabelSet) -> str:
        return matrix_key(
            label_set.prompt_names, label_set.prompts, self._encoder.fingerprint.digest
        )

    def _added(self, image_BD: Vectors, label_set: LabelSet) -> Chances:
        examples = label_set.examples
        if not examples.targets:
            return np.zeros((len(image_BD), len(label_set.labels)))
        alpha, beta = label_set.mix
        return cache_logits(
            image_BD,
            examples.vectors_ND,
            examples.targets,
            len(label_set.labels),
            alpha=alpha,
            beta=beta,
        )

    def _background(self, label_set: LabelSet) -> Vectors:
        digest = self._encoder.fingerprint.digest
        # a list of one name of NUL cannot be a caller's labels
        key = matrix_key(["\0background"], label_set.prompts, digest)
        return self._cache.get_or_make(
            key, lambda: background_matrix(self._encoder, label_set.prompts)
        )

    @staticmethod
    def _threshold(label_set: LabelSet, abstain: float | bool | None) -> float | None:
        asked = label_set.abstain if abstain is None else check_abstain(abstain)
        return DEFAULT_ABSTAIN if asked is True else (None if asked is None else float(asked))


def _some(labels: Sequence[str]) -> str:
    """The first three, each of bounded length."""
    shown = [label if len(label) <= 24 else f"{label[:23]}…" for label in labels[:3]]
    return ", ".join(shown) + (", …" if len(labels) > 3 else "")


def predictions(
    chance_C: Chances, label_set: LabelSet, level: int | None, top_k: int | None
) -> tuple[Prediction, ...]:
    """The labels, or the nodes at a level of their tree, most likely first."""
    tree = label_set.tree
    if tree is None:
        ranked = _ranked(chance_C, top_k)
        return tuple(Prediction(label_set.labels[at], float(chance_C[at])) for at in ranked)
    if level is None:
        ranked = _ranked(chance_C, top_k)
        return tuple(
            Prediction(label_set.labels[at], float(chance_C[at]), tree.leaves[at]) for at in ranked
        )
    return _nodes(chance_C, label_set, tree.at_level(level), top_k)


def parents(
    chance_C: Chances, label_set: LabelSet, top_k: int | None
) -> tuple[Prediction, ...] | None:
    """The inner nodes of a tree of labels, most likely first; None without a tree."""
    tree = label_set.tree
    return None if tree is None else _nodes(chance_C, label_set, tree.inner, top_k)


def _nodes(
    chance_C: Chances, label_set: LabelSet, nodes: Sequence[Path], top_k: int | None
) -> tuple[Prediction, ...]:
    assert label_set.tree is not None
    chance_P = label_set.tree.gather(chance_C[None], nodes, multi_label=label_set.multi_label)[0]
    return tuple(
        Prediction(SEPARATOR.join(nodes[at]), float(chance_P[at]), nodes[at])
        for at in _ranked(chance_P, top_k)
    )


def _ranked(chance: Chances, top_k: int | None) -> list[int]:
    order: list[int] = np.argsort(-chance, kind="stable")[:top_k].tolist()
    return order


class ClassMatrixCache:
    """Least recently used class matrices [C, D] by key; safe to call from many threads."""

    def __init__(self, max_bytes: int = _CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Vectors] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get_or_make(self, key: str, make: Callable[[], Vectors]) -> Vectors:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # made outside the lock: two callers may both make it, which costs time but never blocks
        # a caller whose matrix is already here
        class_CD = make()
        with self._lock:
            if key not in self._kept and class_CD.nbytes <= self._max_bytes:
                self._kept[key] = class_CD
                self._bytes += class_CD.nbytes
            while self._bytes > self._max_bytes:
                _, dropped_CD = self._kept.popitem(last=False)
                self._bytes -= dropped_CD.nbytes
        return class_CD
