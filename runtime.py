"""What surrounds a training loop: device, precision, ranks, safe files, Run, progress.

At least two scripts use each piece, and none of it knows models, losses or text.
"""

import contextlib
import ctypes
import glob
import hashlib
import json
import math
import mmap
import os
import pickletools
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from datetime import timedelta
from itertools import islice
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks; there two runs in one folder are not told apart
    fcntl = None

# oneDNN keeps a kernel for each shape of a batch, by default 1,024 of them: up to 3 GB. Batches seldom recur.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import numpy as np
import torch

# Set by torchrun. Every rank runs the whole script; rank 0 alone prints, logs and writes.
_world = os.environ.get("WORLD_SIZE", "")
WORLD = int(_world) if _world.isdigit() and "RANK" in os.environ else 1
RANK = int(os.environ.get("RANK") or 0) if WORLD > 1 else 0  # some clusters set RANK alone
PATIENCE = timedelta(minutes=10)  # how long a rank waits for the others before it gives up
HALVES = (torch.bfloat16, torch.float16)
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|ALLOC(ATION)?_FAILED",
                           re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.pt)")
NO_BF16 = re.compile("could not create a primitive")  # oneDNN, of an LSTM in bf16 on a CPU without AVX-512
# What a file of plain values names; torch.load also lets bytearray(10**11) and the like pass.
PLAIN = re.compile(r"torch \w+Storage|collections OrderedDict|"
                   r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)")


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, and what to do."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. Its text, if any, says what was saved and how to continue; `code`: the exit code."""

    def __init__(self, code: int, text: str = ""):
        super().__init__(text)
        self.code = code


def main(script, args, errors=(), memory: str = "close other programs") -> None:
    """Call script(args): expected errors become one line on stderr and exit code 2.

    Ctrl-C ends with 130, SIGTERM with 143. `memory` says what to lower when memory does not suffice.
    """
    def terminate(number, frame):
        raise Stopped(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the whole run
        elif hasattr(getattr(sys, name), "reconfigure"):  # a terminal without Korean shows ? for it
            getattr(sys, name).reconfigure(errors="replace")
    try:
        script(args)
        if WORLD > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # gloo's threads can abort an interpreter that ends in the usual way
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough; 141 is what a shell reports
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(141, "stopped: standard output was closed")
    except OSError as error:
        reason = error.strerror or error
        _end(2, f"error: {error.filename}: {reason}" if error.filename else f"error: {reason}")
    except (UserError, *errors) as error:
        _end(2, f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).strip() or "MemoryError").split("\n")[0][:200]
        if NO_BF16.search(reason):
            _end(2, f"error: this processor has no bf16 for the LSTM ({reason}); use --precision fp32")
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(reason):
            raise
        _end(2, f"error: out of memory ({reason}); {memory}")
    except KeyboardInterrupt as stopped:
        text = str(stopped) or (how_to_continue() if _locks else "nothing was written")
        _end(getattr(stopped, "code", 130), f"interrupted; {text}")


def warn(text: str) -> None:
    """One line on stderr, from rank 0 alone."""
    if RANK == 0:
        print(f"warning: {text}", file=sys.stderr)


def _end(code: int, line: str):
    """Print the last line and leave with this exit code."""
    # The line with its end at once: print would let another rank's line come between.
    line = " ".join(line.splitlines())  # a library's message may have several
    sys.stderr.write(f"{f'rank {RANK}: ' if WORLD > 1 else ''}{line}\n")
    sys.stderr.flush()
    if WORLD > 1:
        sys.stdout.flush()
        os._exit(code)  # past the threads that talk to the other ranks: without those they abort the process
    sys.exit(code)


# ---- device, precision, seeds ------------------------------------------------------------------------------


def pick_device(name: str) -> torch.device:
    """'auto' takes CUDA, then Apple's MPS, then the CPU; a named device that is absent is a UserError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UserError(f"--device {name}: this machine has no such device; use --device auto or cpu")
    # cuDNN's attention takes tens of milliseconds for each new shape of a batch, and these seldom recur.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(name)


def autocast(device: torch.device, precision: str):
    """The context in which a forward pass runs: bf16 autocast, or nothing for float32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def pick_precision(name: str, device: torch.device, lstm: bool = False) -> str:
    """Resolve 'auto' to 'bf16' or 'fp32' by what the processor has; all ranks agree.

    A CPU with AMX is faster in bf16 at everything. With AVX-512 bf16, or ARM's, Transformers are 1.6 to 1.9
    times as fast and LSTMs no faster. A GPU's LSTM has no bf16 worth having (student.lstm_states).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        fit = not lstm and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = cpu_flags() if device.type == "cpu" else set()
        fit = "amx_bf16" in flags or (not lstm and bool(flags & {"avx512_bf16", "bf16"}))
    votes = torch.tensor([float(fit)], device=device)
    return "bf16" if sum_of(votes) == WORLD else "fp32"


def cpu_flags() -> set[str]:
    """Instruction sets as Linux names them (x86: flags, ARM: Features); empty on other systems."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.split(":", 1)[1].split())
    return set()


