// Everything by keyboard, and the page that says so.

import { $, el } from "./dom.js";
import { cycleRole } from "./cards.js";
import { openTab } from "./explore.js";
import { step } from "./film.js";
import { toggle } from "./kept.js";
import { cancel, choose, go } from "./run.js";
import { state } from "./state.js";

const KEYS = [
  ["Ctrl Enter", "go"], ["Esc", "cancel"], ["1, 2, …", "turn the lock of a card"], ["R", "new seed"], ["← →", "through the history"],
  ["[ ]", "through the samples"], ["K", "keep the sample"], ["/", "search the history"], ["M", "more settings"], ["G", "grid"], ["V", "variations"], ["?", "this help"],
];

export function buildKeys() {
  addEventListener("keydown", (event) => {
    if (!state.model || $("dialog").open) return;
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") { event.preventDefault(); go(); return; }
    if (event.key === "Escape") { cancel(); return; }
    const typing = event.target.closest?.("input:not([type=radio]):not([type=range]):not([type=checkbox]), textarea, select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const onRange = event.target.closest?.("input");
    if (/^[1-9]$/.test(event.key)) cycleRole(Number(event.key) - 1);
    else if (event.key.toLowerCase() === "r") $("die").click();
    else if (event.key === "ArrowLeft" && !onRange) step(-1);
    else if (event.key === "ArrowRight" && !onRange) step(1);
    else if (event.key === "[") choose(state.chosen - 1);
    else if (event.key === "]") choose(state.chosen + 1);
    else if (event.key.toLowerCase() === "m") $("more").click();
    else if (event.key.toLowerCase() === "g") openTab("Grid");
    else if (event.key.toLowerCase() === "v") openTab("Variations");
    else if (event.key.toLowerCase() === "k") toggle();
    else if (event.key === "/") $("words").focus();
    else if (event.key === "?") openHelp();
    else return;
    event.preventDefault();
  });
}

export function openHelp() {
  $("dialog").replaceChildren(
    el("h2", { id: "dialog-title" }, "One network, every distribution"),
    el("p", {}, "Each card has a lock. Given: we have it. Sampled: we want it. Ignored: it plays no part. Set the locks, press the button."),
    el("p", {}, "Between given and ignored lies looseness: the model listens to a noisy version, and the sample is a true draw given only that."),
    el("dl", {}, KEYS.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
    el("p", { class: "faint" }, "The page uses nothing but the public API: ", el("a", { href: "/openapi.json" }, "openapi.json"), "."),
    el("form", { method: "dialog" }, el("button", { class: "plain" }, "Close")));
  $("dialog").showModal();
}
