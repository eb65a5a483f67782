"""
One input, one result, whichever door it comes through: the cells of the table in docs/doors.md, which is checked too.
"""

import base64
import io
import json
import re
import shutil
import threading
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tiny_checkpoint import save_tiny_checkpoint
from transformers import pipeline as transformers_pipeline

from unif2ace import UniF2aceForConditionalGeneration, UniF2acePipeline, UniF2aceScheduler, read_provenance
from unif2ace.cli import main
from unif2ace.modeling_unif2ace.sampling_unif2ace import ImageSampling
from unif2ace.pipelines.understanding_unif2ace import _Draw
from unif2ace.training.reward import GenerationRewardTrainer, Prompt


REMOTE = {"trust_remote_code": True}
DOORS = ("pipeline", "generate", "any-to-any", "server", "command")
PROMPT, SEED = "a man with a hat and a beard", 7
HOSTILE = "a <|mask|> man <|eoi|>"
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "doors.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose sampling numbers are not the defaults, and stand in its generation config alone."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("doors") / "checkpoint")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "scheduler").rmdir()
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"image_temperature": 0.6, "image_confidence_temperature": 4.0, "image_num_inference_steps": 3}
    config |= {"image_guidance_scale": 2.5, "image_masking_schedule": "linear"}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = UniF2acePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def serving(pipe):
    """Sends a body to an address of the service and returns the status and the answer."""
    pytest.importorskip("fastapi", reason="the service needs the extra `serve`")
    from fastapi.testclient import TestClient

    from unif2ace.pipelines.serving.app import create_app

    with TestClient(create_app(pipe, "tiny"), raise_server_exceptions=False) as client:

        def send(path, body):
            answer = client.post(path, json=body)
            return answer.status_code, answer.json()

        yield send


@pytest.fixture(scope="module")
def service(pipe):
    with serving(pipe) as send:
        yield send


@pytest.fixture(scope="module")
def faces(folder):
    return transformers_pipeline("face-any-to-any", model=str(folder))


@pytest.fixture
def draw(pipe, folder, faces, service, tmp_path, capsys):
    """`draw(door, prompt)`: the picture that a door makes of a prompt, with nothing but a seed."""

    def of_codes(codes):
        return pipe.decode_latents(codes, "pil", watermark=False)[0]

    def draw(door, prompt=PROMPT, seed=SEED):
        generator = torch.Generator().manual_seed(seed)
        if door == "pipeline":
            return pipe(prompt, generator=generator).images[0]
        if door == "generate":
            inputs = pipe.processor(text=prompt, generation_mode="image", return_tensors="pt")
            return of_codes(pipe.transformer.generate(**inputs, generation_mode="image", generator=generator))
        if door == "any-to-any":
            made = faces(text=prompt, generation_mode="image", generate_kwargs={"generator": generator})
            return made[0]["generated_image"]
        if door == "server":
            status, answer = service("/v1/images/generations", {"prompt": prompt, "seed": seed})
            if status != 200:
                raise ValueError(answer["error"]["message"])
            return Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
        file = tmp_path / "face.png"
        code = main(["generate", prompt, "--seed", str(seed), "--model", str(folder), "-o", str(file)])
        if code:
            raise ValueError(capsys.readouterr().err)
        return Image.open(file)

    return draw


@pytest.fixture(scope="module")
def unmarked(pipe):
    return pipe(PROMPT, generator=torch.Generator().manual_seed(SEED), watermark=False).images[0].tobytes()


@pytest.fixture(scope="module")
def marked(pipe):
    return pipe(PROMPT, generator=torch.Generator().manual_seed(SEED)).images[0].tobytes()


# Making pictures


@pytest.mark.parametrize("door", DOORS)
def test_sampling_numbers_and_seed(draw, door, marked, unmarked):
    """The checkpoint's own numbers and the seed decide the picture, at every door the same one."""
    assert draw(door).convert("RGB").tobytes() in (marked, unmarked)
    assert draw(door, seed=SEED + 1).convert("RGB").tobytes() not in (marked, unmarked)


