"""
Continuous batching of image decoding: pictures that stand at different steps share one forward pass.

A picture's prompt is encoded when it is let in; its keys and values join those of the pictures under way, padded on
the left. Each turn is one step of all of them. A picture that is done leaves at once, and one that waits takes its
place. Every picture has its own generator and its own scheduler, so it is the same as alone (up to the rounding of
sums, which a different batch size may order differently).
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...modeling_unif2ace.generation_unif2ace import ImageDecoding, PromptState, merge_prompts
from .engine import Engine, EngineClosedError


if TYPE_CHECKING:
    from PIL import Image

    from ..pipeline_unif2ace import UniF2acePipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRequest:
    """
    One picture.

    Args:
        prompt (`str`): What the face looks like.
        seed (`int`): Of its generator; the pipeline makes the same picture from it.
        num_inference_steps (`int`, *optional*): Decoding steps; the checkpoint's own when not given.
        guidance_scale (`float`, *optional*): 1 is none; the checkpoint's own when not given.
        negative_prompt (`str`, *optional*): What guidance leads away from.
        image (`PIL.Image.Image`, *optional*): A picture to change, as `pipe.edit` does, or `pipe.inpaint` with `mask`.
        mask (`PIL.Image.Image`, *optional*): White where to repaint it.
        source_prompt (`str`, *optional*), strength (`float`, *optional*, defaults to 0.3): Of `pipe.edit`.
        complete_prompt (`bool`, *optional*): Whether the prompt is completed; as the checkpoint says when not given.
        deadline (`float`, *optional*): `time.monotonic()` after which nobody waits any more.
    """

    prompt: str
    seed: int
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    image: "Image.Image | None" = None
    mask: "Image.Image | None" = None
    source_prompt: str | None = None
    strength: float = 0.3
    complete_prompt: bool | None = None
    deadline: float = float("inf")


@dataclass(eq=False)
class _Picture:
    """A picture under way."""

    request: ImageRequest
    future: Future
    decoding: ImageDecoding | None = None
    completed: list[str] | None = None


class ImageEngine(Engine):
    """
    Makes pictures for many callers with one model, in a thread of its own.

    Args:
        pipe ([`UniF2acePipeline`]): Used by the engine's thread; describing pictures at the same time is fine.
        max_batch_size (`int`, *optional*, defaults to 16): Pictures under way at once.
        max_waiting (`int`, *optional*, defaults to 64): Pictures that may wait; `submit` refuses more.
        on_step (`Callable[[int], None]`, *optional*): Called after each step with the number of pictures in it.
    """

    def __init__(
        self,
        pipe: "UniF2acePipeline",
        max_batch_size: int = 16,
        max_waiting: int = 64,
        on_step: Callable[[int], None] | None = None,
    ):
        self._on_step = on_step
        self._active: list[_Picture] = []
        self._merged: PromptState | None = None
        super().__init__(pipe, max_batch_size, max_waiting)

    @property
    def num_active(self) -> int:
        """Pictures under way."""
        return len(self._active)

    def submit(self, requests: list[ImageRequest]) -> list[Future]:
        """
        Take requests in, all or none.

        Args:
            requests (`list[ImageRequest]`): Pictures to make.

        Returns:
            `list[Future]` of PIL pictures, one for each request. Cancelling one drops its picture at any time. A
            `ValueError` in one says what is wrong with its request, `TimeoutError` that its deadline passed.

        Raises:
            QueueFullError: if fewer places are free than there are requests.
            EngineClosedError: if the engine has been closed.
        """
        pictures = [_Picture(request, Future()) for request in requests]
        self._enter(pictures)
        for picture in pictures:
            picture.future.add_done_callback(lambda future, picture=picture: self._leave(picture))
        return [picture.future for picture in pictures]

    # What the thread does

    def _run(self):
        try:
            while self._take_in():
                if self._active:
                    self._turn()
        finally:
            for picture in self._active:
                self._fail(picture, EngineClosedError())
            self._active = []

    def _take_in(self) -> bool:
        """Let in what there is room for; wait if there is nothing to do. `False` at the end."""
        with self._changed:
            while not (self._closing or self._waiting or self._active):
                self._changed.wait()
            if self._closing:
                return False
            room = self.max_batch_size - len(self._active)
            entering = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        for picture in entering:
            if picture.future.cancelled():
                continue
            try:
                self._begin(picture)
            except Exception as error:  # of this request alone: a prompt that is too long, say
                self._fail(picture, error)
            else:
                self._active.append(picture)
                self._merged = None
        return True

    @torch.inference_mode()
    def _begin(self, picture: _Picture):
        request, pipe = picture.request, self.pipe
        generator = torch.Generator().manual_seed(request.seed)
        call = {}
        if request.mask is not None:
            call = pipe.prepare_inpaint(request.prompt, request.image, request.mask)
        elif request.image is not None:
            options = request.source_prompt, request.strength
            call = pipe.prepare_edit(request.prompt, request.image, *options, generator=generator)
        numbers = pipe.sampling_numbers(request.num_inference_steps, request.guidance_scale)
        negative = request.negative_prompt or call.get("negative_prompt")
        if not call:
            picture.completed = pipe.complete_prompts([request.prompt], generator, request.complete_prompt)
        prompt = picture.completed or request.prompt
        state = pipe.encode_prompt(prompt, negative, numbers.guidance_scale != 1)
        picture.decoding = pipe.start_decoding(state, numbers, generator, call.get("latents"))

    @torch.inference_mode()
    def _turn(self):
        """One step of all pictures under way; an error ends these, not the engine."""
        start = time.monotonic()
        try:
            self._drop_abandoned()
            if not self._active:
                return
            num_pictures = len(self._active)
            # an edit that leaves every code as it was is done before its first step
            decodings = [picture.decoding for picture in self._active if not picture.decoding.is_done]
            if decodings:
                if self._merged is None:
                    self._merged = merge_prompts([decoding.prompt for decoding in decodings])
                self.pipe.transformer.decode_step(decodings, self._merged)
            finished = [picture for picture in self._active if picture.decoding.is_done]
            images = []
            for picture in finished:
                images += self.pipe.decode_latents(
                    picture.decoding.codes, "pil", seeds=[picture.request.seed], completed_prompts=picture.completed
                )
        except Exception as error:
            logger.exception("a denoising step failed")
            for picture in self._active:
                self._fail(picture, error)
            self._active, self._merged = [], None
            return
        if finished:
            self._active = [picture for picture in self._active if picture not in finished]
            self._merged = None
        for picture, image in zip(finished, images, strict=True):
            if picture.future.set_running_or_notify_cancel():
                picture.future.set_result(image)
        seconds = (time.monotonic() - start) / num_pictures * 16  # of a picture of usual length
        self.seconds_each += 0.1 * (seconds - self.seconds_each)
        if self._on_step is not None:
            self._on_step(num_pictures)

    def _drop_abandoned(self):
        now = time.monotonic()
        for picture in list(self._active):
            late = picture.request.deadline < now
            if late:
                self._fail(picture, TimeoutError("the time for this request is over"))
            if late or picture.future.cancelled():
                self._active.remove(picture)
                self._merged = None

    def _fail(self, picture: _Picture, error: Exception):
        # a future stays cancellable while its picture is under way; who cancelled it wants to hear nothing more
        if not picture.future.done() and picture.future.set_running_or_notify_cancel():
            picture.future.set_exception(error)


__all__ = ["ImageEngine", "ImageRequest"]
