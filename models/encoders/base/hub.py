"""Files of the Hugging Face hub: cached ones without a network, others only when it is allowed.

One function and its error messages. It never asks for pickled weights.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from models.environment import hub_offline
from models.errors import ModelError


class HubFileMissingError(ModelError):
    """The repository exists but does not publish this file."""


def hub_file(repository: str, name: str) -> Path:
    """The local copy of a repository's file, downloaded if there is none.

    A copy is used as it is, without asking the hub for a newer one: an index is bound to the
    weights it was built with. With HF_HUB_OFFLINE set nothing is ever asked of the network.
    HF_HOME and HF_HUB_CACHE say where copies are kept.

    Raises:
        HubFileMissingError: the repository has no such file.
        ModelError: unknown or closed repository, or neither a copy nor a network.
    """
    from huggingface_hub import errors, hf_hub_download

    offline = hub_offline()
    with suppress(errors.LocalEntryNotFoundError, errors.HFValidationError):
        return Path(hf_hub_download(repository, name, local_files_only=True))
    try:
        # the client would retry for half a minute where there is no network at all
        reachable = not offline and _hub_resolves()
        return Path(hf_hub_download(repository, name, local_files_only=not reachable))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} asks for its terms to be accepted",
            hint=f"accept them at https://huggingface.co/{repository}, then set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no repository {repository!r}, or it is private") from error
    except errors.LocalEntryNotFoundError as error:
        because = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise ModelError(
            f"{name} of {repository} is not in the local cache, and {because}",
            hint=f"where there is a network run `hf download {repository}`, then copy the cache "
            "(HF_HOME) here, or copy the folder and name it local-dir:PATH",
        ) from error
    except errors.EntryNotFoundError as error:
        raise HubFileMissingError(f"{repository} has no file {name}") from error
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"cannot fetch {name} of {repository}: {reason}") from error


def _hub_resolves() -> bool:
    from huggingface_hub import constants

    if getproxies():
        return True  # the proxy resolves names, this machine need not
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True
