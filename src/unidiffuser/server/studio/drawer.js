// The drawer: what few need often. Empty means as the model has it.

import { $, el, field, select } from "./dom.js";
import { changed, state } from "./state.js";

let controls = {}; // setting -> {node, show: value -> text}

// A setting that is written. read: text -> value, undefined if it is none; wanted says what would be.
function written(name, hint, wanted, read, show = String) {
  const node = el("input", { inputMode: "decimal", placeholder: String(hint), autocomplete: "off", "data-testid": `set-${name}`, oninput: (event) => {
    const text = event.target.value.trim();
    const value = text === "" ? null : read(text);
    event.target.setCustomValidity(value === undefined ? wanted : "");
    event.target.toggleAttribute("aria-invalid", value === undefined);
    if (value === undefined) { event.target.reportValidity(); return; }
    state.settings[name] = value;
    changed("settings");
  } });
  return { node, show };
}

function number(name, min, max, hint, whole = true) {
  return written(name, hint, `from ${min} to ${max}`, (text) => {
    const value = Number(text);
    return Number.isFinite(value) && value >= min && value <= max && (!whole || Number.isInteger(value)) ? value : undefined;
  });
}

// Two numbers with something between them.
function two(name, hint, wanted, good, between) {
  return written(name, hint, wanted, (text) => {
    const values = text.split(/[\s,x×–]+/).map(Number);
    return values.length === 2 && good(...values) ? values : undefined;
  }, (values) => values.join(between));
}

function chosen(name, options, own) {
  const node = select(["", ...options], state.settings[name] || "", { "data-testid": `set-${name}`, onchange: (event) => { state.settings[name] = event.target.value || null; changed("settings"); } });
  node.options[0].textContent = own;
  return { node, show: String };
}

// Of everything that can be set: its label and its control, if this model has it.
function settings() {
  const { settings: own, labels, modalities, solvers } = state.model;
  const { scale, interval, against } = own.guidance;
  const picture = modalities.find((one) => one.multiple);
  const reuse = written("reuse", own.reuse ? own.reuse.every : "off", "every 2 to 100 evaluations",
    (text) => (/^\d+$/.test(text) && Number(text) >= 2 && Number(text) <= 100 ? { every: Number(text), outer: 1 } : undefined), (value) => value.every);
  return {
    n: ["Samples", number("n", 1, 64, 1)],
    steps: ["Steps", number("steps", 1, 1000, own.steps)],
    guidance: ["Guidance (0 = off)", number("guidance", 0, 100, typeof scale === "number" ? scale : Math.max(...Object.values(scale), 0), false)],
    solver: ["Solver", chosen("solver", Object.keys(solvers), own.solver)],
    size: picture && ["Width × height", two("size", picture.size.join(" × "), `multiples of ${picture.multiple}`, (w, h) => [w, h].every((side) => side > 0 && side % picture.multiple === 0), " × ")],
    label: labels > 1 && ["Label", number("label", 0, labels - 1, own.label)],
    guidance_interval: ["Guided between", two("guidance_interval", interval.join(" – "), "two timesteps from 0 to 1", (low, high) => low >= 0 && low <= high && high <= 1, " – ")],
    guidance_against: ["Guided away from", chosen("guidance_against", ["marginal", "unconditional", "empty"], against)],
    reuse: ["Reuse inner blocks, every", reuse],
    draws: ["Noise draws of a score", number("draws", 2, 1024, 64)],
  };
}

export function buildDrawer(onModel) {
  const shown = Object.entries(settings()).filter(([, entry]) => entry);
  controls = Object.fromEntries(shown.map(([name, [, control]]) => [name, control]));
  const models = state.status.models;
  $("drawer").replaceChildren(
    ...shown.map(([, [label, { node }]]) => field(label, node)),
    models.length > 1 ? field("Model", select(models.map((one) => one.name), state.model.name, { "data-testid": "set-model", onchange: (event) => onModel(event.target.value) })) : "");
  $("more").onclick = () => {
    const open = $("drawer").hidden;
    $("drawer").hidden = !open;
    $("more").setAttribute("aria-expanded", String(open));
  };
  drawDrawer();
}

export function drawDrawer() {
  for (const [name, { node, show }] of Object.entries(controls)) {
    if (document.activeElement === node) continue;
    const value = state.settings[name];
    node.value = value === null || value === undefined || (name === "n" && value === 1) ? "" : show(value);
  }
}
