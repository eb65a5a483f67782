"""Checkpoints and configurations that are damaged, contradict themselves, or were made to do harm."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from time_limit import no_longer_than
from tiny_checkpoint import save_tiny_checkpoint
from transformers import AutoModelForMultimodalLM, PreTrainedConfig

from unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration, UniF2acePipeline, UniF2aceVQModel
from unif2ace.modeling_unif2ace import UniF2aceCheckpointError, get_preset
from unif2ace.modeling_unif2ace.checkpoint_unif2ace import weight_files
from unif2ace.training.evaluation.subject import _kept
from unif2ace.training.finetune import _kept_codes


INDEX = "model.safetensors.index.json"
# what a caller may have to handle; anything else is a crash
REFUSALS = (ValueError, OSError, TypeError, StrictDataclassError)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("sharded") / "model", max_shard_size="300KB")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def copy_of(tmp_path):
    def make(folder):
        return shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)

    return make


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


LOADERS = [
    AutoModelForMultimodalLM.from_pretrained,
    UniF2aceForConditionalGeneration.from_pretrained,
    UniF2acePipeline.from_pretrained,
]


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "a/../../x.safetensors", "..\\x.safetensors"]
)
def test_an_index_cannot_name_files_elsewhere(sharded, copy_of, name):
    folder = copy_of(sharded)
    shutil.copy(next(folder.glob("*.safetensors")), folder.parent / "outside.safetensors")
    change_index(folder, lambda index: index["weight_map"].update({next(iter(index["weight_map"])): name}))
    for load in LOADERS:
        with pytest.raises(UniF2aceCheckpointError, match="in the same folder"):
            load(folder)


def test_an_index_must_agree_with_its_shards(sharded, copy_of):
    folder = copy_of(sharded)
    change_index(
        folder, lambda index: index["weight_map"].update({"no.such.tensor": "model-00001-of-00003.safetensors"})
    )
    with pytest.raises(UniF2aceCheckpointError, match="no.such.tensor is only in the index"):
        LOADERS[0](folder)
    folder = copy_of(sharded)
    change_index(folder, lambda index: index["weight_map"].pop("lm_head.weight"))
    with pytest.raises(UniF2aceCheckpointError, match="lm_head.weight is only in the file"):
        LOADERS[0](folder)


def test_an_absent_shard_is_named(sharded, copy_of):
    folder = copy_of(sharded)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UniF2aceCheckpointError, match="model-00002-of-00003.safetensors is absent"):
        LOADERS[0](folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 10_000]
)
def test_a_broken_index_is_told(sharded, copy_of, content):
    folder = copy_of(sharded)
    (folder / INDEX).write_text(content)
    with pytest.raises(UniF2aceCheckpointError, match=INDEX):
        LOADERS[0](folder)


def truncate_body(data):
    return data[: len(data) // 2]


def truncate_header(data):
    return data[:100]


def huge_header(data):
    return struct.pack("<Q", 2**40) + data[8:]


def huge_shape(data):
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["lm_head.weight"]["shape"] = [2**40, 2**20]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize("damage", [truncate_body, truncate_header, huge_header, huge_shape, lambda data: b""])
def test_damaged_weights_are_refused(whole, copy_of, damage):
    folder = copy_of(whole)
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    for load in LOADERS:
        with pytest.raises(OSError, match="model.safetensors is broken"):
            load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(whole, copy_of, value):
    folder = copy_of(whole)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in LOADERS:
        with pytest.raises(UniF2aceCheckpointError, match="lm_head.weight holds values"):
            load(folder)
    assert not LOADERS[0](folder, check_finite=False).lm_head.weight.isfinite().all()


def test_a_pipeline_never_draws_with_weights_that_nobody_trained(whole, copy_of):
    folder = copy_of(whole)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match="lm_head.bias"):
        UniF2acePipeline.from_pretrained(folder)


def test_pickles_are_never_read(whole, copy_of):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    folder = copy_of(whole)
    marker = folder.parent / "harm"
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Harm()}, folder / "pytorch_model.bin")
    for load in LOADERS:
        with pytest.raises(OSError):
            load(folder)
    with pytest.raises(ValueError, match="use_safetensors=False is not supported"):
        UniF2aceForConditionalGeneration.from_pretrained(folder, use_safetensors=False)
    assert not marker.exists()


def test_parts_are_checked_too(whole, tmp_path):
    model = UniF2aceForConditionalGeneration.from_pretrained(whole)
    model.model.vq_model.save_pretrained(tmp_path / "vq")
    file = tmp_path / "vq" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UniF2aceCheckpointError, match="is broken"):
        UniF2aceVQModel.from_pretrained(tmp_path / "vq")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1), bit=st.integers(0, 7))
def test_any_flipped_bit_of_the_header_is_harmless(whole, tmp_path_factory, position, bit):
    """Refused with a message, or the same names: never a crash and never a tensor of another size."""
    data = bytearray((whole / "model.safetensors").read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    place = int(position * (8 + length - 1))
    data[place] ^= 1 << bit
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "model.safetensors").write_bytes(data)
    with no_longer_than(20):
        try:
            weight_files(folder)
        except UniF2aceCheckpointError as error:
            assert "is broken" in str(error)
    shutil.rmtree(folder)


# --- configurations --------------------------------------------------------------------------------------------------

TINY = get_preset("tiny").to_dict()
NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([2**31, 2**63, 10**30, -(2**63)]), st.floats(allow_nan=True), st.none()
)
VALUES = st.one_of(
    NUMBERS,
    st.booleans(),
    st.text(max_size=8),
    st.lists(NUMBERS, max_size=4),
    st.dictionaries(st.text(max_size=4), NUMBERS, max_size=2),
)
# the library's own fields (dtype, architectures, ...) are the library's to check
LIBRARY = set(PreTrainedConfig().to_dict())
FIELDS = st.sampled_from(
    [(name,) for name in TINY if name not in LIBRARY and not isinstance(TINY[name], dict)]
    + [(part, name) for part in TINY if isinstance(TINY[part], dict) for name in TINY[part] if name not in LIBRARY]
)


@settings(max_examples=150, deadline=None)
@given(field=FIELDS, value=VALUES)
def test_a_configuration_is_refused_or_can_be_built(field, value):
    config = json.loads(json.dumps(TINY))
    place = config
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    with no_longer_than(60):
        try:
            built = UniF2aceConfig(**config)
        except REFUSALS as error:
            assert str(error)
            return
        assert built.num_image_tokens >= 0  # it is finite, and no loop makes it


@pytest.mark.parametrize(
    "change",
    [
        {"text_config": {"num_hidden_layers": 10**9}},
        {"text_config": {"hidden_size": 2**40}},
        {"text_config": {"num_routed_experts": 10**9}},
        {"text_config": {"num_attention_heads": 0}},
        {"vq_config": {"num_bits": 10**9}},
        {"vq_config": {"resolution": 2**30}},
        {"vq_config": {"encoder_blocks": [10**9, 1, 1]}},
        {"vq_config": {"norm_num_groups": 0}},
        {"face_config": {"stage_blocks": [10**9, 1]}},
        {"vision_config": {"num_hidden_layers": 10**9}},
        {"vision_config": {"image_size": 10**9}},
        {"resampler_depth": 10**9},
        {"resampler_num_heads": 0},
    ],
)
def test_sizes_that_no_machine_has_are_refused_before_anything_is_built(whole, copy_of, change):
    folder = copy_of(whole)
    config = json.loads((folder / "config.json").read_text())
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with no_longer_than(30), pytest.raises(REFUSALS, match="expected"):
        LOADERS[0](folder)


def test_what_a_run_kept_for_itself_is_made_again_if_it_is_damaged(tmp_path):
    npz, codes = tmp_path / "kept.npz", tmp_path / "prior.safetensors"
    np.savez(npz, pictures=np.arange(99), codes=np.arange(4))
    save_file({"codes": torch.arange(4)}, codes)
    assert _kept(npz)[1].tolist() == _kept_codes(codes).tolist() == [0, 1, 2, 3]
    assert _kept_codes(tmp_path / "absent") is None
    flipped = bytearray(npz.read_bytes())
    flipped[300] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    assert _kept(tmp_path / "flipped.npz") is None
    for file, read in ((npz, _kept), (codes, _kept_codes)):
        whole = file.read_bytes()
        for content in (whole[: len(whole) // 2], whole[:-1], b"", b"text", b"[" * 9999):
            file.write_bytes(content)
            assert read(file) is None


@pytest.mark.parametrize("content", [b"", b'{"do_sample": true, ', b"[]", b"[" * 100_000, b"\xff\xfe"])
def test_every_broken_file_of_a_checkpoint_is_named(whole, copy_of, content):
    names = [path.relative_to(whole) for path in whole.rglob("*.json") if path.name != "config.json"]
    assert {"tokenizer.json", "generation_config.json", "processor_config.json"} <= {name.name for name in names}
    for name in names:
        folder = copy_of(whole)
        (folder / name).write_bytes(content)
        # transformers takes a broken generation config for none and samples with other numbers
        with pytest.raises(OSError, match=rf"{name.name} is broken, expected a JSON object"):
            UniF2acePipeline.from_pretrained(folder)
        (folder / name).write_bytes((whole / name).read_bytes())


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model_type": 3}'])
def test_a_broken_configuration_is_told_in_a_sentence(whole, copy_of, content):
    folder = copy_of(whole)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(OSError, match="config.json|holds a model of type"):
        UniF2acePipeline.from_pretrained(folder)
