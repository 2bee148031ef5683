"""Train BiLSTM students on a teacher's logits, on labels, or on both; keep the epoch best on validation.

    python distill.py --train data/nsmc/train.tsv --logits logits/train.pt --valid data/nsmc/valid.tsv \\
        --tokenizer tokenizer/vocab_size_3000
    python distill.py --train train.tsv unlabeled.tsv --logits logits/train.pt logits/unlabeled.pt …
    python distill.py --train train.tsv --alpha 1 …                       # labels only, no teacher
    python distill.py … --size base small tiny --seed 0 1 2               # the whole grid, then one table
    python distill.py … --quantize int8                                   # a file a quarter as large besides
    python distill.py … --budget 300KB --tokenizer tokenizer/*            # the best student of so many bytes
    torchrun --nproc_per_node 2 distill.py …                              # several processes, one result

reads   training files, for each the logits that dump_logits.py (or any (N, C) tensor) gives its rows,
        a labelled validation file, a folder with tokenizer.json; the teachers, if they are there: they must
        be those that made the logits, and the student's embeddings start from the first teacher.pt's
writes  OUTPUT_DIR/NAME/student.pt (best epoch), last.pt (for --resume), log.jsonl; with --quantize also
        student.int8.pt or student.float16.pt; for a grid also OUTPUT_DIR/summary.tsv; Ctrl-C saves before
        it stops
next    python evaluate.py students/base/student.pt --data data/nsmc/test.tsv

A grid flag, marked +, takes several values; every combination is trained.
"""

import argparse

# Flag, and what it adds to the name of a student's folder when the grid has several values of it.
GRID = {"tokenizer": "", "size": "", "embedding_dim": "e", "hidden_dim": "h", "num_layers": "l",
        "dropout": "d", "pooling": "", "head": "", "embeddings": "", "loss": "", "alpha": "alpha",
        "temperature": "T", "lr": "lr", "seed": "seed"}
PRECISIONS = ("float16", "int8")
ROUNDED = tuple(f"student.{kind}.pt" for kind in PRECISIONS)
RATES = {"large": 4e-3, "base": 4e-3, "small": 8e-3, "mini": 16e-3, "tiny": 16e-3}