@pytest.mark.parametrize("door", ["pipeline", "generate", "any-to-any", "server"])
@pytest.mark.parametrize("sampling", ["showo", "ancestral", "entropy_bounded"])
def test_every_sampler_draws_the_same(folder, tmp_path, draw, pipe, faces, door, sampling, monkeypatch):
    model = pipe.transformer
    for config in (model.generation_config, faces.model.generation_config):
        monkeypatch.setattr(config, "image_sampling", sampling, raising=False)
    monkeypatch.setattr(pipe, "scheduler", UniF2aceScheduler.from_generation_config(model.generation_config))
    generator = torch.Generator().manual_seed(SEED)
    expected = [
        pipe(PROMPT, generator=generator.manual_seed(SEED), watermark=watermark).images[0].tobytes()
        for watermark in (True, False)
    ]
    assert draw(door).convert("RGB").tobytes() in expected


def test_completed_prompts(pipe, folder, service, tmp_path, monkeypatch, capsys):
    """One seed gives one completed text and one picture at every door, and that text the same picture again."""
    with pytest.raises(ValueError, match="has not learnt"):
        pipe(PROMPT, complete_prompt=True)
    assert pipe(PROMPT).completed_prompts is None  # off where the checkpoint does not say so
    assert service("/v1/images/generations", {"prompt": PROMPT, "complete_prompt": True})[0] == 400
    config = json.loads((folder / "generation_config.json").read_text())
    learnt = tmp_path / "learnt"
    shutil.copytree(folder, learnt)
    (learnt / "generation_config.json").write_text(json.dumps(config | {"complete_prompt": True}))
    other = UniF2acePipeline.from_pretrained(learnt)
    assert other.transformer.generation_config.complete_prompt is True
    monkeypatch.setattr(pipe.transformer.generation_config, "complete_prompt", True, raising=False)
    words = iter(f"A {age} man with a hat." for age in ("young", "old", "tall", "big") * 9)
    said = {}

    def complete(self, prompt, generator):  # an untrained model's own words are no prompt: see the next test
        return said.setdefault((prompt, generator.initial_seed()), next(words))

    monkeypatch.setattr(UniF2acePipeline, "complete", complete)
    seeds = [torch.Generator().manual_seed(SEED + number) for number in range(2)]
    output = pipe(PROMPT, generator=seeds, num_images_per_prompt=2)
    text, second = output.completed_prompts
    assert text != second and [read_provenance(image).completed_prompt for image in output.images] == [text, second]
    alone = pipe(PROMPT, generator=torch.Generator().manual_seed(SEED))
    assert alone.completed_prompts == [text] and alone.images[0].tobytes() == output.images[0].tobytes()
    again = pipe(text, generator=torch.Generator().manual_seed(SEED), complete_prompt=False)
    assert again.images[0].tobytes() == alone.images[0].tobytes() and again.completed_prompts is None
    assert read_provenance(again.images[0]).completed_prompt is None

    status, answer = service("/v1/images/generations", {"prompt": PROMPT, "seed": SEED, "n": 2})
    assert status == 200 and [item["revised_prompt"] for item in answer["data"]] == [text, second]
    picture = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert picture.tobytes() == alone.images[0].tobytes() and read_provenance(picture).completed_prompt == text
    file = tmp_path / "face.png"
    assert main(["generate", PROMPT, "--seed", str(SEED), "--model", str(learnt), "-o", str(file)]) == 0
    assert text in capsys.readouterr().out
    assert read_provenance(Image.open(file)).completed_prompt == text
    assert Image.open(file).tobytes() == alone.images[0].tobytes()
    off = ["--no-complete-prompt", "--seed", str(SEED), "--model", str(learnt), "-o", str(file)]
    assert main(["generate", PROMPT, *off]) == 0 and read_provenance(Image.open(file)).completed_prompt is None

    monkeypatch.setattr(pipe.transformer.generation_config, "complete_prompt_below", 2, raising=False)
    assert pipe(PROMPT).completed_prompts is None  # full already
    monkeypatch.setattr(pipe.transformer.generation_config, "complete_prompt_below", 99)
    known = pipe(text, generator=torch.Generator().manual_seed(SEED), complete_prompt=False).codes
    assert pipe(PROMPT, latents=known).completed_prompts is None  # of a picture that is there


