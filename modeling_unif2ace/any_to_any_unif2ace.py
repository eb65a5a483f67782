"""
One line for both directions with transformers alone: `pipeline("face-any-to-any", model=...)`.

transformers' own "any-to-any" asks for torchvision as soon as a model reads pictures; this one does not, and it knows
that a conversation can ask for a picture.
"""

from PIL import Image
from transformers.pipelines.any_to_any import AnyToAnyPipeline, Chat
from transformers.pipelines.base import Pipeline

from .provenance_unif2ace import mark_as_generated, recorded_seeds


TASK = "face-any-to-any"


class UniF2aceAnyToAnyPipeline(AnyToAnyPipeline):
    r"""
    Texts, pictures and conversations in, texts or pictures out.

    ```python
    from transformers import pipeline  # with `unif2ace` imported, which registers it, or trust_remote_code=True

    faces = pipeline("face-any-to-any", model="hub_card/unif2ace-faces")
    faces(text="a smiling old man with a grey beard", generation_mode="image")[0]["generated_image"]
    faces(images="face.png", text="Describe this face.", return_full_text=False)[0]["generated_text"]
    ```

    With `generation_mode="image"` a text, a list of texts, or a conversation whose last message says what to draw is
    enough; `generate_kwargs` are those of `generate_image_codes`: `num_inference_steps`, `guidance_scale`,
    `generator`, ... Pictures carry the invisible watermark and, in `info`, where they come from, which `save_image`
    writes into files; `watermark=False` leaves both out.
    """

    def __init__(self, *args, **kwargs):
        # past the parent's own, which demands torchvision
        Pipeline.__init__(self, *args, **kwargs)

    def _sanitize_parameters(
        self, generation_mode=None, processor_kwargs=None, max_new_tokens=None, watermark=None, **kwargs
    ):
        if generation_mode == "image":
            processor_kwargs = {"generation_mode": "image", **(processor_kwargs or {})}
            max_new_tokens = None
        before, during, after = super()._sanitize_parameters(
            generation_mode=generation_mode, processor_kwargs=processor_kwargs, max_new_tokens=max_new_tokens, **kwargs
        )
        return before, during, after if watermark is None else {**after, "watermark": watermark}

    def preprocess(self, inputs=None, **kwargs):
        """As in the parent; a conversation that asks for a picture gives its last message's words."""
        wants_image = (kwargs.get("processor_kwargs") or {}).get("generation_mode") == "image"
        if wants_image and isinstance(inputs, Chat):
            inputs = _last_words(inputs.messages)
        elif isinstance(inputs, dict):  # the parent names every kind of input, as `None` where there is none
            inputs = {name: value for name, value in inputs.items() if value is not None}
        return super().preprocess(inputs, **kwargs)

    def _forward(self, model_inputs, generate_kwargs=None):
        if (generate_kwargs or {}).get("generation_mode") != "image":
            return super()._forward(model_inputs, generate_kwargs)
        prompt_text = model_inputs.pop("text")
        seeds = recorded_seeds(generate_kwargs.get("generator"), len(model_inputs["input_ids"]))
        # nothing of a text's generation configuration applies
        codes = self.model.generate(**model_inputs, **generate_kwargs)
        return {
            "generated_sequence": codes,
            "prompt_text": prompt_text,
            "input_ids": model_inputs["input_ids"],
            "seeds": seeds,
        }

    def postprocess(self, model_outputs, *args, watermark=True, **kwargs):
        """As in the parent; pictures are marked as generated."""
        records = super().postprocess(model_outputs, *args, **kwargs)
        made = [record for record in records if isinstance(record.get("generated_image"), Image.Image)]
        if watermark and made:
            pictures = [record["generated_image"] for record in made]
            marked = mark_as_generated(pictures, self.model, model_outputs.get("seeds"))
            for record, picture in zip(made, marked, strict=True):
                record["generated_image"] = picture
        return records


def _last_words(messages) -> str:
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


__all__ = ["TASK", "UniF2aceAnyToAnyPipeline"]
