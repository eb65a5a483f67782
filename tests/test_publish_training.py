"""From a training run to the Hub, by `push_to_hub` and by the callback, with a card that tells of the run."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from local_hub import TOKEN
from tiny_checkpoint import TEXTS, save_tiny_checkpoint
from torch.utils.data import Dataset

from unif2ace import UniF2aceForConditionalGeneration, UniF2aceProcessor, UniF2aceTrainer, UniF2aceTrainingArguments
from unif2ace.hub_card.card import Card
from unif2ace.hub_card.layouts import Checkpoint
from unif2ace.modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from unif2ace.training.callbacks import STAGING, PublishCallback
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.evaluation.statistics import mean
from unif2ace.training.evaluation.suite import Part, Suite, run_suite


class Rows(Dataset):
    """Four rows of both tasks."""

    tasks = ["t2i", "mmu"] * 4

    def __len__(self):
        return len(self.tasks)

    def __getitem__(self, index):
        row = {"task": self.tasks[index], "codes": torch.arange(16), "pixel_values": torch.zeros(3, 16, 16)}
        return row | ({"text": TEXTS[0]} if row["task"] == "t2i" else {"turns": [("Who is it?", "a man")]})


@pytest.fixture
def make_trainer(tmp_path):
    def make(processing_class=True, **arguments):
        folder = save_tiny_checkpoint(tmp_path / "start")
        processor = UniF2aceProcessor.from_pretrained(folder)
        model = UniF2aceForConditionalGeneration.from_pretrained(folder)
        settings = {"max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "use_cpu": True}
        settings |= {"per_device_train_batch_size": 4, "disable_tqdm": True, "dataloader_pin_memory": False}
        return UniF2aceTrainer(
            model=model,
            args=UniF2aceTrainingArguments(str(tmp_path / "faces"), **(settings | arguments)),
            train_dataset=Rows(),
            data_collator=UniF2aceCollator(processor.tokenizer, model.config),
            processing_class=processor if processing_class else None,
        )

    return make


def test_push_to_hub_publishes_the_averaged_weights(hub, make_trainer, tmp_path):
    trainer = make_trainer(ema_decay=0.5, hub_license="mit", hub_model_id="tester/faces")
    trainer.train()
    transformers_repo, _ = trainer.push_to_hub(token=TOKEN, samples=2, report=lambda text: None)
    loaded = UniF2aceForConditionalGeneration.from_pretrained(
        "tester/faces", revision=transformers_repo.revision, token=TOKEN
    )
    with trainer.averaged_weights():
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not (tmp_path / "faces" / STAGING).exists()

    files = hub.files("tester/faces")
    text = files["README.md"].decode()
    assert "3 steps" in text and "8 rows" in text and "| `learning_rate` | `0.001` |" in text
    assert "| 1 |" in text and "![Losses over the steps](card/curves.png)" in text
    assert (
        "1 process on " in text and "torch 2" in text and "picture *i* is made from prompt *i* with seed *i*" in text
    )
    assert files["card/curves.png"].startswith(b"\x89PNG") and files["card/samples.png"].startswith(b"\x89PNG")
    assert str(tmp_path) not in text and TOKEN not in text
    for unfinished in ("information needed", "None", "Undefined", "{{", "nan"):
        assert unfinished.lower() not in text.replace("{{UniF$^2$ace}", "").lower(), unfinished


def test_arguments_push_at_the_end_or_at_every_checkpoint(hub, make_trainer, monkeypatch):
    monkeypatch.setattr("unif2ace.hub_card.publish.print", lambda text: None, raising=False)
    with pytest.raises(ValueError, match="needs hub_license"):
        make_trainer(push_to_hub=True)
    settings = {"push_to_hub": True, "hub_license": "mit", "hub_model_id": "tester/often", "hub_token": TOKEN}
    trainer = make_trainer(save_strategy="steps", save_steps=2, **settings)
    assert not hub.repos  # nothing to publish yet
    trainer.train()
    assert len([message for message in hub.messages("tester/often") if message.startswith("Weights")]) == 2
    assert "modeling_unif2ace.py" in hub.files("tester/often")
    assert not [name for name in hub.files("tester/often") if name.endswith((".bin", ".pt"))]


def test_callback_publishes_when_training_ends(hub, make_trainer):
    trainer = make_trainer()
    options = {"license": "mit", "private": True, "layouts": ("transformers",), "samples": 0, "token": TOKEN}
    trainer.add_callback(PublishCallback(trainer, "tester/faces", report=lambda text: None, **options))
    trainer.train()
    assert hub.repos["tester/faces"].private and "README.md" in hub.files("tester/faces")
    with pytest.raises(ValueError, match="processing_class is a NoneType"):
        make_trainer(processing_class=False).push_to_hub(license="mit", token=TOKEN)


# --- the card alone --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("run") / "final")


def files_of(folder, layout="transformers", **options):
    card = Card(Checkpoint.read(folder), **({"license": "mit"} | options))
    names = {"transformers": "me/faces", "diffusers": "me/faces-diffusers"}
    return card.files(layout, names, {"transformers": "a" * 40, "diffusers": "b" * 40})


def card_of(folder, layout="transformers", **options):
    return ModelCard(files_of(folder, layout, **options)["README.md"].decode())


@pytest.mark.parametrize("layout", ["transformers", "diffusers"])
def test_metadata_is_what_the_hub_reads(checkpoint, layout):
    data = card_of(checkpoint, layout, base_model="me/base").data.to_dict()
    assert data["library_name"] == layout and data["license"] == "mit" and data["language"] == "en"
    assert data["pipeline_tag"] == ("image-text-to-text" if layout == "transformers" else "text-to-image")
    assert data["base_model"] == "me/base" and {"unif2ace", "face", "custom_code", "moe"} <= set(data["tags"])


def test_snippets_pin_the_revision(checkpoint):
    for layout, revision in (("transformers", "a" * 40), ("diffusers", "b" * 40)):
        text = card_of(checkpoint, layout).text
        for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(snippet, layout, "exec")
            assert revision in snippet and max(map(len, snippet.splitlines())) < 120


def test_a_card_without_a_run_says_what_is_unknown(checkpoint):
    text = card_of(checkpoint).text
    assert "had no record of the training run" in text and "Quality was not measured" in text
    assert "No number on this page is" in text


def test_numbers_are_shown_only_if_they_belong_to_the_weights(checkpoint, tmp_path):
    measured = {"value": 0.9, "low": 0.88, "high": 0.92}
    settings = {"model_sha256": checkpoint_sha256(checkpoint), "split": "test", "count": 500, "seeds": [0]}
    captions = {
        "precision": measured,
        "recall": measured,
        "stated": measured,
        "reference_facts": 17.0,
        "attributes": {},
    }
    precision = measured | {"better": "higher", "count": 500}
    part = {"date": "2026-01-01", "measures": {"precision": precision}, "details": captions}
    quality = {"suite": "painted", "settings": settings | {"steps": 16, "guidance": 3.0}, "versions": {}}
    quality["parts"] = {"captions": part}
    path = tmp_path / "quality.json"
    path.write_text(json.dumps(quality))
    card = card_of(checkpoint, quality=path)
    assert "| captions: precision | 0.900 [0.880, 0.920] |" in card.text
    assert {result.metric_value for result in card.data.eval_results} == {0.9}
    quality["settings"]["model_sha256"] = "another"
    path.write_text(json.dumps(quality))
    assert "Quality was not measured" in card_of(checkpoint, quality=path).text


class Smiles(Suite):
    """Measures ten pictures, those of women better."""

    name, parts = "smiles", ("vqa",)

    def __init__(self, model_sha256, dataset_id="me/smiles", count=10):
        self.sha256, self.dataset_id, self.count = model_sha256, dataset_id, count

    @property
    def settings(self):
        places = {
            "model": "/home/me/secret/final",
            "source": "faces:/data/secret/faces (test)",
            "judge_url": "http://secret/v1",
        }
        return places | {"model_sha256": self.sha256, "count": self.count, "seeds": [0, 1], "features": "org/dino"}

    def measure_vqa(self):
        part, woman = Part([str(number) for number in range(self.count)]), np.arange(self.count) % 2 == 0
        slices = {"gender=man": ~woman, "gender=woman": woman, "skin=dark": woman}
        part.add("accuracy", mean(np.where(woman, 0.9, 0.4)), slices=slices)
        return part


def test_measured_slices_reach_the_card_and_the_hub(tmp_path):
    run, checkpoint = tmp_path, save_tiny_checkpoint(tmp_path / "final")
    (run / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')  # a run, so its folder is looked into
    sha256 = checkpoint_sha256(checkpoint)
    for suite in (Smiles(sha256), Smiles(sha256, count=4), Smiles("0" * 64, count=50)):
        run_suite(suite, run / "results")
    files = files_of(checkpoint)
    card = ModelCard(files["README.md"].decode())
    assert "### Suite `smiles`" in card.text and "| vqa: accuracy ↑ | 0.650 [" in card.text and "| 10 |" in card.text
    assert "| by gender presentation | man (5) | woman (5) |" in card.text
    assert "| vqa: accuracy | **0.400 [0.400, 0.400]** | 0.900 [0.900, 0.900] |" in card.text
    assert (
        "| by apparent skin tone | dark (5) |" in card.text and "`[0, 1]`" in card.text and "`org/dino`" in card.text
    )
    assert "secret" not in card.text and "model `…`" in card.text and "`faces:… (test)`" in card.text
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_name, result.metric_value) == ("me/smiles", "vqa: accuracy", 0.65)
    (entry,) = yaml.safe_load(files[".eval_results/smiles.yaml"])
    assert entry["dataset"] == {"id": "me/smiles", "task_id": "vqa/accuracy"} and entry["value"] == 0.65
    _, other = run_suite(Smiles("0" * 64), run / "elsewhere")
    with pytest.raises(ValueError, match="measured on other weights"):
        card_of(checkpoint, results=[other])


def test_files_for_the_hub_s_table_of_results_are_kept_if_they_are_of_these_weights(tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "model")
    (folder / ".eval_results").mkdir()
    noted = "- value: 1\n  notes: 4 items; model sha256 {}; unif2ace evaluate\n"
    (folder / ".eval_results" / "ours.yaml").write_text(noted.format(checkpoint_sha256(folder)[:12]))
    (folder / ".eval_results" / "stale.yaml").write_text(noted.format("0" * 12))
    shown = [name for name in files_of(folder) if name.startswith(".eval_results")]
    assert shown == [".eval_results/ours.yaml"]


def test_data_of_a_run_are_named_with_their_terms(tmp_path):
    run, checkpoint = tmp_path, save_tiny_checkpoint(tmp_path / "final")
    (run / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    data = {"source": "faces", "train": {"path": "fairface:/home/me/secret/fairface"}, "passes": 2}
    data["validation"] = {"path": "flwrlabs/celeba"}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}, sort_keys=False))
    card = card_of(checkpoint)
    assert "`source`: faces; `train.path`: fairface:…; `passes`: 2" in card.text and "secret" not in card.text
    assert "Terms: CC BY 4.0." in card.text and card.data.datasets == ["flwrlabs/celeba"]
    assert card_of(checkpoint, datasets=["me/own"]).data.datasets == ["me/own"]


def test_a_card_in_the_folder_is_kept_but_for_its_snippets(checkpoint, tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "model")
    written = "---\nlicense: cc-by-4.0\ndatasets: [me/data]\n---\n\n# Mine\n\n## Use\n\noutdated\n\n## More\n\nkept\n"
    (folder / "README.md").write_text(written)
    card = card_of(folder, license=None)
    assert card.data.license == "cc-by-4.0" and card.data.datasets == ["me/data"]
    assert card.text.lstrip().startswith("# Mine") and "outdated" not in card.text and "## More\n\nkept" in card.text
    assert card.text.count("## Use") == 1 and "a" * 40 in card.text


def test_the_experts_report_stands_on_the_card(tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "final")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    entry = {"task": "t2i", "level": "token", "cost": 0.25, "low": 0.2, "high": 0.3, "gradient": 1e-3}
    entries = [entry | {"layer": 0, "expert": name, "use": use} for name, use in (("1", 0.75), ("2", 0.25))]
    part = {"date": "2026-01-01", "measures": {}, "details": {"experts": entries, "markdown": "| layer | 1 | 2 |"}}
    settings = {"model_sha256": checkpoint_sha256(checkpoint), "count": 4}
    results = {"suite": "custom", "settings": settings, "versions": {}, "parts": {"experts": part}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "custom.json").write_text(json.dumps(results))
    card = Card(Checkpoint.read(checkpoint), license="mit")
    card.draw()
    files = card.files("transformers", {"transformers": "me/faces"}, {"transformers": "a" * 40})
    text = files["README.md"].decode()
    assert "#### Part experts\n\n| layer | 1 | 2 |" in text and "](card/experts.png)" in text
    assert files["card/experts.png"].startswith(b"\x89PNG")
