"""The starter's image tower in ONNX Runtime: what runs it on a CPU, with or without torch.

Twice as fast as torch there (tests/bench/backends.py), and light: the file needs no torch, no timm
and no pickle. Written by `models.encoders.starter.image_graph`, called by the pair.

Shapes: B batch, F channels of the last feature map, H and W cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.devices import cpu_threads
from models.encoder import PreparedImage
from models.encoders.base.backends import onnxruntime
from models.encoders.starter.description import IMAGE_FEATURES, read_checked
from models.encoders.starter.tuned_weights import IMAGE_GRAPH_NAME
from models.errors import ModelError
from models.vectors import Vectors


class ImageSession:
    """Pictures -> 1,280 features, in fp32 on the CPU.

    Args:
        directory: of the pair.
        sha256: of the file in it.

    Raises:
        ModelError: ONNX Runtime is not installed, or the file is missing, another or damaged.
    """

    backend = "onnx"

    def __init__(self, directory: Path, sha256: str) -> None:
        engine = onnxruntime()
        options = engine.SessionOptions()
        options.intra_op_num_threads = cpu_threads()
        # busy waiting would take from the decoders what it gives to the tower
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # planning memory ahead holds 145 MiB more for a batch of 16 and gains no time
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        data = read_checked(directory / IMAGE_GRAPH_NAME, sha256, "image tower")
        self.weights_sha256 = sha256
        try:
            self._session: Any = engine.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own errors have no common base
            raise ModelError(f"{directory / IMAGE_GRAPH_NAME} cannot be run: {error}") from error

    def rows(self, images: Sequence[PreparedImage]) -> Vectors:
        """uint8 [260, 260, 3] each -> float32 [B, 1280]."""
        if not images:
            return np.zeros((0, IMAGE_FEATURES), dtype=np.float32)
        rows_BF: Vectors = self.maps(images).mean(axis=(2, 3))
        return rows_BF

    def maps(self, images: Sequence[PreparedImage]) -> npt.NDArray[np.float32]:
        """float32 [B, 1280, 9, 9]: what the tower says of every place."""
        (map_BFHW,) = self._session.run(None, {"pixels": np.stack(images)})
        found: npt.NDArray[np.float32] = map_BFHW
        return found
