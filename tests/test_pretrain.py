"""Masked-language-model pretraining: masks, losses, the published folder, continuing, ranks, bad input."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import finetune_teacher
import runtime
import train_tokenizer
from data import batches
from data.examples import read_again
from data.published import bert_template, load_tokenizer
from extra import pretrain_teacher
from extra.pretrain_teacher import MaskedLM, Masker, losses
from runtime import UserError
from teacher import HEADS, TeacherConfig, load_checkpoint

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
# The first word decides the others: what is masked can be told from what is not.
SENTENCES = ["정말 재밌는 영화 최고 감동", "너무 지루한 시간 낭비 최악", "배우 연기 하나 볼만 하다",
             "음악 화면 모두 아름답다 추천"]
ROWS = [(f"{SENTENCES[i % 4]} {SENTENCES[i % 4] if i % 3 else ''}", str(1 + i % 4), ("나쁨", "좋음")[i % 2])
        for i in range(120)]


def write(path, rows, header="text\tstars\tlabel"):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *("\t".join(row) for row in rows), ""]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """a.tsv, b.tsv (120 rows together) and a tokenizer of 100 tokens."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "a.tsv", ROWS[:70])
    write(folder / "b.tsv", ROWS[70:])
    flags = ["--data", folder / "a.tsv", "--output-dir", folder / "tokenizer", "--vocab-size", 100]
    flags += ["--type", "wordpiece", "--min-frequency", 1]
    train_tokenizer.main(train_tokenizer.parse_args(list(map(str, flags))))
    return folder


def arguments(files, output, *more, **flags):
    flags = {"layers": 2, "hidden_dim": 32, "embedding_dim": 16, "heads": 2, "epochs": 2,
             "tokenizer": files / "tokenizer" / "vocab_size_100", "output_dir": output, "lr": 0.01,
             "max_tokens": 300, "validate_every": 3, "device": "cpu", "precision": "fp32"} | flags
    flat = [part for name, value in flags.items() if value is not None
            for part in (f"--{name.replace('_', '-')}", str(value))]
    return pretrain_teacher.parse_args(["--train", str(files / "a.tsv"), str(files / "b.tsv"), *flat, *more])


def pretrain(files, output, *more, **flags):
    pretrain_teacher.main(arguments(files, output, *more, **flags))


def log_lines(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "step" in line]


def refused(function, *parts):
    with pytest.raises(UserError) as error:
        function()
    assert "\n" not in str(error.value)
    for part in parts:
        assert re.search(part, str(error.value)), f"{part} not in {error.value}"


def new_model(files, family="electra", names=(), seed=0):
    """A random model, the vocabulary larger than the tokenizer's, whose scores differ from token to token."""
    tokenizer = load_tokenizer(files / "tokenizer" / "vocab_size_100", family)
    tokenizer.post_processor = bert_template(tokenizer)
    roberta = family == "roberta"
    config = TeacherConfig(
        family, 103, 16, 2, 2, 24, 8 if family == "electra" else 16, 40, 0 if family == "distilbert" else 2,
        len(names) or 1, initializer_range=0.3, pad_id=0, position_offset=int(roberta))
    torch.manual_seed(seed)
    model = MaskedLM(config, tokenizer, list(names), 30).eval()
    torch.nn.init.normal_(model.mlm_bias)
    return model


def encoded(model, rows):
    return batches.encode(model.tokenizer, [text for text, *_ in rows], None, **model.reads)


# ---- masks and losses --------------------------------------------------------------------------------------


def test_masks_keep_the_rates_and_leave_special_tokens_and_padding_alone(files):
    model = new_model(files)
    ordinary = list(range(5, model.tokenizer.get_vocab_size()))
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(generator.choice([*ordinary, 1, 4], (500, 50)))  # also [UNK] and a typed [MASK]
    ids[:, 0] = 2
    lengths = torch.from_numpy(generator.integers(2, 51, 500))
    ids[torch.arange(500), lengths - 1] = 3
    ids[torch.arange(50) >= lengths[:, None]] = 7  # padding counts by its place, not by its token
    batch = {"input_ids": ids.clone(), "lengths": lengths}
    runtime.seed_everything(CPU, 1)
    masker = Masker(model, 0.3, CPU)
    found = masker(batch)
    assert torch.equal(batch["input_ids"], ids) and torch.equal(found["input_ids"], ids)
    may = (ids > 4) & (torch.arange(50) < lengths[:, None])
    predict, read = found["predict"], found["read"]
    assert not (predict & ~may).any() and torch.equal(read[~predict], ids[~predict])
    assert predict.sum() / may.sum() == pytest.approx(0.3, abs=0.015)
    masked, kept = (read == 4)[predict].float().mean(), (read == ids)[predict].float().mean()
    assert masked == pytest.approx(0.8, abs=0.03) and kept == pytest.approx(0.1, abs=0.02)
    random = read[predict & (read != 4) & (read != ids)]
    assert set(random.tolist()) <= set(ordinary) and len(set(random.tolist())) > 0.8 * len(ordinary)
    again = masker(batch)["predict"]
    assert not torch.equal(again, predict)
    runtime.seed_everything(CPU, 1)
    assert torch.equal(masker(batch)["predict"], predict)