def test_words_are_drawn_by_their_own_generator(pipe, monkeypatch):
    monkeypatch.setattr(pipe.transformer.generation_config, "complete_prompt", False, raising=False)
    monkeypatch.setattr(pipe, "_is_prompt", lambda text: True)

    def complete(prompt, *seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe.complete(prompt, generators if len(seeds) > 1 else generators[0])

    torch.manual_seed(0)
    before = torch.get_rng_state()
    several = complete([PROMPT, PROMPT, "a hat"], 1, 2, 1)
    assert torch.equal(torch.get_rng_state(), before) and len(set(several)) == 3
    assert complete(PROMPT, 1) == several[0] and complete(PROMPT, 2) == several[1]
    scores = torch.log(torch.tensor([[0.7, 0.2, 0.1, 5.0]]))  # the last one is no word
    draw = _Draw(torch.Generator().manual_seed(0), 3)
    counts = torch.bincount(torch.cat([draw(None, scores).argmax(-1) for _ in range(4000)]), minlength=4) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.7, 0.2, 0.1, 0.0]), atol=0.03, rtol=0)
    monkeypatch.undo()
    monkeypatch.setattr(pipe.transformer.generation_config, "complete_prompt", False, raising=False)
    monkeypatch.setattr(pipe, "_converse", lambda *arguments: [" "])
    assert pipe.complete(PROMPT) == PROMPT  # nothing came of it


@pytest.mark.parametrize("sampling", ["maskgit", "showo", "ancestral"])
def test_rollouts_of_reward_training_are_the_pipeline_s_pictures(pipe, sampling):
    trainer = object.__new__(GenerationRewardTrainer)  # its rollout alone; the rest is for the update that follows
    trainer.pipe = pipe
    trainer.args = Namespace(sampling=sampling, num_inference_steps=3, guidance_scale=2.5, group_size=2)
    rollouts = trainer.rollout([Prompt(PROMPT), Prompt("a woman")], torch.Generator().manual_seed(SEED))
    same = UniF2acePipeline(pipe.transformer, UniF2aceScheduler(sampling=sampling), pipe.processor)
    same.set_progress_bar_config(disable=True)
    expected = same(
        [PROMPT, "a woman"],
        num_images_per_prompt=2,
        num_inference_steps=3,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    )
    assert torch.equal(rollouts.states[-1], expected.codes)


@pytest.mark.parametrize("door", DOORS)
def test_marks(draw, door, marked, unmarked):
    """Pictures are marked; the codes that `generate` gives are not pictures yet."""
    picture = draw(door)
    if door == "generate":
        assert picture.convert("RGB").tobytes() == unmarked
        return
    assert picture.convert("RGB").tobytes() == marked
    provenance = read_provenance(picture)
    assert provenance.seed == SEED and provenance.checkpoint == "checkpoint"


def test_only_a_seed_that_makes_the_picture_again_is_noted(faces):
    seeded = {"generator": torch.Generator().manual_seed(1)}
    made = faces(text=PROMPT, generation_mode="image", generate_kwargs=seeded)
    assert read_provenance(made[0]["generated_image"]).seed == 1
    used = torch.Generator().manual_seed(1)
    torch.rand(1, generator=used)
    again = faces(text=PROMPT, generation_mode="image", generate_kwargs={"generator": used})
    assert read_provenance(again[0]["generated_image"]).seed is None  # that seed would not make this picture


@pytest.mark.parametrize("door", DOORS)
def test_control_tokens_stay_text(draw, pipe, door):
    expected = pipe(HOSTILE, generator=torch.Generator().manual_seed(SEED), watermark=False).images[0].tobytes()
    marked = pipe(HOSTILE, generator=torch.Generator().manual_seed(SEED)).images[0].tobytes()
    assert draw(door, HOSTILE).convert("RGB").tobytes() in (expected, marked)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("prompt", "message"), [("very " * 200, "tokens, the limit is 22"), ("  ", "")])
def test_errors_and_truncation(draw, door, prompt, message):
    """Nothing is cut in silence: a text that is too long is refused in one sentence, and so is an empty one."""
    with pytest.raises(ValueError, match=message):
        draw(door, prompt)


