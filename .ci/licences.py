#!/usr/bin/env python3
"""
The licences of all locked packages: `.ci/licences.txt` has a line for each, and nothing else is locked.

    python .ci/licences.py            # compare with constraints-*.txt and the allowed licences; needs no network
    python .ci/licences.py --write    # write the lines of what is installed here anew, from its own metadata

Lines of packages that are not installed here (of other systems, of CUDA) stay as they are; somebody wrote them by hand
after reading the licence. Exit code 1, and a sentence for each package, if a line is missing or a licence not allowed.
"""

import re
import sys
from importlib import metadata
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / ".ci" / "licences.txt"
HEADER = """\
# The licence of each package in constraints-*.txt, as SPDX spells it. Written by `python .ci/licences.py --write` from
# the metadata of what is installed; lines of packages that are not installed are by hand.
"""
# Free to use, change and pass on; MPL-2.0 binds its own files only. NVIDIA's are free to use with its hardware; they
# come with the CUDA build of torch alone.
ALLOWED = set(
    "0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 CNRI-Python ISC LLVM-exception MIT MIT-CMU MPL-2.0 "
    "PSF-2.0 Unlicense Zlib".split()
)
ALLOWED_FOR_CUDA = {"LicenseRef-NVIDIA-Proprietary"}
CUDA = ("cuda-", "nvidia-")
# What packages say that do not speak SPDX: their licence in words, or its classifier.
SPDX = {
    r"apache( software|[ -]2)?.*": "Apache-2.0",
    r"mit( license)?": "MIT",
    r"(2-clause bsd.*|bsd[ -]2.*|simplified bsd)": "BSD-2-Clause",
    r"(bsd([ -]3.*| license)?|3-clause bsd.*|new bsd.*)": "BSD-3-Clause",
    r"(mozilla public license 2.0.*|mpl[ -]2.0)": "MPL-2.0",
    r"(python software foundation license|psf-2.0)": "PSF-2.0",
    r"isc license.*": "ISC",
    r".*nvidia.*": "LicenseRef-NVIDIA-Proprietary",
}


def locked() -> set[str]:
    """The names of all packages in the constraints files."""
    return {
        line.partition("==")[0].lower()
        for file in ROOT.glob("constraints-*.txt")
        for line in file.read_text(encoding="utf-8").split("\n")
        if "==" in line and not line.startswith("#")
    }


def table() -> dict[str, str]:
    """The licence of each package that has a line."""
    lines = TABLE.read_text(encoding="utf-8").split("\n") if TABLE.is_file() else []
    return dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))


def stated(name: str) -> str | None:
    """The licence that a package states, as SPDX spells it; `None` if it is not installed or says nothing."""
    try:
        given = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    if expression := given.get("License-Expression"):
        return expression
    words = [text.rpartition(" :: ")[2] for text in given.get_all("Classifier", []) if text.startswith("License :: ")]
    texts = [(given.get("License") or "").strip().partition("\n")[0], *words]
    known = [spdx for text in texts for form, spdx in SPDX.items() if re.fullmatch(form, text, re.IGNORECASE)]
    return known[0] if known else (texts[0] if re.fullmatch(r"[\w.()+ -]{3,60}", texts[0]) else None)


def problems(licences: dict[str, str], names: set[str]) -> list[str]:
    """A sentence for each package without a line, line without a package, and licence that is not allowed."""
    how = f"run `python .ci/licences.py --write` where it is installed, or read it and add a line to {TABLE.name}"
    found = [f"{name} is locked and has no licence: {how}" for name in sorted(names - licences.keys())]
    found += [f"{name} has a licence and is not locked: remove its line" for name in sorted(licences.keys() - names)]
    for name, expression in licences.items():
        allowed = ALLOWED | ALLOWED_FOR_CUDA if name.startswith(CUDA) else ALLOWED
        # of alternatives one is enough, but inside of brackets all have to be allowed
        choices = [expression] if "(" in expression else expression.split(" OR ")
        parts = [set(re.findall(r"[\w.-]+", choice)) - {"AND", "OR", "WITH"} for choice in choices]
        if not any(part <= allowed for part in parts):
            found.append(f"{name} is under {expression}: not among the allowed licences, use another package or ask")
    return found


def main(arguments: list[str]) -> int:
    """The command."""
    names, licences = locked(), table()
    if arguments == ["--write"]:
        licences = {name: stated(name) or licences.get(name) for name in sorted(names)}
        licences = {name: text for name, text in licences.items() if text}
        TABLE.write_text(HEADER + "".join(f"{name} {text}\n" for name, text in licences.items()), encoding="utf-8")
    found = problems(licences, names)
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
