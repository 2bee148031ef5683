"""bench/: its arithmetic by hand, its result files and page, and every comparison in its tiny form."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bench
from bench import common, dumping, finetuning, scaling, table, tfidf
from runtime import UserError
from student import SIZES, Student, StudentConfig
from teacher import Teacher, TeacherConfig

ROOT = Path(__file__).parent.parent
PARTS = {"__init__", "baselines", "client", "common", "runs"}  # of the others
MODULES = sorted({path.stem for path in ROOT.glob("bench/*.py")} - PARTS)
RATES = {"fp32": 100.0, "bf16": 400.0, "copy": 10.0}
FILES = ["--train", str(ROOT / "data/sample/train.tsv"), "--valid", str(ROOT / "data/sample/valid.tsv")]


# ---- measuring ---------------------------------------------------------------------------------------------


def test_ratio_is_of_medians_and_its_spread_of_neighbours():
    ours, theirs = [10.0, 20.0, 60.0], [5.0, 4.0, 6.0]
    assert common.ratios(ours, theirs, "more") == (4.0, [2.0, 10.0])
    assert common.ratios(theirs, ours, "less") == (4.0, [2.0, 10.0])


def test_sides_alternate_after_a_warm_up(monkeypatch):
    rates = iter([RATES, {"fp32": 50.0, "bf16": 500.0, "copy": 11.0}])
    monkeypatch.setattr(common, "machine_rates", lambda tiny: next(rates))
    calls = []

    def side(name):
        return lambda: calls.append(name) or float(len(calls))

    values, best = common.alternate(SimpleNamespace(tiny=False, rounds=2), {
        "a": side("a"), "b": side("b"), "c": side("c")}, cold=("b", "c"))
    assert calls == ["a", "a", "b", "c", "c", "b", "a"]
    assert values == {"a": [2.0, 7.0], "b": [3.0, 6.0], "c": [4.0, 5.0]}
    assert best == {"fp32": 100.0, "bf16": 500.0, "copy": 11.0}


def test_different_results_end_a_comparison():
    assert "0.5" in common.largest_difference([1.0, 2.0], [1.5, 2.0], 0.5, "x")
    for ours in ([1.0, 2.6], [1.0, float("nan")]):
        with pytest.raises(UserError, match="differ"):
            common.largest_difference(ours, [1.0, 2.0], 0.5, "x")
    theirs = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    assert dumping.agreement(theirs + 1e-5, theirs, "fp32")
    assert dumping.agreement(theirs * 1.01, theirs, "bf16")
    for wrong, precision in ((theirs + 1e-3, "fp32"), (theirs.flip(1), "bf16")):
        with pytest.raises(UserError, match="differ"):
            dumping.agreement(wrong, theirs, precision)


def test_speed_counts_at_equal_quality():
    target = torch.arange(200) % 2
    good, poor = torch.eye(2)[target], torch.eye(2)[torch.where(torch.arange(200) < 40, 1 - target, target)]
    assert "+0.00" in finetuning.equal_quality(good, good, target, ["0", "1"])
    assert "+20.00" in finetuning.equal_quality(good, poor, target, ["0", "1"])
    with pytest.raises(UserError, match=r"differ.*-20\.00"):
        finetuning.equal_quality(poor, good, target, ["0", "1"])
    nothing = torch.eye(2)[torch.zeros(200, dtype=torch.long)]
    assert "nothing learnt" in finetuning.equal_quality(1 - good, nothing, target, ["0", "1"])


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.123"), (12.345, "12.3"), (1234.5, "1,234"),
                                             (20, "20")])
def test_figures_have_three_digits(value, text):
    assert table.figure(value) == text


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


def test_teachers_work_is_what_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = TeacherConfig("electra", 50, 32, 3, 4, 64, 16, 20, 2, 2)
    teacher = Teacher(config, Words(), ["0", "1"], 20).eval()
    published = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
                 "num_attention_heads": 4, "embedding_size": 16}
    operations, _ = common.teacher_work([7] * 5, 1, 0, published, training=False)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        teacher(torch.ones(5, 7, dtype=torch.long), torch.full((5,), 7))
    assert counter.get_total_flops() == operations + 5 * 2 * 32 * 2  # and the classes


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


# ---- results and their page --------------------------------------------------------------------------------


def publish(folder, name="dump-bf16", **more):
    values = {"ours": [30.0, 40.0, 50.0], "the usual loop": [10.0, 8.0, 5.0]}
    return common.publish(SimpleNamespace(results=folder), name, values, **{
        "unit": "examples/s", "n": 10, "precision": "bf16", "checked": "one",
        "roof": common.roofline((1000.0, 20.0), RATES, "bf16", 20.0), "also": {"else": 1234.5}, **more})


def test_a_result_is_written_and_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench/dumping.py", "--rows", "10", "--train", "/home/me/train.tsv"])
    result = publish(tmp_path / "results")
    assert json.loads((tmp_path / "results" / "dump-bf16.json").read_text("utf-8")) == result
    assert result["ratio"] == 5.0 and result["ratio_spread"] == [3.0, 10.0] and result["rounds"] == 3
    assert result["ours"] == {"median": 40.0, "min": 30.0, "max": 50.0, "values": [30.0, 40.0, 50.0]}
    assert result["theirs"]["what"] == "the usual loop"
    assert result["command"] == "python -m bench.dumping --rows 10 --train train.tsv"  # no absolute path
    assert {"hardware", "threads", "cores", "amx", "avx512_bf16"} <= set(result["hardware"])
    assert {"python", "torch"} <= set(result["versions"])
    printed = capsys.readouterr().out
    assert "(3 to 10)" in printed and "1,234" in printed and "12.5%" in printed
    publish(None)
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.fixture
def page(tmp_path):
    publish(tmp_path / "results")
    path = tmp_path / "efficiency.md"
    path.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n", encoding="utf-8")
    return path


def fill(page) -> str:
    table.main(table.parse_args(["--results", str(page.parent / "results"), "--page", str(page)]))
    return page.read_text("utf-8")


def test_page_is_filled_from_the_results(page):
    text = fill(page)
    assert fill(page) == text and "old" not in text
    assert text.startswith("before\n<!-- bench -->\n|") and text.endswith("\n<!-- /bench -->\nafter\n")
    assert ("| `dump_logits.py` | bf16 | 10 | 40 examples/s | the usual loop | 8 examples/s | **5×** (3–10) "
            "| 12.5% |") in text


def test_results_come_in_the_order_of_the_table(page):
    for name in ("scaling-memory", "scaling-time", "dump-fp32", "aaa"):
        publish(page.parent / "results", name)
    assert [found["name"] for found in table.read_results(page.parent / "results")] == [
        "dump-bf16", "dump-fp32", "scaling-time", "scaling-memory", "aaa"]


def test_table_keeps_machines_apart(page, monkeypatch):
    monkeypatch.setattr(common, "hardware", lambda: {"hardware": "another machine", "cores": 3, "amx": True,
                                                     "avx512_bf16": None})
    publish(page.parent / "results", "distill-fp32", roof=None)
    text = fill(page)
    assert text.count("| precision |") == 2 and "**5×** (3–10) | – |" in text
    assert text.index("| distil Base, one epoch |") < text.index("another machine, 3 cores, AMX, python") \
        < text.index("| `dump_")


@pytest.mark.parametrize("text", ["no markers", "<!-- /bench --> <!-- bench -->",
                                  "<!-- bench --> <!-- bench --> <!-- /bench -->"])
def test_a_page_without_its_markers_is_refused(page, text, capsys):
    page.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as error:
        fill(page)
    assert error.value.code == 2 and "efficiency.md" in capsys.readouterr().err
    assert page.read_text("utf-8") == text


def test_no_results_are_refused(page):
    (page.parent / "results" / "dump-bf16.json").unlink()
    with pytest.raises(SystemExit) as error:
        fill(page)
    assert error.value.code == 2


def test_the_page_of_the_kit_is_up_to_date():
    path = ROOT / "docs/efficiency.md"
    text, block = path.read_text("utf-8"), table.block(table.read_results(ROOT / "bench/results"))
    assert table.filled(text, block, path) == text, "run python -m bench.table"


# ---- flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_help_is_the_manual_and_comes_without_torch(module):
    code = (f"import sys; sys.modules['torch'] = None; sys.argv = ['{module}', '--help']; import runpy; "
            f"runpy.run_module('bench.{module}', run_name='__main__')")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert f"python -m bench.{module}" in shown.stdout and "writes  " in shown.stdout
    assert "default: " in shown.stdout


def test_forms():
    def parse(*argv):
        return bench.parse_args("x", argv, rows=(5, 10, 20))

    forms = [parse("--tiny"), parse(), parse("--long")]
    assert [(args.rows, args.rounds, args.cores, args.results) for args in forms] == [
        (5, 1, 1, None), (10, 3, 2, "bench/results"), (20, 5, 2, "bench/results")]
    assert parse("--long", "--rows", "7").rows == 7 and parse("--tiny", "--results", "x").results == "x"
    for wrong in (["--rounds", "-1"], ["--tiny", "--long"]):
        with pytest.raises(SystemExit):
            parse(*wrong)


def test_a_family_is_that_of_the_default_teacher(capsys):
    assert dumping.parse_args(["--family", "albert"]).family == "albert"
    with pytest.raises(SystemExit) as stopped:
        dumping.parse_args(["--family", "albert", "--checkpoint", "x"])
    assert stopped.value.code == 2 and "leave out --checkpoint" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def test_a_comparison_keeps_to_its_cores():
    code = ("import bench, os; bench.settle(bench.parse_args('', ['--cores', '1'], rows=(1, 1, 1)));"
            "import torch; "
            "print(len(os.sched_getaffinity(0)), torch.get_num_threads(), os.environ['RAYON_NUM_THREADS'])")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.split() == ["1", "1", "1"]


# ---- every comparison, tiny --------------------------------------------------------------------------------


def check(folder, *names) -> dict[str, dict]:
    """The result files in a folder, which are these; each has what the page and the reader need."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in Path(folder).glob("*.json")}
    assert set(found) == set(names)
    for name, result in found.items():
        assert result["name"] == name and table.row(result)[0] in table.ROWS.values()
        assert result["ratio"] > 0 and math.isfinite(result["ratio"]) and result["checked"]
        assert not result["roofline"] or result["roofline"]["fraction"] > 0
    return found


