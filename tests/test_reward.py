"""Reward tuning: the policy gradient against an enumerated toy, advantages, KL, and that a tiny model learns."""

import copy
import importlib.util
import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from unif2ace import (
    UniF2aceConfig,
    UniF2aceForConditionalGeneration,
    UniF2acePipeline,
    UniF2aceProcessor,
    UniF2aceScheduler,
)
from unif2ace.modeling_unif2ace import get_preset
from unif2ace.training.adapters import changed_weights
from unif2ace.training.data.language.attributes import ATTRIBUTES
from unif2ace.training.evaluation.judge import UniF2aceJudge, UniF2aceJudgeConfig
from unif2ace.training.reward import (
    CREDITS,
    AttributeReward,
    GenerationRewardTrainer,
    Prompt,
    RewardArguments,
    code_log_probs,
    credits_of_step,
    group_advantages,
    kl_to_reference,
    policy_loss,
    revealed_places,
)
from unif2ace.training.synthetic.painted.rows import painted_prompts
from unif2ace.training.train_text_tokenizer import build_tokenizer


TEXTS = ["a man with a hat", "a young woman"]
MASKED = -1


# The mathematics


def test_advantages_of_a_group():
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.5, 0.5, 0.5, 0.5]])
    scaled, plain = group_advantages(rewards), group_advantages(rewards, scale=False)
    torch.testing.assert_close(scaled.sum(-1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(plain[0], torch.tensor([-2.0, -1.0, 0.0, 3.0]))
    assert torch.equal(scaled[1], torch.zeros(4))
    torch.testing.assert_close(scaled[0].square().mean().sqrt(), torch.tensor(1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(group_advantages(10 * rewards + 5), scaled, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("steps", "credit"), [(1, "revealed"), (2, "revealed"), (1, "hidden"), (2, "hidden")])
def test_policy_gradient_is_the_gradient_of_the_expected_reward(steps, credit):
    """
    All trajectories of two codes out of three, revealed at once or, each with probability 1/2, one step later. With
    credit for all hidden places the model is one whose codes do not depend on each other.
    """
    torch.manual_seed(0)
    places, size = 2, 3
    table = {}  # codes so far -> logits; what a model computes

    def logits_of(codes):
        key = tuple(codes.tolist()) if credit == "revealed" else ()
        if key not in table:
            table[key] = torch.randn(places, size, dtype=torch.float64, requires_grad=True)
        return table[key]

    rewards = torch.randn(size, size, dtype=torch.float64)

    def trajectories(codes, step):
        """(probability of the revealing, codes after each step) from here on."""
        masked = [place for place in range(places) if codes[place] == MASKED]
        last = step == steps - 1
        for count in range(len(masked) + 1):
            for chosen in itertools.combinations(masked, count):
                if last and count < len(masked):
                    continue
                chance = 1.0 if last else 0.5 ** len(masked)
                for values in itertools.product(range(size), repeat=count):
                    after = codes.clone()
                    for place, value in zip(chosen, values, strict=True):
                        after[place] = value
                    if last:
                        yield chance, [after]
                    else:
                        for rest, tail in trajectories(after, step + 1):
                            yield chance * rest, [after, *tail]

    start = torch.full((places,), MASKED)
    expected_reward, loss = 0.0, 0.0
    for chance, states in trajectories(start, 0):
        before, log_prob, step_losses = start, 0.0, 0.0
        reward = rewards[tuple(states[-1].tolist())]
        for after in states:
            logits = logits_of(before)[None]
            log_probs = logits.log_softmax(-1).gather(-1, states[-1][None, :, None])[..., 0]
            log_prob = log_prob + (log_probs * revealed_places(before[None], after[None])).sum()
            weights = credits_of_step(before[None], after[None], credit)
            step_losses = step_losses + policy_loss(log_probs, log_probs.detach(), reward[None], weights)
            before = after
        probability = chance * log_prob.exp()
        expected_reward = expected_reward + probability * reward
        loss = loss + probability.detach() * step_losses * places
    tables = list(table.values())
    wanted = torch.autograd.grad(expected_reward, tables, retain_graph=True)
    found = torch.autograd.grad(loss, tables)
    for of_reward, of_loss in zip(wanted, found, strict=True):
        torch.testing.assert_close(-of_loss, of_reward, atol=1e-12, rtol=1e-9)


def test_credits_add_up_to_what_a_step_reveals():
    before = torch.tensor([[MASKED, MASKED, MASKED, 5], [1, 2, 3, 4]])
    after = torch.tensor([[7, MASKED, MASKED, 5], [1, 2, 3, 4]])
    assert credits_of_step(before, after).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    hidden = credits_of_step(before, after, "hidden")
    torch.testing.assert_close(hidden, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 0]]))


def test_clipping_stops_at_its_bound():
    revealed = torch.ones(1, 2)
    old = torch.tensor([[-1.0, -1.0]])
    for advantage, moved, gradient in ((1.0, 0.5, 0.0), (1.0, -0.5, None), (-1.0, -0.5, 0.0), (-1.0, 0.5, None)):
        new = (old + moved).requires_grad_()
        policy_loss(new, old, torch.tensor([advantage]), revealed, clip=0.2).backward()
        assert (new.grad == 0).all() == (gradient == 0.0)
    hidden = torch.zeros(1, 2)
    assert policy_loss(old * float("inf"), old, torch.ones(1), hidden).item() == 0.0


def test_kl_is_exact_and_flat_at_the_reference():
    torch.manual_seed(0)
    logits, reference = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    revealed = torch.tensor([[True, False, True], [False, False, True]])
    p, q = (torch.distributions.Categorical(logits=x[revealed]) for x in (logits, reference))
    wanted = torch.distributions.kl_divergence(p, q).sum() / 6
    torch.testing.assert_close(kl_to_reference(logits, reference, revealed).double(), wanted, atol=1e-6, rtol=1e-6)
    same = logits.clone().requires_grad_()
    kl = kl_to_reference(same, logits, revealed)
    kl.backward()
    assert abs(kl.item()) < 1e-7 and same.grad.abs().max() < 1e-7


# The trainer


@pytest.fixture
def pipe(built):
    model = copy.deepcopy(built)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a new model is indifferent, and an adapter could hardly change that
    config = model.config
    tokenizer = build_tokenizer(TEXTS * 3, config.text_vocab_size, config.vq_config.num_bits)
    pipe = UniF2acePipeline(model, UniF2aceScheduler(), UniF2aceProcessor.from_config(config, tokenizer))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def low_codes(trainer):
    """A reward that one can do something for: the share of codes in the lower half of the codebook."""

    def reward(images, prompts):
        return (trainer.last.states[-1] < 16).float().mean(-1)

    return reward


def make_trainer(pipe, tmp_path, **options):
    given = {"updates": 25, "num_inference_steps": 4, "trained_steps": 2, "learning_rate": 2e-2, "beta": 0.0}
    given |= {"group_size": 8, "prompts_per_update": 2, "rank": 4, "preset": "attention+experts"} | options
    trainer = GenerationRewardTrainer(
        pipe, None, [Prompt(text) for text in TEXTS], RewardArguments(**given), tmp_path / "log.jsonl"
    )
    rollout = trainer.rollout

    def kept(prompts, generator):
        trainer.last = rollout(prompts, generator)
        return trainer.last

    trainer.rollout, trainer.reward = kept, low_codes(trainer)
    return trainer


@pytest.mark.parametrize("sampling", ["ancestral", "maskgit"])
def test_rollouts_remember_how_likely_they_were(pipe, tmp_path, sampling):
    trainer = make_trainer(pipe, tmp_path, sampling=sampling)
    prompts = [Prompt(text) for text in TEXTS]
    rollouts = trainer.rollout(prompts, torch.Generator().manual_seed(0))
    assert rollouts.states.shape == (5, 16, 16) and (rollouts.states[0] == MASKED).all()
    assert (rollouts.states[-1] >= 0).all() and len(rollouts.images) == 16
    revealed = [revealed_places(*pair) for pair in itertools.pairwise(rollouts.states)]
    assert (torch.stack(revealed).sum(0) == 1).all()  # each place once
    for step, places in enumerate(revealed):
        with torch.no_grad():
            logits = trainer._logits(rollouts.states[step], trainer._encode(prompts))
        now = code_log_probs(logits, rollouts.states[-1])
        torch.testing.assert_close(now[places], rollouts.log_probs[step][places], atol=1e-6, rtol=0)
    again = trainer.rollout(prompts, torch.Generator().manual_seed(0))
    assert torch.equal(again.states, rollouts.states)


@pytest.mark.parametrize("credit", CREDITS)
def test_some_steps_estimate_all(pipe, tmp_path, credit):
    """Averaged over all choices of one step, the gradient is that of all steps."""
    trainer = make_trainer(pipe, tmp_path, beta=0.1, credit=credit)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.normal_(std=0.1)
    prompts = [Prompt(text) for text in TEXTS]
    rollouts = trainer.rollout(prompts, torch.Generator().manual_seed(0))
    advantages = torch.randn(16, generator=torch.Generator().manual_seed(1))

    def gradient(*choices):
        trainer.optimizer.zero_grad()
        for steps in choices:
            trainer.backward(prompts, rollouts, advantages, steps)
        return [parameter.grad / len(choices) for parameter in trainer.parameters]

    for whole, mean in zip(gradient([0, 1, 2, 3]), gradient([0], [1], [2], [3]), strict=True):
        torch.testing.assert_close(whole, mean, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("credit", CREDITS)
def test_reward_rises(pipe, tmp_path, credit):
    trainer = make_trainer(pipe, tmp_path, credit=credit)
    log = trainer.train()
    first, last = (sum(entry["reward"] for entry in part) / 5 for part in (log[:5], log[-5:]))
    assert last > first + 0.15
    assert [json.loads(line)["update"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [*range(25)]
    trainer.save(tmp_path / "adapter")
    with pytest.raises(FileExistsError):
        trainer.save(tmp_path / "adapter")


def test_kl_holds_the_model_back(pipe, tmp_path):
    free = make_trainer(copy.deepcopy(pipe), tmp_path / "free", beta=1e-8, updates=10)
    held = make_trainer(pipe, tmp_path / "held", beta=5.0, updates=10)
    moved = [trainer.train()[-1]["kl"] for trainer in (free, held)]
    assert moved[1] < 0.5 * moved[0]


def test_equal_rewards_change_nothing(pipe, tmp_path):
    trainer = make_trainer(pipe, tmp_path, updates=2)
    trainer.reward = lambda images, prompts: torch.ones(len(images))
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    trainer.train()
    assert all(torch.equal(first, second) for first, second in zip(before, trainer.parameters, strict=True))


def test_interrupted_training_keeps_what_it_has(pipe, tmp_path):
    trainer = make_trainer(pipe, tmp_path, updates=5)
    reward = trainer.reward

    def interrupting(images, prompts):
        if len(trainer.log) == 2:
            raise KeyboardInterrupt
        return reward(images, prompts)

    trainer.reward = interrupting
    assert [entry["update"] for entry in trainer.train()] == [0, 1]


def test_experts_of_generation_alone(pipe, tmp_path):
    trainer = make_trainer(pipe, tmp_path, preset="experts", updates=2, iterations=2, guidance_scale=2.0)
    assert len(trainer.train()) == 2
    changed = changed_weights(trainer.model)
    assert changed["mmu routed experts"] == 0.0 and changed["t2i routed experts"] > 0


def test_attribute_reward():
    torch.manual_seed(0)
    config = UniF2aceJudgeConfig(image_size=16, stage_channels=[4, 4, 4], head_channels=4, feature_size=8)
    judge = UniF2aceJudge(config).eval()
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    read = judge.predict(images)
    right = [{name: read[name][i] for name in ("gender", "age", "skin")} for i in range(2)]
    wrong = [{name: next(v for v in ATTRIBUTES[name] if v != value) for name, value in r.items()} for r in right]
    hard = AttributeReward(judge, soft=False)
    assert hard(images, [Prompt("x", wanted) for wanted in right]).tolist() == [1.0, 1.0]
    assert hard(images, [Prompt("x", wanted) for wanted in wrong]).tolist() == [0.0, 0.0]
    soft = AttributeReward(judge)(images, [Prompt("x", wanted) for wanted in right])
    assert ((soft > 0) & (soft < 1)).all()
    with pytest.raises(ValueError, match="states no attribute"):
        hard(images, [Prompt("x"), Prompt("x")])


def test_example(tmp_path, capsys):
    """The whole experiment with a judge that knows nothing, on a tiny model that reads whole captions."""
    path = Path(__file__).resolve().parents[1] / "examples" / "reward_tuning.py"
    spec = importlib.util.spec_from_file_location("reward_tuning", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    fields = get_preset("tiny").to_dict() | {"max_text_length": 400}
    fields["text_config"]["max_position_embeddings"] = 512
    config = UniF2aceConfig(**fields)
    UniF2aceForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    texts = [prompt.text for prompt in painted_prompts(20)]
    tokenizer = build_tokenizer(texts * 3, config.text_vocab_size, config.vq_config.num_bits)
    UniF2aceProcessor.from_config(config, tokenizer).save_pretrained(tmp_path / "base")
    judge = UniF2aceJudgeConfig(image_size=16, stage_channels=[4, 4, 4], head_channels=4, feature_size=8)
    UniF2aceJudge(judge).save_pretrained(tmp_path / "judge")

    arguments = ["--base", tmp_path / "base", "--judge", tmp_path / "judge", "--output", tmp_path / "out"]
    arguments += ["--updates", 2, "--prompts", 4, "--held-out", 3, "--num-inference-steps", 2]
    results = example.main([str(argument) for argument in arguments])
    assert results["updates"] == 2 and set(results["measures"]) == {
        "attributes read rightly",
        "the judge's probability of them",
    }
    assert "2 updates of 4 prompts" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"adapter", "log.jsonl", "results.json", "sheet.png"}
    assert UniF2acePipeline.from_pretrained(tmp_path / "out" / "adapter").get_active_adapters() == ["default_0"]
    with pytest.raises(SystemExit):
        example.main([str(argument) for argument in arguments])


def test_painted_prompts():
    prompts = painted_prompts(3, "test")
    assert prompts == painted_prompts(3, "test") and prompts[1] == painted_prompts(1, "test", start=1)[0]
    assert all(prompt.text and prompt.wanted for prompt in prompts)


def test_wrong_arguments_are_refused(pipe):
    for wrong in (
        {"group_size": 1},
        {"trained_steps": 9},
        {"updates": 0},
        {"beta": -1},
        {"learning_rate": 0},
        {"credit": "all"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RewardArguments(**wrong)
    with pytest.raises(ValueError, match="no prompts"):
        GenerationRewardTrainer(pipe, None, [], RewardArguments())
