// The loss curves, drawn by uPlot.

import { meanCurves } from "./answer.js";
import { byId, colourOf, digitsFor, el, plainly, widthOf } from "./elements.js";
import { shownRows } from "./state.js";

const LINES = [
  { key: "original", label: "as recorded", colour: "ink" },
  { key: "simulated", label: "original, simulated", colour: "muted", dash: [3, 4] },
  { key: "edited", label: "edited, predicted", colour: "accent" },
];

export function lossCurves(app) {
  const place = byId("curves");
  let plot = null;
  let drawnAs = "";
  let shownData = null;

  function draw() {
    const { page, answer } = app;
    const rows = shownRows(app.state, page);
    const curves = { ...meanCurves(page, answer, rows), simulated: simulatedOriginal(page, rows) };
    if (!answer.changed) curves.edited = curves.edited.map(() => NaN);
    const series = [
      curves.original,
      padded(curves.simulated, curves.steps.length),
      curves.edited,
      curves.low,
      curves.high,
    ];
    shownData = [curves.steps, ...series].map((values) =>
      Array.from(values, (value) => (Number.isFinite(value) ? value : null)),
    );
    const look = `${widthOf(place)} ${colourOf("ink")}`;
    if (look === drawnAs) plot.setData(shownData);
    else {
      if (plot) plot.destroy();
      plot = new uPlot(optionsFor(widthOf(place)), shownData, place);
      plot.root.setAttribute("aria-hidden", "true");
      drawnAs = look;
    }
    legend(app.answer.changed);
    read(null);
  }

  function optionsFor(width) {
    const [ink, grid] = [colourOf("muted"), colourOf("line")];
    const axis = {
      stroke: ink,
      grid: { stroke: grid, width: 1 },
      ticks: { stroke: grid, width: 1 },
      font: "12px system-ui, sans-serif",
    };
    const line = ({ colour, dash }) => ({
      stroke: colourOf(colour),
      width: dash ? 1.25 : 2,
      dash,
      points: { show: false },
      spanGaps: true,
    });
    const edge = { stroke: "transparent", width: 0, points: { show: false } };
    return {
      width,
      height: width < 480 ? 240 : 300,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false, points: { size: 6 } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, label: "step of training", labelSize: 22, labelFont: axis.font, size: 34 },
        {
          ...axis,
          values: (_, splits) => alike(splits),
          label: "mean loss",
          labelSize: 22,
          labelFont: axis.font,
          size: 52,
        },
      ],
      series: [{}, ...LINES.map(line), edge, edge],
      bands: [{ series: [5, 4], fill: colourOf("accent-soft") }],
      hooks: { setCursor: [(own) => read(own.cursor.idx)] },
    };
  }

  function read(index) {
    const at = index ?? lastKnown(shownData[app.answer.changed ? 3 : 1]);
    const values = shownData.slice(1).map((series) => series[at]);
    const digits = digitsFor(values.filter((value) => value !== null)) + 1;
    const parts = LINES.map(({ label }, n) =>
      values[n] === null ? null : `${label} ${plainly(values[n], digits)}`,
    );
    if (values[3] !== null && app.answer.changed) {
      parts.push(`band ${plainly(values[3], digits)} to ${plainly(values[4], digits)}`);
    }
    byId("curves-read").textContent = `After step ${shownData[0][at]}: ${parts.filter(Boolean).join(" · ")}`;
  }

  function legend(changed) {
    const lines = LINES.filter(({ key }) => changed || key !== "edited");
    const items = lines.map(({ label, colour, dash }) =>
      el(
        "li",
        {},
        el("span", { class: `line ${dash ? "dashed" : ""}`, style: `--of: var(--${colour})` }),
        label,
      ),
    );
    if (changed && app.answer.about) {
      const level = Math.round(100 * app.page.bands.level);
      items.push(el("li", {}, el("span", { class: "area" }), `${level}% band of the edited loss`));
    }
    byId("curves-legend").replaceChildren(...items);
  }

  return draw;
}

// The original as it would have been predicted, without its recording.
function simulatedOriginal(page, rows) {
  const tests = page.test.ids.length;
  return Float64Array.from(
    { length: page.before.length / tests },
    (_, t) =>
      rows.reduce((sum, z) => sum + page.before[t * tests + z] - page.residual[t * tests + z], 0) /
      rows.length,
  );
}

const lastKnown = (values) => values.findLastIndex((value) => value !== null);

// Numbers of an axis, all with as many decimals as their distance needs.
function alike(splits) {
  const digits = Math.max(Math.ceil(-Math.log10(splits[1] - splits[0] || 1) - 1e-9), 0);
  return splits.map((value) => plainly(value, digits));
}

const padded = (values, length) => Float64Array.from({ length }, (_, t) => values[t] ?? NaN);
