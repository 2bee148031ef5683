"""Run a fine-tuned teacher once over texts and keep its logits: row i of the tensor is row i of the file.

    python dump_logits.py --teacher teacher/teacher.pt --data data/nsmc/train.tsv   # -> logits/train.pt
    python dump_logits.py --teacher a.pt b.pt --data train.tsv unlabeled.tsv.gz     # mean of two teachers
    python dump_logits.py --teacher a.pt students/base/student.pt …     # a student may teach as well
    python dump_logits.py … --resume                                    # go on after an interruption
    python dump_logits.py … --append                                    # the file grew: its new rows alone
    python dump_logits.py … --check 100                                 # 100 random rows again, and compare
    torchrun --nproc_per_node 2 dump_logits.py …                        # several processes

reads   teacher.pt or student.pt (several: their logits are averaged); files with a text column, labels are
        not needed
writes  OUTPUT_DIR/NAME.pt for each data file NAME.tsv: logits (N, C), fingerprints of texts and teachers;
        until it is whole, finished parts are in OUTPUT_DIR/.NAME.shards
next    python distill.py --train data/nsmc/train.tsv --logits logits/train.pt --valid data/nsmc/valid.tsv …
"""

import argparse


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # artifacts
    arg("--teacher", required=True, nargs="+", metavar="FILE",
        help="teacher.pt or student.pt; of several the mean")
    arg("--data", required=True, nargs="+", metavar="FILE", help="texts (.tsv .csv .jsonl, also .gz)")
    arg("--output-dir", default="logits", metavar="DIR", help="default: %(default)s")
    arg("--dtype", default="float32", choices=["float32", "float16"],
        help="of the file; float16 halves it (default: %(default)s)")
    again = p.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the parts that are not finished")
    again.add_argument("--overwrite", action="store_true", help="start anew where logits are")
    again.add_argument("--check", type=int, metavar="N",
                       help="write nothing: compute N random rows again and compare")
    arg("--append", action="store_true", help="add the rows that a file has more than its logits")
    # data
    arg("--text-column", metavar="NAME", help="default: text or document")
    arg("--text2-column", metavar="NAME", help="second text of a pair; default: text2 if there")
    arg("--label-column", metavar="NAME",
        help="default: label if there; only to print the teacher's accuracy")
    # machine
    arg("--max-tokens", type=int, default=8192,
        help="tokens of a batch, padding counted (default: %(default)s)")
    arg("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: %(default)s")
    arg("--precision", default="auto", choices=["auto", "fp32", "bf16"],
        help="auto takes bf16 on a GPU that has it, or where a trial on a CPU shows it to pay "
        "(default: %(default)s)")
    args = p.parse_args(argv)
    if not 1 <= args.max_tokens < 2**31 or (args.check is not None and args.check < 1):
        p.error("--max-tokens and --check must be at least 1")
    if args.append and (args.overwrite or args.check):
        p.error("--append goes with neither --overwrite nor --check")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import os
import shutil
from pathlib import Path

import numpy as np
import torch

import runtime
from data.batching import logits_in_order, token_batches
from data.examples import Survey, fingerprint_of_first, read_again, stem, stream_examples, survey
from data.training import LOGITS_FORMAT
from runtime import UserError
from teacher import Assistant, Teacher, load_model

FORMAT = 2  # of plans and parts
SHARD = 4  # rows of a part, saved when it is finished, for each of --max-tokens: about 100 batches


def output_paths(data: list[str], output_dir: str) -> list[Path]:
    """train.tsv.gz -> OUTPUT_DIR/train.pt; two files that would share one name are refused."""
    paths = [Path(output_dir, stem(file) + ".pt") for file in data]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"{data[paths.index(path)]} and {data[i]} would both be written to {path}; "
                            f"dump them in two runs with different --output-dir")
    return paths


def shards_of(path: Path) -> Path:
    """The folder of the finished parts of a file that is not whole yet."""
    return path.with_name(f".{path.stem}.shards")


def load_teachers(paths: list[str], device) -> list[Teacher | Assistant]:
    """Models whose logits can be averaged: they have the same classes in the same order."""
    teachers = [load_model(path, device) for path in paths]
    for path, teacher in zip(paths, teachers, strict=True):
        if teacher.label_names != teachers[0].label_names:
            raise UserError(f"{path}: labels {teacher.label_names} differ from {teachers[0].label_names} of "
                            f"{paths[0]}; averaged teachers need the same labels in the same order")
    return teachers


