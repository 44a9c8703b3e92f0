// The drawer: what few need often. Empty means as the model has it.

import { $, el, field, select } from "./dom.js";
import { changed, state } from "./state.js";

let controls = {};

export function buildDrawer(onModel) {
  const own = state.model.settings;
  const scale = typeof own.guidance.scale === "number" ? own.guidance.scale : Math.max(...Object.values(own.guidance.scale), 0);
  const number = (name, min, max, hint, whole = true) => el("input", { inputMode: "decimal", placeholder: String(hint), autocomplete: "off", "data-testid": `set-${name}`, oninput: (event) => {
    const text = event.target.value.trim();
    const value = Number(text);
    const good = text === "" || (Number.isFinite(value) && value >= min && value <= max && (!whole || Number.isInteger(value)));
    event.target.setCustomValidity(good ? "" : `from ${min} to ${max}`);
    event.target.toggleAttribute("aria-invalid", !good);
    if (!good) { event.target.reportValidity(); return; }
    state.settings[name] = text === "" ? null : value;
    changed("settings");
  } });
  controls = {
    n: number("n", 1, 64, 1),
    steps: number("steps", 1, 1000, own.steps),
    guidance: number("guidance", 0, 100, scale, false),
    draws: number("draws", 2, 1024, 64),
  };
  const solver = select(["", ...Object.keys(state.model.solvers)], state.settings.solver || "", { "data-testid": "set-solver", onchange: (event) => { state.settings.solver = event.target.value || null; changed("settings"); } });
  solver.options[0].textContent = own.solver;
  controls.solver = solver;
  const models = state.status.models;
  $("drawer").replaceChildren(
    field("Samples", controls.n), field("Steps", controls.steps), field("Guidance (0 = off)", controls.guidance), field("Solver", solver), field("Noise draws of a score", controls.draws),
    models.length > 1 ? field("Model", select(models.map((one) => one.name), state.model.name, { "data-testid": "set-model", onchange: (event) => onModel(event.target.value) })) : "");
  $("more").onclick = () => {
    const open = $("drawer").hidden;
    $("drawer").hidden = !open;
    $("more").setAttribute("aria-expanded", String(open));
  };
  drawDrawer();
}

export function drawDrawer() {
  for (const [name, control] of Object.entries(controls)) {
    if (document.activeElement === control) continue;
    const value = state.settings[name];
    control.value = value === null || value === undefined || (name === "n" && value === 1) ? "" : String(value);
  }
}
