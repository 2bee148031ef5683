"""Fine-tune a Transformer teacher on labelled texts; keep the epoch that is best on validation.

    python finetune_teacher.py --train data/nsmc/train.tsv --valid data/nsmc/valid.tsv    # models/encoder
    python finetune_teacher.py … --checkpoint monologg/koelectra-small-v3-discriminator   # a hub id, a folder
    python finetune_teacher.py --train … --valid … --scratch 2,128,4 --tokenizer tokenizer/vocab_size_3000
    python finetune_teacher.py … --checkpoint my-classifier --epochs 0     # fine-tuned already: keep its head
    python finetune_teacher.py --train train.tsv more.tsv --logits logits/train.pt logits/more.pt …
                                                                          # taught by others, as a student is
    torchrun --nproc_per_node 2 finetune_teacher.py …                     # several processes, one result

reads   train and validation files (columns text, label), a published checkpoint; with --logits for each
        training file what dump_logits.py (or any (N, C) tensor) gives its rows, which then need no label
writes  OUTPUT_DIR/teacher.pt (best epoch), last.pt (to continue), log.jsonl
again   the same command continues an interrupted run, and leaves a finished one alone
next    python dump_logits.py --teacher teacher/teacher.pt --data data/nsmc/train.tsv
"""

import argparse
from pathlib import Path

import flags

ENCODER = Path(__file__).with_name("models") / "encoder"  # the encoder that ships
FEW = 50_000  # rows; below, large batches would be too few steps (docs/results.md, Few rows)


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # data
    arg("--train", required=True, nargs="+", metavar="FILE",
        help="texts with labels, or with --logits (.tsv .csv .jsonl, also .gz)")
    arg("--logits", nargs="+", metavar="FILE",
        help="learn from other models: their logits of each --train file, in the same order")
    arg("--teacher", nargs="+", metavar="FILE",
        help="models that produced --logits (used to verify them); default: the paths stored in the logits")
    arg("--valid", required=True, metavar="FILE", help="labelled texts that choose the best epoch")
    flags.add_columns(arg, "label, labels or score", task=True)
    # artifacts
    arg("--checkpoint", metavar="DIR|ID", help="published weights of BERT, ELECTRA, RoBERTa, XLM-R or "
        "DistilBERT, or of any other family with the package transformers (default: models/encoder, a small "
        "Korean ELECTRA)")
    arg("--scratch", metavar="L,D,A", help="no checkpoint: a new encoder of L layers, width D, A heads")
    arg("--tokenizer", metavar="DIR", help="with --scratch: a folder that train_tokenizer.py wrote")
    flags.add_run(arg, "teacher")
    # method
    arg("--alpha", type=flags.weight, metavar="A",
        help="with --logits: weight of the label of a row that has one (default: 0.1)")
    flags.add_task(arg)
    # optimisation
    arg("--epochs", type=flags.natural,
        help=f"0 keeps the checkpoint's own head as it is (default: 3; below {FEW:,} rows 6)")
    arg("--max-length", type=flags.length, default=128,
        help="tokens of a row; the rest is cut (default: %(default)s)")
    arg("--max-tokens", type=flags.count,
        help=f"tokens per batch, padding included (default: 3072; below {FEW:,} rows 1024)")
    arg("--accumulate", type=flags.count, default=1, help="batches per optimizer step (default: %(default)s)")
    arg("--lr", type=flags.positive,
        help="peak learning rate (default: 3e-4 for encoders of up to 256 wide, 5e-5 for wider ones)")
    arg("--layer-decay", type=flags.factor, default=1.0,
        help="each layer's rate is this times that of the layer above (default: %(default)s)")
    flags.add_optimizer(arg, warmup=0.1)
    arg("--seed", type=flags.natural, default=0, help="default: %(default)s")
    # machine
    flags.add_training(arg)
    args = p.parse_args(argv)
    if args.checkpoint is not None and args.scratch is not None:
        p.error("--checkpoint and --scratch exclude each other; remove one of them")
    if args.checkpoint is None and args.scratch is None:
        if not ENCODER.exists():
            p.error(f"{ENCODER}, the default, is not there; copy it here, or give --checkpoint or --scratch")
        args.checkpoint = str(ENCODER)
    if (args.scratch is None) != (args.tokenizer is None):
        p.error("--scratch needs --tokenizer DIR, which train_tokenizer.py makes; a checkpoint has its own")
    if args.logits is not None and len(args.logits) != len(args.train):
        p.error(f"{len(args.train)} --train files but {len(args.logits)} --logits; "
                f"give one for each, in order")
    if args.logits is None and (args.teacher or args.alpha is not None):
        p.error("--teacher and --alpha need --logits, one for each --train file")
    if args.alpha is None:
        args.alpha = 0.1 if args.logits else 1.0
    if args.class_weights and args.alpha == 0:
        p.error("--class-weights has no effect with --alpha 0; remove one of them")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

