"""Pretrain an encoder as a masked language model on plain texts: a new one, or a published one further.

    python extra/pretrain_teacher.py --train train.tsv unlabeled.tsv.gz --layers 6 --hidden-dim 256 \\
        --tokenizer tokenizer/vocab_size_12000                              # from random weights
    python extra/pretrain_teacher.py --train … --checkpoint koreview-electra --hours 2    # in your domain
    python extra/pretrain_teacher.py … --target-column stars --target numeric    # a second loss on a column
    torchrun --nproc_per_node 2 extra/pretrain_teacher.py …                 # several processes, one result

reads   files with a text column, a tokenizer or a published checkpoint
writes  OUTPUT_DIR/, a folder like a published checkpoint's (config.json, pytorch_model.bin, tokenizer.json),
        usable from the first validation on; in it also last.pt (to continue) and log.jsonl
again   the same command continues an interrupted run, and leaves a finished one alone
next    python finetune_teacher.py --checkpoint pretrained …

Shapes: B batch, T tokens, D hidden size, E embedding size, V vocabulary, C outputs of the second loss.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # data
    arg("--train", required=True, nargs="+", metavar="FILE", help="texts (.tsv .csv .jsonl, also .gz)")
    arg("--valid", metavar="FILE", help="validation texts; default: rows held out of --train")
    arg("--valid-rows", type=flags.count, default=5000, metavar="N",
        help="without --valid: hold out about this many rows, at most a tenth (default: %(default)s)")
    flags.add_columns(arg, answers=None)
    # artifacts
    arg("--checkpoint", metavar="DIR|ID", help="published BERT, ELECTRA, RoBERTa or DistilBERT weights")
    arg("--tokenizer", metavar="DIR", help="without --checkpoint: a folder written by train_tokenizer.py")
    flags.add_run(arg, folder="pretrained")
    # a new encoder
    arg("--layers", type=flags.count, metavar="N", help="without --checkpoint: a new encoder of N layers")
    arg("--hidden-dim", type=flags.count, default=256, help="feed-forward: 4 times it (default: %(default)s)")
    arg("--heads", type=flags.count, help="attention heads; default: one per 64 of --hidden-dim")
    arg("--embedding-dim", type=flags.count, help="ELECTRA's may be narrower; default: --hidden-dim")
    arg("--family", default="electra", choices=["electra", "bert"], help="default: %(default)s")
    # method
    arg("--mask-rate", type=flags.share, default=0.15, help="share to predict (default: %(default)s)")
    arg("--target-column", metavar="NAME",
        help="a second loss on this column of every file, predicted from the first token; cells may be empty")
    arg("--target", choices=["numeric", "class"], help="squared error of the standardised number, or "
        "cross-entropy; default: numeric if all values are numbers and there are more than two")
    arg("--target-weight", type=flags.not_negative, default=1.0, help="default: %(default)s")
    # optimisation
    end = p.add_mutually_exclusive_group()
    end.add_argument("--epochs", type=flags.count, help="default: 1")
    end.add_argument("--hours", type=flags.positive, help="instead of --epochs, from the start of the script "
                     "on; the learning rate then follows the clock, so no two runs are equal")
    arg("--max-length", type=flags.length, default=128, help="tokens of a row (default: %(default)s)")
    arg("--max-tokens", type=flags.count, default=8192, help="per batch, with padding (default: %(default)s)")
    arg("--lr", type=flags.positive, default=5e-4, help="peak; 768 wide: 1e-4 (default: %(default)s)")
    flags.add_optimizer(arg, warmup=0.05)
    arg("--dropout", type=flags.share, default=0.0, help="0 suits a few epochs; config.json keeps the "
        "encoder's own rates for fine-tuning (default: %(default)s)")
    arg("--validate-every", type=flags.count, default=500, metavar="STEPS", help="default: %(default)s")
    arg("--seed", type=flags.natural, default=0, help="default: %(default)s")
    # machine
    flags.add_training(arg)
    args = p.parse_args(argv)
    given = [value is not None for value in (args.checkpoint, args.layers, args.tokenizer)]
    if given not in ([True, False, False], [False, True, True]):
        p.error("give --checkpoint or --layers; --layers needs the --tokenizer of train_tokenizer.py")
    if args.target and not args.target_column:
        p.error("--target needs --target-column")
    args.epochs = args.epochs or (None if args.hours else 1)
    args.heads = args.heads or max(1, args.hidden_dim // 64)
    args.embedding_dim = args.embedding_dim or args.hidden_dim
    if args.family != "electra" and args.embedding_dim != args.hidden_dim:
        p.error("--embedding-dim is for --family electra")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import itertools
import json
import math
import re
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers.models import WordPiece
from torch import nn

import runtime
import teacher
from data import look
from data.batches import Store, encode, token_batches, training_batches
from data.examples import read_again, survey
from data.logits import fingerprints
from data.published import bert_template, load_tokenizer
from runtime import RANK, WORLD, UserError
from tasks import Classification
from teacher import ACTIVATIONS, Teacher, TeacherConfig, load_checkpoint

# Together with the contents of the files these decide the result: a continued run must have the same.
DECISIVE = ("epochs", "hours", "max_length", "max_tokens", "mask_rate", "target_weight", "lr", "warmup",
            "weight_decay", "clip", "dropout", "validate_every", "valid_rows", "seed", "deterministic")
WRITTEN = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")  # beside pytorch_model.bin
SPECIAL_TOKENS = {"pad_token": ("[PAD]", "<pad>"), "unk_token": ("[UNK]", "<unk>"),
                  "cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>"),
                  "mask_token": ("[MASK]", "<mask>")}


class Corpus:
    """The texts of all files. Without --valid every stride-th row is held out for validation.

    `names` are those of the second loss: of its classes, or of the column of numbers alone, or none.
    """

    def __init__(self, args):
        self.columns = args.text_column, args.text2_column, args.target_column or False
        paths = [*args.train, args.valid] if args.valid else args.train
        self.files, self.where = [survey(path, *self.columns) for path in paths], " ".join(paths)
        if len({file.pairs for file in self.files}) > 1:
            raise UserError("some files have a column text2 and others do not; all or none must be pairs")
        self.training = self.files[: len(args.train)]
        self.rows = sum(file.rows for file in self.training)
        self.stride = self.rows + 1 if args.valid else max(10, self.rows // args.valid_rows)
        self.names = self.find_names(args.target) if args.target_column else []

    def find_names(self, target: str | None) -> list[str]:
        """What --target-column holds. Raises UserError if its cells do not suit --target."""
        training, values = (set().union(*(file.answers for file in files))
                            for files in (self.training, self.files))
        column = f"{self.where}: column {self.columns[2]}"
        if len(training) < 2:
            raise UserError(f"{column} is empty, or has the same value in every row")
        try:
            numeric = all(math.isfinite(float(value)) for value in values)
        except ValueError:
            numeric = False
        target = target or ("numeric" if numeric and len(values) > 2 else "class")
        if target == "numeric" and not numeric:
            raise UserError(f"{column} has values that are not finite numbers; correct them, or give "
                            f"--target class")
        if target == "numeric":
            return [self.columns[2]]
        task = Classification.survey(training, self.where)
        if len(task.names) > 1000:
            raise UserError(f"{column} has more than 1,000 classes; did you mean --target numeric?")
        for file in self.files:
            file.refuse_other_answers(task, *self.columns)
        return task.names

    def encode(self, model: "MaskedLM", folder: Path) -> tuple[Store, Store]:
        """The training and the validation rows, with "target" (N,): a number, or that of a class, or NaN.

        The model gets mean and deviation of the training rows' numbers.
        """
        names, store, valid, targets = model.label_names, Store(folder), Store(folder), []
        value_of = float if model.numeric else {name: i for i, name in enumerate(names)}.get
        progress = runtime.Progress("encode", sum(file.rows for file in self.files), "texts")
        for part in itertools.chain.from_iterable(read_again(file, *self.columns) for file in self.files):
            row = progress.done + np.arange(len(part))
            held_out = ((row + 1) % self.stride == 0) | (row >= self.rows)
            for to, chosen in ((store, ~held_out), (valid, held_out)):
                if chosen.any():
                    rows = part.take(np.flatnonzero(chosen))
                    encoded = encode(model.tokenizer, rows.texts, rows.texts2, **model.reads)
                    cells = rows.answers if names else [""] * len(rows)
                    encoded.columns["target"] = torch.tensor(
                        [value_of(cell) if cell else math.nan for cell in cells], dtype=torch.float32)
                    to.append(encoded)
                    targets += [encoded.columns["target"]] * (to is store)
            progress.add(len(part))
        progress.close()
        if not len(valid):
            raise UserError(f"{self.where}: {self.rows} rows are too few to hold one out; 10 would do, or "
                            f"give --valid")
        if model.numeric:
            known = torch.cat(targets).double()
            known = known[~known.isnan()]
            model.mean, model.deviation = known.mean().item(), known.std(correction=0).item()
            if not model.deviation > 0:
                raise UserError(f"{self.where}: column {names[0]} has the same value in every row")
        return store, valid

    def name_row(self, number: int) -> tuple[str, int]:
        """The file of a training row, and its row in the file; held-out rows are not counted in `number`."""
        row = int(number) + int(number) // (self.stride - 1)
        for file in self.files:
            if row < file.rows:
                return file.path, row
            row -= file.rows
        raise IndexError(number)


# ---- the model ---------------------------------------------------------------------------------------------


class MaskedLM(Teacher):
    """A Teacher with its family's masked-language-model head, whose output embeddings are those of the input.

    Without label names it has no classification head. With one name it predicts a number, which `mean` and
    `deviation` standardise.
    """

    def __init__(self, config: TeacherConfig, *others):
        super().__init__(config, *others)
        self.mean, self.deviation, self.numeric = 0.0, 1.0, len(self.label_names) == 1
        if not self.label_names:
            del self.head_dense, self.head_out
        E = config.embedding_size
        self.mlm_dense = nn.Linear(config.hidden_size, E)
        self.mlm_norm = nn.LayerNorm(E, eps=config.layer_norm_eps)
        self.mlm_bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.normal_(self.mlm_dense.weight, std=config.initializer_range)
        nn.init.zeros_(self.mlm_dense.bias)
        gelu = config.family in ("electra", "roberta")  # whatever the encoder's activation is
        self.mlm_activation = ACTIVATIONS["gelu" if gelu else config.activation]

    def forward(self, input_ids, lengths, second=None, *, keep):
        """As Teacher.forward, with keep (K,), numbers among all B · T tokens.

        Returns the kept tokens' scores (K, V) over the vocabulary, and the logits (B, C), or None without
        a classification head.
        """
        B, T = input_ids.shape
        if self.label_names:
            keep = torch.cat([torch.arange(0, B * T, T, device=keep.device), keep])
        x, logits = self.encoder(input_ids, lengths, second, keep=keep), None  # (K, D)
        if self.label_names:  # the first tokens come first
            logits, x = self.classify(x[:B]), x[B:]
        x = self.mlm_norm(self.mlm_activation(self.mlm_dense(x)))  # (K, E)
        return F.linear(x, self.encoder.word_embeddings.weight, self.mlm_bias), logits

    def names(self) -> dict[str, list[str]]:
        dense, norm, bias = {
            "bert": "cls.predictions.transform.dense cls.predictions.transform.LayerNorm "
                    "cls.predictions.bias",
            "electra": "generator_predictions.dense generator_predictions.LayerNorm generator_lm_head.bias",
            "roberta": "lm_head.dense lm_head.layer_norm lm_head.bias",
            "distilbert": "vocab_transform vocab_layer_norm vocab_projector.bias",
        }[self.config.family].split()
        return super().names() | {"mlm_bias": [bias]} | {
            f"{ours}.{part}": [f"{theirs}.{part}"] for part in ("weight", "bias")
            for ours, theirs in (("mlm_dense", dense), ("mlm_norm", norm))}

    def save_published(self, folder, **extra) -> None:
        """Write the folder that load_checkpoint and `transformers` read; `extra` goes into config.json."""
        tokenizer, family, names = self.tokenizer, self.config.family, self.names()
        tokenizer.no_padding()
        tokenizer.no_truncation()
        settings = {theirs: getattr(self.config, ours)
                    for ours, theirs in teacher.setting_names(family).items()}
        architecture = {"distilbert": "DistilBert"}.get(family, family.title())  # the class with all tensors
        settings |= {"architectures": [f"{architecture}ForMaskedLM"], "model_type": family,
                     "tie_word_embeddings": True, **extra}
        if self.label_names:
            settings["id2label"] = dict(enumerate(self.label_names))
            settings["label2id"] = {name: i for i, name in enumerate(self.label_names)}
        if self.numeric:
            settings |= {"problem_type": "regression", "target_mean": self.mean,
                         "target_deviation": self.deviation}
        files = {"tokenizer.json": tokenizer.to_str(pretty=True),
                 "tokenizer_config.json": json.dumps(tokenizer_settings(self), ensure_ascii=False, indent=1),
                 "config.json": json.dumps(settings, ensure_ascii=False, indent=1)}
        if isinstance(tokenizer.model, WordPiece):
            vocab = tokenizer.get_vocab()
            files["vocab.txt"] = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.get))
        files["pytorch_model.bin"] = {
            name: part.clone() for ours, tensor in self.state_dict().items()
            for name, part in zip(names[ours], tensor.cpu().chunk(len(names[ours])), strict=True)}
        runtime.save_together({Path(folder) / name: content for name, content in files.items()})


def tokenizer_settings(model: MaskedLM) -> dict:
    """tokenizer_config.json, from which readers of vocab.txt also take how to normalise."""
    text = model.tokenizer.to_str()
    accents = re.search(r'"strip_accents":(true|false)', text)  # absent: as lowercase decides
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.max_length,
                "do_lower_case": '"lowercase":true' in text,
                "strip_accents": json.loads(accents[1]) if accents else None,
                "model_input_names": ["input_ids", "attention_mask"]
                + ["token_type_ids"] * (model.config.type_vocab_size > 1)}
    return settings | {name: token for name, tokens in SPECIAL_TOKENS.items() for token in tokens
                       if model.tokenizer.token_to_id(token) is not None}


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


def read_model(args, names: list[str]) -> MaskedLM:
    """The model that the flags ask for; the order of its classes is that of a published head."""
    if Path(args.output_dir).resolve() == Path(args.checkpoint or args.tokenizer).resolve():
        raise UserError(f"--output-dir {args.output_dir}: the checkpoint or tokenizer is read there; choose "
                        f"another folder")
    if args.checkpoint:
        task = "regression" if len(names) == 1 else "classification"  # one name is that of a number
        model, report = load_checkpoint(args.checkpoint, names, args.max_length, MaskedLM, task)
        print("\n".join(report))
    else:
        model = new_model(args, names)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = args.dropout
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = args.dropout
    return model


class Masker:
    """Chooses at each call, with PyTorch's generator, the tokens to predict: `rate` of those that are neither
    special nor padding. 80 % of them are read as [MASK], 10 % as a random ordinary token, 10 % unchanged
    (Devlin et al. 2019, arXiv 1810.04805)."""

    def __init__(self, model: MaskedLM, rate: float, device: torch.device):
        ids = map(model.tokenizer.token_to_id, SPECIAL_TOKENS["mask_token"])
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
        """The batch with `read` (B, T), the ids to be read, and `predict` (B, T) bool, which to predict."""
        ids = batch["input_ids"]
        draw = torch.rand(ids.shape, device=ids.device)
        inside = torch.arange(ids.size(1), device=ids.device) < batch["lengths"][:, None]
        predict = (draw < self.rate) & inside & ~self.special[ids]
        random = self.ordinary[torch.randint(len(self.ordinary), ids.shape, device=ids.device)]
        read = torch.where(predict & (draw < 0.9 * self.rate), random, ids)
        read = read.masked_fill(predict & (draw < 0.8 * self.rate), self.mask_id)
        return batch | {"read": read, "predict": predict}


def losses(model: MaskedLM, batch: dict) -> torch.Tensor:
    """(2,) sums: the cross-entropy of the tokens to predict, the second loss of the rows with a target."""
    keep = batch["predict"].flatten().nonzero()[:, 0]  # (K,); only here does a step wait for a GPU
    # Only these K tokens are multiplied with the vocabulary: all would cost more than the encoder.
    scores, logits = model(batch["read"], batch["lengths"], batch.get("second"), keep=keep)
    masked = F.cross_entropy(scores.float(), batch["input_ids"].flatten()[keep], reduction="sum")
    if logits is None:
        return torch.stack([masked, torch.zeros_like(masked)])
    target, logits = (batch["target"] - model.mean) / model.deviation, logits.float()
    if model.numeric:
        each = (logits[:, 0] - target.nan_to_num()).square()
    else:
        each = F.cross_entropy(logits, target.nan_to_num().long(), reduction="none")
    return torch.stack([masked, each.where(~target.isnan(), 0).sum()])


def counts(batch: dict) -> torch.Tensor:
    """(2,) what losses() sums over: the number of tokens to predict, of rows with a target."""
    return torch.stack([batch["predict"].sum(), (~batch["target"].isnan()).sum()]).float()


# ---- the run -----------------------------------------------------------------------------------------------


class Run(runtime.Run):
    """A run that may also end by the clock. It validates every so many steps, whatever the epoch, and its
    last state counts as its best. `at` also has steps and tokens since the start."""

    def batches(self, store: Store, max_tokens: int):
        """(window, rows) from where the run is, one epoch after the other; by the clock without end."""
        self.epoch_count = self.args.epochs or math.inf
        for epoch in itertools.islice(itertools.count(), self.at["epoch"], self.args.epochs):
            batches = training_batches(store, max_tokens, (self.seed, epoch), self.device)
            yield from self.steps(batches, len(store))
            self.at.update(epoch=epoch + 1, step=0, rows=0)

    def fraction_done(self, rows: int) -> float:
        if self.args.epochs:
            return super().fraction_done(rows)
        done = (time.monotonic() - self.began) / (3600 * self.args.hours)  # of rank 0, so that all agree
        return runtime.sum_of(torch.tensor(done * (RANK == 0), device=self.device))


def evaluate(run: Run, valid: Store, masker: Masker) -> torch.Tensor:
    """(4,) sums of losses() and counts() over the validation rows, with the same masks each time."""
    run.model.eval()
    total = torch.zeros(4, device=run.device)
    batches = ((window, rows) for window in valid.windows(run.device)
               for rows in token_batches(window.lengths, 4096))
    for number, (window, rows) in enumerate(batches):
        runtime.seed_everything(run.device, number)
        batch = masker(window.batch(rows))
        if number % WORLD == RANK:
            with torch.inference_mode(), runtime.autocast(run.device, run.precision):
                total += torch.cat([losses(run.model, batch), counts(batch)])
    runtime.sum_over_ranks([total])
    run.model.train()
    return total


def validate(run: Run, valid: Store, masker: Masker, done: float) -> None:
    """Score, log, and write the folder. The means of the training losses start over."""
    run.watch.finish()
    runtime.sum_over_ranks([run.sums])
    at, scores = run.at, {}
    for name, sums in (("train", run.sums), ("valid", evaluate(run, valid, masker))):
        masked, second = (sums[:2] / sums[2:].clamp(min=1)).tolist()
        if name == "valid" or at["steps"]:
            scores |= {f"{name}_loss": masked}
            scores |= {f"{name}_target_loss": second} if run.model.label_names else {}
    if not math.isfinite(scores["valid_loss"]):
        raise UserError(f"step {at['steps']}: the validation loss is not finite; lower --lr")
    run.model.save_published(run.folder, made_by=run.made_by)
    run.sums.zero_()
    at["best"] = {**scores, "step": at["steps"]}
    seconds = time.monotonic() - run.began
    run.log.write(at["steps"], tokens=at["tokens"], **scores, seconds=round(seconds, 2))
    speed = f"{run.progress.counted / run.progress.seconds:,.0f} texts/s " if run.progress else ""
    print(f"step {at['steps']:,} ({min(done, 1):.0%}): " + ", ".join(
        f"{name.replace('_', ' ')} {score:.4f}" for name, score in scores.items())
        + f", {speed}{run.precision}, {runtime.clock(seconds)}", flush=True)


def train(args, run: Run, store: Store, valid: Store, masker: Masker) -> None:
    """The loop, from where the run is to its end."""
    model = run.model.train()
    if not run.at["best"]:
        validate(run, valid, masker, 0.0)
    run.at["seconds"] = time.monotonic() - run.began  # --hours also has what comes before the first step
    for window, rows in run.batches(store, args.max_tokens):
        done = run.fraction_done(len(rows))
        if done >= 1:
            run.progress.close()
            break
        seed = args.seed, run.at["epoch"], run.at["step"]
        runtime.seed_everything(run.device, *seed)  # all ranks mask the whole batch alike,
        batch = masker(window.batch(rows))
        number, both = counts(batch), torch.zeros(2, device=run.device)
        runtime.seed_everything(run.device, *seed, RANK)  # and each draws its own dropout
        if len(rows) > RANK:
            mine = {name: column[RANK::WORLD] for name, column in batch.items()}
            with runtime.autocast(run.device, run.precision):
                both = losses(model, mine)
            masked, second = both / number.clamp(min=1)
            (masked + args.target_weight * second).backward()
        run.add(*both, *(number * (RANK == 0)))
        runtime.sum_gradients(model.parameters())
        norm = nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        run.step(norm, window.numbers[rows], runtime.schedule(done, args.warmup))
        run.at["steps"] += 1
        run.at["tokens"] += int(window.lengths[rows].sum())
        if run.at["steps"] % args.validate_every == 0:
            validate(run, valid, masker, done)
    if run.at["best"]["step"] != run.at["steps"]:
        validate(run, valid, masker, 1.0)


def main(args):
    began = time.monotonic()
    device = runtime.connect(runtime.pick_device(args.device))
    runtime.seed_everything(device, args.seed)
    if args.deterministic:
        runtime.be_deterministic()
    folder = Path(args.output_dir)
    runtime.refuse_to_overwrite_inputs([*args.train, args.valid], [
        folder / name for name in ("pytorch_model.bin", "log.jsonl", "last.pt", "diverged.tsv", *WRITTEN)])

    corpus = Corpus(args)
    model = read_model(args, corpus.names)
    source = args.checkpoint or args.tokenizer
    print(look.tokenizers({source: (model.tokenizer, model.reads)}, corpus.training))
    first, masker = fingerprints(model), Masker(model, args.mask_rate, device)
    made_by = runtime.made_by({name: getattr(args, name) for name in DECISIVE}, {
        "the texts of --train": " ".join(file.fingerprint for file in corpus.training),
        "the texts of --valid": corpus.files[-1].fingerprint if args.valid else "",
        "the targets": " ".join(file.answer_fingerprint for file in corpus.files) if corpus.names else "",
        "the names of the targets": str(model.label_names),
        "the weights at the start": first["weights"], "the tokenizer": first["tokenizer"]})
    run = Run(folder, "pytorch_model.bin", made_by, args, device,
              runtime.pick_precision(args.precision, device), others=WRITTEN)
    if run.finished:
        run.say_finished("loss")
        return
    store, valid = corpus.encode(model, folder)
    model.to(device)
    print(f"{model.config.family}, {sum(p.numel() for p in model.parameters()):,} parameters; {len(store):,} "
          f"training rows of {store.tokens / len(store):.1f} tokens, {len(valid):,} for validation"
          + (f"; target {', '.join(model.label_names)}" if model.label_names else ""))

    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == decayed], "peak": args.lr,
               "weight_decay": args.weight_decay * decayed} for decayed in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-6,
                                  fused=device.type in ("cpu", "cuda"))
    run.start(model, optimizer, args.seed, corpus.name_row, sums=4, steps=0, tokens=0)
    run.began = began - run.at["seconds"]  # the clock goes on from there
    with run:
        train(args, run, store, valid, masker)
    print(f"{folder}: validation loss {run.at['best']['valid_loss']:.4f}")


if __name__ == "__main__":
    runtime.main(main, ARGS, memory="lower --max-tokens or --max-length")
