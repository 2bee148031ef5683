"""bench.corpora: the table of a recipe's run, against figures by hand."""

import shutil
import statistics

import pytest
import torch
from helpers import CPU, LABELLED, STUDENT, TAUGHT, refused, run

from bench import corpora
from data.examples import read_examples
from data.logits import read_logits
from student import Student
from teacher import Teacher

SEEDS = {"labels": (0, 1), "distilled": (0, 1, 2)}


@pytest.fixture
def page(here):
    """What recipes/corpus.sh leaves of a corpus called reviews, and a page with a place for its table."""
    (here / "data/reviews").mkdir(parents=True)
    for name in ("train", "valid", "test"):
        shutil.copy(here / f"{name}.tsv", here / "data/reviews")
    shutil.copytree(here / "teacher", here / "runs/reviews/teacher")
    for arm, flags in (("labels", f"{LABELLED} --alpha 1"), ("distilled", TAUGHT)):
        run("distill", f"{flags} {STUDENT} --seed {' '.join(map(str, SEEDS[arm]))} --best macro_f1 "
                       f"--output-dir runs/reviews/{arm}")
    shutil.copytree(here / "logits", here / "runs/reviews/logits")
    path = here / "page.md"
    path.write_text("before\n<!-- reviews -->\nold\n<!-- /reviews -->\nafter\n", encoding="utf-8")
    return path


def make(*names) -> list[list[str]]:
    """The cells of the table that bench.corpora writes."""
    corpora.main(corpora.parse_args([*names, "--page", "page.md"]))
    with open("page.md", encoding="utf-8") as file:
        return [line.strip("| \n").split(" | ") for line in file if line.startswith("|")]


@pytest.mark.optional
def test_a_table_has_means_and_a_gain_over_rows_drawn_again(page, here):
    pytest.importorskip("sklearn")
    head, _, tfidf, alone, distilled, teacher = make("reviews")
    assert head[-4:] == ["parameters", "macro-F1", "accuracy", "gain (95 %)"]
    assert [row[0] for row in (tfidf, alone, distilled, teacher)] == [
        "TF-IDF", "Tiny, 53 tokens, labels alone", "Tiny, 53 tokens, distilled", "teacher"]
    test = read_examples("test.tsv")
    truth = torch.tensor([int(answer) for answer in test.answers])

    def guesses(model):
        return torch.tensor([int(model.label_names[i]) for i in model.predict(test.texts).argmax(1)])

    def macro_f1(guess, truth):
        hits = [((guess == c) & (truth == c)).sum() for c in (0, 1)]
        counts = [((guess == c).sum() + (truth == c).sum()).clamp(min=1) for c in (0, 1)]
        return float(sum(2 * hit / count for hit, count in zip(hits, counts, strict=True))) / 2

    found = {arm: [guesses(Student.load(path)) for path in (here / "runs/reviews" / arm).glob("*/student.pt")]
             for arm in SEEDS}
    for arm, row in (("labels", alone), ("distilled", distilled)):
        scores = [macro_f1(guess, truth) for guess in found[arm]]
        rights = [100 * (guess == truth).double().mean().item() for guess in found[arm]]
        assert len(scores) == len(SEEDS[arm])
        assert row[2] == f"{statistics.mean(scores):.4f} ± {statistics.stdev(scores):.4f}"
        assert row[3] == f"{statistics.mean(rights):.2f}% ± {statistics.stdev(rights):.2f}"
    assert teacher[3] == f"{(guesses(Teacher.load('teacher/teacher.pt')) == truth).double().mean():.2%}"

    def gain(rows):
        means = [statistics.mean(macro_f1(guess[rows], truth[rows]) for guess in found[arm])
                 for arm in ("distilled", "labels")]
        return means[0] - means[1]

    draw = torch.Generator().manual_seed(0)
    gains = [gain(torch.randint(len(truth), (len(truth),), generator=draw)) for _ in range(1000)]
    low, high = torch.tensor(gains).quantile(torch.tensor([0.025, 0.975])).tolist()
    middle, _, rest = distilled[4].partition(" ")
    assert float(middle) == pytest.approx(gain(torch.arange(len(truth))), abs=1e-4)
    assert [float(end) for end in rest.strip("()").split(" … ")] == pytest.approx([low, high], abs=1e-3)
    assert page.read_text("utf-8").startswith("before\n<!-- reviews -->\n| ")


@pytest.mark.optional
def test_the_row_of_several_teachers_has_what_their_dumped_mean_has(page, here):
    pytest.importorskip("sklearn")
    student = next((here / "runs/reviews/labels").glob("*/student.pt"))
    teachers = f"--teacher teacher/teacher.pt {student}"
    run("dump_logits", f"{teachers} --data train.tsv --output-dir runs/reviews/logits --overwrite {CPU}")
    run("dump_logits", f"{teachers} --data test.tsv --output-dir mean {CPU}")
    found, test = read_logits("mean/test.pt"), read_examples("test.tsv")
    guesses = [found.names[i] for i in found.values.argmax(1)]
    right = statistics.mean(guess == answer for guess, answer in zip(guesses, test.answers, strict=True))
    *_, row = make("reviews")
    assert (row[0], row[3]) == ("2 teachers, mean", f"{right:.2%}")
    models = Teacher.load("teacher/teacher.pt"), Student.load(student)
    assert row[1] == f"{sum(p.numel() for model in models for p in model.parameters()):,}"


def test_what_is_missing_is_named_and_the_page_stays(page, here, capsys):
    shutil.rmtree(here / "runs/reviews/labels")
    before = page.read_text("utf-8")
    refused(lambda: make("reviews"), "runs/reviews: lacks labels", "recipe")
    with pytest.raises(SystemExit) as ended:
        make("songs")
    assert ended.value.code == 2
    assert "page.md: needs one <!-- songs -->" in capsys.readouterr().err
    assert page.read_text("utf-8") == before
