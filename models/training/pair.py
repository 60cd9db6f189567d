"""What can be trained: two towers, a scale, and all that has to be saved beside them.

`TrainablePair` is what the loop, the checkpoints and the command line know of a model. A family of
models implements it in one file and is named in `family_of`: `models.training.open_clip` for
whatever open_clip loads, `models.training.starter` for the starter's heads and towers.

Shapes: B pairs, M captions (equally many a pair), D embedding; X is whatever a pair's towers take.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from models.devices import resolve_precision
from models.encoder import PreparedText
from models.encoders.base.model_id import STARTER
from models.encoders.registry import is_starter
from models.errors import SourceError
from models.sources.records import Reject, Source
from models.training.config import TrainConfig
from models.training.data import Apart, Held, Kind, Surveyed, hold_back
from models.training.distributed import World
from models.training.losses import InfoNCEObjective, Objective, SigmoidObjective
from models.training.record import Recall, Step

Tower: TypeAlias = Literal["image", "text"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of one rank takes.

    Attributes:
        image_BX: what the image tower takes.
        text_MX: what the text tower takes; each picture's captions lie together, equally many.
        group_B: int64 [B, 1 + K + ...]: what a pair is of (one picture, one class), what each of
            its K captions here says, and what else is said of its picture; or [B], the first of
            these alone. What fits is nobody's negative (see `models.training.losses.fits`).
        keys: which records these are, to be named when something is wrong with them.
        hard_HX: disturbed captions, equally many a pair; None without any.
    """

    image_BX: Tensor
    text_MX: Tensor
    group_B: Tensor
    keys: tuple[str, ...]
    hard_HX: Tensor | None = None


class Measured(Protocol):
    """A validation set."""

    def measure(self) -> Recall:
        """Recall of the pair as it is."""
        ...


@dataclass(frozen=True, slots=True)
class Feed:
    """Sources of one kind, and how many pairs they hold."""

    kind: Kind
    sources: Sequence[Source]
    pairs: int


