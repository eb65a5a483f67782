"""Normalised pixels from pictures, as the image tokenizer takes them."""

import http.client
import time
import urllib.request

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack

from .compat_unif2ace import PilBackend
from .face_alignment_unif2ace import align_largest_face
from .pictures_unif2ace import (
    MAX_PIXELS,
    UniF2aceImageError,
    as_array,
    as_images,
    as_levels,
    is_list,
    is_pixels,
    load_image,
)


MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 20


class UniF2aceImageProcessor(PilBackend):
    r"""
    Resize the short side (bicubic), crop the centre, bring pixels to [-1, 1]: Show-o's preprocessing.

    Pictures may be paths, bytes, PIL pictures (see [`load_image`]), http(s) addresses (fetched within limits of size
    and time), or arrays and tensors: uint8, or floating point from 0 to 1. With `do_rescale=False` arrays are taken as
    they are.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 256}`): Length of the short side, pixels.
        crop_size (`dict[str, int]`, *optional*, defaults to `{"height": 256, "width": 256}`): The centre that is kept.
        max_pixels (`int`, *optional*, defaults to 64,000,000): Most pixels that a picture may have.
        face_size (`int`, *optional*):
            Also return `face_pixel_values`, float32, (images, 3, face_size, face_size) in [-1, 1]: the largest face of
            each picture, cut out by its landmarks, for a face encoder with `alignment="five_points"`. The whole
            picture is taken, and the log says so, where no face is found or no detector is installed.
        kwargs: The other arguments of transformers' image processors.
    """

    resample = PILImageResampling.BICUBIC
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 256, "width": 256}
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, max_pixels: int = MAX_PIXELS, face_size: int | None = None, **kwargs: Unpack[ImagesKwargs]):
        super().__init__(**kwargs)
        self.max_pixels = max_pixels
        self.face_size = face_size

    def preprocess(self, images, *args, **kwargs) -> BatchFeature:
        """`pixel_values` and, with `face_size`, `face_pixel_values`; see the class."""
        if self.face_size is None:
            return super().preprocess(images, *args, **kwargs)
        images = self.fetch_images(images)
        batch = super().preprocess(images, *args, **kwargs)
        pictures = [load_image(image) for image in as_images(images)]
        faces = [np.asarray(align_largest_face(picture, self.face_size)) for picture in pictures]
        pixels = np.ascontiguousarray(np.stack(faces).transpose(0, 3, 1, 2), dtype=np.float32) / 127.5 - 1
        batch["face_pixel_values"] = pixels
        return batch.convert_to_tensors(kwargs.get("return_tensors"))

    @property
    def model_input_names(self) -> list[str]:
        """Names of what the processor returns."""
        return ["pixel_values"] if self.face_size is None else ["pixel_values", "face_pixel_values"]

    def center_crop(self, image: np.ndarray, size, **kwargs) -> np.ndarray:
        """Cut out the centre, (C, H, W); a half pixel is rounded as torchvision, and so Show-o, rounds it."""
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            return super().center_crop(image, size, **kwargs)
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]

    @classmethod
    def from_resolution(cls, resolution: int, **kwargs) -> "UniF2aceImageProcessor":
        """The processor of square pictures `resolution` pixels wide, as `config.vq_config.resolution` asks for."""
        return cls(size={"shortest_edge": resolution}, crop_size={"height": resolution, "width": resolution}, **kwargs)

    def fetch_images(self, image_url_or_urls):
        """Load one picture or nested lists of them; arrays and tensors pass unchanged."""
        source = image_url_or_urls
        if is_pixels(source):
            return list(source) if source.ndim == 4 else source
        if is_list(source):
            return [self.fetch_images(item) for item in source]
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            return self._download(source)
        return load_image(source, self.max_pixels)

    def process_image(self, image, do_rescale: bool | None = True, **kwargs) -> np.ndarray:
        """One picture as an array (channels, height, width); pixels from 0 to 1 become levels from 0 to 255."""
        if is_pixels(image) and do_rescale:
            image = as_levels(as_array(image))
        return super().process_image(image, **kwargs)

    def _download(self, address: str) -> Image.Image:
        """A picture from the internet: not larger than `MAX_DOWNLOAD_BYTES`, not later than `DOWNLOAD_SECONDS`."""
        content, deadline = bytearray(), time.monotonic() + DOWNLOAD_SECONDS
        try:
            with urllib.request.urlopen(address, timeout=DOWNLOAD_SECONDS) as answer:
                while part := answer.read1(2**16):
                    content += part
                    if len(content) > MAX_DOWNLOAD_BYTES:
                        raise UniF2aceImageError(f"{address} sends more than {MAX_DOWNLOAD_BYTES:,} bytes")
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"not complete after {DOWNLOAD_SECONDS} s")
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, UniF2aceImageError):
                raise
            raise UniF2aceImageError(f"{address} cannot be fetched ({error}): download the picture first") from error
        try:
            return load_image(bytes(content), self.max_pixels)
        except UniF2aceImageError as error:
            raise UniF2aceImageError(f"{address}: {error}") from error


__all__ = ["UniF2aceImageProcessor"]
