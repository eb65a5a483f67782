"""A few steps of training of a tiny model: both tasks, one task, accumulation, averaging, resume."""

import json

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, UniF2aceTextConfig, get_preset
from unif2ace.modeling_unif2ace.objective_unif2ace import UniF2aceObjective, hide_codes, summarize_load
from unif2ace.training.arguments import UniF2aceTrainingArguments
from unif2ace.training.callbacks import ExpertWatch, expert_gradients
from unif2ace.training.checkpoints import last_checkpoint
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.run_trainer import CLOCK_FILE, EMA_FILE
from unif2ace.training.train import load_config
from unif2ace.training.train_text_tokenizer import build_tokenizer
from unif2ace.training.trainer import UniF2aceTrainer


TEXTS = ["a red hat", "an old man", "a young woman who smiles", "glasses"]


class Rows(Dataset):
    """Pictures whose codes are told by their text, but for a bit of noise; first the t2i rows, then the mmu rows."""

    def __init__(self, num_t2i=16, num_mmu=16, with_codes=True):
        generator = torch.Generator().manual_seed(0)
        self.tasks = ["t2i"] * num_t2i + ["mmu"] * num_mmu
        self.rows = []
        for index, task in enumerate(self.tasks):
            codes = index % len(TEXTS) * 8 + torch.randint(0, 2, (16,), generator=generator)
            pixels = torch.rand(3, 16, 16, generator=generator) * 2 - 1
            text = TEXTS[index % len(TEXTS)]
            row = {"task": task, "codes": codes if with_codes else None, "pixel_values": pixels}
            self.rows.append(row | ({"text": text} if task == "t2i" else {"turns": [("Who is it?", text)]}))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def collator():
    config = get_preset("tiny")
    tokenizer = build_tokenizer([*TEXTS, "USER: \nWho is it? ASSISTANT:"] * 20, config.text_vocab_size, 5)
    return UniF2aceCollator(tokenizer, config)


@pytest.fixture
def make_trainer(tmp_path, collator):
    def make(rows=None, name="run", eval_rows=None, objective=None, model=None, **arguments):
        defaults = {
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "t2i_fraction": 0.5,
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        args = UniF2aceTrainingArguments(str(tmp_path / name), **(defaults | arguments))
        torch.manual_seed(0)
        model = UniF2aceForConditionalGeneration(get_preset("tiny")) if model is None else model
        rows = Rows() if rows is None else rows
        return UniF2aceTrainer(
            model=model,
            args=args,
            objective=objective,
            train_dataset=rows,
            eval_dataset=eval_rows,
            data_collator=collator,
        )

    return make


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def average(trainer):
    return dict(zip(trainer.averaged, trainer.ema.shadow_params, strict=True))


def assert_same(first, second):
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"{len(different)} differ, first {different[0]}"


def test_both_tasks_learn_and_every_term_is_logged(make_trainer):
    trainer = make_trainer(Rows(4, 4), max_steps=25, condition_dropout=0.0, sequence_router_noise_steps=5)
    before = weights(trainer)
    trainer.train()
    for key in ("mask_loss", "mmu_loss"):
        losses = logged(trainer, key)
        assert len(losses) == 25
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), key
    last = trainer.state.log_history[-2]
    for key in (
        "score_loss",
        "d3diff_loss",
        "t2i_balance",
        "mmu_balance",
        "t2i_router_entropy",
        "mmu_sequence_load_3",
    ):
        assert key in last, key
    assert any(f"mask_loss_ratio_{i}" in last for i in range(4))

    after = weights(trainer)
    frozen = ("model.vq_model", "model.vision_tower", "model.face_encoder")
    for name in before:
        if name.startswith(frozen):
            assert torch.equal(before[name], after[name]), name
    changed = sum(not torch.equal(before[name], after[name]) for name in before if not name.startswith(frozen))
    assert changed > 0.95 * sum(not name.startswith(frozen) for name in before)


