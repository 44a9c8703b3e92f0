// The page comes to life: status, cards, plane, history, and what was running when it was left.

import * as api from "./api.js";
import { $, el } from "./dom.js";
import { buildCards, refresh } from "./cards.js";
import { buildDrawer, drawDrawer } from "./drawer.js";
import { buildDrop } from "./drop.js";
import { buildExplore } from "./explore.js";
import { buildFilm, mark } from "./film.js";
import { buildKept } from "./kept.js";
import { buildKeys, openHelp } from "./keys.js";
import { buildPlane, drawPlane } from "./plane.js";
import { cancel, go, hint, show, watch } from "./run.js";
import { intent } from "./roles.js";
import { adopt } from "./recall.js";
import { buildSearch } from "./search.js";
import { changed, keptModel, newSeed, onChange, state, useModel } from "./state.js";

const EVERY = 3000;

function buildTheme() {
  const kept = localStorage.getItem("unidiffuser-theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = (name) => { document.documentElement.dataset.theme = name; };
  apply(kept || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => { if (!localStorage.getItem("unidiffuser-theme")) apply(dark.matches ? "dark" : "light"); });
  $("theme").addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("unidiffuser-theme", next);
    apply(next);
  });
}

function drawGo() {
  const { word, why } = intent(state.cards);
  $("word").textContent = word;
  $("go").disabled = Boolean(why) || !state.status?.ready;
  $("go").hidden = Boolean(state.running);
  $("cancel").hidden = !state.running;
  if (!state.running) hint(why || (state.status?.ready ? "" : state.status?.trouble || ""));
  if (document.activeElement !== $("seed")) $("seed").value = String(state.seed);
  $("keep").checked = state.keep;
}

function buildSeed() {
  $("seed").addEventListener("input", () => {
    const seed = Number($("seed").value);
    if (!/^[0-9]+$/.test($("seed").value) || !Number.isSafeInteger(seed)) return;
    Object.assign(state, { seed, keep: true });
    changed("seed");
  });
  $("seed").addEventListener("blur", drawGo);
  $("keep").addEventListener("change", () => { state.keep = $("keep").checked; changed("seed"); });
  $("die").addEventListener("click", (event) => {
    Object.assign(state, { seed: newSeed(), fresh: true, keep: event.altKey });
    changed("seed");
  });
}

let due = 0;

// Ask how the server is; a server that cannot be reached is asked again, less and less often.
async function pulse(wait = EVERY) {
  let next = EVERY;
  try {
    state.status = await api.status();
    const { trouble, queue, ready } = state.status;
    banner(ready ? "" : trouble);
    $("queue").textContent = queue.waiting ? `${queue.waiting} waiting` : queue.running ? `${queue.running} running` : "";
    if (!state.model && state.status.models.length) await begin();
    if (!ready) next = 700;
  } catch (error) {
    if (error.status === 401) await signIn();
    else banner("The server cannot be reached; what you wrote is kept. Trying again…");
    if (state.status) state.status.ready = false;
    next = Math.min(2 * wait, 15_000);
  }
  if (state.model) drawGo();
  clearTimeout(due);
  due = setTimeout(() => pulse(next), document.hidden ? 4 * next : next);
}

function banner(text) {
  $("banner").hidden = !text;
  if ($("banner").textContent !== text) $("banner").textContent = text ? text[0].toUpperCase() + text.slice(1) : "";
}

function signIn() {
  return new Promise((resolve) => {
    const problem = el("p", { class: "problem", role: "alert" });
    const token = el("input", { type: "password", autocomplete: "current-password", "aria-label": "Token", "data-testid": "token" });
    const form = el("form", { method: "dialog" }, el("h2", { id: "dialog-title" }, "Token"), el("p", {}, "This server needs the token it was started with."), token, problem, el("button", { class: "plain", "data-testid": "sign-in" }, "Come in"));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await api.signIn(token.value);
        $("dialog").close();
        resolve();
      } catch (error) {
        problem.textContent = error.message;
      }
    });
    $("dialog").replaceChildren(form);
    $("dialog").showModal();
  });
}

async function begin() {
  const { models } = state.status;
  const model = models.find((one) => one.name === keptModel()) || models[0];
  const known = useModel(model);
  $("model").textContent = `${model.name} · ${model.sha256.slice(0, 8)}`;
  buildCards();
  buildPlane();
  buildDrawer(rebuild);
  buildExplore();
  onChange(() => { refresh(); drawGo(); drawPlane(); mark(); drawDrawer(); });
  drawGo();
  await buildKept();
  buildSearch();
  await buildFilm(openJob);
  const id = new URLSearchParams(location.hash.slice(1)).get("job");
  const job = id ? await api.job(id).catch(() => null) : null;
  if (job) openJob(job);
  else if (!known) firstVisit();
  document.body.dataset.ready = "true";
}

// Another model: its own cards, the same history.
function rebuild(name) {
  useModel(state.status.models.find((one) => one.name === name));
  $("model").textContent = `${name} · ${state.model.sha256.slice(0, 8)}`;
  buildCards();
  buildPlane();
  buildDrawer(rebuild);
  buildExplore();
  changed();
}

function openJob(job) {
  adopt(job);
  if (api.OVER.includes(job.state)) show(job);
  else watch(job);
  changed("job");
}

function firstVisit() {
  const text = Object.values(state.cards).find((card) => card.media === "text");
  if (text) text.value = state.model.scenes ? "a large red circle above a small blue square" : "";
  changed("first");
}

buildTheme();
buildSeed();
buildKeys();
buildDrop();
$("go").addEventListener("click", go);
$("cancel").addEventListener("click", cancel);
$("help").addEventListener("click", openHelp);
addEventListener("online", () => pulse());
pulse();