def be_deterministic() -> None:
    """Let PyTorch use only algorithms that give the same bits in every run: on CUDA, at a cost in speed."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # cuDNN's LSTM asks for this
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def seed_everything(device: torch.device, *numbers: int) -> None:
    """Seed PyTorch's generator of the CPU and of `device` with a hash of the numbers.

    Run calls it before each step with (seed, epoch, step, rank): dropout is then a function of those alone,
    and a run can continue from any step without a stored random state.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would visit every device: 0.1 ms
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def schedule(done: float, warmup: float) -> float:
    """The learning rate as a share of its peak: linear up to `warmup`, then linear down to 0 at done = 1."""
    return min(done / max(warmup, 1e-9), (1 - done) / (1 - warmup))


# ---- torchrun ----------------------------------------------------------------------------------------------


def connect(device: torch.device) -> torch.device:
    """Meet the other ranks when torchrun started this process; returns the device of this rank."""
    if WORLD == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise UserError(f"torchrun started {device.index + 1} or more processes on a machine with "
                            f"{torch.cuda.device_count()} GPUs; lower --nproc_per_node")
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"--device {device}: runs in one process only; use --device cpu under torchrun")
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the run
    with _others("cannot meet the other processes"):
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return device


def sum_over_ranks(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, in one message; all are of one type, on one device."""
    if WORLD == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _others("another process died"):
        torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def sum_of(tensor: torch.Tensor) -> float:
    """The sum over all ranks of a tensor with one element, which stays as it is."""
    total = tensor.clone()
    sum_over_ranks([total])
    return total.item()


def barrier(device: torch.device) -> None:
    """Wait until every rank is here: nccl's sum alone would be queued on the GPU, its value has to come."""
    sum_of(torch.zeros(1, device=device))


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
        raise UserError(f"{trouble} ({reason}; see its message above); run the same command again") from None


# ---- artifacts ---------------------------------------------------------------------------------------------


def save(artifact: dict, path) -> None:
    """torch.save to a temporary file beside `path`, flushed, then renamed: no reader sees half a file.

    Under torchrun only rank 0 writes.
    """
    save_together({path: artifact})


def save_together(files: dict) -> None:
    """As save, of {path: text in UTF-8, or artifact}: none is renamed before all are written."""
    if RANK > 0:
        return
    partials = {}
    try:
        for path, content in files.items():
            path = Path(path)
            refuse_device(path)
            partials[path] = path.with_name(f".{path.name}.{os.getpid()}.partial")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partials[path], "wb") as file:
                if isinstance(content, str):
                    file.write(content.encode(errors="backslashreplace"))  # names that are not UTF-8
                else:
                    torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
        for path, partial in partials.items():
            os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__  # PyTorch's hides the system's
        reason = getattr(cause, "strerror", None) or str(error).strip().split("\n")[0][:200]
        raise UserError(f"{path}: cannot write ({reason}); nothing was changed") from None
    finally:
        for partial in partials.values():
            with contextlib.suppress(OSError):  # such as: its folder could not be made
                partial.unlink(missing_ok=True)


