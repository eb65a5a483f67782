"""
Pictures that are read once and asked about often: the tokens of a picture come before those of the question and never
see them, so their keys and values serve every question.
"""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers.cache_utils import DynamicCache

from .checks_unif2ace import as_list


# of `generate`: who gives one of these wants the pass over the whole prompt
_WHOLE_PROMPT = {"cache", "past_key_values", "pixel_values", "clip_features", "face_features", "assistant_model"}


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


class UniF2acePrefillMixin:
    """What `UniF2acePipeline`'s words about pictures share with each other."""

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
        return prefilled if isinstance(image, (list, tuple)) else prefilled[0]

    def _fetch_images(self, image: Any) -> list:
        """Pictures, loaded. One that is given several times is loaded once, and stays one object."""
        images = as_list(image)
        if not images:
            raise ValueError("the list of images is empty, expected at least one")
        loaded = {
            id(item): item if isinstance(item, PrefilledImage) else self.processor.image_processor.fetch_images(item)
            for item in images
        }
        return [loaded[id(item)] for item in images]

    def _tokenize(self, conversations: list[list[dict]]):
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            sanitize_control_tokens=True,  # what looks like a control token in a question is text
        ).to(self._execution_device, self.transformer.dtype)

    def _made_for(self) -> tuple[torch.device, torch.dtype]:
        return self._execution_device, self.transformer.dtype

    def _prefill(self, images: list) -> list[PrefilledImage]:
        """The pictures, read; those that have been read here before, as they are."""
        made_for = self._made_for()
        done = {id(item): item for item in images if isinstance(item, PrefilledImage) and item.made_for == made_for}
        waiting = {id(item): item for item in images if id(item) not in done}
        if waiting:
            pictures = [_picture(item) for item in waiting.values()]
            inputs = self._tokenize(
                [[{"role": "user", "content": [{"type": "image", "image": picture}]}] for picture in pictures]
            )
            places = (inputs["input_ids"][0] == self.transformer.config.image_token_id).nonzero()
            input_ids = inputs["input_ids"][:, : int(places.max()) + 2]  # the last placeholder, and end-of-image
            self._onload()
            cache = self.transformer.prefill_images(
                input_ids, inputs["pixel_values"], face_features=self._aligned_faces(pictures)
            )
            for row, (key, picture) in enumerate(zip(waiting, pictures, strict=True)):
                own = slice(row, row + 1)
                # clones, because a view would keep all pictures of the batch in memory
                layers = [(layer.keys[own].clone(), layer.values[own].clone()) for layer in cache.layers]
                done[key] = PrefilledImage(picture, input_ids[row], layers, made_for)
        return [done[id(item)] for item in images]

    def _aligned_faces(self, pictures: list) -> torch.Tensor | None:
        """`face_features`, where the face encoder wants faces cut out by landmarks and not the model's own pixels."""
        encoder = self.transformer.model.face_encoder
        pictures = [_picture(item) for item in pictures if item is not None]
        if not pictures or encoder is None or encoder.config.alignment != "five_points":
            return None
        return self.transformer.encode_faces(self._fetch_images(pictures))

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


def unwrap_images(conversations: list[list[dict]]) -> tuple[list[list[dict]], list]:
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


__all__ = ["PrefilledImage", "UniF2acePrefillMixin", "unwrap_images"]
