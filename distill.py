"""Train BiLSTM students on a teacher's logits, on labels, or on both; keep the epoch best on validation.

    python distill.py --train data/nsmc/train.tsv --logits logits/train.pt --valid data/nsmc/valid.tsv \\
        --tokenizer tokenizer/vocab_size_3000
    python distill.py --train train.tsv unlabeled.tsv --logits logits/train.pt logits/unlabeled.pt …
    python distill.py --train train.tsv --alpha 1 …                       # labels only, no teacher
    python distill.py … --size base small tiny --seed 0 1 2               # the whole grid, then one table
    torchrun --nproc_per_node 2 distill.py …                              # several processes, one result

reads   training files, for each the logits that dump_logits.py (or any (N, C) tensor) gives its rows,
        a labelled validation file, a folder with tokenizer.json; the teachers, if they are there: they must
        be those that made the logits, and the student's embeddings start from the first teacher.pt's
writes  OUTPUT_DIR/NAME/student.pt (best epoch), last.pt (to continue), log.jsonl; OUTPUT_DIR/summary.tsv of
        all finished students there. NAME is the size and every grid setting that is not the default
again   the same command continues interrupted students and leaves finished ones alone: to add a seed or a
        size, add it to the command
next    python evaluate.py students/base/student.pt --data data/nsmc/test.tsv

A grid flag, marked +, takes several values; every combination is trained.
"""

import argparse

import flags

# Flag, and what it adds to the name of a student's folder when it is not the default.
GRID = {"tokenizer": "", "size": "", "pair": "", "embedding_dim": "e", "hidden_dim": "h", "num_layers": "l",
        "dropout": "d", "pooling": "", "head": "", "embeddings": "", "loss": "", "alpha": "alpha",
        "temperature": "T", "lr": "lr", "seed": "seed"}
DEFAULTS = {"size": "base", "pair": None, "embedding_dim": None, "hidden_dim": None, "num_layers": 1,
            "dropout": 0.0, "pooling": "last", "head": "linear", "embeddings": "teacher", "loss": "mse",
            "alpha": 0.1, "temperature": 2.0, "lr": None, "seed": 0}
OF_PAIRS = {"align": DEFAULTS | {"pair": "align", "head": "relu"},  # the one that files of pairs get
            "siamese": DEFAULTS | {"pair": "siamese", "head": "relu", "pooling": "max"}}
