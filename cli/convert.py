"""The command `unif2ace convert`: weights of other projects to ours, and home again."""

import argparse
from pathlib import Path

from ..training.convert import UPCYCLE_METHODS
from .common import add_command, positive_int, seed_int


EXAMPLES = """\
examples:
  unif2ace convert showo showlab/show-o runs/unif2ace-from-showo --preset unif2ace-1.8b \\
      --clip openai/clip-vit-large-patch14-336 --face-encoder runs/face-encoder
  unif2ace convert showo showlab/show-o-512x512 runs/showo-512 --preset showo-512
  unif2ace convert to-showo runs/showo-512 runs/back-home
  unif2ace convert face-encoder glintr100.onnx runs/face-encoder

docs/show-o.md explains what is equal, what is tested, and which sizes come out.
"""

SHOWO_EXAMPLES = """\
examples:
  unif2ace convert showo showlab/show-o runs/unif2ace-from-showo --preset unif2ace-1.8b
  unif2ace convert showo ./show-o-w-clip-vit runs/showo-clip --magvit ./magvitv2 --text-model ./phi-1_5 \\
      --clip openai/clip-vit-large-patch14-336 --upcycle none

Without --preset the shape is read from the checkpoint. The presets showo-256 and showo-512 stay as Show-o is, unless
--upcycle says otherwise; unif2ace-1.8b, or none, upcycles.
"""

PRESET_NAMES = ("showo-256", "showo-512", "unif2ace-1.8b")
DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser):
    """The three conversions, each with its own arguments."""
    kinds = parser.add_subparsers(title="conversions", dest="conversion", required=True, metavar="CONVERSION")

    showo = add_command(kinds, "showo", "make a UniF²ace checkpoint of a Show-o one", SHOWO_EXAMPLES)
    showo.set_defaults(run=_showo)
    showo.add_argument("source", metavar="SRC", help="Show-o's checkpoint: a folder or a Hub repository")
    showo.add_argument("destination", metavar="DST", type=Path, help="the folder to make")
    showo.add_argument("--preset", choices=PRESET_NAMES, help="the shape that the checkpoint must have")
    showo.add_argument(
        "--upcycle",
        choices=UPCYCLE_METHODS,
        help="what the MLPs become: full-shared keeps the function (default); split cuts them as the paper words it "
        "and changes it; none makes no experts (default of the presets showo-*)",
    )
    showo.add_argument(
        "--magvit",
        default="showlab/magvitv2",
        metavar="PATH",
        help="the image tokenizer: a folder, a weight file or a Hub repository (default: %(default)s)",
    )
    showo.add_argument(
        "--text-model",
        metavar="PATH",
        help="the text tokenizer's folder or Hub repository (default: what the checkpoint names, microsoft/phi-1_5)",
    )
    showo.add_argument("--clip", metavar="PATH", help="a CLIP model whose vision tower comes into the checkpoint")
    showo.add_argument(
        "--face-encoder",
        metavar="PATH",
        help="a face encoder that comes into the checkpoint: a folder that `convert face-encoder` made, a Hub "
        "repository, or an ONNX file of InsightFace's",
    )
    showo.add_argument("--max-text-length", type=positive_int, default=128, help="text slots (default: %(default)s)")
    showo.add_argument("--num-routed-experts", type=positive_int, metavar="N", help="routed experts of a group (8)")
    showo.add_argument("--top-k", type=positive_int, metavar="K", help="routed experts that a token uses (2)")
    showo.add_argument("--routed-width", type=positive_int, metavar="W", help="their width (a sixteenth of the MLP's)")
    showo.add_argument("--shared-width", type=positive_int, metavar="W", help="with split: the shared expert's width")
    showo.add_argument("--seed", type=seed_int, default=0, help="of the weights that Show-o lacks (default: 0)")

    back = add_command(kinds, "to-showo", "write a dense model in Show-o's layout", EXAMPLES)
    back.set_defaults(run=_to_showo)
    back.add_argument("source", metavar="SRC", help="our checkpoint, without experts: a folder or a Hub repository")
    back.add_argument("destination", metavar="DST", type=Path, help="the folder to make")
    back.add_argument(
        "--text-model",
        default="microsoft/phi-1_5",
        metavar="NAME",
        help="what the original shall load as llm_model_path (default: %(default)s)",
    )

    face = add_command(kinds, "face-encoder", "make a face encoder of an ArcFace ONNX file", EXAMPLES)
    face.set_defaults(run=_face_encoder)
    face.add_argument("source", metavar="ONNX", type=Path, help="an IResNet: glintr100, AuraFace, w600k_r50, ...")
    face.add_argument("destination", metavar="DST", type=Path, help="the folder to make")
    face.add_argument(
        "--license",
        default=None,
        metavar="NAME",
        help="licence of the weights, as apache-2.0 for AuraFace (needed, but for InsightFace's own files, glintr100, "
        "w600k_r50, ...: theirs is for non-commercial research)",
    )
    face.add_argument("--no-check", action="store_true", help="do not compare with onnxruntime")

    for conversion in (showo, back):
        conversion.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: the source's)")
    for conversion in (showo, back, face):
        conversion.add_argument("--overwrite", action="store_true", help="replace a folder that exists")


