"""From a model id to the files and settings of an open_clip pair, for whoever builds one.

Finds the configuration, the preprocessing, the weights and the place of the tokenizer, for every
form of id. It builds and loads nothing, never asks for pickled weights, and touches the network
only for `NAME/TAG` and `hf-hub:`.
"""

from __future__ import annotations

import difflib
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from models.encoders.base.weights_file import WEIGHTS_NAME, read_json_object, refuse_pickle
from models.environment import hub_offline
from models.errors import ModelError

if TYPE_CHECKING:
    from models.encoders.base.model_id import ModelId

CONFIG_NAME = "open_clip_config.json"
_WEIGHTS_NAMES = (WEIGHTS_NAME, "open_clip_pytorch_model.safetensors")
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass(frozen=True, slots=True)
class PairSource:
    """Everything needed to build a pair.

    Attributes:
        model_cfg: open_clip's model configuration.
        preprocess_cfg: the part of the preprocessing that the source states.
        weights: a safetensors file.
        folder: where tokenizer files lie; None where they come from the hub by name.
        resize_positions: whether open_clip may interpolate position embeddings of other sizes.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    weights: Path
    folder: Path | None = None
    resize_positions: bool = False


def find_source(model: ModelId) -> PairSource:
    """Locate a pair's files, downloading where the id asks for the hub.

    Raises:
        ModelError: unknown names (with close matches), missing or unusable files.
    """
    if model.kind == "tag":
        return _from_tag(model.name, model.tag)
    if model.kind == "hub":
        return _from_hub(model.name)
    assert model.path is not None
    if model.kind == "directory":
        return _from_directory(model.path)
    if model.name:
        return _from_named_checkpoint(model.name, model.tag, model.path)
    return _from_checkpoint(model.path)


def find_fresh(name: str) -> PairSource:
    """The configuration that a fresh pair is built from; no weights are looked for.

    Args:
        name: an open_clip architecture (`ViT-B-32`), or `local-dir:PATH` of a folder with an
            `open_clip_config.json`.

    Raises:
        ModelError: an unknown architecture (with close matches), or an unusable configuration.
    """
    scheme, _, rest = name.partition(":")
    if scheme == "local-dir" and rest:
        folder = Path(rest).expanduser()
        model_cfg, preprocess_cfg = _read_config(folder / CONFIG_NAME)
        return PairSource(model_cfg, preprocess_cfg, folder / WEIGHTS_NAME, folder=folder)
    model_cfg = _built_in(name)
    return PairSource(model_cfg, _built_in_preprocess(name), Path(WEIGHTS_NAME))


def tagged_models() -> Iterator[tuple[str, str, str, str, str | None]]:
    """(id, architecture, tag, hub repository, needed extra) of all that open_clip lists."""
    import open_clip

    for name, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(name) or {}
        text = config.get("text_cfg", {})
        needs = "hf" if text.get("hf_tokenizer_name") or text.get("hf_model_name") else None
        entry = open_clip.get_pretrained_cfg(name, tag)
        repository = str(entry.get("hf_hub") or entry.get("url") or "").rstrip("/")
        yield f"{name}/{tag}", name, tag, repository, needs


def _from_tag(name: str, tag: str) -> PairSource:

    model_cfg, entry = _tagged(name, tag)
    repository, _, file = str(entry.get("hf_hub") or "").rpartition("/")
    if not repository:
        raise refuse_pickle(f"{name}/{tag}")
    names = (str(PurePosixPath(file).with_suffix(".safetensors")),) if file else _WEIGHTS_NAMES
    return PairSource(
        model_cfg, _preprocess(entry), _hub_weights(repository, names), resize_positions=True
    )


def _tagged(name: str, tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of a tag's weights, and what else open_clip says of them."""
    import open_clip

    model_cfg = _built_in(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    entry = open_clip.get_pretrained_cfg(name, tag)
    if not entry:
        raise ModelError(
            f"{name} has no pretrained tag {tag!r}",
            hint=_suggest(tag, tags) if tags else "open_clip publishes no weights for it",
        )
    # A tag knows the activation its weights were trained with, and open_clip only warns when the
    # architecture of that name has another (open_clip#771). roberta-ViT-B-32 is the one case of
    # the reverse: there the configuration says it and the tag is silent.
    model_cfg["quick_gelu"] = bool(entry.get("quick_gelu") or model_cfg.get("quick_gelu"))
    return model_cfg, entry


def _from_hub(repository: str) -> PairSource:
    try:
        config = _read_config(hub_file(repository, CONFIG_NAME))
    except HubFileMissingError as error:
        raise ModelError(f"{repository} is not in open_clip's layout: no {CONFIG_NAME}") from error
    return PairSource(*config, weights=_hub_weights(repository, _WEIGHTS_NAMES))


def _hub_weights(repository: str, names: tuple[str, ...]) -> Path:
    unreachable: ModelError | None = None
    for name in names:
        try:
            return hub_file(repository, name)
        except HubFileMissingError:
            continue
        except ModelError as error:  # offline: another name may still be in the cache
            unreachable = unreachable or error
    raise unreachable or refuse_pickle(repository)


def _from_directory(folder: Path) -> PairSource:
    if not folder.is_dir():
        raise ModelError(f"no directory {folder}")
    for name in _WEIGHTS_NAMES:
        if (folder / name).is_file():
            return _from_checkpoint(folder / name)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(others) == 1:
        return _from_checkpoint(folder / others[0])
    if not others and any(folder.glob("*.bin")) | any(folder.glob("*.pt*")):
        raise refuse_pickle(str(folder))
    raise ModelError(f"{folder} holds no {WEIGHTS_NAME}")


def _from_checkpoint(path: Path) -> PairSource:
    config = path.parent / CONFIG_NAME
    if not config.is_file():
        raise ModelError(
            f"no {CONFIG_NAME} beside {path.name}, so its architecture is unknown",
            hint="name it before the file, for a ViT-B-32: with the weights it grew from, such as "
            f"ViT-B-32/laion2b_s34b_b79k:{path.name}, or ViT-B-32-quickgelu:{path.name} where its "
            "activation is QuickGELU",
        )
    model_cfg, preprocess_cfg = _read_config(config)
    converted = _converted_activation(path.parent)
    # a configuration that says nothing means GELU, unless its neighbour knows better
    if "quick_gelu" not in model_cfg and converted == "quick_gelu":
        raise ModelError(
            f"{config} names no activation, which means GELU, and config.json beside it says "
            "quick_gelu",
            hint='write "quick_gelu": true into its model_cfg, or false if that is what is meant',
        )
    return PairSource(model_cfg, preprocess_cfg, weights=path, folder=path.parent)


def _from_named_checkpoint(name: str, tag: str, path: Path) -> PairSource:
    if tag:
        model_cfg, entry = _tagged(name, tag)
        return PairSource(model_cfg, _preprocess(entry), path, folder=path.parent)
    model_cfg = _built_in(name)
    entries = _tag_preprocesses(name)
    if any(entry != entries[0] for entry in entries):
        raise ModelError(
            f"weights of {name} come with different preprocessings, and {path.name} does not say "
            "which it needs",
            hint=f"name the tag it grew from, {name}/TAG:{path.name} ({_few(_tags(name))}), or put "
            f"an {CONFIG_NAME} with its preprocess_cfg beside it",
        )
    model_cfg["quick_gelu"] = _activation(name, model_cfg, path)
    return PairSource(model_cfg, entries[0] if entries else {}, path, folder=path.parent)


_QUICK = "-quickgelu"


def _activation(name: str, model_cfg: Mapping[str, Any], path: Path) -> bool:
    """Whether a checkpoint of an architecture computes with QuickGELU, where that is certain.

    The weights fit both, and with the wrong one every answer is a little wrong. So the name must
    tell (`ViT-B-32-quickgelu`), or nothing be known of the other one.

    Raises:
        ModelError: the architecture's weights come with both.
    """
    import open_clip

    own = bool(model_cfg.get("quick_gelu"))
    tags = {tag: bool(_tagged(name, tag)[0]["quick_gelu"]) for tag in _tags(name)}
    twin = name + _QUICK in open_clip.list_models()
    converted = _converted_activation(path.parent)
    if converted is not None and own and converted != "quick_gelu":
        raise ModelError(
            f"{name} computes with QuickGELU, and config.json beside {path.name} says {converted}",
            hint=f"name another architecture, or put an {CONFIG_NAME} beside it",
        )
    if own or not (twin or True in tags.values()):
        return own
    if converted is not None:
        return converted == "quick_gelu"
    plain = [tag for tag, quick in tags.items() if not quick]
    quick = [tag for tag, is_quick in tags.items() if is_quick]
    choices = [
        f"{name}{_QUICK}:{path.name} for QuickGELU"
        if twin
        else f"{name}/{quick[0]}:{path.name} for QuickGELU",
        f"{name}/{plain[0]}:{path.name} for GELU"
        if plain
        else f'for GELU an {CONFIG_NAME} beside it with "quick_gelu": false in its model_cfg',
    ]
    known = f" (with QuickGELU: {_few(quick)})" if quick else ""
    raise ModelError(
        f"weights of {name} come with both activations, GELU and QuickGELU{known}, and "
        f"{path.name} does not say which it needs",
        code="activation-unknown",
        hint=f"say which: {', or '.join(choices)}",
    )


def _converted_activation(folder: Path) -> str | None:
    """What a Hugging Face configuration of a CLIP pair says of its activation, where one lies."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config: Mapping[str, Any] = read_json_object(path)
    except ModelError:
        return None  # whoever needs it will say so
    towers = [config.get("vision_config"), config.get("text_config")]
    found = {
        str(tower["hidden_act"])
        for tower in towers
        if isinstance(tower, Mapping) and isinstance(tower.get("hidden_act"), str)
    }
    # transformers leaves out what is CLIP's own default
    if not found and config.get("model_type") == "clip":
        return "quick_gelu"
    return found.pop() if len(found) == 1 else None


def _tags(name: str) -> list[str]:
    import open_clip

    return list(open_clip.list_pretrained_tags_by_model(name))


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _tag_preprocesses(name: str) -> list[dict[str, Any]]:
    """SigLIP and CLIPA want other pixels than CLIP; the architecture's own tags say which."""
    return [_preprocess(_tagged(name, tag)[1]) for tag in _tags(name)]


def _built_in_preprocess(name: str) -> dict[str, Any]:
    """Of a fresh pair: what most of the architecture's published weights use, CLIP's otherwise."""
    entries = _tag_preprocesses(name)
    return max(entries, key=entries.count) if entries else {}


def _built_in(name: str) -> dict[str, Any]:
    import open_clip

    names = open_clip.list_models()
    if name not in names:
        raise ModelError(f"open_clip has no architecture {name!r}", hint=_suggest(name, names))
    return deepcopy(dict(open_clip.get_model_config(name)))


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config: Mapping[str, Any] = read_json_object(path)
    model_cfg, preprocess_cfg = config.get("model_cfg"), config.get("preprocess_cfg", {})
    if not isinstance(model_cfg, dict) or not isinstance(preprocess_cfg, dict):
        raise ModelError(f"{path} has no model_cfg")
    return model_cfg, _preprocess(preprocess_cfg)


def _preprocess(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in _PREPROCESS if entry.get(key) is not None}


def _suggest(name: str, among: list[str]) -> str:
    lowered = {candidate.lower(): candidate for candidate in among}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)
    found = [lowered[match] for match in close] or among[:6]
    return f"did you mean {', '.join(found)}?" if close else f"known are {', '.join(found)}"


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
