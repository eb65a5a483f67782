"""`unif2ace convert showo`: each tensor once, experts that change nothing, home again; one sentence when it fails."""

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from unif2ace import (
    UniF2aceConfig,
    UniF2aceForConditionalGeneration,
    UniF2acePipeline,
    UniF2aceProcessor,
    cli,
)
from unif2ace.modeling_unif2ace import get_preset
from unif2ace.pipelines import bundled_checkpoint
from unif2ace.training.arguments import UniF2aceTrainingArguments
from unif2ace.training.convert.reader import CheckpointReader
from unif2ace.training.convert.showo import convert_showo, export_showo
from unif2ace.training.convert.showo_layout import (
    ExpertChoice,
    ShowoText,
    magvit_config,
    magvit_shapes,
    make_config,
    model_shapes,
    our_name,
    showo_config,
    showo_shapes,
)
from unif2ace.training.convert.showo_training import showo_losses
from unif2ace.training.convert.upcycle import upcycle_targets
from unif2ace.training.convert.writer import Job, write_checkpoint
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.trainer import UniF2aceTrainer


@pytest.fixture(scope="module")
def weights(showo_recordings):
    return showo_recordings.load("showo_state_dict")


@pytest.fixture(scope="module")
def upcycled_folder(showo_sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("showo-upcycled") / "full-shared"
    convert_showo(destination=folder, **showo_sources)
    return folder


@pytest.fixture
def upcycled(upcycled_folder):
    return UniF2aceForConditionalGeneration.from_pretrained(upcycled_folder).eval()


# --- what comes out


def test_every_tensor_arrives_unchanged(showo, weights, showo_recordings):
    state = showo.state_dict()
    images = showo_recordings.load("magvitv2_state_dict")
    expected = {our_name(name): tensor for name, tensor in weights.items()}
    expected |= {
        f"model.vq_model.{name}": tensor for name, tensor in images.items() if not name.startswith("quantize")
    }
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_sizes_come_from_tensors_and_from_the_text_model(showo, showo_recordings):
    phi, text = showo_recordings.readme["phi_config"], showo.config.text_config
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ):
        assert getattr(text, name) == phi[name]
    assert text.max_position_embeddings == phi["max_position_embeddings"]
    assert text.rope_parameters["rope_theta"] == phi["rope_theta"]
    assert text.rope_parameters["partial_rotary_factor"] == phi["partial_rotary_factor"]
    assert (text.moe_layers, text.sequence_moe_layers, showo.config.understanding_input) == ([], [], "codes")
    constructed = showo_recordings.about("magvitv2_state_dict")["ctor"]
    vq = showo.config.vq_config
    for side, multipliers, blocks in (
        ("encoder", vq.encoder_multipliers, vq.encoder_blocks),
        ("decoder", vq.decoder_multipliers, vq.decoder_blocks),
    ):
        assert [vq.base_channels * m for m in multipliers] == [
            constructed[side]["ch"] * m for m in constructed[side]["ch_mult"]
        ]
        assert blocks == constructed[side]["num_res_blocks"]


def test_the_full_size_models_have_exactly_the_originals_keys(showo_recordings):
    folder = showo_recordings.folder / "full_size_keys"

    def shapes(name):
        return {key: tuple(shape) for key, (shape, _) in json.loads((folder / name).read_text()).items()}

    language, images = shapes("showo_full_keys.json"), shapes("magvitv2_full_keys.json")
    config = get_preset("showo-256").to_dict() | {"understanding_input": "clip"}
    assert showo_shapes(UniF2aceConfig(**config)) == language
    assert showo_shapes(get_preset("showo-512")) == showo_shapes(get_preset("unif2ace-1.8b"))
    vq_config = get_preset("showo-256").vq_config
    assert magvit_shapes(vq_config) == images
    assert magvit_config(images, 256).to_dict() == vq_config.to_dict()
    assert magvit_config(images, 1024).resolution == 512


