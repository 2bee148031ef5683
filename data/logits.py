"""Logits of the rows of a file: the only reader and writer, and what binds them to their texts and teachers.

A logits file is a dict with the tensor "logits" (N, C), row i for data row i, and with the fingerprints of
the texts and of the teachers; or a bare (N, C) tensor of any other system, of which only the shape can be
checked.
"""

import hashlib
import json
import os
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import runtime
from data.examples import fingerprint_of_first, stem
from runtime import UserError

FORMAT = 2


@dataclass
class Logits:
    """The logits of one data file, one row per data row. A bare tensor has `values` alone."""

    values: torch.Tensor  # (N, C), still on disk after read_logits
    names: list[str] | None = None  # of the C columns
    task: str = "classification"  # as in tasks.TASKS
    texts: str | None = None  # Examples.fingerprint()
    teachers: list[dict] = field(default_factory=list)  # fingerprints() of each
    teacher_files: list[str] = field(default_factory=list)
    precision: str = "fp32"  # of the forward pass
    blocks: list[str] = field(default_factory=list)  # names of the blocks that it was computed in
    path: str = ""
    stat: os.stat_result | None = None

    @property
    def bare(self) -> bool:
        return self.names is None


def bare_order(task) -> list[str]:
    """What the columns of a bare tensor are: the names of the outputs in the order of the sorted labels."""
    return type(task).survey(task.names, "").names


def read_logits(path) -> Logits:
    """A logits file of this kit, or a bare tensor. Raises UserError where it is damaged or something else."""
    artifact = runtime.load_weights(path, mmap=True)
    if torch.is_tensor(artifact):
        found = Logits(artifact.detach())
    else:
        runtime.check(artifact, path, "logits", FORMAT, ("logits", "label_names", "texts", "teachers"))
        files = artifact.get("teacher_files")
        found = Logits(artifact["logits"], artifact["label_names"], artifact.get("task", "classification"),
                       artifact["texts"], artifact["teachers"], files, artifact.get("precision", "fp32"),
                       artifact.get("blocks", []))
        plain = all(isinstance(values, list) and all(isinstance(item, kind) for item in values)
                    for values, kind in ((found.names, str), (found.teachers, dict), (files, str),
                                         (found.blocks, str)))
        if not plain or not all(isinstance(text, str) for text in (found.texts, found.task)) \
                or found.precision not in ("fp32", "bf16"):
            raise UserError(f"{path}: damaged, its names or teachers cannot be read; make it again with "
                            f"dump_logits.py --overwrite")
        # They are stored relative to the logits. Of a name with a NUL there is no file.
        found.teacher_files = [os.path.relpath(Path(path).parent / file) for file in files
                               if "\0" not in file]
    found.path, found.stat, values = str(path), os.stat(path), found.values
    if not torch.is_tensor(values) or values.dim() != 2 or not values.is_floating_point() or not len(values) \
            or (not found.bare and values.size(1) != len(found.names)):
        shape = f"{list(values.shape)} {values.dtype}" if torch.is_tensor(values) else type(values).__name__
        raise UserError(f"{path}: holds {shape} where a float tensor (rows, classes) is needed; make it "
                        f"again with dump_logits.py --overwrite")
    return found


def write_logits(path, logits: Logits, made_by: dict) -> None:
    """Write a logits file; the paths of the teachers become relative to it."""
    files = [os.path.relpath(file, Path(path).parent) for file in logits.teacher_files]
    runtime.save({
        "kind": "logits", "format": FORMAT, "logits": logits.values, "label_names": logits.names,
        "task": logits.task, "texts": logits.texts, "teachers": logits.teachers, "teacher_files": files,
        "dtype": str(logits.values.dtype).removeprefix("torch."), "precision": logits.precision,
        "blocks": logits.blocks, "made_by": made_by}, path)


