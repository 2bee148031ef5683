"""What two or more scripts need, has one right answer, and knows nothing of models, losses or text.

That rule decides what may enter: device, precision, seeds, torchrun's ranks, atomic save, safe load,
JSON-lines log, progress. No argparse, no import from this project, nothing that belongs to a noun (examples,
teacher, student).
"""

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
import zipfile
from datetime import timedelta
from pathlib import Path

# oneDNN keeps a kernel for each shape of a batch, by default 1,024 of them: up to 3 GB. Batches seldom recur.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import numpy as np
import torch

# Set by torchrun. Every rank runs the whole script; rank 0 alone prints, logs and writes.
WORLD = int(os.environ.get("WORLD_SIZE") or 1)
RANK = int(os.environ.get("RANK") or 0) if WORLD > 1 else 0  # some clusters set RANK alone
PATIENCE = timedelta(minutes=10)  # how long a rank waits for the others before it gives up


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, and what to do."""


def run(main, *args, errors=()):
    """Call main(*args) as a script: expected errors become one line on stderr and exit code 2, Ctrl-C 130."""
    try:
        main(*args)
        if WORLD > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError, *errors) as error:  # an OSError names the file and what is wrong with it
        line = f"{f'rank {RANK}: ' if WORLD > 1 else ''}error: {error}\n"
        sys.stderr.write(line)  # with its end at once: print would let another rank's line come between
        sys.stderr.flush()
        if WORLD > 1:
            sys.stdout.flush()
            os._exit(2)  # past the threads that talk to the other ranks: without those they abort the process
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


# ---- device, precision, seeds ------------------------------------------------------------------------------


def pick_device(name: str) -> torch.device:
    """'auto' takes CUDA, then Apple's MPS, then the CPU; a named device that is absent is a UserError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UserError(f"--device {name}: this machine has no such device; use --device auto or cpu")
    return torch.device(name)


def autocast(device: torch.device, precision: str):
    """The context in which a forward pass runs: bf16 autocast, or nothing for float32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def pick_precision(name: str, device: torch.device, step) -> str:
    """Resolve 'auto' to 'bf16' or 'fp32' by trying: step() is one forward (and backward) pass on the device.

    A CPU without bf16 instructions either refuses bf16 LSTMs or runs bf16 products hundreds of times slower,
    and no flag of PyTorch tells in advance; so bf16 has to win a short race, on every rank. The race leaves
    the random state as it was.
    """
    if name != "auto":
        return name
    wins = torch.tensor([float(_faster(device, step) == "bf16")], device=device)
    sum_over_ranks([wins])
    return "bf16" if wins.item() == WORLD else "fp32"


def _faster(device: torch.device, step) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    best = {}
    with torch.random.fork_rng(devices=[]):
        matrix = torch.randn(256, 256)
        if _seconds(lambda: matrix.bfloat16() @ matrix.bfloat16()) > 5 * _seconds(lambda: matrix @ matrix):
            return "fp32"  # emulated: one step would take minutes
        for precision in ("fp32", "bf16"):
            try:
                with autocast(device, precision):
                    best[precision] = _seconds(step)
            except RuntimeError:  # oneDNN has no bf16 kernel for this CPU
                if precision == "fp32":
                    raise
                return "fp32"
    return "bf16" if best["bf16"] < 0.9 * best["fp32"] else "fp32"


def _seconds(step) -> float:
    """The best of three calls, after one that pays for set-up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def seed_everything(device: torch.device, *numbers: int) -> None:
    """Seed PyTorch's generator of the CPU and of `device` with a hash of the numbers.

    The training loops call it before each step with (seed, epoch, step, rank): dropout is then a function of
    those alone, and a run can go on from any step without a stored random state.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would visit every device: 0.1 ms
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


# ---- torchrun ----------------------------------------------------------------------------------------------


def connect(device: torch.device) -> torch.device:
    """Meet the other ranks when torchrun started this process; returns the device of this rank."""
    if WORLD == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise UserError(f"torchrun started {device.index + 1} or more processes on a machine with "
                            f"{torch.cuda.device_count()} GPUs: lower --nproc_per_node")
        torch.cuda.set_device(device)
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the run
    with _others("cannot meet the other ranks"):
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return device


def sum_over_ranks(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, in one message; all are of one type, on one device."""
    if WORLD == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _others("lost another rank"):
        torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def sum_gradients(parameters) -> None:
    """Replace each gradient by its sum over all ranks. A rank that had no row of the batch adds zeros."""
    if WORLD == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_over_ranks([parameter.grad for parameter in parameters])


@contextlib.contextmanager
def _others(trouble: str):
    """A collective that fails, because another rank is gone or silent for PATIENCE, ends in one line."""
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises for all of it
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{trouble}, whose own message tells why ({reason}); start the run again, "
                        f"where it was training with --resume") from None


