"""Texts of others: what is shown of them acts on nothing, in a terminal, a log, or Markdown."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # a dependency of Dagster, through rich

import nbia_pipeline
from nbia_pipeline.archive import ArchiveError, BadAnswer
from nbia_pipeline.errors import OURS, error_text
from nbia_pipeline.text import TextError, logger, markdown_code, shown, table_text

ROOT = Path(nbia_pipeline.__file__).parent
# Controls (C0, DEL, C1), line separators, marks that reorder or hide characters, half of a surrogate pair.
UNFIT = "\x00\x07\x08\t\n\r\x1b\x7f\x85\x9b\u2028\u2029\u200b\u200e\u200f\u202a\u202e\u2060\u2066\u2069\ufeff\udc80"
MARKUP = st.sampled_from(
    [*"`*_[]()<>!|#&\\~-+ \n\t", "![i](http://e.example/i.png)", "<img src=x>", "http://e.example"]
)
HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.text(st.sampled_from(UNFIT + "ab\\")),
    st.lists(MARKUP).map("".join),
)


@given(HOSTILE)
@example(UNFIT)
def test_nothing_that_acts_on_a_terminal_is_left(text: str) -> None:
    result = shown(text)
    assert not set(UNFIT) & set(result)
    assert all(c.isprintable() or c in text for c in result)  # spaces of other widths stay
    assert shown(result) == result


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "M"])))
def test_a_plain_text_stays_as_it_is(text: str) -> None:
    assert shown(text) == text


def test_what_was_there_can_be_read() -> None:
    assert shown("a\x1b[31mred\r\n\u202etxt") == r"a\x1b[31mred\r\n\u202etxt"
    assert shown("À ü 中文") == "À ü 中文"


def test_a_long_text_is_cut() -> None:
    assert shown("x" * 10**7) == "x" * 1997 + "..."
    assert shown("\x1b" * 2000) == (r"\x1b" * 2000)[:1997] + "..."
    assert shown("x" * 2000) == "x" * 2000


def in_markdown(text: str) -> list[str]:
    """Return the types of what a text becomes in Markdown, as the UI's renderer knows it, but for linked addresses."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    return [t.type for token in tokens for t in [token, *(token.children or [])]]


@given(HOSTILE)
@example("`` ` ```")
@example("")
@example("|a|b|\n|-|-|\n")
def test_markdown_shows_a_text_as_code_and_nothing_else(text: str) -> None:
    types = in_markdown(f"The first: {markdown_code(text)}. To fix it: `a`")
    assert set(types) == {"paragraph_open", "inline", "text", "code_inline", "paragraph_close"}
    assert types.count("code_inline") == 2


def test_the_renderer_of_these_tests_would_notice() -> None:
    assert "image" in in_markdown("The first: ![i](http://evil.example/i.png)")
    assert "html_inline" in in_markdown("The first: <img src=x>")


# --- errors


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_our_errors_show_what_they_quote(kind: type[Exception]) -> None:
    assert issubclass(kind, TextError)
    error = kind("no collection \x1b[2J\n: look")
    assert str(error) == error_text(error) == r"no collection \x1b[2J\n: look"


def test_the_call_and_the_answer_are_shown_too() -> None:
    error = BadAnswer("an unexpected answer", status=200, body="\x1b]0;x\x07").at(
        "/getSeries", {"Collection": "\x9b1m"}
    )
    assert str(error) == (r"an unexpected answer [/getSeries Collection=\x9b1m, status 200, answer '\x1b]0;x\x07']")
    assert error_text(error) == str(error)
    long = BadAnswer("x" * 10**6, status=200).at("/getSeries", {"Collection": "y" * 10**6})
    assert len(error_text(long)) < 2500


def test_a_cause_that_cannot_be_shown_is_forgotten() -> None:
    error = ArchiveError("what")
    error.__cause__ = ValueError("two\nlines")
    assert error.without([]).__cause__ is not None
    error.__cause__.__cause__ = KeyError("\x1b[2J")  # quoted by its own class
    assert error.without([]).__cause__.__cause__ is not None  # type: ignore[union-attr]
    error.__cause__.__cause__ = ValueError("\x1b[2J")
    assert error.without([]).__cause__.__cause__ is None  # type: ignore[union-attr]


# --- logs and tables


def test_a_message_of_the_log_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    logger("nbia_pipeline.of_this_test").warning("of %s: %d", "\x1b[31m\nERROR forged", 7)
    assert caplog.messages == [r"of \x1b[31m\nERROR forged: 7"]


def test_a_table_keeps_its_lines_and_its_width() -> None:
    table = table_text([["name", "n"], ["a\nb\x1b[0m", "1"], ["x" * 10**6, "2"]], total=False)
    assert [len(line) for line in table.split("\n")] == [103] * 4
    assert r"a\nb\x1b[0m" in table


# --- nobody goes around


def calls(*names: str) -> set[str]:
    """Return the modules with a call whose text, as it is written, begins with one of `names`."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    }


def test_there_is_one_way_to_the_terminal_to_the_log_and_to_tables() -> None:
    # The embedded archive prints its own address. The options decide where all messages go, and charset.py silences
    # pydicom's: neither sends any.
    assert calls("print") == {"cli/home.py", "embedded/__main__.py"}
    assert {m for m in calls("logging.getLogger") if not m.startswith("embedded/")} == {
        "cli/options.py",
        "headers/parse/charset.py",
        "text.py",
    }
    assert calls("dg.TableRecord", "dg.MetadataValue.table") == {"defs/metadata.py"}
    assert calls("dg.MetadataValue.md") == {"defs/metadata.py", "defs/checks/check.py", "defs/assets/images.py"}
    assert calls("dg.MetadataValue.url") == set()


def test_what_is_logged_to_dagster_is_shown() -> None:
    levels = {f"{log}.{level}" for log in ("context.log", "log") for level in ("info", "warning", "error")}
    for path in (ROOT / "defs").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in levels
                and isinstance(node.args[0], ast.JoinedStr)
            ):
                pytest.fail(f"{path.name}, line {node.lineno}: wrap it in shown()")


def test_loggers_of_other_kinds_are_not_touched() -> None:
    assert not any(f for f in logging.getLogger().filters)
