"""Where answers begin and end, on small templates of the kinds that public models have.

Each template is rendered with rows of many shapes. Every mask trains the answers with their stop tokens, and neither
a question nor a header. Generated spans stand in brackets.
"""

import json
from typing import NamedTuple

import pytest
from conftest import talk
from conversations import assistant, system, user

from sftrun.data.masks.crosscheck import cross_check, mark_tags
from sftrun.data.masks.render import Renderer
from sftrun.data.masks.template import Template
from sftrun.errors import RowError
from sftrun.types import Conversation, Message, Rendered

PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LOOP = "{% for m in messages %}"

COMMAND = LOOP + "<|s|><|{{ m.role }}|><|a|>{{ m.content }}<|z|><|e|>{% endfor %}<|s|><|assistant|>"
COMMAND_SYSTEM = (
    "{{ bos_token }}<|s|><|system|>Be kind.<|e|>{% for m in messages %}{% if m.role == 'assistant' %}<|s|><|bot|><|a|>"
    "{{ m.content }}<|z|><|e|>{% else %}<|s|><|{{ m.role }}|>{{ m.content }}<|e|>{% endif %}{% endfor %}<|s|><|bot|>"
)
OPENED = (
    LOOP + "{% if m.role == 'user' %}{{ m.content }}<|END|><|START|><|BOT|>{% else %}{{ m.content }}<|END|><|START|>"
    "<|USER|>{% endif %}{% endfor %}"
)
CHATML = LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT
NOT_LAST = CHATML.replace(
    "<|im_end|>\n", "{% if not loop.last or add_generation_prompt %}<|im_end|>{{ '\\n' }}{% endif %}"
)
NOT_LAST_DEFAULT = (
    "{% if messages and messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>{{ '\\n' }}{% endif %}"
    + NOT_LAST
)
APERTUS = (
    "{{ bos_token }}<|system_start|>You are Apertus.<|system_end|><|developer_start|>Tools: none<|developer_end|>"
    "{% set ns = namespace(open=false) %}{% for m in messages %}{% if m.role == 'user' %}{% if ns.open %}"
    "<|assistant_end|>{% set ns.open = false %}{% endif %}<|user_start|>{{ m.content }}<|user_end|>"
    "{% elif m.role == 'assistant' %}{% if not ns.open %}<|assistant_start|>{% endif %}{% set ns.open = true %}"
    "{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant_start|>{% endif %}"
)
APRIEL = (
    "<|system|>\nBe kind.\n<|end|>\n{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\\n' + m.content + "
    "'\\n<|end|>\\n' }}{% elif m.role == 'assistant' %}{{ '<|assistant|>\\n' + m.content }}"
    "{{ '\\n<|end|>\\n' if not loop.last }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"
)
FALCON = (
    LOOP + "{{ '\\n\\n' if not loop.first }}{{ 'User' if m.role == 'user' else 'Assistant' }}: {{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
BAICHUAN = (
    LOOP + "{{ '<reserved_106>' if m.role == 'user' else '<reserved_107>' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<reserved_107>{% endif %}"
)
EOS_LAST = (
    LOOP + "{{ 'User' if m.role == 'user' else 'Assistant' }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% else %}{{ eos_token }}{% endif %}"
)
GRANITE = (
    LOOP + "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n"
    "{% if loop.last and add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}{% endfor %}"
)
GIGACHAT = (
    "{{ bos_token }}{% if messages and messages[0].role != 'system' %}developer<|sep|>\nBe kind.<|end|>{{ '\\n\\n' }}"
    "{% endif %}{% for m in messages %}{{ m.role }}<|sep|>\n{{ m.content }}<|end|>\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant<|sep|>{{ '\\n' }}{% endif %}"
)
LLAVA = (
    LOOP + "{{ m.role.upper() + ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '</s>' }}"
    "{% endgeneration %}{% else %}{{ m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
EXAONE = (
    LOOP
    + "[|{{ m.role }}|]\n{{ m.content }}\n<|end|>\n{% endfor %}"
    + ("{% if add_generation_prompt %}{{ '[|assistant|]\\n' }}{% endif %}")
)
THINKING = (
    LOOP + "<|{{ m.role }}|>{{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{{ '\\n' }}{% endif %}"
)
MISTRAL = (
    LOOP + "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + '</s>' }}{% endfor %}"
)


class Kind(NamedTuple):
    """A template, its stop token, and texts that are in headers alone."""

    source: str
    stop: str
    headers: tuple[str, ...]
    eot_token: str | None = None


KINDS = {
    "two tokens end a turn": Kind(COMMAND, "<|e|>", ("<|s|>", "<|assistant|>")),
    "two tokens end a turn, after a system message": Kind(COMMAND_SYSTEM, "<|e|>", ("<|s|>", "<|bot|>")),
    "closed but for the last": Kind(NOT_LAST, "<|im_end|>", ("<|im_start|>",), "<|im_end|>"),
    "closed but for the last, system": Kind(NOT_LAST_DEFAULT, "<|im_end|>", ("<|im_start|>",), "<|im_end|>"),
    "closed by the next turn": Kind(APERTUS, "<|assistant_end|>", ("_start|>",), "<|assistant_end|>"),
    "closed but for the last, on a line": Kind(APRIEL, "<|end|>", ("<|assistant|>", "<|user|>"), "<|end|>"),
    "no end": Kind(GLM, "<|stop|>", ("<|assistant|>", "<|user|>"), "<|stop|>"),
    "the next turn's token ends": Kind(GLM, "<|user|>", ("<|assistant|>",), "<|user|>"),
    "no end, in words": Kind(FALCON, "</s>", ("Assistant:", "User:"), "</s>"),
    "no end, reserved tokens": Kind(BAICHUAN, "</s>", ("<reserved_",), "</s>"),
    "an end at the end": Kind(EOS_LAST, "</s>", ("Assistant:", "User:"), "</s>"),
    "no prompt without messages": Kind(GRANITE, "<|end_of_text|>", ("<|start_of_role|>",)),
    "a first turn of its own": Kind(GIGACHAT, "<|end|>", ("<|sep|>",)),
    "tags without the space": Kind(LLAVA, "</s>", ("ASSISTANT:", "USER:")),
    "an end on a line": Kind(EXAONE, "<|end|>", ("[|",)),
    "a prompt that thinks": Kind(THINKING, "<|eos|>", ("<|assistant|>", "<|user|>")),
    "no generation prompt and no header": Kind(MISTRAL, "</s>", ("INST]",)),
}

ASK, ANSWER, ASK2, ANSWER2 = user("Qone"), assistant("Aone"), user("Qtwo"), assistant("Atwo")
ROWS = {
    "one turn": [ASK, ANSWER],
    "two turns": [ASK, ANSWER, ASK2, ANSWER2],
    "ends with a question": [ASK, ANSWER, ASK2],
    "system": [system("Qsys"), ASK, ANSWER, ASK2, ANSWER2],
    "begins with an answer": [ANSWER, ASK, ANSWER2],
    "two answers at once": [ASK, ANSWER, ANSWER2],
    "empty": [ASK, assistant("")],
    "empty, then one": [ASK, assistant(""), ASK2, ANSWER2],
    "blank": [ASK, assistant(" "), ASK2, assistant("\n")],
    "three turns": [ASK, ANSWER, ASK2, ANSWER2, user("Qthree"), assistant("Athree")],
}
REFUSED = {  # the template leaves out a system message, or writes another prompt after an answer or at the beginning
    "no end, in words": {"begins with an answer"},
    "the next turn's token ends": {"two answers at once"},
    "closed but for the last, on a line": {"system", "two answers at once"},
    "closed by the next turn": {"system", "two answers at once"},
}


def renderer(source: str, eot_token: str | None = None) -> Renderer:
    return Renderer(Template(source, {"bos_token": "<bos>", "eos_token": "</s>"}), eot_token=eot_token)


def shown(rendered: Rendered) -> str:
    pieces = ((rendered.text[span.start : span.end], span.generated) for span in rendered.spans)
    return "".join(f"[{text}]" if generated else text for text, generated in pieces)


def show(source: str, *messages: Message, eot_token: str | None = None) -> str:
    return shown(renderer(source, eot_token).render(Conversation(list(messages))))


def problems(source: str, eot_token: str | None = None) -> list[tuple[str, str | None]]:
    return [(problem.message, problem.hint) for problem in renderer(source, eot_token).check_template()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS)
def test_every_answer_ends_with_its_stop_token_and_no_header_is_trained(kind: str, row: str):
    source, stop, headers, eot_token = KINDS[kind]
    one, messages = renderer(source, eot_token), ROWS[row]
    assert one.check_template() == []
    try:
        rendered = one.render(Conversation(messages))
    except RowError:
        assert row in REFUSED.get(kind, ())
        return
    assert "".join(rendered.text[span.start : span.end] for span in rendered.spans) == rendered.text
    trained = {index: [span for span in rendered.spans if span.message == index] for index in range(len(messages))}
    texts = {index: [rendered.text[span.start : span.end] for span in spans] for index, spans in trained.items()}
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            assert message["content"].strip() in "".join(texts[index][:-1])
            assert trained[index][-1].end_of_turn
            assert texts[index][-1].endswith(stop)
            assert "".join(texts[index]).count(stop) == 1
    learned = "".join(rendered.text[span.start : span.end] for span in rendered.spans if span.generated)
    assert not [text for text in (*headers, "Qone", "Qtwo", "Qthree", "Qsys") if text in learned]
    comparison = cross_check(one, Conversation(messages), rendered, mark_tags(one.template))
    assert comparison.disagreement is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_what_training_shows_before_the_answer(kind: str):
    source, _, _, eot_token = KINDS[kind]
    one, messages = renderer(source, eot_token), ROWS["three turns"]
    rendered = one.render(Conversation(messages))
    for index in (1, 3, 5):
        start = next(span.start for span in rendered.spans if span.message == index and span.generated)
        assert one.render_prompt(messages[:index]).removesuffix("<think>\n") == rendered.text[:start]


def test_a_turn_of_two_end_tokens_ends_before_the_next_turn():
    assert show(COMMAND, ASK, ANSWER, ASK2, ANSWER2) == (
        "<|s|><|user|><|a|>Qone<|z|><|e|><|s|><|assistant|>[<|a|>Aone][<|z|><|e|>]"
        "<|s|><|user|><|a|>Qtwo<|z|><|e|><|s|><|assistant|>[<|a|>Atwo][<|z|><|e|>]<|s|><|assistant|>"
    )


def test_a_next_turn_without_a_clear_beginning_is_refused():
    assert problems(OPENED) == [
        (
            "the chat template ends an answer with the beginning of the next turn: '<|START|><|USER|>'",
            "write it only if a message or a generation prompt follows",
        )
    ]


@pytest.mark.parametrize("source", [NOT_LAST, NOT_LAST_DEFAULT])
def test_a_template_that_leaves_the_last_answer_open_names_the_token_of_the_others(source: str):
    advice = "set model.eot_token to '<|im_end|>', which ends the others"
    assert problems(source) == [("the chat template writes no end-of-turn token after the last answer", advice)]
    with pytest.raises(RowError) as caught:
        renderer(source).render(Conversation([ASK, ANSWER]))
    assert str(caught.value) == f"message 1 (assistant): the template writes no end-of-turn token after it; {advice}"
    assert renderer(source).render(Conversation([ASK, ANSWER, ASK2])).text.count("<|im_end|>") >= 2
    assert problems(source, "<|im_end|>") == []


def test_another_token_than_the_templates_own_is_a_warning():
    message = "model.eot_token ends the last answer with '</s>', the chat template the others with '<|im_end|>'"
    assert problems(NOT_LAST, "</s>") == [(message, "set model.eot_token to '<|im_end|>', which ends the others")]
    assert show(NOT_LAST, ASK, ANSWER, ASK2, ANSWER2, eot_token="</s>").endswith("[Atwo][</s>]")


def test_a_template_that_ends_the_last_answer_alone_names_its_token():
    assert problems(EOS_LAST) == [
        (
            "the chat template writes no end-of-turn token after any answer but the last",
            "set model.eot_token to '</s>', which ends the others",
        )
    ]


def test_a_token_that_opens_another_turn_is_no_end_before_it():
    with pytest.raises(
        RowError, match=r"model.eot_token '<\|user\|>' opens another turn than the one that follows: '<\|system"
    ):
        show(GLM, ASK, ANSWER, system("S"), ASK2, ANSWER2, eot_token="<|user|>")


VICUNA = """{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'user' %}
        {{ 'USER: ' + message['content'] | trim + '\\n' }}
    {% elif message['role'] == 'assistant' %}
        {{ 'ASSISTANT: ' + message['content'] | trim + eos_token + '\\n' }}
    {% endif %}
{% endfor %}

{% if add_generation_prompt %}
    {{ 'ASSISTANT:' }}
{% endif %}
"""
ALIKE = "write both alike in the chat template, or set model.chat_template to another"
MISMATCHES = {
    VICUNA: (
        "'\\n    ASSISTANT:\\n' where the text has '        ASSISTANT: …</s>…'; they differ in white space; " + ALIKE
    ),
    VICUNA.replace("ASSISTANT", "### Response").replace(": ", ":\\n"): "they differ in white space",
    CHATML.replace("{{ m.role }}", "{{ 'model' if m.role == 'assistant' else m.role }}"): (
        f"'<|im_start|>assistant\\n' where the text has '<|im_start|>model\\n…<|im_…'; {ALIKE}"
    ),
    CHATML.replace("{{ m.role }}\n", "{{ m.role }}: "): (
        f"'<|im_start|>assistant\\n' where the text has '<|im_start|>assistant: ……'; {ALIKE}"
    ),
    NOT_LAST.replace(" or add_generation_prompt", ""): (
        f"'<|im_start|>assistant\\n' where the text has '<|im_end|>\\n<|im_start|>a…'; {ALIKE}"
    ),
}


@pytest.mark.parametrize("source", MISMATCHES)
def test_a_generation_prompt_that_does_not_begin_the_answer_is_refused(source: str):
    ((message, _),) = problems(source)
    assert message.startswith("answers cannot be located in the text of the chat template: message 1 (assistant): ")
    assert MISMATCHES[source] in message


def test_a_header_that_no_generation_prompt_writes_is_refused():
    assert problems(CHATML.removesuffix(PROMPT)) == [
        (
            "the chat template begins answers with '<|im_start|>assistant\\n', but writes no generation prompt",
            "write it at the end of the text, too, if add_generation_prompt is set",
        )
    ]
    assert problems(MISTRAL) == []


def test_a_prompt_may_open_thoughts_that_an_answer_does_not_have():
    assert show(THINKING, ASK, ANSWER) == "<|user|>Qone<|eos|><|assistant|>[Aone][<|eos|>]"


def test_the_proof_says_which_answers_the_recipe_ends(sftrun, write, tmp_path):
    (tmp_path / "open.jinja").write_text(NOT_LAST.replace("<|im_end|>", "").replace("{{ '\\n' }}", ""))
    model = {"chat_template": str(tmp_path / "open.jinja")}
    rows = [talk("a", "b", "c", "d"), talk("e", "f")]
    said = sftrun("prepare", write(rows, model=model), "--out", tmp_path / "refused")
    assert said.code == 1
    assert "the chat template writes no end-of-turn token after an answer" in said.err
    model["eot_token"] = "<|im_end|>"
    said = sftrun("prepare", write(rows, model=model), "--out", tmp_path / "run")
    assert said.code == 0, said.err
    proof = json.loads((tmp_path / "run/prepared/proof.json").read_text())
    assert proof["recipe_end"] == {"token": "<|im_end|>", "after": "every answer"}
    assert proof["stop_ids"] == proof["end_of_turn"]["<|im_end|>"]
    assert (proof["splits"]["train"]["turns"], proof["splits"]["train"]["turns_ended"]) == (3, 3)
    assert proof["crosscheck"]["differ"] == 0


QUOTED = (  # the tokenizer of sftrun/tiny joins `"` and `:`
    LOOP + "{{ m.role[0] + '\"' + m.content + (':<|im_end|>' if m.role == 'assistant' else '<|im_end|>') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a\"' }}{% endif %}"
)


def test_the_end_of_an_empty_answer_must_not_join_with_the_header(sftrun, write, tmp_path):
    (tmp_path / "quoted.jinja").write_text(QUOTED)
    keys = {"model": {"chat_template": str(tmp_path / "quoted.jinja")}, "masker": "flagged"}
    flagged = talk("a", "", "c", "d")
    flagged["messages"][1]["train"] = False
    said = sftrun("prepare", write([talk("a", "b"), flagged], **keys), "--out", tmp_path / "run")
    assert said.code == 0, said.err
    proof = json.loads((tmp_path / "run/prepared/proof.json").read_text())
    assert (proof["splits"]["train"]["turns"], proof["splits"]["train"]["turns_ended"]) == (2, 2)
    assert proof["stop_ids"] == [proof["end_of_turn"][":<|im_end|>"][-1]]
    said = sftrun("prepare", write([talk("a", "b"), talk("a", "", "c", "d")], **keys), "--out", tmp_path / "refused")
    assert said.code == 1
    assert "train.jsonl:2: error: message 1 (assistant) is empty: only its end of turn would be trained" in said.err


REASONS = (
    LOOP
    + "<|{{ m.role }}|>\n{{ m.content }}<|e|>\n{% endfor %}"
    + ("{% if add_generation_prompt %}<|assistant|>\nHere are my reasoning steps:\n{% endif %}")
)


@pytest.mark.parametrize("answer", ["Here is a rhyme", "Here", "Hexagon", "Here are my own words"])
def test_an_answer_that_begins_like_the_generation_prompt_is_trained_whole(answer):
    """A prompt may hold the beginning of an answer, such as `<think>`, but then all of what it adds."""
    rendered = Renderer(Template(REASONS, {})).render(Conversation([user("A rhyme?"), assistant(answer)]))
    assert "".join(rendered.text[s.start : s.end] for s in rendered.spans if s.generated) == f"{answer}<|e|>"


TWO_TURNS = LOOP + (
    "{% if m.tool_calls %}<|bot|>{% for call in m.tool_calls %}<call>{{ call.function.name }}</call>{% endfor %}</s>"
    "{% endif %}"
    "{% if m.role == 'assistant' and m.content is not none %}<|bot|>{{ m.content }}</s>"
    "{% elif m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)


@pytest.mark.parametrize(("content", "is_right"), [("", False), ("Wait.", False), (None, True)])
def test_a_stop_token_in_the_middle_of_an_answer_is_refused_with_the_remedy(content, is_right):
    """DeepSeek's distilled models have such a template: a call with any content becomes two turns."""
    call = {"role": "assistant", "content": content, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    row = Conversation([user("?"), call, {"role": "tool", "content": "rain"}, assistant("Rain.")])
    renderer = Renderer(Template(TWO_TURNS, {"eos_token": "</s>"}))
    if is_right:
        rendered = renderer.render(row)
        trained = "".join(rendered.text[s.start : s.end] for s in rendered.spans if s.generated)
        assert trained == "<call>look</call></s>Rain.</s>"
    else:
        with pytest.raises(RowError, match=r"stop token '</s>' in the middle of it.* null|opens it with '<\|bot\|>'"):
            renderer.render(row)
