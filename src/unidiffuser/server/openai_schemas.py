"""What the OpenAI API takes, as strict types, and which of it means nothing here."""

from typing import Annotated, Any, Literal, Self

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError

from unidiffuser.server.limits import TurnedAwayError
from unidiffuser.server.schemas import MAX_SEED, MAX_TEXT, Drawn, Name, Strict, Timestep

MAX_IMAGES = 10
Size = Annotated[str, Field(max_length=20)]
Word = Annotated[str, Field(max_length=200)]


class Extras(Drawn):
    """Our own settings, in one object."""

    looseness: dict[Name, Timestep] | None = Field(None, max_length=32)


class ImageBody(Strict):
    """Pictures of a sentence."""

    prompt: str = Field(min_length=1, max_length=MAX_TEXT)
    model: str | None = Field(None, max_length=100)
    n: int | None = Field(1, ge=1, le=MAX_IMAGES)
    size: Size | None = "auto"
    response_format: Literal["url", "b64_json"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3)
    unidiffuser: Extras | None = None
    quality: Word | None = None
    style: Word | None = None
    background: Word | None = None
    moderation: Word | None = None
    user: Word | None = None


class VariationForm(Strict):
    """The fields of a variation, beside its picture."""

    model: str | None = Field(None, max_length=100)
    n: int | None = Field(1, ge=1, le=MAX_IMAGES)
    size: Size | None = "auto"
    response_format: Literal["url", "b64_json"] | None = "b64_json"
    user: Word | None = None

    @classmethod
    def read(cls, fields: dict[str, str]) -> Self:
        """From the texts of a form: a number is what looks exactly like one."""
        values: dict[str, Any] = dict(fields)
        for name in ("n", "partial_images", "output_compression"):
            text = values.get(name, "")
            if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10:
                values[name] = int(text)
        if values.get("stream") in ("true", "false"):
            values["stream"] = values["stream"] == "true"
        try:
            return cls(**values)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error


class EditForm(VariationForm):
    """The fields of an edit, beside its picture and its mask."""

    prompt: str = Field(min_length=1, max_length=MAX_TEXT)
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3)
    quality: Word | None = None
    background: Word | None = None
    input_fidelity: Word | None = None


class ImageUrl(Strict):
    """A picture in a message."""

    url: str = Field(min_length=1, description="A data URL.")
    detail: Word | None = None


class TextPart(Strict):
    """Words in a message."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class ImagePart(Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Strict):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart | ImagePart], Field(max_length=16)]
    name: Word | None = None


class ChatBody(Strict):
    """A picture to be described."""

    messages: list[Message] = Field(min_length=1, max_length=64)
    model: str | None = Field(None, max_length=100)
    n: int | None = Field(1, ge=1, le=MAX_IMAGES)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stream: bool | None = False
    unidiffuser: Extras | None = None
    temperature: float | None = Field(None, allow_inf_nan=False)
    top_p: float | None = Field(None, allow_inf_nan=False)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    presence_penalty: float | None = Field(None, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, allow_inf_nan=False)
    stop: str | list[str] | None = None
    user: Word | None = None


MEANINGLESS = (
    "quality", "style", "background", "moderation", "user", "input_fidelity", "temperature", "top_p", "max_tokens",
    "max_completion_tokens", "presence_penalty", "frequency_penalty", "stop",
)  # fmt: skip


class Image(BaseModel):
    """One picture of an answer."""

    seed: int
    b64_json: str | None = None
    url: str | None = None


class ImageAnswer(BaseModel):
    """Pictures."""

    created: int
    data: list[Image]
    size: str
    output_format: str
    ignored: list[str]


def ignored(body: BaseModel) -> list[str]:
    """The fields that a client set and that mean nothing here."""
    return [name for name in MEANINGLESS if getattr(body, name, None) is not None]


def caption_asked(body: ChatBody) -> tuple[str, list[str]]:
    """The picture of the last user message, and what of the messages is not looked at.

    Raises:
        TurnedAwayError: there is no picture, or several.
    """
    users = [message for message in body.messages if message.role == "user"]
    parts = users[-1].content if users and not isinstance(users[-1].content, str) else []
    images = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    if len(images) != 1:
        raise TurnedAwayError(
            422,
            f"the last user message must hold one picture (image_url), not {len(images)}",
            "invalid",
            param="messages",
        )
    words = len(body.messages) > 1 or any(isinstance(part, TextPart) for part in parts)
    return images[0], ["messages.text"] if words else []


def form_schema(form: type[VariationForm]) -> dict[str, Any]:
    """A form as OpenAPI describes it."""
    schema = form.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] |= {"image": file} | ({"mask": file} if form is EditForm else {})
    schema["required"] = [*schema.get("required", []), "image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
