// More like what you keep: a small model of your own history ranks what the diffusion draws, p(text) p(kept | text), and
// what you left. Until it has learnt something it is off, and says what it lacks.

import * as api from "./api.js";
import { giveValue } from "./cards.js";
import { el } from "./dom.js";
import { adopt } from "./recall.js";
import { thumbnail } from "./media.js";
import { blame, choose, show } from "./run.js";
import { changed, onChange, state } from "./state.js";

const AGAIN = 700;
const DRAWS = 32;
const SHOWN = 6;
const text = () => Object.values(state.cards).find((card) => card.media === "text");
let open = null; // the parts of the tab that is open
let due = 0;

onChange((what) => { if (what === "kept" && open?.said.isConnected) follow(open).catch(blame); });

export function liked() {
  const said = el("p", { role: "status", class: "taste", "data-testid": "taste" });
  const propose = el("button", { class: "plain", type: "button", disabled: true, "data-testid": "propose", onclick: () => draw(open).catch(blame).finally(() => { propose.disabled = open.said.dataset.state !== "on"; }) }, "Propose sentences");
  const again = el("button", { class: "plain", type: "button", hidden: true, "data-testid": "fit-again", onclick: () => fit(open).catch(blame) }, "Try again");
  open = { said, propose, again, proposals: el("ul", { class: "proposals", "aria-label": "Proposed sentences", "data-testid": "proposals" }), words: el("p", { class: "faint" }), left: el("div", { class: "row" }) };
  follow(open).catch(blame);
  return [el("p", {}, "Learnt from your own history alone: the words of the samples that you kept (★) and of those that you left. Sentences are drawn from the model and ranked by the odds that you would keep them."),
    said, el("div", { class: "controls" }, propose, again), open.proposals, open.words, open.left];
}

// Ask how it stands, and once more while it changes; fit it where it can be fitted.
async function follow(parts) {
  clearTimeout(due);
  const found = await ask("GET");
  tell(parts, found);
  if (found.state === "stale") await fit(parts);
  else if (found.state === "fitting") due = setTimeout(() => { if (parts.said.isConnected) follow(parts).catch(blame); }, AGAIN);
}

async function fit(parts) {
  tell(parts, await ask("POST"));
  await follow(parts);
}

const ask = (method) => api.ask(method, "/api/taste");
const odds = (score) => { const ratio = Math.exp(score); return ratio >= 1 ? `${ratio.toPrecision(2)} : 1` : `1 : ${(1 / ratio).toPrecision(2)}`; };

function tell(parts, { state: stands, reason, kept, left, auc, words, liked: rows }) {
  const { said, propose, again } = parts;
  said.dataset.state = stands;
  said.textContent = stands === "on"
    ? `On, from ${kept} kept and ${left} left. Of a kept and a left sentence that it had not seen it chose the kept one ${Math.round(100 * auc)} % of the time; guessing is 50 %.`
    : stands === "fitting" || stands === "stale" ? "Learning from what you kept…" : `Off: ${reason}.`;
  propose.disabled = stands !== "on";
  again.hidden = stands !== "failed";
  const [more, less] = [words.filter((one) => one.weight > 0), words.filter((one) => one.weight < 0)].map((list) => list.map((one) => one.word).join(", "));
  parts.words.textContent = [more && `Kept more often with: ${more}.`, less && `Less often with: ${less}.`].filter(Boolean).join(" ");
  fillLeft(parts, rows).catch(blame);
  if (stands !== "on") parts.proposals.replaceChildren();
}

// What was left and is like what is kept; a click opens it.
async function fillLeft({ left }, rows) {
  const found = await Promise.all(rows.map(async (row) => ({ ...row, job: await api.job(row.job).catch(() => null) })));
  left.replaceChildren(...found.filter(({ job }) => job).map(({ job, sample, score }) => {
    const values = Object.entries(job.result.samples[sample].values);
    const [name, value] = values.find(([n]) => state.cards[n]?.media === "image") || values[0];
    return el("button", { class: "thumb", type: "button", "data-testid": "liked", "aria-label": `a sample that you left, odds ${odds(score)}`, title: odds(score), onclick: () => { adopt(job); show(job); choose(sample); changed("job"); } }, thumbnail(value, state.cards[name]?.media));
  }));
}

async function draw({ propose, proposals }) {
  propose.disabled = true;
  const card = text();
  const done = await api.carry({ verb: "sample", model: state.model.name, names: [card.name], n: DRAWS });
  await api.forget(done.id).catch(() => {}); // nobody left these: they are not a part of the history
  if (done.state !== "done") throw new Error(done.error || done.state);
  const sentences = done.result.samples.map((sample) => sample.values[card.name].slice(0, 2000)).filter((sentence) => sentence.trim());
  const ranked = sentences.length ? (await api.ask("POST", "/api/taste/rank", { sentences })).ranked : [];
  const fresh = ranked.filter((row) => !row.had).slice(0, SHOWN);
  proposals.replaceChildren(...fresh.map(({ sentence, score }) => el("li", {},
    el("button", { class: "plain", type: "button", "data-testid": "proposal", onclick: () => give(card, sentence) }, sentence), el("span", { class: "faint" }, ` ${odds(score)}`))));
  if (!fresh.length) proposals.replaceChildren(el("li", { class: "faint" }, "Nothing new was drawn this time."));
}

// A proposal becomes the given sentence, and everything else is made from it.
function give(card, sentence) {
  for (const other of Object.values(state.cards)) if (other !== card && other.role === "given") other.role = "sampled";
  giveValue(card.name, sentence).catch(blame);
}
