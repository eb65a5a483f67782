"""The demo: what its buttons do, and the page in a real browser, at desktop and phone width."""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest
import torch
from huggingface_hub import RepoCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from requirements import declared, pinned

from unif2ace import UniF2acePipeline
from unif2ace.cli import main
from unif2ace.hub_card.make_space import SPACE, make_space
from unif2ace.hub_card.remote_code import PACKAGE
from unif2ace.pipelines import read_provenance


gradio = pytest.importorskip("gradio", reason="the demo needs the extra `demo`")

from unif2ace.pipelines.serving.demo_page import NO_ADAPTER, Demo, build_page  # noqa: E402  (needs gradio)


CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# where screenshots go, to be looked at; nowhere when not set
SCREENSHOTS = os.environ.get("UNIF2ACE_SCREENSHOTS")
PATIENCE = 300  # seconds for anything; a busy machine is slow


@pytest.fixture
def demo(pipe):
    return Demo(pipe)


def test_generate_shows_steps_and_leaves_no_file(demo):
    files, previews = [], 0
    for image, seed, state in demo.generate("a man", "", 4, 3.0, 7, False, True):
        assert seed == 7
        if isinstance(image, Image.Image):
            previews += 1
            assert state == f"Step {previews} of 4"
        elif isinstance(image, str):
            files.append(Path(image))
            with Image.open(image) as saved:
                assert read_provenance(saved).seed == 7
    assert previews == 4 and len(files) == 1 and not files[0].exists()
    silent = list(demo.generate("a man", "", 4, 3.0, 7, True, False))
    assert not any(isinstance(image, Image.Image) for image, _, _ in silent)


def test_a_visitor_who_leaves_stops_the_work(demo):
    states = demo.generate("a man", "", 1000, 3.0, 7, False, True)
    next(states), next(states)
    states.close()  # returns when the thread has ended
    assert demo.pipe._interrupt


def test_edit_repaints_what_was_painted(demo):
    picture = Image.new("RGBA", (64, 64), "blue")
    layer = Image.new("RGBA", (64, 64))
    layer.paste((255, 255, 255, 255), (0, 0, 32, 32))
    drawing = {"background": picture, "layers": [layer], "composite": None}
    for path, _ in demo.edit(drawing, "a man", 3, 2.0, 0, True):
        with Image.open(path) as edited:
            assert edited.size == (16, 16) and read_provenance(edited) is not None
    for wrong, message in (
        (None, "no picture"),
        ({"background": None, "layers": []}, "no picture"),
        ({"background": picture, "layers": [Image.new("RGBA", (64, 64))]}, "Nothing is painted"),
    ):
        with pytest.raises(gradio.Error, match=message):
            next(demo.edit(wrong, "a man", 3, 2.0, 0, False))


def test_describe_and_ask(demo, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "face.png")
    path = str(tmp_path / "face.png")
    assert demo.describe(path) == demo.pipe.describe(path)
    *_, (history, field) = demo.ask(path, " What is it? ", [])
    assert [item["role"] for item in history] == ["user", "assistant"] and field == ""
    assert history[0]["content"] == "What is it?"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for wrong, message in ((None, "no picture"), (str(tmp_path / "broken.png"), "the picture is not a picture")):
        with pytest.raises(gradio.Error, match=message):
            demo.describe(wrong)
    with pytest.raises(gradio.Error, match="question is empty"):
        next(demo.ask(path, " ", []))


def test_compare_without_adapters(demo):
    for left, right in demo.compare("a man", NO_ADAPTER, NO_ADAPTER, 3):
        assert Path(left).read_bytes() == Path(right).read_bytes()


def test_page_builds(pipe):
    page = build_page(pipe, adapters=[])
    assert page.analytics_enabled is False and page.delete_cache is not None


def test_wrong_arguments(capsys):
    assert main(["demo", "--adapter", "glasses"]) == 2
    assert "'glasses' is not NAME=FOLDER" in capsys.readouterr().err


# As a Space


