// The index view: what is served, of what it is made, what can be asked of it.

import { $, element } from "./dom.js";
import { bytes, date, number, t } from "./i18n.js";
import { notice } from "./notices.js";
import { forgetInfo, info, servedIndexes } from "./served.js";

const VALUES = 14;

const figure = (value, name) => element("p", {}, element("strong", { text: value }), element("span", { text: name }));

function facts(rows) {
  return element(
    "dl",
    { className: "facts" },
    ...rows
      .filter(([, value]) => value !== null && value !== undefined)
      .map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", {}, value))),
  );
}

const code = (text, title) => element("code", { text, title });

/** How each kind of item is searched, and what was measured of that; the rest is compared row by row. */
function searched(known) {
  const structures = known.structures ?? [];
  if (!structures.length) return [[t("structure"), t("exact")], [t("recall"), t("recallExact")]];
  const kinds = [["image", known.images, "images"], ["text", known.texts, "captions"]].filter(([, rows]) => rows);
  return kinds.flatMap(([modality, rows, name]) => {
    const own = structures.filter((one) => one.modality === modality);
    const covered = own.reduce((sum, one) => sum + one.rows, 0);
    const recipes = [...new Set(own.map((one) => one.recipe))].join(", ");
    // deleted rows are still in their structure
    const rest = Math.max(0, rows - covered);
    const how = !own.length ? t("exact") : rest ? t("partly", recipes, number(covered), number(rest)) : t("approximate", recipes);
    return [[`${t("structure")}: ${t(name)}`, how], [`${t("recall")}: ${t(name)}`, own.length ? own.map(measured).join(" · ") : t("recallExact")]];
  });
}

const measured = ({ recall, queries, effort, rows }) =>
  queries > 0 && Number.isFinite(recall) ? t("measured", recall.toFixed(3), number(queries), number(effort), number(rows)) : t("notMeasured");

function made(known) {
  const queries = known.relevance?.images?.queries ?? known.relevance?.texts?.queries;
  return facts([
    [t("model"), known.model],
    [t("fingerprint"), code(`${known.fingerprint.slice(0, 12)}…${known.fingerprint.slice(-6)}`, known.fingerprint)],
    [t("dimension"), number(known.dim)],
    ...searched(known),
    [t("damaged"), known.degraded?.length ? t("damagedText", number(known.degraded.length)) : null],
    [t("relevanceFact"), "relevance" in known ? (queries ? t("relevanceKnown", number(queries)) : t("relevanceUnknown")) : null],
    [t("explains"), "explains" in known ? t(known.explains ? "explainsYes" : "explainsNo") : null],
    [t("segments"), number(known.segments)],
    [t("tombstones"), known.tombstones ? number(known.tombstones) : null],
    ["UUID", code(known.uuid)],
  ]);
}

/** A value with how many pictures and how many captions have it: two counts, each with its name. */
function valueOf({ value, count, texts }) {
  const counts = [count && t("countPictures", number(count)), texts && t("countCaptions", number(texts))].filter(Boolean);
  return element("span", {}, String(value), element("small", { text: counts.join(", ") }));
}

function declared(fields) {
  if (!fields?.length) return element("p", { className: "hint", text: t("noFields") });
  return element(
    "div",
    { className: "declared" },
    ...fields.map((field) => {
      const present = [field.present && t("present", number(field.present)), field.texts && t("presentTexts", number(field.texts))].filter(Boolean).join(", ");
      const extent = field.distinct !== null && field.distinct !== undefined ? t("distinct", number(field.distinct)) : null;
      const range = field.min !== null && field.min !== undefined ? t("between", field.min, field.max) : null;
      return element(
        "div",
        {},
        element("p", {}, field.name, element("small", { text: [field.type, extent ?? range, present].filter(Boolean).join(" · ") })),
        field.values?.length &&
          element("div", { className: "values" }, ...field.values.slice(0, VALUES).map((one) => valueOf(one))),
      );
    }),
  );
}

function drawn(known, name) {
  return element(
    "div",
    { className: "diptych index-card" },
    element(
      "div",
      { className: "panel" },
      element("h2", { text: name ?? known.name ?? t("index") }),
      element("p", { className: "lead", text: t("committed", number(known.version), date(known.created)) }),
      element(
        "div",
        { className: "figures" },
        figure(number(known.images), t("pictureCount")),
        figure(number(known.texts), t("captionCount")),
        figure(bytes(known.bytes), t("onDisk")),
      ),
      element("section", {}, element("h3", { text: t("inside") }), made(known)),
    ),
    element("div", { className: "panel" }, element("h3", { text: t("declared") }), declared(known.fields)),
  );
}

async function draw() {
  const names = servedIndexes().map((one) => one.name);
  const wanted = names.length ? names : [null];
  try {
    const all = await Promise.all(wanted.map((name) => info(name)));
    $("index-cards").replaceChildren(...all.map((known, at) => drawn(known, wanted[at])));
  } catch (error) {
    const box = element("div", { className: "notice", role: "alert" });
    notice(box, error, draw);
    $("index-cards").replaceChildren(box);
  }
}

export function activate(is) {
  if (!is) return;
  // counts may have grown since the page was opened
  forgetInfo();
  draw();
}

export const relabel = (view) => view === "index" && draw();
