// Ways to look further than one sample, each a tab; what a tab does is made of ordinary jobs.

import { $, el } from "./dom.js";
import { between } from "./between.js";
import { chain } from "./chain.js";
import { compare } from "./compare.js";
import { grid } from "./grid.js";
import { liked } from "./liked.js";
import { paths } from "./paths.js";
import { ring } from "./ring.js";
import { state } from "./state.js";

// name -> whether it makes sense for the cards, and how it is built
const TABS = {
  Variations: [(media) => media.includes("image") || media.includes("text"), ring],
  "Film strip": [(media) => media.length > 1, chain],
  Between: [() => true, between],
  Compare: [() => true, compare],
  Grid: [() => true, grid],
  Paths: [(media) => media.length > 1, paths],
  "More like kept": [(media) => media.includes("text"), liked],
};
let shown = null;

export function buildExplore() {
  const media = Object.values(state.cards).map((card) => card.media);
  const names = Object.keys(TABS).filter((name) => TABS[name][0](media));
  $("tabs").replaceChildren(...names.map((name, k) => el("button", { type: "button", role: "tab", id: `tab-${k}`, "aria-selected": "false", "aria-controls": "panel", "data-tab": name, "data-testid": `tab-${name.toLowerCase().replaceAll(" ", "-")}`, onclick: () => openTab(shown === name ? null : name) }, name)));
  openTab(null);
}

export function openTab(name) {
  shown = name;
  for (const tab of $("tabs").children) {
    const on = tab.dataset.tab === name;
    tab.setAttribute("aria-selected", String(on));
    if (on) $("panel").setAttribute("aria-labelledby", tab.id);
  }
  $("panel").hidden = !name;
  if (!name) return;
  $("panel").replaceChildren(...TABS[name][1]());
  $("panel").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}
