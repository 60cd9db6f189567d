"""The content of a label set's file: canonical JSON with its own sha256. No file is opened here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np

from models.errors import InputError, LabelSetError
from service.engine.label_sets import NO_EXAMPLES, Examples, LabelSet, check_label_set

MAX_BYTES = 16 << 20
_FORMAT = 1


def _canonical(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def encode(label_set: LabelSet) -> bytes:
    """The bytes to store."""
    examples = label_set.examples
    body: dict[str, Any] = {
        "labels": list(label_set.labels),
        "templates": None if label_set.templates is None else list(label_set.templates),
        "template_set": label_set.template_set,
        "multi_label": label_set.multi_label,
        "hierarchy": label_set.tree is not None,
        "abstain": label_set.abstain,
        "temperature": label_set.temperature,
        "alpha": label_set.alpha,
        "beta": label_set.beta,
        "targets": list(examples.targets),
        "vectors": base64.b64encode(examples.vectors_ND.astype("<f4").tobytes()).decode("ascii"),
        "model": label_set.model,
        "encoder": label_set.encoder,
        "updated": label_set.updated,
    }
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({"format": _FORMAT, "sha256": digest, "label_set": body}) + b"\n"


def decode(data: bytes) -> LabelSet:
    """Inverse of `encode`; everything is checked again.

    Raises:
        LabelSetError: damaged, or of another format.
    """
    damaged = LabelSetError("the stored label set is damaged", hint="store it again, or delete it")
    if len(data) > MAX_BYTES:
        raise damaged
    try:
        document = json.loads(data)
        body = document["label_set"]
        if document["format"] != _FORMAT:
            raise LabelSetError("the label set was stored by another version of Diptych")
        if hashlib.sha256(_canonical(body)).hexdigest() != document["sha256"]:
            raise damaged
        checked = check_label_set(
            body["labels"],
            templates=body["templates"],
            template_set=body["template_set"],
            multi_label=body["multi_label"],
            hierarchy=body["hierarchy"],
            abstain=body["abstain"],
            temperature=body["temperature"],
            alpha=body["alpha"],
            beta=body["beta"],
        )
        return _with_examples(checked, body)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error, InputError) as error:
        raise damaged from error


def _with_examples(checked: LabelSet, body: dict[str, Any]) -> LabelSet:
    targets = tuple(int(target) for target in body["targets"])
    flat = np.frombuffer(base64.b64decode(body["vectors"], validate=True), dtype="<f4")
    examples = NO_EXAMPLES
    if targets:
        if not all(0 <= target < len(checked.labels) for target in targets):
            raise ValueError("an example belongs to no label")
        examples = Examples(flat.reshape(len(targets), -1), targets)
    return replace(
        checked,
        examples=examples,
        model=str(body["model"]),
        encoder=str(body["encoder"]),
        updated=str(body["updated"]),
    )
