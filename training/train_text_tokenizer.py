"""Train the text tokenizer on what is said about synthetic faces, and append the image vocabulary to it.

The result covers the whole vocabulary of the model, in the model's order: text, `SPECIAL_TOKENS`, one token per image
code, the mask token. Example:

    python -m unif2ace.training.train_text_tokenizer --out runs/text_tokenizer
"""

import argparse
import random
import statistics
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..modeling_unif2ace.layout_unif2ace import SPECIAL_TOKENS
from .data.language.attributes import ATTRIBUTES, WORLD_VALUES, sample_attributes
from .data.language.captions import DESCRIBE_PROMPTS, write_caption
from .data.language.typed import Mixture, ask, talk_without_picture, write_short


BOS_TOKEN, EOS_TOKEN = "<|bos|>", "<|eos|>"
MASK_TOKEN = "<|mask|>"

# two control tokens and the 256 bytes, without which some text could not be encoded
SMALLEST_TEXT_VOCAB = 2 + 256


def extend_tokenizer(tokenizer: PreTrainedTokenizerFast, num_bits: int) -> PreTrainedTokenizerFast:
    """
    Append `SPECIAL_TOKENS`, the image codes and the mask token to a text tokenizer, in place.

    The new ids follow the text vocabulary without a gap, as in Show-o, so that `config.text_vocab_size` is the length
    of the tokenizer before the call.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Any fast tokenizer with a bos and an eos token.
        num_bits (`int`): Bits of an image code; `2**num_bits` code tokens `<|code_0|>`, `<|code_1|>`, ... are added.

    Returns:
        `PreTrainedTokenizerFast`: the same tokenizer; its pad token is `[PAD]`, its mask token `<|mask|>`, its padding
        side left.

    Raises:
        ValueError: if the tokenizer has no bos or eos token, or knows one of the tokens already.
    """
    if tokenizer.bos_token is None or tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer has bos_token={tokenizer.bos_token!r} and eos_token={tokenizer.eos_token!r}, but prompts "
            "need both: set them before extending it"
        )
    text_vocab_size = len(tokenizer)
    added = [*SPECIAL_TOKENS, *(f"<|code_{code}|>" for code in range(2**num_bits)), MASK_TOKEN]
    known = tokenizer.get_vocab()
    clash = [token for token in added if token in known]
    if clash:
        raise ValueError(
            f"the tokenizer already has {clash[0]!r} and {len(clash) - 1} more of the image vocabulary, so it cannot "
            "be extended: pass the tokenizer of text alone"
        )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(MASK_TOKEN) != text_vocab_size + len(added) - 1:
        raise ValueError(f"the tokenizer has gaps in its {text_vocab_size} ids, expected ids 0..{text_vocab_size - 1}")
    tokenizer.pad_token = SPECIAL_TOKENS[0]
    tokenizer.mask_token = MASK_TOKEN
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # saved from init_kwargs
    return tokenizer


