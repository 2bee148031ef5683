"""Classifiers to hold the students against, each from its own package: settings chosen on a validation file.

needs   pip install -r requirements-bench.txt
"""

import pickle
from pathlib import Path
from types import SimpleNamespace

import torch

from bench.common import peer
from data.examples import Examples
from evaluate import columns_of
from runtime import UserError


def baseline(setting: str, classify, names, numbers: int, save) -> SimpleNamespace:
    """What run_model asks of a model. classify(texts) gives (N, C) probabilities; `numbers`: how many
    parameters; save(path)."""
    def predict(texts, texts2=None):
        return torch.as_tensor(classify(texts), dtype=torch.float)
    return SimpleNamespace(
        setting=setting, predict=predict, save=save, task="classification", label_names=[*map(str, names)],
        logits=lambda texts, texts2=None: predict(texts).clamp(min=1e-30).log(),
        parameters=lambda: [torch.empty(numbers, device="meta")])


def tf_idf(train, valid, names: list[str], teacher, folder: Path):
    """Logistic regression on TF-IDF of character n-grams, weakly or strongly regularised."""
    peer("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    for C in (1.0, 4.0):
        model = make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=5, sublinear_tf=True),
            LogisticRegression(C=C, max_iter=300)).fit(train.texts, train.answers)
        yield baseline(f"characters 1-4, C {C:g}", model.predict_proba, model.classes_,
                       model[-1].coef_.size + model[-1].intercept_.size,
                       lambda path, model=model: path.write_bytes(pickle.dumps(model)))


def fast_text(train, valid, names: list[str], teacher, folder: Path):
    """fastText with words, pairs of them, and with or without n-grams of characters."""
    fasttext = peer("fasttext")

    def lines(texts):  # it wants a text to be one
        return [" ".join(text.split()) for text in texts]

    def classify(model, texts):
        rows = []
        for text in lines(texts):  # its predict() of a list returns shares that it has freed already
            found = model.f.predict(f"{text}\n", len(names), 0.0, "strict")
            shares = {label: value for value, label in found}
            rows.append([shares.get(f"__label__{i}", 0.0) for i in range(len(names))])
        return rows

    data = folder / "fasttext.txt"
    data.write_text("".join(f"__label__{names.index(label)} {text}\n" for text, label in zip(
        lines(train.texts), train.answers, strict=True)), encoding="utf-8")
    fasttext.FastText.eprint = lambda *_: None
    for least, most in ((0, 0), (1, 3), (2, 4)):
        model = fasttext.train_supervised(str(data), dim=32, epoch=10, lr=0.3, wordNgrams=2, minn=least,
                                          maxn=most, bucket=200_000, thread=1, verbose=0)
        yield baseline(f"word pairs, characters {least}-{most}",
                       lambda texts, model=model: classify(model, texts), names,
                       model.get_input_matrix().size + model.get_output_matrix().size,
                       lambda path, model=model: model.save_model(str(path)))


def static_embeddings(train, valid, names: list[str], teacher, folder: Path):
    """model2vec: a vector for each of the teacher's tokens, as its encoder has it alone, averaged over a text
    and trained on, with no or one hidden layer."""
    StaticModelForClassification = peer("model2vec.train").StaticModelForClassification
    tokenizer = teacher.tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    first, last = tokenizer.encode("").ids  # [CLS] and [SEP], or what the family calls them
    alone = torch.tensor([[first, i, last] for i in range(tokenizer.get_vocab_size())])
    with torch.inference_mode():
        vectors = [teacher.encoder(ids, torch.full((len(ids),), 3), None).mean(1)
                   for ids in alone.split(1024)]
    static = peer("model2vec").StaticModel(torch.cat(vectors).numpy(), tokenizer)
    for layers in (0, 1):
        model = StaticModelForClassification.from_static_model(model=static, n_layers=layers)
        model.fit(train.texts, train.answers, X_val=valid.texts, y_val=valid.answers)
        yield baseline(f"{layers} hidden layers", model.predict_proba, model.classes_,
                       sum(p.numel() for p in model.parameters() if p.is_floating_point()),
                       lambda path, model=model: torch.save(
                           {"weights": model.state_dict(), "tokenizer": tokenizer.to_str()}, path))


BASELINES = {"TF-IDF, logistic regression": tf_idf, "fastText": fast_text, "model2vec": static_embeddings}


def check(train: Examples, valid: Examples, task) -> None:
    """A UserError where the baselines cannot be trained on `train` or judged on `valid`."""
    for part in (train, valid):
        part.targets(task, every_row=True)
        if part.texts2 is not None:
            raise UserError(f"{part.path}: the baselines read one text; leave out --train and --valid for "
                            f"pairs")
    if set(train.answers) != set(task.names):
        raise UserError(f"{train.path}: does not have every label of {task.names}")


def best(name: str, train: Examples, valid: Examples, task, teacher, folder: Path) -> tuple[Path, object]:
    """(file in `folder`, model) of a baseline, at the setting that has most of `valid` right."""
    target, found = valid.targets(task, every_row=True)[0], []
    for model in BASELINES[name](train, valid, task.names, teacher, folder):
        order = columns_of(name, model.task, model.label_names, task)
        right = model.predict(valid.texts)[:, order].argmax(1) == target
        found.append((right.double().mean().item(), model))
        print(f"{name}, {model.setting}: validation accuracy {found[-1][0]:.2%}")
    model = max(found, key=lambda item: item[0])[1]
    model.save(folder / "model")
    return folder / "model", model
