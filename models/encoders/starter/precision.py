"""Which arithmetic keeps the starter's ranking, and which of those is fastest where.

Measured on 192 photographs, embeddings against fp32's: fp16 stays above a cosine of 0.9999; in
bf16 a third fall below 0.999 and the worst to 0.978, because its 8 bits of mantissa move the
classifier's logits by a tenth and the concepts' softmax is sharp. So bf16, the usual choice, is not
offered here.
"""

from __future__ import annotations

import torch

from models.devices import resolve_precision
from models.errors import ModelError


def starter_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The image tower's arithmetic for `auto`, `fp32` or `fp16`.

    `auto` is fp16 on CUDA and on CPUs that multiply it natively (half the time of fp32), fp32
    elsewhere.

    Raises:
        ModelError: bf16, or an unknown name.
    """
    if precision == "auto":
        native = device.type == "cuda" or (device.type == "cpu" and _cpu_multiplies_fp16())
        return torch.float16 if native else torch.float32
    name = resolve_precision(precision, device)
    if name == "bf16":
        raise ModelError(
            "the starter pair does not keep its ranking in bf16",
            code="precision-not-supported",
            hint="use --precision auto, fp32 or fp16",
        )
    return torch.float16 if name == "fp16" else torch.float32


def _cpu_multiplies_fp16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_fp16") or capabilities.get("avx512_fp16"))
