"""The real SGLang on its CPU engine: its scheduler, radix cache, page allocator and model runner, ours over torch_native,
SALE's CPU backends below. What it counted is read through Prometheus, as a server would.

An engine that fails kills the processes it belongs to, so each has one of its own here; they are forked, because what
SGLang imports takes longer than what is tested. Its allocator of pages is a kernel of Triton's, whose interpreter runs
it (TRITON_INTERPRET). In an environment of its own: scripts/test.sh serving."""

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import types

import pytest

if os.environ.get("SGLANG_USE_CPU_ENGINE") != "1":
    pytest.skip("SGLang without a GPU: run by scripts/test.sh serving", allow_module_level=True)
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no threads before a fork
# prometheus_client looks whether there is a folder when it is imported, and for the folder when something is counted.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp()
import sale.sglang
import sglang
import sglang.srt.managers.detokenizer_manager
import sglang.srt.managers.scheduler
import sglang.srt.models.registry
from asked import asked, right
from conftest import MODEL, TEXT
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from sglang.srt.entrypoints import engine
from transformers import AutoTokenizer

COUNTED = ("sale_steps_total", "sale_tokens_total", "sale_audits_total")
CHUNK = 1024


def _engine(answers, log, backend, page, scenes, environment):
    """In a process of its own: an engine, and what it answers to each scene's prompts at once."""
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # pytest's would be read by nobody
    os.dup2(sys.stdout.fileno(), 1), os.dup2(sys.stdout.fileno(), 2)
    engine.mp.set_start_method = lambda *_, **__: None  # "spawn" would import everything again, twice
    made = sglang.Engine(
        model_path=str(MODEL), device="cpu", attention_backend=backend, page_size=page, chunked_prefill_size=CHUNK,
        max_total_tokens=12288, context_length=4096, max_running_requests=8, sampling_backend="pytorch", dtype="bfloat16",
        enable_mixed_chunk=True, disable_cuda_graph=True, skip_server_warmup=True, log_level="info", random_seed=0,
    )  # fmt: skip
    for prompts, lengths in scenes:
        how = [{"temperature": 0, "max_new_tokens": n, "ignore_eos": True} for n in lengths]
        answers.send([x["output_ids"] for x in made.generate(input_ids=prompts, sampling_params=how)])
    made.shutdown()


class Ran:
    """Answers of each scene, what was counted, and lines of the log about us."""

    def __init__(self, folder, backend, scenes, page=16, **environment) -> None:
        folder.mkdir()
        log = folder / "log"
        environment = {"PROMETHEUS_MULTIPROC_DIR": str(folder), "SALE_AUDIT_EVERY": "2"} | environment
        assert threading.active_count() == 1
        here, there = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_engine, args=(there, log, backend, page, scenes, environment))
        process.start()
        there.close()
        try:
            self.answers = [here.recv() for _ in scenes]
        except EOFError:
            pytest.fail(f"{backend}: the engine ended\n" + log.read_text()[-3000:])
        finally:
            process.join(60)
            process.kill()
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(folder))
        self.steps, self.tokens, self.audits = (int(registry.get_sample_value(name) or 0) for name in COUNTED)
        self.lines = [line for line in log.read_text().splitlines() if "sale: " in line]


@pytest.fixture(scope="module")
def prompts():
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    text = TEXT.read_text(encoding="utf-8")
    words = tokenizer(text[:10_000]).input_ids
    return types.SimpleNamespace(
        needles=asked(tokenizer, text, "needle", 2400, seed=1), pairs=asked(tokenizer, text, "kv", 1500, seed=2),
        short=[words[200 * i : 200 * i + n] for i, n in enumerate((12, 700))], decode=tokenizer.decode,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scenes(prompts):
    """Everything at once, then a question behind a cached prefix."""
    long, again = [prompts.needles[0], *prompts.pairs], prompts.needles[1]
    return [
        ([*prompts.short, *[p.ids for p in long]], [12, 8, *[p.length for p in long]]), ([again.ids], [again.length]),
    ]  # fmt: skip


def test_answers_are_right_and_the_engines_own(prompts, scenes, tmp_path):
    engines = Ran(tmp_path / "engine", "torch_native", scenes)
    ours = Ran(tmp_path / "sale", "sale", scenes)
    assert engines.steps == 0 and not engines.lines and ours.steps >= 3 and ours.audits >= 8
    assert sum("prompts of 1024 tokens and more are sparse" in line for line in ours.lines) == 1
    long = [prompts.needles[0], *prompts.pairs, prompts.needles[1]]
    both = [[*mixed[2:], *again] for mixed, again in (ours.answers, engines.answers)]
    for said, own, p in zip(*both, long, strict=True):
        assert right(prompts.decode(said), p), (prompts.decode(said), p.answer)
        assert said[: p.length - 2] == own[: p.length - 2]
    assert ours.answers[0][:2] == engines.answers[0][:2]
    # Ours are steps with a chunk in them of 1024 keys and more: of a long prompt all that is behind its first chunk, but
    # for what was cached of each second question.
    assert sum(len(p.ids) - CHUNK for p in long[:2]) <= ours.tokens < sum(len(p.ids) for p in long[:3])


def wrong(folder) -> str:
    """A calibration of another model."""
    folder.mkdir()
    for name in ("calibration.json", "calibration.tensors"):
        shutil.copy(MODEL / name, folder / name)
    said = json.loads((folder / "calibration.json").read_text())
    said["model"]["fingerprint"] = "0123456789abcdef"
    (folder / "calibration.json").write_text(json.dumps(said))
    return str(folder / "calibration.json")


@pytest.mark.parametrize("why, page, environment", [
    ("page size 1: keys are read in pages of a multiple of 16; start with --page-size 16", 1, {}),
    ("SALE_AUDIT_EVERY: 'often' is not an integer", 16, {"SALE_AUDIT_EVERY": "often"}),
    ("fingerprint", 16, {"SALE_CALIBRATION": "other"}),
])  # fmt: skip
def test_without_us_the_engine_goes_on(why, page, environment, prompts, tmp_path):
    if "SALE_CALIBRATION" in environment:
        environment = {"SALE_CALIBRATION": wrong(tmp_path / "other")}
    p = prompts.pairs[0]
    ran = Ran(tmp_path / "sale", "sale", [([p.ids], [p.length])], page, **environment)
    assert right(prompts.decode(ran.answers[0][0]), p) and ran.steps == 0
    assert len(ran.lines) == 1 and why in ran.lines[0] and "runs" in ran.lines[0]


def test_what_cannot_be_stood_on_is_named(monkeypatch):
    monkeypatch.setenv("SALE_SGLANG_BASE", "nothing")
    with pytest.raises(ValueError, match="SALE_SGLANG_BASE: 'nothing' is not one of .*torch_native"):
        sale.sglang.create(types.SimpleNamespace(device="cpu"))


def test_a_release_that_is_not_known_gets_the_base(monkeypatch, caplog):
    from sglang.srt.layers.attention import attention_registry

    assert sale.sglang.why_not(sglang.__version__) == ""
    monkeypatch.setattr(sglang, "__version__", "0.4.0")
    monkeypatch.setitem(attention_registry.ATTENTION_BACKENDS, "torch_native", lambda runner: runner)
    runner = types.SimpleNamespace(device="cpu")
    assert sale.sglang.create(runner) is runner
    assert "SGLang 0.4.0 is not known" in caplog.text and "torch_native runs alone" in caplog.text
