// What the service serves: its indexes and what is known of each. Asked once, kept.

import * as api from "./api.js";

let names = [];
const known = new Map();

/** The served indexes, the default first; empty where the service does not say. */
export const servedIndexes = () => names;

export async function loadServed() {
  try {
    names = await api.indexes();
  } catch {
    names = [];
  }
  return names;
}

/** The description of an index (null: the default), fetched at most once while it succeeds. */
export function info(index) {
  const key = index ?? "";
  if (!known.has(key)) {
    const asking = api.indexInfo(index);
    known.set(key, asking);
    asking.catch(() => known.delete(key));
  }
  return known.get(key);
}

/** The next question about any index is asked anew: one was seen to have changed. */
export const forgetInfo = () => known.clear();
