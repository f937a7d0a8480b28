"""Layers, steps and calls: what is made once, what is shared, and that sharing changes nothing."""

import gc
import weakref

import numpy as np
import pytest
import sale
from sale import _call, _estimator, _kept, _numpy

SPARSE = sale.Options(thresholds=8.0, dense_below=0)


def tensors(tokens=700, keys=None, batch=1, heads=4, kv_heads=2, d=64, seed=0):
    r = np.random.default_rng(seed)
    q = r.standard_normal((batch, heads, tokens, d), np.float32) * 3
    k, v = (r.standard_normal((batch, kv_heads, keys or tokens, d), np.float32) for _ in range(2))
    return q, k, v


def step_of(q, k, v, **said):
    return _call.step_of(_numpy, q, k, v, _call.Said(**said), np.empty_like(q))[0]


def layers(n, d=64, rank=32):
    """Options of layers that differ in everything but their form."""
    made = []
    for seed in range(n):
        basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((2, d, rank)))[0].astype(np.float32)
        made.append(sale.Options(thresholds=[4.0 + seed, 6.0, 8.0, 10.0], dense_below=0, q_projection=basis, k_projection=basis))
    return made


def test_layers_share_a_plan_and_keep_their_bits():
    q, k, v = tensors(seed=1)
    options = layers(3)
    alone = []
    for o in options:
        _call._steps.__init__(64)  # every one with a plan of its own
        alone.append(sale.attention(q, k, v, options=o, return_lse=True))
    _call._steps.__init__(64)
    for o, (out, lse) in zip(options, alone):
        again, again_lse = sale.attention(q, k, v, options=o, return_lse=True)
        assert np.array_equal(again, out) and np.array_equal(again_lse, lse)
    step = step_of(q, k, v)
    assert len(step._plans) == 1 and not np.array_equal(alone[0][0], alone[1][0])
    for other in (SPARSE, SPARSE.replace(local=256), SPARSE.replace(format="int4"), SPARSE.replace(compute="int8"), SPARSE.dense(),
                  sale.Options(thresholds=0.0, dense_below=0), SPARSE.replace(threads=1)):  # fmt: skip
        before = len(step._plans)
        sale.attention(q, k, v, options=other)
        assert len(step._plans) == before + 1


def test_steps_and_estimators_are_of_content_and_few():
    q, k, v = tensors()
    first = step_of(q, k, v)
    assert step_of(*(x.copy() for x in (q, k, v))) is first is step_of(q, k, v, q_offset=None)
    assert step_of(q, k, v, q_offset=0) is not first and step_of(q, k, v, scale=0.5) is not first
    heads = first.heads
    again = sale.Options(thresholds=8.0, dense_below=0)
    assert again is not SPARSE and _estimator.estimator_for(again, heads) is _estimator.estimator_for(SPARSE, heads)
    for n in range(1, 400):  # lengths come and go
        sale.attention(q[:, :, :n], k, v, options=SPARSE, q_offset=0)
    assert len(_call._steps._new) + len(_call._steps._old) <= 128


def test_what_is_kept_is_what_was_used_lately():
    for last in range(4, 30):
        kept = _kept.Kept(4, 100)
        for i in range(last):
            kept.put(i, object())
            assert len(kept._new) + len(kept._old) <= 8
        assert all(kept.get(i) is not None for i in range(last - 4, last))
    kept = _kept.Kept(4, 100)
    for i in range(8):
        kept.put(i, object(), 60)
    assert [kept.get(i) is not None for i in range(8)] == [False] * 6 + [True] * 2


def test_options_with_arrays_are_let_go_of():
    q, k, v = tensors(64)
    options = layers(1)[0].replace(smoothing=np.zeros((2, 64)))
    sale.attention(q, k, v, options=options)
    ghost = weakref.ref(options)
    del options
    _estimator._estimators.__init__(512, 128 << 20)
    gc.collect()
    assert ghost() is None


def test_options_are_found_by_their_key_while_an_equal_one_lives():
    from sale.options import options_of

    first = layers(1)[0].replace(thresholds=3.25)
    second, third = first.replace(), first.replace()
    key = first.key
    for gone in ("first", "third", "second"):
        assert options_of(key) == second and options_of(key).q_projection is not None
        if gone == "first":
            del first
        elif gone == "third":
            del third
        gc.collect()
    del second
    gc.collect()
    with pytest.raises(ValueError, match="options: of projections"):
        options_of(key)