def choose_precision(teachers: list, file: Survey, columns: tuple, args, device) -> str:
    """By a trial of all teachers on the longest of the file's first rows."""
    part = next(stream_examples(file.path, *columns))
    batches = []
    for teacher in teachers:
        encoded = teacher.encode(part.texts, part.texts2).to(device)
        batches.append(encoded.batch(token_batches(encoded.lengths, args.max_tokens)[0]))
    with torch.inference_mode():
        return runtime.pick_precision(args.precision, device, lambda: [
            teacher(**batch) for teacher, batch in zip(teachers, batches, strict=True)])


def mean_logits(teachers: list, texts, texts2, precision: str, args, device, progress=None):
    """(N, C) float32: the mean of the teachers' logits."""
    logits = 0
    for teacher in teachers:
        encoded = teacher.encode(texts, texts2).to(device)
        logits += logits_in_order(teacher, encoded, args.max_tokens, precision, progress) / len(teachers)
    return logits


def read_logits(path: Path) -> dict:
    """A logits file of this kit. Raises UserError."""
    made = runtime.load(path, "logits", LOGITS_FORMAT,
                        ("logits", "label_names", "texts", "teachers", "precision"))
    values = made["logits"]
    if not torch.is_tensor(values) or values.dim() != 2 or len(values) < 1 or not values.is_floating_point() \
            or not isinstance(made["label_names"], list) or values.size(1) != len(made["label_names"]):
        raise UserError(f"{path}: damaged, its logits are no (N, C) tensor; --overwrite makes it anew")
    refuse_damaged(path, made)
    return made


def refuse_damaged(path: Path, made: dict) -> None:
    """A UserError when what logits and the plan of unfinished ones have in common cannot be read."""
    if not isinstance(made["teachers"], list) \
            or not all(isinstance(item, dict) for item in made["teachers"]) \
            or made["precision"] not in ("fp32", "bf16") or made.get("first", 0).__class__ is not int:
        raise UserError(f"{path}: damaged, its teachers cannot be read; --overwrite makes it anew")


def differences_of(teachers: list) -> dict:
    """The fingerprints of teachers under names that a message can list."""
    return {f"the {name} of teacher {i}": value for i, teacher in enumerate(teachers, 1)
            for name, value in dict(teacher).items()} | {"the number of teachers": len(teachers)}


def refuse_others(path: Path, made: dict, now: dict, args) -> None:
    """A UserError when `made` (logits, or the plan of unfinished ones) is of other teachers or settings."""
    precision = made["precision"] if args.precision == "auto" else args.precision
    now = now | {"precision": precision}
    runtime.refuse_other_values(
        path, made | differences_of(made["teachers"]),
        differences_of(now["teachers"]) | {name: now[name] for name in now if name != "teachers"})


