"""torch tensors on the CPU: the operator, compile, autograd, masks."""

import pytest

torch = pytest.importorskip("torch")

import sale  # noqa: E402

SPARSE = sale.Options(thresholds=8.0, dense_below=0)


def tensors(tokens=1200, batch=1, d=64, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    q = (3 * torch.randn(batch, tokens, 4, d, dtype=dtype)).transpose(1, 2)
    k, v = (torch.randn(batch, 2, tokens, d, dtype=dtype) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_dense_is_sdpa(dtype, bound):
    q, k, v = tensors(dtype=dtype)
    out, lse = sale.attention(q, k, v, thresholds=0.0, return_lse=True)
    wanted = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True, enable_gqa=True)
    assert (out.float() - wanted).abs().max() < bound
    assert out.dtype == dtype and out.stride() == q.stride() and lse.shape == q.shape[:3]


def test_same_bits_as_numpy():
    q, k, v = tensors()
    out, lse, stats = sale.attention(q, k, v, options=SPARSE, return_lse=True, return_stats=True)
    again, again_lse = sale.attention(q.numpy(), k.numpy(), v.numpy(), options=SPARSE, return_lse=True)
    assert 0.2 < stats.density < 0.9
    assert torch.equal(out, torch.from_numpy(again)) and torch.equal(lse, torch.from_numpy(again_lse))


def test_the_operator_is_sound():
    q, k, v = tensors(200)
    spans = sale._torch.spans_of(torch.arange(200)[None] < 150, 0)
    for with_lse in (False, True):
        for s in (None, spans):
            arguments = (q, k, v, SPARSE.key, 0.0, True, None, s, None, None, None, None, None, 0, False, [], with_lse)
            torch.library.opcheck(torch.ops.sale.attention.default, arguments)


@pytest.mark.parametrize("keywords", [
    {}, {"thresholds": 0.5}, {"thresholds": [0.0, 1.0, 2.0, 3.0]}, {"options": SPARSE}, {"causal": False},
    {"scale": 0.2, "q_offset": 40},
])  # fmt: skip
def test_compile_is_one_graph(keywords):
    q, k, v = tensors()
    compiled = torch.compile(lambda q, k, v: sale.attention(q * 1, k, v, return_lse=True, **keywords), fullgraph=True,
                             backend="aot_eager")  # fmt: skip
    for a, b in zip(compiled(q, k, v), sale.attention(q, k, v, return_lse=True, **keywords)):
        assert torch.equal(a, b)


def test_compile_with_padding_and_packed():
    q, k, v = tensors(batch=2)
    mask = torch.ones(2, 1200, dtype=torch.bool)
    mask[1, :77] = False
    compiled = torch.compile(lambda q, k, v, m: sale.attention(q, k, v, options=SPARSE, attn_mask=m), fullgraph=True,
                             backend="aot_eager")  # fmt: skip
    assert torch.equal(compiled(q, k, v, mask), sale.attention(q, k, v, options=SPARSE, attn_mask=mask))
    packed, bounds = [x[0].transpose(0, 1) for x in (q, k, v)], torch.tensor([0, 500, 1200], dtype=torch.int32)
    compiled = torch.compile(lambda q, k, v, n: sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=n, return_lse=True),
                             fullgraph=True, backend="aot_eager")  # fmt: skip
    out, lse = compiled(*packed, bounds)
    again, again_lse = sale.attention(*packed, options=SPARSE, cu_seqlens_q=[0, 500, 1200], return_lse=True)
    assert torch.equal(out, again) and torch.equal(lse, again_lse)


def test_written_lengths_are_read_again():
    q, k, v = (x[0].transpose(0, 1) for x in tensors())
    bounds = torch.tensor([0, 500, 1200])
    first = sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=bounds)
    bounds[1] = 600
    second = sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=bounds)
    assert not torch.equal(first, second)
    assert torch.equal(second, sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=[0, 600, 1200]))
    with torch.inference_mode():
        bounds = torch.tensor([0, 500, 1200])
        assert torch.equal(sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=bounds), first)
        bounds[1] = 600
        assert torch.equal(sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=bounds), second)


