// A job back into the cards: roles, values, settings and seed as they were.

import { source } from "./media.js";
import { DRAWN } from "./roles.js";
import { newSeed, state } from "./state.js";

// From a job of the history, or from a recipe, which has the same fields.
export function adopt({ job, verb = "sample" }) {
  if (!["sample", "score"].includes(verb)) return;
  for (const card of Object.values(state.cards)) {
    const given = job.given?.[card.name];
    const named = job.names?.includes(card.name);
    const loose = job.looseness?.[card.name] || 0;
    const holed = Boolean(job.masks?.[card.name]) || (named && given && typeof given === "string" && card.media === "text" && given.includes("___"));
    card.role = holed || (given && !named) ? "given" : named ? "sampled" : "ignored";
    card.value = given !== undefined ? source(given) : named ? null : card.value;
    card.mask = job.masks?.[card.name] ? source(job.masks[card.name]) : null;
    card.loose = card.role === "given" ? loose : 0;
    card.vary = named && !holed ? loose : 0;
  }
  for (const name of DRAWN) state.settings[name] = job[name] ?? null;
  if (typeof job.guidance !== "number") state.settings.guidance = null; // one scale for all is what the drawer has
  state.settings.n = job.n ?? 1;
  state.seed = Number.isSafeInteger(job.seed) ? job.seed : newSeed();
  state.path = { kind: "together", control: null, prefix: null };
}
