"""What the service takes: the fields of OpenAI's interface that have a meaning here, and a few of our own."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator


MAX_IMAGES = 10
MAX_STEPS = 256
MAX_MESSAGES = 100

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=32_000)]


class _Body(BaseModel):
    # clients send fields that OpenAI added later; what is named here is checked, the rest is ignored
    model_config = ConfigDict(extra="ignore")
    model: str | None = None
    user: str | None = None


class ImagesBody(_Body):
    """
    Body of `POST /v1/images/generations`.

    `num_inference_steps`, `guidance_scale`, `negative_prompt` and `seed` are ours; OpenAI's client sends them with
    `extra_body`. Picture i of `n` is made from seed + i.
    """

    prompt: Text
    n: int = Field(1, ge=1, le=MAX_IMAGES)
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(90, ge=0, le=100)
    seed: int | None = Field(None, ge=0, lt=2**32)
    num_inference_steps: int = Field(16, ge=1, le=MAX_STEPS)
    guidance_scale: float = Field(4.0, ge=0, le=100, allow_inf_nan=False)
    negative_prompt: Text | None = None


class ImageUrl(BaseModel):
    """A picture in the address itself: `data:image/png;base64,...`."""

    url: str

    @field_validator("url")
    @classmethod
    def _is_data(cls, url: str) -> str:
        if not url.startswith("data:image/"):
            raise ValueError("expected a data:image/...;base64, address; the service fetches nothing from the network")
        return url


class TextPart(BaseModel):
    """Words of a message."""

    type: Literal["text"]
    text: str = Field(max_length=32_000)


class ImagePart(BaseModel):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=32_000)] | list[Part]


class StreamOptions(BaseModel):
    """Whether a stream ends with the numbers of tokens."""

    include_usage: bool = False


class ChatBody(_Body):
    """Body of `POST /v1/chat/completions`. Without `temperature` the answer is the likeliest (greedy)."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    stop: str | list[Annotated[str, StringConstraints(min_length=1, max_length=100)]] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Literal[1] = 1
    tools: Any = None

    @field_validator("stop")
    @classmethod
    def _few(cls, stop):
        stop = [stop] if isinstance(stop, str) else stop or []
        if len(stop) > 4 or "" in stop:
            raise ValueError("expected at most 4 texts, none of them empty")
        return stop

    @field_validator("tools")
    @classmethod
    def _no_tools(cls, tools):
        if tools:
            raise ValueError("the model cannot call tools")
        return None


__all__ = ["ChatBody", "ImagesBody", "Message"]
