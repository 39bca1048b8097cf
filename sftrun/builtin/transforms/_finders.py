"""Finders of the transform `redact`: yield stretches `[start, end)` of a text that no model should learn."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

Stretch = tuple[int, int]
Finder = Callable[[str], Iterator[Stretch]]
Kind = Literal["key", "email", "iban", "card", "phone", "ip"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Documented key formats. Strings that merely look random are kept, because hashes and ids look random too.
KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS
    r"|\bsk-(?=[\w-]{0,99}\d)[\w-]{20,}"  # OpenAI, Anthropic and others
    r"|\b(?:gh[oprsu]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,})"  # GitHub, GitLab
    r"|\bhf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\bAIza[\w-]{35}"  # Google
    r"|\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"  # Stripe
    r"|\b(?:npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,})"
    r"|\beyJ[\w-]{8,9999}\.eyJ[\w-]{8,9999}\.[\w-]*",  # JSON Web Token
    re.DOTALL,
)
# The look-behind avoids a match attempt at each character of a long run.
EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
CARD = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-])")
ISSUED = re.compile(  # Visa, Mastercard, American Express, Diners, JCB, Discover, UnionPay
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}"
)
IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:]|\.\d)")
DIGITS = re.compile(r"\d(?:\D{0,3}\d){6}")


def make_finder(kind: Kind, regions: Sequence[str]) -> Finder:
    """Makes the finder of a kind; `regions` are for phone numbers."""
    if kind == "phone":
        return _make_phone_finder(regions)
    return {
        "key": make_pattern_finder(KEY),
        "email": make_pattern_finder(EMAIL),
        "iban": _find_ibans,
        "card": _find_cards,
        "ip": _find_addresses,
    }[kind]


def make_pattern_finder(expression: re.Pattern[str]) -> Finder:
    """Makes a finder of the matches of a regular expression."""
    return lambda text: (found.span() for found in expression.finditer(text) if found[0])


def _make_phone_finder(regions: Sequence[str]) -> Finder:
    from phonenumbers import PhoneNumberMatcher

    def find(text: str) -> Iterator[Stretch]:
        if not DIGITS.search(text) or not (regions or "+" in text or "＋" in text):
            return  # the matcher is slow
        found = {(each.start, each.end) for region in regions or (None,) for each in PhoneNumberMatcher(text, region)}
        done = 0
        for start, end in sorted(found):
            if start >= done:
                yield start, end
                done = end

    return find


def _find_ibans(text: str) -> Iterator[Stretch]:
    for found in IBAN.finditer(text):
        # following capitals look like a part of it, so shorter matches are tried as well
        ends = [found.end(), *(space.start() + found.start() for space in reversed([*re.finditer(" ", found[0])]))]
        for end in ends:
            if _is_iban(text[found.start() : end].replace(" ", "")):
                yield found.start(), end
                break


def _is_iban(code: str) -> bool:
    """Checks an account number by ISO 13616: the remainder by 97 is 1, with letters counted as 10 to 35."""
    return 15 <= len(code) <= 34 and int("".join(str(int(sign, 36)) for sign in code[4:] + code[:4])) % 97 == 1


def _find_cards(text: str) -> Iterator[Stretch]:
    for found in CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if ISSUED.fullmatch(digits) and _passes_luhn(digits):
            yield found.span()


def _passes_luhn(digits: str) -> bool:
    """Checks a card number by ISO/IEC 7812-1: doubles every second digit from the right and sums the digits."""
    sums = (sum(divmod(int(digit) * (1 + index % 2), 10)) for index, digit in enumerate(reversed(digits)))
    return sum(sums) % 10 == 0


def _find_addresses(text: str) -> Iterator[Stretch]:
    import ipaddress

    for found in IP.finditer(text):
        try:
            address = ipaddress.ip_address(found[0])
        except ValueError:
            continue
        if address.is_global:  # 127.0.0.1 and 192.168.0.1 identify nobody
            yield found.span()