def test_both_tasks_run_from_the_folder(upcycled_folder, showo_folder):
    answers, pictures = [], []
    for folder in (showo_folder, upcycled_folder):
        pipe = UniF2acePipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        made = pipe("w1 w2 w3", num_inference_steps=3, generator=torch.Generator().manual_seed(1))
        pictures.append(made.codes)
        answers.append(pipe.answer(made.images[0], "w4 w5 ?", max_new_tokens=6))
    assert torch.equal(*pictures) and answers[0] == answers[1]
    assert pipe.scheduler.config.confidence_schedule == "showo"
    modes = {file.stat().st_mode & 0o777 for file in upcycled_folder.rglob("*") if file.is_file()}
    assert modes == {0o666 & ~_umask()}
    assert "computes what the source computes" in (upcycled_folder / "README.md").read_text()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("layout", ["sharded-bin", "nested-safetensors-file", "training-folder"])
def test_other_layouts_give_the_same_model(layout, showo_sources, showo, weights, tmp_path):
    sources, folder = dict(showo_sources), tmp_path / "source"
    shutil.copytree(sources["source"], folder)
    if layout == "sharded-bin":
        (folder / "pytorch_model.bin").unlink()
        names = list(weights)
        index = {}
        for number, members in enumerate((names[::2], names[1::2])):
            torch.save({name: weights[name].clone() for name in members}, folder / f"part-{number}.bin")
            index |= {name: f"part-{number}.bin" for name in members}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    elif layout == "nested-safetensors-file":
        images = load_file(sources["magvit"] / "pytorch_model.safetensors")
        torch.save(
            {
                "model": images,
            },
            tmp_path / "magvit.pth",
            _use_new_zipfile_serialization=False,
        )
        sources["magvit"] = tmp_path / "magvit.pth"
    else:
        (tmp_path / "checkpoint-7").mkdir()
        folder = folder.rename(tmp_path / "checkpoint-7" / "unwrapped_model").parent
    sources["source"] = folder
    convert_showo(destination=tmp_path / "out", experts=ExpertChoice("none"), **sources)
    state = UniF2aceForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in showo.state_dict().items())


def test_repositories_of_the_hub_are_downloaded(showo_sources, showo, hub, tmp_path):
    api = HfApi()
    for name in ("source", "magvit", "text_model"):
        api.create_repo(f"someone/{name.replace('_', '-')}")
        api.upload_folder(repo_id=f"someone/{name.replace('_', '-')}", folder_path=showo_sources[name])
    sources = {name: f"someone/{name.replace('_', '-')}" for name in ("source", "magvit", "text_model")}
    options = {"experts": ExpertChoice("none"), "max_text_length": showo_sources["max_text_length"]}
    folder = convert_showo(destination=tmp_path / "out", **sources, **options).folder
    state = UniF2aceForConditionalGeneration.from_pretrained(folder).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in showo.state_dict().items())
    assert "base_model: someone/source" in (folder / "README.md").read_text()
    with pytest.raises(OSError, match="no repository of that name"):
        convert_showo(destination=tmp_path / "other", **sources | {"source": "someone/nothing"}, **options)


def test_weights_can_change_their_type(showo_sources, tmp_path):
    convert_showo(destination=tmp_path / "out", dtype=torch.bfloat16, **showo_sources)
    model = UniF2aceForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}


def test_a_small_shard_limit_makes_shards_with_an_index(tmp_path):
    tensors = {f"t{number}": torch.randn(100) for number in range(5)}
    jobs = [Job({name: (100,)}, lambda name=name: {name: tensors[name]}) for name in tensors]
    assert write_checkpoint(tmp_path, jobs, torch.float32, max_shard_bytes=900) == 2000
    reader = CheckpointReader(tmp_path)
    assert len(reader.files) == 3
    assert all(torch.equal(reader.read(name), tensor) for name, tensor in tensors.items())


# --- upcycling


