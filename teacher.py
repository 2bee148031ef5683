"""Transformer teachers in plain PyTorch: BERT, ELECTRA, RoBERTa and DistilBERT, one implementation for all.

    teacher = Teacher.load("teacher/teacher.pt")
    teacher.predict(["이 영화 진짜 재밌다"])            # (N, C) probabilities
    teacher, report = load_checkpoint("monologg/koelectra-small-v3-discriminator", ["0", "1"], 128)

The four families share the post-norm encoder of Vaswani et al. (2017, arXiv 1706.03762). They differ in
tensor names, in embeddings (ELECTRA projects them up, DistilBERT has no segments, RoBERTa's positions start
after the padding index) and in the head. tests/test_teacher.py compares logits with `transformers`.
Shapes: B batch, T tokens, D hidden size, E embedding size, A heads, C classes.
"""

import hashlib
import math
import os
import re
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

import runtime
from data import labels
from data.batches import encode, largest_id, logits_in_order
from data.published import load_tokenizer, read_json
from runtime import UserError

FORMAT = 1
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh} | dict.fromkeys(
    ("gelu_new", "gelu_pytorch_tanh"), partial(F.gelu, approximate="tanh"))
REQUIRED = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions")
# The activation between the two layers of the head, and whether dropout also precedes the first: BERT's
# pooler and classifier, ElectraClassificationHead, RobertaClassificationHead, DistilBERT's pre_classifier.
HEADS = {"bert": ("tanh", False), "electra": ("gelu", True), "roberta": ("tanh", True),
         "distilbert": ("relu", False)}
FAMILIES = {**dict(zip(HEADS, HEADS, strict=True)), "xlm-roberta": "roberta"}  # model_type -> family
# student.py, which must work alone, has the same; a task that is not here has those of a classification.
PROBABILITIES = defaultdict(lambda: lambda logits: logits.softmax(-1), multilabel=torch.sigmoid,
                            regression=lambda logits: logits)
PROBLEMS = {"multi_label_classification": "multilabel", "regression": "regression",
            "single_label_classification": "classification"}  # problem_type in config.json -> task
WEIGHTS = ("pytorch_model.bin", "model.safetensors")  # the first that a folder has is read