def refuse_device(path: Path) -> None:
    """A UserError for a device or pipe: a rename would put a file in its place."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is not a regular file; choose another path")


def refuse_to_overwrite_inputs(read: list, written: list[Path]) -> None:
    """A UserError when a file that is read is one of those that will be written."""
    written = {Path(file).resolve() for file in written}
    for file in read:
        if file is not None and Path(file).resolve() in written:
            raise UserError(f"{file}: would be overwritten, but is an input; choose another output")


def load(path, kind: str, format: int, keys=(), mmap: bool = False) -> dict:
    """Read an artifact of this kit: tensors, numbers, strings and lists only, never pickled code.

    Raises UserError when the file is missing, is not a .pt file, carries code, is damaged, is of another kind
    or of a newer format, or lacks one of `keys`. `mmap` as in load_weights.
    """
    return check(load_weights(path, mmap), path, kind, format, keys)


def check(artifact, path, kind: str, format: int, keys=()) -> dict:
    """`artifact`, as load_weights read it from `path`, if it is of this kind and format; else a UserError."""
    found = kind_of(artifact)
    if found != kind:
        raise UserError(f"{path}: this is {found}, but a {kind} file is needed")
    number = artifact.get("format")
    if number.__class__ is not int or not 1 <= number <= format:
        number = number if isinstance(number, int) else "unknown"
        raise UserError(f"{path}: format {number}, this version reads 1 to {format}; update the kit, or make "
                        f"the file again")
    missing = [key for key in keys if key not in artifact]
    if missing:
        raise UserError(f"{path}: damaged, it has no {' or '.join(missing)}; make it again with --overwrite")
    return artifact


def kind_of(artifact) -> str:
    """What an artifact says it is: student, teacher, logits, …"""
    kind = artifact.get("kind") if isinstance(artifact, dict) else None
    return kind if isinstance(kind, str) and kind.isprintable() else "not a file of this kit"


def is_model(path) -> bool:
    """Whether there is a file of a model, or a published folder; a hub id is neither."""
    return os.path.isfile(path) or os.path.isfile(os.path.join(path, "config.json"))


def load_model(path, loaders: dict, device="cpu"):
    """The model in a file, by the loader of its kind: {"teacher": Teacher.load, "student": Student.load}.

    A folder, or a name/name that is no file, is a published teacher.
    """
    if os.path.isdir(path) or (not os.path.lexists(path) and HUB_ID.fullmatch(str(path))):
        kind = "teacher"
    else:
        kind = kind_of(load_weights(path, mmap=True))
    if kind not in loaders:
        raise UserError(f"{path}: this is {kind}, but a {' or '.join(loaders)} file is needed")
    return loaders[kind](path, device)


def load_weights(path, mmap: bool = False):
    """torch.load on the CPU with weights_only; each of its many ways to fail becomes one line.

    Checked before any memory is taken: check_archive. Checked after: every tensor is a plain one that claims
    no more than the file holds. With `mmap`, tensors stay in the file until they are read (not in files from
    before PyTorch 1.6, which have no checksums either).
    """
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            check_archive(path)
        else:
            check_legacy(path)
        utf8 = str(path).encode(errors="ignore").decode() == str(path)  # PyTorch maps no file of another name
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and archive and utf8)
        plain = holds_plain_tensors(value, os.path.getsize(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error})") from None
    except MemoryError:
        raise
    except Exception as error:  # a corrupt file can raise nearly anything: pickle, zip, unicode, key errors
        # Without PyTorch's advice to load it unsafely, which comes first.
        reason = re.sub(r"(?s)^Weights only load failed.*?(Unsupported|Trying)", r"\1", str(error).strip())
        reason = (reason.splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: not a .pt file that can be loaded safely ({reason})") from None
    if not plain:
        raise UserError(f"{path}: has a tensor that is not plain, or claims more than the file holds")
    return value


# student.py has the same function: that file must work alone.
def check_archive(file) -> None:
    """ValueError if the zip archive of a .pt file is packed, damaged, or names anything but tensors.

    `file` is a path, or a file object that can seek.
    """
    with zipfile.ZipFile(file) as archive:
        archive.fp.seek(0)
        head, size = archive.fp.read(4), archive.fp.seek(0, 2)
        archive.fp.seek(max(size - 98, 0))
        tail = archive.fp.read().rjust(98)  # zip64's end record (56 bytes), its locator (20), the end (22)
        # zipfile and PyTorch must read the same table of contents: the one that ends where the file does.
        members, start = archive.infolist(), archive.start_dir.to_bytes(8, "little")
        zip64 = tail[56:60] == b"PK\6\7"
        if tail[76:80] != b"PK\5\6" or start != (tail[48:56] if zip64 else tail[92:96] + bytes(4)) \
                or (zip64 and tail[:4] + tail[64:72] != b"PK\6\6" + (size - 98).to_bytes(8, "little")):
            raise ValueError("damaged: its table of contents is not at its end")
        if head != b"PK\3\4":  # torch.load would read what is before the archive, in its old format
            raise ValueError("damaged: its start is not that of an archive")
        if any(each.compress_type for each in members) or sum(each.file_size for each in members) > size:
            raise ValueError("the archive is packed")
        if any(each.is_dir() or each.external_attr & 16 for each in members):
            raise ValueError("damaged: has a folder")  # of one, torch.load takes what memory happens to hold
        if damaged := archive.testzip():
            raise ValueError(f"damaged: the checksum of {damaged} is wrong")
        for member in (each for each in members if each.filename.lower().endswith("data.pkl")):
            for opcode, name, _ in pickletools.genops(archive.read(member)):
                if opcode.name == "GLOBAL" and not PLAIN.fullmatch(name):
                    raise ValueError(f"Unsupported global: GLOBAL {'.'.join(name.split())}")


def holds_plain_tensors(value, size: int) -> bool:
    """Whether every tensor in nested dicts and lists is dense, on the CPU and no larger than its storage, all
    storages fit in `size` bytes, and there are no more than a million values (lists of lists that are shared
    unfold to any number).
    """
    waiting, looked_at, storages = [value], 0, {}
    while waiting and looked_at < 10**6:
        item = waiting.pop()
        looked_at += 1
        if isinstance(item, (dict, list, tuple)):
            waiting.extend(item.values() if isinstance(item, dict) else item)
        elif torch.is_tensor(item):
            if item.layout != torch.strided or item.device.type != "cpu" or item.is_quantized \
                    or item.is_neg() or item.is_conj():
                return False
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            if item.nbytes > storage.nbytes():
                return False
    return not waiting and sum(storages.values()) <= size


def check_legacy(path) -> None:
    """A ValueError unless a file from before PyTorch 1.6 (five pickles, then the tensors' bytes) is plain."""
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            raise ValueError("its end is missing")
        file.seek(0)
        try:
            for _ in range(5):
                for opcode, name, _ in pickletools.genops(file):
                    if opcode.name == "GLOBAL" and not PLAIN.fullmatch(name):
                        raise ValueError(f"Unsupported global: GLOBAL {'.'.join(name.split())}")
        except MemoryError:  # a text in it claims to be longer than any file
            raise ValueError("damaged: a length is wrong") from None


def finite(tensor: torch.Tensor, mapped: bool = False) -> bool:
    """Whether all numbers are, without the memory that isfinite() takes; `mapped`: give_back it after."""
    found = not tensor.numel() or all(limit.isfinite() for limit in tensor.detach().aminmax())
    if mapped:
        give_back(tensor)
    return found


def give_back(tensor: torch.Tensor) -> None:
    """Let the system use the memory of a tensor that is mapped from a file, until it is read again.

    On other systems than Linux nothing happens: there such memory is free only when another program wants it.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - start  # of the whole pages in it
    if sys.platform == "linux" and tensor.device.type == "cpu" and size > 0:
        MADV_PAGEOUT = 21  # loses nothing, whatever the tensor is; Python's mmap has no name for it
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_PAGEOUT)


def fingerprint(value: torch.Tensor | str) -> str:
    """SHA-256 of a text, or of a tensor's shape, type and bytes."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()
    digest = hashlib.sha256(f"{tuple(value.shape)} {value.dtype}".encode())
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def made_by(arguments: dict, fingerprints: dict) -> dict:
    """What an artifact says of its origin: script, versions, the arguments and contents that decided it.

    No path and no time is among them: the same work gives the same bytes wherever and whenever it is done.
    """
    return {"script": Path(sys.argv[0]).name, "arguments": arguments, "fingerprints": fingerprints,
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)}}


