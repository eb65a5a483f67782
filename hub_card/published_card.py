"""The card of a published repository: made from the model's run, or from the card that its maker wrote for it."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..modeling_unif2ace import UniF2aceConfig
from ..training.evaluation.results import card_results, card_section
from ..training.plots import plot_losses
from ..training.synthetic.painted.report import explanation, questions_table, summary_table
from .card import checkpoint_sha256, count_parameters, eval_results, loss_table, measured_on
from .figures import png, sample_grid
from .layouts import ADAPTER, Checkpoint, Content
from .measured import RESULTS, find_results, hub_results
from .run_facts import RunFacts


TEMPLATES = Path(__file__).parent / "templates"
# where the snippets go: between the marks, or else the section of that name
_USE = (
    re.compile(r"<!-- use -->.*<!-- /use -->", re.DOTALL),
    re.compile(r"(?<=^## Use\n\n).*?(?=^## |\Z)", re.DOTALL | re.MULTILINE),
)
# a card with such gaps was left by a library and says nothing
_GAP = re.compile(r"more information needed", re.IGNORECASE)
_TASKS = {"transformers": "image-text-to-text", "diffusers": "text-to-image", ADAPTER: "image-text-to-text"}
_LIBRARIES = {"transformers": "transformers", "diffusers": "diffusers", ADAPTER: "peft"}
_KEPT = ("language", "metrics", "model-index")  # of a card that was written before
_TAGS = ("unif2ace", "face", "text-to-image", "image-text-to-text", "discrete-diffusion", "moe")
# licences whose terms the whole may be given out under together with code under Apache-2.0
_PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "unlicense")


class PublishedCard:
    """
    Makes the card of each repository of a model.

    Args:
        checkpoint ([`Checkpoint`]): What is published.
        run (`str` or `os.PathLike`, *optional*): Folder of its training run; see [`RunFacts.find`].
        license (`str`, *optional*): Licence of the weights, as the Hub names it.
        base_model (`str`, *optional*): Hub id of what it was trained from.
        quality (`str` or `os.PathLike`, *optional*): Measured quality; used if it was measured on these weights.
        samples (`int`, *optional*, defaults to 0): Pictures to generate.
        results (`list[str or os.PathLike]`, *optional*):
            Files that `unif2ace evaluate` wrote; by default those of these weights in `results/`, here and in the run.
        datasets (`list[str]`, *optional*):
            Hub ids of what it was trained on; by default those that the run's configuration names and are known.

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
    ):
        self.checkpoint = checkpoint
        self.written = _written_card(checkpoint.folder)
        known = {} if self.written is None else self.written.data.to_dict()
        self.run = RunFacts.find(checkpoint.folder, run)
        adapter_base = checkpoint.config.get("base_model_name_or_path") if checkpoint.is_adapter else None
        self.base_model = base_model or known.get("base_model") or adapter_base
        self.datasets = list(datasets or known.get("datasets") or self.run.datasets)
        self.num_samples = samples
        self.pictures: dict[str, Content] = {}
        self.prompts: list[str] = []
        self.known = known
        self.licences = self._licences(license or known.get("license"))
        self.quality, self.results, self.hub_results = None, [], {}
        if not checkpoint.is_adapter:
            self._find_measured(quality, results)

    def _find_measured(self, quality: str | os.PathLike | None, results: Sequence[str | os.PathLike] | None) -> None:
        folder, model, run = self.checkpoint.folder, self.checkpoint.model, self.run.folder
        if quality is None and run is not None:
            quality = run / "quality.json"
        hashes = [checkpoint_sha256(place) for place in dict.fromkeys((folder, model))]
        self.quality = measured_on(quality and Path(quality), hashes[-1])
        self.results = find_results(hashes, [Path(RESULTS), *([run / RESULTS] if run else [])], results)
        self.hub_results = hub_results(hashes, folder, self.results)

    def _licences(self, weights: str | None) -> dict[str, str]:
        if not weights:
            raise ValueError(
                f"nothing says under which licence the weights in {self.checkpoint.folder} are: give license=... "
                '(--license apache-2.0, or "other" with a LICENSE file beside the weights)'
            )
        licences = {"weights": weights}
        face = self.checkpoint.config.get("face_config") or {}
        if face.get("weights_license"):
            licences["weights of the face encoder"] = face["weights_license"]
        return licences | {"code in this repository": "apache-2.0"}

    def draw(self) -> None:
        """Make the pictures, once for all repositories."""
        if any("step" in entry for entry in self.run.log):
            self.pictures["card/curves.png"] = png(plot_losses(self.run.log))
        if self.num_samples and not self.checkpoint.is_adapter:
            self.pictures["card/samples.png"], self.prompts = sample_grid(self.checkpoint.folder, self.num_samples)

    def files(self, layout: str, names: Mapping[str, str], revisions: Mapping[str, str]) -> dict[str, Content]:
        """
        The card and its pictures.

        Args:
            layout (`str`): The repository's layout.
            names (`Mapping[str, str]`): Repository of each layout that is published.
            revisions (`Mapping[str, str]`): Commit of each.
        """
        usage = self._render(
            "usage.md.jinja",
            layout=layout,
            repo_id=names[layout],
            revision=revisions[layout],
            base_model=self.base_model,
            other=next((name for other, name in names.items() if other != layout), None),
        )
        body = self._body(layout, names[layout]) if self.written is None else self.written.text.lstrip()
        place = next((place for place in _USE if place.search(body)), None)
        body = f"{body}\n\n## Use\n\n<!-- use --><!-- /use -->" if place is None else body
        block = f"<!-- use -->\n{usage.strip()}\n<!-- /use -->" + ("\n\n" if place is _USE[1] else "")
        body = (place or _USE[0]).sub(lambda _: block, body, count=1)
        card = ModelCard(f"---\n{self._metadata(layout, names)}\n---\n\n{body.rstrip()}\n")
        return {"README.md": str(card).encode(), **self.pictures, **self.hub_results}

    def _metadata(self, layout: str, names: Mapping[str, str]) -> str:
        kept = {key: self.known[key] for key in _KEPT if key in self.known}
        code = [] if layout == ADAPTER else ["custom_code"]
        tags = dict.fromkeys([*_TAGS, *(self.known.get("tags") or ()), *code])
        fields: dict[str, Any] = {
            "language": "en",
            "library_name": _LIBRARIES[layout],
            "pipeline_tag": _TASKS[layout],
            "tags": list(tags),
            **self._license_fields(),
        }
        if self.datasets:
            fields["datasets"] = self.datasets
        if self.base_model:
            fields["base_model"] = self.base_model
            fields["base_model_relation"] = "adapter" if layout == ADAPTER else "finetune"
        measured = eval_results(self.quality) if self.quality else []
        measured += [result for results in self.results for result in card_results(results)]
        if measured and "model-index" not in kept:
            fields |= {"model_name": names[layout].rpartition("/")[2], "eval_results": measured}
        data = ModelCardData(**(fields | {key: value for key, value in kept.items() if key != "model-index"}))
        content = data.to_dict() | ({"model-index": kept["model-index"]} if "model-index" in kept else {})
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).strip()

    def _license_fields(self) -> dict[str, str]:
        """One licence if the parts allow it, else `"other"`, and where to read about it."""
        weights = self.licences["weights"].lower()
        parts = {licence.lower() for part, licence in self.licences.items() if part.startswith("weights of")}
        allowed = {weights, *(_PERMISSIVE if weights in _PERMISSIVE else ())}
        if weights != "other" and parts <= allowed:
            return {"license": weights}
        name = self.known.get("license_name") or "parts-under-different-licences"
        return {"license": "other", "license_name": name, "license_link": self.known.get("license_link") or "LICENSE"}

    def _body(self, layout: str, repo_id: str) -> str:
        checkpoint, run = self.checkpoint, self.run
        facts: dict[str, Any] = {"max_text_length": "as many as the base model reads"}
        if checkpoint.is_adapter:
            facts["adapter_kind"] = str(checkpoint.config.get("peft_type", "PEFT")).upper()
        else:
            config = UniF2aceConfig.from_pretrained(checkpoint.model)
            weights = sum(file.stat().st_size for file in checkpoint.model.glob("*.safetensors"))
            facts |= {
                "parameters": f"{count_parameters(config) / 1e6:,.1f}M",
                "megabytes": f"{weights / 2**20:,.1f}",
                "resolution": config.vq_config.resolution,
                "max_text_length": config.max_text_length,
            }
        quality = self.quality
        return self._render(
            "run_card.md.jinja",
            **facts,
            name=repo_id.rpartition("/")[2],
            layout=layout,
            base_model=self.base_model,
            samples=self.prompts,
            run=bool(run.starts or run.log),
            data=run.data_sentence(),
            time=run.time_sentence(),
            arguments=run.arguments,
            versions=run.versions,
            loss_table=loss_table([entry for entry in run.log if "step" in entry]),
            curves="card/curves.png" in self.pictures,
            summary=summary_table(quality) if quality else None,
            explanation=explanation(quality) if quality else None,
            questions=questions_table(quality) if quality and "vqa" in quality else None,
            results=[card_section(results) for results in self.results],
            licences=self.licences,
        )

    @staticmethod
    def _render(template: str, **facts: Any) -> str:
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        return environment.get_template(template).render(**facts)


def _written_card(folder: Path) -> ModelCard | None:
    """The card that lies in the model's folder, if it is one that somebody filled in."""
    path = folder / "README.md"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return None if _GAP.search(text) else ModelCard(text)
