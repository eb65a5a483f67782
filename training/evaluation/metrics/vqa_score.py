"""VQAScore: the probability that a vision-language model says "Yes, the picture shows this text"."""

import math

import datasets
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..statistics import mean
from .base import FaceMetric, check_same_length


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


__all__ = ["ANSWER", "TEMPLATE", "VqaScore", "answer_log_probability"]
