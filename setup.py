"""What pyproject.toml cannot say: the C modules, and that stress/ becomes shmlock.stress."""

import copy
import os
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

os.chdir(Path(__file__).resolve().parent)  # every path below is relative to the checkout


class BuildExt(build_ext):
    """Gives each extension a folder of its own for objects.

    Both modules are made of the same C files with other macros. setuptools names an object after
    its source only, so in one folder the second module would overwrite the first one's objects,
    and a parallel build (`build_ext -j`) would link a mixture of the two.
    """

    def build_extension(self, ext: Extension) -> None:
        own = copy.copy(self)  # not self.build_temp = ...: extensions may be built by threads
        own.build_temp = os.path.join(self.build_temp, ext.name)
        super(BuildExt, own).build_extension(ext)


def packages() -> list[str]:
    found = find_packages(include=["shmlock", "shmlock.*", "stress", "stress.*"])
    return [f"shmlock.{name}" if name.split(".")[0] == "stress" else name for name in found]


# A wheel of the limited API serves every CPython from 3.10 on, but no free-threaded one.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    packages=packages(),
    package_dir={"shmlock.stress": "stress"},
    cffi_modules=["csrc/build_ffi.py:native", "csrc/build_ffi.py:native_debug"],
    cmdclass={"build_ext": BuildExt},
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
