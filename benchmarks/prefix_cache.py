"""
Compare text-to-image decoding with the cached prompt and with recomputing it at every step: same codes? how much
faster?

    python benchmarks/prefix_cache.py --prompts 4 --steps 16 --runs 5

The recomputing path is written here, with nothing but the model's `forward` on the whole sequence.
"""

import argparse
import random
import statistics
import sys
import time

import torch
from torch.nn import functional as F

from unif2ace import UniF2aceForConditionalGeneration, UniF2acePipeline
from unif2ace.modeling_unif2ace.layout_unif2ace import T2I
from unif2ace.modeling_unif2ace.sampling_unif2ace import (
    DecodingStep,
    ImageSampling,
    MaskSchedule,
    confidence_temperatures,
    maskgit_step,
    row_generators,
)
from unif2ace.training.data.language.captions import write_caption
from unif2ace.training.data.language.visibility import assumed_visible
from unif2ace.training.synthetic.painted.dataset import attributes_of


def full_logits(
    model: UniF2aceForConditionalGeneration, codes: torch.Tensor, prompt: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Logits (B, N, codebook_size) of the codes, by one forward pass over prompt and image."""
    config, n = model.config, codes.shape[1]
    ids = torch.where(codes < 0, config.mask_token_id, codes + config.image_code_offset)
    ids = F.pad(ids, (1, 0), value=config.special_token_id("<|soi|>"))
    ids = F.pad(ids, (0, 1), value=config.special_token_id("<|eoi|>"))
    ids = torch.cat([prompt, ids], dim=1)
    image = torch.zeros_like(ids, dtype=torch.bool)
    image[:, -n - 1 : -1] = True
    output = model(
        input_ids=ids,
        attention_mask=F.pad(attention_mask, (0, n + 2), value=1),
        task_ids=torch.full((len(ids),), T2I),
        image_logits_mask=image,
        use_cache=False,
    )
    return output.image_logits.float().view(len(ids), n, -1)


@torch.no_grad()
def decode_recomputing(model, prompt, attention_mask, guidance, steps, generators) -> torch.Tensor:
    """`generate(generation_mode="image")` without any cache."""
    empty = model.unconditional_prompt().expand(len(prompt), -1)
    codes = torch.full((len(prompt), model.config.num_image_tokens), -1)
    generators = row_generators(generators, len(prompt))
    for step, noise in enumerate(confidence_temperatures("linear", 1.0, steps), start=1):
        conditional = full_logits(model, codes, prompt, attention_mask)
        unconditional = full_logits(model, codes, empty, torch.ones_like(empty))
        logits = unconditional + guidance * (conditional - unconditional)
        masked = MaskSchedule("cosine").num_masked(step / steps, codes.shape[1])
        place = DecodingStep(num_masked=masked, confidence_temperature=noise)
        codes, _ = maskgit_step(logits, codes, place, ImageSampling(), generators)
    return codes


def decode_cached(model, prompt, attention_mask, guidance, steps, generators) -> torch.Tensor:
    """The model's own decoding: the prompt's keys and values are computed once."""
    return model.generate(
        input_ids=prompt,
        attention_mask=attention_mask,
        generation_mode="image",
        guidance_scale=guidance,
        num_inference_steps=steps,
        temperature=1.0,
        confidence_temperature=1.0,
        generator=generators,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 1 if the two ways give different codes."""
    parser = argparse.ArgumentParser(description="Time decoding with and without the cached prompt.")
    parser.add_argument("--model", help="a checkpoint's folder (default: the bundled one)")
    parser.add_argument("--prompts", type=int, default=4, help="full descriptions in the batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="decoding steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each way (default: %(default)s)")
    options = parser.parse_args(arguments)

    pipe = UniF2acePipeline.from_pretrained(options.model)
    texts = []
    for index in range(options.prompts):
        attributes = attributes_of(index, "test")
        texts.append(write_caption(attributes, assumed_visible(attributes), random.Random(f"caption-{index}")).text)
    inputs = pipe.processor(text=texts, generation_mode="image", return_tensors="pt")
    print(f"{len(texts)} prompts of up to {inputs['input_ids'].shape[1]} tokens, {options.steps} steps")

    seconds: dict[str, list[float]] = {"recomputed": [], "cached": []}
    codes: dict[str, torch.Tensor] = {}
    ways = {"recomputed": decode_recomputing, "cached": decode_cached}
    for run in range(options.runs + 1):  # the first one warms up; the two ways alternate, so both meet the same load
        for name, decode in ways.items():
            generators = [torch.Generator().manual_seed(seed) for seed in range(len(texts))]
            start = time.perf_counter()
            codes[name] = decode(
                pipe.transformer,
                inputs["input_ids"],
                inputs["attention_mask"],
                options.guidance,
                options.steps,
                generators,
            )
            if run:
                seconds[name].append(time.perf_counter() - start)
    same = torch.equal(codes["recomputed"], codes["cached"])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:>10}: median {median:.3f} s of {options.runs} runs")
    print(f"identical codes: {'yes' if same else 'NO'}")
    print(f"the cached prompt is {medians['recomputed'] / medians['cached']:.2f} times as fast")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
