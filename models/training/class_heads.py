"""Class heads from labelled, embedded pictures of frozen pairs: a linear one, or an adapter.

`fit_head` is what `diptych train --tune linear|adapter|prompts` calls; it puts these two and
`models.training.learned_prompts` behind one door. Knows no source, file or command.

The linear head is a multinomial logistic regression: Radford et al. 2021 (CLIP), section 3.2 and
appendix A.3: features at rest, L-BFGS, and the strength of the L2 penalty found on a split of the
training pictures alone. The adapter is a residual bottleneck on image features, trained against
fixed class directions: Gao et al. 2021, "CLIP-Adapter: Better Vision-Language Models with Feature
Adapters". Both towers rest, so both work for any encoder pair.

Legend: N pictures, C classes, D embedding, R the bottleneck's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.encoder import Encoder
from models.errors import SourceError, TrainingError
from models.labels.class_head import Adapter, ClassHead, Kind
from models.labels.prompts import check_labels
from models.labels.zeroshot import class_matrix
from models.sources.embedded import Collected
from models.training.open_clip import OpenClipPair
from models.vectors import Vectors

SHARE = 0.2


def held_back(target_N: npt.NDArray[np.int64], *, seed: int = 0) -> npt.NDArray[np.bool_]:
    """True for about a fifth of each class's pictures, drawn by `seed`.

    At least one of two or more; none of a class with a single picture, which is needed to learn it.
    """
    dice = np.random.default_rng(seed)
    held_N: npt.NDArray[np.bool_] = np.zeros(len(target_N), dtype=bool)
    for number in np.unique(target_N):
        members = dice.permutation(np.flatnonzero(target_N == number))
        if len(members) > 1:
            held_N[members[: max(1, round(SHARE * len(members)))]] = True
    return held_N


STRENGTHS: Final = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""Penalties tried, strongest first."""
_TRIAL_STEPS: Final = 100
"""To rank penalties; each starts where the stronger one ended."""
_FALLBACK: Final = 1e-4
"""Where every class has a single picture and nothing can be held back."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Weights, and how they were found.

    Attributes:
        weight_CD, bias_C: float32.
        strength: of the penalty that was chosen.
        held_back: pictures it was chosen on; 0 where it was not chosen.
        tried: accuracy on these, by strength.
    """

    weight_CD: Vectors
    bias_C: npt.NDArray[np.float32]
    strength: float
    held_back: int
    tried: dict[float, float]


def fit_linear(
    image_ND: Vectors, target_N: npt.NDArray[np.int64], classes: int, *, seed: int = 0
) -> LinearHead:
    """Choose the penalty on a held-back fifth, then fit on all pictures.

    Of equally accurate penalties the strongest is taken.
    """
    x_ND = torch.from_numpy(image_ND).double()
    y_N = torch.from_numpy(target_N)
    held_N = torch.from_numpy(held_back(target_N, seed=seed))
    tried: dict[float, float] = {}
    if bool(held_N.any()):
        start = None
        for strength in STRENGTHS:
            start = minimise(
                x_ND[~held_N], y_N[~held_N], classes, strength, start=start, steps=_TRIAL_STEPS
            )
            guess_N = (x_ND[held_N] @ start[0].T + start[1]).argmax(dim=1)
            tried[strength] = float((guess_N == y_N[held_N]).double().mean())
    strength = max(tried, key=lambda one: (tried[one], one)) if tried else _FALLBACK
    weight_CD, bias_C = minimise(x_ND, y_N, classes, strength)
    return LinearHead(
        weight_CD.float().numpy(), bias_C.float().numpy(), strength, int(held_N.sum()), tried
    )


