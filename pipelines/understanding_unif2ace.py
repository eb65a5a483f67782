"""
The pipeline's words about pictures: describe, answer, chat; whole batches, or piece by piece.

Pictures are read once and asked about often: the tokens of a picture come before those of the question and never see
them, so their keys and values serve every question.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import (
    BatchFeature,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.cache_utils import DynamicCache

from ..modeling_unif2ace.layout_unif2ace import COMPLETE_REQUEST
from ..modeling_unif2ace.pictures_unif2ace import as_images, is_batch
from ..modeling_unif2ace.sampling_unif2ace import check_count


DEFAULT_DESCRIBE_PROMPT = "Describe this face."

# of `generate`: who gives one of these wants the pass over the whole prompt
_WHOLE_PROMPT = {
    "cache",
    "past_key_values",
    "pixel_values",
    "face_pixel_values",
    "clip_features",
    "face_features",
    "assistant_model",
}


def check_texts(name: str, texts: str | Sequence[str], may_be_empty: bool = False):
    """
    `TypeError` or `ValueError` unless `texts` is a text or a list of texts (also a column of `datasets`), none of them
    empty unless that is allowed.
    """
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, bytearray)):
        raise TypeError(f"{name} is of type {type(texts).__name__}, expected a text or a list of texts")
    items = as_list(texts)
    if not items:
        raise ValueError(f"{name} is an empty list, expected at least one text")
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"{name} holds a {type(item).__name__}, expected texts only")
        if not item.strip() and not may_be_empty:
            raise ValueError(f"{name} is empty, expected a text with at least one word")


def as_list(value: Any) -> list:
    """A list, a tuple or a column of `datasets` as a list, anything else as a list of one."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)) else [value]


@dataclass(eq=False)
class PrefilledImage:
    """
    A picture that the model has read. It stands for the picture in `answer`, `describe` and `chat`, and holds for the
    weights and adapters that it was made with.

    Args:
        image (`PIL.Image.Image`): The picture.
        input_ids (`torch.LongTensor` of shape `(length,)`):
            The tokens up to end-of-image, with placeholders for the picture's own.
        layers (`list[tuple[torch.Tensor, torch.Tensor]]`):
            Keys and values of each layer, `(1, num_heads, length, head_dim)`.
        made_for (`tuple[torch.device, torch.dtype]`): Where it can be used; elsewhere the picture is read again.
    """

    image: Image.Image
    input_ids: torch.LongTensor
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    made_for: tuple[torch.device, torch.dtype]


