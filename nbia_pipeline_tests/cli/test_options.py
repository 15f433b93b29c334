"""What all commands have in common: options, help, variables of a file, completion, and one line that is rewritten."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from nbia_pipeline.cli import home
from nbia_pipeline.cli.home import EXIT_CODES, Live
from nbia_pipeline.cli.main import COMMANDS, commands, main
from nbia_pipeline.cli.run import _PROGRESS, summary
from nbia_pipeline.defs.main_job import Outcome
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.progress import Progress
from nbia_pipeline.schema.tables import SERIES

SECRET = "correct horse battery"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory; the process has no variables of ours."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NBIA_")]:
        monkeypatch.delenv(name)
    return tmp_path


# --- help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_the_common_options_and_the_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for word in ("--archive URL|NAME", "--lake PATH|URI", "-q, --quiet", "-v, --verbose", "--json"):
        assert word in told
    for code, meaning in EXIT_CODES:
        assert f"{code} {meaning}" in told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pln"], "there is no command 'pln': did you mean plan? (see `nbia-pipeline --help`)"),
        (["plan", "--jsn"], "--json"),
        (["archive", "--port", "99999"], "Invalid value for '--port': 99999 is not in the range 0<=x<=65535 (see"),
        (["runs"], "give one of --delete-after, --lost, --fail (see `nbia-pipeline runs --help`)"),
    ],
)
def test_wrong_words_are_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert (told.out, told.err.count("\n")) == ("", 1)


# --- variables of a file


def test_a_file_has_variables_that_the_process_does_not_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".env").write_text(f"# ours\nNBIA_LAKE={folder}/of the file\nexport NBIA_API='v3'\n")
    assert main(["plan"]) == 2
    assert "NBIA_API is 'v3': set it to v2 or v4" in capsys.readouterr().err
    monkeypatch.setenv("NBIA_API", "v4")
    assert main(["plan"]) == 2
    assert f"there is no lake in {folder}/of the file (NBIA_LAKE)" in capsys.readouterr().err
    assert main(["plan", "--lake", "given"]) == 2
    assert f"there is no lake in {folder}/given (--lake)" in capsys.readouterr().err
    assert "NBIA_LAKE" not in os.environ, "when the command has ended"


@pytest.mark.parametrize("line", [f"NBIA_PASSWORD {SECRET}", f"NBIA_PASSWORD='{SECRET}", f"= {SECRET}"])
def test_a_wrong_line_is_named_and_not_shown(folder: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".env").write_text(f"NBIA_LAKE=lake\n\n{line}\n")
    assert main(["plan"]) == 2
    told = capsys.readouterr().err
    assert f"line 3 of {folder / '.env'} is not NAME=value" in told
    assert SECRET not in told


def test_a_file_that_is_no_text_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".env").write_bytes(b"A=\xff")
    assert main(["plan"]) == 2
    assert f"cannot read {folder / '.env'} (it is not UTF-8)" in capsys.readouterr().err


# --- completion


def test_commands_and_collections_are_completed(folder: Path) -> None:
    for name in ("Alpha Set", "Alpine", "Beta"):
        Lake("lake").write_table(SERIES, SERIES.schema.empty_table(), name, may_empty=True)

    def completed(*words: str) -> list[str]:
        shell = ShellComplete(commands, {}, "nbia-pipeline", "_NBIA_PIPELINE_COMPLETE")
        return [item.value for item in shell.get_completions([*words[:-1]], words[-1])]

    assert completed("ru") == ["run", "runs"]
    assert completed("run", "Al") == ["Alpha Set", "Alpine"]
    assert completed("plan", "--lake", "none", "Al") == []
    assert completed("verify", "--dam") == ["--damaged"]


# --- what is printed


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_line_of_a_terminal_is_rewritten_and_gone_before_another(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "20")
    live = Live()
    live("A: 1 of 3 series")
    live("A: 2 of 3 series, and more")
    home.say("done")
    live("")
    live("B\x1b[2J")
    live("")
    erase = "\r\x1b[K"
    shown = ["A: 1 of 3 series", "A: 2 of 3 series..."]
    assert terminal.getvalue() == f"{erase}{shown[0]}{erase}{shown[1]}{erase}done\n{erase}B\\x1b[2J{erase}"


def test_a_pipe_gets_a_line_at_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    live = Live()
    live("too early")
    monkeypatch.setattr(home, "LINE_SECONDS", -1.0)
    live = Live()
    live("A: 1 of 3 series")
    live("")
    live("A: 2 of 3 series")
    assert capsys.readouterr().out == "    A: 1 of 3 series\n    A: 2 of 3 series\n"


def test_the_progress_in_the_events_is_told_from_other_lines() -> None:
    progress = Progress("Alpha Set", [], print)
    assert _PROGRESS.fullmatch(f"    {progress.line()}")
    assert not _PROGRESS.fullmatch(f"    b00000, {progress.line()}; no problems")
    assert not _PROGRESS.fullmatch("    Alpha Set: 9 series to fetch (124 files, 3.4 MB), 0 of 9 in the lake (0 B)")


def test_images_of_a_collection_that_is_not_mirrored_are_not_of_zero(tmp_path: Path) -> None:
    outcome = Outcome(collections={"A": Counter(series=5, complete=5), "B": Counter(series=3, complete=1, wanted=3)})
    told = summary(outcome, tmp_path)
    assert "of 0" not in told
    rows = {line.split()[0]: line.split()[5:-3] for line in told.splitlines() if line[:2] in ("A ", "B ", "to")}
    assert rows == {"A": ["5"], "B": ["1", "of", "3"], "total": ["6"]}


def test_a_port_that_is_taken_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for command in ("dev", "archive"):
            assert main([command, "--port", str(port)]) == 1
            assert f"{port} (Address already in use): use another --port\n" in capsys.readouterr().err