def test_material_is_made_of_the_rows_repeated(tmp_path):
    (tmp_path / "two.tsv").write_text('text\tlabel\n가\tpos\n"나\tneg\n', encoding="utf-8")
    args = scaling.parse_args(["--tiny", "--rows", "3", "--train", str(tmp_path / "two.tsv"), "--valid",
                               str(tmp_path / "two.tsv"), "--tokenizer", str(tmp_path)])
    made = common.material(args, tmp_path, teacher=False)
    assert made.texts == ["가", '"나', "가"] and made.target == [1, 0, 1] and made.names == ["neg", "pos"]
    assert made.write(5, "five").read_text("utf-8") == (
        'text\tlabel\n가\tpos\n"나\tneg\n가\tpos\n가\tpos\n"나\tneg\n')
    with pytest.raises(UserError, match=r"two\.tsv:3"):
        (tmp_path / "two.tsv").write_text("text\tlabel\n가\tpos\n나\t\n", encoding="utf-8")
        (tmp_path / "valid.tsv").write_text("text\tlabel\n가\tpos\n나\tneg\n", encoding="utf-8")
        args.valid = str(tmp_path / "valid.tsv")
        common.material(args, tmp_path, teacher=False)


def test_tiny_scaling(tmp_path):
    args = scaling.parse_args(["--tiny", *FILES, "--results", str(tmp_path / "results")])
    scaling.compare(args, common.material(args, tmp_path, teacher=False))
    found = check(tmp_path / "results", "scaling-time", "scaling-memory")
    assert found["scaling-time"]["n"] == 200 and found["scaling-memory"]["n"] == 400
    assert 50 < found["scaling-memory"]["ours"]["median"] < 5000  # MB: PyTorch alone has more than 100


