"""The pages agree with the source: lists are complete, links lead somewhere, sessions run.

What a page says in prose is for readers to judge. Here is what a machine can judge.
"""

import doctest
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

import shmlock
from shmlock import debug

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def section(text: str, heading: str) -> str:
    """The part of a page under a heading of the second level."""
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Cells of the lines of a section's tables, headings left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [
        row
        for row, below in zip(table, [*table[1:], [""]], strict=True)
        if not set("".join(row)) <= set("-:| ") and not re.fullmatch(r":?-+:?(\|:?-+:?)*", below[0])
    ]


def in_def(name: str) -> list[str]:
    """The names that a csrc/*.def file gives, in its order."""
    found = re.findall(
        r'^[A-Z]+\(\w+, "([^"]+)"\)', (ROOT / "csrc" / name).read_text(), re.MULTILINE
    )
    assert found
    return found


def codes(cells: list[str]) -> list[str]:
    return [code for cell in cells for code in CODE.findall(cell)]


# ---- Lists that claim to be complete ------------------------------------------------------------


def test_the_rules_that_can_be_switched_off() -> None:
    """docs/locking.md marks exactly the rules of rules.def, development.md lists them."""
    rules = in_def("rules.def")
    marked = [
        found[1]
        for row in rows(section(page("locking.md"), "Rules"))
        if (found := re.match(r"([\w-]+)\*", row[0]))
    ]
    assert sorted(marked) == sorted(rules)
    paragraph = re.search(
        r"^\*\*Rules that can be switched off\*\*.*?^$",
        page("development.md"),
        re.DOTALL | re.MULTILINE,
    )
    assert paragraph
    listed = re.sub(r"\s+", " ", paragraph[0]).partition("): ")[2].partition(". ")[0]
    assert CODE.findall(listed) == rules


def test_each_rule_names_a_place_and_a_test_that_exist() -> None:
    """Functions of the rules' table are in csrc/, tests in tests/."""
    source = "".join(path.read_text() for path in (ROOT / "csrc").glob("*.[ch]"))
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    lines = rows(section(page("locking.md"), "Rules"))
    assert len(lines) >= len(in_def("rules.def"))
    for rule, _, where, shown_by, _ in lines:
        assert codes([where]), rule
        for function in codes([where]):
            assert re.search(rf"\b{function}\(", source), f"{rule}: no {function}() in csrc/"
        for test in codes([shown_by]):
            assert re.search(rf"\bdef {test}\b", tests), f"{rule}: no {test} in tests/"


def test_the_invariants() -> None:
    """docs/arena.md has each invariant of check.c, in its words."""
    array = re.search(
        r"invariants\[\] = \{(.*?)\};", (ROOT / "csrc/check.c").read_text(), re.DOTALL
    )
    assert array
    checked = {int(n): text for n, text in re.findall(r'\[(\d+)\] = "([^"]+)"', array[1])}
    listed = re.findall(
        r"^- \*\*I(\d+)\*\* (.+?)\. \\$", section(page("arena.md"), "Invariants"), re.MULTILINE
    )
    assert {int(n): text for n, text in listed} == checked
    assert [int(n) for n, _ in listed] == sorted(checked)


def test_the_counters() -> None:
    """docs/development.md has each counter of counters.def."""
    listed = codes([row[0] for row in rows(section(page("development.md"), "Counters"))])
    assert sorted(listed) == sorted(in_def("counters.def"))


def test_the_pause_points() -> None:
    """docs/development.md has each pause point of points.def."""
    listed = codes([row[1] for row in rows(section(page("development.md"), "The debug build"))])
    assert sorted(listed) == sorted(in_def("points.def"))


def test_the_def_files_are_what_is_compiled() -> None:
    """Else the comparisons above would compare with old names."""
    assert list(debug.points()) == in_def("points.def")
    assert list(debug.rules()) == in_def("rules.def")


def test_the_sizes() -> None:
    """The table of docs/arena.md says what an arena needs, and the default is the default."""
    from shmlock._lib import release_build as build

    lines = rows(section(page("arena.md"), "Sizes"))
    assert len(lines) > 3
    for dentries, tasks, size, _ in lines:
        wanted = [int(re.sub(r"[*,]", "", cell)) for cell in (dentries, tasks)]
        params = build.ffi.new("struct shmlock_params *", [*wanted, 0])
        assert build.lib.shmlock_size(params) == int(re.sub(r"[*,]", "", size))
    with shmlock.temporary() as arena:
        default = next(row for row in lines if "default" in row[3])
        assert f"**{arena.stats().size:,}**" == default[2]


def test_the_layout() -> None:
    """Sizes and the version in docs/arena.md are those of the build."""
    from shmlock._lib import release_build as build

    limits = build.ffi.new("struct shmlock_limits *")
    build.lib.shmlock_limits(limits)
    text = page("arena.md")
    assert f"`tasks` x {limits.slot_size}" in text
    assert f"x {limits.cell_size}, padded" in text
    assert f"{limits.header_size} bytes, padded" in text
    assert f"`names[{limits.names_per_task}]`" in text
    assert f"`LAYOUT_VERSION` (now {shmlock.LAYOUT_VERSION})" in text
    assert f"LAYOUT_VERSION {shmlock.LAYOUT_VERSION}" in (ROOT / "CHANGELOG.md").read_text()


# ---- Links --------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """As the usual renderers make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def prose(text: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text)


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_relative_links_lead_somewhere(path: Path) -> None:
    """To a file of the checkout; with an anchor, to a heading of that page."""
    for link in LINK.findall(prose(path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_relative_to(ROOT.resolve()), link
        assert target.exists(), f"{path.name}: {link}"
        if fragment:
            headings = HEADING.findall(prose(target.read_text()))
            assert fragment in [anchor(heading) for heading in headings], f"{path.name}: {link}"


# ---- Sessions -----------------------------------------------------------------------------------


def sessions() -> Iterator[tuple[Path, int, str]]:
    for path in PAGES:
        text = path.read_text()
        for found in FENCE.finditer(text):
            if found[1] == "pycon":
                yield path, text.count("\n", 0, found.start()) + 1, found[2]


SESSIONS = list(sessions())


def test_the_readme_has_a_session() -> None:
    """Else the next test would be about nothing."""
    assert "README.md" in [path.name for path, _, _ in SESSIONS]


@pytest.mark.parametrize(
    ("path", "line", "text"),
    SESSIONS,
    ids=[f"{path.name}:{line}" for path, line, _ in SESSIONS],
)
def test_sessions_print_what_they_say(path: Path, line: int, text: str) -> None:
    """Every block marked pycon, run by doctest."""
    test = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), line)
    assert test.examples
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.failed == 0, "".join(report)


# ---- Paths of one machine -----------------------------------------------------------------------

# Folders that are the same everywhere may be named.
HOME = re.compile(r"(?<![\w.:/~-])/(?:home|root|work|Users|opt|mnt|srv)/[\w.-]+")


def tracked() -> list[Path]:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.split("\0") if name]


def test_no_paths_of_one_machine() -> None:
    """No tracked file names a folder that only its author's machine has."""
    wrong = []
    checkout = str(ROOT.resolve())
    for path in tracked():
        if not path.is_file() or path == Path(__file__):
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found = HOME.search(line)
            if found or (len(checkout) > len(os.sep) + 3 and checkout + os.sep in line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert wrong == []
