"""What is imported when: the package is cheap to import, and its classes are known whenever they are needed."""

import subprocess
import sys
from importlib import resources

import pytest


BUNDLED = str(resources.files("unif2ace") / "hub_card" / "unif2ace-faces")


def run(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import unif2ace",
        "from unif2ace.cli import main; main(['--help'])",
        "from unif2ace.cli import main; main(['--version'])",
        "from unif2ace.cli import main; main([])",
        "from unif2ace.cli import main; main(['generte'])",
        "from unif2ace.cli import main; main(['generate', '--help'])",
        "from unif2ace import detect_watermark, read_provenance",
    ],
)
def test_light_commands_import_no_heavy_library(code):
    heavy = "torch", "transformers", "diffusers", "datasets", "peft"
    assert run(f"{code}\nimport sys; print([name for name in {heavy} if name in sys.modules])").endswith("[]")


WALK = """
import sys, time
from importlib.machinery import PathFinder

absent = {absent}
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in absent else find(name, *rest)
)

from unif2ace.cli import COMMANDS, main
from unif2ace.cli.data import COMMANDS as DATA

names = [[name] for name in COMMANDS] + [["data", name] for name in DATA]
for name in names + [["convert", kind] for kind in ("showo", "to-showo", "face-encoder")]:
    start = time.process_time()
    assert main([*name, "--help"]) == 0, name
    assert time.process_time() - start < 0.5, name
print("walked", len(names))
for line in {lines}:
    assert main(line.split()) == 2, line
"""


def test_help_is_help_without_any_extra():
    """In a process where nothing heavy can be imported; what is missing is said when a command runs."""
    absent = "torch transformers diffusers huggingface_hub datasets peft trl evaluate matplotlib openai pyarrow yaml"
    absent += " resvg_py tensorboard torchmetrics imagehash fastapi uvicorn gradio onnx onnxruntime tqdm"
    code = WALK.format(absent=set(absent.split()), lines=[])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for text in (
        "walked 23",
        "--json",
        "--quiet",
        "usage: unif2ace data inspect",
        "LoRA",
        "Answer requests over HTTP",
    ):
        assert text in done.stdout


def test_a_command_says_which_extra_it_lacks(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "face.png")
    absent = {"peft", "datasets", "yaml", "evaluate", "openai", "pyarrow", "onnx", "fastapi", "uvicorn", "gradio"}
    lines = {
        "train --config unif2ace-faces": "train",
        "finetune --data . --output out": "train",
        "publish unif2ace-faces --repo me/faces --dry-run": "train",
        "data inspect .": "data",
        "convert face-encoder a.onnx out --license apache-2.0": "convert",
        "serve": "serve",
        "demo": "demo",
    }
    done = subprocess.run(
        [sys.executable, "-c", WALK.format(absent=absent, lines=list(lines))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    for error, (line, extra) in zip(errors, lines.items(), strict=True):
        assert error.startswith(f"unif2ace {line.split()[0]}: error: ") and f"[{extra}]" in error, error


def test_verify_imports_no_heavy_library(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    code = f"from unif2ace.cli import main; main(['verify', {str(tmp_path / 'white.png')!r}])"
    printed = run(f"{code}\nimport sys; print([n for n in ('torch', 'diffusers') if n in sys.modules])")
    assert printed.endswith("[]")


@pytest.mark.parametrize(
    "code",
    [
        "import unif2ace\nfrom transformers import AutoModelForMultimodalLM as Auto",
        "from transformers import AutoModelForMultimodalLM as Auto\nimport unif2ace",
        "import unif2ace\nimport transformers.models.auto.modeling_auto\nfrom transformers import AutoModel as Auto",
        "import unif2ace.modeling_unif2ace.modeling_unif2ace\nfrom transformers import AutoModel as Auto",
        "import unif2ace.modeling_unif2ace.any_to_any_unif2ace\nfrom transformers import AutoModel as Auto",
        "from unif2ace import UniF2acePipeline\nUniF2acePipeline\nfrom transformers import AutoConfig as Auto",
        "import unif2ace\nfrom transformers import AutoProcessor as Auto",
        "import unif2ace\nfrom transformers import AutoImageProcessor as Auto",
        "import unif2ace\nfrom unif2ace.modeling_unif2ace import register\nregister()\n"
        "from transformers import AutoConfig as Auto",
    ],
)
def test_auto_classes_know_ours_in_whatever_order_things_are_imported(code):
    assert run(f"{code}\nprint(type(Auto.from_pretrained({BUNDLED!r})).__name__)").startswith("UniF2ace")


@pytest.mark.parametrize("first", ["import unif2ace", "import transformers.pipelines"])
def test_transformers_pipelines_know_ours(first):
    code = f"{first}\nimport unif2ace\nfrom transformers import pipeline\n"
    code += f"print(type(pipeline('face-any-to-any', model={BUNDLED!r})).__name__)"
    assert run(code).endswith("UniF2aceAnyToAnyPipeline")


def test_every_public_name_can_be_imported():
    import unif2ace
    from unif2ace import modeling_unif2ace, pipelines

    for package in (unif2ace, modeling_unif2ace, pipelines):
        for name in package.__all__:
            assert getattr(package, name) is not None
            assert name in dir(package)
        with pytest.raises(AttributeError, match="no attribute"):
            package.NoSuchName  # noqa: B018
