// What the parts of a pair tell about one another, in bits, as a measuring instrument: its jobs leave the history again.

import * as api from "./api.js";
import { asGiven } from "./media.js";
import { state } from "./state.js";

const DRAWS = 32;

// null for a pair that cannot be scored, such as one with an empty sentence.
export async function bitsOf(values, seed, model = state.model.name) {
  const given = {};
  for (const [name, value] of Object.entries(values)) given[name] = await asGiven(value);
  try {
    const done = await api.carry({ verb: "score", model, given, seed, draws: DRAWS });
    await api.forget(done.id);
    return done.result ? done.result.bits : null;
  } catch (error) {
    if (error.status === 422) return null;
    throw error;
  }
}
