"""Every parameter of every public function, given every kind of wrong value: TypeError, ValueError, NotImplementedError or
(of numbers that count layers, heads, tiles) IndexError, naming it. What may be taken is said here by parameter; a new
parameter without an entry fails."""

import contextlib
import functools
import inspect
import math
import numbers
import os
import pathlib
import re

import numpy as np
import pytest
import sale
from sale.calibrator import Calibrator

try:
    import torch
except ImportError:
    torch = None

ROOT = pathlib.Path(__file__).resolve().parents[2]
CALIBRATION = str(ROOT / "models/tiny-llama-128k/calibration.json")


class Odd:
    """Neither a number nor anything else; what it prints has lines."""

    def __repr__(self):
        return "odd\nodd"


def values(kind):
    r = np.random.default_rng(0)
    whole = r.standard_normal((1, 2, 128, 64)).astype("f4")
    pool = [
        None, True, False, np.True_, 0, 1, 3, -1, 64, 2**31, 2**40, 2**63, -(2**63), 2**70, 1e400, np.int64(32), np.uint8(1), 0.5, -0.5, 64.0,
        math.nan, math.inf, 1e39, np.float32(0.25), np.float64("nan"), 1j, "x", "", "0.1", "int8", "auto", "x\0y", b"avx2", b"", [], [1.5], ["a"],
        [0, 128], [128], [True], [None], [[1], [2, 3]], [2**63], [2**70], [-1], (0, 64, 128), (), range(3), {}, {"a": 1}, {0.1}, frozenset(), Odd(), Odd,
        len, ..., slice(3), np.zeros(3), np.zeros((0,)), np.array("x"), np.array(["a"]), np.array([None]), np.array([1j]), np.array(0.25),
        np.array([0, 128]), np.array([0, 128], ">i8"), np.array([0, 128], "u8"), np.array([0.0, 128.0]), np.ones((1, 128), bool), np.ones((1, 128), "u1"),
        np.ma.masked_array([0, 128], [0, 1]), np.ma.masked_array(np.ones((1, 128), bool)), whole, whole.astype(">f4"), whole.astype("f8"), whole[:, :, ::-1],
        whole.astype("f2"), whole.astype("i4"), whole.astype("c8"), np.ma.masked_array(whole, whole > 1), whole[..., ::2], np.zeros((1, 2, 128, 64), "V4"),
        whole[0], whole[0, :, 0] * math.nan, pathlib.Path("/none"), "/none", sale.Options, sale.Options(), [sale.Options()],
        sale.KeyIndex(like=whole, capacity=9), [sale.KeyIndex(like=whole, capacity=9)] * 3,
    ]  # fmt: skip
    if torch is not None:
        t = torch.from_numpy(whole)
        pool += [t, t.double(), t.to_sparse(), t.to(torch.complex64).conj().imag, t.bool(), t.requires_grad_(True) * 1, torch.tensor([0, 128]),
                 torch.tensor(0.5), torch.ones(1, 128, dtype=torch.bool), t.detach().to("meta"), torch.tensor([0.0, 128.0]), torch.zeros(0)]  # fmt: skip
    return pool


def is_array(x):
    return type(x) is np.ndarray or (torch is not None and isinstance(x, torch.Tensor))


def finite(x):
    return isinstance(x, numbers.Real) and not isinstance(x, (bool, np.bool_)) and abs(x) < 3e38


def integers(x, low, high=2**62):
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.numpy() if x.device.type == "cpu" and not x.requires_grad and x.layout is torch.strided and not x.is_neg() else None
    if type(x) is np.ndarray:
        return x.dtype.kind in "iu" and x.ndim == 1 and all(low <= n <= high for n in x.tolist())
    return isinstance(x, (list, tuple, range)) and all(type(n) is int and low <= n <= high for n in x)


def whole(low, high):
    return lambda x: isinstance(x, (int, np.integer)) and not isinstance(x, (bool, np.bool_)) and low <= x <= high


def flag(x):
    return isinstance(x, (bool, np.bool_))