def byte_count(text: str) -> int:
    """"300KB" -> 300,000."""
    number, unit = text.upper().removesuffix("B"), 1
    if number.endswith(("K", "M")):
        number, unit = number[:-1], {"K": 10**3, "M": 10**6}[number[-1]]
    if not number.isdecimal() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 60000, 300KB or 1MB")
    return int(number) * unit


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument

    def grid(flag, *, default, help, **options):
        shown = "" if default is None else f" (default: {default})"
        arg(flag, nargs="+", default=[default], help=f"+ {help}{shown}", **options)

    # data
    arg("--train", required=True, nargs="+", metavar="FILE", help="texts; a label column may be there or not")
    arg("--logits", nargs="+", metavar="FILE", help="logits of each --train file, in the same order")
    arg("--teacher", nargs="+", metavar="FILE",
        help="those that the logits are of; default: the files dump_logits.py read, if still there")
    arg("--valid", required=True, metavar="FILE", help="labelled texts that choose the best epoch")
    arg("--text-column", metavar="NAME", help="default: text or document")
    arg("--text2-column", metavar="NAME", help="second text of a pair; default: text2 if there")
    arg("--label-column", metavar="NAME", help="default: label if there")
    # artifacts
    arg("--tokenizer", required=True, nargs="+", metavar="DIR", help="+ folder with tokenizer.json")
    arg("--output-dir", default="students", metavar="DIR", help="default: %(default)s")
    again = p.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from last.pt, where it is there")
    again.add_argument("--overwrite", action="store_true", help="start anew where an earlier run's files are")
    arg("--save-every", type=float, default=10, metavar="MINUTES",
        help="what a kill may cost; also saved after each epoch (default: %(default)g)")
    # student
    arg("--budget", type=byte_count, metavar="BYTES", help="such as 300KB, instead of --size: tries the "
        "largest networks of so small a file, an eighth of --epochs each, and trains the best")
    grid("--size", default="base", choices=["large", "base", "small", "mini", "tiny"],
         help="embedding/hidden: large 128/256, base 64/128, small 32/64, mini 16/16, tiny 8/16")
    grid("--embedding-dim", type=int, default=None, metavar="N", help="instead of the size's")
    grid("--hidden-dim", type=int, default=None, metavar="N", help="of each direction, instead of the size's")
    grid("--num-layers", type=int, default=1, metavar="N", help="LSTM layers")
    grid("--dropout", type=float, default=0.0, metavar="P", help="on embeddings and before the head")
    grid("--pooling", default="last", choices=["last", "max", "mean", "attention"],
         help="states to one vector")
    grid("--head", default="linear", choices=["linear", "relu"], help="relu: one hidden layer, the paper's")
    grid("--embeddings", default="teacher", choices=["teacher", "random"],
         help="where they start; random without teacher.pt, and for labels alone")
    arg("--max-length", type=int, default=128, help="tokens of a row, cut beyond (default: %(default)s)")
    arg("--quantize", nargs="+", default=[], choices=PRECISIONS, help="also write the weights so, after "
        "training; int8 is fine-tuned where rounding costs more than 0.1 point on --valid")
    # method
    grid("--loss", default="mse", choices=["mse", "kl"], help="soft part: squared error of logits, or T²·KL")
    grid("--alpha", type=float, default=0.1, metavar="A",
         help="weight of the labels; 1: labels alone, no logits")
    grid("--temperature", type=float, default=2.0, metavar="T", help="softens both distributions of the KL")
    # optimisation
    arg("--epochs", type=int, default=8, help="default: %(default)s")
    grid("--lr", type=float, default=None, metavar="R",
         help="peak learning rate; default: 4e-3 for large and base, 8e-3 small, 16e-3 mini and tiny")
    arg("--max-tokens", type=int, default=4096,
        help="tokens of a batch, padding counted (default: %(default)s)")
    arg("--warmup", type=float, default=0.05, help="share of the run with rising rate (default: %(default)s)")
    arg("--weight-decay", type=float, default=0.01, help="default: %(default)s")
    arg("--clip", type=float, default=1.0, help="largest gradient norm (default: %(default)s)")
    # machine
    arg("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: %(default)s")
    arg("--precision", default="auto", choices=["auto", "fp32", "bf16"],
        help="auto takes bf16 where a trial on a CPU shows it to pay (default: %(default)s)")
    arg("--deterministic", action="store_true", help="the same bits in every run on CUDA too, slower")
    grid("--seed", type=int, default=0, metavar="N", help="of weights, order and dropout")
    arg("--tensorboard", action="store_true", help="also log to OUTPUT_DIR/NAME/tensorboard")
    args = p.parse_args(argv)
    if args.logits is None and min(args.alpha) < 1:
        p.error("--logits are needed, one for each --train file (or --alpha 1 to train on labels alone)")
    if args.logits is not None and len(args.logits) != len(args.train):
        p.error(f"{len(args.train)} --train files but {len(args.logits)} --logits; "
                f"give one for each, in order")
    if not all(0 <= alpha <= 1 for alpha in args.alpha) or min(args.temperature) <= 0:
        p.error("--alpha must be in [0, 1], --temperature positive")
    for name, values in vars(args).items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, (int, float)) and not abs(value) < 2**31:  # NaN is not below anything
                p.error(f"--{name.replace('_', '-')} is {value}, must be finite and below {2**31}")
    if min(args.seed) < 0:
        p.error("--seed must be at least 0")
    if args.epochs < 1 or args.max_tokens < 1 or args.max_length < 1:
        p.error("--epochs, --max-tokens and --max-length must be at least 1")
    if any(lr is not None and lr <= 0 for lr in args.lr) or args.clip <= 0 or not 0 <= args.warmup < 1 \
            or args.weight_decay < 0:
        p.error("--lr and --clip must be positive, --warmup in [0, 1), --weight-decay at least 0")
    if args.save_every < 0:
        p.error("--save-every must be at least 0")
    if args.budget is not None:
        several = [name for name in GRID if name != "tokenizer" and len(getattr(args, name)) > 1]
        own = [name for name in ("size", "embedding_dim", "hidden_dim")
               if getattr(args, name) is not p.get_default(name)]
        for name in own + several:
            p.error(f"--budget searches for itself; give no --{name.replace('_', '-')}" +
                    ("" if name in own else " of several values"))
        if args.quantize:
            p.error("--budget chooses the precision itself; give no --quantize")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import bisect
import functools
import itertools
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import runtime
from data.batching import Encoded, Store, encode, logits_in_order, training_batches
from data.training import TrainingSet, encode_training_set, read_training_set
from runtime import RANK, WORLD, UserError
from student import SIZES, Student, StudentConfig, StudentError, largest_id, to_int8

FORMAT = 2  # of last.pt
# With the grid's values and the contents of the files these decide the result: a resumed run has the same.
DECISIVE = ("epochs", "max_length", "max_tokens", "warmup", "weight_decay", "clip", "deterministic")
WIDTHS = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of embeddings, that --budget tries
RESERVE = 2500, 300  # bytes of a file's scores and made_by, and for each training file
HARM = 0.001  # loss of validation accuracy by rounding that is worth an epoch more


