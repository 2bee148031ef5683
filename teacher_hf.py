"""Teachers of every other family: any model that `transformers` builds for sequence classification.

    teacher, report = load_checkpoint("answerdotai/ModernBERT-base", ["0", "1"], 128)      # of teacher.py
    teacher = Teacher.load("teacher/teacher.pt")                                           # the same

teacher.py comes here where its own families end. The package (optional) reads a published folder: config,
weights, and the tokenizer, which it converts if there is only a SentencePiece model. teacher.pt then holds
the config as a plain dict, the weights and the tokenizer's JSON. Code that a folder brings along is never
run, and of the package's classes only those of its own table are built.
Shapes: B batch, T tokens, C classes, E embedding size.
"""

import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, processors
from torch import nn

from data.batches import largest_id
from runtime import HALVES, UserError, finite
from teacher import Teacher, read_weights, unfit_head, weight_file

INSTALL = 'pip install "transformers[sentencepiece]"'
# Settings that would fetch or run code, or say how weights were stored; they are left out.
UNWANTED = re.compile(r"auto_map|_?(attn|experts)_impl|kernel|fusion|quantization|(torch_)?dtype|"
                      r"_?name_or_path|transformers_weights|distributed|device_map|_commit_hash|tp_plan")
LONGEST = 2**20  # tokens of a row, where neither model nor tokenizer has a limit
PROBES = ["가 나!", "A  b."], ["다", "c"]


@dataclass
class PackageConfig:
    """What determines the arithmetic of a teacher of the package."""

    family: str  # model_type
    num_labels: int
    hidden_size: int
    max_positions: int  # the longest row in tokens, special tokens included
    pad_id: int
    blank_id: int
    segments: bool  # the model reads token_type_ids
    settings: dict  # the package's config
    thresholds: list | None = None  # these three as in TeacherConfig
    mean: float | None = None
    deviation: float | None = None


class PackageTeacher(Teacher):
    """A model of the package with its tokenizer and the names of its outputs, behind the calls of Teacher."""

    def __init__(self, model: nn.Module, config: PackageConfig, tokenizer: Tokenizer, label_names: list[str],
                 max_length: int, task: str):
        nn.Module.__init__(self)
        size, rows = 1 + largest_id(tokenizer), model.get_input_embeddings().weight.size(0)
        if max(size, config.pad_id + 1) > rows:
            raise UserError(f"the tokenizer has {size} tokens, but the model embeds {rows}; they do not "
                            f"belong together")
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.label_names, self.task = label_names, task
        self.max_length = min(max_length, config.max_positions)
        # The summary of XLNet takes the last column of a batch, so its rows have to end there.
        self.left = getattr(model.config, "summary_type", None) == "last"
        self.last_type = tokenizer.encode("가").type_ids[-1]  # XLNet's last token has a segment of its own

    def forward(self, input_ids, lengths, second=None):
        """input_ids (B, T) with padding on the right, lengths (B,), second (B,) or None -> logits (B, C)."""
        B, T = input_ids.shape
        if self.model.config.is_encoder_decoder:  # the package wants rows with equal numbers of end tokens
            ends = (input_ids == self.model.config.eos_token_id).sum(1)
            if len(numbers := ends.unique()) > 1:
                groups = [(ends == number).nonzero()[:, 0] for number in numbers]
                parts = [self(input_ids[rows], lengths[rows], None if second is None else second[rows])
                         for rows in groups]
                return torch.cat(parts)[torch.cat(groups).argsort()]
        columns = torch.arange(T, device=input_ids.device) - self.left * (T - lengths[:, None])  # (B or 1, T)
        real = (columns >= 0) & (columns < lengths[:, None])  # (B, T)
        ids = input_ids.gather(1, columns.clamp(min=0).expand(B, T)) if self.left else input_ids
        given = {"input_ids": ids.masked_fill(~real, self.config.pad_id), "attention_mask": real.long()}
        if self.config.segments:
            types = torch.zeros_like(ids)
            if second is not None:  # encode() counted the last token's type too
                types = (columns >= second[:, None] + max(self.last_type - 1, 0)).long()
            given["token_type_ids"] = types.masked_fill(columns == lengths[:, None] - 1, self.last_type) \
                if self.last_type else types
        if hasattr(self.model.base_model, "set_attention_type"):  # a short batch changes BigBird's for good
            self.model.base_model.set_attention_type(self.model.config.attention_type)
        return self.in_units(self.model(**given).logits)

    @property
    def word_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    @property
    def reads(self) -> dict:
        return {"max_length": self.max_length, "pad_id": self.config.pad_id, "blank_id": self.config.blank_id,
                "segments": self.config.segments}

    def depths(self) -> dict[str, int]:
        """As Teacher.depths, by names: a parameter is of a numbered layer, of embeddings or what else comes
        before all layers, or of what follows them. A decoder's layers are above the encoder's.
        """
        found, layers = {}, {}
        for name, _ in self.named_parameters():
            inside = name.startswith(f"model.{self.model.base_model_prefix}.")
            layer = re.match(r".*?\.\d+\.", name) if inside else None
            embeds = inside and (not layers or "emb" in name)
            found[name] = layers.setdefault(layer[0], len(layers) + 1) if layer else 0 if embeds else -1
        return {name: len(layers) + 1 if depth < 0 else depth for name, depth in found.items()}

    @classmethod
    def of_weights(cls, config: dict, weights: dict, tokenizer, label_names, max_length: int, task: str):
        config = PackageConfig(**config)
        settings = package_config(config.settings, "its config")
        kind = package().MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(settings)]
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        with torch.device("meta"):  # only shapes: a config cannot claim memory that no weights fill
            shapes = {name: tensor.shape for name, tensor in kind(settings).state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in weights.items()}:
            raise ValueError("its weights do not fit its config")
        model = kind.from_pretrained(None, config=settings, state_dict=weights, torch_dtype=torch.float32)
        return cls(model, config, tokenizer, label_names, max_length, task)