def refuse_other_values(path, before: dict, now: dict) -> None:
    """A UserError that lists what differs between the run that made `path` and this one."""
    differing = []
    for name in now:
        if before.get(name).__class__ is not now[name].__class__ or before.get(name) != now[name]:
            short = all(isinstance(value, (int, float, str, type(None))) and len(str(value)) < 40
                        and str(value).isprintable() for value in (before.get(name), now[name]))
            differing.append(f"{name} ({before.get(name)}, now {now[name]})" if short else name)
    if differing:
        raise UserError(f"{path} was made with other settings: {', '.join(differing)}; use the same ones, "
                        f"another --output-dir, or --overwrite to start over")


def unchanged(path, since: os.stat_result) -> None:
    """A UserError when the file is another one than at os.stat() `since`, or was written to."""
    now = os.stat(path)
    if any(getattr(now, name) != getattr(since, name) for name in ("st_ino", "st_size", "st_mtime_ns")):
        raise UserError(f"{path}: was changed while it was read; run again")


_locks = {}  # path: its open file


def lock(path, *names: str) -> None:
    """Take the lock file `path` until this process ends, or a UserError: another process holds it.

    The lock is the operating system's, so a run that was killed does not hold it. Temporary files that such a
    run left of the files `names`, beside the lock, are removed. Under torchrun only rank 0 takes it.
    """
    if RANK > 0:
        return
    path = Path(path)
    if path.resolve() in _locks:  # an earlier run of this process has ended
        _locks.pop(path.resolve()).close()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held for the whole run
    except OSError as error:
        raise UserError(f"{path.parent}: cannot write there ({error.strerror or error}); choose another "
                        f"--output-dir") from None
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UserError(f"{path.parent}: another run (process {owner}) is writing there; wait until it "
                            f"ends, or choose another --output-dir") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    for name in names:
        for partial in path.parent.glob(f".{glob.escape(name)}.*.partial"):
            partial.unlink(missing_ok=True)
    _locks[path.resolve()] = file


