// The answer to a what-if, as simfluence/whatif.py gives it, and the page's data made ready for it.

import { applyEdit, sameCurriculum, stepsOf } from "./edits.js";
import { carriedOver, editedRates, keptShare, residualOf } from "./residual.js";
import { simulate } from "./simulate.js";
import {
  aboutEdit,
  beyondRecorded,
  changeBand,
  halfWidth,
  halfWidthOfMean,
  reasonsOf,
  rootMeanSquare,
  skillAt,
  usesOf,
  verdictOf,
} from "./trust.js";

const BAND_POINTS = 120; // at so many steps the band along a run is computed, between them it is interpolated

// Adds to the page's data what every answer needs, computed once.
export function prepare(data) {
  const { run, train, test } = data;
  for (const table of [train, test]) {
    const places = new Map(table.groupNames.map((name, at) => [name, at]));
    table.groupOf = table.groups.map((name) => places.get(name));
    table.members = table.groupNames.map(() => []);
    table.groupOf.forEach((group, row) => table.members[group].push(row));
  }
  const rowOf = new Map(train.ids.map((id, row) => [id, row]));
  const places = new Map(train.groupNames.map((name, at) => [name, at]));
  const original = { examples: run.examples, offsets: run.offsets };
  const simulated = simulate(data.simulator, original, run.initial, run.rates);
  const residual = residualOf(run, simulated, test.ids.length);
  return {
    ...data,
    original,
    originalUses: usesOf(original, train.ids.length),
    residual,
    before: simulated.map((loss, at) => loss + residual[at]),
    generator: data.generator,
    rowsOf: (groups = [], ids = []) => {
      const chosen = new Uint8Array(train.ids.length);
      for (const name of groups) for (const row of train.members[places.get(name)]) chosen[row] = 1;
      for (const id of ids) chosen[rowOf.get(id)] = 1;
      return chosen;
    },
  };
}

// The edited curriculum, and those of the edits that change something, in their order.
export function editedCurriculum(page, edits) {
  let curriculum = page.original;
  const made = [];
  for (const edit of edits) {
    const next = applyEdit(curriculum, edit, page);
    if (sameCurriculum(curriculum, next)) continue;
    curriculum = next;
    made.push(edit);
  }
  return { curriculum, made };
}

// {edited: losses [step + 1, test], original, final, low, high, change [test], kept, counterpart, same, rates}
export function answerOf(page, curriculum, schedule) {
  const { run, test } = page;
  const tests = test.ids.length;
  const after = editedRates(run.rates, stepsOf(curriculum), schedule, run.warmup);
  const rates = after && [run.rates, after];
  const losses = simulate(page.simulator, curriculum, run.initial, after);
  const kept = keptShare(page.original, curriculum, rates, page.train.ids.length);
  const carried = carriedOver(page.residual, kept, tests);
  for (let at = 0; at < losses.length; at++) losses[at] += carried[at];
  const final = losses.slice(losses.length - tests);
  const original = page.before.slice(page.before.length - tests);
  const change = final.map((loss, z) => loss - original[z]);
  return { losses, original, final, change, ...kept, rates, kept: kept.share[kept.share.length - 1] };
}

// What an answer shares among all its bands; null without bands.
export function trustOf(page, curriculum, answer) {
  if (!page.bands) return null;
  const step = Math.max(stepsOf(page.original), stepsOf(curriculum));
  const about = aboutAt(page, aboutEdit(page, curriculum), answer.original, step);
  return { ...about, reasons: reasonsOf(page, curriculum, about, about.skill) };
}

function aboutAt(page, about, losses, step) {
  const moved = rootMeanSquare(losses.map((loss, z) => loss - page.run.initial[z]));
  return { ...about, step, unlike: about.far * moved, skill: skillAt(page.bands, step) };
}

// {low, high, verdict} of the change of every test example.
export function bandsOfChanges(page, answer, about) {
  const typical = rootMeanSquare(answer.change);
  return Array.from(answer.change, (change, z) => {
    const band = changeBand(change, typical, halfWidth(page.bands, about.step, z), about);
    return { ...band, verdict: verdictOf(change, band) };
  });
}

