"""Several use cases at once in one thread, so that their batched calls meet in the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from service.engine.call import Call
from service.engine.steps import Steps

R = TypeVar("R")
E = TypeVar("E", bound=Exception)


def finish_together(all_steps: Sequence[Steps[R]], *refusals: type[E]) -> list[R | E]:
    """Run use cases side by side, waiting in this thread -> each one's answer or refusal.

    They advance in rounds: each is taken to its next call before the first of those is waited for.
    The texts of all thus queue while the first is embedded, and their searches likewise. An error
    that is none of `refusals` ends all of them.
    """
    answers: dict[int, R | E] = {}
    waiting: list[tuple[int, Call[Any] | None]] = [(at, None) for at in range(len(all_steps))]
    while waiting:
        going, waiting = waiting, []
        for position, call in going:
            try:
                waiting.append((position, _advance(all_steps[position], call)))
            except StopIteration as end:
                answers[position] = end.value
            except refusals as error:
                answers[position] = error
    return [answers[position] for position in range(len(all_steps))]


def _advance(steps: Steps[R], call: Call[Any] | None) -> Call[Any]:
    """To the next call; StopIteration at the end."""
    if call is None:
        return next(steps)
    try:
        answer = call.result()
    except BaseException as error:
        return steps.throw(error)
    return steps.send(answer)
