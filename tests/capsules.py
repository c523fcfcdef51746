"""DLPack capsules made by hand, such as no library makes."""

from __future__ import annotations

import ctypes
from typing import Any

new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64), ("tensor", Tensor),
    )  # fmt: skip


class Capsule:
    """float32 of a shape, with memory for `room` elements: its capsule, and an object that exports it.

    Named fields of the DLPack tensor get the given values. version: None makes a tensor without a version, as before DLPack 1.0.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        /,
        *,
        room: int = 64,
        version: tuple[int, int] | None = None,
        flags: int = 0,
        **fields: Any,
    ) -> None:
        self.numbers = (ctypes.c_float * room)(*range(room))
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        place = None if self._strides is None else ctypes.addressof(self._strides)
        tensor = Tensor(ctypes.addressof(self.numbers), 1, 0, len(shape), 2, 32, 1, ctypes.addressof(self._shape), place, 0)
        for name, value in fields.items():
            setattr(tensor, name, value)
        self._name = b"dltensor" if version is None else b"dltensor_versioned"
        self._managed = Managed(tensor, None, None) if version is None else Versioned(*version, None, None, flags, tensor)

    @property
    def capsule(self) -> Any:
        return new_capsule(ctypes.addressof(self._managed), self._name, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.capsule
