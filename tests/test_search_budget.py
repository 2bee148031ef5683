"""extra/search_budget.py: candidates, the choice, the file that fits, running again, stopping."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import LABELLED, TAUGHT, log_lines, read, refused, reviews, run, snapshot, write_rows
from tokenizers import Tokenizer

import distill
import runtime
from extra import search_budget
from student import Student
from tasks import Classification

ROOT = Path(__file__).parent.parent
CPU = "--device cpu --precision fp32 --max-tokens 256"
SEARCH = f"--tokenizer tokenizer/vocab_size_3000 --output-dir found --epochs 1 {CPU} --"
ALONE = f"{LABELLED} --alpha 1"
SCRIPT = [sys.executable, str(ROOT / "extra" / "search_budget.py")]


@pytest.fixture
def calls(monkeypatch):
    """distill.py runs in this process; the flags of each call."""
    found = []

    def run_distill(words):
        found.append(words)
        distill.main(distill.parse_args(words))

    monkeypatch.setattr(search_budget, "run_distill", run_distill)
    return found


def value(words, flag):
    return words[words.index(flag) + 1]


def search(budget, *flags):
    run("extra.search_budget", " ".join(["--budget", str(budget), SEARCH, *flags]))


# ---- the search --------------------------------------------------------------------------------------------


def test_the_best_trial_is_trained_in_full_and_its_file_fits(here, calls, capsys):
    run("train_tokenizer", "--data train.tsv --vocab-size 40 --min-frequency 1")
    flags = "--budget 16KB --tokenizer tokenizer/vocab_size_3000 tokenizer/vocab_size_40 --epochs 16 " \
            f"--output-dir found -- {TAUGHT} --lr 0.02 {CPU}"
    run("extra.search_budget", flags)
    out = capsys.readouterr().out
    *trials, final = calls
    assert {value(words, "--tokenizer") for words in trials} == {"tokenizer/vocab_size_3000",
                                                                 "tokenizer/vocab_size_40"}
    assert {value(words, "--epochs") for words in trials} == {"2"} and value(final, "--epochs") == "16"
    assert {value(words, "--output-dir") for words in trials} == {"found/trials"}
    assert all(value(words, "--lr") == "0.02" for words in calls) and len(trials) > 2

    students = {folder: Student.load(folder / "student.pt") for folder in Path("found/trials").iterdir()
                if folder.is_dir()}
    assert len(students) == len(trials)
    best = max(student.artifact["scores"]["valid_accuracy"] for student in students.values())
    shapes = {(s.config.vocab_size, s.config.embedding_dim, s.config.hidden_dim) for s in students.values()
              if s.artifact["scores"]["valid_accuracy"] == best}
    file, = Path("found").glob("best/*/student.int8.pt")
    small, full = Student.load(file), Student.load(file.with_name("student.pt"))
    config = small.config
    assert (config.vocab_size, config.embedding_dim, config.hidden_dim) in shapes and config == full.config
    assert file.stat().st_size <= 16_000 and len(log_lines(file.parent)) == 1 + 16
    assert small.artifact["scores"] == full.artifact["scores"]
    assert small.artifact["made_by"] == full.artifact["made_by"]

    table = out[out.rindex("int8 bytes"):].splitlines()[1:]
    rows = [line.split() for line in table[: len(trials)]]
    assert [float(row[4]) for row in rows] == sorted((float(row[4]) for row in rows), reverse=True)
    assert rows[0][:3] == [str(config.vocab_size), str(config.embedding_dim), str(config.hidden_dim)]
    assert all(int(row[3].replace(",", "")) <= 16_000 for row in rows)
    assert "int8 is the finest" in table[-2] and str(file) in table[-1]

    before = snapshot()
    run("extra.search_budget", flags)  # nothing is trained again
    assert {path: found for path, found in snapshot().items() if "summary" not in path} \
        == {path: found for path, found in before.items() if "summary" not in path}


def test_the_score_that_chooses_the_epoch_chooses_the_shape(here, calls, capsys):
    search("30KB", ALONE, "--best macro_f1")
    out = capsys.readouterr().out
    found = [Student.load(path).artifact["scores"] for path in Path("found/trials").glob("*/student.pt")]
    table = out[out.rindex("int8 bytes"):].splitlines()
    assert "macro_f1" in table[0] and "validation macro_f1" in table[-1]
    assert {value(words, "--best") for words in calls} == {"macro_f1"}
    expected = sorted((scores["valid_macro_f1"] for scores in found), reverse=True)
    assert [float(row.split()[4]) for row in table[1 : 1 + len(found)]] == pytest.approx(expected, abs=1e-4)


def test_an_interrupted_search_continues_with_what_is_missing(here, calls, monkeypatch, capsys):
    def made():
        return {path: digest for path, (_, digest) in snapshot("found").items()
                if path.endswith(("student.pt", "student.int8.pt"))}

    search("30KB", ALONE)
    expected, (final,) = made(), Path("found").glob("best/*/student.int8.pt")
    trial = min(path.parent for path in Path("found/trials").glob("*/student.pt"))
    assert len(expected) == 5  # three trials, the best in full, its copy
    for folder in (trial, final.parent):
        shutil.rmtree(folder)
    trained = []
    monkeypatch.setattr(distill, "train", lambda run, *rest, train=distill.train:
                        trained.append(run.folder) or train(run, *rest))
    search("30KB", ALONE)
    assert trained == [trial, final.parent] and made() == expected
    final.write_bytes(b"of a student before")
    search("30KB", ALONE)
    assert made() == expected and len(trained) == 2


def test_students_of_other_settings_may_be_in_the_same_folder(here, calls, capsys):
    """A name tells them apart, and the search takes its own."""
    chosen = {}
    for seed in (7, 1, 7):
        search("13KB", ALONE, f"--seed {seed}")
        chosen[seed] = capsys.readouterr().out.splitlines()[-1].split("/student")[0]
    assert chosen[7] == chosen[1].replace("seed1", "seed7") != chosen[1]


@pytest.mark.parametrize(("budget", "kind", "files"), [
    ("10MB", "float32", {"student.pt"}), ("1000KB", "float16", {"student.pt", "student.float16.pt"})])
def test_a_wide_budget_takes_a_finer_precision(here, calls, monkeypatch, capsys, budget, kind, files):
    """Of embeddings 16 wide and 192 hidden, the widest: 1.4 MB, 0.7 MB and 0.4 MB."""
    monkeypatch.setattr(search_budget, "WIDTHS", (16,))
    search(budget, ALONE)
    found = list(Path("found").glob("best/*/student*.pt"))
    assert {path.name for path in found} == files and len(found) == len(files) and len(calls) == 2
    assert f"{kind} is the finest" in capsys.readouterr().out
    config = Student.load(found[0]).config
    assert (config.embedding_dim, config.hidden_dim, value(calls[0], "--size")) == (16, 192, "large")


def test_a_budget_that_is_too_small_is_told_with_the_least_that_would_do(here, calls):
    message = refused(lambda: search("3KB", ALONE), "^--budget: .*--vocab-size")
    smallest = next(word for word in message.split() if "," in word).replace(",", "")
    assert not calls and not Path("found").exists()
    search(smallest, ALONE)
    file, = Path("found").glob("best/*/student.*.pt")
    assert file.stat().st_size <= int(smallest)


def test_many_labels_and_files_are_reckoned_with(here, calls):
    names = [f"분류이름_아주_긴_카테고리_{i:03d}" for i in range(60)]
    for name, count in (("train", 120), ("valid", 60)):
        write_rows(Path(f"{name}.tsv"), [(text, names[i % 60]) for i, (text, _) in
                                         enumerate(reviews(count, 0))])
    search("20KB", f"--train {'train.tsv ' * 8} --valid valid.tsv --alpha 1")
    file, = Path("found").glob("best/*/student.*.pt")
    assert file.stat().st_size <= 20_000


# ---- candidates --------------------------------------------------------------------------------------------


def test_candidates_are_the_widest_that_fit(kit, budget=30_000):
    tokenizer = Tokenizer.from_file(str(kit / "tokenizer/vocab_size_3000/tokenizer.json"))

    def found(budget, read=""):
        args = SimpleNamespace(budget=budget, num_layers=1, pooling="last", head="linear", pair=None)
        data = SimpleNamespace(task=Classification(["0", "1"]), what_was_read=lambda: {"files": read})
        return [shape[1:] for shape in search_budget.candidates(args, {"a": tokenizer}, data)]

    def size(E, H):
        config = search_budget.StudentConfig(tokenizer.get_vocab_size(), 2, E, H)
        return len(Student(config, tokenizer, ["0", "1"]).to_bytes("int8", made_by={"files": ""})) \
            + search_budget.RESERVE

    shapes = found(budget)
    assert len(shapes) > 2 and shapes == sorted(shapes, reverse=True)
    assert [H for _, H in shapes] == sorted({H for _, H in shapes})  # narrower in one, wider in the other
    for E, H in shapes:
        assert size(E, H) <= budget and 2 * H >= E
        assert size(E, H + 8) > budget or min(256, 12 * E) < H + 8
    assert found(10**9) == [(128, 256)] and found(budget, read="x" * 8000) != shapes


# ---- the subprocess ----------------------------------------------------------------------------------------


def test_a_search_that_is_told_to_stop_lets_distill_save(here):
    flags = f"--budget 13KB {SEARCH} {ALONE} --epochs 80000".split()
    child = subprocess.Popen([*SCRIPT, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                             start_new_session=True)
    try:
        while not list(Path("found/trials").glob("*/student.pt")) and child.poll() is None:
            time.sleep(0.05)
        child.terminate()
        error = child.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == 143
    assert error.strip().splitlines()[-1].endswith(shlex.join([*SCRIPT[1:], *flags]))
    last, = Path("found/trials").glob("*/last.pt")
    at = read(last)["at"]
    assert at["epoch"] + at["step"] > 0 and not at["finished"]
    runtime.lock(last.with_name(".lock"))  # nobody trains there any more


@pytest.fixture
def other_script(tmp_path, monkeypatch):
    """A distill.py of these lines."""
    monkeypatch.setattr(search_budget, "ROOT", tmp_path)
    return lambda *lines: (tmp_path / "distill.py").write_text("\n".join(["import os, signal, sys", *lines]))


def test_ctrl_c_waits_for_distill_which_gets_it_too(other_script, tmp_path):
    other_script("os.kill(os.getppid(), signal.SIGINT)", "__import__('time').sleep(0.6)",
                 f"open({str(tmp_path / 'saved')!r}, 'w')", "sys.exit(130)")
    with pytest.raises(runtime.Stopped, match="to continue") as stopped:
        search_budget.run_distill([])
    assert stopped.value.code == 130 and (tmp_path / "saved").exists()


def test_flags_reach_distill_and_its_failures_end_the_search(other_script, capfd):
    other_script("print(sys.argv[1:])", "sys.exit(len(sys.argv) - 1)")
    search_budget.run_distill([])
    refused(lambda: search_budget.run_distill(["--lr", "좋다 x"]), "^distill.py .*2")
    assert capfd.readouterr().out == "[]\n['--lr', '좋다 x']\n"


# ---- the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "words"), [
    ("--budget many", "'many'"), ("--budget 0KB", "'0KB'"), ("--budget -5", "--budget"),
    ("--size tiny", "--size"), ("--hidden-dim=8", "--hidden-dim"), ("--embedding-dim 8", "--embedding-dim"),
    ("--seed 1 2", "--seed"), ("--pooling max mean", "--pooling"), ("--epochs 0", "--epochs"),
])
def test_misuse_is_told(flags, words, capsys):
    line = f"--budget 9KB --tokenizer k {flags} --train t --valid v --alpha 1"
    with pytest.raises(SystemExit) as exit_:
        search_budget.parse_args(line.split())
    assert exit_.value.code == 2 and words in capsys.readouterr().err.strip().split("\n")[-1]


def test_other_flags_are_passed_on_in_order():
    line = "--train t u --logits a b --alpha 0.5 --label-column gold --deterministic --valid v"
    args = search_budget.parse_args(f"--budget 9KB --tokenizer k l -- {line}".split())
    assert args.rest == line.split() and (args.budget, args.tokenizer) == (9000, ["k", "l"])
    assert (args.train, args.logits, args.label_column) == (["t", "u"], ["a", "b"], "gold")


def test_byte_counts():
    counts = {"60000": 60_000, "300KB": 300_000, "1mb": 10**6, "2k": 2000}
    assert {text: search_budget.byte_count(text) for text in counts} == counts
