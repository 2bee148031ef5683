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
    arg("--hidden-dim", type=flags.count, default=256,
        help="width; the feed-forward layers are 4 times as wide (default: %(default)s)")
    arg("--heads", type=flags.count, help="attention heads; default: one per 64 of --hidden-dim")
    arg("--embedding-dim", type=flags.count, help="ELECTRA's may be narrower; default: --hidden-dim")
    arg("--family", default="electra", choices=["electra", "bert"], help="default: %(default)s")
    # method
    arg("--mask-rate", type=flags.number(float, 0, 1, "a number in (0, 1)", open_low=True, open_high=True),
        default=0.15, help="share of tokens to predict (default: %(default)s)")
    arg("--target-column", metavar="NAME",
        help="a second loss on this column of every file, predicted from the first token; cells may be empty")
    arg("--target", choices=["numeric", "class"],
        help="squared error of the standardised number, or cross-entropy; default: numeric if all values are "
        "numbers and there are more than two")
    arg("--target-weight", type=flags.not_negative, default=1.0,
        help="of the second loss (default: %(default)s)")
    # optimisation
    end = p.add_mutually_exclusive_group()
    end.add_argument("--epochs", type=flags.count, help="default: 1")
    end.add_argument("--hours", type=flags.positive, help="instead of --epochs, from the start of the script "
                     "on; the learning rate then follows the clock, so no two runs are equal")
    arg("--max-length", type=flags.length, default=128,
        help="tokens of a row; the rest is cut (default: %(default)s)")
    arg("--max-tokens", type=flags.count, default=8192,
        help="tokens per batch, padding included (default: %(default)s)")
    arg("--lr", type=flags.positive, default=5e-4,
        help="peak learning rate; 1e-4 suits encoders 768 wide (default: %(default)s)")
    flags.add_optimizer(arg, warmup=0.05)
    arg("--dropout", type=flags.share, default=0.0, help="0 suits a few epochs; config.json keeps the "
        "encoder's own rates for fine-tuning (default: %(default)s)")
    arg("--validate-every", type=flags.count, default=500, metavar="STEPS", help="default: %(default)s")
    arg("--seed", type=flags.natural, default=0, help="default: %(default)s")
    # machine
    flags.add_training(arg)
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
from data.batches import Encoded, Store, encode, token_batches, training_batches
from data.examples import read_again, survey
from data.logits import fingerprints
from runtime import RANK, WORLD, UserError
from tasks import Classification
from teacher import ACTIVATIONS, Teacher, TeacherConfig, bert_template, load_checkpoint, load_tokenizer

# Together with the contents of the files these decide the result: a continued run must have the same.
DECISIVE = ("epochs", "hours", "max_length", "max_tokens", "mask_rate", "target_weight", "lr", "warmup",
            "weight_decay", "clip", "dropout", "validate_every", "valid_rows", "seed", "deterministic")
WRITTEN = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")  # beside pytorch_model.bin
SPECIAL_TOKENS = {"pad_token": ("[PAD]", "<pad>"), "unk_token": ("[UNK]", "<unk>"),
                  "cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>"),
                  "mask_token": ("[MASK]", "<mask>")}


# ---- data --------------------------------------------------------------------------------------------------


class Target:
    """What the second loss predicts: one of the classes `names`, or a number (names = [its column]), or
    nothing (no names)."""

    def __init__(self, names: list[str]):
        self.names, self.mean, self.deviation = names, 0.0, 1.0
        self.index = {name: float(i) for i, name in enumerate(names)}

    @property
    def numeric(self) -> bool:
        return len(self.names) == 1

    def read(self, cell: str) -> float:
        """The class's number, or the number itself; NaN for an empty cell."""
        if not self.names or not cell:
            return math.nan
        return float(cell) if self.numeric else self.index[cell]

    def standardise(self, store: Store, device: torch.device, where: str) -> None:
        """Take mean and deviation of a number from the training rows that have one."""
        known = torch.cat([window.columns["target"].cpu().double() for window in store.windows(device)])
        known = known[~known.isnan()]
        self.mean, self.deviation = known.mean().item(), known.std(correction=0).item()
        if not self.deviation > 0:
            raise UserError(f"{where}: every row has the same value in column {self.names[0]}")


