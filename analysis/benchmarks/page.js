// The body of a function of train, test and steps: the shortest time of an answer, in milliseconds.
let seed = 1;
const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647 - 0.5;
const numbers = (n, scale = 1) => Float64Array.from({ length: n }, () => scale * random());
const rows = (n, scale) => Float32Array.from({ length: n }, () => scale * random());
const k = Math.min(train, test);
const grid = Int32Array.from({ length: 21 }, (_, at) => Math.round((at * steps) / 20));
const rates = { schedule: new Float64Array(steps).fill(1), usual: 1e-4 };
const dynamics = () => ({
  train: rows(train * k, 0.3),
  metric: new Float64Array(k).fill(1),
  test: numbers(test * k, 0.3),
  profile: Float64Array.of(0.1),
  kept: Float64Array.of(0.999),
  beta: 0.9,
  biasCorrection: true,
  feedback: 0.5,
  growth: 0.01,
  start: 0,
  average: numbers((steps + 1) * test),
  usual: 0.1,
});
const member = () => ({
  kind: "effects",
  link: "log_odds",
  beta: 0.9,
  biasCorrection: true,
  withRates: false,
  batchSize: 8,
  grid,
  effects: rows(train * 3 * test, 0.01),
  orders: 3,
  center: numbers(3 * test, 0.01),
  drift: numbers(20 * test, 0.01),
  average: numbers(21 * test),
  initial: numbers(test),
  initialSlopes: null,
  calibration: new Float64Array(21).fill(1),
  priorAverage: numbers((steps + 1) * test),
  priorSlope: new Float64Array(21).fill(0.9),
  dynamics: dynamics(),
  rates,
});
const batch = 8;
const table = (n) => ({
  ids: Array.from({ length: n }, (_, i) => `e${i}`),
  groups: Array.from({ length: n }, (_, i) => `g${i % 8}`),
  groupNames: Array.from({ length: 8 }, (_, i) => `g${i}`),
});
const state = { state: "123456789", increment: "987654321" };
const page = prepare({
  simulator: { members: [member(), member()], offset: 0, scale: 1 },
  generator: state,
  simulatorNotes: [],
  train: table(train),
  test: table(test),
  recorded: {
    steps,
    lowest: new Float64Array(steps).fill(1e-4),
    highest: new Float64Array(steps).fill(1e-4),
    mixed: "",
    mostUses: new Float32Array(train).fill(3),
    groupUses: new Float64Array(20 * 8).fill(1),
  },
  bands: {
    level: 0.9,
    widened: 1,
    normal: 1.64,
    student: new Float64Array(21).fill(2),
    tests: test,
    scale: numbers((steps + 1) * test).fill(0.1),
    quantile: new Float64Array(steps + 1).fill(1.5),
    skill: new Float64Array(steps + 1).fill(0.6),
    errors: rows(20 * 32 * test, 0.1),
    errorShape: [20, 32, test],
    points: Array.from({ length: 32 }, (_, at) => Math.round((at * steps) / 31)),
  },
  run: {
    id: "run",
    evaluated: Array.from({ length: steps + 1 }, (_, t) => t),
    losses: rows((steps + 1) * test, 1).map(Math.abs),
    initial: numbers(test).fill(1),
    rates: new Float64Array(steps).fill(1e-4),
    warmup: 0,
    examples: Int32Array.from({ length: steps * batch }, () => Math.floor((random() + 0.5) * train)),
    offsets: Int32Array.from({ length: steps + 1 }, (_, t) => t * batch),
  },
});
const questions = [
  [{ name: "remove", groups: ["g1"] }],
  [{ name: "repeat", groups: ["g2"], times: 2 }],
  [{ name: "put_before", groups: ["g3"], before_groups: ["g0", "g1", "g2"] }],
  [{ name: "remove", ids: ["e5"] }],
];
const times = [];
for (let round = 0; round < 3; round++) {
  for (const edits of questions) {
    const started = performance.now();
    const answer = wholeAnswer(page, edits, "stretch");
    if (!answer.final.every(Number.isFinite)) throw new Error("a loss is not finite");
    times.push(performance.now() - started);
  }
}
times.sort((a, b) => a - b);
return times[0];
