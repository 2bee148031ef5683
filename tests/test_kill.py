"""The long scripts killed and interrupted at any moment: --resume gives what one go gives.

Real processes. TORTURE=50 kills each script 50 times (`make torture`) where it is 3 otherwise. KILL_SEED=N
draws the same moments again; a failure prints it (where in the work they fall depends on the machine's pace).
"""

import compileall
import contextlib
import json
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

import numpy as np
import pytest
import torch

import distill
import dump_logits
import finetune_teacher
import pretrain_teacher
import runtime
import train_tokenizer
from teacher import Teacher, TeacherConfig, bert_template, load_tokenizer

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("TORTURE", 3))
SEED = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
LARGE = 3 if KILLS > 10 else 1
WORDS = ["좋다", "최고", "추천", "재밌다", "별로", "최악", "지루", "실망", "영화", "배우", "그냥", "정말"]
CPU = ["--device", "cpu", "--precision", "fp32", "--output-dir", "out"]
COMMANDS = {
    "finetune_teacher.py": [
        "--train", "train.tsv", "--valid", "valid.tsv", "--scratch", "1,16,2", "--tokenizer", "tokenizer",
        "--epochs", "3", "--lr", "0.01", "--max-tokens", "80", "--accumulate", "2", *CPU],
    "dump_logits.py": [
        "--teacher", "a.pt", "b.pt", "--data", "train.tsv", "unlabeled.tsv", "--max-tokens", "8", *CPU],
    "distill.py": [
        "--train", "train.tsv", "unlabeled.tsv", "--logits", "train.pt", "unlabeled.pt",
        "--valid", "valid.tsv", "--tokenizer", "tokenizer", "--size", "tiny", "--seed", "0", "1",
        "--dropout", "0.2", "--epochs", "2", "--lr", "0.01", "--max-tokens", "200", *CPU],
    "pretrain_teacher.py": [
        "--train", "train.tsv", "unlabeled.tsv", "--target-column", "label", "--tokenizer", "tokenizer",
        "--layers", "1", "--hidden-dim", "16", "--heads", "2", "--epochs", "2", "--lr", "0.01",
        "--max-tokens", "500", "--validate-every", "10", *CPU],
}
EVERY_STEP = ("--save-every", "0")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PAUSE": "0"}  # PAUSE: see DID

# ---- the scripts, with a trace of their work ---------------------------------------------------------------

# What runs are copies (an edit during the torture does not reach them) with one line more in each: a unit of
# work, that is a step or a part of a dump, leaves a line in the file `work` once it is computed, before it is
# saved. Unit number PAUSE of a process lasts until there is a file `go`.
CHANGES = {
    "finetune_teacher.py": ("            optimizer.step()\n", "runtime.did('out', epoch, step, 0)"),
    "dump_logits.py": ("            logits = logits.to(dtype)\n",
                       "runtime.did(path.stem, 0, number, len(part))"),
    "distill.py": ("            optimizer.step()\n", "runtime.did(folder.name, epoch, step, 0)"),
    "pretrain_teacher.py": ("        optimizer.step()\n", "runtime.did('out', epoch, step, 0)"),
}
DID = """

def did(*unit):
    with open("work", "a") as file:
        file.write(" ".join(map(str, unit)) + "\\n")
    did.units += 1
    while did.units == int(os.environ["PAUSE"]) and not os.path.exists("go"):
        time.sleep(0.005)


did.units = 0
"""
# Blocks and windows as small as these few rows need, so that a distillation is one that exceeds memory.
SMALL = {"batching.py": ("WINDOW = 2**24", "WINDOW = 2000"), "examples.py": ("CHUNK = 8192", "CHUNK = 64")}


