"""ONNX Runtime instead of torch: the same features, taken where it helps, refused elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

import models.encoders.base.backends
from models.encoders.base.backends import prefer_backend, resolve_backend
from models.encoders.registry import load_encoder
from models.encoders.starter.image_graph import graph
from models.encoders.starter.pair import StarterEncoder, load_starter
from models.errors import ModelError
from models.images.decode import decode_image

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
NAMES = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")


@pytest.fixture(scope="module")
def torch_starter() -> StarterEncoder:
    return load_starter(device="cpu", precision="fp32", backend="torch")


@pytest.fixture(scope="module")
def onnx_starter() -> StarterEncoder:
    return load_starter(device="cpu", backend="onnx")


@pytest.fixture
def preference() -> Iterator[None]:
    yield
    prefer_backend("auto")


def photographs(encoder: StarterEncoder) -> list[np.ndarray]:
    found: list[Image.Image] = [decode_image((PHOTOGRAPHS / name).read_bytes()) for name in NAMES]
    return [encoder.prepare_image(image) for image in found]


def test_the_features_are_those_of_torch(
    torch_starter: StarterEncoder, onnx_starter: StarterEncoder
) -> None:
    """Padding on the wrong side, a lost bound of ReLU6 or an unfolded norm would all show here."""
    pictures = photographs(torch_starter)
    wanted = torch_starter._image_tower().rows(pictures)
    found = onnx_starter._image_tower().rows(pictures)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    cosine_B = (torch_starter.embed_images(pictures) * onnx_starter.embed_images(pictures)).sum(1)
    assert cosine_B.min() > 0.99999


def test_a_row_of_a_batch_is_the_picture_alone(onnx_starter: StarterEncoder) -> None:
    pictures = photographs(onnx_starter)
    together = onnx_starter.embed_images(pictures)
    alone = np.concatenate([onnx_starter.embed_images([picture]) for picture in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert onnx_starter.embed_images([]).shape == (0, onnx_starter.dim)


def test_heat_maps_are_those_of_torch(
    torch_starter: StarterEncoder, onnx_starter: StarterEncoder
) -> None:
    picture = photographs(torch_starter)[0]
    cat_D = torch_starter.embed_texts([torch_starter.prepare_text("a cat")])[0]
    np.testing.assert_allclose(
        onnx_starter.relevance_map(picture, cat_D),
        torch_starter.relevance_map(picture, cat_D),
        atol=1e-3,
    )


def test_indexes_of_either_backend_open_with_the_other(
    torch_starter: StarterEncoder, onnx_starter: StarterEncoder
) -> None:
    assert onnx_starter.fingerprint == torch_starter.fingerprint
    assert (onnx_starter.backend, torch_starter.backend) == ("onnx", "torch")


def test_an_operation_that_is_not_written_is_refused(torch_starter: StarterEncoder) -> None:
    """The control: a network of another kind must not come out as one that is nearly right."""
    from timm import create_model

    swish = create_model("efficientnet_b0", pretrained=False, num_classes=0).eval()
    with pytest.raises(AssertionError, match="not written"):
        graph(swish)


def test_auto_takes_it_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"device": "cpu", "precision": "auto", "supported": True}
    assert resolve_backend("auto", **given) == "onnx"
    assert resolve_backend("auto", **{**given, "precision": "fp32"}) == "onnx"
    assert resolve_backend("torch", **given) == "torch"
    for other in ({"device": "cuda"}, {"precision": "fp16"}, {"supported": False}):
        assert resolve_backend("auto", **{**given, **other}) == "torch"
        with pytest.raises(ModelError) as refused:
            resolve_backend("onnx", **{**given, **other})
        assert refused.value.code == "backend-not-supported"
    monkeypatch.setattr(models.encoders.base.backends, "installed", lambda: False)
    assert resolve_backend("auto", **given) == "torch"
    with pytest.raises(ModelError, match="needs onnxruntime") as missing:
        resolve_backend("onnx", **given)
    assert missing.value.code == "backend-not-installed"
    with pytest.raises(ModelError, match="unknown backend"):
        resolve_backend("tensorrt", **given)


@pytest.mark.usefixtures("preference")
def test_the_preference_of_the_process_holds_where_nothing_is_said() -> None:
    prefer_backend("torch")
    assert resolve_backend(None, device="cpu", precision="auto", supported=True) == "torch"
    assert resolve_backend("onnx", device="cpu", precision="auto", supported=True) == "onnx"
    with pytest.raises(ModelError):
        prefer_backend("cudnn")


@pytest.mark.usefixtures("preference")
def test_other_models_refuse_it_before_they_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="starter pair's image tower"):
        load_encoder(f"local-dir:{tmp_path}", backend="onnx")
