"""The real SGLang on its CPU engine: its scheduler, radix cache and model runner, ours over torch_native, SALE's CPU backends
below. The engine is another process: what it counted is read through Prometheus, as a server would.

In an environment of its own: scripts/test.sh serving."""

import os

import pytest

if os.environ.get("SGLANG_USE_CPU_ENGINE") != "1":
    pytest.skip("SGLang without a GPU: run by scripts/test.sh serving", allow_module_level=True)
import sglang
from asked import asked, right
from conftest import MODEL, TEXT
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from transformers import AutoTokenizer

COUNTED = ("sale_steps_total", "sale_tokens_total", "sale_audits_total")


def engine(backend: str, page: int = 16):
    return sglang.Engine(
        model_path=str(MODEL), device="cpu", attention_backend=backend, page_size=page, chunked_prefill_size=1024,
        max_total_tokens=12288, context_length=4096, max_running_requests=4, sampling_backend="pytorch", dtype="bfloat16",
        disable_cuda_graph=True, skip_server_warmup=True, log_level="error", random_seed=0,
    )  # fmt: skip


def run(made, prompts, lengths):
    how = [{"temperature": 0, "max_new_tokens": n, "ignore_eos": True} for n in lengths]
    return [x["output_ids"] for x in made.generate(input_ids=prompts, sampling_params=how)]


def counted(folder) -> dict:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))
    return {name: registry.get_sample_value(name) or 0 for name in COUNTED}


@pytest.fixture(scope="module")
def prompts():
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    text = TEXT.read_text(encoding="utf-8")
    words = tokenizer(text[:10_000]).input_ids
    return {
        "needles": asked(tokenizer, text, "needle", 3000, seed=1), "pairs": asked(tokenizer, text, "kv", 2000, seed=2),
        "short": [words[200 * i : 200 * i + n] for i, n in enumerate((12, 700))], "decode": tokenizer.decode,
    }  # fmt: skip


def answered(backend, prompts, folder, monkeypatch, page=16):
    """Answers to prompts at once and then to one behind a cached prefix, and what was counted."""
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    monkeypatch.setenv("SALE_AUDIT_EVERY", "2")
    made = engine(backend, page)
    try:
        long = [prompts["needles"][0], *prompts["pairs"]]
        said = run(made, [*prompts["short"], *[p.ids for p in long]], [12, 8, *[p.length for p in long]])
        again = prompts["needles"][1]
        said += run(made, [again.ids], [again.length])
    finally:
        made.shutdown()
    return said, counted(folder)


def test_answers_are_right_and_the_engines_own(prompts, tmp_path, monkeypatch):
    engines, none = answered("torch_native", prompts, tmp_path / "engine", monkeypatch)
    ours, some = answered("sale", prompts, tmp_path / "sale", monkeypatch)
    assert none["sale_steps_total"] == 0 and some["sale_steps_total"] > 4 and some["sale_audits_total"] >= 8
    long = [prompts["needles"][0], *prompts["pairs"], prompts["needles"][1]]
    # The second question's context was cached; every other token of the long prompts was read by us.
    assert some["sale_tokens_total"] >= sum(len(p.ids) for p in long[:3]) - 2 * 1024
    for said, own, p in zip(ours[2:], engines[2:], long, strict=True):
        assert right(prompts["decode"](said), p)
        assert said[: p.length - 2] == own[: p.length - 2]
    assert ours[0] == engines[0]


def test_pages_of_one_token_are_the_engines_own(prompts, tmp_path, monkeypatch, capfd):
    _, none = answered("sale", {**prompts, "pairs": []}, tmp_path / "sale", monkeypatch, page=1)
    assert none["sale_steps_total"] == 0
    assert capfd.readouterr().err.count("start with --page-size 16") == 1
