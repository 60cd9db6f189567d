// One hit, large: picture, captions, facts, and the way on to more like it.

import { $, call, element, nameOf, pathOf } from "./dom.js";
import { t } from "./i18n.js";
import { currentHits, searchLike } from "./search.js";

let at = -1;

export function openDetail(index) {
  at = index;
  draw();
  if (!$("detail").open) $("detail").showModal();
}

function draw() {
  const hits = currentHits();
  const hit = hits[at];
  if (!hit) return;
  $("detail-title").textContent = hit.text || nameOf(hit.uri) || t(hit.modality === "text" ? "untitledText" : "untitled");
  $("detail-image").hidden = !hit.thumbnail_url;
  if (hit.thumbnail_url) $("detail-image").src = hit.thumbnail_url;
  else $("detail-image").removeAttribute("src");
  facts(hit);
  $("detail-captions").replaceChildren();
  captions(hit);
  $("detail-previous").disabled = at === 0;
  $("detail-next").disabled = at === hits.length - 1;
}

function facts(hit) {
  const names = t("facts");
  const rows = [
    [names.score, hit.score.toFixed(4)],
    [names.label, hit.label],
    [names.language, hit.language === "und" ? null : hit.language],
    ...Object.entries(hit.attributes ?? {}).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]),
    [names.path, pathOf(hit.uri)],
    [names.id, hit.id],
  ];
  $("detail-facts").replaceChildren(
    ...rows
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: value }))),
  );
}

/** The picture's other captions, fetched because a hit carries one text only. */
async function captions(hit) {
  try {
    const item = await call(`/v1/items/${encodeURIComponent(hit.id)}`);
    if (currentHits()[at] !== hit) return;
    const own = item.captions.filter((text) => text.text !== hit.text);
    $("detail-captions").replaceChildren(...own.map((text) => element("li", { text: text.text, lang: text.language === "und" ? null : text.language })));
  } catch {
    // captions are an extra; without them the rest still stands
  }
}

function like(target) {
  const hit = currentHits()[at];
  $("detail").close();
  searchLike(hit.modality === "text" && hit.image_id ? hit.image_id : hit.id, target);
  window.scrollTo({ top: 0 });
}

function step(by) {
  const next = at + by;
  if (next >= 0 && next < currentHits().length) openDetail(next);
}

export function startDetail() {
  // a preview is small: twice its size is as far as it can be shown without turning to mist
  $("detail-image").addEventListener("load", () => {
    $("detail-image").style.setProperty("max-width", `min(100%, ${$("detail-image").naturalWidth * 2}px)`);
  });
  $("detail-close").addEventListener("click", () => $("detail").close());
  $("detail-previous").addEventListener("click", () => step(-1));
  $("detail-next").addEventListener("click", () => step(1));
  $("detail-similar").addEventListener("click", () => like("images"));
  $("detail-captions-search").addEventListener("click", () => like("texts"));
  $("detail").addEventListener("click", (event) => {
    if (event.target === $("detail")) $("detail").close();
  });
  $("detail").addEventListener("close", () => {
    document.querySelectorAll("#results button.card")[at]?.focus();
  });
  $("detail").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}
