"""What is the same for all engines, without one: rows of a batch, settings, steps on pages, sessions, audits."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from conftest import MODEL
from sale import Calibration
from sale.serving import Model, Row, Session, Settings, Share, chosen, gaps
from sale.serving.batch import rows_of
from sale.serving.guard import Guard
from sale.serving.measure import Measuring
from sale.serving.metrics import METRICS
from sale.serving.session import IDLE, MEASURING, SPARSE

LLAMA = Model(str(MODEL), 8, 4, 2, 128)
DENSE = 2**62


def session(lines=None, model=LLAMA, share=Share(), tokens=2048, keys=4096, dtype=torch.bfloat16, **said):
    return Session(model, share, dtype, torch.device("cpu"), model.head_dim**-0.5, tokens=tokens, keys=keys,
                   settings=Settings(**said), log=(lines if lines is not None else []).append)  # fmt: skip


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_rows_of_prompts():
    starts, keys = [0, 1, 2, 66, 66, 129, 2000], [900, 5000, 3000, 0, 63, 1871]
    assert rows_of(starts, keys, None) == [Row(2, 2, 64, 3000), Row(5, 129, 1871, 1871)]
    assert rows_of(starts, keys, [True] * 5 + [False]) == [Row(2, 2, 64, 3000)]
    assert chosen(rows_of(starts, keys, None), 3000) == [Row(2, 2, 64, 3000)]


@pytest.mark.parametrize("ours, starts, wanted", [
    ([], [0, 1, 2], [(0, 2)]),
    ([1], [0, 5, 9, 12], [(0, 1), (2, 3)]),
    ([0, 1], [0, 5, 9], []),
    ([2, 3], [0, 1, 2, 9, 20], [(0, 2)]),
    ([1], [0, 1, 9, 9, 9], [(0, 1)]),  # padding behind
    ([2], [0, 0, 1, 9, 9, 10], [(1, 2), (4, 5)]),
])  # fmt: skip
def test_gaps_are_the_engines(ours, starts, wanted):
    rows = [Row(i, starts[i], starts[i + 1] - starts[i], 0) for i in ours]
    assert gaps(rows, starts) == wanted
    covered = sorted([(r.start, r.start + r.tokens) for r in rows] + [(starts[a], starts[b]) for a, b in wanted])
    assert [x for pair in covered for x in pair][1:-1:2] == [x for pair in covered for x in pair][2::2]  # no token twice or not at all


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings():
    assert Settings.read({}) == Settings() and Settings.read({"SALE_CALIBRATION": " "}).calibration == "found"
    read = Settings.read({"SALE_CALIBRATION": "auto", "SALE_AUDIT_EVERY": "0", "SALE_AUDIT_LIMIT": "0.5", "SALE_CALIBRATION_TOKENS": "4096"})
    assert (read.calibration, read.audit_every, read.audit_limit, read.tokens) == ("auto", 0, 0.5, 4096)
    for name, value in (("SALE_AUDIT_EVERY", "-1"), ("SALE_AUDIT_ROWS", "0"), ("SALE_CALIBRATION_TOKENS", "100"), ("SALE_AUDIT_LIMIT", "nan"),
                        ("SALE_CALIBRATION_BUDGET", "x"), ("SALE_CALIBRATION_PROMPTS", "1.5")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name}: '{value}' is not a"):
            Settings.read({name: value})


# ---- steps -----------------------------------------------------------------------------------------------------------


class Cache:
    """Keys and values of some sequences in pages as vLLM lays them: [page, token, head, K then V], pages in any order."""

    def __init__(self, lengths, kv_heads=2, d=128, page=16, seed=0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.page, pages = page, [-(-n // page) for n in lengths]
        self.store = torch.full((sum(pages) + 3, page, kv_heads, 2 * d), float("nan"), dtype=torch.bfloat16)
        order = torch.randperm(sum(pages), generator=g) + 1
        self.table = torch.full((len(lengths), max(pages) + 5), -1, dtype=torch.int32)
        self.k, self.v = [], []
        for b, n in enumerate(lengths):
            mine, order = order[: pages[b]], order[pages[b] :]
            self.table[b, : pages[b]] = mine
            kv = torch.randn(n, kv_heads, 2 * d, generator=g).bfloat16()
            flat = torch.zeros(pages[b] * page, kv_heads, 2 * d, dtype=torch.bfloat16)
            flat[:n] = kv
            self.store[mine.long()] = flat.view(-1, page, kv_heads, 2 * d)
            self.k.append(kv[..., :d]), self.v.append(kv[..., d:])
        self.keys, self.values = self.store.split(d, -1)


def dense(q, k, v):
    """[rows, heads, d] at the end of k and v [keys, kv_heads, d]."""
    rows, keys, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    seen = torch.arange(keys) <= torch.arange(keys - rows, keys)[:, None]
    put = lambda x: x.float().transpose(0, 1)  # noqa: E731
    wide = lambda x: put(x).repeat_interleave(group, 0)  # noqa: E731
    return torch.nn.functional.scaled_dot_product_attention(put(q), wide(k), wide(v), seen).transpose(0, 1)


def ran(made, rows, cache, q, layer=0, **how):
    step = made.step(rows, **how)
    out = torch.full_like(q, 7)
    assert made.begin(step, layer, q, cache.keys, cache.values, cache.table, out)
    assert made.run(step, layer, q, cache.keys, cache.values, out)
    return out, step


@pytest.fixture
def everything(monkeypatch):
    """A session whose heads are all dense, so that what comes out is attention itself."""
    made = session(calibration="off")
    from sale.options import Options
    from sale._estimator import Estimator

    for layer in range(2):
        made._estimators[layer] = Estimator(Options(thresholds=0.0, dense_below=made.dense_below), made.heads)
    made.reserve()
    return made


def test_a_step_on_pages_as_they_lie(everything):
    """Chunks behind cached keys, in a batch with the engine's rows between, queries in a fused row with others."""
    lengths, tokens = [40, 3000, 90, 2100], [1, 700, 90, 300]
    cache = Cache(lengths)
    fused = torch.randn(sum(tokens) + 5, 8, 128).bfloat16()  # padding behind
    q = fused[:, 2:6]
    starts = np.cumsum([0, *tokens]).tolist()
    rows = rows_of(starts, lengths, None)
    out, step = ran(everything, rows, cache, q)
    assert [r.request for r in step.rows] == [1, 3] and step.tokens == 1000
    for r in step.rows:
        part = slice(r.start, r.start + r.tokens)
        assert (out[part].float() - dense(q[part], cache.k[r.request], cache.v[r.request])).abs().max() < 0.03
    for first, end in gaps(step.rows, starts):
        assert (out[starts[first] : starts[end]] == 7).all()
    assert (out[sum(tokens) :] == 7).all()


