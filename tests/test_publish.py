"""Publishing over real HTTP to a Hub of this process, and loading again in a process that lacks the package."""

import json
import re
import socket
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from local_hub import TOKEN, HubError
from PIL import Image
from tiny_checkpoint import save_tiny_checkpoint

from unif2ace import UniF2aceForConditionalGeneration, UniF2acePipeline
from unif2ace._versions import BASE, PYTHON, requirement
from unif2ace.cli import main
from unif2ace.hub_card.publish import MANIFEST, publish, readable
from unif2ace.hub_card.remote_code import PACKAGE, flat_code, single_file


QUIET = {"samples": 0, "report": lambda text: None}
FACE = Image.new("RGB", (20, 20), "tan")
PROMPT = "a man with a hat"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "final")


def what_it_says(pipe) -> dict:
    """Codes of a picture and words about one: equal in all processes that have the same model."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    codes = pipe(PROMPT, num_inference_steps=4, generator=generator, output_type="latent").codes
    return {"codes": codes.tolist(), "words": pipe.describe(FACE, max_new_tokens=8)}


# --- the plan, and what it protects ----------------------------------------------------------------------------------


def test_dry_run_shows_files_and_sizes_and_sends_nothing(hub, model, capsys):
    arguments = ["publish", str(model), "--repo", "tester/faces", "--license", "mit", "--dry-run"]
    assert main(arguments) == 0
    shown, said = capsys.readouterr()
    size = readable((model / "model.safetensors").stat().st_size)
    assert re.search(rf"upload +{size}  model.safetensors", shown), shown
    assert re.search(rf"upload +{size}  transformer/model.safetensors", shown)
    assert "tester/faces  (transformers layout, new repository)" in shown
    assert "tester/faces-diffusers  (diffusers layout, new repository)" in shown
    assert "nothing was uploaded" in said
    assert not hub.repos and all(method in ("GET", "HEAD") for method, _ in hub.requests)


def test_dry_run_needs_no_hub(model, capsys):
    assert publish(model, "faces", license="mit", dry_run=True) == []
    assert "faces-diffusers" in capsys.readouterr().out


def test_without_a_connection_a_dry_run_says_what_it_knows_and_an_upload_that_it_cannot(hub, model, capsys):
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    arguments = ["publish", str(model), "--repo", "me/faces", "--license", "mit", "--samples", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
        assert not huggingface_hub.constants.HF_HUB_OFFLINE
        assert main([*arguments, "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert "the Hub cannot be reached, so what is there is not known" in out and "model.safetensors" in out
        assert main(arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "the Hub cannot be reached" in error and "run it again" in error
    assert not hub.requests


def test_a_second_run_sends_only_what_changed_and_deletes_stale_shards(hub, tmp_path):
    model = save_tiny_checkpoint(tmp_path / "model", max_shard_size="300KB")
    options = {"layouts": ("transformers",), "license": "mit", "token": TOKEN, **QUIET}
    (first,) = publish(model, "tester/faces", **options)
    assert len([name for name in hub.files("tester/faces") if name.endswith(".safetensors")]) == 3
    (again,) = publish(model, "tester/faces", **options)
    assert again.revision == first.revision and again.uploaded == [] and len(hub.messages("tester/faces")) == 3

    HfApi(token=TOKEN, endpoint=hub.url).upload_file(
        path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="tester/faces"
    )
    for shard in model.glob("model*.safetensors*"):
        shard.unlink()
    save_tiny_checkpoint(model)
    (third,) = publish(model, "tester/faces", **options)
    assert set(third.uploaded) == {"model.safetensors"}
    assert "model.safetensors.index.json" in third.deleted and len(third.deleted) == 4
    files = hub.files("tester/faces")
    assert [name for name in files if "model" in name and "safetensors" in name] == ["model.safetensors"]
    assert files["notes.txt"] == b"mine"  # what others put there stays
    assert third.revision in files["README.md"].decode() and first.revision not in files["README.md"].decode()


def test_an_interrupted_upload_goes_on(hub, tmp_path):
    model = save_tiny_checkpoint(tmp_path / "model", max_shard_size="300KB")
    options = {"layouts": ("transformers",), "license": "mit", "token": TOKEN, **QUIET}

    def full(method, path):
        if method == "PUT" and len(hub.large) == 2:
            raise HubError(403, "", "the line is cut")

    hub.before = full
    with pytest.raises(OSError, match="what arrived is kept, run it again"):
        publish(model, "tester/faces", **options)
    assert len(hub.large) == 2 and hub.messages("tester/faces") == ["initial commit"]
    hub.before, hub.requests[:] = None, []
    publish(model, "tester/faces", **options)
    assert len([path for method, path in hub.requests if method == "PUT"]) == 1 and len(hub.large) == 3
    for shard in model.glob("*.safetensors"):
        assert hub.files("tester/faces")[shard.name] == shard.read_bytes()

    # between the commit of the weights and that of the card
    def no_card(method, path):
        if "/commit/" in path and len(hub.messages("tester/other")) == 2:
            raise HubError(500, "", "out of order")

    hub.before = no_card
    with pytest.raises(OSError):
        publish(model, "tester/other", **options)
    assert "README.md" not in hub.files("tester/other")
    weights = hub.head("tester/other")
    hub.before = None
    (published,) = publish(model, "tester/other", **options)
    assert published.revision == weights and weights in hub.files("tester/other")["README.md"].decode()


def test_foreign_repositories_are_left_alone_unless_told(hub, model, capsys):
    api = HfApi(token=TOKEN, endpoint=hub.url)
    api.create_repo("tester/faces")
    for name in ("pytorch_model.bin", "essay.md"):
        api.upload_file(path_or_fileobj=b"theirs", path_in_repo=name, repo_id="tester/faces")
    before = hub.head("tester/faces")
    arguments = ["publish", str(model), "--repo", "tester/faces", "--license", "mit", "--samples", "0"]
    assert main(arguments) == 2
    assert "was not written by unif2ace" in capsys.readouterr().err
    assert hub.head("tester/faces") == before and "tester/faces-diffusers" not in hub.repos
    assert main([*arguments, "--overwrite", "--layout", "transformers"]) == 0
    files = hub.files("tester/faces")
    assert files["essay.md"] == b"theirs" and "pytorch_model.bin" not in files and MANIFEST in files


def test_a_pipeline_is_published_the_same_way(hub, model, tmp_path):
    pipe = UniF2acePipeline.from_pretrained(model)
    options = {"license": "mit", "token": TOKEN, **QUIET}
    for wrong, message in (({"create_pr": True}, "takes no 'create_pr', expected repo_id, layouts"), ({}, "licence")):
        with pytest.raises((TypeError, ValueError), match=message):
            pipe.save_pretrained(tmp_path / "faces", push_to_hub=True, **QUIET, token=TOKEN, **wrong)
    with pytest.raises(TypeError, match="add push_to_hub=True"):
        pipe.save_pretrained(tmp_path / "faces", license="mit")
    assert not hub.repos
    published = pipe.save_pretrained(tmp_path / "faces", push_to_hub=True, **options)  # named as the folder
    assert [repository.repo_id for repository in published] == ["tester/faces", "tester/faces-diffusers"]
    for repository in published:  # with manifest, code and card, unlike what diffusers itself would upload
        assert {MANIFEST, "README.md", "LICENSE", "modeling_unif2ace.py"} <= set(hub.files(repository.repo_id))
    loaded = UniF2acePipeline.from_pretrained(published[1].repo_id, revision=published[1].revision, token=TOKEN)
    assert what_it_says(loaded) == what_it_says(pipe)
    # the same weights again, from a folder that is gone afterwards: nothing new to upload
    again = pipe.push_to_hub("tester/faces", **options)
    assert [repository.uploaded for repository in again] == [[], []]


def test_private_means_private(hub, model):
    options = {"layouts": ("diffusers",), "license": "mit", "token": TOKEN, **QUIET}
    publish(model, "tester/secret", private=True, **options)
    assert hub.repos["tester/secret-diffusers"].private
    publish(model, "tester/open", **options)
    with pytest.raises(FileExistsError, match="is public, but private was asked for"):
        publish(model, "tester/open", private=True, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "under which licence"),
        ({"license": "mit", "layouts": ("onnx",)}, ValueError, "'transformers' or 'diffusers'"),
        ({"license": "mit", "repo_id": "a/b/c"}, ValueError, "expected ORG/NAME"),
        ({"license": "mit", "repo_id": "tester/fa ces"}, ValueError, "cannot be a repository's name"),
        ({"license": "mit", "token": "hf_wrong"}, OSError, "hf auth login"),
        ({"license": "mit", "run": "nowhere"}, FileNotFoundError, "no run's folder"),
        ({"license": "mit", "model": "nowhere"}, FileNotFoundError, "is no folder"),
    ],
)
def test_mistakes_are_told_in_one_sentence(hub, model, options, error, message):
    with pytest.raises(error, match=message):
        publish(**{"model": model, "repo_id": "tester/faces", "token": TOKEN, **QUIET} | options)
    assert not hub.repos


def test_offline_says_so(model, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        publish(model, "tester/faces", license="mit", token=TOKEN, **QUIET)


# --- what is in the repositories -------------------------------------------------------------------------------------


def test_no_place_of_this_machine_is_published(hub, tmp_path):
    model = save_tiny_checkpoint(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["_name_or_path"] = config["vision_config"]["_name_or_path"] = str(tmp_path / "clip")
    (model / "config.json").write_text(json.dumps(config))
    (model / "training_args.bin").write_bytes(b"pickle")
    (model / "optimizer.pt").write_bytes(b"pickle")
    publish(model, "tester/faces", license="mit", token=TOKEN, **QUIET)
    for repo_id in ("tester/faces", "tester/faces-diffusers"):
        files = hub.files(repo_id)
        assert not [name for name in files if name.endswith((".bin", ".pt"))]
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
        assert files["LICENSE"] == (PACKAGE / "LICENSE").read_bytes()


def test_licences_of_converted_parts_are_named(hub, tmp_path):
    model = save_tiny_checkpoint(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["face_config"]["weights_license"] = "non-commercial research (InsightFace)"
    (model / "config.json").write_text(json.dumps(config))
    (model / "LICENSE").write_text("terms of the weights")
    publish(model, "tester/faces", layouts=("transformers",), license="apache-2.0", token=TOKEN, **QUIET)
    files = hub.files("tester/faces")
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "other" and card.data.to_dict()["license_link"] == "LICENSE"
    assert "| weights of the face encoder | non-commercial research (InsightFace) |" in card.text
    assert files["LICENSE"] == b"terms of the weights" and b"Apache License" in files["LICENSE.code"]


def test_card_and_requirements_state_the_tested_range(hub, model):
    for published in publish(model, "tester/faces", license="mit", token=TOKEN, **QUIET):
        files = hub.files(published.repo_id)
        names = [name for name in sorted(BASE) if name != "diffusers" or published.layout == name]
        assert files["requirements.txt"].decode().splitlines() == [requirement(name) for name in names]
        card = files["README.md"].decode()
        assert f"Tested with Python {PYTHON}, {requirement('torch')}, {requirement('transformers')}" in card
        assert requirement(published.layout) in card


def test_adapters_are_peft_repositories(hub, tmp_path, model):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = UniF2aceForConditionalGeneration.from_pretrained(model)
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "lora")
    assert "More Information Needed" in (tmp_path / "lora" / "README.md").read_text()  # peft's empty card
    options = {"license": "mit", "token": TOKEN, **QUIET}
    with pytest.raises(ValueError, match="--base-model ORG/NAME"):
        publish(tmp_path / "lora", "tester/lora", **options)
    (published,) = publish(tmp_path / "lora", "tester/lora", base_model="tester/faces", **options)
    assert published.layout == "adapter" and not [name for name in hub.files("tester/lora") if name.endswith(".py")]
    card = ModelCard(hub.files("tester/lora")["README.md"].decode())
    data = card.data.to_dict()
    assert (data["library_name"], data["base_model"], data["base_model_relation"]) == (
        "peft",
        "tester/faces",
        "adapter",
    )
    assert "information needed" not in card.text.lower()
    fresh = UniF2aceForConditionalGeneration.from_pretrained(model)
    loaded = PeftModel.from_pretrained(fresh, "tester/lora", revision=published.revision, token=TOKEN)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, adapted.eval()(ids).logits)


def test_bundled_code_is_the_package_s_code():
    for name, content in flat_code().items():
        assert content == (PACKAGE / "modeling_unif2ace" / name).read_bytes()
    for path in (
        PACKAGE / "modeling_unif2ace" / "modeling_unif2ace.py",
        PACKAGE / "modeling_unif2ace" / "processing_unif2ace.py",
        PACKAGE / "pipelines" / "scheduling_unif2ace.py",
        PACKAGE / "pipelines" / "pipeline_unif2ace.py",
    ):
        text = single_file(path).decode()
        compile(text, path.name, "exec")
        # the scanners of both libraries are line by line, also in docstrings
        assert not re.search(r"^\s*(from|import)\s+(\.|unif2ace\b)", text, re.MULTILINE)


def test_bundling_refuses_one_name_for_two_things(tmp_path):
    (tmp_path / "one.py").write_text("LIMIT = 1\n")
    (tmp_path / "two.py").write_text("from .one import LIMIT\n\nLIMIT = 2\n")
    with pytest.raises(ValueError, match="LIMIT of two.py and of one.py differ"):
        single_file(tmp_path / "two.py")
    (tmp_path / "three.py").write_text("def f():\n    from .one import LIMIT\n")
    with pytest.raises(ValueError, match="three.py:2: only"):
        single_file(tmp_path / "three.py")


# --- round trips -----------------------------------------------------------------------------------------------------

WITHOUT_THE_PACKAGE = r"""
import json, re, sys
from importlib.abc import MetaPathFinder

