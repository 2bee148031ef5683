"""Training files with their labels and the logits of teachers: whatever can be wrong with them is told before
any work. distill.py and finetune_teacher.py read theirs through read_training_set().
"""

import functools
import itertools
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

import runtime
from data.batching import Encoded, Store
from data.examples import (
    Examples,
    Survey,
    fingerprint_of_first,
    label_names,
    read_again,
    read_examples,
    stem,
    survey,
)
from runtime import UserError

LOGITS_FORMAT = 2  # of what dump_logits.py writes


@dataclass
class Logits:
    """The logits (N, C) of a training file, still on disk, and what their file says of them."""

    path: str
    stat: os.stat_result
    values: torch.Tensor
    label_names: list[str] | None = None  # None for a bare tensor
    teachers: list[dict] | None = None
    teacher_files: list[str] | None = None


@dataclass
class TrainingSet:
    """Files, their logits, names and the order of classes."""

    files: list[Survey]
    columns: tuple  # names of the columns, as read_examples takes them
    logits: list[Logits]  # of each file; none when labels alone teach
    teachers: list[str]  # files that they are of, there or not
    label_names: list[str]
    valid: Examples
    valid_labels: torch.Tensor  # (N,)
    fingerprints: dict[str, str]  # of files alone; see what_was_read()

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def labelled(self) -> int:
        return sum(file.labelled for file in self.files)

    def reorder(self, names: list[str]) -> None:
        """Give labels and columns of logits this order of the classes."""
        columns = [self.label_names.index(name) for name in names]
        for item in self.logits:
            item.values = item.values[:, columns]
        self.label_names = names
        self.valid_labels = torch.tensor(self.valid.label_ids(names))

    def what_was_read(self) -> dict[str, str]:
        """Fingerprints of all that decides a run, for made_by."""
        return self.fingerprints | {"the labels of --valid": runtime.fingerprint(self.valid_labels),
                                    "the names of the labels": str(self.label_names)}

    def name_row(self, number: int) -> tuple[str, int]:
        """(file, row in it) of a row of all files together."""
        for file in self.files:
            if number < file.rows:
                return file.path, number
            number -= file.rows
        raise IndexError(number)

    def stop(self, epoch: int, step: int, numbers, best_file: Path, best: dict):
        """Raise a UserError: the loss or gradient of these rows is not finite. They are written beside the
        best model so far."""
        rows = [self.name_row(number) for number in sorted(numbers)]
        path = best_file.with_name("diverged.tsv")
        runtime.save_together({path: "file\trow\n" + "".join(f"{file}\t{row}\n" for file, row in rows)})
        raise UserError(f"epoch {epoch + 1}, step {step + 1}: loss or gradient is not finite; its "
                        f"{len(rows)} rows are in {path}; lower --lr"
                        + (f" ({best_file} is the best before)" if best else ""))


def read_logits(path: str, file: Survey, columns: tuple, args, others: dict) -> Logits:
    """Logits of the rows of `file`: what dump_logits.py writes, or a bare (N, C) tensor of any other system.

    Logits of other texts, or of a teacher that has changed since, are refused: they would train a model
    that looks fine and is wrong. `others`: {fingerprint: path} of the other training files.
    """
    artifact = runtime.load_weights(path, mmap=True)
    known = artifact.get("teacher_files") if isinstance(artifact, dict) else None
    known = known if list_of(str, known) else None
    if known:  # they are relative to the logits
        known = [os.path.relpath(Path(path).parent / teacher) for teacher in known]
    dtype = artifact.get("dtype") if isinstance(artifact, dict) else None
    remake = "make the right ones: " + dump_command(
        file.path, path, args.teacher or known or ["TEACHER.pt"], args, dtype == "float16")
    if torch.is_tensor(artifact):
        logits = Logits(path, os.stat(path), artifact.detach())
    else:
        artifact = runtime.check(artifact, path, "logits", LOGITS_FORMAT)
        names, teachers = artifact.get("label_names"), artifact.get("teachers")
        if not torch.is_tensor(artifact.get("logits")) or not artifact["logits"].dim() \
                or not list_of(str, names) or not list_of(dict, teachers) or not list_of(str, known):
            raise UserError(f"{path}: damaged, no logits, label_names or teachers in it; {remake}")
        if isinstance(artifact.get("texts"), str) and artifact["texts"] in others:
            raise UserError(f"{path}: these are logits of {others[artifact['texts']]}, not of {file.path}; "
                            f"give --logits in the order of --train")
        if artifact.get("texts") != file.fingerprint:
            if artifact.get("texts") == fingerprint_of_first(len(artifact["logits"]), file.path, *columns):
                remake = remake.replace("make the right ones", "it has grown, add the new rows")
                remake = remake.replace("--overwrite", "--append")
            raise UserError(f"{path}: these are logits of other texts than {file.path}; {remake}")
        logits = Logits(path, os.stat(path), artifact["logits"], names, teachers, known)
        check_teachers(logits, args, remake)
    values = logits.values
    if values.dim() != 2 or len(values) != file.rows or not values.is_floating_point():
        raise UserError(f"{path}: {list(values.shape)} {values.dtype} where {file.path} has "
                        f"{file.rows} rows: a float tensor (rows, classes) is needed; {remake}")
    for start in range(0, len(values), 2**20):
        finite = values[start : start + 2**20].float().isfinite().all(1)  # as they will be used
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise UserError(f"{path}: the logits of row {row} are not finite; {remake}")
    return logits


