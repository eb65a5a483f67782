"""
Pictures in: a file, bytes, pixels or a PIL picture of any usual kind become an upright RGB picture. Needs Pillow only.

This is the only place of the package that opens picture files: what it does not let in, nothing reads.
"""

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
SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .gif .tif .tiff .bmp .dib .ppm .pgm .pbm .pnm .avif .avifs".split()
)
"""Endings of the files of these formats, in lower case."""
MAX_BYTES = 256 * 2**20  # of a file: as many as 64 megapixels of 32 bits have without compression

# what Pillow's decoders raise on broken files
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)

ImageSource = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | dict | np.ndarray


# what has a length but is one picture
_SINGLE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, dict)


class UniF2aceImageError(ValueError):
    """A picture cannot be used: missing, broken, too large, or of an unknown kind."""


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """
    Any picture as an upright RGB picture.

    EXIF rotation is applied; transparent parts become white; 16-bit and floating point pictures are scaled, not
    clipped; of an animation's file the first frame is taken (of an open PIL picture the frame that it stands at).
    What files say beside their pixels (EXIF with places, comments, thumbnails) does not come along.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `dict`, `np.ndarray` or `torch.Tensor`):
            A file's path, a file's content, a `data:image/...;base64,` address, the base64 text of a JPEG, PNG, GIF or
            WebP file, a PIL picture, which is left as it is, `{"bytes": ..., "path": ...}` as `datasets` stores
            pictures, or pixels as [`picture_of_pixels`] takes them, for example the pipeline's `output_type="np"` or
            `"pt"`.
        max_pixels (`int`, *optional*, defaults to 64,000,000):
            Most pixels that a picture may have. Read from the file's header, before anything is decoded.
        max_bytes (`int`, *optional*, defaults to 268,435,456): Most bytes that a file may have.

    Returns:
        `PIL.Image.Image`: a picture of mode `"RGB"`.

    Raises:
        UniF2aceImageError: if there is no such file, or the picture is broken, truncated or too large, or the source
            is an internet address or of another type.
    """
    picture, name = _open(source, max_bytes)
    try:
        _check_size(picture, name, max_pixels)
        try:
            if _is_cut_off(picture):
                raise OSError("the file ends too early")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
        except _DECODING_ERRORS as error:
            raise UniF2aceImageError(
                f"{name} is broken or truncated ({error}), expected a complete picture file: copy or download it again"
            ) from error
        try:
            loaded = _to_rgb(upright)
        except ValueError as error:
            raise UniF2aceImageError(
                f"{name} has mode {picture.mode!r}, which cannot become RGB ({error}): save it as RGB first"
            ) from error
        loaded.info = {}
        return loaded
    finally:
        if picture is not source:
            picture.close()


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """
    A picture of which only the header has been read: its size, format and texts; [`load_image`] decodes it.

    Args:
        source, max_pixels, max_bytes: As for [`load_image`].

    Returns:
        `PIL.Image.Image`: the open picture; `source` itself if it is one. Close it, or use it as a context manager.

    Raises:
        UniF2aceImageError: as [`load_image`], as far as a header tells.
    """
    picture, name = _open(source, max_bytes)
    _check_size(picture, name, max_pixels)
    return picture


def is_batch(source) -> bool:
    """Whether something holds any number of pictures: a list, a column of `datasets`, a batch of pixels."""
    return source.ndim == 4 if is_pixels(source) else is_list(source)


def as_images(source) -> list:
    """One picture as a list of one; what holds several (also lists of batches) as the list of all, not yet loaded."""
    return [image for part in source for image in as_images(part)] if is_batch(source) else [source]


def picture_of_pixels(pixels) -> Image.Image:
    """
    Pixels as a picture.

    Args:
        pixels (`np.ndarray` or `torch.Tensor`):
            Shape `(height, width)`, or with 1, 3 or 4 channels last or first, or a batch of one such. Integers and
            booleans count from 0 to 255 (16 bits to 65,535, booleans to 1), floating point numbers from 0 to 1.

    Returns:
        `PIL.Image.Image`: of mode `"L"`, `"RGB"` or `"RGBA"`.

    Raises:
        UniF2aceImageError: if the shape is another, or values lie outside: it cannot be told what is meant.
    """
    array = as_array(pixels)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[-1] not in (3, 4)) or not array.size:
        raise UniF2aceImageError(
            f"the picture's pixels have shape {tuple(pixels.shape)}, expected (height, width), (height, width, 3) or "
            "(3, height, width)"
        )
    return Image.fromarray(np.ascontiguousarray(as_levels(array)))


def as_array(pixels) -> np.ndarray:
    """A tensor, wherever it is, as an array; arrays as they are."""
    if not isinstance(pixels, np.ndarray):
        pixels = pixels.detach().cpu()
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).numpy()
    return pixels


