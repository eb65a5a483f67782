"""Weights as 8-bit integers, by torchao, after loading."""

from importlib import import_module

from torch import nn


KINDS = ("int8_weight_only", "int8_dynamic")


class UniF2aceQuantizationMixin:
    """The quantisation method of [`UniF2acePipeline`]."""

    def quantize(self, kind: str = "int8_weight_only"):
        r"""
        Turn the transformer's linear layers into 8-bit integers, in place: attention, shared experts and dense MLPs.
        Routed experts, routers, embeddings, head, image tokenizer and encoders stay as they are. Needs torchao
        (`pip install "unif2ace[quantization]"`). A quantised model can neither be trained nor saved as usual: keep
        the original, and quantise after loading.

        Args:
            kind (`str`, *optional*, defaults to `"int8_weight_only"`):
                `"int8_weight_only"` stores weights as integers, one scale per output, and computes in the model's
                dtype: less memory. `"int8_dynamic"` also rounds activations, one scale per token, and multiplies
                integers: faster where the hardware can. `docs/inference.md` has what both cost in quality.

        Raises:
            ValueError: if `kind` is neither.
            ImportError: if torchao is not installed.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
        try:
            torchao = import_module("torchao.quantization")
        except ImportError as error:
            raise ImportError('quantize needs torchao: pip install "unif2ace[quantization]"') from error
        configs = {
            "int8_weight_only": torchao.Int8WeightOnlyConfig,
            "int8_dynamic": torchao.Int8DynamicActivationInt8WeightConfig,
        }
        layers = self.transformer.model.language_model.layers
        torchao.quantize_(layers, configs[kind](), filter_fn=lambda module, name: isinstance(module, nn.Linear))


__all__ = ["KINDS", "UniF2aceQuantizationMixin"]
