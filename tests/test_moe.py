"""The two levels of experts against slow references, and their promises to training."""

import logging
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers.utils.logging import warning_once

from unif2ace.modeling_unif2ace import (
    UniF2aceConfig,
    UniF2aceForConditionalGeneration,
    UniF2aceTextConfig,
    get_preset,
)
from unif2ace.modeling_unif2ace.layout_unif2ace import MMU, T2I, TASKS, ImageSpan, TaskRows
from unif2ace.modeling_unif2ace.moe_unif2ace import (
    SpanFeature,
    UniF2aceGroupedMoE,
    UniF2aceResampler,
    UniF2aceSequenceMoE,
    UniF2aceTopKRouter,
    grid_positions,
    noise_feature,
    sinusoidal_embedding,
)


WIDTH, EXPERTS, NUM_CODES = 32, 4, 16  # of the tiny preset


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def text_config(**changes):
    return UniF2aceTextConfig(**get_preset("tiny").text_config.to_dict() | changes)


def randomised(module, std=0.3):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


def rows_of(config, task, count):
    """`count` rows of one task with an image, its codes in place, none of them masked; pictures for the encoders."""
    soi, eoi = config.special_token_id("<|soi|>"), config.special_token_id("<|eoi|>")
    codes = torch.randint(config.vq_config.codebook_size, (count, NUM_CODES)) + config.image_code_offset
    text = torch.randint(2, 300, (count, 3))

    def column(token):
        return torch.full((count, 1), token)

    image = [column(soi), codes, column(eoi)]
    if task == T2I:
        parts = [column(config.special_token_id("<|t2i|>")), column(0), text, column(1), *image]
    else:
        parts = [column(config.special_token_id("<|mmu|>")), *image, column(0), text]
    input_ids = torch.cat(parts, dim=1)
    if task == MMU:  # both tasks' rows are equally long, so that they fit in a batch without padding
        input_ids = torch.cat([input_ids, column(1)], dim=1)
    return input_ids, torch.rand(count, 3, 16, 16) * 2 - 1


# --- rows


@pytest.mark.parametrize("tasks", [[1, 0, 0, 1, 0], [0, 1], [0, 0], [1, 1, 1]])
def test_merge_undoes_select(tasks):
    states = torch.randn(len(tasks), 3, 2)
    rows = TaskRows(torch.tensor(tasks))
    parts = {task: rows.select(states, task) for task in (T2I, MMU)}
    assert [len(parts[task]) for task in (T2I, MMU)] == [tasks.count(0), tasks.count(1)]
    assert torch.equal(rows.merge(parts), states)


def test_the_one_task_of_all_rows_is_found_or_told():
    assert TaskRows(torch.tensor([0, 0])).only == T2I
    assert TaskRows(torch.tensor([1])).only == MMU
    assert TaskRows(torch.tensor([0, 1])).only is None
    assert TaskRows(torch.tensor([1, 1]), only=MMU).only == MMU


# --- token level


def naive_token_moe(moe, states, task, top_k, norm):
    """Token by token: shared expert plus weighted routed experts."""
    router = (moe.t2i_router, moe.mmu_router)[task]
    shared, experts = moe.shared_experts[TASKS[task]], moe.experts

    def gelu(values):
        return F.gelu(values, approximate="tanh")

    output = torch.empty_like(states)
    for row in range(states.shape[0]):
        for place in range(states.shape[1]):
            x = states[row, place]
            probabilities = (router.weight @ x).softmax(0).tolist()
            best = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:top_k]
            total = sum(probabilities[i] for i in best) if norm else 1.0
            y = shared.fc2(gelu(shared.fc1(x)))
            for i in best:
                expert = task * len(probabilities) + i
                inner = gelu(experts.up_proj[expert] @ x + experts.up_proj_bias[expert])
                outer = experts.down_proj[expert] @ inner + experts.down_proj_bias[expert]
                y = y + probabilities[i] / total * outer
            output[row, place] = y
    return output


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("top_k, norm", [(2, True), (2, False), (1, False), (4, True)])
def test_token_experts_compute_what_a_loop_over_tokens_computes(implementation, top_k, norm):
    config = text_config(num_experts_per_tok=top_k, norm_topk_prob=norm)
    config._experts_implementation = implementation
    moe = randomised(UniF2aceGroupedMoE(config))
    states = torch.randn(3, 4, WIDTH)
    tasks = torch.tensor([MMU, T2I, MMU])
    with torch.no_grad():
        output, _ = moe(states, TaskRows(tasks))
        for row, task in enumerate(tasks.tolist()):
            expected = naive_token_moe(moe, states[row : row + 1], task, top_k, norm)
            torch.testing.assert_close(output[row : row + 1], expected, atol=2e-4, rtol=2e-4)


