"""The command line: every command in text and as JSON, each user's mistake, and `run` as a parent.

All of it through real processes, ``python -m shmlock …``.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import procs
import shmlock

SHMLOCK = [sys.executable, "-m", "shmlock"]
SHM = Path("/dev/shm")
SMALL: Any = {"dentries": 4096, "tasks": 64}
MIB = 1 << 20

# Commands for `run`: a line on stdout says how far they are.
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
# Reports each signal; ends on SIGTERM only after having been told so on stdin.
STUBBORN = """
import os, signal, sys
names = sys.argv[1:]
for name in names:
    signal.signal(getattr(signal, name), lambda n, f: print(signal.Signals(n).name, flush=True))
print("up", flush=True)
while True:
    try:
        if not os.read(0, 1):
            break
    except InterruptedError:
        pass
sys.exit(7)
"""


# ---- Helpers ------------------------------------------------------------------------------------


def cli(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*SHMLOCK, *words],
        capture_output=True,
        text=True,
        timeout=procs.DEADLINE,
        check=False,
        **options,
    )


def cli_json(*words: str, status: int = 0) -> Any:
    done = cli(*words, "--json")
    assert (done.returncode, done.stderr) == (status, "")
    return json.loads(done.stdout)


def fails(*words: str, status: int = 1, says: str | Sequence[str] = (), **options: Any) -> str:
    """The command fails with one line on stderr, which contains `says`."""
    done = cli(*words, **options)
    assert done.returncode == status, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("shmlock: ")
    for text in [says] if isinstance(says, str) else says:
        assert text in lines[0]
    return lines[0]


@contextlib.contextmanager
def started(*words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command that is killed at the end, if it is still there."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    process = subprocess.Popen([*SHMLOCK, *words], **options)
    procs.started_pids.add(process.pid)
    try:
        yield process
    finally:
        process.kill()
        process.wait(procs.DEADLINE)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def python(code: str, *args: str) -> list[str]:
    return [sys.executable, "-c", code, *args]


def hear(process: subprocess.Popen[str]) -> str:
    """The next line of what the process prints; empty at the end."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def until(condition: Callable[[], Any], what: str) -> Any:
    """Ask again until it is true; the deadline is a guard against hangs."""
    end = time.monotonic() + procs.DEADLINE
    while not (value := condition()):
        if time.monotonic() > end:
            raise procs.Hang(f"waited for: {what}")
        time.sleep(0.005)
    return value


