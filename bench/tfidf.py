"""TF-IDF of character n-grams with a linear model, from scikit-learn: what a student has to beat.

    python -m bench.tfidf --train data/unsmile/train.tsv --valid data/unsmile/valid.tsv
    python -m bench.tfidf --train data/3i4k/train.tsv --valid data/3i4k/valid.tsv --test data/3i4k/test.tsv

Labels are learned by logistic regression, several labels by one for each, scores by ridge regression. The
strength of the regularisation is the best of four on --valid, and so are the thresholds of several labels.

Of pairs it reads both texts, their product, and two similarities: the share of common letter pairs (Dice) and
the cosine. Each of these is a baseline of its own too: of labels with the threshold that is best on --valid,
of scores with a straight line.

reads   files as the scripts read them: the column label, labels or score tells the task
writes  nothing; prints the scores that evaluate.py --all prints, of --test or else of --valid
"""

import argparse

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--train", required=True, metavar="FILE", help="rows without an answer are left out")
    arg("--valid", required=True, metavar="FILE", help="chooses strength and thresholds")
    arg("--test", metavar="FILE", help="default: scores of --valid, on which the choices were made")
    arg("--ngrams", type=flags.count, default=4, metavar="N",
        help="of 1 to N characters (default: %(default)s)")
    flags.add_task(arg)
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()

import numpy as np
import torch

import runtime
import tasks
from bench.common import peer
from data.augment import bigrams, dice
from data.examples import read_examples

STRENGTHS = (0.3, 1, 3, 10)  # C of the logistic regression, 1 / alpha of the ridge
CERTAIN = 20.0  # logit of a label that every row of --train has


def features(vectorizer, examples):
    """(N, V) sparse, vectors of the texts; of pairs (N, 3V + 2): of both, their product, similarities."""
    if examples.texts2 is None:
        return vectorizer.transform(examples.texts)
    sparse = peer("scipy.sparse")
    one, other = vectorizer.transform(examples.texts), vectorizer.transform(examples.texts2)
    alike = np.stack(list(similarities(vectorizer, examples).values()), 1)
    return sparse.hstack([one, other, one.multiply(other), sparse.csr_matrix(alike)]).tocsr()


def similarities(vectorizer, examples) -> dict[str, np.ndarray]:
    """{name: (N,) from 0 to 1} of pairs."""
    one, other = vectorizer.transform(examples.texts), vectorizer.transform(examples.texts2)
    shared = [dice(bigrams(a), bigrams(b)) for a, b in zip(examples.texts, examples.texts2, strict=True)]
    return {"letter pairs": np.array(shared), "cosine": np.asarray(one.multiply(other).sum(1)).ravel()}


def threshold(alike, target, classes: int) -> tuple[float, np.ndarray]:
    """(The similarity that divides the rows so that the commonest class of each side is right most often,
    (2, C) log shares of the classes below and above, each counted once more).

    alike (N,), target (N,) numbers of classes.
    """
    order = np.argsort(alike)
    ordered = alike[order]
    below = np.eye(classes)[target[order]].cumsum(0)  # (N, C) up to and with each row
    hits = below.max(1) + (below[-1] - below).max(1)
    hits[:-1][ordered[1:] == ordered[:-1]] = 0  # equal similarities cannot be divided
    best = hits.argmax()
    counts = 1 + np.stack([below[best], below[-1] - below[best]])
    return ordered[best], np.log(counts / counts.sum(1, keepdims=True))


def by_similarity(task, alike, target, others) -> torch.Tensor:
    """Logits (M, C) of the others (M,), by a similarity alike (N,) alone, fitted on its targets."""
    if task.column == "score":
        found = np.polyval(np.polyfit(alike, target, 1), others)[:, None]
    else:
        limit, shares = threshold(alike, target, len(task.names))
        found = shares[(others > limit).astype(int)]
    return torch.from_numpy(found)


def logits_of(column: str, strength: float, weights, X, target, *others) -> list[torch.Tensor]:
    """Fit on X (N, V) sparse and its targets; logits (M, C) of each of the others (M, V)."""
    linear = peer("sklearn.linear_model")
    logistic = linear.LogisticRegression(C=strength, class_weight=weights, max_iter=1000)
    if column == "score":
        model = linear.Ridge(alpha=1 / strength).fit(X, target)
        found = [model.predict(Z)[:, None] for Z in others]
    elif column == "labels":
        found = [np.full((Z.shape[0], target.shape[1]), CERTAIN) for Z in others]
        for c in range(target.shape[1]):
            if not target[:, c].all():
                model = logistic.fit(X, target[:, c])
                for logits, Z in zip(found, others, strict=True):
                    logits[:, c] = model.decision_function(Z)
    else:
        model = logistic.fit(X, target)
        found = [model.predict_log_proba(Z) for Z in others]
    return [torch.from_numpy(np.asarray(logits, dtype=np.float64)) for logits in found]


def scores(task, logits, target) -> dict[str, float]:
    found = task.scores(task.statistics(logits, target).mean(0))
    return {name: value.item() for name, value in found.items()}


def compare(args) -> dict[str, dict[str, float]]:
    """{how the answers were chosen: scores}, printed too."""
    train, valid = read_examples(args.train), read_examples(args.valid)
    judged = read_examples(args.test) if args.test else valid
    task = tasks.make(train.column, train.cells(), args.train)
    tasks.apply_flags(task, args, filter(None, train.answers), valid.answers)
    target, known = train.targets(task)
    rows = known.nonzero().flatten().tolist()
    vectorizer = peer("sklearn.feature_extraction.text").TfidfVectorizer(
        analyzer="char", ngram_range=(1, args.ngrams), min_df=2, sublinear_tf=True)
    known = train.take(rows)
    vectorizer.fit(known.texts + (known.texts2 or []))
    X, *others = (features(vectorizer, examples) for examples in (known, valid, judged))
    (valid_target, _), (judged_target, _) = (examples.targets(task, every_row=True)
                                             for examples in (valid, judged))
    chosen = None
    for strength in STRENGTHS:
        found = logits_of(task.column, strength, args.class_weights, X, target[rows].numpy(), *others)
        best = scores(task, found[0], valid_target)[task.best]
        if chosen is None or best > chosen[0]:
            chosen = best, strength, *found
    _, strength, valid_logits, logits = chosen
    results = {task.column: scores(task, logits, judged_target)}
    if valid.texts2 is not None and task.column != "labels":
        alike, others = (similarities(vectorizer, examples) for examples in (valid, judged))
        for name in alike:
            logits = by_similarity(task, alike[name], valid_target.numpy(), others[name])
            results[name] = scores(task, logits, judged_target)
    if task.column == "labels":
        task.calibrate(valid_logits, valid_target)
        results = {"threshold 0.5": results["labels"],
                   "thresholds of --valid": scores(task, logits, judged_target)}
    print(f"{judged.path}: {len(judged):,} rows; TF-IDF of 1 to {args.ngrams} characters, {X.shape[1]:,} "
          f"features, strength {strength:g}" + ("" if args.test else "; chosen on these rows"))
    for name, values in results.items():
        print(f"{name:22}", *(f"{key} {value:.4f}" for key, value in values.items()), sep="  ")
    return results


if __name__ == "__main__":
    runtime.main(compare, ARGS)
