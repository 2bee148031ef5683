"""Run a fine-tuned teacher once over texts and keep its logits: row i of the tensor is row i of the file.

    python dump_logits.py --teacher teacher/teacher.pt --data data/nsmc/train.tsv   # -> logits/train.pt
    python dump_logits.py --teacher a.pt b.pt --data train.tsv unlabeled.tsv.gz     # mean of two teachers
    python dump_logits.py --teacher a.pt students/base/student.pt …     # a student can teach too
    python dump_logits.py --teacher my-classifier …                     # published: a folder or a hub id
    python dump_logits.py … --check 100                                 # compute 100 random rows again
    torchrun --nproc_per_node 2 dump_logits.py …                        # several processes

reads   teacher.pt, student.pt or a published classifier (a folder, a hub id) with the names of its labels;
        the logits of several are averaged; files with a text column, labels are not needed
writes  OUTPUT_DIR/NAME.pt for each data file NAME.tsv: logits (N, C), fingerprints of texts and teachers.
        Until it is complete, finished blocks of 8,192 rows are in OUTPUT_DIR/.NAME.blocks
again   the same command computes the blocks that are missing: after an interruption, or when the file grew
next    python distill.py --train data/nsmc/train.tsv --logits logits/train.pt --valid data/nsmc/valid.tsv …
"""

import argparse

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # artifacts
    arg("--teacher", required=True, nargs="+", metavar="FILE",
        help="teacher.pt, student.pt, or a published classifier; the logits of several are averaged")
    arg("--data", required=True, nargs="+", metavar="FILE", help="texts (.tsv .csv .jsonl, also .gz)")
    arg("--output-dir", default="logits", metavar="DIR", help="default: %(default)s")
    arg("--dtype", default="float32", choices=["float32", "float16"],
        help="of the file; float16 halves it (default: %(default)s)")
    again = p.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="replace existing logits")
    again.add_argument("--check", type=flags.count, metavar="N",
                       help="write nothing: compute N random rows again and compare")
    # data
    flags.add_columns(arg, "label, labels or score if there; only to print how good they are", task=True)
    # machine
    arg("--max-tokens", type=flags.count,
        help="tokens per batch, padding included (default: 1024 for a Transformer on the CPU, else 8192)")
    flags.add_machine(arg)
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

import runtime
import tasks
from data import look
from data.batches import encode, logits_in_order
from data.examples import Examples, Survey, fingerprint_of_first, read_again, stem, survey
from data.logits import Logits, compare_with_labels, fingerprints, read_logits, write_logits
from runtime import RANK, WORLD, UserError
from student import Student, StudentError
from teacher import Teacher

BLOCK = 8192  # rows of a block; batches do not cross blocks, so that a block's bits depend on its texts alone
FEW = 16  # rows that tell how long all will take
load = partial(runtime.load_model, loaders={"teacher": partial(Teacher.load, mapped=True),
                                            "student": Student.load})


def output_paths(data: list[str], output_dir: str) -> list[Path]:
    """train.tsv.gz -> OUTPUT_DIR/train.pt; two files that would share one name are refused."""
    paths = [Path(output_dir, stem(file) + ".pt") for file in data]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"{data[paths.index(path)]} and {data[i]} would both be written to {path}; "
                            f"dump them in two runs with different --output-dir")
    return paths


def load_teachers(paths: list[str], device) -> list:
    """Models whose logits can be averaged: they have the same task and the same outputs."""
    teachers = [load(path, device=device) for path in paths]
    for path, teacher in zip(paths, teachers, strict=True):
        if (teacher.task, sorted(teacher.label_names)) != (teachers[0].task, sorted(teachers[0].label_names)):
            raise UserError(f"{path}: its labels {teacher.label_names} differ from {teachers[0].label_names} "
                            f"of {paths[0]}; averaged teachers need the same labels")
    return teachers


def task_of(teachers: list, file: Survey, args):
    """The task of the teachers, which is that of the file's answers. A single one has its thresholds."""
    model, path = teachers[0], args.teacher[0]
    task = tasks.make(file.column, {}, file.path, (model.task, model.label_names, path), args.task)
    return tasks.of_model(model, path) if len(teachers) == 1 else task


def settings_of(made_by: list[dict], dtype: str) -> dict:
    """What logits depend on, under names that a message can list. made_by: fingerprints() of each teacher."""
    return {f"the {name} of teacher {i}": value for i, one in enumerate(made_by, 1)
            for name, value in one.items()} | {"the number of teachers": len(made_by), "--dtype": dtype}


def mean_logits(teachers: list, texts, texts2, precision: str, args, device, progress=None):
    """(N, C) float32: the mean of the teachers' logits."""
    logits = 0
    for teacher in teachers:
        encoded = encode(teacher.tokenizer, texts, texts2, **teacher.reads).to(device)
        order = [teacher.label_names.index(name) for name in teachers[0].label_names]
        found = logits_in_order(teacher, encoded, args.max_tokens, precision, progress)  # (N, C)
        logits += found[:, order] / len(teachers)
    return logits


