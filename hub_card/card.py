"""
The one maker of model cards: of published models and adapters, of what `unif2ace finetune` leaves, and, with another
template, of the bundled checkpoint ([`~unif2ace.hub_card.bundle`]).

A card is made from the model, its run and what was measured on its weights, and never edited; one that somebody wrote
by hand is kept, but for its section *Use*. Numbers are used only if they were measured on exactly these weights.
"""

import hashlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw
from tqdm import tqdm

from .._versions import PYTHON, requirement
from ..modeling_unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration, load_image
from ..modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from ..pipelines import UniF2acePipeline
from ..pipelines.files import write_text
from ..pipelines.loading_unif2ace import BUNDLED_NAME
from ..pipelines.pictures import picture_grid
from ..training.disclosure import is_private, public
from ..training.evaluation.experts import use_tables
from ..training.evaluation.report import world_section
from ..training.evaluation.results import card_results, card_section
from ..training.evaluation.subject import fit_text
from ..training.run_folder import plot_experts, plot_losses
from .facts import RESULTS, RunFacts, find_results, hub_results, loss_table
from .layouts import ADAPTER, Checkpoint, Content


TEMPLATES = Path(__file__).parent / "templates"
# what a suite has to say of its own, in place of the table of all its measures
INTRODUCTIONS = {"painted": world_section, "rendered": world_section}
# Spread over what a face description can ask for; the same for every model, so that cards can be compared.
SAMPLE_PROMPTS = (
    "a smiling old man with round glasses and a grey beard",
    "a young woman with long blond hair and hoop earrings",
    "a bald man with a moustache",
    "a woman with dark skin and short black hair",
    "a sad boy with red hair and freckles",
    "an elderly woman with a hat",
    "a man with a full beard looking to the side",
    "a laughing woman with a ponytail and red lipstick",
)
_SAMPLE_SIDE = 128
PLAIN_PROMPT = "a smiling old man with round glasses"
# where the snippets go: between the marks, or else the section of that name
_USE = (
    re.compile(r"<!-- use -->.*<!-- /use -->", re.DOTALL),
    re.compile(r"(?<=^## Use\n\n).*?(?=^## |\Z)", re.DOTALL | re.MULTILINE),
)
# a card with such gaps was left by a library and says nothing
_GAP = re.compile(r"more information needed", re.IGNORECASE)
# the last line of a card that was made: as long as it holds, nobody has changed the text above it
_MADE = re.compile(r"\n+<!-- made by unif2ace: ([0-9a-f]{16}) -->\s*\Z")
_PICTURE = re.compile(r"!\[[^\]]*\]\(([\w./-]+\.(?:png|jpe?g|webp))\)", re.IGNORECASE)
_TASKS = {"transformers": "image-text-to-text", "diffusers": "text-to-image"}
_LIBRARIES = {"transformers": "transformers", "diffusers": "diffusers", ADAPTER: "peft"}
_KEPT = ("language", "metrics", "model-index")  # of a card that was written before
_TAGS = {
    "transformers": ("unif2ace", "face", "text-to-image", "image-text-to-text", "discrete-diffusion", "moe"),
    ADAPTER: ("unif2ace", "lora", "face", "text-to-image", "discrete-diffusion"),
}
_TAGS["diffusers"] = _TAGS["transformers"]
# licences whose terms the whole may be given out under together with code under Apache-2.0
_PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "unlicense")