def test_a_cache_of_8_bits_with_a_scale_for_each_head(everything):
    cache, q = Cache([1500, 1100]), torch.randn(1400, 4, 128).bfloat16()
    rows = [Row(0, 0, 900, 1500), Row(1, 900, 500, 1100)]
    scales = torch.tensor([0.01, 0.02]), torch.tensor([0.005, 0.03])
    wide = [x.float().nan_to_num() / s[:, None] for x, s in zip((cache.keys, cache.values), scales)]
    keys, values = (x.clamp(-448, 448).to(torch.float8_e4m3fn) for x in wide)
    step, out = everything.step(rows), torch.full_like(q, 7)
    assert everything.begin(step, 0, q, keys, values, cache.table, out)
    assert everything.run(step, 0, q, keys, values, out, scales)
    cache.keys, cache.values = ((x.float() * s[:, None]).bfloat16() for x, s in zip((keys, values), scales))
    assert torch.equal(out, ran(everything, rows, cache, q)[0])


@pytest.mark.parametrize("types", [(torch.float8_e5m2,) * 2, (torch.float16,) * 2, (torch.float8_e4m3fn, torch.bfloat16)])
def test_a_cache_of_another_type_stops_the_session(types):
    lines = []
    made = session(lines, calibration="off")
    made.reserve([0])
    cache, q = Cache([1500]), torch.randn(1500, 4, 128).bfloat16()
    keys, values = cache.keys.nan_to_num().to(types[0]), cache.values.nan_to_num().to(types[1])
    step, out = made.step([Row(0, 0, 1500, 1500)]), torch.full_like(q, 7)
    assert not made.begin(step, 0, q, keys, values, cache.table, out) and made.state == IDLE
    assert (out == 7).all() and sum("a cache of " in line and "own attention runs" in line for line in lines) == 1


