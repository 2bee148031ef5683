"""Fine-tune a Transformer teacher on labelled texts; keep the epoch that is best on validation.

    python finetune_teacher.py --train data/nsmc/train.tsv --valid data/nsmc/valid.tsv \\
        --checkpoint monologg/koelectra-small-v3-discriminator            # a hub id, or a folder
    python finetune_teacher.py --train … --valid … --scratch 2,128,4 --tokenizer tokenizer/vocab_size_3000
    python finetune_teacher.py … --resume                                 # go on after an interruption
    python finetune_teacher.py --train train.tsv more.tsv --logits logits/train.pt logits/more.pt …
                                                                          # taught by others, as a student is
    torchrun --nproc_per_node 2 finetune_teacher.py …                     # several processes, one result

reads   train and validation files (columns text, label), a published checkpoint; with --logits for each
        training file what dump_logits.py (or any (N, C) tensor) gives its rows, which then need no label
writes  OUTPUT_DIR/teacher.pt (best epoch), last.pt (for --resume), log.jsonl; Ctrl-C saves before it stops
next    python dump_logits.py --teacher teacher/teacher.pt --data data/nsmc/train.tsv
"""

import argparse


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # data
    arg("--train", required=True, nargs="+", metavar="FILE",
        help="texts with labels, or with --logits (.tsv .csv .jsonl, also .gz)")
    arg("--logits", nargs="+", metavar="FILE",
        help="to learn from other models: their logits of each --train file, in the same order")
    arg("--teacher", nargs="+", metavar="FILE",
        help="those that --logits are of; default: the files dump_logits.py read, if still there")
    arg("--valid", required=True, metavar="FILE", help="labelled texts that choose the best epoch")
    arg("--text-column", metavar="NAME", help="default: text or document")
    arg("--text2-column", metavar="NAME", help="second text of a pair; default: text2 if there")
    arg("--label-column", metavar="NAME", help="default: label")
    # artifacts
    arg("--checkpoint", metavar="DIR|ID", help="published BERT, ELECTRA, RoBERTa or DistilBERT weights")
    arg("--scratch", metavar="L,D,A", help="no checkpoint: a new encoder of L layers, width D, A heads")
    arg("--tokenizer", metavar="DIR", help="with --scratch: a folder that train_tokenizer.py wrote")
    arg("--output-dir", default="teacher", metavar="DIR", help="default: %(default)s")
    again = p.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR/last.pt, if it is there")
    again.add_argument("--overwrite", action="store_true", help="start anew where an earlier run's files are")
    arg("--save-every", type=float, default=10, metavar="MINUTES",
        help="what a kill may cost; also saved after each epoch (default: %(default)g)")
    # method
    arg("--alpha", type=float, metavar="A",
        help="with --logits: weight of the label of a row that has one (default: 0.1)")
    # optimisation
    arg("--epochs", type=int, default=3,
        help="0 keeps the checkpoint's own head as it is (default: %(default)s)")
    arg("--max-length", type=int, default=128, help="tokens of a row, cut beyond (default: %(default)s)")
    arg("--max-tokens", type=int, default=3072,
        help="tokens of a batch, padding counted (default: %(default)s)")
    arg("--accumulate", type=int, default=1, help="batches per optimiser step (default: %(default)s)")
    arg("--lr", type=float, default=5e-5,
        help="peak learning rate; 2.5e-4 suits encoders of 256 wide and less (default: %(default)s)")
    arg("--layer-decay", type=float, default=1.0,
        help="each layer's rate is this times that of the layer above (default: %(default)s)")
    arg("--warmup", type=float, default=0.1, help="share of the run with rising rate (default: %(default)s)")
    arg("--weight-decay", type=float, default=0.01, help="default: %(default)s")
    arg("--clip", type=float, default=1.0, help="largest gradient norm (default: %(default)s)")
    # machine
    arg("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: %(default)s")
    arg("--precision", default="auto", choices=["auto", "fp32", "bf16"],
        help="auto takes bf16 on a GPU that has it, or where a trial on a CPU shows it to pay "
        "(default: %(default)s)")
    arg("--deterministic", action="store_true", help="the same bits in every run on CUDA too, slower")
    arg("--seed", type=int, default=0, help="default: %(default)s")
    arg("--tensorboard", action="store_true", help="also log to OUTPUT_DIR/tensorboard")
    args = p.parse_args(argv)
    if (args.checkpoint is None) == (args.scratch is None):
        p.error("give either --checkpoint or --scratch")
    if args.scratch and not args.tokenizer:
        p.error("--scratch needs --tokenizer DIR (make one with train_tokenizer.py)")
    if args.epochs < 0 or args.max_length < 3 or args.max_tokens < 1 or args.accumulate < 1:
        p.error("--epochs must be at least 0, --max-length 3, --max-tokens and --accumulate 1")
    if args.checkpoint and args.tokenizer:
        p.error("--tokenizer is for --scratch; a checkpoint brings its own")
    if args.logits is not None and len(args.logits) != len(args.train):
        p.error(f"{len(args.train)} --train files but {len(args.logits)} --logits; "
                f"give one for each, in order")
    if args.logits is None and (args.teacher or args.alpha is not None):
        p.error("--teacher and --alpha need --logits, one for each --train file")
    args.alpha = 0.1 if args.logits and args.alpha is None else args.alpha
    if args.logits and not 0 <= args.alpha <= 1:
        p.error("--alpha must be in [0, 1]")
    for name, value in vars(args).items():
        if isinstance(value, (int, float)) and not abs(value) < 2**31:  # NaN is not below anything
            p.error(f"--{name.replace('_', '-')} is {value}, must be finite and below {2**31}")
    if args.seed < 0:
        p.error("--seed must be at least 0")
    if args.lr <= 0 or args.clip <= 0 or not 0 < args.layer_decay <= 1 or not 0 <= args.warmup < 1 \
            or args.weight_decay < 0:
        p.error("--lr and --clip must be positive, --layer-decay in (0, 1], --warmup in [0, 1), "
                "--weight-decay at least 0")
    if args.save_every < 0:
        p.error("--save-every must be at least 0")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import runtime
