"""The long scripts killed and interrupted at any moment: the same command again gives what one go gives.

TORTURE=50 kills each script 50 times (`make torture`) where it is twice otherwise, starts every fifth process
as a user does, and every third run with --overwrite over other results. KILL_SEED=N draws the same moments
again; a failure prints it (where in the work they fall depends on the machine's pace).
"""

import compileall
import contextlib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import equal, log_lines, read, reviews, run, write_rows
from hostile import ROOT, Process

from data.published import bert_template, load_tokenizer
from teacher import Teacher, TeacherConfig

LONG = "TORTURE" in os.environ
KILLS = int(os.environ.get("TORTURE", 2))
SEED = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
EXACT = "--device cpu --precision fp32 --output-dir out"
EVERY_STEP = "--save-every 0"
COMMANDS = {
    "finetune_teacher.py": "--train train.tsv --valid valid.tsv --scratch 1,16,2 --tokenizer tok --epochs 3 "
                           f"--lr 0.01 --max-tokens 80 --accumulate 2 {EXACT}",
    "dump_logits.py": f"--teacher a.pt b.pt --data train.tsv more.tsv --max-tokens 64 {EXACT}",
    "distill.py": "--train train.tsv more.tsv --logits train.pt more.pt --valid valid.tsv --tokenizer tok "
                  f"--size tiny --seed 0 1 --dropout 0.2 --epochs 2 --max-tokens 200 {EXACT}",
    "extra/pretrain_teacher.py": "--train train.tsv more.tsv --target-column label --tokenizer tok "
                                 "--layers 1 --hidden-dim 16 --heads 2 --epochs 2 --lr 0.01 "
                                 f"--max-tokens 500 --validate-every 10 {EXACT}",
}
OTHER = {"dump_logits.py": "--teacher b.pt"}  # settings that give another result; of the others: --clip 0.1

# ---- the scripts, with a trace of their work ---------------------------------------------------------------

# What runs are copies (an edit during the torture does not reach them) with one line more: a unit of work,
# a step or a block of a dump, leaves a line in the file `work` once it is computed, before it is saved.
DID = """

def did(*unit):
    with open("work", "a") as file:
        file.write(" ".join(map(str, unit)) + "\\n")
"""
# Blocks and windows as small as these few rows need, so that a distillation is one that exceeds memory.
SMALL = {"dump_logits.py": ("BLOCK = 8192", "BLOCK = 40"), "batches.py": ("WINDOW = 2**24", "WINDOW = 2000"),
         "examples.py": ("CHUNK = 8192", "CHUNK = 64")}


def copy_scripts(folder: Path) -> None:
    def replace(text, old, new):
        assert text.count(old) == 1, f"{old!r} is not there once"
        return text.replace(old, new)

    for source in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("extra/*.py")]:
        text = source.read_text("utf-8")
        if source.name == "runtime.py":
            step = "        self.optimizer.step()\n"
            trace = "        did(self.folder.name, self.at['epoch'], self.at['step'])\n"
            text = replace(text, step, step + trace) + DID
        if source.name == "dump_logits.py":
            after = "        if not logits.isfinite().all():\n"
            trace = "        runtime.did(self.path.stem, 0, part.lines[0] // BLOCK)\n"
            text = replace(text, after, trace + after)
        if source.name in SMALL:
            text = replace(text, *SMALL[source.name])
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """The scripts and all that they read."""
    folder = tmp_path_factory.mktemp("kill") / "kit"
    folder.mkdir()
    copy_scripts(folder)
    for seed, (name, rows) in enumerate({"train": 600, "more": 300, "valid": 100}.items()):
        rows = rows * 3 if LONG else rows // 2
        write_rows(folder / f"{name}.tsv", reviews(rows, seed))
        torch.save(torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed)), folder / f"{name}.pt")
    run("train_tokenizer", "--vocab-size 60 --min-frequency 1 --data", folder / "train.tsv", "--output-dir",
        folder)
    (folder / "vocab_size_60").rename(folder / "tok")
    for seed, name in enumerate(("a.pt", "b.pt")):
        torch.manual_seed(seed)
        tokenizer = load_tokenizer(folder / "tok", "bert")
        tokenizer.post_processor = bert_template(tokenizer)
        config = TeacherConfig("bert", tokenizer.get_vocab_size(), 32, 2, 2, 64, 32, 64, 2, 2)
        Teacher(config, tokenizer, ["0", "1"], 32).save(folder / name)
    compileall.compile_dir(folder, quiet=1)
    return folder


