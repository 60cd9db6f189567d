"""What the project says of its own modules and files is so: every name of one leads somewhere.

Modules are written with dots (`indexer.files.fs`, `models.errors.InputError`), files with slashes
(`indexer/files/fs.py`). The log and the changelog tell of files as they were called at their time.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "indexer", "service")
HISTORY = {"docs/LOG.md", "CHANGELOG.md"}
REDRAWN = {"ARCHITECTURE.md"}  # while the house is being regrouped; to be checked again after
DOTTED = re.compile(r"(?<![\w./\-])(?:models|indexer|service)(?:\.[A-Za-z_]\w*)+")
SLASHED = re.compile(
    r"(?<![\w./\-{}])((?:models|indexer|service|tests|docs|docker)/[\w./\-]*\.(?:py|md|sh|toml))\b"
)
BARE = re.compile(r"`(\w+\.py)`")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@cache
def texts() -> tuple[Path, ...]:
    found = [
        path
        for folder in (*PACKAGES, "tests", "docs", "docker")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".sh"} and path.is_file()
    ]
    found += [*ROOT.glob("*.md"), *ROOT.glob("*.py"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    return tuple(sorted(path for path in found if name_of(path) not in HISTORY | REDRAWN))


@cache
def file_names() -> frozenset[str]:
    return frozenset(path.name for path in texts())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def defined(path: Path) -> frozenset[str]:
    """Names that stand in a module: what it defines, and what it imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    return frozenset(names)


def leads_somewhere(dotted: str) -> bool:
    """Whether the name is a module's or a package's, or that of something in a module."""
    place, *rest = dotted.split(".")
    path = ROOT / place
    while rest:
        if (path / rest[0] / "__init__.py").is_file():
            path /= rest.pop(0)
            continue
        module = path / f"{rest[0]}.py"
        if module.is_file():
            return len(rest) == 1 or rest[1] in defined(module)
        return rest[0] in defined(path / "__init__.py")
    return True


def prose(path: Path) -> str:
    """What a file says; of a Python file its strings and comments, the rest is mypy's to check."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.NEWLINE, tokenize.NL}
    return "\n".join(token.string for token in tokens if token.type not in code)


def stale(text: str) -> Iterator[str]:
    for name in DOTTED.findall(text):
        if not name.endswith((".json", ".safetensors")) and not leads_somewhere(name):
            yield name
    yield from (name for name in SLASHED.findall(text) if not (ROOT / name).is_file())
    yield from (name for name in BARE.findall(text) if name not in file_names())


def test_names_of_modules_and_files_lead_somewhere() -> None:
    assert len(texts()) > 400
    found = {name_of(path): sorted(set(stale(prose(path)))) for path in texts()}
    assert {path: names for path, names in found.items() if names} == {}


def test_links_of_the_documentation_lead_somewhere() -> None:
    seen, broken = 0, []
    for path in texts():
        if path.suffix == ".md":
            for target in LINK.findall(path.read_text(encoding="utf-8")):
                seen += 1
                if not (path.parent / target).exists():
                    broken.append((name_of(path), target))
    assert seen > 20
    assert broken == []


def test_a_stale_name_would_be_noticed() -> None:
    good = "`models.errors.InputError`, `indexer.files`, `indexer/files/fs.py`, `fs.py`, a.json"
    assert list(stale(good)) == []
    # put together here, so that they are not found in this file
    bad = [
        *("models." + "errors.Nothing", "indexer." + "nowhere", "service." + "engine.none.f"),
        *("indexer/" + "files/none.py", "tests/" + "none.py", "no_such_" + "file.py"),
    ]
    assert list(stale(", ".join([*bad[:-1], f"`{bad[-1]}`"]))) == bad
