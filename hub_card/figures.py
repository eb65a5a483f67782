"""The pictures of a card: faces that the published model made."""

import io
import math
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm import tqdm


# Spread over what a face description can ask for; the same for every model, so that cards can be compared.
SAMPLE_PROMPTS = (
    "a smiling old man with round glasses and a grey beard",
    "a young woman with long blond hair and hoop earrings",
    "a bald man with a moustache",
    "a woman with dark skin and short black hair",
    "a sad boy with red hair and freckles",
    "an elderly woman with a hat",
    "a man with a full beard looking to the side",
    "a laughing woman with a ponytail and red lipstick",
)


def sample_grid(model: Path, count: int) -> tuple[bytes, list[str]]:
    """
    Faces that a checkpoint generates from the first `count` of `SAMPLE_PROMPTS`, number i with seed i.

    Args:
        model (`Path`): Folder of the checkpoint.
        count (`int`): Pictures, at most as many as there are prompts.

    Returns:
        A PNG of all pictures in a row or a grid, and the prompts in its order.
    """
    import torch

    from ..pipelines import UniF2acePipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = UniF2acePipeline.from_pretrained(model).to(device)
    prompts = [_fitting(pipe.processor, prompt) for prompt in SAMPLE_PROMPTS[:count]]
    pictures = []
    pipe.set_progress_bar_config(disable=True)
    for seed, prompt in enumerate(tqdm(prompts, desc="pictures for the card", disable=None)):
        images = pipe(prompt, generator=torch.Generator().manual_seed(seed)).images
        pictures.append(images[0])
    return png(_grid(pictures)), prompts


def _fitting(processor, prompt: str) -> str:
    """As much of a prompt, in whole words, as the model reads."""
    words = prompt.split()
    while (
        len(processor.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"])
        > processor.max_text_length - 2
    ):
        words.pop()
    return " ".join(words)


def _grid(pictures: list[Image.Image], side: int = 128) -> Image.Image:
    columns = min(len(pictures), 4)
    rows = math.ceil(len(pictures) / columns)
    grid = Image.new("RGB", (columns * side, rows * side), "white")
    draw = ImageDraw.Draw(grid)
    for index, picture in enumerate(pictures):
        place = (index % columns * side, index // columns * side)
        grid.paste(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), place)
        draw.text((place[0] + 4, place[1] + 2), str(index), fill="black")
    return grid


def png(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
