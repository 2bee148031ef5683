"""Distilling Base: distill.py against the usual way, and against a live teacher in place of cached logits.

    python -m bench.distillation                                          # the sample, minutes
    python -m bench.distillation --long --train train.tsv --valid valid.tsv --checkpoint koreview-electra

The usual way: every row padded to the longest of the split (all of --train), a DataLoader that shuffles, one
bidirectional nn.LSTM, a dict of logits by id looked up row by row, float32. Loss, optimiser, clipping and the
mean number of rows in a batch are those of distill.py.
The live teacher: distill.py's own loop and batches, its cached logits replaced by a forward pass of the
teacher in the transformers package, float32, padded per batch. Beside it, the usual way with a live teacher.
Both count the epoch's training alone, without encoding, without validation.

writes  RESULTS/distill-fp32.json, distill-live-fp32.json, and -bf16 where distill.py chooses bf16 here
"""

from bench import parse_args

if __name__ == "__main__":
    ARGS = parse_args(__doc__, rows=3000, long_rows=20_000)

import contextlib
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import distill
import runtime
from bench import common
from data.batching import encode
from data.examples import read_examples
from student import SIZES, Student, StudentConfig

E, H = SIZES["base"]
ALPHA, LR, WEIGHT_DECAY, CLIP = 0.1, 4e-3, 0.01, 1.0  # distill.py's defaults
TARGETS = {"distill": {"fp32": 6, "bf16": 20}, "distill-live": {"fp32": 30, "bf16": 30}}


# ---- ours --------------------------------------------------------------------------------------------------


def ours(made, train: Path, logits: Path, precision: str) -> dict:
    """One epoch of distill.py; the epoch's line of its log, with steps and precision."""
    folder = made.folder / "students"
    with common.count_steps() as steps:
        common.call(distill, "--train", train, "--logits", logits, "--valid", made.valid, "--tokenizer",
                    made.tokenizer, "--output-dir", folder, "--overwrite", "--epochs", 1,
                    "--precision", precision, "--device", "cpu", "--max-length", common.MAX_LENGTH)
    log = common.read_log(folder / "base" / "log.jsonl")
    return {**log[-1], "precision": log[0]["precision"], "steps": len(steps)}


@contextlib.contextmanager
def live_teacher(teacher, rows: list[list[int]]):
    """Within the block distill.py's loop asks the teacher. The logits file must hold row numbers instead."""
    cached_loss = distill.distill_loss

    def loss(student_logits, row_numbers, *rest):
        chosen = [rows[int(i)] for i in row_numbers[:, 0]]
        with torch.no_grad():
            live = teacher(**pad(chosen, max(map(len, chosen)))).logits.float()
        return cached_loss(student_logits, live, *rest)

    distill.distill_loss = loss
    try:
        yield
    finally:
        distill.distill_loss = cached_loss


def pad(rows: list[list[int]], length: int, pad_id: int = 0) -> dict:
    ids = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


# ---- the usual way -----------------------------------------------------------------------------------------


class UsualStudent(nn.Module):
    """Embedding, bidirectional nn.LSTM, the final states of both directions, a linear head."""

    def __init__(self, vocab_size: int, classes: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, E, padding_idx=0)
        self.lstm = nn.LSTM(E, H, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * H, classes)

    def forward(self, input_ids):
        _, (states, _) = self.lstm(self.embedding(input_ids))
        return self.head(torch.cat([states[0], states[1]], 1))


def usual_epoch(student, dataset, batch_size: int, logits_of: dict, teacher=None) -> float:
    """Seconds of an epoch; with a teacher, its logits are computed rather than looked up."""
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.AdamW(student.parameters(), LR, weight_decay=WEIGHT_DECAY, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(loader))
    student.train()

    def epoch():
        for ids, input_ids, labels, *for_teacher in loader:
            logits = student(input_ids)
            if teacher is None:
                soft = torch.stack([logits_of[int(i)] for i in ids])
            else:
                with torch.no_grad():
                    soft = teacher(input_ids=for_teacher[0], attention_mask=for_teacher[1]).logits
            hard = F.cross_entropy(logits, labels)
            (ALPHA * hard + (1 - ALPHA) * (soft - logits).square().sum(1).mean()).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    return common.timed(epoch)


def same_function(made, tokenizer, usual: UsualStudent, rows: list[list[int]]) -> str:
    """The two students with the same weights on rows without padding: those of the most frequent length."""
    config = StudentConfig(tokenizer.get_vocab_size(), len(made.names), E, H)
    student = Student(config, tokenizer, made.names).eval()
    student.embedding.load_state_dict(usual.embedding.state_dict())
    student.head.load_state_dict(usual.head.state_dict())
    for name, tensor in usual.lstm.state_dict().items():
        direction = student.layers[0].behind if name.endswith("_reverse") else student.layers[0].ahead
        getattr(direction, name.removesuffix("_reverse")).data.copy_(tensor)
    by_length = defaultdict(list)
    for row in rows:
        by_length[len(row)].append(row)
    alike = torch.tensor(max(by_length.values(), key=len)[:256])
    with torch.no_grad():
        lengths = torch.full((len(alike),), alike.size(1))
        return common.largest_difference(student(alike, lengths), usual.eval()(alike), 1e-4,
                                         f"logits of {len(alike)} unpadded rows with the same weights")


