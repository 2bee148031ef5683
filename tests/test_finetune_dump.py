"""Fine-tuning a teacher (rates, steps, best epoch, resume) and writing its logits, on sixty short reviews."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import dump_logits
import finetune_teacher
import runtime
import train_tokenizer
from data import batching
from data.batching import token_batches
from data.examples import read_again, read_examples
from runtime import UserError
from teacher import Teacher, TeacherConfig

CPU = torch.device("cpu")
NAMES = ["긍정", "부정"]  # in the order of label_names
WORDS = [["재밌다", "최고", "감동", "또 보고 싶은"], ["지루하다", "별로", "최악", "돈 아까운"]]
ROWS = [(f"{'정말 ' * (i % 4)}이 영화 {WORDS[i % 2][i // 2 % 4]} {i % 7}점", NAMES[i % 2]) for i in range(60)]
SWAPPED = dict(zip(NAMES, NAMES[::-1], strict=True))


def write(path, rows, header="text\tlabel"):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *("\t".join(row) for row in rows), ""]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """train.tsv, valid.tsv and tokenizers of 75 tokens (what 150 come to) and of 60."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "train.tsv", ROWS)
    write(folder / "valid.tsv", ROWS[30:54])
    flags = ["--data", folder / "train.tsv", "--output-dir", folder / "tokenizer", "--vocab-size", 150, 60]
    flags += ["--type", "wordpiece", "--min-frequency", 1]
    train_tokenizer.main(train_tokenizer.parse_args(list(map(str, flags))))
    return folder


def arguments(files, output, *more, **flags):
    """Flags of a run: some defaults, `flags` over them (None leaves one out), `more` as they are."""
    flags = {"train": files / "train.tsv", "valid": files / "valid.tsv", "scratch": "1,16,2",
             "tokenizer": files / "tokenizer" / "vocab_size_150", "output_dir": output, "epochs": 3,
             "lr": 0.01, "max_tokens": 200, "device": "cpu", "precision": "fp32"} | flags
    flat = [part for name, value in flags.items() if value is not None
            for part in (f"--{name.replace('_', '-')}", str(value))]
    return finetune_teacher.parse_args([*flat, *more])


def finetune(files, output, *more, **flags):
    finetune_teacher.main(arguments(files, output, *more, **flags))


def read(path):
    return torch.load(path, weights_only=True)


def log_lines(output):
    """The lines of epochs: all but the first."""
    first, *lines = [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]
    assert first["arguments"]["output_dir"] == str(output) and all("train_loss" in line for line in lines)
    return lines


