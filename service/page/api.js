// The service, as the page asks it. Knows addresses and shapes; draws nothing. Addresses are relative
// to the page: a proxy may serve it under any path.

import { askForKey, withKey } from "./access.js";

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

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: withKey(options?.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError({ offline: true });
  }
  if (response.ok) return response;
  if (response.status === 401) askForKey();
  let problem = {};
  try {
    problem = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  // after many requests without a key it no longer says 401; a right key is let in all the same
  if (problem.code === "too-many-attempts") askForKey();
  throw new ServiceError({ title: response.statusText, status: response.status, ...problem });
}

export async function call(path, options = {}) {
  const response = await ask(path, options);
  return response.status === 204 ? null : response.json();
}

const json = (method, value, signal) => ({
  method,
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(value),
  signal,
});

/** The address of a route in one index; null is the service's default. */
const at = (path, index) => (index ? `${path}?index=${encodeURIComponent(index)}` : path);
const itemPath = (id) => `v1/items/${encodeURIComponent(id)}`;

export const search = (body, index, signal) => call(at("v1/search", index), json("POST", body, signal));
export const classify = (body, index, signal) => call(at("v1/classify", index), json("POST", body, signal));
export const item = (id, index) => call(at(itemPath(id), index));
/** An address that the service gave, relative to the page as well. */
export const hereOf = (url) => url.slice(url.lastIndexOf("/v1/items/") + 1);
export const thumbnailOf = (id, index) => at(`${itemPath(id)}/thumbnail`, index);
export const indexInfo = (index) => call(at("v1/index", index));
/** Names of what is served, the default first. */
export const indexes = async () => (await call("v1/indexes")).indexes;

/** A picture with its warm places drawn over it, as an object URL; whoever asked revokes it. */
export async function explain(body, index, signal) {
  const request = json("POST", body, signal);
  request.headers.Accept = "image/png";
  const response = await ask(at("v1/explain", index), request);
  return URL.createObjectURL(await response.blob());
}

const setPath = (name) => `v1/label-sets/${encodeURIComponent(name)}`;
export const labelSets = () => call("v1/label-sets");
export const labelSet = (name) => call(setPath(name));
export const saveLabelSet = (name, value) => call(setPath(name), json("PUT", value));
export const deleteLabelSet = (name) => call(setPath(name), { method: "DELETE" });