def test_frozen_batch_norm_does_not_learn(make_trainer):
    trainer = make_trainer(max_steps=1)
    before = {name: buffer.clone() for name, buffer in trainer.model.model.face_encoder.named_buffers()}
    trainer.train()
    assert_same(before, dict(trainer.model.model.face_encoder.named_buffers()))


def test_loss_is_the_sum_of_its_terms(make_trainer):
    trainer = make_trainer(max_steps=2, alpha=0.02, mmu_weight=0.5, t2i_balance_coef=0.1, mmu_balance_coef=0.2)
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        total = entry["mask_loss"] + 0.02 * entry["score_loss"] + 0.5 * entry["mmu_loss"]
        total += 0.1 * entry["t2i_balance"] + 0.2 * entry["mmu_balance"]
        assert entry["loss"] == pytest.approx(total, rel=1e-4)


class WithConfidence(UniF2aceObjective):
    """A loss of one's own: one more term."""

    def forward(self, outputs, batch):
        terms = super().forward(outputs, batch)
        terms["entropy"] = torch.special.entr(outputs.image_logits.softmax(-1)).sum(-1).mean()
        return terms


def test_another_objective_is_another_module(make_trainer):
    trainer = make_trainer(max_steps=2)
    objective = WithConfidence(trainer.config, alpha=0.0)
    objective.weights["entropy"] = 0.5
    trainer = make_trainer(max_steps=2, objective=objective)
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        total = entry["mask_loss"] + entry["mmu_loss"] + 0.5 * entry["entropy"]
        total += 0.01 * (entry["t2i_balance"] + entry["mmu_balance"])
        assert entry["loss"] == pytest.approx(total, rel=1e-4)
    objective.scale = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="put them into the model"):
        make_trainer(objective=objective)


def test_a_plain_trainer_trains_both_tasks(make_trainer, collator, tmp_path):
    """transformers' own Trainer, with the model's loss; 8 rows at once or 2 four times."""
    ours, config = make_trainer(), get_preset("tiny")
    generator = torch.Generator().manual_seed(0)
    rows = [Rows()[i] for i in (0, 20, 1, 21, 2, 22, 3, 23)]
    masked = torch.rand(4, 16, generator=generator) < 0.5

    def collate(rows):
        batch = collator(rows)
        places = [TEXTS.index(row["text"]) for row in rows if row["task"] == "t2i"]
        return hide_codes(batch, config, masked[places])

    results = []
    for size in (8, 2):
        torch.manual_seed(0)
        model = UniF2aceForConditionalGeneration(get_preset("tiny"))
        model.model.vq_model.requires_grad_(False)
        args = TrainingArguments(
            str(tmp_path / str(size)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=12,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collate)
        trainer.train()
        losses = logged(trainer, "loss")
        assert losses[-1] < 0.8 * losses[0]
        results.append((losses[0], logged(trainer, "grad_norm")[0]))
        with torch.no_grad():
            batch = collate(rows)
            outputs = model.eval()(**batch)
            terms = outputs.loss_terms
            assert {"mask_loss", "score_loss", "mmu_loss", "t2i_balance", "mmu_balance"} <= set(terms)
            objective = ours.args.make_objective(config).eval()
            assert outputs.loss.item() == pytest.approx(objective.total(terms).item())
            untold = model(**{**batch, "task_ids": None})  # `<|t2i|>` tells the task
            assert untold.loss.item() == pytest.approx(outputs.loss.item())
    assert results[1] == pytest.approx(results[0], rel=0.1)  # not 4 times as large


def test_the_models_loss_is_the_trainers(make_trainer, collator):
    trainer = make_trainer(balance_scope="micro_batch")
    batch = collator([Rows()[0], Rows()[17], Rows()[2], Rows()[30]])
    drawn = trainer._draw(batch, -1, 0, training=False)
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model, batch)
        outputs = trainer.model(**hide_codes(batch, trainer.config, drawn["masked"]), use_cache=False)
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert outputs[0] is outputs.loss and outputs.logits is None


