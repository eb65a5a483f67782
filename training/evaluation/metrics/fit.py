"""Metrics of whether a generated face fits its prompt: CLIPScore, VQAScore, attributes."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from ..extractors import pooled
from ..judge import UniF2aceJudge
from ..statistics import mean, ratio
from .base import FaceMetric, check_same_length


LONG_TEXT = ("sentences", "truncate", "error")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_BATCH_SIZE = 32


class ClipScore(FaceMetric):
    """
    100 · max(cos(picture, text), 0), the mean over pairs; higher is better.

    The CLIPScore of Hessel et al. (EMNLP 2021, arXiv 2104.08718; they scale by 2.5, libraries by 100), with any model
    of transformers that has `get_image_features` and `get_text_features`: CLIP, SigLIP, or one for long texts such as
    Long-CLIP (arXiv 2403.15378).

    CLIP reads 77 tokens and UniF²aceD's captions have about 120: cut captions would be judged by their first half.
    So, where a text is longer than the model reads, `long_text` says what happens:

    - `"sentences"` (default): it is parted into pieces of whole sentences that fit, and the text's embedding is the
      normalised mean of theirs;
    - `"truncate"`: it is cut, as most published numbers do; how many were is in the result as `too_long`;
    - `"error"`: a `ValueError`.

    `compute(predictions=images, references=texts)`.

    Args:
        model (`str` or `PreTrainedModel`): A folder or repository on the Hub, or the model itself.
        processor (*optional*): Its processor, when the model itself is given.
        long_text (`str`, *optional*, defaults to `"sentences"`): See above.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    columns = {"predictions": datasets.Image(), "references": datasets.Value("string")}
    better = {"clip_score": "higher"}
    urls = ("https://arxiv.org/abs/2104.08718",)

    def __init__(self, model, processor=None, long_text: str = "sentences", device="cpu", **options):
        if long_text not in LONG_TEXT:
            raise ValueError(f"long_text={long_text!r}, expected one of {', '.join(LONG_TEXT)}")
        if isinstance(model, str):
            processor = processor or AutoProcessor.from_pretrained(model)
            model = AutoModel.from_pretrained(model, use_safetensors=True)
        self.model, self.processor, self.long_text = model.eval().to(device), processor, long_text
        self.too_long = 0
        super().__init__(**options)

    @property
    def limit(self) -> int:
        """Tokens that the text encoder reads, the special ones included."""
        text_config = getattr(self.model.config, "text_config", self.model.config)
        return min(text_config.max_position_embeddings, self.processor.tokenizer.model_max_length)

    def statistics(self, predictions, references):
        return {"clip_score": mean(self.scores(predictions, references))}

    def extras(self):
        return {"too_long": self.too_long, "long_text": self.long_text, "limit": self.limit}

    @torch.no_grad()
    def scores(self, images, texts) -> list[float]:
        """The score of each pair."""
        check_same_length(images=images, texts=texts)
        self.too_long = 0
        found = []
        for start in range(0, len(texts), _BATCH_SIZE):
            part = slice(start, start + _BATCH_SIZE)
            part_images = [image.convert("RGB") for image in images[part]]
            pixels = self.processor.image_processor(images=part_images, return_tensors="pt").to(self.model.device)
            pictures = nn.functional.normalize(pooled(self.model.get_image_features(**pixels)).float(), dim=-1)
            words = torch.stack([self.embed(text) for text in texts[part]])
            found += (100 * (pictures * words).sum(-1).clamp(min=0)).tolist()
        return found

    def embed(self, text: str) -> torch.Tensor:
        """The embedding of a text, of length 1."""
        pieces = self.pieces(text)
        encoded = self.processor.tokenizer(
            pieces, padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        ).to(self.model.device)
        embeddings = pooled(self.model.get_text_features(**encoded)).float()
        return nn.functional.normalize(nn.functional.normalize(embeddings, dim=-1).mean(0), dim=-1)

    def pieces(self, text: str) -> list[str]:
        """The text, or the parts of it that the model can read."""
        if self._length(text) <= self.limit:
            return [text]
        self.too_long += 1
        if self.long_text == "error":
            raise ValueError(
                f"a text has {self._length(text)} tokens and the model reads {self.limit}; use "
                f"long_text='sentences' or a model for long texts: {text[:60]!r}..."
            )
        if self.long_text == "truncate":
            return [text]
        pieces: list[str] = []
        for sentence in _SENTENCE_END.split(text):
            for piece in self._fitting(sentence):
                joined = f"{pieces[-1]} {piece}" if pieces else piece
                if pieces and self._length(joined) <= self.limit:
                    pieces[-1] = joined
                else:
                    pieces.append(piece)
        return pieces

    def _fitting(self, sentence: str) -> list[str]:
        """A sentence that is too long itself is parted between words, by halves."""
        words = sentence.split()
        if self._length(sentence) <= self.limit or len(words) < 2:
            return [sentence]
        middle = len(words) // 2
        return self._fitting(" ".join(words[:middle])) + self._fitting(" ".join(words[middle:]))

    def _length(self, text: str) -> int:
        with warnings.catch_warnings():  # of a sequence that is longer than the model's limit: that is the question
            warnings.simplefilter("ignore")
            return len(self.processor.tokenizer(text, verbose=False)["input_ids"])


