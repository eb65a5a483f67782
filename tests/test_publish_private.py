"""A run full of places and secrets is published to a Hub: none of them is in a byte that was uploaded."""

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from local_hub import TOKEN
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save_tiny_checkpoint

from unif2ace.hub_card.publish import publish


# none of these words may leave the machine
PRIVATE = (
    "/home/me",
    "fsdp.json",
    "zero3.json",
    "hf_SECRETsecretSECRETsecret",
    "s3cr3tValue",
    "X-Amz-Signature",
    "acme",
    "clients",
    "wandb-entity",
    "me@host",
    "52.520008",  # the latitude of a picture
    "CameraOwner",
)
SECRET_ARGUMENTS = {
    "fsdp_config": "/home/me/fsdp.json",
    "deepspeed": "/home/me/zero3.json",
    "hub_token": "hf_SECRETsecretSECRETsecret",
    "token": "s3cr3tValue",
    "run_name": "acme-renewal",
    "output_dir": "../../clients/acme",
    "logging_dir": "C:\\Users\\me\\acme",
    "report_to": ["wandb-entity"],
    "resume_from_checkpoint": "https://store.example/acme?X-Amz-Signature=s3cr3tValue",
    "accelerator_config": {"path": "/home/me/acme.json"},
    "invented_setting": "acme",
    # allowed names with values that are not
    "optim": "/home/me/acme_optimizer.py",
    "lr_scheduler_type": "hf_SECRETsecretSECRETsecret",
    "region_weights": {"/home/me/acme": 2.0, "eyes": 4.0},
}


def write_run(folder):
    config = {
        "initial": "/home/me/acme/final",
        "data": {
            "source": "faces",
            "train": {"path": "../../clients/acme", "token": "s3cr3tValue"},
            "validation": {"path": "fairface:/home/me/acme/fairface"},
            "images": "clients/acme",
            "passes": 2,
        },
        "training": {"learning_rate": 0.001, "max_steps": 3} | SECRET_ARGUMENTS,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    start = {
        "command": ["unif2ace", "train", "--config", "/home/me/acme.yaml"],
        "platform": "me@host",
        "device": "/home/me/acme",
        "packages": {"torch": "2.13.0", "acme": "/home/me/acme"},
        "revision": "acme",
        "rows": 8,
        "processes": 1,
    }
    (folder / "run.json").write_text(json.dumps([start]))
    entries = [{"step": step, "loss": 2.0, "seconds": 1.0, "note": "acme", "path": "/home/me"} for step in (1, 2, 3)]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def add_private_values(path):
    config = json.loads(path.read_text())
    config |= {"_name_or_path": "/home/me/acme", "hub_token": "s3cr3tValue", "note": "https://x.example/acme"}
    config |= {"nested": {"_name_or_path": "../../clients/acme", "list": ["/home/me/acme", {"token": "s3cr3tValue"}]}}
    path.write_text(json.dumps(config))


def photograph(path):
    """A picture whose maker and place are written into it, as telephones do."""
    exif = Image.Exif()
    exif[0x8298], exif[0x013B] = "CameraOwner acme", "me@host"
    exif.get_ifd(0x8825)[2] = (52.520008, 0.0, 0.0)
    exif.get_ifd(0x8825)[29] = "52.520008"
    Image.new("RGB", (8, 8), "tan").save(path, exif=exif)
    assert b"CameraOwner" in path.read_bytes()


def uploaded(hub) -> bytes:
    """Every byte that is on the Hub: names, contents, large files, messages of commits."""
    content = b"\n".join(hub.large.values())
    for repo in hub.repos.values():
        content += "\n".join(repo.messages.values()).encode()
        for files in repo.commits.values():
            content += b"\n".join(name.encode() + b"\n" + body for name, body in files.items())
    return content


def assert_nothing_private(hub):
    everything = uploaded(hub).lower()
    for word in PRIVATE:
        place = everything.find(word.lower().encode())
        assert place < 0, (word, everything[max(place - 100, 0) : place + 100])
        assert word.lower().encode("utf-16-le") not in everything, word


def test_a_run_full_of_places_and_secrets(hub, tmp_path):
    run = tmp_path / "acme"
    run.mkdir()
    model = save_tiny_checkpoint(run / "final")
    write_run(run)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"):
        add_private_values(model / name)
    add_private_values(model / "scheduler" / "scheduler_config.json")
    for name in ("optimizer.pt", "trainer_state.json", "training_args.bin", ".env", "notes-acme.txt"):
        (model / name).write_text("acme s3cr3tValue")
    measured = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 4, "better": "higher", "replicates": None}
    part = {"date": "2026-01-01", "items": {"count": 4}, "measures": {"accuracy": measured}, "details": {"e": "acme"}}
    from unif2ace.modeling_unif2ace.provenance_unif2ace import checkpoint_sha256

    settings = {"model": "/home/me/acme/final", "source": "faces:/data/acme (test)", "judge_url": "http://acme/v1"}
    settings |= {"api_key": "s3cr3tValue", "model_sha256": checkpoint_sha256(model), "count": 4, "device": "me@host"}
    results = {"suite": "custom", "settings": settings, "versions": {"torch": "2"}, "parts": {"answers": part}}
    (run / "results").mkdir()
    (run / "results" / "custom.json").write_text(json.dumps(results | {"skipped": {"x": "/home/me"}}))

    publish(model, "tester/faces", license="mit", token=TOKEN, samples=1, report=lambda text: None)
    assert_nothing_private(hub)
    card = hub.files("tester/faces")["README.md"].decode()
    assert "| `learning_rate` | `0.001` |" in card and "| `region_weights` | `{'eyes': 4.0}` |" in card
    assert "fairface:…" in card and "answers: accuracy" in card and "`faces:… (test)`" in card and "8 rows." in card
    config = json.loads(hub.files("tester/faces")["config.json"])
    assert config["model_type"] == "unif2ace" and config["vq_config"]["resolution"] == 16


def test_an_adapter_with_a_photograph_and_a_written_card(hub, tmp_path):
    folder = tmp_path / "acme"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "/home/me/acme", "r": 4, "target_modules": r".*\.q_proj"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": None, "token": "s3cr3tValue"}))
    save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    photograph(folder / "zora.jpg")
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# Zora\n\n![drawn](zora.jpg) ![](../elsewhere/zora.jpg)\n"
    )
    publish(folder, "tester/zora", base_model="me/base", token=TOKEN, report=lambda text: None)
    assert_nothing_private(hub)
    files = hub.files("tester/zora")
    assert "![drawn](zora.jpg)" in files["README.md"].decode() and files["zora.jpg"].startswith(b"\xff\xd8")
    assert json.loads(files["adapter_config.json"])["target_modules"] == r".*\.q_proj"

    # what some trainers write into the header of the weights
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt", "ss_dataset_dirs": "/home/me"})
    with pytest.raises(ValueError, match="notes in its header .ss_dataset_dirs.*save it again with save_pretrained"):
        publish(folder, "tester/zora", base_model="me/base", token=TOKEN, report=lambda text: None)
    assert_nothing_private(hub)


def test_a_card_is_still_complete(hub, tmp_path):
    model = save_tiny_checkpoint(tmp_path / "final")
    publish(model, "tester/faces", license="mit", token=TOKEN, samples=0, report=lambda text: None)
    card = ModelCard(hub.files("tester/faces")["README.md"].decode())
    assert card.data.license == "mit" and "## Limits and bias" in card.text
