"""Fill docs/efficiency.md from the result files; no figure in it is typed.

    python -m bench.table

reads   bench/results/*.json
writes  the lines between <!-- bench --> and <!-- /bench --> in docs/efficiency.md
"""

import argparse
import json
import re
import sys
from pathlib import Path

# name of a result, without its precision: what it compares, in the table's order
ROWS = {
    "distill": "distil Base, one epoch",
    "distill-live": "distil Base, cached logits against a live teacher",
    "dump": "`dump_logits.py`",
    "dump-albert": "`dump_logits.py`, an ALBERT",
    "dump-modernbert": "`dump_logits.py`, a ModernBERT",
    "finetune": "`finetune_teacher.py`",
    "finetune-albert": "`finetune_teacher.py`, an ALBERT",
    "finetune-modernbert": "`finetune_teacher.py`, a ModernBERT",
    "predict-base": "predict in bulk, Base",
    "predict-tiny": "predict in bulk, Tiny",
    "predict-one": "predict one review, Base, one thread",
    "predictor-one": "`Predictor`, one review, Base, one thread",
    "predictor-tail": "`Predictor`, the same, 99th percentile, the other core busy",
    "predictor-bulk": "`Predictor` in bulk, Base",
    "predictor-int8": "`Predictor` in bulk, Base",
    "predictor-tiny": "`Predictor` in bulk, Tiny, one core",
    "predictor-memory": "memory of a process with `Predictor`, Base",
    "serve": "serve Base, a worker per core",
    "serve-memory": "memory of a serving process (PSS)",
    "scaling-time": "training time per example",
    "scaling-memory": "memory of training",
}
HEADER = ["", "precision", "rows", "kit", "against", "", "ratio (rounds)", "of the roof"]


def figure(value: float) -> str:
    """Three significant digits: 0.123, 1.23, 12.3, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def fail(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def table(header: list[str], rows, left=(0,)) -> list[str]:
    """The lines of a Markdown table; columns are aligned right but those in `left`."""
    below = "".join("---|" if i in left else "---:|" for i in range(len(header)))
    first, *rest = ("| " + " | ".join(cells) + " |" for cells in (header, *rows))
    return [first, f"|{below}", *rest]


def kind(result: dict) -> str:
    return re.sub(r"-(fp32|bf16)$", "", result["name"])


def read_results(folder) -> list[dict]:
    """The results in the table's order, one without a row last."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    order = [*ROWS, *(kind(result) for result in results)]
    return sorted(results, key=lambda result: order.index(kind(result)))


def machine(result: dict) -> str:
    """The machine and the versions in a line; results of two machines stand in two tables."""
    hardware, versions = result["hardware"], result["versions"]
    parts = [hardware["hardware"] or hardware["device"], f"{hardware['cores']} cores"]
    parts += [f"{'' if hardware[flag] else 'no '}{name}" for flag, name in (
        ("amx", "AMX"), ("avx512_bf16", "AVX-512 bf16")) if hardware[flag] is not None]
    return ", ".join(parts + [f"{name} {version}" for name, version in versions.items() if name != "kit"])


def row(result: dict) -> list[str]:
    low, high = (figure(value) for value in result["ratio_spread"])
    roof = f"{result['roofline']['fraction']:.1%}" if result["roofline"] else "–"
    return [ROWS.get(kind(result), result["name"]), result["precision"], f"{result['n']:,}",
            f"{figure(result['ours']['median'])} {result['unit']}", result["theirs"]["what"],
            f"{figure(result['theirs']['median'])} {result['unit']}",
            f"**{figure(result['ratio'])}×** ({low}–{high})", roof]


def block(results: list[dict]) -> str:
    """The generated part of the page: a table for each machine, and the commits that were measured."""
    lines = []
    for where in dict.fromkeys(map(machine, results)):
        here = [result for result in results if machine(result) == where]
        kits = sorted({result["versions"].get("kit", "?") for result in here})
        lines += [*table(HEADER, map(row, here), left=(0, 1, 4)), "", f"{where}, kit {', '.join(kits)}", ""]
    return "\n".join(lines[:-1])


def filled(text: str, content: str, path, name: str = "bench") -> str:
    """`text` with `content` between its markers; ends with 2 where it does not have exactly one pair."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        fail(f"{path}: needs one {start} and after it one {end}")
    before, rest = text.split(start)
    return f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--results", default="bench/results", metavar="DIR", help="default: %(default)s")
    arg("--page", default="docs/efficiency.md", type=Path, metavar="FILE", help="default: %(default)s")
    return p.parse_args(argv)


def main(args) -> None:
    results = read_results(args.results)
    if not results:
        fail(f"{args.results}: no results; make bench measures them")
    text = filled(args.page.read_text("utf-8"), block(results), args.page)
    args.page.write_text(text, encoding="utf-8", newline="\n")
    print(f"{args.page}: {len(results)} results")


if __name__ == "__main__":
    main(parse_args())
