"""Writes the small set of support tickets next to this file.

    python make.py            # write train.jsonl, val.jsonl, test.jsonl
    python make.py --check    # fail if the files differ from what this script writes

A ticket is a customer, a product and a problem; the advice depends on the problem. Each combination of the three
occurs once, so held-out tickets are new combinations. Every twentieth ticket is still open and has only the canned
first reply.
"""

import json
import random
import sys
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = {"train": 300, "val": 20, "test": 40}
SEED = 11

NAMES = ["Ada", "Ben", "Ida", "Kai", "Leo", "Lin", "Mia", "Noa", "Ola", "Pia", "Ria", "Sam", "Tom", "Una", "Vic", "Zoe"]
PRODUCTS = ["lamp", "kettle", "radio", "clock"]
HELP = {
    "does not start": "plug it in again",
    "is too loud": "turn the red wheel to the left",
    "smells of smoke": "unplug it and send it back to us",
    "came without a lid": "tell us your address, and we send one",
    "stopped after a day": "hold the small button for ten seconds",
    "has a dark screen": "put in new batteries",
}
FIRST = "Thanks for writing, {name}. I am looking into it."
LAST = "Dear {name}, please {help}. Kind regards, your support team"
NUDGES = ("Any news?", "It is quite new.", "I need it by Friday.")


def ticket(number: int, name: str, thing: str, problem: str, draw: random.Random) -> dict[str, object]:
    """Returns one ticket; `draw` chooses the words around its facts."""
    replies = [{"by": "agent", "text": FIRST.format(name=name)}]
    if number % 20:
        replies.append({"by": "customer", "text": draw.choice(NUDGES)})
        replies.append({"by": "agent", "text": LAST.format(name=name, help=HELP[problem])})
        if draw.random() < 0.2:
            replies.append({"by": "customer", "text": "Thank you, that helped!"})
    body = f"Hello, my {thing} {problem}. What can I do?\n{name}"
    return {"subject": f"My {thing} {problem}", "body": body, "product": thing, "replies": replies}


def files() -> dict[str, str]:
    """Returns the text of each file by name."""
    draw = random.Random(SEED)
    facts = list(product(NAMES, PRODUCTS, HELP))
    draw.shuffle(facts)
    tickets = [ticket(number, *each, draw) for number, each in enumerate(facts, 1)]
    texts = {}
    for split, size in SIZES.items():
        lines = [json.dumps(each) for each in tickets[:size]]
        texts[f"{split}.jsonl"] = "\n".join(lines) + "\n"
        del tickets[:size]
    return texts


def main() -> None:
    """Writes the files, or compares them."""
    for name, text in files().items():
        if "--check" not in sys.argv:
            (HERE / name).write_text(text, encoding="utf-8")
        elif (HERE / name).read_text(encoding="utf-8") != text:
            sys.exit(f"{name} is not what make.py writes; run it again")


if __name__ == "__main__":
    main()
