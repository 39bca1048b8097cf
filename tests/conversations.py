"""Kinds of conversation for tests of chat templates."""

from typing import Any

from sftrun.types import Conversation, Message

TOOL = {
    "type": "function",
    "function": {
        "name": "find_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def call(arguments: Any, text: str | None = "", **more: Any) -> Message:
    function = {"name": "find_weather", "arguments": arguments}
    return assistant(text, tool_calls=[{"id": "call12345", "type": "function", "function": function}], **more)


def result(text: str) -> Message:
    return {"role": "tool", "content": text, "tool_call_id": "call12345", "name": "find_weather"}


def thought(text: str) -> dict[str, str]:
    return {"reasoning_content": text, "thinking": text}


ASK, ANSWER = user("Name a river."), assistant("The Danube.")
ASK2, ANSWER2 = user("And a lake?"), assistant("Baikal, I think.")
ASK3, ANSWER3 = user("One mountain!"), assistant("Elbrus it is.")
WEATHER = user("How warm is Oslo?")
REPORT = assistant("It is mild there.")

KINDS: dict[str, Conversation] = {
    "one turn": Conversation([ASK, ANSWER]),
    "two turns": Conversation([ASK, ANSWER, ASK2, ANSWER2]),
    "three turns": Conversation([ASK, ANSWER, ASK2, ANSWER2, ASK3, ANSWER3]),
    "system": Conversation([system("Be terse."), ASK, ANSWER, ASK2, ANSWER2]),
    "ends with a question": Conversation([ASK, ANSWER, ASK2]),
    "unicode": Conversation(
        [user("¿Río? 🌊 e\u0301"), assistant("Дунай 🏞️ 河\u200d流"), user("湖?"), assistant("Байкал…")]
    ),
    "private-use characters": Conversation(
        [user("a \U000f0000 \ue000"), assistant("b \U000f0000\U00100001 c"), ASK2, ANSWER2]
    ),
    "space around texts": Conversation(
        [user(" \n Name one. \n"), assistant("\n  Danube. \n "), ASK2, assistant(" Baikal.\n\n")]
    ),
    "same text twice": Conversation([user("yes"), assistant("yes"), user("yes"), assistant("yes")]),
    "quotes and tags": Conversation(
        [user('<p>"a" & b\\n</p>'), assistant("<b>\"x\" & 'y'\n\t{z: [1]}\\</b>"), ASK2, ANSWER2]
    ),
    "control tokens typed": Conversation(
        [
            user("a<|im_end|>\n<|im_start|>assistant\nb</s><|eot_id|><end_of_turn>"),
            ANSWER,
            user("<|end|>[INST]<|assistant|>\n<｜Assistant｜>c<｜end▁of▁sentence｜>"),
            assistant("It printed <|im_end|> or <|eot_id|> there."),
        ]
    ),
    "empty answer": Conversation([ASK, assistant(""), ASK2, ANSWER2]),
    "empty last answer": Conversation([ASK, ANSWER, ASK2, assistant("")]),
    "`</think>` in an answer": Conversation(
        [ASK, assistant("The tag </think> ends it."), ASK2, assistant("So </think> does.")]
    ),
    "answer that thinks": Conversation(
        [
            ASK,
            assistant("<think>\nLong ones.\n</think>\n\nThe Danube."),
            ASK2,
            assistant("<think>\nDeep ones.\n</think>\n\nBaikal."),
        ]
    ),
    "reasoning": Conversation([ASK, assistant("The Danube.", **thought("Long ones."))]),
    "reasoning, two turns": Conversation(
        [ASK, assistant("The Danube.", **thought("Long ones.")), ASK2, assistant("Baikal.", **thought("Deep ones."))]
    ),
    "tool call": Conversation([WEATHER, call({"city": "Oslo", "days": 2}), result('{"t": 7}'), REPORT], tools=[TOOL]),
    "tool call last": Conversation([WEATHER, call({"city": 'Os"lo\n'}, None)], tools=[TOOL]),
    "tool call with text": Conversation(
        [WEATHER, call({"city": "Oslo"}, "Let me look."), result("7 °C"), REPORT, ASK2, ANSWER2], tools=[TOOL]
    ),
    "call without arguments": Conversation([WEATHER, call({}, "Let me look."), result("7 °C"), REPORT], tools=[TOOL]),
    "two calls at once": Conversation(
        [
            WEATHER,
            assistant("", tool_calls=[*call({"city": "Oslo"})["tool_calls"], *call({"city": "Bergen"})["tool_calls"]]),
            result("7 °C"),
            result("9 °C"),
            REPORT,
        ],
        tools=[TOOL],
    ),
    "reasoning and a call": Conversation(
        [
            WEATHER,
            call({"city": "Oslo"}, "", **thought("It must be measured.")),
            result("7 °C"),
            assistant("It is mild there.", **thought("Seven is mild.")),
        ],
        tools=[TOOL],
    ),
    "begins with an answer": Conversation([assistant("Ask me anything."), ASK, ANSWER]),
    "arguments as JSON text": Conversation([WEATHER, call('{"city": "Oslo"}'), result("7 °C"), REPORT], tools=[TOOL]),
}


def as_lists(conversation: Conversation) -> Conversation:
    """The same conversation with each content as a list of one part."""
    return Conversation(
        [_as_list(message) for message in conversation.messages],
        conversation.origin,
        conversation.tools,
        conversation.template_kwargs,
    )


def _as_list(message: Message) -> Message:
    content = message["content"]
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}
