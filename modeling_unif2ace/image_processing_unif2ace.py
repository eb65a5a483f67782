"""Pictures in: any file or PIL picture becomes an upright RGB picture, then normalised pixels."""

import base64
import binascii
import http.client
import io
import os
import struct
import time
import urllib.request
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import image_utils
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack


MAX_PIXELS = 64_000_000
# A picture is scaled by its short side first, so a very long one would grow beyond any memory.
MAX_ASPECT_RATIO = 100

# how the base64 text of a JPEG, PNG, GIF and WebP file begins
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")

# Pillow knows many more, among them EPS, which it hands to another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF")
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 20

# what Pillow's decoders raise on broken files
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)

ImageSource = str | os.PathLike | bytes | bytearray | memoryview | Image.Image


class UniF2aceImageError(ValueError):
    """A picture cannot be used: missing, broken, too large, or of an unknown kind."""


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Any picture as an upright RGB picture.

    EXIF rotation is applied; transparent parts become white; 16-bit and floating point pictures are scaled, not
    clipped; of an animation's file the first frame is taken (of an open PIL picture the frame that it stands at).

    Args:
        source (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`):
            A file's path, a file's content, a `data:image/...;base64,` address, the base64 text of a JPEG, PNG, GIF or
            WebP file, or a PIL picture, which is left as it is.
        max_pixels (`int`, *optional*, defaults to 64,000,000):
            Most pixels that a picture may have. Read from the file's header, before anything is decoded.

    Returns:
        `PIL.Image.Image`: a picture of mode `"RGB"`.

    Raises:
        UniF2aceImageError: if there is no such file, or the picture is broken, truncated or too large, or the source
            is an internet address or of another type.
    """
    picture, name = _open(source)
    try:
        _check_size(picture, name, max_pixels)
        try:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
        except _DECODING_ERRORS as error:
            raise UniF2aceImageError(
                f"{name} is broken or truncated ({error}), expected a complete picture file: copy or download it again"
            ) from error
        try:
            return _to_rgb(upright)
        except ValueError as error:
            raise UniF2aceImageError(
                f"{name} has mode {picture.mode!r}, which cannot become RGB ({error}): save it as RGB first"
            ) from error
    finally:
        if picture is not source:
            picture.close()


def _open(source: ImageSource) -> tuple[Image.Image, str]:
    """The picture, with only its header read, and a name for error messages."""
    if isinstance(source, Image.Image):
        return source, "the picture"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_file(io.BytesIO(source), f"the picture of {len(source)} bytes")
    if not isinstance(source, (str, os.PathLike)):
        raise UniF2aceImageError(
            f"a picture of type {type(source).__name__} was given, expected a path, bytes or a PIL picture"
        )
    path = os.fspath(source)
    if path.startswith(("http://", "https://")):
        raise UniF2aceImageError(f"{path} is an internet address, expected a local file: download the picture first")
    if path.startswith("data:"):
        return _open_file(_decode_base64(path.partition(",")[2]), "the picture in the data: address")
    if path.startswith(_BASE64_STARTS) and not _is_file(path):
        return _open_file(_decode_base64(path), "the picture in base64 text")
    if not _is_file(path):
        kind = "is a folder" if os.path.isdir(path) else "does not exist"
        raise UniF2aceImageError(f"{shorten(path)} {kind}, expected a picture file: check the path")
    return _open_file(path, path)


def _open_file(file, name: str) -> tuple[Image.Image, str]:
    try:
        Image.init()
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]), name
    except UnidentifiedImageError as error:
        raise UniF2aceImageError(
            f"{name} is not a picture that Pillow can read, expected PNG, JPEG, WebP, GIF, TIFF or BMP"
        ) from error
    except Image.DecompressionBombError as error:
        raise UniF2aceImageError(
            f"{name} has more pixels than Pillow opens ({error}): make it smaller, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except _DECODING_ERRORS as error:
        raise UniF2aceImageError(f"{name} cannot be read ({error}), expected a picture file") from error


def _decode_base64(text: str) -> io.BytesIO:
    try:
        return io.BytesIO(base64.b64decode("".join(text.split()), validate=True))
    except binascii.Error as error:
        raise UniF2aceImageError(
            f"{shorten(text)} is not base64 text ({error}), expected the content of a picture file"
        ) from error


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a path with a zero byte
        return False


def shorten(text: str, length: int = 200) -> str:
    """`text` for a message: its beginning and its end, if it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 4 :]}"


def _check_size(picture: Image.Image, name: str, max_pixels: int) -> None:
    width, height = picture.size
    if not width or not height:
        raise UniF2aceImageError(f"{name} has {width}x{height} pixels, expected at least one")
    if width * height > max_pixels:
        raise UniF2aceImageError(
            f"{name} has {width}x{height} = {width * height:,} pixels, the limit is {max_pixels:,}: "
            "make it smaller, or raise `max_pixels`"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UniF2aceImageError(
            f"{name} has {width}x{height} pixels, expected sides whose ratio is at most {MAX_ASPECT_RATIO}: crop it"
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return _from_levels(np.asarray(picture, dtype=np.float64), 65535)
    if picture.mode == "I":  # 32 bits wide, but files fill 8 or 16 of them
        levels = np.asarray(picture, dtype=np.float64)
        return _from_levels(levels, 255 if levels.max() <= 255 else 65535)
    if picture.mode == "F":
        levels = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(levels).all():
            raise ValueError("it has values that are not finite")
        return _from_levels(levels, 1 if levels.max() <= 1 else 255)
    if picture.mode == "La":  # Pillow has only this way out of premultiplied grey
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _from_levels(levels: np.ndarray, white: int) -> Image.Image:
    """A grey picture whose value `white` is white."""
    grey = np.rint(levels.clip(0, white) * (255 / white)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


class UniF2aceImageProcessor(PilBackend):
    r"""
    Resize the short side (bicubic), crop the centre, bring pixels to [-1, 1]: Show-o's preprocessing.

    Pictures may be paths, bytes, PIL pictures (see [`load_image`]), http(s) addresses (fetched within limits of size
    and time), or uint8 arrays and tensors.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 256}`): Length of the short side, pixels.
        crop_size (`dict[str, int]`, *optional*, defaults to `{"height": 256, "width": 256}`): The centre that is kept.
        max_pixels (`int`, *optional*, defaults to 64,000,000): Most pixels that a picture may have.
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

    def __init__(self, max_pixels: int = MAX_PIXELS, **kwargs: Unpack[ImagesKwargs]):
        super().__init__(**kwargs)
        self.max_pixels = max_pixels

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
        if isinstance(source, (list, tuple)):
            return [self.fetch_images(item) for item in source]
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            return self._download(source)
        if image_utils.is_valid_image(source) and not isinstance(source, Image.Image):
            return source
        return load_image(source, self.max_pixels)

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


__all__ = ["UniF2aceImageError", "UniF2aceImageProcessor", "load_image"]
