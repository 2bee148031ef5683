"""What two or more scripts need, has one right answer, and knows nothing of models, losses or text.

That rule decides what may enter: device, precision, seeds, torchrun's ranks, atomic save, safe load, stopping
and going on, JSON-lines log, progress. No argparse, no import from this project, nothing that belongs to a
noun (examples, teacher, student).
"""

import contextlib
import glob
import hashlib
import json
import math
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
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: there two runs on one folder are not told apart
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
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|ALLOC(ATION)?_FAILED",
                           re.IGNORECASE)
NO_BF16 = re.compile("could not create a primitive")  # oneDNN, of an LSTM in bf16 on a CPU without AVX-512
# What a file of plain values names; torch.load also lets pass bytearray(10**11) and the like.
PLAIN = re.compile(r"torch \w+Storage|collections OrderedDict|"
                   r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)")


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, and what to do."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. Its text, if any, says what was saved and how to go on; `code` is the exit code."""

    def __init__(self, code: int, text: str = ""):
        super().__init__(text)
        self.code = code


def run(main, *args, errors=(), memory: str = "close other programs"):
    """Call main(*args) as a script: expected errors become one line on stderr and exit code 2.

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
        main(*args)
        if WORLD > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # gloo's threads can abort an interpreter that ends in the usual way
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough; 141 is what a shell tells then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(141, f"stopped: standard output was closed{'; ' + how_to_go_on() if _locks else ''}")
    except OSError as error:
        reason = error.strerror or error
        _end(2, f"error: {error.filename}: {reason}" if error.filename else f"error: {reason}")
    except (UserError, *errors) as error:
        _end(2, f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).strip() or "MemoryError").split("\n")[0][:200]
        if NO_BF16.search(reason):
            _end(2, f"error: this processor has no bf16 for the LSTM ({reason}); give --precision fp32")
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(reason):
            raise
        _end(2, f"error: out of memory ({reason}); {memory}")
    except KeyboardInterrupt as stopped:
        text = str(stopped) or (how_to_go_on() if _locks else "nothing was written")
        _end(getattr(stopped, "code", 130), f"interrupted; {text}")


def warn(text: str) -> None:
    """One line on stderr, of rank 0 alone."""
    if RANK == 0:
        print(f"warning: {text}", file=sys.stderr)


def _end(code: int, line: str):
    """Print the last line and leave with this exit code."""
    # The line with its end at once: print would let another rank's line come between.
    line = " ".join(line.splitlines())  # whatever a library's message brought along
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


def pick_precision(name: str, device: torch.device, step) -> str:
    """Resolve 'auto' to 'bf16' or 'fp32' by trying: step() is one forward (and backward) pass on the device.

    A CPU without bf16 instructions either refuses bf16 LSTMs or runs bf16 products hundreds of times slower,
    and no flag of PyTorch tells in advance. So bf16 is taken, on every rank or on none, where its products
    are not emulated and the step does not lose by more than a quarter: a race that a little gain decides
    would be won by noise, and the same command would not give the same bytes twice. The random state is left
    as it was.
    """
    if name != "auto":
        return name
    fit = torch.tensor([float(_has_bf16(device, step))], device=device)
    sum_over_ranks([fit])
    return "bf16" if fit.item() == WORLD else "fp32"


def _has_bf16(device: torch.device, step) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    best = {"fp32": math.inf, "bf16": math.inf}
    with torch.random.fork_rng(devices=[]):
        matrix = torch.randn(256, 256)
        if _seconds(lambda: matrix.bfloat16() @ matrix.bfloat16()) > 5 * _seconds(lambda: matrix @ matrix):
            return False  # emulated: one step would take minutes
        for _ in range(3):  # in turn, so that a busy moment of the machine meets both
            for precision in best:
                try:
                    with autocast(device, precision):
                        best[precision] = min(best[precision], _seconds(step))
                except RuntimeError:  # oneDNN has no bf16 kernel for this CPU
                    if precision == "fp32":
                        raise
                    return False
    return best["bf16"] < 1.25 * best["fp32"]


def _seconds(step) -> float:
    """The better of two calls, after one that pays for set-up."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def be_deterministic() -> None:
    """Let PyTorch use only algorithms that give the same bits in every run: on CUDA, at a cost in speed."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # cuDNN's LSTM asks for this
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


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
    elif device.type != "cpu":
        raise UserError(f"--device {device}: runs in one process alone; use --device cpu under torchrun")
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
        raise UserError(f"{trouble}, whose own message tells why ({reason}); start the run again, "
                        f"where it was training with --resume") from None


# ---- artifacts ---------------------------------------------------------------------------------------------


def save(artifact: dict, path) -> None:
    """torch.save to a temporary file beside `path`, flushed, then renamed: no reader sees half a file.

    Of several ranks, 0 alone writes.
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
        raise UserError(f"{path}: is no file that could be replaced")