def distill_loss(student_logits, teacher_logits, labels, alpha: float, temperature: float = 2.0,
                 kind: str = "mse"):
    """The method: mean over rows of alpha · CE(label) + (1 − alpha) · soft; without label (-1) all soft.

    mse  soft = ‖teacher − student‖², Tang et al. (2019, arXiv 1903.12136), section 3.2
    kl   soft = T² · KL(softmax(teacher / T) ‖ softmax(student / T)), Hinton et al. (2015, arXiv 1503.02531):
         T² keeps the gradient's scale independent of T
    student_logits, teacher_logits (B, C), labels (B,); teacher_logits None: labels alone.
    """
    hard = F.cross_entropy(student_logits, labels.clamp(min=0), reduction="none")  # (B,)
    if teacher_logits is None:
        return hard.mean()
    if kind == "mse":
        soft = (teacher_logits - student_logits).square().sum(1)  # (B,)
    else:
        log_p = F.log_softmax(teacher_logits / temperature, 1)
        log_q = F.log_softmax(student_logits / temperature, 1)
        soft = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)  # (B,)
    alpha = alpha * (labels >= 0)  # (B,)
    return (alpha * hard + (1 - alpha) * soft).mean()


def batch_loss(student, batch: dict, settings: dict, labels_alone: bool, device, precision: str):
    """distill_loss of the student on a batch."""
    labels, teacher_logits = batch.pop("labels"), batch.pop("teacher_logits", None)
    with runtime.autocast(device, precision):
        logits = student(**batch)  # (B, C)
    return distill_loss(logits.float(), None if labels_alone else teacher_logits, labels, settings["alpha"],
                        settings["temperature"], settings["loss"])


def fit_temperature(logits, labels) -> float:
    """The T of least cross-entropy of logits / T: Guo et al. (2017, arXiv 1706.04599), section 4.2.

    logits (N, C), labels (N,). The cross-entropy is convex in 1 / T; its slope is bisected in [0.05, 20]. Of
    each label 1 / (N + 2) goes to all classes, as Platt (1999) has it, lest few rows, all right, make sure.
    """
    logits = logits.double()
    share = 1 / (len(labels) + 2)
    target = (1 - share) * logits[torch.arange(len(labels)), labels] + share * logits.mean(1)  # (N,)
    low, high = 0.05, 20.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        expected = ((middle * logits).softmax(1) * logits).sum(1)  # (N,)
        if (expected - target).mean() < 0:
            low = middle
        else:
            high = middle
    return 1 / middle


# ---- tokenizer and embeddings ----------------------------------------------------------------------------


def read_tokenizer(folder: str) -> Tokenizer:
    path = Path(folder) / "tokenizer.json" if Path(folder).is_dir() else Path(folder)
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); make one with train_tokenizer.py") from None
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{path}: not a tokenizer file ({' '.join(str(error).split())})") from None
    for token in ("[PAD]", "[UNK]"):
        if tokenizer.token_to_id(token) is None:
            raise UserError(f"{path}: the tokenizer has no {token}; make one with train_tokenizer.py")
    try:
        gaps = largest_id(tokenizer) >= tokenizer.get_vocab_size()
    except StudentError as error:
        raise UserError(f"{path}: {error}; make one with train_tokenizer.py") from None
    if gaps:
        raise UserError(f"{path}: there are gaps between its ids; make one with train_tokenizer.py")
    return tokenizer


def is_student(path: str) -> bool:
    """Whether a teacher is itself a student: no embeddings to start from."""
    artifact = runtime.load_weights(path, mmap=True)
    return isinstance(artifact, dict) and artifact.get("kind") == "student"


def embeddings_teacher(data: TrainingSet, args) -> str | None:
    """The first teacher.pt of those that teach and are there: the students' embeddings can start from its."""
    known = [file for file in data.teachers if args.teacher or os.path.isfile(file)] if data.logits else []
    teacher = next((file for file in known if not is_student(file)), None)
    if len(set(args.embeddings)) > 1 and teacher is None:
        raise UserError("--embeddings: " + (
            "the teachers are students, which have none to start from; give one value" if known
            else "there is no teacher.pt to start from; name it with --teacher"))
    if known and teacher is None and "teacher" in args.embeddings:
        runtime.warn("a student that teaches has no embeddings to start from; they start at random")
    return teacher


