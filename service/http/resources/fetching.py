"""Pictures that a request names by their address: off unless the operator turned it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

from fastapi import Depends

from models.sources.fetch import Fetcher
from service.engine import deadline
from service.http.middleware.problems import refuse
from service.http.resources.state import StateOf

Fetch: TypeAlias = Callable[[str], bytes]


def fetch_by(fetcher: Fetcher | None) -> Fetch:
    """What fetches for callers; without a fetcher it refuses."""

    def fetch(url: str) -> bytes:
        if fetcher is None:
            raise refuse(
                "url-not-allowed",
                "This service fetches nothing; send the picture itself.",
                hint="diptych serve --allow-urls turns fetching on.",
            )
        return fetcher.fetch(url, within=deadline.left())

    return fetch


async def _fetch(state: StateOf) -> Fetch:
    return fetch_by(state.fetcher)


FetchOf = Annotated[Fetch, Depends(_fetch)]
"""Fetches a picture, or refuses; blocks, so it is called in a thread."""