def test_a_space_pins_what_the_package_needs():
    pins = [Requirement(line) for line in (SPACE / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    pinned_here = {requirement.name: str(requirement.specifier).removeprefix("==") for requirement in pins}
    pinned_here["gradio"] = RepoCard.load(SPACE / "README.md", ignore_metadata_errors=True).data.sdk_version
    needed = {requirement.name for requirement in declared()["base"]} | {"gradio", "peft"}
    lock = pinned("constraints-cpu.txt", "3.11")
    assert pinned_here == {name: lock[canonicalize_name(name)] for name in needed}
    text = (PACKAGE / "hub_card" / "space" / "README.md").read_text()
    assert len(re.search(r"short_description: (.*)", text)[1]) <= 60  # the Hub refuses more


@pytest.mark.slow
def test_a_space_runs_from_its_folder_alone(tmp_path):
    from gradio_client import Client, handle_file

    folder = make_space(tmp_path / "space")
    with pytest.raises(FileExistsError, match="--overwrite"):
        make_space(folder)
    Image.new("RGB", (64, 64), "tan").save(tmp_path / "face.png")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with serving([sys.executable, "app.py"], inherited, cwd=folder) as address:
        client = Client(address, verbose=False)
        assert client.predict(handle_file(tmp_path / "face.png"), api_name="/describe")
    # it ran the package that lies in the folder
    assert (folder / "unif2ace" / "pipelines" / "serving" / "__pycache__").is_dir()


# In a browser


@contextmanager
def serving(command, environment, **options):
    """A process that serves at a free port, `{port}` in its command; yields its address when it answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = environment | {"GRADIO_SERVER_PORT": str(port)}
    command = [part.replace("{port}", str(port)) for part in command]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, **options)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The demo of the bundled checkpoint with two (random) adapters, as the command starts it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: `make browser` installs what the browser tests need")
    pytest.importorskip("playwright", reason="Playwright is not installed: `make browser`")
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapters")
    pipe = UniF2acePipeline.from_pretrained()
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        pipe.transformer.add_adapter(config, name)
        pipe.save_lora_weights(folder / name, name)
    command = [sys.executable, "-m", "unif2ace.cli", "demo", "--port={port}"]
    command += [f"--adapter={name}={folder / name}" for name in ("one", "two")]
    with serving(command, os.environ | {"PYTHONPATH": str(PACKAGE.parent)}) as address:
        yield address


@pytest.fixture(scope="module")
def browser(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(browser, address, request):
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 640)
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.foreign = []
    page.on("request", lambda request: page.foreign.append(request.url) if is_foreign(request.url, address) else None)
    page.goto(address)
    page.wait_for_selector("#generate-button")
    yield page
    context.close()


def is_foreign(url, address):
    return not url.startswith((address, "data:", "blob:"))


def shoot(page, name):
    # nothing sticks out on the right
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SCREENSHOTS}/{page.viewport_size['width']}-{name}.png", full_page=True)


def wait_for_text(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)", arg=[selector, text]
    )


def side_of(page, selector):
    """Pixels of the picture shown at a place."""
    page.wait_for_function("s => document.querySelector(s + ' img')?.naturalWidth > 0", arg=selector)
    return page.evaluate("s => document.querySelector(s + ' img').naturalWidth", selector)


def content_of(page, selector):
    """The file of the picture shown at a place."""
    return page.request.get(page.evaluate("s => document.querySelector(s + ' img').src", selector)).body()


WATCH = """() => {
    const state = document.querySelector("#generate-state")
    window.seen = []
    const everything = {subtree: true, childList: true, characterData: true}
    new MutationObserver(() => seen.push(state.innerText)).observe(state, everything)
}"""

SENTENCE = "an old man with pale skin, gray hair and round glasses, in a green t-shirt, blue background"


@pytest.mark.slow
def test_a_visit(page, tmp_path):
    # a sentence becomes a face, step by step
    page.get_by_label("What the face looks like").first.fill(SENTENCE)
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("number input for Steps").first.fill("8")
    page.get_by_label("number input for Guidance").first.fill("5")
    page.get_by_label("A new seed each time").uncheck()
    page.get_by_label("Seed", exact=True).first.fill("7")
    page.evaluate(WATCH)
    page.click("#generate-button")
    wait_for_text(page, "#generate-state", "Done with seed 7")
    assert any("of 8" in state for state in page.evaluate("seen"))
    assert side_of(page, "#generated") == 64
    shoot(page, "generate")
    with page.expect_download() as download:
        page.locator("#generated").get_by_label(re.compile("download", re.IGNORECASE)).click()
    download.value.save_as(tmp_path / "face.png")
    with Image.open(tmp_path / "face.png") as picture:
        assert read_provenance(picture).seed == 7  # the page hands out what the package saved

    # the face, uploaded, becomes words
    page.get_by_role("tab", name="Describe", exact=True).click()
    page.locator("#face input[type=file]").set_input_files(tmp_path / "face.png")
    assert side_of(page, "#face") > 0
    page.click("#describe-button")
    page.wait_for_function("document.querySelector('#description textarea').value.length > 10")
    page.locator("#question textarea, #question input").first.fill("What is on the head?")
    page.click("#ask-button")
    page.wait_for_function("document.querySelector('#chat .bot.message')?.innerText.trim().length > 0")
    wait_for_text(page, "#chat", "What is on the head?")
    shoot(page, "describe")

    # painted places are drawn anew
    page.get_by_role("tab", name="Generate").click()
    page.click("#to-edit")
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(3000)  # the editor fits the picture in
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.35, box["y"] + box["height"] * 0.42)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.65, box["y"] + box["height"] * 0.42, steps=8)
    page.mouse.up()
    page.locator("#wish textarea, #wish input").first.fill("a man with sunglasses")
    page.click("#edit-button")
    wait_for_text(page, "#edit-state", "Done")
    assert side_of(page, "#edited") == 64
    shoot(page, "edit")

    # two adapters, side by side
    page.get_by_role("tab", name="Compare").click()
    for place, name in (("#first", "one"), ("#second", "two")):
        page.locator(f"{place} input").click()
        page.get_by_role("option", name=name, exact=True).click()
        page.get_by_role("option").first.wait_for(state="detached")
    page.click("#compare-button")
    assert side_of(page, "#left") == side_of(page, "#right") == 64
    assert content_of(page, "#left") != content_of(page, "#right")
    shoot(page, "compare")
    assert page.foreign == []  # the page fetches nothing from others


@pytest.mark.slow
def test_mistakes_are_said_in_words(page):
    page.get_by_role("tab", name="Describe", exact=True).click()
    page.click("#describe-button")
    page.get_by_text("There is no picture").first.wait_for()
    page.get_by_role("tab", name="Edit").click()
    page.click("#edit-button")
    page.get_by_text("There is no picture").first.wait_for()
