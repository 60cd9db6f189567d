"""The trainer: it overfits, repeats itself exactly, and refuses what teaches nothing."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Invoked
from fakes import encode, solid
from PIL import Image

from models.encoders.registry import load_encoder
from models.encoders.starter.description import HeadsConfig
from models.encoders.starter.heads import StarterHeads
from models.encoders.starter.image_tower import ImageTower
from models.encoders.starter.text_tower import TextTower
from models.errors import SourceError, TrainingError
from models.images.decode import decode_image
from models.sources import open_source
from models.training.config import TrainConfig
from models.training.distributed import World
from models.training.features.maker import FeatureMaker
from models.training.features.pairs import Pairs, Rehearsal, gather
from models.training.loop import learning_rate
from models.training.losses import InfoNCEObjective, fits, info_nce
from models.training.pair import Watching
from models.training.record import CURVES_NAME, Progress, Result, Step, draw_curves, read_journal
from models.training.run import run_training
from models.training.starter import HERE, FeatureBatches, StarterPair, measure, train_heads

SMALL = HeadsConfig(image_hidden=64, text_hidden=64, image_dropout=0.1)
WORDS = (
    *("apple", "boat", "chair", "door", "eagle", "fire", "glove", "horn"),
    *("iron", "jar", "king", "lamp", "moon", "nut", "oar", "pen"),
)
COLOURS = ["red", "green", "blue", "yellow", "magenta", "cyan", "white", "black"]


def noise(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels))


def shard(path: Path, rows: list[tuple[str, bytes, dict[str, Any]]]) -> str:
    with tarfile.open(path, "w") as archive:
        for key, picture, data in rows:
            for suffix, content in (("png", picture), ("json", json.dumps(data).encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> FeatureMaker:
    return FeatureMaker(ImageTower(), TextTower(), cache=tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """16 pictures without meaning and captions that only training can connect to them."""
    rows = [
        (f"k{at:02d}", noise(at), {"captions": {"en": [f"a {word}"], "de": f"Nummer {at}"}})
        for at, word in enumerate(WORDS)
    ]
    return shard(tmp_path_factory.mktemp("data") / "sixteen.tar", rows)


@pytest.fixture(scope="module")
def pairs(maker: FeatureMaker, sixteen: str) -> Pairs:
    return gather([open_source(sixteen, text_field="captions.en")], maker)[0]


def heads(seed: int = 0) -> StarterHeads:
    torch.manual_seed(seed)
    return StarterHeads(SMALL)


def config_of(**named: Any) -> TrainConfig:
    settings: dict[str, Any] = {"lr": 1e-3, "concept_share": 0.0, "grad_clip": 0.0, "eps": 1e-8}
    return TrainConfig(**(settings | named))


@dataclass
class Learned:
    """How a run in memory came out."""

    heads: StarterHeads
    steps: list[Step]
    progress: Progress


def train(pairs: Pairs, config: TrainConfig, **named: Any) -> Learned:
    trained, steps = heads(), []
    progress = train_heads(StarterPair(trained), pairs, config, on_step=steps.append, **named)
    return Learned(trained, steps, progress)


def changed(change: Callable[..., torch.Tensor]) -> Any:
    """An objective that is something else made of InfoNCE and a batch's rows."""

    class Changed(InfoNCEObjective):
        def forward(self, *rows: torch.Tensor, **named: Any) -> torch.Tensor:
            whole = super().forward
            return change(lambda *rows: whole(*rows, **named), *rows)

    return lambda pair, _: Changed(pair.log_scale)


def overfit(pairs: Pairs, **named: Any) -> Learned:
    config = config_of(epochs=150, batch_size=16, lr=2e-3, eval_every=150)
    return train(pairs, config, validation=pairs, **named)


def test_sixteen_pairs_are_learned_by_heart(pairs: Pairs) -> None:
    result = overfit(pairs)
    assert len(result.steps) <= 200
    validations = result.progress.validations
    before, after = validations[0][1]["en"], validations[-1][1]["en"]
    assert before["image_retrieval_recall@1"] < 0.5
    assert after["image_retrieval_recall@1"] == 1.0
    assert after["text_retrieval_recall@1"] == 1.0
    assert result.steps[-1].loss < 0.1 < 1.0 < result.steps[0].loss


def test_a_loss_with_shuffled_targets_does_not_pass_that_test(pairs: Pairs) -> None:
    # a fixed wrong target would be learned by heart as well: the wrong one changes each step
    shuffled = changed(
        lambda loss, image_BD, text_BD: loss(image_BD, text_BD[torch.randperm(len(text_BD))])
    )
    after = overfit(pairs, make_objective=shuffled).progress.validations[-1][1]["en"]
    assert after["image_retrieval_recall@1"] < 0.6