class Corpus:
    """The texts of all files. Without --valid every stride-th row is held out for validation."""

    def __init__(self, args):
        self.columns = args.text_column, args.text2_column, args.target_column
        self.files = [survey(file, *self.columns) for file in args.train]
        self.valid_files = [survey(args.valid, *self.columns)] if args.valid else []
        if len({file.pairs for file in self.files + self.valid_files}) > 1:
            raise UserError("some files have a column text2 and others do not; all or none must be pairs")
        self.where = " ".join(args.train)
        self.rows = sum(file.rows for file in self.files)
        self.stride = self.rows + 1 if args.valid else max(10, self.rows // args.valid_rows)

    def find_target(self, args) -> Target:
        """What --target-column holds. Raises UserError if its cells do not suit --target."""
        if not args.target_column:
            return Target([])
        training = set().union(*(file.answers for file in self.files))
        values = training.union(*(file.answers for file in self.valid_files))
        column = (f"{' '.join(file.path for file in self.files + self.valid_files)}: column "
                  f"{args.target_column}")
        if not values:
            raise UserError(f"{column} is empty in every row")
        try:
            numeric = all(math.isfinite(float(value)) for value in values)
        except ValueError:
            numeric = False
        if args.target == "numeric" and not numeric:
            raise UserError(f"{column} has values that are not finite numbers; correct them, or use "
                            f"--target class")
        if len(training) < 2:
            raise UserError(f"{self.where}: every row has the same value in column {args.target_column}")
        if args.target == "numeric" or (args.target is None and numeric and len(values) > 2):
            return Target([args.target_column])
        task = Classification.survey(training, self.where)
        if len(task.names) > 1000:
            raise UserError(f"{column} has {len(task.names):,} classes, more than 1,000; did you mean "
                            f"--target numeric?")
        for file in self.valid_files:
            file.refuse_other_answers(task, *self.columns)
        return Target(task.names)

    def encode(self, model: "MaskedLM", target: Target, folder: Path) -> tuple[Store, Store]:
        """The training and the validation rows, with "target" (N,), NaN where a row has none."""
        store, valid, first = Store(folder), Store(folder), 0
        progress = runtime.Progress("encode", self.rows + sum(file.rows for file in self.valid_files),
                                    "texts")
        for number, file in enumerate(self.files + self.valid_files):
            for part in read_again(file, *self.columns):
                held_out = (np.arange(first, first + len(part)) + 1) % self.stride == 0
                held_out |= number >= len(self.files)
                for to, chosen in ((store, ~held_out), (valid, held_out)):
                    if chosen.any():
                        to.append(self._encode(part.take(np.flatnonzero(chosen)), model, target, progress))
                first += len(part)
        progress.close()
        if not len(valid):
            raise UserError(f"{self.where}: {self.rows} rows are too few to hold one out; give 10, or "
                            f"--valid")
        return store, valid

    @staticmethod
    def _encode(part, model: "MaskedLM", target: Target, progress) -> Encoded:
        encoded = encode(model.tokenizer, part.texts, part.texts2, **model.reads, progress=progress)
        cells = part.answers if target.names else [""] * len(part)
        encoded.columns["target"] = torch.tensor([target.read(cell) for cell in cells])  # (N,) float32
        return encoded

    def name_row(self, number: int) -> tuple[str, int]:
        """The file of a training row, and its row in the file; held-out rows are not counted in `number`."""
        row = int(number) + int(number) // (self.stride - 1)
        for file in self.files:
            if row < file.rows:
                return file.path, row
            row -= file.rows
        raise IndexError(number)

    def what_was_read(self, target: Target) -> dict:
        """Fingerprints of the files, for made_by."""
        return {"the texts of --train": " ".join(file.fingerprint for file in self.files),
                "the texts of --valid": " ".join(file.fingerprint for file in self.valid_files),
                "the targets": " ".join(file.answer_fingerprint for file in self.files + self.valid_files)
                if target.names else "",
                "the names of the targets": str(target.names)}


# ---- the model ---------------------------------------------------------------------------------------------


class MaskedLM(Teacher):
    """A Teacher with its family's masked-language-model head, whose output embeddings are those of the input.

    Without label names it has no classification head.
    """

    def __init__(self, config: TeacherConfig, tokenizer, label_names: list[str], max_length: int,
                 task: str = "classification"):
        super().__init__(config, tokenizer, label_names, max_length, task)
        if not label_names:
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
        x = self.encoder(input_ids, lengths, second, keep=keep)  # (K, D), preceded by the B first tokens
        logits = None
        if self.label_names:
            logits, x = self.classify(x[:B]), x[B:]
        x = self.mlm_norm(self.mlm_activation(self.mlm_dense(x)))  # (K, E)
        return F.linear(x, self.encoder.word_embeddings.weight, self.mlm_bias), logits

    @staticmethod
    def names_of(config: TeacherConfig) -> dict[str, list[str]]:
        """As Teacher.names_of, with the masked-language-model head."""
        dense, norm, bias = {
            "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
                     "cls.predictions.bias"),
            "electra": ("generator_predictions.dense", "generator_predictions.LayerNorm",
                        "generator_lm_head.bias"),
            "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
            "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        }[config.family]
        return Teacher.names_of(config) | {"mlm_bias": [bias]} | {
            f"{ours}.{part}": [f"{theirs}.{part}"] for part in ("weight", "bias")
            for ours, theirs in (("mlm_dense", dense), ("mlm_norm", norm))}

    def save_published(self, folder, **extra) -> None:
        """Write the folder that load_checkpoint and `transformers` read; `extra` goes into config.json."""
        folder, config, tokenizer = Path(folder), self.config, self.tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        settings = published_settings(config) | extra
        if self.label_names:
            settings["id2label"] = {str(i): name for i, name in enumerate(self.label_names)}
            settings["label2id"] = {name: i for i, name in enumerate(self.label_names)}
        files = {"tokenizer.json": tokenizer.to_str(pretty=True),
                 "tokenizer_config.json": json.dumps(tokenizer_settings(self), ensure_ascii=False, indent=1),
                 "config.json": json.dumps(settings, ensure_ascii=False, indent=1)}
        if isinstance(tokenizer.model, WordPiece):
            vocab = tokenizer.get_vocab()
            files["vocab.txt"] = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.get))
        weights, names = {}, self.names_of(config)
        for ours, tensor in self.state_dict().items():
            parts = tensor.detach().cpu().chunk(len(names[ours]))
            weights |= {name: part.clone() for name, part in zip(names[ours], parts, strict=True)}
        files["pytorch_model.bin"] = weights
        runtime.save_together({folder / name: content for name, content in files.items()})


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


