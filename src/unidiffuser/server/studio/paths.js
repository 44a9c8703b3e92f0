// The path-consistency meter. p(x) p(y|x) = p(y) p(x|y): a perfect model draws pairs of one and the same law by every way
// over the timestep plane. So draw some by each, without guidance, and see whether they differ. It needs no data.

import * as api from "./api.js";
import { bitsOf } from "./bits.js";
import { el, field } from "./dom.js";
import { thumbnail } from "./media.js";
import { corner } from "./path.js";
import { addToFilm, updateFilm } from "./film.js";
import { blame } from "./run.js";
import { newSeed, state } from "./state.js";

const MOST = 32;

export function paths() {
  const names = Object.keys(state.cards).slice(0, 2);
  const pairs = el("input", { type: "text", inputMode: "numeric", value: "8", "aria-label": "Pairs by each way", "data-testid": "pairs" });
  const out = el("div", { class: "ways", "data-testid": "ways" });
  const said = el("p", { class: "verdict", role: "status", "data-testid": "verdict" });
  const run = el("button", { class: "plain", type: "button", "data-testid": "measure", onclick: () => measure().catch(blame).finally(() => { run.disabled = false; }) }, "Measure");

  async function measure() {
    run.disabled = true;
    said.textContent = "";
    out.replaceChildren();
    out.dataset.state = "running";
    const n = Math.max(2, Math.min(MOST, Number(pairs.value) || 8));
    const seed = state.keep ? state.seed : newSeed();
    const ways = waysOf(names);
    const found = await Promise.all(ways.map(([, path], k) => draw(names, path, n, (seed + 1000 * k) % 2 ** 32)));
    out.replaceChildren(...ways.map(([name], k) => row(name, found[k], names)));
    said.textContent = verdict(ways.map(([name]) => name), found);
    out.dataset.state = "done";
  }

  return [el("p", {}, "A perfect model draws the same pairs whichever way it goes over the timestep plane. Pairs by each way, without guidance; the bits are what each pair's parts tell about one another, by the model's own belief."),
    el("div", { class: "controls" }, field("Pairs by each way", pairs), run), out, said];
}

// [name, path] of the three ways on which two modalities get to their ends; the plain one has no path.
export function waysOf(names, wanted = state.settings.steps) {
  const { steps: own, begin, end } = state.model.settings;
  const steps = Math.max(2, wanted || own);
  const from = names.map(() => begin);
  const to = names.map(() => end);
  const path = (first) => {
    const points = corner(from, to, steps, first);
    return Object.fromEntries(names.map((name, i) => [name, points.map((point) => point[i])]));
  };
  return [["together", null], [`${names[0]} first`, path(0)], [`${names[1]} first`, path(1)]];
}

// Some pairs by one way, the share of their facts that hold (where the truth is known), and their bits.
async function draw(names, path, n, seed) {
  const { solver } = state.settings;
  const job = { verb: "sample", model: state.model.name, names, n, seed, guidance: 0, steps: Math.max(2, state.settings.steps || state.model.settings.steps), ...(solver ? { solver } : {}), ...(path ? { path } : {}) };
  const done = await api.carry(job, (name, data) => { if (name === "made") addToFilm(data); });
  updateFilm(done);
  if (done.state !== "done") throw new Error(done.error || done.state);
  const samples = done.result.samples;
  const facts = samples.map((sample) => Object.values(sample.truth?.facts || {})).filter((all) => all.length).map((all) => all.filter(Boolean).length / all.length);
  const bits = [];
  for (const sample of samples) {
    const score = await bitsOf(sample.values, seed);
    if (score !== null) bits.push(score);
  }
  return { samples, facts: mean(facts), bits: mean(bits) };
}

// The mean and its standard error; null of fewer than two numbers.
export function mean(numbers) {
  const n = numbers.length;
  if (n < 2) return null;
  const middle = numbers.reduce((a, b) => a + b, 0) / n;
  const spread = numbers.reduce((a, b) => a + (b - middle) ** 2, 0) / (n - 1);
  return { middle, error: Math.sqrt(spread / n), n };
}

// Standard errors beyond which one of three equal ways would seem to differ one time in twenty: Student's t of so many
// degrees of freedom at 1 - 0.05 / 6, by its expansion about the normal (Abramowitz and Stegun, 26.7.5).
export function limit(freedom) {
  const z = 2.394;
  return z + (z ** 3 + z) / (4 * freedom) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2);
}

// The two ways that lie furthest apart; far > 1 is more than chance would have it.
export function furthest(means) {
  let most = null;
  means.forEach((a, i) => means.slice(i + 1).forEach((b, j) => {
    if (!a || !b) return;
    const difference = Math.abs(a.middle - b.middle);
    const error = Math.hypot(a.error, b.error);
    const far = difference / (error || Number.MIN_VALUE) / limit(a.n + b.n - 2);
    if (!most || far > most.far) most = { difference, error, far, ways: [i, i + 1 + j] };
  }));
  return most;
}

function verdict(names, found) {
  const bits = furthest(found.map((way) => way.bits));
  if (!bits) return "Too few of these pairs can be scored to say anything.";
  const apart = `${names[bits.ways[0]]} and ${names[bits.ways[1]]} lie ${bits.difference.toFixed(0)} ± ${bits.error.toFixed(0)} bits apart`;
  return bits.far > 1 ? `The ways differ: ${apart}.` : `No difference can be seen with so many pairs: ${apart}, at most.`;
}

function row(name, way, names) {
  const number = (of, digits, unit, times = 1) => (of ? `${(times * of.middle).toFixed(digits)} ± ${(times * of.error).toFixed(digits)}${unit}` : "–");
  const shown = way.samples.slice(0, 6).map((sample) => {
    const [picture, value] = Object.entries(sample.values).find(([n]) => state.cards[n]?.media === "image") || Object.entries(sample.values).find(([n]) => names.includes(n));
    return el("span", { class: "thumb", title: Object.values(sample.values).find((v) => typeof v === "string") || "" }, thumbnail(value, state.cards[picture].media));
  });
  return el("section", { class: "way", "aria-label": name }, el("h3", {}, name), el("div", { class: "row" }, shown),
    el("p", { class: "faint" }, `${number(way.bits, 0, " bits")}${way.facts ? `, facts that hold: ${number(way.facts, 0, " %", 100)}` : ""}`));
}