def log_without_seconds(output):
    """All lines but for seconds, and for what the first says of the folder and of when to save."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]
    for name in ("output_dir", "save_every"):
        del lines[0]["arguments"][name]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_equal(one, other):
    """Nested dicts and lists equal, tensors to the bit."""
    if torch.is_tensor(one):
        assert torch.equal(one, other)
    elif isinstance(one, (dict, list)):
        pairs = one.items() if isinstance(one, dict) else enumerate(one)
        assert len(one) == len(other)
        for key, value in pairs:
            assert_equal(value, other[key])
    else:
        assert one == other


def alone(teacher, text, text2=None):
    """Logits (C,) of one row by itself, straight from the tokenizer; a row without tokens is [UNK]."""
    teacher.tokenizer.enable_truncation(teacher.max_length)
    encoding = teacher.tokenizer.encode(text, text2)
    ids = encoding.ids or [teacher.tokenizer.token_to_id("[UNK]")]
    second = None if text2 is None else torch.tensor([len(encoding.ids) - sum(encoding.type_ids)])
    with torch.no_grad():
        return teacher.eval()(torch.tensor([ids]), torch.tensor([len(ids)]), second)[0]


def all_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(function, *parts):
    with pytest.raises(UserError) as error:
        function()
    assert "\n" not in str(error.value)
    for part in parts:
        assert re.search(part, str(error.value)), f"{part} not in {error.value}"


# ---- optimiser ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_parameter_groups_have_the_rate_of_their_depth_and_decay_matrices_alone(layer_decay):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = TeacherConfig("electra", 9, 8, 2, 2, 12, 4, max_positions=7, type_vocab_size=2, num_labels=2)
    teacher = Teacher(config, tokenizer, ["0", "1"], 7)
    groups = finetune_teacher.parameter_groups(teacher, 0.8, layer_decay, 0.03)
    name_of = {id(parameter): name for name, parameter in teacher.named_parameters()}
    seen = {}
    for group in groups:
        for parameter in group["params"]:
            assert name_of[id(parameter)] not in seen
            seen[name_of[id(parameter)]] = (group["lr"], group["peak"], group["weight_decay"])
    assert seen.keys() == set(name_of.values())
    rates = {"head": [0.8, 0.8], "layers.1": [0.8, 0.4], "layers.0": [0.8, 0.2], "embedding": [0.8, 0.1]}
    for name, found in seen.items():
        rate = next(values for part, values in rates.items() if part in name)[layer_decay == 0.5]
        decay = 0.0 if name.endswith("bias") or "norm" in name else 0.03
        assert found == pytest.approx((rate, rate, decay)), name


@pytest.fixture
def steps(monkeypatch):
    """Gradients, by tensor, and (rate, peak) of the groups at each optimiser step of a run."""
    steps = []

    class Recorder(torch.optim.AdamW):
        def step(self, *args):
            groups = self.param_groups
            steps.append({"gradients": [p.grad.clone() for group in groups for p in group["params"]],
                          "rates": [(group["lr"], group["peak"]) for group in groups]})
            super().step(*args)

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    return steps


@pytest.mark.parametrize("accumulate, clip", [(1, 1e9), (2, 1e9), (3, 1e9), (2, 0.01)])
def test_a_step_takes_the_mean_gradient_of_its_rows(files, tmp_path, steps, accumulate, clip):
    """With a rate too small to move a weight, every step of an epoch and its loss can be computed from the
    first weights, dropout included: its draws begin anew at every step. Batches of unequal size count by
    their rows."""
    finetune(files, tmp_path, epochs=1, lr=1e-30, accumulate=accumulate, clip=clip, max_tokens=220, seed=3)

    runtime.seed_everything(CPU, 3)
    args = arguments(files, tmp_path)
    teacher = finetune_teacher.new_teacher(args, NAMES).train()
    train = read_examples(files / "train.tsv")
    labels = torch.tensor([NAMES.index(label) for _, label in ROWS])
    encoded = teacher.encode(train.texts)
    batches = token_batches(encoded.lengths, 220, (3, 0, 0))
    assert len(batches) == 3 and sorted(row for rows in batches for row in rows) == list(range(60))
    assert len({len(rows) for rows in batches}) > 1
    groups = finetune_teacher.parameter_groups(teacher, 1.0, 1.0, 0.01)
    parameters = [parameter for group in groups for parameter in group["params"]]
    expected, total_loss = [], 0.0
    for number, start in enumerate(range(0, 3, accumulate)):
        runtime.seed_everything(CPU, 3, 0, number, 0)
        group = batches[start : start + accumulate]
        losses = [F.cross_entropy(teacher(**encoded.batch(rows)), labels[rows], reduction="none")
                  for rows in group]
        loss = torch.cat(losses)  # one row, one voice
        expected.append(torch.autograd.grad(loss.mean(), parameters, materialize_grads=True))
        total_loss += loss.sum().item()

    assert len(steps) == len(expected)
    for step, mean in zip(steps, expected, strict=True):
        norm = math.sqrt(sum(tensor.square().sum().item() for tensor in mean))
        scale = min(1.0, clip / norm)
        assert (scale < 1) == (clip < 1)
        for actual, tensor in zip(step["gradients"], mean, strict=True):
            torch.testing.assert_close(actual, tensor * scale, rtol=1e-4, atol=1e-7)
    assert log_lines(tmp_path)[0]["train_loss"] == pytest.approx(total_loss / 60, rel=1e-6)


@pytest.mark.parametrize("layer_decay, accumulate", [(1.0, 1), (0.5, 2)])
def test_the_rate_rises_to_the_peak_and_falls_in_all_groups_alike(files, tmp_path, steps, monkeypatch,
                                                                  layer_decay, accumulate):
    """It is the rate at the middle of the step's rows: a quarter of all rows of the run to rise in."""
    epochs, batches = [], finetune_teacher.training_batches

    def counted(*args, **flags):
        epochs.append([])
        for window, rows in batches(*args, **flags):
            epochs[-1].append(len(rows))
            yield window, rows

    monkeypatch.setattr(finetune_teacher, "training_batches", counted)
    finetune(files, tmp_path, epochs=4, warmup=0.25, layer_decay=layer_decay, accumulate=accumulate,
             max_tokens=100 // accumulate)
    sizes = [sum(epoch[i : i + accumulate]) for epoch in epochs for i in range(0, len(epoch), accumulate)]
    scales = [[rate / peak for rate, peak in step["rates"]] for step in steps]
    assert all(scale == pytest.approx([scale[0]] * len(scale)) for scale in scales)
    scale = [scale[0] for scale in scales]
    assert len(scale) % 4 == 0 and len(scale) >= 16 and min(scale) > 0 and max(scale) < 1
    assert scale.index(max(scale)) in (len(scale) // 4 - 1, len(scale) // 4) and max(scale) > 0.85
    assert sum(sizes) == 240 and len(set(sizes)) > 1
    done = [(sum(sizes[:i]) + size / 2) / 240 for i, size in enumerate(sizes)]
    assert scale == pytest.approx([min(d / 0.25, (1 - d) / 0.75) for d in done], rel=1e-6)
    peaks = sorted({peak for _, peak in steps[0]["rates"]})
    assert peaks == pytest.approx([0.01] if layer_decay == 1 else [0.0025, 0.005, 0.01])


# ---- a run -------------------------------------------------------------------------------------------------


def test_teacher_pt_is_the_best_epoch_on_validation(files, tmp_path):
    """Validation labels that are the wrong way round: the longer it learns the worse it is."""
    rows = [(text, SWAPPED[label]) for text, label in ROWS[30:53]]
    valid = write(tmp_path / "valid.tsv", rows)
    finetune(files, tmp_path / "out", valid=valid, scratch="1,64,2", epochs=12, lr=0.005, max_tokens=60)
    lines = log_lines(tmp_path / "out")
    accuracies = [line["valid_accuracy"] for line in lines]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert accuracies[-1] < 0.3 < max(accuracies)

    best = read(tmp_path / "out" / "teacher.pt")
    assert best["epoch"] == 1 + accuracies.index(max(accuracies)) < 12
    last = read(tmp_path / "out" / "last.pt")
    assert {name: value for name, value in last["at"].items() if name != "log"} == {
        "epoch": 12, "step": 0, "rows": 0, "loss": 0.0, "best": best["scores"] | {"epoch": best["epoch"]}}
    assert best["scores"]["valid_accuracy"] == max(accuracies)
    teacher = Teacher.load(tmp_path / "out" / "teacher.pt")
    assert teacher.label_names == NAMES
    labels = torch.tensor([NAMES.index(label) for _, label in rows])
    for weights, line in ((last["weights"], lines[-1]), (best["weights"], lines[best["epoch"] - 1])):
        teacher.load_state_dict(weights)
        logits = torch.stack([alone(teacher, text) for text, _ in rows])
        assert line["valid_accuracy"] == pytest.approx((logits.argmax(1) == labels).sum().item() / 23)
        assert line["valid_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    best_line = lines[best["epoch"] - 1]
    assert best["scores"] == {name: best_line[name] for name in ("valid_loss", "valid_accuracy")}


def killed_until_done(monkeypatch, start, saves):
    """start(*flags), killed each time right after so many files were written, until it ends: what each of the
    runs wrote."""
    save, runs = runtime.save, []

    def save_then_die(artifact, path):
        save(artifact, path)
        runs[-1].append(path.name)
        # Alone teacher.pt brings no progress: who dies right after it each time never comes further.
        if len(runs[-1]) >= saves and not (saves == 1 and path.name == "teacher.pt"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "save", save_then_die)
        while True:
            torch.rand(7)  # dropout is a function of seed and step, not of what this process has come to
            flags = ["--resume"] if runs else []
            runs.append([])
            try:
                start(*flags)
                return runs
            except KeyboardInterrupt:
                assert len(runs) < 50


# A run of three epochs of two steps writes last.pt at the start, after each step (--save-every 0) and after
# each epoch, before which it writes teacher.pt if that is the best. So it is killed before the first step and
# after each (1), within an epoch (2), between its last step and the validation (3), when teacher.pt is there
# and last.pt does not say so (4), between two epochs (5), and so on from there.
@pytest.mark.parametrize("saves, window", [
    (1, None), (2, None), (3, None), (4, None), (5, None), (2, 100), (5, 100)])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(files, tmp_path, monkeypatch, saves, window):
    """Also with rows in several windows. No step is done twice."""
    reads, read_blocks = [], batching.Store._read
    monkeypatch.setattr(batching.Store, "_read", lambda *args: reads.append(1) or read_blocks(*args))
    if window:
        monkeypatch.setattr(batching, "WINDOW", window)
        monkeypatch.setattr(read_again, "__defaults__", (None, None, None, 8))
    steps, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: steps.append(1) or step(self))
    finetune(files, tmp_path / "whole", epochs=1)
    reads.clear(), steps.clear()
    finetune(files, tmp_path / "whole", "--overwrite", epochs=3, accumulate=2)
    assert len(reads) > 9 if window else len(reads) == 1  # a read for the run, or for each window
    needed = len(steps)
    assert needed % 3 == 0 and needed >= 6

    def start(*flags):
        finetune(files, tmp_path / "parts", *flags, epochs=3, accumulate=2, save_every=0)

    runs = killed_until_done(monkeypatch, start, saves)
    assert len(steps) == 2 * needed
    assert len(runs) == 1 + needed + 3 + 1 if saves == 1 else len(runs) > 2
    assert [name for run in runs for name in run].count("last.pt") == 1 + needed + 3

    teachers = [(tmp_path / folder / "teacher.pt").read_bytes() for folder in ("whole", "parts")]
    assert teachers[0] == teachers[1]
    whole, parts = (read(tmp_path / folder / "last.pt") for folder in ("whole", "parts"))
    for folder, state in (("whole", whole), ("parts", parts)):
        assert state["at"].pop("log") == (tmp_path / folder / "log.jsonl").read_text("utf-8")
    assert_equal(parts, whole)
    assert set(whole) == {  # no random state is needed
        "kind", "format", "weights", "optimizer", "at", "precision", "made_by"}
    assert log_without_seconds(tmp_path / "parts") == log_without_seconds(tmp_path / "whole")
    assert len(log_lines(tmp_path / "whole")) == 3  # a new run begins the log anew
    config = TeacherConfig(**read(tmp_path / "whole" / "teacher.pt")["config"])
    assert config.hidden_dropout > 0 and config.attention_dropout > 0


@pytest.mark.parametrize("save_every, window", [(10, None), (0, None), (0, 100)])
def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_named(files, tmp_path, monkeypatch,
                                                                      save_every, window):
    """The second of the second epoch: the rows of both its batches are told by their place in the file, of
    which a third has no label."""
    if window:
        monkeypatch.setattr(batching, "WINDOW", window)
        monkeypatch.setattr(read_again, "__defaults__", (None, None, None, 8))
    rows = [(text, label if i % 3 else "") for i, (text, label) in enumerate(ROWS)]
    train = write(tmp_path / "some.tsv", rows)
    cross_entropy, grouped, epochs, before = F.cross_entropy, finetune_teacher.grouped, [], {}

    def poisoned(logits, labels, **flags):
        loss = cross_entropy(logits, labels, **flags)
        return loss * torch.inf if flags and len(epochs) == 2 and len(epochs[1]) == 2 else loss

    def remembered(batches, count):
        epochs.append([])
        for group in grouped(batches, count):
            epochs[-1].append(group)
            before.update(all_bytes(tmp_path / "out"))
            yield group

    monkeypatch.setattr(F, "cross_entropy", poisoned)
    monkeypatch.setattr(finetune_teacher, "grouped", remembered)
    out = tmp_path / "out"
    refused(lambda: finetune(files, out, train=train, accumulate=2, max_tokens=100, save_every=save_every),
            r"^epoch 2, step 2: loss or gradient is not finite; its \d+ rows are in .*out/diverged\.tsv; "
            r"lower --lr \(.*out/teacher\.pt is the best before\)$")
    rows = sorted(row for window, batch in epochs[1][1] for row in window.numbers[batch].tolist())
    assert len(epochs[1][1]) == 2 and len(rows) > 2
    lines = (out / "diverged.tsv").read_text("utf-8").splitlines()
    assert lines == ["file\trow", *(f"{train}\t{row}" for row in rows)]
    assert all(row % 3 for row in rows) and max(rows) > 40  # not their numbers among the labelled
    assert all_bytes(out) == before | {"diverged.tsv": (out / "diverged.tsv").read_bytes()}
    at = read(out / "last.pt")["at"]
    assert (at["epoch"], at["step"]) == (1, 0 if save_every else 1)


def test_teacher_pt_is_the_same_whatever_the_names_of_folders_and_files(files, tmp_path):
    finetune(files, tmp_path / "one", epochs=1)
    other = write(tmp_path / "elsewhere" / "other.tsv", ROWS)
    finetune(files, tmp_path / "two" / "deep", epochs=1, train=other)
    teacher = (tmp_path / "two" / "deep" / "teacher.pt").read_bytes()
    assert teacher == (tmp_path / "one" / "teacher.pt").read_bytes()
    assert b"other.tsv" not in teacher and b"deep" not in teacher


def test_finished_work_is_overwritten_only_when_told_to(files, tmp_path):
    finetune(files, tmp_path, epochs=1)
    before = (tmp_path / "teacher.pt").read_bytes()
    refused(lambda: finetune(files, tmp_path, epochs=1, seed=1), r"last\.pt: is there already", "--over")
    finetune(files, tmp_path, "--resume", epochs=1)
    assert (tmp_path / "teacher.pt").read_bytes() == before
    finetune(files, tmp_path, "--overwrite", epochs=1, seed=1)
    assert (tmp_path / "teacher.pt").read_bytes() != before


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(files, tmp_path):
    weights = []
    for i, seed in enumerate((0, 0, 1)):
        finetune(files, tmp_path / str(i), epochs=1, seed=seed)
        weights.append(read(tmp_path / str(i) / "last.pt")["weights"])
    assert_equal(weights[0], weights[1])
    assert not torch.equal(weights[0]["head_out.weight"], weights[2]["head_out.weight"])


@pytest.mark.parametrize("change, named", [
    ({"lr": 0.02}, r"\blr\b"), ({"seed": 1}, r"\bseed\b"), ({"accumulate": 2}, r"\baccumulate\b"),
    ({"scratch": "1,32,2"}, r"\bscratch\b"), ({"train": ("다른 글", ROWS[0][1])}, r"--train\b"),
    ({"train": (ROWS[0][0], SWAPPED[ROWS[0][1]])}, r"\blabels of --train\b"),
    ({"valid": ("다른 글", ROWS[30][1])}, r"--valid\b"),
    ({"lr": 0.02, "epochs": 2}, r"epochs \(1, now 2\), lr \(0\.01, now 0\.02\);"),
    ({"tokenizer": "tokenizer/vocab_size_60"}, r"\btokenizer\b"),
])
def test_resume_with_other_settings_is_refused_by_name(files, tmp_path, change, named):
    finetune(files, tmp_path, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    for name, rows in (("train", ROWS), ("valid", ROWS[30:54])):
        if name in change:  # another first row
            change = {name: write(tmp_path / "sub" / "other.tsv", [change[name], *rows[1:]])}
    if "tokenizer" in change:
        change = {"tokenizer": files / change["tokenizer"]}
    refused(lambda: finetune(files, tmp_path, "--resume", **({"epochs": 1} | change)), "last.pt", named)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_resume_without_last_pt_begins_and_does_not_touch_a_teacher_of_unknown_origin(files, tmp_path):
    """A run that was killed before it had saved anything leaves nothing to go on from."""
    finetune(files, tmp_path, "--resume", epochs=1)
    finetune(files, tmp_path / "plain", epochs=1)
    teacher = (tmp_path / "teacher.pt").read_bytes()
    assert teacher == (tmp_path / "plain" / "teacher.pt").read_bytes()
    (tmp_path / "last.pt").unlink()
    refused(lambda: finetune(files, tmp_path, "--resume", epochs=1), "teacher.pt: is there, but no last.pt")
    assert (tmp_path / "teacher.pt").read_bytes() == teacher


def test_rows_without_label_are_left_out_of_training(files, tmp_path):
    rows = [("라벨이 없는 아주 긴 글 " * 5, "")]
    for i, row in enumerate(ROWS):
        rows += [row] if i % 3 else [row, ("모르겠다", "")]
    train = write(tmp_path / "some.tsv", rows)
    finetune(files, tmp_path / "all")
    finetune(files, tmp_path / "some", train=train)
    whole, some = (read(tmp_path / folder / "last.pt")["weights"] for folder in ("all", "some"))
    assert_equal(some, whole)
    assert log_lines(tmp_path / "all")[-1]["train_loss"] == log_lines(tmp_path / "some")[-1]["train_loss"]


SETTINGS = {"do_lower_case": False, "strip_accents": False}  # of a published tokenizer


def published(files, folder, **config):
    """A fine-tuned BERT of the transformers package, with its folder."""
    vocab = (files / "tokenizer" / "vocab_size_150" / "vocab.txt").read_text(encoding="utf-8")
    torch.manual_seed(5)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=150, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40, initializer_range=0.4, num_labels=2, **config)).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text(vocab, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return model


def test_no_epochs_keep_the_head_of_a_finetuned_checkpoint(files, tmp_path, capsys):
    model = published(files, tmp_path / "published")
    finetune(files, tmp_path, scratch=None, tokenizer=None, checkpoint=tmp_path / "published", epochs=0)
    teacher = Teacher.load(tmp_path / "teacher.pt")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(tmp_path / "published", **SETTINGS)
    texts = [text for text, _ in ROWS]
    with torch.no_grad():
        expected = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    actual = torch.stack([alone(teacher, text) for text in texts])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    correct = sum(NAMES[logits.argmax()] == label
                  for logits, (_, label) in zip(expected[30:54], ROWS[30:54], strict=True))
    assert 0 < correct < 24
    assert f"accuracy {correct / 24:.2%}" in capsys.readouterr().out
    assert read(tmp_path / "teacher.pt")["scores"]["valid_accuracy"] == pytest.approx(correct / 24)


def learn(files, tmp_path, *more, order=NAMES[::-1], **flags):
    """Ten labelled rows and ten without labels, and bare logits of both, on a published head that has the
    classes in another order. (The model, texts, labels, logits) as one table."""
    model = published(files, tmp_path / "published", id2label=dict(enumerate(order)),
                      hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    write(tmp_path / "a.tsv", ROWS[:10])
    write(tmp_path / "b.tsv", [(text,) for text, _ in ROWS[10:20]], "text")
    logits = 3 * torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    for i, name in enumerate("ab"):
        torch.save(logits[10 * i : 10 * i + 10].clone(), tmp_path / f"{name}.pt")
    flags |= {"scratch": None, "tokenizer": None, "checkpoint": tmp_path / "published", "max_tokens": 10_000}
    finetune(files, tmp_path / "out", "--train", *(str(tmp_path / f"{name}.tsv") for name in "ab"),
             "--logits", *(str(tmp_path / f"{name}.pt") for name in "ab"), *more, **flags)
    return model, [text for text, _ in ROWS[:20]], [label for _, label in ROWS[:10]], logits


@pytest.mark.parametrize("alpha", [None, 0, 0.4, 1])
def test_a_teacher_learns_logits_of_others_as_a_student_does(files, tmp_path, alpha):
    """The loss of the one step of an epoch against a hand computation from the published model: squared
    distance of the logits, and `alpha` of cross-entropy where there is a label. 1: the labels alone."""
    model, texts, labels, logits = learn(files, tmp_path, epochs=1, lr=1e-30, alpha=alpha)
    alpha = 0.1 if alpha is None else alpha
    tokenizer = transformers.BertTokenizerFast.from_pretrained(tmp_path / "published", **SETTINGS)
    with torch.no_grad():
        found = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.flip(1)  # as NAMES
    soft = (found - logits).square().sum(1)
    right = found[range(10), [NAMES.index(label) for label in labels]]
    hard = found[:10].logsumexp(1) - right
    expected = ((alpha * hard + (1 - alpha) * soft[:10]).sum() + soft[10:].sum()) / 20
    expected = hard.mean() if alpha == 1 else expected
    assert log_lines(tmp_path / "out")[0]["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_teacher_comes_to_have_the_logits_that_it_learns(files, tmp_path):
    _, texts, _, logits = learn(files, tmp_path, epochs=150, lr=0.02, alpha=0, warmup=0.02)
    last = read(tmp_path / "out" / "last.pt")["weights"]
    teacher = Teacher.load(tmp_path / "out" / "teacher.pt")
    teacher.load_state_dict(last)  # teacher.pt is the best on validation
    assert teacher.label_names == NAMES[::-1]
    found = torch.stack([alone(teacher, text) for text in texts]).flip(1)
    assert (found - logits).abs().max() < 0.5 < logits.std()


def test_a_resumed_teacher_must_have_the_same_logits(files, tmp_path):
    learn(files, tmp_path, epochs=1)
    learn(files, tmp_path, "--resume", epochs=1)
    torch.save(torch.randn(10, 2), tmp_path / "other.pt")
    flags = ["--resume", "--logits", str(tmp_path / "a.pt"), str(tmp_path / "other.pt")]
    refused(lambda: learn(files, tmp_path, *flags, epochs=1), "last.pt", "--logits")


def test_a_resumed_teacher_must_have_the_same_order_of_classes(files, tmp_path):
    """It is the published head's, whose weights do not tell it."""
    learn(files, tmp_path, epochs=1)
    refused(lambda: learn(files, tmp_path, "--resume", order=NAMES, epochs=1),
            r"last\.pt: was made with other values of the labels of --valid, the names of the labels")


def test_logits_of_other_texts_or_teachers_do_not_teach_a_teacher(files, tmp_path):
    teacher, others = tmp_path / "t.pt", tmp_path / "moved.pt"
    new_teacher(files, teacher, 1)
    a, b = write(tmp_path / "a.tsv", ROWS[:20]), write(tmp_path / "b.tsv", ROWS[20:40])
    dump([teacher], [a, b], tmp_path)

    def told(logits, message, *more):
        flags = ["--train", str(a), "--logits", str(tmp_path / logits), *more]
        refused(lambda: finetune(files, tmp_path, *flags), message)

    told("b.pt", rf"b\.pt: these are logits of other texts than {a}; .* --teacher \S*t\.pt --data {a}")
    new_teacher(files, teacher, 2)
    told("a.pt", r"a\.pt: was made by another teacher than \S*t\.pt now is")
    told("a.pt", r"moved\.pt: cannot read", "--teacher", str(others))


def test_a_teacher_is_not_written_over_one_of_those_it_learns_from(files, tmp_path):
    new_teacher(files, tmp_path / "teacher.pt", 1)
    before = (tmp_path / "teacher.pt").read_bytes()
    data = [write(tmp_path / "a.tsv", ROWS)]
    dump([tmp_path / "teacher.pt"], data, tmp_path)
    flags = ["--train", str(data[0]), "--logits", str(tmp_path / "a.pt"), "--overwrite"]
    refused(lambda: finetune(files, tmp_path, *flags), r"teacher\.pt")
    assert (tmp_path / "teacher.pt").read_bytes() == before


@pytest.mark.parametrize("scratch", [
    "1,16", "1,16,2,4", "a,b,c", "1,16,3", "0,16,2", "1,16,0", "1,-16,2", "1.5,2,2",
])  # fmt: skip
def test_a_wrong_shape_is_told_in_one_line(files, tmp_path, scratch):
    refused(lambda: finetune(files, tmp_path, scratch=scratch), f"--scratch {scratch}: ", "2,128,4")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_folder_that_is_none_is_refused(files, tmp_path):
    refused(lambda: finetune(files, tmp_path, tokenizer=tmp_path / "nothing"), "nothing: no tokenizer.json")


@pytest.mark.parametrize("flags, named", [
    ({"scratch": None}, "--checkpoint or --scratch"), ({"checkpoint": "x"}, "--checkpoint or --scratch"),
    ({"tokenizer": None}, "--tokenizer"), ({"epochs": -1}, "--epochs"), ({"max_length": 2}, "--max-length"),
    ({"lr": 0}, "--lr"), ({"layer_decay": 1.5}, "--layer-decay"), ({"warmup": 1}, "--warmup"),
    ({"accumulate": 0}, "--accumulate"), ({"alpha": 1.1, "logits": "x"}, "--alpha must be in [0, 1]"),
    ({"alpha": "nan", "logits": "x"}, "--alpha must be"),
    ({"alpha": 0.5}, "--teacher and --alpha need --logits"),
    ({"teacher": "x"}, "--teacher and --alpha need --logits"),
])
def test_wrong_flags_end_with_usage(files, tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit) as error:
        arguments(files, tmp_path, **flags)
    assert error.value.code == 2 and named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("label, named", [("", "no label"), ("중립", "label '중립' is none of")])
def test_every_validation_row_needs_a_label_that_training_knows(files, tmp_path, label, named):
    valid = write(tmp_path / "other.tsv", [("좋다", "긍정"), ("그저 그렇다", label)])
    refused(lambda: finetune(files, tmp_path / "out", valid=valid), f"other.tsv:3: {named}")
    assert not (tmp_path / "out").exists()


# ---- dump_logits -------------------------------------------------------------------------------------------


def new_teacher(files, path, seed, names=NAMES, max_length=12):
    """A random teacher whose logits differ from text to text, with its file."""
    tokenizer = Tokenizer.from_file(str(files / "tokenizer" / "vocab_size_150" / "tokenizer.json"))
    config = TeacherConfig("bert", 150, 16, 2, 2, 24, 16, 40, 2, len(names), initializer_range=0.4)
    torch.manual_seed(seed)
    teacher = Teacher(config, tokenizer, names, max_length).eval()
    teacher.save(path)
    return teacher


def dump(teachers, data, output, *more, **flags):
    flags = {"output_dir": output, "device": "cpu", "precision": "fp32", "max_tokens": 50} | flags
    flat = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    dump_logits.main(dump_logits.parse_args(
        ["--teacher", *map(str, teachers), "--data", *map(str, data), *flat, *more]))


@pytest.fixture
def three_files(tmp_path):
    """Labelled rows, unlabelled ones with blanks and one that is cut, and pairs."""
    texts = ["정말 최고", "", "지루하다 " * 20, "   ", "이 영화 별로", "\U0001f600"]
    pairs = [("이 영화", "정말 최고"), ("", "별로"), ("감동", ""), ("최악 " * 9, "또 보고 싶은 " * 9)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {write(tmp_path / "a.tsv", ROWS): ROWS,
            tmp_path / "b.jsonl": [(text, None) for text in texts],
            write(tmp_path / "c.tsv", pairs, "text\ttext2"): pairs}


def test_row_i_holds_the_logits_of_row_i_of_each_file(files, tmp_path, three_files):
    teacher = new_teacher(files, tmp_path / "t.pt", 1)
    fingerprints = teacher.fingerprints()
    dump([tmp_path / "t.pt"], three_files, tmp_path / "logits")
    assert sorted(path.name for path in (tmp_path / "logits").iterdir()) == [
        ".a.lock", ".b.lock", ".c.lock", "a.pt", "b.pt", "c.pt"]
    for path, rows in three_files.items():
        artifact = read(tmp_path / "logits" / f"{path.stem}.pt")
        pair = path.stem == "c"
        expected = torch.stack([alone(teacher, text, other if pair else None) for text, other in rows])
        assert expected.std(0).min() > 0.02
        assert artifact["logits"].dtype == torch.float32
        torch.testing.assert_close(artifact["logits"], expected, rtol=0, atol=1e-5)  # finite, blank rows too
        assert artifact["texts"] == read_examples(path).fingerprint()
        assert artifact["teachers"] == [fingerprints] and fingerprints["max_length"] == 12
        assert artifact["label_names"] == NAMES


@pytest.mark.parametrize("shard", [1, 7, 60])
def test_a_file_dumped_in_parts_gives_the_logits_of_the_whole(files, tmp_path, monkeypatch, capsys, shard):
    new_teacher(files, tmp_path / "t.pt", 1)
    rows = [(text, label if i % 4 else "") for i, (text, label) in enumerate(ROWS)]
    data = write(tmp_path / "a.tsv", rows)
    dump([tmp_path / "t.pt"], [data], tmp_path / "whole")
    monkeypatch.setattr(dump_logits, "SHARD", shard / 50)
    dump([tmp_path / "t.pt"], [data], tmp_path / "parts")
    whole, parts = (read(tmp_path / name / "a.pt") for name in ("whole", "parts"))
    torch.testing.assert_close(parts["logits"], whole["logits"], rtol=0, atol=1e-6)
    assert parts["texts"] == whole["texts"]
    accuracies = re.findall(r", accuracy (.*)", capsys.readouterr().out)
    assert len(accuracies) == 2 and accuracies[0] == accuracies[1]


@pytest.mark.parametrize("count", [2, 3])
def test_several_teachers_give_the_mean_of_their_logits(files, tmp_path, count):
    data = write(tmp_path / "a.tsv", ROWS)
    paths = [tmp_path / f"t{i}.pt" for i in range(count)]
    for i, path in enumerate(paths):
        new_teacher(files, path, i, max_length=10 + i)
    for path in paths:
        dump([path], [data], tmp_path / path.stem)
    dump(paths, [data], tmp_path / "mean")
    single = [read(tmp_path / path.stem / "a.pt") for path in paths]
    artifact = read(tmp_path / "mean" / "a.pt")
    assert torch.equal(artifact["logits"], sum(part["logits"] / count for part in single))
    assert artifact["teachers"] == [part["teachers"][0] for part in single]
    assert len({teacher["weights"] for teacher in artifact["teachers"]}) == count
    assert [teacher["max_length"] for teacher in artifact["teachers"]] == [10, 11, 12][:count]


def test_float16_is_the_float32_rounded_at_half_the_size(files, tmp_path):
    new_teacher(files, tmp_path / "t.pt", 1)
    data = write(tmp_path / "a.tsv", ROWS * 40)
    for dtype in ("float32", "float16"):
        dump([tmp_path / "t.pt"], [data], tmp_path / dtype, dtype=dtype, max_tokens=5000)
    full, half = (read(tmp_path / dtype / "a.pt")["logits"] for dtype in ("float32", "float16"))
    assert half.dtype == torch.float16 and torch.equal(half, full.half())
    full, half = ((tmp_path / dtype / "a.pt").stat().st_size for dtype in ("float32", "float16"))
    assert full - half == pytest.approx(60 * 40 * 2 * 2, abs=128)  # tensors start at multiples of 64


@pytest.mark.parametrize("shard", [200, 3])
def test_logits_too_large_for_float16_are_refused_with_their_row(files, tmp_path, monkeypatch, shard):
    monkeypatch.setattr(dump_logits, "SHARD", shard / 50)
    teacher = new_teacher(files, tmp_path / "t.pt", 1)
    data = write(tmp_path / "a.tsv", ROWS)
    logits = torch.stack([alone(teacher, text) for text, _ in ROWS]).abs().amax(1)
    row = int(logits.argmax())
    with torch.no_grad():  # the largest logit passes 65,520, the others do not
        teacher.head_out.weight *= 66_000 / logits[row]
    teacher.save(tmp_path / "t.pt")
    first = int((logits * (66_000 / logits[row]) >= 65_520).nonzero()[0])
    refused(lambda: dump([tmp_path / "t.pt"], [data], tmp_path / "out", dtype="float16"),
            rf"a\.tsv:{first + 2}: the logits of this row are not finite in float16", "float32")
    assert not list((tmp_path / "out").glob("*.pt"))
    dump([tmp_path / "t.pt"], [data], tmp_path / "out", "--overwrite")


def test_teachers_with_labels_in_another_order_are_refused(files, tmp_path):
    new_teacher(files, tmp_path / "one.pt", 1)
    new_teacher(files, tmp_path / "two.pt", 2, names=NAMES[::-1])
    data = write(tmp_path / "a.tsv", ROWS)
    refused(lambda: dump([tmp_path / "one.pt", tmp_path / "two.pt"], [data], tmp_path / "out"),
            r"two\.pt: ", r"\['부정', '긍정'\]", r"\['긍정', '부정'\]")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("second", ["sub/a.tsv", "sub/a.tsv.gz", "sub/a.jsonl"])
def test_two_files_of_one_name_are_refused_before_any_work(tmp_path, second):
    """Neither the teacher nor the files exist: the names alone decide."""
    refused(lambda: dump([tmp_path / "t.pt"], [tmp_path / "a.tsv", tmp_path / second], tmp_path / "out"),
            r"a\.tsv and ", re.escape(second), r"a\.pt", "--output-dir")
    assert not list((tmp_path / "out").glob("*"))


def test_the_printed_accuracy_is_a_count_over_labelled_rows(files, tmp_path, capsys):
    rows = [(text, label if i % 4 else "") for i, (text, label) in enumerate(ROWS)]
    data = [write(tmp_path / "a.tsv", rows), write(tmp_path / "b.tsv", [(text,) for text, _ in ROWS], "text")]
    teachers = [new_teacher(files, tmp_path / f"t{i}.pt", i) for i in range(2)]
    for names in (["t0.pt"], ["t1.pt"], ["t0.pt", "t1.pt"]):
        dump([tmp_path / name for name in names], data, tmp_path / "out", "--overwrite")
    lines = [line for line in capsys.readouterr().out.splitlines() if " texts/s " in line]
    logits = [torch.stack([alone(teacher, text) for text, _ in rows]) for teacher in teachers]
    logits.append((logits[0] + logits[1]) / 2)
    counts = [sum(NAMES[row.argmax()] == label for row, (_, label) in zip(each, rows, strict=True))
              for each in logits]
    assert len(set(counts)) > 1 and all(0 < count < 45 for count in counts)
    labelled = [line for line in lines if str(data[0]) in line]
    assert len(lines) == 6 and len(labelled) == 3
    for line, count in zip(labelled, counts, strict=True):
        assert line.endswith(f", accuracy {count / 45:.2%} of 45 labelled rows")
    assert not any(", accuracy" in line for line in lines if str(data[1]) in line)


# ---- dump_logits: going on, adding, checking ---------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch):
    """The texts of every call that runs a teacher."""
    calls, mean_logits = [], dump_logits.mean_logits
    monkeypatch.setattr(dump_logits, "mean_logits", lambda teachers, texts, *rest: (
        calls.append(list(texts)) or mean_logits(teachers, texts, *rest)))
    monkeypatch.setattr(dump_logits, "SHARD", 7 / 50)
    return calls


@pytest.mark.parametrize("flag", ["--resume", "--append"])
def test_a_killed_dump_goes_on_from_its_finished_parts(files, tmp_path, monkeypatch, computed, flag):
    for i in range(2):
        new_teacher(files, tmp_path / f"t{i}.pt", i)
    teachers, data = [tmp_path / "t0.pt", tmp_path / "t1.pt"], [write(tmp_path / "a.tsv", ROWS)]
    dump(teachers, data, tmp_path / "whole")
    whole, texts = computed.copy(), [text for text, _ in ROWS]
    assert whole == [texts[i : i + 7] for i in range(0, 60, 7)]
    save, saves = runtime.save, []

    def save_then_die(artifact, path):
        save(artifact, path)
        saves.append(path)
        if len(saves) == 4:  # the plan and three parts
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "save", save_then_die)
        with pytest.raises(runtime.Stopped, match="finished parts are saved; go on with: python "):
            dump(teachers, data, tmp_path / "parts")
    assert not (tmp_path / "parts" / "a.pt").exists()  # half of it is never taken for the whole
    refused(lambda: dump(teachers, data, tmp_path / "parts"), r"\.a\.shards: is there already; --resume")
    refused(lambda: dump(teachers[:1], data, tmp_path / "parts", flag),
            r"plan\.pt: was made with other values of the number of teachers \(2, now 1\)")
    refused(lambda: dump(teachers, data, tmp_path / "parts", flag, max_tokens=51),
            r"max_tokens \(50, now 51\)")
    part = tmp_path / "parts" / ".a.shards" / "000001.pt"
    torch.save(read(part) | {"logits": torch.zeros(6, 2)}, part)
    refused(lambda: dump(teachers, data, tmp_path / "parts", flag), r"000001\.pt: damaged; delete it and run")
    part.unlink()
    del computed[:]
    dump(teachers, data, tmp_path / "parts", flag)
    assert computed == [whole[1], *whole[3:]]
    assert (tmp_path / "parts" / "a.pt").read_bytes() == (tmp_path / "whole" / "a.pt").read_bytes()
    assert all_bytes(tmp_path / "parts").keys() == {"a.pt", ".a.lock"}
    del computed[:]
    dump(teachers, data, tmp_path / "parts", flag)  # whole: nothing is left to do
    assert computed == []
    refused(lambda: dump(teachers, data, tmp_path / "parts"), r"a\.pt: is there already; --append if")


@pytest.mark.parametrize("old, killed, done", [
    ("of another teacher", "000002.pt", 21), ("damaged", "000002.pt", 21), ("damaged", "plan.pt", 0),
    ("without its last row", "000002.pt", 21),
])
def test_a_killed_overwrite_goes_on_and_replaces_what_was_there(files, tmp_path, monkeypatch, computed, old,
                                                                killed, done):
    """What is there when it is resumed is what it was to replace: not whole, and nothing is kept of it."""
    data = [write(tmp_path / "a.tsv", ROWS[:59] if old == "without its last row" else ROWS)]
    new_teacher(files, tmp_path / "t.pt", 2 if old == "of another teacher" else 1)
    dump([tmp_path / "t.pt"], data, tmp_path / "out")
    artifact = read(tmp_path / "out" / "a.pt")
    artifact["logits"][50, 0] += 1
    torch.save(artifact, tmp_path / "out" / "a.pt")
    before = (tmp_path / "out" / "a.pt").read_bytes()
    new_teacher(files, tmp_path / "t.pt", 1)
    write(tmp_path / "a.tsv", ROWS)
    dump([tmp_path / "t.pt"], data, tmp_path / "whole")
    save = runtime.save

    def save_then_die(artifact, path):
        save(artifact, path)
        if path.name == killed:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runtime, "save", save_then_die)
        dump([tmp_path / "t.pt"], data, tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "a.pt").read_bytes() == before
    del computed[:]
    dump([tmp_path / "t.pt"], data, tmp_path / "out", "--resume")
    assert [text for part in computed for text in part] == [text for text, _ in ROWS[done:]]
    assert (tmp_path / "out" / "a.pt").read_bytes() == (tmp_path / "whole" / "a.pt").read_bytes()


def test_a_killed_overwrite_of_two_files_replaces_both(files, tmp_path, monkeypatch, computed):
    """The second, which it had not come to, looks whole; but was to be replaced: a logit in it is wrong."""
    new_teacher(files, tmp_path / "t.pt", 1)
    data = [write(tmp_path / name, ROWS) for name in ("a.tsv", "b.tsv")]
    dump([tmp_path / "t.pt"], data, tmp_path / "out")
    right = (tmp_path / "out" / "b.pt").read_bytes()
    artifact = read(tmp_path / "out" / "b.pt")
    artifact["logits"][7, 0] += 3
    torch.save(artifact, tmp_path / "out" / "b.pt")
    save = runtime.save

    def save_then_die(artifact, path):
        save(artifact, path)
        if path.name == "000001.pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runtime, "save", save_then_die)
        dump([tmp_path / "t.pt"], data, tmp_path / "out", "--overwrite")
    dump([tmp_path / "t.pt"], data, tmp_path / "out", "--resume")
    assert (tmp_path / "out" / "b.pt").read_bytes() == right
    assert all_bytes(tmp_path / "out").keys() == {"a.pt", "b.pt", ".a.lock", ".b.lock"}


def test_parts_of_a_file_that_was_another_one_meanwhile_are_computed_again(files, tmp_path, monkeypatch,
                                                                           computed):
    """Replaced while it was dumped, which is refused at its end, and put back."""
    new_teacher(files, tmp_path / "t.pt", 1)
    data = write(tmp_path / "a.tsv", ROWS)
    dump([tmp_path / "t.pt"], [data], tmp_path / "whole")
    whole, read_again_ = computed.copy(), dump_logits.read_again

    def replaced(*args, **flags):
        write(data, [*ROWS[:14], ("다른 글", "긍정"), *ROWS[15:]])
        return read_again_(*args, **flags)

    with monkeypatch.context() as patch:
        patch.setattr(dump_logits, "read_again", replaced)
        refused(lambda: dump([tmp_path / "t.pt"], [data], tmp_path / "parts"), r"a\.tsv: was changed while")
    assert not (tmp_path / "parts" / "a.pt").exists()
    write(data, ROWS)
    del computed[:]
    dump([tmp_path / "t.pt"], [data], tmp_path / "parts", "--resume")
    assert computed == whole[2:3]
    assert (tmp_path / "parts" / "a.pt").read_bytes() == (tmp_path / "whole" / "a.pt").read_bytes()


@pytest.mark.parametrize("killed", [None, "000004.pt", "a.pt"])
def test_append_computes_the_new_rows_alone_and_keeps_the_old_bits(files, tmp_path, monkeypatch, computed,
                                                                   killed):
    """Also when it is killed in its fifth part, or at the end, before the parts are removed."""
    teacher = new_teacher(files, tmp_path / "t.pt", 1)
    data = [write(tmp_path / "a.tsv", ROWS[:24])]
    for folder in ("out", "whole"):
        dump([tmp_path / "t.pt"], data, tmp_path / folder)
    old = read(tmp_path / "out" / "a.pt")["logits"]
    write(tmp_path / "a.tsv", ROWS)
    refused(lambda: dump([tmp_path / "t.pt"], data, tmp_path / "out", "--resume"),
            r"a\.pt: has 24 of the 60 rows of .*a\.tsv; --append adds the rest")
    dump([tmp_path / "t.pt"], data, tmp_path / "whole", "--append")
    del computed[:]
    if killed:
        save = runtime.save

        def save_then_die(artifact, path):
            save(artifact, path)
            if path.name == killed:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runtime, "save", save_then_die)
            dump([tmp_path / "t.pt"], data, tmp_path / "out", "--append")
        assert len(read(tmp_path / "out" / "a.pt")["logits"]) == (60 if killed == "a.pt" else 24)
        dump([tmp_path / "t.pt"], data, tmp_path / "out", "--append", "--resume")
    else:
        dump([tmp_path / "t.pt"], data, tmp_path / "out", "--append")
    assert [text for part in computed for text in part] == [text for text, _ in ROWS[24:]]
    new = read(tmp_path / "out" / "a.pt")
    assert torch.equal(new["logits"][:24], old) and new["texts"] == read_examples(data[0]).fingerprint()
    expected = torch.stack([alone(teacher, text) for text, _ in ROWS])
    torch.testing.assert_close(new["logits"], expected, rtol=0, atol=1e-5)
    assert all_bytes(tmp_path / "out").keys() == {"a.pt", ".a.lock"}
    assert (tmp_path / "out" / "a.pt").read_bytes() == (tmp_path / "whole" / "a.pt").read_bytes()


@pytest.mark.parametrize("change, named", [
    ("first row", r"a\.pt: is of other texts than those of .*a\.tsv"), ("fewer rows", r"is of other texts"),
    ("teacher", r"other values of the weights of teacher 1;"), ("dtype", r"dtype \(float32, now float16\)"),
])
def test_append_to_logits_of_other_texts_or_teachers_is_refused(files, tmp_path, computed, change, named):
    new_teacher(files, tmp_path / "t.pt", 1)
    data = [write(tmp_path / "a.tsv", ROWS[:24])]
    dump([tmp_path / "t.pt"], data, tmp_path)
    rows = {"first row": [("다른 글", "긍정"), *ROWS[1:]], "fewer rows": ROWS[:23]}.get(change, ROWS)
    write(tmp_path / "a.tsv", rows)
    if change == "teacher":
        new_teacher(files, tmp_path / "t.pt", 2)
    before, _ = all_bytes(tmp_path), computed.clear()
    refused(lambda: dump([tmp_path / "t.pt"], data, tmp_path, "--append",
                         dtype="float16" if change == "dtype" else "float32"), named)
    assert computed == [] and all_bytes(tmp_path) == before


@pytest.mark.parametrize("flag", ["--resume", "--append"])
def test_logits_that_lack_rows_are_not_taken_for_whole(files, tmp_path, flag):
    new_teacher(files, tmp_path / "t.pt", 1)
    data = [write(tmp_path / "a.tsv", ROWS)]
    dump([tmp_path / "t.pt"], data, tmp_path)
    made = read(tmp_path / "a.pt")
    torch.save(made | {"logits": made["logits"][:2].clone()}, tmp_path / "a.pt")
    before = all_bytes(tmp_path)
    refused(lambda: dump([tmp_path / "t.pt"], data, tmp_path, flag), r"a\.pt: damaged, 2 of 60 rows; --over")
    assert all_bytes(tmp_path) == before


def test_check_computes_rows_again_and_names_the_one_that_differs(files, tmp_path, computed, capsys,
                                                                  monkeypatch):
    new_teacher(files, tmp_path / "t.pt", 1)
    data = [write(tmp_path / "a.tsv", ROWS)]
    dump([tmp_path / "t.pt"], data, tmp_path)
    before, _ = all_bytes(tmp_path), computed.clear()
    dump([tmp_path / "t.pt"], data, tmp_path, check=25)
    assert len(computed) == 1 and len(computed[0]) == 25 and set(computed[0]) <= {text for text, _ in ROWS}
    assert "25 of 60 rows computed again in fp32, all agree" in capsys.readouterr().out
    dump([tmp_path / "t.pt"], data, tmp_path, check=999)
    assert "60 of 60 rows" in capsys.readouterr().out and all_bytes(tmp_path) == before
    artifact = read(tmp_path / "a.pt")
    right = artifact["logits"][41, 1].item()
    draw = np.random.default_rng
    seed = next(seed for seed in range(99) if 41 in draw(seed).permutation(60)[:30])
    for wrong in (right + 0.01, right - 0.01, torch.nan):
        artifact["logits"][41, 1] = wrong
        torch.save(artifact, tmp_path / "a.pt")
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "default_rng", lambda: draw(seed))  # every second row, 41 among them
            refused(lambda: dump([tmp_path / "t.pt"], data, tmp_path, check=30),
                    r"a\.pt: 1 of 30 rows are wrong, first row 41 \(.*a\.tsv:43\): ")
        refused(lambda: dump([tmp_path / "t.pt"], data, tmp_path, check=60),
                r"a\.pt: 1 of 60 rows are wrong, first row 41 \(.*a\.tsv:43\): "
                rf"\[\S+, {wrong:.4g}\d*\], computed again \[\S+, {right:.4g}\d*\]; --overwrite makes it an")
    new_teacher(files, tmp_path / "t.pt", 2)
    refused(lambda: dump([tmp_path / "t.pt"], data, tmp_path, check=60), "the weights of teacher 1;")
