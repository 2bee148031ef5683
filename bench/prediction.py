"""Predicting: text in, probabilities out. Base against the transformers pipeline, Tiny against fastText.

    python -m bench.prediction                                            # the sample, minutes
    python -m bench.prediction --long --train train.tsv --checkpoint koreview-electra
    python -m bench.prediction --student students/base/student.pt --tiny students/tiny/student.pt

Students are new ones unless given: weights do not change their speed. The pipeline runs the teacher the two
ways its users do, one text at a time (its default) and with batch_size=32; the target is held against the
faster. fastText, dimension 100 and word bigrams, is trained on the same texts for its 5 epochs and predicts
its best label for a list. Single reviews: one thread, Base against the teacher in transformers without a
pipeline, each text through both.

writes  RESULTS/predict-base.json, predict-tiny.json, predict-one.json
"""

from bench import parse_args

if __name__ == "__main__":
    ARGS = parse_args(
        __doc__, rows=2000, long_rows=20_000,
        add=lambda arg: (arg("--student", metavar="FILE", help="Base; default: a new one"),
                         arg("--tiny", metavar="FILE", help="default: a new one")))

import tempfile
from functools import partial

import torch
from tokenizers import Tokenizer

import runtime
from bench import common
from student import SIZES, Student, StudentConfig
from teacher import Teacher

TARGETS = {"predict-base": 100, "predict-tiny": 0.7, "predict-one": 20}
MAX_TOKENS = 16384  # of a batch of Student.predict


def new_student(made, size: str, path: str | None) -> Student:
    """The student of `path`, or a new one: saved and loaded, as an application has it."""
    if path is None:
        torch.manual_seed(0)
        tokenizer = Tokenizer.from_file(str(made.tokenizer / "tokenizer.json"))
        config = StudentConfig(tokenizer.get_vocab_size(), len(made.names), *SIZES[size])
        path = made.folder / f"{size}.pt"
        Student(config, tokenizer, made.names).save(path)
    return Student.load(path)