def teacher_embeddings(path: str, tokenizer) -> torch.Tensor:
    """(V, E) where the teacher has the tokens of the student's tokenizer, in the order of their ids."""
    from teacher import Teacher

    vocab = tokenizer.get_vocab()
    return Teacher.load(path).embeddings_of(sorted(vocab, key=vocab.get))


def encoder(tokenizer, args):
    """(texts, texts2, progress) -> their token ids, as a student reads them."""
    pad_id, blank_id = tokenizer.token_to_id("[PAD]"), tokenizer.token_to_id("[UNK]")
    return functools.partial(encode, tokenizer, max_length=args.max_length, pad_id=pad_id, blank_id=blank_id)


# ---- one student -------------------------------------------------------------------------------------------


def principal_components(vectors, dim: int):
    """(V, D) -> (V, dim), or fewer if there are no more: along the directions in which the vectors differ
    most, each of variance 1, which is that of nn.Embedding's random ones."""
    centred = vectors - vectors.mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(vectors))  # the smallest first
    kept = variances.flip(0)[:dim] > 1e-6 * variances[-1]
    return centred @ axes.flip(1)[:, :dim][:, kept] / variances.flip(0)[:dim][kept].sqrt()


def judge(student, encoded_valid: Encoded, data: TrainingSet, args, precision: str, progress=None) -> tuple:
    """Logits (N, C) of the validation rows, and their scores."""
    logits = logits_in_order(student, encoded_valid, 4 * args.max_tokens, precision, progress)
    return logits, {"valid_loss": F.cross_entropy(logits, data.valid_labels).item(),
                    "valid_accuracy": (logits.argmax(1) == data.valid_labels).float().mean().item()}