def begin(file: Survey, columns: tuple, teachers: list, path: Path, folder: Path, args, device):
    """(logits that are there, number of rows they are, plan): what dump() has to go on from.

    The plan is None when the file is whole.
    """
    now = {"teachers": [teacher.fingerprints() for teacher in teachers],
           "label_names": teachers[0].label_names, "dtype": args.dtype}
    plan_file, going_on = folder / "plan.pt", args.resume or args.append
    plan = old = None
    replacing = going_on and runtime.is_marked(plan_file)
    if plan_file.exists() and going_on and not replacing:
        plan = runtime.load(plan_file, "logits-plan", FORMAT,
                            [*now, "texts", "max_tokens", "first", "precision"])
        refuse_damaged(plan_file, plan)
        if plan["first"] and plan["texts"] != file.fingerprint:  # it has grown again since
            if not args.append:
                raise UserError(f"{path}: {file.path} has changed since an --append was interrupted; "
                                f"--append begins that anew")
            plan = None
    elif not (going_on or args.overwrite) and any(folder.glob("[0-9]*.pt")):
        runtime.refuse_to_overwrite(folder)
    if path.exists() and going_on and not replacing:
        try:
            old = read_logits(path)
        except UserError:
            if plan is None or plan["first"]:
                raise  # else it is what an interrupted --overwrite is to replace
    runtime.barrier(device)  # every rank has seen what is there before rank 0 changes it
    # A plan from row 0 on is one to replace what is there, however whole it looks.
    if old and old["texts"] == file.fingerprint and (plan is None or plan["first"]):
        refuse_others(path, old, now, args)
        if len(old["logits"]) != file.rows:
            raise UserError(f"{path}: damaged, {len(old['logits'])} of {file.rows} rows; --overwrite makes "
                            f"it anew")
        return old, file.rows, None
    now |= {"texts": file.fingerprint, "max_tokens": args.max_tokens}
    if plan:
        refuse_others(plan_file, plan, now, args)
        old = old if plan["first"] else None  # what an interrupted --overwrite replaces does not count
        if plan["first"] != (len(old["logits"]) if old else 0):
            raise UserError(f"{path}: is not the one that the interrupted run began to extend; --overwrite "
                            f"makes it anew")
        return old, plan["first"], plan
    first, precision = 0, None
    if old:
        first, precision = len(old["logits"]), old["precision"]
        refuse_others(path, old, {name: now[name] for name in ("teachers", "label_names", "dtype")}, args)
        if first >= file.rows or old["texts"] != fingerprint_of_first(first, file.path, *columns):
            raise UserError(f"{path}: is of other texts than those of {file.path}; --overwrite makes it anew")
        if not args.append:
            raise UserError(f"{path}: has {first:,} of the {file.rows:,} rows of {file.path}; --append adds "
                            f"the rest")
    if runtime.RANK == 0:
        for part in folder.glob("[0-9]*.pt"):  # not the plan, which may be a mark, before there is a new one
            part.unlink()
    plan = {"kind": "logits-plan", "format": FORMAT, **now, "first": first,
            "precision": precision or choose_precision(teachers, file, columns, args, device)}
    runtime.save(plan, plan_file)
    runtime.barrier(device)  # no rank looks for parts before the earlier ones are gone
    return old, first, plan


def dump(file: Survey, columns: tuple, teachers: list, path: Path, args, device) -> None:
    """Write the logits of a file, going on from the shards that an earlier run finished."""
    folder = shards_of(path)
    old, first, plan = begin(file, columns, teachers, path, folder, args, device)
    if plan is None:
        if runtime.RANK == 0:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{path}: is whole, {first:,} rows")
        return
    precision = plan["precision"]
    names = teachers[0].label_names
    dtype = getattr(torch, args.dtype)
    size = max(1, round(SHARD * args.max_tokens))
    progress = runtime.Progress(Path(file.path).name, (file.rows - first) * len(teachers), "texts")
    shards, right, labelled, row, resumed = [], 0, 0, 0, 0
    for number, part in enumerate(read_again(file, *columns, chunk=size)):
        row += len(part)
        if row <= first:
            continue
        part = part.after(max(0, len(part) - (row - first)))
        shard_file, texts, shard = folder / f"{number:06}.pt", part.fingerprint(), None
        if shard_file.exists():
            shard = runtime.load(shard_file, "logits-shard", FORMAT, ["logits", "texts"])
        if shard and shard["texts"] == texts:  # else the file was another one when it was computed
            logits = shard["logits"]
            shape = len(part), len(names)
            if not torch.is_tensor(logits) or logits.dtype != dtype or logits.shape != shape:
                raise UserError(f"{shard_file}: damaged; delete it and run again")
            resumed += len(part)
        else:
            logits = mean_logits(teachers, part.texts, part.texts2, precision, args, device, progress)
            logits = logits.to(dtype)
            if not logits.isfinite().all():
                bad = int((~logits.isfinite()).any(1).nonzero()[0])
                raise UserError(f"{file.path}:{part.lines[bad]}: the logits of this row are not finite in "
                                f"{args.dtype}; try --dtype float32 --precision fp32")
            runtime.save({"kind": "logits-shard", "format": FORMAT, "logits": logits, "texts": texts},
                         shard_file)
        label_ids = torch.tensor(part.label_ids(names))  # -1 without label
        right += int((logits.argmax(1) == label_ids).sum())
        labelled += int((label_ids >= 0).sum())
        shards.append(logits)
    seconds = progress.close()
    logits = torch.cat([old["logits"], *shards] if old else shards)
    runtime.barrier(device)  # every rank has read the shards
    # Relative to the logits: right whatever folder a later script runs in.
    teacher_files = [os.path.relpath(teacher, path.parent) for teacher in args.teacher]
    runtime.save({
        "kind": "logits", "format": LOGITS_FORMAT, "logits": logits, "label_names": names,
        "texts": plan["texts"], "teachers": plan["teachers"], "teacher_files": teacher_files,
        "dtype": args.dtype, "precision": precision,
        "made_by": runtime.made_by({"max_tokens": args.max_tokens}, {}),
    }, path)
    if runtime.RANK == 0:
        (folder / "plan.pt").unlink()  # first: without it what is left of the folder is litter
        shutil.rmtree(folder)
        print(f"{file.path}: {progress.done / len(teachers) / seconds:,.0f} texts/s {precision}, "
              f"{runtime.clock(seconds)}"
              + (f", {resumed:,} rows were there" if resumed else "")
              + (f", accuracy {right / labelled:.2%} of {labelled:,} labelled rows" if labelled else ""))
        print(f"{path}: logits of {len(logits):,} rows, {path.stat().st_size:,} bytes")


