"""What outlives its owner, and bytes that are not what they seem: other processes, copies, refilled buffers, forks, other
byte orders. numpy alone; torch's part is in test_torch.py."""

import ast
import copy
import dataclasses
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import reference
import sale
from sale import calibration, calibrator

PACKAGE = pathlib.Path(sale.__file__).parent


def tensors(tokens=600, heads=4, kv_heads=2, d=64, batch=1, seed=0):
    r = np.random.default_rng(seed)
    q = r.standard_normal((batch, heads, tokens, d), np.float32) * 3
    k, v = (r.standard_normal((batch, kv_heads, tokens, d), np.float32) for _ in range(2))
    return q, k, v


def projections(seed=3):
    return {f"{x}_projection": np.random.default_rng(seed + i).standard_normal((2, 64, 16)).astype("f4") for i, x in enumerate("qk")}


EVERY = [sale.Options(), sale.Options(thresholds=0.0, dense_below=0), sale.Options(thresholds=[1.0, 0.1, 2.0, 1 / 3], sink=64, local=256, threads=2),
         sale.Options(format="int4", backend="portable", compute="int8", dense_below=77), sale.Options(thresholds=8.0, **projections())]  # fmt: skip


AUDITED = sale.Options(audit=3, audit_seed=2**64 - 1)


