"""Publish a student on the Hugging Face hub, with a model card.

    python extra/publish.py students/base/student.pt user/name --license mit
    python extra/publish.py students/base user/name --license mit --scores test.json --dry-run card
    python extra/publish.py card user/name                           # card/README.md may have been edited

reads   student.pt, and the log.jsonl beside it, from which the card has the command, paths reduced to the
        names of files; --scores is what evaluate.py --json printed. A README.md in DIR is the card as it is.
        A graph beside it, student.onnx of extra/export_onnx.py, is published too
writes  student.pt, README.md, student.onnx: to the hub in one commit, in a repository that is made if need
        be; with --dry-run to a folder. The token is that of `hf auth login`, or HF_TOKEN
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("source", metavar="DIR|STUDENT.pt", help="a folder with student.pt, or the file")
    arg("repo", metavar="USER/NAME", help="the repository; an existing one gets another commit")
    arg("--dry-run", metavar="DIR", help="write the files to this folder, and upload nothing")
    arg("--private", action="store_true", help="a new repository is private")
    # what the card says
    arg("--license", metavar="ID", help="such as apache-2.0, mit, cc-by-sa-4.0; needed for a new card")
    arg("--language", default="ko", metavar="CODE", help="default: %(default)s")
    arg("--teacher", metavar="TEXT", help="a hub id, or a description")
    arg("--data", metavar="TEXT", help="a description of the training data")
    arg("--scores", metavar="FILE", help="what evaluate.py --json printed of this file: scores, intervals")
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import json
import re
import shlex

import runtime
from runtime import UserError
from student import Student, StudentError, write_whole
from tasks import of_model

ASIDE = {"output_dir", "save_every", "tensorboard", "device", "overwrite"}  # flags that decide no result


def without_folders(value):
    """A value of made_by or of a log, each path in it reduced to the name of its file."""
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value


def command(path: Path, student: Student) -> str:
    """The command that made the student, by its made_by, and by the log beside it if that is its own."""
    made_by = student.artifact.get("made_by")
    if not isinstance(made_by, dict) or not isinstance(made_by.get("arguments"), dict):
        return ""
    arguments, log = made_by["arguments"], path.with_name("log.jsonl")
    if log.is_file():
        try:
            line = json.loads(log.read_text("utf-8").split("\n")[0])
            same = all(line[name] == made_by[name] for name in ("script", "fingerprints"))
            arguments = {**line["arguments"], **arguments} if same else arguments
        except (ValueError, LookupError, TypeError):
            runtime.warn(f"{log}: not the log of {path.name}, not used")
    words = ["python", without_folders(str(made_by.get("script")))]
    for name, value in arguments.items():
        if name not in ASIDE and value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, without_folders(values))]
    return shlex.join(words)


def rows_of_scores(path: Path, student: Student, task, report) -> list[tuple]:
    """(score, value, 95 % interval, rows) of what the file and the report of evaluate.py say."""
    stored = student.artifact.get("scores")
    rows = [(name.removeprefix("valid_"), f"{value:.4f}", "–", "validation file, which chose the epoch")
            for name, value in (stored if isinstance(stored, dict) else {}).items()
            if name.startswith("valid_") and isinstance(value, float)]
    if report:
        try:
            found = json.loads(Path(report).read_text("utf-8"))
            mine = next((model for model in found["models"] if model.get("bytes") == path.stat().st_size
                         and Path(model["model"]).name == path.name), None)
            if mine is None:
                raise UserError(f"{report}: no scores of {path}, by name and size; give what evaluate.py "
                                f"--json printed of this file")
            low, high = mine["interval"]
            rows.insert(0, (task.best, f"{mine[task.best]:.4f}", f"{low:.4f}–{high:.4f}",
                            f"{without_folders(found['data'])}, {found['rows']:,} rows"))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{report}: not what evaluate.py --json prints "
                            f"({type(error).__name__}: {error})") from None
    return rows


def limits(student: Student) -> list[str]:
    config, count = student.config, len(student.label_names)
    found = [f"It reads the first {config.max_length} tokens of a text and nothing after them.",
             "It knows texts like those it was trained on, and judges any other text as if it were one.",
             "It repeats what is wrong or unfair in its teacher and in the labels."]
    if student.task == "classification":
        found.insert(1, f"Every text gets one of {count} labels, also one that none of them fits.")
    if student.task != "regression":
        found.append(f"Probabilities are calibrated (temperature {config.temperature:.2f}) for texts like "
                     f"those of the validation file.")
    return found


def card(args, path: Path, student: Student, graph: bool) -> str:
    """README.md: what the hub reads (YAML, of which JSON is a part), then what people read."""
    task, config = of_model(student, path), student.config
    head = {"language": args.language, "license": args.license, "pipeline_tag": "text-classification",
            "tags": ["distillation", "bilstm"]}
    if args.teacher and runtime.HUB_ID.fullmatch(args.teacher):
        head["base_model"] = args.teacher
    example = '["이 영화 진짜 재밌다"]' + ', ["정말 재미있는 영화"]' * bool(student.pairs)
    scores, made = rows_of_scores(path, student, task, args.scores), command(path, student)
    lines = [
        "---", *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()), "---",
        "",
        f"# {args.repo.split('/')[-1]}", "",
        f"A BiLSTM student of {sum(p.numel() for p in student.parameters()):,} parameters in "
        f"{path.stat().st_size:,} bytes.", "",
        "```python",
        "from student import Student      # student.py of DistilKoBiLSTM; pip install torch tokenizers",
        f'student = Student.from_hub("{args.repo}")',
        f"student.answers({example})", *([] if not graph else [
            "", "from predictor import Predictor  # serving/predictor.py; without PyTorch",
            f'Predictor.from_hub("{args.repo}").answers({example})']), "```", "",
        f"- **Task.** {student.task}{', of pairs of texts' * bool(student.pairs)}; "
        f"{'outputs' if student.task == 'regression' else 'labels'}: {', '.join(student.label_names)}.",
        f"- **Teacher.** {args.teacher or 'Not stated.'}",
        f"- **Data.** {args.data or 'Not stated.'}",
        f"- **Size.** Embedding {config.embedding_dim}, hidden {config.hidden_dim}, {config.vocab_size:,} "
        f"tokens, weights in {student.artifact.get('precision', 'float32')}.",
        f"- **Licence.** {args.license}.", "",
        "## Scores", "",
        *(["| score | value | 95 % interval | measured on |", "|---|---:|---:|---|"] if scores else
          ["None stated."]),
        *("| " + " | ".join(row) + " |" for row in scores), "",
        "## How it was made", "", *(["```bash", made, "```"] if made else ["The file does not say."]), "",
        "## Limits", "", *(f"- {line}" for line in limits(student)), ""]
    return "\n".join(lines)


def upload(repo: str, files: dict[str, bytes], private: bool) -> None:
    """One commit with all files. Raises UserError."""
    try:
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.create_commit(repo, [CommitOperationAdd(*file) for file in files.items()],
                                   commit_message="A student and its card")
    except Exception as error:  # its classes, and those of its HTTP library, vary by version
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        denied = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        raise UserError(f"{repo}: not uploaded ({reason})"
                        + "; give a token that may write: hf auth login" * denied) from None
    print(f'{commit.commit_url}\nStudent.from_hub("{repo}", revision="{commit.oid}")')


def main(args):
    path, readme = Path(args.source), None
    if path.is_dir():
        path, readme = path / "student.pt", path / "README.md"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo):
        raise UserError(f"{args.repo}: a repository of the hub is called user/name")
    student, graph = Student.load(path), path.with_suffix(".onnx")
    if graph.is_file() and graph.stat().st_mtime < path.stat().st_mtime:
        raise UserError(f"{graph}: older than {path}; write it again with extra/export_onnx.py, or remove it")
    if readme and readme.is_file():
        text = readme.read_bytes()
        print(f"{readme}: is the card")
    elif not args.license:
        raise UserError("--license is needed for the card, such as apache-2.0")
    else:
        text = card(args, path, student, graph.is_file()).encode()
    files = {"student.pt": path.read_bytes(), "README.md": text}
    if graph.is_file():
        files["student.onnx"] = graph.read_bytes()
    if args.dry_run is None:
        return upload(args.repo, files, args.private)
    content = {Path(args.dry_run, name): data for name, data in files.items()}
    for file, data in content.items():
        if file.exists() and not (file.is_file() and file.read_bytes() == data):
            raise UserError(f"{file}: exists and differs; remove it, or name another folder")
    for file, data in content.items():
        write_whole(file, data)
        print(f"{file}: {len(data):,} bytes")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,))
