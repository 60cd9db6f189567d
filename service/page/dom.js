// Small helpers around the document and the service. Text only ever goes in through textContent.

export const $ = (id) => document.getElementById(id);

export function element(tag, options = {}, ...children) {
  const { className, text, ...attributes } = options;
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A refusal or failure, in the words of the service's problem document. */
export class ServiceError extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || "");
    this.title = problem.title;
    this.code = problem.code;
    this.offline = Boolean(problem.offline);
    this.refused = problem.status >= 400 && problem.status < 500;
  }
}

export async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError({ offline: true });
  }
  let body = {};
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (!response.ok) throw new ServiceError({ title: response.statusText, ...body });
  return body;
}

export const postJson = (path, value, signal) =>
  call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(value),
    signal,
  });

export const firstPicture = (transfer) =>
  [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));

/** The readable end of a `file:` URI, its folder kept when there is room. */
export function pathOf(uri) {
  if (!uri) return "";
  try {
    return decodeURIComponent(uri.replace(/^file:\/\//, ""));
  } catch {
    return uri;
  }
}

export const nameOf = (uri) => pathOf(uri).split("/").filter(Boolean).pop() ?? "";

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
