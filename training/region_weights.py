"""How much the codes of facial parts count in the text-to-image loss."""

from collections.abc import Mapping

import torch

from ..pipelines.regions_unif2ace import region_box


def region_weights(weights: Mapping[str, float], grid_size: int) -> torch.FloatTensor:
    """
    Factors of the codes' losses, mean 1.

    Eyes, brows, nose and mouth hold most of what a description says, but are a quarter of a picture's codes, and the
    large areas around them are learnt first. A factor that depends on the place alone changes what is learnt first,
    not what a code's probability should be. Ours: the paper weighs all codes alike.

    Args:
        weights (`Mapping[str, float]`):
            Weight of the codes under each facial part (`FACE_PARTS` of `pipelines/regions_unif2ace.py`), relative to
            those under none, by their centres; where parts overlap the largest holds.
        grid_size (`int`): Codes along one side of a picture.

    Returns:
        `torch.FloatTensor` of shape `(grid_size²,)`.

    Raises:
        ValueError: if there is no such part, or a weight is not positive.
    """
    centres = (torch.arange(grid_size) + 0.5) / grid_size
    found = torch.zeros(grid_size, grid_size)
    for part, weight in weights.items():
        if not weight > 0:
            raise ValueError(f"region_weights gives {part!r} the weight {weight}, expected more than 0")
        left, top, right, bottom = region_box(part)
        rows, columns = (centres > top) & (centres < bottom), (centres > left) & (centres < right)
        found[rows[:, None] & columns] = found[rows[:, None] & columns].clamp(min=weight)
    found[found == 0] = 1.0  # under no part
    return (found / found.mean()).flatten()