def test_the_papers_constants(tmp_path):
    """Section 3: alpha 0.01, top-2 of 8 routed experts beside 1 shared one a group, a weight for each group."""
    args = UniF2aceTrainingArguments(str(tmp_path), use_cpu=True)
    text = UniF2aceTextConfig()
    for weights in (UniF2aceObjective(get_preset("tiny")).weights, args.make_objective(get_preset("tiny")).weights):
        assert weights == {
            "mask_loss": 1.0,
            "score_loss": 0.01,
            "mmu_loss": 1.0,
            "t2i_balance": 0.01,
            "mmu_balance": 0.01,
            "t2i_sequence_balance": 0.0,
            "mmu_sequence_balance": 0.0,
        }
    assert (text.num_routed_experts, text.num_experts_per_tok, text.num_experts_per_sequence) == (8, 2, 2)
    assert text.t2i_sequence_experts == ["copy", "copy", "zero", "noise"]
    assert text.mmu_sequence_experts == ["copy", "copy", "clip", "face"]
    assert (
        (args.weighting, args.weighting_power) == ("inverse_ratio", 1.0)
        and args.mask_schedule == "cosine"
        and args.region_weights is None
    )
    recipe = load_config("unif2ace-faces-paper")["training"]
    weights = ["alpha", "mask_weight", "weighting", "mask_schedule", "mmu_weight"]
    weights += [name for name in recipe if name.endswith("balance_coef")]
    assert "region_weights" not in recipe and all(recipe[name] == getattr(args, name) for name in weights)
    torch.manual_seed(0)
    layer = UniF2aceForConditionalGeneration(get_preset("tiny")).model.language_model.layers[0]
    assert set(layer.mlp.shared_experts) == {"t2i", "mmu"}


def test_region_weights_change_what_is_trained_but_not_the_logged_loss(make_trainer):
    plain = make_trainer(max_steps=2, name="plain")
    plain.train()
    weighted = make_trainer(max_steps=2, name="weighted", region_weights={"eyes": 8.0})
    weighted.train()
    assert logged(plain, "mask_loss")[0] == logged(weighted, "mask_loss")[0]
    assert logged(plain, "loss")[0] != logged(weighted, "loss")[0]
    assert logged(plain, "mask_loss")[1] != logged(weighted, "mask_loss")[1]


@pytest.mark.parametrize("counts", [(8, 0), (0, 8)])
def test_one_task_only(make_trainer, counts):
    trainer = make_trainer(Rows(*counts), t2i_fraction=None, max_steps=2)
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert len(logged(trainer, "mask_loss" if counts[0] else "mmu_loss")) == 2
    assert not logged(trainer, "mmu_loss" if counts[0] else "mask_loss")


@pytest.mark.parametrize("batch_size", [4, 2])
def test_accumulation_changes_nothing(make_trainer, batch_size):
    """8 rows at once, 4 twice, 2 four times: the same masks, denominators, loads, and so the same weights."""
    options = {
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_steps": 4,
        "t2i_fraction": 0.375,  # so that micro-batches have unequal shares, and some have one task only
        "t2i_balance_coef": 0.1,
        "mmu_balance_coef": 0.1,
        "condition_dropout": 0.3,
    }
    whole = make_trainer(name="whole", per_device_train_batch_size=8, **options)
    whole.train()
    split = make_trainer(
        name="split",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=8 // batch_size,
        **options,
    )
    split.train()
    for key in ("loss", "grad_norm", "mask_loss", "mmu_loss", "score_loss"):
        assert logged(split, key) == pytest.approx(logged(whole, key), rel=2e-6), key
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], weight, atol=1e-6, rtol=0, msg=name)
    for level, load in whole.objective.loads.items():
        torch.testing.assert_close(split.objective.loads[level].load, load.load)


