/* A table from the bytes of a file, and the same table with more columns. */

const TEXT_NAMES = ["text", "document", "sentence", "review", "comment", "content", "문장", "글", "리뷰", "내용",
  "본문", "댓글", "후기", "텍스트"];

/** What is wrong with a file: a key of TEXTS in page.js, and what stands in its braces. */
export class TableError extends Error {
  constructor(key, ...values) {
    super(key);
    this.values = values;
  }
}

/** UTF-8, with or without BOM; UTF-16, as Excel's "Unicode text"; else CP949, which browsers call EUC-KR. */
function decoded(bytes) {
  const encodings = bytes[0] === 0xff && bytes[1] === 0xfe ? ["utf-16le"] : ["utf-8", "euc-kr"];
  for (const encoding of encodings) {
    try {
      const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
      if (!text.includes("\0")) return text; // which files that hold no text have
    } catch {} // not this one
  }
  throw new TableError("not_text");
}

/**
 * A cell that begins with a quotation mark ends at the next single one (RFC 4180). In .tsv and .txt, as
 * elsewhere in the kit, quotation marks mean nothing. A record keeps its text as it stands in the file.
 * -> {separator, quotes, records: [{cells, raw, end}]}, end: its line break
 */
function parsed(text, name) {
  const quotes = /\.csv$/i.test(name);
  const head = text.split(/\r?\n|\r/, 1)[0];
  const counts = [",", ";", "\t"].map((each) => head.split(each).length);
  const separator = quotes ? [",", ";", "\t"][counts.indexOf(Math.max(...counts))] : "\t";
  const stop = new RegExp(`${separator}|\r\n|\r|\n`, "g");
  const records = [];
  for (let at = 0, start = 0, cells = []; at < text.length; ) {
    let cell = "";
    if (quotes && text[at] === '"') {
      let close = text.indexOf('"', at + 1);
      while (close >= 0 && text[close + 1] === '"') close = text.indexOf('"', close + 2);
      if (close < 0) throw new TableError("open_quote", records.length + 1);
      cell = text.slice(at + 1, close).replaceAll('""', '"');
      at = close + 1;
    }
    stop.lastIndex = at;
    const found = stop.exec(text) ?? { 0: "", index: text.length };
    cells.push(cell + text.slice(at, found.index));
    at = found.index + found[0].length;
    if (found[0] === separator && at < text.length) continue;
    if (found[0] === separator) cells.push(""); // the file ends after a separator
    const end = found[0] === separator ? "" : found[0];
    records.push({ cells, raw: text.slice(start, at - end.length), end });
    [start, cells] = [at, []];
  }
  return { separator, quotes, records };
}

/** -> {name, separator, quotes, header, rows}. Row i is line i + 2 of the sheet. Raises TableError. */
export function tableOf(bytes, name) {
  if (!/\.(csv|tsv|txt)$/i.test(name)) throw new TableError("kind");
  const { records: [header, ...rows], ...rest } = parsed(decoded(bytes), name);
  if (!rows.length) throw new TableError("no_rows");
  const width = header.cells.length;
  const wide = rows.findIndex(({ cells }) => cells.length > width);
  if (wide >= 0) throw new TableError("wide", wide + 2, rows[wide].cells.length, width);
  return { name, header, rows, ...rest };
}

/** The numbers of the columns of the texts, of pairs of both; -1: none has a known name. */
export function textColumns(header, pairs) {
  const names = header.map((name) => name.trim().toLowerCase());
  const find = (endings) => TEXT_NAMES.flatMap((name) => endings.map((end) => names.indexOf(name + end)))
    .find((column) => column >= 0) ?? (header.length === 1 && !pairs ? 0 : -1);
  return pairs ? [find(["", "1"]), find(["2"])] : [find([""])];
}

/** The file with new columns, for Excel too: UTF-8 with a BOM. added: for each row its cells. */
export function written({ header, rows, separator, quotes }, names, added) {
  const quoted = (value) => (/["\r\n,;\t]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const cell = (value) => (quotes ? quoted(value) : value.replace(/[\t\r\n]/g, " "));
  const line = ({ cells, raw, end }, more) => {
    const missing = separator.repeat(header.cells.length - cells.length); // of a short row
    return raw + missing + more.map((value) => separator + cell(value)).join("") + (end || header.end);
  };
  while (names.some((name) => header.cells.includes(name))) names = names.map((name) => `predicted_${name}`);
  const body = rows.map((row, i) => (isBlank(row) ? row.raw + row.end : line(row, added[i])));
  return ["\ufeff", line(header, names), ...body];
}

/** Whether a row is an empty line, which stays one. */
export const isBlank = ({ raw }) => raw === "";
