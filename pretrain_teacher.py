"""Pretrain an encoder as a masked language model on plain texts: a new one, or on from a published one.

    python pretrain_teacher.py --train train.tsv unlabeled.tsv.gz --layers 6 --hidden-dim 256 \\
        --tokenizer tokenizer/vocab_size_12000                              # from random weights
    python pretrain_teacher.py --train … --checkpoint koreview-electra --hours 2    # on, in your domain
    python pretrain_teacher.py … --target-column stars --target numeric     # a second loss on a column
    python pretrain_teacher.py … --resume                                   # go on after an interruption
    torchrun --nproc_per_node 2 pretrain_teacher.py …                       # several processes, one result

reads   files with a text column, a tokenizer or a published checkpoint
writes  OUTPUT_DIR/ as published checkpoints are (config.json, pytorch_model.bin, tokenizer.json), readable
        from the first validation on; in it last.pt (for --resume), log.jsonl; Ctrl-C saves before it stops
next    python finetune_teacher.py --checkpoint pretrained …
"""

import argparse


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # data
    arg("--train", required=True, nargs="+", metavar="FILE", help="texts (.tsv .csv .jsonl, also .gz)")
    arg("--valid", metavar="FILE", help="texts to validate on; default: rows held out of --train")
    arg("--valid-rows", type=int, default=5000, metavar="N",
        help="without --valid: hold out about so many rows, at most a tenth (default: %(default)s)")
    arg("--text-column", metavar="NAME", help="default: text or document")
    arg("--text2-column", metavar="NAME", help="second text of a pair; default: text2 if there")
    # artifacts
    arg("--checkpoint", metavar="DIR|ID", help="published BERT, ELECTRA, RoBERTa or DistilBERT weights")
    arg("--tokenizer", metavar="DIR", help="without --checkpoint: a folder that train_tokenizer.py wrote")
    arg("--output-dir", default="pretrained", metavar="DIR", help="default: %(default)s")
    again = p.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR/last.pt, if it is there")
    again.add_argument("--overwrite", action="store_true", help="start anew where an earlier run's files are")
    arg("--save-every", type=float, default=10, metavar="MINUTES",
        help="what a kill may cost (default: %(default)g)")
    # a new encoder
    arg("--layers", type=int, metavar="N", help="no checkpoint: a new encoder of N layers")
    arg("--hidden-dim", type=int, default=256, help="width; feed-forward 4 times that (default: %(default)s)")
    arg("--heads", type=int, help="of attention; default: one for each 64 of --hidden-dim")
    arg("--embedding-dim", type=int, help="narrower than --hidden-dim, for ELECTRA alone; default: the same")
    arg("--family", default="electra", choices=["electra", "bert"], help="default: %(default)s")
    # method
    arg("--mask-rate", type=float, default=0.15, help="share of tokens to predict (default: %(default)s)")
    arg("--target-column", metavar="NAME", help="a second loss on this column of every file, read from the "
        "first token; a row may have it empty")
    arg("--target", choices=["numeric", "class"], help="squared error of the standardised number, or cross-"
        "entropy; default: numeric if all values are numbers and more than two")
    arg("--target-weight", type=float, default=1.0, help="of the second loss (default: %(default)s)")
    # optimisation
    length = p.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="default: 1")
    length.add_argument("--hours", type=float, help="instead of --epochs, from the start of the script; the "
                        "learning rate then follows the clock, and no two runs are equal")
    arg("--max-length", type=int, default=128, help="tokens of a row, cut beyond (default: %(default)s)")
    arg("--max-tokens", type=int, default=8192,
        help="tokens of a batch, padding counted (default: %(default)s)")
    arg("--lr", type=float, default=5e-4,
        help="peak learning rate; 1e-4 suits encoders of 768 wide (default: %(default)s)")
    arg("--warmup", type=float, default=0.05, help="share of the run with rising rate (default: %(default)s)")
    arg("--weight-decay", type=float, default=0.01, help="default: %(default)s")
    arg("--clip", type=float, default=1.0, help="largest gradient norm (default: %(default)s)")
    arg("--dropout", type=float, default=0.0, help="0 suits a few epochs; config.json keeps the encoder's "
        "own for fine-tuning (default: %(default)s)")
    arg("--validate-every", type=int, default=500, metavar="STEPS", help="default: %(default)s")
    # machine
    arg("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: %(default)s")
    arg("--precision", default="auto", choices=["auto", "fp32", "bf16"],
        help="auto takes bf16 on a GPU that has it, or where a trial on a CPU shows it to pay "
        "(default: %(default)s)")
    arg("--deterministic", action="store_true", help="the same bits in every run on CUDA too, slower")
    arg("--seed", type=int, default=0, help="default: %(default)s")
    arg("--tensorboard", action="store_true", help="also log to OUTPUT_DIR/tensorboard")
    args = p.parse_args(argv)
    if (args.checkpoint is None) == (args.layers is None):
        p.error("give either --checkpoint or --layers")
    if (args.layers is None) != (args.tokenizer is None):
        p.error("--layers needs --tokenizer DIR (make one with train_tokenizer.py); a checkpoint has its own")
    if args.target and not args.target_column:
        p.error("--target needs --target-column")
    if args.epochs is None and args.hours is None:
        args.epochs = 1
    args.heads = max(1, args.hidden_dim // 64) if args.heads is None else args.heads
    args.embedding_dim = args.hidden_dim if args.embedding_dim is None else args.embedding_dim
    if args.family != "electra" and args.embedding_dim != args.hidden_dim:
        p.error("--embedding-dim is for --family electra")
    for name, value in vars(args).items():
        if isinstance(value, (int, float)) and not abs(value) < 2**31:  # NaN is not below anything
            p.error(f"--{name.replace('_', '-')} is {value}, must be finite and below {2**31}")
    if args.seed < 0:
        p.error("--seed must be at least 0")
    counts = (args.epochs, args.layers, args.hidden_dim, args.heads, args.embedding_dim, args.valid_rows,
              args.max_tokens, args.validate_every)
    if min(count for count in counts if count is not None) < 1 or args.max_length < 3:
        p.error("--max-length must be at least 3; epochs, rows, tokens, steps and dimensions at least 1")
    if min(args.lr, args.clip, 1 if args.hours is None else args.hours) <= 0 or not 0 < args.mask_rate < 1:
        p.error("--lr, --clip and --hours must be positive, --mask-rate in (0, 1)")
    if not (0 <= args.warmup < 1 and 0 <= args.dropout < 1) \
            or min(args.weight_decay, args.target_weight, args.save_every) < 0:
        p.error("--warmup and --dropout must be in [0, 1), --weight-decay, --target-weight and --save-every "
                "at least 0")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import math
import sys
import time
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import runtime
from data.batching import Store, token_batches, training_batches
from data.examples import label_names, read_again, survey
from runtime import RANK, WORLD, UserError
from teacher import SPECIAL_TOKENS, MaskedLM, TeacherConfig, bert_template, load_checkpoint, load_tokenizer

FORMAT = 1  # of last.pt
# With the contents of the files these decide the result: a resumed run must have the same.
DECISIVE = ("epochs", "hours", "max_length", "max_tokens", "mask_rate", "target_weight", "lr", "warmup",
            "weight_decay", "clip", "dropout", "validate_every", "valid_rows", "seed", "deterministic")


def new_model(args, names: list[str]) -> MaskedLM:
    """An encoder of the shape that the flags give, with random weights."""
    tokenizer = load_tokenizer(Path(args.tokenizer), args.family)
    if tokenizer.token_to_id("[CLS]") is None or tokenizer.token_to_id("[SEP]") is None:
        raise UserError(f"{args.tokenizer}: the tokenizer has no [CLS] and [SEP]")
    tokenizer.post_processor = bert_template(tokenizer)
    try:
        config = TeacherConfig(
            args.family, tokenizer.get_vocab_size(), args.hidden_dim, args.layers, args.heads,
            4 * args.hidden_dim, args.embedding_dim, max_positions=max(512, args.max_length),
            type_vocab_size=2, num_labels=len(names) or 1, pad_id=tokenizer.token_to_id("[PAD]") or 0)
    except ValueError as error:
        raise UserError(f"--hidden-dim {args.hidden_dim} --heads {args.heads}: {error}") from None
    return MaskedLM(config, tokenizer, names, args.max_length)


def target_reader(args, files, valid_files) -> tuple[list[str], object]:
    """What the second loss predicts: the names of the classes, [column] of a number, [] without the loss; and
    a function from a value of the column to a float, NaN of an empty one."""
    if not args.target_column:
        return [], lambda value: math.nan
    values = set().union(*(file.labels for file in files + valid_files))
    column = f"{' '.join(file.path for file in files + valid_files)}: column {args.target_column}"
    if not values:
        raise UserError(f"{column} is empty in every row")
    try:
        numeric = all(math.isfinite(float(value)) for value in values)
    except ValueError:
        numeric = False
    if args.target == "numeric" and not numeric:
        raise UserError(f"{column} has values that are no finite numbers; correct them, or --target class")
    if args.target == "numeric" or (args.target is None and numeric and len(values) > 2):
        return [args.target_column], lambda value: float(value or math.nan)
    names = label_names(set().union(*(file.labels for file in files)), " ".join(args.train))
    if len(names) > 1000:
        raise UserError(f"{column} has {len(names):,} classes, more than 1,000; is --target numeric meant?")
    for file in valid_files:
        file.refuse_other_labels(names, args.text_column, args.text2_column, args.target_column)
    return names, class_numbers(names)


def class_numbers(names: list[str]):
    """A function from a class to its number as a float, NaN of an empty one."""
    return ({name: float(i) for i, name in enumerate(names)} | {"": math.nan}).__getitem__


class Masker:
    """Chooses anew at each call, by PyTorch's generator, the tokens to predict: `rate` of those that are
    neither special nor padding. 80 % of them are read as [MASK], 10 % as a random ordinary token, 10 % as
    they are (Devlin et al. 2019, arXiv 1810.04805)."""

    def __init__(self, model: MaskedLM, rate: float, device: torch.device):
        ids = [model.tokenizer.token_to_id(token) for token in SPECIAL_TOKENS["mask_token"]]
        self.mask_id = next((i for i in ids if i is not None), None)
        if self.mask_id is None:
            raise UserError("the tokenizer has no [MASK] (or <mask>), which a masked language model needs")
        added = model.tokenizer.get_added_tokens_decoder().items()
        special = [i for i, token in added if token.special] + [model.config.pad_id, self.mask_id]
        self.special = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)  # (V,)
        self.special[special] = True
        known = torch.arange(model.config.vocab_size, device=device) < model.tokenizer.get_vocab_size()
        self.ordinary, self.rate = (known & ~self.special).nonzero()[:, 0], rate

    def __call__(self, batch: dict) -> dict:
        """The batch with what is `read` (B, T) for its input_ids, and what is to `predict` (B, T), bool."""
        ids = batch["input_ids"]
        draw = torch.rand(ids.shape, device=ids.device)
        inside = torch.arange(ids.size(1), device=ids.device) < batch["lengths"][:, None]
        predict = (draw < self.rate) & inside & ~self.special[ids]
        random = self.ordinary[torch.randint(len(self.ordinary), ids.shape, device=ids.device)]
        read = torch.where(predict & (draw < 0.9 * self.rate), random, ids)
        read = read.masked_fill(predict & (draw < 0.8 * self.rate), self.mask_id)
        return batch | {"read": read, "predict": predict}


