"""Tells cffi about the C core, and builds it twice: a release and a debug module.

The declarations that cffi reads are cut out of shmlock.h, so that header and Python cannot drift
apart. setup.py takes `native` and `native_debug` from here. By hand, without installing:

    python csrc/build_ffi.py FOLDER     # a folder in it for each module
"""

import os
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
BEGIN = "/* cffi: begin */"
END = "/* cffi: end */"

# An sdist has a PKG-INFO, a checkout has none. A stranger's newer compiler may have warnings that
# nobody knew of; that must not stop an installation, only a developer.
DEVELOPING = not (HERE.parent / "PKG-INFO").exists()

FLAGS = [
    "-std=gnu11",
    "-O2",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wstrict-prototypes",
    # A wrong prototype is a crash, whoever builds.
    "-Werror=incompatible-pointer-types",
    "-Werror=implicit-function-declaration",
    *(["-Werror"] if DEVELOPING else []),
]

# The limited API of Python 3.10, for pylock.c as for the file that cffi writes. cffi knows which
# Pythons cannot have it and says so through the same two facts.
LIMITED_API = not hasattr(sys, "gettotalrefcount") and not sysconfig.get_config_var(
    "Py_GIL_DISABLED"
)


def declarations() -> str:
    """The part of shmlock.h that cffi is told, letter for letter."""
    text = (HERE / "shmlock.h").read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"shmlock.h must have one {BEGIN} and one {END}")
    return text.partition(BEGIN)[2].partition(END)[0]


def _files(*patterns: str) -> list[str]:
    # Relative to the working folder, which setup.py makes the checkout: setuptools rejects
    # absolute paths, and names the objects after these.
    found = sorted(path for pattern in patterns for path in HERE.glob(pattern))
    return [os.path.relpath(path) for path in found]


def _module(name: str, *, debug: bool, absolute: bool = False) -> FFI:
    sources = _files("*.c")
    macros: list[tuple[str, str | None]] = []
    if LIMITED_API:
        macros.append(("Py_LIMITED_API", "0x030a0000"))
    if debug:
        macros.append(("SHMLOCK_DEBUG", "1"))
    ffi = FFI()
    ffi.cdef(declarations())
    ffi.set_source(
        name,
        '#include "shmlock.h"',
        sources=[os.path.abspath(path) for path in sources] if absolute else sources,
        depends=_files("*.h", "*.def", "build_ffi.py"),
        include_dirs=[str(HERE)],
        define_macros=macros,
        undef_macros=["NDEBUG"],  # setuptools defines it, whatever the build is for
        extra_compile_args=FLAGS,
    )
    return ffi


def native() -> FFI:
    """The release module."""
    return _module("shmlock._native", debug=False)


def native_debug() -> FFI:
    """The same with assertions, pause points and rules that can be switched off."""
    return _module("shmlock._native_debug", debug=True)


def main(folder: str) -> None:
    """Build both into a folder, without installing anything."""
    for name, debug in (("shmlock._native", False), ("shmlock._native_debug", True)):
        # Folders of their own, for the reason that setup.py gives.
        _module(name, debug=debug, absolute=True).compile(tmpdir=os.path.join(folder, name))


if __name__ == "__main__":
    main(sys.argv[1])