TEMPLATE = 'Does this figure show "{}"? Please answer yes or no.'
ANSWER = "Yes"


class VqaScore(FaceMetric):
    """
    P("Yes" | picture, "Does this figure show ‹text›? Please answer yes or no."), the mean over pairs; higher is
    better.

    The VQAScore of Lin et al. (ECCV 2024, arXiv 2404.01291) in its generic form: exp(−mean cross-entropy) of the
    answer's tokens, over any model of `AutoModelForImageTextToText`. UniF²ace's tables use it with CLIP-FlanT5 ("CF5")
    and LLaVA-1.5 ("LV"); for the latter give `"llava-hf/llava-1.5-13b-hf"`. The authors' own package pins old versions
    of torch and transformers; numbers of other models are comparable among themselves only. Pictures are padded to
    squares in the grey of the processor's mean, as LLaVA does.

    `compute(predictions=images, references=texts)`.

    Args:
        model (`str` or `PreTrainedModel`): A folder or repository on the Hub, or the model itself.
        processor (*optional*): Its processor, when the model itself is given.
        template (`str`, *optional*): The question, with `{}` for the text.
        answer (`str`, *optional*, defaults to `"Yes"`): The answer whose probability is taken.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`): Of a model that is loaded.
    """

    columns = {"predictions": datasets.Image(), "references": datasets.Value("string")}
    better = {"vqa_score": "higher"}
    urls = ("https://arxiv.org/abs/2404.01291",)

    def __init__(self, model, processor=None, template=TEMPLATE, answer=ANSWER, device="cpu", dtype="auto", **options):
        if "{}" not in template:
            raise ValueError(f"template={template!r} has no {{}} for the text")
        if isinstance(model, str):
            processor = processor or AutoProcessor.from_pretrained(model)
            model = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype, use_safetensors=True)
        self.model, self.processor = model.eval().to(device), processor
        self.template, self.answer = template, answer
        super().__init__(**options)

    def statistics(self, predictions, references):
        return {"vqa_score": mean(self.scores(predictions, references))}

    def extras(self):
        return {"template": self.template, "answer": self.answer}

    def scores(self, images, texts) -> list[float]:
        """The score of each pair."""
        check_same_length(images=images, texts=texts)
        return [self.score(image, text) for image, text in zip(images, texts, strict=True)]

    def score(self, image: Image.Image, text: str) -> float:
        """exp(−mean cross-entropy) of the answer after picture and question."""
        question = self.template.format(text)
        log_probability = answer_log_probability(
            self.model, self.processor, self._square(image), question, self.answer
        )
        return math.exp(log_probability)

    def _square(self, image: Image.Image) -> Image.Image:
        image = image.convert("RGB")
        side = max(image.size)
        if image.size == (side, side):
            return image
        mean_color = getattr(getattr(self.processor, "image_processor", None), "image_mean", None) or [0.5, 0.5, 0.5]
        padded = Image.new("RGB", (side, side), tuple(round(255 * value) for value in mean_color))
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return padded


