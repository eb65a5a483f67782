"""
Where a generated picture comes from, written into its file: generator, checkpoint, seed, and that no camera made it.

The pipelines put a [`Provenance`] into `image.info`; `save_image` writes it, since Pillow's own `image.save` drops
what it does not know. The same is told to machines by IPTC's term for generated media, in XMP.
"""

import hashlib
import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO
from xml.sax.saxutils import quoteattr

from PIL import Image, PngImagePlugin

from .watermark_unif2ace import embed_watermark


INFO_KEY = "unif2ace_provenance"
SOURCE = "AI-generated"
# https://cv.iptc.org/newscodes/digitalsourcetype/: the term that the C2PA and the EU's code of practice use
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_PNG_KEY = "unif2ace"
_HASHED_SUFFIXES = (".json", ".jinja", ".safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# EXIF tags
_IMAGE_DESCRIPTION, _SOFTWARE, _EXIF_IFD, _USER_COMMENT = 0x010E, 0x0131, 0x8769, 0x9286
_ASCII = b"ASCII\0\0\0"  # the character code that begins a UserComment

_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmp:CreatorTool={tool} Iptc4xmpExt:DigitalSourceType={source}/></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True)
class Provenance:
    """
    Args:
        generator (`str`): Program and version, as `"unif2ace 0.1.0"`.
        checkpoint (`str`, *optional*): Name of the checkpoint; of a local one its folder's name.
        revision (`str`, *optional*): Commit of the Hub's repository, or `"sha256:"` and the hash of the local folder.
        seed (`int`, *optional*): Seed of the picture's own generator; `None` if it had none.
        completed_prompt (`str`, *optional*): The text that the picture was drawn from, where the model completed it.
    """

    generator: str
    checkpoint: str | None = None
    revision: str | None = None
    seed: int | None = None
    completed_prompt: str | None = None

    def to_json(self) -> str:
        """One line of JSON, with `"source": "AI-generated"` in it."""
        fields = asdict(self)
        if self.completed_prompt is None:
            del fields["completed_prompt"]
        return json.dumps({"source": SOURCE, **fields})

    @classmethod
    def from_json(cls, text: str) -> "Provenance | None":
        """The provenance that a line of JSON holds; `None` if it does not hold one."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or content.get("source") != SOURCE:
            return None
        fields = {name: content.get(name) for name in cls.__dataclass_fields__}
        seed = fields.pop("seed")
        if not isinstance(fields["generator"], str) or not isinstance(seed, (int, type(None))):
            return None
        if not all(isinstance(value, (str, type(None))) for value in fields.values()):
            return None
        return cls(**fields, seed=seed)


@lru_cache(maxsize=8)  # a large checkpoint takes seconds to hash
def describe_checkpoint(name_or_path: str, commit: str | None = None) -> tuple[str | None, str | None]:
    """
    Name and revision of the checkpoint that a model was loaded from.

    Args:
        name_or_path (`str`): The model's `name_or_path`: a folder, a snapshot in the Hub's cache, or a repository.
        commit (`str`, *optional*): Commit of the repository, if the model knows it.

    Returns:
        `tuple` of two `str` or `None`: the repository's name and commit, or a local folder's own name and
        `"sha256:..."` of its contents. Two `None` for a model that was made in memory.
    """
    if not name_or_path:
        return None, None
    if not Path(name_or_path).is_dir():
        return name_or_path, commit
    folder = Path(name_or_path).resolve()
    if folder.name == "transformer" and (folder.parent / "model_index.json").is_file():
        folder = folder.parent
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1), folder.name
    return folder.name, f"sha256:{checkpoint_sha256(folder)}"


def checkpoint_sha256(folder: str | os.PathLike) -> str:
    """One hash of what decides a checkpoint's outputs: its configurations, tokenizer and weights, not its card."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _HASHED_SUFFIXES and path.name != "model_index.json":  # which says where, not what
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def generator_name() -> str:
    """`unif2ace` and its version; without a version where the pipeline runs as a repository's own code."""
    version = getattr(sys.modules.get("unif2ace"), "__version__", None)
    return f"unif2ace {version}" if version else "unif2ace"