def test_one_plan_serves_all_layers_and_other_strides(everything):
    cache, q = Cache([1500]), torch.randn(1500, 4, 128).bfloat16()
    rows = [Row(0, 0, 1500, 1500)]
    first, step = ran(everything, rows, cache, q)
    other = Cache([1500])
    other.keys, other.values = (x.contiguous() for x in cache.store.split(128, -1))
    wide = torch.zeros(1500, 8, 128, dtype=torch.bfloat16)
    wide[:, :4] = q
    out = torch.empty_like(q)
    plan = step.held["plan"]
    assert everything.run(step, 1, wide[:, :4], other.keys, other.values, out) and step.held["plan"] is plan
    assert torch.equal(out, first)


def test_one_kv_head_whatever_stride_its_axis_has():
    made = session(model=Model("none", 2, 4, 1, 64), calibration="off", audit_every=0)
    made.reserve([0])
    cache = Cache([1300], kv_heads=1, d=64)
    cache.keys, cache.values = (x.as_strided(x.shape, (*x.stride()[:2], 12345, 1), x.storage_offset()) for x in (cache.keys, cache.values))
    q = torch.randn(1300, 4, 64).bfloat16()
    out, _ = ran(made, [Row(0, 0, 1300, 1300)], cache, q)
    assert (out.float() - dense(q, cache.k[0], cache.v[0])).abs().mean() < 0.01


def test_a_step_as_a_whole_has_short_rows_too(everything):
    lengths = [40, 1500]
    cache, q = Cache(lengths), torch.randn(741, 4, 128).bfloat16()
    every = [Row(0, 0, 1, 40), Row(1, 1, 740, 1500)]
    out, step = ran(everything, every[1:], cache, q, every=every)
    for r in every:
        part = slice(r.start, r.start + r.tokens)
        assert (out[part].float() - dense(q[part], cache.k[r.request], cache.v[r.request])).abs().max() < 0.03


def test_rows_without_memory_are_the_engines():
    lines = []
    made = session(lines, calibration="off", tokens=1024, keys=2048, audit_every=0)
    made.reserve([0])
    lengths = [2048, 2048, 2048]
    cache, q = Cache(lengths), torch.randn(192, 4, 128).bfloat16()
    rows = [Row(i, 64 * i, 64, 2048) for i in range(3)]
    out, step = ran(made, list(rows), cache, q)
    assert 1 <= len(step.rows) < 3 and (out[64 * len(step.rows) :] == 7).all() and (out[:64] != 7).any()
    assert sum("were left to the engine" in line for line in lines) == 1
    whole = made.step(rows, every=rows)
    assert not made.begin(whole, 0, q, cache.keys, cache.values, cache.table, out)
    assert made.state == SPARSE


def test_what_the_library_refuses_stops_the_session():
    lines = []
    made = session(lines, calibration="off")
    made.reserve([0])
    cache, q = Cache([1500], page=8), torch.randn(1500, 4, 128).bfloat16()
    step, out = made.step([Row(0, 0, 1500, 1500)]), torch.full_like(q, 7)
    assert not made.begin(step, 0, q, cache.keys, cache.values, cache.table, out)
    assert made.state == IDLE and made.step([Row(0, 0, 1500, 1500)]) is None and (out == 7).all()
    assert not made.run(step, 0, q, cache.keys, cache.values, out)
    assert sum("page_size: 8" in line and "own attention runs" in line for line in lines) == 1


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_a_calibration_is_found_checked_and_sliced():
    lines = []
    made = session(lines)
    assert made.state == SPARSE and made.dense_below == 1024 and "density" in lines[0]
    whole = made.estimator(3)
    halves = [session(share=Share(rank, 2)).estimator(3) for rank in range(2)]
    assert sum((h.options.thresholds for h in halves), ()) == whole.options.thresholds
    assert all(h.heads[:3] == (2, 1, 128) for h in halves)
    assert np.array_equal(np.concatenate([h.options.k_projection for h in halves]), whole.options.k_projection)
    four = session(share=Share(3, 4)).estimator(3)  # kv heads are shared by ranks
    assert four.heads[:3] == (1, 1, 128) and np.array_equal(four.options.k_projection, whole.options.k_projection[1:])


