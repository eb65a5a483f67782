"""The metrics: values by hand, agreement with other libraries, invariances; with tiny random models."""

import importlib.util
import inspect
import shutil

import evaluate
import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from unif2ace import UniF2aceFaceEncoder, UniF2aceFaceEncoderConfig
from unif2ace.training.chat_endpoint import ChatEndpoint
from unif2ace.training.evaluation import metrics
from unif2ace.training.evaluation.extractors import FaceFeatures, JudgeFeatures, VisionFeatures, open_extractor
from unif2ace.training.evaluation.judge import UniF2aceJudge, UniF2aceJudgeConfig
from unif2ace.training.evaluation.metrics.distances import frechet_distance, kernel_distance, nearest


def pictures(count, seed=0, size=16):
    arrays = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in arrays]


def features(count, size=4, shift=0.0, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (count, size)))


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    config = UniF2aceJudgeConfig(image_size=16, stage_channels=[8, 8, 8], head_channels=4, feature_size=8)
    return UniF2aceJudge(config).eval()


def word_tokenizer(words, **special):
    """A real tokenizer that knows some words."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", "<image>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", **special
    )


WORDS = ["a", "man", "woman", "with", "hat", "beard", "Yes", "No", "yes", "no", ".", "?", '"', "Does", "this", "show"]


class ClipProcessor:
    """What `AutoProcessor` loads for CLIP: an image processor and a tokenizer."""

    def __init__(self, tokenizer):
        self.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        self.tokenizer = tokenizer


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text |= {"vocab_size": 32, "max_position_embeddings": 8, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision |= {"image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    return model, ClipProcessor(word_tokenizer(WORDS, model_max_length=8))


def test_every_metric_is_a_module_of_evaluate_with_a_name():
    for name, metric in metrics.METRICS.items():
        assert issubclass(metric, evaluate.Metric) and metric.__name__ == name.title().replace("_", "")
        assert inspect.getdoc(metric) and (metric.better or metric.urls)
    assert {metric.__name__ for metric in metrics.METRICS.values()} <= set(metrics.__all__)


# what each metric's class must be given
CLASS_ARGUMENTS = {
    "attribute_accuracy": lambda judge, clip: {"judge": judge},
    "clip_score": lambda judge, clip: {"model": clip[0], "processor": clip[1]},
    "diversity": lambda judge, clip: {"judge": judge},
    "vqa_score": lambda judge, clip: {"model": clip[0], "processor": clip[1]},
    **{
        name: lambda judge, clip: {"extractor": JudgeFeatures(judge)}
        for name in ("frechet_distance", "identity_similarity", "kernel_distance", "memorisation")
    },
    **{
        name: lambda judge, clip: {"endpoint": ChatEndpoint("http://localhost:1/v1", "judge"), "repeats": 2}
        for name in ("conversation_score", "description_score", "vlm_score")
    },
}


@pytest.mark.parametrize("name", metrics.METRICS)
def test_evaluate_loads_each_metric_by_its_name(name, judge, clip, tmp_path, monkeypatch):
    # a process that was never in the package's folder, and a copy as a Space on the Hub would be
    folder = tmp_path / "unif2ace_metrics"
    folder.mkdir()
    shutil.copy(metrics.SCRIPT, folder)
    monkeypatch.chdir(tmp_path)
    arguments = CLASS_ARGUMENTS.get(name, lambda judge, clip: {})(judge, clip)
    for path in (metrics.SCRIPT, str(folder)):
        loaded = evaluate.load(path, name, **arguments)
        assert type(loaded) is metrics.METRICS[name] and loaded.features
    if name == "answer_accuracy":
        loaded.add_batch(predictions=["Yes.", "no"], references=["yes", "yes"])
        assert loaded.compute()["accuracy"] == 0.5
        both = evaluate.combine([loaded, evaluate.load(metrics.SCRIPT, name)])
        assert both.compute(predictions=["Yes."], references=["yes"])


def test_the_script_names_its_metrics():
    with pytest.raises(ValueError, match="no metric None: name one as the second argument, answer_accuracy, "):
        evaluate.load(metrics.SCRIPT)


def test_a_metric_gathers_batches_and_gives_intervals():
    metric = metrics.AnswerAccuracy()
    metric.add_batch(predictions=["Yes.", "no"], references=["yes", "yes"])
    metric.add(prediction="A red hat", reference="red hat")
    found = metric.compute()
    assert found["accuracy"] == pytest.approx(2 / 3) and found["count"] == 3
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert metric.compute(predictions=["yes, he does"], references=["yes"])["starts_right"] == 1.0
    assert metric.compute(predictions=["yesterday"], references=["yes"])["starts_right"] == 0.0
    assert "VQA" in metric.description


def test_frechet_distance_agrees_with_scipy_and_is_one():
    a, b = features(300, shift=0.3), features(200, seed=1) * 1.5
    difference = a.mean(0).numpy() - b.mean(0).numpy()
    covariances = [np.cov(part.numpy(), rowvar=False) for part in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    moved = a + torch.tensor([3.0, 0, 0, 4.0], dtype=a.dtype)
    assert frechet_distance(moved, a) == pytest.approx(25)
    with pytest.raises(ValueError, match="two rows or more"):
        frechet_distance(a[:1], b)


def test_kernel_distance_agrees_with_torchmetrics():
    a, b = features(60, shift=0.3), features(60, seed=1)
    value = float(kernel_distance(a, b)(np.ones((1, 60)))[0])

    class Whole(torch.nn.Module):
        num_features = 4

        def forward(self, x):
            return x

    library = KernelInceptionDistance(feature=Whole(), subsets=1, subset_size=60).set_dtype(torch.float64)
    library.update(a, real=False)
    library.update(b, real=True)
    # the library also counts the pairs (x_i, y_i)
    across = (a @ b.T / 4 + 1) ** 3
    with_own = 2 * across.mean() - 2 * (across.sum() - across.trace()) / (60 * 59)
    assert value == pytest.approx(float(library.compute()[0] + with_own), rel=1e-5)


def test_kernel_distance_has_no_bias_and_resamples_without_copies():
    statistic = [kernel_distance(features(30, seed=2 * s), features(30, seed=2 * s + 1)) for s in range(200)]
    values = [float(s(np.ones((1, 30)))[0]) for s in statistic]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    # a picture drawn twice makes no pair with its copy: a set of copies has no pairs at all
    weights = np.zeros((1, 30))
    weights[0, 0] = 30
    assert np.isnan(statistic[0](weights)[0])
    # nor has it bias where pictures come in pairs that resemble each other
    dependent = [features(30, seed=2 * s) for s in range(200)]
    values = [
        float(kernel_distance(x, 0.8 * x + 0.6 * features(30, seed=2 * s + 1))(np.ones((1, 30)))[0])
        for s, x in enumerate(dependent)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    subset = np.zeros((1, 30))
    subset[0, :10] = 1
    alone = kernel_distance(features(30, seed=0)[:10], features(30, seed=1)[:10])
    assert statistic[0](subset)[0] == pytest.approx(alone(np.ones((1, 10)))[0])
    with pytest.raises(ValueError, match="expected one shape"):
        kernel_distance(features(3), features(4))


def test_distances_of_pictures_with_any_features(judge):
    extractor = JudgeFeatures(judge)
    same = metrics.FrechetDistance(extractor).compute(predictions=pictures(20), real=pictures(20))
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-6) and same["features"] == "judge"
    other = metrics.KernelDistance(extractor).compute(predictions=pictures(20), references=pictures(20, seed=1))
    assert other["kernel_distance_low"] < other["kernel_distance"] < other["kernel_distance_high"]
    smooth = [Image.new("RGB", (16, 16), (12 * i, 0, 0)) for i in range(20)]
    far = metrics.KernelDistance(extractor).compute(predictions=pictures(20), references=smooth)
    assert far["kernel_distance"] > other["kernel_distance"]


def test_extractors(judge, clip, tmp_path):
    judge.save_pretrained(tmp_path / "judge")
    config = UniF2aceFaceEncoderConfig(
        image_size=16, stem_channels=8, stage_channels=[8, 16], stage_blocks=[1, 1], embedding_size=16
    )
    torch.manual_seed(0)
    UniF2aceFaceEncoder(config).save_pretrained(tmp_path / "face")
    clip[0].save_pretrained(tmp_path / "clip")
    clip[1].image_processor.save_pretrained(tmp_path / "clip")
    images = pictures(3, size=24)
    for spec, size in ((f"judge:{tmp_path}/judge", 8), (f"face:{tmp_path}/face", 16), (f"vision:{tmp_path}/clip", 8)):
        extractor = open_extractor(spec)
        found = extractor(images)
        assert found.shape == (3, size) and found.dtype == torch.float32
        torch.testing.assert_close(extractor(np.stack([np.asarray(image) for image in images])), found)
    assert open_extractor(f"face:{tmp_path}/face")(images).norm(dim=-1).tolist() == pytest.approx([1, 1, 1])
    for spec in ("clip", "judge:", "inception:here", "other:x"):
        with pytest.raises(ValueError, match="names no features"):
            open_extractor(spec)
    if importlib.util.find_spec("torch_fidelity") is None:
        with pytest.raises(ImportError, match="torch-fidelity"):
            open_extractor("inception")


def test_clip_score_by_hand_and_for_long_texts(clip):
    model, processor = clip
    images, texts = pictures(3), ["a man with a hat", "a woman", "a beard"]
    metric = metrics.ClipScore(model, processor)
    found = metric.compute(predictions=images, references=texts)
    with torch.no_grad():
        pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
        pictures_ = model.get_image_features(pixels).pooler_output
        words = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        cosines = torch.nn.functional.cosine_similarity(pictures_, words)
    assert found["clip_score"] == pytest.approx(float(100 * cosines.clamp(min=0).mean()), abs=1e-4)
    assert found["too_long"] == 0 and found["limit"] == 8
    long = "a man with a hat . a woman with a beard . a hat with a man with a woman with a beard"
    pieces = metric.pieces(long)
    assert " ".join(pieces) == long and len(pieces) > 2
    assert all(metric._length(piece) <= 8 for piece in pieces)
    assert metric.compute(predictions=images[:1], references=[long])["too_long"] == 1
    assert metrics.ClipScore(model, processor, "truncate").pieces(long) == [long]
    with pytest.raises(ValueError, match="reads 8"):
        metrics.ClipScore(model, processor, "error").scores(images[:1], [long])
    with pytest.raises(ValueError, match="long_text"):
        metrics.ClipScore(model, processor, "cut")


@pytest.fixture(scope="module")
def llava():
    torch.manual_seed(0)
    tokenizer = word_tokenizer([*WORDS, "figure", "Please", "answer", "or", "USER", ":", "ASSISTANT"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision |= {"num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    text = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text |= {"num_hidden_layers": 1, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}USER: {% for c in m['content'] %}"
            "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
            " ASSISTANT:"
        ),
    )
    return LlavaForConditionalGeneration(config).eval(), processor


def test_vqa_score_is_the_probability_of_yes(llava):
    model, processor = llava
    images, texts = pictures(2), ["a man with a hat", "a woman"]
    found = metrics.VqaScore(model, processor).compute(predictions=images, references=texts)
    assert 0 < found["vqa_score"] < 1 and found["answer"] == "Yes"
    scores = {}
    for answer in ("Yes", "No"):
        scores[answer] = metrics.VqaScore(model, processor, answer=answer).score(images[0], texts[0])
    # by hand: the distribution of the token after the prompt
    prompt = f'USER: <image> Does this figure show "{texts[0]}"? Please answer yes or no. ASSISTANT:'
    inputs = processor(images=images[:1], text=[prompt], return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits[0, -1].softmax(-1)
    for answer, score in scores.items():
        assert score == pytest.approx(
            float(probabilities[processor.tokenizer.convert_tokens_to_ids(answer)]), rel=1e-4
        )
    wide = Image.new("RGB", (30, 10), "red")
    assert metrics.VqaScore(model, processor)._square(wide).size == (30, 30)
    with pytest.raises(ValueError, match="no {}"):
        metrics.VqaScore(model, processor, template="Is this a face?")


def test_identity_similarity_tells_persons_apart():
    config = UniF2aceFaceEncoderConfig(
        image_size=16, stem_channels=8, stage_channels=[8, 16], stage_blocks=[1, 1], embedding_size=16
    )
    torch.manual_seed(0)
    metric = metrics.IdentitySimilarity(FaceFeatures(UniF2aceFaceEncoder(config)))
    found = metric.compute(predictions=pictures(5), references=pictures(5))
    assert found["identity_similarity"] == pytest.approx(1, abs=1e-5) and found["other_person"] < 1
    with pytest.raises(ValueError, match="equally many"):
        metric.statistics(pictures(2), pictures(1))


def test_attribute_accuracy_by_hand(judge):
    images = pictures(4)
    read = judge.predict(images)
    asked = [{"mask": read["mask"][row], "mole": read["mole"][row]} for row in range(4)]
    other = {"no": "yes", "yes": "no"}
    asked[0]["mask"] = other[asked[0]["mask"]]
    asked[1] = {"mole": other[asked[1]["mole"]]}
    found = metrics.AttributeAccuracy(judge).compute(predictions=images, references=asked, originals=images)
    assert found["attribute_accuracy"] == pytest.approx(5 / 7) == found["ceiling"]
    with pytest.raises(ValueError, match="'tail'"):
        metrics.AttributeAccuracy(judge).compute(predictions=images[:1], references=[{"tail": "long"}])


def test_caption_attributes_by_hand():
    captions = ["A man with a full beard.", "A woman. She wears a red t-shirt."]
    truths = [{"gender": "man", "beard": "goatee"}, {"gender": "woman", "clothes": "t-shirt"}]
    found = metrics.CaptionAttributes().compute(predictions=captions, references=truths)
    # the colour of the clothes has no known truth, so it is neither right nor wrong
    assert found["precision"] == pytest.approx(3 / 4) and found["recall"] == pytest.approx(3 / 4)
    assert found["attributes_stated"] == pytest.approx(2.5)
    wanted = [["gender"], ["gender"]]
    assert metrics.CaptionAttributes().compute(predictions=captions, references=truths, wanted=wanted)["recall"] == 1


def test_choice_accuracy_by_hand():
    found = metrics.ChoiceAccuracy().compute(predictions=["a", "AB", "", "D"], references=["A", "ACD", "B", "C"])
    assert found["accuracy"] == 0.25 and found["unanswered"] == 0.25
    assert found["f1"] == pytest.approx((1 + 2 / 5 + 0 + 0) / 4)
    with pytest.raises(ValueError, match="no right letter"):
        metrics.ChoiceAccuracy().compute(predictions=["a"], references=[""])


def test_diversity(judge):
    same, other = pictures(1)[0], pictures(1, seed=1)[0]
    metric = metrics.Diversity(judge)
    found = metric.compute(predictions=[same, same, other, same], references=["a", "a", "b", "b"])
    alone = metric.compute(predictions=[other, same], references=["b", "b"])
    assert found["diversity"] == pytest.approx(alone["diversity"] / 2) and alone["diversity"] > 0
    assert found["between_prompts"] == pytest.approx(alone["diversity"])  # from `same` to `other`
    with pytest.raises(ValueError, match="every prompt has one picture"):
        metric.compute(predictions=[same, other], references=["a", "b"])


def test_code_entropy_by_hand():
    metric = metrics.CodeEntropy()
    codes = [[1, 2], [1, 3], [5, 5], [5, 5]]
    assert metric.compute(predictions=codes, references=["a", "a", "b", "b"])["code_entropy"] == pytest.approx(0.25)
    distinct = [[i] for i in range(8)]
    assert metric.compute(predictions=distinct, references=["a"] * 8)["code_entropy"] == pytest.approx(3)
    with pytest.raises(ValueError, match="one picture"):
        metric.compute(predictions=codes[:1], references=["a"])


class Pixels:
    """Features that cannot be mistaken: the pixels, from -1 to 1."""

    name = "pixels"

    def __call__(self, images):
        return (
            torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).flatten(1) / 127.5 - 1
        )


def test_memorisation_finds_copies():
    cosines, places = nearest(torch.eye(3)[[2, 0]], torch.eye(3), chunk=1)
    assert cosines.tolist() == [1, 1] and places.tolist() == [2, 0]
    training, new = pictures(20), pictures(40, seed=1)
    metric = metrics.Memorisation(Pixels())
    copied = metric.compute(predictions=training[5:10], training=training, new=new)
    assert copied["close"] == 1 and copied["nearest"] == pytest.approx(1, abs=1e-5)
    assert sorted(pair["training"] for pair in copied["closest"]) == [5, 6, 7, 8, 9]
    honest = metric.compute(predictions=pictures(40, seed=2), training=training, new=new)
    assert honest["close"] < 0.2 and honest["nearest"] < copied["nearest"]
    with pytest.raises(ValueError, match="0 training pictures"):
        metric.statistics(training, [], new)


def test_vision_features_without_texts():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, image_size=16, patch_size=8
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    assert VisionFeatures(CLIPVisionModel(config), image_processor=processor)(pictures(2)).shape == (2, 16)