RATES = {"large": 4e-3, "base": 4e-3, "small": 8e-3, "mini": 16e-3, "tiny": 16e-3}


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument

    def grid(name, *, help, **options):
        shown = "" if DEFAULTS[name] is None else f" (default: {DEFAULTS[name]})"
        same = all(of_pairs[name] == DEFAULTS[name] for of_pairs in OF_PAIRS.values())
        default = DEFAULTS[name] if same else None  # else files and --pair decide
        arg(f"--{name.replace('_', '-')}", nargs="+", default=[default], help=f"+ {help}{shown}", **options)

    # data
    arg("--train", required=True, nargs="+", metavar="FILE", help="texts, with a label column or without")
    arg("--logits", nargs="+", metavar="FILE", help="logits of each --train file, in the same order")
    arg("--teacher", nargs="+", metavar="FILE",
        help="models that produced --logits (used to verify them); default: the paths stored in the logits")
    arg("--valid", required=True, metavar="FILE", help="labelled texts that choose the best epoch")
    flags.add_columns(arg, task=True)
    # artifacts
    arg("--tokenizer", required=True, nargs="+", metavar="DIR", help="+ folder with tokenizer.json")
    flags.add_run(arg, "students")
    # student
    grid("size", choices=list(RATES),
         help="embedding/hidden: large 128/256, base 64/128, small 32/64, mini 16/16, tiny 8/16; of pairs "
              "hidden is less, for as many parameters")
    grid("pair", choices=["siamese", "align"],
         help="how two texts are compared: by their vectors, or token by token (default, where the files "
              "have text2: align)")
    grid("embedding_dim", type=flags.count, metavar="N", help="instead of the size's")
    grid("hidden_dim", type=flags.count, metavar="N", help="of each direction, instead of the size's")
    grid("num_layers", type=flags.count, metavar="N", help="LSTM layers")
    grid("dropout", type=flags.share, metavar="P", help="on embeddings and before the head")
    grid("pooling", choices=["last", "max", "mean", "attention"],
         help="states to one vector; --pair siamese: default max; align has its own")
    grid("head", choices=["linear", "relu"], help="relu: one hidden layer, the paper's; pairs: default relu")
    grid("embeddings", type=flags.embeddings, metavar="teacher|random|FILE",
         help="where they start: from the first teacher.pt of the logits (at random without one, and for "
              "labels alone), at random, or from a teacher.pt or encoder, such as models/encoder")
    arg("--max-length", type=flags.count, default=128,
        help="tokens of a text, of each of a pair; the rest is cut (default: %(default)s)")
    arg("--start", metavar="STUDENT.pt",
        help="begin with the layers of this student, of the same tokenizer and shape; the head is new")
    # method
    grid("loss", choices=["mse", "kl"], help="soft part: squared error of logits, or T²·KL")
    grid("alpha", type=flags.weight, metavar="A", help="weight of the labels; 1: labels alone, no logits")
    grid("temperature", type=flags.positive, metavar="T", help="softens both distributions of the KL")
    flags.add_task(arg)
    # optimisation
    arg("--epochs", type=flags.count, default=8, help="default: %(default)s")
    grid("lr", type=flags.positive, metavar="R",
         help="peak learning rate; default: 4e-3 for large and base, 8e-3 small, 16e-3 mini and tiny")
    arg("--max-tokens", type=flags.count, default=4096,
        help="tokens per batch, padding included (default: %(default)s)")
    flags.add_optimizer(arg, warmup=0.05)
    grid("seed", type=flags.natural, metavar="N", help="of weights, order and dropout")
    # machine
    flags.add_training(arg)
    args = p.parse_args(argv)
    if args.logits is None and min(args.alpha) < 1:
        p.error("--logits are needed, one for each --train file (or --alpha 1 to train on labels alone)")
    if args.class_weights and min(args.alpha) == 0:
        p.error("--class-weights has no effect with --alpha 0; remove one of them")
    if args.start and args.embeddings != [DEFAULTS["embeddings"]]:
        p.error("--start has embeddings of its own; leave out --embeddings")
    if args.logits is not None and len(args.logits) != len(args.train):
        p.error(f"{len(args.train)} --train files but {len(args.logits)} --logits; "
                f"give one for each, in order")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import itertools
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer

import runtime
import tasks
from data import look
from data.batches import encode, inputs, logits_in_order, read_tokenizer, training_batches
from data.logits import fingerprints
from data.training import TrainingSet, encode_training_set, read_training_set
from runtime import RANK, WORLD, UserError
from student import Student, StudentConfig, StudentError, pack_tokenizer, widths
from teacher import Teacher, load_checkpoint

# With the grid's values and the contents of the files these decide the result.
DECISIVE = ("epochs", "max_length", "max_tokens", "warmup", "weight_decay", "clip", "deterministic",
            "class_weights", "best")
load = partial(runtime.load_model, loaders={"teacher": Teacher.load, "student": Student.load})


# ---- embeddings from the teacher --------------------------------------------------------------------------


def embeddings_source(source: str, data: TrainingSet, args) -> Teacher | None:
    """The Transformer that a value of --embeddings names; None: random.

    "teacher" is the first Transformer of those that teach and are there.
    """
    if source == "random":
        return None
    if source.endswith(".pt"):
        return Teacher.load(source)
    if source != "teacher":
        return load_checkpoint(source, [], args.max_length)[0]
    files = [file for file in data.teachers if args.teacher or runtime.is_model(file)] if data.logits else []
    teacher = next((model for model in map(load, files) if hasattr(model, "embeddings_of")), None)
    if teacher is None and len(set(args.embeddings)) > 1:
        raise UserError("--embeddings teacher: no teacher.pt among the teachers; leave teacher out" +
                        (", or name it with --teacher" if data.logits and not files else ""))
    if teacher is None and len(files) < len(data.teachers):
        runtime.warn("the teacher.pt of the logits is not there, so embeddings start at random; name it with "
                     "--teacher to start from its")
    elif teacher is None and files:
        runtime.warn("no Transformer is among the teachers, so embeddings start at random; --embeddings "
                     "models/encoder would start from those of the encoder that ships")
    return teacher


