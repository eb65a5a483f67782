"""LoRA adapters of the pipeline, with diffusers' names: load, activate, weigh, fuse, take out again."""

import math
import os
import re
import warnings
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import is_peft_available

from ..modeling_unif2ace.adapters_unif2ace import mark_adapters
from .loading_unif2ace import ADAPTER_CONFIG, ADAPTER_WEIGHTS, fetch_adapter


# Repetitions in one alternative of an adapter's patterns: each more can multiply the time by the length of a name.
MAX_REPEATS = 3


class UniF2aceLoraMixin:
    """
    LoRA methods of [`UniF2acePipeline`].

    The adapters sit in the model (`pipe.transformer`), injected by PEFT, so what `unif2ace finetune`, `peft` and TRL
    write can all be loaded. Changed weights are `W + Σ weight · (alpha / r) · B A` over the active adapters.

    Example:

    ```python
    >>> pipe = UniF2acePipeline.from_pretrained()
    >>> pipe.load_lora_weights("my_faces_lora", adapter_name="zora")
    >>> image = pipe("zora, a woman with a red hat").images[0]
    >>> pipe.set_adapters("zora", 0.5)  # half as strong
    >>> pipe.unload_lora_weights()  # the model as it was
    ```
    """

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike,
        adapter_name: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
    ):
        r"""
        Load an adapter and make it the only active one; `set_adapters` activates several.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A folder or a repository on the Hub with `adapter_config.json` and `adapter_model.safetensors`. Weights
                in other formats are not read: they can run code.
            adapter_name (`str`, *optional*): Its name from now on; `"default_0"`, `"default_1"`, ... when not given.
            revision, token, cache_dir, local_files_only: Concern the download.

        Raises:
            ImportError: without PEFT.
            OSError: if there is no such adapter.
            ValueError: if the name is taken, adapters are fused, or the adapter is made for another model.
        """
        if not is_peft_available():
            raise ModuleNotFoundError("adapters need PEFT: pip install peft", name="peft")
        self._refuse_fused("load_lora_weights")
        loaded = self.get_list_adapters()
        if adapter_name is None:
            adapter_name = next(name for i in range(len(loaded) + 1) if (name := f"default_{i}") not in loaded)
        if adapter_name in loaded:
            raise ValueError(f"there is an adapter {adapter_name!r} already; choose another adapter_name")
        if not adapter_name or "." in adapter_name:  # it becomes the name of modules
            raise ValueError(f"adapter_name is {adapter_name!r}, expected a name without dots")
        folder = fetch_adapter(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        from peft import PeftConfig, functional

        model = self.transformer
        try:
            config = PeftConfig.from_pretrained(folder)
            config.inference_mode = True
            tensors = load_file(folder / ADAPTER_WEIGHTS)
            _check_adapter(config, tensors)
            with warnings.catch_warnings():  # that there are several adapters now is what was asked for
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                functional.inject_adapter_in_model(config, model, adapter_name)
            mark_adapters(model)
            tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
            unexpected = functional.set_peft_model_state_dict(model, tensors, adapter_name).unexpected_keys
        except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            self._forget(adapter_name)
            raise ValueError(f"the adapter in {folder} does not fit this model: {error}") from error
        expected = functional.get_peft_model_state_dict(model, adapter_name=adapter_name)
        wrong = sorted({*unexpected, *(expected.keys() ^ tensors.keys())})
        if wrong:
            self._forget(adapter_name)
            raise ValueError(
                f"the adapter in {folder} does not fit this model: {len(wrong)} tensors differ, first {wrong[0]}"
            )
        scales = [layer.scaling.get(adapter_name, 0.0) for layer in self._lora_layers()]
        if not all(math.isfinite(scale) for scale in scales):
            self._forget(adapter_name)
            raise ValueError(f"the adapter in {folder} does not fit this model: its lora_alpha is not finite")
        model.eval()
        self.set_adapters(adapter_name)

    def save_lora_weights(self, save_directory: str | os.PathLike, adapter_name: str | None = None):
        """
        Save one adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`.

        Args:
            save_directory (`str` or `os.PathLike`): Folder, made if needed.
            adapter_name (`str`, *optional*): Which one; the only one loaded when not given.

        Raises:
            ValueError: if there is no such adapter, or several and no name.
            FileExistsError: if the folder holds an adapter already.
        """
        from peft.functional import get_peft_model_state_dict

        loaded = self.get_list_adapters()
        if adapter_name is None and len(loaded) != 1:
            raise ValueError(f"{len(loaded)} adapters are loaded; name the one to save")
        name = self._known([adapter_name or loaded[0]])[0]
        folder = Path(save_directory)
        if (folder / ADAPTER_CONFIG).exists():
            raise FileExistsError(f"{folder} holds an adapter already; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = get_peft_model_state_dict(self.transformer, adapter_name=name)
        tensors = {f"base_model.model.{key}": tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        self.transformer.peft_config[name].save_pretrained(folder)

    def get_list_adapters(self) -> list[str]:
        """Names of all loaded adapters."""
        return list(getattr(self.transformer, "peft_config", {}))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that take part at present."""
        return next((list(layer.active_adapters) for layer in self._lora_layers()), [])

    def set_adapters(self, adapter_names: str | list[str], adapter_weights: float | list[float] | None = None):
        r"""
        Choose which adapters take part, and how strongly; the others rest.

        Args:
            adapter_names (`str` or `list[str]`): The adapters to use together.
            adapter_weights (`float` or `list[float]`, *optional*): One for all or one each; 1 when not given.

        Raises:
            ValueError: if a name is unknown, the numbers differ, or adapters are fused.
        """
        self._refuse_fused("set_adapters")
        names = self._known([adapter_names] if isinstance(adapter_names, str) else list(adapter_names))
        if not isinstance(adapter_weights, (list, tuple)):
            adapter_weights = [1.0 if adapter_weights is None else adapter_weights] * len(names)
        if len(adapter_weights) != len(names):
            raise ValueError(f"{len(adapter_weights)} weights for {len(names)} adapters; give one, or one per adapter")
        from peft.functional import set_adapter

        set_adapter(self.transformer, names, inference_mode=True)
        for layer in self._lora_layers():
            for name, weight in zip(names, adapter_weights, strict=True):
                layer.set_scale(name, weight)

    def disable_lora(self):
        """Let all adapters rest: the model computes what it computed before, and keeps them."""
        self._refuse_fused("disable_lora")
        for layer in self._lora_layers():
            layer.enable_adapters(False)

    def enable_lora(self):
        """The opposite of `disable_lora`."""
        for layer in self._lora_layers():
            layer.enable_adapters(True)

    def delete_adapters(self, adapter_names: str | list[str]):
        """
        Remove adapters.

        Raises:
            ValueError: if a name is unknown, or adapters are fused.
        """
        self._refuse_fused("delete_adapters")
        names = self._known([adapter_names] if isinstance(adapter_names, str) else list(adapter_names))
        if set(names) == set(self.get_list_adapters()):
            self.transformer.unload_adapters()
            return
        from peft.functional import delete_adapter

        for name in names:
            delete_adapter(self.transformer, name, prefix="lora_")
            del self.transformer.peft_config[name]

    def fuse_lora(self, lora_scale: float = 1.0, adapter_names: list[str] | None = None, safe_fusing: bool = False):
        r"""
        Add adapters to the weights, so that they cost nothing any more. `unfuse_lora` takes them out again;
        `unload_lora_weights` then leaves a plain model that `save_pretrained` writes whole.

        Args:
            lora_scale (`float`, *optional*, defaults to 1.0): Multiplies the adapters' weights.
            adapter_names (`list[str]`, *optional*): Which ones; the active ones when not given.
            safe_fusing (`bool`, *optional*, defaults to `False`): Refuse adapters with values that are not finite.

        Raises:
            ValueError: if no adapter is loaded, a name is unknown, or adapters are fused already.
        """
        self._refuse_fused("fuse_lora")
        if not self.get_list_adapters():
            raise ValueError("there is no adapter to fuse; load one with load_lora_weights")
        names = self._known(self.get_active_adapters() if adapter_names is None else list(adapter_names))
        for layer in self._lora_layers():
            for name in names:
                if name in layer.scaling:
                    layer.scaling[name] *= lora_scale
            layer.merge(safe_merge=safe_fusing, adapter_names=names)
        self._fused_scale = lora_scale

    def unfuse_lora(self):
        """
        Subtract what `fuse_lora` added; the weights are the former ones up to rounding.

        Raises:
            ValueError: if nothing is fused.
        """
        if not self.fused:
            raise ValueError("no adapter is fused, so there is nothing to unfuse")
        for layer in self._lora_layers():
            names = list(layer.merged_adapters)
            if names:
                layer.unmerge()
            for name in names:
                if name in layer.scaling and self._fused_scale:
                    layer.scaling[name] /= self._fused_scale

    @property
    def fused(self) -> bool:
        """Whether adapters are part of the weights at present."""
        return any(layer.merged for layer in self._lora_layers())

    def unload_lora_weights(self):
        """Take all adapters out of the model. What was fused stays in the weights."""
        self.transformer.unload_adapters()

    # Helpers

    def _lora_layers(self) -> list:
        if not self.get_list_adapters():
            return []
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for module in self.transformer.modules() if isinstance(module, BaseTunerLayer)]

    def _known(self, names: list[str]) -> list[str]:
        loaded = self.get_list_adapters()
        unknown = [name for name in names if name not in loaded]
        if unknown or not names:
            wrong = f"no adapter {unknown[0]!r}" if unknown else "no adapter was named"
            raise ValueError(f"{wrong}; loaded: {', '.join(map(repr, loaded)) or 'none'}")
        return names

    def _refuse_fused(self, method: str):
        if self.fused:
            raise ValueError(f"adapters are fused into the weights: call unfuse_lora() before {method}()")

    def _refuse_adapters(self):
        if self.get_list_adapters():
            raise ValueError(
                "the model holds adapters, and saving it would write these alone: call fuse_lora() to keep their "
                "effect, and then unload_lora_weights()"
            )

    def _forget(self, name: str):
        """Remove what a failed load has left behind."""
        if name in self.get_list_adapters():
            self.delete_adapters(name)


def _check_adapter(config, tensors: dict):
    """`ValueError` for what is no LoRA, and for weights that would spoil every picture without a word."""
    if config.peft_type != "LORA":
        raise ValueError(f"it is of type {config.peft_type}, expected LORA")
    # both decide what is allocated and run before a shape is compared
    ranks = [config.r, *(config.rank_pattern or {}).values()]
    largest = max((side for tensor in tensors.values() for side in tensor.shape), default=0)
    if not all(isinstance(rank, int) and 0 < rank <= largest for rank in ranks):
        raise ValueError(f"its ranks are {ranks}, expected numbers from 1 to the {largest} of its largest tensor")
    modules = (config.target_modules, config.exclude_modules, config.layers_pattern)
    patterns = [text for text in modules if isinstance(text, str)]
    for pattern in (*patterns, *(config.rank_pattern or {}), *(config.alpha_pattern or {})):
        repeats = max(len(re.findall(r"[*+{]", part)) for part in pattern.split("|"))
        if repeats > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
            raise ValueError(f"the pattern {pattern[:100]!r} may match without end: name the modules in a list")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is of type {tensor.dtype}, expected floating point numbers")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite: train it again")


__all__ = ["UniF2aceLoraMixin"]
