"""flags.py: ranges and messages of the types; every script answers --help and a wrong flag before torch."""

import argparse
import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import flags

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [str(path.relative_to(ROOT)) for folder in (".", "data", "extra")
           for path in sorted((ROOT / folder).glob("*.py")) if "def parse_args" in path.read_text("utf-8")]
# Each script as __main__ with each of the flags: {script: [exit code, stdout, stderr] of each}.
ANSWERS = """
import contextlib, io, json, runpy, sys
sys.modules["torch"] = sys.modules["numpy"] = sys.modules["tokenizers"] = None  # an import fails
found = {}
for script in sys.argv[1:]:
    found[script] = []
    for flag in ("--help", "--no-such-flag"):
        sys.argv = [script, flag]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(script, run_name="__main__")
            except BaseException as error:
                code = error.code if isinstance(error, SystemExit) else repr(error)
        found[script].append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def parse(kind, text):
    """The value, or the message of a refusal."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=kind)
    try:
        return parser.parse_args([f"--x={text}"]).x
    except argparse.ArgumentError as error:
        return str(error)


@pytest.mark.parametrize("kind, type_, good, bad", [
    (flags.count, int, "1 7 2147483647", "0 -1 2147483648 1.0 1e3 x nan"),
    (flags.natural, int, "0 1 2147483647", "-1 2147483648 0.5 nan"),
    (flags.length, int, "3 512", "2 0 -3 3.5"),
    (flags.positive, float, "1e-300 0.5 100", "0 -1 nan inf -inf x 1e300"),
    (flags.not_negative, float, "0 -0.0 0.5 100", "-1e-9 nan inf x"),
    (flags.share, float, "0 0.5 0.999", "1 -0.1 nan inf x"),
    (flags.weight, float, "0 0.5 1", "1.1 -0.1 nan inf x"),
    (flags.factor, float, "1e-9 0.5 1", "0 1.1 -0.1 nan inf x"),
    (flags.number(float, 0, 1, "in it", open_low=True, open_high=True), float, "0.1 0.9", "0 1 nan"),
    (flags.number(int, 10, 20, "in it"), int, "10 20", "9 21 1_x"),
])
def test_a_type_takes_what_is_in_its_range_and_nothing_else(kind, type_, good, bad):
    for text in good.split():
        assert parse(kind, text) == float(text) and type(parse(kind, text)) is type_
    for text in bad.split():
        message = parse(kind, text)
        assert isinstance(message, str) and message.startswith(f"argument --x: {text} is not "), text


def test_the_message_says_what_is_needed():
    assert parse(flags.count, "0").endswith("0 is not a whole number from 1 to 2147483647")
    assert parse(flags.weight, "2").endswith("[0, 1]") and parse(flags.share, "1").endswith("[0, 1)")


@pytest.fixture(scope="module")
def answers():
    done = subprocess.run([sys.executable, "-c", ANSWERS, *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_manual_and_comes_without_torch(answers, script):
    code, out, err = answers[script][0]
    assert (code, err) == (0, "")
    manual = ast.get_docstring(ast.parse((ROOT / script).read_text("utf-8")))
    assert manual and manual in out


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_flag_ends_with_code_2_before_torch(answers, script):
    code, out, err = answers[script][1]
    assert (code, out) == (2, "") and "error" in err.splitlines()[-1]


def test_these_are_all_scripts():
    assert {"train_tokenizer.py", "finetune_teacher.py", "dump_logits.py", "distill.py", "evaluate.py",
            "student.py", "data/prepare.py", "data/augment.py"} <= {*SCRIPTS}
    assert len([script for script in SCRIPTS if "extra" in script]) == len([*ROOT.glob("extra/*.py")])
