// One hit as a card: the picture, its relevance as a bar, its caption.

import { showPictureOf } from "./access.js";
import { hereOf } from "./api.js";
import { element, icon, nameOf, pathOf, languageOf } from "./dom.js";
import { percent, t } from "./i18n.js";
import { add } from "./query.js";

/** How full a hit's bar is: its relevance, or where that is unknown its cosine beside the best. */
export const shareOf = (hit, best) => hit.relevance ?? (best > 0 ? Math.max(0, hit.score / best) : 0);

/** What "like this one" means for a hit: itself, or the picture that a caption belongs to. */
export const likenessOf = (hit) => (hit.modality === "text" && hit.image_id) || hit.id;

export const titleOf = (hit) => hit.text || nameOf(hit.uri) || hit.id;

export function figures(hit) {
  const score = t("score", hit.score.toFixed(3));
  return hit.relevance === null || hit.relevance === undefined ? score : `${t("relevant", percent(hit.relevance))} · ${score}`;
}

export function pictureOf(hit, { eager = false } = {}) {
  const frame = element("span", { className: "picture" });
  if (!hit.thumbnail_url) return frame;
  const image = element("img", { alt: "", loading: eager ? "eager" : "lazy", decoding: "async" });
  image.addEventListener("load", () => {
    const shape = image.naturalWidth / image.naturalHeight;
    // a long or tall picture would lose its subject to a square
    image.classList.toggle("whole", shape > 1.7 || shape < 0.6);
    image.classList.add("loaded");
  });
  image.addEventListener("error", () => image.remove());
  showPictureOf(image, hereOf(hit.thumbnail_url), { lazy: !eager });
  frame.append(image);
  return frame;
}

function quick(name, label, action) {
  return element("button", { type: "button", className: "round", tabindex: "-1", title: label, "aria-label": label, on: { click: action } }, icon(name));
}

/** `tag` says in words where the hit stands; `shown` is what is seen of it. */
export function card(hit, { best, eager, open, tag, shown }) {
  const button = element(
    "button",
    { className: `card ${hit.modality}`, type: "button", tabindex: "-1", "data-id": hit.id, "aria-label": `${titleOf(hit)}, ${tag ? `${tag}, ` : ""}${figures(hit)}`, on: { click: open } },
    pictureOf(hit, { eager }),
    element("span", { className: "meter", share: shareOf(hit, best) }),
    element("span", { className: "caption", text: titleOf(hit), lang: languageOf(hit) }),
    element(
      "span",
      { className: "line" },
      element("span", { className: "path", text: nameOf(hit.uri) || hit.id, title: pathOf(hit.uri) }),
      element("span", { className: "score", text: hit.score.toFixed(3), title: figures(hit) }),
    ),
  );
  const id = likenessOf(hit);
  const actions = element(
    "span",
    { className: "quick" },
    quick("plus", t("addLike"), () => add({ kind: "id", value: id, less: false })),
    quick("minus", t("lessLike"), () => add({ kind: "id", value: id, less: true })),
  );
  return element("li", { className: "hit" }, shown && element("span", { className: "rank-tag", text: shown, title: tag, "aria-hidden": "true" }), button, actions);
}

export function skeletons(count) {
  return Array.from({ length: count }, () =>
    element(
      "li",
      { className: "hit", "aria-hidden": "true" },
      element("span", { className: "card skeleton" }, element("span", { className: "picture" }), element("span", { className: "caption", text: " " })),
    ),
  );
}

/** Arrow keys walk a grid; one card at a time is in the tab order. */
export function walkable(grid, { leave }) {
  const cards = () => [...grid.querySelectorAll("button.card")];
  grid.addEventListener("focusin", (event) => {
    const card = event.target.closest("button.card");
    if (!card) return;
    for (const other of grid.querySelectorAll('button.card[tabindex="0"]')) other.tabIndex = -1;
    card.tabIndex = 0;
  });
  grid.addEventListener("keydown", (event) => {
    const all = cards();
    const at = all.indexOf(event.target.closest("button.card"));
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: all.length - 1 - at }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    if (at + step < 0) leave();
    else all[Math.min(at + step, all.length - 1)].focus();
  });
}

/** The first card can be tabbed to. */
export function enterable(grid) {
  const first = grid.querySelector("button.card");
  if (first && !grid.querySelector('button.card[tabindex="0"]')) first.tabIndex = 0;
}