def train_student(settings: dict, folder: Path, tokenizer, start, store: Store, encoded_valid: Encoded,
                  data: TrainingSet, args, device) -> dict:
    """Train one student, write it to `folder`, return its row of the summary. `settings` has GRID's keys,
    `start` is the path of a teacher with its teacher_embeddings(), or None."""
    runtime.seed_everything(device, settings["seed"])
    last, best_file = folder / "last.pt", folder / "student.pt"
    labels_alone = settings["alpha"] == 1 or args.logits is None
    rows_used = data.labelled if labels_alone else data.rows

    # model
    config = StudentConfig(
        tokenizer.get_vocab_size(), len(data.label_names), *dimensions(settings), settings["num_layers"],
        settings["dropout"], settings["pooling"], settings["head"], args.max_length,
        tokenizer.token_to_id("[PAD]"), tokenizer.token_to_id("[UNK]"),
    )
    student = Student(config, tokenizer, data.label_names).to(device)
    vectors = None
    if start and not labels_alone and settings["embeddings"] == "teacher":
        teacher, vectors = start
        found = principal_components(vectors, config.embedding_dim).to(device) * (RANK == 0)
        runtime.sum_over_ranks([found])  # unlike processors may find other signs
        with torch.no_grad():
            student.embedding.weight[:, : found.size(1)] = found
            student.embedding.weight[config.pad_id] = 0
    count = sum(p.numel() for p in student.parameters())
    optimizer = torch.optim.AdamW(student.parameters(), settings["lr"], weight_decay=args.weight_decay,
                                  fused=device.type in ("cpu", "cuda"))

    window = next(store.windows(device))
    trial = window.batch(np.argsort(window.lengths)[-128:])
    del window

    def trial_step():
        logits = student(trial["input_ids"], trial["lengths"])
        F.cross_entropy(logits.float(), trial["labels"].clamp(min=0)).backward()
        optimizer.zero_grad()

    # A GPU's LSTM has no bf16 (student.lstm_states), and little else here would gain from it.
    wanted = "fp32" if args.precision == "auto" and device.type != "cpu" else args.precision
    precision = runtime.pick_precision(wanted, device, trial_step)

    # resume
    decisive = {name: getattr(args, name) for name in DECISIVE} | settings
    del decisive["tokenizer"]  # a path; the fingerprint tells
    tokenizer.no_padding()  # what encode set is not part of it
    tokenizer.no_truncation()
    made_by = runtime.made_by(decisive, data.what_was_read() | {
        "the tokenizer": runtime.fingerprint(tokenizer.to_str()),
        "the teacher's embeddings": "" if vectors is None else runtime.fingerprint(vectors)})
    at = {"epoch": 0, "step": 0, "rows": 0, "loss": 0.0, "seconds": 0.0, "best": {}, "log": ""}
    state = args.resume and runtime.resume(last, best_file, "student-resume", FORMAT, made_by, args)
    if state:
        at, precision = runtime.restore(last, state, student, optimizer, at)
        print(f"resuming {folder} after epoch {at['epoch']}, step {at['step']}")
    log = runtime.Log(folder / "log.jsonl", at["log"], args.tensorboard)
    if not at["log"]:
        log.begin(args, made_by, device, precision=precision)
    print(f"{folder}: {count:,} parameters, {rows_used:,} rows, "
          + ("labels alone" if labels_alone else f"alpha {settings['alpha']:g}, {settings['loss']}"
             + (f", T {settings['temperature']:g}" if settings["loss"] == "kl" else ""))
          + ("" if vectors is None else f", embeddings from {teacher}"))

    def save_last(**values):
        at.update(values, log=log.text)
        runtime.save({"kind": "student-resume", "format": FORMAT, "weights": student.state_dict(),
                      "optimizer": optimizer.state_dict(), "at": at, "precision": precision,
                      "made_by": made_by}, last)

    def diverged(epoch, step, window, rows):
        data.stop(epoch, step, window.numbers[rows], best_file, at["best"])

    # loop
    saves, watch = runtime.Saves(args.save_every, device), runtime.Watch(device, diverged)
    runtime.barrier(device)  # every rank has seen what is there before rank 0 changes it
    if not state:
        save_last()  # from here on the folder is this run's
        for name in ("diverged.tsv", *ROUNDED):
            (folder / name).unlink(missing_ok=True)
    for epoch in range(at["epoch"], args.epochs):
        student.train()
        rows_done, seconds_before = at["rows"], at["seconds"]
        total_loss = torch.tensor(at["loss"] / WORLD, device=device)
        progress = runtime.Progress(f"epoch {epoch + 1}/{args.epochs}", rows_used, "texts", rows_done)
        batches = training_batches(store, args.max_tokens, (settings["seed"], epoch), device, labels_alone)
        for step, (window, rows) in itertools.islice(enumerate(batches), at["step"], None):
            runtime.seed_everything(device, settings["seed"], epoch, step, RANK)
            mine = rows[RANK::WORLD]
            if len(mine):
                loss = batch_loss(student, window.batch(mine), settings, labels_alone, device, precision)
                (loss * (len(mine) / len(rows))).backward()
                total_loss += loss.detach() * len(mine)
            done = (epoch + (rows_done + len(rows) / 2) / rows_used) / args.epochs  # of the run, in (0, 1)
            scale = min(done / max(args.warmup, 1e-9), (1 - done) / (1 - args.warmup))
            for group in optimizer.param_groups:
                group["lr"] = settings["lr"] * scale
            runtime.sum_gradients(student.parameters())
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), args.clip)
            watch.step(total_loss + norm, epoch, step, window, rows)
            optimizer.step()
            optimizer.zero_grad()
            rows_done += len(rows)
            progress.add(len(rows), total_loss * WORLD)
            if saves.due(step):
                watch.finish()
                save_last(epoch=epoch, step=step + 1, rows=rows_done, loss=runtime.sum_of(total_loss),
                          seconds=seconds_before + progress.seconds)
                saves.done()
        watch.finish()
        seconds = progress.close()
        train_loss = runtime.sum_of(total_loss) / rows_used

        progress_valid = runtime.Progress("validate", len(encoded_valid), "texts")
        logits, scores = judge(student, encoded_valid, data, args, precision, progress_valid)
        progress_valid.close()
        accuracy = scores["valid_accuracy"]
        if not np.isfinite(scores["valid_loss"]):
            raise UserError(f"epoch {epoch + 1}: the validation loss is not finite; lower --lr"
                            + (f" ({best_file} is the best before)" if at["best"] else ""))
        if accuracy > at["best"].get("valid_accuracy", -1):
            at["best"] = {**scores, "epoch": epoch + 1}
            student.config.temperature = fit_temperature(logits, data.valid_labels)
            if RANK == 0:
                student.save(best_file, scores=at["best"], made_by=made_by)
        log.write(epoch + 1, train_loss=train_loss, **scores, seconds=round(seconds, 2))
        save_last(epoch=epoch + 1, step=0, rows=0, loss=0.0, seconds=seconds_before + seconds)
        print(f"epoch {epoch + 1}/{args.epochs}: train loss {train_loss:.4f}, validation loss "
              f"{scores['valid_loss']:.4f}, accuracy {accuracy:.2%} "
              f"(best {at['best']['valid_accuracy']:.2%}), {progress.counted / seconds:,.0f} texts/s "
              f"{precision}, {runtime.clock(seconds)}")
        sys.stdout.flush()
        saves.done()
    saves.close()
    log.close()
    for kind in args.quantize:
        quantize(kind, settings, folder, rows_used, store, encoded_valid, data, args, device, precision)
    return {"parameters": count, **at["best"], "seconds": round(at["seconds"], 1), "folder": str(folder)}


