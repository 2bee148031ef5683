/* Answers from the server that this page came from. The static version has local.js in place of this file. */

const TRIES = 5; // if the server is busy
const TIMEOUT = 30_000; // ms

async function ask(address, body) {
  const headers = { "Content-Type": "application/json" };
  const options = body && { method: "POST", headers, body: JSON.stringify(body) };
  for (let tries = TRIES; ; tries--) {
    const response = await fetch(address, { ...options, signal: AbortSignal.timeout(TIMEOUT) }).catch(() => {
      throw new Error("unreachable");
    });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    if (response.status !== 503 || tries === 1) throw new Error(answer.error ?? `HTTP ${response.status}`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

/**
 * -> {task, label_names, pairs, max_texts, max_characters: of a text, local, predict}.
 * predict(texts, texts2) -> for each text {label, probability, probabilities: {name: p}}, of several labels
 * {labels, probabilities}, of scores {score}. An Error's message is one line, or a key of TEXTS in page.js.
 */
export async function connect() {
  const predict = async (texts, texts2) => (await ask("predict", { texts, texts2 })).predictions;
  return { ...(await ask("health")), local: false, predict };
}