@dataclass
class TeacherConfig:
    """Everything that determines the shape and the arithmetic of a teacher."""

    family: str  # bert, electra, roberta or distilbert
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    embedding_size: int
    max_positions: int
    type_vocab_size: int  # 0: no segment embeddings
    num_labels: int
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    initializer_range: float = 0.02
    pad_id: int = 0
    position_offset: int = 0  # index of the first token's position embedding
    thresholds: list | None = None  # of the probability of each label, where a text has several
    mean: float | None = None  # of the scores that it was trained on: the head gives standardised ones
    deviation: float | None = None

    def __post_init__(self):
        for name, allowed in (("family", HEADS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for names, kinds, least, most in (
                ("vocab_size hidden_size num_heads intermediate_size embedding_size max_positions num_labels",
                 int, 1, 2**24),
                ("num_layers", int, 1, 1000), ("type_vocab_size pad_id position_offset", int, 0, 2**24),
                ("layer_norm_eps hidden_dropout attention_dropout head_dropout initializer_range",
                 (int, float), 0, 1)):
            for name in names.split():
                if not isinstance(value := getattr(self, name), kinds) or not least <= value <= most:
                    raise ValueError(f"{name} is {value!r}, must be a number in [{least}, {most}]")
        if (cuts := self.thresholds) is not None and not (
                isinstance(cuts, list) and len(cuts) == self.num_labels
                and all(isinstance(value, float) and 0 <= value <= 1 for value in cuts)):
            raise ValueError("thresholds must be one number in [0, 1] per label")
        if (unit := [self.mean, self.deviation]) != [None, None] and not (
                all(isinstance(value, float) and math.isfinite(value) for value in unit) and unit[1] > 0):
            raise ValueError("mean and deviation must be finite, the second positive")
        if self.pad_id >= self.vocab_size or self.position_offset >= self.max_positions:
            raise ValueError(f"pad_id {self.pad_id} or position_offset {self.position_offset} is too large")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_heads} heads")

    @property
    def max_length(self) -> int:
        """The longest row in tokens, special tokens included."""
        return self.max_positions - self.position_offset


# ---- the network -------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Self-attention and feed-forward, each followed by dropout, residual and LayerNorm."""

    def __init__(self, config: TeacherConfig):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_heads
        self.activation = ACTIVATIONS[config.activation]
        self.attention_dropout = config.attention_dropout
        self.query = nn.Linear(D, D)
        self.key_value = nn.Linear(D, 2 * D)  # one product instead of two
        self.attention_out = nn.Linear(D, D)
        self.attention_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.ffn_in = nn.Linear(D, config.intermediate_size)
        self.ffn_out = nn.Linear(config.intermediate_size, D)
        self.ffn_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x, bias, first_only: bool = False, keep=None):
        """x (B, T, D), bias (B, 1, 1, T) -> (B, T, D); with first_only (B, 1, D), the first token of each
        row; with keep (K,), numbers among all B · T tokens, (K, D).
        """
        B, T, D = x.shape
        queries = x[:, :1] if first_only else x
        q = self.query(queries).view(B, -1, self.num_heads, D // self.num_heads).transpose(1, 2)
        k, v = self.key_value(x).view(B, T, 2, self.num_heads, D // self.num_heads).unbind(2)
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, A, T, D / A)
        context = attention(q, k, v, bias, self.attention_dropout if self.training else 0.0)
        context = context.transpose(1, 2).reshape(B, -1, D)
        if keep is not None:
            queries, context = queries.flatten(0, 1)[keep], context.flatten(0, 1)[keep]  # (K, D)
        x = self.attention_norm(queries + self.dropout(self.attention_out(context)))
        return self.ffn_norm(x + self.dropout(self.ffn_out(self.activation(self.ffn_in(x)))))


def attention(q, k, v, bias, dropout: float):
    """softmax(q kᵀ / √d + bias) v.

    The CPU takes the plain form: the fused one's backward pass is half of a small encoder's training step.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout)
    scores = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(q.size(-1))) + bias
    return F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v


class Encoder(nn.Module):
    """Embeddings and layers of any of the four families."""

    def __init__(self, config: TeacherConfig):
        super().__init__()
        self.config = config
        E, D = config.embedding_size, config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, E)
        self.position_embeddings = nn.Embedding(config.max_positions, E)
        self.type_embeddings = nn.Embedding(config.type_vocab_size, E) if config.type_vocab_size else None
        self.embedding_norm = nn.LayerNorm(E, eps=config.layer_norm_eps)
        self.embedding_projection = nn.Linear(E, D) if E != D else None
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))

    def forward(self, input_ids, lengths, second=None, first_only: bool = False, keep=None):
        """input_ids (B, T), lengths (B,), second (B,): where text2 starts, or None -> (B, T, D).

        With first_only, (B, 1, D); with keep (K,), (K, D): the last layer computes only those tokens.
        """
        columns = torch.arange(input_ids.size(1), device=input_ids.device)  # (T,)
        x = self.word_embeddings(input_ids) + self.position_embeddings(columns + self.config.position_offset)
        if self.type_embeddings is not None:
            if second is None or self.config.type_vocab_size == 1:
                x = x + self.type_embeddings.weight[0]
            else:
                x = x + self.type_embeddings((columns >= second[:, None]).long())
        x = self.dropout(self.embedding_norm(x))  # (B, T, E)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)  # (B, T, D)
        padding = columns >= lengths[:, None]  # (B, T)
        bias = torch.zeros(padding.shape, device=x.device).masked_fill_(padding, -torch.inf)[:, None, None]
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            x = layer(x, bias, first_only and last, keep if last else None)
        return x


class Teacher(nn.Module):
    """An encoder with its family's head, its tokenizer, and the names of its outputs."""

    mapped = False  # its weights are still in their file: hold()

    def __init__(self, config: TeacherConfig, tokenizer: Tokenizer, label_names: list[str], max_length: int,
                 task: str = "classification"):
        super().__init__()
        size = 1 + largest_id(tokenizer)  # get_vocab_size() is too small if the ids have gaps
        if size > config.vocab_size:
            raise UserError(f"the tokenizer has {size} tokens, but the model embeds {config.vocab_size}; "
                            f"they do not belong together")
        self.config, self.tokenizer, self.label_names, self.task = config, tokenizer, label_names, task
        self.max_length = min(max_length, config.max_length)
        D = config.hidden_size
        self.encoder = Encoder(config)
        self.head_dense = nn.Linear(D, D)
        self.head_out = nn.Linear(D, config.num_labels)
        self.dropout = nn.Dropout(config.head_dropout)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, input_ids, lengths, second=None):
        """input_ids (B, T), lengths (B,), second (B,) or None -> logits (B, C)."""
        # The head reads only the first token, so the last layer computes no other.
        return self.classify(self.encoder(input_ids, lengths, second, first_only=True)[:, 0])

    def classify(self, x):
        """The head: first tokens x (B, D) -> logits (B, C)."""
        activation, dropout_first = HEADS[self.config.family]
        x = self.head_dense(self.dropout(x) if dropout_first else x)
        return self.in_units(self.head_out(self.dropout(ACTIVATIONS[activation](x))))

    def in_units(self, logits):
        """What the head gives, in the units of the file: (B, C) -> (B, C)."""
        if self.config.deviation is None:
            return logits
        return logits.float() * self.config.deviation + self.config.mean  # bf16 has few digits

    def names(self) -> dict[str, list[str]]:
        """The name of each parameter -> its names in a published checkpoint."""
        return published_names(self.config)

    def depths(self) -> dict[str, int]:
        """How far up each parameter is: 0 the embeddings, then the layers, then the head."""
        return {name: int(name.split(".")[2]) + 1 if name.startswith("encoder.layers.")
                else self.config.num_layers + 1 if name.startswith("head_") else 0
                for name, _ in self.named_parameters()}

    # ---- use -----------------------------------------------------------------------------------------------

    @property
    def word_embeddings(self) -> nn.Module:
        return self.encoder.word_embeddings

    @property
    def reads(self) -> dict:
        """How data.batches.encode must encode texts for this model."""
        names = filter(None, (getattr(self.tokenizer.model, "unk_token", None), "[UNK]", "<unk>"))
        unknown = next(filter(None, map(self.tokenizer.token_to_id, names)), 0)
        return {"max_length": self.max_length, "pad_id": self.config.pad_id, "blank_id": unknown,
                "segments": self.config.type_vocab_size > 1}

    def logits(self, texts, texts2=None, max_tokens: int = 16384, precision: str = "fp32") -> torch.Tensor:
        """Logits (N, C) of texts, or of pairs, in order, in float32 on the CPU."""
        if not texts:
            return torch.empty(0, self.config.num_labels)
        encoded = encode(self.tokenizer, texts, texts2, **self.reads)
        return logits_in_order(self, encoded.to(self.word_embeddings.weight.device), max_tokens, precision)

    def predict(self, texts, texts2=None, max_tokens: int = 16384, precision: str = "fp32") -> torch.Tensor:
        """Probabilities (N, C), or scores (N, 1); the same call as Student.predict."""
        return PROBABILITIES[self.task](self.logits(texts, texts2, max_tokens, precision))

    def embeddings_of(self, tokens: list[str]) -> torch.Tensor:
        """(N, E) word embeddings for the tokens of another tokenizer.

        A token that this vocabulary has gets its embedding, any other the mean over its sub-tokens.
        """
        vocab, weight = self.tokenizer.get_vocab(), self.word_embeddings.weight.detach().cpu()
        self.tokenizer.no_truncation()
        texts = [token.removeprefix("##").replace("▁", " ").strip() for token in tokens]
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        ids = [[vocab[token]] if token in vocab else encoding.ids
               for token, encoding in zip(tokens, encodings, strict=True)]
        return torch.stack([weight[i].mean(0) if i else weight.mean(0) for i in ids])

    def save(self, path, **extra) -> None:
        """Write teacher.pt; `extra` are further plain values such as scores."""
        self.tokenizer.no_truncation()
        runtime.save({
            "kind": "teacher", "format": FORMAT, "task": self.task,
            "config": {name: value for name, value in asdict(self.config).items() if value is not None},
            "weights": {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()},
            "tokenizer": self.tokenizer.to_str(), "label_names": self.label_names,
            "max_length": self.max_length, **extra}, path)

    def hold(self, precision: str) -> None:
        """Take weights that load() left in their file into memory for `precision`, tensor by tensor.

        In bf16 the matrices, which autocast would round before each product, are held in bf16; an embedding
        table, of which a batch reads a few rows, stays as it is stored. So logits keep their bits.
        """
        table, bf16 = self.word_embeddings.weight, precision == "bf16"
        readers = [module for module in self.modules()
                   if any(each is table for each in module.parameters(recurse=False))]
        stays = bf16 and all(type(module) is nn.Embedding for module in readers)  # others may compute with it
        for module in self.modules():
            matrix = bf16 and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")  # GPT-2's
            for parameter in module.parameters(recurse=False):
                if not (stays and parameter is table and parameter.dtype != torch.float32):
                    dtype = torch.bfloat16 if matrix else torch.float32
                    stored = parameter.data
                    # A copy even of float32: the file may be replaced while the script runs.
                    parameter.data = stored.to(dtype, copy=stored.dtype == torch.float32)
                    if self.mapped and parameter.data is not stored:
                        runtime.give_back(stored)
        self.mapped = False
        if table.dtype != torch.float32:
            for module in readers:
                module.register_forward_hook(lambda module, args, rows: rows.float())

    @classmethod
    def load(cls, path, device="cpu", mapped: bool = False) -> "Teacher":
        """Read teacher.pt: tensors and plain values only, never code; or a published classifier, as
        load_published. With `mapped`, weights stay in their file, as they are stored, until hold().
        Raises UserError.
        """
        if not Path(path).is_file() and not str(path).endswith(".pt"):
            return load_published(str(path), mapped).to(device).eval()
        artifact = runtime.load(path, "teacher", FORMAT, mmap=mapped)
        try:
            config, names, weights, max_length = (
                artifact[key] for key in ("config", "label_names", "weights", "max_length"))
            task = artifact.get("task", "classification")  # files from before there were tasks
            if not isinstance(names, list) or len(names) != config["num_labels"] \
                    or not all(isinstance(name, str) for name in [task, *names]) \
                    or max_length.__class__ is not int or max_length < 1:
                raise ValueError("its label names or its maximum length cannot be read")
            if not all(value.dtype == torch.float32 and runtime.finite(value, mapped)
                       for value in weights.values()):
                raise ValueError("its weights are not float32, or not finite")
            if "settings" in config:  # of a family that is not of this file
                from teacher_hf import PackageTeacher as cls
            tokenizer = Tokenizer.from_str(artifact["tokenizer"])
            teacher = cls.of_weights(config, weights, tokenizer, names, max_length, task)
            teacher.mapped = mapped
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # the tokenizers library raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: not a usable teacher ({reason}); make it again") from None
        return teacher.to(device).eval()

    @classmethod
    def of_weights(cls, config: dict, weights: dict, tokenizer, label_names, max_length: int, task: str):
        """A teacher of what teacher.pt holds. Raises ValueError and others."""
        config = TeacherConfig(**config)
        if config.num_layers > len(weights):
            raise ValueError("its weights do not fit its config")
        with torch.device("meta"):  # only shapes: a config cannot claim memory that no weights fill
            teacher = cls(config, tokenizer, label_names, max_length, task)
        teacher.load_state_dict(weights, assign=True)
        return teacher


