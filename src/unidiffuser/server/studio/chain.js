// The film strip: each modality sampled from the one before, round and round (blocked Gibbs sampling).

import * as api from "./api.js";
import { el, field, filmLink, select } from "./dom.js";
import { badges } from "./badges.js";
import { giveValue } from "./cards.js";
import { asGiven, source } from "./media.js";
import { drawn, filled } from "./roles.js";
import { blame } from "./run.js";
import { newSeed, state } from "./state.js";

export function chain() {
  const names = Object.keys(state.cards);
  const from = select(names, names.find((name) => filled(state.cards[name])) || names[0], { "aria-label": "From" });
  const to = select(names, names.find((name) => name !== from.value), { "aria-label": "To" });
  const rounds = el("input", { type: "text", inputMode: "numeric", value: "3", "aria-label": "Rounds", "data-testid": "rounds" });
  const settle = el("input", { type: "checkbox" });
  const frames = el("div", { class: "frames", "data-testid": "frames", tabindex: 0, role: "list", "aria-label": "The chain" });
  const run = el("button", { class: "plain", type: "button", "data-testid": "walk", onclick: () => walk().catch(blame).finally(() => { run.disabled = false; }) }, "Walk");
  const save = el("span", {});
  const halt = el("button", { class: "quiet", type: "button", hidden: true }, "✕ Cancel");

  async function walk() {
    run.disabled = true;
    const count = Math.max(1, Math.min(16, Number(rounds.value) || 1));
    if (from.value === to.value) throw new Error("a chain goes from one modality to another");
    const start = state.cards[from.value];
    const given = filled(start) ? { [from.value]: await asGiven(start.value) } : {};
    const links = [from.value, ...Array.from({ length: 2 * count }, (_, k) => (k % 2 ? from.value : to.value))];
    frames.replaceChildren();
    save.replaceChildren();
    frames.dataset.state = "running";
    if (given[from.value]) frames.append(frame({ shows: from.value, values: given }, "the start"));
    const said = [];
    const done = await api.carry({ verb: "chain", model: state.model.name, names: links, given, seed: state.keep ? state.seed : newSeed(), ...drawn(state.settings) }, (name, data) => {
      if (name === "made") { halt.hidden = false; halt.onclick = () => api.cancel(data.id); }
      if (name !== "link") return;
      frames.append(frame(data.sample, `link ${data.sample.link}`));
      frames.scrollLeft = frames.scrollWidth;
      const value = data.sample.values[data.sample.shows];
      if (typeof value === "string") {
        if (settle.checked && said.at(-1) === value) halt.click();
        said.push(value);
      }
    });
    halt.hidden = true;
    frames.dataset.state = done.state;
    if (done.state === "done") save.replaceChildren(filmLink(done.id));
    if (done.error) throw new Error(done.error);
  }

  return [el("p", {}, "Each frame is drawn from the one before it alone. If the model's conditionals belong to one law, the walk stays in it; where they do not, it drifts."),
    el("div", { class: "controls" }, field("From", from), field("to", to), field("Rounds", rounds), el("label", { class: "check" }, settle, "stop when the sentence stays"), run, halt, save), frames];
}

function frame(sample, title) {
  const value = sample.values[sample.shows];
  const shown = state.cards[sample.shows]?.media === "image" ? el("img", { src: source(value), alt: title }) : el("div", { class: "saying" }, typeof value === "string" ? value : "…");
  return el("figure", { class: "frame", role: "listitem" }, shown, el("figcaption", { class: "faint" }, title), badges(sample.truth),
    el("button", { class: "quiet", type: "button", onclick: () => giveValue(sample.shows, value) }, "Use"));
}