WRONG_NUMBERS = [
    ({"num_inference_steps": 0}, ValueError, "num_inference_steps is 0, expected at least 1"),
    ({"num_inference_steps": 2.5}, TypeError, "num_inference_steps is 2.5, expected a whole number"),
    ({"guidance_scale": -1.0}, ValueError, "guidance_scale is -1.0, expected a finite number of at least 0"),
    ({"guidance_scale": "4"}, TypeError, "guidance_scale is '4', expected a number"),
    ({"guidance_interval": (0.5, 0.2)}, ValueError, "guidance_interval is"),
    ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt is 0, expected at least 1"),
    ({"generator": 3}, TypeError, r"generator is 3, .*torch.Generator\(\).manual_seed\(3\)"),
    ({"generator": [torch.Generator()] * 2}, ValueError, "2 generators for 1 images; give one, or one per image"),
]


@pytest.mark.parametrize("sampling", ["maskgit", "showo"])
@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_NUMBERS)
def test_wrong_numbers_are_refused_with_the_same_words(pipe, faces, arguments, error, message, sampling):
    inputs = pipe.processor(text=PROMPT, generation_mode="image", return_tensors="pt")
    same = UniF2acePipeline(pipe.transformer, UniF2aceScheduler(sampling=sampling), pipe.processor)
    for door in (
        lambda: same(PROMPT, **arguments),
        lambda: pipe.transformer.generate(**inputs, generation_mode="image", sampling=sampling, **arguments),
        lambda: faces(text=PROMPT, generation_mode="image", generate_kwargs={"num_inference_steps": 2, **arguments}),
    ):
        with pytest.raises(error, match=message):
            door()


def test_numbers_of_any_integer_and_real_type_are_taken(pipe):
    inputs = pipe.processor(text=PROMPT, generation_mode="image", return_tensors="pt")
    typed = {"num_inference_steps": np.int64(3), "guidance_scale": np.float32(2.5)}
    plain = {"num_inference_steps": 3, "guidance_scale": 2.5}
    codes = [
        pipe.transformer.generate(
            **inputs, generation_mode="image", generator=torch.Generator().manual_seed(SEED), **numbers
        )
        for numbers in (typed, plain)
    ]
    drawn = pipe(PROMPT, generator=torch.Generator().manual_seed(SEED), output_type="latent", **typed).codes
    assert torch.equal(codes[0], codes[1]) and torch.equal(drawn, codes[0])


def test_negative_prompts_are_as_many_or_one(pipe):
    inputs = pipe.processor(text=[PROMPT] * 3, generation_mode="image", return_tensors="pt")
    negative = pipe.processor(text=["a hat"] * 2, generation_mode="image", return_tensors="pt")["input_ids"]
    with pytest.raises(ValueError, match="2 negative prompts for 3 prompts; give as many, or one"):
        pipe.transformer.generate(**inputs, generation_mode="image", negative_input_ids=negative)
    with pytest.raises(ValueError, match="2 negative prompts for 3 prompts; give as many, or one"):
        pipe([PROMPT] * 3, negative_prompt=["a hat"] * 2)


# Words about pictures


@pytest.fixture(scope="module")
def face(pipe):
    return pipe(PROMPT, generator=torch.Generator().manual_seed(3)).images[0]


