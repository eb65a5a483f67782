"""`unif2ace convert face-encoder`: ONNX files by graph and shape, however they were exported; aligned faces."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from unif2ace import UniF2aceForConditionalGeneration, UniF2acePipeline, cli
from unif2ace.modeling_unif2ace import (
    UniF2aceFaceEncoder,
    UniF2aceFaceEncoderConfig,
    UniF2aceImageProcessor,
    get_preset,
)
from unif2ace.modeling_unif2ace.face_alignment_unif2ace import ARCFACE_TEMPLATE, align_largest_face
from unif2ace.training.convert.face_encoder import convert_face_encoder, make_config, read_iresnet
from unif2ace.training.convert.showo import convert_showo
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.synthetic.painted.dataset import painted_face


RECIPE = Path(__file__).parents[1] / "examples" / "training" / "1.8b-8gpu.yaml"
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def randomised(**sizes) -> UniF2aceFaceEncoder:
    """An encoder in which nothing is at its initial value."""
    torch.manual_seed(0)
    sizes = {"image_size": 16, "stem_channels": 8, "stage_channels": [8, 16], "stage_blocks": [2, 3]} | sizes
    encoder = UniF2aceFaceEncoder(UniF2aceFaceEncoderConfig(**{"embedding_size": 12} | sizes)).eval()
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.3)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 4:  # keeps many blocks from growing beyond all bounds
                tensor.normal_(0, (0.2 if "conv2" in name else 1.0) * tensor[0].numel() ** -0.5)
    return encoder


class Writer:
    """Writes an encoder as an ONNX graph, in the ways in which it is found in the wild."""

    def __init__(
        self, encoder, folded: bool, epsilon: float = 1e-5, shortcut_first: bool = False, shared: str | None = None
    ):
        self.encoder, self.folded, self.epsilon, self.shortcut_first = encoder, folded, epsilon, shortcut_first
        self.shared, self.known = shared, {}
        self.nodes, self.weights, self.count = [], [], 0

    def constant(self, value) -> str:
        value = torch.as_tensor(value).detach().numpy().astype(np.float32)
        key = (value.shape, value.tobytes())
        if self.shared and key in self.known:  # exporters store equal weights once, and name or copy them
            return self.known[key] if self.shared == "by name" else self.add("Identity", self.known[key])
        self.count += 1
        self.known[key] = str(self.count)
        self.weights.append(onnx.numpy_helper.from_array(value, str(self.count)))
        return str(self.count)

    def add(self, kind, *inputs, **attributes) -> str:
        self.count += 1
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [str(self.count)], **attributes))
        return str(self.count)

    def norm(self, tensor, module) -> str:
        variance = module.running_var + module.eps - self.epsilon
        values = (module.weight, module.bias, module.running_mean, variance)
        return self.add("BatchNormalization", tensor, *map(self.constant, values), epsilon=self.epsilon)

    def convolution(self, tensor, convolution, norm) -> str:
        attributes = {"strides": list(convolution.stride), "pads": list(convolution.padding) * 2}
        if not self.folded:
            return self.norm(self.add("Conv", tensor, self.constant(convolution.weight), **attributes), norm)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = convolution.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
        return self.add("Conv", tensor, self.constant(weight), self.constant(bias), **attributes)

    def slope(self, tensor, module) -> str:
        return self.add("PRelu", tensor, self.constant(module.weight[:, None, None]))

    def block(self, tensor, block) -> str:
        def shortcut():
            return tensor if block.downsample is None else self.convolution(tensor, *block.downsample)

        early = shortcut() if self.shortcut_first else None
        main = self.convolution(self.norm(tensor, block.bn1), block.conv1, block.bn2)
        main = self.convolution(self.slope(main, block.prelu), block.conv2, block.bn3)
        return self.add("Add", early, main) if self.shortcut_first else self.add("Add", main, shortcut())

    def save(self, path, own_normalisation: bool = False, as_matmul: bool = False):
        encoder, tensor = self.encoder, "pixels"
        if own_normalisation:
            centred = self.add("Sub", tensor, self.constant([127.5]))
            tensor = self.add("Mul", centred, self.constant([0.0078125]))
        tensor = self.slope(self.convolution(tensor, encoder.conv1, encoder.bn1), encoder.prelu)
        for stage in encoder.layers:
            for block in stage:
                tensor = self.block(tensor, block)
        tensor = self.add("Flatten", self.add("Identity", self.norm(tensor, encoder.bn2)), axis=1)
        if as_matmul:
            tensor = self.add("MatMul", tensor, self.constant(encoder.fc.weight.T))
            tensor = self.add("Add", tensor, self.constant(encoder.fc.bias))
        else:
            weights = self.constant(encoder.fc.weight), self.constant(encoder.fc.bias)
            tensor = self.add("Gemm", tensor, *weights, transB=1)
        tensor = self.norm(tensor, encoder.features)
        size = encoder.config.image_size
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self.nodes,
            "iresnet",
            [value("pixels", onnx.TensorProto.FLOAT, [1, 3, size, size])],
            [value(tensor, onnx.TensorProto.FLOAT, [1, encoder.config.embedding_size])],
            self.weights,
        )
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "glintr.onnx"
    Writer(randomised(), folded=True).save(path)
    return path


@pytest.mark.parametrize("as_matmul", [False, True])
@pytest.mark.parametrize("own_normalisation", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        {"folded": True},
        {"folded": False, "epsilon": 2e-5},
        {"folded": True, "shortcut_first": True},
        {"folded": False, "shared": "by name"},
        {"folded": False, "shared": "by a copy"},
    ],
    ids=["folded", "unfolded", "shortcut-first", "shared", "copied"],
)
def test_every_form_of_export_is_the_same_encoder(form, own_normalisation, as_matmul, tmp_path):
    encoder = randomised()
    if "shared" in form:  # something must be equal
        with torch.no_grad():
            for module in encoder.modules():
                if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.PReLU)):
                    module.weight.fill_(0.25)
    writer = Writer(encoder, **form)
    writer.save(tmp_path / "face.onnx", own_normalisation, as_matmul)
    copies = [node.op_type for node in writer.nodes].count("Identity")
    assert (copies > 5) == (form.get("shared") == "by a copy")
    config, difference = convert_face_encoder(tmp_path / "face.onnx", tmp_path / "encoder")
    assert difference < 1e-5
    assert (config.stage_channels, config.stage_blocks, config.image_size) == ([8, 16], [2, 3], 16)
    again = UniF2aceFaceEncoder.from_pretrained(tmp_path / "encoder").eval()
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    scale = 127.5 * 0.0078125 if own_normalisation else 1.0
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(pixels * scale, encoder.conv1.weight, padding=1)  # by the factor only
        assert torch.isfinite(expected).all()
        if not own_normalisation:
            torch.testing.assert_close(again(pixels).embeddings, encoder(pixels).embeddings, atol=1e-4, rtol=1e-4)


def test_a_file_that_torch_exported(tmp_path):
    encoder = randomised()

    class Embeddings(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, pixel_values):
            return self.encoder(pixel_values).embeddings

    path = tmp_path / "exported.onnx"
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.onnx.export(Embeddings().eval(), (pixels[:1],), str(path), dynamo=False, opset_version=14)
    assert convert_face_encoder(path, tmp_path / "encoder")[1] < 1e-5
    again = UniF2aceFaceEncoder.from_pretrained(tmp_path / "encoder").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).embeddings, encoder(pixels).embeddings, atol=1e-5, rtol=1e-5)


def test_the_papers_encoder_is_read_by_its_graph(tmp_path):
    """IResNet-50 and -100 have the same stages but for the number of blocks; narrow ones are enough."""
    encoder = randomised(stage_channels=[8, 8, 16, 16], stage_blocks=[3, 4, 14, 3], image_size=32)
    Writer(encoder, folded=True).save(tmp_path / "w600k_r50.onnx")
    assert make_config(read_iresnet(tmp_path / "w600k_r50.onnx")).stage_blocks == [3, 4, 14, 3]


@pytest.mark.slow
def test_an_encoder_of_full_size(tmp_path):
    """IResNet-100 as AntelopeV2's: 65 million weights, here random. The file has the size of the published one."""
    full = {"image_size": 112, "stem_channels": 64, "stage_channels": [64, 128, 256, 512], "embedding_size": 512}
    Writer(randomised(**full, stage_blocks=[3, 13, 30, 3]), folded=True).save(tmp_path / "glintr100.onnx")
    assert (tmp_path / "glintr100.onnx").stat().st_size == pytest.approx(261e6, rel=0.01)
    config, difference = convert_face_encoder(tmp_path / "glintr100.onnx", tmp_path / "encoder")
    defaults = UniF2aceFaceEncoderConfig()
    assert (config.stage_channels, config.stage_blocks) == (defaults.stage_channels, defaults.stage_blocks)
    assert difference < 1e-4