from data.batching import training_batches
from data.training import encode_training_set, read_training_set
from distill import distill_loss, judge
from runtime import RANK, WORLD, UserError
from teacher import Teacher, TeacherConfig, bert_template, load_checkpoint, load_tokenizer

FORMAT = 3  # of last.pt
# With the contents of the files these decide the result: a resumed run must have the same.
DECISIVE = ("epochs", "max_length", "max_tokens", "accumulate", "lr", "layer_decay", "warmup",
            "weight_decay", "clip", "alpha", "seed", "scratch", "deterministic")


def parameter_groups(teacher: Teacher, lr: float, layer_decay: float, weight_decay: float) -> list[dict]:
    """AdamW groups: the rate falls by layer_decay per layer from the head (`lr`) down to the embeddings
    (Howard & Ruder 2018, arXiv 1801.06146); biases and LayerNorms are not decayed."""
    top = teacher.config.num_layers + 1
    groups = {}
    for name, parameter in teacher.named_parameters():
        if name.startswith("head_"):
            depth = top
        elif name.startswith("encoder.layers."):
            depth = 1 + int(name.split(".")[2])
        else:
            depth = 0
        decay = weight_decay if parameter.dim() > 1 else 0.0
        group = groups.setdefault((depth, decay), {"params": [], "weight_decay": decay})
        group["lr"] = group["peak"] = lr * layer_decay ** (top - depth)
        group["params"].append(parameter)
    return list(groups.values())


def new_teacher(args, names: list[str]) -> Teacher:
    """A BERT of the shape L,D,A given by --scratch, with random weights."""
    try:
        layers, hidden, heads = (int(value) for value in args.scratch.split(","))
        tokenizer = load_tokenizer(Path(args.tokenizer), "bert")
        missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
                   if tokenizer.token_to_id(token) is None]
        if missing:
            raise UserError(f"{args.tokenizer}: the tokenizer has no {' '.join(missing)}; make one with "
                            f"train_tokenizer.py")
        tokenizer.post_processor = bert_template(tokenizer)
        config = TeacherConfig("bert", tokenizer.get_vocab_size(), hidden, layers, heads, 4 * hidden, hidden,
                               max_positions=512, type_vocab_size=2, num_labels=len(names),
                               pad_id=tokenizer.token_to_id("[PAD]") or 0)
    except ValueError as error:
        raise UserError(f"--scratch {args.scratch}: layers,width,heads as in 2,128,4 are needed "
                        f"({error})") from None
    return Teacher(config, tokenizer, names, args.max_length)


