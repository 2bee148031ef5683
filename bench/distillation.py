"""Distilling Base: distill.py against the usual way, and against a live teacher in place of cached logits.

    python -m bench.distillation                                          # the sample, minutes
    python -m bench.distillation --long --train train.tsv --valid valid.tsv --checkpoint koreview-electra

The usual way: every row padded to the longest of the split (all of --train), a DataLoader that shuffles, one
bidirectional nn.LSTM, a dict of logits by id looked up row by row, float32. Loss, optimizer, clipping and the
mean number of rows in a batch are those of distill.py.
The live teacher: distill.py's own loop and batches, its cached logits replaced by a forward pass of the
teacher in the transformers package, float32, padded per batch.
All count the epoch's training alone, without encoding and validation.

writes  RESULTS/distill-fp32.json, distill-live-fp32.json, and -bf16 where distill.py chooses bf16 here
"""

import bench


def parse_args(argv=None):
    return bench.parse_args(__doc__, argv, rows=(200, 3000, 20_000))


if __name__ == "__main__":
    ARGS = bench.settle(parse_args())

import contextlib
import statistics
from collections import defaultdict

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distill
import tasks
from bench import common
from data.batches import encode
from data.examples import read_examples
from student import SIZES, Student, StudentConfig
from teacher import Teacher

E, H = SIZES["base"]
ALPHA, LR, WEIGHT_DECAY, CLIP = 0.1, 4e-3, 0.01, 1.0  # distill.py's defaults


@contextlib.contextmanager
def live_teacher(teacher, rows: list[list[int]]):
    """Within the block distill.py's loss asks the teacher. The logits file must hold row numbers instead."""
    cached_loss = tasks.distill_loss

    def loss(task, logits, batch, *rest):
        chosen = [rows[int(i)] for i in batch["teacher_logits"][:, 0]]
        with torch.no_grad():
            live = teacher(**pad(chosen)).logits.float()
        return cached_loss(task, logits, {**batch, "teacher_logits": live}, *rest)

    tasks.distill_loss = loss
    try:
        yield
    finally:
        tasks.distill_loss = cached_loss


def pad(rows: list[list[int]], length: int = 0) -> dict:
    """To the longest of the rows, or to `length`; the padding token is 0 on both sides."""
    length = length or max(map(len, rows))
    return {"input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])}


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


def usual_epoch(student, dataset, batch_size: int, logits_of: dict) -> float:
    """Seconds of an epoch."""
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.AdamW(student.parameters(), LR, weight_decay=WEIGHT_DECAY, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(loader))
    student.train()

    def epoch():
        for ids, input_ids, labels in loader:
            logits = student(input_ids)
            soft = torch.stack([logits_of[int(i)] for i in ids])
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
        return common.largest_difference(student(alike, torch.full((len(alike),), alike.size(1))),
                                         usual.eval()(alike), 1e-4,
                                         f"logits of {len(alike)} unpadded rows with the same weights")


# ---- both --------------------------------------------------------------------------------------------------


def compare(args, made):
    n, classes = len(made.texts), len(made.names)
    teacher, teacher_tokenizer = common.peer_teacher(made)
    tokenizer = Tokenizer.from_file(str(made.tokenizer / "tokenizer.json"))
    longest = int(encode(tokenizer, read_examples(args.train).texts, None, common.MAX_LENGTH, pad_id=0,
                         blank_id=1).lengths.max())  # of the whole split
    rows = [encoding.ids or [1] for encoding in tokenizer.encode_batch(made.texts)]
    for_teacher = teacher_tokenizer(made.texts, truncation=True, max_length=common.MAX_LENGTH)["input_ids"]
    tokens = sum(map(len, rows))

    logits, files = Teacher.load(made.teacher).logits(made.texts), {}
    numbers = torch.arange(n).float()[:, None].repeat(1, classes)
    for kind, tensor in (("cached", logits), ("live", numbers)):
        files[kind] = made.folder / f"{kind}.pt"
        torch.save(tensor, files[kind])
    looked_up = dict(enumerate(logits))
    dataset = TensorDataset(torch.arange(n), pad(rows, longest)["input_ids"], torch.tensor(made.target))

    torch.manual_seed(0)
    usual = UsualStudent(tokenizer.get_vocab_size(), classes)
    same = same_function(made, tokenizer, usual, rows)
    losses = {}

    def kit(kind: str, precision: str) -> dict:
        line = common.train(distill, made, made.train, "--logits", files[kind], "--tokenizer", made.tokenizer,
                            "--epochs", 1, "--precision", precision)
        losses[kind, precision] = line["train_loss"]
        return line

    def kit_live(precision: str) -> dict:
        with live_teacher(teacher, for_teacher):
            return kit("live", precision)

    steps = kit("cached", "fp32")["steps"]
    batch_size = round(n / steps)
    print(f"{n:,} rows, {tokens / n:.1f} tokens each, the longest {longest}; {batch_size} rows per batch")
    precisions = common.precisions(lstm=True)
    sides = {"usual": lambda: n / usual_epoch(usual, dataset, batch_size, looked_up)}
    for precision in precisions:
        sides[precision] = lambda precision=precision: n / kit("cached", precision)["seconds"]
        sides[f"live {precision}"] = lambda precision=precision: n / kit_live(precision)["seconds"]
    values, rates = common.alternate(args, sides)

    work = common.student_work(tokens, n, steps, sum(p.numel() for p in usual.parameters()), E, H, classes,
                               training=True)
    live_work, _ = common.teacher_work([len(row) for row in for_teacher], 1, 0, teacher.config.to_dict(),
                                       training=False)
    for precision in precisions:
        loss = losses["cached", precision]
        agree = common.largest_difference(loss, losses["live", precision], 0.01 * (1 + loss),
                                          "mean loss of the epoch")
        fields = {"unit": "examples/s", "n": n, "precision": precision,
                  "roof": common.roofline(work, rates, precision, n / statistics.median(values[precision]))}
        common.publish(
            args, f"distill-{precision}",
            {"ours": values[precision], f"usual way, padded to {longest}, fp32": values["usual"]},
            checked=same, also={"tokens, padded to the longest / real": longest * n / tokens}, **fields)
        common.publish(
            args, f"distill-live-{precision}",
            {"ours": values[precision], "the same with a transformers teacher": values[f"live {precision}"]},
            checked=agree, also={"operations, live / cached": 1 + live_work / work[0]}, **fields)


if __name__ == "__main__":
    common.main(compare, ARGS)
