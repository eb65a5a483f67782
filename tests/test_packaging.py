"""Requirements: ranges were run, constraints files hold all packages, nothing undeclared is imported."""

import ast
import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image
from requirements import REPOSITORY, declared, modules_not_in, pinned, pins

import unif2ace
from unif2ace import _versions


PYTHONS = ("3.11", "3.12", "3.13")
PACKAGE = Path(unif2ace.__file__).parent


@pytest.fixture(scope="module")
def requirements():
    """Every requirement of the package and its extras, but those that the locks leave out (.ci/lock says why)."""
    return [
        item for name, group in declared().items() if name not in ("synthetic", "outsiders", "docs") for item in group
    ]


def ends(requirement):
    """The floor and the cap of a requirement; the pin is both."""
    found = {specifier.operator: Version(specifier.version) for specifier in requirement.specifier}
    return found.get(">=", found.get("==")), found.get("<", found.get("=="))


def test_every_floor_is_run(requirements):
    lowest = pinned("constraints-lowest.txt", "3.11")
    assert requirements
    for requirement in requirements:
        assert ends(requirement)[0] == Version(lowest[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["constraints-cpu.txt", "constraints-gpu.txt"])
def test_the_lock_holds_every_requirement_at_its_newest(requirements, name, python):
    lock = pinned(name, python)
    for requirement in requirements:
        assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), requirement
    for library, stated in (_versions.BASE | _versions.OPTIONAL).items():
        release, cap = Version(lock[canonicalize_name(library)]), Version(stated.partition("<")[2])
        # capped at a minor release: it is the one after that of the lock
        assert cap.minor == 0 or (cap.major, cap.minor) == (release.major, release.minor + 1), library


def test_the_locks_differ_in_torch_only():
    cpu, gpu = (set(map(str, pins(f"constraints-{kind}.txt"))) for kind in ("cpu", "gpu"))
    assert cpu < gpu
    assert all(line.startswith(("cuda-", "nvidia-", "triton")) for line in gpu - cpu)


@pytest.mark.parametrize("kind", ["cpu", "gpu", "lowest"])
def test_constraints_are_pins_and_nothing_else(kind):
    text = (REPOSITORY / f"constraints-{kind}.txt").read_text(encoding="utf-8")
    assert "://" not in text and "--" not in text and " @ " not in text
    assert all(len(pin.specifier) == 1 for pin in pins(f"constraints-{kind}.txt"))


def test_every_locked_package_has_a_licence_that_is_allowed():
    licences = runpy.run_path(str(REPOSITORY / ".ci" / "licences.py"))
    table, names, problems = licences["table"](), licences["locked"](), licences["problems"]
    assert not problems(table, names)
    assert problems(table, names | {"new-package"})[0].startswith("new-package is locked and has no licence: run ")
    assert problems(table, names - {"torch"}) == ["torch has a licence and is not locked: remove its line"]
    for licence in ("GPL-3.0-only", "MIT AND AGPL-3.0-only", "(MIT OR GPL-2.0)", "LicenseRef-NVIDIA-Proprietary"):
        assert [line.partition(" ")[0] for line in problems(table | {"tqdm": licence}, names)] == ["tqdm"], licence
    assert not problems(table | {"tqdm": "GPL-3.0-only OR MIT"}, names)


def imports(folder):
    """The top-level modules that the files of a folder import, each with a file that does."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                "import_module",
                "need",
            ):
                names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            else:
                continue
            for name in names:
                if not name.startswith("."):
                    yield name.partition(".")[0], file


# Modules whose distribution has another name and may not be installed here.
DISTRIBUTION_OF = {"dlib": "dlib-bin"}
# Used if they are there, and asked for by name where they are missing; no extra brings them.
ASKED_FOR = {"insightface", "torch_fidelity", "torchao", "spaces"}


def test_what_is_imported_is_declared():
    known = {canonicalize_name(item.name) for group in declared().values() for item in group}
    distributions = packages_distributions()
    for name in ("modeling_unif2ace", "pipelines", "training", "hub_card", "cli", "benchmarks", "examples"):
        for module, file in imports(REPOSITORY / name):
            if module in sys.stdlib_module_names or module in ASKED_FOR or module == "unif2ace":
                continue
            if (file.parent / f"{module}.py").is_file():  # benchmarks import each other
                continue
            owners = {
                canonicalize_name(owner) for owner in distributions.get(module, [DISTRIBUTION_OF.get(module, module)])
            }
            assert owners & known, f"{file} imports {module}, which setup.py does not ask for"


def run(code, *paths):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, PACKAGE.parent]))}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def pretend(folder, library, release):
    """Make a folder that, put before the others, says that a library is installed in another release."""
    metadata = folder / f"{library}-{release}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {library}\nVersion: {release}\n")
    return folder


IMPORT = "import unif2ace"


def test_a_library_below_its_floor_is_refused_before_anything_else_fails(tmp_path):
    result = run(IMPORT, pretend(tmp_path, "transformers", "5.22.1"))
    assert result.returncode == 1
    command = f'pip install "transformers{_versions.BASE["transformers"]}"'
    assert result.stderr.splitlines()[-1].endswith(f"does not run with transformers 5.22.1: {command}")


def test_a_library_above_its_cap_gives_one_warning(tmp_path):
    result = run(IMPORT, pretend(tmp_path, "transformers", "6.0.0.dev0"), pretend(tmp_path / "2", "trl", "3.0"))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("UserWarning") == 1
    assert "was not tested with transformers 6.0.0.dev0, trl 3.0; if something fails: pip install" in result.stderr


def test_a_command_that_fails_above_the_range_says_so(tmp_path):
    command = "from unif2ace.cli import main; raise SystemExit(main(['verify', 'nothing.png']))"
    known = run(command)
    assert known.returncode == 2 and "not tested" not in known.stderr
    newer = run(command, pretend(tmp_path, "transformers", "6.0"))
    back = f'pip install "transformers{_versions.BASE["transformers"]}"'
    hint = f"unif2ace was not tested with transformers 6.0; if something fails: {back}"
    assert newer.returncode == 2
    assert newer.stderr.splitlines()[-1] == f"{known.stderr.strip()} ({hint})"


def test_an_old_library_of_an_extra_stops_nothing(tmp_path):
    result = run(IMPORT, pretend(tmp_path, "trl", "0.1"))
    assert result.returncode == 0 and "trl" not in result.stderr


@pytest.mark.parametrize(
    ("installed", "place"),
    [("5.22.9", -1), ("5.23", 0), ("5.23.0+cpu", 0), ("5.24.7", 0), ("5.25.0.dev0", 1), ("5.25", 1), ("6", 1)],
)
def test_where_a_release_is(tmp_path, monkeypatch, installed, place):
    monkeypatch.setattr(_versions, "BASE", {"some_library": ">=5.23,<5.25"})
    monkeypatch.syspath_prepend(pretend(tmp_path, "some_library", installed))
    assert _versions._place.__wrapped__("some_library") == place


# Runs a command as if only some extras had been installed.
AS_INSTALLED = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from unif2ace.cli import main
codes = []
for arguments in {commands!r}:
    print(*arguments, file=sys.stderr)
    codes.append(main(arguments))
print(codes)
"""


