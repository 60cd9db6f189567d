"""The one file that knows FAISS: exact and approximate inner-product search over float16 rows.

Exact: the stored rows are the codes of FAISS's fp16 scalar quantiser, so FAISS searches the mapped
file where it lies: nothing is copied, trained or approximated, and opening costs no time. Measured
on 2 busy cores at 100,000 x 512 against the other way of being exact, chunks upcast to float32 and
multiplied: 32 against 200 ms for one query, 180 against 263 ms for sixteen at once, but 806
against 392 ms for sixty-four; a service batches fewer. `tests/bench/search_exact.py` repeats it.

Approximate: a graph (HNSW) or an inverted file over compressed rows. Its answers are proposals,
which `indexer.search.ranking` scores again from the stored rows. A stored structure is used
where it is mapped, too: FAISS takes codes and links as views of the file.

It knows rows and scores, nothing of items, files or versions.

Shapes: N rows, Q queries, K neighbours, M some rows, D embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Final, Literal

import faiss
import numpy as np
import numpy.typing as npt

from indexer.format.entries import CANARIES, AnnEntry, Canary, Structure
from indexer.format.segment import HalfVectors
from models.vectors import Vectors

# FAISS's annotations describe the C++ signatures, not the Python ones it patches in
_faiss: Any = faiss
_ADD_ROWS: Final = 16_384
TRAIN_ROWS: Final = 39
"""Training rows for each list of an inverted file: what FAISS asks for at least."""
_TYPES: Final = {"hnsw": "IndexHNSWSQ", "ivf": "IndexIVFRaBitQFastScan"}
_LIMITS: Final = threading.Lock()
_READY: Final = 64
_DEEP: Final = 16
"""A graph walk that keeps more than one in this many rows costs more than looking at all."""
_EXPECTED: Final = 4
_EFFORT: Final = 32


class BadStructureError(Exception):
    """An ANN structure cannot be read, or is not over these rows."""


class ExactIndex:
    """Exact search over the live rows of one segment; safe to search from several threads.

    What to search travels with each call (`SearchParameters`); the FAISS object never changes
    after construction.
    """

    exact: Literal[True] = True

    def __init__(self, vectors_ND: HalfVectors, live_N: npt.NDArray[np.bool_]) -> None:
        """Search the rows where they are. `live_N` tells which may be returned."""
        rows, dim = vectors_ND.shape
        assert live_N.shape == (rows,)
        assert vectors_ND.flags.c_contiguous
        assert vectors_ND.dtype == np.dtype("<f2")
        self.live = int(live_N.sum())
        self._vectors_ND = vectors_ND  # FAISS keeps a pointer: the mapping must live as long
        self._index = _faiss.IndexScalarQuantizer(
            dim, _faiss.ScalarQuantizer.QT_fp16, _faiss.METRIC_INNER_PRODUCT
        )
        self._index.codes = _faiss.MaybeOwnedVectorUInt8.create_view(
            _faiss.cast_integer_to_void_ptr(vectors_ND.ctypes.data),
            vectors_ND.nbytes,
            _faiss.MaybeOwnedVectorUInt8().owner,
        )
        self._index.ntotal = rows
        self._selector: Any = None
        if self.live < rows:
            self._bitmap, self._selector = _selector(live_N)

    def restricted(self, selected_N: npt.NDArray[np.bool_]) -> ExactIndex:
        """The same rows, of which only these may be returned; nothing is copied but the mask."""
        view = copy(self)
        view.live = int(selected_N.sum())
        view._bitmap, view._selector = _selector(selected_N)
        return view

    def search(
        self, queries_QD: Vectors, k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k best live rows of each query.

        Args:
            queries_QD: float32 [Q, D].
            k: at most the number of live rows.

        Returns:
            scores float32 [Q, K] falling along K, and rows int64 [Q, K].
        """
        assert 1 <= k <= self.live
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        scores_QK, rows_QK = self._index.search(queries_QD, k, params=self._parameters())
        return scores_QK, rows_QK

    def above(
        self, query_D: Vectors, floor: float
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Every live row scoring above `floor`: scores float32 [M], rows int64 [M], unordered."""
        query_1D = np.ascontiguousarray(query_D[None], dtype=np.float32)
        _, scores_M, rows_M = self._index.range_search(query_1D, floor, params=self._parameters())
        return scores_M, rows_M

    def rows(self) -> npt.NDArray[np.int64]:
        """Every live row, int64 [M], ascending."""
        count = self._index.ntotal
        if self._selector is None:
            return np.arange(count, dtype=np.int64)
        return np.flatnonzero(np.unpackbits(self._bitmap, count=count, bitorder="little"))

    def _parameters(self) -> Any:
        return None if self._selector is None else _faiss.SearchParameters(sel=self._selector)


class AnnIndex:
    """Approximate search over the live rows of one segment; safe from several threads.

    Attributes:
        most: efforts beyond this are not worth it: exact search is as fast, or nothing is left to
            look at.
    """

    def __init__(
        self,
        index: Any,
        structure: Structure,
        vectors_ND: HalfVectors,
        live_N: npt.NDArray[np.bool_],
    ) -> None:
        self._index = index
        self._structure = structure
        self._stored = ExactIndex(vectors_ND, live_N)
        self._refined = _faiss.IndexRefine(index, self._stored._index)
        self.rows, self.live = len(live_N), self._stored.live
        self.most = self.rows // _DEEP if structure == "hnsw" else int(index.nlist)
        self._memory: Any = None
        # making these takes Python longer than many a search; FAISS only reads them
        self._ready: dict[tuple[int, int, int], Any] = {}
        self._bitmap: Any = None
        self._selector: Any = self._stored._selector

    @classmethod
    def read(
        cls,
        data: Any,
        structure: Structure,
        vectors_ND: HalfVectors,
        live_N: npt.NDArray[np.bool_],
    ) -> AnnIndex:
        """A structure over these rows, where it is mapped.

        Args:
            data: the bytes of a stored structure, already verified; kept as long as the index.

        Raises:
            BadStructureError: it is something else.
        """
        bytes_N = np.frombuffer(data, dtype=np.uint8)
        address = _faiss.cast_integer_to_uint8_ptr(bytes_N.ctypes.data)
        with _deserialization_limits(len(bytes_N)):
            try:
                index = _faiss.read_index(
                    _faiss.ZeroCopyIOReader(address, len(bytes_N)), _faiss.IO_FLAG_MMAP_IFC
                )
            except (RuntimeError, MemoryError) as error:
                # FAISS's messages begin with the C++ signature of where it happened
                reason = str(error).split("Error: ")[-1].splitlines()[0][:120]
                raise BadStructureError(f"FAISS cannot read it: {reason}") from error
        if type(index).__name__ != _TYPES[structure]:
            raise BadStructureError(f"it holds a {type(index).__name__}, no {structure}")
        rows, dim = vectors_ND.shape
        if (index.d, index.ntotal) != (dim, rows):
            raise BadStructureError(
                f"it is over {index.ntotal} rows of {index.d}, the segment has {rows} of {dim}"
            )
        if index.metric_type != _faiss.METRIC_INNER_PRODUCT:
            raise BadStructureError("it is not for inner products")
        found = cls(index, structure, vectors_ND, live_N)
        found._memory = bytes_N
        return found

    def write(self, write: Callable[[bytes], None]) -> None:
        """The structure as bytes, a piece at a time."""

        def take(piece: bytes) -> int:
            write(piece)
            return len(piece)

        _faiss.write_index(self._index, _faiss.PyCallbackIOWriter(take))

    def unmasked(self) -> AnnIndex:
        """The same structure, of which dead rows may be returned, too."""
        view = copy(self)
        view.live, view._selector, view._ready = self.rows, None, {}
        return view

    def restricted(self, selected_N: npt.NDArray[np.bool_]) -> AnnIndex:
        """The same structure, of which only these rows may be returned."""
        view = copy(self)
        view._ready = {}
        view.live = int(selected_N.sum())
        view._bitmap, view._selector = _selector(selected_N)
        return view

    def search(
        self, queries_QD: Vectors, k: int, effort: int, refine: int = 1
    ) -> npt.NDArray[np.int64]:
        """About the k best live rows of each query, int64 [Q, K]; -1 where none was found.

        Args:
            queries_QD: float32 [Q, D].
            effort: efSearch or nprobe of this call.
            refine: the structure proposes this times k rows, and the stored rows decide.
        """
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        parameters = self._ready.get((k, effort, refine))
        if parameters is None:
            parameters = _faiss.IndexRefineSearchParameters(
                k_factor=float(refine), base_index_params=self._parameters(k * refine, effort)
            )
            if len(self._ready) < _READY:
                self._ready[k, effort, refine] = parameters
        rows_QK: npt.NDArray[np.int64]
        _, rows_QK = self._refined.search(queries_QD, k, params=parameters)
        return rows_QK

    def _parameters(self, k: int, effort: int) -> Any:
        if self._structure == "hnsw":
            return _faiss.SearchParametersHNSW(efSearch=max(effort, k), sel=self._selector)
        nprobe = min(effort, self.most)
        return _faiss.IVFRaBitQSearchParameters(nprobe=nprobe, qb=8, sel=self._selector)


def build_ann(
    vectors_ND: HalfVectors,
    structure: Structure,
    recipe: str,
    parameters: dict[str, int],
    on_rows: Callable[[int], None] = lambda _: None,
) -> AnnIndex:
    """Train and fill a structure over all rows.

    Args:
        recipe: as FAISS's `index_factory` takes it.
        parameters: of the recipe; `efConstruction` for a graph.
        on_rows: told how many rows are in it.
    """
    rows, dim = vectors_ND.shape
    index = _faiss.index_factory(dim, recipe, _faiss.METRIC_INNER_PRODUCT)
    wanted = rows
    if structure == "hnsw":
        index.hnsw.efConstruction = parameters["efConstruction"]
        wanted = min(rows, 65_536)
    else:
        index.cp.seed = 1
        index.cp.min_points_per_centroid = 1  # fewer only make FAISS print
        wanted = min(rows, TRAIN_ROWS * index.nlist)
    sample = np.sort(np.random.default_rng(0).choice(rows, wanted, replace=False))
    index.train(vectors_ND[sample].astype(np.float32))
    for start in range(0, rows, _ADD_ROWS):
        index.add(vectors_ND[start : start + _ADD_ROWS].astype(np.float32))
        on_rows(min(start + _ADD_ROWS, rows))
    return AnnIndex(index, structure, vectors_ND, np.ones(rows, dtype=np.bool_))


def make_canaries(index: AnnIndex, vectors_ND: HalfVectors) -> list[Canary]:
    """A few rows and what the structure answers to their own vectors, for `check_canaries`."""
    rows = np.linspace(0, len(vectors_ND) - 1, CANARIES).astype(np.int64)
    return [
        Canary(row=int(row), expected=_canary_answer(index, vectors_ND, int(row)))
        for row in np.unique(rows)
    ]


def check_canaries(index: AnnIndex, entry: AnnEntry, vectors_ND: HalfVectors) -> None:
    """Refuse a structure that no longer answers as when it was built.

    One answer may differ: the last bits of a score depend on the processor.

    Raises:
        BadStructureError: it answers otherwise.
    """
    wrong = 0
    for canary in entry.canaries:
        if max(canary.row, *canary.expected) >= len(vectors_ND):
            raise BadStructureError("its canary queries are of rows that it does not have")
        answer = _canary_answer(index, vectors_ND, canary.row)
        wrong += not set(answer) & set(canary.expected)
    if wrong > 1:
        raise BadStructureError(f"{wrong} of {len(entry.canaries)} canary queries go wrong")


def _canary_answer(index: AnnIndex, vectors_ND: HalfVectors, row: int) -> list[int]:
    query_1D = vectors_ND[row : row + 1].astype(np.float32)
    return [
        int(row) for row in index.unmasked().search(query_1D, _EXPECTED, _EFFORT)[0] if row >= 0
    ]


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS computes on one thread inside; for measuring. Not for use while others search."""
    before = _faiss.omp_get_max_threads()
    _faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        _faiss.omp_set_num_threads(before)


@contextmanager
def _deserialization_limits(size: int) -> Iterator[None]:
    """No array of a structure is longer than its file, so a lie about a length allocates nothing.

    The limits are FAISS's, of the process; hence one reader at a time.
    """
    with _LIMITS:
        before = (
            _faiss.get_deserialization_vector_byte_limit(),
            _faiss.get_deserialization_loop_limit(),
        )
        _faiss.set_deserialization_vector_byte_limit(size)
        _faiss.set_deserialization_loop_limit(size)
        try:
            yield
        finally:
            _faiss.set_deserialization_vector_byte_limit(before[0])
            _faiss.set_deserialization_loop_limit(before[1])


def _selector(mask_N: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.uint8], Any]:
    # FAISS keeps a pointer into the bitmap: it must live as long as the selector
    bitmap = np.packbits(mask_N, bitorder="little")
    return bitmap, _faiss.IDSelectorBitmap(bitmap)
