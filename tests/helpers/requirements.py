"""What setup.py asks for and what the constraints files hold."""

import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


REPOSITORY = Path(__file__).resolve().parents[2]


def declared() -> dict[str, list[Requirement]]:
    """The requirements of each extra by its name, those of the package itself under `"base"`."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
        runpy.run_path(str(REPOSITORY / "setup.py"))
    groups = {"base": given["install_requires"], **given["extras_require"]}
    return {name: [Requirement(text) for text in texts] for name, texts in groups.items()}


def pins(name: str) -> list[Requirement]:
    """The lines of a constraints file."""
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned(name: str, python: str) -> dict[str, str]:
    """The release of each package in a constraints file, for one Python on Linux."""
    where = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    where |= {"platform_machine": "x86_64"}
    found = {}
    for pin in pins(name):
        if pin.marker is None or pin.marker.evaluate(where):
            assert canonicalize_name(pin.name) not in found, f"{name} pins {pin.name} twice for Python {python}"
            (specifier,) = pin.specifier
            assert specifier.operator == "==", f"{name} does not pin {pin.name}"
            found[canonicalize_name(pin.name)] = specifier.version
    return found
