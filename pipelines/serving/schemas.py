"""What the service takes: the fields of OpenAI's interface that have a meaning here, and a few of our own."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from ..seeds import SEED_LIMIT


MAX_IMAGES = 10
MAX_STEPS = 256
MAX_MESSAGES = 100
# Of a whole conversation; all of it is counted before any of it becomes tokens. Models read a few thousand tokens.
MAX_PARTS = 200
MAX_CHARACTERS = 32_000
# Colder than this sampling takes the likeliest token, and dividing by it would overflow.
MIN_TEMPERATURE = 1e-4

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CHARACTERS)]


def _is_data(source: str | bytes) -> str | bytes:
    if isinstance(source, str) and not source.startswith("data:image/"):
        raise ValueError("expected a data:image/...;base64, address; the service fetches nothing from the network")
    return source


DataUrl = Annotated[str, AfterValidator(_is_data)]
# a file of a form, or in JSON {"image_url": "data:..."}
Picture = Annotated[
    bytes | str,
    AfterValidator(_is_data),
    BeforeValidator(lambda source: source.get("image_url") if isinstance(source, dict) else source),
]
Pictures = Annotated[list[Picture], BeforeValidator(lambda given: given if isinstance(given, list) else [given])]


class _Fields(BaseModel):
    # clients send fields that OpenAI added later; what is named here is checked, the rest is ignored
    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, content: Any) -> Any:
        """OpenAI's optional fields are nullable, and its clients send them so."""
        if isinstance(content, dict):
            return {name: value for name, value in content.items() if value is not None}
        return content


class _Body(_Fields):
    model: str | None = Field(None, max_length=1000)
    user: str | None = None


class ImagesBody(_Body):
    """
    Body of `POST /v1/images/generations`.

    `num_inference_steps`, `guidance_scale`, `negative_prompt`, `complete_prompt` and `seed` are ours; OpenAI's client
    sends them with `extra_body`. Picture i of `n` is made from seed + i. Steps, guidance and whether prompts are
    completed are the checkpoint's own when not given; a completed prompt is the answer's `revised_prompt`.
    """

    prompt: Text
    n: int = Field(1, ge=1, le=MAX_IMAGES)
    size: str = Field("auto", max_length=20)
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(90, ge=0, le=100)
    stream: bool = False
    seed: int | None = Field(None, ge=0, lt=SEED_LIMIT)
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    negative_prompt: Text | None = None
    complete_prompt: bool | None = None

    @field_validator("stream")
    @classmethod
    def _no_stream(cls, stream: bool) -> bool:
        if stream:
            raise ValueError("pictures are sent whole: leave stream out")
        return stream


class EditsBody(ImagesBody):
    """
    Body of `POST /v1/images/edits`, as a form with files or as JSON.

    `mask` is transparent where to repaint. Without it the sentence decides what changes: `source_prompt`, which says
    what the face looks like now, and `strength`, the share of the picture that may change, are ours.
    """

    image: Pictures = Field(validation_alias=AliasChoices("image", "images"))
    mask: Picture | None = None
    source_prompt: Text | None = None
    strength: float = Field(0.3, ge=0, le=1)

    @field_validator("image")
    @classmethod
    def _one(cls, image: list) -> list:
        if len(image) != 1:
            raise ValueError(f"{len(image)} pictures, expected one: the model edits one face at a time")
        return image


class ImageUrl(_Fields):
    """A picture in the address itself: `data:image/png;base64,...`."""

    url: DataUrl


class TextPart(_Fields):
    """Words of a message."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_CHARACTERS)


class ImagePart(_Fields):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Fields):
    """A message of a conversation. An assistant's content may be null, as in OpenAI's schema."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)] | Annotated[list[Part], Field(max_length=MAX_PARTS)]

    @model_validator(mode="before")
    @classmethod
    def _said_nothing(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("role") == "assistant" and content.get("content", 0) is None:
            return {**content, "content": ""}
        return content


class StreamOptions(_Fields):
    """Whether a stream ends with the numbers of tokens."""

    include_usage: bool = False


class ChatBody(_Body):
    """Body of `POST /v1/chat/completions`. Without `temperature` the answer is the likeliest (greedy)."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    stop: Any = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Literal[1] = 1
    tools: Any = None

    @field_validator("messages")
    @classmethod
    def _bounded(cls, messages: list[Message]) -> list[Message]:
        parts = [part for item in messages if not isinstance(item.content, str) for part in item.content]
        texts = [item.content for item in messages if isinstance(item.content, str)]
        characters = sum(map(len, [*texts, *(part.text for part in parts if part.type == "text")]))
        num_images = sum(part.type == "image_url" for part in parts)
        if len(parts) > MAX_PARTS:
            raise ValueError(f"the conversation has {len(parts)} parts, expected at most {MAX_PARTS}")
        if characters > MAX_CHARACTERS:
            raise ValueError(f"the conversation has {characters} characters, expected at most {MAX_CHARACTERS}")
        if num_images > 1:
            raise ValueError(f"the conversation has {num_images} pictures, expected at most one: split it")
        if messages[-1].role != "user":
            raise ValueError(f"the last message is of role {messages[-1].role!r}, expected 'user'")
        return messages

    @field_validator("temperature")
    @classmethod
    def _cold_is_greedy(cls, temperature: float) -> float:
        return temperature if temperature >= MIN_TEMPERATURE else 0.0

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: Any) -> list[str]:
        stop = [stop] if isinstance(stop, str) else stop or []
        fits = isinstance(stop, list) and len(stop) <= 4 and all(isinstance(text, str) for text in stop)
        if not fits or not all(0 < len(text) <= 100 for text in stop):
            raise ValueError("expected at most 4 texts of 1 to 100 characters")
        return stop

    @field_validator("tools")
    @classmethod
    def _no_tools(cls, tools: Any) -> None:
        if tools:
            raise ValueError("the model cannot call tools")


__all__ = ["ChatBody", "EditsBody", "ImagesBody", "Message"]
