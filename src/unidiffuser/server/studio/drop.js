// Dropping and pasting: a picture of ours gives its recipe back, one of another tool its prompt, any other is given.

import * as api from "./api.js";
import { $, el, fileAsUrl } from "./dom.js";
import { boxOf, complain, giveValue } from "./cards.js";
import { adopt } from "./recall.js";
import { blame, say, watch } from "./run.js";
import { addToFilm } from "./film.js";
import { changed, state } from "./state.js";

const MAX_FILE = 16 * 2 ** 20;

export function buildDrop() {
  let depth = 0;
  addEventListener("dragenter", (event) => { event.preventDefault(); depth += 1; $("dropzone").hidden = !event.dataTransfer?.types.includes("Files"); });
  addEventListener("dragleave", () => { depth -= 1; if (depth <= 0) $("dropzone").hidden = true; });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    $("dropzone").hidden = true;
    dropped(event.dataTransfer, event.target.closest?.(".cardbox")?.dataset.name);
  });
  addEventListener("paste", (event) => { if (event.clipboardData?.files.length) { event.preventDefault(); dropped(event.clipboardData, null); } });
}

async function dropped(data, name) {
  if (!state.model) return;
  const frame = data.getData("application/x-unidiffuser");
  if (frame) {
    const { url, name: from } = JSON.parse(frame);
    await giveValue(name && state.cards[name].media === "image" ? name : from, { url, type: "image/png" });
    return;
  }
  const files = [...data.files];
  if (files.length > 1) { say(el("p", { class: "problem" }, `${files.length} files were dropped; drop one picture.`)); return; }
  if (!files.length) {
    const text = data.getData("text/plain").trim();
    const card = Object.values(state.cards).find((one) => one.media === "text");
    if (text && card) { Object.assign(card, { value: text.slice(0, 2000), role: "given" }); changed("card"); }
    return;
  }
  await droppedFile(files[0], name);
}

async function droppedFile(file, name) {
  const media = file.type.startsWith("audio/") ? "sound" : "image";
  const target = name && state.cards[name]?.media === media ? name : Object.values(state.cards).find((card) => card.media === media)?.name;
  if (!target) { say(el("p", { class: "problem" }, `This model takes no ${media}.`)); return; }
  if (file.size > MAX_FILE || !/^(image\/(png|jpeg|webp)|audio\/(x-)?wav)$/.test(file.type)) {
    complain(target, "That is no PNG, JPEG, WebP or WAV file of at most 16 MB.");
    return;
  }
  const url = await fileAsUrl(file);
  if (media === "image" && !name) {
    const said = await api.recipe(url).catch((error) => { complain(target, error.message); return null; });
    if (said === null) return;
    if (said.job || said.prompt) { understood(said, url, target); return; }
    if (said.tool) say(el("p", { class: "problem" }, said.note));
  }
  await giveValue(target, url);
  boxOf(target)?.scrollIntoView({ block: "nearest" });
}

function understood(said, url, target) {
  const use = el("button", { class: "plain", type: "button", onclick: () => { say(""); giveValue(target, url); } }, "Use the picture itself");
  if (said.prompt) {
    const card = Object.values(state.cards).find((one) => one.media === "text");
    if (card) Object.assign(card, { value: said.prompt, role: "given" });
    changed("card");
    say(el("p", { class: "faint", "data-testid": "recalled" }, `A picture of ${said.tool}: its prompt is in the sentence; the rest of its recipe means nothing here.`), use);
    return;
  }
  adopt({ job: said.job });
  state.keep = true;
  changed("recipe");
  say(el("p", { class: "faint", "data-testid": "recalled" }, said.note ? `Its recipe is in the cards, but ${said.note}.` : "A picture of ours: its recipe is in the cards."),
    el("button", { class: "plain", type: "button", "data-testid": "reproduce", disabled: Boolean(said.note), onclick: () => reproduce(said) }, "Make it again"), use);
}

// The same recipe once more, and whether the pixels are the same.
async function reproduce({ job, pixels }) {
  const body = Object.fromEntries(Object.entries({ ...job, verb: "sample", n: 1 }).filter(([, value]) => value !== null));
  try {
    const made = await api.submit(body);
    addToFilm(made);
    watch(made);
    const off = setInterval(async () => {
      if (state.running) return;
      clearInterval(off);
      const same = state.job?.result?.samples?.[0]?.pixels === pixels;
      if (state.job?.id === made.id && state.job.state === "done") say(el("p", { class: same ? "faint" : "problem", "data-testid": "reproduced" }, same ? "The same pixels again." : "Not the same pixels: another version or machine made it."));
    }, 100);
  } catch (error) {
    blame(error);
  }
}