def how_to_continue() -> str:
    """The command of this process, as it has to be given again."""
    if WORLD > 1:
        return "run the same command again to continue (without --overwrite)"
    # argparse takes "--over" for --overwrite too.
    words = [word for word in sys.argv if not (word.startswith("--") and len(word) > 3
                                               and "--overwrite".startswith(word))]
    return f"to continue, run again: python {shlex.join(words)}"


# ---- a training run ----------------------------------------------------------------------------------------


class Run:
    """One training run in one folder: lock, state, log, signals, saves, the check for finite values.

        run = Run("students/base", "student.pt", made_by, args, device, precision)
        if not run.finished:
            with run.start(student, optimizer, seed, data.name_row):
                for epoch in run.epochs(args.epochs):
                    for window, rows in run.steps(batches, rows_in_an_epoch):
                        …                                          # forward, loss, backward, clipping
                        run.add(loss * len(rows))
                        run.step(norm, numbers, rate=schedule(run.fraction_done(len(rows)), args.warmup))
                    if run.best(scores, "accuracy"):
                        student.save(run.artifact, scores=run.at["best"])

    The state is FOLDER/last.pt. Without one the run begins; an unfinished one is continued at its step, with
    the bits of an uninterrupted run on the CPU; of a finished one `finished` says so; one that was made with
    other settings is a UserError with a list of what differs. `at` says where the run is: epoch, step, rows
    and sums (of losses) in the epoch, seconds of training, the best scores, the log so far.
    """

    FORMAT = 1  # of last.pt

    def __init__(self, folder, artifact: str, made_by: dict, args, device: torch.device, precision: str,
                 others=()):
        """Take the folder's lock and look at what is there. `others` are further files the run writes."""
        self.folder = Path(folder)
        self.last, self.artifact = self.folder / "last.pt", self.folder / artifact
        self.made_by, self.args, self.device, self.precision = made_by, args, device, precision
        lock(self.folder / ".lock", "last.pt", artifact, "diverged.tsv", *others)
        if args.overwrite:
            # A tombstone, so that a killed --overwrite run is not continued from the old run's file.
            save({"kind": "tombstone"}, self.last)
        self.state = None if args.overwrite else self._look()
        self.finished = self.state is not None and self.state["at"]["finished"]

    def _look(self) -> dict | None:
        """What an earlier run left, None if there is nothing to continue. Raises UserError."""
        if not self.last.exists():
            if self.artifact.exists():
                raise UserError(f"{self.artifact} exists, but not the last.pt of the run that made it; "
                                f"--overwrite replaces it, another --output-dir keeps it")
            return None
        state = load_weights(self.last)
        if kind_of(state) == "tombstone":
            return None
        if kind_of(state).endswith("-resume"):
            raise UserError(f"{self.last}: a run of an older version of the kit, which this one cannot "
                            f"continue; --overwrite starts over, another --output-dir keeps it")
        check(state, self.last, "run", self.FORMAT, ("weights", "optimizer", "at", "precision", "made_by"))
        try:
            before = {**state["made_by"]["arguments"], **state["made_by"]["fingerprints"]}
            best, finished = state["at"]["best"], state["at"]["finished"]
            if finished.__class__ is not bool or (finished and not best) \
                    or any(value.__class__ not in (float, int) for value in best.values()):
                raise ValueError("what it has reached is not known")
        except (AttributeError, TypeError, LookupError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.last}: damaged ({error}); --overwrite starts over") from None
        if self.args.precision == "auto":  # decided once
            self.precision = state["precision"]
        refuse_other_values(self.last, {"--precision": state["precision"], **before}, {
            "--precision": self.precision, **self.made_by["arguments"], **self.made_by["fingerprints"]})
        if best:
            try:
                load_weights(self.artifact, mmap=True)
            except UserError as error:
                raise UserError(f"{error}: the best model so far; put it back, or --overwrite to start over"
                                ) from None
        return state

    def say_finished(self, name: str) -> None:
        """A line for a run that there is nothing to do for, with its best score `name`."""
        best = self.state["at"]["best"].get(f"valid_{name}", math.nan)
        print(f"{self.artifact}: finished already, validation {name} {best:.4f}")

    def start(self, model, optimizer, seed: int, name_row, sums: int = 1, **more) -> "Run":
        """Give model and optimizer what was saved. Use the result in a `with` statement.

        Each of the optimizer's groups has a "peak", the rate of which step() takes a share. `name_row` turns
        the number of a row into (file, row) for diverged.tsv; `sums` is how many sums of losses add() has;
        `more` are further values of `at`.
        """
        self.model, self.optimizer, self.seed, self.name_row = model, optimizer, seed, name_row
        self.at = {"epoch": 0, "step": 0, "rows": 0, "sums": [0.0] * sums, "seconds": 0.0, "best": {},
                   "finished": False, "log": "", **more}
        self.resumed = self.state is not None
        if self.resumed:
            self._restore(self.state)
            print(f"{self.folder}: continuing after epoch {self.at['epoch']}, step {self.at['step']}")
        self.state, self.watch = None, Watch(self.device, self._diverged)
        return self

    def _restore(self, state: dict) -> None:
        def settings():
            return [sorted(str(item) for item in group.items() if item[0] != "lr")
                    for group in self.optimizer.state_dict()["param_groups"]]

        try:
            fresh = settings()
            self.model.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            if settings() != fresh:
                raise ValueError("the optimizer has other settings")
            for parameter, values in self.optimizer.state.items():
                # The fused step trusts these: of another size they would let it write beyond them.
                if {name: value.shape for name, value in values.items() if value.is_contiguous()} != {
                        "step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
                    raise ValueError("the optimizer's state has another shape")
            at = state["at"]
            if state["precision"] not in ("fp32", "bf16") or min(at["epoch"], at["step"], at["rows"]) < 0 \
                    or any(at[name].__class__ is not self.at[name].__class__ for name in self.at) \
                    or [value.__class__ for value in at["sums"]] != [float] * len(self.at["sums"]) \
                    or (at["epoch"] and not at["best"]):
                raise ValueError("where it was is not known")
            self.at = {name: at[name] for name in self.at}
        except Exception as error:  # whatever state_dicts that do not fit can raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.last}: damaged ({reason}); --overwrite starts over") from None

    def __enter__(self) -> "Run":
        self.log = Log(self.folder / "log.jsonl", self.at["log"], self.args.tensorboard)
        if not self.at["log"]:
            self.log.begin(self.args, self.made_by, self.device, precision=self.precision)
        self.signal, self.saved, self.progress, self.seconds = 0, time.monotonic(), None, self.at["seconds"]
        self.sums = torch.tensor(self.at["sums"] if RANK == 0 else [0.0] * len(self.at["sums"]),
                                 device=self.device)
        barrier(self.device)  # every rank has seen what is there before rank 0 changes it
        if not self.resumed:
            self.save()  # from here on the folder is this run's
            if RANK == 0:
                (self.folder / "diverged.tsv").unlink(missing_ok=True)
        self.handlers = {number: signal.signal(number, self._note)
                         for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if kind is None:
            if not self.at["finished"]:
                self.at["finished"] = True
                self.save()
            self._stop_if_told()
        self.log.close()

    def epochs(self, count: int):
        """The epochs that are left. After the body of each: log, save, a line on standard output."""
        self.epoch_count = count
        for epoch in range(self.at["epoch"], count):
            yield epoch
            train_loss = sum_of(self.sums) / self.rows
            self.log.write(epoch + 1, train_loss=train_loss, **self.scores,
                           seconds=round(self.at["seconds"] - self.seconds, 2))
            self.sums.zero_()
            self.seconds = self.at["seconds"]
            self.at.update(epoch=epoch + 1, step=0, rows=0, finished=epoch + 1 == count)
            self.save()
            best = f"valid_{self.best_name}"
            print(f"epoch {epoch + 1}/{count}: train loss {train_loss:.4f}, validation loss "
                  f"{self.scores['valid_loss']:.4f}, {self.best_name} {self.scores[best]:.4f} (best "
                  f"{self.at['best'][best]:.4f}), {self.progress.counted / self.progress.seconds:,.0f} "
                  f"texts/s {self.precision}, {clock(self.progress.seconds)}")
            sys.stdout.flush()
            self._stop_if_told()

    def steps(self, batches, rows: int):
        """The batches of this epoch that are left; `rows` are how many rows all of it has.

        Before each the random generators are seeded; after each step() has to be called.
        """
        epoch, self.rows = self.at["epoch"], rows
        self.progress = Progress(f"epoch {epoch + 1}/{self.epoch_count}", rows, "texts", self.at["rows"])
        before = self.at["seconds"]
        for step, batch in enumerate(islice(batches, self.at["step"], None), self.at["step"]):
            seed_everything(self.device, self.seed, epoch, step, RANK)
            yield batch
            self.at["seconds"] = before + self.progress.seconds
            if self._due(step):
                self.save()
                self._stop_if_told()
        self.watch.finish()
        self.progress.close()
        self.at["seconds"] = before + self.progress.seconds

    def fraction_done(self, rows: int) -> float:
        """The fraction of the run that is complete halfway through a step of so many rows."""
        return (self.at["epoch"] + (self.at["rows"] + rows / 2) / self.rows) / self.epoch_count

    def add(self, *losses: torch.Tensor) -> None:
        """Add losses, summed over this rank's rows, to what the log's mean is made of."""
        self.sums += torch.stack(losses).detach()

    def step(self, norm: torch.Tensor, numbers: np.ndarray, rate: float) -> None:
        """One optimizer step at `rate` times each group's peak, if `norm` and the losses are finite.

        numbers (rows,): which rows of the training set the step was computed from, on all ranks.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.watch.step(self.sums.sum() + norm, self.at["epoch"], self.at["step"], numbers)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.at["step"] += 1
        self.at["rows"] += len(numbers)
        # This rank's sum stands for all of them; several sums have no mean per row to show.
        self.progress.add(len(numbers), self.sums[0] * WORLD if len(self.sums) == 1 else None)

    def best(self, scores: dict, name: str) -> bool:
        """Note this epoch's validation scores, "loss" among them; whether score `name` is the best yet."""
        if not math.isfinite(scores["loss"]):
            raise UserError(f"epoch {self.at['epoch'] + 1}: the validation loss is not finite; lower --lr"
                            + self._best_before())
        self.scores, self.best_name = {f"valid_{key}": value for key, value in scores.items()}, name
        better = scores[name] > self.at["best"].get(f"valid_{name}", -math.inf)
        if better:
            self.at["best"] = {**self.scores, "epoch": self.at["epoch"] + 1}
        return better

    def save(self) -> None:
        """Write last.pt."""
        self.watch.finish()
        total = self.sums.clone()
        sum_over_ranks([total])
        self.at.update(sums=total.tolist(), log=self.log.text)
        save({"kind": "run", "format": self.FORMAT, "weights": self.model.state_dict(),
              "optimizer": self.optimizer.state_dict(), "at": self.at, "precision": self.precision,
              "made_by": self.made_by}, self.last)
        self.saved = time.monotonic()

    def _diverged(self, epoch: int, step: int, numbers) -> None:
        """Raise a UserError: the loss or gradient of these rows is not finite."""
        rows = [self.name_row(number) for number in sorted(numbers)]
        path = self.folder / "diverged.tsv"
        save_together({path: "file\trow\n" + "".join(f"{file}\t{row}\n" for file, row in rows)})
        raise UserError(f"epoch {epoch + 1}, step {step + 1}: loss or gradient is not finite; its "
                        f"{len(rows)} rows are listed in {path}; lower --lr" + self._best_before())

    def _best_before(self) -> str:
        return f" ({self.artifact} is the best before)" if self.at["best"] else ""

    # A signal only leaves a note, so that the step ends and is saved. A second one ends the loop at once, but
    # not under torchrun, which passes on what its processes have got already.

    def _note(self, number, frame):
        if self.signal and WORLD == 1:
            raise Stopped(128 + number, how_to_continue())
        self.signal = number
        if RANK == 0:  # not print: a handler may come while the loop is printing
            again = "; once more stops at once" if WORLD == 1 else ""
            os.write(2, f"stopping after this step{again}\n".encode())

    def _due(self, step: int) -> bool:
        """Whether to save after this step; several ranks agree, at every 16th step."""
        due = bool(self.signal) or time.monotonic() - self.saved >= 60 * self.args.save_every
        return due if WORLD == 1 else step % 16 == 0 and self._agree(due)[0]

    def _agree(self, due: bool) -> tuple[bool, int]:
        """Whether it is due on any rank; the signal that came to any, or 0. A later one is kept."""
        votes = torch.tensor([due, self.signal == signal.SIGINT, self.signal == signal.SIGTERM],
                             dtype=torch.float, device=self.device)
        sum_over_ranks([votes])
        due, interrupted, terminated = votes.tolist()
        return due > 0, signal.SIGINT if interrupted else signal.SIGTERM if terminated else 0

    def _stop_if_told(self) -> None:
        """The state is on disk. Raises Stopped if a signal came."""
        told = self.signal if WORLD == 1 else self._agree(False)[1]
        if told:
            raise Stopped(128 + told, f"saved; {how_to_continue()}")


class Watch:
    """Calls `diverged` with the first step whose value, a sum of losses and gradient norm, is not finite.

    On the CPU before the step changes a weight; on a GPU one step later, since reading a value at once would
    let the GPU stand idle. finish() looks at what is left: call it before anything is saved.
    """

    def __init__(self, device: torch.device, diverged):
        self.late, self.diverged, self.waiting = device.type != "cpu", diverged, []

    def step(self, value: torch.Tensor, *which) -> None:
        """Note a step's value; it is summed over ranks in place, so do not use it again."""
        sum_over_ranks([value])
        copied = None
        if value.is_cuda:  # a later .item() would wait for the next step's work too
            value, copied = value.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
        self.waiting.append((value, copied, which))
        self.finish(self.late)

    def finish(self, keep: int = 0) -> None:
        while len(self.waiting) > keep:
            value, copied, which = self.waiting.pop(0)
            if copied:
                copied.synchronize()
            if not math.isfinite(value.item()):
                self.diverged(*which)


def finished_runs(folder: Path):
    """(folder, last.pt's content) of each finished run in a subfolder, tensors still in their files."""
    for last in sorted(Path(folder).glob("*/last.pt")):
        try:
            state = load_weights(last, mmap=True)
            finished = kind_of(state) == "run" and state["at"]["finished"] and state["made_by"]["arguments"]
        except (UserError, LookupError, TypeError) as error:
            warn(f"{last}: damaged, not counted ({error})")
            continue
        if finished:
            yield last.parent, state


# ---- log and progress --------------------------------------------------------------------------------------


class Log:
    """One JSON object per line, flushed; numbers also go to TensorBoard when asked.

    `text` is all that was written, for last.pt; a continued run begins its Log with it, so that the line of a
    step that has to be done again does not occur twice. Under torchrun only rank 0 writes.
    """

    def __init__(self, path, text: str = "", tensorboard: bool = False):
        path = Path(path if RANK == 0 else os.devnull)
        self.text, self.writer = text, None
        if tensorboard and RANK == 0:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("--tensorboard needs a package: pip install tensorboard") from None
            self.writer = SummaryWriter(str(path.parent / "tensorboard"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - open for the whole run
            self.file.write(text)
            self.file.flush()
        except OSError as error:
            raise UserError(f"{path}: cannot write the log ({error.strerror or error})") from None

    def begin(self, args, made_by: dict, device: torch.device, **values) -> None:
        """The first line: all arguments, versions, git commit, hardware and `values`."""
        given = {name: value for name, value in vars(args).items() if name != "overwrite"}
        arguments = {"arguments": given | made_by["arguments"]}
        self.write(**made_by | arguments, **_commit(), **machine(device), **values)

    def write(self, step: int | None = None, **values) -> None:
        record = values if step is None else {"step": step, **values}
        line = json.dumps(record, ensure_ascii=False) + "\n"
        line = line.encode(errors="backslashreplace").decode()  # a name that is not UTF-8, as JSON has it
        self.text += line
        try:
            self.file.write(line)
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.file.name}: cannot write the log ({error.strerror or error})") from None
        if self.writer is not None and step is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what write() could not write, and has told
            self.file.close()
        if self.writer is not None:
            self.writer.close()


def _commit() -> dict:
    """The git commit of the scripts, when they are in a repository and git is there."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                              cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"commit": done.stdout.strip()} if done.returncode == 0 else {}


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
    `total` is None where it is not known; `done` was done before, in an earlier run. Under torchrun only
    rank 0 shows it.
    """

    def __init__(self, what: str, total: int | None, unit: str, done: int = 0):
        self.what, self.total, self.unit = what, total, unit
        self.done, self.before, self.shown = done, done, False
        self.start, self.end = time.perf_counter(), None
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
        rate = self.counted / (now - self.start)
        if self.total is None:
            line = f"{self.what}: {self.done:,} {self.unit}, {rate:,.0f}/s"
        else:
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

    @property
    def counted(self) -> int:
        """What was done in this process."""
        return self.done - self.before

    @property
    def seconds(self) -> float:
        """Since the start, up to close()."""
        return (self.end or time.perf_counter()) - self.start

    def close(self) -> float:
        """End the line; returns the seconds since the start."""
        self.end = time.perf_counter()
        if self.shown and self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        return self.seconds


def clock(seconds: float) -> str:
    """12.3 -> '12s', 75 -> '1:15', 3700 -> '1:01:40'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
