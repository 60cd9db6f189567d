// Light, dark, or as the system has it.

import { $ } from "./dom.js";
import { remember, remembered, t } from "./i18n.js";

const THEMES = ["auto", "light", "dark"];
const current = () => (THEMES.includes(remembered("theme")) ? remembered("theme") : "auto");

export function showTheme() {
  const theme = current();
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const label = t("theme")[theme];
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
  $("theme").querySelector("use").setAttribute("href", `#i-${theme}`);
}

export function startTheme() {
  $("theme").addEventListener("click", () => {
    remember("theme", THEMES[(THEMES.indexOf(current()) + 1) % THEMES.length]);
    showTheme();
  });
}