def test_router_weights_of_the_worked_example():
    probabilities = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1]])
    for norm, expected in (
        (True, [[0.625, 0.375], [0.75, 0.25]]),
        (False, [[0.5, 0.3], [0.6, 0.2]]),
    ):
        router = UniF2aceTopKRouter(text_config(hidden_size=8, norm_topk_prob=norm))
        weight = torch.zeros(EXPERTS, 8)
        weight[:, :2] = probabilities.log().T
        router.weight.data = weight
        logits, weights, index = router(torch.eye(8)[None, :2])
        assert logits.dtype == torch.float32 and logits.shape == (1, 2, EXPERTS)
        torch.testing.assert_close(weights[0], torch.tensor(expected))
        assert index[0].tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("task", [T2I, MMU])
def test_a_batch_of_one_task_leaves_the_other_groups_experts_with_zero_gradients(model, task):
    model.train()
    input_ids, pixels = rows_of(model.config, task, 2)
    model(input_ids=input_ids, pixel_values=pixels if task == MMU else None).logits.square().mean().backward()
    other = 1 - task
    for layer in model.model.language_model.layers:
        moe = layer.mlp
        routers = (moe.t2i_router, moe.mmu_router)
        for name, parameter in moe.named_parameters():
            assert parameter.grad is not None, name
        for parameter in (routers[other].weight, *moe.shared_experts[TASKS[other]].parameters()):
            assert not parameter.grad.any()
        for parameter in (routers[task].weight, *moe.shared_experts[TASKS[task]].parameters()):
            assert parameter.grad.any()
        for parameter in moe.experts.parameters():
            halves = parameter.grad.chunk(2)
            assert not halves[other].any()
            assert halves[task].any()
        for parameter in (layer.sequence_moe.router.weight, layer.sequence_moe.router.bias):
            assert parameter.grad is not None
            assert not parameter.grad[other].any()


def test_a_mixed_batch_gives_every_trained_parameter_a_gradient(model):
    model.train()
    t2i, _ = rows_of(model.config, T2I, 1)
    mmu, pixels = rows_of(model.config, MMU, 1)
    model(input_ids=torch.cat([t2i, mmu]), pixel_values=pixels).logits.square().mean().backward()
    frozen = ("model.vq_model.", "model.vision_tower.", "model.face_encoder.")
    missing = [
        name for name, parameter in model.named_parameters() if parameter.grad is None and not name.startswith(frozen)
    ]
    assert missing == []