def test_a_script_that_fails_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"(?s)ended with 2.*--valid"):
        scaling.memory_of(["--train", "a.tsv"], tmp_path / "log.jsonl", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pytest.importorskip("transformers")
    args = dumping.parse_args(["--tiny", *FILES])
    return common.material(args, tmp_path_factory.mktemp("made"))


def quality_by_chance(*_):
    """Instead of equal_quality: after four steps the accuracies of both sides are not alike yet."""
    return "accuracies not compared"


def tiny(module, made, tmp_path, *compare):
    args = module.parse_args(["--tiny", *FILES, "--results", str(tmp_path)])
    for function in compare or (module.compare,):
        function(args, made)


@pytest.mark.optional
def test_tiny_dumping(made, tmp_path):
    tiny(dumping, made, tmp_path)
    check(tmp_path, *(f"dump-{precision}" for precision in common.precisions(lstm=False)))


@pytest.mark.optional
@pytest.mark.parametrize("family", ["albert", "modernbert"])
def test_tiny_comparisons_of_a_teacher_by_transformers(tmp_path, monkeypatch, family):
    """Its results have names of their own, and no roof."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.setattr(finetuning, "equal_quality", quality_by_chance)
    (tmp_path / "made").mkdir()
    flags = ["--tiny", "--family", family, *FILES, "--results", str(tmp_path / "results")]
    material = common.material(dumping.parse_args(flags), tmp_path / "made")
    assert json.loads((material.checkpoint / "config.json").read_text("utf-8"))["model_type"] == family
    for module, name in ((dumping, "dump"), (finetuning, "finetune")):
        module.compare(module.parse_args(flags), material)
        result = json.loads((tmp_path / f"results/{name}-{family}-fp32.json").read_text("utf-8"))
        assert result["roofline"] == {} and table.kind(result) in table.ROWS and result["ratio"] > 0


@pytest.mark.optional
def test_an_electra_as_an_albert_computes_the_same():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    electra = transformers.ElectraForSequenceClassification(transformers.ElectraConfig(
        vocab_size=50, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24, initializer_range=0.3, num_labels=2)).eval()
    albert = common.as_albert(electra).eval()
    ids, mask = torch.randint(1, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    states, same = (encoder(ids, attention_mask=mask).last_hidden_state[mask.bool()]
                    for encoder in (electra.electra, albert.albert))
    torch.testing.assert_close(same, states, atol=1e-6, rtol=0)
    assert albert.config.num_labels == 2 and states.std() > 0.5


@pytest.mark.optional
def test_tiny_distillation(made, tmp_path):
    from bench import distillation
    tiny(distillation, made, tmp_path)
    check(tmp_path, *(f"{name}-{precision}" for precision in common.precisions(lstm=True)
                      for name in ("distill", "distill-live")))


@pytest.mark.optional
def test_tiny_finetuning(made, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr(finetuning, "equal_quality", quality_by_chance)
    tiny(finetuning, made, tmp_path)
    check(tmp_path, *(f"finetune-{precision}" for precision in common.precisions(lstm=False)))


@pytest.mark.optional
def test_tiny_prediction(made, tmp_path):
    from bench import prediction
    base = prediction.new_student(made, "base")
    tiny(prediction, made, tmp_path, lambda args, made: prediction.against_pipeline(args, made, base),
         lambda args, made: prediction.one_review(args, made, base))
    check(tmp_path, "predict-base", "predict-one")


@pytest.mark.optional
def test_tiny_prediction_against_fasttext(made, tmp_path):
    pytest.importorskip("fasttext")
    from bench import prediction
    tiny(prediction, made, tmp_path, lambda args, made: prediction.against_fasttext(
        args, made, prediction.new_student(made, "tiny")))
    check(tmp_path, "predict-tiny")


@pytest.mark.optional
def test_tiny_predictor(made, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("fasttext")
    from bench import predictor
    tiny(predictor, made, tmp_path)
    found = check(tmp_path, *(f"predictor-{name}" for name in (
        "one", "tail", "bulk", "int8", "tiny", "memory")))
    assert [found[f"predictor-{name}"]["precision"] for name in ("bulk", "int8")] == ["fp32", "int8"]
    busy, quiet = (found["predictor-tail"]["also"][f"percentile {q}, ms"] for q in ("50, busy", "99, quiet"))
    assert busy <= found["predictor-tail"]["ours"]["median"]
    assert found["predictor-tail"]["theirs"]["median"] <= quiet
    with_torch, without = (found["predictor-memory"][side]["median"] for side in ("theirs", "ours"))
    assert 20 < without < with_torch - 50  # MB: PyTorch alone has more than 100


@pytest.mark.optional
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux")
def test_a_core_is_busy_within_the_block_only():
    pytest.importorskip("onnxruntime")
    from bench import predictor
    with predictor.a_busy_core() as process:
        def ticks():
            return int(Path(f"/proc/{process.pid}/stat").read_text().split()[13])
        start, deadline = ticks(), time.monotonic() + 60
        while ticks() < start + 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ticks() >= start + 10 and process.poll() is None
    assert process.poll() is not None


@pytest.mark.optional
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_tiny_serving(tmp_path):
    for name in ("flask", "uvicorn", "onnx"):
        pytest.importorskip(name)
    from bench import serving
    args = serving.parse_args(["--tiny", *FILES, "--results", str(tmp_path)])
    serving.compare(args, common.material(args, tmp_path / "made", teacher=False))
    found = check(tmp_path, "serve", "serve-memory")
    assert found["serve"]["n"] == 64 and found["serve"]["also"]["last round, errors"] == 0
    assert 10 < found["serve-memory"]["ours"]["median"] < found["serve-memory"]["theirs"]["median"] < 1000


@pytest.mark.optional
@pytest.mark.parametrize("column", ["label", "labels", "score"])
def test_tfidf_learns_which_words_decide(tmp_path, capsys, column):
    """The words of a text decide its answer, and every sixth row says otherwise: only those can be wrong."""
    pytest.importorskip("sklearn")
    words = ["배송", "가격", "품질"]

    def write(name, first, count, empty=0):
        """The file, and of each row (words in the text, words in the answer), as 0 and 1."""
        pairs = []
        for i in range(first, first + count):
            text = [i >> j & 1 for j in range(3)]
            pairs.append((text, [1, 0, 0] if i % 6 == 0 else text))
        lines = [f"text\t{column}"] + ["모르는 글\t"] * empty
        for text, answer in pairs:
            said = [word for word, given in zip(words, answer, strict=True) if given]
            cell = {"label": f"{len(said)} 개", "labels": ",".join(said) or "-", "score": str(len(said) / 2)}
            shown = " ".join(word for word, given in zip(words, text, strict=True) if given)
            lines.append(f"이번에 산 {shown} 이야기\t{cell[column]}")
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name), np.array(pairs)

    files = ["--train", write("train.tsv", 0, 240, 5)[0], "--valid", write("valid.tsv", 240, 48)[0]]
    path, pairs = write("test.tsv", 301, 50)
    found = tfidf.compare(tfidf.parse_args([*files, "--test", path]))
    guess, truth = pairs[:, 0], pairs[:, 1]  # (50, 3)
    if column == "labels":
        assert list(found) == ["threshold 0.5", "thresholds of --valid"]
        hits = (guess * truth).sum(0)
        for scores in found.values():
            assert scores["exact"] == pytest.approx((guess == truth).all(1).mean())
            assert scores["macro_f1"] == pytest.approx((2 * hits / (guess.sum(0) + truth.sum(0))).mean())
    elif column == "label":
        assert found["label"]["accuracy"] == pytest.approx((guess.sum(1) == truth.sum(1)).mean())
    else:
        expected = np.corrcoef(guess.sum(1), truth.sum(1))[0, 1]
        assert found["score"]["pearson"] == pytest.approx(expected, abs=0.02)
    assert f"{path}: 50 rows" in capsys.readouterr().out


def test_a_similarity_divides_rows_where_the_commonest_classes_are_right_most_often():
    """No line can part equal ones, so five of six are right; shares count each class once more."""
    alike, target = np.array([0.9, 0.2, 0.1, 0.2, 0.8, 0.6]), np.array([1, 0, 0, 1, 1, 1])
    limit, shares = tfidf.threshold(alike, target, 2)
    assert limit == 0.1 and np.exp(shares) == pytest.approx(np.array([[2 / 3, 1 / 3], [2 / 7, 5 / 7]]))
    limit, shares = tfidf.threshold(np.array([0.1, 0.2, 0.3, 0.4]), np.array([2, 2, 0, 0]), 3)
    assert limit == 0.2 and shares.argmax(1).tolist() == [2, 0]


@pytest.mark.optional
@pytest.mark.parametrize("column", ["label", "score"])
def test_tfidf_of_pairs_sees_what_two_texts_share(tmp_path, capsys, column):
    """The answer is whether, or how much of, the second text stands in the first."""
    pytest.importorskip("sklearn")
    words = [f"{a}{b}{c}" for a in "가나다라마" for b in "바사아자" for c in "차카타파"]

    def write(name, seed, count):
        random, pairs = np.random.default_rng(seed), []
        for i in range(count):
            one, other = np.split(random.permutation(words)[:8], 2)
            shared = (i % 5 if column == "score" else 4 * (i % 2))
            pairs.append((" ".join(one), " ".join([*one[:shared], *other[shared:]]), shared))
        lines = [f"{one}\t{other}\t{shared if column == 'score' else ['다름', '같음'][shared // 4]}"
                 for one, other, shared in pairs]
        (tmp_path / name).write_text("\n".join([f"text\ttext2\t{column}", *lines, ""]), encoding="utf-8")
        return str(tmp_path / name), pairs

    files = ["--train", write("train.tsv", 0, 300)[0], "--valid", write("valid.tsv", 1, 60)[0]]
    path, pairs = write("test.tsv", 2, 50)
    found = tfidf.compare(tfidf.parse_args([*files, "--test", path]))
    assert list(found) == [column, "letter pairs", "cosine"]
    if column == "label":
        assert all(scores["accuracy"] == 1 for scores in found.values())
    else:
        def letters(text):
            joined = text.replace(" ", "")
            return {joined[i : i + 2] for i in range(len(joined) - 1)}
        shares = [2 * len(letters(a) & letters(b)) / (len(letters(a)) + len(letters(b))) for a, b, _ in pairs]
        expected = np.corrcoef(shares, [row[2] for row in pairs])[0, 1]
        assert found["letter pairs"]["pearson"] == pytest.approx(expected, abs=1e-5)
        assert found["cosine"]["pearson"] > 0.95 and found["score"]["pearson"] > 0.95
