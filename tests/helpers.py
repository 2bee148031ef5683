"""What the test files call: small files of reviews, scripts in this process, interrupted runs."""

import hashlib
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import runtime
from runtime import UserError
from teacher import published_names

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["좋다", "최고", "추천", "재밌다", "별로", "최악", "지루", "실망", "영화", "배우", "그냥", "정말"]
CPU = "--device cpu --precision fp32"
# Flags with which the kit's models are trained, without files and folders.
TEACHER = ("--scratch 1,16,2 --tokenizer tokenizer/vocab_size_3000 --lr 2e-2 --epochs 8 --max-tokens 256 "
           + CPU)
STUDENT = f"--tokenizer tokenizer/vocab_size_3000 --size tiny --max-tokens 256 --epochs 3 {CPU}"
LABELLED = "--train train.tsv --valid valid.tsv"
TAUGHT = "--train train.tsv unlabeled.tsv --logits logits/train.pt logits/unlabeled.pt --valid valid.tsv"


def reviews(count: int, seed: int) -> list[tuple[str, str]]:
    """(text, label): random words; 1 when more of the first four than of the second four occur."""
    random, rows = np.random.default_rng(seed), []
    for _ in range(count):
        chosen = random.integers(0, len(WORDS), random.integers(1, 9))
        label = (chosen < 4).sum() > ((chosen >= 4) & (chosen < 8)).sum()
        rows.append((" ".join(WORDS[i] for i in chosen), str(int(label))))
    return rows


def write_rows(path, rows, header="text\tlabel"):
    """A .tsv of the columns of `header`; further cells of a row are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = header.count("\t") + 1
    path.write_text("\n".join([header, *("\t".join(row[:width]) for row in rows), ""]), encoding="utf-8")
    return path


def run(script: str, flags: str, *more) -> None:
    """A script of the kit in this process: run("distill", "--train a.tsv …", path). Raises its UserErrors."""
    module = importlib.import_module(script)
    module.main(module.parse_args([*shlex.split(flags), *map(str, more)]))


def publish(teacher, folder, **config) -> None:
    """A BERT as a folder of a published checkpoint; `config` goes into config.json."""
    ours, names, weights = teacher.config, published_names(teacher.config), {}
    for name, tensor in teacher.state_dict().items():
        parts = zip(names[name], tensor.chunk(len(names[name])), strict=True)
        weights |= {theirs: part.clone() for theirs, part in parts}
    runtime.save(weights, Path(folder) / "pytorch_model.bin")
    settings = {"model_type": "bert", "vocab_size": ours.vocab_size, "hidden_size": ours.hidden_size,
                "num_hidden_layers": ours.num_layers, "num_attention_heads": ours.num_heads,
                "intermediate_size": ours.intermediate_size, "max_position_embeddings": ours.max_positions,
                "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | config
    runtime.save_together({Path(folder) / "config.json": json.dumps(settings),
                           Path(folder) / "tokenizer_config.json":
                           json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}),
                           Path(folder) / "tokenizer.json": teacher.tokenizer.to_str()})


PEAKS = """
import re, sys
sys.path.insert(0, ROOT)
import dump_logits
for number, teacher in enumerate(sys.argv[1:]):
    dump_logits.main(dump_logits.parse_args(
        f"--teacher {teacher} --data few.tsv --output-dir {number} --device cpu --precision bf16".split()))
    status = dict(re.findall(r"(VmHWM|RssShmem):\\s+(\\d+) kB", open("/proc/self/status").read()))
    print("peak", status["VmHWM"], status["RssShmem"])
"""


def peak_above(small, large) -> int:
    """By how many bytes the peak of a process's memory grows that has dumped 32 rows by teacher `small` in
    bf16, and then does so by `large`. What is mapped from files counts."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to read the peak of memory from")
    write_rows(Path("few.tsv").resolve(), reviews(32, 0), "text")
    done = subprocess.run([sys.executable, "-c", PEAKS.replace("ROOT", repr(str(ROOT))), small, large],
                          check=True, capture_output=True, text=True)
    (before, _), (after, shared) = re.findall(r"^peak (\d+) (\d+)$", done.stdout, re.M)
    if int(shared) > 10_000:
        pytest.skip("the files are in memory, not on a disk")
    return 1024 * (int(after) - int(before))


def refused(call, *patterns: str) -> str:
    """The one line with which `call` is refused; every pattern is found in it."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} is not in {message!r}"
    return message


def run_printed(message: str) -> tuple[list[str], str]:
    """Run the dump_logits.py command that a refusal prints; its words, and the --logits to give after it."""
    command, _, logits = message.split(": ")[-1].split(" - or ")[0].partition(", and give --logits ")
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "dump_logits.py")
    run("dump_logits", f"{shlex.join(words)} --device cpu")
    return words, logits


def read(path) -> dict:
    return torch.load(path, weights_only=True)


def equal(one, other) -> bool:
    """Nested dicts and lists equal, tensors to the bit."""
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def snapshot(folder=".") -> dict:
    """{path: (time of the last change, SHA-256)} of every file below but for locks."""
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(Path(folder).rglob("*")) if path.is_file() and not path.name.endswith(".lock")}


def log_lines(folder) -> list[dict]:
    lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class Interrupt:
    """Sends this process a signal inside the n-th of all optimizer steps, counted from 1."""

    def __init__(self, monkeypatch, at: int, number=signal.SIGINT):
        self.steps, step = 0, torch.optim.AdamW.step

        def counted(optimizer, *args):
            self.steps += 1
            if self.steps == at:
                os.kill(os.getpid(), number)
            return step(optimizer, *args)

        monkeypatch.setattr(torch.optim.AdamW, "step", counted)


def die_after(monkeypatch, count: int) -> list[str]:
    """The process dies, as far as one can in it, right after so many files were written; their names."""
    written, together = [], runtime.save_together

    def save_then_die(files):
        together(files)
        written.extend(Path(path).name for path in files)
        if len(written) >= count:
            raise Killed

    monkeypatch.setattr(runtime, "save_together", save_then_die)
    return written


class Killed(BaseException):
    """What no code of the kit catches."""


def interrupted(script: str, flags: str, step: int) -> runtime.Stopped:
    """What a training script raises that gets Ctrl-C in this step."""
    with pytest.MonkeyPatch.context() as patch:
        Interrupt(patch, step)
        with pytest.raises(runtime.Stopped) as stopped:
            run(script, flags)
    return stopped.value


def assert_same_run(one, other, artifact: str) -> None:
    """Two folders of a training run: the same model, state and log but for times and what was typed."""
    assert Path(one, artifact).read_bytes() == Path(other, artifact).read_bytes()
    states = [read(Path(folder, "last.pt")) for folder in (one, other)]
    for state in states:
        state["at"].update(seconds=0, log="")
    assert equal(*states)
    logs = [[line | {"seconds": 0, "arguments": 0} for line in log_lines(folder)] for folder in (one, other)]
    assert logs[0] == logs[1]