@torch.no_grad()
def test_full_shared_upcycling_keeps_the_function_bit_for_bit(showo, upcycled, showo_recordings):
    recorded = showo_recordings.load("t2i_forward")
    mask = (recorded["input_ids"] != showo.config.text_config.pad_token_id).long()
    batch = {"input_ids": recorded["input_ids"], "attention_mask": mask}
    assert torch.equal(upcycled(**batch).logits, showo(**batch).logits)

    drawn = {
        name: model.generate(
            batch["input_ids"][:, : -showo.config.num_image_tokens - 2],
            generation_mode="image",
            attention_mask=mask[:, : -showo.config.num_image_tokens - 2],
            num_inference_steps=5,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(3),
        )
        for name, model in (("dense", showo), ("upcycled", upcycled))
    }
    assert torch.equal(drawn["dense"], drawn["upcycled"])

    input_ids = showo_recordings.load("mmu")["case0.input_ids"]
    text = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    assert torch.equal(upcycled(**text).logits, showo(**text).logits)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1}
    assert torch.equal(upcycled.generate(**text, **options), showo.generate(**text, **options))


def test_routed_experts_learn_from_the_first_step_on(upcycled, showo_recordings):
    recorded = showo_recordings.load("training")
    upcycled.model.vq_model.requires_grad_(False)
    optimizer = torch.optim.SGD((p for p in upcycled.parameters() if p.requires_grad), lr=0.1)

    def gradients():
        optimizer.zero_grad()
        showo_losses(upcycled, recorded["input_ids"], recorded["labels"]).total().backward()
        mlp = upcycled.model.language_model.layers[0].mlp
        parts = {"down": mlp.experts.down_proj, "up": mlp.experts.up_proj}
        parts |= {"t2i_router": mlp.t2i_router.weight, "mmu_router": mlp.mmu_router.weight}
        return {name: parameter.grad.abs().flatten(1).amax(1) for name, parameter in parts.items()}

    first = gradients()
    # the output projections are zero: they learn at once, what is before them when they have
    assert (first["down"] > 0).all() and not first["up"].any() and not first["t2i_router"].any()
    optimizer.step()
    assert all((gradient > 0).all() for gradient in gradients().values())


def test_training_goes_on_from_a_converted_folder(upcycled, upcycled_folder, tmp_path):
    """The trainer's own losses, both tasks in a batch: from the second step on every routed weight has moved."""
    config = upcycled.config
    processor = UniF2aceProcessor.from_pretrained(upcycled_folder)
    n, side = config.num_image_tokens, config.vq_config.resolution
    codes = torch.randint(config.vq_config.codebook_size, (n,))
    rows = [
        {"task": "t2i", "text": "w1 w2 w3", "codes": codes},
        {"task": "mmu", "turns": [("w4 ?", "w5 w6")], "codes": codes, "pixel_values": torch.zeros(3, side, side)},
    ] * 8
    arguments = UniF2aceTrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=1e-2,
        without=["clip", "face"],  # no encoders were converted
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    before = {name: parameter.detach().clone() for name, parameter in upcycled.named_parameters()}
    collator = UniF2aceCollator(processor.tokenizer, config)
    trainer = UniF2aceTrainer(model=upcycled, args=arguments, train_dataset=rows, data_collator=collator)
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))
    for name, parameter in upcycled.named_parameters():
        if "experts.up_proj" in name or "experts.down_proj" in name or "_router" in name:
            assert not torch.equal(parameter, before[name]), name


def test_sequence_experts_start_as_the_identity(upcycled):
    moe = upcycled.model.language_model.layers[0].sequence_moe
    assert moe.router.weight.abs().max() == 0
    assert upcycled.config.text_config.sequence_router_copy_bias > 0
    logits = moe.router.bias
    for task, names in enumerate(moe.expert_names):
        chosen = logits[task].topk(moe.top_k).indices.tolist()
        assert [names[expert] for expert in chosen] == ["copy", "copy"]


