"""dump_logits.py against a transformers loop: batches of 32 in file order, padded per batch, float32.

    python -m bench.dumping                                               # the sample, minutes
    python -m bench.dumping --family albert                               # a teacher by transformers
    python -m bench.dumping --long --train train.tsv --checkpoint koreview-electra

Both sides read the file, load the teacher, encode, run and save a tensor; all of that is timed.

writes  RESULTS/dump-fp32.json, and dump-bf16.json where dump_logits.py chooses bf16 here; with
        --family albert dump-albert-…
"""

import bench


def parse_args(argv=None):
    return bench.parse_args(__doc__, argv, rows=(100, 3000, 20_000), add=bench.add_family)


if __name__ == "__main__":
    ARGS = bench.settle(parse_args())

import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch

import dump_logits
import runtime
from bench import common
from data.examples import read_examples

BATCH = 32
USUAL = f"transformers, batches of {BATCH} in file order, fp32"
MAX_TOKENS = 1024  # of dump_logits.py's batches


def ours(made, precision: str):
    """dump_logits.py as typed, in a fresh folder; its logits (N, C)."""
    folder = tempfile.mkdtemp(dir=made.folder)
    common.call(dump_logits, "--teacher", made.teacher, "--data", made.train, "--output-dir", folder,
                "--precision", precision, "--device", "cpu")
    return torch.load(Path(folder, "train.pt"), weights_only=True)["logits"]


def usual_loop(made):
    """The loop of a tutorial; its logits (N, C)."""
    model, tokenizer = common.peer_teacher(made)
    texts, logits = read_examples(made.train).texts, []
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], padding=True, truncation=True,
                              max_length=common.MAX_LENGTH, return_tensors="pt")
            logits.append(model(**batch).logits)
    torch.save(torch.cat(logits), made.folder / "usual.pt")
    return torch.cat(logits)


def agreement(logits, theirs, precision: str) -> str:
    """A line for `checked`. Raises UserError where the logits (N, C) of the two sides differ."""
    if precision == "fp32":
        limit = 1e-4 * max(1.0, theirs.abs().max().item())
        return common.largest_difference(logits, theirs, limit, f"logits of {len(logits):,} rows")
    agree = (logits.argmax(1) == theirs.argmax(1)).double().mean().item()
    if agree < 0.98:
        raise runtime.UserError(f"the sides differ: {agree:.2%} of the rows have the same class")
    error = ((logits - theirs).square().mean().sqrt() / theirs.std()).item()
    return f"same class for {agree:.2%} of {len(logits):,} rows, logits differ by {error:.1%} of their spread"


def compare(args, made):
    n, found = len(made.texts), {}
    model, tokenizer = common.peer_teacher(made)
    lengths = [len(row) for row in tokenizer(made.texts, truncation=True,
                                             max_length=common.MAX_LENGTH)["input_ids"]]
    work = common.teacher_work(lengths, -(-sum(lengths) // MAX_TOKENS),
                               sum(p.numel() for p in model.parameters()), model.config.to_dict(),
                               training=False)

    def rate(side: str, run) -> float:
        return n / common.timed(lambda: found.update({side: run()}))

    precisions = common.precisions(lstm=False)
    sides = {precision: partial(rate, precision, partial(ours, made, precision)) for precision in precisions}
    sides["usual"] = partial(rate, "usual", partial(usual_loop, made))
    values, rates = common.alternate(args, sides)
    for precision in precisions:
        common.publish(
            args, common.name_of("dump", args, precision),
            {"ours": values[precision], USUAL: values["usual"]},
            unit="examples/s", n=n, precision=precision,
            checked=agreement(found[precision], found["usual"], precision),
            roof=common.roofline(work, rates, precision, n / statistics.median(values[precision])))


if __name__ == "__main__":
    common.main(compare, ARGS)