def work_of(student: Student, texts: list[str], one_by_one: bool) -> tuple[float, float]:
    """(operations, bytes) these texts need; the weights are read once a batch."""
    student.tokenizer.no_padding()
    student.tokenizer.enable_truncation(student.config.max_length)
    tokens = sum(max(1, len(encoding.ids)) for encoding in student.tokenizer.encode_batch(texts))
    batches = len(texts) if one_by_one else -(-tokens // MAX_TOKENS)
    parameters = sum(p.numel() for name, p in student.named_parameters() if "embedding" not in name)
    return common.student_work(tokens, len(texts), batches, parameters, student.config.embedding_dim,
                               student.config.hidden_dim, len(student.label_names), training=False)


def consistent(student: Student, texts: list[str]) -> str:
    """Bulk probabilities are those of one text at a time, and sum to one."""
    bulk = student.predict(texts)
    single = torch.cat([student.predict([text]) for text in texts[:64]])
    common.largest_difference(bulk.sum(1), torch.ones(len(texts)), 1e-4, "sum of a row's probabilities")
    return common.largest_difference(bulk[:64], single, 1e-4, "ours in bulk and one at a time")


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        made = common.material(args, folder, teacher=True)
        base, tiny = new_student(made, "base", args.student), new_student(made, "tiny", args.tiny)
        against_pipeline(args, made, base)
        against_fasttext(args, made, tiny)
        one_review(args, made, base)


def against_pipeline(args, made, student: Student):
    transformers = common.peers()
    model, tokenizer = common.peer_teacher(made)
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    texts = made.texts

    def piped(texts, **batching):
        return pipe(texts, top_k=None, truncation=True, max_length=common.MAX_LENGTH, **batching)

    def matrix(outputs):
        by_label = [{score["label"]: score["score"] for score in output} for output in outputs]
        return [[scores[name] for name in made.names] for scores in by_label]

    few = texts[:64]
    theirs = matrix(piped(few))
    checked = [consistent(student, texts),
               common.largest_difference(theirs, matrix(piped(few, batch_size=32)), 1e-4,
                                         "pipeline one by one and in batches"),
               common.largest_difference(Teacher.load(made.teacher).predict(few), theirs, 1e-4,
                                         "the kit's teacher and the pipeline's")]
    rates = common.machine_rates()
    values = common.alternate({
        "ours": lambda: len(texts) / common.timed(lambda: student.predict(texts)),
        "pipeline, its default": lambda: len(texts) / common.timed(lambda: piped(texts)),
        "pipeline, batch_size=32": lambda: len(texts) / common.timed(lambda: piped(texts, batch_size=32)),
    }, args.rounds, warm_up={"pipeline, its default": None, "pipeline, batch_size=32": None})
    ours = values.pop("ours")
    medians = {side: common.summary(values[side])["median"] for side in values}
    faster = max(medians, key=medians.get)
    slower = min(medians, key=medians.get)
    publish(args, "predict-base", {"ours": ours, f"transformers {faster}": values[faster]}, student, texts,
            common.best_rates(rates, common.machine_rates()), checked,
            also={f"{slower}, examples/s": medians[slower]})


def against_fasttext(args, made, student: Student):
    common.peers()
    import fasttext

    texts = [" ".join(text.split()) for text in made.texts] * 10  # fastText wants a text to be one line
    path = made.folder / "fasttext.txt"
    path.write_text("".join(f"__label__{made.names[label].replace(' ', '_')} {text}\n" for text, label in
                            zip(texts, made.labels, strict=False)), encoding="utf-8")
    fasttext.FastText.eprint = lambda *_: None
    model = fasttext.train_supervised(str(path), dim=100, wordNgrams=2, epoch=5, thread=args.cores, verbose=0)
    labels, _ = model.predict(texts)
    if len(labels) != len(texts):
        raise runtime.UserError("the sides differ: fastText predicted other rows")
    rates = common.machine_rates()
    values = common.alternate({
        "ours": lambda: len(texts) / common.timed(lambda: student.predict(texts)),
        "fastText, predict(list), one core": lambda: len(texts) / common.timed(lambda: model.predict(texts)),
    }, args.rounds)
    publish(args, "predict-tiny", values, student, texts, common.best_rates(rates, common.machine_rates()),
            [consistent(student, texts), f"a label of each side for each of {len(texts):,} rows"],
            also={"parameters, ours": sum(p.numel() for p in student.parameters()),
                  "parameters, fastText": model.get_dimension() * (
                      len(model.words) + model.f.getArgs().bucket + len(model.labels))})


def one_review(args, made, student: Student):
    """Milliseconds of one text with one thread; all texts on one side, then all on the other, as a server has
    one model in its caches."""
    model, tokenizer = common.peer_teacher(made)
    texts = made.texts[:60]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    @torch.inference_mode()
    def theirs(text):
        batch = tokenizer(text, truncation=True, max_length=common.MAX_LENGTH, return_tensors="pt")
        return model(**batch).logits.softmax(1)

    checked = [consistent(student, texts),
               common.largest_difference(Teacher.load(made.teacher).predict(texts[:20]),
                                         torch.cat([theirs(text) for text in texts[:20]]), 1e-4,
                                         "the kit's teacher and transformers")]
    values = {"ours": [], "transformers, the teacher": []}
    rates = common.machine_rates()
    for _ in range(args.rounds):
        for side, predict in zip(values, (lambda text: student.predict([text]), theirs), strict=True):
            times = [1000 * common.timed(partial(predict, text)) for text in texts]
            values[side].append(common.summary(times)["median"])
    rates = common.best_rates(rates, common.machine_rates())
    publish(args, "predict-one", values, student, texts, rates, checked, unit="ms", better="less")
    torch.set_num_threads(threads)


def publish(args, name, values, student, texts, rates, checked, unit="examples/s", better="more", also=None):
    one_by_one = better == "less"
    median = common.summary(values["ours"])["median"]
    seconds = len(texts) * median / 1000 if one_by_one else len(texts) / median
    roof = common.roofline(work_of(student, texts, one_by_one), rates, "fp32", seconds)

    def run():  # in this thread, the one that the profiler sees
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for chosen in ([text] for text in texts) if one_by_one else [texts]:
            student.predict(chosen)
        torch.set_num_threads(threads)

    least = roof["least_seconds"] * torch.get_num_threads()  # in one thread
    common.publish(common.make_result(
        name, values, unit=unit, better=better, n=len(texts), target=TARGETS[name], precision="fp32",
        checked=checked, roof=roof, gap=common.account(run, least), also=also), args.results)


if __name__ == "__main__":
    runtime.run(main, ARGS)