# ---- published checkpoints ---------------------------------------------------------------------------------


def published_names(config: TeacherConfig) -> dict[str, list[str]]:
    """The name of each parameter here -> its names in the published format: two for key_value."""
    family, layer = config.family, f"{config.family}.encoder.layer"
    inner = {"query": "attention.self.query", "key_value": "attention.self.key attention.self.value",
             "attention_out": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
             "ffn_in": "intermediate.dense", "ffn_out": "output.dense", "ffn_norm": "output.LayerNorm"}
    dense, out = "classifier.dense", "classifier.out_proj"
    if family == "bert":
        dense, out = "bert.pooler.dense", "classifier"
    if family == "distilbert":
        layer, dense, out = "distilbert.transformer.layer", "pre_classifier", "classifier"
        inner = {"query": "attention.q_lin", "key_value": "attention.k_lin attention.v_lin",
                 "attention_out": "attention.out_lin", "attention_norm": "sa_layer_norm",
                 "ffn_in": "ffn.lin1", "ffn_out": "ffn.lin2", "ffn_norm": "output_layer_norm"}
    modules = {"encoder.embedding_norm": [f"{family}.embeddings.LayerNorm"],
               "head_dense": [dense], "head_out": [out]}
    if config.embedding_size != config.hidden_size:
        modules["encoder.embedding_projection"] = [f"{family}.embeddings_project"]
    for i in range(config.num_layers):
        for ours, theirs in inner.items():
            modules[f"encoder.layers.{i}.{ours}"] = [f"{layer}.{i}.{name}" for name in theirs.split()]
    names = {f"{ours}.{part}": [f"{name}.{part}" for name in theirs]
             for ours, theirs in modules.items() for part in ("weight", "bias")}
    for ours, theirs in (("word", "word"), ("position", "position"), ("type", "token_type")):
        if ours != "type" or config.type_vocab_size:
            names[f"encoder.{ours}_embeddings.weight"] = [f"{family}.embeddings.{theirs}_embeddings.weight"]
    return names


