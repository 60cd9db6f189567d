// The query's form: words being typed, and the parts already kept as chips that can be turned
// against and removed. Words on the left, pictures on the right.

import { showPictureOf } from "./access.js";
import { thumbnailOf } from "./api.js";
import { $, element, firstPicture, icon } from "./dom.js";
import { t } from "./i18n.js";
import { askWords, asked, change, flip, isEmpty, keepWords, onAsked, remove, showPicture } from "./query.js";

const urls = new Map();

/** One object URL per picture file in use; the others are given back. */
function urlOf(file) {
  if (!urls.has(file)) urls.set(file, URL.createObjectURL(file));
  return urls.get(file);
}

function dropUrls() {
  const used = new Set(asked.parts.map((part) => part.value));
  for (const [file, url] of urls) {
    if (used.has(file)) continue;
    URL.revokeObjectURL(url);
    urls.delete(file);
  }
}

function chip(part) {
  const name = { text: part.value, image: t("yourPicture"), id: t("likeItem") }[part.kind];
  const sign = element(
    "button",
    { type: "button", className: "sign", "aria-label": `${name}. ${t(part.less ? "minus" : "plus")}`, title: t(part.less ? "minus" : "plus"), on: { click: () => flip(part) } },
    icon(part.less ? "minus" : "plus"),
  );
  const off = element(
    "button",
    { type: "button", className: "off", "aria-label": t("remove", name), title: t("remove", name), on: { click: () => { remove(part); $("query").focus(); } } },
    icon("cross"),
  );
  let shown = element("span", { className: "words-of", text: part.value, title: part.value });
  if (part.kind !== "text") {
    const picture = element("img", { alt: name });
    picture.addEventListener("error", () => picture.replaceWith(element("span", { className: "blank" })));
    if (part.kind === "image") picture.src = urlOf(part.value);
    else showPictureOf(picture, thumbnailOf(part.value, asked.index));
    shown = picture;
  }
  const classes = ["part", part.kind !== "text" && "pictured", part.less && "less"].filter(Boolean);
  return element("li", { className: classes.join(" ") }, sign, shown, off);
}

export function drawParts() {
  if ($("query").value !== asked.words) $("query").value = asked.words;
  $("words-parts").replaceChildren(...asked.parts.filter((part) => part.kind === "text").map(chip));
  $("pictures-parts").replaceChildren(...asked.parts.filter((part) => part.kind !== "text").map(chip));
  document.body.dataset.asking = !isEmpty() || asked.words !== "";
  dropUrls();
}

/** Backspace at the very beginning takes the last words back for editing. */
function takeBack(event) {
  const field = $("query");
  if (event.key !== "Backspace" || field.value || !asked.parts.length) return;
  const last = asked.parts.at(-1);
  event.preventDefault();
  change({ parts: asked.parts.slice(0, -1), words: last.kind === "text" ? last.value : "" });
}

export function drawSuggestions() {
  $("suggestions").replaceChildren(
    ...t("suggestions").map((words) => element("button", { type: "button", className: "soft", text: words, on: { click: () => askWords(words) } })),
  );
}

export function startParts() {
  onAsked(drawParts);
  const field = $("query");
  field.addEventListener("input", () => change({ words: field.value }, { typing: true }));
  field.addEventListener("keydown", takeBack);
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepWords();
  });
  $("search-form").querySelector(".words").addEventListener("click", (event) => {
    if (event.target === event.currentTarget) field.focus();
  });
  $("picture").addEventListener("change", (event) => {
    const file = firstPicture(event.target);
    if (file) showPicture(file);
    event.target.value = "";
  });
}
