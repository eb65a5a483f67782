"""`unif2ace generate --prompts`: lists, resumption, bad lines, processes, interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from tiny_checkpoint import save_tiny_checkpoint

import unif2ace
from unif2ace.cli import main
from unif2ace.pipelines import read_provenance
from unif2ace.pipelines.seeds import seed_of
from unif2ace.pipelines.serving.batch_generation import read_manifest
from unif2ace.pipelines.serving.prompt_list import read_prompts


ITEMS = [
    {"id": "one", "prompt": "a man with a hat"},
    {"id": "two", "prompt": "a woman", "seed": 7, "steps": 3, "guidance": 2},
    {"id": "three", "prompt": "a man", "negative": "a hat"},
    {"id": 4, "prompt": "a woman with a hat"},
]


@pytest.fixture
def prompts(tmp_path):
    return write_list(tmp_path / "list.jsonl", ITEMS)


def write_list(path, items):
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))
    return path


@pytest.fixture
def generate(checkpoint, prompts, tmp_path, capsys):
    def generate(*options, prompts=prompts, out=tmp_path / "out"):
        arguments = ["generate", "--prompts", prompts, "--out", out, "--steps", 2, "--model", checkpoint, *options]
        code = main([*(str(argument) for argument in arguments), "--quiet"])
        output = capsys.readouterr()
        return code, output.out, output.err

    return generate


def pictures(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.suffix in (".png", ".jpg")}


def test_makes_every_picture_once(generate, tmp_path):
    out = tmp_path / "out"
    assert generate() == (0, f"{out}: 4 made, 0 there already, 0 bad\n", "")
    first = pictures(out)
    assert sorted(first) == ["4.png", "one.png", "three.png", "two.png"]
    manifest = read_manifest(out)
    assert manifest["one"]["seed"] == seed_of("one") and manifest["two"]["seed"] == 7
    assert manifest["two"]["steps"] == 3 and manifest["three"]["negative"] == "a hat"
    assert manifest["one"]["revision"].startswith("sha256:")
    with Image.open(out / "two.png") as picture:
        assert read_provenance(picture).seed == 7
    assert generate() == (0, f"{out}: 0 made, 4 there already, 0 bad\n", "")
    assert pictures(out) == first


def test_pictures_do_not_depend_on_how_they_are_made(generate, tmp_path):
    generate()
    generate("--batch-size", 1, out=tmp_path / "other")
    assert pictures(tmp_path / "other") == pictures(tmp_path / "out")


def test_lost_and_damaged_pictures_are_made_again(generate, tmp_path):
    generate()
    first = pictures(tmp_path / "out")
    (tmp_path / "out" / "one.png").unlink()
    (tmp_path / "out" / "two.png").write_bytes(b"half a pic")
    with (tmp_path / "out" / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"id": "three", "prom')  # a run was killed here
    assert "2 made, 2 there already" in generate()[1]
    assert pictures(tmp_path / "out") == first
    assert read_manifest(tmp_path / "out").keys() == {"one", "two", "three", "4"}


def test_other_settings_are_not_written_over(generate, tmp_path):
    generate()
    changed = write_list(tmp_path / "changed.jsonl", [{"id": "one", "prompt": "a woman"}])
    code, _, err = generate(prompts=changed)
    assert code == 2 and "one.png was made with other settings than line 1 asks for" in err
    assert "1 made" in generate("--overwrite", prompts=changed)[1]
    assert read_manifest(tmp_path / "out")["one"]["prompt"] == "a woman"


def test_somebody_else_s_files_are_not_written_over(generate, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "two.png").write_bytes(b"a picture of mine")
    code, _, err = generate()
    assert code == 2 and "two.png is none of this folder's pictures" in err and "--overwrite" in err
    assert pictures(tmp_path / "out") == {"two.png": b"a picture of mine"}
    assert "4 made" in generate("--overwrite")[1]
    assert pictures(tmp_path / "out")["two.png"].startswith(b"\x89PNG")


def test_a_killed_run_leaves_nothing_that_looks_foreign(generate, tmp_path):
    generate()
    first, out = pictures(tmp_path / "out"), tmp_path / "out"
    # killed after the manifest's line, before the picture had its place; and while another was written
    (out / "one.png").rename(out / ".unif2ace-part-7-one.png")
    (out / ".unif2ace-part-7-two.png").write_bytes(b"half")
    assert "1 made, 3 there already" in generate()[1]
    assert pictures(out) == first and not list(out.glob(".unif2ace-part-*"))


def test_another_checkpoint_does_not_mix_its_pictures_in(generate, tmp_path, monkeypatch):
    generate()
    other = save_tiny_checkpoint(tmp_path / "other-checkpoint", seed=1)
    code, _, err = generate("--model", other)
    assert code == 2 and "was made by another checkpoint" in err
    assert "4 made" in generate("--model", other, "--overwrite")[1]
    assert {entry["checkpoint"] for entry in read_manifest(tmp_path / "out").values()} == {"other-checkpoint"}


def test_lines_end_at_newlines_only(generate, tmp_path):
    odd = [{"id": "one", "prompt": "a man\u2028with a hat\u0085and a beard"}, {"id": "two", "prompt": "a\x0bman\x1c"}]
    prompts = tmp_path / "odd.jsonl"
    prompts.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in odd[:1]) + json.dumps(odd[1]))
    assert "2 made" in generate(prompts=prompts)[1]
    assert "0 made, 2 there already" in generate(prompts=prompts)[1]
    assert read_manifest(tmp_path / "out")["one"]["prompt"] == odd[0]["prompt"]


def test_bad_lines_are_named_and_skipped(generate, tmp_path):
    bad = [
        "{",
        "[]",
        {"id": "../up", "prompt": "a man"},
        {"id": "one", "prompt": "a man"},
        {"id": "a", "prompt": " "},
        {"id": "b", "prompt": "a man", "steps": 0},
        {"id": "c", "prompt": "a man", "guidance": "high"},
        {"id": "d", "prompt": "a man", "size": 3},
        {"id": "e", "prompt": "very " * 200},
    ]
    prompts = write_list(tmp_path / "bad.jsonl", [ITEMS[0], "", *bad])
    code, out, err = generate(prompts=prompts)
    assert code == 0 and "1 made, 0 there already, 9 bad" in out
    for number, message in (
        (3, "not JSON"),
        (4, "expected an object"),
        (5, "its id is '../up'"),
        (6, "is that of line 1"),
        (7, "its prompt is ' '"),
        (8, "its steps is 0"),
        (9, "its guidance is 'high'"),
        (10, "the field 'size'"),
        (11, "tokens, the limit is 22"),
    ):
        assert any(f"line {number}" in line and message in line for line in err.splitlines()), message
    code, _, err = generate("--max-bad", 3, prompts=prompts, out=tmp_path / "few")
    assert code == 2 and "8 bad items, 3 are allowed" in err and not (tmp_path / "few").exists()


def test_plain_text_lists(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa man\n\n  ein Mädchen \n\xff".encode("utf-8") + b"\n\xff\n")
    items, errors = read_prompts(path, 4, 2.0)
    assert [(item.id, item.prompt, item.seed) for item in items[:2]] == [
        ("000001", "a man", seed_of("000001")),
        ("000003", "ein Mädchen", seed_of("000003")),
    ]
    assert errors == ["line 5: it is not UTF-8"]


def test_wrong_arguments(generate, tmp_path, capsys, checkpoint):
    assert "--seed was given with --prompts" in generate("--seed", 3)[2]
    assert "expected a list of prompts in .jsonl or .txt" in generate(prompts=tmp_path / "list.csv")[2]
    assert generate(prompts=tmp_path / "absent.txt")[0] == 2
    (tmp_path / "empty.txt").touch()
    assert "is empty" in generate(prompts=tmp_path / "empty.txt")[2]
    assert main(["generate", "--model", checkpoint]) == 2
    assert "there is no text" in capsys.readouterr().err
    assert main(["generate", "--prompts", str(tmp_path / "list.jsonl")]) == 2
    assert "--prompts needs --out" in capsys.readouterr().err


def test_second_run_in_the_same_folder_is_refused(generate, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = generate()
    assert code == 2 and "another run writes to" in err


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_workers_make_the_same_pictures(generate, tmp_path, engine):
    if find_spec(engine if engine == "ray" else "os") is None:
        pytest.skip("ray is not installed")
    generate()
    code, out, err = generate("--workers", 2, "--batch-size", 1, "--engine", engine, out=tmp_path / "many")
    assert code == 0 and "4 made" in out, err
    assert pictures(tmp_path / "many") == pictures(tmp_path / "out")


@pytest.mark.slow
def test_a_killed_worker_is_told_and_nothing_is_lost(checkpoint, tmp_path):
    prompts = write_list(tmp_path / "list.jsonl", [{"id": str(i), "prompt": "a man"} for i in range(24)])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "unif2ace.cli", "generate", "--prompts", prompts, "--out", out, "--steps", "4"]
    command += ["--model", checkpoint, "--batch-size", "1", "--workers", "2", "--engine", "processes"]
    command = [str(part) for part in command]
    environment = {**os.environ, "PYTHONPATH": str(Path(unif2ace.__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    manifest = out / "manifest.jsonl"
    deadline = time.monotonic() + 600
    while not (manifest.is_file() and manifest.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2 and "a worker was ended from outside" in err
    made = len(pictures(out))
    assert 0 < made < 24
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=900)
    assert result.returncode == 0 and len(pictures(out)) == 24


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_interruption_and_resumption(checkpoint, tmp_path, workers):
    prompts = write_list(tmp_path / "list.jsonl", [{"id": str(i), "prompt": "a man"} for i in range(24)])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "unif2ace.cli", "generate", "--prompts", prompts, "--out", out, "--steps", "4"]
    command += ["--model", checkpoint, "--batch-size", "1", "--workers", str(workers), "--engine", "processes"]
    command = [str(part) for part in command]
    environment = {**os.environ, "PYTHONPATH": str(Path(unif2ace.__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True)
    manifest = out / "manifest.jsonl"
    deadline = time.monotonic() + 600
    while not (manifest.is_file() and manifest.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    stdout, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    made = int(stdout.split(": ")[1].split()[0])
    assert 0 < made < 24 and made == len(read_manifest(out)) == len(pictures(out))
    assert {path.name for path in out.iterdir()} == {*pictures(out), "manifest.jsonl", ".lock"}
    before = pictures(out)
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=900)
    assert result.returncode == 0 and f"{24 - made} made, {made} there already" in result.stdout
    assert before.items() <= pictures(out).items() and len(pictures(out)) == 24
