"""runtime.py: how scripts end, precision, safe files, locks, Log, Watch, and Run with a toy model."""

import argparse
import errno
import fcntl
import math
import os
import signal
import sys

import numpy as np
import pytest
import torch
from helpers import Interrupt, assert_same_run, log_lines, read, refused, snapshot

import runtime
from runtime import Log, Run, Stopped, UserError, Watch

CPU = torch.device("cpu")


# ---- how a script ends -------------------------------------------------------------------------------------


def raising(error):
    def script(args):
        raise error
    return script


@pytest.fixture
def sigterm():
    """main() installs a handler of SIGTERM for the rest of the process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("error, code, words", [
    (UserError("a.tsv:3: no label"), 2, "error: a.tsv:3: no label"),
    (LookupError("of a library\nin two lines"), 2, "of a library in two lines"),
    (FileNotFoundError(errno.ENOENT, "No such file", "x.tsv"), 2, "x.tsv: No such file"),
    (MemoryError(), 2, "out of memory (MemoryError); lower it"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
    (RuntimeError("could not create a primitive descriptor"), 2, "--precision fp32"),
    (KeyboardInterrupt(), 130, "interrupted; "), (Stopped(143, "saved"), 143, "interrupted; saved"),
])
def test_what_is_expected_ends_in_one_line_and_a_code(error, code, words, capsys, sigterm):
    with pytest.raises(SystemExit) as end:
        runtime.main(raising(error), None, errors=(LookupError,), memory="lower it")
    assert end.value.code == code
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1


def test_what_is_not_expected_has_a_traceback(sigterm):
    for error in (RuntimeError("shapes do not fit"), ValueError("x")):
        with pytest.raises(type(error)):
            runtime.main(raising(error), None)


def test_sigterm_ends_a_script_that_has_no_run_with_143(capsys, sigterm):
    with pytest.raises(SystemExit) as end:
        runtime.main(lambda args: os.kill(os.getpid(), signal.SIGTERM) or math.factorial(9), None)
    assert end.value.code == 143


@pytest.mark.parametrize("argv, command", [
    (["distill.py", "--train", "a b.tsv", "--overwrite"], "distill.py --train 'a b.tsv'"),
    (["distill.py", "--over", "--train", "a"], "distill.py --train a"),
])
def test_the_command_that_continues_does_not_overwrite(monkeypatch, argv, command):
    monkeypatch.setattr(sys, "argv", argv)
    assert runtime.how_to_continue().endswith(f"run again: python {command}")


# ---- device, precision, seeds ------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, transformer, lstm", [
    ({"avx512f", "avx512_bf16", "amx_bf16"}, "bf16", "bf16"), ({"avx512f", "avx512_bf16"}, "bf16", "fp32"),
    ({"asimd", "bf16"}, "bf16", "fp32"), ({"avx2", "avx512f"}, "fp32", "fp32"), (set(), "fp32", "fp32"),
])
def test_auto_precision_is_what_the_processor_has(monkeypatch, flags, transformer, lstm):
    monkeypatch.setattr(runtime, "cpu_flags", lambda: flags)
    assert runtime.pick_precision("auto", CPU) == transformer
    assert runtime.pick_precision("auto", CPU, lstm=True) == lstm
    assert [runtime.pick_precision(name, CPU, lstm=True) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize("text, flags", [
    ("processor\t: 0\nflags\t\t: fpu amx_bf16\n\nflags\t: other\n", {"fpu", "amx_bf16"}),
    ("processor : 0\nFeatures\t: asimd bf16\n", {"asimd", "bf16"}), ("", set()), (None, set()),
])
def test_instruction_sets_are_those_of_proc_cpuinfo(monkeypatch, text, flags):
    def read_text(path, encoding):
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(runtime.Path, "read_text", read_text)
    assert runtime.cpu_flags() == flags


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.pick_device("auto") == runtime.pick_device("cpu") == CPU
    for name in ("cuda", "mps"):
        refused(lambda name=name: runtime.pick_device(name), f"--device {name}")


def test_draws_are_a_function_of_the_numbers_alone():
    def draw(*numbers):
        runtime.seed_everything(CPU, *numbers)
        return torch.rand(4).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({tuple(draw(*numbers)) for numbers in [(1,), (1, 2), (2, 1), (1, 2, 3), (12, 3)]}) == 5


@pytest.mark.parametrize("done, rate", [(0.05, 0.5), (0.1, 1), (0.55, 0.5), (1, 0)])
def test_the_rate_rises_and_falls_linearly(done, rate):
    assert runtime.schedule(done, 0.1) == pytest.approx(rate)
    assert runtime.schedule(done, 0) == pytest.approx(1 - done)


# ---- files -------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_and_checked(tmp_path):
    path = tmp_path / "deep" / "a.pt"
    runtime.save({"kind": "toy", "format": 2, "x": torch.arange(3)}, path)
    assert runtime.load(path, "toy", 2, ["x"])["x"].tolist() == [0, 1, 2]
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]
    refused(lambda: runtime.load(path, "student", 2), "a.pt", "toy", "student")
    refused(lambda: runtime.load(path, "toy", 1), "a.pt", "format 2")
    refused(lambda: runtime.load(path, "toy", 2, ["x", "y"]), "a.pt", "no y")
    refused(lambda: runtime.load(tmp_path / "none.pt", "toy", 2), "none.pt", "No such file")
    refused(lambda: runtime.load_model(path, {"teacher": None}), "a.pt", "toy", "teacher")
    for content in (path.read_bytes()[:-7], b"", b"text", b"PK\3\4"):
        path.write_bytes(content)
        refused(lambda: runtime.load(path, "toy", 2), "a.pt", "not a .pt file")
    torch.save([torch.ones(2)], path)
    refused(lambda: runtime.load(path, "toy", 2), "not a file of this kit")


def test_files_are_replaced_together_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "folder").mkdir()
    unwritable = {tmp_path / "a.txt": "new", tmp_path / "b.pt": {"x": object}, tmp_path / "folder" / "c": "c"}
    monkeypatch.setattr(torch, "save", lambda content, file: (_ for _ in ()).throw(OSError(28, "disk full")))
    refused(lambda: runtime.save_together(unwritable), "b.pt", "disk full")
    assert (tmp_path / "a.txt").read_text() == "old" and len(snapshot(tmp_path)) == 1
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: runtime.save_together({tmp_path / "a.txt": "new", tmp_path / "pipe": "x"}), "pipe")
    assert (tmp_path / "a.txt").read_text() == "old"
    runtime.save_together({tmp_path / "a.txt": "new", tmp_path / "deep" / "b.txt": "가\udcff"})
    assert (tmp_path / "deep" / "b.txt").read_text("utf-8") == "가\\udcff"


def test_what_differs_is_listed():
    before = {"lr": 0.1, "seed": 1, "scratch": None, "the texts": "a" * 64}
    runtime.refuse_other_values("last.pt", before, dict(before))
    now = {"lr": 0.2, "seed": True, "scratch": "1,2,3", "the texts": "b" * 64, "new": 1}
    message = refused(lambda: runtime.refuse_other_values("last.pt", before, now), "last.pt", "--overwrite")
    assert ("lr (0.1, now 0.2), seed (1, now True), scratch (None, now 1,2,3), the texts, new (None, now 1);"
            in message)


def test_fingerprints_tell_values_shapes_and_types_apart():
    values = ["0", "1", torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3).half(), torch.zeros(6),
              torch.zeros(6).bfloat16()]
    assert len({runtime.fingerprint(value) for value in values}) == len(values)
    assert runtime.fingerprint(torch.zeros(3, 2).T) == runtime.fingerprint(torch.zeros(2, 3))


def test_one_run_holds_a_folder_and_a_killed_ones_litter_goes(tmp_path):
    names = [".last.pt.12.partial", ".a[b].pt.3.partial", ".other.pt.12.partial", "last.pt"]
    for name in names:
        (tmp_path / name).write_text("x")
    path = tmp_path / ".lock"
    with open(path, "w") as held:  # as another process would hold it
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("4321")
        held.flush()
        refused(lambda: runtime.lock(path, "last.pt"), str(tmp_path), "4321")
        assert {file.name for file in tmp_path.iterdir()} == {".lock", *names}
    runtime.lock(path, "last.pt", "a[b].pt")
    assert {file.name for file in tmp_path.iterdir()} == {".lock", *names[2:]}
    runtime.lock(path, "last.pt")  # an earlier run of this process has ended
    refused(lambda: runtime.lock(tmp_path / "last.pt" / ".lock"), "last.pt", "--output-dir")


# ---- log and watch -----------------------------------------------------------------------------------------


def test_a_log_goes_on_after_what_was_saved_of_it(tmp_path, monkeypatch):
    log = Log(tmp_path / "sub" / "log.jsonl")
    args = argparse.Namespace(overwrite=True, data=["\udcff.tsv"], lr=None)
    log.begin(args, runtime.made_by({"lr": 0.1}, {"the texts": "abc"}), CPU, precision="fp32")
    log.write(1, loss=0.5, name="가")
    saved = log.text
    log.write(2, loss=0.4)
    log.close()
    first, *lines = log_lines(tmp_path / "sub")
    assert first["arguments"] == {"data": ["\udcff.tsv"], "lr": 0.1}  # what decided, not what was typed
    assert (first["precision"], first["device"], first["ranks"]) == ("fp32", "cpu", 1)
    assert first["versions"]["torch"] == str(torch.__version__) and first["threads"] > 0
    assert lines == [{"step": 1, "loss": 0.5, "name": "가"}, {"step": 2, "loss": 0.4}]
    again = Log(tmp_path / "sub" / "log.jsonl", saved)
    again.write(2, loss=0.3)
    again.close()
    assert [line.get("loss") for line in log_lines(tmp_path / "sub")] == [None, 0.5, 0.3]
    refused(lambda: Log(tmp_path / "sub" / "log.jsonl" / "x"), "log")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(lambda: Log(tmp_path / "log.jsonl", tensorboard=True), "pip install tensorboard")


@pytest.mark.parametrize("device, at_once", [("cpu", True), ("cuda", False)])
def test_a_value_that_is_not_finite_is_told_with_its_step(device, at_once):
    """On a GPU one step later, as it would have to be waited for."""
    def diverged(*which):
        raise UserError(str(which))

    watch = Watch(torch.device(device), diverged)
    watch.step(torch.tensor(1.0), 0, 1)
    if at_once:
        refused(lambda: watch.step(torch.tensor(torch.inf), 0, 2), r"\(0, 2\)")
    else:
        watch.step(torch.tensor(torch.nan), 0, 2)
        refused(lambda: watch.step(torch.tensor(1.0), 0, 3), r"\(0, 2\)")
    watch = Watch(torch.device("cuda"), diverged)
    watch.step(torch.tensor(-torch.inf), 5, 6)
    refused(watch.finish, r"\(5, 6\)")  # before anything is saved


@pytest.mark.parametrize("seconds, text", [(12.3, "12s"), (59.6, "1:00"), (75, "1:15"), (3700, "1:01:40")])
def test_clock(seconds, text):
    assert runtime.clock(seconds) == text


def test_progress_is_shown_after_two_seconds_with_rate_and_rest(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: now[0])
    progress = runtime.Progress("train", 1000, "texts", done=200)
    progress.add(100)
    assert not capsys.readouterr().err
    now[0] += 5
    progress.add(100, torch.tensor(40.0))
    assert capsys.readouterr().err == "train: 400/1,000 texts (40%), 40/s, 15s left, loss 0.1000\n"
    assert progress.close() == 5 and progress.counted == 200


# ---- Run ---------------------------------------------------------------------------------------------------


def toy(folder="run", epochs=2, decided="fp32", scores=(0.5, 0.75), poison=None, slow=None, **flags):
    """A run as the scripts have it: five steps of two rows an epoch, whose inputs are drawn like dropout."""
    args = argparse.Namespace(**{"overwrite": False, "precision": "auto", "save_every": 10, "lr": 0.1,
                                 "tensorboard": False} | flags)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "peak": args.lr}], args.lr)
    made_by = runtime.made_by({"lr": args.lr, "epochs": epochs}, {"the texts": "abc"})
    run = Run(folder, "model.pt", made_by, args, CPU, decided)
    if run.finished:
        run.say_finished("accuracy")
        return run
    with run.start(model, optimizer, 7, lambda number: ("a.tsv", number + 100)):
        for epoch in run.epochs(epochs):
            for rows in run.steps([np.arange(i, i + 2) for i in range(0, 10, 2)], 10):
                if slow:
                    slow(run)
                loss = (model(torch.rand(2, 3)) - 1).square().sum()
                (loss * math.inf if poison == (epoch, rows[0]) else loss / 2).backward()
                run.add(loss)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                run.step(norm, rows, runtime.schedule(run.fraction_done(2), 0.2))
            if run.best({"loss": 1.0, "accuracy": scores[epoch]}, "accuracy"):
                runtime.save({"kind": "toy", "weights": model.state_dict(), "best": run.at["best"]},
                             run.artifact)
    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.mark.parametrize("step", range(1, 11))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_interrupted_in_any_step_continues_with_the_same_bits(folder, step, number, capfd):
    toy("whole")
    with pytest.MonkeyPatch.context() as patch:
        Interrupt(patch, step, number)
        with pytest.raises(Stopped) as stopped:
            toy()
    assert stopped.value.code == 128 + number and "run again: python " in str(stopped.value)
    assert "stopping after this step" in capfd.readouterr().err
    at, (epoch, before) = read(folder / "last.pt")["at"], divmod(step - 1, 5)
    assert (at["epoch"], at["step"], at["rows"]) == (epoch, before + 1, 2 * before + 2)
    torch.rand(9)  # whatever ran in between
    with pytest.MonkeyPatch.context() as patch:
        counted = Interrupt(patch, 0)
        toy()
    assert counted.steps == 10 - step  # none is done twice
    assert "continuing after epoch" in capfd.readouterr().out
    assert_same_run(folder, "whole", "model.pt")


def test_a_second_signal_stops_at_once(folder):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def twice(run):
        if run.at["step"] == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        toy(slow=twice)
    assert stopped.value.code == 143 and "saved;" not in str(stopped.value)
    assert read(folder / "last.pt")["at"]["step"] == 0
    before = signal.getsignal(signal.SIGINT)
    toy()
    assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler


def test_a_model_without_its_run_and_a_run_without_its_model_are_refused(folder):
    toy()
    kept = (folder / "model.pt").read_bytes()
    (folder / "model.pt").unlink()
    refused(toy, "run/model.pt", "put it back")
    (folder / "model.pt").write_bytes(kept[:-9])  # damaged
    refused(toy, "run/model.pt", "put it back")
    (folder / "model.pt").write_bytes(kept)
    (folder / "last.pt").unlink()
    refused(toy, "run/model.pt", "--overwrite")
    assert (folder / "model.pt").read_bytes() == kept


@pytest.mark.parametrize("change", [
    {"weights": {}}, {"weights": {"weight": torch.zeros(1, 4), "bias": torch.zeros(1)}}, {"optimizer": {}},
    {"at": {"best": {}, "finished": False}}, {"at": None}, {"at": ("epoch", "1")}, {"at": ("epoch", -1)},
    {"at": ("sums", [0.0, 0.0])}, {"at": ("sums", [1])}, {"at": ("best", {"valid_loss": "x"})},
    {"at": ("rows", True)}, {"at": ("epoch", 1)}, {"precision": "fp8"}, {"made_by": None}, {"format": 2},
    {"kind": "student"}, {"kind": None},
    {"state": torch.zeros(1)}, {"state": torch.zeros(8)[::2]}, {"param_groups": ("betas", (0.5, 0.9))},
], ids=lambda change: "-".join(map(str, next(iter(change.items()))))[:40].replace("\n", ""))
def test_a_damaged_state_is_refused_in_one_line(folder, change):
    with pytest.MonkeyPatch.context() as patch:
        Interrupt(patch, 3)
        with pytest.raises(Stopped):
            toy()
    state, ((name, value),) = read(folder / "last.pt"), change.items()
    if name == "state":
        state["optimizer"]["state"][0]["exp_avg"] = value
    elif name == "param_groups":
        state["optimizer"]["param_groups"][0][value[0]] = value[1]
    elif isinstance(value, tuple):
        state[name][value[0]] = value[1]
    else:
        state[name] = value
    torch.save(state, folder / "last.pt")
    before = snapshot(folder)
    refused(toy, "run/(last|model).pt")
    assert snapshot(folder) == before


@pytest.mark.parametrize("save_every, saved", [(10, (1, 0)), (0, (1, 2))])
def test_a_step_that_diverges_changes_nothing_and_its_rows_are_listed(folder, save_every, saved):
    refused(lambda: toy(poison=(1, 4), save_every=save_every), "epoch 2, step 3: .* 2 rows",
            r"run/diverged\.tsv; lower --lr \(run/model\.pt is the best before\)")
    assert (folder / "diverged.tsv").read_text() == "file\trow\na.tsv\t104\na.tsv\t105\n"
    state = read(folder / "last.pt")
    assert (state["at"]["epoch"], state["at"]["step"]) == saved
    assert all(tensor.isfinite().all() for tensor in state["weights"].values())
    refused(lambda: toy(poison=(0, 0), overwrite=True), r"epoch 1, step 1: .*; lower --lr$")
    toy(overwrite=True)
    assert not (folder / "diverged.tsv").exists()