def setting_names(family: str) -> dict[str, str]:
    """TeacherConfig's name of each setting -> that in config.json."""
    names = {"vocab_size": "vocab_size", "max_positions": "max_position_embeddings",
             "initializer_range": "initializer_range", "pad_id": "pad_token_id"}
    if family == "distilbert":
        return names | {"hidden_size": "dim", "num_layers": "n_layers", "num_heads": "n_heads",
                        "intermediate_size": "hidden_dim", "activation": "activation",
                        "hidden_dropout": "dropout", "attention_dropout": "attention_dropout",
                        "head_dropout": "seq_classif_dropout"}
    if family == "electra":
        names["embedding_size"] = "embedding_size"
    return names | {"hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
                    "num_heads": "num_attention_heads", "intermediate_size": "intermediate_size",
                    "type_vocab_size": "type_vocab_size", "layer_norm_eps": "layer_norm_eps",
                    "activation": "hidden_act", "hidden_dropout": "hidden_dropout_prob",
                    "attention_dropout": "attention_probs_dropout_prob", "head_dropout": "classifier_dropout"}


def load_checkpoint(source: str, label_names: list[str], max_length: int, kind: type = Teacher,
                    task: str = "classification", mean: float | None = None,
                    deviation: float | None = None, mapped: bool = False) -> tuple[Teacher, list[str]]:
    """A Teacher (or a subclass, `kind`) with the weights of a published checkpoint; a report of each tensor.

    `source` is a folder, or a model id on the Hugging Face hub. A published head whose id2label lists the
    label names keeps its order of them, whatever their case, spaces and Unicode form; any other (LABEL_0, …)
    is taken to have label_names in their order, and the report says so. A missing head, or one of another
    number of classes or another task, starts from random weights (normal, std = initializer_range); the line
    of the report that says why begins with "the checkpoint's head". A published head of scores is kept, and
    gives them in units of `deviation` from `mean` inside. Of another family, teacher_hf.py reads the folder.
    Weights are float32, or as they are stored if they are `mapped`. Raises UserError if files do not fit.
    """
    folder = _folder_of(source)
    settings = read_json(folder / "config.json")
    published, contradiction = _head_labels(settings)
    order = [labels.alike(name, label_names) for name in published]
    if None not in order and sorted(order) == sorted(label_names):
        label_names = order
    names = label_names if label_names and deviation is None else None  # that a published head takes over
    family = settings.get("model_type")
    if kind is Teacher and isinstance(family, str) and family not in FAMILIES:
        from teacher_hf import read_folder

        teacher, report = read_folder(folder, settings, published, label_names, max_length, task,
                                      {"mean": mean, "deviation": deviation}, mapped)
        return teacher, report + _told(teacher, names, published, contradiction, report, max_length)
    config = _config(settings, len(label_names) or 1, folder / "config.json")
    config.mean, config.deviation = mean, deviation
    if family in HEADS or (folder / "tokenizer.json").exists():
        tokenizer = load_tokenizer(folder, family)
    else:  # a SentencePiece model that the package converts
        from teacher_hf import package_config, read_tokenizer

        tokenizer = read_tokenizer(folder, package_config(settings, folder / "config.json"))[0]
    file, tensors = read_weights(folder)
    tensors, outside, prefix = _without_prefix(tensors, config.family)
    if config.num_layers > len(tensors):
        raise UserError(f"{file}: holds only {len(tensors)} tensors for {config.num_layers} layers")
    try:
        with torch.device("meta"):  # only shapes: a config cannot claim memory that no tensors fill
            teacher = kind(config, tokenizer, label_names, max_length, task)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    head = teacher.names().get("head_out.weight", [""])[0]
    unfit = ""
    if label_names and head in tensors:
        unfit = unfit_head(settings, published, tensors[head], label_names, task)
    if unfit:
        outside |= {name: tensors.pop(name) for name in [*tensors]
                    if name.startswith(head.removesuffix("weight"))}
    weights, used, fresh = _match(teacher, tensors, file, mapped)
    if deviation is not None and "head_out.weight" not in fresh:
        unit = settings.get("target_deviation", 1.0), settings.get("target_mean", 0.0)
        if not all(isinstance(value, float) and math.isfinite(value) for value in unit):
            raise UserError(f"{folder / 'config.json'}: target_deviation and target_mean are {unit}, must be "
                            f"finite numbers")
        scale, shift = unit
        weights["head_out.weight"] = weights["head_out.weight"].float() * (scale / deviation)
        weights["head_out.bias"] = (weights["head_out.bias"].float() * scale + shift - mean) / deviation
    teacher.load_state_dict(weights, assign=True)
    unused = sorted({*tensors, *outside} - used)
    report = [f"{file}: {len(used)} tensors read, {len(unused)} not used, {len(fresh)} started fresh",
              prefix and f"the prefix {prefix} of the tensors' names is left out", unfit,
              unused and f"not used: {', '.join(unused)}", fresh and f"starts fresh: {', '.join(fresh)}"]
    report = [line for line in report if line]
    return teacher, report + _told(teacher, names, published, contradiction, report, max_length)


