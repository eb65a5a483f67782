"""
The README's road with the bundled checkpoint: generate, fine-tune on what was drawn, publish the adapter, load it in a
fresh process from a Hub, and draw with the trigger.
"""

import json
import re
import subprocess
import sys
import time

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from local_hub import TOKEN
from PIL import Image

from unif2ace import UniF2acePipeline
from unif2ace.cli import main
from unif2ace.hub_card.publish import publish
from unif2ace.pipelines import bundled_checkpoint


SENTENCES = ("a man with tan skin and a red t-shirt", "a woman with long black hair")
# what the card says, run as it is printed, and the same picture without the adapter
FRESH = """
import json, re, sys
from huggingface_hub import hf_hub_download
card = open(hf_hub_download("tester/zora", "README.md"), encoding="utf-8").read()
snippet = re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1].replace("=16", "=4")
assert "zora" in snippet
names = {}
exec(snippet, names)
pipe = names["pipe"]
assert pipe.get_active_adapters()

def codes():
    import torch
    generator = torch.Generator().manual_seed(1)
    return pipe("zora, a man", num_inference_steps=4, generator=generator, output_type="latent").codes.tolist()

found = {"with": codes(), "size": names["image"].size}
pipe.disable_lora()
found["without"] = codes()
other = type(pipe).from_pretrained("tester/zora")  # an adapter's repository brings its base
pipe = other
found["by_name"] = codes()
print("FOUND" + json.dumps(found))
"""


def walk(hub, folder, steps):
    """The road with so many steps of tuning; what the fresh process found, and the adapter's files on the Hub."""
    faces = folder / "faces"
    faces.mkdir()
    for number, sentence in enumerate(SENTENCES):
        out = faces / f"{number}.png"
        assert main(["generate", sentence, "--steps", "2", "--seed", str(number), "-o", str(out)]) == 0
        (faces / f"{number}.txt").write_text(sentence)
    adapter = folder / "zora"
    command = ["finetune", "--data", str(faces), "--output", str(adapter), "--trigger", "zora", "--prior", "1"]
    command += ["--task", "t2i", "--steps", str(steps), "--batch-size", "2", "--rank", "2", "--device", "cpu"]
    assert main([*command, "--base", "unif2ace-faces"]) == 0
    assert main(["publish", str(adapter), "--repo", "tester/zora", "--license", "mit"]) == 0
    child = subprocess.run(
        [sys.executable, "-c", FRESH],
        cwd=folder,
        env=hub.environment | {"PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "FOUND" in child.stdout, child.stderr[-3000:]
    return json.loads(child.stdout.rpartition("FOUND")[2]), hub.files("tester/zora")


def test_from_a_sentence_to_a_published_adapter(hub, tmp_path):
    found, files = walk(hub, tmp_path, steps=2)
    assert found["size"] == [64, 64] and found["with"] == found["by_name"] != found["without"]

    card = ModelCard(files["README.md"].decode())
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["instance_prompt"]) == ("peft", "text-to-image", "zora")
    assert data["license"] == "mit" and "base_model" not in data and {"lora", "unif2ace"} <= set(data["tags"])
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "unif2ace-faces"
    assert 'from_pretrained("unif2ace-faces")' in card.text and "comes with the package" in card.text
    assert "**`zora`** is the name" in card.text and '"zora, a man with tan skin' in card.text
    # every picture that the card shows was uploaded
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.text)
    assert "card/samples.png" in shown and set(shown) <= set(files)
    assert files["card/samples.png"].startswith(b"\x89PNG")
    assert "| `steps` | `2` |" in card.text and "2 pictures." in card.text and str(tmp_path) not in card.text
    # its own card, in the folder, links what lies there
    local = (tmp_path / "zora" / "README.md").read_text()
    assert "](samples.png)" in local and (tmp_path / "zora" / "samples.png").is_file()
    assert 'load_lora_weights("zora")' in local and "instance_prompt: zora" in local and "license:" not in local


@pytest.mark.slow
def test_the_road_with_more_steps(hub, tmp_path):
    found, files = walk(hub, tmp_path, steps=40)
    assert found["with"] == found["by_name"] != found["without"]
    assert "![Losses over the steps](card/curves.png)" in files["README.md"].decode()


def test_a_card_that_somebody_changed_is_kept(hub, tmp_path):
    from unif2ace.hub_card.card import write_adapter_card

    folder = tmp_path / "zora"
    (folder / "run").mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "me/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    settings = {"trigger": "zora", "tasks": ["mmu"], "steps": 3, "learning_rate": 0.001, "output": "/home/me/zora"}
    summary = {
        "settings": settings,
        "prompts": ["zora, a man"],
        "pictures": 3,
        "prior": 0,
        "steps": 3,
        "seconds": 60.0,
    }
    (folder / "run" / "summary.json").write_text(json.dumps(summary | {"samples": "samples.png", "device": "cpu"}))
    Image.new("RGB", (8, 8)).save(folder / "samples.png")
    path = write_adapter_card(folder)
    options = {"license": "mit", "token": TOKEN, "report": lambda text: None}
    (first,) = publish(folder, "tester/zora", **options)
    text = hub.files("tester/zora")["README.md"].decode()
    assert first.revision in text and "card/samples.png" in hub.files("tester/zora")  # made anew
    assert "pipeline_tag: image-text-to-text" in text
    path.write_text(path.read_text().replace("## Limits", "My own words.\n\n## Limits"))
    (second,) = publish(folder, "tester/zora", **options)
    text = hub.files("tester/zora")["README.md"].decode()
    assert "My own words." in text and second.revision in text and "](samples.png)" in text
    assert {"samples.png", "README.md"} <= set(hub.files("tester/zora"))
    assert "card/samples.png" not in hub.files("tester/zora")


# --- the bundled checkpoint's name -----------------------------------------------------------------------------------


def test_the_bundled_checkpoint_has_a_name_that_works_everywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    pipe = UniF2acePipeline.from_pretrained("unif2ace-faces")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a man", num_inference_steps=1).images[0].size == (64, 64)
    assert main(["generate", "a man", "--model", "unif2ace-faces", "--steps", "1", "-o", "face.png"]) == 0
    capsys.readouterr()
    assert main(["publish", "unif2ace-faces", "--repo", "me/faces", "--dry-run"]) == 0
    assert "me/faces-diffusers" in capsys.readouterr().out
    assert bundled_checkpoint().name == "unif2ace-faces" and (bundled_checkpoint() / "config.json").is_file()
    # a folder of that name is what was meant
    (tmp_path / "unif2ace-faces").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        UniF2acePipeline.from_pretrained("unif2ace-faces")


@pytest.mark.parametrize("name", ["hub_card/unif2ace-faces", "runs/unif2ace/final", "./here", "no such model", "a//b"])
def test_what_is_neither_a_folder_nor_a_repository_fails_at_once(name, tmp_path, monkeypatch, capsys, hub):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    assert main(["generate", "a man", "--model", name, "-o", "face.png"]) == 2
    assert time.monotonic() - started < 10 and not hub.requests  # nobody was asked
    error = capsys.readouterr().err.splitlines()[-1]  # after the lines that say what is being done
    assert "error: " in error and "unif2ace-faces" in error and f"there is no folder {name}" in error
