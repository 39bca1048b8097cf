"""Files that are hard to read: each is a problem with a place, never a traceback."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrun.recipe.compose import MAX_DEPTH, MAX_NODES, scalar
from sftrun.recipe.validate import check_file

SMALL = b"model: {name: sftrun/tiny}\nsource: {use: jsonl, with: {path: data}}\n"


@pytest.fixture
def errors(tmp_path, monkeypatch):
    """The problems of a file with given bytes, as text."""
    monkeypatch.chdir(tmp_path)

    def problems(content, name="recipe.yaml"):
        (tmp_path / name).write_bytes(content)
        return [str(problem) for problem in check_file(name).problems]

    return problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("+12", 12),
        ("012", 12),
        ("0o17", 15),
        ("0xfF", 255),
        ("~", None),
        ("", None),
        ("Null", None),
        ("TRUE", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("e5", "e5"),
        (".", "."),
        ("tRUE", "tRUE"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = scalar(text)
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize("text", [".inf", "-.INF", ".nan", "1e999", "9" * 5000, str(2**64)])
def test_an_unusable_number_is_refused(text):
    with pytest.raises(ValueError, match=r"finite|too large"):
        scalar(text)


def test_a_byte_order_mark_is_accepted(errors):
    assert errors(b"\xef\xbb\xbf" + SMALL) == []


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_line_ends_of_other_systems_are_accepted(errors, end):
    assert errors((SMALL + b"seeed: 1\n").replace(b"\n", end))[0].startswith("recipe.yaml:3:1: error: unknown key")


def test_other_encodings_are_named(errors):
    assert errors(SMALL + "description: café\n".encode("latin-1")) == [
        "recipe.yaml:3: error: not UTF-8 text; save the file as UTF-8"
    ]


def test_control_characters_are_refused_with_their_place(errors):
    assert errors(SMALL + b"description: a\x00b\n") == [
        "recipe.yaml:3:15: error: a recipe must not contain the character U+0000"
    ]


def test_a_large_file_is_not_read(errors):
    assert errors(b"# " + b"x" * 5_000_000) == ["error: recipe.yaml is larger than 1 MB, the largest size of a recipe"]


def test_a_folder_is_not_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    assert str(check_file("folder.yaml").problems[0]) == (
        "error: folder.yaml is a folder, not a recipe; name a .yaml file in it"
    )


def test_a_missing_file_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(check_file("none.yaml").problems[0]) == "error: no such file: none.yaml"
    assert "null byte" in str(check_file("a\0b").problems[0])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_reported(errors, tmp_path):
    errors(SMALL)
    (tmp_path / "recipe.yaml").chmod(0)
    assert "Permission denied" in str(check_file("recipe.yaml").problems[0])


@pytest.mark.parametrize(
    "content",
    [
        b"a: " + b"[" * 100_000,
        b"a: " + b"{a: " * 1000,
        b"".join(b" " * level + b"a:\n" for level in range(200)),
        b"- " * 1000,
        b"a0: &a0 [x]\n" + b"".join(f"a{n}: &a{n} [*a{n - 1}]\n".encode() for n in range(1, 3000)),
    ],
    ids=["lists", "mappings", "blocks", "dashes", "aliases"],
)
def test_depth_has_a_limit(errors, content):
    assert f"nested deeper than {MAX_DEPTH} levels" in errors(content)[0]


def _bomb(first, line):
    return "".join([first, *(line.format(n=n, of=", ".join([f"*a{n - 1}"] * 10)) for n in range(1, 30))]).encode()


@pytest.mark.parametrize(
    "content",
    [
        _bomb("a0: &a0 [x, x]\n", "a{n}: &a{n} [{of}]\n"),
        _bomb("a0: &a0 {x: 1}\n", "a{n}: &a{n} {{<<: [{of}]}}\n"),
        b"a: [" + b"1," * (MAX_NODES + 1) + b"]",
    ],
    ids=["lists", "merges", "plain"],
)
def test_values_have_a_limit_with_aliases_expanded(errors, content):
    assert f"more than {MAX_NODES} values" in errors(content)[0]


def test_merge_keys_take_several_sources_and_the_first_wins(errors, tmp_path):
    content = SMALL + (
        b"train: &a {epochs: 1, batch_size: 2}\n"
        b"data: &b {max_lost: 0.5}\n"
        b"tuning: {<<: [*b], lora: {<<: {r: 1, alpha: 2}, r: 4}}\n"
    )
    assert errors(content) == ["recipe.yaml:4:11: error: unknown key 'max_lost' in tuning; did you mean data.max_lost?"]


def test_a_quoted_merge_key_is_a_key(errors):
    assert "unknown key '<<' in train" in errors(SMALL + b'train: {"<<": {epochs: 1}}\n')[0]


def test_the_place_of_an_empty_value_is_its_key(errors):
    assert errors(SMALL + b"train:\n  epochs:\n") == ["recipe.yaml:4:3: error: train.epochs must be a number, not null"]


def test_extends_is_followed_through_several_files(errors, tmp_path):
    (tmp_path / "a.yaml").write_bytes(SMALL + b"train: {epochs: 1}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ntrain: {batch_size: 2}\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "c.yaml").write_text("extends: ../b.yaml\ntrain: {grad_accum: 3}\n")
    made = check_file("folder/c.yaml").recipe
    assert (made.train.epochs, made.train.batch_size, made.train.grad_accum) == (1, 2, 3)


def test_a_problem_of_a_base_is_shown_in_the_base(errors, tmp_path):
    (tmp_path / "base.yaml").write_bytes(SMALL + b"train: {epochs: many}\n")
    assert errors(b"extends: base.yaml\n") == [
        "base.yaml:3:17: error: train.epochs must be a number, not the string 'many'"
    ]
    assert errors(b"extends: base.yaml\ntrain: {epochs: 1}\n") == []


@pytest.mark.parametrize(
    ("base", "child", "with_"),
    [
        ("{use: style, with: {prompt: a, where: append}}", "{with: {prompt: b}}", {"prompt": "b", "where": "append"}),
        ("{use: style, with: {prompt: a, where: append}}", "style", None),
    ],
)
def test_a_list_is_replaced_never_merged(errors, tmp_path, base, child, with_):
    (tmp_path / "base.yaml").write_bytes(SMALL + f"transforms: [{base}]\n".encode())
    found = errors(f"extends: base.yaml\ntransforms: [{child}]\n".encode())
    assert any("missing key" in problem for problem in found)


def test_a_bare_name_and_a_mapping_of_the_same_component_merge(errors, tmp_path):
    (tmp_path / "base.yaml").write_bytes(SMALL + b"exporters: []\nformatter: chat\n")
    assert errors(b"extends: base.yaml\nsource: jsonl\nformatter: {with: {fields: {user: q}}}\n") == []
    made = check_file("recipe.yaml").recipe
    assert made.source.with_["path"] == str(tmp_path / "data")
    assert made.formatter.with_["fields"]["user"] == "q"


PIECES = [
    "a",
    "b: ",
    "- ",
    "\n",
    "  ",
    "'",
    '"',
    "\\\n",
    "\\n",
    "#",
    " # c",
    "{",
    "}",
    "[",
    "]",
    ",",
    ": ",
    "&x ",
    "*x",
    "|",
    ">",
    "|-\n",
]
PIECES += [
    "!",
    "?",
    "%",
    "---",
    "<<: ",
    "1",
    "1e3",
    "0o7",
    "yes",
    "null",
    "~",
    ".inf",
    "\t",
    "é",
    "\u2028",
    "${env:A}",
    "\r\n",
    "@",
    "`",
]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@settings(max_examples=1500, deadline=None)
def test_the_fast_parser_reads_what_the_slow_one_reads_or_leaves_it_to_it(text):
    from sftrun.recipe import compose
    from sftrun.recipe.document import Origin

    if compose.UNPRINTABLE.search(text):
        return
    origin = Origin("recipe.yaml", Path(), compose.LINE_BREAK.split(text))
    quick = compose._compose_quickly(text, origin)
    if quick is None:
        return
    slow = compose._Composer(text, origin, compose._parse_slowly(text))
    node = slow.document()
    assert not slow.problems
    assert node == quick.node


def test_a_pipe_is_no_recipe_and_nobody_waits_for_it(errors, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert [str(problem) for problem in check_file("pipe.yaml").problems] == ["error: pipe.yaml is a pipe, not a file"]
    (found,) = errors(SMALL + b"extends: pipe.yaml\n")
    assert "pipe.yaml is a pipe, not a file" in found


def test_a_base_that_was_changed_is_read_again(errors, tmp_path):
    for epochs, count in ((1, 0), (-1, 1), (2, 0)):
        (tmp_path / "base.yaml").write_text(f"train: {{epochs: {epochs}}}\n")
        for _ in range(2):
            assert len(errors(SMALL + b"extends: base.yaml\n")) == count