def test_split_upcycling_uses_every_neuron_of_the_mlp_once(showo_sources, showo, tmp_path):
    """With all experts in use, even gates and nothing left out, the pieces add up to the dense MLP."""
    experts = ExpertChoice("split", num_routed_experts=4, num_experts_per_tok=4)
    convert_showo(destination=tmp_path / "split", experts=experts, **showo_sources)
    model = UniF2aceForConditionalGeneration.from_pretrained(tmp_path / "split").eval()
    text = model.config.text_config
    width = text.shared_expert_intermediate_size + 4 * text.routed_expert_intermediate_size
    assert width == text.intermediate_size
    assert "train it first" in (tmp_path / "split" / "README.md").read_text()
    for layer in model.model.language_model.layers:
        for router in (layer.mlp.t2i_router, layer.mlp.mmu_router):
            torch.nn.init.zeros_(router.weight)
    input_ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids).logits, showo(input_ids).logits, atol=1e-4, rtol=1e-4)


def test_a_preset_gives_split_its_widths():
    text = get_preset("unif2ace-1.8b").text_config
    shapes = {"fc1.weight": (8192, 2048), "fc1.bias": (8192,), "fc2.weight": (2048, 8192), "fc2.bias": (2048,)}
    made = {}
    for part, shape in shapes.items():
        for name, make in upcycle_targets(part, text, "split").items():
            made[name] = tuple(make(torch.empty(shape, device="meta")).shape)
    with torch.device("meta"):
        layer = UniF2aceForConditionalGeneration(get_preset("unif2ace-1.8b")).model.language_model.layers[0].mlp
    fresh = ("t2i_router.weight", "mmu_router.weight")
    assert made == {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items() if name not in fresh}


@pytest.mark.parametrize(
    ("preset", "method", "widths", "count"),
    [
        ("showo-256", "none", None, 1_543_563_774),
        ("unif2ace-1.8b", "full-shared", (8192, 512), 3_203_590_846),
        ("unif2ace-1.8b", "split", (1536, 512), 1_894_648_510),
        (None, "split", (4096, 512), 2_398_087_870),
    ],
)
def test_full_size_conversions_have_the_documented_sizes(preset, method, widths, count):
    """The numbers of docs/show-o.md; the image tokenizer's 95,387,004 are part of them."""
    dense = get_preset("showo-256")

    class Tokenizer:
        bos_token_id = eos_token_id = 50_256

    config = make_config(
        showo_config(dense),
        showo_shapes(dense),
        dense.vq_config,
        ShowoText(Tokenizer(), {}),
        ExpertChoice(method),
        preset=None if preset is None else get_preset(preset),
    )
    text = config.text_config
    if widths is not None:
        assert (text.shared_expert_intermediate_size, text.routed_expert_intermediate_size) == widths
    assert sum(torch.Size(shape).numel() for shape in model_shapes(config).values()) == count


def test_fresh_weights_depend_on_the_seed_alone(showo_sources, upcycled_folder, tmp_path):
    same, other = (
        convert_showo(destination=tmp_path / str(seed), seed=seed, **showo_sources).folder for seed in (0, 1)
    )
    first = load_file(upcycled_folder / "model.safetensors")
    assert all(torch.equal(first[name], tensor) for name, tensor in load_file(same / "model.safetensors").items())
    router = "model.language_model.layers.0.mlp.t2i_router.weight"
    assert not torch.equal(first[router], load_file(other / "model.safetensors")[router])
    assert first[router].std() == pytest.approx(0.02, rel=0.3)


# --- and home again


def test_a_dense_model_goes_home_bit_for_bit(showo_folder, weights, showo_recordings, tmp_path, showo_sources):
    home = export_showo(showo_folder, tmp_path / "home", text_model="microsoft/phi-1_5")
    for file, expected in (
        (home / "pytorch_model.safetensors", weights),
        (home / "magvitv2" / "pytorch_model.safetensors", showo_recordings.load("magvitv2_state_dict")),
    ):
        found = load_file(file)
        assert found.keys() == expected.keys()
        assert all(
            torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
        )
    assert json.loads((home / "config.json").read_text()) == json.loads(
        (showo_sources["source"] / "config.json").read_text()
    )


