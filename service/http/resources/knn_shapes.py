"""The shapes of clip-retrieval's protocol, as its own clients send and read them.

Lenient where they are: fields for models that this service does not have are read and left alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator
from pydantic_core import PydanticCustomError

from indexer.search.options import MAX_K
from service.http.resources.schemas import EXAMPLE_PNG

MAX_ASKED = 1_000_000
MAX_IDS = 1000


class KnnRequest(BaseModel):
    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={
            "examples": [
                {"text": "a red apple", "modality": "image", "num_images": 3},
                {
                    "text": None,
                    "image": EXAMPLE_PNG,
                    "image_url": None,
                    "embedding_input": None,
                    "deduplicate": True,
                    "use_safety_model": True,
                    "use_violence_detector": True,
                    "use_mclip": False,
                    "aesthetic_score": 9,
                    "aesthetic_weight": 0.5,
                    "modality": "text",
                    "num_images": 2,
                    "num_result_ids": 4,
                },
            ]
        },
    )
    text: str | None = None
    image: Annotated[str | None, Field(description="A picture in base64.")] = None
    image_url: str | None = None
    embedding_input: Annotated[
        list[float] | None, Field(max_length=16_384, description="A vector, in place of a query.")
    ] = None
    modality: Annotated[Literal["image", "text"], Field(description="What to look for.")]
    num_images: Annotated[
        int,
        Field(ge=1, le=MAX_ASKED, description=f"Hits with their metadata; at most {MAX_K} come."),
    ]
    num_result_ids: Annotated[
        int | None, Field(ge=1, le=MAX_ASKED, description="Hits in all. [default: num_images]")
    ] = None
    deduplicate: Annotated[
        bool, Field(description="Leave out near-duplicates of a better hit.")
    ] = False
    indice_name: Annotated[
        str | None, Field(description="As /indices-list names it; without it the first.")
    ] = None

    @model_validator(mode="after")
    def _something_is_asked(self) -> KnnRequest:
        # an empty text means none to clip-retrieval, and its page sends one beside a picture
        if not self.text and not (self.image or self.image_url) and self.embedding_input is None:
            raise PydanticCustomError(
                "invalid-request", "Give one of text, image, image_url and embedding_input."
            )
        return self

    @property
    def k(self) -> int:
        return min(MAX_K, max(self.num_images, self.num_result_ids or 0))


class KnnMetadata(BaseModel):
    """What is known of an item, in clip-retrieval's words."""

    caption: str | None = None
    url: Annotated[str | None, Field(description="Where the source keeps it, if on the web.")] = (
        None
    )
    image_path: Annotated[str | None, Field(description="The same, if it is a file.")] = None
    image: Annotated[str | None, Field(description="The thumbnail, JPEG in base64.")] = None
    item_id: Annotated[str, Field(description="The item's id everywhere else in this service.")]


class KnnHit(KnnMetadata):
    item_id: str | None = None  # type: ignore[assignment]  # none beyond num_images
    id: Annotated[int, Field(description="Means the same until the index is next optimised.")]
    similarity: float


class KnnResponse(RootModel[list[KnnHit]]):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                [{"caption": "a red apple", "image_path": "/p/apple.png", "item_id": "apple.png",
                  "id": 0, "similarity": 0.3127}]
            ]
        }
    )  # fmt: skip


class MetadataRequest(BaseModel):
    model_config = ConfigDict(
        extra="ignore", strict=True, json_schema_extra={"examples": [{"ids": [0, 1]}]}
    )
    ids: Annotated[list[int], Field(max_length=MAX_IDS)]
    indice_name: str | None = None


class MetadataOf(BaseModel):
    id: int
    metadata: KnnMetadata


class MetadataResponse(RootModel[list[MetadataOf]]):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                [{"id": 0, "metadata": {"caption": "a red apple", "item_id": "apple.png"}}]
            ]
        }
    )


class IndicesResponse(RootModel[list[str]]):
    model_config = ConfigDict(json_schema_extra={"examples": [["photos"]]})
