"""The shapes of writing items: what a caller sends, and what it is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from service.http.resources.schemas import EXAMPLE_ID, EXAMPLE_PNG, Base64Image, SearchText, Strict

MAX_BULK = 100
MAX_ID_BYTES = 2048

Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,8}(-[A-Za-z0-9]{1,8}){0,8}$")]
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)]
Texts = Annotated[
    dict[Language, Annotated[list[SearchText], Field(max_length=64)]],
    Field(max_length=32, description="Captions by language tag; each becomes an item of its own."),
]
Uri = Annotated[
    str,
    Field(
        max_length=2048,
        pattern=r"^https?://[\x21-\x7e]+$",
        description="Where the picture can be found, http or https; told with every hit.",
    ),
]
Label = Annotated[str, Field(min_length=1, max_length=1000, description="Its class.")]
Attributes = Annotated[
    dict[str, Any],
    Field(max_length=256, description="Any JSON; declared fields among it can be filtered by."),
]


class ItemOptions(BaseModel):
    """Beside an uploaded picture: query parameters or form fields, so text."""

    model_config = ConfigDict(extra="forbid")
    text: Annotated[list[SearchText], Field(max_length=64, default_factory=list)]
    language: Language = "und"
    label: Label | None = None
    attributes: Annotated[str, Field(max_length=1 << 20, description="JSON, an object.")] = "{}"
    uri: Uri | None = None


class ItemRequest(Strict):
    """A picture, texts, or both; all of an item, for a put replaces all of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image": EXAMPLE_PNG,
                    "texts": {"en": ["a red apple"], "zh": ["一个红苹果"]},
                    "label": "fruit",
                    "attributes": {"year": 2024},
                },
                {"text": "a note without a picture"},
            ]
        }
    )
    image: Base64Image | None = None
    image_url: Annotated[
        str | None,
        Field(max_length=2048, description="Only where started with --allow-urls."),
    ] = None
    text: Annotated[
        SearchText | None, Field(description="One caption of no known language; or `texts`.")
    ] = None
    texts: Texts = Field(default_factory=dict)
    label: Label | None = None
    attributes: Attributes = Field(default_factory=dict)
    uri: Uri | None = None

    @model_validator(mode="after")
    def _something(self) -> ItemRequest:
        if self.image is not None and self.image_url is not None:
            raise PydanticCustomError("invalid-request", "Give either image or image_url.")
        if self.text is not None and self.texts:
            raise PydanticCustomError("invalid-request", "Give either text or texts.")
        picture = self.image is not None or self.image_url is not None
        if not picture and self.text is None and not any(self.texts.values()):
            raise PydanticCustomError("invalid-request", "Give a picture, a text, or both.")
        return self


class BulkItem(ItemRequest):
    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "a", "text": "a note"}]})
    id: ItemId


class BulkRequest(Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {"id": "new/apple.png", "image": EXAMPLE_PNG, "text": "a red apple"},
                        {"id": "new/note", "text": "a note without a picture"},
                    ]
                }
            ]
        }
    )
    items: Annotated[list[BulkItem], Field(min_length=1, max_length=MAX_BULK)]


class RefusedItem(BaseModel):
    id: Annotated[str, Field(description="Of the item, or of one text of it.")]
    code: str
    detail: str


class ItemWritten(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_ID,
                    "outcome": "updated",
                    "texts": [EXAMPLE_ID + "#en/0"],
                    "refused": [],
                    "index_version": 4,
                }
            ]
        }
    )
    id: str
    outcome: Annotated[
        Literal["added", "updated", "unchanged"],
        Field(description="`unchanged`: it was there as it is, and nothing was written."),
    ]
    texts: Annotated[list[str], Field(description="Ids of its texts, which are items as well.")]
    refused: Annotated[
        list[RefusedItem],
        Field(description="Texts that were not stored, and declared fields of another type."),
    ]
    index_version: Annotated[int, Field(description="The first version that has it.")]


class BulkWritten(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ids": ["new/apple.png", "new/note"],
                    "added": 2,
                    "updated": 0,
                    "unchanged": 0,
                    "refused": [],
                    "index_version": 5,
                }
            ]
        }
    )
    ids: Annotated[list[str], Field(description="What the index has now, as it was sent.")]
    added: int
    updated: int
    unchanged: int
    refused: Annotated[list[RefusedItem], Field(description="Not stored, and why; the rest is.")]
    index_version: int
