"""
ArcFace encoders from ONNX: AntelopeV2's `glintr100`, buffalo_l's `w600k_r50`, AuraFace, and other IResNets.

Exporters give weights meaningless names and fold BatchNorms into convolutions, so nothing is looked up by name: the
graph is walked backwards from its output, and every node must be what an IResNet has there. A folded convolution's
bias goes into a BatchNorm that does nothing else, so that the model needs no second form.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..._versions import need
from ...modeling_unif2ace import UniF2aceFaceEncoder, UniF2aceFaceEncoderConfig
from ...pipelines.files import check_new, new_folder, read_json, write_text
from ...pipelines.loading_unif2ace import fetch_folder


INSIGHTFACE_LICENSE = "InsightFace model licence: non-commercial research purposes only"
UNKNOWN_LICENSE = "unknown"
TOLERANCE = 1e-4

# files of its releases: AntelopeV2, buffalo_l and relatives
_INSIGHTFACE_NAMES = ("glintr", "glint360k", "w600k", "ms1mv3", "antelope", "buffalo")

_PASSED_OVER = ("Identity", "Dropout", "Cast")


@dataclass
class _Convolution:
    weight: np.ndarray
    bias: np.ndarray | None
    stride: int
    norm: "dict[str, np.ndarray] | None" = None  # the BatchNorm behind it, when it was not folded


@dataclass
class _Block:
    norm: dict[str, np.ndarray]
    first: _Convolution
    slope: np.ndarray
    second: _Convolution
    shortcut: _Convolution | None


@dataclass
class _IResNet:
    stem: _Convolution
    slope: np.ndarray
    scale: float  # what pixels in [-1, 1] are multiplied by before the first convolution
    blocks: list[_Block] = field(default_factory=list)
    norm: dict[str, np.ndarray] = field(default_factory=dict)
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    features: "dict[str, np.ndarray] | None" = None


class _Graph:
    """An ONNX graph, walked from outputs to inputs."""

    def __init__(self, path: Path):
        onnx = need("onnx", "convert")
        try:
            model = onnx.load(path)
        except FileNotFoundError:
            raise
        except Exception as error:  # protobuf's and onnx's own exceptions
            raise ValueError(
                f"{path} is no ONNX file, or truncated ({type(error).__name__}): download it again"
            ) from error
        graph, to_array = model.graph, onnx.numpy_helper.to_array
        self.path = path
        self.producer = {output: node for node in graph.node for output in node.output}
        later = set(self.producer)
        for node in graph.node:
            if later.intersection(node.input) or not node.output:  # a circle would be walked without end
                raise ValueError(
                    f"{path}: {node.op_type} {node.name!r} comes before its input, expected a sorted graph"
                )
            later.difference_update(node.output)
        try:
            self.constants = {tensor.name: to_array(tensor) for tensor in graph.initializer}
            for node in graph.node:
                if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                    self.constants[node.output[0]] = to_array(node.attribute[0].t)
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} has a tensor that cannot be read ({error}): download it again") from error
        inputs = [item.name for item in graph.input if item.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ValueError(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs, expected one of each")
        self.input, self.output = inputs[0], graph.output[0].name
        self.attributes = lambda node: {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}

    def origin(self, tensor: str) -> str:
        """The tensor that this one is a copy of: past nodes that change nothing."""
        while (node := self.producer.get(tensor)) is not None and node.op_type in _PASSED_OVER:
            tensor = node.input[0]
        return tensor

    def kind(self, tensor: str) -> str:
        """The operation that makes a tensor; `"input"` for the graph's input."""
        return "input" if self.origin(tensor) == self.input else self.node(tensor).op_type

    def node(self, tensor: str):
        """The node that makes a tensor."""
        node = self.producer.get(self.origin(tensor))
        if node is None:
            raise self.unexpected("something", tensor)
        return node

    def unexpected(self, wanted: str, tensor: str) -> ValueError:
        """The error for a graph that is not an IResNet."""
        node = self.producer.get(self.origin(tensor))
        found = "the input" if node is None else node.op_type
        return ValueError(f"{self.path} is no IResNet: found {found} where {wanted} belongs, at tensor {tensor!r}")

    def expect(self, tensor: str, *kinds: str):
        """The node that makes a tensor, if it is of one of these kinds."""
        if self.kind(tensor) not in kinds:
            raise self.unexpected(" or ".join(kinds), tensor)
        return self.node(tensor)

    def constant(self, name: str) -> np.ndarray:
        """A weight, float32."""
        if not self.is_constant(name):
            raise self.unexpected("a constant weight", name)
        return np.array(self.constants[self.origin(name)], dtype=np.float32)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a weight, or a copy of one: exporters store equal weights once and copy them."""
        return self.origin(name) in self.constants

    def norm(self, tensor: str) -> tuple[dict[str, np.ndarray], str]:
        """A BatchNorm, and the tensor before it."""
        node = self.expect(tensor, "BatchNormalization")
        names = ("weight", "bias", "running_mean", "running_var")
        values = {name: self.constant(source) for name, source in zip(names, node.input[1:], strict=True)}
        # torch adds an epsilon of its own
        epsilon = self.attributes(node).get("epsilon", 1e-5)
        values["running_var"] = values["running_var"] + np.float32(epsilon - nn.BatchNorm2d(1).eps)
        return values, node.input[0]

    def convolution(self, tensor: str, size: int) -> tuple[_Convolution, str]:
        """A convolution with the BatchNorm behind it, if there is one, and the tensor before it."""
        norm = None
        if self.kind(tensor) == "BatchNormalization":
            norm, tensor = self.norm(tensor)
        node = self.expect(tensor, "Conv")
        attributes = self.attributes(node)
        weight = self.constant(node.input[1])
        strides = attributes.get("strides", [1, 1])
        if weight.shape[2:] != (size, size) or strides[0] != strides[1] or attributes.get("group", 1) != 1:
            raise ValueError(
                f"{self.path} is no IResNet: a convolution has shape {weight.shape}, strides {list(strides)} and "
                f"{attributes.get('group', 1)} groups, expected {size} x {size} in one group"
            )
        bias = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return _Convolution(weight, bias, int(strides[0]), norm), node.input[0]

    def slope(self, tensor: str) -> tuple[np.ndarray, str]:
        """A PReLU's slopes, and the tensor before it."""
        node = self.expect(tensor, "PRelu")
        return self.constant(node.input[1]).reshape(-1), node.input[0]