def copy_scripts(folder: Path):
    for source in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py")]:
        text = source.read_text("utf-8")
        if source.name in CHANGES:
            line, trace = CHANGES[source.name]
            assert text.count(line) == 1, f"{source.name}: another loop than CHANGES expects"
            text = text.replace(line, line + line[: -len(line.lstrip())] + f"{trace}\n")
        if source.name in SMALL:
            assert text.count(SMALL[source.name][0]) == 1, f"{source.name}: SMALL is not there"
            text = text.replace(*SMALL[source.name])
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text + DID * (source.name == "runtime.py"), encoding="utf-8")


def write_reviews(path, n, seed):
    """Random words; label 1 when more of the first four than of the second four occur, but for one in ten."""
    rng = np.random.default_rng(seed)
    lines = ["text\tlabel"]
    for _ in range(n):
        chosen = rng.integers(0, len(WORDS), rng.integers(1, 9))
        label = int((chosen < 4).sum() > ((chosen >= 4) & (chosen < 8)).sum()) ^ int(rng.random() < 0.1)
        lines.append(" ".join(WORDS[i] for i in chosen) + f"\t{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """The scripts and all that they read."""
    folder = tmp_path_factory.mktemp("kit") / "kit"
    folder.mkdir()
    copy_scripts(folder)
    sizes = {"train": 600 * LARGE, "unlabeled": 300 * LARGE, "valid": 200}
    for seed, (name, rows) in enumerate(sizes.items()):
        write_reviews(folder / f"{name}.tsv", rows, seed)
        torch.save(torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed)), folder / f"{name}.pt")
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", str(folder / "train.tsv"), "--vocab-size", "60", "--min-frequency", "1",
         "--output-dir", str(folder / "made")]))
    shutil.move(folder / "made" / "vocab_size_60", folder / "tokenizer")
    for seed, name in enumerate(("a.pt", "b.pt")):
        torch.manual_seed(seed)
        tokenizer = load_tokenizer(folder / "tokenizer", "bert")
        tokenizer.post_processor = bert_template(tokenizer)
        config = TeacherConfig("bert", tokenizer.get_vocab_size(), 32, 2, 2, 64, 32, 64, 2, 2)
        Teacher(config, tokenizer, ["0", "1"], 32).save(folder / name)
    compileall.compile_dir(folder, quiet=1)
    return folder


# ---- a run of several processes ----------------------------------------------------------------------------


def listing(folder) -> set:
    """(path, inode) of every file under a folder that may change meanwhile."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            found |= listing(entry.path) if entry.is_dir() else {(entry.path, entry.inode())}
    return found


def partials(files) -> set:
    return {path for path, _ in files if path.endswith(".partial")}


class Run:
    """One command in a folder of its own, done by one process, or by several that go on from one another.

    `whole`: the units of work of the uninterrupted run, in order; None for that run itself.
    """

    def __init__(self, kit: Path, folder: Path, script: str, flags=(), whole=None):
        shutil.copytree(kit, folder, ignore=shutil.ignore_patterns("work", "out"))
        self.folder, self.script, self.whole = folder, script, whole
        self.command = [sys.executable, script, *COMMANDS[script], *flags]
        self.every_unit = script == "dump_logits.py" or flags == EVERY_STEP
        self.history, self.processes, self.now = [], 0, 0

    def work(self) -> list:
        path = self.folder / "work"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(name, *map(int, numbers)) for name, *numbers in map(str.split, lines)]

    def at(self) -> dict:
        """{name: (epoch, step)} of each last.pt."""
        found = {path.parent.name: torch.load(path, weights_only=True)["at"]
                 for path in (self.folder / "out").glob("**/last.pt")}
        return {name: (at["epoch"], at["step"]) for name, at in found.items()}

    def saved(self) -> int:
        """How many of the units, which are a first part of the whole, the files hold."""
        at, out = self.at(), self.folder / "out"
        there = [(out / f"{name}.pt").exists() or (out / f".{name}.shards" / f"{number:06}.pt").exists()
                 if self.script == "dump_logits.py" else (epoch, number) < at.get(name, (0, 0))
                 for name, epoch, number, _ in self.whole]
        assert there == sorted(there, reverse=True)
        return sum(there)

    def process(self, end=None, command=None, pause=0) -> int:
        """One process, from its start to the end that end(process) brings about; its exit code.

        However it ends, it did the units that were not saved before, in order, none of them twice, and saved
        them but for the bounded loss.
        """
        started, at = len(self.work()), self.at()
        before = self.saved() if self.whole else 0
        files = listing(self.folder / "out")
        command = command or self.command + ["--resume"] * (self.processes > 0)
        self.history.append(shlex.join(command[1:]))
        self.processes += 1
        (self.folder / "go").unlink(missing_ok=True)
        with open(self.folder / "stdout", "w") as stdout, open(self.folder / "stderr", "w") as stderr:
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=stdout, stderr=stderr, start_new_session=True,
                env=os.environ | ENVIRONMENT | {"PAUSE": str(pause)})
            try:
                if end:
                    end(process)
                process.wait(timeout=120)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.output, self.errors = ((self.folder / name).read_text("utf-8") for name in ("stdout", "stderr"))
        self.did = self.work()[started:]
        self.pid = process.pid
        self.history.append(f"-> {process.returncode} after {len(self.did)} units {self.errors[-200:]}")
        if self.whole:
            done = before + len(self.did)
            assert self.did == self.whole[before:done]
            least = done - 1
            if not self.every_unit and self.did:
                least = 0 if self.script == "pretrain_teacher.py" else next(
                    i for i, unit in enumerate(self.whole) if unit[:2] == self.did[-1][:2])
            self.now = self.saved()
            assert max(before, least) <= self.now <= done
            self.lost = done - self.now
            self.history.append(f"-> units {before} to {done}, saved {self.now}")
            self.check_what_it_says(before, at)
            after = listing(self.folder / "out")
            for path, inode in files:  # a finished part stays the file it is, until the whole is there
                if match := re.search(r"\.(\w+)\.shards/\d+\.pt$", path):
                    assert (path, inode) in after or (self.folder / "out" / f"{match[1]}.pt").exists()
        return process.returncode

    def check_what_it_says(self, before: int, at: dict):
        for name, *numbers in re.findall(r"^resuming(.*) after epoch (\d+), step (\d+)$", self.output, re.M):
            assert at[Path(name.strip() or "out").name] == tuple(map(int, numbers))
        for name, rows in re.findall(
                r"^(\w+)\.tsv: .* texts/s .*?(?:, ([\d,]+) rows were there)?(?:, accuracy .*)?$",
                self.output, re.M):
            there = sum(count for other, _, _, count in self.whole[:before] if other == name)
            assert int(rows.replace(",", "") or 0) == there

    def phase(self) -> str:
        """Where the last process, which was killed, was."""
        owners = {path.read_text().strip() for path in (self.folder / "out").glob("**/.*lock")}
        if any(f".{self.pid}.partial" in path for path in partials(listing(self.folder / "out"))):
            return "in a save"
        if str(self.pid) not in owners:
            return "at the start"
        if not self.did:
            return "at the end" if self.now == len(self.whole) else "before a step"
        done = self.whole.index(self.did[-1]) + 1
        if done == len(self.whole):
            return "at the end"
        what = "a file" if self.script == "dump_logits.py" else "an epoch"
        return f"{'in' if self.whole[done - 1][:2] == self.whole[done][:2] else 'after'} {what}"

    def result(self) -> dict:
        """{name of an output file: what has to be the same in every run}."""
        out, found = self.folder / "out", {}
        for path in sorted(path for path in out.glob("**/*") if path.is_file()):
            value = path.read_bytes()
            if path.name == "last.pt":
                value = torch.load(path, weights_only=True)
                assert value["at"].pop("log") == (path.parent / "log.jsonl").read_text("utf-8")
                value["at"].pop("seconds", None)
            elif path.name == "log.jsonl":
                value = [json.loads(line) for line in value.splitlines()]
                for line in value:
                    line.pop("seconds", None)
            elif path.name == "summary.tsv":
                value = [line.split("\t") for line in value.decode().splitlines()]
                column = value[0].index("seconds")
                value = [line[:column] + line[column + 1 :] for line in value]
            elif path.name.endswith("lock"):
                value = "whose process it is"
            found[str(path.relative_to(out))] = value
        return found


