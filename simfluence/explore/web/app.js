// The page: one state, one answer to it, and what draws both.

import { changeOfLength, meanChange, prepare } from "./answer.js";
import { groupControls, lengthControls } from "./controls.js";
import { lossCurves } from "./curves.js";
import { parsed } from "./data.js";
import { stepsOf } from "./edits.js";
import {
  byId,
  counted,
  digitsFor,
  el,
  forgetWidths,
  groupColours,
  nameOf,
  REST,
  signed,
} from "./elements.js";
import { changesFigure, qualityFigures, timeline } from "./figures.js";
import { groupMatrix, testExamples, trainingExamples } from "./rankings.js";
import {
  editsOf,
  fragmentOf,
  initialState,
  sentenceOf,
  shownInWords,
  shownRows,
  stateOf,
  wordsOf,
  yamlOf,
} from "./state.js";
import { percent } from "./trust.js";
import { serve } from "./worker.js";

const LONGEST = 4; // times the recorded run

class App {
  constructor(data) {
    this.page = prepare(data);
    this.page.mostSteps = LONGEST * stepsOf(this.page.original);
    this.colours = groupColours(this.page);
    this.restColour = REST;
    this.removals = { groups: new Map(), examples: new Map(), left: 1, seconds: 0, waits: false };
    this.answer = null;
    this.asked = 0;
    this.waiting = false;
    this.worker = makeWorker();
    this.worker.onmessage = ({ data: message }) => this.receive(message);
    this.worker.onerror = (event) => this.failed(event.message);
    this.worker.postMessage({ data });
    this.state = stateOf(location.hash.slice(1), this.page);
    describe(this.page);
    this.drawers = [
      groupControls(this),
      lengthControls(this),
      lossCurves(this),
      changesFigure(this),
      timeline(this),
      testExamples(this),
    ];
    this.drawMatrix = groupMatrix(this);
    this.rankExamples = trainingExamples(this);
    this.quality = qualityFigures(this);
    this.ask();
  }

  // ------------------------------------------------------------------------------------------ changes

  // Edits the training: the answer is asked for anew.
  change(edit) {
    edit(this.state);
    this.keepInUrl();
    this.ask();
  }

  // Changes what is looked at: the answer stays.
  look(at) {
    at(this.state);
    this.keepInUrl();
    this.draw();
    this.rankExamples();
  }

  lookAt(id, chosen) {
    this.look((state) => {
      const ids = new Set(state.shown.kind === "ids" ? state.shown.ids : []);
      if (chosen) ids.add(id);
      else ids.delete(id);
      state.shown = ids.size ? { kind: "ids", ids } : { kind: "all" };
    });
  }

  showOnly(z) {
    const id = this.page.test.ids[z];
    const { shown } = this.state;
    const only = shown.kind === "ids" && shown.ids.size === 1 && shown.ids.has(id);
    this.look((state) => (state.shown = only ? { kind: "all" } : { kind: "ids", ids: new Set([id]) }));
  }

  reset() {
    const { shown } = this.state;
    this.state = { ...initialState(), shown, order: [...this.page.train.groupNames] };
    this.keepInUrl();
    this.ask();
  }

  keepInUrl() {
    const fragment = fragmentOf(this.state);
    history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
  }

  // ---------------------------------------------------------------------------------------- the worker

  // One question is on its way at a time; what is asked meanwhile is asked together afterwards.
  ask() {
    if (this.waiting) return void (this.again = true);
    this.waiting = true;
    this.asked += 1;
    this.worker.postMessage({
      number: this.asked,
      edits: editsOf(this.state, this.page),
      schedule: this.state.schedule,
    });
  }

  receive(message) {
    if (message.found) return this.collect(message);
    this.waiting = false;
    if (message.error) this.failed(message.error);
    else {
      this.answer = message.answer;
      this.milliseconds = message.milliseconds;
      byId("problem").hidden = true;
    }
    if (this.answer) this.draw();
    if (this.answer && this.rankedAt) this.rankExamples();
    else this.rank(); // of a small set all removals may be there before the first answer
    if (this.again) {
      this.again = false;
      this.ask();
    }
  }

