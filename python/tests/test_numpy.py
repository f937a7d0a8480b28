"""The package on numpy arrays alone."""

import dataclasses
import json
import mmap
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import reference
import sale

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/tiny-llama-128k"


def tensors(tokens=1500, keys=None, heads=4, kv_heads=2, d=64, batch=1, seed=0, sharp=3.0):
    r = np.random.default_rng(seed)
    q = r.standard_normal((batch, heads, tokens, d), np.float32) * sharp
    k, v = (r.standard_normal((batch, kv_heads, keys or tokens, d), np.float32) for _ in range(2))
    return q, k, v


SPARSE = sale.Options(thresholds=8.0, dense_below=0)  # random data is flat: this keeps about half the blocks


def test_dense_is_attention():
    q, k, v = tensors()
    out, lse = sale.attention(q, k, v, thresholds=0.0, return_lse=True)
    wanted, wanted_lse = reference.attention(q[0], k[0], v[0], 0)
    assert np.abs(out[0] - wanted).max() < 1e-5 and np.abs(lse[0] - wanted_lse).max() < 1e-4


def test_sparse_is_attention_over_the_selected_blocks():
    q, k, v = tensors()
    out, lse, stats = sale.attention(q, k, v, options=SPARSE, return_lse=True, return_stats=True)
    blocks = sale.select(q, k, options=SPARSE)
    assert 0.2 < blocks.density < 0.9 and len(blocks.indices) == stats.kept_blocks
    assert blocks.density == stats.density and stats.heads[..., 0].sum() == stats.kept_blocks
    wanted, wanted_lse = reference.attention(q[0], k[0], v[0], 0, kept=reference.kept_pairs(blocks, 0, 1500, 1500))
    assert np.abs(out[0] - wanted).max() < 1e-5 and np.abs(lse[0] - wanted_lse).max() < 1e-4


def test_chunked_and_not_causal():
    q, k, v = tensors(200, 1500)
    out = sale.attention(q, k, v, thresholds=0.0)
    assert np.abs(out[0] - reference.attention(q[0], k[0], v[0], 1300)[0]).max() < 1e-5
    out = sale.attention(q, k, v, thresholds=0.0, causal=False, scale=0.3)
    assert np.abs(out[0] - reference.attention(q[0], k[0], v[0], 1500, 0.3)[0]).max() < 1e-4
    out = sale.attention(q, k, v, thresholds=0.0, q_offset=700)
    assert np.abs(out[0] - reference.attention(q[0], k[0], v[0], 700)[0]).max() < 1e-5


def test_strides_do_not_matter():
    q, k, v = tensors(1200, batch=2)
    out = sale.attention(q, k, v, options=SPARSE)
    fused = np.zeros((2, 1200, 8, 64), np.float32)  # [batch, token, q and k and v heads, d]
    fused[:, :, :4], fused[:, :, 4:6], fused[:, :, 6:] = (x.swapaxes(1, 2) for x in (q, k, v))
    views = (fused[:, :, a:b].swapaxes(1, 2) for a, b in ((0, 4), (4, 6), (6, 8)))
    again = sale.attention(*views, options=SPARSE)
    assert np.array_equal(out, again)
    # Offsets beyond 2^31 bytes: tokens 2 MiB apart, in memory of which one page of each is ever touched.
    memory = mmap.mmap(-1, 1200 << 21)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    wide = np.frombuffer(memory, np.float32).reshape(1200, 1 << 19)[:, :64][None, None]
    wide[:] = k[:1, :1]
    far = sale.attention(q[:1, :2], wide, v[:1, :1], options=SPARSE)
    assert np.array_equal(far, sale.attention(q[:1, :2], k[:1, :1], v[:1, :1], options=SPARSE))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    q, k, v = (x.astype(dtype) for x in tensors())
    out = sale.attention(q, k, v, thresholds=0.0)
    assert out.dtype == q.dtype
    wanted = reference.attention(*(x[0].astype(np.float64) for x in (q, k, v)), 0)[0]
    assert np.abs(out[0].astype(np.float64) - wanted).max() < 0.02


