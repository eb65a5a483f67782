"""Muon for matrices, AdamW for the rest."""

import pytest
import torch

from unif2ace.training.optimizers import MuonAdamW, MuonAdamWFactory, orthogonalised


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24), (3, 24, 8)])
def test_orthogonalised_keeps_directions_and_evens_out_their_strength(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalised(matrices)
    assert result.shape == matrices.shape
    strengths = torch.linalg.svdvals(result)
    assert strengths.min() > 0.5 and strengths.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(result.flatten(), (left @ right).flatten(), dim=0) > 0.97


def test_each_fused_expert_is_orthogonalised_on_its_own():
    torch.manual_seed(0)
    experts = torch.randn(3, 8, 16) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    together = orthogonalised(experts)
    for expert, alone in zip(together, experts, strict=True):
        torch.testing.assert_close(expert, orthogonalised(alone), rtol=1e-4, atol=1e-5)
    assert torch.equal(orthogonalised(torch.zeros(4, 4)), torch.zeros(4, 4))


def test_bfloat16_orthogonalises_as_well():
    matrices = torch.randn(3, 24, 40)
    rough = orthogonalised(matrices, dtype=torch.bfloat16)
    assert rough.dtype == matrices.dtype
    torch.testing.assert_close(rough, orthogonalised(matrices), atol=0.02, rtol=0.05)


def test_the_adamw_half_is_torchs():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    settings = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}
    optimizers = MuonAdamW([{"params": [ours]}], **settings), torch.optim.AdamW([theirs], **settings)
    for _ in range(5):
        gradient = torch.randn(5)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_the_muon_half_steps_as_far_as_adamw_would():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(64, 32))
    optimizer = MuonAdamW([{"params": [parameter], "muon": True}], lr=0.01)
    parameter.grad = torch.randn(64, 32)
    optimizer.step()
    assert parameter.pow(2).mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.25)


def test_the_factory_sorts_the_parameters(model):
    model.model.vq_model.requires_grad_(False)
    optimizer = MuonAdamWFactory()(model, lr=1e-3, muon_lr=3e-3, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, tables, vectors = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-3, 1e-3, 1e-3]
    assert optimizer.param_groups[2]["weight_decay"] == 0
    assert any(name.endswith("mlp.experts.up_proj") for name in matrices)
    assert any(name.endswith("self_attn.q_proj.weight") for name in matrices)
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= set(tables)
    assert any("t2i_router" in name for name in tables)
    assert any(name.endswith("experts.up_proj_bias") for name in vectors)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sorted([*matrices, *tables, *vectors]) == sorted(trained)


def test_the_state_is_saved_and_restored():
    torch.manual_seed(0)

    def build():
        parameters = [torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))]
        groups = [{"params": parameters[:1], "muon": True}, {"params": parameters[1:]}]
        return parameters, MuonAdamW(groups, lr=0.1)

    gradients = [[torch.randn(4, 4), torch.randn(4)] for _ in range(4)]

    def go(parameters, optimizer, some):
        for step in some:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()

    parameters, optimizer = build()
    go(parameters, optimizer, gradients)
    halfway, first = build()
    go(halfway, first, gradients[:2])
    resumed, second = build()
    with torch.no_grad():
        for new, old in zip(resumed, halfway, strict=True):
            new.copy_(old)
    second.load_state_dict(first.state_dict())
    go(resumed, second, gradients[2:])
    for one, other in zip(parameters, resumed, strict=True):
        assert torch.equal(one, other)