def minimise(
    x_ND: Tensor,
    y_N: Tensor,
    classes: int,
    strength: float,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    steps: int = 300,
) -> tuple[Tensor, Tensor]:
    """The weights [C, D] and bias [C] that minimise

        mean over n of cross_entropy(x[n] @ weight.T + bias, y[n]) + strength / 2 * |weight|^2

    The bias is not penalised. Convex in both, so that there is one minimum, up to a constant in
    the bias.
    """
    if start is None:
        start = x_ND.new_zeros(classes, x_ND.shape[1]), x_ND.new_zeros(classes)
    weight_CD, bias_C = (tensor.clone().requires_grad_() for tensor in start)
    optimiser = torch.optim.LBFGS(
        [weight_CD, bias_C],
        max_iter=steps,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = penalised(x_ND, y_N, weight_CD, bias_C, strength)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight_CD.detach(), bias_C.detach()


def penalised(
    x_ND: Tensor, y_N: Tensor, weight_CD: Tensor, bias_C: Tensor, strength: float
) -> Tensor:
    """What `minimise` minimises."""
    loss = functional.cross_entropy(x_ND @ weight_CD.T + bias_C, y_N)
    return loss + strength / 2 * weight_CD.square().sum()


_REDUCTION: Final = 4
"""D / R, as in the paper."""
_BATCH: Final = 64
_RATE: Final = 2e-3


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """The adapter, and how it was found.

    Attributes:
        epochs: chosen on the held-back pictures.
        held_back: how many these were.
        tried: accuracy on them after each epoch, the zero-shot answer first.
    """

    adapter: Adapter
    epochs: int
    held_back: int
    tried: tuple[float, ...]


def fit_adapter(
    image_ND: Vectors,
    target_N: npt.NDArray[np.int64],
    class_CD: Vectors,
    logit_scale: float,
    *,
    epochs: int = 100,
    seed: int = 0,
) -> TrainedAdapter:
    """Choose how long to train on a held-back fifth, then train so long on all pictures."""
    x_ND, y_N = torch.from_numpy(image_ND).float(), torch.from_numpy(target_N)
    classes = torch.from_numpy(class_CD).float()
    held_N = torch.from_numpy(held_back(target_N, seed=seed))
    tried: list[float] = []
    if bool(held_N.any()):
        for down_RD, up_DR in _epochs(
            x_ND[~held_N], y_N[~held_N], classes, logit_scale, epochs, seed
        ):
            guess_N = (adapted(x_ND[held_N], down_RD, up_DR) @ classes.T).argmax(dim=1)
            tried.append(float((guess_N == y_N[held_N]).double().mean()))
    chosen = int(np.argmax(tried)) if tried else epochs
    *_, (down_RD, up_DR) = _epochs(x_ND, y_N, classes, logit_scale, chosen, seed)
    adapter = Adapter(down_RD.numpy(), up_DR.numpy())
    return TrainedAdapter(adapter, chosen, int(held_N.sum()), tuple(tried))


def adapted(x_ND: Tensor, down_RD: Tensor, up_DR: Tensor) -> Tensor:
    """`models.labels.class_head.Adapter`, with gradients."""
    hidden_NR = functional.relu(x_ND @ down_RD.T)
    return functional.normalize(x_ND + hidden_NR @ up_DR.T, dim=1)


def _epochs(
    x_ND: Tensor, y_N: Tensor, class_CD: Tensor, logit_scale: float, epochs: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights before the first epoch and after each."""
    dice = torch.Generator().manual_seed(seed)
    dim = x_ND.shape[1]
    width = max(1, dim // _REDUCTION)
    bound = dim**-0.5
    down_RD = torch.empty(width, dim).uniform_(-bound, bound, generator=dice).requires_grad_()
    up_DR = torch.zeros(dim, width, requires_grad=True)
    optimiser = torch.optim.AdamW([down_RD, up_DR], lr=_RATE)
    yield down_RD.detach().clone(), up_DR.detach().clone()
    for _ in range(epochs):
        for rows in torch.randperm(len(x_ND), generator=dice).split(_BATCH):  # type: ignore[no-untyped-call]
            optimiser.zero_grad()
            logits = logit_scale * adapted(x_ND[rows], down_RD, up_DR) @ class_CD.T
            functional.cross_entropy(logits, y_N[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        yield down_RD.detach().clone(), up_DR.detach().clone()


KINDS: Final[tuple[Kind, ...]] = ("linear", "adapter", "prompts")


@dataclass(frozen=True, slots=True)
class Tuned:
    """A head and how it came to be.

    Attributes:
        parameters: numbers that learned.
        pictures: learned from.
        held_back: of these, on how many the choice was made.
        chosen: the penalty's strength, or the number of epochs.
        tried: accuracy on what was held back, by what was tried.
    """

    head: ClassHead
    parameters: int
    pictures: int
    held_back: int
    chosen: float
    tried: dict[str, float]


def labelled(collected: Collected) -> tuple[Vectors, npt.NDArray[np.int64], list[str]]:
    """(rows of pictures with a label, the position of each label, the labels in order)

    A picture that comes again with the same label is left out: what is chosen on a part that is
    held back must not have been learned from its twin.

    Raises:
        SourceError: fewer than two labels.
        InvalidLabelsError: a label that cannot be one (see `models.labels.prompts`).
    """
    contents = collected.contents or range(len(collected.labels))
    first: dict[tuple[int, str], int] = {}
    for number, (content, label) in enumerate(zip(contents, collected.labels, strict=True)):
        if label is not None:
            first.setdefault((content, label), number)
    at = list(first.values())
    found = [str(collected.labels[number]).strip() for number in at]
    labels = sorted(set(found))
    if len(labels) < 2:
        raise SourceError(
            f"the source holds {len(labels)} labels; a choice needs two",
            code="no-labels",
            hint="name the field they are in: --label-field label",
        )
    check_labels(labels)
    position = {label: number for number, label in enumerate(labels)}
    target_N = np.array([position[label] for label in found], dtype=np.int64)
    return np.ascontiguousarray(collected.image_ND[at]), target_N, labels


def fit_head(
    kind: Kind,
    encoder: Encoder,
    collected: Collected,
    *,
    templates: Sequence[str],
    pair: Callable[[], OpenClipPair] | None = None,
    epochs: int | None = None,
    seed: int = 0,
) -> Tuned:
    """Learn to tell the labels of a source apart.

    Args:
        encoder: what embedded it.
        templates: prompts of the class directions that an adapter is trained against.
        pair: loads the same pair as a module; needed for prompts only.
        epochs: at most so many, of adapters and prompts.

    Raises:
        SourceError, InvalidLabelsError: see `labelled`.
        TrainingError: the pair's text tower takes no learned prompts; `weights-not-finite`.
    """
    image_ND, target_N, labels = labelled(collected)
    adapter: Adapter | None = None
    bias_C: npt.NDArray[np.float32] = np.zeros(len(labels), dtype=np.float32)
    scale = encoder.logit_scale
    limit: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    if kind == "linear":
        from models.training.class_heads import fit_linear

        linear = fit_linear(image_ND, target_N, len(labels), seed=seed)
        weight_CD, bias_C, scale = linear.weight_CD, linear.bias_C, 1.0
        parameters, chosen = weight_CD.size + bias_C.size, linear.strength
        held, tried = linear.held_back, {f"{key:.0e}": one for key, one in linear.tried.items()}
    elif kind == "adapter":
        from models.training.class_heads import fit_adapter

        weight_CD = class_matrix(encoder, labels, templates)
        trained = fit_adapter(image_ND, target_N, weight_CD, scale, seed=seed, **limit)
        adapter = trained.adapter
        parameters, chosen = adapter.down_RD.size + adapter.up_DR.size, float(trained.epochs)
        held, tried = trained.held_back, _numbered(trained.tried)
    else:
        from models.training.learned_prompts import learn_prompts

        assert pair is not None, "learned prompts need the pair as a module"
        learned = learn_prompts(pair(), image_ND, target_N, labels, seed=seed, **limit)
        weight_CD = learned.class_CD
        parameters, chosen = learned.context * learned.width, float(learned.epochs)
        held, tried = learned.held_back, _numbered(learned.tried)
    if not (np.isfinite(weight_CD).all() and np.isfinite(bias_C).all() and np.isfinite(chosen)):
        raise TrainingError(
            "what the head learned is not finite, so there is none",
            code="weights-not-finite",
            hint="look at the pictures and labels: diptych data report",
        )
    head = ClassHead(
        kind=kind,
        labels=tuple(labels),
        weight_CD=weight_CD,
        bias_C=bias_C,
        scale=scale,
        adapter=adapter,
        model=encoder.fingerprint.model,
        encoder=encoder.fingerprint.digest,
    )
    return Tuned(head, int(parameters), len(target_N), held, chosen, tried)


def _numbered(tried: Sequence[float]) -> dict[str, float]:
    return {str(epoch): accuracy for epoch, accuracy in enumerate(tried)}
