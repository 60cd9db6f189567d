// Filters, drawn from the fields the index declares: values with counts, ranges for numbers.

import { $, debounce, element, icon } from "./dom.js";
import { number, t } from "./i18n.js";
import { asked, change, onAsked } from "./query.js";
import { info } from "./served.js";

const MANY = 10;
let drawn = null;
let shownFor = null;

function set(field, wanted) {
  const filters = { ...asked.filters };
  if (wanted) filters[field] = wanted;
  else delete filters[field];
  change({ filters });
}

const nameOfValue = (value) => (value === true ? t("yes") : value === false ? t("no") : String(value));

function summary(name, wanted) {
  if (!wanted) return name;
  if (wanted.in) return `${name}: ${wanted.in.map(nameOfValue).join(", ")}`;
  const { gte, lte } = wanted;
  if (gte !== undefined && lte !== undefined) return `${name}: ${gte} – ${lte}`;
  return gte !== undefined ? `${name} ≥ ${gte}` : `${name} ≤ ${lte}`;
}

/** How many of what is looked for have a value. */
const countOf = ({ count, texts }) => (asked.target === "texts" ? texts : count);

/** A field where all that is looked for has the same value sorts nothing out. */
const isUseful = ({ values }) => !values || values.filter((one) => countOf(one) !== 0).length > 1;

// -- the choices of one field ------------------------------------------------------------------

function options(field) {
  const chosen = new Set(asked.filters[field.name]?.in ?? []);
  const listed = (field.values ?? []).map(({ value }) => value);
  // one that came by the address may be too rare to be listed
  const values = [...[...chosen].filter((value) => !listed.includes(value)).map((value) => ({ value })), ...(field.values ?? [])];
  return values.filter((one) => chosen.has(one.value) || countOf(one) !== 0).map((one) => {
    const { value } = one;
    const box = element("input", { type: "checkbox" });
    box.checked = chosen.has(value);
    box.addEventListener("change", () => {
      const wanted = new Set(asked.filters[field.name]?.in ?? []);
      if (box.checked) wanted.add(value);
      else wanted.delete(value);
      set(field.name, wanted.size ? { in: [...wanted] } : null);
    });
    const shown = countOf(one);
    return element(
      "label",
      { className: "option" },
      box,
      element("span", { text: nameOfValue(value) }),
      shown !== undefined && element("span", { className: "count", text: number(shown) }),
    );
  });
}

function valueChoices(field) {
  const list = element("div", {}, ...options(field));
  const parts = [list];
  if ((field.values ?? []).length > MANY) {
    const find = element("input", { className: "find line-input", type: "search", placeholder: t("findValue"), "aria-label": t("findValue") });
    find.addEventListener("input", () => {
      const sought = find.value.trim().toLowerCase();
      for (const option of list.children) option.hidden = !option.textContent.toLowerCase().includes(sought);
    });
    parts.unshift(find);
  }
  const remaining = (field.distinct ?? 0) - (field.values ?? []).length;
  if (remaining > 0) parts.push(element("p", { className: "hint", text: t("remaining", number(remaining)) }));
  return parts;
}

function rangeChoices(field) {
  const ends = ["gte", "lte"].map((end) => {
    const input = element("input", {
      className: "line-input", type: "number", step: field.type === "int" ? "1" : "any", min: field.min, max: field.max,
      placeholder: end === "gte" ? field.min : field.max, value: asked.filters[field.name]?.[end], inputmode: field.type === "int" ? "numeric" : "decimal",
    });
    input.dataset.end = end;
    return input;
  });
  const changed = debounce(() => {
    const wanted = {};
    for (const input of ends) {
      const value = input.valueAsNumber;
      if (Number.isFinite(value)) wanted[input.dataset.end] = field.type === "int" ? Math.round(value) : value;
    }
    set(field.name, Object.keys(wanted).length ? wanted : null);
  }, 300);
  for (const input of ends) input.addEventListener("input", changed);
  return [element("div", { className: "range" }, ...ends.map((input) => element("label", {}, t(input.dataset.end === "gte" ? "from" : "to"), input)))];
}

// -- one filter --------------------------------------------------------------------------------

function filter(field) {
  const isRange = field.type === "int" || field.type === "float";
  const label = element("span");
  const id = `choices-${field.name}`;
  const open = element("button", { type: "button", className: "open", popovertarget: id, "aria-expanded": "false" }, label, icon("down"));
  const off = element("button", { type: "button", className: "off", on: { click: () => set(field.name, null) } }, icon("cross"));
  const choices = element("div", { className: "choices", popover: "auto", id, role: "group", "aria-label": field.name });
  const root = element("div", { className: "filter" }, open, off, choices);
  choices.addEventListener("beforetoggle", (event) => {
    if (event.newState !== "open") return;
    choices.replaceChildren(...(isRange ? rangeChoices(field) : valueChoices(field)));
    place(choices, open);
  });
  choices.addEventListener("toggle", (event) => {
    open.setAttribute("aria-expanded", event.newState === "open");
    if (event.newState === "open") choices.querySelector("input")?.focus({ preventScroll: true });
  });
  const refresh = () => {
    const wanted = asked.filters[field.name];
    root.classList.toggle("on", Boolean(wanted));
    root.hidden = !wanted && !isUseful(field);
    label.textContent = summary(field.name, wanted);
    off.hidden = !wanted;
    off.setAttribute("aria-label", `${t("clear")}: ${field.name}`);
  };
  refresh();
  return { name: field.name, isStrange: Boolean(field.isStrange), root, refresh };
}

function place(choices, anchor) {
  const box = anchor.getBoundingClientRect();
  const width = Math.min(292, window.innerWidth - 24);
  choices.style.setProperty("left", `${Math.max(12, Math.min(box.left, window.innerWidth - width - 12))}px`);
  choices.style.setProperty("top", `${box.bottom + 8}px`);
  choices.style.setProperty("max-height", `${Math.max(180, Math.min(420, window.innerHeight - box.bottom - 24))}px`);
}

/** A filter that the index does not declare can only be taken off; the service says why. */
const strange = (name) => ({ name, type: "str", values: [], distinct: 0, isStrange: true });

async function draw({ again = false } = {}) {
  const key = asked.index ?? "";
  const names = Object.keys(asked.filters);
  const stale = drawn?.some((one) => one.isStrange && !names.includes(one.name)) || names.some((name) => !drawn?.some((one) => one.name === name));
  if (!again && drawn && shownFor === key && !stale) {
    for (const one of drawn) one.refresh();
    return;
  }
  const { fields } = await info(asked.index).catch(() => ({}));
  if ((asked.index ?? "") !== key) return;
  const declared = (fields ?? []).filter((field) => field.present > 0 || field.texts > 0 || asked.filters[field.name]);
  const strangers = names.filter((name) => !declared.some((field) => field.name === name)).map(strange);
  drawn = [...declared, ...strangers].map(filter);
  shownFor = key;
  $("filters").replaceChildren(...drawn.map((one) => one.root));
}

export const relabelFilters = () => draw({ again: true });

export function startFilters() {
  onAsked(() => draw());
  // where it was opened is no longer where its button is
  window.addEventListener("resize", () => document.querySelector(".choices:popover-open")?.hidePopover());
}