def load(path, kind: str, format: int, keys=()) -> dict:
    """Read an artifact of this kit: tensors, numbers, strings and lists only, never pickled code.

    Raises UserError when the file is missing, is no .pt file, carries code, is damaged, is of another kind or
    format, or has not all of `keys`.
    """
    return check(load_weights(path), path, kind, format, keys)


def check(artifact, path, kind: str, format: int, keys=()) -> dict:
    """`artifact`, as load_weights read it from `path`, if it is of this kind and format; else a UserError."""
    found = artifact.get("kind") if isinstance(artifact, dict) else None
    found = found if isinstance(found, str) and found.isprintable() else "something that is not of this kit"
    if found != kind:
        raise UserError(f"{path}: holds {found}, a {kind} is needed")
    number = artifact.get("format")
    if number.__class__ is not int or number != format:
        number = number if isinstance(number, int) else "unknown"
        raise UserError(f"{path}: format {number}, this version reads {format}; make it anew")
    missing = [key for key in keys if key not in artifact]
    if missing:
        raise UserError(f"{path}: damaged, no {' or '.join(missing)} in it; --overwrite makes it anew")
    return artifact


def load_weights(path, mmap: bool = False):
    """torch.load on the CPU with weights_only, its many ways of failing told in one line each.

    Checked before any memory is taken: the archive is not packed (a small file cannot unfold into a large
    one), its sums are right (torch.load does not look at them), and it names nothing but tensors. Checked
    after: every tensor is a plain one that claims no more than the file holds. With `mmap`, tensors stay in
    the file until they are read (not in files from before PyTorch 1.6, which have no sums either).
    """
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            check_archive(path)
        else:
            with open(path, "rb") as file:
                if file.read(2) == b"PK":
                    raise ValueError("its end is missing")
                file.seek(0)
                try:
                    for _ in range(5):  # its form before PyTorch 1.6: five pickles, then the tensors' bytes
                        check_names(file)
                except MemoryError:  # a text in it claims to be longer than any file
                    raise ValueError("damaged: a length is wrong") from None
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and archive)
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
        raise UserError(f"{path}: holds a tensor that is not plain, or claims more than the file holds")
    return value


def check_archive(path) -> None:
    """A ValueError when the zip archive of a .pt file is packed, damaged, or names more than tensors.

    Its table of contents has to end where the file does: elsewhere, torch.load might read another one.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(size - 98, 0))
        tail = file.read().rjust(98)  # zip64's end record (56 bytes), where that is (20), the end record (22)
    zip64 = tail[56:60] == b"PK\6\7"
    end = size - (98 if zip64 else 22)
    where, start, length = (int.from_bytes(part, "little") for part in (
        (tail[64:72], tail[48:56], tail[40:48]) if zip64 else (b"", tail[92:96], tail[88:92])))
    if tail[76:80] != b"PK\5\6" or start + length != end or (zip64 and where != end):
        raise ValueError("damaged: its table of contents is not at its end")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members) \
                or sum(member.file_size for member in members) > size:
            raise ValueError("the archive is packed")
        if any(member.is_dir() or member.external_attr & 16 for member in members):
            raise ValueError("damaged: has a folder")  # of one, torch.load takes what memory happens to hold
        if damaged := archive.testzip():
            raise ValueError(f"damaged: the checksum of {damaged} is wrong")
        for member in members:
            if member.filename.lower().endswith("data.pkl"):
                check_names(archive.read(member))


def check_names(pickle) -> None:
    """A ValueError when a pickle (bytes, or a file at its start) names more than PLAIN."""
    for opcode, name, _ in pickletools.genops(pickle):
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


def fingerprint(value: torch.Tensor | str) -> str:
    """SHA-256 of a text, or of a tensor's shape, type and bytes."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()
    tensor = value
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def made_by(arguments: dict, fingerprints: dict) -> dict:
    """What an artifact says of its origin: script, versions, the arguments and contents that decided it.

    No path and no time is among them: the same work gives the same bytes wherever and whenever it is done.
    """
    return {"script": Path(sys.argv[0]).name, "arguments": arguments, "fingerprints": fingerprints,
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)}}


