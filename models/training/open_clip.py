"""open_clip's pairs in training: pixels and tokens in, a folder in open_clip's own layout out.

    open_clip_config.json, open_clip_model.safetensors, and the tokenizer's files where it has any

`--model local-dir:DIR` and open_clip itself load it. Loading goes through the same two files as the
encoder's (`models.encoders.open_clip.lookup` and `assembly`), so a pair that cannot be searched
with cannot be trained either. Made by `models.training.pair.load_trainable`.

Shapes: B pairs, D embedding, L tokens, N pictures, M captions, H and W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.atomic import replace_file
from models.encoder import PreparedImage, PreparedText
from models.encoders.base.model_id import ModelId, parse_model_id
from models.encoders.base.weights_file import WEIGHTS_NAME, inspect_weights
from models.encoders.open_clip.assembly import build_fresh, build_pair, transform
from models.encoders.open_clip.lookup import CONFIG_NAME, find_fresh, find_source
from models.encoders.open_clip.text_tower import TextTower, text_tower
from models.encoders.open_clip.tokens import TextPreparer
from models.errors import ModelError, SourceError
from models.sources.embedded import Ready, prepare_rows
from models.sources.fields import group_of
from models.sources.records import Reject, Source
from models.training.config import TrainConfig
from models.training.data import Mix, Shuffled, Stream, usable
from models.training.distributed import World
from models.training.pair import (
    Batch,
    Feed,
    PairRequest,
    Tower,
    TrainablePair,
    TrainingData,
    Watching,
    refuse_shares,
)
from models.training.record import Recall, recall_of
from models.training.samples import Augmentation, Augmenter, Preparer, load_batches
from models.training.tuning import attach_lora, frozen_towers, lock, merge_lora, places
from models.vectors import Vectors

FRESH_SIGMOID_SCALE: Final = 10.0
FRESH_SIGMOID_BIAS: Final = -10.0
"""Where SigLIP starts (Zhai et al. 2023, section 3.2): nearly every pair of a batch is a negative,
and a bias of 0 would spend the first steps on learning that alone."""
KEPT_BYTES: Final = 1024**3
"""Prepared pictures of a validation set that are kept."""
_BATCH: Final = 64
_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model",
    # the configuration of a Hugging Face text tower
    "config.json",
)  # fmt: skip
_PREPROCESS: Final = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass
class OpenClipPair(TrainablePair):
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
    _mean_std: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        # only the positions that count: the padding of 77 would be most of the work
        self._encode_text = text_tower(self.module)

    @property
    def kind(self) -> str:
        return "fresh" if self.fresh else "fine-tuning"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of prepared pictures."""
        height, width = self.preprocess_cfg["size"]
        return int(height), int(width)

    def image_rows(self, image_B3HW: Tensor) -> Tensor:
        """Unit rows [B, D] of prepared pictures, or of bytes that are not yet normalised."""
        if image_B3HW.dtype == torch.uint8:
            image_B3HW = self._normalised(image_B3HW)
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

    def prepare_text(self, text: str) -> PreparedText:
        return self.tokenizer(text)

    def choose(self, config: TrainConfig) -> None:
        if config.tune == "lora":
            locked = {"image": config.lock_image, "text": config.lock_text}
            towers = [tower for tower, rests in locked.items() if not rests]
            attach_lora(self.module, rank=config.lora_rank, towers=towers, seed=config.seed)
        else:
            lock(
                self.module,
                image=config.lock_image,
                text=config.lock_text,
                unlock_blocks=config.unlock_blocks,
            )
        if config.grad_checkpointing:
            self.module.set_grad_checkpointing(True)
        # updates of low rank are merged at the end only: until then it is no pair by itself
        self.checkpoints_load = config.tune != "lora"

    def settle(self) -> None:
        merge_lora(self.module)
        super().settle()

    def train_mode(self) -> None:
        self.module.train()
        for part in self.module.modules():
            # statistics of a few of one's own pictures are worse than those of millions
            if isinstance(part, _BatchNorm) and not self.fresh:
                part.eval()
        resting = self.resting()
        if "image" in resting:
            self.module.visual.eval()
        if "text" in resting:
            text = getattr(self.module, "text", None) or self.module.transformer
            text.eval()

    def resting(self) -> set[Tower]:
        return frozen_towers(self.module)

    def shares(self, config: TrainConfig) -> Mapping[str, float]:
        where = places(self.module)
        return {
            name: 1.0 if where[name].tower == "both" else config.layer_decay ** where[name].from_top
            for name in self.learning()
        }

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
        mix = make_mix(feeds, config, world)
        augmentation = Augmentation(crop=(config.crop, 1.0), flip=config.flip, colour=config.colour)
        preparer = Preparer(
            Augmenter(self.preprocess_cfg, augmentation),
            self.tokenizer,
            hard_negatives=config.hard_negatives,
        )
        own = mix.size // world.size
        mine = slice(world.rank * own, (world.rank + 1) * own)

        def batches(first: int) -> Iterator[Batch]:
            return load_batches(
                (batch[mine] for batch in mix.batches(first)),
                preparer,
                workers=workers,
                processes=world.device.type != "cpu",
                on_reject=watching.on_reject,
            )

        def measured() -> StreamedValidation:
            found = StreamedValidation(validation, self, world.device)
            for reject in found.rejects:
                watching.on_reject(reject)
            return found

        return TrainingData(mix.per_epoch, batches, measured if validation else None)

    def save(self, directory: Path) -> None:
        from safetensors.torch import save

        directory.mkdir(parents=True, exist_ok=True)
        # a copy each: safetensors refuses tensors that share memory
        copied = {
            name: value.detach().cpu().contiguous().clone()
            for name, value in self.module.state_dict().items()
        }
        replace_file(directory / WEIGHTS_NAME, save(copied))
        self._save_tokenizer(directory)
        text = json.dumps(self.description(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        replace_file(directory / CONFIG_NAME, text.encode())

    def checkpoint(self, directory: Path) -> str:
        """The pair itself: it is kept in full precision anyway, and can be tried out."""
        self.save(directory)
        return WEIGHTS_NAME

    def description(self) -> dict[str, Any]:
        """What `open_clip_config.json` says of the pair."""
        preprocess = {key: self.preprocess_cfg[key] for key in _PREPROCESS}
        return {"model_cfg": self.model_cfg, "preprocess_cfg": preprocess}

    def _save_tokenizer(self, directory: Path) -> None:
        if self.folder is not None:
            for name in _TOKENIZER_FILES:
                source = self.folder / name
                if source.is_file() and source.resolve() != (directory / name).resolve():
                    replace_file(directory / name, source.read_bytes())
            return
        self.tokenizer.save_files(directory)
        if name := self.model_cfg["text_cfg"].get("hf_model_name"):
            assert name
            self.module.text.config.save_pretrained(str(directory))

    def _normalised(self, image_B3HW: Tensor) -> Tensor:
        """What the encoder's own transform does after resizing, to the bit."""
        if self._mean_std is None or self._mean_std[0].device != image_B3HW.device:
            mean, std = (
                torch.tensor(self.preprocess_cfg[key], device=image_B3HW.device).view(1, 3, 1, 1)
                for key in ("mean", "std")
            )
            self._mean_std = mean, std
        mean_1311, std_1311 = self._mean_std
        return image_B3HW.float().div_(255).sub_(mean_1311).div_(std_1311)


def load_openclip_pair(request: PairRequest) -> OpenClipPair:
    """See `models.training.pair.load_trainable`; nothing of it rests, so nothing is kept."""
    if request.fresh:
        return fresh_pair(request.model, seed=request.seed)
    return load_pair(parse_model_id(request.model))


def load_pair(model: ModelId) -> OpenClipPair:
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
    return OpenClipPair(
        module=module,
        model_cfg=source.model_cfg,
        preprocess_cfg=preprocess,
        tokenizer=TextPreparer(config["text_cfg"], source.folder),
        folder=source.folder,
        weights_sha256=weights.sha256,
    )


def fresh_pair(name: str, *, seed: int) -> OpenClipPair:
    """A pair with random weights; `name` as `models.encoders.open_clip.lookup.find_fresh` takes it.

    Raises:
        ModelError: an unknown architecture, or one that cannot be built.
    """
    source = find_fresh(name)
    module, config, preprocess = build_fresh(source, seed=seed)
    return OpenClipPair(
        module=module,
        model_cfg=source.model_cfg,
        preprocess_cfg=preprocess,
        tokenizer=TextPreparer(config["text_cfg"], source.folder),
        folder=source.folder,
        weights_sha256="",
    )


def make_mix(feeds: Sequence[Feed], config: TrainConfig, world: World) -> Mix:
    """The composition of every batch.

    Raises:
        SourceError: fewer pairs than ranks, or a batch of a single pair.
    """
    shares = {"extra": config.extra_share, "class": config.class_share}
    streams = [
        Stream(
            feed.kind,
            Shuffled(
                feed.sources,
                usable,
                seed=config.seed,
                name=f"{feed.kind}{at}",
                buffer=config.shuffle_buffer,
            ),
            feed.pairs,
            shares.get(feed.kind, 0.0) if at else 0.0,
        )
        for at, feed in enumerate(feeds)
    ]
    mix = Mix(streams, config.batch_size)
    refuse_shares(mix.size, world)
    return mix


class StreamedValidation:
    """Captioned pictures to measure a pair on, again and again.

    On exactly the pixels and tokens that search will use. Pictures of a small set are prepared once
    and kept; a large one is read again each time.

    Args:
        sources: held back from training.
        pair: whose preprocessing and tokenizer are used; its weights are those it has when asked.
        device: where the pair is.

    Raises:
        SourceError: `no-captions`.
    """

    def __init__(self, sources: Sequence[Source], pair: OpenClipPair, device: torch.device) -> None:
        self._sources = sources
        self._pair = pair
        self._device = device
        self._transform: Any = transform(pair.preprocess_cfg)
        self._kept: list[PreparedImage] | None = []
        self._captions: list[tuple[int, str, PreparedText]] = []
        self._contents: list[int] = []
        self.rejects: list[Reject] = []
        self.pictures = 0
        size = 0
        for picture in self._read():
            self.pictures += 1
            size += picture.nbytes
            if self._kept is not None:
                self._kept.append(picture)
                if size > KEPT_BYTES:
                    self._kept = None
        if not self._captions:
            raise SourceError(
                "the validation set holds no picture with a caption",
                code="no-captions",
                hint="name the field they are in (--text-field), or --val none",
            )

    @torch.inference_mode()
    def measure(self) -> Recall:
        """Recall@1/5/10 both ways, for each language on the pictures that have captions in it."""
        with _evaluating(self._pair.module):
            image_ND = self._embed(iter(self._kept or self._read()), self._image_rows)
            texts = {
                language: self._texts(language)
                for language in sorted({language for _, language, _ in self._captions})
            }
        return recall_of(image_ND, texts, contents=self._contents)

    def _texts(self, language: str) -> tuple[Vectors, list[int]]:
        rows = [(owner, text) for owner, tag, text in self._captions if tag == language]
        text_MD = self._embed((text.tokens for _, text in rows), self._text_rows)
        return text_MD, [owner for owner, _ in rows]

    def _read(self) -> Iterator[PreparedImage]:
        """The pictures in order; the first time, captions and rejects are noted too."""
        first, owner = not self._captions, 0
        for source in self._sources:
            for ready in prepare_rows(source, self._prepare, source=source.name):
                if isinstance(ready, Reject):
                    if first:
                        self.rejects.append(ready)
                    continue
                picture = ready[1]
                if picture is None or not ready[0].texts:
                    continue
                if first:
                    self._note(owner, ready)
                owner += 1
                yield picture

    def _note(self, owner: int, ready: Ready) -> None:
        assert ready[0].image is not None
        self._contents.append(group_of(ready[0].image))
        for language, texts in ready[0].texts.items():
            for text in texts:
                self._captions.append((owner, language, self._pair.tokenizer(text)))

    def _prepare(self, image: Any) -> PreparedImage:
        pixels: Vectors = self._transform(image).numpy()
        return pixels

    def _embed(self, rows: Iterator[Any], encode: Callable[[Tensor], Tensor]) -> Vectors:
        found: list[Vectors] = []
        batch: list[Any] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                found.append(encode(torch.from_numpy(np.stack(batch))).cpu().numpy())
                batch = []
        if batch:
            found.append(encode(torch.from_numpy(np.stack(batch))).cpu().numpy())
        return np.concatenate(found)

    def _image_rows(self, image_B3HW: Tensor) -> Tensor:
        return self._pair.image_rows(image_B3HW.to(self._device))

    def _text_rows(self, text_BL: Tensor) -> Tensor:
        return self._pair.text_rows(text_BL.to(self._device))


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)