# ---- smaller files -----------------------------------------------------------------------------------------


@torch.no_grad()
def round_weights(student, kind: str) -> None:
    """Set every weight to what Student.load would find in a file of this precision."""
    for weight in student.parameters():
        if kind == "int8" and weight.dim() == 2:
            steps, scales = to_int8(weight)
            weight.copy_(steps.float() * scales.float())
        else:
            weight.copy_(weight.half())


def quantize(kind: str, settings: dict, folder: Path, rows_used: int, store: Store, encoded_valid: Encoded,
             data: TrainingSet, args, device, precision: str) -> None:
    """Write the best student in `kind`, fine-tuned if rounding to int8 costs more than HARM on validation."""
    runtime.barrier(device)  # rank 0 may still be writing it
    student = Student.load(folder / "student.pt", device)
    scores = student.artifact["scores"]

    def calibrate() -> dict:
        logits, scores = judge(student, encoded_valid, data, args, precision)
        student.config.temperature = fit_temperature(logits, data.valid_labels)
        return scores

    exact = {name: value.clone() for name, value in student.state_dict().items()}
    round_weights(student, kind)
    found, tried = calibrate(), ""
    rounded = found["valid_accuracy"]
    if kind == "int8" and scores["valid_accuracy"] - rounded > HARM:
        student.load_state_dict(exact)
        finetune_rounded(student, settings, rows_used, store, args, device, precision)
        found = calibrate()
        tried = f" (rounded {rounded:.2%}, then fine-tuned {found['valid_accuracy']:.2%})"
        if found["valid_accuracy"] <= rounded:
            student.load_state_dict(exact)
            round_weights(student, kind)
            found = calibrate()
    path = folder / f"student.{kind}.pt"
    if RANK == 0:
        student.save(path, kind, scores=scores | found, made_by=student.artifact["made_by"])
        print(f"{path}: {path.stat().st_size:,} bytes, validation accuracy {found['valid_accuracy']:.2%}, "
              f"float32 {scores['valid_accuracy']:.2%}{tried}")
    runtime.barrier(device)


def finetune_rounded(student, settings: dict, rows_used: int, store: Store, args, device,
                     precision: str) -> None:
    """An epoch at a tenth of the learning rate that ends in weights of int8.

    Forward and backward pass have rounded weights, the step changes the exact ones: the straight-through
    estimator, Bengio et al. (2013, arXiv 1308.3432).
    """
    labels_alone = settings["alpha"] == 1 or args.logits is None
    weights = list(student.parameters())
    optimizer = torch.optim.AdamW(weights, weight_decay=args.weight_decay)
    student.train()
    progress = runtime.Progress("fine-tune in int8", rows_used, "texts")
    batches = training_batches(store, args.max_tokens, (settings["seed"], args.epochs), device, labels_alone)
    for step, (window, rows) in enumerate(batches):
        runtime.seed_everything(device, settings["seed"], args.epochs, step, RANK)
        exact = [weight.detach().clone() for weight in weights]
        round_weights(student, "int8")
        mine = rows[RANK::WORLD]
        if len(mine):
            loss = batch_loss(student, window.batch(mine), settings, labels_alone, device, precision)
            (loss * (len(mine) / len(rows))).backward()
        runtime.sum_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, args.clip)
        with torch.no_grad():
            for weight, value in zip(weights, exact, strict=True):
                weight.copy_(value)
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] / 10 * (1 - progress.done / rows_used)
        optimizer.step()
        optimizer.zero_grad()
        progress.add(len(rows))
    progress.close()
    round_weights(student, "int8")


# ---- the grid ----------------------------------------------------------------------------------------------


def grid_settings(args) -> list[tuple[str, dict]]:
    """(folder name, settings) of each combination. The name tells sizes, and what differs within the grid."""
    grid = []
    for values in itertools.product(*(getattr(args, name) for name in GRID)):
        settings = dict(zip(GRID, values, strict=True))
        if settings["lr"] is None:
            settings["lr"] = RATES[settings["size"]]
        parts = [settings["size"]]
        for name, prefix in GRID.items():
            own_size = name in ("embedding_dim", "hidden_dim") and settings[name] is not None
            if name != "size" and (own_size or len(getattr(args, name)) > 1):
                value = Path(settings[name]).name if name == "tokenizer" else settings[name]
                parts.append(f"{prefix}{value:g}" if isinstance(value, float) else f"{prefix}{value}")
        grid.append(("-".join(parts).replace("vocab_size_", "v"), settings))
    folders = [name for name, _ in grid]
    for name in folders:
        if folders.count(name) > 1:
            raise UserError(f"two students of the grid would share the folder {name}; give each value once, "
                            f"tokenizers of one size in two runs with different --output-dir")
    for _, settings in grid:  # a value that cannot be is told now, not after the students before it
        StudentConfig(1, 1, *dimensions(settings), settings["num_layers"], settings["dropout"])
    return grid