def test_gradients_are_refused_not_lost():
    q, k, v = tensors(100)
    for name, at in (("q", 0), ("k", 1), ("v", 2)):
        given = [x.clone() for x in (q, k, v)]
        given[at].requires_grad_()
        with pytest.raises(ValueError, match=f"{name}: requires grad"):
            sale.attention(*given)
        with torch.no_grad():
            sale.attention(*given)


def test_refusals_name_the_argument():
    q, k, v = tensors(100)
    with pytest.raises(TypeError, match="q: of type torch.float64"):
        sale.attention(q.double(), k, v)
    with pytest.raises(TypeError, match="k: a ndarray"):
        sale.attention(q, k.numpy(), v)
    with pytest.raises(NotImplementedError, match="attn_mask: of type torch.float32"):
        sale.attention(q, k, v, attn_mask=torch.zeros(100, 100))
    with pytest.raises(NotImplementedError, match="attn_mask: of shape"):
        sale.attention(q, k, v, attn_mask=torch.ones(100, 100, dtype=torch.bool))
    with pytest.raises(ValueError, match="k_lens: needed with page_table"):
        sale.attention(q, k, v, page_table=torch.zeros(1, 4, dtype=torch.int32))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta|device"):
        sale.attention(q.to("meta"), k.to("meta"), v.to("meta"), return_stats=True)


def test_threads_share_plans():
    from concurrent.futures import ThreadPoolExecutor

    q, k, v = tensors(600)
    wanted = sale.attention(q, k, v, options=SPARSE)
    with ThreadPoolExecutor(8) as pool:
        for out in pool.map(lambda _: sale.attention(q, k, v, options=SPARSE), range(64)):
            assert torch.equal(out, wanted)


# ---- what outlives its owner, bytes that are not what they seem -------------------------------------------------------


def written(tensor, numbers):
    """The ways in which numbers get into a tensor without its knowing."""
    import numpy as np

    numbers = np.asarray(numbers)
    yield lambda: tensor.numpy().__setitem__(slice(None), numbers)
    yield lambda: tensor.data.copy_(torch.from_numpy(numbers))
    yield lambda: torch.from_dlpack(tensor).copy_(torch.from_numpy(numbers))


def test_lengths_in_refilled_buffers():
    q, k, v = (x[0].transpose(0, 1) for x in tensors())
    bounds = torch.tensor([0, 500, 1200])
    for at, write in zip((600, 64, 1000), written(bounds, [0, 600, 1200])):
        bounds.copy_(torch.tensor([0, at, 1200]))
        sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=bounds)
        write()
        again = sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=bounds)
        assert torch.equal(again, sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=[0, 600, 1200]))
    q, k, v = tensors(batch=2)
    mask = torch.ones(2, 1200, dtype=torch.bool)
    for at in (1200, 700, 30):
        mask.numpy()[1] = torch.arange(1200).numpy() < at
        assert torch.equal(sale.attention(q, k, v, attn_mask=mask), sale.attention(q, k, v, attn_mask=mask.clone()))
        lens = torch.tensor([1200, at])
        assert torch.equal(sale.attention(q[:, :, :100], k, v, k_lens=lens, q_offset=0),
                           sale.attention(q[:, :, :100], k, v, k_lens=[1200, at], q_offset=0))  # fmt: skip


def test_holes_are_served_by_the_operator():
    q, k, v = tensors(batch=2)
    mask = torch.ones(2, 1200, dtype=torch.bool)
    mask[0, 100:170], mask[1, 1150:] = False, False
    out, lse = sale.attention(q, k, v, options=SPARSE, attn_mask=mask, return_lse=True)
    alone = sale.attention(*(x[:1][:, :, mask[0]] for x in (q, k, v)), options=SPARSE)
    assert torch.equal(out[:1][:, :, mask[0]], alone) and not out[0][:, ~mask[0]].any() and torch.isneginf(lse[0][:, ~mask[0]]).all()
    compiled = torch.compile(lambda q, k, v, m: sale.attention(q, k, v, options=SPARSE, attn_mask=m), fullgraph=True,
                             backend="aot_eager")  # fmt: skip
    assert torch.equal(compiled(q, k, v, mask), out)
    assert torch.equal(out, torch.from_numpy(sale.attention(q.numpy(), k.numpy(), v.numpy(), options=SPARSE, attn_mask=mask.numpy())))


