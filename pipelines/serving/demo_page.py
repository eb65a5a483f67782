"""The web page of the demo, and of the Space: generate, describe and ask, edit by painting, compare adapters."""

import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch
from PIL import Image

from ...modeling_unif2ace.pictures_unif2ace import load_image
from ...modeling_unif2ace.provenance_unif2ace import save_image
from ..seeds import SEED_LIMIT, picture_seeds


if TYPE_CHECKING:
    from ..pipeline_unif2ace import UniF2acePipeline

TITLE = "UniF²ace: faces from words, words from faces"
INTRODUCTION = """\
# UniF²ace
One model, both directions: a face from a sentence, a sentence from a face. **{model}** has seen {what}.
"""
NOTICE = """\
**Faces that you upload** stay on this machine for at most {minutes} minutes and are then deleted; nothing is logged,
kept or used for training. Upload only pictures of people who agree. Descriptions are guesses about how somebody looks,
not facts about who they are.
"""
MARKS = "**Pictures made here** carry an invisible watermark and say “AI-generated” in their files."
HOW_TO_EDIT = (
    "Upload a face, or send one here from “Generate”. Paint over what is to change, and say what the face becomes."
)
EXAMPLES = (
    "a laughing young woman with fair skin, long red hair and blue eyes, in a green t-shirt, "
    "against a beige background",
    "a man with tan skin, a full beard and sunglasses, in a cap and a red t-shirt, against a blue background",
    "a laughing woman with curly red hair, big green eyes and hoop earrings, in a white shirt, pink background",
    "an old man with pale skin, a gray beard and a brown hat, in a blue suit, white background",
)
QUESTIONS = ("What is on the head?", "Which colour is the hair?", "Is there a beard?")
NO_ADAPTER = "none"
DELETE_AFTER = 300  # seconds
MAX_PIXELS = 16_000_000
CANVAS = 384
PICTURE = 356  # height of a picture's frame: 320 pixels and the label above

# Small pictures fill their frame, below its label. On a wide screen the examples stand under the words, beside the
# face; on a phone everything is one column, the face before the examples.
CSS = f"""
.gradio-container {{max-width: 1000px !important; margin: 0 auto !important}}
.picture .image-container {{box-sizing: border-box; padding-top: 36px}}
.picture img {{width: 100%; height: 100%; object-fit: contain; image-rendering: auto}}
.notice {{font-size: 0.85rem; opacity: 0.85}}
.editor {{min-height: {CANVAS + 60}px}}
.bench {{display: grid !important; grid-template-columns: 1fr 1fr; grid-template-rows: auto 1fr;
  grid-template-areas: "words face" "examples face"}}
.bench > * {{min-width: 0 !important}}
.words {{grid-area: words}} .face {{grid-area: face}} .examples {{grid-area: examples}}
@media (max-width: 640px) {{
  .app {{padding: 12px !important}}
  #chat {{height: 260px !important}}
  .tab-container button {{padding: 0 10px !important; font-size: 0.9rem}}
  .editor {{min-height: {CANVAS - 24}px}}
  .bench {{grid-template-columns: 1fr; grid-template-rows: auto; grid-template-areas: "words" "face" "examples"}}
}}
footer {{display: none !important}}
"""
# Fonts of the reader's own system: the page fetches nothing from third parties.
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