# ---- both --------------------------------------------------------------------------------------------------


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        compare(args, common.material(args, folder, teacher=True))


def compare(args, made):
    n, classes = len(made.texts), len(made.names)
    teacher, teacher_tokenizer = common.peer_teacher(made)
    tokenizer = Tokenizer.from_file(str(made.tokenizer / "tokenizer.json"))
    tokenizer.enable_truncation(common.MAX_LENGTH)
    rows = [encoding.ids or [1] for encoding in tokenizer.encode_batch(made.texts)]
    for_teacher = teacher_tokenizer(made.texts, truncation=True, max_length=common.MAX_LENGTH)["input_ids"]
    tokens = sum(map(len, rows))
    split = read_examples(args.train).texts  # the whole of it, of which `rows` are the first
    longest = int(encode(tokenizer, split, None, common.MAX_LENGTH, pad_id=0, blank_id=1).lengths.max())

    # both sides' logits, by the peer
    logits = torch.empty(n, classes)
    order = sorted(range(n), key=lambda i: len(for_teacher[i]))
    with torch.no_grad():
        for start in range(0, n, 64):
            batch = [for_teacher[i] for i in order[start : start + 64]]
            logits[order[start : start + 64]] = teacher(**pad(batch, max(map(len, batch)))).logits
    cached = made.logits(logits)
    numbers = made.logits(torch.arange(n).float()[:, None].repeat(1, classes), "numbers")

    # the usual way's data, encoded once and padded to the longest of the split
    labels, padded = torch.tensor(made.labels), pad(rows, longest)["input_ids"]
    dataset = TensorDataset(torch.arange(n), padded, labels)
    few = max(1, n // 8)  # enough for what would take minutes: the figure is per example
    teacher_padded = pad(for_teacher[:few], max(map(len, for_teacher)))
    live_dataset = TensorDataset(torch.arange(few), padded[:few], labels[:few], *teacher_padded.values())

    torch.manual_seed(0)
    usual = UsualStudent(tokenizer.get_vocab_size(), classes)
    same = same_function(made, tokenizer, usual, rows)
    steps = ours(made, made.train, cached, "fp32")["steps"]
    batch_size = round(n / steps)
    print(f"{n:,} rows, {tokens / n:.1f} tokens each, the longest {longest}; {batch_size} rows a batch",
          flush=True)
    parameters = sum(p.numel() for p in usual.parameters())
    work = common.student_work(tokens, n, steps, parameters, E, H, classes, training=True)
    teacher_work = common.teacher_work([len(row) for row in for_teacher], 1, 0, teacher.config.to_dict(),
                                       training=False)
    more = 1 + teacher_work[0] / work[0]

    losses = {}

    def kit(precision):
        line = ours(made, made.train, cached, precision)
        losses[precision] = line["train_loss"]
        return n / line["seconds"]

    def kit_with_live_teacher(precision):
        with live_teacher(teacher, for_teacher):
            line = ours(made, made.train, numbers, precision)
        losses[f"live {precision}"] = line["train_loss"]
        return n / line["seconds"]

    def usual_way():
        return n / usual_epoch(usual, dataset, batch_size, dict(enumerate(logits)))

    def usual_way_with_live_teacher():
        return few / usual_epoch(usual, live_dataset, batch_size, {}, teacher)

    precisions = common.precisions(ours(made, made.train, cached, "auto")["precision"], TARGETS, args)
    sides = {precision: partial(kit, precision) for precision in precisions}
    sides["usual"], sides["usual live"] = usual_way, usual_way_with_live_teacher
    sides |= {f"live {precision}": partial(kit_with_live_teacher, precision) for precision in precisions}
    rates = common.machine_rates()
    short = Subset(dataset, range(few))
    values = common.alternate(sides, args.rounds, warm_up={
        "usual": lambda: usual_epoch(usual, short, batch_size, dict(enumerate(logits))), "usual live": None})
    rates = common.best_rates(rates, common.machine_rates())
    medians = {side: common.summary(found)["median"] for side, found in values.items()}
    for precision in precisions:
        loss = losses[precision]
        agree = common.largest_difference(loss, losses[f"live {precision}"], 0.01 * (1 + loss),
                                          "mean loss of the epoch")
        roof = common.roofline(work, rates, precision, n / medians[precision])
        gap = common.account(partial(kit, precision), roof["least_seconds"], steps)
        common.publish(common.make_result(
            f"distill-{precision}",
            {"ours": values[precision], f"usual way, padded to {longest}, fp32": values["usual"]},
            unit="examples/s", n=n, target=TARGETS["distill"][precision], precision=precision, checked=[same],
            roof=roof, gap=gap, also={"tokens, padded to the longest / real": longest * n / tokens}),
            args.results)
        common.publish(common.make_result(
            f"distill-live-{precision}",
            {"ours": values[precision], "the same with a transformers teacher": values[f"live {precision}"]},
            unit="examples/s", n=n, target=TARGETS["distill-live"][precision], precision=precision,
            checked=[agree], roof=roof,
            gap=f"with the teacher an epoch needs {more:.1f} times the student's operations, and that is the "
                f"ratio where both run at one rate; {gap}",
            also={"usual way with a live teacher, examples/s": medians["usual live"],
                  "ratio to it": medians[precision] / medians["usual live"],
                  "operations, live / cached": more}), args.results)


if __name__ == "__main__":
    runtime.run(main, ARGS)
