"""bench/report/runs.jsonl: a line that describes the test file, then one for each model tested on it."""

import base64
import hashlib
import json
import tempfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

import runtime
from bench import baselines
from bench.common import CPU
from data.examples import read_examples
from dump_logits import load
from evaluate import columns_of, run_model
from runtime import UserError
from student import SIZES, Student, widths
from tasks import Classification, judge
from teacher import Teacher

LENGTHS = {"0–15": 0, "16–30": 16, "31–60": 31, "61+": 61}  # characters: the least of each group
PACKED = {"test": ["labels", "length", "leaked"], "teacher": ["off"], "student": ["off"], "baseline": ["off"]}


def pack(numbers: torch.Tensor) -> str:
    """Whole numbers (N,) below 65,536 as text: their 16 planes of bits, zlib, base64."""
    planes = np.packbits((numbers.numpy() >> np.arange(16)[:, None]) & 1 > 0, axis=1)
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()


def unpack(text: str, rows: int) -> torch.Tensor:
    """What pack() was given, (rows,) int64. Raises ValueError or zlib.error where it is something else."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(16, (rows + 7) // 8)
    bits = np.unpackbits(planes, axis=1)[:, :rows].astype(np.int64)
    return torch.from_numpy((bits << np.arange(16)[:, None]).sum(0))


def read_runs(path: Path) -> list[dict]:
    """The lines, the test file's first, with tensors where values are packed. Raises UserError FILE:LINE."""
    lines = []
    for number, text in enumerate(path.read_text("utf-8").removesuffix("\n").split("\n"), 1):
        try:
            line = json.loads(text)
            if (line["kind"] == "test") != (number == 1):
                raise ValueError("the first line, and no other, describes the test file")
            rows = (lines or [line])[0]["rows"]
            lines.append(line | {name: unpack(line[name], rows) for name in PACKED[line["kind"]]})
        except (ValueError, LookupError, TypeError, zlib.error) as error:
            raise UserError(f"{path}:{number}: damaged ({error}); delete this line and add its model again"
                            ) from None
    return lines