def _commit() -> dict:
    """The git commit of the scripts, when they are in a repository and git is there."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                              cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"commit": done.stdout.strip()} if done.returncode == 0 else {}


# ---- stopping and going on ---------------------------------------------------------------------------------


_locks = {}  # path: its open file


def lock(path, *names: str) -> None:
    """Take the lock file `path` until this process ends, or a UserError: another process holds it.

    The lock is the operating system's, so a run that was killed does not hold it. What such a run left half
    written of the files `names`, beside the lock, is removed. Of several ranks, 0 alone takes it.
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
        raise UserError(f"{path.parent}: cannot write there ({error.strerror or error}); give another "
                        f"--output-dir") from None
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UserError(f"{path.parent}: another run (process {owner}) is writing there; wait until it "
                            f"ends, or give another --output-dir") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    for name in names:
        for partial in path.parent.glob(f".{glob.escape(name)}.*.partial"):
            partial.unlink(missing_ok=True)
    _locks[path.resolve()] = file


def unchanged(path, since: os.stat_result) -> None:
    """A UserError when the file is another one than at os.stat() `since`, or was written to."""
    now = os.stat(path)
    if any(getattr(now, name) != getattr(since, name) for name in ("st_ino", "st_size", "st_mtime_ns")):
        raise UserError(f"{path}: was changed while it was read; run again")


def refuse_to_overwrite(*files: Path) -> None:
    """A UserError when one of the files is there: an earlier run's, finished or not."""
    for file in files:
        if file.exists():
            raise UserError(f"{file}: is there already; --resume goes on with its run, --overwrite starts "
                            f"anew, another --output-dir keeps both")


def refuse_to_read_and_write(read: list, written: list[Path]) -> None:
    """A UserError when a file that is read is one of those that will be written."""
    written = {Path(file).resolve(): file for file in written}
    for file in read:
        if file is not None and Path(file).resolve() in written:
            raise UserError(f"{file}: is read, and would be overwritten; give another --output-dir")


REPLACED = "to be replaced"


def mark_replaced(*files: Path) -> None:
    """Put a mark in place of each file: --overwrite is to replace what belongs to it, and --resume, when the
    run is killed before it comes to that, must not take it for the run's own."""
    save_together({file: {"kind": REPLACED} for file in files})


def is_marked(file: Path) -> bool:
    """Whether mark_replaced() was here last."""
    if not file.exists():
        return False
    artifact = load_weights(file)
    return isinstance(artifact, dict) and artifact.get("kind") == REPLACED


def refuse_other_values(path, before: dict, now: dict) -> None:
    """A UserError that lists what differs between the run that made `path` and this one."""
    differing = []
    for name in now:
        if before.get(name).__class__ is not now[name].__class__ or before.get(name) != now[name]:
            short = all(isinstance(value, (int, float, str, type(None))) and len(str(value)) < 40
                        and str(value).isprintable() for value in (before.get(name), now[name]))
            differing.append(f"{name} ({before.get(name)}, now {now[name]})" if short else name)
    if differing:
        raise UserError(f"{path}: was made with other values of {', '.join(differing)}; use those, or "
                        f"--overwrite to start anew")


def resume(path, artifact, kind: str, format: int, made_by: dict, args) -> dict | None:
    """What an interrupted run left in `path`, or None: it was killed before it had anything to leave.

    A UserError when the run was another one (naming what differs), or its best `artifact` is not there.
    """
    path, artifact = Path(path), Path(artifact)
    if not path.exists():
        if artifact.exists():
            raise UserError(f"{artifact}: is there, but no {path.name} to go on from; --overwrite starts "
                            f"anew")
        return None
    if is_marked(path):
        return None
    state = load(path, kind, format, ("weights", "optimizer", "at", "precision", "made_by"))
    try:
        before = {"--precision": state["precision"],
                  **state["made_by"]["arguments"], **state["made_by"]["fingerprints"]}
        best = bool(state["at"]["best"])
    except (TypeError, LookupError, RuntimeError) as error:
        raise UserError(f"{path}: damaged ({error}); --overwrite starts anew") from None
    precision = state["precision"] if args.precision == "auto" else args.precision
    refuse_other_values(path, before, {"--precision": precision, **made_by["arguments"],
                                       **made_by["fingerprints"]})
    if best and not artifact.exists():
        raise UserError(f"{artifact}: the best so far is gone; put it back, or --overwrite to start anew")
    return state