def assert_equal(one, other, where=""):
    """Nested dicts and lists equal, tensors to the bit."""
    assert type(one) is type(other), where
    if torch.is_tensor(one):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_equal(first, second, f"{where}/{i}")
    else:
        assert one == other, where


def compare(run: Run, base: Run, save_every: bool):
    """Every file of the output, log.jsonl with or without the one flag that may differ."""
    one, other = run.result(), base.result()
    for result in (one, other):
        for name in result:
            if name.endswith("log.jsonl") and not save_every:
                result[name][0]["arguments"].pop("save_every")
    assert_equal(one, other)


# ---- the runs, two at a time -------------------------------------------------------------------------------


def uninterrupted(kit, folder, script):
    run = Run(kit, folder, script, EVERY_STEP * (script != "dump_logits.py"))
    start = time.monotonic()
    assert run.process() == 0, run.errors
    run.seconds, run.whole = time.monotonic() - start, run.work()
    return run


def killer(run: Run, rng: random.Random, seconds: float, amid_work: bool):
    """Kills a process at a random moment: of the time that the whole takes, or of the work; or when a file
    changes, when one is half written, when a line is printed."""
    event = "unit" if amid_work else rng.choice(["time", "time", "unit", "file", "partial", "line"])
    wait, skip = rng.uniform(0, seconds), int(rng.expovariate(0.1 if run.every_unit else 0.5))
    if event == "unit":
        skip = rng.randrange(max(1, len(run.whole) - run.now))
    delay = rng.choice([0, rng.uniform(0, 0.01)])
    run.history.append(f"kill: {event}, {wait:.3f} s, after {skip} events, {delay:.4f} s")

    def look():
        if event == "unit":
            return len(run.work())
        files = listing(run.folder / "out")
        return {"file": files, "partial": partials(files),
                "line": os.path.getsize(run.folder / "stdout")}[event]

    def end(process):
        if event == "time":
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=wait)
        else:
            last, left = look(), skip
            while process.poll() is None and left >= 0:
                now = look()
                left -= now - last if event == "unit" else now != last and bool(now)
                last = now
                time.sleep(0.0003)
            time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    return end


