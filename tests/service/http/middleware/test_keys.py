"""API keys: their form, the file, rotation while in use."""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
import subprocess
import sys
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from clocks import Clock

from models.errors import InputError, KeyFileError, NotFoundError
from service.http.middleware.keys import KeyFile, KeyRing, LiveKeys, StoredKey, mint

FORM = re.compile(r"dpk_[0-9A-Za-z]{10}_[0-9A-Za-z]{49}")
DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def well_formed(key: str) -> bool:
    """What a scanner of leaked secrets does: its form, and CRC-32 in base 62."""
    body, check = key[:-6], key[-6:]
    number = 0
    for char in check:
        number = number * 62 + DIGITS.index(char)
    return FORM.fullmatch(key) is not None and number == zlib.crc32(body.encode())


def test_a_key_has_256_random_bits_and_a_checksum() -> None:
    keys = [mint("x")[0] for _ in range(300)]
    assert all(FORM.fullmatch(key) for key in keys)
    assert all(map(well_formed, keys))
    assert len({key[15:-6] for key in keys}) == 300
    assert 62**43 > 2**256
    for position in range(len(keys[0])):
        other = "b" if keys[0][position] == "a" else "a"
        changed = keys[0][:position] + other + keys[0][position + 1 :]
        assert not well_formed(changed), "one changed character is noticed"


def test_only_the_digest_is_stored(file: KeyFile) -> None:
    key, stored = mint("laptop", ("write", "read"))
    file.add(stored)
    written = file.path.read_text()
    secret = key.split("_")[2]
    assert key not in written
    assert not any(secret[at : at + 8] in written for at in range(len(secret) - 8))
    assert hashlib.sha256(key.encode()).hexdigest() in written
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in file.path.parent.iterdir()] == ["keys.json"], "nothing is left over"
    assert file.read() == [stored]
    assert stored.scopes == ("read", "write")


def test_a_ring_finds_exactly_its_keys() -> None:
    made = [mint(str(number)) for number in range(20)]
    ring = KeyRing([stored for _, stored in made])
    for key, stored in made:
        assert ring.find(key) == stored
        assert ring.find(key[:-1] + ("a" if key[-1] != "a" else "b")) is None
        assert ring.find(key + " ") is None
        assert ring.find(key.lower()) is None
    stranger = mint("x")[0]
    for text in (
        stranger,
        "",
        "dpk_",
        "é" * 40,
        "\ud800",
        made[0][0][:14] + stranger[14:],
        "0" * 64,
    ):
        assert ring.find(text) is None


def test_a_key_can_expire() -> None:
    now = datetime.now(UTC)
    key, stored = mint("x", valid_for=timedelta(hours=12), now=now)
    ring = KeyRing([stored])
    assert ring.find(key, now=now + timedelta(hours=11)) == stored
    assert ring.find(key, now=now + timedelta(hours=12)) is None


def test_what_cannot_be_a_key_is_refused() -> None:
    for arguments in (("x", ()), ("x" * 201,), ("a\nb",)):
        with pytest.raises(InputError):
            mint(*arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        mint("x", valid_for=timedelta(0))


def test_revoking(file: KeyFile) -> None:
    keys = [mint(str(number)) for number in range(3)]
    for _, stored in keys:
        file.add(stored)
    assert file.revoke(keys[1][1].id) == keys[1][1]
    assert [key.name for key in file.read()] == ["0", "2"]
    with pytest.raises(NotFoundError):
        file.revoke(keys[1][1].id)
    assert len(file.read()) == 2, "what failed changed nothing"


def test_two_processes_adding_lose_nothing(file: KeyFile) -> None:
    code = (
        "import sys; from pathlib import Path; from service.http.middleware.keys import *\n"
        "for n in range(10): KeyFile(Path(sys.argv[1])).add(mint(str(n))[1])"
    )
    root = Path(__file__).resolve().parents[4]
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(file.path)], cwd=root) for _ in range(2)
    ]
    assert [one.wait(timeout=120) for one in both] == [0, 0]
    assert len(file.read()) == 20


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\x00\xff", b'{"format": 2, "keys": []}', b'{"format": 1, "keys": [{}]}',
     b'{"format": 1, "keys": [], "more": 1}'],
)  # fmt: skip
def test_a_damaged_file_is_refused_without_quoting_it(file: KeyFile, content: bytes) -> None:
    file.path.write_bytes(content)
    with pytest.raises(KeyFileError, match="damaged") as refused:
        file.read()
    assert "format" not in refused.value.message


def test_odd_files_are_refused(file: KeyFile, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        file.read()
    file.add(mint("x")[1])
    file.path.chmod(0o606)
    with pytest.raises(KeyFileError, match="everybody may write"):
        file.read()
    file.path.chmod(0o600)
    twice = json.loads(file.path.read_text())
    twice["keys"] *= 2
    file.path.write_text(json.dumps(twice))
    with pytest.raises(KeyFileError, match="twice"):
        file.read()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KeyFileError):
        KeyFile(tmp_path / "pipe").read()
    with pytest.raises(KeyFileError):
        KeyFile(tmp_path / "nowhere" / "keys.json").add(mint("x")[1])


def test_keys_rotate_while_in_use(file: KeyFile) -> None:
    (old, first), (new, second) = mint("old"), mint("new")
    file.add(first)
    clock, failures = Clock(), list[KeyFileError]()
    live = LiveKeys(file, monotonic=clock, failed=failures.append)

    def accepted() -> list[bool]:
        return [live.ring().find(key) is not None for key in (old, new)]

    assert accepted() == [True, False]
    file.add(second)
    assert accepted() == [True, False], "it looks once a second"
    clock.now += 1.0
    assert accepted() == [True, True], "both, for as long as the change takes"
    file.revoke(first.id)
    clock.now += 1.0
    assert accepted() == [False, True]
    file.path.write_text("nonsense")
    clock.now += 1.0
    assert accepted() == [False, False]
    assert len(failures) == 1
    clock.now += 1.0
    assert accepted() == [False, False]
    assert len(failures) == 1, "one change, one line"
    file.path.unlink()
    clock.now += 1.0
    assert accepted() == [False, False]
    file.add(second)
    clock.now += 1.0
    assert accepted() == [False, True]


def test_the_comparison_is_of_digests_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import service.http.middleware.keys

    seen: list[tuple[int, int]] = []
    real = service.http.middleware.keys.hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(service.http.middleware.keys.hmac, "compare_digest", watched)
    key, stored = mint("x")
    ring = KeyRing([stored])
    for text in (key, mint("y")[0], "nonsense", ""):
        ring.find(text)
    assert seen == [(32, 32)] * 4, "known, unknown, malformed and missing cost the same"
    assert isinstance(stored, StoredKey)
