// What a recorded run says of its own edits, and the learning rates of an edited run: the equations of
// simfluence/residual.py and simfluence/runs/schedule.py.

import { stepsOf } from "./edits.js";

const RECENT = 0.03;
const KEPT = 0.9;
const POINTS = 64;

// The learning rates [step] of a run with another number of steps; null where they are not known.
export function editedRates(rates, steps, schedule, warmup) {
  if (rates === null) return null;
  const last = rates.length - 1;
  if (schedule === "keep") return Float64Array.from({ length: steps }, (_, t) => rates[Math.min(t, last)]);
  const first = Math.min(warmup, steps, last);
  const rest = rates.subarray(first);
  const end = rest.length - 1;
  return Float64Array.from({ length: steps }, (_, t) => {
    if (t < first) return rates[t];
    const at = (t - first) * (rest.length / Math.max(steps - first, 1));
    const beyond = end > 0 ? Math.max(at - end, 0) * (rest[end] - rest[end - 1]) : 0;
    return Math.max(interpolated(rest, at) + beyond, 0);
  });
}

// Recorded − simulated loss [step + 1, test], linear between evaluations. run: {evaluated, losses}.
export function residualOf(run, simulated, tests) {
  const residual = new Float64Array(simulated.length);
  const steps = simulated.length / tests - 1;
  for (let z = 0; z < tests; z++) {
    const at = [];
    const missed = [];
    run.evaluated.forEach((step, row) => {
      const loss = run.losses[row * tests + z];
      if (!Number.isFinite(loss)) return;
      at.push(step);
      missed.push(loss - simulated[step * tests + z]);
    });
    let next = 0;
    for (let t = 0; at.length && t <= steps; t++) {
      while (next < at.length && at[next] < t) next++;
      const exact = next === 0 || next === at.length || at[next] === t;
      const near = Math.min(next, at.length - 1);
      residual[t * tests + z] = exact
        ? missed[near]
        : missed[next - 1] +
          ((t - at[next - 1]) / (at[next] - at[next - 1])) * (missed[next] - missed[next - 1]);
    }
  }
  return residual;
}

// {same, counterpart, share}: the first step that differs; of each step of the edited curriculum the step of
// the original that it corresponds to, and the share of the residual there that stays. rates: [original,
// edited], or null.
export function keptShare(original, edited, rates, trainRows) {
  const [before, after] = [stepsOf(original), stepsOf(edited)];
  const own = rates ?? [new Float64Array(before).fill(1), new Float64Array(after).fill(1)];
  const same = firstDifference(original, edited, own, trainRows);
  const stretch = (before - same) / Math.max(after - same, 1);
  const counterpart = Float64Array.from({ length: after + 1 }, (_, t) =>
    t <= same ? t : Math.min(same + (t - same) * stretch, before),
  );
  const points = sharePoints(same, after);
  const share = points.map(() => 0);
  for (const memory of [Infinity, Math.max(RECENT * before, 1)]) {
    const ours = new Exposure(original, own[0], memory, trainRows);
    const theirs = new Exposure(edited, own[1], memory, trainRows);
    points.forEach((point, at) => {
      share[at] += commonShare(ours.after(roundHalfEven(counterpart[point])), theirs.after(point)) / 2;
    });
  }
  const found = Float64Array.from({ length: after + 1 }, (_, t) =>
    t <= same ? 1 : KEPT * interpolatedAt(points, share, t),
  );
  return { same, counterpart, share: found };
}

// The residual that is added to the edited simulation [step + 1, test].
export function carriedOver(residual, { counterpart, share }, tests) {
  const steps = residual.length / tests - 1;
  const carried = new Float64Array(counterpart.length * tests);
  counterpart.forEach((place, t) => {
    const low = Math.floor(place);
    const high = Math.min(low + 1, steps);
    const part = place - low;
    for (let z = 0; z < tests; z++) {
      const moved = (1 - part) * residual[low * tests + z] + part * residual[high * tests + z];
      carried[t * tests + z] = share[t] * moved;
    }
  });
  return carried;
}

// What every example has given so far, each step weighing by its learning rate; forgotten with a memory.
class Exposure {
  constructor(curriculum, rates, memory, trainRows) {
    Object.assign(this, { curriculum, rates, keeps: Math.exp(-1 / memory), done: 0 });
    this.values = new Float64Array(trainRows);
  }

  after(steps) {
    const { examples, offsets } = this.curriculum;
    for (; this.done < steps; this.done++) {
      const t = this.done;
      if (this.keeps < 1) for (let i = 0; i < this.values.length; i++) this.values[i] *= this.keeps;
      const each = this.rates[t] / (offsets[t + 1] - offsets[t]);
      for (let use = offsets[t]; use < offsets[t + 1]; use++) this.values[examples[use]] += each;
    }
    return this.values;
  }
}

function commonShare(before, after) {
  let mean = 0;
  for (const value of before) mean += value / before.length;
  let [size, common] = [0, 0];
  for (let i = 0; i < before.length; i++) {
    size += (before[i] - mean) ** 2;
    common += (after[i] - mean) * (before[i] - mean);
  }
  return size > 0 ? Math.min(Math.max(common / size, 0), 1) : 1;
}

function sharePoints(same, after) {
  const found = [];
  for (let n = 0; n < POINTS; n++) {
    const point = roundHalfEven(same + ((after - same) * n) / (POINTS - 1));
    if (point !== found[found.length - 1]) found.push(point);
  }
  return found;
}

function firstDifference(original, edited, rates, trainRows) {
  const both = Math.min(stepsOf(original), stepsOf(edited));
  const differs = new Float64Array(trainRows);
  for (let t = 0; t < both; t++) {
    const gap = Math.abs(rates[0][t] - rates[1][t]);
    if (gap > 1e-8 + 1e-6 * Math.abs(rates[1][t])) return t; // as numpy's isclose
    const used = [];
    [original, edited].forEach(({ examples, offsets }, which) => {
      const each = (which ? -1 : 1) / (offsets[t + 1] - offsets[t]);
      for (let use = offsets[t]; use < offsets[t + 1]; use++) {
        differs[examples[use]] += each;
        used.push(examples[use]);
      }
    });
    let apart = 0;
    for (const row of used) {
      apart += Math.abs(differs[row]);
      differs[row] = 0;
    }
    if (apart > 1e-9) return t;
  }
  return both;
}

function interpolated(values, at) {
  const low = Math.min(Math.floor(at), values.length - 1);
  const high = Math.min(low + 1, values.length - 1);
  return values[low] + Math.min(at - low, 1) * (values[high] - values[low]);
}

function interpolatedAt(points, values, x) {
  let after = 0;
  while (after < points.length - 1 && points[after] < x) after++;
  if (after === 0 || points[after] <= x) return values[after];
  const part = (x - points[after - 1]) / (points[after] - points[after - 1]);
  return values[after - 1] + part * (values[after] - values[after - 1]);
}

function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}