def principal_components(vectors, dim: int):
    """(V, D) -> (V, dim), or fewer if there are no more: along the directions in which the vectors differ
    most, each of variance 1, which is that of nn.Embedding's random ones."""
    centred = vectors - vectors.mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(vectors))  # the smallest first
    kept = variances.flip(0)[:dim] > 1e-6 * variances[-1]
    return centred @ axes.flip(1)[:, :dim][:, kept] / variances.flip(0)[:dim][kept].sqrt()


# ---- one student -------------------------------------------------------------------------------------------


def new_student(settings: dict, tokenizer: Tokenizer, vectors, task, args, device, start=None) -> Student:
    """A student before its first step. vectors: (V, D) of a teacher, for its embeddings to start from; start:
    another Student, whose layers it takes."""
    runtime.seed_everything(device, settings["seed"])
    config = StudentConfig(
        tokenizer.get_vocab_size(), len(task.names), *dimensions(settings), settings["num_layers"],
        settings["dropout"], settings["pooling"], settings["head"], args.max_length,
        tokenizer.token_to_id("[PAD]"), tokenizer.token_to_id("[UNK]"), pair=settings["pair"], **task.config)
    student = Student(config, tokenizer, task.names, tasks.name_of(task)).to(device)
    if vectors is not None:
        # All ranks take rank 0's result: the signs of eigenvectors differ between processors.
        found = principal_components(vectors, config.embedding_dim).to(device) * (RANK == 0)
        runtime.sum_over_ranks([found])
        with torch.no_grad():
            student.embedding.weight[:, : found.size(1)] = found
            student.embedding.weight[config.pad_id] = 0
    if start is not None:
        layers = {name: tensor for name, tensor in start.state_dict().items() if not name.startswith("head.")}
        student.load_state_dict(layers, strict=False)
    return student


def refuse_other_start(start: Student, path: str, settings: dict, tokenizer: Tokenizer) -> None:
    """A UserError that lists how --start differs, in what its layers depend on, from a student to train."""
    differing = [] if pack_tokenizer(start.tokenizer) == pack_tokenizer(tokenizer) else ["the tokenizer"]
    shape = dict(zip(("embedding_dim", "hidden_dim"), dimensions(settings), strict=True))
    shape |= {name: settings[name] for name in ("num_layers", "pooling", "pair")}
    for name, value in shape.items():
        if (found := getattr(start.config, name)) != value:
            differing.append(f"{name} ({found}, here {value})")
    if differing:
        raise UserError(f"--start {path} differs in {', '.join(differing)}; its layers do not fit")


def train(run: runtime.Run, student: Student, settings: dict, store, valid, data: TrainingSet, args,
          device) -> None:
    """The loop. Of each batch, this process takes its share of the rows.

    A window is the part of the data that is in memory, normally all of it; `rows` are indices into it.
    """
    task, labels_alone = data.task, settings["alpha"] == 1
    optimizer = torch.optim.AdamW([{"params": list(student.parameters()), "peak": settings["lr"]}],
                                  settings["lr"], weight_decay=args.weight_decay,
                                  fused=device.type in ("cpu", "cuda"))
    with run.start(student, optimizer, settings["seed"], data.name_row):
        for epoch in run.epochs(args.epochs):
            student.train()
            batches = training_batches(store, args.max_tokens, (settings["seed"], epoch), device,
                                       known_only=labels_alone)
            for window, rows in run.steps(batches, data.labelled if labels_alone else data.rows):
                share = rows[RANK::WORLD]
                if len(share):
                    batch = window.batch(share)
                    with runtime.autocast(device, run.precision):
                        logits = student(**inputs(batch))  # (B, C)
                    loss = tasks.distill_loss(task, logits.float(), batch, settings["alpha"],
                                              settings["loss"], settings["temperature"])
                    (loss * (len(share) / len(rows))).backward()
                    run.add(loss * len(share))
                runtime.sum_gradients(student.parameters())
                norm = torch.nn.utils.clip_grad_norm_(student.parameters(), args.clip)
                rate = runtime.schedule(run.fraction_done(len(rows)), args.warmup)
                run.step(norm, window.numbers[rows], rate)
            progress = runtime.Progress("validate", len(valid), "texts")
            logits = logits_in_order(student, valid, 4 * args.max_tokens, run.precision, progress)  # (N, C)
            progress.close()
            calibration = task.calibrate(logits, data.valid_target)
            if run.best(tasks.judge(task, logits, data.valid_target), task.best):
                vars(student.config).update(calibration)
                if RANK == 0:
                    student.save(run.artifact, scores=run.at["best"], made_by=run.made_by)