# ---- artifacts ---------------------------------------------------------------------------------------------


def save(artifact: dict, path) -> None:
    """torch.save to a temporary file beside `path`, flushed, then renamed: no reader sees half a file.

    Of several ranks, 0 alone writes.
    """
    if RANK > 0:
        return
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            torch.save(artifact, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror or error}); nothing was changed") from None
    finally:
        partial.unlink(missing_ok=True)


def load(path, kind: str, format: int) -> dict:
    """Read an artifact of this kit: tensors, numbers, strings and lists only, never pickled code.

    Raises UserError when the file is missing, is no .pt file, carries code, or is of another kind or format.
    """
    return check(load_weights(path), path, kind, format)


def check(artifact, path, kind: str, format: int) -> dict:
    """`artifact`, as load_weights read it from `path`, if it is of this kind and format; else a UserError."""
    found = artifact.get("kind") if isinstance(artifact, dict) else None
    if found != kind:
        raise UserError(f"{path}: holds {found or 'something that is not of this kit'}, a {kind} is needed")
    if artifact.get("format") != format:
        raise UserError(f"{path}: format {artifact.get('format')}, this version reads {format}; make it anew")
    return artifact


def load_weights(path, mmap: bool = False):
    """torch.load on the CPU with weights_only, its many ways of failing told in one line each.

    With `mmap`, tensors stay in the file until they are read (not in files from before PyTorch 1.6).
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error})") from None
    except Exception as error:  # a corrupt file can raise nearly anything: pickle, zip, unicode, key errors
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{path}: not a .pt file that can be loaded safely ({reason})") from None


def fingerprint(value: torch.Tensor | str) -> str:
    """SHA-256 of a text, or of a tensor's shape, type and bytes."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()
    tensor = value
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def made_by(args) -> dict:
    """What an artifact says of its origin: script, arguments and versions."""
    return {
        "script": Path(sys.argv[0]).name,
        "arguments": {key: value for key, value in vars(args).items() if _plain(value)},
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def _plain(value) -> bool:
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


# ---- log and progress --------------------------------------------------------------------------------------


class Log:
    """One JSON object a line, flushed; numbers also go to TensorBoard when asked. A resumed run appends.

    Of several ranks, 0 alone writes.
    """

    def __init__(self, path, resume: bool, tensorboard: bool = False):
        path = Path(path if RANK == 0 else os.devnull)
        self.writer = None
        if tensorboard and RANK == 0:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("--tensorboard needs a package: pip install tensorboard") from None
            self.writer = SummaryWriter(str(path.parent / "tensorboard"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a" if resume else "w", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        except OSError as error:
            raise UserError(f"{path}: cannot write the log ({error.strerror or error})") from None

    def write(self, step: int | None = None, **values) -> None:
        record = values if step is None else {"step": step, **values}
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.file.flush()
        if self.writer is not None and step is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def close(self) -> None:
        self.file.close()
        if self.writer is not None:
            self.writer.close()


def machine(device: torch.device) -> dict:
    """The hardware line of a log: what the run's times were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    with contextlib.suppress(OSError):  # Linux only; elsewhere platform.processor() has to do
        if device.type == "cpu":
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            name = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), name)
    return {"device": device.type, "hardware": name, "threads": torch.get_num_threads(), "ranks": WORLD}


class Progress:
    """A line with rate and time left for work that lasts longer than two seconds.

    On a terminal the line redraws itself; into a file or pipe a plain line is printed every ten seconds.
    Of several ranks, 0 alone shows it.
    """

    def __init__(self, what: str, total: int, unit: str):
        self.what, self.total, self.unit = what, total, unit
        self.done, self.shown = 0, False
        self.start = time.perf_counter()
        self.terminal = sys.stderr.isatty()
        self.next = self.start + 2 if RANK == 0 else float("inf")

    def add(self, amount: int, loss: torch.Tensor | None = None) -> None:
        """Count `amount` more. `loss`, a running sum over all that is done, is shown as a mean; it is read
        only when a line is due, since reading waits for a GPU."""
        self.done += amount
        now = time.perf_counter()
        if now < self.next:
            return
        self.next = now + (0.2 if self.terminal else 10)
        rate = self.done / (now - self.start)
        left = max(self.total - self.done, 0) / rate if rate else 0
        line = (f"{self.what}: {self.done:,}/{self.total:,} {self.unit} "
                f"({self.done / max(self.total, 1):.0%}), {rate:,.0f}/s, {clock(left)} left")
        if loss is not None:
            line += f", loss {loss.item() / self.done:.4f}"
        if self.terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
        self.shown = True

    def close(self) -> float:
        """End the line; returns the seconds since the start."""
        if self.shown and self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        return time.perf_counter() - self.start


def clock(seconds: float) -> str:
    """12.3 -> '12s', 75 -> '1:15', 3700 -> '1:01:40'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
