"use strict";

// Before the first paint, and so not a module: the chosen theme, or the page would flash.
try {
  const theme = localStorage.getItem("diptych.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // a browser may forbid storage; the system's theme stands
}
