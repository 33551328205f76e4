// Figures drawn as SVG: changes of test examples, the timeline of the curriculum, the simulator's quality.

import { stepsOf } from "./edits.js";
import { byId, counted, digitsFor, el, nameOf, plainly, signed, svg, ticks, widthOf } from "./elements.js";
import { shownRows } from "./state.js";
import { percent } from "./trust.js";

const BINS = 160;

// A drawing area with axes: {root, x, y} with x and y from data to pixels.
function frame(width, height, xs, ys, { left = 62, bottom = 34, top = 8, right = 18 } = {}) {
  const scale =
    ([low, high], from, to) =>
    (value) =>
      from + ((value - low) / (high - low || 1)) * (to - from);
  const x = scale(xs, left, width - right);
  const y = scale(ys, height - bottom, top);
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  return { root, x, y, left, right: width - right, bottom: height - bottom, top, width, height };
}

function yAxis(area, [low, high], label, format) {
  for (const value of ticks(low, high, 6)) {
    const y = area.y(value);
    area.root.append(
      svg("line", {
        x1: area.left,
        x2: area.right,
        y1: y,
        y2: y,
        class: Math.abs(value) < 1e-12 ? "zero" : "grid",
      }),
      svg("text", { x: area.left - 6, y: y + 4, class: "tick end" }, format(value)),
    );
  }
  const middle = (area.top + area.bottom) / 2;
  area.root.append(
    svg("text", { x: 12, y: middle, class: "label", transform: `rotate(-90 12 ${middle})` }, label),
  );
}

function xAxis(area, [low, high], label, format, grid = false) {
  for (const value of ticks(low, high, area.width < 420 ? 4 : 8)) {
    const x = area.x(value);
    if (grid) area.root.append(svg("line", { x1: x, x2: x, y1: area.top, y2: area.bottom, class: "grid" }));
    area.root.append(svg("text", { x, y: area.bottom + 15, class: "tick middle" }, format(value)));
  }
  area.root.append(
    svg("text", { x: (area.left + area.right) / 2, y: area.height - 3, class: "label" }, label),
  );
}

// ---------------------------------------------------------------------------- changes of test examples

export function changesFigure(app) {
  const place = byId("changes");
  const order = byId("changes-sort");
  const sorts = {
    change: (page, change) => (a, b) => change[a] - change[b],
    group: (page, change) => (a, b) => page.test.groupOf[a] - page.test.groupOf[b] || change[a] - change[b],
    name: () => (a, b) => a - b,
  };
  let sorted = [];
  let area = null;

  function draw() {
    const { page, answer } = app;
    const { change, bands, changed } = answer;
    const retrained = app.retrained();
    const rows = page.test.ids.map((_, z) => z);
    sorted = rows.sort(sorts[order.value](page, change));
    const edges = bands ? bands.flatMap(({ low, high }) => [low, high]) : [...change];
    const reach =
      Math.max(...[...edges, ...change, ...(retrained ?? [])].filter(Number.isFinite).map(Math.abs), 1e-6) *
      1.06;
    area = frame(widthOf(place), widthOf(place) < 480 ? 220 : 260, [-1, rows.length], [-reach, reach], {
      bottom: 22,
    });
    yAxis(area, [-reach, reach], "change of loss", (value) => signed(value, digitsFor([reach]) - 1));
    const chosen = new Set(shownRows(app.state, page));
    const few = chosen.size < rows.length;
    sorted.forEach((z, at) => {
      if (!changed) return;
      const x = area.x(at);
      const group = svg("g", {
        class: `point ${change[z] < 0 ? "better" : "worse"} ${few && !chosen.has(z) ? "faint" : ""}`,
      });
      if (bands) {
        group.append(
          svg("line", {
            x1: x,
            x2: x,
            y1: area.y(bands[z].low),
            y2: area.y(bands[z].high),
            class: "whisker",
          }),
        );
      }
      const verdict = bands ? bands[z].verdict : "sure";
      group.append(
        svg("circle", { cx: x, cy: area.y(change[z]), r: rows.length > 120 ? 2.5 : 4, class: verdict }),
      );
      if (retrained && Number.isFinite(retrained[z])) {
        const y = area.y(retrained[z]);
        group.append(svg("path", { d: `M${x} ${y - 4}l4 4l-4 4l-4 -4z`, class: "truth" }));
      }
      area.root.append(group);
    });
    const words = {
      change: "test examples, from learnt better to learnt worse",
      group: "test examples, by group",
      name: "test examples, in the order of the table",
    };
    area.root.append(
      svg(
        "text",
        { x: (area.left + area.right) / 2, y: area.height - 5, class: "label" },
        words[order.value],
      ),
    );
    if (!changed) {
      area.root.append(
        svg(
          "text",
          { x: (area.left + area.right) / 2, y: area.y(reach / 8), class: "empty" },
          "Change something to see what it does.",
        ),
      );
    }
    place.replaceChildren(area.root);
    byId("changes-truth").hidden = !retrained;
    read(null);
  }

  const nearest = (event) => {
    const at = Math.round(
      -1 + ((event.offsetX - area.left) / (area.right - area.left)) * (sorted.length + 1),
    );
    return sorted[Math.min(Math.max(at, 0), sorted.length - 1)];
  };

  function read(z) {
    byId("changes-read").textContent =
      z === null
        ? "Point at a test example to read it; click to look at its curve alone."
        : app.testInWords(z);
  }

  place.addEventListener("mousemove", (event) => app.answer.changed && read(nearest(event)));
  place.addEventListener("mouseleave", () => read(null));
  place.addEventListener("click", (event) => app.showOnly(nearest(event)));
  order.onchange = draw;
  return draw;
}

