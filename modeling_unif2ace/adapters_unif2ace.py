"""
Adapters that come and go without a trace.

After `load_adapter`, transformers 5.23 takes the renaming of the adapter's tensors for that of the model's, and
`save_pretrained` then writes names that nothing loads; after `delete_adapter`, PEFT's empty wrappers stay around the
layers, with the same effect. Both are so for every model (seen with Llama); ours can be saved again.
"""


class UniF2aceAdapterMixin:
    """Mends `load_adapter` and `delete_adapter`. Stands before `PreTrainedModel` among the bases."""

    def load_adapter(self, *args, **kwargs):
        """[`~transformers.integrations.PeftAdapterMixin.load_adapter`] that leaves alone how the model is saved."""
        conversions = getattr(self, "_weight_conversions", None)
        try:
            return super().load_adapter(*args, **kwargs)
        finally:
            self._weight_conversions = conversions

    def delete_adapter(self, adapter_names: str | list[str]):
        """
        [`~transformers.integrations.PeftAdapterMixin.delete_adapter`]; with the last adapter its wrappers go too.

        Args:
            adapter_names (`str` or `list[str]`): The adapters to remove. What was merged stays in the weights.

        Raises:
            ValueError: if one of them is not loaded.
        """
        names = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
        if names and names == set(getattr(self, "peft_config", {})):
            self.unload_adapters()
        else:
            super().delete_adapter(adapter_names)

    def set_adapter(self, adapter_name: str | list[str]):
        """
        Choose the adapters that take part.

        Past transformers' own, which from 5.24 on asks for a PEFT that is not released yet.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        unknown = [name for name in names if name not in getattr(self, "peft_config", {})]
        if unknown or not names:
            raise ValueError(
                f"no adapter {unknown[:1]}; loaded: {', '.join(getattr(self, 'peft_config', {})) or 'none'}"
            )
        for layer in self.modules():
            if hasattr(layer, "get_base_layer"):
                layer.set_adapter(names)

    def active_adapters(self) -> list[str]:
        """The adapters that take part."""
        layer = next((layer for layer in self.modules() if hasattr(layer, "get_base_layer")), None)
        return [] if layer is None else list(layer.active_adapters)

    def unload_adapters(self):
        """Take all adapters out; without any, nothing happens. What was merged stays in the weights."""
        for name, layer in list(self.named_modules()):
            parent, _, child = name.rpartition(".")
            if hasattr(layer, "get_base_layer") and child != "base_layer":  # not those inside of a wrapper
                setattr(self.get_submodule(parent), child, layer.get_base_layer())
        if self._hf_peft_config_loaded:
            del self.peft_config
            self._hf_peft_config_loaded = False


__all__ = ["UniF2aceAdapterMixin"]