  collect({ found, left, seconds, waits }) {
    for (const removal of found) {
      const kind = removal.what === "group" ? "groups" : "examples";
      if (removal.change) this.removals[kind].set(removal.at, removal);
    }
    Object.assign(this.removals, { left, seconds, waits });
    if (left === 0 || waits || !this.rankedAt || performance.now() - this.rankedAt > 400) this.rank();
  }

  failed(message) {
    byId("problem").textContent = message;
    byId("problem").hidden = false;
  }

  // ------------------------------------------------------------------------------------------- drawing

  draw() {
    for (const draw of this.drawers) draw();
    this.sayAnswer();
    byId("edit-words").textContent =
      sentenceOf(this.answer.made) || "Nothing yet: the training is as it was recorded.";
    for (const id of ["reset", "download"]) byId(id).disabled = !this.answer.changed;
    const notes = [...this.answer.notes, ...this.page.fitNotes];
    byId("notes").replaceChildren(...notes.map((note) => el("li", {}, note)));
    byId("notes").hidden = !notes.length;
    document.body.dataset.answered = this.asked;
    if (!this.drawnQuality) this.quality();
    this.drawnQuality = true;
  }

  rank() {
    if (!this.answer) return;
    this.rankedAt = performance.now();
    this.drawMatrix();
    this.rankExamples();
    document.body.dataset.left = this.removals.left;
  }

  sayAnswer() {
    const { answer, page } = this;
    const rows = shownRows(this.state, page);
    const found = meanChange(page, answer.change, rows, answer.changed ? answer.about : null);
    const digits = digitsFor([found.change, found.low ?? 0]);
    byId("of-what").textContent = shownInWords(this.state, page);
    byId("change").textContent = answer.changed ? signed(found.change, digits) : "0";
    byId("change").className = !answer.changed ? "" : found.change < 0 ? "better" : "worse";
    const level = page.bands ? percent(page.bands.level) : "";
    byId("band").textContent =
      answer.changed && found.verdict
        ? `${level} band ${signed(found.low, digits)} to ${signed(found.high, digits)}`
        : answer.changed
          ? "no bands, since the simulator was fitted without"
          : "nothing changed yet";
    byId("verdict").textContent = verdictInWords(answer.changed ? found : null);
    byId("verdict").className = `verdict ${answer.changed ? (found.verdict ?? "") : ""}`;
    const [before, after] = [stepsOf(page.original), stepsOf(answer.curriculum)];
    byId("length").textContent =
      "· " + (before === after ? counted(before, "step") : `${before} → ${counted(after, "step")}`);
    const ended = changeOfLength(page, after, rows);
    const ofLength =
      ended === null ? "" : `Ended after ${after} steps, the training as recorded changes by ${signed(ended, digits)}. `;
    byId("kept").textContent = answer.changed
      ? `${ofLength}What was recorded differs from its own simulation; ${percent(answer.kept)} of that difference is kept under the edit.`
      : "";
    const reasons = answer.changed && answer.about ? answer.about.reasons : [];
    byId("reasons").replaceChildren(...reasons.map((reason) => el("li", {}, reason)));
    byId("why").hidden = !reasons.length;
  }

  // The true changes of a single edit that was retrained and kept beside the run set; null where there are none.
  retrained() {
    const { made, schedule } = this.answer;
    if (made.length !== 1 || schedule !== "stretch") return null;
    return this.page.retrained[wordsOf(made[0])] ?? null;
  }

  testInWords(z) {
    const { change, bands } = this.answer;
    const { test } = this.page;
    const digits = digitsFor([change[z]]);
    const group = test.groupNames.length > 1 ? ` (${nameOf(test.groups[z])})` : "";
    const band = bands
      ? `, band ${signed(bands[z].low, digits)} to ${signed(bands[z].high, digits)}, ${bands[z].verdict}`
      : "";
    const truth = this.retrained();
    const true_ = truth && Number.isFinite(truth[z]) ? `, retrained ${signed(truth[z], digits)}` : "";
    const text = test.texts?.[z] ? `: ${test.texts[z]}` : "";
    return `${test.ids[z]}${group}: ${signed(change[z], digits)}${band}${true_}${text}`;
  }