def test_experts_have_no_place_in_show_o(upcycled_folder, tmp_path):
    with pytest.raises(ValueError, match="token-level experts in .* layers, but Show-o has none"):
        export_showo(upcycled_folder, tmp_path / "home")
    assert not list(tmp_path.iterdir())


# --- what goes wrong ends in one sentence, exit code 2 and no folder


def run(sources, destination, *more):
    return cli.main(
        [
            "convert",
            "showo",
            str(sources["source"]),
            str(destination),
            *("--magvit", str(sources["magvit"]), "--text-model", str(sources["text_model"])),
            *("--max-text-length", str(sources["max_text_length"]), *more),
        ]
    )


def refused(capsys, folder, code) -> str:
    """The message of a command that failed as it should."""
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]  # after the lines that say what is being done
    assert code == 2 and captured.out == "" and error.startswith("unif2ace convert: error: "), captured.err
    assert not list(folder.iterdir()), "something is left of the result"
    return error


@pytest.fixture
def broken(showo_sources, tmp_path):
    """Sources to damage, and an empty folder beside them."""
    for name in ("source", "magvit", "text_model"):
        shutil.copytree(showo_sources[name], tmp_path / "sources" / name)
    (tmp_path / "results").mkdir()
    return {**showo_sources, **{name: tmp_path / "sources" / name for name in ("source", "magvit", "text_model")}}


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def test_the_command_converts_and_says_what_it_made(broken, results, capsys):
    assert run(broken, results / "model") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "parameters from" in out and "each used once" in out
    assert run(broken, results / "model") == 2
    assert "exists" in capsys.readouterr().err
    assert run(broken, results / "model", "--overwrite", "--upcycle", "none", "--dtype", "float16") == 0
    assert [path.name for path in results.iterdir()] == ["model"]
    assert cli.main(["convert", "to-showo", str(results / "model"), str(results / "home")]) == 0
    assert (results / "home" / "pytorch_model.safetensors").is_file()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_truncated_shard(broken, results, capsys, weights, kind, share):
    file = broken["source"] / "pytorch_model.bin"
    if kind == "safetensors":
        file.unlink()
        file = file.with_suffix(".safetensors")
        save_file(weights, file)
    os.truncate(file, int(file.stat().st_size * share))
    message = refused(capsys, results, run(broken, results / "model"))
    assert file.name in message and "broken or truncated" in message


