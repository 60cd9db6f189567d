"""`OpenClipEncoder`: a pair in one of open_clip's formats as an `Encoder`; see the registry.

Embeds, and pins down everything that changes an embedding in the fingerprint. Files are found by
`models.encoders.open_clip.lookup` and turned into a module by `models.encoders.open_clip.assembly`;
this file knows nothing of either's layout, nor of indexes.

Shapes: B batch, D embedding, L tokens, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from models.devices import (
    resolve_device,
    resolve_precision,
    set_threads,
    settle_threads,
    torch_dtype,
)
from models.encoder import (
    PREPARED_IMAGE,
    Fingerprint,
    PreparedImage,
    PreparedText,
    check_prepared,
    check_text,
)
from models.encoders.base.weights_file import inspect_weights
from models.encoders.open_clip.assembly import (
    architecture,
    build_pair,
    canonical,
    geometry,
    transform,
)
from models.encoders.open_clip.heat_maps import method_of, relevance_map
from models.encoders.open_clip.lookup import PairSource, find_source
from models.encoders.open_clip.text_tower import text_tower, unturned
from models.encoders.open_clip.tokens import TextPreparer
from models.errors import InvalidVectorError, ModelError
from models.explainer import Area, RelevanceMap, seen_area
from models.images.decode import upright_rgb
from models.images.geometry import Pixels
from models.vectors import Vectors, unit_rows

if TYPE_CHECKING:
    from PIL.Image import Image

    from models.encoders.base.model_id import ModelId


def load_openclip(
    model: ModelId, *, device: str = "auto", precision: str = "auto", threads: int | None = None
) -> OpenClipEncoder:
    """Load the pair an id names. See `models.encoders.registry.load_encoder`."""
    set_threads(threads)
    where = resolve_device(device)
    arithmetic = resolve_precision(precision, where)
    return OpenClipEncoder(model.text, find_source(model), device=where, precision=arithmetic)


class OpenClipEncoder:
    """An `Encoder` around an open_clip model, in evaluation mode on one device.

    Raises:
        ModelError: from the constructor, for configurations or weights that cannot be used.
    """

    def __init__(
        self, name: str, source: PairSource, *, device: torch.device, precision: str
    ) -> None:
        weights = inspect_weights(source.weights)
        pair, config, preprocess = build_pair(source, weights, torch_dtype(precision))
        self.logit_scale = float(pair.logit_scale.detach().exp())
        bias = getattr(pair, "logit_bias", None)
        self.logit_bias: float | None = None if bias is None else float(bias.detach())
        self.parameters = sum(parameter.numel() for parameter in pair.parameters())
        self.precision = precision
        self.device = device
        self.dim = int(config["embed_dim"])
        self._input = torch_dtype(precision)
        pair = pair.to(device).eval().requires_grad_(False)
        self._pair: Any = unturned(pair)
        self._encode_text = text_tower(self._pair)
        self._text = TextPreparer(config["text_cfg"], source.folder)
        self._pixels = transform(preprocess)
        self._resize = str(preprocess["resize_mode"])
        self.geometry = geometry(preprocess)
        self._mean_311, self._std_311 = (
            torch.tensor(preprocess[name], dtype=torch.float32).view(3, 1, 1)
            for name in ("mean", "std")
        )
        self.fingerprint = Fingerprint(
            model=name,
            architecture=architecture(config, type(pair).__name__),
            weights_sha256=weights.sha256,
            preprocessing=canonical(preprocess),
            tokenizer=self._text.description,
            activation="quick_gelu" if config.get("quick_gelu") else "gelu",
            dim=self.dim,
        )

    def prepare_image(self, image: Image) -> PreparedImage:
        """Resize, crop and normalise as the weights were trained -> float32 [3, H, W]."""
        pixels: npt.NDArray[np.float32] = self._pixels(upright_rgb(image)).numpy()
        return pixels

    def finish_image(self, pixels: Pixels) -> PreparedImage:
        """See `models.images.geometry.SplitPreparation`; open_clip's own sequence of operations."""
        image_3HW = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).to(torch.float32).div(255)
        finished: npt.NDArray[np.float32] = (
            image_3HW.sub_(self._mean_311).div_(self._std_311).numpy()
        )
        return finished

    def prepare_text(self, text: str) -> PreparedText:
        """Tokenise -> int64 [L]; `truncated` when the context cut it.

        Raises:
            InvalidTextError: not valid Unicode.
        """
        return self._text(check_text(text))

    @torch.inference_mode()
    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        """Embed prepared pictures -> float32 [B, D], unit rows."""
        check_prepared(images, PREPARED_IMAGE)
        if len(images) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        settle_threads()
        image_B3HW = torch.from_numpy(np.stack(images)).to(self.device, self._input)
        return self._unit(self._pair.encode_image(image_B3HW))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        """Embed prepared texts -> float32 [B, D], unit rows."""
        check_prepared(texts, PreparedText)
        if len(texts) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        settle_threads()
        text_BL = torch.from_numpy(np.stack([text.tokens for text in texts])).to(self.device)
        return self._unit(self._encode_text(text_BL))

    @property
    def explanation_method(self) -> str:
        """See `models.explainer.Explainer`."""
        return method_of(self._pair.visual)

    def explained_area(self, width: int, height: int) -> Area:
        """See `models.explainer.Explainer`."""
        return seen_area(width, height, resize=self._resize)

    def relevance_map(self, image: PreparedImage, direction_D: Vectors) -> RelevanceMap:
        """Where a picture answers to a direction -> float32 [H, W]; one forward pass."""
        image_13HW = torch.from_numpy(np.stack([image])).to(self.device, self._input)
        direction = torch.from_numpy(unit_rows(direction_D[None])[0]).to(self.device)
        return relevance_map(self._pair.visual, image_13HW, direction)

    def _unit(self, rows_BD: torch.Tensor) -> Vectors:
        try:
            return unit_rows(rows_BD.float().cpu().numpy())
        except InvalidVectorError as error:
            raise ModelError(
                f"the model produced no usable vector in {self.precision}: {error}",
                hint="try --precision fp32",
            ) from error
