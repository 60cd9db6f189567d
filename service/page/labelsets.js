// Named label sets: choose one, save what is written as one, delete one.

import * as api from "./api.js";
import { $, element } from "./dom.js";
import { remember, remembered, t } from "./i18n.js";
import { notice } from "./notices.js";

let known = null;
let chosen = "";
let changed = () => {};

/** The name of the chosen set, or "" while the labels are one's own. */
export const chosenSet = () => chosen;
export const setsAreServed = () => known !== null;

export async function loadLabelSets() {
  try {
    known = await api.labelSets();
  } catch {
    known = null; // without them, labels are written by hand
  }
  draw();
}

function draw() {
  const sets = known?.label_sets ?? [];
  $("sets").hidden = sets.length === 0;
  $("set").replaceChildren(
    element("option", { value: "", text: t("ownLabels") }),
    ...sets.filter((set) => !set.error).map((set) => element("option", { value: set.name, text: set.name })),
  );
  $("set").value = chosen;
  $("set-delete").hidden = !chosen || !known?.writable;
}

async function choose(name) {
  chosen = name;
  draw();
  try {
    if (name) {
      const set = await api.labelSet(name);
      if (chosen !== name) return;
      $("labels").value = set.labels.join(", ");
      $("multi").checked = set.multi_label;
      $("abstain").checked = set.abstain !== null && set.abstain !== false;
    } else {
      $("labels").value = remembered("labels");
    }
    changed();
  } catch (error) {
    chosen = "";
    draw();
    notice($("classify-notice"), error);
  }
}

/** What is written was changed by hand: it is no longer the set. */
export function leaveSet() {
  if (!chosen) return;
  chosen = "";
  remember("labels", $("labels").value);
  draw();
}

async function remove() {
  const name = chosen;
  try {
    await api.deleteLabelSet(name);
    leaveSet();
    await loadLabelSets();
    changed();
  } catch (error) {
    notice($("classify-notice"), error);
  }
}

async function save(written) {
  const name = $("save-name").value.trim();
  try {
    await api.saveLabelSet(name, written());
    $("save").close();
    await loadLabelSets();
    await choose(name);
    $("set").focus();
  } catch (error) {
    notice($("save-notice"), error);
  }
}

/** A name in use is replaced; the button says so before it happens. */
function saysReplace() {
  const taken = known?.label_sets.some((set) => set.name === $("save-name").value.trim());
  $("save-form").querySelector(".strong").textContent = t(taken ? "replace" : "save");
}

export const relabelSets = draw;

export function startLabelSets(options) {
  changed = options.changed;
  $("set").addEventListener("change", () => choose($("set").value));
  $("set-delete").addEventListener("click", remove);
  $("set-save").addEventListener("click", () => {
    $("save-notice").hidden = true;
    saysReplace();
    $("save").showModal();
  });
  $("save-cancel").addEventListener("click", () => $("save").close());
  $("save-name").addEventListener("input", saysReplace);
  $("save-form").addEventListener("submit", (event) => {
    event.preventDefault();
    save(options.written);
  });
}
