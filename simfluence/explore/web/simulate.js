// The losses that a fitted simulator predicts under a curriculum: the equations of simfluence/simulators/.
// Arrays are flat, the last index running fastest: losses [step + 1, test]. Row 0 is before the first step.

import { stepsOf } from "./edits.js";

const LOSS_FLOOR = 1e-2; // links.py
const GAIN_LOW = 0.1; // kernels/dynamics.py
const GAIN_HIGH = 10;

const LINKS = {
  identity: { into: (loss) => loss, outOf: (level) => level },
  log_odds: {
    into: (loss) => {
      const floored = Math.max(loss, LOSS_FLOOR);
      return floored + Math.log(-Math.expm1(-floored));
    },
    outOf: (level) => Math.max(level, 0) + Math.log1p(Math.exp(-Math.abs(level))),
  },
};

// The mean over the members, in units of the recorded losses. rates: learning rates [step], or null for the
// recorded schedule.
export function simulate(simulator, curriculum, initialLoss, rates) {
  const { offset, scale, members } = simulator;
  const initial = Float64Array.from(initialLoss, (loss) => (loss - offset) / scale);
  const losses = new Float64Array((stepsOf(curriculum) + 1) * initial.length);
  for (const member of members) {
    const own = MEMBERS[member.kind](member, curriculum, initial, rates);
    for (let at = 0; at < losses.length; at++) losses[at] += own[at] / members.length;
  }
  for (let at = 0; at < losses.length; at++) losses[at] = offset + scale * losses[at];
  losses.set(initialLoss);
  return losses;
}

const MEMBERS = {
  effects: ofEffects,
  dynamics: ofDynamics,
  linear: ofLinear,
  mean: ofMean,
  constant: ofConstant,
};

// Learning rates as multiples of their mean over the recorded steps.
function relativeRates(own, steps, rates) {
  const last = own.schedule.length - 1;
  return Float64Array.from({ length: steps }, (_, t) =>
    rates === null ? own.schedule[Math.min(t, last)] : rates[t] / own.usual,
  );
}

// ------------------------------------------------------------------------------- effects (effects/model.py)

function ofEffects(model, curriculum, initialLoss, givenRates) {
  const steps = stepsOf(curriculum);
  const tests = initialLoss.length;
  const { into, outOf } = LINKS[model.link];
  const start = initialLoss.map(into);
  const rates = relativeRates(model.rates, steps, givenRates);
  const trained = model.dynamics && trainAlong(model.dynamics, curriculum, rates, tests);
  const own = model.dynamics || !model.withRates ? new Float64Array(steps).fill(1) : rates;
  const levels = addedUp(model, curriculum, start, own, trained && trained.useWeights);
  const total = model.grid[model.grid.length - 1];
  for (let t = 0; t <= steps; t++) {
    const at = between(model.grid, Math.min(t, total));
    const calibration = at.of(model.calibration, 1, 0);
    const slope = model.priorSlope ? at.of(model.priorSlope, 1, 0) : 0;
    for (let z = 0; z < tests; z++) {
      const average = at.of(model.average, tests, z);
      let level = average + calibration * (levels[t * tests + z] - average);
      if (model.priorSlope) {
        // The prior prediction passes through losses, as in Python, so that its link may be another.
        const prior = into(LINKS.log_odds.outOf(priorLevel(model.dynamics, trained.added, t, z, tests)));
        level += slope * (prior - model.priorAverage[Math.min(t, total) * tests + z]);
      }
      levels[t * tests + z] = outOf(level);
    }
  }
  return levels;
}

const priorLevel = (dynamics, added, t, z, tests) =>
  dynamics.average[Math.min(t, dynamics.average.length / tests - 1) * tests + z] + added[t * tests + z];

// start + the sum over steps of drift + effects of what the optimizer takes in (with momentum).
function addedUp(model, curriculum, start, rates, useWeights) {
  const { effects, orders, center, beta, grid } = model;
  const { examples, offsets } = curriculum;
  const steps = stepsOf(curriculum);
  const tests = start.length;
  const width = orders * tests;
  const total = grid[grid.length - 1];
  const levels = new Float64Array((steps + 1) * tests);
  levels.set(start);
  const moment = new Float64Array(width);
  const batch = new Float64Array(width);
  let interval = 0;
  let forgotten = 1;
  for (let t = 0; t < steps; t++) {
    while (interval < grid.length - 2 && grid[interval + 1] < t + 1) interval++;
    forgotten *= beta;
    const share = (model.biasCorrection ? 1 / (1 - forgotten) : 1) * rates[t];
    const polynomials = legendre(t + 1, total, Math.max(orders, 2));
    if (effects) {
      batch.fill(0);
      const each = model.batchSize / (offsets[t + 1] - offsets[t]);
      for (let use = offsets[t]; use < offsets[t + 1]; use++) {
        const weight = useWeights ? each * useWeights[use] : each;
        const first = examples[use] * width;
        for (let c = 0; c < width; c++) batch[c] += weight * effects[first + c];
      }
      for (let c = 0; c < width; c++) moment[c] = beta * moment[c] + (1 - beta) * batch[c];
    }
    for (let z = 0; z < tests; z++) {
      let change = t + 1 > total ? 0 : model.drift[interval * tests + z];
      if (effects) {
        for (let k = 0; k < orders; k++) {
          const c = k * tests + z;
          change += polynomials[k] * (share * moment[c] - center[c]);
        }
      }
      if (model.initialSlopes) {
        const { initialSlopes } = model;
        const own = polynomials[0] * initialSlopes[z] + polynomials[1] * initialSlopes[tests + z];
        change += (start[z] - model.initial[z]) * own;
      }
      levels[(t + 1) * tests + z] = levels[t * tests + z] + change;
    }
  }
  return levels;
}

