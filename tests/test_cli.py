"""The command `unif2ace`: what it prints and writes, and one line with exit code 2 for bad input."""

import io
import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import diffusers
import pytest
import transformers
from PIL import Image

from unif2ace import read_provenance
from unif2ace.cli import COMMANDS, main


BUNDLED = Path(str(resources.files("unif2ace.hub_card") / "unif2ace-faces"))


@pytest.fixture(autouse=True)
def quiet_libraries():
    """The command silences the libraries for its process, which here is that of the tests."""
    verbosity = transformers.logging.get_verbosity(), diffusers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity[0])
    diffusers.logging.set_verbosity(verbosity[1])
    for library in (transformers, diffusers):
        library.logging.enable_progress_bar()


@pytest.fixture
def run(checkpoint, capsys, tmp_path, monkeypatch):
    """Run a command on the tiny checkpoint in an empty folder: exit code, lines of stdout, lines of stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "")  # what --quiet sets does not outlive the test

    def run(*arguments, model=checkpoint, quiet=True):
        if arguments[0] in ("generate", "describe", "ask", "edit") and model is not None:
            arguments = (*arguments, "--model", model)
        if quiet and arguments[0] in COMMANDS:
            arguments = (*arguments, "--quiet")
        code = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return run


def test_generate_writes_and_reports(run):
    code, out, err = run("generate", "a man with a hat", "--steps", 3, "--seed", 7, "-o", "new/folder/face.png")
    assert (code, err) == (0, [])
    assert len(out) == 1 and re.fullmatch(r"new/folder/face\.png  seed 7  \d+\.\d s", out[0])
    with Image.open("new/folder/face.png") as picture:
        assert picture.size == (16, 16) and picture.format == "PNG"
    assert [path.name for path in Path("new/folder").iterdir()] == ["face.png"]  # no temporary file is left


def test_generate_is_repeatable_and_replaces(run):
    for name in ("a.png", "b.png", "a.png"):
        assert run("generate", "a man", "--steps", 3, "--seed", 7, "-o", name)[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_random_seed_is_printed_and_usable(run):
    _, out, _ = run("generate", "a man", "--steps", 2)
    seed = out[0].split()[2]
    run("generate", "a man", "--steps", 2, "--seed", seed, "-o", "again.png")
    assert Path("face.png").read_bytes() == Path("again.png").read_bytes()


def test_several_pictures(run):
    code, out, _ = run("generate", "a man", "--steps", 3, "--seed", 5, "--num-images", 3)
    assert code == 0 and [line.split("  ")[:2] for line in out] == [
        [f"face-{i}.png", f"seed {5 + i}"] for i in range(3)
    ]
    run("generate", "a man", "--steps", 3, "--seed", 6, "-o", "alone.png")
    assert Path("alone.png").read_bytes() == Path("face-1.png").read_bytes()


def test_grid(run):
    code, out, _ = run("generate", "a man", "--steps", 2, "--seed", 5, "--num-images", 5, "--grid", "-o", "grid.png")
    assert code == 0 and len(out) == 5 and all(line.startswith("grid.png") for line in out)
    with Image.open("grid.png") as grid:
        assert grid.size == (48, 32)


def test_options(run):
    arguments = ("--steps", 2, "--guidance", 1, "--negative", "a woman", "--device", "cpu", "-o", "face.jpg")
    assert run("generate", "a man", *arguments)[0] == 0
    with Image.open("face.jpg") as picture:
        assert picture.format == "JPEG"


def test_describe_and_ask(run):
    Image.new("RGB", (20, 20), "gray").save("face.png")
    for arguments in (
        ("describe", "face.png"),
        ("describe", "face.png", "--prompt", "Who is it?"),
        ("ask", "face.png", "Has he a hat?"),
        ("ask", "face.png", "Has he a hat?", "Has he a beard?"),
    ):
        code, _, err = run(*arguments, "--max-new-tokens", 4)
        assert (code, err) == (0, [])


def test_chat_remembers_what_was_said(checkpoint, capsys, tmp_path, monkeypatch):
    from unif2ace import UniF2acePipeline

    asked, chat = [], UniF2acePipeline.chat

    def listening(pipe, messages, **arguments):
        pieces = chat(pipe, messages, **arguments)
        asked.append([message["content"] for message in messages])
        return pieces

    monkeypatch.setattr(UniF2acePipeline, "chat", listening)
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 40), 50).save("face.png")

    def talk(*lines, options=()):
        asked.clear()
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        code = main(["chat", "face.png", "--model", checkpoint, "--max-new-tokens", "4", *options])
        return code, capsys.readouterr()

    code, output = talk("Has he a hat?", "", "Why?", "/new", "Has he a hat?", "/quit", "Is he old?")
    assert code == 0 and output.err.splitlines() == [f"loading {checkpoint}", "reading the picture"]
    assert asked == [["Has he a hat?"], ["Has he a hat?", asked[1][1], "Why?"], ["Has he a hat?"]]
    assert output.out.startswith(asked[1][1])
    assert talk(*["why " * 35] * 2)[0] == 0
    assert [len(messages) for messages in asked] == [1, 1]  # together too long: the older one is forgotten
    code, output = talk("Is he old?", "Why?", options=["--json"])
    answers = list(map(json.loads, output.out.splitlines()))
    assert code == 0 and [answer["question"] for answer in answers] == ["Is he old?", "Why?"]
    assert asked[1] == ["Is he old?", answers[0]["answer"], "Why?"]
    code, output = talk("why " * 300)
    assert code == 2 and "the model reads 256" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("paint",), "paint"),
        (("generate",), "text"),
        (("generate", ""), "text is empty"),
        (("generate", " \n"), "text is empty"),
        (("generate", "old " * 100), "the limit is 22"),
        (("generate", "a \udce4"), "not valid UTF-8"),
        (("generate", "a man", "--steps", "0"), "0 is too small, expected at least 1"),
        (("generate", "a man", "--steps", "two"), "'two' is not a whole number"),
        (("generate", "a man", "--seed", "-1"), "out of range"),
        (("generate", "a man", "--guidance", "nan"), "guidance_scale is nan"),
        (("generate", "a man", "-o", "face.txt"), "must end in one of .png"),
        (("generate", "a man", "-o", "folder.png"), "is a folder"),
        (("generate", "a man", "-o", "empty.png/face.png"), "empty.png"),
        (("generate", "a man", "--device", "nowhere"), "device 'nowhere' cannot be used"),
        (("describe", "no.png"), "no.png does not exist"),
        (("describe", "empty.png"), "not a picture"),
        (("describe", "cut.png"), "truncated"),
        (("describe", "text.png"), "not a picture"),
        (("describe", "folder.png"), "is a folder"),
        (("ask", "good.png", " "), "question is empty"),
        (("ask", "good.png", "why " * 300), "the model reads 256"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, tmp_path, arguments, message):
    Image.effect_noise((40, 40), 50).save("good.png")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:400])
    Path("empty.png").touch()
    Path("text.png").write_text("no picture")
    Path("folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments)
    assert code == 2 and out == []
    assert len(err) == 1 and message in err[0]
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 0
    output = capsys.readouterr()
    assert "unif2ace COMMAND --help" in output.out and not output.err


def test_a_mistyped_command_is_answered_with_the_nearest(capsys):
    assert main(["generte", "a man"]) == 2
    assert "did you mean generate?" in capsys.readouterr().err


def test_unknown_checkpoints(run, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    for model, message in (("no/such/folder", "no folder no/such/folder"), ("other", "expected 'unif2ace'")):
        code, out, err = run("generate", "a man", model=model)
        assert (code, out, len(err)) == (2, [], 1) and message in err[0]


def test_results_as_json_are_one_object_a_line(run):
    _, out, err = run("generate", "a man", "--steps", 2, "--seed", 5, "--num-images", 2, "--json", quiet=False)
    pictures = list(map(json.loads, out))
    assert [(picture["file"], picture["seed"]) for picture in pictures] == [("face-0.png", 5), ("face-1.png", 6)]
    assert err[-1] == "drawing 1 to 2 of 2"
    _, out, _ = run("ask", "face-0.png", "Has he a hat?", "Why?", "--json")
    assert [json.loads(line)["question"] for line in out] == ["Has he a hat?", "Why?"]
    _, out, _ = run("describe", "face-0.png", "--json")
    assert json.loads(out[0]).keys() == {"file", "description"}
    _, out, _ = run("edit", "face-0.png", "a man", "--region", "mouth", "--seed", 3, "--json")
    assert json.loads(out[0]) == {"file": "edited.png", "seed": 3}
    _, out, _ = run("data", "--json", "sources")  # before or after the command below
    assert out == run("data", "sources", "--json")[1] and all("terms" in json.loads(line) for line in out)


def test_an_enlarged_picture_says_so(run):
    assert run("generate", "a man", "--steps", 2, "--seed", 5, "-o", "small.png")[0] == 0
    assert run("generate", "a man", "--steps", 2, "--seed", 5, "--upscale", 4, "-o", "large.png")[0] == 0
    with Image.open("small.png") as small, Image.open("large.png") as large:
        assert large.size == (64, 64) and small.size == (16, 16)
        assert list(large.convert("RGB").resize((16, 16), Image.Resampling.BOX).getdata()) != []
        first, second = read_provenance(small), read_provenance(large)
    assert second.generator == f"{first.generator}, enlarged 4 times for viewing" and second.seed == 5
    code, _, err = run("generate", "a man", "--upscale", 0)
    assert code == 2 and "--upscale" in err[0]


def test_what_the_system_says_is_a_sentence(run, tmp_path):
    Path("file.png").write_bytes(b"no picture")
    Path("folder").mkdir()
    for arguments in (
        ("describe", "absent.png"),
        ("generate", "a man", "-o", "file.png/face.png"),
        ("generate", "--prompts", "absent.jsonl", "--out", "out"),
        ("generate", "--prompts", "file.jsonl/absent.jsonl", "--out", "out"),
        ("edit", "absent.png", "a man"),
        ("edit", "file.png", "a man", "--mask", "absent.png"),
        ("verify", "folder"),
        ("compare", "absent.json", "absent.json"),
        ("compare", "folder", "folder"),
        ("train", "--config", "absent.yaml"),
        ("train", "--config", "folder"),
        ("finetune", "--data", "absent", "--output", "out"),
        ("finetune", "--data", "file.png", "--output", "out"),
        ("publish", "absent", "--repo", "me/faces"),
        ("data", "inspect", "absent.jsonl"),
        ("data", "crop", "folder", "-o", "file.png", "--detector", "landmarks:absent.json"),
        ("convert", "face-encoder", "absent.onnx", "out", "--license", "apache-2.0"),
        ("convert", "showo", "./absent", "out"),
        ("evaluate", "absent/folder/here"),
        ("demo", "--adapter", "a=absent/folder/here"),
    ):
        code, out, err = run(*arguments, model=None)
        assert (code, out) == (2, []), (arguments, out, err)
        assert len(err) == 1 and "Errno" not in err[0] and "WinError" not in err[0], (arguments, err)


def test_completion_of_the_shell(tmp_path):
    """As bash asks for it: the line in COMP_LINE, the answers on file descriptor 8."""
    pytest.importorskip("argcomplete", reason="completion needs the extra `completion`")

    def complete(line):
        code = f"""
