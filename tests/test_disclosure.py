"""What may leave the machine: places and secrets never do, at any depth; numbers and plain words do."""

import json
from pathlib import Path

import pytest

from unif2ace.training.disclosure import is_private, public, public_config, without_places


PRIVATE = [
    "/home/me/fsdp.json",
    "~/secrets/x",
    "C:\\Users\\me\\x",
    "D:/clients/acme",
    "\\\\server\\share",
    "../../clients/acme",
    "./acme/run",
    "..\\acme",
    "runs/acme/final",
    "faces:/data/acme (test)",
    "judge:runs/acme/final",
    "s3://bucket/acme",
    "https://store.example/acme.tar?X-Amz-Signature=abc",
    "hf_abcdefghijklmnopqrstuvwxyz",
    "sk-proj1234567890abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    "Bearer abc",
    "a9X2kq81Zpl0mmR3tt77vQwe55uiOp12",
    "-----BEGIN PRIVATE KEY-----",
]
PLAIN = [
    "adamw_torch",
    "cosine",
    "org/dino",
    "vision:facebook/dinov2-base",
    "UniF2aceForConditionalGeneration",
    "a man w/o a hat, 3/4 view",
    "5f4f2a000a24be6ccb816d90b6ff8abebf2a02ee11191b800dd885958002a176",
    r"(.*\.self_attn\.(q_proj|k_proj)|.*\.(fc1|fc2))",
    "skin_color_of_the_whole_face",
    "</s>",
    "2.13.0+cpu",
    "NVIDIA H100 80GB HBM3",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_private_texts_are_shortened_or_left_out(text):
    assert is_private(text)
    for kept in (public(text), public({"x": [text]}), public_config({"x": {"y": [text], "z": text}, text: 1})):
        shown = json.dumps(kept)
        for secret in ("acme", "/home", "Users", "share", "bucket", "abcdef", "AKIA", "Bearer", "Zpl0", "PRIVATE"):
            assert secret not in shown


@pytest.mark.parametrize("text", PLAIN)
def test_plain_texts_are_shown_as_they_are(text):
    assert not is_private(text) and public_config({"x": text}) == {"x": text}
    assert public(text) == text.replace("|", "/").replace("<", "‹")


def test_names_of_secrets_take_their_values_away():
    config = {
        "hub_token": "x",
        "token": 1,
        "access_token": "y",
        "api_key": "z",
        "eos_token": "</s>",
        "eos_token_id": 1,
    }
    config |= {"max_new_tokens": 4, "tokenizer_class": "X", "db_password": "w"}
    kept = {"eos_token": "</s>", "eos_token_id": 1, "max_new_tokens": 4, "tokenizer_class": "X"}
    assert public_config(config) == kept
    assert public({"hub_token": 3, "rows": 3}) == {"rows": 3}


def test_numbers_are_kept_and_what_breaks_a_table_is_not():
    assert public({"a": 1, "b": [0.5, True], "c": float("nan"), "d": object()}) == {"a": 1, "b": [0.5, True]}
    assert public("a\n| b `c`") == "a / b 'c'" and len(public("word " * 100)) == 200
    assert without_places("fairface:/home/me/fairface (validation)") == "fairface:… (validation)"


def test_configurations_of_the_bundled_checkpoint_keep_all_but_where_they_were_made():
    for path in Path(__file__).parents[1].glob("hub_card/unif2ace-faces/**/*.json"):
        config = json.loads(path.read_text())
        if path.name == "tokenizer.json":
            continue
        kept = json.dumps(public_config(config))
        assert "_name_or_path" not in kept and "runs/" not in kept
        assert set(config) - {"_name_or_path"} == set(public_config(config)), path
