"""Text to image: with the Show-o compatible sampler the codes are the original's, step by step (`t2i_generate`)."""

import pytest
import torch
from transformers import GenerationConfig

from unif2ace import UniF2acePipeline, UniF2aceScheduler
from unif2ace.modeling_unif2ace.sampling_unif2ace import (
    MASK_SCHEDULES,
    MASKED_CODE,
    DecodingStep,
    ImageSampling,
    MaskSchedule,
    masked_positions,
    showo_step,
)


@pytest.fixture(scope="module")
def recorded(showo_recordings):
    return showo_recordings.load("t2i_generate")


@pytest.fixture(scope="module")
def cases(showo_recordings):
    return showo_recordings.about("t2i_generate")["cases"]


def compatible(case) -> UniF2aceScheduler:
    """What docs/show-o.md tells to do."""
    return UniF2aceScheduler(
        sampling="showo",
        confidence_schedule="showo",
        masking_schedule=case["noise_schedule"],
        confidence_temperature=case["temperature"],
    )


def to_codes(ids, config):
    return (ids - config.image_code_offset).masked_fill(ids == config.mask_token_id, MASKED_CODE)


@torch.no_grad()
@pytest.mark.parametrize("sparse", [False, True], ids=["all-logits", "masked-logits"])
def test_every_step_of_every_case_is_the_originals(showo, cases, recorded, sparse):
    config, n = showo.config, showo.config.num_image_tokens
    assert cases
    for case in cases:
        name, input_ids = case["case"], recorded[f"{case['case']}.input_ids"]
        prompts = input_ids[:, : -n - 2]
        guidance_scale = case["guidance_scale"] + 1.0
        state = showo.encode_prompt(
            prompts, (prompts != config.text_config.pad_token_id).long(), guidance=guidance_scale != 1
        )
        scheduler, generator = compatible(case), torch.Generator().manual_seed(case["seed"])
        scheduler.set_timesteps(case["timesteps"])
        codes = to_codes(input_ids[:, -n - 1 : -1], config)
        for step, timestep in enumerate(scheduler.timesteps):
            expected = to_codes(recorded[f"{name}.trace_image_ids"][step], config)
            assert torch.equal(codes, expected), f"{name}: before step {step}"
            logits = showo.predict_codes(codes, state, guidance_scale)
            positions = None
            if sparse:
                positions = scheduler.masked_positions(codes, timestep)
                logits = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))
            codes = scheduler.step(logits, timestep, codes, generator=generator, positions=positions).prev_sample
        assert torch.equal(codes, recorded[f"{name}.out_codes"]), name


def test_the_pipeline_gives_the_originals_codes(showo_folder, showo, cases, recorded):
    pipe = UniF2acePipeline.from_pretrained(showo_folder)
    pipe.set_progress_bar_config(disable=True)
    longest, n = showo.config.max_text_length - 2, showo.config.num_image_tokens
    compared = 0
    for case in cases:
        everything_masked = recorded[f"{case['case']}.input_ids"][:, -n - 1 : -1] == showo.config.mask_token_id
        if not everything_masked.all() or max(len(prompt.split()) for prompt in case["prompts"]) > longest:
            continue  # inpainting; a prompt that the pipeline refuses to cut
        pipe.scheduler = compatible(case)
        codes = pipe(
            case["prompts"],
            guidance_scale=case["guidance_scale"] + 1.0,
            num_inference_steps=case["timesteps"],
            generator=torch.Generator().manual_seed(case["seed"]),
            output_type="latent",
        ).images
        assert torch.equal(codes, recorded[f"{case['case']}.out_codes"]), case["case"]
        compared += 1
    assert compared


def test_a_converted_folder_has_show_os_temperatures(showo_folder):
    config = UniF2aceScheduler.from_pretrained(showo_folder / "scheduler").config
    assert (config.masking_schedule, config.confidence_schedule, config.sampling) == ("cosine", "showo", "maskgit")
    assert GenerationConfig.from_pretrained(showo_folder).image_confidence_schedule == "showo"  # so has `generate`


def test_schedules_equal_the_originals(showo_recordings):
    tables = showo_recordings.load("tables")
    names = [name for name in tables if name.startswith("schedule.")]
    assert names
    for name in names:
        schedule = name.removeprefix("schedule.")
        ratio = MaskSchedule(schedule).showo_ratio(tables["t"])
        # A sigmoid differs by a unit in the last place between processors. What sampling reads are counts of codes,
        # and those agree wherever that unit does not decide.
        torch.testing.assert_close(ratio, tables[name], atol=2.5e-7, rtol=0, msg=name)
        for codes in (256, 1024):
            ours, theirs = codes * ratio, codes * tables[name]
            decided = (theirs - theirs.round()).abs() > codes * 2.5e-7
            assert decided.float().mean() > 0.5 and torch.equal(ours.floor()[decided], theirs.floor()[decided]), name
        exact = torch.tensor([MaskSchedule(schedule).ratio(progress) for progress in tables["t"].tolist()])
        torch.testing.assert_close(exact, tables[name], atol=2e-6, rtol=1e-5)  # Show-o stops at 1e-6


# --- without recordings


def test_random_numbers_are_drawn_as_multinomial_and_uniform_draw_them():
    torch.manual_seed(0)
    logits, codes = torch.randn(2, 9, 16), torch.full((2, 9), MASKED_CODE)
    generator, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    _, drawn = showo_step(logits, codes, DecodingStep(0.5, confidence_temperature=1.0), ImageSampling(), generator)
    expected = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=other).view(2, 9)
    torch.zeros(2, 9).uniform_(0, 1, generator=other)
    assert torch.equal(drawn, expected)
    assert torch.equal(generator.get_state(), other.get_state())


def test_the_last_step_knows_everything_and_a_list_of_generators_frees_rows_from_their_batch():
    torch.manual_seed(0)
    scheduler = UniF2aceScheduler(sampling="showo", confidence_schedule="showo")
    scheduler.set_timesteps(4)
    logits, sample = torch.randn(3, 16, 8), torch.full((3, 16), MASKED_CODE)

    def run(rows):
        generators = [torch.Generator().manual_seed(seed) for seed in rows]
        codes = sample[: len(rows)]
        for timestep in scheduler.timesteps:
            codes = scheduler.step(logits[list(rows)], timestep, codes, generator=generators).prev_sample
        return codes

    together = run(range(3))
    assert (together >= 0).all()
    assert torch.equal(together[1:2], run([1]))
    positions = masked_positions(sample, 16)
    step = {"step": DecodingStep(0.25, confidence_temperature=1.0), "numbers": ImageSampling()}
    one = showo_step(logits, sample, generator=torch.Generator().manual_seed(1), **step)
    two = showo_step(logits, sample, generator=torch.Generator().manual_seed(1), positions=positions, **step)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_every_schedule_is_taken_and_a_temperature_of_zero_is_not():
    logits, codes = torch.randn(1, 16, 8), torch.full((1, 16), MASKED_CODE)
    for name in MASK_SCHEDULES:
        after, _ = showo_step(logits, codes, DecodingStep(0.5), ImageSampling(masking_schedule=name))
        assert 0 < (after == MASKED_CODE).sum() < 16
    with pytest.raises(ValueError, match="expected a number above 0"):
        showo_step(torch.zeros(1, 4, 2), codes[:, :4], DecodingStep(0.5), ImageSampling(temperature=0.0))
