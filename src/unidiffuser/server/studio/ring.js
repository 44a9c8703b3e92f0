// Variations: the original in the middle, its neighbours around it, the nearer the less noise they started from.

import * as api from "./api.js";
import { el, field, select } from "./dom.js";
import { giveValue } from "./cards.js";
import { asGiven, source, thumbnail } from "./media.js";
import { drawn, filled } from "./roles.js";
import { blame } from "./run.js";
import { newSeed, state } from "./state.js";

const LEVELS = [0.35, 0.55, 0.75];
const EACH = 4;

export function ring() {
  const able = Object.values(state.cards).filter((card) => ["image", "text"].includes(card.media));
  const which = select(able.map((card) => card.name), able[0].name, { "aria-label": "What is varied" });
  const plane = el("div", { class: "ring", "data-testid": "ring" });
  const run = el("button", { class: "plain", type: "button", "data-testid": "vary", onclick: () => vary(state.cards[which.value], plane, run).catch(blame) }, "Vary it");
  return [el("p", {}, "Each neighbour starts from the original noised to a timestep: near the middle little noise, far out much. The other cards that are given stay given. A click gives a neighbour to its card."), el("div", { class: "controls" }, field("Of", which), run), plane];
}

async function vary(card, plane, run) {
  if (!filled(card)) { plane.replaceChildren(el("p", { class: "problem" }, `There is no ${card.name} yet: make or give one first.`)); return; }
  run.disabled = true;
  const original = await asGiven(card.value);
  const others = Object.values(state.cards).filter((other) => other !== card && other.role === "given" && filled(other));
  const given = { [card.name]: original };
  for (const other of others) given[other.name] = await asGiven(other.value);
  const middle = card.media === "image" ? el("img", { class: "mid", src: source(original), alt: "the original" }) : el("button", { class: "mid", type: "button", disabled: true }, el("span", {}, original));
  plane.replaceChildren(el("svg", { viewBox: "0 0 100 100", "aria-hidden": "true" }, LEVELS.map((_, k) => el("circle", { cx: 50, cy: 50, r: radius(k) }))), middle);
  const seed = state.keep ? state.seed : newSeed();
  try {
    await Promise.all(LEVELS.map(async (t, k) => {
      const done = await api.carry({ verb: "sample", model: state.model.name, names: [card.name], given, looseness: { [card.name]: t }, n: EACH, seed: (seed + k * EACH) % 2 ** 32, ...drawn(state.settings) });
      (done.result?.samples || []).forEach((sample, i) => plane.append(neighbour(sample.values[card.name], card, t, k, i)));
    }));
    plane.dataset.state = "done";
  } finally {
    run.disabled = false;
  }
}

const radius = (k) => 21 + 10 * k;

function neighbour(value, card, t, k, i) {
  const angle = (2 * Math.PI * (i + k / LEVELS.length)) / EACH - Math.PI / 2;
  const node = el("button", { type: "button", "aria-label": `a variation from t ${t}${card.media === "text" ? `: ${value}` : ""}`, title: `t ${t}`, onclick: () => giveValue(card.name, value) }, thumbnail(value, card.media));
  node.style.left = `${50 + radius(k) * Math.cos(angle)}%`;
  node.style.top = `${50 + radius(k) * Math.sin(angle)}%`;
  return node;
}
