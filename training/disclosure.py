"""
What may leave this machine: the one rule for everything that goes onto a card or into a published file.

Names of keys are allowed one by one where they are used; of their values this module keeps what names no place (paths,
addresses) and holds no secret. Whoever writes a new fact onto a card puts it through [`public`].
"""

import math
import re
from collections.abc import Mapping
from typing import Any


HIDDEN = "…"  # stands where a place was
LONGEST = 200  # characters of a value that is shown

# a path that begins at a root, a drive, a home or a parent folder, or an address; "</s>" and "w/o" are none
_PLACE = re.compile(
    r"(?:(?<![\w.…<)\]*])|(?<=\w:))(?:~[\w.-]*[\\/]|\.{1,2}/|\.\.\\|/(?=[\w.~-])|[A-Za-z]:[\\/])|\b\w+://|\\\\(?=\w)"
)
# a path of three names or more; two may be a repository on the Hub
_DEEP = re.compile(r"[\w.-]+/[\w.-]+/[\w./-]+")
_SPLIT = re.compile(r" \([\w-]+\)$")  # of a data set, behind its place
_SECRET = re.compile(
    r"\b(?:hf|ghp|gho|ghs|glpat|sk|pk|xox[abp])[-_]\w{12,}|\bAKIA\w{12,}|\bAIza\w{20,}"  # of known services
    r"|\bBearer\s|\beyJ[\w-]{10,}\.|-----BEGIN|[?&](?:X-Amz-|sig=|token=|key=|Signature=)"
)
_LONG = re.compile(r"\b(?=\w*[g-zG-Z])(?=(?:\w*\d){4})\w{32,}\b")  # long and mixed, and no hash in hexadecimals
_SECRET_NAME = re.compile(r"token(?!iz)|secret|passw|credential|api_?key|private_key|authorization", re.IGNORECASE)
# settings of texts, not of access
_TEXT_NAME = re.compile(
    r"(?:bos|eos|pad|unk|sep|cls|mask|image|video|audio|decoder_start|forced_\w+)_tokens?|\w*_token_ids?|\w+_tokens"
    r"|\w+_tokens_\w+|token_type_ids|tokenizer\w*|\w+_tokenizer\w*|chat_template",
    re.IGNORECASE,
)


def without_places(text: str) -> str:
    """A text with `…` for its first path or address and what follows, but for the split of a data set at the end."""
    found = [match.start() for match in (_PLACE.search(text), _DEEP.search(text)) if match is not None]
    if not found:
        return text
    split = _SPLIT.search(text)
    return text[: min(found)] + HIDDEN + (split[0] if split else "")


def is_private(text: str) -> bool:
    """Whether a text names a place or holds what looks like a secret."""
    return bool(_SECRET.search(text) or _LONG.search(text) or without_places(text) != text)


def public(value: Any) -> Any:
    """
    What of a value may be shown.

    Args:
        value: Numbers, texts, or lists and dictionaries of such.

    Returns:
        The same without secrets (`None` in their stead), with `…` for places, in one line and not too long; `None` for
        what is none of these and for numbers that are not finite.
    """
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        if _SECRET.search(value) or _LONG.search(value):
            return None
        shown = " ".join(without_places(value).replace("`", "'").replace("|", "/").replace("<", "‹").split())
        return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + HIDDEN
    if isinstance(value, (list, tuple)):
        return [shown for shown in map(public, value) if shown is not None]
    if isinstance(value, Mapping):
        named = {str(name): public(item) for name, item in value.items() if not _is_secret_name(str(name))}
        return {name: item for name, item in named.items() if item is not None and not is_private(name)}
    return None


def public_config(config: Mapping) -> dict:
    """
    A configuration file as it is published: everything but values that name places or hold secrets, at any depth.

    Unlike [`public`] it changes no value: what is not public is left out, with its name.
    """
    kept = {}
    for name, value in config.items():
        if _is_secret_name(name) or name in ("_name_or_path", "name_or_path") or is_private(name):
            continue
        if isinstance(value, Mapping):
            kept[name] = public_config(value)
        elif isinstance(value, (list, tuple)):
            items = (public_config(item) if isinstance(item, Mapping) else item for item in value)
            kept[name] = [item for item in items if not (isinstance(item, str) and is_private(item))]
        elif not isinstance(value, str) or _TEXT_NAME.fullmatch(name) or not is_private(value):
            kept[name] = value
    return kept


def _is_secret_name(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _TEXT_NAME.fullmatch(name)


__all__ = ["is_private", "public", "public_config", "without_places"]
