"""The trainer of open_clip pairs: it overfits, keeps what is good, and stops where it must."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_SIGLIP, sixteen, tiny_pair
from torch import Tensor, nn

from models.encoders.base.model_id import parse_model_id
from models.encoders.registry import load_encoder
from models.errors import NoSpaceError, TrainingError
from models.images.decode import decode_image
from models.sources import open_source
from models.training.config import TrainConfig
from models.training.distributed import World
from models.training.losses import InfoNCEObjective
from models.training.open_clip import OpenClipPair, fresh_pair, load_pair
from models.training.pair import Feed, Watching
from models.training.record import Result, Step, read_journal
from models.training.run import run_training
from models.training.weights import interpolated

HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    tiny_pair(folder / "pair")
    tiny_pair(folder / "siglip", TINY_SIGLIP)
    sixteen(folder / "data.tar")
    return folder


@pytest.fixture(scope="module")
def learned(folder: Path) -> tuple[Path, Result]:
    """A run that has learned the sixteen by heart."""
    torch.set_num_threads(1)
    return folder / "learned", run(folder, folder / "learned")


def pretrained(folder: Path, name: str = "pair") -> OpenClipPair:
    return load_pair(parse_model_id(f"local-dir:{folder / name}"))


def run(
    folder: Path, out: Path, pair: OpenClipPair | None = None, *, val: bool = True, **named: Any
) -> Result:
    settings: dict[str, Any] = {"epochs": 40, "batch_size": 16, "lr": 1e-3, "eval_every": 99}
    others = {key: named.pop(key) for key in ("make_objective", "watching") if key in named}
    source = open_source(str(folder / "data.tar"), text_field="captions.en")
    result = run_training(
        pair or pretrained(folder),
        [Feed("main", [source], 16)],
        TrainConfig(**(settings | named)),
        HERE,
        out,
        identity={},
        report={},
        validation_sources=[source] if val else [],
        workers=1,
        **others,
    )
    assert result is not None
    return result


def learned_by_heart(result: Result) -> bool:
    assert result.after is not None
    return all(result.after["en"][f"{way}_retrieval_recall@1"] == 1.0 for way in ("image", "text"))


def wrapped(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Any:
    """An objective that is handed something else than the batch's rows."""

    class Changed(InfoNCEObjective):
        def forward(self, image_BD: Tensor, text_BD: Tensor, **named: Any) -> Tensor:
            value: Tensor = super().forward(*change(image_BD, text_BD), **named)
            return value

    return lambda pair, _: Changed(pair.log_scale)


def test_sixteen_pairs_are_learned_by_heart(learned: tuple[Path, Result]) -> None:
    out, result = learned
    assert result.steps <= 200
    assert result.before is not None
    assert result.before["en"]["image_retrieval_recall@1"] < 0.5
    assert learned_by_heart(result)
    losses = [line["loss"] for line in read_journal(out) if "loss" in line]
    assert len(losses) == 40
    assert losses[-1] < 0.1 < 1.0 < losses[0]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "training").exists()


def test_a_loss_with_shuffled_targets_does_not_pass_that_test(folder: Path, tmp_path: Path) -> None:
    # a fixed wrong target would be learned by heart as well: the wrong one changes each step
    broken = wrapped(lambda image_BD, text_BD: (image_BD, text_BD[torch.randperm(len(text_BD))]))
    result = run(folder, tmp_path, make_objective=broken)
    assert not learned_by_heart(result)
    assert result.after is not None
    assert result.after["en"]["image_retrieval_recall@1"] < 0.6


def test_a_sigmoid_pair_in_small_pieces_learns_them_too(folder: Path, tmp_path: Path) -> None:
    pair = pretrained(folder, "siglip")
    result = run(folder, tmp_path, pair, objective="siglip", micro_batch=5, lr=4e-3, epochs=90)
    assert learned_by_heart(result)
    assert load_encoder(f"local-dir:{tmp_path}", device="cpu").logit_bias is not None


def test_the_result_loads_here_and_in_open_clip_and_gives_the_measured_recall(
    folder: Path, learned: tuple[Path, Result]
) -> None:
    out = learned[0]
    encoder = load_encoder(f"local-dir:{out}", device="cpu", precision="fp32")
    before = load_encoder(f"local-dir:{folder / 'pair'}", device="cpu", precision="fp32")
    assert encoder.fingerprint.differences(before.fingerprint) == ["weights_sha256"]
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    source = open_source(str(folder / "data.tar"), text_field="captions.en")
    pictures = [decode_image(row.image) for row in source]  # type: ignore[union-attr, arg-type]
    with torch.inference_mode():
        theirs = model.eval().encode_image(torch.stack([preprocess(p) for p in pictures]))
        words = model.encode_text(tokenizer(["a boat", "one pen"]))
    ours = encoder.embed_images([encoder.prepare_image(p) for p in pictures])
    np.testing.assert_allclose(ours, nn.functional.normalize(theirs, dim=1), atol=1e-5)
    texts = encoder.embed_texts([encoder.prepare_text(t) for t in ("a boat", "one pen")])
    np.testing.assert_allclose(texts, nn.functional.normalize(words, dim=1), atol=1e-5)


def test_the_interpolated_pair_lies_on_the_line_between_both_ends(
    folder: Path, tmp_path: Path
) -> None:
    name = "open_clip_model.safetensors"
    run(folder, tmp_path / "end", epochs=3, val=False)
    half = run(folder, tmp_path / "half", epochs=3, val=False, interpolate=0.5)
    assert half.interpolation == 0.5
    start, end, middle = (
        load_file(path / name) for path in (folder / "pair", tmp_path / "end", tmp_path / "half")
    )
    for key, value in middle.items():
        torch.testing.assert_close(value, (start[key] + end[key]) / 2, atol=1e-6, rtol=0)
    assert any(not torch.equal(start[key], end[key]) for key in start)