def _showo(arguments: argparse.Namespace):
    arguments.console.stage(f"converting {arguments.source}")
    from ..modeling_unif2ace import get_preset
    from ..training.convert.showo import convert_showo
    from ..training.convert.showo_layout import ExpertChoice

    preset = None if arguments.preset is None else get_preset(arguments.preset)
    dense = preset is not None and not preset.text_config.moe_layers
    experts = ExpertChoice(
        method=arguments.upcycle or ("none" if dense else "full-shared"),
        num_routed_experts=arguments.num_routed_experts,
        num_experts_per_tok=arguments.top_k,
        shared_width=arguments.shared_width,
        routed_width=arguments.routed_width,
    )
    done = convert_showo(
        arguments.source,
        arguments.destination,
        magvit=arguments.magvit,
        text_model=arguments.text_model,
        clip=arguments.clip,
        face_encoder=arguments.face_encoder,
        preset=preset,
        experts=experts,
        max_text_length=arguments.max_text_length,
        dtype=_dtype(arguments.dtype),
        seed=arguments.seed,
        overwrite=arguments.overwrite,
        progress=arguments.console.bars,
    )
    text = f"{done.folder}: {done.num_parameters:,} parameters from {done.num_tensors_read} tensors, each used once"
    if experts.method == "split":
        text += "\nsplit experts do not compute what Show-o computes: train before use (docs/show-o.md)"
    arguments.console.result(
        text, folder=done.folder, parameters=done.num_parameters, tensors=done.num_tensors_read, experts=experts.method
    )


def _to_showo(arguments: argparse.Namespace):
    arguments.console.stage(f"converting {arguments.source}")
    from ..training.convert.showo import export_showo

    folder = export_showo(
        arguments.source,
        arguments.destination,
        text_model=arguments.text_model,
        dtype=_dtype(arguments.dtype),
        overwrite=arguments.overwrite,
        progress=arguments.console.bars,
    )
    tokenizer = folder / "magvitv2"
    text = f"{folder}: Show-o's language model; {tokenizer}: its image tokenizer"
    arguments.console.result(text, folder=folder, image_tokenizer=tokenizer)


def _face_encoder(arguments: argparse.Namespace):
    arguments.console.stage(f"converting {arguments.source}")
    from ..training.convert.face_encoder import UNKNOWN_LICENSE, convert_face_encoder, known_license

    weights_license = arguments.license or known_license(arguments.source)
    if weights_license == UNKNOWN_LICENSE and arguments.source.is_file():
        raise ValueError(
            f"nothing says under which licence the weights in {arguments.source} are: read it where the file is from, "
            "and give it as --license, for example --license apache-2.0"
        )
    config, difference = convert_face_encoder(
        arguments.source,
        arguments.destination,
        weights_license=weights_license,
        check=not arguments.no_check,
        overwrite=arguments.overwrite,
    )
    checked = "not compared" if difference is None else f"largest difference to onnxruntime {difference:.1e}"
    arguments.console.result(
        f"{arguments.destination}: IResNet {config.stage_blocks}, {checked}; licence: {config.weights_license}",
        folder=arguments.destination,
        stage_blocks=config.stage_blocks,
        largest_difference=difference,
        license=config.weights_license,
    )


def _dtype(name: str | None):
    if name is None:
        return None
    import torch

    return getattr(torch, name)