def load_published(source: str, mapped: bool = False) -> Teacher:
    """A published classifier, a folder or a hub id, as it is: task and labels from its config.json, its own
    head, rows of up to 512 tokens. Raises UserError if labels have no names, or the head is not trained.
    """
    folder = _folder_of(source)
    settings = read_json(folder / "config.json")
    names, contradiction = _head_labels(settings)
    task = PROBLEMS.get(str(settings.get("problem_type")), "regression" if len(names) == 1 else
                        "classification")
    unit = {"mean": 0.0, "deviation": 1.0} if task == "regression" else {}
    if not unit and all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        raise UserError(f"{source}: id2label in config.json does not name the labels; files that do: "
                        f"finetune_teacher.py --checkpoint {source} --epochs 0 --train … --valid …")
    if len(set(names)) < len(names):
        raise UserError(f"{source}: id2label in config.json has the same name twice: {names}")
    teacher, report = load_checkpoint(str(folder), ["score"] if unit else names, 512, task=task,
                                      mapped=mapped, **unit)
    teacher.mapped = mapped
    if fresh := [line for line in report if line.startswith(("the checkpoint's head", "starts fresh"))]:
        raise UserError(f"{source}: has no trained head for {task} ({fresh[0]}); train one: "
                        f"finetune_teacher.py --checkpoint {source} --train … --valid …")
    if contradiction:
        runtime.warn(f"{source}: {contradiction}")
    return teacher