class Demo:
    """
    What the page's buttons do.

    Args:
        pipe ([`UniF2acePipeline`]): Used by one visitor at a time.
        adapters (`list[str]`, *optional*): Names of adapters that are loaded.
    """

    def __init__(self, pipe: "UniF2acePipeline", adapters: list[str] | None = None):
        self.pipe = pipe
        self.adapters = adapters or []
        if self.adapters:
            pipe.disable_lora()

    def generate(
        self,
        prompt: str,
        negative: str,
        steps: float,
        guidance: float,
        seed: float | None,
        is_random: bool,
        show: bool,
    ) -> Iterator[tuple[Any, float, str]]:
        """Pictures of the steps, if wanted, and the picture; the seed; what is happening."""
        seed = picture_seeds(None if is_random or seed is None else _seed(seed), 1)[0]
        generator = torch.Generator().manual_seed(seed)
        options = {"negative_prompt": negative or None, "guidance_scale": guidance, "num_inference_steps": int(steps)}
        yield gr.skip(), seed, "Starting…"
        for number, image in _with_previews(self.pipe, prompt, generator, options, show):
            if number is None:
                with _file(image, seed) as path:
                    yield path, seed, f"Done with seed {seed}: the same seed makes the same picture again."
            else:
                yield image, seed, f"Step {number} of {int(steps)}"

    def describe(self, path: str | None) -> str:
        """A description of the picture at a path."""
        return _answered(lambda: self.pipe.describe(_picture(path)))

    def ask(self, path: str | None, question: str, history: list[dict]) -> Iterator[tuple[list[dict], str]]:
        """The conversation with the answer growing at its end, and an empty field for the next question."""
        if not question.strip():
            raise gr.Error("The question is empty.", print_exception=False)
        history = [{"role": item["role"], "content": _words(item["content"])} for item in history]
        history = [*history, {"role": "user", "content": question.strip()}]
        yield history, ""
        answer = ""
        try:
            for piece in self.pipe.chat(history, image=_picture(path), stream=True):
                answer += piece
                yield [*history, {"role": "assistant", "content": answer}], ""
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        yield [*history, {"role": "assistant", "content": answer.strip() or "(no answer)"}], ""

    def edit(
        self, drawing: dict | None, prompt: str, steps: float, guidance: float, seed: float | None, keep: bool
    ) -> Iterator[tuple[str, str]]:
        """The picture with the painted places drawn anew."""
        if not drawing or drawing.get("background") is None:
            raise gr.Error("There is no picture: upload one, or send one here from “Generate”.", print_exception=False)
        picture = drawing["background"].convert("RGB")
        mask = Image.new("L", picture.size)
        for layer in drawing["layers"]:
            if layer is not None:
                mask.paste(255, mask=layer.getchannel("A").resize(picture.size).point(lambda alpha: 255 * (alpha > 0)))
        if mask.getextrema()[1] == 0:
            raise gr.Error("Nothing is painted: paint over what is to change.", print_exception=False)
        seed = _seed(seed or 0)
        # the canvas may be wider than the picture on it
        box = drawing["background"].getchannel("A").getbbox() if drawing["background"].mode == "RGBA" else None
        if box is not None:
            picture, mask = picture.crop(box), mask.crop(box)
        image = _answered(
            lambda: self.pipe.inpaint(
                prompt,
                picture,
                mask,
                keep_pixels=keep,
                guidance_scale=guidance,
                num_inference_steps=int(steps),
                generator=torch.Generator().manual_seed(seed),
            )
        ).images[0]
        with _file(image, seed) as path:
            yield path, "Done."

    def compare(self, prompt: str, first: str, second: str, seed: float | None) -> Iterator[tuple[str, str]]:
        """The same sentence and seed with either adapter."""
        seed = _seed(seed or 0)
        images = []
        try:
            for name in (first, second):
                if name == NO_ADAPTER:
                    self.pipe.disable_lora()
                else:
                    self.pipe.enable_lora()
                    self.pipe.set_adapters(name)
                images.append(
                    _answered(lambda: self.pipe(prompt, generator=torch.Generator().manual_seed(seed))).images[0]
                )
        finally:
            self.pipe.disable_lora()
        with _file(images[0], seed) as left, _file(images[1], seed) as right:
            yield left, right