@pytest.mark.parametrize("at", range(3))
def test_derivatives_are_refused_in_every_form(at):
    given = tensors(100)
    name = "qkv"[at]

    def attend(x, **more):
        return sale.attention(*given[:at], x, *given[at + 1 :], **more)

    for more in ({}, {"return_lse": True}, {"return_stats": True}):
        with pytest.raises(NotImplementedError, match=f"{name}: has a tangent"):
            torch.func.jvp(lambda x: attend(x, **more) if not more else attend(x, **more)[0], (given[at],), (given[at],))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{name}: has a tangent"):
        attend(torch.autograd.forward_ad.make_dual(given[at], given[at]))
    for transform in (torch.func.grad, lambda f: torch.func.vjp(f, given[at]), torch.func.jacrev, torch.func.hessian):
        with pytest.raises((ValueError, NotImplementedError), match=f"{name}: "):
            made = transform(lambda x: attend(x).sum())
            made(given[at])
    with torch.autograd.forward_ad.dual_level():
        sale.attention(*given)  # none of these has a tangent


def test_vmap_is_each_alone():
    q, k, v = (x.unsqueeze(0).expand(3, -1, -1, -1, -1) * (1 + torch.arange(3.0))[:, None, None, None, None] for x in tensors(100))
    out = torch.vmap(lambda q, k, v: sale.attention(q, k, v, options=SPARSE))(q, k, v)
    for i in range(3):
        assert torch.equal(out[i], sale.attention(q[i], k[i], v[i], options=SPARSE))


def test_views_that_negate():
    q, k, v = tensors(100)
    z = torch.complex(torch.zeros_like(k), k).conj()
    wanted = sale.attention(q, -k, v)
    assert z.imag.is_neg() and torch.equal(sale.attention(q, z.imag, v), wanted)
    with pytest.raises(TypeError, match="k: a view that negates"):
        sale.attention(q, z.imag, v, return_stats=True)
    with pytest.raises(TypeError, match="k: a view that negates"):
        sale.KeyIndex(like=k, capacity=100).update(z.imag[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_torchs(dtype):
    q, k, v = tensors(300)
    wanted = sale.attention(*(x.to(dtype) for x in (q, k, v)), options=SPARSE)
    mixed = q, k.to(dtype), v
    with pytest.raises(TypeError, match="k: of another type or device than q: .*float16 in host memory, q is float32 in host memory"):
        sale.attention(*mixed)
    with torch.autocast("cpu", dtype):
        for given in ((q, k, v), mixed):
            for more in ({}, {"return_stats": True}):
                out = sale.attention(*given, options=SPARSE, **more)
                assert torch.equal(out[0] if more else out, wanted) and wanted.dtype == dtype
        index = sale.KeyIndex(like=k, capacity=300, options=SPARSE)
        index.update(k[0])
        assert torch.equal(sale.attention(q, k, v, options=SPARSE, index=index), wanted)
        blocks = sale.select(q, k, options=SPARSE)
    assert (blocks.indices == sale.select(q.to(dtype), k.to(dtype), options=SPARSE).indices).all()
    compiled = torch.compile(lambda q, k, v: sale.attention(q, k, v, options=SPARSE), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype):
        assert torch.equal(compiled(q, k, v), wanted)


def test_an_exported_program_means_the_same_elsewhere(tmp_path):
    import subprocess
    import sys

    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return sale.attention(q, k, v, options=SPARSE)

    given = tensors(300)
    wanted = sale.attention(*given, options=SPARSE)
    torch.export.save(torch.export.export(Attend(), given), tmp_path / "p.pt2")
    torch.save((given, wanted), tmp_path / "t.pt")
    code = """
import sys, torch, sale, sale._torch
for i in range(5):
    sale.Options(thresholds=100.0 + i, dense_below=0)
given, wanted = torch.load(sys.argv[2])
sys.exit(not torch.equal(torch.export.load(sys.argv[1]).module()(*given), wanted))
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "p.pt2", tmp_path / "t.pt"], check=True)