def read_logits_of(path, file, columns: tuple, args, others: dict | None = None) -> Logits:
    """read_logits for the rows of `file` (a Survey or Examples). Raises UserError where they do not belong.

    Logits of other texts would train a model that looks fine and is wrong. `others`: {fingerprint: path} of
    files whose logits may have been given by mistake.
    """
    found = read_logits(path)
    rows, texts = (file.rows, file.fingerprint) if hasattr(file, "rows") else (len(file), file.fingerprint())
    remake = dump_command(file.path, found, args)
    if not found.bare and found.texts != texts:
        if found.texts in (others or {}):
            raise UserError(f"{path}: these logits belong to {others[found.texts]}, not to {file.path}; give "
                            f"--logits in the order of --train")
        if found.texts == fingerprint_of_first(len(found.values), file.path, *columns):
            raise UserError(f"{path}: {file.path} has grown since; compute the new rows: "
                            + remake.replace(" --overwrite", ""))
        raise UserError(f"{path}: these are logits of other texts than {file.path}; make the right ones: "
                        f"{remake}")
    if len(found.values) != rows:
        raise UserError(f"{path}: {len(found.values)} rows of logits, but {file.path} has {rows} rows; make "
                        f"the right ones: {remake}")
    for start in range(0, rows, 2**20):
        finite = found.values[start : start + 2**20].float().isfinite().all(1)  # as they will be used
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise UserError(f"{path}: the logits of row {row} are not finite; make them again: {remake}")
    return found


def dump_command(data: str, logits: Logits, args) -> str:
    """The command that makes the logits of `data` in place of what is at logits.path."""
    written = Path(logits.path).parent / f"{stem(data)}.pt"
    teachers = getattr(args, "teacher", None) or logits.teacher_files or ["TEACHER.pt"]
    words = ["--teacher", *teachers, "--data", data, "--output-dir", str(written.parent)]
    words += ["--dtype", "float16"] if logits.values.dtype == torch.float16 else []
    for name in ("text_column", "text2_column", "label_column"):
        if getattr(args, name) is not None:
            words += [f"--{name.replace('_', '-')}", getattr(args, name)]
    command = f"python dump_logits.py {shlex.join(words)}"
    if written == Path(logits.path):
        return f"{command} --overwrite"
    return f"{command}, and give --logits {shlex.quote(str(written))}"


def fingerprints(model) -> dict:
    """All that decides the logits of a text: SHA-256 of config and weights and of the tokenizer, and the
    maximum length."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    model.tokenizer.no_padding()  # what encode() sets on the tokenizer is not part of the model
    model.tokenizer.no_truncation()
    return {"weights": digest.hexdigest(), "tokenizer": runtime.fingerprint(model.tokenizer.to_str()),
            "max_length": model.reads["max_length"]}


def check_teachers(logits: Logits, file: str, args, fingerprints_of) -> None:
    """Compare the teachers that made the logits with --teacher, or with what their files now hold.

    fingerprints_of(path) gives the fingerprints() of a model. Raises UserError.
    """
    remake = dump_command(file, logits, args)
    if args.teacher and len(args.teacher) != len(logits.teachers):
        raise UserError(f"{logits.path}: the mean of {len(logits.teachers)} teachers, but --teacher names "
                        f"{len(args.teacher)}; make the right ones: {remake}")
    for path, made_by in zip(args.teacher or logits.teacher_files, logits.teachers, strict=False):
        if not args.teacher and not os.path.isfile(path):
            runtime.warn(f"{logits.path}: its teacher {path} is not there any more and cannot be compared; "
                         f"name it with --teacher")
            continue
        try:
            now = fingerprints_of(path)
        except UserError as error:
            if args.teacher:
                raise
            raise UserError(f"{logits.path}: its teacher cannot be compared ({error}); name it with "
                            f"--teacher") from None
        differing = [name for name in now if str(made_by.get(name)) != str(now[name])]
        if differing:
            raise UserError(f"{logits.path}: these logits were computed by a different version of {path} "
                            f"({', '.join(differing)} changed); make them again: {remake} - or pass the "
                            f"original with --teacher")