def test_lists_in_the_callers_hands_are_read_at_every_call():
    q, k, v = (x[0].swapaxes(0, 1) for x in tensors())
    bounds = np.array([0, 300, 700])
    first = sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=bounds)
    bounds[1] = 500
    assert np.array_equal(sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=bounds),
                          sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=[0, 500, 700]))  # fmt: skip
    assert not np.array_equal(sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=[0, 500, 700]), first)


def test_references_are_a_calls():
    q, k, v = tensors(128, keys=256)
    given = [np.full((1, 4, 128), x, np.float32) for x in (-50.0, 50.0)]
    low, high = (sale.stats(q, k, v, options=SPARSE, reference=x) for x in given)
    assert low.kept_blocks > high.kept_blocks  # the higher the reference, the less the other keys weigh
    given[0][:] = given[1]
    assert sale.stats(q, k, v, options=SPARSE, reference=given[0]).kept_blocks == high.kept_blocks
    part = SPARSE.replace(sink=0)
    assert sale.stats(q, k, v, options=part, reference=given[1]).kept_blocks <= high.kept_blocks
    with pytest.raises(ValueError, match="sink: 0"):
        sale.attention(q, k, v, options=part)
    for wrong in (given[0][:, :, :100], given[0][:, :, ::-1], given[0].astype("f8"), given[0][:, :2]):
        with pytest.raises(ValueError, match="reference: "):
            sale.attention(q, k, v, options=SPARSE, reference=wrong)


# ---- codes of the layer's own smoothing ------------------------------------------------------------------------------


def test_with_smoothing_of_the_layer_any_split_codes_alike():
    q, k, v = tensors(1000)
    smoothed = SPARSE.replace(smoothing=np.random.default_rng(5).standard_normal((2, 64)) * 0.1)
    whole = sale.attention(q, k, v, options=smoothed)
    assert not np.array_equal(whole, sale.attention(q, k, v, options=SPARSE))
    for ends in ((1000,), (1, 33, 64, 500, 1000), (999, 1000), range(100, 1001, 100)):
        index = sale.KeyIndex(like=k, capacity=1024, options=smoothed)
        for end in ends:
            index.update(k[0, :, :end])
        assert np.array_equal(sale.attention(q, k, v, options=smoothed, index=index), whole)


