// One hit, large: picture, captions, what the model would caption it, facts, and the way on.

import { showPictureOf } from "./access.js";
import * as api from "./api.js";
import { figures, likenessOf, shareOf, titleOf } from "./cards.js";
import { $, element, languageOf, pathOf } from "./dom.js";
import { number, t } from "./i18n.js";
import { add, askLike, wantedWords } from "./query.js";
import { info } from "./served.js";

const SAID = 5;
let shown = null;
let heat = null;

/** Open `hits[at]`; `more` is asked for when the reader nears the end of them. */
export function openDetail({ hits, at, index, more }) {
  const first = !$("detail").open;
  shown = { hits, at, index, more, opener: shown?.opener };
  if (first) shown.opener = document.activeElement;
  draw();
  if (!first) return;
  $("detail").classList.add("opening");
  $("detail").showModal();
  $("detail-title").focus({ preventScroll: true });
}

const hit = () => shown?.hits[shown.at];

function draw() {
  const { hits, at } = shown;
  const one = hit();
  $("detail-title").textContent = titleOf(one);
  $("detail-title").lang = languageOf(one) ?? "";
  $("detail-rank").textContent = t("rankOf", number(at + 1));
  $("detail-image").alt = titleOf(one);
  $("detail-image").hidden = !one.thumbnail_url;
  if (one.thumbnail_url) showPictureOf($("detail-image"), api.hereOf(one.thumbnail_url));
  else $("detail-image").removeAttribute("src");
  $("detail-meter").replaceChildren(
    element("span", { className: "meter", share: shareOf(one, hits[0].score) }),
    element("span", { text: figures(one) }),
  );
  $("detail-previous").disabled = at === 0;
  $("detail-next").disabled = at === hits.length - 1;
  $("detail-captions").replaceChildren();
  $("detail-says").hidden = true;
  facts(one);
  cool();
  offerHeat();
  captions(one);
  says(one);
  if (at >= hits.length - 6) shown.more?.();
}

function facts(one, item = {}) {
  const names = t("facts");
  const rows = [
    [names.label, one.label],
    [names.language, languageOf(one)],
    ...Object.entries(one.attributes ?? {}).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : value]),
    [names.path, pathOf(one.uri)],
    [names.id, one.id],
    [names.hash, item.content_hash?.slice(0, 16)],
  ];
  $("detail-facts").replaceChildren(
    ...rows
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: String(value) }))),
  );
}

/** The item's captions, fetched because a hit carries one text only. */
async function captions(one) {
  try {
    const item = await api.item(one.id, shown.index);
    if (hit() !== one) return;
    const others = item.captions.filter((text) => text.text !== one.text);
    $("detail-captions").replaceChildren(...others.map((text) => element("li", { text: text.text, lang: languageOf(text) })));
    facts(one, item);
  } catch {
    // captions are an extra; without them the rest still stands
  }
}

/** Image to text: the captions nearest to this picture, its own marked. */
async function says(one) {
  if (one.modality !== "image") return;
  try {
    const { texts } = await info(shown.index);
    if (!texts || hit() !== one) return;
    const answer = await api.search({ query: { id: one.id }, target: "texts", k: SAID }, shown.index);
    if (hit() !== one || !answer.hits.length) return;
    const best = answer.hits[0].score;
    $("detail-said").replaceChildren(
      ...answer.hits.map((text) =>
        element(
          "li",
          {},
          element(
            "span",
            {},
            element("span", { text: text.text, lang: languageOf(text) }),
            text.image_id === one.id && element("small", { className: "own", text: t("ownCaption") }),
          ),
          element("span", { className: "meter", share: shareOf(text, best), title: figures(text) }),
        ),
      ),
    );
    $("detail-says").hidden = false;
  } catch {
    // likewise an extra
  }
}

// -- where ---------------------------------------------------------------------------------------

function cool() {
  heat?.abort();
  heat = null;
  if ($("detail-heat").src) URL.revokeObjectURL($("detail-heat").src);
  $("detail-heat").removeAttribute("src");
  $("detail-heat").hidden = true;
  $("detail-where").setAttribute("aria-pressed", "false");
}

/** Only for words: a heat map answers to a text. */
async function offerHeat() {
  $("detail-where").hidden = true;
  const one = hit();
  const known = await info(shown.index).catch(() => ({}));
  if (hit() === one) $("detail-where").hidden = !(known.explains && wantedWords() && one.modality === "image");
}

export async function toggleHeat() {
  if ($("detail-where").hidden) return;
  if (heat) {
    cool();
    return;
  }
  const one = hit();
  const mine = new AbortController();
  heat = mine;
  $("detail-where").setAttribute("aria-pressed", "true");
  try {
    const url = await api.explain({ text: wantedWords(), id: one.id }, shown.index, mine.signal);
    if (heat !== mine) {
      URL.revokeObjectURL(url);
      return;
    }
    $("detail-heat").src = url;
    $("detail-heat").alt = t("heatOf", wantedWords());
    $("detail-heat").hidden = false;
  } catch (error) {
    if (error.name !== "AbortError" && heat === mine) {
      cool();
      $("detail-where").hidden = true;
    }
  }
}

// -- ways on -------------------------------------------------------------------------------------

function leave(action) {
  const id = likenessOf(hit());
  $("detail").close();
  action(id);
  window.scrollTo({ top: 0 });
}

function step(by) {
  const next = shown.at + by;
  if (next >= 0 && next < shown.hits.length) openDetail({ ...shown, at: next });
}

function close() {
  cool();
  const { at, opener } = shown;
  const grid = opener?.closest?.(".grid");
  const target = grid?.querySelectorAll("button.card")[at] ?? opener;
  // the browser gave focus back before this event came: do not pull it from where it went since
  if ([opener, document.body].includes(document.activeElement)) target?.focus?.();
}

export function startDetail() {
  const dialog = $("detail");
  $("detail-close").addEventListener("click", () => dialog.close());
  $("detail-previous").addEventListener("click", () => step(-1));
  $("detail-next").addEventListener("click", () => step(1));
  $("detail-similar").addEventListener("click", () => leave((id) => askLike(id)));
  $("detail-add").addEventListener("click", () => leave((value) => add({ kind: "id", value, less: false })));
  $("detail-less").addEventListener("click", () => leave((value) => add({ kind: "id", value, less: true })));
  $("detail-where").addEventListener("click", toggleHeat);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("animationend", () => dialog.classList.remove("opening"));
  dialog.addEventListener("close", close);
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}
