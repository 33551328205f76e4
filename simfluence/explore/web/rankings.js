// Tables: what leaving out every group does to every group of test examples, every training example, and every
// test example.

import { timesField, setTimes, toggled } from "./controls.js";
import { byId, counted, digitsFor, el, nameOf, redraw, signed } from "./elements.js";
import { shownInWords, shownRows } from "./state.js";

const ROWS_AT_ONCE = 25;
const WIDE_MATRIX = 12;
const NARROW_MATRIX = 5;

// ------------------------------------------------------------------------------------------ group matrix

export function groupMatrix(app) {
  const { page } = app;
  if (page.train.groupNames.length < 2) byId("matrix-card").hidden = true;
  return function draw() {
    const rows = page.train.groupNames
      .map((name, at) => ({ name, removal: app.removals.groups.get(at) }))
      .filter(({ removal }) => removal?.means);
    const several = page.test.groupNames.length > 1;
    const order = several ? likeTraining(page) : [];
    const columns = [...order.map((at) => nameOf(page.test.groupNames[at])), "all"];
    const cells = rows.flatMap(({ removal }) => own(removal));
    const largest = Math.max(...cells.map(({ change }) => Math.abs(change)), 1e-9);
    const digits = digitsFor([largest]);
    const small = columns.length > WIDE_MATRIX;
    const head = el(
      "tr",
      {},
      el("th", { scope: "col" }, "left out"),
      ...columns.map((name) => el("th", { scope: "col", class: "turned" }, el("span", {}, name))),
    );
    const body = rows.map(({ name, removal }) =>
      el(
        "tr",
        { "data-colour": app.colours.get(name) },
        el(
          "th",
          { scope: "row" },
          el("span", { class: "swatch", style: `background:${app.colours.get(name)}` }),
          nameOf(name),
        ),
        ...own(removal).map((cell, at) =>
          matrixCell(cell, largest, digits, small, `${nameOf(name)} left out, ${columns[at]}`),
        ),
      ),
    );
    byId("matrix").replaceChildren(el("thead", {}, head), el("tbody", {}, ...body));
    byId("matrix").classList.toggle("small", small);
    byId("matrix-card").classList.toggle("whole", columns.length > NARROW_MATRIX);

    function own(removal) {
      return [...order.map((at) => removal.means[at]), removal.means[removal.means.length - 1]];
    }
  };
}

// Groups of test examples in the order of the groups of training examples of the same names, then the others.
function likeTraining({ train, test }) {
  const place = (at) => train.groupNames.indexOf(test.groupNames[at]) + 1 || Infinity;
  return test.groupNames.map((_, at) => at).sort((a, b) => place(a) - place(b) || a - b);
}

function matrixCell({ change, low, high, verdict }, largest, digits, small, what) {
  const strength = Math.round(100 * Math.min(Math.abs(change) / largest, 1) ** 0.7);
  const band =
    low === undefined ? "" : `, band ${signed(low, digits)} to ${signed(high, digits)}, ${verdict}`;
  return el(
    "td",
    {
      style: `--of: var(--${change < 0 ? "better" : "worse"}); --strength: ${strength}%`,
      class: verdict ?? "",
      title: `${what}: ${signed(change, digits)}${band}`,
    },
    small ? el("span", { class: "hidden" }, signed(change, digits)) : signed(change, digits),
  );
}

// ------------------------------------------------------------------------------------- training examples

export function trainingExamples(app) {
  const { page } = app;
  const [search, group, sort] = [byId("examples-search"), byId("examples-group"), byId("examples-sort")];
  let most = ROWS_AT_ONCE;
  fillGroups(group, page.train.groupNames);
  const sorts = {
    harmful: (effect) => (a, b) => effect(a) - effect(b),
    helpful: (effect) => (a, b) => effect(b) - effect(a),
    uses: () => (a, b) => page.originalUses[b] - page.originalUses[a] || a - b,
    table: () => (a, b) => a - b,
  };

  function draw() {
    const rows = shownRows(app.state, page);
    const effects = new Map();
    for (const [row, { change }] of app.removals.examples) {
      effects.set(row, rows.reduce((sum, z) => sum + change[z], 0) / rows.length);
    }
    const effect = (row) => effects.get(row) ?? 0;
    const found = matching(page.train, search.value, group.value).filter((row) => page.originalUses[row] > 0);
    found.sort(sorts[sort.value](effect));
    const largest = Math.max(...[...effects.values()].map(Math.abs), 1e-12);
    const digits = digitsFor([largest]) + 1;
    const drawn = found.slice(0, most).map((row) => exampleRow(row, effects.get(row), largest, digits));
    redraw(byId("examples"), drawn);
    byId("examples-more").hidden = found.length <= most;
    byId("examples-more").textContent = `Show more (${found.length - most} left)`;
    const { left: toGo, seconds, waits } = app.removals;
    byId("examples-go").hidden = !waits;
    byId("examples-go").textContent = `Simulate all ${toGo} removals (about ${Math.ceil(seconds / 60)} min)`;
    const left = toGo && !waits ? ` Still simulating: ${toGo} to go.` : "";
    byId("examples-words").textContent =
      `Change of the mean loss of ${shownInWords(app.state, page)} if this one example had been left out of the recorded run. Above zero: the example helps. Single effects are mostly smaller than the band: read them as a ranking.${left}`;
  }

  function exampleRow(row, change, largest, digits) {
    const { ids, groups } = page.train;
    const id = ids[row];
    const out = app.state.idsOut.has(id) || app.state.groupsOut.has(groups[row]);
    const use = el("input", {
      type: "checkbox",
      checked: !out,
      disabled: app.state.groupsOut.has(groups[row]),
      "aria-label": `use ${id}`,
      "data-key": `use ${id}`,
      onchange: () => app.change((state) => toggled(state.idsOut, id, !use.checked)),
    });
    const width = change === undefined ? 0 : (50 * Math.abs(change)) / largest;
    const bar = el("span", { class: `bar ${change < 0 ? "better" : "worse"}`, style: `--width: ${width}%` });
    return el(
      "tr",
      { class: out ? "out" : "" },
      el("td", {}, use),
      el("td", { class: "what" }, ...nameAndText(page.train, row)),
      el(
        "td",
        { class: "group" },
        el("span", { class: "swatch", style: `background:${app.colours.get(groups[row])}` }),
        nameOf(groups[row]),
      ),
      el("td", { class: "number uses" }, `${page.originalUses[row]}`),
      el(
        "td",
        {},
        timesField(
          `${id}: how often each use is to occur`,
          () => app.state.idTimes.get(id) ?? 1,
          (n) => app.change((state) => setTimes(state.idTimes, id, n)),
        ),
      ),
      el("td", { class: "number" }, change === undefined ? "…" : signed(change, digits)),
      el("td", { class: "bars" }, bar),
    );
  }

  const anew = () => {
    most = ROWS_AT_ONCE;
    draw();
  };
  search.oninput = group.onchange = sort.onchange = anew;
  byId("examples-more").onclick = () => {
    most += 100;
    draw();
  };
  return draw;
}