def killed(kit, folder, script, flags, kills: int, base):
    """Runs killed again and again until `kills` are reached, each compared with the uninterrupted one."""
    rng, base = random.Random(f"{SEED} {script} {flags}"), base.result()
    phases, resumes, runs = Counter(), 0, 0
    while sum(phases.values()) < kills:
        run, code = Run(kit, folder / str(runs), script, flags, base.whole), None
        try:
            while code != 0:
                at_end = run.processes and run.now == len(base.whole) and rng.random() < 0.5
                again = sum(phases.values()) < kills and run.processes < 8 and not at_end
                code = run.process(killer(run, rng, base.seconds, not phases) if again else None)
                if code != 0:
                    assert again and code == -signal.SIGKILL, run.errors
                    phases[run.phase()] += 1
            compare(run, base, save_every=run.every_unit)
        except Exception as error:
            raise AssertionError("\n".join([f"KILL_SEED={SEED}", *run.history, repr(error)])) from error
        shutil.rmtree(run.folder)
        runs, resumes = runs + 1, resumes + run.processes - 1
    where = ", ".join(f"{count} {phase}" for phase, count in phases.most_common())
    return f"{script} {' '.join(flags)}: {kills} kills ({where}), {resumes} resumes in {runs} runs, all equal"


@pytest.fixture(scope="module")
def runs(kit, tmp_path_factory, request):
    """{what a test asks for: future of its run}. All begin here, two at a time."""
    # Else the processes of a test suite that was started in the background would ignore Ctrl-C, as it does.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    root, found = tmp_path_factory.mktemp("runs"), {}
    asked = {item.callspec.params["what"] for item in request.session.items if "runs" in item.fixturenames}
    with ThreadPoolExecutor(2) as pool:
        for script in COMMANDS:
            if script in str(asked):
                found[script] = pool.submit(uninterrupted, kit, root / script, script)
        for i, what in enumerate(what for what in [*KILLED, *INTERRUPTED] if what in asked):
            found[what] = pool.submit(what[-1], kit, root / str(i), *what[:-1], found[what[0]])
        yield found
        pool.shutdown(cancel_futures=True)
    signal.signal(signal.SIGINT, handler)


