/* The page: an answer as one types, the words that moved it, and tables. The model is behind predict.js. */

import { connect } from "./predict.js";
import { isBlank, tableOf, textColumns, written } from "./table.js";

const PAUSE = 150; // ms without a key before it asks
const WORDS = 100; // of a text that are left out one by one
const SHOWN = 5; // classes, the most probable ones

const TEXTS = {
  ko: {
    title: "문장 분류", title_regression: "문장 점수", title_pairs: "문장 쌍", other: "English",
    text: "글을 적으면 바로 답합니다", text1: "첫째 글", text2: "둘째 글",
    example: "예: 배우들 연기는 좋은데 이야기가 지루해요",
    loading: "모델을 불러오는 중입니다…", none: "해당 없음", chosen: "해당",
    words: "낱말마다 ‘{0}’의 확률에 더한 몫 (그 낱말을 뺀 글과 견주어, %p)",
    words_regression: "낱말마다 점수에 더한 몫 (그 낱말을 뺀 글과 견주어)",
    up: "‘{0}’ 쪽으로", down: "반대쪽으로", up_regression: "점수를 높임", down_regression: "점수를 낮춤",
    no_words: "없음", file: "파일로 한꺼번에", choose: "파일 고르기",
    drop: "CSV나 TSV 파일을 여기에 놓으면 {0} 열을 더해 돌려줍니다. 첫 줄은 열 이름이어야 합니다.",
    column: "글이 있는 열", column2: "둘째 글이 있는 열", start: "시작",
    working: "{1}행 중 {0}행", download: "{0} 내려받기", rows: "{0}행",
    local: "모델이 브라우저 안에서 돌아갑니다. 글과 파일은 이 기기를 떠나지 않습니다.",
    server: "글과 파일의 내용은 답을 얻으려고 이 페이지의 서버로 보냅니다.",
    unreachable: "서버가 답하지 않습니다. 잠시 뒤에 다시 해 보세요.",
    no_model: "model.onnx를 읽을 수 없습니다. 웹 서버를 거쳐 여세요.",
    kind: "CSV나 TSV 파일만 읽습니다. 엑셀에서는 ‘CSV UTF-8’로 저장하세요.",
    not_text: "UTF-8도 CP949도 아닌 파일입니다.",
    no_rows: "열 이름 아래에 행이 없습니다.", open_quote: "{0}행: 따옴표가 닫히지 않았습니다.",
    wide: "{0}행: 칸이 {1}개인데 열 이름은 {2}개입니다.",
  },
  en: {
    title: "Text classification", title_regression: "Text scores", title_pairs: "Pairs of texts",
    other: "한국어",
    text: "Type a text to see the answer", text1: "First text", text2: "Second text",
    example: "배우들 연기는 좋은데 이야기가 지루해요",
    loading: "Loading the model…", none: "None", chosen: "applies",
    words: "What each word adds to the probability of “{0}” (points, beside the text without it)",
    words_regression: "What each word adds to the score (beside the text without it)",
    up: "Towards “{0}”", down: "Away from it",
    up_regression: "Raise the score", down_regression: "Lower the score",
    no_words: "none", file: "A whole file", choose: "Choose a file",
    drop: "Drop a CSV or TSV file here to get it back with {0} added. The first line must name the columns.",
    column: "Column of the texts", column2: "Column of the second texts", start: "Start",
    working: "{0} of {1} rows", download: "Download {0}", rows: "{0} rows",
    local: "The model runs in your browser. Texts and files never leave this device.",
    server: "Texts and the contents of files are sent to the server of this page to be answered.",
    unreachable: "The server does not answer. Try again in a moment.",
    no_model: "Cannot read model.onnx. Open this page through a web server.",
    kind: "Only CSV and TSV files can be read. In Excel, save as “CSV UTF-8”.",
    not_text: "The file is neither UTF-8 nor CP949.",
    no_rows: "There are no rows below the column names.",
    open_quote: "Row {0}: a quotation mark is never closed.",
    wide: "Row {0} has {1} cells, but there are {2} column names.",
  },
};