from functools import partial
from itertools import islice

import numpy as np
import torch

import runtime
import tasks
from data import look
from data.batches import encode, inputs, logits_in_order, training_batches
from data.logits import fingerprints
from data.published import bert_template, load_tokenizer
from data.training import encode_training_set, read_training_set
from runtime import RANK, WORLD, UserError
from student import Student, StudentError
from teacher import Teacher, TeacherConfig, load_checkpoint, shortened

# With the contents of the files these decide the result.
DECISIVE = ("epochs", "max_length", "max_tokens", "accumulate", "lr", "layer_decay", "warmup",
            "weight_decay", "clip", "alpha", "seed", "scratch", "deterministic", "class_weights", "best")
load = partial(runtime.load_model, loaders={"teacher": Teacher.load, "student": Student.load})


def parameter_groups(teacher: Teacher, lr: float, layer_decay: float, weight_decay: float) -> list[dict]:
    """AdamW groups: the rate falls by layer_decay per layer from the head (`lr`) down to the embeddings
    (Howard & Ruder 2018, arXiv 1801.06146); biases and LayerNorms are not decayed."""
    depths, groups = teacher.depths(), {}
    top = max(depths.values())
    for name, parameter in teacher.named_parameters():
        depth, decay = depths[name], weight_decay if parameter.dim() > 1 else 0.0
        group = groups.setdefault((depth, decay), {"params": [], "weight_decay": decay})
        group["lr"] = group["peak"] = lr * layer_decay ** (top - depth)
        group["params"].append(parameter)
    return list(groups.values())


def new_teacher(args, task) -> Teacher:
    """A BERT of the shape L,D,A given by --scratch, with random weights."""
    tokenizer = load_tokenizer(Path(args.tokenizer), "bert")
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
               if tokenizer.token_to_id(token) is None]
    if missing:
        raise UserError(f"{args.tokenizer}: the tokenizer has no {' '.join(missing)}; make one with "
                        f"train_tokenizer.py")
    tokenizer.post_processor = bert_template(tokenizer)
    try:
        layers, hidden, heads = (int(value) for value in args.scratch.split(","))
        config = TeacherConfig("bert", tokenizer.get_vocab_size(), hidden, layers, heads, 4 * hidden, hidden,
                               max_positions=512, type_vocab_size=2, num_labels=len(task.names),
                               pad_id=tokenizer.token_to_id("[PAD]"), **task.config)
    except ValueError as error:
        raise UserError(f"--scratch {args.scratch}: layers,width,heads as in 2,128,4 are needed "
                        f"({error})") from None
    return Teacher(config, tokenizer, task.names, args.max_length, tasks.name_of(task))


def prepare_teacher(args, data) -> Teacher:
    """The teacher before its first step; `data` takes over the order of labels of a published head."""
    if args.scratch:
        teacher = new_teacher(args, data.task)
        report = shortened(teacher, args.max_length)
    else:
        teacher, report = load_checkpoint(args.checkpoint, data.task.names, args.max_length,
                                          task=tasks.name_of(data.task), **data.task.config)
    for line in report:
        print(line)
    if args.epochs == 0 and (args.scratch or any(line.startswith("starts fresh") for line in report)):
        why = next((line for line in report if line.startswith("the checkpoint's head")),
                   "this one has none")
        raise UserError(f"--epochs 0 needs a checkpoint that already has a trained head: {why}; use "
                        f"--epochs 1 or more to train a new one")
    if teacher.label_names != data.task.names:
        data.reorder(teacher.label_names)
    if args.lr is None:  # as ELECTRA's authors for small and for wider models (arXiv 2003.10555, table 7)
        args.lr = 3e-4 if teacher.config.hidden_size <= 256 else 5e-5
    count = sum(p.numel() for p in teacher.parameters())
    print(f"{teacher.config.family}, {count:,} parameters, labels {data.task.names}")
    if args.alpha == 1 and not data.labelled:
        raise UserError("--alpha 1 trains on labels alone, but no --train file has any")
    return teacher


