"""`diptych.py`: lazy, typed, and the same answers as the engine's, whatever the query comes as."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import COLOURS, ColourEncoder, solid
from indexes import ListSource, build, record
from PIL import Image

import diptych
from indexer.search.options import SearchOptions
from models.errors import (
    EncoderMismatchError,
    ImageError,
    IndexNotFoundError,
    InputError,
    NotFoundError,
    TrainingError,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "colours.index"
    build([record(name, name, f"a {name} thing") for name in ("red", "green", "blue")], path)
    return path


@pytest.fixture
def index(path: Path) -> Iterator[diptych.Index]:
    with diptych.open_index(path, encoder=ColourEncoder()) as index:
        yield index


def captioned(folder: Path) -> Path:
    """Twelve pictures of colours with a caption beside each."""
    folder.mkdir()
    for number, name in enumerate([*COLOURS][:6] * 2):
        (folder / f"{number}.png").write_bytes(solid(name, size=(16 + number, 16)))
        (folder / f"{number}.txt").write_text(f"{name} number {number}", encoding="utf-8")
    return folder


def test_importing_it_loads_nothing_heavy_and_every_name_leads_home() -> None:
    script = (
        "import sys, diptych\n"
        "heavy = {'torch', 'faiss', 'numpy', 'PIL', 'fastapi', 'click'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "diptych.SearchOptions, diptych.open_index\n"
        "assert not {'torch', 'faiss', 'fastapi', 'click'} & set(sys.modules)\n"
        "assert all(getattr(diptych, name) is not None for name in diptych.__all__)\n"
        "assert set(diptych.__all__) <= set(dir(diptych))\n"
    )
    root = Path(diptych.__file__).parent
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, timeout=120)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = diptych.nothing


def test_a_text_finds_hits_with_score_id_uri_and_text(index: diptych.Index) -> None:
    hits = index.search("a red thing", k=2)
    assert len(hits) == 2
    assert (hits[0].id, hits[0].uri, hits[0].text) == (
        "red", "file:///pictures/red.png", "a red thing",
    )  # fmt: skip
    assert hits[0].score == pytest.approx(1.0, abs=1e-3)
    assert hits[0].score > hits[1].score


def test_every_kind_of_picture_asks_the_same(index: diptych.Index, tmp_path: Path) -> None:
    data = solid("green")
    (tmp_path / "green.png").write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    asked = [data, tmp_path / "green.png", opened, opened.convert("CMYK"), opened.convert("P")]
    for query in asked:
        assert [hit.id for hit in index.search(query, k=1)] == ["green"], query


def test_a_sideways_pil_image_is_turned_upright(path: Path) -> None:
    """The left half of the camera's picture is red; its EXIF says that left is the top."""
    seen: list[tuple[int, int, int]] = []

    class Watching(ColourEncoder):
        def prepare_image(self, image: Image.Image) -> np.ndarray:
            seen.append(image.convert("RGB").getpixel((image.width // 2, 1)))
            return super().prepare_image(image)

    picture = Image.new("RGB", (8, 8), "blue")
    picture.paste((255, 0, 0), (0, 0, 4, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    with diptych.open_index(path, encoder=Watching()) as index:
        index.search(Image.open(io.BytesIO(buffer.getvalue())))
        index.search(buffer.getvalue())
    assert seen == [(255, 0, 0), (255, 0, 0)]


def test_vectors_and_items_ask_too(index: diptych.Index) -> None:
    assert index.search(index.vector("blue"), k=1)[0].id == "blue"
    assert index.search(index.vector("blue").tolist(), k=1)[0].id == "blue"
    assert "blue" not in [hit.id for hit in index.search(diptych.ItemQuery("blue"))]
    parts = (
        diptych.Weighted(diptych.TextQuery("red")),
        diptych.Weighted(diptych.TextQuery("blue"), -1.0),
    )
    assert index.search(diptych.ComposedQuery(parts), k=1)[0].id == "red"


def test_options_come_whole_or_by_name(index: diptych.Index) -> None:
    options = SearchOptions(k=1, target="texts")
    assert [hit.item.modality for hit in index.search("green", options)] == ["text"]
    assert len(index.search("green", options, k=3)) == 3
    with pytest.raises(InputError, match="fuzzy") as caught:
        index.search("green", fuzzy=True)
    assert "hybrid" in (caught.value.hint or "")


def test_a_filter_may_be_its_document(tmp_path: Path) -> None:
    rows = [record("a", "red", year=2020), record("b", "red", year=2024)]
    fields = diptych.parse_fields(["year:int"])
    report = diptych.build_index(
        ListSource(rows), tmp_path / "i", encoder=ColourEncoder(),
        options=diptych.BuildOptions(fields=fields),
    )  # fmt: skip
    assert report.images == 2
    with diptych.open_index(tmp_path / "i", encoder=ColourEncoder()) as index:
        hits = index.search("red", filter={"field": "year", "gte": 2023})
        assert [hit.id for hit in hits] == ["b"]
        assert [facet.name for facet in index.facets()] == ["year"]


@pytest.mark.parametrize("query", [None, 3.5, {"text": "red"}, [[1.0, 2.0]], ["a", "b"], object()])
def test_what_cannot_be_asked_is_refused_in_words(index: diptych.Index, query: object) -> None:
    with pytest.raises(InputError, match="cannot search by") as caught:
        index.search(query)  # type: ignore[arg-type]
    assert "PIL" in (caught.value.hint or "")


def test_a_missing_file_and_a_broken_picture(index: diptych.Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        index.search(tmp_path / "none.png")
    with pytest.raises(ImageError):
        index.search(b"no picture")


def test_another_pair_and_no_index_are_refused(path: Path, tmp_path: Path) -> None:
    index = diptych.open_index(path, encoder=ColourEncoder(name="another"))
    with index, pytest.raises(EncoderMismatchError):
        index.search("red")
    with pytest.raises(IndexNotFoundError):
        diptych.open_index(tmp_path / "nothing")


def test_items_and_what_the_index_says_of_itself(index: diptych.Index) -> None:
    assert index.item("red").text == "a red thing"
    assert [item.text for item in index.captions("red")] == ["a red thing"]
    assert len(index) == 6
    assert index.info().images == 3
    assert Image.open(io.BytesIO(index.thumbnail("red"))).format == "JPEG"
    with pytest.raises(NotFoundError):
        index.item("mauve")


def test_an_index_is_built_from_a_folder_and_reloaded_when_it_grew(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(solid("red"))
    told: list[object] = []
    out = tmp_path / "folder.index"
    first = diptych.build_index(folder, out, encoder=ColourEncoder(), on_progress=told.append)
    assert (first.images, first.rejected) == (1, 0)
    with diptych.open_index(out, encoder=ColourEncoder()) as index:
        (folder / "b.png").write_bytes(solid("blue"))
        diptych.build_index([str(folder)], out, encoder=ColourEncoder())
        assert len(index.search("blue")) == 1, "an opened index is one version"
        index.reload()
        assert index.search("blue", k=1)[0].id == "b.png"


def test_pictures_are_classified(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(solid("red"))
    pictures = [tmp_path / "a.png", solid("blue"), b"no picture"]
    red, blue, broken = diptych.classify(pictures, ["red", "blue"], encoder=ColourEncoder())
    assert red.predictions[0].label == "red"
    assert blue.predictions[0].label == "blue"
    assert isinstance(broken.error, ImageError)
    [alone] = diptych.classify(solid("blue"), ["red", "blue"], encoder=ColourEncoder(), top_k=1)
    assert [one.label for one in alone.predictions] == ["blue"]
    many = diptych.classify([solid("red")] * 70, ["red", "blue"], encoder=ColourEncoder())
    assert {result.predictions[0].label for result in many} == {"red"}
    assert len(many) == 70


def test_training_takes_settings_by_name_and_what_it_leaves_loads(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "pictures")
    told: list[int] = []
    result = diptych.train(
        folder, tmp_path / "pair", epochs=1, batch_size=4, validation=[],
        on_step=lambda step: told.append(step.step),
    )  # fmt: skip
    assert result.steps == len(told) > 0
    assert result.after is None
    encoder = diptych.load_encoder(f"local-dir:{tmp_path / 'pair'}")
    assert encoder.embed_texts([encoder.prepare_text("red")]).shape == (1, encoder.dim)
    with pytest.raises(TrainingError, match="finished run"):
        diptych.train(folder, tmp_path / "pair", epochs=1, batch_size=4, validation=[])


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 1e-3}, {"lr": float("nan")}, {"lr": -1.0}, {"epochs": 0}, {"epochs": "two"},
     {"objective": "triplet"}, {"epochs": True}],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused_before_anything_is_read(
    wrong: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        diptych.train(tmp_path / "nothing here", tmp_path / "pair", **wrong)


def test_a_pair_is_measured_on_captions_labels_and_by_a_linear_probe(tmp_path: Path) -> None:
    data = ListSource(
        [replace(record(f"{name}{i}", name, f"a {name} thing"), label=name)
         for name in ("red", "green", "blue") for i in range(3)]
    )  # fmt: skip
    encoder = ColourEncoder()
    [english] = diptych.evaluate(data, encoder=encoder)
    assert english.language == "en"
    assert 0 < english.metrics["image_retrieval_recall@1"] <= 1
    [shot] = diptych.evaluate(data, task="zero-shot", encoder=encoder)
    assert shot.metrics["acc1"] == 1.0
    [probe] = diptych.evaluate(data, task="linear-probe", train=data, encoder=encoder)
    assert probe.metrics["lp_acc1"] == 1.0
    with pytest.raises(InputError, match="no task"):
        diptych.evaluate(data, task="guess", encoder=encoder)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="go together"):
        diptych.evaluate(data, task="linear-probe", encoder=encoder)
    with pytest.raises(InputError, match="no captions"):
        diptych.evaluate(ListSource([record("a", "red")]), encoder=encoder)