const $ = (id) => document.getElementById(id);
const boxes = [$("text"), $("text2")];
let language = navigator.language.startsWith("ko") ? "ko" : "en";
let model; // what connect() found
let shown; // {predictions, words}: the last answer
let picked; // the class whose words are shown, if the reader chose one

const say = (key, ...values) => TEXTS[language][key].replace(/\{(\d)\}/g, (_, i) => values[i]);
const ofTask = (key) => (model?.task === "regression" ? `${key}_regression` : key);
const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** A new element; `options` are its properties. */
function make(tag, options = {}, ...children) {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
}

/** One line; without an error none. */
function showError(place, error = place.error) {
  place.error = error;
  const known = error && error.message in TEXTS[language];
  place.textContent = known ? say(error.message, ...(error.values ?? [])) : error ? error.message : "";
}

// ---- asking the model -------------------------------------------------------------------------------------

let connecting;
async function connected() {
  connecting ??= connect();
  try {
    model = await connecting;
  } catch (error) {
    connecting = undefined; // the next answer tries again
    throw error;
  }
}

/** The predictions of all rows of the columns, asked in parts as large as the model takes. */
async function predictions(columns, progress = () => {}) {
  const whole = (text) => text.slice(0, model.max_characters).toWellFormed(); // no half an emoji at the end
  const cut = columns.map((column) => column.map(whole));
  const found = [];
  while (found.length < cut[0].length) {
    const start = found.length;
    let end = start;
    for (let size = 0; end < cut[0].length && end - start < model.max_texts; end++) {
      size += Math.max(...cut.map((column) => column[end].length));
      if (end > start && size > 2 * model.max_characters) break;
    }
    found.push(...(await model.predict(...cut.map((column) => column.slice(start, end)))));
    progress(found.length);
  }
  return found;
}

// ---- the answer to what is typed --------------------------------------------------------------------------

let asked = 0;
let pause;

async function answer() {
  const turn = ++asked;
  try {
    if (!model) {
      $("answer").textContent = say("loading");
      await connected();
      write();
    }
    const texts = boxes.slice(0, 1 + model.pairs).map((box) => box.value.trim());
    let found;
    if (texts.every(Boolean)) {
      // Row 0 has the texts as they are; each other row lacks one word of one of them.
      const rows = [texts];
      const words = texts.map((text, box) => {
        const all = text.match(/\S+\s*/g);
        return all.map((word, i) => {
          if (i >= WORDS) return { word };
          rows.push(texts.with(box, all.toSpliced(i, 1).join("").trimEnd()));
          return { word, row: rows.length - 1 };
        });
      });
      found = { words, predictions: await predictions(texts.map((_, box) => rows.map((row) => row[box]))) };
    }
    if (turn !== asked) return; // a newer one is on its way
    shown = found;
    showError($("error"), null);
  } catch (error) {
    if (turn !== asked) return;
    shown = undefined;
    showError($("error"), error);
  }
  showAnswer();
}

function showAnswer() {
  $("details").hidden = !shown;
  if (!shown) {
    $("answer").replaceChildren();
    return;
  }
  const [first] = shown.predictions;
  const strong = (text) => make("strong", { textContent: text });
  if (model.task === "regression") $("answer").replaceChildren(strong(first.score.toFixed(2)));
  else if (model.task === "classification")
    $("answer").replaceChildren(strong(first.label), ` ${percent(first.probability)}`);
  else $("answer").replaceChildren(strong(first.labels.join(", ") || say("none")));
  showClasses(first);
  showWords(first);
}

/** The class whose words are shown: the one that was picked, else the most probable one. */
function shownClass({ probabilities }) {
  const higher = (best, name) => (probabilities[name] > probabilities[best] ? name : best);
  return picked ?? model.label_names.reduce(higher);
}

