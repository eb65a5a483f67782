"""Weights of facial parts in the text-to-image loss."""

import pytest
import torch

from unif2ace.training.arguments import region_weights


def test_parts_weigh_as_asked_and_the_mean_is_one():
    weights = region_weights({"eyes": 4, "mouth": 3}, 16).view(16, 16)
    assert weights.mean().item() == pytest.approx(1)
    outside, eye, mouth = weights[0, 0], weights[6, 5], weights[10, 8]
    assert (eye / outside).item() == pytest.approx(4)
    assert (mouth / outside).item() == pytest.approx(3)
    assert len(weights.unique()) == 3


def test_the_largest_weight_holds_where_parts_overlap():
    forwards = region_weights({"eyebrows": 2, "eyes": 4}, 16)
    backwards = region_weights({"eyes": 4, "eyebrows": 2}, 16)
    torch.testing.assert_close(forwards, backwards)
    shared = forwards.view(16, 16)[6, 8] / forwards.view(16, 16)[0, 0]
    assert shared.item() == pytest.approx(4)


def test_a_part_may_weigh_less():
    weights = region_weights({"neck": 0.5}, 16).view(16, 16)
    assert (weights[14, 8] / weights[0, 0]).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("weights", "message"), [({"tail": 2}, "no facial part 'tail'"), ({"eyes": 0}, "more than 0")]
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        region_weights(weights, 16)