@torch.no_grad()
def answer_log_probability(model, processor, image: Image.Image, question: str, answer: str) -> float:
    """
    Mean log-probability of the tokens of an answer, after a picture and a question.

    Args:
        model, processor: A vision-language model of transformers and its processor.
        image (`PIL.Image.Image`): The picture.
        question (`str`), answer (`str`): The texts.

    Returns:
        `float`: mean over the answer's tokens; 0 if the model is sure of them.

    Raises:
        ValueError: if the answer has no tokens.
    """
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        prompt = f"{getattr(processor, 'image_token', '<image>')}\n{question}\n"
    inputs = processor(images=[image], text=[prompt], return_tensors="pt").to(model.device, model.dtype)
    tokens = processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    count = tokens.shape[1]
    if not count:
        raise ValueError(f"answer={answer!r} has no tokens")
    if getattr(model.config, "is_encoder_decoder", False):
        logits = model(**inputs, labels=tokens).logits
    else:
        ids = inputs.pop("input_ids")
        mask = inputs.pop("attention_mask", torch.ones_like(ids))
        for name in ("token_type_ids", "mm_token_type_ids"):  # one number for each token of the prompt
            if name in inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, count))
        ids = torch.cat([ids, tokens], dim=1)
        mask = torch.nn.functional.pad(mask, (0, count), value=1)
        # logits at a place are those of the next token
        logits = model(input_ids=ids, attention_mask=mask, **inputs).logits[:, -count - 1 : -1]
    chosen = logits.float().log_softmax(-1).gather(-1, tokens[..., None])
    return float(chosen.mean())


class AttributeAccuracy(FaceMetric):
    """
    Share of asked-for attributes that a classifier reads in the generated faces; higher is better.

    Attributes of all pictures are pooled, so those that are asked for more often count more. The classifier's own
    accuracy on real pictures with these attributes is the ceiling: give `originals` to get it as `ceiling`.

    `compute(predictions=images, references=attributes)`, attributes as `{name: value}` of those that count.

    Args:
        judge ([`UniF2aceJudge`]): The classifier, or any object whose `predict(images)` gives attribute name -> one
            value for each picture.
    """

    columns = {"predictions": datasets.Image(), "references": datasets.Json()}
    better = {"attribute_accuracy": "higher", "ceiling": None}

    def __init__(self, judge: UniF2aceJudge, **options):
        self.judge = judge
        super().__init__(**options)

    def statistics(self, predictions, references, originals=None):
        check_same_length(predictions=predictions, references=references)
        found = {"attribute_accuracy": self._share(predictions, references)}
        if originals is not None:
            check_same_length(originals=originals, references=references)
            found["ceiling"] = self._share(originals, references)
        return found

    def _share(self, images: Sequence, asked: Sequence[Mapping[str, str]]):
        read = self.judge.predict(images)
        unknown = sorted({name for face in asked for name in face} - read.keys())
        if unknown:
            raise ValueError(f"the classifier does not know the attribute {unknown[0]!r}, expected {', '.join(read)}")
        right = [sum(read[name][row] == value for name, value in face.items()) for row, face in enumerate(asked)]
        return ratio(right, np.array([len(face) for face in asked]))


__all__ = ["ANSWER", "AttributeAccuracy", "ClipScore", "TEMPLATE", "VqaScore", "answer_log_probability"]
