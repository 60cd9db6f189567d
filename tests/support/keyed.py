"""A service that asks for API keys, for tests: two keys, and headers that carry them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from service.http.app import ServiceSettings
from service.http.middleware.auth import Guard, Throttle
from service.http.middleware.keys import KeyFile, LiveKeys, mint


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True, slots=True)
class Keys:
    """A key file with a key that reads, one that reads and writes, one that only writes, and one
    whose time has passed."""

    path: Path
    reader: str
    writer: str
    scribe: str
    expired: str

    @classmethod
    def make(cls, path: Path) -> Keys:
        file = KeyFile(path)
        made = [mint("reader", ("read",)), mint("writer", ("read", "write")), mint("s", ("write",))]
        old, stored = mint("old", ("read", "write"), valid_for=timedelta(hours=1))
        past = {name: getattr(stored, name) - timedelta(days=1) for name in ("created", "expires")}
        made.append((old, stored.model_copy(update=past)))
        for _, one in made:
            file.add(one)
        return cls(path, *(key for key, _ in made))

    def settings(self, *, patient: bool = True, **more: object) -> ServiceSettings:
        """`patient`: failures are not limited, which would hide what is tested."""
        throttle = Throttle(burst=1e9) if patient else Throttle()
        guard = Guard(_live(KeyFile(self.path)), throttle)
        return ServiceSettings(guard=guard, **more)  # type: ignore[arg-type]


def _live(file: KeyFile) -> LiveKeys:
    return Guard.of(file).keys
