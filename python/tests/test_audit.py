"""Audits: rows computed again over all keys, asked for in sale.Options and told in sale.Stats."""

import pickle

import numpy as np
import pytest
import reference
import sale
from sale._call import AUDIT

ALL = sale.Options(thresholds=8.0, dense_below=0, audit=65536)


def tensors(tokens=700, heads=4, kv_heads=2, d=64, batch=2, seed=0):
    r = np.random.default_rng(seed)
    q = r.standard_normal((batch, heads, tokens, d), np.float32) * 3
    k, v = (r.standard_normal((batch, kv_heads, tokens, d), np.float32) for _ in range(2))
    return q, k, v


def wanted(q, k, v, out, blocks, b):
    """[heads] of AUDIT by the definition, over all rows of sequence b."""
    rows = q.shape[2]
    exact, lse = reference.attention(q[b], k[b], v[b], 0)
    keys = np.repeat(k[b].astype(float), q.shape[1] // k.shape[1], 0)
    weights = np.exp(q[b].astype(float) @ keys.swapaxes(1, 2) * q.shape[-1] ** -0.5 - lse[..., None])
    mass = (weights * (np.tri(rows, dtype=bool) & reference.kept_pairs(blocks, b, rows, rows))).sum(-1)
    made = np.zeros(q.shape[1], AUDIT)
    made["rows"], made["error"], made["size"] = rows, np.abs(out[b] - exact).sum((1, 2)), np.abs(exact).sum((1, 2))
    made["mass"], made["least_mass"] = mass.sum(-1), mass.min(-1)
    return made


def near(found, made, by=1e-3):
    assert np.array_equal(found["rows"], made["rows"])
    for name in AUDIT.names[1:]:
        assert np.allclose(found[name], made[name], rtol=by), name


def test_all_rows_are_the_definition():
    q, k, v = tensors()
    out, stats = sale.attention(q, k, v, options=ALL, return_stats=True)
    blocks = sale.select(q, k, options=ALL)
    made = np.stack([wanted(q, k, v, out, blocks, b) for b in range(2)])
    near(stats.audits, made)
    assert np.allclose(stats.relative_l1, made["error"] / made["size"], rtol=1e-3) and (stats.relative_l1 > 0.05).all()
    assert np.allclose(stats.retained_mass, made["mass"] / 700, rtol=1e-3) and (stats.retained_mass < 0.99).all() and stats.audit_s > 0
    assert np.array_equal(out, sale.attention(q, k, v, options=ALL.replace(audit=0)))
    again = pickle.loads(pickle.dumps(stats))
    assert np.array_equal(again.audits, stats.audits) and np.array_equal(again.heads, stats.heads)


def test_seeds_choose_rows():
    q, k, v = tensors()
    some = {seed: sale.stats(q, k, v, options=ALL.replace(audit=16, audit_seed=seed)).audits for seed in (0, 1, 2**64 - 1)}
    assert all((a["rows"] == 16).all() for a in some.values())
    assert len({a["error"].tobytes() for a in some.values()}) == 3  # plans of other seeds are other plans
    for seed, a in some.items():
        assert np.array_equal(a, sale.stats(q, k, v, options=ALL.replace(audit=16, audit_seed=seed)).audits)


def test_dense_heads_lose_nothing():
    stats = sale.stats(*tensors(), options=ALL.replace(thresholds=0.0))
    assert (stats.relative_l1 < 1e-5).all() and np.allclose(stats.retained_mass, 1) and (stats.retained_mass <= 1 + 1e-9).all()


def test_padding_and_holes():
    q, k, v = tensors(batch=3)
    mask = np.ones((3, 700), bool)
    mask[0, 600:], mask[2] = False, False
    alone = sale.stats(q[:1, :, :600], k[:1, :, :600], v[:1, :, :600], options=ALL)
    padded = sale.stats(q, k, v, options=ALL, attn_mask=mask)
    mask[0, 600:], mask[0, 50:150] = True, False  # as many rows, with a hole in them
    visible = mask[0]
    holed = sale.stats(q, k, v, options=ALL, attn_mask=mask)
    without = sale.stats(*(x[:1][:, :, visible] for x in (q, k, v)), options=ALL)
    for found, one in ((padded, alone), (holed, without)):
        near(found.audits[0], one.audits[0], 1e-9)
        assert (found.audits[1]["rows"] == 700).all()
        assert not found.heads[2].any() and (found.audits[2]["rows"] == 0).all()  # nothing is visible
        assert (found.relative_l1[2] == 0).all() and (found.retained_mass[2] == 1).all()
        assert found.heads.sum((0, 1)).tolist() == [found.kept_blocks, found.visible_blocks]


def test_nobody_asks():
    q, k, v = tensors(100)
    with pytest.raises(ValueError, match="audit: options ask to audit 65536 rows .*return_stats"):
        sale.attention(q, k, v, options=ALL)
    stats = sale.stats(q, k, v)
    assert stats.audits is None and stats.audit_s == 0
    for name in ("relative_l1", "retained_mass"):
        with pytest.raises(ValueError, match="audit: the options of this call did not ask"):
            getattr(stats, name)
    # What only reads a part of the options takes them as they are.
    assert sale.select(q, k, options=ALL) is not None and "65536 rows" in sale.explain(q, k, options=ALL)
    index = sale.KeyIndex(like=k, capacity=100, options=ALL)
    index.update(k[0])
    stats = sale.stats(q[:1], k[:1], v[:1], options=ALL, index=index)
    assert (stats.audits["rows"] == 100).all()


@pytest.mark.parametrize("given, said", [({"audit": 65537}, "audit: 65537 is not in 0 .. 65536"), ({"audit": -1}, "audit: -1 is not"),
                                         ({"audit_seed": 2**64}, "audit_seed: 18446744073709551616 is not"),
                                         ({"audit_seed": -1}, "audit_seed: -1 is not")])  # fmt: skip
def test_out_of_range(given, said):
    with pytest.raises(ValueError, match=said):
        sale.Options(**given)
