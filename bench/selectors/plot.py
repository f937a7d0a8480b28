#!/usr/bin/env python3
"""Pictures of what sale_selectors measured: accuracy, perplexity and output error against density and against time.

    plot.py rows.json [more.json ...] picture.svg

Of several runs over the same prompt a later one adds the settings that those before it lack, without times: those are shares of
the dense kernel's in the same run, and only the first run's are shown.
"""
import json
import math
import sys

COLOURS = ["#1b6ca8", "#4aa3df", "#0b3954", "#7a5195", "#bc5090", "#ef5675", "#ff764a", "#c9a227", "#6b8e23", "#555555", "#00a087", "#b07aa1", "#8c564b"]
WIDE, HIGH, LEFT, TOP = 360, 250, 56, 40


def scale(low, high, to_low, to_high, logarithmic):
    f = math.log if logarithmic else (lambda x: x)
    return lambda x: to_low + (f(x) - f(low)) / (f(high) - f(low)) * (to_high - to_low)


def panel(x0, y0, title, rows, names, across, up, ticks_across, ticks_up):
    """One diagram: a line per selector, its settings in order of `across`. ticks_up: of a logarithmic axis, or None."""
    rows = [r for r in rows if across(r) is not None]
    points = [(across(r), max(up(r), ticks_up[0]) if ticks_up else up(r)) for r in rows]
    low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
    low_y, high_y = (min(p[1] for p in points), max(p[1] for p in points)) if ticks_up else (0, 1)
    x = scale(low_x, high_x, x0 + LEFT, x0 + WIDE - 12, True)
    y = scale(low_y, high_y, y0 + HIGH - 34, y0 + TOP, ticks_up is not None)
    out = [f'<text x="{x0 + LEFT}" y="{y0 + 22}" font-weight="bold">{title}</text>',
           f'<rect x="{x0 + LEFT}" y="{y0 + TOP - 4}" width="{WIDE - LEFT - 8}" height="{HIGH - TOP - 26}" fill="none" stroke="#ccc"/>']
    for t in ticks_across:
        if low_x <= t <= high_x:
            out.append(f'<text x="{x(t):.1f}" y="{y0 + HIGH - 14}" text-anchor="middle" fill="#666">{100 * t:.0f} %</text>'
                       f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{y0 + TOP - 4}" y2="{y0 + HIGH - 30}" stroke="#eee"/>')
    for value in ticks_up or [0, 0.25, 0.5, 0.75, 1]:
        if low_y <= value <= high_y:
            out.append(f'<text x="{x0 + LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#666">{100 * value:g} %</text>'
                       f'<line x1="{x0 + LEFT}" x2="{x0 + WIDE - 8}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#eee"/>')
    for i, name in enumerate(names):
        mine = sorted((p for p, r in zip(points, rows) if r["selector"] == name))
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in mine)
        colour = COLOURS[i % len(COLOURS)]
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        out += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"><title>{name}</title></circle>' for a, b in mine]
    return out


def read(files):
    """The dense row and all others; `time` is that of the kernel, or None."""
    seen, prompt = {}, None
    for path in files:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        of = [found[key] for key in ("model", "text", "tokens", "contexts", "seed")]
        if prompt not in (None, of):
            sys.exit(f"{path}: of another prompt, {of} instead of {prompt}")
        prompt = of
        dense = next(r for r in found["rows"] if r["selector"] == "dense")
        for r in found["rows"]:
            time = r["attend_s"] / dense["attend_s"] if path == files[0] else None
            more = r["perplexity"] / dense["perplexity"] - 1
            seen.setdefault((r["selector"], r["setting"]), r | {"time": time, "more_perplexity": more})
    rows = list(seen.values())
    return rows[0], rows[1:]


def main():
    rows = read(sys.argv[1:-1])[1]
    names = list(dict.fromkeys(r["selector"] for r in rows))
    measures = [("answers right", lambda r: r["accuracy"], None),
                ("perplexity over dense", lambda r: r["more_perplexity"], [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]),
                ("L1 error of the output", lambda r: r["relative_l1_error"], [0.003, 0.01, 0.03, 0.1, 0.3])]
    out = []
    for i, (title, up, ticks) in enumerate(measures):
        out += panel(i * WIDE, 0, f"{title}, by density", rows, names, lambda r: r["density"], up,
                     [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], ticks)
        out += panel(i * WIDE, HIGH, f"{title}, by time of the kernel", rows, names, lambda r: r["time"], up,
                     [0.02, 0.05, 0.1, 0.2, 0.5, 1], ticks)
    for i, name in enumerate(names):
        at_x, at_y = 20 + i % 4 * 265, 2 * HIGH + 20 + i // 4 * 20
        out.append(f'<circle cx="{at_x}" cy="{at_y - 4}" r="5" fill="{COLOURS[i % len(COLOURS)]}"/><text x="{at_x + 10}" y="{at_y}">{name}</text>')
    high = 2 * HIGH + 30 + (len(names) + 3) // 4 * 20
    with open(sys.argv[-1], "w", encoding="utf-8") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * WIDE} {high}" font-family="sans-serif" font-size="11">\n'
                   '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(out) + "\n</svg>\n")


if __name__ == "__main__":
    main()
