"""
Chat templates of checkpoints, rendered within limits.

A template comes with a checkpoint and is a program. transformers runs it in Jinja's sandbox, which keeps it from files
and attributes but not from running without end or from filling the memory. [`render_chat`] counts: turns of loops, and
the length of what is made.
"""

import re
import threading
from functools import lru_cache


MAX_TURNS = 200_000  # of all loops of one rendering
MAX_LENGTH = 4_000_000  # of a text or a list that a template makes
_MAX_NUMBER = 1_000_000  # as an argument: a width, a number of repetitions
_MAX_PRODUCT = 100_000_000  # of the lengths of two texts that go into one call
_WIDTH = re.compile(r"\d{5,}")


class ChatTemplateError(ValueError):
    """A chat template cannot be used."""


def render_chat(template: str, messages: list[dict], add_generation_prompt: bool = False, **variables) -> str:
    """
    The text of a conversation.

    Args:
        template (`str`): The Jinja template.
        messages (`list[dict]`): The conversation, as `apply_chat_template` takes it.
        add_generation_prompt (`bool`, *optional*, defaults to `False`): End where the answer begins.
        variables: What else the template may use: `bos_token`, `eos_token`, ...

    Raises:
        ChatTemplateError: if the template is none, refuses the conversation, or does more than a template needs.
    """
    import jinja2

    try:
        compiled, meter = _compiled(template)
        meter.turns = 0
        return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
    except ChatTemplateError:
        raise
    except (jinja2.TemplateError, RecursionError, OverflowError, MemoryError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ChatTemplateError(f"the chat template cannot write this conversation: {reason[:300]}") from error


class _Meter(threading.local):
    """How many turns the loops and calls of one rendering have made, in each thread."""

    turns = 0

    def loop(self, items):
        items = items if hasattr(items, "__len__") else list(items)
        self.count(len(items))
        return items

    def count(self, turns: int) -> None:
        self.turns += turns
        if self.turns > MAX_TURNS:
            raise ChatTemplateError(f"the chat template's loops make more than {MAX_TURNS:,} turns: do not use it")

    def sized(self, value):
        if isinstance(value, (str, list, tuple, dict)) and len(value) > MAX_LENGTH:
            raise ChatTemplateError(f"the chat template makes a text of more than {MAX_LENGTH:,} characters")
        return value


def _modest(values) -> None:
    """Refuse numbers and texts that a call could make something huge of."""
    values = list(values)
    for value in values:
        if isinstance(value, (int, float)) and abs(value) > _MAX_NUMBER:
            raise ChatTemplateError(f"the chat template asks for the number {value!r}: too large")
    sizes = sorted(len(value) for value in values if isinstance(value, (str, list, tuple, dict)))
    if len(sizes) > 1 and sizes[-1] * sizes[-2] > _MAX_PRODUCT:  # replacing and joining multiply
        raise ChatTemplateError(f"the chat template makes a text of more than {MAX_LENGTH:,} characters")


@lru_cache(maxsize=16)
def _compiled(template: str):
    import json
    from datetime import datetime

    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    meter = _Meter()

    class Generation(Extension):
        """`{% generation %}` of transformers: what the model says."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Metered(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%", "+"))

        def _parse(self, source, name, filename):
            tree = super()._parse(source, name, filename)
            for loop in list(tree.find_all(nodes.For)):
                if loop.recursive:
                    raise ChatTemplateError("the chat template has a recursive loop, which is not allowed")
                loop.iter = _filtered(loop.iter, "_loop")
            _wrap(tree)
            return tree

        def call_binop(self, context, operator, left, right):
            if operator == "**" or (operator == "*" and not isinstance(left, (int, float))):
                _modest((left, right))
            if operator == "*":
                sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
                if any(hasattr(side, "__len__") for side in (left, right)) and sizes[0] * sizes[1] > MAX_LENGTH:
                    raise ChatTemplateError(f"the chat template makes a text of more than {MAX_LENGTH:,} characters")
            if operator == "**" and isinstance(right, (int, float)) and abs(right) > 64:
                raise ChatTemplateError("the chat template asks for a power above 64, which no template needs")
            if operator == "%" and isinstance(left, str) and _WIDTH.search(left):
                raise ChatTemplateError("the chat template asks for a text wider than 9,999 characters")
            return meter.sized(super().call_binop(context, operator, left, right))

        def call(self, context, called, *args, **kwargs):
            meter.count(1)  # macros may call themselves
            # the sandbox wraps `str.format`
            owner = getattr(getattr(called, "__wrapped__", called), "__self__", None)
            _modest((owner, *args, *kwargs.values()))
            if isinstance(owner, str) and _WIDTH.search(owner) and "format" in getattr(called, "__name__", ""):
                raise ChatTemplateError("the chat template asks for a text wider than 9,999 characters")
            return meter.sized(super().call(context, called, *args, **kwargs))

    def _filtered(node, name):
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _wrap(node):
        """Texts that are put together by `~` are measured."""
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                _wrap(value)
                if isinstance(value, nodes.Concat):
                    setattr(node, field, _filtered(value, "_sized"))
            elif isinstance(value, list):
                for place, item in enumerate(value):
                    if isinstance(item, nodes.Node):
                        _wrap(item)
                        if isinstance(item, nodes.Concat):
                            value[place] = _filtered(item, "_sized")

    def measured(function):
        def apply(*args, **kwargs):
            _modest((*args, *kwargs.values()))
            return meter.sized(function(*args, **kwargs))

        for mark in ("jinja_pass_arg", "jinja_async_variant"):
            if hasattr(function, mark):
                setattr(apply, mark, getattr(function, mark))
        return apply

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = Metered(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters = {name: measured(function) for name, function in environment.filters.items()}
    environment.filters |= {"_loop": meter.loop, "_sized": meter.sized, "tojson": tojson}
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template), meter


__all__ = ["ChatTemplateError", "render_chat"]