def test_packed_is_each_alone():
    q, k, v = tensors(1900)
    bounds = [0, 700, 1900]
    packed = [x[0].swapaxes(0, 1) for x in (q, k, v)]
    options = SPARSE
    out, lse = sale.attention(*packed, options=options, cu_seqlens_q=bounds, return_lse=True)
    assert out.shape == packed[0].shape and lse.shape == (4, 1900)
    for a, b in zip(bounds, bounds[1:]):
        alone, alone_lse = sale.attention(*(x[:, :, a:b] for x in (q, k, v)), options=options, return_lse=True)
        assert np.array_equal(out[a:b], alone[0].swapaxes(0, 1)) and np.array_equal(lse[:, a:b], alone_lse[0])
    chunk = sale.attention(packed[0][600:], packed[1], packed[2], cu_seqlens_q=[0, 100, 1300], cu_seqlens_k=bounds,
                           thresholds=0.0)  # fmt: skip
    whole = sale.attention(*packed, thresholds=0.0, cu_seqlens_q=bounds)
    assert np.abs(chunk - whole[600:]).max() < 1e-5


@pytest.mark.parametrize("axes", [2, 4])
def test_padding_is_each_alone(axes):
    q, k, v = tensors(1100, batch=3)
    mask = np.ones((3, 1100), bool)
    mask[1, :300], mask[2, 900:] = False, False
    given = mask if axes == 2 else mask[:, None, None, :]
    out, lse = sale.attention(q, k, v, options=SPARSE, attn_mask=given, return_lse=True)
    for b, rows in enumerate((slice(0, 1100), slice(300, 1100), slice(0, 900))):
        one = [x[b : b + 1, :, rows] for x in (q, k, v)]
        alone, alone_lse = sale.attention(*one, options=SPARSE, return_lse=True)
        assert np.array_equal(out[b : b + 1, :, rows], alone) and np.array_equal(lse[b : b + 1, :, rows], alone_lse)
        assert not out[b][:, ~mask[b]].any() and np.isneginf(lse[b][:, ~mask[b]]).all()


def test_padding_and_a_longer_cache():
    q, k, v = tensors(200, 1500, batch=3)
    mask = np.zeros((3, 1500), bool)
    mask[0, :900], mask[1, 100:900], mask[2, 750:900] = True, True, True  # a static cache with 900 keys in it
    out = sale.attention(q, k, v, options=SPARSE, attn_mask=mask, q_offset=700)
    for b, (first, row) in enumerate(((0, 0), (100, 0), (750, 50))):
        alone = sale.attention(q[b : b + 1, :, row:], k[b : b + 1, :, first:900], v[b : b + 1, :, first:900], options=SPARSE)
        assert np.array_equal(out[b : b + 1, :, row:], alone)
    gone = sale.attention(q, k, v, options=SPARSE, attn_mask=mask & (np.arange(3) < 2)[:, None], q_offset=700)
    assert not gone[2].any() and np.array_equal(gone[:2], out[:2])


def test_an_index_is_what_the_call_would_make():
    q, k, v = tensors(2000)
    index = sale.KeyIndex(like=k, capacity=3000, options=SPARSE)
    index.update(k[0])
    assert len(index) == 2000 and index.nbytes > 2000 * 64
    assert np.array_equal(sale.attention(q, k, v, options=SPARSE, index=index), sale.attention(q, k, v, options=SPARSE))
    with pytest.raises(ValueError, match="holds 2000 keys"):
        sale.attention(q[:, :, :1500], k[:, :, :1500], v[:, :, :1500], options=SPARSE, index=index)
    index.truncate(1500)
    assert len(index) == 1500
    index.update(k[0])
    assert np.array_equal(sale.attention(q, k, v, options=SPARSE, index=index), sale.attention(q, k, v, options=SPARSE))


