"""LoRA on a tiny model: what a preset touches, one task group alone, and the pipeline's LoRA methods as identities."""

import copy
import json
import shutil

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from time_limit import no_longer_than
from transformers.integrations.peft import MIN_PEFT_VERSION

from unif2ace import UniF2aceForConditionalGeneration, UniF2acePipeline, UniF2aceProcessor
from unif2ace.modeling_unif2ace import UniF2aceConfig, UniF2aceModel, UniF2aceTextModel, get_preset
from unif2ace.training.adapters import changed_weights, lora_config, restrict_to_tasks
from unif2ace.training.finetune_settings import EXPERT_PARAMETERS, PRESETS
from unif2ace.training.train_text_tokenizer import build_tokenizer


TEXTS = ["a man with a hat and a beard", "a young woman with round glasses"]
CONFIG = get_preset("tiny")


@pytest.fixture(scope="module")
def base(built, tmp_path_factory):
    """A tiny checkpoint on disk."""
    folder = tmp_path_factory.mktemp("base")
    model = copy.deepcopy(built)
    model.save_pretrained(folder)
    tokenizer = build_tokenizer(TEXTS * 3, CONFIG.text_vocab_size, CONFIG.vq_config.num_bits)
    UniF2aceProcessor.from_config(CONFIG, tokenizer).save_pretrained(folder)
    return folder


def make_adapter(base, folder, seed, preset="attention+experts", **options):
    """An adapter that does something, written by PEFT."""
    torch.manual_seed(seed)
    config = lora_config(CONFIG, preset, rank=2, **options)
    config.init_lora_weights = False  # B is random too
    model = get_peft_model(UniF2aceForConditionalGeneration.from_pretrained(base), config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(base, root / name, seed) for name, seed in (("one", 1), ("two", 2))]


@pytest.fixture
def pipe(base):
    pipe = UniF2acePipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def t2i_inputs():
    """Two prompts with an image of mask tokens each."""
    n, special = CONFIG.num_image_tokens, CONFIG.special_token_id
    row = [special("<|t2i|>"), 0, 20, 30, 1, special("<|soi|>"), *[CONFIG.mask_token_id] * n, special("<|eoi|>")]
    return {"input_ids": torch.tensor([row, row[:2] + [21, 31] + row[4:]]), "task_ids": torch.tensor([0, 0])}


def mmu_inputs():
    n, special = CONFIG.num_image_tokens, CONFIG.special_token_id
    codes = [CONFIG.image_code_offset + i % 32 for i in range(n)]
    row = [special("<|mmu|>"), special("<|soi|>"), *codes, special("<|eoi|>"), 0, 20, 30, 40]
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"input_ids": torch.tensor([row]), "task_ids": torch.tensor([1]), "pixel_values": pixels}


@torch.no_grad()
def logits(model, inputs=None):
    return model.eval()(**(inputs or t2i_inputs())).logits


def assert_close(first, second, atol=2e-5):
    torch.testing.assert_close(first, second, atol=atol, rtol=1e-4)


def differs(first, second):
    return (first - second).abs().max().item() > 1e-3


# What a preset touches


def adapted(model):
    return {name.rpartition(".lora_A")[0] for name, _ in model.named_modules() if name.endswith("lora_A")}


def test_defaults_of_peft_reach_the_decoder_alone(model):
    names = adapted(get_peft_model(model, LoraConfig()))
    assert len(names) == 4 * CONFIG.text_config.num_hidden_layers
    assert all("language_model.layers" in name and "self_attn" in name for name in names)
    assert len(adapted(get_peft_model(UniF2aceModel(CONFIG), LoraConfig()))) == len(names)
    assert len(adapted(get_peft_model(UniF2aceTextModel(CONFIG.text_config), LoraConfig()))) == len(names)


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("tasks", [("t2i",), ("mmu",), ("t2i", "mmu")])
def test_preset_touches_what_it_says(model, preset, tasks):
    before = logits(model)
    tuned = get_peft_model(model, lora_config(CONFIG, preset, tasks, rank=2))
    torch.testing.assert_close(logits(tuned), before, atol=0, rtol=0)  # B is zero
    kinds = set(changed_weights(tuned))
    wanted = {"attention"} if "attention" in preset else set()
    if "experts" in preset:
        wanted |= {f"{task} shared experts" for task in tasks} | {"t2i routed experts", "mmu routed experts"}
    assert kinds == wanted
    assert not [name for name in adapted(tuned) if "router" in name or "vision" in name or "resampler" in name]


