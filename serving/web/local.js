/* Answers computed in the browser. The static version has this file as predict.js. */

import { encoderOf } from "./tokenizer.js";
import * as ort from "./vendor/ort.js";

ort.env.wasm.numThreads = 1; // more would need a host that sends special headers
ort.env.wasm.wasmPaths = { wasm: new URL("vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };

/** The metadata of an ONNX file: fields 14 of its protobuf, each a key (field 1) and a value (field 2). */
export function metadata(bytes) {
  const found = {};
  for (const [field, entry] of fields(bytes)) {
    if (field !== 14) continue;
    const { 1: key, 2: value } = Object.fromEntries(fields(entry));
    found[new TextDecoder().decode(key)] = new TextDecoder().decode(value);
  }
  return found;
}

function* fields(bytes) {
  let at = 0;
  const varint = () => {
    for (let value = 0, unit = 1; ; unit *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * unit;
      if (!(byte & 128)) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag & 7;
    const size = { 1: 8, 5: 4 }[kind] ?? varint(); // of kind 0 the value itself
    yield [tag >> 3, kind === 0 ? size : bytes.subarray(at, (at += size))];
  }
}

/** As predict.js; the model is model.onnx beside this file. */
export async function connect() {
  const response = await fetch("model.onnx").catch(() => undefined);
  if (!response?.ok) throw new Error("no_model");
  const bytes = new Uint8Array(await response.arrayBuffer());
  const known = metadata(bytes);
  const encode = encoderOf(JSON.parse(known.tokenizer));
  const names = JSON.parse(known.label_names);
  const thresholds = JSON.parse(known.thresholds ?? "null") ?? names.map(() => 0.5);
  const session = await ort.InferenceSession.create(bytes);

  /** The columns of one row -> (C,) probabilities, or the score. */
  async function run(texts) {
    const inputs = {};
    for (const [i, text] of texts.entries()) {
      const ids = BigInt64Array.from(encode(text), BigInt);
      inputs[["input_ids", "input_ids2"][i]] = new ort.Tensor("int64", ids, [1, ids.length]);
      inputs[["lengths", "lengths2"][i]] = new ort.Tensor("int64", [BigInt(ids.length)], [1]);
    }
    return (await session.run(inputs)).probabilities.data;
  }

  function prediction(found) {
    if (known.task === "regression") return { score: found[0] };
    const probabilities = Object.fromEntries(names.map((name, i) => [name, found[i]]));
    if (known.task === "multilabel")
      return { labels: names.filter((_, i) => found[i] > Math.fround(thresholds[i])), probabilities };
    const probability = Math.max(...found);
    return { label: names[found.indexOf(probability)], probability, probabilities };
  }

  async function predict(texts, texts2) {
    const predictions = [];
    for (const [i, text] of texts.entries())
      predictions.push(prediction(await run(texts2 ? [text, texts2[i]] : [text])));
    await new Promise((resolve) => setTimeout(resolve)); // lets the page draw
    return predictions;
  }
  const pairs = session.inputNames.includes("input_ids2");
  const limits = { max_texts: 200, max_characters: 10_000 };
  return { task: known.task, label_names: names, pairs, ...limits, local: true, predict };
}
