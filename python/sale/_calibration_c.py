"""ctypes declarations of include/sale/calibration.h."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p

from . import _c

FINGERPRINT_START = 0xCBF29CE484222325
_floats = POINTER(c_float)


class Model(Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("name", c_char_p),
        ("layers", c_int32), ("q_heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32),
        ("fingerprint", c_uint64),
    ]  # fmt: skip


class Text(Structure):
    _fields_ = [("text", c_char_p), ("tokens", c_int64)]


class Data(Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("library", c_char_p), ("name", c_char_p),
        ("layers", c_int32), ("q_heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32),
        ("fingerprint", c_uint64), ("format", c_int), ("rank", c_int32), ("sink", c_int32), ("local", c_int32),
        ("dense_below", c_int64), ("thresholds", _floats), ("q_projections", _floats), ("k_projections", _floats),
        ("smoothing", _floats), ("scales", _floats), ("prompts", POINTER(Text)), ("n_prompts", c_int64),
        ("command", c_char_p), ("date", c_char_p), ("note", c_char_p),
        ("relative_l1_limit", c_double), ("relative_l1", c_double), ("retained_mass", c_double), ("density", c_double),
    ]  # fmt: skip


class Goal(Structure):
    _fields_ = [("kind", c_int), ("value", c_double)]


GOALS = {"budget": 0, "error": 1, "time": 2, "paper": 3}
PASSES = ("done", "project", "measure", "check")


class CalibratorOptions(Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("model", POINTER(Model)), ("dtype", c_int), ("device", c_int32),
        ("backend", c_char_p), ("threads", c_int32), ("format", c_int), ("rank", c_int32), ("q_projections", _floats),
        ("k_projections", _floats), ("sink", c_int32), ("local", c_int32), ("dense_below", c_int64),
        ("goals", POINTER(Goal)), ("n_goals", c_int64), ("prompts", c_int32), ("rows", c_int32), ("seed", c_uint64),
        ("local_heads", c_int32), ("progress", c_char_p), ("command", c_char_p), ("date", c_char_p), ("note", c_char_p),
        ("smoothing", c_int32), ("compensate", c_int32),
    ]  # fmt: skip


class CalibratorLayer(Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("layer", c_int32), ("device", c_int32), ("q_len", c_int64), ("k_len", c_int64),
        ("q", c_void_p), ("k", c_void_p), ("v", c_void_p), ("q_strides", _c.Strides), ("k_strides", _c.Strides),
        ("v_strides", _c.Strides), ("scale", c_float),
    ]  # fmt: skip


class CalibratorState(Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("pass_", c_int), ("prompt", c_int32), ("prompts", c_int32), ("layer", c_int32),
        ("layers", c_int32), ("done", c_double), ("resumed", c_int32),
    ]  # fmt: skip


PROTOTYPES = {
    "sale_fingerprint": (c_uint64, [c_uint64, c_char_p, c_size_t]),
    "sale_calibration_open": (c_int, [c_char_p, POINTER(c_void_p)]),
    "sale_calibration_create": (c_int, [POINTER(Data), POINTER(c_void_p)]),
    "sale_calibration_close": (None, [c_void_p]),
    "sale_calibration_get": (c_int, [c_void_p, POINTER(Data)]),
    "sale_calibration_why_not": (c_char_p, [c_void_p, POINTER(Model)]),
    "sale_calibration_write": (c_int, [c_void_p, c_char_p]),
    "sale_calibrator_create": (c_int, [POINTER(CalibratorOptions), POINTER(c_void_p)]),
    "sale_calibrator_destroy": (None, [c_void_p]),
    "sale_calibrator_get": (c_int, [c_void_p, POINTER(CalibratorState)]),
    "sale_calibrator_begin": (c_int, [c_void_p, c_char_p, c_int64]),
    "sale_calibrator_asks": (c_int, [c_void_p, POINTER(c_int64), c_int64]),
    "sale_calibrator_feed": (c_int, [c_void_p, POINTER(CalibratorLayer)]),
    "sale_calibrator_end": (c_int, [c_void_p]),
    "sale_calibrator_cancel": (c_int, [c_void_p]),
    "sale_calibrator_result": (c_int, [c_void_p, c_int64, POINTER(c_void_p)]),
    "sale_calibrator_forget": (c_int, [c_void_p]),
}
for _name, (_result, _arguments) in PROTOTYPES.items():
    _function = getattr(_c.lib, _name)
    _function.restype, _function.argtypes = _result, _arguments
