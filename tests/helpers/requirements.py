"""What setup.py asks for and what the constraints files hold."""

import runpy
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
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


def modules_not_in(*extras: str) -> set[str]:
    """The installed modules that would not be there if only the package and some of its extras had been installed."""
    groups, wanted = declared(), set()
    todo = [requirement for group in ("base", *extras) for requirement in groups[group]]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, *sorted(requirement.extras))
        if key in wanted:
            continue
        wanted.add(key)
        try:
            further = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:  # for another platform
            continue
        environments = [{"extra": extra} for extra in requirement.extras or ("",)]
        todo += [item for item in further if item.marker is None or any(map(item.marker.evaluate, environments))]
    names = {name for name, *_ in wanted} | {"unif2ace", "setuptools"}
    return {
        module
        for module, owners in packages_distributions().items()
        if not names & {canonicalize_name(owner) for owner in owners}
    }