# ---- the grid ----------------------------------------------------------------------------------------------


def grid_settings(args, pairs: bool = False) -> list[tuple[str, dict]]:
    """(folder name, settings) of each combination, for files of pairs or of single texts."""
    if not pairs and any(args.pair):
        raise UserError("--pair is for files of pairs, but these have no column text2 (--text2-column)")
    grid = []
    for values in itertools.product(*(getattr(args, name) for name in GRID)):
        settings = dict(zip(GRID, values, strict=True))
        defaults = OF_PAIRS[settings["pair"] or "align"] if pairs else DEFAULTS
        settings = {name: defaults.get(name) if value is None else value for name, value in settings.items()}
        grid.append((folder_name(settings, defaults | {"pair": "align" if pairs else None}),
                     settings | {"lr": settings["lr"] or RATES[settings["size"]]}))
    folders = [name for name, _ in grid]
    for name in folders:
        if folders.count(name) > 1:
            raise UserError(f"two students of the grid would share the folder {name}; give each value once, "
                            f"tokenizers or embeddings of one name in two runs with different --output-dir")
    for _, settings in grid:  # an invalid value is refused before anything is trained
        StudentConfig(1, 1, *dimensions(settings), settings["num_layers"], settings["dropout"],
                      settings["pooling"], pair=settings["pair"])
    return grid


def folder_name(settings: dict, defaults: dict) -> str:
    """The size and every setting that is not the default, whatever else the grid has: small-alpha1-seed2.

    vocab_size_3000, which train_tokenizer.py makes, counts as the default tokenizer.
    """
    parts = [settings["size"]]
    tokenizer = Path(settings["tokenizer"]).resolve().name.replace("vocab_size_", "v")
    parts += [tokenizer] if tokenizer != "v3000" else []
    for name, default in defaults.items():
        if name != "size" and settings[name] != default:
            value = settings[name]
            if name == "embeddings":  # maybe a path
                value = Path(value).resolve().name.removesuffix(".pt")
            parts.append(f"{GRID[name]}{value:g}" if isinstance(value, float) else f"{GRID[name]}{value}")
    return "-".join(parts)


def dimensions(settings: dict) -> tuple[int, int]:
    """(embedding_dim, hidden_dim): the size's, or the flag's where it is given."""
    embedding_dim, hidden_dim = widths(settings["size"], settings["pair"])
    return settings["embedding_dim"] or embedding_dim, settings["hidden_dim"] or hidden_dim


def summary_row(path: Path, state: dict) -> dict:
    """A student's settings and scores, from the last.pt of its finished run."""
    at = state["at"]
    # A run of an older version has none of the three.
    arguments = {"class_weights": None, "best": None, "pair": None} | state["made_by"]["arguments"]
    return {name: arguments[name] for name in (*GRID, *DECISIVE) if name != "tokenizer"} | {
        "parameters": sum(tensor.numel() for tensor in state["weights"].values()),
        "valid_loss": at["best"]["valid_loss"], **{name: float(value) for name, value in at["best"].items()},
        "epoch": at["best"]["epoch"], "seconds": round(at["seconds"], 1), "folder": str(path)}


def write_summary(folder: Path, best: str) -> None:
    """A line for each finished student in the folder, that of the highest `best` (a score of the task) first:
    printed, and saved as summary.tsv."""
    rows, score = [], f"valid_{best}"
    for path, state in runtime.finished_runs(folder):
        try:
            if "size" in state["made_by"]["arguments"]:  # else a teacher's
                row = summary_row(path, state)
                rows += [row] if score in row else []  # else of another task
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            runtime.warn(f"{path}/last.pt: damaged, not in the summary ({error!r})")
    if len(rows) < 2:  # one student needs no table
        return
    shown = [name for name in (*GRID, *DECISIVE) if len({str(row.get(name)) for row in rows}) > 1]
    shown += ["parameters", "valid_loss", score, "epoch", "seconds", "folder"]
    rows.sort(key=lambda row: -row[score])
    table = [shown] + [[f"{row[name]:.4f}" if name.startswith("valid_") else str(row[name]) for name in shown]
                       for row in rows]
    path = folder / "summary.tsv"
    runtime.save_together({path: "".join("\t".join(line) + "\n" for line in table)})
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"{path}: {len(rows)} students")