FEW, REST = KILLS // 2, (KILLS + 1) // 2
KILLED = [(script, flags, kills, killed) for script, flags, kills in (
    ("finetune_teacher.py", EVERY_STEP, REST), ("finetune_teacher.py", (), FEW),
    ("dump_logits.py", (), KILLS), ("distill.py", EVERY_STEP, REST), ("distill.py", (), FEW),
    ("pretrain_teacher.py", EVERY_STEP, KILLS))]


@pytest.mark.parametrize("what", KILLED, ids=lambda what: " ".join((what[0], *what[1])))
def test_a_run_killed_at_any_moment_and_resumed_is_the_uninterrupted_one(runs, what):
    print(runs[what].result())


# ---- Ctrl-C and SIGTERM ------------------------------------------------------------------------------------


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or hangs"
        time.sleep(0.002)


def interrupted(kit, folder, script, base):
    """A run stopped before its first step, amid others, and by a second Ctrl-C; what it prints goes on."""
    run = Run(kit, folder, script, (), base.result().whole)
    dump = script == "dump_logits.py"  # keeps nothing of an unfinished part, so does not wait for its end

    def when_begun(process):
        wait_for(process, lambda: listing(run.folder / "out"))  # it has the lock: it reads, or encodes
        os.kill(process.pid, signal.SIGTERM)
        (run.folder / "go").touch()

    def amid(number, times=1):
        def end(process):
            wait_for(process, lambda: len(run.work()) == before + 5)
            os.kill(process.pid, number)
            if not dump:
                wait_for(process, lambda: "once more stops at once" in (run.folder / "stderr").read_text())
                if times == 2:
                    os.kill(process.pid, number)
                else:
                    (run.folder / "go").touch()

        before = len(run.work())
        return end

    try:
        assert run.process(when_begun, pause=1) == 143
        assert run.errors.splitlines()[-1].startswith("interrupted")
        command, result = None, "finished parts are saved" if dump else "saved"
        for number, times in ((signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)):
            assert run.process(amid(number, times), command, pause=5) == 128 + number
            last = run.errors.splitlines()[-1]
            assert last.startswith(f"interrupted; {result}; go on with: " if times == 1
                                   else "interrupted; ") and "Traceback" not in run.errors
            assert len(run.did) == 5 and (run.lost == 0 or dump or times == 2)
            words = shlex.split(last.partition("go on with: ")[2])
            assert words[0] == "python"
            command = [sys.executable, *words[1:]]
        assert run.process(command=command) == 0
        compare(run, base.result(), save_every=dump)
    except Exception as error:
        raise AssertionError("\n".join([*run.history, repr(error)])) from error


INTERRUPTED = [(script, interrupted) for script in COMMANDS]


@pytest.mark.parametrize("what", INTERRUPTED, ids=lambda what: what[0])
def test_an_interrupted_run_tells_the_command_that_goes_on(runs, what):
    runs[what].result()


