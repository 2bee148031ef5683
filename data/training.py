"""Training files with their answers and logits: whatever can be wrong with them is told before any work.

distill.py and finetune_teacher.py read theirs through read_training_set().
"""

import functools
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

import runtime
from data import look
from data.batches import Encoded, Store
from data.examples import Examples, Survey, read_again, read_examples, survey, survey_of
from data.logits import (
    Logits,
    bare_order,
    check_teachers,
    compare_with_labels,
    dump_command,
    fingerprints,
    read_logits_of,
    refuse_other_columns,
)
from runtime import UserError


@dataclass
class TrainingSet:
    """Files, their logits, the task and the validation rows."""

    files: list[Survey]
    columns: tuple  # names of the columns, as read_examples takes them
    logits: list[Logits]  # of each file; none when answers alone teach
    teachers: list[str]  # files that the logits were made by, there or not
    task: object  # as in tasks.py
    valid: Examples
    valid_target: torch.Tensor  # (N, …)
    fingerprints: dict[str, str]

    @property
    def pairs(self) -> bool:
        return self.valid.texts2 is not None

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def labelled(self) -> int:
        return sum(file.labelled for file in self.files)

    @property
    def answers(self) -> Counter:
        """How often each cell occurs among the answers of the training files."""
        return sum((file.answers for file in self.files), Counter())

    def reorder(self, names: list[str]) -> None:
        """Give targets and columns of logits this order of the outputs."""
        columns = [self.task.names.index(name) for name in names]
        for item in self.logits:
            item.values = item.values[:, columns]
        self.task = type(self.task)(names)
        self.valid_target = self.valid.targets(self.task)[0]

    def what_was_read(self) -> dict[str, str]:
        """Fingerprints of all that decides a run, for made_by."""
        return self.fingerprints | {"the answers of --valid": runtime.fingerprint(self.valid_target),
                                    "the names of the labels": str(self.task.names)}

    def name_row(self, number: int) -> tuple[str, int]:
        """(file, row in it) of a row of all files together."""
        for file in self.files:
            if number < file.rows:
                return file.path, number
            number -= file.rows
        raise IndexError(number)


def read_training_set(args, tasks, load) -> TrainingSet:
    """Read --train, --valid and --logits, and print what they hold. Raises UserError for everything that can
    be wrong with them.

    `tasks` is the module; load(path) gives a model, to compare teachers.
    """
    columns = tasks.columns(args)
    files = [survey(file, *columns) for file in args.train]
    valid = read_examples(args.valid, *columns)
    pairs = {args.valid: valid.texts2 is not None} | {file.path: file.pairs for file in files}
    if len(set(pairs.values())) > 1:
        raise UserError(f"{max(pairs, key=pairs.get)} and {min(pairs, key=pairs.get)} disagree: only the "
                        f"first has a column text2")
    logits = read_all_logits(args, files, columns, functools.cache(lambda path: fingerprints(load(path))))
    cells = {}
    for file in files:
        cells = cells | file.cells | cells  # where each first stands
    where = ", ".join(f"{file.path} with the columns {', '.join(file.head.header)}" for file in files)
    stored = next(((item.task, item.names, item.path) for item in logits if not item.bare), None)
    if logits and stored is None:  # bare tensors can teach texts without answers
        cells, where = cells | valid.cells() | cells, f"{where}, {args.valid}"
    column = next((file.column for file in [*files, valid] if file.column), None)
    task = tasks.make(column, cells, where, stored, args.task)
    for item, file in zip(logits, files, strict=False):
        refuse_other_columns(item, task)
        if item.bare:  # dump_logits.py has compared its own
            compare_with_labels(item, file.head, type(task)(bare_order(task)))
        if item.bare and (order := bare_order(task)) != task.names:  # a copy in memory: only if it must be
            item.values = item.values[:, [order.index(name) for name in task.names]]
    valid_target, _ = valid.targets(task, every_row=True)
    surveyed = survey_of([valid])
    for file in files:
        file.refuse_other_answers(task, *columns)
        if file.fingerprint == surveyed.fingerprint:
            runtime.warn(f"{args.valid} has the texts of {file.path}: it cannot tell which epoch is best")
    task.fit(sum((file.answers for file in files), Counter()), surveyed.answers)
    read = {
        "the texts of --train": " ".join(file.fingerprint for file in files),
        "the texts of --valid": surveyed.fingerprint,
        "the answers of --train": " ".join(file.answer_fingerprint for file in files),
        "--logits": " ".join(runtime.fingerprint(item.values) for item in logits),
    }
    teachers = args.teacher or [file for item in logits for file in item.teacher_files]
    print(*look.files(files, columns, task), *look.files([surveyed], columns, task), sep="\n")
    return TrainingSet(files, columns, logits, teachers, task, valid, valid_target, read)


def read_all_logits(args, files: list[Survey], columns: tuple, fingerprints_of) -> list[Logits]:
    """The logits of each file; all have to be of the same teachers and labels."""
    found = []
    for path, file in zip(args.logits or (), files, strict=False):
        others = {other.fingerprint: other.path for other in files if other.fingerprint != file.fingerprint}
        new = read_logits_of(path, file, columns, args, others)
        if not new.bare:
            check_teachers(new, file.path, args, fingerprints_of)
        found.append(new)
    named = [item for item in found if not item.bare]
    for file, item in zip(files, found, strict=False):
        first = item if item.bare or not named else named[0]
        if item.values.size(1) != found[0].values.size(1) or item.names not in (None, first.names) \
                or item.task != first.task:
            raise UserError(f"{item.path}: its labels are not those of the other logits; one teacher for all "
                            f"files is needed")
        if str(item.teachers) != str(first.teachers):
            raise UserError(f"{item.path}: made by other teachers than {first.path}; one for all files: "
                            + dump_command(file.path, item, args))
    return found


def encode_training_set(data: TrainingSet, encode, folder) -> tuple[Store, Encoded]:
    """The rows of all training files with their targets and logits, in scratch files in `folder`, and those
    of the validation file. encode(texts, texts2, progress=) gives Encoded."""
    store = Store(Path(folder))
    progress = runtime.Progress("encode", data.rows + len(data.valid), "texts")
    for file, logits in itertools.zip_longest(data.files, data.logits):
        row = 0
        for part in read_again(file, *data.columns):
            encoded = encode(part.texts, part.texts2, progress=progress)
            encoded.columns["target"], encoded.columns["known"] = part.targets(data.task)
            if logits is not None:
                runtime.unchanged(logits.path, logits.stat)  # a mapped file that shrinks kills the process
                encoded.columns["teacher_logits"] = logits.values[row : row + len(part)].float()
            store.append(encoded)
            row += len(part)
    valid = encode(data.valid.texts, data.valid.texts2, progress=progress)
    progress.close()
    return store, valid