def grouped(batches, count: int):
    """Lists of `count` batches, of those left at the end."""
    while group := list(islice(batches, count)):
        yield group


def main(args):
    device = runtime.connect(runtime.pick_device(args.device))
    runtime.seed_everything(device, args.seed)
    if args.deterministic:
        runtime.be_deterministic()
    output = Path(args.output_dir)
    last, best_file = output / "last.pt", output / "teacher.pt"

    # data
    data = read_training_set(args)
    names = data.label_names

    # model
    if args.scratch:
        teacher, report = new_teacher(args, names), []
    else:
        teacher, report = load_checkpoint(args.checkpoint, names, args.max_length)
    for line in report:
        print(line)
    if args.epochs == 0 and (args.scratch or any(line.startswith("starts fresh") for line in report)):
        raise UserError("--epochs 0 keeps a fine-tuned checkpoint as it is, this head is new: train it")
    start = teacher.fingerprints()
    teacher.to(device)
    if teacher.label_names != names:  # a published head may bring its own order
        data.reorder(teacher.label_names)
    labels_alone = args.logits is None or args.alpha == 1
    if labels_alone and not data.labelled:
        raise UserError("--alpha 1 trains on labels alone, but no --train file has any")
    rows_used = data.labelled if labels_alone else data.rows
    count = sum(p.numel() for p in teacher.parameters())
    print(f"{teacher.config.family}, {count:,} parameters, labels {data.label_names}; {data.rows:,} training "
          f"rows, {data.labelled:,} of them labelled; {len(data.valid):,} for validation")
    runtime.lock(output / ".lock", last.name, best_file.name, "diverged.tsv")
    runtime.refuse_to_read_and_write([*args.train, args.valid, *(args.logits or ()), *data.teachers], [
        last, best_file, output / "log.jsonl", output / "diverged.tsv"])
    if not (args.resume or args.overwrite):
        runtime.refuse_to_overwrite(last, best_file)
    if args.overwrite:
        runtime.mark_replaced(last)
    store, encoded_valid = encode_training_set(data, teacher.encode, output)
    encoded_valid = encoded_valid.to(device)
    data.logits.clear()  # the store has them: the mapped files need not stay in memory

    window = next(store.windows(device))
    trial = window.batch(np.argsort(window.lengths)[-64:])
    del window
    trial.pop("teacher_logits", None)
    trial_labels = trial.pop("labels").clamp(min=0)

    def trial_step():
        F.cross_entropy(teacher(**trial).float(), trial_labels).backward()
        teacher.zero_grad()

    precision = runtime.pick_precision(args.precision, device, trial_step)
    optimizer = torch.optim.AdamW(parameter_groups(teacher, args.lr, args.layer_decay, args.weight_decay),
                                  fused=device.type in ("cpu", "cuda"))

    # resume
    made_by = runtime.made_by({name: getattr(args, name) for name in DECISIVE}, data.what_was_read() | {
        "the weights at the start": start["weights"], "the tokenizer": start["tokenizer"],
    })
    at = {"epoch": 0, "step": 0, "rows": 0, "loss": 0.0, "best": {}, "log": ""}
    state = args.resume and runtime.resume(last, best_file, "teacher-resume", FORMAT, made_by, args)
    if state:
        at, precision = runtime.restore(last, state, teacher, optimizer, at)
        print(f"resuming after epoch {at['epoch']}, step {at['step']}")
    log = runtime.Log(output / "log.jsonl", at["log"], args.tensorboard)
    if not at["log"]:
        log.begin(args, made_by, device, precision=precision)

    def save_last(**values):
        at.update(values, log=log.text)
        runtime.save({"kind": "teacher-resume", "format": FORMAT, "weights": teacher.state_dict(),
                      "optimizer": optimizer.state_dict(), "at": at, "precision": precision,
                      "made_by": made_by}, last)

    def evaluate() -> dict:
        progress = runtime.Progress("validate", len(data.valid), "texts")
        _, scores = judge(teacher, encoded_valid, data, args, precision, progress)
        progress.close()
        return scores

    def diverged(epoch, step, group):
        numbers = np.concatenate([window.numbers[rows] for window, rows in group])
        data.stop(epoch, step, numbers, best_file, at["best"])

    # loop
    saves, watch = runtime.Saves(args.save_every, device), runtime.Watch(device, diverged)
    runtime.barrier(device)  # every rank has seen what is there before rank 0 changes it
    if not state:
        save_last()  # from here on the folder is this run's
        (output / "diverged.tsv").unlink(missing_ok=True)
    for epoch in range(at["epoch"], args.epochs):
        teacher.train()
        rows_done = at["rows"]
        total_loss = torch.tensor(at["loss"] / WORLD, device=device)
        progress = runtime.Progress(f"epoch {epoch + 1}/{args.epochs}", rows_used, "texts", rows_done)
        batches = training_batches(store, args.max_tokens, (args.seed, epoch), device, labels_alone)
        for step, group in islice(enumerate(grouped(batches, args.accumulate)), at["step"], None):
            runtime.seed_everything(device, args.seed, epoch, step, RANK)
            rows_in_step = sum(len(rows) for _, rows in group)
            for window, rows in group:
                mine = rows[RANK::WORLD]
                if not len(mine):
                    continue
                batch = window.batch(mine)
                labels, teacher_logits = batch.pop("labels"), batch.pop("teacher_logits", None)
                with runtime.autocast(device, precision):
                    logits = teacher(**batch)  # (B, C)
                loss = distill_loss(logits.float(), None if labels_alone else teacher_logits, labels,
                                    args.alpha) * len(mine)
                (loss / rows_in_step).backward()
                total_loss += loss.detach()
            done = (epoch + (rows_done + rows_in_step / 2) / rows_used) / args.epochs  # in (0, 1)
            scale = min(done / max(args.warmup, 1e-9), (1 - done) / (1 - args.warmup))
            for parameters in optimizer.param_groups:
                parameters["lr"] = parameters["peak"] * scale
            runtime.sum_gradients(teacher.parameters())
            norm = torch.nn.utils.clip_grad_norm_(teacher.parameters(), args.clip)
            watch.step(total_loss + norm, epoch, step, group)
            optimizer.step()
            optimizer.zero_grad()
            rows_done += rows_in_step
            progress.add(rows_in_step, total_loss * WORLD)
            if saves.due(step):
                watch.finish()
                save_last(epoch=epoch, step=step + 1, rows=rows_done, loss=runtime.sum_of(total_loss))
                saves.done()
        watch.finish()
        seconds = progress.close()
        train_loss = runtime.sum_of(total_loss) / rows_used

        scores = evaluate()
        if not np.isfinite(scores["valid_loss"]):
            raise UserError(f"epoch {epoch + 1}: the validation loss is not finite; lower --lr"
                            + (f" ({best_file} is the best before)" if at["best"] else ""))
        if scores["valid_accuracy"] > at["best"].get("valid_accuracy", -1):
            at["best"] = {**scores, "epoch": epoch + 1}
            teacher.save(best_file, scores=scores, epoch=epoch + 1, made_by=made_by)
        log.write(epoch + 1, train_loss=train_loss, **scores, seconds=round(seconds, 2))
        save_last(epoch=epoch + 1, step=0, rows=0, loss=0.0)
        print(f"epoch {epoch + 1}/{args.epochs}: train loss {train_loss:.4f}, validation loss "
              f"{scores['valid_loss']:.4f}, accuracy {scores['valid_accuracy']:.2%} "
              f"(best {at['best']['valid_accuracy']:.2%}), {progress.counted / seconds:,.0f} texts/s "
              f"{precision}, {runtime.clock(seconds)}")
        sys.stdout.flush()
        saves.done()
    saves.close()
    if args.epochs == 0:
        at["best"] = evaluate()
        teacher.save(best_file, scores=at["best"], epoch=0, made_by=made_by)
    log.close()
    print(f"{best_file}: validation accuracy {at['best']['valid_accuracy']:.2%}")


if __name__ == "__main__":
    runtime.run(main, ARGS, memory="lower --max-tokens, or --max-length")
