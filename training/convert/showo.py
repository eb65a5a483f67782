"""
Checkpoints from Show-o's layout to ours (`convert_showo`) and back (`export_showo`). `convert.py` is the command.

Each tensor is read once, made into what it becomes, and written; the folder appears when everything is in it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import CLIPVisionConfig, GenerationConfig
from transformers.models.clip import CLIPConfig

from ...modeling_unif2ace import (
    UniF2aceConfig,
    UniF2aceFaceEncoderConfig,
    UniF2aceForConditionalGeneration,
    UniF2aceProcessor,
)
from ...pipelines.files import check_new, new_folder, write_json, write_text
from ...pipelines.scheduling_unif2ace import UniF2aceScheduler
from ..train_text_tokenizer import extend_tokenizer
from .face_encoder import load_face_encoder
from .reader import CheckpointReader, check_finite, check_keys, fetch_weights
from .showo_layout import (
    CODEBOOK_KEYS,
    DEFAULT_TEXT_MODEL,
    ExpertChoice,
    codebook_tables,
    magvit_config,
    magvit_shapes,
    make_config,
    model_shapes,
    our_name,
    read_showo_config,
    read_text_model,
    showo_config,
    showo_name,
    showo_shapes,
)
from .upcycle import upcycle_targets
from .writer import Job, write_checkpoint


DEFAULT_MAGVIT = "showlab/magvitv2"
VQ_PREFIX = "model.vq_model."
TOWER_PREFIX = "model.vision_tower."
FACE_PREFIX = "model.face_encoder."
_CLIP_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")  # what is not the tower's
MAX_NEW_TOKENS = 100  # as Show-o answers

# the folder that the original's training writes its weights to, inside `checkpoint-N`
_TRAINING_FOLDER = "unwrapped_model"


@dataclass
class Conversion:
    """What a conversion made: the folder, the configuration, parameters, and tensors read from the sources."""

    folder: Path
    config: UniF2aceConfig
    num_parameters: int
    num_tensors_read: int


def convert_showo(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    magvit: str | os.PathLike = DEFAULT_MAGVIT,
    text_model: str | os.PathLike | None = None,
    clip: str | os.PathLike | None = None,
    face_encoder: str | os.PathLike | None = None,
    preset: UniF2aceConfig | None = None,
    experts: ExpertChoice | None = None,
    max_text_length: int = 128,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Conversion:
    r"""
    Make a UniF²ace checkpoint of a Show-o one.

    With `ExpertChoice("none")` it is Show-o; with `"full-shared"` it has both levels of experts and computes the same
    until it is trained; with `"split"` it has narrower experts and computes something else.

    Args:
        source (`str` or `os.PathLike`): Show-o's checkpoint: a folder or a Hub id, safetensors or `.bin`.
        destination (`str` or `os.PathLike`): The folder to make. It appears whole or not at all.
        magvit (`str` or `os.PathLike`, *optional*, defaults to `"showlab/magvitv2"`):
            The image tokenizer: a folder, a weight file or a Hub id.
        text_model (`str` or `os.PathLike`, *optional*):
            Where the text tokenizer is; what the checkpoint names (`llm_model_path`) when not given.
        clip (`str` or `os.PathLike`, *optional*):
            A CLIP model whose vision tower comes into the checkpoint. Without it the tower is given at run time.
        face_encoder (`str` or `os.PathLike`, *optional*):
            A face encoder that comes into the checkpoint, as [`load_face_encoder`] takes it: with it and `clip` all
            kinds of experts have what they work with.
        preset (`UniF2aceConfig`, *optional*): The shape that the checkpoint must have.
        experts (`ExpertChoice`, *optional*): What the MLPs become; `"full-shared"` when not given.
        max_text_length (`int`, *optional*, defaults to 128): Text slots of a text-to-image prompt.
        dtype (`torch.dtype`, *optional*): Type of the weights; the source's when not given.
        seed (`int`, *optional*, defaults to 0): Seed of the weights that the source does not have.
        overwrite (`bool`, *optional*, defaults to `False`): Whether an existing folder may be replaced.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Returns:
        [`Conversion`]

    Raises:
        ValueError: if a source is broken, is something else, or does not have exactly the tensors that it should have.
        OSError: if a source is absent, the destination exists, or there is no room for it.
    """
    check_new(destination, overwrite)
    experts = experts or ExpertChoice()
    folder = fetch_weights(source)
    if (folder / _TRAINING_FOLDER).is_dir():
        folder = folder / _TRAINING_FOLDER
    showo = read_showo_config(folder)
    language, images = CheckpointReader(folder), CheckpointReader(fetch_weights(magvit))
    text = read_text_model(text_model or showo.get("llm_model_path") or DEFAULT_TEXT_MODEL, showo["llm_vocab_size"])
    tower, tower_config = (None, None) if clip is None else _read_clip(clip)
    face = None if face_encoder is None else load_face_encoder(face_encoder)
    vq_config = magvit_config(images.shapes, showo["num_vq_tokens"])
    config = make_config(
        showo,
        language.shapes,
        vq_config,
        text,
        experts,
        max_text_length,
        preset,
        vision_config=tower_config,
        face_config=None if face is None else face.config,
    )
    check_keys(language.shapes, showo_shapes(config), f"Show-o's checkpoint {source}")
    check_keys(images.shapes, magvit_shapes(config.vq_config), f"the image tokenizer {magvit}")
    _check_codebook(images, config)

    shapes = model_shapes(config)
    jobs = _language_jobs(language, config, experts.method)
    jobs += _copies(images, {name: VQ_PREFIX + name for name in images.shapes if name not in CODEBOOK_KEYS})
    if tower is not None:
        names = {
            name: TOWER_PREFIX + name.removeprefix("vision_model.")
            for name in tower.shapes
            if not name.startswith(_CLIP_TEXT) and not name.endswith("position_ids")
        }
        found = {target: tower.shapes[name] for name, target in names.items()}
        expected = {name: shape for name, shape in shapes.items() if name.startswith(TOWER_PREFIX)}
        check_keys(found, expected, f"the CLIP model {clip}")
        jobs += _copies(tower, names)
    if face is not None:
        jobs += _held({FACE_PREFIX + name: tensor for name, tensor in face.state_dict().items()})
    made = {name for job in jobs for name in job.shapes}
    jobs += _fresh_jobs(config, [name for name in shapes if name not in made], seed)
    check_keys({name: shape for job in jobs for name, shape in job.shapes.items()}, shapes, "the converted model")

    dtype = dtype or language.dtypes["showo.model.embed_tokens.weight"]
    with new_folder(destination, overwrite) as part:
        write_checkpoint(part, jobs, dtype, progress=progress)
        config.architectures, config.dtype = [UniF2aceForConditionalGeneration.__name__], dtype
        config.save_pretrained(part)
        # special tokens, image codes and mask behind the text's, at Show-o's ids
        tokenizer = extend_tokenizer(text.tokenizer, config.vq_config.num_bits)
        tokenizer.model_max_length = config.text_config.max_position_embeddings
        UniF2aceProcessor.from_config(config, tokenizer).save_pretrained(part)
        ends = {name: getattr(config.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        # Show-o's temperatures; `image_sampling="showo"` would repeat its random numbers too
        answers = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
        numbers = GenerationConfig(**ends, **answers, image_confidence_schedule="showo")
        numbers.save_pretrained(part)
        UniF2aceScheduler.from_generation_config(numbers).save_pretrained(part / "scheduler")
        count = sum(torch.Size(shape).numel() for shape in shapes.values())
        write_text(
            part / "README.md", _card(str(source), Path(destination).name, experts.method, count, face and face.config)
        )
    return Conversion(Path(destination), config, count, len(language.shapes) + len(images.shapes))


# From Show-o's tensors to ours


def _copies(reader: CheckpointReader, names: dict[str, str]) -> list[Job]:
    """Tensors that only get another name."""

    def copy(name: str, target: str) -> Job:
        return Job({target: reader.shapes[name]}, lambda: {target: _read(reader, name)})

    return [copy(name, target) for name, target in names.items()]


def _held(tensors: dict[str, torch.Tensor]) -> list[Job]:
    """Tensors that are in memory already."""
    return [Job({name: tuple(tensor.shape)}, lambda n=name, t=tensor: {n: t}) for name, tensor in tensors.items()]


def _read(reader: CheckpointReader, name: str) -> torch.Tensor:
    tensor = reader.read(name)
    check_finite(name, tensor)
    return tensor


def _language_jobs(reader: CheckpointReader, config: UniF2aceConfig, method: str) -> list[Job]:
    """The language model, in the order of its files. Each of its tensors goes into exactly one job."""
    shapes, jobs = model_shapes(config), []
    for name in reader.shapes:
        target = our_name(name)
        if target in shapes:
            jobs += _copies(reader, {name: target})
            continue
        layer, _, part = target.partition(".mlp.")
        makers = {
            f"{layer}.mlp.{key}": make for key, make in upcycle_targets(part, config.text_config, method).items()
        }
        jobs.append(_upcycled(reader, name, makers, shapes))
    return jobs


def _upcycled(reader: CheckpointReader, name: str, makers: dict[str, Callable], shapes: dict) -> Job:
    def make() -> dict[str, torch.Tensor]:
        tensor = _read(reader, name)
        return {target: maker(tensor) for target, maker in makers.items()}

    return Job({target: shapes[target] for target in makers}, make)


def _fresh_jobs(config: UniF2aceConfig, names: list[str], seed: int) -> list[Job]:
    """What Show-o does not have: routers, sequence-level experts, resamplers, as the model itself initialises them."""
    with torch.device("meta"):
        model = UniF2aceForConditionalGeneration(config)
    owners: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        # model.language_model.layers.N.{mlp.X, sequence_moe} or model.resamplers.X
        depth = 3 if parts[1] == "resamplers" else 6 if parts[4] == "mlp" else 5
        owners.setdefault(".".join(parts[:depth]), []).append(name)

    def fresh(number: int, owner: str, members: list[str]) -> Job:
        def make() -> dict[str, torch.Tensor]:
            module = model.get_submodule(owner).to_empty(device="cpu")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 100_003 + number)
                module.apply(model._init_weights)
            tensors = {name: module.get_parameter(name.removeprefix(f"{owner}.")).detach() for name in members}
            module.to("meta")  # frees it
            return tensors

        return Job({name: tuple(model.get_parameter(name).shape) for name in members}, make)

    return [fresh(number, owner, members) for number, (owner, members) in enumerate(owners.items())]


def _check_codebook(images: CheckpointReader, config: UniF2aceConfig):
    for name, table in codebook_tables(config.vq_config).items():
        if not torch.equal(images.read(name).to(table.dtype), table):
            raise ValueError(f"the image tokenizer's {name} is not the table of lookup-free quantisation")


def _read_clip(name: str | os.PathLike) -> tuple[CheckpointReader, CLIPVisionConfig]:
    folder = fetch_weights(name)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name} has no config.json, expected a CLIP model")
    values = CLIPConfig.get_config_dict(folder)[0]
    if values.get("model_type") not in ("clip", "clip_vision_model"):
        raise ValueError(f"{name} holds a model of type {values.get('model_type')!r}, expected a CLIP model")
    return CheckpointReader(folder), CLIPVisionConfig.from_dict(values.get("vision_config", values))


_METHODS = {
    "none": "It has no experts and computes what the source computes.",
    "full-shared": "Each MLP became the shared expert of both groups; routed experts start with an output of zero and "
    "sequence-level experts as the identity, so that until it is trained it computes what the source computes.",
    "split": "Each MLP was cut into one shared and several routed experts. A token uses only some of them, so it does "
    "not compute what the source computes: train it first.",
}


def _card(source: str, name: str, method: str, num_parameters: int, face: UniF2aceFaceEncoderConfig | None) -> str:
    is_folder = os.path.exists(source)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["unif2ace", "show-o", "text-to-image"],
        license="other",
        license_name="license-of-the-source",
        base_model=None if is_folder else source,
    )
    parts = f", those of the face encoder theirs: {face.weights_license}" if face and face.weights_license else ""
    origin = "a local Show-o checkpoint" if is_folder else f"[{source}](https://huggingface.co/{source})"
    return str(
        ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {name}\n\nConverted from {origin} by `unif2ace convert showo`: "
            f"{num_parameters:,} parameters. {_METHODS[method]}\n\nThe weights keep the licence of the source{parts}. "
            "What is equal to Show-o and how it was tested: `docs/show-o.md` of the package `unif2ace`.\n"
        )
    )


# And back


def export_showo(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    text_model: str = DEFAULT_TEXT_MODEL,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    r"""
    Write a dense model in Show-o's layout: `config.json` and `pytorch_model.safetensors`, and the image tokenizer the
    same way in `magvitv2/`. The original's `from_pretrained` reads both.

    Args:
        source (`str` or `os.PathLike`): One of our checkpoints, in transformers' layout, without experts.
        destination (`str` or `os.PathLike`): The folder to make. It appears whole or not at all.
        text_model (`str`, *optional*, defaults to `"microsoft/phi-1_5"`): What the original shall load as
            `llm_model_path`.
        dtype (`torch.dtype`, *optional*): Type of the weights; the source's when not given.
        overwrite (`bool`, *optional*, defaults to `False`): Whether an existing folder may be replaced.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Raises:
        ValueError: if the model has experts or something else that Show-o has no place for, or its weights are broken.
        OSError: if there is no such model, the destination exists, or there is no room for it.
    """
    check_new(destination, overwrite)
    folder = fetch_weights(source)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{source} has no config.json, expected a checkpoint's folder")
    config = UniF2aceConfig.from_pretrained(folder)
    if config.model_type != UniF2aceConfig.model_type:
        raise ValueError(
            f"{source} holds a model of type {config.model_type!r}, expected {UniF2aceConfig.model_type!r}"
        )
    _check_exportable(config)
    reader = CheckpointReader(folder)
    check_keys(reader.shapes, model_shapes(config), str(source))
    dtype = dtype or reader.dtypes["lm_head.weight"]
    codebook = codebook_tables(config.vq_config)

    def table(name: str) -> Job:
        return Job({name: tuple(codebook[name].shape)}, lambda: {name: codebook[name]})

    images = {name: name.removeprefix(VQ_PREFIX) for name in reader.shapes if name.startswith(VQ_PREFIX)}
    language = {
        name: showo_name(name)
        for name in reader.shapes
        if name not in images and not name.startswith((TOWER_PREFIX, FACE_PREFIX))
    }
    with new_folder(destination, overwrite) as part:
        write_checkpoint(part, _copies(reader, language), dtype, "pytorch_model", 2**62, progress)
        write_json(part / "config.json", showo_config(config, text_model))
        (part / "magvitv2").mkdir()
        jobs = [*_copies(reader, images), *map(table, CODEBOOK_KEYS)]
        write_checkpoint(part / "magvitv2", jobs, dtype, "pytorch_model", 2**62, progress)
        write_json(part / "magvitv2" / "config.json", {"_class_name": "MAGVITv2", "_diffusers_version": "0.29.2"})
    return Path(destination)


def _check_exportable(config: UniF2aceConfig):
    text = config.text_config
    experts = {"token-level experts": text.moe_layers, "sequence-level experts": text.sequence_moe_layers}
    for kind, layers in experts.items():
        if layers:
            raise ValueError(
                f"the model has {kind} in {len(layers)} layers, but Show-o has none: export a dense model"
            )
    for fault, there in (
        ("image_position_embeddings", config.image_position_embeddings),
        ("block_form='sequential'", not text.block_form == "parallel"),
        ("qk_layernorm=False", not text.qk_layernorm),
    ):
        if there:
            raise ValueError(f"the model has {fault}, which Show-o has not")
