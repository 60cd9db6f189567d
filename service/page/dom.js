// Small helpers around the document. Text only ever goes in through textContent.

export const $ = (id) => document.getElementById(id);

/** An element; children that are null or false are left out. */
export function element(tag, options = {}, ...children) {
  const { className, text, on, share, ...attributes } = options;
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  if (share !== undefined) node.style.setProperty("--share", Math.max(0, Math.min(1, share)));
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, action] of Object.entries(on ?? {})) node.addEventListener(event, action);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** One of the drawings of the page's sprite. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export const firstPicture = (transfer) =>
  [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));

/** The readable part of a `file:` URI. */
export function pathOf(uri) {
  if (!uri) return "";
  try {
    return decodeURIComponent(uri.replace(/^file:\/\//, ""));
  } catch {
    return uri;
  }
}

export const nameOf = (uri) => pathOf(uri).split("/").filter(Boolean).pop() ?? "";

/** "und" is the tag of a text whose language nobody said. */
export const languageOf = (item) => (item.language && item.language !== "und" ? item.language : null);

/** Run `action` once calls have paused for `wait` milliseconds. */
export function debounce(action, wait) {
  let timer;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

/** The field someone is writing in, if any: single keys belong to it. */
export const isTyping = (target) =>
  Boolean(target.matches?.("input:not([type=radio]):not([type=checkbox]):not([type=file]), textarea, select"));

// one thing may run in front of the reader at a time per owner; the bar shows while any does
const busy = new Set();
export function working(owner, is) {
  if (is) busy.add(owner);
  else busy.delete(owner);
  $("progress").hidden = busy.size === 0;
}
