"""Sliding windows: numpy and torch beside a definition in double precision, models of transformers beside eager."""

import warnings

import numpy as np
import pytest
import reference
import sale

DENSE = sale.Options().dense()


def tensors(rows, keys, heads=4, kv_heads=2, d=32, batch=1, seed=0):
    r = np.random.default_rng(seed)
    q = r.standard_normal((batch, heads, rows, d), np.float32)
    k, v = (r.standard_normal((batch, kv_heads, keys, d), np.float32) for _ in range(2))
    return q, k, v


def seen(heads, rows, keys, offset, window, sink=0):
    at, row = np.arange(keys), np.arange(rows)[:, None] + offset
    return np.broadcast_to((at > row - window) | (at < sink), (heads, rows, keys))


@pytest.mark.parametrize("window", [1, 17, 64, 200, 333, 5000])
@pytest.mark.parametrize("sink", [False, True])
def test_numpy_is_the_definition(window, sink):
    q, k, v = tensors(300, 500)
    out, lse = sale.attention(q, k, v, options=DENSE, window=window, window_sink=sink, return_lse=True)
    wanted, wanted_lse = reference.attention(q[0], k[0], v[0], 200, kept=seen(4, 300, 500, 200, window, 32 * sink))
    assert abs(out[0] - wanted).max() < 1e-5 and abs(lse[0] - wanted_lse).max() < 1e-5


def test_selected_blocks_are_those_in_sight():
    q, k, v = tensors(600, 600, d=64)
    options = sale.Options(thresholds=0.9, dense_below=0)
    for sink in (False, True):
        blocks = sale.select(q, k, options=options, window=250, window_sink=sink)
        kept = reference.kept_pairs(blocks, 0, 600, 600) & seen(4, 600, 600, 0, 250, 32 * sink)
        out, stats = sale.attention(q, k, v, options=options, window=250, window_sink=sink, return_stats=True)
        assert abs(out[0] - reference.attention(q[0], k[0], v[0], 0, kept=kept)[0]).max() < 1e-5
        assert blocks.visible.sum() == stats.visible_blocks and len(blocks.indices) == stats.kept_blocks < stats.visible_blocks
        picture = blocks.mask()
        last = np.flatnonzero(picture[-1])
        first = (576 + 1 - 250) // 32
        assert last.tolist() == ([0] if sink else []) + list(range(first, 19))
        assert (picture > 0).sum() * 4 == blocks.visible.sum()


def test_padding_and_packed_sequences_have_windows():
    q, k, v = tensors(200, 200, batch=2)
    mask = np.ones((2, 200), bool)
    mask[0, :70] = False
    out = sale.attention(q, k, v, options=DENSE, attn_mask=mask, window=40)
    wanted = reference.attention(q[0, :, 70:], k[0, :, 70:], v[0, :, 70:], 0, kept=seen(4, 130, 130, 0, 40))[0]
    assert abs(out[0, :, 70:] - wanted).max() < 1e-5 and not out[0, :, :70].any()
    packed = [np.concatenate([x[0, :, :130], x[1, :, :200]], 1).swapaxes(0, 1) for x in (q, k, v)]
    packed = sale.attention(*packed, options=DENSE, cu_seqlens_q=[0, 130, 330], window=40)
    for b, rows in ((0, slice(0, 130)), (1, slice(130, 330))):
        n = rows.stop - rows.start
        wanted = reference.attention(q[b, :, :n], k[b, :, :n], v[b, :, :n], 0, kept=seen(4, n, n, 0, 40))[0]
        assert abs(packed[rows].swapaxes(0, 1) - wanted).max() < 1e-5


