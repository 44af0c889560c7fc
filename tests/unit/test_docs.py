"""The documentation: links lead somewhere, commands are what they say, generated parts are what the code says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts import docspage
from tests.documents import (
    ALL_BLOCKS,
    CI,
    DOM0,
    IN_DOM0,
    PAGES,
    ROOT,
    RUNS_BESIDE,
    RUNS_HERE,
    Block,
    anchors,
    links,
    prose,
)
from unplugd.config.keys import KEYS, TABLE_LISTS
from unplugd.config.load import Config, load
from unplugd.ctl.cli import parser as unplugctl
from unplugd.http.metrics import CATALOGUE
from unplugd.sinks.records import Event

DOCS = ROOT / "docs"
SCRIPTS = sorted((ROOT / "scripts").glob("*-docs.py"))
SHELL = [block for block in ALL_BLOCKS if block.language in ("sh", "console", "bash")]

HOSTS = {"keepachangelog.com", "semver.org", "xenbits.xen.org", "logs.example.org", "127.0.0.1", "localhost"}
"""Where links and commands may lead."""

PLACES = {
    "etc", "run", "var", "usr", "opt", "dev", "proc", "sys", "home", "root", "mh", "local", "vm",
    "metrics", "-", "api", "domains",
}  # fmt: skip
"""What an absolute path may begin with: a place that every dom0 has, a node of xenstore, or a path of our HTTP."""


def name(page: Path) -> str:
    return page.name


def test_there_are_pages() -> None:
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= {page.name for page in PAGES}
    assert {page.stem for page in DOCS.glob("*.md")} >= {
        "protocol", "configuration", "logging", "metrics", "api", "dependencies", "architecture",
    }  # fmt: skip


# --- generated parts


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_generated_parts_are_what_the_code_says(script: Path) -> None:
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_part_is_put_between_its_markers() -> None:
    page = "a\n<!-- generated: x -->\nold\n<!-- end: x -->\nb\n"
    assert docspage.fill(page, {"x": "new\n\n"}) == "a\n<!-- generated: x -->\nnew\n<!-- end: x -->\nb\n"


@pytest.mark.parametrize(
    ("page", "parts"),
    [
        ("nothing\n", {"x": "new"}),
        ("<!-- generated: x -->\n<!-- end: x -->\n", {}),
        ("<!-- generated: x -->\n", {"x": "new"}),
        ("<!-- generated: x -->\n<!-- end: x -->\n<!-- end: x -->\n", {"x": "new"}),
    ],
)
def test_markers_and_parts_are_the_same(page: str, parts: dict[str, str]) -> None:
    with pytest.raises(docspage.PageError):
        docspage.fill(page, parts)


def test_a_table_keeps_its_columns() -> None:
    assert docspage.table(("a", "b"), [("1|2", "3")]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |\n"


@pytest.mark.parametrize("key", [*KEYS, *TABLE_LISTS, "products"])
def test_every_key_is_documented_and_in_the_example(key: str) -> None:
    headings = re.findall(r"^### (.*)$", (DOCS / "configuration.md").read_text(), re.MULTILINE)
    assert f"`{key}`" in ", ".join(headings).split(", ")
    section, _, last = key.rpartition(".")
    example = (ROOT / "config" / "unplugd.toml").read_text()
    of_section = example.partition(f"\n[{section}]\n")[2].partition("\n\n\n")[0] if section else example
    forms = (f"\n#{last} = ", f"\n#: [[{key}]]\n", f"\n[{key}]\n")
    assert any(form in f"\n{of_section}\n" for form in forms)


def test_every_kind_of_record_is_documented_once() -> None:
    text = (DOCS / "logging.md").read_text()
    for event in Event:
        assert text.count(f"| `{event.name}` | `{event.message_id}` |") == 1
    assert len(re.findall(r"^\| `[A-Z_]+` \| `[0-9a-f]{32}` \|", text, re.MULTILINE)) == len(Event)


def test_every_metric_that_pages_name_exists() -> None:
    known = {metric.name for metric in CATALOGUE}
    known |= set(re.findall(r"\bunplugd_\w+", (ROOT / "clients" / "unplugd-client.h").read_text()))  # its functions
    role = ROOT / "config" / "ansible" / "roles" / "unplugd" / "meta" / "argument_specs.yml"
    known |= set(re.findall(r"^ +(unplugd_\w+):$", role.read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"\bunplugd_[a-z_]*[a-z]\b", page.read_text()))
        assert named <= known, page.name


# --- what pages say about the project


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_names_a_strange_place(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"https?://([^/\s:)\"]+)", text)) <= HOSTS
    without_urls = re.sub(r"https?://\S+", "", text)
    assert set(re.findall(r"(?<![\w.)>}*\]/-])/([A-Za-z-][\w-]*)(?=/|\b)", without_urls)) <= PLACES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`((?:daemon|docs|scripts|systemd|config|tests|benchmarks)/[\w./-]*[\w/])`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_page_of_docs_can_be_found_from_the_readme() -> None:
    assert "docs/README.md" in links(ROOT / "README.md")
    targets = {target.partition("#")[0] for target in links(DOCS / "README.md")}
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= targets


def test_every_runtime_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (DOCS / "dependencies.md").read_text().partition("<!-- dependencies -->\n")[2].partition("\n\n")[0]
    needed = [re.split(r"[<>=]", line)[0] for line in project["dependencies"]]
    named = re.findall(r"^\| `([a-z0-9-]+)`", table, re.MULTILINE)
    assert sorted(named) == sorted(needed)


def test_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for names in re.findall(r"^include (.*)$", makefile, re.MULTILINE):
        makefile += "".join((ROOT / file).read_text() for file in names.split())
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)(?:`|$)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert {target for target in targets if f"| `make {target}` |" not in contributing} <= {"help", "setup"}


def test_changes_are_in_order() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first, *_ = re.findall(r"^## \[(.+?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[0] == version


def test_prose_is_plain() -> None:
    boast = re.compile(r"\b(seamless|powerful|blazing|robust|cutting-edge|simply|easily)\w*", re.IGNORECASE)
    assert [(page.name, found) for page in PAGES for found in boast.findall(prose(page))] == []


# --- commands


@pytest.mark.parametrize("block", SHELL, ids=lambda block: f"{block.page}:{block.text.splitlines()[0]}")
def test_every_command_says_where_it_runs(block: Block) -> None:
    assert block.note in (RUNS_HERE, RUNS_BESIDE, IN_DOM0, CI) or block.note.startswith(DOM0)


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.note == RUNS_HERE], ids=str)
def test_commands_that_run_in_the_checkout(block: Block) -> None:
    """Run with this interpreter's directory in place of .venv/bin; the output stands below it on the page."""
    bin_directory = Path(sys.executable).parent
    commands = block.text.replace(".venv/bin", str(bin_directory))
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = [other for other in ALL_BLOCKS if other.page == block.page]
    after = shown[shown.index(block) + 1]
    assert done.stdout == after.text


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.note == CI], ids=str)
def test_commands_that_ci_runs(block: Block) -> None:
    stages = re.findall(r"^stage \d+ (.*?)(?: \|\|.*)?$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert set(block.text.splitlines()) <= set(stages)


@pytest.mark.parametrize("block", [block for block in SHELL if block.note.startswith(DOM0)], ids=str)
def test_commands_for_dom0_name_what_is_there(block: Block) -> None:
    subprocess.run(["bash", "-n", "-c", block.text], timeout=60, check=True)
    for line in block.text.splitlines():
        for word in shlex.split(line):
            if word.startswith(("config/", "systemd/")):
                assert (ROOT / word).is_file(), word
        if line.startswith("sed "):
            _, expression, source, *_ = shlex.split(line)
            old = expression.split(",")[1]
            assert f"\nExecStart={old}\n" in (ROOT / source).read_text()
        if line.startswith("unplugctl "):
            unplugctl().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.language == "toml"], ids=str)
