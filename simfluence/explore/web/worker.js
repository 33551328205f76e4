// Runs beside the page: answers edits at once, and in between simulates the removal of every group and of every
// training example, a few at a time.

import { answerOf, meanChange, prepare, trustOf, wholeAnswer } from "./answer.js";
import { removed } from "./edits.js";

const SLICE_MS = 25;

export function serve(scope) {
  let page = null;
  const removals = [];
  scope.onmessage = ({ data: message }) => {
    if (message.data) {
      page = prepare(message.data);
      removals.push(...groupRemovals(page), ...exampleRemovals(page));
      setTimeout(work, 0);
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
    const until = performance.now() + SLICE_MS;
    const found = [];
    while (removals.length && performance.now() < until) found.push(removalOf(page, removals.shift()));
    if (found.length) scope.postMessage({ found, left: removals.length });
    if (removals.length) setTimeout(work, 0);
  }
}

const groupRemovals = (page) =>
  page.train.groupNames.length < 2
    ? []
    : page.train.groupNames.map((name, at) => ({ what: "group", at, chosen: page.rowsOf([name]) }));

const exampleRemovals = (page) =>
  page.train.ids
    .map((id, at) => ({ what: "example", at, id }))
    .filter(({ at }) => page.originalUses[at] > 0);

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