def floats(x):
    if torch is not None and isinstance(x, torch.Tensor):
        return not x.dtype.is_complex and x.dtype != torch.bool and x.layout is torch.strided and x.device.type == "cpu"
    if isinstance(x, (list, tuple, range)):
        return all(finite(n) for n in x)
    return finite(x) or (type(x) is np.ndarray and x.dtype.kind in "iuf")


def tensor(x):
    if torch is not None and isinstance(x, torch.Tensor):
        return x.dtype in (torch.float32, torch.float64) and x.layout is torch.strided and x.device.type == "cpu"
    return type(x) is np.ndarray and x.dtype.name in ("float32", "float16") and x.dtype.isnative


def thresholds(x):
    ordered = np.ravel(x.detach().numpy() if hasattr(x, "detach") else x) if floats(x) else []
    return len(ordered) > 0 and bool((np.asarray(ordered, float) >= 0).all())


def mask(x):
    if torch is not None and isinstance(x, torch.Tensor):
        return x.dtype == torch.bool
    return type(x) is np.ndarray and x.dtype == bool


def words(x):
    return isinstance(x, str) and "\0" not in x


def is_path(x):
    return isinstance(x, (str, os.PathLike))


OPTIONAL = (None,)
TAKEN = {  # by parameter; None: where it is the default
    "q": tensor, "k": tensor, "v": tensor, "like": tensor, "reference": tensor, "out_a": tensor, "out_b": tensor, "lse_a": tensor, "lse_b": tensor,
    "halo": tensor, "sink_keys": tensor,
    "thresholds": thresholds, "calibration": lambda x: isinstance(x, sale.Calibration), "layer": whole(0, 7),
    "options": lambda x: isinstance(x, sale.Options), "causal": flag, "scale": lambda x: finite(x) and x > 0, "q_offset": whole(0, 2**62), "attn_mask": mask,
    "asking": lambda x: isinstance(x, (list, tuple, range)) and integers(x, 0, 1024) and list(x) == sorted(set(x)),
    "window": whole(0, 2**31), "window_sink": lambda x: flag(x) and not x,  # which stands beside a window
    "cu_seqlens_q": lambda x: integers(x, 0, 128), "cu_seqlens_k": lambda x: integers(x, 0, 128), "page_table": lambda x: False,
    "k_lens": lambda x: integers(x, 1, 128), "index": lambda x: isinstance(x, (list, tuple, sale.KeyIndex)), "return_lse": flag, "return_stats": flag,
    "format": lambda x: x in ("auto", "int4", "int8", "fp8"), "q_projection": floats, "k_projection": floats, "sink": whole(0, 2**31 - 1),
    "local": whole(0, 2**31 - 1), "dense_below": lambda x: whole(0, 2**62)(x) or (isinstance(x, str) and x == "auto"),
    "compute": lambda x: x in ("exact", "int8", "fp8", "f16"), "backend": lambda x: isinstance(x, str) and "\0" not in x, "threads": whole(0, 2**31 - 1),
    "compensate": flag, "audit": whole(0, 65536), "audit_seed": whole(0, 2**64 - 1), "capacity": whole(1, 2**62), "smoothing": floats, "key_scales": floats, "page_size": lambda x: whole(0, 64)(x) and x % 16 == 0,
    "memory": lambda x: False, "pages": lambda x: False, "tokens": whole(0, 2**62), "first": whole(0, 2**31), "count": whole(1, 2**31),
    "group": whole(1, 2**31), "sequence": whole(0, 0), "head": whole(0, 1), "tile": whole(0, 1), "blocks": lambda x: isinstance(x, sale.BlockList),
    "path": is_path, "folder": is_path, "text": words, "name": words, "command": words, "note": words, "date": words, "fingerprint": lambda x: False,
    "dtype": lambda x: False, "layers": whole(1, 4096), "q_heads": lambda x: whole(1, 65536)(x) and x % 2 == 0, "kv_heads": lambda x: x in (1, 2),
    "head_dim": lambda x: whole(16, 256)(x) and x % 16 == 0, "goals": lambda x: False, "rank": lambda x: whole(0, 64)(x) and x in (0, 32, 64), "projections": lambda x: False,
    "prompts": whole(1, 1000), "rows": whole(4, 4096), "seed": whole(0, 2**64 - 1), "local_heads": flag, "progress": is_path, "device": whole(0, 1023),
    "goal": lambda x: False, "group_": lambda x: False, "q_projections": lambda x: False, "k_projections": lambda x: False, "scales": lambda x: False,
    "provenance": lambda x: x == {}, "error": lambda x: x == {},
    "model": lambda x: False, "name_or_path": lambda x: isinstance(x, str) and "\0" not in x,
}  # fmt: skip
NONE = {name for name in TAKEN} - {"q", "k", "v", "like", "thresholds", "causal", "window", "window_sink", "asking", "return_lse", "return_stats", "format", "sink", "local", "dense_below",
                                   "compute", "threads", "compensate", "audit", "audit_seed", "capacity", "page_size", "tokens", "first", "count", "group", "sequence", "head", "tile",
                                   "blocks", "path", "model", "name_or_path", "out_a", "out_b", "lse_a", "lse_b"}  # fmt: skip
