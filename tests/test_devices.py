"""The scripts on a pretended GPU, whose tensors the CPU computes, but which cannot meet the CPU's own.

These tests are run where there is no GPU. They find what a real one would refuse first, an operation whose
tensors are on two devices. They say nothing of its kernels, of autocast there or of memory.
"""

import contextlib
import json
import shutil

import pytest
import torch
from helpers import run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import runtime
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


SMALL = "--max-tokens 32 --precision fp32"
DISTIL = f"--valid valid.tsv --tokenizer tok --size tiny --epochs 1 {SMALL} --output-dir"
BOTH = "--train train.tsv more.tsv --logits gpu/logits/train.pt gpu/logits/more.pt"


def interrupted_and_continued(script, flags):
    """Ctrl-C at step 2, then the same command again."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(runtime.Stopped):
        patch.setattr(runtime.Run, "_due", lambda self, step: step == 2 and not setattr(self, "signal", 2))
        run(script, flags)
    run(script, flags)


@pytest.fixture(scope="module")
def made_there(small, tmp_path_factory):
    """A copy of the small kit as the working folder, in it gpu/ with what the scripts wrote on the GPU."""
    folder = shutil.copytree(small, tmp_path_factory.mktemp("devices") / "here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pretended_gpu():
            interrupted_and_continued("extra.pretrain_teacher", (
                "--train train.tsv --target-column label --layers 1 --heads 2 --hidden-dim 16 "
                "--tokenizer tok --max-tokens 16 --precision fp32 --output-dir gpu/pretrained"))
            interrupted_and_continued("finetune_teacher", (
                "--train more.tsv --valid valid.tsv --checkpoint gpu/pretrained --layer-decay 0.9 --epochs 1 "
                "--accumulate 2 --max-tokens 12 --precision fp32 --output-dir gpu/teacher"))
            run("dump_logits", f"--teacher gpu/teacher/teacher.pt --data train.tsv more.tsv {SMALL} "
                               f"--output-dir gpu/logits")
            interrupted_and_continued("distill", f"{BOTH} {DISTIL} gpu/students")
            run("distill", f"{BOTH} {DISTIL} gpu/grid --pooling max mean attention --num-layers 2 "
                           f"--dropout 0.1 --loss kl --head relu")
            run("dump_logits", "--teacher gpu/teacher/teacher.pt gpu/students/tiny-tok/student.pt "
                               f"--data train.tsv {SMALL} --output-dir gpu/mean")
            run("finetune_teacher", "--train train.tsv --logits gpu/mean/train.pt --valid valid.tsv "
                                    f"--checkpoint gpu/pretrained --epochs 1 {SMALL} --output-dir gpu/taught")
        yield folder


def test_an_lstm_is_float32_on_a_gpu():
    """Also after a layer that autocast has made bf16, where cuDNN would have float16."""
    lstm = torch.nn.LSTM(4, 3)
    with pretended_gpu():
        states = lstm_states(lstm.to(GPU), torch.ones(2, 5, 4, device=GPU, dtype=torch.bfloat16))
    assert states.dtype == torch.float32 and states.shape == (2, 5, 3)


@pytest.mark.parametrize(("lstm", "precision"), [(True, "fp32"), (False, "bf16")])
def test_auto_is_bf16_on_a_gpu_but_for_students(lstm, precision, monkeypatch):
    """Their LSTM is float32 in any case, and log and file should say what was done."""
    real = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda values, device: real(values))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert runtime.pick_precision("auto", torch.device("cuda"), lstm) == precision


def test_logits_of_the_gpu_are_those_of_the_cpu(made_there, capsys):
    """Also those of a student, and of a teacher that others taught."""
    for folder, teachers in (("logits", ""), ("mean", "gpu/students/tiny-tok/student.pt")):
        run("dump_logits", f"--teacher gpu/teacher/teacher.pt {teachers} --data train.tsv --check 40 {SMALL} "
                           f"--output-dir gpu/{folder}")
    assert capsys.readouterr().out.count("12 of 12 rows computed again in fp32, all agree") == 2


def test_a_student_of_the_gpu_is_that_of_the_cpu(made_there):
    """Continued there, uninterrupted here; with a teacher's logits, and with labels alone."""
    run("distill", f"{BOTH} {DISTIL} cpu/students --alpha 0.1 1")
    with pretended_gpu():
        run("distill", f"{BOTH} {DISTIL} gpu/students --alpha 1")
    for name in ("tiny-tok", "tiny-tok-alpha1"):
        ours, theirs = (Student.load(f"{place}/students/{name}/student.pt").state_dict()
                        for place in ("cpu", "gpu"))
        for key in ours:
            torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=1e-4)


def test_figures_of_the_gpu_are_those_of_the_cpu(made_there, capsys):
    Student.load("gpu/students/tiny-tok/student.pt").save("gpu/int8.pt", "int8")
    models, found = "gpu/students/tiny-tok/student.pt gpu/int8.pt gpu/taught/teacher.pt", []
    for place in (contextlib.nullcontext(), pretended_gpu()):
        with place:
            run("evaluate", f"{models} --data valid.tsv --json")
        found.append(json.loads(capsys.readouterr().out)["models"])
    for ours, theirs in zip(*found, strict=True):
        for name in ours.keys() - {"model", "texts_per_second", "ms_per_text", "labels"}:
            assert theirs[name] == pytest.approx(ours[name], abs=1e-4), name
        for one, other in zip(ours["labels"], theirs["labels"], strict=True):
            assert other == pytest.approx(one, abs=1e-4)


def test_a_watch_reads_the_copy_of_a_gpu_when_it_has_come(monkeypatch):
    """Not before, when it is whatever was in that memory; nor is the GPU asked, which would take longer."""
    told, copies = [], []

    class There:
        is_cuda = True

        def __init__(self, value):
            self.value = value

        def to(self, device, non_blocking):
            assert device == "cpu" and non_blocking
            copies.append((torch.tensor(torch.nan), self.value))
            return copies[-1][0]

    class Event:
        def record(self):
            self.copy, self.value = copies[-1]

        def synchronize(self):
            self.copy.fill_(self.value)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = runtime.Watch(torch.device("cuda"), lambda *which: told.append(which))
    for step, value in enumerate([1.0, torch.inf, 2.0]):
        watch.step(There(value), step)
    watch.finish()
    assert told == [(1,)] and len(copies) == 3
