// What the user has chosen: the edits, and what is looked at. It lives in the URL's fragment, so that a link
// brings it back; as edits in their order, it is what `simfluence whatif` reads from a file.

export function initialState() {
  return {
    groupsOut: new Set(),
    idsOut: new Set(),
    groupTimes: new Map(), // group → how often each use is to occur, where that is not once
    idTimes: new Map(),
    inOrder: false,
    order: [], // of all groups, first to last; read only if inOrder
    steps: null, // null: as many as come out
    schedule: "stretch",
    shown: { kind: "all" }, // or {kind: "group", name}, or {kind: "ids", ids: Set}
  };
}

// ------------------------------------------------------------------------------------------- as edits

// The edits in the order in which they are applied: leave out, repeat, order, length.
export function editsOf(state, page) {
  const { train } = page;
  const used = (rows) => rows.some((row) => page.originalUses[row] > 0);
  const inUse = (name) => !state.groupsOut.has(name) && used(membersOf(train, name));
  const edits = [];
  const groups = train.groupNames.filter((name) => state.groupsOut.has(name) && used(membersOf(train, name)));
  const ids = [...state.idsOut];
  if (groups.length || ids.length)
    edits.push({ name: "remove", ...named("groups", groups), ...named("ids", ids) });
  const times = new Set([...state.groupTimes.values(), ...state.idTimes.values()]);
  for (const n of [...times].sort((a, b) => a - b)) {
    const ofGroups = train.groupNames.filter((name) => state.groupTimes.get(name) === n && inUse(name));
    const ofIds = [...state.idTimes.keys()].filter(
      (id) => state.idTimes.get(id) === n && !state.idsOut.has(id),
    );
    if (n > 1 && (ofGroups.length || ofIds.length)) {
      edits.push({ name: "repeat", ...named("groups", ofGroups), ...named("ids", ofIds), times: n });
    }
  }
  if (state.inOrder) {
    const order = state.order.filter(inUse);
    for (let at = 0; at + 1 < order.length; at++) {
      edits.push({ name: "put_before", groups: [order[at]], before_groups: order.slice(at + 1) });
    }
  }
  if (state.steps !== null) edits.push({ name: "length", steps: state.steps });
  return state.schedule === "keep" ? edits.map((edit) => ({ ...edit, schedule: "keep" })) : edits;
}

const membersOf = (train, name) => train.members[train.groupNames.indexOf(name)];
const named = (key, names) => (names.length ? { [key]: names } : {});

// An edit in the words of Python's str(Edit).
export function wordsOf(edit) {
  const words = [edit.name.split("_")[0], ...(edit.groups ?? []), ...(edit.ids ?? [])];
  if (edit.before_groups) words.push("before", ...edit.before_groups);
  if (edit.times) words.push(`times ${edit.times}`);
  if (edit.steps) words.push(`steps ${edit.steps}`);
  if (edit.schedule === "keep") words.push("schedule keep");
  return words.join(" ");
}

// All edits as one sentence for readers.
export function sentenceOf(edits) {
  const list = (names) => names.map((name) => (name ? `“${name}”` : "(no group)")).join(", ");
  const parts = edits.map(({ name, groups = [], ids = [], before_groups: later, times, steps }, at) => {
    const what = list([...groups, ...ids]);
    if (name === "remove") return `leave out ${what}`;
    if (name === "repeat") return `use ${what} ${times} times as often`;
    if (name === "length") return `train for ${steps} steps`;
    const last = edits[at + 1]?.name === "put_before" ? [] : later;
    const first = edits[at - 1]?.name === "put_before" ? "then" : "train first on";
    return [`${first} ${what}`, ...(last.length ? [`then ${list(last)}`] : [])].join(", ");
  });
  const sentence = parts.join(", ");
  return sentence && `${sentence[0].toUpperCase()}${sentence.slice(1)}.`;
}

// A YAML file with one named edit. JSON's texts and lists are YAML's.
export function yamlOf(edits) {
  const lines = edits.map((edit) => {
    const fields = Object.entries(edit).map(([key, value]) => {
      const plain = typeof value === "number" || ["name", "schedule"].includes(key);
      return `${key}: ${plain ? value : JSON.stringify(value)}`;
    });
    return `  - {${fields.join(", ")}}\n`;
  });
  return `${JSON.stringify(edits.map(wordsOf).join(", then "))}:\n${lines.join("")}`;
}

// -------------------------------------------------------------------------------- as the URL's fragment

export function fragmentOf(state) {
  const words = new URLSearchParams();
  for (const name of state.groupsOut) words.append("without", name);
  for (const id of state.idsOut) words.append("without-id", id);
  for (const [name, times] of state.groupTimes) words.append(`times-${times}`, name);
  for (const [id, times] of state.idTimes) words.append(`times-${times}-id`, id);
  if (state.inOrder) for (const name of state.order) words.append("then", name);
  if (state.steps !== null) words.append("steps", state.steps);
  if (state.schedule !== "stretch") words.append("schedule", state.schedule);
  if (state.shown.kind === "group") words.append("show-group", state.shown.name);
  if (state.shown.kind === "ids") for (const id of state.shown.ids) words.append("show", id);
  return words.toString();
}

// The state in a fragment; what is not known of this page is left out.
export function stateOf(fragment, page) {
  const words = new URLSearchParams(fragment);
  const state = initialState();
  const { train, test } = page;
  const groups = (key) => words.getAll(key).filter((name) => train.groupNames.includes(name));
  const known = new Set(train.ids);
  const ids = (key) => words.getAll(key).filter((id) => known.has(id));
  state.groupsOut = new Set(groups("without"));
  state.idsOut = new Set(ids("without-id"));
  for (const key of new Set(words.keys())) {
    const [, times, ofIds] = /^times-(\d{1,3})(-id)?$/.exec(key) ?? [];
    for (const name of times ? (ofIds ? ids(key) : groups(key)) : []) {
      (ofIds ? state.idTimes : state.groupTimes).set(name, Number(times));
    }
  }
  const order = [...new Set(groups("then"))];
  state.inOrder = order.length > 0;
  state.order = [...order, ...train.groupNames.filter((name) => !order.includes(name))];
  const steps = Number(words.get("steps"));
  if (Number.isInteger(steps) && steps > 0 && steps <= page.mostSteps) state.steps = steps;
  if (words.get("schedule") === "keep") state.schedule = "keep";
  const shown = words.getAll("show").filter((id) => test.ids.includes(id));
  if (shown.length) state.shown = { kind: "ids", ids: new Set(shown) };
  const group = words.get("show-group");
  if (test.groupNames.includes(group)) state.shown = { kind: "group", name: group };
  return state;
}

// The rows of the test examples that are looked at.
export function shownRows(state, { test }) {
  if (state.shown.kind === "group") return test.members[test.groupNames.indexOf(state.shown.name)];
  const rows = test.ids.map((_, z) => z);
  return state.shown.kind === "ids" ? rows.filter((z) => state.shown.ids.has(test.ids[z])) : rows;
}

export function shownInWords(state, page) {
  const rows = shownRows(state, page);
  if (state.shown.kind === "group") return `the ${rows.length} test examples of ${state.shown.name}`;
  if (state.shown.kind === "all") return `all ${rows.length} test examples`;
  return rows.length === 1 ? page.test.ids[rows[0]] : `${rows.length} chosen test examples`;
}
