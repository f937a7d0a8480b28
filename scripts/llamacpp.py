#!/usr/bin/env python3
"""llama.cpp with and without SALE's backend: the demo, and tests on a running llama-server. Standard library only.

  llamacpp.py demo   the same long prompt with and without; speed, time to first token, answers; exit 1 on a wrong answer
  llamacpp.py serve  slots, prompt caching, context shift, small and large ubatches: answers, and outputs that must not change
  llamacpp.py soak   requests mixed at random, bounded in count; memory must not grow

`make demo-llamacpp` and `make test-llamacpp` build what these need and call them. Traffic stays on 127.0.0.1.
"""
import argparse
import atexit
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CITIES = ["Warsaw", "Oslo", "Madrid", "Lima", "Bangkok", "Berlin", "Rome", "Tokyo", "Cairo", "Dublin"]


class Server:
    """A llama-server of its own, on a free port of this machine."""

    def __init__(self, a, sale, args=(), env=None):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("SALE_GGML_", "GGML_BACKEND_PATH"))}
        self.stats = Path(a.scratch) / f"stats-{self.port}.jsonl"
        if sale:
            variables |= {
                "GGML_BACKEND_PATH": a.plugin,
                "SALE_GGML_CALIBRATION": a.calibrations,
                "SALE_GGML_STATS": str(self.stats),
            } | (env or {})
            if a.preload:
                variables |= {"LD_PRELOAD": a.preload, "ASAN_OPTIONS": f"detect_leaks=0:quarantine_size_mb=8:log_path={a.scratch}/asan"}
        if a.command != "demo":  # threads that spin while they wait are no good on a machine that does something else too
            variables["OMP_WAIT_POLICY"] = "passive"
        command = [f"{a.host}/llama-server", "-m", a.model, "--host", "127.0.0.1", "--port", str(self.port), "-t", str(a.threads)]
        command += ["-fa", "on", "--no-warmup", "--offline", *args, *a.server_args]
        self.log = open(Path(a.scratch) / f"server-{self.port}.log", "w+")
        self.process = subprocess.Popen(command, env=variables, stdout=self.log, stderr=self.log)
        atexit.register(self.process.kill)  # whatever happens here
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit(f"llama-server ended with {self.process.returncode}; see {self.log.name}")
            try:
                self.get("/health")
                return
            except OSError:
                time.sleep(0.2)
        sys.exit("llama-server did not answer")

    def get(self, path, body=None, timeout=3600):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def tokens(self, text):
        return self.get("/tokenize", {"content": text, "add_special": True})["tokens"]

    def complete(self, prompt, n=9, slot=-1, cache=True):
        body = {"prompt": prompt, "n_predict": n, "temperature": 0, "cache_prompt": cache, "id_slot": slot, "ignore_eos": n > 64}
        return self.get("/completion", body)

    def resident(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def processor_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        """Ends the server; the backend's statistics, one record for each context."""
        self.process.terminate()
        code = self.process.wait(60)
        if code not in (0, -15):
            sys.exit(f"llama-server ended with {code}; see {self.log.name}")
        return [json.loads(line) for line in self.stats.read_text().splitlines()] if self.stats.exists() else []


def haystack(a, count, seed=1, cities=5):
    """About `count` tokens of a book with numbers hidden in it, and the questions: (text, [(question, answer)])."""
    draw = random.Random(seed)
    book = (ROOT / "models/text" / a.text).read_text()
    start = draw.randrange(0, max(1, len(book) - 4 * count)) if seed > 1 else 0
    # 3.4 characters a token on prose, less room for the facts and a question.
    book = book[start : start + int(3.4 * (count - 40 * cities - 100))]
    ends = [m.end() for m in re.finditer(r"\.(?= )", book)]
    facts = [(c, str(draw.randrange(10**6, 10**7))) for c in draw.sample(CITIES, cities)]
    for i, (city, number) in reversed(list(enumerate(facts))):
        at = ends[int((i + 0.5) / cities * (len(ends) - 1))]
        book = book[:at] + f" The special magic number for {city} is {number}." + book[at:]
    ask = " What is the special magic number for {0}? The special magic number for {0} is"
    return book, [(ask.format(c), n) for c, n in facts]


def right(answer, number):
    return answer["content"].strip().startswith(number)


# ---- demo -----------------------------------------------------------------------------------------------------


def read_and_ask(a, sale, context, questions):
    server = Server(a, sale, ["-c", str(a.tokens + 1024), "-b", str(a.ubatch), "-ub", str(a.ubatch), "-np", "1"])
    prompt = server.tokens(context)
    asked = [server.tokens(q)[1:] for q, _ in questions]  # without the first token
    answers, first, busy = [], None, server.processor_seconds()
    for question in asked:
        answer = server.complete(prompt + question)
        if not answers:
            first, busy = answer["timings"], server.processor_seconds() - busy
        answers.append(answer)
    decode = sum(x["timings"]["predicted_ms"] for x in answers) / sum(x["timings"]["predicted_n"] for x in answers)
    return {"tokens": first["prompt_n"], "speed": first["prompt_per_second"], "first": first["prompt_ms"] / 1000,
            "busy": busy, "decode": decode, "answers": answers, "stats": server.stop()}


def demo(a):
    context, questions = haystack(a, a.tokens, cities=a.questions)
    runs = {name: read_and_ask(a, sale, context, questions) for name, sale in (("llama.cpp", False), ("with SALE", True))}
    plain, ours = runs.values()
    if not ours["stats"]:
        sys.exit("llama-server did not load the backend: is it built with GGML_BACKEND_DL=ON?")
    print(f"\n{Path(a.model).stem}, {plain['tokens']:,} tokens of {a.text} with {len(questions)} numbers hidden, -ub {a.ubatch}, {a.threads} threads\n")
    print(f"{'':26}{'llama.cpp':>12}{'with SALE':>12}")
    for label, key, form, ratio in (("prompt, tokens/s", "speed", "{:.0f}", lambda x, y: y / x), ("time to first token, s", "first", "{:.1f}", lambda x, y: x / y),
                                    ("processor time for it, s", "busy", "{:.1f}", lambda x, y: x / y), ("decoding, ms a token", "decode", "{:.1f}", None)):
        factor = f"  {ratio(plain[key], ours[key]):.2f}x" if ratio else ""
        print(f"{label:26}{form.format(plain[key]):>12}{form.format(ours[key]):>12}{factor}")
    s = ours["stats"][-1]
    print(f"{'density':26}{'':>12}{100 * s['density']:>10.1f} %")
    print(f"\n{'asked for':58}{'expected':>10}{'llama.cpp':>12}{'with SALE':>12}")
    good = True
    for (question, number), x, y in zip(questions, plain["answers"], ours["answers"]):
        good &= right(x, number) and right(y, number)
        print(f"{question.strip()[:56]:58}{number:>10}{x['content'].strip()[:8]:>12}{y['content'].strip()[:8]:>12}")
    if a.json:
        for run in runs.values():
            run["answers"] = [x["content"] for x in run["answers"]]
        Path(a.json).write_text(json.dumps(runs, indent=1) + "\n")
    sys.exit(0 if good else 1)


# ---- tests ----------------------------------------------------------------------------------------------------


class Checks:
    def __init__(self):
        self.passed = self.failed = 0

    def that(self, good, what):
        self.passed, self.failed = self.passed + bool(good), self.failed + (not good)
        print(("ok      " if good else "FAILED  ") + what, flush=True)


def together(calls):
    """Runs the calls at once; their results in order."""
    results = [None] * len(calls)

    def run(i):
        results[i] = calls[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return results


def serve(a):
    check = Checks()
    for ubatch in (512, 4096):
        for unified in (False, True):
            name = f"-ub {ubatch}, two slots, {'one cache' if unified else 'a stream each'}"
            args = ["-c", str(2 * a.tokens + 4096), "-np", "2", "-b", "4096", "-ub", str(ubatch)]
            server = Server(a, True, args + (["-kvu"] if unified else ["-no-kvu"]))
            prompts = [haystack(a, a.tokens, seed) for seed in (2, 3)]
            # Both slots at once, then each goes on with its own prompt, out of the cache.
            answers = together([lambda p=p, i=i: server.complete(p[0] + p[1][0][0], slot=i) for i, p in enumerate(prompts)])
            for (_, questions), answer in zip(prompts, answers):
                check.that(right(answer, questions[0][1]), f"{name}: prompts read at once")
            for i, (context, questions) in enumerate(prompts):
                answer = server.complete(context + questions[1][0], slot=i)
                check.that(right(answer, questions[1][1]), f"{name}: another question")
                if not unified:  # there the server itself may put idle slots aside
                    check.that(answer["timings"]["prompt_n"] < 200, f"{name}: its context came from the cache")
            # A prompt that shares half: the cells behind it are written anew.
            context, questions = prompts[0]
            changed = context[: len(context) // 2] + haystack(a, a.tokens // 2, 5)[0]
            changed_questions = [q for q in questions[:1]]
            answer = server.complete(changed + changed_questions[0][0], slot=0)
            check.that(right(answer, changed_questions[0][1]), f"{name}: half of the prompt replaced")
            # Slots change places.
            answer = server.complete(prompts[1][0] + prompts[1][1][2][0], slot=0)
            check.that(right(answer, prompts[1][1][2][1]), f"{name}: the other slot's prompt")
            stats = server.stop()
            check.that(sum(s["rows"]["sparse"] for s in stats) > 0, f"{name}: the library was used")
            check.that(sum(s["keys"]["reused"] for s in stats) > 0, f"{name}: key codes were kept")
    shift(a, check)
    same_output(a, check)
    print(f"{check.passed} passed, {check.failed} failed")
    sys.exit(check.failed > 0)


def shift(a, check):
    """More is generated than the context holds: the host drops and rotates keys, then a prompt follows."""
    size = a.tokens
    server = Server(a, True, ["-c", str(size), "-np", "1", "-b", "512", "-ub", "512", "--context-shift"])
    context, questions = haystack(a, int(size * 0.8), 7)
    answer = server.complete(context + questions[0][0], n=int(size * 0.6))
    check.that(right(answer, questions[0][1]), "context shift: answered before it")
    check.that(answer["tokens_evaluated"] + answer["tokens_predicted"] > size, "context shift: it happened")
    context, questions = haystack(a, int(size * 0.7), 8)
    check.that(right(server.complete(context + questions[3][0]), questions[3][1]), "context shift: a prompt after it")
    server.stop()


def same_output(a, check):
    """What is not served leaves the output as it is; and so does a configuration that is refused."""
    context, questions = haystack(a, 3000, 9)
    args = ["-c", "8192", "-np", "1"]
    for what, extra, env in (("quantized cache q4_0, not served", ["-ctk", "q4_0", "-ctv", "q4_0"], {}), ("refused configuration", [], {"SALE_GGML_TAU": "high"}),
                             ("unreadable calibration", [], {"SALE_GGML_CALIBRATION": "/nowhere.json"})):
        outputs, logs = [], ""
        for sale in (False, True):
            server = Server(a, sale, args + extra, env)
            outputs.append(server.complete(context + questions[0][0], n=48)["content"])
            server.stop()
            logs = Path(server.log.name).read_text()
        said = re.findall(r"^sale: .*$", logs, re.M)
        check.that(outputs[0] == outputs[1], f"{what}: the same 48 tokens")
        check.that(len(said) == 1, f"{what}: said in one line: {said}")


def soak(a):
    draw, check = random.Random(a.seed), Checks()
    # Without the server's own store of old prompts in memory, which grows to gigabytes.
    args = ["-c", str(3 * a.tokens), "-cram", "0", "-np", "2", "-b", "2048", "-ub", "512" if a.seed % 2 else "2048", "-kvu" if a.seed % 3 else "-no-kvu"]
    server = Server(a, True, args)
    histories, wrong, asked, memory = {}, 0, 0, []

    def request(slot):
        if slot in histories and draw.random() < 0.5:  # the conversation goes on
            context, questions = histories[slot]
        else:
            context, questions = haystack(a, draw.randrange(600, a.tokens), draw.randrange(2, 1 << 30), 3)
        question, number = draw.choice(questions)
        long = draw.random() < 0.1
        histories[slot] = (context, questions)
        return lambda: (right(server.complete(context + question, n=64 if long else 9, slot=slot, cache=draw.random() < 0.8), number))

    begin, pairs = time.time(), max(1, a.requests // 2)
    for i in range(pairs):
        for good in together([request(0), request(1)]):
            asked, wrong = asked + 1, wrong + (not good)
        memory.append(server.resident())
        if (i + 1) * 10 // pairs > i * 10 // pairs:  # at each tenth
            print(f"{asked} requests, {wrong} wrong, {memory[-1]:.0f} MiB, {time.time() - begin:.0f} s", flush=True)
    stats = server.stop()
    reports = [p for p in Path(a.scratch).glob("asan*")]
    check.that(not reports, f"no memory error reported {reports or ''}")
    check.that(wrong <= asked // 50, f"{asked - wrong} of {asked} answers right")
    # Caches, indexes and workspaces are full long before half of it.
    half = len(memory) // 2
    check.that(max(memory[half:]) < 1.05 * max(memory[:half]) + 16, f"memory: {max(memory[:half]):.0f} MiB, then {max(memory[half:]):.0f} MiB")
    print(json.dumps(stats[-1] if stats else {}))
    print(f"{check.passed} passed, {check.failed} failed")
    sys.exit(check.failed > 0)


def count(text):
    return int(text[:-1]) * 1024 if text.endswith("k") else int(text)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=["demo", "serve", "soak"])
    p.add_argument("--host", default=ROOT / "build/llamacpp/host/bin", help="folder of llama-server")
    p.add_argument("--model", default=str(ROOT / "build/llamacpp/tiny-llama-128k.gguf"))
    p.add_argument("--calibrations", default=ROOT / "build/llamacpp/calibrations")
    p.add_argument("--plugin", default=ROOT / "build/release/integrations/ggml/libggml-sale.so")
    p.add_argument("--scratch", default=ROOT / "build/llamacpp/scratch")
    p.add_argument("--text", default="middlemarch.txt", help="of models/text")
    p.add_argument("--tokens", type=count, help="of a prompt (demo 32k, serve and soak 2k)")
    p.add_argument("--ubatch", type=int, default=4096)
    p.add_argument("--questions", type=int, default=5)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--requests", type=int, default=300, help="of soak: two hours of one every 24 s")
    p.add_argument("--seed", type=int, default=1, help="of soak")
    p.add_argument("--json", help="file for the demo's figures")
    p.add_argument("--preload", default="", help="library for LD_PRELOAD: the sanitizer's, with an instrumented plugin")
    p.add_argument("--server-args", nargs=argparse.REMAINDER, default=[], help="handed to llama-server; last")
    a = p.parse_args()
    a.tokens = a.tokens or (32768 if a.command == "demo" else 2048)
    # The servers run in folders of their own.
    for name in ("host", "model", "calibrations", "plugin", "scratch"):
        setattr(a, name, str(Path(getattr(a, name)).resolve()))
    Path(a.scratch).mkdir(parents=True, exist_ok=True)
    {"demo": demo, "serve": serve, "soak": soak}[a.command](a)


if __name__ == "__main__":
    main()