CLASSES = {"bert": "Bert", "electra": "Electra", "roberta": "Roberta", "distilbert": "DistilBert"}


@pytest.mark.optional
@pytest.mark.parametrize("family", HEADS)
def test_folder_and_loss_are_those_of_transformers(files, tmp_path, family):
    """What save_published writes: every tensor is read by both, texts become the same ids, and scores, hidden
    states and the loss on the same masks agree, padding included."""
    transformers = pytest.importorskip("transformers")
    model = new_model(files, family)
    model.save_published(tmp_path, made_by={"script": "x"})
    kind = getattr(transformers, f"{CLASSES[family]}ForMaskedLM")
    theirs, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs.eval()
    rows = [*ROWS[:20], ("없는 낱말 ☃ 정말 Movie",), ("정말",)]
    texts = [row[0] for row in rows]
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    batch = encoded(model, rows).batch(np.arange(22))
    assert torch.equal(inputs["input_ids"], batch["input_ids"])
    runtime.seed_everything(CPU, 5)
    batch = Masker(model, 0.3, CPU)(batch)
    labels = batch["input_ids"].masked_fill(~batch["predict"], -100)
    with torch.no_grad():
        if family == "roberta":  # theirs derives positions from ids: none may look like padding
            assert (batch["read"][inputs["attention_mask"] == 1] != 0).all()
        output = theirs(batch["read"], attention_mask=inputs["attention_mask"], labels=labels,
                        output_hidden_states=True)
        keep = batch["predict"].flatten().nonzero()[:, 0]
        scores, logits = model(batch["read"], batch["lengths"], keep=keep)
        hidden = model.encoder(batch["read"], batch["lengths"])
        total, other = losses(model, batch)
    assert logits is None and other == 0 and len(keep) > 10
    torch.testing.assert_close(scores, output.logits.flatten(0, 1)[keep], rtol=0, atol=1e-5)
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(hidden[real], output.hidden_states[-1][real], rtol=0, atol=1e-5)
    assert total.item() / len(keep) == pytest.approx(output.loss.item(), abs=1e-5)

    model.tokenizer.no_truncation()
    again, report = load_checkpoint(str(tmp_path), [], 30, MaskedLM)
    count = len(torch.load(tmp_path / "pytorch_model.bin"))
    assert report == [f"{tmp_path}/pytorch_model.bin: {count} tensors read, 0 not used, 0 started fresh"]
    assert again.config == model.config and again.tokenizer.to_str() == model.tokenizer.to_str()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    teacher, report = load_checkpoint(str(tmp_path), ["0", "1"], 30)
    assert report[-1].count("head_") == 4 and report[1].count(",") == 4
    assert torch.equal(teacher.eval().encoder(batch["read"], batch["lengths"]), hidden)


@pytest.mark.parametrize("names, values", [
    (["stars"], [1.5, math.nan, -1.0]), (["a", "b"], [1.0, math.nan, 0.0]),
])
def test_the_second_loss_reads_the_first_token_of_rows_with_a_target(files, names, values):
    model = new_model(files, names=names)
    batch = encoded(model, ROWS[:3]).batch(np.arange(3))
    batch = Masker(model, 0.3, CPU)(batch | {"target": torch.tensor(values)})
    with torch.no_grad():
        logits = model.classify(model.encoder(batch["read"], batch["lengths"])[:, 0])
        total, second = losses(model, batch)
        del batch["target"]
        alone = new_model(files)
        alone.load_state_dict({name: tensor for name, tensor in model.state_dict().items()
                               if not name.startswith("head_")})
        assert total.item() == pytest.approx(losses(alone, batch)[0].item(), rel=1e-6)
    if len(names) == 1:
        expected = (logits[0, 0] - 1.5) ** 2 + (logits[2, 0] + 1) ** 2
    else:
        expected = -logits[0].log_softmax(0)[1] - logits[2].log_softmax(0)[0]
    assert second.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("names", [["target"], ["0", "1"]])
