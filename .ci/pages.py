"""What mkdocs.yml cannot say: pages that lie outside of docs/, links between them, which names the reference has."""

import ast
import json
import re
import tempfile
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File


ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# where a file of the repository stands on the site
PAGES = {
    "README.md": "start.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    **{f"examples/{path.name}": f"{path.stem}.md" for path in NOTEBOOKS},
}
ROOMS = ("__init__.py", "_versions.py", "modeling_unif2ace", "pipelines", "training", "hub_card", "cli")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


@event_priority(100)  # before mkdocstrings reads it
def on_config(config):
    """The reference reads the sources, without their libraries, from a folder of the package's name."""
    folder = Path(tempfile.mkdtemp())
    (folder / "unif2ace").mkdir()
    for name in ROOMS:
        (folder / "unif2ace" / name).symlink_to(ROOT / name)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    return config


def on_files(files, config):
    """README and its siblings are pages, and so are the notebooks."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".ipynb"):
            text = _notebook(json.loads(text), source)
        files.append(File.generated(config, page, content=_link(text, ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of docs/ lead to pages of the site; the reference names every public class and function."""
    source = Path(config["docs_dir"]) / page.file.src_uri
    if source.is_file():
        markdown = _link(markdown, source)
    return re.sub(r"^<!-- api: (\S+) -->$", lambda found: _reference(found[1]), markdown, flags=re.MULTILINE)


def on_page_content(html, page, **_):
    """Docstrings name classes as [`Name`] or [`~module.Name`] and types in backticks, as those of transformers do."""
    if page.file.src_uri != "api.md":
        return html
    html = html.replace("`", "")
    return re.sub(r"\[<code>~?(?:[\w.]*\.)?(\w+)</code>\]", r"<code>\1</code>", html)


def _link(text: str, source: Path) -> str:
    """Links to files that are pages here lead there; of links to other files of the repository the words stay."""

    def follow(found):
        picture, words, target, place = found[1], found[2], (source.parent / found[3]).resolve(), found[4] or ""
        if not target.is_relative_to(ROOT) or not target.exists():
            return found[0]  # mkdocs warns of it
        name = target.relative_to(ROOT).as_posix()
        if name in PAGES:
            return f"[{words}]({PAGES[name]}{place})"
        if name.startswith("docs/"):
            return f"{picture}[{words}]({name.removeprefix('docs/')}{place})"
        return words

    return LINK.sub(follow, text)


def _notebook(notebook: dict, source: str) -> str:
    """The words and the code of a notebook; its pictures are seen when it is run."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    title, *rest = parts
    return "\n\n".join([title, f"(The notebook `{source}`.)", *rest])


def _reference(module: str) -> str:
    """A directive for each public name of a package whose `__init__` is lazy, or for a module as a whole."""
    init = ROOT / module.replace(".", "/") / "__init__.py"
    if not init.is_file():
        return f"::: unif2ace.{module}\n    options: {{show_root_toc_entry: true}}"
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_MODULE_OF":
            places = ast.literal_eval(node.value)
            break
    lines = []
    for name, place in sorted(places.items()):
        if module == "modeling_unif2ace":
            place = f".{place}_unif2ace"
        place = f".{module}{place}" if not place.startswith("..") else place[1:]  # as in a relative import
        lines.append(f"::: unif2ace{place}.{name}")
    return "\n\n".join(lines)