def recorded_seeds(generator, count: int) -> list[int | None]:
    """
    The seed that makes each of `count` pictures again, asked before anything is drawn.

    A picture has one where it has a generator of its own that still stands where its seed put it.

    Args:
        generator (`torch.Generator` or a list of them, *optional*): What the pictures will be drawn with.
        count (`int`): Number of pictures.

    Returns:
        `list[int | None]`: `None` for a picture that no seed alone makes again.
    """
    own = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if len(own) != count or not all(hasattr(item, "initial_seed") for item in own):
        return [None] * count
    seeds = []
    for place, item in enumerate(own):
        start = type(item)(item.device).manual_seed(item.initial_seed())  # torch is not imported here
        is_fresh = item.get_state().equal(start.get_state()) and not any(item is other for other in own[:place])
        seeds.append(item.initial_seed() if is_fresh else None)
    return seeds


def mark_as_generated(
    images: list[Image.Image],
    model,
    seeds: list[int | None] | None = None,
    completed_prompts: list[str] | None = None,
) -> list[Image.Image]:
    """
    Copies with the invisible watermark and, in `info`, the [`Provenance`] that `save_image` writes into files.

    Args:
        images (`list[PIL.Image.Image]`): Pictures that `model` made.
        model ([`UniF2aceForConditionalGeneration`]): The model.
        seeds (`list[int | None]`, *optional*): What makes each again, see [`recorded_seeds`].
        completed_prompts (`list[str]`, *optional*): What each was drawn from, where the model completed prompts.
    """
    checkpoint, revision = describe_checkpoint(model.name_or_path, getattr(model.config, "_commit_hash", None))
    nothing = [None] * len(images)
    marked = [embed_watermark(image) for image in images]
    for image, seed, text in zip(marked, seeds or nothing, completed_prompts or nothing, strict=True):
        image.info[INFO_KEY] = Provenance(generator_name(), checkpoint, revision, seed, text)
    return marked


def save_image(image: Image.Image, file: str | os.PathLike | IO[bytes], format: str | None = None, **options):
    """
    Save a picture with its provenance: as text and XMP in PNG, as EXIF and XMP in JPEG and WebP.

    Args:
        image (`PIL.Image.Image`): A picture; one without provenance is saved as it is.
        file (`str`, `os.PathLike` or binary file): Where to.
        format (`str`, *optional*): `"PNG"`, `"JPEG"`, `"WEBP"`, ...; by the file's ending when not given.
        options: Passed to `image.save`, as `quality=90`.
    """
    provenance = image.info.get(INFO_KEY)
    if isinstance(provenance, Provenance):
        text = provenance.to_json()
        xmp = _XMP.format(tool=quoteattr(provenance.generator), source=quoteattr(DIGITAL_SOURCE_TYPE))
        kind = (format or Path(os.fspath(file)).suffix.lstrip(".")).upper()
        if kind == "PNG":
            chunks = PngImagePlugin.PngInfo()
            chunks.add_text("Software", provenance.generator)
            chunks.add_text("Source", SOURCE)
            chunks.add_text(_PNG_KEY, text)
            chunks.add_itxt("XML:com.adobe.xmp", xmp)
            options.setdefault("pnginfo", chunks)
        else:
            exif = Image.Exif()
            exif[_IMAGE_DESCRIPTION], exif[_SOFTWARE] = SOURCE, provenance.generator
            exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + text.encode()
            options.setdefault("exif", exif)
            options.setdefault("xmp", xmp.encode())
    image.save(file, format=format, **options)


def read_provenance(image: Image.Image) -> Provenance | None:
    """What a picture's file, or a picture fresh from the pipeline, says of its origin; `None` if it says nothing."""
    given = image.info.get(INFO_KEY)
    if isinstance(given, Provenance):
        return given
    text = image.info.get(_PNG_KEY)
    if not isinstance(text, str):
        try:
            comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
        except Exception:  # Pillow's EXIF reader lets many kinds of error through on broken data
            return None
        if not isinstance(comment, bytes) or not comment.startswith(_ASCII):
            return None
        text = comment.removeprefix(_ASCII).decode("ascii", errors="replace")
    return Provenance.from_json(text)


__all__ = [
    "Provenance",
    "checkpoint_sha256",
    "describe_checkpoint",
    "generator_name",
    "mark_as_generated",
    "recorded_seeds",
    "read_provenance",
    "save_image",
]