def test_chunks_with_one_smoothing_are_the_whole():
    q, k, v = tensors(2048)
    smoothed = SPARSE.replace(smoothing=k[0].mean(1, dtype=np.float64))
    index = sale.KeyIndex(like=k, capacity=2048, options=smoothed)
    parts = []
    for end in (1024, 2048):
        index.update(k[0, :, :end])
        parts.append(sale.attention(q[:, :, end - 1024 : end], k[:, :, :end], v[:, :, :end], options=smoothed, index=[index]))
    assert np.array_equal(np.concatenate(parts, 2), sale.attention(q, k, v, options=SPARSE))


def test_calibration_of_the_bundled_model(tmp_path):
    calibration = sale.Calibration.read(MODEL / "calibration.json")
    assert (calibration.layers, calibration.q_heads, calibration.rank, calibration.format) == (8, 4, 64, "int8")
    options = calibration.options(6)
    assert options.thresholds == tuple(calibration.thresholds[6]) and options.rank == 64
    q, k, v = tensors(1500, d=128)
    by_layer = sale.attention(q, k, v, calibration=MODEL / "calibration.json", layer=6)
    assert np.array_equal(by_layer, sale.attention(q, k, v, options=options))
    calibration.write(tmp_path / "again.json")
    again = sale.Calibration.read(tmp_path / "again.json")
    assert again.options(6) == options and again.fingerprint == calibration.fingerprint
    with pytest.raises(ValueError, match="made for a model with layers 8"):
        calibration.check(layers=9, q_heads=4, kv_heads=2, head_dim=128)
    thresholds = calibration.thresholds.copy()
    thresholds[0, 0], thresholds[7, 3] = 0, sale.calibration.LOCAL
    more = dataclasses.replace(calibration, thresholds=thresholds, smoothing=np.ones((8, 2, 128), np.float32),
                               scales=np.full((8, 2), 0.5))  # fmt: skip
    more.write(tmp_path / "more.json")
    again = sale.Calibration.read(tmp_path / "more.json")
    for name in ("thresholds", "smoothing", "scales", "k_projections"):
        assert np.array_equal(getattr(again, name), getattr(more, name)), name
    assert again.provenance == calibration.provenance and again.error == calibration.error
    with pytest.raises(ValueError, match="scales: of shape"):
        dataclasses.replace(more, scales=np.ones((8, 3)))


