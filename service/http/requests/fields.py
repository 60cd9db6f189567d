"""Fields that several resources' requests share, and the examples shown in the documentation.

Only shapes; what a value means is the engine's business. The tests run the examples.
"""

from __future__ import annotations

from typing import Annotated, Any, Unpack

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from models.errors import InputError
from service.engine.queries import MAX_TEXT_CHARS, check_text

EXAMPLE_ID = "fruit/red apple.png"
# an 8 x 8 red picture, as a caller would send it
EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP8z4AdMDEMKQkAzUEBD7t4NqoAAAAA"
    "SUVORK5CYII="
)
MAX_IMAGES = 64


def _searchable(text: str) -> str:
    try:
        return check_text(text)
    except InputError as error:
        # the type is a code of the problem catalogue; see middleware.problems.of_validation
        raise PydanticCustomError("invalid-text", "{why}", {"why": error.message}) from None


SearchText = Annotated[
    str,
    AfterValidator(_searchable),
    Field(
        description=f"1 to {MAX_TEXT_CHARS} characters, in any language the model knows. Text over "
        "the model's context is cut, and the answer says `truncated`."
    ),
]
Base64Image = Annotated[
    str, Field(min_length=1, description="A picture in base64, bare or as a `data:` URI.")
]


def examples(*each: Any, **config: Unpack[ConfigDict]) -> ConfigDict:
    """The configuration of a model that the documentation shows these examples of."""
    return ConfigDict(json_schema_extra={"examples": [*each]}, **config)


class StrictModel(BaseModel):
    """A request in JSON: no coercion, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)