def list_of(kind: type, value) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def dump_command(data: str, path: str, teachers: list[str], args, half: bool = False) -> str:
    """The command that makes the logits of `data` anew in place of `path`."""
    written = Path(path).parent / f"{stem(data)}.pt"
    words = ["--teacher", *teachers, "--data", data, "--output-dir", str(written.parent)]
    words += ["--dtype", "float16"] if half else []
    for name in ("text_column", "text2_column", "label_column"):
        if getattr(args, name) is not None:
            words += [f"--{name.replace('_', '-')}", getattr(args, name)]
    command = f"python dump_logits.py {shlex.join(words)}"
    if written == Path(path):
        return f"{command} --overwrite"
    return f"{command}, and give --logits {shlex.quote(str(written))}"


@functools.cache
def teacher_fingerprints(path: str) -> dict:
    from teacher import load_model

    return load_model(path).fingerprints()


def check_teachers(logits: Logits, args, remake: str) -> None:
    """Compare the teachers that made the logits with --teacher, or with what their files now hold."""
    if args.teacher and len(args.teacher) != len(logits.teachers):
        raise UserError(f"{logits.path}: is the mean of {len(logits.teachers)} teachers, --teacher names "
                        f"{len(args.teacher)}; {remake}")
    for file, made_by in zip(args.teacher or logits.teacher_files, logits.teachers, strict=False):
        if not args.teacher and not os.path.isfile(file):
            runtime.warn(f"{logits.path}: its teacher {file} is not there any more and cannot be compared; "
                         f"name it with --teacher")
        else:
            try:
                now = teacher_fingerprints(file)
            except UserError as error:
                if args.teacher:
                    raise
                raise UserError(f"{logits.path}: its teacher cannot be compared ({error}); name it with "
                                f"--teacher") from None
            differing = [name for name in now if str(made_by.get(name)) != str(now[name])]
            if differing:
                raise UserError(f"{logits.path}: was made by another teacher than {file} now is (other "
                                f"{' and '.join(differing)}); {remake}, or name the teacher they are of "
                                f"with --teacher")


def read_training_set(args) -> TrainingSet:
    """Everything that can be wrong with the files is told here, before any work."""
    columns = args.text_column, args.text2_column, args.label_column
    files = [survey(file, *columns) for file in args.train]
    valid = read_examples(args.valid, *columns)
    pairs = {args.valid: valid.texts2 is not None} | {file.path: file.pairs for file in files}
    if len(set(pairs.values())) > 1:
        raise UserError(f"{min(pairs, key=lambda path: not pairs[path])} has a column text2 and "
                        f"{min(pairs, key=pairs.get)} has not; all or none must be pairs")
    logits, names = [], None
    for path, file in zip(args.logits or (), files, strict=False):
        others = {other.fingerprint: other.path for other in files if other.fingerprint != file.fingerprint}
        logits.append(read_logits(path, file, columns, args, others))
        first, new = logits[0], logits[-1]
        names = names or new.label_names
        if new.values.size(1) != first.values.size(1) or (new.label_names and new.label_names != names):
            raise UserError(f"{path}: its classes are not those of the other logits; "
                            f"one teacher for all files")
        if new.teachers and first.teachers and str(new.teachers) != str(first.teachers):
            raise UserError(f"{path}: is of other teachers than {first.path}; one for all files: "
                            + dump_command(file.path, path, args.teacher or first.teacher_files, args))
    if names is None:
        labels, where = set().union(*(file.labels for file in files)), args.train
        if logits:  # bare tensors, which can teach texts without labels
            labels, where = labels.union(filter(None, valid.labels or ())), [*args.train, args.valid]
        names = label_names(labels, ", ".join(where))
    if logits and logits[0].values.size(1) != len(names):
        raise UserError(f"{logits[0].path}: {logits[0].values.size(1)} classes, but the labels are {names}: "
                        f"a column for each is needed, in this order")
    valid_labels = torch.tensor(valid.label_ids(names, every_row=True))
    for file in files:
        file.refuse_other_labels(names, *columns)
        if file.fingerprint == valid.fingerprint():
            runtime.warn(f"{args.valid} has the texts of {file.path}: it cannot tell which epoch is best")
    fingerprints = {
        "the texts of --train": " ".join(file.fingerprint for file in files),
        "the texts of --valid": valid.fingerprint(),
        "the labels of --train": " ".join(file.label_fingerprint for file in files),
        "--logits": " ".join(runtime.fingerprint(item.values) for item in logits),
    }
    teachers = args.teacher or [file for item in logits for file in item.teacher_files or ()
                                if "\0" not in file]  # of a name with a NUL there is no file
    return TrainingSet(files, columns, logits, teachers, names, valid, valid_labels, fingerprints)


def encode_training_set(data: TrainingSet, encode, folder) -> tuple[Store, Encoded]:
    """The rows of all training files with their labels (-1 where there is none) and logits, in scratch files
    in `folder`, and those of the validation file. `encode`: (texts, texts2, progress=) -> Encoded."""
    store = Store(Path(folder))
    progress = runtime.Progress("encode", data.rows + len(data.valid), "texts")
    for file, logits in itertools.zip_longest(data.files, data.logits):
        row = 0
        for part in read_again(file, *data.columns):
            encoded = encode(part.texts, part.texts2, progress=progress)
            encoded.columns["labels"] = torch.tensor(part.label_ids(data.label_names))  # (N,)
            if logits is not None:
                runtime.unchanged(logits.path, logits.stat)  # a mapped file that shrinks kills the process
                encoded.columns["teacher_logits"] = logits.values[row : row + len(part)].float()
            store.append(encoded)
            row += len(part)
    valid = encode(data.valid.texts, data.valid.texts2, progress=progress)
    progress.close()
    return store, valid
