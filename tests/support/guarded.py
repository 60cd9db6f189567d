"""A command under strace, and what it did that nobody asked for: connections and files.

strace sees native threads too, which Python's audit hooks do not; it needs no rights beyond those
of a debugger over its own child.
"""

from __future__ import annotations

import compileall
import ipaddress
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_CALLS = (
    "connect,sendto,sendmsg,sendmmsg,open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat"
)
_ADDRESS = re.compile(r'htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
_UNIX = re.compile(r'sa_family=AF_UNIX, sun_path=(@?"[^"]*")')
_FILE = re.compile(r'(?:(?P<at>\w+)(?:<(?P<folder>[^>]*)>)?, )?"(?P<path>(?:[^"\\]|\\.)*)"')


@cache
def why_not() -> str:
    """Why nothing can be watched here; empty where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True
    )
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr[:100]}"


@cache
def _compile() -> None:
    """Write the bytecode of the sources, which whoever imports them first would do under watch."""
    for package in ("models", "indexer", "service"):
        compileall.compile_dir(ROOT / package, quiet=1)


@dataclass
class Guard:
    """Runs commands in an empty home and an empty temporary folder, with no variable that makes
    them think they are in a pipeline.

    Attributes:
        place: where all is kept; `work` in it is the only place that commands may leave files in.
        more: variables that the user has set.
        faults: what they did beside, a line each.
    """

    place: Path
    more: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if reason := why_not():
            pytest.skip(reason)
        _compile()
        for folder in (self.work, self.home, self.temporary):
            folder.mkdir(parents=True)

    @property
    def work(self) -> Path:
        return self.place / "work"

    @property
    def home(self) -> Path:
        return self.place / "home"

    @property
    def temporary(self) -> Path:
        return self.place / "temporary"

    def diptych(self, *arguments: str | Path) -> str:
        """Run one command to its end and give what it printed."""
        return self.python("-m", "service.cli.main", *arguments)

    def python(self, *arguments: str | Path) -> str:
        with self._trace(arguments) as process:
            out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        return out

    @contextmanager
    def serving(self, *arguments: str | Path) -> Iterator[str]:
        """A running `diptych serve`, which is ended by SIGTERM; its address."""
        with self._trace(("-m", "service.cli.main", "serve", *arguments, "--port", "0")) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            try:
                assert line.startswith("Serving"), line + process.communicate()[1]
                yield line.split()[-1]
            finally:
                # strace passes no signals on
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                for child in children.split():
                    subprocess.run(["kill", f"-{signal.SIGTERM.value}", child], check=True)
                process.communicate(timeout=60)

    @contextmanager
    def _trace(self, arguments: Sequence[str | Path]) -> Iterator[subprocess.Popen[str]]:
        traces = self.place / f"traces-{len(list(self.place.iterdir()))}"
        traces.mkdir()
        watch = ["strace", "-ff", "-y", "-qq", "-s", "4096", "-e", "signal=none",
                 "-e", f"trace={_CALLS}", "-o", str(traces / "p"), "--seccomp-bpf"]  # fmt: skip
        process = subprocess.Popen(
            [*watch, sys.executable, *map(str, arguments)],
            cwd=self.work, env=self._environment(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
        written = sorted(traces.iterdir())
        assert written, "nothing was traced"
        for trace in written:
            self.faults += self._beside(trace.read_text(errors="replace").splitlines())
        left = [*self.home.rglob("*"), *self.temporary.rglob("*")]
        self.faults += [f"left {path.relative_to(self.place)}" for path in left]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            **self.more,
        }

    def _beside(self, lines: Sequence[str]) -> Iterator[str]:
        for line in lines:
            call = line.partition("(")[0]
            if call in ("connect", "sendto", "sendmsg", "sendmmsg"):
                yield from (f"{call} to {address}" for address in _foreign(line))
            elif call not in ("open", "openat", "openat2") or re.search(
                r"O_CREAT|O_WRONLY|O_RDWR", line
            ):
                yield from (f"{call} of {path}" for path in self._strange(line))

    def _strange(self, line: str) -> Iterator[Path]:
        """The files that a line is about which lie where nobody named a place."""
        if re.search(r"= -1 E\w+", line):
            return
        for found in _FILE.finditer(line):
            path = Path(found["folder"] or self.work, found["path"])
            if path.is_relative_to("/dev") or path.is_relative_to("/proc"):
                continue
            # a temporary file is nobody's fault once it is gone
            if not any(path.is_relative_to(at) for at in (self.work, self.temporary)):
                yield path


def _foreign(line: str) -> Iterator[str]:
    """Addresses beyond this machine; a name server on it asks others, so its port counts too."""
    for port, address in _ADDRESS.findall(line):
        if port == "53" or not ipaddress.ip_address(address).is_loopback:
            yield f"{address} port {port}"
    for socket in _UNIX.findall(line):
        if "/nscd/" not in socket:  # asked by the C library for names of users as well
            yield socket