def as_levels(array: np.ndarray) -> np.ndarray:
    """Pixels as uint8, by what their type says about white."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    white = 1.0 if array.dtype.kind == "f" else 65535 if array.dtype == np.uint16 else 255
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all() or array.min() < 0 or array.max() > white:
        shown = f"{array.min()} to {array.max()}" if array.dtype.kind in "fiu" else "no numbers"
        raise UniF2aceImageError(
            f"the picture's pixels are {shown} of type {array.dtype}, expected 0 to {white:g}: bring them there, or "
            "give uint8"
        )
    return np.rint(array.astype(np.float64) * (255 / white)).astype(np.uint8)


def is_pixels(source) -> bool:
    """Whether something is an array, or a tensor of torch, which this module does not import."""
    return isinstance(source, np.ndarray) or hasattr(source, "detach")


def is_list(source) -> bool:
    """Whether something holds several pictures: a list, a tuple, a column of `datasets`; not what is one picture."""
    return not isinstance(source, _SINGLE) and hasattr(source, "__len__") and hasattr(source, "__getitem__")


def _open(source: ImageSource, max_bytes: int) -> tuple[Image.Image, str]:
    """The picture, with only its header read, and a name for error messages."""
    if isinstance(source, dict):  # as `datasets.Image(decode=False)` gives it
        content = source.get("bytes") or source.get("path")
        if content is None or not {"bytes", "path"} & set(source):
            keys = ", ".join(shorten(str(key), 40) for key in list(source)[:8])
            raise UniF2aceImageError(f"a picture has the keys {keys or '(none)'}, expected filled `bytes` or `path`")
        return _open(content, max_bytes)
    if isinstance(source, Image.Image):
        return source, "the picture"
    if is_pixels(source):
        return picture_of_pixels(source), "the picture"
    if isinstance(source, (bytes, bytearray, memoryview)):
        _check_bytes(len(source), "the picture", max_bytes)
        return _open_file(io.BytesIO(source), f"the picture of {len(source)} bytes")
    if not isinstance(source, (str, os.PathLike)):
        raise UniF2aceImageError(
            f"a picture of type {type(source).__name__} was given, expected a path, bytes, pixels or a PIL picture"
        )
    path = os.fspath(source)
    path = os.fsdecode(path) if isinstance(path, bytes) else path
    if path.startswith(("http://", "https://")):
        raise UniF2aceImageError(f"{path} is an internet address, expected a local file: download the picture first")
    if path.startswith("data:"):
        return _open_file(_decode_base64(path.partition(",")[2], max_bytes), "the picture in the data: address")
    if path.startswith(_BASE64_STARTS) and not _is_file(path):
        return _open_file(_decode_base64(path, max_bytes), "the picture in base64 text")
    if not _is_file(path):
        kind = "is a folder" if os.path.isdir(path) else "does not exist"
        raise UniF2aceImageError(f"{shorten(path)} {kind}, expected a picture file: check the path")
    _check_bytes(os.path.getsize(path), path, max_bytes)
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


def _check_bytes(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise UniF2aceImageError(f"{name} has {size:,} bytes, the limit is {max_bytes:,}: make it smaller")


def _decode_base64(text: str, max_bytes: int) -> io.BytesIO:
    _check_bytes(len(text) // 4 * 3, "the picture in base64 text", max_bytes)
    try:
        return io.BytesIO(base64.b64decode("".join(text.split()), validate=True))
    except binascii.Error as error:
        raise UniF2aceImageError(
            f"{shorten(text)} is not base64 text ({error}), expected the content of a picture file"
        ) from error


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except (ValueError, OSError):  # a path with a zero byte, or one that is too long
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


def _is_cut_off(picture: Image.Image) -> bool:
    """
    Whether the file of a JPEG or PNG picture ends before the picture does, which would show after decoding most of it.
    Other formats: Pillow sees it at once (WebP, AVIF), or reads no faster than it decodes (GIF, BMP, TIFF, PPM).
    """
    file = getattr(picture, "fp", None)
    if file is None or picture.format not in ("JPEG", "MPO", "PNG"):
        return False
    place = file.tell()
    try:
        if picture.format != "PNG":  # the place is behind the header, whose thumbnail has an end of its own
            return b"\xff\xd9" not in file.read()
        size = file.seek(0, os.SEEK_END)
        start = 8
        while start + 8 <= size:
            file.seek(start)
            length, kind = struct.unpack(">I4s", file.read(8))
            start += 12 + length
            if kind == b"IDAT" and start > size + 12:  # 4 bytes after the data and 8 of theirs are only check sums
                return True
        return False
    finally:
        file.seek(place)


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


__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "SUFFIXES",
    "ImageSource",
    "UniF2aceImageError",
    "as_images",
    "is_batch",
    "load_image",
    "open_image",
    "shorten",
]
