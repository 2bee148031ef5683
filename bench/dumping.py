"""dump_logits.py against a transformers loop: batches of 32 in file order, padded per batch, float32.

    python -m bench.dumping                                               # the sample, minutes
    python -m bench.dumping --long --train train.tsv --checkpoint koreview-electra

Both sides read the file, load the teacher, encode, run and save a tensor; all of that is timed.

writes  RESULTS/dump-fp32.json, and dump-bf16.json where dump_logits.py chooses bf16 here
"""

from bench import parse_args

if __name__ == "__main__":
    ARGS = parse_args(__doc__, rows=3000, long_rows=20_000)

import re
import tempfile
from functools import partial
from pathlib import Path

import torch

import dump_logits
import runtime
from bench import common

TARGETS = {"fp32": 2.5, "bf16": 6}
BATCH = 32
USUAL = f"transformers, batches of {BATCH} in file order, fp32"
MAX_TOKENS = 8192  # of dump_logits.py's batches


def ours(made, precision: str) -> str:
    """dump_logits.py as typed; what it printed."""
    return common.call(dump_logits, "--teacher", made.teacher, "--data", made.train, "--output-dir",
                       made.folder / "logits", "--overwrite", "--precision", precision, "--device", "cpu")


def usual_loop(made, path: Path) -> None:
    """The loop of a tutorial."""
    model, tokenizer = common.peer_teacher(made)
    texts = [text for text, _ in common.read_rows(made.train)]
    logits = []
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], padding=True, truncation=True,
                              max_length=common.MAX_LENGTH, return_tensors="pt")
            logits.append(model(**batch).logits)
    torch.save(torch.cat(logits), path)


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        made = common.material(args, folder, teacher=True)
        compare(args, made, Path(folder, "usual.pt"))


def compare(args, made, usual_path: Path):
    n = len(made.texts)
    model, tokenizer = common.peer_teacher(made)
    lengths = [len(row) for row in tokenizer(made.texts, truncation=True,
                                             max_length=common.MAX_LENGTH)["input_ids"]]
    parameters = sum(p.numel() for p in model.parameters())
    work = common.teacher_work(lengths, -(-sum(lengths) // MAX_TOKENS), parameters, model.config.to_dict(),
                               training=False)
    chosen = re.search(r"texts/s (\w+)", ours(made, "auto"))
    precisions = common.precisions(chosen[1] if chosen else "fp32", ["dump"], args)
    found = {}

    def kit(precision):
        rate = n / common.timed(lambda: ours(made, precision))
        found[precision] = torch.load(made.folder / "logits" / "train.pt", weights_only=True)["logits"]
        return rate

    sides = {precision: partial(kit, precision) for precision in precisions}
    sides["usual"] = lambda: n / common.timed(lambda: usual_loop(made, usual_path))
    rates = common.machine_rates()
    values = common.alternate(sides, args.rounds)
    rates = common.best_rates(rates, common.machine_rates())
    theirs = torch.load(usual_path, weights_only=True)
    for precision in precisions:
        logits = found[precision]
        if precision == "fp32":
            checked = [common.largest_difference(logits, theirs, 1e-4, f"logits of {n:,} rows")]
        else:
            agree = (logits.argmax(1) == theirs.argmax(1)).double().mean().item()
            error = ((logits - theirs).square().mean().sqrt() / theirs.std()).item()
            if agree < 0.98:
                raise runtime.UserError(f"the sides differ: {agree:.2%} of the rows have the same class")
            checked = [f"same class for {agree:.2%} of {n:,} rows, "
                       f"logits differ by {error:.1%} of their spread"]
        roof = common.roofline(work, rates, precision, n / common.summary(values[precision])["median"])
        common.publish(common.make_result(
            f"dump-{precision}", {"ours": values[precision], USUAL: values["usual"]}, unit="examples/s", n=n,
            target=TARGETS[precision], checked=checked, precision=precision, roof=roof,
            gap=common.account(partial(ours, made, precision), roof["least_seconds"]),
        ), args.results)


if __name__ == "__main__":
    runtime.run(main, ARGS)
