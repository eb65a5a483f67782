"""Who sees whom in the original Show-o, by its rules and not by ours."""

import torch

from unif2ace import UniF2aceConfig
from unif2ace.modeling_unif2ace.layout_unif2ace import MMU, T2I
from unif2ace.training.convert.showo_training import row_kinds


def showo_attention_mask(input_ids: torch.LongTensor, config: UniF2aceConfig) -> torch.BoolTensor:
    """
    Who sees whom in the original, True where the row's token may look at the column's.

    Equal to what our model uses in every row that holds a token; the original also lets padding look around, which
    nobody reads.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): Text-to-image rows padded on the left, others
            on the right.
        config (`UniF2aceConfig`): The model's configuration.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, 1, length, length)`.
    """
    length = input_ids.shape[1]
    place = torch.arange(length, device=input_ids.device)
    kinds = row_kinds(input_ids, config)[:, None]
    padding = input_ids == config.special_token_id("[PAD]")
    started = (input_ids == config.special_token_id("<|soi|>")).cumsum(-1) > 0
    is_end = input_ids == config.special_token_id("<|eoi|>")
    ended = is_end.cumsum(-1) > 0
    image = started & (~ended | is_end)  # start- and end-of-image included

    seen = (place[:, None] >= place).expand(len(input_ids), -1, -1)  # causal
    # text to image: the image sees everything, tokens see no padding
    to_image = seen | ((kinds == T2I) & image)[..., None]
    hidden = ((kinds == T2I) & padding)[:, None, :] & ~padding[..., None]
    # understanding: everybody sees the prefix up to end-of-image, or with CLIP input the patches alone
    if config.understanding_input == "clip":
        open_columns = (kinds == MMU) & (input_ids >= config.image_code_offset)
        open_columns &= (image & ~is_end) & (input_ids != config.special_token_id("<|soi|>"))
    else:
        open_columns = (kinds == MMU) & (~ended | is_end) & started.any(-1, keepdim=True)
    return ((to_image & ~hidden) | open_columns[:, None, :])[:, None]
