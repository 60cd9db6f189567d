// What is asked: parts, target, filter and index, and how they are written into the address.
// Knows neither how it is drawn nor who answers.

import { dataUri, nameOfPicture, pictureNamed } from "./pictures.js";

/**
 * A part is {kind: "text"|"id"|"image", value, less}: words, an item like which to search, or a
 * picture file; `less` takes it away. `words` is what is being typed and not yet a part. `hybrid`
 * searches by words too, `distinct` leaves out near-duplicates. `lost`: the address names a picture
 * that this tab does not have.
 */
export const asked = { parts: [], words: "", target: "images", filters: {}, index: null, hybrid: false, distinct: false, lost: false };

// taking a thing away whole would leave little of what was asked: half its weight
const LESS = -0.5;
const listeners = [];

export const onAsked = (listener) => listeners.push(listener);

/** Change what is asked; `typing` delays the search and `quiet` leaves the address alone. */
export function change(changes, options = {}) {
  // whoever asks anew no longer asks with what was lost
  Object.assign(asked, "parts" in changes ? { lost: false } : {}, changes);
  for (const listener of listeners) listener(options);
}

/** Typed words may begin with a sign, once there is something to add to or take from. */
export function typedPart() {
  const words = asked.words.trim();
  const signed = asked.parts.length ? /^([+\-−–－＋])\s*(.*)$/s.exec(words) : null;
  const value = signed ? signed[2] : words;
  return value ? { kind: "text", value, less: Boolean(signed) && !"+＋".includes(signed[1]) } : null;
}

export const allParts = () => [...asked.parts, typedPart()].filter(Boolean);
export const isEmpty = () => allParts().length === 0;

/** The words that say what is wanted, for a heat map. */
export const wantedWords = () =>
  allParts().filter((part) => part.kind === "text" && !part.less).map((part) => part.value).join(", ");

export function add(part) {
  const same = (other) => other.kind === part.kind && other.value === part.value;
  change({ parts: [...asked.parts.filter((other) => !same(other)), part] });
}

/** Keep the typed words as a part, so that more can be typed. */
export function keepWords() {
  const part = typedPart();
  if (part) change({ parts: [...asked.parts, part], words: "" });
}

export const remove = (part) => change({ parts: asked.parts.filter((other) => other !== part) });
export const flip = (part) =>
  change({ parts: asked.parts.map((other) => (other === part ? { ...part, less: !part.less } : other)) });

/** A new picture takes the place of the last one; words stay. */
export const showPicture = (file) =>
  change({ parts: [...asked.parts.filter((part) => part.kind !== "image"), { kind: "image", value: file, less: false }] });

export const askWords = (words) => change({ parts: [], words });
export const askLike = (id, target = "images") =>
  change({ parts: [{ kind: "id", value: id, less: false }], words: "", target });

// -- the request -------------------------------------------------------------------------------

export function filterBody(filters = asked.filters) {
  const all = Object.entries(filters).flatMap(([field, wanted]) => {
    if (wanted.in) return wanted.in.length ? [{ field, in: wanted.in }] : [];
    const { gte, lte } = wanted;
    return gte === undefined && lte === undefined ? [] : [{ field, gte, lte }];
  });
  return all.length ? { all } : undefined;
}

async function partBody(part) {
  const value = part.kind === "image" ? await dataUri(part.value) : part.value;
  return part.less ? { [part.kind]: value, weight: LESS } : { [part.kind]: value };
}

export async function searchBody(offset, k) {
  const parts = await Promise.all(allParts().map(partBody));
  const query = parts.length === 1 ? parts[0] : parts;
  const manner = { hybrid: asked.hybrid || undefined, deduplicate: asked.distinct || undefined };
  return { query, target: asked.target, k, offset, filter: filterBody(), ...manner };
}

// -- the address -------------------------------------------------------------------------------

/** All that is asked; pictures by names that mean something to this tab only. */
export function toAddress() {
  const address = new URLSearchParams();
  for (const { kind, value, less } of asked.parts) {
    if (kind === "image") address.append(less ? "unseen" : "seen", nameOfPicture(value));
    else address.append(kind === "id" ? (less ? "unlike" : "like") : less ? "less" : "with", value);
  }
  if (asked.words.trim()) address.set("q", asked.words);
  if (asked.target !== "images") address.set("target", asked.target);
  if (asked.hybrid) address.set("hybrid", "1");
  if (asked.distinct) address.set("distinct", "1");
  if (Object.keys(asked.filters).length) address.set("filter", JSON.stringify(asked.filters));
  if (asked.index) address.set("index", asked.index);
  return address;
}

const KINDS = {
  like: ["id", false], unlike: ["id", true], with: ["text", false], less: ["text", true], seen: ["image", false], unseen: ["image", true],
};

export function fromAddress(address) {
  const parts = [];
  let lost = false;
  for (const [name, value] of address) {
    if (!(name in KINDS) || !value) continue;
    const [kind, less] = KINDS[name];
    const part = { kind, value: kind === "image" ? pictureNamed(value) : value, less };
    if (part.value) parts.push(part);
    else lost = true;
  }
  change(
    {
      parts,
      lost,
      words: address.get("q") ?? "",
      target: address.get("target") === "texts" ? "texts" : "images",
      filters: readFilters(address.get("filter")),
      index: address.get("index"),
      hybrid: address.get("hybrid") === "1",
      distinct: address.get("distinct") === "1",
    },
    { quiet: true },
  );
}

/** An address is written by anyone: only filters of a known form come in. */
function readFilters(text) {
  const filters = {};
  let given = {};
  try {
    given = JSON.parse(text) ?? {};
  } catch {
    return filters;
  }
  for (const [field, wanted] of Object.entries(given)) {
    if (Array.isArray(wanted?.in)) filters[field] = { in: wanted.in };
    else if (wanted && typeof wanted === "object") filters[field] = { gte: wanted.gte, lte: wanted.lte };
  }
  return filters;
}