def dimensions(settings: dict) -> tuple[int, int]:
    """(embedding_dim, hidden_dim): the size's, or the flag's where it is given."""
    embedding_dim, hidden_dim = SIZES[settings["size"]]
    own = settings["embedding_dim"], settings["hidden_dim"]
    return (embedding_dim if own[0] is None else own[0], hidden_dim if own[1] is None else own[1])


# ---- a budget of bytes -------------------------------------------------------------------------------------


def file_size(settings: dict, tokenizer, names: list[str], files: int, kind: str) -> int:
    """Bytes of a student's file in precision `kind`, trained on so many files."""
    config = StudentConfig(tokenizer.get_vocab_size(), len(names), *dimensions(settings),
                           settings["num_layers"], 0.0, settings["pooling"], settings["head"])
    with tempfile.TemporaryDirectory() as folder:
        Student(config, tokenizer, names).save(Path(folder, "student.pt"), kind, made_by=str(names))
        return Path(folder, "student.pt").stat().st_size + RESERVE[0] + RESERVE[1] * files


def candidates(args, tokenizers: dict, names: list[str]) -> list[dict]:
    """Settings worth a trial: for each vocabulary and embedding width the widest LSTM whose int8 file fits.

    One that is narrower than another of its vocabulary in both is left out.
    """
    common = {name: getattr(args, name)[0] for name in GRID}
    found, smallest = [], None
    for path, tokenizer in tokenizers.items():
        widest = 0
        for E in reversed(WIDTHS):
            def bytes_of(H, common=common | {"tokenizer": path, "embedding_dim": E}, tokenizer=tokenizer):
                return file_size(common | {"hidden_dim": H}, tokenizer, names, len(args.train), "int8")

            hidden = range(8, min(12 * E, 256) + 1, 8)  # narrow embeddings suit large vocabularies
            fitting = bisect.bisect_right(hidden, args.budget, key=bytes_of)
            if not fitting:
                smallest = min(bytes_of(8), smallest or bytes_of(8))
            elif hidden[fitting - 1] > widest and 2 * hidden[fitting - 1] >= E:
                widest = hidden[fitting - 1]
                found.append(common | {"tokenizer": path, "embedding_dim": E, "hidden_dim": widest})
    if not found:
        raise UserError(f"--budget: no student with these tokenizers is so small, the smallest has "
                        f"{smallest:,} bytes; train a smaller one (train_tokenizer.py --vocab-size)")
    for settings in found:
        settings["size"] = min(SIZES, key=lambda size: abs(SIZES[size][1] - settings["hidden_dim"]))
        settings["lr"] = settings["lr"] or RATES[settings["size"]]
    return found


def choose(trials: list[dict], results: list[dict], tokenizers: dict, names: list[str], args, path) -> tuple:
    """(settings, precision) of the best trial, and a table that says why."""
    rows = []
    for settings, result in zip(trials, results, strict=True):
        tokenizer = tokenizers[settings["tokenizer"]]
        rows.append({"tokenizer": settings["tokenizer"], "vocabulary": tokenizer.get_vocab_size(),
                     "embedding": settings["embedding_dim"], "hidden": settings["hidden_dim"],
                     "int8_bytes": file_size(settings, tokenizer, names, len(args.train), "int8")} | result)
    write_summary(rows, path)
    best = max(range(len(rows)), key=lambda i: (rows[i]["valid_accuracy"], -rows[i]["int8_bytes"]))
    settings, tokenizer = trials[best], tokenizers[trials[best]["tokenizer"]]
    sizes = {kind: file_size(settings, tokenizer, names, len(args.train), kind)
             for kind in ("float32", *PRECISIONS)}
    kind = next(kind for kind in sizes if sizes[kind] <= args.budget)
    print(f"chosen for {args.budget:,} bytes: a vocabulary of {tokenizer.get_vocab_size():,}, embedding "
          f"{settings['embedding_dim']}, hidden {settings['hidden_dim']}, the best of {len(rows)} after "
          f"{rows[best]['epoch']} of {args.epochs} epochs; {kind}, the finest precision that fits ("
          + ", ".join(f"{kind} {size:,}" for kind, size in sizes.items()) + " bytes)")
    return settings, kind