def test_a_calibrations_smoothing_is_used():
    """What a file says of smoothing and scales reaches the codes."""
    q, k, v = tensors(900)
    k = k + 3  # so that the vector matters
    r = np.random.default_rng(1)
    smoothing = k[:, :, :500].mean((0, 2)) + r.standard_normal((2, 64)).astype("f4")
    made = sale.Calibration("m", "0" * 16, "int8", np.full((1, 4), 8.0), None, None, 2, 64, dense_below=0, smoothing=smoothing[None])
    options = made.options(0)
    assert np.array_equal(options.smoothing, smoothing) and options.key_scales is None
    plain = sale.attention(q, k, v, options=SPARSE)
    by_file = sale.attention(q, k, v, calibration=made, layer=0)
    assert np.array_equal(by_file, sale.attention(q, k, v, options=options)) and not np.array_equal(by_file, plain)
    scaled = dataclasses.replace(made, scales=np.ones((1, 2)))
    with pytest.raises(ValueError, match="key_scales: given, but format is int8"):
        sale.attention(q, k, v, calibration=scaled, layer=0)
    assert np.array_equal(dataclasses.replace(scaled, format="fp8").options(0).key_scales, [1, 1])


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("schema"), "schema is missing"),
    (lambda t: t.update(extra=1), "'extra' is not a known field"),
    (lambda t: t["thresholds"].pop(), "has 7 rows; 8 are needed"),
    (lambda t: t["thresholds"][2].append(1), r"thresholds\[2\] has 5 numbers; 4 are needed"),
    (lambda t: t["thresholds"][0].__setitem__(0, float("nan")), "not JSON"),
    (lambda t: t["model"].update(head_dim=1000), "head_dim is 1000; 16 to 256"),
    (lambda t: t["projections"].update(file="../x"), "without folders"),
    (lambda t: t["estimator"].update(format="int4"), "int4 takes only head_dim, 128"),
    (lambda t: t["estimator"].update(rank=60), "a multiple of 16 is needed"),
    (lambda t: t["blocks"].update(sink=40), "a multiple of 32 is needed"),
    (lambda t: t["provenance"].update(surprise=1), "'surprise' is not a known field"),
    (lambda t: t["projections"].update(fingerprint="0" * 16), "fingerprint differs"),
    (lambda t: t.update(projections=None), "rank below head_dim needs a file"),
])  # fmt: skip
def test_calibration_files_are_not_trusted(tmp_path, change, message):
    tree = json.loads((MODEL / "calibration.json").read_text())
    (tmp_path / "calibration.tensors").write_bytes((MODEL / "calibration.tensors").read_bytes())
    change(tree)
    (tmp_path / "c.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=message):
        sale.Calibration.read(tmp_path / "c.json")


def test_options_are_values():
    a, b = sale.Options(thresholds=[0.1, 0.2]), sale.Options(thresholds=np.array([0.1, 0.2]))
    assert a == b and hash(a) == hash(b) and a.key == b.key and a != a.replace(local=256)
    projection = np.ones((4, 64, 16), np.float32)
    options = sale.Options(thresholds=range(8), q_projection=projection, k_projection=projection)
    part = options.heads(4, 2, 2)
    assert part.thresholds == (4.0, 5.0) and part.q_projection.shape == (1, 64, 16)
    with pytest.raises(ValueError, match="neither whole groups"):
        options.heads(0, 3, 2)


def test_a_picture(tmp_path):
    q, k, v = tensors(1500)
    blocks = sale.select(q, k, options=SPARSE)
    mask = blocks.mask(0, 1)
    assert mask.shape == (24, 47) and (mask[0] > 0).sum() == 2 and (mask[-1] == 2).sum() == len(blocks.row(0, 1, 23))
    sale.plot_mask(blocks, tmp_path / "m.png", head=1, scale=2)
    data = (tmp_path / "m.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (94, 96)
    lines = np.frombuffer(zlib.decompress(data[data.index(b"IDAT") + 4 : -16]), np.uint8).reshape(96, 95)
    assert not lines[:, 0].any() and np.array_equal(lines[::4, 1::2], mask)
    with pytest.raises(IndexError, match="head 4"):
        sale.plot_mask(blocks, tmp_path / "no.png", head=4)
    assert not (tmp_path / "no.png").exists()


Q, K, V = tensors(100)


@pytest.mark.parametrize("call, error, message", [
    (lambda: sale.attention(Q[0], K, V), ValueError, r"q: of shape \[4, 100, 64\]"),
    (lambda: sale.attention(Q, K[:, :, :50], V), ValueError, "v: of shape"),
    (lambda: sale.attention(Q, K[..., :32], V[..., :32]), ValueError, "k: of shape .* axis -1 must be 64"),
    (lambda: sale.attention(Q[:, :3], K, V), ValueError, "q_heads: 3 is not a multiple of kv_heads 2"),
    (lambda: sale.attention(Q[..., :40], K[..., :40], V[..., :40]), ValueError, "head_dim: 40"),
    (lambda: sale.attention(Q, K, V.astype(np.float16)), TypeError, "v: of another type"),
    (lambda: sale.attention(Q.astype(np.float64), K, V), TypeError, "q: of type float64"),
    (lambda: sale.attention(Q.tolist(), K, V), TypeError, "q: a list"),
    (lambda: sale.attention(Q, K.tolist(), V), TypeError, "k: a list"),
    (lambda: sale.attention(Q, K[:, :, ::-1], V), ValueError, "k strides: token stride -64 is negative"),
    (lambda: sale.attention(Q.swapaxes(2, 3).copy().swapaxes(2, 3), K, V), ValueError, "q: its last axis"),
    (lambda: sale.attention(Q, K[:, :, :50], V[:, :, :50]), ValueError, "q_offset: automatic"),
    (lambda: sale.attention(Q, K, V, q_offset=-3), ValueError, "q_offset: -3"),
    (lambda: sale.attention(Q, K, V, q_offset=3, causal=False), ValueError, "q_offset: given"),
    (lambda: sale.attention(Q, K, V, scale=-1.0), ValueError, "scale: -1.0"),
    (lambda: sale.attention(Q, K, V, scale=float("inf")), ValueError, "scale: inf"),
    (lambda: sale.attention(Q, K, V, thresholds=[0.1, 0.2]), ValueError, "n_thresholds: 2"),
    (lambda: sale.attention(Q, K, V, thresholds=-1.0), ValueError, "thresholds: element 0 is -1"),
    (lambda: sale.attention(Q, K, V, thresholds="x"), TypeError, "thresholds: "),
    (lambda: sale.attention(Q, K, V, thresholds=1.0, options=SPARSE), ValueError, "thresholds, options: both"),
    (lambda: sale.attention(Q, K, V, options=1), TypeError, "options: int 1; sale.Options is needed"),
    (lambda: sale.attention(Q, K, V, layer=1), ValueError, "layer: given without"),
    (lambda: sale.attention(Q, K, V, calibration=MODEL / "calibration.json"), ValueError, "layer: needed"),
    (lambda: sale.attention(Q, K, V, calibration=MODEL / "calibration.json", layer=8), IndexError, "layer: 8"),
    (lambda: sale.attention(Q, K, V, attn_mask=np.ones((1, 99), bool)), NotImplementedError, "attn_mask: of shape"),
    (lambda: sale.attention(Q, K, V, attn_mask=np.zeros((1, 100))), NotImplementedError, "attn_mask: of type"),
    (lambda: sale.select(Q, K, attn_mask=np.arange(100)[None] % 2 == 0), NotImplementedError, "not one range"),
    (lambda: sale.attention(Q, K, V, cu_seqlens_k=[0, 100]), ValueError, "cu_seqlens_k: given without"),
    (lambda: sale.attention(Q[0], K[0], V[0], cu_seqlens_q=[0, 4]), ValueError, "cu_seqlens_k: .* ascend"),
    (lambda: sale.attention(Q[:, 0], K[:, 0], V[:, 0], cu_seqlens_q=[0, 2]), ValueError, "cu_seqlens_q: .* ascend"),
    (lambda: sale.attention(Q[0, 0, :, None], K[0, 0, :, None], V[0, 0, :, None], cu_seqlens_q=[0, 0, 100]), ValueError,
     "sequence 0 has no tokens"),
    (lambda: sale.attention(Q, K, V, k_lens=[100, 100]), ValueError, "k_lens: 2 numbers for 1"),
    (lambda: sale.attention(Q, K, V, k_lens=[101]), ValueError, "k_lens: 101 exceeds"),
    (lambda: sale.attention(Q, K, V, k_lens=[1.5]), ValueError, r"k_lens: list \[1.5\]; a list of integers"),
    (lambda: sale.attention(Q, K, V, page_table=np.zeros((1, 4), np.int32)), ValueError, "k_lens: needed"),
    (lambda: sale.attention(Q, K, V, page_table=np.zeros((1, 4), np.int64), k_lens=[9]), TypeError, "page_table: .*int32"),
    (lambda: sale.attention(Q, K, V, page_table=np.ones((1, 4), np.int32), k_lens=[1]), ValueError, "page_table: entry 0 of sequence 0"),
    (lambda: sale.attention(Q, K, V, index=[sale.KeyIndex(like=K, capacity=9)] * 2), ValueError, "index: 2 key"),
    (lambda: sale.attention(Q, K, V, options=sale.Options(format="fp8")), NotImplementedError, "FP8|fp8"),
    (lambda: sale.attention(Q, K, V, options=sale.Options(backend="none")), ValueError, "none"),
    (lambda: sale.attention(Q, K, V, options=sale.Options(sink=33)), ValueError, "sink: 33"),
    (lambda: sale.Options(format="int3"), ValueError, "format: 'int3'"),
    (lambda: sale.Options(compute="int3"), ValueError, "compute: 'int3'"),
    (lambda: sale.Options(q_projection=np.ones((1, 2, 3))), ValueError, "q_projection, k_projection"),
    (lambda: sale.Options(thresholds=[]), ValueError, "thresholds: of shape"),
    (lambda: sale.attention(Q, K, V, options=sale.Options(q_projection=np.ones((1, 64, 16)), k_projection=np.ones((1, 64, 16)))),
     ValueError, r"q_projection: of shape \[1, 64, 16\]; \[2, 64, 16\] is needed"),
    (lambda: sale.KeyIndex(like=K, capacity=0), ValueError, "capacity"),
    (lambda: sale.KeyIndex(like=K, capacity=10).update(K[0]), ValueError, "capacity"),
    (lambda: sale.KeyIndex(like=K, capacity=100).update(K), ValueError, r"k: of shape .* \[kv_heads, tokens, head_dim\]"),
    (lambda: sale.KeyIndex(like=K, capacity=100).update(K[0].astype("f2")), TypeError, "k: of another type"),
    (lambda: sale.KeyIndex(like=K, capacity=100, options=sale.Options(smoothing=np.ones((1, 64)))), ValueError,
     r"smoothing: of shape \[1, 64\]; \[2, 64\] is needed"),
])  # fmt: skip
def test_refusals_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_torch_is_not_imported_for_numpy():
    code = ("import sys, numpy as np, sale; x = np.ones((1, 1, 9, 16), 'f4'); sale.attention(x, x, x); "
            "sys.exit('torch' in sys.modules)")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_library_is_said():
    run = subprocess.run([sys.executable, "-c", "import sale"], capture_output=True, text=True, env={"SALE_LIBRARY": "/none",
                         "PYTHONPATH": str(pathlib.Path(sale.__file__).parents[1])})  # fmt: skip
    assert run.returncode != 0 and "there is no library at /none" in run.stderr


def test_backends_say_why_not():
    backends = sale.backends()
    assert list(backends.values())[-1] == ""
    first = next(iter(backends.values()))  # of a GPU
    assert first == "" or "CUDA" in first or "NVIDIA" in first or "GPU" in first
    assert "threads" in sale.explain(Q, K) and sale.machine()


def test_auto_is_what_the_backend_scans_fastest(monkeypatch):
    from sale import _backends

    monkeypatch.delenv("SALE_BACKEND", raising=False)
    facts = {f.name: f for f in _backends.all_facts()}
    assert list(facts) == list(sale.backends())
    assert sale.Options().format_on(-1) == "int8" and sale.Options().dense_below_on(-1) == 1024
    for name, fact in facts.items():
        assert sale.Options(backend=name).format_on(0 if fact.on_device else -1) == fact.format
        assert sale.Options(backend=name, format="int4").format_on(0) == "int4"
    assert {f.format for f in facts.values() if f.on_device} == {"fp8", "int4", "int8"}
    hopper = next(name for name, f in facts.items() if f.format == "fp8")
    monkeypatch.setenv("SALE_BACKEND", next(name for name, f in facts.items() if f.format == "int4"))
    assert sale.Options().format_on(0) == "int4" and sale.Options().dense_below_on(0) == 1024
    assert sale.Options(backend=hopper).dense_below_on(0) == 9216
    projection = np.ones((2, 64, 28), np.float32)
    narrow = sale.Options(backend=hopper, q_projection=projection, k_projection=projection)
    assert narrow.dense_below_on(0) == 5120


def test_one_head_repeated():
    q, k, v = tensors(300)
    once = [np.ascontiguousarray(x[:, :1]) for x in (q, k, v)]
    for i in range(3):
        given, whole = [q, k, v], [q, k, v]
        given[i] = np.broadcast_to(once[i], whole[i].shape)
        whole[i] = given[i].copy()
        assert np.array_equal(sale.attention(*given), sale.attention(*whole))
