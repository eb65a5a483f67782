"""transformers' own tests of models, applied to ours: all tests come from its source distribution, none from here."""

import copy
import unittest

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_training_mixin import TrainingTesterMixin
from transformers.models.auto import modeling_auto

from unif2ace import (
    UniF2aceConfig,
    UniF2aceForConditionalGeneration,
    UniF2aceModel,
    UniF2aceTextConfig,
    UniF2aceTextModel,
)
from unif2ace.modeling_unif2ace import get_preset


# The training tests choose a head by these tables of the library.
modeling_auto.MODEL_MAPPING_NAMES["unif2ace"] = "UniF2aceModel"
modeling_auto.MODEL_MAPPING_NAMES["unif2ace_text"] = "UniF2aceTextModel"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["unif2ace"] = "UniF2aceForConditionalGeneration"


class UniF2aceModelTester:
    """Inputs of tiny size: questions about pictures, the task that labels, caches and `generate` are about."""

    base_model_class = UniF2aceModel
    causal_lm_class = UniF2aceForConditionalGeneration

    def __init__(self, parent, batch_size=3, text_length=7, is_training=True):
        self.parent = parent
        self.batch_size = batch_size
        self.is_training = is_training
        config = self.get_config()
        self.image_size = config.vq_config.resolution
        self.seq_length = 3 + config.num_image_tokens + text_length
        self.text_length = text_length
        self.hidden_size = config.text_config.hidden_size
        self.num_hidden_layers = config.text_config.num_hidden_layers
        self.num_attention_heads = config.text_config.num_attention_heads
        self.vocab_size = config.text_config.vocab_size

    def get_config(self) -> UniF2aceConfig:
        config = get_preset("tiny")
        config.vocab_size = config.text_config.vocab_size  # the training test asks the whole model for it
        return config

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        special, length = config.special_token_id, config.num_image_tokens
        head = [special("<|mmu|>"), special("<|soi|>"), *[config.image_token_id] * length, special("<|eoi|>")]
        image = torch.tensor(head).expand(self.batch_size, -1)
        text = ids_tensor([self.batch_size, self.text_length], config.text_vocab_size - 2) + 2
        inputs = {
            "input_ids": torch.cat([image, text.to(image.device)], dim=1),
            "attention_mask": torch.ones(self.batch_size, self.seq_length, dtype=torch.long),
            "pixel_values": floats_tensor([self.batch_size, 3, self.image_size, self.image_size]),
        }
        return config, inputs


class UniF2aceTextModelTester:
    """Any ids: the decoder alone, without pictures."""

    base_model_class = UniF2aceTextModel
    causal_lm_class = None

    def __init__(self, parent, batch_size=3, seq_length=11, is_training=False):
        self.parent = parent
        self.batch_size, self.seq_length, self.is_training = batch_size, seq_length, is_training
        config = self.get_config()
        self.hidden_size, self.vocab_size = config.hidden_size, config.vocab_size
        self.num_hidden_layers, self.num_attention_heads = config.num_hidden_layers, config.num_attention_heads

    def get_config(self) -> UniF2aceTextConfig:
        return get_preset("tiny").text_config

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = ids_tensor([self.batch_size, self.seq_length], config.pad_token_id - 2) + 2
        mask = torch.ones(self.batch_size, self.seq_length, dtype=torch.long)
        return config, {"input_ids": ids, "attention_mask": mask}


OTHER_NAME = "recorded as t2i_router_logits and mmu_router_logits: at the other name TRL adds a loss of its own"
EITHER_NAME = (
    "the cache is taken by either name without a warning, while the older is the only one of a tested release"
)
WHOLE_IMAGES = "random ids are no sequence of the whole model, whose codes come as whole images: see the text model"
FIXED_VOCABULARY = "the vocabulary is text, special tokens, codes and mask, in this order: it cannot be cut or grow"
REENTRANT = "use_reentrant=True, of which the model warns, fails with pictures: features pass by inside of structures"
MISSING_TOWER = "transformers starts a CLIP tower that a checkpoint lacks by CLIP's rule only in models of its own"


class UniF2aceModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (UniF2aceModel, UniF2aceForConditionalGeneration)
    # GenerationTesterMixin is not in the source distribution; tests/test_generation.py has our own tests
    all_generative_model_classes = ()
    pipeline_model_mapping = {}
    _is_composite = True
    # the test unfreezes all, but image tokenizer and encoders run without gradients; tests/test_moe.py has the others
    test_all_params_have_gradient = False

    def setUp(self):
        super().setUp()
        self._tester = UniF2aceModelTester(self)
        self.config_tester = ConfigTester(self, config_class=UniF2aceConfig, has_text_modality=False)

    @property
    def model_tester(self):
        return self._tester

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is UniF2aceForConditionalGeneration:
            inputs["labels"] = inputs["input_ids"].clone()
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(MISSING_TOWER)
    def test_can_init_all_missing_weights(self):
        pass

    @unittest.skip("inputs_embeds are for text without a picture: see the text model")
    def test_inputs_embeds_matches_input_ids(self):
        pass

    @unittest.skip(OTHER_NAME)
    def test_moe_models_record_router_logits(self):
        pass

    @unittest.skip(FIXED_VOCABULARY)
    def test_resize_tokens_embeddings(self):
        pass

    @unittest.skip(FIXED_VOCABULARY)
    def test_resize_embeddings_untied(self):
        pass

    @unittest.skip(FIXED_VOCABULARY)
    def test_resize_embeddings_untied_no_reinit_on_post_init(self):
        pass

    @unittest.skip(EITHER_NAME)
    def test_bc_cache_name_forward(self):
        pass

    @unittest.skip(WHOLE_IMAGES)
    def test_model_rope_scaling_from_config_0_linear(self):
        pass

    @unittest.skip(WHOLE_IMAGES)
    def test_model_rope_scaling_from_config_1_dynamic(self):
        pass

    @unittest.skip(WHOLE_IMAGES)
    def test_model_rope_scaling_from_config_2_yarn(self):
        pass

    @unittest.skip(WHOLE_IMAGES)
    def test_model_rope_with_partial_rotation(self):
        pass

    @unittest.skip(REENTRANT)
    def test_training_gradient_checkpointing_use_reentrant_true(self):
        pass


class UniF2aceTextModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (UniF2aceTextModel,)
    test_can_init_all_missing_weights_before_2023 = True  # it looks for the year of a copyright notice
    all_generative_model_classes = ()
    pipeline_model_mapping = {}

    def setUp(self):
        super().setUp()
        self._tester = UniF2aceTextModelTester(self)

    @property
    def model_tester(self):
        return self._tester

    @unittest.skip(OTHER_NAME)
    def test_moe_models_record_router_logits(self):
        pass

    @unittest.skip(FIXED_VOCABULARY)
    def test_resize_tokens_embeddings(self):
        pass

    @unittest.skip(EITHER_NAME)
    def test_bc_cache_name_forward(self):
        pass


class UniF2aceTrainingTest(TrainingTesterMixin, unittest.TestCase):
    """A fixed batch of text is learnt by heart: 300 steps."""

    all_model_classes = (UniF2aceForConditionalGeneration,)

    @property
    def model_tester(self):
        return UniF2aceModelTester(self)