def grouped(batches, count: int):
    """Lists of `count` batches, and of those left at the end."""
    while group := list(islice(batches, count)):
        yield group


def train(run: runtime.Run, teacher: Teacher, data, args, device) -> None:
    """The loop. A step takes --accumulate batches; of each, this process takes its share of the rows."""
    task, labels_alone = data.task, args.alpha == 1
    store, valid = encode_training_set(data, partial(encode, teacher.tokenizer, **teacher.reads), run.folder)
    valid = valid.to(device)
    data.logits.clear()  # the store has them: the mapped files need not stay in memory
    optimizer = torch.optim.AdamW(parameter_groups(teacher, args.lr, args.layer_decay, args.weight_decay),
                                  fused=device.type in ("cpu", "cuda"))
    with run.start(teacher, optimizer, args.seed, data.name_row):
        for epoch in run.epochs(args.epochs):
            teacher.train()
            batches = training_batches(store, args.max_tokens, (args.seed, epoch), device, labels_alone)
            for group in run.steps(grouped(batches, args.accumulate),
                                   data.labelled if labels_alone else data.rows):
                numbers = np.concatenate([window.numbers[rows] for window, rows in group])
                for window, rows in group:
                    share = rows[RANK::WORLD]
                    if len(share):
                        batch = window.batch(share)
                        with runtime.autocast(device, run.precision):
                            logits = teacher(**inputs(batch))  # (B, C)
                        loss = tasks.distill_loss(task, logits.float(), batch, args.alpha) * len(share)
                        (loss / len(numbers)).backward()
                        run.add(loss)
                runtime.sum_gradients(teacher.parameters())
                norm = torch.nn.utils.clip_grad_norm_(teacher.parameters(), args.clip)
                rate = runtime.schedule(run.fraction_done(len(numbers)), args.warmup)
                run.step(norm, numbers, rate)
            judge(run, teacher, valid, data, args)
        if args.epochs == 0:
            judge(run, teacher, valid, data, args)


def judge(run: runtime.Run, teacher: Teacher, valid, data, args) -> None:
    """Score the validation rows; write teacher.pt if it is the best so far."""
    progress = runtime.Progress("validate", len(valid), "texts")
    logits = logits_in_order(teacher, valid, 4 * args.max_tokens, run.precision, progress)
    progress.close()
    data.task.calibrate(logits, data.valid_target)  # a teacher keeps the thresholds alone
    if run.best(tasks.judge(data.task, logits, data.valid_target), data.task.best):
        teacher.config.thresholds = data.task.thresholds
        teacher.save(run.artifact, scores=run.at["best"], epoch=run.at["best"]["epoch"], made_by=run.made_by)


def main(args):
    device = runtime.connect(runtime.pick_device(args.device))
    runtime.seed_everything(device, args.seed)
    if args.deterministic:
        runtime.be_deterministic()
    output = Path(args.output_dir)
    data = read_training_set(args, tasks, load)
    if args.epochs is None:
        args.epochs = 6 if data.rows < FEW else 3
    if args.max_tokens is None:
        args.max_tokens = 1024 if data.rows < FEW else 3072
    teacher = prepare_teacher(args, data)
    source = args.checkpoint or args.tokenizer
    print(look.tokenizers({source: (teacher.tokenizer, teacher.reads)}, data.files))
    tasks.apply_flags(data.task, args, data.answers, data.valid.answers)
    runtime.refuse_to_overwrite_inputs([*args.train, args.valid, *(args.logits or ()), *data.teachers], [
        output / name for name in ("last.pt", "teacher.pt", "log.jsonl", "diverged.tsv")])
    start = fingerprints(teacher)
    made_by = runtime.made_by({name: getattr(args, name) for name in DECISIVE}, data.what_was_read() | {
        "the weights at the start": start["weights"], "the tokenizer": start["tokenizer"]})
    run = runtime.Run(output, "teacher.pt", made_by, args, device,
                      runtime.pick_precision(args.precision, device))
    if run.finished:
        run.say_finished(data.task.best)
        return
    train(run, teacher.to(device), data, args, device)
    score = run.at["best"][f"valid_{data.task.best}"]
    print(f"{run.artifact}: validation {data.task.best} {score:.4f}")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,), memory="lower --max-tokens or --max-length")
