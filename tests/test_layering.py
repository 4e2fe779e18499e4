"""Who may use whom. The tables are the rule; the tests hold the source against them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# ---- The rule -----------------------------------------------------------------------------------

# C file (X.c and X.h, X.def): what it sits on. It may include that, and all below that.
C_SITS_ON = {
    "layout": "",
    "shmlock": "",
    "points": "",
    "rules": "",
    "counters": "",
    "futex": "layout",
    "proc": "",
    "arena": "layout shmlock",
    "debug": "arena futex points rules",
    "task": "debug proc counters",
    "wait": "task",
    "dlock": "wait",
    "name": "arena",
    "chain": "arena",
    "dcache": "chain name",
    "stock": "dcache dlock",
    "dirblock": "stock",
    "inode": "dcache",
    "dalloc": "dirblock inode",
    "recover": "dirblock inode",
    "walk": "dalloc",
    "dentry_lock": "dalloc",
    "namei": "walk dentry_lock recover",
    "namelock": "walk dentry_lock recover",
    "listing": "walk",
    "check": "walk recover",
    "snapshot": "walk recover",
    "bench": "namei namelock listing",
    "pylock": "shmlock",
    "api": "namei namelock listing check snapshot bench",
}

# Against that order, each with its reason. Only a .c file may: headers keep the order.
C_EXCEPTIONS = {
    ("arena.c", "debug.h"): "SHM_BUG_ON",
    ("task.c", "recover.h"): "taking a dead task's slot recovers it first",
    ("wait.c", "recover.h"): "a wait ends when the owner is found dead",
    ("stock.c", "dirblock.h"): "a name that is reused leaves its directory's list",
}

# Module of shmlock (cli and stress: the whole package): what it sits on, as above.
PYTHON_SITS_ON = {
    "errors": "",
    "stats": "",
    "_lib": "errors",
    "_attachments": "_lib",
    "segment": "_lib",
    "listing": "_lib stats",
    "locks": "_lib stats",
    "namespace": "listing",
    "arena": "_attachments locks namespace",
    "attach": "arena segment",
    "debug": "arena",
    "bench": "arena",
    "inspect": "attach",
    "__init__": "attach",
    "stress": "__init__ bench debug inspect",
    "cli": "__init__ inspect segment stress",
    "__main__": "cli",
}

# Against that order, each with its reason (imports for annotations only need none).
PYTHON_EXCEPTIONS: dict[tuple[str, str], str] = {}

# What only the named files may have: pattern over the code (no comments, no strings), and files.
C_ONLY = {
    "futex system calls": (r"\bSYS_futex\w*", "futex.c"),
    "writing a lock word": (
        r"\batomic_(?!load)\w+\s*\(\s*"
        r"(&[^,;]*\b(d_flags|i_flags|i_rename|i_lock|rename_lock|s_vfs_rename_mutex)\b|flags_of\()",
        # After dlock: makers of cells and inodes that nobody else can reach yet.
        "dlock.c dlock.h arena.c dalloc.c inode.h stock.c",
    ),
    "a task as owner in a lock word": (r"\btask->owner\b", "dlock.h stock.c task.c"),
    "freeing a dead task's lock": (
        r"\bdlock_free_dead\s*\(",
        "dlock.c dlock.h recover.c stock.c",
    ),
    "liveness mutexes": (
        r"pthread_mutex_\w+\(&[\w.>-]*\blive\b",
        "arena.c task.c recover.c",
    ),
    "Python": (r"\bPy[A-Z_]\w+|<Python\.h>", "pylock.c"),
    # setuptools defines NDEBUG as it likes; SHM_BUG_ON goes by the build.
    "assert()": (r"\bassert\s*\(|<assert\.h>", ""),
    # Ours are between processes.
    "private futexes": (r"\bFUTEX\w*_PRIVATE\w*", ""),
}

# Imports that only the named files, or folders, may have.
PYTHON_ONLY = {
    "shmlock._native": "shmlock/_lib.py tests/test_packaging.py",
    "shmlock._native_debug": "shmlock/_lib.py tests/test_packaging.py",
    "posix_ipc": "shmlock/segment.py",
    "rich": "shmlock/cli/ stress/",
    "cffi": "csrc/build_ffi.py tests/test_packaging.py",
    "multiprocessing": "stress/ tests/",
}

# ---- Reports ------------------------------------------------------------------------------------


def none_of(wrong: list[str], rule: str) -> None:
    """Fail with one line for each breach."""
    if wrong:
        pytest.fail("\n  ".join([f"{rule}:", *wrong]), pytrace=False)


def same(there: set[str], listed: set[str]) -> None:
    """Fail with what lacks a line in the table, and which lines lack a file."""
    none_of(
        [f"{name}: has no line in the table" for name in sorted(there - listed)]
        + [
            f"{name}: is in the table, but there is no such file" for name in sorted(listed - there)
        ],
        "table and files differ",
    )


# ---- C ------------------------------------------------------------------------------------------

C_FILES = sorted(path for kind in ("*.c", "*.h", "*.def") for path in (ROOT / "csrc").glob(kind))
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
NOT_CODE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def below(table: dict[str, str], name: str) -> set[str]:
    """All that a name sits on, directly or not."""
    seen: set[str] = set()
    todo = table[name].split()
    while todo:
        next_one = todo.pop()
        if next_one not in seen:
            seen.add(next_one)
            todo += table[next_one].split()
    return seen


def blanked(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


@pytest.mark.parametrize("table", [C_SITS_ON, PYTHON_SITS_ON], ids=["C", "Python"])
def test_the_table_has_no_circle(table: dict[str, str]) -> None:
    """The tables are orders: nothing sits on itself."""
    assert [name for name in table if name in below(table, name)] == []


def test_each_c_file_has_its_line() -> None:
    """A new C file says where it belongs, and a line goes with its file."""
    same({path.stem for path in C_FILES}, set(C_SITS_ON))


def test_c_includes_go_down() -> None:
    """A C file includes its own header and what lies below it."""
    wrong = []
    used = set()
    for path in C_FILES:
        allowed = below(C_SITS_ON, path.stem) | {path.stem} if path.stem in C_SITS_ON else set()
        for name in INCLUDE.findall(path.read_text()):
            if (path.name, name) in C_EXCEPTIONS:
                used.add((path.name, name))
            elif Path(name).stem not in allowed:
                wrong.append(f"csrc/{path.name} includes {name}")
    none_of(wrong, "against the order, see C_SITS_ON")
    assert used == set(C_EXCEPTIONS), "an exception that nobody needs any more"


@pytest.mark.parametrize("what", C_ONLY)
def test_only_one_c_file_has(what: str) -> None:
    """What is dangerous stands in one place."""
    pattern, files = C_ONLY[what]
    owners = files.split()
    wrong = []
    found = set()
    for path in C_FILES:
        if path.name in {"layout.h", "shmlock.h"}:  # they define the words
            continue
        code = NOT_CODE.sub(blanked, path.read_text())
        for match in re.finditer(pattern, code):
            found.add(path.name)
            if path.name not in owners:
                line = code.count("\n", 0, match.start()) + 1
                wrong.append(f"csrc/{path.name}:{line}: {match[0]}")
    none_of(wrong, f"{what}: only {' and '.join(owners) or 'nobody'} may")
    assert found or not owners, "the pattern finds nothing any more, not even where it may"


# ---- Python -------------------------------------------------------------------------------------


def python_files() -> list[Path]:
    folders = ("shmlock", "stress", "csrc", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """Full name of the module in a file, as installed: stress/ is shmlock.stress."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "stress":
        parts.insert(0, "shmlock")
    return ".".join(parts)


