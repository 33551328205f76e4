// The controls that change the training: groups, order, length, learning rate.

import { byId, counted, el, nameOf, redraw } from "./elements.js";

const MOST_TIMES = 20;

export function groupControls(app) {
  const { page } = app;
  const list = byId("groups");
  const used = page.train.members.map((rows) => rows.reduce((sum, row) => sum + page.originalUses[row], 0));
  let dragged = null;

  function row(name) {
    const at = page.train.groupNames.indexOf(name);
    const swatch = el("span", { class: "swatch", style: `background:${app.colours.get(name)}` });
    const use = el("input", {
      type: "checkbox",
      checked: !app.state.groupsOut.has(name),
      disabled: used[at] === 0,
      "data-key": `use ${name}`,
      onchange: () => app.change((state) => toggled(state.groupsOut, name, !use.checked)),
    });
    const move = (by, label, sign) =>
      el(
        "button",
        {
          type: "button",
          class: "icon",
          "aria-label": `${label}: ${nameOf(name)}`,
          title: label,
          "data-move": by,
          "data-key": `move ${by} ${name}`,
          onclick: () => moveBy(name, by),
        },
        sign,
      );
    const item = el(
      "li",
      {
        draggable: true,
        "data-group": name,
        "data-colour": app.colours.get(name),
        class: used[at] ? "" : "unused",
      },
      el("span", { class: "grip", "aria-hidden": "true" }, "\u2807"),
      el("label", { class: "name", title: nameOf(name) }, use, swatch, el("span", {}, nameOf(name))),
      el(
        "span",
        { class: "uses", title: "how often the recorded run used examples of this group" },
        `${used[at]}`,
      ),
      timesField(
        `${nameOf(name)}: how often each use is to occur`,
        () => app.state.groupTimes.get(name) ?? 1,
        (n) => app.change((state) => setTimes(state.groupTimes, name, n)),
      ),
      el("span", { class: "moves" }, move(-1, "Earlier", "\u2191"), move(1, "Later", "\u2193")),
    );
    item.addEventListener("dragstart", (event) => {
      dragged = name;
      event.dataTransfer.effectAllowed = "move";
      event.dataTransfer.setData("text/plain", name);
      item.classList.add("dragged");
    });
    item.addEventListener("dragend", () => item.classList.remove("dragged"));
    item.addEventListener("dragover", (event) => {
      if (dragged !== null) event.preventDefault();
    });
    item.addEventListener("drop", (event) => {
      event.preventDefault();
      if (dragged !== null && dragged !== name) placeAt(dragged, app.state.order.indexOf(name));
      dragged = null;
    });
    return item;
  }

  function placeAt(name, place) {
    app.change((state) => {
      state.order = state.order.filter((other) => other !== name);
      state.order.splice(place, 0, name);
      state.inOrder = true;
    });
  }

  function moveBy(name, by) {
    const place = app.state.order.indexOf(name) + by;
    if (place < 0 || place >= app.state.order.length) return;
    placeAt(name, place);
    app.say(`${nameOf(name)} is now number ${place + 1} of ${app.state.order.length}`);
  }

  function draw() {
    redraw(list, app.state.order.map(row));
    byId("order-mixed").checked = !app.state.inOrder;
    byId("order-groups").checked = app.state.inOrder;
    list.classList.toggle("ordered", app.state.inOrder);
  }

  byId("order-mixed").onchange = () => app.change((state) => (state.inOrder = false));
  byId("order-groups").onchange = () => app.change((state) => (state.inOrder = true));
  if (page.train.groupNames.length < 2) byId("order").hidden = true;
  return draw;
}

// A number field from 1 to MOST_TIMES.
export function timesField(label, current, set) {
  const field = el("input", {
    type: "number",
    min: "1",
    max: `${MOST_TIMES}`,
    step: "1",
    value: `${current()}`,
    class: "times",
    "aria-label": label,
    "data-key": label,
    title: label,
  });
  field.classList.toggle("changed", current() !== 1);
  field.onchange = () => {
    const n = Math.min(Math.max(Math.round(Number(field.value)) || 1, 1), MOST_TIMES);
    field.value = n;
    set(n);
  };
  return el("span", { class: "times-field" }, "\u00d7", field);
}

export function setTimes(times, name, n) {
  if (n === 1) times.delete(name);
  else times.set(name, n);
}

export function toggled(set, name, inside) {
  if (inside) set.add(name);
  else set.delete(name);
}

export function lengthControls(app) {
  const [field, slider] = [byId("steps"), byId("steps-slider")];
  const most = app.page.mostSteps;
  field.max = slider.max = most;
  const set = (value) => {
    const steps = Math.round(Number(value));
    if (value !== "" && !(steps >= 1)) return draw();
    return app.change((state) => (state.steps = value === "" ? null : Math.min(steps, most)));
  };
  field.onchange = () => set(field.value);
  slider.oninput = () => set(slider.value);
  byId("steps-free").onclick = () => set("");
  for (const rule of ["stretch", "keep"]) {
    byId(`schedule-${rule}`).onchange = () => app.change((state) => (state.schedule = rule));
  }
  if (app.page.run.rates === null) byId("schedule").hidden = true;
  function draw() {
    const steps = app.state.steps ?? app.stepsNow();
    field.value = steps;
    slider.value = steps;
    slider.setAttribute("aria-valuetext", counted(steps, "step"));
    byId("steps-free").disabled = app.state.steps === null;
    byId(`schedule-${app.state.schedule}`).checked = true;
  }
  return draw;
}
