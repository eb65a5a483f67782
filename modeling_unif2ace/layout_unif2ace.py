"""
How a sequence is spelled, and nowhere else: special tokens, prompts, where an image stands, who sees whom, positions.

    text to image   [PAD …] <|t2i|> bos text eos <|soi|> N codes <|eoi|>
    understanding   <|mmu|> <|soi|> N codes <|eoi|> text

Text sees what is before it; the image span sees the text before it and all of itself; nobody sees padding. In batches
text-to-image rows are padded on the left and understanding rows on the right. Conversations are spelled by the chat
template (`processing_unif2ace.py`), which a checkpoint may replace.

Shape letters: B rows of the batch, S tokens, R rows that hold an image, N image codes, H width.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


TASKS = ("t2i", "mmu")  # a task's id is its place here
T2I, MMU = 0, 1

# The ten special tokens that Show-o appends to its text vocabulary, in its order; ids follow the text vocabulary.
SPECIAL_TOKENS = (
    "[PAD]",
    "<|soi|>",
    "<|eoi|>",
    "<|sov|>",
    "<|eov|>",
    "<|t2i|>",
    "<|mmu|>",
    "<|t2v|>",
    "<|v2v|>",
    "<|lvg|>",
)

# How the understanding side is asked, without a picture, to complete a short prompt to a full description.
COMPLETE_REQUEST = "Complete this description: {prompt}"


class TaskRows:
    """
    Which rows of a batch are text-to-image and which are understanding. The task picks the group of experts, never
    the router.

    Args:
        task_ids (`torch.LongTensor` of shape `(batch_size,)`): 0 for text-to-image, 1 for understanding.
        only (`int`, *optional*):
            The one task of all rows, when the caller knows it: spares the look at `task_ids`, which on an accelerator
            waits for the device.
    """

    def __init__(self, task_ids: torch.LongTensor, only: int | None = None):
        self.task_ids = task_ids
        self.index = {}
        if only is None:
            num_mmu = int(task_ids.sum())
            only = {0: T2I, len(task_ids): MMU}.get(num_mmu)
        self.only = only
        if only is None:
            self.index = {task: (task_ids == task).nonzero().squeeze(1) for task in (T2I, MMU)}

    def select(self, states: torch.Tensor, task: int) -> torch.Tensor:
        """The rows of `states` (B, ...) that belong to `task`; possibly none."""
        if self.only is not None:
            return states if self.only == task else states[:0]
        return states.index_select(0, self.index[task])

    def merge(self, parts: dict[int, torch.Tensor]) -> torch.Tensor:
        """Put what `select` took apart back together, (B, ...) in the order of the batch."""
        if self.only is not None:
            return parts[self.only]
        order = torch.cat([self.index[T2I], self.index[MMU]]).argsort()
        return torch.cat([parts[T2I], parts[MMU]]).index_select(0, order)

    def runs(self, task: int) -> bool:
        """
        Whether the modules of `task` are to be called. In training always: with no rows they see an empty tensor and
        get zero gradients instead of none, which data parallel training needs.
        """
        return torch.is_grad_enabled() or self.only in (None, task)


@dataclass
class ImageSpan:
    """
    Where the image codes are.

    Args:
        rows (`torch.LongTensor` of shape `(R,)`): Rows that hold an image.
        positions (`torch.LongTensor` of shape `(R, N)`): Their codes' places in the sequence.
        task_ids (`torch.LongTensor` of shape `(R,)`): Their tasks.
        only (`int`, *optional*): The one task of all rows, when the caller knows it; spares a wait for the device.
        mask (`torch.BoolTensor` of shape `(R, N)`, *optional*):
            False where a span is shorter than the longest: CLIP patches and image codes need not be equally many.
    """

    rows: torch.LongTensor
    positions: torch.LongTensor
    task_ids: torch.LongTensor
    only: int | None = None
    mask: torch.BoolTensor | None = None

    def rows_of(self, task: int) -> torch.LongTensor:
        """Which of the R rows belong to `task`."""
        if self.only is not None:
            rows = torch.arange(len(self.task_ids), device=self.task_ids.device)
            return rows if self.only == task else rows[:0]
        return (self.task_ids == task).nonzero().squeeze(1)

    @property
    def last(self) -> torch.LongTensor:
        """The place of each span's last state, (R,)."""
        return self.positions[:, -1] if self.mask is None else self.positions[:, 0] + self.mask.sum(-1) - 1

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """The image codes' states, (R, N, H), from (B, S, H)."""
        return states[self.rows[:, None], self.positions]

    def scatter(self, states: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`states` (B, S, H) with the image codes' states replaced by `values` (R, N, H)."""
        index = (self.rows[:, None].expand_as(self.positions), self.positions)
        if self.mask is not None:
            index, values = tuple(part[self.mask] for part in index), values[self.mask]
        return states.index_put(index, values.to(states.dtype))

    def mean(self, states: torch.Tensor) -> torch.Tensor:
        """The spans' means, (R, H) float32, of what `gather` returned."""
        if self.mask is None:
            return states.float().mean(1)
        real = self.mask[..., None].float()
        return (states.float() * real).sum(1) / real.sum(1)


@dataclass(frozen=True)
class SequenceLayout:
    """
    The ids and lengths by which a model's sequences are spelled; `config.layout` is that of a configuration.

    Args:
        pad, bos, eos, t2i, mmu, soi, eoi (`int`): Ids of the special tokens.
        num_codes (`int`): Codes N of an image.
        max_text_length (`int`): Text tokens of a prompt, with `bos` and `eos`.
        first_code (`int`, *optional*): Id of image code 0; the mask token, `mask`, is the last id.
        mask (`int`, *optional*): Id of the mask token.
        num_understanding (`int`, *optional*): Places of an image in an understanding row.
        reads_patches (`bool`, *optional*, defaults to `False`): Whether these hold CLIP patches and not codes.
    """

    pad: int
    bos: int
    eos: int
    t2i: int
    mmu: int
    soi: int
    eoi: int
    num_codes: int
    max_text_length: int
    first_code: int | None = None
    mask: int | None = None
    num_understanding: int | None = None
    reads_patches: bool = False

    @classmethod
    def from_config(cls, config) -> "SequenceLayout":
        """The layout of a [`UniF2aceConfig`]. Of several `eos_token_id` the first one ends a prompt."""
        text, special = config.text_config, config.special_token_id
        return cls(
            pad=special("[PAD]"),
            bos=text.bos_token_id,
            eos=text.eos_token_id[0] if isinstance(text.eos_token_id, (list, tuple)) else text.eos_token_id,
            t2i=special("<|t2i|>"),
            mmu=special("<|mmu|>"),
            soi=special("<|soi|>"),
            eoi=special("<|eoi|>"),
            num_codes=config.num_image_tokens,
            max_text_length=config.max_text_length,
            first_code=config.image_code_offset,
            mask=config.mask_token_id,
            num_understanding=config.num_understanding_tokens,
            reads_patches=config.understanding_input == "clip",
        )

    @classmethod
    def from_tokenizer(cls, tokenizer, num_codes: int, max_text_length: int) -> "SequenceLayout":
        """The layout of a tokenizer that covers the whole vocabulary."""
        t2i, mmu, soi, eoi = tokenizer.convert_tokens_to_ids(["<|t2i|>", "<|mmu|>", "<|soi|>", "<|eoi|>"])
        return cls(
            tokenizer.pad_token_id,
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            t2i,
            mmu,
            soi,
            eoi,
            num_codes,
            max_text_length,
        )

    # Writing sequences

    @property
    def image_start(self) -> int:
        """The place of start-of-image in a text-to-image row, whatever the text's length: Show-o's prompts fill it."""
        return self.max_text_length + 1

    @property
    def prompt_limit(self) -> int:
        """Tokens that the text of a prompt may have."""
        return self.max_text_length - 2

    def prompt(self, text_ids: list[int]) -> list[int]:
        """`<|t2i|> bos text eos`; without text the empty prompt, which guidance moves away from."""
        return [self.t2i, self.bos, *text_ids, self.eos]

    def enclose(self, image_ids: torch.LongTensor) -> torch.LongTensor:
        """`<|soi|> image <|eoi|>`, (B, N + 2), of ids (B, N)."""
        image_ids = F.pad(image_ids, (1, 0), value=self.soi)
        return F.pad(image_ids, (0, 1), value=self.eoi)

    def code_columns(self, task_ids: torch.LongTensor, length: int) -> torch.LongTensor:
        """The columns of the image codes in a batch of `length` columns, (B, N): at the end, or at the beginning."""
        first = torch.where(task_ids == T2I, length - self.num_codes - 1, 2)
        return first[:, None] + torch.arange(self.num_codes, device=task_ids.device)

    def drop_prompts(self, batch: dict, rows: torch.LongTensor) -> dict:
        """A copy of `batch` (`input_ids`, `attention_mask`) with the empty prompt in the text-to-image rows `rows`."""
        input_ids, attention_mask = batch["input_ids"].clone(), batch["attention_mask"].clone()
        prompt = torch.tensor(self.prompt([]), device=input_ids.device)
        end = input_ids.shape[1] - self.num_codes - 2
        input_ids[rows, : end - len(prompt)] = self.pad
        input_ids[rows, end - len(prompt) : end] = prompt
        attention_mask[rows, : end - len(prompt)] = 0
        return {**batch, "input_ids": input_ids, "attention_mask": attention_mask}

    # Reading sequences

    def task_ids(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """The task of each row, (B,): text to image where there is a `<|t2i|>`."""
        return torch.where((input_ids == self.t2i).any(-1), T2I, MMU)

    def find_image(self, input_ids: torch.LongTensor, task_ids: torch.LongTensor) -> ImageSpan | None:
        """The places of image codes and mask tokens, with CLIP input of the patches' placeholders; one image a row."""
        is_code = input_ids >= self.first_code
        counts = is_code.sum(-1)
        rows = counts.nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        lengths = (self.num_codes, self.num_understanding)  # by task
        wanted = torch.where(task_ids[rows] == T2I, lengths[T2I], lengths[MMU])
        if (counts[rows] != wanted).any():
            expected = " or ".join(str(length) for length in sorted({0, *lengths}))
            raise ValueError(f"rows have {counts.tolist()} image tokens, expected {expected}: one whole image a row")
        start = is_code[rows].int().argmax(-1)
        longest = lengths[T2I] if lengths[T2I] == lengths[MMU] else int(wanted.max())
        place = torch.arange(longest, device=input_ids.device)
        mask = None
        if lengths[T2I] != lengths[MMU] and (wanted != longest).any():
            mask = place < wanted[:, None]
            place = place.expand_as(mask).masked_fill(~mask, 0)
        return ImageSpan(rows=rows, positions=start[:, None] + place, task_ids=task_ids[rows], mask=mask)

    def attention_blocks(self, input_ids, attention_mask, span: ImageSpan) -> torch.LongTensor:
        """
        Who sees each other in both directions (B, S): 0 inside the block, -1 outside. Text to image: from start- to
        end-of-image. Understanding: the whole prefix up to end-of-image, as in Show-o; with CLIP input nothing, since
        there everybody sees the patches (`clip_columns`) and all else is causal.
        """
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        start, end = span.positions[:, :1] - 1, span.last[:, None] + 1
        understands = span.task_ids[:, None] == MMU
        start = start.masked_fill(understands, input_ids.shape[1] if self.reads_patches else 0)
        inside = (place >= start) & (place <= end)  # (R, S)
        if attention_mask is not None:
            inside = inside & attention_mask[span.rows].bool()
        blocks = torch.full_like(input_ids, -1)
        return blocks.index_put((span.rows,), inside.long() - 1)

    def clip_columns(self, input_ids: torch.LongTensor, task_ids: torch.LongTensor) -> torch.BoolTensor | None:
        """The places (B, S) that everybody in the row sees, before or after: CLIP patches. `None` without any."""
        if not self.reads_patches:
            return None
        return (input_ids >= self.first_code) & (task_ids == MMU)[:, None]

    def positions(self, input_ids, attention_mask, task_ids, span: ImageSpan | None) -> torch.LongTensor:
        """
        Rotary positions (B, S). Understanding rows count their real tokens. In text-to-image rows start-of-image is
        at `max_text_length + 1` whatever the padding, as in Show-o, whose prompts are padded to that length.
        """
        length = input_ids.shape[1]
        place = torch.arange(length, device=input_ids.device)
        if attention_mask is None:
            positions = place.expand(input_ids.shape)
        else:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        image_at = torch.full_like(task_ids, length)  # a prompt alone: the image comes after it
        if span is not None:
            image_at = image_at.index_put((span.rows,), span.positions[:, 0] - 1)
        shifted = (place + (self.image_start - image_at)[:, None]).clamp(min=0)
        return torch.where((task_ids == T2I)[:, None], shifted, positions)


__all__ = ["COMPLETE_REQUEST", "MMU", "SPECIAL_TOKENS", "T2I", "TASKS", "ImageSpan", "SequenceLayout", "TaskRows"]