  stepsNow() {
    return this.answer ? stepsOf(this.answer.curriculum) : stepsOf(this.page.original);
  }

  say(words) {
    byId("said").textContent = words;
  }
}

function verdictInWords(found) {
  if (!found) return "recorded training";
  const direction = found.change < 0 ? "learnt better" : "learnt worse";
  if (!found.verdict) return direction;
  const words = {
    sure: `sure: ${direction}`,
    leaning: `leaning: ${direction}`,
    unknown: "unknown: could go either way",
  };
  return words[found.verdict];
}

// A worker of the page's own script. Pages opened from disk may not load workers from files.
function makeWorker() {
  const source = byId("script").textContent;
  return new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
}

function describe(page) {
  const { run, train, test, bands } = page;
  const used = page.originalUses.filter((uses) => uses > 0).length;
  byId("title").textContent = page.title;
  byId("about").textContent =
    `${run.id} is a recorded fine-tuning: ${counted(stepsOf(page.original), "step")} on ${used} of ${counted(train.ids.length, "training example")}. Change its training, and this page predicts the loss that ${counted(test.ids.length, "test example")} would have ended with. The loss says how wrong the model is; lower is better.`;
  const level = bands ? ` Bands are of level ${percent(bands.level)}.` : "";
  document.body.classList.toggle("no-bands", !bands);
  if (bands)
    byId("band-words").textContent =
      `The ${percent(bands.level)} band is meant to hold the true change in ${percent(bands.level)} of cases. “Sure”: it excludes zero; “leaning”: a band half as wide would; “unknown”: neither does. Skill says how well runs are predicted that were left out of the fit: 1 is perfect, 0 no better than the average run.`;
  byId("made").textContent =
    `${page.fittedTo[0].toUpperCase()}${page.fittedTo.slice(1)}: ${page.simulatorName}.${level} Made by simfluence ${page.version}.`;
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    return "Link copied.";
  } catch {
    return "The link is in the address bar.";
  }
}

function download(app) {
  const url = URL.createObjectURL(new Blob([yamlOf(app.answer.made)], { type: "application/yaml" }));
  el("a", { href: url, download: "edit.yaml" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// Pointing at a group, wherever it stands, lets the others fade.
function highlightGroups() {
  const style = document.head.appendChild(el("style"));
  document.addEventListener("mouseover", (event) => {
    const colour = event.target.closest?.("[data-colour]")?.dataset.colour;
    style.textContent = colour ? `rect[data-colour]:not([data-colour="${colour}"]) { opacity: 0.2 }` : "";
  });
}

function themeSwitch(app) {
  const button = byId("theme");
  const dark = () =>
    (document.documentElement.dataset.theme ??
      (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => (button.textContent = dark() ? "Light" : "Dark");
  button.onclick = () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
    if (app.answer) app.draw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    label();
    if (app.answer) app.draw();
  });
  label();
}

function start() {
  let app;
  try {
    app = new App(parsed(byId("data").textContent));
  } catch (error) {
    byId("problem").textContent =
      `This page cannot compute in this browser (${error.message}); try a newer one.`;
    byId("problem").hidden = false;
    throw error;
  }
  globalThis.simfluence = app; // for the browser's console, and for tests
  themeSwitch(app);
  highlightGroups();
  byId("examples-go").onclick = () => {
    app.removals.waits = false;
    app.worker.postMessage({ go: true });
    app.rank();
  };
  byId("reset").onclick = () => app.reset();
  byId("copy").onclick = async () => app.say(await copyLink());
  byId("download").onclick = () => download(app);
  addEventListener("hashchange", () => {
    app.state = stateOf(location.hash.slice(1), app.page);
    app.ask();
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width || !app.answer) return;
    width = innerWidth;
    forgetWidths();
    app.drawnQuality = false;
    app.draw();
  });
}

if (typeof document === "undefined") serve(globalThis);
else start();
