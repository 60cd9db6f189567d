"""The image towers that backends.py times, in each engine and arithmetic that could run them.

`starter` and `vit` give the reference modules; `torch_engines`, `onnx_engines` and
`openvino_engines` give functions float32 [B, 3, H, W] -> float32: the ViT's embeddings [B, D], or
the starter's last feature maps [B, F, h, w], from which its own code goes on. What they export and
quantise is kept in a folder. It times nothing and judges nothing.

bf16 and fp16 are left out of ONNX Runtime's: its CPU provider for x86 has next to no kernels in
them, and converts to fp32 around every operation.

Shapes: B batch, D what the tower returns, H and W pixels.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import open_clip
import openvino
import torch
from torch import nn

from models.encoders.open_clip.assembly import in_precision
from models.encoders.starter.pair import load_starter

Array = npt.NDArray[np.float32]
Run = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Tower:
    """`network` is what runs in fp32 and is exported; `shipped` names what Diptych runs."""

    name: str
    network: nn.Module
    side: int
    shipped: str
    transformer: bool


class Maps(nn.Module):
    """timm's network up to its last feature map."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return self.network.forward_features(pixels_B3HW)


def starter() -> Tower:
    maps = Maps(load_starter(precision="fp32", backend="torch")._image_tower()._network).eval()
    return Tower("starter", maps, 260, "torch fp16", transformer=False)


def vit() -> Tower:
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-32")
    pair = open_clip.CLIP(**config).eval().requires_grad_(False)
    return Tower("ViT-B/32", pair.visual, 224, "torch bf16", transformer=True)


def torch_engines(tower: Tower, *, compiled: bool) -> Iterator[tuple[str, Run]]:
    """As Diptych runs them, and what torch could do besides."""
    yield "torch fp32", _plain(tower.network, torch.float32)
    if tower.transformer:
        lower = _vit_in(torch.bfloat16)
        yield "torch bf16", _plain(lower, torch.bfloat16)
        yield "torch fp16", _plain(_vit_in(torch.float16), torch.float16)
        name, make = "bf16", lambda: _plain(torch.compile(lower), torch.bfloat16)
    else:
        shipped = load_starter(precision="fp16", backend="torch")._image_tower()
        lower = Maps(shipped._network).eval()
        half = next(lower.parameters()).dtype == torch.float16
        wrap = (lambda network: _plain(network, torch.float16)) if half else _autocast
        yield "torch fp16", wrap(lower)
        name, make = "fp16", lambda: wrap(torch.compile(lower))
    frozen = _frozen(tower)
    if frozen is not None:
        yield "torch.jit frozen fp32", _plain(frozen, torch.float32)
    if compiled:
        yield f"torch.compile {name}", make()


def _vit_in(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-32")
    pair = open_clip.CLIP(**config, cast_dtype=dtype)
    in_precision(pair, config, dtype)
    return pair.eval().requires_grad_(False).visual


def _frozen(tower: Tower) -> Any:
    example = torch.zeros(2, 3, tower.side, tower.side).to(memory_format=torch.channels_last)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # the fused attention of nn.MultiheadAttention cannot be traced
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            traced = torch.jit.trace(copy.deepcopy(tower.network), example)
            return torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


def _plain(network: Any, dtype: torch.dtype) -> Run:
    @torch.inference_mode()
    def run(images_B3HW: Array) -> Array:
        pixels = torch.from_numpy(images_B3HW).to(dtype, memory_format=torch.channels_last)
        return network(pixels).float().numpy()

    return run


def _autocast(network: Any) -> Run:
    @torch.inference_mode()
    def run(images_B3HW: Array) -> Array:
        pixels = torch.from_numpy(images_B3HW).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.float16):
            return network(pixels).float().numpy()

    return run


def export(tower: Tower, folder: Path) -> Path:
    """The tower as ONNX with a free batch size."""
    path = folder / f"{tower.name.replace('/', '')}.onnx"
    if path.exists():
        return path
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                copy.deepcopy(tower.network),
                (torch.zeros(2, 3, tower.side, tower.side),),
                path.with_suffix(".part"),
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return path.with_suffix(".part").rename(path)


def written(threads: int) -> Run:
    """The starter's tower as `--backend onnx` runs it."""
    session = load_starter(backend="onnx", threads=threads)._image_tower()

    def run(images_B3HW: Array) -> Array:
        pixels_BHW3 = np.rint(images_B3HW * 127.5 + 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
        return session.maps(list(pixels_BHW3))

    return run


def onnx_engines(
    tower: Tower, folder: Path, examples_N3HW: Array, threads: int
) -> Iterator[tuple[str, Run]]:
    whole = export(tower, folder)
    yield "onnxruntime fp32", _session(whole, threads)
    if not tower.transformer:
        yield "--backend onnx", written(threads)
    yield "onnxruntime int8", _session(_onnx_int8(whole, examples_N3HW), threads)


def _session(path: Path, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images_B3HW: session.run(None, {"input": images_B3HW})[0]


def _onnx_int8(whole: Path, examples_N3HW: Array) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(np.split(examples_N3HW, len(examples_N3HW)))

        def get_next(self) -> dict[str, Array] | None:
            one = next(self.left, None)
            return None if one is None else {"input": one}

    path = whole.with_suffix(".int8.onnx")
    if path.exists():
        return path
    ready = whole.with_suffix(".ready.onnx")
    quant_pre_process(whole, ready, skip_symbolic_shape=True)
    part = path.with_suffix(".part")
    quantize_static(
        ready, part, Reader(), per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return part.rename(path)


def openvino_engines(
    tower: Tower, folder: Path, examples_N3HW: Array, threads: int
) -> Iterator[tuple[str, Run]]:
    core = openvino.Core()
    whole = core.read_model(export(tower, folder))
    for name, hint in (("fp32", "f32"), ("bf16", "bf16"), ("fp16", "f16")):
        yield f"openvino {name}", _compiled(core, whole, hint, threads)
    int8 = core.read_model(_openvino_int8(core, tower, folder, examples_N3HW))
    # what is not quantised runs in the faster of the two that keep the ranking
    rest = "bf16" if tower.transformer else "f16"
    yield "openvino int8", _compiled(core, int8, rest, threads)


def _compiled(core: Any, model: Any, hint: str, threads: int) -> Run:
    settings = {
        "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    compiled = core.compile_model(model, "CPU", settings)
    return lambda images_B3HW: np.array(compiled(images_B3HW)[0])


def _openvino_int8(core: Any, tower: Tower, folder: Path, examples_N3HW: Array) -> Path:
    import nncf

    path = folder / f"{tower.name.replace('/', '')}.int8.xml"
    if path.exists():
        return path
    data = nncf.Dataset(np.split(examples_N3HW, len(examples_N3HW)))
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if tower.transformer else {}
    quantised = nncf.quantize(
        core.read_model(export(tower, folder)), data, subset_size=len(examples_N3HW), **kind
    )
    part = folder / "part"
    part.mkdir(exist_ok=True)
    openvino.save_model(quantised, part / path.name)
    (part / path.with_suffix(".bin").name).rename(path.with_suffix(".bin"))
    (part / path.name).rename(path)
    shutil.rmtree(part)
    return path
