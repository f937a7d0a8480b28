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


def test_the_notebook(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(sale.__file__).parents[1])}
    run = subprocess.run([sys.executable, str(ROOT / "examples/notebook.py"), "2048"], cwd=tmp_path, env=env,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "of the blocks" in run.stdout and "4518530" in run.stdout and (tmp_path / "blocks.png").stat().st_size > 100
