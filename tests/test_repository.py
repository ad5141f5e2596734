"""What stands beside the code: the workflow, the version, the changelog, the audit."""

import re
from pathlib import Path

import audit
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_workflow_calls_targets_that_are_there():
    """And nothing else, so that what it does can be tried anywhere."""
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            run = [step["run"] for step in job["steps"] if "run" in step]
            assert all(command.startswith("make ") for command in run), path
            named = {command.split()[1] for command in run if "${{" not in command}
            for matrix in job.get("strategy", {}).get("matrix", {}).values():
                named |= set(re.findall(r'"([a-z-]+)"', str(matrix)))
            assert named <= targets, path


def test_every_target_is_phony_and_in_the_help():
    """But those that make a file; the help shows what is for every day."""
    phony = set(re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)[1].split())
    assert set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE)) == phony


# Modules whose tests have the name of what they test.
NAMED_DIFFERENTLY = {
    "autograd": "gradcheck",
    "base": "nn_module",
    "cell": "lstm_cell",
    "dispatch": "ops",
    "fake": "fake_tensors",
}


def test_every_module_has_its_tests():
    """The tests of src/lstm_fused/NAME.py and _NAME.py are in tests/test_NAME.py, or in the file named above."""
    modules = {path.stem.removeprefix("_") for path in (ROOT / "src" / "lstm_fused").glob("*.py")} - {"_init__"}
    modules = {NAMED_DIFFERENTLY.get(name, name) for name in modules}
    assert modules <= {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}


def test_the_files_that_contributing_names_exist():
    """Also those named without their folder, as the second of several in one folder are."""
    names = {path.name for path in ROOT.rglob("*") if "build" not in path.parts[len(ROOT.parts) :][:1]}
    for name in re.findall(r"`([\w./-]+\.(?:py|h|cpp|cu|md|yml|yaml)|[\w-]+/[\w./-]*)`", read("CONTRIBUTING.md")):
        made = "NAME" in name or name.startswith(("benchmarks/results/gpu", "build/"))
        assert made or (ROOT / name).exists() or Path(name).name in names, name


def test_the_version_has_one_source():
    version = re.search(r'^version = "(.*)"$', read("pyproject.toml"), re.MULTILINE)[1]
    headings = re.findall(r"^## \[(.*?)\](?: - \d{4}-\d\d-\d\d)?$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]
    for name in ("CITATION.cff", "docs/conf.py", "README.md", "setup.py"):
        assert f'"{version}"' not in read(name), name


def test_the_changelog_has_the_usual_sections():
    sections = set(re.findall(r"^### (.*)$", read("CHANGELOG.md"), re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


HOLE = {"id": "CVE-1", "fix_versions": ["2"], "aliases": [], "description": ""}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages checked, 0 known holes"),
        (
            [{"name": "a", "version": "1", "vulns": [HOLE]}, {"name": "b", "skip_reason": "not found"}],
            1,
            "1 packages checked, 1 known holes; not checked, because the index does not answer for them: b\n"
            "a 1: CVE-1, mended in 2",
        ),
        (
            [{"name": "b", "skip_reason": "not found"}],
            2,
            "nothing was checked: the index answers for none of the 1 packages",
        ),
    ],
    ids=["sound", "a hole", "no answer"],
)
def test_an_audit_says_what_was_checked(packages, code, said):
    assert audit.verdict({"dependencies": packages}) == (code, said)