def build_tokenizer(
    texts: Iterable[str], text_vocab_size: int, num_bits: int, model_max_length: int = 1024
) -> PreTrainedTokenizerFast:
    """
    Train a byte-level BPE on texts and append the image vocabulary.

    Bytes are the alphabet, so any text can be encoded and comes back unchanged. A space is put before the first word,
    so that a word has one token wherever it stands.

    Args:
        texts (`Iterable[str]`): Training texts.
        text_vocab_size (`int`): Exact number of text ids, bos (0) and eos (1) among them. If the texts have no more
            pairs to merge, the rest is filled with `<|unused_0|>`, `<|unused_1|>`, ...
        num_bits (`int`): Bits of an image code.
        model_max_length (`int`, *optional*, defaults to 1024): Longest sequence of the model, in tokens.

    Returns:
        `PreTrainedTokenizerFast`: a tokenizer of `text_vocab_size + 10 + 2**num_bits + 1` ids. It adds no bos or eos
        by itself: the processor writes them.

    Raises:
        ValueError: if `text_vocab_size` has no room for the bytes.
    """
    if text_vocab_size < SMALLEST_TEXT_VOCAB:
        raise ValueError(
            f"text_vocab_size={text_vocab_size}, expected at least {SMALLEST_TEXT_VOCAB} = bos + eos + 256 bytes"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    # offsets keep the space before a word, so that they cover the text without holes
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=text_vocab_size,
        min_frequency=2,
        special_tokens=[BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    missing = text_vocab_size - bpe.get_vocab_size()
    bpe.add_special_tokens([AddedToken(f"<|unused_{k}|>", special=True, normalized=False) for k in range(missing)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
    )
    return extend_tokenizer(tokenizer, num_bits)


# The language is learnt from attributes alone: nothing is drawn, and what would be hidden is spoken of as well.
_ALL_VISIBLE = dict.fromkeys(ATTRIBUTES, True)
_WORLD_SHARE = 0.15  # of the faces that have a value which only some worlds have


def painted_texts(count: int, seed: int = 0, questions_per_face: int = 6) -> Iterator[str]:
    """
    Captions, short prompts and questions about random faces of all worlds, in the form in which the model reads them.

    Args:
        count (`int`): Number of faces.
        seed (`int`, *optional*, defaults to 0): Seed of the faces and of the words.
        questions_per_face (`int`, *optional*, defaults to 6): Questions for each face.

    Yields:
        `str`: a caption, or one turn of a conversation.
    """
    mixture = Mixture()
    for index in range(count):
        rng = random.Random(f"text-tokenizer-{seed}-{index}")
        attributes = sample_attributes(rng)
        for name, values in WORLD_VALUES.items():
            if rng.random() < _WORLD_SHARE:
                attributes[name] = rng.choice(values)
        yield write_caption(attributes, _ALL_VISIBLE, rng, coverage=rng.choice((1.0, 1.0, 0.6, 0.3))).text
        yield write_short(attributes, _ALL_VISIBLE, rng).text
        yield f"USER: \n{rng.choice(DESCRIBE_PROMPTS)} ASSISTANT:"
        for question in ask(attributes, _ALL_VISIBLE, rng, questions_per_face, mixture):
            yield f"USER: \n{question.question} ASSISTANT: {question.answer}"
        for question, answer in talk_without_picture(attributes, _ALL_VISIBLE, rng, mixture):
            yield f"USER: \n{question} ASSISTANT: {answer}"


def caption_lengths(tokenizer: PreTrainedTokenizerFast, count: int, seed: int = 0) -> list[int]:
    """Tokens of the longest kind of captions, everything stated, of `count` faces; bos and eos are not counted."""
    captions = []
    for index in range(count):
        rng = random.Random(f"caption-length-{seed}-{index}")
        captions.append(write_caption(sample_attributes(rng), _ALL_VISIBLE, rng, coverage=1.0).text)
    return [len(ids) for ids in tokenizer(captions)["input_ids"]]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m unif2ace.training.train_text_tokenizer",
        description="Train the text tokenizer on the language of the synthetic faces.",
        epilog="example: python -m unif2ace.training.train_text_tokenizer --out runs/text_tokenizer",
    )
    parser.add_argument("--out", required=True, help="folder to write the tokenizer to")
    parser.add_argument("--text-vocab-size", type=int, default=1014, help="text ids, bos and eos included (1014)")
    parser.add_argument("--num-bits", type=int, default=10, help="bits of an image code (10)")
    parser.add_argument("--max-length", type=int, default=1024, help="longest sequence of the model (1024)")
    parser.add_argument("--faces", type=int, default=4000, help="faces to write about (4000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faces and words (0)")
    options = parser.parse_args(arguments)

    texts = painted_texts(options.faces, options.seed)
    tokenizer = build_tokenizer(texts, options.text_vocab_size, options.num_bits, options.max_length)
    tokenizer.save_pretrained(options.out)
    lengths = sorted(caption_lengths(tokenizer, 500, options.seed))
    print(
        f"{options.out}: {len(tokenizer)} tokens; a caption that states all has {statistics.mean(lengths):.1f} tokens "
        f"on average, {lengths[int(0.95 * len(lengths))]} at 95 %, {lengths[-1]} at most"
    )


if __name__ == "__main__":
    main()