def digest(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def size_of(config) -> str:
    """The kit's name of a student's size, with the vocabulary where it is not 3,000."""
    dimensions = config.embedding_dim, config.hidden_dim
    name = next((size for size in SIZES if widths(size, config.pair) == dimensions),
                "e{}-h{}".format(*dimensions))
    return name if config.vocab_size == 3000 else f"{name}, {config.vocab_size:,} tokens"


class Runs:
    """runs.jsonl while models are added. It is replaced as a whole, so that a kill leaves no half line."""

    def __init__(self, args, names: list[str]):
        """`names`: the labels, where the file is new. Raises UserError where it is of another test file."""
        self.path = args.out / "runs.jsonl"
        runtime.lock(args.out / ".lock", self.path.name)
        self.lines = read_runs(self.path) if self.path.exists() else []
        self.task = Classification(self.lines[0]["names"] if self.lines else names)
        self.examples, self.results = read_examples(args.data), {}
        self.target, _ = self.examples.targets(self.task, every_row=True)
        keys = self.examples.words()
        seen = {key for file in args.seen for key in read_examples(file, label_column=False).words()}
        lengths = torch.tensor([len(text) for text in self.examples.texts])
        test = {"kind": "test", "data": Path(args.data).name, "rows": len(keys), "names": self.task.names,
                "texts": self.examples.fingerprint(), "labels": self.target,
                "length": torch.bucketize(lengths, torch.tensor([*LENGTHS.values()]), right=True) - 1,
                "seen": [Path(file).name for file in args.seen],
                "leaked": torch.tensor([int(key in seen) for key in keys])}
        for before in self.lines[:1]:
            other = [name for name in ("rows", "texts", "labels")
                     if not np.array_equal(test[name], before[name])]
            if other:
                raise UserError(f"{args.data}: not {before['data']}, the test file of {self.path}: other "
                                f"{', '.join(other)}; use that file, or another --out")
        if args.seen or not self.lines:
            self.lines[:1] = [test]

    def add(self, what: dict, identity: str, test) -> None:
        """Append a model's line, unless it is there. test() gives its result; it is called only if no line is
        of this identity: the student that also teaches keeps its answers."""
        same = [line for line in self.lines[1:] if line["digest"] == identity]
        namesakes = [line for line in self.lines[1:]
                     if (line["kind"], line["name"]) == (what["kind"], what["name"])]
        title = f"{what['kind']} {what['name']}{', ' + what['file'] if 'file' in what else ''}"
        if any(line in same for line in namesakes):
            print(f"{title}: is there already, not tested again")
            return
        if namesakes and (what["kind"] != "student" or namesakes[0]["taught_by"] != what["taught_by"]):
            raise UserError(f"{title}: {self.path} has another of this name; choose another one")
        if same:
            what |= {name: same[0][name] for name in ("result", "off")}
        else:
            what |= self.judged(**test())
        self.lines.append(what | {"digest": identity})
        self.save()
        print(f"{title}: accuracy {what['result']['accuracy']:.2%}")

    def save(self) -> None:
        runtime.save_together({self.path: "".join(json.dumps(
            {name: pack(value) if torch.is_tensor(value) else value for name, value in line.items()},
            ensure_ascii=False) + "\n" for line in self.lines)})

    def run(self, path, model=None) -> dict:
        """What a model answers, before its temperature, and how fast. Each file is run once."""
        key = digest(path)
        if key not in self.results:
            model = model or load(path)
            order = columns_of(str(path), model.task, model.label_names, self.task)
            logits, speed = run_model(str(path), model, self.examples)
            temperature = getattr(getattr(model, "config", None), "temperature", 1.0)
            self.results[key] = {"logits": logits[:, order] * temperature, "temperature": temperature,
                                 "bytes": Path(path).stat().st_size, **speed}
        return self.results[key]

    def mean(self, paths: list[str]) -> dict:
        """An ensemble: mean logits before calibration, sums of all else."""
        results = [self.run(path) for path in paths]
        return {**{name: sum(result[name] for result in results)
                   for name in ("parameters", "bytes", "ms_per_text")},
                "logits": sum(result["logits"] for result in results) / len(results), "temperature": 1.0,
                "texts_per_second": 1 / sum(1 / result["texts_per_second"] for result in results)}

    def judged(self, logits, temperature: float, **speed) -> dict:
        """Scores, and how far the number of each answer is from the label's: 0 where it is right."""
        scores = judge(self.task, logits / temperature, self.target) | speed
        scores["ece_uncalibrated"] = judge(self.task, logits, self.target)["ece"]
        result = {name: round(value, 6) for name, value in scores.items() if name != "loss"}
        return {"result": result | {"machine": runtime.machine(CPU)},
                "off": (logits.argmax(1) - self.target) % len(self.task.names)}


def add(args) -> None:
    """Test each model that has no line yet, and append one for it."""
    runs = Runs(args, load((args.teacher + args.arm)[0][1]).label_names)
    for name, *paths in args.teacher:
        if len(paths) == 1:
            model, identity = load(paths[0]), digest(paths[0])
            test = partial(runs.run, paths[0], model)
            network = size_of(model.config) if isinstance(model, Student) else model.config.family.upper()
        else:
            network, test = f"{len(paths)}-model ensemble", partial(runs.mean, paths)
            identity = runtime.fingerprint(" ".join(sorted(map(digest, paths))))
        runs.add({"kind": "teacher", "name": name, "saw": args.saw, "network": network}, identity, test)
    teachers = [line["name"] for line in runs.lines if line["kind"] == "teacher"]
    if args.taught_by not in (None, *teachers):
        raise UserError(f"--taught-by {args.taught_by}: {runs.path} has only the teachers {teachers}; add it "
                        f"with --teacher")
    for name, *paths in args.arm:
        for path in sorted(paths):
            rounded = Path(path).with_suffix(".int8.pt")
            for file in [path, str(rounded)] if rounded.exists() else [path]:
                model = load(file)
                if not isinstance(model, Student):
                    raise UserError(f"{file}: this is a teacher; --arm takes student.pt files")
                precision = model.artifact.get("precision", "float32")
                if (precision == "float32") != (file == path):
                    raise UserError(f"{file}: its weights are {precision}; name the student.pt in float32; "
                                    f"the int8 copy beside it is found")
                runs.add({"kind": "student", "name": name, "taught_by": args.taught_by,
                          "file": Path(file).name if Path(file).is_absolute() else file,
                          "size": size_of(model.config), "precision": precision,
                          "seed": model.artifact.get("made_by", {}).get("arguments", {}).get("seed")},
                         digest(file), partial(runs.run, file, model))
    if args.train:
        add_baselines(args, runs)
    runs.save()  # what --seen says may be new


def add_baselines(args, runs: Runs) -> None:
    """Each at its best setting on --valid; model2vec starts from the first teacher.pt of --teacher."""
    train, valid = (read_examples(file) for file in (args.train, args.valid))
    baselines.check(train, valid, runs.task)
    teachers = (load(path) for _, *paths in args.teacher for path in paths)
    teacher = next((model for model in teachers if isinstance(model, Teacher)), None)
    if teacher is None:
        raise UserError("--teacher: the baseline model2vec starts from a teacher.pt; name one, or leave out "
                        "--train and --valid")
    for name in baselines.BASELINES:
        with tempfile.TemporaryDirectory() as folder:
            def test(name=name, folder=Path(folder)):
                return runs.run(*baselines.best(name, train, valid, runs.task, teacher, folder))

            identity = [name, train.fingerprint(), valid.fingerprint(), *train.answers, *valid.answers]
            runs.add({"kind": "baseline", "name": name}, runtime.fingerprint(" ".join(identity)), test)
