// The history searched by words: what is found stands in the film strip, the best first, until the words are gone.

import { ask } from "./api.js";
import { $ } from "./dom.js";
import { showFound } from "./film.js";
import { onChange } from "./state.js";

const PAUSE = 250;
const MOST = 100;
let latest = 0;
let due = 0;

export function buildSearch() {
  $("find").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  $("words").addEventListener("input", () => { clearTimeout(due); due = setTimeout(search, PAUSE); });
  $("words").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation(); // elsewhere it cancels a job
    $("words").value = "";
    search();
  });
  $("only-kept").addEventListener("change", search);
  onChange((what) => { if (what === "kept" && $("only-kept").checked) search(); });
}

async function search() {
  clearTimeout(due);
  const number = (latest += 1);
  const [words, kept] = [$("words").value, $("only-kept").checked];
  if (!words.trim() && !kept) {
    showFound(null);
    $("found").textContent = "";
    return;
  }
  try {
    const { jobs, total } = await ask("POST", "/api/search", { words, kept, limit: MOST });
    if (number !== latest) return;
    showFound(jobs);
    $("found").textContent = total > jobs.length ? `${total} found, the best ${jobs.length} are here` : total ? `${total} found` : "Nothing found";
  } catch (error) {
    if (number === latest) $("found").textContent = error.message;
  }
}
