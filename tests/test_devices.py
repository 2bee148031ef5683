"""The scripts on a pretended GPU, whose tensors the CPU computes, but which cannot meet the CPU's own.

These tests are run where there is no GPU. They find what a real one would refuse first, an operation whose
tensors are on two devices. They say nothing of its kernels, of autocast there or of memory.
"""

import contextlib
import json
import signal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import distill
import dump_logits
import evaluate
import finetune_teacher
import pretrain_teacher
import runtime
import train_tokenizer
from student import Student, lstm_states

GPU = torch.device("lazy", 0)  # PyTorch knows it, its autograd needs no driver, and the kit never names it
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
MIXING = {"aten::_to_copy", "aten::copy_"}
INDEXED = {"aten::index", "aten::index_put_"}  # the indices of what is on the GPU may stay behind


class OnGPU(torch.Tensor):
    """A tensor that says it is on GPU; `values_there` is on the CPU."""

    @staticmethod
    def __new__(cls, values):
        with torch.inference_mode(values.is_inference()):
            return torch.Tensor._make_wrapper_subclass(
                cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
                dtype=values.dtype, device=GPU)

    def __init__(self, values):
        self.values_there = values

    def tolist(self):
        return self.values_there.tolist()

    def __repr__(self, **_):
        return f"OnGPU({self.values_there})"

    def __reduce_ex__(self, protocol):  # what torch.load with map_location="cpu" makes of it
        return self.values_there.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class PretendedGPU(TorchDispatchMode):
    """For what has no tensor yet, such as torch.zeros(device=GPU)."""

    def __enter__(self):
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(device=GPU) then moves one of the CPU's
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.before)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    if func.has_kernel_for_dispatch_key(COMPOSITE):  # in inference mode these arrive whole
        with PretendedGPU():
            return func.decompose(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = {id(tensor.values_there): tensor for tensor in tensors if isinstance(tensor, OnGPU)}
    name, device = func._schema.name, kwargs.get("device")
    meeting = [args[0], *args[2:3]] if name in INDEXED and isinstance(args[0], OnGPU) else tensors
    if there and name not in MIXING and any(t.dim() for t in meeting if not isinstance(t, OnGPU)):
        raise RuntimeError(f"{name}: tensors on the CPU and on the GPU")
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif there and name != "aten::copy_":
        device = GPU
    args, kwargs = tree_map_only(OnGPU, lambda tensor: tensor.values_there, (args, kwargs))
    result = func(*args, **kwargs)
    moved = OnGPU if device == GPU else lambda tensor: tensor
    return tree_map_only(torch.Tensor, lambda t: there[id(t)] if id(t) in there else moved(t), result)


@contextlib.contextmanager
def pretended_gpu():
    with pytest.MonkeyPatch.context() as patch, PretendedGPU():
        patch.setattr(runtime, "pick_device", lambda name: GPU)
        patch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # knows it not
        yield


def test_tensors_on_two_devices_are_found():
    with pretended_gpu():
        there = torch.ones(3, device=GPU, requires_grad=True)
        (there * torch.tensor(2.0) * there).sum().backward()
        assert there.grad.device == GPU and there.grad.cpu().tolist() == [4, 4, 4]
        assert there[torch.tensor([2, 0])].device == GPU  # so does a real one
        index = torch.tensor([0], device=GPU)
        for mix in (lambda: there + torch.ones(3), lambda: torch.stack([torch.ones(3), there]),
                    lambda: torch.nn.Linear(3, 1)(there), lambda: there.gather(0, torch.tensor([0])),
                    lambda: torch.ones(3)[index], lambda: torch.ones(3).index_put_((index.cpu(),), index)):
            with pytest.raises(RuntimeError, match="on the CPU and on the GPU"):
                mix()


def run(script, *flags):
    script.main(script.parse_args([str(flag) for flag in flags]))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with train.tsv, valid.tsv, unlabeled.tsv and a tokenizer."""
    folder = tmp_path_factory.mktemp("devices")
    random = np.random.default_rng(0)
    words = ["지루하다", "최악", "실망", "후회", "별로"], ["재밌다", "최고", "감동", "추천", "완벽"]
    rows = [(" ".join(random.choice(words[i % 2], random.integers(1, 4))), i % 2) for i in range(60)]
    for name, part in {"train": rows[:40], "valid": rows[40:]}.items():
        (folder / f"{name}.tsv").write_text(
            "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in part), "utf-8")
    (folder / "unlabeled.tsv").write_text("text\n" + "".join(f"{text}\n" for text, _ in rows[:20]), "utf-8")
    run(train_tokenizer, "--data", folder / "train.tsv", "--vocab-size", 80,
        "--output-dir", folder / "tokenizer")
    return folder


SMALL = ["--max-tokens", 32, "--precision", "fp32"]
VALID = ["--valid", "valid.tsv"]
DISTIL = ["--tokenizer", "tokenizer/vocab_size_80", "--size", "tiny", "--epochs", 1, *VALID, *SMALL]


def interrupted_and_resumed(script, *flags):
    """Ctrl-C at step 2, then --resume."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(runtime.Stopped):
        patch.setattr(runtime.Saves, "due", lambda self, step: step == 2 and not setattr(self, "signal", 2))
        run(script, *flags)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    run(script, *flags, "--resume")


@pytest.fixture(scope="module")
def made_there(corpus):
    """The corpus's folder, in it gpu/ with what the scripts wrote on the GPU."""
    with pytest.MonkeyPatch.context() as patch, pretended_gpu():
        patch.chdir(corpus)
        interrupted_and_resumed(
            pretrain_teacher, "--train", "train.tsv", "--target-column", "label", "--layers", 1, "--heads", 2,
            "--hidden-dim", 16, "--tokenizer", "tokenizer/vocab_size_80", *SMALL,
            "--output-dir", "gpu/pretrained")
        interrupted_and_resumed(
            finetune_teacher, "--train", "train.tsv", *VALID, "--checkpoint", "gpu/pretrained",
            "--accumulate", 2, "--layer-decay", 0.9, "--epochs", 1, "--output-dir", "gpu/teacher", *SMALL)
        run(dump_logits, "--teacher", "gpu/teacher/teacher.pt", "--data", "train.tsv", "unlabeled.tsv",
            "--output-dir", "gpu/logits", *SMALL)
        both = ["--train", "train.tsv", "unlabeled.tsv", "--logits", "gpu/logits/train.pt",
                "gpu/logits/unlabeled.pt"]
        interrupted_and_resumed(distill, *both, *DISTIL, "--output-dir", "gpu/students", "--quantize", "int8")
        run(distill, *both, *DISTIL, "--output-dir", "gpu/grid", "--pooling", "max", "mean", "attention",
            "--num-layers", 2, "--dropout", 0.1, "--loss", "kl", "--head", "relu")
        run(dump_logits, "--teacher", "gpu/teacher/teacher.pt", "gpu/students/tiny/student.pt", "--data",
            "train.tsv", "--output-dir", "gpu/mean", *SMALL)
        run(finetune_teacher, "--train", "train.tsv", "--logits", "gpu/mean/train.pt", *VALID, "--checkpoint",
            "gpu/pretrained", "--output-dir", "gpu/taught", "--epochs", 1, *SMALL)
    return corpus


def test_an_lstm_is_float32_on_a_gpu():
    """Also after a layer that autocast has made bf16, where cuDNN would have float16."""
    lstm = torch.nn.LSTM(4, 3)
    with pretended_gpu():
        states = lstm_states(lstm.to(GPU), torch.ones(2, 5, 4, device=GPU, dtype=torch.bfloat16))
    assert states.dtype == torch.float32 and states.shape == (2, 5, 3)


def test_a_student_is_float32_on_a_gpu_unless_told(made_there, monkeypatch):
    """Its LSTM is so in any case, and log and file should say what was done. Also labels alone, there."""
    monkeypatch.chdir(made_there)
    monkeypatch.setattr(runtime, "_has_bf16", lambda device, step: True)
    with pretended_gpu():
        for precision, expected in (("auto", "fp32"), ("bf16", "bf16")):
            run(distill, "--train", "train.tsv", "--alpha", 1, *DISTIL, "--output-dir", f"gpu/{precision}",
                "--precision", precision)
            state = torch.load(f"gpu/{precision}/tiny/last.pt", weights_only=True)
            assert state["precision"] == expected


def test_logits_of_the_gpu_are_those_of_the_cpu(made_there, monkeypatch, capsys):
    """Also those of a student, and of a teacher that others taught."""
    monkeypatch.chdir(made_there)
    models = {"logits": ["gpu/teacher/teacher.pt"],
              "mean": ["gpu/teacher/teacher.pt", "gpu/students/tiny/student.pt"]}
    for name, teachers in models.items():
        run(dump_logits, "--teacher", *teachers, "--data", "train.tsv", "--output-dir", f"gpu/{name}",
            "--check", 40, *SMALL)
    assert capsys.readouterr().out.count("40 of 40 rows computed again in fp32, all agree") == 2


def test_a_student_of_the_gpu_is_that_of_the_cpu(made_there, monkeypatch):
    monkeypatch.chdir(made_there)
    run(distill, "--train", "train.tsv", "unlabeled.tsv", "--logits", "gpu/logits/train.pt",
        "gpu/logits/unlabeled.pt", *DISTIL, "--output-dir", "cpu/students", "--quantize", "int8")
    ours, theirs = (Student.load(f"{place}/students/tiny/student.pt").state_dict()
                    for place in ("cpu", "gpu"))
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-4)


def test_figures_of_the_gpu_are_those_of_the_cpu(made_there, monkeypatch, capsys):
    monkeypatch.chdir(made_there)
    found = []
    for place in (contextlib.nullcontext(), pretended_gpu()):
        with place:
            run(evaluate, "gpu/students/tiny/student.pt", "gpu/students/tiny/student.int8.pt",
                "gpu/taught/teacher.pt", "--data", "valid.tsv", "--json")
        found.append(json.loads(capsys.readouterr().out)["models"])
    for ours, theirs in zip(*found, strict=True):
        for name in ours.keys() - {"model", "texts_per_second", "ms_per_text"}:
            assert theirs[name] == pytest.approx(ours[name], abs=1e-4), name