function showClasses(first) {
  $("classes").replaceChildren();
  if (model.task === "regression") return;
  let names = model.label_names;
  if (model.task === "classification" && names.length > SHOWN)
    names = names.toSorted((a, b) => first.probabilities[b] - first.probabilities[a])
      .filter((name, i) => i < SHOWN || name === picked);
  for (const name of names) {
    const share = first.probabilities[name];
    const bar = make("span", { className: "bar" });
    bar.style.setProperty("--share", share);
    const label = make("span", {}, name);
    if (first.labels?.includes(name))
      label.append(" ", make("span", { className: "given", textContent: say("chosen") }));
    const number = make("span", { className: "share", textContent: percent(share) });
    const row = make("button", { type: "button" }, label, bar, number);
    row.setAttribute("aria-pressed", name === shownClass(first));
    row.onclick = () => {
      picked = name;
      showAnswer();
      document.querySelector("#classes [aria-pressed=true]").focus();
    };
    $("classes").append(make("li", {}, row));
  }
}

function showWords(first) {
  const name = model.task === "regression" ? undefined : shownClass(first);
  const value = (prediction) => (name === undefined ? prediction.score : prediction.probabilities[name]);
  const [scale, digits] = name === undefined ? [1, 2] : [100, 1];
  const words = shown.words.map((list) => list.map(({ word, row }) => (
    { word, change: row && scale * (value(first) - value(shown.predictions[row])) })));
  const signed = (change) => `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(digits)}`;
  const all = words.flat();
  const largest = Math.max(0.05 * scale, ...all.map(({ change }) => Math.abs(change ?? 0)));
  const strong = ({ change }) => Math.abs(change) >= largest / 10;
  const seen = ({ change }) => Number(Math.abs(change).toFixed(digits)) > 0; // not "0.0", not undefined

  $("words").hidden = false;
  $("words-title").textContent = say(ofTask("words"), name);
  $("marked").replaceChildren();
  for (const [i, list] of words.entries()) {
    if (i) $("marked").append(make("br"));
    for (const each of list) {
      const word = each.word.trimEnd();
      if (strong(each)) {
        const className = each.change > 0 ? "up" : "down";
        const mark = make("mark", { className, textContent: word, title: signed(each.change) });
        mark.style.setProperty("--strength", `${Math.round(55 * Math.abs(each.change) / largest)}%`);
        $("marked").append(mark);
      } else $("marked").append(word);
      $("marked").append(each.word.slice(word.length));
    }
  }
  $("changes").replaceChildren();
  for (const [key, sign] of [["up", 1], ["down", -1]]) {
    const listed = all.filter((each) => seen(each) && each.change * sign > 0)
      .sort((a, b) => sign * (b.change - a.change)).slice(0, 8)
      .map(({ word, change }) => (
        make("span", {}, word.trim(), " ", make("b", { textContent: signed(change) }))));
    $("changes").append(make("div", { className: key }, make("dt", { textContent: say(ofTask(key), name) }),
      make("dd", {}, ...(listed.length ? listed : [say("no_words")]))));
  }
}

// ---- tables -----------------------------------------------------------------------------------------------

let job = 0; // a file that comes while another is answered takes its place

function newColumns() {
  const answer = { classification: "label", multilabel: "labels", regression: "score" }[model.task];
  return model.task === "regression" ? [answer] : [answer, "probability"];
}

/** The cells of a prediction, as extra/predict_table.py writes them. */
function cells({ label, labels, score, probability, probabilities }) {
  const rounded = (share) => String(Number(share.toFixed(4)));
  if (model.task === "regression") return [String(Number(score.toPrecision(6)))];
  if (model.task === "classification") return [label, rounded(probability)];
  const json = model.label_names.some((name) => name.includes(",") || name.startsWith("["));
  const exactly = Object.entries(probabilities).reduce(
    (product, [name, share]) => product * (labels.includes(name) ? share : 1 - share), 1);
  return [json ? JSON.stringify(labels) : labels.join(",") || "-", rounded(exactly)];
}

