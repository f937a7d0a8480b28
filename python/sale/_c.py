"""The C ABI of libsale (include/sale/sale.h) through ctypes: structs, functions and the errors they raise.

Nothing here knows about numpy or torch. Names and fields are the header's; what they mean is said there.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
from ctypes import (
    POINTER, Structure, byref, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64,
    c_void_p, sizeof,
)  # fmt: skip

VERSION = "0.1.0"  # of the header these declarations repeat

OK, INVALID_ARGUMENT, UNSUPPORTED, OUT_OF_MEMORY, INTERNAL = range(5)
F32, F16, BF16 = range(3)
COMPUTES = {"exact": 0, "int8": 1, "fp8": 2, "f16": 3}
AUTO = -1  # sale_problem.q_offset
OF_CALL, GIVEN, PAGES = range(3)  # sale_index_source
HOST = -1  # sale_problem.device
K_BLOCK = 32

_int64s = POINTER(c_int64)


class _Sized(Structure):
    """A struct that begins with its own size."""

    @classmethod
    def make(cls, **fields):
        return cls(struct_size=sizeof(cls), **fields)


class Strides(Structure):
    _fields_ = [("batch", c_int64), ("head", c_int64), ("token", c_int64)]


class Problem(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("batch", c_int32), ("q_heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32), ("dtype", c_int),
        ("q_len", c_int64), ("k_len", c_int64), ("q_offset", c_int64), ("scale", c_float),
        ("q", Strides), ("k", Strides), ("v", Strides), ("out", Strides),
        ("q_lens", _int64s), ("k_lens", _int64s), ("q_offsets", _int64s), ("q_starts", _int64s), ("k_starts", _int64s),
        ("device", c_int32), ("page_size", c_int32), ("pages", c_int64), ("part", c_int32),
        ("kv_dtype", c_int), ("k_coded", _int64s), ("window", c_int64), ("window_sink", c_int32),
        ("reserved", c_int32),
    ]  # fmt: skip


class Layer(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("q_heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32), ("dtype", c_int), ("device", c_int32),
        ("thresholds", c_void_p), ("n_thresholds", c_int64), ("format", c_int), ("rank", c_int32),
        ("q_projection", c_void_p), ("k_projection", c_void_p), ("smoothing", c_void_p), ("key_scales", c_void_p),
        ("sink", c_int32), ("local", c_int32), ("backend", c_char_p), ("threads", c_int32),
        ("parallel_for", c_void_p), ("parallel_context", c_void_p),
    ]  # fmt: skip


class Options(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("dense_below", c_int64), ("compute", c_int), ("compensate", c_int32), ("audit", c_int32),
        ("with_index", c_int32), ("audit_seed", c_uint64),
    ]  # fmt: skip


class Workspace(_Sized):
    _fields_ = [
        ("struct_size", c_size_t), ("total", c_size_t), ("tables", c_size_t), ("key_index", c_size_t),
        ("selection", c_size_t), ("scratch", c_size_t),
    ]  # fmt: skip


class IndexOptions(_Sized):
    _fields_ = [
        ("struct_size", c_size_t), ("capacity", c_int64), ("page_size", c_int32), ("memory", c_void_p),
        ("memory_bytes", c_size_t),
    ]  # fmt: skip


class CsrCounts(Structure):
    _fields_ = [("rows", c_int64), ("kept", c_int64)]


class Stats(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("index_s", c_double), ("select_s", c_double), ("attend_s", c_double),
        ("kept_blocks", c_int64), ("visible_blocks", c_int64), ("heads", c_void_p),
        ("audit_s", c_double), ("audits", c_void_p),
    ]  # fmt: skip


class Call(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("q", c_void_p), ("k", c_void_p), ("v", c_void_p), ("out", c_void_p), ("lse", c_void_p),
        ("q_strides", c_void_p), ("k_strides", c_void_p), ("v_strides", c_void_p), ("out_strides", c_void_p),
        ("page_table", c_void_p), ("reference", c_void_p), ("indexes", c_void_p), ("blocks", c_void_p),
        ("workspace", c_void_p), ("workspace_bytes", c_size_t), ("stats", c_void_p), ("stream", c_void_p),
        ("prepared", c_int32), ("reserved", c_int32), ("index_pages", c_void_p),
        ("k_scales", c_void_p), ("v_scales", c_void_p),
    ]  # fmt: skip


class IndexPages(_Sized):
    _fields_ = [
        ("struct_size", c_size_t), ("memory", c_void_p), ("page_bytes", c_int64), ("pages", c_int64),
        ("coded", c_void_p), ("made", c_void_p),
    ]  # fmt: skip


class IndexSlots(_Sized):
    _fields_ = [
        ("struct_size", c_size_t), ("coded", c_void_p), ("layers", c_int64), ("layer_stride", c_int64),
        ("pages", c_int64), ("page_size", c_int32), ("slots", c_void_p), ("n_slots", c_int64), ("stream", c_void_p),
    ]  # fmt: skip


class BackendFacts(_Sized):
    _fields_ = [
        ("struct_size", c_size_t), ("on_device", c_int32), ("q_block", c_int32), ("format", c_int),
        ("formats", c_uint32), ("projected", c_uint32), ("compensates", c_int32), ("reserved", c_int32),
        ("dense_below_projected", c_int64), ("dense_below", c_int64),
    ]  # fmt: skip


CALL_BYTES = sizeof(Call)

_handle = c_void_p
_call = [_handle, _handle, POINTER(Call)]
_PROTOTYPES = {  # name: (result, arguments)
    "sale_last_error": (c_char_p, []),
    "sale_version": (c_char_p, []),
    "sale_machine": (c_char_p, []),
    "sale_format_name": (c_char_p, [c_int]),
    "sale_index_page_bytes": (c_size_t, [_handle, c_int32]),
    "sale_index_forget": (c_int, [_handle, POINTER(IndexSlots)]),
    "sale_backend_count": (c_int32, []),
    "sale_backend_name": (c_char_p, [c_int32]),
    "sale_backend_why_not": (c_char_p, [c_int32]),
    "sale_backend_describe": (c_int, [c_int32, POINTER(BackendFacts)]),
    "sale_backend_for": (c_int32, [c_int32]),
    "sale_estimator_create": (c_int, [POINTER(Layer), POINTER(_handle)]),
    "sale_estimator_destroy": (None, [_handle]),
    "sale_estimator_backend": (c_char_p, [_handle]),
    "sale_estimator_q_block": (c_int64, [_handle]),
    "sale_plan_create": (c_int, [POINTER(Problem), POINTER(Options), POINTER(_handle), c_int64, POINTER(_handle)]),
    "sale_plan_destroy": (None, [_handle]),
    "sale_plan_workspace": (c_int, [_handle, POINTER(Workspace)]),
    "sale_plan_explain": (c_char_p, [_handle]),
    "sale_plan_prepare": (c_int, [_handle, c_void_p, c_size_t, c_void_p]),
    "sale_index_memory": (c_size_t, [_handle, c_int64]),
    "sale_index_create": (c_int, [_handle, POINTER(IndexOptions), POINTER(_handle)]),
    "sale_index_destroy": (None, [_handle]),
    "sale_index_update": (c_int, [_handle, c_void_p, Strides, c_int64, c_void_p, c_void_p]),
    "sale_index_truncate": (c_int, [_handle, c_int64]),
    "sale_index_length": (c_int64, [_handle]),
    "sale_index_bytes": (c_size_t, [_handle]),
    "sale_blocks_create": (c_int, [_handle, POINTER(_handle)]),
    "sale_blocks_destroy": (None, [_handle]),
    "sale_blocks_csr": (c_int, [_handle, c_void_p, c_int64, c_void_p, c_int64, POINTER(CsrCounts)]),
    "sale_run": (c_int, _call),
    "sale_select": (c_int, _call),
}  # fmt: skip


class InternalError(RuntimeError):
    """A bug in SALE."""


_ERRORS = {INVALID_ARGUMENT: ValueError, UNSUPPORTED: NotImplementedError, OUT_OF_MEMORY: MemoryError}


def _find() -> pathlib.Path:
    named = os.environ.get("SALE_LIBRARY")
    if named:
        return pathlib.Path(named)
    return pathlib.Path(__file__).parent / "lib" / "libsale.so"


def _load() -> ctypes.CDLL:
    path = _find()
    if not path.exists():
        raise ImportError(
            f"sale: there is no library at {path}; install the package with pip, or let SALE_LIBRARY name a "
            "libsale.so built with -DBUILD_SHARED_LIBS=ON"
        )
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    version = library.sale_version().decode()
    if version != VERSION:
        raise ImportError(f"sale: {path} is version {version}, this package is {VERSION}")
    return library


lib = _load()

# What estimates can be in: name and number.
FORMATS = {name.decode(): number for number in range(64) if (name := lib.sale_format_name(number))}


def check(status: int) -> None:
    """Raises what a status other than OK means: ValueError (an argument is wrong; the sentence names it),
    NotImplementedError (a valid request that this build or machine cannot honour), MemoryError, InternalError."""
    if status:
        raise _ERRORS.get(status, InternalError)(lib.sale_last_error().decode())


def created(function, *arguments) -> c_void_p:
    """Calls a sale_*_create function and returns the handle it made."""
    handle = c_void_p()
    check(function(*arguments, byref(handle)))
    return handle