def feeds_of(
    kinds: Sequence[tuple[Kind, Sequence[Surveyed]]], one_in: int | None
) -> tuple[list[Feed], list[Source], int]:
    """What to train on, the records of the main sources held back, and how many these are.

    Args:
        kinds: sources that were read once, and so counted.
        one_in: hold about one main record of so many back, with all that share a picture or a
            caption with it (see `models.training.data.hold_back`): no pair of any kind that does
            is trained on. None holds back none.
    """
    main = [source for kind, surveyed in kinds if kind == "main" for source in surveyed]
    held = hold_back(main, one_in) if one_in is not None and main else Held()
    feeds: list[Feed] = []
    validation: list[Source] = []
    measured = 0
    for kind, surveyed in kinds:
        sources: list[Source] = [source.source for source in surveyed]
        pairs = sum(source.pairs for source in surveyed)
        if held.pictures:
            out = sum(held.count(kind, source) for source in surveyed)
            pairs -= out
            if kind == "main":
                measured = out
                validation = [Apart(source, kind, held, held_out=True) for source in sources]
            sources = [Apart(source, kind, held, held_out=False) for source in sources]
        if pairs:
            feeds.append(Feed(kind, sources, pairs))
    return feeds, validation, measured


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run goes over.

    Attributes:
        per_epoch: batches of one pass.
        batches: first step -> its batch and those after it, without end; a generator.
        validation: makes the validation set, on rank 0 only; None where there is none.
        described: what became of the sources, for the saved settings.
    """

    per_epoch: int
    batches: Callable[[int], Iterator[Batch]]
    validation: Callable[[], Measured] | None = None
    described: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Watching:
    """Who is told what, as it goes."""

    on_step: Callable[[Step], None] = field(default=lambda _: None)
    on_reject: Callable[[Reject], None] = field(default=lambda _: None)
    on_resume: Callable[[int, int], None] = field(default=lambda *_: None)
    """(step it continues after, steps in all)"""
    on_features: Callable[[str, int, int], None] = field(default=lambda *_: None)
    """(`pictures` or `captions`, done, total), of towers at rest, before the first step"""
    on_note: Callable[[str], None] = field(default=lambda _: None)


class TrainablePair(ABC):
    """A pair of towers that the trainer moves.

    Attributes:
        module: all that learns or may learn, with the scale; its state dict is what is averaged,
            interpolated and kept.
        weights_sha256: of the file it was loaded from; empty for a pair that learned nothing yet.
        checkpoints_load: whether a checkpoint's folder is a pair for `--model local-dir:`.
    """

    module: Any
    weights_sha256: str
    checkpoints_load: bool = False

    @property
    def fresh(self) -> bool:
        """Whether nothing was learned yet."""
        return not self.weights_sha256

    @property
    @abstractmethod
    def kind(self) -> str:
        """Which row of `models.training.config.DEFAULTS` is safe for it."""

    @property
    def holds_back(self) -> bool:
        """Whether a part of the data may be held back to measure on, where nobody said."""
        return True

    @property
    def decodes_first(self) -> bool:
        """Whether every picture is decoded before the first step, and told of if it cannot be."""
        return False

    @abstractmethod
    def image_rows(self, image_BX: Tensor) -> Tensor:
        """Unit rows [B, D]."""

    @abstractmethod
    def text_rows(self, text_MX: Tensor) -> Tensor:
        """Unit rows [M, D]."""

    @abstractmethod
    def prepare_text(self, text: str) -> PreparedText:
        """As its tokenizer does, for what is told of the data."""

    @property
    @abstractmethod
    def log_scale(self) -> nn.Parameter:
        """Logarithm of what cosines are multiplied by."""

    @property
    def bias(self) -> nn.Parameter | None:
        """What is added after scaling, of pairs trained with sigmoids."""
        return None

    def use_bias(self, wanted: bool) -> None:
        """Give the pair a logit bias, or take it away, so that it says how it was trained."""
        assert not wanted, "this family knows InfoNCE only"

    def arithmetic(self, precision: str, device: torch.device) -> str:
        """What `--precision` comes to for the training itself.

        `auto` is what the device multiplies natively on a GPU.

        Raises:
            ModelError: an unknown name.
        """
        # on a CPU the same bits on every machine of a kind are worth more than speed
        if precision == "auto" and device.type != "cuda":
            return "fp32"
        return resolve_precision(precision, device)

    def objective(self, config: TrainConfig) -> Objective:
        """The configured loss around the pair's own scale and bias."""
        if self.bias is not None:
            return SigmoidObjective(self.log_scale, self.bias)
        return InfoNCEObjective(self.log_scale, label_smoothing=config.label_smoothing)

    def choose(self, config: TrainConfig) -> None:
        """Let rest what the settings say does not learn; called once, before the first step."""
        assert config.tune == "full", "this family learns whole"
        self.module.requires_grad_(True)

    def settle(self) -> None:
        """Bring the module into the form that is saved; called once, after the last step."""
        self.module.eval()

    def train_mode(self) -> None:
        """Training mode, but for what would only add noise in it."""
        self.module.train()

    def resting(self) -> set[Tower]:
        """Towers of which nothing learns: run once a batch, without a graph."""
        return set()

    def shares(self, config: TrainConfig) -> Mapping[str, float]:  # noqa: ARG002
        """The share of the learning rate that each parameter that learns moves at."""
        return dict.fromkeys(self.learning(), 1.0)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies.

        Not to what has one dimension or none (norms, biases, gains, the scale), as in CLIP, nor to
        position and class embeddings, as in timm.
        """
        embeds = ("positional_embedding", "pos_embed", "class_embedding", "cls_token", "cls_emb")
        return parameter.ndim > 1 and not name.endswith(embeds)

    def learning(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @abstractmethod
    def prepare(
        self,
        feeds: Sequence[Feed],
        validation: Sequence[Source],
        config: TrainConfig,
        world: World,
        *,
        workers: int,
        watching: Watching,
    ) -> TrainingData:
        """What the sources hold, as batches for its towers; the first feed is what epochs go over.

        Raises:
            SourceError: too few pairs for the batch and ranks, or nothing usable.
        """

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write the pair so that `--model local-dir:` loads it, its description last."""

    @abstractmethod
    def checkpoint(self, directory: Path) -> str:
        """Write the module's exact weights -> the name of their safetensors file."""


def refuse_shares(size: int, world: World) -> None:
    """Raise SourceError where a batch of so many pairs cannot be shared by the processes."""
    if size < 2 or size % world.size:
        raise SourceError(
            f"batches of {size} pairs cannot be shared by {world.size} processes"
            if world.size > 1
            else f"a batch of {size} pairs has nothing to contrast",
            code="too-few-pairs",
            hint=f"--batch-size must be a multiple of {world.size}, with as many pairs in the data",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRequest:
    """Which pair, and how it will be trained.

    Attributes:
        model: an id; of a fresh pair also a bare architecture of open_clip.
        device: where the run computes; towers at rest are run there.
        fresh: random weights, drawn by `seed`.
        precision: of towers at rest; see `TrainablePair.arithmetic` for the others.
        cache: keeps what towers at rest give, between runs.
    """

    model: str
    device: torch.device
    fresh: bool = False
    seed: int = 0
    precision: str = "auto"
    cache: Path | None = None


Family: TypeAlias = Callable[[PairRequest], TrainablePair]


def family_of(model: str) -> Family:
    """What loads a model for training; each family is one file, imported when it is asked for."""
    # a fresh pair's may be a bare architecture, which is no id of a pair
    if model == STARTER or (":" in model and is_starter(model)):
        from models.training.starter import load_starter_pair

        return load_starter_pair
    from models.training.open_clip import load_openclip_pair

    return load_openclip_pair


def load_trainable(request: PairRequest) -> TrainablePair:
    """The pair that is asked for, on the CPU, ready to be trained.

    Raises:
        ModelError: it cannot be found, built or used.
    """
    return family_of(request.model)(request)