def test_wrong_presets_are_refused(model):
    for wrong in ({"preset": "all"}, {"preset": "full"}, {"tasks": ("x",)}, {"tasks": ()}, {"rank": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*expected"):
            lora_config(CONFIG, **wrong)
    dense = get_preset("tiny")
    dense.text_config.moe_layers = []
    with pytest.raises(ValueError, match="has none"):
        lora_config(dense, "experts")


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
@pytest.mark.parametrize("task", ["t2i", "mmu"])
def test_one_group_alone_leaves_the_other_bit_for_bit(model, task, experts):
    model.set_experts_implementation(experts)
    inputs = {"t2i": t2i_inputs(), "mmu": mmu_inputs()}
    before = {name: logits(model, batch) for name, batch in inputs.items()}
    tuned = get_peft_model(model, lora_config(CONFIG, "experts", (task,), rank=2))
    assert restrict_to_tasks(tuned, (task,)) == 2 * 2 * CONFIG.text_config.num_hidden_layers
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        for batch in inputs.values():  # both tasks have a loss
            tuned(**batch).logits.square().mean().backward()
        optimizer.step()
    other = "mmu" if task == "t2i" else "t2i"
    torch.testing.assert_close(logits(tuned, inputs[other]), before[other], atol=0, rtol=0)
    assert differs(logits(tuned, inputs[task]), before[task])
    changed = changed_weights(tuned)
    assert changed[f"{other} routed experts"] == 0.0 and changed[f"{task} routed experts"] > 0
    assert changed[f"{task} shared experts"] > 0 and f"{other} shared experts" not in changed


# Loading, stacking, merging


@pytest.fixture(scope="module")
def wanted(base, adapters):
    """Logits of the base, of each adapter and of both, from weights with the updates added by hand."""

    def with_updates(*folders, scale=1.0):
        model = UniF2aceForConditionalGeneration.from_pretrained(base)
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for folder in folders:
                for name, update in updates(folder).items():
                    weights[name] += scale * update
        return logits(model)

    one, two = adapters
    return {
        "base": with_updates(),
        "one": with_updates(one),
        "two": with_updates(two),
        "both": with_updates(one, two),
        "half": with_updates(one, scale=0.5),
    }


def updates(folder):
    """`B A · alpha / r` of every adapted weight, from the file."""
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    scale, found = config["lora_alpha"] / config["r"], {}
    for key, a in tensors.items():
        if not key.endswith("lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = tensors[key.replace("lora_A", "lora_B")]
        if name.endswith(("experts", "experts.base_layer")):
            # PEFT wraps the parameters of a module one around the other; the outermost one is the last
            of_parameter = (
                "down_proj" if a.shape[1] == CONFIG.text_config.routed_expert_intermediate_size else "up_proj"
            )
            count = 2 * CONFIG.text_config.num_routed_experts
            a, b = a.reshape(count, -1, a.shape[1]), b.reshape(b.shape[0], -1, count)
            name = f"{name.removesuffix('.base_layer')}.{of_parameter}"
            found[name] = scale * torch.einsum("ore,eri->eoi", b, a)
        else:
            found[f"{name}.weight"] = scale * b @ a
    return found


def test_loading_gives_what_the_numbers_say(pipe, adapters, wanted):
    assert pipe.get_list_adapters() == [] == pipe.get_active_adapters()
    pipe.load_lora_weights(adapters[0], adapter_name="one")
    assert_close(logits(pipe.transformer), wanted["one"])
    assert differs(wanted["one"], wanted["base"])
    pipe.disable_lora()
    torch.testing.assert_close(logits(pipe.transformer), wanted["base"], atol=0, rtol=0)
    pipe.enable_lora()
    pipe.set_adapters("one", 0.5)
    assert_close(logits(pipe.transformer), wanted["half"])
    pipe.unload_lora_weights()
    torch.testing.assert_close(logits(pipe.transformer), wanted["base"], atol=0, rtol=0)
    assert not [name for name in pipe.transformer.state_dict() if "lora" in name or "base_layer" in name]


def test_transformers_and_peft_load_it_too(base, adapters, wanted):
    model = UniF2aceForConditionalGeneration.from_pretrained(base)
    model.load_adapter(str(adapters[0]))
    assert_close(logits(model), wanted["one"])
    peft_model = PeftModel.from_pretrained(UniF2aceForConditionalGeneration.from_pretrained(base), adapters[0])
    assert_close(logits(peft_model), wanted["one"])
    assert_close(logits(peft_model.merge_and_unload()), wanted["one"])


def test_the_model_is_saved_whole_after_adapters_came_and_went(base, adapters, wanted, tmp_path):
    """By transformers' own methods, which leave traces behind in other models."""
    model = UniF2aceForConditionalGeneration.from_pretrained(base)
    names = sorted(model.state_dict())
    for name, adapter in zip(("one", "two"), adapters, strict=True):
        model.load_adapter(str(adapter), adapter_name=name)
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):  # newer than the newest that there is, with 5.24
        for method in (model.set_adapter, model.delete_adapter):
            with pytest.raises(ValueError, match=f"use a version >= {MIN_PEFT_VERSION}"):
                method("one")
        model.unload_adapters()
        assert sorted(model.state_dict()) == names
        return
    model.set_adapter("one")
    model.save_pretrained(tmp_path / "adapter")  # the active adapter, not the model
    model.delete_adapter("one")
    model.set_adapter("two")
    assert_close(logits(model), wanted["two"])
    with pytest.raises(ValueError, match="not present"):
        model.delete_adapter("one")
    model.delete_adapter(["two"])
    model.unload_adapters()  # none is left
    assert sorted(model.state_dict()) == names
    model.save_pretrained(tmp_path / "model")
    loaded, info = UniF2aceForConditionalGeneration.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(loaded), wanted["base"], atol=0, rtol=0)
    loaded.load_adapter(str(tmp_path / "adapter"))
    assert_close(logits(loaded), wanted["one"])


def test_stacking_adds_the_updates(pipe, adapters, wanted):
    pipe.load_lora_weights(adapters[0], adapter_name="one")
    pipe.load_lora_weights(adapters[1], adapter_name="two")
    assert pipe.get_list_adapters() == ["one", "two"] and pipe.get_active_adapters() == ["two"]
    assert_close(logits(pipe.transformer), wanted["two"])
    pipe.set_adapters(["one", "two"])
    assert_close(logits(pipe.transformer), wanted["both"])
    pipe.set_adapters(["one", "two"], [0.5, 0.0])
    assert_close(logits(pipe.transformer), wanted["half"])
    pipe.set_adapters("one")
    assert_close(logits(pipe.transformer), wanted["one"])
    pipe.delete_adapters("one")
    assert pipe.get_list_adapters() == ["two"]
    pipe.set_adapters("two")
    assert_close(logits(pipe.transformer), wanted["two"])


def test_fuse_and_unfuse(pipe, adapters, wanted, tmp_path):
    pipe.load_lora_weights(adapters[0], adapter_name="one")
    pipe.load_lora_weights(adapters[1], adapter_name="two")
    pipe.fuse_lora(adapter_names=["one", "two"])
    assert pipe.fused
    assert_close(logits(pipe.transformer), wanted["both"])
    for call in (lambda: pipe.fuse_lora(), lambda: pipe.set_adapters("one"), lambda: pipe.delete_adapters("one")):
        with pytest.raises(ValueError, match="unfuse_lora"):
            call()
    pipe.unfuse_lora()
    pipe.set_adapters("one")
    assert_close(logits(pipe.transformer), wanted["one"])
    pipe.fuse_lora(lora_scale=0.5)
    assert_close(logits(pipe.transformer), wanted["half"])
    pipe.unfuse_lora()
    assert_close(logits(pipe.transformer), wanted["one"])
    with pytest.raises(ValueError, match="nothing to unfuse"):
        pipe.unfuse_lora()

    pipe.fuse_lora()
    with pytest.raises(ValueError, match="unload_lora_weights"):
        pipe.save_pretrained(tmp_path / "half-done")
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "fused")
    assert_close(logits(UniF2acePipeline.from_pretrained(tmp_path / "fused").transformer), wanted["one"])


