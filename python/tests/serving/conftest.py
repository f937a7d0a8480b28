"""Contract tests of engines run where scripts/test.sh serving has laid an engine out; elsewhere they are skipped."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODEL = ROOT / "models/tiny-llama-128k"
TEXT = ROOT / "models/text/middlemarch.txt"