def check(file: Survey, columns: tuple, teachers: list, path: Path, args, device) -> None:
    """Compute args.check random rows of a logits file again. A UserError names the first that differs.

    Rows in another batch are rounded otherwise: float32 logits may differ by 0.001 (1 + their size), bf16
    ones by 0.1.
    """
    made, names = read_logits(path), teachers[0].label_names
    refuse_others(path, made, {"teachers": [teacher.fingerprints() for teacher in teachers],
                               "label_names": names}, args)
    if made["texts"] != file.fingerprint:
        raise UserError(f"{path}: is of other texts than {file.path}; --append adds rows that are new, "
                        f"--overwrite makes it anew")
    stored = made["logits"].float()
    if stored.shape != (file.rows, len(names)):
        raise UserError(f"{path}: damaged, {list(stored.shape)} logits; --overwrite makes it anew")
    chosen = np.sort(np.random.default_rng().permutation(file.rows)[: args.check])
    texts, texts2, lines, row = [], [], [], 0
    for part in read_again(file, *columns):
        inside = chosen[(chosen >= row) & (chosen < row + len(part))] - row
        texts += [part.texts[i] for i in inside]
        texts2 += [part.texts2[i] for i in inside] if file.pairs else []
        lines += [part.lines[i] for i in inside]
        row += len(part)
    again = mean_logits(teachers, texts, texts2 if file.pairs else None, made["precision"], args, device)
    stored = stored[torch.from_numpy(chosen)]
    difference = (again - stored).abs()
    allowed = (0.1 if "bf16" in made["precision"] else 1e-3) * (1 + stored.abs())
    wrong = (~(difference <= allowed)).any(1).nonzero()[:, 0].tolist()  # NaN is wrong
    if wrong:
        i = wrong[0]
        raise UserError(f"{path}: {len(wrong)} of {len(chosen)} rows are wrong, first row {chosen[i]} "
                        f"({file.path}:{lines[i]}): {[round(v, 4) for v in stored[i].tolist()]}, computed "
                        f"again {[round(v, 4) for v in again[i].tolist()]}; --overwrite makes it anew")
    print(f"{path}: {len(chosen):,} of {file.rows:,} rows computed again in {made['precision']}, all agree "
          f"(largest difference {difference.max():.2g})")


def main(args):
    device = runtime.connect(runtime.pick_device(args.device))
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # TF32 rounds more than --check allows
    paths = output_paths(args.data, args.output_dir)
    columns = args.text_column, args.text2_column, args.label_column
    files = [survey(file, *columns) for file in args.data]
    teachers = load_teachers(args.teacher, device)
    names = teachers[0].label_names
    for file in files:
        file.refuse_other_labels(names, *columns)
    if not args.check:
        runtime.refuse_to_read_and_write([*args.data, *args.teacher], paths)
        for path in paths:
            runtime.lock(path.with_name(f".{path.stem}.lock"), path.name)
            if not (args.resume or args.append or args.overwrite) and path.exists():
                raise UserError(f"{path}: is there already; --append if its file grew, --check to test it, "
                                f"--overwrite to start anew")
        if args.overwrite:
            for path in paths:
                if runtime.RANK == 0:
                    shutil.rmtree(shards_of(path), ignore_errors=True)
                runtime.mark_replaced(shards_of(path) / "plan.pt")
    work = check if args.check else dump
    try:
        for path, file in zip(paths, files, strict=True):
            work(file, columns, teachers, path, args, device)
    except KeyboardInterrupt as stopped:
        if args.check:
            raise
        raise runtime.Stopped(getattr(stopped, "code", 130),
                              f"finished parts are saved; {runtime.how_to_go_on()}") from None


if __name__ == "__main__":
    runtime.run(main, ARGS, memory="lower --max-tokens")
