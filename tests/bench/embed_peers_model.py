"""One ViT-B/32 at 256 pixels of random weights for Diptych, clip-retrieval and rclip.

    FOLDER/backends/bin/python tests/bench/embed_peers_model.py FOLDER/embed-model

256 pixels because rclip is made for that tower alone; it takes it as ONNX from its data folder.
rclip's text tower, which indexing does not use but its command loads for the query, is one product
of matrices here: that flatters it. peers_setup.sh runs this.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import open_clip
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]

from backends_engines import Tower, export  # noqa: E402
from peers_model import MEAN, STD  # noqa: E402

NAME = "ViT-B-32-256"
RCLIP = "ViT-B-32-256-datacomp_s34b_b86k"  # the folder where rclip looks


def textual(path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((77, 512)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["input"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["numbers", "weight"], ["output"]),
        ],
        "textual",
        [helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", 77])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 512])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def main() -> None:
    folder = Path(sys.argv[1])
    ours, theirs = folder / "open_clip", folder / "rclip" / RCLIP
    tokens = folder / "rclip" / "tokenizer"
    for made in (ours, theirs, tokens):
        made.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = open_clip.get_model_config(NAME)
    pair = open_clip.CLIP(**config).eval().requires_grad_(False)
    state = {key: value.contiguous() for key, value in pair.state_dict().items()}
    save_file(state, ours / "open_clip_model.safetensors")
    about = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (ours / "open_clip_config.json").write_text(json.dumps(about))
    export(Tower("visual", pair.visual, 256, "", transformer=True), theirs)
    textual(theirs / "textual.onnx")
    vocabulary = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(Path(open_clip.__file__).parent / vocabulary, tokens / vocabulary)


if __name__ == "__main__":
    main()
