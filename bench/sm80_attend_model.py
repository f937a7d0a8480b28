#!/usr/bin/env python3
"""A cycle model of sm80's exact attention (d 128, bf16), from its machine code, beside measured times where there are any.

The main loop is the innermost one around all matrix products. Of the ways through it (branches go forward; loops inside count
once) the model takes the one that does most work (products, operand loads, copies, exponentials) in the fewest instructions:
no masks, pages or means. Each pipe's cycles for a step of 64 rows x 64 keys on one multiprocessor follow from the counts and
the rates below; the busiest pipe bounds the step.

usage: sm80_attend_model.py CUOBJDUMP OBJECT [MEASURED]
  OBJECT    compiled with machine code for sm_80, sm_86 and sm_89
  MEASURED  JSON of an H100: {"device": name, "ghz": clock under load, "rows": [{"tokens", "density", "ms"}]}, 32 query heads
"""
import json
import re
import subprocess
import sys

ROWS = KEYS = 64
HEADS = 32
# multiprocessors, GHz, cycles of one m16n8k16 with f32 sums on a quarter of a multiprocessor, cycles of an f32 instruction
# there. Data sheets and the programming guide's table of throughputs. An H100's mma.sync reaches 62 % of the data sheet's rate
# (published microbenchmarks), which takes 4 cycles. Newer GPUs run the PTX that sm_89 was made from.
CARDS = {
    "A100": ("sm_80", 108, 1.41, 8, 2),
    "RTX 3090": ("sm_86", 82, 1.70, 32, 1),
    "RTX 4090": ("sm_89", 128, 2.52, 32, 1),
    "H100": ("sm_89", 132, 1.755, 4 / 0.62, 1),
}
F32 = {"FFMA", "FADD", "FMUL"}
ALU = {"FMNMX", "IADD3", "LOP3", "ISETP", "SEL", "FSEL", "FSETP", "LEA", "SHF", "PLOP3", "MOV", "F2FP", "PRMT", "IMNMX"}


