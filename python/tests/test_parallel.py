"""One sequence over 2 and 4 processes, gloo on the CPU: what a single process computes."""

import os
import pathlib
import sys

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402

import sale  # noqa: E402

TOKENS = 1024


def sequence(heads, kv_heads):
    torch.manual_seed(0)
    q = 3 * torch.randn(1, heads, TOKENS, 64)
    k, v = (torch.randn(1, kv_heads, TOKENS, 64) for _ in range(2))
    return q, k, v


def options(heads, kv_heads):
    basis = torch.linalg.qr(torch.randn(kv_heads, 64, 32, generator=torch.Generator().manual_seed(3)))[0].numpy()
    return sale.Options(thresholds=[2.0 + h for h in range(heads)], dense_below=0, q_projection=basis, k_projection=basis)


def worker(rank, n, folder, form, heads, kv_heads):
    import sale.parallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{form}-{n}-{heads}-{kv_heads}", rank=rank, world_size=n)
    mine = slice(rank * TOKENS // n, (rank + 1) * TOKENS // n)
    shard = [x[:, :, mine] for x in sequence(heads, kv_heads)]
    out = getattr(sale.parallel, form)(*shard, options=options(heads, kv_heads).replace(threads=1))
    torch.save(out, f"{folder}/{form}-{n}-{heads}-{kv_heads}-{rank}.pt")
    dist.destroy_process_group()


def run(folder, form, n, heads=4, kv_heads=2):
    mp.spawn(worker, (n, folder, form, heads, kv_heads), nprocs=n)
    return torch.cat([torch.load(f"{folder}/{form}-{n}-{heads}-{kv_heads}-{r}.pt") for r in range(n)], 2)


@pytest.mark.parametrize("n, heads, kv_heads", [(2, 4, 2), (4, 4, 4), (4, 8, 2)])
@pytest.mark.parametrize("form", ["ulysses", "gather"])
def test_same_bits_as_one_process(tmp_path, form, n, heads, kv_heads):
    q, k, v = sequence(heads, kv_heads)
    stats = sale.stats(q, k, v, options=options(heads, kv_heads))
    assert 0.1 < stats.density < 0.95
    assert torch.equal(run(tmp_path, form, n, heads, kv_heads), sale.attention(q, k, v, options=options(heads, kv_heads)))


def test_merging():
    from sale.parallel import merge

    q, k, v = sequence(4, 2)
    whole, lse = sale.attention(q, k, v, thresholds=0.0, causal=False, return_lse=True)
    parts = [sale.attention(q, k[:, :, a:b], v[:, :, a:b], thresholds=0.0, causal=False, return_lse=True)
             for a, b in ((0, 300), (300, 1024))]  # fmt: skip
    out, merged = merge(*parts[0], *parts[1])
    assert (out - whole).abs().max() < 1e-4 and (merged - lse).abs().max() < 1e-4
    nothing = torch.zeros_like(whole), torch.full_like(lse, -torch.inf)
    out, merged = merge(*nothing, whole, lse)
    assert torch.equal(out, whole) and torch.equal(merged, lse)
    out, merged = merge(*nothing, *nothing)
    assert not out.any() and torch.isneginf(merged).all()
