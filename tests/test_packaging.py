"""The installed package: versions that agree, sizes that agree, no more dependencies than said."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cffi import FFI

import shmlock
from shmlock import _native, _native_debug

CSRC = Path(__file__).parent.parent / "csrc"
BUILDS = {0: _native, 1: _native_debug}
both_builds = pytest.mark.parametrize("debug", BUILDS, ids=["release", "debug"])


def limits(module: Any) -> Any:
    out = module.ffi.new("struct shmlock_limits *")
    module.lib.shmlock_limits(out)
    return out


@pytest.fixture(scope="module")
def build_ffi() -> ModuleType:
    """csrc/build_ffi.py, as a module."""
    spec = importlib.util.spec_from_file_location("build_ffi", CSRC / "build_ffi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compiled_sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler says about layout.h."""
    folder = tmp_path_factory.mktemp("sizes")
    wanted = {
        "layout_version": "SHM_LAYOUT_VERSION",
        "header_size": "sizeof(struct shm_header)",
        "slot_size": "sizeof(struct shm_slot)",
        "cell_size": "sizeof(struct shm_cell)",
        "mutex_size": "sizeof(pthread_mutex_t)",
        "min_dentries": "SHM_MIN_DENTRIES",
        "max_dentries": "SHM_MAX_DENTRIES",
        "max_tasks": "SHM_MAX_TASKS",
        "name_max": "SHM_NAME_MAX",
    }
    prints = "".join(f'printf("{n} %llu\\n", (unsigned long long){e});' for n, e in wanted.items())
    source = folder / "sizes.c"
    source.write_text(
        f'#include <stdio.h>\n#include "layout.h"\nint main(void) {{ {prints} return 0; }}\n'
    )
    program = folder / "sizes"
    subprocess.run(["gcc", "-std=gnu11", "-I", CSRC, source, "-o", program], check=True)
    out = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


def test_version_is_the_installed_one() -> None:
    """`__version__` is what pip installed (else: install again)."""
    assert shmlock.__version__ == importlib.metadata.version("shmlock-vfs")


@both_builds
def test_sizes_agree_with_the_header(debug: int, compiled_sizes: dict[str, int]) -> None:
    """Both modules were built from the layout.h that stands here (else: install again)."""
    out = limits(BUILDS[debug])
    assert {name: getattr(out, name) for name in compiled_sizes} == compiled_sizes


@both_builds
def test_layout_version_is_public(debug: int) -> None:
    """Python and C name the same layout."""
    assert limits(BUILDS[debug]).layout_version == shmlock.LAYOUT_VERSION


@both_builds
def test_each_module_is_the_build_it_is_called(debug: int) -> None:
    """Same sources, other macros: the objects of the two builds were not mixed up."""
    assert limits(BUILDS[debug]).debug_build == debug
    points = BUILDS[debug].lib.shmlock_point_name(0)
    assert bool(BUILDS[debug].ffi.string(points)) == bool(debug)


@both_builds
def test_promises_of_the_interface_fit(debug: int) -> None:
    """The defaults fit: sizes, 1024 locks per task, names to 255 and paths to 4095 bytes."""
    out = limits(BUILDS[debug])
    assert out.min_dentries <= 65536 <= out.max_dentries
    assert out.min_tasks <= 1024 <= out.max_tasks
    assert out.names_per_task >= 1024
    assert (out.name_max, out.path_max) == (255, 4095)


@both_builds
def test_modules_have_what_the_header_declares(debug: int, build_ffi: ModuleType) -> None:
    """The part of shmlock.h cut out for cffi is valid, and each function of it is there."""
    declared = build_ffi.declarations()
    FFI().cdef(declared)
    functions = set(
        re.findall(r"\b(shmlock_\w+)\(", re.sub(r"/\*.*?\*/", "", declared, flags=re.S))
    )
    assert functions
    assert functions <= set(dir(BUILDS[debug].lib))


def test_stub_has_what_the_header_declares(build_ffi: ModuleType) -> None:
    """_native.pyi knows each C function."""
    declared = re.sub(r"/\*.*?\*/", "", build_ffi.declarations(), flags=re.S)
    stub = (CSRC.parent / "shmlock" / "_native.pyi").read_text()
    in_header = set(re.findall(r"\b(shmlock_\w+)\(", declared))
    assert set(re.findall(r"def (shmlock_\w+)\(", stub)) == in_header


@both_builds
def test_nothing_but_the_module_is_exported(debug: int) -> None:
    """Both builds can be loaded into one process: their C functions are hidden from each other."""
    path = BUILDS[debug].__file__
    assert path is not None
    out = subprocess.run(
        ["nm", "--dynamic", "--defined-only", path], check=True, capture_output=True, text=True
    ).stdout
    exported = {line.split()[-1] for line in out.splitlines()}
    assert {name for name in exported if not name.startswith("_")} == {
        f"PyInit_{'_native_debug' if debug else '_native'}"
    }


@both_builds
def test_one_wheel_for_all_pythons(debug: int) -> None:
    """The modules keep to the limited API (free-threaded Pythons have none)."""
    path = BUILDS[debug].__file__
    assert path is not None
    if "t" in sys.abiflags:
        pytest.skip("a free-threaded Python")
    assert path.endswith(".abi3.so")


def test_types_are_shipped() -> None:
    """PEP 561: py.typed and the stubs lie beside the modules."""
    assert shmlock.__file__ is not None
    package = Path(shmlock.__file__).parent
    for name in ("py.typed", "_native.pyi", "_native_debug.pyi"):
        assert (package / name).is_file(), name


def test_core_dependencies() -> None:
    """The library itself needs cffi and posix_ipc, nothing else."""
    required = importlib.metadata.requires("shmlock-vfs") or []
    core = [line for line in required if "extra ==" not in line]
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0].replace("-", "_").lower() for line in core}
    assert names == {"cffi", "posix_ipc"}


def test_import_is_light() -> None:
    """`import shmlock` loads neither the tools nor what only they need."""
    code = "import sys, shmlock; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(out.stdout.split())
    assert "shmlock" in loaded
    assert loaded.isdisjoint({"rich", "multiprocessing", "shmlock.cli", "shmlock.stress"})


@pytest.mark.parametrize("inside", [True, False], ids=["checkout", "elsewhere"])
def test_stress_is_part_of_the_package(inside: bool, tmp_path: Path) -> None:
    """stress/ is shmlock.stress, from inside the checkout and from elsewhere."""
    code = "import shmlock.stress as s; print(s.__name__)"
    folder = CSRC.parent if inside else tmp_path
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    assert out.stdout.split() == ["shmlock.stress"]