def _folder_of(source: str) -> Path:
    """The folder with a published model: `source` itself, or that of an id in the hub's cache."""
    folder = Path(source) if os.path.isdir(source) else _from_hub(source)
    others = (folder / "adapter_config.json").exists() or any(folder.glob("*.gguf"))
    if others and not (folder / "config.json").exists():
        raise UserError(f"{folder}: no config.json in it{_remedy(folder)}")
    return folder


def _told(teacher: Teacher, names, published: list[str], contradiction: str, report: list[str],
          max_length: int) -> list[str]:
    """The last lines of a report: what config.json says of the labels, and the maximum length."""
    lines = [contradiction] if contradiction else []
    if names and published != names and not any(line.startswith("starts fresh") for line in report):
        lines.append(f"the head's classes {published or '(no names)'} are taken to be {names}, in this order")
    return lines + shortened(teacher, max_length)


def shortened(teacher: Teacher, max_length: int) -> list[str]:
    """A line that says so if the model has no positions for the length that was asked for."""
    return [f"--max-length {max_length} is more than the model has positions for: rows are cut at "
            f"{teacher.max_length} tokens"] * (teacher.max_length < max_length)


def _match(teacher: Teacher, tensors: dict, file: Path, mapped: bool) -> tuple[dict, set[str], list[str]]:
    """(weights of the teacher, names of the published tensors they are made of, names of fresh weights).

    Weights of a head start fresh if no tensor fits them; those of the encoder must all be there.
    """
    weights, used, fresh, names = {}, set(), [], teacher.names()
    for ours, tensor in teacher.state_dict().items():
        theirs = names[ours]
        shape = [tensor.size(0) // len(theirs), *tensor.shape[1:]]
        unfit = [name for name in theirs if name not in tensors or list(tensors[name].shape) != shape]
        if not unfit:
            parts = [tensors[name] for name in theirs]
            weights[ours] = parts[0] if mapped and not parts[1:] else torch.cat(parts)
            if not mapped or weights[ours].dtype not in runtime.HALVES:
                weights[ours] = weights[ours].float()
            if not all(part.is_floating_point() for part in parts) or not runtime.finite(weights[ours]):
                raise UserError(f"{file}: tensor {' or '.join(theirs)} does not hold finite floating-point "
                                f"numbers; get the file again")
            used.update(theirs)
            for part in parts if mapped else ():
                runtime.give_back(part)
        elif not ours.startswith("encoder."):
            norm = "norm" in ours and ours.endswith("weight")
            weights[ours] = torch.full(tensor.shape, float(norm))
            if ours.endswith("weight") and not norm:
                weights[ours].normal_(std=teacher.config.initializer_range)
            fresh.append(ours)
        else:
            has = f"has shape {list(tensors[unfit[0]].shape)}" if unfit[0] in tensors else "is missing"
            raise UserError(f"{file}: tensor {unfit[0]} {has}; by config.json its shape is {shape}")
    return weights, used, fresh


def _head_labels(settings: dict) -> tuple[list[str], str]:
    """(labels of a published head in its order, or none; a line if config.json contradicts itself)."""
    found = []
    for key, way in (("id2label", 1), ("label2id", -1)):
        try:
            names = {int(i): str(name) for i, name in (pair[::way] for pair in settings[key].items())}
            found += [[names[i] for i in range(len(names))]] if names else []
        except (AttributeError, LookupError, TypeError, ValueError):  # absent, or not numbers from 0 on
            continue
    if found[1:] and found[0] != found[1]:
        return found[0], (f"config.json contradicts itself: id2label says {found[0]}, label2id says "
                          f"{found[1]}; id2label is used")
    return found[0] if found else [], ""


def unfit_head(settings: dict, published: list[str], out: torch.Tensor, label_names: list[str],
                task: str) -> str:
    """Why the published head, whose last layer is `out` (C, D), cannot be used; empty if it can."""
    kind = settings.get("problem_type")
    theirs = PROBLEMS.get(kind)
    if theirs is None:  # as transformers decides, which leaves open what several outputs are
        theirs = "regression" if len(out) == 1 else "classification" if task == "regression" else task
    if theirs != task:
        found = f"problem_type {kind} in config.json" if kind in PROBLEMS else \
            "it has one output" if len(out) == 1 else f"it has {len(out)} outputs"
        return f"the checkpoint's head is for {theirs} ({found}), and the task is {task}: it is not used"
    if len(out) != len(label_names):
        return (f"the checkpoint's head has {len(out)} classes {published or '(no names)'}, and the file has "
                f"{len(label_names)} labels {label_names}: it is not used")
    return ""


def _from_hub(source: str) -> Path:
    """The folder in the hub's cache that holds the files of a model id, downloaded if need be."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", source):
        what = "a file; give the folder that it is in" if os.path.isfile(source) else "no such folder"
        raise UserError(f"{source}: {what}")
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
              "vocab.txt", "tokenizer.json", "vocab.json", "merges.txt", "*.model", "adapter_config.json",
              *(f"{name}.index.json" for name in WEIGHTS)]
    try:
        folder = Path(snapshot_download(source, allow_patterns=[*wanted, "pytorch_model.bin"]))
        if not (folder / "pytorch_model.bin").exists():
            index = next((path for name in WEIGHTS if (path := folder / f"{name}.index.json").exists()), None)
            files = _shards(index) if index else ["model.safetensors"]
            folder = Path(snapshot_download(source, allow_patterns=[*wanted, *files]))
    except UserError:
        raise
    except Exception as error:  # the hub's client raises errors of its HTTP library, which varies by version
        raise UserError(f"{source}: not a local folder, and the download from the Hugging Face hub failed "
                        f"({type(error).__name__}); offline, pass a folder with config.json, vocab.txt and "
                        f"pytorch_model.bin, such as models/encoder") from None
    for file in folder.iterdir():
        _check_hash(file)
    return folder


def _check_hash(file: Path) -> None:
    """A UserError if a file in the hub's cache is not what the hub states.

    The cache names each file by a hash and never checks it: SHA-256 for large files, git's SHA-1 for others.
    """
    stated = file.resolve().name
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", stated):
        return
    git = hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    digest = git if len(stated) == 40 else hashlib.sha256()
    with open(file, "rb") as data:
        while chunk := data.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != stated:
        raise UserError(f"{file}: damaged (its hash is not the one that the hub states); delete "
                        f"{file.resolve()} and run again")


def _config(settings: dict, num_labels: int, path: Path) -> TeacherConfig:
    """config.json of any of the four families as a TeacherConfig."""
    settings = {name: value for name, value in settings.items() if value is not None}
    family = settings.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{path}: model_type is {family!r}; {', '.join(FAMILIES)} are read here")
    family = FAMILIES[family]
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{path}: only absolute position embeddings are supported")
    try:
        found = {ours: settings[theirs] for ours, theirs in setting_names(family).items()
                 if ours in REQUIRED or theirs in settings}
        found = {"embedding_size": found["hidden_size"], "pad_id": int(family == "roberta"),
                 "type_vocab_size": 0 if family == "distilbert" else 2,
                 "head_dropout": 0.2 if family == "distilbert" else found.get("hidden_dropout", 0.1)} | found
        if family == "roberta":
            found["position_offset"] = found["pad_id"] + 1
        return TeacherConfig(family=family, num_labels=num_labels, **found)
    except KeyError as error:
        raise UserError(f"{path}: no {error} in it") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def weight_file(folder: Path) -> Path:
    """The first of WEIGHTS that a folder has, or the index of its shards. Raises UserError."""
    for name in WEIGHTS:
        for file in (folder / name, folder / f"{name}.index.json"):
            if file.exists():
                return file
    raise UserError(f"{folder}: no {' or '.join(WEIGHTS)} in it{_remedy(folder)}")


def read_weights(folder: Path) -> tuple[Path, dict]:
    """(weight_file, its tensors by name, mapped into memory)."""
    file = weight_file(folder)
    if file.suffix == ".json":
        return file, {key: tensor for shard in _shards(file)
                      for key, tensor in _tensors(folder / shard).items()}
    return file, _tensors(file)


def _shards(index: Path) -> list[str]:
    """The names of the files among which an index divides the tensors."""
    files = read_json(index).get("weight_map")
    files = sorted({*files.values()}, key=str) if isinstance(files, dict) else []
    if not files or not all(isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name) for name in files):
        raise UserError(f"{index}: no weight_map of tensors to files beside it; get the file again")
    return files


def _remedy(folder: Path) -> str:
    """What to do about a folder without weights, from what else is in it."""
    names = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in names:
        return (", but an adapter (adapter_config.json): merge it into its base model first, with peft: "
                "AutoPeftModelForSequenceClassification.from_pretrained(…).merge_and_unload().save_pretrained(…)")
    if others := [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))
                  and not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))]:
        right = "model.safetensors" if others[0].endswith(".safetensors") else "pytorch_model.bin"
        which = "it" if len(others) == 1 else "the right one"
        return f", but {', '.join(others[:5])}: rename {which} to {right}"
    if quantised := [name for name in names if name.endswith(".gguf")]:
        return f", but {quantised[0]}: get the float weights that it was made of, in safetensors"
    if foreign := [name for name in names if name.endswith((".h5", ".msgpack")) or ".ckpt" in name]:
        return (f", but {foreign[0]}: convert it with transformers 4: AutoModelForSequenceClassification."
                f"from_pretrained(…, {'from_flax' if foreign[0].endswith('.msgpack') else 'from_tf'}=True)"
                f".save_pretrained(…)")
    return ""


def _tensors(file: Path) -> dict:
    """Tensors by name; a key state_dict around them becomes a prefix of their names."""
    if not file.name.endswith(".safetensors"):
        try:
            tensors = runtime.load_weights(file, mmap=True)
        except UserError as error:
            if "GLOBAL" not in str(error):  # what PyTorch says of a class that it would have to import
                raise
            raise UserError(f"{error}; it holds more than tensors, such as a whole model: where it was made, "
                            f"save model.save_pretrained(…), or torch.save(model.state_dict(), …)") from None
        if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
            tensors = {f"state_dict.{name}": tensor for name, tensor in tensors["state_dict"].items()}
        if not isinstance(tensors, dict) or not all(
                isinstance(name, str) and torch.is_tensor(value) for name, value in tensors.items()):
            raise UserError(f"{file}: not a dict of tensors")
        return tensors
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{file}: needs one more package: pip install safetensors") from None
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot read ({' '.join(str(error).split())})") from None


def _without_prefix(tensors: dict, family: str) -> tuple[dict, dict, str]:
    """(the model's tensors by today's names, those outside of the model, the prefix left out).

    Today's name: LayerNorm.weight for TensorFlow's gamma, and the family's prefix. A wrapper's prefix
    (module., _orig_mod., model., …) is what comes before the one table of word embeddings.
    """
    table = "embeddings.word_embeddings.weight"
    tables = [name.removesuffix(table) for name in tensors if name.endswith(table)]
    prefixes = {name.removesuffix(f"{family}.") for name in tables}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    inside = {}
    for name in [name for name in tensors if name.startswith(prefix)]:
        new = name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
        new = new.replace("LayerNorm.beta", "LayerNorm.bias")
        bare = re.match(r"(embeddings|embeddings_project|encoder|transformer|pooler)\.", new)
        inside[f"{family}.{new}" if bare else new] = tensors.pop(name)
    return inside, tensors, prefix
