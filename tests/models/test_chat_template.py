"""Chat templates render as in transformers, and cannot reach Python."""

import datetime
from pathlib import Path

import pytest

from distkv_jax.errors import ConfigError, RequestError
from distkv_jax.models.chat_template import ChatTemplate, read_template

USER = {"role": "user", "content": "hi <b>"}

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""


def render(source: str, *messages: object, prompt: bool = False) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(
        messages or [USER], add_generation_prompt=prompt
    )


def test_blocks_are_trimmed_as_templates_expect():
    text = render(CHATML, USER, {"role": "assistant", "content": "yes"}, prompt=True)

    # As transformers 5.23 renders it.
    assert text == (
        "<|im_start|>user\nhi <b><|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_generation_prompt_is_asked_for():
    assert render("{{ add_generation_prompt }}", prompt=True) == "True"
    assert render("{{ add_generation_prompt }}") == "False"


def test_special_tokens_and_missing_tools_are_there():
    assert render("{{ bos_token }}{{ tools is none }}{{ documents is none }}") == "<s>TrueTrue"


def test_json_is_not_escaped_for_html():
    assert render("{{ messages[0] | tojson }}") == '{"role": "user", "content": "hi <b>"}'
    assert render("{{ {'ö': 1} | tojson(indent=1) }}") == '{\n "ö": 1\n}'


def test_loops_can_be_left_and_generation_blocks_are_their_content():
    assert (
        render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "01"
    )
    assert render("a{% generation %}{{ 'b' }}{% endgeneration %}c") == "abc"


def test_the_date_is_known():
    assert render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)


def test_a_template_may_refuse_a_conversation():
    with pytest.raises(RequestError, match="refused the messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ range(10**9) | list }}",
    ],
)
def test_a_template_reaches_nothing_and_changes_nothing(source: str):
    message = dict(USER)

    with pytest.raises(RequestError, match="chat template refused the messages"):
        ChatTemplate(source, {}).render([message])

    assert message == USER


@pytest.mark.parametrize("source", ["{{ 1 + 'a' }}", "{{ 1 // 0 }}", "{{ missing.content }}"])
def test_a_failing_template_is_the_requests_fault(source: str):
    with pytest.raises(RequestError, match="chat template refused the messages"):
        render(source)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "messages is empty, expected at least 1"),
        (["hi"], "message 0 is 'hi', expected a role and a content"),
        ([USER, {"content": "hi"}], "message 1 is {'content': 'hi'}, expected a role"),
        ([{"role": 3}], "message 0 is {'role': 3}, expected a role"),
    ],
)
def test_messages_need_roles(messages: list[object], text: str):
    with pytest.raises(RequestError, match=text):
        ChatTemplate(CHATML, {}).render(messages)


def test_what_is_no_template_is_refused():
    with pytest.raises(ConfigError, match="the chat template is not valid Jinja"):
        ChatTemplate("{% if %}", {})


def test_its_own_file_goes_before_the_entry(tmp_path: Path):
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]

    assert read_template(tmp_path, {}) is None
    assert read_template(tmp_path, {"chat_template": "entry"}) == "entry"
    assert read_template(tmp_path, {"chat_template": named}) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert read_template(tmp_path, {"chat_template": "entry"}) == "file"