def begin(grid, data: TrainingSet, start, tokenizers: dict, args, device) -> dict[str, list]:
    """{tokenizer: (run, settings, vectors for the embeddings) of each student that is not finished}.

    Every folder is locked, then looked at, before the first student is trained or replaced.
    """
    precision, jobs, vectors = runtime.pick_precision(args.precision, device, lstm=True), {}, {}
    sources = {} if start else {source: embeddings_source(source, data, args) for source in args.embeddings}
    for folder, _ in grid:
        runtime.lock(Path(args.output_dir, folder, ".lock"))
    for path, tokenizer in tokenizers.items():
        vocab = tokenizer.get_vocab()
        for source, teacher in sources.items():
            vectors[path, source] = teacher.embeddings_of(sorted(vocab, key=vocab.get)) if teacher else None
    for folder, settings in grid:
        path, source = settings["tokenizer"], settings["embeddings"]
        own = None if start or (source == "teacher" and settings["alpha"] == 1) else vectors[path, source]
        if start:
            refuse_other_start(start, args.start, settings, tokenizers[path])
        decisive = {flag: getattr(args, flag) for flag in DECISIVE} | settings
        del decisive["tokenizer"]  # a path; the fingerprint tells
        made_by = runtime.made_by(decisive, data.what_was_read() | {
            "the tokenizer": runtime.fingerprint(tokenizers[path].to_str()),
            "the teacher's embeddings": "" if own is None else runtime.fingerprint(own),
            "--start": fingerprints(start)["weights"] if start else None})
        run = runtime.Run(Path(args.output_dir, folder), "student.pt", made_by, args, device, precision)
        if run.finished:
            run.say_finished(data.task.best)
        else:
            jobs.setdefault(path, []).append((run, settings, own))
    return jobs


def main(args):
    device = runtime.connect(runtime.pick_device(args.device))
    if args.deterministic:
        runtime.be_deterministic()
    output = Path(args.output_dir)
    data = read_training_set(args, tasks, load)
    grid = grid_settings(args, data.pairs)
    start = Student.load(args.start) if args.start else None
    tasks.apply_flags(data.task, args, data.answers, data.valid.answers)
    if 1 in args.alpha and not data.labelled:
        raise UserError("--alpha 1 trains on labels alone, but no --train file has any")
    tokenizers = {path: read_tokenizer(path) for path in args.tokenizer}
    reads = {path: {"max_length": args.max_length, "pad_id": tokenizer.token_to_id("[PAD]"),
                    "blank_id": tokenizer.token_to_id("[UNK]"), "apart": data.pairs}
             for path, tokenizer in tokenizers.items()}
    print(look.tokenizers({path: (tokenizers[path], reads[path]) for path in reads}, data.files))
    runtime.refuse_to_overwrite_inputs(
        [*args.train, args.valid, *(args.logits or ()), *data.teachers, args.start],
        [output / name / file for name, _ in grid for file in ("last.pt", "student.pt", "log.jsonl")])
    jobs = begin(grid, data, start, tokenizers, args, device)
    for path, unfinished in jobs.items():
        tokenizer = tokenizers[path]
        store, valid = encode_training_set(data, partial(encode, tokenizer, **reads[path]), output)
        valid = valid.to(device)
        if path == list(jobs)[-1]:
            data.logits.clear()  # the store has them: the mapped files need not stay in memory
        for run, settings, own in unfinished:
            source = "the teacher" if settings["embeddings"] == "teacher" else settings["embeddings"]
            student = new_student(settings, tokenizer, own, data.task, args, device, start)
            print(f"{run.folder}: {sum(p.numel() for p in student.parameters()):,} parameters, "
                  + ("labels alone" if settings["alpha"] == 1 else f"alpha {settings['alpha']:g}")
                  + (f", layers from {args.start}" if start else "")
                  + ("" if own is None else f", embeddings from {source}"))
            train(run, student, settings, store, valid, data, args, device)
            score = run.at["best"][f"valid_{data.task.best}"]
            print(f"{run.artifact}: validation {data.task.best} {score:.4f}")
    if RANK == 0:
        write_summary(output, data.task.best)


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,), memory="lower --max-tokens, --max-length or the size")
