"""Terms of texts, the inverted index they fill, and BM25 against a loop over the texts."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.format.items import Item, ItemsReader, ItemsWriter, NewRow
from indexer.format.word_table import Postings, decode, encode, terms
from indexer.search.words import K1, B, WordIndex
from models.errors import IndexCorruptError

VOCABULARY = ["a", "dog", "Café", "red", "狗在跑", "女孩", "zebra", "хлеб", "x1", "on", "the"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man, in a RED shirt!", ["a", "man", "in", "a", "red", "shirt"]),
        ("Café STRASSE straße Ｆｕｌｌ", ["cafe", "strasse", "strasse", "full"]),
        ("女孩", ["女", "孩", "女孩"]),
        ("狗", ["狗"]),
        ("ab一只cd", ["ab", "一", "只", "一只", "cd"]),
        ("がぎ", ["が", "ぎ", "がぎ"]),  # voicing marks are letters, not accents
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs belong to their word
        ("snake_case 3.14", ["snake", "case", "3", "14"]),
        ("e\u0301te\u0301", ["ete"]),
        ("", []),
        (" \0\t!?…🐶", []),
        ("\ud800", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@given(st.text())
def test_any_text_has_terms_that_can_be_stored(text: str) -> None:
    for term in terms(text):
        assert term
        assert len(term) <= 64
        assert "\0" not in term
        term.encode()


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_the_ascii_shortcut_changes_nothing(text: str) -> None:
    assert terms(text) == terms(text + " ж")[:-1]


@given(st.dictionaries(st.integers(0, 2**40), st.integers(1, 255), min_size=1))
def test_postings_survive_storing(counts: dict[int, int]) -> None:
    rows = np.array(sorted(counts), dtype=np.int64)
    given_counts = np.array([counts[row] for row in sorted(counts)], dtype=np.uint8)
    found = decode(len(rows), encode(Postings(rows, given_counts)))
    assert found.rows_M.tolist() == rows.tolist()
    assert found.counts_M.tolist() == given_counts.tolist()


def test_postings_of_neighbours_cost_a_byte_a_row() -> None:
    rows = np.arange(0, 20_000, 200)
    ones = np.ones(len(rows), dtype=np.uint8)
    assert len(encode(Postings(rows, ones))) == 2 + len(rows)


def item(row: int, text: str | None) -> Item:
    return Item(f"id{row:04}", "text", "", text, "und", None, None, {}, "00" * 32)


def store(path: Path, texts: list[str | None]) -> ItemsReader:
    writer = ItemsWriter(path)
    for row, text in enumerate(texts):
        writer.add(NewRow(f"r{row}", item(row, text)))
    writer.close()
    return ItemsReader(path, "text")


def bm25_by_loop(query: str, texts: list[str]) -> list[float]:
    """One score per text, straight from the definition."""
    documents = [Counter(terms(text)) for text in texts]
    full = [document for document in documents if document]
    mean = sum(document.total() for document in full) / len(full)
    scores = []
    for document in documents:
        score = 0.0
        for term in set(terms(query)):
            n = document[term]
            df = sum(term in other for other in documents)
            idf = math.log(1 + (len(full) - df + 0.5) / (df + 0.5))
            length = document.total() / mean
            score += idf * n * (K1 + 1) / (n + K1 * (1 - B + B * length))
        scores.append(score)
    return scores


def random_texts(rng: random.Random, count: int) -> list[str]:
    return [
        " ".join(
            rng.choices(VOCABULARY, weights=range(len(VOCABULARY), 0, -1), k=rng.randint(0, 9))
        )
        for _ in range(count)
    ]


def scores_of(parts: list[tuple[ItemsReader, np.ndarray]], query: str) -> list[dict[int, float]]:
    return [
        dict(zip(one.rows_M.tolist(), one.scores_M.tolist(), strict=True))
        for one in WordIndex(parts).search(query)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_a_loop_over_the_living_texts_of_all_segments(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    texts = [random_texts(rng, count) for count in (40, 3, 11)]
    live = [np.array([rng.random() < 0.8 for _ in part]) for part in texts]
    readers = [store(tmp_path / f"{n}.sqlite", part) for n, part in enumerate(texts)]
    living = [
        text
        for part, alive in zip(texts, live, strict=True)
        for text, lives in zip(part, alive, strict=True)
        if lives
    ]
    for query in ["dog", "a red dog on the zebra", "女孩 café", "红", "х", "", "?!", "dog" * 4000]:
        found = scores_of(list(zip(readers, live, strict=True)), query)
        expected = iter(bm25_by_loop(query, living))
        for segment, alive in zip(found, live, strict=True):
            for row, lives in enumerate(alive):
                score = next(expected) if lives else 0.0
                assert segment.get(row, 0.0) == pytest.approx(score, rel=1e-6)
    for reader in readers:
        reader.close()


def test_how_rows_are_split_into_segments_changes_no_score(tmp_path: Path) -> None:
    texts = random_texts(random.Random(7), 60)
    whole = store(tmp_path / "whole", texts)
    split = [store(tmp_path / "a", texts[:50]), store(tmp_path / "b", texts[50:])]
    one = scores_of([(whole, np.ones(60, dtype=bool))], "a red zebra 女孩")[0]
    two = scores_of([(part, np.ones(part.count(), dtype=bool)) for part in split],
                    "a red zebra 女孩")  # fmt: skip
    assert one == two[0] | {row + 50: score for row, score in two[1].items()}
    # the control: a segment on its own scores otherwise
    alone = scores_of([(split[1], np.ones(10, dtype=bool))], "a red zebra 女孩")[0]
    assert alone != two[1]


def test_words_taken_over_equal_words_written(tmp_path: Path) -> None:
    rng = random.Random(3)
    old = [random_texts(rng, 30), random_texts(rng, 20)]
    sources = [store(tmp_path / f"old{n}", part) for n, part in enumerate(old)]
    target, texts = [np.full(30, -1), np.full(20, -1)], []
    writer = ItemsWriter(tmp_path / "merged")
    for n, part in enumerate(old):
        for row, text in enumerate(part):
            if rng.random() < 0.7:
                target[n][row] = len(texts)
                writer.add(NewRow("r", item(len(texts), text), texts=()))
                texts.append(text)
    writer.add(NewRow("r", item(len(texts), "a new zebra")))
    texts.append("a new zebra")
    for source, rows in zip(sources, target, strict=True):
        writer.take_words(source, rows)
    writer.close()
    merged, fresh = ItemsReader(tmp_path / "merged", "text"), store(tmp_path / "fresh", texts)
    every = "SELECT term, rows, postings FROM words"
    assert merged.query(every) == fresh.query(every)
    assert merged.word_lengths().tolist() == fresh.word_lengths().tolist()


def test_a_damaged_posting_list_is_named(tmp_path: Path) -> None:
    import sqlite3

    store(tmp_path / "items", ["a dog", "a cat"]).close()
    with sqlite3.connect(tmp_path / "items") as db:
        db.execute("UPDATE words SET postings = x'0100' WHERE term = 'dog'")
    db.close()
    reader = ItemsReader(tmp_path / "items", "text", name="segments/1/items.sqlite")
    with pytest.raises(IndexCorruptError, match=r"segments/1/items\.sqlite"):
        reader.postings(["dog"])
    reader.close()


def test_a_file_without_words_says_so(tmp_path: Path) -> None:
    import sqlite3

    store(tmp_path / "items", ["a dog"]).close()
    with sqlite3.connect(tmp_path / "items") as db:
        db.execute("UPDATE words_about SET tokenizer = 0")
    db.close()
    assert not ItemsReader(tmp_path / "items", "text").has_words
    with sqlite3.connect(tmp_path / "items") as db:
        db.execute("DROP TABLE words_about")
    db.close()
    assert not ItemsReader(tmp_path / "items", "text").has_words
