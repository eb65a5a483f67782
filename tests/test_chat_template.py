"""Chat templates of strangers are rendered within limits, and those of ours as transformers renders them."""

import time
from dataclasses import dataclass

import pytest
from transformers import AutoProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from unif2ace.modeling_unif2ace.chat_template_unif2ace import ChatTemplateError, render_chat
from unif2ace.modeling_unif2ace.processing_unif2ace import CHAT_TEMPLATE, CLIP_CHAT_TEMPLATE


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " Who is\nthis? "}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A man."}]},
]
LOOP = "{% set ns = namespace(s=%s) %}{% for a in range(60) %}{% set ns.s = %s %}{% endfor %}{{ ns.s }}"
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubled by ~": LOOP.replace("%s", "'x'", 1).replace("%s", "ns.s ~ ns.s", 1),
    "doubled by +": LOOP.replace("%s", "'x'", 1).replace("%s", "ns.s + ns.s", 1),
    "doubled list": LOOP.replace("%s", "['x']", 1).replace("%s", "ns.s + ns.s", 1),
    "doubled by join": LOOP.replace("%s", "'x'", 1).replace("%s", "[ns.s, ns.s] | join", 1),
    "doubled by format": LOOP.replace("%s", "'x'", 1).replace("%s", "'{}{}'.format(ns.s, ns.s)", 1),
    "doubled by replace": LOOP.replace("%s", "'x'", 1).replace("%s", "ns.s.replace('x', 'xx')", 1),
    "times": "{{ 'x' * 10**10 }}",
    "times a list": "{{ ['x'] * 999999 * 999999 }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "center": "{{ 'x' | center(10000000000) }}",
    "width": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '{:10000000000d}'.format(1) }}",
    "power": "{{ 9**9**9**9 }}",
    "replace": "{{ ('x' * 900000).replace('x', 'y' * 900000) }}",
    "lorem ipsum": "{% for i in lipsum(n=500000) %}{% endfor %}",
}


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CLIP_CHAT_TEMPLATE])
@pytest.mark.parametrize("prompt", [False, True])
def test_our_templates_are_rendered_as_transformers_renders_them(template, prompt):
    tokens = {"bos_token": "<b>", "eos_token": "<e>"}
    wanted, _ = render_jinja_template([CHAT], chat_template=template, add_generation_prompt=prompt, **tokens)
    assert render_chat(template, CHAT, prompt, **tokens) == wanted[0]


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_cannot_run_without_end(kind):
    started = time.monotonic()
    with pytest.raises(ChatTemplateError):
        render_chat(ENDLESS[kind], CHAT)
    assert time.monotonic() - started < 20


def test_a_template_reaches_nothing_and_its_refusal_is_a_sentence():
    for template in ("{{ messages.__class__.__mro__ }}", "{% include '/etc/passwd' %}", "{% if %}"):
        with pytest.raises(ChatTemplateError, match="cannot write this conversation"):
            render_chat(template, CHAT)
    with pytest.raises(ChatTemplateError, match="no systems"):
        render_chat("{{ raise_exception('no systems here') }}", CHAT)


def test_the_processor_does_not_run_an_endless_template(checkpoint):
    from PIL import Image

    from unif2ace import UniF2aceProcessor

    processor = UniF2aceProcessor.from_pretrained(checkpoint)
    processor.chat_template = ENDLESS["loops"]
    content = [{"type": "image", "image": Image.new("RGB", (16, 16))}, {"type": "text", "text": "Who?"}]
    with pytest.raises(ValueError, match="more than 200,000 turns"):
        processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)


@dataclass
class Message:
    role: str
    content: list
    tool_calls: list | None = None


@dataclass
class Part:
    text: str
    type: str = "text"


@pytest.mark.parametrize("template", [None, "{% for message in messages %}{{ message.content[0].text }}{% endfor %}"])
def test_messages_may_be_objects_and_are_checked_as_such(checkpoint, template):
    processor = AutoProcessor.from_pretrained(checkpoint)
    known = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}], chat_template=template
    )
    assert "Who?" in known
    assert processor.apply_chat_template([Message("user", [Part("Who?")])], chat_template=template) == known
    with pytest.raises(ValueError, match="not valid Unicode at character 2"):
        processor.apply_chat_template([Message("user", [Part("no\ud800")])], chat_template=template)