def test_refused_by_name():
    q, k, v = tensors(80, 80)
    for window, kind in ((0, ValueError), (-1, ValueError), (2**31 + 1, ValueError), (True, TypeError), (1.5, TypeError)):
        with pytest.raises(kind, match="window"):
            sale.attention(q, k, v, window=window)
    with pytest.raises(ValueError, match="window_sink: given without a window"):
        sale.attention(q, k, v, window_sink=True)
    with pytest.raises(ValueError, match="window: given, but causal is False"):
        sale.attention(q, k, v, window=5, causal=False)
    holes = np.ones((1, 80), bool)
    holes[0, 30:40] = False
    with pytest.raises(NotImplementedError, match="window: .* hides keys between"):
        sale.attention(q, k, v, window=5, attn_mask=holes)


torch = pytest.importorskip("torch")


def test_torch_is_numpy_compiled_too():
    q, k, v = tensors(300, 300, d=64)
    options = sale.Options(thresholds=0.05, dense_below=0)
    wanted = sale.attention(q, k, v, options=options, window=150, window_sink=True)
    given = [torch.from_numpy(x) for x in (q, k, v)]
    attend = lambda *x: sale.attention(*x, options=options, window=150, window_sink=True)  # noqa: E731
    assert np.array_equal(attend(*given).numpy(), wanted)
    assert np.array_equal(torch.compile(attend, backend="eager", fullgraph=True)(*given).numpy(), wanted)


transformers = pytest.importorskip("transformers")
MODELS = {
    "Mistral": dict(sliding_window=100),
    "Qwen3": dict(use_sliding_window=True, sliding_window=100, layer_types=["full_attention", "sliding_attention"]),
    "Phi3": dict(sliding_window=100),
    "Gemma3Text": dict(sliding_window=100, layer_types=["sliding_attention", "full_attention"]),
    "Starcoder2": dict(sliding_window=100),
    "GptOss": dict(sliding_window=100, num_local_experts=4, num_experts_per_tok=2),  # with learned sinks
}


def small(kind):
    settings = dict(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=32, max_position_embeddings=4096, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**settings, **MODELS[kind]})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=1.5 * p[0].numel() ** -0.5)
    for name, p in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(p, mean=2.0)
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_models_are_eager_at_threshold_0(kind):
    """Nothing is left to torch: whole prompts, padding at either end, chunks over a sliding cache, decoding. At threshold 0
    by the selection's kernels (dense_below=0), at which every block in sight is kept."""
    import sale.transformers

    model = small(kind)
    options = sale.Options(thresholds=0.0, dense_below=0)
    torch.manual_seed(1)
    ids = torch.randint(3, 64, (2, 420))
    padded = torch.ones_like(ids)
    padded[0, :90], padded[1, -60:] = 0, 0

    def both(run):
        model.set_attn_implementation("eager")
        wanted = run()
        sale.transformers.use(model, options=options)
        sale.transformers._told.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return run(), wanted

    with torch.no_grad():
        got, wanted = both(lambda: model(ids).logits)
        assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
        got, wanted = both(lambda: model(ids, attention_mask=padded).logits)
        rows = padded.bool()
        assert (got - wanted)[rows].abs().max() < 1e-4 * wanted.abs().max()
        settings = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True)
        left = padded.clone()
        left[1] = 1
        for more in ({}, dict(prefill_chunk_size=150)):
            got, wanted = both(lambda: model.generate(ids, attention_mask=left, **settings, **more).logits)
            assert max((a - b).abs().max() / b.abs().max() for a, b in zip(got, wanted)) < 1e-4


def test_audits_see_what_rows_see():
    """Audits go by the windows too: a dense layer loses nothing of what it sees."""
    import sale.transformers

    model = small("Qwen3")
    sale.transformers.use(model, options=sale.Options(thresholds=0.0, dense_below=0, audit=65536))
    torch.manual_seed(1)
    with torch.no_grad():
        model(torch.randint(3, 64, (1, 420)))
    for audit in sale.transformers.audits(model).values():
        assert (audit["error"] < 1e-4 * audit["size"]).all() and (audit["least_mass"] > 0.999).all()
