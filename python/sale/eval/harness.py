"""lm-evaluation-harness on one loaded model, dense and sparse."""

from __future__ import annotations


def compare(model: tuple, tasks: list[str], *, limit: int | None = None, include: str | None = None, calibration=None,
            lengths=(32768,)) -> list[dict]:  # fmt: skip
    """One row for each metric of each task: task, metric, dense, sale, samples. lengths: of the tasks that make their
    prompts themselves (RULER)."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        raise ImportError("sale.eval: tasks other than needle, multikey and kv need lm-evaluation-harness: "
                          "pip install lm_eval") from e  # fmt: skip
    import sale.transformers

    network, tokenizer = model
    sale.transformers.use(network, calibration)
    manager = TaskManager(include_path=include)
    metadata = {"max_seq_lengths": list(lengths), "tokenizer": network.config._name_or_path}
    results = {}
    for form in ("sdpa", "sale"):
        network.set_attn_implementation(form)
        lm = HFLM(pretrained=network, tokenizer=tokenizer, max_length=network.config.max_position_embeddings, batch_size=1)
        results[form] = simple_evaluate(lm, tasks=tasks, limit=limit, task_manager=manager, metadata=metadata,
                                        bootstrap_iters=0, log_samples=False)  # fmt: skip
    rows = []
    for task, metrics in results["sdpa"]["results"].items():
        for metric, value in metrics.items():
            if isinstance(value, (int, float)) and "stderr" not in metric and metric not in ("alias", "sample_len"):
                samples = results["sdpa"].get("n-samples", {}).get(task, {}).get("effective")
                rows.append({"task": task, "metric": metric, "dense": value,
                             "sale": results["sale"]["results"][task][metric], "samples": samples})  # fmt: skip
    if not rows:
        raise ValueError(f"tasks: {', '.join(tasks)} gave no figure")
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| task | metric | samples | dense | SALE | difference |", "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(f"| {r['task']} | {r['metric']} | {r['samples']} | {r['dense']:.4f} | {r['sale']:.4f} | "
                     f"{r['sale'] - r['dense']:+.4f} |")  # fmt: skip
    return "\n".join(lines)