def test_saving_an_adapter_again(pipe, base, adapters, wanted, tmp_path):
    pipe.load_lora_weights(adapters[0], adapter_name="one")
    pipe.save_lora_weights(tmp_path / "again")
    first, again = (load_file(folder / "adapter_model.safetensors") for folder in (adapters[0], tmp_path / "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(FileExistsError, match="another folder"):
        pipe.save_lora_weights(tmp_path / "again")
    other = UniF2acePipeline.from_pretrained(base)
    other.load_lora_weights(tmp_path / "again")
    assert other.get_list_adapters() == ["default_0"]
    assert_close(logits(other.transformer), wanted["one"])


def test_folder_of_an_adapter_is_enough(adapters, wanted, tmp_path):
    pipe = UniF2acePipeline.from_pretrained(adapters[0])
    assert pipe.get_active_adapters() == ["default_0"]
    assert_close(logits(pipe.transformer), wanted["one"])
    assert len(pipe("a man", num_inference_steps=2).images) == 1
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(OSError, match="does not name its base"):
        UniF2acePipeline.from_pretrained(tmp_path)


def test_bad_adapters_are_refused(pipe, base, adapters, tmp_path, wanted):
    with pytest.raises(OSError, match="no adapter_config.json"):
        pipe.load_lora_weights(base)
    with pytest.raises(OSError, match="there is no folder"):
        pipe.load_lora_weights(tmp_path / "nowhere")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_text((adapters[0] / "adapter_config.json").read_text())
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(OSError, match="adapter_model.safetensors"):
        pipe.load_lora_weights(pickled)

    # made for a wider model: nothing of it may stay
    fields = CONFIG.to_dict()
    wide = UniF2aceConfig(**fields | {"text_config": fields["text_config"] | {"hidden_size": 64}})
    other = get_peft_model(UniF2aceForConditionalGeneration(wide), lora_config(wide, rank=2))
    other.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="does not fit this model"):
        pipe.load_lora_weights(tmp_path / "wide")
    assert pipe.get_list_adapters() == []
    torch.testing.assert_close(logits(pipe.transformer), wanted["base"], atol=0, rtol=0)

    pipe.load_lora_weights(adapters[0], adapter_name="one")
    with pytest.raises(ValueError, match="already"):
        pipe.load_lora_weights(adapters[1], adapter_name="one")
    with pytest.raises(ValueError, match="loaded: 'one'"):
        pipe.set_adapters("two")
    with pytest.raises(ValueError, match="2 weights for 1"):
        pipe.set_adapters("one", [1.0, 2.0])


FAULTS = ["nan", "inf", "shape", "integers", "missing", "alpha", "kind", "rank", "ranks", "circle", "slow"]
CONFIGS = {
    "alpha": {"lora_alpha": float("inf")},
    "kind": {"peft_type": "IA3"},
    "rank": {"r": 10**9},  # would be allocated before any shape is compared
    "ranks": {"rank_pattern": {"q_proj": 10**9}},
    "circle": {"target_modules": "((a+)+)+z|(.*)+q_proj!"},  # would match for years
    "slow": {"rank_pattern": {".*.*.*.*.*.*.*.*!": 4}},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_spoilt_adapters_are_refused_at_loading(pipe, adapters, tmp_path, wanted, fault):
    folder = shutil.copytree(adapters[0], tmp_path / "spoilt")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = max(tensors)  # not the first that is looked at
    if fault in ("nan", "inf"):
        tensors[name][0, 0] = float(fault)
    elif fault == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif fault == "integers":
        tensors[name] = tensors[name].to(torch.int32)
    elif fault == "missing":
        del tensors[name]
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= CONFIGS.get(fault, {})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with no_longer_than(30), pytest.raises(ValueError, match="does not fit this model"):
        pipe.load_lora_weights(folder)
    assert pipe.get_list_adapters() == []
    torch.testing.assert_close(logits(pipe.transformer), wanted["base"], atol=0, rtol=0)


def test_order_of_the_adapted_parameters_is_fixed():
    """Adapters stack only if they target the same parameters in the same order."""
    assert lora_config(CONFIG, "experts").target_parameters == list(EXPERT_PARAMETERS)
