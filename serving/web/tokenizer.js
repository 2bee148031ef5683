/* The tokenizers of train_tokenizer.py, with the ids of the Python library. */

import { Tokenizer } from "./vendor/tokenizers.js";

// BertNormalizer and BertPreTokenizer of the Python library know Unicode 8. These characters came later.
const NEW_CONTROL = "\\u0890\\u0891\\u08e2\\u{110cd}\\u{13430}-\\u{1343f}";
const NEW_PUNCTUATION = "\\u061d\\u09fd\\u0a76\\u0c77\\u0c84\\u1b4e\\u1b4f\\u1b7d-\\u1b7f\\u2e43-\\u2e5d" +
  "\\u{10d6e}\\u{10ead}\\u{10ed0}\\u{10f55}-\\u{10f59}\\u{10f86}-\\u{10f89}\\u{113d4}-\\u{113d8}" +
  "\\u{1144b}-\\u{1145d}\\u{11660}-\\u{1166c}\\u{116b9}\\u{1183b}\\u{11944}-\\u{11946}\\u{119e2}" +
  "\\u{11a3f}-\\u{11a46}\\u{11a9a}-\\u{11aa2}\\u{11b00}-\\u{11b09}\\u{11be1}\\u{11c41}-\\u{11c45}" +
  "\\u{11c70}-\\u{11c71}\\u{11ef7}\\u{11ef8}\\u{11f43}-\\u{11f4f}\\u{11fff}\\u{12ff1}\\u{12ff2}" +
  "\\u{16d6d}-\\u{16d6f}\\u{16e97}-\\u{16e9a}\\u{16fe2}\\u{1e5ff}\\u{1e95e}\\u{1e95f}";
const CONTROL = new RegExp(`\\ufffd|(?![\\t\\n\\r${NEW_CONTROL}])[\\p{Cc}\\p{Cf}\\p{Co}]`, "gu");
const HAN = new RegExp("[\\u3400-\\u4dbf\\u4e00-\\u9fff\\uf900-\\ufaff\\u{20000}-\\u{2a6df}" +
  "\\u{2a700}-\\u{2b81f}\\u{2b920}-\\u{2ceaf}\\u{2f800}-\\u{2fa1f}]", "gu");
const PUNCTUATION = `(?![${NEW_PUNCTUATION}])[\\p{P}\\u166d\\u{111c9}!-/:-@\\[-\`{-~]`;
const BERT_WORDS = new RegExp(`${PUNCTUATION}|(?:(?!${PUNCTUATION})[^ ])+`, "gu");

const utf8 = new TextEncoder();
const graphemes = new Intl.Segmenter();

/**
 * SentencePiece's character map: a double-array trie of UTF-8, then the targets. charsmap() in
 * train_tokenizer.py tells the format. Like the Python library it looks up a short grapheme as a whole, and
 * takes the first key that this begins with: of a jamo with an accent the accent is lost.
 */
function precompiled(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const size = new DataView(bytes.buffer).getUint32(0, true);
  const units = new Uint32Array(bytes.buffer.slice(4, 4 + size));
  const targets = bytes.subarray(4 + size);
  const base = (unit) => (unit >>> 10) << ((unit & 0x200) >>> 6);
  function target(part) {
    let at = base(units[0]);
    for (const byte of utf8.encode(part)) {
      at ^= byte;
      const unit = units[at];
      if ((unit & 0x800000ff) !== byte) return undefined;
      at ^= base(unit);
      if (unit & 0x100) {
        const start = units[at] & 0x7fffffff;
        return new TextDecoder().decode(targets.subarray(start, targets.indexOf(0, start)));
      }
    }
    return undefined;
  }
  const short = (part) => (utf8.encode(part).length < 6 ? target(part) : undefined);
  const letters = (part) => Array.from(part, (character) => target(character) ?? character).join("");
  const mapped = ({ segment }) => short(segment) ?? letters(segment);
  return (text) => Array.from(graphemes.segment(text), mapped).join("");
}

/** The "normalizer" of a tokenizer.json -> a function from text to text. */
function normalizerOf(config) {
  if (config.type === "Sequence") {
    const parts = config.normalizers.map(normalizerOf);
    return (text) => parts.reduce((result, part) => part(result), text);
  }
  if (config.type === "NFC") return (text) => text.normalize("NFC");
  if (config.type === "Precompiled") return precompiled(config.precompiled_charsmap);
  if (config.type === "BertNormalizer" && !config.lowercase && !config.strip_accents)
    return (text) => text.replace(CONTROL, "").replace(/\p{White_Space}/gu, " ").replace(HAN, " $& ");
  throw new Error(`this page does not know the normalizer ${config.type} of the model's tokenizer`);
}

/** A tokenizer.json, as an object -> a function from a text to its ids. */
export function encoderOf(json) {
  const tokenizer = new Tokenizer(json, {});
  // The library's own take any Precompiled for NFKC, and split no Han beyond U+FFFF.
  tokenizer.normalizer = normalizerOf(json.normalizer);
  if (json.pre_tokenizer.type === "BertPreTokenizer")
    tokenizer.pre_tokenizer = (text) => text.match(BERT_WORDS) ?? [];
  return (text) => tokenizer.encode(text).ids.slice(0, json.truncation.max_length);
}
