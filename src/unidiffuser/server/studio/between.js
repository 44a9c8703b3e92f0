// Between two pictures, sentences or pairs: all frames are made once, then the slider is free.

import * as api from "./api.js";
import { el, field, filmLink } from "./dom.js";
import { asGiven, source, thumbnail } from "./media.js";
import { filled } from "./roles.js";
import { blame } from "./run.js";
import { state } from "./state.js";

const held = { first: null, second: null }; // the ends stay while tabs change

export function between() {
  const slots = {};
  const picture = el("img", { alt: "", hidden: true });
  const words = el("p", { class: "bits" });
  const slider = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Along the way", "data-testid": "along", disabled: true });
  const frames = el("input", { type: "text", inputMode: "numeric", value: "8", "aria-label": "Frames" });
  const bar = el("p", { class: "faint", role: "status" });
  let made = [];
  const show = () => {
    const values = made[Number(slider.value)]?.values || {};
    for (const [name, value] of Object.entries(values)) {
      if (state.cards[name]?.media === "image") Object.assign(picture, { hidden: false, src: source(value), alt: `frame ${Number(slider.value) + 1}` });
      if (typeof value === "string" && state.cards[name]?.media === "text") words.textContent = value;
    }
  };
  slider.addEventListener("input", show);
  const hold = (end) => el("button", { class: "plain", type: "button", "data-testid": `hold-${end}`, onclick: async () => {
    const values = {};
    for (const card of Object.values(state.cards)) if (filled(card) && card.role !== "ignored") values[card.name] = await asGiven(card.value);
    held[end] = Object.keys(values).length ? values : null;
    draw();
  } }, end === "first" ? "Take the cards as the first end" : "… as the second end");
  const draw = () => {
    for (const end of ["first", "second"]) {
      slots[end].replaceChildren(...Object.entries(held[end] || {}).map(([name, value]) => el("div", { class: "thumb" }, thumbnail(value, state.cards[name]?.media))));
    }
    run.disabled = !held.first || !held.second;
  };
  const run = el("button", { class: "plain", type: "button", "data-testid": "go-between", onclick: () => go().catch(blame).finally(draw) }, "Go between");
  async function go() {
    run.disabled = true;
    const shared = Object.keys(held.first).filter((name) => name in held.second);
    if (!shared.length) throw new Error("the two ends hold different things: take both from the same cards");
    const part = (end) => Object.fromEntries(shared.map((name) => [name, held[end][name]]));
    const count = Math.max(2, Math.min(32, Number(frames.value) || 8));
    const done = await api.carry({ verb: "interpolate", model: state.model.name, names: shared, given: part("first"), second: part("second"), frames: count }, (name, data) => {
      if (name === "step") bar.textContent = `${Math.round((100 * data.done) / data.total)} %`;
    });
    bar.textContent = "";
    if (done.state === "done") bar.replaceChildren(filmLink(done.id));
    if (done.state !== "done") throw new Error(done.error || done.state);
    made = done.result.samples;
    Object.assign(slider, { max: made.length - 1, value: 0, disabled: false });
    show();
  }
  slots.first = el("div", { class: "row" });
  slots.second = el("div", { class: "row" });
  draw();
  return [el("p", {}, "Both ends are inverted to the noise they come from; the way goes along the sphere from one noise to the other and is sampled back."),
    el("div", { class: "controls" }, hold("first"), slots.first, hold("second"), slots.second, field("Frames", frames), run, bar), el("div", { class: "wipe" }, picture), words, slider];
}
