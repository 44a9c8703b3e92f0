// A grid over any two settings. Every cell is an ordinary job: it stands in the history and opens in the cards.

import * as api from "./api.js";
import { el, field, select } from "./dom.js";
import { adopt } from "./recall.js";
import { asGiven, thumbnail } from "./media.js";
import { waysOf } from "./paths.js";
import { filled, jobOf } from "./roles.js";
import { addToFilm, updateFilm } from "./film.js";
import { blame, show } from "./run.js";
import { changed, state } from "./state.js";

const MOST = 36;
const WORDS = ["solver", "model", "path"]; // settings whose values are no numbers
const LOOSE = "looseness of ";
const START = "start of ";

function axes() {
  const found = { seed: `${state.seed}, ${state.seed + 1}, ${state.seed + 2}, ${state.seed + 3}`, steps: "4, 8, 16, 32", guidance: "0, 1, 2, 4", solver: Object.keys(state.model.solvers).slice(0, 4).join(", ") };
  for (const card of Object.values(state.cards)) {
    if (card.role === "given") found[LOOSE + card.name] = "0, 0.3, 0.6, 0.9";
    if (card.role === "sampled" && filled(card)) found[START + card.name] = "0.3, 0.5, 0.7, 1";
  }
  const sampled = sampledTwo();
  if (sampled.length > 1) found.path = waysOf(sampled).map(([name]) => name).join(", ");
  if (state.model.labels > 1) found.label = Array.from({ length: Math.min(4, state.model.labels) }, (_, k) => k).join(", ");
  found.reuse = "0, 2, 3, 4";
  if (state.status.models.length > 1) found.model = state.status.models.map((one) => one.name).join(", ");
  return found;
}

export function grid() {
  const known = axes();
  const names = Object.keys(known);
  const table = el("div", { class: "gridscroll", tabindex: 0, role: "region", "aria-label": "The grid", "data-testid": "grid" });
  const pick = (k) => {
    const values = el("input", { type: "text", value: known[names[k]], "aria-label": k ? "Values, down" : "Values, across", "data-testid": k ? "down" : "across" });
    const name = select(names, names[k], { "aria-label": k ? "Down" : "Across", onchange: () => { values.value = known[name.value]; } });
    return { name, values };
  };
  const [across, down] = [pick(0), pick(2)];
  const run = el("button", { class: "plain", type: "button", "data-testid": "go-grid", onclick: () => fill(table, across, down, run).catch(blame).finally(() => { run.disabled = false; }) }, "Fill the grid");
  return [el("p", {}, "The cards as they are, with two settings varied. A click on a cell opens it."),
    el("div", { class: "controls" }, field("Across", across.name), field("Values", across.values), field("Down", down.name), field("Values", down.values), run), table];
}

const valuesOf = ({ name, values }) => values.value.split(",").map((text) => text.trim()).filter(Boolean).map((text) => (WORDS.includes(name.value) ? text : Number(text)));

const sampledTwo = () => Object.values(state.cards).filter((card) => card.role === "sampled").slice(0, 2).map((card) => card.name);

async function fill(table, across, down, run) {
  run.disabled = true;
  const [columns, rows] = [valuesOf(across), valuesOf(down)];
  if (across.name.value === down.name.value) throw new Error("choose two different settings");
  if (columns.length * rows.length > MOST || !columns.length || !rows.length) throw new Error(`a grid has 1 to ${MOST} cells, not ${columns.length * rows.length}`);
  const base = jobOf(state.cards, { ...state.settings, n: 1 }, state.seed, state.model.name);
  if (base.verb !== "sample") throw new Error("set at least one lock to sampled");
  for (const [name, value] of Object.entries(base.given)) base.given[name] = await asGiven(value);
  const two = sampledTwo();
  const ways = (steps) => (two.length > 1 ? Object.fromEntries(waysOf(two, steps)) : {});
  const starts = {};
  for (const card of Object.values(state.cards)) if (card.role === "sampled" && filled(card)) starts[card.name] = await asGiven(card.value);
  const at = (column, row) => [[across.name.value, column], [down.name.value, row]]
    .sort(([one], [other]) => (one === "path") - (other === "path")) // a path has as many points as there are steps
    .reduce((job, [name, value]) => put(job, name, value, ways, starts), { ...base, given: { ...base.given }, looseness: { ...base.looseness }, previews: false });
  const cells = rows.map((row) => columns.map((column) => ({ row, column, node: el("td", {}) })));
  table.dataset.state = "running";
  table.replaceChildren(el("table", { class: "gridtable" },
    el("tr", {}, el("td", {}), columns.map((column) => el("th", { scope: "col" }, `${across.name.value} ${column}`))),
    cells.map((line, k) => el("tr", {}, el("th", { scope: "row" }, `${down.name.value} ${rows[k]}`), line.map((cell) => cell.node)))));
  await Promise.all(cells.flat().map((cell) => one(cell, at(cell.column, cell.row))));
  table.dataset.state = "done";
}

// A job with one setting changed. ways: steps -> name -> path; starts: sampled modality -> what it shows.
export function put(job, name, value, ways = () => ({}), starts = {}) {
  if (name.startsWith(LOOSE)) job.looseness[name.slice(LOOSE.length)] = value;
  else if (name.startsWith(START)) {
    const card = name.slice(START.length);
    job.given[card] = starts[card];
    job.looseness[card] = value;
  } else if (name === "path") {
    const known = ways(job.steps);
    if (!(value in known)) throw new Error(`there is no path “${value}”; there are ${Object.keys(known).join(", ")}`);
    if (known[value]) job.path = known[value];
    else delete job.path;
  } else if (name === "reuse") {
    if (value) job.reuse = { every: value, outer: 1 };
    else delete job.reuse;
  } else job[name] = value;
  return job;
}

async function one(cell, job) {
  try {
    const done = await api.carry(job, (name, data) => { if (name === "made") addToFilm(data); });
    updateFilm(done);
    const values = Object.entries(done.result?.samples?.[0]?.values || {}).filter(([name]) => job.names.includes(name));
    const [name, value] = values.find(([n]) => state.cards[n]?.media === "image") || values[0] || [null, null];
    cell.node.replaceChildren(el("button", { class: "thumb", type: "button", "aria-label": `${cell.row}, ${cell.column}`, onclick: () => { adopt(done); show(done); changed("job"); } }, name ? thumbnail(value, state.cards[name].media) : el("span", {}, done.error || done.state)));
  } catch (error) {
    cell.node.replaceChildren(el("p", { class: "problem" }, error.message));
  }
}