def test_the_licence_goes_with_the_weights(file, tmp_path, capsys):
    convert_face_encoder(file, tmp_path / "default")
    assert (
        "non-commercial research" in json.loads((tmp_path / "default" / "config.json").read_text())["weights_license"]
    )
    assert "non-commercial research" in (tmp_path / "default" / "README.md").read_text()
    assert convert_face_encoder(file.rename(tmp_path / "own.onnx"), tmp_path / "own")[0].weights_license == "unknown"
    file = tmp_path / "own.onnx"
    assert cli.main(["convert", "face-encoder", str(file), str(tmp_path / "free")]) == 2
    assert "give it as --license" in capsys.readouterr().err and not (tmp_path / "free").exists()
    arguments = ["convert", "face-encoder", str(file), str(tmp_path / "free"), "--license", "apache-2.0"]
    assert cli.main(arguments) == 0
    assert UniF2aceFaceEncoder.from_pretrained(tmp_path / "free").config.weights_license == "apache-2.0"


@pytest.mark.parametrize(
    "damage", ["truncated", "text", "absent", "other-network", "wrong-weights", "circle", "tensor"]
)
def test_what_is_no_face_encoder_ends_in_one_sentence(file, tmp_path, capsys, damage):
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-500])
    elif damage == "text":
        file.write_text("no model")
    elif damage == "absent":
        file.unlink()
    else:
        model = onnx.load(file)
        if damage == "other-network":
            for node in model.graph.node:
                if node.op_type == "PRelu":
                    node.op_type = "Relu"
                    del node.input[1:]
        elif damage == "circle":  # of nodes that are passed over
            for name, other in (("x", "y"), ("y", "x")):
                model.graph.node.append(onnx.helper.make_node("Identity", [name], [other]))
            model.graph.output[0].name = "x"
        elif damage == "tensor":  # it declares more values than it has
            model.graph.initializer[0].dims[0] = 10**12
        else:  # a first convolution that strides
            next(item for item in model.graph.node[0].attribute if item.name == "strides").ints[:] = [2, 2]
        onnx.save(model, file)
    assert cli.main(["convert", "face-encoder", str(file), str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "error" in line] == lines[-1:] and len(lines) <= 2  # one may say what is done
    assert lines[-1].startswith("unif2ace convert: error: ") and not (tmp_path / "out").exists()


# --- aligned faces


def picture_with_face(angle: float = 20.0, scale: float = 1.7):
    """A picture in which five dots stand where a turned and scaled face has its landmarks, and their places."""
    turn = np.deg2rad(angle)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    landmarks = np.array(ARCFACE_TEMPLATE) @ matrix.T + (120, 40)
    pixels = np.zeros((360, 400, 3), np.uint8)
    for x, y in landmarks.round().astype(int):
        pixels[y - 3 : y + 4, x - 3 : x + 4] = 255
    return Image.fromarray(pixels), landmarks


def test_landmarks_land_on_the_template():
    image, landmarks = picture_with_face()
    aligned = np.asarray(align_largest_face(image, 112, detector=lambda picture: landmarks))
    assert aligned.shape == (112, 112, 3)
    for x, y in np.array(ARCFACE_TEMPLATE).round().astype(int):
        assert aligned[y, x].min() > 200


def test_without_a_face_or_a_detector_the_whole_picture_is_taken_and_the_log_says_so(caplog, monkeypatch):
    from transformers.utils import logging

    from unif2ace.modeling_unif2ace import face_alignment_unif2ace as module

    monkeypatch.setattr(logging.get_logger("unif2ace"), "propagate", True)
    logging.set_verbosity_warning()
    image, _ = picture_with_face()
    whole = image.resize((64, 64), Image.Resampling.BICUBIC)
    with caplog.at_level("WARNING"):
        nothing = align_largest_face(image, 64, detector=lambda picture: None)
        assert "No face was found" in caplog.text
        monkeypatch.setattr(module, "_uniface", lambda: None)
        monkeypatch.setattr(module, "_insightface", lambda: None)
        module.find_detector.cache_clear()
        no_detector = align_largest_face(image, 64)
        assert "pip install uniface onnxruntime" in caplog.text
    module.find_detector.cache_clear()
    assert np.array_equal(np.asarray(nothing), np.asarray(whole))
    assert np.array_equal(np.asarray(no_detector), np.asarray(whole))


def with_landmarks(monkeypatch, landmarks, calls=None):
    """A detector that finds one face, at `landmarks`."""
    from unif2ace.modeling_unif2ace import face_alignment_unif2ace as module

    calls = [] if calls is None else calls
    monkeypatch.setattr(module, "find_detector", lambda: lambda picture: calls.append(picture.shape) or landmarks)


def test_the_image_processor_aligns_for_encoders_that_want_it(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = UniF2aceForConditionalGeneration(get_preset("tiny")).eval().model
    size, (image, landmarks) = model.config.face_config.image_size, picture_with_face()
    with_landmarks(monkeypatch, landmarks)
    plain = UniF2aceImageProcessor.from_resolution(16)(image, return_tensors="pt")
    assert set(plain) == {"pixel_values"}
    UniF2aceImageProcessor.from_resolution(16, face_size=size).save_pretrained(tmp_path)
    processor = UniF2aceImageProcessor.from_pretrained(tmp_path)
    batch = processor([image, image.rotate(90)], return_tensors="pt")
    assert torch.equal(batch["pixel_values"][:1], plain["pixel_values"])
    aligned = torch.from_numpy(np.array(align_largest_face(image, size))).permute(2, 0, 1) / 127.5 - 1
    faces = batch["face_pixel_values"]
    assert faces.shape == (2, 3, size, size) and torch.equal(faces[0], aligned)
    assert torch.equal(processor(np.asarray(image), return_tensors="pt")["face_pixel_values"], faces[:1])

    whole = model.encode_face(plain["pixel_values"])
    assert whole.shape == (1, model.config.face_feature_size)
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(1))
    found = model.encode_face(plain["pixel_values"], faces[:1])
    torch.testing.assert_close(found, model.encode_face(aligned[None]))
    assert not torch.allclose(found, whole)
    model.set_face_encoder(None)
    assert model.encode_face(plain["pixel_values"]) is None


def test_every_door_sees_the_same_aligned_face(monkeypatch):
    """Pipeline, prefilled picture, `generate`, `forward` and collator: all take the processor's pixels."""
    pipe = UniF2acePipeline.from_pretrained()
    image, landmarks = picture_with_face()
    calls, seen = [], []
    with_landmarks(monkeypatch, landmarks, calls)
    pipe.answer([image], "Is she happy?", max_new_tokens=2)
    assert not calls  # this encoder takes whole pictures
    model = pipe.transformer
    encoder = model.model.face_encoder
    encoder.config.alignment = "five_points"
    pipe = UniF2acePipeline(model, pipe.scheduler, pipe.processor)
    encode = model.model.encode_face
    monkeypatch.setattr(model.model, "encode_face", lambda *pixels: seen.append(pixels[1]) or encode(*pixels))
    words = pipe.answer([image, image.copy()], "Is she happy?", max_new_tokens=4)  # one object would be read once
    pipe.prefill(image)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Is she happy?"}]
    inputs = pipe.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert pipe.processor.post_process_image_text_to_text(written) == words[:1]
    model(**inputs)
    collator = UniF2aceCollator(pipe.processor.tokenizer, model.config, pipe.processor.image_processor)
    row = {"task": "mmu", "image": image, "turns": [("Is she happy?", "Yes.")]}
    seen.append(collator([row])["face_pixel_values"])
    size = encoder.config.image_size
    wanted = torch.from_numpy(np.array(align_largest_face(image, size))).permute(2, 0, 1)[None] / 127.5 - 1
    assert len(seen) == 5 and all(torch.equal(faces[:1], wanted) for faces in seen)


def test_a_converted_encoder_serves_a_model(file, tmp_path):
    convert_face_encoder(file, tmp_path / "encoder")
    values = get_preset("tiny").to_dict() | {"face_config": None, "face_feature_size": 12}
    from unif2ace import UniF2aceConfig

    model = UniF2aceForConditionalGeneration(UniF2aceConfig(**values)).eval()
    model.model.set_face_encoder(UniF2aceFaceEncoder.from_pretrained(tmp_path / "encoder"))
    assert model.model.encode_face(torch.zeros(2, 3, 16, 16)).shape == (2, 12)
    shutil.rmtree(tmp_path / "encoder")


def converted(face, showo_sources, folder):
    """`unif2ace convert showo` with a small CLIP and a face encoder; the CLIP model, in `folder/clip` as well."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=8))
    clip.save_pretrained(folder / "clip")
    arguments = ["convert", "showo", str(showo_sources["source"]), str(folder / "model")]
    arguments += ["--magvit", str(showo_sources["magvit"]), "--text-model", str(showo_sources["text_model"])]
    arguments += ["--clip", str(folder / "clip"), "--face-encoder", str(face), "--max-text-length", "16"]
    assert cli.main(arguments) == 0
    return clip


@pytest.mark.parametrize("form", ["folder", "onnx"])
def test_show_o_with_both_encoders_makes_all_kinds_of_experts(form, file, showo_sources, tmp_path):
    face = file
    if form == "folder":
        convert_face_encoder(file, tmp_path / "face", "apache-2.0")
        face = tmp_path / "face"
    clip = converted(face, showo_sources, tmp_path)
    pipe = UniF2acePipeline.from_pretrained(tmp_path / "model")
    model, expected = pipe.transformer, randomised()
    licence = "apache-2.0" if form == "folder" else "non-commercial research"
    assert licence in model.config.face_config.weights_license
    assert licence in (tmp_path / "model" / "README.md").read_text()
    text = model.config.text_config
    kinds = {*text.t2i_sequence_experts, *text.mmu_sequence_experts}
    assert kinds == {"copy", "zero", "noise", "clip", "face"}
    assert set(model.model.resamplers) == {"noise", "clip", "face"}
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    found = model.model.face_encoder(pixels).embeddings
    torch.testing.assert_close(found, expected(pixels).embeddings, rtol=1e-3, atol=1e-3)
    for name, tensor in clip.state_dict().items():
        if not name.endswith("position_ids"):
            assert torch.equal(model.model.vision_tower.state_dict()[name.removeprefix("vision_model.")], tensor), name


# the road's last part, in a process that has seen nothing of the first: what is answered about one picture, with its
# own face and with another's
FRESH = """
import json, sys
import torch
from PIL import Image
from unif2ace import UniF2acePipeline

pipe = UniF2acePipeline.from_pretrained(sys.argv[1])
ask = {"text": "USER: \\n<image>\\nwho is it ? ASSISTANT:", "return_tensors": "pt"}
own, other = (pipe.processor(images=Image.open(name), **ask) for name in sys.argv[2:4])
with torch.no_grad():
    first, second = (
        pipe.transformer(**{**own, "face_pixel_values": seen["face_pixel_values"]}, use_cache=False).logits[0, -1]
        for seen in (own, other)
    )
experts = sorted(set(pipe.transformer.config.text_config.mmu_sequence_experts))
moved = (first - second).abs().max().item()
print("FOUND" + json.dumps({"logits": first.tolist(), "moved": moved, "experts": experts}))
"""


def test_the_whole_road_to_the_papers_model(file, showo_sources, tmp_path, hub):
    """
    Show-o, a CLIP model and an ONNX face encoder to a model with all experts, trained by the recipe for 1.8B but for
    sizes and paths, published, and loaded by others: another person's face changes the answer.
    """
    converted(file, showo_sources, tmp_path)
    convert_face_encoder(file, tmp_path / "face")
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(8):
        face = painted_face(number, size=32)
        face.image.save(faces / f"{number}.png")
        (faces / f"{number}.txt").write_text(f"w{number % 4} w5 w6")
    changes = {
        "initial": tmp_path / "model",
        "parts.vision_tower": tmp_path / "clip",
        "parts.face_encoder": tmp_path / "face",
        "data.train.path": faces,
        "data.validation.path": faces,
        "data.features": tmp_path / "features",
        "data.passes": 4,
        "samples": "{}",
        "training.max_steps": 20,
        "training.per_device_train_batch_size": 8,
        "training.gradient_accumulation_steps": 1,
        "training.bf16": "false",
        "training.use_cpu": "true",
        "training.dataloader_num_workers": 0,
        "training.dataloader_pin_memory": "false",
        "training.disable_tqdm": "true",
        "training.learning_rate": 0.003,
        "training.warmup_steps": 0,
        "training.mmu_sequence_balance_coef": 10.0,  # twenty steps are few to find out that a face is worth its place
        "training.ema_decay": 0.5,
        "training.eval_strategy": '"no"',
        "training.save_steps": 10,
        "training.logging_steps": 5,
    }
    arguments = ["train", "--config", str(RECIPE), "--output", str(tmp_path / "run")]
    for name, value in changes.items():
        arguments += ["--set", f"{name}={value}"]
    assert cli.main(arguments) == 0
    final = tmp_path / "run" / "final"

    def load_elsewhere(name):
        child = subprocess.run(
            [sys.executable, "-c", FRESH, str(name), str(faces / "0.png"), str(faces / "1.png")],
            cwd=tmp_path,
            env=hub.environment | {"PYTHONPATH": ":".join(sys.path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "FOUND" in child.stdout, child.stderr[-3000:]
        return json.loads(child.stdout.rpartition("FOUND")[2])

    found = load_elsewhere(final)
    assert found["experts"] == ["clip", "copy", "face"] and found["moved"] > 1e-3
    assert cli.main(["publish", str(final), "--repo", "tester/faces", "--license", "mit", "--samples", "0"]) == 0
    assert load_elsewhere("tester/faces")["logits"] == pytest.approx(found["logits"], abs=1e-5)


def test_a_face_encoder_of_unknown_licence_is_not_taken_in(file, showo_sources, tmp_path):
    with pytest.raises(ValueError, match="convert face-encoder .* FOLDER --license"):
        convert_showo(destination=tmp_path / "x", face_encoder=file.rename(tmp_path / "mine.onnx"), **showo_sources)
    with pytest.raises(ValueError, match="expected a converted face encoder"):
        convert_showo(destination=tmp_path / "x", face_encoder=showo_sources["source"], **showo_sources)
    assert not (tmp_path / "x").exists()
