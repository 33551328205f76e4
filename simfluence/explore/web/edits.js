// Edits of a curriculum, as simfluence/curriculum/edits.py makes them. A curriculum is {examples, offsets}: step t
// consumes examples[offsets[t] … offsets[t + 1] − 1], which are rows of the training table.

import { integers } from "./random.js";

export const stepsOf = (curriculum) => curriculum.offsets.length - 1;

// An edit {name, groups, ids, …} of simfluence.edit.Edit, on a curriculum. table: {rowsOf(groups, ids), generator}.
export function applyEdit(curriculum, edit, table) {
  const chosen = table.rowsOf(edit.groups, edit.ids);
  if (edit.name === "remove") return removed(curriculum, chosen);
  if (edit.name === "repeat") return repeated(curriculum, chosen, edit.times, table.generator);
  if (edit.name === "put_before") {
    return putBefore(curriculum, chosen, table.rowsOf(edit.before_groups, edit.before_ids));
  }
  if (edit.name === "length") return ofLength(curriculum, edit.steps);
  throw new Error(`no edit is named ${edit.name}`);
}

export function sameCurriculum(one, other) {
  const same = (a, b) => a.length === b.length && a.every((value, at) => value === b[at]);
  return same(one.offsets, other.offsets) && same(one.examples, other.examples);
}

// Without these examples; later ones move up. chosen: Uint8Array [train], 1 for each of them.
export function removed(curriculum, chosen) {
  const stream = curriculum.examples.filter((row) => !chosen[row]);
  if (!stream.length) throw new Error("This would leave nothing to train on.");
  return rebatched(curriculum, stream);
}

// Each occurrence of these examples occurs `times` times; copies go to places drawn at random.
export function repeated(curriculum, chosen, times, generator) {
  const { examples } = curriculum;
  const copies = [];
  for (const row of examples) if (chosen[row]) for (let n = 1; n < times; n++) copies.push(row);
  const places = integers(generator, examples.length + 1, copies.length);
  const order = [...places.keys()].sort((a, b) => places[a] - places[b]);
  const stream = new Int32Array(examples.length + copies.length);
  let at = 0;
  let next = 0;
  for (let place = 0; place <= examples.length; place++) {
    while (next < order.length && places[order[next]] === place) stream[at++] = copies[order[next++]];
    if (place < examples.length) stream[at++] = examples[place];
  }
  return rebatched(curriculum, stream);
}

// All occurrences of `first` come before all of `second`, in the places that both take together.
export function putBefore(curriculum, first, second) {
  const { examples, offsets } = curriculum;
  const moved = [...examples.filter((row) => first[row]), ...examples.filter((row) => second[row])];
  let next = 0;
  return { examples: examples.map((row) => (first[row] || second[row] ? moved[next++] : row)), offsets };
}

// Trains for so many steps: the first ones, and from the first batch again where there are no more.
export function ofLength(curriculum, steps) {
  const { examples, offsets } = curriculum;
  const before = stepsOf(curriculum);
  const ends = [0];
  for (let step = 0; step < steps; step++) {
    const at = step % before;
    ends.push(ends[step] + offsets[at + 1] - offsets[at]);
  }
  return {
    examples: Int32Array.from({ length: ends[steps] }, (_, at) => examples[at % examples.length]),
    offsets: Int32Array.from(ends),
  };
}

// The stream cut at the curriculum's batch sizes, going on with its usual (median) size.
function rebatched(curriculum, stream) {
  const before = curriculum.offsets;
  const usual = usualSize(before);
  const offsets = [];
  for (let at = 0; at < before.length && before[at] < stream.length; at++) offsets.push(before[at]);
  if (offsets.length === before.length) {
    let end = before[before.length - 1] + usual;
    for (; end < stream.length; end += usual) offsets.push(end);
  }
  return { examples: stream, offsets: Int32Array.from([...offsets, stream.length]) };
}

function usualSize(offsets) {
  const sizes = Array.from(offsets.subarray(1), (end, t) => end - offsets[t]).sort((a, b) => a - b);
  const middle = sizes.length >> 1;
  return Math.floor(sizes.length % 2 ? sizes[middle] : (sizes[middle - 1] + sizes[middle]) / 2);
}