import os
os.dup2(os.open({str(tmp_path / "answers")!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 8)
from unif2ace.cli import main
main([])
"""
        asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
        subprocess.run([sys.executable, "-c", code], env=os.environ | asked, check=True, timeout=60)
        return [answer.strip() for answer in (tmp_path / "answers").read_text().split("\n")]

    assert complete("unif2ace gen") == ["generate"]
    assert complete("unif2ace generate --ups") == ["--upscale"]
    assert complete("unif2ace data in") == ["inspect"]
    assert "full" in complete("unif2ace finetune --preset ")


def test_debug_shows_where(run):
    with pytest.raises(ValueError, match="does not exist"):
        run("describe", "no.png", "--debug")


@pytest.mark.parametrize("command", [(), ("generate",), ("describe",), ("ask",), ("chat",)])
def test_help_has_an_example(run, command):
    code, out, err = run(*command, "--help", model=None)
    assert (code, err) == (0, []) and any(line.startswith("  unif2ace ") for line in out)


def test_as_a_process(checkpoint, tmp_path):
    """In a process of its own, from another folder: no message of a library on either stream."""
    model = [] if BUNDLED.is_dir() else ["--model", checkpoint]
    command = [
        sys.executable,
        "-m",
        "unif2ace.cli",
        "generate",
        "a smiling man",
        "--seed",
        "3",
        "--steps",
        "4",
        *model,
        "--quiet",
    ]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (made.returncode, made.stderr) == (0, "") and made.stdout.startswith("face.png  seed 3  ")
    command.remove("--quiet")
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert made.stderr.splitlines() == [f"loading {(model or ['', 'unif2ace-faces'])[1]}", "drawing 1 to 1 of 1"]
    assert (tmp_path / "face.png").is_file()
