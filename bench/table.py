"""Fill the README's efficiency table from the result files; no figure in it is typed.

    python -m bench.table                # both README files
    python -m bench.table --check        # exit code 1 when they do not say what the result files say

reads   bench/results/*.json
writes  the lines between <!-- bench --> and <!-- /bench --> in README.md and README.ko.md
"""

import argparse
import json
import re
import sys
from pathlib import Path

# name of a result, without its precision: what it compares, in English and Korean, in the table's order
ROWS = {
    "distill": ("distil Base, an epoch", "Base 증류, 1 epoch"),
    "distill-live": ("distil Base, logits cached or a live teacher", "Base 증류, logits 대 실시간 teacher"),
    "dump": ("`dump_logits.py`", "`dump_logits.py`"),
    "finetune": ("`finetune_teacher.py`", "`finetune_teacher.py`"),
    "predict-base": ("predict in bulk, Base", "대량 예측, Base"),
    "predict-tiny": ("predict in bulk, Tiny", "대량 예측, Tiny"),
    "predict-one": ("predict one review, Base, one thread", "리뷰 한 건 예측, Base, 스레드 1개"),
    "scaling-time": ("training time of an example (1: linear)", "한 건당 학습 시간 (1이면 선형)"),
    "scaling-memory": ("memory of training (1: flat)", "학습 메모리 (1이면 일정)"),
}
WORDS = {
    "en": {
        "title": "Efficiency",
        "intro": "`make bench` runs the kit beside its peers: in one process tree, on the same inputs, "
                 "in turn, after a warm-up,\n"
                 "and checks that both computed the same. Medians; in brackets the least and the greatest "
                 "ratio of the rounds.\nThis section is generated from `bench/results/`, whose files also "
                 "have the commands, what was checked, and where the time goes.",
        "header": ["", "precision", "rows", "kit", "against", "", "ratio", "of the roof"],
        "cores": "cores",
        "amx": {True: "AMX", False: "no AMX", None: "AMX unknown"},
        "bf16": {True: "AVX-512 bf16", False: "no AVX-512 bf16", None: ""},
        "roof": "The roof is the least time the needed operations and bytes take at the machine's own rates "
                "of matrix products and copying,\nmeasured beside.",
    },
    "ko": {
        "title": "효율",
        "intro": "`make bench`는 이 도구와 다른 구현을 한 프로세스 트리에서 같은 입력으로 예열한 뒤 번갈아 "
                 "실행하고,\n양쪽이 같은 것을 계산했는지 확인합니다. 값은 중앙값이고 괄호 안은 "
                 "라운드별 비율의 최솟값과 최댓값입니다.\n이 절은 `bench/results/`에서 생성됩니다. 명령, "
                 "확인한 내용, 시간이 쓰인 곳도 그 파일들에 있습니다.",
        "header": ["", "정밀도", "행", "이 도구", "상대", "", "비율", "한계 대비"],
        "cores": "코어",
        "amx": {True: "AMX", False: "AMX 없음", None: "AMX 알 수 없음"},
        "bf16": {True: "AVX-512 bf16", False: "AVX-512 bf16 없음", None: ""},
        "roof": "한계는 필요한 연산과 바이트를 이 기계에서 함께 잰 행렬곱 속도와 복사 속도로 나눈 "
                "최소 시간입니다.",
    },
}


def figure(value: float) -> str:
    """Three digits that matter: 0.123, 1.23, 12.3, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def read_results(folder: str) -> list[dict]:
    """The results in the table's order; one that no row is for comes last."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    order = list(ROWS)

    def place(result):
        return order.index(kind(result)) if kind(result) in ROWS else len(order)

    return sorted(results, key=place)


def kind(result: dict) -> str:
    return re.sub(r"-(fp32|bf16)$", "", result["name"])


def machine(result: dict, words: dict) -> str:
    """The machine and versions in a line; results of two machines stand in two tables."""
    hardware, versions = result["hardware"], result["versions"]
    parts = [hardware["hardware"] or hardware["device"], f"{hardware['cores']} {words['cores']}",
             words["amx"][hardware["amx"]], words["bf16"][hardware["avx512_bf16"]]]
    parts += [f"{name} {version}" for name, version in versions.items() if name != "kit"]
    return ", ".join(part for part in parts if part)


def block(results: list[dict], language: str) -> str:
    """The generated section of one README."""
    words = WORDS[language]
    lines = [f"## {words['title']}", "", words["intro"], ""]
    machines = dict.fromkeys(machine(result, words) for result in results)
    for where in machines:
        lines += ["| " + " | ".join(words["header"]) + " |", "|---|---|" + "---:|" * 2 + "---|" + "---:|" * 3]
        lines += [row(result, language) for result in results if machine(result, words) == where]
        lines += ["", f"{where}.", ""]
    return "\n".join([*lines, words["roof"]])


def row(result: dict, language: str) -> str:
    unit = result["unit"]
    what = ROWS.get(kind(result), (result["name"],) * 2)[list(WORDS).index(language)]
    low, high = (figure(value) for value in result["ratio_spread"])
    ratio = f"**{figure(result['ratio'])}×** ({low}–{high})"
    roof = f"{result['roofline']['fraction']:.1%}" if result["roofline"] else "–"
    cells = [what, result["precision"], f"{result['n']:,}", f"{figure(result['ours']['median'])} {unit}",
             result["theirs"]["what"], f"{figure(result['theirs']['median'])} {unit}", ratio, roof]
    return "| " + " | ".join(cells) + " |"


def filled(text: str, content: str, path, name: str = "bench") -> str:
    """`text` with `content` between its markers; SystemExit when it has not just one pair of them."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        sys.exit(f"error: {path}: one {start} and after it one {end} are needed")
    before, rest = text.split(start)
    return f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--results", default="bench/results", metavar="DIR", help="default: %(default)s")
    arg("--readme", default="README.md", metavar="FILE", help="default: %(default)s")
    arg("--readme-ko", default="README.ko.md", metavar="FILE", help="default: %(default)s")
    arg("--check", action="store_true", help="change nothing, only say whether they are up to date")
    return p.parse_args(argv)


def main(args) -> int:
    results = read_results(args.results)
    if not results:
        sys.exit(f"error: {args.results}: no results; make bench measures them")
    stale = []
    for path, language in ((args.readme, "en"), (args.readme_ko, "ko")):
        text = Path(path).read_text("utf-8")
        new = filled(text, block(results, language), path)
        if new != text:
            stale.append(path)
            if not args.check:
                Path(path).write_text(new, encoding="utf-8", newline="\n")
    done = "not up to date, run python -m bench.table" if args.check else "filled"
    print(f"{', '.join(stale)}: {done}" if stale else "up to date")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(parse_args()))