class NoPackage(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "unif2ace":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoPackage())
try:
    import unif2ace
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is there, so this would prove nothing")

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForMultimodalLM, AutoProcessor, pipeline

revisions, prompt = json.loads(sys.argv[1]), sys.argv[2]
face, found = Image.new("RGB", (20, 20), "tan"), {}
repo, code = "tester/faces", {"revision": revisions["transformers"], "code_revision": revisions["transformers"]}
model = AutoModelForMultimodalLM.from_pretrained(repo, trust_remote_code=True, **code)
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True, **code)
assert AutoImageProcessor.from_pretrained(repo, trust_remote_code=True, **code).size == processor.image_processor.size
words = [{"type": "image", "image": face}, {"type": "text", "text": "Describe this face."}]
chat = [{"role": "user", "content": words}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
found["auto"] = processor.post_process_image_text_to_text(output[:, inputs["input_ids"].shape[1]:])[0]
describe = pipeline("image-text-to-text", model=repo, revision=revisions["transformers"], trust_remote_code=True)
found["pipeline"] = describe(
    images=face, text="Describe this face.", max_new_tokens=8, return_full_text=False, do_sample=False
)[0]["generated_text"].strip()

faces = pipeline("face-any-to-any", model=repo, revision=revisions["transformers"], trust_remote_code=True)
drawn = faces(text=prompt, generation_mode="image", generate_kwargs={"num_inference_steps": 2})
found["drawn"] = list(drawn[0]["generated_image"].size)

pipe = DiffusionPipeline.from_pretrained(
    "tester/faces-diffusers", revision=revisions["diffusers"], trust_remote_code=True
)
pipe.set_progress_bar_config(disable=True)
found["codes"] = pipe(
    prompt, num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="latent"
).codes.tolist()
found["words"] = pipe.describe(face, max_new_tokens=8)

# the cards' own snippets, but those that use the package
for name in ("tester/faces", "tester/faces-diffusers"):
    card = open(hf_hub_download(name, "README.md"), encoding="utf-8").read()
    for snippet in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        if "unif2ace import" not in snippet:
            exec(snippet.replace("= 16", "= 2"), {})
            found["snippets"] = found.get("snippets", 0) + 1
assert not [name for name in sys.modules if name.partition(".")[0] == "unif2ace"]
print("FOUND" + json.dumps(found))
"""


def test_a_process_without_the_package_says_the_same(hub, model, tmp_path):
    published = publish(model, "tester/faces", license="mit", token=TOKEN, **QUIET)
    revisions = {repository.layout: repository.revision for repository in published}
    # `main` moves on to other weights: the pinned revision must not care
    other = save_tiny_checkpoint(tmp_path / "other", seed=1)
    publish(other, "tester/faces", license="mit", token=TOKEN, **QUIET)

    source = what_it_says(UniF2acePipeline.from_pretrained(model))
    assert what_it_says(UniF2acePipeline.from_pretrained(other)) != source
    child = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_THE_PACKAGE, json.dumps(revisions), PROMPT],
        cwd=tmp_path,
        env=hub.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "FOUND" in child.stdout, child.stderr[-3000:]
    found = json.loads(child.stdout.rpartition("FOUND")[2])
    assert found["codes"] == source["codes"]
    assert found["words"] == found["auto"] == found["pipeline"] == source["words"] != ""
    assert found["snippets"] == 2
    assert found["drawn"] == [16, 16]


def test_with_the_package_no_code_of_the_repository_runs(hub, model, tmp_path, monkeypatch):
    published = publish(model, "tester/faces", license="mit", token=TOKEN, **QUIET)
    source = what_it_says(UniF2acePipeline.from_pretrained(model))
    for repository in published:
        pipe = UniF2acePipeline.from_pretrained(repository.repo_id, revision=repository.revision, token=TOKEN)
        assert type(pipe.transformer) is UniF2aceForConditionalGeneration
        assert what_it_says(pipe) == source
        with pytest.raises(OSError, match="could be fetched"):
            UniF2acePipeline.from_pretrained(repository.repo_id, revision="0" * 40, token=TOKEN)
        snippets = re.findall(r"```python\n(.*?)```", hub.files(repository.repo_id)["README.md"].decode(), re.DOTALL)
        for snippet in snippets:
            if "unif2ace import" in snippet:
                exec(snippet, {})
    assert not [name for name in sys.modules if "transformers_modules" in name and "faces" in name]
