// Two runs of the same cards and seed side by side under a wipe: teacher and student where two models share their
// modalities, else many steps against few.

import * as api from "./api.js";
import { el, field, select } from "./dom.js";
import { bitsOf } from "./bits.js";
import { asGiven, source } from "./media.js";
import { jobOf } from "./roles.js";
import { blame } from "./run.js";
import { state } from "./state.js";

export function compare() {
  const own = state.model.modalities.map((m) => m.name).join();
  const models = state.status.models.filter((one) => one.modalities.map((m) => m.name).join() === own).map((one) => one.name);
  const sides = ["left", "right"].map((side, k) => ({
    side,
    model: select(models, models[Math.min(k, models.length - 1)] ?? state.model.name, { "aria-label": `Model, ${side}` }),
    steps: el("input", { type: "text", inputMode: "numeric", value: String(k && models.length < 2 ? 4 : stepsOf(models[Math.min(k, models.length - 1)])), "aria-label": `Steps, ${side}`, "data-testid": `steps-${side}` }),
    image: el("img", { alt: side, hidden: true }),
    said: el("p", {}),
  }));
  for (const one of sides) one.model.addEventListener("change", () => { one.steps.value = String(stepsOf(one.model.value)); });
  const edge = el("div", { class: "edge" });
  const slider = el("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Wipe", "data-testid": "wipe" });
  const wipe = () => {
    sides[1].image.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    edge.style.left = `${slider.value}%`;
  };
  slider.addEventListener("input", wipe);
  const box = el("div", { class: "wipe", "data-testid": "wipe-box" }, sides[0].image, sides[1].image, edge);
  const run = el("button", { class: "plain", type: "button", "data-testid": "go-compare", onclick: () => go().catch(blame).finally(() => { run.disabled = false; }) }, "Compare");
  async function go() {
    run.disabled = true;
    await Promise.all(sides.map(async (one) => {
      const job = { ...jobOf(state.cards, { ...state.settings, n: 1, steps: Number(one.steps.value) || null }, state.seed, one.model.value), previews: false };
      if (job.verb !== "sample") throw new Error("set at least one lock to sampled");
      for (const [name, value] of Object.entries(job.given)) job.given[name] = await asGiven(value);
      const done = await api.carry(job);
      if (done.state !== "done") throw new Error(done.error || done.state);
      const sample = done.result.samples[0];
      const picture = Object.entries(sample.values).find(([name]) => state.cards[name]?.media === "image" && job.names.includes(name));
      if (picture) Object.assign(one.image, { src: source(picture[1]), hidden: false });
      const words = Object.entries(sample.values).filter(([name, value]) => job.names.includes(name) && typeof value === "string").map(([, value]) => value).join(" ");
      const bits = Object.keys(sample.values).length === 2 ? await bitsOf(sample.values, state.seed, one.model.value) : null;
      const facts = Object.values(sample.truth?.facts || {});
      one.said.textContent = `${one.model.value}, ${job.steps} steps: ${done.result.seconds.toFixed(2)} s${facts.length ? `, ${facts.filter(Boolean).length} of ${facts.length} facts true` : ""}${bits === null ? "" : `, ${bits.toFixed(0)} bits`}${words ? `. “${words}”` : ""}`;
    }));
    wipe();
    box.dataset.state = "done";
  }
  const controls = sides.flatMap((one) => [models.length > 1 ? field(`Model, ${one.side}`, one.model) : "", field(`Steps, ${one.side}`, one.steps)]);
  return [el("p", {}, models.length > 1 ? "The same cards and the same seed on two models; drag the wipe." : "The same cards and the same seed with more and with fewer steps; drag the wipe. Load a second model with the same modalities to compare models."),
    el("div", { class: "controls" }, controls, run), box, slider, el("div", { class: "pair" }, sides.map((one) => one.said))];
}

const stepsOf = (name) => (state.status.models.find((one) => one.name === name) || state.model).settings.steps;