IN = {  # where a name means something else in one function
    ("plot_mask", "scale"): whole(0, 4096), ("Calibrator.feed", "scale"): lambda x: finite(x) and x >= 0, ("Calibrator.feed", "layer"): whole(0, 0),
    ("Calibrator.begin", "tokens"): whole(1025, 2**31), ("Calibrator.result", "goal"): whole(0, 0), ("Options.format_on", "device"): whole(-1, 2**31 - 1),
    ("Options.dense_below_on", "device"): whole(-1, 2**31 - 1), ("Calibrator", "threads"): whole(0, 1024),
    ("Calibrator", "smoothing"): flag, ("Calibrator", "q_heads"): whole(1, 65536), ("Calibrator", "format"): lambda x: x in ("int8", "int4"), ("Calibration", "format"): lambda x: x in ("int4", "int8", "fp8"),
    ("Calibration", "thresholds"): lambda x: floats(x) and getattr(x, "ndim", 0) == 2 and not hasattr(x, "detach"), ("Calibration", "smoothing"): lambda x: False, ("Calibration", "kv_heads"): whole(1, 2**31 - 1),
    ("Calibration", "head_dim"): whole(1, 2**31 - 1), ("Calibration", "dense_below"): whole(0, 2**62), ("Calibration.check", "layers"): whole(8, 8),
    ("Calibration.check", "q_heads"): whole(4, 4), ("Calibration.check", "kv_heads"): whole(2, 2), ("Calibration.check", "head_dim"): whole(128, 128),
    ("use", "calibration"): lambda x: False, ("audits", "model"): lambda x: False,
}
WRITES = {("plot_mask", "path"), ("Calibration.write", "path"), ("Calibrator", "progress")}  # what is taken for a path is left out
TOGETHER = {"q", "k", "v", "cu_seqlens", "out_a", "out_b", "lse_a", "lse_b"}  # a shape that does not fit is said of any of them
ERRORS = (TypeError, ValueError, NotImplementedError, IndexError, MemoryError)