def package(what: str = "this model"):
    """The package, silent; a UserError if it is not installed, for `what`."""
    try:
        import transformers
    except ImportError:
        raise UserError(f"{what} needs the package transformers: {INSTALL}") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def package_config(settings: dict, where):
    """The package's config of a dict, of which UNWANTED is left out. UserError for unknown models."""
    def wanted(value):
        return {key: wanted(each) for key, each in value.items() if not UNWANTED.match(key)} \
            if isinstance(value, dict) else value

    kind = str(settings.get("model_type"))
    known = package(f"{where}: model_type is {kind!r}, which").CONFIG_MAPPING
    if settings.get("quantization_config"):
        raise UserError(f"{where}: the weights are quantised; get the model in float16, bfloat16 or float32")
    if kind not in known or known[kind] not in package().MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        what = ("needs code of its own (auto_map), which is never run" if "auto_map" in settings else
                f"transformers {package().__version__} does not know it" if kind not in known else
                "transformers has no classifier of it")
        raise UserError(f"{where}: model_type is {kind!r}; {what}. Any model can teach through its logits: "
                        f"save them as an (N, C) tensor")
    try:
        config = known[kind].from_dict(wanted(settings))
    except Exception as error:  # the package's own errors are of many kinds
        raise UserError(f"{where}: transformers cannot read it ({_shortly(error)})") from None
    if hasattr(config, "use_cache"):
        config.use_cache = False  # of what came before: nothing does
    return config


