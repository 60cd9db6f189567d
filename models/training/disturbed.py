"""Captions that are wrong although their words are right: negatives that word order decides.

Two words of a caption change places ("a horse eats grass", "a grass eats horse"), after Yuksekgonul
et al. 2023 (NegCLIP), who swap words of one part of speech; no tagger is asked here, only words
that carry little meaning are left alone. A text without spaces has its characters swapped.
"""

from __future__ import annotations

import re
from random import Random
from typing import Final

_WORD: Final = re.compile(r"\w+")
_LIGHT: Final = frozenset({
    "a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "with", "by", "for", "from",
    "is", "are", "was", "were", "be", "it", "its", "this", "that", "there", "der", "die",
    "das", "ein", "eine", "und", "im", "am", "auf", "mit", "le", "la", "les", "un", "une",
    "et", "de", "du", "des", "el", "los", "las", "una", "y", "en", "con", "il", "lo", "i",
    "gli", "e", "di", "da",
})  # fmt: skip
_TRIES: Final = 8


def disturbed(text: str, random: Random) -> str:
    """A text other than `text`, of its own words; empty where it has too few.

    Example:
        >>> disturbed("a horse eats", Random(0))
        'a eats horse'
        >>> disturbed("x", Random(0))
        ''
    """
    found = list(_WORD.finditer(text))
    heavy = [match.span() for match in found if match[0].lower() not in _LIGHT]
    if len({text[slice(*span)].lower() for span in heavy}) < 2:
        heavy = [match.span() for match in found]
    if len(found) < 2:
        heavy = [(at, at + 1) for at, letter in enumerate(text) if letter.isalnum()]
    for _ in range(_TRIES):
        if len(heavy) < 2:
            break
        (a, b), (c, d) = sorted(random.sample(heavy, 2))
        changed = text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]
        if changed.lower() != text.lower():
            return changed
    # an empty caption is a harmless negative; the caption itself would be a wrong one
    return ""