class UniF2aceUnderstandingMixin:
    """
    Text methods of [`UniF2acePipeline`]. Wherever they take a picture they also take what `prefill` made of it.

    Example:

    ```python
    >>> pipe.describe([face, other_face])  # one text for each
    >>> for piece in pipe.answer(face, "What is on his head?", stream=True):
    ...     print(piece, end="", flush=True)
    >>> messages = [{"role": "user", "content": "Is he happy?"}]
    >>> messages.append({"role": "assistant", "content": pipe.chat(messages, image=face)})
    >>> messages.append({"role": "user", "content": "How do you know?"})
    >>> pipe.chat(messages, image=face)
    ```
    """

    def describe(
        self,
        image: Any,
        prompt: str | None = None,
        max_new_tokens: int = 160,
        stream: bool = False,
        **generate_kwargs,
    ) -> str | list[str] | Iterator[str]:
        r"""
        Describe faces.

        Args:
            image (path, `PIL.Image.Image`, or a list of them): The faces, cropped to the head.
            prompt (`str`, *optional*, defaults to `"Describe this face."`): The request.
            max_new_tokens (`int`, *optional*, defaults to 160): Longest answer, in tokens.
            stream (`bool`, *optional*, defaults to `False`): Return the pieces of one text as they are made.
            generate_kwargs: Passed to the model's `generate`; greedy decoding when nothing else is said.

        Returns:
            `str`, or `list[str]` when a list of pictures was given, or an iterator of `str` with `stream=True`.

        Raises:
            ValueError: if a picture cannot be read, or the texts do not fit into the model.
        """
        return self.answer(image, prompt or DEFAULT_DESCRIBE_PROMPT, max_new_tokens, stream, **generate_kwargs)

    def answer(
        self,
        image: Any,
        question: str | list[str],
        max_new_tokens: int = 160,
        stream: bool = False,
        **generate_kwargs,
    ) -> str | list[str] | Iterator[str]:
        r"""
        Answer questions about faces.

        Args:
            image (path, `PIL.Image.Image`, or a list of them): The faces, cropped to the head.
            question (`str` or `list[str]`): One for all pictures, or one for each; several for one picture are fine.
            max_new_tokens (`int`, *optional*, defaults to 160): Longest answer, in tokens.
            stream (`bool`, *optional*, defaults to `False`): Return the pieces of one answer as they are made.
            generate_kwargs: Passed to the model's `generate`; greedy decoding when nothing else is said.

        Returns:
            `str`, or `list[str]` when a list of pictures or of questions was given, or an iterator of `str` with
            `stream=True`.

        Raises:
            ValueError: if a picture cannot be read, the question is empty, the numbers of pictures and questions
                differ, or the texts do not fit into the model.
        """
        check_texts("question", question)
        images = self._fetch_images(image)
        questions = [question] * len(images) if isinstance(question, str) else list(question)
        if len(images) == 1:
            images = images * len(questions)
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images and {len(questions)} questions; give as many, or one of either")
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
            for image, text in zip(images, questions, strict=True)
        ]
        is_batched = self._holds_several(image) or not isinstance(question, str)
        return self._converse(conversations, is_batched, max_new_tokens, stream, generate_kwargs)

    def chat(
        self,
        messages: list[dict] | list[list[dict]],
        image: Any = None,
        max_new_tokens: int = 160,
        stream: bool = False,
        **generate_kwargs,
    ) -> str | list[str] | Iterator[str]:
        r"""
        The next words in a conversation.

        Args:
            messages (`list[dict]` or a list of such lists):
                Messages `{"role": "user", "content": ...}` in turns with `"assistant"`, a `"system"` one first if
                wanted. The content is a text, or a list of `{"type": "text", "text": ...}` and at most one
                `{"type": "image", "image": path or picture}` in the whole conversation.
            image (path, `PIL.Image.Image`, or a list with one for each conversation, *optional*):
                The picture talked about, instead of one in the messages.
            max_new_tokens (`int`, *optional*, defaults to 160): Longest answer, in tokens.
            stream (`bool`, *optional*, defaults to `False`): Return the pieces of one answer as they are made.
            generate_kwargs: Passed to the model's `generate`; greedy decoding when nothing else is said.

        Returns:
            `str`, or `list[str]` when a list of conversations was given, or an iterator of `str` with `stream=True`.

        Raises:
            ValueError: if a conversation is empty, has more than one picture, or does not fit into the model.
        """
        is_batched = bool(messages) and isinstance(messages[0], (list, tuple))
        conversations = [list(item) for item in messages] if is_batched else [list(messages)]
        if not all(conversations):
            raise ValueError("a conversation is empty, expected at least one message")
        for message in (message for conversation in conversations for message in conversation):
            if not isinstance(message, dict) or not {"role", "content"} <= set(message):
                raise ValueError(f'a message is {message!r}, expected {{"role": ..., "content": ...}}')
        if image is not None:
            images = self._fetch_images(image)
            if len(images) != len(conversations):
                raise ValueError(f"{len(images)} images for {len(conversations)} conversations; give one for each")
            conversations = [_with_image(*pair) for pair in zip(conversations, images, strict=True)]
        return self._converse(conversations, is_batched, max_new_tokens, stream, generate_kwargs)

    def complete(
        self, prompt: str | list[str], generator: torch.Generator | list[torch.Generator] | None = None
    ) -> str | list[str]:
        r"""
        Complete short descriptions of faces to full ones, which `pipe(prompt, complete_prompt=True)` draws from: what
        a sentence leaves open is decided once, in words.

        Args:
            prompt (`str` or `list[str]`): The descriptions.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Draws the words: one for all, one after the other, or one for each.

        Returns:
            `str`, or `list[str]` when a list was given. A description stays as it is where nothing comes of it that
            the model could read as a prompt.

        Raises:
            ValueError: if the checkpoint has not learnt it: its generation config says nothing of `complete_prompt`.
        """
        check_texts("prompt", prompt)
        if getattr(self.transformer.generation_config, "complete_prompt", None) is None:
            raise ValueError("this checkpoint has not learnt to complete prompts: leave complete_prompt out")
        prompts, config = as_list(prompt), self.transformer.config
        generators = generator if isinstance(generator, (list, tuple)) else [generator] * len(prompts)
        completed = []
        for text, drawn_by in zip(
            prompts, generators, strict=True
        ):  # one by one: each is the same alone and with others
            conversation = [{"role": "user", "content": COMPLETE_REQUEST.format(prompt=text)}]
            draw = LogitsProcessorList([_Draw(drawn_by, config.text_vocab_size)])
            longest = config.layout.prompt_limit
            (found,) = self._converse([conversation], True, longest, False, {"logits_processor": draw})
            completed.append(found if self._is_prompt(found) else text)
        return completed[0] if isinstance(prompt, str) else completed

    def _is_prompt(self, text: str) -> bool:
        try:
            return bool(text.strip()) and bool(self.processor(text=text, generation_mode="image"))
        except ValueError:
            return False

    def _converse(
        self, conversations: list, is_batched: bool, max_new_tokens: int, stream: bool, generate_kwargs: dict
    ) -> str | list[str] | Iterator[str]:
        check_count("max_new_tokens", max_new_tokens)
        if stream and len(conversations) > 1:
            raise ValueError(f"stream=True with {len(conversations)} texts at once, expected one: stream them in turn")
        conversations, pictures = _unwrap_images(conversations)
        inputs = self.read_conversations(conversations, max_new_tokens)
        inputs = inputs.to(self._execution_device, self.transformer.dtype)
        length = inputs["input_ids"].shape[1]
        if "stop_strings" in generate_kwargs:
            generate_kwargs.setdefault("tokenizer", self.processor.tokenizer)
        shared = self._shared_prefixes(pictures, inputs, generate_kwargs)
        arguments = {"do_sample": False, "max_new_tokens": max_new_tokens, **generate_kwargs, **(shared or inputs)}
        if stream:
            return self._stream(arguments)
        self._onload()
        output = self.transformer.generate(**arguments)
        self.maybe_free_model_hooks()
        texts = self.processor.post_process_image_text_to_text(output[:, length:])
        return texts if is_batched else texts[0]

    def _stream(self, arguments: dict) -> Iterator[str]:
        """Pieces of text from a thread that generates; leaving the loop early ends the thread."""
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        left, failure = _WhenSet(), []
        criteria = StoppingCriteriaList([*arguments.pop("stopping_criteria", []), left])

        def generate():
            try:
                self._onload()
                self.transformer.generate(**arguments, streamer=streamer, stopping_criteria=criteria)
            except BaseException as error:  # handed to the reader
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            is_first = True
            for piece in streamer:
                piece = piece.lstrip() if is_first else piece
                if piece:
                    is_first = False
                    yield piece
        finally:
            left.event.set()
            thread.join()
            self.maybe_free_model_hooks()
        if failure:
            raise failure[0]

    def prefill(self, image: Any) -> PrefilledImage | list[PrefilledImage]:
        r"""
        Read pictures, to ask about them in several calls. Within one call this happens by itself: several questions
        about one picture read it once.

        Args:
            image (path, `PIL.Image.Image`, or a list of them): The faces, cropped to the head.

        Returns:
            [`PrefilledImage`], or a list of them when a list was given.

        Raises:
            ValueError: if the list is empty, or a picture cannot be read.

        Example:

        ```python
        >>> face = pipe.prefill("face.png")
        >>> pipe.answer(face, ["Is he happy?", "What is on his head?"])
        >>> pipe.describe(face)
        ```
        """
        prefilled = self._prefill(self._fetch_images(image))
        self.maybe_free_model_hooks()
        return prefilled if self._holds_several(image) else prefilled[0]

    def _fetch_images(self, image: Any) -> list:
        """
        Pictures of any kind, loaded, what `prefill` made and codes (`output_type="latent"`) among them. One that is
        given several times is loaded once, and stays one object.
        """
        if self._are_codes(image):
            return self.decode_latents(torch.atleast_2d(image), "pil", watermark=False)
        images = as_images(image)
        if not images:
            raise ValueError("the list of images is empty, expected at least one")
        loaded = {
            id(item): item if isinstance(item, PrefilledImage) else self.processor.image_processor.fetch_images(item)
            for item in images
        }
        return [loaded[id(item)] for item in images]

    def _are_codes(self, image: Any) -> bool:
        """Whether a picture, or several, are given as the codes that `output_type="latent"` returns."""
        num_tokens = self.transformer.config.num_image_tokens
        is_whole = isinstance(image, torch.Tensor) and image.dtype == torch.long and image.ndim in (1, 2)
        return is_whole and image.shape[-1] == num_tokens

    def _holds_several(self, image: Any) -> bool:
        return image.ndim == 2 if self._are_codes(image) else is_batch(image)

    def read_conversations(self, conversations: list[list[dict]], max_new_tokens: int = 0) -> BatchFeature:
        """
        What `generate` reads of conversations, on the CPU, padded to one length.

        Args:
            conversations (`list[list[dict]]`): As in `chat`, pictures among their content.
            max_new_tokens (`int`, *optional*, defaults to 0): Tokens that have to find room behind them.

        Raises:
            ValueError: if one does not fit into the model, or the chat template refuses it.
        """
        try:
            inputs = self.processor.apply_chat_template(
                conversations,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
                sanitize_control_tokens=True,  # what looks like a control token in a question is text
            )
        except TemplateError as error:  # about the conversation, in words of the template
            raise ValueError(str(error)) from error
        length, limit = inputs["input_ids"].shape[1], self.transformer.config.text_config.max_position_embeddings
        if length + max_new_tokens > limit:
            raise ValueError(
                f"the conversation takes {length} tokens, a picture's among them, and the answer up to "
                f"{max_new_tokens}, but the model reads {limit}: shorten it, or ask for a shorter answer"
            )
        return inputs

    def _prefill(self, images: list) -> list[PrefilledImage]:
        """The pictures, read; those that have been read here before, as they are."""
        made_for = self._execution_device, self.transformer.dtype
        done = {id(item): item for item in images if isinstance(item, PrefilledImage) and item.made_for == made_for}
        waiting = {id(item): item for item in images if id(item) not in done}
        if waiting:
            pictures = [_picture(item) for item in waiting.values()]
            inputs = self.read_conversations(
                [[{"role": "user", "content": [{"type": "image", "image": picture}]}] for picture in pictures]
            ).to(*made_for)
            places = (inputs["input_ids"][0] == self.transformer.config.image_token_id).nonzero()
            input_ids = inputs["input_ids"][:, : int(places.max()) + 2]  # the last placeholder, and end-of-image
            self._onload()
            cache = self.transformer.prefill_images(input_ids, inputs["pixel_values"], inputs.get("face_pixel_values"))
            for row, (key, picture) in enumerate(zip(waiting, pictures, strict=True)):
                own = slice(row, row + 1)
                # clones, because a view would keep all pictures of the batch in memory
                layers = [(layer.keys[own].clone(), layer.values[own].clone()) for layer in cache.layers]
                done[key] = PrefilledImage(picture, input_ids[row], layers, made_for)
        return [done[id(item)] for item in images]

    def _shared_prefixes(self, pictures: list, inputs: Any, generate_kwargs: dict) -> dict[str, Any] | None:
        """
        `generate`'s inputs with the pictures' keys and values as the past, one row for each conversation; `None` where
        no picture is shared, or where the past cannot be given.
        """
        is_shared = len({id(picture) for picture in pictures}) < len(pictures)
        if not is_shared and not any(isinstance(picture, PrefilledImage) for picture in pictures):
            return None
        config = generate_kwargs.get("generation_config") or self.transformer.generation_config
        settings = {name: getattr(config, name, None) for name in ("use_cache", "cache_implementation")}
        settings |= generate_kwargs
        if settings["use_cache"] is False or settings["cache_implementation"] or _WHOLE_PROMPT & set(generate_kwargs):
            return None
        if any(picture is None for picture in pictures):
            return None
        rows = self._prefill(pictures)
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        padding, length = (attention_mask == 0).sum(-1, keepdim=True), len(rows[0].input_ids)
        # [padding][picture][question] to [picture][padding][question]
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        source = torch.where(place < length + padding, place - length, place)
        source = torch.where(place < length, place + padding, source)
        input_ids, attention_mask = input_ids.gather(1, source), attention_mask.gather(1, source)
        if any(not torch.equal(ids[:length], row.input_ids) for ids, row in zip(input_ids, rows, strict=True)):
            return None  # a template of the checkpoint's own, which says more before the picture
        cache = DynamicCache(config=self.transformer.config.text_config)
        for layer, parts in enumerate(zip(*(row.layers for row in rows), strict=True)):
            cache.update(torch.cat([keys for keys, _ in parts]), torch.cat([values for _, values in parts]), layer)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "cache": cache}


