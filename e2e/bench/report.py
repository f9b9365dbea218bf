"""The report: one array of records, and a table of it with ratios."""
import json, statistics

METRICS = ["wall", "cpu", "disk", "rss", "wire", "requests"]


def records(section, measured, units):
    """`measured`: (workload, subject) → list of figures, one per run."""
    for (workload, subject), runs in measured.items():
        for metric in METRICS:
            values = [figures[metric] for figures in runs]
            # plain tools have no builder whose memory could be told
            if metric == "rss" and not any(values):
                continue
            yield {
                "section": section, "workload": workload, "subject": subject, "metric": metric, "unit": units[metric],
                "median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3), "runs": len(values),
            }  # fmt: skip


def write(path, fresh):
    """Replaces what was measured anew; the rest stays."""
    job = lambda record: (record["section"], record["workload"], record["subject"])
    anew = {job(record) for record in fresh}
    old = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([record for record in old if job(record) not in anew] + fresh, indent=1) + "\n")


def table(fresh):
    """Markdown: a row for each job, the figure and in brackets how many times ours it is."""
    found = {(r["workload"], r["subject"], r["metric"]): r for r in fresh}
    units = {r["metric"]: r["unit"] for r in fresh}
    yield "| workload | subject | " + " | ".join(f"{metric} {units[metric]}".removesuffix(" 1") for metric in METRICS) + " | runs |"
    yield "|---|---|" + "---:|" * (len(METRICS) + 1)
    for workload, subject in dict.fromkeys((r["workload"], r["subject"]) for r in fresh):
        cells = []
        for metric in METRICS:
            if (workload, subject, metric) not in found:
                cells.append("–")
                continue
            figure, ours = found[workload, subject, metric]["median"], found.get((workload, "strata", metric))
            ratio = f" ({figure / ours['median']:.1f}×)" if subject != "strata" and ours and ours["median"] > 0 and metric in ("wall", "cpu", "disk") else ""
            cells.append(f"{figure:.2f}{ratio}" if metric in ("wall", "cpu") else f"{figure:.0f}{ratio}")
        yield f"| {workload} | {subject} | " + " | ".join(cells) + f" | {found[workload, subject, 'cpu']['runs']} |"
