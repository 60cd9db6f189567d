"""The use cases against a real index of colours: every ranking is known beforehand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourEncoder, halves, solid
from services import APPLE, FLAG, LEAF, SKY, build_colours, colour_engine

from indexer.search.options import SearchOptions
from models.errors import (
    EncoderMismatchError,
    ImageError,
    IndexNotFoundError,
    InputError,
    InvalidLabelsError,
    InvalidTextError,
    InvalidVectorError,
    ModelError,
    NotFoundError,
)
from service.engine.classifier import ClassMatrixCache
from service.engine.engine import Engine
from service.engine.queries import (
    ComposedQuery,
    EmbeddingQuery,
    FilePaths,
    ImageQuery,
    ItemQuery,
    QueryPart,
    SearchAnswer,
    TextQuery,
    Weighted,
)
from service.engine.shared_encoder import SerialEncoder

RED_D = np.eye(9)[0]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("engine") / "colours.index")


@pytest.fixture
def engine(index: Path) -> Iterator[Engine]:
    with colour_engine(index) as engine:
        yield engine


def ids(answer: SearchAnswer) -> list[str]:
    return [hit.item.id for hit in answer.hits]


def test_a_text_finds_its_picture_and_scores_are_cosines(engine: Engine) -> None:
    answer = engine.search(TextQuery("red"), SearchOptions(k=2))
    assert ids(answer) == [APPLE, FLAG]
    assert [hit.score for hit in answer.hits] == pytest.approx([1.0, 2**-0.5], abs=1e-3)
    assert (answer.index_version, answer.model, answer.truncated) == (1, "colours", False)
    assert set(answer.timings) == {"prepare", "embed", "search", "meta", "total"}


def test_a_picture_finds_its_captions_in_both_languages(engine: Engine) -> None:
    answer = engine.search(ImageQuery(solid("red")), SearchOptions(target="texts", k=2))
    assert {hit.item.text for hit in answer.hits} == {"a red apple", "一个红苹果"}
    assert {hit.item.image_id for hit in answer.hits} == {APPLE}


def test_texts_find_texts_across_languages(engine: Engine) -> None:
    answer = engine.search(TextQuery("红"), SearchOptions(target="texts", k=2))
    assert {hit.item.language for hit in answer.hits} == {"en", "zh"}


def test_an_embedding_is_scaled_and_searched(engine: Engine) -> None:
    assert ids(engine.search(EmbeddingQuery((RED_D * 7).tolist()), SearchOptions(k=1))) == [APPLE]


def test_more_like_an_item_leaves_it_out_of_every_page(engine: Engine) -> None:
    everything = ids(engine.search(ItemQuery(FLAG), SearchOptions(k=10)))
    assert everything[:2] == sorted([APPLE, SKY])
    assert FLAG not in everything
    assert len(everything) == 3
    pages = [
        ids(engine.search(ItemQuery(FLAG), SearchOptions(k=1, offset=at)))[0] for at in range(3)
    ]
    assert pages == everything


def test_more_like_an_item_among_texts(engine: Engine) -> None:
    assert {
        h.item.text
        for h in engine.search(ItemQuery(APPLE), SearchOptions(target="texts", k=2)).hits
    } == {
        "a red apple",
        "一个红苹果",
    }


def test_pages_follow_each_other(engine: Engine) -> None:
    whole = ids(engine.search(TextQuery("red"), SearchOptions(k=4)))
    assert [
        ids(engine.search(TextQuery("red"), SearchOptions(k=1, offset=at)))[0] for at in range(4)
    ] == whole


def test_a_floor_leaves_out_what_is_below(engine: Engine) -> None:
    assert ids(engine.search(TextQuery("red"), SearchOptions(min_score=0.9))) == [APPLE]
    assert ids(engine.search(TextQuery("red"), SearchOptions(min_score=0.5))) == [APPLE, FLAG]


def test_vectors_come_back_in_hit_order(engine: Engine) -> None:
    answer = engine.search(TextQuery("red"), SearchOptions(k=3, include=frozenset({"embedding"})))
    assert answer.vectors_KD is not None
    assert answer.vectors_KD.shape == (3, 9)
    scores = answer.vectors_KD @ RED_D
    assert scores == pytest.approx([hit.score for hit in answer.hits], abs=1e-3)


def test_a_text_over_the_context_is_marked(engine: Engine) -> None:
    assert engine.search(TextQuery("red " * 65)).truncated
    assert not engine.search(TextQuery("red " * 64)).truncated


@pytest.mark.parametrize("text", ["", "  \n\t", "x" * 10_001, "red\0", "red\ud800"])
def test_text_that_is_refused(engine: Engine, text: str) -> None:
    with pytest.raises(InvalidTextError) as caught:
        engine.search(TextQuery(text))
    assert "red" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["x" * 10_000, "!", "👩‍👩‍👧‍👦", "\u202ered", "e" + "\u0301" * 9_000, "\x07"]
)
def test_text_that_is_strange_but_searchable(engine: Engine, text: str) -> None:
    assert engine.search(TextQuery(text), SearchOptions(k=1)).hits


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0] * 8,
        [1.0] * 10,
        [0.0] * 9,
        [float("nan")] + [0.0] * 8,
        [float("inf")] + [0.0] * 8,
        [1e38] + [0.0] * 8,
        [10**400] + [0] * 8,
        ["1"] * 8 + ["x"],
    ],
)
def test_embeddings_that_are_refused(engine: Engine, values: list[float]) -> None:
    with pytest.raises(InvalidVectorError):
        engine.search(EmbeddingQuery(values))


@pytest.mark.parametrize(("k", "offset"), [(0, 0), (1001, 0), (-1, 0), (1, -1), (1, 10_001)])
def test_pages_that_are_refused(engine: Engine, k: int, offset: int) -> None:
    with pytest.raises(InputError):
        engine.search(TextQuery("red"), SearchOptions(k=k, offset=offset))


def test_an_unknown_item_and_one_no_store_could_hold(engine: Engine) -> None:
    for call in (engine.item, engine.thumbnail, lambda i: engine.search(ItemQuery(i))):
        with pytest.raises(NotFoundError):
            call("nobody")
        with pytest.raises(NotFoundError):
            call("x" * 20_000)
        with pytest.raises(InvalidTextError):
            call("a\ud800")


def test_items_carry_their_captions(engine: Engine) -> None:
    texts = engine.captions(engine.item(APPLE))
    assert [(text.language, text.text) for text in texts] == [
        ("en", "a red apple"),
        ("zh", "一个红苹果"),
    ]
    assert engine.captions(texts[1]) == texts
    assert engine.captions(engine.item(FLAG)) == []


def test_another_pair_than_the_index_was_built_with_is_refused(index: Path) -> None:
    with (
        pytest.raises(EncoderMismatchError, match=r"colours.*others"),
        colour_engine(index, ColourEncoder(name="others")),
    ):
        pass


def test_without_an_index_only_searching_is_refused() -> None:
    engine = Engine(ColourEncoder())
    engine.warm_up()
    assert engine.classify([solid("red")], ["red", "blue"]).results[0].predictions
    with pytest.raises(IndexNotFoundError):
        engine.search(TextQuery("red"))


# -- classification -------------------------------------------------------------------------------


def test_classes_are_ranked_and_add_up_to_one(engine: Engine) -> None:
    answer = engine.classify([solid("green"), solid("blue")], ["red", "green", "blue"])
    first = [result.predictions[0].label for result in answer.results]
    assert first == ["green", "blue"]
    for result in answer.results:
        assert sum(p.probability for p in result.predictions) == pytest.approx(1)


def test_softmax_of_known_cosines(engine: Engine) -> None:
    # one template without other words: cosines are exactly 1 and 0, the scale is 20
    answer = engine.classify([solid("red")], ["red", "blue"], template_set="plain")
    expected = 1 / (1 + np.exp(-20.0))
    assert answer.results[0].predictions[0].probability == pytest.approx(expected, rel=1e-6)


def test_multi_label_judges_each_on_its_own(engine: Engine) -> None:
    picture = halves("red", "blue")
    answer = engine.classify([picture], ["red", "blue", "green"], multi_label=True)
    chance = {p.label: p.probability for p in answer.results[0].predictions}
    assert chance["red"] > 0.99
    assert chance["blue"] > 0.99
    assert chance["green"] == pytest.approx(0.5)  # as unlike the picture as nothing in particular


def test_labels_that_cannot_be_read_are_warned_about(engine: Engine) -> None:
    assert engine.classify([solid("red")], ["red", "blue"]).warnings == ()
    [codes] = engine.classify([solid("red")], ["n02084071", "n02121808", "red"]).warnings
    assert "2 of 3 labels look like codes (n02084071, n02121808)" in codes
    [cut] = engine.classify([solid("red")], ["red", "blue " * 150]).warnings
    assert "1 labels are longer than the model reads" in cut


def test_a_damaged_picture_fails_alone(engine: Engine) -> None:
    answer = engine.classify([solid("red"), b"nope", solid("blue")], ["red", "blue"])
    labels = [
        result.predictions[0].label if result.predictions else None for result in answer.results
    ]
    assert labels == ["red", None, "blue"]
    assert isinstance(answer.results[1].error, ImageError)
    assert answer.results[0].error is None


def test_only_damaged_pictures_and_no_pictures(engine: Engine) -> None:
    assert engine.classify([b"", b"x"], ["red", "blue"]).results[0].error is not None
    assert engine.classify([], ["red", "blue"]).results == ()


def test_top_k_keeps_the_most_likely(engine: Engine) -> None:
    answer = engine.classify([solid("red")], ["blue", "red", "green"], top_k=1)
    assert [p.label for p in answer.results[0].predictions] == ["red"]


@pytest.mark.parametrize(
    ("labels", "more"),
    [
        ([], {}),
        (["red"], {}),
        ([], {"multi_label": True}),
        ([str(n) for n in range(1001)], {}),
        (["red", "red"], {}),
        (["red", " "], {}),
        (["red", "x" * 10_000], {}),
        (["red", "blue"], {"templates": ["no place"]}),
        (["red", "blue"], {"templates": ["{0.__class__}"]}),
        (["red", "blue"], {"templates": []}),
        (["red", "blue"], {"template_set": "nobody's"}),
        (["red", "blue"], {"template_set": "plain", "templates": ["{}"]}),
        ([str(n) for n in range(1000)], {"templates": [f"{{}} {n}" for n in range(100)]}),
    ],
)
def test_labels_that_are_refused(
    engine: Engine, labels: list[str], more: dict[str, object]
) -> None:
    with pytest.raises(InvalidLabelsError):
        engine.classify([solid("red")], labels, **more)  # type: ignore[arg-type]


def test_a_label_set_is_embedded_once(index: Path) -> None:
    encoder = ColourEncoder()
    with colour_engine(index, encoder) as engine:
        for _ in range(3):
            engine.classify([solid("red")], ["red", "blue"], templates=["a {}"])
        assert encoder.texts_embedded == 2
        engine.classify([solid("red")], ["blue", "red"], templates=["a {}"])
        assert encoder.texts_embedded == 4  # another order is another matrix


def test_the_cache_is_bounded_by_bytes_and_drops_the_oldest() -> None:
    cache = ClassMatrixCache(max_bytes=3 * 40)
    made: list[str] = []

    def matrix(name: str) -> np.ndarray:
        made.append(name)
        return np.zeros(10, dtype=np.float32)

    for name in ["a", "b", "c", "a", "d", "a", "b"]:
        cache.get_or_make(name, lambda name=name: matrix(name))
    assert len(cache) == 3
    assert made == ["a", "b", "c", "d", "b"]  # "a" was used again and stayed; "b" had to go
    cache.get_or_make("huge", lambda: np.zeros(1000, dtype=np.float32))
    assert len(cache) == 3


# -- the device -----------------------------------------------------------------------------------


class BusyEncoder(ColourEncoder):
    """Notices two callers at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.most = 0

    def embed_texts(self, texts):  # type: ignore[no-untyped-def]
        self.inside += 1
        self.most = max(self.most, self.inside)
        threading.Event().wait(0.01)
        self.inside -= 1
        return super().embed_texts(texts)


