"""Pictures in: a file, bytes or a PIL picture of any usual kind becomes an upright RGB picture. Needs Pillow only."""

import base64
import binascii
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


MAX_PIXELS = 64_000_000
# A picture is scaled by its short side first, so a very long one would grow beyond any memory.
MAX_ASPECT_RATIO = 100

# how the base64 text of a JPEG, PNG, GIF and WebP file begins
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")

# Pillow knows many more, among them EPS, which it hands to another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF")

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


__all__ = ["FORMATS", "MAX_PIXELS", "ImageSource", "UniF2aceImageError", "load_image", "shorten"]
