"""Rows of both tasks to one batch of token sequences in Show-o's layout."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ...modeling_unif2ace.chat_template_unif2ace import render_chat
from ...modeling_unif2ace.configuration_unif2ace import UniF2aceConfig
from ...modeling_unif2ace.layout_unif2ace import MMU, T2I, TASKS, SequenceLayout
from ...modeling_unif2ace.processing_unif2ace import CHAT_TEMPLATE, UniF2aceProcessor


logger = logging.get_logger(__name__)

PICTURE = "<|mmu|><|soi|><|mask|><|eoi|>"  # how templates spell the picture: one placeholder stands for all codes
IGNORED = -100  # a label that no loss reads

# The words around a turn (Show-o, after LLaVA); the processor's chat template writes the same.
QUESTION_TURN = "USER: \n{question} ASSISTANT:"
ANSWER_TURN = " {answer}"


class UniF2aceCollator:
    r"""
    Make a batch of text-to-image (`"t2i"`) and understanding (`"mmu"`) rows.

    A row is a dictionary with

    - `task`: `"t2i"` or `"mmu"`;
    - `codes` (N,): the image's codes. May be absent if no row of the batch lacks a picture: the trainer then encodes;
    - `text` (t2i) or `turns` (mmu): the prompt, or the (question, answer) pairs about the image, one after the other;
    - `pixel_values` (3, R, R) in [-1, 1], or `image`, a picture for the image processor: needed by mmu rows, unless
      they bring what the model would compute from it:
    - `pictured=False` instead, for an mmu row that is a conversation without a picture;
    - `clip_features` (patches, clip_feature_size), `face_features` (face_feature_size,): precomputed, for mmu rows
      ([`~unif2ace.training.data.prepare.prepare`] makes them).

    Text-to-image rows are left padded, understanding rows right padded, to one length L, so that the N codes of every
    text-to-image row stand in the same columns, L-N-1 to L-2. Codes are the clean ones: the trainer masks them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the whole vocabulary.
        config (`UniF2aceConfig`): The model's configuration.
        image_processor (*optional*): Turns `image` into pixel values; needed only for rows without `pixel_values`.
        chat_template (`str`, *optional*):
            How a checkpoint spells conversations, `processor.chat_template`; Show-o's layout when not given. It has to
            begin with the picture, `<|mmu|><|soi|><|mask|><|eoi|>`, and go on where the question ended.
        max_length (`int`, *optional*):
            Longest understanding row; turns that do not fit whole are left out. `max_position_embeddings` by default.

    Returns:
        A dictionary: `input_ids`, `attention_mask`, `labels` (B, L) int64; `task_ids` (B,) int64;
        `pixel_values` float32 of the understanding rows with a picture in row order, and, if some row came without
        codes, of all rows with a picture together with `needs_codes` (B,) bool; left out if no row needs them.
        `face_pixel_values` float32 of the understanding rows with a picture, where the image processor aligns faces.
        `clip_features` and `face_features` float32 of these rows, if they bring them. Labels are the answers of
        understanding rows with their `eos`, -100 elsewhere. Prompts longer than `config.max_text_length` are cut, as
        Show-o does.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: UniF2aceConfig,
        image_processor: Any | None = None,
        max_length: int | None = None,
        chat_template: str | None = None,
    ):
        self.tokenizer = tokenizer
        self.config = config
        self.image_processor = image_processor
        self.chat_template = None if chat_template == CHAT_TEMPLATE else chat_template
        self.max_length = max_length or config.text_config.max_position_embeddings
        if config.understanding_input != "codes":
            raise ValueError(
                f"understanding_input={config.understanding_input!r}: this collator writes image codes; prepare such "
                "rows with the processor, which knows the layout of CLIP input"
            )
        shortest = config.num_image_tokens + 8
        if self.max_length < shortest:
            raise ValueError(f"max_length={self.max_length} leaves no room for text, expected at least {shortest}")
        text = config.text_config
        experts = text.mmu_sequence_experts if text.sequence_moe_layers else ()
        self.feature_columns = {f"{kind}_features" for kind in ("clip", "face") if kind in experts}
        self.layout = SequenceLayout.from_tokenizer(tokenizer, config.num_image_tokens, config.max_text_length)

    @classmethod
    def from_processor(cls, processor: UniF2aceProcessor, config: UniF2aceConfig) -> "UniF2aceCollator":
        """The collator of a checkpoint: with its tokenizer, its image processor and its chat template."""
        return cls(processor.tokenizer, config, processor.image_processor, chat_template=processor.chat_template)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        for row in rows:
            if row["task"] not in TASKS:
                raise ValueError(f"a row has task {row['task']!r}, expected one of {', '.join(map(repr, TASKS))}")
        task_ids = torch.tensor([TASKS.index(row["task"]) for row in rows])
        t2i_places = (task_ids == T2I).nonzero()[:, 0].tolist()
        mmu_places = (task_ids == MMU).nonzero()[:, 0].tolist()
        prompts = self._prompt_ids([rows[place]["text"] for place in t2i_places])
        pictured = torch.tensor([row.get("pictured", True) for row in rows])
        answers = self._dialogue_ids([rows[place]["turns"] for place in mmu_places], pictured[mmu_places].tolist())
        codes, needs_codes = self._codes(rows, pictured)

        n = self.config.num_image_tokens
        around = n + 2  # the codes between soi and eoi
        before = [1 + around if pictured[place] else 0 for place in mmu_places]
        lengths = [len(ids) + around for ids in prompts]
        length = max(lengths + [start + len(ids) for start, (ids, _) in zip(before, answers, strict=True)])
        input_ids = torch.full((len(rows), length), self.layout.pad)
        labels = torch.full((len(rows), length), IGNORED)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)

        for place, ids in zip(t2i_places, prompts, strict=True):
            start = length - around - len(ids)
            input_ids[place, start : length - around] = torch.tensor(ids)
            attention_mask[place, start:] = 1
        for place, start, (ids, targets) in zip(mmu_places, before, answers, strict=True):
            end = start + len(ids)
            input_ids[place, :start] = self.layout.mmu  # the picture comes behind it
            input_ids[place, start:end] = torch.tensor(ids)
            labels[place, start:end] = torch.tensor(targets)
            attention_mask[place, :end] = 1

        columns = self.layout.code_columns(task_ids, length)[pictured]
        columns = torch.cat([columns[:, :1] - 1, columns, columns[:, -1:] + 1], dim=1)
        input_ids[pictured] = input_ids[pictured].scatter(1, columns, self.layout.enclose(codes[pictured]))

        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "task_ids": task_ids,
        }
        mmu_places = [place for place in mmu_places if pictured[place]]
        features = self._features([rows[place] for place in mmu_places])
        batch.update(features)
        wanted = pictured.nonzero()[:, 0].tolist() if needs_codes.any() else mmu_places
        if needs_codes.any() or (mmu_places and self.feature_columns - features.keys()):
            pixels = {place: self._pixels(rows[place]) for place in wanted}
            batch["pixel_values"] = torch.stack([pixels[place]["pixel_values"] for place in wanted])
            faces = [pixels[place].get("face_pixel_values") for place in mmu_places]
            if faces and all(
                face is not None for face in faces
            ):  # codes have no use for them: understanding rows alone
                batch["face_pixel_values"] = torch.stack(faces)
        if needs_codes.any():
            batch["needs_codes"] = needs_codes
        return batch

    def _encode(self, texts: list[str], **kwargs) -> list[list[int]]:
        # split_special_tokens: what looks like a control token in a data set's text is text
        options = {"add_special_tokens": False, "split_special_tokens": True, **kwargs}
        return self.tokenizer(texts, **options)["input_ids"] if texts else []

    def _prompt_ids(self, texts: list[str]) -> list[list[int]]:
        """`[t2i][bos] text [eos]` of each prompt."""
        longest = self.layout.prompt_limit
        encoded = self._encode(texts)
        too_long = [len(ids) for ids in encoded if len(ids) > longest]
        if too_long:
            logger.warning_once(  # the same words each time, so that it is said once
                f"prompts are longer than the {longest} tokens that the model reads (max_text_length): they are cut"
            )
        return [self.layout.prompt(ids[:longest]) for ids in encoded]

    def _templated_ids(self, turns: Sequence[tuple[str, str]], pictured: bool) -> list[tuple[list[int], list[int]]]:
        """
        (question, answer) ids of each turn as the checkpoint's own template spells them; the first question begins
        behind the picture. What the template adds after a question, to ask for the answer, belongs to the question.

        Raises:
            ValueError: if the template does not begin with the picture, or spells a beginning anew when it goes on.
        """
        texts = [text.strip() for turn in turns for text in turn]
        messages, pieces, done = [], [], ""
        for place in range(len(texts)):
            # stands for the text: what looks like a control token in it is text, in the template it is one
            content = [{"type": "text", "text": f"\ue000{place}\ue001"}]
            if pictured and not place:
                content.insert(0, {"type": "image"})
            messages.append({"role": "assistant" if place % 2 else "user", "content": content})
            shown = render_chat(self.chat_template, messages, not place % 2, **self.tokenizer.special_tokens_map)
            if pictured and not shown.startswith(PICTURE):
                raise ValueError(f"the chat template begins with {shown[:60]!r}, expected the picture: {PICTURE}")
            if not shown.startswith(done):
                raise ValueError("the chat template spells what was said before anew when a conversation goes on")
            pieces.append(shown[len(done) :])
            done = shown
        pieces[:1] = [pieces[0].removeprefix(PICTURE)] if pieces else []
        encoded = [self._spelled(piece, texts) for piece in pieces]
        return list(zip(encoded[::2], encoded[1::2], strict=True))

    def _spelled(self, piece: str, texts: list[str]) -> list[int]:
        """Ids of a rendered piece: control tokens of the template as such, everything between them as text."""
        control = [token for token in self.tokenizer.get_added_vocab() if token in piece]
        control.sort(key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, control))})", piece) if control else [piece]
        ids: list[int] = []
        for part in filter(None, parts):
            if part in control:
                ids.append(self.tokenizer.convert_tokens_to_ids(part))
            else:
                ids += self._encode([re.sub("\ue000(\\d+)\ue001", lambda found: texts[int(found[1])], part)])[0]
        return ids

    def _dialogue_ids(
        self, dialogues: list[Sequence[tuple[str, str]]], pictured: list[bool]
    ) -> list[tuple[list[int], list[int]]]:
        """`[bos] question answer [eos] question answer [eos] ...` of each dialogue, and its labels."""
        if self.chat_template is None:
            turns = [turn for dialogue in dialogues for turn in dialogue]
            questions = self._encode([QUESTION_TURN.format(question=question) for question, _ in turns])
            answers = self._encode([ANSWER_TURN.format(answer=answer) for _, answer in turns])
            begin = [self.layout.bos]
            pairs = zip(questions, ([*answer, self.layout.eos] for answer in answers), strict=True)
        else:
            begin = []
            rows = zip(dialogues, pictured, strict=True)
            pairs = iter([pair for row in rows for pair in self._templated_ids(*row)])
        room = self.max_length - self.config.num_image_tokens - 3
        encoded = []
        for dialogue in dialogues:
            ids, targets, full = list(begin), [IGNORED] * len(begin), False
            for _ in dialogue:
                question, answer = next(pairs)
                full = full or len(ids) + len(question) + len(answer) > room
                if not full:
                    ids += question + answer
                    targets += [IGNORED] * len(question) + answer
            encoded.append((ids, targets))
        return encoded

    def _codes(self, rows: Sequence[dict[str, Any]], pictured: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vocabulary ids (B, N) of the codes, mask tokens for the rows without, and which of `pictured` these are."""
        n = self.config.num_image_tokens
        needs_codes = torch.tensor([row.get("codes") is None for row in rows]) & pictured
        ids = torch.full((len(rows), n), self.config.image_token_id)
        for place, row in enumerate(rows):
            if row.get("codes") is not None:
                codes = torch.as_tensor(row["codes"], dtype=torch.long)
                if codes.shape != (n,):
                    raise ValueError(f"a row has codes of shape {tuple(codes.shape)}, expected ({n},)")
                ids[place] = codes + self.config.image_code_offset
        return ids, needs_codes

    def _features(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The precomputed features of understanding rows."""
        features = {}
        for name in sorted(self.feature_columns):
            present = [row.get(name) is not None for row in rows]
            if not any(present):
                continue
            if not all(present):
                raise ValueError(
                    f"{sum(present)} of {len(rows)} understanding rows have {name!r}, expected all of them or none"
                )
            features[name] = torch.stack([torch.as_tensor(row[name]).float() for row in rows])
        return features

    def _pixels(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What the model sees of a row's picture: `pixel_values`, and its aligned face where one is wanted."""
        if row.get("pixel_values") is not None:
            names = [name for name in ("pixel_values", "face_pixel_values") if row.get(name) is not None]
            return {name: torch.as_tensor(row[name], dtype=torch.float32) for name in names}
        if row.get("image") is None:
            raise ValueError(f"a {row['task']} row has neither `pixel_values` nor `image`; give one of them")
        if self.image_processor is None:
            raise ValueError("a row has an `image` but the collator has no `image_processor`; give it one")
        return {name: value[0] for name, value in self.image_processor(row["image"], return_tensors="pt").items()}
