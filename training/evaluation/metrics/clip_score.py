"""CLIPScore: how well a picture and a text fit, by the cosine of their embeddings."""

import re
import warnings

import datasets
import torch
from torch import nn
from transformers import AutoModel, AutoProcessor

from ..extractors import pooled
from ..statistics import mean
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


__all__ = ["ClipScore"]