def read_iresnet(path: str | os.PathLike) -> _IResNet:
    """
    The parts of an IResNet in an ONNX file, in the order of the data.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is broken, or another network.
    """
    graph = _Graph(Path(path))
    tensor, features = graph.output, None
    if graph.kind(tensor) == "BatchNormalization":
        features, tensor = graph.norm(tensor)
    weight, bias, tensor = _linear(graph, tensor)
    tensor = graph.expect(tensor, "Flatten", "Reshape").input[0]
    norm, tensor = graph.norm(tensor)
    blocks = []
    while graph.kind(tensor) == "Add":
        block, tensor = _block(graph, tensor)
        blocks.insert(0, block)
    slope, tensor = graph.slope(tensor)
    stem, tensor = graph.convolution(tensor, 3)
    if stem.stride != 1:
        raise ValueError(f"{path} is no IResNet: its first convolution has stride {stem.stride}, expected 1")
    return _IResNet(stem, slope, _input_scale(graph, tensor), blocks, norm, weight, bias, features)


def _linear(graph: _Graph, tensor: str) -> tuple[np.ndarray, np.ndarray, str]:
    node = graph.expect(tensor, "Gemm", "Add", "MatMul")
    bias = None
    if node.op_type == "Add":
        is_bias = [graph.is_constant(name) for name in node.input]
        bias = graph.constant(node.input[is_bias.index(True)]) if any(is_bias) else None
        node = graph.expect(node.input[is_bias.index(False)], "MatMul")
    weight = graph.constant(node.input[1])
    if node.op_type == "MatMul" or not graph.attributes(node).get("transB", 0):
        weight = weight.T
    if node.op_type == "Gemm" and len(node.input) > 2:
        bias = graph.constant(node.input[2])
    return weight, np.zeros(len(weight), np.float32) if bias is None else bias.reshape(-1), node.input[0]


def _block(graph: _Graph, tensor: str) -> tuple[_Block, str]:
    """The residual block that ends in an addition: its branch, and the shortcut, which is a convolution or nothing."""
    failure = None
    for main, other in (pair := list(graph.node(tensor).input), pair[::-1]):
        try:
            second, before = graph.convolution(main, 3)
            slope, before = graph.slope(before)
            first, before = graph.convolution(before, 3)
            norm, start = graph.norm(before)
            is_plain = graph.origin(other) == graph.origin(start)
            shortcut, end = (None, start) if is_plain else graph.convolution(other, 1)
        except ValueError as error:
            failure = failure or error
            continue
        if graph.origin(end) == graph.origin(start) and first.stride == 1 and second.stride in (1, 2):
            return _Block(norm, first, slope, second, shortcut), start
    raise failure or graph.unexpected("a residual block", tensor)


