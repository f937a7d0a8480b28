"""The real vLLM without a GPU: its scheduler, engine core, model runner and FlashAttention backend, ours over it, SALE's CPU
backends below. Answers, chunked and whole, alone and in mixed batches, with cached prefixes and preempted, are compared with
those of the engine's own attention; what happens when we cannot be had is tested with the newest release alone, since making
engines is most of the time.

In an environment of its own: scripts/test.sh serving."""

import gc
import importlib
import json
import logging
import os
import shutil

import pytest

if os.environ.get("VLLM_ON_CPU") != "1":
    pytest.skip("vLLM without a GPU: run by scripts/test.sh serving", allow_module_level=True)
import vllm
from asked import asked, right
from conftest import MODEL, TEXT
from sale.serving.metrics import METRICS
from sale.vllm import NEWEST, release
from vllm import LLM, SamplingParams, TokensPrompt

pytestmark = pytest.mark.filterwarnings("ignore")
# Pages of 32 tokens: 38 for each of three requests of 1216 tokens, and one more, where each needs one more to decode.
CHUNKED = dict(max_model_len=3584, max_num_batched_tokens=1024, max_num_seqs=6, block_size=32, num_gpu_blocks_override=116,
               enable_prefix_caching=True)  # fmt: skip
WHOLE = dict(max_model_len=3584, max_num_batched_tokens=8192, max_num_seqs=6, block_size=16, enable_prefix_caching=False)


def engine(backend: str, how: dict, model=MODEL) -> LLM:
    return LLM(model=str(model), attention_backend=backend, enforce_eager=True, dtype="bfloat16", seed=0,
               kv_cache_memory_bytes=1 << 28, compilation_config={"custom_ops": ["none"]}, disable_log_stats=False, **how)  # fmt: skip


