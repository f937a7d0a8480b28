"""Many mixed requests through the real vLLM's scheduler, chunked, preempted and behind cached prefixes, and what memory is left
behind: none. Run when asked for, SALE_SOAK=200 scripts/test.sh soak; prints a table for bench/results."""

import ctypes
import gc
import os
import random

import pytest

if os.environ.get("VLLM_ON_CPU") != "1" or not os.environ.get("SALE_SOAK"):
    pytest.skip("a soak of SALE_SOAK requests: run by scripts/test.sh soak", allow_module_level=True)
import vllm
from conftest import TEXT
from sale.serving.metrics import METRICS
from sale.serving.steps import Plan
from test_vllm import CHUNKED, counted, engine, run

REQUESTS, ROUND, BEFORE = int(os.environ["SALE_SOAK"]), 20, 3  # requests of a round; rounds until caches are full
BACKEND = os.environ.get("SALE_SOAK_BACKEND", "CUSTOM")  # FLASH_ATTN: what the engine itself does, to compare with
MOST = 1 << 20  # bytes a round that may come and stay; a step's workspace is 100 times that, the keys of a prompt 10 times


def resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow(monkeypatch):
    monkeypatch.setenv("SALE_AUDIT_EVERY", "4")
    rounds = REQUESTS // ROUND
    assert rounds > 2 * BEFORE, f"SALE_SOAK: at least {ROUND * (2 * BEFORE + 1)}"
    METRICS.reset()
    llm, draw = engine(BACKEND, CHUNKED), random.Random(0)
    words = llm.get_tokenizer()(TEXT.read_text(encoding="utf-8")[:900_000]).input_ids
    # Lengths are the same in every round, since what torch compiles for a shape stays. The last three fill the cache: each
    # needs a page more where there is one for all.
    lengths = [draw.randrange(1100, 2600) if i % 4 == 0 else draw.randrange(8, 700) for i in range(ROUND - 3)] + [1216] * 3
    answers = [draw.randrange(1, 12) for _ in lengths]
    found = []
    for _ in range(rounds):
        # One in five begins with the text that others began with.
        starts = [0 if i % 5 == 0 else draw.randrange(len(words) - n) for i, n in enumerate(lengths)]
        prompts = [words[at : at + n] for at, n in zip(starts, lengths)]
        said = run(llm, prompts[:-3], answers[:-3]) + run(llm, prompts[-3:], answers[-3:])
        assert [len(x) for x in said] == answers
        plans = sum(isinstance(x, Plan) for x in gc.get_objects())
        found.append((resident(), plans, METRICS.steps, counted(llm, "vllm:num_preemptions"), counted(llm, "vllm:prefix_cache_hits")))
    print(f"\nvLLM {vllm.__version__}, {BACKEND}, {REQUESTS} requests\n\n| requests | resident MB | plans alive | our steps | preempted "
          "| cached tokens |\n|---|---|---|---|---|---|")  # fmt: skip
    for i, (size, *rest) in enumerate(found, 1):
        print(f"| {i * ROUND} | {size / 2**20:.1f} | {' | '.join(map(str, rest))} |")
    sizes = [size for size, *_ in found[BEFORE:]]
    half = len(sizes) // 2
    growth = (max(sizes[-half:]) - max(sizes[:half])) / (len(sizes) - half)
    print(f"\nGrowth a round, once {BEFORE} had gone by: {growth / 2**20:.2f} MB")
    assert max(plans for _, plans, *_ in found) <= 2 and found[-1][3] > 0 and found[-1][4] > 0
    assert BACKEND != "CUSTOM" or found[-1][2] > rounds
    assert growth < MOST