def render(template: str, **facts: Any) -> str:
    """A template of `templates/` with these facts; what it names and is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.get_template(template).render(**facts)


def make_card(metadata: Mapping[str, Any], body: str) -> ModelCard:
    """A card of these fields of `huggingface_hub.ModelCardData` and this text; fields that are `None` are left out."""
    data = ModelCardData(**{name: value for name, value in metadata.items() if name != "model-index"})
    content = data.to_dict() | ({"model-index": metadata["model-index"]} if "model-index" in metadata else {})
    header = yaml.safe_dump(content, sort_keys=False, allow_unicode=True).strip()
    return ModelCard(f"---\n{header}\n---\n\n{body.strip()}\n")


def sections(results: Sequence[Mapping]) -> list[str]:
    """What was measured, a section for each suite."""
    return [
        card_section(
            of_suite, INTRODUCTIONS[of_suite["suite"]](of_suite) if of_suite["suite"] in INTRODUCTIONS else None
        )
        for of_suite in results
    ]


def count_parameters(config: UniF2aceConfig) -> int:
    """Parameters of a model of that configuration."""
    with torch.device("meta"):  # shapes only
        return UniF2aceForConditionalGeneration(config).num_parameters()


def bare_picture(path: Path) -> bytes:
    """A picture written anew with its pixels and nothing else: no EXIF, no place, no camera."""
    picture = load_image(str(path))
    buffer, kind = io.BytesIO(), Image.registered_extensions()[path.suffix.lower()]
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(buffer, format=kind, quality=95)
    return buffer.getvalue()


def png(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def sample_grid(model: Path, count: int) -> tuple[bytes, list[str]]:
    """
    Faces that a checkpoint generates from the first `count` of `SAMPLE_PROMPTS`, number i with seed i.

    Args:
        model (`Path`): Folder of the checkpoint.
        count (`int`): Pictures, at most as many as there are prompts.

    Returns:
        A PNG of all pictures in a grid, with their numbers, and the prompts in its order.
    """
    pipe = UniF2acePipeline.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    prompts = [fit_text(pipe.processor, prompt) for prompt in SAMPLE_PROMPTS[:count]]
    pictures = []
    for seed, prompt in enumerate(tqdm(prompts, desc="pictures for the card", disable=None)):
        made = pipe(prompt, generator=torch.Generator().manual_seed(seed)).images[0]
        pictures.append(made.convert("RGB").resize((_SAMPLE_SIDE, _SAMPLE_SIDE), Image.Resampling.BICUBIC))
        ImageDraw.Draw(pictures[-1]).text((4, 2), str(seed), fill="black")
    return png(picture_grid(pictures)), prompts


class Card:
    """
    Makes the card of each repository of a model, or of an adapter.

    Args:
        checkpoint ([`Checkpoint`]): What the card is of.
        run (`str` or `os.PathLike`, *optional*): Folder of its training run; see [`RunFacts.find`].
        license (`str`, *optional*): Licence of the weights, as the Hub names it.
        base_model (`str`, *optional*): Hub id of what it was trained from.
        quality (`str` or `os.PathLike`, *optional*): Results that are used if they were measured on these weights.
        samples (`int`, *optional*, defaults to 0): Pictures to generate.
        results (`list[str or os.PathLike]`, *optional*):
            Files that `unif2ace evaluate` wrote; by default those of these weights in `results/`, here and in the run.
        datasets (`list[str]`, *optional*):
            Hub ids of what it was trained on; by default those that the run's configuration names and are known.
        published (`bool`, *optional*, defaults to `True`): Whether it goes to the Hub; if so, a licence is needed.

    Raises:
        ValueError: if nobody says what licence the weights have, or results are of other weights.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        run: str | os.PathLike | None = None,
        license: str | None = None,
        base_model: str | None = None,
        quality: str | os.PathLike | None = None,
        samples: int = 0,
        results: Sequence[str | os.PathLike] | None = None,
        datasets: Sequence[str] | None = None,
        published: bool = True,
    ):
        self.checkpoint = checkpoint
        self.written = _written_card(checkpoint.root)
        known = {} if self.written is None else self.written.data.to_dict()
        self.run = RunFacts.find(checkpoint.root, run)
        adapter_base = checkpoint.config.get("base_model_name_or_path") if checkpoint.is_adapter else None
        self.base_model = base_model or known.get("base_model") or adapter_base
        self.datasets = list(datasets or known.get("datasets") or self.run.datasets)
        self.num_samples = samples
        self.pictures: dict[str, Content] = self._linked_pictures()
        self.prompts: list[str] = []
        self.known = known
        self.licences = self._licences(license or known.get("license"), published)
        self.results, self.hub_results = [], {}
        if not checkpoint.is_adapter:
            self._find_measured(quality, results)

    def _find_measured(self, quality: str | os.PathLike | None, results: Sequence[str | os.PathLike] | None) -> None:
        folder, model, run = self.checkpoint.root, self.checkpoint.model, self.run.folder
        if quality is None and run is not None:
            quality = run / "quality.json"
        hashes = [checkpoint_sha256(place) for place in dict.fromkeys((folder, model))]
        folders = [Path(RESULTS), *([run / RESULTS] if run else [])]
        self.results = find_results(hashes, folders, results, [quality] if quality else [])
        self.hub_results = hub_results(hashes, folder, self.results)

    def _licences(self, weights: str | None, published: bool) -> dict[str, str]:
        if not weights and published:
            raise ValueError(
                f"nothing says under which licence the weights in {self.checkpoint.root} are: give license=... "
                '(--license apache-2.0, or "other" with a LICENSE file beside the weights)'
            )
        licences = {"weights": weights} if weights else {}
        face = self.checkpoint.config.get("face_config") or {}
        if face.get("weights_license"):
            licences["weights of the face encoder"] = face["weights_license"]
        return licences if self.checkpoint.is_adapter else licences | {"code in this repository": "apache-2.0"}

    def _linked_pictures(self) -> dict[str, Content]:
        """Pictures that a written card shows and that lie beside it, without what cameras write into them."""
        folder, found = self.checkpoint.root.resolve(), {}
        for name in _PICTURE.findall("" if self.written is None else self.written.text):
            path = (folder / name).resolve()
            parts = Path(name).parts
            if path.is_relative_to(folder) and path.is_file() and ".." not in parts and parts[0] != "card":
                found[name] = bare_picture(path)
        return found

    def draw(self) -> None:
        """Make the pictures, once for all repositories."""
        if any("step" in entry for entry in self.run.log):
            self.pictures["card/curves.png"] = png(plot_losses(self.run.log))
        for results in self.results:
            if entries := results["parts"].get("experts", {}).get("details", {}).get("experts"):
                self.pictures["card/experts.png"] = png(plot_experts(*use_tables(entries)))
        if self.checkpoint.is_adapter:
            if self.written is None and (samples := self._adapter_samples()) is not None:
                self.pictures["card/samples.png"], self.prompts = bare_picture(samples), self.run.prompts
        elif self.num_samples:
            self.pictures["card/samples.png"], self.prompts = sample_grid(self.checkpoint.root, self.num_samples)

    def _adapter_samples(self) -> Path | None:
        name = self.run.summary.get("samples")
        path = self.checkpoint.root / Path(str(name)).name
        return path if name and path.is_file() else None

    def files(self, layout: str, names: Mapping[str, str], revisions: Mapping[str, str]) -> dict[str, Content]:
        """
        The card and its pictures.

        Args:
            layout (`str`): The repository's layout.
            names (`Mapping[str, str]`): Repository of each layout that is published.
            revisions (`Mapping[str, str]`): Commit of each.
        """
        other = next((name for other, name in names.items() if other != layout), None)
        card = self._make(layout, names[layout], revisions[layout], other, sample_picture="card/samples.png")
        return {"README.md": str(card).encode(), **self.pictures, **self.hub_results}

    def local(self) -> ModelCard:
        """The card of an adapter in its own folder, before it is published: its snippets name the folder."""
        self.written, samples = None, self._adapter_samples()
        self.prompts = self.run.prompts if samples is not None else []
        card = self._make(ADAPTER, self.checkpoint.root.name, None, None, sample_picture="samples.png")
        return ModelCard(f"{str(card).rstrip()}\n\n<!-- made by unif2ace: {_hash(card.text)} -->\n")

    def _make(
        self, layout: str, repo_id: str, revision: str | None, other: str | None, sample_picture: str
    ) -> ModelCard:
        usage = render(
            "usage.md.jinja",
            layout=layout,
            repo_id=repo_id,
            revision=revision,
            base_model=self.base_model,
            bundled=self.base_model == BUNDLED_NAME,
            other=other,
            prompt=next(iter(self.run.prompts), None) or self.run.trigger or PLAIN_PROMPT,
            tested=[
                f"Python {PYTHON}",
                *(requirement(name) for name in dict.fromkeys(("torch", "transformers", _LIBRARIES[layout]))),
            ],
        )
        if self.written is None:
            body = self._body(layout, repo_id, sample_picture)
        else:
            body = self.written.text.lstrip()
        place = next((place for place in _USE if place.search(body)), None)
        body = f"{body}\n\n## Use\n\n<!-- use --><!-- /use -->" if place is None else body
        block = f"<!-- use -->\n{usage.strip()}\n<!-- /use -->" + ("\n\n" if place is _USE[1] else "")
        body = (place or _USE[0]).sub(lambda _: block, body, count=1)
        return make_card(self._metadata(layout, repo_id), body)

    def _metadata(self, layout: str, repo_id: str) -> dict[str, Any]:
        kept = {key: self.known[key] for key in _KEPT if key in self.known}
        code = [] if layout == ADAPTER else ["custom_code"]
        tags = dict.fromkeys([*_TAGS[layout], *(self.known.get("tags") or ()), *code])
        fields: dict[str, Any] = {
            "language": "en",
            "library_name": _LIBRARIES[layout],
            "pipeline_tag": _TASKS.get(layout) or self._adapter_task(),
            "tags": list(tags),
            **self._license_fields(),
        }
        if self.datasets:
            fields["datasets"] = self.datasets
        # a folder and the checkpoint inside the package are no repositories that a card could link to
        if self.base_model and self.base_model != BUNDLED_NAME and not is_private(self.base_model):
            fields["base_model"] = self.base_model
            fields["base_model_relation"] = "adapter" if layout == ADAPTER else "finetune"
        trigger = self.run.trigger or self.known.get("instance_prompt")
        if layout == ADAPTER and trigger:
            fields["instance_prompt"] = trigger
        if self.prompts and fields["pipeline_tag"] == "text-to-image":
            fields["widget"] = [{"text": prompt} for prompt in self.prompts[:3]]  # examples of the Hub's page
        measured = [result for results in self.results for result in card_results(results)]
        if measured and "model-index" not in kept:
            fields |= {"model_name": repo_id.rpartition("/")[2], "eval_results": measured}
        return fields | kept

    def _adapter_task(self) -> str:
        tasks = self.run.summary.get("settings", {}).get("tasks")
        return self.known.get("pipeline_tag") or ("image-text-to-text" if tasks == ["mmu"] else "text-to-image")

    def _license_fields(self) -> dict[str, str]:
        """One licence if the parts allow it, else `"other"`, and where to read about it."""
        if "weights" not in self.licences:
            return {}
        weights = self.licences["weights"].lower()
        parts = {licence.lower() for part, licence in self.licences.items() if part.startswith("weights of")}
        allowed = {weights, *(_PERMISSIVE if weights in _PERMISSIVE else ())}
        if weights != "other" and parts <= allowed:
            return {"license": weights}
        name = self.known.get("license_name") or "parts-under-different-licences"
        return {"license": "other", "license_name": name, "license_link": self.known.get("license_link") or "LICENSE"}

    def _body(self, layout: str, repo_id: str, sample_picture: str) -> str:
        checkpoint, run = self.checkpoint, self.run
        facts: dict[str, Any] = {"max_text_length": "as many as the base model reads", "adapter_kind": None}
        if checkpoint.is_adapter:
            facts["adapter_kind"] = "LoRA" if checkpoint.config.get("peft_type") == "LORA" else "PEFT"
        else:
            config = UniF2aceConfig.from_pretrained(checkpoint.model)
            weights = sum(file.stat().st_size for file in checkpoint.model.glob("*.safetensors"))
            facts |= {
                "parameters": f"{count_parameters(config) / 1e6:,.1f}M",
                "megabytes": f"{weights / 2**20:,.1f}",
                "resolution": config.vq_config.resolution,
                "max_text_length": config.max_text_length,
            }
        on_hub = bool(self.base_model) and self.base_model != BUNDLED_NAME and not is_private(self.base_model)
        return render(
            "card.md.jinja",
            **facts,
            name=repo_id.rpartition("/")[2],
            layout=layout,
            base_model=self.base_model if on_hub else None,
            bundled=self.base_model == BUNDLED_NAME,
            trigger=run.trigger,
            prompts=self.prompts,
            sample_picture=sample_picture,
            run=bool(run.starts or run.log or run.summary),
            finetuned=bool(run.summary),
            changed=public(run.summary.get("changed") or {}),
            measured=public(run.summary.get("measured") or {}),
            data=run.data_sentence(),
            time=run.time_sentence(),
            arguments=run.arguments,
            versions=run.versions,
            loss_table=loss_table(run.log),
            curves="card/curves.png" in self.pictures,
            experts="card/experts.png" in self.pictures,
            results=sections(self.results),
            licences=self.licences,
        )


def write_adapter_card(folder: str | os.PathLike) -> Path:
    """
    Write `README.md` beside a fresh adapter, from what its fine-tuning left in `run/`.

    Args:
        folder (`str` or `os.PathLike`): The adapter's folder.

    Returns:
        `Path`: The card. Publishing makes it anew, unless somebody has changed it.
    """
    path = Path(folder) / "README.md"
    write_text(path, str(Card(Checkpoint.read(folder), published=False).local()))
    return path


def _written_card(folder: Path) -> ModelCard | None:
    """The card that lies in the model's folder, if it is one that somebody filled in."""
    path = folder / "README.md"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    if _GAP.search(text):
        return None
    card = ModelCard(text)
    made = _MADE.search(card.text)
    return None if made and made[1] == _hash(card.text[: made.start()]) else card


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]
