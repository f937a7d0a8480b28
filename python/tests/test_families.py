"""attn_implementation="sale" beside eager, in a small random model of every family that the installed transformers can
make and run: what is not refused by name is the same. The families named here are run always and in more ways; of the
others as many as SALE_FAMILY_SECONDS allow (default 60), every run others. All there are, with guessed inputs where the
plain ones do not do: SALE_FAMILY_WIDE=1 SALE_FAMILY_SECONDS=3600 SALE_FAMILY_PARAMETERS=1e8."""

import os
import random
import time
import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import families  # noqa: E402
import sale  # noqa: E402
import sale.transformers  # noqa: E402

# What each family is here for.
NAMED = {
    "llama": "plain", "mistral": "sliding windows", "mixtral": "experts", "qwen2": "plain", "qwen3": "norms of q and k", "qwen3_moe": "experts",
    "phi": "heads of its own", "phi3": "fused projections", "gemma": "wide heads", "gemma2": "soft cap", "gemma3_text": "windows, no soft cap", "gemma4_text": "heads that differ from layer to layer", "gpt_oss": "sinks",
    "gpt2": "no grouped heads", "gpt_neox": "fused projections", "gpt_bigcode": "one kv head", "falcon": "one kv head", "opt": "offsets of positions",
    "olmo2": "norms", "cohere": "", "starcoder2": "windows", "deepseek_v3": "values of other width", "smollm3": "layers without positions",
    "t5": "position biases", "mt5": "position biases", "bart": "cross attention", "mbart": "cross attention", "pegasus": "cross attention",
    "whisper": "cross attention, sound", "marian": "cross attention", "vit": "no layer numbers", "siglip_vision_model": "no layer numbers", "clip_vision_model": "",
    "clip_text_model": "causal without a cache", "dinov2": "", "bert": "no causality", "roberta": "no causality", "modernbert": "windows without causality",
    "splinter": "no word of causality", "bridgetower": "a false word of causality", "wav2vec2": "sound", "doge": "a mask of its own", "bloom": "another interface", "llama4_text": "chunks", "granite": "", "stablelm": "", "nemotron": "",
}  # fmt: skip
REFUSED = {"gemma2": "softcap", "t5": "position_bias", "mt5": "position_bias", "doge": "attention mask"}
EXACT = 2e-3  # of the largest output: float32, other orders of summation


def far(a, b, rows=None) -> float:
    if rows is not None:
        a, b = a[rows], b[rows]
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-6)).item()


def built(kind):
    try:
        model = families.build(kind)
        if sum(p.numel() for p in model.parameters()) > float(os.environ.get("SALE_FAMILY_PARAMETERS", "2e7")):
            return None
        return model, *families.run(model, kind in NAMED or families.WIDE)
    except Exception:  # not made from such a configuration, by this version
        return None


def under_sale(model, given):
    try:
        model.set_attn_implementation("sale")
    except ValueError:  # transformers says that this model takes its own implementations only
        return None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return families.made_of(model, given)


@pytest.mark.parametrize("kind", NAMED)
def test_a_family_is_eager_or_refused(kind):
    if kind not in families.names():
        pytest.skip("this transformers does not have it")
    found = built(kind)
    if found is None:
        pytest.skip("not made from a small configuration by this transformers")
    model, given, wanted = found
    if kind in REFUSED:
        with pytest.raises(NotImplementedError, match=REFUSED[kind]):
            under_sale(model, given)
        return
    assert far(under_sale(model, given), wanted) < EXACT
    name = "input_ids"
    if name not in given or "pixel_values" in given:
        return
    # Padding at either end and holes, of what the model reads first; rows that are not padding are compared.
    mask = torch.ones_like(given[name])
    mask[0, :30], mask[1, -20:], mask[1, 40:60] = 0, 0, 0
    padded = {**given, "attention_mask": mask}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = families.first_tensor(model(**padded))
    rows = None if "decoder_input_ids" in given else mask.bool()
    assert far(under_sale(model, padded), wanted, rows) < EXACT
    if not model.can_generate():
        return
    # In chunks of a prompt, then token by token, over a cache; encoder-decoders over theirs.
    settings = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None, output_logits=True, return_dict_in_generate=True)
    if "decoder_input_ids" not in given:
        settings["prefill_chunk_size"] = 100
    made = {}
    for form in ("eager", "sale"):
        model.set_attn_implementation(form)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made[form] = model.generate(**padded, **settings)
            except RuntimeError:
                if form == "sale":
                    raise
                return  # an encoder in a generator's clothes
    for a, b in zip(made["eager"].logits, made["sale"].logits):
        assert far(b, a) < EXACT


def test_a_decoder_made_bidirectional():
    """config.is_causal = False makes transformers ask for masks that hide nothing, which it leaves out."""
    model = families.build("llama")
    model.config.is_causal = False
    given = families.inputs(model)
    with torch.no_grad():
        wanted = families.first_tensor(model(**given))
        model.config.is_causal = True
        causal = families.first_tensor(model(**given))
        model.config.is_causal = False
    assert far(under_sale(model, given), wanted) < EXACT < far(causal, wanted)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert far(under_sale(compiled, given), wanted) < EXACT


def test_other_families():
    """Those that cannot be built or run even by eager are not counted; at least forty are."""
    end = time.monotonic() + float(os.environ.get("SALE_FAMILY_SECONDS", "60"))
    kinds = [n for n in families.names() if n not in NAMED]
    random.Random(os.environ.get("SALE_SEED", time.time())).shuffle(kinds)
    bad, ran, refused = [], 0, 0
    for kind in kinds:
        if time.monotonic() > end:
            break
        found = built(kind)
        if found is None:
            continue
        model, given, wanted = found
        try:
            out = under_sale(model, given)
        except NotImplementedError as e:
            refused += "sale:" in str(e)
            if "sale:" not in str(e):
                bad.append(f"{kind}: {e}")
        except Exception as e:
            bad.append(f"{kind}: {type(e).__name__}: {e}")
        else:
            ran += 1
            if out is not None and not far(out, wanted) < EXACT:
                bad.append(f"{kind}: {far(out, wanted):.1e} from eager")
    print(f"{ran} families as eager, {refused} refused by name")
    assert not bad, "\n".join(bad)
    assert ran >= 5 or ran == len(kinds)
