#!/usr/bin/env python3
"""Pictures of what sale_selectors measured: accuracy, perplexity and output error against density and against time.

    plot.py rows.json picture.svg
"""
import json
import math
import sys

COLOURS = ["#1b6ca8", "#4aa3df", "#0b3954", "#7a5195", "#bc5090", "#ef5675", "#ff764a", "#c9a227", "#6b8e23", "#555555", "#00a087", "#b07aa1"]
WIDE, HIGH, LEFT, TOP = 360, 250, 56, 40


def scale(low, high, to_low, to_high, logarithmic):
    f = math.log if logarithmic else (lambda x: x)
    return lambda x: to_low + (f(x) - f(low)) / (f(high) - f(low)) * (to_high - to_low)


def panel(x0, y0, title, rows, across, up, ticks_across, label_across, percent_up, reference):
    """One diagram: a line per selector, its settings in order of `across`."""
    points = [(across(r), up(r)) for r in rows]
    low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
    low_y, high_y = min([p[1] for p in points] + reference), max([p[1] for p in points] + reference)
    if high_y == low_y:
        high_y += 1e-9
    x = scale(low_x, high_x, x0 + LEFT, x0 + WIDE - 12, True)
    y = scale(low_y, high_y, y0 + HIGH - 34, y0 + TOP, False)
    out = [f'<text x="{x0 + LEFT}" y="{y0 + 22}" font-weight="bold">{title}</text>',
           f'<rect x="{x0 + LEFT}" y="{y0 + TOP - 4}" width="{WIDE - LEFT - 8}" height="{HIGH - TOP - 26}" fill="none" stroke="#ccc"/>']
    for t in ticks_across:
        if low_x <= t <= high_x:
            out.append(f'<text x="{x(t):.1f}" y="{y0 + HIGH - 14}" text-anchor="middle" fill="#666">{label_across(t)}</text>'
                       f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{y0 + TOP - 4}" y2="{y0 + HIGH - 30}" stroke="#eee"/>')
    for i in range(5):
        value = low_y + i * (high_y - low_y) / 4
        text = f"{100 * value:.0f} %" if percent_up else f"{value:.2f}"
        out.append(f'<text x="{x0 + LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#666">{text}</text>')
    for value in reference:
        out.append(f'<line x1="{x0 + LEFT}" x2="{x0 + WIDE - 8}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#888" stroke-dasharray="4 3"/>')
    for i, name in enumerate(dict.fromkeys(r["selector"] for r in rows)):
        mine = sorted((p for p, r in zip(points, rows) if r["selector"] == name))
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in mine)
        colour = COLOURS[i % len(COLOURS)]
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        out += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"><title>{name}</title></circle>' for a, b in mine]
    return out


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        found = json.load(file)
    dense = next(r for r in found["rows"] if r["selector"] == "dense")
    rows = [r for r in found["rows"] if r["selector"] != "dense"]
    measures = [("answers right", lambda r: r["accuracy"], True, [dense["accuracy"]]),
                ("perplexity", lambda r: r["perplexity"], False, [dense["perplexity"]]),
                ("relative L1 error of attention's output", lambda r: r["relative_l1_error"], True, [0.0])]
    out = []
    for i, (title, up, percent, reference) in enumerate(measures):
        out += panel(i * WIDE, 0, f"{title}, by density", rows, lambda r: r["density"], up,
                     [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], lambda t: f"{100 * t:.0f} %", percent, reference)
        out += panel(i * WIDE, HIGH, f"{title}, by time of the kernel", rows, lambda r: r["attend_s"] / dense["attend_s"], up,
                     [0.02, 0.05, 0.1, 0.2, 0.5, 1], lambda t: f"{100 * t:.0f} %", percent, reference)
    names = list(dict.fromkeys(r["selector"] for r in rows))
    for i, name in enumerate(names):
        at_x, at_y = 20 + i % 4 * 265, 2 * HIGH + 20 + i // 4 * 20
        out.append(f'<circle cx="{at_x}" cy="{at_y - 4}" r="5" fill="{COLOURS[i % len(COLOURS)]}"/><text x="{at_x + 10}" y="{at_y}">{name}</text>')
    high = 2 * HIGH + 30 + (len(names) + 3) // 4 * 20
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * WIDE} {high}" font-family="sans-serif" font-size="11">\n'
                   '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(out) + "\n</svg>\n")


if __name__ == "__main__":
    main()
