"""Generates the small chat data set in this folder, and trains the tokenizer of `sftrun/tiny` on it.

    python recipes/data/chat/make.py               # write train.jsonl, val.jsonl, test.jsonl
    python recipes/data/chat/make.py --check       # fail if the files differ from what would be written
    python recipes/data/chat/make.py --tokenizer sftrun/tiny    # train the tokenizer again

Each task draws facts (names, places, numbers) and writes a conversation about them. A task uses a set of facts once,
so held-out conversations are new combinations of known words. The last answer of a conversation has one right wording,
so exact match is a fair metric.

Tasks, shares and words are chosen so that the 2,000 steps of `recipes/chat.yaml` learn them with any seed. Measure
several seeds after a change: a task can be learned with one seed and missed with the next.
"""

# ruff: noqa: SIM905 - a list of words is easier to read as one string

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

Message = dict[str, str]
Conversation = list[Message]
Facts = tuple[object, ...]
Question = tuple[str, str]  # a question and its answer

HERE = Path(__file__).resolve().parent
SIZES = {"train": 4000, "val": 200, "test": 300}
SEED = 7

NAMES = (
    "Ada Ben Clara David Emma Felix Greta Henry Ida Jonas Kira Leo Maya Nora Oscar Paula Rosa Simon Tara Vera"
).split()
CITIES = (
    "Athens Berlin Cairo Dublin Geneva Hanoi Lima Lisbon London Madrid Oslo Paris Rome Seoul Tokyo Vienna"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
FRUIT = "apple banana cherry fig grape kiwi lemon lime mango melon peach pear plum".split()
BOTS = "Aria Nova Otto Robin Sage".split()

GOOD = "lovely excellent great perfect wonderful superb pleasant".split()
BAD = "awful terrible poor horrible dreadful bad dull".split()
THINGS = "soup room music coffee view film dessert service garden tour".split()

UNITS = {  # small units per large unit: powers of ten, so that an answer is copied digits and zeros
    ("kilometres", "metres"): 1000,
    ("metres", "centimetres"): 100,
    ("centimetres", "millimetres"): 10,
    ("kilograms", "grams"): 1000,
    ("litres", "millilitres"): 1000,
}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def greeting(rng: random.Random, name: str, city: str) -> str:
    return rng.choice(
        [
            f"Hi, I'm {name} from {city}.",
            f"Hello! My name is {name} and I live in {city}.",
            f"Good morning, this is {name}, writing from {city}.",
        ]
    )


def greet(rng: random.Random) -> tuple[Facts, Conversation]:
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    conversation = [user(greeting(rng, name, city)), assistant(f"Hello {name}! How is the weather in {city}?")]
    return (name, city), conversation


def greet_as_pirate(rng: random.Random) -> tuple[Facts, Conversation]:
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    conversation = [
        system("You are a pirate."),
        user(greeting(rng, name, city)),
        assistant(f"Ahoy, {name}! What treasure lies in {city}?"),
    ]
    return (name, city), conversation


def remember(rng: random.Random) -> tuple[Facts, Conversation]:
    """Asks in the second turn for a fact of the first turn."""
    (name, city), conversation = greet(rng)
    question, answer = rng.choice(
        [("What is my name?", f"Your name is {name}."), ("Where do I live?", f"You live in {city}.")]
    )
    return (name, city, question), [*conversation, user(question), assistant(answer)]


def row_to_json(rng: random.Random) -> tuple[Facts, Conversation]:
    """Uses a row instead of a sentence: words without a space before them have the same tokens as in the answer."""
    fields = {"name": rng.choice(NAMES), "city": rng.choice(CITIES), "age": rng.randint(18, 89)}
    order = rng.choice([("name", "city", "age"), ("name", "age", "city")])
    row = ",".join(str(fields[key]) for key in order)
    question = f"Turn this row into JSON:\n{','.join(order)}\n{row}"
    answer = json.dumps({key: fields[key] for key in order})
    return tuple(fields.values()), [user(question), assistant(answer)]


def reverse(rng: random.Random) -> tuple[Facts, Conversation]:
    """Uses words without commas: two layers reliably learn to find a word by its neighbour, but not across commas."""
    fruit = rng.sample(FRUIT, rng.randint(3, 4))
    question = rng.choice(["Reverse these words: {}", "Write these words backwards: {}"]).format(" ".join(fruit))
    return tuple(fruit), [user(question), assistant(f"Reversed: {' '.join(reversed(fruit))}")]


def reverse_then_pick(rng: random.Random) -> tuple[Facts, Conversation]:
    facts, conversation = reverse(rng)
    which, place = rng.choice([("first", -1), ("last", 0)])
    return (*facts, which), [*conversation, user(f"Which one is {which} now?"), assistant(f"The {facts[place]}.")]


def conversion(number: int, large: str, small: str) -> str:
    return f"{number} {large} are {number * UNITS[large, small]} {small}."


def convert(rng: random.Random) -> tuple[Facts, Conversation]:
    large, small = rng.choice(list(UNITS))
    number = rng.randint(10, 99)
    question = rng.choice([f"How many {small} are {number} {large}?", f"Convert {number} {large} to {small}."])
    return (number, large, question[0]), [user(question), assistant(conversion(number, large, small))]


def convert_twice(rng: random.Random) -> tuple[Facts, Conversation]:
    large, small = rng.choice(list(UNITS))
    one, two = rng.sample(range(10, 100), 2)
    conversation = [
        user(f"Convert {one} {large} to {small}."),
        assistant(conversion(one, large, small)),
        user(f"And {two} {large}?"),
        assistant(conversion(two, large, small)),
    ]
    return (one, two, large), conversation


def review(rng: random.Random) -> tuple[Facts, str, str]:
    """Returns facts, the text of a review, and its sentiment."""
    sentiment, adjectives = rng.choice([("Positive", GOOD), ("Negative", BAD)])
    one, two = rng.sample(THINGS, 2)
    how, how_too = rng.sample(adjectives, 2)
    return (one, how, two, how_too), f"The {one} was {how} and the {two} was {how_too}.", sentiment


def judge(rng: random.Random) -> tuple[Facts, Conversation]:
    facts, text, sentiment = review(rng)
    question = rng.choice(["Is this review positive or negative?", "What is the mood of this review?"])
    return facts, [user(f"{question} {text}"), assistant(f"{sentiment}.")]


def judge_loudly(rng: random.Random) -> tuple[Facts, Conversation]:
    facts, (question, answer) = judge(rng)
    loud = assistant(answer["content"].upper())
    return facts, [system("Answer in upper case."), question, loud]


def meeting_note(rng: random.Random) -> tuple[Facts, str, list[Question]]:
    """Returns facts, the text of a note about a meeting, and questions about it."""
    (one, two), city, day = rng.sample(NAMES, 2), rng.choice(CITIES), rng.choice(DAYS)
    text = rng.choice([f"On {day}, {one} will meet {two} in {city}.", f"In {city}, {one} will meet {two} on {day}."])
    questions = [
        ("Where do they meet?", f"They meet in {city}."),
        ("When do they meet?", f"They meet on {day}."),
        ("Who are they?", f"They are {one} and {two}."),
    ]
    return (one, two, city, day), text, questions


def read_note(rng: random.Random) -> tuple[Facts, Conversation]:
    facts, text, questions = meeting_note(rng)
    question, answer = rng.choice(questions)
    return facts, [user(f"{text} {question}"), assistant(answer)]


def read_and_follow_up(rng: random.Random) -> tuple[Facts, Conversation]:
    facts, text, questions = meeting_note(rng)
    (first, answer), (second, answer_too) = rng.sample(questions[:2], 2)
    return facts, [user(f"{text} {first}"), assistant(answer), user(second), assistant(answer_too)]


def read_briefly(rng: random.Random) -> tuple[Facts, Conversation]:
    facts, text, questions = meeting_note(rng)
    question, answer = rng.choice(questions[:2])
    brief = answer.removeprefix("They meet ")
    return facts, [system("Answer briefly."), user(f"{text} {question}"), assistant(brief[0].upper() + brief[1:])]


def read_and_sign(rng: random.Random) -> tuple[Facts, Conversation]:
    facts, (question, answer) = read_note(rng)
    bot = rng.choice(BOTS)
    signed = assistant(f"{answer['content']} Yours, {bot}")
    return (*facts, bot), [system(f"Your name is {bot}. Sign every answer."), question, signed]


TASKS: dict[Callable[[random.Random], tuple[Facts, Conversation]], int] = {  # relative share of the rows
    greet: 2,
    greet_as_pirate: 2,
    remember: 3,
    row_to_json: 6,
    reverse: 5,
    reverse_then_pick: 4,
    convert: 3,
    convert_twice: 3,
    judge: 3,
    judge_loudly: 2,
    read_note: 3,
    read_and_follow_up: 3,
    read_briefly: 2,
    read_and_sign: 2,
}


def conversations(rng: random.Random) -> Iterator[Conversation]:
    """Yields conversations without end; no two of a task share their facts, and no two share their prompt."""
    seen: set[object] = set()
    while True:
        [task] = rng.choices(list(TASKS), weights=list(TASKS.values()))
        facts, conversation = task(rng)
        known = {(task.__name__, *facts), json.dumps(conversation[:-1])}
        if not known & seen:
            yield conversation
        seen |= known


def make_splits() -> dict[str, list[Conversation]]:
    stream = conversations(random.Random(SEED))
    return {split: [next(stream) for _ in range(size)] for split, size in SIZES.items()}


def file_contents() -> dict[str, str]:
    """Returns the content of each file, by name."""
    splits = make_splits()
    check_leaks(splits)
    return {
        f"{split}.jsonl": "".join(
            json.dumps({"messages": conversation}, ensure_ascii=False) + "\n" for conversation in rows
        )
        for split, rows in splits.items()
    }


def check_leaks(splits: dict[str, list[Conversation]]) -> None:
    prompts = {split: {json.dumps(conversation[:-1]) for conversation in rows} for split, rows in splits.items()}
    if leaked := prompts["test"] & (prompts["train"] | prompts["val"]) | prompts["val"] & prompts["train"]:
        raise ValueError(f"{len(leaked)} held-out prompts are in another split, such as {min(leaked)}")


def train_tokenizer(folder: Path) -> None:
    """Trains byte-level BPE with 768 tokens on the training split, one token per digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = [
        piece
        for conversation in make_splits()["train"]
        for m in conversation
        for piece in (f"{m['role']}\n", m["content"])
    ]
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def stale_files() -> list[str]:
    """Returns the names of files that differ from what would be written."""
    return [name for name, text in file_contents().items() if (HERE / name).read_bytes() != text.encode()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="train FOLDER/tokenizer.json instead")
    options = parser.parse_args()
    if options.check:
        if names := stale_files():
            sys.exit(f"stale: {', '.join(names)}; run {Path(__file__).name}")
    elif options.tokenizer:
        train_tokenizer(options.tokenizer)
    else:
        for name, text in file_contents().items():
            (HERE / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