class Dump:
    """The logits of one file: what is there, what is missing, and how to make it."""

    def __init__(self, file: Survey, columns: tuple, teachers: list, made_by: list[dict], task, path: Path,
                 args, device):
        """Read what is at `path`. Raises UserError where it was made of other texts or in another way.

        made_by: fingerprints() of each teacher.
        """
        self.file, self.columns, self.teachers, self.made_by = file, columns, teachers, made_by
        self.task, self.path, self.args, self.device = task, path, args, device
        self.blocks = path.with_name(f".{path.stem}.blocks")
        self.tombstone = self.blocks / "overwrite"  # so that a killed --overwrite does not keep the old file
        self.settings = settings_of(made_by, args.dtype)
        replaced = args.overwrite or (self.tombstone.exists() and not args.check)
        self.old = read_logits(path) if path.exists() and not replaced else None
        self.precision = runtime.pick_precision(args.precision, device, all(
            isinstance(teacher, Student) for teacher in teachers))
        if self.old:
            self._look()

    def _look(self) -> None:
        old = self.old
        if old.bare:
            raise UserError(f"{self.path}: a bare tensor, not made by this script; --overwrite replaces it, "
                            f"another --output-dir keeps it")
        if self.args.precision == "auto":  # decided once
            self.precision = old.precision
        before = settings_of(old.teachers, str(old.values.dtype).removeprefix("torch."))
        runtime.refuse_other_values(self.path, before | {"--precision": old.precision},
                                    self.settings | {"--precision": self.precision})
        self.complete = old.texts == self.file.fingerprint and len(old.values) == self.file.rows
        rows = len(old.values)
        if not self.complete and not (rows < self.file.rows and old.texts == fingerprint_of_first(
                rows, self.file.path, *self.columns)):
            raise UserError(f"{self.path}: made from other texts than {self.file.path} now has (only rows "
                            f"added at its end are computed alone); --overwrite replaces it")

    def name_of(self, part: Examples) -> str:
        """SHA-256 of all that decides the bits of a block."""
        decisive = {**self.settings, "--precision": self.precision, "--max-tokens": self.args.max_tokens}
        return runtime.fingerprint(f"{part.fingerprint()} {sorted(decisive.items())}")

    def found(self, number: int, name: str, rows: int) -> torch.Tensor | None:
        """The logits of a block that was computed before, or None."""
        if self.old and self.old.blocks[number : number + 1] == [name]:
            return self.old.values[number * BLOCK : number * BLOCK + rows]
        file = self.blocks / f"{name}.pt"
        if not file.exists():
            return None
        logits = runtime.load_weights(file)
        if not torch.is_tensor(logits) or logits.shape != (rows, len(self.task.names)):
            raise UserError(f"{file}: damaged; delete it and run again")
        return logits

    def compute(self, part: Examples, progress) -> torch.Tensor:
        logits = mean_logits(self.teachers, part.texts, part.texts2, self.precision, self.args, self.device,
                             progress).to(getattr(torch, self.args.dtype))
        if not logits.isfinite().all():
            bad = int((~logits.isfinite()).any(1).nonzero()[0])
            raise UserError(f"{self.file.path}:{part.lines[bad]}: the logits of this row are not finite in "
                            f"{self.args.dtype}; use --dtype float32 --precision fp32")
        return logits

    def expect(self, part: Examples, rows: int) -> None:
        """Print how long `rows` will take, by a few of `part`, which are computed first."""
        few = part.take(range(0, len(part), -(-len(part) // FEW)))
        for some in (few.take([0]), few):  # the first one is to warm up
            start = time.perf_counter()
            for teacher in self.teachers:
                teacher.logits(some.texts, some.texts2, self.args.max_tokens, self.precision)
        seconds = (time.perf_counter() - start) / len(few) * rows / WORLD
        print(f"{self.file.path}: about {runtime.clock(seconds)} for {rows:,} rows in {self.precision}",
              flush=True)

    def write(self) -> None:
        """Compute the missing blocks and write the file."""
        progress = runtime.Progress(Path(self.file.path).name, self.file.rows * len(self.teachers), "texts")
        names, blocks, reused, total, labelled = [], [], 0, 0, 0
        for number, part in enumerate(read_again(self.file, *self.columns, chunk=BLOCK)):
            names.append(self.name_of(part))
            logits = self.found(number, names[-1], len(part))
            if logits is None:
                if not progress.done:
                    self.expect(part, progress.total // len(self.teachers))
                    progress.start = time.perf_counter()  # its rate is of what follows
                logits = self.compute(part, progress)
                runtime.save(logits, self.blocks / f"{names[-1]}.pt")
                runtime.barrier(self.device)  # a next block of the same texts is then there for every rank
            else:
                reused += len(part)
                progress.total -= len(part) * len(self.teachers)
            blocks.append(logits)
            target, known = part.targets(self.task)
            total = total + self.task.statistics(logits[known].float(), target[known]).sum(0)  # (S,)
            labelled += int(known.sum())
        seconds = progress.close()
        logits = Logits(torch.cat(blocks), self.task.names, self.teachers[0].task, self.file.fingerprint,
                        self.made_by, self.args.teacher, self.precision, names, str(self.path))
        runtime.barrier(self.device)  # every rank has read the blocks
        write_logits(self.path, logits, runtime.made_by({"max_tokens": self.args.max_tokens}, {}))
        if RANK == 0:
            shutil.rmtree(self.blocks, ignore_errors=True)
        rate = progress.done / len(self.teachers) / seconds
        print(f"{self.file.path}: {rate:,.0f} texts/s {self.precision}, {runtime.clock(seconds)}"
              + (f", {reused:,} rows were there already" if reused else "")
              + (f", {self.task.best} {self.task.scores(total / labelled)[self.task.best]:.4f} on "
                 f"{labelled:,} labelled rows" if labelled else ""))
        print(f"{self.path}: logits of {len(logits.values):,} rows" + (
            f", {self.path.stat().st_size:,} bytes" if RANK == 0 else ""))
        compare_with_labels(logits, self.file.head, self.task)

    def check(self) -> None:
        """Compute --check random rows again. A UserError names the first that differs.

        Rows in another batch are rounded otherwise: float32 logits may differ by 0.001 (1 + their size), bf16
        ones by 0.1.
        """
        if not self.old or not self.complete:
            raise UserError(f"{self.path}: not there, or not complete; run without --check first")
        count = min(self.args.check, self.file.rows)
        chosen = np.sort(np.random.default_rng().permutation(self.file.rows)[:count])
        texts, texts2, lines, row = [], [], [], 0
        for part in read_again(self.file, *self.columns):
            inside = part.take(chosen[(chosen >= row) & (chosen < row + len(part))] - row)
            texts += inside.texts
            texts2 += inside.texts2 or []
            lines += inside.lines
            row += len(part)
        again = mean_logits(self.teachers, texts, texts2 or None, self.old.precision, self.args, self.device)
        stored = self.old.values[torch.from_numpy(chosen)].float()
        difference = (again - stored).abs()
        allowed = (0.1 if self.old.precision == "bf16" else 1e-3) * (1 + stored.abs())
        wrong = (~(difference <= allowed)).any(1).nonzero()[:, 0].tolist()  # NaN is wrong
        if wrong:
            i = wrong[0]
            values, now = ([round(v, 4) for v in rows[i].tolist()] for rows in (stored, again))
            raise UserError(f"{self.path}: {len(wrong)} of {count} rows are wrong, the first is row "
                            f"{chosen[i]} ({self.file.path}:{lines[i]}): {values}, computed again {now}; "
                            f"--overwrite replaces them")
        print(f"{self.path}: {count:,} of {self.file.rows:,} rows computed again in {self.old.precision}, "
              f"all agree (largest difference {difference.max():.2g})")


def main(args):
    device = runtime.connect(runtime.pick_device(args.device))
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # TF32 rounds more than --check allows
    paths = output_paths(args.data, args.output_dir)
    columns = tasks.columns(args)
    files = [survey(file, *columns) for file in args.data]
    teachers = load_teachers(args.teacher, device)
    if args.max_tokens is None:  # a larger batch does not fit in a CPU's caches, at a cost of 10 to 50 %
        slim = device.type == "cpu" and any(isinstance(teacher, Teacher) for teacher in teachers)
        args.max_tokens = 1024 if slim else 8192
    for file in files:
        task = task_of(teachers, file, args)
        file.refuse_other_answers(task, *columns)
    print(*look.files(files, columns, task), sep="\n")
    print(look.tokenizers({path: (teacher.tokenizer, teacher.reads) for path, teacher in zip(
        args.teacher, teachers, strict=True)}, files))
    runtime.refuse_to_overwrite_inputs([*args.data, *args.teacher], paths)
    dumps, made_by = [], [fingerprints(teacher) for teacher in teachers]
    for path, file in zip(paths, files, strict=True):
        if not args.check:
            runtime.lock(path.with_name(f".{path.stem}.lock"), path.name)
        dumps.append(Dump(file, columns, teachers, made_by, task, path, args, device))
    precision = "bf16" if all(dump.precision == "bf16" for dump in dumps) else "fp32"
    for teacher in teachers:
        if isinstance(teacher, Teacher):
            teacher.hold(precision)
    for dump in dumps:
        if args.overwrite and RANK == 0:
            shutil.rmtree(dump.blocks, ignore_errors=True)
    runtime.save_together({dump.tombstone: "" for dump in dumps if args.overwrite})
    runtime.barrier(device)  # every rank has seen what is there before rank 0 changes it
    for dump in dumps:
        if args.check:
            dump.check()
        elif dump.old and dump.complete:
            print(f"{dump.path}: complete already, {dump.file.rows:,} rows")
            if RANK == 0:  # of a run that was killed at its end
                shutil.rmtree(dump.blocks, ignore_errors=True)
        else:
            dump.write()


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,), memory="lower --max-tokens")