def run(llm: LLM, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
    given = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
    how = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    return [list(o.outputs[0].token_ids) for o in llm.generate(given, how, use_tqdm=False)]


def counted(llm: LLM, name: str) -> int:
    return sum(m.value for m in llm.get_metrics() if m.name == name)


class Prompts:
    """Needles, key-value pairs, short prompts, and needles in 1216 tokens exactly."""

    def __init__(self, tokenizer) -> None:
        text = TEXT.read_text(encoding="utf-8")
        words = tokenizer(text[:10_000]).input_ids
        self.needles = asked(tokenizer, text, "needle", 2400, seed=1)
        self.pairs = asked(tokenizer, text, "kv", 1500, seed=2)
        self.short = [words[200 * i : 200 * i + n] for i, n in enumerate((12, 90, 700))]
        self.full = []
        for seed in (5, 6, 7):
            p = asked(tokenizer, text, "needle", 1300, seed)[0]
            self.full.append(p._replace(ids=p.ids[:1] + p.ids[len(p.ids) - 1215 :]))
        self.decode = tokenizer.decode

    def long(self):
        return [self.needles[0], *self.pairs]


def scenes(llm: LLM, prompts: Prompts, cached: bool) -> dict:
    """What an engine answers: everything at once; and, where prefixes are cached and the cache is small, a second question
    about the first context, and what fills it."""
    long = prompts.long()
    mixed = run(llm, [*prompts.short[:2], *[p.ids for p in long], prompts.short[2]], [12, 20, *[p.length for p in long], 8])
    if not cached:
        return {"mixed": mixed}
    again = run(llm, [prompts.needles[1].ids], [prompts.needles[1].length])
    return {"mixed": mixed, "again": again, "full": run(llm, [p.ids for p in prompts.full], [p.length for p in prompts.full])}


@pytest.fixture(scope="module")
def answers():
    """By settings and backend: what was answered, and what was counted meanwhile."""
    made = {}
    for name, how in (("chunked", CHUNKED), ("whole", WHOLE)):
        for backend in ("FLASH_ATTN", "CUSTOM"):
            METRICS.reset()
            llm = engine(backend, how)
            prompts = Prompts(llm.get_tokenizer())
            made[name, backend] = scenes(llm, prompts, name == "chunked") | {
                "preempted": counted(llm, "vllm:num_preemptions"), "cached": counted(llm, "vllm:prefix_cache_hits"),
                "steps": METRICS.steps, "tokens": METRICS.tokens,
            }  # fmt: skip
            made["prompts"] = prompts
            del llm
            gc.collect()
    return made


@pytest.mark.parametrize("how", ["chunked", "whole"])
def test_answers_are_right_and_the_engines_own(answers, how):
    prompts, ours, engines = answers["prompts"], answers[how, "CUSTOM"], answers[how, "FLASH_ATTN"]
    asked_for = [*prompts.long(), *([prompts.needles[1], *prompts.full] if how == "chunked" else ())]
    both = [[*x["mixed"][2:5], *x.get("again", ()), *x.get("full", ())] for x in (ours, engines)]
    for said, own, p in zip(*both, asked_for, strict=True):
        assert right(prompts.decode(said), p), (prompts.decode(said), p.answer)
        assert said[: p.length - 2] == own[: p.length - 2]
    for i in (0, 1, 5):  # short: the parent's, from first to last
        assert ours["mixed"][i] == engines["mixed"][i]


def test_they_went_through_us(answers):
    for how in ("chunked", "whole"):
        assert answers[how, "FLASH_ATTN"]["steps"] == 0
    prompts, whole, chunked = answers["prompts"], answers["whole", "CUSTOM"], answers["chunked", "CUSTOM"]
    assert whole["tokens"] == sum(len(p.ids) for p in prompts.long())
    assert chunked["steps"] > whole["steps"]


def test_preempted_and_cached_prefixes(answers):
    for backend in ("FLASH_ATTN", "CUSTOM"):
        assert answers["chunked", backend]["preempted"] > 0
        assert answers["chunked", backend]["cached"] > 1000
        assert answers["whole", backend]["preempted"] == answers["whole", backend]["cached"] == 0


@pytest.fixture
def lines():
    """What is logged about us."""
    found, handler = [], logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("vllm.sale")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


newest = pytest.mark.skipif(release(vllm.__version__) != NEWEST, reason="with the newest release of vLLM")
SMALL = dict(max_model_len=4096, max_num_batched_tokens=4096, max_num_seqs=2, block_size=32, enable_prefix_caching=False)


def served(model=MODEL) -> bool:
    """Whether an engine answers; whether that went through us is in METRICS."""
    METRICS.reset()
    return served_by(engine("CUSTOM", SMALL, model))


def question(tokenizer):
    return asked(tokenizer, TEXT.read_text(encoding="utf-8"), "needle", 1300, seed=3)[0]


def served_by(llm: LLM) -> bool:
    tokenizer = llm.get_tokenizer()
    p = question(tokenizer)
    return right(tokenizer.decode(run(llm, [p.ids], [p.length])[0]), p)


def bare(folder):
    """The bundled model without calibrations."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(MODEL / name)
    return folder


@newest
def test_without_a_calibration_the_engine_goes_on(tmp_path, lines, monkeypatch):
    monkeypatch.setenv("SALE_CALIBRATIONS", str(tmp_path / "none"))
    assert served(bare(tmp_path)) and METRICS.steps == 0
    assert sum("no calibration was found" in line for line in lines) == 1


@newest
def test_the_wrong_calibration_is_refused_once(tmp_path, lines, monkeypatch):
    for name in ("calibration.json", "calibration.tensors"):
        shutil.copy(MODEL / name, tmp_path / name)
    said = json.loads((tmp_path / "calibration.json").read_text())
    said["model"]["fingerprint"] = "0123456789abcdef"
    (tmp_path / "calibration.json").write_text(json.dumps(said))
    monkeypatch.setenv("SALE_CALIBRATION", str(tmp_path / "calibration.json"))
    assert served() and METRICS.steps == 0
    assert [("fingerprint" in line, "the engine's own attention runs" in line) for line in lines] == [(True, True)]


@newest
def test_a_wrong_setting_is_refused_once(lines, monkeypatch):
    monkeypatch.setenv("SALE_AUDIT_EVERY", "often")
    assert served() and METRICS.steps == 0
    assert len(lines) == 1 and "SALE_AUDIT_EVERY: 'often' is not an integer" in lines[0]


@newest
def test_memory_that_is_not_there(lines, monkeypatch):
    from sale.serving import session

    def memory(size, device):
        raise MemoryError(f"workspace: there are no {size} bytes")

    monkeypatch.setattr(session, "memory", memory)
    assert served() and METRICS.steps == 0
    assert sum("workspace: there are no" in line and "own attention runs" in line for line in lines) == 1


def test_a_calibration_is_made_from_what_is_served(tmp_path, lines, monkeypatch):
    """Three prompts are measured in chunks, one for each pass; the next is sparse, audited, and its answer right."""
    shelf = tmp_path / "shelf"
    for name, value in {"SALE_CALIBRATION": "auto", "SALE_CALIBRATIONS": str(shelf), "SALE_CALIBRATION_TOKENS": "2048",
                        "SALE_CALIBRATION_PROMPTS": "1", "SALE_AUDIT_EVERY": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (tmp_path / "model").mkdir()
    METRICS.reset()
    llm = engine("CUSTOM", SMALL | {"max_num_batched_tokens": 1024}, bare(tmp_path / "model"))
    tokenizer = llm.get_tokenizer()
    prompts = Prompts(tokenizer)
    assert METRICS.last_state == "measuring"
    run(llm, [prompts.short[0], prompts.needles[0].ids[:2200]], [4, 1])
    run(llm, [prompts.needles[0].ids[60:2260]], [1])
    assert METRICS.last_state == "measuring"
    run(llm, [prompts.needles[0].ids[120:2320]], [1])
    assert METRICS.last_state == "sparse" and METRICS.steps == 1  # what was left of the last prompt
    assert len(list(shelf.glob("*.json"))) == len(list(shelf.glob("*.tensors"))) == 1
    before = METRICS.coded_keys
    assert served_by(llm) and METRICS.steps > 2 and METRICS.audits > 0
    # In two chunks, and each of its keys was coded once: codes are in pages beside the cache, which others had before.
    assert METRICS.coded_keys - before == len(question(tokenizer).ids)
    assert set(METRICS.density) == set(range(8)) and 0 < min(METRICS.density.values()) <= 1
    assert 0 < max(METRICS.error.values()) < 0.3
    assert len([line for line in lines if "calibration" in line]) == 2, lines


def test_a_release_that_is_not_known_gets_the_engines_own(lines, monkeypatch):
    from sale.vllm import chosen, why_not

    assert why_not(vllm.__version__) == ""
    for version in ("0.25.1", "0.34.0", "1.0", "dev"):
        assert version in why_not(version)
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    other = importlib.reload(chosen)
    assert other.Custom.get_name() == "FLASH_ATTN" and "vLLM 0.99.0 is not known" in lines[-1]
    monkeypatch.undo()
    assert importlib.reload(chosen).Custom.get_name() == "CUSTOM"