def test_configurations_can_be_used(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_text(block.text)
    assert load(file) != Config()


# --- architecture


def imports(path: Path) -> set[str]:
    return set(re.findall(r"^ *(?:from|import) (unplugd[\w.]*)", path.read_text(), re.MULTILINE))


def test_rooms_import_only_whom_they_may() -> None:
    package = ROOT / "daemon" / "unplugd"
    names = ("errors", "host.ownfiles", "config.load", "config.keys", "sinks.records", "sockets.loop",
             "sockets._fastpath")  # fmt: skip
    allowed = {f"unplugd.{name}" for name in names}
    for room in ("xenstore", "sinks"):
        for path in (package / room).glob("*.py"):
            strange = {module for module in imports(path) - allowed
                       if not module.startswith((f"unplugd.{room}", "unplugd.core"))}  # fmt: skip
            assert not strange, path
    assert [path.name for path in package.rglob("*.py") if "unplugd.service" in imports(path)] == ["cli.py"]
    inside = tuple(f"unplugd.{room}." for room in ("domains", "sockets", "blacklist"))
    for room in ("ctl", "attach"):
        assert [path for path in (package / room).glob("*.py")
                if any(module.startswith(inside) for module in imports(path))] == []  # fmt: skip


def test_every_room_is_in_the_picture() -> None:
    page = (DOCS / "architecture.md").read_text()
    package = ROOT / "daemon" / "unplugd"
    names = {path.name for path in package.glob("*.py")} | {f"{path.name}/" for path in package.glob("[a-z]*/")}
    assert {name for name in names if name not in page} <= {"__init__.py", "__main__.py", "errors.py"}


# --- tests as proofs

TESTS = {
    path.stem: set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    for path in ROOT.glob("tests/**/test_*.py")
}
PROVEN = ("test_hostile", "test_hostile_guests", "test_no_memory", "test_neighbours")
"""Files in which each test is an attack or a failure: none goes without its row in the documentation."""


def test_tests_that_are_named_exist() -> None:
    there = set().union(*TESTS.values())
    for page in PAGES:
        assert set(re.findall(r"`(test_\w+)`", page.read_text())) <= there, page.name


def test_each_attack_and_each_failure_has_its_row() -> None:
    rows = "".join((DOCS / page).read_text() for page in ("security.md", "operations.md"))
    for stem in PROVEN:
        for test in TESTS[stem]:
            assert f"`{test}`" in rows, test