def functions(kind, tmp):
    """(name, function, good arguments) of everything public, on numpy arrays or torch tensors."""
    r = np.random.default_rng(1)
    q, k, v = (r.standard_normal((1, 2, 128, 64)).astype("f4") for _ in range(3))
    wide = [r.standard_normal((1, h, 64, 128)).astype("f4") for h in (4, 2, 2)]
    if kind == "torch":
        q, k, v, *wide = (torch.from_numpy(x) for x in (q, k, v, *wide))
    three = {"q": q, "k": k, "v": v}
    blocks = sale.select(q, k)
    index = sale.KeyIndex(like=k, capacity=256)
    options = sale.Options(thresholds=[1.0, 2.0, 3.0, 4.0])
    yield "attention", sale.attention, three
    yield "attention of a calibration", sale.attention, {**dict(zip("qkv", wide)), "calibration": CALIBRATION, "layer": 1}
    yield "packed attention", sale.attention, {n: x[0].swapaxes(0, 1) for n, x in three.items()} | {"cu_seqlens_q": [0, 128]}
    yield "stats", sale.stats, three
    yield "select", sale.select, {"q": q, "k": k}
    yield "explain", sale.explain, {"q": q, "k": k}
    yield "Options", sale.Options, {}
    yield "Options.heads", options.heads, {"first": 0, "count": 2, "group": 2}
    yield "KeyIndex", sale.KeyIndex, {"like": k, "capacity": 64}
    yield "KeyIndex.update", index.update, {"k": k[0]}
    yield "KeyIndex.truncate", sale.KeyIndex(like=k, capacity=64).truncate, {"tokens": 0}
    yield "KeyIndex.memory_bytes", sale.KeyIndex.memory_bytes, {"like": k, "capacity": 64}
    yield "BlockList.row", blocks.row, {"sequence": 0, "head": 0, "tile": 0}
    yield "BlockList.mask", blocks.mask, {"sequence": 0, "head": 0}
    yield "BlockList.row_number", blocks.row_number, {"sequence": 0, "head": 0, "tile": 0}
    yield "plot_mask", sale.plot_mask, {"blocks": blocks, "path": tmp / "m.png"}
    yield "Options.format_on", options.format_on, {"device": -1}
    yield "Options.dense_below_on", options.dense_below_on, {"device": -1}
    calibration = sale.Calibration.read(CALIBRATION)
    yield "Calibration", sale.Calibration, {
        "name": "m", "fingerprint": "0" * 16, "format": "int8", "thresholds": np.ones((1, 4)), "q_projections": None, "k_projections": None,
        "kv_heads": 2, "head_dim": 64,
    }  # fmt: skip
    yield "Calibration.options", calibration.options, {"layer": 0}
    yield "Calibration.read", sale.Calibration.read, {"path": CALIBRATION}
    yield "Calibration.write", calibration.write, {"path": tmp / "c.json"}
    yield "Calibration.check", calibration.check, {"layers": 8, "q_heads": 4, "kv_heads": 2, "head_dim": 128}
    model = {"layers": 1, "q_heads": 2, "kv_heads": 1, "head_dim": 64, "goals": [("budget", 0.1)], "dtype": "float32"}
    yield "Calibrator", Calibrator, model
    yield from calibrators(Calibrator(**model), three)
    if kind == "torch":
        from sale import parallel

        shard = {n: torch.cat([x, x[:, :, :64]], 2) for n, x in three.items()}
        for form in (parallel.ulysses, parallel.gather, parallel.ring):
            yield f"parallel.{form.__name__}", form, shard
        yield "parallel.merge", parallel.merge, {"out_a": v, "lse_a": v[..., 0], "out_b": v, "lse_b": v[..., 0]}


def calibrators(made, three):
    """Functions of a calibrator, each from the state in which it can be called."""
    tokens = 1100
    long = {n: np.tile(x, (1, 1, 9, 1)) if isinstance(x, np.ndarray) else x.repeat(1, 1, 9, 1) for n, x in three.items()}
    long = {n: x[:, : 2 if n == "q" else 1, :tokens] for n, x in long.items()}

    @functools.wraps(made.begin)
    def begin(**given):
        try:
            made.cancel()
        except ValueError:  # nothing was begun
            pass
        made.begin(**given)

    @functools.wraps(made.feed)
    def feed(**given):
        begin(text="a", tokens=tokens)
        made.feed(**given)

    yield "Calibrator.begin", begin, {"text": "a", "tokens": tokens}
    yield "Calibrator.feed", feed, {"layer": 0, **long}
    while made.state().doing != "done":
        feed(layer=0, **long)
        made.end()
    yield "Calibrator.result", made.result, {"goal": 0}


class Started(Exception):
    """Of a function that takes long: its arguments were taken."""


