"""Pictures that a request names by their address: off unless the operator turned it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

from fastapi import Depends

from service import deadline
from service.problems import refuse
from service.state import StateOf

Fetch: TypeAlias = Callable[[str], bytes]


async def _fetch(state: StateOf) -> Fetch:
    fetcher = state.fetcher

    def fetch(url: str) -> bytes:
        if fetcher is None:
            raise refuse(
                "url-not-allowed",
                "This service fetches nothing; send the picture itself.",
                hint="diptych serve --allow-urls turns fetching on.",
            )
        return fetcher.fetch(url, within=deadline.left())

    return fetch


FetchOf = Annotated[Fetch, Depends(_fetch)]
"""Fetches a picture, or refuses; blocks, so it is called in a thread."""