// {change, low, high, verdict} of the mean change of some test examples; without bands only the change.
export function meanChange(page, change, rows, about) {
  const own = rows.map((z) => change[z]);
  const mean = own.reduce((sum, value) => sum + value, 0) / rows.length;
  if (!about) return { change: mean };
  const band = changeBand(mean, rootMeanSquare(own), halfWidthOfMean(page.bands, rows, about.step), about);
  return { change: mean, ...band, verdict: verdictOf(mean, band) };
}

// What training for fewer steps changes by itself: the mean over some test examples of the original's losses
// after that many steps less those at its end; null for as many steps or more.
export function changeOfLength(page, steps, rows) {
  const [last, tests] = [stepsOf(page.original), page.test.ids.length];
  if (steps >= last) return null;
  const lossAfter = (step, z) => page.before[step * tests + z];
  return rows.reduce((sum, z) => sum + lossAfter(steps, z) - lossAfter(last, z), 0) / rows.length;
}

// Everything that the page shows of an edit but its curves.
export function wholeAnswer(page, edits, schedule) {
  const { curriculum, made } = editedCurriculum(page, edits);
  const changed = made.length > 0;
  const answer = answerOf(page, curriculum, schedule);
  const about = trustOf(page, curriculum, answer);
  const bands = about && changed ? bandsOfChanges(page, answer, about) : null;
  const notes = [...page.simulatorNotes, ...(changed ? beyondRecorded(page, curriculum, answer.rates) : [])];
  return { curriculum, made, changed, schedule, ...answer, about, bands, notes };
}

// Mean losses of some test examples along the edited run, with a band that opens where the training differs:
// {edited, original, low, high} [step + 1]; the last three are NaN where there are none.
export function meanCurves(page, answer, rows) {
  const tests = page.test.ids.length;
  const mean = (losses, t) => rows.reduce((sum, z) => sum + losses[t * tests + z], 0) / rows.length;
  const steps = { original: stepsOf(page.original), edited: stepsOf(answer.curriculum) };
  const length = Math.max(steps.original, steps.edited) + 1;
  const found = { steps: Float64Array.from({ length }, (_, t) => t) };
  const nothing = () => new Float64Array(length).fill(NaN);
  found.original = nothing().map((none, t) => (t <= steps.original ? mean(page.before, t) : none));
  found.edited = nothing().map((none, t) => (t <= steps.edited ? mean(answer.losses, t) : none));
  [found.low, found.high] = [nothing(), nothing()];
  if (!answer.about || !answer.changed) return found;
  const points = Math.min(steps.edited - answer.same, BAND_POINTS);
  let before = { t: answer.same, down: 0, up: 0 };
  for (let n = 0; n <= points; n++) {
    const t = answer.same + Math.round((n * (steps.edited - answer.same)) / Math.max(points, 1));
    const { change, low, high } = meanChangeAt(page, answer, rows, t);
    const now = { t, down: low - change, up: high - change };
    for (let at = before.t; at <= t; at++) {
      const part = t > before.t ? (at - before.t) / (t - before.t) : 1;
      found.low[at] = found.edited[at] + before.down + part * (now.down - before.down);
      found.high[at] = found.edited[at] + before.up + part * (now.up - before.up);
    }
    before = now;
  }
  return found;
}

// The mean change at a step of the edited run, against the step of the original that it corresponds to.
function meanChangeAt(page, answer, rows, t) {
  const tests = page.test.ids.length;
  const place = answer.counterpart[t];
  const [low, high] = [Math.floor(place), Math.ceil(place)];
  const part = place - low;
  if (t <= answer.same) return { change: 0, low: 0, high: 0 };
  const before = Float64Array.from(
    { length: tests },
    (_, z) => (1 - part) * page.before[low * tests + z] + part * page.before[high * tests + z],
  );
  const change = before.map((loss, z) => answer.losses[t * tests + z] - loss);
  return meanChange(page, change, rows, aboutAt(page, answer.about, before, Math.max(t, Math.round(place))));
}
