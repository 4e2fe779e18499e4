"""Types of the C extension, debug build: the same interface."""

from shmlock._native import FFI as FFI
from shmlock._native import CData as CData
from shmlock._native import Lib as Lib
from shmlock._native import LockBase as LockBase

ffi: FFI
lib: Lib
