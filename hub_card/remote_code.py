"""
The code that travels with a published model, so that it loads without this package (`trust_remote_code=True`).

transformers fetches a module and the siblings that it imports, so its repositories get `modeling_unif2ace/` as flat
files. diffusers fetches a single file for each component, so its repositories get every module flattened into one.
Names of modules and classes are written here and not asked of objects: FSDP renames classes in place.
"""

import ast
from functools import lru_cache
from importlib import import_module
from pathlib import Path


PACKAGE = Path(__file__).resolve().parents[1]
MODELING = PACKAGE / "modeling_unif2ace"
PIPELINES = PACKAGE / "pipelines"

MODEL_CLASS = ("modeling_unif2ace", "UniF2aceForConditionalGeneration")
PROCESSOR_CLASS = ("processing_unif2ace", "UniF2aceProcessor")
SCHEDULER_CLASS = ("scheduling_unif2ace", "UniF2aceScheduler")
PIPELINE_CLASS = ("UniF2acePipeline", "UniF2acePipeline")  # diffusers names the file when it refuses to run code
PIPELINE_SOURCE = "pipeline_unif2ace.py"
COMPONENT_CLASSES = {"transformer": MODEL_CLASS, "processor": PROCESSOR_CLASS, "scheduler": SCHEDULER_CLASS}
# transformers' own kind of pipeline
ANY_TO_ANY_CLASS = ("any_to_any_unif2ace", "UniF2aceAnyToAnyPipeline")

# `register_for_auto_class` keeps the last Auto class only, so the maps are written by hand.
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_unif2ace.UniF2aceConfig",
    "AutoModel": "modeling_unif2ace.UniF2aceModel",
    "AutoModelForImageTextToText": ".".join(MODEL_CLASS),
    "AutoModelForMultimodalLM": ".".join(MODEL_CLASS),
}
CUSTOM_PIPELINES = {
    "face-any-to-any": {
        "impl": ".".join(ANY_TO_ANY_CLASS),
        "pt": ["AutoModelForMultimodalLM"],
        "type": "multimodal",
    }
}
PROCESSOR_AUTO_MAP = {
    "AutoProcessor": ".".join(PROCESSOR_CLASS),
    "AutoImageProcessor": "image_processing_unif2ace.UniF2aceImageProcessor",
}


def flat_code(*modules: str) -> dict[str, bytes]:
    """
    Modules of `modeling_unif2ace/` and everything that they import from it, as separate files.

    Args:
        modules (`str`): Names without `.py`; those of model, processor and pipeline when none is given.

    Returns:
        `dict[str, bytes]`: content of each file by its name.
    """
    found: dict[str, bytes] = {}
    waiting = list(modules or (MODEL_CLASS[0], PROCESSOR_CLASS[0], ANY_TO_ANY_CLASS[0]))
    while waiting:
        path = MODELING / f"{waiting.pop()}.py"
        if path.name not in found:
            found[path.name] = path.read_bytes()
            waiting += [sibling.stem for sibling in _local_imports(path, ast.parse(found[path.name])).values()]
    return dict(sorted(found.items()))


@lru_cache(maxsize=1)  # takes seconds
def diffusers_code() -> dict[str, bytes]:
    """
    The code with which `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads a pipeline, with or
    without the package: one file for the pipeline and one in the folder of each component.

    Returns:
        `dict[str, bytes]`: content of each file by its path in the pipeline's folder.
    """
    files = {f"{PIPELINE_CLASS[0]}.py": single_file(PIPELINES / PIPELINE_SOURCE)}
    for folder, (module, _) in COMPONENT_CLASSES.items():
        source = (PIPELINES if folder == "scheduler" else MODELING) / f"{module}.py"
        files[f"{folder}/{module}.py"] = single_file(source)
    return files


def single_file(path: Path) -> bytes:
    """
    A module of this package with the local modules that it imports put in front of it, in one file.

    Args:
        path (`Path`): The module.

    Raises:
        ValueError: if an import cannot be flattened, or two modules give one name to different things.
    """
    trees: dict[Path, ast.Module] = {}  # in the order in which the parts must run

    def visit(module: Path, chain: tuple[Path, ...] = ()):
        if module in chain:
            raise ValueError(f"{module} imports itself by way of {', '.join(p.name for p in chain)}")
        if module in trees:
            return
        tree = ast.parse(module.read_bytes())
        for imported in _local_imports(module, tree).values():
            visit(imported, (*chain, module))
        trees[module] = tree

    visit(path)
    _check_names(trees)
    parts = [_without_imports(module, tree, keep_all=module == path) for module, tree in trees.items()]
    header = f"# Made of {', '.join(module.name for module in trees)} of the package unif2ace\n"
    return (header + "\n\n".join(parts)).encode()


def _local_imports(module: Path, tree: ast.Module) -> dict[ast.ImportFrom, Path]:
    """The relative imports at the top of a module, and the files that they name."""
    imports = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = module.parents[node.level - 1]
        target = folder.joinpath(*(node.module or "").split(".")).with_suffix(".py")
        if node not in tree.body or not node.module or not target.is_file() or any(n.asname for n in node.names):
            raise ValueError(f"{module.name}:{node.lineno}: only `from .x import y` at the top can be published")
        imports[node] = target
    return imports


def _check_names(trees: dict[Path, ast.Module]) -> None:
    """In one file a name has one meaning: the same statement twice is fine, another one is not."""
    meanings: dict[str, tuple[str, Path]] = {}
    for module, tree in trees.items():
        for node in tree.body:
            for name, meaning in _definitions(node).items():
                known, where = meanings.setdefault(name, (meaning, module))
                if known != meaning and name != "__all__" and not _same_import(known, meaning):
                    raise ValueError(f"{name} of {module.name} and of {where.name} differ: rename one of them")


def _same_import(one: str, other: str) -> bool:
    """Whether two imports find the same object, as `transformers:PreTrainedModel` in its two places."""
    places = [meaning.partition(":") for meaning in (one, other)]
    if not all(module.replace(".", "").isidentifier() and name.isidentifier() for module, _, name in places):
        return False
    return len({id(getattr(import_module(module), name, None)) for module, _, name in places}) == 1


def _definitions(node: ast.stmt) -> dict[str, str]:
    """The names that a statement gives, and what to."""
    if isinstance(node, ast.ImportFrom):
        source = f"{'.' * node.level}{node.module}"
        return {} if node.level else {alias.asname or alias.name: f"{source}:{alias.name}" for alias in node.names}
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name: ast.unparse(node)}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        return {name: ast.unparse(node) for name in names}
    return {}


def _without_imports(module: Path, tree: ast.Module, keep_all: bool) -> str:
    """A module's text without its local imports and, unless it is the last part, its `__all__`."""
    lines = module.read_text(encoding="utf-8").splitlines()
    dropped: set[int] = set()
    for node in tree.body:
        is_all = isinstance(node, ast.Assign) and "__all__" in _definitions(node)
        if (isinstance(node, ast.ImportFrom) and node.level) or (is_all and not keep_all):
            dropped |= set(range(node.lineno, node.end_lineno + 1))
    kept = [line for number, line in enumerate(lines, 1) if number not in dropped]
    return f"# ---- {module.name} ----\n" + "\n".join(kept).strip() + "\n"
