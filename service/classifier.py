"""Zero-shot classification: pictures against labels named by the caller. Needs no index.

The class matrix of a label set costs labels x templates text embeddings, so the last ones are kept,
bounded by bytes, keyed by their content. The numbers come from `models.zeroshot`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from models.encoder import Encoder, PreparedImage
from models.errors import DiptychError, InvalidLabelsError
from models.prompts import DEFAULT_TEMPLATES, TEMPLATE_SETS, check_labels, check_templates
from models.vectors import Vectors
from models.zeroshot import background, class_matrix, probabilities
from service.queries import ClassifyAnswer, ImageResult, Prediction
from service.stopwatch import Stopwatch

# a thousand labels in the eighty templates of ImageNet; more is a mistake or an attack
MAX_PROMPTS = 80_000
_CACHE_BYTES = 64 << 20


class ClassMatrixCache:
    """Least recently used class matrices [C, D] by the content they were made of."""

    def __init__(self, max_bytes: int = _CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Vectors] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get_or_make(
        self, labels: Sequence[str], templates: Sequence[str], make: Callable[[], Vectors]
    ) -> Vectors:
        content = json.dumps([list(labels), list(templates)], ensure_ascii=True)
        key = hashlib.sha256(content.encode()).hexdigest()
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


class Classifier:
    """Classify encoded pictures; `prepare` turns bytes into the encoder's input."""

    def __init__(self, encoder: Encoder, prepare: Callable[[bytes], PreparedImage]) -> None:
        self._encoder = encoder
        self._prepare = prepare
        self._cache = ClassMatrixCache()

    def classify(
        self,
        images: Sequence[bytes],
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        template_set: str | None = None,
        multi_label: bool = False,
        top_k: int | None = None,
    ) -> ClassifyAnswer:
        """See `Engine.classify`."""
        names, chosen = check_classes(labels, templates, template_set, multi_label=multi_label)
        watch = Stopwatch()
        prepared: list[PreparedImage] = []
        errors: dict[int, DiptychError] = {}
        for index, data in enumerate(images):
            try:
                prepared.append(self._prepare(data))
            except DiptychError as error:
                errors[index] = error
        watch.lap("prepare")
        class_CD = self._cache.get_or_make(
            names, chosen, lambda: class_matrix(self._encoder, names, chosen)
        )
        background_D = None
        if multi_label and self._encoder.logit_bias is None:
            # a softmax-trained pair judges labels one by one only against something neutral
            background_D = self._cache.get_or_make(
                (), chosen, lambda: background(self._encoder, chosen)
            )
        watch.lap("classes")
        image_BD = self._encoder.embed_images(prepared)
        watch.lap("embed")
        chance_BC = probabilities(
            image_BD,
            class_CD,
            logit_scale=self._encoder.logit_scale,
            logit_bias=self._encoder.logit_bias,
            multi_label=multi_label,
            background_D=background_D,
        )
        rows = iter(chance_BC)
        results = tuple(
            ImageResult(error=errors[index])
            if index in errors
            else ImageResult(_ranked(next(rows), names, top_k))
            for index in range(len(images))
        )
        return ClassifyAnswer(
            results=results,
            multi_label=multi_label,
            model=self._encoder.fingerprint.model,
            timings=watch.stop(),
        )


def _ranked(
    chance_C: npt.NDArray[np.float64], labels: Sequence[str], top_k: int | None
) -> tuple[Prediction, ...]:
    order = np.argsort(-chance_C, kind="stable")[:top_k]
    return tuple(Prediction(labels[i], float(chance_C[i])) for i in order)


def check_classes(
    labels: Sequence[str],
    templates: Sequence[str] | None,
    template_set: str | None,
    *,
    multi_label: bool,
) -> tuple[list[str], tuple[str, ...]]:
    """The labels and the templates to use, once both are known to be usable.

    Raises:
        InvalidLabelsError: see `models.prompts`; both kinds of templates; an unknown set.
    """
    if templates is not None and template_set is not None:
        raise InvalidLabelsError("give templates or a template set, not both")
    if template_set is not None and template_set not in TEMPLATE_SETS:
        raise InvalidLabelsError(f"unknown template set; there are {', '.join(TEMPLATE_SETS)}")
    if template_set is not None:
        chosen = TEMPLATE_SETS[template_set]
    else:
        chosen = DEFAULT_TEMPLATES if templates is None else tuple(check_templates(templates))
    names = check_labels(labels, multi_label=multi_label)
    if len(names) * len(chosen) > MAX_PROMPTS:
        raise InvalidLabelsError(f"labels x templates may be at most {MAX_PROMPTS:,} prompts")
    return names, chosen
