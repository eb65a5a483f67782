"""
Every fenced block of README.md and of docs/, and every notebook, is executed here, from a folder in which nothing is
but what a reader has; or a comment above the block says why not:

    <!-- needs: a GPU -->                   hardware, a download, an account, hours: read for mistakes, not run
    <!-- tested by: tests/test_x.py -->     another test runs it
    <!-- slow -->                           run with `pytest -m slow` alone
    <!-- install -->, <!-- test -->         .ci/run executes it
"""

import ast
import glob
import io
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from requirements import REPOSITORY, declared

from unif2ace import cli
from unif2ace.pipelines import bundled_checkpoint, loading_unif2ace
from unif2ace.training.synthetic.painted.dataset import painted_face


NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- (?:(needs|tested by): (.+)|(slow|install|test)) -->")
# what makes a command as short as it can be; they come last, and the last one counts
SMALLEST = {
    "train": "--set training.max_steps=2",
    "finetune": "--steps 2 --prior 1 --batch-size 2",
    "evaluate": "--limit 2 --steps 2",
}
PATIENCE = 120


@dataclass
class Block:
    """A fenced block: where it is, its language and text, and what the comment above says of it."""

    place: str
    language: str
    text: str
    kind: str | None
    reason: str | None


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    lines, found, start = page.read_text(encoding="utf-8").splitlines(), [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        mark = MARK.fullmatch(lines[start - 1])
        found.append(
            Block(
                f"{page.name}:{start + 1}",
                lines[start][3:].strip(),
                "\n".join(lines[start + 1 : number]),
                mark and (mark[1] or mark[3]),
                mark and mark[2],
            )
        )
        start = None
    assert start is None, f"{page.name}: a block is not closed"
    return found


BLOCKS = {page.name: blocks_of(page) for page in PAGES}


def commands(block: Block) -> list[list[str]]:
    """The lines of a shell block, in words, without comments; lines that go on are joined."""
    joined = block.text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


# --- read ------------------------------------------------------------------------------------------------------------


def check_command(words: list[str], place: str):
    """A command names what there is: options, extras, files, targets."""
    if words[0] == "unif2ace":
        files = [name for word in words[1:] for name in (["a", "b"] if "*" in word else [word])]
        cli._build_parser(words[1]).parse_args(files)
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), place
    elif words[0] == "pip":
        assert words[1] == "install", place
        for word in words[2:]:
            if word.endswith(".txt"):
                assert (REPOSITORY / word).is_file(), place
            elif word.startswith("."):
                assert set(filter(None, word[1:].strip("[]").split(","))) <= set(declared()), place
            elif not word.startswith("-"):
                Requirement(word)
    elif words[0] in ("python", "torchrun"):
        for word in words[1:]:
            if word.endswith((".py", ".yaml")):
                assert (REPOSITORY / word).is_file(), place
            elif word.startswith("unif2ace."):
                module = REPOSITORY.joinpath(*word.split(".")[1:])
                assert module.with_suffix(".py").is_file() or (module / "__init__.py").is_file(), place


def check_code(text: str, place: str):
    """Code that is not run is Python, and what it imports of this package is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "unif2ace":
            for alias in node.names:
                assert hasattr(import_module(node.module), alias.name), f"{place}: {node.module} has no {alias.name}"


@pytest.mark.parametrize("page", BLOCKS)
def test_every_block_can_be_read(page):
    for block in BLOCKS[page]:
        assert block.language, f"{block.place}: say the language of the block"
        if block.kind == "tested by":
            assert (REPOSITORY / block.reason).is_file(), block.place
        if block.language == "bash":
            for words in commands(block):
                check_command(words, block.place)
        elif block.language == "python":
            check_code(block.text, block.place)
        elif block.language == "json":
            for line in block.text.splitlines():
                json.loads(line)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
        else:
            assert block.language in ("bibtex", "text"), f"{block.place}: nothing checks {block.language}"


def test_every_page_is_found():
    """From the index, and in the site's navigation."""
    index = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    navigation = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = re.findall(r"[\w-]+\.md", json.dumps(navigation))
    for page in PAGES[1:]:
        assert page.name in listed
        assert page.name == "index.md" or f"]({page.name})" in index, page.name
    for notebook in NOTEBOOKS:
        assert f"{notebook.stem}.md" in listed and f"](../examples/{notebook.name})" in index, notebook.name


def test_notebooks_are_small():
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            assert len(json.dumps(cell.get("outputs", []))) < 200_000, notebook.name


