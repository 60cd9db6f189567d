"""A use case written once, driven by a thread or by an event loop.

A use case that waits for batched calls is a generator: it yields each `Call` it waits for, is sent
the answer (or has the error thrown into it), and returns its own. On an event loop no thread is
held meanwhile, and none has to be woken.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

from service.call import Call

R = TypeVar("R")


Steps: TypeAlias = Generator[Call[Any], Any, R]


def finish(steps: Steps[R]) -> R:
    """Run a use case, waiting in this thread."""
    try:
        call = next(steps)
        while True:
            try:
                answer = call.result()
            except BaseException as error:
                call = steps.throw(error)
            else:
                call = steps.send(answer)
    except StopIteration as end:
        found: R = end.value
        return found


async def finish_async(steps: Steps[R]) -> R:
    """Run a use case on the event loop."""
    try:
        call = next(steps)
        while True:
            try:
                answer = await call.result_async()
            except BaseException as error:
                call = steps.throw(error)
            else:
                call = steps.send(answer)
    except StopIteration as end:
        found: R = end.value
        return found