# ---- what --resume and --overwrite do with what is there (in this process) ---------------------------------


@pytest.fixture
def here(kit, tmp_path, monkeypatch):
    """A copy of the kit as the working folder; what runs here are the scripts themselves, a few steps."""
    folder = shutil.copytree(kit, tmp_path / "here")
    for seed, name in enumerate(("train", "unlabeled"), 7):
        write_reviews(folder / f"{name}.tsv", 60, seed)
        torch.save(torch.randn(60, 2, generator=torch.Generator().manual_seed(seed)), folder / f"{name}.pt")
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield folder
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def main(script, *flags):
    module = {"finetune_teacher.py": finetune_teacher, "dump_logits.py": dump_logits, "distill.py": distill,
              "pretrain_teacher.py": pretrain_teacher}
    words = [*COMMANDS[script], *flags]
    runtime.run(module[script].main, module[script].parse_args(words))


def refused(capsys, script, *flags) -> str:
    """What is told on stderr when this ends with exit code 2, nothing on disk changed."""
    def files():
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path().rglob("*")
                if path.is_file() and not path.name.endswith("lock")}

    before = files()
    with pytest.raises(SystemExit, match="2"):
        main(script, *flags)
    assert files() == before
    return capsys.readouterr().err.splitlines()[-1]


def killed_at_save(script, number: int, *flags):
    """Stops where a kill would, right after a file was written; a save that is to come does not come."""
    save, count = runtime.save, []

    def save_or_die(artifact, path):
        if len(count) == number:
            raise KeyboardInterrupt
        count.append(path)
        save(artifact, path)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(runtime, "save", save_or_die)
        main(script, *flags)


def artifacts():
    return {path: path.read_bytes() for path in Path("out").rglob("*")
            if path.suffix in (".pt", ".bin") and path.name != "last.pt" and ".shards" not in str(path)}


def one_more_text(name):
    def change():
        with open(f"{name}.tsv", "a", encoding="utf-8") as file:
            file.write("새로운 영화\t1\n")
        torch.save(torch.cat([torch.load(f"{name}.pt"), torch.zeros(1, 2)]), f"{name}.pt")
    return change


CHANGED = {  # flags or a change of a file, and what the refusal lists
    "finetune_teacher.py": [
        (["--lr", "0.02"], "lr (0.01, now 0.02)"),
        (["--seed", "3", "--clip", "2"], "clip (1.0, now 2.0), seed (0, now 3), the weights at the start"),
        (["--precision", "bf16"], "--precision (fp32, now bf16)"),
        (one_more_text("train"), "the texts of --train, the labels of --train"),
        (one_more_text("valid"), "the texts of --valid, the labels of --valid"),
    ],
    "dump_logits.py": [
        (["--dtype", "float16"], "dtype (float32, now float16)"),
        (["--teacher", "b.pt", "a.pt"], "the weights of teacher 1, the weights of teacher 2"),
        (["--teacher", "a.pt"], "the number of teachers (2, now 1)"),
        (["--precision", "bf16"], "precision (fp32, now bf16)"),
        (["--max-tokens", "9"], "max_tokens (8, now 9)"),
        (one_more_text("train"), "texts"),
    ],
    "distill.py": [
        (["--lr", "0.02"], "lr (0.01, now 0.02)"),
        (["--seed", "3", "--loss", "kl"], "loss (mse, now kl), seed (0, now 3)"),
        (["--precision", "bf16"], "--precision (fp32, now bf16)"),
        (lambda: torch.save(torch.zeros(60, 2), "train.pt"), "--logits"),
        (one_more_text("unlabeled"), "the texts of --train, the labels of --train, --logits"),
    ],
    "pretrain_teacher.py": [
        (["--lr", "0.02"], "lr (0.01, now 0.02)"),
        (["--seed", "3", "--mask-rate", "0.2"],
         "mask_rate (0.15, now 0.2), seed (0, now 3), the weights at the start"),
        (["--precision", "bf16"], "--precision (fp32, now bf16)"),
        (one_more_text("unlabeled"), "the texts of --train, the targets"),
    ],
}
ONE = {"distill.py": ["--seed", "0"]}  # a grid of one, whose folder has no seed in its name


