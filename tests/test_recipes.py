"""The recipes call the scripts with flags that exist, and stop where a script fails.

A stub in place of Python notes each call; the flags are then read by the scripts themselves.
"""

import importlib
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import distill

ROOT = Path(__file__).parent.parent
RECIPES = {"demo.sh": [], "demo-tasks.sh": [], "mine.sh": ["reviews.tsv", "scratch"],
           "nsmc.sh": ["some/checkpoint"], "shopping.sh": [], "steam.sh": [], "hate-speech.sh": [],
           "unsmile.sh": ["some/checkpoint"], "kmhas.sh": [], "kote.sh": [], "3i4k.sh": [],
           "klue-nli.sh": ["some/checkpoint"], "kornli.sh": [], "question-pair.sh": [], "paws-x.sh": [],
           "klue-sts.sh": [], "korsts.sh": [], "nli-sts.sh": [], "corpus.sh": ["kote"], "answers.sh": []}
TEACHER_LESS = {"answers.sh": {"extra/import_logits.py"}}  # what takes the place of the teacher's scripts
PAIRS = ["klue-nli", "kornli", "question-pair", "paws-x", "klue-sts", "korsts"]
CORPORA = ["shopping", "steam", "hate-speech", "unsmile", "kmhas", "kote", "3i4k", *PAIRS]
STUB = """#!{python}
import json, os, sys
open({calls!r}, "a").write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(3 if os.environ.get("FAIL") in sys.argv else 0)
"""


@pytest.fixture
def recipe(tmp_path):
    """A function that runs a recipe in a copy of the folder; returns the exit code and the calls."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "reviews.tsv").write_text("text\tlabel\n", encoding="utf-8")
    for file in (ROOT / "recipes").glob("*.sh"):
        (tmp_path / "recipes" / file.name).write_text(file.read_text("utf-8"), encoding="utf-8")
    calls, stub = tmp_path / "calls", tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, calls=str(calls)), encoding="utf-8")
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)

    def run(name, **environment):
        done = subprocess.run(["sh", f"recipes/{name}", *RECIPES[name]], cwd=tmp_path, capture_output=True,
                              env={"PATH": "/usr/bin:/bin", "PYTHON": str(stub), **environment}, text=True)
        return done.returncode, [json.loads(line) for line in calls.read_text("utf-8").splitlines()]
    return run


def parsed(call: list[str]):
    """What the script's own flags make of a call."""
    name = call[1] if call[0] == "-m" else call[0].removesuffix(".py").replace("/", ".")
    return importlib.import_module(name).parse_args(call[2 if call[0] == "-m" else 1 :])


def parsed_default():
    return parsed(["finetune_teacher.py", "--train", "a", "--valid", "b"])


def test_every_recipe_is_tested():
    assert {file.name for file in (ROOT / "recipes").iterdir()} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_calls_have_flags_that_exist_and_end_in_a_table(recipe, name):
    code, calls = recipe(name, UNLABELED="unlabeled.tsv.gz")
    assert code == 0
    peers = name.removesuffix(".sh") in [*PAIRS, "nli-sts"] and not RECIPES[name]  # students teach
    teacher = TEACHER_LESS.get(name, {"dump_logits.py"} | (set() if peers else {"finetune_teacher.py"}))
    assert {call[0] for call in calls} >= {"train_tokenizer.py", "distill.py", "evaluate.py"} | teacher
    for call in calls:
        parsed(call)