class _Draw(LogitsProcessor):
    """Makes of greedy decoding a draw with a generator of its own (the Gumbel-max trick), among words only."""

    def __init__(self, generator: torch.Generator | None, text_vocab_size: int):
        self.generator, self.text_vocab_size = generator, text_vocab_size

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        device = "cpu" if self.generator is None else self.generator.device
        waits = torch.empty(scores.shape, device=device).exponential_(generator=self.generator)
        drawn = scores.float() - waits.log().to(scores.device)
        drawn[:, self.text_vocab_size :] = -torch.inf
        return drawn


class _WhenSet(StoppingCriteria):
    """Stops generation when nobody reads any more."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.new_full((len(input_ids),), self.event.is_set()).bool()


def _with_image(conversation: list[dict], image: Any) -> list[dict]:
    """The conversation with a picture at the start of the first message of the user."""
    for place, message in enumerate(conversation):
        if message["role"] == "user":
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
            message = {**message, "content": [{"type": "image", "image": image}, *parts]}
            return [*conversation[:place], message, *conversation[place + 1 :]]
    raise ValueError("the conversation has no message of the user, so there is no place for the image")


def _unwrap_images(conversations: list[list[dict]]) -> tuple[list[list[dict]], list]:
    """The conversations with pictures instead of [`PrefilledImage`]s, and what stood there: `None` for no picture."""
    plain, pictures = [], []
    for conversation in conversations:
        messages, found = [], None
        for message in conversation:
            content = message["content"]
            if isinstance(content, (list, tuple)):
                found = next((part["image"] for part in content if _holds_image(part)), found)
                content = [
                    {**part, "image": _picture(part["image"])} if _holds_image(part) else part for part in content
                ]
            messages.append({**message, "content": content})
        plain.append(messages)
        pictures.append(found)
    return plain, pictures


def _holds_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image" and "image" in part


def _picture(item: Any) -> Any:
    return item.image if isinstance(item, PrefilledImage) else item


__all__ = ["DEFAULT_DESCRIBE_PROMPT", "PrefilledImage", "UniF2aceUnderstandingMixin"]
