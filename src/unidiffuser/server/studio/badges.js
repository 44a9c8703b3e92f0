// The truth of a sample beside what the model believes: one badge a fact, on worlds whose truth is known.

import { el } from "./dom.js";

export function badges(truth) {
  if (!truth) return null;
  const list = el("ul", { class: "badges", "aria-label": "Truth", "data-testid": "truth" });
  const facts = Object.entries(truth.facts || {});
  for (const [fact, holds] of facts) list.append(badge(`${fact} ${holds ? "✓" : "✗"}`, holds ? "yes" : "no"));
  if (truth.sentence === false) list.append(badge("not a sentence of this world", "no"));
  if (truth.fault) list.append(badge(`picture: ${truth.fault}`, "no"));
  if (!facts.length && truth.picture) list.append(badge(truth.picture, "none"));
  if (!facts.length && truth.sentence && !("picture" in truth)) list.append(badge("a sentence of this world", "yes"));
  return list.children.length ? list : null;
}

const badge = (text, kind) => el("li", { class: `badge ${kind}` }, text);