@torch.no_grad()
def test_a_mixed_batch_computes_what_the_tasks_compute_alone(model):
    t2i, _ = rows_of(model.config, T2I, 2)
    mmu, pixels = rows_of(model.config, MMU, 2)
    mixed = torch.stack([mmu[0], t2i[0], t2i[1], mmu[1]])
    logits = model(input_ids=mixed, pixel_values=pixels).logits
    torch.testing.assert_close(logits[[1, 2]], model(input_ids=t2i).logits, atol=1e-5, rtol=1e-5)
    alone = model(input_ids=mmu, pixel_values=pixels).logits
    torch.testing.assert_close(logits[[0, 3]], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_task_picks_the_group_and_not_the_router(model):
    input_ids, _ = rows_of(model.config, T2I, 1)
    before = model(input_ids=input_ids).logits
    for layer in model.model.language_model.layers:
        randomised(layer.mlp.shared_experts["mmu"], 5.0)
        randomised(layer.mlp.mmu_router, 5.0)
        layer.mlp.experts.up_proj[EXPERTS:].normal_(std=5.0)
        layer.mlp.experts.down_proj[EXPERTS:].normal_(std=5.0)
    assert torch.equal(model(input_ids=input_ids).logits, before)


# --- sequence level


def sequence_moe(bias=None, **changes):
    """A sequence-level module with random weights, or with the same fixed logits for both groups."""
    module = randomised(UniF2aceSequenceMoE(text_config(**changes)))
    if bias is not None:
        module.router.weight.data.zero_()
        module.router.bias.data = torch.tensor([bias, bias])
    return module


@pytest.fixture
def case():
    """Three rows: a picture of each task and, between them, a row without one."""
    states = torch.randn(3, NUM_CODES + 4, WIDTH)
    positions = torch.stack([torch.arange(NUM_CODES) + 3, torch.arange(NUM_CODES) + 1])
    span = ImageSpan(rows=torch.tensor([0, 2]), positions=positions, task_ids=torch.tensor([T2I, MMU]))
    features = {
        "noise": SpanFeature(torch.randn(1, NUM_CODES, WIDTH), torch.tensor([0])),
        "clip": SpanFeature(torch.randn(1, NUM_CODES, WIDTH), torch.tensor([1])),
        "face": SpanFeature(torch.randn(1, NUM_CODES, WIDTH), torch.tensor([1])),
    }
    return states, span, features


def naive_sequence_moe(module, states, span, features, noise=None):
    """Picture by picture and expert by expert."""
    output = states.clone()
    for picture, (row, task) in enumerate(zip(span.rows.tolist(), span.task_ids.tolist(), strict=True)):
        x = states[row, span.positions[picture]]
        pooled = x.mean(0)
        logits = module.router.weight[task] @ pooled + module.router.bias[task]
        if noise is not None:
            logits = logits + noise[row]
        names = module.expert_names[task]
        allowed = [i for i, name in enumerate(names) if name in ("copy", "zero") or name in features]
        best = sorted(allowed, key=lambda i: -float(logits[i]))[: module.top_k]
        gates = logits[best].softmax(0)
        mixed = torch.zeros_like(x)
        for gate, name in zip(gates, (names[i] for i in best), strict=True):
            if name == "copy":
                mixed = mixed + gate * x
            elif name != "zero":
                share = (module.mixing[name] @ pooled).softmax(0)
                feature = features[name].states[features[name].index.tolist().index(picture)]
                mixed = mixed + gate * (share[0] * x + share[1] * feature)
        output[row, span.positions[picture]] = mixed
    return output


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
@pytest.mark.parametrize("attempt", range(3))
def test_sequence_experts_compute_what_a_loop_over_pictures_computes(case, top_k, attempt):
    torch.manual_seed(attempt)
    module = sequence_moe(num_experts_per_sequence=top_k)
    module.router.weight.mul_(5)
    torch.testing.assert_close(module(*case)[0], naive_sequence_moe(module, *case), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "bias, names", [([9.0, -9.0, -9.0, 9.0], ("noise", "face")), ([9.0, -9.0, 9.0, -9.0], ("zero", "clip"))]
)
def test_a_feature_expert_mixes_the_picture_with_its_feature(case, bias, names):
    states, span, features = case
    module = sequence_moe(bias)
    for mixing in module.mixing.values():
        mixing.zero_()  # one half of each
    output = module(*case)[0]
    for picture, name in enumerate(names):
        x = span.gather(states)[picture]
        other = torch.zeros_like(x) if name == "zero" else (x + features[name].states[0]) / 2
        torch.testing.assert_close(span.gather(output)[picture], (x + other) / 2, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_copy_and_copy_is_exactly_the_identity(case):
    module = sequence_moe([9.0, 9.0, 0.0, 0.0])
    assert torch.equal(module(*case)[0], case[0])


@torch.no_grad()
def test_a_new_model_starts_at_the_identity_when_the_copy_bias_says_so(case):
    config = UniF2aceConfig(**get_preset("tiny").to_dict())
    config.text_config.sequence_router_copy_bias = 1.0
    model = UniF2aceForConditionalGeneration(config)
    assert torch.equal(model.model.language_model.layers[0].sequence_moe(*case)[0], case[0])


@torch.no_grad()
def test_zero_experts_empty_the_picture_and_nothing_else(case):
    states, span, features = case
    module = sequence_moe(t2i_sequence_experts=["zero", "zero"], mmu_sequence_experts=["copy", "copy"])
    output = module(states, span, {})[0]
    assert not span.gather(output)[0].any()
    rest = torch.ones(states.shape[:2], dtype=torch.bool)
    rest[0, span.positions[0]] = False
    torch.testing.assert_close(output[rest], states[rest])


@torch.no_grad()
@pytest.mark.parametrize("place, gate", [(0, 0.571429), (1, 0.428571)])
def test_gates_of_the_worked_example_add_to_one(case, place, gate):
    states, span, _ = case
    bias = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    names = ["zero"] * 4
    names[place] = "copy"
    module = sequence_moe(bias, t2i_sequence_experts=names, mmu_sequence_experts=["copy"] * 4)
    output = span.gather(module(states, span, {})[0])
    torch.testing.assert_close(output[0], gate * span.gather(states)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output[1], span.gather(states)[1])


@torch.no_grad()
def test_an_expert_without_its_feature_is_never_chosen(case):
    states, span, features = case
    module = sequence_moe([-50.0, -50.0, 50.0, 50.0])
    output = module(states, span, {"noise": features["noise"]})[0]
    torch.testing.assert_close(output[2], states[2])  # copy + copy is all that is left to the understanding row
    output = module(states, span, {"noise": features["noise"], "face": features["face"]})[0]
    expected = naive_sequence_moe(module, states, span, {"noise": features["noise"], "face": features["face"]})
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_router_noise_changes_the_routing(case):
    module = sequence_moe([2.0, 1.0, 0.0, 0.0])
    noise = torch.zeros(3, 4)
    assert torch.equal(module(*case, noise)[0], module(*case)[0])
    noise[2, 3] = 20.0
    noise[1] = torch.nan  # the row without a picture has no decision to disturb
    output = module(*case, noise)[0]
    torch.testing.assert_close(output, naive_sequence_moe(module, *case, noise), atol=1e-5, rtol=1e-5)
    assert torch.equal(output[:2], module(*case)[0][:2])
    assert not torch.allclose(output[2], module(*case)[0][2])


@torch.no_grad()
def test_each_layer_gets_its_own_router_noise(model):
    input_ids, _ = rows_of(model.config, T2I, 1)
    outputs = []
    for layer in (None, 0, 1):
        noise = torch.zeros(2, 1, 4)
        if layer is not None:
            noise[layer, 0] = torch.tensor([0.0, 0.0, 30.0, 0.0])  # towards "zero"
        outputs.append(model(input_ids=input_ids, sequence_router_noise=noise).logits)
    assert torch.equal(outputs[0], model(input_ids=input_ids).logits)
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    assert not torch.allclose(outputs[1], outputs[2])


def test_training_computes_what_inference_computes_and_learns_from_all_experts(case):
    """The forward pass stays sparse, bit for bit; copy + copy is the identity, and yet every expert has a gradient."""
    states, span, features = case
    for bias in ([1.0, 1.0, 0.0, 0.0], [0.0, 0.3, 0.1, 0.2]):
        module = sequence_moe(bias).train()
        for feature in features.values():
            feature.states.requires_grad_().grad = None
        with torch.no_grad():
            expected, _ = module(states, span, features)
        output, _ = module(states, span, features)
        assert torch.equal(output, expected)
        (output * torch.randn_like(output)).sum().backward()
        for parameter in (module.router.weight, module.router.bias):
            assert (parameter.grad.flatten(2) if parameter.ndim == 3 else parameter.grad[..., None]).any(-1).all()
        assert all(mixing.grad.any() for mixing in module.mixing.values())
        assert all(feature.states.grad.any() for feature in features.values())
        plain = sequence_moe(bias).train()
        plain.routing = "top_k"
        plain(states, span, features)[0].sum().backward()
        if bias[0] == 1.0:
            assert plain.router.bias.grad.abs().max() < 1e-5  # what it was: copy + copy teaches nothing


def test_the_straight_through_gradient_is_that_of_the_whole_mixture(case):
    states, span, features = case
    module = sequence_moe([1.0, 1.0, 0.0, 0.0]).train()
    direction = torch.randn_like(states)
    (module(states, span, features)[0] * direction).sum().backward()
    found = module.router.bias.grad.clone()
    module.zero_grad()
    module.density = 1.0  # all experts in the forward pass, too
    dense, _ = module(states, span, features)
    assert not torch.allclose(dense, states)
    (dense * direction).sum().backward()
    torch.testing.assert_close(module.router.bias.grad, found)
    module.eval()
    assert torch.equal(module(states, span, features)[0], states)  # in training only


def test_the_gradient_of_the_states_is_that_of_the_forward_pass(case):
    """A dense backward pass would shrink it in each layer; here copy + copy passes it on as it is."""
    states, span, features = case
    module = sequence_moe([9.0, 9.0, 0.0, 0.0]).train()
    module.router.weight.data.zero_()
    states = states.requires_grad_()
    direction = torch.randn_like(states)
    (module(states, span, features)[0] * direction).sum().backward()
    # what comes by way of the mixing weights, which look at the span's mean, is small
    torch.testing.assert_close(states.grad, direction, atol=2e-2, rtol=0)


@torch.no_grad()
def test_a_model_without_encoders_says_so_and_runs(caplog):
    warning_once.cache_clear()
    values = get_preset("tiny").to_dict() | {"vision_config": None, "face_config": None}
    model = UniF2aceForConditionalGeneration(UniF2aceConfig(**values)).eval()
    for layer in model.model.language_model.layers:
        layer.sequence_moe.router.bias[MMU] = torch.tensor([0.0, 0.0, 50.0, 50.0])
    input_ids, pixels = rows_of(model.config, MMU, 1)
    with caplog.at_level(logging.WARNING):
        logits = model(input_ids=input_ids, pixel_values=pixels).logits
    assert "No clip features" in caplog.text and "No face features" in caplog.text
    for layer in model.model.language_model.layers:
        layer.sequence_moe = None
    torch.testing.assert_close(logits, model(input_ids=input_ids).logits)


@torch.no_grad()
def test_precomputed_features_stand_for_the_encoders(model):
    input_ids, pixels = rows_of(model.config, MMU, 2)
    clip, face = model.model.encode_clip(pixels), model.model.encode_face(pixels)
    assert clip.shape == (2, 4, 24) and face.shape == (2, 16)
    torch.testing.assert_close(face.norm(dim=-1), torch.ones(2))
    for layer in model.model.language_model.layers:
        layer.sequence_moe.router.bias[MMU] = torch.tensor([0.0, 0.0, 50.0, 50.0])
    computed = model(input_ids=input_ids, pixel_values=pixels).logits
    given = model(input_ids=input_ids, clip_features=clip, face_features=face).logits
    torch.testing.assert_close(given, computed, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(model(input_ids=input_ids, clip_features=clip, face_features=-face).logits, computed)


def test_features_for_another_number_of_pictures_are_refused(model):
    input_ids, _ = rows_of(model.config, MMU, 2)
    with pytest.raises(ValueError, match="1 clip features for 2 understanding rows"):
        model(input_ids=input_ids, clip_features=torch.zeros(1, 4, 24), face_features=torch.zeros(2, 16))


# --- resampler and embedding


@torch.no_grad()
@pytest.mark.parametrize("size, length", [(24, 4), (16, 1), (24, 577)])  # a grid, one feature, a sequence
def test_the_resampler_gives_one_state_per_code_whatever_the_features_length(size, length):
    resampler = randomised(UniF2aceResampler(get_preset("tiny"), size), 0.1)
    features = torch.randn(2, length, size)
    states = resampler(features)
    assert states.shape == (2, NUM_CODES, WIDTH)
    torch.testing.assert_close(resampler(features[1:]), states[1:], atol=1e-5, rtol=1e-5)
    # features that are no grid are a set: their order says nothing
    same = torch.allclose(resampler(features.flip(1)), states, atol=1e-5)
    assert same == (length != 4)


@torch.no_grad()
def test_a_fresh_resampler_reads_at_each_code_the_patches_at_its_place(model):
    resampler = model.model.resamplers["clip"]  # 2 x 2 patches for 4 x 4 codes
    features = torch.randn(64, 4, 24)
    states = resampler(features)
    own_codes = torch.arange(16).view(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)
    for patch, own in enumerate(own_codes):
        changed = features.clone()
        changed[:, patch] = torch.randn(64, 24)
        moved = (resampler(changed) - states).norm(dim=-1).mean(0)
        assert moved[own].mean() > 1.5 * moved[torch.isin(torch.arange(16), own, invert=True)].mean()


@torch.no_grad()
def test_a_fresh_resampler_tells_pictures_apart(model):
    """Not so with equal queries: they all read the mean of the patches, which hardly differs between pictures."""
    states = model.model.resamplers["clip"](torch.randn(8, 4, 24))
    assert states.std(dim=0).mean() > 0.3 * states.std()


def test_grid_positions_of_different_grids_fit_each_other():
    coarse, fine = grid_positions(4, 64), grid_positions(8, 64)
    assert fine.shape == (64, 64) and fine.pow(2).mean().item() == pytest.approx(1)
    nearest = (fine @ coarse.T).argmax(-1)
    row, column = torch.arange(64) // 8, torch.arange(64) % 8
    assert torch.equal(nearest, row // 2 * 4 + column // 2)


def test_the_routers_stay_in_float32_under_autocast(model):
    states = torch.randn(2, 6, WIDTH)
    router = model.model.language_model.layers[0].mlp.t2i_router
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _, _ = router(states)
    assert logits.dtype == torch.float32 and torch.equal(logits, router(states)[0])


def test_sinusoidal_embedding_is_that_of_diffusion_time_steps():
    values = torch.tensor([0.0, 0.25, 1.0])
    embedding = sinusoidal_embedding(values, 16)
    assert embedding.shape == (3, 16) and embedding.dtype == torch.float32
    for row, value in enumerate(values.tolist()):
        for i in range(8):
            angle = 1000 * value * 10_000 ** (-i / 8)
            assert embedding[row, i].item() == pytest.approx(math.cos(angle), abs=1e-4)
            assert embedding[row, 8 + i].item() == pytest.approx(math.sin(angle), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mask_ratio", "gaussian", "mask_ratio_gaussian"])
def test_noise_features_tell_masks_apart_after_the_resampler(kind):
    torch.manual_seed(0)
    resampler = UniF2aceForConditionalGeneration(get_preset("tiny")).model.resamplers["noise"]
    ratios = torch.linspace(1 / 16, 1, 16)
    masked = torch.stack([torch.rand(16).argsort() < round(16 * ratio) for ratio in ratios.tolist()])
    feature = noise_feature(masked, kind, 16)
    assert feature.shape == (16, 16) and torch.equal(feature[3:4], noise_feature(masked[3:4], kind, 16))
    states = resampler(feature[:, None])  # (ratios, places, width)
    size = states.square().mean().sqrt()
    assert states.std(0).square().mean().sqrt() > 0.4 * size  # over mask ratios
    assert states.std(1).square().mean().sqrt() > 0.4 * size  # over places
    nearest = (states[1:] - states[:-1]).square().mean((1, 2)).sqrt().min()
    assert nearest > 0.2 * size  # neighbours differ


def test_the_gaussian_noise_feature_is_standard_normal():
    masked = torch.stack([torch.rand(256).argsort() < 90 for _ in range(200)])
    feature = noise_feature(masked, "gaussian", 64)
    assert feature.mean().abs() < 0.05 and abs(feature.std() - 1) < 0.05
    assert abs(feature.pow(4).mean() - 3) < 0.3
    assert torch.corrcoef(feature).triu(1).abs().max() < 0.6  # another mask, another vector
    assert noise_feature(torch.zeros(1, 256, dtype=torch.bool), "gaussian", 64).isfinite().all()
    with pytest.raises(StrictDataclassError, match="noise_feature"):
        UniF2aceConfig(**get_preset("tiny").to_dict() | {"noise_feature": "white"})


@torch.no_grad()
def test_the_noise_expert_is_told_the_share_of_masked_codes(model):
    config = model.config
    input_ids, _ = rows_of(config, T2I, 2)
    task_ids = torch.tensor([T2I, T2I])
    span = model.config.layout.find_image(input_ids, task_ids)
    input_ids[1, span.positions[1, :4]] = config.mask_token_id
    feature = model.model.span_features(input_ids, span)["noise"]
    told = sinusoidal_embedding(torch.tensor([0.0, 0.25]), config.noise_feature_size)
    torch.testing.assert_close(feature.states, model.model.resamplers["noise"](told[:, None]))
    assert feature.index.tolist() == [0, 1]
