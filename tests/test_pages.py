"""README, the pages beside it and those of docs/: their Python runs as it stands, their links lead somewhere, and the
documentation site has them all."""

import doctest
import functools
import itertools
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import yaml

import lstm_fused

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NAVIGATION = DOCS / "navigation.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(set(DOCS.rglob("*.md")) - {NAVIGATION})]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^(```+|~~~+).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("module", "count"), [(lstm_fused.lstm, 6), (lstm_fused.cell, 4)], ids=["layer", "cell"])
def test_examples_in_docstrings_run(module, count):
    result = doctest.testmod(module)
    assert result.attempted >= count
    assert result.failed == 0


@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON.search(read(page))], ids=lambda page: page.name)
def test_its_python_runs(page, tmp_path, monkeypatch):
    """A page's blocks one after another, each with what those before it have left."""
    monkeypatch.chdir(tmp_path)
    # inductor's own compiler takes a minute, and what it is given is what is ours.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    text = read(page)
    names = {"__name__": "page"}
    for block in PYTHON.finditer(text):
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], page, "exec"), names)  # a traceback then shows the page's line


# Links


@functools.cache
def anchors(page: Path) -> set[str]:
    """Those that forges, and the site, make of a page's headings."""
    made: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", FENCED.sub("", read(page)), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        made.add(next(n for k in range(99) if (n := f"{name}-{k}" if k else name) not in made))
    return made


def dead_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(FENCED.sub("", read(page))):
        if re.match(r"[a-z]+:", link):
            continue  # on the web, which tests do not ask
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_its_links_lead_somewhere(page):
    assert list(dead_links(page)) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b` c\n[](#a-b-c) [](#b) [](page.md#a-b-c) [](x.md) [](page.md#x)\n```\n[](y.md)\n```\n")
    assert list(dead_links(page)) == ["#b", "x.md", "page.md#x"]


# The site


def test_the_site_has_every_page():
    trees = re.findall(r"^```{toctree}\n(.*?)^```$", read(NAVIGATION), re.MULTILINE | re.DOTALL)
    named = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    sources = [*PAGES, *RESULTS, *DOCS.rglob("*.ipynb")]
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in sources} - {"README"}
    assert sorted(named) == sorted({"Overview <self>", *pages})


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """As `make docs` builds it."""
    command = re.search(r"^docs:.*\n\t\$\(BIN\)/(.*)$", read(ROOT / "Makefile"), re.MULTILINE)[1]
    words = command.replace("build/site_cache", str(tmp_path / "cache")).replace("build/site", str(tmp_path / "site"))
    assert words.split()[0] == "python"
    result = subprocess.run([sys.executable, *words.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "recurrent_dropout" in read(tmp_path / "site" / "docs" / "api" / "lstm_fused.html")


# Facts that pages repeat


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each ``lstm-fused`` command that a page shows in a block."""
    for block in FENCED.finditer(read(page)):
        for line in re.findall(r"^(?:\$ )?lstm-fused (.*)$", block[0], re.MULTILINE):
            yield re.split(r" +# | [|>] ", line)[0].split()


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda page: page.stem)
def test_commands_that_pages_show_have_what_they_name(page):
    """The verb, the config, and the arguments of its task and its data. (What they do is tested in tests/lightning.)"""
    from lightning_modules.cli import MODULES
    from lightning_modules.injection import parameters_of

    for words in commands(page):
        assert words[0] in MODULES, words
        names = [name for flag, name in itertools.pairwise(words) if flag == "-c" and not name.startswith("runs/")]
        configs = [yaml.safe_load(read(ROOT / "lightning_modules" / "configs" / f"{name}.yaml")) for name in names]
        for part in ("model", "data"):
            classes = [pydoc.locate(config[part]["class_path"]) for config in configs if part in config]
            known = {name for cls in classes for name in parameters_of(cls)}
            given = {word.split(".")[1].split("=")[0] for word in words if word.startswith(f"--{part}.")}
            assert not classes or given <= known, words


def test_the_table_of_environment_variables_is_complete():
    """What the code reads or sets is in the table, and nothing else is."""
    first_column = re.findall(r"^\| (`.*?) \|", read(DOCS / "environment.md"), re.MULTILINE)
    table = set(re.findall(r"`([A-Z][A-Z0-9_]+)\*?`", " ".join(first_column)))
    folders = ("src", "lightning_modules", "build_backend", "benchmarks", "examples", "csrc", "tests")
    kinds = ("*.py", "*.cpp", "*.h", "*.cu")
    files = [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)]
    used: set[str] = set()
    for path in [ROOT / "setup.py", *(path for path in files if not path.name.startswith("test_"))]:
        for line in read(path).splitlines():
            if re.search(r"environ|getenv|variables\.get", line) and "environ |" not in line:
                used |= set(re.findall(r'"([A-Z][A-Z0-9_]+)"(?!:)', line))
    assert table == used - {"PATH", "PYTHONPATH"}
