"""
Make the folder that ships, from a trained model: half precision, everything that is needed to run, a model card.

    python -m unif2ace.hub_card.bundle --model runs/unif2ace/final --out hub_card/unif2ace-faces
    python benchmarks/quality.py                                    # measures what was bundled
    python -m unif2ace.hub_card.card --checkpoint hub_card/unif2ace-faces --run runs/unif2ace

Weights are stored as float16, but `config.json` says `float32`, so that `from_pretrained` computes in float32: the
smaller file is for the download, and half precision is slow on a CPU.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor, GenerationConfig

from ..modeling_unif2ace import UniF2aceForConditionalGeneration, UniF2aceVQModel
from ..pipelines import UniF2aceScheduler
from ..pipelines.files import check_new, new_folder, write_text
from .card import make_card


MAX_MEGABYTES = 60
MAX_NEW_TOKENS = 160
# Painted faces have large flat areas, of which a model is sure long before it is sure of the face: without strong
# noise on the confidence the background is revealed first and grows over everything. Chosen on 32 validation faces;
# benchmarks/sampling.py compares others.
SAMPLING = {"temperature": 0.7, "confidence_temperature": 12.0}


def to_half(model: UniF2aceForConditionalGeneration) -> UniF2aceForConditionalGeneration:
    """
    Cast a model to float16, in place.

    Raises:
        ValueError: if a weight is too large for float16.
    """
    model.to(torch.float16)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} does not fit into float16; train with weight decay, or ship float32")
    return model


def take_decoder(model: UniF2aceForConditionalGeneration, tokenizer: UniF2aceVQModel) -> None:
    """
    Give a model the decoder of another image tokenizer with the same encoder, so with the same codes.

    Raises:
        ValueError: if the encoders differ.
    """
    own, other = (vq_model.encoder.state_dict() for vq_model in (model.model.vq_model, tokenizer))
    if own.keys() != other.keys() or any(not torch.equal(own[name], other[name]) for name in own):
        raise ValueError("the image tokenizer has another encoder, so other codes, than the model was trained with")
    model.model.vq_model.decoder.load_state_dict(tokenizer.decoder.state_dict())


def generation_config(model: UniF2aceForConditionalGeneration) -> GenerationConfig:
    """Greedy text of at most `MAX_NEW_TOKENS` tokens, and how pictures are sampled."""
    text = model.config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        # for `generate(generation_mode="image")`, which knows nothing of the scheduler
        image_temperature=SAMPLING["temperature"],
        image_confidence_temperature=SAMPLING["confidence_temperature"],
    )


def _finish_files(folder: Path) -> None:
    """Compute in float32 whatever the weights are stored in; and let everybody read what some writers keep private."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def folder_megabytes(folder: Path) -> float:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def bundle(
    model: str | os.PathLike,
    out: str | os.PathLike,
    run: str | os.PathLike | None = None,
    quality: str | os.PathLike | None = None,
    overwrite: bool = False,
    image_tokenizer: str | os.PathLike | None = None,
) -> Path:
    """
    Write the folder of a trained model as it ships. It appears whole or not at all.

    Args:
        model (`str` or `os.PathLike`): Folder of the trained model and its processor.
        out (`str` or `os.PathLike`): Folder to write.
        run (`str` or `os.PathLike`, *optional*): Folder of the training run; the one that holds `model` by default.
        quality (`str` or `os.PathLike`, *optional*): Measured numbers, see [`~unif2ace.hub_card.card.make_card`].
        overwrite (`bool`, *optional*, defaults to `False`): Whether an existing folder may be replaced.
        image_tokenizer (`str` or `os.PathLike`, *optional*):
            Folder of the model's image tokenizer with a decoder that was trained further; see [`take_decoder`].

    Returns:
        `Path`: The folder.

    Raises:
        FileNotFoundError: if there is no trained model.
        FileExistsError: if the folder exists and `overwrite` is not given.
        ValueError:
            if the result is larger than `MAX_MEGABYTES`, the weights do not fit into float16, or the image tokenizer
            is another one.
    """
    model_folder, out = Path(model), Path(out)
    if not (model_folder / "config.json").is_file():
        raise FileNotFoundError(f"{model_folder} has no config.json, expected the folder of a trained model")
    check_new(out, overwrite)
    trained = AutoModelForMultimodalLM.from_pretrained(model_folder, dtype=torch.float32)
    if image_tokenizer is not None:
        take_decoder(trained, UniF2aceVQModel.from_pretrained(image_tokenizer, dtype=torch.float32))
    processor = AutoProcessor.from_pretrained(model_folder)
    with new_folder(out, overwrite) as folder:
        trained.generation_config = generation_config(trained)
        to_half(trained).save_pretrained(folder)
        processor.save_pretrained(folder)
        UniF2aceScheduler(**SAMPLING).save_pretrained(folder / "scheduler")
        _finish_files(folder)
        card = make_card(folder, model_folder.resolve().parent if run is None else run, quality)
        write_text(folder / "README.md", str(card))
        size = folder_megabytes(folder)
        if size > MAX_MEGABYTES:
            raise ValueError(f"the bundle has {size:.1f} MB, expected at most {MAX_MEGABYTES}: use a smaller preset")
    return out


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m unif2ace.hub_card.bundle",
        description="Make the folder that ships from a trained model.",
        epilog="example: python -m unif2ace.hub_card.bundle --model runs/unif2ace/final --out hub_card/unif2ace-faces",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--run", type=Path, help="folder of the training run (default: the one that holds --model)")
    parser.add_argument(
        "--quality", type=Path, default=Path("docs/quality.json"), help="measured numbers (default: %(default)s)"
    )
    parser.add_argument(
        "--image-tokenizer",
        type=Path,
        metavar="FOLDER",
        help="take its decoder, which was trained on for the same codes",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    options = parser.parse_args(arguments)
    try:
        folder = bundle(
            options.model, options.out, options.run, options.quality, options.overwrite, options.image_tokenizer
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder}, {folder_megabytes(folder):.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
