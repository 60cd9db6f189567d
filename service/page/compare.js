// The compare view: one question, two indexes, their answers side by side.

import * as api from "./api.js";
import { card, enterable, walkable } from "./cards.js";
import { openDetail } from "./detail.js";
import { $, debounce, element, working } from "./dom.js";
import { number, remember, remembered, t } from "./i18n.js";
import { notice } from "./notices.js";
import { isEmpty, onAsked, searchBody } from "./query.js";
import { servedIndexes } from "./served.js";

const COUNT = 24;
const SHARED_OF = 10;
let active = false;
let running = null;

const sides = ["left", "right"].map((name) => ({ name, hits: [], index: null }));
const box = (side) => $(`compare-${side.name}`);
const grid = (side) => box(side).querySelector(".grid");

async function run() {
  typed.cancel();
  running?.abort();
  running = null;
  if (!active) return;
  $("notice").hidden = true;
  if (isEmpty()) {
    for (const side of sides) fill(side, []);
    $("agreement").textContent = t("compareStart");
    return;
  }
  const mine = new AbortController();
  running = mine;
  working("compare", true);
  const body = await searchBody(0, COUNT);
  await Promise.all(sides.map((side) => ask(side, body, mine)));
  if (running !== mine) return;
  working("compare", false);
  draw();
}

const typed = debounce(run, 130);

async function ask(side, body, mine) {
  const refused = box(side).querySelector(".notice");
  try {
    const answer = await api.search(body, side.index, mine.signal);
    if (running !== mine) return;
    refused.hidden = true;
    side.hits = answer.hits;
  } catch (error) {
    if (error.name === "AbortError" || running !== mine) return;
    side.hits = [];
    notice(refused, error, run);
  }
}

function fill(side, hits) {
  side.hits = hits;
  grid(side).replaceChildren();
  box(side).querySelector(".notice").hidden = true;
}

/** Both answers are in: each card says where the other side has it. */
function draw() {
  const [left, right] = sides.map((side) => new Set(side.hits.slice(0, SHARED_OF).map((hit) => hit.id)));
  const shared = [...left].filter((id) => right.has(id)).length;
  const of = Math.min(SHARED_OF, Math.max(left.size, right.size));
  $("agreement").textContent = of ? t("agree", number(shared), number(of)) : "";
  sides.forEach((side, which) => {
    const ranks = new Map(sides[1 - which].hits.map((hit, at) => [hit.id, at + 1]));
    const best = side.hits[0]?.score ?? 1;
    grid(side).replaceChildren(
      ...side.hits.map((hit, at) => {
        const there = ranks.get(hit.id);
        const tag = `${t("rank", number(at + 1))}, ${there ? t("otherRank", number(there)) : t("onlyHere")}`;
        const shown = there ? `${at + 1} ↔ ${there}` : `${at + 1}`;
        const node = card(hit, { best, tag, shown, eager: at < 8, open: () => openDetail({ hits: side.hits, at, index: side.index }) });
        node.classList.toggle("alone", !there);
        return node;
      }),
    );
    enterable(grid(side));
  });
}

/** The same item lights up on both sides. */
function pair(event) {
  const id = event.target.closest?.("li.hit")?.querySelector("button.card").dataset.id;
  for (const node of $("view-compare").querySelectorAll("li.hit")) {
    node.classList.toggle("twin", id !== undefined && node.querySelector("button.card").dataset.id === id);
  }
}

function describe(side) {
  const served = servedIndexes().find((one) => one.name === side.index);
  box(side).querySelector(".model").textContent = served ? `${served.model} · ${number(served.images)} ${t("pictureCount")}` : "";
}

/** Draw the two choices once it is known what is served; false where there is nothing to compare. */
export function offerCompare() {
  const names = servedIndexes().map((one) => one.name);
  if (names.length < 2) return false;
  sides.forEach((side, which) => {
    const kept = remembered(`compare.${side.name}`);
    side.index = names.includes(kept) ? kept : names[which];
    const select = box(side).querySelector("select");
    select.replaceChildren(...names.map((name) => element("option", { value: name, text: name })));
    select.value = side.index;
    select.addEventListener("change", () => {
      side.index = select.value;
      remember(`compare.${side.name}`, side.index);
      describe(side);
      run();
    });
    describe(side);
  });
  return true;
}

export function activate(is) {
  active = is;
  if (is) run();
  else {
    running?.abort();
    running = null;
    working("compare", false);
  }
}

export function relabel() {
  for (const side of sides) describe(side);
  if (!active) return;
  if (isEmpty()) $("agreement").textContent = t("compareStart");
  else draw();
}

export function startCompare() {
  onAsked(({ typing }) => (typing ? typed() : run()));
  for (const event of ["pointerover", "focusin"]) $("view-compare").addEventListener(event, pair);
  for (const side of sides) walkable(grid(side), { leave: () => $("query").focus() });
}
