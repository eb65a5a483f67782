"""
Show-o's own training: its prompts and labels, its three losses.

For people who go on with Show-o's recipe, compare with it, or check a conversion. What differs from our training
(`data/collator.py`, `objective_unif2ace.py`):

- captions are `[eoi][bos] text [eos]`, every token of which is a label, without a question;
- the text-to-image loss is the cross-entropy over the whole vocabulary at the masked codes and at start- and
  end-of-image, the mean over all of them, and not D3Diff;
- text without a picture is a third task, with a weight of 0.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ...modeling_unif2ace import UniF2aceConfig
from ...modeling_unif2ace.layout_unif2ace import MMU, T2I
from ..data.collator import IGNORED


LM = 2  # the third kind of row, beside T2I and MMU: text alone


def row_kinds(input_ids: torch.LongTensor, config: UniF2aceConfig) -> torch.LongTensor:
    """What each row (B, L) is: 0 text to image, 1 understanding, 2 text alone; (B,)."""
    is_t2i = (input_ids == config.special_token_id("<|t2i|>")).any(-1)
    is_mmu = (input_ids == config.special_token_id("<|mmu|>")).any(-1)
    return torch.where(is_t2i, T2I, torch.where(is_mmu, MMU, LM))


class ShowoPrompts:
    """
    Rows of token ids and labels exactly as Show-o's `UniversalPrompting` writes them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of a converted folder.
        config (`UniF2aceConfig`): The model's configuration.

    Image ids are ids of the vocabulary (codes plus `config.image_code_offset`, or the mask token), `(batch_size, N)`.
    All methods return `input_ids` and `labels`, int64; `labels` are not shifted.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: UniF2aceConfig):
        self.tokenizer = tokenizer
        self.config = config
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = config.special_token_id("[PAD]")

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """`[bos] text` of each text; a bos that is there already is not doubled."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [ids if ids[:1] == [self.bos] else [self.bos, *ids] for ids in encoded]

    def _special(self, token: str, image_ids: torch.LongTensor) -> torch.LongTensor:
        return image_ids.new_full((len(image_ids), 1), self.config.special_token_id(token))

    def _ignore_padding(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        return input_ids.masked_fill(input_ids == self.pad, IGNORED)

    def t2i(
        self,
        texts: Sequence[str],
        image_ids: torch.LongTensor,
        image_labels: torch.LongTensor,
        dropped: torch.BoolTensor | None = None,
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Text to image: `[PAD ...][t2i][bos] text [eos]`, `max_text_length + 1` long, then `[soi] N codes [eoi]`.

        Args:
            texts (`Sequence[str]`): Prompts; what is too long is cut.
            image_ids (`torch.LongTensor`): Ids, masked.
            image_labels (`torch.LongTensor`): Ids at masked places, -100 elsewhere.
            dropped (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                Rows that lose their text, for guidance. Show-o draws `torch.rand(batch_size) < 0.1`.
        """
        length, start = self.config.max_text_length + 1, self.config.special_token_id("<|t2i|>")
        rows = []
        for number, ids in enumerate(self._encode(texts)):
            if dropped is not None and dropped[number]:
                ids = [self.bos]
            row = [start, *ids, self.eos]
            row = row if len(row) <= length else [*row[: length - 1], self.eos]
            rows.append([self.pad] * (length - len(row)) + row)
        text = torch.tensor(rows, dtype=torch.long, device=image_ids.device).view(len(image_ids), length)
        soi, eoi = self._special("<|soi|>", image_ids), self._special("<|eoi|>", image_ids)
        labels = torch.cat([self._ignore_padding(text), soi, image_labels, eoi], dim=1)
        return torch.cat([text, soi, image_ids, eoi], dim=1), labels

    def mmu(self, texts: Sequence[str], image_ids: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Captions: `[mmu][soi] N codes [eoi][bos] text [eos][PAD ...]`, the text part `max_text_length` long."""
        length, rows = self.config.max_text_length, []
        for ids in self._encode(texts):
            row = [*ids, self.eos]
            row = row if len(row) <= length else [*row[: length - 1], self.eos]
            rows.append(row + [self.pad] * (length - len(row)))
        text = torch.tensor(rows, dtype=torch.long, device=image_ids.device).view(len(image_ids), length)
        special = [self._special(token, image_ids) for token in ("<|mmu|>", "<|soi|>", "<|eoi|>")]
        prefix = torch.cat([special[0], special[1], image_ids, special[2]], dim=1)
        labels = torch.cat([torch.full_like(prefix, IGNORED), self._ignore_padding(text)], dim=1)
        return torch.cat([prefix, text], dim=1), labels

    def lm(self, texts: Sequence[str], length: int) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Text alone: `[bos] text [eos][PAD ...]`, `length` long; what is too long is cut and has no eos."""
        rows = [[*ids, self.eos][:length] for ids in self._encode(texts)]
        padded = [row + [self.pad] * (length - len(row)) for row in rows]
        input_ids = torch.tensor(padded, dtype=torch.long).view(len(rows), length)
        return input_ids, self._ignore_padding(input_ids)


@dataclass
class ShowoLosses:
    """Mean cross-entropies of the three tasks, scalars in float32; 0 for a task without labels in the batch."""

    t2i: torch.Tensor
    lm: torch.Tensor
    mmu: torch.Tensor

    def total(self, t2i_weight: float = 1.0, lm_weight: float = 0.1, mmu_weight: float = 1.0) -> torch.Tensor:
        """Their weighted sum; the defaults are Show-o's."""
        return t2i_weight * self.t2i + lm_weight * self.lm + mmu_weight * self.mmu


def showo_losses(model: nn.Module, input_ids: torch.LongTensor, labels: torch.LongTensor, **kwargs) -> ShowoLosses:
    """
    Show-o's three losses of a batch that [`ShowoPrompts`] wrote; rows may have any order.

    The text-to-image loss is not shifted, begins at start-of-image and counts start- and end-of-image, whose labels
    are their own ids; the others are shifted. Logits are over the whole vocabulary, and computed only where a label
    asks for them.

    Args:
        model (`UniF2aceForConditionalGeneration`): The model, in the mode that the caller wants.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): Ids.
        labels (`torch.LongTensor` of shape `(batch_size, length)`): Labels, not shifted; -100 is ignored.
        kwargs: Other arguments of the model, as `clip_features`.
    """
    config = model.config
    kinds = row_kinds(input_ids, config)
    is_t2i = (kinds == T2I)[:, None]
    behind_text = torch.arange(input_ids.shape[1], device=input_ids.device) > config.max_text_length
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    targets = torch.where(is_t2i, labels.masked_fill(~behind_text, IGNORED), shifted)
    asked = targets != IGNORED
    outputs = model(
        input_ids=input_ids,
        attention_mask=(input_ids != config.special_token_id("[PAD]")).long(),
        task_ids=kinds.clamp(max=MMU),  # text alone belongs to the understanding group
        text_logits_mask=asked,
        use_cache=False,
        **kwargs,
    )
    token_losses = F.cross_entropy(outputs.text_logits.float(), targets[asked], reduction="none")
    kind_of_token = kinds[:, None].expand_as(asked)[asked]

    def mean(kind: int) -> torch.Tensor:
        chosen = (kind_of_token == kind).float()
        return (token_losses * chosen).sum() / chosen.sum().clamp(min=1)

    return ShowoLosses(t2i=mean(T2I), lm=mean(LM), mmu=mean(MMU))