def waits(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cli_json("locks", name)["waiting"]
    return found


def row(text: str, first: str) -> list[str]:
    """The words of the line of a table that starts with a word."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return line.split()


@pytest.fixture
def name(arena: Any) -> str:
    """An arena with a few names: /d/e/f, /d/x, /a."""
    arena.makedirs("/d/e")
    arena.create("/d/e/f")
    arena.create("/d/x")
    arena.create("/a")
    return str(arena.name)


@pytest.fixture
def loose(arena_name: str) -> Iterator[str]:
    """An arena that nobody is attached to; removed at the end."""
    shmlock.create(arena_name, **SMALL).close()
    yield arena_name
    with contextlib.suppress(FileNotFoundError):
        shmlock.unlink(arena_name, force=True)


@pytest.fixture
def unmade(arena_name: str) -> Iterator[str]:
    """A name without an arena; what the test makes is removed."""
    yield arena_name
    with contextlib.suppress(FileNotFoundError):
        shmlock.unlink(arena_name, force=True)


@pytest.fixture
def raw(arena_name: str) -> Iterator[Path]:
    """The file of an arena that the test writes itself."""
    path = SHM / f"shmlock.{arena_name}"
    yield path
    path.unlink(missing_ok=True)


# ---- The program --------------------------------------------------------------------------------


def test_version() -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout) == (0, f"shmlock {shmlock.__version__}\n")


def test_help_names_every_command() -> None:
    done = cli("--help")
    assert done.returncode == 0
    for command in ("ls", "tree", "locks", "stats", "check", "rm", "run", "stress"):
        assert f"\n    {command} " in done.stdout


def test_script_is_the_same_as_the_module() -> None:
    """The entry point `shmlock` calls the same main()."""
    from shmlock.cli import main

    assert main(["--version"]) == 0
    assert main(["no-such-command"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["tree"],
        ["ls", "--nonsense"],
        ["rm"],
        ["rm", "--stale", "--force"],
        ["run", "x"],
        ["run", "x", "/a"],
        ["run", "x", "/a", "--"],
        ["run", "x", "/a", "--timeout", "-1", "--", "true"],
        ["run", "x", "/a", "--timeout", "nan", "--", "true"],
        ["run", "x", "/a", "--timeout", "soon", "--", "true"],
        ["run", "x", "/a", "true"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_2(words: list[str]) -> None:
    done = cli(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: shmlock" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["tree", "locks", "stats", "check", "rm"])
def test_no_such_arena(command: str, arena_name: str) -> None:
    fails(command, arena_name, says=[arena_name, "No such"])


@pytest.mark.parametrize("command", ["tree", "locks", "stats", "check", "rm"])
def test_impossible_name(command: str) -> None:
    fails(command, "a/b", says="A-Z a-z 0-9 . _ -")


def test_reader_goes_away(name: str, arena: Any) -> None:
    """A closed pipe is no error to talk about."""
    for i in range(3000):  # more than a pipe holds
        arena.create(f"/{'x' * 26}{i}")
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "-", *SHMLOCK, "tree", name],
        capture_output=True,
        text=True,
        timeout=procs.DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, "/\n", "")


def test_full_disk_is_an_error(name: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*SHMLOCK, "stats", name, "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=procs.DEADLINE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "shmlock: No space left on device\n")


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from shmlock.cli import main

    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(shmlock, "arenas", interrupted)
    assert main(["ls"]) == 130
    assert capsys.readouterr() == ("", "")


def test_tables_are_not_folded(arena: Any) -> None:
    """However narrow the terminal: a name can be copied."""
    done = cli("ls", env={**os.environ, "COLUMNS": "20", "FORCE_COLOR": "1"})
    assert arena.name in done.stdout


WITHOUT_RICH = (
    "import sys; sys.modules['rich'] = None; import shmlock.cli; sys.exit(shmlock.cli.main())"
)


def without_rich(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_RICH, *words],
        capture_output=True,
        text=True,
        timeout=procs.DEADLINE,
        check=False,
    )


@pytest.mark.parametrize("command", ["ls", "locks", "stats"])
def test_tables_without_rich(command: str, name: str) -> None:
    words = [command] if command == "ls" else [command, name]
    done = without_rich(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'shmlock-vfs[cli]'" in done.stderr
    done = without_rich(*words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    json.loads(done.stdout)


def test_the_rest_without_rich(loose: str) -> None:
    assert without_rich("check", loose).returncode == 0
    assert without_rich("tree", loose).returncode == 0
    assert without_rich("run", loose, "/a", "--", "true").returncode == 0
    assert without_rich("rm", loose).returncode == 0


def test_tools_start_without_heavy_imports(name: str) -> None:
    """`run` and `check --json` load neither rich nor the stress harness."""
    code = (
        "import sys, shmlock.cli; status = shmlock.cli.main();"
        "bad = [m for m in sys.modules if m.startswith(('rich', 'shmlock.stress'))];"
        "sys.exit(status or bool(bad))"
    )
    for words in (["check", name, "--json"], ["run", name, "/b", "--", "true"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            timeout=procs.DEADLINE,
            check=False,
        )
        assert done.returncode == 0


# ---- ls -----------------------------------------------------------------------------------------


def ls(name: str) -> dict[str, Any]:
    (found,) = [each for each in cli_json("ls")["arenas"] if each["name"] == name]
    return dict(found)


def test_ls(name: str) -> None:
    words = row(cli("ls").stdout, name)
    assert "dentry" in words
    assert "release" in words


def test_ls_json(name: str, arena: Any) -> None:
    found = ls(name)
    stats = arena.stats()
    assert found["state"] == "ok"
    assert found["size"] == stats.size == (SHM / f"shmlock.{name}").stat().st_size
    assert (found["dentries"], found["used"]) == (SMALL["dentries"], stats.used)
    assert (found["tasks"], found["live_tasks"]) == (SMALL["tasks"], 1)
    assert (found["locking"], found["build"]) == ("dentry", "release")


def test_ls_counts_no_task_of_its_own(loose: str) -> None:
    assert ls(loose)["live_tasks"] == 0


def test_ls_debug_build(debug_arena: Any) -> None:
    found = ls(debug_arena.name)
    assert (found["state"], found["build"]) == ("ok", "debug")


def test_ls_no_arena_at_all(raw: Path, arena_name: str) -> None:
    raw.write_bytes(b"hello" * 1000)
    found = ls(arena_name)
    assert found["state"] == "damaged"
    assert found["size"] == 5000
    assert "damaged" in row(cli("ls").stdout, arena_name)


def test_ls_is_not_held_up_by_a_pipe(raw: Path, arena_name: str) -> None:
    """Opening it would wait for a writer."""
    os.mkfifo(raw)
    assert ls(arena_name)["state"] == "damaged"


def test_ls_cut_short(loose: str) -> None:
    path = SHM / f"shmlock.{loose}"
    os.truncate(path, path.stat().st_size // 2)
    assert ls(loose)["state"] == "damaged"


def test_ls_other_layout(loose: str) -> None:
    """The header's second word is the layout version."""
    with open(SHM / f"shmlock.{loose}", "r+b") as file:
        file.seek(8)
        file.write((12345).to_bytes(4, "little"))
    found = ls(loose)
    assert found["state"] == "foreign layout"
    assert "12345" in found["detail"]
    assert str(shmlock.LAYOUT_VERSION) in found["detail"]


def can_unshare(*flags: str) -> bool:
    return (
        subprocess.run(
            ["unshare", "-r", *flags, "true"], capture_output=True, check=False
        ).returncode
        == 0
    )


def test_ls_other_pid_namespace(loose: str) -> None:
    if not can_unshare("-pf", "--mount-proc"):
        pytest.skip("may not make a pid namespace here")
    done = subprocess.run(
        ["unshare", "-r", "-pf", "--mount-proc", *SHMLOCK, "ls", "--json"],
        capture_output=True,
        text=True,
        timeout=procs.DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = [each for each in json.loads(done.stdout)["arenas"] if each["name"] == loose]
    assert found["state"] == "other pid namespace"


def test_ls_somebody_elses(loose: str) -> None:
    path = SHM / f"shmlock.{loose}"
    if os.geteuid() != 0:
        pytest.skip("needs root, to give an arena away")
    os.chown(path, 65534, 65534)
    try:
        found = ls(loose)
        assert found["state"] == "not permitted"
        assert "65534" in found["detail"]
    finally:
        os.chown(path, 0, 0)


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_ls_mentions_leftovers() -> None:
    """What a creator left that died half-way."""
    left = SHM / f"shmlock-new.{dead_pid()}.{os.urandom(8).hex()}"
    left.write_bytes(b"")
    try:
        found = {each["name"]: each for each in cli_json("ls")["leftovers"]}
        assert left.name in found
        assert left.name in cli("ls").stdout
    finally:
        left.unlink()


# ---- tree ---------------------------------------------------------------------------------------


def test_tree(name: str) -> None:
    done = cli("tree", name, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert done.stdout.splitlines() == [
        "/",
        "├── d/",
        "│   ├── e/",
        "│   │   └── f",
        "│   └── x",
        "└── a",
        "",
        "2 directories, 3 files",
    ]


def test_tree_in_ascii(name: str) -> None:
    done = cli("tree", name, "/d", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.stdout.splitlines()[:4] == ["/d/", "|-- e/", "|   `-- f", "`-- x"]


def test_tree_json(name: str, arena: Any) -> None:
    root = cli_json("tree", name)
    assert (root["name"], root["type"]) == ("/", "directory")
    directory, file = root["children"]
    assert (directory["name"], file["name"]) == ("d", "a")
    assert file["type"] == "file"
    assert file["ino"] == arena.stat("/a").st_ino
    assert "children" not in file
    assert [child["name"] for child in directory["children"]] == ["e", "x"]
    assert directory["children"][0]["children"][0]["name"] == "f"


def test_tree_marks_locks(name: str, arena: Any) -> None:
    with arena.lock("/d/x"), arena.lock("/d/new"):
        text = cli("tree", name).stdout
        root = cli_json("tree", name)
    (line,) = [line for line in text.splitlines() if " x " in line]
    assert f"pid {os.getpid()}" in line
    (line,) = [line for line in text.splitlines() if " new " in line]
    assert "no such entry" in line
    children = {child["name"]: child for child in root["children"][0]["children"]}
    (lock,) = children["x"]["locks"]
    assert (lock["what"], lock["pid"]) == ("person", os.getpid())
    assert children["new"]["type"] is None
    assert children["e"]["locks"] == []
    assert children["e"]["dying"] is False


def test_tree_of_a_file(name: str) -> None:
    assert cli("tree", name, "/d/x").stdout.splitlines()[0] == "/d/x"


@pytest.mark.parametrize(
    ("path", "says"),
    [("/none", "No such file"), ("/a/b", "Not a directory"), ("/" + "n" * 256, "too long")],
)
def test_tree_of_what_is_not_there(name: str, path: str, says: str) -> None:
    fails("tree", name, path, says=[says, path])


def test_tree_escapes_names(arena: Any) -> None:
    """A name cannot speak to the terminal, and need not be text."""
    arena.create(b"/esc\x1b[2J\nline")
    arena.create(b"/byte\xff")
    done = cli("tree", arena.name)
    assert "esc\\x1b[2J\\x0aline" in done.stdout
    assert "byte\\xff" in done.stdout
    names = {os.fsencode(child["name"]) for child in cli_json("tree", arena.name)["children"]}
    assert names == {b"esc\x1b[2J\nline", b"byte\xff"}


def test_tree_is_not_too_deep(arena: Any) -> None:
    """As deep as a path can be: 2047 directories."""
    depth = 2047
    for i in range(1, depth + 1):
        arena.mkdir("/x" * i)
    done = cli("tree", arena.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == depth + 3
    done = cli("tree", arena.name, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count('"children"') == depth + 1
    assert done.stdout.count("{") == done.stdout.count("}")


# ---- locks --------------------------------------------------------------------------------------


def lock_and_wait(name: str, first: str, second: str) -> None:
    """Holds one name and then wants another."""
    with shmlock.attach(name) as arena, arena.lock(first):
        procs.say("held")
        procs.listen()
        with arena.lock(second):
            procs.say("both")


def test_locks_empty(name: str) -> None:
    found = cli_json("locks", name)
    assert (found["held"], found["waiting"], found["circles"]) == ([], [], [])
    assert cli("locks", name).returncode == 0


def test_locks(name: str, arena: Any) -> None:
    lock = arena.lock("/a")
    lock.acquire()
    with procs.crew() as crew:
        child = crew.start(lock_and_wait, name, "/d/x", "/a")
        assert child.hear() == "held"
        child.tell()
        (waiting,) = until(lambda: waits(name), "the child to wait")
        found = cli_json("locks", name)
        text = cli("locks", name).stdout
        lock.release()
        assert child.hear() == "both"
        child.result()
    held = {each["path"]: each for each in found["held"]}
    assert set(held) == {"/a", "/d/x"}
    assert (held["/a"]["pid"], held["/d/x"]["pid"]) == (os.getpid(), child.pid)
    assert (held["/a"]["what"], held["/a"]["alive"]) == ("person", True)
    assert (held["/a"]["waiters"], held["/d/x"]["waiters"]) == (1, 0)
    assert held["/a"]["command"] == Path("/proc/self/comm").read_text().rstrip("\n")
    assert held["/a"]["age"] >= 0
    assert waiting["pid"] == waiting["tid"] == child.pid
    assert (waiting["what"], waiting["path"]) == ("name", "/a")
    assert waiting["holder"]["pid"] == os.getpid()
    assert waiting["on_circle"] is False
    heading, *lines = [line.split() for line in text.splitlines()]
    assert heading[:6] == ["COMMAND", "PID", "TID", "STATE", "WHAT", "PATH"]
    assert [line[1:6] for line in lines] == [
        [str(os.getpid()), str(os.getpid()), "held", "person", "/a"],
        [str(child.pid), str(child.pid), "held", "person", "/d/x"],
        [str(child.pid), str(child.pid), "waits", "name", "/a"],
    ]
    assert lines[2][-1] == str(os.getpid())
    assert cli_json("locks", name)["held"] == []


def rmdir(name: str, path: str) -> None:
    with shmlock.attach(name) as arena:
        arena.rmdir(path)


def test_a_directory_being_removed(debug_arena: Any) -> None:
    """S_DYING shows in `locks` and in `tree`."""
    from shmlock import debug

    debug_arena.makedirs("/d/e")
    with procs.crew() as crew, debug.stopping(debug_arena, "rmdir:dying"):
        child = crew.start(rmdir, debug_arena.name, "/d/e")
        debug.wait_for(debug_arena, "rmdir:dying")
        held = cli_json("locks", debug_arena.name)["held"]
        root = cli_json("tree", debug_arena.name)
        text = cli("tree", debug_arena.name).stdout
        debug.go(debug_arena, "rmdir:dying")
        child.result()
    assert {(each["what"], each["path"], each["pid"]) for each in held} == {
        ("S_DYING", "/d/e", child.pid),
        ("operation", "/d/e", child.pid),
    }
    (directory,) = root["children"]
    assert directory["dying"] is False
    assert directory["children"][0]["dying"] is True
    assert f"S_DYING: being removed by pid {child.pid}" in text


def test_locks_names_a_circle(capsys: pytest.CaptureFixture[str]) -> None:
    """Circles are broken as soon as they close, so this one is made up."""
    from shmlock import inspect
    from shmlock.cli import locks

    def task(number: int, path: str, holder: int) -> inspect.Task:
        wait = inspect.Wait("name", path, holder, None)
        return inspect.Task(number, "live", 100 + number, 200 + number, "", 1, None, wait)

    tasks = (task(1, "/b", 2), task(2, "/a", 1))
    locks._print_text(inspect.Snapshot("x", tasks, (), (tasks,)))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "circle: pid 101 tid 201 waits for /b, held by pid 102 tid 202 waits for /a, "
        "held by pid 101"
    )


def test_locks_shows_a_dead_holder_as_such(name: str, arena: Any) -> None:
    """Until somebody wants it, a dead task's lock is still there to see."""
    with procs.crew() as crew:
        child = crew.start(lock_and_wait, name, "/d/x", "/a")
        assert child.hear() == "held"
        child.kill()
        (held,) = cli_json("locks", name)["held"]
        assert held["path"] == "/d/x"
        assert held["alive"] is False
    with arena.lock("/d/x") as _:
        pass


# ---- stats, check -------------------------------------------------------------------------------


def test_stats(name: str) -> None:
    done = cli("stats", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert row(done.stdout, "dentries")[-1] == str(SMALL["dentries"])


def test_stats_json(name: str, arena: Any) -> None:
    found = cli_json("stats", name)
    stats = arena.stats()
    assert found["positive"] == stats.positive
    assert found["live_tasks"] == 1
    assert found["counters"] == dict(stats.counters)


def test_check_sound(name: str) -> None:
    done = cli("check", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}: sound\n", "")
    assert cli_json("check", name) == {
        "arena": name,
        "sound": True,
        "quiescent": False,
        "faults": [],
    }


def test_check_quiescent(name: str, arena: Any) -> None:
    """A lock that is held is all right, unless nobody should be there."""
    with arena.lock("/a"):
        assert cli("check", name).returncode == 0
        done = cli("check", name, "--quiescent")
        assert done.returncode == 1
        assert done.stdout.startswith("I")
        found = cli_json("check", name, "--quiescent", status=1)
        assert found["sound"] is False
        assert found["faults"][0]["text"]


# ---- rm -----------------------------------------------------------------------------------------


def exists(name: str) -> bool:
    return (SHM / f"shmlock.{name}").exists()


def test_rm(loose: str) -> None:
    done = cli("rm", loose)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not exists(loose)


def test_rm_in_use(name: str) -> None:
    fails("rm", name, says=[name, str(os.getpid()), "--force"])
    assert exists(name)


def test_rm_force(name: str, arena: Any) -> None:
    done = cli("rm", name, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert not exists(name)
    with pytest.raises(OSError, match="unlinked"):
        arena.create("/later")


@pytest.mark.parametrize("content", [b"", b"hello" * 1000], ids=["empty", "text"])
def test_rm_what_is_no_arena(raw: Path, arena_name: str, content: bytes) -> None:
    raw.write_bytes(content)
    fails("rm", arena_name, says=[arena_name, "--force"])
    assert raw.exists()
    assert cli("rm", arena_name, "--force").returncode == 0
    assert not raw.exists()


def test_rm_several(unmade: str) -> None:
    """Each is tried, and one failure is a failure."""
    shmlock.create(f"{unmade}-1", **SMALL).close()
    shmlock.create(f"{unmade}-2", **SMALL).close()
    done = cli("rm", f"{unmade}-1", f"{unmade}-none", f"{unmade}-2")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{unmade}-none" in done.stderr
    assert not exists(f"{unmade}-1")
    assert not exists(f"{unmade}-2")


def in_private_shm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that sees a /dev/shm of its own; `$PY` is Python."""
    script = f"mount -t tmpfs tmpfs {SHM} && {words[0]}"
    return subprocess.run(
        ["unshare", "-rm", "sh", "-ec", script, "sh", *words[1:]],
        env={**os.environ, "PY": sys.executable},
        capture_output=True,
        text=True,
        timeout=procs.DEADLINE,
        check=False,
    )


STALE = """
"$PY" -c 'import shmlock; [shmlock.create(n, dentries=64, tasks=4).close() for n in ("one", "two")]'
"$PY" -c '
import shmlock, subprocess, sys
with shmlock.create("used", dentries=64, tasks=4):
    open("/dev/shm/shmlock.text", "w").write("no arena")
    subprocess.run([sys.executable, "-m", "shmlock", "rm", "--stale", *sys.argv[1:]], check=True)
' "$@"
ls /dev/shm >&2
"""


def test_rm_stale() -> None:
    """All without a live task; in a /dev/shm of its own, as other tests' arenas have none."""
    if not can_unshare("-m"):
        pytest.skip("may not make a mount namespace here")
    done = in_private_shm(STALE)
    assert done.stderr.split() == ["shmlock.text", "shmlock.used"]
    assert done.stdout.splitlines()[:2] == ["removed one", "removed two"]
    done = in_private_shm(STALE, "--json")
    found = json.loads(done.stdout)
    assert found["removed"] == ["one", "two"]
    assert {each["name"] for each in found["kept"]} == {"text", "used"}
    assert found["leftovers"] == 0


def test_rm_stale_of_some(loose: str, unmade: str) -> None:
    """With names, only those."""
    with shmlock.create(f"{unmade}-used", **SMALL):
        shmlock.create(f"{unmade}-other", **SMALL).close()
        done = cli("rm", "--stale", loose, f"{unmade}-used")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == f"removed {loose}"
        assert not exists(loose)
        assert exists(f"{unmade}-used")
        assert exists(f"{unmade}-other")
    shmlock.unlink(f"{unmade}-used")
    shmlock.unlink(f"{unmade}-other")


def die_attached(name: str) -> None:
    arena = shmlock.attach(name)
    arena.lock("/a").acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_rm_stale_counts_the_living_only(loose: str) -> None:
    """A killed process keeps no arena alive."""
    with procs.crew() as crew:
        crew.start(die_attached, loose).wait()
    cli("rm", "--stale", loose)
    assert not exists(loose)


def open_and_lock(name: str, rounds: int) -> int:
    """Opens and uses an arena that others remove all the time. Counts what must not happen."""
    wrong = 0
    for _ in range(rounds):
        with shmlock.open(name, dentries=64, tasks=8) as arena:
            try:
                with arena.lock("/a"):
                    wrong += not (SHM / f"shmlock.{name}").exists()
            except OSError:  # ESTALE
                wrong += 1
    return wrong


def test_rm_stale_never_takes_one_that_is_being_attached(
    unmade: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has got an arena keeps it: no ESTALE, and its name stays."""
    from shmlock.cli import main

    with procs.crew() as crew:
        users = [crew.start(open_and_lock, unmade, 300) for _ in range(2)]
        while any(user.alive for user in users):
            assert main(["rm", "--stale", unmade]) == 0
        assert [user.result() for user in users] == [0, 0]
    printed = capsys.readouterr().out.splitlines()
    assert f"removed {unmade}" in printed, "the race was not reached"
    assert any(line.startswith(f"kept {unmade}: in use") for line in printed)


# ---- run ----------------------------------------------------------------------------------------


def test_run_makes_arena_and_parents(unmade: str) -> None:
    done = cli("run", unmade, "/some/deep/name", "--", "echo", "--", "-x", "hi")
    assert (done.returncode, done.stdout, done.stderr) == (0, "-- -x hi\n", "")
    with shmlock.attach(unmade) as arena:
        assert arena.is_dir("/some/deep")
        assert not arena.exists("/some/deep/name")
        assert not arena.lock("/some/deep/name").locked()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["false"], 1),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -KILL $$"], 128 + 9),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
        (["sh", "-c", "kill -SEGV $$"], 128 + 11),
    ],
    ids=str,
)
def test_run_status_is_the_commands(name: str, command: list[str], status: int) -> None:
    done = cli("run", name, "/a", "--", *command)
    assert (done.returncode, done.stderr) == (status, "")


def test_run_command_not_found(name: str) -> None:
    fails("run", name, "/a", "--", "no-such-command-here", status=127, says="no-such-command-here")
    fails("run", name, "/a", "--", "/no/such/file", status=127, says="/no/such/file")


def test_run_command_not_executable(name: str, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("data")
    fails("run", name, "/a", "--", str(file), status=126, says=str(file))
    fails("run", name, "/a", "--", str(tmp_path), status=126, says=str(tmp_path))


def test_run_script_without_interpreter_line(name: str, tmp_path: Path) -> None:
    """As the shell does, and execvp(3)."""
    file = tmp_path / "script"
    file.write_text('echo "$1"; exit 3\n')
    file.chmod(0o755)
    done = cli("run", name, "/a", "--", str(file), "word")
    assert (done.returncode, done.stdout) == (3, "word\n")


def test_run_own_errors_are_125(name: str, raw: Path) -> None:
    fails("run", "a/b", "/a", "--", "true", status=125, says="A-Z")
    fails("run", name, "/", "--", "true", status=125, says="busy")
    fails("run", name, "/a/b", "--", "true", status=125, says="Not a directory")


def test_run_damaged_arena_is_125(raw: Path, arena_name: str) -> None:
    raw.write_bytes(b"hello" * 1000)
    fails("run", arena_name, "/a", "--", "true", status=125, says=arena_name)


@pytest.mark.parametrize("seconds", ["0", "0.05"])
def test_run_timeout_is_124(name: str, arena: Any, seconds: str) -> None:
    with arena.lock("/a"):
        fails(
            *("run", name, "/a", "--timeout", seconds, "--", "echo", "no"),
            status=124,
            says=["/a", f"pid {os.getpid()}"],
        )
    assert cli("run", name, "/a", "--timeout", seconds, "--", "true").returncode == 0


def test_run_timeout_holds_for_the_parents(name: str, arena: Any) -> None:
    """Making a parent directory whose name is locked waits, too."""
    with arena.lock("/new"):
        fails("run", name, "/new/x", "--timeout", "0.05", "--", "true", status=124, says="/new")


def test_run_excludes(name: str, arena: Any) -> None:
    """The lock is held from before the command starts until it has ended."""
    with started("run", name, "/a", "--", *python(STUBBORN), stdin=subprocess.PIPE) as run:
        assert hear(run) == "up"
        lock = arena.lock("/a")
        assert lock.acquire(blocking=False) is False
        owner = lock.owner()
        assert owner is not None
        assert owner.pid == run.pid
        assert run.stdin is not None
        run.stdin.close()
        assert run.wait(procs.DEADLINE) == 7
        assert lock.acquire(timeout=procs.DEADLINE)
        assert lock.recovered is False
        lock.release()


def test_run_waits_for_its_turn(name: str, arena: Any) -> None:
    lock = arena.lock("/a")
    lock.acquire()
    with started("run", name, "/a", "--", "echo", "up") as run:
        until(lambda: waits(name), "run to wait")
        assert run.poll() is None
        lock.release()
        assert hear(run) == "up"
        assert run.wait(procs.DEADLINE) == 0


def test_run_says_that_it_recovered_the_lock(name: str, arena: Any) -> None:
    with procs.crew() as crew:
        child = crew.start(lock_and_wait, name, "/a", "/d/x")
        assert child.hear() == "held"
        child.kill()
    done = cli("run", name, "/a", "--", "echo", "done")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("shmlock: /a: ")
    assert "died" in done.stderr
    assert cli("run", name, "/a", "--", "true").stderr == ""


FORWARDED = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGRTMIN"]


def test_run_passes_signals_on(name: str, arena: Any) -> None:
    """One after the other, and the lock stays held while the command ignores them."""
    command = python(STUBBORN, *FORWARDED)
    with started("run", name, "/a", "--", *command, stdin=subprocess.PIPE) as run:
        assert hear(run) == "up"
        for signame in FORWARDED:
            run.send_signal(getattr(signal, signame))
            assert hear(run) == signame
            assert arena.lock("/a").acquire(blocking=False) is False
        assert run.stdin is not None
        run.stdin.close()
        assert run.wait(procs.DEADLINE) == 7
    assert not arena.lock("/a").locked()


@pytest.mark.parametrize("signame", ["SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1"])
def test_run_command_dies_of_a_signal_passed_on(name: str, signame: str) -> None:
    number = getattr(signal, signame)
    command = ["sh", "-c", "echo up; exec sleep 600"]
    with started("run", name, "/a", "--", *command) as run:
        assert hear(run) == "up"
        run.send_signal(number)
        assert run.wait(procs.DEADLINE) == 128 + number
        assert run.stderr is not None
        assert run.stderr.read() == ""


@pytest.mark.parametrize("signame", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_run_is_ended_by_a_signal_while_it_waits(name: str, arena: Any, signame: str) -> None:
    number = getattr(signal, signame)
    with arena.lock("/a"), started("run", name, "/a", "--", "echo", "no") as run:
        until(lambda: waits(name), "run to wait")
        run.send_signal(number)
        out, err = run.communicate(timeout=procs.DEADLINE)
        assert (run.returncode, out, err) == (128 + number, "", "")
        assert waits(name) == []
    assert arena.check() == []


def test_run_leaves_ignored_signals_ignored(name: str) -> None:
    """As under nohup(1): the command ignores it, too."""
    command = python("import signal; print(signal.getsignal(signal.SIGHUP).name)")
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *SHMLOCK, "run", name, "/a", "--", *command],
        capture_output=True,
        text=True,
        timeout=procs.DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "SIG_IGN\n")


def test_run_works_where_children_are_ignored(name: str) -> None:
    """With SIGCHLD ignored by whoever started it, a status would be lost."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    done = subprocess.run(
        [*python(code, "-m", "shmlock", "run", name, "/a", "--"), "sh", "-c", "exit 5"],
        capture_output=True,
        timeout=procs.DEADLINE,
        check=False,
    )
    assert done.returncode == 5


def test_run_gives_the_command_a_plain_start(name: str) -> None:
    """Nothing blocked and nothing ignored, in spite of what Python ignores and `run` blocks."""
    done = cli("run", name, "/a", "--", "grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status")
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["0" * 16] * 2


def test_run_command_gets_nothing_of_the_arena(name: str) -> None:
    """Neither the mapping nor a descriptor: it cannot release the lock."""
    code = (
        "import os; print(open('/proc/self/maps').read());"
        "print([os.readlink(f'/proc/{os.getpid()}/fd/{n}') for n in range(256)"
        " if os.path.exists(f'/proc/{os.getpid()}/fd/{n}')])"
    )
    done = cli("run", name, "/a", "--", *python(code))
    assert (done.returncode, done.stderr) == (0, "")
    assert "[stack]" in done.stdout
    assert "pipe:" in done.stdout
    assert "/dev/shm" not in done.stdout


def test_run_hands_down_other_descriptors(name: str) -> None:
    """As flock(1): what the user opened for the command stays open."""
    read, write = os.pipe()
    try:
        command = python(f"import os; os.write({write}, b'hello\\n')")
        assert cli("run", name, "/a", "--", *command, pass_fds=[write]).returncode == 0
        assert os.read(read, 100) == b"hello\n"
    finally:
        os.close(read)
        os.close(write)


def test_run_killed_takes_its_command_along(name: str, arena: Any) -> None:
    """The command gets SIGTERM; the lock is free and marked, and the arena sound."""
    read, write = os.pipe()
    try:
        code = (
            "import os, signal, sys, time\n"
            "def end(number, frame):\n"
            "    os.write(int(sys.argv[1]), signal.Signals(number).name.encode()); os._exit(0)\n"
            "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(600)"
        )
        words = ("run", name, "/a", "--", *python(code, str(write)))
        with started(*words, pass_fds=[write]) as run:
            os.close(write)
            write = -1
            assert hear(run) == "up"
            run.kill()
            assert run.wait(procs.DEADLINE) == -signal.SIGKILL
            assert os.read(read, 100) == b"SIGTERM"  # b"" if it had ended otherwise
            lock = arena.lock("/a")
            assert lock.acquire(timeout=procs.DEADLINE)
            assert lock.recovered
            lock.release()
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


def test_run_ctrl_c_reaches_the_command_once(name: str) -> None:
    """The terminal sends it to both; `run` must not send it again."""
    master, slave = os.openpty()
    try:
        # A session of its own with that terminal, `run` in the foreground of it.
        code = (
            "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        counter = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
print("up", flush=True)
print(signal.sigwait({signal.SIGINT}).name, flush=True)
# A second SIGINT, sent on by run, would be there before the next signal.
print(signal.sigwait({signal.SIGINT, signal.SIGUSR1}).name, flush=True)
"""
        command = [*python(code, "-m", "shmlock", "run", name, "/a", "--"), *python(counter)]
        with subprocess.Popen(
            command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as run:
            try:
                assert hear(run) == "up"
                os.write(master, b"\x03")
                assert hear(run) == "SIGINT"
                run.send_signal(signal.SIGUSR1)
                assert hear(run) == "SIGUSR1"
                assert run.wait(procs.DEADLINE) == 0
            finally:
                run.kill()
    finally:
        os.close(master)
        os.close(slave)


def test_run_child_of_a_parent_already_dead() -> None:
    """Killed between fork and prctl: the command is not started at all."""
    code = """
import os, signal, sys
from shmlock.cli import _child
real = os.fork
def fork():
    child = real()
    if child:
        os.kill(os.getpid(), signal.SIGKILL)
    while os.getppid() == parent:  # the worst case: scheduled only after the parent's end
        pass
    return child
parent = os.getpid()
os.fork = fork
_child.start(["echo", "started"], (), ())
"""
    done = subprocess.run(
        python(code), capture_output=True, text=True, timeout=procs.DEADLINE, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert (done.stdout, done.stderr) == ("", "")  # read until the child has closed it


# ---- stress -------------------------------------------------------------------------------------


def test_stress_is_there() -> None:
    """Its own tests are elsewhere; here that the command reaches it."""
    done = cli("stress", "--help")
    assert done.returncode == 0
    assert "--procs" in done.stdout
    assert cli("stress", "--nonsense").returncode == 2