def published_settings(config: TeacherConfig) -> dict:
    """config.json: what teacher.py reads back, and the class of `transformers` that holds all tensors."""
    name = {"bert": "Bert", "electra": "Electra", "roberta": "Roberta", "distilbert": "DistilBert"}
    settings = {"architectures": [f"{name[config.family]}ForMaskedLM"], "model_type": config.family,
                "vocab_size": config.vocab_size, "max_position_embeddings": config.max_positions,
                "initializer_range": config.initializer_range, "pad_token_id": config.pad_id,
                "tie_word_embeddings": True}
    if config.family == "distilbert":
        return settings | {
            "dim": config.hidden_size, "n_layers": config.num_layers, "n_heads": config.num_heads,
            "hidden_dim": config.intermediate_size, "activation": config.activation,
            "dropout": config.hidden_dropout, "attention_dropout": config.attention_dropout,
            "seq_classif_dropout": config.head_dropout}
    if config.family == "electra":
        settings["embedding_size"] = config.embedding_size
    return settings | {
        "hidden_size": config.hidden_size, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "intermediate_size": config.intermediate_size,
        "type_vocab_size": config.type_vocab_size, "hidden_act": config.activation,
        "layer_norm_eps": config.layer_norm_eps, "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout, "classifier_dropout": config.head_dropout}


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


def read_model(args, target: Target) -> tuple[MaskedLM, Target]:
    """The model that the flags ask for, and the target, its classes in the order of a published head."""
    if Path(args.output_dir).resolve() == Path(args.checkpoint or args.tokenizer).resolve():
        raise UserError(f"--output-dir {args.output_dir}: the checkpoint or tokenizer is read there; choose "
                        f"another folder")
    if args.checkpoint:
        model, report = load_checkpoint(args.checkpoint, target.names, args.max_length, MaskedLM)
        for line in report:
            print(line)
        if len(target.names) > 1:
            target = Target(model.label_names)
    else:
        model = new_model(args, target.names)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = args.dropout
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = args.dropout
    return model, target


# ---- masks and losses --------------------------------------------------------------------------------------


class Masker:
    """Chooses at each call, with PyTorch's generator, the tokens to predict: `rate` of those that are neither
    special nor padding. 80 % of them are read as [MASK], 10 % as a random ordinary token, 10 % unchanged
    (Devlin et al. 2019, arXiv 1810.04805)."""

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
        """The batch with `read` (B, T), the ids to be read, and `predict` (B, T) bool, which to predict."""
        ids = batch["input_ids"]
        draw = torch.rand(ids.shape, device=ids.device)
        inside = torch.arange(ids.size(1), device=ids.device) < batch["lengths"][:, None]
        predict = (draw < self.rate) & inside & ~self.special[ids]
        random = self.ordinary[torch.randint(len(self.ordinary), ids.shape, device=ids.device)]
        read = torch.where(predict & (draw < 0.9 * self.rate), random, ids)
        read = read.masked_fill(predict & (draw < 0.8 * self.rate), self.mask_id)
        return batch | {"read": read, "predict": predict}


def draw(window, rows, masker: Masker, target: Target) -> dict:
    """A masked batch, its target standardised if it is a number."""
    batch = window.batch(rows)
    return masker(batch | {"target": (batch["target"] - target.mean) / target.deviation})


def losses(model: MaskedLM, batch: dict) -> torch.Tensor:
    """(2,) sums: the cross-entropy of the tokens to predict, the second loss of the rows with a target."""
    keep = batch["predict"].flatten().nonzero()[:, 0]  # (K,); only here does a step wait for a GPU
    # Only these K tokens are multiplied with the vocabulary: all would cost more than the encoder.
    scores, logits = model(batch["read"], batch["lengths"], batch.get("second"), keep=keep)
    masked = F.cross_entropy(scores.float(), batch["input_ids"].flatten()[keep], reduction="sum")
    if logits is None:
        return torch.stack([masked, torch.zeros_like(masked)])
    target, logits = batch["target"].nan_to_num(), logits.float()
    if logits.size(1) == 1:
        each = (logits[:, 0] - target).square()
    else:
        each = F.cross_entropy(logits, target.long(), reduction="none")
    return torch.stack([masked, each.where(~batch["target"].isnan(), 0).sum()])


def counts(batch: dict) -> torch.Tensor:
    """(2,) what losses() sums over: the number of tokens to predict, of rows with a target."""
    return torch.stack([batch["predict"].sum(), (~batch["target"].isnan()).sum()]).float()


@torch.inference_mode()
def evaluate(model: MaskedLM, valid: Store, masker: Masker, target: Target, run) -> torch.Tensor:
    """(4,) sums of losses() and counts() over the validation rows, with the same masks each time."""
    model.eval()
    total, number = torch.zeros(4, device=run.device), 0
    for window in valid.windows(run.device):
        for rows in token_batches(window.lengths, 4096):
            runtime.seed_everything(run.device, number)
            batch = draw(window, rows, masker, target)
            if number % WORLD == RANK:
                with runtime.autocast(run.device, run.precision):
                    total += torch.cat([losses(model, batch), counts(batch)])
            number += 1
    runtime.sum_over_ranks([total])
    model.train()
    return total


# ---- the run -----------------------------------------------------------------------------------------------


class Run(runtime.Run):
    """A run that validates every so many steps, whatever the epoch, and may end by the clock. Its last state
    counts as its best. `at` also has steps and tokens since the start."""

    def batches(self, store: Store, max_tokens: int):
        """(window, rows) from where the run is, one epoch after the other, without end."""
        self.rows, self.epoch_count = len(store), self.args.epochs
        at, total = self.at, self.rows * self.epoch_count if self.epoch_count else None
        self.progress = runtime.Progress("pretrain", total, "texts", at["epoch"] * self.rows + at["rows"])
        for epoch in itertools.count(at["epoch"]):
            every = training_batches(store, max_tokens, (self.seed, epoch), self.device)
            for step, batch in enumerate(itertools.islice(every, at["step"], None), at["step"]):
                yield batch
                if self._due(step):
                    self.save()
                    self._stop_if_told()
            at.update(epoch=epoch + 1, step=0, rows=0)

    def done(self, rows: int) -> float:
        """The share of the run that is done in the middle of a step of so many rows; with --hours, now."""
        if self.args.epochs:
            return super().done(rows)
        done = (time.monotonic() - self.began) / (3600 * self.args.hours)  # of rank 0, so that all agree
        return runtime.sum_of(torch.tensor(done * (RANK == 0), device=self.device)) if WORLD > 1 else done

    def save(self) -> None:
        self.at["seconds"] = time.monotonic() - self.began
        super().save()


def validate(run: Run, model: MaskedLM, valid: Store, masker: Masker, target: Target, done: float) -> None:
    """Score, log, and write the folder. The means of the training losses start over."""
    run.watch.finish()
    runtime.sum_over_ranks([run.sums])
    at, scores = run.at, {}
    for name, sums in (("train", run.sums), ("valid", evaluate(model, valid, masker, target, run))):
        if name == "valid" or at["steps"]:
            masked, second = (sums[:2] / sums[2:].clamp(min=1)).tolist()
            scores |= {f"{name}_loss": masked} | ({f"{name}_target_loss": second} if target.names else {})
    if not math.isfinite(scores["valid_loss"]):
        raise UserError(f"step {at['steps']}: the validation loss is not finite; lower --lr")
    extra = {"target_mean": target.mean, "target_deviation": target.deviation} if target.numeric else {}
    model.save_published(run.folder, made_by=run.made_by, **extra)
    run.sums.zero_()
    at["best"] = {**scores, "step": at["steps"]}
    seconds = time.monotonic() - run.began
    run.log.write(at["steps"], tokens=at["tokens"], **scores, seconds=round(seconds, 2))
    speed = f"{run.progress.counted / run.progress.seconds:,.0f} texts/s " if run.progress else ""
    print(f"step {at['steps']:,} ({min(done, 1):.0%}): " + ", ".join(
        f"{name.replace('_', ' ')} {score:.4f}" for name, score in scores.items())
        + f", {speed}{run.precision}, {runtime.clock(seconds)}", flush=True)


def train(args, run: Run, model: MaskedLM, store: Store, valid: Store, masker, target) -> None:
    """The loop, from where the run is to its end."""
    if not run.at["best"]:
        validate(run, model, valid, masker, target, 0.0)
    model.train()
    for window, rows in run.batches(store, args.max_tokens):
        done = run.done(len(rows))
        if done >= 1:
            break
        seed = args.seed, run.at["epoch"], run.at["step"]
        runtime.seed_everything(run.device, *seed)  # all ranks mask the whole batch alike,
        batch = draw(window, rows, masker, target)
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
            validate(run, model, valid, masker, target, done)
    run.progress.close()
    if run.at["best"]["step"] != run.at["steps"]:
        validate(run, model, valid, masker, target, 1.0)


def main(args):
    began = time.monotonic()
    device = runtime.connect(runtime.pick_device(args.device))
    runtime.seed_everything(device, args.seed)
    if args.deterministic:
        runtime.be_deterministic()
    precision = runtime.pick_precision(args.precision, device)
    folder = Path(args.output_dir)
    runtime.refuse_to_overwrite_inputs([*args.train, args.valid], [
        folder / name for name in ("pytorch_model.bin", "log.jsonl", "last.pt", "diverged.tsv", *WRITTEN)])

    corpus = Corpus(args)
    model, target = read_model(args, corpus.find_target(args))
    first, masker = fingerprints(model), Masker(model, args.mask_rate, device)
    read = corpus.what_was_read(target) | {"the weights at the start": first["weights"],
                                           "the tokenizer": first["tokenizer"]}
    made_by = runtime.made_by({name: getattr(args, name) for name in DECISIVE}, read)
    run = Run(folder, "pytorch_model.bin", made_by, args, device, precision, others=WRITTEN)
    if run.finished:
        run.say_finished()
        return
    store, valid = corpus.encode(model, target, folder)
    if target.numeric:
        target.standardise(store, device, corpus.where)
    model.to(device)
    print(f"{model.config.family}, {sum(p.numel() for p in model.parameters()):,} parameters; {len(store):,} "
          f"training rows of {store.tokens / len(store):.1f} tokens, {len(valid):,} for validation"
          + (f"; target {target.names[0] if target.numeric else target.names}" if target.names else ""))

    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == decayed], "peak": args.lr,
               "weight_decay": args.weight_decay * decayed} for decayed in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-6,
                                  fused=device.type in ("cpu", "cuda"))
    run.start(model, optimizer, args.seed, corpus.name_row, sums=4, steps=0, tokens=0)
    run.began = began - run.at["seconds"]  # the clock goes on from there
    with run:
        train(args, run, model, store, valid, masker, target)
    print(f"{folder}: validation loss {run.at['best']['valid_loss']:.4f}")


if __name__ == "__main__":
    runtime.main(main, ARGS, memory="lower --max-tokens or --max-length")
