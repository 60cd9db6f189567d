// Which language the page speaks, and the markup filled with its words. The words have own files.

import en from "./words-en.js";
import zh from "./words-zh.js";

const WORDS = { en, zh };
let language = "en";

/** Remembered values are a convenience: a browser may forbid storage. */
export function remembered(key, fallback = "") {
  try {
    return localStorage.getItem(`diptych.${key}`) ?? fallback;
  } catch {
    return fallback;
  }
}

export function remember(key, value) {
  try {
    localStorage.setItem(`diptych.${key}`, value);
  } catch {
    // private browsing
  }
}

export const t = (key, ...values) => {
  const word = WORDS[language][key];
  return typeof word === "function" ? word(...values) : word;
};
export const number = (value) => new Intl.NumberFormat(language).format(value);
export const percent = (value, digits = 0) =>
  new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
export const date = (value) => new Intl.DateTimeFormat(language, { dateStyle: "long", timeStyle: "short" }).format(new Date(value));
export const bytes = (value) => {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(1, value)) / 3)));
  const unit = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"][power];
  return new Intl.NumberFormat(language, { style: "unit", unit, maximumFractionDigits: 1 }).format(value / 1000 ** power);
};

export function setLanguage(code) {
  language = code in WORDS ? code : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-i18n]")) node.textContent = t(node.dataset.i18n);
  for (const [name, attribute] of [["label", "aria-label"], ["placeholder", "placeholder"], ["title", "title"]]) {
    for (const node of document.querySelectorAll(`[data-i18n-${name}]`)) {
      node.setAttribute(attribute, t(node.getAttribute(`data-i18n-${name}`)));
    }
  }
}

export const preferredLanguage = () =>
  remembered("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