def test_a_wrong_vocabulary(broken, results, capsys):
    tokenizer = json.loads((broken["text_model"] / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["one-more"] = len(tokenizer["model"]["vocab"])
    (broken["text_model"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refused(capsys, results, run(broken, results / "model"))
    assert "ids of text" in message and "--text-model" in message


def change(sources, **values):
    path = sources["source"] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_vocabulary_that_the_weights_do_not_have(broken, results, capsys):
    showo = json.loads((broken["source"] / "config.json").read_text())
    change(broken, vocab_size=showo["vocab_size"] + 8, codebook_size=showo["codebook_size"] + 8, mask_token_id=None)
    change(broken, mask_token_id=showo["vocab_size"] + 7)
    assert "vocabulary has" in refused(capsys, results, run(broken, results / "model"))
    change(broken, vocab_size=5)
    assert "expected" in refused(capsys, results, run(broken, results / "model"))


def test_a_preset_of_another_shape(broken, results, capsys):
    message = refused(capsys, results, run(broken, results / "model", "--preset", "showo-256"))
    assert "vocab_size=" in message and "instead of 58498" in message


def test_another_models_checkpoint(broken, results, capsys):
    bundled = {**broken, "source": bundled_checkpoint()}
    message = refused(capsys, results, run(bundled, results / "model"))
    assert "UniF2aceForConditionalGeneration" in message and "expected Show-o" in message
    file = broken["source"] / "pytorch_model.bin"
    torch.save({"transformer.wte.weight": torch.zeros(3, 4)}, file)
    assert "showo.model.embed_tokens.weight" in refused(capsys, results, run(broken, results / "model"))
    torch.save([1, 2], file)
    assert "no dictionary of tensors" in refused(capsys, results, run(broken, results / "model"))


def test_missing_surplus_and_misshapen_keys_are_named(broken, results, capsys, weights):
    file = broken["source"] / "pytorch_model.bin"
    changed = dict(weights)
    changed["showo.model.extra.weight"] = changed.pop("showo.model.layers.1.mlp.fc2.bias")
    changed["showo.lm_head.bias"] = changed["showo.lm_head.bias"][:-1].clone()
    torch.save(changed, file)
    message = refused(capsys, results, run(broken, results / "model"))
    assert "1 missing (showo.model.layers.1.mlp.fc2.bias)" in message
    assert "1 surplus (showo.model.extra.weight)" in message
    assert "1 misshapen (showo.lm_head.bias (" in message
    torch.save(weights | {"showo.lm_head.bias": weights["showo.lm_head.bias"] * torch.nan}, file)
    assert "showo.lm_head.bias has values that are not finite" in refused(capsys, results, run(broken, results / "m"))


def test_an_image_tokenizer_that_does_not_belong(broken, results, capsys):
    file = broken["magvit"] / "pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"quantize.embedding": -tensors["quantize.embedding"]}, file)
    assert "quantize.embedding" in refused(capsys, results, run(broken, results / "model"))
    save_file({name: tensor for name, tensor in tensors.items() if name != "decoder.conv_out.bias"}, file)
    assert "1 missing (decoder.conv_out.bias)" in refused(capsys, results, run(broken, results / "model"))
    save_file({"a": torch.zeros(1)}, file)
    assert "magvitv2" in refused(capsys, results, run(broken, results / "model"))


def test_an_index_that_leads_astray(broken, results, capsys, weights):
    (broken["source"] / "pytorch_model.bin").unlink()
    index = broken["source"] / "pytorch_model.safetensors.index.json"
    save_file(weights, broken["source"] / "part.safetensors")
    save_file(weights, broken["source"].parent / "outside.safetensors")
    for name, expected in (("../outside.safetensors", "plain names"), ("absent.safetensors", "not there")):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}))
        assert expected in refused(capsys, results, run(broken, results / "model"))
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*weights, "phantom"], "part.safetensors")}))
    assert "phantom" in refused(capsys, results, run(broken, results / "model"))
    index.write_text("{")
    assert "weight_map" in refused(capsys, results, run(broken, results / "model"))


def test_no_pickle_is_run(broken, results, capsys, tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    torch.save({"showo.model.embed_tokens.weight": Payload()}, broken["source"] / "pytorch_model.bin")
    refused(capsys, results, run(broken, results / "model"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("experts", [("--upcycle", "split", "--shared-width", "4096"), ("--routed-width", "12")])
def test_experts_that_do_not_fit(broken, results, capsys, experts):
    assert "width" in refused(capsys, results, run(broken, results / "model", *experts))


def test_a_source_that_is_not_there(broken, results, capsys):
    message = refused(capsys, results, run(broken | {"source": results / "nothing"}, results / "model"))
    assert "nothing" in message
    (broken["source"] / "pytorch_model.bin").unlink()
    assert "holds no weights" in refused(capsys, results, run(broken, results / "model"))


def test_a_file_system_that_takes_no_more(broken, results, capsys):
    """The limit on file sizes stops the writing in the middle of the weights, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    half = (broken["source"] / "pytorch_model.bin").stat().st_size // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, hard))
    try:
        code = run(broken, results / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = refused(capsys, results, code)
    assert "could not be written" in message and "make room" in message


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/shm").is_dir(), reason="mounting a small disk needs root")
def test_a_full_disk(broken, results, capsys):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", results], check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        message = refused(capsys, results, run(broken, results / "model"))
    finally:
        subprocess.run(["umount", results], check=True)
    assert "GB are free" in message and "make room" in message
