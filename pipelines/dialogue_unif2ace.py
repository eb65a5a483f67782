"""The pipeline's words about pictures: describe, answer, chat; whole batches, or piece by piece."""

import threading
from collections.abc import Iterator
from typing import Any

from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from .checks_unif2ace import check_count, check_texts
from .prefill_unif2ace import UniF2acePrefillMixin, unwrap_images


DEFAULT_DESCRIBE_PROMPT = "Describe this face."


class UniF2aceDialogueMixin(UniF2acePrefillMixin):
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
        is_batched = isinstance(image, (list, tuple)) or not isinstance(question, str)
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

    def _converse(
        self, conversations: list, is_batched: bool, max_new_tokens: int, stream: bool, generate_kwargs: dict
    ) -> str | list[str] | Iterator[str]:
        check_count("max_new_tokens", max_new_tokens)
        if stream and len(conversations) > 1:
            raise ValueError(f"stream=True with {len(conversations)} texts at once, expected one: stream them in turn")
        conversations, pictures = unwrap_images(conversations)
        inputs = self._tokenize(conversations)
        length = inputs["input_ids"].shape[1]
        limit = self.transformer.config.text_config.max_position_embeddings
        if length + max_new_tokens > limit:
            raise ValueError(
                f"picture and question take {length} tokens and the answer up to {max_new_tokens}, but the model "
                f"reads {limit}: shorten the question or lower max_new_tokens"
            )
        if "stop_strings" in generate_kwargs:
            generate_kwargs.setdefault("tokenizer", self.processor.tokenizer)
        shared = self._shared_prefixes(pictures, inputs, generate_kwargs)
        arguments = {"do_sample": False, "max_new_tokens": max_new_tokens, **generate_kwargs, **(shared or inputs)}
        if shared is None:
            arguments.setdefault("face_features", self._aligned_faces(pictures))
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


__all__ = ["DEFAULT_DESCRIBE_PROMPT", "UniF2aceDialogueMixin"]
