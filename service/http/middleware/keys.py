"""API keys: their form, and the file that stores their digests. Knows nothing of HTTP.

A key reads `dpk_<id>_<secret><check>`: 10 characters that name it, 43 random ones (256 bits), and
6 of CRC-32, by which a scanner of leaked secrets, or a person, can tell a key from anything else.
The file holds its SHA-256 and no secret; a slow hash would add nothing to 256 random bits.

    {"format": 1, "keys": [{"id", "name", "sha256", "scopes", "created", "expires"}]}
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from indexer.files.fs import Fs, open_regular
from models.errors import InputError, KeyFileError, NotFoundError

KeyScope = Literal["read", "write"]
SCOPES: Final[tuple[KeyScope, ...]] = ("read", "write")
MAX_KEYS = 10_000
MAX_KEY_CHARS = 512
_MAX_FILE_BYTES = 8 << 20
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_CHARS, _SECRET_CHARS, _CHECK_CHARS = 10, 43, 6  # 62^43 > 2^256
_KEY = re.compile(r"dpk_(?P<id>[0-9A-Za-z]{10})_[0-9A-Za-z]{43}[0-9A-Za-z]{6}")
# what an unknown key is compared with: nothing hashes to it
_NOBODY = bytes(32)


class StoredKey(BaseModel):
    """What the file keeps of a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z]{10}$")]
    name: Annotated[str, Field(max_length=200)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[KeyScope, ...], Field(min_length=1)]
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    keys: Annotated[list[StoredKey], Field(max_length=MAX_KEYS)] = []


def mint(
    name: str,
    scopes: Sequence[KeyScope] = ("read",),
    *,
    valid_for: timedelta | None = None,
    now: datetime | None = None,
) -> tuple[str, StoredKey]:
    """A new key, and what may be stored of it. The key itself exists nowhere else.

    Raises:
        InputError: no scope, a name over 200 characters, or a validity that is not positive.
    """
    if not scopes:
        raise InputError("a key needs a scope: read, write or both")
    if len(name) > 200 or not name.isprintable():
        raise InputError("a key's name has at most 200 printable characters")
    if valid_for is not None and valid_for <= timedelta(0):
        raise InputError("a key must be valid for some time")
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    identity = "".join(secrets.choice(_DIGITS) for _ in range(_ID_CHARS))
    body = f"dpk_{identity}_" + _base62(secrets.randbits(256), _SECRET_CHARS)
    key = body + _check(body)
    stored = StoredKey(
        id=identity,
        name=name,
        sha256=hashlib.sha256(key.encode()).hexdigest(),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        created=now,
        expires=None if valid_for is None else now + valid_for,
    )
    return key, stored


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    assert number == 0, "the width holds every number given"
    return "".join(reversed(digits))


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_CHARS)


def claimed_id(presented: str) -> str | None:
    """The id in what has the form of a key, whether or not it is one; no secret."""
    match = _KEY.fullmatch(presented)
    return match["id"] if match else None


class KeyRing:
    """Keys in memory, to tell whose a presented one is."""

    def __init__(self, keys: Sequence[StoredKey] = ()) -> None:
        self._by_id = {key.id: (bytes.fromhex(key.sha256), key) for key in keys}

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, presented: str, *, now: datetime | None = None) -> StoredKey | None:
        """The key that was presented, or None: malformed, unknown, wrong or expired.

        All of them cost one hash and one comparison in constant time. The id is no secret; what
        follows it is compared by digest, so that timing tells nothing of how close a guess was.
        """
        claimed = claimed_id(presented)
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()
        wanted, key = self._by_id.get(claimed or "", (_NOBODY, None))
        same = hmac.compare_digest(digest, wanted)
        if key is None or not same or key.expired(now or datetime.now(UTC)):
            return None
        return key


class KeyFile:
    """The file of keys. Every change replaces it whole, for its owner's eyes only (0600)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keys(self) -> list[StoredKey]:
        """In the order they were made; none where there is no file yet.

        Raises:
            KeyFileError: damaged, unreadable, or writable by everybody.
        """
        return [] if not self.path.exists() else self.read()

    def read(self) -> list[StoredKey]:
        """As `keys`, but the file must exist."""
        try:
            with os.fdopen(open_regular(self.path), "rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o002:
                    raise KeyFileError(
                        "everybody may write the key file, and so let themselves in",
                        hint=f"chmod 600 {self.path}",
                    )
                data = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise KeyFileError(
                f"the key file cannot be read: {error.strerror or error}",
                hint="make one with: diptych keys new --file FILE",
            ) from None
        try:
            keys = _Stored.model_validate_json(data).keys
        except ValidationError:
            # without pydantic's message, which quotes the file
            raise KeyFileError(
                "the key file is damaged, or not a key file",
                hint="put a copy back, or remove it and make new keys",
            ) from None
        if len({key.id for key in keys}) != len(keys):
            raise KeyFileError("the key file names a key twice")
        return keys

    def add(self, key: StoredKey) -> None:
        """Raises KeyFileError; StoreError and NoSpaceError of the file system."""
        with self._changing() as keys:
            if len(keys) >= MAX_KEYS:
                raise KeyFileError(f"there are {MAX_KEYS} keys already", hint="revoke some")
            keys.append(key)

    def revoke(self, identity: str) -> StoredKey:
        """Forget the key of an id. Raises NotFoundError; otherwise as `add`."""
        with self._changing() as keys:
            for position, key in enumerate(keys):
                if key.id == identity:
                    return keys.pop(position)
            raise NotFoundError("no key has this id", hint="diptych keys list shows the ids")

    @contextmanager
    def _changing(self) -> Iterator[list[StoredKey]]:
        """The keys, to be changed in place; written when the block ends well."""
        directory = self.path.resolve().parent
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise KeyFileError(f"{directory}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the descriptor
            keys = self.keys()
            yield keys
            document = _Stored(keys=keys).model_dump(mode="json")
            content = json.dumps(document, indent=1).encode() + b"\n"
            fs = _PrivateFs()
            target = self.path.resolve()
            unfinished = directory / f".{target.name}.{secrets.token_hex(8)}.tmp"
            fs.write_file(unfinished, [content])
            fs.rename(unfinished, target)
            fs.sync_dir(directory)
        finally:
            os.close(lock)


class _PrivateFs(Fs):
    def _create(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o600)


class LiveKeys:
    """The keys of a file that may change while they are used: rotation without a restart.

    Looks at the file at most once a second. One that cannot be read lets nobody in: whoever removed
    it may have meant just that. Used by one thread.
    """

    def __init__(
        self,
        file: KeyFile,
        *,
        monotonic: Callable[[], float],
        failed: Callable[[KeyFileError], None],
        every: float = 1.0,
    ) -> None:
        self._file = file
        self._monotonic = monotonic
        self._failed = failed
        self._every = every
        self._seen = self._signature()
        self._ring = KeyRing(file.read())
        self._looked = monotonic()

    def ring(self) -> KeyRing:
        """The keys as of a second ago, or newer."""
        now = self._monotonic()
        if now - self._looked >= self._every:
            self._looked = now
            signature = self._signature()
            if signature != self._seen:
                self._seen = signature
                try:
                    self._ring = KeyRing(self._file.read())
                except KeyFileError as error:
                    self._ring = KeyRing()
                    self._failed(error)
        return self._ring

    def _signature(self) -> tuple[int, ...]:
        try:
            found = self._file.path.stat()
        except OSError:
            return ()
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
