// How far a predicted change is to be trusted: the equations of simfluence/trust.py, of the half-widths in
// simulators/bands.py, and of what a question asks beyond the recorded runs in simulators/recorded.py.

import { stepsOf } from "./edits.js";

const TOWARDS = 0.3;
const AWAY = 2.0;
const COMMON = 0.3;
const OVERUSE = 1.5;
const UNLIKE = 0.8;
const SKILLS = [0.03, 0.995];
const CORRELATION = 0.1;
const SHRINKAGE = 4;
const NOTICEABLE = 0.05;
const FAR = 1.25;
const ELSEWHERE = 0.25;
const NAMED = 3;

// {low, high} of a predicted change. typical: root mean square of the changes; noise: half-width for a new run.
export function changeBand(change, typical, noise, about) {
  const skill = Math.min(Math.max(about.skill, SKILLS[0]), SKILLS[1]);
  const width = Math.hypot(noise, Math.sqrt(1 - skill) * UNLIKE * about.unlike);
  const relative = about.normal ** 2 * ((1 - skill) / skill + OVERUSE * about.overused ** 2);
  const distance = (share) =>
    about.widened * Math.sqrt(width ** 2 + relative * ((share * change) ** 2 + (COMMON * typical) ** 2));
  const [down, up] = change >= 0 ? [TOWARDS, AWAY] : [AWAY, TOWARDS];
  return { low: change - distance(down), high: change + distance(up) };
}

// "sure" where the band excludes zero, "leaning" where one half as wide does, else "unknown".
export function verdictOf(change, { low, high }) {
  const towards = change >= 0 ? change - low : high - change;
  const size = Math.abs(change);
  return size > towards ? "sure" : size > towards / 2 ? "leaning" : "unknown";
}

// Of the band around the loss of one test example after a step.
export function halfWidth(bands, step, z) {
  const tests = bands.tests;
  const recorded = bands.quantile.length - 1;
  const at = Math.min(step, recorded);
  return bands.quantile[at] * bands.scale[at * tests + z] * Math.max(step / recorded, 1);
}

// Of the band around the mean loss of these test examples after a step.
export function halfWidthOfMean(bands, rows, step) {
  const single = rootMeanSquare(rows.map((z) => halfWidth(bands, step, z)));
  const usual = single * Math.sqrt(1 / rows.length + CORRELATION);
  const [runs, points, tests] = bands.errorShape;
  if (!runs || rows.length === 1) return Math.min(usual, single);
  const last = bands.points[points - 1];
  const at = bands.points.findIndex((point) => point >= Math.min(step, last));
  let squares = 0;
  let found = 0;
  for (let run = 0; run < runs; run++) {
    let [sum, known] = [0, 0];
    for (const z of rows) {
      const error = bands.errors[(run * points + at) * tests + z];
      if (Number.isFinite(error)) [sum, known] = [sum + error, known + 1];
    }
    if (known) [squares, found] = [squares + (sum / known) ** 2, found + 1];
  }
  const grown = bands.student[found] * Math.max(step / (bands.quantile.length - 1), 1);
  return Math.sqrt((grown ** 2 * squares + SHRINKAGE * usual ** 2) / (found + SHRINKAGE));
}

// What bands of all changes of an edit share; they also take how far losses have moved (`unlike` = far × moved).
export function aboutEdit(page, edited) {
  const { bands, recorded, train } = page;
  const { normal, widened } = bands;
  const uses = usesOf(edited, train.ids.length);
  const before = page.originalUses;
  let [changed, beyond] = [0, 0];
  uses.forEach((count, row) => {
    changed += Math.abs(count - before[row]);
    beyond += Math.max(count - recorded.mostUses[row], 0);
  });
  const overused = changed > 0 ? Math.min(beyond / changed, 1) : 0;
  return { normal, widened, overused, far: distance(page, uses) };
}

export const skillAt = (bands, step) => bands.skill[Math.min(step, bands.skill.length - 1)];

// The total variation distance of an edit's shares of groups from recorded ones, beyond their own.
function distance({ recorded, train }, uses) {
  const groups = train.groupNames.length;
  const runs = recorded.groupUses.length / groups;
  const shares = Array.from({ length: runs }, (_, run) =>
    asShares(recorded.groupUses.subarray(run * groups, (run + 1) * groups)),
  );
  const own = asShares(byGroup(train, uses));
  const mean = own.map((_, group) => shares.reduce((sum, one) => sum + one[group], 0) / runs);
  const apart = (one) => one.reduce((sum, share, group) => sum + Math.abs(share - mean[group]), 0) / 2;
  const usual = shares.reduce((sum, one) => sum + apart(one), 0) / runs;
  return Math.max(apart(own) - usual, 0);
}

