"""The one error tree, which all three packages raise from.

Every failure a user can cause or must act on is one of these; anything else that escapes is a
defect of ours. Each surface translates the tree exactly once: `service/http/middleware/problems.py`
into HTTP problem documents, `service/cli/exits.py` into exit codes. Nothing below `service/` knows
either.

    DiptychError
    ├── InputError              the caller's values are wrong
    │   ├── InvalidTextError    empty, not valid Unicode, too long
    │   ├── InvalidVectorError  wrong dimension, NaN, infinite, zero
    │   ├── InvalidLabelsError  label sets and prompt templates
    │   ├── InvalidFilterError  a search's filter; `where` points into it
    │   ├── NotFoundError       a named item does not exist
    │   │   └── LabelSetNotFoundError
    │   └── UrlError            a picture's address is refused, or gave no picture; see `code`
    ├── LabelSetError           a stored label set cannot be read, used or written; see `code`
    ├── ImageError              a picture was refused; `code` says which rule
    ├── SourceError             a whole source cannot be read (not one record of it)
    ├── ModelError              a model cannot be found, loaded or used
    ├── TrainingError           a training run stopped, or cannot go on; see `code`
    ├── KeyFileError            the file of API keys cannot be read or changed
    ├── OverloadedError         too much is waiting already; later may work
    ├── DeadlineError           the time allowed has passed, or nobody waits any more
    └── StoreError              something about the index directory
        ├── IndexNotFoundError
        ├── IndexCorruptError   damaged or unknown format: `file`, `why`
        ├── EncoderMismatchError  built with another encoder pair
        ├── IndexLockedError    another writer holds it
        └── NoSpaceError        the disk is full; the previous version is intact

`code` is a stable slug for programs, the message is one line for people, and `hint` says what to
do next.
"""

from __future__ import annotations


class DiptychError(Exception):
    """Base of all domain errors: `code` for programs, message for people, `hint` for what next."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code


class InputError(DiptychError):
    code = "invalid-input"


class InvalidTextError(InputError):
    code = "invalid-text"


class InvalidVectorError(InputError):
    code = "invalid-vector"


class InvalidLabelsError(InputError):
    code = "invalid-labels"


class InvalidFilterError(InputError):
    """A filter that cannot be used; `where` is a JSON pointer into it, of our words and numbers."""

    code = "invalid-filter"

    def __init__(self, message: str, *, where: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.where = where


class NotFoundError(InputError):
    code = "not-found"


class LabelSetNotFoundError(NotFoundError):
    code = "label-set-not-found"


class UrlError(InputError):
    """A picture that a caller named by its address. Messages repeat nothing of the address.

    Codes: `url-not-allowed` (by its text alone), `url-fetch-failed` (anything after that: one code
    and one message, so that nobody learns from it what is inside a network).
    """

    code = "url-fetch-failed"


class LabelSetError(DiptychError):
    """A stored label set. Messages name no path and repeat nothing a caller sent.

    Codes: `label-set-damaged`, `label-set-mismatch` (made with another encoder pair),
    `label-sets-full`, `label-sets-read-only`, `label-sets-unwritable` (the disk).
    """

    code = "label-set-damaged"


class ImageError(DiptychError):
    """A picture was refused.

    Codes: `image-undecodable`, `image-format-not-allowed`, `image-too-many-pixels`,
    `image-too-large` (bytes), `image-bad-dimensions`, `image-empty`, `decode-timeout`.
    """

    code = "image-undecodable"


class SourceError(DiptychError):
    code = "source-unreadable"


class ModelError(DiptychError):
    code = "model-unusable"


class TrainingError(DiptychError):
    """A training run.

    Codes: `loss-not-finite` (the loss or a gradient; the last checkpoint is kept),
    `resume-mismatch` (an unfinished run of other settings, data or weights is there already),
    `checkpoint-damaged`, `run-finished`, `run-busy` (another process trains there),
    `weights-not-finite` (nothing was saved), `nothing-to-train` (the way of tuning does not fit the
    pair).
    """

    code = "training-stopped"


class DeadlineError(DiptychError):
    code = "deadline-exceeded"


class OverloadedError(DiptychError):
    """Nothing was begun; the same request may succeed a moment later."""

    code = "overloaded"


class KeyFileError(DiptychError):
    code = "keys-unreadable"


class StoreError(DiptychError):
    code = "index-error"


class StorageError(StoreError):
    """The operating system refused to read or write: I/O error, read-only, no file locks."""


class IndexNotFoundError(StoreError):
    code = "index-not-found"


class IndexCorruptError(StoreError):
    """A file of the index is damaged or of an unknown format; the index is not opened."""

    code = "index-corrupt"

    def __init__(self, file: str, why: str, *, hint: str | None = None) -> None:
        super().__init__(f"{file}: {why}", hint=hint)
        self.file = file
        self.why = why


class EncoderMismatchError(StoreError):
    """The index was built with another encoder pair; its vectors do not compare with ours."""

    code = "encoder-mismatch"


class IndexLockedError(StoreError):
    code = "index-locked"


class NoSpaceError(StoreError):
    code = "no-space"
