"""
Adapters that come and go without a trace.

After `load_adapter`, transformers 5.23 and 5.24 take the renaming of the adapter's tensors for the model's, and
`save_pretrained` then writes names that nothing loads; after `delete_adapter`, PEFT's empty wrappers stay around the
layers, with the same effect. Both are so for every model (seen with Llama); ours can be saved again. 5.24 asks for a
newer PEFT in most of these methods and says so; the pipeline's, which use PEFT's own functions, run with either.
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

    def unload_adapters(self):
        """Take all adapters out; without any, nothing happens. What was merged stays in the weights."""
        for name, layer in list(self.named_modules()):
            parent, _, child = name.rpartition(".")
            if hasattr(layer, "get_base_layer") and child != "base_layer":  # not those inside of a wrapper
                setattr(self.get_submodule(parent), child, layer.get_base_layer())
        if hasattr(self, "peft_config"):
            del self.peft_config
        mark_adapters(self, False)


def mark_adapters(model, present: bool = True):
    """Tell transformers that PEFT's functions have put adapters into `model`, as its own methods would, or not."""
    model._hf_peft_config_loaded = present


__all__ = ["UniF2aceAdapterMixin", "mark_adapters"]
