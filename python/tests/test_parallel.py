"""One sequence over 2 and 4 processes, gloo on the CPU: what a single process computes."""


import os

import pytest

torch = pytest.importorskip("torch")

import sale  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402

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
    before = [x.clone() for x in shard]
    out = getattr(sale.parallel, form)(*shard, options=options(heads, kv_heads).replace(threads=1))
    assert all(torch.equal(a, b) for a, b in zip(shard, before))
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


@pytest.mark.parametrize("n, heads, kv_heads", [(2, 4, 2), (4, 4, 1)])
def test_ring_is_one_process_but_for_rounding(tmp_path, n, heads, kv_heads):
    q, k, v = sequence(heads, kv_heads)
    whole = sale.attention(q, k, v, options=options(heads, kv_heads))
    out = run(tmp_path, "ring", n, heads, kv_heads)
    far = (out - whole).abs().amax(-1)
    # Rows of a tile in which a block was decided otherwise, by rounding of the reference, may differ by more.
    assert (far > 1e-4).float().mean() < 0.01
    assert (out - whole).abs().sum() / whole.abs().sum() < 1e-3


def test_the_reference_is_the_weight_of_sink_and_local_keys():
    from sale.parallel import reference

    q, k, v = sequence(4, 2)
    none = sale.Options(thresholds=1e6, dense_below=0)  # nothing else is kept
    _, wanted = sale.attention(q, k, v, options=none, return_lse=True)
    for start in (0, 512):
        rows = slice(start, start + 512)
        halo = k[:, :, start - 128 : start] if start else k[:, :, :128]
        made = reference(q[:, :, rows], k[:, :, rows], halo, k[:, :, :32], start, 128, 64**-0.5)
        assert (made - wanted[:, :, rows]).abs().max() < 1e-4


def test_a_part_with_the_whole_of_the_keys_is_the_whole():
    q, k, v = sequence(4, 2)
    from sale.parallel import reference

    given = reference(q, k, k[:, :, :128], k[:, :, :32], 0, 128, 64**-0.5)
    wanted = sale.stats(q, k, v, options=options(4, 2))
    made = sale.stats(q, k, v, options=options(4, 2), reference=given)
    assert abs(made.kept_blocks - wanted.kept_blocks) <= 0.001 * wanted.visible_blocks
    with pytest.raises(ValueError, match="reference: of type"):
        sale.attention(q, k, v, reference=given[:, :2])
    with pytest.raises(ValueError, match="sink: 0 is not a multiple of 32 in 32"):
        sale.attention(q, k, v, options=sale.Options(sink=0))


def tensor_parallel(rank, n, folder):
    import sale.transformers
    import transformers

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/tp", rank=rank, world_size=n)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_RANK": str(rank)}
    ids = torch.load(f"{folder}/ids.pt")
    settings = {"tp_plan": "auto", "attn_implementation": "sale", "dtype": torch.float32}
    if hasattr(transformers, "DistributedConfig"):
        settings["distributed_config"] = transformers.DistributedConfig(tp_plan=settings.pop("tp_plan"))
    model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model", **settings)
    with torch.no_grad():
        logits = model(ids).logits
    used = [layer.self_attn._sale_found[1] for layer in model.model.layers]
    if rank == n - 1:
        torch.save((logits, [o.thresholds for o in used], [o.q_projection.shape for o in used]), f"{folder}/tp.pt")
    dist.destroy_process_group()


def test_tensor_parallel_processes_take_their_slice(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    import sale.transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, head_dim=32)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    basis = [torch.linalg.qr(torch.randn(2, 2, 32, 16))[0].numpy() for _ in range(2)]
    thresholds = torch.arange(8.0).reshape(2, 4).numpy() + 1
    sale.Calibration("small", sale.transformers.model_fingerprint(tmp_path / "model"), "int8", thresholds, *basis, 2, 32,
                     dense_below=0).write(tmp_path / "model/calibration.json")  # fmt: skip
    ids = torch.randint(3, 64, (1, 700))
    torch.save(ids, tmp_path / "ids.pt")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="sale")
    with torch.no_grad():
        wanted = model(ids).logits
    mp.spawn(tensor_parallel, (2, str(tmp_path)), nprocs=2)
    logits, used, shapes = torch.load(tmp_path / "tp.pt")
    assert used == [tuple(t[2:]) for t in thresholds.tolist()] and shapes == [(1, 32, 16)] * 2
    assert (logits - wanted).abs().max() < 1e-3


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