@pytest.mark.parametrize("change, why", [
    (dict(model=LLAMA._replace(layers=9)), "layers"),
    (dict(model=LLAMA._replace(kv_heads=4)), "kv_heads"),
    (dict(model=LLAMA._replace(head_dim=24)), "heads of 24"),
    (dict(dtype=torch.float8_e4m3fn), "float8"),
    (dict(calibration="/nowhere/calibration.json"), "/nowhere/calibration.json"),
])  # fmt: skip
def test_what_does_not_fit_is_said_once(change, why):
    lines = []
    made = session(lines, **change)
    assert made.state == IDLE and len(lines) == 1 and why in lines[0] and "own attention runs" in lines[0]
    made.stop("again")
    made.stop("again")
    assert len(lines) == 2 and made.step([Row(0, 0, 2000, 2000)]) is None


def test_a_draft_beside_the_model_is_not_ours():
    made = session()
    assert made.claims(0, "model.layers.0.self_attn.attn") and made.claims(0, "model.layers.0.self_attn.attn")
    assert not made.claims(0, "draft.layers.0.self_attn.attn") and not made.claims(8, "model.layers.8.self_attn.attn")


def test_measuring_needs_the_whole_model(tmp_path, monkeypatch):
    monkeypatch.setenv("SALE_CALIBRATIONS", str(tmp_path))
    lines = []
    made = session(lines, model=LLAMA._replace(name="org/other"), share=Share(0, 2), calibration="auto")
    assert made.state == IDLE and "SALE_CALIBRATION=auto needs all heads" in lines[0]


# ---- measuring -------------------------------------------------------------------------------------------------------


def test_measuring_follows_one_request_at_a_time(tmp_path, monkeypatch):
    """Chunks of different sizes, another request beside, one that ends too early, one behind a cached prefix; what comes
    out is what a whole prompt gives."""
    monkeypatch.setenv("SALE_CALIBRATIONS", str(tmp_path))
    lines, layers, tokens = [], 2, 2048
    model = Model("org/two", layers, 4, 2, 64)
    made = session(lines, model=model, calibration="auto", tokens=1024, prompts=1, keys=tokens)
    assert made.state == MEASURING and made.measuring.needed == 3
    cache = Cache([2600, 900, 2200], d=64)
    q = {b: torch.randn(n, 4, 64).bfloat16() * 3 for b, n in enumerate((2600, 900, 2200))}

    def show(*rows):
        """rows: request and range of its tokens, in one step."""
        start, listed = 0, []
        for b, first, end in rows:
            listed.append(Row(b, start, end - first, end))
            start += end - first
        target = made.measuring.follow(listed, lambda row: int(cache.table[row.request, 0]))
        if target is not None:
            x = torch.cat([q[b][first:end] for b, first, end in rows])
            for layer in range(layers):
                if made.measuring is not None:
                    made.measuring.look(target, layer, x, cache.keys, cache.values, cache.table, 0.125)
        return target

    assert show((2, 600, 1200)) is None  # its beginning was cached
    assert show((1, 0, 900)).row.request == 1
    assert show((0, 0, 700), (2, 0, 300)).row.request == 0  # 1 has ended
    assert show((2, 300, 900), (0, 700, 1700)).row.request == 0
    assert show((0, 1700, 2600)).tokens == tokens - 1700  # cut; the first pass is done
    assert made.state == MEASURING and show((2, 0, 2100)).tokens == tokens
    assert made.state == MEASURING and show((0, 0, 2600)).tokens == tokens
    assert made.state == SPARSE and made.measuring is None
    assert (tmp_path / "org--two.json").is_file()
    assert len(lines) == 2 and "density" in lines[1]
    again = session(model=model, calibration="auto", keys=tokens)
    assert again.state == SPARSE


