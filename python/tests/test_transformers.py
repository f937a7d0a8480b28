"""The attention "sale" in transformers, beside sdpa: caches, chunks, padding, refusals, the bundled model's answers."""

import copy
import os
import pathlib
import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import sale  # noqa: E402
import sale.transformers  # noqa: E402
from sale.eval import needle  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = str(ROOT / "models/tiny-llama-128k")
TEXT = ROOT / "models/text/middlemarch.txt"
TOKENS = int(os.environ.get("SALE_MODEL_TOKENS", "4096"))
DENSE = sale.Options().dense()
SPARSE = sale.Options(thresholds=0.004, dense_below=0)


def small(kind="Llama", **changes):
    """A model of random weights, four layers."""
    settings = dict(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=32, max_position_embeddings=4096)  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**settings, **changes})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.fixture(scope="module")
def bundled():
    return needle.load(FOLDER)


def logits(model, ids, form, options=None, **keywords):
    if options is not None:
        sale.transformers.use(model, options=options)
    model.set_attn_implementation(form)
    with torch.no_grad():
        return model(ids, **keywords).logits


@pytest.fixture(scope="module")
def ids():
    torch.manual_seed(1)
    return torch.randint(3, 64, (2, 300))


def test_dense_is_sdpa(ids):
    model = small()
    assert (logits(model, ids, "sale", DENSE) - logits(model, ids, "sdpa")).abs().max() < 1e-4


def test_audits_are_told_by_layer(ids):
    model = small()
    options = sale.Options(thresholds=8.0, dense_below=0, audit=65536)
    plain = logits(model, ids, "sale", options.replace(audit=0))
    assert sale.transformers.audits(model) == {}
    assert torch.equal(logits(model, ids, "sale", options), plain)
    once = sale.transformers.audits(model)
    assert sorted(once) == [0, 1] and all((a["rows"] == 600).all() and a.shape == (4,) for a in once.values())
    logits(model, ids, "sale")
    for layer, twice in sale.transformers.audits(model).items():
        assert (twice["rows"] == 1200).all() and (twice["error"] == 2 * once[layer]["error"]).all() and (twice["error"] > 0).all()
        assert (twice["mass"] < twice["rows"]).all() and (twice["least_mass"] == once[layer]["least_mass"]).all()
    generated = model.generate(ids, max_new_tokens=3, do_sample=False, prefill_chunk_size=100)  # chunks with an index, decoding
    assert generated.shape == (2, 303)
    assert all((a["rows"] == 1800).all() for a in sale.transformers.audits(model).values())
    sale.transformers.use(model, options=options)
    assert sale.transformers.audits(model) == {}
    with pytest.raises(Exception, match="audit is not supported in compiled models"):
        torch.compile(model, fullgraph=True, backend="eager")(ids)
    with pytest.raises(TypeError, match="model: Odd"):
        sale.transformers.audits(type("Odd", (), {})())


def test_left_and_right_padding(ids):
    model = small()
    mask = torch.ones_like(ids)
    mask[0, :120], mask[1, 250:] = 0, 0
    for options in (DENSE, SPARSE):
        ours = logits(model, ids, "sale", options, attention_mask=mask)
        for b, rows in enumerate((slice(120, 300), slice(0, 250))):
            positions = {"position_ids": torch.arange(120, 300)[None]} if b == 0 else {}
            alone = logits(model, ids[b : b + 1, rows], "sale", **positions)
            assert (ours[b, rows] - alone[0]).abs().max() < 1e-4
    dense = logits(model, ids, "sdpa", attention_mask=mask)
    assert ((logits(model, ids, "sale", DENSE, attention_mask=mask) - dense)[mask.bool()]).abs().max() < 1e-4


CACHES = [{}, {"prefill_chunk_size": 100}, {"cache_implementation": "static"},
          {"cache_implementation": "static", "prefill_chunk_size": 100}]  # fmt: skip


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_generation_is_sdpas(ids, cache, padded):
    model = small()
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :130] = 0
    made = {}
    for form in ("sdpa", "sale"):
        sale.transformers.use(model, options=DENSE)
        model.set_attn_implementation(form)
        made[form] = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0,
                                    output_logits=True, return_dict_in_generate=True, **cache)  # fmt: skip
    assert torch.equal(made["sdpa"].sequences, made["sale"].sequences)
    for a, b in zip(made["sdpa"].logits, made["sale"].logits):
        assert (a - b).abs().max() < 1e-4


