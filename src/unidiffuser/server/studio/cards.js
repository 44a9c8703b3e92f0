// The cards: one a modality, each with a lock of three positions, its content by media type, and its sliders.

import { $, el } from "./dom.js";
import { MEDIA, asGiven } from "./media.js";
import { painter } from "./paint.js";
import { changed, state } from "./state.js";
import { filled } from "./roles.js";

const ROLES = { given: "Given", sampled: "Sampled", ignored: "Ignored" };
const TITLES = { given: "we have it", sampled: "we want it", ignored: "it plays no part" };
const parts = {};

export function buildCards() {
  $("cards").replaceChildren(...state.model.modalities.map(build));
  refresh();
}

function build(info) {
  const card = state.cards[info.name];
  const give = (value) => {
    Object.assign(card, { value, mask: null });
    if (card.role === "ignored" || (card.role === "sampled" && card.media !== "text")) card.role = "given";
    parts[card.name].problem.textContent = "";
    changed("card");
  };
  const media = (MEDIA[card.media] || MEDIA.vector)(info, give);
  const lock = el("fieldset", { class: "lock" }, el("legend", { class: "sr" }, `Role of the ${card.name}`),
    Object.entries(ROLES).map(([role, label]) => el("label", { title: TITLES[role] },
      el("input", { type: "radio", name: `role-${card.name}`, value: role, "data-testid": `${role}-${card.name}`, onchange: () => setRole(card.name, role) }),
      el("span", {}, label))));
  const slider = looseness(card);
  const problem = el("p", { class: "problem", role: "alert", "data-testid": `problem-${card.name}` });
  const tools = el("div", { class: "tools" });
  const paint = card.media === "image" ? painter(card, media.well, () => changed("card")) : null;
  if (media.choose) tools.append(el("button", { class: "quiet", type: "button", onclick: media.choose }, "Choose…"));
  if (paint) tools.append(paint.button, paint.clear);
  if (card.media === "text") tools.append(blankButton(card, media));
  const words = card.media === "text" && info.words ? el("p", { class: "words" }, `Its ${info.words.length} words: ${info.words.join(" ")}`) : null;
  const box = el("article", { class: "cardbox", "data-testid": `card-${card.name}`, "data-name": card.name, "aria-label": card.name },
    el("div", { class: "cardhead" }, el("h2", {}, card.name), lock),
    el("div", { class: "cardbody" }, media.node),
    el("div", { class: "cardfoot" }, tools, slider.node, problem, words ? el("details", { class: "words" }, el("summary", {}, "The words it knows"), words) : null));
  parts[card.name] = { box, media, slider, problem, lock, tools, paint, info };
  return box;
}

// Of a given card how loosely it is held; of a sampled one that shows something, from where its sample starts.
function looseness(card) {
  const range = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0, "data-testid": `loose-${card.name}` });
  const label = el("span", {});
  const output = el("output", {});
  range.addEventListener("input", () => {
    const value = Number(range.value);
    if (card.role === "given") card.loose = value;
    else card.vary = value;
    changed("slider");
  });
  return {
    node: el("label", { class: "slider" }, label, range, output),
    show() {
      const given = card.role === "given";
      const value = given ? card.loose : card.vary;
      label.textContent = given ? "Looseness" : "Start from this";
      range.setAttribute("aria-label", given ? `How loosely the ${card.name} is held` : `From which timestep the ${card.name} starts`);
      if (Number(range.value) !== value) range.value = value;
      output.textContent = value ? `t ${value.toFixed(2)}` : given ? "exact" : "no";
      this.node.hidden = card.role === "ignored" || (!given && !filled(card));
    },
  };
}

function blankButton(card, media) {
  return el("button", { class: "quiet", type: "button", "data-testid": `blank-${card.name}`, title: "Blank the selected words, to be made", onclick: () => {
    const area = media.node.querySelector("textarea");
    const [from, to] = [area.selectionStart, area.selectionEnd];
    const chosen = area.value.slice(from, to).trim();
    const blanks = (chosen ? chosen.split(/\s+/) : [""]).map(() => "___").join(" ");
    area.setRangeText(`${from && !/\s/.test(area.value[from - 1]) ? " " : ""}${blanks}${/^\S/.test(area.value.slice(to)) ? " " : ""}`, from, to, "end");
    Object.assign(card, { value: area.value, role: "given" });
    changed("card");
  } }, "Blank words");
}

export function setRole(name, role) {
  const card = state.cards[name];
  card.role = role;
  state.path.prefix = null;
  changed("role");
}

export function cycleRole(index) {
  const card = Object.values(state.cards)[index];
  if (!card) return;
  const roles = Object.keys(ROLES);
  setRole(card.name, roles[(roles.indexOf(card.role) + 1) % 3]);
  parts[card.name].lock.querySelector("input:checked").focus();
}

export async function giveValue(name, value) {
  try {
    Object.assign(state.cards[name], { value: await asGiven(value), role: "given", mask: null });
    changed("card");
  } catch (error) {
    complain(name, error.message);
  }
}

// Bring the cards in line with the state.
export function refresh() {
  for (const [name, { box, media, slider, lock, paint, tools }] of Object.entries(parts)) {
    const card = state.cards[name];
    box.dataset.role = card.role;
    lock.querySelector(`input[value="${card.role}"]`).checked = true;
    if (!state.running || card.role === "given") media.show(card.value);
    media.editable?.(card.role !== "ignored");
    paint?.refresh();
    tools.hidden = card.role === "ignored";
    slider.show();
  }
}

export function complain(name, text) {
  const part = parts[name];
  if (part) part.problem.textContent = text;
}

export function clearProblems() {
  for (const { problem } of Object.values(parts)) problem.textContent = "";
}

// Noise until the first preview comes.
export function setBusy(on) {
  for (const [name, { box, media }] of Object.entries(parts)) {
    box.dataset.busy = on;
    if (on && state.cards[name].role === "sampled") media.busy(true, "settling out of noise…");
    if (!on) media.busy(false);
  }
}

export function preview(values) {
  for (const [name, value] of Object.entries(values)) if (state.cards[name]) parts[name].media.show(value);
}

export const showMap = (name, rows) => parts[name]?.media.map?.(rows);
export const boxOf = (name) => parts[name]?.box;