def test_two_runs_give_the_same_bits_and_another_seed_does_not(
    maker: FeatureMaker, pairs: Pairs
) -> None:
    rehearsal = Rehearsal(pairs.image_NF, maker)

    def bits(seed: int) -> list[bytes]:
        config = config_of(epochs=5, batch_size=8, concept_share=0.5, seed=seed)
        result = train(pairs, config, rehearsal=rehearsal)
        return [value.numpy().tobytes() for value in result.heads.state_dict().values()]

    assert bits(3) == bits(3)
    assert bits(3) != bits(4)


def test_the_best_epoch_is_kept_when_asked(pairs: Pairs) -> None:
    # a rate so high that it only gets worse
    config = config_of(epochs=4, batch_size=16, lr=0.5, keep="best")
    result = train(pairs, config, validation=pairs)
    progress = result.progress
    kept = dict(progress.validations)[progress.best_step or progress.step]
    assert measure(result.heads, pairs) == kept
    assert len(progress.validations[1:]) == 4


def test_several_captions_a_step_are_the_mean_of_their_losses(pairs: Pairs) -> None:
    config = config_of(epochs=1, batch_size=16, captions=3)
    pair = StarterPair(heads().eval())
    batch = next(iter(pair.over(pairs, config).batches(0)))
    assert len(batch.text_MX) == 3 * len(batch.image_BX)
    scale = pair.log_scale.exp()
    image_BD = pair.image_rows(batch.image_BX)
    text_BKD = pair.text_rows(batch.text_MX).view(16, 3, -1)
    by_hand = [
        info_nce(
            image_BD,
            text_BKD[:, at],
            scale,
            group_B=torch.cat([batch.group_B[:, [0, 1 + at]], batch.group_B[:, 1:]], dim=1),
        ).item()
        for at in range(3)
    ]
    pair.train_mode = pair.module.eval  # type: ignore[method-assign]  # without dropout
    steps: list[Step] = []
    train_heads(pair, pairs, config, on_step=steps.append)
    assert steps[0].loss == pytest.approx(float(np.mean(by_hand)), rel=1e-5)


class AtHand(StarterPair):
    """A pair whose features are there already, whatever sources it is given."""

    def __init__(self, trained: StarterHeads, pairs: Pairs) -> None:
        super().__init__(trained)
        self._pairs = pairs

    def prepare(self, *given: Any, **_: Any) -> Any:
        return self.over(self._pairs, given[2], given[3], validation=self._pairs)


def run_files(
    trained: StarterHeads, pairs: Pairs, config: TrainConfig, out: Path, **named: Any
) -> Result:
    world = World(0, 1, torch.device("cpu"))
    pair = AtHand(trained, pairs)
    result = run_training(pair, [], config, world, out, identity={}, report={}, **named)
    assert result is not None
    return result


def test_a_run_cut_off_ends_with_the_same_bits_as_one_that_was_not(
    pairs: Pairs, tmp_path: Path
) -> None:
    config = config_of(epochs=6, batch_size=8, lr=2e-3, ema=0.5, keep="best")

    def run_it(out: Path, stop_at: int = 0) -> Result:
        def unplug(step: Step) -> None:
            if step.step == stop_at:
                raise KeyboardInterrupt

        return run_files(heads(), pairs, config, out, watching=Watching(on_step=unplug))

    whole = run_it(tmp_path / "whole")
    for stop_at in (3, 8, 9):  # in an epoch, at the end of one, right after it
        with pytest.raises(KeyboardInterrupt):
            run_it(tmp_path / "broken", stop_at)
    broken = run_it(tmp_path / "broken")
    for name in ("heads.safetensors", "metrics.jsonl"):
        one, two = ((tmp_path / out / name).read_bytes() for out in ("whole", "broken"))
        if name == "metrics.jsonl":  # all the same but for how fast it was
            one, two = (re.sub(rb'"pairs_per_second": [0-9.]+', b"", data) for data in (one, two))
        assert one == two
    assert replace(broken, seconds=0) == replace(whole, seconds=0)
    assert not (tmp_path / "broken" / "training").exists()