def test_trainer_hands_out_the_denominators_of_the_step(make_trainer):
    trainer = make_trainer(gradient_accumulation_steps=2)
    loader = iter(trainer.get_train_dataloader())
    batches, _ = trainer.get_batch_samples(loader, 2, trainer.args.device)
    masked = sum(int(batch["masked"].sum()) for batch in batches)
    for batch in batches:
        assert batch["denominators"][0].item() == pytest.approx(masked / 2)
        assert batch["denominators"][1].item() == pytest.approx(4 / 2)
        assert batch["denominators"].shape == (7,)
    assert not torch.equal(batches[0]["masked"], batches[1]["masked"])


def test_dropped_text_is_the_unconditional_prompt(collator):
    config = get_preset("tiny")
    batch = collator([Rows()[2], Rows()[16]])
    masked = torch.zeros(1, 16, dtype=torch.bool)
    masked[0, 3] = True
    dropped = config.layout.drop_prompts(batch, torch.tensor([0]))
    inputs = hide_codes(dropped, config, masked)
    counted = UniF2aceObjective(config).counts(dropped, masked)
    assert counted[3:5].tolist() == inputs["attention_mask"].sum(-1).tolist()  # tokens of either task
    assert counted[5:].tolist() == [1, 1]
    real = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
    special = config.special_token_id
    assert real[:4] == [special("<|t2i|>"), 0, 1, special("<|soi|>")]
    assert real[-1] == special("<|eoi|>") and len(real) == 3 + 18
    assert (inputs["input_ids"][0] == config.mask_token_id).sum() == 1
    hidden = inputs["image_labels"][inputs["image_labels"] != -100]
    assert hidden.tolist() == [Rows()[2]["codes"][3].item() + config.image_code_offset]
    assert torch.equal(inputs["input_ids"][1], batch["input_ids"][1])


def test_rows_without_codes_are_encoded(make_trainer):
    trainer = make_trainer(Rows(with_codes=False), max_steps=1)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[16]])
    inputs = trainer._fill_codes(batch)
    found = hide_codes(inputs, trainer.config, torch.ones(1, 16, dtype=torch.bool))["image_labels"][0]
    codes = trainer.model.encode_images(batch["pixel_values"]) + trainer.config.image_code_offset
    assert torch.equal(found[found != -100], codes[0])
    assert torch.equal(inputs["input_ids"][1, 2:18], codes[1])
    assert inputs["pixel_values"].shape[0] == 1
    trainer.train()


@pytest.mark.parametrize("with_codes", [True, False])
def test_conversations_without_a_picture_train_beside_the_others(make_trainer, with_codes):
    class Mixed(Rows):
        def __getitem__(self, index):
            if index % 3 or self.tasks[index] != "mmu":
                return super().__getitem__(index)
            return {"task": "mmu", "turns": [("Complete: a man", "An old man.")], "pictured": False}

    rows = Mixed(with_codes=with_codes)
    trainer = make_trainer(rows, max_steps=3, sequence_router_noise=1.0, sequence_router_noise_steps=8)
    trainer.train()
    losses = logged(trainer, "mmu_loss")
    assert losses[-1] < losses[0]
    talk = next(row for row in rows if row.get("pictured") is False)
    alone = trainer.data_collator([talk, talk])
    trainer._check_features(alone)  # features are of pictures
    batch = trainer.data_collator([talk, next(row for row in rows if "turns" in row and "pictured" not in row)])
    filled = trainer._fill_codes(batch)
    assert len(filled["pixel_values"]) == 1
    inputs = {name: batch[name][:1] for name in ("input_ids", "attention_mask", "task_ids")}
    real = inputs["attention_mask"][0].bool()
    trainer.model.eval()
    with torch.no_grad():
        together = trainer.model(**{name: filled[name] for name in (*inputs, "pixel_values")}).logits[0, real]
        by_itself = trainer.model(
            **{name: value[:, real] if value.ndim == 2 else value for name, value in inputs.items()}
        )
    torch.testing.assert_close(together, by_itself.logits[0], atol=1e-5, rtol=1e-4)


