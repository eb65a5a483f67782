"""transformers' own tests of processors, applied to ours: they come from its source distribution, none from here."""

import unittest

from tests.test_processing_common import ProcessorTesterMixin

from unif2ace import UniF2aceImageProcessor, UniF2aceProcessor
from unif2ace.modeling_unif2ace import get_preset
from unif2ace.training.train_text_tokenizer import build_tokenizer


CONFIG = get_preset("tiny")
TEXTS = ["lower newer a man with a hat", "USER: \nDescribe this face. ASSISTANT: upper older longer string"]
TYPED_PLACEHOLDERS = "a placeholder that is typed into a plain text stays text: only formatted conversations hold some"


class UniF2aceProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = UniF2aceProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return build_tokenizer(TEXTS * 3, CONFIG.text_vocab_size, CONFIG.vq_config.num_bits)

    @classmethod
    def _setup_image_processor(cls):
        return UniF2aceImageProcessor.from_resolution(CONFIG.vq_config.resolution)

    @staticmethod
    def prepare_processor_dict():
        return {"num_image_tokens": CONFIG.num_image_tokens, "max_text_length": CONFIG.max_text_length}

    @unittest.skip(TYPED_PLACEHOLDERS)
    def test_if_input_has_mismatching_tokens_and_mm_data(self):
        pass

    @unittest.skip(TYPED_PLACEHOLDERS)
    def test_processor_text_has_no_visual(self):
        pass