def run_commands(commands, *extras):
    """The exit code of each command and the last line that it printed to stderr."""
    code = AS_INSTALLED.format(blocked=modules_not_in(*extras), commands=commands)
    result = run(code)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    starts = [lines.index(" ".join(arguments)) for arguments in commands]
    return ast.literal_eval(result.stdout.splitlines()[-1]), [lines[after - 1] for after in [*starts[1:], len(lines)]]


def test_without_extras_each_command_says_which_it_needs(checkpoint, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "face.png")
    (tmp_path / "face.onnx").write_bytes(b"")
    face, data = str(tmp_path / "face.png"), str(tmp_path)
    wanted = {
        "train": ["train", "--config", "unif2ace-faces", "--output", str(tmp_path / "run")],
        "finetune": ["finetune", "--data", data, "--output", str(tmp_path / "lora")],
        "evaluate": ["evaluate", checkpoint, "--suite", "painted"],
        "data": ["data", "inspect", data],
        "convert": [
            "convert",
            "face-encoder",
            str(tmp_path / "face.onnx"),
            str(tmp_path / "encoder"),
            "--license",
            "mit",
        ],
        "serve": ["serve", "--model", checkpoint],
        "demo": ["demo", "--model", checkpoint],
    }
    extra_of = {name: name for name in wanted} | dict.fromkeys(["train", "finetune", "evaluate"], "train")
    model = ["--model", checkpoint]
    served = [
        ["generate", "a man", "--steps", "2", "--seed", "1", "-o", str(tmp_path / "new.png"), *model],
        ["describe", face, "--max-new-tokens", "2", *model],
        ["ask", face, "a man", "--max-new-tokens", "2", *model],
        ["edit", face, "a man", "--region", "mouth", "-o", str(tmp_path / "edited.png"), *model],
    ]
    codes, lines = run_commands([*wanted.values(), *served])  # in one process, whose start takes the longest
    assert codes == [2] * len(wanted) + [0] * len(served), lines
    for name, line in zip(wanted, lines, strict=False):
        assert re.fullmatch(
            rf'unif2ace {name}: error: \w+ is not installed: pip install "unif2ace\[{extra_of[name]}\]"', line
        )


@pytest.mark.parametrize(
    ("extra", "commands"),
    [
        ("train", [["train", "--help"], ["finetune", "--help"], ["evaluate", "--help"], ["publish", "--help"]]),
        ("data", [["data", "inspect", "FOLDER"], ["data", "clean", "FOLDER", "-o", "OUT"]]),
    ],
)
def test_an_extra_is_enough_for_its_commands(tmp_path, extra, commands):
    (tmp_path / "faces").mkdir()
    for color in ("red", "tan"):
        Image.new("RGB", (64, 64), color).save(tmp_path / "faces" / f"{color}.png")
    places = {"FOLDER": str(tmp_path / "faces"), "OUT": str(tmp_path / "out")}
    codes, lines = run_commands([[places.get(word, word) for word in command] for command in commands], extra)
    assert codes == [0] * len(commands), lines


def test_a_checkout_on_the_path_is_installed_by_its_folder(monkeypatch):
    """pip finds `unif2ace[serve]` only where the package is installed."""

    def unknown(name):
        raise _versions.PackageNotFoundError(name)

    error = ModuleNotFoundError("No module named 'nothing'", name="nothing")
    assert _versions.missing(error, "serve") == 'nothing is not installed: pip install "unif2ace[serve]"'
    monkeypatch.setattr(_versions, "version", unknown)
    assert _versions.missing(error, "serve") == f'nothing is not installed: pip install "{PACKAGE}[serve]"'


def test_versions_agree():
    stated = re.search(r"^version: (.*)$", (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert stated == unif2ace.__version__
