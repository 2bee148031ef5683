"""Predicting: text in, probabilities out. Base against the transformers pipeline, Tiny against fastText.

    python -m bench.prediction                                            # the sample, minutes
    python -m bench.prediction --long --train train.tsv --checkpoint koreview-electra

Students are new ones: weights do not change their speed. The pipeline runs the teacher in the
two ways its users do, one text at a time (its default) and with batch_size=32; ours is compared with the
faster. fastText, dimension 100 and word bigrams, is trained on the same texts for its 5 epochs and predicts
its best label for a list. Single reviews: one thread, Base against the teacher in transformers without a
pipeline, each text through both.

writes  RESULTS/predict-base.json, predict-tiny.json, predict-one.json
"""

import bench


def parse_args(argv=None):
    return bench.parse_args(__doc__, argv, rows=(64, 2000, 20_000))


if __name__ == "__main__":
    ARGS = bench.settle(parse_args())

import statistics
from functools import partial

import torch
from tokenizers import Tokenizer

import runtime
from bench import common
from data.batches import encode
from student import SIZES, Student, StudentConfig

MAX_TOKENS = 8192  # of a batch of Student.predict


def new_student(made, size: str) -> Student:
    """Saved and loaded, as an application has it."""
    torch.manual_seed(0)
    tokenizer, path = Tokenizer.from_file(str(made.tokenizer / "tokenizer.json")), made.folder / f"{size}.pt"
    config = StudentConfig(tokenizer.get_vocab_size(), len(made.names), *SIZES[size])
    Student(config, tokenizer, made.names).save(path)
    return Student.load(path)


def beside_pipeline(args, made, ours: dict):
    """Rates of `ours`, {name: predict}, and of the pipeline in turn; returns ({name: rates}, {"transformers
    …": rates} of the pipeline's faster way, {"…": median} of its slower, the machine's rates, checked)."""
    model, tokenizer = common.peer_teacher(made)
    pipe = common.peer("transformers").pipeline("text-classification", model=model, tokenizer=tokenizer,
                                                device="cpu")
    texts, options = made.texts, {"top_k": None, "truncation": True, "max_length": common.MAX_LENGTH}
    theirs = {"pipeline, its default": partial(pipe, **options),
              "pipeline, batch_size=32": partial(pipe, batch_size=32, **options)}

    def rate(predict):
        return lambda: len(texts) / common.timed(lambda: predict(texts))

    values, rates = common.alternate(args, {name: rate(predict) for name, predict in (ours | theirs).items()},
                                     cold=theirs)
    slower, faster = sorted(theirs, key=lambda side: statistics.median(values[side]))
    return ({name: values[name] for name in ours}, {f"transformers {faster}": values[faster]},
            {f"{slower}, examples/s": statistics.median(values[slower])}, rates,
            common.same_teacher(made, model, tokenizer))


def against_pipeline(args, made, student: Student):
    ours, theirs, also, rates, checked = beside_pipeline(args, made, {"ours": student.predict})
    publish(args, "predict-base", ours | theirs, student, made.texts, rates, checked, also=also)


def trained_fasttext(args, made):
    """(model, texts of one line each, ten times those of `made`)."""
    fasttext = common.peer("fasttext")
    texts = [" ".join(text.split()) for text in made.texts] * 10  # fastText wants a text to be one line
    path = made.folder / "fasttext.txt"
    path.write_text("".join(f"__label__{i} {text}\n" for text, i in zip(texts, made.target, strict=False)),
                    encoding="utf-8")
    fasttext.FastText.eprint = lambda *_: None
    model = fasttext.train_supervised(str(path), dim=100, wordNgrams=2, epoch=5, thread=args.cores, verbose=0)
    labels, _ = model.predict(texts)
    if len(labels) != len(texts):
        raise runtime.UserError("the sides differ: fastText predicted other rows")
    return model, texts


def against_fasttext(args, made, student: Student):
    model, texts = trained_fasttext(args, made)
    values, rates = common.alternate(args, {
        "ours": lambda: len(texts) / common.timed(lambda: student.predict(texts)),
        "fastText, predict(list), one core": lambda: len(texts) / common.timed(lambda: model.predict(texts))})
    publish(args, "predict-tiny", values, student, texts, rates,
            f"a label of each side for each of {len(texts):,} rows",
            also={"parameters, ours": sum(p.numel() for p in student.parameters()),
                  "parameters, fastText": model.get_dimension() * (
                      len(model.words) + model.f.getArgs().bucket + len(model.labels))})


def beside_teacher(args, made, ours: dict):
    """Median milliseconds of one text in one thread, of `ours`, {name: predict}, and of the teacher: all
    texts on one side, then all on the next, as a server has one model in its caches. Returns ({name: medians
    of the rounds}, the machine's rates, texts, checked)."""
    model, tokenizer = common.peer_teacher(made)
    texts = made.texts[: 10 if args.tiny else 60]

    @torch.inference_mode()
    def theirs(text):
        batch = tokenizer(text, truncation=True, max_length=common.MAX_LENGTH, return_tensors="pt")
        return model(**batch).logits.softmax(1)

    def milliseconds(predict):
        return statistics.median(1000 * common.timed(partial(predict, text)) for text in texts)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sides = {name: partial(milliseconds, lambda text, predict=predict: predict([text]))
             for name, predict in ours.items()}
    sides["transformers, the teacher"] = partial(milliseconds, theirs)
    values, rates = common.alternate(args, sides)
    torch.set_num_threads(threads)
    return values, rates, texts, common.same_teacher(made, model, tokenizer)


def one_review(args, made, student: Student):
    values, rates, texts, checked = beside_teacher(args, made, {"ours": student.predict})
    publish(args, "predict-one", values, student, texts, rates, checked, unit="ms")


def publish(args, name, values, student, texts, rates, checked, unit="examples/s", also=None):
    one_by_one, median = unit == "ms", statistics.median(values["ours"])
    tokens = int(encode(student.tokenizer, texts, None, **student.reads).lengths.sum())
    batches = len(texts) if one_by_one else -(-tokens // MAX_TOKENS)  # which read the weights once
    parameters = sum(p.numel() for name, p in student.named_parameters() if "embedding" not in name)
    work = common.student_work(tokens, len(texts), batches, parameters, student.config.embedding_dim,
                               student.config.hidden_dim, len(student.label_names), training=False)
    seconds = len(texts) * median / 1000 if one_by_one else len(texts) / median
    common.publish(args, name, values, unit=unit, better="less" if one_by_one else "more", n=len(texts),
                   precision="fp32", checked=checked, also=also,
                   roof=common.roofline(work, rates, "fp32", seconds))


def compare(args, made):
    base = new_student(made, "base")
    against_pipeline(args, made, base)
    against_fasttext(args, made, new_student(made, "tiny"))
    one_review(args, made, base)


if __name__ == "__main__":
    common.main(compare, ARGS)
