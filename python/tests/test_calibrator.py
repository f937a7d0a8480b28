"""The calibrator from Python, on numpy arrays: the attention of tests/files/synthetic.hpp, number for number."""

import pathlib

import numpy as np
import pytest
import sale
from sale.calibrator import Calibrator

LAYERS, Q_HEADS, KV_HEADS, DIM, TOKENS = 2, 4, 2, 32, 1536
SHAPE = {"layers": LAYERS, "q_heads": Q_HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}
SYNTHETIC = pathlib.Path(__file__).resolve().parents[2] / "tests/files/synthetic.json"


def mixed(x):
    x = np.asarray(x, np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def tensor(prompt: int, layer: int, which: int) -> np.ndarray:
    heads = Q_HEADS if which == 0 else KV_HEADS
    seed = np.array([(prompt * 64 + layer) * 4 + which], np.uint32)
    i = np.arange(heads * TOKENS * DIM, dtype=np.uint32).reshape(1, heads, TOKENS, DIM)
    noise = ((mixed(mixed(seed) + i) >> np.uint32(16)).astype(np.int32) - 32768).astype(np.float32) / np.float32(32768)
    if which == 2:
        return noise
    head = np.arange(heads, dtype=np.uint32)[:, None, None] // np.uint32(Q_HEADS // KV_HEADS if which == 0 else 1)
    token, coordinate = np.arange(TOKENS, dtype=np.uint32)[:, None], np.arange(DIM, dtype=np.uint32)
    word = mixed(head * np.uint32(77) + token // np.uint32(64) % np.uint32(8) * np.uint32(1009) + coordinate)
    care = (head + np.uint32(layer + 1)).astype(np.float32) * np.float32(0.5)
    return noise + care * np.where(word & np.uint32(1), np.float32(1), np.float32(-1))


def asked(**changes) -> Calibrator:
    settings = {"goals": [("budget", 0.1)], "name": "synthetic", "fingerprint": "0000000000005a1e", "dtype": "float32",
                "rows": 8, "date": "2026-01-01", "command": "test", "prompts": 2}  # fmt: skip
    return Calibrator(**SHAPE, **{**settings, **changes})


def run(made: Calibrator, prompts=1_000_000) -> Calibrator:
    while (state := made.state()).doing != "done" and prompts > 0:
        made.begin(f"prompt {state.prompt}", TOKENS)
        for layer in range(LAYERS):
            made.feed(layer, *(tensor(state.prompt, layer, which) for which in range(3)))
        made.end()
        prompts -= 1
    return made


def test_the_file_is_that_of_the_other_languages(tmp_path):
    made, kept = run(asked()).result(), sale.Calibration.read(SYNTHETIC)
    assert np.array_equal(made.thresholds, kept.thresholds)
    assert made.error == pytest.approx(kept.error, rel=1e-9) and made.provenance == kept.provenance
    made.write(tmp_path / "c.json")
    if (tmp_path / "c.json").read_bytes() != SYNTHETIC.read_bytes():  # another libm may round errors differently
        assert made.error != kept.error


def test_layouts_and_parts_change_nothing():
    whole, parts = run(asked(prompts=1)), asked(prompts=1)
    while parts.state().doing != "done":
        parts.begin("prompt 0", TOKENS)
        for first, last in ((0, 900), (900, TOKENS)):
            for layer in range(LAYERS):
                q, k, v = (np.ascontiguousarray(tensor(0, layer, w).swapaxes(1, 2)).swapaxes(1, 2) for w in range(3))
                parts.feed(layer, q[:, :, first:last], k[:, :, :last], v[:, :, :last])
        parts.end()
    assert np.array_equal(parts.result().thresholds, whole.result().thresholds)
    assert parts.result().error == whole.result().error


def test_rows_of_answers_count_by_themselves():
    def made(asking):
        c = asked(prompts=1, goals=[("error", 0.05)])
        while c.state().doing != "done":
            c.begin("prompt", TOKENS, asking)
            for layer in range(LAYERS):
                c.feed(layer, *(tensor(0, layer, which) for which in range(3)))
            c.end()
        return c.result()

    plain, answers = made([]), made([TOKENS - 400])
    assert (answers.thresholds <= plain.thresholds).all() and answers.error["density"] > plain.error["density"]
    c = asked()
    with pytest.raises(ValueError, match="rows: element 1 is 3; they ascend"):
        c.begin("prompt", TOKENS, [4, 3])
    with pytest.raises(TypeError, match="asking"):
        c.begin("prompt", TOKENS, "4")
    c.begin("prompt", TOKENS)  # what was refused left nothing behind


def test_it_goes_on_where_it_was(tmp_path):
    progress = tmp_path / "c.progress"
    run(asked(rank=16, progress=progress), 3)
    again = asked(rank=16, progress=progress)
    assert again.state().resumed == 3 and again.state().doing == "measure"
    again, whole = run(again), run(asked(rank=16))
    assert np.array_equal(again.result().thresholds, whole.result().thresholds)
    assert np.array_equal(again.result().k_projections, whole.result().k_projections)
    with pytest.raises(ValueError, match="is of other work"):
        asked(rank=16, progress=progress, seed=2)
    again.forget()
    assert not progress.exists()


@pytest.mark.parametrize("change, error, message", [
    ({"dtype": "float64"}, ValueError, "dtype: 'float64'"),
    ({"format": "int5"}, ValueError, "format: 'int5'"),
    ({"goals": [("speed", 1)]}, ValueError, "goals: 'speed'"),
    ({"goals": []}, ValueError, "options.goals: none"),
    ({"rank": 12}, ValueError, "options.rank is 12"),
    ({"fingerprint": "12"}, ValueError, "16 hexadecimal digits"),
    ({"projections": (np.zeros((2, 2, 32, 8)),) * 2, "rank": 16}, ValueError, "projections: of shape"),
    ({"format": "fp8", "backend": "portable"}, NotImplementedError, "portable cannot be used"),
])  # fmt: skip
def test_bad_options(change, error, message):
    with pytest.raises(error, match=message):
        asked(**change)


def test_bad_feeds():
    made = asked()
    q, k, v = (tensor(0, 0, w) for w in range(3))
    with pytest.raises(ValueError, match="no prompt was begun"):
        made.feed(0, q, k, v)
    with pytest.raises(ValueError, match="too few rows"):
        made.begin("short", 100)
    made.begin("prompt 0", TOKENS)
    for bad, error, message in (
        ((q[:, :2], k, v), ValueError, r"q: of shape \[1, 2, 1536, 32\]; \[1, 4, tokens, 32\]"),
        ((q, k[..., :16], v[..., :16]), ValueError, "k: of shape"),
        ((q, k, v[:, :, :9]), ValueError, "v: of shape"),
        ((q[0], k, v), ValueError, "q: of shape"),
        ((q.astype(np.float16), k, v), TypeError, "q: of another type"),
        ((q, np.full_like(k, np.nan), v), ValueError, "not finite"),
        ((q[:, :, :100], k, v), ValueError, "q_len, k_len: 100 and 1536"),
    ):
        with pytest.raises(error, match=message):
            made.feed(0, *bad)
    made.feed(0, q, k, v)
    with pytest.raises(ValueError, match="layer 1 was not fed"):
        made.end()


def test_smoothing_vectors_are_the_layers_own():
    plain, made = run(asked()).result(), run(asked(smoothing=True)).result()
    assert plain.smoothing is None and made.smoothing.shape == (LAYERS, KV_HEADS, DIM) and made.scales is None
    mean = np.mean([tensor(prompt, 1, 1) for prompt in range(2)], axis=(0, 1, 3))
    assert np.allclose(made.smoothing[1], mean, atol=1e-5)
    assert np.array_equal(made.options(1).smoothing, made.smoothing[1]) and plain.options(1).smoothing is None


def test_what_ships_is_named_by_its_fingerprint():
    files = sorted((pathlib.Path(__file__).resolve().parents[2] / "calibrations").glob("*.json"))
    assert files
    for file in files:
        made = sale.Calibration.read(file)
        assert file.stem == made.fingerprint + ("-fp8" if made.format == "fp8" else "")
