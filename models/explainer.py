"""The `Explainer` protocol: which part of a picture answers to a text. Called by the engine.

A map says where the evidence lies, not how strong it is: 0 is the place that answers least, 1 the
one that answers most, within one picture. Three methods, chosen by what the image tower is made of:

- `local-head`: each cell of a convolutional tower's last feature map goes through the head as if
  it were the whole picture, and is compared with the text (dense features, as MaskCLIP takes them
  from attention pooling; Zhou et al. 2022, arXiv:2112.01071).
- `grad-cam`: the last feature map of a convolutional tower, weighted by the gradient of the cosine
  (Selvaraju et al. 2017, arXiv:1610.02391), per cell.
- `legrad`: in a transformer, the positive gradient of the cosine with respect to the last block's
  attention, summed over queries and heads (Bousselham et al. 2024, arXiv:2404.03214).

This file holds the protocol and the torch-free parts; `models.encoders.open_clip.heat_maps` and the
starter implement it. It knows nothing of pictures' files, rendering or HTTP.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from models.encoder import PreparedImage
from models.errors import ModelError
from models.vectors import Vectors

RelevanceMap: TypeAlias = npt.NDArray[np.float32]
"""float32 [H, W], 0..1, row 0 at the top; covers what the tower sees of the picture."""
Area: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; beyond the picture where the tower sees padding."""


@runtime_checkable
class Explainer(Protocol):
    """An `Encoder` that can also explain; called from one thread at a time, like `embed_*`."""

    @property
    def explanation_method(self) -> str:
        """`local-head`, `grad-cam` or `legrad`."""
        ...

    def explained_area(self, width: int, height: int) -> Area:
        """The part of a picture of this size that the tower sees, and a map covers."""
        ...

    def relevance_map(self, image: PreparedImage, direction_D: Vectors) -> RelevanceMap:
        """Where one prepared picture answers to a direction of the shared space.

        Args:
            image: as `prepare_image` returns it.
            direction_D: float32 [D], usually a text's embedding; of any length but zero.

        Returns:
            float32 [H, W] in 0..1 at the tower's own resolution (the starter's is 9 x 9, a ViT's
            that of its patches); all zeros where nothing answers more than anything else.

        Raises:
            ModelError: code `cannot-explain`, if this architecture has no method.
        """
        ...


def seen_area(width: int, height: int, *, resize: str) -> Area:
    """What a square input shows of a picture, after open_clip's ways to make it square.

    `squash` shows all of it, `shortest` the square in its middle, `longest` all of it and padding.
    """
    if resize == "squash":
        return 0.0, 0.0, float(width), float(height)
    side = min(width, height) if resize == "shortest" else max(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def cannot_explain(why: str) -> ModelError:
    """The error of a model that has no method."""
    return ModelError(f"this model cannot explain its answers: {why}", code="cannot-explain")


def to_unit_range(scores_HW: npt.ArrayLike) -> RelevanceMap:
    """Stretch finite scores to 0..1; a flat map has no place that stands out and becomes zeros.

    Raises:
        ModelError: NaN or infinity.
    """
    scores = np.asarray(scores_HW, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ModelError("the explanation holds NaN or infinity")
    low, high = float(scores.min()), float(scores.max())
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-30):
        return np.zeros(scores.shape, dtype=np.float32)
    stretched: RelevanceMap = ((scores - low) / (high - low)).astype(np.float32)
    return stretched
