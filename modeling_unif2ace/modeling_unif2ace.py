"""
UniF²ace (arXiv 2503.08120): one transformer that understands faces and generates them from text.

Without its experts it computes exactly what Show-o's decoder computes; what is ours is the grouped experts, the hybrid
attention mask, and the two tasks in one batch.

Sequences are those of Show-o; `layout_unif2ace.py` spells them.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from .adapters_unif2ace import UniF2aceAdapterMixin
from .attention_unif2ace import UniF2aceAttention, UniF2aceRotaryEmbedding
from .checkpoint_unif2ace import UniF2aceSafeLoadingMixin
from .compat_unif2ace import (
    CACHE,
    Cache,
    DynamicCache,
    GradientCheckpointingLayer,
    create_causal_mask,
    drop_capturing_hooks,
    init,
    is_plain,
    loaded_parameter,
    takes_cache,
)
from .configuration_unif2ace import UniF2aceConfig, UniF2aceTextConfig
from .face_encoder_unif2ace import UniF2aceFaceEncoder
from .generation_unif2ace import UniF2aceGenerationMixin
from .image_tokenizer_unif2ace import UniF2aceVQModel
from .layout_unif2ace import MMU, T2I, ImageSpan, TaskRows

# The experts carry `@use_experts_implementation` in their own file; transformers looks for that text in this one.
from .moe_unif2ace import (
    FEATURES,
    FeatureInputs,
    SpanFeature,
    UniF2aceExperts,
    UniF2aceGroupedMoE,
    UniF2aceMLP,
    UniF2aceResampler,
    UniF2aceSequenceMoE,
    UniF2aceTopKRouter,
    grid_positions,
)
from .objective_unif2ace import NO_LABEL, UniF2aceObjective, answer_positions


logger = logging.get_logger(__name__)

TASK_NAMES = {T2I: "text-to-image", MMU: "understanding"}
ROUTER_LOGITS = ("t2i_router_logits", "mmu_router_logits", "sequence_router_logits")


class UniF2aceDecoderLayer(GradientCheckpointingLayer):
    """
    A block: attention, token-level experts, then sequence-level experts on the image span.

    `block_form="parallel"` feeds attention and experts the same normalised input (Phi, Show-o); `"sequential"` gives
    the experts a LayerNorm of their own after attention (the paper's method figure).
    """

    def __init__(self, config: UniF2aceTextConfig, layer_idx: int):
        super().__init__()
        self.parallel = config.block_form == "parallel"
        self.self_attn = UniF2aceAttention(config, layer_idx)
        self.has_experts = layer_idx in config.moe_layers
        self.mlp = UniF2aceGroupedMoE(config) if self.has_experts else UniF2aceMLP(config, config.intermediate_size)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if not self.parallel:
            self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.sequence_moe = UniF2aceSequenceMoE(config) if layer_idx in config.sequence_moe_layers else None

    def feed_forward(self, hidden_states: torch.Tensor, task_rows: TaskRows) -> tuple[torch.Tensor, dict]:
        """The grouped experts with their routers' logits, or the dense MLP in a layer without them."""
        return self.mlp(hidden_states, task_rows) if self.has_experts else (self.mlp(hidden_states), {})

    @takes_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        task_rows: TaskRows | None = None,
        image_span: ImageSpan | None = None,
        span_features: dict[str, SpanFeature] | None = None,
        sequence_router_noise: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        """The new states (B, S, H), and by name what may be recorded: `attentions` and the routers' logits."""
        normed = self.input_layernorm(hidden_states)
        attended, weights = self.self_attn(normed, position_embeddings, attention_mask, cache, **kwargs)
        attended = self.resid_dropout(attended)
        if self.parallel:
            fed, recorded = self.feed_forward(normed, task_rows)
            hidden_states = attended + self.resid_dropout(fed) + hidden_states
        else:
            hidden_states = hidden_states + attended
            fed, recorded = self.feed_forward(self.post_attention_layernorm(hidden_states), task_rows)
            hidden_states = hidden_states + self.resid_dropout(fed)
        recorded = {**recorded, "attentions": weights}
        if self.sequence_moe is not None and image_span is not None:
            hidden_states, recorded["sequence_router_logits"] = self.sequence_moe(
                hidden_states, image_span, span_features, sequence_router_noise
            )
        return hidden_states, recorded


class UniF2acePreTrainedModel(UniF2aceSafeLoadingMixin, UniF2aceAdapterMixin, PreTrainedModel):
    """Loading, saving and initialisation, common to the text model, the multimodal model and the model with a head."""

    config: UniF2aceConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniF2aceDecoderLayer"]
    _skip_keys_device_placement = [CACHE]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs):
        """[`~transformers.PreTrainedModel.activation_checkpointing_enable`]; warns of `use_reentrant=True`."""
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            logger.warning_once(
                "use_reentrant=True cuts the routers' losses off from the gradient, and fails with pictures: leave it "
                "out, the default is False"
            )
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """
        The embeddings as they are. Text, special tokens, image codes and mask share one range of ids, in this order,
        so a token behind them would be taken for an image code.

        Raises:
            ValueError: if there shall be another number of them.
        """
        embeddings = self.get_input_embeddings()
        if new_num_tokens not in (None, embeddings.num_embeddings):
            raise ValueError(
                f"this vocabulary has {embeddings.num_embeddings} tokens, of which text comes first and image codes "
                f"last, so it cannot be resized to {new_num_tokens}: use an id of a text token that nobody needs, or "
                "make a model with a larger `text_vocab_size` and copy the weights"
            )
        return embeddings

    def __reduce_ex__(self, protocol):
        """For pickling, also after a call."""
        drop_capturing_hooks(self)
        return super().__reduce_ex__(protocol)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, UniF2aceExperts):
            init.normal_(module.up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)
            init.zeros_(module.up_proj_bias)
            init.zeros_(module.down_proj_bias)
        elif isinstance(module, UniF2aceTopKRouter):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, UniF2aceRotaryEmbedding):
            init.copy_(module.inv_freq, module.frequencies()[0])
        elif isinstance(module, UniF2aceSequenceMoE):
            table = module.kind_table()
            init.copy_(module.kind_of_expert, table)
            init.zeros_(module.router.weight)
            init.copy_(module.router.bias, table[..., 0] * module.copy_bias)
            for mixing in module.mixing.values():
                init.zeros_(mixing)  # the softmax starts at one half
        elif isinstance(module, UniF2aceResampler):
            codes, width = module.queries.shape
            init.copy_(module.queries, grid_positions(math.isqrt(codes), width))
            # here and not at the blocks: transformers passes over modules without parameters of their own
            for block in module.blocks:
                for projection in (block.q_proj, block.v_proj, block.out_proj):
                    # keeps the variance, so that what is read is as loud as the query
                    init.normal_(projection.weight, mean=0.0, std=width**-0.5)
                init.copy_(block.k_proj.weight, block.q_proj.weight)
            init.normal_(module.out_proj.weight, mean=0.0, std=width**-0.5)
        elif isinstance(module, UniF2aceModel) and module.image_position_embeddings is not None:
            init.normal_(module.image_position_embeddings, mean=0.0, std=std)