def test_the_unlabelled_file_goes_from_the_dump_to_the_students(recipe):
    _, calls = recipe("nsmc.sh", UNLABELED="texts/more.tsv.gz")
    students = [parsed(call) for call in calls if call[0] == "distill.py"]
    assert [len(args.train) for args in students] == [1, 1, 2, 2]
    assert students[-1].logits == ["runs/nsmc/logits-both/train.pt", "runs/nsmc/logits-both/more.pt"]


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_prepared_and_taught_with_and_without_logits(recipe, name):
    """The default checkpoint is that of finetune_teacher.py; pairs without a checkpoint are taught by the
    students of labels alone. Every student is tested on the test file."""
    _, calls = recipe(f"{name}.sh", SEEDS="0 1")
    assert calls[0][:2] == ["-m", "data.prepare"] and parsed(calls[0]).corpus == name
    fine_tuned = [parsed(call).checkpoint for call in calls if call[0] == "finetune_teacher.py"]
    dumped = next(parsed(call) for call in calls if call[0] == "dump_logits.py")
    if name in PAIRS and not RECIPES[f"{name}.sh"]:
        assert not fine_tuned and dumped.teacher == [f"runs/{name}/labels/base*/student.pt"]
    else:
        assert fine_tuned == [RECIPES[f"{name}.sh"][0] if RECIPES[f"{name}.sh"] else
                              parsed_default().checkpoint]
        assert dumped.teacher == [f"runs/{name}/teacher/teacher.pt"]
    alone, taught = (parsed(call) for call in calls if call[0] == "distill.py")
    assert alone.alpha == [1] and alone.logits is None and alone.train == [f"data/{name}/train.tsv"]
    assert taught.alpha != [1] and taught.train == dumped.data and len(taught.logits) == len(taught.train)
    assert alone.seed == taught.seed == [0, 1]
    assert parsed(calls[-1]).data == f"data/{name}/test.tsv"


def test_hate_speech_takes_the_other_answers(recipe):
    _, calls = recipe("hate-speech.sh", CORPUS="hate-speech-bias")
    assert parsed(calls[0]).corpus == "hate-speech-bias"
    assert {word for call in calls for word in call if word.startswith("data/")} == {
        f"data/hate-speech-bias/{split}.tsv" for split in ("train", "valid", "test")}


def test_the_demo_of_tasks_reads_files_that_are_there(recipe):
    _, calls = recipe("demo-tasks.sh")
    read = {word for call in calls for word in call if word.startswith("data/sample/")}
    assert read >= {f"data/sample/{task}/{split}.tsv" for task in ("several", "scores", "pairs")
                    for split in ("train", "valid", "test")}
    assert all((ROOT / path).is_file() for path in read)
    for call in calls:
        if call[0] == "evaluate.py":
            assert not {f"{Path(parsed(call).data).parent}/test.tsv"} & {
                word for other in calls if other[0] != "evaluate.py" for word in other}


def test_students_that_teach_must_be_trained(recipe, tmp_path):
    (tmp_path / "calls").touch()
    assert recipe("korsts.sh", SIZES="tiny") == (2, [])
    assert recipe("klue-nli.sh", SIZES="tiny")[0] == 0  # a checkpoint teaches


def test_similarity_begins_where_inference_ended(recipe):
    """The students of KorSTS have the tokenizer of KLUE-NLI, and the layers of its student."""
    _, calls = recipe("nli-sts.sh")
    assert [parsed(call).corpus for call in calls if call[:2] == ["-m", "data.prepare"]] == [
        "klue-nli", "korsts"]
    assert len([call for call in calls if call[0] == "train_tokenizer.py"]) == 1
    students = [parsed(call) for call in calls if call[0] == "distill.py"]
    folder = distill.grid_settings(students[1], pairs=True)[0][0]
    assert [args.start for args in students] == [None] * 2 + [
        f"{students[1].output_dir}/{folder}/student.pt"] * 2
    assert {str(path) for args in students for path in args.tokenizer} == {
        "runs/klue-nli/tokenizer/vocab_size_3000"}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_swapped_where_their_order_says_nothing(recipe, name):
    """A hypothesis follows from a premise, not the other way round. KorNLI is large enough as it is."""
    _, calls = recipe(f"{name}.sh")
    made = [parsed(call) for call in calls if call[:2] == ["-m", "data.augment"]]
    assert [(args.data, args.symmetric) for args in made] == (
        [] if name == "kornli" else [([f"data/{name}/train.tsv"], name != "klue-nli")])
    assert all(args.pairs for args in made)


def test_mine_refuses_another_file_in_the_folder_of_the_first(recipe, tmp_path):
    first = recipe("mine.sh")
    assert recipe("mine.sh") == (0, first[1] * 2)
    (tmp_path / "reviews.tsv").write_text("text\tlabel\n다른 글\t1\n", encoding="utf-8")
    code, calls = recipe("mine.sh")
    assert code == 2 and calls == first[1] * 2
    assert recipe("mine.sh", OUT="another")[0] == 0 and (tmp_path / "another/cksum").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_a_script_that_fails_stops_the_recipe(recipe, name):
    fails = min(TEACHER_LESS.get(name, {"dump_logits.py"}))
    code, calls = recipe(name, FAIL=fails)
    assert code != 0
    assert calls[-1][0] == fails