# ---- a run of several processes ----------------------------------------------------------------------------


def listing(folder) -> dict:
    """{path: inode} of every file under a folder that may change meanwhile."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            found |= listing(entry.path) if entry.is_dir() else {entry.path: entry.inode()}
    return found


class Run:
    """One command in a folder of its own, done by one process, or by several that continue one another.

    `base`: the uninterrupted run; None for that run itself.
    """

    def __init__(self, kit: Path, folder: Path, script: str, flags: str, base=None, earlier=None):
        shutil.copytree(kit, folder)
        if earlier:
            shutil.copytree(earlier, folder / "out")
        self.folder, self.out, self.script, self.base = folder, folder / "out", script, base
        self.words = [script, *COMMANDS[script].split(), *flags.split()]
        self.every_unit = script == "dump_logits.py" or EVERY_STEP in flags
        self.history, self.processes, self.now = [], 0, 0

    def work(self) -> list:
        path = self.folder / "work"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(name, int(epoch), int(number)) for name, epoch, number in map(str.split, lines)]

    def at(self) -> dict:
        """{name: (epoch, step)} of each last.pt."""
        states = {path.parent.name: read(path) for path in self.out.glob("**/last.pt")}
        return {name: (state["at"]["epoch"], state["at"]["step"]) for name, state in states.items()
                if "at" in state}  # a tombstone has no such value

    def saved(self) -> int:
        """How many of the units, which are a first part of the whole, the files hold."""
        at, there = self.at(), []
        for name, epoch, number in self.base.whole:
            if self.script == "dump_logits.py":
                blocks, file = self.base.blocks[name], self.out / f"{name}.pt"
                block = self.out / f".{name}.blocks" / f"{blocks[number]}.pt"
                there.append(block.exists() or (file.exists() and read(file)["blocks"] == blocks))
            else:
                there.append((epoch, number) < at.get(name, (0, 0)))
        assert there == sorted(there, reverse=True)
        return sum(there)

    def process(self, end=None, more=(), forked=True) -> int:
        """One process, from its start to the end that end(process) brings about; its exit code.

        However it ends, it did the units that were not saved before, in order, none of them twice, and saved
        them but for the bounded loss.
        """
        begun, at, files = len(self.work()), self.at(), listing(self.out)
        before = self.saved() if self.base and not more else 0
        self.processes += 1
        self.history.append(shlex.join([*self.words, *more]))
        process = start([*self.words, *more], self.folder, forked)
        try:
            if end:
                end(process)
            code = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.output, self.errors = ((self.folder / f"0.{name}").read_text("utf-8") for name in ("out", "err"))
        self.did, self.pid, self.before = self.work()[begun:], process.pid, before
        self.history.append(f"-> {code} after {len(self.did)} units {self.errors[-300:]}")
        if self.base and code != 2 and not (more and not self.did):
            self.check(before, at, files)
        return code

    def check(self, before: int, at: dict, files: dict) -> None:
        whole, done = self.base.whole, before + len(self.did)
        assert self.did == whole[before:done]
        least = done - 1
        if not self.every_unit and self.did:  # of pretraining only its end is saved, else every epoch's
            least = 0 if "pretrain" in self.script else next(
                i for i, unit in enumerate(whole) if unit[:2] == self.did[-1][:2])
        self.now = self.saved()
        self.lost = done - self.now
        self.history.append(f"-> units {before} to {done}, saved {self.now}")
        assert max(before, least) <= self.now <= done
        for name, *numbers in re.findall(r"^(\S+): continuing after epoch (\d+), step (\d+)$", self.output,
                                         re.M):
            assert at[Path(name).name] == tuple(map(int, numbers))
        for path, inode in files.items():  # a finished block stays the file it is until all of them are one
            if match := re.search(r"\.(\w+)\.blocks/[0-9a-f]+\.pt$", path):
                assert listing(self.out).get(path) == inode or (self.out / f"{match[1]}.pt").exists()

    def phase(self) -> str:
        """Where the last process, which was killed, was."""
        if any(f".{self.pid}.partial" in path for path in listing(self.out)):
            return "in a save"
        if str(self.pid) not in {path.read_text().strip() for path in self.out.glob("**/.*lock")}:
            return "at the start"
        if self.now == len(self.base.whole):
            return "at the end"
        return "amid the work" if self.did else "before a step"

    def result(self) -> dict:
        """{name of an output file: what has to be the same in every run}."""
        found = {}
        for path in sorted(path for path in self.out.glob("**/*") if path.is_file()):
            value = path.read_bytes()
            if path.name == "last.pt":
                value = read(path)
                assert value["at"].pop("log") == (path.parent / "log.jsonl").read_text("utf-8")
                del value["at"]["seconds"]
            elif path.name == "log.jsonl":
                value = [{**line, "seconds": 0} for line in log_lines(path.parent)]
                value[0]["arguments"] = {**value[0]["arguments"], "save_every": 0}
            elif path.name == "summary.tsv":
                value = [line.split("\t") for line in value.decode().splitlines()]
                column = value[0].index("seconds")
                value = [line[:column] + line[column + 1 :] for line in value]
            elif path.name.endswith("lock"):
                value = "whose process it is"
            found[str(path.relative_to(self.out))] = value
        return found

    def compare(self) -> None:
        one, other = self.result(), self.base.result()
        assert list(one) == list(other)
        for name in one:
            assert equal(one[name], other[name]), name


def start(words: list, folder: Path, forked: bool):
    for name in ("out", "err"):
        (folder / f"0.{name}").touch()
    if forked:
        return Process([folder / words[0], *words[1:]], folder)
    with open(folder / "0.out", "w") as out, open(folder / "0.err", "w") as err:
        return subprocess.Popen([sys.executable, *words], cwd=folder, stdout=out, stderr=err,
                                start_new_session=True,
                                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"})


# ---- the runs, two at a time -------------------------------------------------------------------------------


def uninterrupted(kit, folder, script, flags="") -> Run:
    run = Run(kit, folder, script, f"{flags} {'' if script == 'dump_logits.py' else EVERY_STEP}")
    begun = time.monotonic()
    assert run.process() == 0, run.errors
    run.seconds, run.whole = time.monotonic() - begun, run.work()
    run.blocks = {path.stem: read(path).get("blocks") for path in run.out.glob("*.pt")}
    return run


def killer(run: Run, rng: random.Random, number: int, amid_work: bool):
    """Ends a process at a random moment: of the time that the whole takes, or of the work; or when a file
    changes, when one is half written, when a line is printed. Ctrl-C and SIGTERM come amid the work."""
    amid_work = amid_work or number != signal.SIGKILL
    event = "unit" if amid_work else rng.choice(["time", "time", "unit", "file", "partial", "line"])
    wait, skip = rng.uniform(0, run.base.seconds), int(rng.expovariate(0.1 if run.every_unit else 0.5))
    if event == "unit":
        skip = rng.randrange(max(1, len(run.base.whole) - run.now))
    delay = rng.choice([0, rng.uniform(0, 0.01)])
    run.history.append(f"{signal.Signals(number).name}: {event}, {wait:.3f} s, {skip} events, {delay:.4f} s")

    def look():
        if event == "unit":
            return len(run.work())
        files = listing(run.out)
        return {"file": files, "partial": [path for path in files if path.endswith(".partial")],
                "line": os.path.getsize(run.folder / "0.out")}[event]

    def end(process):
        if event == "time":
            until = time.monotonic() + wait
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.001)
        else:
            last, left = look(), skip
            while process.poll() is None and left >= 0:
                now = look()
                left -= now - last if event == "unit" else now != last and bool(now)
                last = now
                time.sleep(0.0003)
            time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    return end


def told(run: Run, code: int, number: int) -> None:
    """An interrupted run ends with its code and one line, which has the command that continues."""
    last = run.errors.splitlines()[-1]
    assert code == 128 + number and "Traceback" not in run.errors and last.startswith("interrupted; ")
    words = shlex.split(last.partition("run again: ")[2])
    assert words[0] == "python" and words[1].endswith(run.script) and words[2:] == run.words[1:]
    assert run.lost == 0 or "saved" not in last


def killed(kit, folder, script, flags, kills: int, base, earlier=None) -> str:
    """Runs killed again and again until `kills` are reached, each compared with the uninterrupted one."""
    rng, base = random.Random(f"{SEED} {script} {flags}"), base.result()
    phases, processes, runs, earlier = Counter(), 0, 0, earlier and earlier.result().out
    while sum(phases.values()) < kills:
        overwrite = ["--overwrite"] if LONG and runs % 3 == 2 else []
        run = Run(kit, folder / str(runs), script, flags, base, earlier if overwrite else None)
        code, more = None, overwrite
        try:
            while code != 0:
                again = sum(phases.values()) < kills and run.processes < 8
                number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                end = killer(run, rng, number, not phases) if again else None
                code = run.process(end, more, forked=not LONG or rng.random() > 0.2)
                if code == 2 and not more:  # the kill came before --overwrite did anything
                    assert overwrite and "--overwrite" in run.errors and not run.work(), run.errors
                    more = overwrite
                    continue
                if code != 0:
                    assert again, run.errors
                    if number == signal.SIGKILL:
                        assert code == -number, run.errors
                    elif run.now < len(base.whole):  # not in its very last moments
                        told(run, code, number)
                    phases[f"{run.phase()} by {signal.Signals(number).name}"] += 1
                more = []
            run.compare()
        except Exception as error:
            raise AssertionError("\n".join([f"KILL_SEED={SEED}", *run.history, repr(error)])) from error
        shutil.rmtree(run.folder)
        runs, processes = runs + 1, processes + run.processes
    where = ", ".join(f"{count} {phase}" for phase, count in phases.most_common())
    return f"{script} {flags}: {kills} kills ({where}), {processes} processes in {runs} runs, all equal"


FEW, REST = KILLS // 2, (KILLS + 1) // 2
KILLED = [(script, flags, kills) for script, flags, kills in (
    ("finetune_teacher.py", EVERY_STEP, REST), ("finetune_teacher.py", "", FEW),
    ("dump_logits.py", "", KILLS), ("distill.py", EVERY_STEP, REST), ("distill.py", "", FEW),
    ("extra/pretrain_teacher.py", EVERY_STEP, KILLS)) if kills]


@pytest.fixture(scope="module")
def runs(kit, tmp_path_factory, request):
    """{what a test asks for: future of its run}. All begin here, two at a time."""
    # Else the processes of a test suite that was started in the background would ignore Ctrl-C, as it does.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    root = tmp_path_factory.mktemp("runs")
    asked = [item.callspec.params["what"] for item in request.session.items if "runs" in item.fixturenames]
    with ThreadPoolExecutor(2) as pool:
        found = {}
        for script in COMMANDS:
            if script in str(asked):
                found[script] = pool.submit(uninterrupted, kit, root / script, script)
                if LONG:
                    found[script, "other"] = pool.submit(uninterrupted, kit, root / "other" / script, script,
                                                         OTHER.get(script, "--clip 0.1"))
        for i, what in enumerate(asked):
            found[what] = pool.submit(killed, kit, root / str(i), *what, found[what[0]],
                                      found.get((what[0], "other")))
        yield found
        pool.shutdown(cancel_futures=True)
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("what", KILLED, ids=lambda what: " ".join(what[:2]))
def test_a_run_killed_at_any_moment_and_run_again_is_the_uninterrupted_one(runs, what):
    print(runs[what].result())
