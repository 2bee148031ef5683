"""finetune_teacher.py against transformers.Trainer: the same model, epochs, rates and rows per step.

    python -m bench.finetuning                                            # the sample, minutes
    python -m bench.finetuning --family albert                            # a teacher by transformers
    python -m bench.finetuning --long --train train.tsv --valid valid.tsv --checkpoint koreview-electra

The Trainer has DataCollatorWithPadding and its defaults otherwise, float32. finetune_teacher.py fills batches
by tokens; the Trainer's batch size is the mean number of rows that gives. Only training is timed, without
encoding and validation. Speed counts at equal accuracy: the comparison fails if the 95 % interval of the
paired difference on --valid lies below zero. --family modernbert has random weights and learns nothing from
the sample in one epoch: there the result says so.

writes  RESULTS/finetune-fp32.json, and finetune-bf16.json where finetune_teacher.py chooses bf16 here; with
        --family albert finetune-albert-…
"""

import bench


def parse_args(argv=None):
    return bench.parse_args(__doc__, argv, rows=(100, 900, 20_000), add=lambda arg: (
        bench.add_family(arg),
        arg("--epochs", type=int, default=1, help="default: %(default)s"),
        arg("--lr", type=float, default=3e-4, help="default: %(default)s")))


if __name__ == "__main__":
    ARGS = bench.settle(parse_args())

import statistics

import torch

import finetune_teacher
import runtime
import tasks
from bench import common
from data.examples import read_examples
from teacher import Teacher

WEIGHT_DECAY, WARMUP = 0.01, 0.1  # finetune_teacher.py's defaults


def dataset(tokenizer, texts: list[str], labels: list[int]) -> list[dict]:
    """Encoded texts with labels, as the Trainer wants them."""
    encoded = tokenizer(texts, truncation=True, max_length=common.MAX_LENGTH)
    return [{**{key: values[i] for key, values in encoded.items()}, "labels": label}
            for i, label in enumerate(labels)]


def usual(args, made, batch_size: int, train: list, valid: list, tokenizer) -> tuple:
    """Seconds of trainer.train(), and the logits (N, C) of the validation rows after it."""
    common.peer("accelerate")  # the Trainer wants it
    transformers, (model, _) = common.peer("transformers"), common.peer_teacher(made)
    steps = args.epochs * -(-len(train) // batch_size)
    settings = transformers.TrainingArguments(
        output_dir=str(made.folder / "trainer"), num_train_epochs=args.epochs, learning_rate=args.lr,
        per_device_train_batch_size=batch_size, per_device_eval_batch_size=32, weight_decay=WEIGHT_DECAY,
        warmup_steps=round(WARMUP * steps), use_cpu=True, save_strategy="no", report_to="none",
        disable_tqdm=True, logging_strategy="no")
    with common.silence():
        trainer = transformers.Trainer(
            model=model, args=settings, train_dataset=train, eval_dataset=valid,
            data_collator=transformers.DataCollatorWithPadding(tokenizer))
        seconds = common.timed(trainer.train)
        return seconds, torch.tensor(trainer.predict(valid).predictions)


def equal_quality(ours, theirs, target, names: list[str]) -> str:
    """A line for `checked`. Raises UserError where ours, logits (N, C), is less accurate than theirs."""
    task = tasks.Classification(names)
    both = [task.statistics(logits, target) for logits in (theirs, ours)]
    low, high = tasks.bootstrap(task, both)[1]["difference"]
    p, q = (statistic[:, 0].mean().item() for statistic in both)
    line = (f"accuracy on {len(target):,} validation rows {q:.2%} and {p:.2%}, difference "
            f"{100 * (q - p):+.2f} ({100 * low:+.2f} … {100 * high:+.2f})")
    if p <= target.bincount().max().item() / len(target):
        return f"{line}, no better than the commonest label: nothing learnt"
    if high < 0:
        raise runtime.UserError(f"the sides differ: {line}")
    return line


def compare(args, made):
    n, logits = len(made.texts), {}
    model, tokenizer = common.peer_teacher(made)
    examples = read_examples(made.valid)
    target, _ = examples.targets(tasks.Classification(made.names))
    train = dataset(tokenizer, made.texts, made.target)
    valid = dataset(tokenizer, examples.texts, target.tolist())
    same = common.same_teacher(made, model, tokenizer)

    def kit(precision: str):
        line = common.train(finetune_teacher, made, made.train, "--checkpoint", made.checkpoint,
                            "--epochs", args.epochs, "--lr", args.lr, "--precision", precision)
        logits[precision] = Teacher.load(line["folder"] / "teacher.pt").logits(examples.texts)
        return line

    def trainer():
        seconds, logits["usual"] = usual(args, made, batch_size, train, valid, tokenizer)
        return args.epochs * n / seconds

    steps = kit("fp32")["steps"] // args.epochs
    batch_size = round(n / steps)
    lengths = [len(row["input_ids"]) for row in train]
    print(f"{n:,} rows, {sum(lengths) / n:.1f} tokens each; {batch_size} rows per batch")
    work = common.teacher_work(lengths, steps, sum(p.numel() for p in model.parameters()),
                               model.config.to_dict(), training=True)
    precisions = common.precisions(lstm=False)
    sides = {precision: lambda precision=precision: args.epochs * n / kit(precision)["seconds"]
             for precision in precisions}
    values, rates = common.alternate(args, sides | {"usual": trainer}, cold=("usual",))
    for precision in precisions:
        common.publish(
            args, common.name_of("finetune", args, precision),
            {"ours": values[precision], "transformers.Trainer, fp32": values["usual"]},
            unit="examples/s", n=n, precision=precision,
            roof=common.roofline(work, rates, precision, n / statistics.median(values[precision])),
            checked=f"{same}; {equal_quality(logits[precision], logits['usual'], target, made.names)}")


if __name__ == "__main__":
    common.main(compare, ARGS, small_head=True)