def restore(path, state: dict, model, optimizer, at: dict, score: str = "valid_accuracy") -> tuple[dict, str]:
    """Give model and AdamW what resume() found; returns where the run was, in the form of `at`, and its
    precision. `score` is what at["best"] has once there is a best."""
    def settings():
        return [sorted(str(item) for item in group.items() if item[0] != "lr")
                for group in optimizer.state_dict()["param_groups"]]

    try:
        fresh = settings()
        model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        if settings() != fresh:
            raise ValueError("the optimizer has other settings")
        for parameter, values in optimizer.state.items():
            # The fused step trusts these: of another size they would let it write beyond them.
            if {name: value.shape for name, value in values.items() if value.is_contiguous()} != {
                    "step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
                raise ValueError("the optimizer's state is of another shape")
        found, precision = state["at"], state["precision"]
        if precision not in ("fp32", "bf16") or min(found["epoch"], found["step"], found["rows"]) < 0 \
                or any(found[name].__class__ is not at[name].__class__ for name in at) \
                or ((found["epoch"] or found["best"]) and not isinstance(found["best"].get(score), float)):
            raise ValueError("where it was is not known")
        return found, precision
    except Exception as error:  # whatever state_dicts that do not fit can raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged ({reason}); --overwrite starts anew") from None


class Watch:
    """Calls `diverged` with the first step whose loss or gradient is not finite.

    On the CPU before the step changes a weight; on a GPU one step later, since reading a value at once would
    let the GPU stand idle. finish() looks at what is left: call it before anything is saved.
    """

    def __init__(self, device: torch.device, diverged):
        self.late, self.diverged, self.steps = device.type != "cpu", diverged, []

    def step(self, value: torch.Tensor, *which) -> None:
        """Note a step's value, which no rank has reason to use afterwards: it becomes the sum over all."""
        sum_over_ranks([value])
        copied = None
        if value.is_cuda:  # a later .item() would wait for the next step's work too
            value, copied = value.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
        self.steps.append((value, copied, which))
        self.finish(self.late)

    def finish(self, keep: int = 0) -> None:
        while len(self.steps) > keep:
            value, copied, which = self.steps.pop(0)
            if copied:
                copied.synchronize()
            if not math.isfinite(value.item()):
                self.diverged(*which)


class Saves:
    """When a loop saves, and whether it then stops: every `minutes`, and at Ctrl-C or SIGTERM.

    From its making to close(), the two signals only leave a note; a second one ends the loop at once, but
    not under torchrun, which hands on what its processes have got already. Several ranks agree, at every 16th
    step.
    """

    def __init__(self, minutes: float, device: torch.device):
        self.seconds, self.device, self.last, self.signal = 60 * minutes, device, time.monotonic(), 0
        self.before = {number: signal.signal(number, self._note)
                       for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number, frame):
        if self.signal and WORLD == 1:
            raise Stopped(128 + number, how_to_go_on())
        self.signal = number
        if RANK == 0:  # not print: a handler may come while the loop is printing
            again = "; once more stops at once" if WORLD == 1 else ""
            os.write(2, f"stopping after this step{again}\n".encode())

    def due(self, step: int) -> bool:
        """Whether to save after this step; then call done()."""
        due = bool(self.signal) or time.monotonic() - self.last >= self.seconds
        return due if WORLD == 1 else step % 16 == 0 and self._agree(due)

    def _agree(self, due: bool) -> bool:
        """Whether it is due on any rank; a signal that came to one has then come to all."""
        votes = torch.tensor([due, self.signal == signal.SIGINT, self.signal == signal.SIGTERM],
                             dtype=torch.float, device=self.device)
        sum_over_ranks([votes])
        due, interrupted, terminated = votes.tolist()
        self.signal = signal.SIGINT if interrupted else signal.SIGTERM if terminated else 0
        return due > 0

    def done(self) -> None:
        """The state is on disk. Raises Stopped if a signal came."""
        self.last = time.monotonic()
        if WORLD > 1:
            self._agree(False)
        if self.signal:
            raise Stopped(128 + self.signal, f"saved; {how_to_go_on()}")

    def close(self) -> None:
        """The loop is at its end, and what it made is on disk. Raises Stopped if a signal came."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.done()


def how_to_go_on() -> str:
    """The command of this process with --resume."""
    if WORLD > 1:
        return "go on with the same command and --resume"
    # argparse takes "--over" for --overwrite too.
    words = [word for word in sys.argv
             if not any(word.startswith("--") and len(word) > 3 and flag.startswith(word)
                        for flag in ("--overwrite", "--resume"))]
    return f"go on with: python {shlex.join([*words, '--resume'])}"


# ---- log and progress --------------------------------------------------------------------------------------


class Log:
    """One JSON object a line, flushed; numbers also go to TensorBoard when asked.

    `text` is all that was written, for last.pt; given to the Log of a resumed run, it is what that goes on
    from, so that a line of a step that has to be done again does not occur twice. Of several ranks, 0 alone
    writes.
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
        given = {name: value for name, value in vars(args).items() if name not in ("resume", "overwrite")}
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
    `total` is None where it is not known; `done` was done before, in an earlier run. Of several ranks, 0
    alone shows it.
    """

    def __init__(self, what: str, total: int | None, unit: str, done: int = 0):
        self.what, self.total, self.unit = what, total, unit
        self.done, self.before, self.shown = done, done, False
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
        """Since the start."""
        return time.perf_counter() - self.start

    def close(self) -> float:
        """End the line; returns the seconds since the start."""
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
