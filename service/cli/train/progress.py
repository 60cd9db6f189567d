"""What `diptych train` shows of a run: settings, a bar, rejects, and recall before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.cli.output import Bar, note

if TYPE_CHECKING:
    from models.sources import Reject
    from models.training.config import TrainConfig
    from models.training.pair import Feed, TrainablePair
    from models.training.record import Result, Step

_SHOWN = 5


class RunBar:
    """A bar over features, then over steps: loss, scale and pairs a second beside it."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def features(self, what: str, done: int, total: int) -> None:
        self._bar.stage(f"features of {what}", done, total)

    def step(self, step: Step) -> None:
        self._bar.beside(
            f"loss={step.loss:.3f}, scale={step.scale:.1f}, "
            f"samples_per_s={step.pairs_per_second:.0f}"
        )
        # after a resume the first step seen is not the first one
        self._bar.stage("training", step.step, step.steps)


class Rejects:
    """Pictures that were refused while training, each named once."""

    def __init__(self) -> None:
        self._found: dict[str, Reject] = {}

    @property
    def count(self) -> int:
        return len(self._found)

    def add(self, reject: Reject) -> None:
        self._found.setdefault(reject.key, reject)

    def tell(self) -> None:
        for reject in list(self._found.values())[:_SHOWN]:
            note(f"rejected {reject.source} {reject.key}: {reject.code}: {reject.detail}")
        if self.count > _SHOWN:
            note(f"{self.count} pictures were rejected")


def config_lines(config: TrainConfig, pair: TrainablePair, feeds: Sequence[Feed]) -> list[str]:
    """What the run is about to do, with the defaults that were chosen."""
    parameters = sum(value.numel() for value in pair.module.parameters())
    kinds = ", ".join(f"{feed.pairs} {feed.kind}" for feed in feeds)
    share = config.interpolate
    back = "by validation" if share == "val" else f"{share:g}"
    return [
        f"model: {parameters / 1e6:.1f} million parameters, "
        + ("random weights" if pair.fresh else "pretrained"),
        f"run: {kinds} pairs an epoch; {config.epochs} epochs, batch {config.batch_size}"
        + (f" in pieces of {config.micro_batch}" if config.micro_batch else "")
        + f", lr {config.lr:g}, {config.objective}, {config.precision}, "
        f"interpolation {back}, keep {config.keep}"
        + (f", patience {config.patience}" if config.patience else ""),
    ]


def result_lines(result: Result) -> list[str]:
    """Figures for people: recall before and after, where it was measured."""
    lines = [
        f"{result.steps} steps, kept step {result.kept_step}"
        + (", stopped early" if result.stopped_early else "")
        + f", {100 * result.interpolation:.0f} % of the way from the weights it started with"
    ]
    doubts = [f"! {doubt}" for doubt in result.doubts]
    if result.before is None or result.after is None:
        return [*lines, "no validation, nothing measured", *doubts]
    if not result.interpolation:
        lines.append("nothing it learned helped on validation: the weights are as they were")
    lines += before_after(result.before, result.after)
    if result.chance is not None:
        sizes = ", ".join(
            f"{metrics['pictures']:.0f} pictures with {metrics['texts']:.0f} captions ({language})"
            for language, metrics in sorted(result.after.items())
        )
        lines.append(f"measured on {sizes}; chance is R@1 {100 * result.chance:.1f}")
    return lines + doubts


def before_after(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]
) -> list[str]:
    """Recall in percent, a line for each language and way."""
    lines = [f"{'':24}{'before':>22}{'after':>22}"]
    lines.append(f"{'':24}{'R@1   R@5  R@10':>22}{'R@1   R@5  R@10':>22}")
    for language in sorted(after):
        for way, prefix in (("text -> image", "image"), ("image -> text", "text")):
            cells = [_cell(side[language], prefix) for side in (before, after)]
            lines.append(f"{language + ' ' + way:24}{cells[0]:>22}{cells[1]:>22}")
    return lines


def _cell(metrics: dict[str, float], prefix: str) -> str:
    return " ".join(f"{100 * metrics[f'{prefix}_retrieval_recall@{k}']:5.1f}" for k in (1, 5, 10))