def data_url(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def answer_at(door, question, face, pipe, folder, faces, service, tmp_path, capsys):
    """What a door answers about a face."""
    if door == "generate":
        chat = [{"role": "user", "content": [{"type": "image", "image": face}, {"type": "text", "text": question}]}]
        inputs = pipe.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        output = pipe.transformer.generate(**inputs, max_new_tokens=6, do_sample=False)
        return pipe.processor.post_process_image_text_to_text(output[:, inputs["input_ids"].shape[1] :])[0]
    elif door == "any-to-any":
        options = {"max_new_tokens": 6, "return_full_text": False, "generate_kwargs": {"do_sample": False}}
        return faces(images=face, text=question, **options)[0]["generated_text"].strip()
    elif door == "server":
        parts = [{"type": "image_url", "image_url": {"url": data_url(face)}}, {"type": "text", "text": question}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 6}
        return service("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
    face.save(tmp_path / "face.png")
    command = ["ask", str(tmp_path / "face.png"), question, "--max-new-tokens", "6", "--model", str(folder)]
    assert main(command) == 0
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("door", ["generate", "any-to-any", "server", "command"])
def test_answers(pipe, folder, faces, service, face, tmp_path, capsys, door):
    question = "Is this <|mask|> or <|eoi|>?"
    found = answer_at(door, question, face, pipe, folder, faces, service, tmp_path, capsys)
    assert found == pipe.answer(face, question, max_new_tokens=6)


def test_alignment(tmp_path, face, capsys, monkeypatch):
    """A checkpoint whose face encoder wants faces cut out by their landmarks: each door cuts them out once."""
    folder, cut = save_tiny_checkpoint(tmp_path / "aligned", alignment="five_points"), []

    def turn(image, size):  # instead of a detector's landmarks, which a picture of noise does not have
        cut.append(image.size)
        return image.rotate(180).resize((size, size))

    monkeypatch.setattr("unif2ace.modeling_unif2ace.image_processing_unif2ace.align_largest_face", turn)
    pipe = UniF2acePipeline.from_pretrained(folder)
    doors = transformers_pipeline("face-any-to-any", model=str(folder))
    expected = pipe.answer(face, "What is on his head?", max_new_tokens=6)
    assert cut == [face.size]
    with serving(pipe) as send:
        for door in ("generate", "any-to-any", "server", "command"):
            cut.clear()
            found = answer_at(door, "What is on his head?", face, pipe, folder, doors, send, tmp_path, capsys)
            assert found == expected and cut.count(face.size) == 1, door


# Changing pictures


@pytest.mark.parametrize("door", ["server", "command"])
@pytest.mark.parametrize("kind", ["mask", "sentence"])
def test_edits(pipe, folder, service, face, tmp_path, door, kind):
    """The picture that the pipeline makes, by a mask or by the difference of two sentences."""
    generator, mask = torch.Generator().manual_seed(SEED), Image.new("L", face.size)
    mask.paste(255, (0, 0, face.width, face.height // 2))
    if kind == "mask":
        expected = pipe.inpaint(PROMPT, face, mask, generator=generator).images[0]
    else:
        expected = pipe.edit(PROMPT, face, "a man", 0.5, generator=generator).images[0]
    assert expected.tobytes() != face.tobytes()
    if door == "server":
        body = {"prompt": PROMPT, "seed": SEED, "images": [{"image_url": data_url(face)}]}
        if kind == "mask":
            clear = Image.new("RGBA", face.size, "black")
            clear.putalpha(mask.point(lambda level: 255 - level))
            body["mask"] = {"image_url": data_url(clear)}
        else:
            body |= {"source_prompt": "a man", "strength": 0.5}
        status, answer = service("/v1/images/edits", body)
        assert status == 200, answer
        found = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    else:
        face.save(tmp_path / "face.png")
        mask.save(tmp_path / "mask.png")
        command = ["edit", str(tmp_path / "face.png"), PROMPT, "--seed", str(SEED), "--model", str(folder)]
        command += ["--mask", str(tmp_path / "mask.png")] if kind == "mask" else ["--source", "a man"]
        command += [] if kind == "mask" else ["--strength", "0.5"]
        assert main([*command, "-o", str(tmp_path / "edited.png")]) == 0
        found = Image.open(tmp_path / "edited.png")
    assert found.convert("RGB").tobytes() == expected.tobytes()
    assert read_provenance(found).seed == SEED


# At the same time


def test_nothing_that_a_call_does_stays(pipe):
    """Pictures and chats from four threads leave the model as it was, and every picture is the one made alone."""
    seeds = range(50)
    alone = {seed: pipe(PROMPT, generator=torch.Generator().manual_seed(seed)).images[0].tobytes() for seed in seeds}
    face = pipe(PROMPT, generator=torch.Generator().manual_seed(0)).images[0]
    answer = pipe.describe(face, max_new_tokens=5)
    config = pipe.transformer.config.to_json_string(use_diff=False)
    left, wrong, lock = list(seeds), [], threading.Lock()

    def work():
        while True:
            with lock:
                if not left:
                    return
                seed = left.pop()
            if seed % 2:
                inputs = pipe.processor(text=PROMPT, generation_mode="image", return_tensors="pt")
                codes = pipe.transformer.generate(
                    **inputs, generation_mode="image", generator=torch.Generator().manual_seed(seed)
                )
                same = pipe.decode_latents(codes, "pil", seeds=[seed])[0].tobytes()
                good = same == alone[seed]
            else:
                good = pipe.describe(face, max_new_tokens=5) == answer
            if not good:
                wrong.append(seed)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong and not left
    assert pipe.transformer.config.to_json_string(use_diff=False) == config
    for seed in (0, 1, 49):
        assert pipe(PROMPT, generator=torch.Generator().manual_seed(seed)).images[0].tobytes() == alone[seed]


# The table


def test_the_table_names_tests_that_are_there():
    text, own = DOCUMENT.read_text(encoding="utf-8"), Path(__file__).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    header = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert header[1:-1] == ["pipeline", "`generate`", "transformers' `pipeline`", "server", "command line", "trainer"]
    for row in rows[1:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == len(header) and all(cells)
        for name in re.findall(r"`(test_\w+\.py)?(?:::)?(test_\w+)`", cells[-1]):
            place = own if not name[0] else (Path(__file__).parent / name[0]).read_text(encoding="utf-8")
            assert f"def {name[1]}(" in place


@pytest.mark.parametrize("numbers", [{"temperature": 0.3, "top_k": 5}, {"sampling": "showo"}, {"temperature": 1.0}])
def test_a_scheduler_that_was_exchanged_is_saved(folder, tmp_path, numbers):
    """Saved and loaded, the pipeline draws the same picture, and so does the model alone."""
    pipe = UniF2acePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = UniF2aceScheduler.from_config(pipe.scheduler.config, **numbers)
    expected = pipe(PROMPT, generator=torch.Generator().manual_seed(SEED), output_type="latent").codes
    before = pipe.transformer.generation_config.to_dict()
    pipe.save_pretrained(tmp_path)
    assert pipe.transformer.generation_config.to_dict() == before  # saving changes nothing
    for loaded in (UniF2acePipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path, **REMOTE)):
        loaded.set_progress_bar_config(disable=True)
        again = loaded(PROMPT, generator=torch.Generator().manual_seed(SEED), output_type="latent").codes
        assert torch.equal(again, expected)
        assert {name: loaded.scheduler.config[name] for name in numbers} == numbers
    model = UniF2aceForConditionalGeneration.from_pretrained(tmp_path / "transformer")
    inputs = pipe.processor(text=PROMPT, generation_mode="image", return_tensors="pt")
    generator = torch.Generator().manual_seed(SEED)
    assert torch.equal(model.generate(**inputs, generation_mode="image", generator=generator), expected)


def test_the_generation_config_wins_over_a_saved_scheduler(folder, tmp_path, caplog):
    UniF2acePipeline.from_pretrained(folder).save_pretrained(tmp_path)
    UniF2aceScheduler(temperature=0.1).save_pretrained(tmp_path / "scheduler")
    with caplog.at_level("WARNING", "transformers"):
        assert UniF2acePipeline.from_pretrained(tmp_path).scheduler.config.temperature == 0.6
    assert "other numbers for drawing pictures" in caplog.text


def test_numbers_that_stand_in_the_scheduler_alone_reach_every_door(tmp_path):
    """As in folders of before: the model of the pipeline has them too."""
    folder = save_tiny_checkpoint(tmp_path / "old")
    config = json.loads((folder / "generation_config.json").read_text())
    assert not any(name.startswith("image_") for name in config)
    pipe = UniF2acePipeline.from_pretrained(folder)
    assert pipe.scheduler.config.temperature == pipe.transformer.generation_config.image_temperature == 0.9


def test_numbers_have_one_home(pipe, folder, tmp_path):
    """Whatever saves a model saves its numbers: the scheduler is made of them."""
    pipe.save_pretrained(tmp_path / "pipeline")
    pipe.transformer.save_pretrained(tmp_path / "model")
    for place in (tmp_path / "pipeline" / "transformer", tmp_path / "model"):
        config = json.loads((place / "generation_config.json").read_text())
        assert config["image_temperature"] == 0.6 and config["image_confidence_temperature"] == 4.0
    numbers = ImageSampling.from_generation_config(pipe.transformer.generation_config)
    assert pipe.scheduler.config["temperature"] == numbers.temperature == 0.6
    assert pipe.scheduler.config["masking_schedule"] == "linear"
