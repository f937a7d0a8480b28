"""Tables of the pages that benchmarks save."""


def table(title, lengths, rows):
    """rows: (label, function of a length)."""
    print(f"\n## {title}\n")
    print("| | " + " | ".join(n.upper() for n in lengths) + " |")
    print("|---" * (len(lengths) + 1) + "|")
    for label, cell in rows:
        print(f"| {label} | " + " | ".join(cell(n) for n in lengths) + " |")