@pytest.mark.parametrize(("wrap", "most"), [(SerialEncoder, 1), (lambda e: e, 8)])
def test_the_device_sees_one_caller_at_a_time(wrap, most: int) -> None:  # type: ignore[no-untyped-def]
    busy = BusyEncoder()
    encoder = wrap(busy)  # without the wrapper, as the control, they overlap
    threads = [
        threading.Thread(target=lambda: encoder.embed_texts([encoder.prepare_text("red")]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (busy.most == 1) == (most == 1)


def test_a_vector_of_nan_is_an_error_and_never_an_answer(index: Path) -> None:
    class Broken(ColourEncoder):
        def embed_texts(self, texts):  # type: ignore[no-untyped-def]
            return super().embed_texts(texts) * np.float32("nan")

    with colour_engine(index, Broken()) as engine, pytest.raises(ModelError):
        engine.search(TextQuery("red"))


def test_the_sky_is_there_too(engine: Engine) -> None:
    assert ids(engine.search(TextQuery("blue"), SearchOptions(k=1))) == [SKY]
    assert ids(engine.search(TextQuery("绿"), SearchOptions(k=1))) == [LEAF]


# -- composed queries -----------------------------------------------------------------------------


def composed(*parts: tuple[QueryPart, float]) -> ComposedQuery:
    return ComposedQuery(tuple(Weighted(part, weight) for part, weight in parts))


def test_parts_add_up_and_pull_apart(engine: Engine) -> None:
    red, blue = TextQuery("red"), TextQuery("blue")
    both = engine.search(composed((red, 1.0), (blue, 1.0)), SearchOptions(k=1))
    assert ids(both) == [FLAG]
    assert both.hits[0].score == pytest.approx(1.0, abs=1e-3)
    away = engine.search(composed((red, 1.0), (blue, -0.5)), SearchOptions(k=4))
    assert ids(away)[0] == APPLE
    assert ids(away)[-1] == SKY
    # (1, -0.5) normalised against the basis: closed form
    assert away.hits[0].score == pytest.approx(1.25**-0.5, abs=1e-3)
    assert away.hits[-1].score == pytest.approx(-0.5 * 1.25**-0.5, abs=1e-3)


def test_every_kind_of_part_takes_part(engine: Engine) -> None:
    query = composed(
        (TextQuery("red"), 1.0),
        (ImageQuery(solid("blue")), 1.0),
        (EmbeddingQuery(list(RED_D * 7)), 1.0),
        (ItemQuery(LEAF), 0.1),
    )
    answer = engine.search(query, SearchOptions(k=4, include=frozenset({"embedding"})))
    expected_D = 2 * np.eye(9)[0] + np.eye(9)[2] + 0.1 * np.eye(9)[1]
    expected_D /= np.sqrt((expected_D**2).sum())
    assert answer.vectors_KD is not None
    assert [hit.score for hit in answer.hits] == pytest.approx(
        (answer.vectors_KD @ expected_D).tolist(), abs=1e-3
    )
    assert LEAF not in ids(answer), "an item of the query is left out"


def test_all_items_of_a_query_are_left_out_on_every_page(engine: Engine) -> None:
    query = composed((ItemQuery(APPLE), 1.0), (ItemQuery(FLAG), 1.0), (ItemQuery(APPLE), 1.0))
    assert ids(engine.search(query, SearchOptions(k=4))) == [SKY, LEAF]
    assert ids(engine.search(query, SearchOptions(k=1))) == [SKY]
    assert ids(engine.search(query, SearchOptions(k=1, offset=1))) == [LEAF]


def test_a_lone_negative_part_asks_for_the_opposite(engine: Engine) -> None:
    answer = engine.search(composed((TextQuery("red"), -3.0)), SearchOptions(k=4))
    assert ids(answer)[-1] == APPLE
    assert answer.hits[-1].score == pytest.approx(-1.0, abs=1e-3)


def test_one_call_a_tower_however_many_parts(index: Path) -> None:
    class Counting(ColourEncoder):
        calls = 0

        def embed_texts(self, texts):  # type: ignore[no-untyped-def]
            self.calls += 1
            return super().embed_texts(texts)

    encoder = Counting()
    with colour_engine(index, encoder) as engine:
        engine.search(composed(*[(TextQuery(f"red {i}"), 1.0) for i in range(16)]))
    assert (encoder.calls, encoder.texts_embedded) == (1, 16)


def test_a_long_part_is_reported_as_cut(engine: Engine) -> None:
    query = composed((TextQuery("red"), 1.0), (TextQuery("blue " * 100), 1.0))
    assert engine.search(query).truncated


@pytest.mark.parametrize("weight", [0.0, 100.1, -101.0, float("nan"), float("inf"), -float("inf")])
def test_weights_out_of_range(engine: Engine, weight: float) -> None:
    with pytest.raises(InputError, match="weight"):
        engine.search(composed((TextQuery("red"), 1.0), (TextQuery("blue"), weight)))


def test_too_many_parts_none_and_parts_that_cancel(engine: Engine) -> None:
    red = (TextQuery("red"), 1.0)
    with pytest.raises(InputError, match="parts"):
        engine.search(composed(*[red] * 17))
    with pytest.raises(InputError, match="parts"):
        engine.search(composed())
    with pytest.raises(InvalidVectorError, match="cancel out"):
        engine.search(composed(red, (ImageQuery(solid("red")), -1.0)))


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("file:///srv/photos/a%20b/c%23.jpg", "a%20b/c%23.jpg"),
        ("file:///srv/photos/a.tar#x/y.jpg", "a.tar#x/y.jpg"),
        ("/srv/photos/a b.jpg", "a b.jpg"),
        ("file:///srv/photos", None),
        ("file:///srv/photos2/a.jpg", None),
        ("file:///srv/photos/../secret/a.jpg", None),
        ("file:///srv/photos/%2E%2E/secret/a.jpg", None),
        ("/elsewhere/a.jpg", None),
        ("C:\\photos\\a.jpg", None),
        ("C:/photos/a.jpg", None),
        ("file:///C:/photos/a.jpg", None),
        ("a/b.jpg", "a/b.jpg"),
        ("../b.jpg", None),
        ("https://a.example/srv/photos/../x.jpg", "https://a.example/srv/photos/../x.jpg"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("", None),
    ],
)
def test_paths_are_told_relative_to_a_root(uri: str, told: str | None) -> None:
    assert FilePaths.below(Path("/srv/photos")).told(uri) == told
    assert FilePaths().told(uri) == (uri or None)
    local = not uri.startswith(("https:", "s3:", "a/"))
    assert FilePaths(everything=False).told(uri) == (None if local else told)


def test_a_root_that_is_a_link_is_known_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    told = FilePaths.below(tmp_path / "link")
    for name in ("link", "real"):
        assert told.told((tmp_path / name / "a.jpg").as_uri()) == "a.jpg"