// ----------------------------------------------------------------------------------------- test examples

export function testExamples(app) {
  const { page } = app;
  const [search, group, show] = [byId("tests-search"), byId("tests-group"), byId("show")];
  let most = ROWS_AT_ONCE;
  fillGroups(group, page.test.groupNames);
  show.append(el("option", { value: "all" }, `all ${page.test.ids.length} test examples`));
  if (page.test.groupNames.length > 1) {
    show.append(
      ...page.test.groupNames.map((name) =>
        el(
          "option",
          { value: `group:${name}` },
          `${nameOf(name)} (${page.test.members[page.test.groupNames.indexOf(name)].length})`,
        ),
      ),
    );
  }
  show.append(el("option", { value: "ids", disabled: true }, "chosen ones"));
  show.onchange = () => {
    const shown =
      show.value === "all" ? { kind: "all" } : { kind: "group", name: show.value.slice("group:".length) };
    app.look((state) => (state.shown = shown));
  };

  function draw() {
    const { change, bands, original, final, changed } = app.answer;
    const { shown } = app.state;
    show.value = shown.kind === "group" ? `group:${shown.name}` : shown.kind;
    const digits = digitsFor([...change]);
    const found = matching(page.test, search.value, group.value).sort((a, b) => change[a] - change[b]);
    redraw(
      byId("tests"),
      found.slice(0, most).map((z) => {
        const id = page.test.ids[z];
        const looked = el("input", {
          type: "checkbox",
          checked: shown.kind === "ids" && shown.ids.has(id),
          "aria-label": `look at ${id}`,
          "data-key": id,
          onchange: () => app.lookAt(id, looked.checked),
        });
        return el(
          "tr",
          {},
          el("td", {}, looked),
          el("td", { class: "what" }, ...nameAndText(page.test, z)),
          el("td", { class: "group" }, nameOf(page.test.groups[z])),
          el("td", { class: "number" }, original[z].toFixed(3)),
          el("td", { class: "number" }, changed ? final[z].toFixed(3) : ""),
          el("td", { class: "number" }, changed ? signed(change[z], digits) : ""),
          el(
            "td",
            { class: "number wide" },
            changed && bands ? `${signed(bands[z].low, digits)} to ${signed(bands[z].high, digits)}` : "",
          ),
          el("td", {}, changed && bands ? bands[z].verdict : ""),
        );
      }),
    );
    byId("tests-more").hidden = found.length <= most;
    byId("tests-more").textContent = `Show more (${counted(found.length - most, "test example")} left)`;
  }

  search.oninput = group.onchange = () => {
    most = ROWS_AT_ONCE;
    draw();
  };
  byId("tests-more").onclick = () => {
    most += 100;
    draw();
  };
  return draw;
}

// An example's id with its text, or with the hash of its content where the page has no texts.
function nameAndText({ ids, texts, hashes }, row) {
  const id = el("span", { class: "id" }, ids[row]);
  if (texts?.[row]) return [id, el("span", { class: "text", title: texts[row] }, texts[row])];
  return hashes[row]
    ? [
        id,
        el("span", { class: "hash", title: `hash of its content: ${hashes[row]}` }, hashes[row].slice(0, 8)),
      ]
    : [id];
}

function fillGroups(select, names) {
  if (names.length < 2) select.closest("label").hidden = true;
  select.append(
    el("option", { value: "*" }, "every group"),
    ...names.map((name) => el("option", { value: `=${name}` }, nameOf(name))),
  );
}

// Rows of a table whose id or text has these words, in a group.
function matching(table, words, group) {
  const wanted = words.trim().toLowerCase().split(/\s+/).filter(Boolean);
  return table.ids
    .map((_, row) => row)
    .filter((row) => {
      if (group !== "*" && table.groups[row] !== group.slice(1)) return false;
      const text = `${table.ids[row]} ${table.texts?.[row] ?? ""}`.toLowerCase();
      return wanted.every((word) => text.includes(word));
    });
}