def functions(cuobjdump, path, arch):
    text = subprocess.run([cuobjdump, "-sass", "-arch", arch, path], check=True, capture_output=True, text=True).stdout
    for part in text.split("Function : ")[1:]:
        code = [(int(a, 16), i.strip()) for a, i in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", part, re.M)]
        yield part.split()[0], code


def op(instruction):
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def target(instruction):
    found = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", instruction)
    return int(found.group(1), 16) if found else None


def loop_of(code):
    """Instructions of the smallest loop that has every HMMA."""
    products = [a for a, i in code if op(i) == "HMMA"]
    loops = [(a, target(i)) for a, i in code if target(i) is not None and target(i) < a]
    end, begin = min(((a, t) for a, t in loops if t < products[0] and a > products[-1]), key=lambda x: x[0] - x[1])
    return [(a, i) for a, i in code if begin <= a <= end]


def step(code):
    """Counts by operation along the way that works most in the fewest instructions."""
    loop = loop_of(code)
    last = loop[-1][0]
    best = {last: ((0, 0), {op(loop[-1][1]): 1})}  # from an address to the end
    for n in range(len(loop) - 2, -1, -1):
        address, instruction = loop[n]
        to = target(instruction)
        ways = [to] if to is not None and address < to <= last else []
        conditional = instruction.startswith("@") or re.search(r"BRA\s+!?P", instruction)
        if to is None or conditional or to <= address:
            ways.append(loop[n + 1][0])
        ways = [best[w] for w in ways if w in best]
        if not ways or op(instruction) == "EXIT":
            continue
        (work, cost), counts = max(ways, key=lambda w: w[0])
        name = op(instruction)
        counts = {**counts, name: counts.get(name, 0) + 1}
        best[address] = ((work + (name in ("HMMA", "LDSM", "LDGSTS", "MUFU")), cost - 1), counts)
    return best[loop[0][0]][1]


def pipes(counts, hmma, f32):
    """Cycles of a multiprocessor for one step: 4 warps, a quarter of it each; shared memory serves all, 128 bytes a cycle."""
    count = lambda names: sum(counts.get(n, 0) for n in names)
    return {
        "tensor": counts["HMMA"] * hmma,
        "shared memory": 4 * 512 * (counts["LDSM"] + counts["LDGSTS"]) / 128,
        "exponentials": 8 * counts["MUFU"],
        "f32": f32 * count(F32),
        "integer, compare, convert": 2 * count(ALU),
        "issue": sum(counts.values()),
    }


def steps(tokens, density):
    tiles = tokens // ROWS
    return HEADS * sum((density * 2 * (t + 1) + (0.5 if density < 1 else 0)) / 2 for t in range(tiles))


cuobjdump, path = sys.argv[1:3]
measured = json.load(open(sys.argv[3])) if len(sys.argv) > 3 else None
found = {}
for arch in sorted({c[0] for c in CARDS.values()}):
    (code,) = [c for name, c in functions(cuobjdump, path, arch) if "attend_kernel" in name and "Li128" in name and "Bf16" in name]
    found[arch] = step(code)
    spills = sum(op(i) in ("LDL", "STL") for _, i in code)
    if spills:
        sys.exit(f"{arch}: {spills} accesses to local memory")

print("# Cycle model of sm80's exact attention\n")
print("Printed by `bench/sm80_attend_model.py` from the machine code; d 128, bf16. A step is 64 rows x 64 keys.\n")
print("| machine code | HMMA | LDSM | LDGSTS | MUFU | f32 | integer … | all, a warp and step |\n|---|---|---|---|---|---|---|---|")
for arch, c in found.items():
    print(f"| {arch} | {c['HMMA']} | {c['LDSM']} | {c['LDGSTS']} | {c['MUFU']} | {sum(c.get(n, 0) for n in F32)} | "
          f"{sum(c.get(n, 0) for n in ALU)} | {sum(c.values())} |")
print("\nCycles of a multiprocessor a step, by pipe; the largest bounds it. Share: of the tensor cores' rate at that bound.\n")
names = list(pipes(found["sm_80"], 8, 2))
print("| | " + " | ".join(names) + " | bound | share |\n|---" + "|---" * (len(names) + 2) + "|")
bound = {}
for card, (arch, _, _, hmma, f32) in CARDS.items():
    p = pipes(found[arch], hmma, f32)
    bound[card] = max(p.values())
    print(f"| {card} | " + " | ".join(f"{p[n]:.0f}" for n in names) +
          f" | {max(p, key=p.get)}, {bound[card]:.0f} | {100 * p['tensor'] / bound[card]:.0f} % |")


def predicted(card, tokens, density, ghz=None):
    _, processors, clock, _, _ = CARDS[card]
    return steps(tokens, density) * bound[card] / processors / ((ghz or clock) * 1e6)


ratio = None
if measured:
    print(f"\nMeasured on {measured['device']}, {measured['ghz']:.2f} GHz under load, {HEADS} query heads, beside the bound at that clock.\n")
    print("| tokens | density | bound | measured | measured / bound |\n|---|---|---|---|---|")
    ratios = []
    for r in measured["rows"]:
        ms = predicted("H100", r["tokens"], r["density"], measured["ghz"])
        ratios.append(r["ms"] / ms)
        print(f"| {r['tokens']} | {100 * r['density']:.1f} % | {ms:.2f} ms | {r['ms']:.2f} ms | {ratios[-1]:.2f} |")
    ratio = sorted(ratios)[len(ratios) // 2]
    print("\nThe bound lets all pipes work at once. Eight warps a multiprocessor, each waiting for its own products before its softmax, do that")
    print("in part; short lists add what an item costs before its first step. Where one pipe is far slower than the others (products on")
    print("GeForce cards), less is lost than here, where shared memory, products and issue are near each other.")
print(f"\nPredicted for {HEADS} query heads, causal, in ms at the data sheet's clock: the bound" +
      (f", and times {ratio:.2f}, the H100's median ratio.\n" if ratio else ".\n"))
print("| | density | 16K | 32K | 64K |\n|---|---|---|---|---|")
for card in CARDS:
    for density in (1.0, 0.1):
        cells = [predicted(card, n, density) for n in (16384, 32768, 65536)]
        print(f"| {card} | {100 * density:.0f} % | " +
              " | ".join(f"{ms:.2f}" + (f" … {ms * ratio:.2f}" if ratio else "") for ms in cells) + " |")