def read_folder(folder: Path, settings: dict, published: list[str], label_names: list[str], max_length: int,
                task: str, unit: dict, mapped: bool = False) -> tuple[PackageTeacher, list[str]]:
    """What load_checkpoint does, of a folder of another family. `unit`: mean and deviation of the scores."""
    path = folder / "config.json"
    config = package_config(settings, path)
    weight_file(folder)  # a UserError if there is none
    tensors = read_weights(folder)[1].values() if mapped else ()
    stored = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    dtype = stored.pop() if len(stored) == 1 and stored < {*HALVES} else torch.float32
    tokenizer, lines, wrapped = read_tokenizer(folder, config)
    text = config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = next(i for i in (wrapped.pad_token_id, wrapped.eos_token_id, 0) if i is not None)
    try:
        model, info = package().AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True,
            torch_dtype=dtype, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the package's own errors are of many kinds
        raise UserError(f"{folder}: transformers cannot read the model ({_shortly(error)})") from None
    if bad := [name for name, value in model.named_parameters() if not finite(value, mapped)]:
        raise UserError(f"{folder}: tensor {bad[0]} does not hold finite numbers; get the file again")
    fresh = {*info["missing_keys"]}  # a mismatch is a name, since transformers 5 with two shapes
    fresh |= {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}

    # The last layer of the head, which the package takes from config.json, is replaced if it does not fit.
    inside = f"{model.base_model_prefix}."
    heads = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)
             and module.out_features == model.config.num_labels and not name.startswith(inside)]
    if not heads:
        raise UserError(f"{path}: the classifier of {config.model_type} has no linear layer at its end")
    out, unfit = model.get_submodule(heads[-1]), ""
    trained = f"{heads[-1]}.weight" not in fresh
    if label_names and trained:
        unfit = unfit_head(settings, published, out.weight, label_names, task)
    if unfit or not trained:
        new = nn.Linear(out.in_features, len(label_names) or 1, bias=out.bias is not None)
        nn.init.normal_(new.weight, std=getattr(config, "initializer_range", 0.02))
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        parent, _, name = heads[-1].rpartition(".")
        setattr(model.get_submodule(parent), name, new)
        fresh |= {f"{heads[-1]}.{each}" for each, _ in new.named_parameters()}
        model.config.num_labels = new.out_features
    elif unit["deviation"] is not None:
        unit = {"mean": 0.0, "deviation": 1.0}  # a published head gives scores as they are

    model.config.torch_dtype = torch.float32  # what the model is, wherever its weights still are
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    skipped = max((1 + table.padding_idx for table in tables  # positions start after it, as in RoBERTa
                   if getattr(table, "padding_idx", None) is not None), default=0)
    positions = getattr(text, "max_position_embeddings", None) or 0
    blank = next(i for i in (wrapped.unk_token_id, wrapped.eos_token_id, text.pad_token_id) if i is not None)
    takes = inspect.signature(model.forward).parameters
    teacher = PackageTeacher(model, PackageConfig(
        config.model_type, model.config.num_labels, text.hidden_size,
        min(int(limit) for limit in (positions - skipped, wrapped.model_max_length, LONGEST) if limit > 0),
        text.pad_token_id, blank,
        "token_type_ids" in wrapped.model_input_names and "token_type_ids" in takes,
        json.loads(json.dumps(model.config.to_dict())), **unit), tokenizer, label_names, max_length, task)
    top = max((depths := teacher.depths()).values())
    if lost := sorted(name for name in fresh if depths.get(f"model.{name}", top) < top):
        raise UserError(f"{folder}: tensor {lost[0]} is missing, or of another shape than config.json says")
    unused = sorted(info["unexpected_keys"])
    read = len({*model.state_dict()} - fresh)
    return teacher, [
        f"{folder}: {read} tensors read by transformers {package().__version__}, {len(unused)} not used, "
        f"{len(fresh)} started fresh", *lines, *[unfit] * bool(unfit),
        *[f"not used: {', '.join(unused)}"] * bool(unused),
        *[f"starts fresh: {', '.join(sorted(fresh))}"] * bool(fresh)]


def read_tokenizer(folder: Path, config) -> tuple:
    """(tokenizer, lines of the report, the package's wrapper around it) of a folder. Raises UserError."""
    try:
        wrapped = package().AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                                          trust_remote_code=False)
        inner = wrapped.backend_tokenizer
        tokenizer = Tokenizer.from_str(inner.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        same = all(tokenizer.encode(*row).ids == wrapped(*row).input_ids
                   for row in [*([text] for text in PROBES[0]), *zip(*PROBES, strict=True)])
    except Exception as error:  # the package's own errors are of many kinds
        raise UserError(f"{folder}: transformers cannot read the tokenizer, or only by Python code "
                        f"({_shortly(error)}); if a package is missing: {INSTALL}") from None
    if not same:
        raise UserError(f"{folder}: its tokenizer prepares texts by Python code, which teacher.pt cannot "
                        f"hold; the model can teach through its logits: save them as an (N, C) tensor")
    lines = []
    if wrapped.truncation_side != "right":
        lines.append("long rows are cut on the right, though tokenizer_config.json says on the left")
    end = getattr(config, "eos_token_id", None)
    if config.is_encoder_decoder and tokenizer.encode("가").ids[-1] != end:
        name = tokenizer.id_to_token(end)
        after = processors.TemplateProcessing(single=f"$A {name}", pair=f"$A {name} $B:1 {name}:1",
                                              special_tokens=[(name, end)])
        before = [tokenizer.post_processor] if tokenizer.post_processor else []
        tokenizer.post_processor = processors.Sequence([*before, after])
        lines.append(f"its tokenizer puts no {name} at the end of a row, where the head looks: added")
    return tokenizer, lines, wrapped


def _shortly(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