def build_page(
    pipe: "UniF2acePipeline",
    model: str = "The bundled checkpoint",
    what: str = "painted faces only",
    adapters: list[str] | None = None,
    on_device: Callable[[Callable], Callable] = lambda function: function,
) -> gr.Blocks:
    """
    The page.

    Args:
        pipe ([`UniF2acePipeline`]): The model, on its device, with its adapters loaded.
        model (`str`, *optional*): What the page calls it.
        what (`str`, *optional*): What it was trained on, in words.
        adapters (`list[str]`, *optional*): Names of adapters that visitors may compare.
        on_device (`Callable`, *optional*): Wraps what needs the accelerator, as `spaces.GPU` does.

    Returns:
        `gradio.Blocks`: `launch_page` starts it.
    """
    demo = Demo(pipe, adapters)
    notice = NOTICE.format(minutes=DELETE_AFTER // 60 + 1)
    side = pipe.transformer.config.vq_config.resolution
    # one visitor's work at a time, whichever button it comes from: adapters are switched on the shared model
    alone = {"concurrency_limit": 1, "concurrency_id": "model"}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, DELETE_AFTER)) as page:
        gr.Markdown(INTRODUCTION.format(model=model, what=what))
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                with gr.Row(equal_height=False, elem_classes="bench"):
                    with gr.Column(elem_classes="words"):
                        prompt = gr.Textbox(
                            label="What the face looks like", value=EXAMPLES[0], lines=2, max_length=1000
                        )
                        make = gr.Button("Generate", variant="primary", elem_id="generate-button")
                        with gr.Accordion("Settings", open=False):
                            negative = gr.Textbox(label="What it must not look like", max_length=1000)
                            steps, guidance = _sliders()
                            is_random = gr.Checkbox(True, label="A new seed each time")
                            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEED_LIMIT - 1)
                            show = gr.Checkbox(True, label="Show the steps")
                    with gr.Column(elem_classes="face"):
                        made = _output("The face", "generated")
                        state = gr.Markdown(f"{side} × {side} pixels, shown larger.", elem_id="generate-state")
                        with gr.Row():
                            to_describe = gr.Button("Describe it", size="md", min_width=100, elem_id="to-describe")
                            to_edit = gr.Button("Edit it", size="md", min_width=100, elem_id="to-edit")
                        gr.Markdown(MARKS, elem_classes="notice")
                    with gr.Column(elem_classes="examples"):
                        gr.Examples([[text] for text in EXAMPLES], prompt, label="Examples")
                gr.on(
                    [make.click, prompt.submit],
                    on_device(demo.generate),
                    [prompt, negative, steps, guidance, seed, is_random, show],
                    [made, seed, state],
                    show_progress="hidden",
                    **alone,
                )
            with gr.Tab("Describe", id="describe"):
                gr.Markdown(notice, elem_classes="notice")
                with gr.Row(equal_height=False):
                    with gr.Column():
                        face = gr.Image(
                            label="A face, cropped to the head",
                            type="filepath",
                            sources=["upload", "clipboard"],
                            height=PICTURE,
                            elem_id="face",
                            elem_classes="picture",
                        )
                        describe = gr.Button("Describe", variant="primary", elem_id="describe-button")
                        text = gr.Textbox(label="Description", lines=4, interactive=False, elem_id="description")
                    with gr.Column():
                        chat = gr.Chatbot(label="Questions", height=PICTURE, elem_id="chat", buttons=[])
                        question = gr.Textbox(label="Your question", max_length=500, elem_id="question")
                        ask = gr.Button("Ask", elem_id="ask-button")
                        gr.Examples([[item] for item in QUESTIONS], question, label="Examples")
                describe.click(on_device(demo.describe), face, text, **alone)
                gr.on(
                    [ask.click, question.submit],
                    on_device(demo.ask),
                    [face, question, chat],
                    [chat, question],
                    **alone,
                )
                face.change(lambda: ([], ""), None, [chat, text], queue=False)
            with gr.Tab("Edit", id="edit"):
                gr.Markdown(notice, elem_classes="notice")
                gr.Markdown(HOW_TO_EDIT)
                with gr.Row(equal_height=False):
                    with gr.Column():
                        editor = gr.ImageEditor(
                            label="Picture",
                            type="pil",
                            sources=["upload", "clipboard"],
                            transforms=(),
                            layers=False,
                            format="png",
                            brush=gr.Brush(default_size=32, colors=["#6366f1"], color_mode="fixed"),
                            canvas_size=(CANVAS, CANVAS),
                            fixed_canvas=True,
                            elem_id="editor",
                            elem_classes="editor",
                        )
                    with gr.Column():
                        wish = gr.Textbox(
                            label="The whole face afterwards",
                            value="a man with sunglasses",
                            max_length=1000,
                            elem_id="wish",
                        )
                        change = gr.Button("Edit", variant="primary", elem_id="edit-button")
                        edited = _output("The edited face", "edited")
                        edit_state = gr.Markdown(elem_id="edit-state")
                        with gr.Accordion("Settings", open=False):
                            edit_steps, edit_guidance = _sliders()
                            edit_seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEED_LIMIT - 1)
                            keep = gr.Checkbox(False, label="Keep the other pixels exactly (may leave a seam)")
                change.click(
                    on_device(demo.edit),
                    [editor, wish, edit_steps, edit_guidance, edit_seed, keep],
                    [edited, edit_state],
                    **alone,
                )
            with gr.Tab("Compare", id="compare"):
                names = [NO_ADAPTER, *demo.adapters]
                if not demo.adapters:
                    gr.Markdown(
                        "No adapter is loaded. Start with `unif2ace demo --adapter NAME=FOLDER` to compare some."
                    )
                both = gr.Textbox(label="What the face looks like", value=EXAMPLES[0], max_length=1000)
                with gr.Row():
                    first = gr.Dropdown(names, value=names[0], label="Adapter on the left", elem_id="first")
                    second = gr.Dropdown(names, value=names[-1], label="Adapter on the right", elem_id="second")
                    both_seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEED_LIMIT - 1)
                compare = gr.Button("Compare", variant="primary", elem_id="compare-button")
                with gr.Row():
                    left, right = _output("Left", "left"), _output("Right", "right")
                compare.click(on_device(demo.compare), [both, first, second, both_seed], [left, right], **alone)
        to_describe.click(lambda path: (path, gr.Tabs(selected="describe")), made, [face, tabs], queue=False)
        to_edit.click(lambda path: (_enlarged(path), gr.Tabs(selected="edit")), made, [editor, tabs], queue=False)
    return page


