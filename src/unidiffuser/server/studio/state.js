// What the page holds: the model, its cards, the settings, the job that is shown. It survives a reload.

const KEY = "unidiffuser-studio";

export const state = {
  status: null,
  model: null, // as /api/status describes it
  cards: {}, // name -> {name, media, role, value, loose, vary, mask}
  settings: { n: 1, draws: 64 }, // what is not there is as the model has it
  seed: 0,
  keep: false,
  path: { kind: "together", control: null, prefix: null },
  job: null, // the job that is shown
  chosen: 0, // which of its samples
};

const listeners = new Set();
export const onChange = (listener) => listeners.add(listener);
export function changed(what = "all") {
  save();
  for (const listener of listeners) listener(what);
}

export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

export function useModel(model) {
  state.model = model;
  const kept = load();
  state.cards = {};
  for (const { name, media_type: media } of model.modalities) {
    const before = kept.cards?.[name];
    const role = ["given", "sampled", "ignored"].includes(before?.role) ? before.role : null;
    state.cards[name] = { name, media, role: role || (media === "text" ? "given" : "sampled"), value: null, loose: 0, vary: 0, mask: null };
    if (before?.value && typeof before.value === "string" && media === "text") state.cards[name].value = before.value;
  }
  if (kept.settings) Object.assign(state.settings, kept.settings, { solver: model.solvers[kept.settings.solver] ? kept.settings.solver : null });
  if (!(state.settings.label < model.labels)) state.settings.label = null; // kept from another model
  if (!model.modalities.some((one) => one.multiple)) state.settings.size = null;
  state.keep = kept.keep === true;
  state.seed = Number.isSafeInteger(kept.seed) ? kept.seed : newSeed();
  return Boolean(kept.cards);
}

function load() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) || {};
  } catch {
    return {};
  }
}

function save() {
  const cards = Object.fromEntries(Object.entries(state.cards).map(([name, { role, value, media }]) => [name, { role, value: media === "text" ? value : null }]));
  try {
    localStorage.setItem(KEY, JSON.stringify({ cards, settings: state.settings, seed: state.seed, keep: state.keep, model: state.model?.name }));
  } catch {
    // a browser that keeps nothing: the page works, it only forgets
  }
}

export const keptModel = () => load().model;