def test_an_index_of_other_codes_is_refused():
    q, k, v = tensors(300)
    smoothing = np.zeros((2, 64), np.float32)
    mine = SPARSE.replace(smoothing=smoothing)
    index = sale.KeyIndex(like=k, capacity=300, options=mine)
    index.update(k[0])
    sale.attention(q, k, v, options=mine.replace(thresholds=[1.0, 2.0, 3.0, 4.0]), index=index)  # thresholds are not codes
    smoothing[1, 3] = 0.5
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal((2, 64, 16)))[0]
    for other in (SPARSE, mine.replace(smoothing=smoothing), mine.replace(format="int4"),
                  mine.replace(q_projection=basis, k_projection=basis)):  # fmt: skip
        with pytest.raises(ValueError, match=r"indexes\[0\]"):
            sale.attention(q, k, v, options=other, index=index)
    for wrong, message in ((np.zeros((2, 32)), r"smoothing: of shape \[2, 32\]; \[2, 64\] is needed"), (np.zeros(64), "smoothing: has 1 axes"),
                           (np.full((2, 64), np.inf), "smoothing: element 0 is inf")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            sale.attention(q, k, v, options=SPARSE.replace(smoothing=wrong))
    with pytest.raises(ValueError, match="key_scales: given, but format is int8"):
        sale.attention(q, k, v, options=mine.replace(key_scales=np.ones(2)))
    with pytest.raises(ValueError, match=r"key_scales: of shape \[3\]; \[2\] is needed"):
        sale.attention(q, k, v, options=mine.replace(key_scales=np.ones(3)))


def test_slices_of_heads_take_their_smoothing():
    r = np.random.default_rng(0)
    smoothing, scales = r.standard_normal((4, 64)), r.uniform(1, 2, 4)
    options = sale.Options(thresholds=range(8), smoothing=smoothing, key_scales=scales)
    part = options.heads(2, 4, 2)
    assert np.array_equal(part.smoothing, smoothing[1:3].astype("f4")) and np.array_equal(part.key_scales, scales[1:3].astype("f4"))
    assert options == options.replace(smoothing=smoothing.copy()) and options != part


# ---- memory of the caller's ------------------------------------------------------------------------------------------


def aligned(size, offset=0):
    memory = np.zeros(size + 128, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64 + offset
    return memory[start : start + size]


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_an_index_in_memory_of_the_callers(form):
    q, k, v = tensors(500)
    options = SPARSE.replace(format=form)
    size = sale.KeyIndex.memory_bytes(like=k, capacity=500, options=options)
    memory = aligned(size)
    index = sale.KeyIndex(like=k, capacity=500, options=options, memory=memory)
    index.update(k[0])
    assert index.nbytes == size and memory.any()
    assert np.array_equal(sale.attention(q, k, v, options=options, index=index), sale.attention(q, k, v, options=options))
    ghost = weakref.ref(memory)
    del memory
    gc.collect()
    assert ghost() is not None  # the index keeps it
    del index
    gc.collect()
    assert ghost() is None


def test_memory_that_cannot_be_used_is_refused():
    _, k, _ = tensors(500)
    size = sale.KeyIndex.memory_bytes(like=k, capacity=500)
    readonly = aligned(size)
    readonly.flags.writeable = False
    for wrong, error, message in (
        (aligned(size - 1), ValueError, f"memory_bytes: {size - 1} is below the {size} that 500 keys take"),
        (aligned(size, 8), ValueError, "memory: not aligned to 64 bytes"),
        (aligned(2 * size)[::2], ValueError, "memory: of strides"),
        (readonly, ValueError, "memory: .*read-only"),
        (aligned(size).view("i1"), TypeError, "memory: .*uint8"),
        (b"x" * size, TypeError, "memory: a bytes"),
    ):
        with pytest.raises(error, match=message):
            sale.KeyIndex(like=k, capacity=500, memory=wrong)
    with pytest.raises(ValueError, match="page_size: 7 "):
        sale.KeyIndex(like=k, capacity=500, page_size=7)
    with pytest.raises(ValueError, match="pages: given, but the index has no page_size"):
        sale.KeyIndex(like=k, capacity=500).update(k[0], pages=np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="capacity: there is no index"):
        sale.KeyIndex.memory_bytes(like=k, capacity=2**40)


# ---- pages -----------------------------------------------------------------------------------------------------------


def paged(k, v, lens, page_size=32, seed=0):
    """Keys and values of sequences packed one after the other, in pages in any order; the table's unused entries are -1."""
    most = -(-max(lens) // page_size)
    order = np.random.default_rng(seed).permutation(len(lens) * most + 3).astype(np.int32)
    table = np.full((len(lens), most), -1, np.int32)
    pools = [np.full((len(order), page_size, *k.shape[1:]), np.nan, np.float32) for _ in range(2)]
    start = 0
    for b, n in enumerate(lens):
        for p in range(-(-n // page_size)):
            table[b, p] = order[b * most + p]
            for x, pool in zip((k, v), pools):
                piece = x[start + p * page_size : start + min(n, (p + 1) * page_size)]
                pool[table[b, p], : len(piece)] = piece
        start += n
    return *pools, table


def test_paged_is_packed():
    q, k, v = (x[0].swapaxes(0, 1) for x in tensors(700))
    lens, bounds = [300, 400], [0, 300, 700]
    k_pages, v_pages, table = paged(k, v, lens)
    wanted, wanted_lse = sale.attention(q, k, v, options=SPARSE, cu_seqlens_q=bounds, return_lse=True)
    said = {"options": SPARSE, "cu_seqlens_q": bounds, "k_lens": lens}
    out, lse = sale.attention(q, k_pages, v_pages, page_table=table, return_lse=True, **said)
    assert np.array_equal(out, wanted) and np.array_equal(lse, wanted_lse)
    step = _call.step_of(_numpy, q, k_pages, v_pages, _call.Said(cu_seqlens_q=bounds, k_lens=lens, page_table=table), q)[0]
    moved = np.roll(np.arange(len(k_pages)), 1)  # other pages, another table: the same step
    again = sale.attention(q, k_pages[np.argsort(moved)], v_pages[np.argsort(moved)], page_table=moved[table].astype(np.int32), **said)
    assert np.array_equal(again, out) and len(step._plans) == 1
    indexes = []
    for b, n in enumerate(lens):
        index = sale.KeyIndex(like=k.swapaxes(0, 1), capacity=512, options=SPARSE, page_size=32)
        index.update(k_pages, tokens=n, pages=table[b])
        indexes.append(index)
    assert np.array_equal(sale.attention(q, k_pages, v_pages, page_table=table, index=indexes, **said), out)


def test_tables_that_name_no_page_are_refused():
    q, k, v = (x[0].swapaxes(0, 1) for x in tensors(700))
    k_pages, v_pages, table = paged(k, v, [300, 400])
    said = {"options": SPARSE, "cu_seqlens_q": [0, 300, 700], "k_lens": [300, 400]}
    for b, entry, page in ((0, 0, -1), (0, 9, len(k_pages)), (1, 12, 1 << 30), (1, 12, -(1 << 31))):
        wrong = table.copy()
        wrong[b, entry] = page
        with pytest.raises(ValueError, match=f"page_table: entry {entry} of sequence {b} is {page}; k has pages 0 .. {len(k_pages) - 1}"):
            sale.attention(q, k_pages, v_pages, page_table=wrong, **said)
        index = sale.KeyIndex(like=k.swapaxes(0, 1), capacity=512, options=SPARSE, page_size=32)
        with pytest.raises(ValueError, match=f"pages: entry {entry} of sequence 0 is {page}"):
            index.update(k_pages, tokens=300 if b == 0 else 400, pages=wrong[b])
        assert len(index) == 0
    with pytest.raises(ValueError, match="pages: 12 is not in 13"):
        sale.attention(q, k_pages, v_pages, page_table=table[:, :12].copy(), **said)
    with pytest.raises(ValueError, match="page_table: of shape"):
        sale.attention(q, k_pages, v_pages, page_table=table[:, ::2], **said)
    for wrong in (table.astype(np.int64), table.astype(">i4"), table.tolist()):
        with pytest.raises(TypeError, match="page_table: .*int32"):
            sale.attention(q, k_pages, v_pages, page_table=wrong, **said)
    for given, message in (({"tokens": 300}, "pages: needed"), ({"pages": table[0]}, "tokens: needed"),
                           ({"tokens": 300, "pages": table[0, :9]}, "pages: of shape")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            index.update(k_pages, **given)


# ---- block lists -----------------------------------------------------------------------------------------------------


def test_block_lists_of_every_form():
    q, k, v = tensors(300, keys=700, batch=2)
    mask = np.ones((2, 700), bool)
    mask[1, :450] = False
    packed = [x[0].swapaxes(0, 1) for x in (q, k, v)]
    for given, said in (((q, k, v), {}), ((q, k, v), {"q_offset": 37}), ((q, k, v), {"causal": False}), ((q, k, v), {"attn_mask": mask}),
                        (packed, {"cu_seqlens_q": [0, 100, 300], "cu_seqlens_k": [0, 333, 700]})):  # fmt: skip
        blocks = sale.select(*given[:2], options=SPARSE, **said)
        stats = sale.stats(*given, options=SPARSE, **said)
        assert len(blocks.indices) == stats.kept_blocks and blocks.visible.sum() == stats.visible_blocks
        assert blocks.indptr[0] == 0 and blocks.indptr[-1] == len(blocks.indices) and (np.diff(blocks.indptr) > 0).all()
        seen = np.add.reduceat(blocks.visible, np.cumsum([0, *np.repeat(blocks.tiles, blocks.heads)])[:-1])
        assert np.array_equal(seen, stats.heads[..., 1].ravel())
        for r in range(len(blocks.visible)):
            row = blocks.indices[blocks.indptr[r] : blocks.indptr[r + 1]]
            assert (np.diff(row) > 0).all() and row[0] == 0 and row[-1] < blocks.visible[r]
        dense = sale.select(*given[:2], options=SPARSE.dense(), **said)
        assert np.array_equal(np.diff(dense.indptr), dense.visible)


def test_explain_is_of_the_layer_asked_about():
    q, k, v = tensors(300)
    smoothed = SPARSE.replace(smoothing=np.zeros((2, 64)))
    sale.attention(q, k, v, options=SPARSE)
    assert "smoothed by the layer's vectors" in sale.explain(q, k, options=smoothed)
    assert "smoothed by the layer's vectors" not in sale.explain(q, k, options=SPARSE)
