"""Smaller files: int8 and float16 weights, and extra/quantize.py."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import runtime
from data.examples import read_examples
from extra import quantize
from student import SIZES, Student, StudentConfig, StudentError, to_int8
from tests.test_student import COUNTS, change, new_student

ROOT = Path(__file__).parent.parent
VALID = ROOT / "data/sample/valid.tsv"


# ---- precisions --------------------------------------------------------------------------------------------


def test_int8_rows_are_integers_with_one_scale_by_hand():
    matrix = torch.tensor([[1.27, -0.64, 0.006], [0.0, 0.0, 0.0], [-254.0, 127.0, 1.9]])
    steps, scales = to_int8(matrix)
    assert steps.tolist() == [[127, -64, 1], [0, 0, 0], [-127, 64, 1]]  # 63.5 to the even 64
    assert scales.shape == (3, 1) and scales.dtype == torch.float16
    assert scales[:, 0].tolist() == pytest.approx([0.01, 0, 2], rel=5e-4)


def test_int8_is_off_by_at_most_half_a_step_and_its_scales_rounding():
    matrix = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    matrix *= torch.logspace(-4, 2, 200)[:, None]
    steps, scales = to_int8(matrix)
    off = (steps.float() * scales.float() - matrix).abs()
    step = matrix.abs().amax(1, keepdim=True) / 127
    # A float16 has 11 bits, or is a multiple of 2^-24.
    assert (off <= 0.5 * step * 1.001 + 127 * step * 2**-11 + 127 * 2**-25).all()


def rounded(value, precision: str):
    if precision == "int8" and value.dim() == 2:
        steps, scales = to_int8(value)
        return steps.float() * scales.float()
    return value.half().float()


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_file_holds_what_its_precision_can_and_is_used_like_any_other(tmp_path, precision):
    student = new_student(pooling="attention", head="relu", num_layers=2, temperature=1.5)
    student.save(tmp_path / "s.pt", precision, scores={"valid_accuracy": 0.5})
    loaded = Student.load(tmp_path / "s.pt")
    for name, value in student.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], rounded(value, precision)), name
    student.load_state_dict(loaded.state_dict())
    texts = ["단어2 단어9", "", "단어30"]
    assert torch.equal(loaded.predict(texts), student.predict(texts))
    assert loaded.config == student.config and loaded.artifact["precision"] == precision
    assert loaded.artifact["scores"] == {"valid_accuracy": 0.5}
    stored = torch.load(tmp_path / "s.pt", weights_only=True)["weights"]
    kinds = {2: torch.int8 if precision == "int8" else torch.float16, 1: torch.float16}
    assert all(value.dtype == kinds[value.dim()] for value in stored.values())


def test_saving_again_in_int8_changes_nothing(tmp_path):
    new_student().save(tmp_path / "one.pt", "int8")
    Student.load(tmp_path / "one.pt").save(tmp_path / "two.pt", "int8")
    one, two = (Student.load(tmp_path / name).state_dict() for name in ("one.pt", "two.pt"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=2e-3, atol=0)  # a scale may round once more


TARGETS = {"large": 1_300_000, "base": 450_000, "small": 190_000, "mini": 85_000, "tiny": 60_000}


@pytest.mark.parametrize("size", SIZES)
def test_int8_files_are_as_small_as_promised(size):
    """With the tokenizer of the shipped students: 3,000 tokens of Korean."""
    embedding_dim, hidden_dim = SIZES[size]
    config = StudentConfig(3000, 2, embedding_dim=embedding_dim, hidden_dim=hidden_dim)
    student = Student(config, Student.load().tokenizer, ["0", "1"])
    assert COUNTS[size] < len(student.to_bytes("int8", made_by={"x": "0" * 2000})) < TARGETS[size]


def test_weights_beyond_float16_are_refused_and_the_file_stays(tmp_path):
    student = new_student()
    student.save(tmp_path / "s.pt")
    before = (tmp_path / "s.pt").read_bytes()
    with torch.no_grad():
        student.head.bias[0] = 1e5
    for precision in ("float16", "int8"):
        with pytest.raises(StudentError, match=precision):
            student.save(tmp_path / "s.pt", precision)
    assert (tmp_path / "s.pt").read_bytes() == before
    with pytest.raises(ValueError, match="int4"):
        student.save(tmp_path / "s.pt", "int4")


# ---- what a file may claim ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "word"), [
    (None, r"embedding\.weight"),
    (torch.ones(40, 1), r"embedding\.weight"),
    (torch.ones(40).half(), r"embedding\.weight"),
    (torch.ones(40, 6).half(), r"embedding\.weight"),
    (torch.full((40, 1), math.inf).half(), "finite"),
    (torch.ones(1, 1).half().expand(40, 1), "claim"),
])
def test_scales_that_do_not_fit_are_refused(tmp_path, scale, word):
    path = tmp_path / "s.pt"
    new_student().save(path, "int8")
    scales = torch.load(path, weights_only=True)["scales"]
    del scales["embedding.weight"]
    change(path, scales=scales | ({} if scale is None else {"embedding.weight": scale}))
    with pytest.raises(StudentError, match=word):
        Student.load(path)


@pytest.mark.parametrize(("name", "weight", "word"), [
    ("head.bias", torch.ones(20_000, dtype=torch.int8), r"bias.*scales"),  # times a column of scales: 1.6 GB
    ("head.weight", torch.ones(20_000, 1, 5, dtype=torch.int8), r"weight.*scales"),
    ("embedding.weight", torch.zeros(2**40, 0), "claim"),  # would let the tokenizer unpack without end
    ("embedding.weight", torch.zeros(1).expand(40, 6), "claim"),
    ("embedding.weight", torch.zeros(40, 6).to_sparse(), "sparse"),
    ("embedding.weight", torch.zeros(40, 6, device="meta"), "meta"),
    ("embedding.weight", torch.zeros(40, 6, dtype=torch.float64), r"embedding\.weight"),
    ("embedding.weight", torch.full((40, 6), math.nan), "finite"),
])
def test_weights_are_checked_before_memory_is_taken(tmp_path, name, weight, word):
    path = tmp_path / "s.pt"
    new_student().save(path, "int8")
    artifact = torch.load(path, weights_only=True)
    scales = {name: torch.ones(len(weight), 1).half()} if weight.dtype == torch.int8 else {}
    artifact["scales"].pop(name, None)
    change(path, weights=artifact["weights"] | {name: weight}, scales=artifact["scales"] | scales)
    with pytest.raises(StudentError, match=word):
        Student.load(path)


def test_one_storage_cannot_stand_for_many_weights(tmp_path):
    """Each would fit the file, together they would be a hundred times as large in memory."""
    path = tmp_path / "s.pt"
    new_student().save(path, "int8")
    one = torch.zeros(1000, 1000, dtype=torch.int8)
    change(path, weights={f"w{i}": one for i in range(100)})
    with pytest.raises(StudentError, match="claim"):
        Student.load(path)


# ---- the script --------------------------------------------------------------------------------------------


def run(*args):
    quantize.main(quantize.parse_args([*map(str, args)]))


@pytest.fixture
def exact(tmp_path):
    """A float32 student that knows something, with what a training script stores beside it."""
    student = Student.load(ROOT / "models/tiny.pt")
    with torch.no_grad():
        for parameter in student.parameters():  # between the steps of the int8 file
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    student.save(tmp_path / "student.pt", scores={"accuracy": 0.5}, made_by={"arguments": {"seed": 3}})
    return tmp_path / "student.pt"


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_the_smaller_file_lies_beside_and_keeps_what_the_student_says(exact, capsys, precision):
    run(exact, "--precision", precision)
    out = exact.with_name(f"student.{precision}.pt")
    small, large = Student.load(out), Student.load(exact)
    for name, value in large.state_dict().items():
        assert torch.equal(small.state_dict()[name], rounded(value, precision))
    assert small.artifact == large.artifact | {"precision": precision}
    assert small.config.temperature == large.config.temperature != 1 and small.task == large.task
    printed = capsys.readouterr().out
    assert str(out) in printed
    assert all(f"{path.stat().st_size:,}" in printed for path in (exact, out))


def test_data_gives_the_scores_of_both(exact, capsys, tmp_path):
    lines = VALID.read_text("utf-8").splitlines()
    unknown = [line.rpartition("\t")[0] + "\t" if i % 3 == 0 else line for i, line in enumerate(lines[1:])]
    (tmp_path / "some.tsv").write_text("\n".join([lines[0], *unknown, ""]), "utf-8")
    run(exact, "--data", tmp_path / "some.tsv")
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    data = read_examples(VALID)
    rows = [i for i in range(len(data)) if i % 3]
    labels = torch.tensor([int(data.answers[i]) for i in rows])
    found = []
    for path in (exact, exact.with_name("student.int8.pt")):
        found.append(Student.load(path).predict([data.texts[i] for i in rows]))
    right = [f"{(each.argmax(1) == labels).double().mean():.4f}" for each in found]
    surprise = [f"{-each[range(len(rows)), labels].log().mean():.4f}" for each in found]
    assert printed["accuracy"].split() == right and printed["log_loss"].split() == surprise
    assert float(right[0]) > 0.6


def test_an_existing_file_is_kept_unless_it_is_the_same_or_overwritten(exact, capsys):
    out = exact.with_name("small.pt")
    run(exact, "--out", out)
    before = out.read_bytes(), out.stat().st_mtime_ns
    command = [sys.executable, ROOT / "extra/quantize.py", "student.pt", "--out", "small.pt"]
    done = subprocess.run(command, capture_output=True, cwd=exact.parent, check=True)
    assert b"left alone" in done.stdout and (out.read_bytes(), out.stat().st_mtime_ns) == before
    with pytest.raises(runtime.UserError, match=r"small\.pt.*--overwrite"):
        run(exact, "--out", out, "--precision", "float16")
    assert out.read_bytes() == before[0]
    run(exact, "--out", out, "--precision", "float16", "--overwrite")
    assert out.read_bytes() != before[0]


def test_what_cannot_be_done_is_refused_and_nothing_written(exact, tmp_path):
    (tmp_path / "unknown.tsv").write_text("text\tlabel\n재밌다\t\n", "utf-8")
    (tmp_path / "other.tsv").write_text("text\tlabel\n재밌다\t1\n별로\t긍정\n", "utf-8")
    before = exact.read_bytes()
    for args, word in ((("--out", exact, "--overwrite"), "student.pt"),
                       (("--data", tmp_path / "unknown.tsv"), "unknown.tsv"),
                       (("--data", tmp_path / "other.tsv"), "other.tsv:3"),
                       (("--data", tmp_path / "no.tsv"), "no.tsv")):
        with pytest.raises((runtime.UserError, StudentError)) as error:
            run(exact, *args)
        assert word in str(error.value)
    with pytest.raises(runtime.UserError, match="int8"):
        run(ROOT / "models/tiny.pt", "--out", tmp_path / "x.pt")  # is int8 already
    assert exact.read_bytes() == before and not list(tmp_path.glob("*.int8.pt")) + list(tmp_path.glob("x.pt"))