def test_use_of_experts_is_counted_by_group(make_trainer):
    trainer = make_trainer(max_steps=3, logging_steps=3)
    trainer.train()
    entry = trainer.state.log_history[0]
    for task in ("t2i", "mmu"):
        load = trainer.expert_use[f"{task}_load"]
        assert load.shape == (2, 4)
        torch.testing.assert_close(load.sum(-1), torch.ones(2))
        assert entry[f"{task}_dead_experts"] == (load == 0).sum()
        assert entry[f"{task}_router_max_load"] == pytest.approx(load.amax(-1).mean().item() * 4)
        assert 0 < entry[f"{task}_router_entropy"] <= 1
        assert f"{task}_load_0" not in entry  # hundreds of numbers belong in a table
        assert trainer.expert_use[f"{task}_sequence"].shape == (2, 4)


def upcycled_at_the_identity():
    """As converted weights are: routed experts add nothing, sequence routers prefer copy + copy."""
    torch.manual_seed(0)
    config = get_preset("tiny")
    config.text_config.sequence_router_copy_bias = 1.0
    model = UniF2aceForConditionalGeneration(config)
    for layer in model.model.language_model.layers:
        layer.mlp.experts.down_proj.data.zero_()
    return model


def test_training_begins_at_the_function_of_converted_weights(make_trainer, collator):
    trainer = make_trainer(max_steps=1, model=upcycled_at_the_identity())
    batch = collator([Rows()[0], Rows()[17]])
    drawn = trainer._draw(batch, 0, 0)
    assert "sequence_router_noise" not in drawn and "sequence_router_noise" in trainer._draw(batch, 300, 0)
    inputs = {k: v for k, v in hide_codes(drawn, trainer.config, drawn["masked"]).items() if k != "masked"}
    model = trainer.model.train()
    dense = upcycled_at_the_identity().train()
    for layer in dense.model.language_model.layers:
        layer.sequence_moe = None
        layer.mlp.experts.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    ours, theirs = model(**inputs, use_cache=False), dense(**inputs, use_cache=False)
    assert torch.equal(ours.image_logits, theirs.image_logits)
    assert torch.equal(ours.text_logits, theirs.text_logits)


def test_every_expert_can_learn_from_the_first_steps_on(make_trainer):
    """Of both levels and groups: a gradient of more than a millionth of the median of its layer's weights."""
    trainer = make_trainer(
        Rows(8, 8), max_steps=100, logging_steps=100, per_device_train_batch_size=16, model=upcycled_at_the_identity()
    )
    looks = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step not in (0, 1, 99):
                return
            sizes = expert_gradients(model)
            for index, layer in enumerate(model.model.language_model.layers):
                grads = torch.stack([p.grad.float().square().mean().sqrt() for p in layer.parameters()])
                median = grads[grads > 0].median().item()
                own = {name: size / median for name, size in sizes.items() if name.startswith(f"layers.{index} ")}
                looks.setdefault(state.global_step, {}).update(own)

    trainer.add_callback(Look())
    trainer.train()
    # nobody reads what the last layer makes of an understanding row's picture
    assert len(looks[0]) == 2 * 2 * (4 + 4) - 4
    small = [(step, name, x) for step, look in looks.items() for name, x in look.items() if x <= 1e-6]
    # at the first step the loads are even, and the balance loss has nothing to say yet
    assert not [entry for entry in small if entry[0] > 0 or "sequence" in entry[1]]


def test_an_expert_without_gradient_is_named(make_trainer, monkeypatch, caplog):
    monkeypatch.setattr(ExpertWatch, "STEPS", 4)
    monkeypatch.setattr(ExpertWatch, "EVERY", 2)
    trainer = make_trainer(max_steps=8)
    layer = trainer.model.model.language_model.layers[1].mlp
    for parameter in layer.experts.parameters():
        parameter.register_hook(lambda grad: grad.index_fill(0, torch.tensor([3]), 0.0))
    layer.t2i_router.weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([3]), 0.0))
    with caplog.at_level("WARNING"):
        trainer.train()
    assert caplog.text.count("no gradient for 4 steps: layers.1 t2i routed 3. Such experts") == 1