def test_a_row_without_target_has_no_part_in_the_gradient(files, names):
    """Its target is NaN, and zero times NaN would be NaN again."""
    model = new_model(files, names=names)
    batch = encoded(model, ROWS[:3]).batch(np.arange(3))
    batch = Masker(model, 0.3, CPU)(batch)
    gradients = []
    for rows, targets in (([0, 1, 2], [1, torch.nan, 0]), ([0, 2], [1, 0])):
        part = {name: value[rows] for name, value in batch.items()} | {"target": torch.tensor(targets)}
        model.zero_grad()
        losses(model, part)[1].backward()
        gradients.append(model.head_out.weight.grad.clone())
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


# ---- a run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(files, tmp_path_factory):
    """The folder of a run that has learnt something."""
    folder = tmp_path_factory.mktemp("out") / "run"
    pretrain(files, folder, "--target-column", "stars", epochs=30, validate_every=100)
    return folder


def test_the_loss_falls_on_learnable_text(pretrained):
    lines = log_lines(pretrained)
    assert [line["step"] for line in lines] == [0, 100, 120] and "train_loss" not in lines[0]
    assert lines[0]["valid_loss"] == pytest.approx(math.log(100), abs=0.3)
    assert lines[-1]["valid_loss"] < 0.6 * lines[0]["valid_loss"]
    assert lines[-1]["train_loss"] < 0.6 * lines[0]["valid_loss"]
    assert lines[0]["valid_target_loss"] == pytest.approx(1, abs=0.2) and lines[-1]["valid_target_loss"] < 0.1
    config = json.loads((pretrained / "config.json").read_text())
    assert (config["target_mean"], config["target_deviation"]) == pytest.approx((2.5, 1.118), abs=0.1)
    assert config["hidden_dropout_prob"] == 0.1 and config["embedding_size"] == 16


def test_going_on_starts_at_the_published_weights(files, pretrained, tmp_path, capsys):
    """The first loss is the last one of the run before; without the second loss its head is left out."""
    flags = {"checkpoint": pretrained, "layers": None, "tokenizer": None, "lr": 1e-30, "epochs": 1}
    pretrain(files, tmp_path / "more", **flags)
    assert " 0 started fresh" in capsys.readouterr().out
    first, last = log_lines(tmp_path / "more")[0], log_lines(pretrained)[-1]
    assert first["valid_loss"] == last["valid_loss"]
    pretrain(files, tmp_path / "stars", "--target-column", "stars", **flags)
    for line in (log_lines(tmp_path / "stars")[0], log_lines(tmp_path / "stars")[-1]):
        assert line["valid_loss"] == pytest.approx(last["valid_loss"], rel=1e-6)
        assert line["valid_target_loss"] == pytest.approx(last["valid_target_loss"], rel=1e-6)
    before, after = (torch.load(folder / "pytorch_model.bin") for folder in (pretrained, tmp_path / "more"))
    assert before.keys() - after.keys() == {f"classifier.{name}.{part}" for name in ("dense", "out_proj")
                                            for part in ("weight", "bias")}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_published_head_keeps_its_order_of_classes(files, tmp_path):
    """The same classifier with its two classes in the other order goes on from the same loss."""
    one, other = tmp_path / "one", tmp_path / "other"
    pretrain(files, one, "--target-column", "label", epochs=20, validate_every=1000)
    settings = json.loads((one / "config.json").read_text("utf-8"))
    assert settings["id2label"] == {"0": "나쁨", "1": "좋음"}
    settings["id2label"] = {"0": "좋음", "1": "나쁨"}
    (one / "config.json").write_text(json.dumps(settings), "utf-8")
    weights = torch.load(one / "pytorch_model.bin")
    for part in ("weight", "bias"):
        weights[f"classifier.out_proj.{part}"] = weights[f"classifier.out_proj.{part}"].flip(0)
    torch.save(weights, one / "pytorch_model.bin")
    pretrain(files, other, "--target-column", "label", layers=None, tokenizer=None, checkpoint=one, epochs=1)
    before, after = log_lines(one)[-1], log_lines(other)[0]
    assert after["valid_target_loss"] == pytest.approx(before["valid_target_loss"], rel=1e-4)
    assert before["valid_target_loss"] < 0.6  # it has learnt the order


