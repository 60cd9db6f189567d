"""Labels that are paths, such as `animal/cat`: what to prompt, and what their parents get.

Only leaves are prompted; an inner node has no prompt of its own, its probability follows from its
leaves. Pure functions over text and numbers; knows no encoder.

Legend: B pictures, C leaves, P nodes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.errors import InvalidLabelsError

SEPARATOR = "/"
MAX_DEPTH = 8
MAX_INNER = 2000
"""Twice what WordNet needs above ImageNet's thousand classes; every answer lists them."""

Path = tuple[str, ...]


def looks_hierarchical(labels: Sequence[str]) -> bool:
    """Whether every label holds a `/`; one "and/or" among flat labels does not make a tree."""
    return bool(labels) and all(SEPARATOR in label for label in labels)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A tree of labels: `leaves` [C] in the caller's order, `inner` nodes parents first."""

    leaves: tuple[Path, ...]
    inner: tuple[Path, ...]

    @classmethod
    def of(cls, labels: Sequence[str]) -> Hierarchy:
        """Read paths.

        Raises:
            InvalidLabelsError: an empty part, more than eight levels, over 2,000 parents, a label
                that is also the parent of another, or two labels that are one path.
        """
        leaves = tuple(_path(label) for label in labels)
        inner = dict.fromkeys(leaf[:depth] for leaf in leaves for depth in range(1, len(leaf)))
        if len(inner) > MAX_INNER:
            raise InvalidLabelsError(f"{len(inner)} parents; at most {MAX_INNER} are possible")
        for leaf in leaves:
            if leaf in inner:
                raise InvalidLabelsError(
                    f"{SEPARATOR.join(leaf)!r} is a label and the parent of another",
                    hint="give the parent a leaf of its own, as in animal/other",
                )
        if len(set(leaves)) < len(leaves):
            raise InvalidLabelsError("two labels are the same path")
        return cls(leaves, tuple(sorted(inner, key=len)))

    @property
    def depth(self) -> int:
        return max(len(leaf) for leaf in self.leaves)

    def prompt_names(self) -> list[str]:
        """What each leaf is called in prompts: its last part, with as many of its parents' names
        before it as tell it from the others ("fruit orange", "colour orange")."""
        names = [leaf[-1] for leaf in self.leaves]
        for parts in range(2, self.depth + 1):
            count = Counter(names)
            names = [
                " ".join(leaf[-parts:]) if count[name] > 1 else name
                for leaf, name in zip(self.leaves, names, strict=True)
            ]
        if len(set(names)) < len(names):
            # "a b"/"c" and "a"/"b c": told apart as they are written
            names = [SEPARATOR.join(leaf) for leaf in self.leaves]
        return names

    def at_level(self, level: int) -> tuple[Path, ...]:
        """The nodes of one depth, 1 being the top; leaves above it stand for themselves."""
        return tuple(dict.fromkeys(leaf[:level] for leaf in self.leaves))

    def gather(
        self,
        chance_BC: npt.NDArray[np.float64],
        nodes: Sequence[Path],
        *,
        multi_label: bool = False,
    ) -> npt.NDArray[np.float64]:
        """Probabilities of nodes from those of the leaves -> float64 [B, P].

        A node's is the sum over its leaves. With `multi_label` leaves do not exclude each other
        and a sum could exceed one; the node then gets the largest, which it has at least.
        """
        inside: dict[Path, list[int]] = defaultdict(list)
        for at, leaf in enumerate(self.leaves):
            for depth in range(1, len(leaf) + 1):
                inside[leaf[:depth]].append(at)
        gathered_BP = np.zeros((len(chance_BC), len(nodes)))
        for column, node in enumerate(nodes):
            leaf_BC = chance_BC[:, inside[node]]
            gathered_BP[:, column] = leaf_BC.max(axis=1) if multi_label else leaf_BC.sum(axis=1)
        # a sum of all leaves may round to a little over one
        return np.minimum(gathered_BP, 1.0)


def _path(label: str) -> Path:
    parts = tuple(part.strip() for part in label.split(SEPARATOR))
    if not all(parts):
        raise InvalidLabelsError(f"the path {label[:60]!r} has an empty part")
    if len(parts) > MAX_DEPTH:
        raise InvalidLabelsError(f"a label has {len(parts)} levels; at most {MAX_DEPTH} are read")
    return parts