def transformers_functions(tmp):
    transformers = pytest.importorskip("transformers")
    from sale import transformers as adapter

    sizes = dict(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    yield "use", adapter.use, {"model": model}
    yield "audits", adapter.audits, {"model": model}
    yield "model_fingerprint", adapter.model_fingerprint, {"folder": tmp}
    yield "find_calibration", adapter.find_calibration, {"name_or_path": "a"}
    yield "folder_of", adapter.folder_of, {"name_or_path": "a"}


def sweep(cases, kind):
    bad, refused, taken = [], 0, 0
    for called, function, good in cases:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            allowed = IN.get((called, name)) or TAKEN[name]
            for value in values(kind):
                if (called, name) in WRITES and is_path(value):
                    continue
                try:
                    function(**{**good, name: value})
                except ERRORS as e:
                    refused += 1
                    names = TOGETHER if name in TOGETHER else {name}
                    default = value is None and parameter.default is None  # and what is wrong is something else
                    named = any(re.search(rf"\b(n_)?{n}", str(e)) for n in names) or (is_path(value) and str(value) in str(e))
                    if not default and not named or "\n" in str(e).split("none can")[0]:
                        bad.append(f"{called}: {name}={value!r:.60}: {type(e).__name__}: {str(e)[:120]}")
                except Exception as e:
                    bad.append(f"{called}: {name}={value!r:.60}: {type(e).__name__}: {str(e)[:120]}")
                else:
                    taken += 1
                    if not (allowed(value) or (value is None and (name in NONE or parameter.default is None))):
                        bad.append(f"{called}: {name}={value!r:.60}: taken")
    assert not bad, f"{len(bad)} of {refused + taken}:\n" + "\n".join(bad)
    return refused, taken


@contextlib.contextmanager
def group_of_one(kind, tmp):
    """sale.parallel's functions want a process group."""
    if kind != "torch":
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_wrong_arguments_are_refused_by_name(kind, tmp_path):
    if kind == "torch" and torch is None:
        pytest.skip("there is no torch")
    with group_of_one(kind, tmp_path):
        refused, taken = sweep(functions(kind, tmp_path), kind)
    assert refused > 3000 and taken > 100


def test_wrong_arguments_of_the_transformers_adapter(tmp_path):
    sweep(transformers_functions(tmp_path), "torch")


# ---- that nothing public is left out ---------------------------------------------------------------------------------

ELSEWHERE = {  # public, and not in the sweep: why
    "BlockList": "made by select", "Stats": "made by attention", "State": "made by a calibrator", "explain": "in it, with attention's arguments",
    "KeyIndex.set_smoothing": "always refused", "reference": "a part of ring", "attention": "in it; of transformers: called by models",
    "paged": "called by models", "mask": "called by models", "calibrate": "its arguments are the Calibrator's, and a model and a text",
}  # fmt: skip


def public(modules):
    """Qualified names of what can be called with arguments, classes' methods among them."""
    for module in modules:
        names = getattr(module, "__all__", None) or [n for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__]
        for name in names:
            thing = getattr(module, name)
            if name.startswith("_") or not callable(thing) or (isinstance(thing, type) and issubclass(thing, Exception)):
                continue
            yield thing.__qualname__, thing
            if isinstance(thing, type):
                for at, method in vars(thing).items():
                    if not at.startswith("_") and (inspect.isfunction(method) or isinstance(method, (classmethod, staticmethod))):
                        yield f"{thing.__qualname__}.{at}", getattr(thing, at)


def takes_arguments(thing) -> bool:
    kinds = [p.kind for n, p in inspect.signature(thing).parameters.items() if n != "self"]
    return any(k not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL) for k in kinds)


def left_out(modules, cases) -> set[str]:
    swept = {inspect.unwrap(f).__qualname__ for _, f, _ in cases}
    return {name for name, thing in public(modules) if takes_arguments(thing)} - swept - ELSEWHERE.keys()


def test_everything_public_is_in_the_sweep(tmp_path):
    import sale.calibration
    import sale.calibrator

    assert not left_out([sale, sale.calibration, sale.calibrator], functions("numpy", tmp_path))


def test_everything_of_torch_is_in_the_sweep(tmp_path):
    pytest.importorskip("transformers")
    from sale import parallel
    from sale import transformers as adapter

    cases = [*functions("torch", tmp_path), *transformers_functions(tmp_path)]
    assert not left_out([parallel, adapter], cases)