def run(model, pieces, cache):
    with torch.no_grad():
        return [model(p, use_cache=True, **{needle.cache_argument(model): cache}).logits for p in pieces]


def indexes(cache):
    return [layer.__dict__["_sale_held"]._indexes for layer in cache.layers]


@pytest.fixture(scope="module")
def long_ids():
    torch.manual_seed(2)
    return torch.randint(3, 64, (1, 1536))


def test_the_index_stays_with_the_cache(long_ids):
    model = small()
    sale.transformers.use(model, options=SPARSE)
    first, second, third = long_ids.split(512, 1)
    cache = transformers.DynamicCache()
    run(model, [first, second], cache)
    kept = indexes(cache)
    assert [len(i) for (i,) in kept] == [1024, 1024]
    run(model, [third], cache)
    assert [i is j for (i,), (j,) in zip(kept, indexes(cache))] == [True, True]
    assert [len(i) for (i,) in indexes(cache)] == [1536, 1536]


def test_every_cache_has_its_own(long_ids):
    model = small()
    sale.transformers.use(model, options=SPARSE)
    other = long_ids.flip(1)
    expected = [run(model, x.split(512, 1), transformers.DynamicCache()) for x in (long_ids, other)]
    caches = [transformers.DynamicCache() for _ in range(2)]
    for i, pieces in enumerate(zip(long_ids.split(512, 1), other.split(512, 1))):  # taking turns
        for piece, cache, wanted in zip(pieces, caches, expected):
            assert torch.equal(run(model, [piece], cache)[0], wanted[i])


def test_decoded_cropped_copied_and_replaced_keys(long_ids):
    model = small()
    sale.transformers.use(model, options=SPARSE)
    pieces = long_ids.split(512, 1)

    def from_scratch(prefix, piece):
        """The same with nothing remembered: the index of the last piece is made over all keys at once."""
        cache = transformers.DynamicCache()
        run(model, prefix, cache)
        for layer in cache.layers:
            layer.__dict__.pop("_sale_held", None)
        return run(model, [piece], cache)[0]

    cache = transformers.DynamicCache()
    run(model, pieces[:2], cache)
    twin = copy.deepcopy(cache)
    assert all(not i for i in indexes(twin))
    run(model, [long_ids[:, :1]] * 3, cache)  # decoding goes on, and the index with it
    assert [len(i) for (i,) in indexes(cache)] == [1024, 1024]
    cache.crop(-3)
    kept = [i for (i,) in indexes(cache)]
    out = run(model, [pieces[2]], cache)[0]
    assert [i for (i,) in indexes(cache)] == kept or all(len(i) == 1536 for (i,) in indexes(cache))
    assert torch.equal(run(model, [pieces[2]], twin)[0], from_scratch(pieces[:2], pieces[2]))
    assert (out - from_scratch(pieces[:2], pieces[2])).abs().max() < 0.05
    # Keys written to behind our back: what was remembered is let go of.
    cache = transformers.DynamicCache()
    run(model, pieces[:2], cache)
    for layer in cache.layers:
        layer.keys.mul_(-1)
    before = [i for (i,) in indexes(cache)]
    run(model, [pieces[2]], cache)
    assert all(i is not j for i, (j,) in zip(before, indexes(cache)))


def test_compile_is_one_graph(ids):
    model = small()
    wanted = logits(model, ids, "sale", SPARSE)
    with torch.no_grad():
        assert (torch.compile(model, fullgraph=True, backend="aot_eager")(ids).logits - wanted).abs().max() < 1e-5
    fresh = small()
    fresh.set_attn_implementation("sale")  # nothing decided yet: the calibration is looked for while tracing
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.compile(fresh, fullgraph=True, backend="aot_eager")(ids).logits.shape == wanted.shape