@pytest.mark.parametrize("script", CHANGED)
@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_resume_with_other_arguments_or_files_is_refused_by_name(here, capsys, script, state):
    flags = [*ONE.get(script, []), *(EVERY_STEP if script != "dump_logits.py" else [])]
    if state == "finished":
        main(script, *flags)
    else:
        killed_at_save(script, 2, *flags)
    for change, listed in CHANGED[script]:
        if state == "finished" and listed in ("max_tokens (8, now 9)", "texts"):
            continue  # whole logits are right whatever the batches were; those of other texts: --append
        kept = {path: path.read_bytes() for path in Path().glob("*.*")}
        if callable(change):
            change()
        message = refused(capsys, script, *flags, *([] if callable(change) else change), "--resume")
        assert re.fullmatch(rf"error: out/\S+: was made with other values of {re.escape(listed)}; use those, "
                            r"or --overwrite to start anew", message), message
        for path, value in kept.items():
            path.write_bytes(value)


@pytest.mark.parametrize("script", COMMANDS)
def test_finished_work_stays_as_it_is_but_for_overwrite(here, capsys, script):
    main(script)
    first = artifacts()
    assert len(first) == (2 if script in ("dump_logits.py", "distill.py") else 1)
    message = refused(capsys, script)
    assert "is there already" in message and "--overwrite" in message
    main(script, "--resume")
    assert artifacts() == first
    other = ["--teacher", "b.pt"] if script == "dump_logits.py" else ["--lr", "0.02"]
    main(script, *other, "--overwrite")
    second = artifacts()
    assert second.keys() == first.keys() and not set(first.values()) & set(second.values())
    main(script, "--overwrite")
    assert artifacts() == first


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize("saves", [2, 100])
def test_what_a_killed_run_left_half_written_is_gone_when_it_is_resumed(here, script, saves):
    flags = [] if script == "dump_logits.py" else EVERY_STEP
    if saves == 100:
        main(script, *flags)
    else:
        killed_at_save(script, saves, *flags)
    written = [*Path("out").rglob("*.pt"), *Path("out").rglob("summary.tsv")]
    if script == "distill.py":
        written += [path.with_name("student.int8.pt") for path in Path("out").glob("*/last.pt")]
    for path in written:
        path.with_name(f".{path.name}.123.partial").write_bytes(b"half")
    main(script, *flags, "--resume")
    assert not list(Path("out").rglob("*.partial"))


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize("saves", [0, 2, 5])
def test_an_overwriting_run_that_was_killed_goes_on_with_resume(here, script, saves):
    """What it is to replace was made with other arguments. Killed before its first save it has not begun:
    the earlier results are whole. Later, also amid the first of two students or files, or between them."""
    every = [] if script == "dump_logits.py" else EVERY_STEP
    main(script, *every)
    wanted = artifacts()
    main(script, *(["--teacher", "b.pt"] if script == "dump_logits.py" else ["--lr", "0.02"]), "--overwrite")
    earlier = artifacts()
    killed_at_save(script, saves, *every, "--overwrite")
    if saves == 0:
        assert artifacts() == earlier
    main(script, *every, "--resume" if saves else "--overwrite")
    assert artifacts() == wanted


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_dump_killed_while_it_clears_its_parts_away_is_whole(here, capsys, earlier, last):
    """They go one by one, in any order: what is left of them is litter."""
    def killed_after_one(folder, **options):
        if list(Path(folder).glob("0*.pt")):
            sorted(Path(folder).glob("*.pt"))[-last].unlink()
            raise KeyboardInterrupt
        rmtree(folder, **options)

    rmtree = shutil.rmtree

    if earlier:
        main("dump_logits.py", "--teacher", "b.pt")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(shutil, "rmtree", killed_after_one)
        main("dump_logits.py", *(["--overwrite"] if earlier else []))
    whole = Path("out/train.pt").read_bytes()
    capsys.readouterr()
    main("dump_logits.py", "--resume")
    assert "out/train.pt: is whole, 60 rows" in capsys.readouterr().out
    assert Path("out/train.pt").read_bytes() == whole and not list(Path("out").glob(".*.shards"))