def losses(model: MaskedLM, batch: dict) -> torch.Tensor:
    """(2,) sums: over tokens to predict of their cross-entropy, over rows with a target of its loss."""
    keep = batch["predict"].flatten().nonzero()[:, 0]  # (K,); here alone a step waits for a GPU
    # K of all tokens are multiplied with the vocabulary, which would else cost more than the encoder.
    scores, logits = model(batch["read"], batch["lengths"], batch.get("second"), keep=keep)
    masked = F.cross_entropy(scores.float(), batch["input_ids"].flatten()[keep], reduction="sum")
    if logits is None:
        return torch.stack([masked, torch.zeros_like(masked)])
    targets, logits = batch["targets"].nan_to_num(), logits.float()
    if logits.size(1) == 1:
        each = (logits[:, 0] - targets).square()
    else:
        each = F.cross_entropy(logits, targets.long(), reduction="none")
    return torch.stack([masked, each.where(~batch["targets"].isnan(), 0).sum()])


def counts(batch: dict) -> torch.Tensor:
    """(2,) what losses() are sums over: tokens to predict, rows with a target."""
    return torch.stack([batch["predict"].sum(), (~batch["targets"].isnan()).sum()]).float()


def main(args):
    start = time.monotonic()
    device = runtime.connect(runtime.pick_device(args.device))
    runtime.seed_everything(device, args.seed)
    if args.deterministic:
        runtime.be_deterministic()
    output = Path(args.output_dir)
    last, weights = output / "last.pt", output / "pytorch_model.bin"

    # data
    columns = args.text_column, args.text2_column, args.target_column
    files, where = [survey(file, *columns) for file in args.train], " ".join(args.train)
    valid_files = [survey(args.valid, *columns)] if args.valid else []
    if len({file.pairs for file in files + valid_files}) > 1:
        raise UserError("some files have a column text2 and some have not; all or none must be pairs")
    names, value_of = target_reader(args, files, valid_files)

    # model
    if output.resolve() == Path(args.checkpoint or args.tokenizer).resolve():
        raise UserError(f"--output-dir {output}: the checkpoint or tokenizer is read there; give another")
    if args.checkpoint:
        model, report = load_checkpoint(args.checkpoint, names, args.max_length, MaskedLM)
        if len(names) > 1 and names != model.label_names:  # a published head may bring its own order
            names = model.label_names
            value_of = class_numbers(names)
    else:
        model, report = new_model(args, names), []
    for line in report:
        print(line)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = args.dropout
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = args.dropout
    first, masker = model.fingerprints(), Masker(model, args.mask_rate, device)
    model.to(device)
    runtime.lock(output / ".lock", last.name, weights.name, "config.json", "tokenizer.json", "vocab.txt",
                 "tokenizer_config.json", "diverged.tsv")
    runtime.refuse_to_read_and_write([*args.train, args.valid], [output / name for name in (
        "log.jsonl", "diverged.tsv", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")])
    if not (args.resume or args.overwrite):
        runtime.refuse_to_overwrite(last, weights, output / "config.json", output / "tokenizer.json")
    if args.overwrite:
        runtime.mark_replaced(last)
    rows = sum(file.rows for file in files)
    stride = rows + 1 if args.valid else max(10, rows // args.valid_rows)  # every stride-th row is held out
    store, valid, number = Store(output), Store(output), 0
    progress = runtime.Progress("encode", rows + sum(file.rows for file in valid_files), "texts")

    def add(store, part, numbers):
        if len(part):
            encoded = model.encode(part.texts, part.texts2, progress)
            values = part.labels if names else [""] * len(part)
            encoded.columns["targets"] = torch.tensor([value_of(value) for value in values])  # (N,) float32
            encoded.columns["number"] = torch.from_numpy(numbers)  # of the row, over all files
            store.append(encoded)

    for file in files:
        for part in read_again(file, *columns):
            numbers = np.arange(number, number + len(part))
            held_out = (numbers + 1) % stride == 0
            for to, chosen in ((store, ~held_out), (valid, held_out)):
                add(to, part.take(np.flatnonzero(chosen)), numbers[chosen])
            number += len(part)
    for file in valid_files:
        for part in read_again(file, *columns):
            add(valid, part, np.arange(len(part)))
    progress.close()
    if not len(valid):
        raise UserError(f"{where}: {rows} rows are too few to hold one out; give 10, or --valid")
    mean, deviation = 0.0, 1.0
    if len(names) == 1:
        known = torch.cat([window.columns["targets"].cpu().double() for window in store.windows(device)])
        known = known[~known.isnan()]
        mean, deviation = known.mean().item(), known.std(correction=0).item()
        if not deviation > 0:
            raise UserError(f"{where}: column {args.target_column} has no two different values")

    def draw(window, rows) -> dict:
        """A masked batch, its number standardised."""
        batch = window.batch(rows)
        return masker(batch | {"targets": (batch["targets"] - mean) / deviation})

    window = next(store.windows(device))
    trial = draw(window, np.argsort(window.lengths)[-64:])
    del window

    def trial_step():
        losses(model, trial).sum().backward()
        model.zero_grad()

    precision = runtime.pick_precision(args.precision, device, trial_step)
    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == decayed],
               "weight_decay": args.weight_decay * decayed} for decayed in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-6,
                                  fused=device.type in ("cpu", "cuda"))
    print(f"{model.config.family}, {sum(p.numel() for p in model.parameters()):,} parameters; {len(store):,} "
          f"training rows of {store.tokens / len(store):.1f} tokens, {len(valid):,} for validation"
          + (f"; target {names if len(names) > 1 else names[0]}" if names else ""))

    # resume
    made_by = runtime.made_by({name: getattr(args, name) for name in DECISIVE}, {
        "the texts of --train": " ".join(file.fingerprint for file in files),
        "the texts of --valid": " ".join(file.fingerprint for file in valid_files),
        "the targets": " ".join(file.label_fingerprint for file in files + valid_files) if names else "",
        "the names of the targets": str(names),
        "the weights at the start": first["weights"], "the tokenizer": first["tokenizer"],
    })
    # `sums`: of both losses since the last validation, and of their counts; `validated`: the steps done then;
    # `best`: its scores, as the last state is the best.
    at = {"epoch": 0, "step": 0, "rows": 0, "steps": 0, "tokens": 0, "seconds": 0.0, "sums": [0.0] * 4,
          "validated": -1, "best": {}, "log": ""}
    state = args.resume and runtime.resume(last, weights, "pretrain-resume", FORMAT, made_by, args)
    if state:
        at, precision = runtime.restore(last, state, model, optimizer, at, "valid_loss")
        sums_fit = [value.__class__ for value in at["sums"]] == [float] * 4
        if not sums_fit or bool(at["best"]) != (at["validated"] >= 0):
            raise UserError(f"{last}: damaged (its sums or scores are gone); --overwrite starts anew")
        print(f"resuming after epoch {at['epoch']}, step {at['step']}")
    start -= at["seconds"]  # the clock goes on from there
    log = runtime.Log(output / "log.jsonl", at["log"], args.tensorboard)
    if not at["log"]:
        log.begin(args, made_by, device, precision=precision)

    def save_last():
        at.update(seconds=time.monotonic() - start, log=log.text)
        runtime.save({"kind": "pretrain-resume", "format": FORMAT, "weights": model.state_dict(),
                      "optimizer": optimizer.state_dict(), "at": at, "precision": precision,
                      "made_by": made_by}, last)

    def scores_of(sums: torch.Tensor, name: str) -> dict:
        masked, target = (sums[:2] / sums[2:].clamp(min=1)).tolist()
        return {f"{name}_loss": masked} | ({f"{name}_target_loss": target} if names else {})

    @torch.inference_mode()
    def evaluate() -> dict:
        model.eval()
        total, number = torch.zeros(4, device=device), 0
        for window in valid.windows(device):
            for rows in token_batches(window.lengths, 4096):
                runtime.seed_everything(device, number)  # the same masks each time and in every run
                batch = draw(window, rows)
                if number % WORLD == RANK:
                    with runtime.autocast(device, precision):
                        total += torch.cat([losses(model, batch), counts(batch)])
                number += 1
        runtime.sum_over_ranks([total])
        model.train()
        return scores_of(total, "valid")

    def validate(done: float):
        """Score, log, and write the folder; the means of the training losses begin anew."""
        runtime.sum_over_ranks([sums])
        scores = (scores_of(sums, "train") if at["steps"] else {}) | evaluate()
        if not math.isfinite(scores["valid_loss"]):
            raise UserError(f"step {at['steps']}: the validation loss is not finite; lower --lr")
        model.save_published(output, made_by=made_by, **(
            {"target_mean": mean, "target_deviation": deviation} if len(names) == 1 else {}))
        sums.zero_()
        at.update(validated=at["steps"], best=scores)
        seconds = time.monotonic() - start
        log.write(at["steps"], tokens=at["tokens"], **scores, seconds=round(seconds, 2))
        print(f"step {at['steps']:,} ({min(done, 1):.0%}): " + ", ".join(
            f"{name.replace('_', ' ')} {score:.4f}" for name, score in scores.items())
            + f", {progress.counted / progress.seconds:,.0f} tokens/s {precision}, {runtime.clock(seconds)}")
        sys.stdout.flush()

    def diverged(epoch, step, window, rows):
        numbers = window.columns["number"][torch.from_numpy(rows).to(device)].sort().values.cpu().numpy()
        ends = np.cumsum([file.rows for file in files])
        where = np.searchsorted(ends, numbers, side="right")
        runtime.save_together({output / "diverged.tsv": "file\trow\n" + "".join(
            f"{files[i].path}\t{number - ends[i] + files[i].rows}\n" for i, number in zip(where, numbers,
                                                                                       strict=True))})
        raise UserError(f"epoch {epoch + 1}, step {step + 1}: loss or gradient is not finite; its "
                        f"{len(rows)} rows are in {output / 'diverged.tsv'}; lower --lr")

    def batches():
        """(epoch, step, window, rows) from where the run is, without end."""
        first = at["step"]
        for epoch in count(at["epoch"]):
            every = enumerate(training_batches(store, args.max_tokens, (args.seed, epoch), device))
            for step, (window, rows) in islice(every, first, None):
                yield epoch, step, window, rows
            first = 0

    def share_done(epoch, rows) -> float:
        """Of the run, before it 0 and after it 1; the same on every rank."""
        if args.epochs:
            return (epoch + rows / len(store)) / args.epochs
        share = (time.monotonic() - start) / (3600 * args.hours)
        return runtime.sum_of(torch.tensor(share * (RANK == 0), device=device)) if WORLD > 1 else share

    # loop
    saves, watch = runtime.Saves(args.save_every, device), runtime.Watch(device, diverged)
    runtime.barrier(device)  # every rank has seen what is there before rank 0 changes it
    sums = torch.tensor(at["sums"] if RANK == 0 else [0.0] * 4, device=device)
    total = store.tokens * args.epochs if args.epochs else None
    progress = runtime.Progress("pretrain", total, "tokens", at["tokens"])
    if not state:
        save_last()  # from here on the folder is this run's
    if at["validated"] < 0:
        validate(0.0)
    model.train()
    for epoch, step, window, rows in batches():
        rows_done = at["rows"] if step else 0
        done = share_done(epoch, rows_done + len(rows) / 2)
        if done >= 1:
            break
        runtime.seed_everything(device, args.seed, epoch, step)  # every rank masks the whole batch alike
        batch = draw(window, rows)
        number = counts(batch)
        runtime.seed_everything(device, args.seed, epoch, step, RANK)
        if len(rows) > RANK:
            mine = {name: column[RANK::WORLD] for name, column in batch.items()}
            with runtime.autocast(device, precision):
                both = losses(model, mine)
            masked, target = both / number.clamp(min=1)
            (masked + args.target_weight * target).backward()
            sums[:2] += both.detach()
        if RANK == 0:
            sums[2:] += number
        for parameters in optimizer.param_groups:
            parameters["lr"] = args.lr * min(done / max(args.warmup, 1e-9), (1 - done) / (1 - args.warmup))
        runtime.sum_gradients(model.parameters())
        norm = nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        watch.step(sums.sum() + norm, epoch, step, window, rows)
        optimizer.step()
        optimizer.zero_grad()
        tokens = int(window.lengths[rows].sum())
        progress.add(tokens)
        at.update(epoch=epoch, step=step + 1, rows=rows_done + len(rows), steps=at["steps"] + 1,
                  tokens=at["tokens"] + tokens)
        if at["steps"] % args.validate_every == 0:
            watch.finish()
            validate(done)
        if saves.due(step):
            watch.finish()
            total = sums.clone()
            runtime.sum_over_ranks([total])
            at["sums"] = total.tolist()
            save_last()
            saves.done()
    watch.finish()
    progress.close()
    if at["validated"] != at["steps"]:
        validate(1.0)
    at["sums"] = sums.tolist()
    save_last()
    saves.close()
    log.close()
    print(f"{output}: validation loss {at['best']['valid_loss']:.4f}")


if __name__ == "__main__":
    runtime.run(main, ARGS, memory="lower --max-tokens, or --max-length")