def for_annotations_only(tree: ast.Module) -> set[ast.AST]:
    """All nodes under an `if TYPE_CHECKING:`."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and full name of each import of a file, wherever in it; names imported from too."""
    found = []
    package = module_of(path).rpartition(".")[0].split(".")
    tree = ast.parse(path.read_text())
    skipped = for_annotations_only(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def component(module: str) -> str | None:
    """The line of the table that a name inside shmlock belongs to."""
    parts = module.split(".")
    if parts[0] != "shmlock":
        return None
    known = set(PYTHON_SITS_ON) | {path.stem for path in (ROOT / "shmlock").glob("*.py*")}
    return parts[1] if len(parts) > 1 and parts[1] in known else "__init__"


def test_each_module_has_its_line() -> None:
    """A new module says where it belongs, and a line goes with its module."""
    modules = {path.stem for path in (ROOT / "shmlock").glob("*.py")}
    packages = {path.parent.name for path in (ROOT / "shmlock").glob("*/__init__.py")}
    same(modules | packages | {"stress"}, set(PYTHON_SITS_ON))


def test_python_imports_go_down() -> None:
    """A module imports what lies below it."""
    wrong = []
    used = set()
    for path in python_files():
        mine = component(module_of(path))
        if mine is None or mine not in PYTHON_SITS_ON:
            continue
        allowed = below(PYTHON_SITS_ON, mine) | {mine}
        for line, name in imports(path):
            theirs = component(name)
            if theirs is None or theirs in allowed or theirs.startswith("_native"):
                continue
            if (mine, theirs) in PYTHON_EXCEPTIONS:
                used.add((mine, theirs))
            else:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    none_of(wrong, "against the order, see PYTHON_SITS_ON")
    assert used == set(PYTHON_EXCEPTIONS), "an exception that nobody needs any more"


def test_stress_uses_the_public_interface() -> None:
    """What the scenarios do, any user could do."""
    private = set(PYTHON_SITS_ON) - {"__init__", "bench", "debug", "inspect", "stress"}
    private |= {"_native", "_native_debug"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in python_files()
        if path.is_relative_to(ROOT / "stress")
        for line, name in imports(path)
        if component(name) in private
    ]
    none_of(wrong, "not public")


@pytest.mark.parametrize("module", PYTHON_ONLY)
def test_only_one_python_file_imports(module: str) -> None:
    """The native modules, and each third-party package, are met in one place."""
    owners = PYTHON_ONLY[module].split()
    wrong = []
    found = False
    for path in python_files():
        where = str(path.relative_to(ROOT))
        for line, name in imports(path):
            if name != module and not name.startswith(f"{module}."):
                continue
            found = True
            if not any(where == owner or where.startswith(owner) for owner in owners):
                wrong.append(f"{where}:{line} imports {name}")
    none_of(wrong, f"only {' and '.join(owners)} may")
    assert found, "nobody imports it any more"