def test_heads_that_only_get_worse_are_given_back_as_they_were(
    pairs: Pairs, tmp_path: Path
) -> None:
    start = overfit(pairs).heads
    before = {name: value.clone() for name, value in start.state_dict().items()}
    config = config_of(epochs=20, batch_size=16, lr=0.5, keep="best", patience=2, interpolate="val")
    result = run_files(start, pairs, config, tmp_path)
    measured = [line for line in read_journal(tmp_path) if "validation" in line]
    assert len(measured) <= 1 + 4  # patience, after at most two better epochs
    assert result.after is not None
    assert result.after["en"]["image_retrieval_recall@1"] == 1.0
    assert result.interpolation < 1.0
    assert set(before) == set(start.state_dict())


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_heads(pairs: Pairs) -> None:
    calls = 0

    def poisoned(loss: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss(*rows) * (float("inf") if calls == 3 else 1.0)

    trained = heads()
    config = config_of(epochs=3, batch_size=8)
    with pytest.raises(TrainingError, match="step 3: the loss is not finite; its batch was k"):
        train_heads(StarterPair(trained), pairs, config, make_objective=changed(poisoned))
    assert all(bool(value.isfinite().all()) for value in trained.state_dict().values())


def test_four_pictures_and_two_epochs_do_not_ruin_the_starter(tmp_path: Path) -> None:
    names = ("red", "green", "blue", "yellow")
    rows = [(name, solid(name), {"caption": f"the colour {name}"}) for name in names]
    data, out = shard(tmp_path / "four.tar", rows), str(tmp_path / "out")
    before = torch.get_num_threads()
    try:
        result = run("--data", data, "--epochs", "2", "--threads", "1", "--out", out)
    finally:
        torch.set_num_threads(before)
    assert result.exception is None, result.output

    def found(model: str) -> list[bool]:
        encoder = load_encoder(model, device="cpu", precision="fp32")
        pictures = [decode_image(solid(name)) for name in names]
        image_ND = encoder.embed_images([encoder.prepare_image(one) for one in pictures])
        texts = [encoder.prepare_text(f"the colour {name}") for name in names]
        best = (encoder.embed_texts(texts) @ image_ND.T).argmax(axis=1)
        return [bool(at == own) for own, at in enumerate(best)]

    assert sum(found(f"local-dir:{out}")) >= sum(found("starter"))


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate(step, steps=50, peak=1.0, warmup=0.2) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01


def test_languages_have_the_same_chance_however_many_captions(
    maker: FeatureMaker, tmp_path: Path
) -> None:
    rows = [
        (
            f"k{at}",
            noise(at),
            {"captions": {"en": [f"{word} {at}" for word in "abcdefgh"], "de": "x"}},
        )
        for at in range(2)
    ]
    pairs, report = gather([open_source(shard(tmp_path / "a.tar", rows))], maker)
    assert report.captions == {"en": 16, "de": 1}  # the same text is kept once
    generator = torch.Generator().manual_seed(0)
    drawn = pairs.caption_MS[pairs.draw_captions(torch.zeros(4000, dtype=torch.long), generator)]
    german_MS, owners = pairs.of_language("de")
    assert owners == [0, 1]
    share = (drawn == german_MS[0]).all(dim=1).float().mean().item()
    assert 0.45 < share < 0.55
    english = {row.numpy().tobytes() for row in drawn}
    assert len(english) == 9  # all eight English captions and the German one


def test_what_is_said_of_a_picture_is_nobodys_negative(maker: FeatureMaker, tmp_path: Path) -> None:
    rows = [
        ("a", noise(1), {"caption": "a red wall"}),
        ("b", noise(2), {"captions": {"en": ["bricks", "A  red wall."], "de": "eine Mauer"}}),
        ("c", noise(3), {"caption": "bricks"}),
        ("d", noise(4), {"caption": "a great white shark"}),
    ]
    source = open_source(shard(tmp_path / "a.tar", rows))
    pairs, _ = gather([source], maker)
    batches = FeatureBatches(pairs, config_of(epochs=1, batch_size=4, captions=2), HERE, None)
    batch = next(batches(0))
    for at in range(2):
        group_BG = torch.cat([batch.group_B[:, [0, 1 + at]], batch.group_B[:, 1:]], dim=1)
        found = fits(group_BG, group_BG)
        place = {key: position for position, key in enumerate(batch.keys)}
        assert found[place["b"], place["a"]]
        assert found[place["b"], place["c"]]
        assert found.sum() <= 4 + 2 + 1  # b's caption may be a's or c's as well
        assert not found[place["a"], place["c"]]


def test_what_is_found_and_what_is_not_is_reported(maker: FeatureMaker, tmp_path: Path) -> None:
    rows = [
        ("good", noise(1), {"captions": {"en": "a"}}),
        ("twin", noise(1), {"captions": {"en": "b"}}),
        ("broken", b"no picture", {"captions": {"en": "c"}}),
        ("silent", noise(2), {}),
        ("bad", noise(3), {"captions": 5}),
    ]
    source = open_source(shard(tmp_path / "a.tar", rows))
    classes = open_source(
        shard(
            tmp_path / "b.tar", [(f"c{i}", noise(i), {"names": ["cat", "puss"]}) for i in (7, 8)]
        ),
        text_field="names",
    )
    for _ in range(2):  # the second time from the cache
        pairs, report = gather([source], maker, classes=[classes])
        assert report.to_dict() == {
            "pictures": 4,
            "captions": {"en": 2, "class names": 12},
            "classes": 1,
            "without_caption": 2,
            "rejected": 2,
        }
        # the same bytes, and the same class, are no negatives of each other
        assert pairs.group_N.tolist() == [0, 0, 1, 1]
        assert pairs.image_NF.shape == (4, 1280)


@pytest.mark.parametrize("count", [0, 1])
def test_too_little_to_contrast_is_refused(maker: FeatureMaker, tmp_path: Path, count: int) -> None:
    rows = [(f"k{at}", noise(at), {"caption": "a"}) for at in range(count)]
    with pytest.raises(SourceError, match="at least 2") as caught:
        gather([open_source(shard(tmp_path / "a.tar", rows))], maker)
    assert caught.value.code == "too-few-pairs"


def test_cached_features_equal_computed_ones(
    maker: FeatureMaker, pairs: Pairs, sixteen: str
) -> None:
    bare = FeatureMaker(ImageTower(), maker.text_tower)
    computed, _ = gather([open_source(sixteen, text_field="captions.en")], bare)
    cached, _ = gather([open_source(sixteen, text_field="captions.en")], maker)
    assert torch.equal(computed.image_NF, cached.image_NF)
    assert torch.equal(computed.caption_MS, cached.caption_MS)


def test_a_damaged_cache_is_computed_anew(tmp_path: Path, sixteen: str, pairs: Pairs) -> None:
    maker = FeatureMaker(ImageTower(), TextTower(), cache=tmp_path)
    source = open_source(sixteen, text_field="captions.en")
    gather([source], maker)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    again, _ = gather([source], maker)
    assert torch.equal(again.image_NF, pairs.image_NF)


def test_no_curve_without_matplotlib(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(epochs=1, batch_size=16)
    run_files(heads(), pairs, config, tmp_path / "one")
    assert (tmp_path / "one" / CURVES_NAME).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert draw_curves(read_journal(tmp_path / "one")) is None


def run(*arguments: str) -> Invoked:
    from service.cli.train.command import train as command

    return CliRunner().invoke(command, list(arguments), standalone_mode=False)


def test_the_command_leaves_a_pair_that_loads(tmp_path: Path) -> None:
    train_data = shard(
        tmp_path / "train.tar",
        [(name, solid(name), {"caption": f"completely {name}"}) for name in COLOURS]
        + [("broken", b"", {"caption": "x"})],
    )
    arguments = ["--data", train_data, "--val", train_data, "--epochs", "8", "--batch-size", "8"]
    arguments += ["--concept-share", "0", "--threads", "1", "--cache", str(tmp_path / "cache")]
    arguments += ["--lr", "1e-3", "--patience", "0"]
    before = torch.get_num_threads()
    try:
        first = run(*arguments, "--out", str(tmp_path / "one"), "--json")
        second = run(*arguments, "--out", str(tmp_path / "two"))
    finally:
        torch.set_num_threads(before)
    assert first.exception is None, first.output
    assert first.return_value == 3  # one picture was empty
    assert "8 pictures" in first.stderr
    assert "empty-file" in first.stderr
    summary = json.loads(first.stdout)
    assert summary["after"]["und"]["image_retrieval_recall@1"] >= 0.8
    assert "before" in second.stdout
    assert "und text -> image" in second.stdout
    written = {path.name for path in (tmp_path / "one").iterdir()}
    assert written == {
        "diptych_starter.json", "heads.safetensors", "text.safetensors", "image.onnx",
        "train_config.json", "metrics.jsonl", "curves.png", "result.json",
    }  # fmt: skip
    one, two = ((tmp_path / run / "heads.safetensors").read_bytes() for run in ("one", "two"))
    assert one == two
    lines = [json.loads(line) for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == list(range(1, 9))
    encoder = load_encoder(f"local-dir:{tmp_path / 'one'}")
    assert encoder.fingerprint.model.endswith("one")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--model", "ViT-B-32", "--data", "x"], "not a model id"),
        (["--data", "x", "--lock-image", "--micro-batch", "4"], "--micro-batch, --lock-image"),
        ([], "nothing to train on"),
        (["--data", "x", "--keep", "best"], "needs --val"),
    ],
)
def test_wrong_use_is_told(tmp_path: Path, arguments: list[str], why: str) -> None:
    result = run(*arguments, "--out", str(tmp_path / "out"))
    assert why in str(result.exception)
    assert not (tmp_path / "out").exists()
