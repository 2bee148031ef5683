/* The page without a server: a folder for any static host.

    python extra/export_onnx.py models/small.pt small.onnx
    cd serving/web
    npm ci --ignore-scripts
    node build.js ../../small.onnx          # writes dist/
    python -m http.server --directory dist

reads   a graph of extra/export_onnx.py; node_modules/
writes  dist/: nothing else is needed, from this machine or from any other
*/

import fs from "node:fs";
import path from "node:path";

const here = import.meta.dirname;
const [model] = process.argv.slice(2);
if (!model || !fs.existsSync(model)) {
  console.error(`error: ${model ?? "MODEL.onnx"} does not exist; use: node build.js MODEL.onnx`);
  process.exit(2);
}
const [onnxruntime, tokenizers] = ["node_modules/onnxruntime-web", "node_modules/@huggingface/tokenizers"];
if (!fs.existsSync(path.join(here, tokenizers))) {
  console.error("error: node_modules is missing; run: npm ci --ignore-scripts");
  process.exit(2);
}
const graph = fs.readFileSync(model);
const files = {
  "index.html": "index.html", "page.css": "page.css", "page.js": "page.js", "table.js": "table.js",
  "tokenizer.js": "tokenizer.js", "predict.js": "local.js",
  "vendor/tokenizers.js": `${tokenizers}/dist/tokenizers.min.mjs`, // as .js: some hosts do not know .mjs
  "vendor/tokenizers.LICENSE": `${tokenizers}/LICENSE`,
  "vendor/ort.js": `${onnxruntime}/dist/ort.wasm.bundle.min.mjs`,
  "vendor/ort-wasm-simd-threaded.wasm": `${onnxruntime}/dist/ort-wasm-simd-threaded.wasm`,
};
const dist = path.join(here, "dist");
fs.rmSync(dist, { recursive: true, force: true });
fs.mkdirSync(path.join(dist, "vendor"), { recursive: true });
for (const [to, from] of Object.entries(files)) fs.copyFileSync(path.join(here, from), path.join(dist, to));
fs.writeFileSync(path.join(dist, "model.onnx"), graph);
for (const name of [...Object.keys(files), "model.onnx"])
  console.log(`${fs.statSync(path.join(dist, name)).size.toLocaleString("en").padStart(12)}  ${name}`);