def test_no_command_hides_outside_of_a_block():
    """An indented line would be a block, too, which nothing runs."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            assert not re.match(r"    (unif2ace|python|pip|make) ", line), f"{page.name}: fence {line.strip()!r}"


# --- run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_bundled(tmp_path_factory):
    """The bundled checkpoint, which draws in two steps and says eight tokens unless it is told otherwise."""
    folder = tmp_path_factory.mktemp("package") / "hub_card" / "unif2ace-faces"
    shutil.copytree(bundled_checkpoint(), folder)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) | {"image_num_inference_steps": 2, "max_new_tokens": 8}
    path.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def readers_things(tmp_path_factory):
    """A folder with what pages take for granted: pictures with captions of the reader's own, a list, a checkout."""
    folder = tmp_path_factory.mktemp("reader")
    for name, count in {"my_faces": 3, "photos": 24}.items():
        (folder / name).mkdir()
        for number in range(count):
            face = painted_face(number)
            face.image.save(folder / name / f"{number:02}.png")
            (folder / name / f"{number:02}.txt").write_text(face.captions[0])
    (folder / "faces.jsonl").write_text(next(block.text for block in BLOCKS["batch.md"] if block.language == "json"))
    for name in ("examples", "benchmarks", "training"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


class Reader:
    """Who walks through a page: a folder, the names of its Python, and the servers that it has started."""

    def __init__(self, folder: Path):
        self.folder, self.names, self.servers = folder, {"__name__": "__main__"}, []
        self.ports: dict[str, str] = {}

    def run(self, block: Block):
        if block.language == "python":
            text = block.text
            for stated, used in self.ports.items():
                text = text.replace(f"127.0.0.1:{stated}", f"127.0.0.1:{used}")
            exec(compile(text, block.place, "exec"), self.names)
        elif block.language == "bash":
            for words in commands(block):
                if words[0] == "unif2ace":
                    self.call(words, block.place)
                elif block.kind != "install":
                    assert words[0] == "pip", f"{block.place}: nothing runs {words[0]!r} here; mark the block"

    def call(self, words: list[str], place: str):
        """Run a command; the adapter of `finetune` also serves as the second one that a page stacks upon it."""
        if words[1] in ("serve", "demo"):
            return self.serve(words)
        words = [*words[1:], *shlex.split(SMALLEST.get(words[1], ""))]
        words = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
        code = cli.main(words)
        assert code == 0, f"{place}: {shlex.join(words)} ended with {code}"
        if words[0] == "finetune":
            shutil.copytree("my_faces_lora", "watercolour_lora")

    def serve(self, words: list[str]):
        """Start a server at a free port and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        stated = words[words.index("--port") + 1] if "--port" in words else "8000"
        self.ports[stated] = port
        process = subprocess.Popen([sys.executable, "-m", "unif2ace.cli", *words[1:], "--port", port], cwd=self.folder)
        self.servers.append(process)
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < deadline, f"{shlex.join(words)} does not answer"
            try:
                return socket.create_connection(("127.0.0.1", int(port)), 1).close()
            except OSError:
                time.sleep(0.2)

    def close(self):
        for process in self.servers:
            process.terminate()
        for process in self.servers:
            process.wait(60)


@pytest.fixture
def reader(tmp_path, readers_things, small_bundled, monkeypatch):
    folder = tmp_path / "reader"
    shutil.copytree(readers_things, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(loading_unif2ace, "resources", SimpleNamespace(files=lambda name: small_bundled.parents[1]))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Is he happy?\n"))  # who types something into `chat`
    someone = Reader(folder)
    yield someone
    someone.close()


def blocks_to_run(page: str, slow: bool) -> list[Block]:
    kinds = (None, "install", "slow") if slow else (None, "install")
    return [b for b in BLOCKS[page] if b.kind in kinds and b.language in ("python", "bash")]


@pytest.mark.parametrize("page", [page for page in BLOCKS if blocks_to_run(page, slow=False)])
def test_the_blocks_of_a_page_run(page, reader):
    for block in blocks_to_run(page, slow=False):
        reader.run(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in BLOCKS if any(block.kind == "slow" for block in BLOCKS[page])])
def test_the_slow_blocks_of_a_page_run(page, reader):
    for block in blocks_to_run(page, slow=True):
        reader.run(block)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, reader):
    names = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"]).replace("steps=40", "steps=2")
            exec(compile(text, notebook.name, "exec"), names)