def test_dense_warm_up_ends(make_trainer):
    trainer = make_trainer(max_steps=4, sequence_dense_steps=2, sequence_dense_rise=0)
    trainer.train()
    assert all(module.density == 0 for module in trainer.sequence_moes)
    trainer.state.global_step = 1
    trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    assert all(module.density == 0.5 for module in trainer.sequence_moes)


def test_the_dense_phase_can_begin_at_nothing(make_trainer):
    """So that training begins at the function of converted weights; and it ends at nothing, as every dense phase."""
    trainer, seen = make_trainer(max_steps=13, sequence_dense_steps=100, sequence_dense_rise=1 / 3), []
    draw = trainer._draw
    trainer._draw = lambda *args, **kwargs: seen.append(trainer.sequence_moes[0].density) or draw(*args, **kwargs)
    trainer.train()
    assert seen == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25, *[0] * 7])  # over by half of the steps at the latest
    with pytest.raises(ValueError, match="sequence_dense_rise=1.0, expected 0 or more and less than 1"):
        make_trainer(sequence_dense_rise=1.0)


def test_dead_experts_are_counted():
    load = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    summary = summarize_load(load)
    assert summary["dead_experts"] == 2
    assert summary["router_max_load"] == pytest.approx((2 + 1) / 2)
    assert summary["router_entropy"] == pytest.approx((0.5 + 1) / 2)


def test_loads_of_a_group_without_rows_are_kept(make_trainer):
    trainer = make_trainer(Rows(8, 0), t2i_fraction=None, max_steps=2)
    trainer.train()
    load = trainer.objective.loads["token"].load
    torch.testing.assert_close(load[1], torch.full((2, 4), 0.25))
    assert not torch.equal(load[0], torch.full((2, 4), 0.25))


@pytest.mark.parametrize("option", [{"activation_checkpointing": True}, {"bf16": True}])
def test_less_memory_same_losses(make_trainer, option):
    plain = make_trainer(name="plain", max_steps=3)
    plain.train()
    frugal = make_trainer(name="frugal", max_steps=3, **option)
    frugal.train()
    tolerance = 1e-5 if "activation_checkpointing" in option else 5e-2
    for key in ("loss", "t2i_balance", "mmu_balance"):
        assert logged(frugal, key) == pytest.approx(logged(plain, key), rel=tolerance), key
    assert all(p.dtype == torch.float32 for p in frugal.model.parameters())


def test_missing_columns_are_named_before_training(make_trainer):
    rows = Rows(4, 4)
    rows.rows[5].pop("turns")
    make_trainer(rows)  # the first row of each task is looked at
    rows.rows[4].pop("turns")
    with pytest.raises(ValueError, match="row 4 of train_dataset is a mmu row and lacks the column 'turns'"):
        make_trainer(rows)
    with pytest.raises(ValueError, match="eval_dataset"):
        make_trainer(eval_rows=rows)