def _input_scale(graph: _Graph, tensor: str) -> float:
    """1, or the factor of a graph that normalises pixels from 0 to 255 itself: `(x - 127.5) * factor`."""
    if graph.origin(tensor) == graph.input:
        return 1.0
    node = graph.expect(tensor, "Mul", "Div")
    factor = float(graph.constant(node.input[1]).reshape(-1)[0])
    factor = factor if node.op_type == "Mul" else 1 / factor
    before = graph.expect(node.input[0], "Sub")
    middle = graph.constant(before.input[1]).reshape(-1)
    if graph.origin(before.input[0]) != graph.input or not np.all(middle == 127.5):
        raise ValueError(f"{graph.path} subtracts {middle.tolist()} from pixels, expected 127.5")
    return 127.5 * factor


def make_config(network: _IResNet, weights_license: str | None = None) -> UniF2aceFaceEncoderConfig:
    """
    The configuration of a network that was read.

    Raises:
        ValueError: if its stages are not ours.
    """
    channels, blocks = [], []
    for block in network.blocks:
        if block.second.stride == 2:
            channels.append(block.second.weight.shape[0])
            blocks.append(0)
        if not blocks or block.second.weight.shape[0] != channels[-1]:
            raise ValueError("the network widens without halving the picture, expected both at the start of a stage")
        if (block.shortcut is None) == (block.second.stride == 2):
            raise ValueError("a block has a shortcut convolution where an IResNet has none, or lacks it")
        blocks[-1] += 1
    if not blocks:
        raise ValueError("the network has no residual blocks, expected an IResNet")
    grid = round((network.weight.shape[1] / channels[-1]) ** 0.5)
    return UniF2aceFaceEncoderConfig(
        image_size=grid * 2 ** len(blocks),
        in_channels=network.stem.weight.shape[1],
        stem_channels=network.stem.weight.shape[0],
        stage_channels=channels,
        stage_blocks=blocks,
        embedding_size=network.weight.shape[0],
        alignment="five_points",
        weights_license=weights_license,
    )


@torch.no_grad()
def fill_encoder(encoder: UniF2aceFaceEncoder, network: _IResNet):
    """Put the weights that were read into an encoder of their shape."""

    def put(parameter: torch.Tensor, values: np.ndarray):
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))

    def put_norm(module: nn.Module, values: dict[str, np.ndarray] | None, bias: np.ndarray | None = None):
        if values is None:  # does nothing but add the bias
            module.weight.fill_(1.0)
            module.bias.zero_()
            module.running_mean.zero_()
            module.running_var.fill_(1.0 - module.eps)
            if bias is not None:
                put(module.bias, bias)
            return
        for name, value in values.items():
            put(getattr(module, name), value)
        if bias is not None:  # of the convolution before it
            put(module.running_mean, values["running_mean"] - bias)

    def put_convolution(convolution: nn.Conv2d, norm: nn.Module, values: _Convolution, scale: float = 1.0):
        put(convolution.weight, values.weight * np.float32(scale))
        put_norm(norm, values.norm, values.bias)

    put_convolution(encoder.conv1, encoder.bn1, network.stem, network.scale)
    put(encoder.prelu.weight, network.slope)
    blocks = [block for stage in encoder.layers for block in stage]
    for block, values in zip(blocks, network.blocks, strict=True):
        put_norm(block.bn1, values.norm)
        put_convolution(block.conv1, block.bn2, values.first)
        put(block.prelu.weight, values.slope)
        put_convolution(block.conv2, block.bn3, values.second)
        if values.shortcut is not None:
            put_convolution(*block.downsample, values.shortcut)
    put_norm(encoder.bn2, network.norm)
    put(encoder.fc.weight, network.weight)
    put(encoder.fc.bias, network.bias)
    put_norm(encoder.features, network.features)


@torch.no_grad()
def compare_with_onnxruntime(
    encoder: UniF2aceFaceEncoder, path: str | os.PathLike, scale: float, seed: int = 0
) -> float:
    """
    The largest difference of the embeddings of random pictures, relative to the largest number in them.

    Args:
        encoder (`UniF2aceFaceEncoder`): The converted encoder.
        path (`str` or `os.PathLike`): The file that it was made of.
        scale (`float`): 1 if the file takes pixels in [-1, 1], else it takes them from 0 to 255.
        seed (`int`, *optional*, defaults to 0): Seed of the pictures.
    """
    runtime = need("onnxruntime", "convert")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own exceptions, of which RuntimeError is not the base
        raise ValueError(f"onnxruntime cannot load {path}: {error}") from error
    size = encoder.config.image_size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    ours = encoder.eval()(pixels).embeddings
    theirs = []
    for picture in (pixels if scale == 1.0 else pixels * 127.5 + 127.5).split(1):  # many files take one at a time
        theirs.append(session.run(None, {session.get_inputs()[0].name: picture.numpy()})[0])
    theirs = torch.from_numpy(np.concatenate(theirs)).float()
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0)).item()