// P_0 … of training progress (t − ½)/total, mapped to −1 … 1; t counts from 1.
function legendre(t, total, orders) {
  const x = Math.min(Math.max((2 * t - 1) / total - 1, -1), 1);
  const values = [1, x];
  for (let k = 2; k < orders; k++) {
    values.push(((2 * k - 1) * x * values[k - 1] - (k - 1) * values[k - 2]) / k);
  }
  return values;
}

// Linear interpolation at x between the points of a grid, of arrays with `width` columns.
function between(grid, x) {
  let after = 1;
  while (after < grid.length - 1 && grid[after] < x) after++;
  const part = (x - grid[after - 1]) / (grid[after] - grid[after - 1]);
  return {
    of: (values, width, column) => {
      const low = values[(after - 1) * width + column];
      return low + part * (values[after * width + column] - low);
    },
  };
}

// ------------------------------------------------------------------ training dynamics (dynamics/model.py)

function ofDynamics(model, curriculum, initialLoss, givenRates) {
  const tests = initialLoss.length;
  const rates = relativeRates(model.rates, stepsOf(curriculum), givenRates);
  const { added } = trainAlong(model.dynamics, curriculum, rates, tests);
  return added.map((_, at) => {
    const z = at % tests;
    const shift = LINKS.log_odds.into(initialLoss[z]) - model.initial[z];
    return LINKS.log_odds.outOf(priorLevel(model.dynamics, added, (at - z) / tests, z, tests) + shift);
  });
}

// {added [step + 1, test]: to log(eᴸ − 1); useWeights [use]: what each use still teaches}.
function trainAlong(dynamics, curriculum, rates, tests) {
  const { train, metric, test, beta, feedback, growth, start, profile, kept } = dynamics;
  const { examples, offsets } = curriculum;
  const steps = stepsOf(curriculum);
  const k = metric.length;
  const atStart = 1 + Math.exp(start);
  const y = new Float64Array(k);
  const scaled = new Float64Array(k); // metric · y
  const moment = new Float64Array(k);
  const gradient = new Float64Array(k);
  const added = new Float64Array((steps + 1) * tests);
  const useWeights = new Float64Array(examples.length);
  let gain = 1;
  let gainMoment = 0;
  let forgotten = 1;
  for (let t = 0; t < steps; t++) {
    const gamma = rates[t] * profile[Math.min(t, profile.length - 1)];
    gradient.fill(0);
    for (let c = 0; c < k; c++) scaled[c] = metric[c] * y[c];
    for (let use = offsets[t]; use < offsets[t + 1]; use++) {
      const first = examples[use] * k;
      let known = 0;
      for (let c = 0; c < k; c++) known += train[first + c] * scaled[c];
      const residual = atStart / (1 + Math.exp(Math.min(start + feedback * gain * known, 300)));
      const share = residual / (offsets[t + 1] - offsets[t]);
      for (let c = 0; c < k; c++) gradient[c] += share * train[first + c];
      useWeights[use] = (residual * gamma) / dynamics.usual;
    }
    forgotten *= beta;
    const correction = dynamics.biasCorrection ? 1 - forgotten : 1;
    let along = 0;
    for (let c = 0; c < k; c++) along += scaled[c] * gradient[c];
    const keeps = kept[Math.min(t, kept.length - 1)];
    const size = (gamma / correction) * gain;
    for (let c = 0; c < k; c++) {
      moment[c] = beta * moment[c] + (1 - beta) * gradient[c];
      y[c] = keeps * y[c] + size * moment[c];
    }
    gainMoment = beta * gainMoment + (1 - beta) * along;
    gain = Math.min(Math.max(gain + (growth * gainMoment) / correction, GAIN_LOW), GAIN_HIGH);
    for (let z = 0; z < tests; z++) {
      let sum = 0;
      for (let c = 0; c < k; c++) sum += y[c] * test[z * k + c];
      added[(t + 1) * tests + z] = -gain * sum;
    }
  }
  return { added, useWeights };
}

// ------------------------------------------------- linear (markov/rollout.py) and the two that learn nothing

function ofLinear(model, curriculum, initialLoss) {
  const { slope, intercept, batchSize } = model;
  const { examples, offsets } = curriculum;
  const steps = stepsOf(curriculum);
  const tests = initialLoss.length;
  const losses = new Float64Array((steps + 1) * tests);
  losses.set(initialLoss);
  for (let t = 0; t < steps; t++) {
    const weight = batchSize / (offsets[t + 1] - offsets[t]);
    for (let z = 0; z < tests; z++) {
      const before = losses[t * tests + z];
      let alpha = 0;
      let beta = 0;
      for (let use = offsets[t]; use < offsets[t + 1]; use++) {
        const at = examples[use] * tests + z;
        if (slope) alpha += slope[at];
        if (intercept) beta += intercept[at];
      }
      losses[(t + 1) * tests + z] = before + weight * (alpha * before + beta);
    }
  }
  return losses;
}

function ofMean(model, curriculum, initialLoss) {
  const tests = initialLoss.length;
  const last = model.mean.length / tests - 1;
  const losses = new Float64Array((stepsOf(curriculum) + 1) * tests);
  return losses.map((_, at) => model.mean[Math.min(Math.floor(at / tests), last) * tests + (at % tests)]);
}

function ofConstant(model, curriculum, initialLoss) {
  const tests = initialLoss.length;
  const losses = new Float64Array((stepsOf(curriculum) + 1) * tests);
  return losses.map((_, at) => initialLoss[at % tests]);
}
