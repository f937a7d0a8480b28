"""The evaluation's commands on the bundled model and a local task file, and the notebook."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import sale  # noqa: E402
from sale.eval import __main__ as program  # noqa: E402
from sale.eval import needle  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "models/tiny-llama-128k")
BOOK = str(ROOT / "models/text/middlemarch.txt")


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.mark.parametrize("kind", needle.KINDS)
@pytest.mark.parametrize("tokens", [600, 4096])
def test_prompts_fit_and_hold_their_facts(tokenizer, kind, tokens):
    text = pathlib.Path(BOOK).read_text()
    prompt = needle.make_prompt(tokenizer, text, kind, tokens, facts=2, seed=3)
    assert prompt == needle.make_prompt(tokenizer, text, kind, tokens, facts=2, seed=3)
    assert prompt != needle.make_prompt(tokenizer, text, kind, tokens, facts=2, seed=4)
    longest = max(len(tokenizer(prompt.context + f.question + f.answer).input_ids) for f in prompt.facts)
    assert 0.7 * tokens < longest <= tokens
    for fact in prompt.facts:
        assert prompt.context.count(fact.key) >= 1 and fact.answer.strip(" .\"") in prompt.context


def test_prompts_that_cannot_be_made(tokenizer):
    with pytest.raises(ValueError, match="kind: 'other'"):
        needle.make_prompt(tokenizer, "", "other", 600)
    with pytest.raises(ValueError, match="text: of 5 characters is too short"):
        needle.make_prompt(tokenizer, "Short", "needle", 600)
    with pytest.raises(ValueError, match="facts: 60 with 0 distractors"):
        needle.make_prompt(tokenizer, "x" * 9999, "needle", 600, facts=60)


def test_needles_and_a_task_file_of_ones_own(tmp_path, capsys, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(ROOT)  # the task file names its data from there
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    out = tmp_path / "result.json"
    code = program.main(["--model", MODEL, "--tasks", "needle,capitals", "--include", "python/tests/tasks", "--text", BOOK,
                         "--tokens", "1500", "--facts", "2", "--limit", "1", "--json", str(out)])  # fmt: skip
    result = json.loads(out.read_text())
    assert code == 0 and len(result["needle"]) == 2
    assert all(r["dense"] == r["sale"] == r["asked"] for r in result["needle"])
    scores = {r["metric"].split(",")[0]: (r["dense"], r["sale"]) for r in result["harness"]}
    assert scores["acc"] == (1.0, 1.0)
    assert "| needle | 1500 | 2 of 2 | 2 of 2 |" in capsys.readouterr().out


def test_text_is_asked_for():
    assert program.main(["--model", MODEL]) == 2


def test_sides_beside_each_other(tokenizer, tmp_path):
    import transformers

    from sale.eval import sides

    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, num_hidden_layers=2).float().eval()
    text = pathlib.Path(BOOK).read_text()[:60000]
    rows = sides.compare((model, tokenizer), ["dense", "tau=0", "tau=1e9", "tau=1e9+compensate"], tokens=1280, text=text,
                         texts={"book": text}, tasks=("single", "perplexity", "time"), singles=1, windows=1, after=(0, 64),
                         repeats=1)  # fmt: skip
    assert [r["side"] for r in rows] == ["dense", "tau=0", "tau=1e9", "tau=1e9+compensate"]
    dense, all_kept, least, helped = (r["statistics"]["book"] for r in rows)
    assert dense["density"] == all_kept["density"] == 1 and all_kept["error"] < 1e-3
    assert least["density"] < 0.5 and least["error"] > 0.05 and least["worst"] >= least["error"]
    assert helped["density"] == least["density"] and helped["error"] < least["error"]
    assert len(least["densities"]) == 2 and len(least["densities"][0]) == len(least["errors"][1]) == 4
    perplexity = [r["perplexity"]["book"] for r in rows]
    assert perplexity[1] == pytest.approx(perplexity[0], rel=1e-3) and perplexity[2] > perplexity[0]
    assert all(a["of"] == 1 and a["right"] in (0, 1) for r in rows for a in r["answers"]) and len(rows[0]["answers"]) == 2
    assert all(0 < r["attention_s"] < r["first_token_s"] for r in rows)
    lines = sides.table(rows).splitlines()
    assert len(lines) == 6 and lines[0].startswith("| 1280 tokens | book:") and "single; 64 tokens after" in lines[0]
    assert model.config._attn_implementation == "sdpa"


def test_an_answer_is_right_token_by_token(tokenizer):
    from sale.eval import sides

    made = sides.exam(tokenizer, pathlib.Path(BOOK).read_text()[:40000], "pairs", 2048, after=100)
    assert made.ids.shape[1] <= 2048 and len(made.answers) == 7
    judged = sides.Sides.__new__(sides.Sides)
    judged.tokenizer = tokenizer
    for at, answer in made.answers:
        assert made.ids[0, at : at + len(answer)].tolist() == answer
        assert tokenizer.decode(answer).endswith('"') and made.ids.shape[1] - at > 100
        assert judged._equal(answer, answer) and not judged._equal([answer[0] + 1, *answer[1:]], answer)
    for word, message in (("tau=1+faster", "neither compensate nor a backend"), ("none+sm1", "neither compensate")):
        with pytest.raises(ValueError, match=message):
            sides.side_of(word, {"layers": 1, "q_heads": 1, "kv_heads": 1, "head_dim": 16})


def test_the_notebook(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(sale.__file__).parents[1])}
    run = subprocess.run([sys.executable, str(ROOT / "examples/notebook.py"), "2048"], cwd=tmp_path, env=env,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "of the blocks" in run.stdout and "4518530" in run.stdout and (tmp_path / "blocks.png").stat().st_size > 100
