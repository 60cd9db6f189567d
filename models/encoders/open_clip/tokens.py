"""Turns texts into the token ids of an open_clip pair, for its encoder and its training.

Wraps the two kinds open_clip has, CLIP's own byte-pair encoder and Hugging Face tokenizers, and
adds what neither has: a report of truncation, bounded work on huge texts, safety in threads, and a
digest.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.encoder import PreparedText
from models.encoders.base.weights_file import read_json_object
from models.environment import hub_offline
from models.errors import InvalidTextError, ModelError

_CHARACTERS_PER_TOKEN = 16
"""Longer texts are cut before tokenising: byte-pair merging of one endless word takes quadratic
time, and no context holds that much text anyway."""

_ALLOWED_OPTIONS = frozenset({"clean", "strip_sep_token", "language", "additional_special_tokens"})
"""Of `tokenizer_kwargs`; a configuration from elsewhere must not switch on `trust_remote_code`,
point at files, or drop tokens at random."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class TextPreparer:
    """One pair's tokenizer.

    Raises:
        ModelError: from the constructor, when the tokenizer's files or library are missing.
    """

    def __init__(self, text_cfg: Mapping[str, Any], folder: Path | None) -> None:
        options = dict(text_cfg.get("tokenizer_kwargs") or {})
        if unknown := sorted(set(options) - _ALLOWED_OPTIONS):
            raise ModelError(f"tokenizer option {unknown[0]!r} is not supported")
        self.context_length = int(text_cfg.get("context_length", 77))
        self._mode = text_cfg.get("tokenizer_mode") or ""
        self._lock = threading.Lock()
        if name := text_cfg.get("hf_tokenizer_name"):
            self._tokenizer = self._hugging_face(str(name), folder, options)
            self._pad: int | None = self._tokenizer.tokenizer.pad_token_id
            kind = "huggingface"
        else:
            self._tokenizer = _byte_pairs(self.context_length, options)
            self._pad = 0
            kind = "clip-bpe"
        self._hugging = kind == "huggingface"
        self.description = json.dumps(
            {
                "kind": kind,
                "vocabulary": self._vocabulary_digest(),
                "context_length": self.context_length,
                "mode": self._mode,
                "options": options,
            },
            sort_keys=True,
            separators=(",", ":"),
        )

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: all but the lock, of which each has its own."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __call__(self, text: str) -> PreparedText:
        """Tokenise one text -> int64 [L], padded to the context.

        Raises:
            InvalidTextError: not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidTextError("the text is not valid Unicode") from error
        limit = self.context_length * _CHARACTERS_PER_TOKEN
        cut = False
        if len(text) > limit:
            text = " ".join(text.split())  # what every tokenizer here does first
            cut = len(text) > limit
            text = text[:limit]
        with self._lock if self._hugging else _NO_LOCK:  # fast tokenizers are not re-entrant
            tokens_L: npt.NDArray[np.int64] = self._tokenizer([text])[0].numpy()
            truncated = cut or self._was_truncated(text, tokens_L)
        return PreparedText(tokens_L, truncated)

    def save_files(self, folder: Path) -> None:
        """Write a Hugging Face tokenizer's own files; open_clip's tokenizer has none."""
        if self._hugging:
            self._tokenizer.tokenizer.save_pretrained(str(folder))

    def _was_truncated(self, text: str, tokens_L: npt.NDArray[np.int64]) -> bool:
        if self._mode != "clips" and (tokens_L[-2:] == self._pad).all():
            return False  # it fitted; two, because SigLIP's padding is also its end of text
        if self._hugging:
            inner = self._tokenizer.tokenizer
            cleaned = self._tokenizer.clean_fn(text)
            clips = self._mode == "clips"
            ids = inner(cleaned, add_special_tokens=not clips, truncation=False, padding=False)
            return len(ids["input_ids"]) > self.context_length - (3 if clips else 0)
        return len(self._tokenizer.encode(text)) + 2 > self.context_length

    def _hugging_face(self, name: str, folder: Path | None, options: dict[str, Any]) -> Any:
        require_transformers(name)
        source = name
        if folder is not None:
            if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
                raise ModelError(
                    f"{folder} lacks its tokenizer ({' or '.join(_TOKENIZER_FILES)})",
                    hint=f"copy the tokenizer files of {name} into it",
                )
            refuse_remote_code(folder)
            source = str(folder)
        # as weights are: a copy is used without asking the hub, which is asked where there is none
        if folder is None and not hub_offline():
            with suppress(Exception):
                return self._from_copies(source, options, only=True)
        try:
            return self._from_copies(source, options, only=folder is not None)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"the tokenizer {name} cannot be loaded: {reason}") from error

    def _from_copies(self, source: str, options: dict[str, Any], *, only: bool) -> Any:
        from open_clip.tokenizer import HFTokenizer

        return HFTokenizer(
            source,
            context_length=self.context_length,
            tokenizer_mode=self._mode,
            # or transformers would ask on the terminal
            trust_remote_code=False,
            local_files_only=only,
            **options,
        )

    def _vocabulary_digest(self) -> str:
        if not self._hugging:
            content: Any = self._tokenizer.encoder
        elif backend := getattr(self._tokenizer.tokenizer, "backend_tokenizer", None):
            content = json.loads(backend.to_str())
            # the state of the last call, not of the vocabulary
            content.pop("truncation", None)
            content.pop("padding", None)
        else:
            content = self._tokenizer.tokenizer.get_vocab()
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _byte_pairs(context_length: int, options: dict[str, Any]) -> Any:
    from open_clip import SimpleTokenizer

    if options:
        return SimpleTokenizer(context_length=context_length, **options)
    return _plain_byte_pairs(context_length)


@lru_cache(maxsize=4)
def _plain_byte_pairs(context_length: int) -> Any:
    """One for all pairs: reading the merges takes half a second, and it keeps no state but a
    cache of words."""
    from open_clip import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)


def require_transformers(name: str) -> None:
    """Raise a ModelError that says what to install unless `transformers` is there."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"{name} needs the transformers library", hint="pip install 'diptych[hf]'"
        ) from error


def refuse_remote_code(folder: Path) -> None:
    """Raise a ModelError if a configuration in `folder` asks for its own Python code."""
    for file in ("config.json", "tokenizer_config.json"):
        if (folder / file).is_file() and "auto_map" in read_json_object(folder / file):
            raise ModelError(f"{folder / file} asks to run its own code, which is never done")


class _NoLock:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


_NO_LOCK = _NoLock()