def test_training_that_harms_leaves_the_pair_as_good_as_it_was(
    folder: Path, learned: tuple[Path, Result], tmp_path: Path
) -> None:
    good = load_pair(parse_model_id(f"local-dir:{learned[0]}"))
    # so high a rate that everything is forgotten in a step
    ruined = {"epochs": 6, "lr": 1.0, "eval_every": 1, "keep": "best"}
    guarded = run(folder, tmp_path / "guarded", good, interpolate="val", patience=2, **ruined)
    assert learned_by_heart(guarded)
    assert guarded.stopped_early
    assert guarded.steps == 2
    good = load_pair(parse_model_id(f"local-dir:{learned[0]}"))
    unguarded = run(folder, tmp_path / "ruined", good, **{**ruined, "keep": "last"})
    assert not learned_by_heart(unguarded)


def test_the_best_validation_is_what_is_kept(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path, eval_every=10, keep="best")
    lines = [line for line in read_journal(tmp_path) if "validation" in line]
    assert [line["after_step"] for line in lines] == [0, 10, 20, 30, 40]
    kept = next(line for line in lines if line["after_step"] == result.kept_step)
    assert kept["validation"] == result.after
    best = max(line["validation"]["en"]["image_retrieval_recall@1"] for line in lines)
    assert kept["validation"]["en"]["image_retrieval_recall@1"] == best


def test_the_moving_average_is_what_a_loop_makes_of_the_steps(folder: Path, tmp_path: Path) -> None:
    states: list[dict[str, Tensor]] = []
    pair = pretrained(folder)
    states.append({name: p.detach().clone() for name, p in pair.module.named_parameters()})

    def note(_: Step) -> None:
        states.append({name: p.detach().clone() for name, p in pair.module.named_parameters()})

    run(folder, tmp_path, pair, epochs=4, val=False, ema=0.3, watching=Watching(on_step=note))
    average = states[0]
    for n, state in enumerate(states[1:]):
        decay = min(0.3, (1 + n) / (10 + n))
        average = {key: decay * average[key] + (1 - decay) * state[key] for key in average}
    written = load_file(tmp_path / "open_clip_model.safetensors")
    for key, value in average.items():
        torch.testing.assert_close(written[key], value, atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_batch(
    folder: Path, tmp_path: Path
) -> None:
    steps = 0

    def poisoned(image_BD: Tensor, text_BD: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal steps
        steps += 1
        return image_BD * (float("nan") if steps == 4 else 1.0), text_BD

    with pytest.raises(TrainingError, match="step 4: the loss is not finite") as caught:
        run(folder, tmp_path, batch_size=4, epochs=2, make_objective=wrapped(poisoned))
    assert caught.value.code == "loss-not-finite"
    named = {word.strip(",") for word in str(caught.value).split() if word.startswith("k")}
    assert len(named & {f"k{at:02d}" for at in range(16)}) == 4
    state = json.loads((tmp_path / "training" / "state.json").read_text())
    kept = tmp_path / "training" / state["folder"]
    encoder = load_encoder(f"local-dir:{kept}", device="cpu")  # the last good checkpoint
    assert encoder.dim == 32
    assert read_journal(tmp_path)[-1]["loss"] is None


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill_up(step: Step) -> None:
        if step.step == 3:
            monkeypatch.setattr("models.training.checkpoint.write_tensors", full)

    with pytest.raises(NoSpaceError, match="no space left"):
        run(folder, tmp_path, epochs=4, eval_every=4, watching=Watching(on_step=fill_up))
    state = json.loads((tmp_path / "training" / "state.json").read_text())
    assert (tmp_path / "training" / state["folder"]).is_dir()
    assert state["progress"]["step"] == 0


def test_locked_towers_do_not_move_and_unlocked_blocks_do(folder: Path, tmp_path: Path) -> None:
    start = load_file(folder / "pair" / "open_clip_model.safetensors")

    def moved(name: str, **named: Any) -> set[str]:
        run(folder, tmp_path / name, epochs=2, val=False, **named)
        end = load_file(tmp_path / name / "open_clip_model.safetensors")
        return {key for key in end if not torch.equal(start[key], end[key])}

    image = {key for key in start if key.startswith("visual.")}
    text = set(start) - image - {"logit_scale"}
    assert not moved("image", lock_image=True) & image
    assert text <= moved("image-in-pieces", lock_image=True, micro_batch=5) | {
        "positional_embedding"
    }
    assert not moved("text", lock_text=True) & text
    last = {key for key in start if ".resblocks.1." in key}
    head = {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj", "logit_scale"}
    head |= {"ln_final.weight", "ln_final.bias", "text_projection"}
    assert moved("last", unlock_blocks=1) <= last | head
    assert {"visual.proj", "text_projection", "logit_scale"} <= moved("last2", unlock_blocks=1)


def test_from_scratch_a_seed_gives_the_same_pair(folder: Path, tmp_path: Path) -> None:
    name = f"local-dir:{folder / 'pair'}"
    one, same, other = (fresh_pair(name, seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["visual.conv1.weight"], other["visual.conv1.weight"])
    assert learned_by_heart(run(folder, tmp_path, fresh_pair(name, seed=1)))


def test_interpolation_keeps_counters_whole() -> None:
    start = {"w": torch.zeros(2), "n": torch.tensor(3)}
    end = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(9)}
    result = interpolated(start, end, 0.25)
    assert result["w"].tolist() == [0.25, 0.5]
    assert result["n"] == 9