// ------------------------------------------------------------------------------------------- timeline

export function timeline(app) {
  const place = byId("timeline");
  return function draw() {
    const { page, answer } = app;
    const strips = [{ name: "recorded", curriculum: page.original }];
    if (answer.changed) strips.push({ name: "edited", curriculum: answer.curriculum });
    const longest = Math.max(...strips.map(({ curriculum }) => stepsOf(curriculum)));
    const height = 62 * strips.length + 30;
    const area = frame(widthOf(place), height, [0, longest], [0, 1], {
      left: 66,
      bottom: 34,
      top: 0,
      right: 12,
    });
    strips.forEach(({ name, curriculum }, at) => {
      const top = 4 + at * 62;
      area.root.append(
        svg("text", { x: 58, y: top + 30, class: "tick end" }, name),
        ...strip(app, curriculum, area, top, 52),
      );
    });
    xAxis(area, [0, longest], "step of training", (value) => `${value}`);
    place.replaceChildren(area.root);
    const groups = page.train.groupNames.filter((name) =>
      page.train.members[page.train.groupNames.indexOf(name)].some((row) => page.originalUses[row]),
    );
    const named = groups.filter((name) => app.colours.get(name) !== app.restColour);
    const items = named.map((name) =>
      el(
        "li",
        { "data-colour": app.colours.get(name) },
        el("span", { class: "swatch", style: `background:${app.colours.get(name)}` }),
        nameOf(name),
      ),
    );
    if (named.length < groups.length)
      items.push(
        el(
          "li",
          {},
          el("span", { class: "swatch", style: `background:${app.restColour}` }),
          counted(groups.length - named.length, "more group"),
        ),
      );
    byId("timeline-legend").replaceChildren(...items);
    const uses = (curriculum) => counted(curriculum.examples.length, "use");
    byId("timeline-words").textContent =
      strips
        .map(
          ({ name, curriculum }) =>
            `${name}: ${counted(stepsOf(curriculum), "step")}, ${uses(curriculum)} of examples`,
        )
        .join("; ") + ".";
  };
}