def test_prompts_that_cannot_be_measured_are_given_up():
    made = types.SimpleNamespace(say=[], heads=session().heads)
    m = Measuring(LLAMA._replace(name="org/other"), made.heads, "int8", 2048, Settings(prompts=1), None, made.say.append)
    cache = Cache([2048])
    q = torch.full((2048, 4, 128), float("nan")).bfloat16()
    row = Row(0, 0, 2048, 2048)
    with pytest.raises(ValueError, match="finite"):
        for _ in range(100):
            target = m.follow([row], lambda row: 1)
            m.look(target, 0, q, cache.keys, cache.values, cache.table, 0.0)
    assert 1 <= len(made.say) < 100


# ---- audits ----------------------------------------------------------------------------------------------------------


def found(*relative):
    return types.SimpleNamespace(relative=np.array(relative))


def test_codes_beside_the_cache_or_why_not(tmp_path, monkeypatch):
    found = Calibration.read(MODEL / "calibration.json")
    dataclasses.replace(found, smoothing=np.zeros((8, 2, 128), np.float32)).write(tmp_path / "smoothed.json")
    cache, lines = torch.zeros(10, 32, 2, 256), []
    plain = session(lines, calibration="off")
    assert plain.codes((0, 1), cache) is None and plain.codes((0, 1), cache) is None
    assert sum("no smoothing vectors" in line for line in lines) == 1
    smoothed = session(lines, calibration=str(tmp_path / "smoothed.json"))
    assert smoothed.codes((0, 1), torch.zeros(10, 16, 2, 256)) is None
    assert "pages of 16 tokens are no multiple of 32" in lines[-1]
    with monkeypatch.context() as m:
        m.setattr("sale.serving.session.Pages", lambda *_: (_ for _ in ()).throw(MemoryError))
        assert smoothed.codes((2,), cache) is None and "no memory for codes" in lines[-1]
    made = smoothed.codes((0,), cache)
    assert made is not None and smoothed.codes((0,), cache) is made and smoothed.codes((0,), cache[:5]) is not made
    made = smoothed.codes((0,), cache)
    made._coded.fill_(32)
    smoothed.written((0,), torch.tensor([5, 40, -1]))
    smoothed.written((1,), torch.tensor([0]))  # other layers' keys
    assert made._coded[0, :3].tolist() == [5, 8, 32]
    smoothed.written((0,), torch.tensor([5], dtype=torch.int32))
    assert smoothed.state == IDLE and "slots: torch.int32" in lines[-1]


def test_heads_go_dense_after_two_audits_running():
    guard = Guard(Settings(audit_limit=0.4))
    assert guard.judge(2, found(0.5, 0.1, 0.4, 0.5)) == []
    assert guard.judge(2, found(0.3, 0.5, 0.4, float("nan"))) == [3]
    assert guard.judge(2, found(0.5, 0.5, 0.4, 0.9)) == [1]
    assert guard.judge(1, found(0.5, 0.5, 0.5, 0.5)) == []
    from sale.options import Options

    assert guard.applied(2, Options(thresholds=0.25), 4).thresholds == (0.25, 0.0, 0.25, 0.0)
    assert guard.applied(0, Options(), 4) is not None and guard.applied(0, Options(), 4).thresholds == Options().thresholds


def test_audits_find_what_a_wild_threshold_loses():
    """Heads at a threshold that drops nearly everything lose most of their output, are found, go dense, and are right."""
    METRICS.reset()
    lines = []
    made = session(lines, calibration="off", audit_every=1, audit_rows=64)
    from sale._estimator import Estimator
    from sale.options import Options

    wild = Options(thresholds=[0.0, 1e6, 1e6, 0.0], dense_below=made.dense_below)
    made._estimators[0] = Estimator(wild, made.heads)
    made.reserve()
    cache, q = Cache([3000]), torch.randn(3000, 4, 128).bfloat16()
    rows = [Row(0, 0, 3000, 3000)]
    ran(made, rows, cache, q)
    assert METRICS.audits == 1 and 0.4 < METRICS.density[0] < 0.7 and METRICS.error[0] > 0.3
    ran(made, rows, cache, q)
    assert METRICS.dense_heads == 2 and "heads 1, 2 lost more than 40%" in lines[-1]
    out, _ = ran(made, rows, cache, q)
    exact = dense(q, cache.k[0], cache.v[0])
    assert (out[:, 1:3].float() - exact[:, 1:3]).abs().max() < 0.03 and METRICS.audits == 3
