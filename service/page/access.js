// The API key, where the service asks for one: typed once, kept for this tab alone, sent as a header.

import { $ } from "./dom.js";
import { t } from "./i18n.js";

const NAME = "diptych.access";

function stored() {
  try {
    return sessionStorage.getItem(NAME) ?? "";
  } catch {
    return ""; // a browser may forbid storage
  }
}

function store(key) {
  try {
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
  } catch {
    // then the next request is refused again
  }
}

/** Headers with the key, if there is one. Never in an address: those are logged and remembered. */
export const withKey = (headers = {}) => (stored() ? { ...headers, Authorization: `Bearer ${stored()}` } : headers);

/** The service refused: ask for a key, or for another. */
export function askForKey() {
  if ($("access").open) return;
  $("access-notice").hidden = !stored();
  $("access-notice").textContent = t("keyRefused");
  $("access-key").value = "";
  $("access").showModal();
}

const seen = "IntersectionObserver" in window ? new IntersectionObserver(appear, { rootMargin: "400px" }) : null;
const waiting = new WeakMap();

function appear(entries) {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    load(target, waiting.get(target));
  }
}

async function load(image, url) {
  try {
    const response = await fetch(url, { headers: withKey() });
    if (!response.ok) throw new Error(response.status);
    const drawn = URL.createObjectURL(await response.blob());
    if (waiting.get(image) !== url) {
      URL.revokeObjectURL(drawn); // the element shows something else by now
      return;
    }
    const done = () => URL.revokeObjectURL(drawn);
    image.addEventListener("load", done, { once: true });
    image.addEventListener("error", done, { once: true });
    image.src = drawn;
  } catch {
    if (waiting.get(image) === url) image.dispatchEvent(new Event("error"));
  }
}

/** Show a picture of the service's in an image element, which by itself could send no key. */
export function showPictureOf(image, url, { lazy = false } = {}) {
  if (!stored()) {
    image.src = url;
    return;
  }
  waiting.set(image, url);
  image.removeAttribute("src");
  if (lazy && seen) seen.observe(image);
  else load(image, url);
}

export function startAccess() {
  const has = Boolean(stored());
  // a link sends no key, and without one the documentation is refused
  $("docs-link").hidden = has;
  $("access-forget").hidden = !has;
  $("access-forget").addEventListener("click", () => {
    store("");
    location.reload();
  });
  $("access-form").addEventListener("submit", (event) => {
    event.preventDefault();
    store($("access-key").value.trim());
    location.reload();
  });
}