function strip(app, { examples, offsets }, area, top, height) {
  const steps = offsets.length - 1;
  const bins = Math.min(steps, BINS);
  const { train } = app.page;
  const found = [];
  for (let bin = 0; bin < bins; bin++) {
    const [first, last] = [Math.round((bin * steps) / bins), Math.round(((bin + 1) * steps) / bins)];
    const counts = new Map();
    for (let use = offsets[first]; use < offsets[last]; use++) {
      const colour = app.colours.get(train.groups[examples[use]]);
      counts.set(colour, (counts.get(colour) ?? 0) + 1);
    }
    const total = offsets[last] - offsets[first];
    const [x, width] = [area.x(first), area.x(last) - area.x(first)];
    let y = top + height;
    for (const colour of [...new Set(app.colours.values())]) {
      const tall = ((counts.get(colour) ?? 0) / total) * height;
      if (!tall) continue;
      y -= tall;
      found.push(
        svg("rect", {
          x,
          y,
          width: Math.max(width - (width > 4 ? 0.75 : 0), 0.5),
          height: tall,
          fill: colour,
          "data-colour": colour,
        }),
      );
    }
  }
  return found;
}

// -------------------------------------------------------------------------------------------- quality

export function qualityFigures(app) {
  const { quality, bands } = app.page;
  if (!quality) {
    byId("quality").hidden = true;
    return () => {};
  }
  const runs = counted(quality.runs.length, "run");
  const said =
    quality.skill === null
      ? ""
      : ` Of what distinguishes these runs' final losses from the average run's, it predicts ${percent(Math.max(quality.skill, 0))} (skill ${plainly(quality.skill, 2)}; 1 is perfect, 0 no better than the average run).`;
  byId("quality-words").textContent =
    `The simulator never saw ${runs} of this set. Each point is the final loss of one test example in one of them.${said}`;
  if (!quality.levels.length) byId("calibration-figure").hidden = true;
  return function draw() {
    const place = byId("scatter");
    const all = [...quality.true, ...quality.predicted];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const margin = (high - low) * 0.04;
    const range = [low - margin, high + margin];
    const area = frame(widthOf(place), Math.min(widthOf(place) * 0.8, 320), range, range);
    const digits = digitsFor([high]) - 1;
    yAxis(area, range, "recorded final loss", (value) => plainly(value, digits));
    xAxis(area, range, "predicted final loss", (value) => plainly(value, digits), true);
    area.root.append(
      svg("line", {
        x1: area.x(low),
        y1: area.y(low),
        x2: area.x(high),
        y2: area.y(high),
        class: "diagonal",
      }),
    );
    quality.true.forEach((loss, at) =>
      area.root.append(
        svg("circle", { cx: area.x(quality.predicted[at]), cy: area.y(loss), r: 2.2, class: "dot" }),
      ),
    );
    place.replaceChildren(area.root);
    if (quality.levels.length) calibration(byId("calibration"));
  };

  function calibration(place) {
    const area = frame(widthOf(place), Math.min(widthOf(place) * 0.8, 320), [0, 1], [0, 1]);
    yAxis(area, [0, 1], "share of losses inside", percent);
    xAxis(area, [0, 1], "level of the band", percent, true);
    area.root.append(
      svg("line", { x1: area.x(0), y1: area.y(0), x2: area.x(1), y2: area.y(1), class: "diagonal" }),
    );
    const points = quality.levels.map((level, at) => `${area.x(level)},${area.y(quality.held[at])}`);
    area.root.append(svg("polyline", { points: points.join(" "), class: "calibration" }));
    quality.levels.forEach((level, at) =>
      area.root.append(
        svg("circle", { cx: area.x(level), cy: area.y(quality.held[at]), r: 3.5, class: "dot strong" }),
      ),
    );
    place.replaceChildren(area.root);
    const last = quality.levels.length - 1;
    byId("calibration-words").textContent =
      `Bands are honest where the line follows the diagonal: the ${percent(quality.levels[last])} band held ${percent(quality.held[last])} of the losses.`;
  }
}
