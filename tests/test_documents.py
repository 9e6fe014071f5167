"""Documents that can go stale: generated tables, commands and code that they show, examples of files, links."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path

import click
import pytest

from docs_tables import DOCS, DOCUMENTS
from edgefleet.cli import SUBCOMMANDS, app
from edgefleet.package.manifest import TensorSpec
from edgefleet_agent import settings
from edgefleet_converters.intake.input_spec import read_input_spec
from edgefleet_converters.packaging import Request

ROOT = Path(__file__).parent.parent
FOLDERS = ("sdk", "agent", "converters", "device_profiles", "tests", "fleet_demo", "docs", "benchmarks")


READMES = (ROOT / folder / "README.md" for folder in FOLDERS)
HAND_WRITTEN = tuple(
    sorted({path for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *READMES) if path.name not in DOCUMENTS})
)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_documents_are_current(name: str) -> None:
    assert (DOCS / name).read_text() == DOCUMENTS[name]()


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


def commands(document: Path) -> list[list[str]]:
    lines = "".join(blocks(document, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("edgefleet ")]


def test_the_readme_shows_every_subcommand_but_the_demo() -> None:
    assert {words[0] for words in commands(ROOT / "README.md")} == set(SUBCOMMANDS) - {"demo"}


@pytest.mark.parametrize("words", [words for document in HAND_WRITTEN for words in commands(document)], ids=" ".join)
def test_the_commands_are_what_the_parser_takes(words: list[str]) -> None:
    command: click.Command = app
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None
        command, words = found, words[1:]
    context = command.make_context(str(command.name), list(words), resilient_parsing=False)
    assert context.params


def test_the_example_of_an_input_spec_is_valid(tmp_path: Path) -> None:
    (example,) = blocks(DOCS / "input-spec.md", "toml")
    (tmp_path / "spec.toml").write_text(example)
    image = TensorSpec(name="image", dtype="float32", shape=(1, 3, 224, 224))
    spec = read_input_spec(tmp_path / "spec.toml", (image,))
    assert spec.labels == ("cat", "dog")
    assert spec.inputs["image"].span == pytest.approx((-0.485 / 0.229, (1 - 0.406) / 0.225))


def test_the_example_of_packaging_from_python_fits_the_code() -> None:
    (example,) = blocks(DOCS / "packaging.md", "python")
    nodes = list(ast.walk(ast.parse(example)))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
    (request,) = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == Request.__name__]
    inspect.signature(Request).bind(**{str(given.arg): None for given in request.keywords})


@pytest.mark.parametrize("document", HAND_WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        place, _, heading = target.partition("#")
        if "://" in place:
            continue
        file = document.parent / place
        assert file.exists(), target
        assert not heading or heading in headings(file), target


def headings(document: Path) -> list[str]:
    """As links name them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_shipped_settings_file_is_valid() -> None:
    loaded = settings.load(ROOT / "agent" / "edgefleet-agent.toml")
    assert (loaded.identity.name, loaded.telemetry.window_s) == ("identity", 10)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_says_what_lives_there(folder: str) -> None:
    lines = [line for line in (ROOT / folder / "README.md").read_text().splitlines() if line]
    assert lines[0] == f"# {folder}"
    assert len(lines) == 2


@pytest.mark.parametrize(
    "file", [ROOT / "constraints.txt", *(ROOT / "constraints").glob("*.txt")], ids=lambda path: path.name
)
def test_constraints_are_plain_pins(file: Path) -> None:
    for line in file.read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.+!\-]+", line), line