def test_finetuning_reads_the_folder(files, pretrained, tmp_path):
    flags = ["--train", files / "a.tsv", "--valid", files / "b.tsv", "--checkpoint", pretrained,
             "--epochs", 1, "--output-dir", tmp_path, "--device", "cpu", "--precision", "fp32"]
    finetune_teacher.main(finetune_teacher.parse_args(list(map(str, flags))))
    assert (tmp_path / "teacher.pt").exists()


@pytest.mark.parametrize("window", [None, 400])
def test_a_continued_run_equals_an_uninterrupted_one_to_the_bit(files, tmp_path, monkeypatch, capsys, window):
    """Stopped every second step or so, also at the first validation; and with rows in several windows."""
    if window:
        monkeypatch.setattr(batches, "WINDOW", window)
        monkeypatch.setattr(read_again, "__defaults__", (None, None, None, 16))
    monkeypatch.setattr(sys, "argv", ["pretrain_teacher.py"])
    flags = ["--target-column", "label", "--dropout", "0.2"]
    pretrain(files, tmp_path / "whole", *flags, max_tokens=200)
    steps = log_lines(tmp_path / "whole")[-1]["step"]
    save, left = runtime.save_together, [0]

    def interrupt(files):
        save(files)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "save_together", interrupt)
        for left[0] in (1, 2, 6, 3):  # files written until then
            with pytest.raises(KeyboardInterrupt):
                pretrain(files, tmp_path / "parts", *flags, max_tokens=200, save_every=0)
            torch.rand(7)
    at = torch.load(tmp_path / "parts" / "last.pt")["at"]
    assert 6 < at["steps"] < steps - 1 and not at["finished"]
    pretrain(files, tmp_path / "parts", *flags, max_tokens=200)
    for name in ("pytorch_model.bin", *pretrain_teacher.WRITTEN):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    whole, parts = (torch.load(tmp_path / folder / "last.pt") for folder in ("whole", "parts"))
    for name in whole["weights"]:
        assert torch.equal(whole["weights"][name], parts["weights"][name]), name
    for i, moments in whole["optimizer"]["state"].items():
        assert all(torch.equal(value, parts["optimizer"]["state"][i][key]) for key, value in moments.items())
    clock = {"seconds": 0, "log": ""}
    assert whole["at"] | clock == parts["at"] | clock and parts["at"]["finished"]
    lines = [[line | {"seconds": 0} for line in log_lines(tmp_path / name)] for name in ("whole", "parts")]
    assert lines[0] == lines[1] and len(lines[0]) == steps // 3 + 1 + (steps % 3 > 0)

    files_of_parts = [path for path in (tmp_path / "parts").iterdir() if path.name != ".lock"]
    before = [path.stat().st_mtime_ns for path in files_of_parts]
    capsys.readouterr()
    pretrain(files, tmp_path / "parts", *flags, max_tokens=200)  # finished: nothing changes
    assert "finished" in capsys.readouterr().out.splitlines()[-1]
    refused(lambda: pretrain(files, tmp_path / "parts", *flags, max_tokens=200, lr=0.02),
            r"last\.pt", r"lr \(0.01, now 0.02", "--overwrite")
    assert before == [path.stat().st_mtime_ns for path in files_of_parts]
    pretrain(files, tmp_path / "parts", *flags, "--overwrite", max_tokens=200, lr=0.02)
    assert all(now > then for now, then in zip((path.stat().st_mtime_ns for path in files_of_parts), before,
                                               strict=True))