def known_license(source: str | os.PathLike) -> str:
    """The licence of an ONNX file as far as its name tells: InsightFace's for its own names, else `"unknown"`."""
    return INSIGHTFACE_LICENSE if Path(source).name.lower().startswith(_INSIGHTFACE_NAMES) else UNKNOWN_LICENSE


def convert_face_encoder(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    weights_license: str | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> tuple[UniF2aceFaceEncoderConfig, float | None]:
    """
    Make a [`UniF2aceFaceEncoder`]'s folder of an ONNX file.

    Args:
        source (`str` or `os.PathLike`): The ONNX file.
        destination (`str` or `os.PathLike`): The folder to make. It appears whole or not at all.
        weights_license (`str`, *optional*): Licence of the weights, kept in configuration and card, as `"apache-2.0"`
            for AuraFace. When not given it is InsightFace's for files with names of InsightFace's (`glintr100.onnx`,
            `w600k_r50.onnx`), which allows research that is not commercial, and `"unknown"` for others.
        check (`bool`, *optional*, defaults to `True`): Compare with onnxruntime on random pictures.
        overwrite (`bool`, *optional*, defaults to `False`): Whether an existing folder may be replaced.

    Returns:
        `tuple`: the configuration, and the largest relative difference, `None` if it was not looked for.

    Raises:
        OSError: if there is no such file, or the destination exists.
        ValueError: if the licence is empty, the file is broken or another network, or the result does not compute what
            the file computes.
    """
    weights_license = known_license(source) if weights_license is None else weights_license.strip()
    if not weights_license:
        raise ValueError('the licence of the weights is empty, expected one as "apache-2.0"')
    check_new(destination, overwrite)
    if not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {source}, expected an ONNX file")
    network = read_iresnet(source)
    config = make_config(network, weights_license)
    encoder = UniF2aceFaceEncoder(config).eval()
    try:
        fill_encoder(encoder, network)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{source} is no IResNet that this encoder can hold: {error}") from error
    difference = None
    if check:
        difference = compare_with_onnxruntime(encoder, source, network.scale)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the converted encoder differs from {source} by {difference:.1e}, expected at most {TOLERANCE:.0e}: "
                "the file is of a kind that is not understood"
            )
    with new_folder(destination, overwrite) as part:
        encoder.save_pretrained(part)
        write_text(part / "README.md", _card(Path(source).name, Path(destination).name, config))
    return config, difference


def load_face_encoder(source: str | os.PathLike) -> UniF2aceFaceEncoder:
    """
    A face encoder: a folder or a Hub repository of [`UniF2aceFaceEncoder`], or an ONNX file of InsightFace's.

    Raises:
        OSError: if there is none.
        ValueError: if the ONNX file is broken, another network, or of unknown licence.
    """
    path = fetch_folder(source, ["config.json", "*.safetensors"])
    if path.is_dir():
        config = path / "config.json"
        kind = read_json(config).get("model_type") if config.is_file() else None
        if kind != UniF2aceFaceEncoderConfig.model_type:
            raise ValueError(f"{source} holds a model of type {kind!r}, expected a converted face encoder")
        return UniF2aceFaceEncoder.from_pretrained(path, dtype=torch.float32).eval()
    weights_license = known_license(path)
    if weights_license == UNKNOWN_LICENSE:
        raise ValueError(
            f"nothing says under which licence the weights in {source} are: make a folder of it first, with "
            f"`unif2ace convert face-encoder {source} FOLDER --license ...`, and give that"
        )
    network = read_iresnet(path)
    encoder = UniF2aceFaceEncoder(make_config(network, weights_license)).eval()
    fill_encoder(encoder, network)
    return encoder


def _card(source: str, name: str, config: UniF2aceFaceEncoderConfig) -> str:
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["unif2ace", "face-recognition", "arcface"],
        license="other",
        license_name=config.weights_license,
    )
    return str(
        ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {name}\n\nFace encoder of UniF²ace, converted from `{source}` by "
            f"`unif2ace convert face-encoder`: IResNet {config.stage_blocks}, {config.embedding_size} numbers from an "
            f"aligned face of {config.image_size} x {config.image_size} pixels.\n\n**Licence of the weights: "
            f"{config.weights_license}.** A model that contains them inherits it.\n\nEmbeddings of faces are personal "
            "data in many places. Do not use them to identify people without their consent.\n"
        )
    )
