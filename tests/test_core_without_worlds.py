"""Training on photographs needs no painter: the core does not import the embedded worlds, and runs without resvg."""

import ast
import subprocess
import sys
from pathlib import Path


PACKAGE = Path(__file__).parents[1]
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "resvg_py" or name.startswith("unif2ace.training.synthetic"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from unif2ace import UniF2aceTrainer
from unif2ace.training.data import attribute_classifier, caption_writer, cleaning, collator, conversations, face_crops
from unif2ace.training.data import inspection, prepare, rows
from unif2ace.training.data.sources import open_faces
"""


def test_data_and_model_do_not_import_the_synthetic_worlds():
    rooms = [PACKAGE / "modeling_unif2ace", PACKAGE / "pipelines", PACKAGE / "training" / "data"]
    for path in (file for room in rooms for file in room.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            assert not any("synthetic" in name for name in names), f"{path}:{node.lineno}"


def test_the_trainer_needs_no_painter():
    run = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
