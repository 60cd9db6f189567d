// The classify view: one picture, the labels you name, and how likely each is.

import { $, call, debounce, element, firstPicture } from "./dom.js";
import { remember, remembered, t } from "./i18n.js";
import { notice } from "./search.js";

let picture = null;
let running = null;

const labels = () => [...new Set($("labels").value.split(/[,\n，、;；]/).map((label) => label.trim()).filter(Boolean))];

async function run() {
  running?.abort();
  $("classify-notice").hidden = true;
  if (!picture) return;
  const names = labels();
  if (names.length < ($("multi").checked ? 1 : 2)) {
    $("bars").replaceChildren(element("li", { className: "hint", text: t("labelsNeeded") }));
    return;
  }
  const mine = new AbortController();
  running = mine;
  const form = new FormData();
  form.append("image", picture, "picture");
  // two fields at least, or a lone one would be split at its commas
  for (const name of names) form.append("labels", name);
  form.append("multi_label", $("multi").checked);
  $("progress").hidden = false;
  try {
    const answer = await call("/v1/classify", { method: "POST", body: form, signal: mine.signal });
    if (running === mine) show(answer.results[0].predictions);
  } catch (error) {
    if (error.name === "AbortError" || running !== mine) return;
    $("bars").replaceChildren();
    notice($("classify-notice"), error);
  } finally {
    if (running === mine) $("progress").hidden = true;
  }
}

function show(predictions) {
  $("bars").replaceChildren(
    ...predictions.map(({ label, probability }) => {
      const meter = element("span", { className: "meter" });
      meter.style.setProperty("--share", probability);
      return element(
        "li",
        {},
        element("span", { className: "label", text: label }),
        element("span", { className: "percent", text: `${(probability * 100).toFixed(1)}%` }),
        meter,
      );
    }),
  );
}

export function classifyPicture(file) {
  picture = file;
  if ($("preview").src.startsWith("blob:")) URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(file);
  $("preview").hidden = false;
  $("drop-text").hidden = true;
  $("bars").replaceChildren();
  run();
}

export function startClassify() {
  $("labels").value = remembered("labels");
  const typed = debounce(run, 350);
  $("labels").addEventListener("input", () => {
    remember("labels", $("labels").value);
    typed();
  });
  $("multi").addEventListener("change", run);
  $("classify-form").addEventListener("submit", (event) => event.preventDefault());
  $("classify-picture").addEventListener("change", (event) => {
    const file = firstPicture(event.target);
    if (file) classifyPicture(file);
    event.target.value = "";
  });
}
