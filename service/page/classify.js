// The classify view: one picture, the labels you name, and how likely each is.

import * as api from "./api.js";
import { $, debounce, element, firstPicture, working } from "./dom.js";
import { percent, remember, remembered, t } from "./i18n.js";
import { chosenSet, leaveSet, setsAreServed, startLabelSets } from "./labelsets.js";
import { notice } from "./notices.js";
import { dataUri } from "./pictures.js";
import { asked } from "./query.js";
import { info } from "./served.js";

const SHOWN = 20;
let picture = null;
let running = null;
let last = null;

const labels = () => [...new Set($("labels").value.split(/[,\n，、;；]/).map((label) => label.trim()).filter(Boolean))];

/** What is asked, as a label set would keep it. */
export const written = () => ({ labels: labels(), multi_label: $("multi").checked, abstain: $("abstain").checked || null });

async function body() {
  const set = chosenSet();
  const explain = $("heat").checked && !$("heat-row").hidden;
  const own = { labels: labels(), multi_label: $("multi").checked, ...($("abstain").checked ? { abstain: true } : {}) };
  return { images: [await dataUri(picture)], top_k: SHOWN, ...(set ? { label_set: set } : own), ...(explain ? { explain } : {}) };
}

async function run() {
  typed.cancel();
  running?.abort();
  running = null;
  working("classify", false);
  $("classify-notice").hidden = true;
  const enough = chosenSet() || labels().length >= ($("multi").checked ? 1 : 2);
  $("set-save").hidden = !setsAreServed() || !enough || Boolean(chosenSet());
  if (!picture || !enough) {
    show(null);
    return;
  }
  const mine = new AbortController();
  running = mine;
  working("classify", true);
  if (!last) $("bars").replaceChildren();
  try {
    const answer = await api.classify(await body(), asked.index, mine.signal);
    if (running === mine) show(answer);
  } catch (error) {
    if (error.name === "AbortError" || running !== mine) return;
    show(null);
    $("bars").replaceChildren();
    notice($("classify-notice"), error, run);
  } finally {
    if (running === mine) {
      running = null;
      working("classify", false);
    }
  }
}

const typed = debounce(run, 250);

function bar(name, probability, className, path) {
  const groups = path && path.length > 1 ? element("small", { text: `${path.slice(0, -1).join(" / ")} / ` }) : null;
  return element(
    "li",
    { className },
    element("span", { className: "label" }, groups, path ? path.at(-1) : name),
    element("span", { className: "percent", text: percent(probability, 1) }),
    element("span", { className: "meter", share: probability }),
  );
}

function show(answer) {
  last = answer;
  const result = answer?.results[0];
  $("abstained").hidden = !result?.abstained;
  $("bars").classList.toggle("faint-bars", Boolean(result?.abstained));
  heat(result);
  if (!result) {
    const ready = chosenSet() || labels().length >= 2;
    $("bars").replaceChildren(element("li", { className: "hint", text: t(ready ? "pictureNeeded" : "labelsNeeded") }));
    return;
  }
  const rows = result.predictions.map(({ label, probability, path }, at) => bar(label, probability, at ? null : "first", path));
  if (result.background !== null && result.background !== undefined) {
    rows.push(element("li", { className: "heading", text: t("againstBest") }), bar(t("background"), result.background, "background"));
  }
  if (result.parents?.length) {
    rows.push(element("li", { className: "heading", text: t("groups") }));
    rows.push(...result.parents.map(({ label, probability, path }) => bar(label, probability, null, path)));
  }
  $("bars").replaceChildren(...rows);
}

/** The picture, with its warm places drawn over it when they were asked for. */
function heat(result) {
  const map = result?.heatmap;
  if (map) $("preview").src = map;
  else if (picture) $("preview").src = urlOf(picture);
  $("heat-of").textContent = map ? t("heatOf", result.predictions[0].label) : "";
}

let url = "";
let urlFile = null;
function urlOf(file) {
  if (urlFile !== file) {
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(file);
    urlFile = file;
  }
  return url;
}

export function classifyPicture(file) {
  picture = file;
  $("preview").src = urlOf(file);
  $("preview").hidden = false;
  $("preview").alt = t("yourPicture");
  $("drop").classList.add("filled");
  $("drop-text").hidden = true;
  run();
}

export async function activate(is) {
  if (!is) return;
  const known = await info(asked.index).catch(() => ({}));
  $("heat-row").hidden = !known.explains;
  $("abstain").closest("label").hidden = !setsAreServed();
  if (!last) run();
}

export function relabel() {
  if (last) show(last);
  else if (!running) show(null);
}

export function startClassify() {
  $("labels").value = remembered("labels");
  startLabelSets({ changed: run, written });
  $("labels").addEventListener("input", () => {
    leaveSet();
    remember("labels", $("labels").value);
    typed();
  });
  for (const id of ["multi", "abstain"]) {
    $(id).addEventListener("change", () => {
      leaveSet();
      run();
    });
  }
  $("heat").addEventListener("change", run);
  $("classify-form").addEventListener("submit", (event) => event.preventDefault());
  $("classify-picture").addEventListener("change", (event) => {
    const file = firstPicture(event.target);
    if (file) classifyPicture(file);
    event.target.value = "";
  });
}