def test_resume_equals_an_uninterrupted_run(make_trainer, tmp_path):
    options = {
        "max_steps": 6,
        "ema_decay": 0.9,
        "save_strategy": "steps",
        "save_steps": 3,
        "lr_scheduler_type": "constant",
    }
    whole = make_trainer(Rows(6, 6), name="whole", **options)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert (checkpoint / EMA_FILE).exists() and json.loads((checkpoint / CLOCK_FILE).read_text())["seconds"] > 0

    resumed = make_trainer(Rows(6, 6), name="resumed", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same(weights(whole), weights(resumed))
    assert_same(average(whole), average(resumed))
    assert whole.ema.optimization_step == resumed.ema.optimization_step == 6
    assert logged(resumed, "loss")[-3:] == logged(whole, "loss")[-3:]

    (tmp_path / "whole" / "checkpoint-9").mkdir()  # cut off while it was being written
    assert last_checkpoint(tmp_path / "whole").name == "checkpoint-6"
    with pytest.raises(FileNotFoundError, match="--resume"):
        last_checkpoint(tmp_path)


def test_another_number_of_processes_keeps_the_rows_of_a_step(make_trainer, tmp_path, caplog):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(Rows(6, 6), name="whole", **options).train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    with pytest.raises(ValueError, match="1 processes with 4 rows a step, but this run has 1 with 8"):
        make_trainer(Rows(6, 6), name="wide", gradient_accumulation_steps=2, **options).train(checkpoint)
    split = make_trainer(
        Rows(6, 6), name="split", gradient_accumulation_steps=2, **options | {"per_device_train_batch_size": 2}
    )
    split.train(checkpoint)
    assert split.state.global_step == 4


def test_a_checkpoint_that_was_changed_is_refused(make_trainer, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(Rows(6, 6), **options)
    trainer.train()
    file = tmp_path / "run" / "checkpoint-4" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint-4 is not whole, optimizer.pt is not what was written"):
        make_trainer(Rows(6, 6), **options).train(str(file.parent))
    again = make_trainer(Rows(6, 6), **options)
    again.train(resume_from_checkpoint=True)  # from checkpoint-2
    assert_same(weights(trainer), weights(again))


def test_average_is_evaluated_and_saved_but_not_trained(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=3, ema_decay=0.5, eval_rows=Rows(4, 4))
    trainer.train()
    trained, averaged = weights(trainer), average(trainer)
    assert any(not torch.equal(averaged[name], trained[name]) for name in averaged)
    assert all(tensor.dtype == torch.float32 for tensor in averaged.values())

    metrics = trainer.evaluate()
    assert trainer.evaluate()["eval_loss"] == metrics["eval_loss"]  # the same masks again
    assert {"eval_mask_loss", "eval_mmu_loss", "eval_score_loss"} <= set(metrics)
    assert_same(trained, weights(trainer))
    trainer.save_model(str(tmp_path / "final"))
    assert_same(trained, weights(trainer))
    saved = dict(UniF2aceForConditionalGeneration.from_pretrained(tmp_path / "final").named_parameters())
    assert_same(averaged, saved)


def test_time_budget_stops_and_brings_the_rate_to_zero(make_trainer):
    trainer = make_trainer(max_steps=100_000, max_minutes=0.05)
    trainer.train()
    assert 1 <= trainer.state.global_step < 100_000
    rates = logged(trainer, "learning_rate")
    assert rates[-1] < 0.5 * max(rates)  # a loaded machine makes few and long steps


def test_decay_is_for_matrices_only(make_trainer):
    trainer = make_trainer()
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert "model.language_model.layers.0.mlp.experts.up_proj" in decayed
    assert "lm_head.weight" in decayed
    assert not [name for name in decayed if "bias" in name or "norm" in name or "embed_tokens" in name]


def test_wrong_arguments_are_refused(tmp_path):
    model = UniF2aceForConditionalGeneration(get_preset("tiny"))
    with pytest.raises(TypeError, match="UniF2aceTrainingArguments"):
        UniF2aceTrainer(model=model, args=TrainingArguments(str(tmp_path)))
    for wrong in (
        {"weighting": "x"},
        {"weighting_power": -1},
        {"alpha": -1},
        {"condition_dropout": 2},
        {"max_minutes": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            UniF2aceTrainingArguments(str(tmp_path), **wrong)


def test_a_model_with_several_end_tokens_trains(make_trainer):
    config = get_preset("tiny")
    config.text_config.eos_token_id = [1, 2]
    model = UniF2aceForConditionalGeneration(config)
    trainer = make_trainer(model=model, max_steps=1, condition_dropout=1.0)
    trainer.train()
    assert trainer.state.global_step == 1
