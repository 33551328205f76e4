// Runs beside the page: answers edits at once, and in between simulates the removal of every group and of every
// training example, a few at a time.

import { answerOf, meanChange, prepare, trustOf, wholeAnswer } from "./answer.js";
import { removed } from "./edits.js";

const SLICE_MS = 25;
const PATIENCE_S = 60; // removals that take longer in all wait until they are asked for
const TRIED = 8; // so many tell how long all take: the first ones are slow, and any one may be held up

export function serve(scope) {
  let page = null;
  const removals = [];
  const spent = { milliseconds: 0, removals: 0 };
  let patient = false;
  scope.onmessage = ({ data: message }) => {
    if (message.data) {
      page = prepare(message.data);
      removals.push(...groupRemovals(page), ...exampleRemovals(page));
      setTimeout(work, 0);
      return;
    }
    if (message.go) {
      patient = true;
      work();
      return;
    }
    const started = performance.now();
    try {
      const answer = wholeAnswer(page, message.edits, message.schedule);
      scope.postMessage({ number: message.number, answer, milliseconds: performance.now() - started });
    } catch (error) {
      scope.postMessage({ number: message.number, error: error.message });
    }
  };

  function work() {
    const started = performance.now();
    const found = [];
    while (removals.length && performance.now() < started + SLICE_MS)
      found.push(removalOf(page, removals.shift()));
    spent.milliseconds += performance.now() - started;
    spent.removals += found.length;
    const seconds = (removals.length * spent.milliseconds) / spent.removals / 1000;
    const known = !patient && spent.removals >= TRIED && removals.length > 0;
    const waits = known && seconds > PATIENCE_S && removals[0].what === "example";
    if (found.length) scope.postMessage({ found, left: removals.length, seconds, waits });
    if (removals.length && !waits) setTimeout(work, 0);
  }
}

const groupRemovals = (page) =>
  page.train.groupNames.length < 2
    ? []
    : page.train.groupNames.map((name, at) => ({ what: "group", at, chosen: page.rowsOf([name]) }));

const exampleRemovals = (page) =>
  page.train.ids.map((id, at) => ({ what: "example", at, id })).filter(({ at }) => page.originalUses[at] > 0);

// The change of every test example, [test], and the mean change of each group of them and of all with bands.
function removalOf(page, { what, at, id, chosen }) {
  let curriculum;
  try {
    curriculum = removed(page.original, chosen ?? page.rowsOf([], [id]));
  } catch {
    return { what, at, change: null };
  }
  if (curriculum.examples.length === page.original.examples.length) return { what, at, change: null };
  const answer = answerOf(page, curriculum, "stretch");
  if (what === "example") return { what, at, change: Float32Array.from(answer.change) };
  const about = trustOf(page, curriculum, answer);
  const everyone = page.test.ids.map((_, z) => z);
  const means = [...page.test.members, everyone].map((rows) => meanChange(page, answer.change, rows, about));
  return { what, at, change: Float32Array.from(answer.change), means };
}