def launch_page(page: gr.Blocks, **options):
    """Start the page with its looks and limits; `options` are of `gradio.Blocks.launch`."""
    theme = gr.themes.Soft(font=FONT, font_mono=["ui-monospace", "monospace"])
    return page.queue(max_size=32).launch(theme=theme, css=CSS, max_file_size="8mb", footer_links=[], **options)


def _sliders() -> tuple[gr.Slider, gr.Slider]:
    return (
        gr.Slider(1, 64, 16, step=1, label="Steps"),
        gr.Slider(1, 15, 4, step=0.5, label="Guidance", info="How strongly the picture follows the words; 1 is none"),
    )


def _output(label: str, elem_id: str) -> gr.Image:
    return gr.Image(
        label=label,
        type="filepath",
        format="png",
        interactive=False,
        height=PICTURE,
        buttons=["download", "fullscreen"],
        elem_id=elem_id,
        elem_classes="picture",
    )


def _with_previews(
    pipe, prompt: str, generator, options: dict, show: bool
) -> Iterator[tuple[int | None, Image.Image]]:
    """Number and preview of each step, then `None` and the picture. Whoever stops listening stops the loop."""
    made: queue.Queue = queue.Queue()

    def preview(pipeline, step, timestep, tensors):
        codes = tensors.pop("pred_original_sample")
        if gone.is_set():
            pipeline._interrupt = True
        elif show:
            made.put((step + 1, pipeline.decode_latents(codes, "pil", watermark=False)[0]))
        return tensors

    def work():
        try:
            images = pipe(
                prompt,
                generator=generator,
                callback_on_step_end=preview,
                callback_on_step_end_tensor_inputs=["pred_original_sample"],
                **options,
            ).images
            made.put((None, images[0]))
        except BaseException as error:  # handed to whoever listens
            made.put((None, error))

    gone = threading.Event()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            number, image = made.get()
            if isinstance(image, (ValueError, TypeError)):
                raise gr.Error(str(image), print_exception=False)
            if isinstance(image, BaseException):
                raise image
            yield number, image
            if number is None:
                return
    finally:
        gone.set()
        thread.join()


@contextmanager
def _file(image: Image.Image, seed: int) -> Iterator[str]:
    """
    A file that says where the picture comes from; Gradio's own would not. Gradio has copied it when the next value is
    asked for, so it is removed then; the copy goes with the uploads.
    """
    with tempfile.TemporaryDirectory(prefix="unif2ace-demo-") as folder:
        file = Path(folder) / f"unif2ace-{seed}.png"
        save_image(image, file)
        yield str(file)


def _picture(path: str | None) -> Image.Image:
    if path is None:
        raise gr.Error("There is no picture: upload one, or send one here from “Generate”.", print_exception=False)
    try:
        return load_image(path, MAX_PIXELS)
    except ValueError as error:  # without the name of a file that the visitor does not know
        raise gr.Error(str(error).replace(path, "the picture"), print_exception=False) from error


def _answered(function: Callable):
    """The function's result; what is wrong with the input becomes a message on the page."""
    try:
        return function()
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _enlarged(path: str | None) -> Image.Image | None:
    """A picture as large as the canvas to paint on."""
    if path is None:
        return None
    image = load_image(path, MAX_PIXELS)
    scale = CANVAS / max(image.size)
    return image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)


def _words(content: Any) -> str:
    """The text of a message as the chat component gives it back."""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")


def _seed(value: float) -> int:
    return min(max(int(value), 0), SEED_LIMIT - 1)


__all__ = ["Demo", "build_page", "launch_page"]