async function take(file) {
  const turn = ++job;
  $("working").hidden = $("columns").hidden = true;
  $("done").replaceChildren();
  showError($("file-error"), null);
  try {
    if (!model) await connected();
    const table = tableOf(new Uint8Array(await file.arrayBuffer()), file.name);
    const columns = textColumns(table.header.cells, model.pairs);
    if (turn !== job) return;
    if (columns.includes(-1)) chooseColumns(table, turn);
    else await fill(table, columns, turn);
  } catch (error) {
    stop(error, turn);
  }
}

function stop(error, turn) {
  if (turn !== job) return;
  $("working").hidden = true;
  showError($("file-error"), error);
}

/** Ask for the columns of the texts, with an example of what is in each. */
function chooseColumns(table, turn) {
  const example = (i) => (table.rows.find(({ cells }) => cells[i])?.cells[i] ?? "").slice(0, 30);
  const selects = ["column", "column2"].slice(0, 1 + model.pairs).map((id) => (
    make("select", { id }, ...table.header.cells.map((name, i) => (
      make("option", { value: i, textContent: `${name}: ${example(i)}` }))))));
  const fields = selects.map((select) => (
    make("p", {}, make("label", { htmlFor: select.id, textContent: say(select.id) }), select)));
  $("columns").replaceChildren(...fields, make("button", { className: "button", textContent: say("start") }));
  $("columns").hidden = false;
  $("columns").onsubmit = async (event) => {
    event.preventDefault();
    $("columns").hidden = true;
    try {
      await fill(table, selects.map((select) => Number(select.value)), turn);
    } catch (error) {
      stop(error, turn);
    }
  };
  selects[0].focus();
}

async function fill(table, columns, turn) {
  const number = (value) => value.toLocaleString(language);
  const rows = table.rows.filter((row) => !isBlank(row));
  const progress = (done) => {
    if (turn !== job) throw new Error("replaced");
    $("working").hidden = false;
    Object.assign($("progress"), { value: done, max: rows.length });
    $("progress-text").textContent = say("working", number(done), number(rows.length));
  };
  progress(0);
  const texts = columns.map((column) => rows.map(({ cells }) => cells[column] ?? ""));
  const found = await predictions(texts, progress);
  const added = new Map(rows.map((row, i) => [row, cells(found[i])]));
  const parts = written(table, newColumns(), table.rows.map((row) => added.get(row)));
  const blob = new Blob(parts, { type: "text/csv" });
  const name = table.name.replace(/(\.[^.]*)?$/, ".answers$1");
  const link = make("a", { href: URL.createObjectURL(blob), download: name, className: "button",
    textContent: say("download", name) });
  $("working").hidden = true;
  $("done").replaceChildren(link, ` ${say("rows", number(rows.length))}`);
  link.click();
}

// ---- the page ---------------------------------------------------------------------------------------------

/** Everything in the language of the page. */
function write() {
  const pairs = model?.pairs ?? false;
  const columns = (model ? newColumns() : ["label", "probability"]).join(language === "ko" ? ", " : " and ");
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-say]"))
    element.textContent = say(element.dataset.say, columns);
  $("language").textContent = say("other");
  $("language").lang = language === "ko" ? "en" : "ko";
  document.title = say(pairs ? "title_pairs" : ofTask("title"));
  document.querySelector("h1").textContent = document.title;
  document.querySelector("label[for=text]").textContent = say(pairs ? "text1" : "text");
  $("text").placeholder = pairs ? "" : say("example");
  $("second").hidden = !pairs;
  $("privacy").textContent = model ? say(model.local ? "local" : "server") : "";
}

for (const box of boxes)
  box.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(answer, PAUSE);
  });
$("language").onclick = () => {
  language = language === "ko" ? "en" : "ko";
  write();
  if (model) showAnswer();
  showError($("error"));
  showError($("file-error"));
};
$("file").onchange = ({ target }) => {
  if (target.files.length) take(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
};
for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });

write();
answer();
