"""Text and pictures in, the model's sequences out; the model's output back to text and pictures."""

import threading
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

from .chat_template_unif2ace import render_chat
from .image_processing_unif2ace import UniF2aceImageProcessor
from .layout_unif2ace import SequenceLayout
from .pictures_unif2ace import shorten


logger = logging.get_logger(__name__)

# A fast tokenizer keeps what a call asks for (padding, whether control tokens in a text are text) in the Rust object
# that all calls share: of two threads that tokenize at once, one would get what the other one asked for.
_TOKENIZING = threading.RLock()

GENERATION_MODES = ("text", "image")
_FORMATTED = "text_is_formatted"  # told by `apply_chat_template` to `__call__`

# Show-o's layout of a conversation. `{% generation %}` marks the words that the model says, so that TRL's
# `assistant_only_loss` trains on them alone. The space before them belongs to them: with a byte-level tokenizer it is
# part of their first token, and the generation prompt ends without it.
CHAT_TEMPLATE = """\
{%- macro words(content) -%}
    {%- if content is string -%}{{- content | trim -}}
    {%- else -%}
        {%- for part in content if part['type'] == 'text' -%}
            {{- '' if loop.first else ' ' -}}{{- part['text'] | trim -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set seen = namespace(images=0) -%}
{%- for message in messages if message['content'] is not string -%}
    {%- for part in message['content'] -%}
        {%- if part['type'] == 'image' -%}{%- set seen.images = seen.images + 1 -%}
        {%- elif part['type'] != 'text' -%}
            {{- raise_exception("a message has a part of type '" ~ part['type'] ~ "', expected 'text' or 'image'") -}}
        {%- endif -%}
    {%- endfor -%}
{%- endfor -%}
{%- if seen.images > 1 -%}
    {{- raise_exception("a conversation has " ~ seen.images ~ " images, expected at most one: split it") -}}
{%- endif -%}
{%- if seen.images -%}{{- '<|mmu|><|soi|><|mask|><|eoi|>' -}}{%- endif -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}{{- words(message['content']) ~ ' ' -}}
    {%- elif message['role'] == 'user' -%}{{- 'USER: \\n' ~ words(message['content']) -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- ' ASSISTANT:' -}}
        {%- generation -%}{{- ' ' ~ words(message['content']) ~ eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- raise_exception("a message has role '" ~ message['role'] ~ "', expected system, user or assistant") -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}
"""

# Show-o's layout for pictures that come as CLIP features: its system prompt before the picture, no bos behind it.
CLIP_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CLIP_CHAT_TEMPLATE = (
    CHAT_TEMPLATE.replace("'<|mmu|><|soi|><|mask|><|eoi|>'", f'"<|mmu|>{CLIP_SYSTEM_PROMPT}<|soi|><|mask|><|eoi|>"')
    .replace("{{- bos_token -}}", "{%- if not seen.images -%}{{- bos_token -}}{%- endif -%}")
    .replace("'USER: \\n' ~", "'USER: ' ~")
)


