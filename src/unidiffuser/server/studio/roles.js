// From the cards' locks to a job, and to the word on the button. No list of tasks: only roles and media types.

const VERBS = { image: "Imagine", text: "Describe", sound: "Compose", vector: "Estimate" };
const ALONE = { image: "Imagine", text: "Write", sound: "Compose", vector: "Draw" };

export const holed = (card) => card.role === "given" && (card.mask || (card.media === "text" && /(^|\s)___/.test(card.value || "")));
export const filled = (card) => card.value !== null && card.value !== undefined && card.value !== "";

// {word, verb, why}: why is the reason for which nothing can be done now.
export function intent(cards) {
  const all = Object.values(cards);
  const sampled = all.filter((card) => card.role === "sampled");
  const given = all.filter((card) => card.role === "given");
  const holes = given.filter(holed);
  const empty = given.find((card) => !filled(card));
  if (empty) return { word: "…", why: `Give the ${empty.name} first, or set its lock to sampled or ignored.` };
  if (sampled.length === 0 && holes.length === 0) {
    if (given.length === 2) return { word: "Score", verb: "score" };
    if (given.length > 2) return { word: "…", why: "A score is between two: set the others to ignored." };
    return { word: "…", why: "Set at least one lock to sampled: there is nothing to make." };
  }
  if (sampled.length === 0) return { word: "Fill in", verb: "sample" };
  if (sampled.length > 1) return { word: sampled.length === all.length && all.length === 2 ? "Dream both" : "Dream", verb: "sample" };
  if (sampled[0].vary && filled(sampled[0])) return { word: "Vary", verb: "sample" };
  return { word: (given.length ? VERBS : ALONE)[sampled[0].media] || "Sample", verb: "sample" };
}

export const DRAWN = ["steps", "solver", "guidance", "guidance_interval", "guidance_against", "label", "reuse", "size"];

// How samples are drawn, as far as it was chosen.
export const drawn = (settings) => Object.fromEntries(DRAWN.filter((name) => settings[name] !== null && settings[name] !== undefined).map((name) => [name, settings[name]]));

// What the cards say, as a job.
export function jobOf(cards, settings, seed, model, path) {
  const { verb } = intent(cards);
  const job = { verb, model, given: {}, looseness: {}, masks: {}, names: [], seed, previews: true };
  for (const card of Object.values(cards)) {
    const varied = card.role === "sampled" && card.vary && filled(card);
    if (card.role === "sampled" || holed(card)) job.names.push(card.name);
    if (card.role === "given" || varied) job.given[card.name] = card.value;
    if (varied) job.looseness[card.name] = card.vary;
    if (card.role === "given" && card.loose && !holed(card)) job.looseness[card.name] = card.loose;
    if (card.role === "given" && card.mask) job.masks[card.name] = card.mask;
  }
  if (verb === "score") return { verb, model, given: job.given, seed, draws: settings.draws || 64 };
  Object.assign(job, drawn(settings), settings.n > 1 ? { n: settings.n } : {});
  if (path) job.path = path;
  return job;
}