class UniF2aceTextModel(UniF2acePreTrainedModel):
    """
    The decoder over embedded text and image codes. Task rows, image span and features come from [`UniF2aceModel`];
    without them every row is plain text of the understanding group.
    """

    config: UniF2aceTextConfig
    input_modalities = ("text",)

    def __init__(self, config: UniF2aceTextConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_dropout = nn.Dropout(config.embd_pdrop)
        self.layers = nn.ModuleList([UniF2aceDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = UniF2aceRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        block_sequence_ids: torch.LongTensor | None = None,
        visible_columns: torch.BoolTensor | None = None,
        prepared_mask: bool = False,
        task_rows: TaskRows | None = None,
        image_span: ImageSpan | None = None,
        span_features: dict[str, SpanFeature] | None = None,
        sequence_router_noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> "UniF2aceModelOutputWithPast":
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Token ids; or give
                `inputs_embeds` (batch_size, sequence_length, hidden_size).
            attention_mask (`torch.Tensor` of shape `(batch_size, past + sequence_length)`, *optional*): 0 at padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Rotary positions.
            cache (`Cache`, *optional*): Keys and values of earlier tokens.
            block_sequence_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens with the same number from 0 up see each other in both directions; -1 is causal.
            visible_columns (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
                True at tokens that the whole row sees, also what stands before them.
            prepared_mask (`bool`, *optional*, defaults to `False`):
                `attention_mask` is already the additive 4-D mask, or `None` for "everybody sees everything".
            task_rows, image_span, span_features: See `moe_unif2ace.py`.
            sequence_router_noise (`torch.FloatTensor` of shape `(sequence layers, batch_size, experts)`, *optional*):
                Added to the sequence routers' logits, to explore in training.
            kwargs: `output_hidden_states`, `output_attentions` (with `attn_implementation="eager"`),
                `output_t2i_router_logits`, `output_mmu_router_logits` and `output_sequence_router_logits` record these
                of every layer; by default as the configuration says. `output_hidden_states` may also be an index or
                several, from the end if negative; the others are then `None`. The rest goes to the attention
                implementation.
        """
        names = ("hidden_states", "attentions", *ROUTER_LOGITS)
        wanted = {name: kwargs.pop(f"output_{name}", None) for name in names}
        wanted = {
            name: getattr(self.config, f"output_{name}", False) if want is None else want
            for name, want in wanted.items()
        }
        records = {name: () for name, want in wanted.items() if want}
        kept = _indices(wanted["hidden_states"], len(self.layers) + 1)
        if use_cache is None:
            use_cache = self.config.use_cache
        if use_cache and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            logger.warning_once("activations that are computed twice cannot fill a cache: use_cache=False is taken")
            use_cache = False
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        batch_size, length = inputs_embeds.shape[:2]
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            past = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(past, past + length, device=inputs_embeds.device)[None]
        if task_rows is None:
            task_rows = TaskRows(position_ids.new_full((batch_size,), MMU), only=MMU)
        if not prepared_mask:
            columns = visible_columns
            attention_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                block_sequence_ids=block_sequence_ids,
                or_mask_function=None if columns is None else lambda row, head, query, key: columns[row, key],
                **{CACHE: cache},
            )
        hidden_states = self.embed_dropout(inputs_embeds)
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        noise = iter(() if sequence_router_noise is None else sequence_router_noise)
        for layer in self.layers:
            _record_state(records, hidden_states, kept)
            hidden_states, recorded = layer(
                hidden_states,  # positional, for activation checkpointing
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                task_rows=task_rows,
                image_span=image_span,
                span_features=span_features,
                sequence_router_noise=next(noise, None) if layer.sequence_moe is not None else None,
                position_ids=position_ids,
                **{CACHE: cache},  # by the name under which activation checkpointing drops it
                **kwargs,
            )
            _record(records, **recorded)
        hidden_states = self.final_layernorm(hidden_states)
        _record_state(records, hidden_states, kept)
        return UniF2aceModelOutputWithPast(last_hidden_state=hidden_states, **{CACHE: cache}, **records)


@dataclass
class UniF2aceModelOutputWithPast(BaseModelOutputWithPast):
    """
    Args:
        t2i_router_logits (`tuple[torch.FloatTensor]`): Per expert layer (T2I rows, sequence_length, experts).
        mmu_router_logits (`tuple[torch.FloatTensor]`): The same for the understanding rows.
        sequence_router_logits (`tuple[torch.FloatTensor]`): Per layer (rows with an image, sequence experts).
    """

    t2i_router_logits: tuple | None = None
    mmu_router_logits: tuple | None = None
    sequence_router_logits: tuple | None = None


class UniF2aceModel(UniF2acePreTrainedModel):
    """
    Everything but the head: image tokenizer, encoders, resamplers and transformer.

    Images are merged, masks built and tasks told apart here and not in the head class, because TRL and PEFT call this
    module directly.
    """

    config: UniF2aceConfig
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: UniF2aceConfig):
        super().__init__(config)
        self.language_model = UniF2aceTextModel._from_config(config.text_config)
        self.vq_model = UniF2aceVQModel._from_config(config.vq_config)
        self.vision_tower = (
            None if config.vision_config is None else CLIPVisionModel._from_config(config.vision_config)
        )
        self.face_encoder = (
            None if config.face_config is None else UniF2aceFaceEncoder._from_config(config.face_config)
        )
        used = {*config.text_config.t2i_sequence_experts, *config.text_config.mmu_sequence_experts}
        if not config.text_config.sequence_moe_layers:
            used = set()
        places = {T2I: config.num_image_tokens, MMU: config.num_understanding_tokens}
        self.resamplers = nn.ModuleDict(
            {
                kind: UniF2aceResampler(config, feature.size(config), places[feature.task])
                for kind, feature in FEATURES.items()
                if kind in used
            }
        )
        self.mm_projector = None
        if config.understanding_input == "clip":
            width = config.text_config.hidden_size
            self.mm_projector = nn.Sequential(
                nn.Linear(config.clip_feature_size, width), nn.GELU(), nn.Linear(width, width)
            )
        self.image_position_embeddings = None
        if config.image_position_embeddings:
            shape = (config.num_image_tokens, config.text_config.hidden_size)
            self.image_position_embeddings = nn.Parameter(torch.empty(shape))
        self.post_init()

    def train(self, mode: bool = True):
        """Training mode for the transformer only: image tokenizer and encoders are frozen, with their statistics."""
        super().train(mode)
        for frozen in (self.vq_model, self.vision_tower, self.face_encoder):
            if frozen is not None:
                frozen.eval()
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The embeddings of text, special tokens, image codes and mask."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding):
        """Replace the embeddings."""
        self.language_model.embed_tokens = value

    def set_vision_tower(self, vision_tower: CLIPVisionModel | None):
        """
        Use another CLIP vision tower, which `save_pretrained` keeps with the model; `None` takes it away.

        Raises:
            ValueError: if its features are not of the size, or not as many, as the model was built for.
        """
        if vision_tower is not None and vision_tower.config.hidden_size != self.config.clip_feature_size:
            raise ValueError(
                f"the vision tower gives features of width {vision_tower.config.hidden_size}, but the model was built "
                f"for clip_feature_size={self.config.clip_feature_size}"
            )
        if vision_tower is not None and self.mm_projector is not None:
            patches = (vision_tower.config.image_size // vision_tower.config.patch_size) ** 2
            if patches != self.config.num_clip_tokens:
                raise ValueError(
                    f"the vision tower makes {patches} patches, but the model was built for "
                    f"num_clip_tokens={self.config.num_clip_tokens}"
                )
        self.vision_tower = vision_tower
        self.config.vision_config = None if vision_tower is None else vision_tower.config

    def set_face_encoder(self, face_encoder: UniF2aceFaceEncoder | None):
        """
        Use another face encoder, which `save_pretrained` keeps with the model; `None` takes it away.

        Raises:
            ValueError: if its embedding is not `config.face_feature_size` long.
        """
        if face_encoder is not None and face_encoder.config.embedding_size != self.config.face_feature_size:
            raise ValueError(
                f"the face encoder gives embeddings of length {face_encoder.config.embedding_size}, but the model was "
                f"built for face_feature_size={self.config.face_feature_size}"
            )
        self.face_encoder = face_encoder
        self.config.face_config = None if face_encoder is None else face_encoder.config

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """Image codes (B, N) in [0, codebook_size) of `pixel_values` (B, 3, R, R) in [-1, 1]."""
        return self.vq_model.encode(pixel_values.to(self.vq_model.dtype))

    @torch.no_grad()
    def encode_clip(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor | None:
        """
        CLIP patch features (B, patches, clip_feature_size) of `pixel_values` (B, 3, R, R) in [-1, 1], or `None`
        without a vision tower. The picture is resized and normalised as CLIP wants it.
        """
        if self.vision_tower is None:
            return None
        size = self.vision_tower.config.image_size
        pixels = _resize(pixel_values.float(), size) / 2 + 0.5
        mean = pixels.new_tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
        std = pixels.new_tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
        output = self.vision_tower(((pixels - mean) / std).to(self.vision_tower.dtype), output_hidden_states=True)
        return output.hidden_states[self.config.vision_feature_layer][:, 1:]

    @torch.no_grad()
    def encode_face(
        self, pixel_values: torch.FloatTensor, face_pixel_values: torch.FloatTensor | None = None
    ) -> torch.FloatTensor | None:
        """
        Face embedding (B, face_feature_size), normalised, of `face_pixel_values`, the aligned faces that the image
        processor returns where the encoder wants them, else of `pixel_values` (B, 3, R, R), both in [-1, 1]; `None`
        without a face encoder.
        """
        encoder = self.face_encoder
        if encoder is None:
            return None
        if encoder.config.alignment == "five_points" and face_pixel_values is None:
            logger.warning_once(
                'the face encoder wants aligned faces (alignment="five_points") and gets whole pictures: give '
                f"`face_pixel_values`, which an image processor with face_size={encoder.config.image_size} returns"
            )
        pixels = pixel_values if face_pixel_values is None else face_pixel_values
        pixels = _resize(pixels.float(), encoder.config.image_size).to(encoder.dtype)
        return F.normalize(encoder(pixels).embeddings.float(), dim=-1)

    def fill_image_tokens(self, input_ids, pixel_values, image_rows) -> torch.LongTensor:
        """Put the codes of `pixel_values` in place of the placeholders of the rows `image_rows`."""
        if len(pixel_values) != len(image_rows):
            raise ValueError(
                f"{len(pixel_values)} images were given for {len(image_rows)} understanding rows with an image"
            )
        slots = input_ids[image_rows] == self.config.image_token_id  # (images, S)
        placeholders = slots.sum(-1)
        wanted = placeholders > 0  # the other rows hold codes already
        if not wanted.any():
            return input_ids
        if (placeholders[wanted] != self.config.num_image_tokens).any():
            raise ValueError(
                f"{placeholders.tolist()} image placeholders, expected {self.config.num_image_tokens} in each row"
            )
        codes = self.encode_images(pixel_values[wanted]) + self.config.image_code_offset
        filled = input_ids[image_rows].masked_scatter(slots, codes.to(input_ids.dtype))
        return input_ids.index_copy(0, image_rows, filled)

    def project_clip(self, inputs_embeds, span: ImageSpan, clip_features) -> torch.FloatTensor:
        """`inputs_embeds` with CLIP patch features through `mm_projector` in the understanding rows' image places."""
        mmu = span.task_ids == MMU
        if clip_features is None:
            raise ValueError(
                "this model reads pictures as CLIP features (understanding_input='clip') and has none: give "
                "`pixel_values` and a tower (`set_vision_tower`), or precomputed `clip_features`"
            )
        if clip_features.shape[:2] != (int(mmu.sum()), self.config.num_clip_tokens):
            raise ValueError(
                f"clip_features have shape {tuple(clip_features.shape)}, expected {int(mmu.sum())} images with "
                f"{self.config.num_clip_tokens} patches each"
            )
        projected = self.mm_projector(clip_features.to(self.mm_projector[0].weight.dtype))
        positions = span.positions[mmu][:, : self.config.num_clip_tokens]
        return inputs_embeds.index_put((span.rows[mmu][:, None], positions), projected.to(inputs_embeds.dtype))

    def embed(self, input_ids: torch.LongTensor, span: ImageSpan | None) -> torch.FloatTensor:
        """Token embeddings (B, S, H), with the learnt place in the grid where the configuration has it."""
        inputs_embeds = self.language_model.embed_tokens(input_ids)
        if span is not None and self.image_position_embeddings is not None:
            table = loaded_parameter(self, "image_position_embeddings")
            placed = span.gather(inputs_embeds) + table.to(inputs_embeds.dtype)
            inputs_embeds = span.scatter(inputs_embeds, placed)
        return inputs_embeds

    def span_features(
        self,
        input_ids: torch.LongTensor,
        span: ImageSpan,
        given: dict[str, torch.FloatTensor | None] | None = None,
        pixel_values: torch.FloatTensor | None = None,
        face_pixel_values: torch.FloatTensor | None = None,
    ) -> dict[str, SpanFeature]:
        """
        What the feature experts mix in, resampled: of each kind in `FEATURES` what is `given`, (images, size) or
        (images, L, size), or else what is computed from sequences and pictures.
        """
        features, length = {}, span.positions.shape[1]
        for kind, resampler in self.resamplers.items():
            feature, states = FEATURES[kind], (given or {}).get(kind)
            rows = span.rows_of(feature.task)
            if not len(rows):
                if not torch.is_grad_enabled():
                    continue
                # In training a resampler without rows sees an empty tensor: zero gradients instead of none, as data
                # parallel training needs when all rows of a batch have one task.
                states = input_ids.new_zeros(0, 1, feature.size(self.config), dtype=torch.float32)
            elif states is None:
                inputs = FeatureInputs(input_ids, span, rows, pixel_values, face_pixel_values)
                states = feature.encode(self, inputs)
            if states is None:
                logger.warning_once(
                    f"No {kind} features: the model has no {kind} encoder or no pixel_values, so its {kind} experts "
                    "are left out of the routing. Give `pixel_values` and an encoder, or precomputed features."
                )
                continue
            if len(states) != len(rows):
                task = TASK_NAMES[feature.task]
                raise ValueError(f"{len(states)} {kind} features for {len(rows)} {task} rows with an image")
            states = resampler(states[:, None] if states.ndim == 2 else states)
            features[kind] = SpanFeature(_fit(states, length), rows)
        return features

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        task_ids: torch.LongTensor | None = None,
        face_pixel_values: torch.FloatTensor | None = None,
        clip_features: torch.FloatTensor | None = None,
        face_features: torch.FloatTensor | None = None,
        noise_features: torch.FloatTensor | None = None,
        sequence_router_noise: torch.FloatTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> UniF2aceModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Token ids, with image codes or placeholders in place.
            pixel_values (`torch.FloatTensor` of shape `(images, 3, resolution, resolution)`, *optional*):
                Pictures in [-1, 1] of the understanding rows, in the order of the rows.
            attention_mask (`torch.LongTensor` of shape `(batch_size, past + sequence_length)`, *optional*):
                0 at padding, 1 elsewhere.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Rotary positions; Show-o's rule by default (`SequenceLayout.positions`).
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Embeddings instead of ids, for text without image.
            task_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                0 text to image, 1 understanding. By default rows with `<|t2i|>` are text to image.
            face_pixel_values (`torch.FloatTensor` of shape `(images, 3, size, size)`, *optional*):
                The pictures' faces, aligned, for a face encoder that wants them so; `pixel_values` by default.
            clip_features (`torch.FloatTensor` of shape `(images, patches, clip_feature_size)`, *optional*):
                Precomputed CLIP features; computed from `pixel_values` by default.
            face_features (`torch.FloatTensor` of shape `(images, face_feature_size)`, *optional*):
                Precomputed face embeddings, normalised; computed from `pixel_values` by default.
            noise_features (`torch.FloatTensor` of shape `(text-to-image rows, noise_feature_size)`, *optional*):
                What the noise expert is told; see `config.noise_feature`.
            sequence_router_noise (`torch.FloatTensor` of shape `(layers, batch_size, experts)`, *optional*):
                Added to the sequence routers' logits, to explore in training.
            mm_token_type_ids: Accepted because processors make it; the ids themselves tell where the image is.

        Raises:
            ValueError: if images, placeholders and rows do not fit together; the message counts them.
        """
        if input_ids is None:
            return self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                cache=cache,
                use_cache=use_cache,
                task_rows=None if task_ids is None else TaskRows(task_ids),
                **kwargs,
            )

        given = {"noise": noise_features, "clip": clip_features, "face": face_features}
        given |= {kind: kwargs.pop(f"{kind}_features", None) for kind in FEATURES if kind not in given}
        layout = self.config.layout
        if task_ids is None:
            task_ids = layout.task_ids(input_ids)
        past = cache.get_seq_length() if cache is not None else 0
        span, features, blocks, columns = None, None, None, None
        if past == 0:
            span = layout.find_image(input_ids, task_ids)
        if span is not None:
            mmu_images = span.rows[span.task_ids == MMU]
            if pixel_values is not None and len(mmu_images):
                if self.mm_projector is None:
                    input_ids = self.fill_image_tokens(input_ids, pixel_values, mmu_images)
                elif given["clip"] is None:
                    given["clip"] = self.encode_clip(pixel_values)
            features = self.span_features(input_ids, span, given, pixel_values, face_pixel_values)
            blocks = layout.attention_blocks(input_ids, attention_mask, span)
            if len(mmu_images):
                columns = layout.clip_columns(input_ids, task_ids)
        elif pixel_values is not None and past == 0:
            raise ValueError(f"{len(pixel_values)} images were given, but the text has no image placeholders")
        if position_ids is None and past == 0:
            position_ids = layout.positions(input_ids, attention_mask, task_ids, span)
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, span)
            if columns is not None:
                inputs_embeds = self.project_clip(inputs_embeds, span, given["clip"])
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            block_sequence_ids=blocks,
            visible_columns=columns,
            task_rows=TaskRows(task_ids),
            image_span=span,
            span_features=features,
            sequence_router_noise=sequence_router_noise,
            **kwargs,
        )


@dataclass
class UniF2aceOutput(CausalLMOutputWithPast):
    """
    Args:
        loss (`torch.FloatTensor`, *optional*):
            With `image_labels` the whole objective, the weighted sum of `loss_terms`; with `labels` alone their
            shifted cross-entropy.
        logits (`torch.FloatTensor` of shape `(batch_size, kept, vocab_size)`, *optional*): Prediction scores.
        image_logits (`torch.FloatTensor` of shape `(n, codebook_size)`, *optional*): At `image_logits_mask`.
        text_logits (`torch.FloatTensor` of shape `(n, vocab_size)`, *optional*): At `text_logits_mask`.
        loss_terms (`dict[str, torch.FloatTensor]`, *optional*): The objective's terms, not weighted.
    """

    image_logits: torch.FloatTensor | None = None
    text_logits: torch.FloatTensor | None = None
    t2i_router_logits: tuple | None = None
    mmu_router_logits: tuple | None = None
    sequence_router_logits: tuple | None = None
    loss_terms: dict | None = None


class UniF2aceForConditionalGeneration(UniF2acePreTrainedModel, UniF2aceGenerationMixin):
    """
    UniF²ace with its language head. `generate` writes text about pictures, and with `generation_mode="image"` draws
    image codes for prompts.
    """

    output_modalities = ("image", "text")
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    # forward has **kwargs, from which Trainer would conclude that the loss is divided by the step's tokens
    accepts_loss_kwargs = False

    def __init__(self, config: UniF2aceConfig):
        super().__init__(config)
        self.model = UniF2aceModel(config)
        self.objective = UniF2aceObjective(config)  # no weights; set another one for another loss
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=True)
        self.post_init()

    @functools.wraps(PreTrainedModel.save_pretrained, assigned=(), updated=())  # diffusers looks for `variant` in it
    def save_pretrained(self, save_directory, *args, **kwargs):
        """[`~transformers.PreTrainedModel.save_pretrained`]; the generation config keeps its sampling numbers."""
        # marked as made from the model's config, it would lose them when it is loaded
        self.generation_config._from_model_config = False
        return super().save_pretrained(save_directory, *args, **kwargs)

    def code_logits(self, hidden_states: torch.FloatTensor) -> torch.FloatTensor:
        """The head over the image codes only: (…, hidden_size) to (…, codebook_size)."""
        codes = slice(self.config.image_code_offset, self.config.mask_token_id)
        if is_plain(self.lm_head, nn.Linear):
            return F.linear(hidden_states, self.lm_head.weight[codes], self.lm_head.bias[codes])
        return self.lm_head(hidden_states)[..., codes]  # adapted, offloaded or sharded: only a call sees that

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        image_labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        task_ids: torch.LongTensor | None = None,
        face_pixel_values: torch.FloatTensor | None = None,
        clip_features: torch.FloatTensor | None = None,
        face_features: torch.FloatTensor | None = None,
        noise_features: torch.FloatTensor | None = None,
        sequence_router_noise: torch.FloatTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        image_logits_mask: torch.BoolTensor | None = None,
        text_logits_mask: torch.BoolTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> UniF2aceOutput:
        """
        Args (see [`UniF2aceModel.forward`] for the others):
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Next-token labels of understanding rows, -100 where there is none.
            image_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Vocabulary ids of the codes that `input_ids` hides behind the mask token, -100 elsewhere
                (`hide_codes` makes them). `loss` is then the whole objective of both tasks, and the head is computed
                at labels only.
            image_logits_mask, text_logits_mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
                Compute the head only there, over the codes and over the whole vocabulary; `logits` is then `None`.
                The head's columns are the most expensive thing in the model.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*, defaults to 0): Last positions to compute.
        """
        if image_labels is not None:
            image_logits_mask = image_labels != NO_LABEL
            text_logits_mask = None if labels is None else answer_positions(labels)
            kinds = ("t2i", "mmu", "sequence")
            kwargs = {**kwargs, **{f"output_{kind}_router_logits": True for kind in kinds}}
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            task_ids=task_ids,
            face_pixel_values=face_pixel_values,
            clip_features=clip_features,
            face_features=face_features,
            noise_features=noise_features,
            sequence_router_noise=sequence_router_noise,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        loss, logits, image_logits, text_logits = None, None, None, None
        if image_logits_mask is not None:
            image_logits = self.code_logits(hidden_states[image_logits_mask])
        if text_logits_mask is not None:
            text_logits = self.lm_head(hidden_states[text_logits_mask])
        if image_logits_mask is None and text_logits_mask is None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept])
        if image_labels is None and labels is not None:
            if logits is None:
                raise ValueError("labels need all logits: leave image_logits_mask and text_logits_mask out")
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        output = UniF2aceOutput(
            loss=loss,
            logits=logits,
            image_logits=image_logits,
            text_logits=text_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            t2i_router_logits=outputs.t2i_router_logits,
            mmu_router_logits=outputs.mmu_router_logits,
            sequence_router_logits=outputs.sequence_router_logits,
            **{CACHE: getattr(outputs, CACHE)},
        )
        if image_labels is not None:
            seen = {"input_ids": input_ids, "attention_mask": attention_mask, "task_ids": task_ids}
            terms = self.objective(output, {**seen, "labels": labels, "image_labels": image_labels})
            output = UniF2aceOutput(**{**output, "loss": self.objective.total(terms), "loss_terms": terms})
        return output


def _indices(wanted: bool | int | list[int], number: int) -> set[int]:
    """Which of so many hidden states are wanted, of a value that transformers 5.24 takes: all, or some indices."""
    if isinstance(wanted, bool):
        return set(range(number))
    indices = [wanted] if isinstance(wanted, int) else wanted
    return {index % number for index in indices if -number <= index < number}


def _record_state(records: dict[str, tuple], state: torch.Tensor, kept: set[int]):
    """Put one hidden state behind those that are recorded, if any are: `None` where it is not wanted."""
    if "hidden_states" in records:
        records["hidden_states"] += (state if len(records["hidden_states"]) in kept else None,)


def _record(records: dict[str, tuple], **values: torch.Tensor | None):
    """Put what one layer gave behind what is recorded under its name, if anything is."""
    for name, value in values.items():
        if name in records and value is not None:
            records[name] += (value,)


def _fit(states: torch.Tensor, length: int) -> torch.Tensor:
    """States (B, N, H) with zeros up to `length` places, or cut: the rows that lose something are empty or masked."""
    return F.pad(states, (0, 0, 0, length - states.shape[1]))


def _resize(pixels: torch.Tensor, size: int) -> torch.Tensor:
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True, align_corners=False)


__all__ = [
    "UniF2aceForConditionalGeneration",
    "UniF2aceModel",
    "UniF2aceModelOutputWithPast",
    "UniF2aceOutput",
    "UniF2acePreTrainedModel",
    "UniF2aceTextModel",
]