@pytest.mark.parametrize("saves", [1, 2, 5])
def test_an_append_that_was_killed_goes_on(here, saves):
    """Killed after the plan, after a part, and when the first of two files was whole."""
    main("dump_logits.py")
    first = artifacts()
    for seed, name in enumerate(("train", "unlabeled")):
        write_reviews(here / "more.tsv", 50, seed)
        with open(f"{name}.tsv", "a", encoding="utf-8") as file:
            file.writelines(Path("more.tsv").read_text("utf-8").splitlines(keepends=True)[1:])
    main("dump_logits.py", "--append")
    wanted = artifacts()
    assert len(set(first.values()) | set(wanted.values())) == 4
    for path, value in first.items():
        path.write_bytes(value)
    killed_at_save("dump_logits.py", saves, "--append")
    main("dump_logits.py", "--append", "--resume")
    assert artifacts() == wanted and not list(Path("out").glob(".*.shards"))


def test_an_append_that_was_interrupted_begins_anew_where_the_file_has_grown_again(here, capsys):
    main("dump_logits.py")
    first = torch.load("out/train.pt")["logits"]
    for number in (50, 60):
        write_reviews(here / "more.tsv", number, number)
        with open("train.tsv", "a", encoding="utf-8") as file:
            file.writelines(Path("more.tsv").read_text("utf-8").splitlines(keepends=True)[1:])
        if number == 50:
            killed_at_save("dump_logits.py", 2, "--append")
    assert "--append begins that anew" in refused(capsys, "dump_logits.py", "--resume")
    main("dump_logits.py", "--append")
    assert torch.equal(torch.load("out/train.pt")["logits"][:60], first)
    main("dump_logits.py", "--check", "170")
    assert "out/train.pt: 170 of 170 rows computed again" in capsys.readouterr().out


# ---- torchrun ----------------------------------------------------------------------------------------------


def test_two_processes_that_were_terminated_go_on(here):
    """Dropout draws other masks there: without it they are to agree with one process that was not stopped."""
    flags = ["--dropout", "0", "--max-tokens", "20"]
    main("distill.py", *flags)
    Path("out").rename("one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               "distill.py", *COMMANDS["distill.py"], *flags]
    for stop in (True, False):
        with open("stdout", "w") as stdout, open("stderr", "w") as stderr:
            process = subprocess.Popen(command + ["--resume"] * (not stop), stdout=stdout, stderr=stderr,
                                       start_new_session=True, env=os.environ | ENVIRONMENT)
        try:
            if stop:
                wait_for(process, lambda: Path("work").exists() and len(Path("work").read_text()) > 200)
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=120)
        finally:
            process.terminate()
            process.wait()
        errors = Path("stderr").read_text()
        assert (process.returncode != 0) == stop, errors
        assert not stop or re.search(  # torchrun may end one of the two before it has said so
            "^rank [01]: interrupted; saved; go on with the same command and --resume$", errors, re.M)
    assert re.search("^resuming out/tiny-seed[01] after", Path("stdout").read_text(), re.M)
    for file in ("student.pt", "last.pt"):
        for path in Path("out").glob(f"*/{file}"):
            one, two = (torch.load(file, weights_only=True)["weights"]
                        for file in (path, Path("one") / path.relative_to("out")))
            assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-5
