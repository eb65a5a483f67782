"""The plan of the house, read off the syntax trees: imports run one way and in no circle, lazy ones included."""

import ast
import re
from pathlib import Path

import pytest


PACKAGE = Path(__file__).resolve().parents[1]
ROOMS = ("modeling_unif2ace", "pipelines", "training", "hub_card", "cli")
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ROOMS
    for path in sorted((PACKAGE / room).rglob("*.py"))
    if not {"space", "unif2ace-faces"} & set(path.parts)  # what is published, not imported
}


def targets(name: str, tree: ast.AST):
    """The modules of this package that a module imports, wherever it does so, as dotted names below the package."""
    package = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    for_readers = {  # `if TYPE_CHECKING:` is never executed
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_readers:
            continue
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
            elif node.module == "unif2ace" or node.module.startswith("unif2ace."):
                base = []
            else:
                continue
            module = [part for part in (node.module or "").split(".") if part and part != "unif2ace"]
            for alias in node.names:  # a name may be a module itself
                full = ".".join([*base, *module, alias.name])
                yield full if full in FILES else ".".join([*base, *module])
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("unif2ace.") for alias in node.names if "unif2ace" in alias.name)


GRAPH = {
    name: {target for target in targets(name, ast.parse(path.read_bytes())) if target in FILES and target != name}
    for name, path in FILES.items()
}


def test_the_graph_is_read():
    assert "modeling_unif2ace.moe_unif2ace" in GRAPH["modeling_unif2ace.modeling_unif2ace"]
    assert any(target.startswith("pipelines") for target in GRAPH["training.trainer"] | GRAPH["training.callbacks"])


def test_imports_run_one_way():
    room = {name: ROOMS.index(name.partition(".")[0]) for name in GRAPH}
    upwards = [(name, target) for name, found in GRAPH.items() for target in found if room[target] > room[name]]
    assert not upwards


def test_the_core_of_training_does_not_know_the_synthetic_worlds():
    inside = "training.synthetic"
    known = [
        (name, target)
        for name, found in GRAPH.items()
        for target in found
        if target.startswith(inside) and not name.startswith((inside, "cli", "hub_card"))
    ]
    assert not known


def test_no_circle():
    state: dict[str, str] = {}

    def visit(name: str, chain: tuple[str, ...]):
        if state.get(name) == "done":
            return
        if name in chain:
            pytest.fail(f"imports in a circle: {' -> '.join([*chain[chain.index(name) :], name])}")
        for target in sorted(GRAPH[name]):
            visit(target, (*chain, name))
        state[name] = "done"

    for name in GRAPH:
        visit(name, ())


def test_the_core_is_flat_and_imports_siblings_only():
    folder = PACKAGE / "modeling_unif2ace"
    assert not list(folder.glob("*/*.py"))
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2 and not (node.module or "").startswith("unif2ace."), f"{path.name}:{node.lineno}"


TEXTS = [
    path
    for pattern in ("*.md", "docs/*.md", "Makefile", "hub_card/**/*.md", "hub_card/**/*.jinja")
    for path in PACKAGE.glob(pattern)
] + [*FILES.values(), *PACKAGE.glob("benchmarks/*.py"), *PACKAGE.glob("examples/*.py")]


def test_what_texts_name_is_there():
    absent = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for module in re.findall(r"(?:-m |`~?)unif2ace\.((?:[a-z]\w*\.)*[a-z]\w*)", text):
            place, _, name = module.rpartition(".")
            known = module in FILES or (place in FILES and re.search(rf"\b{name}\b", FILES[place].read_text()))
            if module.partition(".")[0] in ROOMS and not known:
                absent.append((path.name, module))
        for file in re.findall(
            rf"\b(?:{'|'.join(ROOMS)}|benchmarks|examples|docs)/[\w/.-]+\.(?:py|yaml|md|png)\b", text
        ):
            if not (PACKAGE / file).exists() and "..." not in file:
                absent.append((path.name, file))
    assert not absent
