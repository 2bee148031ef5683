"""finetune_teacher.py against transformers.Trainer: the same model, epochs, rates and rows a step.

    python -m bench.finetuning                                            # the sample, minutes
    python -m bench.finetuning --long --train train.tsv --valid valid.tsv --checkpoint koreview-electra

The Trainer has DataCollatorWithPadding and its defaults else, float32. finetune_teacher.py fills batches by
tokens; the Trainer's batch size is the mean number of rows that gives. Only training is timed, without
encoding and validation. Speed counts at equal accuracy: the target is missed when ours is lower by
more than two standard errors. A teacher of random weights learns nothing from the sample in an epoch: there
neither beats the largest class, and the result says so. Give a checkpoint and data to compare them.

writes  RESULTS/finetune-fp32.json, and finetune-bf16.json where finetune_teacher.py chooses bf16 here
"""

from bench import parse_args

if __name__ == "__main__":
    ARGS = parse_args(
        __doc__, rows=900, long_rows=20_000,
        add=lambda arg: (arg("--epochs", type=int, default=1, help="default: %(default)s"),
                         arg("--lr", type=float, default=3e-4, help="default: %(default)s")))

import tempfile
from functools import partial

import torch

import finetune_teacher
import runtime
from bench import common
from teacher import Teacher

TARGETS = {"fp32": 2.5, "bf16": 2.5}
WEIGHT_DECAY, WARMUP = 0.01, 0.1  # finetune_teacher.py's defaults


def ours(args, made, precision: str) -> dict:
    """finetune_teacher.py as typed: its last epoch's line, the seconds of all, steps of one and precision."""
    folder = made.folder / "finetuned"
    with common.count_steps() as steps:
        common.call(finetune_teacher, "--train", made.train, "--valid", made.valid, "--checkpoint",
                    made.checkpoint, "--output-dir", folder, "--overwrite", "--epochs", args.epochs,
                    "--lr", args.lr, "--max-length", common.MAX_LENGTH, "--precision", precision,
                    "--device", "cpu")
    first, *epochs = common.read_log(folder / "log.jsonl")
    return {**epochs[-1], "seconds": sum(epoch["seconds"] for epoch in epochs),
            "steps": len(steps) // args.epochs, "precision": first["precision"]}


class Rows(torch.utils.data.Dataset):
    """Encoded texts with labels, as the Trainer wants them."""

    def __init__(self, tokenizer, texts: list[str], labels: list[int]):
        self.encoded = tokenizer(texts, truncation=True, max_length=common.MAX_LENGTH)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i) -> dict:
        return {**{key: values[i] for key, values in self.encoded.items()}, "labels": self.labels[i]}


def usual(args, made, batch_size: int, train: Rows, valid: Rows, tokenizer) -> tuple[float, float]:
    """Seconds of trainer.train(), and the accuracy on the validation rows after it."""
    transformers = common.peers()
    model, _ = common.peer_teacher(made)
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
        predicted = trainer.predict(valid).predictions.argmax(1)
    return seconds, float((torch.tensor(predicted) == torch.tensor(valid.labels)).double().mean())


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        compare(args, common.material(args, folder, teacher=True, small_head=True))


def compare(args, made):
    n = len(made.texts)
    model, tokenizer = common.peer_teacher(made)
    train = Rows(tokenizer, made.texts, made.labels)
    valid = Rows(tokenizer, *made.read_valid())
    lengths = [len(row) for row in train.encoded["input_ids"]]
    first = ours(args, made, "auto")
    batch_size = round(n / first["steps"])
    work = common.teacher_work(lengths, first["steps"], sum(p.numel() for p in model.parameters()),
                               model.config.to_dict(), training=True)
    print(f"{n:,} rows, {sum(lengths) / n:.1f} tokens each, {args.epochs} epochs; {batch_size} rows a batch",
          flush=True)
    same = same_start(made, model, tokenizer)
    precisions = common.precisions(first["precision"], ["finetune"], args)
    accuracies = {side: [] for side in [*precisions, "usual"]}

    def kit(precision):
        line = ours(args, made, precision)
        accuracies[precision].append(line["valid_accuracy"])
        return args.epochs * n / line["seconds"]

    def trainer():
        seconds, accuracy = usual(args, made, batch_size, train, valid, tokenizer)
        accuracies["usual"].append(accuracy)
        return args.epochs * n / seconds

    rates = common.machine_rates()
    values = common.alternate({**{precision: partial(kit, precision) for precision in precisions},
                               "usual": trainer}, args.rounds, warm_up={"usual": None})
    rates = common.best_rates(rates, common.machine_rates())
    reached = {side: common.summary(found)["median"] for side, found in accuracies.items()}
    p = reached["usual"]
    error = (2 * p * (1 - p) / len(valid)) ** 0.5  # standard, of the difference of two accuracies
    majority = max(map(valid.labels.count, range(len(made.names)))) / len(valid)
    for precision in precisions:
        roof = common.roofline(work, rates, precision, n / common.summary(values[precision])["median"])
        common.publish(common.make_result(
            f"finetune-{precision}",
            {"ours": values[precision], "transformers.Trainer, fp32": values["usual"]},
            unit="examples/s", n=n, target=TARGETS[precision], precision=precision, roof=roof,
            gap=common.account(partial(kit, precision), roof["least_seconds"], first["steps"]),
            equal=reached[precision] > p - 2 * error or p <= majority,
            checked=[same, f"accuracy on {len(valid):,} validation rows {reached[precision]:.2%} and {p:.2%}"
                           + ("" if p > majority else ", no better than the largest class: nothing learnt")],
        ), args.results)


def same_start(made, model, tokenizer) -> str:
    """Both sides start from the same function."""
    texts = made.texts[:64]
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, truncation=True, max_length=common.MAX_LENGTH,
                                   return_tensors="pt")).logits
    return common.largest_difference(Teacher.load(made.teacher).predict(texts), theirs.softmax(1), 1e-4,
                                     f"probabilities of {len(texts)} rows before training")


if __name__ == "__main__":
    runtime.run(main, ARGS)
