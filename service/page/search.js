// The search view: what is asked in, a grid of hits out, and more of them as the reader scrolls.

import * as api from "./api.js";
import { card, enterable, skeletons, walkable } from "./cards.js";
import { openDetail } from "./detail.js";
import { $, debounce, working } from "./dom.js";
import { number, t } from "./i18n.js";
import { notice } from "./notices.js";
import { asked, change, filterBody, isEmpty, onAsked, searchBody } from "./query.js";

const PAGE = 36;
// long enough to skip most half-typed words, short enough to feel at once
const PAUSE_MS = 130;
const SKELETON_AFTER_MS = 180;
// the service's own limit on `offset`
const LAST_OFFSET = 10_000;

const hits = [];
const seen = new Set();
let running = null;
let last = null;
let active = false;

async function run({ append = false } = {}) {
  typed.cancel();
  running?.abort();
  if (!active) return;
  if (isEmpty()) {
    clear();
    return;
  }
  const mine = new AbortController();
  running = mine;
  working("search", true);
  $("view-search").setAttribute("aria-busy", "true");
  const skeleton = setTimeout(() => !append && !hits.length && showSkeleton(), SKELETON_AFTER_MS);
  try {
    const body = await searchBody(append ? last.offset + last.k : 0, PAGE);
    const answer = await api.search(body, asked.index, mine.signal);
    if (running === mine) show(answer, append);
  } catch (error) {
    if (error.name === "AbortError" || running !== mine) return;
    showError(error, append);
  } finally {
    clearTimeout(skeleton);
    if (running === mine) {
      running = null;
      working("search", false);
      $("view-search").removeAttribute("aria-busy");
    }
  }
}

const typed = debounce(run, PAUSE_MS);

function show(answer, append) {
  // the index changed between two pages: their ranks do not fit together
  if (append && last && answer.index_version !== last.index_version) {
    run();
    return;
  }
  last = answer;
  $("notice").hidden = true;
  if (!append) {
    hits.length = 0;
    seen.clear();
    $("results").replaceChildren();
    $("empty").hidden = true;
  }
  const fresh = answer.hits.filter((hit) => !seen.has(hit.id));
  const best = hits[0]?.score ?? fresh[0]?.score ?? 1;
  const cards = fresh.map((hit, order) => {
    const at = hits.length + order;
    return card(hit, { best, eager: at < 12, open: () => openDetail({ hits, at, index: asked.index, more: needMore }) });
  });
  for (const hit of fresh) seen.add(hit.id);
  hits.push(...fresh);
  $("results").append(...cards);
  $("results").classList.toggle("faint", answer.no_good_match === true);
  enterable($("results"));
  const ended = answer.hits.length < answer.k || answer.offset + answer.k > LAST_OFFSET;
  $("more").hidden = ended;
  $("end").hidden = !ended || hits.length <= PAGE;
  describe();
  watch();
}

function describe() {
  if (!last) return;
  const parts = hits.length ? [t("found", number(hits.length), number(Math.round(last.took_ms)))] : [];
  if (last.truncated) parts.push(t("truncated"));
  if (asked.lost) parts.push(t("lost"));
  $("status").textContent = parts.join(" · ");
  $("no-match").hidden = !(last.no_good_match === true && hits.length);
  if (hits.length) return;
  if (filterBody()) showEmpty(t("noneFiltered"), t("clearFilters"), () => change({ filters: {} }));
  else if (asked.target === "texts") showEmpty(t("noCaptions"), t("searchPictures"), () => change({ target: "images" }));
  else showEmpty(t("noPictures"));
}

function showEmpty(text, label, action) {
  $("empty").hidden = false;
  $("empty-title").textContent = t("noneTitle");
  $("empty-text").textContent = text;
  $("empty-action").hidden = !label;
  $("empty-action").textContent = label ?? "";
  $("empty-action").onclick = action ?? null;
}

function clear() {
  running = null;
  last = null;
  hits.length = 0;
  seen.clear();
  working("search", false);
  $("view-search").removeAttribute("aria-busy");
  $("results").replaceChildren();
  for (const id of ["notice", "no-match", "empty", "more", "end"]) $(id).hidden = true;
  $("status").textContent = asked.lost ? t("lost") : "";
}

function showSkeleton() {
  for (const id of ["notice", "no-match", "empty"]) $(id).hidden = true;
  $("results").replaceChildren(...skeletons(12));
}

function showError(error, append) {
  // a page that fails leaves those before it standing
  if (!append) clear();
  notice($("notice"), error, () => run({ append }));
}

// -- endless, gently ---------------------------------------------------------------------------

function needMore() {
  if (!running && !$("more").hidden) run({ append: true });
}

const nearEnd = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && needMore(), {
  rootMargin: "600px",
});

/** Observed anew after each page: an observer is silent while its target stays in sight. */
function watch() {
  nearEnd.disconnect();
  if (!$("more").hidden) nearEnd.observe($("more"));
}

// -- the view ----------------------------------------------------------------------------------

export function activate(is) {
  active = is;
  if (is) run();
  else running?.abort();
}

/** The language changed: redraw what the page wrote itself. */
export function relabel() {
  describe();
}

/** The hit whose card is in focus, for the single keys. */
export function focusedHit() {
  const id = document.activeElement?.closest?.("#results button.card")?.dataset.id;
  return hits.find((hit) => hit.id === id);
}

export function startSearch() {
  onAsked(({ typing }) => (typing ? typed() : run()));
  $("more").addEventListener("click", () => run({ append: true }));
  walkable($("results"), { leave: () => $("query").focus() });
  $("query").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown") return;
    const first = document.querySelector("main section:not([hidden]) .grid button.card");
    if (!first) return;
    event.preventDefault();
    first.focus();
  });
}