// What a verdict rests on, in words.
export function reasonsOf(page, edited, about, skill) {
  const { bands } = page;
  const runs = bands.errorShape[0];
  const reasons = [
    runs
      ? `skill ${skill.toFixed(2)} on ${runs} recorded runs, each left out of a fit`
      : `too few recorded runs to leave one out; skill is taken to be ${skill.toFixed(2)}`,
  ];
  if (bands.widened !== 1) {
    reasons.push(`bands ${bands.widened.toFixed(2)} times as wide, after answers that were retrained`);
  }
  if (about.overused > NOTICEABLE) {
    const share = percent(about.overused);
    reasons.push(`${share} of what changes is use of examples beyond that of any recorded run`);
  }
  const words = unlikeInWords(page, edited);
  return words ? [...reasons, words] : reasons;
}

function unlikeInWords({ recorded, train }, edited) {
  const groups = train.groupNames.length;
  const runs = recorded.groupUses.length / groups;
  const now = byGroup(train, usesOf(edited, train.ids.length));
  const found = [];
  train.groupNames.forEach((name, group) => {
    const uses = Array.from({ length: runs }, (_, run) => recorded.groupUses[run * groups + group]);
    const [low, high] = [Math.min(...uses), Math.max(...uses)];
    if (now[group] >= low / FAR && now[group] <= high * FAR) return;
    const far = Math.max(low / Math.max(now[group], 0.5), now[group] / Math.max(high, 0.5));
    found.push({ far, name: name || "training examples", now: now[group], low, high });
  });
  found.sort((a, b) => b.far - a.far || (a.name < b.name ? 1 : -1));
  const words = found
    .slice(0, NAMED)
    .map(({ name, now: times, low, high }) => `${name} ${times} times (recorded runs: ${low} to ${high})`);
  const more = found.length > NAMED ? ` and ${found.length - NAMED} more groups` : "";
  return words.length ? `the edit uses ${words.join(", ")}${more}` : "";
}

// What the question asks beyond what was recorded, one sentence each. rates: [original, edited] or null.
export function beyondRecorded(page, edited, rates) {
  const { recorded, train } = page;
  const before = stepsOf(page.original);
  const notes = [];
  const beyond = Math.max(stepsOf(edited), before) - recorded.steps;
  if (beyond > 0) {
    const are = beyond === 1 ? "step is" : "steps are";
    notes.push(`${beyond} ${are} beyond the longest recorded run (${recorded.steps} steps)`);
  }
  const far =
    rates && recorded.highest.length ? Math.max(...rates.map((own) => rateOutside(recorded, own))) : 0;
  if (far) {
    notes.push(
      `the learning rate is unlike those recorded at the same step: by up to ${percent(far)} of the usual rate`,
    );
  }
  const uses = usesOf(edited, train.ids.length);
  const asked = train.ids.map((_, row) => row).filter((row) => uses[row] || page.originalUses[row]);
  const unused = asked.filter((row) => recorded.mostUses[row] === 0).length;
  if (unused) {
    notes.push(`${unused} of the ${asked.length} training examples asked about were used by no recorded run`);
  }
  if (recorded.mixed) notes.push(`the recorded runs have mixed settings: ${recorded.mixed}`);
  if (rates === null && stepsOf(edited) !== before) {
    notes.push("the learning rates are not known, so the simulation is the same for either schedule");
  }
  return notes;
}

function rateOutside({ lowest, highest }, rates) {
  let usual = 0;
  lowest.forEach((low, t) => (usual += (low + highest[t]) / (2 * lowest.length)));
  const steps = Math.min(rates.length, highest.length);
  if (!steps || usual <= 0) return 0;
  let far = -Infinity;
  for (let t = 0; t < steps; t++) far = Math.max(far, rates[t] - highest[t], lowest[t] - rates[t]);
  return far / usual > ELSEWHERE ? far / usual : 0;
}

export function usesOf(curriculum, trainRows) {
  const uses = new Float64Array(trainRows);
  for (const row of curriculum.examples) uses[row]++;
  return uses;
}

export function byGroup(train, values) {
  const sums = new Float64Array(train.groupNames.length);
  values.forEach((value, row) => (sums[train.groupOf[row]] += value));
  return sums;
}

function asShares(values) {
  const sum = values.reduce((a, b) => a + b, 0);
  return Array.from(values, (value) => value / Math.max(sum, 1e-300));
}

export const rootMeanSquare = (values) =>
  Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);

export const percent = (share) => `${(100 * share).toFixed(0)}%`;