def test_qwen_and_sliding_windows(ids):
    for model in (small("Qwen2"), small("Qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1),
                  small("Mistral", sliding_window=64)):  # fmt: skip
        assert (logits(model, ids, "sale", DENSE) - logits(model, ids, "sdpa")).abs().max() < 1e-4


def test_what_is_not_supported_is_refused_by_name(ids):
    gemma = small("Gemma2", sliding_window=4096, query_pre_attn_scalar=32)
    with pytest.raises(NotImplementedError, match="softcap is not supported"):
        logits(gemma, ids, "sale", DENSE)
    model = small()
    sale.transformers.use(model, options=DENSE)
    with pytest.raises(ValueError, match="requires grad"):
        model(ids)
    with pytest.raises((ValueError, NotImplementedError), match="without a paged cache|cu_seq_lens_q"), torch.no_grad():
        model.set_attn_implementation("paged|sale")
        model(ids, cu_seq_lens_q=torch.tensor([0, 300]), cu_seq_lens_k=torch.tensor([0, 300]))


def test_holes_in_the_padding_are_as_if_they_were_not_there(ids):
    model = small()
    seen = torch.ones(300, dtype=torch.bool)
    seen[50:93] = False
    mask = torch.stack([seen, torch.ones_like(seen)]).long()
    for options in (DENSE, SPARSE):
        ours = logits(model, ids, "sale", options, attention_mask=mask)
        alone = logits(model, ids[:1, seen], "sale", position_ids=torch.arange(300)[None, seen])
        assert (ours[0, seen] - alone[0]).abs().max() < 1e-4
        assert (ours[1:] - logits(model, ids[1:], "sale")).abs().max() < 1e-4


def test_packed_sequences_are_each_alone(ids):
    model = small()
    positions = torch.cat([torch.arange(170), torch.arange(130)])[None].expand(2, -1)
    for options in (DENSE, SPARSE):
        ours = logits(model, ids, "sale", options, position_ids=positions, use_cache=False)
        for part in (slice(0, 170), slice(170, 300)):
            assert (ours[:, part] - logits(model, ids[:, part], "sale")).abs().max() < 1e-4
    assert (logits(model, ids, "sale", DENSE, position_ids=positions, use_cache=False)
            - logits(model, ids, "eager", position_ids=positions, use_cache=False)).abs().max() < 1e-4  # fmt: skip
    few = positions[:, 150:200] - 150 * (positions[:, 150:200] >= 150)  # 20 and 30 rows: decoding's path
    assert (logits(model, ids[:, :50], "sale", DENSE, position_ids=few, use_cache=False)
            - logits(model, ids[:, :50], "eager", position_ids=few, use_cache=False)).abs().max() < 1e-4  # fmt: skip


@pytest.mark.parametrize("keywords", [{}, {"use_cache": False}, {"use_cache": False, "position_ids": "packed"}, {"attention_mask": "holes"}], ids=str)
def test_compiled_is_eager(ids, keywords):
    if "attention_mask" in keywords:
        keywords = {"attention_mask": (torch.arange(300) // 20 % 5 != 2).expand(2, -1).long()}
    if "position_ids" in keywords:
        keywords = {**keywords, "position_ids": torch.cat([torch.arange(170), torch.arange(130)])[None].expand(2, -1)}
    model = small()
    wanted = logits(model, ids, "sale", SPARSE, **keywords)
    with torch.no_grad():
        compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")(ids, **keywords).logits
    assert (compiled - wanted).abs().max() < 1e-5


def test_what_is_left_to_sdpa_is_said_once(ids):
    settings = dict(vocab_size=64, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
                    encoder_ffn_dim=64, decoder_ffn_dim=64)  # fmt: skip
    model = transformers.BartModel(transformers.BartConfig(**settings)).eval()
    model.set_attn_implementation("sale")
    sale.transformers._told.clear()
    for expected in (1, 0):
        with warnings.catch_warnings(record=True) as said, torch.no_grad():
            warnings.simplefilter("always")
            model(input_ids=ids, decoder_input_ids=ids)
        assert sum("attention that is not causal is left to torch" in str(w.message) for w in said) == expected
    custom = small()
    sale.transformers.use(custom, options=DENSE)
    mask = torch.rand(2, 1, 300, 300) < 0.5
    mask |= torch.eye(300, dtype=torch.bool)
    with pytest.warns(UserWarning, match="a mask other than causal and padding is left to torch"):
        ours = logits(custom, ids, "sale", attention_mask=mask)
    assert (ours - logits(custom, ids, "sdpa", attention_mask=mask)).abs().max() < 1e-4
    for dtype in (torch.float32, torch.int64):
        for rows in (300, 20):
            with pytest.raises(NotImplementedError, match=f"attention_mask of {dtype}"):
                logits(custom, ids[:, :rows], "sale", attention_mask=torch.zeros(2, 1, rows, rows, dtype=dtype))
            with pytest.raises(NotImplementedError, match=f"attention_mask of {dtype}"):
                logits(custom, ids[:, :rows], "sale", attention_mask=torch.ones(2, 1, 1, rows, dtype=dtype))


def test_masks_know_when_a_model_changes_them():
    spans = sale.transformers.mask(2, 100, 100, attention_mask=torch.ones(2, 100, dtype=torch.bool))
    for untouched in (spans[:, :, :, :100], spans[:, :, :, :400], spans.to("cpu"), spans.clone(), spans.contiguous()):
        assert torch.equal(untouched.plain(), spans.plain())
    bools = sale.transformers.mask(2, 100, 100, mask_function=transformers.masking_utils.bidirectional_mask_function,
                                   allow_is_causal_skip=False)  # fmt: skip
    assert bools.dtype == torch.bool and bools[:, :, :50].any() and torch.where(bools, 0.0, -1.0).add(1).shape == bools.shape
    for change in (lambda: spans + 1, lambda: 1.0 * spans, lambda: ~spans, lambda: spans[:, :, :, :50], lambda: spans[:, :, -1:], lambda: spans != 0,
                   lambda: torch.zeros(2, 1, 1, 1) + spans, lambda: torch.cat([spans, spans]), lambda: spans.float(), lambda: spans.expand(2, 4, 1, -1), lambda: spans.fill_(0), lambda: spans.copy_(spans.plain()),
                   lambda: torch.zeros(2, 4, 100, 100) + bools, lambda: bools * 1.0, lambda: torch.zeros(()).sub(bools)):  # fmt: skip
        with pytest.raises(NotImplementedError, match="this model computes with its attention mask"):
            change()


def test_autocast(ids):
    model = small()
    wanted = logits(model, ids, "sdpa")
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours, chunked = logits(model, ids, "sdpa"), logits(model, ids, "sale", DENSE), None
        cache = transformers.DynamicCache()
        chunked = torch.cat(run(model, ids.split(100, 1), cache), 1)
    assert (ours.float() - plain.float()).abs().max() < 4 * (plain.float() - wanted).abs().max()
    assert (chunked.float() - plain.float()).abs().max() < 4 * (plain.float() - wanted).abs().max()


OTHER = """
import pickle, sys, torch, sale, sale.transformers
for i in range(9):
    sale.Options(thresholds=50.0 + i, dense_below=0)  # this process has options of its own
model, ids = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[2])
"""


def test_models_take_their_options_along(ids, tmp_path):
    import subprocess
    import sys

    model = small()
    basis = [torch.linalg.qr(torch.randn(2, 32, 16))[0].numpy() for _ in range(2)]
    options = sale.Options(thresholds=[1.0, 2.0, 4.0, 8.0], dense_below=0, q_projection=basis[0], k_projection=basis[1])
    wanted = logits(model, ids, "sale", options)
    assert not torch.equal(wanted, logits(copy.deepcopy(model), ids, "sale", DENSE))
    assert torch.equal(logits(copy.deepcopy(model), ids, "sale"), wanted)
    torch.save((model, ids), tmp_path / "model.pt")
    subprocess.run([sys.executable, "-c", OTHER, tmp_path / "model.pt", tmp_path / "logits.pt"], check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), wanted)


def test_a_new_calibration_is_found_in_the_place_of_the_old(ids, tmp_path, monkeypatch):
    monkeypatch.setenv("SALE_CALIBRATIONS", str(tmp_path))
    made = {}
    for threshold in (0.0, 1e5):
        calibration = sale.Calibration("org/a", "0" * 16, "int8", torch.full((2, 4), threshold).numpy(), None, None, 2, 32, dense_below=0)
        calibration.write(tmp_path / "org--a.json")
        model = small()
        model.config._name_or_path = "org/a"
        made[threshold] = logits(model, ids, "sale")
        assert model.model.layers[1].self_attn._sale_found[1] == calibration.options(1)
    assert not torch.equal(made[0.0], made[1e5])


def test_continuous_batching():
    model = small()
    sale.transformers.use(model, options=SPARSE)
    prompts = [torch.randint(3, 64, (n,)).tolist() for n in (200, 90)]
    settings = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    if tuple(int(n) for n in transformers.__version__.split(".")[:2]) > (5, 18):
        with pytest.raises(ValueError, match="not supported for continuous batching"):
            model.generate_batch(prompts, generation_config=settings)
        return
    expected = [model.generate(torch.tensor([p]), generation_config=settings)[0, len(p) :].tolist() for p in prompts]
    made = model.generate_batch(prompts, generation_config=settings)
    assert [m.generated_tokens[: len(e)] for m, e in zip(made.values(), expected)] == expected


def test_calibrations_are_found_and_checked(bundled, tmp_path, monkeypatch):
    model, _ = bundled
    sale.transformers.use(model)
    calibration = sale.Calibration.read(f"{FOLDER}/calibration.json")
    for i, layer in enumerate(model.model.layers):
        assert layer.self_attn._sale_options == calibration.options(i, dense_below="auto")
    assert sale.transformers.model_fingerprint(FOLDER) == calibration.fingerprint
    with pytest.raises(ValueError, match="made for a model with layers 8"):
        sale.transformers.use(small(), FOLDER + "/calibration.json")
    monkeypatch.setenv("SALE_CALIBRATIONS", str(tmp_path))
    (tmp_path / "org--name.json").write_text("{}")
    assert sale.transformers.find_calibration("org/name") == tmp_path / "org--name.json"
    assert sale.transformers.find_calibration("org/other") is None
    assert sale.transformers.find_calibration("org/name", "fp8") is None
    copy = tmp_path / "copy"  # a folder without a calibration of its own, of weights that are known
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        os.symlink(os.path.join(FOLDER, name), copy / name)
    mark = sale.transformers.model_fingerprint(copy)
    assert sale.transformers.find_calibration(str(copy)) is None
    for suffix, form in (("", "int8"), ("-fp8", "fp8")):
        (tmp_path / f"{mark}{suffix}.json").write_text("{}")
        assert sale.transformers.find_calibration(str(copy), form) == tmp_path / f"{mark}{suffix}.json"
    with pytest.warns(UserWarning, match="no calibration found"):
        sale.transformers.use(small(num_hidden_layers=3))


def test_calibrating_a_model(bundled, tmp_path):
    tokenizer = bundled[1]
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, num_hidden_layers=2)
    path, states = tmp_path / "c.json", []
    settings = dict(text=TEXT, tokens=1400, prompts=2, rank=32, rows=8)
    made = sale.transformers.calibrate(model, tokenizer, path, budget=0.03, report=states.append, **settings)
    assert made.rank == 32 and made.error["density"] < 1 and 0.5 < made.error["retained_mass"] <= 1
    assert made.fingerprint == sale.transformers.model_fingerprint(FOLDER)
    assert [s.done for s in states] == pytest.approx([i / 6 for i in range(1, 7)])
    assert model.config._attn_implementation == "sdpa"
    assert sale.Calibration.read(path).options(1) == made.options(1)
    sale.transformers.use(model, path)
    looser = sale.transformers.calibrate(model, tokenizer, budget=0.2, **settings)
    assert looser.error["density"] < made.error["density"]


def test_the_bundled_model_answers(bundled):
    rows = needle.compare(bundled, TEXT, tokens=TOKENS, facts=2, chunk=TOKENS // 2)
    assert len(rows) == 6
    assert all(r["sale"] == r["dense"] == r["asked"] for r in rows), rows
