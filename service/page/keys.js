// Keys that act from anywhere. Single keys stay silent while someone types, and can be turned off.

import { likenessOf } from "./cards.js";
import { toggleHeat } from "./detail.js";
import { $, element, isTyping } from "./dom.js";
import { remember, remembered, t } from "./i18n.js";
import { add, askLike } from "./query.js";
import { focusedHit } from "./search.js";

const singleKeys = () => remembered("keys", "on") === "on";

function onCard(key) {
  const hit = focusedHit();
  if (!hit) return false;
  const value = likenessOf(hit);
  const acts = {
    m: () => askLike(value),
    "+": () => add({ kind: "id", value, less: false }),
    "-": () => add({ kind: "id", value, less: true }),
  };
  if (!acts[key]) return false;
  acts[key]();
  $("query").focus();
  window.scrollTo({ top: 0 });
  return true;
}

function pressed(event, { show, views }) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const open = document.querySelector("dialog[open]");
  if (event.key === "Escape") {
    if (!open && event.target.closest?.(".grid")) $("query").focus();
    return;
  }
  if (isTyping(event.target) || !singleKeys()) return;
  if (open) {
    if (open.id !== "detail") return;
    if (event.key === "w") toggleHeat();
    if (event.key === "m") $("detail-similar").click();
    return;
  }
  if (event.key === "/") {
    event.preventDefault();
    show();
    $("query").focus();
    $("query").select();
  } else if (event.key === "?") {
    $("keys").showModal();
  } else if (/^[1-9]$/.test(event.key)) {
    views()[Number(event.key) - 1]?.click();
  } else if (onCard(event.key)) {
    event.preventDefault();
  }
}

export function relabelKeys() {
  $("keys-list").replaceChildren(
    ...t("keyList").map(([keys, meaning]) =>
      element("div", {}, element("dt", {}, ...keys.map((key) => element("kbd", { text: key }))), element("dd", { text: meaning })),
    ),
  );
}

export function startKeys(options) {
  $("keys-on").checked = singleKeys();
  $("keys-on").addEventListener("change", () => remember("keys", $("keys-on").checked ? "on" : "off"));
  $("keys-open").addEventListener("click", () => $("keys").showModal());
  $("keys").addEventListener("click", (event) => event.target === $("keys") && $("keys").close());
  document.addEventListener("keydown", (event) => pressed(event, options));
}
