"""A pair that can be trained: its two towers, its scale, and what has to be saved beside them.

Loading goes through the same two files as the encoder's (`openclip_source`, `openclip_build`), so
a pair that cannot be searched with cannot be trained either. Knows no data and no optimiser.

Shapes: B pairs, D embedding, L tokens, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.encoders.base.model_id import ModelId
from models.encoders.base.weights_file import inspect_weights
from models.encoders.open_clip.assembly import build_fresh, build_pair
from models.encoders.open_clip.lookup import find_fresh, find_source
from models.encoders.open_clip.text_tower import TextTower, text_tower
from models.encoders.open_clip.tokens import TextPreparer
from models.errors import ModelError

FRESH_SIGMOID_SCALE = 10.0
FRESH_SIGMOID_BIAS = -10.0
"""Where SigLIP starts (Zhai et al. 2023, section 3.2): nearly every pair of a batch is a negative,
and a bias of 0 would spend the first steps on learning that alone."""


@dataclass(slots=True)
class TrainablePair:
    """An open_clip module in fp32 with all that its directory holds.

    Attributes:
        module: open_clip's CLIP, CustomTextCLIP or CoCa.
        model_cfg: what builds it again, in open_clip's terms.
        preprocess_cfg: its preprocessing, every field stated.
        tokenizer: of its text tower.
        folder: where the tokenizer's files lie; None where they came from the hub.
        weights_sha256: of the file it was loaded from; empty for a fresh pair.
    """

    module: Any
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenizer: TextPreparer
    folder: Path | None
    weights_sha256: str
    _encode_text: TextTower = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # only the positions that count: the padding of 77 would be most of the work
        self._encode_text = text_tower(self.module)

    @property
    def fresh(self) -> bool:
        """Whether nothing was learned yet."""
        return not self.weights_sha256

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of prepared pictures."""
        height, width = self.preprocess_cfg["size"]
        return int(height), int(width)

    def image_rows(self, image_B3HW: Tensor) -> Tensor:
        """Prepared pictures -> unit rows [B, D]."""
        return nn.functional.normalize(self.module.encode_image(image_B3HW).float(), dim=-1)

    def text_rows(self, text_BL: Tensor) -> Tensor:
        """Token ids -> unit rows [B, D]."""
        return nn.functional.normalize(self._encode_text(text_BL).float(), dim=-1)

    @property
    def log_scale(self) -> nn.Parameter:
        """Logarithm of what cosines are multiplied by."""
        scale: nn.Parameter = self.module.logit_scale
        return scale

    @property
    def bias(self) -> nn.Parameter | None:
        """What is added after scaling, of pairs trained with sigmoids."""
        return getattr(self.module, "logit_bias", None)

    def use_bias(self, wanted: bool) -> None:
        """Give the pair a logit bias, or take it away, so that it says how it was trained.

        A pair that is turned into a sigmoid-trained one starts from SigLIP's own scale and bias:
        a softmax does not care about the level of its logits, so the old scale tells nothing.
        """
        if wanted == (self.bias is not None):
            return
        if wanted:
            self.module.logit_bias = nn.Parameter(
                torch.full_like(self.log_scale.detach(), FRESH_SIGMOID_BIAS)
            )
            with torch.no_grad():
                self.log_scale.fill_(FRESH_SIGMOID_SCALE).log_()
            self.model_cfg["init_logit_bias"] = FRESH_SIGMOID_BIAS
        else:
            self.module.logit_bias = None
            self.model_cfg.pop("init_logit_bias", None)


def load_pair(model: ModelId) -> TrainablePair:
    """The pretrained pair an id names, in fp32 on the CPU.

    Raises:
        ModelError: it cannot be found or used, or it is the starter, which has its own trainer.
    """
    if model.kind == "starter":
        raise ModelError("the starter's towers are frozen; its heads have a trainer of their own")
    source = find_source(model)
    weights = inspect_weights(source.weights)
    module, config, preprocess = build_pair(source, weights, torch.float32)
    # as the source spelled it: `config` may hold this machine's paths
    return TrainablePair(
        module=module,
        model_cfg=source.model_cfg,
        preprocess_cfg=preprocess,
        tokenizer=TextPreparer(config["text_cfg"], source.folder),
        folder=source.folder,
        weights_sha256=weights.sha256,
    )


def fresh_pair(name: str, *, seed: int) -> TrainablePair:
    """A pair with random weights; `name` as `models.encoders.open_clip.lookup.find_fresh` takes it.

    Raises:
        ModelError: an unknown architecture, or one that cannot be built.
    """
    source = find_fresh(name)
    module, config, preprocess = build_fresh(source, seed=seed)
    return TrainablePair(
        module=module,
        model_cfg=source.model_cfg,
        preprocess_cfg=preprocess,
        tokenizer=TextPreparer(config["text_cfg"], source.folder),
        folder=source.folder,
        weights_sha256="",
    )