@pytest.mark.parametrize("options", [*EVERY, AUDITED], ids=str)
def test_copies_of_options_are_equal(options):
    sale.attention(*tensors(100), options=options, return_stats=True)  # what a first call leaves behind must not travel
    for again in (copy.copy(options), copy.deepcopy(options), *(pickle.loads(pickle.dumps(options, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1))):
        assert again == options and hash(again) == hash(options) and again.key == options.key
        for name in options.__dataclass_fields__:
            assert np.array_equal(getattr(again, name), getattr(options, name))


OTHER = """
import pickle, sys
import numpy as np, sale
for i in range(7):
    sale.Options(thresholds=100.0 + i, dense_below=0)  # this process has options of its own
options, tensors = pickle.load(sys.stdin.buffer)
pickle.dump([sale.attention(*tensors, options=o) for o in options], sys.stdout.buffer)
"""


def elsewhere(code, given):
    run = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(given), capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    return pickle.loads(run.stdout)


def test_options_in_another_process():
    given = tensors(300)
    for options, out in zip(EVERY, elsewhere(OTHER, (EVERY, given))):
        assert np.array_equal(out, sale.attention(*given, options=options))


def test_a_key_says_everything_or_is_refused():
    from sale.options import options_of

    code = "import pickle, sys; from sale.options import options_of; pickle.dump([options_of(k) for k in pickle.load(sys.stdin.buffer)], sys.stdout.buffer)"
    assert elsewhere(code, [o.key for o in (*EVERY[:4], AUDITED)]) == [*EVERY[:4], AUDITED]
    assert options_of(EVERY[4].key) == EVERY[4]
    code = """
import pickle, sys
from sale.options import options_of
try:
    options_of(pickle.load(sys.stdin.buffer))
except ValueError as e:
    pickle.dump(str(e), sys.stdout.buffer)
"""
    assert "projections that this process has not seen" in elsewhere(code, EVERY[4].key)


def test_options_keep_what_they_were_given():
    given, thresholds = projections(), np.array([1.0, 2.0, 3.0, 4.0], "f4")
    options = sale.Options(thresholds=thresholds, **given)
    key, before = options.key, given["q_projection"].copy()
    given["q_projection"][:] = 0  # still the caller's, to write to
    thresholds[:] = 0
    assert options.key == key and np.array_equal(options.q_projection, before) and options.thresholds == (1.0, 2.0, 3.0, 4.0)
    with pytest.raises(ValueError, match="read-only"):
        options.q_projection[:] = 0


def same(a, b) -> bool:
    """Of values, whatever they are made of."""
    if isinstance(a, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def every_object():
    """One of every public class at least: (it, whether copies and pickles are equal to it; else they are refused)."""
    q, k, v = tensors(300)
    yield from ((o, True) for o in (*EVERY, AUDITED))
    yield sale.stats(q, k, v, options=AUDITED), True
    yield sale.select(q, k, thresholds=8.0), True
    arrays = {"smoothing": np.ones((1, 2, 64)), "provenance": {"prompts": [{"text": "a", "tokens": 3}]}, "error": {"density": 0.5}}
    yield sale.Calibration("m", "0" * 16, "int8", np.ones((1, 4)), *(np.ones((1, 2, 64, 16)),) * 2, 2, 64, **arrays), True
    made = calibrator.Calibrator(layers=1, q_heads=4, kv_heads=2, head_dim=64, goals=[("budget", 0.1)])
    yield made.state(), True
    yield made, False
    yield sale.KeyIndex(like=k, capacity=300), False
    yield sale.InternalError("a"), None  # an exception: its words


COPIES = [copy.copy, copy.deepcopy, *((lambda x, p=p: pickle.loads(pickle.dumps(x, p))) for p in range(pickle.HIGHEST_PROTOCOL + 1))]


def test_copies_and_pickles_of_every_public_object():
    kinds = set()
    for thing, equal in every_object():
        kinds.add(type(thing))
        for again in COPIES:
            if equal is False:
                with pytest.raises(TypeError, match=f"a {type(thing).__name__} can be neither copied nor pickled"):
                    again(thing)
            else:
                made = again(thing)
                assert type(made) is type(thing) and (same(made, thing) if equal else str(made) == str(thing)), again
    public = {x for module in (sale, calibrator, calibration) for x in vars(module).values()
              if isinstance(x, type) and x.__module__.startswith("sale") and not x.__name__.startswith("_")}  # fmt: skip
    assert kinds == public


def test_a_calibration_keeps_what_it_was_given():
    thresholds = np.ones((1, 4), "f4")
    made = sale.Calibration("m", "0" * 16, "int8", thresholds, None, None, 2, 64)
    thresholds[:] = 0  # still the caller's, to write to
    assert (made.thresholds == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        made.thresholds[:] = 0


def test_a_key_index_is_nobody_elses():
    q, k, v = tensors()
    index = sale.KeyIndex(like=k, capacity=700)
    index.update(k[0])
    for form in (copy.copy, copy.deepcopy, pickle.dumps, lambda x: copy.deepcopy({"a": [x]})):
        with pytest.raises(TypeError, match="KeyIndex can be neither copied nor pickled"):
            form(index)
    assert len(index) == 600 and np.array_equal(sale.attention(q, k, v, index=index), sale.attention(q, k, v))
    from sale._handles import index_of

    assert index_of(index.number) is index and index.number > 2**32
    number = index.number
    del index
    with pytest.raises(ValueError, match="index: "):
        index_of(number)


def test_other_objects_survive_copies():
    q, k, v = tensors()
    blocks, stats = sale.select(q, k), sale.stats(q, k, v)
    calibration = sale.Calibration.read(PACKAGE.parents[1] / "models/tiny-llama-128k/calibration.json") if (PACKAGE.parents[1] / "models").exists() else None
    for x in (blocks, stats, calibration):
        for again in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
            for name in getattr(x, "__dataclass_fields__", ()):
                assert np.array_equal(getattr(again, name), getattr(x, name))


def test_lengths_in_a_refilled_buffer():
    q, k, v = (x[0].swapaxes(0, 1) for x in tensors())
    bounds = np.array([0, 200, 600])
    for at in (200, 450, 200, 64):
        bounds[1] = at
        assert np.array_equal(sale.attention(q, k, v, cu_seqlens_q=bounds), sale.attention(q, k, v, cu_seqlens_q=[0, at, 600]))
    q, k, v = tensors(batch=2)
    lens, mask = np.array([600, 600]), np.ones((2, 600), bool)
    for at in (600, 300, 599):
        lens[1], mask[1] = at, np.arange(600) < at
        for name, given, said in (("k_lens", lens, [600, at]), ("attn_mask", mask, mask.copy())):
            more = {"q_offset": 0} if name == "k_lens" else {}
            some = sale.attention(q[:, :, :200], k, v, **{name: given}, **more) if name == "k_lens" else sale.attention(q, k, v, attn_mask=given)
            again = sale.attention(q[:, :, :200], k, v, **{name: said}, **more) if name == "k_lens" else sale.attention(q, k, v, attn_mask=said)
            assert np.array_equal(some, again)


def test_a_rewritten_calibration_is_read_again(tmp_path):
    file = tmp_path / "c.json"
    made = sale.Calibration("m", "0" * 16, "int8", np.zeros((1, 4), np.float32), None, None, 2, 64, dense_below=0)
    made.write(file)
    given = tensors()
    first = sale.attention(*given, calibration=file, layer=0)
    stamp = os.stat(file)
    sale.Calibration("m", "0" * 16, "int8", np.full((1, 4), 8.0, np.float32), None, None, 2, 64, dense_below=0).write(file)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert not np.array_equal(sale.attention(*given, calibration=file, layer=0), first)
    held = sale.Calibration.read(file)
    sale.attention(*given, calibration=held, layer=0)
    with pytest.raises(ValueError, match="read-only"):
        held.thresholds[:] = 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_computes_the_same():
    given = tensors(2048)
    options = sale.Options(thresholds=8.0, dense_below=0)
    wanted = sale.attention(*given, options=options)
    index = sale.KeyIndex(like=given[1], capacity=4096, options=options)
    index.update(given[1][0])
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            same = np.array_equal(sale.attention(*given, options=options), wanted)
            same &= np.array_equal(sale.attention(*given, options=options, index=index), wanted)
            same &= sale.attention(*tensors(300)).shape == (1, 4, 300, 64)
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(sale.attention(*given, options=options), wanted)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("form", [">f4", ">f2", "masked", "unaligned view"])
def test_bytes_that_are_not_the_numbers(form, at):
    given = list(tensors(128))
    if form == "masked":
        given[at] = np.ma.masked_greater(given[at], 1)
    elif form == "unaligned view":  # right as it lies, and served
        memory = np.zeros(given[at].nbytes + 1, "u1")[1:]
        view = memory.view(np.float32).reshape(given[at].shape)
        view[:] = given[at]
        try:
            assert np.array_equal(sale.attention(*given[:at], view, *given[at + 1 :]), sale.attention(*given))
        except ValueError as e:
            assert f"{'qkv'[at]}: not aligned" in str(e)
        return
    else:
        given[at] = given[at].astype(form)
    name = "qkv"[at]
    with pytest.raises(TypeError, match=f"{name}: of the other byte order|{name}: a masked array"):
        sale.attention(*given)
    with pytest.raises(TypeError, match="like: of the other|like: a masked"):
        sale.KeyIndex(like=given[at], capacity=9)
    with pytest.raises(TypeError, match="k: of the other|k: a masked"):
        sale.KeyIndex(like=tensors(9)[1], capacity=999).update(given[at][0, :2])


def test_bytes_that_can_be_made_right():
    q, k, v = (x[0].swapaxes(0, 1) for x in tensors())
    wanted = sale.attention(q, k, v, cu_seqlens_q=[0, 100, 600], thresholds=[0.5, 1.0, 2.0, 3.0])
    for order in (">i8", ">i4", "<u2"):
        assert np.array_equal(sale.attention(q, k, v, cu_seqlens_q=np.array([0, 100, 600], order), thresholds=np.array([0.5, 1, 2, 3], ">f8")), wanted)
    a, b = (sale.Options(thresholds=8.0, **{n: x.astype(t) for n, x in projections().items()}) for t in ("<f4", ">f4"))
    assert a == b
    for masked in ({"cu_seqlens_q": np.ma.array([0, 100, 600], mask=[0, 1, 0])}, {"cu_seqlens_q": [0, 600], "thresholds": np.ma.array([0.5, 1, 2, 3], mask=[1, 0, 0, 0])}):
        with pytest.raises((TypeError, ValueError), match="masked"):
            sale.attention(q, k, v, **masked)


def test_dense_below_is_where_sparse_attention_pays(monkeypatch):
    from sale import _backends, options

    narrow, other = sale.Options(**{n: np.ones((2, 128, 28), "f4") for n in ("q_projection", "k_projection")}), sale.Options(dense_below=7)
    for form, wanted in (("fp8", (9216, 5120)), ("int4", (1024, 1024))):
        gpu = next(f for f in _backends.all_facts() if f.on_device and f.format == form)
        monkeypatch.setattr(options, "facts_on", lambda device, backend, f=gpu: f if device >= 0 else _backends.facts_on(device, backend))
        assert (sale.Options().dense_below_on(0), narrow.dense_below_on(0)) == wanted and other.dense_below_on(0) == 7
        assert sale.Options().dense_below_on(-1) == 1024  # the same object, in host memory
    assert sale.stats(*tensors(1023)).density == 1.0 and sale.stats(*tensors(1100), thresholds=8.0).density < 1.0


# ---- masks with holes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [600, 200])
@pytest.mark.parametrize("causal", [True, False])
def test_holes_in_a_mask(rows, causal):
    q, k, v = tensors(batch=3)
    q = q[:, :, 600 - rows :]
    mask = np.ones((3, 600), bool)
    mask[0, 100:130], mask[0, 590:], mask[1, :50], mask[1, 300:301], mask[2] = False, False, False, False, False
    offset = 600 - rows
    out, lse, stats = sale.attention(q, k, v, thresholds=0.0, attn_mask=mask, causal=causal, return_lse=True, return_stats=True)
    for b in range(2):
        hidden = np.broadcast_to(mask[b], (4, rows, 600))
        wanted, wanted_lse = reference.attention(q[b], k[b], v[b], offset if causal else 600, kept=hidden)
        seen = mask[b, offset:] if causal else np.ones(rows, bool)
        assert np.abs(out[b][:, seen] - wanted[:, seen]).max() < 1e-5 and np.abs(lse[b][:, seen] - wanted_lse[:, seen]).max() < 1e-4
        assert not out[b][:, ~seen].any() and np.isneginf(lse[b][:, ~seen]).all()
    assert not out[2].any() and np.isneginf(lse[2]).all() and not stats.heads[2].any() and stats.heads[0].any()
    assert np.array_equal(stats.heads.sum((0, 1)), [stats.kept_blocks, stats.visible_blocks])


def test_holes_are_as_if_they_were_not_there():
    q, k, v = tensors(batch=2)
    options = sale.Options(thresholds=8.0, dense_below=0)
    seen = np.ones(600, bool)
    seen[90:123] = False
    out = sale.attention(q, k, v, options=options, attn_mask=np.stack([seen, np.ones(600, bool)]))
    alone = sale.attention(*(x[:1][:, :, seen] for x in (q, k, v)), options=options)
    assert np.array_equal(out[:1][:, :, seen], alone) and np.array_equal(out[1:], sale.attention(q[1:], k[1:], v[1:], options=options))
    assert not sale.attention(q, k, v, attn_mask=np.zeros((2, 600), bool)).any()
    with pytest.raises(NotImplementedError, match="index: given together with an attn_mask"):
        index = sale.KeyIndex(like=k, capacity=600)
        sale.attention(q[:1], k[:1], v[:1], attn_mask=seen[None], index=index)


# ---- the package -----------------------------------------------------------------------------------------------------


def imports_of(file: pathlib.Path) -> set[str]:
    """Modules of the package that a module imports, anywhere in it."""
    here = ["sale", *file.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            if base[:1] == ["sale"]:
                found |= {".".join(base)} | {".".join([*base, a.name]) for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


def test_no_module_imports_itself_in_a_circle():
    files = {".".join(["sale", *f.relative_to(PACKAGE).with_suffix("").parts]): f for f in PACKAGE.rglob("*.py")}
    graph = {name: imports_of(f) & set(files) - {name} for name, f in files.items() if not name.endswith("__init__")}
    done: set[str] = set()

    def walk(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, [*path, name])
            done.add(name)

    for name in graph:
        walk(name, [])
