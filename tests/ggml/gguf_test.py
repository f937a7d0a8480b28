"""scripts/gguf.py on the bundled model: what it writes is read back, and the backend takes the calibration.

usage: gguf_test.py SOURCE SCRATCH PROGRAM (which loads the backend when called with --load 2)
"""
import os
import subprocess
import sys
from pathlib import Path

source, scratch, program = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
sys.path.insert(0, str(source / "scripts"))
import gguf  # noqa: E402

model, out = source / "models/tiny-llama-128k", scratch / "tiny.gguf"
gguf.convert(model, out)
made = gguf.Gguf(out)
assert made.meta["general.architecture"] == "llama" and made.meta["llama.block_count"] == 8, made.meta
assert len(made.tensors) == 2 + 8 * 9 and made.tensors["blk.7.attn_k.weight"][:2] == (gguf.F16, [448, 256])
assert gguf.fingerprint(made) == "5e7575d50c78aefa", gguf.fingerprint(made)

# The second row of Q in pairs is the row that stood half a head further.
theirs = gguf.read_safetensors(model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"][2]
expected = gguf.struct.pack("<448e", *gguf.floats_of_bf16(bytes(theirs[64 * 896 : 65 * 896])))
made.file.seek(made.data + made.tensors["blk.0.attn_q.weight"][2] + 896)
assert made.file.read(896) == expected

gguf.calibration(model / "calibration.json", out, scratch / "calibrations")
for path, good in ((scratch / "calibrations/5e7575d50c78aefa.json", True), (scratch / "calibrations", True), (out, False)):
    environment = os.environ | {"SALE_GGML_CALIBRATION": str(path)}
    done = subprocess.run([program, "--load", "2"], env=environment, stderr=subprocess.PIPE, text=True)
    assert (done.returncode == 0) == good, done.stderr

# Files that are no GGUF, cut off, or claim too much end with a sentence.
head = out.read_bytes()[:4096]
for name, data in (("empty", b""), ("cut", head), ("magic", b"GGML" + head[4:]), ("huge", head[:8] + b"\xff" * 16)):
    (scratch / name).write_bytes(data)
    done = subprocess.run([sys.executable, source / "scripts/gguf.py", "fingerprint", scratch / name], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.startswith("gguf.py: "), (name, done.stderr)
out.unlink()
print("gguf: good")
