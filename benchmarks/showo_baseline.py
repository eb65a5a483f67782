"""
Against Show-o's algorithm, at its size: same tokens? how much less CPU time? And what the experts cost.

    python benchmarks/showo_baseline.py --shape tiny                     # a look, in seconds
    python benchmarks/showo_baseline.py --shape 1.3b --depths 2 4        # 2 GB of memory, two CPU minutes
    python benchmarks/showo_baseline.py --shape 1.3b                     # 8 GB, many minutes: all 24 layers

Weights are random: speed does not depend on them, and equal tokens are a harder test when the model is undecided.
The other side is a restatement of what Show-o's code does (showlab/Show-o at 45a5a2d), on transformers' Phi, which
computes exactly what its decoder computes, with the same weights in memory:

- pictures: the whole padded sequence, prompt and image, twice for guidance, at every step, and every logit of every
  position; then softmax and draw at all 256 places;
- text: the whole sequence again for every token, with a new L × L mask, and every logit of every position.

CPU seconds of one thread, both sides in turns in one process. `--steps` shortens the loop, not the work of a step: the
transformer runs on the same 2 × 258 rows at each of our steps, and only the head's rows follow the schedule. Layers
are all alike, so time is a line in their number: `--depths` measures two shallower models and extends the line.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from reporting import cpu_seconds, machine, peak_memory_gb, put_section, table
from torch.nn import functional as F
from transformers import PhiConfig, PhiForCausalLM

from unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration
from unif2ace.modeling_unif2ace import get_preset
from unif2ace.modeling_unif2ace.sampling_unif2ace import (
    DecodingStep,
    ImageSampling,
    MaskSchedule,
    confidence_temperatures,
    masked_positions,
    maskgit_step,
    row_generators,
)


GUIDANCE = 6.0  # Show-o's 5, which is ours minus one
QUESTION_TOKENS = 21  # with task, image and start tokens a prompt of 280, as in Show-o's demo
PARTS = ("image", "text", "experts")
SECTIONS = {"image": "showo-image", "text": "showo-text", "experts": "experts"}
SHAPES = ("tiny", "1.3b")
# what does not grow with the number of layers
COUNTS = ("same", "of", "prompt", "codes", "rate")
# The function of Phi's gelu_new in one kernel; the other side keeps Phi's own.
ACTIVATION = "gelu_pytorch_tanh"


def shape_config(shape: str, experts: bool, depth: int | None = None) -> UniF2aceConfig:
    """The 1.8B preset or a small one, with its experts or as the dense model that they were made from."""
    config = get_preset("1.8b").to_dict()
    if shape == "tiny":
        config["text_config"] |= {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
        config["text_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 4}
        config["text_config"] |= {"moe_layers": None, "sequence_moe_layers": None}
        config["text_config"] |= {"shared_expert_intermediate_size": 192, "routed_expert_intermediate_size": 64}
    if depth:
        config["text_config"] |= {"num_hidden_layers": depth, "moe_layers": None, "sequence_moe_layers": None}
    if not experts:
        config["text_config"] |= {"moe_layers": [], "sequence_moe_layers": []}
    config["text_config"]["hidden_act"] = ACTIVATION
    # neither the image tokenizer nor an encoder runs here
    config["vq_config"] |= {"base_channels": 32, "encoder_blocks": [1] * 5, "decoder_blocks": [1] * 5}
    return UniF2aceConfig(**config)


def build(shape: str, experts: bool, depth: int | None = None) -> UniF2aceForConditionalGeneration:
    """A model with random weights."""
    torch.manual_seed(0)
    return UniF2aceForConditionalGeneration(shape_config(shape, experts, depth)).eval()


class ShowO:
    """Show-o's two loops on the weights of `model`, which has no experts."""

    def __init__(self, model: UniF2aceForConditionalGeneration):
        text = model.config.text_config
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        config = PhiConfig(**{name: getattr(text, name) for name in names}, qk_layernorm=True, hidden_act="gelu_new")
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.phi = PhiForCausalLM(config).eval()
        state = {name.replace("language_model.", ""): tensor for name, tensor in model.state_dict().items()}
        self.phi.load_state_dict({name: state[name] for name in self.phi.state_dict()}, assign=True)
        self.phi.model.rotary_emb = type(self.phi.model.rotary_emb)(config)
        self.config = model.config

    def image_inputs(self, prompts: list[list[int]], codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded rows with the image behind them, and the additive mask (rows, 1, L, L)."""
        config, length = self.config, self.config.max_text_length + 1
        pad, soi, eoi = (config.special_token_id(token) for token in ("[PAD]", "<|soi|>", "<|eoi|>"))
        text = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
        ids = torch.cat([text, self.image_ids(codes, len(prompts), soi, eoi)], dim=1)
        place = torch.arange(ids.shape[1])
        sees = (place[:, None] >= place) | (place[:, None] >= length)  # causal; the image sees everything
        sees = sees & (ids != pad)[:, None, :]
        return ids, torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]

    def image_ids(self, codes, rows: int, soi: int, eoi: int) -> torch.Tensor:
        ids = torch.where(codes < 0, self.config.mask_token_id, codes + self.config.image_code_offset)
        return F.pad(F.pad(ids, (1, 0), value=soi), (0, 1), value=eoi).expand(rows, -1)

    @torch.no_grad()
    def step_logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One step: everything through the model, all logits, guidance, then the image's part of them."""
        logits = self.phi(input_ids=ids, attention_mask=mask, use_cache=False).logits
        conditional, unconditional = logits.chunk(2)
        guided = GUIDANCE * conditional - (GUIDANCE - 1) * unconditional  # (1 + w) cond - w uncond
        codes = slice(self.config.image_code_offset, self.config.mask_token_id)
        return guided[:, -self.config.num_image_tokens - 1 : -1, codes]

    @torch.no_grad()
    def text_logits(self, ids: torch.Tensor, prefix: int) -> torch.Tensor:
        """One token: the whole sequence with a new mask, all logits."""
        place = torch.arange(ids.shape[1])
        sees = (place[:, None] >= place) | (place < prefix)
        mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
        return self.phi(input_ids=ids, attention_mask=mask, use_cache=False).logits


def random_prompt(config: UniF2aceConfig, length: int) -> list[int]:
    words = torch.randint(0, config.text_vocab_size - 100, (length - 3,), generator=torch.Generator().manual_seed(1))
    text = config.text_config
    return [config.special_token_id("<|t2i|>"), text.bos_token_id, *words.tolist(), text.eos_token_id]


@torch.no_grad()
def measure_image(model, showo: ShowO, steps: int) -> dict:
    """Both loops in turns, step by step, each with its own codes."""
    config = model.config
    prompt = random_prompt(config, config.max_text_length + 1)
    empty = model.unconditional_prompt()[0].tolist()
    soi, eoi = config.special_token_id("<|soi|>"), config.special_token_id("<|eoi|>")
    num_tokens = config.num_image_tokens
    state, prefix = cpu_seconds(lambda: model.encode_prompt(torch.tensor([prompt])))
    noise = confidence_temperatures("linear", 1.0, steps)
    seconds: dict[str, list[float]] = {"Show-o's algorithm": [], "ours": []}
    codes = {name: torch.full((1, num_tokens), -1) for name in seconds}
    rows = {name: row_generators(torch.Generator().manual_seed(0), 1) for name in seconds}
    ids, mask = showo.image_inputs([prompt, empty], codes["ours"])
    before = num_tokens

    def theirs(place):
        ids[:, -num_tokens - 2 :] = showo.image_ids(codes["Show-o's algorithm"], 2, soi, eoi)
        logits = showo.step_logits(ids, mask)
        return maskgit_step(logits, codes["Show-o's algorithm"], place, ImageSampling(), rows["Show-o's algorithm"])[0]

    def ours(place):
        places = masked_positions(codes["ours"], before)
        logits = model.predict_codes(codes["ours"], state, GUIDANCE, places)
        return maskgit_step(logits, codes["ours"], place, ImageSampling(), rows["ours"], positions=places)[0]

    for step in range(steps):
        planned = MaskSchedule("cosine").num_masked((step + 1) / steps, num_tokens)
        for name, function in (("Show-o's algorithm", theirs), ("ours", ours)):
            place = DecodingStep(num_masked=planned, confidence_temperature=noise[step])
            codes[name], taken = cpu_seconds(lambda f=function, place=place: f(place))
            seconds[name].append(taken)
            print(f"  step {step + 1}/{steps}  {name}: {taken:.2f} CPU s", flush=True)
        before = planned
    same = int((codes["ours"] == codes["Show-o's algorithm"]).sum())
    floor, rate = matmul_floor(model)
    return {
        "theirs": statistics.median(seconds["Show-o's algorithm"]),
        "ours": statistics.median(seconds["ours"]),
        "prefix": prefix,
        "floor": floor,
        "rate": rate,
        "same": same,
        "of": num_tokens,
    }


@torch.no_grad()
def matmul_floor(model, repeats: int = 5) -> tuple[float, float]:
    """CPU seconds that the matrix products of one step take by themselves, and the rate in GFLOP/s."""
    config, text = model.config, model.config.text_config
    rows = 2 * (config.num_image_tokens + 2)
    width, inner = text.hidden_size, text.intermediate_size
    total, flops = 0.0, 0
    for outputs, inputs, times in ((width, width, 4), (inner, width, 1), (width, inner, 1)):
        weights = [torch.randn(outputs, inputs) for _ in range(repeats)]  # not from the cache, as in a model
        states = torch.randn(rows, inputs)
        taken = [cpu_seconds(lambda w=weight, x=states: F.linear(x, w))[1] for weight in weights]
        total += statistics.median(taken) * times * text.num_hidden_layers
        flops += 2 * rows * outputs * inputs * times * text.num_hidden_layers
    return total, flops / total / 1e9


class Clock:
    """A streamer that notes the CPU time of each token."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value):
        self.times.append(time.process_time())

    def end(self):
        """Nothing to finish."""


@torch.no_grad()
def measure_text(model, showo: ShowO, tokens: int) -> dict:
    """Our greedy answer timed as a whole; of Show-o's loop three tokens, and all tokens checked by one pass."""
    config = model.config
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, config.vq_config.codebook_size, (config.num_image_tokens,), generator=generator)
    image = (codes + config.image_code_offset).tolist()
    mmu, soi, eoi = (config.special_token_id(token) for token in ("<|mmu|>", "<|soi|>", "<|eoi|>"))
    words = torch.randint(0, config.text_vocab_size - 100, (QUESTION_TOKENS - 1,), generator=generator).tolist()
    ids = torch.tensor([[mmu, soi, *image, eoi, config.text_config.bos_token_id, *words]])
    prefix, clock = len(image) + 3, Clock()
    start = time.process_time()
    whole = model.generate(
        input_ids=ids,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        suppress_tokens=None,  # Show-o allows every token
        streamer=clock,
    )
    ours = time.process_time() - start
    first = clock.times[1] - start  # the first call holds the prompt
    at = {}
    for made in sorted({0, tokens // 2, tokens - 1}):
        logits, at[made] = cpu_seconds(lambda k=made: showo.text_logits(whole[:, : ids.shape[1] + k], prefix))
        print(f"  Show-o's token {made + 1} of {tokens}: {at[made]:.2f} CPU s", flush=True)
    # causal: the logits of the longest sequence are those of all shorter ones
    logits[..., config.text_config.eos_token_id] = -torch.inf
    same = int((logits[0, ids.shape[1] - 1 :].argmax(-1) == whole[0, ids.shape[1] :]).sum())
    # a token costs what lies on the line between the timed ones around it
    theirs = float(np.interp(range(tokens), list(at), list(at.values())).sum())
    return {
        "ours": ours,
        "first": first,
        "theirs": theirs,
        "same": same,
        "of": tokens,
        "prompt": ids.shape[1],
        "codes": len(image),
    }


@torch.no_grad()
def measure_step(model, repeats: int) -> float:
    """Median CPU seconds of one guided step of one image in the middle of the loop."""
    config = model.config
    state = model.encode_prompt(torch.tensor([random_prompt(config, 64)]))
    codes = torch.full((1, config.num_image_tokens), -1)
    codes[:, ::3] = 7
    places = masked_positions(codes, int((codes < 0).sum()))
    times = [cpu_seconds(lambda: model.predict_codes(codes, state, GUIDANCE, places))[1] for _ in range(repeats + 1)]
    return statistics.median(times[1:])


def active_parameters(model) -> int:
    """Parameters of the layers that one image token of a text-to-image row uses."""
    text = model.config.text_config
    total = 0
    for layer in model.model.language_model.layers:
        total += sum(weight.numel() for weight in layer.self_attn.parameters())
        if not layer.has_experts:
            total += sum(weight.numel() for weight in layer.mlp.parameters())
            continue
        total += sum(weight.numel() for weight in layer.mlp.shared_experts["t2i"].parameters())
        total += layer.mlp.t2i_router.weight.numel()
        total += (
            sum(w.numel() for w in layer.mlp.experts.parameters())
            // layer.mlp.experts.num_experts
            * (text.num_experts_per_tok)
        )
    return total


def measure_experts(shape: str, depth: int | None, repeats: int) -> dict:
    """The preset with experts against the dense model that it was made from, one after the other in memory."""
    found = {}
    for name, experts in (("dense", False), ("experts", True)):
        model = build(shape, experts, depth)
        found[name] = measure_step(model, repeats)
        found[f"{name}, active"] = active_parameters(model)
        found[f"{name}, all"] = sum(weight.numel() for weight in model.model.language_model.parameters())
        print(f"  {name}: {found[name]:.2f} CPU s per step", flush=True)
        del model
    return found


def at_full_depth(measured: dict[int, dict], depth: int) -> dict:
    """Every number of the deepest model, or, where it was measured at less than `depth` layers, on its line there."""
    depths = sorted(measured)
    found = dict(measured[depths[-1]])
    if depths[-1] < depth:
        first, last = (measured[place] for place in (depths[0], depths[-1]))
        slope = {name: (last[name] - first[name]) / (depths[-1] - depths[0]) for name in found if name not in COUNTS}
        found |= {name: last[name] + slope[name] * (depth - depths[-1]) for name in slope}
    found["same"] = min((part["same"] / part["of"] for part in measured.values() if "same" in part), default=None)
    return found


def image_report(found: dict, steps: int) -> str:
    """The table of pictures."""
    rows = [
        ["Show-o's algorithm", f"{found['theirs']:.2f}"],
        ["ours", f"{found['ours']:.2f}"],
        ["floor: the matrix products of our layers alone", f"{found['floor']:.2f}"],
    ]
    lines = [
        f"A picture of {found['of']} codes after a prompt of full length, guidance on, {steps} steps.",
        table(["", "CPU seconds, median step"], rows),
        f"Tokens identical: {found['same']:.0%}. **{found['theirs'] / found['ours']:.2f} × less CPU time per step.** "
        f"Our prompt is encoded once, in {found['prefix']:.2f} CPU s. Our step takes "
        f"{found['ours'] / found['floor']:.2f} × the floor, which runs at {found['rate']:.0f} GFLOP/s.",
    ]
    return "\n\n".join(lines)


def text_report(found: dict) -> str:
    """The table of text."""
    rows = [
        ["Show-o's algorithm (three tokens timed, the others interpolated)", f"{found['theirs']:.1f}", ""],
        ["ours", f"{found['ours']:.1f}", f"{found['first']:.2f}"],
    ]
    lines = [
        f"{found['of']} new tokens after a prompt of {found['prompt']} tokens, {found['codes']} of them image codes.",
        table(["CPU seconds", "whole answer", "first token"], rows),
        f"Tokens identical: {found['same']:.0%} (checked by one pass of the other side over the whole answer). "
        f"**{found['theirs'] / found['ours']:.1f} × less CPU time.**",
    ]
    return "\n\n".join(lines)


def experts_report(found: dict) -> str:
    """The table of experts."""
    rows = [
        [name, *(f"{found[f'{name}, {kind}'] / 1e6:,.0f} M" for kind in ("all", "active")), f"{found[name]:.2f}"]
        for name in ("dense", "experts")
    ]
    active = found["experts, active"] / found["dense, active"]
    return (
        table(["transformer", "parameters", "active in the layers", "CPU s per step"], rows)
        + f"\n\nWith experts a step takes {found['experts'] / found['dense']:.2f} × the time at {active:.2f} × the "
        "active parameters."
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 1 if tokens differ."""
    parser = argparse.ArgumentParser(description="Compare with Show-o's algorithm.")
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="default: %(default)s")
    parser.add_argument("--depths", type=int, nargs=2, help="two numbers of layers instead of all (see above)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of the picture (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of the answer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of `experts` (default: %(default)s)")
    parser.add_argument("--into", type=Path, help="a document to put the tables into, as docs/inference.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    depth = shape_config(options.shape, False).text_config.num_hidden_layers
    same = True
    for part in options.parts:
        measured = {}
        for layers in options.depths or [depth]:
            print(f"{part}, {layers} layers", flush=True)
            if part == "experts":
                measured[layers] = measure_experts(options.shape, layers, options.repeats)
                continue
            model = build(options.shape, experts=False, depth=layers)
            showo = ShowO(model)
            if part == "image":
                measured[layers] = measure_image(model, showo, options.steps)
            else:
                measured[layers] = measure_text(model, showo, options.tokens)
            del model, showo
        found = at_full_depth(measured, depth)
        same = same and found["same"] in (None, 1.0)
        reports = {"image": lambda f: image_report(f, options.steps), "text": text_report, "experts": experts_report}
        shape = f"Shape `{options.shape}`, {depth} layers"
        if options.depths:
            shape += f", on the line through {' and '.join(map(str, options.depths))} layers, which were measured"
        report = f"{shape}.\n\n{reports[part](found)}\n\nPeak memory {peak_memory_gb():.1f} GB. {machine()}"
        print(f"\n{report}\n", flush=True)
        if options.into:
            put_section(options.into, SECTIONS[part], report)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
