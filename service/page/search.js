// The search view: query in, grid of hits out. The address keeps the query, so it can be shared.

import { $, ServiceError, call, debounce, element, firstPicture, nameOf, pathOf, postJson } from "./dom.js";
import { openDetail } from "./detail.js";
import { number, t } from "./i18n.js";

const PAGE = 24;
const PAUSE_MS = 220;
const SKELETON_AFTER_MS = 180;

// what is asked: text, or a picture file, or an item's id
const asked = { text: "", file: null, id: null, target: "images" };
const hits = [];
let running = null;
let last = null;

export const currentHits = () => hits;

const isEmpty = () => !asked.text.trim() && !asked.file && !asked.id;

function request(offset, signal) {
  if (asked.file) {
    const options = new URLSearchParams({ k: PAGE, offset, target: asked.target });
    return call(`/v1/search/image-to-text?${options}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: asked.file,
      signal,
    });
  }
  const query = asked.id ? { id: asked.id } : { text: asked.text };
  return postJson("/v1/search", { query, target: asked.target, k: PAGE, offset }, signal);
}

async function run({ append = false } = {}) {
  typed.cancel();
  running?.abort();
  if (isEmpty()) {
    showStart();
    return;
  }
  const mine = new AbortController();
  running = mine;
  $("progress").hidden = false;
  $("view-search").setAttribute("aria-busy", "true");
  const skeleton = setTimeout(() => !append && !hits.length && showSkeleton(), SKELETON_AFTER_MS);
  try {
    const answer = await request(append ? hits.length : 0, mine.signal);
    if (running !== mine) return;
    show(answer, append);
  } catch (error) {
    if (error.name === "AbortError" || running !== mine) return;
    showError(error);
  } finally {
    clearTimeout(skeleton);
    if (running === mine) {
      $("progress").hidden = true;
      $("view-search").removeAttribute("aria-busy");
    }
  }
}

const typed = debounce(() => {
  remember();
  run();
}, PAUSE_MS);

function show(answer, append) {
  last = answer;
  $("notice").hidden = true;
  if (!append) {
    hits.length = 0;
    $("results").replaceChildren();
  }
  const from = hits.length;
  hits.push(...answer.hits);
  const best = hits[0]?.score ?? 1;
  $("results").append(...answer.hits.map((hit, index) => card(hit, from + index, best)));
  // offset ends at ten thousand
  $("more").hidden = answer.hits.length < PAGE || hits.length > 10000;
  describe();
}

function describe() {
  $("empty").hidden = hits.length > 0;
  if (!hits.length && last) {
    empty(t("noneTitle"), t(asked.target === "texts" ? "noCaptions" : "noPictures"));
  }
  const parts = hits.length ? [t("found", number(hits.length), number(Math.round(last.took_ms)))] : [];
  if (last?.truncated) parts.push(t("truncated"));
  $("status").textContent = parts.join(" · ");
}

function card(hit, index, best) {
  const picture = element("span", { className: "picture" });
  if (hit.thumbnail_url) {
    const image = element("img", { src: hit.thumbnail_url, alt: "", loading: index < PAGE ? "eager" : "lazy", decoding: "async" });
    image.addEventListener("load", () => {
      const shape = image.naturalWidth / image.naturalHeight;
      image.classList.toggle("whole", shape > 1.7 || shape < 0.6);
      image.classList.add("loaded");
    });
    image.addEventListener("error", () => image.remove());
    picture.append(image);
  }
  const meter = element("span", { className: "meter" });
  meter.style.setProperty("--share", Math.max(0, Math.min(1, best > 0 ? hit.score / best : 0)));
  const score = hit.score.toFixed(3);
  const button = element(
    "button",
    { className: `card ${hit.modality}`, type: "button", "data-id": hit.id, "aria-label": `${hit.text || nameOf(hit.uri)}, ${t("score", score)}` },
    picture,
    meter,
    element("span", { className: "caption", text: hit.text || nameOf(hit.uri) || hit.id }),
    element(
      "span",
      { className: "line" },
      element("span", { className: "path", text: nameOf(hit.uri) || hit.id, title: pathOf(hit.uri) }),
      element("span", { className: "score", text: score, title: t("score", score) }),
    ),
  );
  button.addEventListener("click", () => openDetail(index));
  return element("li", {}, button);
}

function showSkeleton() {
  $("empty").hidden = true;
  $("notice").hidden = true;
  $("results").replaceChildren(
    ...Array.from({ length: 12 }, () =>
      element("li", { "aria-hidden": "true" }, element("span", { className: "card skeleton" }, element("span", { className: "picture" }), element("span", { className: "caption", text: " " }))),
    ),
  );
}

function empty(title, text, suggestions = []) {
  $("empty").hidden = false;
  $("empty-title").textContent = title;
  $("empty-text").textContent = text;
  $("suggestions").replaceChildren(
    ...suggestions.map((words) => {
      const button = element("button", { type: "button", className: "soft", text: words });
      button.addEventListener("click", () => searchText(words));
      return button;
    }),
  );
}

function showStart() {
  running = null;
  last = null;
  hits.length = 0;
  $("progress").hidden = true;
  $("view-search").removeAttribute("aria-busy");
  $("results").replaceChildren();
  $("notice").hidden = true;
  $("more").hidden = true;
  $("status").textContent = "";
  empty(t("startTitle"), t("startText"), t("suggestions"));
}

function showError(error) {
  hits.length = 0;
  last = null;
  $("results").replaceChildren();
  $("empty").hidden = true;
  $("more").hidden = true;
  $("status").textContent = "";
  const retry = element("button", { type: "button", className: "soft", text: t("retry") });
  retry.addEventListener("click", () => run());
  // what was refused once is refused again
  notice($("notice"), error, ...(error.refused ? [] : [retry]));
}

export function notice(box, error, ...more) {
  const known = error instanceof ServiceError;
  const own = known ? t("problems")[error.code] : undefined;
  let title = (known && error.title) || t("refused");
  let text = error.message;
  if (own) [title, text] = [t("refused"), own];
  if (known && error.offline) [title, text] = [t("offline"), t("offlineText")];
  box.hidden = false;
  box.replaceChildren(element("strong", { text: title }), element("span", { text }), ...more);
}

// -- asking ------------------------------------------------------------------------------------

function ask(changes) {
  Object.assign(asked, { text: "", file: null, id: null }, changes);
  $("query").value = asked.text;
  chip();
  remember();
  run();
}

export const searchText = (text) => ask({ text });
export const searchPicture = (file) => ask({ file });
export const searchLike = (id, target = "images") => {
  setTarget(target);
  ask({ id });
};

function setTarget(target) {
  asked.target = target === "texts" ? "texts" : "images";
  for (const radio of document.getElementsByName("target")) radio.checked = radio.value === asked.target;
}

function chip() {
  const shown = Boolean(asked.file || asked.id);
  $("chip").hidden = !shown;
  if ($("chip-image").src.startsWith("blob:")) URL.revokeObjectURL($("chip-image").src);
  $("chip-image").removeAttribute("src");
  if (!shown) return;
  $("chip-image").hidden = false;
  $("chip-text").textContent = asked.file ? t("yourPicture") : t("likeThis");
  $("chip-image").src = asked.file
    ? URL.createObjectURL(asked.file)
    : `/v1/items/${encodeURIComponent(asked.id)}/thumbnail`;
}

// -- the address -------------------------------------------------------------------------------

// after '#', because what follows it is never sent to the service nor logged by a proxy
function remember() {
  const parts = new URLSearchParams();
  if (asked.text.trim()) parts.set("q", asked.text);
  if (asked.id) parts.set("id", asked.id);
  if (asked.target !== "images") parts.set("target", asked.target);
  const hash = parts.toString() ? `#${parts}` : "#";
  if (hash !== (location.hash || "#")) history.pushState(null, "", hash);
}

export function fromAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  setTarget(parts.get("target"));
  Object.assign(asked, { text: parts.get("q") ?? "", id: parts.get("id"), file: null });
  if (asked.id) asked.text = "";
  $("query").value = asked.text;
  chip();
  run();
}

/** Words changed: redraw what the page wrote itself. */
export function relabel() {
  chip();
  if (isEmpty()) showStart();
  else if (last) describe();
}

// -- keys --------------------------------------------------------------------------------------

function move(event) {
  const cards = [...$("results").querySelectorAll("button.card")];
  if (!cards.length) return;
  const at = cards.indexOf(document.activeElement);
  if (at < 0) {
    if (event.key === "ArrowDown" && document.activeElement === $("query")) {
      event.preventDefault();
      cards[0].focus();
    }
    return;
  }
  const columns = getComputedStyle($("results")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (!step) return;
  event.preventDefault();
  if (at + step < 0) $("query").focus();
  else cards[Math.min(at + step, cards.length - 1)].focus();
}

export function startSearch() {
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    remember();
    run();
  });
  $("chip-image").addEventListener("error", () => ($("chip-image").hidden = true));
  $("query").addEventListener("input", () => {
    Object.assign(asked, { text: $("query").value, file: null, id: null });
    chip();
    typed();
  });
  for (const radio of document.getElementsByName("target")) {
    radio.addEventListener("change", () => {
      setTarget(radio.value);
      remember();
      run();
    });
  }
  $("picture").addEventListener("change", (event) => {
    const file = firstPicture(event.target);
    if (file) searchPicture(file);
    event.target.value = "";
  });
  $("chip-clear").addEventListener("click", () => {
    ask({});
    $("query").focus();
  });
  $("more").addEventListener("click", () => run({ append: true }));
  $("view-search").addEventListener("keydown", move);
}