def test_the_first_step_takes_the_mean_gradient_of_its_tokens_and_rows(files, tmp_path, monkeypatch):
    gradients = []

    class Recorder(torch.optim.AdamW):
        def step(self, *args):
            gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
            super().step(*args)

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    pretrain(files, tmp_path, "--target-column", "label", target_weight=0.3, max_tokens=9999, epochs=1,
             clip=1e9, valid=files / "b.tsv")
    args = arguments(files, tmp_path)
    runtime.seed_everything(CPU, 0)
    model = pretrain_teacher.new_model(args, ["나쁨", "좋음"]).eval()  # no dropout is the default
    rows_of_all = encoded(model, ROWS)
    rows_of_all.columns["target"] = torch.tensor([float(label == "좋음") for *_, label in ROWS])
    (rows,) = batches.token_batches(rows_of_all.lengths, 9999, (0, 0, 0))
    runtime.seed_everything(CPU, 0, 0, 0)
    batch = Masker(model, 0.15, CPU)(rows_of_all.batch(rows))
    x = model.encoder(batch["read"], batch["lengths"])
    scores = model.mlm_norm(F.gelu(model.mlm_dense(x))) @ model.encoder.word_embeddings.weight.T
    scores = scores + model.mlm_bias
    loss = F.cross_entropy(scores[batch["predict"]], batch["input_ids"][batch["predict"]])
    loss = loss + 0.3 * F.cross_entropy(model.classify(x[:, 0]), batch["target"].long())
    parameters = sorted(model.parameters(), key=lambda p: p.dim() == 1)
    assert len(gradients) == 1
    for actual, expected in zip(gradients[0], torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


def test_by_the_clock_the_rate_rises_and_falls_to_zero(files, tmp_path, monkeypatch):
    rates = []

    class Recorder(torch.optim.AdamW):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            now[0] += 36
            super().step(*args)

    now = [0.0]
    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    monkeypatch.setattr(pretrain_teacher.time, "monotonic", lambda: now[0])
    pretrain(files, tmp_path, epochs=None, hours=0.2, warmup=0.25, validate_every=1000)
    done = [0.05 * i for i in range(20)]
    assert rates == pytest.approx([0.01 * min(d / 0.25, (1 - d) / 0.75) for d in done], abs=1e-9)
    assert [line["step"] for line in log_lines(tmp_path)] == [0, 20]


def test_by_the_clock_no_end_is_pretended(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: now[0])
    for total in (None, 4000):
        progress = runtime.Progress("pretrain", total, "tokens")
        now[0] += 3
        progress.add(3000)
    assert capsys.readouterr().err.splitlines() == [
        "pretrain: 3,000 tokens, 1,000/s", "pretrain: 3,000/4,000 tokens (75%), 1,000/s, 1s left"]


def test_two_processes_train_the_model_that_one_does(files, tmp_path):
    args = [f"--train={files / 'a.tsv'}", f"--tokenizer={files / 'tokenizer' / 'vocab_size_100'}",
            "--layers=1", "--hidden-dim=16", "--target-column=stars", "--max-tokens=200", "--device=cpu",
            "--precision=fp32"]
    pretrain_teacher.main(pretrain_teacher.parse_args([*args, f"--output-dir={tmp_path / 'one'}"]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               ROOT / "extra" / "pretrain_teacher.py", *args, f"--output-dir={tmp_path / 'two'}"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation loss") == 1
    one, two = (torch.load(tmp_path / name / "pytorch_model.bin") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 2e-6
    for line, other in zip(log_lines(tmp_path / "one"), log_lines(tmp_path / "two"), strict=True):
        assert line == pytest.approx(other | {"seconds": line["seconds"]}, rel=1e-5)


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, named", [
    ({"layers": None, "tokenizer": None}, "--checkpoint or --layers"), ({"checkpoint": "x"}, "--checkpoint"),
    ({"tokenizer": None}, "--tokenizer"), ({"epochs": 0}, "--epochs"), ({"hours": 1}, "--hours"),
    ({"epochs": None, "hours": -1}, "--hours"), ({"lr": "nan"}, "--lr"), ({"warmup": 1}, "--warmup"),
    ({"mask_rate": 1}, "--mask-rate"), ({"dropout": -0.1}, "--dropout"), ({"heads": 0}, "--heads"),
    ({"family": "bert"}, "--embedding-dim"), ({"target": "class"}, "--target-column"),
    ({"seed": -1}, "--seed"), ({"max_length": 2}, "--max-length"),
])
def test_wrong_flags_end_with_usage(files, tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit) as error:
        arguments(files, tmp_path, **flags)
    assert error.value.code == 2 and named in capsys.readouterr().err.splitlines()[-1]


def test_wrong_input_is_one_line_and_harms_no_file(files, tmp_path, capsys):
    out, tokenizer = tmp_path / "out", files / "tokenizer" / "vocab_size_100"
    stars, label = ("--target-column", "stars"), ("--target-column", "label")
    refused(lambda: pretrain(files, out, "--target-column", "none"), r"a\.tsv:1: ", "column none")
    refused(lambda: pretrain(files, out, *label, target="numeric"), "column label", "--target class")
    refused(lambda: pretrain(files, out, hidden_dim=30, heads=4), "--hidden-dim 30 --heads 4: ")
    refused(lambda: pretrain(files, out, tokenizer=files), r"tokenizer\.json")
    other = write(tmp_path / "other.tsv", [("가", "나")], "text\ttext2")
    refused(lambda: pretrain(files, out, valid=other), "text2")
    write(other, [("가", "중립")], "text\tlabel")
    refused(lambda: pretrain(files, out, *label, valid=other), r"other\.tsv:2: ", "중립")
    write(other, [("가", "많이")], "text\tstars")
    refused(lambda: pretrain(files, out, *stars, valid=other, target="numeric"), r"other\.tsv", "stars")
    write(other, [("가", ""), ("나", "")], "text\tstars")
    refused(lambda: pretrain(files, out, "--train", str(other), *stars), r"other\.tsv", "stars", "empty")
    same = [(text, "3", label) for text, _, label in ROWS]
    for name in ("a.tsv", "b.tsv"):
        write(tmp_path / "data" / name, same)
    for target in ("numeric", "class"):
        refused(lambda target=target: pretrain(tmp_path / "data", out, *stars, tokenizer=tokenizer,
                                               target=target), "stars", "same value")
    assert not out.exists()
    for name in ("a.tsv", "b.tsv"):
        write(tmp_path / "data" / name, ROWS[:3])
    refused(lambda: pretrain(tmp_path / "data", out, tokenizer=tokenizer), "6 rows are too few")
    write(tmp_path / "data" / "b.tsv", [*same[:10], (ROWS[0][0], "3.0", "x")])
    write(tmp_path / "data" / "a.tsv", same[:10])
    refused(lambda: pretrain(tmp_path / "data", out, *stars, tokenizer=tokenizer, target="numeric"),
            "stars", "same value")  # though written in two ways
    assert [path.name for path in out.iterdir()] == [".lock"]
    refused(lambda: pretrain(files, tokenizer), "--output-dir")
    write(out / "vocab.txt", ROWS)
    refused(lambda: pretrain(files, out, "--overwrite", valid=out / "vocab.txt"), r"vocab\.txt: ")
    with pytest.raises(SystemExit) as ended:
        runtime.main(pretrain_teacher.main, arguments(files, out, "--train", "x.tsv"))
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: x.tsv: ")


def test_a_damaged_last_pt_is_refused(files, tmp_path):
    pretrain(files, tmp_path, epochs=1)
    whole = torch.load(tmp_path / "last.pt")
    whole["at"]["finished"] = False
    for name, value in (("sums", [0.0] * 3), ("sums", [0, 0, 0, ""]), ("steps", "1"), ("step", "1"),
                        ("best", {"step": 1, "valid_loss": "x"})):
        torch.save({**whole, "at": {**whole["at"], name: value}}, tmp_path / "last.pt")
        refused(lambda: pretrain(files, tmp_path, epochs=1), r"last\.pt: damaged")


def test_divergence_names_file_and_row_of_every_example(files, tmp_path, monkeypatch):
    """Row 5 of b.tsv is the only one without any of the usual words."""
    bad = [*ROWS[:75], ("추천 추천 추천", "1", "좋음"), *ROWS[76:]]
    write(tmp_path / "data" / "a.tsv", bad[:70])
    write(tmp_path / "data" / "b.tsv", bad[70:])
    tokenizer = files / "tokenizer" / "vocab_size_100"
    ids = torch.tensor(load_tokenizer(tokenizer, "electra").encode("추천 추천 추천").ids)

    def poisoned(model, batch):
        found = (batch["input_ids"][:, 1 : len(ids) + 1] == ids).all(1).any()
        return losses(model, batch) * (math.nan if model.training and found else 1)

    monkeypatch.setattr(pretrain_teacher, "losses", poisoned)
    refused(lambda: pretrain(tmp_path / "data", tmp_path / "out", tokenizer=tokenizer), "epoch 1, step",
            r"diverged\.tsv")
    header, *rows = (tmp_path / "out" / "diverged.tsv").read_text().splitlines()
    assert header == "file\trow" and f"{tmp_path / 'data' / 'b.tsv'}\t5" in rows
    named = [(path.endswith("b.tsv"), int(row)) for path, row in (line.split("\t") for line in rows)]
    assert all(0 <= row < (50 if second else 70) for second, row in named) and len(set(named)) == len(named)
    held_out = {(False, row) for row in range(9, 70, 10)} | {(True, row - 70) for row in range(79, 120, 10)}
    assert not held_out & set(named)