# ---- all of it ---------------------------------------------------------------------------------------------


def write_summary(rows: list[dict], path: Path) -> None:
    """One line a student, best validation accuracy first: printed, and saved as TSV."""
    rows = sorted(rows, key=lambda row: -row["valid_accuracy"])
    table = [list(rows[0])] + [[f"{value:.4f}" if name.startswith("valid_") else str(value)
                                for name, value in row.items()] for row in rows]
    runtime.save_together({path: "".join("\t".join(line) + "\n" for line in table)})
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"{path}: {len(rows)} students")


def main(args):
    device = runtime.connect(runtime.pick_device(args.device))
    if args.deterministic:
        runtime.be_deterministic()
    output_dir = Path(args.output_dir)
    jobs = [] if args.budget else [(output_dir / name, settings) for name, settings in grid_settings(args)]
    data = read_training_set(args)
    if 1 in args.alpha and not data.labelled:
        raise UserError("--alpha 1 trains on labels alone, but no --train file has any")
    teacher = embeddings_teacher(data, args)
    tokenizers = {path: read_tokenizer(path) for path in args.tokenizer}
    if args.budget:
        output_dir = output_dir / f"budget_{args.budget}"
        trials = candidates(args, tokenizers, data.label_names)
        names = [f"{Path(settings['tokenizer']).name}-e{settings['embedding_dim']}-h{settings['hidden_dim']}"
                 for settings in trials]
        jobs = [(output_dir / "trials" / name, trial) for name, trial in zip(names, trials, strict=True)]
        if len(set(names)) < len(names):
            raise UserError("--budget: two tokenizers have folders of one name; rename one")
    folders = [folder for folder, _ in jobs] + ([output_dir] if args.budget else [])
    summary = output_dir / ("trials.tsv" if args.budget else "summary.tsv") if len(folders) > 1 else None
    if summary:
        runtime.lock(summary.with_name(".summary.lock"), summary.name)
    for folder in folders:
        runtime.lock(folder / ".lock", "last.pt", "student.pt", *ROUNDED, "diverged.tsv")
    made = [folder / name for folder in folders
            for name in ("last.pt", "student.pt", *ROUNDED)]
    made += [summary] if summary else []
    runtime.refuse_to_read_and_write([*args.train, args.valid, *(args.logits or ()), *data.teachers], [
        *made, *(folder / name for folder in folders for name in ("log.jsonl", "diverged.tsv"))])
    if not (args.resume or args.overwrite):
        runtime.refuse_to_overwrite(*made)
    if args.overwrite:
        runtime.mark_replaced(*(folder / "last.pt" for folder in folders))
    print(f"labels {data.label_names}; {data.rows:,} training rows, {data.labelled:,} of them labelled; "
          f"{len(data.valid):,} for validation")
    encoded = {}  # what one tokenizer makes of the texts, and of the teacher's embeddings

    def train(folder, settings, **changes):
        path = settings["tokenizer"]
        if path not in encoded:
            encoded.clear()
            start = (teacher, teacher_embeddings(teacher, tokenizers[path])) if teacher else None
            store, valid = encode_training_set(data, encoder(tokenizers[path], args), args.output_dir)
            encoded[path] = tokenizers[path], start, store, valid.to(device)
            if not args.budget and path == args.tokenizer[-1]:
                data.logits.clear()  # the store has them: the mapped files need not stay in memory
        changed = argparse.Namespace(**vars(args) | changes)
        return train_student(settings, folder, *encoded[path], data, changed, device)

    if args.budget:
        results = [train(*job, epochs=max(1, args.epochs // 8)) for job in jobs]
        settings, kind = choose(trials, results, tokenizers, data.label_names, args, summary)
        result = train(output_dir, settings, quantize=[kind] if kind in PRECISIONS else [])
        path = output_dir / (f"student.{kind}.pt" if kind in PRECISIONS else "student.pt")
        if path.stat().st_size > args.budget:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than reckoned; lower --budget")
        print(f"{path}: {path.stat().st_size:,} bytes; validation accuracy in float32 "
              f"{result['valid_accuracy']:.2%}")
        return
    varied = [name for name in GRID if len(getattr(args, name)) > 1]
    results = [{key: settings[key] for key in varied} | train(folder, settings) for folder, settings in jobs]
    if summary:
        write_summary(results, summary)
    else:
        print(f"{results[0]['folder']}/student.pt: validation accuracy {results[0]['valid_accuracy']:.2%}")


if __name__ == "__main__":
    runtime.run(main, ARGS, errors=(StudentError,),
                memory="lower --max-tokens, --max-length or the student's size")
