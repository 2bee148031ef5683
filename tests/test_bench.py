"""The arithmetic of bench/, its result files and the generator of the README's table; no peer is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench
from bench import common, table
from runtime import UserError
from student import SIZES, Student, StudentConfig
from teacher import Teacher, TeacherConfig

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.stem for path in ROOT.glob("bench/*.py") if path.stem not in ("__init__", "common"))
RATES = {"fp32": 100.0, "bf16": 400.0, "copy": 10.0}


# ---- statistics --------------------------------------------------------------------------------------------


def test_summary_has_the_median_and_the_spread():
    assert common.summary([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0,
                                                     "values": [3.0, 1.0, 2.0, 10.0]}


def test_ratio_is_of_medians_and_its_spread_of_neighbours():
    ours, theirs = [10.0, 20.0, 60.0], [5.0, 4.0, 6.0]
    assert common.ratios(ours, theirs, "more") == (4.0, [2.0, 10.0])
    assert common.ratios(theirs, ours, "less") == (4.0, [2.0, 10.0])


def test_sides_alternate_after_a_warm_up():
    calls = []

    def side(name):
        return lambda: calls.append(name) or float(len(calls))

    values = common.alternate({"a": side("a"), "b": side("b"), "c": side("c")}, 2,
                              warm_up={"b": lambda: calls.append("short"), "c": None})
    assert calls == ["a", "short", "a", "b", "c", "c", "b", "a"]
    assert values == {"a": [3.0, 8.0], "b": [4.0, 7.0], "c": [5.0, 6.0]}


def test_different_results_end_a_comparison():
    assert "largest difference 0.5" in common.largest_difference([1.0, 2.0], [1.5, 2.0], 0.5, "x")
    with pytest.raises(UserError, match="the sides differ: x"):
        common.largest_difference([1.0, 2.0], [1.0, 2.6], 0.5, "x")
    with pytest.raises(UserError):
        common.largest_difference([float("nan")], [1.0], 0.5, "x")


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.123"), (12.345, "12.3"), (1234.5, "1,234"),
                                             (20, "20")])
def test_figures_have_three_digits(value, text):
    assert common.figure(value) == table.figure(value) == text


def test_steps_are_counted():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight])
    with common.count_steps() as steps:
        for _ in range(3):
            weight.square().sum().backward()
            optimizer.step()
    optimizer.step()
    assert len(steps) == 3


# ---- roofline ----------------------------------------------------------------------------------------------


def test_students_work_by_hand():
    """E 2, H 3, C 2; 10 tokens in 4 rows: of a token 2 directions x 12 gates x 5 inputs, of a row 6 x 2."""
    predicting = common.student_work(10, 4, 1, 7, 2, 3, 2, training=False)
    assert predicting == (2 * (10 * 120 + 4 * 12), 4 * (7 + 20))
    operations, moved = common.student_work(10, 4, 5, 7, 2, 3, 2, training=True)
    assert operations == 3 * 2 * (1200 + 48)
    assert moved == 4 * (11 * 5 * 7 + 2 * 10 * (2 + 36))


def test_teachers_work_by_hand():
    """D 4, I 8, 2 layers, E 4; rows of 2 and 3 tokens: one whole layer, one for the first token alone."""
    config = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    whole = 5 * 2 * (4 * 16 + 2 * 32) + 4 * 4 * (4 + 9)
    last = 5 * 4 * 16 + 2 * 2 * (2 * 16 + 2 * 32) + 4 * 4 * 5
    head = 2 * 2 * 16
    operations, moved = common.teacher_work([2, 3], 1, 100, config, training=False)
    assert operations == whole + last + head
    assert moved == 4 * (100 + 5 * 2 * 4 * 2)
    operations, moved = common.teacher_work([2, 3], 3, 100, config, training=True)
    assert operations == 3 * (whole + last + head)
    assert moved == 4 * (11 * 3 * 100 + 2 * 2 * (5 * (32 + 16) + 2 * 13))
    projected = common.teacher_work([2, 3], 1, 100, {**config, "embedding_size": 3}, training=False)[0]
    assert projected == whole + last + head + 5 * 2 * 3 * 4


class Words:
    """A tokenizer of a size."""

    def get_vocab_size(self):
        return 50

    def get_vocab(self):
        return {str(i): i for i in range(50)}

    def encode(self, *texts):
        return SimpleNamespace(ids=[0])


def counted(run) -> int:
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return counter.get_total_flops()


def test_teachers_work_is_what_pytorch_counts():
    config = TeacherConfig("electra", 50, 32, 3, 4, 64, 16, 20, 2, 2)
    teacher = Teacher(config, Words(), ["0", "1"], 20).eval()
    ids = torch.ones(5, 7, dtype=torch.long)
    published = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
                 "num_attention_heads": 4, "embedding_size": 16}
    operations, _ = common.teacher_work([7] * 5, 1, 0, published, training=False)
    classes = 5 * 2 * 32 * 2
    assert counted(lambda: teacher(ids, torch.full((5,), 7))) == operations + classes


def test_students_work_is_that_of_its_weights():
    """Each LSTM weight takes part in one multiply-add of a token, each of the head in one of a row."""
    E, H = SIZES["base"]
    student = Student(StudentConfig(50, 2, E, H), Words(), ["0", "1"])
    lstm = sum(p.numel() for name, p in student.named_parameters() if ".weight_" in name)
    operations, _ = common.student_work(11, 3, 1, 0, E, H, 2, training=False)
    assert operations == 2 * (11 * lstm + 3 * student.head.weight.numel())


def test_roof_is_the_slower_of_operations_and_bytes():
    products = common.roofline((1000.0, 20.0), RATES, "fp32", 20.0)
    assert products["least_seconds"] == 10.0 and products["fraction"] == 0.5
    assert products["matmul_per_second"] == 100.0 and products["seconds"] == 20.0
    copies = common.roofline((1000.0, 50.0), RATES, "bf16", 20.0)
    assert copies["least_seconds"] == 5.0 and copies["fraction"] == 0.25
    assert common.best_rates(RATES, {"fp32": 50.0, "bf16": 500.0, "copy": 11.0}) == {
        "fp32": 100.0, "bf16": 500.0, "copy": 11.0}


def test_gap_names_its_main_cause_first():
    own = {"mkldnn_rnn_layer": 4.0, "addmm": 0.5, "gather": 2.0, "copy_": 1.0}
    assert common.gap_in_words(own, 10.0, 3.0) == (
        "of the time other operators 30% (most of it gather), Python, tokenizing, reading 25%, "
        "LSTM layers 40% (at the roof 30%), matrix products 5% (most of it addmm)")
    assert common.gap_in_words({"mm": 9.9}, 10.0, 1.0) == (
        "of the time matrix products 99% (at the roof 10%), Python, tokenizing, reading 1%")


def test_account_of_a_training_counts_from_its_first_step_to_its_last():
    weight = torch.nn.Parameter(torch.ones(512, 512))
    optimizer = torch.optim.AdamW([weight])

    def train():
        for _ in range(3):
            (weight @ weight).sum().backward()
            optimizer.step()
        for _ in range(20):
            torch.ones(2000, 2000).sin()  # validation, which does not count

    words = common.account(train, 0.0, steps=3)
    assert "matrix products" in words and "sin" not in words
    assert "most of it sin" in common.account(train, 0.0)
    assert common.account(train, 0.0, steps=1) == "too few steps to tell"


# ---- results -----------------------------------------------------------------------------------------------


@pytest.fixture
def result(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench/dumping.py", "--rows", "10", "--train", "/home/me/train.tsv"])
    values = {"ours": [30.0, 40.0, 50.0], "the usual loop": [10.0, 8.0, 5.0]}
    return common.make_result(
        "dump-bf16", values, unit="examples/s", n=10, target=6, precision="bf16", checked=["one", "two"],
        gap="of the time much",
        roof=common.roofline((1000.0, 20.0), RATES, "bf16", 20.0), also={"something else": 1234.5})


def test_a_result_has_what_its_schema_says(result):
    assert common.check_result(result, "x") is result
    assert set(result) == set(common.SCHEMA)
    assert result["ratio"] == 5.0 and result["ratio_spread"] == [3.0, 10.0] and not result["reached"]
    assert result["rounds"] == 3 and result["theirs"]["what"] == "the usual loop"
    assert result["checked"] == "one; two"
    assert result["command"] == "python -m bench.dumping --rows 10 --train train.tsv"  # no absolute path
    assert {"hardware", "threads", "cores", "amx", "avx512_bf16"} <= set(result["hardware"])
    assert {"python", "torch"} <= set(result["versions"])


def test_unequal_quality_does_not_reach_a_target(result):
    values = {"ours": [9.0], "theirs": [1.0]}
    fields = {"unit": "x", "n": 1, "target": 2, "precision": "fp32", "checked": [], "roof": {}, "gap": ""}
    assert common.make_result("a", values, **fields)["reached"]
    assert not common.make_result("a", values, equal=False, **fields)["reached"]


@pytest.mark.parametrize("break_it", [
    lambda result: result.pop("roofline"), lambda result: result.update(n="10"),
    lambda result: result["ours"].pop("median"), lambda result: result.update(theirs=None)])
def test_a_broken_result_is_refused(result, break_it, tmp_path):
    break_it(result)
    with pytest.raises(UserError, match="measure anew"):
        common.publish(result, tmp_path)
    assert not list(tmp_path.iterdir())


def test_publish_writes_and_prints(result, tmp_path, capsys):
    common.publish(result, tmp_path)
    assert json.loads((tmp_path / "dump-bf16.json").read_text("utf-8")) == result
    printed = capsys.readouterr().out
    assert "5 x  (3x to 10x), target 6x NOT reached" in printed and "roofline: " in printed


@pytest.fixture
def parse(monkeypatch):
    """bench.parse_args, which else limits this process."""
    monkeypatch.setattr(bench, "keep_to_cores", lambda count: None)
    monkeypatch.setattr(bench, "quiet", lambda offline: None)
    return lambda *argv: bench.parse_args("x", argv, rows=10, long_rows=20)


def test_bf16_results_of_another_machine_are_removed(tmp_path, parse):
    for name in ("dump-bf16", "dump-fp32", "finetune-bf16"):
        (tmp_path / f"{name}.json").write_text("{}")
    args = parse("--results", str(tmp_path))
    assert common.precisions("bf16", ["dump"], args) == ["fp32", "bf16"]
    assert common.precisions("fp32", ["dump"], args) == ["fp32"]
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["dump-fp32", "finetune-bf16"]


def test_rows_repeat_until_there_are_enough(tmp_path):
    made = common.Material(tmp_path, tmp_path, tmp_path, ["가", '"나'], [1, 0], ["neg", "pos"], tmp_path)
    assert common.read_rows(made.write(3, "three")) == [("가", "pos"), ('"나', "neg"), ("가", "pos")]


# ---- the README --------------------------------------------------------------------------------------------


@pytest.fixture
def readme(tmp_path, result):
    common.publish(result, tmp_path / "results")
    texts = {"README.md": "before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n"}
    texts["README.ko.md"] = texts["README.md"]
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def fill(folder, *flags) -> int:
    return table.main(table.parse_args([
        "--results", str(folder / "results"), "--readme", str(folder / "README.md"),
        "--readme-ko", str(folder / "README.ko.md"), *flags]))


def test_table_is_filled_from_the_results(readme):
    assert fill(readme, "--check") == 1
    assert "old" in (readme / "README.md").read_text("utf-8")
    assert fill(readme) == 0 and fill(readme, "--check") == 0
    text, korean = ((readme / name).read_text("utf-8") for name in ("README.md", "README.ko.md"))
    for page in (text, korean):
        assert page.startswith("before\n<!-- bench -->\n") and page.endswith("\n<!-- /bench -->\nafter\n")
        assert "old" not in page
    assert ("| `dump_logits.py` | bf16 | 10 | 40 examples/s | the usual loop | 8 examples/s | **5×** (3–10) "
            "| 12.5% |") in text
    assert "**5×** (3–10) | 12.5% |" in korean and "## 효율" in korean and "## Efficiency" in text


def test_results_come_in_the_order_of_the_table(readme, result):
    for name in ("scaling-memory", "scaling-time", "dump-fp32", "aaa"):
        common.publish({**result, "name": name}, readme / "results")
    assert [found["name"] for found in table.read_results(readme / "results")] == [
        "dump-bf16", "dump-fp32", "scaling-time", "scaling-memory", "aaa"]


def test_table_keeps_machines_apart(readme, result):
    result["hardware"]["hardware"] = "another machine"
    result.update(name="distill-fp32", reached=True, roofline={})
    common.publish(result, readme / "results")
    fill(readme)
    text = (readme / "README.md").read_text("utf-8")
    assert text.count("| precision |") == 2
    assert text.count("| distil Base, an epoch |") == text.count("| `dump_logits.py` |") == 1
    assert text.index("| distil Base, an epoch |") < text.index("another machine, ") < text.index("| `dump_")
    assert "**5×** (3–10) | – |" in text


@pytest.mark.parametrize("text", ["no markers", "<!-- /bench --> <!-- bench -->",
                                  "<!-- bench --> <!-- bench --> <!-- /bench -->"])
def test_a_readme_without_its_markers_is_refused(readme, text):
    (readme / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="are needed"):
        fill(readme)
    assert (readme / "README.md").read_text("utf-8") == text


def test_no_results_are_refused(readme):
    (readme / "results" / "dump-bf16.json").unlink()
    with pytest.raises(SystemExit, match="no results"):
        fill(readme)


def test_readmes_are_up_to_date():
    checked = subprocess.run([sys.executable, "-m", "bench.table", "--check"], cwd=ROOT, capture_output=True)
    assert checked.returncode == 0, "run python -m bench.table"


# ---- the scripts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_help_is_the_manual_and_comes_without_torch(module):
    code = (f"import sys; sys.modules['torch'] = None; sys.argv = ['{module}', '--help']; import runpy; "
            f"runpy.run_module('bench.{module}', run_name='__main__')")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert f"python -m bench.{module}" in shown.stdout and "writes  " in shown.stdout
    assert "default: " in shown.stdout


def test_short_and_long_form(parse):
    assert (parse().rows, parse().rounds) == (10, 3)
    assert (parse("--long").rows, parse("--long").rounds) == (20, 5)
    assert parse("--long", "--rows", "7").rows == 7
    with pytest.raises(SystemExit):
        parse("--rounds", "-1")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def test_a_comparison_keeps_to_its_cores():
    code = ("import bench, os; bench.keep_to_cores(1); import torch; "
            "print(len(os.sched_getaffinity(0)), torch.get_num_threads(), os.environ['RAYON_NUM_THREADS'])")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.split() == ["1", "1", "1"]