class UniF2aceProcessor(ProcessorMixin):
    r"""
    Prepares the model's inputs and reads its outputs, for both directions.

    ```python
    prompt = processor(text="a young woman with hoop earrings", generation_mode="image", return_tensors="pt")
    chat = [
        {"role": "user", "content": [{"type": "image", "image": face}, {"type": "text", "text": "Is she happy?"}]}
    ]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ```

    Threads may share one: its calls tokenize one after the other. The tokenizer by itself makes no such promise.

    Args:
        image_processor ([`UniF2aceImageProcessor`]): Prepares pictures.
        tokenizer (`PreTrainedTokenizerFast`):
            Covers the model's whole vocabulary: text, special tokens, image codes and the mask token.
        chat_template (`str`, *optional*): Jinja template of conversations; Show-o's layout when not given.
        num_image_tokens (`int`, *optional*, defaults to 256):
            Places of one image in a conversation (`config.num_understanding_tokens`): as many placeholders `<|mask|>`
            stand for a picture.
        max_text_length (`int`, *optional*, defaults to 128):
            Most text tokens of a text-to-image prompt, bos and eos included (`config.max_text_length`).

    Raises:
        ValueError: if the tokenizer lacks a token that the sequences need.
    """

    text_kwargs = {"padding": True, "padding_side": "left", "add_special_tokens": False}
    return_mm_token_type_ids = True

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template: str | None = None,
        num_image_tokens: int = 256,
        max_text_length: int = 128,
    ):
        self.num_image_tokens = num_image_tokens
        self.max_text_length = max_text_length
        self.image_token = tokenizer.mask_token
        self.image_token_id = tokenizer.mask_token_id
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self._check_tokenizer()

    def _check_tokenizer(self):
        tokenizer = self.tokenizer
        unset = [
            f"{kind}_token"
            for kind in ("pad", "bos", "eos", "mask")
            if f"{kind}_token" not in tokenizer.special_tokens_map
        ]
        needed = ("<|t2i|>", "<|mmu|>", "<|soi|>", "<|eoi|>")
        unknown = [
            token for token in needed if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id)
        ]
        if unset or unknown:
            raise ValueError(
                f"the tokenizer lacks {', '.join(unset + unknown)}, expected one that covers the model's whole "
                "vocabulary: extend it with `unif2ace.training.train_text_tokenizer.extend_tokenizer`"
            )

    @classmethod
    def from_config(cls, config, tokenizer: PreTrainedTokenizerFast) -> "UniF2aceProcessor":
        """
        The processor that fits a model.

        Args:
            config ([`UniF2aceConfig`]): The model's configuration.
            tokenizer (`PreTrainedTokenizerFast`): The tokenizer of its whole vocabulary.

        Raises:
            ValueError: if the tokenizer has another number of ids than the model.
        """
        if len(tokenizer) != config.text_config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} ids, but the model has vocab_size="
                f"{config.text_config.vocab_size}: they were not made for each other"
            )
        clip_input = config.understanding_input == "clip"
        resolution = config.vq_config.resolution
        if clip_input:  # understanding has no use for codes, but for every pixel that CLIP can see
            resolution = 336 if config.vision_config is None else config.vision_config.image_size
        face = config.face_config
        face_size = None if face is None or face.alignment == "whole" else face.image_size
        return cls(
            UniF2aceImageProcessor.from_resolution(resolution, face_size=face_size),
            tokenizer,
            chat_template=CLIP_CHAT_TEMPLATE if clip_input else None,
            num_image_tokens=config.num_understanding_tokens,
            max_text_length=config.max_text_length,
        )

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        # Concrete classes: an Auto class would look for remote code again and ask on stdin whether to trust it.
        kwargs.pop("trust_remote_code", None)
        return [
            UniF2aceImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **kwargs),
        ]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        generation_mode: str | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """
        Prepare text and pictures for the model.

        Args:
            images (*optional*):
                One picture or a list: paths, bytes, PIL pictures, http(s) addresses or uint8 arrays.
            text (`str` or `list[str]`, *optional*):
                With `generation_mode="text"` conversations as [`~ProcessorMixin.apply_chat_template`] formats them;
                plain texts that come with images become the question in a conversation. With `"image"` plain
                descriptions.
            generation_mode (`str`, *optional*, defaults to `"text"`):
                `"text"` to describe, answer and chat; `"image"` to make pictures from descriptions.
            kwargs: As in other processors. With `"image"`, `truncation=True` cuts a text that is too long and logs
                what was cut, and `allow_empty=True` makes of an empty text the prompt of no text, as negative
                prompts may be.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask`, long, (batch, length). With `"text"` also
            `mm_token_type_ids`, long, (batch, length), 1 at the placeholders of a picture's codes; and, with images,
            `pixel_values`, float32, (images, 3, resolution, resolution) in [-1, 1], and where the image processor
            aligns faces `face_pixel_values`, float32, (images, 3, face_size, face_size). With `"image"` rows are
            `[PAD..][t2i][bos] text [eos]`, without the image that follows.

        Raises:
            ValueError: if a description is empty or too long, or the numbers of pictures and placeholders differ.
            UniF2aceImageError: if a picture cannot be used.
        """
        if generation_mode not in (None, *GENERATION_MODES):
            raise ValueError(f"generation_mode={generation_mode!r}, expected one of {', '.join(GENERATION_MODES)}")
        is_formatted = kwargs.pop(_FORMATTED, False)
        if generation_mode == "image":
            return self._describe_wanted_image(images, text, **kwargs)
        _check_unicode(text)
        is_formatted = is_formatted or text is None or self._is_formatted(text)
        if images is not None:
            images = self.image_processor.fetch_images(images)  # a slow download must not hold the others up
            if not is_formatted:
                return self._ask_about_images(images, text, kwargs)
        with _TOKENIZING:
            return super().__call__(images=images, text=text, **kwargs)

    def apply_chat_template(
        self, conversation, *args, tokenize: bool = False, sanitize_control_tokens: bool | None = None, **kwargs
    ):
        """
        [`~ProcessorMixin.apply_chat_template`], but what looks like a control token in a message is text.

        Args:
            conversation (`list[dict]` or a list of them): The messages; dataclasses and pydantic models are taken too.
            tokenize (`bool`, *optional*, defaults to `False`): Whether to return ids instead of the formatted text.
            sanitize_control_tokens (`bool`, *optional*):
                Whether control tokens that are typed in messages stay text. `True` by default where transformers can
                do it: with `tokenize=True` and without `return_assistant_tokens_mask`. A text that is returned
                untokenized holds them as they were typed: do not format what strangers wrote that way.
            args, kwargs: As in transformers.
        """
        if sanitize_control_tokens is None:
            sanitize_control_tokens = tokenize and not kwargs.get("return_assistant_tokens_mask", False)
        conversation = _plain(conversation)
        _check_unicode(conversation)
        self._check_template(conversation, kwargs)
        if tokenize:  # what `__call__` will get is a conversation, whatever its template looks like
            kwargs["processor_kwargs"] = {**(kwargs.get("processor_kwargs") or {}), _FORMATTED: True}
        return super().apply_chat_template(
            conversation, *args, tokenize=tokenize, sanitize_control_tokens=sanitize_control_tokens, **kwargs
        )

    def _check_template(self, conversation, kwargs: dict) -> None:
        """Render a template that is not ours within limits first: transformers would run it without end."""
        template = kwargs.get("chat_template") or self.chat_template
        if not isinstance(template, str) or template in (CHAT_TEMPLATE, CLIP_CHAT_TEMPLATE):
            return
        several = bool(conversation) and isinstance(conversation[0], (list, tuple))
        for messages in conversation if several else [conversation]:
            plain = [{**message, "content": _without_images(message.get("content", ""))} for message in messages]
            render_chat(
                template, plain, bool(kwargs.get("add_generation_prompt")), **self.tokenizer.special_tokens_map
            )

    @property
    def layout(self) -> SequenceLayout:
        """How prompts are spelled."""
        return SequenceLayout.from_tokenizer(self.tokenizer, self.num_image_tokens, self.max_text_length)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` returns."""
        names = super().model_input_names
        return [*names, *(name for name in ("mm_token_type_ids",) if name not in names)]

    def _is_formatted(self, text: str | list[str]) -> bool:
        """Whether texts begin as conversations with a picture do when they are formatted."""
        texts = [text] if isinstance(text, str) else text
        starts = tuple(f"<|mmu|>{system}<|soi|>{self.image_token}" for system in ("", CLIP_SYSTEM_PROMPT))
        return any(item.startswith(starts) for item in texts)

    def _ask_about_images(self, images, text: str | list[str], kwargs: dict) -> BatchFeature:
        """Plain texts become questions about one picture each."""
        pictures = _flatten(images)
        texts = [text] if isinstance(text, str) else list(text)
        if len(pictures) != len(texts):
            raise ValueError(f"{len(pictures)} images and {len(texts)} texts were given, expected one text per image")
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": item}]}]
            for picture, item in zip(pictures, texts, strict=True)
        ]
        return self.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=dict(kwargs)
        )

    def _describe_wanted_image(self, images, text, allow_empty: bool = False, **kwargs) -> BatchFeature:
        if images is not None:
            raise ValueError('images were given with generation_mode="image", which makes a picture from text alone')
        texts = [text] if isinstance(text, str) else text
        if not texts or not all(isinstance(item, str) for item in texts):
            raise ValueError(f"text={shorten(repr(text))}, expected a description or a list of descriptions")
        _check_unicode(texts)
        # as every processor takes them: plain, or for the text alone
        options = {"padding": True, **kwargs, **kwargs.get("common_kwargs", {}), **kwargs.get("text_kwargs", {})}
        layout, truncation = self.layout, bool(options.get("truncation"))
        rows = [
            layout.prompt([] if allow_empty and not item.strip() else self._encode_description(item, truncation))
            for item in texts
        ]
        padded = self.tokenizer.pad(
            {"input_ids": rows},
            padding=options["padding"],
            max_length=layout.image_start,
            padding_side="left",
            verbose=False,
        )
        return BatchFeature(dict(padded), tensor_type=options.get("return_tensors"))

    def _encode_description(self, text: str, truncation: bool) -> list[int]:
        """Ids of one description, without control tokens."""
        if not text.strip():
            raise ValueError("the text is empty, expected a description of a face")
        if text.startswith(self.tokenizer.bos_token):
            raise ValueError(
                'a conversation was given with generation_mode="image", expected a plain description of the picture'
            )
        with _TOKENIZING:
            # split_special_tokens: what looks like a control token in a user's text is text
            encoded = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
            )
        ids = encoded["input_ids"]
        limit = self.layout.prompt_limit
        if len(ids) > limit:
            cut = shorten(repr(text[encoded["offset_mapping"][limit][0] :].strip()))
            if not truncation:
                raise ValueError(
                    f"the text has {len(ids)} tokens, the limit is {limit}: shorten it, or pass truncation=True to "
                    f"cut {cut}"
                )
            logger.warning(f"the text has {len(ids)} tokens, the limit is {limit}; this was cut: {cut}")
        return ids[:limit]

    def unconditional_inputs(self, batch_size: int = 1, return_tensors: str | None = "pt") -> BatchFeature:
        """
        The prompt of no text, `[t2i][bos][eos]`, against which guidance compares.

        Args:
            batch_size (`int`, *optional*, defaults to 1): Number of rows.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"`, `"np"` or `None` for lists.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask`, long, (batch_size, 3).
        """
        return self._describe_wanted_image(None, [""] * batch_size, allow_empty=True, return_tensors=return_tensors)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The placeholders of one picture's codes."""
        return self.image_token * self.num_image_tokens

    def post_process_multimodal_output(
        self, generated_outputs, skip_special_tokens: bool = True, generation_mode: str | None = None, **kwargs
    ) -> list[str] | list[Image.Image]:
        """
        Turn the model's output into texts or pictures.

        Args:
            generated_outputs (`torch.Tensor` or `np.ndarray`):
                Token ids, (batch, length), or for `generation_mode="image"` pixels in [-1, 1],
                (batch, resolution, resolution, 3), as `model.decode_image_tokens` returns them.
            skip_special_tokens (`bool`, *optional*, defaults to `True`): Leave control tokens out of texts.
            generation_mode (`str`, *optional*, defaults to `"text"`): `"text"` or `"image"`.
            kwargs: Passed to the tokenizer's `decode`.

        Returns:
            `list[str]` or `list[PIL.Image.Image]`: one for each row.

        Raises:
            ValueError: if the mode is unknown, or codes are given instead of pixels.
        """
        if generation_mode in (None, "text"):
            return self.post_process_image_text_to_text(generated_outputs, skip_special_tokens, **kwargs)
        if generation_mode != "image":
            raise ValueError(f"generation_mode={generation_mode!r}, expected one of {', '.join(GENERATION_MODES)}")
        pixels = torch.as_tensor(generated_outputs)
        if not pixels.is_floating_point() or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(
                f"generated_outputs has dtype {pixels.dtype} and shape {tuple(pixels.shape)}, expected floating point "
                "pixels (batch, height, width, 3): decode codes with `model.decode_image_tokens` first"
            )
        levels = ((pixels.float() + 1) * 127.5).round().clamp(0, 255)
        return [Image.fromarray(picture) for picture in levels.cpu().numpy().astype(np.uint8)]

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        """
        Turn token ids into texts.

        Args:
            generated_outputs (`torch.Tensor`, `np.ndarray` or nested lists): Ids, (batch, length) or (length,).
            skip_special_tokens (`bool`, *optional*, defaults to `True`): Leave control tokens and image codes out.
            kwargs: Passed to the tokenizer's `decode`.

        Returns:
            `list[str]`: one text for each row, without space around it.
        """
        texts = self.tokenizer.decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        return [text.strip() for text in ([texts] if isinstance(texts, str) else texts)]


def _plain(content):
    """Messages as dictionaries and lists, whatever objects they are, so that all of them is checked; pictures stay."""
    content = getattr(content, "messages", content)  # transformers' own `Chat`
    if isinstance(content, (list, tuple)):
        return [_plain(item) for item in content]
    if isinstance(content, dict):
        return {name: _plain(item) for name, item in content.items()}
    if is_dataclass(content) and not isinstance(content, type):
        content = {field.name: getattr(content, field.name) for field in fields(content)}
    elif callable(getattr(content, "model_dump", None)):
        content = content.model_dump()
    else:
        return content
    return {name: _plain(item) for name, item in content.items() if item is not None}


def _check_unicode(content) -> None:
    """
    Raises:
        ValueError: if a text holds half of a surrogate pair, which is no character and cannot be tokenized.
    """
    if isinstance(content, str):
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode at character {error.start}: take it out") from error
    elif isinstance(content, (list, tuple)):
        for item in content:
            _check_unicode(item)
    elif isinstance(content, dict):
        for item in content.values():
            _check_unicode(item)


def _without_images(content):
    """A message's content with pictures as bare places."""
    if not isinstance(content, (list, tuple)):
        return content
    return [{"type": part["type"]} if part.get("type") in ("image", "video") else part for part in content]


def _flatten(items) -> list:
    if not isinstance(items, (list, tuple)):
        return [items]
    return [leaf for item in items for leaf in _flatten(item)]


__all__ = ["UniF2aceProcessor"]
